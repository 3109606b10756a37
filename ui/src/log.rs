//! What happened in a run, line by line, from the end of its journal backwards, and what is told since.

use serde_json::{Value, json};
use sluice_engine::event::{Entry, Event};
use sluice_engine::history;

use crate::answer::Refused;
use crate::routes::Asked;
use crate::server::House;

/// Bytes of the journal that an answer is about.
const PIECE: u64 = 64 << 10;

/// `/api/runs/{run}/log?from=` or `?before=`: from a byte of the journal on, or what stands before it. Without either, the end
/// of it.
pub(crate) fn log(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let run = house.index.run(&asked.names[0])?;
    let length = history::stamp(house.store(), run.name()).journal;
    let (from, most) = match (asked.get("from"), asked.number("before", length)?) {
        (Some(_), _) => (asked.number("from", 0)?, PIECE),
        (None, before) => {
            let before = before.min(length);
            let from = before.saturating_sub(PIECE);
            (from, before - from)
        }
    };
    let piece = history::window(house.store(), run.name(), from, most.max(1));
    let line = |entry: &Entry| {
        json!({
            "at": entry.at,
            "stage": entry.event.stage(),
            "kind": kind(&entry.event),
            "lines": (house.describe)(&entry.event),
        })
    };
    Ok(json!({
        "run": run.name(),
        "state": run.state().name(),
        "from": piece.from,
        "to": piece.to,
        "more": piece.to < length,
        "lines": piece.entries.iter().map(line).collect::<Vec<_>>(),
    }))
}

/// What a line is, for its colour and for those who do not want progress.
fn kind(event: &Event) -> &'static str {
    match event {
        Event::StageProgress { .. } => "progress",
        Event::StagePlanned { .. } => "plan",
        Event::StageFailed { .. } | Event::StageBlocked { .. } => "bad",
        Event::StageVerified { agrees, .. } if !agrees => "bad",
        Event::RunFinished { ok, .. } if !ok => "bad",
        Event::StageFinished { .. } | Event::RunFinished { .. } => "good",
        _ => "plain",
    }
}
