//! Which rows of some columns are equal.

use arrow::array::{Array, ArrayRef, make_comparator};
use arrow::compute::SortOptions;
use sluice_engine::Result;
use sluice_engine::partition::hash_rows;

/// A slot of the table that holds no row.
const EMPTY: u64 = u64::MAX;

/// For every row the first row that is equal to it in all of `columns` (itself, if there is none before). Nulls are
/// equal. All columns are of one length, below 2^32 rows.
pub fn first_equal(columns: &[ArrayRef]) -> Result<Vec<u32>> {
    let rows = columns.first().map_or(0, |column| column.len());
    let comparators = columns
        .iter()
        .map(|column| make_comparator(column, column, SortOptions::default()))
        .collect::<Result<Vec<_>, _>>()?;
    let equal = |a: usize, b: usize| comparators.iter().all(|compare| compare(a, b).is_eq());
    // Linear probing. A slot holds the upper half of a hash, so that other rows are seldom looked at, and a row.
    let mask = (rows + rows / 2 + 1).next_power_of_two() - 1;
    let mut slots = vec![EMPTY; mask + 1];
    let mut first = Vec::with_capacity(rows);
    for (row, hash) in hash_rows(rows, columns)?.into_iter().enumerate() {
        let tag = hash & !u64::from(u32::MAX);
        let mut at = hash as usize & mask;
        first.push(loop {
            let slot = slots[at];
            if slot == EMPTY {
                slots[at] = tag | row as u64;
                break row as u32;
            }
            if slot & !u64::from(u32::MAX) == tag && equal(slot as u32 as usize, row) {
                break slot as u32;
            }
            at = (at + 1) & mask;
        });
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sluice_engine::text;

    use super::*;

    #[test]
    fn nulls_are_equal_and_columns_are_taken_together() {
        let batch = text::parse("a b:f32 c:u64\nx 1 1\nx null 2\ny 1 3\nx null 4\nnull 1 5\nnull 1 6\nx 1 7").unwrap();
        let columns = &batch.columns()[..2];
        assert_eq!(first_equal(columns).unwrap(), [0, 1, 2, 1, 4, 4, 0]);
        assert_eq!(first_equal(&batch.columns()[..1]).unwrap(), [0, 0, 2, 0, 4, 4, 0]);
        assert!(first_equal(&[batch.column(0).slice(0, 0)]).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn agrees_with_comparing_all_pairs(values in prop::collection::vec((0u64..6, 0u64..6), 1..80)) {
            let lines: Vec<String> = values.iter().map(|(a, b)| format!("u{a} {b}")).collect();
            let batch = text::parse(&format!("a b:u64\n{}", lines.join("\n"))).unwrap();
            let expected: Vec<u32> = values
                .iter()
                .map(|value| values.iter().position(|other| other == value).unwrap() as u32)
                .collect();
            prop_assert_eq!(first_equal(batch.columns()).unwrap(), expected);
        }
    }
}
