//! Embeds item texts without a model: tf-idf, then a truncated singular value decomposition.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::svd::{SvdConfig, truncated_svd};
use sluice_gpu::tfidf::{DocumentFrequency, Tfidf, TfidfConfig};

use crate::schema::{self, ITEM_ID, TEXT};

const INPUT: &str = "input";

/// Embeds item texts by latent semantic analysis: tf-idf weights, then truncated SVD. Needs no download.
///
/// # In
/// `input`: `item_id`, `text`.
///
/// # Out
/// `out`: `item_id`, `embedding` (`dim` numbers, U S of the decomposition). `components`: what each dimension
/// explains, `dimension`, `singular_value`, `explained_variance_ratio`.
///
/// # Source
/// Deerwester et al., "Indexing by latent semantic analysis" (1990). The weighting is scikit-learn's
/// `TfidfVectorizer`; the decomposition is Halko, Martinsson, Tropp (2011).
///
/// # Deviates
/// By default `min_df` is 2 and `sublinear_tf` true; scikit-learn's defaults are 1 and false. Of its
/// `TruncatedSVD(algorithm="randomized")` only the random numbers differ.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedTfidfSvd {
    /// Width of an embedding; at most the rank of the tf-idf matrix.
    pub dim: u32,
    /// Drop words in fewer texts than this.
    pub min_df: u32,
    /// Drop words in more than this share of the texts.
    pub max_df: f64,
    /// Keep only this many words, the most frequent; null keeps all.
    pub max_features: Option<u32>,
    /// Count a word in a text as 1 + ln(count).
    pub sublinear_tf: bool,
    /// Use pairs of neighbouring words too.
    pub bigrams: bool,
    /// Divide every embedding by its L2 norm.
    pub normalize: bool,
}

impl Default for EmbedTfidfSvd {
    fn default() -> Self {
        EmbedTfidfSvd {
            dim: 64,
            min_df: 2,
            max_df: 1.0,
            max_features: None,
            sublinear_tf: true,
            bigrams: false,
            normalize: true,
        }
    }
}

impl Operator for EmbedTfidfSvd {
    const NAME: &'static str = "embed_tfidf_svd";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "items with item_id and text")];

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(INPUT, &[(ITEM_ID, DataType::Utf8), (TEXT, DataType::Utf8)]);
        if self.dim == 0 {
            binding.bad_value("dim", "an embedding wants at least one dimension");
        }
        if !(self.max_df > 0.0 && self.max_df <= 1.0) {
            binding.bad_value("max_df", "max_df is a share of the texts, above 0 and at most 1");
        }
        if self.max_features == Some(0) {
            binding.bad_value("max_features", "max_features must be positive; null keeps all words");
        }
        let components = "dimension:u32 singular_value:f64 explained_variance_ratio:f64";
        let components = sluice_engine::text::parse(components).map(|batch| batch.schema());
        let bound = Bound::whole().out(Shape::table(schema::embeddings(self.dim as usize)));
        match components {
            Ok(schema) => bound.output("components", Shape::Table(schema)),
            Err(_) => bound,
        }
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INPUT)?;
        let texts: Vec<&str> = schema::strings(&batch, TEXT)?
            .iter()
            .map(Option::unwrap_or_default)
            .collect();
        let config = TfidfConfig {
            min_df: DocumentFrequency::Count(self.min_df as usize),
            max_df: DocumentFrequency::Fraction(self.max_df),
            max_features: self.max_features.map(|count| count as usize),
            sublinear_tf: self.sublinear_tf,
            bigrams: self.bigrams,
        };
        let (_, matrix) = Tfidf::fit(&texts, &config).map_err(|error| Error::data("tfidf", error.to_string()))?;
        context.check_cancelled()?;
        let config = SvdConfig {
            dim: self.dim as usize,
            oversampling: 10,
            power_iterations: 5,
            normalize: self.normalize,
            seed: context.random("sketch").key(),
        };
        let svd = truncated_svd(&matrix, &config)
            .map_err(|error| Error::data("svd", error.to_string()).hint("lower dim, or min_df"))?;
        let components = RecordBatch::try_from_iter([
            (
                "dimension",
                Arc::new(arrow::array::UInt32Array::from_iter_values(0..self.dim)) as ArrayRef,
            ),
            (
                "singular_value",
                Arc::new(arrow::array::Float64Array::from(svd.singular_values_d)) as ArrayRef,
            ),
            (
                "explained_variance_ratio",
                Arc::new(arrow::array::Float64Array::from(svd.explained_variance_ratio_d)) as ArrayRef,
            ),
        ])?;
        let embeddings = embeddings(schema::strings(&batch, ITEM_ID)?, svd.embeddings_nd, self.dim as usize)?;
        Ok(Tables::out(embeddings).with("components", Table::new(components)))
    }

    fn conclude(
        &self,
        _context: &Context,
        _rows_in: &BTreeMap<String, u64>,
        outputs: &Tables,
    ) -> Result<sluice_engine::operator::Notes> {
        let batch = outputs.batch("components")?;
        let ratios = schema::numbers::<arrow::datatypes::Float64Type>(&batch, "explained_variance_ratio")?;
        let mut notes = sluice_engine::operator::Notes::new();
        notes.insert(
            "explained_variance".into(),
            format!("{:.4}", ratios.values().iter().sum::<f64>()).into(),
        );
        Ok(notes)
    }
}

/// An embeddings table out of row-major values.
pub fn embeddings(items: &StringArray, values: Vec<f32>, width: usize) -> Result<RecordBatch> {
    let field = arrow::datatypes::Field::new_list_field(DataType::Float32, false);
    let values = Arc::new(Float32Array::from(values));
    let lists = FixedSizeListArray::try_new(Arc::new(field), width as i32, values, None)?;
    let columns: Vec<ArrayRef> = vec![Arc::new(items.clone()), Arc::new(lists)];
    let schema = arrow::datatypes::Schema::new(schema::embeddings(width));
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_engine::operator::OUT;
    use sluice_engine::{harness, text};

    fn items() -> RecordBatch {
        text::parse(
            "item_id | text
             1 | red nail polish
             2 | blue nail polish
             3 | rose hand cream
             4 | soft hand cream
             5 | red nail lacquer",
        )
        .unwrap()
    }

    #[test]
    fn like_texts_have_like_embeddings() {
        let operator = EmbedTfidfSvd {
            dim: 2,
            min_df: 1,
            ..Default::default()
        };
        let out = harness::run(&operator, &[("input", items())])
            .unwrap()
            .batch(OUT)
            .unwrap();
        let (values, width) = schema::embedding_values(&out).unwrap();
        let dot =
            |a: usize, b: usize| -> f32 { (0..width).map(|d| values[a * width + d] * values[b * width + d]).sum() };
        assert!(
            dot(0, 1) > 0.9 && dot(2, 3) > 0.9 && dot(0, 2).abs() < 0.5,
            "{values:?}"
        );
    }

    #[test]
    fn too_many_dimensions_are_an_error() {
        let operator = EmbedTfidfSvd {
            dim: 50,
            min_df: 1,
            ..Default::default()
        };
        let error = harness::run(&operator, &[("input", items())]).unwrap_err();
        assert_eq!(error.code, "svd");
        let operator = EmbedTfidfSvd {
            max_features: Some(0),
            ..operator
        };
        let error = harness::run(&operator, &[("input", items())]).unwrap_err();
        assert!(error.message.starts_with("max_features must be positive"), "{error}");
    }
}
