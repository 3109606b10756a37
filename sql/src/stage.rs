//! Statements over the inputs of a stage: bound to their schemas before any row is read, then run to one table whose rows
//! come in an order that depends on the statement and the inputs alone.
//!
//! A statement is planned for one partition, and every order in it is made total (see `settle`), so that equal inputs
//! give equal bytes. Rows come in the order of the statement, ties in that of the other columns from left to right;
//! without `ORDER BY` in that of all columns. What would depend on anything else is refused.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::{
    CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider, TableProvider,
};
use datafusion::common::TableReference;
use datafusion::datasource::empty::EmptyTable;
use datafusion::logical_expr::LogicalPlan;
use sluice_engine::error::did_you_mean;
use sluice_engine::operator::Cancel;
use sluice_engine::table::{Table, Tables, rows_of_part};
use sluice_engine::{Error, Result};

use crate::catalog::{STAGES, STORE};
use crate::failure::explain;
use crate::parts::{Part, PartsTable};
use crate::session::{Limits, Session};
use crate::settle::settle;
use crate::statement::Statement;

/// Functions that a statement may use as tables: those that read nothing.
const SERIES: [&str; 2] = ["generate_series", "range"];

/// The columns that a statement over tables of these schemas gives. Reads no row. Fails for what is wrong with the
/// statement, and for what would make its result depend on more than the tables.
pub fn bind(statement: &Statement, inputs: &[(String, SchemaRef)]) -> Result<SchemaRef> {
    let tables = inputs.iter().map(|(name, schema)| {
        let table: Arc<dyn TableProvider> = Arc::new(EmptyTable::new(schema.clone()));
        (name.clone(), table)
    });
    let session = over(&Limits::default(), &Cancel::default(), tables)?;
    let plan = plan(&session, statement)?;
    // What cannot be run is found here, and not when hours of work are done.
    session.wait(session.physical(&plan, statement.text()))?;
    columns(&plan)
}

/// Runs a statement over tables, by name, within limits (threads apart: there is one). The batches have the schema that
/// [`bind`] gives for the schemas of the tables.
pub fn run(
    statement: &Statement,
    inputs: &Tables,
    limits: &Limits,
    cancel: &Cancel,
) -> Result<(SchemaRef, Vec<RecordBatch>)> {
    let started = Instant::now();
    let mut tables = Vec::new();
    for (name, table) in inputs.iter() {
        tables.push((name.to_string(), provider(table)?));
    }
    let session = over(limits, cancel, tables)?;
    let plan = plan(&session, statement)?;
    let schema = columns(&plan)?;
    let physical = session.wait(session.physical(&plan, statement.text()))?;
    let rows = session.start(physical, started, statement.text().to_string())?;
    let batches = rows.map(|batch| conform(&schema, &batch?)).collect::<Result<_>>()?;
    Ok((schema, batches))
}

/// A session of one partition that sees these tables and nothing else.
fn over(
    limits: &Limits,
    cancel: &Cancel,
    tables: impl IntoIterator<Item = (String, Arc<dyn TableProvider>)>,
) -> Result<Session> {
    let limits = Limits {
        threads: 1,
        ..limits.clone()
    };
    let session = Session::new(&limits, cancel)?;
    let schema = MemorySchemaProvider::new();
    for (name, table) in tables {
        schema.register_table(name, table).map_err(|error| explain(error, ""))?;
    }
    let catalog = MemoryCatalogProvider::new();
    catalog
        .register_schema(STAGES, Arc::new(schema))
        .map_err(|error| explain(error, ""))?;
    session.context().register_catalog(STORE, Arc::new(catalog));
    Ok(session)
}

fn plan(session: &Session, statement: &Statement) -> Result<LogicalPlan> {
    if !statement.is_query() {
        let message = "a stage wants a query: SELECT, WITH or VALUES";
        return Err(Error::user("not-a-query", message));
    }
    known_tables(session, statement)?;
    let text = statement.text();
    let plan = session.wait(session.plan(statement))?;
    let state = session.context().state();
    // The schema is that of the plan with types as they are coerced.
    let checked = |plan| {
        state
            .analyzer()
            .execute_and_check(plan, &state.config_options().clone(), |_, _| {})
    };
    columns(&plan)?;
    settle(plan).and_then(checked).map_err(|error| explain(error, text))
}

/// Every name in the statement must be that of an input.
fn known_tables(session: &Session, statement: &Statement) -> Result<()> {
    let state = session.context().state();
    let names = session
        .context()
        .catalog(STORE)
        .and_then(|catalog| catalog.schema(STAGES))
        .map_or_else(Vec::new, |schema| schema.table_names());
    let references = state
        .resolve_table_references(statement.parsed())
        .map_err(|error| explain(error, statement.text()))?;
    for reference in references {
        let known = match &reference {
            TableReference::Bare { table } => {
                names.iter().any(|name| *name == **table) || SERIES.contains(&table.as_ref())
            }
            _ => false,
        };
        if known {
            continue;
        }
        let name = reference.to_string();
        let mut error = Error::user("unknown-table", format!("no input \"{name}\""))
            .detail(format!("a stage sees its inputs only: {}", names.join(", ")));
        let alike = names.iter().find(|known| known.to_lowercase() == name);
        error.hint = match alike {
            Some(alike) => Some(format!("a name with capital letters is quoted: \"{alike}\"")),
            None => did_you_mean(&name, names.iter().map(String::as_str)),
        };
        if error.hint.is_none() {
            error.hint = Some(format!("connect it: inputs: {{ {name}: STAGE }}"));
        }
        return Err(error);
    }
    Ok(())
}

/// The columns of a plan in the types that artifacts have.
fn columns(plan: &LogicalPlan) -> Result<SchemaRef> {
    let mut fields: Vec<Field> = Vec::new();
    for field in plan.schema().fields() {
        let name = field.name();
        if name.is_empty() || fields.iter().any(|known| known.name() == name) {
            let message = match name.is_empty() {
                true => "a column has no name".to_string(),
                false => format!("two columns are called \"{name}\""),
            };
            return Err(Error::user("duplicate-column", message).hint("give it a name: EXPRESSION AS name"));
        }
        if *field.data_type() == DataType::Null {
            let message = format!("column \"{name}\" has no type, only null");
            return Err(Error::user("wrong-type", message).hint("give it one: CAST(NULL AS BIGINT)"));
        }
        fields.push(plain(field));
    }
    match fields.is_empty() {
        true => Err(Error::user("no-columns", "the statement gives no columns")),
        false => Ok(Arc::new(Schema::new(fields))),
    }
}

/// Texts and bytes in the one form that the house has for each.
fn plain(field: &Field) -> Field {
    let inner = |field: &FieldRef| Arc::new(plain(field));
    let kind = match field.data_type() {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::BinaryView | DataType::LargeBinary => DataType::Binary,
        DataType::Dictionary(_, value) => {
            let value = plain(&Field::new("value", value.as_ref().clone(), true));
            value.data_type().clone()
        }
        DataType::List(field) | DataType::LargeList(field) | DataType::ListView(field) => DataType::List(inner(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(inner(field), *size),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(inner).collect()),
        other => other.clone(),
    };
    field.clone().with_data_type(kind)
}

/// The batch in the declared schema.
fn conform(schema: &SchemaRef, batch: &RecordBatch) -> Result<RecordBatch> {
    let columns = schema.fields().iter().zip(batch.columns());
    let columns = columns
        .map(|(field, column)| match column.data_type() == field.data_type() {
            true => Ok(column.clone()),
            false => cast(column, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(schema.clone(), columns, &options)?)
}

/// An input as DataFusion reads it.
fn provider(table: &Table) -> Result<Arc<dyn TableProvider>> {
    match table {
        Table::Batches(schema, batches) => {
            let table = MemTable::try_new(schema.clone(), vec![batches.clone()]);
            Ok(Arc::new(table.map_err(|error| explain(error, ""))?))
        }
        Table::Parts(schema, paths) => {
            let mut parts = Vec::new();
            for path in paths {
                let bytes = std::fs::metadata(path).map_err(|error| Error::io("read", path, &error))?;
                parts.push(Part {
                    path: path.clone(),
                    bytes: bytes.len(),
                    rows: rows_of_part(path)?,
                    constants: Vec::new(),
                });
            }
            Ok(Arc::new(PartsTable::new(schema.clone(), Vec::new(), parts)))
        }
        Table::Folder(_) => Err(table
            .schema()
            .err()
            .unwrap_or_else(|| Error::internal("a folder is no table"))),
    }
}

#[cfg(test)]
mod tests;
