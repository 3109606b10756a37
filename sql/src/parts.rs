//! Parquet parts as a table: their files in order, with columns that are the same for every row of a file.

mod footers;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, ScalarValue, Statistics};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::ParquetRowSelection;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, transform_schema_to_view};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, FileSource, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::object_store::ObjectMeta;
use datafusion::object_store::path::Path;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::ExecutionPlan;
use parquet::arrow::arrow_reader::RowSelection;
use parquet::basic::Encoding;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData};

use crate::text_views::{self, ViewsAdapters};
use footers::{Footers, without_float_bounds};

/// Bytes from which on threads share a file.
const SHARED: u64 = 1 << 20;

/// Values that a text column at least has where none was worth a dictionary: half of those that the writer looked at.
const DISTINCT: f64 = 8192.0;

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
    /// The same for those who look: texts are views, which are quicker to compare, sort and pass on.
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

impl PartsTable {
    /// Which columns of the files are texts to be shown as views.
    fn texts(&self) -> impl Iterator<Item = bool> {
        let fields = self.schema.file_schema().fields().iter();
        fields.map(|field| *field.data_type() == DataType::Utf8View)
    }

    /// Which columns are texts that lie behind their lengths, for want of values that repeat. What a file has at its
    /// beginning stands for all: it decides how fast a scan is, not what it finds.
    fn lengths_apart(&self, footer: &ParquetMetaData) -> Vec<bool> {
        let Some(first) = footer.row_groups().first() else {
            return vec![false; self.schema.file_schema().fields().len()];
        };
        let is_apart = |chunk: &ColumnChunkMetaData| {
            let mut encodings = chunk.encodings();
            chunk.dictionary_page_offset().is_none() && encodings.any(|kind| kind == Encoding::DELTA_LENGTH_BYTE_ARRAY)
        };
        let fields = self.schema.file_schema().fields().iter();
        let chunks = fields.map(|field| {
            first
                .columns()
                .iter()
                .find(|chunk| chunk.column_path().parts() == [field.name().as_str()])
        });
        chunks.map(|chunk| chunk.is_some_and(is_apart)).collect()
    }

    /// What a footer tells of the columns. It has no bounds of floating columns, whose NaN is in none.
    fn bounds(&self, footer: &ParquetMetaData) -> Result<Statistics, DataFusionError> {
        let columns = self.schema.file_schema();
        let mut known = DFParquetMetadata::statistics_from_parquet_metadata(footer, columns)?;
        for (field, column) in columns.fields().iter().zip(&mut known.column_statistics) {
            if field.data_type().is_floating() {
                column.min_value = Precision::Absent;
                column.max_value = Precision::Absent;
            }
        }
        Ok(known)
    }

    /// What is known of the rows that `filters` let through: one value of a column whose values hardly repeat is rare.
    /// Other filters are for the plan to judge.
    fn passing(&self, statistics: Statistics, filters: &[Expr], apart: &[bool]) -> Statistics {
        let conditions = filters.iter().flat_map(split_conjunction);
        let rare = conditions.filter_map(equal_to_a_literal).filter(|column| {
            let at = self.schema.file_schema().index_of(column);
            at.is_ok_and(|at| apart[at])
        });
        let share = DISTINCT.powi(-i32::try_from(rare.count()).unwrap_or(i32::MAX));
        if share == 1.0 {
            return statistics;
        }
        let mut passing = statistics.to_inexact();
        passing.num_rows = passing.num_rows.with_estimated_selectivity(share);
        passing.total_byte_size = passing.total_byte_size.with_estimated_selectivity(share);
        for column in &mut passing.column_statistics {
            column.byte_size = column.byte_size.with_estimated_selectivity(share);
        }
        passing
    }
}

/// The column of `column = literal`.
fn equal_to_a_literal(condition: &Expr) -> Option<&str> {
    let Expr::BinaryExpr(BinaryExpr {
        left,
        op: Operator::Eq,
        right,
    }) = condition
    else {
        return None;
    };
    match (left.as_ref(), right.as_ref()) {
        (Expr::Column(column), Expr::Literal(..)) | (Expr::Literal(..), Expr::Column(column)) => Some(&column.name),
        _ => None,
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
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
        let url = ObjectStoreUrl::local_filesystem();
        let store = state.runtime_env().object_store(&url)?;
        // Footers are parsed once a session, for the bounds of columns and for reading.
        let footers = state.runtime_env().cache_manager.get_file_metadata_cache();
        let threads = state.config().target_partitions();
        let mut files = Vec::with_capacity(self.parts.len());
        let mut at_hand = HashMap::new();
        let mut apart = vec![false; self.schema.file_schema().fields().len()];
        for part in &self.parts {
            let modified = part.path.metadata().and_then(|metadata| metadata.modified());
            let file = PartitionedFile::new_from_meta(ObjectMeta {
                location: Path::from_absolute_path(&part.path)?,
                last_modified: modified.unwrap_or(SystemTime::UNIX_EPOCH).into(),
                size: part.bytes,
                e_tag: None,
                version: None,
            });
            let footer = DFParquetMetadata::new(&store, &file.object_meta)
                .with_file_metadata_cache(Some(footers.clone()))
                .fetch_metadata()
                .await?;
            if files.is_empty() {
                apart = self.lengths_apart(&footer);
            }
            if let Some(changed) = without_float_bounds(&footer)? {
                at_hand.insert(file.object_meta.location.clone(), Arc::new(changed));
            }
            let statistics = self.bounds(&footer)?;
            files.push(
                file.with_partition_values(part.constants.clone())
                    .with_statistics(Arc::new(statistics)),
            );
        }
        let options = state.config_options();
        let viewed: Vec<bool> = self
            .texts()
            .zip(&apart)
            .map(|(is_view, apart)| is_view && *apart)
            .collect();
        let read = TableSchema::builder(text_views::marked(self.schema.file_schema(), &viewed))
            .with_table_partition_cols(self.schema.table_partition_cols().clone())
            .build();
        let readers = Footers {
            inner: CachedParquetFileReaderFactory::new(store, footers),
            at_hand,
        };
        let source = ParquetSource::new(read)
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_pushdown_filters(options.execution.parquet.pushdown_filters)
            .with_reorder_filters(options.execution.parquet.reorder_filters)
            .with_parquet_file_reader_factory(Arc::new(readers));
        let bounds = files.iter().filter_map(|file| file.statistics.as_deref());
        let statistics = Statistics::try_merge_iter(bounds, self.schema.table_schema())?;
        let statistics = self.passing(statistics, filters, &apart);
        // Whoever wants a few rows wants the first ones.
        let bytes: u64 = self.parts.iter().map(|part| part.bytes).sum();
        let share = files.len() < threads && bytes >= SHARED && limit.is_none();
        let groups = match share {
            true => shares(&files, &self.parts, threads),
            false => FileGroup::new(files).split_files(threads),
        };
        let mut columns = text_views::projection(self.schema.table_schema(), &viewed);
        if let Some(projection) = projection {
            columns = projection.iter().map(|at| columns[*at].clone()).collect();
        }
        let source = source.try_pushdown_projection(&ProjectionExprs::new(columns))?;
        let source = source.expect("a Parquet source takes any projection");
        let config = FileScanConfigBuilder::new(url, source)
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_expr_adapter(Some(Arc::new(ViewsAdapters)))
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }
}

/// Fewer files than threads: every thread reads its share of the rows of each. A file may be a single row group, which
/// would otherwise be one thread's work.
fn shares(files: &[PartitionedFile], parts: &[Part], threads: usize) -> Vec<FileGroup> {
    let share = |thread: usize| {
        let pieces = files.iter().zip(parts).filter_map(|(file, part)| {
            let rows = usize::try_from(part.rows).ok()?;
            let bounds = (rows * thread / threads, rows * (thread + 1) / threads);
            let selection = RowSelection::from_consecutive_ranges(std::iter::once(bounds.0..bounds.1), rows);
            let mut piece = file.clone();
            piece.statistics = piece
                .statistics
                .map(|known| Arc::new(known.as_ref().clone().to_inexact()));
            (bounds.0 < bounds.1).then(|| piece.with_extension(ParquetRowSelection::new(selection)))
        });
        FileGroup::new(pieces.collect())
    };
    (0..threads).map(share).collect()
}

/// Statistics that tell the number of rows and nothing else.
fn known(schema: &SchemaRef, rows: u64) -> Statistics {
    let mut statistics = Statistics::new_unknown(schema);
    statistics.num_rows = Precision::Exact(usize::try_from(rows).unwrap_or(usize::MAX));
    statistics
}

#[cfg(test)]
mod tests;
