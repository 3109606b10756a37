//! The quantizing levels of a batch, forward and backward: which entries, what loss, which gradients.
//!
//! Shape legend: B rows, L latent width, C levels, K entries of a codebook.

use rayon::prelude::*;

use super::Estimator;
use super::sinkhorn::Sinkhorn;
use crate::kmeans::{self, KMeansError};
use crate::lanes;
use crate::ops::matmul::{Scratch, View, multiply, multiply_long};
use crate::weights::Weight;

/// Draws of the Gumbel distribution for a level: at [row * K + entry].
pub(super) type Noise<'a> = &'a (dyn Fn(usize, usize) -> f32 + Sync);

/// How the levels quantize a batch and what their loss is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rule {
    pub(super) estimator: Estimator,
    pub(super) beta: f32,
    /// Of the last level.
    pub(super) sinkhorn: Option<Sinkhorn>,
}

/// What a forward pass leaves.
#[derive(Default)]
pub(super) struct Quantized {
    /// Codes [B] of every level.
    pub(super) codes_cb: Vec<Vec<u32>>,
    /// Input [B, L] of every level: what the levels before left over; the first is the latent itself.
    pub(super) inputs_cbl: Vec<Vec<f32>>,
    /// What stands for every row at every level [B, L]: an entry, or a mixture of entries.
    chosen_cbl: Vec<Vec<f32>>,
    /// Shares [B, K] of the mixtures.
    shares_cbk: Vec<Vec<f32>>,
    /// Sum over the levels [B, L].
    pub(super) sum_bl: Vec<f32>,
    /// Mean over the rows of the squared distances to what stands for them, summed over the levels.
    pub(super) distance: f64,
}

/// Runs the levels on `z_BL`.
pub(super) fn forward(
    rule: &Rule,
    codebooks: &[Weight],
    z_bl: &[f32],
    noise: Noise,
    scratch: &mut Scratch,
) -> Result<Quantized, (usize, KMeansError)> {
    let width = codebooks[0].shape[1];
    let rows = z_bl.len() / width;
    let mut out = Quantized {
        sum_bl: vec![0.0; z_bl.len()],
        ..Quantized::default()
    };
    let mut residual_bl = z_bl.to_vec();
    for (level, codebook) in codebooks.iter().enumerate() {
        let k = codebook.shape[0];
        let at_level = |error| (level, error);
        // checks for NaN too
        let (nearest_b, _) = kmeans::assign(&residual_bl, width, &codebook.data).map_err(at_level)?;
        let (codes_b, chosen_bl, shares_bk) = match rule.estimator {
            Estimator::GumbelSoftmax { temperature } => {
                let mut shares_bk = squared_distances(&residual_bl, &codebook.data, width, scratch);
                gumbel_shares(&mut shares_bk, k, temperature, &|at| noise(level, at));
                let mut chosen_bl = vec![0f32; residual_bl.len()];
                let (left, right) = (View::rows(&shares_bk, k), View::rows(&codebook.data, width));
                multiply((rows, width, k), left, right, &mut chosen_bl, false, scratch, |_, _| ());
                (largest(&shares_bk, k), chosen_bl, shares_bk)
            }
            Estimator::StraightThrough | Estimator::Rotation => {
                let codes_b = match rule.sinkhorn {
                    Some(sinkhorn) if level + 1 == codebooks.len() => {
                        sinkhorn.assign(&squared_distances(&residual_bl, &codebook.data, width, scratch), k)
                    }
                    _ => nearest_b,
                };
                let entry = |code: &u32| &codebook.data[*code as usize * width..][..width];
                let chosen_bl = codes_b.iter().flat_map(entry).copied().collect();
                (codes_b, chosen_bl, Vec::new())
            }
        };
        let pairs = residual_bl
            .par_chunks_exact(width)
            .zip(chosen_bl.par_chunks_exact(width));
        let distances: Vec<f64> = pairs.map(|(r, e)| lanes::squared_distance(r, e)).collect();
        out.distance += distances.iter().sum::<f64>() / rows as f64;
        let next_bl = residual_bl.iter().zip(&chosen_bl).map(|(r, e)| r - e).collect();
        out.sum_bl.iter_mut().zip(&chosen_bl).for_each(|(s, e)| *s += e);
        out.codes_cb.push(codes_b);
        out.inputs_cbl.push(std::mem::replace(&mut residual_bl, next_bl));
        out.chosen_cbl.push(chosen_bl);
        out.shares_cbk.push(shares_bk);
    }
    Ok(out)
}

/// Gradient [B, L] of the latent, and those of the codebooks into `gradients` (overwritten), from `dq_BL` of the sum
/// that goes to the decoder. `codebook_loss`: whether entries are drawn to the rows that they stand for.
pub(super) fn backward(
    rule: &Rule,
    codebooks: &[Weight],
    from: &Quantized,
    dq_bl: &[f32],
    codebook_loss: bool,
    gradients: &mut [Vec<f32>],
    scratch: &mut Scratch,
) -> Vec<f32> {
    let width = codebooks[0].shape[1];
    let rows = dq_bl.len() / width;
    let share = 2.0 / rows as f32;
    let mut dz_bl = match rule.estimator {
        Estimator::StraightThrough => dq_bl.to_vec(),
        Estimator::Rotation => rotated_back(&from.inputs_cbl[0], &from.sum_bl, dq_bl, width),
        Estimator::GumbelSoftmax { .. } => vec![0.0; dq_bl.len()],
    };
    for (level, codebook) in codebooks.iter().enumerate() {
        let (inputs, chosen, gradient) = (&from.inputs_cbl[level], &from.chosen_cbl[level], &mut gradients[level]);
        for ((dz, r), e) in dz_bl.iter_mut().zip(inputs).zip(chosen) {
            *dz += rule.beta * share * (r - e);
        }
        gradient.fill(0.0);
        let pull = if codebook_loss { share } else { 0.0 };
        match rule.estimator {
            Estimator::StraightThrough | Estimator::Rotation => {
                for (row, code) in from.codes_cb[level].iter().enumerate() {
                    let to = &mut gradient[*code as usize * width..][..width];
                    let (r, e) = (&inputs[row * width..][..width], &chosen[row * width..][..width]);
                    to.iter_mut()
                        .zip(r)
                        .zip(e)
                        .for_each(|((to, r), e)| *to += pull * (e - r));
                }
            }
            Estimator::GumbelSoftmax { temperature } => {
                let k = codebook.shape[0];
                let parts = dq_bl.iter().zip(inputs).zip(chosen);
                let d_chosen_bl: Vec<f32> = parts.map(|((dq, r), e)| dq + pull * (e - r)).collect();
                let mixture = Mixture {
                    shares_bk: &from.shares_cbk[level],
                    temperature,
                    k,
                    width,
                };
                mixture.backward(&codebook.data, inputs, &d_chosen_bl, gradient, &mut dz_bl, scratch);
            }
        }
    }
    dz_bl
}

/// Squared distances [B, K] in f32.
fn squared_distances(x_bl: &[f32], codebook_kl: &[f32], width: usize, scratch: &mut Scratch) -> Vec<f32> {
    let (rows, k) = (x_bl.len() / width, codebook_kl.len() / width);
    let norms = |x: &[f32]| -> Vec<f32> { x.chunks_exact(width).map(|x| lanes::squared_norm(x) as f32).collect() };
    let (own_b, entries_k) = (norms(x_bl), norms(codebook_kl));
    let mut out_bk = vec![0f32; rows * k];
    let (left, right) = (View::rows(x_bl, width), View::rows(codebook_kl, width).t());
    multiply(
        (rows, k, width),
        left,
        right,
        &mut out_bk,
        false,
        scratch,
        |first, rows_bk| {
            for (row_k, own) in rows_bk.chunks_exact_mut(k).zip(&own_b[first..]) {
                row_k
                    .iter_mut()
                    .zip(&entries_k)
                    .for_each(|(x, entry)| *x = own + entry - 2.0 * *x);
            }
        },
    );
    out_bk
}

/// Softmax of `(noise - distance) / temperature` of every row, in place.
fn gumbel_shares(x_bk: &mut [f32], k: usize, temperature: f32, noise: &(dyn Fn(usize) -> f32 + Sync)) {
    x_bk.par_chunks_exact_mut(k).enumerate().for_each(|(row, x_k)| {
        x_k.iter_mut()
            .enumerate()
            .for_each(|(entry, x)| *x = noise(row * k + entry) - *x);
        lanes::softmax(x_k, k, 1.0 / temperature);
    });
}

fn largest(x_bk: &[f32], k: usize) -> Vec<u32> {
    let largest = |x_k: &[f32]| (0..k).fold(0, |best, at| if x_k[at] > x_k[best] { at } else { best }) as u32;
    x_bk.chunks_exact(k).map(largest).collect()
}

/// The gradient through the rotation that takes z to q and scales it to q's length (Fifty et al., arXiv 2410.06424):
/// `|q| / |z| (g - 2 r (r.g) + 2 z' (q'.g))` with unit vectors z', q' and r, the unit vector between them.
fn rotated_back(z_bl: &[f32], q_bl: &[f32], dq_bl: &[f32], width: usize) -> Vec<f32> {
    let mut dz_bl = vec![0f32; dq_bl.len()];
    let rows = z_bl.par_chunks_exact(width).zip(q_bl.par_chunks_exact(width));
    let rows = rows.zip(dq_bl.par_chunks_exact(width));
    dz_bl
        .par_chunks_exact_mut(width)
        .zip(rows)
        .for_each(|(dz, ((z, q), g))| {
            let length = |x: &[f32]| lanes::squared_norm(x).sqrt().max(1e-12);
            let (z_length, q_length) = (length(z), length(q));
            let unit = |x: &[f32], length: f64| -> Vec<f64> { x.iter().map(|x| f64::from(*x) / length).collect() };
            let (z_unit, q_unit) = (unit(z, z_length), unit(q, q_length));
            let between: Vec<f64> = z_unit.iter().zip(&q_unit).map(|(a, b)| a + b).collect();
            let norm = lanes::dot_f64(&between, &between).sqrt().max(1e-12);
            let g: Vec<f64> = g.iter().map(|g| f64::from(*g)).collect();
            let (along, across) = (lanes::dot_f64(&between, &g) / norm / norm, lanes::dot_f64(&q_unit, &g));
            for (at, dz) in dz.iter_mut().enumerate() {
                let turned = g[at] - 2.0 * between[at] * along + 2.0 * z_unit[at] * across;
                *dz = (q_length / z_length * turned) as f32;
            }
        });
    dz_bl
}

/// A level whose rows are stood for by mixtures of entries.
struct Mixture<'a> {
    shares_bk: &'a [f32],
    temperature: f32,
    k: usize,
    width: usize,
}

impl Mixture<'_> {
    /// Adds to `d_codebook_KL` and `d_input_BL` what comes through the shares and the mixtures.
    fn backward(
        &self,
        codebook_kl: &[f32],
        inputs_bl: &[f32],
        d_chosen_bl: &[f32],
        d_codebook_kl: &mut [f32],
        d_input_bl: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (k, width) = (self.k, self.width);
        let rows = inputs_bl.len() / width;
        let mut d_bk = vec![0f32; rows * k];
        let (left, right) = (View::rows(d_chosen_bl, width), View::rows(codebook_kl, width).t());
        // d of the scores: the softmax, then the temperature
        multiply(
            (rows, k, width),
            left,
            right,
            &mut d_bk,
            false,
            scratch,
            |first, d_bk| {
                for (d_k, shares_k) in d_bk
                    .chunks_exact_mut(k)
                    .zip(self.shares_bk[first * k..].chunks_exact(k))
                {
                    let mean: f32 = d_k.iter().zip(shares_k).map(|(d, s)| d * s).sum();
                    let change = |(d, s): (&mut f32, &f32)| *d = s * (*d - mean) / self.temperature;
                    d_k.iter_mut().zip(shares_k).for_each(change);
                }
            },
        );
        let shares = View::rows(self.shares_bk, k).t();
        let d_chosen = View::rows(d_chosen_bl, width);
        multiply_long((k, width, rows), shares, d_chosen, d_codebook_kl, true, scratch);
        // a score is -|r - c|^2: 2 (r - c) to the entry, 2 sum_k d_k c_k to the row, for the d of a row sum to 0
        let twice_bk: Vec<f32> = d_bk.iter().map(|d| 2.0 * d).collect();
        let (scores, inputs) = (View::rows(&twice_bk, k), View::rows(inputs_bl, width));
        multiply_long((k, width, rows), scores.t(), inputs, d_codebook_kl, true, scratch);
        let mut totals_k = vec![0f32; k];
        for d_k in twice_bk.chunks_exact(k) {
            totals_k.iter_mut().zip(d_k).for_each(|(total, d)| *total += d);
        }
        for ((to, entry), total) in d_codebook_kl
            .chunks_exact_mut(width)
            .zip(codebook_kl.chunks_exact(width))
            .zip(totals_k)
        {
            to.iter_mut().zip(entry).for_each(|(to, c)| *to -= total * c);
        }
        let codebook = View::rows(codebook_kl, width);
        multiply((rows, width, k), scores, codebook, d_input_bl, true, scratch, |_, _| ());
    }
}
