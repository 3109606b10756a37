//! `sluice show STAGE`: what is in an artifact.

use sluice_engine::Error;
use sluice_engine::error::did_you_mean;
use sluice_engine::run::{RunRecord, last_run};
use sluice_engine::spec::{Overrides, Spec};
use sluice_engine::store::{Store, pretty, read_json};
use sluice_engine::table::Table;

use crate::arguments;
use crate::display::{bytes, count, fit, head, say, seconds};

/// `sluice show STAGE`.
pub fn show(command: &arguments::Show) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let run = find(command, &store).map_err(one)?;
    let (stage, port) = match command.stage.split_once('.') {
        Some((stage, port)) => (stage, Some(port)),
        None => (command.stage.as_str(), None),
    };
    let Some(record) = run.records.get(stage) else {
        let mut error = Error::user("unknown-stage", format!("run {} has no stage \"{stage}\"", run.run)).detail(
            format!("it has: {}", run.records.keys().cloned().collect::<Vec<_>>().join(", ")),
        );
        error.hint = did_you_mean(stage, run.records.keys().map(String::as_str));
        return Err(vec![error]);
    };
    let mut chosen: Vec<&String> = record
        .outputs
        .keys()
        .filter(|name| port.is_none_or(|port| port == name.as_str()))
        .collect();
    // The main port first.
    chosen.sort_by_key(|name| name.as_str() != sluice_engine::operator::OUT);
    if chosen.is_empty() {
        let names = record.outputs.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(vec![
            Error::user(
                "unknown-port",
                format!("stage \"{stage}\" has no output \"{}\"", port.unwrap_or_default()),
            )
            .detail(format!("it has: {names}")),
        ]);
    }
    for port in chosen {
        let digest = &record.outputs[port];
        let manifest = store.manifest(digest).map_err(one)?;
        if command.manifest {
            say!("{}", pretty(&manifest).map_err(one)?);
            continue;
        }
        let size = manifest.files.iter().map(|file| file.bytes).sum();
        say!(
            "{stage}.{port}: {} rows, {} in {} files, made by {} in {} (run {})",
            count(manifest.rows),
            bytes(size),
            manifest.files.len(),
            record.preimage.operator,
            seconds(record.seconds),
            record.run
        );
        say!("  {}", store.object(digest).display());
        let table = store.table(digest).map_err(one)?;
        if let Table::Folder(_) = table {
            say!("  {}:", manifest.layout);
            for file in &manifest.files {
                say!("    {}  {}", file.name, bytes(file.bytes));
            }
            continue;
        }
        for column in &manifest.schema {
            let text = |key: &str| column[key].as_str().unwrap_or_default().to_string();
            let null = if column["nullable"].as_bool().unwrap_or(false) {
                ", may be null"
            } else {
                ""
            };
            say!("  {}: {}{null}", text("name"), text("type"));
        }
        say!("{}\n", fit(&head(&table, command.rows).map_err(one)?, 160));
    }
    Ok(())
}

fn find(command: &arguments::Show, store: &Store) -> Result<RunRecord, Error> {
    let none = |what: String| {
        Error::user(
            "no-run",
            format!("the store \"{}\" has no run{what}", store.root().display()),
        )
        .hint("\"sluice run PIPELINE\" makes one")
    };
    match &command.pipeline {
        Some(file) => {
            let text =
                std::fs::read_to_string(file).map_err(|error| Error::io("read", std::path::Path::new(file), &error))?;
            let name = match Spec::parse(file, &text, &Overrides::default()) {
                Ok(spec) => spec.pipeline,
                Err(mut problems) => return Err(problems.remove(0)),
            };
            last_run(store, &name).ok_or_else(|| none(format!(" of pipeline \"{name}\"")))
        }
        None => store
            .runs()
            .into_iter()
            .find_map(|run| read_json(&store.run_folder(&run).join("run.json")).ok())
            .ok_or_else(|| none(String::new())),
    }
}
