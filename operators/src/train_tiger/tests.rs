//! A training as a stage: interrupted, made longer, robbed of its state.

use std::path::Path;
use std::time::Duration;

use sluice_engine::operator::{Cancel, Checkpoint as Kept, Progress, Report};

use super::*;
use crate::testdata;

/// Cancels the run at a step.
struct CancelAt(u64, Cancel);

impl Report for CancelAt {
    fn progress(&self, progress: Progress) {
        if progress.done == self.0 {
            self.1.cancel();
        }
    }
}

/// Trains in a folder of its own; says the bytes of the model, the curve and the notes.
fn train(operator: &TrainTiger, states: Option<&Path>, cancel_at: u64) -> Result<(Vec<u8>, RecordBatch, Notes)> {
    let (attempt, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
    let mut context = Context::new(TrainTiger::NAME, 1, Path::new("."), attempt.path(), &cancel);
    context.report = Arc::new(CancelAt(cancel_at, cancel));
    context.checkpoint = states.map(|folder| Kept {
        folder: folder.to_path_buf(),
        every: Duration::from_secs(3600),
    });
    let ring = testdata::ring();
    let inputs = Tables::new()
        .with(SEQUENCES, ring.table("samples")?.clone())
        .with(VALID, ring.table("valid")?.clone())
        .with(SEMANTIC_IDS, ring.table("semantic_ids")?.clone());
    let out = operator.run(&context, inputs)?;
    let model = std::fs::read(out.folder(MODEL)?.join("model.safetensors")).unwrap();
    Ok((model, out.batch(CURVE)?, context.noted()))
}

fn epochs(n: u32) -> TrainTiger {
    TrainTiger {
        max_epochs: Some(n),
        ..testdata::tiny_tiger()
    }
}

#[test]
fn a_cancelled_training_goes_on_where_it_was() {
    let states = tempfile::tempdir().unwrap();
    let whole = train(&epochs(3), None, 0).unwrap();
    assert_eq!(whole.2, Notes::new());
    let error = train(&epochs(3), Some(states.path()), 13).unwrap_err();
    assert_eq!(error.code, Error::interrupted().code);
    let resumed = train(&epochs(3), Some(states.path()), 0).unwrap();
    assert_eq!(resumed.2["resumed_from_step"], 13);
    assert_eq!((resumed.0, resumed.1), (whole.0, whole.1));
}

#[test]
fn a_longer_training_goes_on_from_the_end_of_a_shorter_one() {
    let states = tempfile::tempdir().unwrap();
    let short = train(&epochs(2), Some(states.path()), 0).unwrap();
    let steps = schema::numbers::<arrow::datatypes::UInt64Type>(&short.1, "step")
        .unwrap()
        .clone();
    let long = train(&epochs(5), Some(states.path()), 0).unwrap();
    assert_eq!(long.2["resumed_from_step"], steps.value(steps.len() - 1));
    let at_once = train(&epochs(5), None, 0).unwrap();
    assert_eq!((long.0, long.1), (at_once.0, at_once.1));
}

#[test]
fn a_damaged_state_is_noted() {
    let states = tempfile::tempdir().unwrap();
    let whole = train(&epochs(2), Some(states.path()), 0).unwrap();
    let file = std::fs::read_dir(states.path())
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let anew = train(&epochs(2), Some(states.path()), 0).unwrap();
    assert!(
        anew.2["states_passed_over"][0].as_str().unwrap().contains("damaged"),
        "{:?}",
        anew.2
    );
    assert_eq!((anew.0, anew.1), (whole.0, whole.1));
}

#[test]
fn the_extent_is_extendable_unless_the_schedule_needs_the_end() {
    for (schedule, wanted) in [
        (Schedule::Constant, true),
        (Schedule::InverseSqrt, true),
        (Schedule::Cosine, false),
    ] {
        let operator = TrainTiger { schedule, ..epochs(1) };
        assert_eq!(operator.extendable(), wanted);
    }
    let entry = crate::registry().get("train_tiger").unwrap().clone();
    let extent: Vec<&str> = entry
        .fields
        .iter()
        .filter(|f| f.extent)
        .map(|f| f.name.as_str())
        .collect();
    assert_eq!(extent, ["max_steps", "max_epochs"]);
}
