//! The CPU forward pass on packed sequences: no padding is computed.
//!
//! Blocks work row by row and attention runs per sequence, so a token's result depends neither on threads nor on what
//! else is in the batch.

use std::path::Path;

use rayon::prelude::*;

use super::block::{Adapter, Block, panel};
use super::rotary::Rotations;
use super::{Positions, PrenormConfig, t5};
use crate::encoder::{Checkpoint, EncoderError, Forward, check_batch};
use crate::frozen::{Stored, Table};
use crate::ops::{Attention, Dropout, Sources, attend, rms_norm};

/// A pre-norm model on the CPU: weights in the numbers that they came in, all else in f32.
pub struct PrenormEncoder {
    pub(crate) config: PrenormConfig,
    /// Embeddings [V, D].
    pub(crate) words: Table,
    /// Relative biases [buckets, H], or empty.
    bias_bh: Vec<f32>,
    pub(crate) blocks: Vec<Block>,
    norm_d: Vec<f32>,
}

impl PrenormEncoder {
    /// Reads the weights in `folder` that the configuration implies.
    pub(crate) fn open(folder: &Path, config: PrenormConfig) -> Result<Self, EncoderError> {
        let weights = Checkpoint::open(folder, &config.layout())?;
        Self::of_tensors(config, &mut |name| weights.get(name))
    }

    /// The model of tensors that `get` finds by name (as [`PrenormConfig::layout`] names them), each asked for once.
    pub(crate) fn of_tensors<T: Into<Stored>, E>(
        config: PrenormConfig,
        get: &mut impl FnMut(&str) -> Result<T, E>,
    ) -> Result<Self, E> {
        let get = &mut |name: &str| -> Result<Stored, E> { get(name).map(Into::into) };
        let blocks = (0..config.layers).map(|layer| Block::new(&config, layer, get));
        Ok(PrenormEncoder {
            blocks: blocks.collect::<Result<_, _>>()?,
            words: Table::new(get(config.embedding())?, config.width),
            bias_bh: match config.positions {
                Positions::Relative(_) => get(t5::BIAS)?.into_f32(),
                Positions::Rotary { .. } => Vec::new(),
            },
            norm_d: get(config.final_norm())?.into_f32(),
            config,
        })
    }

    /// Puts adapters beside the maps for which `find` has one by their stem.
    pub(crate) fn adapt<'a, E>(
        &mut self,
        find: &mut impl FnMut(&str) -> Result<Option<Adapter<'a>>, E>,
    ) -> Result<(), E> {
        let mut blocks = self.blocks.iter_mut().enumerate();
        blocks.try_for_each(|(layer, block)| block.adapt(&self.config, layer, find))
    }

    /// Bytes of the packed maps and adapters of all blocks.
    pub(crate) fn bytes(&self) -> usize {
        self.blocks.iter().map(Block::bytes).sum()
    }

    /// Embeddings of tokens [T, D].
    pub(crate) fn embed(&self, ids_t: &[u32]) -> Vec<f32> {
        let (rows, mut room) = (self.words.rows(), Vec::new());
        let mut hidden_td = Vec::with_capacity(ids_t.len() * self.config.width);
        for id in ids_t {
            hidden_td.extend_from_slice(rows.get(*id as usize, &mut room));
        }
        hidden_td
    }

    /// The rotations of positions below `count`, where positions are rotary.
    pub(crate) fn rotations(&self, count: usize) -> Option<Rotations> {
        match &self.config.positions {
            Positions::Rotary { frequencies, .. } => Some(frequencies.table(count)),
            Positions::Relative(_) => None,
        }
    }

    /// The norm after the last block.
    pub(crate) fn finish(&self, hidden_td: &[f32]) -> Vec<f32> {
        let d = self.config.width;
        let mut out_td = vec![0f32; hidden_td.len()];
        let panel = panel(hidden_td.len() / d);
        out_td
            .par_chunks_mut(panel * d)
            .zip(hidden_td.par_chunks(panel * d))
            .for_each(|(out, x)| rms_norm(x, &self.norm_d, self.config.epsilon, out));
        out_td
    }

    /// The forward pass; `seen` gets queries, keys and values [T, 3 H K] of every layer, heads of keys and values as
    /// often as queries share them.
    pub(crate) fn run(
        &self,
        ids_t: &[u32],
        offsets: &[usize],
        mut seen: impl FnMut(usize, &[f32]),
    ) -> Result<Vec<f32>, EncoderError> {
        let config = &self.config;
        check_batch(ids_t, offsets, self.words.count(), config.max_positions())?;
        let k = config.key_dim;
        let (queries, keys) = (config.heads * k, config.kv_heads * k);
        let each = config.heads / config.kv_heads;
        let lengths = offsets.windows(2).map(|w| w[1] - w[0]);
        let rotations = self.rotations(lengths.clone().max().unwrap_or(0));
        let places_t: Vec<u32> = lengths.flat_map(|length| 0..length as u32).collect();
        let shape = Attention {
            heads: config.heads,
            key_dim: k,
            queries: offsets.into(),
            keys: offsets.into(),
            causal: config.causal,
            scale: config.scale,
            buckets: match &config.positions {
                Positions::Rotary { .. } => None,
                Positions::Relative(buckets) => Some(*buckets),
            },
            dropout: Dropout::off(),
        };
        let repeated = |row: &[f32], out: &mut [f32]| {
            out[..queries].copy_from_slice(&row[..queries]);
            repeat(&row[queries..queries + keys], k, each, &mut out[queries..2 * queries]);
            repeat(&row[queries + keys..], k, each, &mut out[2 * queries..]);
        };
        let mut hidden_td = self.embed(ids_t);
        let mut qkv = vec![0f32; ids_t.len() * 3 * queries];
        let mut context = vec![0f32; ids_t.len() * queries];
        for (layer, block) in self.blocks.iter().enumerate() {
            let places = (&places_t[..], rotations.as_ref());
            block.project(config, &hidden_td, places, (&mut qkv, 3 * queries), repeated);
            seen(layer, &qkv);
            let from = Sources {
                q: &qkv,
                q_row: 3 * queries,
                kv: &qkv,
                kv_row: 3 * queries,
                k_column: queries,
                bias: &self.bias_bh,
            };
            attend(&shape, from, &mut context);
            block.mix(config, &context, &mut hidden_td);
        }
        Ok(self.finish(&hidden_td))
    }
}

impl Forward for PrenormEncoder {
    /// Runs on the current rayon pool. A sequence's rows are the same bits whatever else is in the batch and however
    /// many threads there are.
    fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> Result<Vec<f32>, EncoderError> {
        self.run(ids_t, offsets, |_, _| ())
    }
}

/// Every head of `from_GK` as often as queries share it.
fn repeat(from_gk: &[f32], k: usize, each: usize, to_hk: &mut [f32]) {
    for (head, to) in to_hk.chunks_exact_mut(k).enumerate() {
        to.copy_from_slice(&from_gk[head / each * k..][..k]);
    }
}
