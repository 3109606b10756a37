//! The scheduler: starts stages as their inputs are published, publishes what they made, tells what happens.
//!
//! It lives on worker 0 and talks to the runtime in commands and reports; it knows no timely.

mod gates;
mod publish;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::energy::Meter;
use crate::error::Error;
use crate::event::Event;
use crate::graph::Graph;
use crate::journal::Teller;
use crate::key::Preimage;
use crate::operator::{Cancel, Distribution, Notes};
use crate::plan::{Action, Plan, inputs_of};
use crate::process::{cpu_seconds, resident};
use crate::run::Options;
use crate::runtime::{Command, Coordinator, Place, Report, Start};
use crate::slots::{Machine, Slots, Taken};
use crate::store::lease::{Claim, Leases};
use crate::store::{FileEntry, KeyRecord, Store};

/// How often a stage that another run works on is looked at.
const LOOK: Duration = Duration::from_millis(150);

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
    key: String,
    /// Whether the store was asked for its key since it became ready, or since another run worked on it.
    asked: bool,
    /// When another run was found to work on it.
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
    energy: Option<f64>,
    gpus: Vec<usize>,
    /// What the operator stated while it ran.
    notes: Notes,
}

/// Processes with room for a stage, and its devices there.
type Room = Vec<(usize, Vec<usize>)>;

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
    /// Those of them whose files are whole.
    written: BTreeSet<usize>,
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
    meter: Meter,
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
            written: BTreeSet::new(),
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
            meter: Meter::here(),
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
        // After everything that is there was found: what is behind a test that fails may be reused, but nothing of it runs.
        for index in 0..count {
            state.test(index);
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

    /// Whether the run ends here: at the first error, or at one that no stage is to blame for.
    pub(crate) fn broken(&self) -> bool {
        match self.keep_going || self.verify {
            // Failed stages are told at the end; anything else that goes wrong ends the run.
            true => self.errors.len() > self.failed || self.cancel.is_cancelled(),
            false => !self.errors.is_empty(),
        }
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
        if !matches!(self.stages[index], Status::Waiting) || !self.passed(index) {
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
            key: preimage.key(),
            preimage,
            asked: false,
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
            if self.keys.contains_key(&ready.key) {
                continue;
            }
            let forced = self.plan.stages[index].forced;
            let key = ready.key.clone();
            // A stage may wait long for its slots; the store is asked once.
            if !ready.asked
                && !forced
                && let Some(record) = self.store.record(&key)
            {
                self.reuse(index, record, true);
                continue;
            }
            if let Status::Ready(ready) = &mut self.stages[index] {
                ready.asked = true;
            }
            let Some(room) = self.room(index) else {
                continue;
            };
            if !self.claim(index) {
                self.give(index);
                continue;
            }
            // Between the look and the lease another run may have published it.
            if !forced && let Some(record) = self.store.record(&key) {
                self.give(index);
                self.release(index);
                self.reuse(index, record, true);
                continue;
            }
            let Status::Ready(ready) = &self.stages[index] else {
                continue;
            };
            let preimage = ready.preimage.clone();
            let inputs = preimage.inputs.clone();
            let mut group = vec![self.start(index, inputs, Some(&preimage), room)];
            if !self.verify {
                self.extend(&mut group, index + 1);
            }
            let mut places = group.iter().flat_map(|start| &start.places);
            debug_assert!(places.all(|place| place.worker < peers));
            commands.push(Command::Start(group));
        }
        commands
    }

    /// Room for a stage that runs once, in one process; or, if its work is shared, in all that it runs in, which are
    /// the first ones. The others need none.
    fn room(&mut self, index: usize) -> Option<Room> {
        let stage = &self.graph.stages[index];
        if stage.bound.distribution != Distribution::Whole {
            return Some(vec![(0, Vec::new())]);
        }
        let share = self.machine.share(&stage.slots).unwrap_or_else(|_| Slots::default());
        let count = self.taken.len();
        let wanted = stage.bound.peers.min(count);
        let first = match wanted {
            1 => self.next_worker / self.workers % count,
            _ => 0,
        };
        let processes = (0..count).map(|offset| (first + offset) % count);
        let mut room = Room::new();
        for process in processes {
            match self.taken[process].take(index, &share, &self.machine) {
                Some(gpus) => room.push((process, gpus)),
                // One process is as good as another, but all peers have to run at once.
                None if wanted > 1 => break,
                None => {}
            }
            if room.len() == wanted {
                return Some(room);
            }
        }
        self.give(index);
        None
    }

    /// Gives back what a stage took.
    fn give(&mut self, index: usize) {
        self.taken.iter_mut().for_each(|taken| taken.give(index));
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
                ready.asked = false;
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
                || !self.passed(index)
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
                let start = self.start(index, published, None, vec![(0, Vec::new())]);
                group.push(start);
            }
        }
    }

    fn start(
        &mut self,
        index: usize,
        published: BTreeMap<String, String>,
        preimage: Option<&Preimage>,
        room: Room,
    ) -> Start {
        let stage = &self.graph.stages[index];
        let gpus = room.first().map_or_else(Vec::new, |(_, gpus)| gpus.clone());
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
            energy: self.meter.joules(),
            gpus,
            notes: Notes::new(),
        }));
        self.next_worker += 1;
        let place = |(process, gpus): (usize, Vec<usize>)| Place {
            worker: process * self.workers + self.next_worker % self.workers,
            gpus,
        };
        Start {
            stage: index,
            attempt,
            published,
            places: room.into_iter().map(place).collect(),
            lineage,
            earlier,
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
                    self.written.insert(stage);
                    self.conclude_written();
                }
            }
            Report::Failed { stage, error } => self.fail(stage, error),
        }
    }

    /// Concludes the stages that are written. A stage that reads another one while that is being written may be done with
    /// its files first: it waits, because a key wants the digests of its inputs.
    fn conclude_written(&mut self) {
        while let Some(stage) = self.next_written() {
            self.written.remove(&stage);
            let done = match self.verify {
                true => self.compare(stage),
                false => self.publish(stage),
            };
            if let Err(error) = done {
                self.fail(stage, error);
            }
        }
    }

    /// A stage whose files are whole and whose inputs are published.
    fn next_written(&self) -> Option<usize> {
        let known = |stage: &&usize| inputs_of(&self.graph.stages[**stage], |input| &self.outputs[input]).is_some();
        self.written.iter().find(known).copied()
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
        self.block(stage);
    }

    /// What is below a stage that failed will never run.
    pub(super) fn block(&mut self, stage: usize) {
        let name = self.graph.stages[stage].name.clone();
        let mut seen = BTreeSet::new();
        let mut below = self.readers[stage].clone();
        while let Some(index) = below.pop() {
            if matches!(self.stages[index], Status::Never) || !seen.insert(index) {
                continue;
            }
            // What is done stays, but what reads it is below the failed one, too.
            if matches!(self.stages[index], Status::Done(_)) {
                below.extend(&self.readers[index]);
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
        self.written.remove(&index);
        self.ready.remove(&index);
        self.stages[index] = Status::Never;
        self.left -= 1;
    }

    /// A stage runs no longer: its slots and its lease are free.
    fn leave(&mut self, index: usize) {
        if matches!(self.stages[index], Status::Running(_)) {
            self.give(index);
            self.running.remove(&index);
            self.release(index);
        }
    }

    /// Looks at the memory and the energy that are in use, for the stages that run.
    fn sample(&mut self) {
        if self.running.is_empty() || self.sampled.elapsed() < Duration::from_millis(50) {
            return;
        }
        self.sampled = Instant::now();
        let resident = resident();
        self.meter.joules();
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
            let commands = if state.broken() || state.done() {
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
