//! What crosses between workers: parcels of rows, and the messages of the control plane.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Error;
use crate::operator::Progress;
use crate::store::FileEntry;

/// Rows with their place in the canonical order of a stage's output: by part, then by sequence number.
///
/// Whoever receives parcels sorts them by (part, seq); so order never depends on who was faster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Parcel {
    /// Where it should go: taken modulo the number of workers.
    pub to: u64,
    /// The port it belongs to (of the stage that sends it, or of the stage that receives it).
    pub port: u16,
    /// The part of the artifact.
    pub part: u32,
    /// The place in the part: 0, 1, 2 without gaps.
    pub seq: u32,
    /// The rows.
    #[serde(serialize_with = "to_ipc", deserialize_with = "from_ipc")]
    pub batches: Vec<RecordBatch>,
}

impl Parcel {
    pub(crate) fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }

    /// Bytes of these very rows: batches may be slices of a larger one.
    pub(crate) fn bytes(&self) -> usize {
        let columns = self.batches.iter().flat_map(RecordBatch::columns);
        columns.map(|column| bytes(column)).sum()
    }
}

fn bytes(column: &dyn Array) -> usize {
    match column.data_type() {
        DataType::List(_) => {
            let lists = column.as_list::<i32>();
            let (start, end) = (lists.value_offsets()[0], lists.value_offsets()[lists.len()]);
            let values = lists.values().slice(start as usize, (end - start) as usize);
            size_of_val(lists.value_offsets()) + bytes(&values)
        }
        _ => {
            let data = column.to_data();
            data.get_slice_memory_size().unwrap_or(data.get_array_memory_size())
        }
    }
}

/// From the coordinator to every worker.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Build the dataflow of these stages, which stream into each other.
    Start(Vec<Start>),
    /// Drop everything and leave.
    Stop,
}

/// How one stage of a group runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Index in the graph.
    pub stage: usize,
    /// Name of the attempt.
    pub attempt: String,
    /// Digests of the inputs that are published; the others stream from a stage of the same group.
    pub published: BTreeMap<String, String>,
    /// Where it is called, if it runs once: one place for each of its peers, in their order.
    pub places: Vec<Place>,
    /// Where its checkpoints are, if it keeps some.
    pub lineage: Option<String>,
    /// Keys of earlier results of the same operator and config, newest first.
    pub earlier: Vec<String>,
}

/// Where a stage that runs once is called.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The worker beside whose thread it runs.
    pub worker: usize,
    /// Ids of the devices it was given there.
    pub gpus: Vec<usize>,
}

/// From a worker to the coordinator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A stage tells how far it is.
    Progress { stage: usize, progress: Progress },
    /// A part of a table is on disk.
    Part {
        stage: usize,
        port: usize,
        entry: FileEntry,
    },
    /// A worker wrote all of its parts of a stage.
    WriterDone {
        stage: usize,
        busy_seconds: f64,
        /// What the operator stated while it ran, as JSON.
        notes: String,
    },
    /// A stage failed.
    Failed { stage: usize, error: Error },
}

fn to_ipc<S: Serializer>(batches: &[RecordBatch], serializer: S) -> Result<S::Ok, S::Error> {
    use serde::ser::Error as _;
    let mut bytes = Vec::new();
    if let Some(first) = batches.first() {
        let write = |bytes: &mut Vec<u8>| {
            let mut writer = StreamWriter::try_new(bytes, &first.schema())?;
            for batch in batches {
                writer.write(batch)?;
            }
            writer.finish()
        };
        write(&mut bytes).map_err(S::Error::custom)?;
    }
    serializer.serialize_bytes(&bytes)
}

fn from_ipc<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RecordBatch>, D::Error> {
    use serde::de::Error as _;
    let bytes: Vec<u8> = Vec::deserialize(deserializer)?;
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let reader = StreamReader::try_new(bytes.as_slice(), None).map_err(D::Error::custom)?;
    // Field metadata does not survive all readers; the schema of the stream is authoritative.
    let schema = Arc::clone(&reader.schema());
    reader
        .map(|batch| RecordBatch::try_new(schema.clone(), batch?.columns().to_vec()))
        .collect::<Result<_, _>>()
        .map_err(D::Error::custom)
}
