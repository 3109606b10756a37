//! `sys.why`: a row for every reason that a plan gave for a stage.

use arrow::array::RecordBatch;
use sluice_engine::Result;
use sluice_engine::event::Event;
use sluice_engine::history;
use sluice_engine::key::Reason;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "why",
    about: "every reason of every plan: why a stage ran, with old and new value",
    rows,
};

struct Row {
    run: String,
    pipeline: String,
    stage: String,
    number: u64,
    reason: Reason,
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, wanted)) = asked {
        for run in wanted.runs(view) {
            for entry in history::events(view.store(), &run.run) {
                let Event::StagePlanned { stage, because, .. } = entry.event else {
                    continue;
                };
                for (number, reason) in (0..).zip(because) {
                    rows.push(Row {
                        run: run.run.clone(),
                        pipeline: run.pipeline.clone(),
                        stage: stage.clone(),
                        number,
                        reason,
                    });
                }
            }
        }
    }
    let kind = |row: &Row| Some(serde_json::to_value(&row.reason).ok()?["why"].as_str()?.to_string());
    // A field, a file or a port: whatever the reason is about.
    let subject = |row: &Row| match &row.reason {
        Reason::Config { field, .. } => Some(field.clone()),
        Reason::File { name, .. } => Some(name.clone()),
        Reason::Input { port, .. } => Some(port.clone()),
        Reason::MayChange { stages } => Some(stages.join(", ")),
        _ => None,
    };
    let side = |row: &Row, side: &str| {
        let value = serde_json::to_value(&row.reason).ok()?;
        match &value[side] {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    };
    Ok(Columns::of(&rows)
        .text("run", |row| Some(&row.run))
        .text("pipeline", |row| Some(&row.pipeline))
        .text("stage", |row| Some(&row.stage))
        .count("number", |row| Some(row.number))
        .text("why", kind)
        .text("subject", subject)
        .text("old", |row| side(row, "old"))
        .text("new", |row| side(row, "new"))
        .text("text", |row| Some(row.reason.to_string()))
        .batch())
}
