//! SASRec is as large as the paper says, reads no future, draws what it should, learns, and stops where it should.

use super::*;
use crate::ops::{Stock, Tape, Workspace};
use crate::samples::Ragged;
use crate::train::{Checkpoint, CurvePoint, Model, Place, TrainEvent, TrainOptions, Trained, TrainingSet, train_model};
use candle_core::Device;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

fn config(loss: Loss) -> SasrecConfig {
    SasrecConfig {
        items: 12,
        d_model: 16,
        heads: 2,
        dropout: 0.1,
        max_items: 5,
        loss,
        negatives: 7,
        ..SasrecConfig::default()
    }
}

/// Walks along a ring of twelve items: the next item is the last one plus 1.
fn ring(n: u64) -> Vec<Vec<u32>> {
    let walk = |user: u64| {
        let key = Key::new(user);
        let (first, length) = (key.below(0, 12), 1 + key.below(1, 12));
        (first..first + length).map(|item| (item % 12) as u32).collect()
    };
    (0..n).map(walk).collect()
}

fn slices(histories: &[Vec<u32>]) -> impl Iterator<Item = &[u32]> {
    histories.iter().map(Vec::as_slice)
}

#[test]
fn table_3() {
    let shapes = [
        (2, 64, 2),
        (4, 128, 4),
        (8, 128, 4),
        (8, 256, 8),
        (8, 512, 8),
        (24, 512, 8),
    ];
    let wanted = [98_304, 786_432, 1_572_864, 6_291_456, 25_165_824, 75_497_472];
    for ((layers, d_model, heads), wanted) in shapes.into_iter().zip(wanted) {
        let config = SasrecConfig {
            items: 1000,
            layers,
            d_model,
            heads,
            ..SasrecConfig::default()
        };
        config.validate().unwrap();
        let count = config.parameters_by_part();
        let (items, positions, norms) = (1000 * d_model, 50 * d_model, (2 * layers + 1) * d_model);
        assert_eq!((count.linear, count.norms), (wanted, norms));
        assert_eq!(count.total(), wanted + norms + items + positions);
    }
}

#[test]
fn a_bad_field_is_named() {
    let fail = |config: SasrecConfig, field: &str| {
        let text = config.validate().unwrap_err().to_string();
        assert!(text.starts_with(&format!("invalid `{field}`")), "{text}");
    };
    let good = config(Loss::Softmax);
    good.validate().unwrap();
    fail(SasrecConfig::default(), "items");
    fail(
        SasrecConfig {
            heads: 3,
            ..good.clone()
        },
        "heads",
    );
    fail(
        SasrecConfig {
            dropout: 1.0,
            ..good.clone()
        },
        "dropout",
    );
    fail(SasrecConfig { max_items: 0, ..good }, "max_items");
}

#[test]
fn every_position_is_a_target_once() {
    for max_items in [1, 3, 5, 100] {
        let histories: Vec<Vec<u32>> = (0..14).map(|n| (0..n).map(|i| 100 * n + i).collect()).collect();
        let sequences = Sequences::new(slices(&histories), max_items);
        let config = SasrecConfig {
            max_items,
            ..config(Loss::Softmax)
        };
        let rows: Vec<u32> = (0..sequences.count() as u32).collect();
        let (windows, targets) = sequences.pack(&config, &rows).unwrap();
        let pairs: Vec<(u32, u32)> = windows.items_t.iter().copied().zip(targets.iter().copied()).collect();
        let wanted: Vec<(u32, u32)> = histories
            .iter()
            .flat_map(|h| h.windows(2).map(|pair| (pair[0], pair[1])))
            .collect();
        assert_eq!(pairs, wanted);
        assert_eq!(sequences.targets(), pairs.len());
        for ends in windows.offsets.windows(2) {
            assert!((1..=max_items).contains(&(ends[1] - ends[0])));
            assert_eq!(windows.positions_t[ends[1] - 1] as usize, max_items - 1);
        }
    }
}

#[test]
fn histories_are_cut_and_positions_count_from_the_end() {
    let windows = config(Loss::Softmax)
        .windows([&[1u32, 2, 3, 4, 5, 6, 7][..], &[8, 9]])
        .unwrap();
    assert_eq!(windows.items_t[..], [3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(windows.positions_t[..], [0, 1, 2, 3, 4, 3, 4]);
    assert_eq!(windows.offsets[..], [0, 5, 7]);
    assert!(config(Loss::Softmax).windows([&[][..]]).is_err());
}

#[test]
fn negatives_are_what_the_loss_says() {
    let histories = ring(40);
    let sequences = Sequences::new(slices(&histories), 5);
    let rows: Vec<u32> = (0..sequences.count() as u32).collect();
    let draw = |loss| {
        let config = config(loss);
        let (windows, targets) = sequences.pack(&config, &rows).unwrap();
        let drawn = config.negatives(&windows, &targets, Key::new(1));
        assert_eq!(drawn, config.negatives(&windows, &targets, Key::new(1)));
        (windows, targets, drawn)
    };
    assert!(draw(Loss::Softmax).2.is_empty());
    let shared = draw(Loss::SampledSoftmax).2;
    assert!(shared.len() == 7 && shared.iter().all(|item| *item < 12));
    let (windows, targets, drawn) = draw(Loss::BinaryCrossEntropy);
    assert_eq!(drawn.len(), targets.len());
    for ends in windows.offsets.windows(2) {
        let here = ends[0]..ends[1];
        let seen = [&windows.items_t[here.clone()], &targets[here.clone()]].concat();
        assert!(drawn[here].iter().all(|item| *item < 12 && !seen.contains(item)));
    }
    // A window that holds the whole catalogue leaves nothing to draw, and is no endless loop.
    let tiny = SasrecConfig {
        items: 2,
        ..config(Loss::BinaryCrossEntropy)
    };
    let windows = tiny.windows([&[0u32, 1][..]]).unwrap();
    assert_eq!(tiny.negatives(&windows, &[1, 0], Key::new(1)).len(), 2);
}

#[test]
fn later_items_change_no_earlier_state() {
    let config = config(Loss::Softmax);
    let model = Sasrec::init(&config, 1).unwrap();
    let state = |histories: &[&[u32]], positions: &[u32]| {
        let windows = Windows {
            positions_t: positions.into(),
            ..config.windows(histories.iter().copied()).unwrap()
        };
        let mut workspace = Workspace::default();
        let mut tape = Tape::new(model.weights(), &mut workspace);
        let x = hidden(&mut tape, &config, &windows, &mut Noise::off()).unwrap();
        tape.values(&x).unwrap()
    };
    let (one, other) = (state(&[&[1, 2, 3]], &[0, 1, 2]), state(&[&[1, 2, 9]], &[0, 1, 2]));
    assert_eq!(one[..32], other[..32]);
    assert_ne!(one[32..], other[32..]);
    // Neighbours in the batch change nothing either.
    assert_eq!(one, state(&[&[7, 8], &[1, 2, 3]], &[3, 4, 0, 1, 2])[32..]);
}

#[test]
fn a_history_without_items_has_no_preference() {
    let model = Sasrec::init(&config(Loss::Softmax), 1).unwrap();
    let mut workspace = Workspace::default();
    let two = model.queries(&[&[], &[3, 4]], &mut workspace).unwrap();
    assert_eq!(two[..16], [0.0; 16]);
    assert_eq!(two[16..], model.queries(&[&[3, 4]], &mut workspace).unwrap());
    assert_eq!(model.queries(&[&[]], &mut workspace).unwrap(), [0.0; 16]);
    assert!(model.queries(&[&[12]], &mut workspace).is_err());
}

#[test]
fn a_model_survives_its_folder() {
    let model = Sasrec::init(&config(Loss::SampledSoftmax), 3).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    assert_eq!(Sasrec::load(folder.path()).unwrap(), model);
}

fn options() -> TrainOptions {
    TrainOptions {
        lr: 1e-2,
        batch_size: 16,
        max_steps: Some(120),
        eval_every: 20,
        patience: 0,
        ..TrainOptions::default()
    }
}

fn train(
    loss: Loss,
    options: &TrainOptions,
    states: Option<&Path>,
    on_event: &mut crate::train::OnEvent,
) -> crate::error::Result<Trained<Sasrec>> {
    let histories = ring(200);
    let sequences = Sequences::new(slices(&histories), 5);
    let mut valid = Ragged::default();
    (0..30).for_each(|i| valid.push(&[i % 12, (i + 1) % 12]));
    let targets: Vec<u32> = (0..30).map(|i| (i + 2) % 12).collect();
    let validation = Validation {
        histories: &valid,
        targets: &targets,
        users: Some(25),
        select: Select::Ndcg10,
    };
    let every = Duration::MAX;
    let checkpoint = states.map(|folder| Checkpoint { folder, every });
    train_model(
        &config(loss),
        options,
        &Device::Cpu,
        &sequences,
        Some(validation),
        checkpoint,
        on_event,
    )
}

#[test]
fn every_loss_learns_a_ring_with_any_number_of_threads() {
    for loss in [Loss::Softmax, Loss::BinaryCrossEntropy, Loss::SampledSoftmax] {
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| train(loss, &options(), None, &mut |_| ControlFlow::Continue(())))
                .unwrap()
        };
        let trained = run(1);
        let (ndcg, recall) = trained.curve.last().unwrap().valid.unwrap();
        assert!(ndcg > 0.9 && recall > 0.95, "{loss:?}: {ndcg} {recall}");
        assert_eq!(run(3).model, trained.model, "{loss:?}");
    }
}

#[test]
fn an_interrupted_training_ends_the_same() {
    let plain = |curve: &[CurvePoint]| {
        curve
            .iter()
            .map(|p| CurvePoint { seconds: 0.0, ..*p })
            .collect::<Vec<_>>()
    };
    let whole = train(Loss::BinaryCrossEntropy, &options(), None, &mut |_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    for stop in [33, 40, 200] {
        let cut = train(
            Loss::BinaryCrossEntropy,
            &options(),
            Some(folder.path()),
            &mut |event| match event {
                TrainEvent::Step { step, .. } if step == stop => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            },
        );
        match cut {
            Ok(trained) => {
                assert_eq!(
                    (trained.model, plain(&trained.curve)),
                    (whole.model.clone(), plain(&whole.curve))
                );
            }
            Err(error) => assert!(stop < 200, "{error}"),
        }
    }
}

/// Both engines draw the same masks and negatives, and rank alike.
#[test]
fn engines_agree() {
    let histories = ring(50);
    let sequences = Sequences::new(slices(&histories), 5);
    let rows: Vec<u32> = (0..sequences.count() as u32).step_by(3).collect();
    for loss in [Loss::Softmax, Loss::BinaryCrossEntropy, Loss::SampledSoftmax] {
        let config = config(loss);
        let model = Sasrec::init(&config, 1).unwrap();
        let (mut stock, mut workspace) = (Stock::new(model.weights(), &Device::Cpu).unwrap(), Workspace::default());
        let mut tape = Tape::new(model.weights(), &mut workspace);
        let fast = Sasrec::loss(&mut tape, &config, &sequences, &rows, Key::new(5)).unwrap();
        let slow = Sasrec::loss(&mut stock, &config, &sequences, &rows, Key::new(5)).unwrap();
        let (fast, slow) = (tape.values(&fast).unwrap()[0], stock.values(&slow).unwrap()[0]);
        assert!((fast - slow).abs() < 1e-5 * fast, "{loss:?}: {fast} {slow}");
        drop(tape);
        let mut valid = Ragged::default();
        histories.iter().for_each(|history| valid.push(history));
        let targets: Vec<u32> = (0..50).map(|i| i % 12).collect();
        let validation = Validation {
            histories: &valid,
            targets: &targets,
            users: None,
            select: Select::Recall5,
        };
        let evaluate = |place| Sasrec::evaluate(place, validation, Key::new(1), &mut |_, _| Ok(())).unwrap();
        let fast = evaluate(Place::Cpu(&model, &mut workspace));
        let slow = evaluate(Place::Device(&config, &mut stock));
        assert!(
            (fast.0 - slow.0).abs() < 0.03 && (fast.1 - slow.1).abs() < 0.03,
            "{fast:?} {slow:?}"
        );
    }
}
