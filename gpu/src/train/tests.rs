//! Training learns, repeats itself, and says what is wrong.

use super::peers::Team;
use super::*;
use crate::beam::Hypothesis;
use crate::samples::{Ragged, Samples};
use crate::sasrec::{Sasrec, SasrecConfig, Sequences};
use crate::tiger::{ItemVectors, Tiger, TigerConfig, Validation, expected_recall_ndcg};
use crate::trie::Trie;
use std::sync::Arc;

/// Twelve items in a ring: the next item is the last one plus 1.
pub(super) fn ring(n: usize) -> (TigerConfig, Samples, Trie) {
    let id = |item: u64| [(item / 4) as u16, (item % 4) as u16];
    let (mut histories, mut targets) = (Ragged::default(), vec![]);
    for s in 0..n as u64 {
        let key = Key::new(s);
        let (first, length) = (key.below(0, 12), 1 + key.below(1, 5));
        let codes: Vec<u16> = (first..first + length).flat_map(|i| id(i % 12)).collect();
        histories.push(&codes);
        targets.extend(id((first + length) % 12));
    }
    let config = TigerConfig {
        codebook_sizes: vec![3, 4],
        layers: 1,
        d_model: 16,
        heads: 2,
        d_kv: 8,
        d_ff: 32,
        dropout: 0.1,
        feed_forward: crate::tiger::FeedForward::T5,
        ..TigerConfig::default()
    };
    let ids: Vec<u16> = (0..12).flat_map(id).collect();
    let samples = Samples::new(2, histories, targets, vec![]).unwrap();
    (config, samples, Trie::new(&ids, 2).unwrap())
}

pub(super) fn options() -> TrainOptions {
    TrainOptions {
        lr: 1e-2,
        batch_size: 32,
        max_steps: Some(400),
        eval_every: 50,
        patience: 3,
        clip_norm: Some(1.0),
        warmup_steps: 5,
        ..TrainOptions::default()
    }
}

/// Nobody to share steps with.
fn nobody() -> Team<'static> {
    Team::new(&Alone, 1)
}

pub(super) fn go_on(_: TrainEvent) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn learns_a_ring_and_stops_early() {
    let (config, samples, trie) = ring(500);
    let valid = Validation {
        samples: &samples,
        trie: &trie,
        users: Some(100),
        beam_width: 5,
    };
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            train_model::<Tiger>(
                &config,
                &options(),
                &Device::Cpu,
                &samples,
                Some(valid),
                None,
                &mut go_on,
            )
        })
    };
    let trained = run(1).unwrap();
    let last = trained.curve.last().unwrap();
    assert!(last.train_loss < 0.9 && last.valid.unwrap().1 > 0.95, "{last:?}");
    assert_eq!(last.valid.unwrap().0, 1.0);
    let best = trained.curve.iter().find(|p| p.step == trained.best_step).unwrap();
    assert!(
        trained
            .curve
            .iter()
            .all(|p| p.valid.unwrap().0 <= best.valid.unwrap().0)
    );
    assert_eq!(run(3).unwrap().model, trained.model);
}

#[test]
fn interruption_divergence_and_bad_options_are_errors() {
    let (config, samples, _) = ring(100);
    let train = |options: &TrainOptions, on_event: &mut OnEvent| {
        train_model::<Tiger>(&config, options, &Device::Cpu, &samples, None, None, on_event)
    };
    let mut steps = 0;
    let result = train(&options(), &mut |event| {
        if let TrainEvent::Step { step, .. } = event {
            steps = step;
        }
        if steps == 7 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    assert!(matches!(result, Err(Error::Interrupted)));
    let wild = TrainOptions {
        lr: 1e30,
        warmup_steps: 0,
        ..options()
    };
    let text = train(&wild, &mut go_on).unwrap_err().to_string();
    assert!(text.contains("at step "), "{text}");
    let endless = TrainOptions {
        max_steps: None,
        ..options()
    };
    let text = train(&endless, &mut go_on).unwrap_err().to_string();
    assert!(text.starts_with("invalid `max_steps`"));
    let short = TrainOptions {
        max_steps: None,
        max_epochs: Some(2),
        ..options()
    };
    let trained = train(&short, &mut go_on).unwrap();
    assert_eq!((trained.best_step, trained.stopped), (8, Stopped::Finished));
    assert_eq!(trained.curve[0].epoch, 2);
}

#[test]
fn shared_ids_give_expected_values() {
    let trie = Trie::new(&[0, 0, 0, 1, 2], 1).unwrap();
    let ranked = [1, 0, 2].map(|leaf| Hypothesis { leaf, score: 0.0 });
    let (recall, ndcg) = expected_recall_ndcg(&ranked, &trie, Some(0));
    assert_eq!(recall, 1.0);
    let want = (1.0 / 3f64.log2() + 1.0 / 4f64.log2() + 1.0 / 5f64.log2()) / 3.0;
    assert!((ndcg - want).abs() < 1e-12);
    let many = Trie::new(&[0, 0, 0, 0, 1, 1, 1, 1], 1).unwrap();
    assert_eq!(expected_recall_ndcg(&ranked[..2], &many, Some(0)).0, 0.25);
    assert_eq!(expected_recall_ndcg(&ranked[..2], &many, None), (0.0, 0.0));
}

/// The stock engine draws the same masks, so both engines train alike for a while.
#[test]
fn engines_train_alike() {
    let (mut config, samples, _) = ring(200);
    config.dropout = 0.2;
    let model = Tiger::init(&config, 1).unwrap();
    let mut fast = Engine::new(model.clone(), &options(), &Device::Cpu).unwrap();
    let mut slow = Engine::stock(model, &options(), &Device::Cpu).unwrap();
    for step in 1..6 {
        let rows: Vec<u32> = (0..33).map(|i| (i * step) % 200).collect();
        let key = Key::new(step.into());
        let batches = [(&rows[..20], key.child(0)), (&rows[20..], key.child(1))];
        let mut losses = [&mut fast, &mut slow].map(|engine| {
            let loss = engine.step(&samples, &batches, nobody(), 1e-2, Some(1.0));
            loss.unwrap()
        });
        losses.sort_by(f32::total_cmp);
        assert!(losses[1] / losses[0] < 1.0 + 1e-4, "{losses:?}");
    }
}

/// Loss and gradients of one step over these batches.
fn gradients<M: Model>(config: &M::Config, samples: &M::Samples, batches: &[&[u32]]) -> (f32, Vec<Vec<f32>>) {
    let mut engine = Engine::new(M::init(config, 1).unwrap(), &options(), &Device::Cpu).unwrap();
    let batches: Vec<(&[u32], Key)> = batches.iter().map(|rows| (*rows, Key::new(3))).collect();
    let loss = engine.step(samples, &batches, nobody(), 1e-2, None).unwrap();
    match engine {
        Engine::Fast { workspace, .. } => (loss, workspace.gradients().to_vec()),
        Engine::Stock { .. } => unreachable!("the CPU has kernels"),
    }
}

/// Norm of the difference, and of what is wanted.
fn distance(got: &[f32], want: &[f32]) -> (f64, f64) {
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    (off, norm(&mut want.iter().copied()))
}

/// Without dropout, a step over batches is one over all of their samples, however they are cut.
fn accumulates<M: Model>(config: &M::Config, samples: &M::Samples) {
    let rows: Vec<u32> = (0..48).collect();
    let (loss, whole) = gradients::<M>(config, samples, &[&rows]);
    let even: Vec<&[u32]> = rows.chunks(12).collect();
    let short_end: Vec<&[u32]> = rows.chunks(20).collect();
    let single: Vec<&[u32]> = rows.chunks(1).collect();
    for cut in [even, short_end, single] {
        let (cut_loss, cut_gradients) = gradients::<M>(config, samples, &cut);
        assert!((cut_loss / loss - 1.0).abs() < 1e-6, "{cut_loss}, not {loss}");
        for (i, (got, want)) in cut_gradients.iter().zip(&whole).enumerate() {
            let (off, size) = distance(got, want);
            assert!(
                off <= 1e-6 * size,
                "weight {i} in {} batches: {off} of {size}",
                cut.len()
            );
        }
    }
}

#[test]
fn accumulated_batches_are_one_batch() {
    let (mut config, samples, _) = ring(60);
    config.dropout = 0.0;
    accumulates::<Tiger>(&config, &samples);
    // Windows differ in length, and the loss is a mean over positions.
    let windows: Vec<Vec<u32>> = (0..48)
        .map(|i| (0..2 + i % 9).map(|j| (3 * i + j) % 31).collect())
        .collect();
    let config = SasrecConfig {
        items: 31,
        d_model: 16,
        heads: 2,
        dropout: 0.0,
        max_items: 12,
        ..SasrecConfig::default()
    };
    accumulates::<Sasrec>(&config, &Sequences::new(windows.iter().map(Vec::as_slice), 12));
}

/// The same samples make the same steps, at the end of an epoch too.
#[test]
fn batches_of_a_step_follow_the_order_of_whole_batches() {
    let (mut config, samples, _) = ring(110);
    config.dropout = 0.0;
    let losses = |batch_size, accumulate| {
        let options = TrainOptions {
            batch_size,
            accumulate,
            max_steps: None,
            max_epochs: Some(2),
            lr: 1e-3,
            ..options()
        };
        let mut losses = vec![];
        let on_event = &mut |event: TrainEvent| {
            if let TrainEvent::Step { loss, total, .. } = event {
                losses.push(loss);
                assert_eq!(total, 8);
            }
            ControlFlow::Continue(())
        };
        train_model::<Tiger>(&config, &options, &Device::Cpu, &samples, None, None, on_event).unwrap();
        losses
    };
    let whole = losses(32, 1);
    assert_eq!(whole.len(), 8);
    for (batch_size, accumulate) in [(8, 4), (16, 2), (4, 8)] {
        for (got, want) in losses(batch_size, accumulate).iter().zip(&whole) {
            assert!((got / want - 1.0).abs() < 1e-4, "{got}, not {want}");
        }
    }
}

/// Loss and gradients on the stock engine, and whether its weights are f32 after a step.
fn stock_gradients<M: Model>(config: &M::Config, samples: &M::Samples, precision: Precision) -> (f32, Vec<Vec<f32>>) {
    let options = TrainOptions { precision, ..options() };
    let model = M::init(config, 1).unwrap();
    let mut engine = Engine::stock(model, &options, &Device::Cpu).unwrap();
    let (rows, key) = ((0..40).collect::<Vec<u32>>(), Key::new(3));
    let Engine::Stock { model, stock, .. } = &mut engine else {
        unreachable!("this is the stock engine");
    };
    let loss = M::loss(&mut **stock, model.config(), samples, &rows, key).unwrap();
    let gradients = stock.backward(&loss).unwrap().into_iter();
    let numbers = |g: Option<candle_core::Tensor>| g.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let gradients = gradients.map(numbers).collect();
    assert_eq!(
        engine
            .step(samples, &[(&rows, key)], nobody(), 1e-2, Some(1.0))
            .unwrap(),
        stock_value(&loss)
    );
    let Engine::Stock { stock, .. } = &engine else {
        unreachable!("this is the stock engine");
    };
    assert!(stock.variables().iter().all(|v| v.dtype() == candle_core::DType::F32));
    // Not just f32 in name: they have more bits than bf16.
    assert!(
        stock
            .weights()
            .unwrap()
            .tensors()
            .iter()
            .any(|t| t.data.iter().any(|x| x.to_bits() & 0xffff != 0))
    );
    (stock_value(&loss), gradients)
}

fn stock_value(loss: &candle_core::Tensor) -> f32 {
    assert_eq!(loss.dtype(), candle_core::DType::F32);
    loss.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0]
}

/// bf16 has 8 bits, so a product is off by some 2^-8; directions of gradients stay.
fn bf16_is_near<M: Model>(config: &M::Config, samples: &M::Samples) {
    let (loss, gradients) = stock_gradients::<M>(config, samples, Precision::F32);
    let (rounded, others) = stock_gradients::<M>(config, samples, Precision::Bf16);
    assert_ne!(loss, rounded, "nothing was rounded");
    assert!((rounded / loss - 1.0).abs() < 0.01, "{rounded}, not {loss}");
    let (mut all_off, mut all) = (0.0, 0.0);
    for (i, (got, want)) in others.iter().zip(&gradients).enumerate() {
        let (off, size) = distance(got, want);
        assert!(off <= 0.1 * size, "weight {i}: {off} of {size}");
        all_off += off * off;
        all += size * size;
    }
    assert!(all_off <= 0.03 * 0.03 * all, "{all_off} of {all}, squared");
}

#[test]
fn mixed_precision_is_near_and_keeps_weights() {
    let (config, samples, trie) = ring(60);
    bf16_is_near::<Tiger>(&config, &samples);
    let config = TigerConfig {
        feed_forward: crate::tiger::FeedForward::Grid,
        ..config
    };
    bf16_is_near::<Tiger>(&config, &samples);
    let numbers: Vec<f32> = (0..36).map(|i| Key::new(9).normal(i) as f32).collect();
    let vectors = ItemVectors::new(&trie, &numbers, 3).unwrap();
    let samples = samples.with_vectors(Some(Arc::new(vectors)));
    let config = TigerConfig {
        output_heads: crate::tiger::OutputHeads::Plain,
        vector_dim: 3,
        ..config
    };
    bf16_is_near::<Tiger>(&config, &samples);
    let windows: Vec<Vec<u32>> = (0..48)
        .map(|i| (0..2 + i % 9).map(|j| (3 * i + j) % 31).collect())
        .collect();
    for loss in [
        crate::sasrec::Loss::Softmax,
        crate::sasrec::Loss::SampledSoftmax,
        crate::sasrec::Loss::BinaryCrossEntropy,
    ] {
        let config = SasrecConfig {
            items: 31,
            d_model: 16,
            heads: 2,
            max_items: 12,
            negatives: 20,
            loss,
            ..SasrecConfig::default()
        };
        bf16_is_near::<Sasrec>(&config, &Sequences::new(windows.iter().map(Vec::as_slice), 12));
    }
}

#[test]
fn mixed_precision_is_refused_on_the_cpu() {
    let (config, samples, _) = ring(60);
    let options = TrainOptions {
        precision: Precision::Bf16,
        ..options()
    };
    let refused = train_model::<Tiger>(&config, &options, &Device::Cpu, &samples, None, None, &mut go_on);
    let text = refused.unwrap_err().to_string();
    assert!(
        text.starts_with("invalid `precision`: bf16 is for GPUs") && text.ends_with("set it to f32"),
        "{text}"
    );
}
