//! `sluice gc`: what of the store no newest or pinned run needs.

use std::collections::BTreeMap;

use sluice_engine::Error;
use sluice_engine::collect::{Garbage, Wish, garbage, remove};
use sluice_engine::store::Store;

use crate::arguments;
use crate::display::{bytes, count, say};

/// `sluice gc`.
pub fn gc(command: &arguments::Gc) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let wish = Wish {
        budget: command.budget,
        forget: command.forget,
    };
    let found = garbage(&store, &wish).map_err(one)?;
    if command.yes {
        remove(&store, &found).map_err(one)?;
    }
    if command.json {
        let mut json = serde_json::to_value(&found).map_err(|error| vec![Error::internal(error.to_string())])?;
        json["removed"] = command.yes.into();
        say!("{json:#}");
    } else {
        print(&found, command);
    }
    Ok(())
}

fn print(found: &Garbage, command: &arguments::Gc) {
    let mut stages: BTreeMap<(String, String), (usize, u64, bool)> = BTreeMap::new();
    for item in &found.objects {
        let pipeline = item.pipeline.clone().unwrap_or_else(|| "(no run)".to_string());
        let stage = item.stage.clone().unwrap_or_else(|| "(no key)".to_string());
        let sum = stages.entry((pipeline, stage)).or_default();
        *sum = (sum.0 + 1, sum.1 + item.bytes, sum.2 | item.live);
    }
    let wide = |text: fn(&(String, String)) -> usize| stages.keys().map(text).max().unwrap_or(0);
    let (first, second) = (wide(|key| key.0.chars().count()), wide(|key| key.1.chars().count()));
    for ((pipeline, stage), (number, size, live)) in &stages {
        let live = if *live { "  (for the budget)" } else { "" };
        say!(
            "{pipeline:first$}  {stage:second$}  {:>10}  in {}{live}",
            bytes(*size),
            some(*number, "artifact")
        );
    }
    let (done, size) = match command.yes {
        true => ("removed", bytes(found.bytes)),
        false => ("would remove", bytes(found.bytes)),
    };
    let checkpoints = match found.checkpoints.len() {
        0 => String::new(),
        number => format!(" and {}", some(number, "checkpoint")),
    };
    let forgotten = match found.forget {
        true if command.yes => format!(", {} forgotten", some(found.keys.len(), "key")),
        true => format!(", {} to forget", some(found.keys.len(), "key")),
        false => String::new(),
    };
    say!(
        "{done} {}{checkpoints}, {size} of {}{forgotten}",
        some(found.objects.len(), "artifact"),
        bytes(found.total)
    );
    if !found.running.is_empty() {
        say!("under way, all they may need stays: {}", found.running.join(", "));
    }
    if found.over_budget > 0 {
        say!(
            "still {} over the budget: pinned runs, runs under way and fresh checkpoints stay",
            bytes(found.over_budget)
        );
    }
    if !command.yes && (found.bytes > 0 || found.forget && !found.keys.is_empty()) {
        say!("nothing was removed; --yes does it");
    }
}

fn some(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(number as u64))
}
