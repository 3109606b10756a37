//! Processes: who this is, whether another one is gone, and what this one uses. Read from `/proc`; where there is none,
//! nobody is known to be gone and nothing is known to be used.

use std::fs;

use serde::{Deserialize, Serialize};

/// A process of some machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Name of the machine.
    pub host: String,
    /// Tells boots and process namespaces of machines of one name apart.
    pub machine: String,
    /// Its number.
    pub pid: u32,
    /// When it began, in ticks since boot: numbers of processes are used again.
    pub began: u64,
}

impl Process {
    /// This process.
    pub fn here() -> Process {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        Process {
            host: host(),
            machine: format!("{} {}", boot.trim(), namespace.display()),
            pid: std::process::id(),
            began: began(std::process::id()).unwrap_or(0),
        }
    }

    /// Whether it was a process of this machine, since the same boot, and is no more.
    pub fn is_gone(&self) -> bool {
        let here = Process::here();
        began(here.pid).is_some()
            && (&here.host, &here.machine) == (&self.host, &self.machine)
            && began(self.pid) != Some(self.began)
    }
}

/// Bytes of memory that this machine has, if that is known.
pub fn machine_memory() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: usize = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// A name for this process on this machine, for files: `<pid>.<began>`.
pub fn stamp() -> String {
    let pid = std::process::id();
    format!("{pid}.{}", began(pid).unwrap_or(0))
}

/// Whether a process of this machine with this stamp is gone. A number that is used again is another process.
pub fn is_stamp_of_the_gone(stamp: &str) -> bool {
    let parse = || {
        let (pid, began) = stamp.split_once('.')?;
        Some((pid.parse::<u32>().ok()?, began.parse::<u64>().ok()?))
    };
    began(std::process::id()).is_some() && parse().is_some_and(|(pid, since)| began(pid) != Some(since))
}

/// The name of this machine, as far as a file name can hold it.
pub fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect()
}

/// Bytes of memory of this process that are resident now.
pub fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = status
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}

/// Processor seconds that this process has used, all threads together.
pub fn cpu_seconds() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// When a process of this machine began, in ticks since boot.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A dead process whose parent has not looked yet is gone, too.
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_here_and_another_is_not() {
        let here = Process::here();
        assert!(!here.is_gone() && here == Process::here());
        let earlier = Process {
            began: here.began + 1,
            ..here.clone()
        };
        assert!(earlier.is_gone(), "the same number, begun at another time");
        let elsewhere = Process {
            host: "elsewhere".into(),
            ..earlier
        };
        assert!(!elsewhere.is_gone());
        assert!(!is_stamp_of_the_gone(&stamp()) && !is_stamp_of_the_gone("of nobody"));
        assert!(
            is_stamp_of_the_gone(&format!("{}.1", here.pid)),
            "the same number, begun at another time"
        );
        assert!(resident() > 1 << 20 && cpu_seconds() > 0.0);
    }
}
