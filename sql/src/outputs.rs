//! `outputs('operator', 'port')`: what every stage of an operator made, of this run and of all others, as one table with the
//! columns `stage`, `run`, `key` and `here` (whether it is of the run that names are about). `outputs('quantize_*')` takes all
//! operators that begin so.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::logical_expr::Expr;
use sluice_engine::error::did_you_mean;
use sluice_engine::operator::OUT;
use sluice_engine::store::KeyRecord;
use sluice_engine::table::schema_of_part;
use sluice_engine::{Error, Result};

use crate::catalog::{STORE, View, outside};
use crate::parts::{Part, PartsTable};

/// The table function.
#[derive(Debug)]
pub(crate) struct Outputs(pub(crate) Arc<View>);

impl TableFunctionImpl for Outputs {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let texts = texts("outputs", args.exprs()).map_err(outside)?;
        let (operator, port) = match texts.as_slice() {
            [operator] => (operator, OUT),
            [operator, port] => (operator, port.as_str()),
            _ => {
                let error = Error::user("bad-sql", "outputs wants an operator and, if it is not \"out\", a port");
                return Err(outside(error.hint("outputs('score_ranking', 'per_user')")));
            }
        };
        let table = table(&self.0, operator, port).map_err(outside)?;
        Ok(Arc::new(table))
    }
}

/// The arguments of a table function, all of them texts.
pub(crate) fn texts(function: &str, exprs: &[Expr]) -> Result<Vec<String>> {
    let text = |expr: &Expr| match expr {
        Expr::Literal(ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)), _) => Ok(text.clone()),
        other => Err(Error::user(
            "bad-sql",
            format!("{function} wants texts in quotes, not {other}"),
        )),
    };
    exprs.iter().map(text).collect()
}

fn table(view: &View, operator: &str, port: &str) -> Result<PartsTable> {
    let store = view.store();
    let records: Vec<KeyRecord> = store.keys().iter().filter_map(|key| store.known(key)).collect();
    let of_operator: Vec<&KeyRecord> = records
        .iter()
        .filter(|record| match operator.strip_suffix('*') {
            Some(beginning) => record.preimage.operator.starts_with(beginning),
            None => record.preimage.operator == operator,
        })
        .collect();
    if of_operator.is_empty() {
        let mut error = Error::user(
            "unknown-operator",
            format!("no stage of an operator \"{operator}\" is in the store"),
        );
        let known: BTreeSet<&str> = records.iter().map(|record| record.preimage.operator.as_str()).collect();
        error.hint = match view.source.registry.get(operator) {
            Some(_) if operator.starts_with("ingest_") => {
                Some("this query wants a pipeline that ingests raw files".to_string())
            }
            Some(_) => Some(format!("this query wants a pipeline with a stage of \"{operator}\"")),
            None => did_you_mean(operator, known.iter().copied()),
        };
        return Err(error.detail(format!("there are: {}", Vec::from_iter(known).join(", "))));
    }
    // Of several operators some may have no such output.
    let with_port = of_operator
        .iter()
        .filter_map(|record| Some((*record, record.outputs.get(port)?)));
    let with_port: Vec<(&KeyRecord, &String)> = with_port.collect();
    if with_port.is_empty() {
        let names: BTreeSet<&String> = of_operator.iter().flat_map(|record| record.outputs.keys()).collect();
        let names: Vec<&str> = names.into_iter().map(String::as_str).collect();
        let mut error = Error::user("unknown-port", format!("\"{operator}\" has no output \"{port}\""));
        error.hint = did_you_mean(port, names.iter().copied());
        return Err(error.detail(format!("it has: {}", names.join(", "))));
    }
    let scope = view.scope(STORE);
    let mut merged: Vec<FieldRef> = Vec::new();
    let mut parts = Vec::new();
    for (record, digest) in with_port {
        // An artifact may be gone while its key is still known.
        let Ok((manifest, paths)) = store.look(digest) else {
            continue;
        };
        if manifest.layout != "table" {
            let message = format!(
                "output \"{port}\" of \"{operator}\" is a {} folder, not a table",
                manifest.layout
            );
            return Err(Error::user("wrong-port", message).hint("sys.models has the tensors of models"));
        }
        let Some(first) = paths.first() else { continue };
        merge(&mut merged, &schema_of_part(first)?)?;
        let here: Vec<&str> = scope.iter().flat_map(|scope| scope.names_of(&record.key)).collect();
        let owners: Vec<(&str, &str, bool)> = match (&scope, here.is_empty()) {
            (Some(scope), false) => here
                .iter()
                .map(|stage| (*stage, scope.run.run.as_str(), true))
                .collect(),
            _ => vec![(manifest.stage.as_str(), record.run.as_str(), false)],
        };
        for (stage, run, here) in owners {
            let text = |text: &str| ScalarValue::Utf8(Some(text.to_string()));
            let constants = vec![
                text(stage),
                text(run),
                text(&record.key),
                ScalarValue::Boolean(Some(here)),
            ];
            parts.extend(manifest.files.iter().zip(&paths).map(|(file, path)| Part {
                path: path.clone(),
                bytes: file.bytes,
                rows: file.rows,
                constants: constants.clone(),
            }));
        }
    }
    let constant = |name: &str, kind: DataType| Arc::new(Field::new(name, kind, false));
    let constants = vec![
        constant("stage", DataType::Utf8),
        constant("run", DataType::Utf8),
        constant("key", DataType::Utf8),
        constant("here", DataType::Boolean),
    ];
    if let Some(clash) = merged
        .iter()
        .find(|field| constants.iter().any(|constant| constant.name() == field.name()))
    {
        let message = format!(
            "output \"{port}\" of \"{operator}\" has a column \"{}\" of its own",
            clash.name()
        );
        return Err(Error::user("duplicate-column", message).hint("ask for its stages by name"));
    }
    Ok(PartsTable::viewed(&Arc::new(Schema::new(merged)), constants, parts))
}

/// Adds columns that are new; a column that is missing somewhere is null there. Lists of one width here and another there
/// are lists of any width.
fn merge(merged: &mut Vec<FieldRef>, schema: &SchemaRef) -> Result<()> {
    for field in schema.fields() {
        let plain = field
            .as_ref()
            .clone()
            .with_metadata(Default::default())
            .with_nullable(true);
        let known = merged.iter_mut().find(|known| known.name() == field.name());
        match known {
            Some(known) if item(known).is_some() && item(known) == item(field) => {
                if known.data_type() != field.data_type() {
                    let of = Arc::new(Field::new_list_field(item(field).expect("a list").clone(), true));
                    *known = Arc::new(plain.with_data_type(DataType::List(of)));
                }
            }
            Some(known) if known.data_type() != field.data_type() => {
                let message = format!(
                    "column \"{}\" is {} in one artifact and {} in another",
                    field.name(),
                    known.data_type(),
                    field.data_type()
                );
                return Err(Error::user("different-columns", message).hint("ask for the stages by name"));
            }
            Some(_) => {}
            None => merged.push(Arc::new(plain)),
        }
    }
    Ok(())
}

/// What a list is of.
fn item(field: &Field) -> Option<&DataType> {
    match field.data_type() {
        DataType::FixedSizeList(item, _) | DataType::List(item) => Some(item.data_type()),
        _ => None,
    }
}
