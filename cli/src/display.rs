//! Numbers and tables as people read them.

use std::fmt::Arguments;
use std::io::Write;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float64Type};
use sluice_engine::Result;
use sluice_engine::table::Table;
pub use sluice_operators::report::numbers::{bytes, count, figure, seconds};

/// Prints a line, as `println!` does, but ends quietly when nobody reads any more.
macro_rules! say {
    ($($words:tt)*) => {
        $crate::display::line(format_args!($($words)*))
    };
}
pub(crate) use say;

/// See [`say`]: a reader that went away (`| head`) is no failure.
pub fn line(words: Arguments) {
    match writeln!(std::io::stdout(), "{words}") {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("cannot print: {error}");
            std::process::exit(sluice_engine::Kind::Device.exit_code())
        }
    }
}

/// Milliseconds since 1970 as a date and a time of day, UTC: `2026-11-22 17:01:02`.
pub fn when(milliseconds: u64) -> String {
    let (year, month, day) = sluice_engine::run::civil((milliseconds / 86_400_000) as i64);
    let seconds = milliseconds / 1000 % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}")
}

/// The first rows of a table as text.
pub fn head(table: &Table, rows: usize) -> Result<String> {
    let mut batches = Vec::new();
    let mut left = rows;
    for batch in table.batches()? {
        if left == 0 {
            break;
        }
        let batch = batch?;
        let take = left.min(batch.num_rows());
        batches.push(batch.slice(0, take));
        left -= take;
    }
    let schema = table.schema()?;
    sluice_engine::text::render(&rounded(&arrow::compute::concat_batches(&schema, &batches)?)?)
}

/// The batch with its floating-point columns as text of at most six decimals.
fn rounded(batch: &RecordBatch) -> Result<RecordBatch> {
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
        let column = match field.data_type() {
            DataType::Float32 | DataType::Float64 => {
                let numbers = arrow::compute::cast(column, &DataType::Float64)?;
                let text = |number: f64| match format!("{number:.6}") {
                    text if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_string(),
                    text => text,
                };
                let numbers = numbers.as_primitive::<Float64Type>();
                Arc::new(numbers.iter().map(|number| number.map(text)).collect::<StringArray>()) as ArrayRef
            }
            _ => column.clone(),
        };
        Ok((field.name().clone(), column))
    });
    Ok(RecordBatch::try_from_iter(columns.collect::<Result<Vec<_>>>()?)?)
}

/// Cuts every line to a width, marking what was cut.
pub fn fit(text: &str, width: usize) -> String {
    let cut = |line: &str| match line.chars().count() > width {
        true => line.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
        false => line.to_string(),
    };
    text.lines().map(cut).collect::<Vec<String>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_well() {
        assert_eq!(when(1_795_366_862_123), "2026-11-22 17:01:02");
    }
}
