//! Semantic ids: their prefixes, as text, and how far two of them agree.

use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, ListArray, StringBuilder, UInt32Builder, UInt64Array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int64Type, UInt16Type, UInt32Type};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use sluice_engine::Error;

use super::lists::{self, Lists};
use super::{About, check_arguments, elements, whole_number, with_elements, wrong_type};
use crate::catalog::outside;

const SID: (&str, &str) = ("sid", "A semantic id: a list of codes.");

/// The family's reference.
pub(super) const ABOUT: &[About] = &[
    About {
        name: "sid_prefix",
        signature: "sid_prefix(sid, depth) -> List",
        line: "The first codes of a semantic id.",
        detail: "Codes keep their type; group by it to count how ids share codes. NULL if either is NULL; a depth beyond \
            the id is an error.",
        arguments: &[SID, ("depth", "How many codes, from 0 to all of them.")],
    },
    About {
        name: "sid_text",
        signature: "sid_text(sid) -> Utf8",
        line: "A semantic id as text, such as 12-7-255.",
        detail: "NULL if the id is NULL; a code that is NULL is written as a question mark.",
        arguments: &[SID],
    },
    About {
        name: "shared_prefix_length",
        signature: "shared_prefix_length(a, b) -> UInt32",
        line: "How many leading codes of two semantic ids agree.",
        detail: "The ids may differ in length. NULL if either is NULL; a code that is NULL agrees with none.",
        arguments: &[("a", "A semantic id."), ("b", "Another one.")],
    },
];

/// The functions.
pub(super) fn all() -> Vec<ScalarUDF> {
    let tasks = [Task::Prefix, Task::Text, Task::Shared];
    let functions = tasks.into_iter().zip(ABOUT).map(|(task, about)| {
        ScalarUDF::from(Codes {
            task,
            about,
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: about.documentation(),
        })
    });
    functions.collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Task {
    Prefix,
    Text,
    Shared,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Codes {
    task: Task,
    about: &'static About,
    signature: Signature,
    documentation: Documentation,
}

impl ScalarUDFImpl for Codes {
    fn name(&self) -> &str {
        self.about.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let whole = |list: &DataType| elements(list).is_some_and(DataType::is_integer);
        Ok(match (self.task, given) {
            (Task::Prefix, [sid, depth]) => vec![empty_as_codes(sid), whole_number(depth)],
            // What two artifacts hold is compared as it lies; anything else as wide numbers.
            (Task::Shared, [a, b]) => match elements(a) == elements(b) && whole(a) && is_code(elements(a)) {
                true => given.to_vec(),
                false => given
                    .iter()
                    .map(|list| match whole(list) {
                        true => with_elements(list, DataType::Int64),
                        false => empty_as_codes(list),
                    })
                    .collect(),
            },
            _ => given.iter().map(empty_as_codes).collect(),
        })
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        check_arguments(self.about, given, self.about.arguments.len())?;
        let ids = match self.task {
            Task::Prefix if given[1] != DataType::Int64 => {
                return wrong_type(self.about, 1, "a whole number", &given[1]);
            }
            Task::Prefix => &given[..1],
            Task::Text | Task::Shared => given,
        };
        for (place, given) in ids.iter().enumerate() {
            if !elements(given).is_some_and(DataType::is_integer) {
                return wrong_type(self.about, place, "a list of whole numbers", given);
            }
        }
        Ok(match self.task {
            Task::Prefix => DataType::new_list(elements(&given[0]).cloned().unwrap_or(DataType::Null), true),
            Task::Text => DataType::Utf8,
            Task::Shared => DataType::UInt32,
        })
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (sid, constant) = lists::argument(&args.args[0])?;
        let sid = Lists::new(&sid, constant)?;
        let rows = lists::rows(&args.args, args.number_rows);
        let result = match self.task {
            Task::Prefix => {
                let (depth, constant) = lists::argument(&args.args[1])?;
                let depth = depth.as_primitive::<Int64Type>();
                let depth = |row: usize| {
                    let row = if constant { 0 } else { row };
                    depth.is_valid(row).then(|| depth.value(row))
                };
                self.prefix(&sid, depth, rows)?
            }
            Task::Text => text(&sid, rows)?,
            Task::Shared => {
                let (other, constant) = lists::argument(&args.args[1])?;
                let other = Lists::new(&other, constant)?;
                match sid.values.data_type() {
                    DataType::UInt16 => shared::<UInt16Type>(&sid, &other, rows),
                    DataType::UInt32 => shared::<UInt32Type>(&sid, &other, rows),
                    _ => shared::<Int64Type>(&sid, &other, rows),
                }
            }
        };
        lists::result(&args.args, result)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

impl Codes {
    fn prefix(&self, sid: &Lists, depth: impl Fn(usize) -> Option<i64>, rows: usize) -> Result<ArrayRef> {
        let mut places: Vec<u64> = Vec::new();
        let mut offsets: Vec<i32> = Vec::with_capacity(rows + 1);
        offsets.push(0);
        let mut valid = Vec::with_capacity(rows);
        for row in 0..rows {
            let found = sid.row(row).zip(depth(row));
            valid.push(found.is_some());
            if let Some((codes, depth)) = found {
                let Some(depth) = usize::try_from(depth).ok().filter(|depth| *depth <= codes.len()) else {
                    let (name, length) = (self.about.name, codes.len());
                    let message = format!("\"{name}\": no prefix of {depth} codes, an id has {length}");
                    return Err(outside(Error::user("bad-depth", message)));
                };
                places.extend((codes.start..codes.start + depth).map(|place| place as u64));
            }
            let end = i32::try_from(places.len())
                .map_err(|_| outside(Error::user("too-many-codes", "more than 2^31 codes in a batch")))?;
            offsets.push(end);
        }
        let codes = take(sid.values, &UInt64Array::from(places), None)?;
        let item = Arc::new(Field::new_list_field(codes.data_type().clone(), true));
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Ok(Arc::new(ListArray::try_new(
            item,
            offsets,
            codes,
            Some(lists::nulls(valid)),
        )?))
    }
}

fn is_code(element: Option<&DataType>) -> bool {
    matches!(element, Some(DataType::UInt16 | DataType::UInt32))
}

/// NULL and lists of nothing are ids without codes.
fn empty_as_codes(given: &DataType) -> DataType {
    match (given, elements(given)) {
        (DataType::Null, _) | (_, Some(DataType::Null)) => with_elements(given, DataType::Int64),
        _ => given.clone(),
    }
}

fn text(sid: &Lists, rows: usize) -> Result<ArrayRef> {
    let codes = arrow::compute::cast(sid.values, &DataType::Int64)?;
    let codes = codes.as_primitive::<Int64Type>();
    let mut texts = StringBuilder::with_capacity(rows, rows * 12);
    for row in 0..rows {
        let Some(places) = sid.row(row) else {
            texts.append_null();
            continue;
        };
        for (count, place) in places.enumerate() {
            let apart = if count == 0 { "" } else { "-" };
            // Writing to a builder of strings does not fail.
            let _ = match codes.is_valid(place) {
                true => write!(texts, "{apart}{}", codes.value(place)),
                false => write!(texts, "{apart}?"),
            };
        }
        texts.append_value("");
    }
    Ok(Arc::new(texts.finish()))
}

fn shared<T: ArrowPrimitiveType>(a: &Lists, b: &Lists, rows: usize) -> ArrayRef {
    let (a_codes, b_codes) = (a.values.as_primitive::<T>(), b.values.as_primitive::<T>());
    let (a_missing, b_missing) = (a.missing(), b.missing());
    let mut lengths = UInt32Builder::with_capacity(rows);
    for row in 0..rows {
        lengths.append_option(a.row(row).zip(b.row(row)).map(|(a, b)| {
            let agree = |(a, b): &(usize, usize)| {
                a_codes.value(*a) == b_codes.value(*b)
                    && a_missing.is_none_or(|nulls| nulls.is_valid(*a))
                    && b_missing.is_none_or(|nulls| nulls.is_valid(*b))
            };
            a.zip(b).take_while(agree).count() as u32
        }));
    }
    Arc::new(lengths.finish())
}

#[cfg(test)]
mod tests {
    use arrow::array::{FixedSizeListArray, StringArray, UInt16Array, UInt32Array};
    use arrow::buffer::NullBuffer;

    use super::super::testdata::{Asked, batch};
    use super::*;

    /// Ids as the store has them, cut out of a larger table: ten rows of (row / 4, row, 9), the fifth of them NULL.
    fn ids() -> Asked {
        let codes = (0..12u16).flat_map(|row| [row / 4, row, 9]);
        let item = Arc::new(Field::new_list_field(DataType::UInt16, false));
        let nulls = NullBuffer::from_iter((0..12).map(|row| row != 5));
        let codes = Arc::new(UInt16Array::from_iter_values(codes));
        let sid: ArrayRef = Arc::new(FixedSizeListArray::new(item, 3, codes, Some(nulls)));
        let whole = batch(vec![("sid", sid)]);
        Asked::new(1, 8192).with("ids", vec![vec![whole.slice(1, 3), whole.slice(4, 7)]])
    }

    #[test]
    fn slices_and_missing_ids() {
        let asked = ids();
        let prefixes = asked.column("SELECT sid_prefix(sid, 1) FROM ids").unwrap();
        let codes = prefixes.as_list::<i32>();
        let first = |row: usize| {
            codes
                .is_valid(row)
                .then(|| codes.value(row).as_primitive::<UInt16Type>().value(0))
        };
        let firsts: Vec<Option<u16>> = (0..10).map(first).collect();
        let one = Some(1);
        assert_eq!(
            firsts,
            [
                Some(0),
                Some(0),
                Some(0),
                one,
                None,
                one,
                one,
                Some(2),
                Some(2),
                Some(2)
            ]
        );

        let texts = asked.column("SELECT sid_text(sid) FROM ids LIMIT 5").unwrap();
        let wanted = [Some("0-1-9"), Some("0-2-9"), Some("0-3-9"), Some("1-4-9"), None];
        assert_eq!(texts.as_string::<i32>(), &StringArray::from(wanted.to_vec()));

        let shared = asked
            .column("SELECT shared_prefix_length(sid, arrow_cast([1, 6, 9], 'List(UInt16)')) FROM ids")
            .unwrap();
        let (zero, one, three) = (Some(0), Some(1), Some(3));
        let wanted = vec![zero, zero, zero, one, None, three, one, zero, zero, zero];
        assert_eq!(shared.as_primitive::<UInt32Type>(), &UInt32Array::from(wanted));
    }

    #[test]
    fn prefixes_group_and_are_refused_beyond_the_id() {
        let asked = ids();
        let counts = "SELECT count(*) AS n FROM ids GROUP BY sid_prefix(sid, 1) ORDER BY n";
        let counts = asked.column(counts).unwrap();
        assert_eq!(counts.as_primitive::<Int64Type>().values().to_vec(), [1, 3, 3, 3]);
        assert_eq!(
            asked
                .column("SELECT sid_prefix(sid, 2) FROM ids WHERE sid IS NULL AND sid[1] = 7")
                .unwrap()
                .len(),
            0
        );
        let error = asked.column("SELECT sid_prefix(sid, 4) FROM ids").unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("bad-depth", "\"sid_prefix\": no prefix of 4 codes, an id has 3")
        );
    }
}
