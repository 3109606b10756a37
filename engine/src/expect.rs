//! `expect:` in a pipeline: what must hold of the results, checked after every run of the pipeline as it is written. What
//! can be wrong with an expectation itself (a key, a stage, a column) is found before the run.
//!
//! ```yaml
//! expect:
//!   - { stage: metrics, where: { metric: mean, k: 10 }, column: value, value: 0.0625, within: 1e-6 }
//!   - { stage: metrics, where: { metric: mean, k: 10 }, at_least: 0.045 }
//!   - { stage: metrics, where: { slice: all }, rows: 4 }
//! ```

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Value};

use crate::error::{Error, Result, did_you_mean};
use crate::graph::Graph;
use crate::operator::OUT;
use crate::run::Outcome;
use crate::spec::{Reference, Spec};
use crate::store::Store;
use crate::table::Shape;
use crate::yaml::{Node, Span};

const KEYS: [&str; 8] = [
    "stage", "where", "column", "value", "within", "at_least", "at_most", "rows",
];

/// What is wrong with the expectations of a pipeline as they are written, each with its place.
pub fn problems(spec: &Spec, graph: &Graph) -> Vec<Error> {
    let problem = |node: &Node| {
        let result = Expectation::parse(node).and_then(|expectation| expectation.bind(graph));
        Some(result.err()?.at(spec.place(node.span)))
    };
    spec.expect.iter().filter_map(problem).collect()
}

/// Checks every expectation; returns those that do not hold, each with its place.
pub fn check(spec: &Spec, outcome: &Outcome, store: &Store) -> Vec<Error> {
    let failure = |node: &Node| {
        let result = Expectation::parse(node).and_then(|expectation| expectation.check(outcome, store));
        Some(result.err()?.at(spec.place(node.span)))
    };
    spec.expect.iter().filter_map(failure).collect()
}

/// One item of the list.
struct Expectation {
    reference: String,
    wanted: Map<String, Value>,
    column: String,
    value: Option<Value>,
    within: f64,
    at_least: Option<f64>,
    at_most: Option<f64>,
    rows: Option<u64>,
}

impl Expectation {
    fn parse(node: &Node) -> Result<Self> {
        let bad = |message: String| Error::user("bad-expectation", message);
        let value = node.value();
        let map = value.as_object().ok_or_else(|| bad("an expectation is a map".into()))?;
        if let Some(key) = map.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let mut error = Error::user("unknown-key", format!("unknown key \"{key}\" in an expectation"));
            error.hint = did_you_mean(key, KEYS);
            return Err(error);
        }
        let number = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(value) => value
                .as_f64()
                .map(Some)
                .ok_or_else(|| bad(format!("\"{key}\" wants a number"))),
        };
        let expectation = Expectation {
            reference: map.get("stage").and_then(Value::as_str).unwrap_or_default().to_string(),
            wanted: match map.get("where") {
                None => Map::new(),
                Some(wanted) => wanted
                    .as_object()
                    .cloned()
                    .ok_or_else(|| bad("\"where\" wants a map".into()))?,
            },
            column: map.get("column").and_then(Value::as_str).unwrap_or("value").to_string(),
            value: map.get("value").cloned(),
            within: number("within")?.unwrap_or(0.0),
            at_least: number("at_least")?,
            at_most: number("at_most")?,
            rows: match map.get("rows") {
                None => None,
                Some(rows) => Some(
                    rows.as_u64()
                        .ok_or_else(|| bad("\"rows\" wants a number of rows".into()))?,
                ),
            },
        };
        let of_a_cell = expectation.value.is_some() || expectation.at_least.is_some() || expectation.at_most.is_some();
        match (of_a_cell, expectation.rows.is_some()) {
            (false, false) => Err(bad("an expectation that expects nothing".into())
                .hint("give it \"value\", \"at_least\", \"at_most\" or \"rows\"")),
            (true, true) => {
                Err(bad("\"rows\" counts rows, the other keys look at one cell".into()).hint("write two expectations"))
            }
            _ => Ok(expectation),
        }
    }

    /// The stage it is about and its port: a full name (of a gathered table, too), or a stage and one of its ports.
    fn stage(&self, graph: &Graph) -> Result<(usize, Option<String>)> {
        let parsed = Reference::parse(&self.reference, Span::default())?;
        match graph.find(&self.reference)?.as_slice() {
            [stage] if graph.stages[*stage].name == self.reference => Ok((*stage, None)),
            [stage] => Ok((*stage, parsed.port)),
            many => {
                let message = format!(
                    "\"{}\" means {} instances, an expectation is about one",
                    self.reference,
                    many.len()
                );
                Err(Error::user("bad-expectation", message).hint("write STAGE[AXIS=VALUE,...]"))
            }
        }
    }

    /// Its stage and columns are there, as far as that is known before the run.
    fn bind(&self, graph: &Graph) -> Result<()> {
        let (stage, port) = self.stage(graph)?;
        let outputs = &graph.stages[stage].bound.outputs;
        let shape = match &port {
            Some(port) => outputs.iter().find(|(name, _)| name == port),
            None => outputs.iter().find(|(name, _)| name == OUT).or(outputs.first()),
        };
        let Some((_, shape)) = shape else {
            return Err(self.no_output());
        };
        let Shape::Table(schema) = shape else { return Ok(()) };
        let cell = (self.rows.is_none()).then_some(&self.column);
        for column in self.wanted.keys().chain(cell) {
            if schema.field_with_name(column).is_err() {
                let known = schema.fields().iter().map(|field| field.name().as_str());
                let mut error = missing_column(column);
                error.hint = did_you_mean(column, known.clone());
                let known: Vec<&str> = known.collect();
                return Err(error.detail(format!("\"{}\" has the columns {}", self.reference, known.join(", "))));
            }
        }
        Ok(())
    }

    fn no_output(&self) -> Error {
        Error::user(
            "unknown-port",
            format!("no output \"{}\" in an expectation", self.reference),
        )
    }

    fn check(&self, outcome: &Outcome, store: &Store) -> Result<()> {
        let (stage, port) = self.stage(&outcome.graph)?;
        let name = &outcome.graph.stages[stage].name;
        let record = outcome.records.get(name);
        let record = record.ok_or_else(|| Error::user("unknown-stage", format!("stage \"{name}\" has no result")))?;
        let digest = match port {
            Some(port) => record.outputs.get(&port),
            None => record.outputs.get(OUT).or_else(|| record.outputs.values().next()),
        };
        let digest = digest.ok_or_else(|| self.no_output())?;
        let mut cells = Vec::new();
        for batch in store.table(digest)?.batches()? {
            let batch = batch?;
            for row in matching(&batch, &self.wanted)? {
                cells.push(match self.rows {
                    Some(_) => String::new(),
                    None => cell(&batch, &self.column, row)?,
                });
            }
        }
        let wanted = Value::Object(self.wanted.clone());
        match (self.rows, cells.as_slice()) {
            (Some(rows), cells) if cells.len() as u64 == rows => Ok(()),
            (Some(rows), cells) => Err(Error::data(
                "expectation",
                format!("{} {wanted} has {} rows, not {rows}", self.reference, cells.len()),
            )),
            (None, [found]) => self.holds(found),
            (None, cells) => Err(Error::user(
                "bad-expectation",
                format!("{} rows match {wanted}, an expectation wants one", cells.len()),
            )),
        }
    }

    /// Whether the cell is what is expected of it.
    fn holds(&self, found: &str) -> Result<()> {
        let label = format!(
            "{} {} {}",
            self.reference,
            Value::Object(self.wanted.clone()),
            self.column
        );
        let failed = |what: String| Err(Error::data("expectation", format!("{label} is {found}, not {what}")));
        let parsed = found.parse::<f64>();
        if let Some(value) = &self.value {
            match (value.as_f64(), &parsed) {
                // Written so that NaN does not hold.
                (Some(value), Ok(found)) if (found - value).abs() <= self.within => {}
                (Some(value), Ok(_)) => return failed(format!("{value} within {}", self.within)),
                _ if value.as_str() == Some(found) => {}
                _ => return failed(value.to_string()),
            }
        }
        let number = parsed.unwrap_or(f64::NAN);
        match (self.at_least, self.at_most) {
            (Some(least), _) if number.is_nan() || number < least => failed(format!("at least {least}")),
            (_, Some(most)) if number.is_nan() || number > most => failed(format!("at most {most}")),
            _ => Ok(()),
        }
    }
}

fn missing_column(column: &str) -> Error {
    Error::user(
        "missing-column",
        format!("no column \"{column}\" in an expectation's table"),
    )
}

/// Rows whose columns equal `wanted`.
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
    let array = batch.column_by_name(column).ok_or_else(|| missing_column(column))?;
    let options = FormatOptions::default();
    Ok(ArrayFormatter::try_new(array, &options)?.value(row).to_string())
}
