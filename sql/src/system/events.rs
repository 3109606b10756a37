//! `sys.events`: what happened in every run, event by event; of a run under way up to this moment.

use arrow::array::RecordBatch;
use serde_json::Value;
use sluice_engine::Result;
use sluice_engine::history;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "events",
    about: "every event of every run, in order, with all it says as JSON",
    rows,
};

struct Row {
    run: String,
    pipeline: String,
    number: u64,
    at: u64,
    stage: Option<String>,
    detail: Value,
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, wanted)) = asked {
        for run in wanted.runs(view) {
            for (number, entry) in (0..).zip(history::events(view.store(), &run.run)) {
                rows.push(Row {
                    run: run.run.clone(),
                    pipeline: run.pipeline.clone(),
                    number,
                    at: entry.at,
                    stage: entry.event.stage().map(str::to_string),
                    detail: serde_json::to_value(&entry.event).unwrap_or_default(),
                });
            }
        }
    }
    Ok(Columns::of(&rows)
        .text("run", |row| Some(&row.run))
        .text("pipeline", |row| Some(&row.pipeline))
        .count("number", |row| Some(row.number))
        .time("at", |row| Some(row.at))
        .text("event", |row| row.detail["event"].as_str())
        .text("stage", |row| row.stage.as_ref())
        .text("detail", |row| Some(row.detail.to_string()))
        .batch())
}
