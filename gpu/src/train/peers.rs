//! Data parallelism: every batch is cut into parts, one for each replica, and peers deal the replicas among themselves.
//!
//! Gradients and losses are added in the order of the replicas, whoever computed them, so bits do not depend on the
//! number of peers. Each peer adds up a range of all gradients and tells the others, so what a peer sends hardly grows
//! with their number: a gradient of each of its replicas, and one of sums.

use crate::error::{Error, Result};
use crate::random::Key;
use candle_core::Device;
use std::ops::Range;

/// Calls of one training, in threads, processes or hosts of their own, that share its steps. All of them are given the
/// same arguments and end with the same model; the first one alone evaluates and stores states, which all must be able
/// to read.
pub trait Peers {
    /// Which of them this one is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn count(&self) -> usize;

    /// Gives part i to peer i and returns what every peer had for this one, in their order; the own part comes back as
    /// it is. Gradients go through the memory of the host, those of devices too: libraries that join devices directly,
    /// such as NCCL, are not used.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the caller asked to stop, [`Error::Peer`] when a peer is gone. It must not wait for
    /// ever for a peer that was interrupted or failed.
    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>>;
}

/// Nobody to share with.
#[derive(Debug, Clone, Copy)]
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

/// Where a training runs. A device stands for itself and nobody to share with.
#[derive(Clone, Copy)]
pub struct Site<'a> {
    /// The devices of this process, which share its replicas; all calls have equally many.
    pub devices: &'a [Device],
    /// Who shares the steps.
    pub peers: &'a dyn Peers,
}

impl<'a> From<&'a Device> for Site<'a> {
    fn from(device: &'a Device) -> Self {
        Site {
            devices: std::slice::from_ref(device),
            peers: &Alone,
        }
    }
}

/// Who computes which replica.
#[derive(Clone, Copy)]
pub(super) struct Team<'a> {
    peers: &'a dyn Peers,
    replicas: usize,
}

impl<'a> Team<'a> {
    pub(super) fn new(peers: &'a dyn Peers, replicas: usize) -> Self {
        Team { peers, replicas }
    }

    /// Whether it computes whole batches and nobody waits for the result.
    pub(super) fn is_plain(&self) -> bool {
        self.replicas == 1 && self.is_alone()
    }

    pub(super) fn is_alone(&self) -> bool {
        self.peers.count() == 1
    }

    /// Whether this is the peer that evaluates and stores states.
    pub(super) fn is_first(&self) -> bool {
        self.peers.rank() == 0
    }

    /// The replicas of this peer.
    pub(super) fn own(&self) -> Range<usize> {
        self.of(self.peers.rank())
    }

    fn of(&self, peer: usize) -> Range<usize> {
        share(self.replicas, self.peers.count(), peer)
    }

    /// A replica's part of every batch, with noise of its own; none of a batch that is too small.
    pub(super) fn cut<'b>(&self, batches: &[(&'b [u32], Key)], replica: usize) -> Vec<(&'b [u32], Key)> {
        if self.replicas == 1 {
            return batches.to_vec();
        }
        let part = |&(rows, key): &(&'b [u32], Key)| {
            let rows = &rows[share(rows.len(), self.replicas, replica)];
            (rows, key.child(replica as u64))
        };
        batches.iter().map(part).filter(|(rows, _)| !rows.is_empty()).collect()
    }

    /// What the first peer says.
    pub(super) fn hear_first(&self, message: &str) -> Result<String> {
        let mut told = self.tell_all(message.as_bytes())?;
        String::from_utf8(told.swap_remove(0)).map_err(|_| Error::Peer("peer 0 cannot be understood".into()))
    }

    /// What the first peer measured, if all of them have the same weights, of which `digest` is one.
    pub(super) fn agree(&self, digest: &str, measured: Option<(f64, f64)>) -> Result<(f64, f64)> {
        let mut message = digest.as_bytes().to_vec();
        if let Some((first, second)) = measured {
            message.extend(first.to_le_bytes());
            message.extend(second.to_le_bytes());
        }
        let told = self.tell_all(&message)?;
        let length = digest.len();
        if let Some(other) = told.iter().position(|peer| peer.get(..length) != told[0].get(..length)) {
            let reason = format!("peer {other} has other weights than peer 0");
            return Err(Error::Peer(format!(
                "{reason}: machines that share a training are of one kind"
            )));
        }
        match told[0][length..].as_chunks::<8>() {
            ([first, second], []) => Ok((f64::from_le_bytes(*first), f64::from_le_bytes(*second))),
            _ => Err(Error::Peer("peer 0 did not tell what it measured".into())),
        }
    }

    /// Tells all peers something, and hears what each of them says.
    fn tell_all(&self, message: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange(vec![message.to_vec(); self.peers.count()])
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let got = self.peers.exchange(parts)?;
        match got.len() == self.peers.count() {
            true => Ok(got),
            false => Err(Error::Peer(format!("{} of {} answered", got.len(), self.peers.count()))),
        }
    }
}

/// Bytes of a loss.
const LOSS: usize = 8;

/// Bytes of a number of a gradient.
const NUMBER: usize = 4;

/// Numbers of a weight that lie in a peer's range, and where in the range.
struct Stretch {
    weight: usize,
    numbers: Range<usize>,
    at: usize,
}

/// A range of all numbers, weight after weight.
struct Part {
    length: usize,
    stretches: Vec<Stretch>,
}

impl Part {
    fn new(lengths: &[usize], range: Range<usize>) -> Self {
        let mut stretches = Vec::new();
        let mut begin = 0;
        for (weight, &length) in lengths.iter().enumerate() {
            let end = begin + length;
            let (from, to) = (range.start.clamp(begin, end), range.end.clamp(begin, end));
            if from < to {
                stretches.push(Stretch {
                    weight,
                    numbers: from - begin..to - begin,
                    at: from - range.start,
                });
            }
            begin = end;
        }
        Part {
            length: range.len(),
            stretches,
        }
    }
}

/// The sum of what replicas found, while it is made.
pub(super) struct Sum<'a> {
    team: Team<'a>,
    /// The range of each peer.
    parts: Vec<Part>,
    /// For each peer, of every replica so far, its loss and its gradients in that peer's range.
    outgoing: Vec<Vec<u8>>,
    loss: f64,
    /// Of this peer's own range.
    numbers: Vec<f32>,
}

impl<'a> Sum<'a> {
    /// A sum over weights of so many numbers each.
    pub(super) fn new(team: Team<'a>, lengths: &[usize]) -> Self {
        let (count, all) = (team.peers.count(), lengths.iter().sum::<usize>());
        let part = |peer| Part::new(lengths, share(all, count, peer));
        Sum {
            team,
            parts: (0..count).map(part).collect(),
            outgoing: vec![Vec::new(); count],
            loss: 0.0,
            numbers: Vec::new(),
        }
    }

    /// Adds what the next replica of this peer found.
    pub(super) fn add(&mut self, loss: f64, gradients: &[Vec<f32>]) {
        for (peer, (part, bytes)) in self.parts.iter().zip(&mut self.outgoing).enumerate() {
            if peer == 0 && self.team.is_first() {
                // Nobody's replicas come before those of the first peer, so they are added at once.
                self.loss += loss;
                let begins = self.numbers.is_empty();
                for Stretch { weight, numbers, at } in &part.stretches {
                    let found = &gradients[*weight][numbers.clone()];
                    match begins {
                        true => self.numbers.extend_from_slice(found),
                        false => add_to(&mut self.numbers[*at..], found.iter().copied()),
                    }
                }
                continue;
            }
            bytes.reserve(LOSS + NUMBER * part.length);
            bytes.extend(loss.to_le_bytes());
            for Stretch { weight, numbers, .. } in &part.stretches {
                write(&gradients[*weight][numbers.clone()], bytes);
            }
        }
    }

    /// The loss of all replicas, the same for every peer. Their gradients are put in place, unless it is not finite.
    pub(super) fn finish(mut self, gradients: &mut [Vec<f32>]) -> Result<f64> {
        let (rank, count) = (self.team.peers.rank(), self.team.peers.count());
        let got = self.team.exchange(std::mem::take(&mut self.outgoing))?;
        let own = &self.parts[rank];
        for (peer, bytes) in got.iter().enumerate() {
            let replicas = match peer == 0 && rank == 0 {
                true => 0,
                false => self.team.of(peer).len(),
            };
            let length = LOSS + NUMBER * own.length;
            check(peer, bytes, replicas * length)?;
            for found in bytes.chunks_exact(length) {
                let Some((loss, found)) = found.split_first_chunk::<LOSS>() else {
                    continue;
                };
                self.loss += f64::from_le_bytes(*loss);
                match self.numbers.is_empty() {
                    true => self.numbers.extend(read(found)),
                    false => add_to(&mut self.numbers, read(found)),
                }
            }
        }
        drop(got);
        if !self.loss.is_finite() {
            return Ok(self.loss);
        }
        let mut bytes = Vec::new();
        if count > 1 {
            bytes.reserve(NUMBER * own.length);
            write(&self.numbers, &mut bytes);
        }
        let to = |peer| if peer == rank { Vec::new() } else { bytes.clone() };
        let got = self.team.exchange((0..count).map(to).collect())?;
        for (peer, (part, bytes)) in self.parts.iter().zip(&got).enumerate() {
            if peer != rank {
                check(peer, bytes, NUMBER * part.length)?;
            }
            for Stretch { weight, numbers, at } in &part.stretches {
                let sums = &mut gradients[*weight][numbers.clone()];
                match peer == rank {
                    true => sums.copy_from_slice(&self.numbers[*at..at + numbers.len()]),
                    false => sums
                        .iter_mut()
                        .zip(read(&bytes[NUMBER * at..]))
                        .for_each(|(sum, x)| *sum = x),
                }
            }
        }
        Ok(self.loss)
    }
}

/// Part `i` of `n` things, cut into parts that differ by one at most.
fn share(n: usize, parts: usize, i: usize) -> Range<usize> {
    n * i / parts..n * (i + 1) / parts
}

fn check(peer: usize, bytes: &[u8], wanted: usize) -> Result<()> {
    match bytes.len() == wanted {
        true => Ok(()),
        false => Err(Error::Peer(format!(
            "peer {peer} sent {} bytes, not {wanted}",
            bytes.len()
        ))),
    }
}

fn add_to(sums: &mut [f32], numbers: impl Iterator<Item = f32>) {
    sums.iter_mut().zip(numbers).for_each(|(sum, x)| *sum += x);
}

fn write(numbers: &[f32], bytes: &mut Vec<u8>) {
    let begin = bytes.len();
    bytes.resize(begin + NUMBER * numbers.len(), 0);
    let (words, _) = bytes[begin..].as_chunks_mut::<NUMBER>();
    words
        .iter_mut()
        .zip(numbers)
        .for_each(|(word, x)| *word = x.to_le_bytes());
}

fn read(bytes: &[u8]) -> impl Iterator<Item = f32> {
    let (words, _) = bytes.as_chunks::<NUMBER>();
    words.iter().map(|word| f32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests;
