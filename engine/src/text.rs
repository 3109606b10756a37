//! Tables as text, for tests and for `show`: parse a small table, render a batch.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use crate::error::{Error, Result};

/// Parses a text table: a header line of `name:type`, then a line a row, cells apart by ` | ` or, if no line
/// holds a bar, by blanks. Types: `str` (the default), `i64`, `u64`, `u32`, `u16`, `f32`, `f64`, `bool`, `ts` (milliseconds UTC),
/// `[T]` (a list: `a,b,c`, or `-` for an empty one), `[T;n]` (a fixed-size list). `null` is null.
pub fn parse(text: &str) -> Result<RecordBatch> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let header = lines.next().ok_or_else(|| Error::internal("an empty text table"))?;
    let bars = text.contains('|');
    let cells = |line: &str| -> Vec<String> {
        if bars {
            line.split('|').map(|cell| cell.trim().to_string()).collect()
        } else {
            line.split_whitespace().map(str::to_string).collect()
        }
    };
    let mut fields = Vec::new();
    for cell in cells(header) {
        let (name, kind) = cell.split_once(':').unwrap_or((&cell, "str"));
        fields.push(Field::new(name, data_type(kind)?, true));
    }
    let rows: Vec<Vec<String>> = lines.map(cells).collect();
    let mut columns = Vec::new();
    for (index, field) in fields.iter().enumerate() {
        let values: Vec<Option<&str>> = rows
            .iter()
            .map(|row| row.get(index).map(String::as_str).filter(|cell| *cell != "null"))
            .collect();
        columns.push(column(field.data_type(), &values)?);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// Renders a batch: a header line of names, then a line a row, columns aligned and apart by two blanks.
pub fn render(batch: &RecordBatch) -> Result<String> {
    let options = FormatOptions::default().with_null("null");
    let schema = batch.schema();
    let mut rows = vec![
        schema
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .collect::<Vec<_>>(),
    ];
    let formatters = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<Vec<_>, _>>()?;
    for row in 0..batch.num_rows() {
        rows.push(
            formatters
                .iter()
                .map(|formatter| formatter.value(row).to_string())
                .collect(),
        );
    }
    let widths: Vec<usize> = (0..schema.fields().len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    Ok(text)
}

fn data_type(kind: &str) -> Result<DataType> {
    if let Some(inner) = kind.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Ok(match inner.split_once(';') {
            Some((item, size)) => DataType::FixedSizeList(
                Arc::new(Field::new_list_field(data_type(item)?, true)),
                size.trim()
                    .parse()
                    .map_err(|_| Error::internal(format!("bad list size in \"{kind}\"")))?,
            ),
            None => DataType::List(Arc::new(Field::new_list_field(data_type(inner)?, true))),
        });
    }
    Ok(match kind {
        "str" => DataType::Utf8,
        "i64" => DataType::Int64,
        "u64" => DataType::UInt64,
        "u32" => DataType::UInt32,
        "u16" => DataType::UInt16,
        "f32" => DataType::Float32,
        "f64" => DataType::Float64,
        "bool" => DataType::Boolean,
        "ts" => DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, Some("+00:00".into())),
        _ => return Err(Error::internal(format!("unknown type \"{kind}\" in a text table"))),
    })
}

fn column(kind: &DataType, values: &[Option<&str>]) -> Result<arrow::array::ArrayRef> {
    use arrow::array::{Array, FixedSizeListArray, ListArray, StringArray};
    match kind {
        DataType::List(item) => {
            let split: Vec<Vec<Option<&str>>> = values.iter().map(|value| elements(*value)).collect();
            let flat: Vec<Option<&str>> = split.iter().flatten().copied().collect();
            let offsets = arrow::buffer::OffsetBuffer::from_lengths(split.iter().map(Vec::len));
            let nulls = values.iter().map(Option::is_some).collect::<Vec<bool>>().into();
            Ok(Arc::new(ListArray::try_new(
                item.clone(),
                offsets,
                column(item.data_type(), &flat)?,
                Some(nulls),
            )?))
        }
        DataType::FixedSizeList(item, size) => {
            let mut flat = Vec::new();
            for value in values {
                let mut row = elements(*value);
                row.resize(*size as usize, None);
                flat.extend(row);
            }
            let nulls = values.iter().map(Option::is_some).collect::<Vec<bool>>().into();
            Ok(Arc::new(FixedSizeListArray::try_new(
                item.clone(),
                *size,
                column(item.data_type(), &flat)?,
                Some(nulls),
            )?))
        }
        DataType::Timestamp(..) => {
            let numbers = column(&DataType::Int64, values)?;
            Ok(arrow::compute::cast(&numbers, kind)?)
        }
        _ => {
            let strings = StringArray::from(values.to_vec());
            let cast = arrow::compute::cast(&strings, kind)?;
            if cast.null_count() > strings.null_count() {
                return Err(Error::internal(format!("a cell is no {kind}: {values:?}")));
            }
            Ok(cast)
        }
    }
}

fn elements(value: Option<&str>) -> Vec<Option<&str>> {
    match value {
        None | Some("-") => Vec::new(),
        Some(text) => text
            .trim_matches(['[', ']'])
            .split(',')
            .map(|cell| Some(cell.trim()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_in_text_out() {
        let batch = parse("label n:i64 tags:[str] v:[f32;2]\n u1 1 a,b 0.5,1\n u2 null - 2,3").unwrap();
        assert_eq!(
            render(&batch).unwrap(),
            "label  n     tags    v\nu1     1     [a, b]  [0.5, 1.0]\nu2     null  []      [2.0, 3.0]\n"
        );
    }
}
