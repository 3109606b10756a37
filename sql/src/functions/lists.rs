//! Rows of lists, of whichever layout, as ranges of their elements.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::ColumnarValue;
use sluice_engine::Error;

use crate::catalog::outside;

/// Where the elements of a row lie.
enum Places<'a> {
    Every(usize),
    Small(&'a [i32]),
    Large(&'a [i64]),
}

/// The rows of a column of lists, or one row that stands for all.
pub(super) struct Lists<'a> {
    /// The elements of all rows.
    pub(super) values: &'a ArrayRef,
    places: Places<'a>,
    nulls: Option<&'a NullBuffer>,
    /// Whether the first row stands for all.
    pub(super) constant: bool,
}

impl<'a> Lists<'a> {
    /// `array` must be of one of the three types of lists.
    pub(super) fn new(array: &'a ArrayRef, constant: bool) -> Result<Self> {
        let (values, places) = match array.data_type() {
            DataType::FixedSizeList(_, size) => (array.as_fixed_size_list().values(), Places::Every(*size as usize)),
            DataType::List(_) => {
                let list = array.as_list::<i32>();
                (list.values(), Places::Small(list.value_offsets()))
            }
            DataType::LargeList(_) => {
                let list = array.as_list::<i64>();
                (list.values(), Places::Large(list.value_offsets()))
            }
            other => return Err(outside(Error::internal(format!("{other} where a list is wanted")))),
        };
        Ok(Lists {
            values,
            places,
            nulls: array.nulls(),
            constant,
        })
    }

    /// The elements of a row; `None` if it is NULL.
    pub(super) fn row(&self, row: usize) -> Option<Range<usize>> {
        let row = if self.constant { 0 } else { row };
        if self.nulls.is_some_and(|nulls| nulls.is_null(row)) {
            return None;
        }
        Some(match self.places {
            Places::Every(size) => row * size..(row + 1) * size,
            Places::Small(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
            Places::Large(offsets) => offsets[row] as usize..offsets[row + 1] as usize,
        })
    }

    /// Which elements are there, as far as any is missing.
    pub(super) fn missing(&self) -> Option<&'a NullBuffer> {
        self.values.nulls().filter(|nulls| nulls.null_count() > 0)
    }
}

/// Whether no element of a range is missing.
pub(super) fn complete(missing: Option<&NullBuffer>, range: &Range<usize>) -> bool {
    missing.is_none_or(|nulls| range.clone().all(|place| nulls.is_valid(place)))
}

/// Rows as nulls, from whether each is there.
pub(super) fn nulls(valid: Vec<bool>) -> NullBuffer {
    NullBuffer::new(BooleanBuffer::from(valid))
}

/// An argument as an array, with whether its only row stands for all rows of the call.
pub(super) fn argument(value: &ColumnarValue) -> Result<(ArrayRef, bool)> {
    match value {
        ColumnarValue::Array(array) => Ok((array.clone(), false)),
        ColumnarValue::Scalar(scalar) => Ok((scalar.to_array()?, true)),
    }
}

/// How many rows to compute, and what to make of them: one stands for all if every argument is constant.
pub(super) fn rows(arguments: &[ColumnarValue], rows: usize) -> usize {
    match arguments.iter().all(|value| matches!(value, ColumnarValue::Scalar(_))) {
        true => 1,
        false => rows,
    }
}

/// The result of a call over [`rows`] rows.
pub(super) fn result(arguments: &[ColumnarValue], array: ArrayRef) -> Result<ColumnarValue> {
    match arguments.iter().all(|value| matches!(value, ColumnarValue::Scalar(_))) {
        true => Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&array, 0)?)),
        false => Ok(ColumnarValue::Array(array)),
    }
}
