//! Parquet parts as a table: their files in order, with columns that are the same for every row of a file.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{FieldRef, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, transform_schema_to_view};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;

/// One Parquet file.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    /// Values of the table's constant columns.
    pub(crate) constants: Vec<ScalarValue>,
}

/// Parquet files of one schema as a table.
#[derive(Debug)]
pub(crate) struct PartsTable {
    schema: TableSchema,
    parts: Vec<Part>,
}

impl PartsTable {
    /// The same for those who look: texts are read as views, which are quicker to compare, sort and pass on.
    pub(crate) fn viewed(file: &SchemaRef, constants: Vec<FieldRef>, parts: Vec<Part>) -> Self {
        Self::new(Arc::new(transform_schema_to_view(file)), constants, parts)
    }

    /// A table of the columns of `file`, then `constants`.
    pub(crate) fn new(file: SchemaRef, constants: Vec<FieldRef>, parts: Vec<Part>) -> Self {
        PartsTable {
            schema: TableSchema::builder(file).with_table_partition_cols(constants).build(),
            parts,
        }
    }
}

#[async_trait]
impl TableProvider for PartsTable {
    fn schema(&self) -> SchemaRef {
        self.schema.table_schema().clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>, DataFusionError> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    fn statistics(&self) -> Option<Statistics> {
        Some(known(&self.schema(), self.parts.iter().map(|part| part.rows).sum()))
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let url = ObjectStoreUrl::local_filesystem();
        let store = state.runtime_env().object_store(&url)?;
        // Footers are parsed once a session, for the bounds of columns and for reading.
        let footers = state.runtime_env().cache_manager.get_file_metadata_cache();
        let mut files = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            let mut file = PartitionedFile::new(part.path.to_string_lossy(), part.bytes);
            if let Ok(modified) = part.path.metadata().and_then(|metadata| metadata.modified()) {
                file.object_meta.last_modified = modified.into();
            }
            let statistics = DFParquetMetadata::new(&store, &file.object_meta)
                .with_file_metadata_cache(Some(footers.clone()))
                .fetch_statistics(self.schema.file_schema())
                .await?;
            files.push(
                file.with_partition_values(part.constants.clone())
                    .with_statistics(Arc::new(statistics)),
            );
        }
        let options = state.config_options();
        let source = ParquetSource::new(self.schema.clone())
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_pushdown_filters(options.execution.parquet.pushdown_filters)
            .with_reorder_filters(options.execution.parquet.reorder_filters)
            .with_parquet_file_reader_factory(Arc::new(CachedParquetFileReaderFactory::new(store, footers)));
        let bounds = files.iter().filter_map(|file| file.statistics.as_deref());
        let statistics = Statistics::try_merge_iter(bounds, self.schema.table_schema())?;
        let groups = FileGroup::new(files).split_files(state.config().target_partitions());
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// Statistics that tell the number of rows and nothing else.
fn known(schema: &SchemaRef, rows: u64) -> Statistics {
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX));
    statistics
}
