//! The scheduler: starts stages as their inputs are published, publishes what they made, tells what happens.
//!
//! It lives on worker 0 and talks to the runtime in commands and reports; it knows no timely.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::event::Event;
use crate::graph::{Edge, Graph, Stage};
use crate::key::Preimage;
use crate::operator::{Cancel, Context, Distribution, Notes};
use crate::plan::{Action, Plan, inputs_of};
use crate::run::{Options, last_run};
use crate::runtime::{Command, Coordinator, PartFile, Report, Start};
use crate::store::{FileEntry, KeyRecord, Manifest, Store, describe, folder_entries};
use crate::table::{Shape, Table, Tables};

/// The scheduler's state: what is done, what runs, what waits.
pub(crate) struct State {
    graph: Arc<Graph>,
    plan: Plan,
    store: Store,
    data_root: PathBuf,
    cancel: Cancel,
    run: String,
    pub(crate) records: BTreeMap<String, KeyRecord>,
    outputs: Vec<BTreeMap<String, String>>,
    running: BTreeMap<usize, Running>,
    /// Events that happened before anyone listened.
    pub(crate) pending: Vec<Event>,
    pub(crate) errors: Vec<Error>,
    pub(crate) ran: usize,
    next_worker: usize,
    attempts: BTreeSet<String>,
}

struct Running {
    attempt: String,
    start: Instant,
    parts: BTreeMap<usize, Vec<FileEntry>>,
    writers: usize,
    busy_seconds: f64,
}

impl State {
    pub(crate) fn new(graph: &Arc<Graph>, plan: &Plan, store: &Store, options: &Options, run: &str) -> Self {
        let mut state = State {
            graph: graph.clone(),
            plan: plan.clone(),
            store: store.clone(),
            data_root: options.data_root.clone(),
            cancel: options.cancel.clone(),
            run: run.to_string(),
            records: BTreeMap::new(),
            outputs: vec![BTreeMap::new(); graph.stages.len()],
            running: BTreeMap::new(),
            pending: Vec::new(),
            errors: Vec::new(),
            ran: 0,
            next_worker: 0,
            attempts: BTreeSet::new(),
        };
        for (index, planned) in plan.stages.iter().enumerate() {
            if planned.action == Action::Reuse
                && let Some(record) = planned.key.as_ref().and_then(|key| store.record(key))
            {
                state.reuse(index, record, false);
            }
        }
        state
    }

    pub(crate) fn done(&self) -> bool {
        self.records.len() == self.graph.stages.len()
    }

    /// Records of this run, and of stages it did not get to as they were before.
    pub(crate) fn remembered(&self) -> BTreeMap<String, KeyRecord> {
        let mut records = last_run(&self.store, &self.graph.pipeline)
            .map(|run| run.records)
            .unwrap_or_default();
        records.retain(|stage, _| self.graph.stage(stage).is_some());
        records.extend(self.records.clone());
        records
    }

    fn reuse(&mut self, index: usize, record: KeyRecord, cut_off: bool) {
        self.pending.push(Event::StageReused {
            stage: self.graph.stages[index].name.clone(),
            key: record.key.clone(),
            rows: record.rows.clone(),
            cut_off,
        });
        self.outputs[index] = record.outputs.clone();
        self.records.insert(self.graph.stages[index].name.clone(), record);
    }

    fn is_done(&self, index: usize) -> bool {
        self.records.contains_key(&self.graph.stages[index].name)
    }

    /// Starts every stage whose inputs are there, together with those that can stream from it.
    fn start_ready(&mut self, peers: usize) -> Vec<Command> {
        let mut commands = Vec::new();
        let mut index = 0;
        while index < self.graph.stages.len() {
            if self.is_done(index) || self.running.contains_key(&index) {
                index += 1;
                continue;
            }
            let Some(inputs) = inputs_of(&self.graph.stages[index], |stage| &self.outputs[stage]) else {
                index += 1;
                continue;
            };
            let preimage = Preimage {
                inputs: inputs.clone(),
                ..self.plan.stages[index].alone.clone()
            };
            let forced = self.plan.stages[index].forced;
            if !forced && let Some(record) = self.store.record(&preimage.key()) {
                self.reuse(index, record, true);
                index += 1;
                continue;
            }
            let once = self.graph.stages[index].bound.distribution == Distribution::Whole;
            let busy = self
                .running
                .keys()
                .filter(|stage| self.graph.stages[**stage].bound.distribution == Distribution::Whole);
            // A thread per worker is enough for operators that run once: they use all cores inside.
            if once && busy.count() >= peers {
                index += 1;
                continue;
            }
            let mut group = vec![self.start(index, inputs, peers)];
            self.extend(&mut group, index + 1, peers);
            commands.push(Command::Start(group));
            index += 1;
        }
        commands
    }

    /// Adds the stages that can stream from the group: all other inputs are published, and no earlier result could
    /// turn out to be theirs (then it is better to wait and see whether the inputs come out equal).
    fn extend(&mut self, group: &mut Vec<Start>, from: usize, peers: usize) {
        for index in from..self.graph.stages.len() {
            let stage = &self.graph.stages[index];
            if self.is_done(index)
                || self.running.contains_key(&index)
                || self.plan.stages[index].action == Action::RunUnlessEqual
                || stage.bound.distribution == Distribution::Whole
            {
                continue;
            }
            let mut published = BTreeMap::new();
            let mut streamed = false;
            let possible = stage.inputs.iter().all(|edge| {
                if let Some(digest) = self.outputs[edge.stage].get(&edge.output) {
                    published.insert(edge.port.clone(), digest.clone());
                    return true;
                }
                streamed = true;
                group.iter().any(|start| start.stage == edge.stage) && stage.streams(&edge.port)
            });
            if possible && streamed {
                let start = self.start(index, published, peers);
                group.push(start);
            }
        }
    }

    fn start(&mut self, index: usize, published: BTreeMap<String, String>, peers: usize) -> Start {
        let stage = &self.graph.stages[index];
        let attempt = Store::attempt_name(&format!("{}-{}", self.run, stage.name));
        self.pending.push(Event::StageStarted {
            stage: stage.name.clone(),
            operator: stage.entry.name.to_string(),
        });
        self.attempts.insert(attempt.clone());
        let folder = self.store.attempt_folder(&attempt);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            self.errors.push(Error::io("create", &folder, &error));
        }
        self.running.insert(
            index,
            Running {
                attempt: attempt.clone(),
                start: Instant::now(),
                parts: BTreeMap::new(),
                writers: 0,
                busy_seconds: 0.0,
            },
        );
        self.next_worker += 1;
        Start {
            stage: index,
            attempt,
            published,
            worker: self.next_worker % peers,
        }
    }

    fn report(&mut self, report: Report, peers: usize) {
        match report {
            Report::Progress { stage, progress } => {
                let stage = self.graph.stages[stage].name.clone();
                self.pending.push(Event::StageProgress { stage, progress });
            }
            Report::Part { stage, port, entry } => {
                if let Some(running) = self.running.get_mut(&stage) {
                    running.parts.entry(port).or_default().push(entry);
                }
            }
            Report::WriterDone { stage, busy_seconds } => {
                let Some(running) = self.running.get_mut(&stage) else {
                    return;
                };
                running.writers += 1;
                running.busy_seconds += busy_seconds;
                if running.writers == peers
                    && let Err(error) = self.publish(stage)
                {
                    self.fail(stage, error);
                }
            }
            Report::Failed { stage, error } => self.fail(stage, error),
        }
    }

    fn fail(&mut self, stage: usize, error: Error) {
        let name = self.graph.stages[stage].name.clone();
        let mut error = error;
        error
            .detail
            .push(format!("in stage \"{name}\" ({})", self.graph.stages[stage].entry.name));
        self.pending.push(Event::StageFailed {
            stage: name,
            error: error.clone(),
        });
        self.errors.push(error);
    }

    /// Every writer of the stage is done: conclude, publish the artifacts, then the key.
    fn publish(&mut self, index: usize) -> Result<()> {
        let Some(running) = self.running.get(&index) else {
            return Ok(());
        };
        let stage = &self.graph.stages[index];
        let attempt = self.store.attempt_folder(&running.attempt);
        let (tables, mut files) = written(stage, running, &attempt)?;
        let context = Context::new(
            stage.entry.name,
            self.graph.seed,
            &self.data_root,
            &attempt,
            &self.cancel,
        );
        let rows_in = stage
            .inputs
            .iter()
            .map(|edge| (edge.port.clone(), self.rows_of(edge)))
            .collect();
        let notes: Notes = stage.operator.conclude(&context, &rows_in, &tables)?;
        let inputs = inputs_of(stage, |stage| &self.outputs[stage])
            .ok_or_else(|| Error::internal("a stage finished before its inputs were published"))?;
        let preimage = Preimage {
            inputs,
            ..self.plan.stages[index].alone.clone()
        };
        let seconds = running.start.elapsed().as_secs_f64();
        let mut record = KeyRecord {
            key: preimage.key(),
            preimage,
            outputs: BTreeMap::new(),
            rows: BTreeMap::new(),
            bytes: 0,
            seconds,
            busy_seconds: running.busy_seconds,
            notes,
            run: self.run.clone(),
        };
        for (name, shape) in &stage.bound.outputs {
            let files = files.remove(name).unwrap_or_default();
            let rows = files.iter().map(|file| file.rows).sum();
            record.bytes += files.iter().map(|file| file.bytes).sum::<u64>();
            record.rows.insert(name.clone(), rows);
            let manifest = Manifest {
                digest: String::new(),
                layout: match shape {
                    Shape::Folder(layout) => layout.clone(),
                    _ => "table".to_string(),
                },
                schema: describe(shape),
                rows,
                files,
                port: name.clone(),
                preimage: record.preimage.clone(),
                stage: stage.name.clone(),
                run: self.run.clone(),
                seconds,
                notes: record.notes.clone(),
                software: concat!("sluice ", env!("CARGO_PKG_VERSION")).to_string(),
            };
            record
                .outputs
                .insert(name.clone(), self.store.publish(&attempt.join(name), manifest)?);
        }
        self.store.publish_record(&record, &running.attempt)?;
        self.store.discard(&running.attempt);
        self.pending.push(Event::StageFinished {
            stage: stage.name.clone(),
            key: record.key.clone(),
            rows: record.rows.clone(),
            bytes: record.bytes,
            seconds,
            notes: record.notes.clone(),
        });
        self.outputs[index] = record.outputs.clone();
        self.records.insert(stage.name.clone(), record);
        self.running.remove(&index);
        self.ran += 1;
        Ok(())
    }

    /// Rows of the artifact that an edge carries.
    fn rows_of(&self, edge: &Edge) -> u64 {
        let record = self.records.get(&self.graph.stages[edge.stage].name);
        record
            .and_then(|record| record.rows.get(&edge.output))
            .copied()
            .unwrap_or(0)
    }

    pub(crate) fn discard_attempts(&self) {
        for attempt in &self.attempts {
            self.store.discard(attempt);
        }
    }
}

/// What a stage wrote: its ports as tables, and the files of every port.
fn written(stage: &Stage, running: &Running, attempt: &Path) -> Result<(Tables, BTreeMap<String, Vec<FileEntry>>)> {
    let mut tables = Tables::new();
    let mut files = BTreeMap::new();
    for (port, (name, shape)) in stage.bound.outputs.iter().enumerate() {
        let folder = attempt.join(name);
        match shape {
            Shape::Table(schema) => {
                let mut parts = running.parts.get(&port).cloned().unwrap_or_default();
                if parts.is_empty() {
                    parts.push(PartFile::create(&folder.join("part-00000.parquet"), schema)?.finish()?);
                }
                parts.sort_by(|a, b| a.name.cmp(&b.name));
                let paths = parts.iter().map(|part| folder.join(&part.name)).collect();
                tables.insert(name, Table::Parts(schema.clone(), paths));
                files.insert(name.clone(), parts);
            }
            _ if folder.is_dir() => {
                tables.insert(name, Table::Folder(folder.clone()));
                files.insert(name.clone(), folder_entries(&folder)?);
            }
            _ => {
                return Err(Error::internal(format!(
                    "{} made no folder \"{name}\"",
                    stage.entry.name
                )));
            }
        }
    }
    Ok((tables, files))
}

/// Drives the state from worker 0.
pub(crate) struct Scheduler {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) events: std::sync::mpsc::Sender<Event>,
    pub(crate) journal: Option<std::fs::File>,
}

impl Scheduler {
    pub(crate) fn tell(&mut self, event: Event) {
        if !matches!(event, Event::StageProgress { .. })
            && let (Some(journal), Ok(line)) = (&mut self.journal, serde_json::to_string(&event))
        {
            // The journal is a record for people; the run does not depend on it.
            let _ = writeln!(journal, "{line}");
        }
        let _ = self.events.send(event);
    }
}

impl Coordinator for Scheduler {
    fn step(&mut self, reports: Vec<Report>, peers: usize) -> Vec<Command> {
        let (events, commands) = {
            let Ok(mut state) = self.state.lock() else {
                return vec![Command::Stop];
            };
            // A worker reports the stages of a streaming group from the top, so a stage is published after those it reads.
            for report in reports {
                state.report(report, peers);
            }
            if state.cancel.is_cancelled() && state.errors.is_empty() && !state.done() {
                state
                    .errors
                    .push(Error::interrupted().hint("run the same command again to continue"));
            }
            let commands = if !state.errors.is_empty() || state.done() {
                vec![Command::Stop]
            } else {
                state.start_ready(peers)
            };
            (std::mem::take(&mut state.pending), commands)
        };
        for event in events {
            self.tell(event);
        }
        commands
    }
}
