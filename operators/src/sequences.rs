//! Reading tables of sequences: checks for `bind`, and users with their items for `run`.

use std::ops::Range;

use arrow::array::{Array, AsArray, ListArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, TimestampMillisecondType};
use sluice_engine::operator::Binding;
use sluice_engine::{Error, Result};

use crate::schema::{self, SEQUENCE, TARGET, TARGET_TIMESTAMP, TIMESTAMPS, USER_ID};

/// Requires `user_id` and `sequence`.
pub fn require(binding: &Binding, port: &str) {
    binding.require(port, &[(USER_ID, DataType::Utf8)]);
    require_list(binding, port, SEQUENCE, &DataType::Utf8);
}

/// Requires `user_id`, `sequence` and `target`.
pub fn require_targets(binding: &Binding, port: &str) {
    require(binding, port);
    binding.require(port, &[(TARGET, DataType::Utf8)]);
}

/// Requires `user_id`, `sequence`, `timestamps`, `target` and `target_timestamp`.
pub fn require_timed_targets(binding: &Binding, port: &str) {
    require_targets(binding, port);
    require_list(binding, port, TIMESTAMPS, &schema::timestamp_type());
    binding.require(port, &[(TARGET_TIMESTAMP, schema::timestamp_type())]);
}

/// Requires a list column, whether or not its elements may be null.
pub fn require_list(binding: &Binding, port: &str, name: &str, item: &DataType) {
    let Some(schema) = binding.schema(port) else { return };
    match schema.field_with_name(name).map(|field| field.data_type()) {
        Err(_) => binding.missing_column(port, name),
        Ok(DataType::List(field)) if field.data_type() == item => {}
        Ok(found) => binding.input_problem(
            port,
            Error::user(
                "wrong-type",
                format!("column \"{name}\" of input \"{port}\" is {found}, not a list of {item}"),
            ),
        ),
    }
}

/// Users and their items.
pub struct Sequences<'a> {
    /// A user a row.
    pub users: &'a StringArray,
    /// All items of all users, row after row.
    pub items: StringArray,
    lists: &'a ListArray,
}

impl<'a> Sequences<'a> {
    /// The sequences of a batch.
    pub fn read(batch: &'a RecordBatch) -> Result<Self> {
        let lists = schema::lists(batch, SEQUENCE)?;
        let items: &StringArray = lists
            .values()
            .as_string_opt()
            .ok_or_else(|| Error::internal(format!("column \"{SEQUENCE}\" holds no lists of Utf8")))?;
        // A batch may be a slice: its lists then share values with rows that are not its own.
        let offsets = lists.value_offsets();
        let (start, end) = (offsets[0] as usize, offsets[lists.len()] as usize);
        Ok(Sequences {
            users: schema::strings(batch, USER_ID)?,
            items: items.slice(start, end - start),
            lists,
        })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in `items` the sequence of a row lies.
    pub fn range(&self, row: usize) -> Range<usize> {
        let offsets = self.lists.value_offsets();
        let at = |row: usize| (offsets[row] - offsets[0]) as usize;
        at(row)..at(row + 1)
    }
}

/// The time of the last item of every row, if known.
pub fn last_times(batch: &RecordBatch) -> Result<Vec<Option<i64>>> {
    let lists = schema::lists(batch, TIMESTAMPS)?;
    let times = lists
        .values()
        .as_primitive_opt::<TimestampMillisecondType>()
        .ok_or_else(|| Error::internal(format!("column \"{TIMESTAMPS}\" holds no lists of times")))?;
    let offsets = lists.value_offsets();
    Ok((0..lists.len())
        .map(|row| {
            let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
            (end > start && times.is_valid(end - 1)).then(|| times.value(end - 1))
        })
        .collect())
}
