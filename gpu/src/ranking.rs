//! Full ranking by inner products: where a target stands among all items, and the first items of every query.
//!
//! Scores live for a block of queries only. Neither blocks nor threads change a result.

use crate::error::{Error, Result};
use crate::ops::matmul::{Packed, View};
use rayon::prelude::*;

/// Queries whose scores one task holds: two register tiles of the matrix product.
const TASK: usize = 24;

/// An item of a ranked list.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Row of the table.
    pub item: u32,
    /// Its score.
    pub score: f32,
    /// Place from 1, ties by ascending item.
    pub rank: u32,
    /// Items with a higher score.
    pub better: u32,
    /// Items with this very score, itself included.
    pub tied: u32,
}

/// How many items score higher than each query's target, and how many the same, the target included.
///
/// `queries` is [B, D], `table` [N, D]; `targets` holds B rows of the table.
///
/// # Errors
/// [`Error::ShapeMismatch`], or [`Error::InvalidData`] for a target outside the table or a score that is no number.
pub fn standings(queries: &[f32], table: &[f32], d: usize, targets: &[u32]) -> Result<Vec<(usize, usize)>> {
    score_rows(queries, table, d, targets.len(), |query, scores| {
        let score = scores[check_item(targets[query], scores)?];
        if score.is_nan() {
            return Err(not_a_number());
        }
        Ok(count(scores, score))
    })
}

/// The first `k` items of each query, and the query's target where it ranks below `k`. Items of `seen` are not
/// eligible: neither listed nor counted.
///
/// # Errors
/// [`Error::ShapeMismatch`], or [`Error::InvalidData`] for an item outside the table or a score that is no number.
pub fn rank(
    queries: &[f32],
    table: &[f32],
    d: usize,
    (k, targets): (usize, &[u32]),
    seen: impl Fn(usize) -> Vec<u32> + Sync,
) -> Result<Vec<Vec<Ranked>>> {
    score_rows(queries, table, d, targets.len(), |query, scores| {
        if scores.iter().any(|score| !score.is_finite()) {
            return Err(not_a_number());
        }
        for item in seen(query) {
            let item = check_item(item, scores)?;
            scores[item] = f32::NEG_INFINITY;
        }
        check_item(targets[query], scores)?;
        let mut list = first(scores, k);
        let last = list.last().map_or(0, |last| last.rank);
        let score = scores[targets[query] as usize];
        let (better, tied) = count(scores, score);
        let before = scores[..targets[query] as usize]
            .iter()
            .filter(|other| **other == score)
            .count();
        let rank = (better + before + 1) as u32;
        if score > f32::NEG_INFINITY && rank > last {
            list.push(Ranked {
                item: targets[query],
                score,
                rank,
                better: better as u32,
                tied: tied as u32,
            });
        }
        Ok(list)
    })
}

/// Recall and NDCG at `k` of a target, expected over all orders of the `tied` items it is one of, below `better` ones.
pub fn expected(better: usize, tied: usize, k: usize) -> (f64, f64) {
    let places = tied.min(k.saturating_sub(better));
    let gain: f64 = (0..places).map(|j| 1.0 / ((better + j + 2) as f64).log2()).sum();
    (places as f64 / tied as f64, gain / tied as f64)
}

/// Calls `each` with the scores of every query, in parallel; answers in order.
fn score_rows<T: Send>(
    queries: &[f32],
    table: &[f32],
    d: usize,
    count: usize,
    each: impl Fn(usize, &mut [f32]) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    if d == 0 || queries.len() != count * d || table.is_empty() || !table.len().is_multiple_of(d) {
        return Err(Error::shape("ranking", (count, d), (queries.len(), table.len())));
    }
    let n = table.len() / d;
    let mut packed = Packed::default();
    packed.load(View::rows(table, d).t(), d, n);
    let found: Result<Vec<Vec<T>>> = queries
        .par_chunks(TASK * d)
        .enumerate()
        .map_init(
            || (vec![0.0; TASK * n], Vec::new()),
            |(scores, left), (task, queries)| {
                let scores = &mut scores[..queries.len() / d * n];
                packed.multiply(View::rows(queries, d), scores, left);
                let rows = scores.chunks_exact_mut(n).enumerate();
                rows.map(|(i, scores)| each(task * TASK + i, scores)).collect()
            },
        )
        .collect();
    Ok(found?.into_iter().flatten().collect())
}

fn count(scores: &[f32], score: f32) -> (usize, usize) {
    let (mut better, mut tied) = (0u32, 0u32);
    for other in scores {
        better += u32::from(*other > score);
        tied += u32::from(*other == score);
    }
    (better as usize, tied as usize)
}

/// The first `k` eligible items by (score descending, item ascending).
fn first(scores: &[f32], k: usize) -> Vec<Ranked> {
    if k == 0 {
        return vec![];
    }
    let mut list: Vec<(f32, u32)> = Vec::with_capacity(k + 1);
    let mut bar = f32::NEG_INFINITY;
    for (item, &score) in scores.iter().enumerate() {
        if score > bar {
            let at = list.partition_point(|(other, _)| *other >= score);
            list.insert(at, (score, item as u32));
            list.truncate(k);
            if list.len() == k {
                bar = list[k - 1].0;
            }
        }
    }
    let mut ranked: Vec<Ranked> = Vec::with_capacity(list.len());
    for run in list.chunk_by(|a, b| a.0 == b.0) {
        let better = ranked.len();
        // only the last run may go on below the list
        let whole = better + run.len() < list.len();
        let tied = if whole { run.len() } else { count(scores, run[0].0).1 };
        for &(score, item) in run {
            ranked.push(Ranked {
                item,
                score,
                rank: ranked.len() as u32 + 1,
                better: better as u32,
                tied: tied as u32,
            });
        }
    }
    ranked
}

fn check_item(item: u32, scores: &[f32]) -> Result<usize> {
    if (item as usize) < scores.len() {
        return Ok(item as usize);
    }
    let n = scores.len();
    Err(Error::InvalidData(format!(
        "item {item} is not below the {n} items of the model"
    )))
}

fn not_a_number() -> Error {
    Error::InvalidData("a score is not a finite number: look at the training curve".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    /// Small whole numbers, so that scores are exact and often tied.
    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(seed).below(i, 3) as f32 - 1.0).collect()
    }

    #[test]
    fn ranking_equals_sorting() {
        let d = 3;
        for (b, n, k) in [(1, 1, 1), (53, 40, 5), (25, 101, 10), (7, 4, 9), (3, 5, 0)] {
            let (queries, table) = (numbers(1, b * d), numbers(2, n * d));
            let targets: Vec<u32> = (0..b as u64).map(|i| Key::new(3).below(i, n as u64) as u32).collect();
            for hide in [false, true] {
                let seen = |query: usize| -> Vec<u32> {
                    let some = (0..n as u32).filter(|item| (*item as usize + query).is_multiple_of(3));
                    some.filter(|_| hide).collect()
                };
                let found = rank(&queries, &table, d, (k, &targets), seen).unwrap();
                for (query, found) in found.iter().enumerate() {
                    let score = |item: u32| -> f32 {
                        (0..d)
                            .map(|i| queries[query * d + i] * table[item as usize * d + i])
                            .sum::<f32>()
                            + 0.0
                    };
                    let mut items: Vec<u32> = (0..n as u32).filter(|item| !seen(query).contains(item)).collect();
                    items.sort_by(|a, b| score(*b).total_cmp(&score(*a)).then(a.cmp(b)));
                    let wanted = items
                        .iter()
                        .zip(1..)
                        .filter(|(item, rank)| *rank <= k || **item == targets[query]);
                    let wanted: Vec<Ranked> = wanted
                        .map(|(&item, rank)| Ranked {
                            item,
                            score: score(item),
                            rank: rank as u32,
                            better: items.iter().filter(|other| score(**other) > score(item)).count() as u32,
                            tied: items.iter().filter(|other| score(**other) == score(item)).count() as u32,
                        })
                        .collect();
                    assert_eq!(*found, wanted, "{b} {n} {k} query {query}");
                    if !hide {
                        let own = wanted.iter().find(|row| row.item == targets[query]).unwrap();
                        let standing = standings(&queries, &table, d, &targets).unwrap()[query];
                        assert_eq!(standing, (own.better as usize, own.tied as usize));
                    }
                }
            }
        }
    }

    #[test]
    fn ties_give_expected_values() {
        assert_eq!(expected(0, 1, 10), (1.0, 1.0));
        assert_eq!(expected(10, 1, 10), (0.0, 0.0));
        let (recall, ndcg) = expected(3, 4, 5);
        assert_eq!(recall, 0.5);
        assert!((ndcg - (1.0 / 5f64.log2() + 1.0 / 6f64.log2()) / 4.0).abs() < 1e-12);
    }

    #[test]
    fn misuse_is_an_error() {
        let (queries, table) = (vec![1.0; 4], vec![1.0; 6]);
        assert!(standings(&queries, &table, 2, &[0, 3]).is_err());
        assert!(standings(&queries, &table, 2, &[0]).is_err());
        assert!(standings(&[f32::NAN; 2], &table, 2, &[0]).is_err());
        assert!(rank(&queries, &table, 2, (1, &[0, 1]), |_| vec![3]).is_err());
        assert!(rank(&[f32::INFINITY; 2], &table, 2, (1, &[0]), |_| vec![]).is_err());
    }
}
