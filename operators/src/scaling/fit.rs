//! Fits a law to points: the search over exponents and weights, from many starts, the best kept.

use super::Point;
use super::laws::{Form, LINEAR};
use super::linear::{Solution, huber_slope, residual, solve};
use super::optimizer::{Minimum, minimise};

/// Searches of a fit at most.
const STARTS: usize = 24;
/// Other solutions that a fit remembers, to start from when points are resampled.
const OTHERS: usize = 2;

/// A law fitted to points.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Parameters in the order of [`Form::names`].
    pub parameters: Vec<f64>,
    /// Sum of Huber losses over the points.
    pub loss: f64,
    /// Where searches ended, the best first: logarithms of exponents and of relative weights.
    pub ends: Vec<Vec<f64>>,
}

/// Points, as the search sees them.
struct Task<'a> {
    form: &'a Form,
    points: &'a [Point],
    values: Vec<f64>,
    delta: f64,
    /// What losses are divided by: those of the best constant, so that gradients are of order one.
    scale: f64,
    rows: Vec<[f64; LINEAR]>,
}

impl<'a> Task<'a> {
    fn new(form: &'a Form, points: &'a [Point], delta: f64) -> Self {
        let values: Vec<f64> = points.iter().map(|point| point.value).collect();
        let ones = vec![[1.0, 0.0, 0.0]; values.len()];
        let flat = solve(&ones, 1, 1, &values, delta).loss;
        let scale = if flat > 0.0 { flat } else { 1.0 };
        let rows = ones;
        Task {
            form,
            points,
            values,
            delta,
            scale,
            rows,
        }
    }

    /// The best linear part under these exponents and weights.
    fn project(&mut self, theta: &[f64]) -> Solution {
        for (row, point) in self.rows.iter_mut().zip(self.points) {
            *row = self.form.row(theta, &point.sizes);
        }
        if self.rows.iter().flatten().any(|value| !value.is_finite()) {
            return Solution {
                linear: [0.0; LINEAR],
                loss: f64::INFINITY,
            };
        }
        solve(
            &self.rows,
            self.form.linear.len(),
            self.form.free(),
            &self.values,
            self.delta,
        )
    }

    /// Loss and gradient. The linear part is at its best, so only the direct share of the gradient counts.
    fn value(&mut self, theta: &[f64], gradient: &mut [f64]) -> f64 {
        let solution = self.project(theta);
        gradient.fill(0.0);
        for ((row, point), value) in self.rows.iter().zip(self.points).zip(&self.values) {
            let slope = huber_slope(residual(row, &solution.linear, *value), self.delta);
            self.form
                .slope(theta, &point.sizes, &solution.linear, -slope / self.scale, gradient);
        }
        solution.loss / self.scale
    }

    fn search(&mut self, start: &[f64]) -> Minimum {
        let bounds: Vec<(f64, f64)> = self.form.searched.iter().map(|searched| searched.bounds).collect();
        minimise(&mut |theta, gradient| self.value(theta, gradient), start, &bounds)
    }

    /// Starts: places of the grid that are no worse than their neighbours, the best first.
    fn starts(&mut self) -> Vec<Vec<f64>> {
        let grids: Vec<Vec<f64>> = self
            .form
            .searched
            .iter()
            .map(|searched| searched.grid.clone())
            .collect();
        let count: usize = grids.iter().map(Vec::len).product();
        let place = |mut index: usize| -> Vec<usize> {
            let digit = |grid: &Vec<f64>| {
                let digit = index % grid.len();
                index /= grid.len();
                digit
            };
            grids.iter().map(digit).collect()
        };
        let theta =
            |digits: &[usize]| -> Vec<f64> { digits.iter().zip(&grids).map(|(digit, grid)| grid[*digit]).collect() };
        let losses: Vec<f64> = (0..count)
            .map(|index| self.project(&theta(&place(index))).loss)
            .collect();
        let is_least = |index: usize| {
            let digits = place(index);
            let mut stride = 1;
            let mut least = true;
            for (digit, grid) in digits.iter().zip(&grids) {
                least &= *digit == 0 || losses[index] <= losses[index - stride];
                least &= digit + 1 == grid.len() || losses[index] <= losses[index + stride];
                stride *= grid.len();
            }
            least
        };
        let mut starts: Vec<usize> = (0..count).filter(|index| is_least(*index)).collect();
        starts.sort_by(|a, b| losses[*a].total_cmp(&losses[*b]).then(a.cmp(b)));
        starts.truncate(STARTS);
        starts.into_iter().map(|index| theta(&place(index))).collect()
    }

    /// Searches from every start and keeps the best.
    fn best(&mut self, starts: &[Vec<f64>]) -> Fit {
        let mut ends: Vec<Minimum> = starts.iter().map(|start| self.search(start)).collect();
        ends.sort_by(|a, b| a.value.total_cmp(&b.value));
        let mut distinct: Vec<Vec<f64>> = Vec::new();
        for end in ends {
            let near = |other: &Vec<f64>| other.iter().zip(&end.at).all(|(a, b)| (a - b).abs() < 1e-3);
            if distinct.len() <= OTHERS && !distinct.iter().any(near) {
                distinct.push(end.at);
            }
        }
        let mut theta = distinct.first().cloned().unwrap_or_default();
        let mut solution = self.project(&theta);
        // A weight at its lower bound is 0.
        for (at, searched) in self.form.searched.iter().enumerate() {
            if searched.weight && theta[at] <= searched.bounds.0 + 1e-9 {
                let mut without = theta.clone();
                without[at] = f64::NEG_INFINITY;
                let other = self.project(&without);
                if other.loss <= solution.loss * (1.0 + 1e-6) + 1e-30 {
                    (theta, solution) = (without, other);
                }
            }
        }
        Fit {
            parameters: self.form.natural(&theta, &solution.linear),
            loss: solution.loss,
            ends: distinct,
        }
    }
}

/// Fits a law from a grid of starts.
pub fn fit(form: &Form, points: &[Point], delta: f64) -> Fit {
    let mut task = Task::new(form, points, delta);
    let starts = task.starts();
    ordered(form, points, task.best(&starts))
}

/// Fits a law to other points of the same kind, from where earlier searches ended.
pub fn refit(form: &Form, points: &[Point], delta: f64, earlier: &Fit) -> Fit {
    ordered(form, points, Task::new(form, points, delta).best(&earlier.ends))
}

/// Of two terms that can be exchanged, the one that matters more comes first.
fn ordered(form: &Form, points: &[Point], mut fit: Fit) -> Fit {
    if form.exchangeable() && spread(form, &fit.parameters, points, 1) > spread(form, &fit.parameters, points, 0) {
        fit.parameters = form.exchanged(&fit.parameters);
    }
    fit
}

/// By how much a term moves predictions from one end of the points to the other.
pub fn spread(form: &Form, parameters: &[f64], points: &[Point], term: usize) -> f64 {
    let values = || {
        points
            .iter()
            .map(|point| form.contribution(parameters, term, &point.sizes))
    };
    values().fold(f64::NEG_INFINITY, f64::max) - values().fold(f64::INFINITY, f64::min)
}
