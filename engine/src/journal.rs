//! The journal of a run: events go into `events.jsonl`, and on to whoever watches.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::event::{Entry, Event};
use crate::history::now;
use crate::store::Store;

/// How often progress is written to the journal, a stage.
const PROGRESS: Duration = Duration::from_secs(1);

/// Writes events to the journal of a run and hands them on.
pub(crate) struct Teller {
    pub(crate) store: Store,
    pub(crate) journal: PathBuf,
    pub(crate) events: Sender<Event>,
    told: HashMap<String, Instant>,
}

impl Teller {
    pub(crate) fn new(store: &Store, run: &str, events: Sender<Event>) -> Self {
        Teller {
            store: store.clone(),
            journal: store.run_folder(run).join("events.jsonl"),
            events,
            told: HashMap::new(),
        }
    }

    /// Tells some events. They reach the journal in one step.
    pub(crate) fn tell(&mut self, events: Vec<Event>) {
        let mut lines = String::new();
        for event in &events {
            if let Event::StageProgress { stage, .. } = event {
                let due = self.told.get(stage).is_none_or(|told| told.elapsed() >= PROGRESS);
                if !due {
                    continue;
                }
                self.told.insert(stage.clone(), Instant::now());
            }
            let entry = Entry {
                at: now(),
                event: event.clone(),
            };
            if let Ok(line) = serde_json::to_string(&entry) {
                lines.push_str(&line);
                lines.push('\n');
            }
        }
        if !lines.is_empty() {
            // The journal is a record for people; the run does not depend on it.
            let _ = self.store.disk().append(&self.journal, lines.as_bytes());
        }
        for event in events {
            // Whoever watched may be gone.
            let _ = self.events.send(event);
        }
    }
}
