//! `sluice pin RUN` and `sluice unpin RUN`: what `gc` must keep.

use sluice_engine::Error;
use sluice_engine::history::{self, RunState};
use sluice_engine::store::Store;

use crate::arguments;
use crate::display::say;
use crate::runs::named;

/// `sluice pin RUN`, or `unpin`.
pub fn pin(command: &arguments::Pin, pinned: bool) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let mut run = named(&store, &command.run).map_err(one)?;
    if run.state_now() == RunState::Running {
        // It writes its record at the end and would forget this.
        let error = Error::user("still-running", format!("run {} is under way", run.run));
        return Err(vec![error.hint("wait for its end; until then gc keeps what it needs")]);
    }
    let word = if pinned { "pinned" } else { "not pinned" };
    if run.pinned == pinned {
        say!("run {} of {} was {word} already", run.run, run.pipeline);
        return Ok(());
    }
    run.pinned = pinned;
    history::write(&store, &run).map_err(one)?;
    say!("run {} of {} is {word} now", run.run, run.pipeline);
    Ok(())
}
