//! `test_rows`: what is wrong with a table, as rows. The operator behind `tests:`.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

use crate::sql::{Query, tables};

/// The port of the tested table.
const ROWS: &str = "rows";
/// The port of the table that a foreign key refers to.
const PARENT: &str = "parent";

/// Finds the rows of a table that fail a test: of each entry under `tests:`, exactly one.
///
/// # In
/// - `rows`: the table that is tested; under `tests:` the stage itself, unless `input:` names another.
/// - `parent`: for `foreign_key`, the table referred to.
/// - any others: for `sql`, further tables by name.
///
/// # Out
/// `out`: the rows that fail, none if all is well. Of `not_null`, `range`, `accepted` and `foreign_key` rows of the table; of
/// `unique` its columns and how many rows have them; of `row_count` what was found; of `sql` what the query gives.
///
/// # Source
/// The generic tests of dbt (<https://docs.getdbt.com/docs/build/data-tests>): a test is a query for what is wrong.
///
/// # Deviates
/// Nulls are for `not_null` to find: they pass `range`, `accepted` and `foreign_key`, and `unique` leaves them out, as
/// constraints in SQL do. NaN lies in no range.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TestRows {
    /// Columns without nulls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_null: Option<Vec<String>>,
    /// Columns that together have no values twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique: Option<Vec<String>>,
    /// A column whose values lie between two, both included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<Range>,
    /// A column and its only values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
    /// How many rows there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_count: Option<RowCount>,
    /// A column whose values all occur in a column of the input `parent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub foreign_key: Option<ForeignKey>,
    /// A query, over the table `rows` and other inputs, that must give no row.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub sql: Option<Query>,
}

/// A column whose values lie between two, both included.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Range {
    /// The column.
    pub column: String,
    /// The least value.
    pub min: Option<Scalar>,
    /// The greatest value.
    pub max: Option<Scalar>,
}

/// A column and its only values.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Accepted {
    /// The column.
    pub column: String,
    /// The values.
    pub values: Vec<Scalar>,
}

/// How many rows there are.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RowCount {
    /// At least so many.
    pub min: Option<u64>,
    /// At most so many.
    pub max: Option<u64>,
}

/// A column whose values all occur in a column of the input `parent`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ForeignKey {
    /// The column.
    pub column: String,
    /// The column of `parent`; of the same name if left out.
    pub references: String,
}

/// A value in a config.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Scalar {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Number(f64),
    /// A text, or a time as a text.
    Text(String),
    /// No value, which no test can mean.
    #[schemars(skip)]
    Null,
}

impl Scalar {
    /// As SQL has it.
    fn sql(&self) -> String {
        match self {
            Scalar::Bool(value) => value.to_string(),
            Scalar::Integer(value) => value.to_string(),
            Scalar::Number(value) => format!("{value:?}"),
            Scalar::Text(value) => format!("'{}'", value.replace('\'', "''")),
            Scalar::Null => "NULL".to_string(),
        }
    }

    /// The same beside a column of this type: a number is rounded as those in the column are.
    fn sql_as(&self, kind: Option<&DataType>) -> String {
        match (self, kind) {
            (Scalar::Number(_), Some(narrow @ (DataType::Float16 | DataType::Float32))) => {
                format!("arrow_cast({}, '{narrow}')", self.sql())
            }
            _ => self.sql(),
        }
    }

    /// Whether a column of this type has such values: SQL would compare a number with a text, as texts.
    fn fits(&self, kind: &DataType) -> bool {
        match self {
            Scalar::Bool(_) => *kind == DataType::Boolean,
            Scalar::Integer(_) | Scalar::Number(_) => kind.is_numeric(),
            Scalar::Text(_) => kind.is_string() || kind.is_temporal(),
            Scalar::Null => true,
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn joined(columns: &[String], each: impl Fn(&str) -> String, between: &str) -> String {
    let parts: Vec<String> = columns.iter().map(|column| each(&quoted(column))).collect();
    parts.join(between)
}

impl TestRows {
    /// The tests it has, by name.
    fn kinds(&self) -> Vec<&'static str> {
        let kinds = [
            ("not_null", self.not_null.is_some()),
            ("unique", self.unique.is_some()),
            ("range", self.range.is_some()),
            ("accepted", self.accepted.is_some()),
            ("row_count", self.row_count.is_some()),
            ("foreign_key", self.foreign_key.is_some()),
            ("sql", self.sql.is_some()),
        ];
        kinds
            .into_iter()
            .filter(|(_, there)| *there)
            .map(|(kind, _)| kind)
            .collect()
    }

    /// The query for what is wrong with rows of this schema.
    fn query(&self, rows: &Schema) -> Query {
        if let Some(query) = &self.sql {
            return query.clone();
        }
        let kind = |column: &str| rows.field_with_name(column).ok().map(|field| field.data_type());
        let mut text = String::new();
        if let Some(columns) = &self.not_null {
            let null = joined(columns, |column| format!("{column} IS NULL"), " OR ");
            text = format!("SELECT * FROM \"rows\" WHERE {null}");
        }
        if let Some(columns) = &self.unique {
            let mut count = "count".to_string();
            while columns.contains(&count) {
                count.push('_');
            }
            let list = joined(columns, str::to_string, ", ");
            let known = joined(columns, |column| format!("{column} IS NOT NULL"), " AND ");
            text = format!(
                "SELECT {list}, count(*) AS {} FROM \"rows\" WHERE {known} GROUP BY {list} HAVING count(*) > 1",
                quoted(&count)
            );
        }
        if let Some(range) = &self.range {
            let (column, kind) = (quoted(&range.column), kind(&range.column));
            let mut wrong = Vec::new();
            wrong.extend(range.min.iter().map(|min| format!("{column} < {}", min.sql_as(kind))));
            wrong.extend(range.max.iter().map(|max| format!("{column} > {}", max.sql_as(kind))));
            if !matches!(range.min.as_ref().or(range.max.as_ref()), Some(Scalar::Text(_))) {
                wrong.push(format!("isnan({column})"));
            }
            text = format!("SELECT * FROM \"rows\" WHERE {}", wrong.join(" OR "));
        }
        if let Some(accepted) = &self.accepted {
            let (column, kind) = (quoted(&accepted.column), kind(&accepted.column));
            let values: Vec<String> = accepted.values.iter().map(|value| value.sql_as(kind)).collect();
            text = format!("SELECT * FROM \"rows\" WHERE {column} NOT IN ({})", values.join(", "));
        }
        if let Some(count) = &self.row_count {
            let bound = |bound: Option<u64>| bound.map_or("CAST(NULL AS BIGINT)".to_string(), |rows| rows.to_string());
            text = format!(
                "SELECT * FROM (SELECT count(*) AS found, {} AS \"min\", {} AS \"max\" FROM \"rows\") AS counted \
                 WHERE found < \"min\" OR found > \"max\"",
                bound(count.min),
                bound(count.max)
            );
        }
        if let Some(key) = &self.foreign_key {
            let (column, parent) = (quoted(&key.column), quoted(key.parent()));
            text = format!(
                "SELECT * FROM \"rows\" WHERE {column} IS NOT NULL AND NOT EXISTS \
                 (SELECT 1 FROM \"parent\" WHERE \"parent\".{parent} = \"rows\".{column})"
            );
        }
        Query(text)
    }

    /// Reports columns that are not there, and values that no column of its type has.
    fn check(&self, binding: &Binding) -> bool {
        let mut fine = true;
        let mut column = |field: &str, port: &str, name: &str| -> Option<DataType> {
            let schema = binding.schema(port)?;
            match schema.field_with_name(name) {
                Ok(found) => Some(found.data_type().clone()),
                Err(_) => {
                    fine = false;
                    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                    let mut error = Error::user("missing-column", format!("no column \"{name}\" in \"{port}\""))
                        .detail(format!("it has: {}", names.join(", ")));
                    error.hint = sluice_engine::error::did_you_mean(name, names);
                    binding.problem(field, error);
                    None
                }
            }
        };
        let mut wrong: Vec<(&str, String)> = Vec::new();
        for (field, columns) in [("not_null", &self.not_null), ("unique", &self.unique)] {
            let Some(columns) = columns else { continue };
            if columns.is_empty() {
                wrong.push((field, format!("\"{field}\" names no column")));
            }
            for (at, name) in columns.iter().enumerate() {
                column(field, ROWS, name);
                if columns[..at].contains(name) {
                    wrong.push((field, format!("\"{field}\" names column \"{name}\" twice")));
                }
            }
        }
        let misfit = |name: &str, kind: &DataType, values: &[&Scalar]| {
            let value = values.iter().find(|value| !value.fits(kind))?;
            Some(format!(
                "column \"{name}\" is {kind}: no value of it is {}",
                value.sql()
            ))
        };
        if let Some(range) = &self.range {
            let bounds: Vec<&Scalar> = range.min.iter().chain(&range.max).collect();
            if bounds.is_empty() {
                wrong.push(("range", "\"range\" wants \"min\", \"max\" or both".into()));
            }
            if let Some(kind) = column("range", ROWS, &range.column) {
                wrong.extend(misfit(&range.column, &kind, &bounds).map(|message| ("range", message)));
            }
        }
        if let Some(accepted) = &self.accepted {
            let values: Vec<&Scalar> = accepted.values.iter().collect();
            if values.is_empty() {
                wrong.push(("accepted", "\"accepted\" names no value".into()));
            }
            if accepted.values.contains(&Scalar::Null) {
                let message = "\"values\" holds null: nulls pass this test; not_null finds them";
                wrong.push(("accepted", message.into()));
            }
            if let Some(kind) = column("accepted", ROWS, &accepted.column) {
                wrong.extend(misfit(&accepted.column, &kind, &values).map(|message| ("accepted", message)));
            }
        }
        if self
            .row_count
            .as_ref()
            .is_some_and(|count| count.min.or(count.max).is_none())
        {
            wrong.push(("row_count", "\"row_count\" wants \"min\", \"max\" or both".into()));
        }
        if let Some(key) = &self.foreign_key {
            let own = column("foreign_key", ROWS, &key.column);
            let parent = column("foreign_key", PARENT, key.parent());
            if let (Some(own), Some(parent)) = (own, parent)
                && own != parent
            {
                let message = format!("column \"{}\" is {own}, what it refers to is {parent}", key.column);
                wrong.push(("foreign_key", message));
            }
            if !binding.has(PARENT) {
                wrong.push(("foreign_key", "\"foreign_key\" wants inputs: { parent: STAGE }".into()));
            }
        }
        fine &= wrong.is_empty();
        wrong
            .into_iter()
            .for_each(|(field, message)| binding.bad_value(field, message));
        fine
    }

    /// Reports inputs that the test does not look at.
    fn ports(&self, binding: &Binding) -> bool {
        let looks = |port: &&str| match *port {
            ROWS => true,
            PARENT => self.foreign_key.is_some() || self.sql.is_some(),
            _ => self.sql.is_some(),
        };
        let unused: Vec<&str> = binding.inputs().filter(|port| !looks(port)).collect();
        for port in &unused {
            let message = format!("this test does not read \"{port}\"");
            binding.input_problem(port, Error::user("unknown-input", message));
        }
        unused.is_empty()
    }
}

impl ForeignKey {
    /// The column that is referred to.
    fn parent(&self) -> &str {
        match self.references.is_empty() {
            true => &self.column,
            false => &self.references,
        }
    }
}

impl Operator for TestRows {
    const NAME: &'static str = "test_rows";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[
        Input::required(ROWS, "the table that is tested"),
        Input::optional(PARENT, "the table that `foreign_key` refers to"),
        Input::optional(ANY, "a further table for `sql`"),
    ];

    fn bind(&self, binding: &Binding) -> Bound {
        let mut shape = Shape::Unknown;
        let kinds = self.kinds();
        match kinds.as_slice() {
            [] => {
                let error = Error::user("bad-test", "the test tests nothing");
                binding.input_problem(ROWS, error.hint("write not_null: [COLUMN, ...], or another test"));
            }
            [kind] => {
                let fine = self.ports(binding) & self.check(binding);
                if let (true, Some(inputs), Some(rows)) = (fine, tables(binding), binding.schema(ROWS)) {
                    match self.query(rows).bind(&inputs) {
                        Ok(schema) => shape = Shape::Table(schema),
                        Err(error) => binding.problem(kind, error),
                    }
                }
            }
            [first, second, ..] => {
                let message = format!("\"{first}\" and \"{second}\" are two tests");
                let error = Error::user("bad-test", message).hint("write an entry for each");
                binding.problem(second, error);
            }
        }
        Bound::whole().out(shape)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let schema = inputs.table(ROWS)?.schema()?;
        let query = self.query(&schema);
        Ok(Tables::new().with(OUT, query.run(context, &inputs)?))
    }

    fn conclude(&self, _: &Context, _: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let mut notes = Notes::new();
        notes.insert("failing".into(), outputs.table(OUT)?.rows()?.into());
        Ok(notes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use sluice_engine::harness::Harness;
    use sluice_engine::table::Table;
    use sluice_engine::text::{parse, render};

    const TABLE: &str = "user | item | rating:f64 | kind\n u1 | i1 | 5 | a\n u1 | i2 | 0.5 | b\n u2 | i1 | null | a\n \
        null | i3 | 6 | c\n u1 | i1 | NaN | null";

    fn failing(config: serde_json::Value, more: &[(&str, &str)]) -> Result<String> {
        failing_of(TABLE, config, more)
    }

    fn failing_of(rows: &str, config: serde_json::Value, more: &[(&str, &str)]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let harness = Harness {
            attempt: folder.path().to_path_buf(),
            ..Harness::default()
        };
        let test: TestRows = serde_json::from_value(config).unwrap();
        let mut tables = vec![("rows", Table::new(parse(rows).unwrap()))];
        tables.extend(
            more.iter()
                .map(|(name, text)| (*name, Table::new(parse(text).unwrap()))),
        );
        render(&harness.run(&test, &tables)?.batch(OUT)?)
    }

    #[test]
    fn every_kind_finds_what_is_wrong_and_no_more() {
        let parent = [("parent", "id\n i1\n i2\n null")];
        type Case<'a> = (serde_json::Value, &'a [(&'a str, &'a str)], &'a str, serde_json::Value);
        let cases: [Case; 7] = [
            (
                json!({"not_null": ["user", "item"]}),
                &[],
                "user  item  rating  kind\nnull  i3    6.0     c\n",
                json!({"not_null": ["item"]}),
            ),
            (
                json!({"unique": ["user", "item"]}),
                &[],
                "user  item  count\nu1    i1    2\n",
                json!({"unique": ["user", "item", "rating"]}),
            ),
            (
                json!({"range": {"column": "rating", "min": 1, "max": 5.5}}),
                &[],
                "user  item  rating  kind\nu1    i1    NaN     null\nu1    i2    0.5     b\nnull  i3    6.0     c\n",
                json!({"range": {"column": "item", "min": "i1", "max": "i3"}}),
            ),
            (
                json!({"accepted": {"column": "kind", "values": ["a", "b"]}}),
                &[],
                "user  item  rating  kind\nnull  i3    6.0     c\n",
                json!({"accepted": {"column": "kind", "values": ["a", "b", "c"]}}),
            ),
            (
                json!({"row_count": {"min": 6}}),
                &[],
                "found  min  max\n5      6    null\n",
                json!({"row_count": {"min": 5, "max": 5}}),
            ),
            (
                json!({"foreign_key": {"column": "item", "references": "id"}}),
                &parent,
                "user  item  rating  kind\nnull  i3    6.0     c\n",
                json!({"foreign_key": {"column": "item", "references": "id"}}),
            ),
            (
                json!({"sql": "SELECT kind FROM rows WHERE user = 'u2'"}),
                &[],
                "kind\na\n",
                json!({"sql": "SELECT kind FROM rows WHERE user = 'u9'"}),
            ),
        ];
        for (config, more, wanted, good) in cases {
            assert_eq!(failing(config.clone(), more).unwrap(), wanted, "{config}");
            let all: &[(&str, &str)] = match more.is_empty() {
                true => &[],
                false => &[("parent", "id\n i1\n i2\n i3")],
            };
            let text = failing(good.clone(), all).unwrap();
            assert_eq!(text.lines().count(), 1, "{good}: {text}");
        }
    }

    /// 0.1 is another number in single precision.
    #[test]
    fn values_are_rounded_as_those_of_the_column() {
        let rows = "score:f32\n 0.1\n 0.7";
        for (config, wanted) in [
            (
                json!({"accepted": {"column": "score", "values": [0.1, 0.7]}}),
                "score\n",
            ),
            (
                json!({"accepted": {"column": "score", "values": [0.1]}}),
                "score\n0.7\n",
            ),
            (json!({"range": {"column": "score", "min": 0.1, "max": 0.7}}), "score\n"),
            (json!({"range": {"column": "score", "min": 0.2}}), "score\n0.1\n"),
        ] {
            assert_eq!(failing_of(rows, config.clone(), &[]).unwrap(), wanted, "{config}");
        }
    }

    #[test]
    fn what_no_test_can_mean_is_refused() {
        let cases = [
            (json!({}), "tests nothing"),
            (json!({"not_null": ["user"], "unique": ["user"]}), "two tests"),
            (json!({"not_null": []}), "names no column"),
            (json!({"unique": ["user", "user"]}), "twice"),
            (json!({"not_null": ["usr"]}), "no column \"usr\""),
            (json!({"range": {"column": "rating"}}), "wants \"min\""),
            (json!({"range": {"column": "rating", "min": "a"}}), "is Float64"),
            (json!({"accepted": {"column": "kind", "values": [1]}}), "is Utf8"),
            (
                json!({"accepted": {"column": "kind", "values": ["a", null]}}),
                "not_null finds them",
            ),
            (json!({"row_count": {}}), "wants \"min\""),
            (json!({"foreign_key": {"column": "item"}}), "parent: STAGE"),
            (json!({"sql": "SELECT nothing FROM rows"}), "nothing"),
            (json!({"sql": "SELECT * FROM rows LIMIT 1"}), "ORDER BY"),
            (json!({"sql": "SELECT any_value(item) AS item FROM rows"}), "any row"),
            (
                json!({"sql": "SELECT any_value(item ORDER BY kind) AS item FROM rows"}),
                "any row",
            ),
            (json!({"sql": "SELECT version() AS version"}), "the software"),
            (json!({"sql": "SELECT * FROM rows PREWHERE user = 'u1'"}), "PREWHERE"),
        ];
        for (config, wanted) in cases {
            let error = failing(config.clone(), &[]).expect_err(&config.to_string());
            assert!(error.message.contains(wanted), "{config}: {error}");
        }
        let error = failing(json!({"not_null": ["user"]}), &[("more", "a\n 1")]).unwrap_err();
        assert_eq!(error.code, "unknown-input");
    }

    /// Kinds that a test does not have are no part of its key, so that new ones can come.
    #[test]
    fn the_config_has_only_what_was_said() {
        let test: TestRows = serde_json::from_value(json!({"unique": ["a"]})).unwrap();
        assert_eq!(serde_json::to_value(&test).unwrap(), json!({"unique": ["a"]}));
    }
}
