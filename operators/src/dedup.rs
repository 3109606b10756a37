//! Drops rows that repeat an earlier (or precede a later) row in the columns that matter.

use std::collections::{BTreeMap, HashSet};

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::row::{RowConverter, SortField};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::Tables;
use sluice_engine::{Error, Result};

use crate::schema::{ITEM_ID, TIMESTAMP, USER_ID};

const INTERACTIONS: &str = "interactions";

/// Drops duplicate rows.
///
/// # In
/// `interactions`: any table with the columns of `by`.
///
/// # Out
/// `out`: the rows kept, all columns unchanged, in source order within a partition.
///
/// # Source
/// Exact duplicates in (user, item, time) are recording errors in the Amazon dumps; repeats of (user, item) are
/// behaviour, and dropping them (`by: [user_id, item_id]`) is a choice.
///
/// # Deviates
/// Nothing. Two nulls count as equal.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Dedup {
    /// Rows equal in these columns are duplicates.
    pub by: Vec<String>,
    /// Which of the duplicates stays, in source order.
    pub keep: Keep,
}

/// Which of several duplicates stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The first one.
    First,
    /// The last one.
    Last,
}

impl Default for Dedup {
    fn default() -> Self {
        Dedup {
            by: [USER_ID, ITEM_ID, TIMESTAMP].map(String::from).to_vec(),
            keep: Keep::First,
        }
    }
}

impl Operator for Dedup {
    const NAME: &'static str = "dedup";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(INTERACTIONS, "rows, some of them duplicates")];

    fn bind(&self, binding: &Binding) -> Bound {
        if self.by.is_empty() {
            binding.bad_value("by", "\"by\" names no column, so every row would be a duplicate");
        }
        // One table for the shape check, then column by column: any type will do.
        binding.require(INTERACTIONS, &[]);
        if let Some(schema) = binding.schema(INTERACTIONS) {
            for name in self.by.iter().filter(|name| schema.index_of(name).is_err()) {
                binding.missing_column(INTERACTIONS, name);
            }
        }
        Bound::by(INTERACTIONS, &[self.partition_column()]).out(binding.shape(INTERACTIONS))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INTERACTIONS)?;
        let columns = self
            .by
            .iter()
            .map(|name| batch.column_by_name(name).cloned())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::internal("a column of \"by\" is missing"))?;
        let fields = columns
            .iter()
            .map(|column| SortField::new(column.data_type().clone()))
            .collect();
        let rows = RowConverter::new(fields)?.convert_columns(&columns)?;
        let mut seen = HashSet::with_capacity(batch.num_rows());
        let mut kept = vec![false; batch.num_rows()];
        match self.keep {
            Keep::First => (0..batch.num_rows()).for_each(|row| kept[row] = seen.insert(rows.row(row))),
            Keep::Last => (0..batch.num_rows())
                .rev()
                .for_each(|row| kept[row] = seen.insert(rows.row(row))),
        }
        Ok(Tables::out(filter_record_batch(&batch, &BooleanArray::from(kept))?))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let rows = rows_in.get(INTERACTIONS).copied().unwrap_or_default();
        let kept = outputs.table(OUT)?.rows()?;
        Ok(Notes::from_iter([
            ("rows_in".to_string(), rows.into()),
            ("rows_out".to_string(), kept.into()),
            ("dropped".to_string(), (rows - kept).into()),
        ]))
    }
}

impl Dedup {
    /// Duplicates agree in every column of `by`, so any of these columns brings them together.
    fn partition_column(&self) -> &str {
        match self.by.iter().find(|name| *name == USER_ID).or(self.by.first()) {
            Some(name) => name,
            None => USER_ID,
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    const ROWS: &str = "user_id item_id timestamp:ts rating:f32
        u1 a 1000 5
        u1 a 1000 4
        u1 a 2000 3
        u1 b null 2
        u1 b null 1";

    fn check(dedup: &Dedup, wanted: &str) {
        let out = harness::run(dedup, &[(INTERACTIONS, text::parse(ROWS).unwrap())]).unwrap();
        let batch = out.batch(OUT).unwrap().project(&[1, 3]).unwrap();
        assert_eq!(text::render(&batch).unwrap(), wanted);
    }

    #[test]
    fn exact_duplicates_keep_the_first() {
        check(
            &Dedup::default(),
            "item_id  rating\na        5.0\na        3.0\nb        2.0\n",
        );
    }

    #[test]
    fn repeats_are_a_choice() {
        let repeats = Dedup {
            by: vec![USER_ID.into(), ITEM_ID.into()],
            keep: Keep::Last,
        };
        check(&repeats, "item_id  rating\na        3.0\nb        1.0\n");
    }

    #[test]
    fn all_missing_columns_are_reported() {
        let dedup = Dedup {
            by: vec!["user".into(), "thing".into()],
            ..Dedup::default()
        };
        let error = harness::run(&dedup, &[(INTERACTIONS, text::parse(ROWS).unwrap())]).unwrap_err();
        assert_eq!(error.code, "missing-column");
        assert!(error.detail.iter().any(|line| line.contains("thing")), "{error}");
        let empty = Dedup {
            by: vec![],
            ..Dedup::default()
        };
        let error = harness::run(&empty, &[(INTERACTIONS, text::parse(ROWS).unwrap())]).unwrap_err();
        assert_eq!(error.code, "bad-value");
    }
}
