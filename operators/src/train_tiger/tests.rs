//! A training as a stage: interrupted, made longer, robbed of its state.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use sluice_engine::operator::{Cancel, Checkpoint as Kept, Progress, Report};

use super::*;
use crate::generate_tiger::{GenerateTiger, Search};
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
    assert!(!whole.2.contains_key("resumed_from_step"), "{:?}", whole.2);
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

/// Trains and generates on the ring, maybe with vectors.
fn recommend(trained_with: Option<&Table>, used_with: Option<&Table>, generate: &GenerateTiger) -> Result<RecordBatch> {
    let (attempt, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
    let context = Context::new(TrainTiger::NAME, 1, Path::new("."), attempt.path(), &cancel);
    let ring = testdata::ring();
    let with = |tables: Tables, vectors: Option<&Table>| match vectors {
        Some(vectors) => tables.with(VECTORS, vectors.clone()),
        None => tables,
    };
    let inputs = Tables::new()
        .with(SEQUENCES, ring.table("samples")?.clone())
        .with(VALID, ring.table("valid")?.clone())
        .with(SEMANTIC_IDS, ring.table("semantic_ids")?.clone());
    let operator = TrainTiger {
        output_heads: OutputHeads::Plain,
        ..epochs(1)
    };
    let trained = operator.run(&context, with(inputs, trained_with))?;
    let inputs = Tables::new()
        .with("model", trained.table(MODEL)?.clone())
        .with("histories", ring.table("test")?.clone())
        .with(SEMANTIC_IDS, ring.table("semantic_ids")?.clone());
    generate.run(&context, with(inputs, used_with))?.batch("out")
}

/// Embeddings of the ring's items: the first `n` of them.
fn vectors(n: usize, scale: f32) -> Table {
    let ids = testdata::ring().batch("semantic_ids").unwrap();
    let items = schema::strings(&ids, ITEM_ID).unwrap().slice(0, n);
    let values = (0..3 * n).map(|i| scale + (i * i % 7) as f32).collect();
    Table::new(crate::embed_tfidf_svd::embeddings(&items, values, 3).unwrap())
}

#[test]
fn injected_vectors_are_learned_from_and_asked_for() {
    let items = testdata::ring().table("semantic_ids").unwrap().rows().unwrap() as usize;
    let (all, few) = (vectors(items, 0.0), vectors(items - 1, 0.0));
    let beam = GenerateTiger::default();
    let without = recommend(None, None, &beam).unwrap();
    let with = recommend(Some(&all), Some(&all), &beam).unwrap();
    assert_ne!(without, with);
    // The vectors of generation matter too.
    assert_ne!(recommend(Some(&all), Some(&vectors(items, 3.0)), &beam).unwrap(), with);
    let code = |trained, used| recommend(trained, used, &beam).unwrap_err().code;
    assert_eq!(code(Some(&all), None), "other-vectors");
    assert_eq!(code(None, Some(&all)), "other-vectors");
    let error = recommend(Some(&few), None, &beam).unwrap_err();
    assert_eq!(error.code, "no-vector");
    assert!(
        error.to_string().contains(&format!("1 of {items} items have none")),
        "{error}"
    );
}

#[test]
fn exact_search_is_a_beam_as_wide_as_the_catalogue() {
    let generate = |search, beam_width| {
        let k = Some(4);
        recommend(
            None,
            None,
            &GenerateTiger {
                search,
                beam_width,
                k,
                ..GenerateTiger::default()
            },
        )
        .unwrap()
    };
    let exact = generate(Search::Exact, 1);
    assert_eq!(exact, generate(Search::Beam, 1000));
    assert_ne!(exact, generate(Search::Beam, 1));
}

#[test]
fn accumulated_batches_go_on_too() {
    let operator = TrainTiger {
        batch_size: 8,
        accumulate: 4,
        ..epochs(3)
    };
    let states = tempfile::tempdir().unwrap();
    let whole = train(&operator, None, 0).unwrap();
    // As many steps as with batches of 32, but not the same: dropout is drawn batch by batch.
    let steps = |curve: &RecordBatch| {
        schema::numbers::<arrow::datatypes::UInt64Type>(curve, "step")
            .unwrap()
            .clone()
    };
    let plain = train(&epochs(3), None, 0).unwrap();
    assert_eq!(steps(&whole.1), steps(&plain.1));
    assert_ne!(whole.0, plain.0);
    train(&operator, Some(states.path()), 7).unwrap_err();
    let resumed = train(&operator, Some(states.path()), 0).unwrap();
    assert_eq!(resumed.2["resumed_from_step"], 7);
    assert_eq!((resumed.0, resumed.1), (whole.0, whole.1));
}

#[test]
fn a_training_without_valid_users_says_so() {
    let train = |patience| {
        let (attempt, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
        let context = Context::new(TrainTiger::NAME, 1, Path::new("."), attempt.path(), &cancel);
        let ring = testdata::ring();
        let inputs = Tables::new()
            .with(SEQUENCES, ring.table("samples")?.clone())
            .with(VALID, Table::new(ring.batch("valid")?.slice(0, 0)))
            .with(SEMANTIC_IDS, ring.table("semantic_ids")?.clone());
        let operator = TrainTiger { patience, ..epochs(1) };
        operator.run(&context, inputs)?;
        Ok::<_, Error>(context.noted())
    };
    assert_eq!(train(0).unwrap()["valid_users"], 0);
    assert_eq!(train(3).unwrap_err().code, "no-valid-users");
}

#[test]
fn bf16_on_the_cpu_is_refused_before_and_while_it_runs() {
    let operator = TrainTiger {
        precision: Precision::Bf16,
        ..epochs(1)
    };
    let error = train(&operator, None, 0).unwrap_err();
    assert_eq!(error.code, "bad-value");
    assert!(
        error.message.starts_with("invalid `precision`: bf16 is for GPUs"),
        "{error}"
    );
    let ring = testdata::ring();
    let inputs = [
        (SEQUENCES, ring.table("samples").unwrap().clone()),
        (VALID, ring.table("valid").unwrap().clone()),
        (SEMANTIC_IDS, ring.table("semantic_ids").unwrap().clone()),
    ];
    let error = sluice_engine::harness::Harness::default()
        .run(&operator, &inputs)
        .unwrap_err();
    assert_eq!(
        error.hint.as_deref(),
        Some("set precision to f32, or device to cuda"),
        "{error}"
    );
}
