//! Dense f64 pieces of the truncated SVD: products, an orthonormal basis, and Jacobi's SVD of a small matrix.

use rayon::prelude::*;

use crate::lanes::{self, dot_f64 as dot, rotate_f64 as rotate};
use crate::product::{View, product};

/// Columns orthonormalised together.
const BLOCK: usize = 32;
/// Rows per task in dense products.
const PANEL: usize = 1024;
/// A column whose norm falls below this share while it is made orthogonal lies in the span of those before it.
const DEPENDENT: f64 = 1e-10;

/// `a_NR` times `b_RR[:, ..d]`: [N, D].
pub(super) fn dense_product(a_nr: &[f64], b_rr: &[f64], n: usize, r: usize, d: usize) -> Vec<f64> {
    let mut out_nd = vec![0f64; n * d];
    out_nd
        .par_chunks_mut(PANEL * d)
        .zip(a_nr.par_chunks(PANEL * r))
        .for_each(|(out_nd, a_nr)| {
            product(
                (out_nd.len() / d, r, d),
                1.0,
                View::rows(a_nr, r),
                View::rows(b_rr, r),
                false,
                out_nd,
                d,
            );
        });
    out_nd
}

/// `a_NR^T b_NR`: [R, R].
pub(super) fn transposed_product(a_nr: &[f64], b_nr: &[f64], n: usize, r: usize) -> Vec<f64> {
    let mut out_rr = vec![0f64; r * r];
    out_rr
        .par_chunks_mut(BLOCK * r)
        .enumerate()
        .for_each(|(block, out_br)| {
            let a = View::transposed(&a_nr[block * BLOCK..], r);
            product((out_br.len() / r, n, r), 1.0, a, View::rows(b_nr, r), false, out_br, r);
        });
    out_rr
}

pub(super) fn transposed(a_rr: &[f64], r: usize) -> Vec<f64> {
    (0..r * r).map(|i| a_rr[i % r * r + i / r]).collect()
}

/// An orthonormal basis [N, R] of the columns of `a_NR`. A column in the span of those before it becomes zero.
pub(super) fn orthonormal(a_nr: Vec<f64>, r: usize) -> Vec<f64> {
    let again = |a_nr: Vec<f64>| cholesky_basis(&a_nr, r).ok_or(a_nr);
    match cholesky_basis(&a_nr, r).ok_or(a_nr).and_then(again) {
        Ok(basis_nr) => basis_nr,
        Err(a_nr) => gram_schmidt(a_nr, r),
    }
}

/// A basis [N, R] of the columns of `a_NR` that is orthonormal but for rounding magnified by their condition: enough
/// between power iterations, at half the cost.
pub(super) fn nearly_orthonormal(a_nr: Vec<f64>, r: usize) -> Vec<f64> {
    cholesky_basis(&a_nr, r).unwrap_or_else(|| gram_schmidt(a_nr, r))
}

/// `a_NR L^-T` where `a^T a = L L^T`: orthonormal up to the squared condition of `a` (so taken twice). `None` where a
/// column is nearly in the span of those before it.
fn cholesky_basis(a_nr: &[f64], r: usize) -> Option<Vec<f64>> {
    let n = a_nr.len() / r;
    let gram_rr = transposed_product(a_nr, a_nr, n, r);
    let mut lower_rr = vec![0f64; r * r];
    for i in 0..r {
        let (done, rest) = lower_rr.split_at_mut(i * r);
        let own = &mut rest[..r];
        for j in 0..i {
            let row_j = &done[j * r..(j + 1) * r];
            own[j] = (gram_rr[i * r + j] - dot(&own[..j], &row_j[..j])) / row_j[j];
        }
        let pivot = gram_rr[i * r + i] - dot(&own[..i], &own[..i]);
        let independent = pivot > 1e-8 * gram_rr[i * r + i] && pivot.is_finite();
        own[i] = independent.then(|| pivot.sqrt())?;
    }
    // row j of `inverse` is column j of L^-1, that is row j of L^-T
    let mut inverse_rr = vec![0f64; r * r];
    inverse_rr
        .par_chunks_exact_mut(r)
        .enumerate()
        .for_each(|(j, column_r)| {
            column_r[j] = 1.0 / lower_rr[j * r + j];
            for i in j + 1..r {
                column_r[i] = -dot(&lower_rr[i * r + j..i * r + i], &column_r[j..i]) / lower_rr[i * r + i];
            }
        });
    Some(dense_product(a_nr, &inverse_rr, n, r, r))
}

/// The same by block Gram-Schmidt, every step twice: slower, and right for dependent columns too.
fn gram_schmidt(mut a_nr: Vec<f64>, r: usize) -> Vec<f64> {
    let n = a_nr.len() / r;
    for start in (0..r).step_by(BLOCK) {
        let width = BLOCK.min(r - start);
        let before_b: Vec<f64> = (0..width)
            .map(|c| column(&a_nr, r, start + c).map(|x| x * x).sum::<f64>().sqrt())
            .collect();
        for _ in 0..2 {
            project_out(&mut a_nr, n, r, start, width);
            let mut block_bn: Vec<Vec<f64>> = (0..width).map(|c| column(&a_nr, r, start + c).collect()).collect();
            for (c, before) in before_b.iter().enumerate() {
                let (done, rest) = block_bn.split_at_mut(c);
                let own_n = &mut rest[0];
                for other_n in done.iter() {
                    let share = dot(own_n, other_n);
                    lanes::add_scaled_f64(own_n, other_n, -share);
                }
                let norm = dot(own_n, own_n).sqrt();
                let factor = if norm > DEPENDENT * before.min(1.0) && norm > 0.0 {
                    1.0 / norm
                } else {
                    0.0
                };
                own_n.iter_mut().for_each(|x| *x *= factor);
            }
            for (c, column_n) in block_bn.iter().enumerate() {
                column_n
                    .iter()
                    .enumerate()
                    .for_each(|(row, x)| a_nr[row * r + start + c] = *x);
            }
        }
    }
    a_nr
}

/// Subtracts from the `width` columns from `start` on what lies in the span of the columns before (orthonormal).
fn project_out(a_nr: &mut [f64], n: usize, r: usize, start: usize, width: usize) {
    if start == 0 {
        return;
    }
    let mut shares_sb = vec![0f64; start * width];
    shares_sb
        .par_chunks_mut(BLOCK * width)
        .enumerate()
        .for_each(|(block, out)| {
            let (done, own) = (
                View::transposed(&a_nr[block * BLOCK..], r),
                View::rows(&a_nr[start..], r),
            );
            product((out.len() / width, n, width), 1.0, done, own, false, out, width);
        });
    a_nr.par_chunks_mut(PANEL * r).for_each(|panel_nr| {
        let done_nr = panel_nr.to_vec();
        let shape = (panel_nr.len() / r, start, width);
        let shares = View::rows(&shares_sb, width);
        product(
            shape,
            -1.0,
            View::rows(&done_nr, r),
            shares,
            true,
            &mut panel_nr[start..],
            r,
        );
    });
}

fn column(a_nr: &[f64], r: usize, column: usize) -> impl Iterator<Item = f64> + '_ {
    a_nr.iter().skip(column).step_by(r).copied()
}

/// `a = X S Y^T` of a square matrix by one-sided Jacobi rotations; S descending, X and Y [R, R] with vectors as columns.
pub(super) fn jacobi_svd(a_rr: &[f64], r: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    // rows of `work` are the columns of a; rows of `turned` those of Y
    let mut work = transposed(a_rr, r);
    let mut turned = vec![0f64; r * r];
    (0..r).for_each(|i| turned[i * r + i] = 1.0);
    let scale = dot(&work, &work);
    for _sweep in 0..60 {
        let mut rotated = false;
        for p in 0..r {
            for q in p + 1..r {
                let (work_p, work_q) = pair(&mut work, p, q, r);
                let (alpha, beta, gamma) = (dot(work_p, work_p), dot(work_q, work_q), dot(work_p, work_q));
                if gamma.abs() <= 1e-14 * (alpha * beta).sqrt() || gamma.abs() <= 1e-26 * scale {
                    continue;
                }
                rotated = true;
                let zeta = (beta - alpha) / (2.0 * gamma);
                let t = zeta.signum() / (zeta.abs() + (1.0 + zeta * zeta).sqrt());
                let c = 1.0 / (1.0 + t * t).sqrt();
                let s = c * t;
                rotate(work_p, work_q, c, s);
                let (turned_p, turned_q) = pair(&mut turned, p, q, r);
                rotate(turned_p, turned_q, c, s);
            }
        }
        if !rotated {
            break;
        }
    }
    let norms: Vec<f64> = work.chunks_exact(r).map(|row| dot(row, row).sqrt()).collect();
    let mut order: Vec<usize> = (0..r).collect();
    order.sort_by(|a, b| norms[*b].total_cmp(&norms[*a]).then(a.cmp(b)));
    let (mut x_rr, mut y_rr) = (vec![0f64; r * r], vec![0f64; r * r]);
    for (to, from) in order.iter().enumerate() {
        let factor = if norms[*from] > 0.0 { 1.0 / norms[*from] } else { 0.0 };
        for i in 0..r {
            x_rr[i * r + to] = work[from * r + i] * factor;
            y_rr[i * r + to] = turned[from * r + i];
        }
    }
    (x_rr, order.iter().map(|i| norms[*i]).collect(), y_rr)
}

fn pair(rows: &mut [f64], p: usize, q: usize, r: usize) -> (&mut [f64], &mut [f64]) {
    let (head, tail) = rows.split_at_mut(q * r);
    (&mut head[p * r..(p + 1) * r], &mut tail[..r])
}
