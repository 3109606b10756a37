//! Peers as an operator sees them: calls that share the work of one, and what they tell each other.

use crate::error::Result;

/// Calls of one stage that share its work, each in a process of its own; see [`Bound::peers`](super::Bound::peers).
pub trait Peers: Send + Sync {
    /// Which of them this one is, from 0. What others than the first return, state, tell or write into their attempt
    /// folder goes nowhere.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Gives part i to peer i and returns what every peer had for this one, in their order; the own part comes back as
    /// it is. All of them call it equally often, one call at a time. It fails soon when the run was asked to stop, and
    /// when a peer's call is over before.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>>;
}

/// A call that has nobody to share with.
pub struct Alone;

impl Peers for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn count(&self) -> usize {
        1
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        Ok(parts)
    }
}
