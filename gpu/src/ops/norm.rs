//! RMS norm and layer norm kernels.

use super::elementwise::add_to;
use super::isa::vectorized;
use rayon::prelude::*;

/// Rows one task works on; fixed, so sums do not depend on threads.
const TASK_ROWS: usize = 64;

/// What the rows of a norm are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Norm {
    /// `x / sqrt(mean(x²) + eps) * w`.
    Rms,
    /// `(x - mean(x)) / sqrt(variance(x) + eps) * w`.
    Layer,
}

/// The norm of every row, in parallel.
pub(crate) fn norm_rows(norm: Norm, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let n = TASK_ROWS * w.len();
    let forward = match norm {
        Norm::Rms => rms_norm,
        Norm::Layer => layer_forward,
    };
    out.par_chunks_mut(n)
        .zip(x.par_chunks(n))
        .for_each(|(out, x)| forward(x, w, eps, out));
}

/// Gradients: `dx (+)=`, `dw +=`; row groups in parallel, their shares of dw added in order.
pub(crate) fn norm_backward(
    norm: Norm,
    (x, w, eps): (&[f32], &[f32], f32),
    grad: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    dw: &mut [f32],
) {
    let n = TASK_ROWS * w.len();
    let backward = match norm {
        Norm::Rms => rms_norm_backward,
        Norm::Layer => layer_backward,
    };
    let shares: Vec<Vec<f32>> = dx
        .par_chunks_mut(n)
        .zip(x.par_chunks(n).zip(grad.par_chunks(n)))
        .map(|(dx, (x, grad))| {
            let mut share = vec![0.0; w.len()];
            backward(x, w, eps, grad, dx, accumulate, &mut share);
            share
        })
        .collect();
    for share in shares {
        add_to(dw, &share);
    }
}

/// Sum of products in 16 fixed lanes.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            lanes[i] += a[i] * b[i];
        }
    }
    let mut sum = 0.0;
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    sum + lanes[0]
}

vectorized! {
    /// `x / sqrt(mean(x²) + eps) * w` by rows, on this thread.
    pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        let d = w.len();
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(w) { *out = x * r * w; }
        }
    }
}

vectorized! {
    /// Gradients of [`rms_norm`]: `dx (+)=`, `dw +=`, on this thread.
    pub(crate) fn rms_norm_backward(
        x: &[f32], w: &[f32], eps: f32, grad: &[f32], dx: &mut [f32], accumulate: bool, dw: &mut [f32],
    ) {
        let d = w.len();
        let mut gw = vec![0.0; d];
        for ((x, g), dx) in x.chunks_exact(d).zip(grad.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
            let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for ((gw, g), w) in gw.iter_mut().zip(g).zip(w) { *gw = g * w; }
            let along = dot(&gw, x) * r * r / d as f32;
            for i in 0..d {
                dw[i] += g[i] * x[i] * r;
                let value = r * (gw[i] - x[i] * along);
                dx[i] = if accumulate { dx[i] + value } else { value };
            }
        }
    }
}

vectorized! {
    fn layer_forward(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        let d = w.len();
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let r = standardize(x, eps, out);
            for (out, w) in out.iter_mut().zip(w) { *out *= r * w; }
        }
    }
}

vectorized! {
    fn layer_backward(
        x: &[f32], w: &[f32], eps: f32, grad: &[f32], dx: &mut [f32], accumulate: bool, dw: &mut [f32],
    ) {
        let d = w.len();
        let (mut gw, mut xc) = (vec![0.0; d], vec![0.0; d]);
        for ((x, g), dx) in x.chunks_exact(d).zip(grad.chunks_exact(d)).zip(dx.chunks_exact_mut(d)) {
            let r = standardize(x, eps, &mut xc);
            for ((gw, g), w) in gw.iter_mut().zip(g).zip(w) { *gw = g * w; }
            let along = dot(&gw, &xc) * r * r / d as f32;
            let mean = sum(&gw) / d as f32;
            for i in 0..d {
                dw[i] += g[i] * xc[i] * r;
                let value = r * (gw[i] - mean - xc[i] * along);
                dx[i] = if accumulate { dx[i] + value } else { value };
            }
        }
    }
}

/// Writes a row less its mean, and says the inverse of its standard deviation.
#[inline(always)]
fn standardize(x: &[f32], eps: f32, out: &mut [f32]) -> f32 {
    let d = x.len() as f32;
    let mean = sum(x) / d;
    for (out, x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    1.0 / (dot(out, out) / d + eps).sqrt()
}

/// Sum in 16 fixed lanes.
#[inline(always)]
fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += chunk[i];
        }
    }
    lanes.iter().chain(rest).sum()
}
