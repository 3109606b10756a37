//! `sluice logs RUN [STAGE]`: what happened in a run, line by line.

use sluice_engine::Error;
use sluice_engine::cause::what;
use sluice_engine::event::{Entry, Event};
use sluice_engine::history;
use sluice_engine::key::Reason;
use sluice_engine::store::Store;

use crate::arguments;
use crate::display::{bytes, count, figure, say, seconds, when};
use crate::runs::{instances, named, unknown_stage};

/// `sluice logs RUN [STAGE]`.
pub fn logs(command: &arguments::Logs) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let run = named(&store, &command.run).map_err(one)?;
    let events = history::events(&store, &run.run);
    let mut known: Vec<&str> = Vec::new();
    for stage in events.iter().filter_map(|entry| entry.event.stage()) {
        if !known.contains(&stage) {
            known.push(stage);
        }
    }
    let chosen = command.stage.as_ref().map(|stage| instances(stage, &known));
    if let (Some(stage), Some([])) = (&command.stage, chosen.as_deref()) {
        return Err(vec![unknown_stage(&run.run, stage, &known)]);
    }
    let wanted = |entry: &&Entry| match (&chosen, entry.event.stage()) {
        (None, _) => true,
        (Some(chosen), Some(stage)) => chosen.contains(&stage),
        (Some(_), None) => false,
    };
    for entry in events.iter().filter(wanted) {
        let at = format!("{}.{:03}", when(entry.at), entry.at % 1000);
        for line in describe(&entry.event) {
            match entry.event.stage() {
                Some(stage) => say!("{at}  {stage:<16} {line}"),
                None => say!("{at}  {line}"),
            }
        }
    }
    if chosen.is_none() {
        // What ended the run and is no failure of a stage.
        let told = |error: &&Error| {
            let of_stage = |entry: &Entry| matches!(&entry.event, Event::StageFailed { error: told, .. } if told.code == error.code && told.message == error.message);
            !events.iter().any(of_stage)
        };
        run.errors.iter().filter(told).for_each(|error| say!("{error}"));
        if run.state_now() == history::RunState::Killed {
            say!("the run was killed; the same command goes on from what was published");
        }
    }
    Ok(())
}

/// An event in words, a line or more.
pub fn describe(event: &Event) -> Vec<String> {
    let line = match event {
        Event::RunStarted {
            run,
            pipeline,
            stages,
            plan,
        } => format!("run {run} of {pipeline} begins: {stages} stages, plan {plan}"),
        Event::StagePlanned { action, because, .. } => {
            let because: Vec<String> = because.iter().map(Reason::to_string).collect();
            let colon = if because.is_empty() { "" } else { ": " };
            format!("planned: {}{colon}{}", what(*action), because.join("; "))
        }
        Event::StageReused { rows, cut_off, key, .. } => {
            let how = if *cut_off { ", its inputs came out equal" } else { "" };
            format!(
                "reused{how}: {} rows, key {}",
                count(rows.values().sum()),
                &key[..key.len().min(12)]
            )
        }
        Event::StageWaiting { holder, .. } => format!("waits: {holder} works on it"),
        Event::StageStarted { operator, gpus, .. } => {
            let ids: Vec<String> = gpus.iter().map(usize::to_string).collect();
            let gpus = if ids.is_empty() {
                String::new()
            } else {
                format!(" on devices {}", ids.join(","))
            };
            format!("started: {operator}{gpus}")
        }
        Event::StageProgress { progress, .. } => {
            let of = progress
                .total
                .map(|total| format!(" of {}", count(total)))
                .unwrap_or_default();
            let figures: String = progress
                .figures
                .iter()
                .map(|(name, value)| format!(", {name} {}", figure(*value)))
                .collect();
            format!("{}{of} {}{figures}", count(progress.done), progress.unit)
        }
        Event::StageFinished {
            key,
            rows,
            bytes: size,
            seconds: cost,
            usage,
            notes,
            ..
        } => {
            let ports: Vec<String> = rows
                .iter()
                .map(|(port, rows)| format!("{port} {}", count(*rows)))
                .collect();
            let mut lines = vec![format!(
                "done in {}: rows {}; {}; key {}",
                seconds(*cost),
                ports.join(", "),
                bytes(*size),
                &key[..key.len().min(12)]
            )];
            let energy = usage
                .energy
                .map(|joules| format!(", {joules:.0} J"))
                .unwrap_or_default();
            lines.push(format!(
                "used {} of processors, at most {} of memory{energy}",
                seconds(usage.cpu_seconds),
                bytes(usage.peak_memory)
            ));
            lines.extend(notes.iter().map(|(name, value)| format!("note {name}: {value}")));
            return lines;
        }
        Event::StageVerified { agrees, outputs, .. } => {
            let outputs: Vec<String> = outputs.iter().map(|(port, how)| format!("{port}: {how}")).collect();
            format!("{}: {}", if *agrees { "agrees" } else { "DIFFERS" }, outputs.join("; "))
        }
        Event::StageLost { .. } => "was taken over while this process was stopped".to_string(),
        Event::StageFailed { error, .. } => {
            let text = format!("failed: {error}");
            return text.lines().map(str::to_string).collect();
        }
        Event::StageBlocked { failed, .. } => format!("not run: {failed} failed"),
        Event::RunFinished {
            ran,
            reused,
            failed,
            blocked,
            seconds: cost,
            ok,
            ..
        } => format!(
            "run {}: {ran} ran, {reused} reused, {failed} failed, {blocked} not run because of that, {}",
            if *ok { "done" } else { "not finished" },
            seconds(*cost)
        ),
    };
    vec![line]
}
