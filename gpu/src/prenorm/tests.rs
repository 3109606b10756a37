//! Tests of T5 and decoder-only encoders: transformers' numbers, the padded twin, independence, refusals.
//!
//! The checkpoints and numbers are those of `gpu/tests/reference/encoders_reference.py`.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::{Value, json};

use super::*;
use crate::encoder::{EncodeOptions, EncoderConfig, Forward, Pooling, TextEncoder};

const CASES: [&str; 5] = ["t5_gated", "t5_relu", "qwen3", "qwen2", "llama"];

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encoders")
}

fn numbers() -> Value {
    let text = std::fs::read_to_string(golden().join("encoders.json")).expect("golden file");
    serde_json::from_str(&text).expect("golden numbers")
}

fn prenorm(folder: &Path) -> PrenormConfig {
    match EncoderConfig::load(folder).expect("a configuration") {
        EncoderConfig::Prenorm(config) => config,
        EncoderConfig::Bert(_) => panic!("BERT"),
    }
}

fn ids(case: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(case["ids"].clone()).expect("ids")
}

fn packed(sequences: &[Vec<u32>]) -> (Vec<u32>, Vec<usize>) {
    let mut offsets = vec![0];
    sequences
        .iter()
        .for_each(|s| offsets.push(offsets[offsets.len() - 1] + s.len()));
    (sequences.concat(), offsets)
}

fn assert_close(name: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let difference = (got - want).abs();
        assert!(difference <= tolerance, "{name}, entry {at}: {got}, expected {want}");
    }
}

#[test]
fn agrees_with_transformers_packed_and_padded() {
    let golden_numbers = numbers();
    for name in CASES {
        let case = &golden_numbers["cases"][name];
        let (folder, ids) = (golden().join(name), ids(case));
        let encoder = TextEncoder::load(&folder, &Device::Cpu).expect("an encoder");
        for (key, pooling) in [("mean", Pooling::Mean), ("last", Pooling::LastToken)] {
            let want: Vec<Vec<f32>> = serde_json::from_value(case[key].clone()).expect("embeddings");
            let options = EncodeOptions {
                pooling,
                normalize: false,
            };
            let got = encoder.encode(&ids, &options, |_, _| ()).expect("embeddings");
            assert_close(name, &got, &want.concat(), 1e-5);
        }
        let (ids_t, offsets) = packed(&ids);
        let fast = PrenormEncoder::open(&folder, prenorm(&folder)).expect("an encoder");
        let slow = PaddedPrenorm::open(&folder, prenorm(&folder), &Device::Cpu).expect("an encoder");
        let (fast, slow) = (fast.forward(&ids_t, &offsets), slow.forward(&ids_t, &offsets));
        assert_close(name, &fast.expect("states"), &slow.expect("states"), 1e-5);
    }
}

#[test]
fn the_pooling_is_that_of_the_folder_or_of_the_direction() {
    let of = |name: &str| {
        let folder = golden().join(name);
        let config = EncoderConfig::load(&folder).expect("a configuration");
        config.pooling(&folder).expect("a pooling")
    };
    assert_eq!(of("t5_gated"), Pooling::Mean);
    assert_eq!(of("qwen3"), Pooling::LastToken);
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("1_Pooling")).expect("a folder");
    std::fs::write(
        folder.path().join("1_Pooling/config.json"),
        r#"{"pooling_mode": "cls"}"#,
    )
    .expect("a file");
    let config = EncoderConfig::load(&golden().join("qwen3")).expect("a configuration");
    assert_eq!(config.pooling(folder.path()).expect("a pooling"), Pooling::Cls);
}

#[test]
fn a_sequence_gives_the_same_bits_in_any_batch_and_with_any_number_of_threads() {
    let lengths = [1usize, 40, 13, 60, 2, 5, 11, 64, 3, 9, 14, 33, 1, 8, 15, 12, 6];
    let word = |s: usize, t: usize| ((7 * s + 3 * t + 2) % 60) as u32;
    let sequences = lengths.iter().enumerate();
    let sequences: Vec<Vec<u32>> = sequences.map(|(s, n)| (0..*n).map(|t| word(s, t)).collect()).collect();
    let (ids_t, offsets) = packed(&sequences);
    for name in ["t5_gated", "qwen3"] {
        let folder = golden().join(name);
        let encoder = PrenormEncoder::open(&folder, prenorm(&folder)).expect("an encoder");
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool")
                .install(|| encoder.forward(&ids_t, &offsets).expect("states"))
        };
        let all = run(1);
        assert_eq!(all, run(2));
        assert_eq!(all, run(5));
        for (sequence, span) in sequences.iter().zip(offsets.windows(2)) {
            let alone = encoder.forward(sequence, &[0, sequence.len()]).expect("states");
            assert_eq!(alone, all[span[0] * 16..span[1] * 16], "{name}");
        }
    }
}

#[test]
fn a_causal_prefix_keeps_its_states_and_a_bidirectional_one_does_not() {
    let sequence: Vec<u32> = (5..25).collect();
    for (name, kept) in [("llama", true), ("t5_relu", false)] {
        let folder = golden().join(name);
        let encoder = PaddedPrenorm::open(&folder, prenorm(&folder), &Device::Cpu).expect("an encoder");
        let whole = encoder.forward(&sequence, &[0, 20]).expect("states");
        let prefix = encoder.forward(&sequence[..9], &[0, 9]).expect("states");
        let apart = prefix
            .iter()
            .zip(&whole)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert_eq!(apart < 1e-5, kept, "{name}: {apart}");
    }
}

/// A copy of a golden checkpoint with a changed configuration.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(golden().join(name)).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).expect("a file")).expect("a configuration");
    change(&mut config);
    std::fs::write(&path, config.to_string()).expect("a written file");
    folder
}

fn states(folder: &Path) -> Vec<f32> {
    let encoder = PrenormEncoder::open(folder, prenorm(folder)).expect("an encoder");
    encoder
        .forward(&(3..23).collect::<Vec<u32>>(), &[0, 20])
        .expect("states")
}

#[test]
fn old_and_new_keys_say_the_same() {
    let remove = |config: &mut Value, keys: &[&str]| {
        let config = config.as_object_mut().expect("an object");
        keys.iter().for_each(|key| drop(config.remove(*key)));
    };
    let t5 = changed("t5_gated", |config| remove(config, &["feed_forward_proj"]));
    assert_eq!(states(t5.path()), states(&golden().join("t5_gated")));
    let qwen3 = changed("qwen3", |config| {
        remove(config, &["rope_parameters"]);
        config["rope_theta"] = json!(1000.0);
        config["rope_scaling"] = Value::Null;
    });
    assert_eq!(states(qwen3.path()), states(&golden().join("qwen3")));
    let llama = changed("llama", |config| {
        let mut scaling = config["rope_parameters"].take();
        config["rope_theta"] = scaling["rope_theta"].take();
        remove(config, &["rope_parameters", "head_dim"]);
        config["rope_scaling"] = scaling;
    });
    assert_eq!(states(llama.path()), states(&golden().join("llama")));
    let other = changed("llama", |config| {
        config["rope_parameters"] = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4})
    });
    assert_ne!(states(other.path()), states(&golden().join("llama")));
    let without = changed("llama", |config| {
        let rope = config["rope_parameters"].as_object_mut();
        drop(rope.expect("an object").remove("rope_theta"));
    });
    assert_eq!(states(without.path()), states(&golden().join("llama")));
    let twice = changed("llama", |config| config["rope_theta"] = json!(500.0));
    assert_eq!(states(twice.path()), states(&golden().join("llama")));
    let both_ways = changed("qwen3", |config| config["is_causal"] = json!(false));
    assert_ne!(states(both_ways.path()), states(&golden().join("qwen3")));
}

#[test]
fn refusals_name_the_key_and_what_is_supported() {
    let refused = |name: &str, key: &str, value: Value| {
        let folder = changed(name, |config| config[key] = value);
        EncoderConfig::load(folder.path()).expect_err("an error").to_string()
    };
    let ends = |message: String, end: &str| assert!(message.ends_with(end), "{message}");
    ends(
        refused("qwen3", "model_type", json!("gemma")),
        "model_type is \"gemma\", supported: \"bert\", \"t5\", \"llama\", \"qwen2\", \"qwen3\"",
    );
    ends(
        refused("qwen2", "num_key_value_heads", json!(3)),
        "num_key_value_heads is 3, supported: a divisor of num_attention_heads",
    );
    ends(
        refused("qwen2", "use_sliding_window", json!(true)),
        "use_sliding_window is true, supported: false",
    );
    ends(
        refused("qwen3", "layer_types", json!(["full_attention", "sliding_attention"])),
        "layer_types is \"sliding_attention\", supported: \"full_attention\"",
    );
    ends(
        refused(
            "llama",
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1e4}),
        ),
        "rope_type is \"yarn\", supported: \"default\", \"linear\", \"llama3\"",
    );
    ends(
        refused("llama", "rope_parameters", json!({"rope_theta": 0.5})),
        "rope_theta is 0.5, supported: a number above 1",
    );
    ends(
        refused("qwen3", "head_dim", Value::Null),
        "head_dim is absent, supported: the width of a head",
    );
    for key in ["vocab_size", "num_hidden_layers"] {
        ends(
            refused("qwen3", key, json!(0)),
            &format!("{key} is 0, supported: at least 1"),
        );
    }
    assert!(refused("t5_relu", "feed_forward_proj", json!("gated-selu")).contains("feed_forward_proj is \"selu\""));
    assert!(refused("t5_relu", "d_kv", json!("x")).contains("config.json"));
    ends(
        refused("t5_relu", "relative_attention_num_buckets", json!(2)),
        "relative_attention_num_buckets is 2, supported: at least 4",
    );
}

#[test]
fn tensors_that_are_missing_or_too_many_are_named() {
    let say = |folder: &Path| {
        TextEncoder::load(folder, &Device::Cpu)
            .err()
            .expect("an error")
            .to_string()
    };
    let more = changed("t5_gated", |config| config["num_layers"] = json!(3));
    let message = say(more.path());
    assert!(
        message.contains("9 missing of 30 tensors: encoder.block.2.layer.0.SelfAttention.q.weight,"),
        "{message}"
    );
    let fewer = changed("llama", |config| config["attention_bias"] = json!(false));
    let message = say(fewer.path());
    assert!(message.contains("8 beyond the "), "{message}");
    assert!(message.contains("model.layers.0.self_attn.k_proj.bias"), "{message}");
    let both = changed("t5_gated", |config| config["feed_forward_proj"] = json!("relu"));
    let message = say(both.path());
    assert!(
        message.contains("2 missing of 19 tensors: encoder.block.0.layer.1.DenseReluDense.wi.weight"),
        "{message}"
    );
    assert!(message.contains("; 4 beyond the 19 tensors"), "{message}");
    let gone = changed("qwen3", |_| ());
    std::fs::remove_file(gone.path().join("model-00002-of-00003.safetensors")).expect("a removed file");
    assert!(say(gone.path()).contains("cannot read"), "{}", say(gone.path()));
}

#[test]
fn sequences_longer_than_the_positions_are_refused_where_there_are_positions() {
    let run = |name: &str| {
        let folder = golden().join(name);
        let encoder = PrenormEncoder::open(&folder, prenorm(&folder)).expect("an encoder");
        encoder.forward(&[4; 65], &[0, 65]).map_err(|error| error.to_string())
    };
    assert!(run("t5_gated").is_ok());
    let error = run("qwen3").expect_err("an error");
    assert_eq!(error, "sequence 0 has 65 tokens, the model has 64 positions");
}
