//! What of the test data training may have seen: checks with their verdicts.

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::document::{Block, Cell, Column, Finding, Level, Row, Section, Table};
use super::numbers::{percent, short};
use super::scores::{floats, texts};

/// So many warnings are said first; of more, the last is that there are more.
const FEW: usize = 3;

/// The verdict of a check that had nothing to compare.
const NOT_CHECKED: &str = "not_checked";

/// The section, and what is to be said first: every leak, or how many checks found none.
pub fn section(tables: &[(&str, RecordBatch)]) -> Result<Option<(Section, Vec<Finding>)>> {
    let (mut blocks, mut findings) = (Vec::new(), Vec::new());
    let (mut done, mut idle, mut leaks) = (0, 0, 0);
    for (input, batch) in tables {
        let (names, verdicts) = (texts(batch, "check")?, texts(batch, "verdict")?);
        let sentences = match batch.column_by_name("sentence") {
            Some(_) => texts(batch, "sentence")?,
            None => vec![String::new(); names.len()],
        };
        let schema = batch.schema();
        let numbers: Vec<&str> = ["count", "of", "share"]
            .into_iter()
            .filter(|name| schema.field_with_name(name).is_ok())
            .collect();
        let mut columns = vec![Column::words("check")];
        columns.extend(numbers.iter().map(|name| Column::numbers(*name)));
        columns.extend([Column::words("verdict"), Column::words("what it means")]);
        let mut table =
            Table::new("What of valid and test data is found in training artifacts.", columns).from([*input]);
        let values = numbers
            .iter()
            .map(|name| floats(batch, name))
            .collect::<Result<Vec<_>>>()?;
        for row in 0..names.len() {
            let level = match verdicts[row].as_str() {
                "leak" => Level::Bad,
                "warning" => Level::Warning,
                _ => Level::Plain,
            };
            match verdicts[row].as_str() {
                NOT_CHECKED => idle += 1,
                _ => done += 1,
            }
            leaks += usize::from(level == Level::Bad);
            let said = if sentences[row].is_empty() {
                names[row].replace('_', " ")
            } else {
                sentences[row].clone()
            };
            if level > Level::Plain {
                let text = if level == Level::Bad {
                    format!("Leak: {said}")
                } else {
                    said.clone()
                };
                findings.push(Finding { level, text });
            }
            let mut cells = vec![Cell::new(names[row].replace('_', " "))];
            for (name, values) in numbers.iter().zip(&values) {
                let text = |value: f64| if *name == "share" { percent(value) } else { short(value) };
                cells.push(Cell::new(values[row].map(text).unwrap_or_default()));
            }
            cells.extend([Cell::new(verdicts[row].replace('_', " ")), Cell::new(said)]);
            table.rows.push(Row::new(cells).level(level));
        }
        blocks.push(Block::Table(table));
    }
    if done + idle == 0 {
        return Ok(None);
    }
    let warnings = findings.len() - leaks;
    if warnings > FEW {
        let mut shown = 0;
        findings.retain(|finding| {
            shown += usize::from(finding.level == Level::Warning);
            finding.level == Level::Bad || shown < FEW
        });
        let text = format!(
            "{} further warnings about time and order stand under Leakage",
            warnings + 1 - FEW
        );
        findings.push(Finding {
            level: Level::Warning,
            text,
        });
    }
    if leaks == 0 {
        findings.push(none_found(done, idle));
    }
    Ok(Some((Section::new("leakage", "Leakage", blocks), findings)))
}

/// What is to be said where no check found a leak, of those that were `done` and those that were `idle`.
fn none_found(done: usize, idle: usize) -> Finding {
    let checks = |count: usize| format!("{count} check{}", if count == 1 { "" } else { "s" });
    match (done, idle) {
        (0, _) => Finding::warning(format!(
            "Nothing says whether valid or test data leaked into training: {} had nothing to compare.",
            checks(idle)
        )),
        (_, 0) => Finding::plain(format!(
            "No leak of valid or test data into training was found in {}.",
            checks(done)
        )),
        _ => Finding::plain(format!(
            "No leak of valid or test data into training was found in {}; {} had nothing to compare.",
            checks(done),
            checks(idle)
        )),
    }
}
