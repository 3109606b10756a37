//! Uniform assignment of a batch to the entries of a codebook by the Sinkhorn-Knopp iterations.
//!
//! Source: LC-Rec (arXiv 2311.09049), which spreads the last level this way: distances are shifted and scaled to
//! [-1, 1], `Q = exp(-d / epsilon)` is scaled to equal column sums and equal row sums by turns, and every row takes its
//! largest entry. Shape legend: B rows, K entries.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Rows per task; fixed, so sums do not depend on threads.
const TASK_ROWS: usize = 64;

/// How a batch is spread over the entries of the last level while it trains.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sinkhorn {
    /// How soft the assignment is; LC-Rec: 0.003.
    pub epsilon: f64,
    /// Iterations; LC-Rec: 50.
    pub iterations: usize,
}

impl Sinkhorn {
    /// The entry of every row [B], from squared distances [B, K].
    pub(super) fn assign(&self, distances_bk: &[f32], k: usize) -> Vec<u32> {
        let (least, most) = distances_bk
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        let middle = f64::from(least + most) / 2.0;
        let amplitude = f64::from(most) - middle + 1e-5;
        let rows = distances_bk.len() / k;
        let score = |x: &f32| (-(f64::from(*x) - middle) / amplitude / self.epsilon).exp();
        let mut q_bk: Vec<f64> = distances_bk.par_iter().map(score).collect();
        let mut columns_k = vec![1.0; k];
        for _ in 0..self.iterations {
            let sums: Vec<Vec<f64>> = q_bk
                .par_chunks(TASK_ROWS * k)
                .map(|rows| column_sums(rows, k))
                .collect();
            columns_k.fill(0.0);
            for part in sums {
                columns_k.iter_mut().zip(part).for_each(|(s, x)| *s += x);
            }
            // a column that is all zero is nobody's choice
            let factors_k: Vec<f64> = columns_k
                .iter()
                .map(|sum| if *sum > 0.0 { 1.0 / (sum * k as f64) } else { 0.0 })
                .collect();
            q_bk.par_chunks_exact_mut(k).for_each(|row_k| {
                row_k.iter_mut().zip(&factors_k).for_each(|(x, f)| *x *= f);
                let sum: f64 = row_k.iter().sum();
                let factor = if sum > 0.0 { 1.0 / (sum * rows as f64) } else { 0.0 };
                row_k.iter_mut().for_each(|x| *x *= factor);
            });
        }
        let largest = |row_k: &[f64]| {
            let largest = (0..k).fold(0, |best, at| if row_k[at] > row_k[best] { at } else { best });
            largest as u32
        };
        q_bk.par_chunks_exact(k).map(largest).collect()
    }
}

fn column_sums(q_bk: &[f64], k: usize) -> Vec<f64> {
    let mut sums = vec![0.0; k];
    for row_k in q_bk.chunks_exact(k) {
        sums.iter_mut().zip(row_k).for_each(|(s, x)| *s += x);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws;

    #[test]
    fn a_crowd_is_spread_and_who_is_alone_stays() {
        // all rows are nearest to entry 0, by little
        let (rows, k) = (64, 8);
        let near = |i: usize| if i.is_multiple_of(k) { 0.9 } else { 1.0 };
        let distance = |i: usize| near(i) + draws::uniform(1, 0, i as u64) as f32 * 0.05;
        let distances: Vec<f32> = (0..rows * k).map(distance).collect();
        let sinkhorn = Sinkhorn {
            epsilon: 0.05,
            iterations: 100,
        };
        let mut counts = [0; 8];
        let labels = sinkhorn.assign(&distances, k);
        labels.iter().for_each(|label| counts[*label as usize] += 1);
        assert!(counts.iter().all(|count| (3..=16).contains(count)), "{counts:?}");
        // where nothing is crowded, the nearest entry is kept
        let distances: Vec<f32> = (0..64).map(|i| if i % 8 == i / 8 { 0.0 } else { 1.0 }).collect();
        assert_eq!(sinkhorn.assign(&distances, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
