//! Semantic ids by residual k-means.

use std::collections::BTreeMap;

use arrow::array::Array;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, Operator};
use sluice_engine::table::Tables;
use sluice_engine::{Error, Result};
use sluice_gpu::kernels::Kernels;
use sluice_gpu::kmeans::{Buffer, KMeansError, Schedule};
use sluice_gpu::residual::{self, ResidualConfig, ResidualDistances, ResidualError};

use crate::models;
use crate::quantizers::{self, CODEBOOKS, Collisions, INPUT, Levels};

/// Quantizes embeddings to semantic ids by residual k-means: each level clusters what the levels before it left over.
///
/// # In
/// `input`: `item_id`, `embedding`.
///
/// # Out
/// `out`: `item_id`, `semantic_id` (a code per level, then the collision code if there is one). `levels`: `level`,
/// `input_mse`, `mse` (mean squared norm of the residual before and after the level), `iterations`, `converged`, `used`
/// (codes in use). `codebooks`: a folder with `config.json` and `model.safetensors` (`codebook.0` .. [entries, width]).
///
/// # Source
/// GRID (arXiv 2507.22224): residuals L2-normalised before every level, k-means++ on a buffer of rows, `mini_batch`:
/// about 8 updates of 2,048 rows. Collision codes: GRID.
///
/// # Deviates
/// `lloyd`, the default, runs to convergence, which lowers the error; `mini_batch` is GRID's own. `beam` and `balance` are
/// additions: with a beam, items are encoded again after all codebooks are fitted; under a balance, items and centres
/// settle together, each item as near as it can be where none would rather swap (Gale and Shapley 1962).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizeRkmeans {
    /// Number of levels.
    pub num_codebooks: u32,
    /// Entries of every level's codebook.
    pub codebook_size: u32,
    /// How centres move.
    pub algorithm: Algorithm,
    /// Most iterations of Lloyd's algorithm.
    pub max_iterations: u32,
    /// Lloyd's algorithm stops when the centres move less than this share of the data's variance.
    pub tolerance: f64,
    /// Updates per level of the mini-batch variant.
    pub updates: u32,
    /// Rows per update of the mini-batch variant.
    pub batch_rows: u32,
    /// k-means++ draws the first centres from this many sampled rows, but from no fewer than there are entries; null
    /// means all rows.
    pub init_rows: Option<u32>,
    /// L2-normalise the residual before every level, the embedding too.
    pub normalize_residuals: bool,
    /// Partial codes kept per item while it is encoded; 1 takes the nearest entry of each level. More never raises an
    /// item's error.
    pub beam: u32,
    /// No entry gets more items than this times the average, rounded up; null sets no limit. Not with a beam.
    pub balance: Option<f64>,
    /// What becomes of items that share all their codes.
    pub collisions: Collisions,
    /// Accept fewer distinct rows than codebook entries; the surplus stays unused.
    pub allow_fewer_items: bool,
    /// Where k-means finds the nearest centres: `cpu`, `cuda`, `cuda:1` or `auto`. Ids are the same.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// How centres move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Lloyd's algorithm to convergence.
    Lloyd,
    /// A few updates, each from a batch of rows (GRID).
    MiniBatch,
}

impl Default for QuantizeRkmeans {
    fn default() -> Self {
        QuantizeRkmeans {
            num_codebooks: 3,
            codebook_size: 256,
            algorithm: Algorithm::Lloyd,
            max_iterations: 100,
            tolerance: 1e-4,
            updates: 8,
            batch_rows: 2048,
            init_rows: Some(3072),
            normalize_residuals: true,
            beam: 1,
            balance: None,
            collisions: Collisions::CollisionCode,
            allow_fewer_items: false,
            device: "auto".to_string(),
        }
    }
}

impl Operator for QuantizeRkmeans {
    const NAME: &'static str = "quantize_rkmeans";
    const VERSION: u32 = 3;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "embeddings with item_id and embedding")];

    fn bind(&self, binding: &Binding) -> Bound {
        if self.algorithm == Algorithm::Lloyd && self.max_iterations == 0 {
            binding.bad_value("max_iterations", "max_iterations must be positive");
        }
        if self.algorithm == Algorithm::MiniBatch && (self.updates == 0 || self.batch_rows == 0) {
            binding.bad_value("updates", "updates and batch_rows must be positive");
        }
        if !(1..=1024).contains(&self.beam) {
            binding.bad_value("beam", format!("beam is {}, not in 1..=1024", self.beam));
        }
        if let Some(balance) = self.balance {
            if !balance.is_finite() || balance < 1.0 {
                binding.bad_value("balance", format!("balance is {balance}, it must be at least 1"));
            }
            if self.beam > 1 {
                binding.bad_value("beam", "a beam would undo the balance; set beam: 1 or balance: null");
            }
        }
        models::check_device(binding, &self.device);
        quantizers::check_init_rows(binding, self.init_rows);
        self.levels().bind(binding)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INPUT)?;
        let (items, rows, width) = quantizers::read_embeddings(&batch)?;
        let sizes = self.levels().sizes();
        let config = ResidualConfig {
            codebook_sizes: sizes.clone(),
            normalize_residuals: self.normalize_residuals,
            schedule: match self.algorithm {
                Algorithm::Lloyd => Schedule::Lloyd {
                    max_iterations: self.max_iterations as usize,
                    tolerance: self.tolerance,
                },
                Algorithm::MiniBatch => Schedule::MiniBatch {
                    updates: self.updates as usize,
                    batch_rows: self.batch_rows as usize,
                },
            },
            buffer: self
                .init_rows
                .map_or(Buffer::All, |rows| Buffer::Sampled(rows as usize)),
            seed: context.random("centres").key(),
            allow_fewer_distinct: self.allow_fewer_items,
            // further down, to tell how far it is
            beam: 1,
            balance: self.balance,
        };
        let kernels = Kernels::of(&models::device(context, &self.device)?);
        let mut fit = residual::fit_by(kernels.as_ref(), rows, width, &config, |level, report| {
            let (done, total) = (level as u64 + 1, Some(sizes.len() as u64));
            context.progress(done, total, "levels", &[("mse", report.mse)]);
        })
        .map_err(|error| match error {
            ResidualError::Level {
                source: KMeansError::Device(_),
                ..
            } => Error::device("device", error.to_string()).hint("device: cpu works everywhere"),
            _ => {
                let hint = quantizers::too_few_hint(self.init_rows, items.len());
                quantizers::failed(error, items.len(), self.levels()).hint(hint)
            }
        })?;
        if self.beam > 1 {
            fit.search(rows, self.beam as usize, |done| {
                context.progress(done as u64, Some(items.len() as u64), "items", &[]);
                models::stopped(context)
            });
            context.check_cancelled()?;
        }
        let distances = ResidualDistances {
            quantizer: &fit.quantizer,
            rows_nd: rows,
        };
        let tables = self.levels().tables(items, fit.codes_nc, &distances, &fit.levels)?;
        let config = serde_json::json!({
            "quantizer": "rkmeans",
            "dim": width,
            "codebook_sizes": sizes,
            "normalize_residuals": self.normalize_residuals,
        });
        let codebooks = quantizers::save_codebooks(context, &fit.quantizer.weights(), &config)?;
        Ok(tables.with(CODEBOOKS, codebooks))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        quantizers::notes(outputs)
    }
}

impl QuantizeRkmeans {
    fn levels(&self) -> Levels {
        Levels {
            num_codebooks: self.num_codebooks,
            codebook_size: self.codebook_size,
            collisions: self.collisions,
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use arrow::datatypes::{Float64Type, UInt32Type};
    use sluice_engine::operator::OUT;
    use sluice_engine::text;

    use super::*;
    use crate::{schema, testdata};

    fn four() -> RecordBatch {
        text::parse("item_id embedding:[f32;2]\n a 1,0\n b 0.99,0.1\n c 0,1\n d 0,1").unwrap()
    }

    #[test]
    fn colliding_items_get_collision_codes() {
        let operator = QuantizeRkmeans {
            num_codebooks: 1,
            codebook_size: 2,
            ..Default::default()
        };
        let out = testdata::run(&operator, &[("input", four())])
            .unwrap()
            .batch(OUT)
            .unwrap();
        let (codes, width) = schema::semantic_id_codes(&out).unwrap();
        assert_eq!(width, 2);
        assert_eq!(codes[0], codes[2], "a and b share a cluster");
        assert_ne!(codes[0], codes[4], "a and c do not");
        assert_eq!([codes[1], codes[3], codes[5], codes[7]], [1, 2, 1, 2]);
    }

    #[test]
    fn colliding_items_move_or_share_as_asked() {
        let ids = |collisions, codebook_size| {
            let operator = QuantizeRkmeans {
                num_codebooks: 2,
                codebook_size,
                allow_fewer_items: true,
                collisions,
                ..Default::default()
            };
            let out = testdata::run(&operator, &[("input", four())])?.batch(OUT)?;
            let field = out.schema().field(1).clone();
            assert_eq!(schema::semantic_id_levels(&field), Some((2, false)));
            let (codes, _) = schema::semantic_id_codes(&out)?;
            Ok::<_, sluice_engine::Error>(codes.chunks(2).map(<[u16]>::to_vec).collect::<Vec<_>>())
        };
        let shared = ids(Collisions::None, 2).unwrap();
        assert_eq!(shared[2], shared[3]);
        let moved = ids(Collisions::NearestFree, 2).unwrap();
        assert_eq!(shared[..3], moved[..3]);
        assert_eq!((shared[3][0], shared[3][1]), (moved[3][0], 1 - moved[3][1]));
        let error = ids(Collisions::NearestFree, 1).err().unwrap();
        assert_eq!(error.code, "too-many-items");
        assert!(
            error.to_string().contains("4 rows cannot have different codes"),
            "{error}"
        );
    }

    #[test]
    fn a_balance_and_a_beam_exclude_each_other() {
        let operator = QuantizeRkmeans {
            codebook_size: 2,
            balance: Some(1.0),
            beam: 2,
            ..Default::default()
        };
        let error = testdata::run(&operator, &[("input", four())]).err().unwrap();
        assert!(error.to_string().contains("a beam would undo the balance"), "{error}");
        let balanced = QuantizeRkmeans {
            num_codebooks: 1,
            beam: 1,
            ..operator
        };
        let out = testdata::run(&balanced, &[("input", four())])
            .unwrap()
            .batch(OUT)
            .unwrap();
        let (codes, _) = schema::semantic_id_codes(&out).unwrap();
        assert_eq!(codes.iter().step_by(2).filter(|code| **code == 0).count(), 2);
    }

    #[test]
    fn fewer_items_than_entries_are_an_error() {
        let operator = QuantizeRkmeans {
            num_codebooks: 1,
            codebook_size: 8,
            ..Default::default()
        };
        let error = testdata::run(&operator, &[("input", four())]).err().unwrap();
        assert_eq!(error.code, "quantize");
        assert!(error.to_string().contains("allow_fewer_items"), "{error}");
    }

    #[test]
    fn centres_are_drawn_from_no_fewer_rows_than_there_are_entries() {
        let operator = QuantizeRkmeans {
            num_codebooks: 1,
            codebook_size: 3,
            init_rows: Some(1),
            allow_fewer_items: true,
            ..Default::default()
        };
        let rows = "item_id embedding:[f32;2]\n a 1,0\n b 0,1\n c -1,0";
        let out = testdata::run(&operator, &[("input", text::parse(rows).unwrap())]).unwrap();
        let used = out.batch("levels").unwrap();
        let used = schema::numbers::<UInt32Type>(&used, "used").unwrap().values().to_vec();
        assert_eq!(used, [3]);
        let operator = QuantizeRkmeans {
            init_rows: Some(0),
            ..operator
        };
        let error = testdata::run(&operator, &[("input", four())]).err().unwrap();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("bad-value", "init_rows must be positive")
        );
    }

    #[test]
    fn a_beam_lowers_the_error() {
        let row = |item: u32| format!("\n i{item} {},{},{}", item % 7, item * item % 11, item % 5);
        let rows = (1..60).fold("item_id embedding:[f32;3]".to_string(), |text, item| text + &row(item));
        let mse = |beam| {
            let operator = QuantizeRkmeans {
                num_codebooks: 3,
                codebook_size: 4,
                normalize_residuals: false,
                beam,
                ..Default::default()
            };
            let out = testdata::run(&operator, &[("input", text::parse(&rows).unwrap())]).unwrap();
            let levels = out.batch("levels").unwrap();
            schema::numbers::<Float64Type>(&levels, "mse").unwrap().value(2)
        };
        assert!(mse(16) < mse(1));
    }

    #[test]
    fn nan_embeddings_name_the_item() {
        let batch = text::parse("item_id embedding:[f32;2]\n a 1,0\n b 0.5,NaN").unwrap();
        let operator = QuantizeRkmeans {
            num_codebooks: 1,
            codebook_size: 2,
            ..Default::default()
        };
        let error = testdata::run(&operator, &[("input", batch)]).err().unwrap();
        assert!(error.message.contains("item \"b\" is NaN in dimension 1"), "{error}");
    }

    #[test]
    fn an_empty_catalogue_is_an_error() {
        let error = testdata::run(&QuantizeRkmeans::default(), &[("input", four().slice(0, 0))])
            .err()
            .unwrap();
        assert_eq!(error.code, "empty-catalogue");
    }
}
