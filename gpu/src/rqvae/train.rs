//! The training loop: first codebooks, batches, entries that nobody uses, evaluations, collapse.

use std::ops::ControlFlow;

use super::levels::Rule;
use super::step::{Memory, step};
use super::{Estimator, RqVae, RqVaeConfig, RqVaeError, Sinkhorn};
use crate::collisions::collision_rate;
use crate::error::Error;
use crate::kmeans::{Buffer, KMeansError, Schedule as KMeansSchedule};
use crate::optim::{Optimizer, OptimizerConfig, Schedule};
use crate::random::Key;
use crate::residual::{self, LevelReport, ResidualConfig, ResidualError};
use crate::{kmeans, lanes};

/// Iterations of k-means for the first codebooks.
const START_ITERATIONS: usize = 20;
/// Added to the weight of every entry of a running mean.
const EMA_SMOOTHING: f32 = 1e-5;

/// Where the first codebooks come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Random numbers.
    Random,
    /// Residual k-means of the latents of the first batch.
    FirstBatch,
    /// Residual k-means of the latents of all rows.
    Table,
}

/// How codebooks learn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Codebooks {
    /// By the gradient of their loss.
    Gradient,
    /// As running means of the residuals that they stand for (van den Oord et al., arXiv 1711.00937, appendix A.1).
    RunningMean {
        /// Share that is kept in a step.
        decay: f32,
    },
}

/// When a training is given up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Collapse {
    /// Least perplexity of a level, as a share of its entries (of the rows, where there are fewer).
    pub share: f64,
    /// Evaluations in a row that it may stay below.
    pub evaluations: usize,
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// Passes over the rows.
    pub epochs: usize,
    /// Rows per step.
    pub batch_size: usize,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// Highest learning rate.
    pub lr: f64,
    /// How it goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps over which it rises.
    pub warmup_steps: usize,
    /// Weight of the commitment loss.
    pub beta: f32,
    /// How gradients pass the choice of an entry.
    pub estimator: Estimator,
    /// Spreads batches over the last level while it trains; codes are those of the nearest entries all the same. Not with
    /// [`Estimator::GumbelSoftmax`], which takes no entry.
    pub sinkhorn: Option<Sinkhorn>,
    /// How codebooks learn.
    pub codebooks: Codebooks,
    /// Where they start.
    pub start: Start,
    /// An entry that no row of so many steps was given becomes a random residual of the batch.
    pub restart_after: Option<usize>,
    /// Shift and scale every dimension to mean 0 and variance 1.
    pub standardize: bool,
    /// Epochs between evaluations.
    pub eval_every: usize,
    /// When to give up.
    pub collapse: Option<Collapse>,
    /// Seed of everything random.
    pub seed: u64,
}

impl TrainOptions {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        for (field, value) in [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("eval_every", self.eval_every),
            ("restart_after", self.restart_after.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if !self.lr.is_finite() || self.lr <= 0.0 {
            return Err(Error::config("lr", "must be positive"));
        }
        if !self.beta.is_finite() || self.beta < 0.0 {
            return Err(Error::config("beta", "must not be negative"));
        }
        if let OptimizerConfig::Adam(adam) = &self.optimizer {
            adam.validate()?;
        }
        if let Estimator::GumbelSoftmax { temperature } = self.estimator {
            if !temperature.is_finite() || temperature <= 0.0 {
                return Err(Error::config("temperature", "must be positive"));
            }
            if self.sinkhorn.is_some() {
                let reason = "gumbel_softmax mixes entries, so there is no assignment to spread";
                return Err(Error::config("sinkhorn", reason));
            }
            if self.codebooks != Codebooks::Gradient {
                return Err(Error::config(
                    "codebooks",
                    "gumbel_softmax wants codebooks that learn by gradient",
                ));
            }
        }
        if let Some(Sinkhorn { epsilon, iterations }) = self.sinkhorn
            && (!epsilon.is_finite() || epsilon < 1e-3 || iterations == 0)
        {
            return Err(Error::config(
                "sinkhorn",
                "epsilon must be at least 0.001, iterations at least 1",
            ));
        }
        if let Codebooks::RunningMean { decay } = self.codebooks
            && !(0.0..1.0).contains(&decay)
        {
            return Err(Error::config("decay", "must be at least 0 and below 1"));
        }
        Ok(())
    }
}

/// Use of a level's entries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelUse {
    /// exp of the entropy of its codes.
    pub perplexity: f64,
    /// Entries that no row has.
    pub dead: usize,
}

/// All rows under the quantizer of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Steps so far.
    pub step: usize,
    /// Passes so far.
    pub epoch: usize,
    /// Mean loss of the batches since the last evaluation; `None` before the first step.
    pub train_loss: Option<f64>,
    /// Mean over the rows of the squared error of what the decoder makes of the nearest entries, in the units of the
    /// encoder's input.
    pub reconstruction: f64,
    /// Share of the rows that share all codes with another.
    pub collision_rate: f64,
    /// Use of every level.
    pub levels: Vec<LevelUse>,
}

/// What a training tells.
#[derive(Debug)]
pub enum TrainingEvent<'a> {
    /// A step was done.
    Step {
        /// Steps so far.
        step: usize,
        /// Steps in all.
        total: usize,
        /// Its loss.
        loss: f64,
    },
    /// All rows were encoded.
    Evaluated(&'a Evaluation),
}

/// A quantizer and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// The quantizer.
    pub model: RqVae,
    /// Latents [N, L] of the rows it was trained on.
    pub latents_nl: Vec<f32>,
    /// Codes [N, C] of the rows it was trained on.
    pub codes_nc: Vec<u32>,
    /// What each level does to their latents.
    pub levels: Vec<LevelReport>,
    /// Evaluations, the first of them before the first step.
    pub curve: Vec<Evaluation>,
    /// Steps done.
    pub steps: usize,
}

/// Trains a quantizer on `rows_ND` (row-major). The callback may stop it.
///
/// # Errors
/// See [`RqVaeError`]; [`Error::Interrupted`] where the callback breaks.
pub fn train(
    rows_nd: &[f32],
    config: &RqVaeConfig,
    options: &TrainOptions,
    on_event: &mut dyn FnMut(TrainingEvent) -> ControlFlow<()>,
) -> Result<Trained, RqVaeError> {
    config.validate()?;
    options.validate()?;
    let dim = config.dim;
    if dim == 0 || rows_nd.is_empty() || !rows_nd.len().is_multiple_of(dim) {
        let rows = rows_nd.len().checked_div(dim).unwrap_or(0);
        return Err(RqVaeError::Rows(KMeansError::Empty { rows, columns: dim }));
    }
    if let Some((row, column, value)) = kmeans::first_not_finite(rows_nd, dim) {
        return Err(RqVaeError::Rows(KMeansError::NotFinite { row, column, value }));
    }
    let mut course = Course::new(rows_nd, config, options);
    course.start_codebooks()?;
    let mut curve = Vec::new();
    let mut low = vec![0; config.codebook_sizes.len()];
    let mut losses = Vec::new();
    let total = options.epochs * course.rows().div_ceil(options.batch_size);
    let mut told = |event: TrainingEvent| match on_event(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(RqVaeError::Model(Error::Interrupted)),
    };
    curve.push(course.evaluate(0, None)?.0);
    told(TrainingEvent::Evaluated(&curve[0]))?;
    for epoch in 1..=options.epochs {
        let order = course.key.child(1).child(epoch as u64).permutation(course.rows());
        for picked in order.chunks(options.batch_size) {
            let loss = course.step(picked, total)?;
            losses.push(loss);
            told(TrainingEvent::Step {
                step: course.steps,
                total,
                loss,
            })?;
        }
        if epoch % options.eval_every == 0 || epoch == options.epochs {
            let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
            losses.clear();
            let evaluation = course.evaluate(epoch, Some(mean))?.0;
            told(TrainingEvent::Evaluated(&evaluation))?;
            if let Some(collapse) = options.collapse {
                course.check_collapse(&evaluation, collapse, &mut low)?;
            }
            curve.push(evaluation);
        }
    }
    let (_, latents_nl, codes_nc) = course.evaluate(options.epochs, None)?;
    let steps = course.steps;
    let mut levels = course.model.levels().reports(&latents_nl, &codes_nc);
    levels.iter_mut().for_each(|report| report.iterations = steps);
    Ok(Trained {
        model: course.model,
        latents_nl,
        codes_nc,
        levels,
        curve,
        steps,
    })
}

/// Running sums of a codebook that is a running mean.
struct RunningMean {
    weight_k: Vec<f32>,
    sum_kl: Vec<f32>,
}

/// A training under way.
struct Course<'a> {
    options: &'a TrainOptions,
    model: RqVae,
    inputs_nd: Vec<f32>,
    optimizer: Optimizer,
    memory: Memory,
    key: Key,
    steps: usize,
    /// Last step at which an entry of a level was used.
    used_ck: Vec<Vec<usize>>,
    means_c: Vec<RunningMean>,
}

impl<'a> Course<'a> {
    fn new(rows_nd: &[f32], config: &RqVaeConfig, options: &'a TrainOptions) -> Self {
        let scales = match options.standardize {
            true => standard(rows_nd, config.dim),
            false => (vec![0.0; config.dim], vec![1.0; config.dim]),
        };
        let model = RqVae::new(config.clone(), options.seed, scales);
        Course {
            inputs_nd: model.inputs(rows_nd),
            optimizer: Optimizer::new(options.optimizer),
            options,
            model,
            memory: Memory::default(),
            key: Key::new(options.seed),
            steps: 0,
            used_ck: config.codebook_sizes.iter().map(|size| vec![0; *size]).collect(),
            means_c: Vec::new(),
        }
    }

    fn config(&self) -> &RqVaeConfig {
        &self.model.config
    }

    fn rows(&self) -> usize {
        self.inputs_nd.len() / self.config().dim
    }

    fn gather(&self, picked: &[u32]) -> Vec<f32> {
        let dim = self.config().dim;
        let row = |row: &u32| &self.inputs_nd[*row as usize * dim..][..dim];
        picked.iter().flat_map(row).copied().collect()
    }

    /// Latents [N, L] of inputs.
    fn latents(&self, inputs: &[f32]) -> Vec<f32> {
        self.model.mapped(&self.config().encoder(), inputs, self.config().dim)
    }

    fn start_codebooks(&mut self) -> Result<(), RqVaeError> {
        let latents_nl = match self.options.start {
            Start::Random => None,
            Start::Table => Some(self.latents(&self.inputs_nd)),
            Start::FirstBatch => {
                let order = self.key.child(1).child(1).permutation(self.rows());
                let batch = &order[..self.options.batch_size.min(order.len())];
                Some(self.latents(&self.gather(batch)))
            }
        };
        let (latent, first) = (self.config().latent(), self.config().first_codebook());
        if let Some(latents_nl) = latents_nl {
            let config = ResidualConfig {
                codebook_sizes: self.config().codebook_sizes.clone(),
                normalize_residuals: false,
                schedule: KMeansSchedule::Lloyd {
                    max_iterations: START_ITERATIONS,
                    tolerance: 1e-4,
                },
                buffer: Buffer::All,
                seed: self.options.seed,
                allow_fewer_distinct: true,
                beam: 1,
                balance: None,
            };
            let fit = residual::fit(&latents_nl, latent, &config, |_, _| ()).map_err(|error| match error {
                ResidualError::Level { level, source, .. } => RqVaeError::Start { level, source },
                other => RqVaeError::Model(Error::InvalidData(other.to_string())),
            })?;
            let books = self.model.weights.tensors_mut()[first..].iter_mut();
            books
                .zip(fit.quantizer.codebooks_ckd)
                .for_each(|(book, centres)| book.data = centres);
        }
        if self.options.codebooks != Codebooks::Gradient {
            let mean = |book: &crate::weights::Weight| RunningMean {
                weight_k: vec![1.0; book.shape[0]],
                sum_kl: book.data.clone(),
            };
            self.means_c = self.model.weights.tensors()[first..].iter().map(mean).collect();
        }
        Ok(())
    }

    /// One update from the rows picked; its loss.
    fn step(&mut self, picked: &[u32], total: usize) -> Result<f64, RqVaeError> {
        let x_bd = self.gather(picked);
        let options = self.options;
        let rule = Rule {
            estimator: options.estimator,
            beta: options.beta,
            sinkhorn: options.sinkhorn,
        };
        let key = self.key.child(2).child(self.steps as u64);
        let gumbel = |level: usize, at: usize| {
            let uniform = key.child(level as u64).uniform(at as u64).max(1e-20);
            (-(-uniform.ln()).max(1e-20).ln()) as f32
        };
        let learns = options.codebooks == Codebooks::Gradient;
        let (config, weights) = (&self.model.config, &self.model.weights);
        let outcome = step(config, &rule, weights, &x_bd, learns, &gumbel, &mut self.memory);
        self.steps += 1;
        let diverged = |loss| RqVaeError::Model(Error::NotFinite { step: self.steps, loss });
        let outcome = outcome.map_err(|error| match error {
            // the rows were finite: what is not is what the encoder made of them
            RqVaeError::Rows(_) => diverged(f32::NAN),
            other => other,
        })?;
        if !outcome.loss.is_finite() {
            return Err(diverged(outcome.loss as f32));
        }
        let lr = options.lr * options.schedule.factor(self.steps, options.warmup_steps, total);
        self.optimizer
            .step(&mut self.model.weights, &self.memory.gradients, lr, 1.0)?;
        let quantized = &outcome.quantized;
        self.move_means(&quantized.codes_cb, &quantized.inputs_cbl);
        self.restart_unused(&quantized.codes_cb, &quantized.inputs_cbl);
        Ok(outcome.loss)
    }

    fn move_means(&mut self, codes_cb: &[Vec<u32>], inputs_cbl: &[Vec<f32>]) {
        let Codebooks::RunningMean { decay } = self.options.codebooks else {
            return;
        };
        let (latent, first) = (self.config().latent(), self.config().first_codebook());
        let books = self.model.weights.tensors_mut()[first..].iter_mut();
        for (level, (book, mean)) in books.zip(&mut self.means_c).enumerate() {
            mean.weight_k.iter_mut().for_each(|x| *x *= decay);
            mean.sum_kl.iter_mut().for_each(|x| *x *= decay);
            for (row, code) in codes_cb[level].iter().enumerate() {
                let code = *code as usize;
                mean.weight_k[code] += 1.0 - decay;
                let input = &inputs_cbl[level][row * latent..][..latent];
                let sum = &mut mean.sum_kl[code * latent..][..latent];
                sum.iter_mut().zip(input).for_each(|(s, x)| *s += (1.0 - decay) * x);
            }
            let entries = book.data.chunks_exact_mut(latent).zip(mean.sum_kl.chunks_exact(latent));
            for ((entry, sum), weight) in entries.zip(&mean.weight_k) {
                // an entry that was not used for long keeps its place
                if *weight > EMA_SMOOTHING {
                    entry.iter_mut().zip(sum).for_each(|(e, s)| *e = s / weight);
                }
            }
        }
    }

    fn restart_unused(&mut self, codes_cb: &[Vec<u32>], inputs_cbl: &[Vec<f32>]) {
        let (latent, first, now) = (self.config().latent(), self.config().first_codebook(), self.steps);
        for (level, codes_b) in codes_cb.iter().enumerate() {
            let used_k = &mut self.used_ck[level];
            codes_b.iter().for_each(|code| used_k[*code as usize] = now);
            let Some(after) = self.options.restart_after else {
                continue;
            };
            let key = self.key.child(3).child(now as u64).child(level as u64);
            for (entry, used) in used_k.iter_mut().enumerate().filter(|(_, used)| now - **used >= after) {
                *used = now;
                let row = key.below(entry as u64, codes_b.len() as u64) as usize;
                let residual = &inputs_cbl[level][row * latent..][..latent];
                let book = &mut self.model.weights.tensors_mut()[first + level];
                book.data[entry * latent..][..latent].copy_from_slice(residual);
                if let Some(mean) = self.means_c.get_mut(level) {
                    mean.weight_k[entry] = 1.0;
                    mean.sum_kl[entry * latent..][..latent].copy_from_slice(residual);
                }
            }
        }
    }

    /// All rows under the quantizer as it is: what they come to, latents [N, L], codes [N, C].
    fn evaluate(&self, epoch: usize, train_loss: Option<f64>) -> Result<(Evaluation, Vec<f32>, Vec<u32>), RqVaeError> {
        let dim = self.config().dim;
        let latents_nl = self.latents(&self.inputs_nd);
        let levels = self.model.levels();
        let diverged = |_| {
            RqVaeError::Model(Error::NotFinite {
                step: self.steps,
                loss: f32::NAN,
            })
        };
        let codes_nc = levels.encode(&latents_nl).map_err(diverged)?;
        let sums_nl = levels.decode(&codes_nc).map_err(diverged)?;
        let outputs_nd = self.model.decoded(&sums_nl);
        let pairs = outputs_nd.chunks_exact(dim).zip(self.inputs_nd.chunks_exact(dim));
        let squares: f64 = pairs.map(|(y, x)| lanes::squared_distance(y, x)).sum();
        let sizes = &self.config().codebook_sizes;
        let use_of = |(level, size): (usize, &usize)| {
            let mut counts = vec![0usize; *size];
            let codes = codes_nc.iter().skip(level).step_by(sizes.len());
            codes.for_each(|code| counts[*code as usize] += 1);
            LevelUse {
                perplexity: perplexity(&counts),
                dead: counts.iter().filter(|count| **count == 0).count(),
            }
        };
        let evaluation = Evaluation {
            step: self.steps,
            epoch,
            train_loss,
            reconstruction: squares / self.rows() as f64,
            collision_rate: collision_rate(&codes_nc, sizes.len())
                .map_err(|error| Error::InvalidData(error.to_string()))?,
            levels: sizes.iter().enumerate().map(use_of).collect(),
        };
        Ok((evaluation, latents_nl, codes_nc))
    }

    fn check_collapse(&self, at: &Evaluation, collapse: Collapse, low_c: &mut [usize]) -> Result<(), RqVaeError> {
        for (level, (of, low)) in at.levels.iter().zip(low_c).enumerate() {
            let entries = self.config().codebook_sizes[level];
            let least = collapse.share * entries.min(self.rows()) as f64;
            *low = if of.perplexity < least { *low + 1 } else { 0 };
            if *low >= collapse.evaluations {
                return Err(RqVaeError::Collapsed {
                    level,
                    perplexity: of.perplexity,
                    entries,
                    least,
                    evaluations: *low,
                    step: at.step,
                });
            }
        }
        Ok(())
    }
}

/// exp of the entropy of counts.
fn perplexity(counts: &[usize]) -> f64 {
    let total = counts.iter().sum::<usize>() as f64;
    let terms = counts.iter().filter(|count| **count > 0).map(|count| {
        let share = *count as f64 / total;
        -share * share.ln()
    });
    terms.sum::<f64>().exp()
}

/// Mean of every dimension, and 1 / standard deviation (1 where all rows agree).
fn standard(rows_nd: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (rows_nd.len() / dim) as f64;
    let (mut mean_d, mut square_d) = (vec![0f64; dim], vec![0f64; dim]);
    for row_d in rows_nd.chunks_exact(dim) {
        lanes::add_scaled(&mut mean_d, row_d, 1.0 / n);
    }
    for row_d in rows_nd.chunks_exact(dim) {
        for ((to, x), mean) in square_d.iter_mut().zip(row_d).zip(&mean_d) {
            *to += (f64::from(*x) - mean).powi(2) / n;
        }
    }
    let factor = |variance: &f64| {
        if *variance > 1e-20 {
            (1.0 / variance.sqrt()) as f32
        } else {
            1.0
        }
    };
    (
        mean_d.iter().map(|x| *x as f32).collect(),
        square_d.iter().map(factor).collect(),
    )
}
