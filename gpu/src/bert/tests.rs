//! Tests of the BERT encoder: transformers' numbers, the padded twin, independence of batch and threads, errors.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};

use super::weights::expected_shapes;
use super::*;

/// Tensors by name, as shape and values.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../tests/golden/bert.json")).expect("golden file")
}

/// Entry i of tensor n: 0.4 sin(0.37 i + n), or 1 + 0.1 sin(...) for the scales of layer norm.
fn tensors(config: &BertConfig) -> Tensors {
    let shapes: BTreeMap<String, Vec<usize>> = expected_shapes(config).into_iter().collect();
    let fill = |(n, (name, shape)): (usize, (String, Vec<usize>))| {
        let wave = (0..shape.iter().product()).map(|i: usize| (0.37 * i as f64 + n as f64).sin());
        let scale = name.ends_with("LayerNorm.weight");
        let values = wave
            .map(|x| if scale { 1.0 + 0.1 * x } else { 0.4 * x } as f32)
            .collect();
        (name, (shape, values))
    };
    shapes.into_iter().enumerate().map(fill).collect()
}

fn write(path: &Path, tensors: &Tensors, prefix: &str, kind: Dtype) {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = match kind {
                Dtype::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                Dtype::BF16 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
                Dtype::F64 => values.iter().flat_map(|x| (*x as f64).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            };
            (format!("{prefix}{name}"), shape.clone(), bytes)
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(n, s, b)| (n.as_str(), TensorView::new(kind, s.clone(), b).expect("a view")));
    serialize_to_file(views, None, path).expect("a written file");
}

fn config(activation: &str) -> serde_json::Value {
    let mut config = golden()["config"].clone();
    config["hidden_act"] = activation.into();
    config["model_type"] = "bert".into();
    config
}

fn folder(config: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("a written file");
    folder
}

/// A folder with a checkpoint made by formula.
fn checkpoint(activation: &str, prefix: &str, kind: Dtype) -> tempfile::TempDir {
    let folder = folder(&config(activation));
    let config = BertConfig::load(folder.path()).expect("a configuration");
    write(
        &folder.path().join("model.safetensors"),
        &tensors(&config),
        prefix,
        kind,
    );
    folder
}

fn packed(sequences: &[Vec<u32>]) -> (Vec<u32>, Vec<usize>) {
    let mut offsets = vec![0];
    sequences
        .iter()
        .for_each(|s| offsets.push(offsets[offsets.len() - 1] + s.len()));
    (sequences.concat(), offsets)
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len());
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance, "entry {at}: {got}, expected {want}");
    }
}

/// Sequences of the lengths given, with ids that differ.
fn sequences(lengths: &[usize]) -> Vec<Vec<u32>> {
    lengths
        .iter()
        .enumerate()
        .map(|(s, n)| (0..*n).map(|t| ((7 * s + 3 * t + 2) % 50) as u32).collect())
        .collect()
}

#[test]
fn agrees_with_transformers_packed_and_padded() {
    let golden = golden();
    let sequences: Vec<Vec<u32>> = serde_json::from_value(golden["sequences"].clone()).expect("sequences");
    let (ids_t, offsets) = packed(&sequences);
    for case in golden["cases"].as_array().expect("cases") {
        let folder = checkpoint(case["hidden_act"].as_str().expect("a name"), "", Dtype::F32);
        let want: Vec<Vec<f32>> = serde_json::from_value(case["hidden"].clone()).expect("hidden");
        let fast = BertEncoder::load(folder.path()).expect("an encoder");
        assert_close(&fast.forward(&ids_t, &offsets).expect("states"), &want.concat(), 5e-6);
        let slow = PaddedBert::load(folder.path(), &Device::Cpu).expect("an encoder");
        assert_close(&slow.forward(&ids_t, &offsets).expect("states"), &want.concat(), 5e-6);
    }
}

#[test]
fn a_sequence_gives_the_same_bits_in_any_batch_and_with_any_number_of_threads() {
    let folder = checkpoint("gelu", "", Dtype::F32);
    let encoder = BertEncoder::load(folder.path()).expect("an encoder");
    let sequences = sequences(&[1, 7, 13, 16, 2, 5, 11, 16, 3, 9, 14, 16, 1, 8, 15, 12, 6]);
    let (ids_t, offsets) = packed(&sequences);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| encoder.forward(&ids_t, &offsets).expect("states"))
    };
    let all = run(1);
    assert_eq!(all, run(2));
    assert_eq!(all, run(5));
    for (sequence, span) in sequences.iter().zip(offsets.windows(2)) {
        let alone = encoder.forward(sequence, &[0, sequence.len()]).expect("states");
        assert_eq!(alone, all[span[0] * 12..span[1] * 12]);
    }
    let slow = PaddedBert::load(folder.path(), &Device::Cpu).expect("an encoder");
    assert_close(&all, &slow.forward(&ids_t, &offsets).expect("states"), 5e-6);
}

#[test]
fn reads_f16_bf16_prefixed_old_names_and_shards() {
    let (ids_t, offsets) = packed(&sequences(&[5, 9]));
    let states = |folder: &Path| {
        BertEncoder::load(folder)
            .expect("an encoder")
            .forward(&ids_t, &offsets)
            .expect("states")
    };
    let exact = states(checkpoint("gelu", "", Dtype::F32).path());
    assert_eq!(states(checkpoint("gelu", "bert.", Dtype::F32).path()), exact);
    assert_close(&states(checkpoint("gelu", "", Dtype::F16).path()), &exact, 0.02);
    assert_close(&states(checkpoint("gelu", "bert.", Dtype::BF16).path()), &exact, 0.15);

    let folder = folder(&config("gelu"));
    let mut first = tensors(&BertConfig::load(folder.path()).expect("a configuration"));
    first = first
        .into_iter()
        .map(|(n, t)| (n.replace("LayerNorm.weight", "LayerNorm.gamma"), t))
        .collect();
    first = first
        .into_iter()
        .map(|(n, t)| (n.replace("LayerNorm.bias", "LayerNorm.beta"), t))
        .collect();
    let second = first.split_off("encoder.layer.1");
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-1.safetensors", &first), ("model-2.safetensors", &second)] {
        write(&folder.path().join(file), part, "", Dtype::F32);
        part.keys().for_each(|name| drop(map.insert(name.clone(), file.into())));
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).expect("a written file");
    assert_eq!(states(folder.path()), exact);
}

#[test]
fn mistakes_are_named() {
    let unsupported = |key: &str, value: serde_json::Value| {
        let mut config = config("gelu");
        config[key] = value;
        BertConfig::load(folder(&config).path())
            .expect_err("an error")
            .to_string()
    };
    let message = unsupported("hidden_act", "selu".into());
    assert!(
        message.contains("hidden_act is \"selu\", supported: \"gelu\", \"gelu_new\""),
        "{message}"
    );
    assert!(unsupported("model_type", "roberta".into()).ends_with("model_type is \"roberta\", supported: \"bert\""));
    assert!(unsupported("position_embedding_type", "relative_key".into()).contains("\"absolute\""));
    assert!(unsupported("num_attention_heads", 5.into()).ends_with("supported: a divisor of hidden_size"));
    assert!(unsupported("hidden_size", "x".into()).contains("config.json"));

    let say = |folder: &Path| BertEncoder::load(folder).err().expect("an error").to_string();
    let folder = folder(&config("gelu"));
    assert!(say(folder.path()).contains("model.safetensors"));
    let path = folder.path().join("model.safetensors");
    let full = tensors(&BertConfig::load(folder.path()).expect("a configuration"));
    let mut some = full.clone();
    some.remove("encoder.layer.1.output.dense.bias");
    some.remove("embeddings.LayerNorm.bias");
    write(&path, &some, "", Dtype::F32);
    let missing = "2 missing of 37 tensors: embeddings.LayerNorm.bias, encoder.layer.1.output.dense.bias";
    assert!(say(folder.path()).ends_with(missing), "{}", say(folder.path()));
    let mut more = full.clone();
    more.insert("encoder.layer.2.output.dense.bias".into(), (vec![12], vec![0.0; 12]));
    more.insert("pooler.dense.bias".into(), (vec![12], vec![0.0; 12]));
    write(&path, &more, "", Dtype::F32);
    let extra = "1 beyond the 37 tensors that config.json implies: encoder.layer.2.output.dense.bias";
    assert!(say(folder.path()).ends_with(extra), "{}", say(folder.path()));
    let mut wrong = full.clone();
    wrong.insert("embeddings.LayerNorm.bias".into(), (vec![3], vec![0.0; 3]));
    write(&path, &wrong, "", Dtype::F32);
    let shape = "tensor embeddings.LayerNorm.bias has shape [3], the configuration implies [12]";
    assert!(say(folder.path()).ends_with(shape), "{}", say(folder.path()));
    write(&path, &full, "", Dtype::F64);
    assert!(say(folder.path()).ends_with("has element type F64, supported: F16, BF16, F32"));
    std::fs::write(&path, b"not safetensors").expect("a written file");
    assert!(say(folder.path()).contains("model.safetensors: "));

    let folder = checkpoint("gelu", "", Dtype::F32);
    let encoder = BertEncoder::load(folder.path()).expect("an encoder");
    let say = |ids: &[u32], offsets: &[usize]| encoder.forward(ids, offsets).expect_err("an error").to_string();
    assert_eq!(
        say(&[1, 2, 50], &[0, 1, 3]),
        "sequence 1, token 1: id 50 is outside the vocabulary of 50"
    );
    assert_eq!(say(&[1], &[0, 1, 1]), "sequence 1 has no token");
    assert_eq!(
        say(&[1; 17], &[0, 17]),
        "sequence 0 has 17 tokens, the model has 16 positions"
    );
    assert_eq!(
        say(&[1; 3], &[0, 2]),
        "offsets must rise from 0 to the 3 tokens of the batch"
    );
}
