//! Formulas of ranking metrics: over hits in a list, over the place of a single target, over counts of items.

/// Share of the relevant items among the first `k`. `hits` says of every place of a list whether its item is relevant.
pub fn recall(hits: &[bool], relevant: usize, k: usize) -> f64 {
    count(hits, k) as f64 / relevant as f64
}

/// Share of the first `k` places that hold a relevant item.
pub fn precision(hits: &[bool], k: usize) -> f64 {
    count(hits, k) as f64 / k as f64
}

/// 1 if any of the first `k` items is relevant.
pub fn hit_rate(hits: &[bool], k: usize) -> f64 {
    f64::from(count(hits, k) > 0)
}

/// Discounted gain over that of the best list of `k` items.
pub fn ndcg(hits: &[bool], relevant: usize, k: usize) -> f64 {
    let gain: f64 = places(hits, k).map(|(rank, _)| discount(rank)).sum();
    let best: f64 = (1..=relevant.min(k)).map(discount).sum();
    gain / best
}

/// One over the place of the first relevant item, 0 if there is none.
pub fn mrr(hits: &[bool], k: usize) -> f64 {
    places(hits, k).next().map_or(0.0, |(rank, _)| 1.0 / rank as f64)
}

/// Precision at every hit, summed, over the number of hits the best list of `k` has.
pub fn average_precision(hits: &[bool], relevant: usize, k: usize) -> f64 {
    let sum: f64 = places(hits, k).map(|(rank, found)| found as f64 / rank as f64).sum();
    sum / relevant.min(k) as f64
}

/// Ranks of the hits among the first `k`, each with the number of hits up to it.
fn places(hits: &[bool], k: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
    let found = hits.iter().take(k).enumerate().filter(|(_, hit)| **hit);
    found.zip(1..).map(|((place, _), found)| (place + 1, found))
}

fn count(hits: &[bool], k: usize) -> usize {
    hits.iter().take(k).filter(|hit| **hit).count()
}

/// What a hit at `rank` is worth to NDCG.
pub fn discount(rank: usize) -> f64 {
    1.0 / ((rank + 1) as f64).log2()
}

/// Recall, NDCG and MRR at `k` of a single target.
///
/// Hit rate equals recall, average precision equals MRR, and precision is recall over `k`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Single {
    /// Whether it is among the first `k`.
    pub recall: f64,
    /// Its discount.
    pub ndcg: f64,
    /// One over its rank.
    pub mrr: f64,
}

impl Single {
    /// Of a target at `rank`.
    pub fn at(rank: usize, k: usize) -> Self {
        match rank {
            rank if rank >= 1 && rank <= k => Single {
                recall: 1.0,
                ndcg: discount(rank),
                mrr: 1.0 / rank as f64,
            },
            _ => Single::default(),
        }
    }

    /// Expected over all orders of `tied` items (the target among them) below `better` ones.
    pub fn expected(better: usize, tied: usize, k: usize) -> Self {
        let mut sum = Single::default();
        for rank in (better + 1..=k).take(tied) {
            let single = Single::at(rank, k);
            sum.recall += single.recall;
            sum.ndcg += single.ndcg;
            sum.mrr += single.mrr;
        }
        let tied = tied.max(1) as f64;
        Single {
            recall: sum.recall / tied,
            ndcg: sum.ndcg / tied,
            mrr: sum.mrr / tied,
        }
    }
}

/// Gini coefficient of how often each of `items` items was listed; `counts` may leave out those never listed.
pub fn gini(counts: &[u64], items: usize) -> f64 {
    let mut counts = counts.to_vec();
    counts.sort_unstable();
    let total: u64 = counts.iter().sum();
    if total == 0 || items == 0 {
        return 0.0;
    }
    let first = items - counts.len().min(items) + 1;
    let weighted: f64 = (first..)
        .zip(&counts)
        .map(|(place, count)| (2.0 * place as f64 - items as f64 - 1.0) * *count as f64)
        .sum();
    weighted / (items as f64 * total as f64)
}

/// Entropy, in nats, of how often each thing occurs; the order of `counts` does not matter.
pub fn entropy(counts: &[u64]) -> f64 {
    let mut counts: Vec<u64> = counts.iter().copied().filter(|count| *count > 0).collect();
    counts.sort_unstable();
    let total = counts.iter().sum::<u64>() as f64;
    let part = |count: &u64| *count as f64 / total;
    -counts.iter().map(|count| part(count) * part(count).ln()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HITS: [[bool; 3]; 4] = [
        [false, false, false],
        [true, true, true],
        [true, false, true],
        [false, false, true],
    ];
    const RELEVANT: [usize; 4] = [1, 3, 4, 2];

    fn check(metric: impl Fn(&[bool], usize, usize) -> f64, user: usize, wanted: [f64; 3]) {
        for (k, wanted) in (1..).zip(wanted) {
            let found = metric(&HITS[user], RELEVANT[user], k);
            assert!(
                (found - wanted).abs() < 5e-11,
                "user {user} k {k}: {found} is not {wanted}"
            );
        }
    }

    /// The vectors of RecBole's unit test.
    #[test]
    fn lists_with_several_relevant_items() {
        check(recall, 0, [0.0; 3]);
        check(recall, 1, [1.0 / 3.0, 2.0 / 3.0, 1.0]);
        check(recall, 2, [0.25, 0.25, 0.5]);
        check(recall, 3, [0.0, 0.0, 0.5]);
        check(ndcg, 1, [1.0; 3]);
        check(ndcg, 2, [1.0, 0.613_147_192_8, 0.703_918_089_0]);
        check(ndcg, 3, [0.0, 0.0, 0.306_573_596_4]);
        check(|hits, _, k| mrr(hits, k), 3, [0.0, 0.0, 1.0 / 3.0]);
        check(average_precision, 2, [1.0, 0.5, 5.0 / 9.0]);
        check(average_precision, 3, [0.0, 0.0, 1.0 / 6.0]);
        check(|hits, _, k| precision(hits, k), 2, [1.0, 0.5, 2.0 / 3.0]);
        check(|hits, _, k| hit_rate(hits, k), 3, [0.0, 0.0, 1.0]);
    }

    #[test]
    fn a_single_target_is_a_list_with_one_hit() {
        for rank in 1..=4 {
            let hits: Vec<bool> = (1..=4).map(|place| place == rank).collect();
            for k in 1..=4 {
                let single = Single::at(rank, k);
                assert_eq!(single.recall, recall(&hits, 1, k));
                assert_eq!(single.recall, hit_rate(&hits, k));
                assert_eq!(single.ndcg, ndcg(&hits, 1, k));
                assert_eq!(single.mrr, mrr(&hits, k));
                assert_eq!(single.mrr, average_precision(&hits, 1, k));
                assert_eq!(single.recall / k as f64, precision(&hits, k));
            }
        }
    }

    #[test]
    fn expected_is_the_mean_over_places() {
        assert_eq!(Single::expected(3, 1, 5), Single::at(4, 5));
        assert_eq!(Single::expected(5, 4, 5), Single::default());
        let expected = Single::expected(4, 3, 5);
        assert_eq!(expected.recall, 1.0 / 3.0);
        assert_eq!(expected.ndcg, discount(5) / 3.0);
    }

    /// RecBole's lists [[5,7,3],[4,5,2],[2,3,5],[1,4,6],[5,3,7]] of 8 items: coverage 7/8.
    #[test]
    fn counts_of_items() {
        let counts = [1, 2, 3, 2, 4, 1, 2];
        assert!((gini(&counts, 8) - 41.0 / 120.0).abs() < 1e-12);
        assert!((entropy(&counts) - 1.841_390_374_9).abs() < 1e-10);
        assert_eq!(gini(&[2, 2, 2], 3), 0.0);
    }
}
