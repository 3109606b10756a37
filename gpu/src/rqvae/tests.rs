//! Tests of trained quantizers: PyTorch's numbers, independence of threads, learning, restarts, collapse, files.

use std::ops::ControlFlow;

use super::levels::Rule;
use super::step::{Memory, step};
use super::*;
use crate::draws;
use crate::optim::{AdagradConfig, Adam, AdamConfig, OptimizerConfig, Schedule};

/// Rows around a few centres.
fn rows(n: usize, dim: usize) -> Vec<f32> {
    let centre = |row: usize, at: usize| 2.0 * draws::normal(1, (row % 12) as u64, at as u64);
    let value = |i: usize| (centre(i / dim, i % dim) + 0.5 * draws::normal(2, 0, i as u64)) as f32;
    (0..n * dim).map(value).collect()
}

fn config(layers: &[usize]) -> RqVaeConfig {
    RqVaeConfig {
        dim: 10,
        layers: layers.to_vec(),
        codebook_sizes: vec![8, 6],
    }
}

fn options() -> TrainOptions {
    TrainOptions {
        epochs: 10,
        batch_size: 100,
        optimizer: OptimizerConfig::Adam(AdamConfig {
            decoupled: true,
            ..AdamConfig::default()
        }),
        lr: 3e-3,
        schedule: Schedule::Constant,
        warmup_steps: 0,
        beta: 0.25,
        estimator: Estimator::StraightThrough,
        sinkhorn: None,
        codebooks: Codebooks::Gradient,
        start: Start::FirstBatch,
        restart_after: Some(12),
        standardize: true,
        eval_every: 5,
        collapse: None,
        seed: 42,
    }
}

fn run(layers: &[usize], options: &TrainOptions) -> Result<Trained, RqVaeError> {
    train(&rows(430, 10), &config(layers), options, &mut |_| {
        ControlFlow::Continue(())
    })
}

#[test]
fn agrees_with_pytorch() {
    let golden = include_str!("../../../tests/golden/quantizers.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 5);
    for case in cases {
        let floats = |value: &serde_json::Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
        let config: RqVaeConfig = serde_json::from_value(case["config"].clone()).unwrap();
        let mut weights = Weights::init(&config.declarations(), 1);
        for (tensor, given) in weights
            .tensors_mut()
            .iter_mut()
            .zip(case["weights"].as_array().unwrap())
        {
            assert_eq!(tensor.name, given["name"].as_str().unwrap());
            tensor.data = floats(&given["data"]);
        }
        let rule = Rule {
            estimator: serde_json::from_value(case["estimator"].clone()).unwrap(),
            beta: case["beta"].as_f64().unwrap() as f32,
            sinkhorn: None,
        };
        let noise: Vec<Vec<f32>> = case["noise"].as_array().unwrap().iter().map(floats).collect();
        let mut memory = Memory::default();
        let noise = |level: usize, at: usize| noise[level][at];
        let x = floats(&case["x"]);
        let outcome = step(&config, &rule, &weights, &x, true, &noise, &mut memory).unwrap();
        let name = &case["name"];
        for (got, key) in [(outcome.loss, "loss"), (outcome.reconstruction, "reconstruction")] {
            let want = case[key].as_f64().unwrap();
            assert!((got - want).abs() < 1e-4, "{name}: {key} {got} {want}");
        }
        let adam = AdamConfig {
            weight_decay: case["weight_decay"].as_f64().unwrap() as f32,
            decoupled: true,
            ..AdamConfig::default()
        };
        let gradients = memory.gradients.clone();
        let lr = case["lr"].as_f64().unwrap();
        Adam::new(adam).step(&mut weights, &gradients, lr, 1.0).unwrap();
        for (at, tensor) in weights.tensors().iter().enumerate() {
            let wanted = [floats(&case["gradients"][at]), floats(&case["after"][at])];
            for (got, want) in [&gradients[at], &tensor.data].into_iter().zip(wanted) {
                assert_eq!(got.len(), want.len());
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() < 1e-4, "{name}: {} {got} {want}", tensor.name);
                }
            }
        }
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let variants = [
        options(),
        TrainOptions {
            estimator: Estimator::GumbelSoftmax { temperature: 0.5 },
            ..options()
        },
        TrainOptions {
            estimator: Estimator::Rotation,
            sinkhorn: Some(Sinkhorn {
                epsilon: 0.05,
                iterations: 10,
            }),
            codebooks: Codebooks::RunningMean { decay: 0.9 },
            ..options()
        },
    ];
    for options in variants {
        for layers in [&[16, 4][..], &[]] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| run(layers, &options).unwrap())
            };
            let one = run(1);
            assert_eq!(one, run(2));
            assert_eq!(one, run(5));
            assert_eq!(one.codes_nc, one.model.encode(&rows(430, 10)).unwrap());
        }
    }
}

#[test]
fn every_variant_learns() {
    let gumbel = Estimator::GumbelSoftmax { temperature: 0.3 };
    for estimator in [Estimator::StraightThrough, Estimator::Rotation, gumbel] {
        let learns = TrainOptions {
            epochs: 60,
            eval_every: 60,
            estimator,
            ..options()
        };
        let curve = run(&[16, 6], &learns).unwrap().curve;
        let (first, last) = (&curve[0], &curve[curve.len() - 1]);
        assert!(
            last.reconstruction < 0.4 * first.reconstruction,
            "{estimator:?}: {curve:?}"
        );
        assert!(
            last.levels.iter().all(|level| level.perplexity > 3.0),
            "{estimator:?}: {curve:?}"
        );
    }
}

#[test]
fn rvq_comes_close_to_residual_kmeans_from_random_numbers() {
    let running = Codebooks::RunningMean { decay: 0.9 };
    for (codebooks, most) in [(Codebooks::Gradient, 1.35), (running, 1.2)] {
        let random = TrainOptions {
            epochs: 100,
            lr: 2e-2,
            start: Start::Random,
            codebooks,
            ..options()
        };
        let found = run(&[], &random).unwrap();
        let kmeans = TrainOptions {
            epochs: 1,
            lr: 1e-9,
            start: Start::Table,
            ..options()
        };
        let kmeans = run(&[], &kmeans).unwrap();
        let (found, kmeans) = (found.levels[1].mse, kmeans.levels[1].mse);
        assert!(found < most * kmeans, "{codebooks:?}: {found} {kmeans}");
    }
}

#[test]
fn unused_entries_start_again() {
    // all entries but the nearest are far away and stay unused, unless they are moved
    let dead = |restart_after| {
        let options = TrainOptions {
            lr: 1e-6,
            start: Start::Random,
            standardize: false,
            restart_after,
            ..options()
        };
        let far: Vec<f32> = rows(430, 10).iter().map(|x| x + 50.0).collect();
        let found = train(&far, &config(&[]), &options, &mut |_| ControlFlow::Continue(())).unwrap();
        found.curve.last().unwrap().levels[0].dead
    };
    assert!(dead(None) >= 5);
    assert!(dead(Some(5)) <= 1);
}

#[test]
fn a_collapse_is_named() {
    let options = TrainOptions {
        epochs: 40,
        start: Start::Random,
        restart_after: None,
        lr: 1e-6,
        collapse: Some(Collapse {
            share: 0.9,
            evaluations: 3,
        }),
        ..options()
    };
    let error = run(&[16, 4], &options).unwrap_err();
    let RqVaeError::Collapsed { evaluations, step, .. } = error else {
        panic!("{error}");
    };
    assert_eq!((evaluations, step), (3, 15 * 5));
    let message = error.to_string();
    assert!(message.contains("has collapsed: its perplexity is"), "{message}");
}

#[test]
fn a_model_comes_back_from_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let found = run(&[16, 4], &options()).unwrap();
    found.model.save(folder.path()).unwrap();
    let back = RqVae::load(folder.path()).unwrap();
    assert_eq!(back, found.model);
    assert_eq!(back.encode(&rows(430, 10)).unwrap(), found.codes_nc);
}

#[test]
fn user_mistakes_and_divergence_are_named() {
    let say = |options: &TrainOptions| run(&[16, 4], options).unwrap_err().to_string();
    let gumbel = TrainOptions {
        estimator: Estimator::GumbelSoftmax { temperature: 0.0 },
        ..options()
    };
    assert_eq!(say(&gumbel), "invalid `temperature`: must be positive");
    let none = TrainOptions {
        batch_size: 0,
        ..options()
    };
    assert_eq!(say(&none), "invalid `batch_size`: must be at least 1");
    let wild = TrainOptions {
        lr: 1e20,
        optimizer: OptimizerConfig::Adagrad(AdagradConfig::default()),
        ..options()
    };
    assert!(say(&wild).contains("lower the learning rate"), "{}", say(&wild));
    let mut x = rows(430, 10);
    x[35] = f32::NAN;
    let error = train(&x, &config(&[4]), &options(), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert_eq!(error.to_string(), "row 3, column 5 is NaN; every value must be finite");
    let error = train(&rows(430, 10), &config(&[4]), &options(), &mut |_| {
        ControlFlow::Break(())
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "interrupted");
}
