//! What went wrong in DataFusion, in the words of the house: a line, a place in the statement, a hint.

use std::sync::Arc;

use datafusion::common::diagnostic::Diagnostic;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::sql::sqlparser::parser::ParserError;
use sluice_engine::{Error, Kind, Place};
use tokio::task::JoinError;

/// The name that errors give a statement's text.
const FILE: &str = "sql";

/// Translates an error; `text` is the statement it is about, empty if there is none.
pub(crate) fn explain(error: DataFusionError, text: &str) -> Error {
    if panicked(&error) {
        return Error::internal("a thread of the statement panicked");
    }
    match error {
        DataFusionError::Diagnostic(diagnostic, inner) => {
            let mut error = explain(*inner, text);
            if error.place.is_none() {
                error.place = diagnostic
                    .span
                    .and_then(|span| place(text, span.start.line, span.start.column, span.end.column));
            }
            helped(error, &diagnostic)
        }
        DataFusionError::Context(_, inner) => explain(*inner, text),
        DataFusionError::Collection(mut all) if !all.is_empty() => {
            let mut first = explain(all.remove(0), text);
            for other in all {
                first = first.detail(explain(other, text).message);
            }
            first
        }
        DataFusionError::Shared(shared) => match shared.as_ref() {
            // One reason may be shared by many partitions; it is told once.
            DataFusionError::External(inner) if inner.downcast_ref::<Error>().is_some() => inner
                .downcast_ref::<Error>()
                .cloned()
                .unwrap_or_else(Error::interrupted),
            other => plain(Kind::User, "bad-sql", other.strip_backtrace()),
        },
        DataFusionError::SQL(parser, _) => syntax(&parser, text),
        DataFusionError::External(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => plain(Kind::User, "bad-sql", other.to_string()),
        },
        DataFusionError::SchemaError(schema, _) => missing(&schema),
        DataFusionError::ResourcesExhausted(message) => plain(Kind::Device, "sql-memory", first_line(&message))
            .hint("give it more: --memory 8G; or ask for fewer rows at once"),
        DataFusionError::NotImplemented(message) => plain(Kind::User, "not-in-this-sql", message),
        DataFusionError::ArrowError(arrow, _) => plain(Kind::Data, "bad-value", arrow.to_string()),
        DataFusionError::ParquetError(parquet) => {
            plain(Kind::Data, "damaged-artifact", parquet.to_string()).hint("\"sluice store verify\" looks for damage")
        }
        DataFusionError::ObjectStore(store) => plain(Kind::Data, "missing-artifact", store.to_string())
            .hint("it may have been collected: run the pipeline again"),
        DataFusionError::Plan(message) => plain(Kind::User, "bad-sql", first_line(&message)),
        DataFusionError::Execution(message) => plain(Kind::Data, "bad-value", first_line(&message)),
        other @ DataFusionError::Internal(_) => plain(Kind::Internal, "sql-internal", other.strip_backtrace()),
        other => plain(Kind::User, "bad-sql", other.strip_backtrace()),
    }
}

/// Whether a thread's panic is at the bottom of it.
fn panicked(error: &DataFusionError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(this) = cause {
        let shared = this.downcast_ref::<Arc<JoinError>>().map(Arc::as_ref);
        if let Some(join) = this.downcast_ref::<JoinError>().or(shared) {
            return join.is_panic();
        }
        cause = this.source();
    }
    false
}

fn plain(kind: Kind, code: &str, message: String) -> Error {
    Error::new(kind, code, message)
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_string()
}

fn helped(mut error: Error, diagnostic: &Diagnostic) -> Error {
    for note in &diagnostic.notes {
        error = error.detail(note.message.clone());
    }
    if let Some(help) = diagnostic.helps.first()
        && error.hint.is_none()
    {
        error.hint = Some(help.message.clone());
    }
    error
}

fn missing(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let names: Vec<String> = valid_fields.iter().map(|field| field.name.clone()).collect();
            let mut made = Error::user("missing-column", format!("no column \"{}\"", field.name));
            made.hint = sluice_engine::error::did_you_mean(&field.name, names.iter().map(String::as_str));
            match names.is_empty() {
                true => made,
                false => made.detail(format!("there are: {}", names.join(", "))),
            }
        }
        other => Error::user("bad-sql", other.to_string()),
    }
}

/// Errors of the parser end in `at Line: 1, Column: 8`.
fn syntax(error: &ParserError, text: &str) -> Error {
    let message = match error {
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message.clone(),
        ParserError::RecursionLimitExceeded => "the statement is nested too deeply".to_string(),
    };
    let (said, at) = match message.rsplit_once(" at Line: ") {
        Some((said, at)) => (said.to_string(), Some(at.to_string())),
        None => (message, None),
    };
    let mut made = Error::user("bad-sql", format!("this is no SQL: {}", lower_first(&said)));
    if let Some((line, column)) = at.as_deref().and_then(|at| at.split_once(", Column: ")) {
        let column: String = column.chars().take_while(char::is_ascii_digit).collect();
        if let (Ok(line), Ok(column)) = (line.parse(), column.parse::<u64>()) {
            made.place = place(text, line, column, column + 1);
        }
    }
    made
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_lowercase().chain(letters).collect(),
        None => String::new(),
    }
}

fn place(text: &str, line: u64, column: u64, end: u64) -> Option<Place> {
    let written = text.lines().nth(usize::try_from(line.checked_sub(1)?).ok()?)?;
    Some(Place {
        file: FILE.to_string(),
        line,
        column,
        width: end.saturating_sub(column).max(1),
        text: Some(written.to_string()),
    })
}
