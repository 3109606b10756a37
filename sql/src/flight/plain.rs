//! Rows as every client reads them: no views, dictionaries or runs, in messages of a moderate size.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;

/// The schema that rows are sent with.
pub(super) fn schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<FieldRef> = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

fn field(field: &FieldRef) -> FieldRef {
    let kind = kind(field.data_type());
    if kind == *field.data_type() {
        return field.clone();
    }
    let plain = Field::new(field.name(), kind, field.is_nullable());
    Arc::new(plain.with_metadata(field.metadata().clone()))
}

fn kind(kind_of: &DataType) -> DataType {
    match kind_of {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, values) => kind(values),
        DataType::RunEndEncoded(_, values) => kind(values.data_type()),
        DataType::List(item) | DataType::ListView(item) => DataType::List(field(item)),
        DataType::LargeList(item) | DataType::LargeListView(item) => DataType::LargeList(field(item)),
        DataType::FixedSizeList(item, size) => DataType::FixedSizeList(field(item), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(field(entries), *sorted),
        other => other.clone(),
    }
}

/// The batch with the columns of `schema`, which came from [`schema`].
pub(super) fn batch(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    if batch.schema_ref() == schema {
        return Ok(batch);
    }
    let columns = schema.fields().iter().zip(batch.columns());
    let columns: Vec<ArrayRef> = columns
        .map(|(field, column)| match field.data_type() == column.data_type() {
            true => Ok(column.clone()),
            false => cast(column, field.data_type()),
        })
        .collect::<Result<_, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema.clone(), columns, &options)
}

/// Bytes of the rows of a batch, without what else is in its buffers.
pub(super) fn bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &ArrayRef| {
        let data = column.to_data();
        data.get_slice_memory_size()
            .unwrap_or_else(|_| column.get_array_memory_size())
    };
    batch.columns().iter().map(bytes).sum()
}

/// The batch in pieces of about `most` bytes; a row is never cut.
pub(super) fn pieces(batch: &RecordBatch, most: usize) -> impl Iterator<Item = RecordBatch> {
    let count = bytes(batch).div_ceil(most).max(1);
    let rows = batch.num_rows().div_ceil(count).max(1);
    let starts = (0..batch.num_rows()).step_by(rows);
    starts.map(move |start| batch.slice(start, rows.min(batch.num_rows() - start)))
}

/// Bytes that a row of these columns is likely to have.
pub(super) fn width(schema: &Schema) -> usize {
    schema.fields().iter().map(|field| width_of(field.data_type())).sum()
}

fn width_of(kind: &DataType) -> usize {
    match kind {
        DataType::FixedSizeList(item, size) => {
            width_of(item.data_type()).saturating_mul(usize::try_from(*size).unwrap_or(0))
        }
        DataType::FixedSizeBinary(size) => usize::try_from(*size).unwrap_or(0),
        DataType::Struct(fields) => fields.iter().map(|field| width_of(field.data_type())).sum(),
        kind if kind.is_nested() => 512,
        kind => kind.primitive_width().unwrap_or(32),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, DictionaryArray, Int32Array, ListArray, StringArray, StringViewArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn views_and_dictionaries_become_plain_at_any_depth() {
        let words: DictionaryArray<Int32Type> = vec!["a", "b", "a"].into_iter().collect();
        let views = Arc::new(StringViewArray::from(vec![
            "x",
            "yy",
            "a text longer than a view holds",
        ])) as ArrayRef;
        let item = Arc::new(Field::new("item", DataType::Utf8View, true));
        let offsets = arrow::buffer::OffsetBuffer::from_lengths([1, 0, 2]);
        let lists = ListArray::new(item, offsets, views.clone(), None);
        let given = RecordBatch::try_from_iter([
            ("words", Arc::new(words) as ArrayRef),
            ("views", views),
            ("lists", Arc::new(lists) as ArrayRef),
        ])
        .unwrap();
        let wanted = schema(&given.schema());
        let plain = batch(given, &wanted).unwrap();
        assert_eq!(plain.schema(), wanted);
        assert_eq!(
            plain.column(0).as_ref(),
            &StringArray::from(vec!["a", "b", "a"]) as &dyn Array
        );
        assert_eq!(plain.column(1).as_string::<i32>().value(1), "yy");
        assert_eq!(
            plain.column(2).as_list::<i32>().value(2).as_string::<i32>().value(0),
            "yy"
        );
    }

    #[test]
    fn pieces_have_all_rows_in_order() {
        let numbers = Int32Array::from_iter_values(0..1000);
        let whole = RecordBatch::try_from_iter([("n", Arc::new(numbers) as ArrayRef)]).unwrap();
        let part = whole.slice(100, 500);
        let cut: Vec<RecordBatch> = pieces(&part, 256).collect();
        assert!(
            cut.len() > 5 && cut.iter().all(|piece| bytes(piece) <= 300),
            "{}",
            cut.len()
        );
        let again = arrow::compute::concat_batches(&part.schema(), &cut).unwrap();
        assert_eq!(again, part);
        // Of a small part of large buffers nothing else counts.
        assert_eq!(pieces(&whole.slice(5, 10), 256).count(), 1);
        assert_eq!(pieces(&whole.slice(5, 0), 256).count(), 0);
    }
}
