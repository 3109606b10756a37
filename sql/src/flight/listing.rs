//! What there is: catalogs, schemas, tables, kinds of tables, facts about the server; keys, of which nothing is known.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::SqlSupportedTransaction;
use arrow_flight::sql::metadata::{
    GetCatalogsBuilder, GetDbSchemasBuilder, GetTablesBuilder, SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfoData,
    XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{Command, CommandGetTables, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity};
use sluice_engine::{Error, Result};

use super::plain;
use crate::catalog::SYS;
use crate::session::Session;

/// Kinds of tables, as listed.
const TABLE: &str = "TABLE";
const SYSTEM_TABLE: &str = "SYSTEM TABLE";

/// The columns of a listing; `None` if the command asks for none.
pub(super) fn schema(command: &Command) -> Result<Option<SchemaRef>> {
    Ok(Some(match command {
        Command::CommandGetCatalogs(_) => GetCatalogsBuilder::new().schema(),
        Command::CommandGetDbSchemas(asked) => GetDbSchemasBuilder::from(asked.clone()).schema(),
        Command::CommandGetTables(asked) => GetTablesBuilder::from(asked.clone()).schema(),
        Command::CommandGetTableTypes(_) => kinds()?.schema(),
        Command::CommandGetSqlInfo(_) => facts()?.schema(),
        Command::CommandGetXdbcTypeInfo(_) => types()?.schema(),
        Command::CommandGetPrimaryKeys(_) => primary_keys(),
        Command::CommandGetExportedKeys(_)
        | Command::CommandGetImportedKeys(_)
        | Command::CommandGetCrossReference(_) => foreign_keys(),
        _ => return Ok(None),
    }))
}

/// The rows of a listing; `None` if the command asks for none.
pub(super) async fn rows(session: Session, command: Command) -> Result<Option<RecordBatch>> {
    let batch = match command {
        Command::CommandGetCatalogs(_) => {
            let mut catalogs = GetCatalogsBuilder::new();
            catalog_names(&session)
                .into_iter()
                .for_each(|name| catalogs.append(name));
            catalogs.build().map_err(outside)?
        }
        Command::CommandGetDbSchemas(asked) => {
            let mut schemas = GetDbSchemasBuilder::from(asked);
            for catalog in catalog_names(&session) {
                for schema in schema_names(&session, &catalog) {
                    schemas.append(&catalog, schema);
                }
            }
            schemas.build().map_err(outside)?
        }
        Command::CommandGetTables(asked) => tables(&session, asked).await?,
        Command::CommandGetTableTypes(_) => kinds()?,
        Command::CommandGetSqlInfo(asked) => asked.into_builder(&facts()?).build().map_err(outside)?,
        Command::CommandGetXdbcTypeInfo(asked) => asked.into_builder(&types()?).build().map_err(outside)?,
        other => match schema(&other)? {
            Some(schema) => RecordBatch::new_empty(schema),
            None => return Ok(None),
        },
    };
    Ok(Some(batch))
}

fn outside(error: arrow_flight::error::FlightError) -> Error {
    Error::internal(format!("flight: {error}"))
}

fn catalog_names(session: &Session) -> Vec<String> {
    session.context().catalog_names()
}

fn schema_names(session: &Session, catalog: &str) -> Vec<String> {
    let catalog = session.context().catalog(catalog);
    catalog.map_or_else(Vec::new, |catalog| catalog.schema_names())
}

/// Tables that are asked for; those alone are opened for their columns.
async fn tables(session: &Session, asked: CommandGetTables) -> Result<RecordBatch> {
    let with_schema = asked.include_schema;
    let names_only = CommandGetTables {
        include_schema: false,
        ..asked
    };
    let mut found = GetTablesBuilder::from(names_only);
    let none = Schema::empty();
    for catalog in catalog_names(session) {
        for schema in schema_names(session, &catalog) {
            let provider = session.context().catalog(&catalog);
            let provider = provider.and_then(|catalog| catalog.schema(&schema));
            let kind = if schema == SYS { SYSTEM_TABLE } else { TABLE };
            for table in provider.map_or_else(Vec::new, |provider| provider.table_names()) {
                found.append(&catalog, &schema, table, kind, &none).map_err(outside)?;
            }
        }
    }
    let found = found.build().map_err(outside)?;
    if !with_schema {
        return Ok(found);
    }
    let all = |name: Option<&str>| name.map(str::to_string);
    let mut full = GetTablesBuilder::new(all(None), all(None), all(None), Vec::<String>::new(), true);
    let columns: Vec<&StringArray> = found.columns().iter().map(|column| column.as_string()).collect();
    for row in 0..found.num_rows() {
        let [catalog, schema, table, kind] = [0, 1, 2, 3].map(|column: usize| columns[column].value(row));
        let provider = session.context().catalog(catalog);
        let provider = provider.and_then(|catalog| catalog.schema(schema));
        // A table that cannot be opened has a name and no columns; asking for its rows says why.
        let columns = match provider {
            Some(provider) => provider.table(table).await.ok().flatten(),
            None => None,
        };
        let columns = columns.map_or_else(|| Arc::new(Schema::empty()), |table| plain::schema(&table.schema()));
        full.append(catalog, schema, table, kind, &columns).map_err(outside)?;
    }
    full.build().map_err(outside)
}

fn kinds() -> Result<RecordBatch> {
    let schema = Schema::new(vec![Field::new("table_type", DataType::Utf8, false)]);
    let kinds: ArrayRef = Arc::new(StringArray::from(vec![SYSTEM_TABLE, TABLE]));
    Ok(RecordBatch::try_new(Arc::new(schema), vec![kinds])?)
}

fn types() -> Result<XdbcTypeInfoData> {
    XdbcTypeInfoDataBuilder::new().build().map_err(outside)
}

fn facts() -> Result<SqlInfoData> {
    let mut facts = SqlInfoDataBuilder::new();
    facts.append(SqlInfo::FlightSqlServerName, "sluice");
    facts.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    facts.append(SqlInfo::FlightSqlServerArrowVersion, arrow::ARROW_VERSION);
    facts.append(SqlInfo::FlightSqlServerReadOnly, true);
    facts.append(SqlInfo::FlightSqlServerSql, true);
    facts.append(SqlInfo::FlightSqlServerSubstrait, false);
    facts.append(
        SqlInfo::FlightSqlServerTransaction,
        SqlSupportedTransaction::None as i32,
    );
    facts.append(SqlInfo::FlightSqlServerCancel, false);
    facts.append(SqlInfo::FlightSqlServerBulkIngestion, false);
    facts.append(SqlInfo::SqlDdlCatalog, false);
    facts.append(SqlInfo::SqlDdlSchema, false);
    facts.append(SqlInfo::SqlDdlTable, false);
    let lower = SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase;
    facts.append(SqlInfo::SqlIdentifierCase, lower as i32);
    facts.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    let as_written = SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive;
    facts.append(SqlInfo::SqlQuotedIdentifierCase, as_written as i32);
    facts.append(SqlInfo::SqlAllTablesAreSelectable, true);
    facts.append(SqlInfo::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    facts.build().map_err(outside)
}

/// The columns of `CommandGetPrimaryKeys`, as FlightSql.proto says.
fn primary_keys() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// The columns of `CommandGetExportedKeys` and its like, as FlightSql.proto says.
fn foreign_keys() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ]))
}
