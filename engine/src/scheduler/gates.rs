//! Tests as gates: what reads a tested stage waits for its tests, and never runs if one fails.

use super::{State, Status};
use crate::error::Error;
use crate::event::Event;
use crate::plan::Action;
use crate::text::render;

/// How many of the rows that fail an error quotes.
const QUOTED: usize = 5;

impl State {
    /// Whether every test that a stage waits for is passed, or left out by the user.
    pub(super) fn passed(&self, index: usize) -> bool {
        self.graph.stages[index]
            .after
            .iter()
            .all(|test| match &self.stages[*test] {
                Status::Done(record) => self.graph.stages[*test].failing(&record.rows) == 0 || self.verify,
                Status::Never => self.plan.stages[*test].action == Action::Skip,
                _ => false,
            })
    }

    /// Fails a test that is done and has rows. They stay in the store, so that they can be looked at.
    pub(super) fn test(&mut self, index: usize) {
        let Status::Done(record) = &self.stages[index] else {
            return;
        };
        let failing = self.graph.stages[index].failing(&record.rows);
        if failing == 0 || self.verify {
            return;
        }
        let error = self.failure(index, failing);
        self.pending.push(Event::StageFailed {
            stage: self.graph.stages[index].name.clone(),
            error: error.clone(),
        });
        self.errors.push(error);
        self.failed += 1;
        self.block(index);
    }

    fn failure(&self, index: usize, failing: u64) -> Error {
        let stage = &self.graph.stages[index];
        let of = stage.tests.as_ref().map_or("", |tests| tests.stage.as_str());
        let test = stage.name.strip_prefix(of).unwrap_or(&stage.name);
        let test = test.strip_prefix(':').unwrap_or(test);
        let rows = if failing == 1 { "row" } else { "rows" };
        let message = format!("stage \"{of}\" fails its test \"{test}\": {failing} {rows}");
        let error = Error::data("data-test", message);
        let error = self.quoted(index).into_iter().fold(error, Error::detail);
        error.hint(format!("sluice show \"{}\" prints more of them", stage.name))
    }

    /// The first of the rows that fail, a line each.
    fn quoted(&self, index: usize) -> Vec<String> {
        let port = self.graph.stages[index].bound.outputs.first().map(|(port, _)| port);
        let digest = port.and_then(|port| self.outputs[index].get(port));
        let table = digest.and_then(|digest| self.store.table(digest).ok());
        let first = table.as_ref().and_then(|table| table.batches().ok()?.next()?.ok());
        let text = first.and_then(|batch| render(&batch.slice(0, batch.num_rows().min(QUOTED))).ok());
        text.map_or_else(Vec::new, |text| text.lines().map(str::to_string).collect())
    }
}
