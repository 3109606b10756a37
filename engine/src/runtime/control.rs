//! The control plane: commands from worker 0 to all workers, reports from all workers to worker 0.
//!
//! Channels of timely keep the order of one sender, so every worker builds the same dataflows in the same order.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::{Operator, source};
use timely::scheduling::Activator;
use timely::worker::Worker;

use super::parcel::{Command, Report};

type Queue<T> = Rc<RefCell<VecDeque<T>>>;

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Message {
    Command(Command),
    Report(Report),
}

/// A worker's end of the control plane.
#[derive(Clone)]
pub(crate) struct Control {
    peers: usize,
    outbox: Queue<(usize, Message)>,
    commands: Queue<Command>,
    reports: Queue<Report>,
    activator: Activator,
}

impl Control {
    /// Builds the control dataflow; every worker calls this first.
    pub(crate) fn new(worker: &mut Worker) -> Control {
        let outbox: Queue<(usize, Message)> = Queue::default();
        let commands: Queue<Command> = Queue::default();
        let reports: Queue<Report> = Queue::default();
        let address = Rc::new(RefCell::new(None));
        let (outgoing, command_inbox, report_inbox) = (outbox.clone(), commands.clone(), reports.clone());
        let seen = address.clone();
        worker.dataflow::<u64, _, _>(move |scope| {
            source(scope, "control", move |capability, info| {
                *seen.borrow_mut() = Some(info.address.clone());
                move |output| {
                    let mut session = output.session(&capability);
                    for message in outgoing.borrow_mut().drain(..) {
                        session.give(message);
                    }
                }
            })
            .container::<Vec<(usize, Message)>>()
            .sink(
                Exchange::new(|message: &(usize, Message)| message.0 as u64),
                "inbox",
                move |(input, _)| {
                    input.for_each(|_, data| {
                        for (_, message) in data.drain(..) {
                            match message {
                                Message::Command(command) => command_inbox.borrow_mut().push_back(command),
                                Message::Report(report) => report_inbox.borrow_mut().push_back(report),
                            }
                        }
                    });
                },
            );
        });
        let address = address.borrow().clone().expect("the source was built");
        Control {
            peers: worker.peers(),
            outbox,
            commands,
            reports,
            activator: worker.activator_for(address),
        }
    }

    /// Sends a command to every worker.
    pub(crate) fn command(&self, command: Command) {
        for worker in 0..self.peers {
            self.outbox
                .borrow_mut()
                .push_back((worker, Message::Command(command.clone())));
        }
        self.activator.activate();
    }

    /// Sends a report to the coordinator.
    pub(crate) fn report(&self, report: Report) {
        self.outbox.borrow_mut().push_back((0, Message::Report(report)));
        self.activator.activate();
    }

    /// The next command.
    pub(crate) fn next_command(&self) -> Option<Command> {
        self.commands.borrow_mut().pop_front()
    }

    /// The next report.
    pub(crate) fn next_report(&self) -> Option<Report> {
        self.reports.borrow_mut().pop_front()
    }
}
