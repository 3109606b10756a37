//! Time across users, and ids whose order tells what comes next.

use std::collections::HashMap;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::UInt64Type;
use sluice_engine::Result;

use super::targets::times;
use super::{Check, TEST, TRAIN, Verdict};
use crate::schema::{self, ITEM_ID, POSITION, TARGET, TARGET_TIMESTAMP, USER_ID, natural_key, natural_order};
use crate::sequences::Sequences;

/// Fewer pairs than this have no order to speak of.
const FEWEST: u64 = 20;
/// From this share on, or from what it leaves on down, an order is given away.
const GIVEN: f64 = 0.95;

/// What train knows of the time after test targets.
pub(super) fn across_users(train: &RecordBatch, test: &RecordBatch) -> Result<Vec<Check>> {
    let mut trained: Vec<i64> = times(train, TRAIN)?.into_iter().flatten().flatten().collect();
    trained.sort_unstable();
    let targets: Vec<i64> = schema::times(test, TARGET_TIMESTAMP)?.iter().flatten().collect();
    let later = |target: &i64| trained.len() - trained.partition_point(|time| time <= target);
    let counts: Vec<usize> = targets.iter().map(later).collect();
    let (early, pairs) = (
        counts.iter().filter(|count| **count > 0).count(),
        counts.iter().sum::<usize>(),
    );
    let all = targets.len() * trained.len();
    let of = if trained.is_empty() { 0 } else { targets.len() };
    let why = match targets.is_empty() {
        true => "no time of a test target is known",
        false => "no time of a train interaction is known",
    };
    let told = |count: usize, words: String, none: &str| if count == 0 { none.to_string() } else { words };
    let share = 100.0 * pairs as f64 / all.max(1) as f64;
    let none = "no train interaction is later than a test target";
    let one = told(
        early,
        format!("{early} test targets are earlier than the last train interaction of somebody"),
        none,
    );
    let two = told(
        pairs,
        format!(
            "on average {share:.1} % of the train interactions are later than a test target: train knows its future"
        ),
        none,
    );
    Ok(vec![
        Check::none("targets_before_end_of_train", (early, of), Verdict::Warning, one, why),
        Check::none("train_later_than_target", (pairs, all), Verdict::Warning, two, why),
    ])
}

/// Neighbours of equal time, by the order of their item ids.
pub(super) fn ties(test: &RecordBatch) -> Result<Vec<Check>> {
    let (sequences, times) = (Sequences::read(test)?, times(test, TEST)?);
    let (targets, at) = (schema::strings(test, TARGET)?, schema::times(test, TARGET_TIMESTAMP)?);
    let (mut all, mut last) = ((0, 0), (0, 0));
    let count = |pairs: &mut (u64, u64), before: &str, after: &str| {
        pairs.0 += u64::from(natural_order(before, after).is_lt());
        pairs.1 += u64::from(before != after);
    };
    for (row, times) in times.iter().enumerate() {
        let items = sequences.range(row);
        for (place, pair) in times.windows(2).enumerate() {
            if pair[0].is_some() && pair[0] == pair[1] {
                let first = items.start + place;
                count(&mut all, sequences.items.value(first), sequences.items.value(first + 1));
            }
        }
        let time = at.is_valid(row).then(|| at.value(row));
        if time.is_some() && times.last().copied().flatten() == time {
            let before = sequences.items.value(items.end - 1);
            count(&mut all, before, targets.value(row));
            count(&mut last, before, targets.value(row));
        }
    }
    let check = |name: &str, (count, of): (u64, u64), whom: &str| {
        if of == 0 {
            return Check::not_checked(name, &format!("no {whom} are known to have the same time"));
        }
        let share = count as f64 / of as f64;
        let verdict = match share {
            _ if of < FEWEST => Verdict::Ok,
            share if share >= GIVEN || share <= 1.0 - GIVEN => Verdict::Leak,
            share if (share - 0.5).abs() > 3.0 * (0.25 / of as f64).sqrt() => Verdict::Warning,
            _ => Verdict::Ok,
        };
        let words = match verdict {
            Verdict::Leak => ": item ids tell which comes next",
            Verdict::Warning => ": more to one side than chance",
            Verdict::Ok | Verdict::NotChecked => "",
        };
        let percent = 100.0 * share;
        let sentence =
            format!("of {of} {whom} at the same time {percent:.1} % are in ascending order of item id{words}");
        let name = name.to_string();
        Check {
            name,
            count,
            of,
            verdict,
            sentence,
        }
    };
    Ok(vec![
        check("ties_in_id_order", all, "neighbours"),
        check("target_ties_in_id_order", last, "pairs of a target and the item before"),
    ])
}

/// Whether ids were given in the order of the file.
pub(super) fn of_the_file(interactions: &RecordBatch) -> Result<Vec<Check>> {
    let positions = schema::numbers::<UInt64Type>(interactions, POSITION)?;
    let mut checks = Vec::new();
    for (name, column, what) in [
        ("item_ids_in_file_order", ITEM_ID, "item"),
        ("user_ids_in_file_order", USER_ID, "user"),
    ] {
        let mut first: HashMap<&str, u64> = HashMap::new();
        for (id, position) in schema::strings(interactions, column)?.iter().zip(positions.values()) {
            let Some(id) = id else { continue };
            let known = first.entry(id).or_insert(*position);
            *known = (*known).min(*position);
        }
        let mut order: Vec<(&str, u64)> = first.into_iter().collect();
        order.sort_unstable_by_key(|(id, _)| natural_key(id));
        let of = order.len().saturating_sub(1) as u64;
        let count = order.windows(2).filter(|pair| pair[0].1 < pair[1].1).count() as u64;
        if of == 0 {
            checks.push(Check::not_checked(name, &format!("there are fewer than two {what}s")));
            continue;
        }
        let share = count as f64 / of as f64;
        let given = of >= FEWEST && (share >= GIVEN || share <= 1.0 - GIVEN);
        let words = if given {
            ": ties that are broken by id follow the file"
        } else {
            ""
        };
        checks.push(Check {
            name: name.to_string(),
            count,
            of,
            verdict: if given { Verdict::Warning } else { Verdict::Ok },
            sentence: format!(
                "of {of} neighbours by {what} id {:.1} % first occur in that order in the file{words}",
                100.0 * share
            ),
        });
    }
    Ok(checks)
}
