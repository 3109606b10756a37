//! Statements over tables in memory, for tests of functions.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::datasource::MemTable;
use datafusion::physical_plan::displayable;
use datafusion::prelude::{SessionConfig, SessionContext};

use crate::failure::explain;

/// A session with our functions and tables, over so many threads, with batches of so many rows.
pub(super) struct Asked {
    context: SessionContext,
    runtime: tokio::runtime::Runtime,
}

impl Asked {
    pub(super) fn new(partitions: usize, batch: usize) -> Self {
        let config = SessionConfig::new()
            .with_target_partitions(partitions)
            .with_batch_size(batch)
            .with_information_schema(true);
        let context = SessionContext::new_with_config(config);
        super::register(&context);
        Asked {
            context,
            runtime: tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    /// With a table whose partitions are lists of batches.
    pub(super) fn with(self, name: &str, partitions: Vec<Vec<RecordBatch>>) -> Self {
        let schema = partitions.iter().flatten().next().unwrap().schema();
        let table = MemTable::try_new(schema, partitions).unwrap();
        self.context.register_table(name, Arc::new(table)).unwrap();
        self
    }

    /// How a statement is run.
    pub(super) fn plan(&self, text: &str) -> String {
        self.runtime.block_on(async {
            let plan = self
                .context
                .sql(text)
                .await
                .unwrap()
                .create_physical_plan()
                .await
                .unwrap();
            displayable(plan.as_ref()).indent(false).to_string()
        })
    }

    /// The only column of a statement's rows.
    pub(super) fn column(&self, text: &str) -> sluice_engine::Result<ArrayRef> {
        self.runtime.block_on(async {
            let frame = self.context.sql(text).await.map_err(|error| explain(error, text))?;
            let kind = frame.schema().field(0).clone();
            let batches = frame.collect().await.map_err(|error| explain(error, text))?;
            // A statement without rows has a column, too.
            let none = arrow::array::new_empty_array(kind.data_type());
            let columns = batches.iter().map(|batch| batch.column(0).as_ref());
            let columns: Vec<&dyn arrow::array::Array> = columns.chain([none.as_ref()]).collect();
            Ok(arrow::compute::concat(&columns).unwrap())
        })
    }
}

/// A batch of named columns.
pub(super) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Vectors of f32 of one width, as embeddings are stored.
pub(super) fn embeddings(rows: &[Vec<f32>]) -> ArrayRef {
    let width = rows.first().map_or(1, Vec::len);
    let item = Arc::new(Field::new_list_field(DataType::Float32, false));
    let values = Float32Array::from(rows.concat());
    Arc::new(FixedSizeListArray::new(item, width as i32, Arc::new(values), None))
}
