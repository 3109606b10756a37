//! `sluice push` and `sluice pull`: results from one store to another; and stores that read through to a remote one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_engine::disk::Faulty;
use sluice_engine::error::did_you_mean;
use sluice_engine::history::{self, RunRecord};
use sluice_engine::store::{Store, read_json};
use sluice_engine::{Error, Result};
use sluice_remote::{Options, Progress, RemoteStore, VARIABLES};

use crate::arguments;
use crate::display::{bytes, count, say};
use crate::meter::Meter;

/// Keys that are named in a line before it ends in "...".
const NAMED: usize = 3;

/// `sluice push`.
pub fn push(command: &arguments::Push) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let runs = match &command.run {
        _ if command.all => Vec::new(),
        Some(run) => vec![run_of(&store, run).map_err(one)?],
        None => {
            let newest = newest_runs(&store);
            chosen(newest, command.pipeline.as_deref(), &store.root().display().to_string()).map_err(one)?
        }
    };
    let keys = match command.all {
        true => keys_of(&store).map_err(one)?,
        false => keys_in(&runs),
    };
    let remote = open(&command.remote, true).map_err(one)?;
    let mut meter = Meter::new();
    let pushed = remote
        .push(&store, &keys, &mut |now| meter.tell(|| line("pushed", now)))
        .map_err(one)?;
    drop(meter);
    let runs = match command.all {
        true => every_run(&store),
        false => runs,
    };
    let runs: Vec<String> = runs.into_iter().map(|run| run.run).collect();
    remote.push_runs(&store, &runs).map_err(one)?;
    say!(
        "pushed to {}: {} in {}, {}; {} were there",
        remote.name(),
        some(pushed.keys, "key"),
        some(pushed.files, "file"),
        bytes(pushed.bytes),
        count(pushed.there as u64)
    );
    if !pushed.kept.is_empty() {
        eprintln!(
            "{} there with other results; kept theirs: {}",
            match pushed.kept.len() {
                1 => "1 key exists".to_string(),
                more => format!("{} keys exist", count(more as u64)),
            },
            list(&pushed.kept)
        );
    }
    if !pushed.absent.is_empty() {
        eprintln!(
            "{} of those runs no longer in this store, not pushed: {}",
            some(pushed.absent.len(), "key"),
            list(&pushed.absent)
        );
    }
    Ok(())
}

/// How far a transfer is.
fn line(verb: &str, now: &Progress) -> String {
    let (done, keys, files) = (count(now.done as u64), some(now.keys, "key"), some(now.files, "file"));
    format!("{verb} {done} of {keys}, {files}, {}", bytes(now.bytes))
}

/// `sluice pull`.
pub fn pull(command: &arguments::Pull) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let remote = open(&command.remote, false).map_err(one)?;
    let store = Store::open(&command.store).map_err(one)?;
    store.discard_abandoned();
    let runs = match (command.all, command.key.is_empty()) {
        (true, _) => {
            let mut runs = remote.runs().map_err(one)?;
            runs.retain(|run| !store.run_folder(run).exists());
            remote.run_records(&runs).map_err(one)?
        }
        (false, false) => Vec::new(),
        (false, true) => {
            let name = command.pipeline.as_deref();
            let mut newest = remote.newest_runs(name).map_err(one)?;
            if newest.is_empty() && name.is_some() {
                // What it could have been.
                newest = remote.newest_runs(None).map_err(one)?;
            }
            chosen(newest, name, remote.name()).map_err(one)?
        }
    };
    let keys = match (command.all, command.key.is_empty()) {
        (true, _) => remote.keys().map_err(one)?,
        (false, false) => command.key.clone(),
        (false, true) => keys_in(&runs),
    };
    let mut meter = Meter::new();
    let pulled = remote.pull(&store, &keys, &mut |now| meter.tell(|| line("pulled", now)))?;
    drop(meter);
    if !command.key.is_empty() && !pulled.absent.is_empty() {
        let unknown = pulled.absent.iter().map(|key| {
            Error::user("unknown-key", format!("\"{}\" has no key \"{key}\"", remote.name()))
                .hint("\"sluice pull REMOTE -p PIPELINE\" finds the keys of a pipeline by itself")
        });
        return Err(unknown.collect());
    }
    for run in &runs {
        remote.pull_run(&store, run).map_err(one)?;
    }
    say!(
        "pulled from {}: {} in {}, {}; {} were here",
        remote.name(),
        some(pulled.keys, "key"),
        some(pulled.files, "file"),
        bytes(pulled.bytes),
        count(pulled.there as u64)
    );
    if !pulled.absent.is_empty() {
        eprintln!(
            "{} of those runs not in {}: {}",
            some(pulled.absent.len(), "key"),
            remote.name(),
            list(&pulled.absent)
        );
    }
    Ok(())
}

/// The store of a pipeline, which asks `--remote` for what it lacks.
pub fn store_of(pipeline: &arguments::Pipeline) -> Result<Store> {
    let store = match std::env::var("SLUICE_FAULT") {
        // For tests of what a crash or a full disk leaves: "kill@17" and the like, see the engine's `disk`.
        Ok(fault) => {
            let fault = fault
                .parse()
                .map_err(|message: String| Error::user("bad-fault", message))?;
            Store::open_on(&pipeline.store, Arc::new(Faulty::new(fault)))?
        }
        Err(_) => Store::open(&pipeline.store)?,
    };
    match &pipeline.remote {
        Some(url) => Ok(store.with_remote(Arc::new(open(url, false)?))),
        None => Ok(store),
    }
}

fn open(url: &str, create: bool) -> Result<RemoteStore> {
    let set = |name: &str| Some((name.to_string(), std::env::var(name).ok()?));
    let options = Options {
        variables: VARIABLES.into_iter().filter_map(set).collect(),
        create,
    };
    RemoteStore::open(url, &options)
}

fn every_run(store: &Store) -> Vec<RunRecord> {
    let record = |run: String| read_json(&store.run_folder(&run).join("run.json")).ok();
    store.runs().into_iter().filter_map(record).collect()
}

/// The newest run of every pipeline.
fn newest_runs(store: &Store) -> Vec<RunRecord> {
    let mut newest: BTreeMap<String, RunRecord> = BTreeMap::new();
    for run in every_run(store) {
        newest.entry(run.pipeline.clone()).or_insert(run);
    }
    newest.into_values().collect()
}

/// Of the newest runs that of a pipeline, or all; there must be one.
fn chosen(newest: Vec<RunRecord>, pipeline: Option<&str>, place: &str) -> Result<Vec<RunRecord>> {
    let Some(name) = pipeline else {
        if newest.is_empty() {
            return Err(Error::user("no-run", format!("the store \"{place}\" has no run"))
                .hint("\"sluice run PIPELINE\" makes one; --all takes what has no run"));
        }
        return Ok(newest);
    };
    let names: Vec<String> = newest.iter().map(|run| run.pipeline.clone()).collect();
    let found: Vec<RunRecord> = newest.into_iter().filter(|run| run.pipeline == name).collect();
    if found.is_empty() {
        let mut error = Error::user(
            "no-run",
            format!("the store \"{place}\" has no run of pipeline \"{name}\""),
        );
        if !names.is_empty() {
            error = error.detail(format!("it has runs of: {}", names.join(", ")));
        }
        error.hint = did_you_mean(name, names.iter().map(String::as_str))
            .or_else(|| Some("-p wants the name under \"pipeline:\", not the file".to_string()));
        return Err(error);
    }
    Ok(found)
}

/// The run that a name means; see [`history::find`].
fn run_of(store: &Store, run: &str) -> Result<RunRecord> {
    history::find(store, run).map_err(|unknown| {
        if unknown.code != "unknown-run" {
            return unknown;
        }
        let place = store.root().display();
        let message = format!("the store \"{place}\" has no finished run \"{run}\"");
        let mut error = Error::user("no-run", message).detail(unknown.message);
        error.hint = match store.runs().first() {
            Some(newest) => Some(format!("the newest is \"{newest}\"")),
            None => Some("\"sluice run PIPELINE\" makes one".to_string()),
        };
        error
    })
}

/// The keys of runs, each once.
fn keys_in(runs: &[RunRecord]) -> Vec<String> {
    let keys: BTreeSet<&String> = runs.iter().flat_map(|run| run.keys.values()).collect();
    keys.into_iter().cloned().collect()
}

/// All keys of a store.
fn keys_of(store: &Store) -> Result<Vec<String>> {
    Ok(store.keys())
}

/// `1 key`, `2 keys`.
fn some(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{} {what}s", count(number as u64)),
    }
}

fn list(keys: &[String]) -> String {
    let more = if keys.len() > NAMED { ", ..." } else { "" };
    format!("{}{more}", keys[..keys.len().min(NAMED)].join(", "))
}
