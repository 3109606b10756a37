//! Puts the metrics of several systems into one table to read.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt32Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Binding, Bound, Context, Input, Operator};
use sluice_engine::table::{Shape, Tables};

use crate::{metric_rows, schema};

/// One row per system and slice, one column per metric: the table a paper prints.
///
/// # In
/// Any number of inputs, each the metrics of `score_ranking`; the name of the input is the name of the system. Metrics
/// gathered from a sweep (`metrics[*]`) are a system for every point: `NAME[size=13m,seed=1]`.
///
/// # Out
/// `out`: `system`, `slice`, then a column per metric and k (`recall_5`, `ndcg_5`, ...), null where a system has no value.
///
/// # Source
/// Recall@K and NDCG@K are the columns of every paper on this data, see TIGER (arXiv 2305.05065), Table 1.
///
/// # Deviates
/// Nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TabulateMetrics {
    /// Metrics, in order.
    pub metrics: Vec<String>,
    /// Cut-offs, in order.
    pub k: Vec<u32>,
    /// How ties are counted: `listed`, `expected`, `optimistic` or `pessimistic`.
    pub ties: String,
    /// Slices, in order.
    pub slices: Vec<String>,
}

impl Default for TabulateMetrics {
    fn default() -> Self {
        TabulateMetrics {
            metrics: vec!["recall".into(), "ndcg".into()],
            k: vec![5, 10],
            ties: "expected".into(),
            slices: vec!["all".into()],
        }
    }
}

impl Operator for TabulateMetrics {
    const NAME: &'static str = "tabulate_metrics";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(
        ANY,
        "metrics of a system (score_ranking); its name names the row",
    )];

    fn bind(&self, binding: &Binding) -> Bound {
        for name in binding.inputs() {
            binding.require(
                name,
                &[
                    ("metric", DataType::Utf8),
                    ("k", DataType::UInt32),
                    ("slice", DataType::Utf8),
                    ("ties", DataType::Utf8),
                    ("value", DataType::Float64),
                ],
            );
        }
        let known = ["listed", "expected", "optimistic", "pessimistic"];
        if !known.contains(&self.ties.as_str()) {
            binding.bad_value(
                "ties",
                format!("ties is \"{}\", not one of {}", self.ties, known.join(", ")),
            );
        }
        Bound::whole().out(Shape::Table(Arc::new(self.schema())))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let (mut systems, mut slices) = (Vec::new(), Vec::new());
        let mut values: Vec<Vec<Option<f64>>> = vec![Vec::new(); self.columns().len()];
        for (system, table) in inputs.iter() {
            let batch = table.batch()?;
            let metrics = schema::strings(&batch, "metric")?;
            let slice_of = schema::strings(&batch, "slice")?;
            let ties = schema::strings(&batch, "ties")?;
            let ks = schema::numbers::<UInt32Type>(&batch, "k")?;
            let value = schema::numbers::<Float64Type>(&batch, "value")?;
            for (point, rows) in points(&batch)? {
                for slice in &self.slices {
                    let find = |metric: &str, k: u32| {
                        let found = rows.iter().find(|&&row| {
                            metrics.value(row) == metric
                                && ks.value(row) == k
                                && slice_of.value(row) == slice
                                && ties.value(row) == self.ties
                        });
                        found.map(|row| value.value(*row))
                    };
                    systems.push(format!("{system}{point}"));
                    slices.push(slice.clone());
                    for (column, (metric, k)) in values.iter_mut().zip(self.columns()) {
                        column.push(find(&metric, k));
                    }
                }
            }
        }
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(systems)),
            Arc::new(StringArray::from(slices)),
        ];
        columns.extend(
            values
                .into_iter()
                .map(|column| Arc::new(Float64Array::from(column)) as ArrayRef),
        );
        Ok(Tables::out(RecordBatch::try_new(Arc::new(self.schema()), columns)?))
    }
}

/// Rows by point of a sweep, in the order of the table: columns that metrics do not have are its axes.
fn points(batch: &RecordBatch) -> Result<Vec<(String, Vec<usize>)>> {
    let own = metric_rows::fields();
    let schema = batch.schema();
    let mut axes = Vec::new();
    let options = FormatOptions::default();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if !own.iter().any(|own| own.name() == field.name()) {
            axes.push((field.name(), ArrayFormatter::try_new(column, &options)?));
        }
    }
    let mut points: Vec<(String, Vec<usize>)> = Vec::new();
    for row in 0..batch.num_rows() {
        let parts: Vec<String> = axes
            .iter()
            .map(|(name, value)| format!("{name}={}", value.value(row)))
            .collect();
        let point = if parts.is_empty() {
            String::new()
        } else {
            format!("[{}]", parts.join(","))
        };
        // A point's rows come together: it is the last one, or new.
        match points.last_mut().filter(|(last, _)| *last == point) {
            Some((_, rows)) => rows.push(row),
            None => points.push((point, vec![row])),
        }
    }
    if points.is_empty() {
        points.push((String::new(), Vec::new()));
    }
    Ok(points)
}

impl TabulateMetrics {
    /// `recall@5, ndcg@5, recall@10, ...`, as papers order them.
    fn columns(&self) -> Vec<(String, u32)> {
        self.k
            .iter()
            .flat_map(|k| self.metrics.iter().map(|metric| (metric.clone(), *k)))
            .collect()
    }

    fn schema(&self) -> Schema {
        let mut fields = vec![
            Field::new("system", DataType::Utf8, false),
            Field::new("slice", DataType::Utf8, false),
        ];
        let column = |(metric, k): (String, u32)| Field::new(format!("{metric}_{k}"), DataType::Float64, true);
        fields.extend(self.columns().into_iter().map(column));
        Schema::new(fields)
    }
}
