//! A stage as its dataflow operators share it on one worker.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::control::Control;
use super::parcel::{Parcel, Report};
use crate::error::{Error, Result};
use crate::graph::Stage;
use crate::operator::{Context, Progress};
use crate::table::{Shape, Table, Tables};

/// What the dataflow operators of one stage share on one worker.
#[derive(Clone)]
pub(crate) struct StageRun {
    pub index: usize,
    pub stage: Arc<Stage>,
    pub context: Context,
    /// Inputs that are not streamed.
    pub broadcast: Tables,
    pub control: Control,
    busy: Rc<Cell<f64>>,
    failed: Rc<Cell<bool>>,
    told: Rc<RefCell<Instant>>,
}

impl StageRun {
    pub(crate) fn new(index: usize, stage: Arc<Stage>, context: Context, broadcast: Tables, control: Control) -> Self {
        StageRun {
            index,
            stage,
            context,
            broadcast,
            control,
            busy: Rc::default(),
            failed: Rc::default(),
            told: Rc::new(RefCell::new(Instant::now())),
        }
    }

    /// Calls the operator. On failure the coordinator is told once and nothing more is called.
    pub(crate) fn call<T>(&self, work: impl FnOnce(&Stage) -> Result<T>) -> Option<T> {
        if self.failed.get() || self.context.cancel.is_cancelled() {
            return None;
        }
        let start = Instant::now();
        // A panic in an operator is our bug; it must still end the run with a message and not hang the others.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&self.stage)))
            .unwrap_or_else(|panic| Err(panicked(&*panic)));
        self.busy.set(self.busy.get() + start.elapsed().as_secs_f64());
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(error);
                None
            }
        }
    }

    /// Tells the coordinator that the stage failed.
    pub(crate) fn fail(&self, error: Error) {
        if !self.failed.replace(true) {
            self.control.report(Report::Failed {
                stage: self.index,
                error,
            });
        }
    }

    /// Calls nothing more, without a word: the failure is told elsewhere.
    pub(crate) fn abandon(&self) {
        self.failed.set(true);
    }

    /// Whether it failed on this worker.
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Seconds inside the operator on this worker.
    pub(crate) fn busy_seconds(&self) -> f64 {
        self.busy.get()
    }

    /// Adds seconds that were spent on another thread.
    pub(crate) fn add_busy(&self, seconds: f64) {
        self.busy.set(self.busy.get() + seconds);
    }

    /// Tells how far the stage is, at most ten times a second.
    pub(crate) fn progress(&self, progress: impl FnOnce() -> Progress) {
        let mut told = self.told.borrow_mut();
        if told.elapsed().as_millis() >= 100 {
            *told = Instant::now();
            self.control.report(Report::Progress {
                stage: self.index,
                progress: progress(),
            });
        }
    }

    /// The operator's output as parcels of a place: for every table port exactly one, so that places have no gaps.
    pub(crate) fn parcels(&self, part: u32, seq: u32, outputs: &Tables) -> Result<Vec<Parcel>> {
        let mut parcels = Vec::new();
        for (port, (name, shape)) in self.stage.bound.outputs.iter().enumerate() {
            let Shape::Table(schema) = shape else { continue };
            let batches = match outputs.has(name) {
                true => self.conform(name, schema, outputs.table(name)?)?,
                false => Vec::new(),
            };
            parcels.push(Parcel {
                to: u64::from(part),
                port: port as u16,
                part,
                seq,
                batches,
            });
        }
        Ok(parcels)
    }

    /// Batches of a declared port, checked against its declared schema.
    pub(crate) fn conform(&self, port: &str, schema: &SchemaRef, table: &Table) -> Result<Vec<RecordBatch>> {
        let mut batches = Vec::new();
        for batch in table.batches()? {
            let batch = batch?;
            let conformed = RecordBatch::try_new(schema.clone(), batch.columns().to_vec()).map_err(|error| {
                Error::internal(format!(
                    "{} declared port \"{port}\" otherwise than it filled it: {error}",
                    self.stage.entry.name
                ))
            })?;
            if conformed.num_rows() > 0 {
                batches.push(conformed);
            }
        }
        Ok(batches)
    }
}

/// A panic as an error.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| text.to_string())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_string());
    Error::internal(format!("the operator panicked: {message}"))
}
