//! The worked example of CONTRIBUTING.md, compiled and tested so that it stays true. In the repository this file would
//! be `operators/src/filter_rating.rs`, with `use crate::schema::...` for `use sluice_operators::schema::...`.

fn main() {
    let registry = sluice_engine::operator::Registry::new().with::<FilterRating>();
    assert!(registry.get("filter_rating").is_some());
}

// --- cut ---
use std::collections::BTreeMap;

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Float32Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::Tables;
use sluice_operators::schema::RATING;

const INTERACTIONS: &str = "interactions";

/// Keeps interactions with at least a rating.
///
/// # In
/// `interactions`: any table with `rating`.
///
/// # Out
/// `out`: the rows kept, all columns unchanged, in order.
///
/// # Source
/// Implicit feedback from stars: 4 and more count as liked in much of the literature on MovieLens.
///
/// # Deviates
/// Nothing. Rows without a rating are dropped.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FilterRating {
    /// The lowest rating that stays.
    pub min_rating: f64,
}

impl Default for FilterRating {
    fn default() -> Self {
        FilterRating { min_rating: 4.0 }
    }
}

impl Operator for FilterRating {
    const NAME: &'static str = "filter_rating";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(INTERACTIONS, "interactions with ratings")];

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(INTERACTIONS, &[(RATING, DataType::Float32)]);
        if !self.min_rating.is_finite() {
            binding.bad_value("min_rating", "\"min_rating\" wants a finite number");
        }
        Bound::rows(INTERACTIONS).out(binding.shape(INTERACTIONS))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INTERACTIONS)?;
        let ratings = batch.column(batch.schema().index_of(RATING)?);
        let keep: BooleanArray = ratings
            .as_primitive::<Float32Type>()
            .iter()
            .map(|rating| Some(rating.is_some_and(|rating| f64::from(rating) >= self.min_rating)))
            .collect();
        Ok(Tables::out(filter_record_batch(&batch, &keep)?))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let rows = rows_in.get(INTERACTIONS).copied().unwrap_or_default();
        let kept = outputs.table(OUT)?.rows()?;
        Ok(Notes::from_iter([("dropped".to_string(), (rows - kept).into())]))
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    const ROWS: &str = "user_id item_id rating:f32
        u1 a 5
        u1 b 3.5
        u2 a null
        u2 c 4";

    #[test]
    fn low_and_missing_ratings_go() {
        let out = harness::run(&FilterRating::default(), &[(INTERACTIONS, text::parse(ROWS).unwrap())]).unwrap();
        let wanted = "user_id  item_id  rating\nu1       a        5.0\nu2       c        4.0\n";
        assert_eq!(text::render(&out.batch(OUT).unwrap()).unwrap(), wanted);
    }

    #[test]
    fn a_table_without_ratings_is_refused() {
        let rows = text::parse("user_id item_id\nu1 a").unwrap();
        let error = harness::run(&FilterRating::default(), &[(INTERACTIONS, rows)]).unwrap_err();
        assert_eq!(error.code, "missing-column");
    }
}
