//! Randomized truncated SVD of a sparse matrix, deterministic for a seed and any number of threads.
//!
//! Source: Halko, Martinsson, Tropp 2011 (arXiv 0909.4061), algorithms 4.4 and 5.1: a Gaussian sketch, power iterations
//! with an orthonormal basis after every product, and a dense SVD of the projected matrix; all in f64.
//! Shape legend: N rows, V columns, R sketch width (`dim` + oversampling), D `dim`.

mod dense;

use rayon::prelude::*;

use crate::draws;
use crate::tfidf::SparseRows;
use dense::{dense_product, jacobi_svd, nearly_orthonormal, orthonormal, transposed, transposed_product};

/// What makes a truncated SVD impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SvdError {
    /// The width asked for is not in 1..=min(N, V).
    #[error("dim is {dim}, it must lie between 1 and {most}, the smaller side of the {rows} x {columns} matrix")]
    Dim {
        /// The width asked for.
        dim: usize,
        /// The greatest possible.
        most: usize,
        /// N.
        rows: usize,
        /// V.
        columns: usize,
    },
    /// The matrix has fewer independent directions than asked for.
    #[error("dim is {dim}, but the {rows} x {columns} matrix has rank {rank}; use dim {rank} or less")]
    Rank {
        /// The width asked for.
        dim: usize,
        /// The numerical rank found.
        rank: usize,
        /// N.
        rows: usize,
        /// V.
        columns: usize,
    },
    /// A value is NaN or infinite.
    #[error("row {row} has the value {value}; every value must be finite")]
    NotFinite {
        /// Index of the row.
        row: usize,
        /// The value.
        value: f64,
    },
}

/// The orthogonal matrix R [D, D] nearest to `m_DD` (row-major): U V^T where `m = U S V^T`. It solves the orthogonal
/// Procrustes problem: with `m = x^T y`, R minimises `|x R - y|`. Singular values near 0 leave R undetermined in their
/// directions; a tiny multiple of 1 that is added to m then decides.
pub(crate) fn orthogonal_factor(m_dd: &[f64], d: usize) -> Vec<f64> {
    let norm = m_dd.iter().map(|x| x * x).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    let mut m_dd: Vec<f64> = m_dd.iter().map(|x| x / norm).collect();
    (0..d).for_each(|i| m_dd[i * d + i] += 1e-9);
    let (x_dd, _, y_dd) = jacobi_svd(&m_dd, d);
    dense_product(&x_dd, &transposed(&y_dd, d), d, d, d)
}

/// How to compute a truncated SVD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SvdConfig {
    /// D, singular values to keep.
    pub dim: usize,
    /// Sketch columns beyond D (scikit-learn: 10).
    pub oversampling: usize,
    /// Power iterations (scikit-learn: 5).
    pub power_iterations: usize,
    /// Divide every embedding by its L2 norm (a zero row stays zero).
    pub normalize: bool,
    /// Seed of the sketch.
    pub seed: u64,
}

/// A truncated SVD as row embeddings.
#[derive(Debug, Clone, PartialEq)]
pub struct Svd {
    /// Row embeddings U S [N, D], row-major.
    pub embeddings_nd: Vec<f32>,
    /// Singular values [D], descending.
    pub singular_values_d: Vec<f64>,
    /// Right singular vectors [D, V], row-major; the entry of largest magnitude is positive (ties: the first).
    pub components_dv: Vec<f64>,
    /// Variance of every column of U S over the rows [D].
    pub explained_variance_d: Vec<f64>,
    /// `explained_variance_D` as a share of the summed variance of the columns of the matrix.
    pub explained_variance_ratio_d: Vec<f64>,
}

/// Truncated SVD of `matrix` [N, V]. Errors: `dim` of 0, beyond min(N, V) or beyond the rank; values not finite.
pub fn truncated_svd(matrix: &SparseRows, config: &SvdConfig) -> Result<Svd, SvdError> {
    let (rows, columns, dim) = (matrix.rows(), matrix.width, config.dim);
    let most = rows.min(columns);
    if dim == 0 || dim > most {
        return Err(SvdError::Dim {
            dim,
            most,
            rows,
            columns,
        });
    }
    if let Some(at) = matrix.values.iter().position(|x| !x.is_finite()) {
        let row = matrix.offsets.partition_point(|start| *start <= at) - 1;
        return Err(SvdError::NotFinite {
            row,
            value: matrix.values[at],
        });
    }
    let r = (dim + config.oversampling).min(most);
    let transpose = matrix.transposed();
    let sketch_vr: Vec<f64> = (0..(columns * r) as u64)
        .into_par_iter()
        .map(|i| draws::normal(config.seed, 11, i))
        .collect();
    let mut basis_nr = nearly_orthonormal(times(matrix, &sketch_vr, r), r);
    for _ in 0..config.power_iterations {
        let back_vr = nearly_orthonormal(times(&transpose, &basis_nr, r), r);
        basis_nr = nearly_orthonormal(times(matrix, &back_vr, r), r);
    }
    let basis_nr = orthonormal(basis_nr, r);
    // B = Q^T A [R, V]; B^T = P T with orthonormal P [V, R] and T [R, R]; T^T = X S Y^T, so A ~ (Q X) S (P Y)^T
    let projected_vr = times(&transpose, &basis_nr, r);
    let p_vr = orthonormal(projected_vr.clone(), r);
    let t_rr = transposed_product(&p_vr, &projected_vr, columns, r);
    let (x_rr, s_r, y_rr) = jacobi_svd(&transposed(&t_rr, r), r);
    let rank = s_r.iter().filter(|s| **s > 1e-9 * s_r[0]).count();
    if rank < dim {
        return Err(SvdError::Rank {
            dim,
            rank,
            rows,
            columns,
        });
    }
    let left_nd = dense_product(&basis_nr, &x_rr, rows, r, dim);
    let right_vd = dense_product(&p_vr, &y_rr, columns, r, dim);
    let mut components_dv = vec![0f64; dim * columns];
    let mut scale_d = s_r[..dim].to_vec();
    for (d, component_v) in components_dv.chunks_exact_mut(columns).enumerate() {
        component_v
            .iter_mut()
            .enumerate()
            .for_each(|(v, x)| *x = right_vd[v * dim + d]);
        let largest = component_v
            .iter()
            .fold(0f64, |a, b| if b.abs() > a.abs() { *b } else { a });
        if largest < 0.0 {
            component_v.iter_mut().for_each(|x| *x = -*x);
            scale_d[d] = -scale_d[d];
        }
    }
    let mut scores_nd = left_nd;
    scores_nd
        .chunks_exact_mut(dim)
        .for_each(|row| row.iter_mut().zip(&scale_d).for_each(|(x, s)| *x *= s));
    let explained_variance_d: Vec<f64> = (0..dim)
        .map(|d| variance(scores_nd.iter().skip(d).step_by(dim).copied(), rows))
        .collect();
    let total: f64 = (0..columns)
        .map(|v| variance(transpose.row(v).1.iter().copied(), rows))
        .sum();
    let explained_variance_ratio_d = explained_variance_d
        .iter()
        .map(|x| if total > 0.0 { x / total } else { 0.0 })
        .collect();
    if config.normalize {
        scores_nd.par_chunks_exact_mut(dim).for_each(|row| {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            row.iter_mut().for_each(|x| *x /= norm);
        });
    }
    Ok(Svd {
        embeddings_nd: scores_nd.iter().map(|x| *x as f32).collect(),
        singular_values_d: s_r[..dim].to_vec(),
        components_dv,
        explained_variance_d,
        explained_variance_ratio_d,
    })
}

/// Population variance of `n` values of which the zeros may be left out.
fn variance(values: impl Iterator<Item = f64>, n: usize) -> f64 {
    let (sum, squares) = values.fold((0.0, 0.0), |(s, q), x| (s + x, q + x * x));
    (squares / n as f64 - (sum / n as f64).powi(2)).max(0.0)
}

/// `matrix` [N, V] times `dense_VR`: [N, R].
fn times(matrix: &SparseRows, dense_vr: &[f64], r: usize) -> Vec<f64> {
    let mut out_nr = vec![0f64; matrix.rows() * r];
    out_nr.par_chunks_exact_mut(r).enumerate().for_each(|(row, out_r)| {
        let (columns, values) = matrix.row(row);
        for (column, value) in columns.iter().zip(values) {
            let dense_r = &dense_vr[*column as usize * r..][..r];
            out_r.iter_mut().zip(dense_r).for_each(|(x, y)| *x += value * y);
        }
    });
    out_nr
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::dot_f64 as dot;
    use crate::tfidf::{Tfidf, TfidfConfig};

    fn config(dim: usize) -> SvdConfig {
        SvdConfig {
            dim,
            oversampling: 10,
            power_iterations: 5,
            normalize: false,
            seed: 1,
        }
    }

    fn golden() -> (SparseRows, serde_json::Value) {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/tfidf_svd.json")).expect("golden file");
        let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).expect("texts");
        (
            Tfidf::fit(&texts, &TfidfConfig::default()).unwrap().1,
            golden["svd"].clone(),
        )
    }

    #[test]
    fn agrees_with_scikit_learn() {
        let (matrix, want) = golden();
        let dim = want["dim"].as_u64().expect("dim") as usize;
        let svd = truncated_svd(&matrix, &config(dim)).unwrap();
        let close = |got: &[f64], key: &str, tolerance: f64| {
            for (got, want) in got.iter().zip(want[key].as_array().expect(key)) {
                let want = want.as_f64().expect("a number");
                assert!(
                    (got - want).abs() < tolerance * want.abs().max(0.1),
                    "{key}: {got} {want}"
                );
            }
        };
        close(&svd.singular_values_d, "singular_values", 1e-6);
        close(&svd.explained_variance_d, "explained_variance", 1e-6);
        close(&svd.explained_variance_ratio_d, "explained_variance_ratio", 1e-6);
        let embeddings: Vec<f64> = svd.embeddings_nd.iter().map(|x| *x as f64).collect();
        close(&embeddings, "embeddings", 1e-5);
    }

    #[test]
    fn same_bits_for_any_number_of_threads_and_orthonormal_components() {
        let (n, v) = (150, 90);
        let keep = |i: u64| draws::uniform(5, 0, i) < 0.2;
        let (mut offsets, mut columns, mut values) = (vec![0], Vec::new(), Vec::new());
        for row in 0..n {
            for column in (0..v).filter(|c| keep((row * v + c) as u64)) {
                columns.push(column as u32);
                values.push(draws::normal(5, 1, (row * v + column) as u64));
            }
            offsets.push(columns.len());
        }
        let matrix = SparseRows {
            width: v,
            offsets,
            columns,
            values,
        };
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .expect("pool");
            pool.install(|| truncated_svd(&matrix, &config(40)).unwrap())
        };
        let one = run(1);
        assert_eq!(one, run(2));
        assert_eq!(one, run(5));
        for (i, a) in one.components_dv.chunks_exact(v).enumerate() {
            for (j, b) in one.components_dv.chunks_exact(v).enumerate() {
                assert!((dot(a, b) - if i == j { 1.0 } else { 0.0 }).abs() < 1e-10);
            }
        }
        let unit = truncated_svd(
            &matrix,
            &SvdConfig {
                normalize: true,
                ..config(40)
            },
        )
        .unwrap();
        assert!(
            unit.embeddings_nd
                .chunks_exact(40)
                .all(|r| (r.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5)
        );
    }

    #[test]
    fn more_dimensions_than_there_are_is_an_error() {
        let matrix = SparseRows {
            width: 4,
            offsets: vec![0, 2, 4, 6],
            columns: vec![0, 1, 0, 1, 2, 3],
            values: vec![1.0, 2.0, 2.0, 4.0, 1.0, 1.0],
        };
        let say = |dim| truncated_svd(&matrix, &config(dim)).unwrap_err().to_string();
        assert_eq!(
            say(4),
            "dim is 4, it must lie between 1 and 3, the smaller side of the 3 x 4 matrix"
        );
        assert_eq!(say(3), "dim is 3, but the 3 x 4 matrix has rank 2; use dim 2 or less");
        assert!((truncated_svd(&matrix, &config(2)).unwrap().singular_values_d[0] - 5.0).abs() < 1e-12);
    }
}
