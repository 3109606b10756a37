//! Training learns, repeats itself, and says what is wrong.

use super::*;
use crate::ops::Stock;
use crate::optim::StockAdam;
use crate::samples::Ragged;

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
            train_tiger(
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
    assert!(last.train_loss < 0.9 && last.valid_ndcg_5.unwrap() > 0.95, "{last:?}");
    assert_eq!(last.valid_recall_5, Some(1.0));
    let best = trained.curve.iter().find(|p| p.step == trained.best_step).unwrap();
    assert!(trained.curve.iter().all(|p| p.valid_recall_5 <= best.valid_recall_5));
    assert_eq!(run(3).unwrap().model, trained.model);
}

#[test]
fn interruption_divergence_and_bad_options_are_errors() {
    let (config, samples, _) = ring(100);
    let train = |options: &TrainOptions, on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>| {
        train_tiger(&config, options, &Device::Cpu, &samples, None, None, on_event)
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
    let (config, samples, _) = ring(200);
    let model = Tiger::init(&config, 1).unwrap();
    let mut fast = Engine::new(model.clone(), &options(), &Device::Cpu).unwrap();
    let mut slow = Engine::Stock {
        config: config.clone(),
        stock: Box::new(Stock::new(model.weights(), &Device::Cpu).unwrap()),
        adam: StockAdam::new(options().optimizer),
    };
    for step in 1..6 {
        let rows: Vec<u32> = (0..33).map(|i| (i * step) % 200).collect();
        let (histories, targets) = pack(&config, &samples, &rows).unwrap();
        let mut losses = [&mut fast, &mut slow].map(|engine| {
            let mut noise = Noise::new(0.2, Key::new(step.into()));
            engine.step(&histories, &targets, &mut noise, 1e-2, Some(1.0)).unwrap()
        });
        losses.sort_by(f32::total_cmp);
        assert!(losses[1] / losses[0] < 1.0 + 1e-4, "{losses:?}");
    }
}
