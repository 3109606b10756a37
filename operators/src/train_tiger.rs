//! Trains TIGER: a T5 encoder-decoder that reads the semantic ids of a history and writes the next item's.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, UInt16Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::optim::{AdamConfig, Schedule as GpuSchedule};
use sluice_gpu::samples::{Ragged, Samples};
use sluice_gpu::tiger::{FeedForward as GpuFeedForward, TigerConfig};
use sluice_gpu::train::{Checkpoint, TrainEvent, TrainOptions, Validation, train_tiger};

use crate::models::{self, SemanticIds, encode_histories, explain, user_number};
use crate::schema::{self, ITEM_ID, SEMANTIC_ID, SEQUENCE, TARGET, USER_ID};

const SEQUENCES: &str = "sequences";
const VALID: &str = "valid";
const SEMANTIC_IDS: &str = "semantic_ids";
const MODEL: &str = "model";
const CURVE: &str = "curve";

/// Trains TIGER, a T5 encoder-decoder over semantic ids, with early stopping on valid.
///
/// # In
/// `sequences`: samples of `tokenize_sequences`. `valid`: the valid rows of the split; they decide when to stop and which
/// weights are kept, and are never trained on. `semantic_ids`: the catalogue.
///
/// # Out
/// `model`: a folder with `config.json` and `model.safetensors`. `curve`: `step, epoch, train_loss, valid_recall_5,
/// valid_ndcg_5, learning_rate`, a row per evaluation. The notes say which step an interrupted or a longer training went
/// on from.
///
/// # Source
/// TIGER (arXiv 2305.05065) as GRID (arXiv 2507.22224) builds it: 4 + 4 layers, d_model 128, 6 heads of 64, d_ff 1024,
/// dropout .15, learned separators, an output head per level, Adam 1e-3 with weight decay 1e-4, patience 10.
///
/// # Deviates
/// Batches are packed: no padding is computed. Valid recall is that of a beam search of width `beam_width`.
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
    /// Samples per step.
    pub batch_size: u32,
    /// Most steps. Where `schedule` does not depend on it, a longer training goes on from the end of a shorter one.
    #[schemars(extend("x-extent" = true))]
    pub max_steps: u32,
    /// Most passes over the samples; null for no limit. See `max_steps`.
    #[schemars(extend("x-extent" = true))]
    pub max_epochs: Option<u32>,
    /// Steps between evaluations on valid.
    pub eval_every: u32,
    /// Stop after so many evaluations without a better Recall@5.
    pub patience: u32,
    /// Evaluate on this many valid users, drawn once; null for all.
    pub valid_users: Option<u32>,
    /// Beam width of the evaluations.
    pub beam_width: u32,
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

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// A half cosine down to 0 at the last step.
    Cosine,
    /// Down with the root of the step.
    InverseSqrt,
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
            max_steps: 100_000,
            max_epochs: None,
            eval_every: 1000,
            patience: 10,
            valid_users: None,
            beam_width: 10,
            seed: 0,
            device: "auto".to_string(),
        }
    }
}

impl Operator for TrainTiger {
    const NAME: &'static str = "train_tiger";
    const VERSION: u32 = 1;
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
        if let Some((levels, _)) = ids
            && let Err(error) = self.model(vec![2; levels]).validate()
        {
            self.config_problem(binding, error);
        }
        if let Err(error) = self.options(0).validate() {
            self.config_problem(binding, error);
        }
        if self.beam_width < 5 {
            binding.bad_value("beam_width", "valid Recall@5 wants a beam of 5 or more");
        }
        Bound::whole()
            .output(MODEL, Shape::Folder("tiger".into()))
            .output(CURVE, Shape::table(curve_fields()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let ids = SemanticIds::read(inputs.table(SEMANTIC_IDS)?)?;
        let config = self.model(ids.codebook_sizes.clone());
        let samples = self.samples(inputs.table(SEQUENCES)?, ids.levels)?;
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
        let validation = Validation {
            samples: &valid,
            trie: &ids.trie,
            users: self.valid_users.map(|users| users as usize),
            beam_width: self.beam_width as usize,
        };
        let validation = (!valid.is_empty()).then_some(validation);
        let options = self.options(context.random("training").key().wrapping_add(self.seed));
        let device = models::device(context, &self.device)?;
        let mut best = f64::NAN;
        let mut steps = (0, 0, 0.0);
        let mut passed_over = Vec::new();
        let checkpoint = context.checkpoint.as_ref().map(|checkpoint| Checkpoint {
            folder: &checkpoint.folder,
            every: checkpoint.every,
        });
        let trained = train_tiger(
            &config,
            &options,
            &device,
            &samples,
            validation,
            checkpoint,
            &mut |event| {
                match event {
                    TrainEvent::Resumed { step } => {
                        context.note("resumed_from_step", step as u64);
                        return models::stopped(context);
                    }
                    TrainEvent::StateFailed { path, reason } => {
                        let name = path.file_name().unwrap_or_default().to_string_lossy();
                        passed_over.push(format!("{name}: {reason}"));
                        context.note("states_passed_over", passed_over.clone());
                        return models::stopped(context);
                    }
                    TrainEvent::Step { step, total, loss, .. } => {
                        steps = (step as u64, total as u64, f64::from(loss));
                    }
                    TrainEvent::Evaluated { point, best: true } => best = point.valid_recall_5.unwrap_or(f64::NAN),
                    TrainEvent::Evaluated { .. } | TrainEvent::Evaluating { .. } | TrainEvent::Saved { .. } => {}
                }
                let mut figures = vec![("loss", steps.2)];
                if best.is_finite() {
                    figures.push(("valid recall@5", best));
                }
                context.progress(steps.0, Some(steps.1), "steps", &figures);
                models::stopped(context)
            },
        )
        .map_err(explain)?;
        let folder = context.folder(MODEL)?;
        trained.model.save(&folder).map_err(explain)?;
        let curve = &trained.curve;
        let recall = curve.iter().map(|point| point.valid_recall_5);
        let ndcg = curve.iter().map(|point| point.valid_ndcg_5);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(
                curve.iter().map(|point| point.step as u64),
            )),
            Arc::new(UInt64Array::from_iter_values(
                curve.iter().map(|point| point.epoch as u64),
            )),
            Arc::new(Float64Array::from_iter_values(
                curve.iter().map(|point| point.train_loss),
            )),
            Arc::new(Float64Array::from_iter(recall)),
            Arc::new(Float64Array::from_iter(ndcg)),
            Arc::new(Float64Array::from_iter_values(curve.iter().map(|point| point.lr))),
        ];
        let table = RecordBatch::try_new(Arc::new(Schema::new(curve_fields())), columns)?;
        Ok(Tables::new()
            .with(MODEL, Table::Folder(folder))
            .with(CURVE, Table::new(table)))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let model = sluice_gpu::tiger::Tiger::load(outputs.folder(MODEL)?).map_err(explain)?;
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
        let curve = outputs.batch(CURVE)?;
        let recall = schema::numbers::<arrow::datatypes::Float64Type>(&curve, "valid_recall_5")?;
        let best = recall.iter().flatten().fold(f64::NAN, f64::max);
        if best.is_finite() {
            notes.insert("best_valid_recall_5".into(), format!("{best:.4}").into());
        }
        Ok(notes)
    }
}

impl TrainTiger {
    fn model(&self, codebook_sizes: Vec<usize>) -> TigerConfig {
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
            schedule: match self.schedule {
                Schedule::Constant => GpuSchedule::Constant,
                Schedule::Cosine => GpuSchedule::Cosine,
                Schedule::InverseSqrt => GpuSchedule::InverseSqrt,
            },
            warmup_steps: self.warmup_steps as usize,
            batch_size: self.batch_size as usize,
            max_steps: Some(self.max_steps as usize),
            max_epochs: self.max_epochs.map(|epochs| epochs as usize),
            eval_every: self.eval_every as usize,
            patience: self.patience as usize,
            clip_norm: self.clip_norm.map(|norm| norm as f32),
            bucket_batches: 0,
            seed,
        }
    }

    /// Puts a complaint of the model or the training under the name that the field has here.
    fn config_problem(&self, binding: &Binding, error: sluice_gpu::error::Error) {
        let field = match &error {
            sluice_gpu::error::Error::InvalidConfig { field, .. } if field == "lr" => "learning_rate".to_string(),
            sluice_gpu::error::Error::InvalidConfig { field, .. } => field.clone(),
            _ => String::new(),
        };
        binding.problem(&field, explain(error));
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

fn curve_fields() -> Vec<Field> {
    vec![
        Field::new("step", DataType::UInt64, false),
        Field::new("epoch", DataType::UInt64, false),
        Field::new("train_loss", DataType::Float64, false),
        Field::new("valid_recall_5", DataType::Float64, true),
        Field::new("valid_ndcg_5", DataType::Float64, true),
        Field::new("learning_rate", DataType::Float64, false),
    ]
}

#[cfg(test)]
mod tests;
