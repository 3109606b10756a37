//! `sluice store verify`: every artifact and key against its digest.

use std::io::{IsTerminal, Write};

use sluice_engine::inspect::{Inspection, inspect};
use sluice_engine::store::Store;
use sluice_engine::{Error, Result};

use crate::arguments::{self, StoreCommand};
use crate::display::{bytes, count, say};

/// `sluice store verify`.
pub fn store(command: &arguments::Store) -> Result<(), Vec<Error>> {
    let StoreCommand::Verify(command) = &command.command;
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let terminal = std::io::stderr().is_terminal();
    let told = |done: usize, all: usize| {
        if terminal && done.is_multiple_of(16) {
            // Whoever watches may be gone; the look goes on.
            let _ = write!(std::io::stderr(), "\r{done} of {all} artifacts");
        }
    };
    let found = inspect(&store, command.quarantine, told);
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let found = found.map_err(one)?;
    match command.json {
        true => {
            let text =
                serde_json::to_string_pretty(&found).map_err(|error| vec![Error::internal(error.to_string())])?;
            say!("{text}");
        }
        false => print(&found),
    }
    if found.is_sound() {
        return Ok(());
    }
    let number = found.damaged.len() + found.bad_keys.len();
    let error = Error::data(
        "damaged-store",
        format!("{number} of the store's artifacts and keys are damaged"),
    );
    Err(vec![match command.quarantine {
        true => error.hint("they were moved away; run the pipelines again, and what is missing is made anew"),
        false => error.hint("--quarantine moves them away, so that the next run makes them anew"),
    }])
}

fn print(found: &Inspection) {
    for (what, damages) in [("artifact", &found.damaged), ("key", &found.bad_keys)] {
        for damage in damages {
            let stage = damage
                .stage
                .as_ref()
                .map(|stage| format!(" (stage {stage})"))
                .unwrap_or_default();
            say!("damaged {what} {}{stage}: {}", damage.name, damage.what);
        }
    }
    say!(
        "{} artifacts ({}), {} keys: {} damaged artifacts, {} damaged keys, {} artifacts without key, {} keys without artifacts",
        count(found.objects as u64),
        bytes(found.bytes),
        count(found.keys as u64),
        found.damaged.len(),
        found.bad_keys.len(),
        found.without_key.len(),
        found.without_objects.len()
    );
}
