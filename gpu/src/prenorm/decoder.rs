//! Decoder-only models as encoders (LLaMA, Qwen2, Qwen3; the layout of Hugging Face `transformers`): configuration and
//! names.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{Biases, Frequencies, Names, Part, Positions, PrenormConfig};
use crate::encoder::{Activation, EncoderError, at_least_one, keys, unsupported};

pub(super) const EMBEDDING: &str = "embed_tokens.weight";
pub(super) const FINAL_NORM: &str = "norm.weight";

/// Families, where they differ in more than their keys say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Biases as `attention_bias` and `mlp_bias` say.
    Llama,
    /// Biases of queries, keys and values, always.
    Qwen2,
    /// RMS norm of queries and keys, always; biases as `attention_bias` says.
    Qwen3,
}

/// Keys of `config.json`; an optional one falls back as in `transformers`.
#[derive(Deserialize)]
struct Keys {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    hidden_act: String,
    rope_theta: Option<f64>,
    /// Newer files: `rope_theta` and the scaling in one object.
    rope_parameters: Option<Value>,
    /// Older files: the scaling alone.
    rope_scaling: Option<Value>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    is_causal: Option<bool>,
    #[serde(default)]
    use_sliding_window: bool,
    layer_types: Option<Vec<String>>,
}

/// The encoder that a configuration describes.
pub(crate) fn parse(json: Value, path: &Path, kind: Kind) -> Result<PrenormConfig, EncoderError> {
    let keys: Keys = keys(json, path)?;
    let kv_heads = keys.num_key_value_heads.unwrap_or(keys.num_attention_heads);
    let sizes = [
        ("vocab_size", keys.vocab_size),
        ("hidden_size", keys.hidden_size),
        ("intermediate_size", keys.intermediate_size),
        ("num_hidden_layers", keys.num_hidden_layers),
        ("num_attention_heads", keys.num_attention_heads),
        ("num_key_value_heads", kv_heads),
        ("max_position_embeddings", keys.max_position_embeddings),
    ];
    at_least_one(path, &sizes)?;
    let refuse = |key, got: String, supported| Err(unsupported(path, key, got, supported));
    if !keys.num_attention_heads.is_multiple_of(kv_heads) {
        let wanted = "a divisor of num_attention_heads";
        return refuse("num_key_value_heads", kv_heads.to_string(), wanted);
    }
    if keys.use_sliding_window {
        return refuse("use_sliding_window", "true".into(), "false");
    }
    let sliding = keys.layer_types.iter().flatten().find(|kind| *kind != "full_attention");
    if let Some(kind) = sliding {
        return refuse("layer_types", format!("{kind:?}"), "\"full_attention\"");
    }
    let Some(activation) = Activation::named(&keys.hidden_act) else {
        return refuse("hidden_act", format!("{:?}", keys.hidden_act), Activation::NAMES);
    };
    let key_dim = match (keys.head_dim, kind) {
        (Some(width), _) => width,
        (None, Kind::Qwen3) => return refuse("head_dim", "absent".into(), "the width of a head"),
        (None, _) if keys.hidden_size.is_multiple_of(keys.num_attention_heads) => {
            keys.hidden_size / keys.num_attention_heads
        }
        (None, _) => {
            let got = keys.num_attention_heads.to_string();
            return refuse(
                "num_attention_heads",
                got,
                "a divisor of hidden_size, or head_dim beside it",
            );
        }
    };
    if key_dim == 0 || key_dim % 2 == 1 {
        return refuse("head_dim", key_dim.to_string(), "an even width of a head");
    }
    let scaling = keys.rope_parameters.or(keys.rope_scaling);
    let frequencies = Frequencies::parse(keys.rope_theta, scaling.as_ref(), key_dim, path)?;
    let qwen2 = kind == Kind::Qwen2;
    Ok(PrenormConfig {
        width: keys.hidden_size,
        layers: keys.num_hidden_layers,
        heads: keys.num_attention_heads,
        kv_heads,
        key_dim,
        inner: keys.intermediate_size,
        vocabulary: keys.vocab_size,
        epsilon: keys.rms_norm_eps as f32,
        positions: Positions::Rotary {
            frequencies,
            most: keys.max_position_embeddings,
        },
        // As in `transformers`: a model trained to look both ways says so.
        causal: keys.is_causal.unwrap_or(true),
        scale: 1.0 / (key_dim as f32).sqrt(),
        activation,
        gated: true,
        query_key_norm: kind == Kind::Qwen3,
        biases: Biases {
            query_key_value: qwen2 || keys.attention_bias,
            attention_out: !qwen2 && keys.attention_bias,
            feed_forward: kind == Kind::Llama && keys.mlp_bias,
        },
        names: Names::Decoder,
    })
}

/// The name of a tensor in a block, without `.weight`.
pub(super) fn stem(layer: usize, part: Part) -> String {
    let name = match part {
        Part::Query => "self_attn.q_proj",
        Part::Key => "self_attn.k_proj",
        Part::Value => "self_attn.v_proj",
        Part::AttentionOut => "self_attn.o_proj",
        Part::QueryNorm => "self_attn.q_norm",
        Part::KeyNorm => "self_attn.k_norm",
        Part::AttentionNorm => "input_layernorm",
        Part::Activated => "mlp.gate_proj",
        Part::Linear => "mlp.up_proj",
        Part::Down => "mlp.down_proj",
        Part::FeedForwardNorm => "post_attention_layernorm",
    };
    format!("layers.{layer}.{name}")
}

/// The name without the prefix of a whole language model; its head and stored frequencies are not wanted.
pub(super) fn current_name(name: &str) -> Option<String> {
    name_in_whole(name).filter(|name| !name.starts_with("lm_head."))
}

/// The same where the head is wanted.
pub(crate) fn name_in_whole(name: &str) -> Option<String> {
    let name = name.strip_prefix("model.").unwrap_or(name);
    (!name.ends_with(".rotary_emb.inv_freq")).then(|| name.to_string())
}
