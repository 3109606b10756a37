//! A language model to generate with: the numbers of a checkpoint as they are, and beside them what was trained on it.

use super::added::Added;
use super::lora::Lora;
use super::{Llm, LlmConfig};
use crate::encoder::EncoderError;
use crate::error::Result;
use crate::frozen::Frozen;
use crate::weights::Weights;
use std::path::Path;

/// A language model that is read and not changed. Nothing is merged, as 16 bits would round it: adapters stay beside
/// the maps, and rows of further tokens behind the tables.
#[derive(Debug, Clone)]
pub struct FrozenLlm {
    /// With the further words in its vocabulary.
    pub(super) config: LlmConfig,
    pub(super) weights: Frozen,
    pub(super) adapters: Option<(Lora, Weights)>,
    /// Rows [N, D] of words behind the tables of the weights.
    pub(super) words_nd: Vec<f32>,
    /// Rows [N, D] of the tokens behind all words, which are read and never written.
    pub(super) read_only_nd: Vec<f32>,
}

impl FrozenLlm {
    /// Opens a checkpoint: files stay mapped.
    ///
    /// # Errors
    /// As [`Llm::open`].
    pub fn open(folder: &Path) -> std::result::Result<Self, EncoderError> {
        let (config, weights) = Llm::open(folder)?;
        Ok(FrozenLlm {
            config,
            weights,
            adapters: None,
            words_nd: Vec::new(),
            read_only_nd: Vec::new(),
        })
    }

    /// Puts adapters beside its maps, in the place of any that are there.
    ///
    /// # Errors
    /// [`crate::error::Error::TensorNames`] or [`crate::error::Error::ShapeMismatch`] if they are for another model.
    pub fn adapt(&mut self, lora: Lora, adapters: Weights) -> Result<()> {
        lora.check(&self.config)?;
        adapters.check(&lora.declarations(&self.config))?;
        self.adapters = Some((lora, adapters));
        Ok(())
    }

    /// Adds the tokens that a folder has, if there are any, as [`Added::merge`] does.
    ///
    /// # Errors
    /// Of the file; [`crate::error::Error::ShapeMismatch`] if they are for another model.
    pub fn add_tokens(&mut self, folder: &Path) -> Result<()> {
        if let Some((words_nd, read_only_nd)) = Added::rows_in(folder, &self.config)? {
            let words = words_nd.len() / self.config.width();
            self.config = self.config.with_vocabulary(self.config.vocabulary() + words);
            self.words_nd.extend(words_nd);
            self.read_only_nd = read_only_nd;
        }
        Ok(())
    }

    /// The architecture, with the further words in its vocabulary.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// The weights of the base, without the further words.
    pub fn weights(&self) -> &Frozen {
        &self.weights
    }

    /// The adapters of its maps, as [`Lora::declarations`] names their tensors.
    pub fn adapters(&self) -> Option<(&Lora, &Weights)> {
        let (lora, adapters) = self.adapters.as_ref()?;
        Some((lora, adapters))
    }

    /// Rows [N, D] of the words behind those of the base, in the table of embeddings and in the output map.
    pub fn words(&self) -> &[f32] {
        &self.words_nd
    }

    /// Rows [N, D] of the tokens behind the vocabulary, which are read and never written.
    pub fn read_only(&self) -> &[f32] {
        &self.read_only_nd
    }
}

impl From<Llm> for FrozenLlm {
    fn from(model: Llm) -> Self {
        FrozenLlm {
            config: model.config().clone(),
            read_only_nd: model.read_only().to_vec(),
            weights: model.into_weights().into(),
            adapters: None,
            words_nd: Vec::new(),
        }
    }
}
