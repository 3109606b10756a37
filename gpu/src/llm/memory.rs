//! How much memory a training takes, before it starts.

use super::training::EVALUATION_TOKENS;
use super::{Base, Prompts, Tuned, TunedConfig, Tuning, Validation};
use crate::ops::{TIED_BLOCK, tied_window};
use crate::train::{Model, TrainOptions, TrainingSet};

/// Bytes of a number; of all but frozen weights, which keep the numbers of their file.
const F32: usize = 4;

/// What a training holds at once, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All weights, once.
    pub weights: usize,
    /// Gradients, and two moments of the optimizer, of what is trained; the best weights so far, where there are
    /// evaluations; and a state of the training while it is stored.
    pub training: usize,
    /// What the largest batch leaves for the way back, and the block of logits.
    pub batch: usize,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.training + self.batch
    }

    /// The same with evaluations, whose batches may be larger (memory that was taken for a batch is kept), and whose best
    /// weights are kept, in states too.
    pub fn with_evaluations(self, tuned: &TunedConfig, validation: Validation) -> Self {
        let prompts = validation.prompts;
        let lengths = (0..prompts.len()).map(|i| prompts.tokens(i).len());
        let (all, longest) = lengths.fold((0, 0), |(sum, most), length| (sum + length, length.max(most)));
        let scored: usize = (0..prompts.len()).map(|i| prompts.scored(i)).sum();
        let rows = validation.users.unwrap_or(usize::MAX).min(prompts.len());
        let read = (all * rows).div_ceil(prompts.len().max(1));
        let tokens = read.min(EVALUATION_TOKENS).max(longest);
        let scored = (scored * tokens).div_ceil(all.max(1));
        Memory {
            weights: self.weights,
            training: self.training + F32 * 2 * tuned.trained_parameters(),
            batch: self.batch.max(F32 * activations(tuned, tokens, scored)),
        }
    }
}

/// Estimates a training on the CPU, without evaluations: the largest batch is taken to be of the longest prompts.
pub fn estimate(tuned: &TunedConfig, options: &TrainOptions, samples: &Prompts) -> Memory {
    let config = &tuned.config;
    let mut lengths: Vec<(usize, usize)> = (0..samples.count())
        .map(|i| (samples.tokens(i).len() - 1, samples.scored(i)))
        .collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let batch = lengths.iter().take(options.batch_size);
    let (tokens, scored) = batch.fold((0, 0), |sum, (read, scored)| (sum.0 + read, sum.1 + scored));
    let trained = tuned.trained_parameters();
    // A state has the weights and the moments, and is put together a tensor at a time.
    let state = 3 * trained + sizes(tuned).max().unwrap_or(0);
    // The sum over replicas, and about as much on its way between peers.
    let sums = if options.replicas > 1 { 2 * trained } else { 0 };
    let frozen = match (&tuned.tuning, &tuned.base) {
        (Tuning::Full, _) => 0,
        (Tuning::Lora(_), Base::Given(base, _)) => base.bytes(),
        (Tuning::Lora(_), Base::Fresh) => F32 * config.parameters().total(),
    };
    Memory {
        weights: F32 * trained + frozen,
        training: F32 * (3 * trained + sums + state),
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
    let vocabulary = tuned.added.writable(config);
    let head = 2 * tied_window(vocabulary, d, scored) * d + TIED_BLOCK.min(scored) * vocabulary + 3 * scored * d;
    // The gradient of the output map as it comes; with new words the map is a copy in f32, whose gradient is split up.
    let copies = match (&tuned.tuning, tuned.added.words) {
        (Tuning::Full, 0) => vocabulary * d,
        (Tuning::Full, _) => 2 * vocabulary * d,
        (Tuning::Lora(_), 0) => 0,
        (Tuning::Lora(_), _) => (2 * vocabulary + config.vocabulary()) * d,
    };
    tokens * d + blocks + back + head + copies
}

/// Numbers of each tensor that is trained.
fn sizes(tuned: &TunedConfig) -> impl Iterator<Item = usize> {
    Tuned::declarations(tuned)
        .into_iter()
        .map(|d| d.shape.iter().product::<usize>())
}

impl TunedConfig {
    /// Number of parameters that are trained.
    pub fn trained_parameters(&self) -> usize {
        sizes(self).sum()
    }
}
