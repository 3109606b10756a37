//! The first page: pipelines, the newest run of each, and how the runs before it ended.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_engine::history::RunState;

use crate::answer::Refused;
use crate::index::Known;
use crate::routes::Asked;
use crate::runs::row;
use crate::server::House;

/// Runs of a pipeline whose state is told.
const STATES: usize = 30;
/// Runs that are told.
const RECENT: usize = 8;

/// `/api/overview`
pub(crate) fn overview(house: &House, _: &Asked) -> Result<Value, Refused> {
    let runs = house.index.runs();
    let mut pipelines: Vec<(&str, Vec<&Arc<Known>>)> = Vec::new();
    for run in &runs {
        let name = run.record().pipeline.as_str();
        match pipelines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, runs)) => runs.push(run),
            None => pipelines.push((name, vec![run])),
        }
    }
    let pipeline = |(name, runs): &(&str, Vec<&Arc<Known>>)| {
        let state = |run: &&Arc<Known>| json!({ "run": run.name(), "state": run.state().name() });
        json!({
            "pipeline": name,
            "runs": runs.len(),
            "states": runs.iter().take(STATES).map(state).collect::<Vec<_>>(),
            "newest": row(house, runs[0]),
        })
    };
    let running = |run: &&Arc<Known>| run.state() == RunState::Running;
    let recent = runs.iter().take(RECENT).map(|run| row(house, run));
    let manifests = house.index.manifests();
    let bytes: u64 = manifests
        .iter()
        .flat_map(|manifest| &manifest.files)
        .map(|file| file.bytes)
        .sum();
    Ok(json!({
        "store": house.store().root().to_string_lossy(),
        "runs": runs.len(),
        "running": runs.iter().filter(running).map(|run| row(house, run)).collect::<Vec<_>>(),
        "artifacts": manifests.len(),
        "bytes": bytes,
        "pipelines": pipelines.iter().map(pipeline).collect::<Vec<_>>(),
        "recent": recent.collect::<Vec<_>>(),
    }))
}
