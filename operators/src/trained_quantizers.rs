//! What trained quantizers share: optimizers, the start of codebooks, the curve of a training, its errors.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Notes};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::optim::{AdagradConfig, AdamConfig, OptimizerConfig, SgdConfig};
use sluice_gpu::residual::ResidualDistances;
use sluice_gpu::rqvae::{self, Evaluation, RqVaeConfig, RqVaeError, TrainOptions, TrainingEvent};

use crate::models;
use crate::quantizers::{self, CODEBOOKS, INPUT, Levels};
use crate::schema;
use crate::training::config_problem;

/// Evaluations of the training.
pub(crate) const CURVE: &str = "curve";

/// Which optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// AdamW with betas .9 and .999.
    Adamw,
    /// Adagrad (TIGER: learning rate .4).
    Adagrad,
    /// SGD with momentum .9.
    Sgd,
}

impl Optimizer {
    pub(crate) fn config(self, weight_decay: f64) -> OptimizerConfig {
        let weight_decay = weight_decay as f32;
        match self {
            Optimizer::Adamw => OptimizerConfig::Adam(AdamConfig {
                weight_decay,
                decoupled: true,
                ..AdamConfig::default()
            }),
            Optimizer::Adagrad => OptimizerConfig::Adagrad(AdagradConfig {
                weight_decay,
                ..AdagradConfig::default()
            }),
            Optimizer::Sgd => OptimizerConfig::Sgd(SgdConfig {
                momentum: 0.9,
                weight_decay,
            }),
        }
    }
}

/// Where the first codebooks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Random numbers.
    Random,
    /// Residual k-means of the first batch.
    FirstBatch,
    /// Residual k-means of all rows.
    Table,
}

impl From<Start> for rqvae::Start {
    fn from(start: Start) -> Self {
        match start {
            Start::Random => rqvae::Start::Random,
            Start::FirstBatch => rqvae::Start::FirstBatch,
            Start::Table => rqvae::Start::Table,
        }
    }
}

/// How codebooks learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Codebooks {
    /// By the gradient of the codebook loss.
    Gradient,
    /// As running means of the residuals that they stand for, see `decay`.
    RunningMean,
}

impl Codebooks {
    pub(crate) fn with(self, decay: f64) -> rqvae::Codebooks {
        match self {
            Codebooks::Gradient => rqvae::Codebooks::Gradient,
            Codebooks::RunningMean => rqvae::Codebooks::RunningMean { decay: decay as f32 },
        }
    }
}

/// Checks the numbers of a training and declares all ports.
pub(crate) fn bind(binding: &Binding, levels: Levels, config: &RqVaeConfig, options: &TrainOptions) -> Bound {
    for checked in [config.validate(), options.validate()] {
        if let Err(error) = checked {
            // Bad numbers of levels are told with the field of this house.
            let of_levels =
                matches!(&error, sluice_gpu::error::Error::InvalidConfig { field, .. } if field == "codebook_sizes");
            if !of_levels {
                config_problem(binding, error);
            }
        }
    }
    if let Some(collapse) = options.collapse
        && (!(0.0..=1.0).contains(&collapse.share) || collapse.evaluations == 0)
    {
        let message = "collapse_share must lie in 0..=1, collapse_evaluations be positive";
        binding.bad_value("collapse_share", message);
    }
    levels.bind(binding).output(CURVE, Shape::table(curve_fields()))
}

/// Trains on the input and puts out all ports.
pub(crate) fn run(
    context: &Context,
    inputs: &Tables,
    levels: Levels,
    layers: &[usize],
    options: &TrainOptions,
) -> Result<Tables> {
    let batch = inputs.batch(INPUT)?;
    let (items, rows, width) = quantizers::read_embeddings(&batch)?;
    let config = RqVaeConfig {
        dim: width,
        layers: layers.to_vec(),
        codebook_sizes: levels.sizes(),
    };
    let mut figures: Vec<(&str, f64)> = Vec::new();
    let trained = rqvae::train(rows, &config, options, &mut |event| {
        match event {
            TrainingEvent::Step { step, total, loss } => {
                let mut all = vec![("loss", loss)];
                all.extend(&figures);
                context.progress(step as u64, Some(total as u64), "steps", &all);
            }
            TrainingEvent::Evaluated(evaluation) => {
                let least = evaluation.levels.iter().map(|level| level.perplexity);
                figures = vec![
                    ("least perplexity", least.fold(f64::INFINITY, f64::min)),
                    ("collisions", evaluation.collision_rate),
                ];
            }
        }
        models::stopped(context)
    })
    .map_err(|error| explain(error, items.len(), levels))?;
    let quantizer = trained.model.levels();
    let distances = ResidualDistances {
        quantizer: &quantizer,
        rows_nd: &trained.latents_nl,
    };
    let tables = levels.tables(items, trained.codes_nc, &distances, &trained.levels)?;
    let folder = context.folder(CODEBOOKS)?;
    trained.model.save(&folder).map_err(models::explain)?;
    Ok(tables
        .with(CODEBOOKS, Table::Folder(folder))
        .with(CURVE, Table::new(curve_table(&trained.curve)?)))
}

/// Notes on the outputs: items, what the last level left over, the last evaluation.
pub(crate) fn notes(outputs: &Tables) -> Result<Notes> {
    let mut notes = quantizers::notes(outputs)?;
    let curve = outputs.batch(CURVE)?;
    for (name, column) in [
        ("reconstruction", "reconstruction"),
        ("collision_rate", "collision_rate"),
    ] {
        let values = schema::numbers::<Float64Type>(&curve, column)?;
        let last = values.iter().flatten().last().unwrap_or(f64::NAN);
        notes.insert(name.into(), format!("{last:.4}").into());
    }
    Ok(notes)
}

fn explain(error: RqVaeError, items: usize, levels: Levels) -> Error {
    match error {
        RqVaeError::Collapsed { .. } => Error::data("collapsed", error.to_string()).hint(
            "try a lower learning_rate, restart_after: 24, start: table or schedule: cosine; or lower collapse_share",
        ),
        RqVaeError::Model(error @ sluice_gpu::error::Error::NotFinite { .. }) => {
            Error::data("diverged", error.to_string()).hint("lower learning_rate")
        }
        RqVaeError::Model(error) => models::explain(error),
        RqVaeError::Rows(_) | RqVaeError::Start { .. } => quantizers::failed(error, items, levels),
    }
}

fn curve_fields() -> Vec<Field> {
    vec![
        Field::new("step", DataType::UInt64, false),
        Field::new("epoch", DataType::UInt64, false),
        Field::new("train_loss", DataType::Float64, true),
        Field::new("reconstruction", DataType::Float64, false),
        Field::new("collision_rate", DataType::Float64, false),
        Field::new("level", DataType::UInt32, false),
        Field::new("perplexity", DataType::Float64, false),
        Field::new("dead", DataType::UInt32, false),
    ]
}

/// A row per evaluation and level.
fn curve_table<'a>(curve: &'a [Evaluation]) -> Result<RecordBatch> {
    let rows = || {
        let of = |evaluation: &'a Evaluation| (0u32..).zip(&evaluation.levels).map(move |level| (evaluation, level));
        curve.iter().flat_map(of)
    };
    let numbers = |of: fn(&Evaluation) -> u64| {
        let numbers = rows().map(|(evaluation, _)| of(evaluation));
        Arc::new(UInt64Array::from_iter_values(numbers))
    };
    let floats = |of: fn(&Evaluation) -> Option<f64>| {
        let floats = rows().map(|(evaluation, _)| of(evaluation));
        Arc::new(floats.collect::<Float64Array>())
    };
    let columns: Vec<ArrayRef> = vec![
        numbers(|evaluation| evaluation.step as u64),
        numbers(|evaluation| evaluation.epoch as u64),
        floats(|evaluation| evaluation.train_loss),
        floats(|evaluation| Some(evaluation.reconstruction)),
        floats(|evaluation| Some(evaluation.collision_rate)),
        Arc::new(UInt32Array::from_iter_values(rows().map(|(_, (level, _))| level))),
        Arc::new(Float64Array::from_iter_values(
            rows().map(|(_, (_, level))| level.perplexity),
        )),
        Arc::new(UInt32Array::from_iter_values(
            rows().map(|(_, (_, level))| level.dead as u32),
        )),
    ];
    Ok(RecordBatch::try_new(Arc::new(Schema::new(curve_fields())), columns)?)
}
