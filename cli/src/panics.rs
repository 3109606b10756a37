//! Which panics are told: all but those by which the network threads end when another process is lost.

/// Where timely's network threads, and whoever waits for them, panic when a connection ends early.
const NETWORK: &str = "timely_communication";

/// Leaves out panics raised in timely's communication; the engine says what they mean.
///
/// To go by the name of the thread would not do: operators run on timely's workers, and their panics are ours to see.
pub fn leave_out_lost_peers() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains(NETWORK)) {
            tell(panic);
        }
    }));
}
