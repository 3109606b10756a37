//! Nearest centres by matrix product, exact: whatever the product's rounding could have swapped is decided in f64.
//!
//! `|x - c|^2 = |x|^2 + |c|^2 - 2 x.c`, so the nearest centre has the least `|c|^2 - 2 x.c`. The f32 product errs by
//! at most `D u |x| |c|` (u = 2^-24); every centre whose score lies within twice that of the best is compared again
//! by summing squared differences in f64, ties to the lowest centre. Data with a large common offset therefore stays
//! right and becomes slow; subtract the mean of such data first.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{KMeansError, first_not_finite};
use crate::error::Error;
use crate::kernels::Kernels;
use crate::lanes;
use crate::product::{View, product};

/// Rows per task.
const PANEL: usize = 128;
/// Unit roundoff of f32.
const ROUNDOFF: f64 = 1.0 / (1u32 << 24) as f64;

/// The nearest of `centres_KD` for every row of `rows_ND` (row-major, width `dim`), ties to the lowest; with the squared
/// distance to it. Errors: no row, no centre, slices that are no whole rows, values that are not finite.
pub fn assign(rows_nd: &[f32], dim: usize, centres_kd: &[f32]) -> Result<(Vec<u32>, Vec<f64>), KMeansError> {
    if dim == 0 || rows_nd.is_empty() {
        return Err(KMeansError::Empty {
            rows: rows_nd.len().checked_div(dim).unwrap_or(0),
            columns: dim,
        });
    }
    if centres_kd.is_empty() {
        return Err(KMeansError::NoClusters);
    }
    for (what, values) in [("the rows", rows_nd), ("the centres", centres_kd)] {
        let got = values.len();
        if got % dim != 0 {
            return Err(KMeansError::Length {
                what,
                got,
                expected: got / dim * dim,
            });
        }
        if let Some((row, column, value)) = first_not_finite(values, dim) {
            return Err(KMeansError::NotFinite { row, column, value });
        }
    }
    let labels_n = Assignment::new(rows_nd, &Centres::new(centres_kd.to_vec(), dim), None)?.labels_n;
    let distance = |(row, k): (&[f32], &u32)| lanes::squared_distance(row, &centres_kd[*k as usize * dim..][..dim]);
    let distances_n = rows_nd.par_chunks_exact(dim).zip(&labels_n).map(distance).collect();
    Ok((labels_n, distances_n))
}

/// Centres with what the product needs of them.
pub(super) struct Centres {
    pub(super) centres_kd: Vec<f32>,
    dim: usize,
    /// The centres as columns, so that the product reads them along its rows.
    centres_dk: Vec<f32>,
    squared_norm_k: Vec<f32>,
    largest_norm: f64,
}

impl Centres {
    pub(super) fn new(centres_kd: Vec<f32>, dim: usize) -> Self {
        let k = centres_kd.len() / dim;
        let mut centres_dk = vec![0f32; centres_kd.len()];
        for (at, centre_d) in centres_kd.chunks_exact(dim).enumerate() {
            for (i, x) in centre_d.iter().enumerate() {
                centres_dk[i * k + at] = *x;
            }
        }
        let squared: Vec<f64> = centres_kd.chunks_exact(dim).map(lanes::squared_norm).collect();
        let largest_norm = squared.iter().fold(0f64, |a, b| a.max(*b)).sqrt();
        let squared_norm_k = squared.iter().map(|x| *x as f32).collect();
        Centres {
            centres_kd,
            dim,
            centres_dk,
            squared_norm_k,
            largest_norm,
        }
    }

    fn centre(&self, k: usize) -> &[f32] {
        &self.centres_kd[k * self.dim..(k + 1) * self.dim]
    }

    /// The nearest centre of every row of a panel, and (for bounds) a lower bound of the distance to all others.
    fn nearest(&self, panel_nd: &[f32], scores_nk: &mut Vec<f32>, mut found: impl FnMut(usize, u32, Bounds)) {
        let (n, k) = (panel_nd.len() / self.dim, self.squared_norm_k.len());
        scores_nk.resize(n * k, 0.0);
        let (x, c) = (View::rows(panel_nd, self.dim), View::rows(&self.centres_dk, k));
        product((n, self.dim, k), 1.0, x, c, false, scores_nk, k);
        for (at, (row_d, scores_k)) in panel_nd
            .chunks_exact(self.dim)
            .zip(scores_nk.chunks_exact_mut(k))
            .enumerate()
        {
            let least = lanes::scores_from_dots(scores_k, &self.squared_norm_k);
            let squared = lanes::squared_norm(row_d);
            let error = self.score_error(squared.sqrt());
            // where a product could overflow f32, every centre is compared in f64
            let safe = squared.max(self.largest_norm * self.largest_norm) < 1e36;
            let bound = if safe {
                ((least as f64 + 2.0 * error) as f32).next_up()
            } else {
                f32::INFINITY
            };
            let (close, first) = lanes::count_at_most(scores_k, bound);
            let label = if close == 1 && safe {
                first
            } else {
                self.decide(row_d, scores_k, bound)
            };
            let own = scores_k[label];
            scores_k[label] = f32::INFINITY;
            let second = lanes::least(scores_k);
            let bounds = if safe {
                Bounds::new(squared, own, second, error)
            } else {
                Bounds::UNKNOWN
            };
            found(at, label as u32, bounds);
        }
    }

    /// Bound of the error of a score of a row of this norm (with room for the subnormal and the order of summation).
    fn score_error(&self, norm: f64) -> f64 {
        let dot = (self.dim + 4) as f64 * ROUNDOFF * norm * self.largest_norm;
        1.01 * (2.0 * dot + 4.0 * ROUNDOFF * self.largest_norm * self.largest_norm) + f32::MIN_POSITIVE as f64
    }

    /// The nearest in f64 among the centres scored at most `bound`; all of them where scores overflowed.
    fn decide(&self, row_d: &[f32], scores_k: &[f32], bound: f32) -> usize {
        let mut best = (f64::INFINITY, 0);
        for (k, score) in scores_k.iter().enumerate() {
            if *score <= bound || !bound.is_finite() {
                let distance = lanes::squared_distance(row_d, self.centre(k));
                if distance < best.0 {
                    best = (distance, k);
                }
            }
        }
        best.1
    }
}

/// Labels under the current centres.
pub(super) struct Assignment {
    pub(super) labels_n: Vec<u32>,
    by: By,
}

/// How rows find their centres.
enum By {
    /// Hamerly's bounds (SDM 2010): a row is skipped while its distance to its own centre is certainly less than to any
    /// other.
    Bounds(Vec<Bounds>),
    /// Kernels, with the rows on their device.
    Kernels(Kernels, Tensor),
}

/// The nearest centre of every row, by kernels.
fn nearest(kernels: &Kernels, rows: &Tensor, centres: &Centres) -> Result<Vec<u32>, KMeansError> {
    let of = || -> Result<Vec<u32>, Error> {
        let shape = (centres.squared_norm_k.len(), centres.dim);
        let centres = Tensor::from_slice(&centres.centres_kd, shape, kernels.device())?;
        Ok(kernels.assign(rows, &centres)?.to_vec1()?)
    };
    of().map_err(|error| KMeansError::Device(error.to_string()))
}

/// An upper bound of the distance to the own centre and a lower bound of the distance to every other.
#[derive(Clone, Copy, Default)]
struct Bounds {
    own: f32,
    other: f32,
}

impl Bounds {
    const UNKNOWN: Bounds = Bounds {
        own: f32::INFINITY,
        other: 0.0,
    };

    /// From the squared norm of the row, the scores of its centre and of the second, and the error of a score.
    fn new(squared: f64, own: f32, second: f32, error: f64) -> Self {
        let own = (squared + own as f64 + error).max(0.0).sqrt();
        let other = (squared + second as f64 - error).max(0.0).sqrt();
        Bounds {
            own: (own * 1.000001) as f32,
            other: (other * 0.999999) as f32,
        }
    }
}

impl Assignment {
    pub(super) fn new(rows_nd: &[f32], centres: &Centres, kernels: Option<&Kernels>) -> Result<Self, KMeansError> {
        let n = rows_nd.len() / centres.dim;
        let Some(kernels) = kernels else {
            let (mut labels_n, mut bounds_n) = (vec![0; n], vec![Bounds::default(); n]);
            let all: Vec<u32> = (0..n as u32).collect();
            assign_rows(rows_nd, centres, &all, &mut labels_n, &mut bounds_n);
            let by = By::Bounds(bounds_n);
            return Ok(Assignment { labels_n, by });
        };
        let rows = Tensor::from_slice(rows_nd, (n, centres.dim), kernels.device());
        let rows = rows.map_err(|error| KMeansError::Device(error.to_string()))?;
        Ok(Assignment {
            labels_n: nearest(kernels, &rows, centres)?,
            by: By::Kernels(kernels.clone(), rows),
        })
    }

    /// Labels under `centres`, whose centre k moved by the square root of `shifts_K[k]`; whether a label changed.
    pub(super) fn update(&mut self, rows_nd: &[f32], centres: &Centres, shifts_k: &[f64]) -> Result<bool, KMeansError> {
        let bounds_n = match &mut self.by {
            By::Bounds(bounds_n) => bounds_n,
            By::Kernels(kernels, rows) => {
                let before = std::mem::replace(&mut self.labels_n, nearest(kernels, rows, centres)?);
                return Ok(before != self.labels_n);
            }
        };
        let up = |x: &f64| (x.sqrt() * 1.000001) as f32;
        let moved_k: Vec<f32> = shifts_k.iter().map(up).collect();
        let (mut most, mut at, mut second) = (0f32, 0, 0f32);
        for (k, moved) in moved_k.iter().enumerate() {
            if *moved > most {
                (second, most, at) = (most, *moved, k);
            } else if *moved > second {
                second = *moved;
            }
        }
        let d = centres.dim;
        let open: Vec<u32> = bounds_n
            .par_iter_mut()
            .zip(&self.labels_n)
            .enumerate()
            .filter_map(|(row, (bounds, label))| {
                let others = if *label as usize == at { second } else { most };
                bounds.own = (bounds.own + moved_k[*label as usize]) * 1.000001;
                bounds.other = (bounds.other - others).max(0.0) * 0.999999;
                if bounds.own < bounds.other {
                    return None;
                }
                let own = lanes::squared_distance(&rows_nd[row * d..(row + 1) * d], centres.centre(*label as usize));
                bounds.own = (own.sqrt() * 1.000001) as f32;
                (bounds.own >= bounds.other).then_some(row as u32)
            })
            .collect();
        Ok(assign_rows(rows_nd, centres, &open, &mut self.labels_n, bounds_n))
    }
}

/// Assigns the rows listed; whether a label changed.
fn assign_rows(
    rows_nd: &[f32],
    centres: &Centres,
    rows: &[u32],
    labels_n: &mut [u32],
    bounds_n: &mut [Bounds],
) -> bool {
    let d = centres.dim;
    let found: Vec<Vec<(u32, Bounds)>> = rows
        .par_chunks(PANEL)
        .map_init(
            || (Vec::new(), Vec::new()),
            |(panel_nd, scores_nk), rows| {
                let first = rows[0] as usize;
                let panel: &[f32] = if rows[rows.len() - 1] as usize - first + 1 == rows.len() {
                    &rows_nd[first * d..(first + rows.len()) * d]
                } else {
                    panel_nd.clear();
                    rows.iter()
                        .for_each(|r| panel_nd.extend_from_slice(&rows_nd[*r as usize * d..][..d]));
                    panel_nd
                };
                let mut out = Vec::with_capacity(rows.len());
                centres.nearest(panel, scores_nk, |_, label, bounds| out.push((label, bounds)));
                out
            },
        )
        .collect();
    let mut changed = false;
    for (row, (label, bounds)) in rows.iter().zip(found.into_iter().flatten()) {
        changed |= labels_n[*row as usize] != label;
        labels_n[*row as usize] = label;
        bounds_n[*row as usize] = bounds;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws;

    fn rows(seed: u64, n: usize, offset: f64) -> Vec<f32> {
        (0..n)
            .map(|i| (offset + draws::normal(seed, 0, i as u64)) as f32)
            .collect()
    }

    fn slow(rows_nd: &[f32], dim: usize, centres_kd: &[f32]) -> Vec<u32> {
        let nearest = |row: &[f32]| {
            let mut best = (f64::INFINITY, 0);
            for (k, centre) in centres_kd.chunks_exact(dim).enumerate() {
                let d = lanes::squared_distance(row, centre);
                if d < best.0 {
                    best = (d, k as u32);
                }
            }
            best.1
        };
        rows_nd.chunks_exact(dim).map(nearest).collect()
    }

    #[test]
    fn agrees_with_its_slow_twin_even_under_an_offset() {
        for (n, d, k, offset) in [
            (257, 7, 13, 0.0),
            (33, 33, 1, 0.0),
            (300, 13, 40, 1e4),
            (129, 48, 33, -100.0),
        ] {
            let (x, c) = (rows(1, n * d, offset), rows(2, k * d, offset));
            assert_eq!(assign(&x, d, &c).unwrap().0, slow(&x, d, &c), "{n} {d} {k} {offset}");
        }
    }

    #[test]
    fn ties_go_to_the_lowest_centre() {
        let c = [1.0, 1.0, 0.0, 2.0, 1.0, 1.0, 3.0, 0.0];
        assert_eq!(assign(&[1.0, 1.0, 0.5, 1.5, 9.0, -9.0], 2, &c).unwrap().0, [0, 0, 3]);
        assert_eq!(assign(&[1e30, 0.0], 2, &[1e30, 1.0, -1e30, 0.0]).unwrap().0, [0]);
    }

    #[test]
    fn bounds_skip_only_rows_that_keep_their_label() {
        let (d, k) = (5, 17);
        let x = rows(3, 700 * d, 0.0);
        let mut c = rows(4, k * d, 0.0);
        let mut state = Assignment::new(&x, &Centres::new(c.clone(), d), None).unwrap();
        for step in 0..30 {
            let before = c.clone();
            let scale = if step < 15 { 0.2 } else { 0.01 };
            c.iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v += (scale * draws::normal(5, step, i as u64)) as f32);
            let shifts: Vec<f64> = c
                .chunks_exact(d)
                .zip(before.chunks_exact(d))
                .map(|(a, b)| lanes::squared_distance(a, b))
                .collect();
            state.update(&x, &Centres::new(c.clone(), d), &shifts).unwrap();
            assert_eq!(state.labels_n, slow(&x, d, &c), "step {step}");
        }
    }
}
