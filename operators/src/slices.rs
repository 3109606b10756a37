//! Which slices of the evaluated users each user belongs to, by its target and its history.

use arrow::array::{Array, RecordBatch};
use sluice_engine::Result;

use crate::schema::{self, TARGET_TIMESTAMP};
use crate::sequences::{self, Sequences};

/// Every user.
pub const ALL: &str = "all";

/// Slices that need no counts: name and definition.
const OF_ROWS: [(&str, &str); 5] = [
    ("same_timestamp", "the target has the time of the last history item"),
    ("later", "the target is later than the last history item"),
    ("history_short", "at most 5 history items"),
    ("history_medium", "6 to 20 history items"),
    ("history_long", "more than 20 history items"),
];

/// Slices that need counts in train: name and definition.
const OF_COUNTS: [(&str, &str); 7] = [
    ("cold_0", "the target never occurs in train"),
    ("cold_1", "the target occurs at most once in train"),
    ("cold_3", "the target occurs at most 3 times in train"),
    ("cold_5", "the target occurs at most 5 times in train"),
    ("head", "the target is of the most frequent 20 % of the catalogue"),
    ("mid", "the target is of the next 40 %"),
    (
        "tail",
        "the target is of the last 40 %; equal counts in natural order of item ids",
    ),
];

/// Names and definitions of the slices, [`ALL`] first.
pub fn definitions(slices: bool, counts: bool) -> Vec<(&'static str, &'static str)> {
    let mut definitions = vec![(ALL, "every user with a target")];
    if slices {
        definitions.extend(OF_ROWS);
    }
    if slices && counts {
        definitions.extend(OF_COUNTS);
    }
    definitions
}

/// The slices of every evaluation row: bit i is set if it belongs to the i-th of [`definitions`].
/// `counts`: how often each item of the catalogue occurs in train; `targets`: their numbers.
pub fn masks(rows: &RecordBatch, slices: bool, targets: &[u32], counts: Option<&[u64]>) -> Result<Vec<u64>> {
    let mut masks = vec![1; rows.num_rows()];
    if !slices {
        return Ok(masks);
    }
    let sequences = Sequences::read(rows)?;
    let (before, times) = (sequences::last_times(rows)?, schema::times(rows, TARGET_TIMESTAMP)?);
    let tiers = counts.map(tiers);
    for (row, mask) in masks.iter_mut().enumerate() {
        let length = sequences.range(row).len();
        let time = times.is_valid(row).then(|| times.value(row));
        let gap = time.zip(before[row]).map(|(time, before)| time - before);
        let mut member = vec![
            true,
            gap == Some(0),
            gap.is_some_and(|gap| gap > 0),
            length <= 5,
            (6..=20).contains(&length),
            length > 20,
        ];
        if let (Some(counts), Some(tiers)) = (counts, &tiers) {
            let target = targets[row] as usize;
            member.extend([0, 1, 3, 5].map(|most| counts[target] <= most));
            member.extend([0, 1, 2].map(|tier| tiers[target] == tier));
        }
        *mask = member
            .iter()
            .rev()
            .fold(0, |mask, member| mask << 1 | u64::from(*member));
    }
    Ok(masks)
}

/// 0 for the head of the catalogue, 1 for the middle, 2 for the tail.
fn tiers(counts: &[u64]) -> Vec<u8> {
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|item| std::cmp::Reverse(counts[*item]));
    let mut tiers = vec![2; counts.len()];
    for (place, item) in order.into_iter().enumerate() {
        match place as f64 / counts.len() as f64 {
            share if share < 0.2 => tiers[item] = 0,
            share if share < 0.6 => tiers[item] = 1,
            _ => {}
        }
    }
    tiers
}

#[cfg(test)]
mod tests {
    use sluice_engine::text;

    use super::*;

    fn members(rows: &str, targets: &[u32], counts: Option<&[u64]>) -> Vec<Vec<&'static str>> {
        let rows = text::parse(rows).unwrap();
        let names = definitions(true, counts.is_some());
        let masks = masks(&rows, true, targets, counts).unwrap();
        let of = |mask: &u64| {
            let names = names.iter().enumerate();
            names
                .filter(|(bit, _)| mask >> bit & 1 == 1)
                .map(|(_, name)| name.0)
                .collect()
        };
        masks.iter().map(of).collect()
    }

    const ROWS: &str = "user_id sequence:[str] timestamps:[ts] target target_timestamp:ts
        u a 5 a 5
        v a,b,a,b,a,b 1,2,3,4,5,6 b 7
        w a null c 7";

    #[test]
    fn by_time_length_and_count() {
        assert_eq!(
            members(ROWS, &[0, 1, 2], Some(&[6, 2, 0, 0, 0])),
            [
                vec!["all", "same_timestamp", "history_short", "head"],
                vec!["all", "later", "history_medium", "cold_3", "cold_5", "mid"],
                vec!["all", "history_short", "cold_0", "cold_1", "cold_3", "cold_5", "mid"],
            ]
        );
        assert_eq!(members(ROWS, &[0, 1, 2], None)[2], ["all", "history_short"]);
    }
}
