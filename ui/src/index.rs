//! What is known of the store, kept between requests: records of runs and keys, manifests, the course of runs that someone
//! looks at. What was written since is read again; nothing is believed for longer than one request.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sluice_engine::event::Event;
use sluice_engine::history::{self, RunRecord, RunState, Stamp};
use sluice_engine::store::{KeyRecord, Manifest, Store};

use crate::answer::Refused;
use crate::course::Course;

/// Runs whose course is kept.
const COURSES: usize = 64;
/// Bytes at the end of a journal in which its last event is looked for.
const END: u64 = 4 << 10;

/// What is known of a run without its whole journal.
pub(crate) struct Known {
    stamp: Stamp,
    /// As it was last written.
    record: RunRecord,
    /// What its last event counts, if it came to an end.
    pub(crate) counts: Option<Counts>,
    /// Milliseconds since 1970 of the last event.
    pub(crate) last: Option<u64>,
}

/// Stages by what became of them.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Counts {
    pub(crate) stages: usize,
    pub(crate) ran: usize,
    pub(crate) reused: usize,
    pub(crate) failed: usize,
    pub(crate) blocked: usize,
    pub(crate) running: usize,
}

impl Known {
    /// The record; see [`Index::whole`] for its keys.
    pub(crate) fn record(&self) -> &RunRecord {
        &self.record
    }

    pub(crate) fn name(&self) -> &str {
        &self.record.run
    }

    pub(crate) fn state(&self) -> RunState {
        self.record.state_now()
    }

    /// Wall-clock seconds, so far if it runs.
    pub(crate) fn seconds(&self) -> f64 {
        let until = match self.state() {
            RunState::Running => history::now(),
            _ if self.record.seconds > 0.0 => return self.record.seconds,
            // A run that was killed did not write down how long it took.
            _ => self.last.unwrap_or(self.record.started),
        };
        until.saturating_sub(self.record.started) as f64 / 1000.0
    }
}

/// Records by key, each with when it was written.
type Keys = HashMap<String, (Option<SystemTime>, Arc<KeyRecord>)>;

/// The store, and what is known of it.
pub(crate) struct Index {
    store: Store,
    runs: Mutex<HashMap<String, Arc<Known>>>,
    courses: Mutex<Vec<(String, Arc<Mutex<Course>>)>>,
    manifests: Mutex<HashMap<String, Arc<Manifest>>>,
    keys: Mutex<Keys>,
}

impl Index {
    pub(crate) fn new(store: Store) -> Self {
        Index {
            store,
            runs: Mutex::default(),
            courses: Mutex::default(),
            manifests: Mutex::default(),
            keys: Mutex::default(),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Reads what is there.
    pub(crate) fn warm(&self) {
        self.runs();
        self.manifests();
        self.keys();
    }

    /// All runs, the newest first.
    pub(crate) fn runs(&self) -> Vec<Arc<Known>> {
        let names = self.store.runs();
        let mut kept = lock(&self.runs);
        let there: HashSet<&String> = names.iter().collect();
        kept.retain(|name, _| there.contains(name));
        names.iter().filter_map(|name| self.look(&mut kept, name)).collect()
    }

    /// The run of exactly this name.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn run(&self, name: &str) -> Result<Arc<Known>, Refused> {
        let unknown = || Refused::unknown("there is no run of that name");
        // A name that is in the list leads nowhere else.
        if !self.store.runs().iter().any(|known| known == name) {
            return Err(unknown());
        }
        self.look(&mut lock(&self.runs), name).ok_or_else(unknown)
    }

    fn look(&self, kept: &mut HashMap<String, Arc<Known>>, name: &str) -> Option<Arc<Known>> {
        let stamp = history::stamp(&self.store, name);
        if let Some(known) = kept.get(name).filter(|known| known.stamp == stamp) {
            return Some(known.clone());
        }
        let record = history::record(&self.store, name).ok()?;
        let end = history::window(&self.store, name, stamp.journal.saturating_sub(END), END);
        let counts = end.entries.iter().rev().find_map(|entry| match entry.event {
            Event::RunFinished {
                ran,
                reused,
                failed,
                blocked,
                ..
            } => Some(Counts {
                stages: ran + reused + failed + blocked,
                ran,
                reused,
                failed,
                blocked,
                running: 0,
            }),
            _ => None,
        });
        let known = Arc::new(Known {
            stamp,
            record,
            counts,
            last: end.entries.last().map(|entry| entry.at),
        });
        kept.insert(name.to_string(), known.clone());
        Some(known)
    }

    /// Stages of a run by what became of them; of one that did not come to an end, by its journal.
    pub(crate) fn counts(&self, known: &Known) -> Counts {
        known.counts.unwrap_or_else(|| {
            let course = self.course(known);
            lock(&course).counts()
        })
    }

    /// The course of a run, up to what is written now.
    pub(crate) fn course(&self, known: &Known) -> Arc<Mutex<Course>> {
        let name = known.name();
        let course = {
            let mut kept = lock(&self.courses);
            let course = match kept.iter().position(|(run, _)| run == name) {
                Some(place) => kept.remove(place).1,
                None => Arc::default(),
            };
            kept.insert(0, (name.to_string(), course.clone()));
            kept.truncate(COURSES);
            course
        };
        lock(&course).follow(&self.store, name);
        course
    }

    /// The record of a run with the keys of what is done, also while it runs.
    pub(crate) fn whole(&self, known: &Known) -> RunRecord {
        let mut record = known.record.clone();
        if record.state == RunState::Running {
            record.keys = lock(&self.course(known)).keys();
            record.last.extend(record.keys.clone());
        }
        record
    }

    /// Manifests of all artifacts, by digest.
    pub(crate) fn manifests(&self) -> Vec<Arc<Manifest>> {
        let digests = self.store.objects();
        let mut kept = lock(&self.manifests);
        let there: HashSet<&String> = digests.iter().collect();
        kept.retain(|digest, _| there.contains(digest));
        let manifest = |digest: &String| {
            if let Some(known) = kept.get(digest) {
                return Some(known.clone());
            }
            let manifest = Arc::new(self.store.manifest(digest).ok()?);
            kept.insert(digest.clone(), manifest.clone());
            Some(manifest)
        };
        digests.iter().filter_map(manifest).collect()
    }

    /// The manifest of an artifact that is here.
    ///
    /// # Errors
    ///
    /// There is none, or that is no digest.
    pub(crate) fn manifest(&self, digest: &str) -> Result<Arc<Manifest>, Refused> {
        let unknown = || Refused::unknown("there is no artifact of that digest");
        if !is_digest(digest) || !self.store.object(digest).is_dir() {
            return Err(unknown());
        }
        let mut kept = lock(&self.manifests);
        if let Some(known) = kept.get(digest) {
            return Ok(known.clone());
        }
        let manifest = Arc::new(self.store.manifest(digest)?);
        kept.insert(digest.to_string(), manifest.clone());
        Ok(manifest)
    }

    /// Records of all keys, in order of key.
    pub(crate) fn keys(&self) -> Vec<Arc<KeyRecord>> {
        let keys = self.store.keys();
        let mut kept = lock(&self.keys);
        let there: HashSet<&String> = keys.iter().collect();
        kept.retain(|key, _| there.contains(key));
        keys.iter().filter_map(|key| self.read_key(&mut kept, key)).collect()
    }

    /// The record of a key.
    pub(crate) fn key(&self, key: &str) -> Option<Arc<KeyRecord>> {
        self.read_key(&mut lock(&self.keys), key)
    }

    /// Records by stage, of all that a run has done.
    pub(crate) fn records(&self, run: &RunRecord) -> BTreeMap<String, Arc<KeyRecord>> {
        let mut kept = lock(&self.keys);
        let record = |(stage, key): (&String, &String)| Some((stage.clone(), self.read_key(&mut kept, key)?));
        run.keys.iter().filter_map(record).collect()
    }

    fn read_key(&self, kept: &mut Keys, key: &str) -> Option<Arc<KeyRecord>> {
        let written = self.store.written(key);
        if let Some((known, record)) = kept.get(key)
            && *known == written
        {
            return Some(record.clone());
        }
        let record = Arc::new(self.store.known(key)?);
        kept.insert(key.to_string(), (written, record.clone()));
        Some(record)
    }
}

/// Whether a text is a digest or a key: 64 digits in hexadecimal.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What is kept is read anew where it is not whole, so a panic elsewhere does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
