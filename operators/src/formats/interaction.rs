//! Interactions: rows of every layout.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Float32Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder, UInt64Builder,
};
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, TimeUnit};
use sluice_engine::operator::OUT;
use sluice_engine::table::{Table, Tables};
use sluice_engine::{Error, Result};

use super::files::{Block, Layout};
use super::json::{self, Scalar};
use super::values::{self, TimestampUnit};
use super::{REJECTS, Rejects, columns, delimited, rows};
use crate::schema;

/// Reads the interactions of a block, and its rejects.
///
/// With `record_hash` every row also carries the hash of its line.
pub fn read(
    block: &Block,
    path: &Path,
    name: &str,
    unit: TimestampUnit,
    record_hash: bool,
    rejects: Rejects,
) -> Result<Tables> {
    let mut sink = Sink::new(block, record_hash, rejects);
    match &block.layout {
        Layout::Delimited { picks, .. } => read_cells(block, picks, unit, &mut sink)?,
        Layout::JsonLines { names, timed } => read_json(block, names, *timed, unit, &mut sink)?,
        Layout::Sequences => read_sequences(block, &mut sink)?,
        Layout::JsonObject => read_object(block, name, &mut sink)?,
        Layout::Parquet(picks) => read_parquet(block, path, name, picks, unit, &mut sink)?,
    }
    sink.finish()
}

/// Rows of cells.
fn read_cells(block: &Block, picks: &[Option<usize>], unit: TimestampUnit, sink: &mut Sink) -> Result<()> {
    let (user, item) = (picks[0].unwrap_or_default(), picks[1].unwrap_or_default());
    delimited::records(block.bytes(), block.line, &block.layout, |line, text, cells| {
        sink.line(text);
        let row = cells.and_then(|cells| {
            let time = picks[2].map(|at| values::time(cells[at], unit)).transpose()?;
            let rating = picks[3].map_or(Ok(None), |at| values::rating(cells[at]))?;
            sink.push(line, cells[user], cells[item], time, rating)
        });
        row.or_else(|reason| sink.rejects.add(line, &reason, text))
    })
}

/// JSON objects or Python dicts.
fn read_json(block: &Block, names: &[Vec<String>], timed: bool, unit: TimestampUnit, sink: &mut Sink) -> Result<()> {
    rows::lines(block.bytes(), block.line, |line, text| {
        let text = match text {
            Ok(text) => text,
            Err(shown) => return sink.rejects.add(line, "not UTF-8", &shown),
        };
        sink.line(text);
        let row = json::fields::<Scalar>(text, names).and_then(|fields| {
            let id = |at: usize| json::id(fields[at].as_ref(), names[at].first().map_or("id", String::as_str));
            let time = match &fields[2] {
                None if timed => return Err(format!("no {}", names[2][0])),
                None => None,
                Some(Scalar::Integer(number)) => Some(values::integer_time(*number, unit)?),
                Some(Scalar::Float(number)) => Some(values::float_time(*number, unit)?),
                Some(Scalar::Text(text)) => Some(values::time(text.trim(), unit)?),
                Some(_) => return Err("bad timestamp".to_string()),
            };
            let rating = match &fields[3] {
                None => None,
                Some(Scalar::Integer(number)) => Some(*number as f32),
                Some(Scalar::Float(number)) => Some(*number as f32),
                Some(Scalar::Text(text)) => values::rating(text.trim())?,
                Some(_) => return Err("bad rating".to_string()),
            };
            sink.push(line, &id(0)?, &id(1)?, time, rating)
        });
        row.or_else(|reason| sink.rejects.add(line, &reason, text))
    })
}

/// The rows of a row group.
fn read_parquet(
    block: &Block,
    path: &Path,
    name: &str,
    picks: &[Option<usize>],
    unit: TimestampUnit,
    sink: &mut Sink,
) -> Result<()> {
    let columns = columns::row_group(path, name, block, picks)?;
    let mut row_number = block.line;
    for columns in columns {
        let rows = columns[0].as_ref().map_or(0, |column| column.len());
        let text = |at: usize| {
            columns[at]
                .as_ref()
                .map(|column| arrow::compute::cast(column, &DataType::Utf8))
                .transpose()
        };
        let (users, items, ratings) = (ids(&columns[0])?, ids(&columns[1])?, text(3)?);
        let times = columns[2].as_ref().map(|column| times(column, unit)).transpose()?;
        let cell = |column: &Option<arrow::array::ArrayRef>, row: usize| match column {
            Some(column) if column.is_valid(row) => column.as_string::<i32>().value(row).trim().to_string(),
            _ => String::new(),
        };
        for row in 0..rows {
            let (user, item) = (&users[row], &items[row]);
            let time = times.as_ref().map(|times| times[row].clone()).transpose();
            let pushed = time.and_then(|time| {
                let rating = values::rating(&cell(&ratings, row))?;
                let broken = |number: &f64| format!("id {number} is no whole number");
                let (user, item) = (user.as_deref().map_err(broken)?, item.as_deref().map_err(broken)?);
                sink.push(row_number, user, item, time, rating)
            });
            if let Err(reason) = pushed {
                let shown = |id: &Result<String, f64>| id.as_ref().map_or_else(f64::to_string, String::clone);
                let text = format!("user_id {}, item_id {}", shown(user), shown(item));
                sink.rejects.add(row_number, &reason, &text)?;
            }
            row_number += 1;
        }
    }
    Ok(())
}

/// Ids of a Parquet column: of floats the whole ones, as pandas has them where others are missing; any other float is
/// an error. A missing id is empty.
fn ids(column: &Option<ArrayRef>) -> Result<Vec<Result<String, f64>>> {
    let Some(column) = column else {
        return Err(Error::internal("a table without ids"));
    };
    if columns::fractional(column.data_type()) {
        let column = arrow::compute::cast(column, &DataType::Float64)?;
        let id = |number: Option<f64>| match number.filter(|number| !number.is_nan()) {
            Some(number) => values::whole(number).map_or(Err(number), |number| Ok(number.to_string())),
            None => Ok(String::new()),
        };
        return Ok(column.as_primitive::<Float64Type>().iter().map(id).collect());
    }
    let column = arrow::compute::cast(column, &DataType::Utf8)?;
    let id = |text: Option<&str>| Ok(text.unwrap_or_default().trim().to_string());
    Ok(column.as_string::<i32>().iter().map(id).collect())
}

/// Times of a Parquet column: temporal types as they are, numbers by unit, text as in a cell.
fn times(column: &dyn Array, unit: TimestampUnit) -> Result<Vec<Result<i64, String>>> {
    let missing = || Err("no timestamp".to_string());
    // what a stored time is in milliseconds: times the first, by the second
    let stored = match column.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => Some((1000, 1)),
        DataType::Timestamp(TimeUnit::Millisecond, _) | DataType::Date64 => Some((1, 1)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => Some((1, 1000)),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => Some((1, 1_000_000)),
        DataType::Date32 => Some((86_400_000, 1)),
        _ => None,
    };
    let kind = match column.data_type() {
        DataType::Date32 => DataType::Int32,
        kind if stored.is_some() || kind.is_integer() => DataType::Int64,
        kind if kind.is_floating() => DataType::Float64,
        _ => DataType::Utf8,
    };
    let mut column = arrow::compute::cast(column, &kind)?;
    if kind == DataType::Int32 {
        column = arrow::compute::cast(&column, &DataType::Int64)?;
    }
    let number = |time: i64| match stored {
        Some((times, by)) => Ok(time.saturating_mul(times).div_euclid(by)),
        None => values::integer_time(time, unit),
    };
    Ok(match kind {
        DataType::Float64 => column
            .as_primitive::<Float64Type>()
            .iter()
            .map(|time| time.map_or_else(missing, |time| values::float_time(time, unit)))
            .collect(),
        DataType::Utf8 => column
            .as_string::<i32>()
            .iter()
            .map(|time| time.map_or_else(missing, |time| values::time(time.trim(), unit)))
            .collect(),
        _ => column
            .as_primitive::<Int64Type>()
            .iter()
            .map(|time| time.map_or_else(missing, number))
            .collect(),
    })
}

/// `user item item ...`
fn read_sequences(block: &Block, sink: &mut Sink) -> Result<()> {
    rows::lines(block.bytes(), block.line, |line, text| {
        let text = match text {
            Ok(text) => text,
            Err(shown) => return sink.rejects.add(line, "not UTF-8", &shown),
        };
        let mut words = text.split_ascii_whitespace();
        let user = words.next().unwrap_or_default();
        let items: Vec<&str> = words.collect();
        sink.push_sequence(line, user, &items)
            .or_else(|reason| sink.rejects.add(line, &reason, text))
    })
}

/// `{"user": [items...]}`
fn read_object(block: &Block, name: &str, sink: &mut Sink) -> Result<()> {
    let text = std::str::from_utf8(block.bytes())
        .map_err(|_| Error::data("wrong-format", format!("\"{name}\" is not UTF-8")))?;
    json::entries(text, &mut |entry, user, value| {
        let items = value
            .as_array()
            .ok_or_else(|| "its value is no list of items; JSON over several lines is not read".to_string());
        let row = items.and_then(|items| {
            let ids = items.iter().map(|item| {
                let id = Scalar::from(item.clone()).id().map(|id| id.into_owned());
                id.ok_or_else(|| format!("the item {item} is no id"))
            });
            sink.push_sequence(entry, user.trim(), &ids.collect::<Result<Vec<_>, _>>()?)
        });
        row.or_else(|reason| {
            let reason = format!("entry {entry}, \"{user}\": {reason}");
            sink.rejects.add(entry, &reason, &value.to_string())
        })
    })
    .map_err(|error| Error {
        message: format!("\"{name}\": {}", error.message),
        ..error
    })
}

/// Rows of one block.
struct Sink {
    users: StringBuilder,
    items: StringBuilder,
    times: TimestampMillisecondBuilder,
    ratings: Float32Builder,
    positions: UInt64Builder,
    /// Hashes of lines, if they are wanted; and that of the line being read, if there is one.
    records: Option<UInt64Builder>,
    record: Option<u64>,
    file: u64,
    rejects: Rejects,
}

impl Sink {
    fn new(block: &Block, record_hash: bool, rejects: Rejects) -> Self {
        Sink {
            users: StringBuilder::new(),
            items: StringBuilder::new(),
            times: TimestampMillisecondBuilder::new().with_timezone("+00:00"),
            ratings: Float32Builder::new(),
            positions: UInt64Builder::new(),
            records: record_hash.then(UInt64Builder::new),
            record: None,
            file: u64::from(block.file) << 40,
            rejects,
        }
    }

    /// The line that the next row comes from.
    fn line(&mut self, text: &str) {
        if self.records.is_some() {
            self.record = Some(sluice_engine::partition::hash_bytes(0, text.trim_end().as_bytes()));
        }
    }

    fn push(
        &mut self,
        line: u64,
        user: &str,
        item: &str,
        time: Option<i64>,
        rating: Option<f32>,
    ) -> Result<(), String> {
        if user.is_empty() {
            return Err("no user_id".to_string());
        }
        if item.is_empty() {
            return Err("no item_id".to_string());
        }
        if rating.is_some_and(|rating| !rating.is_finite()) {
            return Err("bad rating".to_string());
        }
        self.users.append_value(user);
        self.items.append_value(item);
        self.times.append_option(time);
        self.ratings.append_option(rating);
        self.positions.append_value(self.file | line);
        if let Some(records) = &mut self.records {
            records.append_option(self.record);
        }
        Ok(())
    }

    fn push_sequence(&mut self, line: u64, user: &str, items: &[impl AsRef<str>]) -> Result<(), String> {
        if items.is_empty() {
            return Err("a user without items".to_string());
        }
        if line >= 1 << 24 || items.len() >= 1 << 16 {
            return Err("more than 16,777,215 users or 65,535 items of a user".to_string());
        }
        if user.is_empty() || items.iter().any(|item| item.as_ref().is_empty()) {
            return Err("an empty id".to_string());
        }
        for (place, item) in (1u64..).zip(items) {
            self.push(line << 16 | place, user, item.as_ref(), None, None)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Tables> {
        let mut fields = schema::interactions();
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.users.finish()),
            Arc::new(self.items.finish()),
            Arc::new(self.times.finish()),
            Arc::new(self.ratings.finish()),
            Arc::new(self.positions.finish()),
        ];
        if let Some(mut records) = self.records {
            fields.push(schema::record());
            columns.push(Arc::new(records.finish()));
        }
        let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
        Ok(Tables::new()
            .with(OUT, Table::new(batch))
            .with(REJECTS, Table::new(self.rejects.batch()?)))
    }
}
