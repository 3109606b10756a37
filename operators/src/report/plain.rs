//! A table as it is.

use arrow::array::{Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sluice_engine::Result;

use super::document::{Block, Cell, Column, Finding, Row, Table};
use super::numbers::{count, short};
use super::scores::{floats, texts};

/// Rows that are shown.
const ROWS: usize = 100;

/// The first rows of a table, of `total` in all.
pub fn table(input: &str, batch: &RecordBatch, total: u64) -> Result<Block> {
    let schema = batch.schema();
    let is_number = |place: usize| schema.field(place).data_type().is_numeric();
    let columns = schema.fields().iter().enumerate().map(|(place, field)| Column {
        name: field.name().clone(),
        number: is_number(place),
        about: String::new(),
    });
    let mut caption = format!("{input}.");
    let rows = batch.num_rows().min(ROWS);
    if total > rows as u64 {
        caption.push_str(&format!(" The first {} of {} rows.", count(rows as u64), count(total)));
    }
    let mut table = Table::new(caption, columns.collect()).from([input]);
    let batch = batch.slice(0, rows);
    let mut cells: Vec<Vec<Cell>> = vec![Vec::new(); rows];
    for (place, column) in batch.columns().iter().enumerate() {
        let floating = column.data_type().is_floating();
        let numbers = if floating {
            floats(&batch, schema.field(place).name())?
        } else {
            Vec::new()
        };
        let options = FormatOptions::default();
        let words = ArrayFormatter::try_new(column, &options)?;
        for (row, cells) in cells.iter_mut().enumerate() {
            let text = match floating {
                true => numbers[row].map(short).unwrap_or_default(),
                false if column.is_null(row) => String::new(),
                false => words.value(row).to_string(),
            };
            cells.push(Cell::new(text));
        }
    }
    table.rows = cells.into_iter().map(Row::new).collect();
    Ok(Block::Table(table))
}

/// The sentences of a table of findings.
pub fn findings(batch: &RecordBatch) -> Result<Vec<Finding>> {
    let said = texts(batch, "sentence")?;
    Ok(said.into_iter().map(Finding::plain).collect())
}
