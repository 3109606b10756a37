//! The door to the file system of every step that the store and the journal take, so that a test can fail, kill or lose
//! any of them. Bulk data (Parquet parts, models) is written beside it and made durable through it.

#[cfg(test)]
pub(crate) mod lossy;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// The steps. A file's content is durable after `sync`; names in a folder are durable after `sync` of the folder.
pub trait Disk: Send + Sync {
    /// The content of a file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// The length of a file.
    fn length(&self, path: &Path) -> io::Result<u64>;
    /// Names in a folder, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Makes a folder and those above it where they are missing.
    fn create_folder(&self, path: &Path) -> io::Result<()>;
    /// Writes a file, new or over an old one.
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Writes into an existing file from its start.
    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Adds to the end of a file, which is made if it is missing.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes a file's content, or the names in a folder, durable.
    fn sync(&self, path: &Path) -> io::Result<()>;
    /// Renames a file or folder; a file replaces a file.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name; an error if that name is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a folder with everything in it.
    fn remove_folder(&self, path: &Path) -> io::Result<()>;
}

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Os;

impl Disk for Os {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }
    fn length(&self, path: &Path) -> io::Result<u64> {
        fs::metadata(path).map(|metadata| metadata.len())
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().to_string()))
            .collect()
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        File::create(path)?.write_all(bytes)
    }
    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.write_all(bytes)
    }
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)?
            .write_all(bytes)
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}

/// What goes wrong, and before which step: `kill@17`, `torn@17`, `stop@17`, `full@17`, `denied@17`, `trace:FILE`.
///
/// Steps are counted from 1 over the life of the process; reads do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// Before which step; every later one fails too, for `full` and `denied`.
    pub step: u64,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The process dies (SIGKILL).
    Kill,
    /// Half of the bytes are written, then the process dies.
    Torn,
    /// The process is stopped (SIGSTOP) until somebody lets it go on.
    Stop,
    /// The disk is full.
    Full,
    /// The folder cannot be written.
    Denied,
    /// Nothing: the name of every step is appended to this file.
    Trace(std::path::PathBuf),
}

impl std::str::FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("trace:") {
            return Ok(Fault {
                kind: FaultKind::Trace(path.into()),
                step: 0,
            });
        }
        let wrong = || format!("\"{text}\" is no fault: write kill@N, torn@N, stop@N, full@N, denied@N or trace:FILE");
        let (kind, step) = text.split_once('@').ok_or_else(wrong)?;
        let kind = match kind {
            "kill" => FaultKind::Kill,
            "torn" => FaultKind::Torn,
            "stop" => FaultKind::Stop,
            "full" => FaultKind::Full,
            "denied" => FaultKind::Denied,
            _ => return Err(wrong()),
        };
        Ok(Fault {
            kind,
            step: step.parse().map_err(|_| wrong())?,
        })
    }
}

/// The file system with a fault.
#[derive(Debug)]
pub struct Faulty {
    fault: Fault,
    steps: AtomicU64,
}

impl Faulty {
    /// The file system of this machine, on which `fault` will happen.
    pub fn new(fault: Fault) -> Self {
        Faulty {
            fault,
            steps: AtomicU64::new(0),
        }
    }

    /// Before a step. `torn` writes what a torn step leaves.
    fn step(&self, name: &str, path: &Path, torn: impl FnOnce()) -> io::Result<()> {
        let step = self.steps.fetch_add(1, Ordering::SeqCst) + 1;
        let signal = |signal| {
            let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
        };
        match &self.fault.kind {
            FaultKind::Trace(file) => {
                let line = format!("{name} {}\n", path.display());
                return Os.append(file, line.as_bytes());
            }
            FaultKind::Kill if step == self.fault.step => signal(rustix::process::Signal::KILL),
            FaultKind::Torn if step == self.fault.step => {
                torn();
                signal(rustix::process::Signal::KILL);
            }
            FaultKind::Stop if step == self.fault.step => signal(rustix::process::Signal::STOP),
            FaultKind::Full if step >= self.fault.step && !name.starts_with("remove") => {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()));
            }
            FaultKind::Denied if step >= self.fault.step => {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::ROFS.raw_os_error()));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Disk for Faulty {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        Os.read(path)
    }
    fn length(&self, path: &Path) -> io::Result<u64> {
        Os.length(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        Os.list(path)
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.step("create_folder", path, || {})?;
        Os.create_folder(path)
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step("write", path, || {
            let _ = Os.write(path, &bytes[..bytes.len() / 2]);
        })?;
        Os.write(path, bytes)
    }
    fn overwrite(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // Heartbeats come with time: they are no steps, so that steps count the same in every run.
        Os.overwrite(path, bytes)
    }
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step("append", path, || {
            let _ = Os.append(path, &bytes[..bytes.len() / 2]);
        })?;
        Os.append(path, bytes)
    }
    fn sync(&self, path: &Path) -> io::Result<()> {
        self.step("sync", path, || {})?;
        Os.sync(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename", to, || {})?;
        Os.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("link", to, || {})?;
        Os.link(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step("remove", path, || {})?;
        Os.remove(path)
    }
    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.step("remove_folder", path, || {
            // Half of what is in it.
            let names = Os.list(path).unwrap_or_default();
            for name in names.iter().take(names.len() / 2) {
                let _ = Os.remove(&path.join(name));
            }
        })?;
        Os.remove_folder(path)
    }
}
