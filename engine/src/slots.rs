//! What of a machine a stage takes while it runs, and what a machine has to give.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, did_you_mean};

/// What a stage takes: `resources: { cpus: 2, memory: 8G, gpus: 1 }`. It decides what runs side by side and on which
/// device; it is not part of the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// Cores; 0 for one share of the machine (its cores over `--jobs`).
    pub cpus: usize,
    /// Bytes of memory; 0 for unknown, which holds back nothing.
    pub memory: u64,
    /// Devices.
    pub gpus: usize,
}

/// What a machine has to give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Stages that run once (`Whole`) at the same time, at most.
    pub jobs: usize,
    /// Cores.
    pub cpus: usize,
    /// Bytes of memory; 0 for no limit.
    pub memory: u64,
    /// Ids of devices.
    pub gpus: Vec<usize>,
}

/// What is taken of a machine, by stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken(Vec<(usize, Slots, Vec<usize>)>);

impl Slots {
    /// Reads a `resources:` block.
    pub fn parse(value: &Value) -> Result<Slots, Error> {
        const KEYS: [&str; 3] = ["cpus", "memory", "gpus"];
        let wrong = |message: String| Error::user("bad-resources", message);
        let Some(map) = value.as_object() else {
            return Err(wrong("\"resources\" wants a map".into()).hint("write { cpus: 2, memory: 8G, gpus: 1 }"));
        };
        let mut slots = Slots::default();
        for (key, value) in map {
            let count = value.as_u64();
            match (key.as_str(), count) {
                ("cpus", Some(count)) => slots.cpus = count as usize,
                ("gpus", Some(count)) => slots.gpus = count as usize,
                ("memory", _) => {
                    let text = value.as_str().map_or(value.to_string(), str::to_string);
                    slots.memory =
                        bytes(&text).ok_or_else(|| wrong(format!("{value} is no size; write 512M or 8G")))?;
                }
                ("cpus" | "gpus", None) => return Err(wrong(format!("\"{key}\" wants a whole number, not {value}"))),
                _ => {
                    let mut error =
                        wrong(format!("unknown resource \"{key}\"")).detail(format!("known: {}", KEYS.join(", ")));
                    error.hint = did_you_mean(key, KEYS);
                    return Err(error);
                }
            }
        }
        Ok(slots)
    }
}

impl Machine {
    /// What a stage takes here, its defaults filled in; an error if the machine could never give it.
    pub fn share(&self, slots: &Slots) -> Result<Slots, Error> {
        let share = Slots {
            cpus: match slots.cpus {
                0 => (self.cpus / self.jobs.max(1)).max(1),
                cpus => cpus,
            },
            ..slots.clone()
        };
        let short = |what: &str, wanted: u64, given: u64| {
            Error::user(
                "not-enough",
                format!("wants {wanted} {what}, the machine gives {given}"),
            )
            .hint("change \"resources:\" of the stage, or --cpus, --slots-memory, --gpus of the run")
        };
        if share.cpus > self.cpus {
            return Err(short("cpus", share.cpus as u64, self.cpus as u64));
        }
        if self.memory > 0 && share.memory > self.memory {
            return Err(short("bytes of memory", share.memory, self.memory));
        }
        if share.gpus > self.gpus.len() {
            return Err(short("gpus", share.gpus as u64, self.gpus.len() as u64));
        }
        Ok(share)
    }
}

impl Taken {
    /// Takes a share for a stage if it is free: the ids of its devices.
    pub(crate) fn take(&mut self, stage: usize, share: &Slots, machine: &Machine) -> Option<Vec<usize>> {
        let sum = |part: fn(&Slots) -> u64| self.0.iter().map(|(_, slots, _)| part(slots)).sum::<u64>();
        let free: Vec<usize> = machine
            .gpus
            .iter()
            .copied()
            .filter(|id| !self.0.iter().any(|(_, _, ids)| ids.contains(id)))
            .collect();
        let fits = self.0.len() < machine.jobs.max(1)
            && sum(|slots| slots.cpus as u64) + share.cpus as u64 <= machine.cpus.max(1) as u64
            && (machine.memory == 0 || sum(|slots| slots.memory) + share.memory <= machine.memory)
            && free.len() >= share.gpus;
        if !fits {
            return None;
        }
        let ids: Vec<usize> = free.into_iter().take(share.gpus).collect();
        self.0.push((stage, share.clone(), ids.clone()));
        Some(ids)
    }

    /// Gives back what a stage took.
    pub(crate) fn give(&mut self, stage: usize) {
        self.0.retain(|(other, _, _)| *other != stage);
    }
}

/// `512M`, `4G`, `1048576`.
pub fn bytes(text: &str) -> Option<u64> {
    let upper = text.trim().to_ascii_uppercase();
    let number = upper.trim_end_matches('B');
    let (number, unit) = match number.chars().last()? {
        'K' => (&number[..number.len() - 1], 1u64 << 10),
        'M' => (&number[..number.len() - 1], 1 << 20),
        'G' => (&number[..number.len() - 1], 1 << 30),
        'T' => (&number[..number.len() - 1], 1 << 40),
        _ => (number, 1),
    };
    let number: f64 = number.trim().parse().ok()?;
    (number > 0.0 && number.is_finite()).then_some((number * unit as f64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_fill_a_machine_and_come_back() {
        let machine = Machine {
            jobs: 3,
            cpus: 4,
            memory: 10,
            gpus: vec![0, 3],
        };
        let mut taken = Taken::default();
        let one = |cpus, memory, gpus| Slots { cpus, memory, gpus };
        assert_eq!(taken.take(0, &one(2, 6, 1), &machine), Some(vec![0]));
        assert_eq!(taken.take(1, &one(3, 0, 0), &machine), None, "cpus");
        assert_eq!(taken.take(1, &one(1, 6, 0), &machine), None, "memory");
        assert_eq!(taken.take(1, &one(1, 0, 2), &machine), None, "gpus");
        assert_eq!(taken.take(1, &one(1, 0, 1), &machine), Some(vec![3]));
        assert_eq!(taken.take(2, &one(1, 0, 0), &machine), Some(vec![]));
        taken.give(0);
        assert_eq!(taken.take(3, &one(1, 0, 1), &machine), Some(vec![0]));
        assert!(machine.share(&one(5, 0, 0)).is_err() && machine.share(&one(0, 0, 3)).is_err());
        assert_eq!(machine.share(&Slots::default()).unwrap().cpus, 1);
    }

    #[test]
    fn blocks_are_read() {
        let slots = Slots::parse(&json!({ "cpus": 2, "memory": "1.5G", "gpus": 1 })).unwrap();
        assert_eq!((slots.cpus, slots.memory, slots.gpus), (2, 3 << 29, 1));
        assert_eq!(bytes("77"), Some(77));
        assert_eq!(bytes("4GB"), Some(4 << 30));
        assert!(bytes("many").is_none());
        let error = Slots::parse(&json!({ "cpu": 2 })).unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("did you mean \"cpus\"?"));
    }
}
