//! Tables made of lists of things: a column a closure. The schema is that of the table of no things.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array,
};
use arrow::datatypes::{Field, Schema};

/// Columns over a list of things.
pub(crate) struct Columns<'a, T> {
    things: &'a [T],
    columns: Vec<(&'static str, ArrayRef)>,
}

impl<'a, T> Columns<'a, T> {
    pub(crate) fn of(things: &'a [T]) -> Self {
        Columns {
            things,
            columns: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, column: ArrayRef) -> Self {
        self.columns.push((name, column));
        self
    }

    pub(crate) fn text<S: AsRef<str>>(self, name: &'static str, value: impl Fn(&'a T) -> Option<S>) -> Self {
        let column = StringArray::from_iter(self.things.iter().map(value));
        self.with(name, Arc::new(column))
    }

    pub(crate) fn count(self, name: &'static str, value: impl Fn(&'a T) -> Option<u64>) -> Self {
        let column = UInt64Array::from_iter(self.things.iter().map(value));
        self.with(name, Arc::new(column))
    }

    pub(crate) fn number(self, name: &'static str, value: impl Fn(&'a T) -> Option<f64>) -> Self {
        let column = Float64Array::from_iter(self.things.iter().map(value));
        self.with(name, Arc::new(column))
    }

    pub(crate) fn flag(self, name: &'static str, value: impl Fn(&'a T) -> Option<bool>) -> Self {
        let column = BooleanArray::from_iter(self.things.iter().map(value));
        self.with(name, Arc::new(column))
    }

    /// Milliseconds since 1970, UTC.
    pub(crate) fn time(self, name: &'static str, value: impl Fn(&'a T) -> Option<u64>) -> Self {
        let value = |thing| value(thing).and_then(|time| i64::try_from(time).ok());
        let column = TimestampMillisecondArray::from_iter(self.things.iter().map(value)).with_timezone("UTC");
        self.with(name, Arc::new(column))
    }

    pub(crate) fn batch(self) -> RecordBatch {
        let fields: Vec<Field> = self
            .columns
            .iter()
            .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
            .collect();
        let columns = self.columns.into_iter().map(|(_, column)| column).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("a column has a value a thing")
    }
}
