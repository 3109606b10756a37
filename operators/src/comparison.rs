//! Statistics of comparison: systems beside each other over the same users, and what of a difference may be chance.
//!
//! A system has a run a seed. Its figure is the mean over its runs, with the sample standard deviation over them: how
//! far another seed might lie. Differences between systems are paired by user, after averaging the runs of each: their
//! interval and p value say how far other users might lie, and nothing of other seeds.
//!
//! - Interval: percentile bootstrap over users.
//! - p value: two-sided sign-flip randomisation (Fisher 1935): if the systems were interchangeable, the sign of every
//!   user's difference would be a coin. p is the share of sign patterns whose mean is as far from 0 as the observed
//!   one: over all patterns where at most 16 users differ, else over random ones with the observed one counted in (Phipson and
//!   Smyth, "Permutation p-values should never be zero", 2010).
//! - Several pairs: Holm's step-down correction ("A simple sequentially rejective multiple test procedure", 1979).

use std::cmp::Ordering;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Float64Type, Schema};
use rayon::prelude::*;
use sluice_engine::random::Random;
use sluice_engine::{Error, Result};

use crate::bootstrap::quantile;
use crate::schema::{self, TARGET, USER_ID};

/// Up to so many users that differ, all sign patterns are tried.
const EXACT_USERS: usize = 16;

/// How to compare.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Resamples of intervals, and of p values that are not exact.
    pub resamples: usize,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Seed of the resamples.
    pub seed: u64,
}

/// What one run of a system scored by one metric: a value a user, in order of users.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    label: String,
    users: Vec<String>,
    values: Vec<f64>,
    /// The item that a user was scored on, where it is known.
    targets: Option<Vec<String>>,
}

/// A system: its runs, which differ in the seed alone.
#[derive(Clone, Debug)]
pub struct System {
    /// Its name.
    pub name: String,
    /// Scores of its runs, at least one.
    pub runs: Vec<Scores>,
}

/// A system over its runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of runs.
    pub runs: usize,
    /// Mean over runs of the means over users.
    pub mean: f64,
    /// Sample standard deviation over runs; `None` for one run.
    pub deviation: Option<f64>,
}

/// One system less another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Which systems: the first less the second.
    pub pair: (usize, usize),
    /// Mean over users.
    pub mean: f64,
    /// Ends of its interval; `None` without resamples.
    pub interval: Option<(f64, f64)>,
    /// Two-sided p value of the pair alone.
    pub p: f64,
    /// The p value corrected for the number of pairs.
    pub holm: f64,
}

/// Systems beside each other by one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Number of users, the same for all systems.
    pub users: usize,
    /// A summary a system.
    pub summaries: Vec<Summary>,
    /// A difference a pair, the earlier system less the later.
    pub differences: Vec<Difference>,
}

impl Scores {
    /// Scores by user; the label says where they are from.
    pub fn new(label: &str, rows: impl IntoIterator<Item = (String, f64)>) -> Result<Self> {
        let mut rows: Vec<(String, f64)> = rows.into_iter().collect();
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        let fail = |what: String| Err(Error::data("bad-scores", format!("in \"{label}\" {what}")));
        if rows.is_empty() {
            return fail("there are no users".to_string());
        }
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return fail(format!("user \"{}\" occurs twice", pair[0].0));
        }
        if let Some((user, value)) = rows.iter().find(|(_, value)| !value.is_finite()) {
            return fail(format!("user \"{user}\" has {value}"));
        }
        let (users, values) = rows.into_iter().unzip();
        Ok(Scores {
            label: label.to_string(),
            users,
            values,
            targets: None,
        })
    }

    /// A metric of a `per_user` table of `score_ranking`.
    pub fn read(label: &str, batch: &RecordBatch, metric: &str) -> Result<Self> {
        let known = metrics(&batch.schema());
        if !known.iter().any(|name| name == metric) {
            let mut error = Error::user("unknown-metric", format!("\"{label}\" has no metric \"{metric}\""))
                .detail(format!("it has: {}", known.join(", ")));
            error.hint = sluice_engine::error::did_you_mean(metric, known.iter().map(String::as_str));
            return Err(error);
        }
        let users = schema::strings(batch, USER_ID)?;
        let values = schema::numbers::<Float64Type>(batch, metric)?;
        let value = |row: usize| {
            if values.is_valid(row) {
                values.value(row)
            } else {
                f64::NAN
            }
        };
        let rows = 0..batch.num_rows();
        let mut scores = Self::new(
            label,
            rows.clone().map(|row| (users.value(row).to_string(), value(row))),
        )?;
        if batch.column_by_name(TARGET).is_some() {
            let targets = schema::strings(batch, TARGET)?;
            let mut by_user: Vec<(&str, &str)> = rows.map(|row| (users.value(row), targets.value(row))).collect();
            by_user.sort_unstable();
            scores.targets = Some(by_user.into_iter().map(|(_, target)| target.to_string()).collect());
        }
        Ok(scores)
    }

    /// The same, to be compared with scores of other targets.
    pub fn of_any_target(self) -> Self {
        Scores { targets: None, ..self }
    }

    fn mean(&self) -> f64 {
        mean(&self.values)
    }
}

/// The metrics of a `per_user` table: its columns of numbers.
pub fn metrics(schema: &Schema) -> Vec<String> {
    let numbers = schema
        .fields()
        .iter()
        .filter(|field| field.data_type() == &DataType::Float64);
    numbers.map(|field| field.name().clone()).collect()
}

/// Compares systems over the same users; it is an error if the users of any two runs differ, or what they were scored on.
pub fn compare(systems: &[System], settings: &Settings) -> Result<Comparison> {
    let first = systems
        .first()
        .and_then(|system| system.runs.first())
        .ok_or_else(|| Error::internal("nothing to compare"))?;
    for scores in systems.iter().flat_map(|system| &system.runs) {
        same_targets(first, scores)?;
    }
    // A value a user: seeds are averaged before systems are paired.
    let averages: Vec<Vec<f64>> = systems.iter().map(|system| over_runs(&system.runs)).collect();
    let resampled = resampled_means(&averages, settings);
    let mut differences = Vec::new();
    for (one, a) in averages.iter().enumerate() {
        for (two, b) in averages.iter().enumerate().skip(one + 1) {
            let paired: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            differences.push(Difference {
                pair: (one, two),
                mean: mean(&paired),
                interval: interval(&resampled, (one, two), settings.confidence),
                p: sign_flip_p(&paired, settings),
                holm: 1.0,
            });
        }
    }
    let raw: Vec<f64> = differences.iter().map(|difference| difference.p).collect();
    for (difference, corrected) in differences.iter_mut().zip(holm(&raw)) {
        difference.holm = corrected;
    }
    Ok(Comparison {
        users: first.users.len(),
        summaries: systems.iter().map(|system| summary(&system.runs)).collect(),
        differences,
    })
}

/// The mean of the means of runs, and their sample standard deviation.
pub fn summary(runs: &[Scores]) -> Summary {
    let means: Vec<f64> = runs.iter().map(Scores::mean).collect();
    let centre = mean(&means);
    let squares: f64 = means.iter().map(|mean| (mean - centre).powi(2)).sum();
    Summary {
        runs: runs.len(),
        mean: centre,
        deviation: (runs.len() > 1).then(|| (squares / (runs.len() - 1) as f64).sqrt()),
    }
}

/// The two-sided p value of paired differences under random signs.
pub fn sign_flip_p(differences: &[f64], settings: &Settings) -> f64 {
    // A user without a difference adds the same nothing under either sign.
    let moved: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let observed = moved.iter().sum::<f64>().abs();
    // Sums that differ by rounding alone are equal.
    let least = observed - 1e-12 * moved.iter().map(|d| d.abs()).sum::<f64>();
    let flipped = |patterns: &mut dyn FnMut() -> u64| -> f64 {
        let mut sum = 0.0;
        for chunk in moved.chunks(u64::BITS as usize) {
            let signs = patterns();
            for (place, difference) in chunk.iter().enumerate() {
                sum += f64::from_bits(difference.to_bits() ^ (signs >> place) << 63);
            }
        }
        sum.abs()
    };
    if moved.len() <= EXACT_USERS {
        let all = 1u64 << moved.len();
        let as_far = (0..all).filter(|signs| flipped(&mut || *signs) >= least).count();
        return as_far as f64 / all as f64;
    }
    let random = Random::new(settings.seed, "compare", "signs");
    let as_far = (0..settings.resamples as u64)
        .into_par_iter()
        .filter(|resample| {
            let mut stream = random.row(*resample);
            flipped(&mut || stream.bits()) >= least
        })
        .count();
    (as_far + 1) as f64 / (settings.resamples + 1) as f64
}

/// Holm's correction: p values such that rejecting those below a level errs anywhere with at most that probability.
pub fn holm(raw: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..raw.len()).collect();
    order.sort_by(|a, b| raw[*a].total_cmp(&raw[*b]));
    let mut corrected = vec![0.0; raw.len()];
    let mut floor = 0.0f64;
    for (before, test) in order.into_iter().enumerate() {
        floor = floor.max(raw[test] * (raw.len() - before) as f64).min(1.0);
        corrected[test] = floor;
    }
    corrected
}

/// Means of all systems over users drawn with replacement: a row a resample. The systems of a row share its users, so
/// that their differences are those of paired resamples.
fn resampled_means(averages: &[Vec<f64>], settings: &Settings) -> Vec<Vec<f64>> {
    let users = averages.first().map_or(0, Vec::len);
    let values: Vec<f64> = (0..users)
        .flat_map(|user| averages.iter().map(move |of| of[user]))
        .collect();
    let random = Random::new(settings.seed, "compare", "bootstrap");
    let means = |resample: u64| {
        let mut stream = random.row(resample);
        let mut means = vec![0.0; averages.len()];
        for _ in 0..users {
            let user = stream.below(users as u64) as usize;
            let row = &values[user * averages.len()..][..averages.len()];
            means.iter_mut().zip(row).for_each(|(mean, value)| *mean += value);
        }
        means.iter_mut().for_each(|mean| *mean /= users as f64);
        means
    };
    (0..settings.resamples as u64).into_par_iter().map(means).collect()
}

fn interval(resampled: &[Vec<f64>], (one, two): (usize, usize), confidence: f64) -> Option<(f64, f64)> {
    let mut differences: Vec<f64> = resampled.iter().map(|means| means[one] - means[two]).collect();
    differences.sort_unstable_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    quantile(&differences, tail).zip(quantile(&differences, 1.0 - tail))
}

fn over_runs(runs: &[Scores]) -> Vec<f64> {
    let value = |user: usize| runs.iter().map(|run| run.values[user]).sum::<f64>() / runs.len() as f64;
    (0..runs.first().map_or(0, |run| run.users.len())).map(value).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Both score the same users, on the same items where these are known.
fn same_targets(a: &Scores, b: &Scores) -> Result<()> {
    same_users(a, b)?;
    let Some((left, right)) = a.targets.as_ref().zip(b.targets.as_ref()) else {
        return Ok(());
    };
    let differ = |at: &usize| left[*at] != right[*at];
    let Some(first) = (0..left.len()).find(differ) else {
        return Ok(());
    };
    let number = (0..left.len()).filter(differ).count();
    let message = format!(
        "\"{}\" and \"{}\" score different targets for {number} of {} users",
        a.label,
        b.label,
        left.len()
    );
    Err(Error::data("different-targets", message)
        .detail(format!(
            "user \"{}\" was scored on \"{}\" in the first and on \"{}\" in the second",
            a.users[first], left[first], right[first]
        ))
        .hint("one may be of valid and one of test, or their splits differ"))
}

fn same_users(a: &Scores, b: &Scores) -> Result<()> {
    let (mut only_a, mut only_b, mut both) = (0usize, 0usize, 0usize);
    let (mut left, mut right) = (a.users.iter().peekable(), b.users.iter().peekable());
    while let Some(order) = match (left.peek(), right.peek()) {
        (Some(a), Some(b)) => Some(a.cmp(b)),
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    } {
        match order {
            Ordering::Less => only_a += 1,
            Ordering::Greater => only_b += 1,
            Ordering::Equal => both += 1,
        }
        if order.is_le() {
            left.next();
        }
        if order.is_ge() {
            right.next();
        }
    }
    if only_a + only_b == 0 {
        return Ok(());
    }
    let message = format!("\"{}\" and \"{}\" score different users", a.label, b.label);
    Err(Error::data("different-users", message)
        .detail(format!(
            "{only_a} only in \"{}\", {only_b} only in \"{}\", {both} in both",
            a.label, b.label
        ))
        .hint("compare systems that were scored on the same targets"))
}

#[cfg(test)]
#[path = "comparison/tests.rs"]
mod tests;
