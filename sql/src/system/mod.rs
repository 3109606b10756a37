//! The system's own tables: what the store knows of runs, stages, keys and artifacts. One file a table; each is made when a
//! statement reads it, for the runs it asks about.

mod artifacts;
mod events;
mod keys;
mod lineage;
mod metrics;
mod models;
mod operators;
mod runs;
mod stages;
mod why;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{DataFusionError, ScalarValue};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use sluice_engine::Result;
use sluice_engine::history::{self, RunRecord};

use crate::catalog::{View, outside};

/// A table of the system.
struct SystemTable {
    name: &'static str,
    /// A line for people.
    about: &'static str,
    /// Its rows, as far as they are wanted; with `View` absent the empty table, for the schema.
    rows: fn(Option<(&View, &Wanted)>) -> Result<RecordBatch>,
}

const TABLES: [SystemTable; 10] = [
    artifacts::TABLE,
    events::TABLE,
    keys::TABLE,
    lineage::TABLE,
    metrics::TABLE,
    models::TABLE,
    operators::TABLE,
    runs::TABLE,
    stages::TABLE,
    why::TABLE,
];

/// Names of the tables.
pub(crate) fn names() -> Vec<String> {
    TABLES.iter().map(|table| table.name.to_string()).collect()
}

/// Names of the tables, each with a line about it.
pub fn reference() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLES.iter().map(|table| (table.name, table.about))
}

/// The table of that name.
pub(crate) fn table(view: &Arc<View>, name: &str) -> Option<Arc<dyn TableProvider>> {
    let table = TABLES.iter().find(|table| table.name == name)?;
    Some(Arc::new(Provider {
        view: view.clone(),
        table,
        schema: (table.rows)(None).ok()?.schema(),
    }))
}

/// What a statement asks for: rows it does not want need not be made.
#[derive(Debug, Default)]
struct Wanted {
    /// Runs; all if not said.
    runs: Option<BTreeSet<String>>,
    /// Pipelines; all if not said.
    pipelines: Option<BTreeSet<String>>,
    /// Columns that are read.
    columns: BTreeSet<String>,
}

impl Wanted {
    /// Records of the runs that are wanted, newest first.
    fn runs(&self, view: &View) -> Vec<RunRecord> {
        let mut names = view.store().runs();
        names.retain(|name| self.runs.as_ref().is_none_or(|runs| runs.contains(name)));
        let records = names.iter().filter_map(|name| history::read(view.store(), name).ok());
        records
            .filter(|run| {
                self.pipelines
                    .as_ref()
                    .is_none_or(|wanted| wanted.contains(&run.pipeline))
            })
            .collect()
    }

    /// Narrows to `column = 'text'` and `column IN ('a', 'b')`.
    fn narrow(&mut self, filter: &Expr) {
        let text = |expr: &Expr| match expr {
            Expr::Literal(
                ScalarValue::Utf8(Some(text)) | ScalarValue::Utf8View(Some(text)) | ScalarValue::LargeUtf8(Some(text)),
                _,
            ) => Some(text.clone()),
            _ => None,
        };
        let (column, values) = match filter {
            Expr::BinaryExpr(binary) if binary.op == Operator::Eq => match (&*binary.left, &*binary.right) {
                (Expr::Column(column), value) | (value, Expr::Column(column)) => (column, text(value).map(|v| vec![v])),
                _ => return,
            },
            Expr::InList(list) if !list.negated => match &*list.expr {
                Expr::Column(column) => (column, list.list.iter().map(text).collect::<Option<Vec<_>>>()),
                _ => return,
            },
            _ => return,
        };
        let Some(values) = values else { return };
        let place = match column.name.as_str() {
            "run" => &mut self.runs,
            "pipeline" => &mut self.pipelines,
            _ => return,
        };
        let values: BTreeSet<String> = values.into_iter().collect();
        *place = Some(match place.take() {
            Some(known) => known.intersection(&values).cloned().collect(),
            None => values,
        });
    }
}

struct Provider {
    view: Arc<View>,
    table: &'static SystemTable,
    schema: SchemaRef,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "sys.{}", self.table.name)
    }
}

#[async_trait]
impl TableProvider for Provider {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let mut wanted = Wanted::default();
        filters.iter().for_each(|filter| wanted.narrow(filter));
        let names = self.schema.fields().iter().enumerate();
        wanted.columns = names
            .filter(|(index, _)| projection.is_none_or(|columns| columns.contains(index)))
            .map(|(_, field)| field.name().clone())
            .collect();
        let batch = (self.table.rows)(Some((&self.view, &wanted))).map_err(outside)?;
        let plan = MemorySourceConfig::try_new_exec(&[vec![batch]], self.schema.clone(), projection.cloned())?;
        Ok(plan)
    }
}
