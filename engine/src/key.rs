//! Keys: what a stage's result depends on, and nothing else, as text that can be read and compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::graph::Stage;

/// Bumped when the meaning of keys or artifacts changes.
pub const KEY_FORMAT: u32 = 1;

/// Everything a stage's result depends on. Its canonical JSON is hashed, and stored beside the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preimage {
    /// [`KEY_FORMAT`].
    pub format: u32,
    /// The operator's name.
    pub operator: String,
    /// The operator's version.
    pub version: u32,
    /// The config apart from resources, defaults filled in.
    pub config: Map<String, Value>,
    /// The run's seed, if the operator draws random numbers.
    pub seed: Option<u64>,
    /// Content digests of files outside the store.
    pub files: BTreeMap<String, String>,
    /// Content digests of the inputs by port.
    pub inputs: BTreeMap<String, String>,
}

impl Preimage {
    /// The part that is known before any input is: `inputs` stays empty.
    pub fn without_inputs(stage: &Stage, files: BTreeMap<String, String>) -> Self {
        Preimage {
            format: KEY_FORMAT,
            operator: stage.entry.name.to_string(),
            version: stage.entry.version,
            config: stage.keyed_config(),
            seed: stage.operator.seeded().then_some(stage.seed),
            files,
            inputs: BTreeMap::new(),
        }
    }

    /// The name under which checkpoints are kept: the key without how far to go, for operators that can go further.
    pub fn lineage(&self, stage: &Stage) -> String {
        let mut alone = self.clone();
        if stage.operator.extendable() {
            let extent = stage.entry.fields.iter().filter(|field| field.extent);
            extent.for_each(|field| {
                alone.config.remove(&field.name);
            });
        }
        digest("sluice lineage", &canonical(&json!(alone)))
    }

    /// The key: BLAKE3 of the canonical JSON, in hexadecimal.
    pub fn key(&self) -> String {
        digest("sluice key", &canonical(&json!(self)))
    }
}

/// BLAKE3 of a text under a type tag, in hexadecimal.
pub fn digest(tag: &str, text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tag.as_bytes());
    hasher.update(b"\0");
    hasher.update(text.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// JSON with sorted keys and no white space.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let entries: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::String(key.clone()), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Why a stage runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Reason {
    /// There is no record of it.
    NeverRan,
    /// Someone asked for it.
    Forced,
    /// The operator is another one.
    Operator {
        /// Before.
        old: String,
        /// Now.
        new: String,
    },
    /// The meaning of keys changed.
    Format {
        /// Before.
        old: u32,
        /// Now.
        new: u32,
    },
    /// The operator's version moved.
    Version {
        /// Before.
        old: u32,
        /// Now.
        new: u32,
    },
    /// The seed is another one; `None` where it does not matter.
    Seed {
        /// Before.
        old: Option<u64>,
        /// Now.
        new: Option<u64>,
    },
    /// A config field changed; `None` where it did not exist.
    Config {
        /// The field.
        field: String,
        /// Before.
        old: Option<Value>,
        /// Now.
        new: Option<Value>,
    },
    /// The content of a file outside the store changed; digests.
    File {
        /// The file as declared.
        name: String,
        /// Before.
        old: Option<String>,
        /// Now.
        new: Option<String>,
    },
    /// The content of an input changed; digests.
    Input {
        /// The port.
        port: String,
        /// Before.
        old: Option<String>,
        /// Now.
        new: Option<String>,
    },
    /// Stages above it run, and what they make is not known yet.
    MayChange {
        /// These.
        stages: Vec<String>,
    },
    /// It is a test, and these rows fail it.
    Fails {
        /// How many.
        rows: u64,
    },
    /// It is behind tests that fail: it would run, but will not.
    Behind {
        /// These.
        tests: Vec<String>,
    },
    /// The key is known, its artifact is gone or damaged.
    Missing,
    /// Its old artifact is kept although the operator's version moved, because someone said so.
    Accepted {
        /// The version that made the artifact.
        old: u32,
        /// The version of the operator now.
        new: u32,
    },
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let change =
            |f: &mut std::fmt::Formatter, what: &str, name: &str, old: &Option<String>, new: &Option<String>| {
                let how = match (old, new) {
                    (Some(_), Some(_)) => "changed",
                    (None, _) => "is new",
                    (_, None) => "is gone",
                };
                write!(f, "{what} {name} {how}")
            };
        match self {
            Reason::NeverRan => write!(f, "never ran"),
            Reason::Forced => write!(f, "forced"),
            Reason::Operator { old, new } => write!(f, "operator {old} -> {new}"),
            Reason::Format { old, new } => write!(f, "key format {old} -> {new}"),
            Reason::Version { old, new } => write!(f, "operator version {old} -> {new}"),
            Reason::Seed { old, new } => {
                let show = |seed: &Option<u64>| seed.map_or("none".to_string(), |seed| seed.to_string());
                write!(f, "seed {} -> {}", show(old), show(new))
            }
            Reason::Config { field, old, new } => match (old, new) {
                (Some(old), Some(new)) => write!(f, "{field} {old} -> {new}"),
                (None, Some(new)) => write!(f, "{field} is new: {new}"),
                (Some(old), None) => write!(f, "{field} is gone: {old}"),
                (None, None) => Ok(()),
            },
            Reason::File { name, old, new } => change(f, "file", name, old, new),
            Reason::Input { port, old, new } => change(f, "input", port, old, new),
            Reason::MayChange { stages } => {
                let some: Vec<&str> = stages.iter().take(4).map(String::as_str).collect();
                let more = stages.len() - some.len();
                let more = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                write!(f, "{}{more} may change", some.join(", "))
            }
            Reason::Fails { rows } => write!(f, "fails: {rows} {}", if *rows == 1 { "row" } else { "rows" }),
            Reason::Behind { tests } => {
                let more = match tests.len() {
                    0 | 1 => String::new(),
                    count => format!(" and {} more", count - 1),
                };
                let first = tests.first().map_or("", String::as_str);
                write!(f, "held back by {first}{more}")
            }
            Reason::Missing => write!(f, "its artifact is missing"),
            Reason::Accepted { old, new } => write!(f, "accepted as it is: operator version {old} -> {new}"),
        }
    }
}

/// Why two pre-images differ: `codebook_size 256 -> 512`, `input text changed`, `operator version 1 -> 2`.
pub fn differences(old: &Preimage, new: &Preimage) -> Vec<Reason> {
    if old.operator != new.operator {
        return vec![Reason::Operator {
            old: old.operator.clone(),
            new: new.operator.clone(),
        }];
    }
    let mut reasons = Vec::new();
    if old.format != new.format {
        reasons.push(Reason::Format {
            old: old.format,
            new: new.format,
        });
    }
    if old.version != new.version {
        reasons.push(Reason::Version {
            old: old.version,
            new: new.version,
        });
    }
    if old.seed != new.seed {
        reasons.push(Reason::Seed {
            old: old.seed,
            new: new.seed,
        });
    }
    for (field, old, new) in changes(&old.config, &new.config, |a, b| canonical(a) == canonical(b)) {
        reasons.push(Reason::Config { field, old, new });
    }
    for (name, old, new) in changes(&old.files, &new.files, String::eq) {
        reasons.push(Reason::File { name, old, new });
    }
    for (port, old, new) in changes(&old.inputs, &new.inputs, String::eq) {
        reasons.push(Reason::Input { port, old, new });
    }
    reasons
}

/// Entries of two maps that differ, in order of the keys.
fn changes<'a, V: Clone + 'a>(
    old: impl IntoIterator<Item = (&'a String, &'a V)>,
    new: impl IntoIterator<Item = (&'a String, &'a V)>,
    same: impl Fn(&V, &V) -> bool,
) -> Vec<(String, Option<V>, Option<V>)> {
    let mut both: BTreeMap<&String, (Option<&V>, Option<&V>)> = BTreeMap::new();
    old.into_iter()
        .for_each(|(key, value)| both.entry(key).or_default().0 = Some(value));
    new.into_iter()
        .for_each(|(key, value)| both.entry(key).or_default().1 = Some(value));
    both.into_iter()
        .filter(|(_, pair)| !matches!(pair, (Some(old), Some(new)) if same(old, new)))
        .map(|(key, (old, new))| (key.clone(), old.cloned(), new.cloned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preimage(config: Value) -> Preimage {
        Preimage {
            format: 1,
            operator: "op".into(),
            version: 1,
            config: config.as_object().unwrap().clone(),
            seed: None,
            files: BTreeMap::new(),
            inputs: BTreeMap::from([("input".to_string(), "d".to_string())]),
        }
    }

    #[test]
    fn keys_ignore_the_order_of_fields() {
        let (a, b) = (preimage(json!({"a": 1, "b": 2})), preimage(json!({"b": 2, "a": 1})));
        assert_eq!(a.key(), b.key());
        assert_ne!(a.key(), preimage(json!({"a": 1, "b": 3})).key());
    }

    #[test]
    fn differences_name_old_and_new() {
        let (old, mut new) = (preimage(json!({"size": 256})), preimage(json!({"size": 512})));
        new.version = 2;
        new.inputs.insert("input".into(), "e".into());
        let lines: Vec<String> = differences(&old, &new).iter().map(Reason::to_string).collect();
        assert_eq!(
            lines,
            ["operator version 1 -> 2", "size 256 -> 512", "input input changed"]
        );
    }
}
