//! Times, ratings and prices as people write them.

use arrow::compute::kernels::cast_utils::string_to_timestamp_nanos;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Unit of numeric times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TimestampUnit {
    /// By magnitude: below 100,000,000,000 seconds, below 100,000,000,000,000 milliseconds, else malformed.
    #[default]
    Auto,
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
}

/// Below this a number is taken for seconds (the year 5138), as milliseconds it is the year 1973.
const SECONDS_BELOW: u64 = 100_000_000_000;

/// An integer time in milliseconds.
pub fn integer_time(value: i64, unit: TimestampUnit) -> Result<i64, String> {
    let seconds = match unit {
        TimestampUnit::S => true,
        TimestampUnit::Ms => false,
        TimestampUnit::Auto if value.unsigned_abs() < SECONDS_BELOW => true,
        TimestampUnit::Auto if value.unsigned_abs() < SECONDS_BELOW * 1000 => false,
        TimestampUnit::Auto => return Err(format!("timestamp {value} is neither seconds nor milliseconds")),
    };
    match seconds {
        true => value
            .checked_mul(1000)
            .ok_or_else(|| format!("timestamp {value} is out of range")),
        false => Ok(value),
    }
}

/// A time in milliseconds with fractions.
pub fn float_time(value: f64, unit: TimestampUnit) -> Result<i64, String> {
    if !value.is_finite() || value.abs() > 9e15 {
        return Err(format!("bad timestamp {value}"));
    }
    let whole = value.trunc() as i64;
    let millis = integer_time(whole, unit)?;
    let scale = if whole != 0 && millis == whole { 1.0 } else { 1000.0 };
    match unit {
        TimestampUnit::Ms => Ok(value.round() as i64),
        _ => Ok((value * scale).round() as i64),
    }
}

/// A time in milliseconds: a number in `unit`, or a date and time as ISO 8601 has it (UTC if it names no zone).
pub fn time(text: &str, unit: TimestampUnit) -> Result<i64, String> {
    if let Some(value) = integer(text) {
        return integer_time(value, unit);
    }
    if let Ok(value) = text.parse::<f64>() {
        return float_time(value, unit).map_err(|_| format!("bad timestamp \"{text}\""));
    }
    if text.is_empty() {
        return Err("no timestamp".to_string());
    }
    string_to_timestamp_nanos(text)
        .or_else(|error| with_seconds(text).map_or(Err(error), |text| string_to_timestamp_nanos(&text)))
        .map(|nanos| nanos.div_euclid(1_000_000))
        .map_err(|_| format!("bad timestamp \"{text}\""))
}

/// A date with hours and minutes (and perhaps a zone) that names no seconds, with them.
fn with_seconds(text: &str) -> Option<String> {
    let (minutes, zone) = text.split_at_checked("2018-06-17T10:00".len())?;
    let bare = minutes.as_bytes()[13] == b':' && !zone.starts_with([':', '.']);
    bare.then(|| format!("{minutes}:00{zone}"))
}

/// The whole number that a float is, if it is one and surely the one that was meant.
pub fn whole(number: f64) -> Option<i64> {
    const SURE: f64 = (1u64 << 53) as f64;
    (number.fract() == 0.0 && number.abs() <= SURE).then_some(number as i64)
}

/// A rating; `None` for an empty cell.
pub fn rating(text: &str) -> Result<Option<f32>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<f32>() {
        Ok(value) if value.is_finite() => Ok(Some(value)),
        _ => Err(format!("bad rating \"{text}\"")),
    }
}

/// A price: `12.99`, `$1,299.00`; of a range (`$5 - $9`) the lower end; anything else is no price.
pub fn price(text: &str) -> Option<f64> {
    let text = text.split(" - ").next().unwrap_or_default().trim();
    let text = text.trim_start_matches(['$', '€', '£', '¥', ' ']);
    let digits: String = text.chars().filter(|c| *c != ',').collect();
    let plausible = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    digits.parse().ok().filter(|value: &f64| plausible && value.is_finite())
}

/// A plain integer of up to 18 digits; anything else is left to the slow ways.
fn integer(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let (negative, digits) = match bytes {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, bytes),
    };
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    let mut value = 0i64;
    for byte in digits {
        if !byte.is_ascii_digit() {
            return None;
        }
        value = value * 10 + i64::from(byte - b'0');
    }
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_by_magnitude_and_by_unit() {
        let auto = |text| time(text, TimestampUnit::Auto);
        assert_eq!(auto("1318896000"), Ok(1_318_896_000_000));
        assert_eq!(auto("1318896000123"), Ok(1_318_896_000_123));
        assert_eq!(auto("1318896000.5"), Ok(1_318_896_000_500));
        assert_eq!(auto("1.318896e9"), Ok(1_318_896_000_000));
        assert_eq!(auto("2018-06-17"), Ok(1_529_193_600_000));
        assert_eq!(auto("2018-06-17T00:00:01.250Z"), Ok(1_529_193_601_250));
        for minutes in [
            "2018-06-17T10:00",
            "2018-06-17 10:00",
            "2018-06-17T10:00Z",
            "2018-06-17T12:00+02:00",
        ] {
            assert_eq!(auto(minutes), Ok(1_529_229_600_000), "{minutes}");
        }
        assert_eq!(auto("-1"), Ok(-1000));
        assert_eq!(time("5", TimestampUnit::Ms), Ok(5));
        assert_eq!(time("1318896000123", TimestampUnit::S), Ok(1_318_896_000_123_000));
        for bad in [
            "",
            "x",
            "NaN",
            "inf",
            "1318896000123456",
            "2018-13-45",
            "12 3",
            "2018-06-17T10:60",
            "2018-06-17T10:0\u{e9}",
        ] {
            assert!(auto(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn whole_numbers_among_floats() {
        assert_eq!((whole(10.0), whole(-0.0)), (Some(10), Some(0)));
        for none in [1.5, 1e300, f64::NAN, f64::INFINITY] {
            assert_eq!(whole(none), None, "{none}");
        }
    }

    #[test]
    fn prices_as_shops_write_them() {
        assert_eq!(price("$1.99"), Some(1.99));
        assert_eq!(price("1,299"), Some(1299.0));
        assert_eq!(price("$5.99 - $12.99"), Some(5.99));
        for none in ["", "None", "—", "from", "nan", "inf", ".a-box-inner{}", "-3"] {
            assert_eq!(price(none), None, "{none}");
        }
    }
}
