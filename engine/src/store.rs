//! The artifact store: `key -> {port: digest}` and `digest -> bytes`, published atomically, never changed after.
//!
//! ```text
//! .sluice/keys/<key>.json              what a key stands for: pre-image, outputs, cost
//! .sluice/statics/<digest>/<key>       which keys share a pre-image apart from their inputs
//! .sluice/objects/<digest>/            parts or files, and manifest.json
//! .sluice/tmp/<attempt>/               private to one attempt of one stage
//! .sluice/runs/<run>/                  run.json, events.jsonl
//! .sluice/files.json                   content digests of files outside the store, by path, size and time
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::key::{Preimage, digest};
use crate::operator::Notes;
use crate::table::{Shape, Table, read_part};

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

/// A store elsewhere, asked when a key or an artifact is not here.
pub trait Remote: Send + Sync {
    /// The record of a key, if it is there.
    fn record(&self, key: &str) -> Result<Option<KeyRecord>>;
    /// Copies an artifact, its manifest included, into an empty folder and checks every file against its digest.
    fn fetch(&self, digest: &str, folder: &Path) -> Result<Manifest>;
}

/// A store on a file system.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
    remote: Option<Arc<dyn Remote>>,
}

impl Store {
    /// Opens a store to read; it is an error if there is none.
    pub fn existing(root: &Path) -> Result<Store> {
        if !root.join("objects").is_dir() {
            return Err(
                Error::user("no-store", format!("there is no store at \"{}\"", root.display()))
                    .hint("\"sluice run PIPELINE\" makes one; --store says where"),
            );
        }
        Self::open(root)
    }

    /// Opens a store, making its folders where they are missing.
    pub fn open(root: &Path) -> Result<Store> {
        for folder in ["keys", "statics", "objects", "tmp", "runs"] {
            let path = root.join(folder);
            fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, &error))?;
        }
        let root = fs::canonicalize(root).map_err(|error| Error::io("open", root, &error))?;
        Ok(Store { root, remote: None })
    }

    /// The same store, which asks another one for what it lacks.
    pub fn with_remote(self, remote: Arc<dyn Remote>) -> Store {
        Store {
            remote: Some(remote),
            ..self
        }
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of a run.
    pub fn run_folder(&self, run: &str) -> PathBuf {
        self.root.join("runs").join(run)
    }

    /// The private folder of an attempt.
    pub fn attempt_folder(&self, attempt: &str) -> PathBuf {
        self.root.join("tmp").join(attempt)
    }

    /// The folder of an artifact.
    pub fn object(&self, digest: &str) -> PathBuf {
        self.root.join("objects").join(digest)
    }

    /// The record of a key, if it was published and its artifacts are there.
    pub fn record(&self, key: &str) -> Option<KeyRecord> {
        let record: KeyRecord = read_json(&self.root.join("keys").join(format!("{key}.json"))).ok()?;
        let whole = record
            .outputs
            .values()
            .all(|digest| self.object(digest).join("manifest.json").is_file());
        whole.then_some(record)
    }

    /// Whether some published key has this pre-image apart from its inputs.
    pub fn has_static(&self, preimage: &Preimage) -> bool {
        self.root.join("statics").join(static_digest(preimage)).is_dir()
    }

    /// The manifest of an artifact.
    pub fn manifest(&self, digest: &str) -> Result<Manifest> {
        read_json(&self.object(digest).join("manifest.json"))
    }

    /// The artifact as a table (its parts in order) or folder.
    pub fn table(&self, digest: &str) -> Result<Table> {
        let folder = self.object(digest);
        let manifest = self.manifest(digest)?;
        if manifest.layout != "table" {
            return Ok(Table::Folder(folder));
        }
        let parts: Vec<PathBuf> = manifest.files.iter().map(|file| folder.join(&file.name)).collect();
        for (part, file) in parts.iter().zip(&manifest.files) {
            let bytes = fs::metadata(part)
                .map_err(|error| Error::io("read", part, &error))?
                .len();
            if bytes != file.bytes {
                return Err(damaged(part, &format!("it has {bytes} bytes, not {}", file.bytes)));
            }
        }
        let first = parts
            .first()
            .ok_or_else(|| damaged(&folder, "its manifest lists no part"))?;
        let schema = read_part(first)?;
        let schema: SchemaRef = arrow::array::RecordBatchReader::schema(&schema);
        Ok(Table::Parts(schema, parts))
    }

    /// Moves a finished port out of an attempt into the store and returns its digest. The move is one rename
    /// of a folder whose content is on disk; a crash leaves nothing or the whole.
    pub fn publish(&self, folder: &Path, mut manifest: Manifest) -> Result<String> {
        let names: Vec<String> = manifest
            .files
            .iter()
            .map(|file| format!("{}\0{}", file.name, file.digest))
            .collect();
        manifest.digest = digest(&format!("sluice {}", manifest.layout), &names.join("\n"));
        let target = self.object(&manifest.digest);
        if target.join("manifest.json").is_file() {
            // Equal content was published before; the attempt's copy goes with the attempt.
            return Ok(manifest.digest);
        }
        write_synced(&folder.join("manifest.json"), &pretty(&manifest)?)?;
        sync(folder)?;
        if target.exists() {
            fs::remove_dir_all(&target).map_err(|error| Error::io("replace", &target, &error))?;
        }
        match fs::rename(folder, &target) {
            Ok(()) => {}
            // Another run published the same content a moment ago.
            Err(_) if target.join("manifest.json").is_file() => {}
            Err(error) => return Err(Error::io("publish", &target, &error)),
        }
        sync(&self.root.join("objects"))?;
        Ok(manifest.digest)
    }

    /// Publishes a key's record, after its artifacts.
    pub fn publish_record(&self, record: &KeyRecord, attempt: &str) -> Result<()> {
        let statics = self.root.join("statics").join(static_digest(&record.preimage));
        fs::create_dir_all(&statics).map_err(|error| Error::io("create", &statics, &error))?;
        write_synced(&statics.join(&record.key), "")?;
        let private = self.attempt_folder(attempt).join("key.json");
        write_synced(&private, &pretty(record)?)?;
        let target = self.root.join("keys").join(format!("{}.json", record.key));
        fs::rename(&private, &target).map_err(|error| Error::io("publish", &target, &error))?;
        sync(&self.root.join("keys"))
    }

    /// Removes an attempt's folder.
    pub fn discard(&self, attempt: &str) {
        // What cannot be removed now is removed by a later run: nothing reads `tmp/`.
        let _ = fs::remove_dir_all(self.attempt_folder(attempt));
    }

    /// The name of an attempt by this process: `<pid>@<host>-<label>`.
    pub fn attempt_name(label: &str) -> String {
        format!("{}@{}-{label}", std::process::id(), host())
    }

    /// Removes attempts of processes of this machine that are gone. Those of other hosts on a shared store stay.
    pub fn discard_abandoned(&self) {
        let Ok(entries) = fs::read_dir(self.root.join("tmp")) else {
            return;
        };
        let host = host();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().to_string();
            let owner = name
                .split_once('@')
                .filter(|(_, rest)| rest.starts_with(&format!("{host}-")));
            let pid = owner.and_then(|(pid, _)| pid.parse::<u32>().ok());
            if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists() && Path::new("/proc/self").exists()) {
                self.discard(&name);
            }
        }
    }

    /// Names of runs, newest first.
    pub fn runs(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.root.join("runs")) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().to_string())
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names
    }

    /// Content digests of files outside the store. Files whose path, size and time are known are not read again.
    pub fn file_digests(&self, paths: &[PathBuf]) -> Result<BTreeMap<PathBuf, String>> {
        let cache_path = self.root.join("files.json");
        let mut cache: BTreeMap<String, (u64, u128, String)> = read_json(&cache_path).unwrap_or_default();
        let mut digests = BTreeMap::new();
        let mut changed = false;
        for path in paths {
            let metadata = fs::metadata(path).map_err(|error| Error::io("read", path, &error))?;
            let modified = metadata
                .modified()
                .ok()
                .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
                .map_or(0, |duration| duration.as_nanos());
            let name = fs::canonicalize(path)
                .unwrap_or_else(|_| path.clone())
                .to_string_lossy()
                .to_string();
            let digest = match cache.get(&name) {
                Some((bytes, time, digest)) if *bytes == metadata.len() && *time == modified => digest.clone(),
                _ => {
                    let digest = hash_file(path)?.1;
                    cache.insert(name, (metadata.len(), modified, digest.clone()));
                    changed = true;
                    digest
                }
            };
            digests.insert(path.clone(), digest);
        }
        if changed {
            // A cache: if it cannot be written, the next run hashes again.
            let private = self.root.join("tmp").join(format!("{}-files.json", std::process::id()));
            if let Ok(text) = pretty(&cache)
                && fs::write(&private, text).is_ok()
            {
                let _ = fs::rename(&private, &cache_path);
            }
        }
        Ok(digests)
    }
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

/// Every file below a folder, sorted by name, hashed and synced.
pub fn folder_entries(folder: &Path) -> Result<Vec<FileEntry>> {
    let mut entries = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(current) = folders.pop() {
        for entry in fs::read_dir(&current).map_err(|error| Error::io("read", &current, &error))? {
            let path = entry.map_err(|error| Error::io("read", &current, &error))?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let (bytes, digest) = hash_file(&path)?;
            sync(&path)?;
            let name = path
                .strip_prefix(folder)
                .unwrap_or(&path)
                .to_string_lossy()
                .replace('\\', "/");
            entries.push(FileEntry {
                name,
                bytes,
                digest,
                rows: 0,
            });
        }
        sync(&current)?;
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// The empty schema of a table with no columns, for manifests of folders.
pub fn no_schema() -> SchemaRef {
    Arc::new(Schema::empty())
}

/// Reads a JSON file.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, &error))?;
    serde_json::from_str(&text).map_err(|error| damaged(path, &error.to_string()))
}

/// JSON for people.
pub fn pretty(value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::internal(error.to_string()))
}

/// Writes a file and makes sure it is on disk.
pub fn write_synced(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| Error::io("write", path, &error))
}

/// Makes sure a file or folder is on disk.
pub fn sync(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(|error| Error::io("sync", path, &error))
}

fn hash_file(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(|error| Error::io("read", path, &error))?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((bytes, hasher.finalize().to_hex().to_string())),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                bytes += count as u64;
            }
            Err(error) => return Err(Error::io("read", path, &error)),
        }
    }
}

/// The name of this machine, as far as a file name can hold it.
fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect()
}

fn static_digest(preimage: &Preimage) -> String {
    let alone = Preimage {
        inputs: BTreeMap::new(),
        ..preimage.clone()
    };
    alone.key()
}

fn damaged(path: &Path, what: &str) -> Error {
    Error::data("damaged-artifact", format!("\"{}\" is damaged: {what}", path.display()))
        .hint("remove its folder; the next run makes it anew")
}
