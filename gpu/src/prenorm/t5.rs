//! T5's encoder (Raffel et al. 2020, arXiv 1910.10683; v1.1 and Flan-T5 with gated GELU): configuration and names.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Biases, Names, Part, Positions, PrenormConfig};
use crate::encoder::{Activation, EncoderError, at_least_one, keys, unsupported};
use crate::ops::RelativeBuckets;

pub(super) const EMBEDDING: &str = "shared.weight";
pub(super) const FINAL_NORM: &str = "encoder.final_layer_norm.weight";
/// The table of relative biases, which the first block holds for all.
pub(super) const BIAS: &str = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight";

/// Keys of `config.json`; the defaults are those of `transformers` for keys that older files do not have.
#[derive(Deserialize)]
struct Keys {
    vocab_size: usize,
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    #[serde(default = "buckets")]
    relative_attention_num_buckets: usize,
    #[serde(default = "distance")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    feed_forward_proj: Option<String>,
    dense_act_fn: Option<String>,
    #[serde(default)]
    is_gated_act: bool,
}

fn buckets() -> usize {
    32
}

fn distance() -> usize {
    128
}

fn epsilon() -> f64 {
    1e-6
}

/// The encoder that a configuration of `model_type` `t5` describes.
pub(crate) fn parse(json: Value, path: &Path) -> Result<PrenormConfig, EncoderError> {
    let keys: Keys = keys(json, path)?;
    let sizes = [
        ("vocab_size", keys.vocab_size),
        ("d_model", keys.d_model),
        ("d_kv", keys.d_kv),
        ("d_ff", keys.d_ff),
        ("num_heads", keys.num_heads),
    ];
    at_least_one(path, &sizes)?;
    // Below 4 there are no buckets for single distances; the logarithm wants distances beyond them.
    let table = keys.relative_attention_num_buckets;
    if table < 4 {
        let key = "relative_attention_num_buckets";
        return Err(unsupported(path, key, table.to_string(), "at least 4"));
    }
    if keys.relative_attention_max_distance <= table / 4 {
        let got = keys.relative_attention_max_distance.to_string();
        let wanted = "more than a quarter of relative_attention_num_buckets";
        return Err(unsupported(path, "relative_attention_max_distance", got, wanted));
    }
    let (activation, gated) = feed_forward(&keys, path)?;
    Ok(PrenormConfig {
        width: keys.d_model,
        layers: keys.num_layers,
        heads: keys.num_heads,
        kv_heads: keys.num_heads,
        key_dim: keys.d_kv,
        inner: keys.d_ff,
        vocabulary: keys.vocab_size,
        epsilon: keys.layer_norm_epsilon as f32,
        positions: Positions::Relative(RelativeBuckets {
            buckets: table,
            max_distance: keys.relative_attention_max_distance,
            bidirectional: true,
        }),
        causal: false,
        scale: 1.0,
        activation,
        gated,
        query_key_norm: false,
        biases: Biases {
            query_key_value: false,
            attention_out: false,
            feed_forward: false,
        },
        names: Names::T5,
    })
}

/// `feed_forward_proj` is `NAME` or `gated-NAME`, where `gated-gelu` means GELU with tanh. It goes before the two keys
/// that `transformers` derives from it; without any of them the block is T5 v1.0's, ReLU.
fn feed_forward(keys: &Keys, path: &Path) -> Result<(Activation, bool), EncoderError> {
    let (key, name, gated) = match (&keys.feed_forward_proj, &keys.dense_act_fn) {
        (Some(word), _) if word == "gated-gelu" => ("feed_forward_proj", "gelu_new", true),
        (Some(word), _) => match word.strip_prefix("gated-") {
            Some(name) => ("feed_forward_proj", name, true),
            None => ("feed_forward_proj", word.as_str(), false),
        },
        (None, Some(name)) => ("dense_act_fn", name.as_str(), keys.is_gated_act),
        (None, None) => ("dense_act_fn", "relu", keys.is_gated_act),
    };
    match Activation::named(name) {
        Some(activation) => Ok((activation, gated)),
        None => Err(unsupported(path, key, format!("{name:?}"), Activation::NAMES)),
    }
}

/// The name of a tensor in a block, without `.weight`.
pub(super) fn stem(layer: usize, part: Part, gated: bool) -> String {
    let name = match part {
        Part::Query => "0.SelfAttention.q",
        Part::Key => "0.SelfAttention.k",
        Part::Value => "0.SelfAttention.v",
        Part::AttentionOut => "0.SelfAttention.o",
        Part::QueryNorm => "0.SelfAttention.q_norm",
        Part::KeyNorm => "0.SelfAttention.k_norm",
        Part::AttentionNorm => "0.layer_norm",
        Part::Activated if gated => "1.DenseReluDense.wi_0",
        Part::Activated => "1.DenseReluDense.wi",
        Part::Linear => "1.DenseReluDense.wi_1",
        Part::Down => "1.DenseReluDense.wo",
        Part::FeedForwardNorm => "1.layer_norm",
    };
    format!("encoder.block.{layer}.layer.{name}")
}

/// The decoder and its head are not wanted; the embedding goes by either of two names.
pub(super) fn current_name(name: &str) -> Option<String> {
    match name {
        "encoder.embed_tokens.weight" => Some(EMBEDDING.to_string()),
        _ if name.starts_with("decoder.") || name.starts_with("lm_head.") => None,
        _ => Some(name.to_string()),
    }
}
