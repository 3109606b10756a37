//! Compares two artifacts of one port, value by value: equal, or within an operator's tolerance.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type};

use crate::error::Result;
use crate::operator::Determinism;
use crate::store::{Manifest, Store};
use crate::table::{CHUNK_ROWS, Table};

/// Compares what is in the store with what was made again in `folder`, which is known to differ in some bit. `Ok` says
/// how they agree, `Err` how they do not.
pub(crate) fn compare(
    store: &Store,
    digest: &str,
    folder: &Path,
    again: &Manifest,
    determinism: Determinism,
) -> Result<String, String> {
    let before = store.manifest(digest).map_err(|error| error.message)?;
    if before.rows != again.rows {
        return Err(format!("{} rows, {} when run again", before.rows, again.rows));
    }
    if again.layout != "table" {
        let changed = before.files.iter().zip(&again.files).filter(|(a, b)| a != b).count();
        return match determinism {
            Determinism::Exact => Err(format!("{changed} of {} files differ", before.files.len())),
            Determinism::Tolerance(_) => {
                Ok("differs in some bit, which the operator allows; folders are not compared further".to_string())
            }
        };
    }
    let tables = || -> Result<(Table, Table)> {
        let before = store.table(digest)?;
        let parts = again.files.iter().map(|file| folder.join(&file.name)).collect();
        let after = Table::Parts(before.schema()?, parts);
        Ok((before, after))
    };
    let (before, after) = tables().map_err(|error| error.message)?;
    let largest = largest_difference(&before, &after).map_err(|error| error.message)??;
    match determinism {
        // Programs of two versions may write the same values as other bytes.
        Determinism::Exact if largest == 0.0 => Ok("every value is equal, the files are not".to_string()),
        Determinism::Exact => Err(format!("largest difference {largest:.1e}, allowed none")),
        Determinism::Tolerance(tolerance) if largest <= tolerance => {
            Ok(format!("largest difference {largest:.1e}, allowed {tolerance:.0e}"))
        }
        Determinism::Tolerance(tolerance) => Err(format!("largest difference {largest:.1e}, allowed {tolerance:.0e}")),
    }
}

/// The largest relative difference of numbers; `Err` says what else differs.
fn largest_difference(before: &Table, after: &Table) -> Result<Result<f64, String>> {
    // Parts hold the same chunks when they hold the same number of rows.
    let (mut a, mut b) = (before.batches()?, after.batches()?);
    let mut largest = 0.0f64;
    let mut rows = 0;
    loop {
        match (a.next().transpose()?, b.next().transpose()?) {
            (None, None) => return Ok(Ok(largest)),
            (Some(a), Some(b)) if a.num_rows() == b.num_rows() => match batches(&a, &b) {
                Ok(difference) => largest = largest.max(difference),
                Err(what) => return Ok(Err(format!("{what} near row {rows}"))),
            },
            _ => return Ok(Err(format!("another number of rows after row {rows}"))),
        }
        rows += CHUNK_ROWS;
    }
}

fn batches(a: &RecordBatch, b: &RecordBatch) -> Result<f64, String> {
    let mut largest = 0.0f64;
    for (index, field) in a.schema().fields().iter().enumerate() {
        largest = largest.max(columns(a.column(index), b.column(index), field.name())?);
    }
    Ok(largest)
}

fn columns(a: &ArrayRef, b: &ArrayRef, name: &str) -> Result<f64, String> {
    let relative = |a: f64, b: f64| match a == b || a.is_nan() && b.is_nan() {
        true => 0.0,
        false => match (a - b).abs() / a.abs().max(b.abs()).max(1.0) {
            difference if difference.is_nan() => f64::INFINITY,
            difference => difference,
        },
    };
    let differ = || format!("column \"{name}\" differs");
    if a.nulls().map(|nulls| nulls.inner().clone()) != b.nulls().map(|nulls| nulls.inner().clone()) {
        return Err(differ());
    }
    match a.data_type() {
        DataType::Float32 => {
            let (a, b) = (a.as_primitive::<Float32Type>(), b.as_primitive::<Float32Type>());
            let pairs = a.values().iter().zip(b.values().iter());
            Ok(pairs
                .map(|(a, b)| relative(f64::from(*a), f64::from(*b)))
                .fold(0.0, f64::max))
        }
        DataType::Float64 => {
            let (a, b) = (a.as_primitive::<Float64Type>(), b.as_primitive::<Float64Type>());
            let pairs = a.values().iter().zip(b.values().iter());
            Ok(pairs.map(|(a, b)| relative(*a, *b)).fold(0.0, f64::max))
        }
        DataType::FixedSizeList(_, _) => {
            columns(a.as_fixed_size_list().values(), b.as_fixed_size_list().values(), name)
        }
        DataType::List(_) => {
            let (a, b) = (a.as_list::<i32>(), b.as_list::<i32>());
            match a.offsets() == b.offsets() {
                true => columns(a.values(), b.values(), name),
                false => Err(differ()),
            }
        }
        _ if a == b => Ok(0.0),
        _ => Err(differ()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{FixedSizeListArray, Float32Array, StringArray};
    use arrow::datatypes::{Field, Float32Type};

    use super::*;

    fn batch(ids: [&str; 2], values: [f32; 4]) -> RecordBatch {
        let item = Arc::new(Field::new_list_field(DataType::Float32, false));
        let vectors = FixedSizeListArray::new(item, 2, Arc::new(Float32Array::from(values.to_vec())), None);
        let ids: ArrayRef = Arc::new(StringArray::from(ids.to_vec()));
        RecordBatch::try_from_iter([("id", ids), ("vector", Arc::new(vectors) as ArrayRef)]).unwrap()
    }

    #[test]
    fn numbers_have_a_tolerance_and_all_else_has_none() {
        let a = batch(["a", "b"], [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(batches(&a, &a).unwrap(), 0.0);
        let near = batches(&a, &batch(["a", "b"], [1.0, 2.0, 3.0, 4.004])).unwrap();
        assert!((near - 1e-3).abs() < 1e-5, "{near}");
        assert_eq!(
            batches(&a, &batch(["a", "b"], [1.0, f32::NAN, 3.0, 4.0])).unwrap(),
            f64::INFINITY
        );
        assert!(
            batches(&a, &batch(["a", "c"], [1.0, 2.0, 3.0, 4.0]))
                .unwrap_err()
                .contains("\"id\"")
        );
        let sparse: ArrayRef = Arc::new(arrow::array::ListArray::from_iter_primitive::<Float32Type, _, _>([
            Some(vec![Some(1.0)]),
            Some(vec![]),
        ]));
        let other: ArrayRef = Arc::new(arrow::array::ListArray::from_iter_primitive::<Float32Type, _, _>([
            Some(vec![]),
            Some(vec![Some(1.0)]),
        ]));
        assert!(columns(&sparse, &other, "x").is_err());
    }
}
