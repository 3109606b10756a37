//! Footers without the bounds of floating columns. Parquet leaves NaN out of them, and DataFusion holds NaN for equal to
//! itself and greater than any number: going by them, a scan would not find it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use datafusion::common::Result;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, ParquetFileReaderFactory};
use datafusion::object_store::path::Path;
use datafusion::parquet::arrow::arrow_reader::ArrowReaderOptions;
use datafusion::parquet::arrow::async_reader::AsyncFileReader;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parquet::basic::{LogicalType, Type};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::column_index::ColumnIndexMetaData;
use parquet::file::statistics::Statistics;
use prost::bytes::Bytes;

/// The same footer without those bounds; `None` if it has none.
pub(super) fn without_float_bounds(footer: &ParquetMetaData) -> ParquetResult<Option<ParquetMetaData>> {
    let mut chunks = footer.row_groups().iter().flat_map(RowGroupMetaData::columns);
    if !chunks.any(has_float_bounds) {
        return Ok(None);
    }
    let mut builder = footer.clone().into_builder();
    let mut pages = builder.take_column_index();
    let mut groups = Vec::with_capacity(footer.num_row_groups());
    for (at, group) in builder.take_row_groups().into_iter().enumerate() {
        let mut group = group.into_builder();
        let mut columns = group.take_columns();
        for (column, chunk) in columns.iter_mut().enumerate() {
            if has_float_bounds(chunk) {
                *chunk = unbounded(chunk)?;
                if let Some(pages) = &mut pages {
                    pages[at][column] = ColumnIndexMetaData::NONE;
                }
            }
        }
        groups.push(group.set_column_metadata(columns).build()?);
    }
    Ok(Some(builder.set_row_groups(groups).set_column_index(pages).build()))
}

fn has_float_bounds(chunk: &ColumnChunkMetaData) -> bool {
    let is_half = || chunk.column_descr().logical_type_ref() == Some(&LogicalType::Float16);
    (chunk.statistics().is_some() || chunk.column_index_offset().is_some())
        && (matches!(chunk.column_type(), Type::FLOAT | Type::DOUBLE) || is_half())
}

/// The chunk with nothing but the number of nulls.
fn unbounded(chunk: &ColumnChunkMetaData) -> ParquetResult<ColumnChunkMetaData> {
    let nulls = chunk.statistics().and_then(Statistics::null_count_opt);
    let known = match chunk.column_type() {
        Type::FLOAT => Statistics::float(None, None, None, nulls, false),
        Type::DOUBLE => Statistics::double(None, None, None, nulls, false),
        _ => Statistics::fixed_len_byte_array(None, None, None, nulls, false),
    };
    let builder = match chunk.statistics() {
        Some(_) => chunk.clone().into_builder().set_statistics(known),
        None => chunk.clone().into_builder(),
    };
    builder
        .set_column_index_offset(None)
        .set_column_index_length(None)
        .build()
}

/// Opens files by footers that are at hand, others as it always is done.
#[derive(Debug)]
pub(super) struct Footers {
    pub(super) inner: CachedParquetFileReaderFactory,
    pub(super) at_hand: HashMap<Path, Arc<ParquetMetaData>>,
}

impl ParquetFileReaderFactory for Footers {
    fn create_reader(
        &self,
        partition: usize,
        file: PartitionedFile,
        hint: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let footer = self.at_hand.get(&file.object_meta.location).cloned();
        let inner = self.inner.create_reader(partition, file, hint, metrics)?;
        Ok(match footer {
            Some(footer) => Box::new(Opened { inner, footer }),
            None => inner,
        })
    }
}

/// A file whose footer is at hand.
struct Opened {
    inner: Box<dyn AsyncFileReader + Send>,
    footer: Arc<ParquetMetaData>,
}

impl AsyncFileReader for Opened {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        self.inner.get_bytes(range)
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        self.inner.get_byte_ranges(ranges)
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        std::future::ready(Ok(self.footer.clone())).boxed()
    }
}
