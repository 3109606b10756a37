//! A training on several devices of one process: each has a thread, which is a peer like those of other processes.
//!
//! ```text
//! follower ──parts──> leader ──parts of all──> leaders of other processes
//! follower <─answer── leader <───────────────/
//! ```

use super::OnEvent;
use super::peers::{Peers, Site};
use crate::error::{Error, Result};
use candle_core::Device;
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::ScopedJoinHandle;

/// What a peer has for each peer, or what each of them had for it.
type Parts = Vec<Vec<u8>>;

/// Calls `train` for every device of the site side by side, with the peers it has there; events come from the first
/// alone. Returns what came of the first.
///
/// # Errors
/// Those of `train`; where a device's error ended the others, that one.
pub(super) fn on_each<T: Send>(
    site: Site,
    on_event: &mut OnEvent,
    train: impl Fn(&Device, &dyn Peers, &mut OnEvent) -> Result<T> + Sync,
) -> Result<T> {
    let Some((first, others)) = site.devices.split_first() else {
        return Err(Error::config("device", "a training needs one"));
    };
    if others.is_empty() {
        return train(first, site.peers, on_event);
    }
    let (leader, followers) = crew(site.peers, site.devices.len());
    let train = &train;
    std::thread::scope(|scope| {
        let follow = |device, follower: Follower| {
            scope.spawn(move || train(device, &follower, &mut |_| ControlFlow::Continue(())).err())
        };
        let threads: Vec<_> = others.iter().zip(followers).map(|(d, f)| follow(d, f)).collect();
        let result = train(first, &leader, on_event);
        // Whoever still waits for it hears that it is gone.
        drop(leader);
        let ended = threads.into_iter().map(ScopedJoinHandle::join);
        let ended: Vec<Option<Error>> = ended
            .map(|end| end.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect();
        match result {
            Err(Error::Peer(reason)) => {
                let mut causes = ended
                    .into_iter()
                    .flatten()
                    .filter(|error| !matches!(error, Error::Peer(_)));
                Err(causes.next().unwrap_or(Error::Peer(reason)))
            }
            result => result,
        }
    })
}

/// The peers of the devices of one process, `count` of which it has.
fn crew(outside: &dyn Peers, count: usize) -> (Leader<'_>, Vec<Follower>) {
    let (rank, all) = (outside.rank() * count, outside.count() * count);
    let (mut links, mut followers) = (vec![], vec![]);
    for local in 1..count {
        let (to_leader, from_follower) = channel();
        let (to_follower, from_leader) = channel();
        links.push((from_follower, to_follower));
        followers.push(Follower {
            rank: rank + local,
            count: all,
            to_leader,
            from_leader,
        });
    }
    (Leader { outside, links }, followers)
}

/// The first device's peer, which speaks for the process.
struct Leader<'a> {
    outside: &'a dyn Peers,
    links: Vec<(Receiver<Parts>, Sender<Parts>)>,
}

struct Follower {
    rank: usize,
    count: usize,
    to_leader: Sender<Parts>,
    from_leader: Receiver<Parts>,
}

impl Peers for Follower {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn exchange(&self, parts: Parts) -> Result<Parts> {
        let gone = || Error::Peer("the first device stopped".into());
        self.to_leader.send(parts).map_err(|_| gone())?;
        self.from_leader.recv().map_err(|_| gone())
    }
}

impl Leader<'_> {
    /// Devices of this process.
    fn local(&self) -> usize {
        self.links.len() + 1
    }

    /// What the other process of this number had for the devices of this one, by sender and receiver.
    fn unpack(&self, process: usize, packed: &[u8]) -> Result<Vec<Parts>> {
        let local = self.local();
        let mut rest = packed;
        let mut next = || -> Option<Vec<u8>> {
            let (length, after) = rest.split_first_chunk::<8>()?;
            let (part, after) = after.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
            rest = after;
            Some(part.to_vec())
        };
        let all = (0..local).map(|_| (0..local).map(|_| next()).collect()).collect();
        match (all, rest.is_empty()) {
            (Some(all), true) => Ok(all),
            _ => Err(Error::Peer(format!(
                "process {process} does not train on {local} devices, as this one does"
            ))),
        }
    }
}

impl Peers for Leader<'_> {
    fn rank(&self) -> usize {
        self.outside.rank() * self.local()
    }

    fn count(&self) -> usize {
        self.outside.count() * self.local()
    }

    fn exchange(&self, parts: Parts) -> Result<Parts> {
        let local = self.local();
        let mut given = vec![parts];
        for (device, (from, _)) in self.links.iter().enumerate() {
            let gone = |_| Error::Peer(format!("device {} of this process stopped", device + 1));
            given.push(from.recv().map_err(gone)?);
        }
        // By process: of every device here, its parts for the devices there.
        let mut packed = vec![Vec::new(); self.outside.count()];
        let mut own: Vec<Parts> = vec![];
        for parts in given {
            let mut parts = parts.into_iter();
            for (process, packed) in packed.iter_mut().enumerate() {
                let there = parts.by_ref().take(local);
                match process == self.outside.rank() {
                    true => own.push(there.collect()),
                    false => there.for_each(|part| {
                        packed.extend((part.len() as u64).to_le_bytes());
                        packed.extend(part);
                    }),
                }
            }
        }
        let got = self.outside.exchange(packed)?;
        let mut answers: Vec<Parts> = vec![vec![]; local];
        for (process, packed) in got.iter().enumerate() {
            let there = match process == self.outside.rank() {
                true => std::mem::take(&mut own),
                false => self.unpack(process, packed)?,
            };
            for parts in there {
                answers
                    .iter_mut()
                    .zip(parts)
                    .for_each(|(answer, part)| answer.push(part));
            }
        }
        for ((_, to), answer) in self.links.iter().zip(answers.drain(1..)) {
            // One that is gone is missed at the next exchange, if there is one.
            let _ = to.send(answer);
        }
        Ok(answers.swap_remove(0))
    }
}
