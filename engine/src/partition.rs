//! Which logical partition a row belongs to: a stable hash of key columns, equal on every machine and version.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema, UInt16Type, UInt32Type, UInt64Type};
use arrow::row::{RowConverter, SortField};

use crate::error::{Error, Result};
use crate::operator::PARTITIONS;

/// Name of the hidden column that tags rows in a fixpoint.
pub const ROW_TAG: &str = "__row";

/// The logical partition (`0..PARTITIONS`) of every row of `batch` by the hash of `columns`.
pub fn partition_of_rows(batch: &RecordBatch, columns: &[String]) -> Result<Vec<u16>> {
    let column = |name: &String| {
        batch
            .column_by_name(name)
            .cloned()
            .ok_or_else(|| Error::internal(format!("no column \"{name}\" to partition by")))
    };
    let columns = columns.iter().map(column).collect::<Result<Vec<_>>>()?;
    Ok(hash_rows(batch.num_rows(), &columns)?
        .into_iter()
        .map(|hash| (hash >> 32) as u16 % PARTITIONS as u16)
        .collect())
}

/// A stable 64-bit hash of every row of `columns`, each `rows` long. Rows that are equal, nulls included, have equal
/// hashes.
pub fn hash_rows(rows: usize, columns: &[ArrayRef]) -> Result<Vec<u64>> {
    let mut hashes = vec![0x51_7C_C1_B7_27_22_0A_95u64; rows];
    for column in columns {
        combine(column, &mut hashes)?;
    }
    Ok(hashes)
}

/// Indices of the columns that any of `sides` names, in order of the schema.
pub fn key_columns(schema: &Schema, sides: &[Vec<String>]) -> Result<Vec<usize>> {
    let mut indices = sides
        .iter()
        .flatten()
        .map(|name| Ok(schema.index_of(name)?))
        .collect::<Result<Vec<_>>>()?;
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

fn combine(column: &dyn Array, hashes: &mut [u64]) -> Result<()> {
    macro_rules! integers {
        ($kind:ty) => {{
            let values = column.as_primitive::<$kind>();
            for (row, hash) in hashes.iter_mut().enumerate() {
                let value = if values.is_null(row) {
                    u64::MAX
                } else {
                    values.value(row) as u64
                };
                *hash = mix(*hash ^ value);
            }
        }};
    }
    match column.data_type() {
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = if values.is_null(row) {
                    mix(!*hash)
                } else {
                    hash_bytes(*hash, values.value(row).as_bytes())
                };
            }
        }
        DataType::Int32 => integers!(Int32Type),
        DataType::Int64 => integers!(Int64Type),
        DataType::UInt16 => integers!(UInt16Type),
        DataType::UInt32 => integers!(UInt32Type),
        DataType::UInt64 => integers!(UInt64Type),
        DataType::Timestamp(..) => {
            let column = arrow::compute::cast(&arrow::array::make_array(column.to_data()), &DataType::Int64)?;
            combine(&column, hashes)?;
        }
        // Whatever else there is has bytes in the row format that are equal for equal values.
        other => {
            let converter = RowConverter::new(vec![SortField::new(other.clone())])?;
            let rows = converter.convert_columns(&[arrow::array::make_array(column.to_data())])?;
            for (row, hash) in rows.iter().zip(hashes) {
                *hash = hash_bytes(*hash, row.as_ref());
            }
        }
    }
    Ok(())
}

/// A stable 64-bit hash of bytes.
pub fn hash_bytes(seed: u64, text: &[u8]) -> u64 {
    let mut hash = seed ^ (text.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut chunks = text.chunks_exact(8);
    for chunk in &mut chunks {
        hash = mix(hash ^ u64::from_le_bytes(chunk.try_into().expect("eight bytes")));
    }
    mix(hash ^ short(chunks.remainder()))
}

/// Up to seven bytes, little-endian; by overlapping reads, since copying a few bytes is slow.
fn short(bytes: &[u8]) -> u64 {
    let length = bytes.len();
    if length >= 4 {
        let word = |at: usize| u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")));
        return word(0) | word(length - 4) << (8 * (length - 4));
    }
    let byte = |at: usize| u64::from(bytes[at]) << (8 * at);
    match length {
        0 => 0,
        _ => byte(0) | byte(length / 2) | byte(length - 1),
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    z = (z ^ (z >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    z ^ (z >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_texts_are_read_whole() {
        for length in 0..8 {
            let bytes: Vec<u8> = (1..=length).collect();
            let mut padded = [0u8; 8];
            padded[..bytes.len()].copy_from_slice(&bytes);
            assert_eq!(short(&bytes), u64::from_le_bytes(padded), "{length} bytes");
        }
    }

    #[test]
    fn equal_rows_of_any_type_hash_alike() {
        let batch = crate::text::parse("x:f32 y:u64\n1.5 7\n2.5 7\n1.5 7\nnull 7\nnull 7").unwrap();
        let hashes = hash_rows(batch.num_rows(), batch.columns()).unwrap();
        assert_eq!((hashes[0], hashes[3]), (hashes[2], hashes[4]));
        assert!(hashes[0] != hashes[1] && hashes[0] != hashes[3]);
    }

    #[test]
    fn partitions_are_stable_and_even() {
        let text = (0..4000).map(|row| format!("u{row}")).collect::<Vec<_>>().join("\n");
        let batch = crate::text::parse(&format!("name\n{text}")).unwrap();
        let partitions = partition_of_rows(&batch, &["name".to_string()]).unwrap();
        let mut counts = [0; PARTITIONS];
        for partition in &partitions {
            counts[*partition as usize] += 1;
        }
        assert!(counts.iter().all(|count| (150..350).contains(count)), "{counts:?}");
        assert_eq!(
            &partitions[..4],
            &partition_of_rows(&batch.slice(0, 4), &["name".to_string()]).unwrap()[..]
        );
    }
}
