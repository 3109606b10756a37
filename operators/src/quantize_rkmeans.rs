//! Semantic ids by residual k-means.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, FixedSizeListArray, Float64Array, RecordBatch, UInt16Array, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::kmeans::{Buffer, Schedule};
use sluice_gpu::residual::{self, ResidualConfig};

use crate::schema::{self, EMBEDDING, ITEM_ID};

const INPUT: &str = "input";
const LEVELS: &str = "levels";

/// Quantizes embeddings to semantic ids by residual k-means: each level clusters what the levels before it left over.
///
/// # In
/// `input`: `item_id`, `embedding`.
///
/// # Out
/// `out`: `item_id`, `semantic_id` (a code per level, then the collision code). `levels`: `level`, `input_mse`, `mse` (mean
/// squared norm of the residual before and after the level), `iterations`, `converged`, `used` (codes in use).
///
/// # Source
/// GRID (arXiv 2507.22224): residuals L2-normalised before every level, k-means++ on a buffer of rows, `mini_batch`:
/// about 8 updates of 2,048 rows. Collision codes: GRID; a unique id gets 0, n items that collide get 1..n in table order.
///
/// # Deviates
/// `lloyd`, the default, runs to convergence, which lowers the error; `mini_batch` is GRID's own.
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
    /// k-means++ draws the first centres from this many sampled rows; null means all rows.
    pub init_rows: Option<u32>,
    /// L2-normalise the residual before every level, the embedding too.
    pub normalize_residuals: bool,
    /// Append a collision code, which makes every semantic id unique.
    pub collision_code: bool,
    /// Accept fewer distinct rows than codebook entries; the surplus stays unused.
    pub allow_fewer_items: bool,
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
            collision_code: true,
            allow_fewer_items: false,
        }
    }
}

impl Operator for QuantizeRkmeans {
    const NAME: &'static str = "quantize_rkmeans";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "embeddings with item_id and embedding")];

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(INPUT, &[(ITEM_ID, DataType::Utf8)]);
        if let Some(schema) = binding.schema(INPUT) {
            match schema.field_with_name(EMBEDDING).map(|field| field.data_type().clone()) {
                Ok(DataType::FixedSizeList(item, _)) if item.data_type() == &DataType::Float32 => {}
                Ok(other) => binding.input_problem(
                    INPUT,
                    Error::user(
                        "wrong-type",
                        format!("column \"{EMBEDDING}\" is {other}, not a list of Float32 of fixed size"),
                    ),
                ),
                Err(_) => binding.missing_column(INPUT, EMBEDDING),
            }
        }
        if !(1..=16).contains(&self.num_codebooks) {
            binding.bad_value(
                "num_codebooks",
                format!("num_codebooks is {}, not in 1..=16", self.num_codebooks),
            );
        }
        if !(1..=65_535).contains(&self.codebook_size) {
            binding.bad_value(
                "codebook_size",
                format!("codebook_size is {}, not in 1..=65535", self.codebook_size),
            );
        }
        if self.algorithm == Algorithm::Lloyd && self.max_iterations == 0 {
            binding.bad_value("max_iterations", "max_iterations must be positive");
        }
        if self.algorithm == Algorithm::MiniBatch && (self.updates == 0 || self.batch_rows == 0) {
            binding.bad_value("updates", "updates and batch_rows must be positive");
        }
        let sizes = vec![self.codebook_size as usize; self.num_codebooks as usize];
        Bound::whole()
            .out(Shape::table(schema::semantic_ids(&sizes, self.collision_code)))
            .output(LEVELS, Shape::table(level_fields()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INPUT)?;
        let items = schema::strings(&batch, ITEM_ID)?;
        let (rows, width) = schema::embedding_values(&batch)?;
        if items.is_empty() {
            return Err(Error::data("empty-catalogue", "there is no item to quantize"));
        }
        if let Some(at) = rows.iter().position(|value| !value.is_finite()) {
            let (row, dimension) = (at / width, at % width);
            return Err(Error::data(
                "not-a-number",
                format!(
                    "the embedding of item \"{}\" is {} in dimension {dimension}",
                    items.value(row),
                    rows[at]
                ),
            )
            .hint("look at the stage that made the embeddings"));
        }
        let sizes = vec![self.codebook_size as usize; self.num_codebooks as usize];
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
        };
        let levels = sizes.len();
        let fit = residual::fit(rows, width, &config, |level, report| {
            context.progress(level as u64 + 1, Some(levels as u64), "levels", &[("mse", report.mse)]);
        })
        .map_err(|error| {
            Error::data("quantize", error.to_string())
                .detail(format!("{} items, {} entries a level", items.len(), self.codebook_size))
                .hint("lower codebook_size, or set allow_fewer_items: true")
        })?;
        let mut codes: Vec<Vec<u32>> = fit.codes_nc.chunks_exact(levels).map(<[u32]>::to_vec).collect();
        if self.collision_code {
            let collisions =
                residual::collision_codes(&fit.codes_nc, levels).map_err(|error| Error::internal(error.to_string()))?;
            for (row, code) in codes.iter_mut().zip(&collisions.codes_n) {
                row.push(*code);
            }
        }
        let width = levels + usize::from(self.collision_code);
        let flat = codes.into_iter().flatten().map(|code| {
            u16::try_from(code)
                .map_err(|_| Error::data("too-many-collisions", format!("collision code {code} is above 65535")))
        });
        let flat = UInt16Array::from(flat.collect::<Result<Vec<u16>>>()?);
        let field = Arc::new(Field::new_list_field(DataType::UInt16, false));
        let ids = FixedSizeListArray::try_new(field, width as i32, Arc::new(flat), None)?;
        let schema = Schema::new(schema::semantic_ids(&sizes, self.collision_code));
        let columns: Vec<ArrayRef> = vec![Arc::new(items.clone()), Arc::new(ids)];
        let out = RecordBatch::try_new(Arc::new(schema), columns)?;
        let reports = &fit.levels;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt32Array::from_iter_values(0..levels as u32)),
            Arc::new(Float64Array::from_iter_values(
                reports.iter().map(|report| report.input_mse),
            )),
            Arc::new(Float64Array::from_iter_values(reports.iter().map(|report| report.mse))),
            Arc::new(UInt32Array::from_iter_values(
                reports.iter().map(|report| report.iterations as u32),
            )),
            Arc::new(arrow::array::BooleanArray::from_iter(
                reports.iter().map(|report| Some(report.converged)),
            )),
            Arc::new(UInt32Array::from_iter_values(
                reports.iter().map(|report| report.used as u32),
            )),
        ];
        let table = RecordBatch::try_new(Arc::new(Schema::new(level_fields())), columns)?;
        Ok(Tables::out(out).with(LEVELS, Table::new(table)))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let levels = outputs.batch(LEVELS)?;
        let mse = schema::numbers::<arrow::datatypes::Float64Type>(&levels, "mse")?;
        let mut notes = Notes::new();
        notes.insert("items".into(), outputs.table(OUT)?.rows()?.into());
        notes.insert("mse".into(), format!("{:.4}", mse.value(mse.len() - 1)).into());
        Ok(notes)
    }
}

fn level_fields() -> Vec<Field> {
    vec![
        Field::new("level", DataType::UInt32, false),
        Field::new("input_mse", DataType::Float64, false),
        Field::new("mse", DataType::Float64, false),
        Field::new("iterations", DataType::UInt32, false),
        Field::new("converged", DataType::Boolean, false),
        Field::new("used", DataType::UInt32, false),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_engine::{harness, text};

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
        let out = harness::run(&operator, &[("input", four())])
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
    fn fewer_items_than_entries_are_an_error() {
        let operator = QuantizeRkmeans {
            num_codebooks: 1,
            codebook_size: 8,
            ..Default::default()
        };
        let error = harness::run(&operator, &[("input", four())]).unwrap_err();
        assert_eq!(error.code, "quantize");
        assert!(error.to_string().contains("allow_fewer_items"), "{error}");
    }

    #[test]
    fn nan_embeddings_name_the_item() {
        let batch = text::parse("item_id embedding:[f32;2]\n a 1,0\n b 0.5,NaN").unwrap();
        let operator = QuantizeRkmeans {
            num_codebooks: 1,
            codebook_size: 2,
            ..Default::default()
        };
        let error = harness::run(&operator, &[("input", batch)]).unwrap_err();
        assert!(error.message.contains("item \"b\" is NaN in dimension 1"), "{error}");
    }

    #[test]
    fn an_empty_catalogue_is_an_error() {
        let error = harness::run(&QuantizeRkmeans::default(), &[("input", four().slice(0, 0))]).unwrap_err();
        assert_eq!(error.code, "empty-catalogue");
    }
}
