//! What happens in a run, as data: written to `events.jsonl`, handed to whoever watches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::operator::{Notes, Progress};
use crate::plan::Action;

/// Something that happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins.
    RunStarted {
        /// Name of the run.
        run: String,
        /// Name of the pipeline.
        pipeline: String,
        /// Number of stages.
        stages: usize,
    },
    /// A stage was planned.
    StagePlanned {
        /// The stage.
        stage: String,
        /// What the plan says.
        action: Action,
        /// Because of what.
        because: Vec<String>,
    },
    /// An artifact of an earlier run, or of an equal stage, is used.
    StageReused {
        /// The stage.
        stage: String,
        /// Its key.
        key: String,
        /// Rows by output port.
        rows: BTreeMap<String, u64>,
        /// Whether the plan could not know: inputs came out equal.
        cut_off: bool,
    },
    /// A stage begins to run.
    StageStarted {
        /// The stage.
        stage: String,
        /// Its operator.
        operator: String,
    },
    /// A running stage tells how far it is.
    StageProgress {
        /// The stage.
        stage: String,
        /// How far.
        progress: Progress,
    },
    /// A stage is finished and published.
    StageFinished {
        /// The stage.
        stage: String,
        /// Its key, if all of its inputs were content-addressed.
        key: String,
        /// Rows by output port.
        rows: BTreeMap<String, u64>,
        /// Bytes of all outputs.
        bytes: u64,
        /// Wall-clock seconds.
        seconds: f64,
        /// What the operator said.
        notes: Notes,
    },
    /// A stage failed; nothing of it was published.
    StageFailed {
        /// The stage.
        stage: String,
        /// Why.
        error: Error,
    },
    /// The run is over.
    RunFinished {
        /// Name of the run.
        run: String,
        /// Stages that ran.
        ran: usize,
        /// Stages that were reused.
        reused: usize,
        /// Wall-clock seconds.
        seconds: f64,
        /// Whether every stage is done.
        ok: bool,
    },
}

/// Watches a run. Called from the thread that drives the run; must not block.
pub trait Watch: Send {
    /// Something happened.
    fn event(&mut self, event: &Event);
}

impl<F: FnMut(&Event) + Send> Watch for F {
    fn event(&mut self, event: &Event) {
        self(event);
    }
}
