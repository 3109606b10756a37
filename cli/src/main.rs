//! `sluice`: the only place that prints, exits or reads the environment.

mod arguments;
mod check;
mod compare;
mod diff;
mod display;
#[cfg(test)]
mod docs;
mod fetch;
mod gc;
mod logs;
mod meter;
mod ops;
mod page;
mod panics;
mod picture;
mod pin;
mod progress;
mod remote;
mod report;
mod run;
mod runs;
mod schema;
mod serve;
mod shell;
mod show;
mod signals;
mod sql;
mod store;
mod tensorboard;
mod tfevents;
mod typeset;
mod ui;
mod verify;
mod why;

use clap::Parser;
use sluice_engine::Error;

use arguments::{Arguments, Command};

fn main() {
    panics::leave_out_lost_peers();
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Command::Check(pipeline) => check::check(pipeline),
        Command::Plan(command) => check::plan(command),
        Command::Run(command) => run::run(command),
        Command::Ops(command) => ops::ops(command),
        Command::Show(command) => show::show(command),
        Command::Sql(command) => sql::sql(command),
        Command::Serve(command) => serve::serve(command),
        Command::Ui(command) => ui::ui(command),
        Command::Tensorboard(command) => tensorboard::tensorboard(command),
        Command::Report(command) => report::report(command),
        Command::Compare(command) => compare::compare(command),
        Command::Why(command) => why::why(command),
        Command::Diff(command) => diff::diff(command),
        Command::Runs(command) => runs::list(command),
        Command::Logs(command) => logs::logs(command),
        Command::Pin(command) => pin::pin(command, true),
        Command::Unpin(command) => pin::pin(command, false),
        Command::Gc(command) => gc::gc(command),
        Command::Store(command) => store::store(command),
        Command::Verify(command) => verify::verify(command),
        Command::Push(command) => remote::push(command),
        Command::Pull(command) => remote::pull(command),
        Command::Fetch(command) => fetch::fetch(command),
    };
    if let Err(errors) = result {
        std::process::exit(fail(&errors));
    }
}

/// Prints all errors and returns the exit code of the gravest.
fn fail(errors: &[Error]) -> i32 {
    for error in errors {
        eprintln!("{error}");
    }
    if errors.len() > 1 {
        eprintln!("{} problems", errors.len());
    }
    errors.iter().map(|error| error.kind.exit_code()).max().unwrap_or(101)
}
