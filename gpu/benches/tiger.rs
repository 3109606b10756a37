//! The Sluice side of benches/tiger.sh: TIGER's initial weights and batches for its peers, training steps, beam search.
//! A work folder holds `data.json` (codes of all items, train sequences and search histories as item numbers) and, per
//! kind of feed-forward block, the model folders `start` and `trained`. Prints one line of JSON per call.
//!
//! `cargo bench -p sluice-gpu --bench tiger -- prepare <work> <grid|t5>`
//! `cargo bench -p sluice-gpu --bench tiger -- train <work> <grid|t5> <ragged|dense> <steps> <dropout>`
//! `cargo bench -p sluice-gpu --bench tiger -- search <work> <grid|t5> <users>`
//!
//! DEVICE (`cpu`) says where to train, PRECISION (`f32`) in what.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use serde::Deserialize;
use serde_json::json;
use sluice_gpu::beam::{BeamOptions, beam_search};
use sluice_gpu::device::device;
use sluice_gpu::ops::Precision;
use sluice_gpu::random::Key;
use sluice_gpu::samples::{Ragged, Samples};
use sluice_gpu::tiger::{FeedForward, Inputs, Tiger, TigerConfig};
use sluice_gpu::train::{TrainEvent, TrainOptions, TrainingSet, train_model};
use sluice_gpu::trie::Trie;

const LEVELS: usize = 4;
const MAX_ITEMS: usize = 20;
const BATCH: usize = 256;
const SEED: u64 = 42;
/// Batches the peers are told.
const BATCHES: usize = 200;
/// Steps before the clock starts.
const WARM_UP: usize = 2;

#[derive(Deserialize)]
struct Data {
    codes: Vec<[u16; LEVELS]>,
    sequences: Vec<Vec<usize>>,
    histories: Vec<Vec<usize>>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["prepare", work, kind] => prepare(Path::new(work), kind),
        ["train", work, kind, lengths, steps, dropout] => {
            let lengths = *lengths == "dense";
            train(
                Path::new(work),
                kind,
                lengths,
                steps.parse().unwrap(),
                dropout.parse().unwrap(),
            );
        }
        ["search", work, kind, users] => search(Path::new(work), kind, users.parse().unwrap()),
        other => println!("nothing to time for {other:?}"),
    }
}

fn prepare(work: &Path, kind: &str) {
    let data = load(work);
    let start = work.join(kind).join("start");
    std::fs::create_dir_all(&start).unwrap();
    let seed = Key::new(SEED).child(0).bits(0); // as train_model starts
    Tiger::init(&config(kind, 0.0), seed).unwrap().save(&start).unwrap();
    let batches = |dense| {
        let (samples, rows) = samples(&data, dense);
        let batches = samples.batches(BATCH, 0, Key::new(SEED).child(1).child(1));
        let known = batches.into_iter().take(BATCHES);
        known
            .map(|batch| batch.iter().map(|&i| rows[i as usize]).collect())
            .collect::<Vec<Vec<u32>>>()
    };
    let samples = samples(&data, false).0.len();
    println!(
        "{}",
        json!({ "samples": samples, "ragged": batches(false), "dense": batches(true) })
    );
}

/// Seconds of the steps after the warm-up, and the losses of all steps.
fn train(work: &Path, kind: &str, dense: bool, steps: usize, dropout: f32) {
    let samples = samples(&load(work), dense).0;
    let options = TrainOptions {
        batch_size: BATCH,
        max_steps: Some(WARM_UP + steps),
        eval_every: usize::MAX,
        precision: match std::env::var("PRECISION").as_deref() {
            Ok("bf16") => Precision::Bf16,
            _ => Precision::F32,
        },
        seed: SEED,
        ..TrainOptions::default()
    };
    let place = device(&std::env::var("DEVICE").unwrap_or_else(|_| "cpu".into())).unwrap();
    let (mut losses, mut start, mut seconds) = (vec![], Instant::now(), 0.0);
    let on_event = &mut |event: TrainEvent| {
        if let TrainEvent::Step { step, loss, .. } = event {
            losses.push(loss);
            seconds = start.elapsed().as_secs_f64();
            if step == WARM_UP {
                start = Instant::now();
            }
        }
        ControlFlow::Continue(())
    };
    let trained = train_model::<Tiger>(&config(kind, dropout), &options, &place, &samples, None, None, on_event);
    let model = trained.unwrap().model;
    if !dense && dropout > 0.0 {
        model.save(&work.join(kind).join("trained")).unwrap();
    }
    println!("{}", json!({ "seconds": seconds, "losses": losses }));
}

/// Beams of the first users, best first, as semantic ids with scores.
fn search(work: &Path, kind: &str, users: usize) {
    let data = load(work);
    let model = Tiger::load(&work.join(kind).join("trained")).unwrap();
    let trie = Trie::new(data.codes.as_flattened(), LEVELS).unwrap();
    let histories: Vec<Vec<u16>> = data.histories[..users].iter().map(|h| data.flat(h)).collect();
    let histories: Vec<&[u16]> = histories.iter().map(Vec::as_slice).collect();
    let run =
        |histories: &[&[u16]]| beam_search(&model, &trie, &Inputs::new(histories), &BeamOptions::default()).unwrap();
    run(&histories[..users.min(64)]);
    let start = Instant::now();
    let found = run(&histories);
    let seconds = start.elapsed().as_secs_f64();
    let beams: Vec<Vec<_>> = found
        .iter()
        .map(|beam| beam.iter().map(|h| (trie.semantic_id(h.leaf), h.score)).collect())
        .collect();
    println!("{}", json!({ "seconds": seconds, "beams": beams }));
}

fn load(work: &Path) -> Data {
    serde_json::from_str(&std::fs::read_to_string(work.join("data.json")).unwrap()).unwrap()
}

fn config(kind: &str, dropout: f32) -> TigerConfig {
    TigerConfig {
        codebook_sizes: vec![256; LEVELS],
        dropout,
        feed_forward: if kind == "t5" {
            FeedForward::T5
        } else {
            FeedForward::Grid
        },
        max_items: MAX_ITEMS,
        ..TigerConfig::default()
    }
}

/// All contiguous subsequences, or those of full length, and their numbers among all.
fn samples(data: &Data, dense: bool) -> (Samples, Vec<u32>) {
    let (mut histories, mut targets, mut rows, mut row) = (Ragged::default(), vec![], vec![], 0);
    for sequence in &data.sequences {
        for end in 1..sequence.len() {
            for start in 0..end {
                let history = &sequence[start.max(end.saturating_sub(MAX_ITEMS))..end];
                if !dense || history.len() == MAX_ITEMS {
                    histories.push(&data.flat(history));
                    targets.extend(data.codes[sequence[end]]);
                    rows.push(row);
                }
                row += 1;
            }
        }
    }
    (Samples::new(LEVELS, histories, targets, vec![]).unwrap(), rows)
}

impl Data {
    fn flat(&self, items: &[usize]) -> Vec<u16> {
        items.iter().flat_map(|&item| self.codes[item]).collect()
    }
}
