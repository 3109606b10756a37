//! Laws of what is kept as it is: numbers of 16 bits, adapters beside their maps and words behind their tables give
//! what a merged model in f32 gives.

use super::*;
use crate::frozen::Numbers;
use crate::llm::added::{Added, Vectors};
use crate::llm::lora::Lora;
use crate::llm::{Generated, Llm, SearchOptions, Shape, TitleTrie, generate};
use crate::random::Key;
use crate::weights::Weights;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::Path;
use std::sync::Arc;

const VOCABULARY: usize = 1100;
const NORMALISATIONS: [Normalisation; 2] = [Normalisation::Vocabulary, Normalisation::Children];

fn draw(seed: u64, n: usize) -> Vec<f32> {
    (0..n as u64).map(|i| (Key::new(seed).normal(i) * 0.1) as f32).collect()
}

/// All tensors but norms drawn anew: those that start at 0 count too.
fn redraw(weights: &mut Weights, seed: u64) {
    for (at, tensor) in weights.tensors_mut().iter_mut().enumerate() {
        if !tensor.name.ends_with("norm.weight") {
            tensor.data = draw(seed + at as u64, tensor.data.len());
        }
    }
}

/// A Qwen3 with one table, or a LLaMA with biases and a head of its own. The head has more than one block of columns,
/// and a product more than one depth.
fn model(tied: bool) -> Llm {
    let config = LlmConfig::of_shape(&Shape {
        vocabulary: VOCABULARY,
        d_model: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        key_dim: 10,
        d_ff: 300,
        max_tokens: 64,
    })
    .unwrap();
    let config = match tied {
        true => config,
        false => {
            let mut json = config.json().clone();
            json["model_type"] = "llama".into();
            json["attention_bias"] = true.into();
            json["mlp_bias"] = true.into();
            json["tie_word_embeddings"] = false.into();
            LlmConfig::from_json(json, Path::new("config.json")).unwrap()
        }
    };
    let mut model = Llm::init(&config, 3);
    redraw(model.weights_mut(), 100);
    model
}

/// A checkpoint with numbers of a type.
fn written(model: &Llm, dtype: Dtype) -> tempfile::TempDir {
    let bytes = |x: &f32| match dtype {
        Dtype::F16 => f16::from_f32(*x).to_le_bytes().to_vec(),
        Dtype::BF16 => bf16::from_f32(*x).to_le_bytes().to_vec(),
        _ => x.to_le_bytes().to_vec(),
    };
    let tensors: Vec<(&str, Vec<usize>, Vec<u8>)> = model
        .weights()
        .tensors()
        .iter()
        .map(|t| {
            let bytes = t.data.iter().flat_map(bytes).collect();
            (t.name.as_str(), t.shape.clone(), bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (*name, TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    let temp = tempfile::tempdir().unwrap();
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(temp.path().join("model.safetensors"), file).unwrap();
    std::fs::write(temp.path().join("config.json"), model.config().json().to_string()).unwrap();
    temp
}

/// An adapter of some maps, drawn.
fn adapter(config: &LlmConfig, modules: &[&str]) -> (Lora, Weights) {
    let lora = Lora {
        rank: 3,
        alpha: 5.0,
        dropout: 0.1,
        target_modules: modules.iter().map(|name| name.to_string()).collect(),
    };
    let mut weights = Weights::init(&lora.declarations(config), 1);
    redraw(&mut weights, 200);
    (lora, weights)
}

fn prompts() -> Vec<Vec<u32>> {
    let prompt = |i: u64| -> Vec<u32> {
        let key = Key::new(12).child(i);
        let token = |at: u64| 1 + key.below(1 + at, VOCABULARY as u64 - 1) as u32;
        (0..1 + key.below(0, 30)).map(token).collect()
    };
    (0..15).map(prompt).collect()
}

/// Few different tokens, so that prefixes are shared; token 0 ends a text.
fn titles() -> Vec<Vec<u32>> {
    let title = |i: u64| -> Vec<u32> {
        let key = Key::new(11).child(i);
        let token = |at: u64| 1 + key.below(1 + at, 6) as u32;
        (0..1 + key.below(0, 5)).map(token).chain([0]).collect()
    };
    (0..30).map(title).collect()
}

fn slices(lists: &[Vec<u32>]) -> Vec<&[u32]> {
    lists.iter().map(Vec::as_slice).collect()
}

/// What a beam finds, or all titles where it is wider than there are.
fn found(decoder: &Decoder, titles: &[Vec<u32>], prompts: &[Vec<u32>], width: usize) -> Generated {
    let trie = TitleTrie::new(titles).unwrap();
    let options = SearchOptions {
        width,
        ..SearchOptions::default()
    };
    generate(decoder, &trie, &slices(prompts), &options).unwrap()
}

#[test]
fn numbers_of_16_bits_give_what_they_give_as_f32_in_half_the_memory() {
    let (prompts, titles) = (prompts(), titles());
    for (tied, dtype) in [
        (true, Dtype::BF16),
        (false, Dtype::BF16),
        (true, Dtype::F16),
        (false, Dtype::F16),
    ] {
        let temp = written(&model(tied), dtype);
        let (kept, widened) = (FrozenLlm::open(temp.path()).unwrap(), Llm::load(temp.path()).unwrap());
        assert_eq!(kept.weights().digest(), widened.weights().digest());
        let table = kept.weights().numbers("model.embed_tokens.weight").unwrap();
        assert!(!matches!(table, Numbers::F32(_)));
        for normalisation in NORMALISATIONS {
            let kept = Decoder::new(kept.clone(), normalisation).unwrap();
            let widened = Decoder::new(widened.clone(), normalisation).unwrap();
            for width in [5, 1000] {
                let got = found(&kept, &titles, &prompts, width);
                assert_eq!(got, found(&widened, &titles, &prompts, width), "{tied} {dtype:?}");
            }
            let (got, want) = (kept.next(&slices(&prompts)), widened.next(&slices(&prompts)));
            assert_eq!(got.unwrap(), want.unwrap());
            let (half, whole) = (kept.bytes(), widened.bytes());
            assert!(half * 10 <= whole * 6, "{half} of {whole} bytes");
        }
    }
}

/// A whole model in f32 is packed as it was: what is mapped gives what is in memory.
#[test]
fn a_mapped_model_gives_what_it_gives_in_memory() {
    let (prompts, titles, model) = (prompts(), titles(), model(false));
    let temp = written(&model, Dtype::F32);
    let mapped = Decoder::new(FrozenLlm::open(temp.path()).unwrap(), Normalisation::Vocabulary).unwrap();
    let owned = Decoder::new(model, Normalisation::Vocabulary).unwrap();
    assert_eq!(
        found(&mapped, &titles, &prompts, 5),
        found(&owned, &titles, &prompts, 5)
    );
    assert_eq!(mapped.bytes(), owned.bytes());
}

/// An adapter, new words and items as soft tokens: beside a base of 16 bits, and merged into it.
#[test]
fn what_stays_apart_gives_what_it_gives_merged() {
    let all = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "down_proj",
        "up_proj",
    ];
    let some = ["v_proj", "k_proj", "gate_proj"];
    for (tied, dtype, modules, words) in [
        (true, Dtype::BF16, &all[..], 0),
        (false, Dtype::F16, &some[..], 0),
        (true, Dtype::BF16, &some[..], 4),
        (false, Dtype::F32, &all[..], 4),
    ] {
        let temp = written(&model(tied), dtype);
        let (mut apart, mut merged) = (FrozenLlm::open(temp.path()).unwrap(), Llm::load(temp.path()).unwrap());
        let config = merged.config().clone();
        let (lora, adapters) = adapter(&config, modules);
        lora.merge(&adapters, merged.weights_mut()).unwrap();
        let (mut prompts, mut titles) = (prompts(), titles());
        if words > 0 {
            let added = Added {
                words,
                vectors: Some(Arc::new(Vectors::new(draw(7, 5 * 3), 3).unwrap())),
            };
            let mut rows = Weights::init(&added.declarations(&config), 2);
            redraw(&mut rows, 300);
            added.save(&rows, temp.path()).unwrap();
            let v = VOCABULARY as u32;
            // Words are v .. v + 4, and items begin behind them.
            prompts.push(vec![3, v + 1, v + 4, 7, v + 8, v + 3]);
            titles.extend([vec![v + 2, 3, 0], vec![v + 2, v, 0], vec![4, v + 3, 0]]);
        }
        let next = |model: &FrozenLlm| {
            let decoder = Decoder::new(model.clone(), Normalisation::Vocabulary).unwrap();
            decoder.next(&[&[1, 2, 3]]).unwrap()[0][5]
        };
        let before = next(&apart);
        apart.adapt(lora, adapters).unwrap();
        assert!((next(&apart) - before).abs() > 1e-3);
        apart.add_tokens(temp.path()).unwrap();
        Added::merge(temp.path(), &mut merged).unwrap();
        assert_eq!(apart.config().vocabulary(), VOCABULARY + words);
        assert_eq!(
            (apart.words().len(), apart.read_only()),
            (24 * words, merged.read_only())
        );
        for normalisation in NORMALISATIONS {
            let apart = Decoder::new(apart.clone(), normalisation).unwrap();
            let merged = Decoder::new(merged.clone(), normalisation).unwrap();
            assert_eq!(apart.readable(), merged.readable());
            for width in [5, 1000] {
                let (got, want) = (
                    found(&apart, &titles, &prompts, width),
                    found(&merged, &titles, &prompts, width),
                );
                for (got, want) in got.lists.iter().zip(&want.lists) {
                    assert_eq!(got.len(), want.len());
                    for (got, want) in got.iter().zip(want) {
                        let close = (got.score - want.score).abs() < 1e-5;
                        assert!(
                            got.title == want.title && close,
                            "{tied} {dtype:?}: {got:?}, not {want:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn with_an_adapter_neither_other_rows_nor_threads_matter() {
    let (prompts, titles) = (prompts(), titles());
    let temp = written(&model(true), Dtype::BF16);
    let mut model = FrozenLlm::open(temp.path()).unwrap();
    let (lora, adapters) = adapter(model.config(), &["q_proj", "v_proj", "down_proj"]);
    model.adapt(lora, adapters).unwrap();
    let decoder = Decoder::new(model, Normalisation::Vocabulary).unwrap();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| found(&decoder, &titles, &prompts, 5))
    };
    let all = run(1);
    assert!(all == run(2) && all == run(7));
    for (prompt, list) in prompts.iter().zip(&all.lists) {
        let alone = found(&decoder, &titles, std::slice::from_ref(prompt), 5);
        assert_eq!(alone.lists[0], *list);
    }
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let temp = written(&model(true), Dtype::BF16);
    let mut model = FrozenLlm::open(temp.path()).unwrap();
    let (lora, mut adapters) = adapter(model.config(), &["q_proj"]);
    let strange = Lora {
        target_modules: vec!["k_proj".into()],
        ..lora.clone()
    };
    assert!(model.adapt(strange, adapters.clone()).is_err());
    adapters.tensors_mut()[0].shape = vec![3, 25];
    assert!(model.adapt(lora, adapters).is_err());
    assert!(model.adapters().is_none());
}
