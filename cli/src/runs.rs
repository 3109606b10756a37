//! `sluice runs`; which run a command means, and what is left of it in the store.

use std::collections::BTreeMap;
use std::path::Path;

use sluice_engine::Error;
use sluice_engine::error::did_you_mean;
use sluice_engine::history::{self, RunRecord, last_run, summary};
use sluice_engine::spec::{Overrides, Spec};
use sluice_engine::store::{KeyRecord, Store};

use crate::arguments;
use crate::display::{say, seconds, when};

/// `sluice runs`.
pub fn list(command: &arguments::Runs) -> Result<(), Vec<Error>> {
    let store = Store::existing(&command.store).map_err(|error| vec![error])?;
    let mut all: Vec<RunRecord> = Vec::new();
    for run in store.runs() {
        match history::read(&store, &run) {
            Ok(record) => all.push(record),
            Err(error) => eprintln!("run {run} is left out: {error}"),
        }
    }
    let wanted = |run: &&RunRecord| command.pipeline.as_ref().is_none_or(|name| run.pipeline == *name);
    let chosen: Vec<&RunRecord> = all.iter().filter(wanted).take(command.most).collect();
    if let Some(name) = command
        .pipeline
        .as_ref()
        .filter(|_| chosen.is_empty() && command.most > 0)
    {
        let mut error = Error::user("no-run", format!("the store has no run of pipeline \"{name}\""));
        error.hint = did_you_mean(name, all.iter().map(|run| run.pipeline.as_str()));
        return Err(vec![error]);
    }
    let mut rows: Vec<[String; 9]> = Vec::new();
    let mut json = Vec::new();
    for run in chosen {
        let events = history::events(&store, &run.run);
        let stages = summary(&events);
        let count = |outcome: &str| stages.iter().filter(|(_, stage)| stage.outcome == outcome).count();
        let (ran, reused, failed) = (
            count("ran") + count("agrees"),
            count("reused"),
            count("failed") + count("differs"),
        );
        let state = run.state_now();
        let lasted = match state {
            history::RunState::Running => history::now().saturating_sub(run.started) as f64 / 1000.0,
            // A run that was killed did not write down how long it took.
            _ if run.seconds == 0.0 => {
                let ended = events.last().map_or(run.started, |entry| entry.at);
                ended.saturating_sub(run.started) as f64 / 1000.0
            }
            _ => run.seconds,
        };
        json.push(serde_json::json!({
            "run": run.run, "pipeline": run.pipeline, "state": state.name(), "started": run.started, "seconds": lasted,
            "stages": stages.len(), "ran": ran, "reused": reused, "failed": failed, "pinned": run.pinned,
            "command": run.command,
        }));
        let started = when(run.started);
        let pinned = if run.pinned { "pinned" } else { "" };
        rows.push([
            run.run.clone(),
            run.pipeline.clone(),
            state.name().to_string(),
            started,
            seconds(lasted),
            ran.to_string(),
            reused.to_string(),
            failed.to_string(),
            [pinned, &run.command.join(" ")].join(" ").trim().to_string(),
        ]);
    }
    if command.json {
        say!("{:#}", serde_json::Value::from(json));
        return Ok(());
    }
    let head = [
        "run",
        "pipeline",
        "state",
        "began (UTC)",
        "took",
        "ran",
        "reused",
        "failed",
        "",
    ]
    .map(str::to_string);
    rows.insert(0, head);
    let widths: Vec<usize> = (0..9)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                4..=7 => format!("{cell:>width$}"),
                _ => format!("{cell:width$}"),
            });
        say!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    Ok(())
}

/// The stages that a word means: the one of that name, else the instances of that stage of a sweep.
pub fn instances<'a>(word: &str, stages: &[&'a str]) -> Vec<&'a str> {
    match stages.iter().find(|stage| **stage == word) {
        Some(stage) => vec![stage],
        None => {
            let instance = |stage: &&&str| stage.split_once('[').is_some_and(|(base, _)| base == word);
            stages.iter().filter(instance).copied().collect()
        }
    }
}

/// The newest run of the pipeline in a file or of that name, or of any pipeline.
pub fn newest(store: &Store, pipeline: Option<&str>) -> Result<RunRecord, Error> {
    let none = |what: String| {
        Error::user(
            "no-run",
            format!("the store \"{}\" has no run{what}", store.root().display()),
        )
        .hint("\"sluice run PIPELINE\" makes one")
    };
    match pipeline {
        Some(file) => {
            let text = match std::fs::read_to_string(file) {
                Ok(text) => text,
                Err(error) => {
                    return last_run(store, file).ok_or_else(|| {
                        Error::io("read", Path::new(file), &error)
                            .hint("no run in the store is of a pipeline with that name either")
                    });
                }
            };
            let name = match Spec::parse(file, &text, &Overrides::default()) {
                Ok(spec) => spec.pipeline,
                Err(mut problems) => return Err(problems.remove(0)),
            };
            last_run(store, &name).ok_or_else(|| none(format!(" of pipeline \"{name}\"")))
        }
        None => history::runs(store).next().ok_or_else(|| none(String::new())),
    }
}

/// The run that a name means; see [`history::find`].
pub fn named(store: &Store, name: &str) -> Result<RunRecord, Error> {
    history::find(store, name)
}

/// Records by stage, of the stages of a run whose artifacts are in the store.
pub fn records_of(store: &Store, run: &RunRecord) -> BTreeMap<String, KeyRecord> {
    let record = |(stage, key): (&String, &String)| Some((stage.clone(), store.record(key)?));
    run.keys.iter().filter_map(record).collect()
}

/// There is no such stage; `known` says which there are.
pub fn unknown_stage(run: &str, stage: &str, known: &[&str]) -> Error {
    let mut error = Error::user("unknown-stage", format!("run {run} has no stage \"{stage}\""))
        .detail(format!("it has: {}", known.join(", ")));
    error.hint = did_you_mean(stage, known.iter().copied());
    error
}
