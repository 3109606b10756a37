//! Semantic ids by residual vector quantization whose codebooks are trained by gradient steps.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, Operator};
use sluice_engine::table::Tables;
use sluice_gpu::optim::Schedule;
use sluice_gpu::rqvae::{Collapse, Estimator, RqVaeConfig, TrainOptions};

use crate::quantizers::{Collisions, INPUT, Levels};
use crate::trained_quantizers::{self, Codebooks, Optimizer, Start};

/// Quantizes embeddings to semantic ids by residual vector quantization: the codebooks are trained as parameters.
///
/// # In
/// `input`: `item_id`, `embedding`.
///
/// # Out
/// `out`, `levels`, `codebooks`: as of `quantize_rkmeans`. `curve`: a row per evaluation and level: `step`, `epoch`,
/// `train_loss`, `reconstruction` (mean squared error, in units of the input after `standardize`), `collision_rate` (share
/// of items that share all codes), `level`, `perplexity`, `dead` (codes without item).
///
/// # Source
/// R-VQ of GRID (arXiv 2507.22224) and "Understanding Generative Recommendation with Semantic IDs from a Model-scaling
/// View" (arXiv 2509.25522): RQ-VAE's levels without its encoder and decoder. Loss: squared distance of every residual to
/// its entry, summed over levels and dimensions.
///
/// # Deviates
/// The commitment loss is left out: nothing before the codebooks learns, so it has no gradient. Residuals are not
/// normalised.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizeRvq {
    /// Number of levels.
    pub num_codebooks: u32,
    /// Entries of every level's codebook.
    pub codebook_size: u32,
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
    /// Learning rate.
    pub learning_rate: f64,
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

impl Default for QuantizeRvq {
    fn default() -> Self {
        QuantizeRvq {
            num_codebooks: 3,
            codebook_size: 256,
            codebooks: Codebooks::Gradient,
            decay: 0.99,
            start: Start::Table,
            restart_after: Some(24),
            standardize: false,
            optimizer: Optimizer::Adamw,
            learning_rate: 3e-4,
            weight_decay: 0.0,
            batch_size: 1024,
            epochs: 30,
            eval_every: 10,
            collapse_share: 0.1,
            collapse_evaluations: 3,
            collisions: Collisions::CollisionCode,
        }
    }
}

impl Operator for QuantizeRvq {
    const NAME: &'static str = "quantize_rvq";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "embeddings with item_id and embedding")];

    fn bind(&self, binding: &Binding) -> Bound {
        let config = RqVaeConfig {
            dim: 1,
            layers: vec![],
            codebook_sizes: self.levels().sizes(),
        };
        trained_quantizers::bind(binding, self.levels(), &config, &self.options(0))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let options = self.options(context.random("training").key());
        trained_quantizers::run(context, &inputs, self.levels(), &[], &options)
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        trained_quantizers::notes(outputs)
    }
}

impl QuantizeRvq {
    fn levels(&self) -> Levels {
        Levels {
            num_codebooks: self.num_codebooks,
            codebook_size: self.codebook_size,
            collisions: self.collisions,
        }
    }

    fn options(&self, seed: u64) -> TrainOptions {
        TrainOptions {
            epochs: self.epochs as usize,
            batch_size: self.batch_size as usize,
            optimizer: self.optimizer.config(self.weight_decay),
            lr: self.learning_rate,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            beta: 0.0,
            estimator: Estimator::StraightThrough,
            sinkhorn: None,
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
    use sluice_engine::operator::OUT;
    use sluice_engine::text;

    use super::*;
    use crate::{schema, testdata};

    #[test]
    fn near_items_share_codes_and_the_curve_says_how_it_went() {
        let near = text::parse("item_id embedding:[f32;2]\n a 1,0\n b 0.99,0.1\n c 0,1\n d 0,1").unwrap();
        let operator = QuantizeRvq {
            num_codebooks: 1,
            codebook_size: 2,
            epochs: 20,
            ..Default::default()
        };
        let tables = testdata::run(&operator, &[(INPUT, near)]).unwrap();
        let out = tables.batch(OUT).unwrap();
        let (codes, width) = schema::semantic_id_codes(&out).unwrap();
        assert_eq!(width, 2);
        assert_eq!((codes[0], codes[4]), (codes[2], codes[6]));
        assert_ne!(codes[0], codes[4]);
        assert_eq!([codes[1], codes[3], codes[5], codes[7]], [1, 2, 1, 2]);
        let curve = tables.batch("curve").unwrap();
        assert_eq!(curve.num_rows(), 3);
        let folder = tables.folder("codebooks").unwrap();
        assert!(
            sluice_gpu::rqvae::RqVae::load(folder)
                .unwrap()
                .config()
                .layers
                .is_empty()
        );
    }

    #[test]
    fn bad_numbers_are_named() {
        let rows = || text::parse("item_id embedding:[f32;2]\n a 1,0").unwrap();
        let say = |operator: QuantizeRvq| testdata::run(&operator, &[(INPUT, rows())]).err().unwrap().to_string();
        let rate = QuantizeRvq {
            learning_rate: 0.0,
            ..Default::default()
        };
        assert!(say(rate).contains("must be positive"));
        let none = QuantizeRvq {
            num_codebooks: 0,
            ..Default::default()
        };
        assert!(say(none).contains("num_codebooks is 0, not in 1..=16"));
        let share = QuantizeRvq {
            collapse_share: 2.0,
            ..Default::default()
        };
        assert!(say(share).contains("collapse_share must lie in 0..=1"));
    }
}
