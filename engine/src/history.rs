//! What every run leaves in `runs/<run>/`, and how it is read again.
//!
//! ```text
//! run.json          the record: state, keys by stage, who ran it; written at the start and at the end
//! pipeline.yaml     the pipeline as it was
//! events.jsonl      what happened, line by line as it happens
//! plan.parquet      the plan, a row a stage            written at the end, or by the next run if this one was killed
//! stages.parquet    what became of every stage, with its cost
//! events.parquet    the events, a row each
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arrow::array::{
    ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt64Array,
};
use parquet::arrow::ArrowWriter;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::{Entry, Event};
use crate::key::Reason;
use crate::plan::Action;
use crate::process::Process;
use crate::store::{KeyRecord, Store, Usage, pretty};

/// How far a run got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It has not ended, as far as its record tells; see [`RunRecord::state_now`].
    Running,
    /// Every stage is done.
    Done,
    /// Some stage failed.
    Failed,
    /// It was stopped on purpose.
    Interrupted,
    /// Its process is gone without a word.
    Killed,
}

impl RunState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Done => "done",
            RunState::Failed => "failed",
            RunState::Interrupted => "interrupted",
            RunState::Killed => "killed",
        }
    }
}

/// `run.json`: what a run did.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// Name of the run.
    pub run: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// How far it got.
    pub state: RunState,
    /// Milliseconds since 1970, UTC.
    pub started: u64,
    /// Wall-clock seconds; 0 until it ends.
    pub seconds: f64,
    /// The run's seed.
    pub seed: u64,
    /// What the command line changed or chose, as given.
    pub command: Vec<String>,
    /// Fingerprint of the plan.
    pub plan: String,
    /// The process that ran it.
    pub process: Process,
    /// Whether `gc` must keep everything it made.
    #[serde(default)]
    pub pinned: bool,
    /// Key by stage, of the stages that are done.
    pub keys: BTreeMap<String, String>,
    /// Key by stage as of the last time each was done, for stages that this run did not get to.
    pub last: BTreeMap<String, String>,
    /// What ended it, if it failed.
    pub errors: Vec<Error>,
}

impl RunRecord {
    /// Its state, knowing that a process that is gone runs nothing.
    pub fn state_now(&self) -> RunState {
        match self.state {
            RunState::Running if self.process.is_gone() => RunState::Killed,
            state => state,
        }
    }

    /// The record of every stage that is done, even if its artifacts are gone.
    pub fn records(&self, store: &Store) -> BTreeMap<String, KeyRecord> {
        let known = self
            .keys
            .iter()
            .filter_map(|(stage, key)| Some((stage.clone(), store.known(key)?)));
        known.collect()
    }
}

/// A run's record as it was last written: of a run under way, without what it did.
///
/// # Errors
///
/// There is none, or it is damaged.
pub fn record(store: &Store, run: &str) -> Result<RunRecord> {
    store.json(&store.run_folder(run).join("run.json"))
}

/// A run's record. Keys are written into it when the run ends; until then its events tell which stages are done.
pub fn read(store: &Store, run: &str) -> Result<RunRecord> {
    let mut record = record(store, run)?;
    if record.state == RunState::Running {
        let done = |(stage, summary): (String, StageSummary)| {
            let done = matches!(summary.outcome, "ran" | "reused");
            Some((stage, summary.key.filter(|_| done)?))
        };
        record.keys = summary(&events(store, run)).into_iter().filter_map(done).collect();
        record.last.extend(record.keys.clone());
    }
    Ok(record)
}

/// Every run that left a record, newest first.
pub fn runs(store: &Store) -> impl Iterator<Item = RunRecord> + '_ {
    store.runs().into_iter().filter_map(|run| read(store, &run).ok())
}

/// The newest run of a pipeline.
pub fn last_run(store: &Store, pipeline: &str) -> Option<RunRecord> {
    runs(store).find(|run| run.pipeline == pipeline)
}

/// The run that a name means: the name itself, its beginning if that is unique, `last`, or a pipeline's newest run.
pub fn find(store: &Store, name: &str) -> Result<RunRecord> {
    let names = store.runs();
    let matching: Vec<&String> = names.iter().filter(|run| run.starts_with(name)).collect();
    if let [one] = matching.as_slice() {
        return read(store, one);
    }
    if let Some(exact) = matching.iter().find(|run| run.as_str() == name) {
        return read(store, exact);
    }
    if let Some(run) = runs(store).find(|run| name == "last" || run.pipeline == name) {
        return Ok(run);
    }
    let message = match matching.len() {
        0 => format!("no run and no pipeline is called \"{name}\""),
        count => format!("{count} runs begin with \"{name}\""),
    };
    Err(Error::user("unknown-run", message).hint("\"sluice runs\" lists them"))
}

/// Writes `run.json`, whole or not at all.
pub fn write(store: &Store, record: &RunRecord) -> Result<()> {
    let folder = store.run_folder(&record.run);
    let private = folder.join("run.json.new");
    store.write_synced(&private, &pretty(record)?)?;
    let target = folder.join("run.json");
    let renamed = store.disk().rename(&private, &target);
    renamed.map_err(|error| Error::io("write", &target, &error))?;
    store.sync(&folder)
}

/// The events of a run, in order. A line that was cut off by a crash is left out.
pub fn events(store: &Store, run: &str) -> Vec<Entry> {
    let bytes = store
        .disk()
        .read(&store.run_folder(run).join("events.jsonl"))
        .unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Events of a run that stand in a part of its journal, for those who read it piece by piece.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The events, in order.
    pub entries: Vec<Entry>,
    /// The byte of the journal where the first of them begins.
    pub from: u64,
    /// The byte behind the last of them; what is told later begins there.
    pub to: u64,
}

/// Events from a byte of the journal on, of about `most` bytes: whole lines, from the first that begins there or later.
pub fn window(store: &Store, run: &str, from: u64, most: u64) -> Window {
    let path = store.run_folder(run).join("events.jsonl");
    // The byte before says whether a line begins at this one.
    let start = from.saturating_sub(1);
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        let mut most = most + (from - start);
        loop {
            if (&mut file).take(most).read_to_end(&mut bytes)? == 0 || bytes[1..].contains(&b'\n') {
                return Ok(bytes);
            }
            // A line that is longer than what was asked for.
            most *= 2;
        }
    };
    let bytes = read().unwrap_or_default();
    let line = |from: usize| {
        bytes[from..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|at| from + at + 1)
    };
    let first = if from == 0 { Some(0) } else { line(0) };
    let last = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let Some(first) = first.filter(|first| *first <= last) else {
        return Window {
            entries: Vec::new(),
            from,
            to: from,
        };
    };
    let text = String::from_utf8_lossy(&bytes[first..last]);
    Window {
        entries: text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect(),
        from: start + first as u64,
        to: start + last as u64,
    }
}

/// What tells whether something was written about a run since: when its record was, and the bytes of its journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// When the record was written.
    pub record: Option<SystemTime>,
    /// Bytes of the journal.
    pub journal: u64,
}

/// The stamp of a run.
pub fn stamp(store: &Store, run: &str) -> Stamp {
    let folder = store.run_folder(run);
    let record = std::fs::metadata(folder.join("run.json")).and_then(|file| file.modified());
    Stamp {
        record: record.ok(),
        journal: std::fs::metadata(folder.join("events.jsonl")).map_or(0, |file| file.len()),
    }
}

/// The text of a run's pipeline, before the command line changed it.
///
/// # Errors
///
/// It is not there, as of runs that were pulled.
pub fn source(store: &Store, run: &str) -> Result<String> {
    let path = store.run_folder(run).join("pipeline.yaml");
    let bytes = store
        .disk()
        .read(&path)
        .map_err(|error| Error::io("read", &path, &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Milliseconds since 1970, UTC.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis() as u64
}

/// Closes runs whose process is gone, by the signs that they left in `tmp/`. A sign goes last: if this process is killed
/// here, the next run tries again.
pub(crate) fn close(store: &Store, abandoned: &[(String, PathBuf)]) {
    for (run, sign) in abandoned {
        let closed = match read(store, run) {
            Ok(record) if record.state == RunState::Running => end(store, record),
            Ok(_) => Ok(()),
            // It was killed before it had a record.
            Err(error) if error.code == "file-not-found" => {
                let folder = store.run_folder(run);
                match store.disk().list(&folder) {
                    Ok(_) => store
                        .disk()
                        .remove_folder(&folder)
                        .map_err(|error| Error::io("remove", &folder, &error)),
                    Err(_) => Ok(()),
                }
            }
            Err(error) => Err(error),
        };
        // History is for people: if it cannot be written, the next run tries again.
        if closed.is_ok() {
            let _ = store.disk().remove(sign);
        }
    }
}

/// Writes what its events tell of a run that was killed.
fn end(store: &Store, mut record: RunRecord) -> Result<()> {
    let ended = events(store, &record.run)
        .last()
        .map_or(record.started, |entry| entry.at);
    record.seconds = ended.saturating_sub(record.started) as f64 / 1000.0;
    record.state = RunState::Killed;
    write_tables(store, &record.run).and_then(|()| write(store, &record))
}

/// What became of a stage in a run.
#[derive(Clone, Debug, Default)]
pub struct StageSummary {
    /// Reuse, run, ... as planned.
    pub planned: Option<Action>,
    /// Because of what.
    pub because: Vec<Reason>,
    /// `ran`, `reused`, `failed`, `blocked`, `running`, `left_out`.
    pub outcome: &'static str,
    /// Its key.
    pub key: Option<String>,
    /// Rows of all outputs.
    pub rows: Option<u64>,
    /// Bytes of all outputs.
    pub bytes: Option<u64>,
    /// Wall-clock seconds.
    pub seconds: Option<f64>,
    /// What it used.
    pub usage: Option<Usage>,
    /// Milliseconds since 1970 when it began to run.
    pub started: Option<u64>,
    /// Milliseconds since 1970 when that was told.
    pub ended: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// What became of every stage, in the order of the plan.
pub fn summary(events: &[Entry]) -> Vec<(String, StageSummary)> {
    let mut order: Vec<String> = Vec::new();
    let mut stages: BTreeMap<String, StageSummary> = BTreeMap::new();
    for entry in events {
        let Some(name) = entry.event.stage() else { continue };
        if !stages.contains_key(name) {
            order.push(name.to_string());
        }
        let stage = stages.entry(name.to_string()).or_default();
        match &entry.event {
            Event::StagePlanned { action, because, .. } => {
                stage.planned = Some(*action);
                stage.because = because.clone();
                stage.outcome = if *action == Action::Skip { "left_out" } else { "waiting" };
            }
            Event::StageStarted { .. } => {
                stage.started = Some(entry.at);
                stage.outcome = "running";
            }
            Event::StageReused { key, rows, .. } => {
                stage.outcome = "reused";
                stage.key = Some(key.clone());
                stage.rows = Some(rows.values().sum());
                stage.ended = Some(entry.at);
            }
            Event::StageFinished {
                key,
                rows,
                bytes,
                seconds,
                usage,
                ..
            } => {
                stage.outcome = "ran";
                stage.key = Some(key.clone());
                stage.rows = Some(rows.values().sum());
                stage.bytes = Some(*bytes);
                stage.seconds = Some(*seconds);
                stage.usage = Some(usage.clone());
                stage.ended = Some(entry.at);
            }
            Event::StageVerified { agrees, .. } => stage.outcome = if *agrees { "agrees" } else { "differs" },
            Event::StageFailed { error, .. } => {
                stage.outcome = "failed";
                stage.error = Some(error.message.clone());
                stage.ended = Some(entry.at);
            }
            Event::StageBlocked { failed, .. } => {
                stage.outcome = "blocked";
                stage.error = Some(format!("\"{failed}\" failed"));
            }
            Event::StageLost { .. } => stage.outcome = "waiting",
            _ => {}
        }
    }
    order
        .into_iter()
        .filter_map(|name| stages.remove(&name).map(|stage| (name, stage)))
        .collect()
}

/// Writes the plan, the stages and the events of a run as Parquet.
pub(crate) fn write_tables(store: &Store, run: &str) -> Result<()> {
    let events = events(store, run);
    let stages = summary(&events);
    let texts = |values: Vec<Option<String>>| Arc::new(StringArray::from(values)) as ArrayRef;
    let times = |values: Vec<Option<u64>>| {
        let values: Vec<Option<i64>> = values
            .into_iter()
            .map(|value| value.map(|value| value as i64))
            .collect();
        Arc::new(TimestampMillisecondArray::from(values).with_timezone("+00:00")) as ArrayRef
    };
    let names = || texts(stages.iter().map(|(name, _)| Some(name.clone())).collect());
    let word = |action: Action| serde_json::to_value(action).ok()?.as_str().map(str::to_string);
    let because = |stage: &StageSummary| {
        let lines: Vec<String> = stage.because.iter().map(Reason::to_string).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    };
    let plan: Vec<(&str, ArrayRef)> = vec![
        ("stage", names()),
        (
            "action",
            texts(stages.iter().map(|(_, stage)| stage.planned.and_then(word)).collect()),
        ),
        (
            "because",
            texts(stages.iter().map(|(_, stage)| because(stage)).collect()),
        ),
    ];
    let numbers = |value: fn(&StageSummary) -> Option<f64>| {
        Arc::new(Float64Array::from_iter(stages.iter().map(|(_, stage)| value(stage)))) as ArrayRef
    };
    let counts = |value: fn(&StageSummary) -> Option<u64>| {
        Arc::new(UInt64Array::from_iter(stages.iter().map(|(_, stage)| value(stage)))) as ArrayRef
    };
    let gpus = |stage: &StageSummary| {
        let ids: Vec<String> = stage.usage.as_ref()?.gpus.iter().map(usize::to_string).collect();
        (!ids.is_empty()).then(|| ids.join(","))
    };
    let done: Vec<(&str, ArrayRef)> = vec![
        ("stage", names()),
        (
            "outcome",
            texts(
                stages
                    .iter()
                    .map(|(_, stage)| Some(stage.outcome.to_string()))
                    .collect(),
            ),
        ),
        (
            "key",
            texts(stages.iter().map(|(_, stage)| stage.key.clone()).collect()),
        ),
        ("rows", counts(|stage| stage.rows)),
        ("bytes", counts(|stage| stage.bytes)),
        ("seconds", numbers(|stage| stage.seconds)),
        (
            "cpu_seconds",
            numbers(|stage| stage.usage.as_ref().map(|usage| usage.cpu_seconds)),
        ),
        (
            "peak_memory_bytes",
            counts(|stage| stage.usage.as_ref().map(|usage| usage.peak_memory)),
        ),
        (
            "energy_joules",
            numbers(|stage| stage.usage.as_ref().and_then(|usage| usage.energy)),
        ),
        ("gpus", texts(stages.iter().map(|(_, stage)| gpus(stage)).collect())),
        (
            "started",
            times(stages.iter().map(|(_, stage)| stage.started).collect()),
        ),
        ("ended", times(stages.iter().map(|(_, stage)| stage.ended).collect())),
        (
            "error",
            texts(stages.iter().map(|(_, stage)| stage.error.clone()).collect()),
        ),
    ];
    let json = |entry: &Entry| serde_json::to_value(&entry.event).ok();
    let kind = |entry: &Entry| json(entry)?["event"].as_str().map(str::to_string);
    let lines: Vec<(&str, ArrayRef)> = vec![
        ("number", Arc::new(Int64Array::from_iter_values(0..events.len() as i64))),
        ("at", times(events.iter().map(|entry| Some(entry.at)).collect())),
        ("event", texts(events.iter().map(kind).collect())),
        (
            "stage",
            texts(
                events
                    .iter()
                    .map(|entry| entry.event.stage().map(str::to_string))
                    .collect(),
            ),
        ),
        (
            "detail",
            texts(
                events
                    .iter()
                    .map(|entry| json(entry).map(|json| json.to_string()))
                    .collect(),
            ),
        ),
    ];
    let folder = store.run_folder(run);
    for (name, columns) in [("plan", plan), ("stages", done), ("events", lines)] {
        table(store, &folder.join(format!("{name}.parquet")), columns)?;
    }
    Ok(())
}

fn table(store: &Store, path: &Path, columns: Vec<(&str, ArrayRef)>) -> Result<()> {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))?;
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    let private = path.with_extension("new");
    let written = store
        .disk()
        .write(&private, &bytes)
        .and_then(|()| store.disk().rename(&private, path));
    written.map_err(|error| Error::io("write", path, &error))
}
