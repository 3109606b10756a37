//! Rotary position embeddings (Su et al. 2021, arXiv 2104.09864): frequencies, and the rotation of heads.
//!
//! The halves of a head are rotated against each other, as in GPT-NeoX and `transformers` (not neighbours, as in the
//! paper).

use std::f64::consts::TAU;
use std::path::Path;

use serde_json::Value;

use crate::encoder::{EncoderError, unsupported};

/// What older files leave out.
const THETA: f64 = 10_000.0;

/// The angle that one position adds, for each of the K/2 pairs of a head.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies(Vec<f64>);

impl Frequencies {
    /// `theta^(-2i/K)` for tests.
    #[cfg(test)]
    pub(crate) fn plain(key_dim: usize, theta: f64) -> Self {
        let pairs = key_dim / 2;
        Frequencies((0..pairs).map(|i| theta.powf(-(i as f64) / pairs as f64)).collect())
    }

    /// `theta^(-2i/K)`, scaled as `scaling` says: `default`, `linear` or `llama3`. As in `transformers`, what stands
    /// there comes before `theta`.
    pub(super) fn parse(
        theta: Option<f64>,
        scaling: Option<&Value>,
        key_dim: usize,
        path: &Path,
    ) -> Result<Self, EncoderError> {
        let scaling = scaling.filter(|scaling| !scaling.is_null());
        let of = |key: &str| scaling.and_then(|scaling| scaling.get(key));
        let kind = of("rope_type")
            .or(of("type"))
            .and_then(Value::as_str)
            .unwrap_or("default");
        let number = |key: &'static str| match of(key).and_then(Value::as_f64) {
            Some(number) if number > 0.0 => Ok(number),
            got => {
                let got = got.map_or("absent".to_string(), |got| got.to_string());
                Err(unsupported(path, key, got, "a positive number"))
            }
        };
        let (own, other) = (of("rope_theta").filter(|own| !own.is_null()), theta.unwrap_or(THETA));
        let theta = match own.map_or(Some(other), Value::as_f64) {
            Some(theta) if theta > 1.0 => theta,
            _ => {
                let got = own.map_or_else(|| other.to_string(), Value::to_string);
                return Err(unsupported(path, "rope_theta", got, "a number above 1"));
            }
        };
        let share = of("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0);
        if share != 1.0 {
            return Err(unsupported(path, "partial_rotary_factor", share.to_string(), "1"));
        }
        let pairs = key_dim / 2;
        let plain = (0..pairs).map(|i| theta.powf(-(i as f64) / pairs as f64));
        Ok(Frequencies(match kind {
            "default" => plain.collect(),
            "linear" => {
                let factor = number("factor")?;
                plain.map(|frequency| frequency / factor).collect()
            }
            "llama3" => {
                let (factor, length) = (number("factor")?, number("original_max_position_embeddings")?);
                let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
                plain
                    .map(|frequency| {
                        // Turns within the original length: many stay as they are, few are slowed down.
                        let turns = length * frequency / TAU;
                        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        frequency * (kept + (1.0 - kept) / factor)
                    })
                    .collect()
            }
            kind => {
                let supported = "\"default\", \"linear\", \"llama3\"";
                return Err(unsupported(path, "rope_type", format!("{kind:?}"), supported));
            }
        }))
    }

    /// Cosines and sines [P, K/2] of the positions below `count`.
    pub(crate) fn table(&self, count: usize) -> Rotations {
        let angles = |of: fn(f64) -> f64| -> Vec<f32> {
            let positions = 0..count;
            let at = |position: usize| {
                self.0
                    .iter()
                    .map(move |frequency| of(position as f64 * frequency) as f32)
            };
            positions.flat_map(at).collect()
        };
        Rotations {
            cos_pk: angles(f64::cos),
            sin_pk: angles(f64::sin),
            pairs: self.0.len(),
        }
    }
}

/// Cosines and sines of the angles of positions.
#[derive(Debug, Clone)]
pub(crate) struct Rotations {
    pub cos_pk: Vec<f32>,
    pub sin_pk: Vec<f32>,
    pub pairs: usize,
}

impl Rotations {
    /// Rotates every head of `x_HK`, which stands at a position, in place.
    pub(crate) fn apply(&self, position: usize, x_hk: &mut [f32]) {
        self.turn(position, 1.0, x_hk);
    }

    /// The way back, which is the gradient too.
    pub(crate) fn unapply(&self, position: usize, x_hk: &mut [f32]) {
        self.turn(position, -1.0, x_hk);
    }

    fn turn(&self, position: usize, sign: f32, x_hk: &mut [f32]) {
        let row = position * self.pairs..(position + 1) * self.pairs;
        let (cos, sin) = (&self.cos_pk[row.clone()], &self.sin_pk[row]);
        for head in x_hk.chunks_exact_mut(2 * self.pairs) {
            let (first, second) = head.split_at_mut(self.pairs);
            for ((a, b), (c, s)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
                let s = sign * s;
                (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
            }
        }
    }
}
