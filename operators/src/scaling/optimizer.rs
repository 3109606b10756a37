//! L-BFGS within a box (Liu and Nocedal 1989): directions of a limited memory, parameters at a bound held there, a line
//! search for the weak conditions of Wolfe.

/// Pairs of steps and changes of the gradient that are kept.
const MEMORY: usize = 8;
/// Steps at most.
const STEPS: usize = 200;
/// The search ends where the slope is this small beside the value: further digits are below what data say.
const FLAT: f64 = 1e-9;
/// A value this small is 0: what rounding leaves.
const NOTHING: f64 = 1e-28;
/// A step must win this share of what the gradient promises,
const SUFFICIENT: f64 = 1e-4;
/// and leave at most this share of the slope.
const CURVATURE: f64 = 0.9;

/// Where a search ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Minimum {
    /// The place.
    pub at: Vec<f64>,
    /// The value there.
    pub value: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Minimises a function within bounds from a start. The function says its value and writes its gradient.
pub fn minimise(function: &mut dyn FnMut(&[f64], &mut [f64]) -> f64, start: &[f64], bounds: &[(f64, f64)]) -> Minimum {
    let inside = |x: &mut [f64]| {
        for (x, (low, high)) in x.iter_mut().zip(bounds) {
            *x = x.clamp(*low, *high);
        }
    };
    let mut at = start.to_vec();
    inside(&mut at);
    let mut gradient = vec![0.0; at.len()];
    let mut value = function(&at, &mut gradient);
    let mut memory: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
    let mut fresh = true;
    for _ in 0..STEPS {
        let held: Vec<bool> = (0..at.len())
            .map(|i| (at[i] <= bounds[i].0 && gradient[i] > 0.0) || (at[i] >= bounds[i].1 && gradient[i] < 0.0))
            .collect();
        let steepest: Vec<f64> = (0..at.len()).map(|i| if held[i] { 0.0 } else { gradient[i] }).collect();
        if value <= NOTHING || steepest.iter().all(|slope| slope.abs() <= FLAT * value) {
            break;
        }
        let mut direction = towards(&memory, &steepest, &held);
        if dot(&direction, &steepest) >= 0.0 {
            memory.clear();
            direction = steepest.iter().map(|slope| -slope).collect();
        }
        if memory.is_empty() {
            // Without any memory of curvature: at most a step of one tenth.
            let most = direction.iter().map(|d| d.abs()).fold(0.0, f64::max);
            direction.iter_mut().for_each(|d| *d *= 0.1 / most);
        }
        // As far as the first bound, and never further than what would be a new place altogether.
        let mut room = f64::INFINITY;
        for ((x, d), (low, high)) in at.iter().zip(&direction).zip(bounds) {
            let way = if *d > 0.0 { high - x } else { low - x };
            if *d != 0.0 && way / d > 0.0 {
                room = room.min(way / d);
            }
        }
        let most = direction.iter().map(|d| d.abs()).fold(0.0, f64::max);
        let room = room.min(3.0 / most);
        let Some((next, next_value, next_gradient)) =
            search(function, &at, value, &gradient, &direction, room, &inside)
        else {
            // No way down: once more without the memory, then it is the end.
            if fresh {
                break;
            }
            memory.clear();
            fresh = true;
            continue;
        };
        let step: Vec<f64> = (0..at.len()).map(|i| next[i] - at[i]).collect();
        let change: Vec<f64> = (0..at.len()).map(|i| next_gradient[i] - gradient[i]).collect();
        if dot(&step, &change) > 1e-12 * dot(&step, &step).sqrt() * dot(&change, &change).sqrt() {
            memory.push((step, change));
            if memory.len() > MEMORY {
                memory.remove(0);
            }
        }
        fresh = memory.is_empty();
        let still = (value - next_value).abs() <= 1e-15 * value.abs()
            && (0..at.len()).all(|i| (next[i] - at[i]).abs() <= 1e-12);
        (at, value, gradient) = (next, next_value, next_gradient);
        if still {
            break;
        }
    }
    Minimum { at, value }
}

/// The two loops over the memory: less the inverse of the curvature, times the gradient.
fn towards(memory: &[(Vec<f64>, Vec<f64>)], gradient: &[f64], held: &[bool]) -> Vec<f64> {
    let mut direction: Vec<f64> = gradient.iter().map(|slope| -slope).collect();
    let mut shares = Vec::with_capacity(memory.len());
    for (step, change) in memory.iter().rev() {
        let share = dot(step, &direction) / dot(step, change);
        direction
            .iter_mut()
            .zip(change)
            .for_each(|(d, change)| *d -= share * change);
        shares.push(share);
    }
    if let Some((step, change)) = memory.last() {
        let scale = dot(step, change) / dot(change, change);
        direction.iter_mut().for_each(|d| *d *= scale);
    }
    for ((step, change), share) in memory.iter().zip(shares.iter().rev()) {
        let back = dot(change, &direction) / dot(step, change);
        direction
            .iter_mut()
            .zip(step)
            .for_each(|(d, step)| *d += (share - back) * step);
    }
    direction
        .iter_mut()
        .zip(held)
        .for_each(|(d, held)| *d = if *held { 0.0 } else { *d });
    direction
}

type Place = (Vec<f64>, f64, Vec<f64>);

/// A step that wins enough: bisection for the weak conditions of Wolfe (Lewis and Overton 2013).
fn search(
    function: &mut dyn FnMut(&[f64], &mut [f64]) -> f64,
    at: &[f64],
    value: f64,
    gradient: &[f64],
    direction: &[f64],
    room: f64,
    inside: &dyn Fn(&mut [f64]),
) -> Option<Place> {
    let slope = dot(gradient, direction);
    let (mut low, mut high, mut length) = (0.0, f64::INFINITY, 1f64.min(room));
    let mut best: Option<Place> = None;
    for _ in 0..50 {
        let mut next: Vec<f64> = at.iter().zip(direction).map(|(x, d)| x + length * d).collect();
        inside(&mut next);
        let mut next_gradient = vec![0.0; at.len()];
        let next_value = function(&next, &mut next_gradient);
        if !next_value.is_finite() || next_value > value + SUFFICIENT * length * slope {
            high = length;
        } else {
            let flat = dot(&next_gradient, direction) >= CURVATURE * slope;
            if next_value < value || (next_value == value && next != at) {
                best = Some((next, next_value, next_gradient));
            }
            if flat || length >= room {
                break;
            }
            low = length;
        }
        length = if high.is_finite() {
            0.5 * (low + high)
        } else {
            (2.0 * length).min(room)
        };
    }
    best
}
