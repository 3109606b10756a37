//! One optimizer step and one evaluation, on the CPU or on another device.

use super::checkpoint::Optimizer;
use super::peers::{Sum, Team};
use super::*;
use crate::kernels::Kernels;
use crate::ops::Tape;
use crate::optim::{Adam, Moments, StockAdam, clip_scale};
use candle_core::Tensor;
use std::borrow::Cow;

/// Weights and optimizer on the CPU or on another device.
pub(super) enum Engine<M: Model> {
    Fast {
        model: M,
        workspace: Box<Workspace>,
        adam: Adam,
    },
    /// The model is its start; its weights live in `stock`.
    Stock {
        model: M,
        stock: Box<Stock>,
        adam: StockAdam,
        /// While a step is made.
        gradients: Vec<Option<Tensor>>,
    },
}

/// Weights, and steps and moments of the optimizer.
pub(super) struct State<'a> {
    pub(super) weights: Cow<'a, Weights>,
    pub(super) steps: i32,
    pub(super) moments: Cow<'a, [Moments]>,
}

impl<M: Model> Engine<M> {
    pub(super) fn new(model: M, options: &TrainOptions, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            let adam = Adam::new(options.optimizer);
            return Ok(Engine::Fast {
                model,
                workspace: Box::default(),
                adam,
            });
        }
        Self::stock(model, options, device)
    }

    /// The engine of devices other than the CPU; the CPU runs it too, as the slow twin.
    pub(super) fn stock(model: M, options: &TrainOptions, device: &Device) -> Result<Self> {
        let stock = Stock::new(model.weights(), device)?
            .with_precision(options.precision)
            .with_frozen(model.frozen())?;
        Ok(Engine::Stock {
            model,
            stock: Box::new(stock),
            adam: StockAdam::new(options.optimizer).with_kernels(Kernels::of(device)),
            gradients: Vec::new(),
        })
    }

    /// One optimizer step on the mean gradient of batches of samples, each with the key of its noise, by all replicas
    /// of the team. The loss is that before the update; if it is not finite there is no update.
    pub(super) fn step(
        &mut self,
        samples: &M::Samples,
        batches: &[(&[u32], Key)],
        team: Team,
        lr: f64,
        clip_norm: Option<f32>,
    ) -> Result<f32> {
        let terms = batches.iter().map(|(rows, _)| samples.terms(rows)).sum::<usize>() as f64;
        let loss = match team.is_plain() {
            true => self.differentiate(samples, batches, terms)?,
            false => self.differentiate_together(samples, batches, terms, team)?,
        };
        if loss.is_finite() {
            self.update(lr, clip_norm)?;
        }
        Ok(loss as f32)
    }

    /// Computes the gradients of these batches, which have a share of the terms of the step. The loss is that share of
    /// the step's; if it is not finite, the gradients are of no use.
    fn differentiate(&mut self, samples: &M::Samples, batches: &[(&[u32], Key)], terms: f64) -> Result<f64> {
        let mut loss = 0.0;
        match self {
            Engine::Fast { model, workspace, .. } => {
                workspace.clear_gradients(model.weights());
                for &(rows, key) in batches {
                    let share = samples.terms(rows) as f64 / terms;
                    let mut tape = Tape::new(model.weights(), workspace).with_frozen(model.frozen());
                    let node = M::loss(&mut tape, model.config(), samples, rows, key)?;
                    loss += share * f64::from(tape.values(&node)?[0]);
                    if !loss.is_finite() {
                        break;
                    }
                    tape.backward_onto(node, share as f32)?;
                }
            }
            Engine::Stock {
                model,
                stock,
                gradients,
                ..
            } => {
                gradients.clear();
                gradients.resize(stock.variables().len(), None);
                for &(rows, key) in batches {
                    let share = samples.terms(rows) as f64 / terms;
                    let node = M::loss(&mut **stock, model.config(), samples, rows, key)?;
                    loss += share * f64::from(stock.values(&node)?[0]);
                    if !loss.is_finite() {
                        break;
                    }
                    stock.backward_onto(&(node * share)?, gradients)?;
                }
            }
        }
        Ok(loss)
    }

    /// The same by the replicas of all peers.
    fn differentiate_together(
        &mut self,
        samples: &M::Samples,
        batches: &[(&[u32], Key)],
        terms: f64,
        team: Team,
    ) -> Result<f64> {
        let lengths = self.lengths();
        let mut sum = Sum::new(team, &lengths);
        for replica in team.own() {
            let loss = self.differentiate(samples, &team.cut(batches, replica), terms)?;
            sum.add(loss, &self.gradients()?);
        }
        match self {
            Engine::Fast { model, workspace, .. } => {
                if team.own().is_empty() {
                    // There may be no room for them yet.
                    workspace.clear_gradients(model.weights());
                }
                sum.finish(workspace.gradients_mut())
            }
            Engine::Stock { stock, gradients, .. } => {
                let mut sums: Vec<Vec<f32>> = lengths.iter().map(|length| vec![0.0; *length]).collect();
                let loss = sum.finish(&mut sums)?;
                gradients.clear();
                for (sum, variable) in sums.iter().zip(stock.variables()) {
                    let tensor = Tensor::from_slice(sum, variable.shape(), variable.device())?;
                    gradients.push(Some(tensor));
                }
                Ok(loss)
            }
        }
    }

    /// The gradients in the memory of the host.
    fn gradients(&self) -> Result<Cow<'_, [Vec<f32>]>> {
        match self {
            Engine::Fast { workspace, .. } => Ok(Cow::Borrowed(workspace.gradients())),
            Engine::Stock { gradients, .. } => {
                let mut all = Vec::with_capacity(gradients.len());
                for (gradient, length) in gradients.iter().zip(self.lengths()) {
                    all.push(match gradient {
                        Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                        None => vec![0.0; length],
                    });
                }
                Ok(Cow::Owned(all))
            }
        }
    }

    /// Numbers of each weight.
    fn lengths(&self) -> Vec<usize> {
        let (Engine::Fast { model, .. } | Engine::Stock { model, .. }) = self;
        model
            .weights()
            .tensors()
            .iter()
            .map(|tensor| tensor.data.len())
            .collect()
    }

    /// Moves the weights by the gradients.
    fn update(&mut self, lr: f64, clip_norm: Option<f32>) -> Result<()> {
        match self {
            Engine::Fast { model, workspace, adam } => {
                let scale = clip_scale(workspace.gradients(), clip_norm);
                adam.step(model.weights_mut(), workspace.gradients(), lr, scale)
            }
            Engine::Stock {
                stock, adam, gradients, ..
            } => {
                // A device has no room for them while it computes the next ones.
                let gradients = std::mem::take(gradients);
                let scale = adam.clip_scale(&gradients, clip_norm)?;
                adam.step(stock.variables(), &gradients, lr, scale)
            }
        }
    }

    /// A digest of the weights.
    pub(super) fn digest(&self) -> Result<String> {
        match self {
            Engine::Fast { model, .. } => Ok(model.weights().digest()),
            Engine::Stock { stock, .. } => Ok(stock.weights()?.digest()),
        }
    }

    /// The two metrics of the validation.
    pub(super) fn evaluate(
        &mut self,
        validation: M::Validation<'_>,
        key: Key,
        on_event: &mut OnEvent,
    ) -> Result<(f64, f64)> {
        let mut progress = |users, total| tell(on_event, TrainEvent::Evaluating { users, total });
        match self {
            Engine::Fast { model, workspace, .. } => {
                M::evaluate(Place::Cpu(model, workspace), validation, key, &mut progress)
            }
            Engine::Stock { model, stock, .. } => {
                stock.track(false);
                let place = Place::Device(model.config(), stock);
                let metrics = M::evaluate(place, validation, key, &mut progress);
                stock.track(true);
                metrics
            }
        }
    }

    /// Which engine it is: a state of one is no state of the other.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Engine::Fast { .. } => "cpu",
            Engine::Stock { .. } => "device",
        }
    }

    /// Weights and optimizer as they are. There are no moments before the first step.
    pub(super) fn state(&self) -> Result<State<'_>> {
        match self {
            Engine::Fast { model, adam, .. } => {
                let (steps, moments) = adam.state();
                Ok(State {
                    weights: Cow::Borrowed(model.weights()),
                    steps,
                    moments: Cow::Borrowed(moments),
                })
            }
            Engine::Stock { stock, adam, .. } => {
                let (steps, moments) = adam.state()?;
                Ok(State {
                    weights: Cow::Owned(stock.weights()?),
                    steps,
                    moments: Cow::Owned(moments),
                })
            }
        }
    }

    /// Goes on from a saved state, of which tensors are in the order of the model's.
    pub(super) fn restore(&mut self, weights: Weights, (steps, moments): Optimizer) -> Result<()> {
        match self {
            Engine::Fast { model, adam, .. } => {
                *model.weights_mut() = weights;
                adam.restore(steps, moments);
            }
            Engine::Stock { stock, adam, .. } => {
                for (variable, tensor) in stock.variables().iter().zip(weights.tensors()) {
                    variable.set(&Tensor::from_slice(&tensor.data, tensor.matrix(), variable.device())?)?;
                }
                adam.restore(steps, moments, stock.variables())?;
            }
        }
        Ok(())
    }

    pub(super) fn model(&self) -> Result<M> {
        match self {
            Engine::Fast { model, .. } => Ok(model.clone()),
            Engine::Stock { model, stock, .. } => M::from_weights(model.config(), stock.weights()?),
        }
    }
}
