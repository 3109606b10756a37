//! Trained residual quantizers: RQ-VAE, and with no encoder R-VQ, whose codebooks are parameters.
//!
//! Source: residual quantization of Lee et al. 2022 (arXiv 2203.01941) as TIGER (arXiv 2305.05065) uses it and GRID
//! (arXiv 2507.22224) compares it. Loss of a batch: mean over its rows of `|x - decoder(q)|^2` plus, summed over the
//! levels, `|sg(r) - e|^2 + beta |r - sg(e)|^2`; squares are summed, not averaged, over the dimensions. A level's input
//! is what the entries before, taken as constants, left over, so that the commitment of every level reaches the encoder.
//! Shape legend: N rows, B rows of a batch, D width, L latent width, C levels, K entries of a codebook.

mod levels;
mod mlp;
mod sinkhorn;
mod step;
#[cfg(test)]
mod tests;
mod train;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::kmeans::{self, KMeansError};
use crate::residual::ResidualQuantizer;
use crate::weights::{self, Declaration, Init, Weight, Weights};
use mlp::{Activations, Mlp};
pub use sinkhorn::Sinkhorn;
pub use train::{Codebooks, Collapse, Evaluation, LevelUse, Start, TrainOptions, Trained, TrainingEvent, train};

/// Rows that go through the maps together outside of training.
const PANEL: usize = 4096;

/// What makes a trained quantizer impossible.
#[derive(Debug, thiserror::Error)]
pub enum RqVaeError {
    /// Rows that cannot be quantized: none, or a value that is not finite.
    #[error(transparent)]
    Rows(KMeansError),
    /// k-means failed on the first codebooks.
    #[error("the first codebook of level {level}: {source}")]
    Start {
        /// Index of the level, from 0.
        level: usize,
        /// What k-means said.
        source: KMeansError,
    },
    /// A level makes use of too few of its entries.
    #[error(
        "level {level} has collapsed: its perplexity is {perplexity:.1} of {entries} entries at step {step}, and stayed \
         below {least:.1} for {evaluations} evaluations"
    )]
    Collapsed {
        /// Index of the level, from 0.
        level: usize,
        /// Perplexity of its codes.
        perplexity: f64,
        /// K.
        entries: usize,
        /// The least that was asked for.
        least: f64,
        /// For how many evaluations in a row.
        evaluations: usize,
        /// Steps so far.
        step: usize,
    },
    /// A config, a file, a diverged training or an interruption.
    #[error(transparent)]
    Model(#[from] Error),
}

/// How gradients pass the choice of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The gradient of the chosen entries is taken for that of the latent (van den Oord et al., arXiv 1711.00937).
    StraightThrough,
    /// A row is stood for by a mixture of entries: softmax of (Gumbel noise - squared distance) / temperature (Jang et
    /// al., arXiv 1611.01144). Outside of training the nearest entry is taken.
    GumbelSoftmax {
        /// Near 0 the mixture is one entry.
        temperature: f32,
    },
    /// The gradient is that of the rotation and scaling that take the latent to the sum of its entries (Fifty et al.,
    /// arXiv 2410.06424), which are taken as constants. One rotation for all levels together.
    Rotation,
}

/// The shape of a quantizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RqVaeConfig {
    /// D.
    pub dim: usize,
    /// Widths of the encoder after the input, the last of them L; the decoder has the same in reverse. None at all: the
    /// levels quantize the rows themselves (R-VQ).
    pub layers: Vec<usize>,
    /// Entries of every codebook.
    pub codebook_sizes: Vec<usize>,
}

impl RqVaeConfig {
    /// L.
    pub fn latent(&self) -> usize {
        self.layers.last().copied().unwrap_or(self.dim)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field.
    pub fn validate(&self) -> Result<(), Error> {
        if self.layers.contains(&0) {
            return Err(Error::config("layers", "a layer must be at least 1 wide"));
        }
        if self.codebook_sizes.is_empty() || self.codebook_sizes.contains(&0) {
            return Err(Error::config(
                "codebook_sizes",
                "at least one level of at least one entry",
            ));
        }
        Ok(())
    }

    fn encoder(&self) -> Mlp {
        let widths = std::iter::once(self.dim).chain(self.layers.iter().copied());
        Mlp::new(widths.collect(), 0)
    }

    fn decoder(&self) -> Mlp {
        let widths = self.layers.iter().rev().copied().chain([self.dim]);
        Mlp::new(widths.collect(), self.encoder().tensors())
    }

    /// Place of the first codebook among the weights.
    fn first_codebook(&self) -> usize {
        self.encoder().tensors() + self.decoder().tensors()
    }

    /// The weights that are trained: encoder, decoder, codebooks [K, L].
    fn declarations(&self) -> Vec<Declaration> {
        let latent = self.latent();
        let codebook = |(level, size): (usize, &usize)| Declaration {
            name: format!("codebook.{level}"),
            shape: vec![*size, latent],
            init: Init::Normal(1.0 / (latent as f64).sqrt()),
        };
        let mut all = self.encoder().declarations("encoder");
        all.extend(self.decoder().declarations("decoder"));
        all.extend(self.codebook_sizes.iter().enumerate().map(codebook));
        all
    }
}

/// A trained quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct RqVae {
    config: RqVaeConfig,
    weights: Weights,
    /// What is subtracted from every dimension before the encoder.
    offset_d: Vec<f32>,
    /// What it is multiplied by then.
    factor_d: Vec<f32>,
}

/// Names of the tensors that are not trained.
const OFFSET: &str = "input.offset";
const FACTOR: &str = "input.factor";

impl RqVae {
    fn new(config: RqVaeConfig, seed: u64, (offset_d, factor_d): (Vec<f32>, Vec<f32>)) -> Self {
        RqVae {
            weights: Weights::init(&config.declarations(), seed),
            config,
            offset_d,
            factor_d,
        }
    }

    /// Its shape.
    pub fn config(&self) -> &RqVaeConfig {
        &self.config
    }

    /// Encoder, decoder and codebooks.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Shifted and scaled rows [N, D], as the encoder wants them.
    fn inputs(&self, rows_nd: &[f32]) -> Vec<f32> {
        let scale = |row_d: &[f32]| {
            let dimensions = row_d.iter().zip(&self.offset_d).zip(&self.factor_d);
            dimensions.map(|((x, o), f)| (x - o) * f).collect::<Vec<f32>>()
        };
        rows_nd.chunks_exact(self.config.dim).flat_map(scale).collect()
    }

    /// Latents [N, L] of rows [N, D].
    ///
    /// # Errors
    /// [`RqVaeError::Rows`] for values that are not finite.
    pub fn latents(&self, rows_nd: &[f32]) -> Result<Vec<f32>, RqVaeError> {
        if let Some((row, column, value)) = kmeans::first_not_finite(rows_nd, self.config.dim.max(1)) {
            return Err(RqVaeError::Rows(KMeansError::NotFinite { row, column, value }));
        }
        Ok(self.mapped(&self.config.encoder(), &self.inputs(rows_nd), self.config.dim))
    }

    /// The levels, as a quantizer of latents.
    pub fn levels(&self) -> ResidualQuantizer {
        let books = self.weights.tensors()[self.config.first_codebook()..].iter();
        ResidualQuantizer {
            dim: self.config.latent(),
            normalize_residuals: false,
            codebooks_ckd: books.map(|book| book.data.clone()).collect(),
        }
    }

    /// Codes [N, C] of rows [N, D].
    ///
    /// # Errors
    /// [`RqVaeError::Rows`] for values that are not finite.
    pub fn encode(&self, rows_nd: &[f32]) -> Result<Vec<u32>, RqVaeError> {
        let levels = self.levels();
        levels.encode(&self.latents(rows_nd)?).map_err(|error| match error {
            crate::residual::ResidualError::Level { source, .. } => RqVaeError::Rows(source),
            other => RqVaeError::Model(Error::InvalidData(other.to_string())),
        })
    }

    /// Rows [N, D] that the decoder makes of latents or sums of entries [N, L], in the units of the encoder's input.
    fn decoded(&self, latents_nl: &[f32]) -> Vec<f32> {
        self.mapped(&self.config.decoder(), latents_nl, self.config.latent())
    }

    fn mapped(&self, mlp: &Mlp, x: &[f32], width: usize) -> Vec<f32> {
        let mut memory = Activations::default();
        let panels = x.chunks(PANEL * width);
        let map = |panel: &[f32]| mlp.forward(self.weights.tensors(), panel, &mut memory).to_vec();
        panels.flat_map(map).collect()
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        let mut tensors = self.weights.tensors().to_vec();
        for (name, data) in [(OFFSET, &self.offset_d), (FACTOR, &self.factor_d)] {
            tensors.push(Weight {
                name: name.into(),
                shape: vec![data.len()],
                data: data.clone(),
            });
        }
        Weights::from_tensors(tensors).save(folder, &self.config)
    }

    /// Reads what [`RqVae::save`] wrote.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::InvalidConfig`], [`Error::TensorNames`], [`Error::ShapeMismatch`].
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let config: RqVaeConfig = weights::load_config(folder)?;
        config.validate()?;
        let mut declarations = config.declarations();
        for name in [OFFSET, FACTOR] {
            declarations.push(Declaration {
                name: name.into(),
                shape: vec![config.dim],
                init: Init::Constant(0.0),
            });
        }
        let mut tensors = Weights::load(folder, &declarations)?.tensors().to_vec();
        let factor_d = tensors.pop().map(|tensor| tensor.data).unwrap_or_default();
        let offset_d = tensors.pop().map(|tensor| tensor.data).unwrap_or_default();
        Ok(RqVae {
            weights: Weights::from_tensors(tensors),
            config,
            offset_d,
            factor_d,
        })
    }
}
