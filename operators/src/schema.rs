//! The column vocabulary: names, types and accessors that every operator shares.
//!
//! | table | columns |
//! |---|---|
//! | interactions | `user_id, item_id, timestamp?, rating?, position` |
//! | items | `item_id, title?, brand?, categories?, price?, description?, text` |
//! | train sequences | `user_id, sequence, timestamps` |
//! | evaluation rows | `user_id, sequence, timestamps, target, target_timestamp?` |
//! | embeddings | `item_id, embedding` |
//! | semantic ids | `item_id, semantic_id` |
//! | ranked items | `user_id, rank, item_id, score, better, tied, beam` |

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, AsArray, FixedSizeListArray, ListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Field, Float32Type, TimeUnit, TimestampMillisecondType, UInt16Type,
};
use sluice_engine::{Error, Result};

/// Who acted. `Utf8`, never null.
pub const USER_ID: &str = "user_id";
/// What was acted on. `Utf8`, never null; integers are compared as integers, see [`natural_order`].
pub const ITEM_ID: &str = "item_id";
/// When, in milliseconds UTC; null where the source has no times.
pub const TIMESTAMP: &str = "timestamp";
/// Stars or similar, `Float32`; null where the source has none.
pub const RATING: &str = "rating";
/// Where the row stood in its source: `file index << 40 | line number from 1`. The `file` tie rule orders by it.
pub const POSITION: &str = "position";
/// Item text as a model reads it, `Utf8`.
pub const TEXT: &str = "text";
/// Item title, `Utf8`.
pub const TITLE: &str = "title";
/// `FixedSizeList<Float32>`.
pub const EMBEDDING: &str = "embedding";
/// `FixedSizeList<UInt16>`: a code per level, the collision code last where there is one.
pub const SEMANTIC_ID: &str = "semantic_id";
/// Item ids in time order, `List<Utf8>`.
pub const SEQUENCE: &str = "sequence";
/// Times of the items of `sequence`, `List<Timestamp>`.
pub const TIMESTAMPS: &str = "timestamps";
/// The held-out item.
pub const TARGET: &str = "target";
/// When the target was acted on.
pub const TARGET_TIMESTAMP: &str = "target_timestamp";
/// `Float64`, higher is better.
pub const SCORE: &str = "score";
/// Place in the list, from 1, `UInt32`.
pub const RANK: &str = "rank";
/// Number of catalogue items with a strictly higher score, `UInt32`.
pub const BETTER: &str = "better";
/// Number of catalogue items with this very score, the item itself included, `UInt32`.
pub const TIED: &str = "tied";
/// Place of the generated id that stands for this item, from 1; equals `rank` where ids are items. `UInt32`.
pub const BEAM: &str = "beam";

/// Metadata of the `semantic_id` field: sizes of the codebooks without the collision level, such as `256,256,256`.
pub const CODEBOOK_SIZES: &str = "codebook_sizes";
/// Metadata of the `semantic_id` field: `true` if the last level is a collision code.
pub const COLLISION_CODE: &str = "collision_code";

/// Milliseconds UTC.
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into()))
}

/// A list whose elements are never null.
pub fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, false)))
}

/// A fixed-size list whose elements are never null.
pub fn fixed_list_of(item: DataType, size: usize) -> DataType {
    DataType::FixedSizeList(Arc::new(Field::new_list_field(item, false)), size as i32)
}

/// Fields of an interactions table.
pub fn interactions() -> Vec<Field> {
    vec![
        Field::new(USER_ID, DataType::Utf8, false),
        Field::new(ITEM_ID, DataType::Utf8, false),
        Field::new(TIMESTAMP, timestamp_type(), true),
        Field::new(RATING, DataType::Float32, true),
        Field::new(POSITION, DataType::UInt64, false),
    ]
}

/// The column of `ingest_interactions` with `record_hash`: the hash of the source line.
pub fn record() -> Field {
    Field::new("record", DataType::UInt64, true)
}

/// Fields of an items table.
pub fn items() -> Vec<Field> {
    vec![
        Field::new(ITEM_ID, DataType::Utf8, false),
        Field::new(TITLE, DataType::Utf8, true),
        Field::new("brand", DataType::Utf8, true),
        Field::new("categories", list_of(DataType::Utf8), true),
        Field::new("price", DataType::Float64, true),
        Field::new("description", DataType::Utf8, true),
        Field::new(TEXT, DataType::Utf8, false),
        Field::new(POSITION, DataType::UInt64, false),
    ]
}

/// Fields of a table of training sequences.
pub fn sequences() -> Vec<Field> {
    vec![
        Field::new(USER_ID, DataType::Utf8, false),
        Field::new(SEQUENCE, list_of(DataType::Utf8), false),
        Field::new(
            TIMESTAMPS,
            DataType::List(Arc::new(Field::new_list_field(timestamp_type(), true))),
            false,
        ),
    ]
}

/// Fields of a table of evaluation rows: a history and the item that came next.
pub fn evaluation() -> Vec<Field> {
    let mut fields = sequences();
    fields.push(Field::new(TARGET, DataType::Utf8, false));
    fields.push(Field::new(TARGET_TIMESTAMP, timestamp_type(), true));
    fields
}

/// Fields of an embeddings table.
pub fn embeddings(width: usize) -> Vec<Field> {
    vec![
        Field::new(ITEM_ID, DataType::Utf8, false),
        Field::new(EMBEDDING, fixed_list_of(DataType::Float32, width), false),
    ]
}

/// Fields of a semantic-id table: `codebook_sizes` counts no collision level; one is added if `collision_code`.
pub fn semantic_ids(codebook_sizes: &[usize], collision_code: bool) -> Vec<Field> {
    let levels = codebook_sizes.len() + usize::from(collision_code);
    let sizes: Vec<String> = codebook_sizes.iter().map(usize::to_string).collect();
    let metadata = [
        (CODEBOOK_SIZES.to_string(), sizes.join(",")),
        (COLLISION_CODE.to_string(), collision_code.to_string()),
    ];
    vec![
        Field::new(ITEM_ID, DataType::Utf8, false),
        Field::new(SEMANTIC_ID, fixed_list_of(DataType::UInt16, levels), false).with_metadata(metadata.into()),
    ]
}

/// Fields of a table of ranked items: the first k of every user, and the target's own row where it ranks below k.
pub fn ranked() -> Vec<Field> {
    vec![
        Field::new(USER_ID, DataType::Utf8, false),
        Field::new(RANK, DataType::UInt32, false),
        Field::new(ITEM_ID, DataType::Utf8, false),
        Field::new(SCORE, DataType::Float64, false),
        Field::new(BETTER, DataType::UInt32, false),
        Field::new(TIED, DataType::UInt32, false),
        Field::new(BEAM, DataType::UInt32, false),
    ]
}

/// Levels of a semantic-id column: number of codes, and whether the last one is a collision code.
pub fn semantic_id_levels(field: &Field) -> Option<(usize, bool)> {
    match field.data_type() {
        DataType::FixedSizeList(item, size) if item.data_type() == &DataType::UInt16 => {
            let collision = field
                .metadata()
                .get(COLLISION_CODE)
                .is_some_and(|value| value == "true");
            Some((*size as usize, collision))
        }
        _ => None,
    }
}

/// A string column.
pub fn strings<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    column(batch, name)?
        .as_string_opt()
        .ok_or_else(|| mistyped(batch, name, "Utf8"))
}

/// A column of numbers.
pub fn numbers<'a, T: ArrowPrimitiveType>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<T>> {
    column(batch, name)?
        .as_primitive_opt()
        .ok_or_else(|| mistyped(batch, name, &T::DATA_TYPE.to_string()))
}

/// A column of times in milliseconds UTC.
pub fn times<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<TimestampMillisecondType>> {
    numbers(batch, name)
}

/// A list column.
pub fn lists<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ListArray> {
    column(batch, name)?
        .as_list_opt()
        .ok_or_else(|| mistyped(batch, name, "List"))
}

/// A fixed-size list column.
pub fn fixed_lists<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a FixedSizeListArray> {
    column(batch, name)?
        .as_fixed_size_list_opt()
        .ok_or_else(|| mistyped(batch, name, "FixedSizeList"))
}

/// Embeddings as row-major values and their width.
pub fn embedding_values(batch: &RecordBatch) -> Result<(&[f32], usize)> {
    let lists = fixed_lists(batch, EMBEDDING)?;
    let width = lists.value_length() as usize;
    let values = lists
        .values()
        .as_primitive_opt::<Float32Type>()
        .ok_or_else(|| mistyped(batch, EMBEDDING, "FixedSizeList<Float32>"))?;
    Ok((
        &values.values()[lists.offset() * width..(lists.offset() + lists.len()) * width],
        width,
    ))
}

/// Semantic ids as row-major codes and the number of levels.
pub fn semantic_id_codes(batch: &RecordBatch) -> Result<(&[u16], usize)> {
    let lists = fixed_lists(batch, SEMANTIC_ID)?;
    let width = lists.value_length() as usize;
    let values = lists
        .values()
        .as_primitive_opt::<UInt16Type>()
        .ok_or_else(|| mistyped(batch, SEMANTIC_ID, "FixedSizeList<UInt16>"))?;
    Ok((
        &values.values()[lists.offset() * width..(lists.offset() + lists.len()) * width],
        width,
    ))
}

/// An id as ids are ordered: integers as integers (`9 < 10`), everything else as text; integers before text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NaturalKey<'a> {
    /// Up to 18 digits, and how they are written.
    Integer(u64, &'a str),
    /// Anything else.
    Text(&'a str),
}

/// What an id is ordered by.
pub fn natural_key(id: &str) -> NaturalKey<'_> {
    match integer(id) {
        Some(number) => NaturalKey::Integer(number, id),
        None => NaturalKey::Text(id),
    }
}

/// Order of ids, see [`NaturalKey`]. To sort many, compare keys that are made once.
pub fn natural_order(a: &str, b: &str) -> Ordering {
    natural_key(a).cmp(&natural_key(b))
}

fn integer(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    match batch.column_by_name(name) {
        Some(column) => Ok(column.as_ref()),
        None => Err(Error::internal(format!("no column \"{name}\" in {:?}", batch.schema()))),
    }
}

fn mistyped(batch: &RecordBatch, name: &str, wanted: &str) -> Error {
    let found = batch
        .schema()
        .field_with_name(name)
        .map(|field| field.data_type().to_string());
    Error::internal(format!(
        "column \"{name}\" is {}, not {wanted}",
        found.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_ordered_as_integers() {
        let mut ids = ["10", "9", "B01", "A2", "007", "7"];
        ids.sort_by(|a, b| natural_order(a, b));
        assert_eq!(ids, ["007", "7", "9", "10", "A2", "B01"]);
    }
}
