//! Files outside the store as tables: `read_lines('raw.json.gz')`, `read_csv`, `read_json`, `read_parquet`. Paths start at
//! the data root and stay below it, or in the store, unless any file is allowed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray, UInt64Array};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::catalog::{TableFunctionArgs, TableFunctionImpl, TableProvider};
use datafusion::common::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::SessionContext;
use flate2::read::MultiGzDecoder;
use sluice_engine::table::{rows_of_part, schema_of_part};
use sluice_engine::{Error, Result};

use crate::catalog::{Source, outside};
use crate::outputs::texts;
use crate::parts::{Part, PartsTable};

/// Lines from which the columns of CSV and JSON are inferred.
const SAMPLE: usize = 1000;
/// Rows of a batch.
const ROWS: usize = 8192;

/// Makes the functions known to a session.
pub(crate) fn register(context: &SessionContext, source: &Source) {
    let root = Arc::new(Root {
        data: source.data_root.clone(),
        store: source.store.root().to_path_buf(),
        any: source.any_file,
    });
    for (name, kind) in [
        ("read_lines", Kind::Lines),
        ("read_csv", Kind::Csv),
        ("read_json", Kind::Json),
        ("read_parquet", Kind::Parquet),
    ] {
        let root = root.clone();
        context.register_udtf(name, Arc::new(ReadFile { name, kind, root }));
    }
}

/// Where files may be.
#[derive(Debug)]
struct Root {
    data: PathBuf,
    store: PathBuf,
    any: bool,
}

impl Root {
    /// The file that a path means, if it may be read. Links are followed first, so they lead nowhere else.
    fn find(&self, path: &str) -> Result<PathBuf> {
        let full = self.data.join(path);
        let real = std::fs::canonicalize(&full).map_err(|error| Error::io("read", &full, &error))?;
        let below = |root: &Path| std::fs::canonicalize(root).is_ok_and(|root| real.starts_with(root));
        if self.any || below(&self.data) || below(&self.store) {
            return Ok(real);
        }
        let message = format!("\"{path}\" is outside the data root \"{}\"", self.data.display());
        Err(Error::user("file-not-allowed", message)
            .hint("--data DIR moves the data root; --allow-files lets statements read any file"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Lines,
    Csv,
    Json,
    Parquet,
}

#[derive(Debug)]
struct ReadFile {
    name: &'static str,
    kind: Kind,
    root: Arc<Root>,
}

impl TableFunctionImpl for ReadFile {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let texts = texts(self.name, args.exprs()).map_err(outside)?;
        let [path] = texts.as_slice() else {
            let error = Error::user("bad-sql", format!("{} wants one file", self.name));
            return Err(outside(error.hint(format!("{}('FILE')", self.name))));
        };
        let file = self.root.find(path).map_err(outside)?;
        if self.kind == Kind::Parquet {
            return parquet(file).map_err(outside);
        }
        let read = Text {
            schema: self.schema(&file, path).map_err(outside)?,
            kind: self.kind,
            file,
        };
        Ok(Arc::new(StreamingTable::try_new(
            read.schema.clone(),
            vec![Arc::new(read)],
        )?))
    }
}

impl ReadFile {
    fn schema(&self, file: &Path, path: &str) -> Result<SchemaRef> {
        let wrong =
            |error: arrow::error::ArrowError| Error::data("bad-file", format!("cannot read \"{path}\": {error}"));
        let schema = match self.kind {
            Kind::Csv => {
                let format = csv::reader::Format::default().with_header(true);
                format.infer_schema(open(file)?, Some(SAMPLE)).map_err(wrong)?.0
            }
            Kind::Json => {
                let sample = BufReader::new(open(file)?);
                json::reader::infer_json_schema(sample, Some(SAMPLE)).map_err(wrong)?.0
            }
            Kind::Lines | Kind::Parquet => Schema::new(vec![
                Field::new("line", DataType::UInt64, false),
                Field::new("text", DataType::Utf8, false),
            ]),
        };
        Ok(Arc::new(schema))
    }
}

fn parquet(path: PathBuf) -> Result<Arc<dyn TableProvider>> {
    let part = Part {
        rows: rows_of_part(&path)?,
        bytes: path.metadata().map_err(|error| Error::io("read", &path, &error))?.len(),
        constants: Vec::new(),
        path,
    };
    let schema = schema_of_part(&part.path)?;
    Ok(Arc::new(PartsTable::viewed(&schema, Vec::new(), vec![part])))
}

/// A file's text, unpacked if it is gzip, whatever its name.
fn open(path: &Path) -> Result<Box<dyn Read + Send>> {
    let failed = |error: std::io::Error| Error::io("read", path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let mut magic = [0; 2];
    let packed = file.read(&mut magic).map_err(failed)? == 2 && magic == [0x1f, 0x8b];
    file.rewind().map_err(failed)?;
    Ok(match packed {
        true => Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 18, file))),
        false => Box::new(file),
    })
}

/// A text file, read as it is asked for.
#[derive(Debug)]
struct Text {
    schema: SchemaRef,
    kind: Kind,
    file: PathBuf,
}

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, DataFusionError>> + Send>;

impl Text {
    fn batches(&self) -> Result<Batches> {
        let reader = BufReader::with_capacity(1 << 18, open(&self.file)?);
        let named = |error: arrow::error::ArrowError, file: &Path| {
            outside(Error::data(
                "bad-file",
                format!("cannot read \"{}\": {error}", file.display()),
            ))
        };
        let file = self.file.clone();
        Ok(match self.kind {
            Kind::Csv => {
                let builder = csv::ReaderBuilder::new(self.schema.clone())
                    .with_header(true)
                    .with_batch_size(ROWS);
                let batches = builder.build_buffered(reader)?;
                Box::new(batches.map(move |batch| batch.map_err(|error| named(error, &file))))
            }
            Kind::Json => {
                let builder = json::ReaderBuilder::new(self.schema.clone()).with_batch_size(ROWS);
                let batches = builder.build(reader)?;
                Box::new(batches.map(move |batch| batch.map_err(|error| named(error, &file))))
            }
            Kind::Lines | Kind::Parquet => Box::new(Lines {
                schema: self.schema.clone(),
                reader,
                line: 0,
                file,
            }),
        })
    }
}

impl PartitionStream for Text {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let mut builder = RecordBatchReceiverStreamBuilder::new(self.schema.clone(), 2);
        let sender = builder.tx();
        let batches = self.batches();
        builder.spawn_blocking(move || {
            for batch in batches.map_err(outside)? {
                // Nobody wants more.
                if sender.blocking_send(batch).is_err() {
                    break;
                }
            }
            Ok(())
        });
        builder.build()
    }
}

/// Lines with their numbers, from 1. What is no UTF-8 is replaced.
struct Lines {
    schema: SchemaRef,
    reader: BufReader<Box<dyn Read + Send>>,
    line: u64,
    file: PathBuf,
}

impl Iterator for Lines {
    type Item = Result<RecordBatch, DataFusionError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut numbers = Vec::new();
        let mut texts = Vec::new();
        let mut bytes = Vec::new();
        while numbers.len() < ROWS {
            bytes.clear();
            match self.reader.read_until(b'\n', &mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Some(Err(outside(Error::io("read", &self.file, &error)))),
            }
            self.line += 1;
            numbers.push(self.line);
            let text = String::from_utf8_lossy(&bytes);
            texts.push(text.trim_end_matches(['\n', '\r']).to_string());
        }
        if numbers.is_empty() {
            return None;
        }
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(UInt64Array::from(numbers)), Arc::new(StringArray::from(texts))];
        Some(RecordBatch::try_new(self.schema.clone(), columns).map_err(DataFusionError::from))
    }
}
