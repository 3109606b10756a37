//! Which logical partition a row belongs to: a stable hash of key columns, equal on every machine and version.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int32Type, Int64Type, Schema, UInt16Type, UInt32Type, UInt64Type};

use crate::error::{Error, Result};
use crate::operator::PARTITIONS;

/// Name of the hidden column that tags rows in a fixpoint.
pub const ROW_TAG: &str = "__row";

/// The logical partition (`0..PARTITIONS`) of every row of `batch` by the hash of `columns`.
pub fn partition_of_rows(batch: &RecordBatch, columns: &[String]) -> Result<Vec<u16>> {
    let mut hashes = vec![0x51_7C_C1_B7_27_22_0A_95u64; batch.num_rows()];
    for name in columns {
        let column = batch
            .column_by_name(name)
            .ok_or_else(|| Error::internal(format!("no column \"{name}\" to partition by")))?;
        combine(column, &mut hashes)?;
    }
    Ok(hashes
        .into_iter()
        .map(|hash| (hash >> 32) as u16 % PARTITIONS as u16)
        .collect())
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
        other => return Err(Error::internal(format!("cannot partition by a column of type {other}"))),
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
    let mut last = [0u8; 8];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    mix(hash ^ u64::from_le_bytes(last))
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
