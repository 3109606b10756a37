//! Greedy k-means++ seeding, deterministic for a seed and any number of threads.

use std::collections::HashSet;

use rayon::prelude::*;

use super::{Buffer, KMeansConfig, KMeansError};
use crate::{draws, lanes};

/// Rows per task.
const PANEL: usize = 256;
/// Streams of the seed.
const STREAM_DRAWS: u64 = 1;
const STREAM_BUFFER: u64 = 2;

/// K centres [K, D] drawn from the rows of `buffer`, and how many of them are distinct (the others repeat centre 0).
pub(super) fn plus_plus(
    rows_nd: &[f32],
    dim: usize,
    weights_n: Option<&[f32]>,
    buffer: Buffer,
    config: &KMeansConfig,
) -> Result<(Vec<f32>, usize), KMeansError> {
    let n = rows_nd.len() / dim;
    // no centre without a row to draw
    let room = |most: usize| most.max(config.clusters);
    let picked: Vec<usize> = match buffer {
        Buffer::All => (0..n).collect(),
        Buffer::First(most) => (0..n.min(room(most))).collect(),
        Buffer::Sampled(most) => {
            let mut rows: Vec<usize> = draws::permutation(config.seed, STREAM_BUFFER, n)
                .into_iter()
                .take(room(most))
                .map(|i| i as usize)
                .collect();
            rows.sort();
            rows
        }
    };
    let weights: Vec<f64> = picked
        .iter()
        .map(|row| weights_n.map_or(1.0, |w| w[*row] as f64))
        .collect();
    let own_nd: Vec<f32>;
    let rows_nd = if picked.len() == n {
        rows_nd
    } else {
        own_nd = picked
            .iter()
            .flat_map(|row| &rows_nd[row * dim..(row + 1) * dim])
            .copied()
            .collect();
        &own_nd
    };
    let distinct = count_distinct(rows_nd, dim, &weights, config.clusters);
    if distinct < config.clusters && !config.allow_fewer_distinct {
        return Err(KMeansError::TooFewDistinct {
            clusters: config.clusters,
            distinct,
            rows: picked.len(),
        });
    }
    let mut seeder = Seeder::new(rows_nd, dim, weights, config.seed);
    let trials = 2 + (config.clusters as f64).ln() as usize;
    let mut chosen = vec![seeder.draw_by_weight()];
    seeder.accept(&[chosen[0]]);
    while chosen.len() < config.clusters {
        let Some(candidates) = seeder.draw(chosen.len() as u64, trials) else {
            break;
        };
        chosen.push(seeder.accept(&candidates));
    }
    let found = chosen.len();
    chosen.resize(config.clusters, chosen[0]);
    Ok((
        chosen
            .iter()
            .flat_map(|row| &rows_nd[row * dim..(row + 1) * dim])
            .copied()
            .collect(),
        found,
    ))
}

/// Distinct rows of positive weight, counted up to `enough`.
fn count_distinct(rows_nd: &[f32], dim: usize, weights: &[f64], enough: usize) -> usize {
    let mut seen: HashSet<Vec<u32>> = HashSet::new();
    for (row, weight) in rows_nd.chunks_exact(dim).zip(weights) {
        if seen.len() >= enough {
            break;
        }
        if *weight > 0.0 {
            seen.insert(row.iter().map(|x| (x + 0.0).to_bits()).collect());
        }
    }
    seen.len()
}

struct Seeder<'a> {
    rows_nd: &'a [f32],
    dim: usize,
    squared_norm_n: Vec<f32>,
    weights: Vec<f64>,
    /// Squared distance to the nearest centre so far.
    nearest_n: Vec<f32>,
    seed: u64,
}

impl<'a> Seeder<'a> {
    fn new(rows_nd: &'a [f32], dim: usize, weights: Vec<f64>, seed: u64) -> Self {
        let squared_norm_n = rows_nd
            .par_chunks_exact(dim)
            .map(|row| lanes::squared_norm(row) as f32)
            .collect();
        let nearest_n = vec![f32::INFINITY; weights.len()];
        Seeder {
            rows_nd,
            dim,
            squared_norm_n,
            weights,
            nearest_n,
            seed,
        }
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.rows_nd[row * self.dim..(row + 1) * self.dim]
    }

    fn draw_by_weight(&self) -> usize {
        let sums: Vec<f64> = running_sums(self.weights.iter().copied());
        pick(&sums, draws::uniform(self.seed, STREAM_DRAWS, 0))
    }

    /// Rows drawn with probability proportional to weight x squared distance; `None` where all distances are 0.
    fn draw(&self, step: u64, trials: usize) -> Option<Vec<usize>> {
        let sums = running_sums(self.nearest_n.iter().zip(&self.weights).map(|(d, w)| *d as f64 * w));
        if *sums.last()? <= 0.0 {
            return None;
        }
        let index = |trial| step * trials as u64 + trial;
        let draw = |trial| pick(&sums, draws::uniform(self.seed, STREAM_DRAWS, index(trial)));
        Some((0..trials as u64).map(draw).collect())
    }

    /// Takes the candidate that leaves the least weighted sum of distances (ties: the first) and returns it.
    fn accept(&mut self, candidates: &[usize]) -> usize {
        let count = candidates.len();
        let candidates_ld: Vec<f32> = candidates.iter().flat_map(|row| self.row(*row)).copied().collect();
        let panels: Vec<(Vec<f32>, Vec<f64>)> = self
            .rows_nd
            .par_chunks(PANEL * self.dim)
            .enumerate()
            .map(|(panel, rows_nd)| self.distances(panel * PANEL, rows_nd, candidates, &candidates_ld))
            .collect();
        let mut left_l = vec![0f64; count];
        for (_, sums) in &panels {
            left_l.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
        let best = (0..count).fold(0, |best, l| if left_l[l] < left_l[best] { l } else { best });
        let columns = panels
            .iter()
            .flat_map(|(nearest_nl, _)| nearest_nl.iter().skip(best).step_by(count));
        self.nearest_n
            .iter_mut()
            .zip(columns)
            .for_each(|(to, from)| *to = *from);
        candidates[best]
    }

    /// For a panel of rows: the squared distances to the nearest centre if candidate l were one [n, L], and their
    /// weighted sums [L].
    fn distances(&self, first: usize, rows_nd: &[f32], candidates: &[usize], with_ld: &[f32]) -> (Vec<f32>, Vec<f64>) {
        let (count, n) = (candidates.len(), rows_nd.len() / self.dim);
        let mut nearest_nl = vec![0f32; n * count];
        lanes::dots(rows_nd, with_ld, self.dim, &mut nearest_nl);
        let mut sums = vec![0f64; count];
        for (at, nearest_l) in nearest_nl.chunks_exact_mut(count).enumerate() {
            let row = first + at;
            let own = self.squared_norm_n[row];
            for (l, value) in nearest_l.iter_mut().enumerate() {
                let other = self.squared_norm_n[candidates[l]];
                let mut distance = own + other - 2.0 * *value;
                if distance < 1e-3 * (own + other) {
                    // cancellation: sum the differences instead
                    distance = lanes::squared_distance(self.row(row), self.row(candidates[l])) as f32;
                }
                *value = if distance < self.nearest_n[row] {
                    distance
                } else {
                    self.nearest_n[row]
                };
                sums[l] += *value as f64 * self.weights[row];
            }
        }
        (nearest_nl, sums)
    }
}

fn running_sums(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut total = 0.0;
    let add = |x| {
        total += x;
        total
    };
    values.map(add).collect()
}

/// The first index whose running sum exceeds `at` (in [0, 1)) of the total.
fn pick(sums: &[f64], at: f64) -> usize {
    let total = sums.last().copied().unwrap_or(0.0);
    let found = sums.partition_point(|sum| *sum <= at * total);
    // rounding can carry `at * total` to the total itself: take the last row of positive weight
    if found < sums.len() {
        found
    } else {
        sums.partition_point(|sum| *sum < total)
    }
}
