//! Runs one operator without a pipeline or a dataflow: the slow, obvious twin of the runtime, for tests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch};

use crate::error::{Error, Result};
use crate::operator::{BLOCKS, Binding, Cancel, Context, Distribution, Operator, PARTITIONS};
use crate::partition::partition_of_rows;
use crate::table::{Shape, Table, Tables};

/// Binds and runs `operator` over in-memory inputs, following its declared distribution, and concludes.
/// Every `bind` problem comes back as an error (the first one, the others as its details).
pub fn run<O: Operator>(operator: &O, inputs: &[(&str, RecordBatch)]) -> Result<Tables> {
    let tables = inputs
        .iter()
        .map(|(port, batch)| (*port, Table::new(batch.clone())))
        .collect::<Vec<_>>();
    Harness::default().run(operator, &tables)
}

/// Where and how a test runs an operator.
pub struct Harness {
    /// The run's seed.
    pub seed: u64,
    /// Where relative data paths start.
    pub data_root: PathBuf,
    /// The folder for folder outputs; must outlive the result.
    pub attempt: PathBuf,
}

impl Default for Harness {
    fn default() -> Self {
        Harness {
            seed: 42,
            data_root: PathBuf::from("."),
            attempt: PathBuf::from("."),
        }
    }
}

impl Harness {
    /// See [`run`].
    pub fn run<O: Operator>(&self, operator: &O, inputs: &[(&str, Table)]) -> Result<Tables> {
        let shapes: BTreeMap<String, Shape> = inputs
            .iter()
            .map(|(port, table)| {
                let shape = match table {
                    Table::Folder(_) => Shape::Folder("any".into()),
                    table => Shape::Table(table.schema().expect("a table has a schema")),
                };
                (port.to_string(), shape)
            })
            .collect();
        let binding = Binding::new(&self.data_root, &shapes);
        let bound = Operator::bind(operator, &binding);
        let mut problems = binding.into_problems().into_iter().map(|problem| problem.error);
        if let Some(first) = problems.next() {
            return Err(problems.fold(first, |error, next| error.detail(next.to_string())));
        }
        let context = Context::new(O::NAME, self.seed, &self.data_root, &self.attempt, &Cancel::default());
        let all: Tables = inputs
            .iter()
            .fold(Tables::new(), |tables, (port, table)| tables.with(port, table.clone()));
        let mut calls = Vec::new();
        match &bound.distribution {
            Distribution::Whole => calls.push(Operator::run(operator, &context, all)?),
            Distribution::Source => {
                for split in 0..Operator::splits(operator, &context)? {
                    let mut source = Operator::open(operator, &context, split)?;
                    while let Some(block) = source.next()? {
                        calls.push(Operator::run(
                            operator,
                            &context,
                            Tables::new().with(BLOCKS, Table::new(block)),
                        )?);
                    }
                }
            }
            Distribution::Rows(port) => {
                for batch in all.table(port)?.batches()? {
                    calls.push(Operator::run(
                        operator,
                        &context,
                        all.clone().with(port, Table::new(batch?)),
                    )?);
                }
            }
            Distribution::By(ports) => {
                for partition in 0..PARTITIONS {
                    let mut tables = all.clone();
                    for (port, columns) in ports.iter().filter(|(port, _)| all.has(port)) {
                        let batch = all.batch(port)?;
                        let mask: BooleanArray = partition_of_rows(&batch, columns)?
                            .into_iter()
                            .map(|row| Some(row as usize == partition))
                            .collect();
                        tables.insert(port, Table::new(filter_record_batch(&batch, &mask)?));
                    }
                    let context = Context {
                        partition: Some(partition),
                        ..context.clone()
                    };
                    calls.push(Operator::run(operator, &context, tables)?);
                }
            }
            Distribution::Fixpoint(port, sides) => {
                let mut batch = all.batch(port)?;
                loop {
                    let before = batch.num_rows();
                    for side in 0..sides.len() {
                        let keys = Tables::new().with(port, Table::new(tag(&batch, sides)?));
                        let context = Context {
                            side: Some(side),
                            ..context.clone()
                        };
                        let kept = Operator::run(operator, &context, keys)?;
                        let kept = kept.batch(crate::operator::OUT)?;
                        let tags = kept.column(kept.num_columns() - 1);
                        let tags = tags.as_any().downcast_ref::<UInt64Array>().ok_or_else(|| {
                            Error::internal("a fixpoint operator must keep the hidden row tag as its last column")
                        })?;
                        batch = arrow::compute::take_record_batch(&batch, tags)?;
                    }
                    if batch.num_rows() == before {
                        break;
                    }
                }
                calls.push(Tables::out(batch));
            }
        }
        let mut outputs = Tables::new();
        for (port, shape) in &bound.outputs {
            match shape {
                Shape::Table(schema) => {
                    let mut batches = Vec::new();
                    for call in calls.iter().filter(|call| call.has(port)) {
                        for batch in call.table(port)?.batches()? {
                            batches.push(RecordBatch::try_new(schema.clone(), batch?.columns().to_vec())?);
                        }
                    }
                    outputs.insert(port, Table::new(concat_batches(schema, &batches)?));
                }
                _ => {
                    if let Some(call) = calls.iter().find(|call| call.has(port)) {
                        outputs.insert(port, call.table(port)?.clone());
                    }
                }
            }
        }
        let mut rows_in = BTreeMap::new();
        for (port, table) in inputs {
            rows_in.insert(port.to_string(), table.rows()?);
        }
        Operator::conclude(operator, &context, &rows_in, &outputs)?;
        Ok(outputs)
    }
}

/// The key columns of all sides and the hidden row tag: the row's index.
fn tag(batch: &RecordBatch, sides: &[Vec<String>]) -> Result<RecordBatch> {
    let keys = crate::partition::key_columns(&batch.schema(), sides)?;
    let batch = &batch.project(&keys)?;
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(arrow::datatypes::Field::new(
        crate::partition::ROW_TAG,
        arrow::datatypes::DataType::UInt64,
        false,
    )));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(UInt64Array::from_iter_values(0..batch.num_rows() as u64)));
    Ok(RecordBatch::try_new(
        Arc::new(arrow::datatypes::Schema::new(fields)),
        columns,
    )?)
}
