//! Cross-entropy kernels: softmax, sampled softmax, binary.

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

/// Mean of `log(1 + e^-x)`, or of `log(1 + e^x)` where the label is false; in f64, in order.
pub(crate) fn binary_cross_entropy_mean(logits: &[f32], label: bool) -> f32 {
    let losses = logits.iter().map(|&x| {
        let against = f64::from(if label { -x } else { x });
        against.max(0.0) + (-against.abs()).exp().ln_1p()
    });
    (losses.sum::<f64>() / logits.len() as f64) as f32
}

/// `dlogits = grad / n * (sigmoid - label)`.
pub(crate) fn binary_cross_entropy_backward(logits: &[f32], label: bool, grad: f32, out: &mut [f32]) {
    let (scale, label) = (f64::from(grad) / logits.len() as f64, f64::from(u8::from(label)));
    for (out, &x) in out.iter_mut().zip(logits) {
        *out = (scale * (1.0 / (1.0 + f64::from(-x).exp()) - label)) as f32;
    }
}

/// The elements of `hidden`, rising, that are in a row.
fn hidden_in(hidden: &[(u32, u32)], row: usize) -> &[(u32, u32)] {
    let start = hidden.partition_point(|(r, _)| (*r as usize) < row);
    let end = hidden.partition_point(|(r, _)| (*r as usize) <= row);
    &hidden[start..end]
}

/// Mean cross-entropy of `own` against the rows of `others`, without the elements of `hidden`.
pub(crate) fn sampled_cross_entropy_mean(own: &[f32], others: &[f32], hidden: &[(u32, u32)], columns: usize) -> f32 {
    let losses: Vec<f64> = (0..own.len())
        .into_par_iter()
        .map_init(Vec::new, |row, i| {
            load_candidates(own[i], &others[i * columns..][..columns], hidden_in(hidden, i), row);
            f64::from(log_sum_exp(row)) - f64::from(own[i])
        })
        .collect();
    (losses.iter().sum::<f64>() / own.len() as f64) as f32
}

/// Gradients of `own` and `others`, overwritten.
pub(crate) fn sampled_cross_entropy_backward(
    (own, others, hidden): (&[f32], &[f32], &[(u32, u32)]),
    grad: f32,
    d_own: &mut [f32],
    d_others: &mut [f32],
) {
    let columns = others.len() / own.len();
    let scale = grad / own.len() as f32;
    d_own
        .par_iter_mut()
        .zip(d_others.par_chunks_mut(columns))
        .enumerate()
        .for_each_init(Vec::new, |row, (i, (d_own, d_others))| {
            load_candidates(own[i], &others[i * columns..][..columns], hidden_in(hidden, i), row);
            let total = log_sum_exp(row);
            softmax_scaled(&row[1..], total, scale, d_others);
            *d_own = scale * exp(own[i] - total) - scale;
        });
}

/// A row's own logit, then the others, minus infinity where hidden.
fn load_candidates(own: f32, others: &[f32], hidden: &[(u32, u32)], row: &mut Vec<f32>) {
    row.clear();
    row.push(own);
    row.extend_from_slice(others);
    for (_, column) in hidden {
        row[1 + *column as usize] = f32::NEG_INFINITY;
    }
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

vectorized! {
    /// Turns a row of logits into `scale * (softmax - onehot)` and says its loss.
    pub(crate) fn cross_entropy_in_place(row: &mut [f32], code: usize, scale: f32) -> f64 {
        let own = row[code];
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for i in 0..16 { lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] }; }
        }
        let mut max = f32::NEG_INFINITY;
        for &x in lanes.iter().chain(rest) { max = if x > max { x } else { max }; }
        let mut lanes = [0f32; 32];
        let (chunks, rest) = row.as_chunks_mut::<32>();
        for chunk in chunks {
            for i in 0..32 {
                chunk[i] = exp(chunk[i] - max);
                lanes[i] += chunk[i];
            }
        }
        let mut sum = 0.0;
        for x in rest {
            *x = exp(*x - max);
            sum += *x;
        }
        for x in lanes { sum += x; }
        let factor = scale / sum;
        for x in row.iter_mut() { *x *= factor; }
        row[code] -= scale;
        f64::from(max - own) + f64::from(sum).ln()
    }
}
