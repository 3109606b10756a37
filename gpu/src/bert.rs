//! BERT encoder: configuration, errors, and the two forward passes (packed on the CPU, padded on any device).
//!
//! Source: Devlin et al. 2019 (arXiv 1810.04805), in the layout of Hugging Face `transformers`: post-layer-norm blocks,
//! learned absolute positions. Shape legend: B batch, T tokens, D model, H heads, K head dim.

mod forward;
mod padded;
#[cfg(test)]
mod tests;
mod weights;

use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use forward::BertEncoder;
pub use padded::PaddedBert;
pub use weights::BertWeights;

/// What can be wrong with a BERT checkpoint or with what it is asked to encode.
#[derive(Debug, thiserror::Error)]
pub enum BertError {
    /// A file of the checkpoint cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the checkpoint is there but is not what it should be.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration asks for something this encoder does not compute.
    #[error("{path}: {key} is {got}, supported: {supported}")]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The key in it.
        key: &'static str,
        /// Its value.
        got: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// Tensors that the configuration implies are not in the checkpoint.
    #[error("{path}: {} missing of {expected} tensors: {}", missing.len(), missing.join(", "))]
    MissingTensors {
        /// The weights file.
        path: PathBuf,
        /// The names, without prefix.
        missing: Vec<String>,
        /// How many tensors the configuration implies.
        expected: usize,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("{path}: tensor {name} has shape {got:?}, the configuration implies {expected:?}")]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
        /// Shape in the file.
        got: Vec<usize>,
        /// Shape the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that is not a float of 16 or 32 bits.
    #[error("{path}: tensor {name} has element type {got}, supported: F16, BF16, F32")]
    ElementType {
        /// The weights file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
        /// Its element type.
        got: String,
    },
    /// A sequence to encode has no token.
    #[error("sequence {sequence} has no token")]
    EmptySequence {
        /// Index of the sequence.
        sequence: usize,
    },
    /// A sequence to encode is longer than the model's positions.
    #[error("sequence {sequence} has {got} tokens, the model has {most} positions")]
    TooLong {
        /// Index of the sequence.
        sequence: usize,
        /// Its tokens.
        got: usize,
        /// The most tokens the model takes.
        most: usize,
    },
    /// A token id lies outside the vocabulary.
    #[error("sequence {sequence}, token {position}: id {id} is outside the vocabulary of {vocabulary}")]
    UnknownToken {
        /// Index of the sequence.
        sequence: usize,
        /// Position of the token in it.
        position: usize,
        /// The token id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The offsets of a packed batch do not rise from 0 to the number of tokens.
    #[error("offsets must rise from 0 to the {tokens} tokens of the batch")]
    Offsets {
        /// Tokens in the batch.
        tokens: usize,
    },
    /// The device refused.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
}

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

/// Activation of the feed-forward blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// GELU with erf (`gelu`).
    Gelu,
    /// GELU with tanh (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// ReLU (`relu`).
    Relu,
}

impl BertConfig {
    /// Reads `folder/config.json` and checks that this encoder computes what it describes.
    pub fn load(folder: &Path) -> Result<Self, BertError> {
        let path = folder.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| BertError::Read {
            path: path.clone(),
            source,
        })?;
        let config: BertConfig = serde_json::from_str(&text).map_err(|e| BertError::Malformed {
            path: path.clone(),
            problem: e.to_string(),
        })?;
        config.check(&path)?;
        Ok(config)
    }

    /// The activation that `hidden_act` names, or `None` where it is unknown.
    pub fn activation(&self) -> Option<Activation> {
        match self.hidden_act.as_str() {
            "gelu" => Some(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Activation::GeluTanh),
            "relu" => Some(Activation::Relu),
            _ => None,
        }
    }

    fn check(&self, path: &Path) -> Result<(), BertError> {
        let refuse = |key, got: String, supported| {
            Err(BertError::Unsupported {
                path: path.to_owned(),
                key,
                got,
                supported,
            })
        };
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
            let supported = "\"gelu\", \"gelu_new\", \"gelu_pytorch_tanh\", \"relu\"";
            return refuse("hidden_act", format!("{:?}", self.hidden_act), supported);
        }
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("num_attention_heads", self.num_attention_heads),
            ("intermediate_size", self.intermediate_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
            ("vocab_size", self.vocab_size),
        ] {
            if value == 0 {
                return refuse(key, "0".into(), "at least 1");
            }
        }
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

/// Checks a packed batch: offsets rise from 0 to the number of tokens, no sequence is empty or too long, every id is
/// in the vocabulary.
pub(crate) fn check_batch(config: &BertConfig, ids_t: &[u32], offsets: &[usize]) -> Result<(), BertError> {
    let rising = offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.first() != Some(&0) || offsets.last() != Some(&ids_t.len()) || !rising {
        return Err(BertError::Offsets { tokens: ids_t.len() });
    }
    for (sequence, span) in offsets.windows(2).enumerate() {
        let got = span[1] - span[0];
        if got == 0 {
            return Err(BertError::EmptySequence { sequence });
        }
        if got > config.max_position_embeddings {
            return Err(BertError::TooLong {
                sequence,
                got,
                most: config.max_position_embeddings,
            });
        }
        let ids = &ids_t[span[0]..span[1]];
        if let Some(position) = ids.iter().position(|id| *id as usize >= config.vocab_size) {
            let (id, vocabulary) = (ids[position], config.vocab_size);
            return Err(BertError::UnknownToken {
                sequence,
                position,
                id,
                vocabulary,
            });
        }
    }
    Ok(())
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
