//! Encoders whose blocks start with an RMS norm: T5's encoder and decoder-only models (Qwen3, Qwen2, LLaMA).
//!
//! `x += attention(norm(x))`, `x += feed_forward(norm(x))` in every block and a norm at the end. Families differ in
//! positions (relative biases or rotations), direction, biases and names: all of it stands in [`PrenormConfig`].
//! Shape legend: T tokens, D width, H heads of queries, G heads of keys and values, K width of a head, I inner width.

pub(crate) mod block;
pub(crate) mod decoder;
mod forward;
mod padded;
pub(crate) mod rotary;
pub(crate) mod t5;
#[cfg(test)]
mod tests;

use crate::encoder::{Activation, Layout};
use crate::ops::RelativeBuckets;

pub use forward::PrenormEncoder;
pub use padded::PaddedPrenorm;
pub use rotary::Frequencies;

/// What an encoder computes, and how its checkpoint names the tensors.
#[derive(Debug, Clone)]
pub struct PrenormConfig {
    /// D, width of the model and of an embedding.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// H, heads of queries.
    pub heads: usize,
    /// G, heads of keys and values; divides H.
    pub kv_heads: usize,
    /// K, width of one head.
    pub key_dim: usize,
    /// I, width inside the feed-forward blocks.
    pub inner: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Added to the mean square in RMS norm.
    pub epsilon: f32,
    /// How a token's place enters.
    pub positions: Positions,
    /// A token sees itself and those before it only.
    pub causal: bool,
    /// What products of queries and keys are multiplied by.
    pub scale: f32,
    /// Activation of the feed-forward blocks.
    pub activation: Activation,
    /// The activated map is multiplied by a second, linear one.
    pub gated: bool,
    /// RMS norm of every head's query and key before the rotation.
    pub query_key_norm: bool,
    /// Which linear maps have biases.
    pub biases: Biases,
    /// Whose names the tensors have.
    names: Names,
}

/// How a token's place enters.
#[derive(Debug, Clone)]
pub enum Positions {
    /// T5: a learned bias of every head for every bucket of distances, shared by all blocks.
    Relative(RelativeBuckets),
    /// Rotary embeddings of queries and keys (Su et al. 2021, arXiv 2104.09864).
    Rotary {
        /// Angles per position.
        frequencies: Frequencies,
        /// Longest sequence in tokens.
        most: usize,
    },
}

/// Which linear maps have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub query_key_value: bool,
    /// The one out of attention.
    pub attention_out: bool,
    /// Those of the feed-forward blocks.
    pub feed_forward: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    T5,
    Decoder,
}

/// The tensors of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Query,
    Key,
    Value,
    AttentionOut,
    /// The activated map of the feed-forward block.
    Activated,
    /// The linear map beside it.
    Linear,
    Down,
    AttentionNorm,
    QueryNorm,
    KeyNorm,
    FeedForwardNorm,
}

impl PrenormConfig {
    /// The longest sequence in tokens; `None` where positions are relative.
    pub fn max_positions(&self) -> Option<usize> {
        match self.positions {
            Positions::Relative(_) => None,
            Positions::Rotary { most, .. } => Some(most),
        }
    }

    /// Names and shapes of all tensors.
    pub(crate) fn layout(&self) -> Layout {
        let mut expected = vec![
            (self.embedding().to_string(), vec![self.vocabulary, self.width]),
            (self.final_norm().to_string(), vec![self.width]),
        ];
        if let Positions::Relative(buckets) = &self.positions {
            expected.push((t5::BIAS.to_string(), vec![buckets.buckets, self.heads]));
        }
        for layer in 0..self.layers {
            for (part, to, from, bias) in self.maps() {
                expected.push((self.weight(layer, part), vec![to, from]));
                if bias {
                    expected.push((self.bias(layer, part), vec![to]));
                }
            }
            for (part, width) in self.norms() {
                expected.push((self.weight(layer, part), vec![width]));
            }
        }
        let current_name = match self.names {
            Names::T5 => t5::current_name,
            Names::Decoder => decoder::current_name,
        };
        Layout { expected, current_name }
    }

    /// Linear maps of a block: outputs, inputs, and whether there is a bias.
    pub(crate) fn maps(&self) -> Vec<(Part, usize, usize, bool)> {
        let (d, inner) = (self.width, self.inner);
        let (queries, keys) = (self.heads * self.key_dim, self.kv_heads * self.key_dim);
        let Biases {
            query_key_value,
            attention_out,
            feed_forward,
        } = self.biases;
        let mut maps = vec![
            (Part::Query, queries, d, query_key_value),
            (Part::Key, keys, d, query_key_value),
            (Part::Value, keys, d, query_key_value),
            (Part::AttentionOut, d, queries, attention_out),
            (Part::Activated, inner, d, feed_forward),
            (Part::Down, d, inner, feed_forward),
        ];
        if self.gated {
            maps.push((Part::Linear, inner, d, feed_forward));
        }
        maps
    }

    /// Norms of a block and their widths.
    fn norms(&self) -> Vec<(Part, usize)> {
        let mut norms = vec![(Part::AttentionNorm, self.width), (Part::FeedForwardNorm, self.width)];
        if self.query_key_norm {
            norms.extend([(Part::QueryNorm, self.key_dim), (Part::KeyNorm, self.key_dim)]);
        }
        norms
    }

    pub(crate) fn embedding(&self) -> &'static str {
        match self.names {
            Names::T5 => t5::EMBEDDING,
            Names::Decoder => decoder::EMBEDDING,
        }
    }

    pub(crate) fn final_norm(&self) -> &'static str {
        match self.names {
            Names::T5 => t5::FINAL_NORM,
            Names::Decoder => decoder::FINAL_NORM,
        }
    }

    pub(crate) fn weight(&self, layer: usize, part: Part) -> String {
        format!("{}.weight", self.stem(layer, part))
    }

    fn bias(&self, layer: usize, part: Part) -> String {
        format!("{}.bias", self.stem(layer, part))
    }

    pub(crate) fn stem(&self, layer: usize, part: Part) -> String {
        match self.names {
            Names::T5 => t5::stem(layer, part, self.gated),
            Names::Decoder => decoder::stem(layer, part),
        }
    }
}
