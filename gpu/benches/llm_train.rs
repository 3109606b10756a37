//! The Sluice side of benches/llm_train.sh: the batches its peers are told, and LoRA steps on a checkpoint.
//! A work folder holds `prompts.json` (tokens and loss_from of every prompt) and the checkpoint `base`. Prints one line of
//! JSON per call.
//!
//! `cargo bench -p sluice-gpu --bench llm_train -- prepare <work> <batch>`
//! `cargo bench -p sluice-gpu --bench llm_train -- train <work> <batch> <steps> [recompute]`
//!
//! DEVICE (`cpu`) says where to train, PRECISION (`f32`) in what.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use sluice_gpu::device::device;
use sluice_gpu::llm::added::Added;
use sluice_gpu::llm::lora::Lora;
use sluice_gpu::llm::memory::estimate;
use sluice_gpu::llm::{Base, Llm, LlmConfig, Prompts, Tuned, TunedConfig, Tuning};
use sluice_gpu::ops::Precision;
use sluice_gpu::optim::AdamConfig;
use sluice_gpu::random::Key;
use sluice_gpu::samples::Ragged;
use sluice_gpu::train::{TrainEvent, TrainOptions, TrainingSet, train_model};

const SEED: u64 = 42;
/// Batches the peers are told.
const BATCHES: usize = 200;
/// Steps before the clock starts.
const WARM_UP: usize = 2;
const RANK: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["prepare", work, batch] => prepare(Path::new(work), batch.parse().unwrap()),
        ["train", work, batch, steps, how @ ..] => {
            let (batch, steps) = (batch.parse().unwrap(), steps.parse().unwrap());
            train(Path::new(work), batch, steps, how == ["recompute"]);
        }
        other => println!("nothing to time for {other:?}"),
    }
}

fn prepare(work: &Path, batch: usize) {
    let prompts = prompts(work);
    let batches = prompts.batches(batch, 0, Key::new(SEED).child(1).child(1));
    let known: Vec<Vec<u32>> = batches.into_iter().take(BATCHES).collect();
    let (config, _) = Llm::open(&work.join("base")).unwrap();
    // The adapters' start, for the peers.
    let lora = lora(&config);
    let seed = Key::new(SEED).child(0).bits(0); // as train_model starts
    let start = sluice_gpu::weights::Weights::init(&lora.declarations(&config), seed);
    lora.save(&start, "base", None, &work.join("adapter")).unwrap();
    println!("{}", json!({ "batches": known }));
}

fn train(work: &Path, batch: usize, steps: usize, recompute: bool) {
    let (config, base) = Llm::open(&work.join("base")).unwrap();
    let lora = lora(&config);
    let config = TunedConfig {
        config,
        base: Base::Given(Arc::new(base), "base".into()),
        tuning: Tuning::Lora(lora),
        added: Added::default(),
        recompute,
    };
    let options = TrainOptions {
        optimizer: AdamConfig {
            decoupled: true,
            ..AdamConfig::default()
        },
        batch_size: batch,
        max_steps: Some(WARM_UP + steps),
        eval_every: WARM_UP + steps,
        precision: match std::env::var("PRECISION").as_deref() {
            Ok("bf16") => Precision::Bf16,
            _ => Precision::F32,
        },
        seed: SEED,
        ..TrainOptions::default()
    };
    let place = device(&std::env::var("DEVICE").unwrap_or_else(|_| "cpu".into())).unwrap();
    let (mut start, mut losses) = (Instant::now(), vec![]);
    let mut ended = start;
    let mut on_event = |event: TrainEvent| {
        if let TrainEvent::Step { step, loss, .. } = event {
            losses.push(loss);
            if step == WARM_UP {
                start = Instant::now();
            }
            ended = Instant::now();
        }
        ControlFlow::Continue(())
    };
    let prompts = prompts(work);
    train_model::<Tuned>(&config, &options, &place, &prompts, None, None, &mut on_event).unwrap();
    let seconds = (ended - start).as_secs_f64() / steps as f64;
    let estimated = estimate(&config, &options, &prompts).total();
    println!(
        "{}",
        json!({
            "ms": 1e3 * seconds,
            "samples_per_second": batch as f64 / seconds,
            "losses": losses,
            "estimated_gib": estimated as f64 / f64::from(1 << 30),
        })
    );
}

fn lora(config: &LlmConfig) -> Lora {
    Lora {
        rank: RANK,
        alpha: RANK as f32,
        dropout: 0.0,
        target_modules: Lora::modules(config),
    }
}

fn prompts(work: &Path) -> Prompts {
    let text = std::fs::read(work.join("prompts.json")).unwrap();
    let all: Vec<(Vec<u32>, u32)> = serde_json::from_slice(&text).unwrap();
    let (mut tokens, mut from) = (Ragged::default(), vec![]);
    for (prompt, start) in &all {
        tokens.push(prompt);
        from.push(*start);
    }
    Prompts::new(tokens, from).unwrap()
}
