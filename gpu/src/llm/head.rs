//! Log-probabilities of next tokens: those asked for, without ever holding the logits of a whole vocabulary.

use crate::frozen::Table;
use crate::ops::isa::vectorized;
use crate::ops::matmul::{Packed, Right, View};
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
    Vocabulary(Vec<Columns>),
    /// Single tokens are scored: the rows of the head, or none where they are the embeddings.
    Children(Option<Table>),
}

/// Columns of the head from token `first` on.
pub(super) struct Columns {
    first: usize,
    packed: Packed,
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
    /// A head of its own, or `None` where it is the table of embeddings `words`.
    pub fn new(own: Option<Table>, words: &Table, d: usize, normalisation: Normalisation) -> Self {
        match normalisation {
            Normalisation::Children => Head::Children(own),
            Normalisation::Vocabulary => {
                let (mut blocks, mut first) = (Vec::new(), 0);
                for rows_vd in own.as_ref().unwrap_or(words).parts() {
                    let (part, count) = (Right::rows(rows_vd, d), rows_vd.len() / d);
                    for skipped in (0..count).step_by(BLOCK) {
                        let columns = BLOCK.min(count - skipped);
                        let mut packed = Packed::default();
                        packed.load_as_is(part.skip_rows(skipped).t(), d, columns);
                        blocks.push(Columns { first, packed });
                        first += columns;
                    }
                }
                Head::Vocabulary(blocks)
            }
        }
    }

    /// Bytes of what was packed.
    pub fn bytes(&self) -> usize {
        match self {
            Head::Vocabulary(blocks) => blocks.iter().map(|block| block.packed.bytes()).sum(),
            Head::Children(_) => 0,
        }
    }

    /// For every row of `x_rd`, states of the last token, the log-probabilities of the tokens asked for (ascending).
    pub fn log_probabilities(&self, x_rd: &[f32], d: usize, words: &Table, asked: &[&[u32]]) -> Vec<Vec<f64>> {
        match self {
            Head::Vocabulary(blocks) => over_vocabulary(blocks, x_rd, d, asked),
            Head::Children(own) => {
                let rows_vd = own.as_ref().unwrap_or(words).rows();
                let rows = x_rd.par_chunks(d).zip(asked);
                rows.map_init(Vec::new, |room, (x, tokens)| {
                    let logits: Vec<f64> = tokens
                        .iter()
                        .map(|token| f64::from(logit(x, rows_vd.get(*token as usize, room))))
                        .collect();
                    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total = most + logits.iter().map(|logit| (logit - most).exp()).sum::<f64>().ln();
                    logits.into_iter().map(|logit| logit - total).collect()
                })
                .collect()
            }
        }
    }
}

fn over_vocabulary(blocks: &[Columns], x_rd: &[f32], d: usize, asked: &[&[u32]]) -> Vec<Vec<f64>> {
    let shares: Vec<Share> = blocks
        .par_iter()
        .map_init(
            || (Vec::new(), Vec::new()),
            |(logits, room), block| share_of(block, x_rd, d, asked, logits, room),
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

/// Sums and logits of the columns of a block.
fn share_of(
    Columns { first, packed }: &Columns,
    x_rd: &[f32],
    d: usize,
    asked: &[&[u32]],
    logits: &mut Vec<f32>,
    room: &mut Vec<f32>,
) -> Share {
    let (first, columns) = (*first, packed.columns());
    logits.resize(ROWS * columns, 0.0);
    let mut share = Share {
        sums: Vec::with_capacity(asked.len()),
        picked: Vec::new(),
        counts: Vec::with_capacity(asked.len()),
    };
    for (x, asked) in x_rd.chunks(ROWS * d).zip(asked.chunks(ROWS)) {
        let logits = &mut logits[..asked.len() * columns];
        packed.multiply(View::rows(x, d), logits, room);
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
    /// The logit of a single token.
    fn logit(x: &[f32], row: &[f32]) -> f32 {
        dot(x, row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn draw(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
    }

    /// A third of all tokens, other ones for every row.
    fn thirds(rows: usize, vocabulary: usize) -> Vec<Vec<u32>> {
        let of = |row: usize| (0..vocabulary as u32).filter(move |token| (*token as usize + row).is_multiple_of(3));
        (0..rows).map(|row| of(row).collect()).collect()
    }

    fn slices(lists: &[Vec<u32>]) -> Vec<&[u32]> {
        lists.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn both_heads_equal_the_softmax() {
        let d = 7;
        for (rows, vocabulary) in [(1, 5), (33, 1024), (25, 2600)] {
            let (x, head) = (draw(1, rows * d), draw(2, vocabulary * d));
            let logit = |row: usize, token: usize| -> f64 {
                (0..d)
                    .map(|i| f64::from(x[row * d + i]) * f64::from(head[token * d + i]))
                    .sum()
            };
            let asked = thirds(rows, vocabulary);
            let asked = slices(&asked);
            for (normalisation, own) in [
                (Normalisation::Vocabulary, true),
                (Normalisation::Vocabulary, false),
                (Normalisation::Children, true),
                (Normalisation::Children, false),
            ] {
                let table = || Table::new(head.clone().into(), d);
                let words = table();
                let made = Head::new(own.then(table), &words, d, normalisation);
                let found = made.log_probabilities(&x, d, &words, &asked);
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

    /// Blocks of the words begin where the table ends, inside a block of it too.
    #[test]
    fn words_behind_a_table_are_rows_of_it() {
        let d = 5;
        for (own, more) in [(30, 7), (1024, 3), (1500, 1100)] {
            let (rows, vocabulary) = (26, own + more);
            let (x, head) = (draw(1, rows * d), draw(2, vocabulary * d));
            let asked = thirds(rows, vocabulary);
            let asked = slices(&asked);
            for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
                let run = |own: usize| {
                    let mut words = Table::new(head[..own * d].to_vec().into(), d);
                    words.extend(&head[own * d..]);
                    assert_eq!(words.count(), vocabulary);
                    Head::new(None, &words, d, normalisation).log_probabilities(&x, d, &words, &asked)
                };
                let (whole, apart) = (run(vocabulary), run(own));
                for (whole, apart) in whole.iter().flatten().zip(apart.iter().flatten()) {
                    assert!((whole - apart).abs() < 1e-5, "{normalisation:?} {own}: {whole} {apart}");
                }
            }
        }
    }
}
