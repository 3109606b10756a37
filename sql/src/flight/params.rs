//! Values for a statement's placeholders: `$1`, `$name`, and `?`, which counts.

use std::collections::HashMap;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use sluice_engine::{Error, Result};

use crate::failure::explain;

/// Characters of a value that an error shows.
const SHOWN: usize = 100;

/// The text with `$1`, `$2` and so on for each `?`.
pub(super) fn numbered(text: &str) -> String {
    if !text.contains('?') {
        return text.to_string();
    }
    // What is no SQL is told about as it was written.
    let Ok(tokens) = Tokenizer::new(&GenericDialect {}, text).tokenize() else {
        return text.to_string();
    };
    let mut count = 0;
    let number = |token: Token| match token {
        Token::Placeholder(mark) if mark == "?" => {
            count += 1;
            format!("${count}")
        }
        other => other.to_string(),
    };
    let changed: String = tokens.into_iter().map(number).collect();
    match count {
        0 => text.to_string(),
        _ => changed,
    }
}

/// The placeholders of a plan as columns: by number, then by name; null for a type that the statement leaves open.
pub(super) fn schema(plan: &LogicalPlan, text: &str) -> Result<SchemaRef> {
    let wanted = plan.get_parameter_types().map_err(|error| explain(error, text))?;
    let mut wanted: Vec<(String, Option<DataType>)> = wanted.into_iter().collect();
    wanted.sort_by_key(|(name, _)| (number(name).unwrap_or(usize::MAX), name.clone()));
    let fields = wanted
        .into_iter()
        .map(|(name, kind)| Field::new(name.trim_start_matches('$'), kind.unwrap_or(DataType::Null), true));
    Ok(Schema::new(fields.collect::<Vec<Field>>()).into())
}

/// The plan with the values of a row for its placeholders.
pub(super) fn bind(plan: LogicalPlan, row: Option<&RecordBatch>, text: &str) -> Result<LogicalPlan> {
    let wanted = schema(&plan, text)?;
    if wanted.fields().is_empty() {
        return match row.filter(|row| row.num_columns() > 0) {
            Some(_) => Err(Error::user(
                "unknown-param",
                "values for a statement that has no placeholder",
            )),
            None => Ok(plan),
        };
    }
    let Some(row) = row else {
        let names: Vec<&str> = wanted.fields().iter().map(|field| field.name().as_str()).collect();
        let message = format!("the statement wants values for {}", names.join(", "));
        return Err(Error::user("missing-param", message).hint("prepare it and bind a row of values"));
    };
    if row.num_rows() != 1 {
        let message = format!("{} rows of values where one is wanted", row.num_rows());
        return Err(Error::user("bad-param", message).hint("run the statement once for each row"));
    }
    let mut values: HashMap<String, ScalarAndMetadata> = HashMap::new();
    for field in wanted.fields() {
        // Names first; else numbers count the columns.
        let by_number = || number(field.name()).and_then(|number| row.columns().get(number.checked_sub(1)?));
        let by_name = match number(field.name()) {
            Some(_) => None,
            None => row.column_by_name(field.name()),
        };
        let Some(column) = by_name.or_else(by_number) else {
            return Err(Error::user(
                "missing-param",
                format!("the statement wants a value for \"{}\"", field.name()),
            ));
        };
        let value = ScalarValue::try_from_array(column, 0).map_err(|error| explain(error, text))?;
        let value = match field.data_type() {
            DataType::Null => value,
            kind => fitted(value, kind, field.name())?,
        };
        values.insert(field.name().clone(), value.into());
    }
    plan.with_param_values(ParamValues::Map(values))
        .map_err(|error| explain(error, text))
}

/// The value in the type that the statement makes of its placeholder. A number that this type does not hold exactly stays
/// as it is, and the plan takes it as it takes literals: `rank = 2.5` is true of no whole rank.
fn fitted(value: ScalarValue, kind: &DataType, name: &str) -> Result<ScalarValue> {
    let given = value.data_type();
    let cast = value.cast_to(kind);
    if kind.is_numeric() && given.is_numeric() {
        let exact = |cast: &ScalarValue| cast.cast_to(&given).is_ok_and(|back| back == value);
        return Ok(cast.ok().filter(exact).unwrap_or(value));
    }
    cast.map_err(|_| {
        let shown: String = value.to_string().chars().take(SHOWN).collect();
        let message = format!("parameter {name} is {shown}, and the column is {kind}");
        Error::user("bad-param", message)
    })
}

fn number(name: &str) -> Option<usize> {
    name.trim_start_matches('$').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_marks_count() {
        assert_eq!(
            numbered("SELECT ? -- why?\nWHERE a = ? AND b = '?' AND \"c?\" = ?"),
            "SELECT $1 -- why?\nWHERE a = $2 AND b = '?' AND \"c?\" = $3"
        );
        assert_eq!(numbered("SELECT '?'"), "SELECT '?'");
        assert_eq!(numbered("SELECT 'open ?"), "SELECT 'open ?");
        assert_eq!(numbered("SELECT $1"), "SELECT $1");
    }

    #[test]
    fn numbers_are_not_cut_to_the_type_of_a_column() {
        use ScalarValue::{Float32, Float64, Int64, UInt32, Utf8};
        let fit = |value: ScalarValue, kind: DataType| fitted(value, &kind, "1");
        for (value, kind, wanted) in [
            (Int64(Some(2)), DataType::UInt32, UInt32(Some(2))),
            (Float64(Some(2.0)), DataType::UInt32, UInt32(Some(2))),
            (Float64(Some(2.5)), DataType::UInt32, Float64(Some(2.5))),
            (Int64(Some(-1)), DataType::UInt32, Int64(Some(-1))),
            (Float64(Some(0.5)), DataType::Float32, Float32(Some(0.5))),
            (Int64(None), DataType::UInt32, UInt32(None)),
            (Utf8(Some("2".into())), DataType::UInt32, UInt32(Some(2))),
        ] {
            assert_eq!(fit(value.clone(), kind).unwrap(), wanted, "{value:?}");
        }
        let error = fit(Utf8(Some("two".into())), DataType::UInt32).expect_err("no number");
        assert_eq!(error.message, "parameter 1 is two, and the column is UInt32");
    }
}
