//! Which panics are told: all but those by which the network threads end when another process is lost.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use sluice_engine::Error;

/// Where timely's network threads, and whoever waits for them, panic when a connection ends early.
const NETWORK: &str = "timely_communication";

static LOST: AtomicBool = AtomicBool::new(false);

/// Leaves out panics raised in timely's communication; [`or_lost`] says what they mean.
///
/// To go by the name of the thread would not do: operators run on timely's workers, and their panics are ours to see.
pub fn leave_out_lost_peers() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.location().is_some_and(|place| place.file().contains(NETWORK)) {
            LOST.store(true, Ordering::Relaxed);
        } else {
            tell(panic);
        }
    }));
}

/// Runs a pipeline; a panic of its network is the loss of another process, any other panic goes on.
pub fn or_lost<T>(run: impl FnOnce() -> Result<T, Vec<Error>>) -> Result<T, Vec<Error>> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| match LOST.load(Ordering::Relaxed) {
        true => Err(vec![
            Error::device("lost-process", "another process of the run was lost")
                .hint("what was published is safe; start all processes again to continue"),
        ]),
        false => resume_unwind(panic),
    })
}
