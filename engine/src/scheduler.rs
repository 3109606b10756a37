//! The scheduler: starts stages as their inputs are published, publishes what they made, tells what happens.
//!
//! It lives on worker 0 and talks to the runtime in commands and reports; it knows no timely.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::event::{Entry, Event};
use crate::graph::{Edge, Graph, Stage};
use crate::history::now;
use crate::key::Preimage;
use crate::operator::{Cancel, Context, Distribution, Notes};
use crate::plan::{Action, Plan, inputs_of};
use crate::process::{cpu_seconds, resident};
use crate::run::Options;
use crate::runtime::{Command, Coordinator, PartFile, Report, Start};
use crate::slots::{Machine, Slots, Taken};
use crate::store::lease::{Claim, Leases};
use crate::store::{FileEntry, KeyRecord, Manifest, Store, Usage, content_digest, describe};
use crate::table::{Shape, Table, Tables};
use crate::verify;

/// How often a stage that another run works on is looked at.
const LOOK: Duration = Duration::from_millis(150);

/// How often progress is written to the journal, a stage.
const PROGRESS: Duration = Duration::from_secs(5);

/// How many earlier results of an operator a stage may look at.
const EARLIER: usize = 8;

/// How far a stage is.
enum Status {
    /// Its inputs are not there.
    Waiting,
    /// Its inputs are there.
    Ready(Box<Ready>),
    /// It runs.
    Running(Box<Running>),
    /// Its artifacts are there.
    Done(Box<KeyRecord>),
    /// It failed, or one above it did, or it was left out.
    Never,
}

/// A stage that could start.
struct Ready {
    preimage: Preimage,
    /// When another run was found to work on it, or equal artifacts were looked for.
    looked: Option<Instant>,
    told: bool,
}

struct Running {
    attempt: String,
    start: Instant,
    parts: BTreeMap<usize, Vec<FileEntry>>,
    writers: usize,
    busy_seconds: f64,
    cpu_seconds: f64,
    peak_memory: u64,
    gpus: Vec<usize>,
    process: usize,
    /// What the operator stated while it ran.
    notes: Notes,
}

/// The scheduler's state: what is done, what runs, what waits.
pub(crate) struct State {
    graph: Arc<Graph>,
    plan: Plan,
    readers: Vec<Vec<usize>>,
    store: Store,
    data_root: PathBuf,
    cancel: Cancel,
    run: String,
    stages: Vec<Status>,
    outputs: Vec<BTreeMap<String, String>>,
    /// Stages that could start, and those that run.
    ready: BTreeSet<usize>,
    running: BTreeSet<usize>,
    /// Recipes and keys that are running, and by which stage.
    recipes: HashMap<String, usize>,
    keys: HashMap<String, usize>,
    leases: Option<Leases>,
    machine: Machine,
    taken: Vec<Taken>,
    workers: usize,
    keep_going: bool,
    verify: bool,
    left: usize,
    /// Events that happened before anyone listened.
    pub(crate) pending: Vec<Event>,
    pub(crate) errors: Vec<Error>,
    pub(crate) ran: usize,
    pub(crate) failed: usize,
    pub(crate) blocked: usize,
    next_worker: usize,
    attempts: BTreeSet<String>,
    sampled: Instant,
}

impl State {
    pub(crate) fn new(graph: &Arc<Graph>, plan: &Plan, store: &Store, options: &Options, run: &str) -> Self {
        let count = graph.stages.len();
        let mut state = State {
            graph: graph.clone(),
            plan: plan.clone(),
            readers: graph.readers(),
            store: store.clone(),
            data_root: options.data_root.clone(),
            cancel: options.cancel.clone(),
            run: run.to_string(),
            stages: (0..count).map(|_| Status::Waiting).collect(),
            outputs: vec![BTreeMap::new(); count],
            ready: BTreeSet::new(),
            running: BTreeSet::new(),
            recipes: HashMap::new(),
            keys: HashMap::new(),
            leases: None,
            machine: options.machine.clone(),
            taken: vec![Taken::default(); options.resources.hosts.as_ref().map_or(1, |(hosts, _)| hosts.len())],
            workers: options.resources.workers.max(1),
            keep_going: options.keep_going,
            verify: options.verify,
            left: count,
            pending: Vec::new(),
            errors: Vec::new(),
            ran: 0,
            failed: 0,
            blocked: 0,
            next_worker: 0,
            attempts: BTreeSet::new(),
            sampled: Instant::now(),
        };
        for (index, planned) in plan.stages.iter().enumerate() {
            match planned.action {
                Action::Reuse => {
                    if let Some(record) = planned.key.as_ref().and_then(|key| store.record(key)) {
                        state.reuse(index, record, false);
                    }
                }
                Action::Accept => {
                    if let Some(record) = planned.accepted.as_deref().cloned() {
                        state.accept(index, record);
                    }
                }
                Action::Skip => {
                    state.stages[index] = Status::Never;
                    state.left -= 1;
                }
                Action::Run | Action::RunUnlessEqual => {}
            }
        }
        for (index, planned) in plan.stages.iter().enumerate() {
            if planned.runs()
                && graph.stages[index].bound.distribution == Distribution::Whole
                && let Err(error) = state.machine.share(&graph.stages[index].slots)
            {
                state.errors.push(error.detail(format!("stage \"{}\"", planned.stage)));
            }
            state.consider(index);
        }
        if state.left > 0 && !state.verify {
            state.leases = Some(Leases::new(store, run, options.lease));
        }
        state
    }

    /// Whether nothing is left to do.
    pub(crate) fn done(&self) -> bool {
        self.left == 0
    }

    /// Records of the stages that are done.
    pub(crate) fn records(&self) -> BTreeMap<String, KeyRecord> {
        let stages = self.graph.stages.iter().zip(&self.stages);
        stages
            .filter_map(|(stage, status)| match status {
                Status::Done(record) => Some((stage.name.clone(), record.as_ref().clone())),
                _ => None,
            })
            .collect()
    }

    fn finish(&mut self, index: usize, record: KeyRecord) {
        self.outputs[index] = record.outputs.clone();
        self.stages[index] = Status::Done(Box::new(record));
        self.ready.remove(&index);
        self.left -= 1;
        for reader in self.readers[index].clone() {
            self.consider(reader);
        }
    }

    fn reuse(&mut self, index: usize, record: KeyRecord, cut_off: bool) {
        self.pending.push(Event::StageReused {
            stage: self.graph.stages[index].name.clone(),
            key: record.key.clone(),
            rows: record.rows.clone(),
            cut_off,
        });
        self.finish(index, record);
    }

    /// Publishes the record that keeps an old artifact under the new version's key.
    fn accept(&mut self, index: usize, record: KeyRecord) {
        let attempt = Store::attempt_name(&format!("{}-accept-{index}", self.run));
        let folder = self.store.attempt_folder(&attempt);
        let made = self.store.disk().create_folder(&folder);
        let published = made
            .map_err(|error| Error::io("create", &folder, &error))
            .and_then(|()| self.store.publish_record(&record, &attempt, false));
        self.store.discard(&attempt);
        match published {
            Ok(record) => self.reuse(index, record, false),
            Err(error) => self.errors.push(error),
        }
    }

    /// Whether a stage became ready.
    fn consider(&mut self, index: usize) {
        if !matches!(self.stages[index], Status::Waiting) {
            return;
        }
        let Some(inputs) = inputs_of(&self.graph.stages[index], |stage| &self.outputs[stage]) else {
            return;
        };
        let preimage = Preimage {
            inputs,
            ..self.plan.stages[index].alone.clone()
        };
        self.stages[index] = Status::Ready(Box::new(Ready {
            preimage,
            looked: None,
            told: false,
        }));
        self.ready.insert(index);
    }

    /// Starts every stage whose inputs are there, together with those that can stream from it.
    fn start_ready(&mut self, peers: usize) -> Vec<Command> {
        let mut commands = Vec::new();
        for index in self.ready.iter().copied().collect::<Vec<_>>() {
            let Status::Ready(ready) = &self.stages[index] else {
                continue;
            };
            if ready.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
                continue;
            }
            // The same work under another name is under way: its result will be this one's.
            if self.recipes.contains_key(&self.plan.stages[index].recipe) {
                continue;
            }
            let preimage = ready.preimage.clone();
            let forced = self.plan.stages[index].forced;
            let key = preimage.key();
            if self.keys.contains_key(&key) {
                continue;
            }
            if !forced && let Some(record) = self.store.record(&key) {
                self.reuse(index, record, true);
                continue;
            }
            let Some((process, gpus)) = self.room(index) else {
                continue;
            };
            if !self.claim(index) {
                self.taken[process].give(index);
                continue;
            }
            // Between the look and the lease another run may have published it.
            if !forced && let Some(record) = self.store.record(&key) {
                self.taken[process].give(index);
                self.release(index);
                self.reuse(index, record, true);
                continue;
            }
            let inputs = preimage.inputs.clone();
            let mut group = vec![self.start(index, inputs, Some(&preimage), process, gpus)];
            if !self.verify {
                self.extend(&mut group, index + 1);
            }
            debug_assert!(group.iter().all(|start| start.worker < peers));
            commands.push(Command::Start(group));
        }
        commands
    }

    /// A process with room for a stage that runs once, and its devices there; the others need none.
    fn room(&mut self, index: usize) -> Option<(usize, Vec<usize>)> {
        let stage = &self.graph.stages[index];
        if stage.bound.distribution != Distribution::Whole {
            return Some((0, Vec::new()));
        }
        let share = self.machine.share(&stage.slots).unwrap_or_else(|_| Slots::default());
        let count = self.taken.len();
        let first = self.next_worker / self.workers % count;
        (0..count).map(|offset| (first + offset) % count).find_map(|process| {
            let gpus = self.taken[process].take(index, &share, &self.machine)?;
            Some((process, gpus))
        })
    }

    /// Takes the lease of a stage's recipe. Without it somebody else works on the same stage.
    fn claim(&mut self, index: usize) -> bool {
        let Some(leases) = &self.leases else { return true };
        let claim = leases.claim(&self.plan.stages[index].recipe);
        let Status::Ready(ready) = &mut self.stages[index] else {
            return matches!(claim, Ok(Claim::Held));
        };
        match claim {
            Ok(Claim::Held) => true,
            Ok(Claim::Busy(holder)) => {
                ready.looked = Some(Instant::now());
                if !ready.told {
                    ready.told = true;
                    self.pending.push(Event::StageWaiting {
                        stage: self.graph.stages[index].name.clone(),
                        holder: holder.to_string(),
                    });
                }
                false
            }
            Err(error) => {
                self.errors.push(error);
                false
            }
        }
    }

    fn release(&mut self, index: usize) {
        let recipe = &self.plan.stages[index].recipe;
        self.recipes.remove(recipe);
        self.keys.retain(|_, stage| *stage != index);
        if let Some(leases) = &self.leases {
            leases.release(recipe);
        }
    }

    /// Adds the stages that can stream from the group: all other inputs are published, and no earlier result could
    /// turn out to be theirs (then it is better to wait and see whether the inputs come out equal).
    fn extend(&mut self, group: &mut Vec<Start>, from: usize) {
        for index in from..self.graph.stages.len() {
            let stage = &self.graph.stages[index];
            if !matches!(self.stages[index], Status::Waiting)
                || self.plan.stages[index].action == Action::RunUnlessEqual
                || stage.bound.distribution == Distribution::Whole
                || self.recipes.contains_key(&self.plan.stages[index].recipe)
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
            if possible && streamed && self.claim(index) {
                let start = self.start(index, published, None, 0, Vec::new());
                group.push(start);
            }
        }
    }

    fn start(
        &mut self,
        index: usize,
        published: BTreeMap<String, String>,
        preimage: Option<&Preimage>,
        process: usize,
        gpus: Vec<usize>,
    ) -> Start {
        let stage = &self.graph.stages[index];
        let attempt = Store::attempt_name(&format!("{}-{index}-{}", self.run, stage.name));
        self.pending.push(Event::StageStarted {
            stage: stage.name.clone(),
            operator: stage.entry.name.to_string(),
            gpus: gpus.clone(),
        });
        self.attempts.insert(attempt.clone());
        let folder = self.store.attempt_folder(&attempt);
        if let Err(error) = self.store.disk().create_folder(&folder) {
            self.errors.push(Error::io("create", &folder, &error));
        }
        let once = stage.bound.distribution == Distribution::Whole;
        // State and earlier results are for stages that run once; a check or a forced run begins with nothing.
        let afresh = self.verify || self.plan.stages[index].forced;
        let lineage = preimage
            .filter(|_| once && !self.verify)
            .map(|preimage| preimage.lineage(stage));
        if let (Some(lineage), true) = (&lineage, afresh) {
            let folder = self.store.checkpoint_folder(lineage);
            if self.store.disk().list(&folder).is_ok() {
                let _ = self.store.disk().remove_folder(&folder);
            }
        }
        let earlier = match preimage.filter(|_| once && !afresh) {
            Some(preimage) => self.earlier(preimage),
            None => Vec::new(),
        };
        self.recipes.insert(self.plan.stages[index].recipe.clone(), index);
        if let Some(preimage) = preimage {
            self.keys.insert(preimage.key(), index);
        }
        self.ready.remove(&index);
        self.running.insert(index);
        self.stages[index] = Status::Running(Box::new(Running {
            attempt: attempt.clone(),
            start: Instant::now(),
            parts: BTreeMap::new(),
            writers: 0,
            busy_seconds: 0.0,
            cpu_seconds: cpu_seconds(),
            peak_memory: resident(),
            gpus: gpus.clone(),
            process,
            notes: Notes::new(),
        }));
        self.next_worker += 1;
        Start {
            stage: index,
            attempt,
            published,
            worker: process * self.workers + self.next_worker % self.workers,
            lineage,
            earlier,
            gpus,
        }
    }

    /// Keys of the newest results of the same operator and config over other inputs.
    fn earlier(&self, preimage: &Preimage) -> Vec<String> {
        let keys = self.store.with_static(preimage);
        let mut records: Vec<(String, String)> = keys
            .iter()
            .filter_map(|key| Some((self.store.known(key)?.run, key.clone())))
            .collect();
        records.sort_unstable_by(|a, b| b.cmp(a));
        records.into_iter().take(EARLIER).map(|(_, key)| key).collect()
    }

    fn report(&mut self, report: Report, peers: usize) {
        match report {
            Report::Progress { stage, progress } => {
                let stage = self.graph.stages[stage].name.clone();
                self.pending.push(Event::StageProgress { stage, progress });
            }
            Report::Part { stage, port, entry } => {
                if let Status::Running(running) = &mut self.stages[stage] {
                    running.parts.entry(port).or_default().push(entry);
                }
            }
            Report::WriterDone {
                stage,
                busy_seconds,
                notes,
            } => {
                let Status::Running(running) = &mut self.stages[stage] else {
                    return;
                };
                running.writers += 1;
                running.busy_seconds += busy_seconds;
                running
                    .notes
                    .extend(serde_json::from_str::<Notes>(&notes).unwrap_or_default());
                if running.writers == peers {
                    let done = match self.verify {
                        true => self.compare(stage),
                        false => self.publish(stage),
                    };
                    if let Err(error) = done {
                        self.fail(stage, error);
                    }
                }
            }
            Report::Failed { stage, error } => self.fail(stage, error),
        }
    }

    /// A stage failed. Those that read it will never run; the others go on if the user wants that.
    fn fail(&mut self, stage: usize, error: Error) {
        if matches!(self.stages[stage], Status::Never) {
            return;
        }
        let name = self.graph.stages[stage].name.clone();
        let mut error = error;
        error
            .detail
            .push(format!("in stage \"{name}\" ({})", self.graph.stages[stage].entry.name));
        self.pending.push(Event::StageFailed {
            stage: name.clone(),
            error: error.clone(),
        });
        self.errors.push(error);
        self.failed += 1;
        self.never(stage);
        let mut below = self.readers[stage].clone();
        while let Some(index) = below.pop() {
            if matches!(self.stages[index], Status::Never | Status::Done(_)) {
                continue;
            }
            self.pending.push(Event::StageBlocked {
                stage: self.graph.stages[index].name.clone(),
                failed: name.clone(),
            });
            self.blocked += 1;
            self.never(index);
            below.extend(&self.readers[index]);
        }
    }

    fn never(&mut self, index: usize) {
        self.leave(index);
        self.ready.remove(&index);
        self.stages[index] = Status::Never;
        self.left -= 1;
    }

    /// A stage runs no longer: its slots and its lease are free.
    fn leave(&mut self, index: usize) {
        if let Status::Running(running) = &self.stages[index] {
            self.taken[running.process].give(index);
            self.running.remove(&index);
            self.release(index);
        }
    }

    /// Every writer of the stage is done: conclude, publish the artifacts, then the key.
    fn publish(&mut self, index: usize) -> Result<()> {
        let recipe = &self.plan.stages[index].recipe;
        if self.leases.as_ref().is_some_and(|leases| !leases.holds(recipe)) {
            return self.lose(index);
        }
        let (record, mut manifests, attempt) = self.conclude(index)?;
        let mut record = record;
        let folder = self.store.attempt_folder(&attempt);
        for (name, manifest) in std::mem::take(&mut manifests) {
            let digest = self.store.publish(&folder.join(&name), manifest)?;
            record.outputs.insert(name, digest);
        }
        let forced = self.plan.stages[index].forced;
        let ours = record.outputs.clone();
        let record = self.store.publish_record(&record, &attempt, forced)?;
        self.store.discard(&attempt);
        if record.outputs != ours && self.readers[index].iter().any(|reader| self.running.contains(reader)) {
            // They have read our rows, not those of the result that counts.
            return Err(Error::device(
                "overtaken",
                "another run published another result of the same stage first",
            )
            .hint("run the same command again: it goes on with that result"));
        }
        let stage = &self.graph.stages[index];
        if !stage.operator.extendable() {
            let checkpoints = self.store.checkpoint_folder(&record.preimage.lineage(stage));
            if self.store.disk().list(&checkpoints).is_ok() {
                // What cannot be removed is removed by `gc`.
                let _ = self.store.disk().remove_folder(&checkpoints);
            }
        }
        self.pending.push(Event::StageFinished {
            stage: stage.name.clone(),
            key: record.key.clone(),
            rows: record.rows.clone(),
            bytes: record.bytes,
            seconds: record.seconds,
            usage: record.usage.clone(),
            notes: record.notes.clone(),
        });
        self.leave(index);
        self.ran += 1;
        self.finish(index, record);
        Ok(())
    }

    /// Someone took the stage over while we were stopped: what we made is dropped, theirs will be used.
    fn lose(&mut self, index: usize) -> Result<()> {
        let Status::Running(running) = &self.stages[index] else {
            return Ok(());
        };
        self.store.discard(&running.attempt);
        self.pending.push(Event::StageLost {
            stage: self.graph.stages[index].name.clone(),
        });
        if self.readers[index].iter().any(|reader| self.running.contains(reader)) {
            return Err(
                Error::device("overtaken", "the lease was lost while this process was stopped")
                    .hint("run the same command again to continue"),
            );
        }
        self.leave(index);
        self.stages[index] = Status::Waiting;
        self.consider(index);
        Ok(())
    }

    /// The stage was run again: compare what it made with what is in the store, and drop it.
    fn compare(&mut self, index: usize) -> Result<()> {
        let (_, manifests, attempt) = self.conclude(index)?;
        let graph = self.graph.clone();
        let stage = &graph.stages[index];
        let known = self.plan.stages[index].outputs.clone();
        let mut outputs = BTreeMap::new();
        let mut agrees = true;
        for (name, manifest) in &manifests {
            let folder = self.store.attempt_folder(&attempt).join(name);
            let found = match known.get(name) {
                Some(digest) if *digest == content_digest(manifest) => Ok("equal to the bit".to_string()),
                Some(digest) => verify::compare(&self.store, digest, &folder, manifest, stage.operator.determinism()),
                None => Err("there is no such output in the store".to_string()),
            };
            agrees &= found.is_ok();
            outputs.insert(name.clone(), found.unwrap_or_else(|difference| difference));
        }
        self.pending.push(Event::StageVerified {
            stage: stage.name.clone(),
            agrees,
            outputs: outputs.clone(),
        });
        let key = self.plan.stages[index].key.clone().unwrap_or_default();
        self.store.discard(&attempt);
        self.leave(index);
        self.ran += 1;
        if !agrees {
            let mut error = Error::data(
                "not-reproducible",
                format!("stage \"{}\" came out otherwise", stage.name),
            )
            .hint("was its operator changed without a new VERSION? --force STAGE keeps the new result");
            error.detail = outputs.iter().map(|(port, text)| format!("{port}: {text}")).collect();
            self.errors.push(error);
            self.failed += 1;
        }
        match self.store.record(&key) {
            Some(record) => self.finish(index, record),
            None => self.never(index),
        }
        Ok(())
    }

    /// Lets the operator conclude, and makes the record and the manifests of what it wrote.
    fn conclude(&mut self, index: usize) -> Result<(KeyRecord, BTreeMap<String, Manifest>, String)> {
        let Status::Running(running) = &self.stages[index] else {
            return Err(Error::internal("a stage finished that does not run"));
        };
        let stage = &self.graph.stages[index];
        let attempt = self.store.attempt_folder(&running.attempt);
        let (tables, mut files) = written(&self.store, stage, running, &attempt)?;
        let context = Context::new(stage.entry.name, stage.seed, &self.data_root, &attempt, &self.cancel);
        let rows_in = stage
            .inputs
            .iter()
            .map(|edge| (edge.port.clone(), self.rows_of(edge)))
            .collect();
        let mut notes = running.notes.clone();
        notes.extend(stage.operator.conclude(&context, &rows_in, &tables)?);
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
            usage: Usage {
                cpu_seconds: cpu_seconds() - running.cpu_seconds,
                peak_memory: running.peak_memory.max(resident()),
                gpus: running.gpus.clone(),
            },
            accepted: None,
        };
        let mut manifests = BTreeMap::new();
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
            manifests.insert(name.clone(), manifest);
        }
        Ok((record, manifests, running.attempt.clone()))
    }

    /// Rows of the artifact that an edge carries.
    fn rows_of(&self, edge: &Edge) -> u64 {
        match &self.stages[edge.stage] {
            Status::Done(record) => record.rows.get(&edge.output).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// Looks at the memory that is in use, for the stages that run.
    fn sample(&mut self) {
        if self.running.is_empty() || self.sampled.elapsed() < Duration::from_millis(50) {
            return;
        }
        self.sampled = Instant::now();
        let resident = resident();
        for index in &self.running {
            if let Status::Running(running) = &mut self.stages[*index] {
                running.peak_memory = running.peak_memory.max(resident);
            }
        }
    }

    pub(crate) fn discard_attempts(&self) {
        for attempt in &self.attempts {
            self.store.discard(attempt);
        }
    }
}

/// What a stage wrote: its ports as tables, and the files of every port.
fn written(
    store: &Store,
    stage: &Stage,
    running: &Running,
    attempt: &Path,
) -> Result<(Tables, BTreeMap<String, Vec<FileEntry>>)> {
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
                files.insert(name.clone(), store.folder_entries(&folder)?);
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

/// Writes events to the journal of a run and hands them on.
pub(crate) struct Teller {
    pub(crate) store: Store,
    pub(crate) journal: PathBuf,
    pub(crate) events: std::sync::mpsc::Sender<Event>,
    told: HashMap<String, Instant>,
}

impl Teller {
    pub(crate) fn new(store: &Store, run: &str, events: std::sync::mpsc::Sender<Event>) -> Self {
        Teller {
            store: store.clone(),
            journal: store.run_folder(run).join("events.jsonl"),
            events,
            told: HashMap::new(),
        }
    }

    /// Tells some events. They reach the journal in one step.
    pub(crate) fn tell(&mut self, events: Vec<Event>) {
        let mut lines = String::new();
        for event in &events {
            if let Event::StageProgress { stage, .. } = event {
                let due = self.told.get(stage).is_none_or(|told| told.elapsed() >= PROGRESS);
                if !due {
                    continue;
                }
                self.told.insert(stage.clone(), Instant::now());
            }
            let entry = Entry {
                at: now(),
                event: event.clone(),
            };
            if let Ok(line) = serde_json::to_string(&entry) {
                lines.push_str(&line);
                lines.push('\n');
            }
        }
        if !lines.is_empty() {
            // The journal is a record for people; the run does not depend on it.
            let _ = self.store.disk().append(&self.journal, lines.as_bytes());
        }
        for event in events {
            // Whoever watched may be gone.
            let _ = self.events.send(event);
        }
    }
}

/// Drives the state from worker 0.
pub(crate) struct Scheduler {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) teller: Teller,
}

impl Coordinator for Scheduler {
    fn step(&mut self, reports: Vec<Report>, peers: usize) -> Vec<Command> {
        let (events, commands) = {
            let Ok(mut state) = self.state.lock() else {
                return vec![Command::Stop];
            };
            state.sample();
            // A worker reports the stages of a streaming group from the top, so a stage is published after those it reads.
            for report in reports {
                state.report(report, peers);
            }
            if state.cancel.is_cancelled() && state.errors.is_empty() && !state.done() {
                state
                    .errors
                    .push(Error::interrupted().hint("run the same command again to continue"));
            }
            let broken = match state.keep_going || state.verify {
                // Failed stages are told at the end; anything else that goes wrong ends the run.
                true => state.errors.len() > state.failed || state.cancel.is_cancelled(),
                false => !state.errors.is_empty(),
            };
            let commands = if broken || state.done() {
                vec![Command::Stop]
            } else {
                state.start_ready(peers)
            };
            (std::mem::take(&mut state.pending), commands)
        };
        if !events.is_empty() {
            self.teller.tell(events);
        }
        commands
    }
}
