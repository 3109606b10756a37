//! Residual quantization: one k-means per level, each on what the levels before left over.
//!
//! Source: residual k-means of GRID (arXiv 2507.22224) and "Understanding Generative Recommendation with Semantic IDs
//! from a Model-scaling View" (arXiv 2509.25522). Shape legend: N rows, D width, C levels, K entries of a codebook.

mod beam;

use std::ops::ControlFlow;

use rayon::prelude::*;

use crate::collisions::Distances;
use crate::kernels::Kernels;
use crate::kmeans::{self, Buffer, Init, KMeansConfig, KMeansError, Schedule};
use crate::lanes;
use crate::weights::{Weight, Weights};

/// Most rounds of assignment and means under a capacity.
const BALANCE_ITERATIONS: usize = 10;

/// What makes a residual quantizer impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ResidualError {
    /// No level was asked for.
    #[error("a residual quantizer needs at least one level")]
    NoLevels,
    /// k-means failed on a level.
    #[error("level {level} of {levels}: {source}")]
    Level {
        /// Index of the level, from 0.
        level: usize,
        /// C.
        levels: usize,
        /// What k-means said.
        source: KMeansError,
    },
    /// A beam and a balance were asked for together.
    #[error("a beam of {beam} would undo the balance; use a beam of 1, or no balance")]
    BeamAndBalance {
        /// Places of the beam.
        beam: usize,
    },
    /// Codes are no whole number of rows, or a code is not in its codebook.
    #[error("row {row}, level {level}: code {code} is not in the codebook of {size} entries")]
    Code {
        /// Index of the row.
        row: usize,
        /// Index of the level.
        level: usize,
        /// The code.
        code: u32,
        /// Entries of that codebook.
        size: usize,
    },
    /// The codes are not N rows of C.
    #[error("{got} codes are not a whole number of rows of {levels}")]
    Codes {
        /// Number of codes.
        got: usize,
        /// C.
        levels: usize,
    },
}

/// How to fit a residual quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualConfig {
    /// Entries of the codebook of every level.
    pub codebook_sizes: Vec<usize>,
    /// Divide every residual (the input of the first level too) by its L2 norm before its level, as GRID does.
    pub normalize_residuals: bool,
    /// How the centres of a level move.
    pub schedule: Schedule,
    /// Which rows k-means++ draws from.
    pub buffer: Buffer,
    /// Seed; level l uses its own stream.
    pub seed: u64,
    /// Accept a level with fewer distinct residuals than entries; surplus entries repeat entry 0 and stay unused.
    pub allow_fewer_distinct: bool,
    /// Partial codes kept per row while the rows of the fit are encoded; 1 is greedy.
    pub beam: usize,
    /// No entry of a level gets more than `ceil(N / K * slack)` rows; `None` for no limit. Not with a beam.
    pub balance: Option<f64>,
}

/// A fitted residual quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualQuantizer {
    /// D.
    pub dim: usize,
    /// Whether residuals are normalised before every level.
    pub normalize_residuals: bool,
    /// [C] codebooks [K, D], row-major.
    pub codebooks_ckd: Vec<Vec<f32>>,
}

/// What one level did to the rows it was fitted on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LevelReport {
    /// Mean over the rows of the squared L2 norm of the residual after this level (the quantization error).
    pub mse: f64,
    /// Mean over the rows of the L2 norm of the residual after this level.
    pub residual_norm: f64,
    /// Mean over the rows of the squared L2 norm of this level's input (after normalisation, if any).
    pub input_mse: f64,
    /// Iterations or updates of k-means.
    pub iterations: usize,
    /// Whether k-means stopped by itself.
    pub converged: bool,
    /// Entries that at least one row uses.
    pub used: usize,
}

/// A quantizer, the codes of the rows it was fitted on, and what each level did.
#[derive(Debug, Clone, PartialEq)]
pub struct ResidualFit {
    /// The quantizer.
    pub quantizer: ResidualQuantizer,
    /// Codes [N, C], row-major.
    pub codes_nc: Vec<u32>,
    /// One report per level.
    pub levels: Vec<LevelReport>,
}

/// Fits a quantizer to `rows_ND` (row-major, width `dim`); `on_level(level, report)` is called after every level.
///
/// Without normalisation the mean squared residual never rises from level to level under Lloyd's schedule. With it,
/// every level starts again from unit rows: the law then holds within a level (`mse <= input_mse`), not across levels.
/// With a beam the reports that are returned are those of its codes: what a level leaves over may then be more than the
/// greedy code leaves, what the last one leaves never is.
/// Errors: no level, no row, NaN or infinite values (row and column), fewer distinct residuals than entries.
pub fn fit(
    rows_nd: &[f32],
    dim: usize,
    config: &ResidualConfig,
    on_level: impl FnMut(usize, &LevelReport),
) -> Result<ResidualFit, ResidualError> {
    fit_by(None, rows_nd, dim, config, on_level)
}

/// The same; k-means assigns rows by kernels if there are some, which gives the same codes.
///
/// # Errors
/// Those of [`fit`], and those of the device.
pub fn fit_by(
    kernels: Option<&Kernels>,
    rows_nd: &[f32],
    dim: usize,
    config: &ResidualConfig,
    mut on_level: impl FnMut(usize, &LevelReport),
) -> Result<ResidualFit, ResidualError> {
    let count = config.codebook_sizes.len();
    if count == 0 {
        return Err(ResidualError::NoLevels);
    }
    if config.beam > 1 && config.balance.is_some() {
        return Err(ResidualError::BeamAndBalance { beam: config.beam });
    }
    let mut residuals_nd = rows_nd.to_vec();
    let (mut codebooks_ckd, mut levels, mut codes_cn) = (Vec::new(), Vec::new(), Vec::new());
    for (level, clusters) in config.codebook_sizes.iter().enumerate() {
        let at_level = |source| ResidualError::Level {
            level,
            levels: count,
            source,
        };
        check_finite(&residuals_nd, dim).map_err(at_level)?;
        if config.normalize_residuals && dim > 0 {
            normalize_rows(&mut residuals_nd, dim);
        }
        let kmeans_config = KMeansConfig {
            clusters: *clusters,
            init: Init::PlusPlus(config.buffer),
            schedule: config.schedule,
            seed: config
                .seed
                .wrapping_add((level as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            allow_fewer_distinct: config.allow_fewer_distinct,
        };
        let mut fit = kmeans::fit_by(kernels, &residuals_nd, dim, None, &kmeans_config).map_err(at_level)?;
        if let Some(slack) = config.balance {
            let capacity = capacity(fit.labels_n.len(), *clusters, slack);
            fit = kmeans::rebalance(&residuals_nd, dim, fit, capacity, BALANCE_ITERATIONS).map_err(at_level)?;
        }
        let mut report = LevelReport {
            iterations: fit.iterations,
            converged: fit.converged,
            ..LevelReport::default()
        };
        report.apply(&mut residuals_nd, dim, &fit.labels_n, &fit.centres_kd);
        on_level(level, &report);
        levels.push(report);
        codebooks_ckd.push(fit.centres_kd);
        codes_cn.push(fit.labels_n);
    }
    let rows = rows_nd.len() / dim;
    let codes_nc: Vec<u32> = (0..rows)
        .flat_map(|row| codes_cn.iter().map(move |codes_n| codes_n[row]))
        .collect();
    let quantizer = ResidualQuantizer {
        dim,
        normalize_residuals: config.normalize_residuals,
        codebooks_ckd,
    };
    let mut fit = ResidualFit {
        quantizer,
        codes_nc,
        levels,
    };
    if config.beam > 1 {
        fit.search(rows_nd, config.beam, |_| ControlFlow::Continue(()));
    }
    Ok(fit)
}

impl ResidualFit {
    /// Encodes the rows of a greedy fit again, with a beam of `width`: what `beam` of the config does, for those who
    /// want to hear of it. `on_rows(done)` is called now and then, and a break leaves the other rows greedy.
    pub fn search(&mut self, rows_nd: &[f32], width: usize, mut on_rows: impl FnMut(usize) -> ControlFlow<()>) {
        beam::encode(&self.quantizer, rows_nd, &mut self.codes_nc, width, &mut on_rows);
        let reports = self.quantizer.reports(rows_nd, &self.codes_nc);
        for (report, of_beam) in self.levels.iter_mut().zip(reports) {
            *report = LevelReport {
                iterations: report.iterations,
                converged: report.converged,
                ..of_beam
            };
        }
    }
}

/// Rows that an entry may have: `ceil(N / K * slack)`, and never too few for all rows.
fn capacity(rows: usize, clusters: usize, slack: f64) -> usize {
    let share = rows as f64 / clusters.max(1) as f64;
    ((share * slack).ceil() as usize).max(rows.div_ceil(clusters.max(1)))
}

impl LevelReport {
    /// Subtracts the entries of a level from its input, and fills in what that did.
    fn apply(&mut self, residuals_nd: &mut [f32], dim: usize, labels_n: &[u32], codebook_kd: &[f32]) {
        self.input_mse = mean_norms(residuals_nd, dim).0;
        subtract(residuals_nd, dim, labels_n, codebook_kd);
        (self.mse, self.residual_norm) = mean_norms(residuals_nd, dim);
        let mut used = vec![false; codebook_kd.len() / dim];
        labels_n.iter().for_each(|k| used[*k as usize] = true);
        self.used = used.iter().filter(|used| **used).count();
    }
}

impl ResidualQuantizer {
    /// Codes [N, C] of `rows_ND`: the nearest entry of every level in turn. The rows of the fit get the codes of the fit.
    pub fn encode(&self, rows_nd: &[f32]) -> Result<Vec<u32>, ResidualError> {
        let levels = self.codebooks_ckd.len();
        let mut residuals_nd = rows_nd.to_vec();
        let mut codes_nc = vec![0u32; rows_nd.len() / self.dim.max(1) * levels];
        for (level, codebook_kd) in self.codebooks_ckd.iter().enumerate() {
            let at_level = |source| ResidualError::Level { level, levels, source };
            check_finite(&residuals_nd, self.dim).map_err(at_level)?;
            if self.normalize_residuals && self.dim > 0 {
                normalize_rows(&mut residuals_nd, self.dim);
            }
            let (labels_n, _) = kmeans::assign(&residuals_nd, self.dim, codebook_kd).map_err(at_level)?;
            subtract(&mut residuals_nd, self.dim, &labels_n, codebook_kd);
            codes_nc
                .iter_mut()
                .skip(level)
                .step_by(levels)
                .zip(labels_n)
                .for_each(|(to, code)| *to = code);
        }
        Ok(codes_nc)
    }

    /// What the levels do to `rows_ND` with the codes [N, C]: one report a level, of no iterations.
    ///
    /// Panics where a code is not in its codebook.
    pub fn reports(&self, rows_nd: &[f32], codes_nc: &[u32]) -> Vec<LevelReport> {
        let levels = self.codebooks_ckd.len();
        let mut residuals_nd = rows_nd.to_vec();
        let mut reports = Vec::with_capacity(levels);
        for (level, codebook_kd) in self.codebooks_ckd.iter().enumerate() {
            if self.normalize_residuals {
                normalize_rows(&mut residuals_nd, self.dim);
            }
            let labels_n: Vec<u32> = codes_nc.iter().skip(level).step_by(levels).copied().collect();
            let mut report = LevelReport::default();
            report.apply(&mut residuals_nd, self.dim, &labels_n, codebook_kd);
            reports.push(report);
        }
        reports
    }

    /// The codebooks as named tensors `codebook.0` .. [K, D].
    pub fn weights(&self) -> Weights {
        let tensor = |(level, data): (usize, &Vec<f32>)| Weight {
            name: format!("codebook.{level}"),
            shape: vec![data.len() / self.dim, self.dim],
            data: data.clone(),
        };
        Weights::from_tensors(self.codebooks_ckd.iter().enumerate().map(tensor).collect())
    }

    /// The sums [N, D] of the entries that `codes_NC` name: what the codes reconstruct. With normalised residuals this
    /// is a direction only up to the scales that normalisation dropped.
    pub fn decode(&self, codes_nc: &[u32]) -> Result<Vec<f32>, ResidualError> {
        let levels = self.codebooks_ckd.len();
        if levels == 0 || !codes_nc.len().is_multiple_of(levels) {
            return Err(ResidualError::Codes {
                got: codes_nc.len(),
                levels,
            });
        }
        let mut rows_nd = vec![0f32; codes_nc.len() / levels * self.dim];
        for (row, codes_c) in codes_nc.chunks_exact(levels).enumerate() {
            for (level, code) in codes_c.iter().enumerate() {
                let (codebook_kd, at) = (&self.codebooks_ckd[level], *code as usize * self.dim);
                let Some(entry_d) = codebook_kd.get(at..at + self.dim) else {
                    let size = codebook_kd.len() / self.dim;
                    return Err(ResidualError::Code {
                        row,
                        level,
                        code: *code,
                        size,
                    });
                };
                rows_nd[row * self.dim..(row + 1) * self.dim]
                    .iter_mut()
                    .zip(entry_d)
                    .for_each(|(x, e)| *x += e);
            }
        }
        Ok(rows_nd)
    }
}

/// Rows with their quantizer: how far entries are from what the codes before left over.
pub struct ResidualDistances<'a> {
    /// The quantizer.
    pub quantizer: &'a ResidualQuantizer,
    /// Rows [N, D].
    pub rows_nd: &'a [f32],
}

impl Distances for ResidualDistances<'_> {
    fn codebook_sizes(&self) -> Vec<usize> {
        let books = self.quantizer.codebooks_ckd.iter();
        books.map(|book| book.len() / self.quantizer.dim).collect()
    }

    fn distances(&self, row: usize, prefix: &[u32], to_k: &mut Vec<f64>) {
        let ResidualQuantizer { dim, codebooks_ckd, .. } = self.quantizer;
        let mut residual_d = self.rows_nd[row * dim..][..*dim].to_vec();
        let settle = |residual_d: &mut Vec<f32>| {
            if self.quantizer.normalize_residuals {
                normalize(residual_d);
            }
        };
        for (codebook_kd, code) in codebooks_ckd.iter().zip(prefix) {
            settle(&mut residual_d);
            subtract(&mut residual_d, *dim, &[*code], codebook_kd);
        }
        settle(&mut residual_d);
        let entries = codebooks_ckd[prefix.len()].chunks_exact(*dim);
        to_k.clear();
        to_k.extend(entries.map(|entry_d| lanes::squared_distance(&residual_d, entry_d)));
    }
}

fn check_finite(rows_nd: &[f32], dim: usize) -> Result<(), KMeansError> {
    match kmeans::first_not_finite(rows_nd, dim.max(1)) {
        Some((row, column, value)) => Err(KMeansError::NotFinite { row, column, value }),
        None => Ok(()),
    }
}

/// Divides every row by its L2 norm.
fn normalize_rows(rows_nd: &mut [f32], dim: usize) {
    rows_nd.par_chunks_exact_mut(dim).for_each(|row_d| {
        normalize(row_d);
    });
}

/// Divides a row by its L2 norm, or by 1e-12 where it is shorter; returns what it divided by.
fn normalize(row_d: &mut [f32]) -> f64 {
    let norm = lanes::squared_norm(row_d).sqrt().max(1e-12);
    row_d.iter_mut().for_each(|x| *x = (*x as f64 / norm) as f32);
    norm
}

fn subtract(rows_nd: &mut [f32], dim: usize, labels_n: &[u32], centres_kd: &[f32]) {
    rows_nd.par_chunks_exact_mut(dim).zip(labels_n).for_each(|(row_d, k)| {
        let centre_d = &centres_kd[*k as usize * dim..][..dim];
        row_d.iter_mut().zip(centre_d).for_each(|(x, c)| *x -= c);
    });
}

/// Means over the rows of the squared L2 norm and of the L2 norm.
fn mean_norms(rows_nd: &[f32], dim: usize) -> (f64, f64) {
    let squared_n: Vec<f64> = rows_nd.par_chunks_exact(dim).map(lanes::squared_norm).collect();
    let n = squared_n.len() as f64;
    (
        squared_n.iter().sum::<f64>() / n,
        squared_n.iter().map(|x| x.sqrt()).sum::<f64>() / n,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collisions, draws};

    pub(super) fn rows(n: usize, dim: usize) -> Vec<f32> {
        (0..n * dim)
            .map(|i| (draws::normal(9, (i / dim % 5) as u64, i as u64) + (i / dim % 5) as f64) as f32)
            .collect()
    }

    pub(super) fn config(sizes: &[usize], normalize_residuals: bool) -> ResidualConfig {
        ResidualConfig {
            codebook_sizes: sizes.to_vec(),
            normalize_residuals,
            schedule: Schedule::Lloyd {
                max_iterations: 25,
                tolerance: 0.0,
            },
            buffer: Buffer::All,
            seed: 42,
            allow_fewer_distinct: false,
            beam: 1,
            balance: None,
        }
    }

    #[test]
    fn the_residual_never_grows() {
        let x = rows(700, 13);
        let fit = fit(&x, 13, &config(&[16, 7, 33, 5], false), |_, _| ()).unwrap();
        let mut before = mean_norms(&x, 13).0;
        for level in &fit.levels {
            assert!(level.mse <= before * (1.0 + 1e-6) && (level.input_mse - before).abs() < 1e-9);
            before = level.mse;
        }
        let back = fit.quantizer.decode(&fit.codes_nc).unwrap();
        let left: Vec<f32> = x.iter().zip(&back).map(|(a, b)| a - b).collect();
        assert!((mean_norms(&left, 13).0 - before).abs() < 1e-5 * before.max(1.0));
        let fit = super::fit(&x, 13, &config(&[16, 7, 33, 5], true), |_, _| ()).unwrap();
        assert!(
            fit.levels
                .iter()
                .all(|l| (l.input_mse - 1.0).abs() < 1e-6 && l.mse <= l.input_mse)
        );
    }

    #[test]
    fn same_ids_for_any_number_of_threads_and_in_encode() {
        let x = rows(900, 33);
        for normalize in [false, true] {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("pool");
                pool.install(|| fit(&x, 33, &config(&[32, 16, 8], normalize), |_, _| ()).unwrap())
            };
            let one = run(1);
            assert_eq!(one, run(2));
            assert_eq!(one, run(7));
            assert_eq!(one.quantizer.encode(&x).unwrap(), one.codes_nc);
        }
    }

    #[test]
    fn kernels_give_the_same_fit() {
        let Some(kernels) = crate::kernels::simulator::kernels() else {
            return;
        };
        let x = rows(150, 13);
        let mini_batch = Schedule::MiniBatch {
            updates: 3,
            batch_rows: 70,
        };
        for schedule in [config(&[], true).schedule, mini_batch] {
            let config = ResidualConfig {
                schedule,
                ..config(&[16, 7], true)
            };
            let by_kernels = fit_by(Some(&kernels), &x, 13, &config, |_, _| ()).unwrap();
            assert_eq!(by_kernels, fit(&x, 13, &config, |_, _| ()).unwrap());
        }
    }

    #[test]
    fn a_balanced_level_is_never_over_full() {
        let x = rows(700, 13);
        for (slack, most) in [(1.0, 44), (1.5, 66), (0.1, 44)] {
            let balanced = ResidualConfig {
                balance: Some(slack),
                ..config(&[16, 16], true)
            };
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("pool");
                pool.install(|| fit(&x, 13, &balanced, |_, _| ()).unwrap())
            };
            let one = run(1);
            assert_eq!(one, run(3));
            for level in 0..2 {
                let mut counts = [0; 16];
                let codes = one.codes_nc.iter().skip(level).step_by(2);
                codes.for_each(|code| counts[*code as usize] += 1);
                assert!(counts.iter().all(|count| *count <= most), "{counts:?}");
            }
        }
        let free = fit(&x, 13, &config(&[16, 16], true), |_, _| ()).unwrap();
        let wide = ResidualConfig {
            balance: Some(1e9),
            ..config(&[16, 16], true)
        };
        let wide = fit(&x, 13, &wide, |_, _| ()).unwrap();
        assert!(wide.levels[0].mse <= free.levels[0].mse * (1.0 + 1e-6));
    }

    #[test]
    fn colliding_rows_move_to_free_codes() {
        let x = rows(200, 5);
        let found = fit(&x, 5, &config(&[8, 8, 8], true), |_, _| ()).unwrap();
        let mut codes_nc = found.codes_nc.clone();
        let before = collisions::collision_codes(&codes_nc, 3).unwrap();
        assert!(before.colliding > 5);
        let distances = ResidualDistances {
            quantizer: &found.quantizer,
            rows_nd: &x,
        };
        let moved = collisions::nearest_free(&mut codes_nc, &distances).unwrap();
        assert!(moved > 0 && moved < before.colliding);
        assert_eq!(collisions::collision_rate(&codes_nc, 3).unwrap(), 0.0);
        for (row, (old, new)) in found.codes_nc.chunks(3).zip(codes_nc.chunks(3)).enumerate() {
            if before.codes_n[row] < 2 {
                assert_eq!(old, new, "the first row of a collision, and a row without one, stay");
            }
        }
    }

    #[test]
    fn user_mistakes_are_named() {
        let say = |x: &[f32], sizes: &[usize]| fit(x, 2, &config(sizes, true), |_, _| ()).unwrap_err().to_string();
        assert_eq!(say(&[1.0, 0.0], &[]), "a residual quantizer needs at least one level");
        assert_eq!(
            say(&[1.0, 0.0, 0.0, f32::INFINITY], &[1]),
            "level 0 of 1: row 1, column 1 is inf; every value must be finite"
        );
        assert_eq!(
            say(&[1.0, 0.0, 0.0, 1.0], &[2, 2]),
            "level 1 of 2: 2 clusters need as many distinct rows, but only 1 of 2 rows are distinct"
        );
        assert!(say(&[], &[4]).contains("at least one row"));
        assert!(say(&[1.0, 0.0], &[0]).contains("at least 1"));
        let allow = ResidualConfig {
            allow_fewer_distinct: true,
            ..config(&[2, 2], true)
        };
        let fit = fit(&[1.0, 0.0, 0.0, 1.0], 2, &allow, |_, _| ()).unwrap();
        assert_eq!((fit.levels[1].used, fit.levels[1].mse), (1, 0.0));
        let wrong = fit.quantizer.decode(&[0, 2]).unwrap_err().to_string();
        assert_eq!(wrong, "row 0, level 1: code 2 is not in the codebook of 2 entries");
    }
}
