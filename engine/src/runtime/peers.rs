//! Peers: calls of one stage in several processes, and the way between them.
//!
//! ```text
//! thread of a call ─> its worker ─> exchange ─> the peer's worker ─> the peer's thread
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use timely::dataflow::Scope;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::{Operator, source};
use timely::scheduling::SyncActivator;

use crate::error::{Error, Result};
use crate::operator::{Cancel, Peers};
use crate::table::Tables;

/// Bytes of a piece: with what is put before them, they fit into one of timely's buffers, which then stay small.
const PIECE: usize = (1 << 20) - (1 << 12);

/// How often a call that waits for a peer looks whether the run was stopped.
const LOOK: Duration = Duration::from_millis(50);

/// What crosses between the calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Piece {
    /// The worker it goes to.
    to: u64,
    /// Rank of the peer it is from.
    from: usize,
    word: Word,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum Word {
    /// The next bytes of a part, which may end with them.
    Bytes {
        #[serde(serialize_with = "as_bytes", deserialize_with = "from_bytes")]
        bytes: Vec<u8>,
        last: bool,
    },
    /// The call is over.
    Over { failed: bool },
}

/// A call's end of the way to its peers.
pub(crate) struct Line {
    rank: usize,
    /// The workers of all peers, by rank.
    workers: Vec<usize>,
    cancel: Cancel,
    /// Pieces on their way out; `None` after the last one.
    outbox: Sender<Option<Piece>>,
    activator: SyncActivator,
    inbox: Mutex<Inbox>,
    /// Whether it could not go on because a peer failed.
    left: AtomicBool,
}

struct Inbox {
    arrivals: Receiver<Piece>,
    /// What was heard of every peer, by rank.
    heard: Vec<Heard>,
}

#[derive(Default)]
struct Heard {
    /// Parts that are whole, in order.
    parts: VecDeque<Vec<u8>>,
    /// What there is of the next one.
    begun: Vec<u8>,
    /// Once its call is over: whether it failed.
    over: Option<bool>,
}

/// Builds the way between the calls of a stage, which these workers make; returns this worker's end, if it makes one. A
/// stage that is called once needs no way.
pub(crate) fn connect(scope: Scope<'_, u64>, cancel: &Cancel, workers: &[usize]) -> Option<Arc<Line>> {
    if workers.len() < 2 {
        return None;
    }
    let rank = workers.iter().position(|worker| *worker == scope.index());
    let (outbox, outgoing) = channel::<Option<Piece>>();
    let (arriving, arrivals) = channel::<Piece>();
    let mut activator = None;
    source(scope, "peers", |capability, info| {
        activator = Some(scope.worker().sync_activator_for(info.address.to_vec()));
        let mut capability = rank.map(|_| capability);
        move |output| {
            while let Some(held) = capability.as_mut() {
                match outgoing.try_recv() {
                    Ok(Some(piece)) => {
                        let time = *held.time();
                        output.session(&*held).give(piece);
                        // Pieces of one time would be packed together, and need a buffer for all of them.
                        held.downgrade(&(time + 1));
                    }
                    Err(TryRecvError::Empty) => return,
                    Ok(None) | Err(TryRecvError::Disconnected) => capability = None,
                }
            }
        }
    })
    .container::<Vec<Piece>>()
    .sink(Exchange::new(|piece: &Piece| piece.to), "peers", move |(input, _)| {
        input.for_each(|_, pieces| {
            for piece in pieces.drain(..) {
                // Nobody listens once the call is over.
                let _ = arriving.send(piece);
            }
        });
    });
    Some(Arc::new(Line {
        rank: rank?,
        workers: workers.to_vec(),
        cancel: cancel.clone(),
        outbox,
        activator: activator?,
        inbox: Mutex::new(Inbox {
            arrivals,
            heard: workers.iter().map(|_| Heard::default()).collect(),
        }),
        left: AtomicBool::new(false),
    }))
}

impl Peers for Line {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.workers.len()
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if parts.len() != self.count() {
            let message = format!("{} parts for {} peers", parts.len(), self.count());
            return Err(Error::internal(message));
        }
        let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        let mut own = Vec::new();
        for (peer, part) in parts.into_iter().enumerate() {
            match peer == self.rank {
                true => own = part,
                false => self.send(peer, &part),
            }
        }
        let mut got = Vec::with_capacity(self.count());
        for peer in 0..self.count() {
            got.push(match peer == self.rank {
                true => std::mem::take(&mut own),
                false => self.wait(&mut inbox, peer)?,
            });
        }
        Ok(got)
    }
}

impl Line {
    /// Tells the peers that the call is over. Returns what came of it, or nothing if it failed because a peer did,
    /// which says why. There is one output, that of the first.
    pub(crate) fn end(&self, result: Result<Tables>) -> Option<Result<Tables>> {
        let failed = result.is_err();
        for peer in (0..self.count()).filter(|peer| *peer != self.rank) {
            self.post(peer, Word::Over { failed });
        }
        let _ = self.outbox.send(None);
        let _ = self.activator.activate();
        match result {
            Err(_) if self.left.load(Ordering::Relaxed) => None,
            Ok(_) if self.rank > 0 => Some(Ok(Tables::new())),
            result => Some(result),
        }
    }

    fn send(&self, peer: usize, part: &[u8]) {
        let pieces = part.len().div_ceil(PIECE).max(1);
        for piece in 1..=pieces {
            let bytes = part[(piece - 1) * PIECE..part.len().min(piece * PIECE)].to_vec();
            let last = piece == pieces;
            self.post(peer, Word::Bytes { bytes, last });
        }
    }

    /// The worker may be gone when the run was stopped; then nobody waits for a piece.
    fn post(&self, peer: usize, word: Word) {
        let _ = self.outbox.send(Some(Piece {
            to: self.workers[peer] as u64,
            from: self.rank,
            word,
        }));
        let _ = self.activator.activate();
    }

    /// The next part of a peer.
    fn wait(&self, inbox: &mut Inbox, peer: usize) -> Result<Vec<u8>> {
        loop {
            if let Some(part) = inbox.heard[peer].parts.pop_front() {
                return Ok(part);
            }
            if self.cancel.is_cancelled() {
                return Err(Error::interrupted());
            }
            if inbox.heard.iter().any(|heard| heard.over == Some(true)) {
                self.left.store(true, Ordering::Relaxed);
                return Err(Error::device("lost-peer", "a peer failed"));
            }
            if inbox.heard[peer].over.is_some() {
                let message = format!("peer {peer} ended before peer {}", self.rank);
                return Err(Error::internal(message));
            }
            match inbox.arrivals.recv_timeout(LOOK) {
                Ok(piece) => inbox.take(piece),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if self.cancel.is_cancelled() => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::device("lost-peer", "the way to the peers is gone"));
                }
            }
        }
    }
}

impl Inbox {
    fn take(&mut self, piece: Piece) {
        let heard = &mut self.heard[piece.from];
        match piece.word {
            Word::Bytes { bytes, last } => {
                match heard.begun.is_empty() {
                    true => heard.begun = bytes,
                    false => heard.begun.extend_from_slice(&bytes),
                }
                if last {
                    heard.parts.push_back(std::mem::take(&mut heard.begun));
                }
            }
            Word::Over { failed } => heard.over = Some(failed),
        }
    }
}

/// All at once: bytes of a vector would go one by one.
fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

fn from_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    struct Bytes;

    impl serde::de::Visitor<'_> for Bytes {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("bytes")
        }

        fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }
    }

    deserializer.deserialize_byte_buf(Bytes)
}

#[cfg(test)]
mod tests;
