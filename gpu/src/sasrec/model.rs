//! SASRec's weights: names, shapes, initialisation, counts, and the model folder.

use super::*;
use crate::weights::{Declaration, Init, Weights, load_config};
use std::path::Path;

/// Standard deviation of all embeddings and linear maps at the start.
const SPREAD: f64 = 0.02;

impl SasrecConfig {
    /// Names, shapes and starts of all weights, in a fixed order.
    pub fn declarations(&self) -> Vec<Declaration> {
        let d = self.d_model;
        let mut all = Vec::new();
        let mut add = |name: String, shape: &[usize], init| {
            let shape = shape.to_vec();
            all.push(Declaration { name, shape, init });
        };
        let (normal, ones) = (Init::Normal(SPREAD), Init::Constant(1.0));
        add("items".into(), &[self.items, d], normal);
        add("positions".into(), &[self.max_items, d], normal);
        for layer in 0..self.layers {
            let block = format!("blocks.{layer}");
            add(format!("{block}.attention.norm"), &[d], ones);
            add(format!("{block}.attention.qkv"), &[3 * d, d], normal);
            add(format!("{block}.attention.out"), &[d, d], normal);
            add(format!("{block}.feed_forward.norm"), &[d], ones);
            add(format!("{block}.feed_forward.1"), &[4 * d, d], normal);
            add(format!("{block}.feed_forward.2"), &[d, 4 * d], normal);
        }
        add("norm".into(), &[d], ones);
        all
    }

    /// Floating-point operations of the matrix products of one forward pass over a history of so many items, with its
    /// loss. A product of [a, b] and [b, c] is 2abc; training does three times as many (forward, and the gradients of
    /// both factors).
    pub fn forward_flops(&self, items: usize) -> f64 {
        let (t, d) = (items.min(self.max_items), self.d_model);
        let layer = t * 12 * d * d + t * (t + 1) * d;
        let scored = match self.loss {
            Loss::Softmax => self.items,
            Loss::SampledSoftmax => self.negatives + 1,
            Loss::BinaryCrossEntropy => 2,
        };
        2.0 * (self.layers * layer + t * scored * d) as f64
    }

    /// Number of parameters of each part.
    pub fn parameters_by_part(&self) -> Parameters {
        let mut count = Parameters::default();
        for d in self.declarations() {
            let n: usize = d.shape.iter().product();
            match d.name.as_str() {
                "items" => count.items += n,
                "positions" => count.positions += n,
                name if name.ends_with("norm") => count.norms += n,
                _ => count.linear += n,
            }
        }
        count
    }
}

/// Parameter counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Item embeddings, which are the output too.
    pub items: usize,
    /// Position embeddings.
    pub positions: usize,
    /// The linear maps of all blocks: 12·L·d².
    pub linear: usize,
    /// Gains of the norms.
    pub norms: usize,
}

impl Parameters {
    /// All of them.
    pub fn total(&self) -> usize {
        self.items + self.positions + self.linear + self.norms
    }
}

/// A config and weights that fit it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sasrec {
    config: SasrecConfig,
    weights: Weights,
}

impl Sasrec {
    /// A fresh model, drawn from the seed.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub fn init(config: &SasrecConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        Ok(Sasrec {
            config: config.clone(),
            weights: Weights::init(&config.declarations(), seed),
        })
    }

    /// A model of given weights.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`], [`Error::TensorNames`] or [`Error::ShapeMismatch`].
    pub fn from_weights(config: &SasrecConfig, weights: Weights) -> Result<Self> {
        config.validate()?;
        weights.check(&config.declarations())?;
        Ok(Sasrec {
            config: config.clone(),
            weights,
        })
    }

    /// Reads a model folder; other files in it are left alone.
    ///
    /// # Errors
    /// Those of [`load_config`], [`SasrecConfig::validate`] and [`Weights::load`].
    pub fn load(folder: &Path) -> Result<Self> {
        let config: SasrecConfig = load_config(folder)?;
        config.validate()?;
        let weights = Weights::load(folder, &config.declarations())?;
        Ok(Sasrec { config, weights })
    }

    /// Writes a model folder: `config.json` and `model.safetensors`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.weights.save(folder, &self.config)
    }

    /// The config.
    pub fn config(&self) -> &SasrecConfig {
        &self.config
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The item embeddings [N, D].
    ///
    /// # Errors
    /// None for a model that was made here.
    pub fn item_embeddings(&self) -> Result<&[f32]> {
        Ok(&self.weights.get("items")?.data)
    }

    /// The weights, to train in place; names and shapes must stay.
    pub(crate) fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }
}
