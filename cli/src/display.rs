//! Numbers and tables as people read them.

use std::fmt::Arguments;
use std::io::Write;

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float64Type};
use sluice_engine::Result;
use sluice_engine::table::Table;

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

/// `0.3 s`, `42 s`, `3 min 20 s`, `1 h 05 min`.
pub fn seconds(value: f64) -> String {
    match value {
        v if v < 10.0 => format!("{v:.1} s"),
        v if v < 60.0 => format!("{v:.0} s"),
        v if v < 3600.0 => format!("{} min {:02} s", v as u64 / 60, v as u64 % 60),
        v => format!("{} h {:02} min", v as u64 / 3600, v as u64 / 60 % 60),
    }
}

/// `198,502`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `4.2 MB`.
pub fn bytes(value: u64) -> String {
    match value as f64 {
        v if v < 1e3 => format!("{v} B"),
        v if v < 1e6 => format!("{:.1} kB", v / 1e3),
        v if v < 1e9 => format!("{:.1} MB", v / 1e6),
        v => format!("{:.1} GB", v / 1e9),
    }
}

/// Milliseconds since 1970 as a date and a time of day, UTC: `2026-11-22 17:01:02`.
pub fn when(milliseconds: u64) -> String {
    let (year, month, day) = sluice_engine::run::civil((milliseconds / 86_400_000) as i64);
    let seconds = milliseconds / 1000 % 86_400;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{seconds:02}")
}

/// A number to six significant digits, without zeros at its end.
pub fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let digits = (5 - value.abs().log10().floor() as i32).clamp(0, 12) as usize;
    match format!("{value:.digits$}") {
        text if text.contains('.') => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        text => text,
    }
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
    fn numbers_read_well() {
        assert_eq!(count(198_502), "198,502");
        assert_eq!(count(12), "12");
        assert_eq!(seconds(200.0), "3 min 20 s");
        assert_eq!(bytes(4_200_000), "4.2 MB");
        assert_eq!(when(1_795_366_862_123), "2026-11-22 17:01:02");
        assert_eq!(figure(0.262_626_26), "0.262626");
        assert_eq!(figure(1_234_567.5), "1234568");
        assert_eq!(figure(-2.5), "-2.5");
    }
}
