//! Embeddings agree with published ones, and are the same bits whether they are computed or taken from earlier results.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, AsArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::Float32Type;
use sluice_engine::harness::Harness;
use sluice_engine::operator::{Cancel, Earlier, Notes, OUT};
use sluice_engine::table::Table;
use sluice_engine::text;

use super::*;
use crate::testdata;

#[test]
fn minilm_agrees_with_its_published_vector() {
    let Some(data) = crate::testdata::folder() else { return };
    let harness = Harness {
        data_root: data,
        ..Default::default()
    };
    let items =
        text::parse("item_id | text\n 1 | This is an example sentence\n 2 | Each sentence is converted").unwrap();
    let operator = EmbedText {
        model: "all-MiniLM-L6-v2-f16".into(),
        device: "cpu".into(),
        ..Default::default()
    };
    let out = harness
        .run(&operator, &[("input", Table::new(items))])
        .unwrap()
        .batch(OUT)
        .unwrap();
    let (values, width) = schema::embedding_values(&out).unwrap();
    assert_eq!(width, 384);
    for (got, want) in values.iter().zip([0.0677, 0.0635, 0.0487, 0.0793, 0.0374]) {
        assert!((got - want).abs() < 1e-3, "{got} {want}");
    }
}

#[test]
fn a_missing_checkpoint_is_named() {
    let items = text::parse("item_id | text\n 1 | x").unwrap();
    let operator = EmbedText {
        model: "nowhere/model".into(),
        ..Default::default()
    };
    let error = sluice_engine::harness::run(&operator, &[("input", items)]).unwrap_err();
    assert_eq!(error.code, "no-checkpoint");
}

/// Texts through the tokenizers and encoders of tiny checkpoints, against transformers
/// (`gpu/tests/reference/encoders_reference.py`).
#[test]
fn texts_through_t5_and_decoders_agree_with_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../gpu/tests/golden/encoders");
    let golden = std::fs::read_to_string(folder.join("encoders.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).unwrap();
    let ids: Vec<String> = (0..texts.len()).map(|id| id.to_string()).collect();
    let columns: [(&str, ArrayRef); 2] = [
        (ITEM_ID, Arc::new(StringArray::from(ids))),
        (TEXT, Arc::new(StringArray::from(texts))),
    ];
    let items = RecordBatch::try_from_iter(columns).unwrap();
    let harness = Harness {
        data_root: folder,
        ..Default::default()
    };
    for (model, case) in golden["cases"].as_object().unwrap() {
        let own = if model.starts_with("t5") { "mean" } else { "last" };
        for (pooling, key) in [
            (Pooling::Auto, own),
            (Pooling::Mean, "mean"),
            (Pooling::LastToken, "last"),
        ] {
            let operator = EmbedText {
                model: model.clone(),
                pooling,
                normalize: false,
                max_length: golden["max_length"].as_u64().unwrap() as u32,
                device: "cpu".into(),
            };
            let out = harness.run(&operator, &[("input", Table::new(items.clone()))]).unwrap();
            let out = out.batch(OUT).unwrap();
            let (values, _) = schema::embedding_values(&out).unwrap();
            let want: Vec<Vec<f32>> = serde_json::from_value(case[key].clone()).unwrap();
            assert_eq!(values.len(), want.concat().len());
            for (got, want) in values.iter().zip(want.concat()) {
                assert!(
                    (got - want).abs() < 1e-4,
                    "{model}, {pooling:?}: {got}, expected {want}"
                );
            }
        }
    }
}

#[test]
fn what_a_checkpoint_lacks_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let encoder = folder.path().join("encoder");
    testdata::tiny_encoder(&encoder);
    let run = || {
        let operator = EmbedText {
            model: "encoder".into(),
            max_length: 16,
            device: "cpu".into(),
            ..Default::default()
        };
        let harness = Harness {
            data_root: folder.path().to_path_buf(),
            ..Default::default()
        };
        harness.run(&operator, &[("input", Table::new(catalogue("1 | hat")))])
    };
    assert!(run().is_ok());
    std::fs::create_dir(encoder.join("1_Pooling")).unwrap();
    std::fs::write(encoder.join(POOLING_FILE), r#"{"pooling_mode": "max"}"#).unwrap();
    let error = run().unwrap_err();
    assert!(error.message.contains("pooling_mode is [\"max\"]"), "{}", error.message);
    std::fs::remove_file(encoder.join(POOLING_FILE)).unwrap();
    std::fs::remove_file(encoder.join("tokenizer.json")).unwrap();
    let error = run().unwrap_err();
    assert_eq!(error.code, "bad-checkpoint");
    assert!(error.message.ends_with("has no tokenizer.json"), "{}", error.message);
    std::fs::write(encoder.join("config.json"), r#"{"model_type": "gemma"}"#).unwrap();
    testdata::tiny_encoder(&folder.path().join("other"));
    std::fs::copy(
        folder.path().join("other/tokenizer.json"),
        encoder.join("tokenizer.json"),
    )
    .unwrap();
    let error = run().unwrap_err();
    assert!(
        error.message.contains("supported: \"bert\", \"t5\""),
        "{}",
        error.message
    );
}

/// Results made up by a test; counts how many were opened.
#[derive(Default)]
struct Made {
    results: Vec<(Tables, Tables)>,
    opened: AtomicUsize,
}

impl Earlier for Made {
    fn results(&self) -> Box<dyn Iterator<Item = (Tables, Tables)> + '_> {
        Box::new(self.results.iter().cloned().inspect(|_| {
            self.opened.fetch_add(1, Ordering::Relaxed);
        }))
    }
}

/// Embeds a catalogue with the tiny encoder: the bits of the embeddings, what the notes say, and the output.
struct Embedded {
    bits: Vec<u32>,
    notes: Notes,
    result: (Tables, Tables),
}

fn embed(folder: &Path, items: &RecordBatch, earlier: &Arc<Made>) -> Embedded {
    let operator = EmbedText {
        model: "encoder".into(),
        device: "cpu".into(),
        ..EmbedText::default()
    };
    let mut context = Context::new(EmbedText::NAME, 1, folder, folder, &Cancel::default());
    context.earlier = earlier.clone();
    let inputs = Tables::new().with(INPUT, Table::new(items.clone()));
    let out = operator.run(&context, inputs.clone()).unwrap();
    let batch = out.batch(OUT).unwrap();
    assert_eq!(
        schema::strings(&batch, ITEM_ID).unwrap(),
        schema::strings(items, ITEM_ID).unwrap()
    );
    Embedded {
        bits: schema::embedding_values(&batch)
            .unwrap()
            .0
            .iter()
            .map(|value| value.to_bits())
            .collect(),
        notes: context.noted(),
        result: (inputs, out),
    }
}

fn made(results: Vec<(Tables, Tables)>) -> Arc<Made> {
    Arc::new(Made {
        results,
        ..Made::default()
    })
}

fn notes(embedded: u64, reused: u64, repeated: u64) -> Notes {
    let notes = serde_json::json!({"embedded": embedded, "reused": reused, "repeated": repeated});
    let mut notes = notes.as_object().unwrap().clone();
    if embedded > 0 {
        // Where nothing is embedded no device is opened.
        notes.insert("device".into(), "cpu".into());
    }
    notes
}

fn catalogue(rows: &str) -> RecordBatch {
    text::parse(&format!("item_id | text\n{rows}")).unwrap()
}

const OLD: &str = "1 | red shirt of wool\n 2 | the old hat\n 3 | shoe";
const NEW: &str =
    "9 | a big green shoe of leather\n 3 | the old hat\n 4 | red shirt of wool\n 5 | shoe\n 6 | shoe\n 7 | new";

#[test]
fn reused_rows_are_bit_for_bit_those_of_the_encoder() {
    let folder = tempfile::tempdir().unwrap();
    testdata::tiny_encoder(&folder.path().join("encoder"));
    let anew = embed(folder.path(), &catalogue(NEW), &made(vec![]));
    assert_eq!(anew.notes, notes(5, 0, 1));
    assert_eq!(anew.bits[3 * 8..4 * 8], anew.bits[4 * 8..5 * 8]);
    assert_ne!(anew.bits[..8], anew.bits[8..16]);

    let old = embed(folder.path(), &catalogue(OLD), &made(vec![])).result;
    let reused = embed(folder.path(), &catalogue(NEW), &made(vec![old.clone()]));
    assert_eq!(reused.notes, notes(2, 3, 1));
    assert_eq!(reused.bits, anew.bits);

    // Two results add up; once nothing is missing no further one is opened, and no encoder is needed.
    let other = embed(
        folder.path(),
        &catalogue("1 | new\n 2 | a big green shoe of leather"),
        &made(vec![]),
    )
    .result;
    let earlier = made(vec![old.clone(), other, old]);
    std::fs::remove_file(folder.path().join("encoder/model.safetensors")).unwrap();
    let reused = embed(folder.path(), &catalogue(NEW), &earlier);
    assert_eq!(reused.notes, notes(0, 5, 1));
    assert_eq!(reused.bits, anew.bits);
    assert_eq!(earlier.opened.load(Ordering::Relaxed), 2);
}

#[test]
fn at_most_eight_results_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    testdata::tiny_encoder(&folder.path().join("encoder"));
    let old = embed(folder.path(), &catalogue("1 | hat"), &made(vec![])).result;
    let earlier = made(vec![old; 20]);
    assert_eq!(embed(folder.path(), &catalogue(NEW), &earlier).notes, notes(5, 0, 1));
    assert_eq!(earlier.opened.load(Ordering::Relaxed), 8);
}

#[test]
fn a_result_that_does_not_fit_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    testdata::tiny_encoder(&folder.path().join("encoder"));
    let anew = embed(folder.path(), &catalogue(NEW), &made(vec![]));
    let (inputs, outputs) = embed(folder.path(), &catalogue(OLD), &made(vec![])).result;
    let batch = outputs.batch(OUT).unwrap();
    let with = |items: &[&str], values: Vec<f32>, width: usize| {
        Tables::out(embeddings(&StringArray::from(items.to_vec()), values, width).unwrap())
    };
    let not_finite = with(&["1", "2", "3"], vec![f32::NAN; 24], 8);
    let gone = Table::Parts(batch.schema(), vec![folder.path().join("gone.parquet")]);
    let doubled: ArrayRef = Arc::new(Float32Array::from(vec![1.0, 2.0, 3.0]));
    let unfit = [
        Tables::new(),
        Tables::out(batch.slice(0, 2)),
        Tables::out(batch.slice(1, 2)),
        with(&["1", "2", "3", "4"], vec![1.0; 32], 8),
        with(&["1", "3", "2"], vec![1.0; 24], 8),
        with(&["1", "2", "3"], vec![1.0; 12], 4),
        not_finite,
        Tables::out(RecordBatch::try_from_iter([("embedding", doubled)]).unwrap()),
        Tables::new().with(OUT, gone),
        Tables::new().with(OUT, Table::Folder(folder.path().to_path_buf())),
    ];
    for (at, bad) in unfit.into_iter().enumerate() {
        let found = embed(folder.path(), &catalogue(NEW), &made(vec![(inputs.clone(), bad)]));
        assert_eq!(
            (&found.notes, &found.bits),
            (&notes(5, 0, 1), &anew.bits),
            "unfit result {at}"
        );
    }
    let found = embed(
        folder.path(),
        &catalogue(NEW),
        &made(vec![(Tables::new(), outputs.clone()), (inputs, outputs)]),
    );
    assert_eq!((found.notes, found.bits), (notes(2, 3, 1), anew.bits));
    assert!(
        batch
            .column(1)
            .as_fixed_size_list()
            .values()
            .as_primitive_opt::<Float32Type>()
            .is_some()
    );
}
