//! `sys.runs`: every run of the store, newest first.

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "runs",
    about: "every run: pipeline, state, time, seed, what the command line changed",
    rows,
};

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let runs = asked.map_or_else(Vec::new, |(view, wanted)| wanted.runs(view));
    Ok(Columns::of(&runs)
        .text("run", |run| Some(&run.run))
        .text("pipeline", |run| Some(&run.pipeline))
        .text("state", |run| Some(run.state_now().name()))
        .time("started", |run| Some(run.started))
        .number("seconds", |run| Some(run.seconds))
        .count("seed", |run| Some(run.seed))
        .count("stages", |run| Some(run.keys.len() as u64))
        .text("command", |run| Some(run.command.join(" ")))
        .text("plan", |run| Some(&run.plan))
        .text("host", |run| Some(&run.process.host))
        .count("pid", |run| Some(u64::from(run.process.pid)))
        .flag("pinned", |run| Some(run.pinned))
        .text("error", |run| run.errors.first().map(|error| &error.message))
        .batch())
}
