//! Where tests find real data: `SLUICE_DATA`, else `../shared/data` beside the repository. And an encoder made by formula.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{FixedSizeListArray, RecordBatch, StringArray, UInt16Array};
use arrow::datatypes::{DataType, Field, Schema};
use sluice_engine::harness::Harness;
use sluice_engine::operator::{Cancel, Context, OUT, Operator};
use sluice_engine::table::{Table, Tables};
use sluice_engine::text;

use crate::schema;
use crate::split_leave_one_out::SplitLeaveOneOut;
use crate::tokenize_sequences::TokenizeSequences;
use crate::train_sasrec::TrainSasrec;
use crate::train_tiger::TrainTiger;

/// The data folder, or `None` with a printed reason: then the test has nothing to test.
#[allow(clippy::print_stderr)]
pub fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = PathBuf::from(std::env::var("SLUICE_DATA").unwrap_or_else(|_| beside.to_string()));
    if folder.join("README.md").is_file() {
        return Some(folder);
    }
    eprintln!("skipped: no data at \"{}\"; set SLUICE_DATA", folder.display());
    None
}

/// A harness whose data root is the data folder.
pub fn harness() -> Option<sluice_engine::harness::Harness> {
    Some(sluice_engine::harness::Harness {
        data_root: folder()?,
        ..Default::default()
    })
}

/// A context for calls that the harness does not make.
pub fn context(harness: &sluice_engine::harness::Harness, operator: &'static str) -> Context {
    Context::new(
        operator,
        harness.seed,
        &harness.data_root,
        &harness.attempt,
        &Cancel::default(),
    )
}

/// A shop of twelve items in a ring, and users who walk along it: every table that a recommender is made of, by name.
pub fn ring() -> Tables {
    const ITEMS: usize = 12;
    let mut interactions = String::from("user_id item_id timestamp:ts position:u64 rating:f32");
    let mut position = 0;
    for user in 0..24 {
        for step in 0..5 + user % 4 {
            let (item, rating) = ((user * 5 + step) % ITEMS, 1 + (user + step) % 5);
            interactions.push_str(&format!("\nu{user} {item} {} {position} {rating}", 1000 * step));
            position += 1;
        }
    }
    let interactions = Table::new(text::parse(&interactions).unwrap());
    let codes: Vec<u16> = (0..ITEMS as u16).flat_map(|item| [item / 4, item % 4]).collect();
    let field = Arc::new(Field::new_list_field(DataType::UInt16, false));
    let ids = FixedSizeListArray::new(field, 2, Arc::new(UInt16Array::from(codes)), None);
    let items = StringArray::from_iter_values((0..ITEMS).map(|item| item.to_string()));
    let schema = Arc::new(Schema::new(schema::semantic_ids(&[3, 4], false)));
    let ids = Table::new(RecordBatch::try_new(schema, vec![Arc::new(items), Arc::new(ids)]).unwrap());
    let harness = Harness::default();
    let inputs = [("interactions", interactions.clone())];
    let split = harness.run(&SplitLeaveOneOut::default(), &inputs).unwrap();
    let inputs = [
        ("train", split.table("train").unwrap().clone()),
        ("semantic_ids", ids.clone()),
    ];
    let samples = harness.run(&TokenizeSequences::default(), &inputs).unwrap();
    split
        .with("interactions", interactions)
        .with("semantic_ids", ids)
        .with("samples", samples.table(OUT).unwrap().clone())
}

/// A recommender that is trained in the blink of an eye.
pub fn tiny_tiger() -> TrainTiger {
    TrainTiger {
        layers: 1,
        d_model: 16,
        heads: 2,
        d_kv: 8,
        d_ff: 32,
        learning_rate: 1e-2,
        batch_size: 32,
        max_epochs: Some(2),
        eval_every: 10,
        patience: 0,
        device: "cpu".into(),
        ..TrainTiger::default()
    }
}

/// Another one.
pub fn tiny_sasrec() -> TrainSasrec {
    TrainSasrec {
        layers: 1,
        d_model: 16,
        heads: 2,
        dropout: 0.1,
        learning_rate: 1e-2,
        batch_size: 8,
        max_epochs: Some(20),
        eval_every: 10,
        patience: 0,
        device: "cpu".into(),
        ..TrainSasrec::default()
    }
}

/// Writes a BERT checkpoint of one layer and width 8 that knows a handful of words, with weights by formula.
pub fn tiny_encoder(folder: &Path) {
    let words = "[PAD] [UNK] [CLS] [SEP] red green blue shirt shoe hat of wool leather old new the a big small";
    let vocab: serde_json::Map<String, serde_json::Value> = words
        .split(' ')
        .enumerate()
        .map(|(id, word)| (word.to_string(), id.into()))
        .collect();
    let (d, inner, positions) = (8, 12, 16);
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": vocab.len(), "hidden_size": d, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": inner, "max_position_embeddings": positions,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
    });
    let special = |token: &str| serde_json::json!({"SpecialToken": {"id": token, "type_id": 0}});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "decoder": null,
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, special("[SEP]")],
            "pair": [special("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![vocab.len(), d]),
        ("embeddings.position_embeddings.weight".into(), vec![positions, d]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, d]),
    ];
    let layer = "encoder.layer.0";
    for (name, to, from) in [
        ("attention.self.query", d, d),
        ("attention.self.key", d, d),
        ("attention.self.value", d, d),
        ("attention.output.dense", d, d),
        ("intermediate.dense", inner, d),
        ("output.dense", d, inner),
    ] {
        shapes.push((format!("{layer}.{name}.weight"), vec![to, from]));
        shapes.push((format!("{layer}.{name}.bias"), vec![to]));
    }
    for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
        shapes.push((format!("{layer}.{name}.weight"), vec![d]));
        shapes.push((format!("{layer}.{name}.bias"), vec![d]));
    }
    shapes.push(("embeddings.LayerNorm.weight".into(), vec![d]));
    shapes.push(("embeddings.LayerNorm.bias".into(), vec![d]));
    let (mut header, mut bytes) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in shapes {
        let start = bytes.len();
        let mut numbers = sluice_engine::random::Random::new(1, "encoder", &name).row(0);
        for _ in 0..shape.iter().product() {
            bytes.extend((numbers.normal() as f32).to_le_bytes());
        }
        let about = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, bytes.len()]});
        header.insert(name, about);
    }
    let header = serde_json::Value::Object(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes].concat();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}

/// What an operator put out, with the temporary folder that its folder outputs lie in.
pub struct Ran {
    tables: Tables,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Ran {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.tables
    }
}

/// Runs an operator that puts out folders.
pub fn run<O: Operator>(operator: &O, inputs: &[(&str, RecordBatch)]) -> sluice_engine::Result<Ran> {
    let folder = tempfile::tempdir().unwrap();
    let harness = Harness {
        attempt: folder.path().into(),
        ..Harness::default()
    };
    let inputs: Vec<(&str, Table)> = inputs
        .iter()
        .map(|(port, rows)| (*port, Table::new(rows.clone())))
        .collect();
    let tables = harness.run(operator, &inputs)?;
    Ok(Ran {
        tables,
        _folder: folder,
    })
}
