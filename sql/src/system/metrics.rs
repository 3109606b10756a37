//! `sys.metrics`: figures that stages told while they ran (loss, rows per second) and when they were done, live.

use arrow::array::RecordBatch;
use sluice_engine::Result;
use sluice_engine::event::Event;
use sluice_engine::history;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "metrics",
    about: "figures that stages told while they ran, such as the loss, and at their end; live",
    rows,
};

struct Row {
    run: String,
    pipeline: String,
    stage: String,
    at: u64,
    /// `progress` while it ran, `note` at the end.
    kind: &'static str,
    done: Option<u64>,
    total: Option<u64>,
    unit: Option<String>,
    name: String,
    value: f64,
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, wanted)) = asked {
        for run in wanted.runs(view) {
            for entry in history::events(view.store(), &run.run) {
                let mut add = |stage: &str, kind, done, total, unit: Option<&str>, name: &str, value| {
                    rows.push(Row {
                        run: run.run.clone(),
                        pipeline: run.pipeline.clone(),
                        stage: stage.to_string(),
                        at: entry.at,
                        kind,
                        done,
                        total,
                        unit: unit.map(str::to_string),
                        name: name.to_string(),
                        value,
                    });
                };
                match &entry.event {
                    Event::StageProgress { stage, progress } => {
                        for (name, value) in &progress.figures {
                            let unit = Some(progress.unit.as_str());
                            add(
                                stage,
                                "progress",
                                Some(progress.done),
                                progress.total,
                                unit,
                                name,
                                *value,
                            );
                        }
                    }
                    Event::StageFinished { stage, notes, .. } => {
                        for (name, value) in notes {
                            if let Some(value) = value.as_f64() {
                                add(stage, "note", None, None, None, name, value);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(Columns::of(&rows)
        .text("run", |row| Some(&row.run))
        .text("pipeline", |row| Some(&row.pipeline))
        .text("stage", |row| Some(&row.stage))
        .time("at", |row| Some(row.at))
        .text("kind", |row| Some(row.kind))
        .count("done", |row| row.done)
        .count("total", |row| row.total)
        .text("unit", |row| row.unit.as_ref())
        .text("name", |row| Some(&row.name))
        .number("value", |row| Some(row.value))
        .batch())
}
