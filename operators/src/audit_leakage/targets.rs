//! Targets where they must not be: in train sequences, in rows and items that something was fitted on.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::TimestampMillisecondType;
use sluice_engine::{Error, Result};

use super::{Check, TEST, TRAIN, VALID, Verdict};
use crate::schema::{self, ITEM_ID, SEQUENCE, TARGET, TARGET_TIMESTAMP, TIMESTAMPS, USER_ID};

/// A held-out item, what the user had before it, and when it was.
pub(super) struct Held<'a> {
    pub(super) target: &'a str,
    pub(super) history: Vec<&'a str>,
    time: Option<i64>,
}

/// Held-out rows by user: a user may have several.
pub(super) type Rows<'a> = HashMap<&'a str, Vec<Held<'a>>>;

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
    pub(super) held: Vec<(&'static str, Rows<'a>)>,
}

fn occurrences(items: &[&str], wanted: &str) -> usize {
    items.iter().filter(|item| **item == wanted).count()
}

/// With how many users something is found that is not held out, and how many users are `there` at all.
fn compare<T>(held: &Rows, there: impl Fn(&str) -> Option<T>, has: impl Fn(&T, &Held) -> bool) -> (usize, usize) {
    let (mut count, mut of) = (0, 0);
    for (user, rows) in held {
        if let Some(there) = there(user) {
            count += usize::from(rows.iter().any(|held| has(&there, held)));
            of += 1;
        }
    }
    (count, of)
}

/// Why no user was compared.
fn why(name: &str, held: &Rows, there: &str) -> String {
    match held.is_empty() {
        true => format!("{name} has no targets"),
        false => format!("no user of {name} is in {there}"),
    }
}

impl<'a> Split<'a> {
    pub(super) fn read(train: &'a RecordBatch, valid: Option<&'a RecordBatch>, test: &'a RecordBatch) -> Result<Self> {
        let mut of_train: HashMap<&str, Trained> = HashMap::new();
        let users = schema::strings(train, USER_ID)?;
        for (row, items) in items(train)?.into_iter().enumerate() {
            let trained = of_train.entry(users.value(row)).or_default();
            trained.items.extend(items);
        }
        for (row, times) in times(train, TRAIN)?.into_iter().enumerate() {
            let latest = times.into_iter().flatten().max();
            if let Some(trained) = of_train.get_mut(users.value(row)) {
                trained.latest = trained.latest.max(latest);
            }
        }
        let mut held = vec![(TEST, self::held(test)?)];
        if let Some(valid) = valid {
            held.push((VALID, self::held(valid)?));
        }
        Ok(Split { train: of_train, held })
    }

    /// Checks of the split's own rows.
    pub(super) fn rows(&self) -> Vec<Check> {
        let mut checks = Vec::new();
        for (name, held) in &self.held {
            let counts = compare(
                held,
                |user| self.train.get(user),
                |trained, held| occurrences(&trained.items, held.target) > occurrences(&held.history, held.target),
            );
            let sentence = match counts.0 {
                0 => format!("no train sequence holds its user's {name} target"),
                count => format!("{count} users train on their own {name} target"),
            };
            checks.push(Check::none(
                &format!("{name}_target_in_train"),
                counts,
                Verdict::Leak,
                sentence,
                &why(name, held, TRAIN),
            ));
        }
        let test = &self.held[0].1;
        if let Some((_, valid)) = self.held.get(1) {
            let has = |valid: &Held, held: &Held| {
                let there = occurrences(&valid.history, held.target) + usize::from(valid.target == held.target);
                there > occurrences(&held.history, held.target)
            };
            let counts = compare(
                test,
                |user| valid.get(user),
                |valid, held| valid.iter().any(|valid| has(valid, held)),
            );
            let sentence = match counts.0 {
                0 => "no valid row holds its user's test target".to_string(),
                count => format!("the valid rows of {count} users hold their test target: models are selected on it"),
            };
            checks.push(Check::none(
                "test_target_in_valid",
                counts,
                Verdict::Leak,
                sentence,
                &why(TEST, test, VALID),
            ));
        }
        // By their earliest target: who trains later than any trains later than that one.
        let timed: Vec<(i64, i64)> = test
            .iter()
            .filter_map(|(user, rows)| {
                let first = rows.iter().filter_map(|held| held.time).min();
                self.train.get(user)?.latest.zip(first)
            })
            .collect();
        let count = timed.iter().filter(|(latest, target)| latest > target).count();
        let sentence = match count {
            0 => "no user trains on items later than the own test target".to_string(),
            _ => format!("{count} users train on items later than their own test target"),
        };
        let why = match test.keys().any(|user| self.train.contains_key(user)) {
            true => "no user has known times in both train and test".to_string(),
            false => why(TEST, test, TRAIN),
        };
        checks.push(Check::none(
            "train_after_test_target",
            (count, timed.len()),
            Verdict::Leak,
            sentence,
            &why,
        ));
        checks
    }

    /// Checks of rows that something was fitted on.
    pub(super) fn fit_rows(&self, rows: &RecordBatch) -> Result<Vec<Check>> {
        let mut fitted: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
        let (users, items) = (schema::strings(rows, USER_ID)?, schema::strings(rows, ITEM_ID)?);
        for (user, item) in users.iter().flatten().zip(items.iter().flatten()) {
            *fitted.entry(user).or_default().entry(item).or_default() += 1;
        }
        let check = |(name, held): &(&'static str, Rows)| {
            let counts = compare(
                held,
                |user| fitted.get(user),
                |items, held| {
                    let there = items.get(held.target).copied().unwrap_or(0);
                    there > occurrences(&held.history, held.target)
                },
            );
            let sentence = match counts.0 {
                0 => format!("the rows that were fitted on hold no {name} target with its user"),
                count => format!("the rows that were fitted on hold {name} targets of {count} users"),
            };
            Check::none(
                &format!("{name}_target_in_fit_rows"),
                counts,
                Verdict::Leak,
                sentence,
                &why(name, held, "the rows that were fitted on"),
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
        let test = &self.held[0].1;
        let cold: Vec<&str> = test
            .values()
            .flatten()
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
        // Items of another catalogue say nothing.
        let known = count > 0 || trained.iter().any(|item| fitted.contains(item));
        let why = match (test.is_empty(), cold.is_empty()) {
            (true, _) => "test has no targets",
            (_, true) => "train knows every test target",
            _ => "no item that was fitted on is in train or a test target",
        };
        Ok(Check::none(
            "cold_target_in_fit_items",
            (count, if known { cold.len() } else { 0 }),
            Verdict::Warning,
            sentence,
            why,
        ))
    }
}

fn items(batch: &RecordBatch) -> Result<Vec<Vec<&str>>> {
    let lists = schema::lists(batch, SEQUENCE)?;
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

/// The times of every row's sequence, a time an item; none where the table or the row has no times.
pub(super) fn times(batch: &RecordBatch, port: &str) -> Result<Vec<Vec<Option<i64>>>> {
    if batch.column_by_name(TIMESTAMPS).is_none() {
        return Ok(Vec::new());
    }
    let lists = schema::lists(batch, TIMESTAMPS)?;
    let Some(all) = lists.values().as_primitive_opt::<TimestampMillisecondType>() else {
        return Ok(Vec::new());
    };
    let (users, items) = (schema::strings(batch, USER_ID)?, schema::lists(batch, SEQUENCE)?);
    let offsets = lists.value_offsets();
    let at = |at: usize| all.is_valid(at).then(|| all.value(at));
    let row = |row: usize| {
        if lists.is_null(row) {
            return Ok(Vec::new());
        }
        let (held, timed) = (items.value_length(row), lists.value_length(row));
        if held != timed {
            let message = format!(
                "user \"{}\" of \"{port}\" has {held} items and {timed} times in a row",
                users.value(row)
            );
            return Err(Error::data("bad-row", message).hint("every item of a sequence has a time, which may be null"));
        }
        Ok((offsets[row] as usize..offsets[row + 1] as usize).map(at).collect())
    };
    (0..lists.len()).map(row).collect()
}

fn held(batch: &RecordBatch) -> Result<Rows<'_>> {
    let (users, targets) = (schema::strings(batch, USER_ID)?, schema::strings(batch, TARGET)?);
    let times = schema::times(batch, TARGET_TIMESTAMP)?;
    let mut held = Rows::new();
    for (row, history) in items(batch)?.into_iter().enumerate() {
        if targets.is_valid(row) {
            held.entry(users.value(row)).or_default().push(Held {
                target: targets.value(row),
                history,
                time: times.is_valid(row).then(|| times.value(row)),
            });
        }
    }
    Ok(held)
}
