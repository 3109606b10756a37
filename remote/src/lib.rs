//! The artifact store elsewhere: a folder or a bucket that stores are pushed to, pulled from, and read through.
//!
//! It is laid out as a store is:
//!
//! ```text
//! objects/<digest>/<file>              parts or files
//! objects/<digest>/manifest.json       after all files: who sees it sees a whole artifact
//! statics/<digest>/<key>               which keys share a pre-image apart from their inputs; empty
//! keys/<key>.json                      after all artifacts of the key; never replaced
//! runs/<run>/run.json                  after the keys of the run
//! ```
//!
//! Nothing here is locked. Objects are named by their content, records are put only where there is none, so any
//! number of machines may push and pull at once, and a transfer that was cut off is gone on with by the same call.

mod failure;
pub mod hub;
mod open;
mod pull;
mod push;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as Location;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sluice_engine::history::RunRecord;
use sluice_engine::key::Preimage;
use sluice_engine::store::{KeyRecord, Manifest, Remote, pretty, static_digest};
use sluice_engine::{Error, Result};
use tokio::runtime::Runtime;

pub use open::{Options, VARIABLES};
pub use pull::Pulled;
pub use push::Pushed;

/// Keys that are worked on at a time, and files of an artifact: at most the product of both is under way.
const KEYS: usize = 4;
const FILES: usize = 2;

/// Small requests at a time, where nothing but their number matters.
const REQUESTS: usize = 16;

/// A store elsewhere.
pub struct RemoteStore {
    /// As the user wrote it.
    name: String,
    /// Where requests go, when it is not known from the name.
    endpoint: Option<String>,
    prefix: String,
    objects: Arc<dyn ObjectStore>,
    runtime: Runtime,
}

/// How far a push or a pull is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Keys asked for.
    pub keys: usize,
    /// Keys that are done, or were there.
    pub done: usize,
    /// Files copied so far.
    pub files: usize,
    /// Bytes copied so far.
    pub bytes: u64,
}

impl RemoteStore {
    /// Opens a remote store: a folder, `file:///DIR`, `s3://BUCKET/PREFIX`, or `memory://` (empty, and gone with the
    /// process). A bucket is asked once, so that wrong credentials and dead addresses are found here; that takes
    /// seconds at most.
    ///
    /// Errors: `bad-remote`, `no-remote` (a folder that is not there, unless `options.create`), `no-credentials`,
    /// `no-bucket`, `access-denied`, `remote-unreachable`.
    pub fn open(url: &str, options: &Options) -> Result<RemoteStore> {
        open::open(url, options)
    }

    /// The store's name as it was given to [`RemoteStore::open`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All keys that have a record, sorted.
    pub fn keys(&self) -> Result<Vec<String>> {
        let names = self.runtime.block_on(self.names("keys"))?;
        let mut keys: Vec<String> = names
            .iter()
            .filter_map(|name| name.strip_suffix(".json").map(str::to_string))
            .collect();
        keys.sort_unstable();
        Ok(keys)
    }

    /// Names of runs, newest first.
    pub fn runs(&self) -> Result<Vec<String>> {
        let prefix = self.location("runs");
        let listed = self
            .runtime
            .block_on(self.objects.list_with_delimiter(Some(&prefix)))
            .map_err(|error| self.failure("list", "runs", &error))?;
        let mut runs: Vec<String> = listed
            .common_prefixes
            .iter()
            .filter_map(|location| location.filename().map(str::to_string))
            .collect();
        runs.sort_unstable_by(|a, b| b.cmp(a));
        Ok(runs)
    }

    /// The records of runs, in their order; runs without one are left out.
    pub fn run_records(&self, runs: &[String]) -> Result<Vec<RunRecord>> {
        self.runtime.block_on(self.read_runs(runs).try_collect())
    }

    /// The newest run of every pipeline, or of one. Reads the records of runs, newest first, as far as needed.
    pub fn newest_runs(&self, pipeline: Option<&str>) -> Result<Vec<RunRecord>> {
        let runs = self.runs()?;
        let search = async {
            let mut found: BTreeMap<String, RunRecord> = BTreeMap::new();
            let mut records = self.read_runs(&runs);
            while let Some(record) = records.try_next().await? {
                match pipeline {
                    Some(name) if record.pipeline == name => return Ok(vec![record]),
                    Some(_) => {}
                    None => {
                        found.entry(record.pipeline.clone()).or_insert(record);
                    }
                }
            }
            Ok(found.into_values().collect())
        };
        self.runtime.block_on(search)
    }

    /// Whether some key there has this pre-image apart from its inputs: what `Store::has_static` asks of a store.
    pub fn has_static(&self, preimage: &Preimage) -> Result<bool> {
        let prefix = format!("statics/{}", static_digest(preimage));
        let first = async {
            let mut listed = self.objects.list(Some(&self.location(&prefix)));
            listed.try_next().await
        };
        let first = self.runtime.block_on(first);
        Ok(first.map_err(|error| self.failure("list", &prefix, &error))?.is_some())
    }

    fn read_runs<'a>(&'a self, runs: &'a [String]) -> BoxStream<'a, Result<RunRecord>> {
        let read = move |run: &'a String| async move {
            let path = run_path(run);
            match self.read_json::<RunRecord>(&path).await? {
                Some(record) if record.run != *run => Err(self.damaged(&path, "it is the record of another run")),
                record => Ok(record),
            }
        };
        let records = stream::iter(runs).map(read).buffered(REQUESTS);
        records.try_filter_map(|record| std::future::ready(Ok(record))).boxed()
    }

    fn location(&self, path: &str) -> Location {
        Location::from(format!("{}/{path}", self.prefix))
    }

    /// Names directly below a folder.
    async fn names(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = self.location(folder);
        let listed = self.objects.list(Some(&prefix)).try_collect::<Vec<_>>().await;
        let listed = listed.map_err(|error| self.failure("list", folder, &error))?;
        Ok(listed
            .iter()
            .filter_map(|meta| meta.location.filename().map(str::to_string))
            .collect())
    }

    /// A small file, if it is there.
    async fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        let failed = |error| self.failure("read", path, &error);
        match self.objects.get(&self.location(path)).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// A small JSON file, if it is there.
    async fn read_json<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        let Some(bytes) = self.read(path).await? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| self.damaged(path, &format!("it is not what it should be: {error}")))
    }

    /// Puts a small file where there is none; `false` if there is one.
    async fn create(&self, path: &str, bytes: Vec<u8>) -> Result<bool> {
        let location = self.location(path);
        let put = self.objects.put_opts(&location, bytes.into(), PutMode::Create.into());
        match put.await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(self.failure("write", path, &error)),
        }
    }

    async fn create_json(&self, path: &str, value: &impl Serialize) -> Result<bool> {
        self.create(path, pretty(value)?.into_bytes()).await
    }

    /// The record of a key, which must be that of the key.
    async fn key_record(&self, key: &str) -> Result<Option<KeyRecord>> {
        let path = record_path(key);
        let record: Option<KeyRecord> = self.read_json(&path).await?;
        match record {
            Some(record) if record.key != key || record.preimage.key() != key => {
                Err(self.damaged(&path, "it is the record of another key"))
            }
            record => Ok(record),
        }
    }
}

impl Remote for RemoteStore {
    fn record(&self, key: &str) -> Result<Option<KeyRecord>> {
        self.runtime.block_on(self.key_record(key))
    }

    fn has_static(&self, preimage: &Preimage) -> Result<bool> {
        RemoteStore::has_static(self, preimage)
    }

    fn fetch(&self, digest: &str, folder: &Path) -> Result<Manifest> {
        self.runtime.block_on(self.fetch_artifact(digest, folder, &|_| {}))
    }
}

fn record_path(key: &str) -> String {
    format!("keys/{key}.json")
}

fn run_path(run: &str) -> String {
    format!("runs/{run}/run.json")
}

fn manifest_path(digest: &str) -> String {
    format!("objects/{digest}/{MANIFEST}")
}

/// The file of an artifact that describes the others.
const MANIFEST: &str = "manifest.json";

/// An artifact that is neither there nor here.
fn lacks(path: &str, name: &str) -> Error {
    Error::data("damaged-remote", format!("\"{path}\" is missing in \"{name}\""))
        .hint("push again from a store that has it")
}
