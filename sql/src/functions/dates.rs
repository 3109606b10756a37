//! `date_trunc` for times in UTC, as every artifact has them: DataFusion's own asks a calendar for every row, this one a
//! table of days. Other zones, units and texts go to DataFusion's.

use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowTimestampType, DataType, FieldRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions::datetime::date_trunc;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};

/// The function under DataFusion's name, which it replaces.
pub(super) fn function() -> ScalarUDF {
    ScalarUDF::new_from_impl(DateTrunc { inner: date_trunc() })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct DateTrunc {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for DateTrunc {
    fn name(&self) -> &str {
        "date_trunc"
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
        let grain = match &arguments.args[0] {
            ColumnarValue::Scalar(
                ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)),
            ) => Grain::named(text),
            _ => None,
        };
        if let (Some(grain), ColumnarValue::Array(times)) = (grain, &arguments.args[1])
            && let DataType::Timestamp(unit, zone) = times.data_type()
            && zone
                .as_deref()
                .is_none_or(|zone| ["UTC", "+00:00", "Z"].contains(&zone))
        {
            return Ok(ColumnarValue::Array(match unit {
                TimeUnit::Second => truncated::<TimestampSecondType>(times, grain, 1),
                TimeUnit::Millisecond => truncated::<TimestampMillisecondType>(times, grain, 1_000),
                TimeUnit::Microsecond => truncated::<TimestampMicrosecondType>(times, grain, 1_000_000),
                TimeUnit::Nanosecond => truncated::<TimestampNanosecondType>(times, grain, 1_000_000_000),
            }));
        }
        self.inner.invoke_with_args(arguments)
    }
}

/// What a time is cut down to.
#[derive(Clone, Copy)]
enum Grain {
    Day,
    /// From Monday, as ISO 8601 has it.
    Week,
    Month,
    Year,
}

impl Grain {
    fn named(text: &str) -> Option<Grain> {
        Some(match text.to_ascii_lowercase().as_str() {
            "day" => Grain::Day,
            "week" => Grain::Week,
            "month" => Grain::Month,
            "year" => Grain::Year,
            _ => return None,
        })
    }

    /// The first day of what a day is in; days since 1970.
    fn first_day(self, day: i64) -> i64 {
        match self {
            Grain::Day => day,
            // 1970 began on a Thursday.
            Grain::Week => day - (day + 3).rem_euclid(7),
            Grain::Month => months(day).0,
            Grain::Year => months(day).1,
        }
    }
}

/// The first day of the month and of the year that a day is in.
fn months(day: i64) -> (i64, i64) {
    /// Days from 1970 to 2069, one after the other.
    static TABLE: LazyLock<Vec<(i64, i64)>> = LazyLock::new(|| (0..36_525).map(calendar).collect());
    let known = usize::try_from(day).ok().and_then(|day| TABLE.get(day)).copied();
    known.unwrap_or_else(|| calendar(day))
}

/// The same by the rules of the Gregorian calendar.
fn calendar(day: i64) -> (i64, i64) {
    let (year, month, of_month) = sluice_engine::run::civil(day);
    let first = day - (of_month - 1);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let into_year = before[usize::try_from(month).unwrap_or(1) - 1] + i64::from(leap && month > 2);
    (first, first - into_year)
}

fn truncated<T: ArrowTimestampType>(times: &ArrayRef, grain: Grain, second: i64) -> ArrayRef {
    let day = 86_400 * second;
    let times = times.as_primitive::<T>();
    let cut: PrimitiveArray<T> = times.unary(|time| grain.first_day(time.div_euclid(day)).saturating_mul(day));
    Arc::new(cut.with_data_type(times.data_type().clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::TimestampMillisecondArray;
    use arrow::datatypes::Field;
    use datafusion::config::ConfigOptions;
    use proptest::prelude::*;

    fn cut(function: &ScalarUDF, grain: &str, times: &ArrayRef) -> ArrayRef {
        let field = Arc::new(Field::new("t", times.data_type().clone(), true));
        let arguments = ScalarFunctionArgs {
            args: vec![
                ColumnarValue::Scalar(ScalarValue::from(grain)),
                ColumnarValue::Array(times.clone()),
            ],
            arg_fields: vec![Arc::new(Field::new("g", DataType::Utf8, false)), field.clone()],
            number_rows: times.len(),
            return_field: field,
            config_options: Arc::new(ConfigOptions::default()),
        };
        let cut = function.invoke_with_args(arguments).unwrap();
        cut.into_array(times.len()).unwrap()
    }

    proptest! {
        #[test]
        fn it_is_what_datafusion_says(times in proptest::collection::vec(proptest::option::of(-9_000_000_000_000i64..9_000_000_000_000), 1..40)) {
            for zone in [None, Some("UTC"), Some("+00:00")] {
                let times = TimestampMillisecondArray::from(times.clone()).with_timezone_opt(zone);
                let times: ArrayRef = Arc::new(times);
                for grain in ["day", "week", "Month", "year", "hour", "quarter"] {
                    let (ours, theirs) = (cut(&function(), grain, &times), cut(&date_trunc(), grain, &times));
                    prop_assert_eq!(ours.as_ref(), theirs.as_ref(), "{} {:?}", grain, zone);
                }
            }
        }
    }
}
