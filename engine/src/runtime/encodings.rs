//! How the columns of a Parquet part are encoded, told by its first chunk.
//!
//! A dictionary pays where values repeat; elsewhere making one takes most of the time that writing takes and makes the
//! file larger. What depends on rows alone is the same for any number of workers.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;

use crate::error::{Error, Result};
use crate::partition::hash_rows;
use crate::table::CHUNK_ROWS;

/// Values of a column that are looked at, spread evenly over the chunk.
const SAMPLE: usize = 1 << 14;

/// The writer's settings for a part that begins with the rows of `first`.
pub(crate) fn choose(first: &RecordBatch) -> Result<WriterProperties> {
    let level = ZstdLevel::try_new(1).map_err(|error| Error::internal(error.to_string()))?;
    let mut properties = WriterProperties::builder()
        .set_created_by("sluice".to_string())
        .set_compression(Compression::ZSTD(level))
        .set_max_row_group_row_count(Some(CHUNK_ROWS));
    for (field, column) in first.schema().fields().iter().zip(first.columns()) {
        properties = choose_column(properties, vec![field.name().clone()], column)?;
    }
    Ok(properties.build())
}

/// Settings for the leaves of a column; `path` names it as Parquet does.
fn choose_column(
    properties: WriterPropertiesBuilder,
    mut path: Vec<String>,
    column: &ArrayRef,
) -> Result<WriterPropertiesBuilder> {
    let mut inside = |item: &Field| {
        path.extend(["list".to_string(), item.name().clone()]);
        std::mem::take(&mut path)
    };
    match column.data_type() {
        DataType::List(item) => {
            let lists = column.as_list::<i32>();
            let (start, end) = (lists.value_offsets()[0], lists.value_offsets()[lists.len()]);
            let values = lists.values().slice(start as usize, (end - start) as usize);
            choose_column(properties, inside(item), &values)
        }
        DataType::FixedSizeList(item, _) => {
            choose_column(properties, inside(item), column.as_fixed_size_list().values())
        }
        kind => {
            let inside_a_list = path.len() > 1;
            let path = ColumnPath::new(path);
            // No query is narrowed by the smallest and largest values inside of lists.
            let properties = match inside_a_list {
                true => properties.set_column_statistics_enabled(path.clone(), EnabledStatistics::None),
                false => properties,
            };
            let (encoding, repeats) = (compact(kind), repeats(column)?);
            let properties = match encoding {
                Some(encoding) => properties.set_column_encoding(path.clone(), encoding),
                None => properties,
            };
            // Differences are packed to the bits they need: hardly anything is left to compress.
            let properties = match encoding == Some(Encoding::DELTA_BINARY_PACKED) && !repeats {
                true => properties.set_column_compression(path.clone(), Compression::UNCOMPRESSED),
                false => properties,
            };
            Ok(properties.set_column_dictionary_enabled(path, repeats))
        }
    }
}

/// What stands where there is no dictionary: lengths and differences are smaller than plain values, and quicker to compress.
fn compact(kind: &DataType) -> Option<Encoding> {
    use DataType::{Date32, Date64, Int16, Int32, Int64, Timestamp, UInt16, UInt32, UInt64, Utf8};
    match kind {
        Utf8 => Some(Encoding::DELTA_LENGTH_BYTE_ARRAY),
        Int16 | Int32 | Int64 | UInt16 | UInt32 | UInt64 | Date32 | Date64 | Timestamp(..) => {
            Some(Encoding::DELTA_BINARY_PACKED)
        }
        _ => None,
    }
}

/// Whether values come twice or more on average, in a sample.
fn repeats(column: &ArrayRef) -> Result<bool> {
    let step = column.len().div_ceil(SAMPLE).max(1);
    let rows = UInt32Array::from_iter_values((0..column.len() as u32).step_by(step));
    let sample = arrow::compute::take(column, &rows, None)?;
    let mut hashes = hash_rows(sample.len(), &[sample])?;
    let values = hashes.len();
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes.len() * 2 <= values)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    #[test]
    fn dictionaries_are_for_values_that_repeat() {
        let ids = StringArray::from_iter_values((0..1000).map(|row| format!("u{row}")));
        let kinds = StringArray::from_iter_values((0..1000).map(|row| format!("k{}", row % 7)));
        let rows = (0..1000i64).map(|row| Some(vec![Some(row), Some(row % 2 - 5)]));
        let lists = ListArray::from_iter_primitive::<Int64Type, _, _>(rows);
        let sliced = lists.slice(400, 3);
        let columns: [(&str, ArrayRef); 5] = [
            ("id", Arc::new(ids)),
            ("kind", Arc::new(kinds)),
            ("number", Arc::new(Int64Array::from_iter_values(0..1000))),
            ("none", Arc::new(Int64Array::new_null(1000))),
            ("list", Arc::new(lists)),
        ];
        let properties = choose(&RecordBatch::try_from_iter(columns).unwrap()).unwrap();
        let at = |path: &[&str]| {
            let path = ColumnPath::new(path.iter().map(|name| name.to_string()).collect());
            (properties.dictionary_enabled(&path), properties.encoding(&path))
        };
        assert_eq!(at(&["id"]), (false, Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)));
        assert_eq!(at(&["kind"]), (true, Some(Encoding::DELTA_LENGTH_BYTE_ARRAY)));
        assert_eq!(at(&["number"]), (false, Some(Encoding::DELTA_BINARY_PACKED)));
        let compression = |name: &str| properties.compression(&ColumnPath::from(name));
        assert_eq!(compression("number"), Compression::UNCOMPRESSED);
        assert!(matches!(compression("id"), Compression::ZSTD(_)));
        assert!(matches!(compression("none"), Compression::ZSTD(_)));
        assert!(at(&["none"]).0);
        let inside = ["list", "list", "item"];
        assert_eq!(at(&inside), (false, Some(Encoding::DELTA_BINARY_PACKED)));
        let statistics = |path: &[&str]| {
            let path = ColumnPath::new(path.iter().map(|name| name.to_string()).collect());
            properties.statistics_enabled(&path)
        };
        assert_eq!(statistics(&inside), EnabledStatistics::None);
        assert_eq!(statistics(&["id"]), EnabledStatistics::Page);
        assert!(!repeats(&sliced.value(0)).unwrap());
    }
}
