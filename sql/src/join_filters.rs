//! Joins tell scans which keys they have, where that saves work.
//!
//! A hash join knows the keys of its smaller side before it reads the larger one, and DataFusion has the scan look every
//! row up among them. That is the work of the join done twice, so it pays only where the scan then leaves much undecoded:
//! embeddings, histories, long texts. The rule here takes it from scans of narrow rows.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::physical_plan::parquet::source::ParquetSource;
use datafusion::datasource::physical_plan::{FileScanConfig, FileScanConfigBuilder, FileSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, DynamicFilterPhysicalExpr};
use datafusion::physical_expr::utils::{collect_columns, conjunction, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::HashJoinExec;

/// Bytes of a row from which on not decoding it is worth a look-up: a look-up takes about as long as decoding half as many.
const WIDE: usize = 64;

/// Takes the keys of joins from scans that would save little by them.
#[derive(Debug)]
pub(crate) struct JoinFilters;

impl PhysicalOptimizerRule for JoinFilters {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let mut joins = HashSet::new();
        plan.apply(|node| {
            if node.is::<HashJoinExec>() {
                let produced = node.dynamic_expressions_produced();
                joins.extend(produced.iter().filter_map(|filter| filter.expression_id()));
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        if joins.is_empty() {
            return Ok(plan);
        }
        plan.transform_up(|node| match narrow(&node, &joins)? {
            Some(scan) => Ok(Transformed::yes(scan)),
            None => Ok(Transformed::no(node)),
        })
        .data()
    }

    fn name(&self) -> &'static str {
        "JoinFilters"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// The scan without the keys of joins, if it is one that has them and saves little by them.
fn narrow(node: &Arc<dyn ExecutionPlan>, joins: &HashSet<u64>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let scan = node.downcast_ref::<DataSourceExec>();
    let Some(config) = scan.and_then(|scan| scan.data_source().downcast_ref::<FileScanConfig>()) else {
        return Ok(None);
    };
    let Some(source) = config.file_source().downcast_ref::<ParquetSource>() else {
        return Ok(None);
    };
    let Some(predicate) = source.filter() else {
        return Ok(None);
    };
    let of_a_join = |part: &Arc<dyn PhysicalExpr>| {
        let id = part
            .downcast_ref::<DynamicFilterPhysicalExpr>()
            .and_then(PhysicalExpr::expression_id);
        id.is_some_and(|id| joins.contains(&id))
    };
    let (taken, kept): (Vec<_>, Vec<_>) = split_conjunction(&predicate).into_iter().cloned().partition(of_a_join);
    if taken.is_empty() || unread(config, source, &predicate) >= WIDE {
        return Ok(None);
    }
    let source: Arc<dyn FileSource> = match kept.is_empty() {
        true => unfiltered(source)?,
        false => Arc::new(source.with_predicate(conjunction(kept))),
    };
    let config = FileScanConfigBuilder::from(config.clone()).with_source(source).build();
    Ok(Some(DataSourceExec::from_data_source(config)))
}

/// Bytes of a row that the scan decodes for those rows alone that its filters let through.
fn unread(config: &FileScanConfig, source: &ParquetSource, predicate: &Arc<dyn PhysicalExpr>) -> usize {
    let read = collect_columns(predicate);
    let mut columns = HashSet::new();
    for expression in source.projection().into_iter().flat_map(|projection| projection.iter()) {
        columns.extend(
            collect_columns(&expression.expr)
                .into_iter()
                .filter(|column| !read.contains(column)),
        );
    }
    let statistics = config.statistics();
    let rows = statistics.num_rows.get_value().copied().unwrap_or(0).max(1);
    let bytes = |column: &Column| {
        let known = statistics.column_statistics.get(column.index());
        let known = known.and_then(|known| known.byte_size.get_value().copied());
        match source.table_schema().table_schema().fields().get(column.index()) {
            // A footer has no size of these; a vector or a history is wide.
            Some(field) if field.data_type().is_nested() => WIDE,
            _ => known.unwrap_or(0) / rows,
        }
    };
    columns.iter().map(bytes).sum()
}

/// The same scan without a filter; there is no taking it away.
fn unfiltered(source: &ParquetSource) -> Result<Arc<dyn FileSource>> {
    let mut fresh = ParquetSource::new(source.table_schema().clone())
        .with_table_parquet_options(source.table_parquet_options().clone());
    if let Some(factory) = source.parquet_file_reader_factory() {
        fresh = fresh.with_parquet_file_reader_factory(factory.clone());
    }
    let projected = match source.projection() {
        Some(projection) => fresh.try_pushdown_projection(projection)?,
        None => None,
    };
    Ok(projected.unwrap_or_else(|| Arc::new(fresh)))
}
