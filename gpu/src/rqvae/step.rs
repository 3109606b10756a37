//! Loss and gradients of one batch.

use super::levels::{self, Noise, Quantized, Rule};
use super::mlp::Activations;
use super::{RqVaeConfig, RqVaeError};
use crate::lanes;
use crate::ops::matmul::Scratch;
use crate::weights::Weights;
use rayon::prelude::*;

/// Memory that steps use again.
#[derive(Default)]
pub(super) struct Memory {
    encoder: Activations,
    decoder: Activations,
    scratch: Scratch,
    /// The gradient of every weight.
    pub(super) gradients: Vec<Vec<f32>>,
}

/// What a batch came to.
pub(super) struct Outcome {
    pub(super) loss: f64,
    /// Its part that is the mean squared error of the decoder.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests compare the parts"))]
    pub(super) reconstruction: f64,
    pub(super) quantized: Quantized,
}

/// Loss of `x_BD`, and its gradients into the memory. `codebook_loss`: whether entries are drawn to their rows.
pub(super) fn step(
    config: &RqVaeConfig,
    rule: &Rule,
    weights: &Weights,
    x_bd: &[f32],
    codebook_loss: bool,
    noise: Noise,
    memory: &mut Memory,
) -> Result<Outcome, RqVaeError> {
    let tensors = weights.tensors();
    let Memory {
        encoder: encoder_memory,
        decoder: decoder_memory,
        scratch,
        gradients,
    } = memory;
    gradients.resize_with(tensors.len(), Vec::new);
    for (gradient, tensor) in gradients.iter_mut().zip(tensors) {
        gradient.resize(tensor.data.len(), 0.0);
    }
    let (encoder, decoder, first) = (config.encoder(), config.decoder(), config.first_codebook());
    let codebooks = &tensors[first..];
    let rows = x_bd.len() / config.dim;
    let z_bl = encoder.forward(tensors, x_bd, encoder_memory);
    let quantized =
        levels::forward(rule, codebooks, z_bl, noise, scratch).map_err(|(_, error)| RqVaeError::Rows(error))?;
    let y_bd = decoder.forward(tensors, &quantized.sum_bl, decoder_memory);
    let pairs = y_bd.par_chunks_exact(config.dim).zip(x_bd.par_chunks_exact(config.dim));
    let squares: Vec<f64> = pairs.map(|(y, x)| lanes::squared_distance(y, x)).collect();
    let reconstruction = squares.iter().sum::<f64>() / rows as f64;
    let share = 2.0 / rows as f32;
    let dy_bd: Vec<f32> = y_bd.iter().zip(x_bd).map(|(y, x)| share * (y - x)).collect();
    let dq_bl = decoder.backward(tensors, &quantized.sum_bl, &dy_bd, decoder_memory, gradients, true);
    let books = &mut gradients[first..];
    let dz_bl = levels::backward(rule, codebooks, &quantized, &dq_bl, codebook_loss, books, scratch);
    encoder.backward(tensors, x_bd, &dz_bl, encoder_memory, gradients, false);
    let weight = f64::from(rule.beta) + if codebook_loss { 1.0 } else { 0.0 };
    Ok(Outcome {
        loss: reconstruction + weight * quantized.distance,
        reconstruction,
        quantized,
    })
}
