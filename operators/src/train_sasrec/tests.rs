//! SASRec as a stage: learns a ring, goes on where it was, refuses what it cannot use.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Float64Type, UInt64Type};
use sluice_engine::operator::{Cancel, Checkpoint as Kept, Progress, Report};
use sluice_engine::{harness, text};

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

fn inputs() -> Tables {
    let ring = testdata::ring();
    let table = |port: &str| ring.table(port).unwrap().clone();
    let inputs = Tables::new().with(TRAIN, table("train")).with(VALID, table("valid"));
    inputs.with(ITEMS, table("semantic_ids"))
}

/// What a training leaves behind: bytes of the model, item ids, curve, embeddings, notes.
type Left = (Vec<u8>, String, RecordBatch, RecordBatch, Notes);

fn train(operator: &TrainSasrec, states: Option<&Path>, cancel_at: u64) -> Result<Left> {
    let (attempt, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
    let mut context = Context::new(TrainSasrec::NAME, 1, Path::new("."), attempt.path(), &cancel);
    context.report = Arc::new(CancelAt(cancel_at, cancel));
    context.checkpoint = states.map(|folder| Kept {
        folder: folder.to_path_buf(),
        every: Duration::from_secs(3600),
    });
    let out = operator.run(&context, inputs())?;
    let folder = out.folder(MODEL)?;
    let model = std::fs::read(folder.join("model.safetensors")).unwrap();
    let items = std::fs::read_to_string(folder.join("items.json")).unwrap();
    Ok((model, items, out.batch(CURVE)?, out.batch(EMBEDDINGS)?, context.noted()))
}

#[test]
fn a_ring_is_learnt_and_its_embeddings_are_put_out() {
    let (_, items, curve, embeddings, _) = train(&testdata::tiny_sasrec(), None, 0).unwrap();
    let ids = schema::strings(&embeddings, ITEM_ID).unwrap();
    let ids: Vec<&str> = ids.iter().flatten().collect();
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11"]);
    assert_eq!(serde_json::from_str::<Vec<String>>(&items).unwrap(), ids);
    let (values, width) = schema::embedding_values(&embeddings).unwrap();
    assert_eq!((values.len(), width), (12 * 16, 16));
    let last = |name: &str| {
        let values = schema::numbers::<Float64Type>(&curve, name).unwrap();
        values.value(curve.num_rows() - 1)
    };
    assert!(last("valid_ndcg_10") > 0.8 && last("valid_recall_5") > 0.9, "{curve:?}");
    // Recall@5 stands in its own column whichever metric decides.
    let operator = TrainSasrec {
        select: Select::Recall5,
        ..testdata::tiny_sasrec()
    };
    let other = train(&operator, None, 0).unwrap().2;
    assert_eq!(other, curve);
}

#[test]
fn a_cancelled_training_goes_on_where_it_was() {
    let states = tempfile::tempdir().unwrap();
    let whole = train(&testdata::tiny_sasrec(), None, 0).unwrap();
    let error = train(&testdata::tiny_sasrec(), Some(states.path()), 13).unwrap_err();
    assert_eq!(error.code, Error::interrupted().code);
    let resumed = train(&testdata::tiny_sasrec(), Some(states.path()), 0).unwrap();
    assert_eq!(resumed.4["resumed_from_step"], 13);
    assert_eq!((resumed.0, resumed.2, resumed.3), (whole.0, whole.2, whole.3));
}

#[test]
fn a_longer_training_goes_on_from_the_end_of_a_shorter_one() {
    let epochs = |n| TrainSasrec {
        max_epochs: Some(n),
        ..testdata::tiny_sasrec()
    };
    let states = tempfile::tempdir().unwrap();
    let short = train(&epochs(2), Some(states.path()), 0).unwrap().2;
    let steps = schema::numbers::<UInt64Type>(&short, "step").unwrap();
    let long = train(&epochs(5), Some(states.path()), 0).unwrap();
    assert_eq!(long.4["resumed_from_step"], steps.value(steps.len() - 1));
    let at_once = train(&epochs(5), None, 0).unwrap();
    assert_eq!((long.0, long.2), (at_once.0, at_once.2));
}

fn refusal(operator: &TrainSasrec, train: &str, items: &str) -> Error {
    let inputs = [
        (TRAIN, text::parse(train).unwrap()),
        (VALID, text::parse("user_id sequence:[str] target\n u a b").unwrap()),
        (ITEMS, text::parse(items).unwrap()),
    ];
    harness::run(operator, &inputs).unwrap_err()
}

#[test]
fn mistakes_are_named() {
    let (train, items) = ("user_id sequence:[str]\n u a,b,a", "item_id\n a\n b");
    let operator = TrainSasrec {
        heads: 5,
        ..testdata::tiny_sasrec()
    };
    let error = refusal(&operator, train, items);
    assert_eq!(error.code, "bad-value");
    assert!(error.message.contains("must divide `d_model`, which is 16"), "{error}");
    let tiny = testdata::tiny_sasrec();
    assert_eq!(refusal(&tiny, train, "item_id\n a").code, "unknown-item");
    assert_eq!(refusal(&tiny, "user_id sequence:[str]\n u a", items).code, "no-samples");
    let operator = TrainSasrec {
        learning_rate: 0.0,
        ..testdata::tiny_sasrec()
    };
    let error = refusal(&operator, train, items);
    assert_eq!(error.message, "invalid `learning_rate`: must be positive");
    let operator = TrainSasrec {
        device: "gpu".into(),
        ..testdata::tiny_sasrec()
    };
    let error = refusal(&operator, train, items);
    assert_eq!(error.message, "no device is called \"gpu\"");
}

#[test]
fn a_training_without_valid_users_says_so() {
    let train = |patience| {
        let (attempt, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
        let context = Context::new(TrainSasrec::NAME, 1, Path::new("."), attempt.path(), &cancel);
        let nobody = inputs().batch(VALID)?.slice(0, 0);
        let operator = TrainSasrec {
            patience,
            max_epochs: Some(1),
            ..testdata::tiny_sasrec()
        };
        operator.run(&context, inputs().with(VALID, Table::new(nobody)))?;
        Ok::<_, Error>(context.noted())
    };
    assert_eq!(train(0).unwrap()["valid_users"], 0);
    assert_eq!(train(3).unwrap_err().code, "no-valid-users");
}

#[test]
fn accumulated_batches_train_too_and_bf16_is_refused() {
    let operator = TrainSasrec {
        batch_size: 3,
        accumulate: 3,
        ..testdata::tiny_sasrec()
    };
    let curve = train(&operator, None, 0).unwrap().2;
    // 24 users give 24 windows: 8 batches, so 3 steps a pass, 20 passes.
    let steps = schema::numbers::<UInt64Type>(&curve, "step").unwrap();
    assert_eq!(steps.value(steps.len() - 1), 60);
    let loss = schema::numbers::<Float64Type>(&curve, "train_loss").unwrap();
    assert!(loss.value(loss.len() - 1) < 0.2, "{curve:?}");
    let operator = TrainSasrec {
        precision: Precision::Bf16,
        ..testdata::tiny_sasrec()
    };
    let (train, items) = ("user_id sequence:[str]\n u a,b,a", "item_id\n a\n b");
    assert_eq!(refusal(&operator, train, items).code, "bad-value");
}
