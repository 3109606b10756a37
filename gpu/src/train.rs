//! Training of TIGER: batches, optimizer steps, early stopping on the validation users.

mod checkpoint;
mod engine;

use crate::beam::Hypothesis;
use crate::error::{Error, Result};
use crate::optim::{AdamConfig, Schedule};
use crate::random::Key;
use crate::samples::Samples;
use crate::tiger::{Noise, Tiger, TigerConfig};
use crate::trie::Trie;
use candle_core::Device;
use engine::{Engine, pack};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

/// Rank cut-off of model selection.
const K: usize = 5;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// The optimizer's numbers; its weight decay is in here.
    pub optimizer: AdamConfig,
    /// Peak learning rate.
    pub lr: f64,
    /// Shape of the learning rate after the warm-up.
    pub schedule: Schedule,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Samples per step.
    pub batch_size: usize,
    /// Stop after this many steps.
    pub max_steps: Option<usize>,
    /// Stop after this many passes over the samples.
    pub max_epochs: Option<usize>,
    /// Steps between evaluations; a point of the training curve is one evaluation.
    pub eval_every: usize,
    /// Stop after this many evaluations without a better one; 0 means never.
    pub patience: usize,
    /// Largest global norm of the gradients.
    pub clip_norm: Option<f32>,
    /// Sort samples by length inside windows of this many batches; 0 means plain shuffling. Packed batches gain
    /// nothing from it on the CPU; padded ones do on a GPU.
    pub bucket_batches: usize,
    /// Everything random comes from it.
    pub seed: u64,
}

impl Default for TrainOptions {
    /// GRID's optimizer (Adam, lr 1e-3, weight decay 1e-4) and patience; batch 256.
    fn default() -> Self {
        TrainOptions {
            optimizer: AdamConfig {
                weight_decay: 1e-4,
                ..AdamConfig::default()
            },
            lr: 1e-3,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            batch_size: 256,
            max_steps: Some(100_000),
            max_epochs: None,
            eval_every: 1_000,
            patience: 10,
            clip_norm: None,
            bucket_batches: 0,
            seed: 0,
        }
    }
}

/// Users whose next item decides when to stop and which weights to keep.
#[derive(Debug, Clone, Copy)]
pub struct Validation<'a> {
    /// Histories and their true next items.
    pub samples: &'a Samples,
    /// The catalogue.
    pub trie: &'a Trie,
    /// Evaluate a seeded sample of this many users; `None` takes all.
    pub users: Option<usize>,
    /// Width of the beam search (at least 5).
    pub beam_width: usize,
}

/// What happens during training.
#[derive(Debug)]
pub enum TrainEvent<'a> {
    /// A step is done.
    Step {
        /// The step, from 1.
        step: usize,
        /// Steps that `max_steps` and `max_epochs` allow.
        total: usize,
        /// Mean loss of the step's batch (sum over levels).
        loss: f32,
        /// Samples per second since the last evaluation.
        samples_per_second: f64,
    },
    /// Part of an evaluation is done; breaking here interrupts it.
    Evaluating {
        /// Users searched so far.
        users: usize,
        /// Users to search.
        total: usize,
    },
    /// An evaluation is done.
    Evaluated {
        /// The new point of the curve.
        point: &'a CurvePoint,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// One row of the training curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done.
    pub step: usize,
    /// Passes over the samples done or begun, from 1.
    pub epoch: usize,
    /// Mean training loss since the last point.
    pub train_loss: f64,
    /// Recall@5 of the validation users (expected value where items share a semantic id).
    pub valid_recall_5: Option<f64>,
    /// NDCG@5, likewise.
    pub valid_ndcg_5: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Wall-clock seconds since the start; decides nothing.
    pub seconds: f64,
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// `max_steps` or `max_epochs` was reached.
    Finished,
    /// `patience` evaluations brought nothing better.
    Patience,
}

/// A trained model.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The best weights on the validation users, or the last ones without validation.
    pub model: Tiger,
    /// The step they are from.
    pub best_step: usize,
    /// One point per evaluation.
    pub curve: Vec<CurvePoint>,
    /// Why training ended.
    pub stopped: Stopped,
}

/// Trains a model from scratch. On the CPU the result depends on nothing but the arguments, not on threads either.
///
/// With a `checkpoint` folder the CPU engine saves its state there after every evaluation, and a run that finds the
/// state of the same config, options and data goes on from it: the result is that of an uninterrupted run, to the bit
/// (the curve's seconds aside). The folder is left for the caller to remove. On another device it is not used.
///
/// # Errors
/// [`Error::InvalidConfig`] naming the field, [`Error::InvalidData`] for bad samples, [`Error::NotFinite`] with the
/// step when the loss diverges, [`Error::Interrupted`] when `on_event` breaks, [`Error::Candle`] on a device.
pub fn train_tiger(
    config: &TigerConfig,
    options: &TrainOptions,
    device: &Device,
    samples: &Samples,
    validation: Option<Validation>,
    checkpoint: Option<&Path>,
    on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<Trained> {
    options.validate()?;
    check_samples(config, samples, "training")?;
    if let Some(validation) = &validation {
        check_samples(config, validation.samples, "validation")?;
    }
    let root = Key::new(options.seed);
    let mut engine = Engine::new(Tiger::init(config, root.child(0).bits(0))?, options, device)?;
    let total = options.total_steps(samples.len());
    let start = Instant::now();
    let mut run = Run {
        curve: vec![],
        best: None,
        since_best: 0,
        start,
        losses: (0.0, 0, 0),
        window: start,
    };
    let identity = checkpoint::identity(config, options, samples, validation.as_ref());
    let mut step = 0;
    if let Some(folder) = checkpoint {
        step = checkpoint::load(folder, &identity, &mut run, &mut engine)?.unwrap_or(0);
    }
    let out_of_patience = |run: &Run| {
        validation.is_some() && options.patience > 0 && run.since_best >= options.patience
    };
    if out_of_patience(&run) {
        return run.finish(engine, step, Stopped::Patience);
    }
    let per_epoch = samples.len().div_ceil(options.batch_size);
    while step < total {
        let (epoch, done) = (1 + step / per_epoch, step % per_epoch);
        let order = root.child(1).child(epoch as u64);
        let batches = samples.batches(options.batch_size, options.bucket_batches, order);
        for rows in &batches[done..] {
            if step == total {
                break;
            }
            step += 1;
            let lr = options.lr * options.schedule.factor(step, options.warmup_steps, total);
            let (histories, targets) = pack(config, samples, rows)?;
            let mut noise = Noise::new(config.dropout, root.child(2).child(step as u64));
            let loss = engine.step(&histories, &targets, &mut noise, lr, options.clip_norm)?;
            if !loss.is_finite() {
                return Err(Error::NotFinite { step, loss });
            }
            let samples_per_second = run.count(loss, rows.len());
            tell(
                on_event,
                TrainEvent::Step {
                    step,
                    total,
                    loss,
                    samples_per_second,
                },
            )?;
            if step % options.eval_every != 0 && step != total {
                continue;
            }
            let metrics = match &validation {
                Some(v) => Some(engine.evaluate(v, root.child(3), on_event)?),
                None => None,
            };
            let best = run.record(step, epoch, lr, metrics, &engine)?;
            if let Some(point) = run.curve.last() {
                tell(on_event, TrainEvent::Evaluated { point, best })?;
            }
            if let Some(folder) = checkpoint {
                checkpoint::save(folder, &identity, &run, &engine)?;
            }
            if out_of_patience(&run) {
                return run.finish(engine, step, Stopped::Patience);
            }
        }
    }
    run.finish(engine, step, Stopped::Finished)
}

/// Recall@5 and NDCG@5 of one ranked list. The items of a leaf are tied; the target is one of them.
pub fn expected_recall_ndcg(ranked: &[Hypothesis], trie: &Trie, target: Option<u32>) -> (f64, f64) {
    let mut better = 0;
    for hypothesis in ranked {
        let tied = trie.items_of(hypothesis.leaf).len();
        if Some(hypothesis.leaf) == target {
            let places = tied.min(K.saturating_sub(better));
            let gain: f64 = (0..places)
                .map(|j| 1.0 / ((better + j + 2) as f64).log2())
                .sum();
            return (places as f64 / tied as f64, gain / tied as f64);
        }
        better += tied;
    }
    (0.0, 0.0)
}

impl TrainOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<()> {
        self.optimizer.validate()?;
        if !self.lr.is_finite() || self.lr <= 0.0 {
            return Err(Error::config("lr", "must be positive"));
        }
        for (field, value) in [
            ("batch_size", self.batch_size),
            ("eval_every", self.eval_every),
        ] {
            if value == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if self.max_steps.is_none() && self.max_epochs.is_none() {
            return Err(Error::config(
                "max_steps",
                "give `max_steps`, `max_epochs` or both",
            ));
        }
        for (field, value) in [
            ("max_steps", self.max_steps),
            ("max_epochs", self.max_epochs),
        ] {
            if value == Some(0) {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if self
            .clip_norm
            .is_some_and(|clip| clip.is_nan() || clip <= 0.0)
        {
            return Err(Error::config("clip_norm", "must be positive"));
        }
        Ok(())
    }

    fn total_steps(&self, samples: usize) -> usize {
        let per_epoch = samples.div_ceil(self.batch_size);
        let epochs = self
            .max_epochs
            .map_or(usize::MAX, |e| e.saturating_mul(per_epoch));
        self.max_steps.unwrap_or(usize::MAX).min(epochs)
    }
}

/// What training has found so far.
struct Run {
    curve: Vec<CurvePoint>,
    best: Option<(f64, f64, usize, Tiger)>,
    since_best: usize,
    start: Instant,
    /// Since the last evaluation: sum of losses, steps, samples.
    losses: (f64, usize, usize),
    window: Instant,
}

impl Run {
    /// Counts a step and says how many samples per second went through lately.
    fn count(&mut self, loss: f32, samples: usize) -> f64 {
        self.losses.0 += f64::from(loss);
        self.losses.1 += 1;
        self.losses.2 += samples;
        self.losses.2 as f64 / self.window.elapsed().as_secs_f64().max(1e-9)
    }

    /// Adds a point to the curve and keeps the weights if it is the best.
    fn record(
        &mut self,
        step: usize,
        epoch: usize,
        lr: f64,
        metrics: Option<(f64, f64)>,
        engine: &Engine,
    ) -> Result<bool> {
        self.curve.push(CurvePoint {
            step,
            epoch,
            train_loss: self.losses.0 / self.losses.1.max(1) as f64,
            valid_recall_5: metrics.map(|m| m.0),
            valid_ndcg_5: metrics.map(|m| m.1),
            lr,
            seconds: self.start.elapsed().as_secs_f64(),
        });
        self.losses = (0.0, 0, 0);
        self.window = Instant::now();
        let Some((recall, ndcg)) = metrics else {
            return Ok(false);
        };
        let better = self
            .best
            .as_ref()
            .is_none_or(|b| (recall, ndcg) > (b.0, b.1));
        self.since_best += 1;
        if better {
            self.since_best = 0;
            self.best = Some((recall, ndcg, step, engine.model()?));
        }
        Ok(better)
    }

    fn finish(self, engine: Engine, step: usize, stopped: Stopped) -> Result<Trained> {
        let (best_step, model) = match self.best {
            Some((_, _, step, model)) => (step, model),
            None => (step, engine.model()?),
        };
        Ok(Trained {
            model,
            best_step,
            curve: self.curve,
            stopped,
        })
    }
}

fn tell(on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>, event: TrainEvent) -> Result<()> {
    match on_event(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

fn check_samples(config: &TigerConfig, samples: &Samples, what: &str) -> Result<()> {
    if samples.is_empty() {
        return Err(Error::InvalidData(format!("there are no {what} samples")));
    }
    if samples.levels() != config.levels() {
        let op = format!("levels of the {what} samples");
        return Err(Error::shape(op, config.levels(), samples.levels()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Stock;
    use crate::optim::StockAdam;
    use crate::samples::Ragged;

    /// Twelve items in a ring: the next item is the last one plus 1.
    fn ring(n: usize) -> (TigerConfig, Samples, Trie) {
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

    fn options() -> TrainOptions {
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

    fn go_on(_: TrainEvent) -> ControlFlow<()> {
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
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
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
        assert!(
            last.train_loss < 0.9 && last.valid_ndcg_5.unwrap() > 0.95,
            "{last:?}"
        );
        assert_eq!(last.valid_recall_5, Some(1.0));
        let best = trained
            .curve
            .iter()
            .find(|p| p.step == trained.best_step)
            .unwrap();
        assert!(
            trained
                .curve
                .iter()
                .all(|p| p.valid_recall_5 <= best.valid_recall_5)
        );
        assert_eq!(run(3).unwrap().model, trained.model);
    }

    #[test]
    fn a_killed_run_goes_on_and_ends_the_same() {
        let (config, samples, trie) = ring(500);
        let valid = Validation {
            samples: &samples,
            trie: &trie,
            users: Some(50),
            beam_width: 5,
        };
        let train = |options: &TrainOptions,
                     folder,
                     on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>| {
            train_tiger(
                &config,
                options,
                &Device::Cpu,
                &samples,
                Some(valid),
                folder,
                on_event,
            )
        };
        let options = TrainOptions {
            max_steps: Some(70),
            eval_every: 20,
            ..options()
        };
        let whole = train(&options, None, &mut go_on).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut first = 0;
        for kill_at in [33, 51, 1000] {
            let result = train(&options, Some(folder.path()), &mut |event| match event {
                TrainEvent::Step { step, .. } if step == kill_at => ControlFlow::Break(()),
                TrainEvent::Step { step, .. } => {
                    first = if first == 0 { step } else { first };
                    ControlFlow::Continue(())
                }
                _ => ControlFlow::Continue(()),
            });
            let Ok(trained) = result else { continue };
            assert_eq!(trained.model, whole.model);
            assert_eq!(trained.best_step, whole.best_step);
            let plain = |curve: &[CurvePoint]| -> Vec<CurvePoint> {
                curve
                    .iter()
                    .map(|p| CurvePoint { seconds: 0.0, ..*p })
                    .collect()
            };
            assert_eq!(plain(&trained.curve), plain(&whole.curve));
        }
        assert_eq!(first, 1);
        let mut steps = 0;
        train(&options, Some(folder.path()), &mut |event| {
            steps += usize::from(matches!(event, TrainEvent::Step { .. }));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(steps, 0);
        let other = TrainOptions { lr: 0.5, ..options };
        let text = train(&other, Some(folder.path()), &mut go_on)
            .unwrap_err()
            .to_string();
        assert!(text.contains("another config"), "{text}");
    }

    #[test]
    fn interruption_divergence_and_bad_options_are_errors() {
        let (config, samples, _) = ring(100);
        let train = |options: &TrainOptions,
                     on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>| {
            train_tiger(
                &config,
                options,
                &Device::Cpu,
                &samples,
                None,
                None,
                on_event,
            )
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
                engine
                    .step(&histories, &targets, &mut noise, 1e-2, Some(1.0))
                    .unwrap()
            });
            losses.sort_by(f32::total_cmp);
            assert!(losses[1] / losses[0] < 1.0 + 1e-4, "{losses:?}");
        }
    }
}
