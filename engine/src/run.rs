//! Plans and runs a pipeline over a store, and keeps the record of the run.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::event::{Event, Watch};
use crate::graph::{Graph, Stage};
use crate::history::{self, RunRecord, RunState, last_run, now};
use crate::journal::Teller;
use crate::key::Preimage;
use crate::operator::Cancel;
use crate::plan::{Action, Cost, Memory, Plan, Selection, plan};
use crate::process::Process;
use crate::runtime::{Coordinator, Job, Resources, execute};
use crate::scheduler::{Scheduler, State};
use crate::slots::Machine;
use crate::store::{KeyRecord, Store};

/// How to run.
pub struct Options {
    /// Threads, hosts, memory.
    pub resources: Resources,
    /// What stages that run once may take, of every process.
    pub machine: Machine,
    /// Where relative data paths start.
    pub data_root: PathBuf,
    /// Whether stages that do not depend on a failed one go on.
    pub keep_going: bool,
    /// Whether stages run only to be compared with their artifacts; see [`check`].
    pub verify: bool,
    /// How long a run that shows no sign of life keeps its leases.
    pub lease: Duration,
    /// Time between two checkpoints of a long stage.
    pub checkpoint: Duration,
    /// What the command line changed or chose, for the record.
    pub command: Vec<String>,
    /// The text of the pipeline, for the record.
    pub source: String,
    /// Set to stop the run.
    pub cancel: Cancel,
}

impl Options {
    /// The usual way to run on so many threads of this process.
    pub fn new(workers: usize, data_root: &Path) -> Options {
        Options {
            resources: Resources {
                workers,
                hosts: None,
                memory: 2 << 30,
            },
            machine: Machine {
                jobs: workers.max(1),
                cpus: std::thread::available_parallelism()
                    .map_or(1, std::num::NonZero::get)
                    .max(workers),
                memory: 0,
                gpus: Vec::new(),
            },
            data_root: data_root.to_path_buf(),
            keep_going: false,
            verify: false,
            lease: Duration::from_secs(20),
            checkpoint: Duration::from_secs(60),
            command: Vec::new(),
            source: String::new(),
            cancel: Cancel::default(),
        }
    }
}

/// What a run left.
#[derive(Clone)]
pub struct Outcome {
    /// Name of the run.
    pub run: String,
    /// The checked pipeline.
    pub graph: Arc<Graph>,
    /// Record by stage.
    pub records: BTreeMap<String, KeyRecord>,
    /// Stages that ran.
    pub ran: usize,
    /// Stages that were reused.
    pub reused: usize,
}

impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mut text = f.debug_struct("Outcome");
        text.field("run", &self.run)
            .field("ran", &self.ran)
            .field("reused", &self.reused);
        text.finish_non_exhaustive()
    }
}

/// Plans a pipeline over a store.
pub fn plan_over(graph: &Graph, store: &Store, data_root: &Path, selection: &Selection) -> Result<Plan, Vec<Error>> {
    let mut files: Vec<PathBuf> = graph
        .stages
        .iter()
        .flat_map(|stage| stage.bound.files.clone())
        .collect();
    files.sort_unstable();
    files.dedup();
    let memory = StoreMemory {
        store,
        data_root,
        digests: store.file_digests(&files).map_err(|error| vec![error])?,
        last: last_run(store, &graph.pipeline).map(|run| run.last).unwrap_or_default(),
        costs: OnceCell::new(),
    };
    plan(graph, &memory, selection)
}

/// Turns a plan into one that runs the given stages again, only to compare what they make with their artifacts. Stages
/// without artifacts are left out.
pub fn check(plan: &Plan, stages: &[usize]) -> Plan {
    let mut plan = plan.clone();
    for (index, planned) in plan.stages.iter_mut().enumerate() {
        planned.action = match planned.action {
            Action::Reuse if stages.contains(&index) => Action::Run,
            Action::Reuse => Action::Reuse,
            _ => Action::Skip,
        };
        planned.forced = planned.action == Action::Run;
    }
    plan
}

/// Runs a plan. Processes other than the first of `--hosts` only lend their workers: they get no outcome.
pub fn run(
    graph: Graph,
    plan: &Plan,
    store: &Store,
    options: &Options,
    watch: &mut dyn Watch,
) -> Result<Option<Outcome>, Vec<Error>> {
    let one = |error: Error| vec![error];
    let graph = Arc::new(graph);
    let job = Job {
        graph: graph.clone(),
        store: store.clone(),
        data_root: options.data_root.clone(),
        checkpoint: options.checkpoint,
        cancel: options.cancel.clone(),
    };
    let hosts = options.resources.hosts.is_some();
    if options
        .resources
        .hosts
        .as_ref()
        .is_some_and(|(_, process)| *process > 0)
    {
        let lent = std::panic::AssertUnwindSafe(|| execute(job, &options.resources, None));
        let executed = std::panic::catch_unwind(lent).unwrap_or_else(|_| Err(lost(true)));
        return executed.map(|()| None).map_err(one);
    }
    history::close(store, &store.discard_abandoned());
    let run = run_name();
    let start = Instant::now();
    // Before the record, so that no record is left without somebody to close it.
    let sign = Sign::hang(store, &run);
    let mut record = match begin(&graph, plan, store, options, &run) {
        Ok(record) => record,
        Err(error) => {
            // It never began. What cannot be removed here is closed by the next run.
            let folder = store.run_folder(&run);
            if store.disk().list(&folder).is_err() || store.disk().remove_folder(&folder).is_ok() {
                sign.take_down();
            }
            return Err(one(error));
        }
    };
    // Events leave the workers through a channel, so that a slow terminal cannot hold up the dataflow.
    let (sender, receiver) = std::sync::mpsc::channel();
    let mut teller = Teller::new(store, &run, sender);
    let mut first = vec![Event::RunStarted {
        run: run.clone(),
        pipeline: graph.pipeline.clone(),
        stages: graph.stages.len(),
        plan: record.plan.clone(),
    }];
    first.extend(plan.stages.iter().map(|planned| Event::StagePlanned {
        stage: planned.stage.clone(),
        action: planned.action,
        because: planned.because.clone(),
    }));
    let mut state = State::new(&graph, plan, store, options, &run);
    first.append(&mut state.pending);
    teller.tell(first);
    let idle = state.done() || state.broken();
    let state = Arc::new(Mutex::new(state));
    let executed = if idle && !hosts {
        // Nothing to run: no workers are started.
        drop(teller);
        receiver.iter().for_each(|event| watch.event(&event));
        Ok(())
    } else {
        let scheduler: Box<dyn Coordinator> = Box::new(Scheduler {
            state: state.clone(),
            teller,
        });
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| execute(job, &options.resources, Some(scheduler)));
            receiver.iter().for_each(|event| watch.event(&event));
            thread.join().unwrap_or_else(|_| Err(lost(hosts)))
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
    let records = state.records();
    record.seconds = start.elapsed().as_secs_f64();
    // A failed stage cancels the others, so that the sign alone does not tell who wanted the end.
    record.state = match state.errors.first() {
        None => RunState::Done,
        Some(error) if error.kind == Kind::Interrupted => RunState::Interrupted,
        Some(_) => RunState::Failed,
    };
    record.keys = records
        .iter()
        .map(|(stage, record)| (stage.clone(), record.key.clone()))
        .collect();
    record.last.extend(record.keys.clone());
    record.errors = state.errors.clone();
    let reused = records.len().saturating_sub(state.ran);
    let finished = Event::RunFinished {
        run: run.clone(),
        ran: state.ran,
        reused,
        failed: state.failed,
        blocked: state.blocked,
        seconds: record.seconds,
        ok: state.errors.is_empty(),
    };
    let (sender, last) = std::sync::mpsc::channel();
    Teller::new(store, &run, sender).tell(vec![finished]);
    last.iter().for_each(|event| watch.event(&event));
    let written = history::write(store, &record).and_then(|()| history::write_tables(store, &run));
    match written {
        Ok(()) => sign.take_down(),
        // The sign stays, so that the next run closes this one.
        Err(error) => state.errors.push(error),
    }
    if !state.errors.is_empty() {
        return Err(std::mem::take(&mut state.errors));
    }
    Ok(Some(Outcome {
        run,
        graph,
        records,
        ran: state.ran,
        reused,
    }))
}

/// The folder of a run, with its record and its pipeline.
fn begin(graph: &Graph, plan: &Plan, store: &Store, options: &Options, run: &str) -> Result<RunRecord> {
    let folder = store.run_folder(run);
    let made = store.disk().create_folder(&folder);
    made.map_err(|error| Error::io("create", &folder, &error))?;
    let source = folder.join("pipeline.yaml");
    let written = store.disk().write(&source, options.source.as_bytes());
    written.map_err(|error| Error::io("write", &source, &error))?;
    let mut last = last_run(store, &graph.pipeline).map(|run| run.last).unwrap_or_default();
    let names: std::collections::HashSet<&str> = graph.stages.iter().map(|stage| stage.name.as_str()).collect();
    last.retain(|stage, _| names.contains(stage.as_str()));
    let record = RunRecord {
        run: run.to_string(),
        pipeline: graph.pipeline.clone(),
        state: RunState::Running,
        started: now(),
        seconds: 0.0,
        seed: graph.seed,
        command: options.command.clone(),
        plan: plan.fingerprint(),
        process: Process::here(),
        pinned: false,
        keys: BTreeMap::new(),
        last,
        errors: Vec::new(),
    };
    history::write(store, &record)?;
    Ok(record)
}

/// A sign in `tmp/` that the record of a run is not final: the next run closes it when the process is gone.
struct Sign<'a> {
    store: &'a Store,
    path: PathBuf,
}

impl<'a> Sign<'a> {
    fn hang(store: &'a Store, run: &str) -> Sign<'a> {
        let path = store.attempt_folder(&Store::attempt_name(&format!("{}{run}", Store::RUN)));
        // Without it nothing is lost but a word in the history.
        let _ = store.disk().write(&path, &[]);
        Sign { store, path }
    }

    fn take_down(self) {
        let _ = self.store.disk().remove(&self.path);
    }
}

struct StoreMemory<'a> {
    store: &'a Store,
    data_root: &'a Path,
    digests: BTreeMap<PathBuf, String>,
    last: BTreeMap<String, String>,
    /// Records of the last run, read when a stage that never ran asks what its kind costs.
    costs: OnceCell<Vec<(String, KeyRecord)>>,
}

impl Memory for StoreMemory<'_> {
    fn record(&self, key: &str) -> Option<KeyRecord> {
        self.store.record(key)
    }

    fn known(&self, key: &str) -> Option<KeyRecord> {
        self.store.known(key)
    }

    fn has_static(&self, preimage: &Preimage) -> bool {
        self.store.has_static(preimage)
    }

    fn last(&self, stage: &str) -> Option<KeyRecord> {
        self.store.known(self.last.get(stage)?)
    }

    fn cost_of_kind(&self, base: &str, operator: &str) -> Option<Cost> {
        let records = self.costs.get_or_init(|| {
            let known = self
                .last
                .iter()
                .filter_map(|(stage, key)| Some((stage.clone(), self.store.known(key)?)));
            known.collect()
        });
        let mean = |chosen: Vec<&KeyRecord>| {
            let count = chosen.len() as f64;
            (count > 0.0).then(|| Cost {
                seconds: chosen.iter().map(|record| record.seconds).sum::<f64>() / count,
                bytes: (chosen.iter().map(|record| record.bytes as f64).sum::<f64>() / count) as u64,
                own: false,
            })
        };
        let instance = |stage: &str| stage.split('[').next() == Some(base);
        let instances = records
            .iter()
            .filter(|(stage, _)| instance(stage))
            .map(|(_, record)| record);
        let kind = records
            .iter()
            .map(|(_, record)| record)
            .filter(|record| record.preimage.operator == operator);
        mean(instances.collect()).or_else(|| mean(kind.collect()))
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

/// Timely ends with a panic in its communication threads when another process goes away.
fn lost(hosts: bool) -> Error {
    match hosts {
        true => Error::device("lost-process", "another process of the run was lost")
            .hint("what was published is safe; start all processes again to continue"),
        false => Error::internal("the runtime panicked; the lines above say where"),
    }
}

/// A name that sorts by time: `20261122-131501-482-7`.
fn run_name() -> String {
    let now = now();
    let (days, seconds) = (now / 86_400_000, now / 1000 % 86_400);
    let (year, month, day) = civil(days as i64);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}-{:03}-{}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        now % 1000,
        std::process::id()
    )
}

/// Days since 1970 to a date (Howard Hinnant, "chrono-compatible low-level date algorithms").
pub fn civil(days: i64) -> (i64, i64, i64) {
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
