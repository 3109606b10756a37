//! Heads side by side: normed, rotated to their positions, and repeated for the queries that share them.
//!
//! What stands between the maps of queries, keys and values and their attention in decoder-only models: RMS norm of
//! every head (Qwen3), rotary positions (Su et al. 2021, arXiv 2104.09864), grouped queries.

use super::elementwise::add_to;
use super::norm::{rms_norm, rms_norm_backward};
use crate::prenorm::rotary::Rotations;
use rayon::prelude::*;
use std::sync::Arc;

/// Rows of one task; fixed, so that sums depend on no thread.
const TASK: usize = 64;

/// What holds for all heads of one operation.
#[derive(Debug, Clone)]
pub struct Heads {
    /// K, the width of a head.
    pub key_dim: usize,
    /// Added to the mean square in the norm of a head.
    pub epsilon: f32,
    /// The position of every row.
    pub positions: Arc<[u32]>,
    /// Angles of positions.
    pub(crate) rotations: Arc<Rotations>,
}

impl Heads {
    /// Whether it is the same operation, over the same tables.
    pub(super) fn is(&self, other: &Heads) -> bool {
        let tables = Arc::ptr_eq(&self.rotations, &other.rotations) && Arc::ptr_eq(&self.positions, &other.positions);
        tables && (self.key_dim, self.epsilon) == (other.key_dim, other.epsilon)
    }
}

/// Heads of one kind: queries, keys or values.
#[derive(Debug, Clone)]
pub struct Source<N> {
    /// [T, heads·K].
    pub x: N,
    /// Gain [1, K] of the norm of every head; without it there is no norm.
    pub norm: Option<N>,
    /// Rotate to the positions.
    pub rotate: bool,
    /// How often every head comes out, side by side.
    pub repeat: usize,
}

/// The same as matrices.
pub(super) struct Slices<'a> {
    pub x: &'a [f32],
    /// heads·K
    pub columns: usize,
    /// Empty without a norm.
    pub norm: &'a [f32],
    pub rotate: bool,
    pub repeat: usize,
}

/// Writes the heads of all sources side by side: rows of Σ columns·repeat numbers.
pub(super) fn forward(heads: &Heads, sources: &[Slices], out: &mut [f32]) {
    let (k, wide) = (heads.key_dim, width(sources));
    out.par_chunks_mut(TASK * wide).enumerate().for_each(|(task, out)| {
        let mut head = vec![0.0; k];
        for (i, mut out) in out.chunks_exact_mut(wide).enumerate() {
            let row = task * TASK + i;
            for source in sources {
                for from in source.x[row * source.columns..][..source.columns].chunks_exact(k) {
                    match source.norm.is_empty() {
                        true => head.copy_from_slice(from),
                        false => rms_norm(from, source.norm, heads.epsilon, &mut head),
                    }
                    if source.rotate {
                        heads.rotations.apply(heads.positions[row] as usize, &mut head);
                    }
                    let (here, rest) = out.split_at_mut(k * source.repeat);
                    here.chunks_exact_mut(k).for_each(|to| to.copy_from_slice(&head));
                    out = rest;
                }
            }
        }
    });
}

/// Gradients of source `which`: `dx` is overwritten or added to, `dnorm` (of K numbers, or none) is added to.
pub(super) fn backward(
    heads: &Heads,
    sources: &[Slices],
    which: usize,
    grad: &[f32],
    dx: &mut [f32],
    accumulate: bool,
    dnorm: &mut [f32],
) {
    let (k, wide) = (heads.key_dim, width(sources));
    let skipped = width(&sources[..which]);
    let source = &sources[which];
    let shares: Vec<Vec<f32>> = dx
        .par_chunks_mut(TASK * source.columns)
        .enumerate()
        .map(|(task, dx)| {
            let mut share = vec![0.0; source.norm.len()];
            let mut head = vec![0.0; k];
            for (i, dx) in dx.chunks_exact_mut(source.columns).enumerate() {
                let row = task * TASK + i;
                let from = &source.x[row * source.columns..][..source.columns];
                let grad = &grad[row * wide + skipped..][..source.columns * source.repeat];
                let each = dx.chunks_exact_mut(k).zip(from.chunks_exact(k));
                for ((dx, from), grad) in each.zip(grad.chunks_exact(k * source.repeat)) {
                    head.copy_from_slice(&grad[..k]);
                    grad[k..].chunks_exact(k).for_each(|more| add_to(&mut head, more));
                    if source.rotate {
                        heads.rotations.unapply(heads.positions[row] as usize, &mut head);
                    }
                    match (source.norm.is_empty(), accumulate) {
                        (false, _) => {
                            rms_norm_backward(from, source.norm, heads.epsilon, &head, dx, accumulate, &mut share);
                        }
                        (true, true) => add_to(dx, &head),
                        (true, false) => dx.copy_from_slice(&head),
                    }
                }
            }
            share
        })
        .collect();
    if !dnorm.is_empty() {
        shares.iter().for_each(|share| add_to(dnorm, share));
    }
}

fn width(sources: &[Slices]) -> usize {
    sources.iter().map(|source| source.columns * source.repeat).sum()
}
