//! Next tokens, greedy and beam search against transformers (`reference/llm_generation_reference.py`).

use serde::Deserialize;
use sluice_gpu::llm::{Decoder, Found, Llm, Normalisation, SearchOptions, TitleTrie, generate};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Golden {
    titles: Vec<Vec<u32>>,
    prompts: Vec<Vec<u32>>,
    cases: HashMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    log_probabilities: Vec<Vec<f64>>,
    greedy: Vec<Vec<u32>>,
    beams: Vec<Beams>,
}

#[derive(Deserialize)]
struct Beams {
    width: usize,
    length_penalty: f64,
    lists: Vec<Vec<Beam>>,
}

#[derive(Deserialize)]
struct Beam {
    title: Vec<u32>,
    score: f64,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llm_generation")
}

#[test]
fn qwen3_with_one_table() {
    check("qwen3");
}

#[test]
fn qwen2_with_biases() {
    check("qwen2");
}

#[test]
fn llama_with_a_head_of_its_own() {
    check("llama");
}

fn check(name: &str) {
    let text = std::fs::read_to_string(folder().join("llm_generation.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let case = &golden.cases[name];
    let decoder = Decoder::new(Llm::load(&folder().join(name)).unwrap(), Normalisation::Vocabulary).unwrap();
    let prompts: Vec<&[u32]> = golden.prompts.iter().map(Vec::as_slice).collect();
    for (got, want) in decoder.next(&prompts).unwrap().iter().zip(&case.log_probabilities) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-4, "{name}: {got} is not {want}");
        }
    }
    let trie = TitleTrie::new(&golden.titles).unwrap();
    let search = |width: usize, length_penalty: f64| {
        let options = SearchOptions { width, length_penalty };
        generate(&decoder, &trie, &prompts, &options).unwrap().lists
    };
    for (got, want) in search(1, 0.0).iter().zip(&case.greedy) {
        assert_eq!(trie.text(got[0].title), want, "{name}, greedy");
    }
    assert_eq!(case.beams.len(), 4);
    for beams in &case.beams {
        for (got, want) in search(beams.width, beams.length_penalty).iter().zip(&beams.lists) {
            let texts =
                |list: &[Found]| -> Vec<Vec<u32>> { list.iter().map(|f| trie.text(f.title).to_vec()).collect() };
            let wanted: Vec<Vec<u32>> = want.iter().map(|beam| beam.title.clone()).collect();
            assert_eq!(texts(got), wanted, "{name}, width {}", beams.width);
            for (got, want) in got.iter().zip(want) {
                assert!(
                    (got.score - want.score).abs() < 1e-4,
                    "{name}: {got:?} is not {}",
                    want.score
                );
            }
        }
    }
}
