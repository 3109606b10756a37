//! What differs between two runs: configs, seeds, versions, keys, rows, columns, and the values of small tables.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::Serialize;
use serde_json::Value;

use crate::error::Result;
use crate::history::{self, RunRecord, summary};
use crate::key::{Reason, differences};
use crate::store::{KeyRecord, Store};

/// Tables with more rows are not compared value by value.
pub const SMALL_TABLE: u64 = 2_000;

/// What differs between two runs.
#[derive(Clone, Debug, Serialize)]
pub struct RunDifference {
    /// The one run.
    pub old: String,
    /// The other run.
    pub new: String,
    /// Seeds of the runs, if they differ.
    pub seed: Option<(u64, u64)>,
    /// Pipelines of the runs, if they differ.
    pub pipeline: Option<(String, String)>,
    /// Stages that only the one run has.
    pub only_old: Vec<String>,
    /// Stages that only the other run has.
    pub only_new: Vec<String>,
    /// Stages with one key in both.
    pub equal: usize,
    /// Stages with another key, in the order of the new run's plan.
    pub stages: Vec<StageDifference>,
}

/// What differs in a stage.
#[derive(Clone, Debug, Serialize)]
pub struct StageDifference {
    /// The stage.
    pub stage: String,
    /// Its keys.
    pub keys: (String, String),
    /// How the pre-images differ.
    pub because: Vec<Reason>,
    /// Output ports whose content differs.
    pub outputs: Vec<PortDifference>,
}

/// What differs in an output.
#[derive(Clone, Debug, Serialize)]
pub struct PortDifference {
    /// The port.
    pub port: String,
    /// Rows before and after; `None` where the port is missing.
    pub rows: (Option<u64>, Option<u64>),
    /// Columns that are only in the old table, with types.
    pub columns_gone: Vec<String>,
    /// Columns that are only in the new table, with types.
    pub columns_new: Vec<String>,
    /// Values that differ; `None` if the tables are large, gone, or no tables.
    pub values: Option<ValueDifference>,
}

/// How two small tables differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ValueDifference {
    /// Values of rows that are in both.
    pub changed: Vec<ChangedValue>,
    /// Rows only in the old table.
    pub rows_gone: usize,
    /// Rows only in the new table.
    pub rows_new: usize,
}

/// A value that is another one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChangedValue {
    /// What the row is called: the columns that are no values.
    pub row: String,
    /// The column.
    pub column: String,
    /// Before.
    pub old: Option<f64>,
    /// Now.
    pub new: Option<f64>,
}

/// Compares two runs.
pub fn between(store: &Store, old: &RunRecord, new: &RunRecord) -> RunDifference {
    with(store, old, new, outputs)
}

/// Compares two runs without a look into their artifacts, which may take a while: outputs of stages are left out.
pub fn of_keys(store: &Store, old: &RunRecord, new: &RunRecord) -> RunDifference {
    with(store, old, new, |_, _, _| Vec::new())
}

fn with(
    store: &Store,
    old: &RunRecord,
    new: &RunRecord,
    outputs: fn(&Store, &KeyRecord, &KeyRecord) -> Vec<PortDifference>,
) -> RunDifference {
    let only = |a: &RunRecord, b: &RunRecord| {
        let missing = a.keys.keys().filter(|stage| !b.keys.contains_key(*stage));
        missing.cloned().collect()
    };
    let mut difference = RunDifference {
        old: old.run.clone(),
        new: new.run.clone(),
        seed: (old.seed != new.seed).then_some((old.seed, new.seed)),
        pipeline: (old.pipeline != new.pipeline).then(|| (old.pipeline.clone(), new.pipeline.clone())),
        only_old: only(old, new),
        only_new: only(new, old),
        equal: 0,
        stages: Vec::new(),
    };
    for (stage, key) in &old.keys {
        let Some(other) = new.keys.get(stage) else { continue };
        if key == other {
            difference.equal += 1;
            continue;
        }
        let (before, after) = (store.known(key), store.known(other));
        let (because, outputs) = match (&before, &after) {
            (Some(before), Some(after)) => (
                differences(&before.preimage, &after.preimage),
                outputs(store, before, after),
            ),
            _ => (Vec::new(), Vec::new()),
        };
        difference.stages.push(StageDifference {
            stage: stage.clone(),
            keys: (key.clone(), other.clone()),
            because,
            outputs,
        });
    }
    let order = summary(&history::events(store, &new.run));
    let place = |stage: &StageDifference| order.iter().position(|(name, _)| *name == stage.stage);
    difference.stages.sort_by_cached_key(place);
    difference
}

/// Outputs of a stage whose content differs.
pub fn outputs(store: &Store, before: &KeyRecord, after: &KeyRecord) -> Vec<PortDifference> {
    let mut ports: Vec<&String> = before.outputs.keys().chain(after.outputs.keys()).collect();
    ports.sort_unstable();
    ports.dedup();
    let mut found = Vec::new();
    for port in ports {
        let (old, new) = (before.outputs.get(port), after.outputs.get(port));
        if old == new {
            continue;
        }
        let columns = |digest: Option<&String>| -> Vec<String> {
            // What is gone is not compared.
            let manifest = digest.filter(|digest| store.object(digest).exists());
            let manifest = manifest.and_then(|digest| store.manifest(digest).ok());
            let text = |column: &Value, key: &str| column[key].as_str().unwrap_or_default().to_string();
            let columns = manifest.map(|manifest| manifest.schema).unwrap_or_default();
            columns
                .iter()
                .map(|column| format!("{}: {}", text(column, "name"), text(column, "type")))
                .collect()
        };
        let (a, b) = (columns(old), columns(new));
        let comparable = !a.is_empty() && !b.is_empty();
        let missing = |a: &[String], b: &[String]| -> Vec<String> {
            a.iter()
                .filter(|column| comparable && !b.contains(column))
                .cloned()
                .collect()
        };
        let rows = (before.rows.get(port).copied(), after.rows.get(port).copied());
        let small = comparable
            && [rows.0, rows.1]
                .iter()
                .all(|rows| rows.is_some_and(|rows| rows <= SMALL_TABLE));
        let values = match (old, new) {
            (Some(old), Some(new)) if small => values(store, old, new).ok(),
            _ => None,
        };
        found.push(PortDifference {
            port: port.clone(),
            rows,
            columns_gone: missing(&a, &b),
            columns_new: missing(&b, &a),
            values,
        });
    }
    found
}

fn values(store: &Store, old: &str, new: &str) -> Result<ValueDifference> {
    compare(&store.table(old)?.batch()?, &store.table(new)?.batch()?)
}

/// Rows by their name, in order.
type Rows = Vec<(String, Vec<Option<f64>>)>;

/// Compares two small tables: rows are matched by the columns that are no values. Values are columns of
/// floating-point numbers; where there are none, of any numbers.
fn compare(old: &RecordBatch, new: &RecordBatch) -> Result<ValueDifference> {
    let shared: Vec<&String> = old
        .schema_ref()
        .fields()
        .iter()
        .filter(|field| new.schema_ref().field_with_name(field.name()).is_ok())
        .map(|field| field.name())
        .collect();
    let kind = |name: &str| {
        old.schema_ref()
            .field_with_name(name)
            .map(|field| field.data_type().clone())
    };
    let floats = |name: &&&String| kind(name).is_ok_and(|kind| kind.is_floating());
    let numbers = |name: &&&String| kind(name).is_ok_and(|kind| kind.is_numeric());
    let mut values: Vec<&String> = shared.iter().filter(floats).copied().collect();
    if values.is_empty() {
        values = shared.iter().filter(numbers).copied().collect();
    }
    let names: Vec<&String> = shared.into_iter().filter(|name| !values.contains(name)).collect();
    let (a, b) = (rows(old, &names, &values)?, rows(new, &names, &values)?);
    let mut after: BTreeMap<&String, &Vec<Option<f64>>> = b.iter().map(|(name, row)| (name, row)).collect();
    let mut difference = ValueDifference::default();
    for (name, row) in &a {
        let Some(other) = after.remove(name) else {
            difference.rows_gone += 1;
            continue;
        };
        for ((column, old), new) in values.iter().zip(row).zip(other) {
            let same = old == new || matches!((old, new), (Some(old), Some(new)) if old.is_nan() && new.is_nan());
            if !same {
                difference.changed.push(ChangedValue {
                    row: name.clone(),
                    column: (*column).clone(),
                    old: *old,
                    new: *new,
                });
            }
        }
    }
    difference.rows_new = after.len();
    Ok(difference)
}

/// Rows of a table by name; rows of one name are numbered.
fn rows(batch: &RecordBatch, names: &[&String], values: &[&String]) -> Result<Rows> {
    let options = FormatOptions::default().with_null("null");
    let column = |name: &String| {
        let column = batch.column_by_name(name);
        column.ok_or_else(|| crate::error::Error::internal(format!("no column \"{name}\"")))
    };
    let texts = names
        .iter()
        .map(|name| Ok(ArrayFormatter::try_new(column(name)?.as_ref(), &options)?))
        .collect::<Result<Vec<_>>>()?;
    let numbers = values
        .iter()
        .map(|name| Ok(arrow::compute::cast(column(name)?, &DataType::Float64)?))
        .collect::<Result<Vec<_>>>()?;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut rows = Vec::new();
    for row in 0..batch.num_rows() {
        let cells: Vec<String> = texts.iter().map(|text| text.value(row).to_string()).collect();
        let mut name = cells.join(" ");
        let count = seen.entry(name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            name = format!("{name} #{count}");
        }
        let value = |column: &arrow::array::ArrayRef| {
            let column = column.as_primitive::<Float64Type>();
            column.is_valid(row).then(|| column.value(row))
        };
        rows.push((name, numbers.iter().map(value).collect()));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    #[test]
    fn rows_are_matched_by_what_is_no_value() {
        let old = parse("system k:i64 score:f64\na 5 0.5\nb 5 0.25\nc 5 1").unwrap();
        let new = parse("system k:i64 score:f64\nb 5 0.75\na 5 0.5\nd 5 null").unwrap();
        let difference = compare(&old, &new).unwrap();
        let changed = ChangedValue {
            row: "b 5".into(),
            column: "score".into(),
            old: Some(0.25),
            new: Some(0.75),
        };
        assert_eq!(difference.changed, [changed]);
        assert_eq!((difference.rows_gone, difference.rows_new), (1, 1));
        // Facts are counted in whole numbers.
        let (old, new) = (
            parse("fact value:i64\nx 1\nx 2").unwrap(),
            parse("fact value:i64\nx 1\nx 3").unwrap(),
        );
        let difference = compare(&old, &new).unwrap();
        assert_eq!(
            (difference.changed.len(), difference.changed[0].row.as_str()),
            (1, "x #2")
        );
    }
}
