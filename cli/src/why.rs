//! `sluice why STAGE`: what changed, followed upstream to the roots.

use sluice_engine::Error;
use sluice_engine::cause::{Cause, Made, OfPlan, OfRuns, Root, made, previous};
use sluice_engine::history::{self, summary};
use sluice_engine::key::Reason;
use sluice_engine::plan::Action;
use sluice_engine::store::Store;

use crate::arguments;
use crate::check::{load, planned};
use crate::display::{say, seconds, when};
use crate::remote::store_of;
use crate::runs::{instances, named, newest, unknown_stage};

/// `sluice why STAGE`.
pub fn why(command: &arguments::Why) -> Result<(), Vec<Error>> {
    match &command.pipeline {
        Some(file) => of_plan(command, file),
        None => of_run(command).map_err(|error| vec![error]),
    }
}

/// What a run would do.
fn of_plan(command: &arguments::Why, file: &std::path::Path) -> Result<(), Vec<Error>> {
    let pipeline = arguments::Pipeline {
        file: file.to_path_buf(),
        set: command.set.clone(),
        params: command.params.clone(),
        data: command.data.clone(),
        store: command.store.clone(),
        remote: None,
    };
    let checked = load(&pipeline)?;
    let chosen = checked.graph.find(&command.stage).map_err(|error| vec![error])?;
    let store = store_of(&pipeline).map_err(|error| vec![error])?;
    let plan = planned(&checked, &store, &arguments::Choice::default())?;
    let mut causes = OfPlan::new(&checked.graph, &plan, &store);
    let mut answers = Vec::new();
    for index in chosen {
        let stage = &plan.stages[index];
        let record = stage
            .key
            .as_ref()
            .filter(|_| stage.action == Action::Reuse)
            .and_then(|key| store.record(key));
        // A stage that was told above another one is told again only where it was asked for alone.
        let Some(cause) = causes.tell(index) else { continue };
        answers.push((cause, record.map(|record| made(&store, &record))));
    }
    if command.json {
        let answers = answers.iter().map(|(cause, made)| answer(cause, made.as_ref()));
        let json = serde_json::json!({ "pipeline": plan.pipeline, "stages": answers.collect::<Vec<_>>() });
        say!("{json:#}");
        return Ok(());
    }
    for (cause, made) in &answers {
        tell(cause, 0);
        if let Some(made) = made {
            say!("  {}", maker(made));
        }
        roots(cause);
    }
    Ok(())
}

/// What a run did.
fn of_run(command: &arguments::Why) -> Result<(), Error> {
    let store = Store::existing(&command.store)?;
    let run = match &command.run {
        Some(name) => named(&store, name)?,
        None => newest(&store, None)?,
    };
    let events = summary(&history::events(&store, &run.run));
    let mut known: Vec<&str> = events.iter().map(|(stage, _)| stage.as_str()).collect();
    known.extend(
        run.keys
            .keys()
            .map(String::as_str)
            .filter(|stage| !events.iter().any(|(name, _)| name == stage)),
    );
    let chosen = instances(&command.stage, &known);
    if chosen.is_empty() {
        return Err(unknown_stage(&run.run, &command.stage, &known));
    }
    let mut answers = Vec::new();
    for stage in chosen {
        let then = previous(&store, &run, stage);
        let event = events.iter().find(|(name, _)| name == stage).map(|(_, event)| event);
        let record = run.keys.get(stage).and_then(|key| store.known(key));
        let made = record
            .filter(|record| record.run != run.run)
            .map(|record| made(&store, &record));
        let Some(cause) = OfRuns::new(&store, &run, then.as_ref()).tell(stage) else {
            continue;
        };
        if command.json {
            let mut answer = answer(&cause, made.as_ref());
            answer["compared_with"] = then.map(|then| then.run).into();
            answers.push(answer);
            continue;
        }
        let outcome = event.map_or("done", |event| event.outcome).replace('_', " ");
        let cost = event
            .and_then(|event| event.seconds)
            .map(|cost| format!(" in {}", seconds(cost)));
        let against = match &then {
            Some(then) => format!("; its key was another one in run {}, {}", then.run, when(then.started)),
            None => "; no earlier run of the pipeline has another key of it".to_string(),
        };
        say!(
            "run {} of {}, {}: {stage} {outcome}{}{against}",
            run.run,
            run.pipeline,
            when(run.started),
            cost.unwrap_or_default()
        );
        tell(&cause, 1);
        if let Some(error) = event.and_then(|event| event.error.as_ref()) {
            say!("  {error}; \"sluice logs {} {stage}\" has all of it", run.run);
        }
        if let Some(made) = &made {
            say!("  {}", maker(made));
        }
        roots(&cause);
    }
    if command.json {
        let json = serde_json::json!({ "run": run.run, "pipeline": run.pipeline, "stages": answers });
        say!("{json:#}");
    }
    Ok(())
}

fn answer(cause: &Cause, made: Option<&Made>) -> serde_json::Value {
    serde_json::json!({ "cause": cause, "roots": cause.roots(), "made_by": made })
}

/// `stage  run: codebook_size 32 -> 64`, and below it what it follows from.
fn tell(cause: &Cause, depth: usize) {
    let lines: Vec<String> = cause
        .because
        .iter()
        .map(|reason| match reason {
            Reason::Input { port, .. } => match cause.inputs.get(port) {
                Some(stage) => format!("{reason} ({stage})"),
                None => reason.to_string(),
            },
            reason => reason.to_string(),
        })
        .collect();
    let because = match lines.is_empty() {
        true => String::new(),
        false => format!(": {}", lines.join("; ")),
    };
    say!(
        "{}{}  {}{because}",
        "  ".repeat(depth),
        cause.stage,
        cause.what.replace('_', " ")
    );
    cause.from.iter().for_each(|above| tell(above, depth + 1));
}

/// What it comes down to, where that is not the first line.
fn roots(cause: &Cause) {
    if cause.from.is_empty() {
        return;
    }
    for Root { stage, because } in cause.roots() {
        let because: Vec<String> = because.iter().map(Reason::to_string).collect();
        say!("root: {stage}: {}", because.join("; "));
    }
}

fn maker(made: &Made) -> String {
    let began = made
        .started
        .map(|started| format!(" of {}", when(started)))
        .unwrap_or_default();
    let because: Vec<String> = made.because.iter().map(Reason::to_string).collect();
    let because = match because.is_empty() {
        true => String::new(),
        false => format!("; there it ran because: {}", because.join("; ")),
    };
    format!("made by run {}{began} in {}{because}", made.run, seconds(made.seconds))
}
