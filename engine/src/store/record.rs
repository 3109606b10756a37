//! What the store keeps of a stage: the record of its key, and the manifest by which an artifact describes itself.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::key::{Preimage, digest};
use crate::operator::Notes;
use crate::table::Shape;

/// What a finished stage left: the record of a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeyRecord {
    /// The key.
    pub key: String,
    /// What was hashed.
    pub preimage: Preimage,
    /// Content digest by output port.
    pub outputs: BTreeMap<String, String>,
    /// Rows by output port.
    pub rows: BTreeMap<String, u64>,
    /// Bytes of all outputs.
    pub bytes: u64,
    /// Wall-clock seconds from start to publication.
    pub seconds: f64,
    /// Seconds spent inside the operator, summed over workers.
    pub busy_seconds: f64,
    /// What the operator said.
    pub notes: Notes,
    /// The run that made it.
    pub run: String,
    /// What of the machine it used.
    #[serde(default)]
    pub usage: Usage,
    /// The key whose artifacts these are, if they were kept although the operator's version moved (`--accept`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<String>,
}

/// What the process used while a stage ran; stages that ran at the same time share it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor seconds.
    pub cpu_seconds: f64,
    /// Most resident memory seen, in bytes.
    pub peak_memory: u64,
    /// Joules that the processors of the machine took, where it tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub energy: Option<f64>,
    /// Ids of the devices it was given.
    pub gpus: Vec<usize>,
}

/// `manifest.json` of an artifact: it describes itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Content digest, the name of the folder.
    pub digest: String,
    /// `table` or the layout of a folder.
    pub layout: String,
    /// Columns of a table: name, type, nullable.
    pub schema: Vec<Value>,
    /// Rows of a table.
    pub rows: u64,
    /// Files in order, with bytes and digests.
    pub files: Vec<FileEntry>,
    /// The output port.
    pub port: String,
    /// What made it.
    pub preimage: Preimage,
    /// The stage that made it first.
    pub stage: String,
    /// The run that made it first.
    pub run: String,
    /// Wall-clock seconds of the stage.
    pub seconds: f64,
    /// What the operator said.
    pub notes: Notes,
    /// Version of the program.
    pub software: String,
}

/// A file of an artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Path inside the artifact.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// BLAKE3 of the content.
    pub digest: String,
    /// Rows, for parts of tables.
    pub rows: u64,
}

/// Columns of a schema as the manifest lists them.
pub fn describe(shape: &Shape) -> Vec<Value> {
    let Some(schema) = shape.schema() else {
        return Vec::new();
    };
    let field = |field: &Arc<Field>| {
        let mut entry = Map::new();
        entry.insert("name".into(), field.name().clone().into());
        entry.insert("type".into(), type_name(field.data_type()).into());
        entry.insert("nullable".into(), field.is_nullable().into());
        let metadata: BTreeMap<_, _> = field.metadata().iter().collect();
        for (key, value) in metadata {
            entry.insert(key.clone(), value.clone().into());
        }
        Value::Object(entry)
    };
    schema.fields().iter().map(field).collect()
}

/// A short name of a type: `List<Utf8>`, `FixedSizeList<Float32; 64>`.
pub fn type_name(kind: &DataType) -> String {
    match kind {
        DataType::List(item) => format!("List<{}>", type_name(item.data_type())),
        DataType::FixedSizeList(item, size) => format!("FixedSizeList<{}; {size}>", type_name(item.data_type())),
        DataType::Timestamp(unit, zone) => {
            format!(
                "Timestamp<{unit:?}{}>",
                zone.as_ref().map(|zone| format!(", {zone}")).unwrap_or_default()
            )
        }
        other => other.to_string(),
    }
}

/// The digest of an artifact: of its layout and the names and contents of its files.
pub fn content_digest(manifest: &Manifest) -> String {
    let names: Vec<String> = manifest
        .files
        .iter()
        .map(|file| format!("{}\0{}", file.name, file.digest))
        .collect();
    digest(&format!("sluice {}", manifest.layout), &names.join("\n"))
}

/// What keys share whose pre-images are equal apart from their inputs.
pub fn static_digest(preimage: &Preimage) -> String {
    let alone = Preimage {
        inputs: BTreeMap::new(),
        ..preimage.clone()
    };
    alone.key()
}
