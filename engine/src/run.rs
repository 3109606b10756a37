//! Runs a plan: starts stages as their inputs are published, publishes what they made, tells what happens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::{Event, Watch};
use crate::graph::{Graph, Stage};
use crate::key::Preimage;
use crate::operator::{Cancel, Context, Distribution, Notes, Progress};
use crate::plan::{Action, Memory, Plan, inputs_of, plan};
use crate::runtime::{Command, Coordinator, Job, PartFile, Report, Resources, Start, execute};
use crate::store::{FileEntry, KeyRecord, Manifest, Store, describe, folder_entries, pretty, read_json, write_synced};
use crate::table::{Shape, Table, Tables};

/// How to run.
pub struct Options {
    /// Threads, hosts, memory.
    pub resources: Resources,
    /// Where relative data paths start.
    pub data_root: PathBuf,
    /// Stages that run whatever the store holds.
    pub forced: Vec<String>,
    /// Set to stop the run.
    pub cancel: Cancel,
}

/// `run.json`: what a run did, by stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunRecord {
    /// Name of the run.
    pub run: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// The run's seed.
    pub seed: u64,
    /// Whether every stage is done.
    pub ok: bool,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Key by stage, of the stages that are done.
    pub keys: BTreeMap<String, String>,
    /// Records of keys as they were, so that "why" has an answer when artifacts are gone.
    pub records: BTreeMap<String, KeyRecord>,
}

/// What a run left.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Name of the run.
    pub run: String,
    /// Record by stage.
    pub records: BTreeMap<String, KeyRecord>,
    /// Stages that ran.
    pub ran: usize,
    /// Stages that were reused.
    pub reused: usize,
}

/// Plans a pipeline over a store.
pub fn plan_over(graph: &Graph, store: &Store, data_root: &Path, forced: &[String]) -> Result<Plan> {
    let files: Vec<PathBuf> = graph
        .stages
        .iter()
        .flat_map(|stage| stage.bound.files.clone())
        .collect();
    let digests = store.file_digests(&files)?;
    let last = last_run(store, &graph.pipeline)
        .map(|run| run.records)
        .unwrap_or_default();
    Ok(plan(
        graph,
        &StoreMemory {
            store,
            data_root,
            digests,
            last,
        },
        forced,
    ))
}

/// The newest run of a pipeline.
pub fn last_run(store: &Store, pipeline: &str) -> Option<RunRecord> {
    store.runs().into_iter().find_map(|run| {
        let record: RunRecord = read_json(&store.run_folder(&run).join("run.json")).ok()?;
        (record.pipeline == pipeline).then_some(record)
    })
}

/// Runs a plan. Processes other than the first of `--hosts` only lend their workers: they get no outcome.
pub fn run(
    graph: Graph,
    plan: &Plan,
    store: &Store,
    options: &Options,
    watch: &mut dyn Watch,
) -> Result<Option<Outcome>, Vec<Error>> {
    let graph = Arc::new(graph);
    let job = Job {
        graph: graph.clone(),
        store: store.clone(),
        data_root: options.data_root.clone(),
        cancel: options.cancel.clone(),
    };
    if options
        .resources
        .hosts
        .as_ref()
        .is_some_and(|(_, process)| *process > 0)
    {
        return execute(job, &options.resources, None)
            .map(|()| None)
            .map_err(|error| vec![error]);
    }
    store.discard_abandoned();
    let run = run_name();
    let folder = store.run_folder(&run);
    std::fs::create_dir_all(&folder).map_err(|error| vec![Error::io("create", &folder, &error)])?;
    let journal = std::fs::File::create(folder.join("events.jsonl")).ok();
    let start = Instant::now();
    // Events leave the workers through a channel, so that a slow terminal cannot hold up the dataflow.
    let (sender, receiver) = std::sync::mpsc::channel();
    let state = Arc::new(Mutex::new(State::new(&graph, plan, store, options, &run)));
    let coordinator = Scheduler {
        state: state.clone(),
        events: sender,
        journal,
    };
    let resources = options.resources.clone();
    let idle = state.lock().is_ok_and(|state| state.done());
    let mut coordinator = Some(coordinator);
    if let Some(coordinator) = &mut coordinator {
        coordinator.tell(Event::RunStarted {
            run: run.clone(),
            pipeline: graph.pipeline.clone(),
            stages: graph.stages.len(),
        });
        for planned in &plan.stages {
            coordinator.tell(Event::StagePlanned {
                stage: planned.stage.clone(),
                action: planned.action,
                because: planned.because.clone(),
            });
        }
        let reused: Vec<Event> = state
            .lock()
            .map(|mut state| std::mem::take(&mut state.pending))
            .unwrap_or_default();
        reused.into_iter().for_each(|event| coordinator.tell(event));
    }
    let executed = if idle && options.resources.hosts.is_none() {
        // Nothing to run: no workers are started.
        drop(coordinator.take());
        receiver.iter().for_each(|event| watch.event(&event));
        Ok(())
    } else {
        std::thread::scope(|scope| {
            let boxed: Option<Box<dyn Coordinator>> = coordinator.take().map(|scheduler| Box::new(scheduler) as _);
            let thread = scope.spawn(|| execute(job, &resources, boxed));
            receiver.iter().for_each(|event| watch.event(&event));
            thread
                .join()
                .unwrap_or_else(|panic| Err(Error::internal(format!("the runtime panicked: {panic:?}"))))
        })
    };
    let mut state = match state.lock() {
        Ok(state) => state,
        Err(poisoned) => poisoned.into_inner(),
    };
    if let Err(error) = executed
        && state.errors.is_empty()
    {
        state.errors.push(error);
    }
    state.discard_attempts();
    let ok = state.errors.is_empty() && state.done();
    let record = RunRecord {
        run: run.clone(),
        pipeline: graph.pipeline.clone(),
        seed: graph.seed,
        ok,
        seconds: start.elapsed().as_secs_f64(),
        keys: state
            .records
            .iter()
            .map(|(stage, record)| (stage.clone(), record.key.clone()))
            .collect(),
        records: state.remembered(),
    };
    let write = pretty(&record).and_then(|text| write_synced(&folder.join("run.json"), &text));
    if let Err(error) = write {
        state.errors.push(error);
    }
    let finished = Event::RunFinished {
        run: run.clone(),
        ran: state.ran,
        reused: state.records.len() - state.ran,
        seconds: record.seconds,
        ok,
    };
    watch.event(&finished);
    append(&folder, &finished);
    if !state.errors.is_empty() {
        return Err(std::mem::take(&mut state.errors));
    }
    Ok(Some(Outcome {
        run,
        records: state.records.clone(),
        ran: state.ran,
        reused: state.records.len() - state.ran,
    }))
}

struct StoreMemory<'a> {
    store: &'a Store,
    data_root: &'a Path,
    digests: BTreeMap<PathBuf, String>,
    last: BTreeMap<String, KeyRecord>,
}

impl Memory for StoreMemory<'_> {
    fn record(&self, key: &str) -> Option<KeyRecord> {
        self.store.record(key)
    }

    fn has_static(&self, preimage: &Preimage) -> bool {
        self.store.has_static(preimage)
    }

    fn last(&self, stage: &str) -> Option<KeyRecord> {
        self.last.get(stage).cloned()
    }

    /// Files below the data root are named relative to it, so that a moved data root changes no key.
    fn files(&self, stage: &Stage) -> BTreeMap<String, String> {
        let name = |path: &PathBuf| {
            path.strip_prefix(self.data_root)
                .unwrap_or(path)
                .to_string_lossy()
                .to_string()
        };
        stage
            .bound
            .files
            .iter()
            .filter_map(|path| Some((name(path), self.digests.get(path)?.clone())))
            .collect()
    }
}

/// The scheduler's state: what is done, what runs, what waits.
struct State {
    graph: Arc<Graph>,
    plan: Plan,
    store: Store,
    data_root: PathBuf,
    cancel: Cancel,
    run: String,
    records: BTreeMap<String, KeyRecord>,
    outputs: Vec<BTreeMap<String, String>>,
    running: BTreeMap<usize, Running>,
    /// Events that happened before anyone listened.
    pending: Vec<Event>,
    errors: Vec<Error>,
    ran: usize,
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
    fn new(graph: &Arc<Graph>, plan: &Plan, store: &Store, options: &Options, run: &str) -> Self {
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

    fn done(&self) -> bool {
        self.records.len() == self.graph.stages.len()
    }

    /// Records of this run, and of stages it did not get to as they were before.
    fn remembered(&self) -> BTreeMap<String, KeyRecord> {
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
            let forced = self.plan.stages[index].because.iter().any(|line| line == "forced");
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
        let attempt = format!("{}-{}-{}", std::process::id(), self.run, stage.name);
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
        let mut tables = Tables::new();
        let mut files: BTreeMap<String, Vec<FileEntry>> = BTreeMap::new();
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
                _ => {
                    if !folder.is_dir() {
                        return Err(Error::internal(format!(
                            "{} made no folder \"{name}\"",
                            stage.entry.name
                        )));
                    }
                    tables.insert(name, Table::Folder(folder.clone()));
                    files.insert(name.clone(), folder_entries(&folder)?);
                }
            }
        }
        let context = Context {
            operator: stage.entry.name,
            seed: self.graph.seed,
            data_root: self.data_root.clone(),
            attempt: attempt.clone(),
            partition: None,
            side: None,
            cancel: self.cancel.clone(),
            report: Arc::new(Nobody),
        };
        let rows_in = stage
            .inputs
            .iter()
            .map(|edge| {
                let record = self.records.get(&self.graph.stages[edge.stage].name);
                (
                    edge.port.clone(),
                    record
                        .and_then(|record| record.rows.get(&edge.output))
                        .copied()
                        .unwrap_or(0),
                )
            })
            .collect();
        let notes: Notes = stage.operator.conclude(&context, &rows_in, &tables)?;
        let inputs = inputs_of(stage, |stage| &self.outputs[stage])
            .ok_or_else(|| Error::internal("a stage finished before its inputs were published"))?;
        let preimage = Preimage {
            inputs,
            ..self.plan.stages[index].alone.clone()
        };
        let seconds = running.start.elapsed().as_secs_f64();
        let mut outputs = BTreeMap::new();
        let mut rows = BTreeMap::new();
        let mut bytes = 0;
        for (name, shape) in &stage.bound.outputs {
            let files = files.remove(name).unwrap_or_default();
            bytes += files.iter().map(|file| file.bytes).sum::<u64>();
            rows.insert(name.clone(), files.iter().map(|file| file.rows).sum());
            let manifest = Manifest {
                digest: String::new(),
                layout: match shape {
                    Shape::Folder(layout) => layout.clone(),
                    _ => "table".to_string(),
                },
                schema: describe(shape),
                rows: files.iter().map(|file| file.rows).sum(),
                files,
                port: name.clone(),
                preimage: preimage.clone(),
                stage: stage.name.clone(),
                run: self.run.clone(),
                seconds,
                notes: notes.clone(),
                software: concat!("sluice ", env!("CARGO_PKG_VERSION")).to_string(),
            };
            outputs.insert(name.clone(), self.store.publish(&attempt.join(name), manifest)?);
        }
        let record = KeyRecord {
            key: preimage.key(),
            preimage,
            outputs,
            rows,
            bytes,
            seconds,
            busy_seconds: running.busy_seconds,
            notes,
            run: self.run.clone(),
        };
        self.store.publish_record(&record, &running.attempt)?;
        self.store.discard(&running.attempt);
        self.pending.push(Event::StageFinished {
            stage: stage.name.clone(),
            key: record.key.clone(),
            rows: record.rows.clone(),
            bytes,
            seconds,
            notes: record.notes.clone(),
        });
        self.running.remove(&index);
        self.outputs[index] = record.outputs.clone();
        self.records.insert(self.graph.stages[index].name.clone(), record);
        self.ran += 1;
        Ok(())
    }

    fn discard_attempts(&self) {
        for attempt in &self.attempts {
            self.store.discard(attempt);
        }
    }
}

/// Drives the state from worker 0.
struct Scheduler {
    state: Arc<Mutex<State>>,
    events: std::sync::mpsc::Sender<Event>,
    journal: Option<std::fs::File>,
}

impl Scheduler {
    fn tell(&mut self, event: Event) {
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
            // A streaming group finishes from the top: a stage can only be published after those it reads.
            let mut waiting: VecDeque<Report> = reports.into();
            while let Some(report) = waiting.pop_front() {
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

struct Nobody;

impl crate::operator::Report for Nobody {
    fn progress(&self, _: Progress) {}
}

/// A name that sorts by time: `20261122-131501-482-7`.
fn run_name() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, seconds) = (now.as_secs() / 86_400, now.as_secs() % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}-{:03}-{}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        now.subsec_millis(),
        std::process::id()
    )
}

/// Days since 1970 to a date (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn append(folder: &Path, event: &Event) {
    if let (Ok(mut journal), Ok(line)) = (
        std::fs::OpenOptions::new()
            .append(true)
            .open(folder.join("events.jsonl")),
        serde_json::to_string(event),
    ) {
        let _ = writeln!(journal, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(civil(0), (1970, 1, 1));
        assert_eq!(civil(20_779), (2026, 11, 22));
        assert_eq!(civil(11_016), (2000, 2, 29));
    }
}
