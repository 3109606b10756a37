//! Trains TIGER: a T5 encoder-decoder that reads the semantic ids of a history and writes the next item's.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, UInt16Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::optim::AdamConfig;
use sluice_gpu::samples::{Ragged, Samples};
use sluice_gpu::tiger::{FeedForward as GpuFeedForward, OutputHeads as GpuOutputHeads};
use sluice_gpu::tiger::{ItemVectors, Tiger, TigerConfig, Validation};
use sluice_gpu::train::{Site, TrainOptions, train_model, training_flops};

use crate::models::{self, SemanticIds, encode_histories, explain, user_number};
use crate::protocol;
use crate::quantizers::require_embeddings;
use crate::schema::{self, ITEM_ID, SEMANTIC_ID, SEQUENCE, TARGET, USER_ID};
use crate::training::{
    Precision, Schedule, Shared, Watch, check_precision, checkpoint, config_problem, curve_fields, curve_table,
    devices, note_best, note_no_valid_users,
};

const SEQUENCES: &str = "sequences";
const VALID: &str = "valid";
const SEMANTIC_IDS: &str = "semantic_ids";
const VECTORS: &str = "vectors";
const MODEL: &str = "model";
const CURVE: &str = "curve";
const METRICS: [&str; 2] = ["valid_recall_5", "valid_ndcg_5"];

/// Trains TIGER, a T5 encoder-decoder over semantic ids, with early stopping on valid.
///
/// # In
/// `sequences`: samples of `tokenize_sequences`. `valid`: the valid rows of the split; they decide when to stop and which
/// weights are kept, and are never trained on. `semantic_ids`: the catalogue. `vectors` (optional): `item_id`,
/// `embedding` of every item, text or collaborative, to inject: a linear map of the vector follows the codes of an item
/// as one more token. `generate_tiger` then wants the same.
///
/// # Out
/// `model`: a folder with `config.json` and `model.safetensors`. `curve`: `step, epoch, train_loss, valid_recall_5,
/// valid_ndcg_5, learning_rate`, a row per evaluation. The notes say which step an interrupted or a longer training went
/// on from.
///
/// # Source
/// TIGER (arXiv 2305.05065) as GRID (arXiv 2507.22224) builds it: 4 + 4 layers, d_model 128, 6 heads of 64, d_ff 1024,
/// dropout .15, learned separators, an output head per level, Adam 1e-3 with weight decay 1e-4, patience 10. Injection:
/// arXiv 2509.25522, which leaves open where.
///
/// # Deviates
/// Batches are packed: no padding is computed. Valid recall is that of a beam search of width `beam_width`. Injected
/// vectors are brought to unit length; items that share a semantic id share the mean.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTiger {
    /// Layers of the encoder, and of the decoder.
    pub layers: u32,
    /// Width of the model.
    pub d_model: u32,
    /// Attention heads.
    pub heads: u32,
    /// Width of a head.
    pub d_kv: u32,
    /// Width of the feed-forward block.
    pub d_ff: u32,
    /// Dropout probability.
    pub dropout: f64,
    /// The feed-forward block: GRID's two hidden layers, or T5's one.
    pub feed_forward: FeedForward,
    /// The maps to codes: one per level, or one for the codes of all levels.
    pub output_heads: OutputHeads,
    /// Put a learned vector after every item.
    pub separator: bool,
    /// Put a user token first, hashed to so many; 0 for none (GRID's best).
    pub user_buckets: u32,
    /// Histories are cut to their last items: at most so many.
    pub max_items: u32,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How the learning rate goes on after the warm-up.
    pub schedule: Schedule,
    /// Steps over which the learning rate rises.
    pub warmup_steps: u32,
    /// Weight decay: coupled (Adam) or not (AdamW), see `decoupled_decay`.
    pub weight_decay: f64,
    /// Decay weights apart from the gradient (AdamW).
    pub decoupled_decay: bool,
    /// Gradients are scaled down to this global norm; null leaves them.
    pub clip_norm: Option<f64>,
    /// Samples of a batch.
    pub batch_size: u32,
    /// Batches of a step: their gradients are added, so `batch_size` x `accumulate` samples make a step in the memory
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
    /// Most passes over the samples; null for no limit. See `max_steps`.
    #[schemars(extend("x-extent" = true))]
    pub max_epochs: Option<u32>,
    /// Steps between evaluations on valid.
    pub eval_every: u32,
    /// Stop after so many evaluations without a better Recall@5; 0 trains to the end.
    pub patience: u32,
    /// Evaluate on this many valid users, drawn once; null for all.
    pub valid_users: Option<u32>,
    /// Beam width of the evaluations.
    pub beam_width: u32,
    /// What products are computed in: `bf16` wants a GPU.
    pub precision: Precision,
    /// Another seed for this stage alone, added to the run's.
    pub seed: u64,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// The feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FeedForward {
    /// Linear, ReLU, Linear, dropout, ReLU, Linear, dropout, with biases (GRID).
    Grid,
    /// Linear, ReLU, dropout, Linear, no biases (T5).
    T5,
}

/// The maps from the decoder to codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutputHeads {
    /// A softmax over the codes of the level (GRID).
    PerLevel,
    /// A softmax over the codes of all levels (T5).
    Plain,
}

impl Default for TrainTiger {
    fn default() -> Self {
        TrainTiger {
            layers: 4,
            d_model: 128,
            heads: 6,
            d_kv: 64,
            d_ff: 1024,
            dropout: 0.15,
            feed_forward: FeedForward::Grid,
            output_heads: OutputHeads::PerLevel,
            separator: true,
            user_buckets: 0,
            max_items: 20,
            learning_rate: 1e-3,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            weight_decay: 1e-4,
            decoupled_decay: false,
            clip_norm: None,
            batch_size: 256,
            accumulate: 1,
            replicas: 1,
            max_steps: 100_000,
            max_epochs: None,
            eval_every: 1000,
            patience: 10,
            valid_users: None,
            beam_width: 10,
            precision: Precision::F32,
            seed: 0,
            device: "auto".to_string(),
        }
    }
}

impl Operator for TrainTiger {
    const NAME: &'static str = "train_tiger";
    const VERSION: u32 = 2;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::required(
            SEQUENCES,
            "samples: user_id, sequence and target as codes (tokenize_sequences)",
        ),
        Input::required(
            VALID,
            "valid rows: user_id, sequence, target (split_leave_one_out.valid)",
        ),
        Input::required(SEMANTIC_IDS, "the catalogue: item_id, semantic_id"),
        Input::optional(
            VECTORS,
            "vectors to inject: item_id, embedding (embed_text, train_sasrec.embeddings)",
        ),
    ];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::TRAINING_TOLERANCE)
    }

    fn extendable(&self) -> bool {
        self.options(0).schedule.is_extendable()
    }

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(
            SEQUENCES,
            &[(USER_ID, DataType::Utf8), (SEQUENCE, schema::list_of(DataType::UInt16))],
        );
        binding.require(
            VALID,
            &[
                (USER_ID, DataType::Utf8),
                (SEQUENCE, schema::list_of(DataType::Utf8)),
                (TARGET, DataType::Utf8),
            ],
        );
        binding.require(SEMANTIC_IDS, &[(ITEM_ID, DataType::Utf8)]);
        let width = |input: &str, column: &str| {
            let schema = binding.schema(input)?;
            let Ok(field) = schema.field_with_name(column) else {
                binding.missing_column(input, column);
                return None;
            };
            schema::semantic_id_levels(field)
        };
        let (ids, samples) = (width(SEMANTIC_IDS, SEMANTIC_ID), width(SEQUENCES, TARGET));
        if let (Some(ids), Some(samples)) = (ids, samples)
            && ids != samples
        {
            let message = format!("the samples have {} levels, the semantic ids have {}", samples.0, ids.0);
            binding.input_problem(
                SEQUENCES,
                Error::user("different-ids", message).hint("tokenize with the same semantic ids"),
            );
        }
        if binding.has(VECTORS) {
            require_embeddings(binding, VECTORS);
        }
        if let Some((levels, _)) = ids
            && let Err(error) = self.model(vec![2; levels], None).validate()
        {
            config_problem(binding, error);
        }
        if let Err(error) = self.options(0).validate() {
            config_problem(binding, error);
        }
        models::check_device(binding, &self.device);
        check_precision(binding, self.precision, &self.device);
        if self.beam_width < 5 {
            binding.bad_value("beam_width", "valid Recall@5 wants a beam of 5 or more");
        }
        Bound::whole()
            .peers(self.replicas as usize)
            .output(MODEL, Shape::Folder("tiger".into()))
            .output(CURVE, Shape::table(curve_fields(METRICS)))
            .fact(protocol::HISTORY, protocol::history(self.max_items))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let ids = SemanticIds::read(inputs.table(SEMANTIC_IDS)?)?;
        let vectors = match inputs.has(VECTORS) {
            true => Some(models::item_vectors(inputs.table(VECTORS)?, &ids)?),
            false => None,
        };
        let config = self.model(ids.codebook_sizes.clone(), vectors.as_deref());
        let samples = self.samples(inputs.table(SEQUENCES)?, ids.levels)?;
        let samples = samples.with_vectors(vectors.clone());
        if samples.is_empty() {
            return Err(Error::data("no-samples", "there is no sample to train on")
                .hint("users with fewer than 4 interactions give no sample after leave-one-out"));
        }
        let coded = encode_histories(inputs.table(VALID)?, &ids)?;
        let mut histories = Ragged::default();
        let (mut targets, mut users) = (Vec::new(), Vec::new());
        for (row, target) in coded
            .targets
            .iter()
            .enumerate()
            .filter(|(_, target)| !target.is_empty())
        {
            histories.push(coded.histories.get(row));
            targets.extend_from_slice(target);
            users.push(user_number(&coded.users[row]));
        }
        if self.user_buckets == 0 {
            users.clear();
        }
        let valid = Samples::new(ids.levels, histories, targets, users).map_err(explain)?;
        let valid = valid.with_vectors(vectors);
        let validation = Validation {
            samples: &valid,
            trie: &ids.trie,
            users: self.valid_users.map(|users| users as usize),
            beam_width: self.beam_width as usize,
        };
        let validation = (!valid.is_empty()).then_some(validation);
        if validation.is_none() {
            note_no_valid_users(context, self.patience)?;
        }
        let options = self.options(context.random("training").key().wrapping_add(self.seed));
        let devices = devices(context, &self.device, self.replicas)?;
        let mut watch = Watch::new(context, "valid recall@5");
        let trained = train_model::<Tiger>(
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
        .map_err(explain)?;
        if context.peers.rank() > 0 {
            // The first peer has the same model.
            return Ok(Tables::new());
        }
        let steps = trained.curve.last().map_or(0, |point| point.step);
        let flops = training_flops::<Tiger>(&config, &options, &samples, steps);
        context.note("training_flops", flops);
        let folder = context.folder(MODEL)?;
        trained.model.save(&folder).map_err(explain)?;
        let curve = curve_table(&trained.curve, METRICS, |(recall, ndcg)| [recall, ndcg])?;
        Ok(Tables::new().with(MODEL, Table::Folder(folder)).with(CURVE, curve))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let model = Tiger::load(outputs.folder(MODEL)?).map_err(explain)?;
        let parts = model.config().parameters_by_part();
        let mut notes = Notes::new();
        notes.insert("parameters".into(), (parts.total() as u64).into());
        notes.insert(
            "parameters_by_part".into(),
            serde_json::json!({
                "embeddings": parts.embeddings,
                "encoder": parts.encoder,
                "decoder": parts.decoder,
                "heads": parts.heads,
            }),
        );
        note_best(&mut notes, &outputs.batch(CURVE)?, METRICS[0])?;
        Ok(notes)
    }
}

impl TrainTiger {
    fn model(&self, codebook_sizes: Vec<usize>, vectors: Option<&ItemVectors>) -> TigerConfig {
        TigerConfig {
            codebook_sizes,
            layers: self.layers as usize,
            d_model: self.d_model as usize,
            heads: self.heads as usize,
            d_kv: self.d_kv as usize,
            d_ff: self.d_ff as usize,
            dropout: self.dropout as f32,
            feed_forward: match self.feed_forward {
                FeedForward::Grid => GpuFeedForward::Grid,
                FeedForward::T5 => GpuFeedForward::T5,
            },
            output_heads: match self.output_heads {
                OutputHeads::PerLevel => GpuOutputHeads::PerLevel,
                OutputHeads::Plain => GpuOutputHeads::Plain,
            },
            vector_dim: vectors.map_or(0, ItemVectors::dim),
            separator: self.separator,
            user_buckets: self.user_buckets as usize,
            max_items: self.max_items as usize,
            ..TigerConfig::default()
        }
    }

    fn options(&self, seed: u64) -> TrainOptions {
        TrainOptions {
            optimizer: AdamConfig {
                weight_decay: self.weight_decay as f32,
                decoupled: self.decoupled_decay,
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

    fn samples(&self, table: &Table, levels: usize) -> Result<Samples> {
        let mut histories = Ragged::default();
        let (mut targets, mut users) = (Vec::new(), Vec::new());
        for batch in table.batches()? {
            let batch = batch?;
            let sequences = schema::lists(&batch, SEQUENCE)?;
            let codes = sequences.values().as_primitive::<UInt16Type>().values();
            for row in 0..batch.num_rows() {
                let (start, end) = (
                    sequences.value_offsets()[row] as usize,
                    sequences.value_offsets()[row + 1] as usize,
                );
                histories.push(&codes[start..end]);
            }
            let target = schema::fixed_lists(&batch, TARGET)?;
            let values = target.values().as_primitive::<UInt16Type>().values();
            targets.extend_from_slice(&values[target.offset() * levels..(target.offset() + target.len()) * levels]);
            if self.user_buckets > 0 {
                users.extend(schema::strings(&batch, USER_ID)?.iter().flatten().map(user_number));
            }
        }
        Samples::new(levels, histories, targets, users).map_err(explain)
    }
}

#[cfg(test)]
mod tests;
