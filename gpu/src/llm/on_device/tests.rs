//! The lists of the CPU's decoder, by stock operations and by kernels, on the device that SLUICE_DEVICE names (`cpu`); near
//! ones in bf16.

use super::*;
use crate::kernels::simulator::{device, kernels};
use crate::llm::lora::Lora;
use crate::llm::{Decoder, FrozenLlm, Generated, Llm, SearchOptions, Shape, TitleTrie, generate, generate_on};
use crate::ops::Precision;
use crate::random::Key;
use crate::weights::Weights;
use std::path::Path;

const WIDTH: usize = 24;

fn config(family: &str, tied: bool) -> LlmConfig {
    let shape = Shape {
        vocabulary: 41,
        d_model: WIDTH,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        key_dim: 10,
        d_ff: 37,
        max_tokens: 64,
    };
    let mut json = LlmConfig::of_shape(&shape).unwrap().json().clone();
    json["model_type"] = family.into();
    json["tie_word_embeddings"] = tied.into();
    if family == "llama" {
        json["attention_bias"] = true.into();
        json["mlp_bias"] = true.into();
    }
    LlmConfig::from_json(json, Path::new("config.json")).unwrap()
}

fn draw(seed: u64, count: usize, spread: f32) -> Vec<f32> {
    let key = Key::new(seed);
    (0..count as u64).map(|i| spread * key.normal(i) as f32).collect()
}

/// A model whose scores differ, with biases and norms that do something.
fn model(family: &str, tied: bool) -> Llm {
    let mut model = Llm::init(&config(family, tied), 3);
    for (seed, tensor) in model.weights_mut().tensors_mut().iter_mut().enumerate() {
        let drawn = draw(100 + seed as u64, tensor.data.len(), 0.3);
        if tensor.name.ends_with(".bias") {
            tensor.data = drawn;
        } else if tensor.name.ends_with("norm.weight") {
            tensor.data.iter_mut().zip(drawn).for_each(|(x, more)| *x += more);
        } else {
            tensor.data.iter_mut().for_each(|x| *x *= 15.0);
        }
    }
    model
}

/// Lists of tokens from 1 on.
fn lists(count: u64, longest: u64, tokens: u64, seed: u64) -> Vec<Vec<u32>> {
    let key = Key::new(seed);
    let list = |i: u64| {
        let length = 1 + key.child(1).below(i, longest);
        let token = |at| 1 + key.child(2 + i).below(at, tokens) as u32;
        (0..length).map(token).collect()
    };
    (0..count).map(list).collect()
}

/// Few different tokens, so that prefixes are shared; chains of forced ones; token 0 ends a title.
fn titles() -> Vec<Vec<u32>> {
    let mut titles = lists(40, 6, 5, 11);
    titles.push(vec![7, 8, 9, 10, 11, 12, 13]);
    titles.push(vec![7, 8, 9, 10, 14, 12, 13, 15]);
    titles.iter_mut().for_each(|title| title.push(0));
    titles
}

/// Of all lengths, one token among them.
fn prompts() -> Vec<Vec<u32>> {
    let mut prompts = lists(9, 40, 40, 12);
    prompts.push(vec![5]);
    prompts
}

fn slices(lists: &[Vec<u32>]) -> Vec<&[u32]> {
    lists.iter().map(Vec::as_slice).collect()
}

fn options(width: usize, length_penalty: f64) -> SearchOptions {
    SearchOptions { width, length_penalty }
}

/// By stock operations alone, and with kernels.
fn on_device(model: impl Into<FrozenLlm>, normalisation: Normalisation, precision: Precision) -> Vec<DeviceDecoder> {
    let model = model.into();
    let with = |kernels| DeviceDecoder {
        kernels,
        ..DeviceDecoder::new(&model, normalisation, precision, &device()).unwrap()
    };
    std::iter::once(with(None))
        .chain(kernels().map(|kernels| with(Some(kernels))))
        .collect()
}

/// The same titles, and scores that differ by rounding alone.
fn assert_same(found: &Generated, wanted: &Generated, within: f64, what: &str) {
    assert_eq!(found.lists.len(), wanted.lists.len());
    for (user, (found, wanted)) in found.lists.iter().zip(&wanted.lists).enumerate() {
        assert_eq!(found.len(), wanted.len(), "{what}, user {user}");
        assert!(found.is_sorted_by(|a, b| a.score >= b.score));
        for wanted in wanted {
            let of_title = found.iter().find(|found| found.title == wanted.title);
            let near = of_title.is_some_and(|found| (found.score - wanted.score).abs() < within);
            assert!(near, "{what}, user {user}: {of_title:?} for {wanted:?}");
        }
    }
}

#[test]
fn lists_are_those_of_the_cpu() {
    let trie = TitleTrie::new(&titles()).unwrap();
    let prompts = prompts();
    for (family, tied) in [("qwen3", true), ("qwen3", false), ("qwen2", true), ("llama", false)] {
        let model = model(family, tied);
        for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
            let cpu = Decoder::new(model.clone(), normalisation).unwrap();
            let devices = on_device(model.clone(), normalisation, Precision::F32);
            for options in [
                options(1, 0.0),
                options(5, 0.0),
                options(5, 1.0),
                options(trie.len(), 0.5),
            ] {
                let wanted = generate(&cpu, &trie, &slices(&prompts), &options).unwrap();
                // With simulated kernels not all of it, for time.
                let simulated = device().is_cpu() && options.length_penalty > 0.0;
                let some = if simulated { 1 } else { devices.len() };
                for device in &devices[..some] {
                    let found = generate_on(device, &trie, &slices(&prompts), &options).unwrap();
                    let by = device.kernels.is_some();
                    let what = format!("{family} {tied} {normalisation:?} {options:?}, by kernels: {by}");
                    assert_same(&found, &wanted, 1e-4, &what);
                    assert_eq!(found.tokens, wanted.tokens, "{what}");
                }
            }
        }
    }
}

#[test]
fn adapters_new_words_and_items_that_are_only_read() {
    for tied in [true, false] {
        let base = model("qwen2", tied);
        let (words, items) = (draw(1, 3 * WIDTH, 0.3), draw(2, 2 * WIDTH, 0.3));
        let lora = Lora {
            rank: 2,
            alpha: 3.0,
            dropout: 0.0,
            target_modules: Lora::modules(base.config()),
        };
        let mut adapters = Weights::init(&lora.declarations(base.config()), 5);
        for (seed, tensor) in adapters.tensors_mut().iter_mut().enumerate() {
            tensor.data = draw(300 + seed as u64, tensor.data.len(), 0.2);
        }
        let mut merged = base.clone();
        lora.merge(&adapters, merged.weights_mut()).unwrap();
        merged.add_tokens(&words, items.clone()).unwrap();
        let apart = FrozenLlm {
            config: merged.config().clone(),
            weights: base.into_weights().into(),
            adapters: Some((lora, adapters)),
            words_nd: words,
            read_only_nd: items,
        };
        let mut titles = titles();
        titles.extend([vec![1, 42, 0], vec![43, 41, 2, 0]]);
        let trie = TitleTrie::new(&titles).unwrap();
        let mut prompts = prompts();
        prompts.extend([vec![3, 45, 41, 44, 2], vec![44]]);
        for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
            let cpu = Decoder::new(merged.clone(), normalisation).unwrap();
            let wanted = generate(&cpu, &trie, &slices(&prompts), &options(6, 0.0)).unwrap();
            for device in on_device(apart.clone(), normalisation, Precision::F32) {
                assert_eq!((device.config().vocabulary(), device.readable()), (44, 46));
                let found = generate_on(&device, &trie, &slices(&prompts), &options(6, 0.0)).unwrap();
                assert_same(&found, &wanted, 1e-4, &format!("{tied} {normalisation:?}"));
            }
        }
    }
}

#[test]
fn who_else_is_in_the_batch_changes_rounding_alone() {
    let trie = TitleTrie::new(&titles()).unwrap();
    let prompts = prompts();
    for device in on_device(model("qwen3", true), Normalisation::Vocabulary, Precision::F32) {
        let together = generate_on(&device, &trie, &slices(&prompts), &options(4, 0.0)).unwrap();
        for (prompt, list) in prompts.iter().zip(&together.lists) {
            let alone = generate_on(&device, &trie, &[prompt], &options(4, 0.0)).unwrap();
            let list = Generated {
                lists: vec![list.clone()],
                tokens: 0,
            };
            assert_same(&list, &alone, 1e-4, "alone");
        }
        let nobody = generate_on(&device, &trie, &[], &options(4, 0.0)).unwrap();
        assert!(nobody.lists.is_empty());
    }
}

#[test]
fn bf16_is_near() {
    let trie = TitleTrie::new(&titles()).unwrap();
    let prompts = prompts();
    for family in ["qwen3", "qwen2"] {
        let model = Llm::init(&config(family, true), 7);
        for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
            let cpu = Decoder::new(model.clone(), normalisation).unwrap();
            let full = on_device(model.clone(), normalisation, Precision::F32)[0].bytes();
            let wanted = generate(&cpu, &trie, &slices(&prompts), &options(trie.len(), 0.0)).unwrap();
            for device in on_device(model.clone(), normalisation, Precision::Bf16) {
                assert!(device.bytes() < full * 6 / 10);
                let found = generate_on(&device, &trie, &slices(&prompts), &options(trie.len(), 0.0)).unwrap();
                assert_same(&found, &wanted, 0.05, family);
            }
        }
    }
}

#[test]
fn misuse_is_an_error() {
    let mut broken = model("qwen3", true);
    let trie = TitleTrie::new(&titles()).unwrap();
    let mut lacking = FrozenLlm::from(broken.clone());
    lacking.weights = Weights::default().into();
    let lacking = DeviceDecoder::new(&lacking, Normalisation::Vocabulary, Precision::F32, &device());
    assert!(lacking.err().unwrap().to_string().contains("model.embed_tokens.weight"));
    let mut other = FrozenLlm::from(broken.clone());
    other.words_nd = vec![0.0; WIDTH];
    let other = DeviceDecoder::new(&other, Normalisation::Vocabulary, Precision::F32, &device());
    assert!(other.err().unwrap().to_string().contains("shape mismatch"));
    broken.weights_mut().tensors_mut()[1].data[0] = f32::NAN;
    for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
        for device in on_device(broken.clone(), normalisation, Precision::F32) {
            let found = generate_on(&device, &trie, &[&[1]], &options(3, 0.0));
            assert!(found.unwrap_err().to_string().contains("gives a score of NaN"));
            let error = generate_on(&device, &trie, &[&[41]], &options(3, 0.0)).unwrap_err();
            assert!(error.to_string().contains("prompt 0 has token 41"));
        }
    }
}
