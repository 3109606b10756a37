//! Which encoder a folder holds: `config.json`, told apart by its `model_type`.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::EncoderError;
use super::pooling::{self, Pooling};
use crate::bert::BertConfig;
use crate::prenorm::{PrenormConfig, decoder, t5};

/// Families by `model_type`, for messages.
const SUPPORTED: &str = "\"bert\", \"t5\", \"llama\", \"qwen2\", \"qwen3\"";

/// The configuration of an encoder.
#[derive(Debug, Clone)]
pub enum EncoderConfig {
    /// Blocks that end in a layer norm, learned absolute positions.
    Bert(BertConfig),
    /// Blocks that start with an RMS norm: T5's encoder, and decoder-only models.
    Prenorm(PrenormConfig),
}

impl EncoderConfig {
    /// Reads `folder/config.json` and checks that there is an encoder here that computes what it describes. (Without a
    /// `model_type` it is taken for BERT's, whose first configurations had none.)
    ///
    /// # Errors
    /// Of the file; an unknown `model_type`, or whatever a family does not support.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        let path = folder.join("config.json");
        let json = read_json(&path)?;
        match json.get("model_type").unwrap_or(&Value::Null) {
            Value::Null => BertConfig::parse(json, &path).map(EncoderConfig::Bert),
            Value::String(kind) => match kind.as_str() {
                "bert" => BertConfig::parse(json, &path).map(EncoderConfig::Bert),
                "t5" => t5::parse(json, &path).map(EncoderConfig::Prenorm),
                "llama" => decoder::parse(json, &path, decoder::Kind::Llama).map(EncoderConfig::Prenorm),
                "qwen2" => decoder::parse(json, &path, decoder::Kind::Qwen2).map(EncoderConfig::Prenorm),
                "qwen3" => decoder::parse(json, &path, decoder::Kind::Qwen3).map(EncoderConfig::Prenorm),
                kind => Err(unsupported(&path, "model_type", format!("{kind:?}"), SUPPORTED)),
            },
            other => Err(unsupported(&path, "model_type", other.to_string(), SUPPORTED)),
        }
    }

    /// D, the width of an embedding.
    pub fn dim(&self) -> usize {
        match self {
            EncoderConfig::Bert(config) => config.hidden_size,
            EncoderConfig::Prenorm(config) => config.width,
        }
    }

    /// The longest sequence the model has positions for, in tokens; `None` where positions are relative.
    pub fn max_positions(&self) -> Option<usize> {
        match self {
            EncoderConfig::Bert(config) => Some(config.max_position_embeddings),
            EncoderConfig::Prenorm(config) => config.max_positions(),
        }
    }

    /// The pooling of the checkpoint in `folder`: what its `1_Pooling/config.json` (of sentence-transformers) says;
    /// without one the last token where attention is causal, and the mean elsewhere.
    ///
    /// # Errors
    /// Of the file, or a pooling that is not supported.
    pub fn pooling(&self, folder: &Path) -> Result<Pooling, EncoderError> {
        let path = folder.join(pooling::FILE);
        match (path.is_file(), self) {
            (true, _) => pooling::read(&path),
            (false, EncoderConfig::Prenorm(config)) if config.causal => Ok(Pooling::LastToken),
            (false, _) => Ok(Pooling::Mean),
        }
    }
}

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value, EncoderError> {
    let text = std::fs::read_to_string(path).map_err(|source| EncoderError::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_json::from_str(&text).map_err(|e| malformed(path, &e))
}

/// The keys of a configuration that a family looks at.
pub(crate) fn keys<T: DeserializeOwned>(json: Value, path: &Path) -> Result<T, EncoderError> {
    serde_json::from_value(json).map_err(|e| malformed(path, &e))
}

fn malformed(path: &Path, problem: &serde_json::Error) -> EncoderError {
    EncoderError::Malformed {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

/// The error of a key whose value is not supported.
pub(crate) fn unsupported(path: &Path, key: &'static str, got: String, supported: &'static str) -> EncoderError {
    EncoderError::Unsupported {
        path: path.to_owned(),
        key,
        got,
        supported,
    }
}

/// Refuses sizes of 0.
pub(crate) fn at_least_one(path: &Path, sizes: &[(&'static str, usize)]) -> Result<(), EncoderError> {
    match sizes.iter().find(|(_, size)| *size == 0) {
        Some((key, _)) => Err(unsupported(path, key, "0".into(), "at least 1")),
        None => Ok(()),
    }
}
