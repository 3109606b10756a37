//! Trains a language model to write the title of the next item: adapters on a checkpoint, or a model of one's own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, Operator};
use sluice_engine::process::machine_memory;
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::device::free_memory;
use sluice_gpu::error::Error as GpuError;
use sluice_gpu::frozen::Frozen;
use sluice_gpu::llm::added::Added;
use sluice_gpu::llm::lora::Lora as GpuLora;
use sluice_gpu::llm::memory::{Memory, estimate};
use sluice_gpu::llm::{Base, LlmConfig, Prompts, Shape as GpuShape, Tuned, TunedConfig, Tuning, Validation};
use sluice_gpu::optim::AdamConfig;
use sluice_gpu::train::{Model, Site, TrainOptions, train_model, training_flops};

use crate::language_models::{
    LAYOUT, answered_prompts, bind_checkpoint, first_new_token, open_checkpoint, require_evaluation, require_tokens,
    shape, soft_tokens, tokens_end, train_prompts,
};
use crate::models::{self, explain};
use crate::quantizers::require_embeddings;
use crate::schema::{ITEM_ID, USER_ID};
use crate::tokenize_prompts::LOSS_FROM;
use crate::tokenize_prompts::titles::SOFT_TOKEN;
use crate::training::{
    Precision, Schedule, Shared, Watch, check_precision, checkpoint, config_problem, curve_fields, curve_table, devices,
};

const PROMPTS: &str = "prompts";
const VALID: &str = "valid";
const TITLES: &str = "titles";
const BASE: &str = "base";
const VECTORS: &str = "vectors";
const MODEL: &str = "model";
const CURVE: &str = "curve";
const METRICS: [&str; 2] = ["valid_loss", "valid_title_loss"];
const GIB: f64 = (1u64 << 30) as f64;

/// Trains a language model to write the title of the next item.
///
/// # In
/// `prompts`: train prompts of `tokenize_prompts`. `valid`: its evaluation rows for the valid split, with `titles`, its
/// port of that name: the loss of their titles decides when to stop and which weights are kept; they are never trained
/// on. `base`: a language model of another stage to start from, in place of `model`. `vectors`: `item_id`, `embedding`
/// of the catalogue, for prompts with `soft_tokens`: the token of an item is read as its vector (of unit length), brought
/// to the width of the model by two trained layers.
///
/// # Out
/// `model`: a folder. With `lora` an adapter as `peft` has it, `adapter_config.json` and `adapter_model.safetensors`;
/// without, a checkpoint as `transformers` has it, `config.json` and `model.safetensors`. `curve`: `step, epoch,
/// train_loss, valid_loss, valid_title_loss, learning_rate`, a row per evaluation: losses of a token and of a whole
/// title, in nats. The notes say how much memory was estimated, and count parameters by part, and valid prompts that were
/// left out as their target has no title.
///
/// # Source
/// "LLM-as-RS" of the scaling study (arXiv 2509.25522): a frozen language model with LoRA (Hu et al. 2021, arXiv
/// 2106.09685) on all seven maps of its blocks, about 1 % of the parameters; cross-entropy on the target's title and the
/// end of text. Defaults of learning rate and batch are those of GLoSS (LLaMA-3: rank 16, alpha 16, 1e-4, 16 prompts).
///
/// # Deviates
/// Prompts of a batch are packed without padding, and none sees another. In the last block only the scored tokens go
/// through queries and feed-forward. Families: `llama`, `qwen2`, `qwen3`. On the CPU everything is computed in f32,
/// whatever the checkpoint has; what adapters leave frozen stays mapped in the numbers of its file.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainLlm {
    /// The checkpoint to start from: a folder with `config.json` and `model.safetensors` (or shards with an index) below
    /// the data root; or the name of a model on the Hugging Face hub, if it was downloaded into the hub's cache.
    pub model: Option<String>,
    /// In place of `model`: a model of this shape, from scratch.
    pub shape: Option<ModelShape>,
    /// Train adapters and leave the model as it is, `model` or `base`; null trains all weights.
    pub lora: Option<Lora>,
    /// Tokens that the model does not have, such as those of semantic ids, get rows of their own in its embeddings and its
    /// output map, which are trained beside adapters. Those that it has already, as the base was trained with them, are
    /// words like others.
    pub new_tokens: bool,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u32,
    /// Decoupled weight decay (AdamW).
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm; null leaves them.
    pub clip_norm: Option<f64>,
    /// Prompts of a batch.
    pub batch_size: u32,
    /// Batches of a step: their gradients are added, so `batch_size` x `accumulate` prompts make a step in the memory
    /// of one batch.
    pub accumulate: u32,
    /// Every batch is cut into so many parts, each with a gradient of its own, which are added up in their order. A run
    /// over several processes (`--hosts`) computes them side by side; how many processes changes no bit. Dropout is
    /// drawn part by part, so another number of parts is another training. With `device: auto` and `resources: { gpus: M }`
    /// a process computes them on M GPUs.
    #[schemars(extend("x-late" = true))]
    pub replicas: u32,
    /// Most steps. Where `schedule` does not depend on it, a longer training goes on from the end of a shorter one.
    #[schemars(extend("x-extent" = true))]
    pub max_steps: u32,
    /// Most passes over the prompts; null for no limit. See `max_steps`.
    #[schemars(extend("x-extent" = true))]
    pub max_epochs: Option<u32>,
    /// Steps between evaluations on valid.
    pub eval_every: u32,
    /// Stop after so many evaluations without a lower loss.
    pub patience: u32,
    /// Evaluate on this many valid users, drawn once; null for all.
    pub valid_users: Option<u32>,
    /// What products are computed in: `bf16` wants a GPU.
    pub precision: Precision,
    /// Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): what happens inside a block is computed again on the
    /// way back in place of being kept. It changes no result and takes far less memory, for half as much time again with
    /// adapters, a third with all weights.
    #[schemars(extend("x-resource" = true))]
    pub activation_checkpointing: bool,
    /// Another seed for this stage alone, added to the run's.
    pub seed: u64,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// A model from scratch: a Qwen3 of this shape, its output map tied to its embeddings.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelShape {
    /// Blocks.
    pub layers: u32,
    /// Width of the model.
    pub d_model: u32,
    /// Heads of queries.
    pub heads: u32,
    /// Heads of keys and values; they divide the heads of queries. Null for as many.
    pub kv_heads: Option<u32>,
    /// Width of a head, even; null for d_model / heads.
    pub key_dim: Option<u32>,
    /// Width inside the feed-forward blocks; null for 3 d_model.
    pub d_ff: Option<u32>,
    /// Tokens in the vocabulary; null for as many as prompts, valid and titles need.
    pub vocabulary: Option<u32>,
    /// The longest sequence in tokens.
    pub max_tokens: u32,
}

/// Low-rank adapters.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Lora {
    /// The rank; `auto` for the one that comes nearest to 1 % of the model's parameters.
    pub rank: Rank,
    /// Products of adapters are multiplied by alpha / rank; null for alpha = rank.
    pub alpha: Option<f64>,
    /// Dropout of what adapters read.
    pub dropout: f64,
    /// The maps that have adapters, by the last part of their names in the checkpoint; null for all of a block.
    pub target_modules: Option<Vec<String>>,
}

/// The rank of adapters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Rank {
    /// About 1 % of the parameters.
    Auto(Auto),
    /// This one.
    Of(u32),
}

impl<'de> Deserialize<'de> for Rank {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match value.as_u64().and_then(|rank| u32::try_from(rank).ok()) {
            Some(rank) => Ok(Rank::Of(rank)),
            None if value == "auto" => Ok(Rank::Auto(Auto::Auto)),
            None => Err(serde::de::Error::custom(format!(
                "\"rank\" is {value}: a whole number, or auto"
            ))),
        }
    }
}

/// The word for a number that is worked out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Auto {
    /// `auto`.
    Auto,
}

/// The share of the parameters that `rank: auto` aims at (arXiv 2509.25522).
const AUTO_SHARE: f64 = 0.01;

impl Default for TrainLlm {
    fn default() -> Self {
        TrainLlm {
            model: None,
            shape: None,
            lora: None,
            new_tokens: false,
            learning_rate: 1e-4,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            clip_norm: Some(1.0),
            batch_size: 16,
            accumulate: 1,
            replicas: 1,
            max_steps: 100_000,
            max_epochs: None,
            eval_every: 500,
            patience: 3,
            valid_users: None,
            precision: Precision::F32,
            activation_checkpointing: false,
            seed: 0,
            device: "auto".to_string(),
        }
    }
}

impl Default for ModelShape {
    /// About a million parameters besides embeddings.
    fn default() -> Self {
        ModelShape {
            layers: 4,
            d_model: 128,
            heads: 4,
            kv_heads: None,
            key_dim: None,
            d_ff: None,
            vocabulary: None,
            max_tokens: 1024,
        }
    }
}

impl Default for Lora {
    fn default() -> Self {
        Lora {
            rank: Rank::Auto(Auto::Auto),
            alpha: None,
            dropout: 0.05,
            target_modules: None,
        }
    }
}

impl Operator for TrainLlm {
    const NAME: &'static str = "train_llm";
    const VERSION: u32 = 2;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::required(PROMPTS, "train prompts: tokens, loss_from (tokenize_prompts)"),
        Input::optional(VALID, "valid prompts: tokens, target (tokenize_prompts)"),
        Input::optional(
            TITLES,
            "titles of the catalogue: item_id, tokens (tokenize_prompts.titles)",
        ),
        Input::optional(BASE, "a language model to start from (train_llm)"),
        Input::optional(
            VECTORS,
            "vectors of soft tokens: item_id, embedding (train_sasrec.embeddings)",
        ),
    ];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::TRAINING_TOLERANCE)
    }

    fn extendable(&self) -> bool {
        self.options(0).schedule.is_extendable()
    }

    fn bind(&self, binding: &Binding) -> Bound {
        models::check_device(binding, &self.device);
        require_tokens(
            binding,
            PROMPTS,
            &[(USER_ID, DataType::Utf8), (LOSS_FROM, DataType::UInt32)],
        );
        if binding.has(VALID) {
            require_evaluation(binding, VALID);
            if !binding.has(TITLES) {
                let error = Error::user("missing-input", "valid prompts need \"titles\" for their targets");
                binding.input_problem(VALID, error.hint("connect the port \"titles\" of tokenize_prompts"));
            }
        }
        if binding.has(TITLES) {
            require_tokens(binding, TITLES, &[(ITEM_ID, DataType::Utf8)]);
        }
        if binding.has(VECTORS) {
            require_embeddings(binding, VECTORS);
            binding.require(TITLES, &[(SOFT_TOKEN, DataType::UInt32)]);
            if !binding.has(TITLES) {
                let error = Error::user(
                    "missing-input",
                    "vectors need \"titles\", which say whose token is whose",
                );
                binding.input_problem(VECTORS, error.hint("connect the port \"titles\" of tokenize_prompts"));
            }
        }
        let mut files: Vec<PathBuf> = Vec::new();
        let config = match (&self.model, &self.shape, binding.has(BASE)) {
            (Some(name), None, false) => {
                let (config, found) = bind_checkpoint(binding, "model", name);
                files = found;
                config
            }
            (None, Some(shape), false) => match shape.config(1) {
                Ok(config) => Some(config),
                Err(error) => {
                    binding.problem("shape", explain(error));
                    None
                }
            },
            (None, None, true) => {
                models::require_model(binding, BASE, LAYOUT, TrainLlm::NAME);
                None
            }
            _ => {
                let message = "give one of \"model\", \"shape\" and the input \"base\" to start from";
                binding.problem("model", Error::user("bad-value", message));
                None
            }
        };
        if let (Some(config), Some(lora)) = (&config, &self.lora)
            && let Err(error) = lora.of(config).check(config)
        {
            binding.problem("lora", explain(error));
        }
        if self.lora.is_some() && self.shape.is_some() {
            let message = "adapters need a model that is kept: a model from scratch is drawn and thrown away";
            let hint = "train the shape without lora in a stage of its own and connect it as input \"base\"";
            binding.problem("lora", Error::user("bad-value", message).hint(hint));
        }
        if let Err(error) = self.options(0).validate() {
            config_problem(binding, error);
        }
        check_precision(binding, self.precision, &self.device);
        Bound::whole()
            .peers(self.replicas as usize)
            .output(MODEL, shape())
            .output(CURVE, Shape::table(curve_fields(METRICS)))
            .files(files)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let samples = train_prompts(inputs.table(PROMPTS)?)?;
        if samples.is_empty() {
            return Err(Error::data("no-samples", "there is no prompt to train on")
                .hint("users with fewer than 4 interactions give no prompt after leave-one-out"));
        }
        let valid = match inputs.has(VALID) {
            true => valid_prompts(context, &inputs)?,
            false => Prompts::default(),
        };
        let validation = (!valid.is_empty()).then_some(Validation {
            prompts: &valid,
            users: self.valid_users.map(|users| users as usize),
        });
        let config = self.start(context, &inputs)?;
        self.check_lengths(&config.config, [&samples, &valid])?;
        let options = self.options(context.random("training").key().wrapping_add(self.seed));
        let needed = estimate(&config, &options, &samples);
        let needed = match validation {
            Some(validation) => needed.with_evaluations(&config, validation),
            None => needed,
        };
        let devices = devices(context, &self.device, self.replicas)?;
        let there = devices.iter().filter_map(free_memory).min().or_else(machine_memory);
        check_memory(context, &needed, there, self.activation_checkpointing)?;
        let mut watch = Watch::of_loss(context, "valid loss");
        let trained = train_model::<Tuned>(
            &config,
            &options,
            Site {
                devices: &devices,
                peers: &Shared(context),
            },
            &samples,
            validation,
            checkpoint(context),
            &mut |event| watch.hear(event),
        )
        .map_err(diverged)?;
        if context.peers.rank() > 0 {
            // The first peer has the same model.
            return Ok(Tables::new());
        }
        let steps = trained.curve.last().map_or(0, |point| point.step);
        context.note(
            "training_flops",
            training_flops::<Tuned>(&config, &options, &samples, steps),
        );
        let parts = config.config.parameters();
        context.note("new_tokens", config.added.words as u64);
        let adapters = config.lora().map_or(0, |lora| lora.parameters(&config.config));
        context.note("parameters", (parts.total() + adapters) as u64);
        context.note("trained_parameters", config.trained_parameters() as u64);
        context.note(
            "parameters_by_part",
            serde_json::json!({
                "embeddings": parts.embeddings,
                "head": parts.head,
                "blocks": parts.blocks,
                "norms": parts.norms,
                "lora": adapters,
            }),
        );
        let folder = context.folder(MODEL)?;
        config.added.save(trained.model.weights(), &folder).map_err(explain)?;
        match config.lora() {
            Some(lora) => {
                let base = self.model.as_deref().unwrap_or_default();
                let (weights, digest) = (trained.model.weights(), config.base_digest());
                lora.save(weights, base, digest, &folder).map_err(explain)?;
            }
            None => trained
                .model
                .without_added()
                .and_then(|model| model.save(&folder))
                .map_err(explain)?,
        }
        let curve = curve_table(&trained.curve, METRICS, |(token, title)| [-token, -title])?;
        Ok(Tables::new().with(MODEL, Table::Folder(folder)).with(CURVE, curve))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let curve = outputs.batch(CURVE)?;
        let losses = crate::schema::numbers::<arrow::datatypes::Float64Type>(&curve, METRICS[0])?;
        let best = losses.iter().flatten().fold(f64::INFINITY, f64::min);
        let mut notes = Notes::new();
        if best.is_finite() {
            notes.insert(format!("best_{}", METRICS[0]), format!("{best:.4}").into());
        }
        Ok(notes)
    }
}

impl TrainLlm {
    /// What is trained, and what it starts from.
    fn start(&self, context: &Context, inputs: &Tables) -> Result<TunedConfig> {
        let given = |(config, frozen): (LlmConfig, Frozen)| {
            let digest = frozen.digest();
            (config, Base::Given(Arc::new(frozen), digest))
        };
        let titles = inputs.has(TITLES).then(|| inputs.table(TITLES)).transpose()?;
        let soft = match (titles, inputs.has(VECTORS)) {
            (Some(titles), true) => Some(soft_tokens(titles, inputs.table(VECTORS)?)?),
            _ => None,
        };
        let mut end = 0;
        for input in [PROMPTS, VALID, TITLES] {
            if inputs.has(input) {
                end = end.max(tokens_end(inputs.table(input)?)?);
            }
        }
        // Soft tokens come behind all others.
        let end = soft.as_ref().map_or(end, |(first, _)| *first);
        let (config, base) = match (&self.model, &self.shape) {
            (Some(name), _) => given(open_checkpoint(&context.path(name), name)?),
            (None, Some(shape)) => (shape.config(end).map_err(explain)?, Base::Fresh),
            (None, None) => {
                let folder = inputs.folder(BASE)?;
                let whole = |_: &str| {
                    let error = Error::user("wrong-model", "the base is an adapter, not a whole model");
                    Err(error.hint("merge it first: operator merge_adapter"))
                };
                given(crate::language_models::open(folder, whole)?)
            }
        };
        let tuning = match &self.lora {
            None => Tuning::Full,
            Some(lora) => {
                let lora = lora.of(&config);
                lora.check(&config).map_err(explain)?;
                context.note("lora_rank", lora.rank as u64);
                Tuning::Lora(lora)
            }
        };
        let vocabulary = config.vocabulary();
        let first_new = titles.map(first_new_token).transpose()?.flatten();
        if let (Some(first), Base::Given(..)) = (first_new, &base) {
            self.check_new_tokens(first..end, vocabulary)?;
        }
        let words = end.saturating_sub(vocabulary);
        if let Some((first, _)) = &soft
            && *first != vocabulary + words
        {
            let message = format!("soft tokens begin at {first}, the model's vocabulary ends at {vocabulary}");
            let hint = "leave shape.vocabulary out, or set \"vocabulary\" of tokenize_prompts to the same number";
            return Err(Error::user("different-vocabulary", message).hint(hint));
        }
        if words > 0 && !self.new_tokens {
            let message = format!(
                "prompts have tokens up to {}, the model's vocabulary has {vocabulary}",
                end - 1
            );
            let hint = "tokenize with the tokenizer of this model; for semantic ids as new tokens set \"new_tokens\"";
            return Err(Error::data("unknown-token", message).hint(hint));
        }
        let added = Added {
            words,
            vectors: soft.map(|(_, vectors)| Arc::new(vectors)),
        };
        Ok(TunedConfig {
            config,
            base,
            tuning,
            added,
            recompute: self.activation_checkpointing,
        })
    }

    /// New words are all behind the model's vocabulary, or it ends with them: then they are words of its own.
    fn check_new_tokens(&self, words: Range<usize>, vocabulary: usize) -> Result<()> {
        let Range { start, end } = words;
        if start == vocabulary || (start < end && end == vocabulary) {
            return Ok(());
        }
        let message = format!("new tokens begin at {start}, the model's vocabulary ends at {vocabulary}");
        let error = Error::user("different-vocabulary", message);
        let hint = format!("set \"vocabulary\" of tokenize_prompts to {vocabulary}");
        if self.model.is_some() || vocabulary <= start || end <= vocabulary {
            return Err(error.hint(hint));
        }
        // The vocabulary of a checkpoint may be larger than its tokenizer's. Another stage may have trained on such words.
        let (own, new) = (vocabulary - 1, end - 1);
        let hint = format!("connect \"titles\" where the base is trained; if it has no new words at all, {hint}");
        Err(error
            .detail(format!(
                "tokens up to {own} are in the model, those up to {new} are not"
            ))
            .hint(hint))
    }

    /// Checks that the model has room for every prompt with its title, of which the last token is not read.
    fn check_lengths(&self, config: &LlmConfig, prompts: [&Prompts; 2]) -> Result<()> {
        let positions = config.max_positions();
        let room = positions.saturating_add(1);
        let lengths = prompts
            .into_iter()
            .flat_map(|prompts| (0..prompts.len()).map(move |i| prompts.tokens(i).len()));
        let longest = lengths.max().unwrap_or(0);
        if longest <= room {
            return Ok(());
        }
        let message = format!("a prompt has {longest} tokens with its title, the model has {positions} positions");
        let hint = format!("set \"max_tokens\" of tokenize_prompts to at most {room}");
        Err(Error::data("prompt-too-long", message).hint(match &self.shape {
            Some(_) => format!("{hint}, or raise shape.max_tokens"),
            None => hint,
        }))
    }

    fn options(&self, seed: u64) -> TrainOptions {
        TrainOptions {
            optimizer: AdamConfig {
                weight_decay: self.weight_decay as f32,
                decoupled: true,
                ..AdamConfig::default()
            },
            lr: self.learning_rate,
            schedule: self.schedule.into(),
            warmup_steps: self.warmup_steps as usize,
            batch_size: self.batch_size as usize,
            accumulate: self.accumulate as usize,
            replicas: self.replicas as usize,
            max_steps: Some(self.max_steps as usize),
            max_epochs: self.max_epochs.map(|epochs| epochs as usize),
            eval_every: self.eval_every as usize,
            patience: self.patience as usize,
            clip_norm: self.clip_norm.map(|norm| norm as f32),
            bucket_batches: 0,
            precision: self.precision.into(),
            seed,
        }
    }
}

impl ModelShape {
    /// The architecture, with at least so many tokens in its vocabulary.
    fn config(&self, tokens: usize) -> sluice_gpu::error::Result<LlmConfig> {
        let width = |own: Option<u32>, other: u32| own.unwrap_or(other) as usize;
        LlmConfig::of_shape(&GpuShape {
            vocabulary: self.vocabulary.map_or(tokens, |tokens| tokens as usize),
            d_model: self.d_model as usize,
            layers: self.layers as usize,
            heads: self.heads as usize,
            kv_heads: width(self.kv_heads, self.heads),
            key_dim: width(self.key_dim, self.d_model / self.heads.max(1)),
            d_ff: width(self.d_ff, 3 * self.d_model),
            max_tokens: self.max_tokens as usize,
        })
    }
}

impl Lora {
    /// The adapters of a model.
    fn of(&self, config: &LlmConfig) -> GpuLora {
        let known = || GpuLora::modules(config);
        let target_modules = self.target_modules.clone().unwrap_or_else(known);
        let rank = match self.rank {
            Rank::Of(rank) => rank as usize,
            Rank::Auto(_) => GpuLora::rank_of_share(config, &target_modules, AUTO_SHARE),
        };
        GpuLora {
            rank,
            alpha: self.alpha.map_or(rank as f32, |alpha| alpha as f32),
            dropout: self.dropout as f32,
            target_modules,
        }
    }
}

/// Valid prompts with the titles of their targets.
fn valid_prompts(context: &Context, inputs: &Tables) -> Result<Prompts> {
    let table = inputs.table(VALID)?;
    let valid = answered_prompts(table, inputs.table(TITLES)?)?;
    if valid.is_empty() {
        let message = "no valid prompt has a target with a title, so nothing says when to stop";
        let hint = "leave \"valid\" out, or look at \"untitled\" of tokenize_prompts";
        return Err(Error::data("no-samples", message).hint(hint));
    }
    let left_out = table.rows()?.saturating_sub(valid.len() as u64);
    if left_out > 0 {
        context.note("valid_left_out", left_out);
    }
    Ok(valid)
}

/// What stopped a training. Before the first update no learning rate is to blame.
fn diverged(error: GpuError) -> Error {
    match error {
        GpuError::NotFinite { step: 1, loss } => {
            let message = format!("the loss is {loss} at step 1, before any update");
            let detail = "the weights it starts from, or the vectors, hold numbers that are not finite or too large";
            Error::data("diverged", message).detail(detail)
        }
        error => explain(error),
    }
}

/// Notes what a training will need, and refuses what does not fit into the memory there is.
fn check_memory(context: &Context, needed: &Memory, there: Option<usize>, checkpointed: bool) -> Result<()> {
    let gib = |bytes: usize| bytes as f64 / GIB;
    context.note("memory_estimate_gib", (gib(needed.total()) * 1000.0).round() / 1000.0);
    match there {
        Some(there) if needed.total() > there => Err(out_of_memory(needed, there, checkpointed)),
        _ => Ok(()),
    }
}

fn out_of_memory(needed: &Memory, there: usize, checkpointed: bool) -> Error {
    let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / GIB);
    let message = format!("the training needs about {} of {}", gib(needed.total()), gib(there));
    let error = Error::user("out-of-memory", message).detail(format!(
        "weights {}, what trains them {}, a batch {}",
        gib(needed.weights),
        gib(needed.training),
        gib(needed.batch)
    ));
    error.hint(if needed.batch * 2 > needed.total() {
        match checkpointed {
            false => "set activation_checkpointing, or lower batch_size and raise accumulate by as much",
            true => "lower batch_size and raise accumulate by as much, or lower max_tokens of tokenize_prompts",
        }
    } else if needed.training > needed.weights {
        "train adapters instead of all weights: lora"
    } else {
        "take a smaller model, or a larger machine"
    })
}

#[cfg(test)]
mod tests;
