//! From a store to a remote one: files, then the manifest, then the record of the key.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;

use futures_util::future::{BoxFuture, Shared};
use futures_util::stream::{self, FuturesUnordered};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path as Location;
use object_store::{MultipartUpload, ObjectStoreExt};
use sluice_engine::history::RunRecord;
use sluice_engine::store::{FileEntry, KeyRecord, Store, read_json, static_digest};
use sluice_engine::{Error, Result};

use crate::{FILES, KEYS, Progress, REQUESTS, RemoteStore, manifest_path, record_path, run_path};

/// Files up to this many bytes are put at once, larger ones in parts of it; S3 wants 5 MiB at least.
const PART: u64 = 8 << 20;

/// S3 takes no more parts of a file.
const MOST_PARTS: u64 = 10_000;

/// Parts of a file under way at a time. In memory are at most one more, of every file under way.
const PARTS: usize = 2;

/// What a push did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Keys whose records were put.
    pub keys: usize,
    /// Keys that were there with the same results.
    pub there: usize,
    /// Keys that were there with other results, which stay.
    pub kept: Vec<String>,
    /// Keys that the store does not have.
    pub absent: Vec<String>,
    /// Files put, manifests and records aside.
    pub files: usize,
    /// Bytes of those.
    pub bytes: u64,
}

/// What became of a key.
enum Outcome {
    Put,
    There,
    Kept,
    Absent,
}

/// What the artifacts of a push share.
struct Push<'a> {
    remote: &'a RemoteStore,
    store: &'a Store,
    tell: &'a (dyn Fn(u64) + Sync),
}

impl RemoteStore {
    /// Copies the artifacts of keys and then their records, as far as they are not there. Files are checked against
    /// their digests on the way. A record that is there is never replaced, whatever its results.
    ///
    /// Stops at the first error; what was copied stays, and the same call goes on from there.
    pub fn push(&self, store: &Store, keys: &[String], progress: &mut (dyn FnMut(&Progress) + Send)) -> Result<Pushed> {
        let told = Mutex::new((
            Progress {
                keys: keys.len(),
                ..Progress::default()
            },
            progress,
        ));
        let step = |change: &dyn Fn(&mut Progress)| {
            if let Ok(mut told) = told.lock() {
                let (now, progress) = &mut *told;
                change(now);
                progress(now);
            }
        };
        let tell = |bytes: u64| {
            step(&|now| {
                now.files += 1;
                now.bytes += bytes;
            });
        };
        let push = Push {
            remote: self,
            store,
            tell: &tell,
        };
        let records: Vec<(&String, Option<KeyRecord>)> = keys.iter().map(|key| (key, store.record(key))).collect();
        // Keys with equal results share artifacts: the first that comes copies, the others wait for it.
        let artifacts: BTreeMap<&str, Shared<BoxFuture<Result<()>>>> = records
            .iter()
            .filter_map(|(_, record)| record.as_ref())
            .flat_map(|record| record.outputs.values())
            .map(|digest| (digest.as_str(), push.artifact(digest).boxed().shared()))
            .collect();
        let mut pushed = Pushed::default();
        let work = async {
            let mut outcomes = stream::iter(&records)
                .map(|(key, record)| {
                    let (push, artifacts) = (&push, &artifacts);
                    async move {
                        let outcome = match record {
                            Some(record) => push.key(record, artifacts).await,
                            None => Ok(Outcome::Absent),
                        };
                        (*key, outcome)
                    }
                })
                .buffer_unordered(KEYS);
            while let Some((key, outcome)) = outcomes.next().await {
                match outcome? {
                    Outcome::Put => pushed.keys += 1,
                    Outcome::There => pushed.there += 1,
                    Outcome::Kept => pushed.kept.push(key.clone()),
                    Outcome::Absent => pushed.absent.push(key.clone()),
                }
                step(&|now| now.done += 1);
            }
            Ok::<(), Error>(())
        };
        self.runtime.block_on(work)?;
        if let Ok(told) = told.lock() {
            pushed.files = told.0.files;
            pushed.bytes = told.0.bytes;
        }
        pushed.kept.sort_unstable();
        pushed.absent.sort_unstable();
        Ok(pushed)
    }

    /// Copies the records of runs that are not there. Their keys are to be pushed before.
    pub fn push_runs(&self, store: &Store, runs: &[String]) -> Result<()> {
        let there: BTreeSet<String> = self.runs()?.into_iter().collect();
        let put = |run: &String| {
            let (path, run) = (run_path(run), run.clone());
            async move {
                let record: RunRecord = read_json(&store.run_folder(&run).join("run.json"))?;
                self.create_json(&path, &record).await.map(|_| ())
            }
        };
        let missing = runs.iter().filter(|run| !there.contains(*run)).map(put);
        let work = stream::iter(missing).buffer_unordered(REQUESTS).try_collect::<()>();
        self.runtime.block_on(work)
    }
}

impl Push<'_> {
    async fn key(
        &self,
        record: &KeyRecord,
        artifacts: &BTreeMap<&str, Shared<BoxFuture<'_, Result<()>>>>,
    ) -> Result<Outcome> {
        let there = self.remote.key_record(&record.key).await?;
        if there.as_ref().is_some_and(|there| there.outputs != record.outputs) {
            return Ok(Outcome::Kept);
        }
        // Also of a key that is there: its artifacts may be gone.
        for digest in record.outputs.values() {
            artifacts[digest.as_str()].clone().await?;
        }
        if there.is_some() {
            return Ok(Outcome::There);
        }
        let mark = format!("statics/{}/{}", static_digest(&record.preimage), record.key);
        self.remote.create(&mark, Vec::new()).await?;
        // Two at once: a service may refuse the second before the first is seen.
        const ATTEMPTS: usize = 5;
        for _ in 0..ATTEMPTS {
            if self.remote.create_json(&record_path(&record.key), record).await? {
                return Ok(Outcome::Put);
            }
            match self.remote.key_record(&record.key).await? {
                Some(there) if there.outputs == record.outputs => return Ok(Outcome::There),
                Some(_) => return Ok(Outcome::Kept),
                None => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            }
        }
        Err(Error::device(
            "remote",
            format!(
                "\"{}\" neither takes the record of key {} nor has it",
                self.remote.name, record.key
            ),
        ))
    }

    async fn artifact(&self, digest: &str) -> Result<()> {
        let path = manifest_path(digest);
        let location = self.remote.location(&path);
        match self.remote.objects.head(&location).await {
            Ok(_) => return Ok(()),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(self.remote.failure("read", &path, &error)),
        }
        let manifest = self.store.manifest(digest)?;
        // What a push that was cut off left. Files are put as a whole or not at all.
        let there = self.sizes(digest).await?;
        stream::iter(&manifest.files)
            .filter(|file| {
                let location = self.location(digest, file);
                std::future::ready(there.get(&location) != Some(&file.bytes))
            })
            .map(Ok::<_, Error>)
            .try_for_each_concurrent(FILES, |file| async {
                self.file(digest, file).await?;
                (self.tell)(file.bytes);
                Ok(())
            })
            .await?;
        self.remote.create_json(&path, &manifest).await?;
        Ok(())
    }

    fn location(&self, digest: &str, file: &FileEntry) -> Location {
        self.remote.location(&format!("objects/{digest}/{}", file.name))
    }

    async fn sizes(&self, digest: &str) -> Result<BTreeMap<Location, u64>> {
        let folder = format!("objects/{digest}");
        let listed = self.remote.objects.list(Some(&self.remote.location(&folder)));
        listed
            .map_ok(|meta| (meta.location, meta.size))
            .try_collect()
            .await
            .map_err(|error| self.remote.failure("list", &folder, &error))
    }

    async fn file(&self, digest: &str, file: &FileEntry) -> Result<()> {
        let path = self.store.object(digest).join(&file.name);
        let place = format!("objects/{digest}/{}", file.name);
        let location = self.location(digest, file);
        let failed = |error| self.remote.failure("write", &place, &error);
        let mut parts = Parts::open(&path, file)?;
        if file.bytes <= PART {
            let bytes = parts.next()?.unwrap_or_default();
            parts.check()?;
            self.remote.objects.put(&location, bytes.into()).await.map_err(failed)?;
            return Ok(());
        }
        let mut upload = self.remote.objects.put_multipart(&location).await.map_err(failed)?;
        let sent = send(upload.as_mut(), &mut parts).await.map_err(|error| match error {
            Stopped::Here(error) => error,
            Stopped::There(error) => failed(error),
        });
        if sent.is_err() {
            // What is left of it there, if this fails too, nobody sees.
            let _ = upload.abort().await;
        }
        sent
    }
}

/// Whose fault it is that an upload stopped.
enum Stopped {
    Here(Error),
    There(object_store::Error),
}

async fn send(upload: &mut dyn MultipartUpload, parts: &mut Parts<'_>) -> Result<(), Stopped> {
    let mut flying = FuturesUnordered::new();
    while let Some(part) = parts.next().map_err(Stopped::Here)? {
        while flying.len() >= PARTS {
            flying.try_next().await.map_err(Stopped::There)?;
        }
        flying.push(upload.put_part(part.into()));
    }
    while flying.try_next().await.map_err(Stopped::There)?.is_some() {}
    parts.check().map_err(Stopped::Here)?;
    upload.complete().await.map(|_| ()).map_err(Stopped::There)
}

/// A file of the store in parts, hashed on the way.
struct Parts<'a> {
    path: &'a Path,
    wanted: &'a FileEntry,
    file: File,
    part: u64,
    read: u64,
    hasher: blake3::Hasher,
}

impl<'a> Parts<'a> {
    fn open(path: &'a Path, wanted: &'a FileEntry) -> Result<Self> {
        Ok(Parts {
            path,
            wanted,
            file: File::open(path).map_err(|error| Error::io("read", path, &error))?,
            part: PART.max(wanted.bytes.div_ceil(MOST_PARTS)),
            read: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    /// The next part; all but the last are of the same size.
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        (&mut self.file)
            .take(self.part)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read", self.path, &error))?;
        self.hasher.update(&bytes);
        self.read += bytes.len() as u64;
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// Whether what was read is what the manifest says.
    fn check(&self) -> Result<()> {
        if self.read == self.wanted.bytes && self.hasher.finalize().to_hex().as_str() == self.wanted.digest {
            return Ok(());
        }
        Err(Error::data(
            "damaged-artifact",
            format!(
                "\"{}\" is damaged: it is not what its manifest says",
                self.path.display()
            ),
        )
        .hint("remove its folder; the next run makes it anew"))
    }
}
