//! `sql`: a query over the stage's inputs, and the texts of queries in configs.

use arrow::datatypes::SchemaRef;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_sql::{Limits, Statement, stage};

/// Runs a query in SQL over its inputs.
///
/// # In
/// Any tables; the name of an input is that of its table in the query. Names with capital letters are quoted there.
///
/// # Out
/// `out`: the columns of the query, each with a name of its own. Rows in the order of its `ORDER BY`, ties in that of the
/// other columns from left to right; without `ORDER BY` in that of all columns. Columns of maps break no ties.
///
/// # Source
/// The dialect is that of DataFusion 55 (<https://datafusion.apache.org/user-guide/sql/>).
///
/// # Deviates
/// A query here is a function of its inputs. Refused are: what depends on the clock or on chance (`now()`, `random()`),
/// `LIMIT` without `ORDER BY`, `DISTINCT ON`, `row_number()`, `lag()` and their like over rows in no order, `array_agg`,
/// `string_agg`, `first_value` and their like without `ORDER BY`, `any_value`, `version()`, and any table that is no input;
/// and what the dialect reads and would ignore, such as `TABLESAMPLE` or `WITH ROLLUP`. Where an order leaves ties, the
/// other columns break them; with `RANGE` frames equal rows stay equal.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sql {
    /// The query: `SELECT`, `WITH` or `VALUES`. White space, comments and the case of keywords are not part of the key.
    #[schemars(with = "String", extend("x-required" = true))]
    pub query: Query,
}

/// The text of a query. In the key it is normalised; what does not parse stays as it is, and `bind` says what is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(pub String);

impl Serialize for Query {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match Statement::parse(&self.0) {
            Ok(statement) => serializer.collect_str(&statement),
            Err(_) => serializer.serialize_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Query {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Query)
    }
}

impl Query {
    /// The columns of the query over tables of these schemas. Its errors tell the place in the query.
    pub fn bind(&self, inputs: &[(String, SchemaRef)]) -> Result<SchemaRef> {
        Statement::parse(&self.0)
            .and_then(|statement| stage::bind(&statement, inputs))
            .map_err(placed)
    }

    /// The rows of the query over tables, spilling into the attempt's folder.
    pub fn run(&self, context: &Context, inputs: &Tables) -> Result<Table> {
        let spill = context.folder("spill")?;
        let limits = Limits {
            spill: Some(spill),
            ..Limits::default()
        };
        let statement = Statement::parse(&self.0).map_err(placed)?;
        let (schema, batches) = stage::run(&statement, inputs, &limits, &context.cancel).map_err(placed)?;
        Ok(Table::Batches(schema, batches))
    }
}

/// The place in the query as details: the error's own place is that in the pipeline.
fn placed(mut error: Error) -> Error {
    let Some(place) = error.place.take() else { return error };
    let mut lines = vec![format!("at line {}, column {} of the query:", place.line, place.column)];
    if let Some(text) = place.text {
        lines.push(text);
        if place.column > 0 {
            let before = " ".repeat(place.column as usize - 1);
            lines.push(format!("{before}{}", "^".repeat(place.width.max(1) as usize)));
        }
    }
    lines.append(&mut error.detail);
    error.detail = lines;
    error
}

/// Names and schemas of the inputs that are tables; others are reported. `None` if one is not known.
pub(crate) fn tables(binding: &Binding) -> Option<Vec<(String, SchemaRef)>> {
    let mut known = Some(Vec::new());
    for port in binding.inputs() {
        match binding.shape(port) {
            Shape::Table(schema) => {
                if let Some(known) = &mut known {
                    known.push((port.to_string(), schema));
                }
            }
            Shape::Folder(layout) => {
                let message = format!("input \"{port}\" wants a table, not a {layout} folder");
                binding.input_problem(port, Error::user("wrong-input", message));
                known = None;
            }
            Shape::Unknown => known = None,
        }
    }
    known
}

impl Operator for Sql {
    const NAME: &'static str = "sql";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[Input::required(ANY, "a table; its name is that in the query")];

    fn bind(&self, binding: &Binding) -> Bound {
        let mut shape = Shape::Unknown;
        if let Some(inputs) = tables(binding) {
            match self.query.bind(&inputs) {
                Ok(schema) => shape = Shape::Table(schema),
                Err(error) => binding.problem("query", error),
            }
        } else if let Err(error) = Statement::parse(&self.query.0) {
            binding.problem("query", placed(error));
        }
        Bound::whole().out(shape)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        Ok(Tables::new().with(OUT, self.query.run(context, &inputs)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_engine::harness::Harness;
    use sluice_engine::text::{parse, render};

    fn run(query: &str, inputs: &[(&str, &str)]) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let harness = Harness {
            attempt: folder.path().to_path_buf(),
            ..Harness::default()
        };
        let tables: Vec<(&str, Table)> = inputs
            .iter()
            .map(|(name, text)| (*name, Table::new(parse(text).unwrap())))
            .collect();
        let sql = Sql {
            query: Query(query.into()),
        };
        render(&harness.run(&sql, &tables)?.batch(OUT)?)
    }

    const EVENTS: (&str, &str) = ("events", "user item n:i64\n b x 1\n a y 2\n a x 3\n b y 4\n a z 5");

    #[test]
    fn inputs_are_tables() {
        let titles = ("titles", "item title\n x Ex\n y Why");
        let text = run(
            "SELECT title, sum(n) AS n FROM events JOIN titles USING (item) GROUP BY title ORDER BY n DESC",
            &[EVENTS, titles],
        );
        assert_eq!(text.unwrap(), "title  n\nWhy    6\nEx     4\n");
    }

    #[test]
    fn errors_tell_the_place_in_the_query() {
        let error = run("SELECT usr,\n  item FROM events", &[EVENTS]).unwrap_err();
        assert_eq!(error.code, "missing-column", "{error}");
        assert!(error.detail[0].contains("line 1, column 8"), "{error}");
        assert!(error.hint.as_ref().unwrap().contains("user"), "{error}");
        let error = run("SELECT user\nFRM events", &[EVENTS]).unwrap_err();
        assert!(error.detail[0].contains("line 2"), "{error}");
    }

    #[test]
    fn the_key_does_not_know_how_a_query_is_written() {
        let text = |query: &str| {
            serde_json::to_string(&Sql {
                query: Query(query.into()),
            })
            .unwrap()
        };
        let one = text("select  a -- of t\nfrom t");
        assert_eq!(one, text("SELECT a FROM t;"));
        assert_ne!(one, text("SELECT b FROM t"));
        assert!(text("SELEC a").contains("SELEC a"));
        let schema = serde_json::to_value(schemars::schema_for!(Sql)).unwrap();
        assert_eq!(schema["properties"]["query"]["type"], "string");
    }

    /// Facts of a column travel with it.
    #[test]
    fn metadata_of_columns_that_pass_through_is_kept() {
        use std::sync::Arc;

        use arrow::datatypes::{DataType, Field, Schema};
        let field = Field::new("code", DataType::UInt16, false);
        let field = field.with_metadata([("size".to_string(), "256".to_string())].into());
        let schema: SchemaRef = Arc::new(Schema::new(vec![field]));
        let query = Query("SELECT code, code + 1 AS more FROM t".into());
        let bound = query.bind(&[("t".into(), schema)]).unwrap();
        assert_eq!(bound.field(0).metadata()["size"], "256");
        assert!(bound.field(1).metadata().is_empty());
        assert!(!bound.field(0).is_nullable());
    }
}
