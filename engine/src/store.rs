//! The artifact store: `key -> {port: digest}` and `digest -> bytes`, published atomically, never changed after.
//!
//! ```text
//! .sluice/keys/<key>.json              what a key stands for: pre-image, outputs, cost
//! .sluice/statics/<digest>/<key>       which keys share a pre-image apart from their inputs
//! .sluice/objects/<digest>/            parts or files, and manifest.json
//! .sluice/tmp/<attempt>/               private to one attempt of one stage
//! .sluice/leases/<recipe>.<epoch>      who works on a stage right now; see `store/lease.rs`
//! .sluice/checkpoints/<lineage>/       state of long stages
//! .sluice/runs/<run>/                  run.json, the plan, events, stages; see `history.rs`
//! .sluice/files.json                   content digests of files outside the store, by path, size, times and inode
//! ```

pub mod lease;
#[cfg(test)]
mod model;
mod record;

pub use record::{FileEntry, KeyRecord, Manifest, Usage, content_digest, describe, static_digest, type_name};

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use arrow::datatypes::{Schema, SchemaRef};
use serde::{Deserialize, Serialize};

use crate::disk::{Disk, Os};
use crate::error::{Error, Result};
use crate::key::Preimage;
use crate::process::{host, is_stamp_of_the_gone, stamp};
use crate::table::{Table, read_part};

/// A store elsewhere, asked when a key or an artifact is not here.
pub trait Remote: Send + Sync {
    /// The record of a key, if it is there.
    fn record(&self, key: &str) -> Result<Option<KeyRecord>>;
    /// Whether some key there has this pre-image apart from its inputs.
    fn has_static(&self, preimage: &Preimage) -> Result<bool>;
    /// Copies an artifact, its manifest included, into an empty folder and checks every file against its digest.
    fn fetch(&self, digest: &str, folder: &Path) -> Result<Manifest>;
}

/// A store on a file system.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    remote: Option<Arc<dyn Remote>>,
    /// Artifacts that this process made, or has read and compared with their digests.
    verified: Arc<Mutex<HashSet<String>>>,
    /// Keys that the remote store was asked for in vain: every question is a request.
    asked: Arc<Mutex<HashSet<String>>>,
    /// Held while an artifact is fetched: workers that read the same one need it once.
    fetching: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
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
        let root = fs::canonicalize(root).map_err(|error| Error::io("open", root, &error))?;
        Ok(Self::at(root, Arc::new(Os)))
    }

    /// Opens a store, making its folders where they are missing.
    pub fn open(root: &Path) -> Result<Store> {
        Self::open_on(root, Arc::new(Os))
    }

    /// Opens a store whose steps go through `disk`.
    pub fn open_on(root: &Path, disk: Arc<dyn Disk>) -> Result<Store> {
        let mut made = false;
        for folder in ["keys", "statics", "objects", "tmp", "leases", "checkpoints", "runs"] {
            let path = root.join(folder);
            if disk.list(&path).is_err() {
                disk.create_folder(&path)
                    .map_err(|error| Error::io("create", &path, &error))?;
                made = true;
            }
        }
        // What is published into these folders is only safe when their own names are.
        let above = root.parent().filter(|above| !above.as_os_str().is_empty());
        for folder in [Some(root), above].into_iter().flatten().filter(|_| made) {
            disk.sync(folder).map_err(|error| Error::io("sync", folder, &error))?;
        }
        let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_path_buf());
        Ok(Self::at(root, disk))
    }

    fn at(root: PathBuf, disk: Arc<dyn Disk>) -> Store {
        Store {
            root,
            disk,
            remote: None,
            verified: Arc::default(),
            asked: Arc::default(),
            fetching: Arc::default(),
        }
    }

    /// The same store, which asks another one for what it lacks.
    pub fn with_remote(self, remote: Arc<dyn Remote>) -> Store {
        Store {
            remote: Some(remote),
            ..self
        }
    }

    /// The door to the file system.
    pub fn disk(&self) -> &dyn Disk {
        &*self.disk
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

    /// The folder of the checkpoints of a lineage; made when something is put there.
    pub fn checkpoint_folder(&self, lineage: &str) -> PathBuf {
        self.root.join("checkpoints").join(lineage)
    }

    /// The folder of an artifact.
    pub fn object(&self, digest: &str) -> PathBuf {
        self.root.join("objects").join(digest)
    }

    /// The record of a key, if it was published and its artifacts are there, here or in the remote store.
    pub fn record(&self, key: &str) -> Option<KeyRecord> {
        if let Some(record) = self.known(key)
            && record.outputs.values().all(|digest| self.is_whole(digest))
        {
            return Some(record);
        }
        // Known here, or not: the remote store may have the artifacts.
        let remote = self.remote.as_ref()?;
        if self.asked.lock().is_ok_and(|asked| asked.contains(key)) {
            return None;
        }
        // Opening a remote store asks it something, so one that cannot be reached is told before this; one that goes
        // away later lacks the key, and what is missing is made here.
        match remote.record(key).ok().flatten() {
            Some(record) => {
                let attempt = Self::attempt_name(&format!("key-{}", &key[..key.len().min(16)]));
                let folder = self.attempt_folder(&attempt);
                // Kept here, so that it is asked for once; its artifacts follow when they are read.
                let _ = self
                    .disk
                    .create_folder(&folder)
                    .map(|()| self.publish_record(&record, &attempt, true));
                self.discard(&attempt);
                Some(record)
            }
            None => {
                if let Ok(mut asked) = self.asked.lock() {
                    asked.insert(key.to_string());
                }
                None
            }
        }
    }

    /// Whether some published key has this pre-image apart from its inputs, here or in the remote store.
    pub fn has_static(&self, preimage: &Preimage) -> bool {
        !self.with_static(preimage).is_empty()
            || self
                .remote
                .as_ref()
                .is_some_and(|remote| remote.has_static(preimage).unwrap_or(false))
    }

    /// The record of a key, even if its artifacts are gone.
    pub fn known(&self, key: &str) -> Option<KeyRecord> {
        self.json(&self.key_path(key)).ok()
    }

    /// Every published key.
    pub fn keys(&self) -> Vec<String> {
        let names = self.disk.list(&self.root.join("keys")).unwrap_or_default();
        let mut keys: Vec<String> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".json").map(str::to_string))
            .collect();
        keys.sort_unstable();
        keys
    }

    /// When the record of a key was written; a record may be replaced by another one.
    pub fn written(&self, key: &str) -> Option<std::time::SystemTime> {
        fs::metadata(self.key_path(key)).and_then(|file| file.modified()).ok()
    }

    /// Every artifact here.
    pub fn objects(&self) -> Vec<String> {
        let mut digests = self.disk.list(&self.root.join("objects")).unwrap_or_default();
        digests.sort_unstable();
        digests
    }

    /// Published keys that have this pre-image apart from its inputs.
    pub fn with_static(&self, preimage: &Preimage) -> Vec<String> {
        let folder = self.root.join("statics").join(static_digest(preimage));
        self.disk.list(&folder).unwrap_or_default()
    }

    /// Whether an artifact is here with every file at its length. Content is compared when it is read.
    fn is_whole(&self, digest: &str) -> bool {
        let folder = self.object(digest);
        let Ok(manifest) = self.json::<Manifest>(&folder.join("manifest.json")) else {
            return false;
        };
        let length = |file: &FileEntry| self.disk.length(&folder.join(&file.name)).ok();
        manifest.files.iter().all(|file| length(file) == Some(file.bytes))
    }

    /// Compares an artifact with its digests; says what is wrong with it.
    pub fn verify(&self, digest: &str) -> Result<()> {
        let folder = self.object(digest);
        let manifest: Manifest = self.json(&folder.join("manifest.json"))?;
        if manifest.digest != digest || content_digest(&manifest) != digest {
            return Err(damaged(&folder, "its manifest is that of another artifact"));
        }
        for file in &manifest.files {
            let path = folder.join(&file.name);
            let (bytes, content) = match hash_file(&path) {
                Ok(found) => found,
                Err(_) if !path.exists() => return Err(damaged(&path, "it is missing")),
                Err(error) => return Err(error),
            };
            if bytes != file.bytes {
                return Err(damaged(&path, &format!("it has {bytes} bytes, not {}", file.bytes)));
            }
            if content != file.digest {
                return Err(damaged(&path, "its content is not what was written"));
            }
        }
        Ok(())
    }

    /// Moves a damaged artifact out of the way, so that what made it runs again.
    pub fn quarantine(&self, digest: &str) -> Result<()> {
        let name = Self::attempt_name(&format!("damaged-{}", &digest[..digest.len().min(16)]));
        let target = self.attempt_folder(&name);
        match self.disk.rename(&self.object(digest), &target) {
            Ok(()) => self.discard(&name),
            // Another worker found it, too.
            Err(_) if self.disk.list(&self.object(digest)).is_err() => {}
            Err(error) => return Err(Error::io("move away", &self.object(digest), &error)),
        }
        Ok(())
    }

    /// Makes sure that an artifact is here, whole, and what its digest says. Compared once in the life of a process.
    fn ready(&self, digest: &str) -> Result<Manifest> {
        let path = self.object(digest).join("manifest.json");
        let alone = self.remote.as_ref().map(|_| self.fetching.lock());
        if self.disk.length(&path).is_err()
            && let Some(remote) = &self.remote
        {
            let attempt = Self::attempt_name(&format!("fetch-{}", &digest[..digest.len().min(16)]));
            let folder = self.attempt_folder(&attempt).join("object");
            let create = self.disk.create_folder(&folder);
            create.map_err(|error| Error::io("create", &folder, &error))?;
            let fetched = remote
                .fetch(digest, &folder)
                .and_then(|manifest| self.publish(&folder, manifest));
            self.discard(&attempt);
            fetched?;
        }
        drop(alone);
        let manifest: Manifest = self.json(&path).map_err(|error| match self.object(digest).exists() {
            true => error,
            false => Error::data("missing-artifact", format!("artifact {digest} is not in the store"))
                .hint("run the pipeline again: what is missing is made anew"),
        })?;
        if self.verified.lock().is_ok_and(|verified| verified.contains(digest)) {
            return Ok(manifest);
        }
        if let Err(error) = self.verify(digest) {
            // Out of the way, so that the next run makes it anew.
            return Err(match self.quarantine(digest) {
                Ok(()) => error.detail("it was moved out of the store"),
                Err(failed) => error.detail(failed.message),
            });
        }
        self.mark(digest);
        Ok(manifest)
    }

    fn mark(&self, digest: &str) {
        if let Ok(mut verified) = self.verified.lock() {
            verified.insert(digest.to_string());
        }
    }

    /// The manifest of an artifact.
    pub fn manifest(&self, digest: &str) -> Result<Manifest> {
        let path = self.object(digest).join("manifest.json");
        match self.json(&path) {
            Ok(manifest) => Ok(manifest),
            Err(_) => self.ready(digest),
        }
    }

    /// The artifact as a table (its parts in order) or folder.
    pub fn table(&self, digest: &str) -> Result<Table> {
        let manifest = self.ready(digest)?;
        let folder = self.object(digest);
        if manifest.layout != "table" {
            return Ok(Table::Folder(folder));
        }
        let parts: Vec<PathBuf> = manifest.files.iter().map(|file| folder.join(&file.name)).collect();
        let first = parts
            .first()
            .ok_or_else(|| damaged(&folder, "its manifest lists no part"))?;
        let schema = read_part(first)?;
        let schema: SchemaRef = arrow::array::RecordBatchReader::schema(&schema);
        Ok(Table::Parts(schema, parts))
    }

    /// An artifact's manifest and the paths of its files, for those who only look: content is not compared with the
    /// digests, as [`Store::table`] does.
    pub fn look(&self, digest: &str) -> Result<(Manifest, Vec<PathBuf>)> {
        let manifest = self.manifest(digest)?;
        let folder = self.object(digest);
        let paths = manifest.files.iter().map(|file| folder.join(&file.name)).collect();
        Ok((manifest, paths))
    }

    /// Moves a finished port out of an attempt into the store and returns its digest. The move is one rename
    /// of a folder whose content is on disk; a crash leaves nothing or the whole.
    pub fn publish(&self, folder: &Path, mut manifest: Manifest) -> Result<String> {
        manifest.digest = content_digest(&manifest);
        let digest = manifest.digest.clone();
        let target = self.object(&digest);
        if self.is_whole(&digest) {
            // Equal content was published before, and the attempt's copy goes with the attempt; unless that one was
            // damaged since, which this is the moment to notice.
            let known = self.verified.lock().is_ok_and(|verified| verified.contains(&digest));
            if known || self.verify(&digest).is_ok() {
                self.mark(&digest);
                return Ok(digest);
            }
        }
        self.write_synced(&folder.join("manifest.json"), &pretty(&manifest)?)?;
        self.sync(folder)?;
        if self.disk.list(&target).is_ok() {
            self.quarantine(&digest)?;
        }
        match self.disk.rename(folder, &target) {
            Ok(()) => {}
            // Another run published the same content a moment ago.
            Err(_) if self.is_whole(&digest) => {}
            Err(error) => return Err(Error::io("publish", &target, &error)),
        }
        self.sync(&self.root.join("objects"))?;
        self.mark(&digest);
        Ok(digest)
    }

    /// Publishes a key's record, after its artifacts, and returns the record that is in force: a whole one that is
    /// there already stays, unless `replace` says otherwise.
    pub fn publish_record(&self, record: &KeyRecord, attempt: &str, replace: bool) -> Result<KeyRecord> {
        let statics = self.root.join("statics").join(static_digest(&record.preimage));
        let index = self
            .disk
            .create_folder(&statics)
            .and_then(|()| self.disk.write(&statics.join(&record.key), &[]));
        index.map_err(|error| Error::io("write", &statics, &error))?;
        let private = self.attempt_folder(attempt).join("key.json");
        self.write_synced(&private, &pretty(record)?)?;
        let target = self.key_path(&record.key);
        let failed = |error| Error::io("publish", &target, &error);
        if replace {
            self.disk.rename(&private, &target).map_err(failed)?;
        } else {
            // Linking does not replace: of two runs that make the same key, the first one counts.
            match self.disk.link(&private, &target) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    if let Some(known) = self.known(&record.key)
                        && known.outputs.values().all(|digest| self.is_whole(digest))
                    {
                        return Ok(known);
                    }
                    self.disk.rename(&private, &target).map_err(failed)?;
                }
                Err(error) => return Err(failed(error)),
            }
        }
        self.sync(&self.root.join("keys"))?;
        Ok(record.clone())
    }

    /// Removes an attempt's folder.
    pub fn discard(&self, attempt: &str) {
        // What cannot be removed now is removed by a later run: nothing reads `tmp/`.
        let folder = self.attempt_folder(attempt);
        if self.disk.list(&folder).is_ok() {
            let _ = self.disk.remove_folder(&folder);
        }
    }

    /// The name of an attempt by this process: `<pid>.<began>@<host>-<label>`.
    pub fn attempt_name(label: &str) -> String {
        let label: String = label
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-_.".contains(c) {
                    c
                } else {
                    '-'
                }
            })
            .collect();
        format!("{}@{}-{label}", stamp(), host())
    }

    /// Folders of attempts under way at a stage of a run: for those who look at parts before they are published.
    pub fn attempts(&self, run: &str, stage: &str) -> Vec<PathBuf> {
        let label = Self::attempt_name(stage);
        let stage = label.strip_prefix(&Self::attempt_name("")).unwrap_or(stage);
        let run = format!("-{run}-");
        let of_stage = |name: &String| {
            let rest = name.split_once(&run).and_then(|(_, rest)| rest.split_once('-'));
            rest.is_some_and(|(index, rest)| index.parse::<usize>().is_ok() && rest == stage)
        };
        let names = self.disk.list(&self.root.join("tmp")).unwrap_or_default();
        names
            .iter()
            .filter(|name| of_stage(name))
            .map(|name| self.attempt_folder(name))
            .collect()
    }

    /// What the name of the sign of a run begins with; see [`Store::discard_abandoned`].
    pub(crate) const RUN: &'static str = "run-";

    /// Removes what processes of this machine that are gone left in `tmp/` and `leases/`; those of other hosts on a shared
    /// store stay. Returns the names of their runs, each with its sign, which goes when the run is closed.
    pub fn discard_abandoned(&self) -> Vec<(String, PathBuf)> {
        let host = host();
        let mut runs = Vec::new();
        for name in self.disk.list(&self.root.join("tmp")).unwrap_or_default() {
            let Some((stamp, rest)) = name.split_once('@') else {
                continue;
            };
            let label = rest.strip_prefix(&host).and_then(|rest| rest.strip_prefix('-'));
            let Some(label) = label.filter(|_| is_stamp_of_the_gone(stamp)) else {
                continue;
            };
            let path = self.attempt_folder(&name);
            if let Some(run) = label.strip_prefix(Self::RUN) {
                runs.push((run.to_string(), path));
                continue;
            }
            self.discard(&name);
            // What is no folder: a file on its way to somewhere else.
            if path.is_file() {
                let _ = self.disk.remove(&path);
            }
        }
        lease::discard_abandoned(self);
        runs
    }

    /// Names of runs, newest first.
    pub fn runs(&self) -> Vec<String> {
        let mut names = self.disk.list(&self.root.join("runs")).unwrap_or_default();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names
    }

    /// Content digests of files outside the store. Files whose path and stamp are known are not read again.
    pub fn file_digests(&self, paths: &[PathBuf]) -> Result<BTreeMap<PathBuf, String>> {
        let cache_path = self.root.join("files.json");
        // One that an older version wrote holds other stamps: it is made anew.
        let mut cache: BTreeMap<String, (FileStamp, String)> = self.json(&cache_path).unwrap_or_default();
        let mut digests = BTreeMap::new();
        let mut changed = false;
        for path in paths {
            let metadata = fs::metadata(path).map_err(|error| Error::io("read", path, &error))?;
            let now = FileStamp::of(&metadata);
            let name = fs::canonicalize(path)
                .unwrap_or_else(|_| path.clone())
                .to_string_lossy()
                .to_string();
            let digest = match cache.get(&name) {
                Some((stamp, digest)) if *stamp == now => digest.clone(),
                _ => {
                    let digest = hash_file(path)?.1;
                    cache.insert(name, (now, digest.clone()));
                    changed = true;
                    digest
                }
            };
            digests.insert(path.clone(), digest);
        }
        if changed {
            // A cache: if it cannot be written, the next run hashes again.
            let private = self.attempt_folder(&Self::attempt_name("files.json"));
            if let Ok(text) = pretty(&cache)
                && self.disk.write(&private, text.as_bytes()).is_ok()
            {
                let _ = self.disk.rename(&private, &cache_path);
            }
        }
        Ok(digests)
    }

    fn key_path(&self, key: &str) -> PathBuf {
        self.root.join("keys").join(format!("{key}.json"))
    }

    /// Reads a JSON file of the store.
    pub fn json<T: for<'de> Deserialize<'de>>(&self, path: &Path) -> Result<T> {
        let bytes = self.disk.read(path).map_err(|error| Error::io("read", path, &error))?;
        serde_json::from_slice(&bytes).map_err(|error| damaged(path, &error.to_string()))
    }

    /// Writes a file and makes sure it is on disk.
    pub fn write_synced(&self, path: &Path, text: &str) -> Result<()> {
        let written = self.disk.write(path, text.as_bytes());
        written.map_err(|error| Error::io("write", path, &error))?;
        self.sync(path)
    }

    /// Makes sure a file or folder is on disk.
    pub fn sync(&self, path: &Path) -> Result<()> {
        self.disk.sync(path).map_err(|error| Error::io("sync", path, &error))
    }

    /// Every file below a folder, sorted by name, hashed and synced.
    pub fn folder_entries(&self, folder: &Path) -> Result<Vec<FileEntry>> {
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
                self.sync(&path)?;
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
            self.sync(&current)?;
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}

/// What tells a file from one that took its place. A copy may have the size and the time of the other one (`cp -p`); on
/// Unix it does not have its inode, and nobody can set the time at which it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct FileStamp {
    bytes: u64,
    /// When the content was written: nanoseconds since 1970.
    modified: u128,
    /// When the content or the name was changed: seconds since 1970, and nanoseconds.
    changed: (i64, i64),
    inode: u64,
}

impl FileStamp {
    fn of(metadata: &fs::Metadata) -> Self {
        let modified = metadata.modified().ok();
        let modified = modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        #[cfg(unix)]
        let (changed, inode) = {
            use std::os::unix::fs::MetadataExt;
            ((metadata.ctime(), metadata.ctime_nsec()), metadata.ino())
        };
        #[cfg(not(unix))]
        let (changed, inode) = ((0, 0), 0);
        FileStamp {
            bytes: metadata.len(),
            modified: modified.map_or(0, |duration| duration.as_nanos()),
            changed,
            inode,
        }
    }
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

fn damaged(path: &Path, what: &str) -> Error {
    Error::data("damaged-artifact", format!("\"{}\" is damaged: {what}", path.display()))
        .hint("run the same command again: what is damaged is made anew")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    /// Writes a file of this content and of an old time, beside the path, and moves it there.
    fn replace(path: &Path, text: &str) {
        let other = path.with_extension("new");
        fs::write(&other, text).unwrap();
        let file = File::options().write(true).open(&other).unwrap();
        file.set_modified(UNIX_EPOCH + Duration::from_secs(1_000_000_000))
            .unwrap();
        fs::rename(&other, path).unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn a_file_of_equal_size_and_time_in_the_place_of_another_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let path = folder.path().join("rows.csv");
        let digest = || store.file_digests(std::slice::from_ref(&path)).unwrap()[&path].clone();
        replace(&path, "1,2\n");
        let first = digest();
        replace(&path, "1,3\n");
        let second = digest();
        assert_ne!(first, second);
        assert_eq!(second, hash_file(&path).unwrap().1);
    }

    #[test]
    fn known_files_are_not_read_again_and_an_older_cache_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store")).unwrap();
        let path = folder.path().join("rows.csv");
        let digest = || store.file_digests(std::slice::from_ref(&path)).unwrap()[&path].clone();
        replace(&path, "1,2\n");
        let right = digest();
        let cache = store.root().join("files.json");
        let known = fs::read_to_string(&cache).unwrap();
        fs::write(&cache, known.replace(&right, "known")).unwrap();
        assert_eq!(digest(), "known");
        let name = fs::canonicalize(&path).unwrap();
        let older = serde_json::json!({ (name.to_string_lossy()): [4, 1_000_000_000_000_000_000u64, "known"] });
        fs::write(&cache, older.to_string()).unwrap();
        assert_eq!(digest(), right);
        assert_eq!(fs::read_to_string(&cache).unwrap(), known);
    }
}
