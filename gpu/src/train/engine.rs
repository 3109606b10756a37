//! One optimizer step and one evaluation, on the CPU or on another device.

use super::checkpoint::Optimizer;
use super::*;
use crate::ops::Tape;
use crate::optim::{Adam, Moments, StockAdam, clip_scale, stock_clip_scale};
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
            adam: StockAdam::new(options.optimizer),
        })
    }

    /// One optimizer step on the mean gradient of batches of samples, each with the key of its noise. The loss is that
    /// before the update; if it is not finite there is no update.
    pub(super) fn step(
        &mut self,
        samples: &M::Samples,
        batches: &[(&[u32], Key)],
        lr: f64,
        clip_norm: Option<f32>,
    ) -> Result<f32> {
        let terms: Vec<usize> = batches.iter().map(|(rows, _)| samples.terms(rows)).collect();
        let all = terms.iter().sum::<usize>() as f64;
        let mut loss = 0.0;
        match self {
            Engine::Fast { model, workspace, adam } => {
                workspace.clear_gradients(model.weights());
                for (&(rows, key), &terms) in batches.iter().zip(&terms) {
                    let share = terms as f64 / all;
                    let mut tape = Tape::new(model.weights(), workspace).with_frozen(model.frozen());
                    let node = M::loss(&mut tape, model.config(), samples, rows, key)?;
                    let value = tape.values(&node)?[0];
                    if !value.is_finite() {
                        return Ok(value);
                    }
                    loss += share * f64::from(value);
                    tape.backward_onto(node, share as f32)?;
                }
                let scale = clip_scale(workspace.gradients(), clip_norm);
                adam.step(model.weights_mut(), workspace.gradients(), lr, scale)?;
            }
            Engine::Stock { model, stock, adam } => {
                let mut gradients = vec![None; stock.variables().len()];
                for (&(rows, key), &terms) in batches.iter().zip(&terms) {
                    let share = terms as f64 / all;
                    let node = M::loss(&mut **stock, model.config(), samples, rows, key)?;
                    let value = stock.values(&node)?[0];
                    if !value.is_finite() {
                        return Ok(value);
                    }
                    loss += share * f64::from(value);
                    stock.backward_onto(&(node * share)?, &mut gradients)?;
                }
                let scale = stock_clip_scale(&gradients, clip_norm)?;
                adam.step(stock.variables(), &gradients, lr, scale)?;
            }
        }
        Ok(loss as f32)
    }

    /// The two metrics of the validation.
    pub(super) fn evaluate(
        &mut self,
        validation: M::Validation<'_>,
        key: Key,
        on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<(f64, f64)> {
        let place = match self {
            Engine::Fast { model, workspace, .. } => Place::Cpu(model, workspace),
            Engine::Stock { model, stock, .. } => Place::Device(model.config(), stock),
        };
        M::evaluate(place, validation, key, &mut |users, total| {
            tell(on_event, TrainEvent::Evaluating { users, total })
        })
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
