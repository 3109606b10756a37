//! `sys.stages`: what became of every stage in every run.

use arrow::array::RecordBatch;
use sluice_engine::Result;
use sluice_engine::history::{self, StageSummary};
use sluice_engine::key::Reason;
use sluice_engine::spec::Reference;
use sluice_engine::yaml::Span;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "stages",
    about: "every stage of every run: what was planned and why, what became of it, what it cost",
    rows,
};

struct Row {
    run: String,
    pipeline: String,
    stage: String,
    summary: StageSummary,
    operator: Option<String>,
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, wanted)) = asked {
        let named = wanted.columns.contains("operator");
        for run in wanted.runs(view) {
            for (stage, summary) in history::summary(&history::events(view.store(), &run.run)) {
                let record = summary
                    .key
                    .as_ref()
                    .filter(|_| named)
                    .and_then(|key| view.store().known(key));
                rows.push(Row {
                    run: run.run.clone(),
                    pipeline: run.pipeline.clone(),
                    stage,
                    summary,
                    operator: record.map(|record| record.preimage.operator),
                });
            }
        }
    }
    let base = |row: &Row| {
        let reference = Reference::parse(&row.stage, Span::default()).ok();
        reference
            .filter(|reference| !reference.select.gathers())
            .map_or(row.stage.clone(), |found| found.stage)
    };
    let word = |row: &Row| {
        serde_json::to_value(row.summary.planned?)
            .ok()?
            .as_str()
            .map(str::to_string)
    };
    let because = |row: &Row| {
        let lines: Vec<String> = row.summary.because.iter().map(Reason::to_string).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    };
    Ok(Columns::of(&rows)
        .text("run", |row| Some(&row.run))
        .text("pipeline", |row| Some(&row.pipeline))
        .text("stage", |row| Some(&row.stage))
        .text("base", |row| Some(base(row)))
        .text("operator", |row| row.operator.as_ref())
        .text("planned", word)
        .text("because", because)
        .text("outcome", |row| Some(row.summary.outcome))
        .text("key", |row| row.summary.key.as_ref())
        .count("rows", |row| row.summary.rows)
        .count("bytes", |row| row.summary.bytes)
        .number("seconds", |row| row.summary.seconds)
        .number("cpu_seconds", |row| Some(row.summary.usage.as_ref()?.cpu_seconds))
        .count("peak_memory_bytes", |row| Some(row.summary.usage.as_ref()?.peak_memory))
        .number("energy_joules", |row| row.summary.usage.as_ref()?.energy)
        .time("started", |row| row.summary.started)
        .time("ended", |row| row.summary.ended)
        .text("error", |row| row.summary.error.as_ref())
        .batch())
}
