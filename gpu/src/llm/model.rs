//! A language model's weights: names, shapes, starts, counts, and the checkpoint folder.

use super::LlmConfig;
use crate::encoder::{Checkpoint, EncoderError, Layout};
use crate::error::{Error, Result};
use crate::frozen::{Frozen, FrozenTensor};
use crate::prenorm::decoder;
use crate::weights::{Declaration, Init, Weights};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Standard deviation of all embeddings and linear maps of a fresh model, as `transformers` has it.
const SPREAD: f64 = 0.02;

/// A shape of one's own: a Qwen3 (RMS norm, rotary positions, SwiGLU, norms of queries and keys, no biases).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// V, tokens in the vocabulary.
    pub vocabulary: usize,
    /// D, width of the model.
    pub d_model: usize,
    /// Blocks.
    pub layers: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head, even.
    pub key_dim: usize,
    /// Width inside the feed-forward blocks.
    pub d_ff: usize,
    /// The longest sequence in tokens.
    pub max_tokens: usize,
}

/// Parameter counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Token embeddings; the output map too where it is tied.
    pub embeddings: usize,
    /// An output map of its own.
    pub head: usize,
    /// Linear maps of all blocks, with their biases.
    pub blocks: usize,
    /// Gains of the norms.
    pub norms: usize,
}

impl Parameters {
    /// All of them.
    pub fn total(&self) -> usize {
        self.embeddings + self.head + self.blocks + self.norms
    }
}

impl LlmConfig {
    /// The architecture of a shape.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] with what does not fit.
    pub fn of_shape(shape: &Shape) -> Result<Self> {
        let json = json!({
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "head_dim": shape.key_dim,
            "hidden_act": "silu",
            "hidden_size": shape.d_model,
            "initializer_range": SPREAD,
            "intermediate_size": shape.d_ff,
            "max_position_embeddings": shape.max_tokens,
            "model_type": "qwen3",
            "num_attention_heads": shape.heads,
            "num_hidden_layers": shape.layers,
            "num_key_value_heads": shape.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": true,
            "torch_dtype": "float32",
            "use_sliding_window": false,
            "vocab_size": shape.vocabulary,
        });
        match Self::from_json(json, Path::new("config.json")) {
            Ok(config) => Ok(config),
            Err(EncoderError::Unsupported {
                key, got, supported, ..
            }) => {
                let field = match key {
                    "vocab_size" => "vocabulary",
                    "hidden_size" => "d_model",
                    "intermediate_size" => "d_ff",
                    "num_attention_heads" => "heads",
                    "num_hidden_layers" => "layers",
                    "num_key_value_heads" => "kv_heads",
                    "head_dim" => "key_dim",
                    "max_position_embeddings" => "max_tokens",
                    other => other,
                };
                let supported = supported.replace("num_attention_heads", "heads");
                Err(Error::config(field, format!("is {got}, supported: {supported}")))
            }
            Err(error) => Err(Error::config("shape", error.to_string())),
        }
    }

    /// Names, shapes and starts of all weights, as a checkpoint names them.
    pub fn declarations(&self) -> Vec<Declaration> {
        let norm = |name: &str| name.ends_with("norm.weight");
        let start = |name: &str| match name {
            name if norm(name) => Init::Constant(1.0),
            name if name.ends_with(".bias") => Init::Constant(0.0),
            _ => Init::Normal(SPREAD),
        };
        let tensors = self.decoder.layout().expected.into_iter();
        let mut all: Vec<Declaration> = tensors
            .map(|(name, shape)| Declaration {
                init: start(&name),
                name: self.name(&name),
                shape,
            })
            .collect();
        if !self.tied {
            all.push(Declaration {
                name: self.head(),
                shape: vec![self.vocabulary(), self.width()],
                init: Init::Normal(SPREAD),
            });
        }
        all
    }

    /// Number of parameters of each part.
    pub fn parameters(&self) -> Parameters {
        let mut count = Parameters::default();
        for d in self.declarations() {
            let n: usize = d.shape.iter().product();
            match d.name.as_str() {
                "lm_head.weight" => count.head += n,
                "model.embed_tokens.weight" => count.embeddings += n,
                name if name.ends_with("norm.weight") => count.norms += n,
                _ => count.blocks += n,
            }
        }
        count
    }
}

/// A language model: its architecture and all its weights, in f32.
#[derive(Debug, Clone)]
pub struct Llm {
    config: LlmConfig,
    weights: Weights,
    /// Rows [N, D] of tokens behind the vocabulary, which are read and never written.
    read_only_nd: Vec<f32>,
}

impl Llm {
    /// A fresh model, drawn from the seed.
    pub fn init(config: &LlmConfig, seed: u64) -> Self {
        Llm {
            weights: Weights::init(&config.declarations(), seed),
            config: config.clone(),
            read_only_nd: Vec::new(),
        }
    }

    /// A model of given weights.
    ///
    /// # Errors
    /// [`Error::TensorNames`] or [`Error::ShapeMismatch`].
    pub fn from_weights(config: &LlmConfig, weights: Weights) -> Result<Self> {
        weights.check(&config.declarations())?;
        Ok(Llm {
            config: config.clone(),
            weights,
            read_only_nd: Vec::new(),
        })
    }

    /// Reads a checkpoint: `config.json`, and `model.safetensors` or shards with their index, in f32, f16 or bf16.
    ///
    /// # Errors
    /// As [`Llm::open`].
    pub fn load(folder: &Path) -> std::result::Result<Self, EncoderError> {
        let (config, frozen) = Self::open(folder)?;
        Ok(Llm {
            config,
            weights: frozen.to_weights(),
            read_only_nd: Vec::new(),
        })
    }

    /// Opens a checkpoint to read its weights only: files stay mapped, in their own numbers.
    ///
    /// # Errors
    /// Of the files, with what is missing, too much, or of another shape or element type.
    pub fn open(folder: &Path) -> std::result::Result<(LlmConfig, Frozen), EncoderError> {
        let config = LlmConfig::load(folder)?;
        let mut layout = config.decoder.layout();
        if !config.tied {
            layout
                .expected
                .push((config.head(), vec![config.vocabulary(), config.width()]));
            layout.current_name = decoder::name_in_whole;
        }
        let checkpoint = Arc::new(Checkpoint::open(folder, &layout)?);
        let Layout { expected, .. } = layout;
        let mut tensors = Vec::with_capacity(expected.len());
        for (from, shape) in expected {
            let name = match from.starts_with("lm_head.") {
                true => from.clone(),
                false => config.name(&from),
            };
            tensors.push(FrozenTensor::of(&checkpoint, from, name, shape)?);
        }
        Ok((config, Frozen::from_tensors(tensors)))
    }

    /// Writes a checkpoint that `transformers` loads: `config.json` and `model.safetensors`, in f32.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::InvalidData`] if there are tokens that are read and never written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        if !self.read_only_nd.is_empty() {
            let reason = "a checkpoint has no place for items as soft tokens";
            return Err(Error::InvalidData(reason.into()));
        }
        // `transformers` rounds what it reads to what the config says.
        let mut json = self.config.json.clone();
        if json.get("dtype").is_none() || json.get("torch_dtype").is_some() {
            json["torch_dtype"] = "float32".into();
        }
        if json.get("dtype").is_some() {
            json["dtype"] = "float32".into();
        }
        let about = [("format".to_string(), "pt".to_string())].into();
        self.weights.save_with(folder, &json, Some(about))
    }

    /// The architecture.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Rows [N, D] of the tokens behind the vocabulary, which are read and never written.
    pub fn read_only(&self) -> &[f32] {
        &self.read_only_nd
    }

    /// Adds words [n, D] to the vocabulary, and tokens [N, D] behind it that are only read.
    pub(crate) fn add_tokens(&mut self, words_nd: &[f32], read_only_nd: Vec<f32>) -> Result<()> {
        let d = self.config.width();
        let mut tables = vec![self.config.name(self.config.decoder.embedding())];
        if !self.config.tied {
            tables.push(self.config.head());
        }
        let vocabulary = self.config.vocabulary() + words_nd.len() / d;
        for name in tables {
            let index = self.weights.index(&name)?;
            let table = &mut self.weights.tensors_mut()[index];
            table.data.extend_from_slice(words_nd);
            table.shape = vec![vocabulary, d];
        }
        self.config = self.config.with_vocabulary(vocabulary);
        self.read_only_nd = read_only_nd;
        Ok(())
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The weights, to change in place; names and shapes must stay.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// The weights, alone.
    pub fn into_weights(self) -> Weights {
        self.weights
    }
}
