//! Softmax cross-entropy kernels.

use super::attention::exp;
use super::isa::vectorized;
use rayon::prelude::*;

/// Mean cross-entropy over rows; row losses in parallel, added in order (in f64).
pub(crate) fn cross_entropy_mean(logits: &[f32], columns: usize, codes: &[u32]) -> f32 {
    let losses: Vec<f64> = logits
        .par_chunks(columns)
        .zip(codes)
        .map(|(row, &code)| f64::from(log_sum_exp(row)) - f64::from(row[code as usize]))
        .collect();
    (losses.iter().sum::<f64>() / codes.len() as f64) as f32
}

/// `dlogits = grad / B * (softmax - onehot)`.
pub(crate) fn cross_entropy_backward(logits: &[f32], columns: usize, codes: &[u32], grad: f32, out: &mut [f32]) {
    let scale = grad / codes.len() as f32;
    out.par_chunks_mut(columns)
        .zip(logits.par_chunks(columns).zip(codes))
        .for_each(|(out, (row, &code))| {
            softmax_scaled(row, log_sum_exp(row), scale, out);
            out[code as usize] -= scale;
        });
}

/// One row of logits to log-probabilities.
pub(crate) fn log_softmax_in_place(row: &mut [f32]) {
    let total = log_sum_exp(row);
    row.iter_mut().for_each(|x| *x -= total);
}

vectorized! {
    fn log_sum_exp(row: &[f32]) -> f32 {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut lanes = [0f64; 8];
        let (chunks, rest) = row.as_chunks::<8>();
        for chunk in chunks {
            for i in 0..8 { lanes[i] += f64::from(exp(chunk[i] - max)); }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) { *lane += f64::from(exp(x - max)); }
        max + lanes.iter().sum::<f64>().ln() as f32
    }
}

vectorized! {
    fn softmax_scaled(row: &[f32], total: f32, scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(row) { *out = scale * exp(x - total); }
    }
}
