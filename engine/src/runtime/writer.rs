//! Every edge becomes an artifact: parcels are put in order, cut into chunks, written to Parquet parts, and handed on.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe::{Handle, Probe};

use super::parcel::{Parcel, Report};
use super::source::Parcels;
use super::stage::StageRun;
use crate::error::{Error, Result};
use crate::operator::Progress;
use crate::store::FileEntry;
use crate::table::{CHUNK_ROWS, Shape};

/// Writes a stage's parcels into its attempt folder and hands on, in chunks, those of the ports in `wanted`.
pub(crate) fn write<'scope>(
    input: Parcels<'scope>,
    run: &StageRun,
    wanted: Vec<usize>,
    acks: &Handle<u64>,
) -> Parcels<'scope> {
    let scope = input.scope();
    let run = run.clone();
    let mut builder = OperatorBuilder::new("write".to_string(), scope);
    let mut input = builder.new_input(input, Exchange::new(|parcel: &Parcel| u64::from(parcel.part)));
    let (chunks, stream) = builder.new_output::<Vec<Parcel>>();
    let (_acks, ack_stream) = builder.new_output::<Vec<()>>();
    let mut chunks = OutputBuilder::from(chunks);
    builder.build(move |capabilities| {
        let mut capability = capabilities.into_iter().next();
        let mut parts: BTreeMap<(u16, u32), Part> = BTreeMap::new();
        let mut rows = 0u64;
        let mut bytes_in_part = 0u64;
        move |frontiers| {
            let mut output = chunks.activate();
            input.for_each(|stamp, parcels| {
                let mut session = output.session(&stamp);
                for parcel in parcels.drain(..) {
                    let port = parcel.port;
                    if port == 0 {
                        rows += parcel.rows() as u64;
                    }
                    bytes_in_part += parcel.bytes() as u64;
                    let full = run.call(|_| {
                        let part = match parts.entry((port, parcel.part)) {
                            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                            std::collections::btree_map::Entry::Vacant(entry) => {
                                entry.insert(Part::new(&run, port, parcel.part))
                            }
                        };
                        part.push(parcel)
                    });
                    for parcel in full.into_iter().flatten().filter(|_| wanted.contains(&(port as usize))) {
                        session.give(parcel);
                    }
                }
                run.progress(|| Progress {
                    done: rows,
                    total: None,
                    unit: "rows".into(),
                    figures: Vec::new(),
                });
            });
            let Some(held) = capability.as_mut() else { return };
            if let Some(time) = frontiers[0].frontier().first() {
                if *time > *held.time() {
                    held.downgrade(time);
                }
                return;
            }
            let mut session = output.session(&*held);
            for ((port, _), part) in std::mem::take(&mut parts) {
                let Some((last, entry)) = run.call(|_| part.finish()) else {
                    break;
                };
                if let Some(entry) = entry {
                    run.control.report(Report::Part {
                        stage: run.index,
                        port: port as usize,
                        entry,
                    });
                }
                for parcel in last.into_iter().filter(|_| wanted.contains(&(port as usize))) {
                    session.give(parcel);
                }
            }
            drop(session);
            if !run.has_failed() && !run.context.cancel.is_cancelled() {
                run.control.report(Report::WriterDone {
                    stage: run.index,
                    busy_seconds: run.busy_seconds(),
                    notes: serde_json::to_string(&run.context.noted()).unwrap_or_default(),
                });
            }
            capability = None;
        }
    });
    ack_stream.probe_with(acks);
    stream
}

/// One part of one port: what came too early, what does not fill a chunk yet, and the file.
struct Part {
    schema: SchemaRef,
    path: PathBuf,
    port: u16,
    part: u32,
    /// The place that comes next.
    next: u32,
    early: BTreeMap<u32, Vec<RecordBatch>>,
    waiting: Vec<RecordBatch>,
    waiting_rows: usize,
    /// The next chunk's place.
    chunk: u32,
    file: Option<PartFile>,
}

impl Part {
    fn new(run: &StageRun, port: u16, part: u32) -> Self {
        let (name, shape) = &run.stage.bound.outputs[port as usize];
        let schema = match shape {
            Shape::Table(schema) => schema.clone(),
            _ => crate::store::no_schema(),
        };
        Part {
            schema,
            path: run.context.attempt.join(name).join(format!("part-{part:05}.parquet")),
            port,
            part,
            next: 0,
            early: BTreeMap::new(),
            waiting: Vec::new(),
            waiting_rows: 0,
            chunk: 0,
            file: None,
        }
    }

    fn push(&mut self, parcel: Parcel) -> Result<Vec<Parcel>> {
        self.early.insert(parcel.seq, parcel.batches);
        let mut full = Vec::new();
        while let Some(batches) = self.early.remove(&self.next) {
            self.next += 1;
            for batch in batches {
                let mut rest = batch;
                while self.waiting_rows + rest.num_rows() >= CHUNK_ROWS {
                    let take = CHUNK_ROWS - self.waiting_rows;
                    self.waiting.push(rest.slice(0, take));
                    rest = rest.slice(take, rest.num_rows() - take);
                    full.push(self.chunk()?);
                }
                if rest.num_rows() > 0 {
                    self.waiting_rows += rest.num_rows();
                    self.waiting.push(rest);
                }
            }
        }
        Ok(full)
    }

    /// Writes what waits as one chunk, a row group of its own.
    fn chunk(&mut self) -> Result<Parcel> {
        let batch = concat_batches(&self.schema, &self.waiting)?;
        self.waiting.clear();
        self.waiting_rows = 0;
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(PartFile::create(&self.path, &self.schema)?),
        };
        file.write(&batch)?;
        let parcel = Parcel {
            to: u64::from(self.part),
            port: self.port,
            part: self.part,
            seq: self.chunk,
            batches: vec![batch],
        };
        self.chunk += 1;
        Ok(parcel)
    }

    fn finish(mut self) -> Result<(Option<Parcel>, Option<FileEntry>)> {
        if !self.early.is_empty() {
            return Err(Error::internal(format!(
                "part {} has a gap at place {}",
                self.part, self.next
            )));
        }
        let last = if self.waiting_rows > 0 {
            Some(self.chunk()?)
        } else {
            None
        };
        let entry = self.file.map(PartFile::finish).transpose()?;
        Ok((last, entry))
    }
}

/// A Parquet file that knows its digest when it is finished.
pub(crate) struct PartFile {
    path: PathBuf,
    writer: ArrowWriter<Hashing>,
    rows: u64,
}

impl PartFile {
    pub(crate) fn create(path: &Path, schema: &SchemaRef) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, &error))?;
        }
        let file = File::create(path).map_err(|error| Error::io("write", path, &error))?;
        let properties = WriterProperties::builder()
            .set_created_by("sluice".to_string())
            .set_compression(Compression::ZSTD(
                ZstdLevel::try_new(1).map_err(|error| failed(path, error))?,
            ))
            .set_max_row_group_row_count(Some(CHUNK_ROWS))
            .build();
        let sink = Hashing {
            file: BufWriter::with_capacity(1 << 18, file),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        };
        let writer =
            ArrowWriter::try_new(sink, schema.clone(), Some(properties)).map_err(|error| failed(path, error))?;
        Ok(PartFile {
            path: path.to_path_buf(),
            writer,
            rows: 0,
        })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.writer
            .write(batch)
            .and_then(|()| self.writer.flush())
            .map_err(|error| failed(&self.path, error))
    }

    pub(crate) fn finish(self) -> Result<FileEntry> {
        let path = self.path;
        let mut sink = self.writer.into_inner().map_err(|error| failed(&path, error))?;
        sink.file.flush().map_err(|error| Error::io("write", &path, &error))?;
        sink.file
            .get_ref()
            .sync_all()
            .map_err(|error| Error::io("sync", &path, &error))?;
        Ok(FileEntry {
            name: path.file_name().unwrap_or_default().to_string_lossy().to_string(),
            bytes: sink.bytes,
            digest: sink.hasher.finalize().to_hex().to_string(),
            rows: self.rows,
        })
    }
}

struct Hashing {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The error of the file system below an error of Parquet tells more: a full disk has a code of its own.
fn failed(path: &Path, error: parquet::errors::ParquetError) -> Error {
    if let parquet::errors::ParquetError::External(source) = &error
        && let Some(source) = source.downcast_ref::<std::io::Error>()
    {
        return Error::io("write", path, source);
    }
    Error::device("write", format!("cannot write \"{}\": {error}", path.display()))
}
