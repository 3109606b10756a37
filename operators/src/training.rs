//! What the operators that train a model share: schedules, the course as seen from the run, the training curve.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, UInt64Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Context, Notes};
use sluice_engine::table::Table;
use sluice_engine::{Error, Kind, Result};
use sluice_gpu::error::Error as GpuError;
use sluice_gpu::train::{Checkpoint, CurvePoint, Peers, TrainEvent};

use crate::models::{self, explain};
use crate::schema;

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

impl From<Schedule> for sluice_gpu::optim::Schedule {
    fn from(schedule: Schedule) -> Self {
        match schedule {
            Schedule::Constant => sluice_gpu::optim::Schedule::Constant,
            Schedule::Cosine => sluice_gpu::optim::Schedule::Cosine,
            Schedule::InverseSqrt => sluice_gpu::optim::Schedule::InverseSqrt,
        }
    }
}

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32, like everything else.
    F32,
    /// bf16 on a GPU; weights, the optimizer, norms, softmax and losses stay f32.
    Bf16,
}

impl From<Precision> for sluice_gpu::ops::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => sluice_gpu::ops::Precision::F32,
            Precision::Bf16 => sluice_gpu::ops::Precision::Bf16,
        }
    }
}

/// Complains where a stage asks for the CPU by name and for what it does not have. What `auto` finds is known only when
/// the stage runs.
pub fn check_precision(binding: &Binding, precision: Precision, device: &str) {
    if precision == Precision::Bf16 && device == "cpu" {
        let error = Error::user("bad-value", "bf16 is for GPUs; on the CPU products are computed in f32");
        binding.problem("precision", error.hint("set precision to f32, or device to cuda"));
    }
}

/// Puts a complaint of the model or the training under the name that the field has in the pipeline.
pub fn config_problem(binding: &Binding, error: GpuError) {
    let (field, error) = match error {
        GpuError::InvalidConfig { field, reason } => {
            let field = match field.as_str() {
                "lr" => "learning_rate".to_string(),
                "sinkhorn" => "sinkhorn_epsilon".to_string(),
                _ => field,
            };
            (field.clone(), GpuError::InvalidConfig { field, reason })
        }
        other => (String::new(), other),
    };
    binding.problem(&field, explain(error));
}

/// Notes that there is no valid user: a training that wants to stop by them is refused.
pub fn note_no_valid_users(context: &Context, patience: u32) -> Result<()> {
    if patience > 0 {
        let message = format!("there is no valid user, and a patience of {patience} wants some to stop by");
        let hint = "look at what the split left, or set patience: 0 to train to the end";
        return Err(Error::data("no-valid-users", message).hint(hint));
    }
    context.note("valid_users", 0u64);
    Ok(())
}

/// Where the state of this stage's training is kept.
pub fn checkpoint(context: &Context) -> Option<Checkpoint<'_>> {
    context.checkpoint.as_ref().map(|checkpoint| Checkpoint {
        folder: &checkpoint.folder,
        every: checkpoint.every,
    })
}

/// The devices that this call's share of the replicas is trained on.
pub fn devices(context: &Context, name: &str, replicas: u32) -> Result<Vec<Device>> {
    models::devices(context, name, (replicas as usize).div_ceil(context.peers.count()))
}

/// The calls that share the steps of this stage's training.
pub struct Shared<'a>(pub &'a Context);

impl Peers for Shared<'_> {
    fn rank(&self) -> usize {
        self.0.peers.rank()
    }

    fn count(&self) -> usize {
        self.0.peers.count()
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> sluice_gpu::error::Result<Vec<Vec<u8>>> {
        self.0.peers.exchange(parts).map_err(|error| match error.kind {
            Kind::Interrupted => GpuError::Interrupted,
            _ => GpuError::Peer(error.message),
        })
    }
}

/// Tells the run how a training goes, notes what it went on from, and stops it when the run is asked to stop.
pub struct Watch<'a> {
    context: &'a Context,
    metric: &'static str,
    sign: f64,
    best: f64,
    steps: (u64, u64, f64),
    passed_over: Vec<String>,
}

impl<'a> Watch<'a> {
    /// A watch that shows the best value of the deciding metric under this name.
    pub fn new(context: &'a Context, metric: &'static str) -> Self {
        Watch {
            context,
            metric,
            sign: 1.0,
            best: f64::NAN,
            steps: (0, 0, 0.0),
            passed_over: Vec::new(),
        }
    }

    /// One of a loss, whose negative decides.
    pub fn of_loss(context: &'a Context, metric: &'static str) -> Self {
        Watch {
            sign: -1.0,
            ..Self::new(context, metric)
        }
    }

    /// Hears an event.
    pub fn hear(&mut self, event: TrainEvent) -> ControlFlow<()> {
        match event {
            TrainEvent::Resumed { step } => {
                self.context.note("resumed_from_step", step as u64);
                return models::stopped(self.context);
            }
            TrainEvent::StateFailed { path, reason } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.passed_over.push(format!("{name}: {reason}"));
                self.context.note("states_passed_over", self.passed_over.clone());
                return models::stopped(self.context);
            }
            TrainEvent::Step { step, total, loss, .. } => self.steps = (step as u64, total as u64, f64::from(loss)),
            TrainEvent::Evaluated { point, best: true } => {
                self.best = point.valid.map_or(f64::NAN, |valid| self.sign * valid.0)
            }
            TrainEvent::Evaluated { .. } | TrainEvent::Evaluating { .. } | TrainEvent::Saved { .. } => {}
        }
        let (step, total, loss) = self.steps;
        let mut figures = vec![("loss", loss)];
        if self.best.is_finite() {
            figures.push((self.metric, self.best));
        }
        self.context.progress(step, Some(total), "steps", &figures);
        models::stopped(self.context)
    }
}

/// Fields of a training curve; `metrics` names the columns of the two metrics.
pub fn curve_fields(metrics: [&str; 2]) -> Vec<Field> {
    vec![
        Field::new("step", DataType::UInt64, false),
        Field::new("epoch", DataType::UInt64, false),
        Field::new("train_loss", DataType::Float64, false),
        Field::new(metrics[0], DataType::Float64, true),
        Field::new(metrics[1], DataType::Float64, true),
        Field::new("learning_rate", DataType::Float64, false),
    ]
}

/// A training curve as a table; `valid` says the metrics of a point in the order of their columns.
pub fn curve_table(curve: &[CurvePoint], metrics: [&str; 2], valid: impl Fn((f64, f64)) -> [f64; 2]) -> Result<Table> {
    let count = |of: fn(&CurvePoint) -> usize| -> ArrayRef {
        Arc::new(UInt64Array::from_iter_values(
            curve.iter().map(|point| of(point) as u64),
        ))
    };
    let number =
        |of: fn(&CurvePoint) -> f64| -> ArrayRef { Arc::new(Float64Array::from_iter_values(curve.iter().map(of))) };
    let metric = |i: usize| -> ArrayRef {
        Arc::new(Float64Array::from_iter(
            curve.iter().map(|point| point.valid.map(|pair| valid(pair)[i])),
        ))
    };
    let columns = vec![
        count(|point| point.step),
        count(|point| point.epoch),
        number(|point| point.train_loss),
        metric(0),
        metric(1),
        number(|point| point.lr),
    ];
    let schema = Arc::new(Schema::new(curve_fields(metrics)));
    Ok(Table::new(RecordBatch::try_new(schema, columns)?))
}

/// Notes the best value of a column of the curve.
pub fn note_best(notes: &mut Notes, curve: &RecordBatch, metric: &str) -> Result<()> {
    let values = schema::numbers::<Float64Type>(curve, metric)?;
    let best = values.iter().flatten().fold(f64::NAN, f64::max);
    if best.is_finite() {
        notes.insert(format!("best_{metric}"), format!("{best:.4}").into());
    }
    Ok(())
}
