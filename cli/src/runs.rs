//! Which run a command means, and what is left of it in the store.

use std::collections::BTreeMap;
use std::path::Path;

use sluice_engine::Error;
use sluice_engine::error::did_you_mean;
use sluice_engine::history::{self, RunRecord, last_run};
use sluice_engine::spec::{Overrides, Spec};
use sluice_engine::store::{KeyRecord, Store};

/// The newest run of the pipeline in a file, or of any pipeline.
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
            let text = std::fs::read_to_string(file).map_err(|error| Error::io("read", Path::new(file), &error))?;
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
