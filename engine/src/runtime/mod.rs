//! The dataflow runtime: the only room that knows timely.
//!
//! A group of stages that stream into each other is one timely dataflow:
//!
//! ```text
//! source ─> rows | route ─> by | route ─> fixpoint ⟲ | whole ─> write ─┬─> parts on disk
//! (blocks, or parts of a published artifact)                            └─> the next stage of the group
//! ```
//!
//! Worker 0 coordinates: it decides what starts ([`Coordinator`]), tells all workers over the control plane, and
//! gathers their reports. Results do not depend on the number of workers: rows are dealt to a fixed number of logical
//! partitions, parcels carry their place in a canonical order, and every part is written by one worker in that order.

mod buffer;
mod by;
mod control;
#[cfg(test)]
mod data_tests;
mod encodings;
mod fixpoint;
mod parcel;
mod part_file;
mod peers;
mod pen;
mod rows;
mod source;
mod stage;
#[cfg(test)]
mod sweeps;
#[cfg(test)]
mod tests;
mod whole;
mod writer;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::generic::operator::Operator as _;
use timely::dataflow::operators::probe::Handle;
use timely::worker::Worker;

pub(crate) use parcel::{Command, Place, Report, Start};
pub(crate) use part_file::PartFile;

use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::operator::{BLOCKS, Cancel, Checkpoint, Context, Distribution, Earlier};
use crate::store::Store;
use crate::table::{Table, Tables};
use buffer::Budget;
use control::Control;
use source::Parcels;
use stage::StageRun;
use whole::{Call, Threads};

/// Where a run runs.
#[derive(Clone, Debug)]
pub struct Resources {
    /// Worker threads of this process.
    pub workers: usize,
    /// Addresses of all processes, and which of them this one is; none for a single process.
    pub hosts: Option<(Vec<String>, usize)>,
    /// Bytes that rows waiting for their partition may take in memory, over all workers of this process.
    pub memory: usize,
}

/// Decides what runs next. Lives on worker 0 of process 0.
pub(crate) trait Coordinator: Send {
    /// Takes reports and returns commands. Called again and again until it returns [`Command::Stop`].
    fn step(&mut self, reports: Vec<Report>, peers: usize) -> Vec<Command>;
}

/// What every worker needs to know.
#[derive(Clone)]
pub(crate) struct Job {
    pub graph: Arc<Graph>,
    pub store: Store,
    pub data_root: PathBuf,
    pub checkpoint: Duration,
    pub cancel: Cancel,
}

/// Runs workers until the coordinator stops them. Processes other than the first pass no coordinator.
pub(crate) fn execute(job: Job, resources: &Resources, coordinator: Option<Box<dyn Coordinator>>) -> Result<()> {
    let communication = match &resources.hosts {
        None if resources.workers <= 1 => timely::CommunicationConfig::Thread,
        None => timely::CommunicationConfig::Process(resources.workers),
        Some((addresses, process)) => timely::CommunicationConfig::Cluster {
            threads: resources.workers,
            process: *process,
            addresses: addresses.clone(),
            report: false,
            zerocopy: false,
        },
    };
    let config = timely::Config {
        communication,
        worker: timely::WorkerConfig::default(),
    };
    let coordinator = Mutex::new(coordinator);
    let threads = Threads::default();
    let memory = resources.memory / resources.workers.max(1);
    let (worker_job, worker_threads) = (job.clone(), threads.clone());
    let guards = timely::execute(config, move |worker| {
        let mine = if worker.index() == 0 {
            coordinator.lock().ok().and_then(|mut slot| slot.take())
        } else {
            None
        };
        drive(worker, &worker_job, memory, mine, &worker_threads);
    })
    .map_err(|error| {
        Error::device("cluster", format!("cannot start the workers: {error}"))
            .hint("check the addresses in --hosts, and that every process was started")
    })?;
    let mut lost = None;
    for result in guards.join() {
        if let Err(message) = result {
            lost = Some(message);
        }
    }
    // A stopped run leaves no thread behind that still writes into its attempt, if the operator heeds the signal.
    if let Ok(mut threads) = threads.lock() {
        for thread in threads.drain(..) {
            for _ in 0..300 {
                if thread.is_finished() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    match lost {
        None => Ok(()),
        Some(message) => Err(
            Error::device("lost-worker", format!("a worker or process was lost: {message}"))
                .hint("what was published is safe; run again to continue"),
        ),
    }
}

fn drive(worker: &mut Worker, job: &Job, memory: usize, coordinator: Option<Box<dyn Coordinator>>, threads: &Threads) {
    let control = Control::new(worker);
    let budget = Budget::new(memory);
    let mut coordinator = coordinator;
    loop {
        if let Some(coordinator) = &mut coordinator {
            let reports = std::iter::from_fn(|| control.next_report()).collect();
            for command in coordinator.step(reports, worker.peers()) {
                control.command(command);
            }
        }
        while let Some(command) = control.next_command() {
            match command {
                Command::Start(group) => start(worker, job, &group, &control, &budget, threads),
                Command::Stop => {
                    job.cancel.cancel();
                    for dataflow in worker.installed_dataflows() {
                        worker.drop_dataflow(dataflow);
                    }
                    return;
                }
            }
        }
        worker.step_or_park(Some(Duration::from_millis(20)));
    }
}

/// Builds the dataflow of a group of stages.
fn start(worker: &mut Worker, job: &Job, group: &[Start], control: &Control, budget: &Budget, threads: &Threads) {
    worker.dataflow::<u64, _, _>(|scope| {
        // Every consumer shows here how far it is, so that sources do not run ahead of the slowest one.
        let acks: Handle<u64> = Handle::new();
        let mut streams: BTreeMap<usize, Parcels> = BTreeMap::new();
        for start in group {
            let stage = Arc::new(job.graph.stages[start.stage].clone());
            let attempt = job.store.attempt_folder(&start.attempt);
            let rank = start.places.iter().position(|place| place.worker == scope.index());
            let context = Context {
                checkpoint: start.lineage.as_ref().map(|lineage| Checkpoint {
                    folder: job.store.checkpoint_folder(lineage),
                    every: job.checkpoint,
                }),
                earlier: Arc::new(Published {
                    store: job.store.clone(),
                    keys: start.earlier.clone(),
                }),
                gpus: rank.map_or_else(Vec::new, |rank| start.places[rank].gpus.clone()),
                inputs: start.published.clone(),
                ..Context::new(stage.entry.name, stage.seed, &job.data_root, &attempt, &job.cancel)
            };
            let once = stage.bound.distribution == Distribution::Whole;
            let mut broadcast = Tables::new();
            let mut failure = None;
            for edge in stage.inputs.iter().filter(|edge| !stage.streams(&edge.port)) {
                match published(job, start, &edge.port, once) {
                    Ok(table) => broadcast.insert(&edge.port, table),
                    Err(error) => failure = Some(error),
                }
            }
            let run = StageRun::new(start.stage, stage.clone(), context, broadcast, control.clone());
            if let Some(error) = &failure {
                run.fail(error.clone());
            }
            // A streamed input: from a stage of this group, or from the parts of a published artifact.
            let input = |port: &str| -> Option<Parcels> {
                let edge = stage.inputs.iter().find(|edge| edge.port == port)?;
                if start.published.contains_key(port) {
                    let files = run.call(|_| match published(job, start, port, true)? {
                        Table::Parts(_, files) => Ok(files),
                        _ => Err(Error::internal("a streamed input is no table")),
                    });
                    return Some(source::parts(scope, &run, &acks, files.unwrap_or_default()));
                }
                let outputs = &job.graph.stages[edge.stage].bound.outputs;
                let wanted = outputs.iter().position(|(name, _)| *name == edge.output)? as u16;
                Some(filter(streams.get(&edge.stage)?.clone(), wanted))
            };
            let result = match &stage.bound.distribution {
                Distribution::Source => {
                    let blocks = source::blocks(scope, &run, &acks);
                    rows::rows(blocks, &run, BLOCKS, &acks)
                }
                Distribution::Rows(port) => {
                    let stream = input(port).expect("bound inputs are connected");
                    rows::rows(stream, &run, port, &acks)
                }
                Distribution::By(inputs) => {
                    let mut routed = Vec::new();
                    let mut ports = Vec::new();
                    for (port, columns) in inputs {
                        let Some(stream) = input(port) else { continue };
                        let edge = stage
                            .inputs
                            .iter()
                            .find(|edge| edge.port == *port)
                            .expect("it is connected");
                        let shape = job.graph.stages[edge.stage].bound.shape(&edge.output);
                        let schema = shape
                            .and_then(|shape| shape.schema())
                            .expect("bound to a table")
                            .clone();
                        routed.push(by::route(stream, &run, ports.len() as u16, columns.clone()));
                        ports.push((port.clone(), schema));
                    }
                    use timely::dataflow::operators::Concatenate;
                    by::by(scope.concatenate(routed), &run, ports, budget, &acks)
                }
                Distribution::Fixpoint(port, sides) => {
                    let stream = input(port).expect("bound inputs are connected");
                    fixpoint::fixpoint(stream, &run, port, sides.clone(), budget, &acks)
                }
                Distribution::Whole => {
                    let workers: Vec<usize> = start.places.iter().map(|place| place.worker).collect();
                    let line = peers::connect(scope, &run.context.cancel, &workers);
                    let call = rank.map(|_| Call {
                        inputs: run.broadcast.clone(),
                        failure,
                        line,
                    });
                    whole::whole(scope, &run, call, threads)
                }
            };
            let wanted: Vec<usize> = group
                .iter()
                .flat_map(|other| {
                    let reader = &job.graph.stages[other.stage];
                    reader
                        .inputs
                        .iter()
                        .filter(|edge| edge.stage == start.stage && !other.published.contains_key(&edge.port))
                })
                .filter_map(|edge| stage.bound.outputs.iter().position(|(name, _)| *name == edge.output))
                .collect();
            streams.insert(start.stage, writer::write(result, &run, wanted, &acks, threads));
        }
    });
}

/// Earlier results of an operator, from the store.
struct Published {
    store: Store,
    keys: Vec<String>,
}

impl Earlier for Published {
    fn results(&self) -> Box<dyn Iterator<Item = (Tables, Tables)> + '_> {
        // A result that is gone or damaged is none.
        let tables = |digests: &BTreeMap<String, String>| -> Option<Tables> {
            let mut tables = Tables::new();
            for (port, digest) in digests {
                tables.insert(port, self.store.table(digest).ok()?);
            }
            Some(tables)
        };
        Box::new(self.keys.iter().filter_map(move |key| {
            let record = self.store.record(key)?;
            Some((tables(&record.preimage.inputs)?, tables(&record.outputs)?))
        }))
    }
}

/// Only the parcels of one port.
fn filter(stream: Parcels, wanted: u16) -> Parcels {
    stream.unary(Pipeline, "port", move |_, _| {
        move |input, output| {
            input.for_each(|capability, parcels| {
                let mut session = output.session(&capability);
                for parcel in parcels.drain(..).filter(|parcel| parcel.port == wanted) {
                    session.give(parcel);
                }
            });
        }
    })
}

/// A published input: its parts on disk if `lazy`, else its rows in memory.
fn published(job: &Job, start: &Start, port: &str, lazy: bool) -> Result<Table> {
    let digest = start
        .published
        .get(port)
        .ok_or_else(|| Error::internal(format!("input \"{port}\" is not published")))?;
    let table = job.store.table(digest)?;
    match &table {
        Table::Parts(schema, _) if !lazy => {
            Ok(Table::Batches(schema.clone(), table.batches()?.collect::<Result<_>>()?))
        }
        _ => Ok(table),
    }
}
