//! `sluice show STAGE`: what is in an artifact.

use sluice_engine::Error;
use sluice_engine::store::{Store, pretty};
use sluice_engine::table::Table;

use crate::arguments;
use crate::display::{bytes, count, fit, head, say, seconds};
use crate::runs::{newest, unknown_stage};

/// `sluice show STAGE`.
pub fn show(command: &arguments::Show) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let run = newest(&store, command.pipeline.as_deref()).map_err(one)?;
    let records = run.records(&store);
    let (stage, port) = split(&command.stage, records.keys().map(String::as_str));
    let Some(record) = records.get(stage) else {
        let known: Vec<&str> = records.keys().map(String::as_str).collect();
        return Err(vec![unknown_stage(&run.run, stage, &known)]);
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

/// A stage's name and a port: names of instances and of gathered ports hold dots, so a known name goes first.
fn split<'a>(text: &'a str, mut known: impl Iterator<Item = &'a str>) -> (&'a str, Option<&'a str>) {
    if known.any(|name| name == text) {
        return (text, None);
    }
    match text.rsplit_once('.') {
        Some((stage, port)) if !port.contains(']') => (stage, Some(port)),
        _ => (text, None),
    }
}
