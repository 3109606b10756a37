//! Optimizers with one number of state per weight: SGD with momentum, and Adagrad.

use super::{Adam, AdamConfig, TASK};
use crate::error::{Error, Result};
use crate::ops::isa::vectorized;
use crate::weights::Weights;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// SGD's numbers, as `torch.optim.SGD` has them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Share of the last update that is added to the gradient; 0 keeps none.
    pub momentum: f32,
    /// Added to the gradient, times the weight.
    pub weight_decay: f32,
}

/// Adagrad's numbers, as `torch.optim.Adagrad` has them (Duchi et al. 2011).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdagradConfig {
    /// The learning rate of step t is divided by `1 + (t - 1) * lr_decay`.
    pub lr_decay: f32,
    /// Added to the gradient, times the weight.
    pub weight_decay: f32,
    /// Added to the root of the sum of squared gradients.
    pub eps: f32,
}

impl Default for AdagradConfig {
    fn default() -> Self {
        AdagradConfig {
            lr_decay: 0.0,
            weight_decay: 0.0,
            eps: 1e-10,
        }
    }
}

/// Stochastic gradient descent.
#[derive(Debug, Clone, Default)]
pub struct Sgd {
    config: SgdConfig,
    started: bool,
    velocities: Vec<Vec<f32>>,
}

impl Sgd {
    /// An optimizer before its first step.
    pub fn new(config: SgdConfig) -> Self {
        Sgd {
            config,
            ..Sgd::default()
        }
    }

    /// One update with `gradients * scale`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if weights and gradients differ in number or length.
    pub fn step(&mut self, weights: &mut Weights, gradients: &[Vec<f32>], lr: f64, scale: f32) -> Result<()> {
        let SgdConfig { momentum, weight_decay } = self.config;
        // the first velocity is the gradient itself: nothing is left of an earlier one
        let keep = if self.started { momentum } else { 0.0 };
        self.started = true;
        for_each_weight("sgd", weights, gradients, &mut self.velocities, |w, g, v| {
            sgd_rows(w, g, v, scale, weight_decay, keep, lr as f32);
        })
    }
}

/// Adagrad: every weight's learning rate falls with the root of the sum of its squared gradients.
#[derive(Debug, Clone, Default)]
pub struct Adagrad {
    config: AdagradConfig,
    step: i32,
    sums: Vec<Vec<f32>>,
}

impl Adagrad {
    /// An optimizer before its first step.
    pub fn new(config: AdagradConfig) -> Self {
        Adagrad {
            config,
            ..Adagrad::default()
        }
    }

    /// One update with `gradients * scale`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if weights and gradients differ in number or length.
    pub fn step(&mut self, weights: &mut Weights, gradients: &[Vec<f32>], lr: f64, scale: f32) -> Result<()> {
        let AdagradConfig {
            lr_decay,
            weight_decay,
            eps,
        } = self.config;
        let lr = (lr / (1.0 + f64::from(self.step) * f64::from(lr_decay))) as f32;
        self.step += 1;
        for_each_weight("adagrad", weights, gradients, &mut self.sums, |w, g, s| {
            adagrad_rows(w, g, s, scale, weight_decay, eps, lr);
        })
    }
}

/// Which optimizer, with its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// Adam, or AdamW.
    Adam(AdamConfig),
    /// Adagrad.
    Adagrad(AdagradConfig),
    /// SGD.
    Sgd(SgdConfig),
}

/// Any of the fused CPU optimizers.
#[derive(Debug, Clone)]
pub enum Optimizer {
    /// Adam, or AdamW.
    Adam(Adam),
    /// Adagrad.
    Adagrad(Adagrad),
    /// SGD.
    Sgd(Sgd),
}

impl Optimizer {
    /// An optimizer before its first step.
    pub fn new(config: OptimizerConfig) -> Self {
        match config {
            OptimizerConfig::Adam(config) => Optimizer::Adam(Adam::new(config)),
            OptimizerConfig::Adagrad(config) => Optimizer::Adagrad(Adagrad::new(config)),
            OptimizerConfig::Sgd(config) => Optimizer::Sgd(Sgd::new(config)),
        }
    }

    /// One update with `gradients * scale`.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if weights and gradients differ in number or length.
    pub fn step(&mut self, weights: &mut Weights, gradients: &[Vec<f32>], lr: f64, scale: f32) -> Result<()> {
        match self {
            Optimizer::Adam(adam) => adam.step(weights, gradients, lr, scale),
            Optimizer::Adagrad(adagrad) => adagrad.step(weights, gradients, lr, scale),
            Optimizer::Sgd(sgd) => sgd.step(weights, gradients, lr, scale),
        }
    }
}

/// Calls `update(weights, gradients, state)` on every stretch of every tensor, stretches in parallel.
fn for_each_weight(
    name: &str,
    weights: &mut Weights,
    gradients: &[Vec<f32>],
    states: &mut Vec<Vec<f32>>,
    update: impl Fn(&mut [f32], &[f32], &mut [f32]) + Sync,
) -> Result<()> {
    let tensors = weights.tensors_mut();
    if tensors.len() != gradients.len() {
        return Err(Error::shape(name, tensors.len(), gradients.len()));
    }
    states.resize_with(tensors.len(), Default::default);
    for ((tensor, gradient), state) in tensors.iter_mut().zip(gradients).zip(states) {
        let n = tensor.data.len();
        if gradient.len() != n {
            return Err(Error::shape(&tensor.name, n, gradient.len()));
        }
        state.resize(n, 0.0);
        let stretches = tensor.data.par_chunks_mut(TASK).zip(gradient.par_chunks(TASK));
        stretches
            .zip(state.par_chunks_mut(TASK))
            .for_each(|((w, g), s)| update(w, g, s));
    }
    Ok(())
}

vectorized! {
    fn sgd_rows(w: &mut [f32], g: &[f32], v: &mut [f32], scale: f32, decay: f32, keep: f32, lr: f32) {
        for ((w, g), v) in w.iter_mut().zip(g).zip(v) {
            *v = keep * *v + (g * scale + decay * *w);
            *w -= lr * *v;
        }
    }
}

vectorized! {
    fn adagrad_rows(w: &mut [f32], g: &[f32], s: &mut [f32], scale: f32, decay: f32, eps: f32, lr: f32) {
        for ((w, g), s) in w.iter_mut().zip(g).zip(s) {
            let g = g * scale + decay * *w;
            *s += g * g;
            *w -= lr * g / (s.sqrt() + eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Weight;

    #[test]
    fn agrees_with_pytorch() {
        let golden = include_str!("../../../tests/golden/optimizers.json");
        let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
        let floats = |value: &serde_json::Value| -> Vec<f32> { serde_json::from_value(value.clone()).unwrap() };
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let config: OptimizerConfig = serde_json::from_value(case["optimizer"].clone()).unwrap();
            let mut optimizer = Optimizer::new(config);
            let data = floats(&golden["start"]);
            let mut weights = Weights::from_tensors(vec![Weight {
                name: "w".into(),
                shape: vec![data.len()],
                data,
            }]);
            let lr = case["lr"].as_f64().unwrap();
            for (step, gradient) in golden["gradients"].as_array().unwrap().iter().enumerate() {
                optimizer.step(&mut weights, &[floats(gradient)], lr, 1.0).unwrap();
                for (got, want) in weights.tensors()[0].data.iter().zip(floats(&case["weights"][step])) {
                    assert!((got - want).abs() < 1e-5, "{config:?}, step {step}: {got} {want}");
                }
            }
        }
    }

    #[test]
    fn wrong_lengths_are_named() {
        let mut weights = Weights::from_tensors(vec![Weight {
            name: "w".into(),
            shape: vec![2],
            data: vec![0.0; 2],
        }]);
        for config in [
            OptimizerConfig::Sgd(SgdConfig::default()),
            OptimizerConfig::Adagrad(AdagradConfig::default()),
        ] {
            let mut optimizer = Optimizer::new(config);
            let mut say = |gradients: &[Vec<f32>]| {
                let error = optimizer.step(&mut weights, gradients, 0.1, 1.0).unwrap_err();
                error.to_string()
            };
            assert!(say(&[]).contains("expected 1, got 0"));
            assert!(say(&[vec![1.0; 3]]).contains("shape mismatch in w: expected 2, got 3"));
        }
    }
}
