//! Drops rows that repeat an earlier (or precede a later) row in the columns that matter.

use std::collections::BTreeMap;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::Tables;
use sluice_engine::{Error, Result};

use crate::equal_rows::first_equal;
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
/// behaviour, and dropping them (`by: [user_id, item_id]`) is a choice. `by: [record]`, with `record_hash` where the rows
/// are ingested, drops only records that are equal to the letter.
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
        let column = self.partition_column(binding).unwrap_or(USER_ID);
        Bound::by(INTERACTIONS, &[column]).out(binding.shape(INTERACTIONS))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INTERACTIONS)?;
        let columns = self
            .by
            .iter()
            .map(|name| batch.column_by_name(name).cloned())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::internal("a column of \"by\" is missing"))?;
        let first = first_equal(&columns)?;
        // Of every row its duplicate that stays, by the first of them.
        let mut stays = first.clone();
        if self.keep == Keep::Last {
            (0..).zip(&first).for_each(|(row, first)| stays[*first as usize] = row);
        }
        let kept: Vec<bool> = (0..)
            .zip(&first)
            .map(|(row, first)| stays[*first as usize] == row)
            .collect();
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
    /// Duplicates agree in every column of `by`, so any one of them brings them together that can be hashed.
    fn partition_column(&self, binding: &Binding) -> Option<&str> {
        let schema = binding.schema(INTERACTIONS)?;
        let can = |name: &&String| {
            schema
                .field_with_name(name)
                .is_ok_and(|field| can_partition(field.data_type()))
        };
        let user = self.by.iter().find(|name| *name == USER_ID).filter(can);
        let column = user.or(self.by.iter().find(can));
        let all_there = self.by.iter().all(|name| schema.index_of(name).is_ok());
        if column.is_none() && all_there && !self.by.is_empty() {
            binding.bad_value("by", "\"by\" must name a column of ids, integers or times");
        }
        column.map(String::as_str)
    }
}

fn can_partition(kind: &DataType) -> bool {
    use DataType::{Int32, Int64, Timestamp, UInt16, UInt32, UInt64, Utf8};
    matches!(kind, Utf8 | Int32 | Int64 | UInt16 | UInt32 | UInt64 | Timestamp(..))
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

    #[test]
    fn a_column_to_partition_by_is_needed() {
        let dedup = Dedup {
            by: vec!["rating".into()],
            ..Dedup::default()
        };
        let error = harness::run(&dedup, &[(INTERACTIONS, text::parse(ROWS).unwrap())]).unwrap_err();
        assert_eq!(error.code, "bad-value");
    }

    /// 5,269 reviews: 4,161 different in user, item and time, of 4,092 pairs of user and item.
    #[test]
    fn raw_reviews() {
        let Some(rows) = crate::beauty::raw_reviews() else {
            return;
        };
        for (by, kept) in [
            (Dedup::default().by, 4_161),
            (vec![USER_ID.into(), ITEM_ID.into()], 4_092),
        ] {
            let dedup = Dedup { by, keep: Keep::First };
            let out = harness::run(&dedup, &[(INTERACTIONS, rows.clone())]).unwrap();
            assert_eq!(out.table(OUT).unwrap().rows().unwrap(), kept);
        }
    }
}
