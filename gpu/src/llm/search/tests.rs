//! Laws of generation: exact scores by a slow twin, independence of batch, threads and order, bad input.

use super::*;
use crate::encoder::Forward;
use crate::llm::{Llm, LlmConfig, Normalisation, Shape};
use crate::prenorm::PrenormEncoder;
use crate::random::Key;
use std::path::Path;

fn shape() -> Shape {
    Shape {
        vocabulary: 41,
        d_model: 24,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        key_dim: 10,
        d_ff: 37,
        max_tokens: 64,
    }
}

/// A model whose scores differ; Qwen3 with one table, or LLaMA with a head of its own.
fn model(tied: bool) -> Llm {
    let config = LlmConfig::of_shape(&shape()).unwrap();
    let config = match tied {
        true => config,
        false => {
            let mut json = config.json().clone();
            json["model_type"] = "llama".into();
            json["tie_word_embeddings"] = false.into();
            LlmConfig::from_json(json, Path::new("config.json")).unwrap()
        }
    };
    let mut model = Llm::init(&config, 3);
    for tensor in model.weights_mut().tensors_mut() {
        if !tensor.name.ends_with("norm.weight") {
            tensor.data.iter_mut().for_each(|x| *x *= 15.0);
        }
    }
    model
}

/// Lists of tokens from 1 on.
fn lists(count: u64, longest: u64, vocabulary: u64, seed: u64) -> Vec<Vec<u32>> {
    let key = Key::new(seed);
    let list = |i: u64| {
        let length = 1 + key.child(1).below(i, longest);
        (0..length)
            .map(|at| 1 + key.child(2 + i).below(at, vocabulary) as u32)
            .collect()
    };
    (0..count).map(list).collect()
}

/// Few different tokens, so that prefixes are shared; token 0 ends a text.
fn titles(count: u64) -> Vec<Vec<u32>> {
    let mut titles = lists(count, 6, 5, 11);
    // Two long ones that part late: chains of forced tokens in the middle and at the end.
    titles.push(vec![7, 8, 9, 10, 11, 12, 13]);
    titles.push(vec![7, 8, 9, 10, 14, 12, 13, 15]);
    titles.iter_mut().for_each(|title| title.push(0));
    titles
}

fn prompts(count: u64) -> Vec<Vec<u32>> {
    lists(count, 40, 40, 12)
}

fn slices(lists: &[Vec<u32>]) -> Vec<&[u32]> {
    lists.iter().map(Vec::as_slice).collect()
}

fn exactly(trie: &TitleTrie) -> SearchOptions {
    SearchOptions {
        width: trie.len(),
        ..SearchOptions::default()
    }
}

/// Scores of all titles after a prompt: every title is read from the start of its prompt, alone.
fn slowly(model: &Llm, trie: &TitleTrie, prompt: &[u32], normalisation: Normalisation) -> Vec<f64> {
    let config = model.config();
    let get = &mut |name: &str| Ok::<_, crate::error::Error>(model.weights().get(&config.name(name))?.data.clone());
    let encoder = PrenormEncoder::of_tensors(config.decoder().clone(), get).unwrap();
    let head = &model.weights().get(&config.head()).unwrap().data;
    let d = config.width();
    let score = |title: u32| -> f64 {
        let text = trie.text(title);
        let tokens = [prompt, &text[..text.len() - 1]].concat();
        let states = encoder.forward(&tokens, &[0, tokens.len()]).unwrap();
        let (mut total, mut node) = (0.0, 0);
        for (at, token) in text.iter().enumerate() {
            let state = &states[(prompt.len() - 1 + at) * d..][..d];
            let logit = |token: u32| -> f64 {
                let row = &head[token as usize * d..][..d];
                row.iter().zip(state).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let children = trie.children(node);
            let over: Vec<u32> = match normalisation {
                Normalisation::Vocabulary => (0..config.vocabulary() as u32).collect(),
                Normalisation::Children => trie.tokens(children.clone()).to_vec(),
            };
            total += logit(*token) - over.into_iter().map(|token| logit(token).exp()).sum::<f64>().ln();
            node = children.into_iter().find(|node| trie.token(*node) == *token).unwrap();
        }
        total
    };
    (0..trie.len() as u32).map(score).collect()
}

#[test]
fn full_width_gives_the_exact_score_of_every_title() {
    let trie = TitleTrie::new(&titles(60)).unwrap();
    for (tied, normalisation) in [
        (true, Normalisation::Vocabulary),
        (false, Normalisation::Vocabulary),
        (true, Normalisation::Children),
        (false, Normalisation::Children),
    ] {
        let model = model(tied);
        let decoder = Decoder::new(model.clone(), normalisation).unwrap();
        let prompts = prompts(5);
        let found = generate(&decoder, &trie, &slices(&prompts), &exactly(&trie)).unwrap();
        for (found, prompt) in found.lists.iter().zip(&prompts) {
            let exact = slowly(&model, &trie, prompt, normalisation);
            let mut order: Vec<u32> = (0..trie.len() as u32).collect();
            order.sort_by(|a, b| exact[*b as usize].total_cmp(&exact[*a as usize]));
            assert_eq!(found.len(), trie.len());
            for (found, title) in found.iter().zip(order) {
                assert_eq!(found.title, title, "{tied} {normalisation:?}");
                assert!((found.score - exact[title as usize]).abs() < 1e-4, "{found:?}");
            }
            let total: f64 = found.iter().map(|found| found.score.exp()).sum();
            match normalisation {
                Normalisation::Vocabulary => assert!(total < 1.0),
                Normalisation::Children => assert!((total - 1.0).abs() < 1e-5),
            }
        }
    }
}

#[test]
fn batch_and_threads_do_not_matter() {
    let trie = TitleTrie::new(&titles(60)).unwrap();
    let prompts = prompts(70);
    for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
        let decoder = Decoder::new(model(true), normalisation).unwrap();
        for width in [1, 7, trie.len()] {
            let options = SearchOptions {
                width,
                ..SearchOptions::default()
            };
            let run = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| generate(&decoder, &trie, &slices(&prompts), &options).unwrap())
            };
            let all = run(1);
            assert!(all == run(2) && all == run(7));
            for (prompt, list) in prompts.iter().zip(&all.lists).take(9) {
                let alone = generate(&decoder, &trie, &[prompt], &options).unwrap();
                assert_eq!(alone.lists[0], *list);
            }
        }
    }
}

#[test]
fn a_beam_finds_titles_with_their_exact_scores() {
    let trie = TitleTrie::new(&titles(60)).unwrap();
    let decoder = Decoder::new(model(true), Normalisation::Vocabulary).unwrap();
    let prompts = prompts(30);
    let exact = generate(&decoder, &trie, &slices(&prompts), &exactly(&trie)).unwrap();
    let mut first = 0;
    for width in [1, 2, 5, 20] {
        let options = SearchOptions {
            width,
            ..SearchOptions::default()
        };
        let beams = generate(&decoder, &trie, &slices(&prompts), &options).unwrap();
        for (beam, exact) in beams.lists.iter().zip(&exact.lists) {
            assert!(beam.len() <= width && !beam.is_empty());
            assert!(beam.is_sorted_by(|a, b| a.score >= b.score));
            for found in beam {
                // To the bit: what is in the beam beside it does not matter.
                assert!(exact.contains(found), "{width} {found:?}");
            }
            first += usize::from(width == 20 && beam[0] == exact[0]);
        }
    }
    // A beam may lose the best title; one as wide as a third of the catalogue seldom does.
    assert!(first >= 27, "{first}");
}

#[test]
fn the_order_of_the_titles_does_not_matter() {
    let titles = titles(40);
    let decoder = Decoder::new(model(false), Normalisation::Vocabulary).unwrap();
    let prompts = prompts(6);
    let run = |titles: &[Vec<u32>]| -> Vec<Vec<(Vec<u32>, f64)>> {
        let trie = TitleTrie::new(titles).unwrap();
        let found = generate(&decoder, &trie, &slices(&prompts), &SearchOptions::default()).unwrap();
        let text = |found: &Found| (trie.text(found.title).to_vec(), found.score);
        found.lists.iter().map(|list| list.iter().map(text).collect()).collect()
    };
    let reversed: Vec<Vec<u32>> = titles.iter().rev().cloned().collect();
    assert_eq!(run(&titles), run(&reversed));
}

#[test]
fn a_length_penalty_divides_and_forced_tokens_cost_nothing() {
    let trie = TitleTrie::new(&titles(30)).unwrap();
    let prompts = prompts(3);
    let decoder = Decoder::new(model(true), Normalisation::Vocabulary).unwrap();
    let plain = generate(&decoder, &trie, &slices(&prompts), &exactly(&trie)).unwrap();
    let options = SearchOptions {
        length_penalty: 1.0,
        ..exactly(&trie)
    };
    let divided = generate(&decoder, &trie, &slices(&prompts), &options).unwrap();
    for (plain, divided) in plain.lists.iter().zip(&divided.lists) {
        assert!(divided.is_sorted_by(|a, b| a.score >= b.score));
        for found in plain {
            let other = divided.iter().find(|other| other.title == found.title).unwrap();
            let length = trie.text(found.title).len() as f64;
            assert!((other.score * length - found.score).abs() < 1e-9);
        }
    }
    // One title: certain, and the model reads no token of it.
    let one = TitleTrie::new(&[vec![4, 5, 6, 0]]).unwrap();
    let decoder = Decoder::new(model(true), Normalisation::Children).unwrap();
    let found = generate(&decoder, &one, &slices(&prompts), &SearchOptions::default()).unwrap();
    assert_eq!((found.lists[0][0].score, found.tokens), (0.0, 0));
    assert_eq!(found.lists.len(), 3);
}

#[test]
fn misuse_is_an_error() {
    let decoder = Decoder::new(model(true), Normalisation::Vocabulary).unwrap();
    let trie = TitleTrie::new(&titles(5)).unwrap();
    let error = |prompts: &[&[u32]], trie: &TitleTrie, width: usize| {
        let options = SearchOptions {
            width,
            ..SearchOptions::default()
        };
        generate(&decoder, trie, prompts, &options).unwrap_err().to_string()
    };
    assert!(error(&[&[1]], &trie, 0).contains("`width`: must be at least 1"));
    assert!(error(&[&[1], &[]], &trie, 1).contains("prompt 1 has no token"));
    assert!(error(&[&[41]], &trie, 1).contains("prompt 0 has token 41, the model's vocabulary has 41"));
    assert!(error(&[&[1; 60]], &trie, 1).contains("the model has 64 positions"));
    let other = TitleTrie::new(&[vec![99, 0]]).unwrap();
    assert!(error(&[&[1]], &other, 1).contains("a title has token 99"));
    let mut broken = model(true);
    broken.weights_mut().tensors_mut()[1].data[0] = f32::NAN;
    let decoder = Decoder::new(broken, Normalisation::Vocabulary).unwrap();
    let found = generate(&decoder, &trie, &[&[1]], &SearchOptions::default());
    assert!(found.unwrap_err().to_string().contains("gives a score of NaN"));
}
