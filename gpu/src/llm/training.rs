//! How a language model is trained: prompts of which the last tokens are scored; the base whole, or frozen under
//! adapters.

use super::added::Added;
use super::lora::Lora;
use super::{Batch, Llm, LlmConfig, Network, loss};
use crate::error::{Error, Result};
use crate::frozen::Frozen;
use crate::ops::{Graph, Noise, Tape};
use crate::random::Key;
use crate::samples::{Ragged, batches};
use crate::train::{Model, Place, TrainingSet};
use crate::weights::{Declaration, Weights};
use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::sync::Arc;

/// Tokens that an evaluation reads together.
pub(super) const EVALUATION_TOKENS: usize = 4096;

/// Prompts with what follows them. Those of a batch are packed: none is padded, none sees another.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    tokens: Ragged<u32>,
    loss_from: Vec<u32>,
}

impl Prompts {
    /// Prompts of tokens whose loss counts from token `loss_from` on (from 0).
    ///
    /// # Errors
    /// [`Error::InvalidData`] naming the first prompt of which nothing is read or nothing is scored.
    pub fn new(tokens: Ragged<u32>, loss_from: Vec<u32>) -> Result<Self> {
        if tokens.len() != loss_from.len() {
            return Err(Error::shape("loss_from", tokens.len(), loss_from.len()));
        }
        let bad = |(i, from): (usize, &u32)| *from == 0 || *from as usize >= tokens.get(i).len();
        if let Some(i) = loss_from.iter().enumerate().position(bad) {
            let (length, from) = (tokens.get(i).len(), loss_from[i]);
            let reason = format!("prompt {i} has {length} tokens and its loss counts from token {from}");
            return Err(Error::InvalidData(format!(
                "{reason}; it needs one before and one behind"
            )));
        }
        Ok(Prompts { tokens, loss_from })
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.loss_from.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.loss_from.is_empty()
    }

    /// The tokens of prompt `i`.
    pub fn tokens(&self, i: usize) -> &[u32] {
        self.tokens.get(i)
    }

    /// How many tokens of prompt `i` are scored.
    pub fn scored(&self, i: usize) -> usize {
        self.tokens(i).len() - self.loss_from[i] as usize
    }

    /// Some prompts as a batch, and the tokens that are scored. The last token of a prompt is scored, never read.
    pub fn pack(&self, rows: &[u32]) -> (Batch, Arc<[u32]>) {
        let (mut tokens, mut offsets, mut scored, mut targets) = (vec![], vec![0], vec![], vec![]);
        for &row in rows {
            let prompt = self.tokens(row as usize);
            let from = self.loss_from[row as usize] as usize;
            tokens.extend_from_slice(&prompt[..prompt.len() - 1]);
            offsets.push(tokens.len());
            scored.push(prompt.len() - from);
            targets.extend_from_slice(&prompt[from..]);
        }
        let batch = Batch {
            tokens_t: tokens.into(),
            offsets: offsets.into(),
            scored,
        };
        (batch, targets.into())
    }

    /// Checks every token and length against a model.
    ///
    /// # Errors
    /// [`Error::InvalidData`] naming the first prompt that does not fit.
    pub fn check(&self, config: &LlmConfig, added: &Added) -> Result<()> {
        let (readable, writable) = (added.readable(config), added.writable(config));
        let most = config.max_positions();
        for i in 0..self.len() {
            let tokens = self.tokens(i);
            if let Some(token) = tokens.iter().find(|token| **token as usize >= readable) {
                let reason = format!("prompt {i} has token {token}, the model's vocabulary has {readable}");
                return Err(Error::InvalidData(format!(
                    "{reason}: the tokenizer is that of another model"
                )));
            }
            let scored = &tokens[self.loss_from[i] as usize..];
            if let Some(token) = scored.iter().find(|token| **token as usize >= writable) {
                let reason = format!("prompt {i} scores token {token}, which is read only");
                return Err(Error::InvalidData(reason));
            }
            if tokens.len() - 1 > most {
                let reason = format!("prompt {i} has {} tokens, the model has {most} positions", tokens.len());
                return Err(Error::InvalidData(reason));
            }
        }
        Ok(())
    }
}

impl TrainingSet for Prompts {
    fn count(&self) -> usize {
        self.len()
    }

    fn terms(&self, rows: &[u32]) -> usize {
        rows.iter().map(|row| self.scored(*row as usize)).sum()
    }

    fn batches(&self, batch_size: usize, bucket_batches: usize, epoch: Key) -> Vec<Vec<u32>> {
        batches(self.len(), batch_size, bucket_batches, epoch, |i| self.tokens(i).len())
    }

    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for i in 0..self.len() {
            let tokens = self.tokens(i);
            let head = [tokens.len() as u32, self.loss_from[i]];
            let bytes: Vec<u8> = head.iter().chain(tokens).flat_map(|n| n.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Prompts whose loss decides which weights are kept.
#[derive(Debug, Clone, Copy)]
pub struct Validation<'a> {
    /// The prompts, with what follows.
    pub prompts: &'a Prompts,
    /// Evaluate a seeded sample of so many; `None` takes all.
    pub users: Option<usize>,
}

/// What of a model is trained.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tuning {
    /// All weights.
    Full,
    /// Adapters; the base is frozen.
    Lora(Lora),
}

/// The weights that a training starts from.
#[derive(Debug, Clone)]
pub enum Base {
    /// Drawn from the training's seed.
    Fresh,
    /// Given, with a digest of them.
    Given(Arc<Frozen>, String),
}

/// Everything that decides a training's model.
#[derive(Debug, Clone)]
pub struct TunedConfig {
    /// The architecture.
    pub config: LlmConfig,
    /// The start.
    pub base: Base,
    /// What is trained of it.
    pub tuning: Tuning,
    /// Tokens beyond its vocabulary, which are trained always.
    pub added: Added,
    /// Compute activations anew on the way back in place of keeping them. It changes no result.
    pub recompute: bool,
}

impl Serialize for TunedConfig {
    /// The base by its digest.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("TunedConfig", 4)?;
        fields.serialize_field("config", self.config.json())?;
        fields.serialize_field("base", self.base_digest().unwrap_or("fresh"))?;
        fields.serialize_field("tuning", &self.tuning)?;
        fields.serialize_field("added", &self.added.identity())?;
        fields.end()
    }
}

impl TunedConfig {
    /// The model with what is put on it.
    pub fn network(&self) -> Network<'_> {
        Network {
            config: &self.config,
            lora: self.lora(),
            added: &self.added,
            recompute: self.recompute,
        }
    }

    /// The adapters, if they are what is trained.
    pub fn lora(&self) -> Option<&Lora> {
        match &self.tuning {
            Tuning::Full => None,
            Tuning::Lora(lora) => Some(lora),
        }
    }

    /// A digest of the weights that the training starts from, if they were given.
    pub fn base_digest(&self) -> Option<&str> {
        match &self.base {
            Base::Fresh => None,
            Base::Given(_, digest) => Some(digest),
        }
    }

    /// The same model as it is evaluated.
    fn without_dropout(&self) -> Self {
        let mut quiet = self.clone();
        if let Tuning::Lora(lora) = &mut quiet.tuning {
            lora.dropout = 0.0;
        }
        quiet
    }
}

/// A language model under training.
#[derive(Debug, Clone)]
pub struct Tuned {
    config: TunedConfig,
    weights: Weights,
    frozen: Option<Arc<Frozen>>,
}

impl Tuned {
    /// The model with what was trained: adapters are merged into the base.
    ///
    /// # Errors
    /// None for a model that was made here.
    pub fn merged(&self) -> Result<Llm> {
        let config = &self.config.config;
        let mut model = match (self.config.lora(), &self.frozen) {
            (Some(lora), Some(frozen)) => {
                let mut weights = frozen.to_weights();
                lora.merge(&self.weights, &mut weights)?;
                Llm::from_weights(config, weights)?
            }
            _ => self.without_added()?,
        };
        self.config.added.merge_into(&self.weights, &mut model)?;
        Ok(model)
    }

    /// The trained model without the tokens that were added, which [`Added::save`] writes apart.
    ///
    /// # Errors
    /// [`Error::TensorNames`] where adapters were trained, not the model.
    pub fn without_added(&self) -> Result<Llm> {
        let own = self.weights.tensors().iter().filter(|t| !t.name.starts_with("added."));
        Llm::from_weights(&self.config.config, Weights::from_tensors(own.cloned().collect()))
    }

    fn with(config: &TunedConfig, weights: Weights, seed: u64) -> Result<Self> {
        let frozen = match (&config.tuning, &config.base) {
            (Tuning::Full, _) => None,
            (Tuning::Lora(_), Base::Given(base, _)) => Some(base.clone()),
            (Tuning::Lora(_), Base::Fresh) => Some(Arc::new(Llm::init(&config.config, seed).into_weights().into())),
        };
        Ok(Tuned {
            config: config.clone(),
            weights,
            frozen,
        })
    }
}

impl Model for Tuned {
    type Config = TunedConfig;
    type Samples = Prompts;
    type Validation<'a> = Validation<'a>;

    fn declarations(config: &TunedConfig) -> Vec<Declaration> {
        let mut all = match &config.tuning {
            Tuning::Full => config.config.declarations(),
            Tuning::Lora(lora) => lora.declarations(&config.config),
        };
        all.extend(config.added.declarations(&config.config));
        all
    }

    fn init(config: &TunedConfig, seed: u64) -> Result<Self> {
        if let Tuning::Lora(lora) = &config.tuning {
            lora.check(&config.config)?;
        }
        if let Base::Given(base, _) = &config.base {
            base.check(&config.config.declarations())?;
        }
        let weights = match (&config.tuning, &config.base) {
            (Tuning::Full, Base::Given(base, _)) => {
                let added = Weights::init(&config.added.declarations(&config.config), seed);
                Weights::from_tensors([base.to_weights().into_tensors(), added.into_tensors()].concat())
            }
            _ => Weights::init(&Self::declarations(config), seed),
        };
        Tuned::with(config, weights, seed)
    }

    fn from_weights(config: &TunedConfig, weights: Weights) -> Result<Self> {
        weights.check(&Self::declarations(config))?;
        Tuned::with(config, weights, 0)
    }

    fn config(&self) -> &TunedConfig {
        &self.config
    }

    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    fn frozen(&self) -> Option<&Frozen> {
        self.frozen.as_deref()
    }

    fn check(config: &TunedConfig, samples: &Prompts, validation: Option<Validation>) -> Result<()> {
        if samples.is_empty() {
            return Err(Error::InvalidData("there are no training samples".into()));
        }
        samples.check(&config.config, &config.added)?;
        match validation {
            Some(Validation { prompts, .. }) if prompts.is_empty() => {
                Err(Error::InvalidData("there are no validation samples".into()))
            }
            Some(Validation { prompts, .. }) => prompts.check(&config.config, &config.added),
            None => Ok(()),
        }
    }

    fn loss<G: Graph>(g: &mut G, config: &TunedConfig, samples: &Prompts, rows: &[u32], key: Key) -> Result<G::Node> {
        let (batch, targets) = samples.pack(rows);
        let mut noise = Noise::new(0.0, key);
        loss(g, config.network(), &batch, &targets, &mut noise)
    }

    fn forward_flops(config: &TunedConfig, samples: &Prompts, row: usize) -> f64 {
        config
            .config
            .forward_flops(samples.tokens(row).len() - 1, samples.scored(row))
    }

    /// The negative mean loss of a token, and that of a whole title.
    fn evaluate(
        mut place: Place<'_, Self>,
        validation: Validation,
        key: Key,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<(f64, f64)> {
        let prompts = validation.prompts;
        let quiet = match &place {
            Place::Cpu(model, _) => model.config.without_dropout(),
            Place::Device(config, _) => config.without_dropout(),
        };
        let mut rows = key.permutation(prompts.len());
        rows.truncate(validation.users.unwrap_or(usize::MAX).max(1));
        rows.sort_unstable();
        let (mut sum, mut tokens, mut done) = (0.0, 0, 0);
        while done < rows.len() {
            let mut read = 0;
            let fits = |row: &&u32| {
                read += prompts.tokens(**row as usize).len();
                read <= EVALUATION_TOKENS
            };
            let count = rows[done..].iter().take_while(fits).count().max(1);
            let batch = &rows[done..done + count];
            let mean = match &mut place {
                Place::Cpu(model, workspace) => {
                    let mut tape = Tape::new(&model.weights, workspace).with_frozen(model.frozen.as_deref());
                    let node = Self::loss(&mut tape, &quiet, prompts, batch, key)?;
                    tape.values(&node)?[0]
                }
                Place::Device(_, stock) => {
                    let node = Self::loss(&mut **stock, &quiet, prompts, batch, key)?;
                    stock.values(&node)?[0]
                }
            };
            let terms = prompts.terms(batch);
            sum += f64::from(mean) * terms as f64;
            tokens += terms;
            done += count;
            progress(done, rows.len())?;
        }
        Ok((-sum / tokens as f64, -sum / rows.len() as f64))
    }

    fn identity(validation: Validation) -> serde_json::Value {
        serde_json::json!([validation.prompts.digest(), validation.users])
    }
}
