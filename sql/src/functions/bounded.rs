//! `repeat`, `lpad`, `rpad` and `array_repeat` as DataFusion has them, for results of a size that a batch of rows may have.
//! What an expression makes is on nobody's account of memory, and nothing stops it before it is made: a short statement
//! could take all that the machine has.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::Result;
use datafusion::functions::string::repeat;
use datafusion::functions::unicode::{lpad, rpad};
use datafusion::functions_nested::repeat::array_repeat_udf;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use sluice_engine::Error;

use super::lists::{self, Lists};
use crate::catalog::outside;

/// Bytes that a call may make of a batch of rows.
const MOST: u64 = 256 << 20;

/// The functions under DataFusion's names, which they replace.
pub(super) fn functions() -> impl Iterator<Item = ScalarUDF> {
    let kinds = [
        (repeat(), Grows::Texts),
        (lpad(), Grows::Padding),
        (rpad(), Grows::Padding),
        (array_repeat_udf(), Grows::Lists),
    ];
    kinds
        .into_iter()
        .map(|(inner, grows)| ScalarUDF::new_from_impl(Bounded { inner, grows }))
}

/// What becomes long: as often as the second argument says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Grows {
    Texts,
    Padding,
    Lists,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Bounded {
    inner: Arc<ScalarUDF>,
    grows: Grows,
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(arguments)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let bytes = self.bytes(&arguments.args, arguments.number_rows)?;
        if bytes > MOST {
            let message = format!(
                "\"{}\" would make {} MiB of one batch of rows, more than {} MiB",
                self.name(),
                bytes >> 20,
                MOST >> 20
            );
            return Err(outside(
                Error::device("sql-memory", message).hint("ask for less of it, or for fewer rows at once"),
            ));
        }
        self.inner.invoke_with_args(arguments)
    }
}

impl Bounded {
    /// About how many bytes a call makes.
    fn bytes(&self, arguments: &[ColumnarValue], rows: usize) -> Result<u64> {
        let (what, constant) = lists::argument(&arguments[0])?;
        let (counts, same) = lists::argument(&arguments[1])?;
        let Some(counts) = counts.as_primitive_opt::<Int64Type>() else {
            return Ok(0);
        };
        let filling = arguments.get(2).map(lists::argument).transpose()?;
        let elements = match self.grows {
            Grows::Lists => Some(Elements::new(&what)?),
            Grows::Texts | Grows::Padding => None,
        };
        let mut bytes = 0u64;
        for row in 0..lists::rows(arguments, rows) {
            let at = |constant: bool| if constant { 0 } else { row };
            if counts.is_null(at(same)) {
                continue;
            }
            let each = match (&elements, self.grows, &filling) {
                (Some(elements), ..) => elements.bytes(at(constant)),
                (None, Grows::Padding, None) => 1,
                (None, Grows::Padding, Some((filling, constant))) => widest(text(filling, at(*constant))),
                (None, ..) => text(&what, at(constant)).len() as u64,
            };
            let count = u64::try_from(counts.value(at(same))).unwrap_or(0);
            bytes = bytes.saturating_add(each.saturating_mul(count));
        }
        Ok(bytes)
    }
}

/// The text of a row; an empty one if it is NULL.
fn text(texts: &ArrayRef, row: usize) -> &str {
    match texts.data_type() {
        _ if texts.is_null(row) => "",
        DataType::Utf8 => texts.as_string::<i32>().value(row),
        DataType::LargeUtf8 => texts.as_string::<i64>().value(row),
        DataType::Utf8View => texts.as_string_view().value(row),
        _ => "",
    }
}

/// Bytes of the widest character.
fn widest(filling: &str) -> u64 {
    filling.chars().map(char::len_utf8).max().unwrap_or(0) as u64
}

/// What lists are made of.
struct Elements<'a> {
    values: &'a ArrayRef,
    lists: Option<Lists<'a>>,
    /// Bytes of a value, or of one in a list, on average; texts are looked at one by one.
    each: u64,
}

impl<'a> Elements<'a> {
    fn new(values: &'a ArrayRef) -> Result<Self> {
        let lists = match values.data_type() {
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                Some(Lists::new(values, false)?)
            }
            _ => None,
        };
        let inner = lists.as_ref().map_or(values, |lists| lists.values);
        let bytes = inner.to_data().get_slice_memory_size().unwrap_or(0);
        Ok(Elements {
            values,
            lists,
            each: bytes.div_ceil(inner.len().max(1)) as u64,
        })
    }

    /// Bytes of a row in a list, with its number, by which it is taken.
    fn bytes(&self, row: usize) -> u64 {
        let own = match &self.lists {
            Some(lists) => lists.row(row).map_or(0, |range| range.len() as u64 * (self.each + 8)),
            None if self.values.data_type().is_string() => text(self.values, row).len() as u64,
            None => self.each,
        };
        own + 8
    }
}

#[cfg(test)]
mod tests {
    use arrow::util::display::array_value_to_string;

    use super::super::testdata::Asked;

    #[test]
    fn what_is_too_long_is_refused_before_it_is_made() {
        let asked = Asked::new(2, 8192);
        for (call, wanted) in [
            ("repeat('ab', 3)", "ababab"),
            ("lpad('ab', 4, 'é')", "ééab"),
            ("rpad('ab', -1)", ""),
            ("array_to_string(array_repeat('a', 3), '')", "aaa"),
            ("array_to_string(list_repeat(7, 2), '')", "77"),
            ("length(repeat('x', 1000000))", "1000000"),
        ] {
            let column = asked.column(&format!("SELECT {call}")).unwrap();
            assert_eq!(array_value_to_string(&column, 0).unwrap(), wanted, "{call}");
        }
        let grown = "repeat('x', CASE WHEN value > 50000 AND value <= 50011 THEN 200000000 ELSE 1 END)";
        for call in [
            "repeat('x', 2000000000)",
            "repeat('x', 9223372036854775807)",
            "lpad('x', 300000000)",
            "rpad('x', 90000000, 'é€')",
            "array_repeat(1.5, 100000000)",
            "array_repeat('long', 100000000)",
            "array_repeat([1, 2, 3], 30000000)",
            grown,
        ] {
            let statement = format!("SELECT {call} FROM generate_series(1, 100000)");
            let error = asked.column(&statement).expect_err(call);
            assert_eq!(error.code, "sql-memory", "{call}: {error}");
        }
    }
}
