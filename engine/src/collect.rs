//! What of a store nobody needs any more, and its removal.
//!
//! Kept is what the newest run of every pipeline and every pinned run made or found, and what a run that is under way
//! may need: all of its keys, and everything that came after it began. Keys stay unless they are to be forgotten: a
//! key without its artifact says why the stage runs again, and what it cost.
//!
//! Every step leaves a store that is whole: an artifact is renamed into `tmp/` before it is removed, and a key without
//! artifacts is one that runs again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::history::{self, RunRecord, RunState};
use crate::store::{KeyRecord, Manifest, Store, static_digest};

/// Checkpoints that changed within this time stay: their training may go on.
pub const FRESH: Duration = Duration::from_secs(3600);

/// A folder of a run without a record is that of a run which begins, if it is this young.
const BEGINNING: Duration = Duration::from_secs(60);

/// What to collect.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// The most bytes of artifacts that may stay, apart from those of pinned runs and runs under way.
    pub budget: Option<u64>,
    /// Whether key records without artifacts go, too.
    pub forget: bool,
}

/// What can go.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Garbage {
    /// Artifacts.
    pub objects: Vec<Item>,
    /// Checkpoints by lineage, with bytes.
    pub checkpoints: Vec<(String, u64)>,
    /// Keys that lose their artifacts, or have none.
    pub keys: Vec<String>,
    /// Bytes of all artifacts and checkpoints.
    pub total: u64,
    /// Bytes of what can go.
    pub bytes: u64,
    /// Runs under way; what they may need stays.
    pub running: Vec<String>,
    /// Bytes that still exceed the budget when all that can go is gone.
    pub over_budget: u64,
    /// Whether the records of keys go, too.
    pub forget: bool,
    /// Every run there was.
    #[serde(skip)]
    seen: BTreeSet<String>,
}

/// An artifact that can go.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    /// Its digest.
    pub digest: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// The pipeline that used it last, if that is known.
    pub pipeline: Option<String>,
    /// The stage.
    pub stage: Option<String>,
    /// Whether something kept would use it, had it not to go for the budget.
    pub live: bool,
}

/// What can go, without touching anything.
pub fn garbage(store: &Store, wish: &Wish) -> Result<Garbage> {
    let runs = read_runs(store)?;
    let records: BTreeMap<String, KeyRecord> = store
        .keys()
        .into_iter()
        .filter_map(|key| store.known(&key).map(|record| (key, record)))
        .collect();
    let kept = keep(store, &runs);
    let names = names(&runs.records);
    let sizes: BTreeMap<String, u64> = store
        .objects()
        .into_iter()
        .map(|digest| (digest.clone(), size(&store.object(&digest))))
        .collect();
    let digests = |keys: &BTreeSet<String>| -> BTreeSet<String> {
        let records = keys.iter().filter_map(|key| records.get(key));
        records.flat_map(|record| record.outputs.values().cloned()).collect()
    };
    // What may not go whatever the budget says.
    let mut firm = digests(&kept.firm);
    if let Some(since) = kept.since {
        firm.extend(
            sizes
                .keys()
                .filter(|digest| modified(&store.object(digest)) >= since)
                .cloned(),
        );
    }
    let mut live: BTreeSet<String> = kept.live.union(&kept.firm).cloned().collect();
    let mut stay: BTreeSet<String> = digests(&live).union(&firm).cloned().collect();
    let wanted = stay.clone();

    let checkpoints: Vec<(String, u64, SystemTime)> = list(store, "checkpoints")
        .into_iter()
        .map(|lineage| {
            let folder = store.checkpoint_folder(&lineage);
            (lineage, size(&folder), modified(&folder))
        })
        .collect();
    let fresh = SystemTime::now().checked_sub(FRESH).unwrap_or(UNIX_EPOCH);
    let idle = |time: SystemTime| kept.since.is_none() && time < fresh;
    let of_checkpoints: u64 = checkpoints.iter().map(|(_, bytes, _)| bytes).sum();
    let staying: u64 = checkpoints
        .iter()
        .filter(|(_, _, time)| !idle(*time))
        .map(|(_, bytes, _)| bytes)
        .sum();

    let weigh = |stay: &BTreeSet<String>| -> u64 { stay.iter().filter_map(|digest| sizes.get(digest)).sum() };
    let mut weight = weigh(&stay) + staying;
    let mut over_budget = 0;
    if let Some(budget) = wish.budget {
        // Cheapest to make anew per byte first.
        let mut users: BTreeMap<String, usize> = BTreeMap::new();
        for record in live.iter().filter_map(|key| records.get(key)) {
            let outputs: BTreeSet<&String> = record.outputs.values().collect();
            outputs
                .into_iter()
                .for_each(|digest| *users.entry(digest.clone()).or_default() += 1);
        }
        let price = |record: &KeyRecord| record.seconds / record.bytes.max(1) as f64;
        let mut candidates: Vec<&KeyRecord> = kept
            .live
            .difference(&kept.firm)
            .filter_map(|key| records.get(key))
            .collect();
        candidates.sort_by(|a, b| price(a).total_cmp(&price(b)).then_with(|| a.key.cmp(&b.key)));
        for record in candidates {
            if weight <= budget {
                break;
            }
            live.remove(&record.key);
            let outputs: BTreeSet<&String> = record.outputs.values().collect();
            for digest in outputs {
                let left = users.entry(digest.clone()).or_insert(1);
                *left -= 1;
                if *left == 0 && !firm.contains(digest) && stay.remove(digest) {
                    weight -= sizes.get(digest).copied().unwrap_or(0);
                }
            }
        }
        over_budget = weight.saturating_sub(budget);
    }

    let mut by_digest: BTreeMap<&String, &String> = BTreeMap::new();
    for (key, record) in &records {
        record.outputs.values().for_each(|digest| {
            // A key that some run knows says more than one that none does.
            let place = by_digest.entry(digest).or_insert(key);
            if !names.contains_key(*place) {
                *place = key;
            }
        });
    }
    let describe = |digest: &String| {
        let known = by_digest.get(digest).and_then(|key| names.get(*key)).cloned();
        known
            .map(|(pipeline, stage)| (Some(pipeline), Some(stage)))
            .unwrap_or_else(|| {
                let manifest = store.json::<Manifest>(&store.object(digest).join("manifest.json")).ok();
                (None, manifest.map(|manifest| manifest.stage))
            })
    };
    let objects: Vec<Item> = sizes
        .iter()
        .filter(|(digest, _)| !stay.contains(*digest))
        .map(|(digest, bytes)| {
            let (pipeline, stage) = describe(digest);
            Item {
                digest: digest.clone(),
                bytes: *bytes,
                pipeline,
                stage,
                live: wanted.contains(digest),
            }
        })
        .collect();
    let keys = records.iter().filter(|(key, record)| {
        let whole = record
            .outputs
            .values()
            .all(|digest| stay.contains(digest) && sizes.contains_key(digest));
        !live.contains(*key) && !whole
    });
    let keys = keys.map(|(key, _)| key.clone()).collect();
    let checkpoints: Vec<(String, u64)> = checkpoints
        .into_iter()
        .filter(|(_, _, time)| idle(*time))
        .map(|(lineage, bytes, _)| (lineage, bytes))
        .collect();
    Ok(Garbage {
        bytes: objects.iter().map(|item| item.bytes).sum::<u64>()
            + checkpoints.iter().map(|(_, bytes)| bytes).sum::<u64>(),
        total: sizes.values().sum::<u64>() + of_checkpoints,
        objects,
        checkpoints,
        keys,
        running: runs
            .records
            .iter()
            .filter(|run| is_running(run))
            .map(|run| run.run.clone())
            .chain(runs.beginning)
            .collect(),
        over_budget,
        forget: wish.forget,
        seen: runs.seen,
    })
}

/// Removes what can go, and what processes that are gone left behind. Stops if a run begins meanwhile.
pub fn remove(store: &Store, garbage: &Garbage) -> Result<()> {
    history::close(store, &store.discard_abandoned());
    for key in &garbage.keys {
        undisturbed(store, garbage)?;
        let Some(record) = store.known(key) else { continue };
        // First what points to the artifacts, then the artifacts.
        let index = store
            .root()
            .join("statics")
            .join(static_digest(&record.preimage))
            .join(key);
        gone(&index, store.disk().remove(&index))?;
        if garbage.forget {
            let path = store.root().join("keys").join(format!("{key}.json"));
            gone(&path, store.disk().remove(&path))?;
        }
    }
    for item in &garbage.objects {
        undisturbed(store, garbage)?;
        away(store, &store.object(&item.digest), &item.digest)?;
    }
    for (lineage, _) in &garbage.checkpoints {
        undisturbed(store, garbage)?;
        away(store, &store.checkpoint_folder(lineage), lineage)?;
    }
    Ok(())
}

/// Out of its place in one step, then removed.
fn away(store: &Store, folder: &Path, name: &str) -> Result<()> {
    let attempt = Store::attempt_name(&format!("gc-{}", &name[..name.len().min(16)]));
    gone(folder, store.disk().rename(folder, &store.attempt_folder(&attempt)))?;
    store.discard(&attempt);
    Ok(())
}

/// What is gone already is gone.
fn gone(path: &Path, done: std::io::Result<()>) -> Result<()> {
    match done {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, &error)),
        _ => Ok(()),
    }
}

/// A run that began after the look may count on what was to go.
fn undisturbed(store: &Store, garbage: &Garbage) -> Result<()> {
    match store.runs().into_iter().find(|run| !garbage.seen.contains(run)) {
        Some(run) => Err(
            Error::user("busy-store", format!("run \"{run}\" began meanwhile; the rest stays"))
                .hint("run \"sluice gc\" again"),
        ),
        None => Ok(()),
    }
}

/// Every run; a damaged record is an error, for nobody knows what that run needs.
struct Runs {
    /// Newest first.
    records: Vec<RunRecord>,
    /// Runs that begin and have no record yet.
    beginning: Vec<String>,
    /// Every name there was.
    seen: BTreeSet<String>,
}

fn read_runs(store: &Store) -> Result<Runs> {
    let mut runs = Runs {
        records: Vec::new(),
        beginning: Vec::new(),
        seen: store.runs().into_iter().collect(),
    };
    for run in runs.seen.clone().into_iter().rev() {
        let folder = store.run_folder(&run);
        if folder.join("run.json").exists() {
            let record = history::read(store, &run).map_err(|error| {
                let message = format!("the record of run \"{run}\" is damaged; what it needs is not known");
                let hint = format!(
                    "remove the folder \"{}\" if that run may be forgotten",
                    folder.display()
                );
                Error::data("damaged-run", message).detail(error.message).hint(hint)
            })?;
            runs.records.push(record);
        } else if modified(&folder).elapsed().is_ok_and(|age| age < BEGINNING) {
            runs.beginning.push(run);
        }
    }
    Ok(runs)
}

/// Keys that stay.
struct Kept {
    /// Whatever the budget says: of pinned runs and of those under way.
    firm: BTreeSet<String>,
    /// Of the newest run of every pipeline.
    live: BTreeSet<String>,
    /// When the first of the runs under way began.
    since: Option<SystemTime>,
}

fn keep(store: &Store, runs: &Runs) -> Kept {
    let mut kept = Kept {
        firm: BTreeSet::new(),
        live: BTreeSet::new(),
        since: (!runs.beginning.is_empty()).then(|| SystemTime::now().checked_sub(BEGINNING).unwrap_or(UNIX_EPOCH)),
    };
    let mut pipelines = BTreeSet::new();
    for run in &runs.records {
        let newest = pipelines.insert(&run.pipeline);
        let running = is_running(run);
        if running {
            let began = UNIX_EPOCH + Duration::from_millis(run.started);
            kept.since = Some(kept.since.map_or(began, |since| since.min(began)));
        }
        match running || run.pinned {
            true => kept.firm.extend(keys_of(store, run)),
            false if newest => kept.live.extend(keys_of(store, run)),
            false => {}
        }
    }
    kept
}

fn is_running(run: &RunRecord) -> bool {
    run.state_now() == RunState::Running
}

/// Every key that a run made or found. A run that did not end told them only as events.
fn keys_of(store: &Store, run: &RunRecord) -> BTreeSet<String> {
    let mut keys: BTreeSet<String> = run.keys.values().chain(run.last.values()).cloned().collect();
    if matches!(run.state_now(), RunState::Running | RunState::Killed) {
        let told = history::events(store, &run.run);
        keys.extend(told.into_iter().filter_map(|entry| match entry.event {
            Event::StageReused { key, .. } | Event::StageFinished { key, .. } => Some(key),
            _ => None,
        }));
    }
    keys
}

/// Pipeline and stage of every key, as of the newest run that knows it.
fn names(runs: &[RunRecord]) -> BTreeMap<String, (String, String)> {
    let mut names = BTreeMap::new();
    for run in runs {
        for (stage, key) in run.keys.iter().chain(&run.last) {
            names
                .entry(key.clone())
                .or_insert_with(|| (run.pipeline.clone(), stage.clone()));
        }
    }
    names
}

fn list(store: &Store, folder: &str) -> Vec<String> {
    let mut names = store.disk().list(&store.root().join(folder)).unwrap_or_default();
    names.sort_unstable();
    names
}

/// Bytes of all files below a folder.
fn size(folder: &Path) -> u64 {
    let sizes = below(folder)
        .into_iter()
        .map(|metadata| if metadata.is_dir() { 0 } else { metadata.len() });
    sizes.sum()
}

/// The last time that anything below a folder changed.
fn modified(folder: &Path) -> SystemTime {
    let own = fs::metadata(folder).ok();
    let times = below(folder)
        .into_iter()
        .chain(own)
        .filter_map(|metadata| metadata.modified().ok());
    times.max().unwrap_or(UNIX_EPOCH)
}

fn below(folder: &Path) -> Vec<fs::Metadata> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            found.extend(below(&entry.path()));
        }
        found.push(metadata);
    }
    found
}
