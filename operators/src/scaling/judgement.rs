//! How good a law is: what it explains, what its parameters cost, and how far off it is beyond the sizes it saw.

use super::fit::{Fit, fit};
use super::laws::Form;
use super::{PARTS, Point, by_size};

/// Share of the sizes, the largest, that are held out.
const HELD_OUT: f64 = 0.2;

/// Values that differ by less, relative to the largest, are equal.
pub const FLAT: f64 = 1e-12;

/// A fitted law, judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judgement {
    /// Share of the variance that is explained; `None` where values do not vary.
    pub r2: Option<f64>,
    /// Akaike's criterion, with normal errors of the variance of the residuals: n ln(RSS/n) + 2(p + 1).
    pub aic: f64,
    /// The same, corrected for few points (Hurvich and Tsai 1989); `None` where points do not exceed parameters by 3.
    pub aicc: Option<f64>,
    /// Schwarz's criterion: n ln(RSS/n) + (p + 1) ln n.
    pub bic: f64,
    /// Mean absolute error on the largest sizes, of a fit to the others; `None` where these are too few.
    pub held_out: Option<f64>,
}

/// Judges a fit.
pub fn judge(form: &Form, points: &[Point], fitted: &Fit, delta: f64) -> Judgement {
    let n = points.len() as f64;
    let mean = points.iter().map(|point| point.value).sum::<f64>() / n;
    let total: f64 = points.iter().map(|point| (point.value - mean).powi(2)).sum();
    let squares: f64 = points
        .iter()
        .map(|point| (point.value - form.predict(&fitted.parameters, &point.sizes)).powi(2))
        .sum();
    // What rounding leaves of residuals and of equal values says nothing: criteria stay finite.
    let most = points.iter().map(|point| point.value.abs()).fold(1e-9, f64::max);
    let fit_term = n * (squares / n).max((1e-14 * most).powi(2)).ln();
    let p = form.parameters() as f64 + 1.0;
    let aic = fit_term + 2.0 * p;
    Judgement {
        r2: (total > n * (FLAT * most).powi(2)).then(|| 1.0 - squares / total),
        aic,
        aicc: (n - p - 1.0 > 0.0).then(|| aic + 2.0 * p * (p + 1.0) / (n - p - 1.0)),
        bic: fit_term + p * n.ln(),
        held_out: held_out_error(form, points, delta),
    }
}

/// Logarithm of the product of a point's sizes, by which sizes are ordered.
pub fn log_size(point: &Point) -> f64 {
    let known = point.sizes.iter().filter(|size| size.is_finite());
    known.map(|size| size.ln()).sum()
}

/// Which points are of the largest sizes.
pub fn largest(points: &[Point]) -> Vec<bool> {
    let mut groups = by_size(points);
    groups.sort_by(|a, b| log_size(&points[a[0]]).total_cmp(&log_size(&points[b[0]])));
    let count = (HELD_OUT * groups.len() as f64).ceil() as usize;
    let mut held = vec![false; points.len()];
    for group in &groups[groups.len() - count.min(groups.len())..] {
        group.iter().for_each(|at| held[*at] = true);
    }
    held
}

fn held_out_error(form: &Form, points: &[Point], delta: f64) -> Option<f64> {
    let held = largest(points);
    let part = |wanted: bool| -> Vec<Point> {
        let pairs = points.iter().zip(&held).filter(|(_, held)| **held == wanted);
        pairs.map(|(point, _)| *point).collect()
    };
    let (seen, unseen) = (part(false), part(true));
    if by_size(&seen).len() < form.parameters() {
        return None;
    }
    let fitted = fit(form, &seen, delta);
    let error = |point: &Point| (point.value - form.predict(&fitted.parameters, &point.sizes)).abs();
    let errors: f64 = unseen.iter().map(error).sum();
    Some(errors / unseen.len() as f64).filter(|error| error.is_finite())
}

/// Sizes along a curve: `count` steps of equal ratio of the part `main`, from the smallest to `reach` times the largest.
/// Other parts go with it by the power that fits the points best, so parts that do not depend on it stay at their mean.
pub fn curve_sizes(points: &[Point], main: usize, count: usize, reach: f64) -> Vec<[f64; PARTS.len()]> {
    let logs: Vec<f64> = points.iter().map(|point| point.sizes[main].ln()).collect();
    let (low, high) = (
        logs.iter().copied().fold(f64::INFINITY, f64::min),
        logs.iter().copied().fold(f64::NEG_INFINITY, f64::max) + reach.ln(),
    );
    let centre = logs.iter().sum::<f64>() / logs.len() as f64;
    let width: f64 = logs.iter().map(|log| (log - centre).powi(2)).sum();
    let follow = |part: usize, log: f64| {
        let others = || points.iter().map(|point| point.sizes[part].ln());
        let mean = others().sum::<f64>() / logs.len() as f64;
        let slope = match width > 0.0 {
            true => {
                others()
                    .zip(&logs)
                    .map(|(other, log)| (other - mean) * (log - centre))
                    .sum::<f64>()
                    / width
            }
            false => 0.0,
        };
        (mean + slope * (log - centre)).exp()
    };
    let at = |step: usize| low + (high - low) * step as f64 / (count.max(2) - 1) as f64;
    let sizes = |step: usize| {
        let log = at(step);
        let mut sizes = [f64::NAN; PARTS.len()];
        for (part, size) in sizes.iter_mut().enumerate() {
            *size = if part == main { log.exp() } else { follow(part, log) };
        }
        sizes
    };
    (0..count).map(sizes).collect()
}
