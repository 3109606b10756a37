//! `sluice diff RUN RUN`: what differs between two runs.

use sluice_engine::Error;
use sluice_engine::difference::{PortDifference, RunDifference, between};
use sluice_engine::key::Reason;
use sluice_engine::store::Store;

use crate::arguments;
use crate::display::{count, figure, say};
use crate::runs::named;

/// Values printed of a table; `--json` has all.
const VALUES: usize = 20;

/// `sluice diff RUN RUN`.
pub fn diff(command: &arguments::Diff) -> Result<(), Vec<Error>> {
    let store = Store::existing(&command.store).map_err(|error| vec![error])?;
    let (old, new) = match (named(&store, &command.old), named(&store, &command.new)) {
        (Ok(old), Ok(new)) => (old, new),
        (old, new) => return Err([old.err(), new.err()].into_iter().flatten().collect()),
    };
    let difference = between(&store, &old, &new);
    if command.json {
        let text =
            serde_json::to_string_pretty(&difference).map_err(|error| vec![Error::internal(error.to_string())])?;
        say!("{text}");
    } else {
        print(&difference);
    }
    Ok(())
}

fn print(difference: &RunDifference) {
    say!("{} -> {}", difference.old, difference.new);
    if let Some((old, new)) = &difference.pipeline {
        say!("pipeline {old} -> {new}");
    }
    if let Some((old, new)) = difference.seed {
        say!("seed {old} -> {new}");
    }
    for (run, stages) in [
        (&difference.old, &difference.only_old),
        (&difference.new, &difference.only_new),
    ] {
        if !stages.is_empty() {
            say!("only in {run}: {}", stages.join(", "));
        }
    }
    for stage in &difference.stages {
        let because: Vec<String> = stage.because.iter().map(Reason::to_string).collect();
        let because = match because.is_empty() {
            true => "the record of a key is gone".to_string(),
            false => because.join("; "),
        };
        say!("\n{}: {because}", stage.stage);
        say!("  key {} -> {}", short(&stage.keys.0), short(&stage.keys.1));
        if stage.outputs.is_empty() {
            say!("  made the same");
        }
        stage.outputs.iter().for_each(port);
    }
    let lines = [
        (difference.equal, "equal"),
        (difference.stages.len(), "with another key"),
        (difference.only_old.len() + difference.only_new.len(), "only in one"),
    ];
    let lines: Vec<String> = lines.iter().map(|(number, what)| format!("{number} {what}")).collect();
    say!("\nstages: {}", lines.join(", "));
}

fn port(port: &PortDifference) {
    let show = |rows: Option<u64>| rows.map_or("none".to_string(), count);
    let rows = match port.rows {
        (Some(old), Some(new)) if old == new => format!("{} rows", count(old)),
        (old, new) => format!("rows {} -> {}", show(old), show(new)),
    };
    say!("  {}: {rows}", port.port);
    port.columns_gone
        .iter()
        .for_each(|column| say!("    column gone: {column}"));
    port.columns_new
        .iter()
        .for_each(|column| say!("    column new:  {column}"));
    let Some(values) = &port.values else { return };
    let width = |text: fn(&sluice_engine::difference::ChangedValue) -> usize| {
        values.changed.iter().take(VALUES).map(text).max().unwrap_or(0)
    };
    let (rows, columns) = (
        width(|value| value.row.chars().count()),
        width(|value| value.column.len()),
    );
    for value in values.changed.iter().take(VALUES) {
        let show = |value: Option<f64>| value.map_or("null".to_string(), figure);
        let change = match (value.old, value.new) {
            (Some(old), Some(new)) => format!("  ({}{})", if new > old { "+" } else { "" }, figure(new - old)),
            _ => String::new(),
        };
        say!(
            "    {:rows$}  {:columns$}  {} -> {}{change}",
            value.row,
            value.column,
            show(value.old),
            show(value.new)
        );
    }
    if values.changed.len() > VALUES {
        say!(
            "    ... and {} values more (--json has all)",
            values.changed.len() - VALUES
        );
    }
    if values.rows_gone + values.rows_new > 0 {
        say!(
            "    {} rows only before, {} only after",
            values.rows_gone,
            values.rows_new
        );
    }
}

fn short(key: &str) -> &str {
    &key[..key.len().min(12)]
}
