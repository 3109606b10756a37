//! TIGER in the layout of Hugging Face's T5, as `T5ForConditionalGeneration.from_pretrained` reads it.

use super::*;
use crate::weights::{Weight, Weights};
use serde_json::json;
use std::collections::HashMap;
use std::path::Path;

impl Tiger {
    /// Writes `config.json` and `model.safetensors` for `T5ForConditionalGeneration`. Tokens are rows of our token
    /// table: the codes of level 0 from 0 on, then those of level 1, ..., BOS, the separator if there is one, users. The
    /// output heads are stacked in that order; rows of `lm_head` that are no codes are 0.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] unless the feed-forward blocks are T5's and no vectors are injected, [`Error::TensorNames`] for a weight that T5 has
    /// no place for, [`Error::Io`].
    pub fn save_as_t5(&self, folder: &Path) -> Result<()> {
        let config = self.config();
        if config.feed_forward != FeedForward::T5 {
            let reason = "T5 has blocks of one hidden layer without biases, GRID's have two and biases: only a model \
                          trained with t5 can be written as T5";
            return Err(Error::config("feed_forward", reason));
        }
        if config.vector_dim > 0 {
            let reason = "item vectors are injected into this model, and T5 has no place for them";
            return Err(Error::config("vectors", reason));
        }
        let (mut shared, mut heads, mut tensors) = (Vec::new(), Vec::new(), Vec::new());
        for weight in self.weights().tensors() {
            match place(&weight.name) {
                Some(Place::Token) => shared.extend_from_slice(&weight.data),
                Some(Place::Head) => heads.extend_from_slice(&weight.data),
                Some(Place::Parts(names)) => {
                    let shape = match weight.shape[..] {
                        [rows, columns] => vec![rows / names.len(), columns],
                        _ => weight.shape.clone(),
                    };
                    let parts = weight.data.chunks_exact(weight.data.len() / names.len());
                    for (name, part) in names.into_iter().zip(parts) {
                        tensors.push(Weight {
                            name,
                            shape: shape.clone(),
                            data: part.to_vec(),
                        });
                    }
                }
                None => {
                    return Err(Error::TensorNames {
                        missing: vec![],
                        unexpected: vec![weight.name.clone()],
                    });
                }
            }
        }
        let tokens = shared.len() / config.d_model;
        heads.resize(shared.len(), 0.0);
        for (name, data) in [("shared.weight", shared), ("lm_head.weight", heads)] {
            tensors.push(Weight {
                name: name.into(),
                shape: vec![tokens, config.d_model],
                data,
            });
        }
        let about = HashMap::from([("format".to_string(), "pt".to_string())]);
        Weights::from_tensors(tensors).save_with(folder, &t5_config(config, tokens), Some(about))
    }
}

/// `config.json`: what `T5Config` knows, then what it keeps for whoever builds inputs.
fn t5_config(config: &TigerConfig, tokens: usize) -> serde_json::Value {
    let bos = config.bos_token();
    json!({
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": true,
        "vocab_size": tokens,
        "d_model": config.d_model,
        "d_kv": config.d_kv,
        "d_ff": config.d_ff,
        "num_layers": config.layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.heads,
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "dropout_rate": (f64::from(config.dropout) * 1e6).round() / 1e6,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
        "tie_word_embeddings": false,
        "decoder_start_token_id": bos,
        "bos_token_id": bos,
        // As in T5, the token that the decoder starts with is the one that pads.
        "pad_token_id": bos,
        "eos_token_id": null,
        "codebook_sizes": config.codebook_sizes,
        "separator_token_id": config.separator.then_some(bos + 1),
        "user_buckets": config.user_buckets,
        "max_items": config.max_items,
    })
}

/// Where a weight goes.
enum Place {
    /// Rows of the token table, which are in its order.
    Token,
    /// Rows of the output layer, likewise.
    Head,
    /// Equal parts, one below the other.
    Parts(Vec<String>),
}

/// The place of a weight of ours.
fn place(name: &str) -> Option<Place> {
    let parts: Vec<&str> = name.split('.').collect();
    let stack = parts[0];
    let one = |name: String| Some(Place::Parts(vec![name]));
    let block = match parts[..] {
        ["codes" | "bos" | "separator" | "users"] => return Some(Place::Token),
        ["heads"] | ["heads", _] => return Some(Place::Head),
        ["encoder" | "decoder", "bias"] => {
            return one(format!(
                "{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            ));
        }
        ["encoder" | "decoder", "norm"] => return one(format!("{stack}.final_layer_norm.weight")),
        ["encoder" | "decoder", block, _, _] => format!("{stack}.block.{block}.layer"),
        _ => return None,
    };
    let last = if stack == "encoder" { 1 } else { 2 };
    let maps = |layer: &str, maps: &[&str]| {
        let name = |map: &&str| format!("{block}.{layer}.{map}.weight");
        Some(Place::Parts(maps.iter().map(name).collect()))
    };
    match (parts[2], parts[3]) {
        ("attention", "norm") => one(format!("{block}.0.layer_norm.weight")),
        ("attention", "qkv") => maps("0.SelfAttention", &["q", "k", "v"]),
        ("attention", "out") => maps("0.SelfAttention", &["o"]),
        ("cross", "norm") => one(format!("{block}.1.layer_norm.weight")),
        ("cross", "q") => maps("1.EncDecAttention", &["q"]),
        ("cross", "kv") => maps("1.EncDecAttention", &["k", "v"]),
        ("cross", "out") => maps("1.EncDecAttention", &["o"]),
        ("feed_forward", "norm") => one(format!("{block}.{last}.layer_norm.weight")),
        ("feed_forward", "1") => maps(&format!("{last}.DenseReluDense"), &["wi"]),
        ("feed_forward", "2") => maps(&format!("{last}.DenseReluDense"), &["wo"]),
        _ => None,
    }
}
