//! Puts the metrics of several systems into one table to read.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt32Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::error::did_you_mean;
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Binding, Bound, Context, Input, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

use crate::{metric_rows, schema, slices};

/// The rule for ties of metrics that have no other.
const LISTED: &str = "listed";

/// One row per system and slice, one column per metric: the table a paper prints.
///
/// # In
/// Any number of inputs, each the metrics of `score_ranking`; the name of the input is the name of the system. Metrics
/// gathered from a sweep (`metrics[*]`) are a system for every point: `NAME[size=13m,seed=1]`.
///
/// # Out
/// `out`: `system`, `slice`, then a column per metric and k (`recall_5`, `ndcg_5`, ...), null where a system has no
/// value. A metric, k or slice that no system has is an error, unless it is a slice without users.
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
    /// How ties are counted: `listed`, `expected`, `optimistic` or `pessimistic`. Metrics that are only `listed`, such
    /// as `gini` and `id_recall`, are taken so.
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
    const VERSION: u32 = 2;
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
        let known = [LISTED, "expected", "optimistic", "pessimistic"];
        if !known.contains(&self.ties.as_str()) {
            binding.bad_value(
                "ties",
                format!("ties is \"{}\", not one of {}", self.ties, known.join(", ")),
            );
        }
        Bound::whole().out(Shape::Table(Arc::new(self.schema())))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let mut known = Known::default();
        let mut batches = Vec::new();
        for (system, table) in inputs.iter() {
            let batch = table.batch()?;
            known.add(&batch)?;
            batches.push((system, batch));
        }
        let mut wanted = Vec::new();
        for (metric, k) in self.columns() {
            known.check_metric(&metric, k, &self.ties)?;
            let rule = known.rule(&metric, &self.ties);
            wanted.push((metric, k, rule));
        }
        for slice in &self.slices {
            known.check_slice(slice)?;
        }
        let (mut systems, mut slices) = (Vec::new(), Vec::new());
        let mut values: Vec<Vec<Option<f64>>> = vec![Vec::new(); wanted.len()];
        for (system, batch) in batches {
            let metrics = schema::strings(&batch, "metric")?;
            let slice_of = schema::strings(&batch, "slice")?;
            let ties = schema::strings(&batch, "ties")?;
            let ks = schema::numbers::<UInt32Type>(&batch, "k")?;
            let value = schema::numbers::<Float64Type>(&batch, "value")?;
            for (point, rows) in points(&batch)? {
                for slice in &self.slices {
                    let find = |metric: &str, k: u32, rule: &str| {
                        let found = rows.iter().find(|&&row| {
                            metrics.value(row) == metric
                                && ks.is_valid(row)
                                && ks.value(row) == k
                                && slice_of.value(row) == slice
                                && ties.value(row) == rule
                        });
                        found.map(|row| value.value(*row))
                    };
                    systems.push(format!("{system}{point}"));
                    slices.push(slice.clone());
                    for (column, (metric, k, rule)) in values.iter_mut().zip(&wanted) {
                        column.push(find(metric, *k, rule));
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

/// What the inputs have.
#[derive(Default)]
struct Known {
    /// Rules for ties, metrics and cut-offs.
    metrics: BTreeSet<(String, String, Option<u32>)>,
    slices: BTreeSet<String>,
}

impl Known {
    fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let [metrics, slices, ties] = ["metric", "slice", "ties"].map(|name| schema::strings(batch, name));
        let (metrics, slices, ties) = (metrics?, slices?, ties?);
        let ks = schema::numbers::<UInt32Type>(batch, "k")?;
        for row in 0..batch.num_rows() {
            let k = ks.is_valid(row).then(|| ks.value(row));
            self.metrics
                .insert((ties.value(row).to_string(), metrics.value(row).to_string(), k));
            self.slices.insert(slices.value(row).to_string());
        }
        Ok(())
    }

    /// The rule for ties that a metric is looked up by.
    fn rule<'a>(&self, metric: &str, ties: &'a str) -> &'a str {
        let has = |known: &(String, String, Option<u32>)| known.0 == ties && known.1 == metric;
        if self.metrics.iter().any(has) { ties } else { LISTED }
    }

    fn check_metric(&self, metric: &str, k: u32, ties: &str) -> Result<()> {
        let rule = self.rule(metric, ties);
        if self.metrics.contains(&(rule.to_string(), metric.to_string(), Some(k))) {
            return Ok(());
        }
        let of_rules = self.metrics.iter().filter(|known| known.0 == ties || known.0 == LISTED);
        let names: BTreeSet<&str> = of_rules.map(|known| known.1.as_str()).collect();
        if names.contains(metric) {
            let own = self.metrics.iter().filter(|known| known.0 == rule && known.1 == metric);
            let at = own.map(|known| match known.2 {
                Some(k) => format!("{metric}@{k}"),
                None => format!("{metric}, which has no k"),
            });
            let message = format!("no input has \"{metric}@{k}\"");
            return Err(Error::user("unknown-metric", message)
                .detail(they_have(at))
                .hint("\"k\" of score_ranking says at which cut-offs lists are scored"));
        }
        let message = format!("no input has a metric \"{metric}\" with ties \"{ties}\"");
        let mut error = Error::user("unknown-metric", message).detail(they_have(names.iter().copied()));
        error.hint = did_you_mean(metric, names);
        Err(error)
    }

    fn check_slice(&self, slice: &str) -> Result<()> {
        if self.slices.contains(slice) || self.has_no_users(slice) {
            return Ok(());
        }
        let names = self.slices.iter().map(String::as_str);
        let mut error =
            Error::user("unknown-slice", format!("no input has a slice \"{slice}\"")).detail(they_have(names.clone()));
        error.hint = match slices::definitions(true, true).iter().any(|(name, _)| *name == slice) {
            true => {
                Some("score_ranking scores it with \"slices: true\", and what is cold or popular with \"train\"".into())
            }
            false => did_you_mean(slice, names),
        };
        Err(error)
    }

    /// Whether a slice was looked for: `score_ranking` leaves out slices without users, but never all of a kind.
    fn has_no_users(&self, slice: &str) -> bool {
        let (of_rows, all) = (slices::definitions(true, false), slices::definitions(true, true));
        let (of_rows, of_counts) = (&all[1..of_rows.len()], &all[of_rows.len()..]);
        [of_rows, of_counts].into_iter().any(|kind| {
            kind.iter().any(|(name, _)| *name == slice) && kind.iter().any(|(name, _)| self.slices.contains(*name))
        })
    }
}

fn they_have(names: impl Iterator<Item = impl AsRef<str>>) -> String {
    let names: Vec<String> = names.map(|name| name.as_ref().to_string()).collect();
    match names.is_empty() {
        true => "they have no rows".to_string(),
        false => format!("they have: {}", names.join(", ")),
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

#[cfg(test)]
mod tests {
    use sluice_engine::operator::OUT;
    use sluice_engine::{harness, text};

    use super::*;

    const MARKOV: &str = "metric k:u32 slice ties value:f64
        recall 5 all expected 0.5
        recall 5 all listed 0.75
        recall 5 later expected 0.25
        recall 10 all expected 0.625
        id_recall 5 all listed 0.5
        gini 5 all listed 0.125
        duplicates null all listed 3";
    const POPULAR: &str = "metric k:u32 slice ties value:f64
        recall 5 all expected 0.375
        recall 5 all listed 0.375
        gini 5 all listed 1";

    fn tabulated(metrics: &[&str], k: &[u32], slices: &[&str]) -> Result<String> {
        let texts = |texts: &[&str]| -> Vec<String> { texts.iter().map(|text| text.to_string()).collect() };
        let config = TabulateMetrics {
            metrics: texts(metrics),
            k: k.to_vec(),
            slices: texts(slices),
            ..TabulateMetrics::default()
        };
        let inputs = [("markov", MARKOV), ("popular", POPULAR)].map(|(name, rows)| (name, text::parse(rows).unwrap()));
        text::render(&harness::run(&config, &inputs)?.batch(OUT)?)
    }

    #[test]
    fn what_only_some_systems_have_is_null() {
        // Nobody's target is as old as the item before.
        let slices = ["all", "later", "same_timestamp"];
        let wanted = "system   slice           recall_5  id_recall_5  gini_5
markov   all             0.5       0.5          0.125
markov   later           0.25      null         null
markov   same_timestamp  null      null         null
popular  all             0.375     null         1.0
popular  later           null      null         null
popular  same_timestamp  null      null         null
";
        assert_eq!(
            tabulated(&["recall", "id_recall", "gini"], &[5], &slices).unwrap(),
            wanted
        );
    }

    #[test]
    fn what_no_system_has_is_refused() {
        let told = |metrics: &[&str], k: &[u32], slices: &[&str]| {
            let error = tabulated(metrics, k, slices).unwrap_err();
            format!(
                "{}: {}; {}; {}",
                error.code,
                error.message,
                error.detail.join(" "),
                error.hint.unwrap_or_default()
            )
        };
        assert_eq!(
            told(&["recall", "reccall"], &[5], &["all"]),
            "unknown-metric: no input has a metric \"reccall\" with ties \"expected\"; \
             they have: duplicates, gini, id_recall, recall; did you mean \"recall\"?"
        );
        assert_eq!(
            told(&["recall"], &[5, 20], &["all"]),
            "unknown-metric: no input has \"recall@20\"; they have: recall@5, recall@10; \
             \"k\" of score_ranking says at which cut-offs lists are scored"
        );
        assert_eq!(
            told(&["recall"], &[5], &["all", "latr"]),
            "unknown-slice: no input has a slice \"latr\"; they have: all, later; did you mean \"later\"?"
        );
        let error = told(&["recall"], &[5], &["cold_5"]);
        assert!(
            error.contains("no input has a slice \"cold_5\"") && error.contains("\"train\""),
            "{error}"
        );
    }
}
