//! One optimizer step and one evaluation, on the CPU or on another device.

use super::checkpoint::Optimizer;
use super::*;
use crate::beam::{BeamOptions, beam_search, beam_search_on};
use crate::ops::{Graph, Stock, Tape, Workspace};
use crate::optim::{Adam, Moments, StockAdam, clip_scale, stock_clip_scale};
use crate::tiger::{Histories, loss};
use crate::weights::Weights;
use candle_core::Tensor;
use std::borrow::Cow;

/// Validation users searched together.
const EVALUATION_USERS: usize = 256;

/// Weights and optimizer on the CPU or on another device.
pub(super) enum Engine {
    Fast {
        model: Tiger,
        workspace: Box<Workspace>,
        adam: Adam,
    },
    Stock {
        config: TigerConfig,
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

impl Engine {
    pub(super) fn new(model: Tiger, options: &TrainOptions, device: &Device) -> Result<Self> {
        if device.is_cpu() {
            let adam = Adam::new(options.optimizer);
            return Ok(Engine::Fast {
                model,
                workspace: Box::default(),
                adam,
            });
        }
        let stock = Box::new(Stock::new(model.weights(), device)?);
        let adam = StockAdam::new(options.optimizer);
        Ok(Engine::Stock {
            config: model.config().clone(),
            stock,
            adam,
        })
    }

    /// One optimizer step; the loss is that before the update.
    pub(super) fn step(
        &mut self,
        histories: &Histories,
        targets: &[u16],
        noise: &mut Noise,
        lr: f64,
        clip_norm: Option<f32>,
    ) -> Result<f32> {
        match self {
            Engine::Fast { model, workspace, adam } => {
                let mut tape = Tape::new(model.weights(), workspace);
                let node = loss(&mut tape, model.config(), histories, targets, noise)?;
                let value = tape.values(&node)?[0];
                if value.is_finite() {
                    tape.backward(node)?;
                    let scale = clip_scale(workspace.gradients(), clip_norm);
                    adam.step(model.weights_mut(), workspace.gradients(), lr, scale)?;
                }
                Ok(value)
            }
            Engine::Stock { config, stock, adam } => {
                let node = loss(&mut **stock, config, histories, targets, noise)?;
                let value = stock.values(&node)?[0];
                if value.is_finite() {
                    let gradients = stock.backward(&node)?;
                    let scale = stock_clip_scale(&gradients, clip_norm)?;
                    adam.step(stock.variables(), &gradients, lr, scale)?;
                }
                Ok(value)
            }
        }
    }

    /// Recall@5 and NDCG@5 of the validation users.
    pub(super) fn evaluate(
        &mut self,
        validation: &Validation,
        key: Key,
        on_event: &mut dyn FnMut(TrainEvent) -> ControlFlow<()>,
    ) -> Result<(f64, f64)> {
        let samples = validation.samples;
        let mut rows = key.permutation(samples.len());
        rows.truncate(validation.users.unwrap_or(usize::MAX).max(1));
        rows.sort_unstable();
        let options = BeamOptions {
            width: validation.beam_width.max(K),
            ..BeamOptions::default()
        };
        let (mut recall, mut ndcg) = (0.0, 0.0);
        let (mut users_done, total) = (0, rows.len());
        for rows in rows.chunks(EVALUATION_USERS) {
            let histories: Vec<&[u16]> = rows.iter().map(|&i| samples.history(i as usize)).collect();
            let users = samples.users_of(rows);
            let users = users.as_deref();
            let trie = validation.trie;
            let found = match self {
                Engine::Fast { model, .. } => beam_search(model, trie, &histories, users, &options)?,
                Engine::Stock { config, stock, .. } => {
                    beam_search_on(stock, config, trie, &histories, users, &options)?
                }
            };
            for (&row, ranked) in rows.iter().zip(&found) {
                let target = trie.leaf(samples.target(row as usize));
                let (r, n) = expected_recall_ndcg(ranked, trie, target);
                recall += r;
                ndcg += n;
            }
            users_done += rows.len();
            tell(
                on_event,
                TrainEvent::Evaluating {
                    users: users_done,
                    total,
                },
            )?;
        }
        Ok((recall / total as f64, ndcg / total as f64))
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

    pub(super) fn model(&self) -> Result<Tiger> {
        match self {
            Engine::Fast { model, .. } => Ok(model.clone()),
            Engine::Stock { config, stock, .. } => Tiger::from_weights(config, stock.weights()?),
        }
    }
}

/// Histories and targets of one batch.
pub(super) fn pack(config: &TigerConfig, samples: &Samples, rows: &[u32]) -> Result<(Histories, Vec<u16>)> {
    let users = samples.users_of(rows);
    let histories = rows.iter().map(|&i| samples.history(i as usize));
    let histories = config.histories(histories, users.as_deref())?;
    let targets = rows.iter().flat_map(|&i| samples.target(i as usize)).copied().collect();
    Ok((histories, targets))
}
