//! What happens in a run, as data: written to `events.jsonl`, handed to whoever watches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::key::Reason;
use crate::operator::{Notes, Progress};
use crate::plan::Action;
use crate::store::Usage;

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
        /// The fingerprint of the plan.
        plan: String,
    },
    /// A stage was planned.
    StagePlanned {
        /// The stage.
        stage: String,
        /// What the plan says.
        action: Action,
        /// Because of what.
        because: Vec<Reason>,
    },
    /// An artifact of an earlier run, or of an equal stage, is used.
    StageReused {
        /// The stage.
        stage: String,
        /// Its key.
        key: String,
        /// Rows by output port.
        rows: BTreeMap<String, u64>,
        /// Whether the plan could not know: inputs came out equal, or someone else made it in the meantime.
        cut_off: bool,
    },
    /// Another run works on the same stage; this one waits for its result.
    StageWaiting {
        /// The stage.
        stage: String,
        /// Who works on it.
        holder: String,
    },
    /// A stage begins to run.
    StageStarted {
        /// The stage.
        stage: String,
        /// Its operator.
        operator: String,
        /// Devices it was given.
        gpus: Vec<usize>,
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
        /// What of the machine it used.
        usage: Usage,
        /// What the operator said.
        notes: Notes,
    },
    /// A stage was run again and compared with its artifacts (`sluice verify`).
    StageVerified {
        /// The stage.
        stage: String,
        /// Whether it agrees, to the bit or within the operator's tolerance.
        agrees: bool,
        /// How it compares, by output port.
        outputs: BTreeMap<String, String>,
    },
    /// The stage was taken over while this process was stopped; what it made is dropped.
    StageLost {
        /// The stage.
        stage: String,
    },
    /// A stage failed; nothing of it was published. Or rows failed a test: these are published.
    StageFailed {
        /// The stage.
        stage: String,
        /// Why.
        error: Error,
    },
    /// A stage cannot run because one above it failed.
    StageBlocked {
        /// The stage.
        stage: String,
        /// The one that failed.
        failed: String,
    },
    /// The run is over.
    RunFinished {
        /// Name of the run.
        run: String,
        /// Stages that ran.
        ran: usize,
        /// Stages that were reused.
        reused: usize,
        /// Stages that failed.
        failed: usize,
        /// Stages that could not run because others failed.
        blocked: usize,
        /// Wall-clock seconds.
        seconds: f64,
        /// Whether every stage is done.
        ok: bool,
    },
}

impl Event {
    /// The stage it is about.
    pub fn stage(&self) -> Option<&str> {
        match self {
            Event::RunStarted { .. } | Event::RunFinished { .. } => None,
            Event::StagePlanned { stage, .. }
            | Event::StageReused { stage, .. }
            | Event::StageWaiting { stage, .. }
            | Event::StageStarted { stage, .. }
            | Event::StageProgress { stage, .. }
            | Event::StageFinished { stage, .. }
            | Event::StageVerified { stage, .. }
            | Event::StageLost { stage }
            | Event::StageFailed { stage, .. }
            | Event::StageBlocked { stage, .. } => Some(stage),
        }
    }
}

/// An event and when it happened, as a line of `events.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since 1970, UTC.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
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
