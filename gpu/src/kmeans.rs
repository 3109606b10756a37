//! k-means on f32 rows: k-means++ or given centres, Lloyd to convergence or mini-batch updates, sample weights.
//!
//! Every row goes to the centre that is nearest in f64 arithmetic, ties to the lowest centre (see `assign`), and sums
//! run in row order in f64, so labels and centres depend neither on the number of threads nor on the device that assigns.
//! Source: Lloyd 1982; k-means++ Arthur and Vassilvitskii 2007 (greedy variant, as scikit-learn); mini-batch Sculley
//! 2010, with the settings of GRID (arXiv 2507.22224). Shape legend: N rows, D width, K centres.

mod assign;
mod balance;
mod seeding;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::kernels::Kernels;
use crate::{draws, lanes};
pub use assign::assign;
use assign::{Assignment, Centres};
pub use balance::assign_balanced;

/// What makes k-means impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KMeansError {
    /// There is no row, or rows have no column.
    #[error("k-means needs at least one row and one column, got {rows} x {columns}")]
    Empty {
        /// N.
        rows: usize,
        /// D.
        columns: usize,
    },
    /// A slice is not a whole number of rows.
    #[error("{what}: got {got} values, expected {expected}")]
    Length {
        /// Which slice.
        what: &'static str,
        /// Its length.
        got: usize,
        /// What the other arguments imply.
        expected: usize,
    },
    /// A value is NaN or infinite.
    #[error("row {row}, column {column} is {value}; every value must be finite")]
    NotFinite {
        /// Index of the row.
        row: usize,
        /// Index of the column.
        column: usize,
        /// The value.
        value: f32,
    },
    /// A weight is negative, NaN or infinite, or all are zero.
    #[error("the weight of row {row} is {value}; weights must be finite, not negative, and not all zero")]
    Weight {
        /// Index of the row.
        row: usize,
        /// The weight.
        value: f32,
    },
    /// There are fewer distinct rows than centres.
    #[error("{clusters} clusters need as many distinct rows, but only {distinct} of {rows} rows are distinct")]
    TooFewDistinct {
        /// K.
        clusters: usize,
        /// Distinct rows (of those that centres are drawn from).
        distinct: usize,
        /// Rows that centres are drawn from.
        rows: usize,
    },
    /// The clusters cannot hold all rows.
    #[error("{clusters} clusters of at most {capacity} rows cannot hold {rows} rows")]
    Capacity {
        /// N.
        rows: usize,
        /// K.
        clusters: usize,
        /// Most rows of a cluster.
        capacity: usize,
    },
    /// No cluster was asked for.
    #[error("the number of clusters must be at least 1")]
    NoClusters,
    /// The device that assigns rows failed.
    #[error("the device failed: {0}")]
    Device(String),
}

/// Which rows k-means++ draws its centres from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// All rows.
    All,
    /// The first rows, at most this many, or one a centre where that is more.
    First(usize),
    /// Rows sampled without replacement, at most this many, or one a centre where that is more.
    Sampled(usize),
}

/// Where the first centres come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Init {
    /// Greedy k-means++: each centre is the best of `2 + ln K` draws with probability proportional to the squared
    /// distance from the centres so far.
    PlusPlus(Buffer),
    /// These centres [K, D], row-major.
    Given(Vec<f32>),
}

/// How centres move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// Lloyd's iterations until no label changes, or the centres' summed squared shift is at most `tolerance` times
    /// the mean variance of the columns (scikit-learn's rule), or `max_iterations` have run.
    Lloyd {
        /// Most iterations.
        max_iterations: usize,
        /// Relative tolerance; 0 asks for unchanged labels.
        tolerance: f64,
    },
    /// This many updates, each from one batch of rows (a seeded permutation, repeated); a centre is the running mean
    /// of the rows it received. GRID: 8 updates of 2,048 rows. A centre that receives no row stays.
    MiniBatch {
        /// Number of updates.
        updates: usize,
        /// Rows per update.
        batch_rows: usize,
    },
}

/// What to cluster into, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeansConfig {
    /// K, the number of centres.
    pub clusters: usize,
    /// The first centres.
    pub init: Init,
    /// How they move.
    pub schedule: Schedule,
    /// Seed of k-means++, of sampled buffers and of mini-batches.
    pub seed: u64,
    /// Accept fewer distinct rows than centres. Surplus entries then repeat entry 0 and no row is assigned to them.
    pub allow_fewer_distinct: bool,
}

/// A clustering.
#[derive(Debug, Clone, PartialEq)]
pub struct KMeansFit {
    /// Centres [K, D], row-major.
    pub centres_kd: Vec<f32>,
    /// The nearest centre of every row [N], under `centres_kd`.
    pub labels_n: Vec<u32>,
    /// Weighted sum of squared distances from rows to their centres.
    pub inertia: f64,
    /// Iterations or updates that ran.
    pub iterations: usize,
    /// Whether Lloyd stopped by itself (always false for mini-batches).
    pub converged: bool,
    /// Centres that at least one row is assigned to.
    pub used: usize,
}

/// Clusters `rows_ND` (row-major, width `dim`), each row counted `weights_N[row]` times (once where `None`).
///
/// A centre that loses all its rows takes the row farthest from its own centre (ties: the last such row), one row per
/// empty centre in ascending order of centres, never the only row of another centre; the row leaves its old centre
/// before means are taken. Errors: see [`KMeansError`].
pub fn fit(
    rows_nd: &[f32],
    dim: usize,
    weights_n: Option<&[f32]>,
    config: &KMeansConfig,
) -> Result<KMeansFit, KMeansError> {
    fit_by(None, rows_nd, dim, weights_n, config)
}

/// The same; rows are assigned by kernels if there are some, which gives the same labels.
///
/// # Errors
/// Those of [`fit`], and [`KMeansError::Device`].
pub fn fit_by(
    kernels: Option<&Kernels>,
    rows_nd: &[f32],
    dim: usize,
    weights_n: Option<&[f32]>,
    config: &KMeansConfig,
) -> Result<KMeansFit, KMeansError> {
    check(rows_nd, dim, weights_n, config)?;
    let (centres_kd, distinct) = match &config.init {
        Init::Given(centres_kd) => (centres_kd.clone(), config.clusters),
        Init::PlusPlus(buffer) => seeding::plus_plus(rows_nd, dim, weights_n, *buffer, config)?,
    };
    let rows = Rows {
        rows_nd,
        dim,
        weights_n,
        kernels,
    };
    let mut fit = match config.schedule {
        Schedule::Lloyd {
            max_iterations,
            tolerance,
        } => rows.lloyd(centres_kd, distinct, max_iterations, tolerance),
        Schedule::MiniBatch { updates, batch_rows } => rows.mini_batch(centres_kd, updates, batch_rows, config.seed),
    }?;
    rows.judge(&mut fit);
    Ok(fit)
}

/// Goes on from a clustering with at most `capacity` rows a cluster: [`assign_balanced`] and means by turns until no
/// label changes, at most `iterations` times. Of all these the clustering of least inertia is returned.
///
/// # Errors
/// [`KMeansError::Capacity`] where the clusters cannot hold the rows.
pub fn rebalance(
    rows_nd: &[f32],
    dim: usize,
    fit: KMeansFit,
    capacity: usize,
    iterations: usize,
) -> Result<KMeansFit, KMeansError> {
    let rows = Rows {
        rows_nd,
        dim,
        weights_n: None,
        kernels: None,
    };
    let mut best: Option<KMeansFit> = None;
    let mut now = fit;
    for _ in 0..iterations.max(1) {
        let labels_n = assign_balanced(rows_nd, dim, &now.centres_kd, capacity)?;
        let settled = best.is_some() && labels_n == now.labels_n;
        now.centres_kd = rows.own_means(&labels_n, now.centres_kd);
        now.labels_n = labels_n;
        rows.judge(&mut now);
        if best.as_ref().is_none_or(|best| now.inertia < best.inertia) {
            best = Some(now.clone());
        }
        if settled {
            break;
        }
    }
    Ok(best.unwrap_or(now))
}

/// Row and column of the first NaN or infinite value of rows of width `dim`.
pub(crate) fn first_not_finite(rows_nd: &[f32], dim: usize) -> Option<(usize, usize, f32)> {
    let at = rows_nd
        .par_chunks(1 << 16)
        .map(|c| c.iter().position(|x| !x.is_finite()))
        .enumerate();
    let at = at.find_map_first(|(chunk, at)| at.map(|at| (chunk << 16) + at))?;
    Some((at / dim, at % dim, rows_nd[at]))
}

fn check(rows_nd: &[f32], dim: usize, weights_n: Option<&[f32]>, config: &KMeansConfig) -> Result<(), KMeansError> {
    if dim == 0 || rows_nd.is_empty() {
        return Err(KMeansError::Empty {
            rows: rows_nd.len().checked_div(dim).unwrap_or(0),
            columns: dim,
        });
    }
    if config.clusters == 0 {
        return Err(KMeansError::NoClusters);
    }
    let rows = rows_nd.len() / dim;
    let length = |what, got, expected| match got == expected {
        true => Ok(()),
        false => Err(KMeansError::Length { what, got, expected }),
    };
    length("the rows", rows_nd.len(), rows * dim)?;
    if let Some((row, column, value)) = first_not_finite(rows_nd, dim) {
        return Err(KMeansError::NotFinite { row, column, value });
    }
    if let Some(weights_n) = weights_n {
        length("the weights", weights_n.len(), rows)?;
        if let Some(row) = weights_n.iter().position(|w| !w.is_finite() || *w < 0.0) {
            return Err(KMeansError::Weight {
                row,
                value: weights_n[row],
            });
        }
        if weights_n.iter().all(|w| *w == 0.0) {
            return Err(KMeansError::Weight { row: 0, value: 0.0 });
        }
    }
    if let Init::Given(centres_kd) = &config.init {
        length("the given centres", centres_kd.len(), config.clusters * dim)?;
        if let Some((row, column, value)) = first_not_finite(centres_kd, dim) {
            return Err(KMeansError::NotFinite { row, column, value });
        }
    }
    Ok(())
}

/// The rows to cluster.
struct Rows<'a> {
    rows_nd: &'a [f32],
    dim: usize,
    weights_n: Option<&'a [f32]>,
    /// Who assigns rows, if not the CPU.
    kernels: Option<&'a Kernels>,
}

impl Rows<'_> {
    /// Centres from `distinct` on are surplus (copies of centre 0) and stay so.
    fn lloyd(
        &self,
        centres_kd: Vec<f32>,
        distinct: usize,
        max_iterations: usize,
        tolerance: f64,
    ) -> Result<KMeansFit, KMeansError> {
        let mut centres = Centres::new(centres_kd, self.dim);
        let mut state = Assignment::new(self.rows_nd, &centres, self.kernels)?;
        let threshold = if tolerance > 0.0 {
            tolerance * self.mean_variance()
        } else {
            0.0
        };
        let (mut iterations, mut converged) = (0, false);
        while iterations < max_iterations && !converged {
            let mut labels_n = state.labels_n.clone();
            let moved_kd = self.means(&mut labels_n, &centres, distinct);
            let shifts_k: Vec<f64> = moved_kd
                .par_chunks_exact(self.dim)
                .zip(centres.centres_kd.par_chunks_exact(self.dim))
                .map(|(a, b)| lanes::squared_distance(a, b))
                .collect();
            let relocated = labels_n != state.labels_n;
            centres = Centres::new(moved_kd, self.dim);
            let changed = state.update(self.rows_nd, &centres, &shifts_k)?;
            iterations += 1;
            converged = !relocated && (!changed || shifts_k.iter().sum::<f64>() <= threshold);
        }
        let labels_n = state.labels_n;
        Ok(KMeansFit {
            centres_kd: centres.centres_kd,
            labels_n,
            inertia: 0.0,
            iterations,
            converged,
            used: 0,
        })
    }

    fn mini_batch(
        &self,
        centres_kd: Vec<f32>,
        updates: usize,
        batch_rows: usize,
        seed: u64,
    ) -> Result<KMeansFit, KMeansError> {
        let (d, n) = (self.dim, self.rows_nd.len() / self.dim);
        let order = draws::permutation(seed, 3, n);
        let mut centres = Centres::new(centres_kd, d);
        let mut totals_k = vec![0f64; centres.centres_kd.len() / d];
        for update in 0..updates {
            let picked: Vec<usize> = (0..batch_rows.min(n))
                .map(|i| order[(update * batch_rows.min(n) + i) % n] as usize)
                .collect();
            let batch_nd: Vec<f32> = picked
                .iter()
                .flat_map(|i| &self.rows_nd[i * d..(i + 1) * d])
                .copied()
                .collect();
            let weights: Option<Vec<f32>> = self.weights_n.map(|w| picked.iter().map(|i| w[*i]).collect());
            let labels = Assignment::new(&batch_nd, &centres, self.kernels)?.labels_n;
            let batch = Rows {
                rows_nd: &batch_nd,
                dim: d,
                weights_n: weights.as_deref(),
                kernels: self.kernels,
            };
            let mut moved_kd = centres.centres_kd;
            for (k, (sum_d, weight)) in batch.sums(&labels, totals_k.len()).into_iter().enumerate() {
                if weight > 0.0 {
                    totals_k[k] += weight;
                    for (c, s) in moved_kd[k * d..(k + 1) * d].iter_mut().zip(sum_d) {
                        *c = (*c as f64 + (s - weight * *c as f64) / totals_k[k]) as f32;
                    }
                }
            }
            centres = Centres::new(moved_kd, d);
        }
        let labels_n = Assignment::new(self.rows_nd, &centres, self.kernels)?.labels_n;
        let centres_kd = centres.centres_kd;
        Ok(KMeansFit {
            centres_kd,
            labels_n,
            inertia: 0.0,
            iterations: updates,
            converged: false,
            used: 0,
        })
    }

    /// Weighted means of the labelled rows [K, D]; empty centres below `distinct` are relocated first (in `labels_n`).
    /// A centre whose rows weigh nothing stays.
    fn means(&self, labels_n: &mut [u32], centres: &Centres, distinct: usize) -> Vec<f32> {
        let d = self.dim;
        self.relocate(labels_n, centres, distinct);
        let mut moved_kd = self.own_means(labels_n, centres.centres_kd.clone());
        let (first, surplus) = moved_kd.split_at_mut(distinct * d);
        surplus.chunks_exact_mut(d).for_each(|c| c.copy_from_slice(&first[..d]));
        moved_kd
    }

    /// Weighted means of the labelled rows [K, D]; a centre whose rows weigh nothing stays.
    fn own_means(&self, labels_n: &[u32], mut centres_kd: Vec<f32>) -> Vec<f32> {
        let d = self.dim;
        let sums = self.sums(labels_n, centres_kd.len() / d);
        let mean = |(centre_d, (sum_d, weight)): (&mut [f32], (Vec<f64>, f64))| {
            if weight > 0.0 {
                centre_d
                    .iter_mut()
                    .zip(sum_d)
                    .for_each(|(c, s)| *c = (s / weight) as f32);
            }
        };
        centres_kd.par_chunks_exact_mut(d).zip(sums).for_each(mean);
        centres_kd
    }

    /// Fills in the inertia and the number of clusters in use.
    fn judge(&self, fit: &mut KMeansFit) {
        fit.inertia = self.inertia(&fit.labels_n, &fit.centres_kd);
        let mut used = vec![false; fit.centres_kd.len() / self.dim];
        fit.labels_n.iter().for_each(|k| used[*k as usize] = true);
        fit.used = used.iter().filter(|used| **used).count();
    }

    /// Weighted sum [D] and weight of the rows of every cluster, in f64, rows in ascending order.
    fn sums(&self, labels_n: &[u32], k: usize) -> Vec<(Vec<f64>, f64)> {
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); k];
        labels_n
            .iter()
            .enumerate()
            .for_each(|(row, label)| members[*label as usize].push(row as u32));
        let sum = |rows: &Vec<u32>| {
            let (mut sum_d, mut total) = (vec![0f64; self.dim], 0.0);
            for row in rows {
                let row = *row as usize;
                let weight = self.weights_n.map_or(1.0, |w| w[row] as f64);
                lanes::add_scaled(&mut sum_d, &self.rows_nd[row * self.dim..(row + 1) * self.dim], weight);
                total += weight;
            }
            (sum_d, total)
        };
        members.par_iter().map(sum).collect()
    }

    fn relocate(&self, labels_n: &mut [u32], centres: &Centres, distinct: usize) {
        let mut counts = vec![0usize; distinct];
        labels_n.iter().for_each(|k| counts[*k as usize] += 1);
        let empty: Vec<usize> = (0..distinct).filter(|k| counts[*k] == 0).collect();
        if empty.is_empty() {
            return;
        }
        let distances_n = self.squared_distances(labels_n, &centres.centres_kd);
        let mut farthest: Vec<usize> = (0..labels_n.len()).filter(|row| distances_n[*row] > 0.0).collect();
        farthest.sort_by(|a, b| distances_n[*b].total_cmp(&distances_n[*a]).then(b.cmp(a)));
        let mut empty = empty.into_iter().peekable();
        for row in farthest {
            let Some(k) = empty.peek() else { return };
            let donor = labels_n[row] as usize;
            if counts[donor] > 1 {
                counts[donor] -= 1;
                labels_n[row] = *k as u32;
                empty.next();
            }
        }
    }

    fn squared_distances(&self, labels_n: &[u32], centres_kd: &[f32]) -> Vec<f64> {
        let d = self.dim;
        let distance = |(row_d, k): (&[f32], &u32)| lanes::squared_distance(row_d, &centres_kd[*k as usize * d..][..d]);
        self.rows_nd.par_chunks_exact(d).zip(labels_n).map(distance).collect()
    }

    fn inertia(&self, labels_n: &[u32], centres_kd: &[f32]) -> f64 {
        let distances_n = self.squared_distances(labels_n, centres_kd);
        let weight = |row: usize| self.weights_n.map_or(1.0, |w| w[row] as f64);
        distances_n.iter().enumerate().map(|(row, x)| weight(row) * x).sum()
    }

    /// Mean over the columns of their (unweighted) variance.
    fn mean_variance(&self) -> f64 {
        let (d, n) = (self.dim, (self.rows_nd.len() / self.dim) as f64);
        let mut mean_d = vec![0f64; d];
        self.rows_nd
            .chunks_exact(d)
            .for_each(|row| lanes::add_scaled(&mut mean_d, row, 1.0 / n));
        let mean_d: Vec<f32> = mean_d.iter().map(|x| *x as f32).collect();
        let squares: Vec<f64> = self
            .rows_nd
            .par_chunks_exact(d)
            .map(|row| lanes::squared_distance(row, &mean_d))
            .collect();
        squares.iter().sum::<f64>() / n / d as f64
    }
}
