//! Adam with coupled or decoupled weight decay, SGD, Adagrad, gradient clipping, learning-rate schedules.

mod one_state;

use crate::error::{Error, Result};
use crate::kernels::Kernels;
use crate::ops::isa::vectorized;
use crate::weights::Weights;
use candle_core::{Tensor, Var};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

pub use one_state::{Adagrad, AdagradConfig, Optimizer, OptimizerConfig, Sgd, SgdConfig};

/// Numbers one task updates; fixed, so sums do not depend on threads.
const TASK: usize = 16 * 1024;

/// Adam's numbers, as `torch.optim.Adam` and `AdamW` have them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamConfig {
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Added to the root of the latter.
    pub eps: f32,
    /// Weight decay.
    pub weight_decay: f32,
    /// Decay the weights themselves (AdamW) instead of adding the decay to the gradient (Adam).
    pub decoupled: bool,
}

impl Default for AdamConfig {
    fn default() -> Self {
        AdamConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
        }
    }
}

impl AdamConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<()> {
        for (field, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::config(field, "must be at least 0 and below 1"));
            }
        }
        if self.eps.is_nan() || self.eps <= 0.0 {
            return Err(Error::config("eps", "must be positive"));
        }
        if !self.weight_decay.is_finite() || self.weight_decay < 0.0 {
            return Err(Error::config("weight_decay", "must not be negative"));
        }
        Ok(())
    }
}

/// Means of gradients and of squared gradients of one weight.
pub(crate) type Moments = (Vec<f32>, Vec<f32>);

/// The fused CPU optimizer: updates weights in place, allocates nothing after the first step.
#[derive(Debug, Clone, Default)]
pub struct Adam {
    config: AdamConfig,
    step: i32,
    moments: Vec<Moments>,
}

impl Adam {
    /// An optimizer before its first step.
    pub fn new(config: AdamConfig) -> Self {
        Adam {
            config,
            ..Adam::default()
        }
    }

    /// One update with `gradients * scale` (the scale is that of clipping).
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if weights and gradients differ in number or length.
    pub fn step(&mut self, weights: &mut Weights, gradients: &[Vec<f32>], lr: f64, scale: f32) -> Result<()> {
        let tensors = weights.tensors_mut();
        if tensors.len() != gradients.len() {
            return Err(Error::shape("adam", tensors.len(), gradients.len()));
        }
        self.step += 1;
        self.moments.resize_with(tensors.len(), Default::default);
        let update = self.config.update(self.step, lr, scale);
        for ((tensor, gradient), (m, v)) in tensors.iter_mut().zip(gradients).zip(&mut self.moments) {
            let n = tensor.data.len();
            if gradient.len() != n {
                return Err(Error::shape(&tensor.name, n, gradient.len()));
            }
            m.resize(n, 0.0);
            v.resize(n, 0.0);
            let state = m.par_chunks_mut(TASK).zip(v.par_chunks_mut(TASK));
            tensor
                .data
                .par_chunks_mut(TASK)
                .zip(gradient.par_chunks(TASK))
                .zip(state)
                .for_each(|((w, g), (m, v))| adam_rows(w, g, m, v, update));
        }
        Ok(())
    }

    /// Steps done, and the two moments of every weight.
    pub(crate) fn state(&self) -> (i32, &[Moments]) {
        (self.step, &self.moments)
    }

    /// Goes on from a saved state.
    pub(crate) fn restore(&mut self, step: i32, moments: Vec<Moments>) {
        self.step = step;
        self.moments = moments;
    }
}

/// The same optimizer for any device: a kernel where there are some, else stock tensor operations.
#[derive(Debug, Default)]
pub struct StockAdam {
    config: AdamConfig,
    kernels: Option<Kernels>,
    step: i32,
    moments: Vec<Option<(Tensor, Tensor)>>,
}

impl StockAdam {
    /// An optimizer before its first step.
    pub fn new(config: AdamConfig) -> Self {
        StockAdam {
            config,
            ..StockAdam::default()
        }
    }

    /// The same with these kernels, or with stock operations alone.
    pub fn with_kernels(self, kernels: Option<Kernels>) -> Self {
        StockAdam { kernels, ..self }
    }

    /// One update with `gradients * scale`; a variable without gradient is treated as having zeros.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn step(&mut self, variables: &[Var], gradients: &[Option<Tensor>], lr: f64, scale: f32) -> Result<()> {
        self.step += 1;
        self.moments.resize_with(variables.len(), || None);
        let u = self.config.update(self.step, lr, scale);
        for ((variable, gradient), moments) in variables.iter().zip(gradients).zip(&mut self.moments) {
            let w = variable.as_detached_tensor();
            if let Some(kernels) = &self.kernels {
                let (m, v) = match moments.take() {
                    Some(state) => state,
                    None => (w.zeros_like()?, w.zeros_like()?),
                };
                kernels.adam((&w, &m, &v), gradient.as_ref(), u.numbers())?;
                *moments = Some((m, v));
                continue;
            }
            let mut g = match gradient {
                Some(g) => (g.detach() * f64::from(u.scale))?,
                None => w.zeros_like()?,
            };
            g = (g + (&w * f64::from(u.coupled))?)?;
            let (m, v) = match moments.take() {
                Some(state) => state,
                None => (w.zeros_like()?, w.zeros_like()?),
            };
            let m = ((m * f64::from(u.beta1))? + (&g * f64::from(1.0 - u.beta1))?)?;
            let v = ((v * f64::from(u.beta2))? + (g.sqr()? * f64::from(1.0 - u.beta2))?)?;
            let root = ((v.sqrt()? * f64::from(u.root))? + f64::from(u.eps))?;
            let w = ((w * f64::from(u.keep))? - ((&m / root)? * f64::from(u.rate))?)?;
            variable.set(&w)?;
            *moments = Some((m, v));
        }
        Ok(())
    }

    /// The scale that brings the global norm of the gradients down to `clip_norm`, or 1.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn clip_scale(&self, gradients: &[Option<Tensor>], clip_norm: Option<f32>) -> Result<f32> {
        let (Some(clip), Some(kernels)) = (clip_norm, &self.kernels) else {
            return stock_clip_scale(gradients, clip_norm);
        };
        let some: Vec<&Tensor> = gradients.iter().flatten().collect();
        Ok(scale_of(kernels.sum_of_squares(&some)?.sqrt(), clip))
    }

    /// Steps done, and the two moments of every variable.
    pub(crate) fn state(&self) -> Result<(i32, Vec<Moments>)> {
        let numbers = |tensor: &Tensor| -> Result<Vec<f32>> { Ok(tensor.flatten_all()?.to_vec1()?) };
        let moments = self.moments.iter().flatten();
        let moments: Result<Vec<Moments>> = moments.map(|(m, v)| Ok((numbers(m)?, numbers(v)?))).collect();
        Ok((self.step, moments?))
    }

    /// Goes on from a saved state.
    pub(crate) fn restore(&mut self, step: i32, moments: Vec<Moments>, variables: &[Var]) -> Result<()> {
        let like = |data: &[f32], variable: &Var| Tensor::from_slice(data, variable.shape(), variable.device());
        self.step = step;
        self.moments.clear();
        for ((m, v), variable) in moments.iter().zip(variables) {
            self.moments.push(Some((like(m, variable)?, like(v, variable)?)));
        }
        Ok(())
    }
}

/// Scale that brings the global norm down to `clip_norm`, or 1; sums in fixed order.
pub fn clip_scale(gradients: &[Vec<f32>], clip_norm: Option<f32>) -> f32 {
    clip_norm.map_or(1.0, |clip| scale_of(global_norm(gradients), clip))
}

/// The same for device gradients, by stock operations.
fn stock_clip_scale(gradients: &[Option<Tensor>], clip_norm: Option<f32>) -> Result<f32> {
    let Some(clip) = clip_norm else {
        return Ok(1.0);
    };
    let mut sum = 0.0;
    for gradient in gradients.iter().flatten() {
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(scale_of(sum.sqrt(), clip))
}

/// Euclidean norm of all gradients together.
pub fn global_norm(gradients: &[Vec<f32>]) -> f64 {
    let squares = |x: &[f32]| x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
    let mut sum = 0.0;
    for gradient in gradients {
        let parts: Vec<f64> = gradient.par_chunks(TASK).map(squares).collect();
        sum += parts.iter().sum::<f64>();
    }
    sum.sqrt()
}

/// Shape of the learning rate over the steps, after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls to 0 at the last step along half a cosine.
    Cosine,
    /// Falls with the inverse root of the step, from the end of the warm-up on.
    InverseSqrt,
}

impl Schedule {
    /// Whether the learning rate of a step does not depend on the last step, so that a training can be made longer.
    pub fn is_extendable(self) -> bool {
        match self {
            Schedule::Constant | Schedule::InverseSqrt => true,
            Schedule::Cosine => false,
        }
    }

    /// Share of the peak learning rate at `step` (from 1) of `total`: linear during `warmup` steps, then the shape.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => {
                let span = total.saturating_sub(warmup).max(1) as f64;
                let done = ((step - warmup) as f64 / span).min(1.0);
                0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            Schedule::InverseSqrt => (warmup.max(1) as f64 / step.max(1) as f64).sqrt(),
        }
    }
}

fn scale_of(norm: f64, clip: f32) -> f32 {
    (f64::from(clip) / (norm + 1e-6)).min(1.0) as f32
}

/// The scalars of one update: `w = keep * w - rate * m / (root * sqrt(v) + eps)`.
#[derive(Clone, Copy)]
struct Update {
    beta1: f32,
    beta2: f32,
    eps: f32,
    scale: f32,
    coupled: f32,
    keep: f32,
    rate: f32,
    root: f32,
}

impl Update {
    /// As the kernel for GPUs takes them.
    fn numbers(&self) -> [f32; 8] {
        let Update {
            beta1,
            beta2,
            eps,
            scale,
            coupled,
            keep,
            rate,
            root,
        } = *self;
        [beta1, beta2, eps, scale, coupled, keep, rate, root]
    }
}

impl AdamConfig {
    fn update(&self, step: i32, lr: f64, scale: f32) -> Update {
        let decay = f64::from(self.weight_decay);
        Update {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            scale,
            coupled: if self.decoupled { 0.0 } else { self.weight_decay },
            keep: if self.decoupled { (1.0 - lr * decay) as f32 } else { 1.0 },
            rate: (lr / (1.0 - f64::from(self.beta1).powi(step))) as f32,
            root: (1.0 / (1.0 - f64::from(self.beta2).powi(step)).sqrt()) as f32,
        }
    }
}

vectorized! {
    fn adam_rows(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], u: Update) {
        for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * u.scale + u.coupled * *w;
            *m = u.beta1 * *m + (1.0 - u.beta1) * g;
            *v = u.beta2 * *v + (1.0 - u.beta2) * g * g;
            *w = u.keep * *w - u.rate * *m / (u.root * v.sqrt() + u.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simulator;
    use crate::ops::Stock;
    use crate::random::Key;
    use crate::weights::{Declaration, Init};

    #[test]
    fn fused_equals_stock() {
        for decoupled in [false, true] {
            let config = AdamConfig {
                weight_decay: 0.1,
                decoupled,
                ..AdamConfig::default()
            };
            let declare = |name: &str, shape: &[usize]| Declaration {
                name: name.into(),
                shape: shape.to_vec(),
                init: Init::Normal(1.0),
            };
            let start = Weights::init(
                &[declare("a", &[13, 33]), declare("b", &[7]), declare("c", &[70, 33])],
                1,
            );
            for kernels in [None, simulator::kernels()] {
                steps_agree(config, start.clone(), kernels);
            }
        }
    }

    /// A gradient that is missing is one of zeros.
    fn steps_agree(config: AdamConfig, mut weights: Weights, kernels: Option<Kernels>) {
        let stock = Stock::new(&weights, &simulator::device()).unwrap();
        let mut fast = Adam::new(config);
        let mut slow = StockAdam::new(config).with_kernels(kernels);
        for step in 0..5 {
            let key = Key::new(step);
            let missing = |i: usize| step == 3 && i == 2;
            let draw = |(i, t): (usize, &crate::weights::Weight)| -> Vec<f32> {
                let normal = |at| if missing(i) { 0.0 } else { key.normal(at) as f32 };
                (0..t.data.len() as u64).map(normal).collect()
            };
            let gradients: Vec<Vec<f32>> = weights.tensors().iter().enumerate().map(draw).collect();
            let variables = stock.variables().iter().zip(&gradients).enumerate();
            let tensors: Vec<Option<Tensor>> = variables
                .map(|(i, (v, g))| (!missing(i)).then(|| Tensor::from_slice(g, v.shape(), v.device()).unwrap()))
                .collect();
            let scale = clip_scale(&gradients, Some(2.0));
            assert!((scale - slow.clip_scale(&tensors, Some(2.0)).unwrap()).abs() < 1e-6);
            fast.step(&mut weights, &gradients, 0.01, scale).unwrap();
            slow.step(stock.variables(), &tensors, 0.01, scale).unwrap();
        }
        let other = stock.weights().unwrap();
        for (a, b) in weights.tensors().iter().zip(other.tensors()) {
            for (a, b) in a.data.iter().zip(&b.data) {
                assert!((a - b).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn schedules() {
        let at = |s: Schedule| [1, 5, 10, 55, 100].map(|step| s.factor(step, 10, 100));
        assert_eq!(at(Schedule::Constant), [0.1, 0.5, 1.0, 1.0, 1.0]);
        let cosine = at(Schedule::Cosine);
        assert!((cosine[3] - 0.5).abs() < 1e-12 && cosine[4].abs() < 1e-12);
        assert!((at(Schedule::InverseSqrt)[4] - 0.1f64.sqrt()).abs() < 1e-12);
        assert_eq!(Schedule::Constant.factor(1, 0, 0), 1.0);
    }

    #[test]
    fn clipping() {
        let gradients = vec![vec![3.0], vec![4.0]];
        assert!((global_norm(&gradients) - 5.0).abs() < 1e-12);
        assert!((clip_scale(&gradients, Some(1.0)) - 0.2).abs() < 1e-6);
        assert_eq!(clip_scale(&gradients, Some(10.0)), 1.0);
        assert_eq!(clip_scale(&gradients, None), 1.0);
    }
}
