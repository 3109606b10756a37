//! Training of TIGER: batches, optimizer steps, early stopping on the validation users.

mod checkpoint;
mod course;
mod engine;

use crate::beam::Hypothesis;
use crate::error::{Error, Result};
use crate::optim::{AdamConfig, Schedule};
use crate::random::Key;
use crate::samples::Samples;
use crate::tiger::{Noise, Tiger, TigerConfig};
use crate::trie::Trie;
use candle_core::Device;
use course::{Run, Training, tell};
use engine::{Engine, pack};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

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
    /// Stop after this many steps. With `max_epochs` the extent of the training, not its course: see [`train_tiger`].
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

/// Where training stores its state, and how often.
#[derive(Debug, Clone, Copy)]
pub struct Checkpoint<'a> {
    /// The folder, made if it is missing. It belongs to trainings of one config, options and data.
    pub folder: &'a Path,
    /// Time between two states.
    pub every: Duration,
}

/// What happens during training.
#[derive(Debug)]
pub enum TrainEvent<'a> {
    /// Training goes on from a stored state.
    Resumed {
        /// Steps done there.
        step: usize,
    },
    /// The state is stored. Comes after a break too; then the answer does not matter.
    Saved {
        /// Steps done.
        step: usize,
    },
    /// A state could not be read or stored; training goes on without it. Comes after a break too.
    StateFailed {
        /// The file, or the folder.
        path: &'a Path,
        /// Why.
        reason: &'a str,
    },
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
/// With a `checkpoint` the state is stored in its folder now and then, at the end, and when `on_event` breaks. A
/// training that finds a state of the same config, options and data there goes on from it. How far to go (`max_steps`,
/// `max_epochs`) is no part of that, unless the schedule depends on it: a longer training goes on from the end of a
/// shorter one. On the CPU the result is that of an uninterrupted training, to the bit (the curve's seconds aside). A
/// damaged state is told to `on_event` and passed over. States are left for the caller to remove.
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
    checkpoint: Option<Checkpoint>,
    on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
) -> Result<Trained> {
    options.validate()?;
    check_samples(config, samples, "training")?;
    if let Some(validation) = &validation {
        check_samples(config, validation.samples, "validation")?;
    }
    let model = Tiger::init(config, Key::new(options.seed).child(0).bits(0))?;
    let engine = Engine::new(model, options, device)?;
    Training::new(config, options, engine, samples, validation, checkpoint).run(on_event)
}

/// Recall@5 and NDCG@5 of one ranked list. The items of a leaf are tied; the target is one of them.
pub fn expected_recall_ndcg(ranked: &[Hypothesis], trie: &Trie, target: Option<u32>) -> (f64, f64) {
    let mut better = 0;
    for hypothesis in ranked {
        let tied = trie.items_of(hypothesis.leaf).len();
        if Some(hypothesis.leaf) == target {
            let places = tied.min(K.saturating_sub(better));
            let gain: f64 = (0..places).map(|j| 1.0 / ((better + j + 2) as f64).log2()).sum();
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
        for (field, value) in [("batch_size", self.batch_size), ("eval_every", self.eval_every)] {
            if value == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if self.max_steps.is_none() && self.max_epochs.is_none() {
            return Err(Error::config("max_steps", "give `max_steps`, `max_epochs` or both"));
        }
        for (field, value) in [("max_steps", self.max_steps), ("max_epochs", self.max_epochs)] {
            if value == Some(0) {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if self.clip_norm.is_some_and(|clip| clip.is_nan() || clip <= 0.0) {
            return Err(Error::config("clip_norm", "must be positive"));
        }
        Ok(())
    }

    fn total_steps(&self, samples: usize) -> usize {
        let per_epoch = samples.div_ceil(self.batch_size);
        let epochs = self.max_epochs.map_or(usize::MAX, |e| e.saturating_mul(per_epoch));
        self.max_steps.unwrap_or(usize::MAX).min(epochs)
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
mod tests;
