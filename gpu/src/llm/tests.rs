//! Language models against `transformers` and `peft` (`gpu/tests/reference/llm_reference.py`), and their laws.

use super::added::{Added, Vectors};
use super::lora::Lora;
use super::*;
use crate::encoder::EncoderError;
use crate::frozen::{Frozen, Numbers};
use crate::ops::{Graph, Noise, Stock, Tape, Workspace};
use crate::optim::{Adam, AdamConfig};
use crate::random::Key;
use crate::samples::Ragged;
use crate::train::{Model, Place, TrainOptions, train_model};
use crate::weights::Weights;
use candle_core::{Device, safetensors::MmapedSafetensors};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

const MODELS: [&str; 3] = ["qwen3", "qwen2", "llama"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/llm")
        .join(name)
}

struct Golden {
    json: serde_json::Value,
    tensors: MmapedSafetensors,
}

impl Golden {
    fn open(name: &str) -> Self {
        let text = std::fs::read_to_string(folder(name).join("expected.json")).unwrap();
        // SAFETY: nobody writes to the golden files.
        let tensors = unsafe { MmapedSafetensors::new(folder(name).join("expected.safetensors")) }.unwrap();
        Golden {
            json: serde_json::from_str(&text).unwrap(),
            tensors,
        }
    }

    fn get(&self, name: &str) -> Vec<f32> {
        let tensor = self.tensors.load(name, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn prompts(&self) -> Prompts {
        let (mut tokens, mut from) = (Ragged::default(), vec![]);
        for prompt in self.json["prompts"].as_array().unwrap() {
            let list: Vec<u32> = serde_json::from_value(prompt["tokens"].clone()).unwrap();
            tokens.push(&list);
            from.push(prompt["loss_from"].as_u64().unwrap() as u32);
        }
        Prompts::new(tokens, from).unwrap()
    }
}

fn close(what: &str, got: &[f32], want: &[f32], within: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1.0f32, |most, x| most.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= within * scale, "{what}[{i}]: {g}, not {w}");
    }
}

fn tuned(name: &str, adapted: bool) -> (Tuned, Golden) {
    let base = Llm::load(&folder(name)).unwrap();
    let config = base.config().clone();
    let (tuning, weights) = match adapted {
        true => {
            let (lora, weights, _) = Lora::load(&folder(name), &config).unwrap();
            (Tuning::Lora(lora), weights)
        }
        false => (Tuning::Full, base.weights().clone()),
    };
    let base = Base::Given(Arc::new(base.into_weights().into()), "golden".into());
    let config = TunedConfig {
        config,
        base,
        tuning,
        added: Added::default(),
        recompute: false,
    };
    (Tuned::from_weights(&config, weights).unwrap(), Golden::open(name))
}

/// All logits of every prompt, as one batch.
fn logits<G: Graph>(g: &mut G, model: &Tuned, prompts: &Prompts) -> Vec<Vec<f32>> {
    let (mut tokens, mut offsets) = (vec![], vec![0]);
    for i in 0..prompts.len() {
        let read = &prompts.tokens(i)[..prompts.tokens(i).len() - 1];
        tokens.extend_from_slice(read);
        offsets.push(tokens.len());
    }
    let batch = Batch {
        tokens_t: tokens.into(),
        scored: offsets.windows(2).map(|ends| ends[1] - ends[0]).collect(),
        offsets: offsets.into(),
    };
    let config = &model.config().config;
    let hidden = hidden(g, model.config().network(), &batch, &mut Noise::off()).unwrap();
    let head = model.config().added.head(g, config).unwrap();
    let all = g
        .linear(&hidden, &head, None, false, crate::ops::Dropout::off())
        .unwrap();
    let all = g.values(&all).unwrap();
    let rows = batch.offsets.windows(2);
    let v = model.config().added.writable(config);
    rows.map(|ends| all[ends[0] * v..ends[1] * v].to_vec()).collect()
}

#[test]
fn logits_are_those_of_transformers_and_peft() {
    for name in MODELS {
        for (adapted, stem) in [(false, "logits"), (true, "adapted")] {
            let (model, golden) = tuned(name, adapted);
            let prompts = golden.prompts();
            let mut workspace = Workspace::default();
            let mut tape = Tape::new(model.weights(), &mut workspace).with_frozen(model.frozen());
            let fast = logits(&mut tape, &model, &prompts);
            drop(tape);
            let stock = Stock::new(model.weights(), &Device::Cpu).unwrap();
            let slow = logits(&mut stock.with_frozen(model.frozen()).unwrap(), &model, &prompts);
            let merged = model.merged().unwrap();
            let mut tape = Tape::new(merged.weights(), &mut workspace);
            let plain = TunedConfig {
                tuning: Tuning::Full,
                ..model.config().clone()
            };
            let plain = Tuned::from_weights(&plain, merged.weights().clone()).unwrap();
            let whole = logits(&mut tape, &plain, &prompts);
            for i in 0..prompts.len() {
                let want = golden.get(&format!("{stem}.{i}"));
                for (engine, got) in [("tape", &fast), ("stock", &slow), ("merged", &whole)] {
                    close(&format!("{name} {stem}.{i} {engine}"), &got[i], &want, 2e-5);
                }
            }
        }
    }
}

/// The base of a golden model written anew with numbers of another type; `shift` moves them off their alignment.
fn rewritten(name: &str, dtype: safetensors::Dtype, shift: bool) -> tempfile::TempDir {
    use half::{bf16, f16};
    let temp = tempfile::tempdir().unwrap();
    std::fs::copy(folder(name).join("config.json"), temp.path().join("config.json")).unwrap();
    let weights = Weights::read_all(&folder(name).join("model.safetensors")).unwrap();
    let bytes = |x: &f32| match dtype {
        safetensors::Dtype::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        safetensors::Dtype::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = weights
        .tensors()
        .iter()
        .map(|t| {
            (
                t.name.as_str(),
                t.shape.clone(),
                t.data.iter().flat_map(bytes).collect(),
            )
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap();
        (*name, view)
    });
    let mut file = safetensors::serialize(views, None).unwrap();
    if shift {
        // One more space behind the header.
        let header = u64::from_le_bytes(file[..8].try_into().unwrap());
        file[..8].copy_from_slice(&(header + 1).to_le_bytes());
        file.insert(8 + header as usize, b' ');
    }
    std::fs::write(temp.path().join("model.safetensors"), file).unwrap();
    temp
}

/// A frozen base in the numbers of its file gives what it gives in f32, to the bit: losses and gradients of adapters and
/// of new words, on both engines.
#[test]
fn frozen_numbers_of_16_bits_are_read_as_they_are() {
    use safetensors::Dtype::{BF16, F16, F32};
    for (name, dtype, shift) in [
        ("qwen3", BF16, false),
        ("qwen2", F16, false),
        ("llama", F32, false),
        ("llama", BF16, true),
        ("qwen3", F32, true),
    ] {
        let temp = rewritten(name, dtype, shift);
        let (config, mapped) = Llm::open(temp.path()).unwrap();
        let owned = Llm::load(temp.path()).unwrap().into_weights();
        assert_eq!(mapped.digest(), owned.digest());
        let table = mapped.tensors()[mapped.index("model.embed_tokens.weight").unwrap()].numbers();
        match (dtype, shift) {
            (BF16, false) => assert!(matches!(table, Numbers::Bf16(_))),
            (F16, false) => assert!(matches!(table, Numbers::F16(_))),
            _ => assert!(matches!(table, Numbers::F32(_))),
        }
        let (lora, mut adapters, _) = Lora::load(&folder(name), &config).unwrap();
        let added = Added {
            words: 2,
            vectors: None,
        };
        let words = Weights::init(&added.declarations(&config), 3);
        adapters = Weights::from_tensors([adapters.into_tensors(), words.into_tensors()].concat());
        let prompts = Golden::open(name).prompts();
        let run = |base: Frozen| {
            let config = TunedConfig {
                config: config.clone(),
                base: Base::Given(Arc::new(base), "same".into()),
                tuning: Tuning::Lora(lora.clone()),
                added: added.clone(),
                recompute: false,
            };
            let model = Tuned::from_weights(&config, adapters.clone()).unwrap();
            let mut workspace = Workspace::default();
            let loss = gradients(&model, &prompts, &mut workspace);
            let stock = Stock::new(model.weights(), &Device::Cpu).unwrap();
            let slow = logits(&mut stock.with_frozen(model.frozen()).unwrap(), &model, &prompts);
            (loss, workspace.gradients().to_vec(), slow)
        };
        let (whole, read) = (run(owned.into()), run(mapped));
        assert!(whole.0.is_finite() && whole.1.iter().flatten().any(|x| *x != 0.0));
        assert_eq!(read, whole, "{name} {dtype:?}");
    }
}

/// Gradients of the mean loss over all prompts.
fn gradients(model: &Tuned, prompts: &Prompts, workspace: &mut Workspace) -> f32 {
    let rows: Vec<u32> = (0..prompts.len() as u32).collect();
    let mut tape = Tape::new(model.weights(), workspace).with_frozen(model.frozen());
    let node = Tuned::loss(&mut tape, model.config(), prompts, &rows, Key::new(0)).unwrap();
    let loss = tape.values(&node).unwrap()[0];
    tape.backward(node).unwrap();
    loss
}

#[test]
fn gradients_are_those_of_torch() {
    for name in MODELS {
        for (adapted, stem) in [(false, "full.grad"), (true, "lora.grad")] {
            let (model, golden) = tuned(name, adapted);
            let mut workspace = Workspace::default();
            let loss = gradients(&model, &golden.prompts(), &mut workspace);
            let want = match adapted {
                true => &golden.json["losses"][0],
                false => &golden.json["full"]["loss"],
            };
            assert!(
                (f64::from(loss) - want.as_f64().unwrap()).abs() < 1e-5,
                "{name}: {loss}, not {want}"
            );
            for (tensor, got) in model.weights().tensors().iter().zip(workspace.gradients()) {
                let what = format!("{stem}.{}", tensor.name);
                close(&format!("{name} {what}"), got, &golden.get(&what), 2e-5);
            }
        }
    }
}

#[test]
fn three_steps_are_those_of_torch() {
    for name in MODELS {
        let (mut model, golden) = tuned(name, true);
        let options = AdamConfig {
            weight_decay: 0.1,
            decoupled: true,
            ..AdamConfig::default()
        };
        let mut adam = Adam::new(options);
        let mut workspace = Workspace::default();
        for step in 0..3 {
            let loss = gradients(&model, &golden.prompts(), &mut workspace);
            let want = golden.json["losses"][step].as_f64().unwrap();
            assert!(
                (f64::from(loss) - want).abs() < 1e-4,
                "{name} step {step}: {loss}, not {want}"
            );
            adam.step(model.weights_mut(), workspace.gradients(), 1e-2, 1.0)
                .unwrap();
        }
        for tensor in model.weights().tensors() {
            let what = format!("lora.after.{}", tensor.name);
            close(&format!("{name} {what}"), &tensor.data, &golden.get(&what), 1e-4);
        }
    }
}

#[test]
fn adapters_and_checkpoints_come_back() {
    let (model, _) = tuned("qwen3", true);
    let (config, lora) = (&model.config().config, model.config().lora().unwrap());
    let temp = tempfile::tempdir().unwrap();
    for digest in [None, Some("of the base")] {
        lora.save(model.weights(), "somewhere", digest, temp.path()).unwrap();
        let (again, weights, base) = Lora::load(temp.path(), config).unwrap();
        assert_eq!((&again, &weights, base.as_str()), (lora, model.weights(), "somewhere"));
        assert_eq!(lora::base_digest(temp.path()).unwrap().as_deref(), digest);
    }
    assert_eq!(lora::base_digest(&folder("qwen3")).unwrap(), None);
    let merged = model.merged().unwrap();
    merged.save(temp.path()).unwrap();
    let again = Llm::load(temp.path()).unwrap();
    assert_eq!(again.weights(), merged.weights());
}

#[test]
fn a_model_that_is_saved_says_that_it_is_in_f32() {
    for (key, saved) in [
        (Some("dtype"), "dtype"),
        (Some("torch_dtype"), "torch_dtype"),
        (None, "torch_dtype"),
    ] {
        let mut json = LlmConfig::of_shape(&shape()).unwrap().json().clone();
        json.as_object_mut().unwrap().remove("torch_dtype");
        if let Some(key) = key {
            json[key] = "bfloat16".into();
        }
        let config = LlmConfig::from_json(json, Path::new("config.json")).unwrap();
        let temp = tempfile::tempdir().unwrap();
        Llm::init(&config, 1).save(temp.path()).unwrap();
        let json = LlmConfig::load(temp.path()).unwrap().json().clone();
        let says = |key: &str| json.get(key).and_then(serde_json::Value::as_str);
        for key in ["dtype", "torch_dtype"] {
            assert_eq!(says(key), (key == saved).then_some("float32"), "{json}");
        }
    }
}

#[test]
fn evaluations_have_no_dropout() {
    let (model, golden) = tuned("qwen3", true);
    let prompts = golden.prompts();
    let losses = |dropout: f32| {
        let mut config = model.config().clone();
        if let Tuning::Lora(lora) = &mut config.tuning {
            lora.dropout = dropout;
        }
        let model = Tuned::from_weights(&config, model.weights().clone()).unwrap();
        let validation = Validation {
            prompts: &prompts,
            users: None,
        };
        let mut workspace = Workspace::default();
        let trained = gradients(&model, &prompts, &mut workspace);
        let stock = Stock::new(model.weights(), &Device::Cpu).unwrap();
        let mut stock = stock.with_frozen(model.frozen()).unwrap();
        let place = Place::Cpu(&model, &mut workspace);
        let fast = Tuned::evaluate(place, validation, Key::new(1), &mut |_, _| Ok(())).unwrap();
        let place = Place::Device(&config, &mut stock);
        let slow = Tuned::evaluate(place, validation, Key::new(1), &mut |_, _| Ok(())).unwrap();
        assert!((fast.0 - slow.0).abs() < 1e-5, "{fast:?} {slow:?}");
        (trained, fast)
    };
    let (noisy, quiet) = (losses(0.5), losses(0.0));
    assert_ne!(noisy.0, quiet.0);
    assert_eq!(noisy.1, quiet.1);
}

#[test]
fn what_cannot_be_loaded_is_said() {
    let copy = |name: &str| {
        let temp = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(folder(name)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, temp.path().join(path.file_name().unwrap())).unwrap();
        }
        temp
    };
    // The adapter of another model.
    let other = Llm::load(&folder("llama")).unwrap();
    let error = Lora::load(&folder("qwen3"), other.config()).unwrap_err().to_string();
    assert!(error.contains("shape mismatch"), "{error}");
    // A map that does not exist.
    let lora = |target: &str| Lora {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        target_modules: vec![target.into()],
    };
    let error = lora("qproj").check(other.config()).unwrap_err().to_string();
    assert_eq!(
        error,
        "invalid `target_modules`: \"qproj\" matches no map; there are q_proj, k_proj, v_proj, o_proj, gate_proj, \
         down_proj, up_proj"
    );
    // An adapter that is more than LoRA.
    let temp = copy("qwen2");
    let path = temp.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"use_dora\": false", "\"use_dora\": true")).unwrap();
    let config = LlmConfig::load(temp.path()).unwrap();
    let error = Lora::load(temp.path(), &config).unwrap_err().to_string();
    assert!(
        error.ends_with("use_dora is true: only plain LoRA, of one rank and without biases, is computed"),
        "{error}"
    );
    // A checkpoint without its weights, and one whose index names a shard that is not there.
    std::fs::remove_file(temp.path().join("model.safetensors")).unwrap();
    let error = Llm::load(temp.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors"), "{error}");
    let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
    std::fs::write(temp.path().join("model.safetensors.index.json"), index).unwrap();
    let error = Llm::load(temp.path()).unwrap_err().to_string();
    assert!(error.contains("model-00001-of-00002.safetensors"), "{error}");
    // Another activation, another family.
    for (from, to, key) in [("silu", "relu", "hidden_act"), ("qwen2", "gpt2", "model_type")] {
        let temp = copy("qwen2");
        let path = temp.path().join("config.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&format!("\"{from}\""), &format!("\"{to}\""))).unwrap();
        match Llm::load(temp.path()) {
            Err(EncoderError::Unsupported { key: got, .. }) => assert_eq!(got, key),
            other => panic!("{:?}", other.map(|_| ())),
        }
    }
}

fn shape() -> Shape {
    Shape {
        vocabulary: 40,
        d_model: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        key_dim: 8,
        d_ff: 48,
        max_tokens: 32,
    }
}

/// Prompts of which the title is the reverse of the two tokens before it, and then the end.
fn reversals(count: u64) -> Prompts {
    let (mut tokens, mut from) = (Ragged::default(), vec![]);
    for i in 0..count {
        let key = Key::new(7).child(i);
        let filler = (0..key.below(9, 5)).map(|j| 2 + key.below(10 + j, 38) as u32);
        let (a, b) = (2 + key.below(0, 12) as u32, 2 + key.below(1, 12) as u32);
        let prompt: Vec<u32> = filler.chain([a, b, b, a, 1]).collect();
        from.push(prompt.len() as u32 - 3);
        tokens.push(&prompt);
    }
    Prompts::new(tokens, from).unwrap()
}

#[test]
fn a_fresh_model_learns_and_parts_are_counted() {
    let config = LlmConfig::of_shape(&shape()).unwrap();
    let parts = config.parameters();
    assert_eq!(
        (parts.embeddings, parts.head, parts.norms),
        (40 * 32, 0, 2 * (2 * 32 + 2 * 8) + 32)
    );
    assert_eq!(parts.blocks, 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48));
    let options = TrainOptions {
        lr: 5e-3,
        batch_size: 32,
        max_steps: Some(150),
        eval_every: 150,
        ..TrainOptions::default()
    };
    let (samples, valid) = (reversals(800), reversals(900));
    let full = TunedConfig {
        config: config.clone(),
        base: Base::Fresh,
        tuning: Tuning::Full,
        added: Added::default(),
        recompute: false,
    };
    let train = |config: &TunedConfig, samples: &Prompts| {
        let validation = Some(Validation {
            prompts: &valid,
            users: Some(100),
        });
        let mut on_event = |_: crate::train::TrainEvent| ControlFlow::Continue(());
        train_model::<Tuned>(config, &options, &Device::Cpu, samples, validation, None, &mut on_event).unwrap()
    };
    let trained = train(&full, &samples);
    let (loss, _) = trained.curve.last().unwrap().valid.unwrap();
    // Three tokens are certain; a uniform guess costs 3.7 each.
    assert!(-loss < 0.6, "{loss}");
    // Adapters on it learn to begin with the other token; the base stays.
    let other = {
        let (mut tokens, mut from) = (Ragged::default(), vec![]);
        for i in 0..samples.len() {
            let mut prompt = samples.tokens(i).to_vec();
            let n = prompt.len();
            prompt.swap(n - 3, n - 2);
            from.push(n as u32 - 3);
            tokens.push(&prompt);
        }
        Prompts::new(tokens, from).unwrap()
    };
    let base = trained.model.merged().unwrap().into_weights();
    let adapted = TunedConfig {
        config: config.clone(),
        base: Base::Given(Arc::new(base.clone().into()), "trained".into()),
        tuning: Tuning::Lora(Lora {
            rank: 4,
            alpha: 8.0,
            dropout: 0.05,
            target_modules: Lora::modules(&config),
        }),
        added: Added::default(),
        recompute: false,
    };
    let before = train(&TunedConfig { ..adapted.clone() }, &other);
    let curve: Vec<f64> = before.curve.iter().map(|point| point.train_loss).collect();
    assert!(curve[0] < 2.0, "{curve:?}");
    assert_eq!(before.model.frozen().map(Frozen::to_weights), Some(base));
    assert_eq!(
        adapted.trained_parameters(),
        before.model.config().lora().unwrap().parameters(&config)
    );
}

#[test]
fn packing_and_threads_change_nothing() {
    let config = LlmConfig::of_shape(&shape()).unwrap();
    let samples = reversals(40);
    let tuned = TunedConfig {
        config,
        base: Base::Fresh,
        tuning: Tuning::Full,
        added: Added::default(),
        recompute: false,
    };
    let model = Tuned::init(&tuned, 3).unwrap();
    let losses = |threads: usize, rows: &[u32]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut workspace = Workspace::default();
            let mut tape = Tape::new(model.weights(), &mut workspace);
            let node = Tuned::loss(&mut tape, &tuned, &samples, rows, Key::new(0)).unwrap();
            let loss = tape.values(&node).unwrap()[0];
            tape.backward(node).unwrap();
            (loss, workspace.gradients().to_vec())
        })
    };
    let rows: Vec<u32> = (0..40).collect();
    let packed = losses(1, &rows);
    for threads in [2, 7] {
        assert_eq!(packed, losses(threads, &rows));
    }
    // The mean of a batch is that of its prompts, each alone.
    let alone: f64 = rows.iter().map(|row| f64::from(losses(1, &[*row]).0)).sum::<f64>() / 40.0;
    assert!((f64::from(packed.0) - alone).abs() < 1e-5);
}

#[test]
fn prompts_that_do_not_fit_are_named() {
    let prompts = |tokens: &[u32], from: u32| {
        let mut all = Ragged::default();
        all.push(tokens);
        Prompts::new(all, vec![from])
    };
    for (tokens, from) in [(&[1, 2, 3][..], 0), (&[1, 2, 3], 3), (&[1], 1)] {
        assert!(prompts(tokens, from).is_err(), "{tokens:?} {from}");
    }
    let config = LlmConfig::of_shape(&shape()).unwrap();
    let error = prompts(&[1, 40], 1)
        .unwrap()
        .check(&config, &Added::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "invalid data: prompt 0 has token 40, the model's vocabulary has 40: the tokenizer is that of another model"
    );
    let error = prompts(&[1; 34], 1)
        .unwrap()
        .check(&config, &Added::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "invalid data: prompt 0 has 34 tokens, the model has 32 positions"
    );
    let odd = Shape { kv_heads: 3, ..shape() };
    let error = LlmConfig::of_shape(&odd).unwrap_err().to_string();
    assert_eq!(error, "invalid `kv_heads`: is 3, supported: a divisor of heads");
    let empty = Shape { layers: 0, ..shape() };
    let error = LlmConfig::of_shape(&empty).unwrap_err().to_string();
    assert_eq!(error, "invalid `layers`: is 0, supported: at least 1");
}

#[test]
fn ranks_follow_a_share() {
    let config = LlmConfig::of_shape(&shape()).unwrap();
    let modules = Lora::modules(&config);
    let rank = Lora::rank_of_share(&config, &modules, 0.1);
    let lora = Lora {
        rank,
        alpha: 1.0,
        dropout: 0.0,
        target_modules: modules,
    };
    let share = lora.parameters(&config) as f64 / config.parameters().total() as f64;
    assert!((share - 0.1).abs() < 0.03, "rank {rank}: {share}");
    let weights: Weights = Weights::init(&lora.declarations(&config), 1);
    assert!(
        weights
            .tensors()
            .iter()
            .any(|tensor| tensor.data.iter().any(|x| *x != 0.0))
    );
}

/// What is estimated is what is held, to within a third.
#[test]
fn memory_is_estimated() {
    let config = LlmConfig::of_shape(&Shape {
        d_model: 64,
        d_ff: 192,
        layers: 4,
        ..shape()
    })
    .unwrap();
    let samples = reversals(256);
    let options = TrainOptions {
        batch_size: 256,
        ..TrainOptions::default()
    };
    let lora = Lora {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        target_modules: Lora::modules(&config),
    };
    let tunings = [Tuning::Full, Tuning::Lora(lora)];
    for (tuning, recompute) in tunings
        .into_iter()
        .flat_map(|tuning| [(tuning.clone(), false), (tuning, true)])
    {
        let tuned = TunedConfig {
            config: config.clone(),
            base: Base::Fresh,
            tuning,
            added: Added::default(),
            recompute,
        };
        let model = Tuned::init(&tuned, 3).unwrap();
        let mut workspace = Workspace::default();
        gradients(&model, &samples, &mut workspace);
        let trained = 4 * tuned.trained_parameters();
        let held = workspace.bytes() - trained;
        let estimated = memory::estimate(&tuned, &options, &samples).batch;
        let ratio = estimated as f64 / held as f64;
        assert!((0.75..1.33).contains(&ratio), "{estimated} estimated, {held} held");
    }
}

/// New words cost a copy of the output map and its gradient, and what is trained costs a state that is written.
#[test]
fn memory_of_new_words_and_states_is_estimated() {
    let config = LlmConfig::of_shape(&Shape {
        vocabulary: 20_000,
        ..shape()
    })
    .unwrap();
    let (samples, options) = (reversals(32), TrainOptions::default());
    let lora = Lora {
        rank: 4,
        alpha: 8.0,
        dropout: 0.0,
        target_modules: Lora::modules(&config),
    };
    for tuning in [Tuning::Full, Tuning::Lora(lora)] {
        let of = |words: usize| {
            let tuned = TunedConfig {
                config: config.clone(),
                base: Base::Fresh,
                tuning: tuning.clone(),
                added: Added { words, vectors: None },
                recompute: false,
            };
            let model = Tuned::init(&tuned, 3).unwrap();
            let mut workspace = Workspace::default();
            gradients(&model, &samples, &mut workspace);
            let trained = 4 * tuned.trained_parameters();
            let needed = memory::estimate(&tuned, &options, &samples);
            // Moments, gradients, and a state of the weights and the moments.
            assert!(needed.training > 6 * trained && needed.training <= 7 * trained);
            (needed, workspace.bytes() - trained, tuned)
        };
        let (plain, more) = (of(0), of(500));
        let estimated = (more.0.batch - plain.0.batch) as f64;
        let ratio = estimated / (more.1 - plain.1) as f64;
        assert!((0.75..1.33).contains(&ratio), "{tuning:?}: {ratio}");
        // Evaluations read more at a time than batches of one prompt.
        let one = TrainOptions {
            batch_size: 1,
            ..options.clone()
        };
        let valid = reversals(900);
        let validation = Validation {
            prompts: &valid,
            users: None,
        };
        let small = memory::estimate(&plain.2, &one, &samples);
        let large = small.with_evaluations(&plain.2, validation);
        assert!(large.batch > 2 * small.batch);
        let best = 4 * plain.2.trained_parameters();
        assert_eq!(
            (large.weights, large.training),
            (small.weights, small.training + 2 * best)
        );
    }
}

/// Activations that are computed anew: the same losses and gradients to the bit, dropout of adapters included, in less
/// memory.
#[test]
fn activations_computed_anew_change_nothing() {
    for (name, adapted) in MODELS.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let (model, golden) = tuned(name, adapted);
        let run = |recompute: bool| {
            let mut config = TunedConfig {
                recompute,
                ..model.config().clone()
            };
            if let Tuning::Lora(lora) = &mut config.tuning {
                lora.dropout = 0.2;
            }
            let model = Tuned::from_weights(&config, model.weights().clone()).unwrap();
            let mut workspace = Workspace::default();
            let loss = gradients(&model, &golden.prompts(), &mut workspace);
            (loss, workspace.gradients().to_vec())
        };
        let (kept, anew) = (run(false), run(true));
        assert!(kept.1.iter().flatten().any(|x| *x != 0.0));
        assert_eq!(kept, anew, "{name}");
        // The engine of devices, whose dropout draws the same masks.
        let on_stock = |recompute: bool| {
            let mut config = TunedConfig {
                recompute,
                ..model.config().clone()
            };
            if let Tuning::Lora(lora) = &mut config.tuning {
                lora.dropout = 0.2;
            }
            let stock = Stock::new(model.weights(), &Device::Cpu).unwrap();
            let mut stock = stock.with_frozen(model.frozen()).unwrap();
            let prompts = golden.prompts();
            let rows: Vec<u32> = (0..prompts.len() as u32).collect();
            let node = Tuned::loss(&mut stock, &config, &prompts, &rows, Key::new(1)).unwrap();
            let gradients = stock.backward(&node).unwrap().into_iter();
            gradients
                .map(|gradient| gradient.map(|g| g.flatten_all().unwrap().to_vec1::<f32>().unwrap()))
                .collect::<Vec<_>>()
        };
        let (kept, anew) = (on_stock(false), on_stock(true));
        for ((tensor, kept), anew) in model.weights().tensors().iter().zip(kept).zip(anew) {
            close(&tensor.name, &anew.unwrap(), &kept.unwrap(), 1e-5);
        }
    }
    let config = LlmConfig::of_shape(&Shape { layers: 12, ..shape() }).unwrap();
    let held = |recompute: bool| {
        let config = TunedConfig {
            config: config.clone(),
            base: Base::Fresh,
            tuning: Tuning::Full,
            added: Added::default(),
            recompute,
        };
        let model = Tuned::init(&config, 3).unwrap();
        let mut workspace = Workspace::default();
        // The second step finds its buffers.
        gradients(&model, &reversals(100), &mut workspace);
        let first = workspace.bytes();
        gradients(&model, &reversals(100), &mut workspace);
        assert_eq!(workspace.bytes(), first);
        first - 4 * config.trained_parameters()
    };
    let (kept, anew) = (held(false), held(true));
    assert!(anew * 3 < kept, "{anew} bytes, {kept} where all is kept");
}

/// New words and items as soft tokens: parity of the engines, and the merged model reads and writes the same.
#[test]
fn added_tokens_are_read_and_written() {
    let base = Llm::load(&folder("qwen3")).unwrap();
    let config = base.config().clone();
    let (v, d) = (config.vocabulary() as u32, config.width());
    let key = Key::new(4);
    let values = (0..5 * 3).map(|i| key.normal(i) as f32).collect();
    let added = Added {
        words: 4,
        vectors: Some(Arc::new(Vectors::new(values, 3).unwrap())),
    };
    let lora = Lora {
        rank: 2,
        alpha: 2.0,
        dropout: 0.0,
        target_modules: vec!["v_proj".into()],
    };
    let tuned = TunedConfig {
        config: config.clone(),
        base: Base::Given(Arc::new(base.weights().clone().into()), "golden".into()),
        tuning: Tuning::Lora(lora),
        added: added.clone(),
        recompute: false,
    };
    let mut model = Tuned::init(&tuned, 9).unwrap();
    for (i, tensor) in model.weights_mut().tensors_mut().iter_mut().enumerate() {
        let key = key.child(i as u64);
        tensor
            .data
            .iter_mut()
            .enumerate()
            .for_each(|(j, x)| *x = (key.normal(j as u64) * 0.3) as f32);
    }
    let mut tokens = Ragged::default();
    // Items are v + 4 ..; words v .. v + 4.
    tokens.push(&[3, v + 1, v + 4, 7, v + 8, v + 4, v + 3, 2]);
    tokens.push(&[v + 2, v + 2, v, 5]);
    let prompts = Prompts::new(tokens, vec![6, 2]).unwrap();
    prompts.check(&config, &added).unwrap();
    let mut workspace = Workspace::default();
    let loss = gradients(&model, &prompts, &mut workspace);
    let mut stock = Stock::new(model.weights(), &Device::Cpu)
        .unwrap()
        .with_frozen(model.frozen())
        .unwrap();
    for recompute in [false, true] {
        let config = TunedConfig {
            recompute,
            ..model.config().clone()
        };
        let node = Tuned::loss(&mut stock, &config, &prompts, &[0, 1], Key::new(0)).unwrap();
        assert!((stock.values(&node).unwrap()[0] - loss).abs() < 1e-5);
        for (i, want) in stock.backward(&node).unwrap().into_iter().enumerate() {
            let want: Vec<f32> = want.unwrap().flatten_all().unwrap().to_vec1().unwrap();
            close(
                &model.weights().tensors()[i].name,
                &workspace.gradients()[i],
                &want,
                2e-5,
            );
        }
    }
    // The merged model has the words in its vocabulary, and rows for the items behind it.
    let merged = model.merged().unwrap();
    assert_eq!(merged.config().vocabulary(), config.vocabulary() + 4);
    assert_eq!(merged.read_only().len(), 5 * d);
    let temp = tempfile::tempdir().unwrap();
    added.save(model.weights(), temp.path()).unwrap();
    let (Some(lora), mut again) = (tuned.lora(), base) else {
        unreachable!()
    };
    lora.merge(model.weights(), again.weights_mut()).unwrap();
    Added::merge(temp.path(), &mut again).unwrap();
    assert_eq!(
        (again.weights(), again.read_only()),
        (merged.weights(), merged.read_only())
    );
    assert!(again.save(temp.path()).is_err());
    // Logits of words alone are those before merging.
    let mut words = Ragged::default();
    words.push(&[3, v + 1, 7, v + 3, 2]);
    let words = Prompts::new(words, vec![1]).unwrap();
    let mut tape = Tape::new(model.weights(), &mut workspace).with_frozen(model.frozen());
    let before = logits(&mut tape, &model, &words);
    drop(tape);
    let plain = TunedConfig {
        config: merged.config().clone(),
        base: Base::Fresh,
        tuning: Tuning::Full,
        added: Added::default(),
        recompute: false,
    };
    let whole = Tuned::from_weights(&plain, merged.weights().clone()).unwrap();
    let after = logits(&mut Tape::new(whole.weights(), &mut workspace), &whole, &words);
    close("merged logits", &after[0], &before[0], 1e-5);
    // Generation reads items too.
    let mut mixed = Ragged::default();
    mixed.push(&[3, v + 1, v + 4, 7, v + 8, 2]);
    let mixed = Prompts::new(mixed, vec![5]).unwrap();
    let mut tape = Tape::new(model.weights(), &mut workspace).with_frozen(model.frozen());
    let wanted = logits(&mut tape, &model, &mixed);
    drop(tape);
    let last = &wanted[0][4 * (v as usize + 4)..];
    let total = last.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
    let decoder = Decoder::new(merged.clone(), Normalisation::Vocabulary).unwrap();
    assert_eq!(decoder.readable(), v as usize + 4 + 5);
    let got = decoder.next(&[&mixed.tokens(0)[..5]]).unwrap();
    for (got, logit) in got[0].iter().zip(last) {
        assert!(
            (got - (f64::from(*logit) - total)).abs() < 1e-4,
            "{got}, not {}",
            f64::from(*logit) - total
        );
    }
    // An item is never written.
    let mut item = Ragged::default();
    item.push(&[3, v + 4]);
    let error = Prompts::new(item, vec![1])
        .unwrap()
        .check(&config, &added)
        .unwrap_err()
        .to_string();
    assert_eq!(error, "invalid data: prompt 0 scores token 65, which is read only");
}
