//! Plans and runs a pipeline over a store, and keeps the record of the run.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::{Event, Watch};
use crate::graph::{Graph, Stage};
use crate::key::Preimage;
use crate::operator::Cancel;
use crate::plan::{Memory, Plan, plan};
use crate::runtime::{Coordinator, Job, Resources, execute};
use crate::scheduler::{Scheduler, State};
use crate::store::{KeyRecord, Store, pretty, read_json, write_synced};

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
            thread.join().unwrap_or_else(|_| Err(lost(resources.hosts.is_some())))
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
