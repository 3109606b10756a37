//! The file formats that people have their data in: what they share. One format family per file below.

pub mod columns;
pub mod delimited;
pub mod files;
pub mod interaction;
pub mod item;
pub mod json;
pub mod numpy;
pub mod python;
pub mod rows;
pub mod sniff;
pub mod values;

use arrow::array::{RecordBatch, StringBuilder, UInt64Builder};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_engine::operator::Notes;
use sluice_engine::table::Tables;
use sluice_engine::{Error, Place, Result};
use std::sync::Arc;

/// The port of rows that could not be read.
pub const REJECTS: &str = "rejects";

/// How many characters of a rejected row are kept.
const SHOWN: usize = 200;

/// A path or several; relative paths start at the data root.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Paths {
    /// One file.
    One(String),
    /// Several files, in order.
    Many(Vec<String>),
}

impl Paths {
    /// The paths as the user wrote them.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Paths::One(path) => vec![path],
            Paths::Many(paths) => paths.iter().map(String::as_str).collect(),
        }
    }
}

impl Default for Paths {
    fn default() -> Self {
        Paths::One(String::new())
    }
}

/// What to do with a row that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// Stop at the first one.
    #[default]
    Fail,
    /// Put it aside at the port `rejects` and go on.
    Skip,
}

/// Fields of the port `rejects`.
pub fn rejects() -> Vec<Field> {
    vec![
        Field::new("file", DataType::Utf8, false),
        Field::new("line", DataType::UInt64, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("text", DataType::Utf8, false),
    ]
}

/// Collects rows of one file that could not be read, or stops at the first.
pub struct Rejects {
    on_error: OnError,
    file: String,
    files: StringBuilder,
    lines: UInt64Builder,
    reasons: StringBuilder,
    texts: StringBuilder,
}

impl Rejects {
    /// No rows of `file` yet.
    pub fn new(on_error: OnError, file: &str) -> Self {
        Rejects {
            on_error,
            file: file.to_string(),
            files: StringBuilder::new(),
            lines: UInt64Builder::new(),
            reasons: StringBuilder::new(),
            texts: StringBuilder::new(),
        }
    }

    /// A malformed row: an error under `on_error: fail`, a row of `rejects` under `skip`.
    pub fn add(&mut self, line: u64, reason: &str, text: &str) -> Result<()> {
        let text = shown(text);
        if self.on_error == OnError::Fail {
            let place = Place {
                file: self.file.clone(),
                line,
                column: 0,
                width: 0,
                text: Some(text),
            };
            return Err(Error::data("malformed-row", format!("malformed row: {reason}"))
                .at(place)
                .hint(
                    "\"on_error: skip\" puts such rows aside at the port \"rejects\", up to \"max_errors\" of them",
                ));
        }
        self.note(line, reason, &text);
        Ok(())
    }

    /// Puts a row aside whatever the policy is.
    pub fn note(&mut self, line: u64, reason: &str, text: &str) {
        self.files.append_value(&self.file);
        self.lines.append_value(line);
        self.reasons.append_value(reason);
        self.texts.append_value(shown(text));
    }

    /// The rows put aside.
    pub fn batch(mut self) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(
            Arc::new(Schema::new(rejects())),
            vec![
                Arc::new(self.files.finish()),
                Arc::new(self.lines.finish()),
                Arc::new(self.reasons.finish()),
                Arc::new(self.texts.finish()),
            ],
        )?)
    }
}

/// Notes rows in and rejects (with the first three shown) and refuses more than `max_errors` of them.
/// Rejects whose reason starts with `apart` are no errors: they are counted under `apart` itself.
pub fn conclude(outputs: &Tables, max_errors: u64, apart: Option<&str>) -> Result<Notes> {
    let mut notes = Notes::new();
    notes.insert(
        "rows".into(),
        outputs.table(sluice_engine::operator::OUT)?.rows()?.into(),
    );
    let (mut rejected, mut apart_rows, mut first) = (0u64, 0u64, Vec::new());
    for batch in outputs.table(REJECTS)?.batches()? {
        let batch = batch?;
        let lines = crate::schema::numbers::<arrow::datatypes::UInt64Type>(&batch, "line")?;
        let (files, reasons) = (
            crate::schema::strings(&batch, "file")?,
            crate::schema::strings(&batch, "reason")?,
        );
        let texts = crate::schema::strings(&batch, "text")?;
        for row in 0..batch.num_rows() {
            if apart.is_some_and(|prefix| reasons.value(row).starts_with(prefix)) {
                apart_rows += 1;
                continue;
            }
            rejected += 1;
            if first.len() < 3 {
                first.push(format!(
                    "{}:{}: {}: {}",
                    files.value(row),
                    lines.value(row),
                    reasons.value(row),
                    texts.value(row)
                ));
            }
        }
    }
    if rejected > max_errors {
        let error = Error::data(
            "too-many-rejects",
            format!("{rejected} rows are malformed, more than \"max_errors\" allows ({max_errors})"),
        )
        .hint("check \"format\" and \"columns\", or raise \"max_errors\"");
        return Err(first.into_iter().fold(error, Error::detail));
    }
    if outputs.table(sluice_engine::operator::OUT)?.rows()? == 0 {
        let error = Error::data("empty-table", "no row could be read")
            .hint("the files hold nothing but a header or malformed rows: check \"path\", \"format\" and \"columns\"");
        return Err(first.into_iter().fold(error, Error::detail));
    }
    if rejected > 0 {
        notes.insert("rejected".into(), rejected.into());
        notes.insert(
            "first_rejects".into(),
            Value::Array(first.into_iter().map(Value::String).collect()),
        );
    }
    if let Some(prefix) = apart.filter(|_| apart_rows > 0) {
        notes.insert(prefix.to_string(), apart_rows.into());
    }
    Ok(notes)
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
