//! RMS norm kernels.

use super::elementwise::add_to;
use super::isa::vectorized;
use rayon::prelude::*;

/// Rows one task works on; fixed, so sums do not depend on threads.
const TASK_ROWS: usize = 64;

/// `out = x / sqrt(mean(x²) + eps) * w` by rows, in parallel.
pub(crate) fn rms_norm_rows(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let n = TASK_ROWS * w.len();
    out.par_chunks_mut(n)
        .zip(x.par_chunks(n))
        .for_each(|(out, x)| forward(x, w, eps, out));
}

/// Gradients: `dx (+)=`, `dw +=`; row groups in parallel, their shares of dw added in order.
pub(crate) fn rms_norm_backward(
    (x, w, eps): (&[f32], &[f32], f32),
    grad: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    dw: &mut [f32],
) {
    let n = TASK_ROWS * w.len();
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
    fn forward(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
        let d = w.len();
        for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(w) { *out = x * r * w; }
        }
    }
}

vectorized! {
    fn backward(
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
