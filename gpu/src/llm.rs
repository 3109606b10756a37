//! Decoder-only language models that are trained and that generate: Qwen3, Qwen2, LLaMA, and shapes of one's own.
//!
//! The layout is that of `transformers` throughout: `config.json`, names and shapes of tensors. A model made from
//! scratch is a checkpoint of one of these families with drawn weights.
//!
//! Here is the config. The forward pass and the loss are in `llm/forward.rs`, weights and folders in `llm/model.rs`,
//! adapters in `llm/lora.rs`, what generates in `llm/frozen.rs`. Constrained generation: the titles in `llm/trie.rs`,
//! cached decoding in `llm/decoder.rs`, scores of next tokens in `llm/head.rs`, both on other devices in
//! `llm/on_device.rs`, beam search in `llm/search.rs`.

pub mod added;
mod decoder;
mod forward;
mod frozen;
mod head;
pub mod lora;
pub mod memory;
mod model;
mod on_device;
mod reader;
mod search;
#[cfg(test)]
mod tests;
mod training;
mod trie;

pub use decoder::Decoder;
pub use forward::{Batch, Network, hidden, loss};
pub use frozen::FrozenLlm;
pub use head::Normalisation;
pub use model::{Llm, Parameters, Shape};
pub use on_device::DeviceDecoder;
pub use search::{Found, Generated, SearchOptions, generate, generate_on};
pub use training::{Base, Prompts, Tuned, TunedConfig, Tuning, Validation};
pub use trie::TitleTrie;

use crate::encoder::{Activation, EncoderError, read_json, unsupported};
use crate::prenorm::{self, PrenormConfig};
use serde_json::Value;
use std::path::Path;

/// The architecture of a language model: its `config.json`, and what of it is computed.
#[derive(Debug, Clone)]
pub struct LlmConfig {
    json: Value,
    decoder: PrenormConfig,
    tied: bool,
}

impl LlmConfig {
    /// Reads `config.json` of a checkpoint.
    ///
    /// # Errors
    /// Of the file; a `model_type` that is none of the families, or a key whose value is not supported.
    pub fn load(folder: &Path) -> std::result::Result<Self, EncoderError> {
        let path = folder.join("config.json");
        Self::from_json(read_json(&path)?, &path)
    }

    /// The architecture that a `config.json` describes; `path` is for messages.
    ///
    /// # Errors
    /// As [`LlmConfig::load`].
    pub fn from_json(json: Value, path: &Path) -> std::result::Result<Self, EncoderError> {
        const SUPPORTED: &str = "\"llama\", \"qwen2\", \"qwen3\"";
        let kind = match json["model_type"].as_str() {
            Some("llama") => prenorm::decoder::Kind::Llama,
            Some("qwen2") => prenorm::decoder::Kind::Qwen2,
            Some("qwen3") => prenorm::decoder::Kind::Qwen3,
            _ => {
                let got = json["model_type"].to_string();
                return Err(unsupported(path, "model_type", got, SUPPORTED));
            }
        };
        let decoder = prenorm::decoder::parse(json.clone(), path, kind)?;
        if decoder.activation != Activation::Silu {
            let got = json["hidden_act"].to_string();
            return Err(unsupported(path, "hidden_act", got, "\"silu\""));
        }
        if !decoder.causal {
            return Err(unsupported(path, "is_causal", "false".into(), "true"));
        }
        // As in `transformers`: these families do not tie unless they say so.
        let tied = json["tie_word_embeddings"].as_bool().unwrap_or(false);
        Ok(LlmConfig { json, decoder, tied })
    }

    /// The `config.json`.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// D, the width of the model.
    pub fn width(&self) -> usize {
        self.decoder.width
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.decoder.layers
    }

    /// V, tokens in the vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.decoder.vocabulary
    }

    /// The longest sequence in tokens.
    pub fn max_positions(&self) -> usize {
        self.decoder.max_positions().unwrap_or(usize::MAX)
    }

    /// Whether the table of embeddings is the output map too.
    pub fn is_tied(&self) -> bool {
        self.tied
    }

    /// What of the architecture is computed.
    pub(crate) fn decoder(&self) -> &PrenormConfig {
        &self.decoder
    }

    /// The tensor of the output map [V, D].
    pub(crate) fn head(&self) -> String {
        match self.tied {
            true => self.name(self.decoder.embedding()),
            false => "lm_head.weight".into(),
        }
    }

    /// The name in a checkpoint of a tensor of the decoder.
    pub(crate) fn name(&self, tensor: &str) -> String {
        format!("model.{tensor}")
    }

    /// The same with another number of tokens.
    pub(crate) fn with_vocabulary(&self, tokens: usize) -> Self {
        let mut other = self.clone();
        other.json["vocab_size"] = tokens.into();
        other.decoder.vocabulary = tokens;
        other
    }

    /// Floating-point operations of the matrix products of one sequence: `tokens` are read, and the last `scored` of
    /// them are scored over the vocabulary. A product of [a, b] and [b, c] is 2abc.
    pub fn forward_flops(&self, tokens: usize, scored: usize) -> f64 {
        let decoder = &self.decoder;
        let maps: usize = decoder.maps().iter().map(|(_, to, from, _)| to * from).sum();
        let attention = decoder.heads * decoder.key_dim * (tokens + 1);
        2.0 * (tokens * self.layers() * (maps + attention) + scored * self.vocabulary() * self.width()) as f64
    }
}
