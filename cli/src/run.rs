//! `sluice run`: plan, run, print the tables under `show:`, check `expect:`.

use std::time::Duration;

use sluice_engine::Error;
use sluice_engine::expect;
use sluice_engine::history;
use sluice_engine::run::{Options, run as execute};
use sluice_engine::runtime::Resources;
use sluice_engine::slots::Machine;
use sluice_engine::spec::{Overrides, Spec};
use sluice_engine::store::Store;
use sluice_engine::table::Table;
use sluice_operators::report;

use crate::arguments;
use crate::check::{load, planned, preview, within};
use crate::display::{head, say};
use crate::progress::watch;
use crate::remote::store_of;
use crate::signals::cancel_on_ctrl_c;
use crate::tensorboard::plain;

/// Rows printed of a table under `show:`.
const SHOW_ROWS: usize = 100;

/// `sluice run`.
pub fn run(command: &arguments::Run) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let checked = load(&command.pipeline)?;
    let store = store_of(&command.pipeline).map_err(one)?;
    let plan = planned(&checked, &store, &command.choice)?;
    within(&plan, command.choice.max_cost)?;
    if let Some(shown) = command.plan.as_ref().filter(|shown| **shown != plan.fingerprint()) {
        let message = format!("the plan is {} now, not {shown}", plan.fingerprint());
        return Err(vec![
            Error::user("plan-changed", message).hint("look at \"sluice plan\" again"),
        ]);
    }
    if !command.quiet
        && !command.json
        && let Some(text) = preview(&checked.graph, &plan)
    {
        eprintln!("{text}");
    }
    let cancel = cancel_on_ctrl_c()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = command.workers.map_or(cores, usize::from);
    let options = Options {
        resources: Resources {
            workers,
            hosts: hosts(command)?,
            memory: command.memory,
        },
        machine: Machine {
            jobs: command.jobs.map_or(workers, usize::from),
            cpus: command.cpus.map_or(cores.max(workers), usize::from),
            memory: command.slots_memory.unwrap_or(0) as u64,
            gpus: command.gpus.clone().unwrap_or_else(devices),
        },
        keep_going: command.keep_going,
        lease: Duration::from_secs_f64(command.lease),
        checkpoint: Duration::from_secs_f64(command.checkpoint_every),
        command: changes(command),
        source: checked.spec.sources[0].text.clone(),
        cancel,
        ..Options::new(workers, &checked.data_root)
    };
    let show = checked.graph.show.clone();
    let stages: Vec<String> = checked.graph.stages.iter().map(|stage| stage.name.clone()).collect();
    let mut watch = watch(command.quiet, command.json);
    let outcome = execute(checked.graph, &plan, &store, &options, watch.as_mut())?;
    let Some(outcome) = outcome else { return Ok(()) };
    // Under --json whoever reads parses every line.
    for (stage, port) in show.iter().filter(|_| !command.json) {
        // What was left out has nothing to show.
        let Some(digest) = outcome.records.get(&stages[*stage]).map(|record| &record.outputs[port]) else {
            continue;
        };
        let text = shown(&store, &outcome.run, &stages[*stage], digest).map_err(one)?;
        say!("\n{}\n{text}", stages[*stage]);
    }
    // Expectations are of the pipeline as it is written, not of what the command line made of it.
    let written = &checked.spec.sources[0];
    let as_written = Spec::parse(&written.name, &written.text, &Overrides::default());
    if !as_written.is_ok_and(|spec| spec.says_the_same(&checked.spec)) {
        if !checked.spec.expect.is_empty() && !command.quiet {
            eprintln!("expectations are not checked: --set or --param changes the pipeline");
        }
        return Ok(());
    }
    let choice = &command.choice;
    if !(choice.until.is_empty() && choice.from.is_empty() && choice.only.is_empty()) {
        if !checked.spec.expect.is_empty() && !command.quiet {
            eprintln!("expectations are not checked: only a part of the pipeline was run");
        }
        return Ok(());
    }
    let failures = expect::check(&checked.spec, &outcome, &store);
    if failures.is_empty() {
        if !checked.spec.expect.is_empty() && !command.quiet {
            eprintln!("all {} expectations hold", checked.spec.expect.len());
        }
        Ok(())
    } else {
        Err(failures)
    }
}

/// What is shown of an artifact: the first rows of a table, where a folder is, or where a report was written with what this
/// run knows of it.
fn shown(store: &Store, run: &str, stage: &str, digest: &str) -> Result<String, Error> {
    let manifest = store.manifest(digest)?;
    if manifest.layout == report::LAYOUT {
        let record = history::read(store, run)?;
        let page = crate::report::write(store, &record, stage, &store.run_folder(run).join(plain(stage)))?;
        return Ok(format!("{}\n", page.display()));
    }
    match store.table(digest)? {
        Table::Folder(folder) => Ok(format!("{}\n", folder.display())),
        table => head(&table, SHOW_ROWS),
    }
}

/// Ids of the NVIDIA devices of this machine.
fn devices() -> Vec<usize> {
    let entries = std::fs::read_dir("/dev").into_iter().flatten().flatten();
    let id = |name: std::ffi::OsString| name.to_str()?.strip_prefix("nvidia")?.parse().ok();
    let mut ids: Vec<usize> = entries.filter_map(|entry| id(entry.file_name())).collect();
    ids.sort_unstable();
    ids
}

/// What the command line changed or chose, as given.
fn changes(command: &arguments::Run) -> Vec<String> {
    let choice = &command.choice;
    let lists = [
        ("set", &command.pipeline.set),
        ("param", &command.pipeline.params),
        ("force", &choice.force),
        ("until", &choice.until),
        ("from", &choice.from),
        ("only", &choice.only),
        ("accept", &choice.accept),
    ];
    let given = lists
        .into_iter()
        .flat_map(|(flag, values)| values.iter().map(move |value| format!("--{flag}={value}")));
    given.collect()
}

fn hosts(command: &arguments::Run) -> Result<Option<(Vec<String>, usize)>, Vec<Error>> {
    let (Some(file), Some(process)) = (&command.hosts, command.process) else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(file).map_err(|error| vec![Error::io("read", file, &error)])?;
    let addresses: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_string)
        .collect();
    if process >= addresses.len() {
        let message = format!(
            "--process {process}, but \"{}\" lists {} hosts",
            file.display(),
            addresses.len()
        );
        return Err(vec![Error::user("bad-hosts", message).hint("processes count from 0")]);
    }
    Ok(Some((addresses, process)))
}
