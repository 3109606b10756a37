//! Training of any [`Model`]: batches, optimizer steps, early stopping on validation, checkpoints with exact resume.

mod checkpoint;
mod course;
mod devices;
mod engine;
mod peers;

pub use peers::{Alone, Peers, Site};

use crate::error::{Error, Result};
use crate::frozen::Frozen;
use crate::ops::{Graph, Precision, Stock, Workspace};
use crate::optim::{AdamConfig, Schedule};
use crate::random::Key;
use crate::weights::{Declaration, Weights};
use candle_core::Device;
use course::{Run, Training, tell};
use engine::Engine;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// What can be trained: weights, a loss over rows of samples, and a measure of quality.
pub trait Model: Clone + Send {
    /// Everything that decides the shape, and what the loss draws from.
    type Config: Serialize + Sync;
    /// What is trained on.
    type Samples: TrainingSet + Sync;
    /// What an evaluation needs.
    type Validation<'a>: Copy + Sync;

    /// Names, shapes and starts of all weights, in a fixed order.
    fn declarations(config: &Self::Config) -> Vec<Declaration>;
    /// A fresh model, drawn from the seed.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    fn init(config: &Self::Config, seed: u64) -> Result<Self>;
    /// A model of given weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::TensorNames`] or [`Error::ShapeMismatch`].
    fn from_weights(config: &Self::Config, weights: Weights) -> Result<Self>;
    /// The config.
    fn config(&self) -> &Self::Config;
    /// The weights.
    fn weights(&self) -> &Weights;
    /// The weights, to update in place; names and shapes must stay.
    fn weights_mut(&mut self) -> &mut Weights;

    /// Weights that the loss reads and that are never trained.
    fn frozen(&self) -> Option<&Frozen> {
        None
    }

    /// Checks samples and validation against the config, before anything is computed.
    ///
    /// # Errors
    /// [`Error::InvalidData`] or [`Error::ShapeMismatch`].
    fn check(config: &Self::Config, samples: &Self::Samples, validation: Option<Self::Validation<'_>>) -> Result<()>;
    /// Mean loss of some samples, [1, 1]. Dropout and negatives come from `key`.
    ///
    /// # Errors
    /// Of the samples or the engine.
    fn loss<G: Graph>(
        g: &mut G,
        config: &Self::Config,
        samples: &Self::Samples,
        rows: &[u32],
        key: Key,
    ) -> Result<G::Node>;
    /// Floating-point operations of the matrix products of the loss of one sample, forward.
    fn forward_flops(config: &Self::Config, samples: &Self::Samples, row: usize) -> f64;
    /// Two metrics, higher is better: the first decides which weights are kept, the second between equals. Users are
    /// drawn from `key`; `progress` hears how many of how many are done, and its error ends the evaluation.
    ///
    /// # Errors
    /// Of the data, the engine or `progress`.
    fn evaluate(
        place: Place<'_, Self>,
        validation: Self::Validation<'_>,
        key: Key,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<(f64, f64)>;
    /// What a stored state must have in common with this validation.
    fn identity(validation: Self::Validation<'_>) -> serde_json::Value;
}

/// Samples that come in batches.
pub trait TrainingSet {
    /// Number of samples.
    fn count(&self) -> usize;
    /// How many terms the loss of these samples is the mean of.
    fn terms(&self, rows: &[u32]) -> usize {
        rows.len()
    }
    /// Sample numbers of every batch of one epoch, see [`crate::samples::batches`].
    fn batches(&self, batch_size: usize, bucket_batches: usize, epoch: Key) -> Vec<Vec<u32>>;
    /// A digest of all samples.
    fn digest(&self) -> String;
}

/// Where a model is evaluated.
pub enum Place<'a, M: Model> {
    /// On the CPU, by the kernels.
    Cpu(&'a M, &'a mut Workspace),
    /// Where the weights live, by stock operations.
    Device(&'a M::Config, &'a mut Stock),
}

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
    /// Samples of a batch.
    pub batch_size: usize,
    /// Batches of a step: their gradients are added in place, each with its share of the terms of the loss, so the step
    /// is that of one batch of `batch_size` x `accumulate` samples (dropout and negatives aside, which are drawn batch
    /// by batch) in the memory of a small one. The last step of an epoch takes what is left.
    pub accumulate: usize,
    /// Parts of every batch, each with a gradient of its own, which are added up in their order; dropout and negatives
    /// are drawn part by part. [`Peers`] share the replicas, and the result does not depend on how many they are.
    #[serde(skip_serializing_if = "is_one")]
    pub replicas: usize,
    /// Stop after this many steps. With `max_epochs` the extent of the training, not its course: see [`train_model`].
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
    /// What products are computed in, those of evaluations too. Weights and the optimizer stay f32. On the CPU there is
    /// f32 alone.
    pub precision: Precision,
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
            accumulate: 1,
            replicas: 1,
            max_steps: Some(100_000),
            max_epochs: None,
            eval_every: 1_000,
            patience: 10,
            clip_norm: None,
            bucket_batches: 0,
            precision: Precision::F32,
            seed: 0,
        }
    }
}

/// States of trainings without replicas stay what they were.
fn is_one(count: &usize) -> bool {
    *count == 1
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
        /// Mean loss of the step's samples.
        loss: f32,
        /// Samples per second since the last evaluation.
        samples_per_second: f64,
    },
    /// Part of an evaluation is done; breaking here interrupts it.
    Evaluating {
        /// Users evaluated so far.
        users: usize,
        /// Users to evaluate.
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

/// Hears what happens during training, and may break it.
pub type OnEvent<'a> = dyn FnMut(TrainEvent) -> ControlFlow<()> + 'a;

/// One row of the training curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Steps done.
    pub step: usize,
    /// Passes over the samples done or begun, from 1.
    pub epoch: usize,
    /// Mean training loss since the last point.
    pub train_loss: f64,
    /// The two metrics of [`Model::evaluate`].
    pub valid: Option<(f64, f64)>,
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
pub struct Trained<M> {
    /// The best weights on the validation users, or the last ones without validation.
    pub model: M,
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
/// A `site` is a device, or several, which share the replicas; and [`Peers`], if others take part: then every one of them
/// calls this, and all end with the same model. Where one breaks, the others end with [`Error::Peer`].
///
/// # Errors
/// [`Error::InvalidConfig`] naming the field, [`Error::InvalidData`] for bad samples, [`Error::NotFinite`] with the
/// step when the loss diverges, [`Error::Interrupted`] when `on_event` breaks, [`Error::Candle`] on a device,
/// [`Error::Peer`] when another peer ends before.
pub fn train_model<'a, M: Model>(
    config: &M::Config,
    options: &TrainOptions,
    site: impl Into<Site<'a>>,
    samples: &M::Samples,
    validation: Option<M::Validation<'_>>,
    checkpoint: Option<Checkpoint>,
    on_event: &mut OnEvent,
) -> Result<Trained<M>> {
    let site = site.into();
    options.validate()?;
    if options.precision == Precision::Bf16 && site.devices.iter().any(Device::is_cpu) {
        let reason = "bf16 is for GPUs, and this trains on the CPU, whose kernels are f32: set it to f32";
        return Err(Error::config("precision", reason));
    }
    M::check(config, samples, validation)?;
    devices::on_each(site, on_event, |device, peers, on_event| {
        let model = M::init(config, Key::new(options.seed).child(0).bits(0))?;
        let engine = Engine::new(model, options, device)?;
        Training::new(config, options, engine, samples, validation, checkpoint, peers).run(on_event)
    })
}

/// Floating-point operations of the matrix products of so many steps of training, evaluations aside: three times
/// [`Model::forward_flops`], for the result and for the gradients of both its factors. An epoch that was not finished
/// counts by its share.
pub fn training_flops<M: Model>(config: &M::Config, options: &TrainOptions, samples: &M::Samples, steps: usize) -> f64 {
    let epoch: f64 = (0..samples.count())
        .map(|row| M::forward_flops(config, samples, row))
        .sum();
    3.0 * epoch * steps as f64 / options.steps_per_epoch(samples.count()) as f64
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
        let counts = [
            ("batch_size", self.batch_size),
            ("accumulate", self.accumulate),
            ("replicas", self.replicas),
            ("eval_every", self.eval_every),
        ];
        for (field, value) in counts {
            if value == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if self.replicas > self.batch_size {
            return Err(Error::config(
                "replicas",
                "must not be more than the samples of a batch",
            ));
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

    fn steps_per_epoch(&self, samples: usize) -> usize {
        samples.div_ceil(self.batch_size).div_ceil(self.accumulate)
    }

    fn total_steps(&self, samples: usize) -> usize {
        let per_epoch = self.steps_per_epoch(samples);
        let epochs = self.max_epochs.map_or(usize::MAX, |e| e.saturating_mul(per_epoch));
        self.max_steps.unwrap_or(usize::MAX).min(epochs)
    }
}

#[cfg(test)]
mod tests;
