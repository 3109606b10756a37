//! Targets where they must not be: in train sequences, in rows and items that something was fitted on.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMillisecondType;
use sluice_engine::Result;

use super::{Check, Verdict};
use crate::schema::{self, ITEM_ID, TARGET, TARGET_TIMESTAMP, TIMESTAMPS, USER_ID};

/// A held-out item, what the user had before it, and when it was.
pub(super) struct Held<'a> {
    pub(super) target: &'a str,
    pub(super) history: Vec<&'a str>,
    time: Option<i64>,
}

/// A user's last known time in train, and items there.
#[derive(Default)]
struct Trained<'a> {
    items: Vec<&'a str>,
    latest: Option<i64>,
}

/// A split by user.
pub(super) struct Split<'a> {
    train: HashMap<&'a str, Trained<'a>>,
    /// `test`, then `valid` where it is there.
    pub(super) held: Vec<(&'static str, HashMap<&'a str, Held<'a>>)>,
}

fn occurrences(items: &[&str], wanted: &str) -> usize {
    items.iter().filter(|item| **item == wanted).count()
}

impl<'a> Split<'a> {
    pub(super) fn read(train: &'a RecordBatch, valid: Option<&'a RecordBatch>, test: &'a RecordBatch) -> Result<Self> {
        let mut of_train: HashMap<&str, Trained> = HashMap::new();
        let users = schema::strings(train, USER_ID)?;
        for (row, items) in items(train)?.into_iter().enumerate() {
            let trained = of_train.entry(users.value(row)).or_default();
            trained.items.extend(items);
        }
        for (row, times) in times(train)?.into_iter().enumerate() {
            let latest = times.into_iter().flatten().max();
            if let Some(trained) = of_train.get_mut(users.value(row)) {
                trained.latest = trained.latest.max(latest);
            }
        }
        let mut held = vec![("test", self::held(test)?)];
        if let Some(valid) = valid {
            held.push(("valid", self::held(valid)?));
        }
        Ok(Split { train: of_train, held })
    }

    /// Checks of the split's own rows.
    pub(super) fn rows(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for (name, held) in &self.held {
            let has = |(user, held): &(&&str, &Held)| {
                let trained = self.train.get(**user);
                trained.is_some_and(|trained| {
                    occurrences(&trained.items, held.target) > occurrences(&held.history, held.target)
                })
            };
            let count = held.iter().filter(has).count();
            let sentence = match count {
                0 => format!("no train sequence holds its user's {name} target"),
                _ => format!("{count} users train on their own {name} target"),
            };
            checks.push(Check::none(
                &format!("{name}_target_in_train"),
                count,
                held.len(),
                Verdict::Leak,
                sentence,
            ));
        }
        let test = &self.held[0].1;
        if let Some((_, valid)) = self.held.get(1) {
            let has = |(user, held): &(&&str, &Held)| {
                valid.get(**user).is_some_and(|valid| {
                    let there = occurrences(&valid.history, held.target) + usize::from(valid.target == held.target);
                    there > occurrences(&held.history, held.target)
                })
            };
            let count = test.iter().filter(has).count();
            let sentence = match count {
                0 => "no valid row holds its user's test target".to_string(),
                _ => format!("the valid rows of {count} users hold their test target: models are selected on it"),
            };
            checks.push(Check::none(
                "test_target_in_valid",
                count,
                test.len(),
                Verdict::Leak,
                sentence,
            ));
        }
        let timed: Vec<(i64, i64)> = test
            .iter()
            .filter_map(|(user, held)| self.train.get(user)?.latest.zip(held.time))
            .collect();
        let count = timed.iter().filter(|(latest, target)| latest > target).count();
        let sentence = match count {
            0 => "no user trains on items later than the own test target".to_string(),
            _ => format!("{count} users train on items later than their own test target"),
        };
        checks.push(Check::none(
            "train_after_test_target",
            count,
            timed.len(),
            Verdict::Leak,
            sentence,
        ));
        checks
    }

    /// Checks of rows that something was fitted on.
    pub(super) fn fit_rows(&self, rows: &RecordBatch) -> Result<Vec<Check>> {
        let mut pairs: HashMap<(&str, &str), usize> = HashMap::new();
        let (users, items) = (schema::strings(rows, USER_ID)?, schema::strings(rows, ITEM_ID)?);
        for (user, item) in users.iter().flatten().zip(items.iter().flatten()) {
            *pairs.entry((user, item)).or_default() += 1;
        }
        let check = |(name, held): &(&'static str, HashMap<&str, Held>)| {
            let has = |(user, held): &(&&str, &Held)| {
                let there = pairs.get(&(**user, held.target)).copied().unwrap_or(0);
                there > occurrences(&held.history, held.target)
            };
            let count = held.iter().filter(has).count();
            let sentence = match count {
                0 => format!("the rows that were fitted on hold no {name} target with its user"),
                _ => format!("the rows that were fitted on hold {count} {name} targets with their users"),
            };
            Check::none(
                &format!("{name}_target_in_fit_rows"),
                count,
                held.len(),
                Verdict::Leak,
                sentence,
            )
        };
        Ok(self.held.iter().map(check).collect())
    }

    /// A check of the items that something was fitted on.
    pub(super) fn fit_items(&self, items: &RecordBatch) -> Result<Check> {
        let fitted: HashSet<&str> = schema::strings(items, ITEM_ID)?.iter().flatten().collect();
        let trained: HashSet<&str> = self
            .train
            .values()
            .flat_map(|trained| &trained.items)
            .copied()
            .collect();
        let cold: Vec<&str> = self.held[0]
            .1
            .values()
            .map(|held| held.target)
            .filter(|target| !trained.contains(target))
            .collect();
        let count = cold.iter().filter(|target| fitted.contains(*target)).count();
        let sentence = match count {
            0 => "no test target that train does not know was fitted on".to_string(),
            _ => format!(
                "{count} test targets that no train sequence holds were fitted on: their text was known beforehand"
            ),
        };
        Ok(Check::none(
            "cold_target_in_fit_items",
            count,
            cold.len(),
            Verdict::Warning,
            sentence,
        ))
    }
}

fn items(batch: &RecordBatch) -> Result<Vec<Vec<&str>>> {
    let lists = schema::lists(batch, schema::SEQUENCE)?;
    let all = lists.values().as_string::<i32>();
    let offsets = lists.value_offsets();
    Ok((0..lists.len())
        .map(|row| {
            (offsets[row] as usize..offsets[row + 1] as usize)
                .map(|at| all.value(at))
                .collect()
        })
        .collect())
}

/// The times of every row's sequence; none where the table has no times.
pub(super) fn times(batch: &RecordBatch) -> Result<Vec<Vec<Option<i64>>>> {
    if batch.column_by_name(TIMESTAMPS).is_none() {
        return Ok(Vec::new());
    }
    let lists = schema::lists(batch, TIMESTAMPS)?;
    let Some(all) = lists.values().as_primitive_opt::<TimestampMillisecondType>() else {
        return Ok(Vec::new());
    };
    let offsets = lists.value_offsets();
    let at = |at: usize| all.is_valid(at).then(|| all.value(at));
    Ok((0..lists.len())
        .map(|row| (offsets[row] as usize..offsets[row + 1] as usize).map(at).collect())
        .collect())
}

fn held(batch: &RecordBatch) -> Result<HashMap<&str, Held<'_>>> {
    let (users, targets) = (schema::strings(batch, USER_ID)?, schema::strings(batch, TARGET)?);
    let times = schema::times(batch, TARGET_TIMESTAMP)?;
    let rows = items(batch)?.into_iter().enumerate();
    Ok(rows
        .filter(|(row, _)| targets.is_valid(*row))
        .map(|(row, history)| {
            let time = times.is_valid(row).then(|| times.value(row));
            (
                users.value(row),
                Held {
                    target: targets.value(row),
                    history,
                    time,
                },
            )
        })
        .collect())
}
