//! `Whole`: the operator is called with everything on a thread of its own, once, or once for each of its peers.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use timely::dataflow::Scope;
use timely::dataflow::operators::generic::operator::source;
use timely::scheduling::SyncActivator;

use super::parcel::Report as Told;
use super::peers::Line;
use super::source::Parcels;
use super::stage::{StageRun, panicked};
use crate::error::{Error, Result};
use crate::operator::{Context, Peers, Progress, Report, Silent};
use crate::table::Tables;

/// Threads of operators that run once, so that a stopped run can wait for them.
pub(crate) type Threads = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// A call of the operator, on the worker that makes it.
pub(crate) struct Call {
    pub inputs: Tables,
    /// Why it cannot be made.
    pub failure: Option<Error>,
    /// The way to its peers, if it has some.
    pub line: Option<Arc<Line>>,
}

enum Message {
    Progress(Progress),
    /// What came of it, unless that is told elsewhere, and the seconds it took.
    Done(Option<Box<Result<Tables>>>, f64),
}

/// Makes the call; its output enters the dataflow as part 0.
pub(crate) fn whole<'scope>(
    scope: Scope<'scope, u64>,
    run: &StageRun,
    call: Option<Call>,
    threads: &Threads,
) -> Parcels<'scope> {
    let run = run.clone();
    let threads = threads.clone();
    source(scope, "whole", move |capability, info| {
        let mut capability = Some(capability);
        let mut receiver = None;
        if let Some(call) = call {
            let activator = scope.worker().sync_activator_for(info.address.to_vec());
            receiver = Some(spawn(&run, call, activator, &threads));
        }
        move |output| {
            let (Some(held), Some(messages)) = (&capability, &receiver) else {
                capability = None;
                return;
            };
            loop {
                match messages.try_recv() {
                    Ok(Message::Progress(progress)) => {
                        run.control.report(Told::Progress {
                            stage: run.index,
                            progress,
                        });
                    }
                    Ok(Message::Done(result, seconds)) => {
                        run.add_busy(seconds);
                        let Some(result) = result else {
                            run.abandon();
                            capability = None;
                            return;
                        };
                        let outputs = run.call(|_| *result);
                        for (seq, parcels) in run.call(|_| chunks(&run, outputs)).into_iter().flatten().enumerate() {
                            let mut session = output.session(held);
                            for mut parcel in parcels {
                                parcel.seq = seq as u32;
                                session.give(parcel);
                            }
                        }
                        capability = None;
                        return;
                    }
                    Err(TryRecvError::Empty) => return,
                    Err(TryRecvError::Disconnected) => {
                        run.fail(Error::internal("the operator's thread went away"));
                        capability = None;
                        return;
                    }
                }
            }
        }
    })
}

/// One parcel per port and batch; ports with fewer batches get empty parcels, so that places have no gaps.
fn chunks(run: &StageRun, outputs: Option<Tables>) -> Result<Vec<Vec<super::parcel::Parcel>>> {
    let Some(outputs) = outputs else { return Ok(Vec::new()) };
    let mut whole = run.parcels(0, 0, &outputs)?;
    let longest = whole.iter().map(|parcel| parcel.batches.len()).max().unwrap_or(0);
    let mut columns: Vec<_> = whole
        .iter_mut()
        .map(|parcel| std::mem::take(&mut parcel.batches).into_iter())
        .collect();
    let mut rounds = Vec::new();
    for _ in 0..longest {
        let round = whole
            .iter()
            .zip(&mut columns)
            .map(|(parcel, batches)| super::parcel::Parcel {
                batches: batches.next().into_iter().collect(),
                ..parcel.clone()
            });
        rounds.push(round.collect());
    }
    Ok(rounds)
}

fn spawn(run: &StageRun, call: Call, activator: SyncActivator, threads: &Threads) -> Receiver<Message> {
    let Call { inputs, failure, line } = call;
    let (sender, receiver) = channel();
    let operator = run.stage.operator.clone();
    let activator = Arc::new(activator);
    let report = Arc::new(Reporter {
        sender: Mutex::new((sender.clone(), None)),
        activator: activator.clone(),
    });
    let mut context = Context {
        report,
        ..run.context.clone()
    };
    if let Some(line) = &line {
        context.peers = line.clone();
        if line.rank() > 0 {
            // What others than the first make, state and tell goes nowhere.
            context.attempt = context.attempt.join(format!("peer-{}", line.rank()));
            context.notes = Arc::default();
            context.report = Arc::new(Silent);
        }
    }
    let own_line = line.clone();
    let thread = std::thread::Builder::new().name(run.stage.name.clone()).spawn(move || {
        let start = Instant::now();
        let work = std::panic::AssertUnwindSafe(|| match failure {
            Some(error) => Err(error),
            None => operator.run(&context, inputs),
        });
        let result = std::panic::catch_unwind(work).unwrap_or_else(|panic| Err(panicked(&*panic)));
        let result = match &line {
            Some(line) => line.end(result),
            None => Some(result),
        };
        // The worker may be gone when the run was stopped; then nobody waits for the result.
        let _ = sender.send(Message::Done(result.map(Box::new), start.elapsed().as_secs_f64()));
        let _ = activator.activate();
    });
    match (thread, threads.lock()) {
        (Ok(thread), Ok(mut threads)) => threads.push(thread),
        (Err(error), _) => {
            let error = Error::device("thread", format!("cannot start a thread: {error}"));
            if let Some(line) = own_line {
                let _ = line.end(Err(error.clone()));
            }
            run.fail(error);
        }
        _ => {}
    }
    receiver
}

struct Reporter {
    sender: Mutex<(Sender<Message>, Option<Instant>)>,
    activator: Arc<SyncActivator>,
}

impl Report for Reporter {
    fn progress(&self, progress: Progress) {
        let Ok(mut sender) = self.sender.lock() else { return };
        let last = progress.total.is_some_and(|total| progress.done >= total);
        if !last && sender.1.is_some_and(|told| told.elapsed().as_millis() < 100) {
            return;
        }
        sender.1 = Some(Instant::now());
        let _ = sender.0.send(Message::Progress(progress));
        let _ = self.activator.activate();
    }
}
