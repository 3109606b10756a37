//! Training samples of ragged length, and the deterministic order of their batches.

use crate::error::{Error, Result};
use crate::random::Key;
use crate::tiger::ItemVectors;
use crate::train::TrainingSet;
use std::sync::Arc;

/// Sequences of codes or items: sequence i is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ragged<T = u16> {
    values: Vec<T>,
    offsets: Vec<u64>,
}

impl<T> Default for Ragged<T> {
    fn default() -> Self {
        Ragged {
            values: vec![],
            offsets: vec![0],
        }
    }
}

impl<T: Copy> Ragged<T> {
    /// Sequences of given values and offsets.
    ///
    /// # Errors
    /// [`Error::InvalidData`] unless the offsets rise from 0 to the number of values.
    pub fn new(values: Vec<T>, offsets: Vec<u64>) -> Result<Self> {
        let rising = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
        if !rising || offsets.first() != Some(&0) || offsets.last() != Some(&(values.len() as u64)) {
            let n = values.len();
            return Err(Error::InvalidData(format!("offsets must rise from 0 to {n}")));
        }
        Ok(Ragged { values, offsets })
    }

    /// Appends a sequence.
    pub fn push(&mut self, sequence: &[T]) {
        self.values.extend_from_slice(sequence);
        self.offsets.push(self.values.len() as u64);
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sequence `i`, which must be below [`Ragged::len`].
    pub fn get(&self, i: usize) -> &[T] {
        &self.values[self.offsets[i] as usize..self.offsets[i + 1] as usize]
    }
}

/// Histories with the semantic id that follows each.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples {
    levels: usize,
    histories: Ragged,
    targets: Vec<u16>,
    users: Vec<u64>,
    vectors: Option<Arc<ItemVectors>>,
}

impl Samples {
    /// Samples of C = `levels` codes per item: histories hold whole items, oldest first; `targets` holds C codes per
    /// sample; `users` holds one raw id per sample, or nothing.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] or [`Error::InvalidData`] naming the first bad sample.
    pub fn new(levels: usize, histories: Ragged, targets: Vec<u16>, users: Vec<u64>) -> Result<Self> {
        let n = histories.len();
        if levels == 0 || targets.len() != n * levels {
            return Err(Error::shape("targets", n * levels, targets.len()));
        }
        if !users.is_empty() && users.len() != n {
            return Err(Error::shape("users", n, users.len()));
        }
        let bad = |i: &usize| {
            let length = histories.get(*i).len();
            length == 0 || !length.is_multiple_of(levels)
        };
        if let Some(i) = (0..n).find(bad) {
            return Err(Error::InvalidData(format!(
                "history {i} has {} codes; it needs a positive multiple of {levels}",
                histories.get(i).len()
            )));
        }
        Ok(Samples {
            levels,
            histories,
            targets,
            users,
            vectors: None,
        })
    }

    /// The same with vectors of the items, for models into which they are injected.
    pub fn with_vectors(self, vectors: Option<Arc<ItemVectors>>) -> Self {
        Samples { vectors, ..self }
    }

    /// The vectors of the items.
    pub fn vectors(&self) -> Option<&ItemVectors> {
        self.vectors.as_deref()
    }

    /// Codes per item.
    pub fn levels(&self) -> usize {
        self.levels
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.histories.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Codes of history `i`, which must be below [`Samples::len`].
    pub fn history(&self, i: usize) -> &[u16] {
        self.histories.get(i)
    }

    /// The C codes that follow history `i`.
    pub fn target(&self, i: usize) -> &[u16] {
        &self.targets[i * self.levels..][..self.levels]
    }

    /// Raw user ids of some samples, if there are any.
    pub fn users_of(&self, rows: &[u32]) -> Option<Vec<u64>> {
        if self.users.is_empty() {
            return None;
        }
        Some(rows.iter().map(|&i| self.users[i as usize]).collect())
    }
}

impl TrainingSet for Samples {
    fn count(&self) -> usize {
        self.len()
    }

    fn batches(&self, batch_size: usize, bucket_batches: usize, epoch: Key) -> Vec<Vec<u32>> {
        batches(self.len(), batch_size, bucket_batches, epoch, |i| self.history(i).len())
    }

    fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut row = Vec::new();
        for i in 0..self.len() {
            let (history, target) = (self.history(i), self.target(i));
            row.clear();
            row.extend((history.len() as u64).to_le_bytes());
            row.extend(history.iter().chain(target).flat_map(|code| code.to_le_bytes()));
            for user in self.users_of(&[i as u32]).unwrap_or_default() {
                row.extend(user.to_le_bytes());
            }
            hasher.update(&row);
        }
        if let Some(vectors) = &self.vectors {
            hasher.update(vectors.digest().as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }
}

/// Sample numbers of every batch of one epoch over `n` samples: a shuffle of the epoch's key. With `bucket_batches`
/// k > 0, samples are sorted by length inside windows of k batches and the order of the batches is shuffled again.
pub fn batches(
    n: usize,
    batch_size: usize,
    bucket_batches: usize,
    epoch: Key,
    length: impl Fn(usize) -> usize,
) -> Vec<Vec<u32>> {
    let batch_size = batch_size.max(1);
    let mut order = epoch.child(0).permutation(n);
    if bucket_batches > 0 {
        for window in order.chunks_mut(bucket_batches * batch_size) {
            window.sort_by_key(|&i| length(i as usize));
        }
    }
    let batches: Vec<Vec<u32>> = order.chunks(batch_size).map(<[u32]>::to_vec).collect();
    if bucket_batches == 0 {
        return batches;
    }
    let order = epoch.child(1).permutation(batches.len());
    order.iter().map(|&i| batches[i as usize].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(n: usize) -> Samples {
        let mut histories = Ragged::default();
        for i in 0..n {
            histories.push(&vec![0; 2 * (1 + i * 7 % 10)]);
        }
        Samples::new(2, histories, vec![0; 2 * n], vec![]).unwrap()
    }

    #[test]
    fn an_epoch_has_every_sample_once_and_follows_its_key() {
        let samples = samples(103);
        for k in [0, 3] {
            let batches = samples.batches(10, k, Key::new(1));
            assert_eq!(batches, samples.batches(10, k, Key::new(1)));
            assert_ne!(batches, samples.batches(10, k, Key::new(2)));
            assert_eq!(batches.len(), 11);
            let mut all = batches.concat();
            all.sort_unstable();
            assert_eq!(all, (0..103).collect::<Vec<_>>());
        }
    }

    #[test]
    fn buckets_hold_similar_lengths() {
        let samples = samples(1000);
        let spread = |k| {
            let batches = samples.batches(10, k, Key::new(1));
            let range = |batch: &Vec<u32>| {
                let lengths = batch.iter().map(|&i| samples.history(i as usize).len());
                lengths.clone().max().unwrap_or(0) - lengths.min().unwrap_or(0)
            };
            batches.iter().map(range).sum::<usize>()
        };
        assert!(spread(10) * 3 < spread(0));
    }

    #[test]
    fn misuse_is_an_error() {
        assert!(Ragged::new(vec![1, 2], vec![0, 1]).is_err());
        let odd = Ragged::new(vec![1, 2, 3], vec![0, 3]).unwrap();
        assert!(Samples::new(2, odd, vec![0, 0], vec![]).is_err());
        assert!(Samples::new(2, Ragged::default(), vec![0], vec![]).is_err());
    }
}
