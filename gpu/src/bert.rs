//! BERT encoder: configuration, and the two forward passes (packed on the CPU, padded on any device).
//!
//! Source: Devlin et al. 2019 (arXiv 1810.04805), in the layout of Hugging Face `transformers`: post-layer-norm blocks,
//! learned absolute positions. Shape legend: B batch, T tokens, D model, H heads, K head dim.

mod forward;
mod padded;
#[cfg(test)]
mod tests;
mod weights;

use std::path::Path;

use serde::Deserialize;

use crate::encoder::{Activation, EncoderError, at_least_one, keys, read_json, unsupported};

pub use forward::BertEncoder;
pub use padded::PaddedBert;

/// `config.json` of the BERT family; keys that do not change the forward pass are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct BertConfig {
    /// Architecture family; `bert` where present.
    #[serde(default)]
    pub model_type: Option<String>,
    /// D, width of the model.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// H, heads of attention; divides D.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: usize,
    /// Longest sequence in tokens.
    pub max_position_embeddings: usize,
    /// Token types; only type 0 is used.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Added to the variance in layer norm.
    #[serde(default = "default_epsilon")]
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward blocks.
    #[serde(default = "default_activation")]
    pub hidden_act: String,
    /// Kind of positions; `absolute` where present.
    #[serde(default)]
    pub position_embedding_type: Option<String>,
    /// Causal attention; must be absent or false.
    #[serde(default)]
    pub is_decoder: bool,
}

impl BertConfig {
    /// Reads `folder/config.json` and checks that this encoder computes what it describes.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        let path = folder.join("config.json");
        Self::parse(read_json(&path)?, &path)
    }

    /// The same of what `path` holds.
    pub(crate) fn parse(json: serde_json::Value, path: &Path) -> Result<Self, EncoderError> {
        let config: BertConfig = keys(json, path)?;
        config.check(path)?;
        Ok(config)
    }

    /// The activation that `hidden_act` names, or `None` where it is unknown.
    pub fn activation(&self) -> Option<Activation> {
        Activation::named(&self.hidden_act)
    }

    fn check(&self, path: &Path) -> Result<(), EncoderError> {
        let refuse = |key, got: String, supported| Err(unsupported(path, key, got, supported));
        if let Some(kind) = self.model_type.as_ref().filter(|kind| *kind != "bert") {
            return refuse("model_type", format!("{kind:?}"), "\"bert\"");
        }
        if let Some(kind) = self.position_embedding_type.as_ref().filter(|kind| *kind != "absolute") {
            return refuse("position_embedding_type", format!("{kind:?}"), "\"absolute\"");
        }
        if self.is_decoder {
            return refuse("is_decoder", "true".into(), "false");
        }
        if self.activation().is_none() {
            return refuse("hidden_act", format!("{:?}", self.hidden_act), Activation::NAMES);
        }
        let sizes = [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("vocab_size", self.vocab_size),
        ];
        at_least_one(path, &sizes)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return refuse(
                "num_attention_heads",
                self.num_attention_heads.to_string(),
                "a divisor of hidden_size",
            );
        }
        Ok(())
    }
}

fn two() -> usize {
    2
}

fn default_epsilon() -> f64 {
    1e-12
}

fn default_activation() -> String {
    "gelu".into()
}
