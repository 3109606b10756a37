//! Log-probabilities of next tokens: those asked for, without ever holding the logits of a whole vocabulary.

use crate::ops::isa::vectorized;
use crate::ops::matmul::{Packed, View};
use crate::ops::{dot, exp};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Columns of the head that one task multiplies with: they stay in the second-level cache.
const BLOCK: usize = 1024;
/// Rows whose logits a task holds at a time: two register tiles of the matrix product.
const ROWS: usize = 24;

/// What the probabilities of a step are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// The whole vocabulary, as in training.
    #[default]
    Vocabulary,
    /// The tokens that some title has after the prefix.
    Children,
}

/// The map from states to logits.
pub(super) enum Head {
    /// The whole vocabulary is scored: the head [V, D], packed by blocks of columns.
    Vocabulary(Vec<Packed>),
    /// Single tokens are scored: the rows of the head, or none where they are the embeddings.
    Children(Option<Vec<f32>>),
}

/// What a block of columns says of all rows.
struct Share {
    /// The largest logit of every row, and the sum of the exponentials of all less that.
    sums: Vec<(f32, f32)>,
    /// The logits asked for, row by row, and how many of each.
    picked: Vec<f32>,
    counts: Vec<u32>,
}

impl Head {
    /// A head [V, D] of its own, or `None` where it is the table of embeddings `words_vd`.
    pub fn new(own_vd: Option<Vec<f32>>, words_vd: &[f32], d: usize, normalisation: Normalisation) -> Self {
        match normalisation {
            Normalisation::Children => Head::Children(own_vd),
            Normalisation::Vocabulary => {
                let rows = own_vd.as_deref().unwrap_or(words_vd);
                let pack = |rows: &[f32]| {
                    let mut packed = Packed::default();
                    packed.load(View::rows(rows, d).t(), d, rows.len() / d);
                    packed
                };
                Head::Vocabulary(rows.chunks(BLOCK * d).map(pack).collect())
            }
        }
    }

    /// For every row of `x_rd`, states of the last token, the log-probabilities of the tokens asked for (ascending).
    pub fn log_probabilities(&self, x_rd: &[f32], d: usize, words_vd: &[f32], asked: &[&[u32]]) -> Vec<Vec<f64>> {
        match self {
            Head::Vocabulary(blocks) => over_vocabulary(blocks, x_rd, d, asked),
            Head::Children(own_vd) => {
                let rows_vd = own_vd.as_deref().unwrap_or(words_vd);
                let rows = x_rd.par_chunks(d).zip(asked);
                rows.map(|(x, tokens)| {
                    let mut logits = vec![0f32; tokens.len()];
                    token_logits(x, rows_vd, tokens, &mut logits);
                    let logits: Vec<f64> = logits.into_iter().map(f64::from).collect();
                    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total = most + logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
                    logits.into_iter().map(|logit| logit - total).collect()
                })
                .collect()
            }
        }
    }
}

fn over_vocabulary(blocks: &[Packed], x_rd: &[f32], d: usize, asked: &[&[u32]]) -> Vec<Vec<f64>> {
    let shares: Vec<Share> = blocks
        .par_iter()
        .enumerate()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(logits, left), (block, packed)| share_of(packed, block * BLOCK, x_rd, d, asked, logits, left),
        )
        .collect();
    let mut taken = vec![0usize; shares.len()];
    let rows = asked.iter().enumerate();
    rows.map(|(row, tokens)| {
        let most = shares.iter().map(|share| share.sums[row].0);
        let most = f64::from(most.fold(f32::NEG_INFINITY, f32::max));
        // In the order of the blocks: the sum is the same for any number of threads.
        let sum: f64 = shares
            .iter()
            .map(|share| f64::from(share.sums[row].1) * (f64::from(share.sums[row].0) - most).exp())
            .sum();
        let total = most + sum.ln();
        let mut found = Vec::with_capacity(tokens.len());
        for (share, taken) in shares.iter().zip(&mut taken) {
            let count = share.counts[row] as usize;
            found.extend(
                share.picked[*taken..][..count]
                    .iter()
                    .map(|logit| f64::from(*logit) - total),
            );
            *taken += count;
        }
        found
    })
    .collect()
}

/// Sums and logits of the columns of a block, which starts at token `first`.
fn share_of(
    packed: &Packed,
    first: usize,
    x_rd: &[f32],
    d: usize,
    asked: &[&[u32]],
    logits: &mut Vec<f32>,
    left: &mut Vec<f32>,
) -> Share {
    let columns = packed.columns();
    logits.resize(ROWS * columns, 0.0);
    let mut share = Share {
        sums: Vec::with_capacity(asked.len()),
        picked: Vec::new(),
        counts: Vec::with_capacity(asked.len()),
    };
    for (x, asked) in x_rd.chunks(ROWS * d).zip(asked.chunks(ROWS)) {
        let logits = &mut logits[..asked.len() * columns];
        packed.multiply(View::rows(x, d), logits, left);
        for (row, tokens) in logits.chunks_exact(columns).zip(asked) {
            share.sums.push(sum_exp(row));
            let start = tokens.partition_point(|token| (*token as usize) < first);
            let end = tokens.partition_point(|token| (*token as usize) < first + columns);
            let here = tokens[start..end].iter();
            share.picked.extend(here.map(|token| row[*token as usize - first]));
            share.counts.push((end - start) as u32);
        }
    }
    share
}

vectorized! {
    /// The largest number of a row, and the sum of the exponentials of all less that, in 16 fixed lanes.
    fn sum_exp(row: &[f32]) -> (f32, f32) {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for i in 0..16 { lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] }; }
        }
        let mut most = f32::NEG_INFINITY;
        for &x in lanes.iter().chain(rest) { most = if x > most { x } else { most }; }
        let mut lanes = [0f32; 16];
        for chunk in chunks {
            for i in 0..16 { lanes[i] += exp(chunk[i] - most); }
        }
        let mut sum = 0.0;
        for &x in rest { sum += exp(x - most); }
        for x in lanes { sum += x; }
        (most, sum)
    }
}

vectorized! {
    /// The logits of single tokens.
    fn token_logits(x: &[f32], rows_vd: &[f32], tokens: &[u32], logits: &mut [f32]) {
        for (logit, token) in logits.iter_mut().zip(tokens) {
            *logit = dot(x, &rows_vd[*token as usize * x.len()..][..x.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    #[test]
    fn both_heads_equal_the_softmax() {
        let d = 7;
        for (rows, vocabulary) in [(1, 5), (33, 1024), (25, 2600)] {
            let draw =
                |seed: u64, n: usize| -> Vec<f32> { (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect() };
            let (x, head) = (draw(1, rows * d), draw(2, vocabulary * d));
            let logit = |row: usize, token: usize| -> f64 {
                (0..d)
                    .map(|i| f64::from(x[row * d + i]) * f64::from(head[token * d + i]))
                    .sum()
            };
            let asked: Vec<Vec<u32>> = (0..rows)
                .map(|row| {
                    (0..vocabulary as u32)
                        .filter(|token| (*token as usize + row).is_multiple_of(3))
                        .collect()
                })
                .collect();
            let asked: Vec<&[u32]> = asked.iter().map(Vec::as_slice).collect();
            for (normalisation, own) in [
                (Normalisation::Vocabulary, true),
                (Normalisation::Vocabulary, false),
                (Normalisation::Children, true),
                (Normalisation::Children, false),
            ] {
                let made = Head::new(own.then(|| head.clone()), &head, d, normalisation);
                let found = made.log_probabilities(&x, d, &head, &asked);
                for (row, (found, tokens)) in found.iter().zip(&asked).enumerate() {
                    let all: Vec<usize> = match normalisation {
                        Normalisation::Vocabulary => (0..vocabulary).collect(),
                        Normalisation::Children => tokens.iter().map(|token| *token as usize).collect(),
                    };
                    let total = all.iter().map(|token| logit(row, *token).exp()).sum::<f64>().ln();
                    assert_eq!(found.len(), tokens.len());
                    for (found, token) in found.iter().zip(*tokens) {
                        let want = logit(row, *token as usize) - total;
                        assert!(
                            (found - want).abs() < 2e-5,
                            "{normalisation:?} {row} {token}: {found} {want}"
                        );
                    }
                }
            }
        }
    }
}
