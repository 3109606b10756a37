//! What flows along an edge: tables of Arrow batches (in memory or in Parquet parts), or a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::{Schema, SchemaRef};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::error::{Error, Result};

/// Rows per batch on every edge and per row group in every artifact (the last one may be shorter).
pub const CHUNK_ROWS: usize = 65_536;

/// What a port carries, known before any data is read.
#[derive(Clone, Debug, PartialEq)]
pub enum Shape {
    /// Rows of this schema.
    Table(SchemaRef),
    /// A folder of files in the layout its ecosystem expects; the text names the layout.
    Folder(String),
    /// Not known, because something upstream did not bind; problems with it were reported there.
    Unknown,
}

impl Shape {
    /// A table of these fields.
    pub fn table(fields: Vec<arrow::datatypes::Field>) -> Self {
        Shape::Table(Schema::new(fields).into())
    }

    /// The schema, if this is a table.
    pub fn schema(&self) -> Option<&SchemaRef> {
        match self {
            Shape::Table(schema) => Some(schema),
            _ => None,
        }
    }
}

/// The data of one port.
#[derive(Clone, Debug)]
pub enum Table {
    /// Batches in memory.
    Batches(SchemaRef, Vec<RecordBatch>),
    /// Parquet parts on disk, in order.
    Parts(SchemaRef, Vec<PathBuf>),
    /// A folder on disk.
    Folder(PathBuf),
}

impl Table {
    /// A table of one batch.
    pub fn new(batch: RecordBatch) -> Self {
        Table::Batches(batch.schema(), vec![batch])
    }

    /// The schema; an error for folders.
    pub fn schema(&self) -> Result<SchemaRef> {
        match self {
            Table::Batches(schema, _) | Table::Parts(schema, _) => Ok(schema.clone()),
            Table::Folder(path) => Err(Error::internal(format!(
                "\"{}\" is a folder, not a table",
                path.display()
            ))),
        }
    }

    /// All rows as one batch.
    pub fn batch(&self) -> Result<RecordBatch> {
        let schema = self.schema()?;
        let batches = self.batches()?.collect::<Result<Vec<_>>>()?;
        match batches.len() {
            1 => Ok(batches.into_iter().next().expect("one batch")),
            _ => Ok(concat_batches(&schema, &batches)?),
        }
    }

    /// The batches in order, read as they are asked for, so a large table needs little memory.
    pub fn batches(&self) -> Result<Box<dyn Iterator<Item = Result<RecordBatch>> + Send + '_>> {
        match self {
            Table::Batches(_, batches) => Ok(Box::new(batches.iter().cloned().map(Ok))),
            Table::Parts(_, paths) => Ok(Box::new(paths.iter().flat_map(|path| match read_part(path) {
                Ok(reader) => {
                    let path = path.clone();
                    Box::new(reader.map(move |batch| batch.map_err(|error| damaged(&path, &error))))
                        as Box<dyn Iterator<Item = Result<RecordBatch>> + Send>
                }
                Err(error) => Box::new(std::iter::once(Err(error))),
            }))),
            Table::Folder(_) => Err(self.schema().expect_err("a folder has no schema")),
        }
    }

    /// Number of rows (0 for folders). Reads footers only.
    pub fn rows(&self) -> Result<u64> {
        match self {
            Table::Batches(_, batches) => Ok(batches.iter().map(|batch| batch.num_rows() as u64).sum()),
            Table::Parts(_, paths) => {
                let mut rows = 0;
                for path in paths {
                    let builder = open_part(path)?;
                    rows += builder.metadata().file_metadata().num_rows() as u64;
                }
                Ok(rows)
            }
            Table::Folder(_) => Ok(0),
        }
    }

    /// The folder; an error for tables.
    pub fn folder(&self) -> Result<&Path> {
        match self {
            Table::Folder(path) => Ok(path),
            _ => Err(Error::internal("the input is a table, not a folder")),
        }
    }
}

/// Tables by port name.
#[derive(Clone, Debug, Default)]
pub struct Tables(BTreeMap<String, Table>);

impl Tables {
    /// No tables.
    pub fn new() -> Self {
        Self::default()
    }

    /// One batch at the default output port.
    pub fn out(batch: RecordBatch) -> Self {
        Self::new().with(crate::operator::OUT, Table::new(batch))
    }

    /// Adds a table.
    pub fn with(mut self, port: &str, table: Table) -> Self {
        self.0.insert(port.to_string(), table);
        self
    }

    /// Adds a table.
    pub fn insert(&mut self, port: &str, table: Table) {
        self.0.insert(port.to_string(), table);
    }

    /// Whether the port is connected.
    pub fn has(&self, port: &str) -> bool {
        self.0.contains_key(port)
    }

    /// The table at a port.
    pub fn table(&self, port: &str) -> Result<&Table> {
        self.0
            .get(port)
            .ok_or_else(|| Error::internal(format!("port \"{port}\" is not connected")))
    }

    /// All rows at a port as one batch.
    pub fn batch(&self, port: &str) -> Result<RecordBatch> {
        self.table(port)?.batch()
    }

    /// The folder at a port.
    pub fn folder(&self, port: &str) -> Result<&Path> {
        self.table(port)?.folder()
    }

    /// Ports and tables in order of port name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Table)> {
        self.0.iter().map(|(port, table)| (port.as_str(), table))
    }

    /// Takes a table out.
    pub fn remove(&mut self, port: &str) -> Option<Table> {
        self.0.remove(port)
    }
}

/// Opens a Parquet part; one batch per row group.
pub fn read_part(path: &Path) -> Result<ParquetRecordBatchReader> {
    open_part(path)?
        .with_batch_size(CHUNK_ROWS)
        .build()
        .map_err(|error| damaged(path, &error))
}

/// The first rows of a table in parts, for those who only look: no more is read than is needed for them.
pub fn first_rows(paths: &[PathBuf], rows: usize) -> Result<RecordBatch> {
    let first = paths
        .first()
        .ok_or_else(|| Error::data("damaged-artifact", "a table without parts"))?;
    let schema = schema_of_part(first)?;
    let mut batches = Vec::new();
    let mut left = rows;
    for path in paths {
        if left == 0 {
            break;
        }
        let reader = open_part(path)?.with_batch_size(left).with_limit(left).build();
        for batch in reader.map_err(|error| damaged(path, &error))? {
            let batch = batch.map_err(|error| damaged(path, &error))?;
            left = left.saturating_sub(batch.num_rows());
            batches.push(batch);
        }
    }
    Ok(concat_batches(&schema, &batches)?)
}

/// The columns of a Parquet part. Reads its footer only.
pub fn schema_of_part(path: &Path) -> Result<SchemaRef> {
    Ok(open_part(path)?.schema().clone())
}

/// Rows of a Parquet part, if it is finished: its footer is written last.
pub fn rows_of_part(path: &Path) -> Result<u64> {
    Ok(open_part(path)?.metadata().file_metadata().num_rows() as u64)
}

fn open_part(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|error| Error::io("read", path, &error))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::data(
        "damaged-artifact",
        format!("cannot read \"{}\": {error}", path.display()),
    )
    .hint("the part is damaged; remove the artifact's folder and run again to make it anew")
}
