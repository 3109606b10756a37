//! Leases: who works on a stage right now, so that two runs of one store do not do the same work twice.
//!
//! A lease is a file `leases/<name>.<epoch>`; the one with the highest epoch holds. Its owner changes it every few
//! seconds. Whoever waits looks at the content by its own clock: unchanged for the time to live, or owned by a process
//! of this machine that is gone, it is expired, and the next epoch is free to take. Taking links a finished file to the
//! new name, which only one can do. There is no unlock command.
//!
//! A lease saves work; it does not protect results. Keys are published without replacing (see `Store::publish_record`),
//! so an owner that was stopped and wakes up late finds that it no longer holds, and adopts what the new one made.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Store;
use crate::error::{Error, Result};
use crate::process::Process;

/// Who holds a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process.
    #[serde(flatten)]
    pub process: Process,
    /// The run.
    pub run: String,
    /// Tells leases of one process apart.
    nonce: u64,
    /// Counts up while the holder lives, with leading zeros so that the length stays.
    beat: String,
}

/// What came of asking for a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It is ours.
    Held,
    /// Someone else works on it.
    Busy(Box<Holder>),
}

/// The leases of a run.
pub struct Leases {
    shared: Arc<Shared>,
    heart: Option<JoinHandle<()>>,
}

struct Shared {
    store: Store,
    run: String,
    time_to_live: Duration,
    state: Mutex<State>,
    stopped: AtomicBool,
}

#[derive(Default)]
struct State {
    /// What we hold: path, and the holder as written.
    held: HashMap<String, (PathBuf, Holder)>,
    /// What others hold: content, and since when it is unchanged.
    watched: HashMap<String, (Vec<u8>, Instant)>,
}

static NONCE: AtomicU64 = AtomicU64::new(0);

impl Leases {
    /// Leases of a run; a thread keeps them alive.
    pub fn new(store: &Store, run: &str, time_to_live: Duration) -> Self {
        let shared = Arc::new(Shared {
            store: store.clone(),
            run: run.to_string(),
            time_to_live,
            state: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let beating = shared.clone();
        let heart = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let mut last = Instant::now();
            while !beating.stopped.load(Ordering::Relaxed) {
                std::thread::park_timeout(Duration::from_millis(50).min(beating.time_to_live / 8));
                if last.elapsed() >= beating.time_to_live / 4 {
                    last = Instant::now();
                    beating.beat();
                }
            }
        });
        Leases {
            shared,
            heart: heart.ok(),
        }
    }

    /// Asks for a lease. Asking again for one that is held is fine.
    pub fn claim(&self, name: &str) -> Result<Claim> {
        let shared = &self.shared;
        let mut state = shared.state();
        let top = shared.top(name);
        let next = match &top {
            None => 1,
            Some((epoch, path)) => {
                if state.held.get(name).is_some_and(|(held, _)| held == path) && shared.owns(&state, name) {
                    return Ok(Claim::Held);
                }
                match shared.busy(&mut state, name, path) {
                    Some(holder) => return Ok(Claim::Busy(Box::new(holder))),
                    None => epoch + 1,
                }
            }
        };
        let holder = Holder {
            nonce: NONCE.fetch_add(1, Ordering::Relaxed),
            beat: format!("{:020}", 0),
            ..Holder::here(&shared.run)
        };
        let path = shared.path(name, next);
        let private = shared
            .store
            .attempt_folder(&Store::attempt_name(&format!("lease-{}", holder.nonce)));
        let text = serde_json::to_string(&holder).map_err(|error| Error::internal(error.to_string()))?;
        let disk = shared.store.disk();
        let write = disk.write(&private, text.as_bytes());
        write.map_err(|error| Error::io("write", &private, &error))?;
        let linked = disk.link(&private, &path);
        let _ = disk.remove(&private);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                // Someone was faster; whoever it is shows in the next look.
                let held = shared.top(name).and_then(|(_, path)| shared.read(&path));
                return Ok(Claim::Busy(Box::new(held.unwrap_or(holder))));
            }
            Err(error) => return Err(Error::io("write", &path, &error)),
        }
        if let Some((_, expired)) = top {
            let _ = disk.remove(&expired);
        }
        state.watched.remove(name);
        state.held.insert(name.to_string(), (path, holder));
        Ok(Claim::Held)
    }

    /// Whether a lease is still ours. It is not if we were stopped for so long that someone else took it.
    pub fn holds(&self, name: &str) -> bool {
        self.shared.owns(&self.shared.state(), name)
    }

    /// Gives a lease back.
    pub fn release(&self, name: &str) {
        let mut state = self.shared.state();
        let ours = self.shared.owns(&state, name);
        if let Some((path, _)) = state.held.remove(name)
            && ours
        {
            let _ = self.shared.store.disk().remove(&path);
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        if let Some(heart) = self.heart.take() {
            heart.thread().unpark();
            let _ = heart.join();
        }
        let names: Vec<String> = self.shared.state().held.keys().cloned().collect();
        names.iter().for_each(|name| self.release(name));
    }
}

/// Removes leases of processes of this machine that are gone. Whoever works on the same stage would take them over, but
/// nobody asks for the lease of a stage that was published just before its process was killed.
pub(super) fn discard_abandoned(store: &Store) {
    let folder = store.root().join("leases");
    for name in store.disk().list(&folder).unwrap_or_default() {
        let path = folder.join(name);
        let content = store.disk().read(&path).unwrap_or_default();
        if serde_json::from_slice::<Holder>(&content).is_ok_and(|holder| holder.process.is_gone()) {
            let _ = store.disk().remove(&path);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn path(&self, name: &str, epoch: u64) -> PathBuf {
        self.store.root().join("leases").join(format!("{name}.{epoch}"))
    }

    /// The highest epoch of a lease.
    fn top(&self, name: &str) -> Option<(u64, PathBuf)> {
        let names = self
            .store
            .disk()
            .list(&self.store.root().join("leases"))
            .unwrap_or_default();
        let epochs = names
            .iter()
            .filter_map(|file| file.strip_prefix(name)?.strip_prefix('.')?.parse::<u64>().ok());
        epochs.max().map(|epoch| (epoch, self.path(name, epoch)))
    }

    fn read(&self, path: &Path) -> Option<Holder> {
        serde_json::from_slice(&self.store.disk().read(path).ok()?).ok()
    }

    fn owns(&self, state: &State, name: &str) -> bool {
        let Some((path, holder)) = state.held.get(name) else {
            return false;
        };
        let top = self.top(name).is_some_and(|(_, top)| top == *path);
        top && self
            .read(path)
            .is_some_and(|found| found.nonce == holder.nonce && found.process == holder.process)
    }

    /// The holder of a lease, unless it is gone or has not moved for the time to live.
    fn busy(&self, state: &mut State, name: &str, path: &Path) -> Option<Holder> {
        let content = self.store.disk().read(path).ok()?;
        let holder: Option<Holder> = serde_json::from_slice(&content).ok();
        if holder.as_ref().is_some_and(|holder| holder.process.is_gone()) {
            return None;
        }
        let seen = state
            .watched
            .entry(name.to_string())
            .or_insert((content.clone(), Instant::now()));
        if seen.0 != content {
            *seen = (content, Instant::now());
        }
        if seen.1.elapsed() > self.time_to_live {
            return None;
        }
        // A lease that is being written this very moment reads as nobody's.
        Some(holder.unwrap_or_else(|| Holder::here("")))
    }

    fn beat(&self) {
        let mut state = self.state();
        let names: Vec<String> = state.held.keys().cloned().collect();
        for name in names {
            if !self.owns(&state, &name) {
                continue;
            }
            let Some((path, holder)) = state.held.get_mut(&name) else {
                continue;
            };
            let count: u64 = holder.beat.parse().unwrap_or(0);
            holder.beat = format!("{:020}", count + 1);
            if let Ok(text) = serde_json::to_string(holder) {
                // If it cannot be written, others will take the lease; that is what leases are for.
                let _ = self.store.disk().overwrite(path, text.as_bytes());
            }
        }
    }
}

impl Holder {
    fn here(run: &str) -> Holder {
        Holder {
            process: Process::here(),
            run: run.to_string(),
            nonce: 0,
            beat: String::new(),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(
            f,
            "run {} (process {} on {})",
            self.run, self.process.pid, self.process.host
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_the_other_waits_and_a_silent_one_loses() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let short = Duration::from_millis(200);
        let (a, b) = (Leases::new(&store, "a", short), Leases::new(&store, "b", short));
        assert_eq!(a.claim("k").unwrap(), Claim::Held);
        assert_eq!(a.claim("k").unwrap(), Claim::Held);
        let Claim::Busy(holder) = b.claim("k").unwrap() else {
            panic!("held twice")
        };
        assert_eq!(holder.run, "a");
        // Alive, it keeps the lease well beyond the time to live.
        std::thread::sleep(3 * short);
        assert!(matches!(b.claim("k").unwrap(), Claim::Busy(_)));
        a.release("k");
        assert_eq!(b.claim("k").unwrap(), Claim::Held);
        assert!(!a.holds("k") && b.holds("k"));

        // Silent, it loses it; and what it did not notice it cannot release.
        b.shared.stopped.store(true, Ordering::Relaxed);
        std::thread::sleep(short);
        assert!(matches!(a.claim("k").unwrap(), Claim::Busy(_)), "first look");
        std::thread::sleep(2 * short);
        assert_eq!(a.claim("k").unwrap(), Claim::Held);
        assert!(a.holds("k") && !b.holds("k"));
        b.release("k");
        assert!(a.holds("k"));
        drop(a);
        assert!(
            std::fs::read_dir(folder.path().join("leases"))
                .unwrap()
                .next()
                .is_none()
        );
    }

    #[test]
    fn leases_of_dead_processes_are_free_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut dead = Holder::here("dead");
        (dead.process.pid, dead.process.began) = (1, 0);
        let path = folder.path().join("leases/k.7");
        std::fs::write(&path, serde_json::to_string(&dead).unwrap()).unwrap();
        let leases = Leases::new(&store, "b", Duration::from_secs(3600));
        assert_eq!(leases.claim("k").unwrap(), Claim::Held);
        assert!(folder.path().join("leases/k.8").exists() && !path.exists());

        // One that nobody asks for goes, too; one that is held stays.
        let path = folder.path().join("leases/done.3");
        std::fs::write(&path, serde_json::to_string(&dead).unwrap()).unwrap();
        assert!(store.discard_abandoned().is_empty());
        assert!(leases.holds("k") && !path.exists());
    }

    #[test]
    fn of_many_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let held: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|run| {
                    let store = &store;
                    scope.spawn(move || {
                        let leases = Leases::new(store, &run.to_string(), Duration::from_secs(60));
                        let held = leases.claim("k").unwrap() == Claim::Held;
                        std::thread::sleep(Duration::from_millis(300));
                        usize::from(held)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(held, 1);
    }
}
