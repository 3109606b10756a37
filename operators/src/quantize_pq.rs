//! Semantic ids by product quantization.

use std::collections::BTreeMap;

use arrow::array::Array;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, Operator};
use sluice_engine::table::Tables;
use sluice_gpu::kmeans::Buffer;
use sluice_gpu::pq::{self, PqConfig, PqDistances};

use crate::quantizers::{self, CODEBOOKS, Collisions, INPUT, Levels};

/// Quantizes embeddings to semantic ids by product quantization: k-means in each of several sub-spaces.
///
/// # In
/// `input`: `item_id`, `embedding`.
///
/// # Out
/// `out`, `levels`: as of `quantize_rkmeans`, where `mse` of a level counts the sub-spaces after it in full. `codebooks`: a
/// folder with `config.json` and `model.safetensors`: `codebook.0` .. [entries, width of the sub-space] and, with `opq`,
/// `rotation` [width, width], by which an embedding is multiplied from the right before it is cut.
///
/// # Source
/// Product quantization: Jégou, Douze, Schmid 2011. `opq`: Ge, He, Ke, Sun 2013, the non-parametric solution.
///
/// # Deviates
/// OPQ starts from the solution of PQ, so that its error on the items is never higher; k-means takes two iterations
/// between rotations. Where the width is no multiple of the number of codebooks, the first sub-spaces are wider by one.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct QuantizePq {
    /// Number of sub-spaces, one level each.
    pub num_codebooks: u32,
    /// Entries of every level's codebook.
    pub codebook_size: u32,
    /// What is done before the embedding is cut into sub-spaces.
    pub rotation: Rotation,
    /// Rotations that `opq` tries, one after the other.
    pub rotations: u32,
    /// Most iterations of Lloyd's algorithm.
    pub max_iterations: u32,
    /// Lloyd's algorithm stops when the centres move less than this share of the data's variance.
    pub tolerance: f64,
    /// k-means++ draws the first centres from this many sampled rows, but from no fewer than there are entries; null
    /// means all rows.
    pub init_rows: Option<u32>,
    /// What becomes of items that share all their codes.
    pub collisions: Collisions,
    /// Accept fewer distinct rows than codebook entries; the surplus stays unused.
    pub allow_fewer_items: bool,
}

/// What is done before the embedding is cut into sub-spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// Nothing.
    None,
    /// It is turned so that the codes lose least.
    Opq,
}

impl Default for QuantizePq {
    fn default() -> Self {
        QuantizePq {
            num_codebooks: 4,
            codebook_size: 256,
            rotation: Rotation::Opq,
            rotations: 10,
            max_iterations: 100,
            tolerance: 1e-4,
            init_rows: Some(3072),
            collisions: Collisions::CollisionCode,
            allow_fewer_items: false,
        }
    }
}

impl Operator for QuantizePq {
    const NAME: &'static str = "quantize_pq";
    const VERSION: u32 = 2;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "embeddings with item_id and embedding")];

    fn bind(&self, binding: &Binding) -> Bound {
        if self.max_iterations == 0 {
            binding.bad_value("max_iterations", "max_iterations must be positive");
        }
        quantizers::check_init_rows(binding, self.init_rows);
        self.levels().bind(binding)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INPUT)?;
        let (items, rows, width) = quantizers::read_embeddings(&batch)?;
        let config = PqConfig {
            codebook_sizes: self.levels().sizes(),
            rotations: match self.rotation {
                Rotation::None => 0,
                Rotation::Opq => self.rotations as usize,
            },
            max_iterations: self.max_iterations as usize,
            tolerance: self.tolerance,
            buffer: self
                .init_rows
                .map_or(Buffer::All, |rows| Buffer::Sampled(rows as usize)),
            seed: context.random("centres").key(),
            allow_fewer_distinct: self.allow_fewer_items,
        };
        let fit = pq::fit(rows, width, &config, |done, error| {
            context.progress(
                done as u64,
                Some(config.rotations as u64),
                "rotations",
                &[("mse", error)],
            );
        })
        .map_err(|error| {
            let hint = match error {
                pq::PqError::SubSpaces { .. } => "lower num_codebooks",
                pq::PqError::Level { .. } => quantizers::too_few_hint(self.init_rows, items.len()),
            };
            quantizers::failed(error, items.len(), self.levels()).hint(hint)
        })?;
        let distances = PqDistances {
            quantizer: &fit.quantizer,
            rotated_nd: &fit.rotated_nd,
        };
        let tables = self.levels().tables(items, fit.codes_nc, &distances, &fit.levels)?;
        let config = serde_json::json!({
            "quantizer": "pq",
            "dim": width,
            "codebook_sizes": config.codebook_sizes,
            "rotation": fit.quantizer.rotation_dd.is_some(),
        });
        let codebooks = quantizers::save_codebooks(context, &fit.quantizer.weights(), &config)?;
        Ok(tables.with(CODEBOOKS, codebooks))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        quantizers::notes(outputs)
    }
}

impl QuantizePq {
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
    use sluice_engine::operator::OUT;
    use sluice_engine::text;

    use super::*;
    use crate::{schema, testdata};

    #[test]
    fn every_sub_space_is_a_level() {
        let rows = "item_id embedding:[f32;3]\n a 1,1,5\n b 1,1,-5\n c -1,-1,5\n d -1,-1,-5";
        for rotation in [Rotation::None, Rotation::Opq] {
            let operator = QuantizePq {
                num_codebooks: 2,
                codebook_size: 2,
                rotation,
                collisions: Collisions::None,
                ..Default::default()
            };
            let tables = testdata::run(&operator, &[(INPUT, text::parse(rows).unwrap())]).unwrap();
            let out = tables.batch(OUT).unwrap();
            let (codes, width) = schema::semantic_id_codes(&out).unwrap();
            assert_eq!(width, 2);
            assert!(
                codes[0] == codes[2] && codes[4] == codes[6] && codes[0] != codes[4],
                "{codes:?}"
            );
            assert!(
                codes[1] == codes[5] && codes[3] == codes[7] && codes[1] != codes[3],
                "{codes:?}"
            );
            assert!(tables.folder(CODEBOOKS).unwrap().join("model.safetensors").is_file());
        }
    }

    #[test]
    fn more_sub_spaces_than_dimensions_are_an_error() {
        let rows = text::parse("item_id embedding:[f32;2]\n a 1,0\n b 0,1").unwrap();
        let operator = QuantizePq {
            num_codebooks: 3,
            codebook_size: 1,
            ..Default::default()
        };
        let error = testdata::run(&operator, &[(INPUT, rows.clone())]).err().unwrap();
        assert!(
            error
                .to_string()
                .contains("3 sub-spaces cannot be made of 2 dimensions"),
            "{error}"
        );
        assert!(error.to_string().contains("lower num_codebooks"), "{error}");
        let operator = QuantizePq {
            init_rows: Some(0),
            ..operator
        };
        let error = testdata::run(&operator, &[(INPUT, rows)]).err().unwrap();
        assert_eq!(error.message, "init_rows must be positive");
    }
}
