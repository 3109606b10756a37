//! Product quantization: k-means in each of several sub-spaces, after a rotation that is learned or none.
//!
//! Source: Jégou, Douze, Schmid 2011; OPQ: Ge, He, Ke, Sun 2013, the non-parametric solution: k-means steps in the
//! rotated sub-spaces and the orthogonal Procrustes problem by turns, starting from plain PQ. Neither step raises the
//! error of the rows it is fitted on. Shape legend: N rows, D width, C sub-spaces (levels), K entries, S width of a
//! sub-space.

use rayon::prelude::*;

use crate::collisions::Distances;
use crate::kmeans::{self, Buffer, Init, KMeansConfig, KMeansError, KMeansFit, Schedule};
use crate::lanes;
use crate::product::{View, product};
use crate::residual::LevelReport;
use crate::svd;
use crate::weights::{Weight, Weights};

/// Iterations of k-means between two rotations.
const INNER_ITERATIONS: usize = 2;
/// Rows per task.
const PANEL: usize = 512;

/// What makes a product quantizer impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PqError {
    /// There are more sub-spaces than dimensions, or none.
    #[error("{levels} sub-spaces cannot be made of {dim} dimensions")]
    SubSpaces {
        /// C.
        levels: usize,
        /// D.
        dim: usize,
    },
    /// k-means failed in a sub-space.
    #[error("sub-space {level} of {levels}: {source}")]
    Level {
        /// Index of the sub-space, from 0.
        level: usize,
        /// C.
        levels: usize,
        /// What k-means said.
        source: KMeansError,
    },
}

/// How to fit a product quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct PqConfig {
    /// Entries of the codebook of every sub-space. The first D mod C sub-spaces are one dimension wider.
    pub codebook_sizes: Vec<usize>,
    /// Rotations to try; 0 leaves the axes (PQ).
    pub rotations: usize,
    /// Most iterations of k-means before the first rotation.
    pub max_iterations: usize,
    /// k-means stops when centres move less than this share of the variance.
    pub tolerance: f64,
    /// Which rows k-means++ draws from.
    pub buffer: Buffer,
    /// Seed; sub-space l uses its own stream.
    pub seed: u64,
    /// Accept fewer distinct rows than entries; surplus entries stay unused.
    pub allow_fewer_distinct: bool,
}

/// A fitted product quantizer.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductQuantizer {
    /// D.
    pub dim: usize,
    /// Rotation [D, D], row-major: a row x is quantized as x R. `None` for PQ.
    pub rotation_dd: Option<Vec<f32>>,
    /// [C] codebooks [K, S].
    pub codebooks_cks: Vec<Vec<f32>>,
}

/// A quantizer with the codes of the rows it was fitted on.
#[derive(Debug, Clone, PartialEq)]
pub struct PqFit {
    /// The quantizer.
    pub quantizer: ProductQuantizer,
    /// Codes [N, C], row-major.
    pub codes_nc: Vec<u32>,
    /// The rows [N, D] in the rotated space.
    pub rotated_nd: Vec<f32>,
    /// One report per level; what a level leaves over counts the sub-spaces after it in full.
    pub levels: Vec<LevelReport>,
    /// Mean squared error of the rows after plain PQ and after every rotation.
    pub errors: Vec<f64>,
}

/// Fits a product quantizer to `rows_ND`; `on_error(done, error)` is called after plain PQ and after every rotation.
///
/// # Errors
/// [`PqError`].
pub fn fit(
    rows_nd: &[f32],
    dim: usize,
    config: &PqConfig,
    mut on_error: impl FnMut(usize, f64),
) -> Result<PqFit, PqError> {
    let levels = config.codebook_sizes.len();
    if levels == 0 || levels > dim {
        return Err(PqError::SubSpaces { levels, dim });
    }
    if let Some((row, column, value)) = kmeans::first_not_finite(rows_nd, dim) {
        let source = KMeansError::NotFinite { row, column, value };
        let level = 0;
        return Err(PqError::Level { level, levels, source });
    }
    let mut rotated_nd = rows_nd.to_vec();
    let mut rotation: Option<Vec<f64>> = None;
    let start = |level: usize| Init::PlusPlus(config.buffer).for_level(level, config.max_iterations);
    let mut fits = cluster(&rotated_nd, dim, config, start)?;
    let mut errors = vec![error(&fits, rows_nd.len() / dim)];
    on_error(0, errors[0]);
    for round in 1..=config.rotations {
        let outputs_nd = outputs(&fits, dim);
        let turn_dd = svd::orthogonal_factor(&cross_product(&rotated_nd, &outputs_nd, dim), dim);
        let whole_dd = match &rotation {
            None => turn_dd,
            Some(before_dd) => square_product(before_dd, &turn_dd, dim),
        };
        let narrow: Vec<f32> = whole_dd.iter().map(|x| *x as f32).collect();
        rotated_nd = rotate(rows_nd, &narrow, dim, false);
        rotation = Some(whole_dd);
        let again = |level: usize| {
            let fit: &KMeansFit = &fits[level];
            Init::Given(fit.centres_kd.clone()).for_level(level, INNER_ITERATIONS)
        };
        fits = cluster(&rotated_nd, dim, config, again)?;
        errors.push(error(&fits, rows_nd.len() / dim));
        on_error(round, errors[round]);
    }
    let rows = rows_nd.len() / dim;
    let codes_nc = (0..rows)
        .flat_map(|row| fits.iter().map(move |fit| fit.labels_n[row]))
        .collect();
    let levels = reports(&fits, &rotated_nd, dim);
    Ok(PqFit {
        quantizer: ProductQuantizer {
            dim,
            rotation_dd: rotation.map(|wide| wide.into_iter().map(|x| x as f32).collect()),
            codebooks_cks: fits.into_iter().map(|fit| fit.centres_kd).collect(),
        },
        codes_nc,
        rotated_nd,
        levels,
        errors,
    })
}

impl Init {
    fn for_level(self, level: usize, max_iterations: usize) -> (Self, u64, usize) {
        (self, (level as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15), max_iterations)
    }
}

/// k-means of every sub-space from its start: (first centres, offset of the seed, most iterations).
fn cluster(
    rows_nd: &[f32],
    dim: usize,
    config: &PqConfig,
    start: impl Fn(usize) -> (Init, u64, usize),
) -> Result<Vec<KMeansFit>, PqError> {
    let levels = config.codebook_sizes.len();
    let of = |(level, range): (usize, std::ops::Range<usize>)| {
        let (init, offset, max_iterations) = start(level);
        let schedule = Schedule::Lloyd {
            max_iterations,
            tolerance: config.tolerance,
        };
        let kmeans_config = KMeansConfig {
            clusters: config.codebook_sizes[level],
            init,
            schedule,
            seed: config.seed.wrapping_add(offset),
            allow_fewer_distinct: config.allow_fewer_distinct,
        };
        let width = range.len();
        kmeans::fit(&columns(rows_nd, dim, range), width, None, &kmeans_config).map_err(|source| PqError::Level {
            level,
            levels,
            source,
        })
    };
    ranges(dim, levels).into_iter().enumerate().map(of).collect()
}

/// The dimensions of every sub-space.
fn ranges(dim: usize, levels: usize) -> Vec<std::ops::Range<usize>> {
    let (width, wider) = (dim / levels, dim % levels);
    let start = |level: usize| level * width + level.min(wider);
    (0..levels).map(|level| start(level)..start(level + 1)).collect()
}

fn columns(rows_nd: &[f32], dim: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    let rows = rows_nd.chunks_exact(dim);
    rows.flat_map(|row_d| &row_d[range.clone()]).copied().collect()
}

fn error(fits: &[KMeansFit], rows: usize) -> f64 {
    fits.iter().map(|fit| fit.inertia).sum::<f64>() / rows as f64
}

/// The entries [N, D] that stand for the rows.
fn outputs(fits: &[KMeansFit], dim: usize) -> Vec<f32> {
    let rows = fits[0].labels_n.len();
    let mut outputs_nd = vec![0f32; rows * dim];
    for (fit, range) in fits.iter().zip(ranges(dim, fits.len())) {
        let width = range.len();
        for (to, code) in outputs_nd.chunks_exact_mut(dim).zip(&fit.labels_n) {
            to[range.clone()].copy_from_slice(&fit.centres_kd[*code as usize * width..][..width]);
        }
    }
    outputs_nd
}

fn reports(fits: &[KMeansFit], rotated_nd: &[f32], dim: usize) -> Vec<LevelReport> {
    let outputs_nd = outputs(fits, dim);
    let mut left_nd = rotated_nd.to_vec();
    let norms = |rows_nd: &[f32]| {
        let squares: Vec<f64> = rows_nd.par_chunks_exact(dim).map(lanes::squared_norm).collect();
        let n = squares.len() as f64;
        (
            squares.iter().sum::<f64>() / n,
            squares.iter().map(|x| x.sqrt()).sum::<f64>() / n,
        )
    };
    let mut reports = Vec::with_capacity(fits.len());
    for (fit, range) in fits.iter().zip(ranges(dim, fits.len())) {
        let input_mse = norms(&left_nd).0;
        for (left_d, output_d) in left_nd.chunks_exact_mut(dim).zip(outputs_nd.chunks_exact(dim)) {
            let pairs = left_d[range.clone()].iter_mut().zip(&output_d[range.clone()]);
            pairs.for_each(|(x, y)| *x -= y);
        }
        let (mse, residual_norm) = norms(&left_nd);
        reports.push(LevelReport {
            mse,
            residual_norm,
            input_mse,
            iterations: fit.iterations,
            converged: fit.converged,
            used: fit.used,
        });
    }
    reports
}

/// `x_ND^T y_ND` [D, D] in f64; panels of rows one after the other.
fn cross_product(x_nd: &[f32], y_nd: &[f32], dim: usize) -> Vec<f64> {
    let mut sum_dd = vec![0f64; dim * dim];
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    for (x_nd, y_nd) in x_nd.chunks(8 * PANEL * dim).zip(y_nd.chunks(8 * PANEL * dim)) {
        let (x_nd, y_nd, rows) = (wide(x_nd), wide(y_nd), x_nd.len() / dim);
        sum_dd.par_chunks_mut(32 * dim).enumerate().for_each(|(block, out)| {
            let left = View::transposed(&x_nd[block * 32..], dim);
            let shape = (out.len() / dim, rows, dim);
            product(shape, 1.0, left, View::rows(&y_nd, dim), true, out, dim);
        });
    }
    sum_dd
}

fn square_product(a_dd: &[f64], b_dd: &[f64], dim: usize) -> Vec<f64> {
    let mut out_dd = vec![0f64; dim * dim];
    let (a, b) = (View::rows(a_dd, dim), View::rows(b_dd, dim));
    product((dim, dim, dim), 1.0, a, b, false, &mut out_dd, dim);
    out_dd
}

/// `x_ND R`, or `x_ND R^T`.
fn rotate(rows_nd: &[f32], rotation_dd: &[f32], dim: usize, back: bool) -> Vec<f32> {
    let mut out_nd = vec![0f32; rows_nd.len()];
    let panels = out_nd.par_chunks_mut(PANEL * dim).zip(rows_nd.par_chunks(PANEL * dim));
    panels.for_each(|(out, rows)| {
        let right = match back {
            false => View::rows(rotation_dd, dim),
            true => View::transposed(rotation_dd, dim),
        };
        let shape = (rows.len() / dim, dim, dim);
        product(shape, 1.0, View::rows(rows, dim), right, false, out, dim);
    });
    out_nd
}

impl ProductQuantizer {
    /// The rows [N, D] in the space that is quantized.
    pub fn rotated(&self, rows_nd: &[f32]) -> Vec<f32> {
        match &self.rotation_dd {
            Some(rotation_dd) => rotate(rows_nd, rotation_dd, self.dim, false),
            None => rows_nd.to_vec(),
        }
    }

    /// Codes [N, C] of `rows_ND`: the nearest entry of every sub-space.
    ///
    /// # Errors
    /// [`PqError::Level`] for no row, or values that are not finite.
    pub fn encode(&self, rows_nd: &[f32]) -> Result<Vec<u32>, PqError> {
        let levels = self.codebooks_cks.len();
        let rotated_nd = self.rotated(rows_nd);
        let mut codes_nc = vec![0u32; rows_nd.len() / self.dim * levels];
        for (level, range) in ranges(self.dim, levels).into_iter().enumerate() {
            let width = range.len();
            let rows_ns = columns(&rotated_nd, self.dim, range);
            let (labels_n, _) = kmeans::assign(&rows_ns, width, &self.codebooks_cks[level])
                .map_err(|source| PqError::Level { level, levels, source })?;
            let to = codes_nc.iter_mut().skip(level).step_by(levels);
            to.zip(labels_n).for_each(|(to, code)| *to = code);
        }
        Ok(codes_nc)
    }

    /// The rows [N, D] that codes stand for, turned back. Panics where a code is not in its codebook.
    pub fn decode(&self, codes_nc: &[u32]) -> Vec<f32> {
        let levels = self.codebooks_cks.len();
        let mut rows_nd = vec![0f32; codes_nc.len() / levels * self.dim];
        let ranges = ranges(self.dim, levels);
        for (row_d, codes_c) in rows_nd.chunks_exact_mut(self.dim).zip(codes_nc.chunks_exact(levels)) {
            for ((code, range), codebook) in codes_c.iter().zip(&ranges).zip(&self.codebooks_cks) {
                let width = range.len();
                row_d[range.clone()].copy_from_slice(&codebook[*code as usize * width..][..width]);
            }
        }
        match &self.rotation_dd {
            Some(rotation_dd) => rotate(&rows_nd, rotation_dd, self.dim, true),
            None => rows_nd,
        }
    }

    /// The codebooks as named tensors `codebook.0` .. [K, S], and `rotation` [D, D] where there is one.
    pub fn weights(&self) -> Weights {
        let ranges = ranges(self.dim, self.codebooks_cks.len());
        let books = self.codebooks_cks.iter().zip(ranges).enumerate();
        let mut tensors: Vec<Weight> = books
            .map(|(level, (data, range))| Weight {
                name: format!("codebook.{level}"),
                shape: vec![data.len() / range.len(), range.len()],
                data: data.clone(),
            })
            .collect();
        tensors.extend(self.rotation_dd.as_ref().map(|rotation_dd| Weight {
            name: "rotation".into(),
            shape: vec![self.dim, self.dim],
            data: rotation_dd.clone(),
        }));
        Weights::from_tensors(tensors)
    }
}

/// Rotated rows with their quantizer: how far the entries of a sub-space are, whatever the codes before.
pub struct PqDistances<'a> {
    /// The quantizer.
    pub quantizer: &'a ProductQuantizer,
    /// Rows [N, D], rotated.
    pub rotated_nd: &'a [f32],
}

impl Distances for PqDistances<'_> {
    fn codebook_sizes(&self) -> Vec<usize> {
        let books = &self.quantizer.codebooks_cks;
        let ranges = ranges(self.quantizer.dim, books.len());
        books
            .iter()
            .zip(ranges)
            .map(|(book, range)| book.len() / range.len())
            .collect()
    }

    fn distances(&self, row: usize, prefix: &[u32], to_k: &mut Vec<f64>) {
        let ProductQuantizer { dim, codebooks_cks, .. } = self.quantizer;
        let range = ranges(*dim, codebooks_cks.len())[prefix.len()].clone();
        let row_s = &self.rotated_nd[row * dim..][range.clone()];
        let entries = codebooks_cks[prefix.len()].chunks_exact(range.len());
        to_k.clear();
        to_k.extend(entries.map(|entry| lanes::squared_distance(row_s, entry)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{collisions, draws};

    /// Rows whose dimensions are mixtures of a few sources, so that turning the axes pays.
    fn rows(n: usize, dim: usize) -> Vec<f32> {
        let source = move |row: usize, at: usize| draws::normal(3, at as u64, row as u64) / (1 + at) as f64;
        let mixed =
            |i: usize| (0..dim).map(move |at| draws::normal(4, (i % dim) as u64, at as u64) * source(i / dim, at));
        (0..n * dim).map(|i| mixed(i).sum::<f64>() as f32).collect()
    }

    fn config(sizes: &[usize], rotations: usize) -> PqConfig {
        PqConfig {
            codebook_sizes: sizes.to_vec(),
            rotations,
            max_iterations: 30,
            tolerance: 0.0,
            buffer: Buffer::All,
            seed: 42,
            allow_fewer_distinct: false,
        }
    }

    #[test]
    fn no_rotation_raises_the_error() {
        let x = rows(600, 10);
        let mut seen = Vec::new();
        let opq = fit(&x, 10, &config(&[16, 16, 8], 12), |_, error| seen.push(error)).unwrap();
        let pq = fit(&x, 10, &config(&[16, 16, 8], 0), |_, _| ()).unwrap();
        assert_eq!((opq.errors[0], seen.len()), (pq.errors[0], 13));
        assert!(
            seen.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-5)),
            "{seen:?}"
        );
        assert!(seen[12] < 0.8 * seen[0], "{seen:?}");
        let rotation = opq.quantizer.rotation_dd.clone().unwrap();
        for i in 0..10 {
            for j in 0..10 {
                let dot: f32 = (0..10).map(|k| rotation[i * 10 + k] * rotation[j * 10 + k]).sum();
                assert!((dot - if i == j { 1.0 } else { 0.0 }).abs() < 1e-5);
            }
        }
        for found in [pq, opq] {
            let back = found.quantizer.decode(&found.codes_nc);
            let error = lanes::squared_distance(&x, &back) / 600.0;
            let last = found.errors.last().unwrap();
            assert!((error - last).abs() < 1e-4 * last, "{error} {last}");
            assert!((found.levels[2].mse - last).abs() < 1e-4 * last);
            assert_eq!(found.quantizer.encode(&x).unwrap(), found.codes_nc);
            assert_eq!(found.quantizer.codebooks_cks[0].len(), 16 * 4);
        }
    }

    #[test]
    fn same_bits_for_any_number_of_threads() {
        let x = rows(900, 6);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("pool");
            pool.install(|| fit(&x, 6, &config(&[32, 16], 3), |_, _| ()).unwrap())
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
    }

    #[test]
    fn dimensions_without_variance_do_no_harm() {
        let mut x = rows(200, 6);
        x.chunks_exact_mut(6).for_each(|row| row[2..5].fill(0.0));
        let flat = PqConfig {
            allow_fewer_distinct: true,
            ..config(&[8, 8, 8], 5)
        };
        let found = fit(&x, 6, &flat, |_, _| ()).unwrap();
        assert!(found.errors.windows(2).all(|pair| pair[1] <= pair[0] * (1.0 + 1e-5)));
        let lengths = |rows: &[f32]| rows.chunks_exact(6).map(lanes::squared_norm).sum::<f64>();
        assert!((lengths(&found.rotated_nd) - lengths(&x)).abs() < 1e-4 * lengths(&x));
    }

    #[test]
    fn colliding_rows_move_to_free_codes() {
        let x = rows(60, 4);
        let found = fit(&x, 4, &config(&[8, 8], 2), |_, _| ()).unwrap();
        let mut codes_nc = found.codes_nc.clone();
        let distances = PqDistances {
            quantizer: &found.quantizer,
            rotated_nd: &found.rotated_nd,
        };
        assert!(collisions::nearest_free(&mut codes_nc, &distances).unwrap() > 0);
        assert_eq!(collisions::collision_rate(&codes_nc, 2).unwrap(), 0.0);
    }

    #[test]
    fn user_mistakes_are_named() {
        let say = |x: &[f32], sizes: &[usize]| fit(x, 2, &config(sizes, 1), |_, _| ()).unwrap_err().to_string();
        assert_eq!(say(&[1.0, 0.0], &[]), "0 sub-spaces cannot be made of 2 dimensions");
        assert_eq!(
            say(&[1.0, 0.0], &[1, 1, 1]),
            "3 sub-spaces cannot be made of 2 dimensions"
        );
        assert_eq!(
            say(&[1.0, 0.0, 0.0, 0.0], &[2, 2]),
            "sub-space 1 of 2: 2 clusters need as many distinct rows, but only 1 of 2 rows are distinct"
        );
        assert!(say(&[1.0, f32::NAN], &[1]).contains("row 0, column 1 is NaN"));
    }
}
