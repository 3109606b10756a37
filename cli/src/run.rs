//! `sluice run`: plan, run, print the tables under `show:`, check `expect:`.

use sluice_engine::Error;
use sluice_engine::expect;
use sluice_engine::operator::Cancel;
use sluice_engine::run::{Options, plan_over, run as execute};
use sluice_engine::runtime::Resources;

use crate::arguments;
use crate::check::{known_stages, load};
use crate::display::{head, say};
use crate::progress::watch;
use crate::remote::store_of;

/// Rows printed of a table under `show:`.
const SHOW_ROWS: usize = 100;

/// `sluice run`.
pub fn run(command: &arguments::Run) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let checked = load(&command.pipeline)?;
    known_stages(&checked.graph, &command.force)?;
    let store = store_of(&command.pipeline).map_err(one)?;
    let plan = plan_over(&checked.graph, &store, &checked.data_root, &command.force).map_err(one)?;
    let cancel = Cancel::default();
    let handler = cancel.clone();
    // A second Ctrl-C does not wait.
    let installed = ctrlc::set_handler(move || {
        if handler.is_cancelled() {
            std::process::exit(130);
        }
        handler.cancel();
    });
    installed.map_err(|error| vec![Error::device("signal", format!("cannot handle Ctrl-C: {error}"))])?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let options = Options {
        resources: Resources {
            workers: command.workers.map_or(cores, usize::from),
            hosts: hosts(command)?,
            memory: command.memory,
        },
        data_root: checked.data_root.clone(),
        forced: command.force.clone(),
        cancel,
    };
    let show = checked.graph.show.clone();
    let stages: Vec<String> = checked.graph.stages.iter().map(|stage| stage.name.clone()).collect();
    let mut watch = watch(command.quiet, command.json);
    let outcome = execute(checked.graph, &plan, &store, &options, watch.as_mut())?;
    let Some(outcome) = outcome else { return Ok(()) };
    // Under --json whoever reads parses every line.
    for (stage, port) in show.iter().filter(|_| !command.json) {
        let digest = &outcome.records[&stages[*stage]].outputs[port];
        let text = store
            .table(digest)
            .and_then(|table| head(&table, SHOW_ROWS))
            .map_err(one)?;
        say!("\n{}\n{text}", stages[*stage]);
    }
    // Expectations are of the pipeline as it is written, not of what the command line made of it.
    let pipeline = &command.pipeline;
    if !(pipeline.set.is_empty() && pipeline.params.is_empty()) {
        if !checked.spec.expect.is_empty() && !command.quiet {
            eprintln!("expectations are not checked: --set or --param changes the pipeline");
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
