//! How much memory a training takes, before it starts.

use super::{Base, Prompts, Tuned, TunedConfig, Tuning};
use crate::ops::{TIED_BLOCK, tied_window};
use crate::train::{Model, TrainOptions, TrainingSet};

/// Bytes of a number; of all but frozen weights, which keep the numbers of their file.
const F32: usize = 4;

/// What a training holds at once, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All weights, once.
    pub weights: usize,
    /// Gradients, and two moments of the optimizer, of what is trained; and the best weights so far.
    pub training: usize,
    /// What the largest batch leaves for the way back, and the block of logits.
    pub batch: usize,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.training + self.batch
    }
}

/// Estimates a training on the CPU: the largest batch is taken to be of the longest prompts.
pub fn estimate(tuned: &TunedConfig, options: &TrainOptions, samples: &Prompts) -> Memory {
    let config = &tuned.config;
    let mut lengths: Vec<(usize, usize)> = (0..samples.count())
        .map(|i| (samples.tokens(i).len() - 1, samples.scored(i)))
        .collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let batch = lengths.iter().take(options.batch_size);
    let (tokens, scored) = batch.fold((0, 0), |sum, (read, scored)| (sum.0 + read, sum.1 + scored));
    let trained = tuned.trained_parameters();
    let frozen = match (&tuned.tuning, &tuned.base) {
        (Tuning::Full, _) => 0,
        (Tuning::Lora(_), Base::Given(base, _)) => base.bytes(),
        (Tuning::Lora(_), Base::Fresh) => F32 * config.parameters().total(),
    };
    Memory {
        weights: F32 * trained + frozen,
        training: F32 * 4 * trained,
        batch: F32 * activations(tuned, tokens, scored),
    }
}

/// Numbers that the forward pass keeps, and what the loss works in.
fn activations(tuned: &TunedConfig, tokens: usize, scored: usize) -> usize {
    let (config, rank) = (&tuned.config, tuned.lora().map_or(0, |lora| lora.rank));
    let decoder = config.decoder();
    let (d, inner) = (decoder.width, decoder.inner);
    let (queries, keys) = (decoder.heads * decoder.key_dim, decoder.kv_heads * decoder.key_dim);
    // What rows of queries leave: queries, heads, attention, two maps back to D, a norm and sums; the feed-forward block.
    let query_row = 3 * queries + 5 * d + 3 * inner + 7 * rank;
    // Norm, keys and values, and their heads.
    let key_row = d + 2 * keys + 2 * queries;
    let last = decoder.layers.min(1);
    let blocks = match tuned.recompute {
        // What comes out of each, and one as it is.
        true => decoder.layers * tokens * d + tokens * (query_row + key_row),
        false => {
            (decoder.layers - last) * tokens * (query_row + key_row) + last * (tokens * key_row + scored * query_row)
        }
    };
    // The way back has about as much as one block leaves, besides.
    let back = tokens * (query_row + key_row);
    let vocabulary = config.vocabulary();
    let head = 2 * tied_window(vocabulary, d, scored) * d + TIED_BLOCK.min(scored) * vocabulary + 3 * scored * d;
    tokens * d + blocks + back + head
}

impl TunedConfig {
    /// Number of parameters that are trained.
    pub fn trained_parameters(&self) -> usize {
        let declared = Tuned::declarations(self);
        declared.iter().map(|d| d.shape.iter().product::<usize>()).sum()
    }
}
