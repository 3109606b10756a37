//! From a remote store to one here: every file is checked against its digest before its artifact is installed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, Shared};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use object_store::{GetOptions, ObjectStore, ObjectStoreExt};
use sluice_engine::disk::{Disk, Os};
use sluice_engine::history::RunRecord;
use sluice_engine::store::{FileEntry, KeyRecord, Manifest, Store, content_digest, pretty};
use sluice_engine::{Error, Kind, Result};

use crate::{FILES, KEYS, MANIFEST, Progress, REQUESTS, RemoteStore, lacks, manifest_path};

/// Bytes of a file that one request asks for, so that a slow line has time for it.
const RANGE: u64 = 32 << 20;

/// What a pull did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pulled {
    /// Keys that were installed.
    pub keys: usize,
    /// Keys that were here.
    pub there: usize,
    /// Keys that the remote store does not have.
    pub absent: Vec<String>,
    /// Files copied.
    pub files: usize,
    /// Bytes of those.
    pub bytes: u64,
}

/// What became of a key.
enum Outcome {
    Installed,
    Here,
    Absent,
}

/// An artifact on its way, awaited by every key that has it.
type Artifact<'a> = Shared<BoxFuture<'a, Result<()>>>;

impl RemoteStore {
    /// Copies the artifacts of keys and installs them, then their records, as far as they are not here.
    ///
    /// Damaged artifacts are not installed, nor keys that have one; the others are, and what was wrong is reported
    /// together. Any other error stops the pull; what was installed stays, and the same call goes on from there.
    pub fn pull(
        &self,
        store: &Store,
        keys: &[String],
        progress: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<Pulled, Vec<Error>> {
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
        let mut pulled = Pulled::default();
        let mut problems: Vec<Error> = Vec::new();
        let work = async {
            let missing: Vec<String> = keys.iter().filter(|key| store.record(key).is_none()).cloned().collect();
            let records = self.key_records(&missing).await?;
            let found = records.values().filter_map(|found| found.as_ref().ok()?.as_ref());
            let digests = found.flat_map(|record| record.outputs.values());
            let artifacts: BTreeMap<&str, Artifact> = digests
                .map(|digest| {
                    let install = self.install(store, digest, &tell);
                    (digest.as_str(), install.boxed().shared())
                })
                .collect();
            let mut outcomes = stream::iter(keys)
                .map(|key| {
                    let (records, artifacts) = (&records, &artifacts);
                    async move {
                        let outcome = match records.get(key) {
                            None => Ok(Outcome::Here),
                            Some(Ok(None)) => Ok(Outcome::Absent),
                            Some(Err(error)) => Err(error.clone()),
                            Some(Ok(Some(record))) => self.install_key(store, record, artifacts).await,
                        };
                        (key, outcome)
                    }
                })
                .buffer_unordered(KEYS);
            while let Some((key, outcome)) = outcomes.next().await {
                match outcome {
                    Ok(Outcome::Installed) => pulled.keys += 1,
                    Ok(Outcome::Here) => pulled.there += 1,
                    Ok(Outcome::Absent) => pulled.absent.push(key.clone()),
                    // Several keys may have the same damaged artifact.
                    Err(error) if error.kind == Kind::Data && problems.contains(&error) => {}
                    Err(error) if error.kind == Kind::Data => problems.push(error),
                    Err(error) => return Err(error),
                }
                step(&|now| now.done += 1);
            }
            Ok(())
        };
        if let Err(error) = self.runtime.block_on(work) {
            problems.push(error);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        if let Ok(told) = told.lock() {
            pulled.files = told.0.files;
            pulled.bytes = told.0.bytes;
        }
        pulled.absent.sort_unstable();
        Ok(pulled)
    }

    /// Installs the record of a run, if the store has none of its name.
    pub fn pull_run(&self, store: &Store, run: &RunRecord) -> Result<()> {
        let folder = store.run_folder(&run.run);
        let target = folder.join("run.json");
        if target.exists() {
            return Ok(());
        }
        let attempt = Attempt::new(store, "pull-run")?;
        let private = attempt.folder.join("run.json");
        store.write_synced(&private, &pretty(run)?)?;
        fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, &error))?;
        fs::rename(&private, &target).map_err(|error| Error::io("publish", &target, &error))?;
        store.sync(&folder)
    }

    /// Records of keys: `None` for those that have none, errors for those that are damaged.
    async fn key_records(&self, keys: &[String]) -> Result<BTreeMap<String, Result<Option<KeyRecord>>>> {
        stream::iter(keys)
            .map(|key| async move {
                match self.key_record(key).await {
                    Err(error) if error.kind != Kind::Data => Err(error),
                    found => Ok((key.clone(), found)),
                }
            })
            .buffer_unordered(REQUESTS)
            .try_collect()
            .await
    }

    async fn install_key(
        &self,
        store: &Store,
        record: &KeyRecord,
        artifacts: &BTreeMap<&str, Artifact<'_>>,
    ) -> Result<Outcome> {
        for digest in record.outputs.values() {
            artifacts[digest.as_str()].clone().await?;
        }
        let attempt = Attempt::new(store, "pull-key")?;
        store.publish_record(record, &attempt.name, false)?;
        Ok(Outcome::Installed)
    }

    async fn install(&self, store: &Store, digest: &str, tell: &(dyn Fn(u64) + Sync)) -> Result<()> {
        if store.object(digest).join(MANIFEST).is_file() {
            return Ok(());
        }
        let attempt = Attempt::new(store, "pull")?;
        let folder = attempt.folder.join("artifact");
        fs::create_dir(&folder).map_err(|error| Error::io("create", &folder, &error))?;
        let manifest = self.fetch_artifact(digest, &folder, tell).await?;
        store.publish(&folder, manifest).map(|_| ())
    }

    /// Copies an artifact into an empty folder; on return all of it is on disk, and is what its digest says.
    pub(crate) async fn fetch_artifact(
        &self,
        digest: &str,
        folder: &Path,
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<Manifest> {
        let path = manifest_path(digest);
        let manifest: Option<Manifest> = self.read_json(&path).await?;
        let manifest = manifest.ok_or_else(|| lacks(&path, &self.name))?;
        if content_digest(&manifest) != digest {
            return Err(self.damaged(&path, "it lists the files of another artifact"));
        }
        if let Some(file) = manifest.files.iter().find(|file| !stays_inside(&file.name)) {
            return Err(self.damaged(&path, &format!("it lists \"{}\"", file.name)));
        }
        stream::iter(&manifest.files)
            .map(Ok::<_, Error>)
            .try_for_each_concurrent(FILES, |file| async move {
                self.download(
                    &format!("objects/{digest}/{}", file.name),
                    file,
                    &folder.join(&file.name),
                )
                .await?;
                tell(file.bytes);
                Ok(())
            })
            .await?;
        let path = folder.join(MANIFEST);
        let text = pretty(&manifest)?;
        let written = Os.write(&path, text.as_bytes()).and_then(|()| Os.sync(&path));
        written.map_err(|error| Error::io("write", &path, &error))?;
        for inner in folders(&manifest, folder) {
            Os.sync(&inner).map_err(|error| Error::io("sync", &inner, &error))?;
        }
        Ok(manifest)
    }

    async fn download(&self, path: &str, wanted: &FileEntry, target: &Path) -> Result<()> {
        let location = self.location(path);
        let failed = |error| match error {
            object_store::Error::NotFound { .. } => lacks(path, &self.name),
            error => self.failure("read", path, &error),
        };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, &error))?;
        }
        let io = |error: std::io::Error| Error::io("write", target, &error);
        let mut file = File::create(target).map_err(io)?;
        let mut hasher = blake3::Hasher::new();
        let sized = |size: u64| match size == wanted.bytes {
            true => Ok(()),
            false => Err(self.damaged(path, &format!("it has {size} bytes, not {}", wanted.bytes))),
        };
        let at_once = wanted.bytes <= RANGE;
        if !at_once {
            // A range that is not there would be an error of its own.
            sized(self.objects.head(&location).await.map_err(failed)?.size)?;
        }
        let mut read = 0;
        loop {
            let end = wanted.bytes.min(read + RANGE);
            let options = match at_once {
                true => GetOptions::new(),
                false => GetOptions::new().with_range(Some(read..end)),
            };
            let answer = self.objects.get_opts(&location, options).await.map_err(failed)?;
            sized(answer.meta.size)?;
            let mut chunks = answer.into_stream();
            while let Some(chunk) = chunks.try_next().await.map_err(failed)? {
                hasher.update(&chunk);
                read += chunk.len() as u64;
                file.write_all(&chunk).map_err(io)?;
            }
            if read != end {
                return Err(self.damaged(path, &format!("it ends after {read} bytes, not {end}")));
            }
            if read == wanted.bytes {
                break;
            }
        }
        if hasher.finalize().to_hex().as_str() != wanted.digest {
            return Err(self.damaged(path, "its content is not what its manifest says"));
        }
        file.sync_all().map_err(io)
    }
}

/// Whether a path from elsewhere names a file below the folder it is joined to.
fn stays_inside(name: &str) -> bool {
    let path = Path::new(name);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    plain && !name.is_empty() && path != Path::new(MANIFEST)
}

/// The folders of an artifact, the innermost first.
fn folders(manifest: &Manifest, root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = vec![root.to_path_buf()];
    for file in &manifest.files {
        let inner = Path::new(&file.name).ancestors().skip(1);
        found.extend(
            inner
                .filter(|path| !path.as_os_str().is_empty())
                .map(|path| root.join(path)),
        );
    }
    found.sort_unstable();
    found.dedup();
    found.reverse();
    found
}

/// A private folder of the store, removed in the end.
struct Attempt<'a> {
    store: &'a Store,
    name: String,
    folder: PathBuf,
}

impl<'a> Attempt<'a> {
    fn new(store: &'a Store, label: &str) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = Store::attempt_name(&format!("{label}-{number}"));
        let folder = store.attempt_folder(&name);
        fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, &error))?;
        Ok(Attempt { store, name, folder })
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        self.store.discard(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_elsewhere_stay_inside() {
        for name in [
            "part-00000.parquet",
            "deep/er/file",
            "a name with blanks",
            "sub/manifest.json",
        ] {
            assert!(stays_inside(name), "{name}");
        }
        for name in ["", "/etc/passwd", "../out", "sub/../../out", "./here", "manifest.json"] {
            assert!(!stays_inside(name), "{name}");
        }
    }
}
