//! Trains SASRec: causal self-attention over the items of a history, scored against the whole catalogue.

use std::collections::BTreeMap;

use arrow::array::StringArray;
use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::optim::AdamConfig;
use sluice_gpu::samples::Ragged;
use sluice_gpu::sasrec::{Loss as GpuLoss, Sasrec, SasrecConfig, Select as GpuSelect, Sequences, Validation};
use sluice_gpu::train::{Site, TrainOptions, TrainingSet, train_model, training_flops};

use crate::baseline::Rows;
use crate::catalogue::Catalogue;
use crate::embed_tfidf_svd::embeddings;
use crate::models::{self, explain};
use crate::protocol;
use crate::schema::{self, ITEM_ID, TARGET};
use crate::sequences;
use crate::training::{
    Precision, Schedule, Shared, Watch, check_precision, checkpoint, config_problem, curve_fields, curve_table,
    devices, note_best, note_no_valid_users,
};

const TRAIN: &str = "train";
const VALID: &str = "valid";
const ITEMS: &str = "items";
const MODEL: &str = "model";
const CURVE: &str = "curve";
const EMBEDDINGS: &str = "embeddings";
const METRICS: [&str; 2] = ["valid_recall_5", "valid_ndcg_10"];

/// Trains SASRec, causal self-attention over item embeddings, with early stopping on valid.
///
/// # In
/// `train`: the train sequences of the split; every item but the first of a sequence is a target. `valid`: the valid
/// rows of the split; they decide when to stop and which weights are kept, and are never trained on. `items`: the
/// catalogue, any table with `item_id`.
///
/// # Out
/// `model`: a folder with `config.json`, `model.safetensors` and `items.json`, the item ids by row. `curve`: `step, epoch,
/// train_loss, valid_recall_5, valid_ndcg_10, learning_rate`, a row per evaluation. `embeddings`: `item_id, embedding`
/// of the trained items. The notes say which step an interrupted or a longer training went on from.
///
/// # Source
/// Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018): two blocks, 50 items, dropout .5, Adam 1e-3. Sizes
/// as in arXiv 2509.25522, Table 3: 12 layers d_model² parameters besides embeddings and norms.
///
/// # Deviates
/// The loss is the softmax over all items, the norm comes before its block and once more at the end, the feed-forward
/// block is four times as wide as the model, no map has a bias; `loss: binary_cross_entropy` is the original's. A history
/// longer than `max_items` is cut into windows, so that no target is lost. Batches are packed: no padding is computed.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSasrec {
    /// Blocks.
    pub layers: u32,
    /// Width of the model, and of the embeddings.
    pub d_model: u32,
    /// Attention heads; they divide the width.
    pub heads: u32,
    /// Dropout probability.
    pub dropout: f64,
    /// Histories are cut to their last items: at most so many. Train sequences are cut into windows of so many.
    pub max_items: u32,
    /// What is minimised.
    pub loss: Loss,
    /// Items that `sampled_softmax` draws per step, for the whole batch.
    pub negatives: u32,
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
    /// Sequences of a batch.
    pub batch_size: u32,
    /// Batches of a step: their gradients are added, so `batch_size` x `accumulate` sequences make a step in the memory
    /// of one batch.
    pub accumulate: u32,
    /// Every batch is cut into so many parts, each with a gradient of its own, which are added up in their order. A run
    /// over several processes (`--hosts`) computes them side by side; how many processes changes no bit. Dropout and
    /// negatives are drawn part by part, so another number of parts is another training. With `device: auto` and `resources: { gpus: M }`
    /// a process computes them on M GPUs.
    #[schemars(extend("x-late" = true))]
    pub replicas: u32,
    /// Most steps. Where `schedule` does not depend on it, a longer training goes on from the end of a shorter one.
    #[schemars(extend("x-extent" = true))]
    pub max_steps: u32,
    /// Most passes over the sequences; null for no limit. See `max_steps`.
    #[schemars(extend("x-extent" = true))]
    pub max_epochs: Option<u32>,
    /// Steps between evaluations on valid.
    pub eval_every: u32,
    /// Stop after so many evaluations without a better one; 0 trains to the end.
    pub patience: u32,
    /// What is better: over the whole catalogue, expected value under ties.
    pub select: Select,
    /// Evaluate on this many valid users, drawn once; null for all.
    pub valid_users: Option<u32>,
    /// What products are computed in: `bf16` wants a GPU.
    pub precision: Precision,
    /// Another seed for this stage alone, added to the run's.
    pub seed: u64,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy of the softmax over all items.
    Softmax,
    /// Binary cross-entropy of the target and of one item that is not in the window (the original).
    BinaryCrossEntropy,
    /// Cross-entropy of the softmax over the target and `negatives` items drawn uniformly.
    SampledSoftmax,
}

/// The metric that decides; the other one decides between equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Select {
    /// NDCG@10.
    #[serde(rename = "ndcg_10")]
    Ndcg10,
    /// Recall@5.
    #[serde(rename = "recall_5")]
    Recall5,
}

impl Default for TrainSasrec {
    fn default() -> Self {
        TrainSasrec {
            layers: 2,
            d_model: 64,
            heads: 2,
            dropout: 0.5,
            max_items: 50,
            loss: Loss::Softmax,
            negatives: 256,
            learning_rate: 1e-3,
            schedule: Schedule::Constant,
            warmup_steps: 0,
            weight_decay: 0.0,
            decoupled_decay: false,
            clip_norm: None,
            batch_size: 128,
            accumulate: 1,
            replicas: 1,
            max_steps: 100_000,
            max_epochs: None,
            eval_every: 500,
            patience: 10,
            select: Select::Ndcg10,
            valid_users: None,
            precision: Precision::F32,
            seed: 0,
            device: "auto".to_string(),
        }
    }
}

impl Operator for TrainSasrec {
    const NAME: &'static str = "train_sasrec";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::required(TRAIN, "train sequences: user_id, sequence (split_leave_one_out.train)"),
        Input::required(
            VALID,
            "valid rows: user_id, sequence, target (split_leave_one_out.valid)",
        ),
        Input::required(ITEMS, "the catalogue: any table with item_id"),
    ];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::TRAINING_TOLERANCE)
    }

    fn extendable(&self) -> bool {
        self.options(0).schedule.is_extendable()
    }

    fn bind(&self, binding: &Binding) -> Bound {
        sequences::require(binding, TRAIN);
        sequences::require_targets(binding, VALID);
        binding.require(ITEMS, &[(ITEM_ID, DataType::Utf8)]);
        if let Err(error) = self.model(1).validate() {
            config_problem(binding, error);
        }
        if let Err(error) = self.options(0).validate() {
            config_problem(binding, error);
        }
        models::check_device(binding, &self.device);
        check_precision(binding, self.precision, &self.device);
        Bound::whole()
            .peers(self.replicas as usize)
            .output(MODEL, Shape::Folder("sasrec".into()))
            .output(CURVE, Shape::table(curve_fields(METRICS)))
            .output(EMBEDDINGS, Shape::table(schema::embeddings(self.d_model as usize)))
            .fact(protocol::HISTORY, protocol::history(self.max_items))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let catalogue = Catalogue::read(inputs.table(ITEMS)?)?;
        if catalogue.is_empty() {
            return Err(Error::data("empty-input", "the catalogue has no items"));
        }
        let config = self.model(catalogue.len());
        let train = Rows::read(&inputs.batch(TRAIN)?, &catalogue, "train item")?;
        let samples = Sequences::new(train.iter(), config.max_items);
        if samples.count() == 0 {
            return Err(Error::data("no-samples", "there is no sample to train on")
                .hint("users with fewer than 4 interactions give no sample after leave-one-out"));
        }
        let valid = inputs.batch(VALID)?;
        let mut histories = Ragged::default();
        for history in Rows::read(&valid, &catalogue, "valid item")?.iter() {
            histories.push(history);
        }
        let targets = catalogue.encode(schema::strings(&valid, TARGET)?, "valid target")?;
        let validation = (!targets.is_empty()).then_some(Validation {
            histories: &histories,
            targets: &targets,
            users: self.valid_users.map(|users| users as usize),
            select: match self.select {
                Select::Ndcg10 => GpuSelect::Ndcg10,
                Select::Recall5 => GpuSelect::Recall5,
            },
        });
        if validation.is_none() {
            note_no_valid_users(context, self.patience)?;
        }
        let options = self.options(context.random("training").key().wrapping_add(self.seed));
        let mut watch = Watch::new(
            context,
            match self.select {
                Select::Ndcg10 => "valid ndcg@10",
                Select::Recall5 => "valid recall@5",
            },
        );
        let devices = devices(context, &self.device, self.replicas)?;
        let trained = train_model::<Sasrec>(
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
        let flops = training_flops::<Sasrec>(&config, &options, &samples, steps);
        context.note("training_flops", flops);
        let folder = context.folder(MODEL)?;
        trained.model.save(&folder).map_err(explain)?;
        catalogue.save(&folder)?;
        let curve = curve_table(&trained.curve, METRICS, |(first, second)| match self.select {
            Select::Recall5 => [first, second],
            Select::Ndcg10 => [second, first],
        })?;
        let ids = StringArray::from_iter_values(catalogue.ids());
        let values = trained.model.item_embeddings().map_err(explain)?.to_vec();
        Ok(Tables::new()
            .with(MODEL, Table::Folder(folder))
            .with(CURVE, curve)
            .with(EMBEDDINGS, Table::new(embeddings(&ids, values, config.d_model)?)))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let model = Sasrec::load(outputs.folder(MODEL)?).map_err(explain)?;
        let parts = model.config().parameters_by_part();
        let mut notes = Notes::new();
        notes.insert("parameters".into(), (parts.total() as u64).into());
        notes.insert(
            "parameters_by_part".into(),
            serde_json::json!({
                "items": parts.items,
                "positions": parts.positions,
                "linear": parts.linear,
                "norms": parts.norms,
            }),
        );
        for metric in METRICS {
            note_best(&mut notes, &outputs.batch(CURVE)?, metric)?;
        }
        Ok(notes)
    }
}

impl TrainSasrec {
    fn model(&self, items: usize) -> SasrecConfig {
        SasrecConfig {
            items,
            layers: self.layers as usize,
            d_model: self.d_model as usize,
            heads: self.heads as usize,
            dropout: self.dropout as f32,
            max_items: self.max_items as usize,
            loss: match self.loss {
                Loss::Softmax => GpuLoss::Softmax,
                Loss::BinaryCrossEntropy => GpuLoss::BinaryCrossEntropy,
                Loss::SampledSoftmax => GpuLoss::SampledSoftmax,
            },
            negatives: self.negatives as usize,
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
}

#[cfg(test)]
mod tests;
