//! `expect:` in a pipeline: what must hold of the results, checked after every run of the pipeline as it is written.
//!
//! ```yaml
//! expect:
//!   - { stage: metrics, where: { metric: mean, k: 10 }, column: value, value: 0.0625, within: 1e-6 }
//!   - { stage: metrics, where: { metric: mean, k: 10 }, at_least: 0.045 }
//! ```

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value};

use crate::error::{Error, Result, did_you_mean};
use crate::run::Outcome;
use crate::spec::{Reference, Spec};
use crate::store::Store;
use crate::yaml::Span;

const KEYS: [&str; 7] = ["stage", "where", "column", "value", "within", "at_least", "at_most"];

/// Checks every expectation; returns those that do not hold, each with its place.
pub fn check(spec: &Spec, outcome: &Outcome, store: &Store) -> Vec<Error> {
    spec.expect
        .iter()
        .filter_map(|node| {
            let value = node.value();
            let result = match value.as_object() {
                Some(expectation) => one(expectation, outcome, store),
                None => Err(Error::user("bad-expectation", "an expectation is a map")),
            };
            result.err().map(|error| error.at(spec.place(node.span)))
        })
        .collect()
}

fn one(expectation: &Map<String, Value>, outcome: &Outcome, store: &Store) -> Result<()> {
    if let Some(key) = expectation.keys().find(|key| !KEYS.contains(&key.as_str())) {
        let mut error = Error::user("unknown-key", format!("unknown key \"{key}\" in an expectation"));
        error.hint = did_you_mean(key, KEYS);
        return Err(error);
    }
    for key in ["within", "at_least", "at_most"] {
        if expectation.get(key).is_some_and(|value| !value.is_number()) {
            return Err(Error::user("bad-expectation", format!("\"{key}\" wants a number")));
        }
    }
    if !["value", "at_least", "at_most"]
        .iter()
        .any(|key| expectation.contains_key(*key))
    {
        return Err(Error::user("bad-expectation", "an expectation that expects nothing")
            .hint("give it \"value\", \"at_least\" or \"at_most\""));
    }
    let reference = expectation.get("stage").and_then(Value::as_str).unwrap_or_default();
    let parsed = Reference::parse(reference, Span::default())?;
    // A full name (of a gathered table, too), or a stage and one of its ports.
    let found = outcome.graph.find(reference)?;
    let (stage, port) = match found.as_slice() {
        [stage] if outcome.graph.stages[*stage].name == reference => (&outcome.graph.stages[*stage], None),
        [stage] => (&outcome.graph.stages[*stage], parsed.port.as_deref()),
        many => {
            let message = format!(
                "\"{reference}\" means {} instances, an expectation is about one",
                many.len()
            );
            return Err(Error::user("bad-expectation", message).hint("write STAGE[AXIS=VALUE,...]"));
        }
    };
    let record = outcome
        .records
        .get(&stage.name)
        .ok_or_else(|| Error::user("unknown-stage", format!("stage \"{}\" has no result", stage.name)))?;
    let digest = match port {
        Some(port) => record.outputs.get(port),
        None => record
            .outputs
            .get(crate::operator::OUT)
            .or_else(|| record.outputs.values().next()),
    };
    let digest =
        digest.ok_or_else(|| Error::user("unknown-port", format!("no output \"{reference}\" in an expectation")))?;
    let empty = Map::new();
    let wanted = expectation.get("where").and_then(Value::as_object).unwrap_or(&empty);
    let column = expectation.get("column").and_then(Value::as_str).unwrap_or("value");
    let found = lookup(store, digest, wanted, column)?;
    let label = format!("{reference} {} {column}", Value::Object(wanted.clone()));
    let number = |key: &str| expectation.get(key).and_then(Value::as_f64);
    let parsed = found.parse::<f64>();
    let failed = |what: String| Err(Error::data("expectation", format!("{label} is {found}, not {what}")));
    if let Some(value) = expectation.get("value") {
        match (value.as_f64(), &parsed) {
            (Some(value), Ok(found)) => {
                let within = number("within").unwrap_or(0.0);
                if (found - value)
                    .abs()
                    .partial_cmp(&within)
                    .is_none_or(|order| order.is_gt())
                {
                    return failed(format!("{value} within {within}"));
                }
            }
            _ if value.as_str() == Some(found.as_str()) => {}
            _ => return failed(value.to_string()),
        }
    }
    if let Some(least) = number("at_least")
        && parsed.as_ref().map_or(true, |found| found.is_nan() || *found < least)
    {
        return failed(format!("at least {least}"));
    }
    if let Some(most) = number("at_most")
        && parsed.as_ref().map_or(true, |found| found.is_nan() || *found > most)
    {
        return failed(format!("at most {most}"));
    }
    Ok(())
}

/// The cell of `column` in the only row whose columns equal `wanted`.
fn lookup(store: &Store, digest: &str, wanted: &Map<String, Value>, column: &str) -> Result<String> {
    let mut cells = Vec::new();
    for batch in store.table(digest)?.batches()? {
        let batch = batch?;
        for row in matching(&batch, wanted)? {
            cells.push(cell(&batch, column, row)?);
        }
    }
    match cells.len() {
        1 => Ok(cells.remove(0)),
        count => {
            let label = Value::Object(wanted.clone());
            Err(Error::user(
                "bad-expectation",
                format!("{count} rows match {label}, an expectation wants one"),
            ))
        }
    }
}

fn matching(batch: &RecordBatch, wanted: &Map<String, Value>) -> Result<Vec<usize>> {
    let mut rows = Vec::new();
    for row in 0..batch.num_rows() {
        let mut matches = true;
        for (column, value) in wanted {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            matches &= cell(batch, column, row)? == text;
        }
        if matches {
            rows.push(row);
        }
    }
    Ok(rows)
}

fn cell(batch: &RecordBatch, column: &str, row: usize) -> Result<String> {
    let array = batch.column_by_name(column).ok_or_else(|| {
        Error::user(
            "missing-column",
            format!("no column \"{column}\" in an expectation's table"),
        )
    })?;
    let options = FormatOptions::default();
    Ok(ArrayFormatter::try_new(array, &options)?.value(row).to_string())
}
