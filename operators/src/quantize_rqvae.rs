//! Semantic ids by RQ-VAE: an encoder, residual quantization of what it makes of an embedding, a decoder.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, Operator};
use sluice_engine::table::Tables;
use sluice_gpu::optim::Schedule as GpuSchedule;
use sluice_gpu::rqvae::{self, Collapse, RqVaeConfig, Sinkhorn, TrainOptions};

use crate::quantizers::{Collisions, INPUT, Levels};
use crate::trained_quantizers::{self, Codebooks, Optimizer, Start};
use crate::training::Schedule;

/// Quantizes embeddings to semantic ids by RQ-VAE: residual quantization of the latents of an autoencoder.
///
/// # In
/// `input`: `item_id`, `embedding`.
///
/// # Out
/// `out`, `levels` (of the latents), `codebooks` (with encoder and decoder): as of `quantize_rkmeans`. `curve`: as of
/// `quantize_rvq`.
///
/// # Source
/// TIGER (arXiv 2305.05065): encoder 512, 256, 128, 32 with ReLU, the decoder in reverse, 3 x 256 codes, beta .25, k-means
/// start, batch 1,024; Adagrad with .4 for 20,000 epochs, which is `optimizer: adagrad, learning_rate: 0.4`. Sinkhorn on
/// the last level: LC-Rec (arXiv 2311.09049), epsilon .003 and 50 iterations. Rotation trick: arXiv 2410.06424.
///
/// # Deviates
/// The defaults are what does not collapse: AdamW with a cosine schedule, the rotation trick, codes restarted when unused,
/// losses summed over dimensions and averaged over items. Commitment of every level reaches the encoder. Sinkhorn spreads batches while they
/// train; items get their nearest codes all the same. Collisions are settled by `collisions`, not by Sinkhorn.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizeRqvae {
    /// Number of levels.
    pub num_codebooks: u32,
    /// Entries of every level's codebook.
    pub codebook_size: u32,
    /// Widths of the encoder after the input; the last is that of the latent and of the codes.
    pub layers: Vec<u32>,
    /// Weight of the commitment loss.
    pub beta: f64,
    /// How gradients pass the choice of a code.
    pub estimator: Estimator,
    /// Temperature of `gumbel_softmax`.
    pub temperature: f64,
    /// Spread every batch over the codes of the last level by Sinkhorn's iterations with this epsilon; null does not.
    pub sinkhorn_epsilon: Option<f64>,
    /// Iterations of Sinkhorn.
    pub sinkhorn_iterations: u32,
    /// How codebooks learn.
    pub codebooks: Codebooks,
    /// Share of a running mean that a step keeps.
    pub decay: f64,
    /// Where the first codebooks come from.
    pub start: Start,
    /// A code that no item of so many steps had becomes a random residual of the batch; null never.
    pub restart_after: Option<u32>,
    /// Shift and scale every dimension to mean 0 and variance 1.
    pub standardize: bool,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u32,
    /// Weight decay (decoupled for `adamw`).
    pub weight_decay: f64,
    /// Items per step.
    pub batch_size: u32,
    /// Passes over the items.
    pub epochs: u32,
    /// Epochs between evaluations.
    pub eval_every: u32,
    /// Fail where a level's perplexity stays below this share of its codes; 0 never fails.
    pub collapse_share: f64,
    /// For so many evaluations.
    pub collapse_evaluations: u32,
    /// What becomes of items that share all their codes.
    pub collisions: Collisions,
}

/// How gradients pass the choice of a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// The gradient of the codes is taken for that of the latent.
    StraightThrough,
    /// Codes are mixed by a softmax with Gumbel noise, see `temperature`.
    GumbelSoftmax,
    /// The gradient turns back the rotation that takes the latent to its codes.
    Rotation,
}

impl Default for QuantizeRqvae {
    fn default() -> Self {
        QuantizeRqvae {
            num_codebooks: 3,
            codebook_size: 256,
            layers: vec![512, 256, 128, 32],
            beta: 0.25,
            estimator: Estimator::Rotation,
            temperature: 1.0,
            sinkhorn_epsilon: None,
            sinkhorn_iterations: 50,
            codebooks: Codebooks::Gradient,
            decay: 0.99,
            start: Start::Table,
            restart_after: Some(24),
            standardize: false,
            optimizer: Optimizer::Adamw,
            learning_rate: 1e-3,
            schedule: Schedule::Cosine,
            warmup_steps: 0,
            weight_decay: 1e-4,
            batch_size: 1024,
            epochs: 50,
            eval_every: 10,
            collapse_share: 0.1,
            collapse_evaluations: 3,
            collisions: Collisions::CollisionCode,
        }
    }
}

impl Operator for QuantizeRqvae {
    const NAME: &'static str = "quantize_rqvae";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "embeddings with item_id and embedding")];

    fn bind(&self, binding: &Binding) -> Bound {
        if self.layers.is_empty() {
            binding.bad_value(
                "layers",
                "layers must name at least the width of the latent; without any it is quantize_rvq",
            );
        }
        let config = RqVaeConfig {
            dim: 1,
            layers: self.layers(),
            codebook_sizes: self.levels().sizes(),
        };
        trained_quantizers::bind(binding, self.levels(), &config, &self.options(0))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let options = self.options(context.random("training").key());
        trained_quantizers::run(context, &inputs, self.levels(), &self.layers(), &options)
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        trained_quantizers::notes(outputs)
    }
}

impl QuantizeRqvae {
    fn levels(&self) -> Levels {
        Levels {
            num_codebooks: self.num_codebooks,
            codebook_size: self.codebook_size,
            collisions: self.collisions,
        }
    }

    fn layers(&self) -> Vec<usize> {
        self.layers.iter().map(|width| *width as usize).collect()
    }

    fn options(&self, seed: u64) -> TrainOptions {
        TrainOptions {
            epochs: self.epochs as usize,
            batch_size: self.batch_size as usize,
            optimizer: self.optimizer.config(self.weight_decay),
            lr: self.learning_rate,
            schedule: match self.schedule {
                Schedule::Constant => GpuSchedule::Constant,
                Schedule::Cosine => GpuSchedule::Cosine,
                Schedule::InverseSqrt => GpuSchedule::InverseSqrt,
            },
            warmup_steps: self.warmup_steps as usize,
            beta: self.beta as f32,
            estimator: match self.estimator {
                Estimator::StraightThrough => rqvae::Estimator::StraightThrough,
                Estimator::GumbelSoftmax => rqvae::Estimator::GumbelSoftmax {
                    temperature: self.temperature as f32,
                },
                Estimator::Rotation => rqvae::Estimator::Rotation,
            },
            sinkhorn: self.sinkhorn_epsilon.map(|epsilon| Sinkhorn {
                epsilon,
                iterations: self.sinkhorn_iterations as usize,
            }),
            codebooks: self.codebooks.with(self.decay),
            start: self.start.into(),
            restart_after: self.restart_after.map(|steps| steps as usize),
            standardize: self.standardize,
            eval_every: self.eval_every as usize,
            collapse: (self.collapse_share != 0.0).then_some(Collapse {
                share: self.collapse_share,
                evaluations: self.collapse_evaluations as usize,
            }),
            seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use sluice_engine::operator::OUT;
    use sluice_engine::text;

    use super::*;
    use crate::{schema, testdata};

    /// 40 items around four corners.
    fn corners() -> RecordBatch {
        let item = |i: i32| format!("\n i{i} {},{}", i % 2 * 10 + i / 8, i / 2 % 2 * 10 - i / 8);
        let rows: String = (0..40).map(item).collect();
        text::parse(&format!("item_id embedding:[f32;2]{rows}")).unwrap()
    }

    fn small() -> QuantizeRqvae {
        QuantizeRqvae {
            num_codebooks: 2,
            codebook_size: 4,
            layers: vec![8, 3],
            batch_size: 16,
            epochs: 40,
            ..Default::default()
        }
    }

    #[test]
    fn near_items_share_codes_and_everything_is_put_out() {
        for estimator in [
            Estimator::StraightThrough,
            Estimator::GumbelSoftmax,
            Estimator::Rotation,
        ] {
            let operator = QuantizeRqvae { estimator, ..small() };
            let tables = testdata::run(&operator, &[(INPUT, corners())]).unwrap();
            let out = tables.batch(OUT).unwrap();
            let (codes, width) = schema::semantic_id_codes(&out).unwrap();
            assert_eq!(width, 3);
            let first: std::collections::BTreeSet<u16> = codes.iter().step_by(3).copied().collect();
            assert!(first.len() > 1, "{estimator:?}: {first:?}");
            let ids: std::collections::BTreeSet<&[u16]> = codes.chunks(3).collect();
            assert_eq!(ids.len(), 40);
            // evaluations of epochs 0, 10, .. 40 on 2 levels
            assert_eq!(tables.batch("curve").unwrap().num_rows(), 10);
            assert_eq!(tables.batch("levels").unwrap().num_rows(), 2);
            let model = sluice_gpu::rqvae::RqVae::load(tables.folder("codebooks").unwrap()).unwrap();
            assert_eq!(model.config().layers, [8, 3]);
        }
    }

    #[test]
    fn a_collapse_says_the_level_and_what_to_try() {
        let operator = QuantizeRqvae {
            start: Start::Random,
            restart_after: None,
            learning_rate: 1e-9,
            collapse_share: 1.0,
            ..small()
        };
        let error = testdata::run(&operator, &[(INPUT, corners())]).err().unwrap();
        assert_eq!(error.code, "collapsed");
        let text = error.to_string();
        for said in [
            "level 0 has collapsed: its perplexity is",
            "of 4 entries",
            "restart_after: 24",
        ] {
            assert!(text.contains(said), "{text}");
        }
    }

    #[test]
    fn bad_numbers_are_named() {
        let say = |operator: QuantizeRqvae| {
            testdata::run(&operator, &[(INPUT, corners())])
                .err()
                .unwrap()
                .to_string()
        };
        let both = QuantizeRqvae {
            estimator: Estimator::GumbelSoftmax,
            sinkhorn_epsilon: Some(0.01),
            ..small()
        };
        assert!(say(both).contains("no assignment to spread"));
        let flat = QuantizeRqvae {
            layers: vec![8, 0],
            ..small()
        };
        assert!(say(flat).contains("a layer must be at least 1 wide"));
        let none = QuantizeRqvae {
            layers: vec![],
            ..small()
        };
        assert!(say(none).contains("quantize_rvq"));
    }
}
