//! Fits to resampled points: intervals of parameters and bands of curves.
//!
//! Points of one size differ in the seed alone, so they are resampled among themselves; their distances from their
//! mean are widened by the root of m/(m-1), because m points lie closer to their own mean than to the truth. Points that
//! are alone in their size are resampled among each other. Where users were scored, they can be resampled as well: every
//! resample draws users with replacement, the same for all points.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::random::{Random, Stream};

use super::fit::{Fit, refit};
use super::laws::Form;
use super::{Point, by_size};
use crate::bootstrap::quantile;

/// How points are resampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resampling {
    /// Points: within their size where it has several, else among those that are alone.
    Points,
    /// Residuals of the fit, put on its predictions: for designs whose sizes were chosen one by one.
    Residuals,
}

/// What users scored: for every point, a value a user, in one order of users.
pub struct Users {
    /// Values of the first point's users, then of the second's.
    pub values: Vec<f64>,
    /// Number of users.
    pub users: usize,
}

/// Parameters of the fits to resamples; a row a resample.
pub type Draws = Vec<Vec<f64>>;

/// Fits a law to resampled points.
pub fn over_points(
    form: &Form,
    points: &[Point],
    fit: &Fit,
    delta: f64,
    how: Resampling,
    count: usize,
    random: Random,
) -> Draws {
    let groups = by_size(points);
    let draw = |resample: u64| {
        let mut stream = random.row(resample);
        let drawn = match how {
            Resampling::Points => resampled(points, &groups, &mut stream),
            Resampling::Residuals => shaken(form, points, fit, &mut stream),
        };
        refit(form, &drawn, delta, fit).parameters
    };
    (0..count as u64).into_par_iter().map(draw).collect()
}

/// Fits a law to the same points under resampled users.
pub fn over_users(
    form: &Form,
    points: &[Point],
    fit: &Fit,
    delta: f64,
    users: &Users,
    count: usize,
    random: Random,
) -> Draws {
    let draw = |resample: u64| {
        let mut stream = random.row(resample);
        let mut counts = vec![0u32; users.users];
        (0..users.users).for_each(|_| counts[stream.below(users.users as u64) as usize] += 1);
        let mut drawn = points.to_vec();
        for (point, values) in drawn.iter_mut().zip(users.values.chunks_exact(users.users)) {
            let sum: f64 = values
                .iter()
                .zip(&counts)
                .map(|(value, count)| value * f64::from(*count))
                .sum();
            point.value = sum / users.users as f64;
        }
        refit(form, &drawn, delta, fit).parameters
    };
    (0..count as u64).into_par_iter().map(draw).collect()
}

fn resampled(points: &[Point], groups: &[Vec<usize>], stream: &mut Stream) -> Vec<Point> {
    let mut drawn = Vec::with_capacity(points.len());
    let alone: Vec<usize> = groups
        .iter()
        .filter(|group| group.len() == 1)
        .map(|group| group[0])
        .collect();
    for group in groups {
        let m = group.len();
        if m == 1 {
            drawn.push(points[alone[stream.below(alone.len() as u64) as usize]]);
            continue;
        }
        let mean = group.iter().map(|at| points[*at].value).sum::<f64>() / m as f64;
        let wider = (m as f64 / (m - 1) as f64).sqrt();
        for at in group {
            let other = points[group[stream.below(m as u64) as usize]].value;
            drawn.push(Point {
                sizes: points[*at].sizes,
                value: mean + wider * (other - mean),
            });
        }
    }
    drawn
}

fn shaken(form: &Form, points: &[Point], fit: &Fit, stream: &mut Stream) -> Vec<Point> {
    let predicted: Vec<f64> = points
        .iter()
        .map(|point| form.predict(&fit.parameters, &point.sizes))
        .collect();
    let residuals: Vec<f64> = points
        .iter()
        .zip(&predicted)
        .map(|(point, value)| point.value - value)
        .collect();
    let mean = residuals.iter().sum::<f64>() / residuals.len() as f64;
    let n = points.len() as f64;
    let wider = (n / (n - form.parameters() as f64).max(1.0)).sqrt();
    let pairs = points.iter().zip(&predicted);
    pairs
        .map(|(point, value)| Point {
            sizes: point.sizes,
            value: value + wider * (residuals[stream.below(points.len() as u64) as usize] - mean),
        })
        .collect()
}

/// The ends of a percentile interval over draws; draws that are NaN (a parameter that means nothing there) do not
/// count, and if most are there is no interval. With few `freedom` (points less parameters) resamples spread too little
/// by the ratio of Student's t to the normal quantile, so the tails are taken that much thinner (Hesterberg, "What
/// teachers should know about the bootstrap", 2015: expanded percentiles).
pub fn interval(values: impl Iterator<Item = f64>, confidence: f64, freedom: f64) -> Option<(f64, f64)> {
    let all: Vec<f64> = values.collect();
    let mut known: Vec<f64> = all.iter().copied().filter(|value| !value.is_nan()).collect();
    if known.len() * 2 < all.len() {
        return None;
    }
    known.sort_unstable_by(f64::total_cmp);
    let tail = below(-student(confidence, freedom));
    quantile(&known, tail).zip(quantile(&known, 1.0 - tail))
}

/// Degrees of freedom of an interval: of points about the means of their sizes where all sizes have several, else of
/// points about the law.
pub fn freedom(form: &Form, points: &[Point], how: Resampling) -> f64 {
    let groups = by_size(points);
    let repeated = groups.iter().all(|group| group.len() > 1) && how == Resampling::Points;
    let spent = if repeated { groups.len() } else { form.parameters() };
    (points.len() as f64 - spent as f64).max(2.0)
}

/// How many standard deviations hold `confidence` under Student's t: the expansion of Cornish and Fisher.
fn student(confidence: f64, freedom: f64) -> f64 {
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        match 1.0 - 2.0 * below(-middle) < confidence {
            true => low = middle,
            false => high = middle,
        }
    }
    let z = high;
    let one = (z.powi(3) + z) / 4.0;
    let two = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
    let three = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
    z + one / freedom + two / freedom.powi(2) + three / freedom.powi(3)
}

/// The normal distribution function at or below 0, to a relative 2e-7 (Numerical Recipes, `erfcc`).
fn below(z: f64) -> f64 {
    let x = -z / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.5 * x);
    let coefficients = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let series = coefficients
        .iter()
        .rev()
        .fold(0.0, |sum, coefficient| sum * t + coefficient);
    0.5 * t * (-x * x + series).exp()
}

/// The rank correlation (Spearman) of two parameters over draws: it does not mind scales. `None` where fewer than three
/// draws have both, or one of them is the same in all.
pub fn correlation(draws: &Draws, a: usize, b: usize) -> Option<f64> {
    let both: Vec<(f64, f64)> = draws
        .iter()
        .map(|draw| (draw[a], draw[b]))
        .filter(|(a, b)| !a.is_nan() && !b.is_nan())
        .collect();
    if both.len() < 3 {
        return None;
    }
    let (a, b) = (
        ranks(both.iter().map(|pair| pair.0)),
        ranks(both.iter().map(|pair| pair.1)),
    );
    let centre = (both.len() - 1) as f64 / 2.0;
    let product = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| (x - centre) * (y - centre)).sum() };
    let size = (product(&a, &a) * product(&b, &b)).sqrt();
    (size > 0.0).then(|| product(&a, &b) / size)
}

/// Ranks from 0; equal values share the mean of theirs.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for run in order.chunk_by(|a, b| values[*a] == values[*b]) {
        run.iter()
            .for_each(|at| ranks[*at] = start as f64 + (run.len() - 1) as f64 / 2.0);
        start += run.len();
    }
    ranks
}
