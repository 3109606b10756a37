//! The Sluice side of benches/llm_generate.sh: beam search for titles with a language model. A work folder holds `data.json`
//! (prompts and titles as tokens) and the checkpoint `model`. Prints one line of JSON.
//!
//! `cargo bench -p sluice-gpu --bench llm_generate -- <work> <width> <length penalty> <users>`
//!
//! DEVICE names a device for candle's tensors, in PRECISION (`f32`); without it the kernels of the CPU generate.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};
use sluice_gpu::device::device;
use sluice_gpu::llm::{
    Decoder, DeviceDecoder, Found, FrozenLlm, Generated, Normalisation, SearchOptions, TitleTrie, generate, generate_on,
};
use sluice_gpu::ops::Precision;

/// Users before the clock starts.
const WARM_UP: usize = 4;

#[derive(Deserialize)]
struct Data {
    prompts: Vec<Vec<u32>>,
    titles: Vec<Vec<u32>>,
}

enum Model {
    Packed(Box<Decoder>),
    Tensors(Box<DeviceDecoder>),
}

impl Model {
    fn generate(&self, trie: &TitleTrie, prompts: &[&[u32]], options: &SearchOptions) -> Generated {
        match self {
            Model::Packed(decoder) => generate(decoder, trie, prompts, options).unwrap(),
            Model::Tensors(decoder) => generate_on(decoder, trie, prompts, options).unwrap(),
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [work, width, penalty, users] => {
            let options = SearchOptions {
                width: width.parse().unwrap(),
                length_penalty: penalty.parse().unwrap(),
            };
            search(Path::new(work), &options, users.parse().unwrap());
        }
        other => println!("nothing to time for {other:?}"),
    }
}

fn search(work: &Path, options: &SearchOptions, users: usize) {
    let data: Data = serde_json::from_str(&std::fs::read_to_string(work.join("data.json")).unwrap()).unwrap();
    let trie = TitleTrie::new(&data.titles).unwrap();
    let prompts: Vec<&[u32]> = data.prompts.iter().cycle().take(users).map(Vec::as_slice).collect();
    let model = FrozenLlm::open(&work.join("model")).unwrap();
    let place = std::env::var("DEVICE").ok().map(|name| device(&name).unwrap());
    let precision = match std::env::var("PRECISION").as_deref() {
        Ok("bf16") => Precision::Bf16,
        _ => Precision::F32,
    };
    for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
        let model = match &place {
            None => Model::Packed(Box::new(Decoder::new(model.clone(), normalisation).unwrap())),
            Some(place) => {
                let decoder = DeviceDecoder::new(&model, normalisation, precision, place).unwrap();
                Model::Tensors(Box::new(decoder))
            }
        };
        model.generate(&trie, &prompts[..users.min(WARM_UP)], options);
        let start = Instant::now();
        let found = model.generate(&trie, &prompts, options);
        let seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        model.generate(&trie, &prompts[..1], options);
        let alone = start.elapsed().as_secs_f64();
        let title = |found: &Found| json!({ "title": trie.text(found.title), "score": found.score });
        let lists = found.lists.iter().take(data.prompts.len());
        let beams: Vec<Vec<Value>> = lists.map(|list| list.iter().map(title).collect()).collect();
        println!(
            "{}",
            json!({ "normalisation": normalisation, "seconds": seconds, "alone": alone, "tokens": found.tokens, "beams": beams })
        );
    }
}
