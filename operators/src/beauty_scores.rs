//! The counting baselines on Beauty, scored: every figure here was computed once with plain counting code.

use std::collections::HashMap;

use arrow::array::{Array, AsArray, RecordBatch, UInt64Array};
use arrow::datatypes::{Float64Type, UInt32Type};
use sluice_engine::harness;
use sluice_engine::operator::Operator;
use sluice_engine::table::Tables;

use crate::rank_itemknn::RankItemknn;
use crate::rank_markov::{Fallback, RankMarkov};
use crate::rank_popularity::RankPopularity;
use crate::schema;
use crate::score_ranking::ScoreRanking;
use crate::split_leave_one_out::Ties;

/// Beauty's train and test tables and its catalogue.
struct Beauty {
    train: RecordBatch,
    test: RecordBatch,
    items: RecordBatch,
}

impl Beauty {
    fn read(ties: Ties) -> Option<Self> {
        let (train, _, test) = crate::beauty::split(ties)?;
        let items = crate::beauty::interactions("item_id")?;
        Some(Beauty { train, test, items })
    }

    fn rank(&self, operator: &impl Operator) -> RecordBatch {
        let inputs = [
            ("train", self.train.clone()),
            ("histories", self.test.clone()),
            ("items", self.items.clone()),
        ];
        harness::run(operator, &inputs).unwrap().batch("out").unwrap()
    }

    fn score(&self, ranked: &RecordBatch, config: &ScoreRanking) -> Tables {
        let inputs = [
            ("ranked", ranked.clone()),
            ("targets", self.test.clone()),
            ("train", self.train.clone()),
            ("items", self.items.clone()),
        ];
        harness::run(config, &inputs).unwrap()
    }

    /// Metrics of a baseline by (metric, k, slice, ties).
    fn metrics(&self, operator: &impl Operator) -> Metrics {
        let config = ScoreRanking {
            resamples: 0,
            ..ScoreRanking::default()
        };
        Metrics::read(&self.score(&self.rank(operator), &config).batch("out").unwrap())
    }
}

struct Metrics(HashMap<(String, u32, String, String), (f64, u64)>);

impl Metrics {
    fn read(batch: &RecordBatch) -> Self {
        let text = |name, row| schema::strings(batch, name).unwrap().value(row).to_string();
        let k = schema::numbers::<UInt32Type>(batch, "k").unwrap();
        let values = schema::numbers::<Float64Type>(batch, "value").unwrap();
        let users: &UInt64Array = schema::numbers(batch, "users").unwrap();
        let row = |row| {
            let k = if k.is_valid(row) { k.value(row) } else { 0 };
            let key = (text("metric", row), k, text("slice", row), text("ties", row));
            (key, (values.value(row), users.value(row)))
        };
        Metrics((0..batch.num_rows()).map(row).collect())
    }

    fn of(&self, metric: &str, k: u32, slice: &str, ties: &str) -> (f64, u64) {
        self.0[&(metric.into(), k, slice.into(), ties.into())]
    }

    /// Hits, recall and NDCG at 5 and 10, to the printed precision.
    fn check(&self, ties: &str, precision: f64, wanted: [Option<f64>; 6]) {
        let names = [
            ("hits", 5),
            ("recall", 5),
            ("ndcg", 5),
            ("hits", 10),
            ("recall", 10),
            ("ndcg", 10),
        ];
        for ((metric, k), wanted) in names.into_iter().zip(wanted) {
            let (value, users) = self.of(metric, k, "all", ties);
            assert_eq!(users, 22_363);
            if let Some(wanted) = wanted {
                let near = if metric == "hits" { 1e-6 } else { precision };
                assert!(
                    (value - wanted).abs() <= near,
                    "{metric}@{k} {ties}: {value} is not {wanted}"
                );
            }
        }
    }
}

const EIGHT: f64 = 0.501e-8;
const SIX: f64 = 0.501e-6;

#[test]
fn popularity() {
    let Some(beauty) = Beauty::read(Ties::File) else { return };
    let all = beauty.metrics(&RankPopularity::default());
    all.check(
        "listed",
        EIGHT,
        [161.0, 0.007_199_39, 0.003_984_41, 256.0, 0.011_447_48, 0.005_346_60].map(Some),
    );
    assert_eq!(all.of("item_coverage", 10, "all", "listed").0, 10.0 / 12_101.0);
    assert_eq!(all.of("illegal", 10, "all", "listed").0, 0.0);
    assert_eq!(all.of("targets_not_ranked", 0, "all", "listed").0, 0.0);
    // Slices have the sizes that plain counting finds, and no slice of the cold can hit.
    for (slice, users) in [
        ("same_timestamp", 9_719),
        ("later", 12_644),
        ("cold_0", 138),
        ("cold_1", 677),
        ("cold_3", 3_141),
        ("cold_5", 6_197),
    ] {
        assert_eq!(all.of("recall", 5, slice, "listed").1, users, "{slice}");
    }
    assert_eq!(all.of("hits", 10, "cold_5", "optimistic").0, 0.0);
    let unseen = beauty.metrics(&RankPopularity {
        exclude_seen: true,
        ..RankPopularity::default()
    });
    unseen.check(
        "listed",
        EIGHT,
        [167.0, 0.007_467_69, 0.004_144_13, 258.0, 0.011_536_91, 0.005_456_14].map(Some),
    );
}

#[test]
fn markov() {
    let Some(beauty) = Beauty::read(Ties::File) else { return };
    let plain = beauty.metrics(&RankMarkov::default());
    for (ties, wanted) in [
        (
            "listed",
            [1_111.0, 0.049_680_28, 0.037_700_06, 1_395.0, 0.062_379_82, 0.041_812_95],
        ),
        (
            "pessimistic",
            [915.0, 0.040_915_80, 0.031_327_13, 1_142.0, 0.051_066_49, 0.034_610_35],
        ),
        (
            "optimistic",
            [
                6_626.0,
                0.296_292_98,
                0.163_445_83,
                11_498.0,
                0.514_152_84,
                0.234_112_57,
            ],
        ),
    ] {
        plain.check(ties, EIGHT, wanted.map(Some));
    }
    let popularity = |exclude_seen| RankMarkov {
        exclude_seen,
        fallback: Fallback::Popularity,
        ..RankMarkov::default()
    };
    let wanted = [
        None,
        Some(0.050_411),
        Some(0.037_707),
        None,
        Some(0.065_853),
        Some(0.042_721),
    ];
    beauty.metrics(&popularity(false)).check("expected", SIX, wanted);
    let wanted = [
        None,
        Some(0.051_439),
        Some(0.038_948),
        None,
        Some(0.066_770),
        Some(0.043_930),
    ];
    beauty.metrics(&popularity(true)).check("expected", SIX, wanted);
}

/// Expected recall at 5, by slice, where only targets that did follow the last item in train (score 1 or more) hit.
fn inside_the_transition_row(beauty: &Beauty) -> HashMap<&'static str, f64> {
    let ranked = beauty.rank(&RankMarkov {
        fallback: Fallback::Popularity,
        ..RankMarkov::default()
    });
    let text = |batch: &RecordBatch, name, row| schema::strings(batch, name).unwrap().value(row).to_string();
    let scores = schema::numbers::<Float64Type>(&ranked, "score").unwrap();
    let followed: HashMap<(String, String), bool> = (0..ranked.num_rows())
        .map(|row| {
            let key = (text(&ranked, "user_id", row), text(&ranked, "item_id", row));
            (key, scores.value(row) >= 1.0)
        })
        .collect();
    let config = ScoreRanking {
        resamples: 0,
        ..ScoreRanking::default()
    };
    let per_user = beauty.score(&ranked, &config).batch("per_user").unwrap();
    let recall = schema::numbers::<Float64Type>(&per_user, "recall_5").unwrap();
    let hits: Vec<f64> = (0..per_user.num_rows())
        .map(|row| (row, (text(&per_user, "user_id", row), text(&per_user, "target", row))))
        .map(|(row, key)| if followed[&key] { recall.value(row) } else { 0.0 })
        .collect();
    let mean = |which: &dyn Fn(usize) -> bool| {
        let rows: Vec<usize> = (0..hits.len()).filter(|row| which(*row)).collect();
        rows.iter().map(|row| hits[*row]).sum::<f64>() / rows.len() as f64
    };
    let flag = |slice| per_user.column_by_name(slice).unwrap().as_boolean();
    HashMap::from([
        ("all", mean(&|_| true)),
        ("same_timestamp", mean(&|row| flag("same_timestamp").value(row))),
        ("later", mean(&|row| flag("later").value(row))),
    ])
}

/// The reading of "hits inside the transition row, expected" that gives the stated figures is Markov then popularity,
/// over all users of the slice. (Without popularity: .0827 and .0243.)
#[test]
fn markov_by_slice() {
    let Some(beauty) = Beauty::read(Ties::File) else { return };
    let found = inside_the_transition_row(&beauty);
    for (slice, wanted) in [("same_timestamp", 0.0825), ("later", 0.0249)] {
        assert!((found[slice] - wanted).abs() <= 0.5e-4, "{slice}: {}", found[slice]);
    }
}

/// Part of what Markov finds in file order is file order.
#[test]
fn ties_shuffled_within_a_day() {
    let Some(beauty) = Beauty::read(Ties::Hash) else { return };
    let found = inside_the_transition_row(&beauty)["all"];
    assert!((0.035..=0.038).contains(&found), "{found}");
    let (listed, _) = beauty.metrics(&RankMarkov::default()).of("recall", 5, "all", "listed");
    assert!((0.034..=0.038).contains(&listed), "{listed}");
}

/// Neighbours beat popularity; intervals hold the value and are as wide as a binomial share says.
#[test]
fn itemknn_and_intervals() {
    let Some(beauty) = Beauty::read(Ties::File) else { return };
    let ranked = beauty.rank(&RankItemknn::default());
    let out = beauty.score(&ranked, &ScoreRanking::default()).batch("out").unwrap();
    let column = |name| schema::numbers::<Float64Type>(&out, name).unwrap();
    let row = (0..out.num_rows())
        .find(|row| {
            ["metric", "slice"].map(|name| schema::strings(&out, name).unwrap().value(*row)) == ["recall", "all"]
        })
        .unwrap();
    let (value, low, high) = (
        column("value").value(row),
        column("low").value(row),
        column("high").value(row),
    );
    assert!(value > 0.02 && value < 0.06, "{value}");
    let wanted = 2.0 * 1.96 * (value * (1.0 - value) / 22_363.0).sqrt();
    assert!(
        low < value && value < high && ((high - low) / wanted - 1.0).abs() < 0.1,
        "{low} {value} {high}"
    );
}
