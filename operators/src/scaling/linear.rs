//! The linear part of a law: offset and factors that make the Huber loss least, factors of terms not negative.
//!
//! Where all residuals are within delta the loss is a sum of squares, and the solution is that of least squares, in one
//! step. Else it is iterative: Newton's steps on a piecewise quadratic, each with an exact line search. The problem is
//! convex, so which factors are 0 is found by trying.

use super::laws::LINEAR;

/// Newton's steps at most.
const STEPS: usize = 120;
/// Weights of points outside of their quadratic zone, taken in turn, where those inside do not say where to go.
const LITTLE: [f64; 3] = [1.0, 1e-2, 1e-4];

/// The linear parameters that fit best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Solution {
    /// The parameters; those beyond the number of columns are 0.
    pub linear: [f64; LINEAR],
    /// Sum of the Huber losses of the residuals.
    pub loss: f64,
}

/// Huber's loss: half the square within delta, straight lines beyond.
pub fn huber(residual: f64, delta: f64) -> f64 {
    let size = residual.abs();
    match size <= delta {
        true => 0.5 * residual * residual,
        false => delta * (size - 0.5 * delta),
    }
}

/// Its slope.
pub fn huber_slope(residual: f64, delta: f64) -> f64 {
    residual.clamp(-delta, delta)
}

/// Value less prediction.
pub fn residual(row: &[f64; LINEAR], linear: &[f64; LINEAR], value: f64) -> f64 {
    value - row[0] * linear[0] - row[1] * linear[1] - row[2] * linear[2]
}

/// Minimises the loss over the first `columns` parameters, of which those from `free` on are at least 0.
pub fn solve(rows: &[[f64; LINEAR]], columns: usize, free: usize, values: &[f64], delta: f64) -> Solution {
    let all: Vec<usize> = (0..columns).collect();
    let full = unconstrained(rows, &all, values, delta);
    if full.linear[free..columns].iter().all(|factor| *factor >= 0.0) {
        return full;
    }
    // The best of those that hold some factors at 0 and leave none below it.
    let mut best: Option<Solution> = None;
    for held in 1..1usize << (columns - free) {
        let kept: Vec<usize> = (0..columns)
            .filter(|column| *column < free || held >> (column - free) & 1 == 0)
            .collect();
        let solution = unconstrained(rows, &kept, values, delta);
        let feasible = solution.linear[free..columns].iter().all(|factor| *factor >= 0.0);
        if feasible && best.is_none_or(|best| solution.loss < best.loss) {
            best = Some(solution);
        }
    }
    best.unwrap_or(full)
}

/// Minimises the loss over some columns.
fn unconstrained(rows: &[[f64; LINEAR]], kept: &[usize], values: &[f64], delta: f64) -> Solution {
    let mut scales = [1.0; LINEAR];
    for &column in kept {
        let most = rows.iter().map(|row| row[column].abs()).fold(0.0, f64::max);
        scales[column] = if most > 0.0 && most.is_finite() { most } else { 1.0 };
    }
    let scaled: Vec<[f64; LINEAR]> = rows
        .iter()
        .map(|row| {
            let mut scaled = [0.0; LINEAR];
            kept.iter()
                .for_each(|column| scaled[*column] = row[*column] / scales[*column]);
            scaled
        })
        .collect();
    let mut linear = [0.0; LINEAR];
    let ones = vec![1.0; values.len()];
    // A column that those before it make up decides nothing and stays 0, as that of a size that all points share.
    let mut independent = Vec::new();
    for &column in kept {
        independent.push(column);
        if factors(&scaled, &independent, &ones).is_none() {
            independent.pop();
        }
    }
    let kept = &independent[..];
    // Twice: the second time takes up what rounding left over.
    for _ in 0..2 {
        let residuals = residuals(&scaled, &linear, values);
        if let Some(step) = least_squares(&scaled, kept, &ones, &residuals) {
            (0..LINEAR).for_each(|at| linear[at] += step[at]);
        }
    }
    let mut now = residuals(&scaled, &linear, values);
    if now.iter().any(|residual| residual.abs() > delta) {
        newton(&scaled, kept, values, delta, &mut linear);
        now = residuals(&scaled, &linear, values);
    }
    let loss = now.iter().map(|residual| huber(*residual, delta)).sum();
    (0..LINEAR).for_each(|at| linear[at] /= scales[at]);
    Solution { linear, loss }
}

fn residuals(rows: &[[f64; LINEAR]], linear: &[f64; LINEAR], values: &[f64]) -> Vec<f64> {
    let pairs = rows.iter().zip(values);
    pairs.map(|(row, value)| residual(row, linear, *value)).collect()
}

fn newton(rows: &[[f64; LINEAR]], kept: &[usize], values: &[f64], delta: f64, linear: &mut [f64; LINEAR]) {
    let (mut still, mut least) = (0, f64::INFINITY);
    for step in 0..STEPS {
        let now = residuals(rows, linear, values);
        let loss: f64 = now.iter().map(|residual| huber(*residual, delta)).sum();
        still = if loss < least * (1.0 - 1e-13) { 0 } else { still + 1 };
        if still > LITTLE.len() {
            return;
        }
        least = loss;
        // In its quadratic zone a point has its weight. Too few such points leave a valley, along which the others decide:
        // they get a little weight, less the further out they are. Any weights give a way down.
        let outside = |little: f64| -> Vec<f64> {
            let weight = |residual: &f64| match residual.abs() <= delta {
                true => 1.0,
                false => little * delta / residual.abs(),
            };
            now.iter().map(weight).collect()
        };
        let enough = still == 0 && now.iter().filter(|residual| residual.abs() <= delta).count() >= kept.len();
        let slopes: Vec<f64> = now.iter().map(|residual| huber_slope(*residual, delta)).collect();
        let direction = match enough {
            true => descent(rows, kept, &outside(0.0), &slopes),
            false => None,
        };
        let direction = direction.or_else(|| descent(rows, kept, &outside(LITTLE[step % LITTLE.len()]), &slopes));
        let Some(direction) = direction else { return };
        let along: Vec<f64> = rows.iter().map(|row| -residual(row, &direction, 0.0)).collect();
        let length = line(&now, &along, delta);
        (0..LINEAR).for_each(|at| linear[at] += length * direction[at]);
        if enough && (length - 1.0).abs() < 1e-9 {
            // A whole step among the same points: the solution, if they stay the same.
            let after = residuals(rows, linear, values);
            let side = |residual: &f64| (*residual > delta, *residual < -delta);
            if now.iter().map(side).eq(after.iter().map(side)) {
                return;
            }
        }
    }
}

/// The direction in which the loss falls: the weighted normal matrix, inverted, times the gradient.
fn descent(rows: &[[f64; LINEAR]], kept: &[usize], weights: &[f64], slopes: &[f64]) -> Option<[f64; LINEAR]> {
    let targets: Vec<f64> = slopes
        .iter()
        .zip(weights)
        .map(|(slope, weight)| if *weight > 0.0 { slope / weight } else { 0.0 })
        .collect();
    let mut step = least_squares(rows, kept, weights, &targets)?;
    // Points without weight pull as well.
    if weights.contains(&0.0) {
        let pull: Vec<f64> = slopes
            .iter()
            .zip(weights)
            .map(|(slope, weight)| if *weight > 0.0 { 0.0 } else { *slope })
            .collect();
        let extra = normal_solve(rows, kept, weights, &pull)?;
        (0..LINEAR).for_each(|at| step[at] += extra[at]);
    }
    Some(step)
}

/// The step length at which the loss along a line is least. Its slope rises, in straight pieces.
fn line(residuals: &[f64], along: &[f64], delta: f64) -> f64 {
    let slope = |length: f64| -> f64 {
        let pairs = residuals.iter().zip(along);
        -pairs
            .map(|(residual, along)| huber_slope(residual - length * along, delta) * along)
            .sum::<f64>()
    };
    let start = slope(0.0);
    if start >= 0.0 {
        return 0.0;
    }
    let (mut low, mut at_low, mut high) = (0.0, start, 1.0);
    let mut at_high = slope(high);
    if at_high.abs() <= 1e-13 * start.abs() {
        return high;
    }
    for _ in 0..60 {
        if at_high >= 0.0 {
            break;
        }
        (low, at_low, high) = (high, at_high, high * 4.0);
        at_high = slope(high);
    }
    for _ in 0..80 {
        // The secant's root, which is exact within a piece; halves where it makes no way.
        let secant = low - at_low * (high - low) / (at_high - at_low);
        let width = high - low;
        let middle = match secant > low + 1e-3 * width && secant < high - 1e-3 * width {
            true => secant,
            false => low + 0.5 * width,
        };
        let at_middle = slope(secant.clamp(low, high));
        if at_middle.abs() <= 1e-14 * start.abs() {
            return secant.clamp(low, high);
        }
        let at_middle = slope(middle);
        match at_middle < 0.0 {
            true => (low, at_low) = (middle, at_middle),
            false => (high, at_high) = (middle, at_middle),
        }
        if high - low <= 1e-16 * high {
            break;
        }
    }
    0.5 * (low + high)
}

/// Columns of the weighted matrix made orthogonal, and the triangle that takes them back; `None` if they depend on each
/// other.
struct Factors {
    orthogonal: Vec<[f64; LINEAR]>,
    triangle: [[f64; LINEAR]; LINEAR],
}

fn factors(rows: &[[f64; LINEAR]], kept: &[usize], weights: &[f64]) -> Option<Factors> {
    let mut orthogonal: Vec<[f64; LINEAR]> = rows
        .iter()
        .zip(weights)
        .map(|(row, weight)| row.map(|value| value * weight.sqrt()))
        .collect();
    let mut triangle = [[0.0; LINEAR]; LINEAR];
    for (place, &column) in kept.iter().enumerate() {
        let before: f64 = orthogonal.iter().map(|row| row[column] * row[column]).sum();
        // Gram and Schmidt, twice.
        for _ in 0..2 {
            for &earlier in &kept[..place] {
                let product: f64 = orthogonal.iter().map(|row| row[earlier] * row[column]).sum();
                triangle[earlier][column] += product;
                orthogonal
                    .iter_mut()
                    .for_each(|row| row[column] -= product * row[earlier]);
            }
        }
        let norm: f64 = orthogonal.iter().map(|row| row[column] * row[column]).sum();
        if norm <= 1e-26 * before || norm == 0.0 || !norm.is_finite() {
            return None;
        }
        let norm = norm.sqrt();
        triangle[column][column] = norm;
        orthogonal.iter_mut().for_each(|row| row[column] /= norm);
    }
    Some(Factors { orthogonal, triangle })
}

fn back(triangle: &[[f64; LINEAR]; LINEAR], kept: &[usize], mut right: [f64; LINEAR]) -> [f64; LINEAR] {
    let mut solution = [0.0; LINEAR];
    for (place, &row) in kept.iter().enumerate().rev() {
        for &column in &kept[place + 1..] {
            right[row] -= triangle[row][column] * solution[column];
        }
        solution[row] = right[row] / triangle[row][row];
    }
    solution
}

/// Weighted least squares.
fn least_squares(rows: &[[f64; LINEAR]], kept: &[usize], weights: &[f64], targets: &[f64]) -> Option<[f64; LINEAR]> {
    let Factors { orthogonal, triangle } = factors(rows, kept, weights)?;
    let mut left: Vec<f64> = targets
        .iter()
        .zip(weights)
        .map(|(target, weight)| target * weight.sqrt())
        .collect();
    let mut right = [0.0; LINEAR];
    for &column in kept {
        right[column] = orthogonal.iter().zip(&left).map(|(row, left)| row[column] * left).sum();
        let by = right[column];
        orthogonal
            .iter()
            .zip(&mut left)
            .for_each(|(row, left)| *left -= by * row[column]);
    }
    Some(back(&triangle, kept, right))
}

/// The inverse of the weighted normal matrix times what `pull` does to the columns.
fn normal_solve(rows: &[[f64; LINEAR]], kept: &[usize], weights: &[f64], pull: &[f64]) -> Option<[f64; LINEAR]> {
    let Factors { triangle, .. } = factors(rows, kept, weights)?;
    let mut right = [0.0; LINEAR];
    for (place, &column) in kept.iter().enumerate() {
        let product: f64 = rows.iter().zip(pull).map(|(row, pull)| row[column] * pull).sum();
        let known: f64 = kept[..place]
            .iter()
            .map(|earlier| triangle[*earlier][column] * right[*earlier])
            .sum();
        right[column] = (product - known) / triangle[column][column];
    }
    Some(back(&triangle, kept, right))
}
