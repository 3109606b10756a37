//! The metrics table: a row a metric, cut-off, slice and rule for ties.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use sluice_engine::Result;
use sluice_engine::table::Table;

use crate::bootstrap::Estimate;

/// Fields of the metrics table.
pub fn fields() -> Vec<Field> {
    vec![
        Field::new("metric", DataType::Utf8, false),
        Field::new("k", DataType::UInt32, true),
        Field::new("slice", DataType::Utf8, false),
        Field::new("ties", DataType::Utf8, false),
        Field::new("value", DataType::Float64, false),
        Field::new("low", DataType::Float64, true),
        Field::new("high", DataType::Float64, true),
        Field::new("users", DataType::UInt64, false),
    ]
}

/// A row of the metrics table.
pub struct Row {
    /// Name of the metric.
    pub metric: &'static str,
    /// Cut-off, if it has one.
    pub k: Option<u32>,
    /// Which users.
    pub slice: &'static str,
    /// Which order of tied items.
    pub ties: &'static str,
    /// The value, with its interval.
    pub value: Estimate,
    /// Number of users.
    pub users: u64,
}

/// The metrics table.
pub fn table(rows: &[Row]) -> Result<Table> {
    let end = |of: fn((f64, f64)) -> f64| -> ArrayRef {
        Arc::new(Float64Array::from_iter(
            rows.iter().map(|row| row.value.interval.map(of)),
        ))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.metric))),
        Arc::new(UInt32Array::from_iter(rows.iter().map(|row| row.k))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.slice))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.ties))),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.value.mean))),
        end(|(low, _)| low),
        end(|(_, high)| high),
        Arc::new(UInt64Array::from_iter_values(rows.iter().map(|row| row.users))),
    ];
    let schema = Arc::new(Schema::new(fields()));
    Ok(Table::new(RecordBatch::try_new(schema, columns)?))
}
