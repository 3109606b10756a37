//! Scores ranked lists against targets: metrics with ties, slices and intervals, and a row a user.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt32Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::bootstrap::{Estimate, Users};
use crate::metric_rows::{self, Row};
use crate::metrics::{self, Single};
use crate::ranked_lists::{Hit, Lists, Targets};
use crate::schema::{self, BEAM, BETTER, ITEM_ID, RANK, SCORE, TARGET, TIED, USER_ID};
use crate::sequences;
use crate::slices;

const RANKED: &str = "ranked";
const TARGETS: &str = "targets";
const TRAIN: &str = "train";
const ITEMS: &str = "items";
const PER_USER: &str = "per_user";

/// The orders of tied items under which a target is scored.
const TIES: [(&str, &str); 4] = [
    ("listed", "at its rank in the list"),
    ("expected", "the mean over all orders of the tied items"),
    ("optimistic", "before all it is tied with"),
    ("pessimistic", "after all it is tied with"),
];

/// Metrics of ranked lists.
///
/// # In
/// `ranked`: ranked items. `targets`: evaluation rows, one a user. `train` (optional): sequences, for slices by
/// frequency and for average popularity. `items` (optional): the catalogue, for coverage and Gini.
///
/// # Out
/// `out`: rows `metric`, `k`, `slice`, `ties`, `value`, `low`, `high`, `users`. Metrics: `recall`, `ndcg`, `mrr`, `map`,
/// `hit_rate`, `precision`, `hits` (a sum), by slice and by rule for ties: `listed`, `expected`, `optimistic`,
/// `pessimistic`. `id_recall`: the place of the generated id is at most k, whichever of the items that share it comes
/// first. Of the lists as such: `item_coverage`, `gini`, `entropy` (nats), `average_popularity`, `illegal` (share of the
/// first k generated ids that are no item; where lists are that long). Without k: `users_without_prediction` (score
/// 0), `users_without_target` (skipped), `targets_not_ranked` (score 0), `duplicates` (repeats in a list,
/// dropped), `list_length` (the most generated ids of a list: cut-offs beyond it see short lists).
/// Slices without users are left out.
/// `per_user`: `target`, `rank`, `better`, `tied`, `beam`, a flag a slice, expected `recall_K` and `ndcg_K`.
///
/// # Source
/// Formulas as in RecBole; the expected value under ties as in McSherry and Najork, "Computing information retrieval
/// performance measures efficiently in the presence of tied scores" (2008). Intervals: percentile bootstrap over users.
///
/// # Deviates
/// A rank counts the catalogue, so a target below the list is still placed where its own row says so.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ScoreRanking {
    /// Cut-offs.
    pub k: Vec<u32>,
    /// Resamples of the intervals; 0 for none.
    pub resamples: u32,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Whether to score slices of the users; needs the times of `targets`.
    pub slices: bool,
}

impl Default for ScoreRanking {
    fn default() -> Self {
        ScoreRanking {
            k: vec![5, 10],
            resamples: 2000,
            confidence: 0.95,
            slices: true,
        }
    }
}

impl Operator for ScoreRanking {
    const NAME: &'static str = "score_ranking";
    const VERSION: u32 = 2;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[
        Input::required(RANKED, "ranked items"),
        Input::required(TARGETS, "evaluation rows"),
        Input::optional(TRAIN, "train sequences, for slices by frequency and average popularity"),
        Input::optional(ITEMS, "the catalogue, for coverage and Gini"),
    ];

    fn seeded(&self) -> bool {
        self.resamples > 0
    }

    fn bind(&self, binding: &Binding) -> Bound {
        if self.k.is_empty() || self.k.contains(&0) {
            binding.bad_value("k", "\"k\" wants one or more cut-offs, each at least 1");
        }
        if self.k.iter().collect::<HashSet<_>>().len() < self.k.len() {
            binding.bad_value("k", "\"k\" names a cut-off twice");
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            binding.bad_value("confidence", "\"confidence\" must lie between 0 and 1");
        }
        binding.require(
            RANKED,
            &[
                (USER_ID, DataType::Utf8),
                (RANK, DataType::UInt32),
                (ITEM_ID, DataType::Utf8),
                (SCORE, DataType::Float64),
                (BETTER, DataType::UInt32),
                (TIED, DataType::UInt32),
                (BEAM, DataType::UInt32),
            ],
        );
        match self.slices {
            true => sequences::require_timed_targets(binding, TARGETS),
            false => sequences::require_targets(binding, TARGETS),
        }
        sequences::require(binding, TRAIN);
        binding.require(ITEMS, &[(ITEM_ID, DataType::Utf8)]);
        Bound::whole()
            .out(Shape::table(metric_rows::fields()))
            .output(PER_USER, Shape::table(self.per_user_fields(binding.has(TRAIN))))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let targets = Targets::read(&inputs, self.slices)?;
        if targets.rows.num_rows() == 0 {
            let error = Error::data("no-users", "no user is evaluated: \"targets\" has no rows");
            return Err(error
                .hint("users with fewer than 3 items are not evaluated: lower \"k\" of the core, or give more data"));
        }
        let lists = Lists::read(inputs.table(RANKED)?, &targets)?;
        context.check_cancelled()?;
        let mut rows = self.score_targets(context, &targets, &lists);
        rows.extend(self.score_lists(&targets, &lists));
        rows.extend(lists.facts().map(|(metric, count)| Row {
            metric,
            k: None,
            slice: slices::ALL,
            ties: "listed",
            value: Estimate::of(count as f64),
            users: lists.users.len() as u64,
        }));
        Ok(Tables::new()
            .with(OUT, metric_rows::table(&rows)?)
            .with(PER_USER, self.per_user(&targets, &lists)?))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let pairs = |pairs: &[(&str, &str)]| -> Value {
            let pairs = pairs.iter().map(|(name, about)| (name.to_string(), json!(about)));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let protocol = json!({
            "ranking": "over the whole eligible catalogue, as the stage that ranks says",
            "ties": pairs(&TIES),
            "slices": pairs(&slices::definitions(self.slices, rows_in.contains_key(TRAIN))),
            "duplicates": "the first stays, items after it move up",
            "no_prediction": "scores 0",
            "no_target": "skipped",
            "intervals": {"method": "percentile bootstrap over users", "resamples": self.resamples, "confidence": self.confidence},
        });
        let mut notes = Notes::from_iter([("protocol".to_string(), protocol)]);
        let out = outputs.batch(OUT)?;
        let (names, ties) = (schema::strings(&out, "metric")?, schema::strings(&out, "ties")?);
        let (of, k) = (
            schema::strings(&out, "slice")?,
            schema::numbers::<UInt32Type>(&out, "k")?,
        );
        let values = schema::numbers::<Float64Type>(&out, "value")?;
        for row in (0..out.num_rows()).filter(|row| of.value(*row) == slices::ALL && ties.value(*row) == "listed") {
            let name = match k.is_valid(row) {
                true => format!("{}@{}", names.value(row), k.value(row)),
                false => names.value(row).to_string(),
            };
            notes.insert(name, json!(values.value(row)));
        }
        Ok(notes)
    }
}

impl ScoreRanking {
    fn score_targets(&self, context: &Context, targets: &Targets, lists: &Lists) -> Vec<Row> {
        let width = self.k.len() * (3 * TIES.len() + 1);
        let mut values = Vec::with_capacity(width * lists.users.len());
        for user in &lists.users {
            for k in self.k.iter().map(|k| *k as usize) {
                for (ties, _) in TIES {
                    let single = user.score(ties, k);
                    values.extend([single.recall, single.ndcg, single.mrr]);
                }
                values.push(f64::from(
                    user.target.map(|hit| hit.beam).is_some_and(|beam| beam as usize <= k),
                ));
            }
        }
        let users = Users::new(&values, width, &targets.masks, targets.slices.len());
        let estimates = users.estimates(self.resamples as usize, self.confidence, context.random("bootstrap"));
        let mut rows = Vec::new();
        for (group, (slice, size)) in targets.slices.iter().zip(users.sizes()).enumerate() {
            if size == 0 && *slice != slices::ALL {
                continue;
            }
            let mut estimates = estimates[group * width..][..width].iter().copied();
            let mut next = || estimates.next().unwrap_or(Estimate::of(0.0));
            for k in &self.k {
                let mut push = |metric, ties, value| {
                    rows.push(Row {
                        metric,
                        k: Some(*k),
                        slice,
                        ties,
                        value,
                        users: size,
                    })
                };
                for (ties, _) in TIES {
                    let (recall, ndcg, mrr) = (next(), next(), next());
                    push("recall", ties, recall);
                    push("ndcg", ties, ndcg);
                    push("mrr", ties, mrr);
                    push("map", ties, mrr);
                    push("hit_rate", ties, recall);
                    push("precision", ties, recall.times(1.0 / f64::from(*k)));
                    push("hits", ties, recall.times(size as f64));
                }
                push("id_recall", "listed", next());
            }
        }
        rows
    }

    fn score_lists(&self, targets: &Targets, lists: &Lists) -> Vec<Row> {
        let mut rows = Vec::new();
        let users = lists.users.len() as u64;
        for k in &self.k {
            let mut counts = vec![0u64; targets.catalogue.len()];
            for item in lists.users.iter().flat_map(|user| user.first(*k)) {
                counts[item as usize] += 1;
            }
            let listed: u64 = counts.iter().sum();
            if listed == 0 {
                continue;
            }
            let mut push = |metric, value| {
                rows.push(Row {
                    metric,
                    k: Some(*k),
                    slice: slices::ALL,
                    ties: "listed",
                    value: Estimate::of(value),
                    users,
                })
            };
            if targets.whole_catalogue {
                let covered = counts.iter().filter(|count| **count > 0).count();
                push("item_coverage", covered as f64 / counts.len() as f64);
                push("gini", metrics::gini(&counts, counts.len()));
            }
            push("entropy", metrics::entropy(&counts));
            if let Some(train) = &targets.counts {
                let popularity: u64 = counts.iter().zip(train).map(|(count, train)| count * train).sum();
                push("average_popularity", popularity as f64 / listed as f64);
            }
            if *k <= lists.width {
                let legal: u64 = lists.users.iter().map(|user| user.legal(*k)).sum();
                push("illegal", 1.0 - legal as f64 / (users as f64 * f64::from(*k)));
            }
        }
        rows
    }

    fn per_user_fields(&self, counts: bool) -> Vec<Field> {
        let mut fields = vec![
            Field::new(USER_ID, DataType::Utf8, false),
            Field::new(TARGET, DataType::Utf8, false),
            Field::new(RANK, DataType::UInt32, true),
            Field::new(BETTER, DataType::UInt32, true),
            Field::new(TIED, DataType::UInt32, true),
            Field::new(BEAM, DataType::UInt32, true),
        ];
        for (slice, _) in slices::definitions(self.slices, counts).into_iter().skip(1) {
            fields.push(Field::new(slice, DataType::Boolean, false));
        }
        for k in &self.k {
            fields.push(Field::new(format!("recall_{k}"), DataType::Float64, false));
            fields.push(Field::new(format!("ndcg_{k}"), DataType::Float64, false));
        }
        fields
    }

    fn per_user(&self, targets: &Targets, lists: &Lists) -> Result<Table> {
        let column = |of: fn(&Hit) -> u32| -> ArrayRef {
            Arc::new(UInt32Array::from_iter(
                lists.users.iter().map(|user| user.target.as_ref().map(of)),
            ))
        };
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(schema::strings(&targets.rows, USER_ID)?.clone()),
            Arc::new(schema::strings(&targets.rows, TARGET)?.clone()),
            column(|hit| hit.rank),
            column(|hit| hit.better),
            column(|hit| hit.tied),
            column(|hit| hit.beam),
        ];
        for slice in 1..targets.slices.len() {
            let flags: Vec<bool> = targets.masks.iter().map(|mask| mask >> slice & 1 == 1).collect();
            columns.push(Arc::new(BooleanArray::from(flags)));
        }
        for k in &self.k {
            let scores: Vec<Single> = lists
                .users
                .iter()
                .map(|user| user.score("expected", *k as usize))
                .collect();
            let column = |of: fn(&Single) -> f64| Arc::new(Float64Array::from_iter_values(scores.iter().map(of)));
            columns.extend([column(|single| single.recall) as ArrayRef, column(|single| single.ndcg)]);
        }
        let fields = self.per_user_fields(targets.counts.is_some());
        Ok(Table::new(RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            columns,
        )?))
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    const ROWS: &str = "user_id rank:u32 item_id score:f64 better:u32 tied:u32 beam:u32
        u 1 a 9 0 1 1
        u 2 a 8 1 1 2
        u 3 b 7 2 2 4
        v 1 c 5 0 1 1
        v 40 d 1 39 9 40
        x 1 c 5 0 1 1";
    const EVALUATION: &str = "user_id sequence:[str] timestamps:[ts] target target_timestamp:ts
        u a 5 b 5
        v a,b 1,2 d 7
        w a 1 c 7";

    fn score(config: &ScoreRanking, ranked: &str, more: &[(&'static str, &str)]) -> Result<Tables> {
        let mut inputs = vec![
            (RANKED, text::parse(ranked).unwrap()),
            (TARGETS, text::parse(EVALUATION).unwrap()),
        ];
        inputs.extend(more.iter().map(|(port, rows)| (*port, text::parse(rows).unwrap())));
        harness::run(config, &inputs)
    }

    fn value(out: &Tables, wanted: (&str, Option<u32>, &str, &str)) -> f64 {
        let batch = out.batch(OUT).unwrap();
        let column = |name| schema::strings(&batch, name).unwrap();
        let k = schema::numbers::<UInt32Type>(&batch, "k").unwrap();
        let values = schema::numbers::<Float64Type>(&batch, "value").unwrap();
        let row = (0..batch.num_rows()).find(|row| {
            let k = k.is_valid(*row).then(|| k.value(*row));
            let [metric, slice, ties] = ["metric", "slice", "ties"].map(|name| column(name).value(*row));
            (metric, k, slice, ties) == wanted
        });
        values.value(row.unwrap_or_else(|| panic!("no row {wanted:?}")))
    }

    #[test]
    fn ties_duplicates_and_missing_users() {
        let config = ScoreRanking {
            k: vec![2, 3],
            ..ScoreRanking::default()
        };
        let more = [
            (TRAIN, "user_id sequence:[str]\n u a,a\n v b"),
            (ITEMS, "item_id\n a\n b\n c\n d"),
        ];
        let out = score(&config, ROWS, &more).unwrap();
        for (metric, k, slice, ties, wanted) in [
            // The repeat of "a" is dropped, so "b" moves up to 2; by its score it ties for 3 and 4.
            ("recall", Some(2), "all", "listed", 1.0 / 3.0),
            ("recall", Some(3), "all", "expected", 0.5 / 3.0),
            ("recall", Some(3), "all", "optimistic", 1.0 / 3.0),
            ("recall", Some(3), "all", "pessimistic", 0.0),
            ("ndcg", Some(3), "all", "expected", 0.25 / 3.0),
            ("hits", Some(2), "all", "listed", 1.0),
            ("precision", Some(2), "all", "listed", 1.0 / 6.0),
            ("mrr", Some(2), "same_timestamp", "listed", 0.5),
            ("recall", Some(2), "later", "listed", 0.0),
            ("recall", Some(2), "cold_1", "listed", 1.0 / 3.0),
            ("id_recall", Some(3), "all", "listed", 0.0),
            ("item_coverage", Some(2), "all", "listed", 0.75),
            ("average_popularity", Some(2), "all", "listed", 1.0),
            ("users_without_prediction", None, "all", "listed", 1.0),
            ("users_without_target", None, "all", "listed", 1.0),
            ("targets_not_ranked", None, "all", "listed", 1.0),
            ("duplicates", None, "all", "listed", 1.0),
        ] {
            let found = value(&out, (metric, k, slice, ties));
            assert!(
                (found - wanted).abs() < 1e-12,
                "{metric} {k:?} {slice} {ties}: {found} is not {wanted}"
            );
        }
        let per_user = out
            .batch(PER_USER)
            .unwrap()
            .project(&[0, 1, 2, 3, 4, 5, 6, 12])
            .unwrap();
        let wanted = "user_id  target  rank  better  tied  beam  same_timestamp  cold_3
u        b       2     2       2     4     true            true
v        d       40    39      9     40    false           true
w        c       null  null    null  null  false           true
";
        let names = per_user.schema();
        assert_eq!(names.field(7).name(), "cold_1");
        assert_eq!(text::render(&per_user).unwrap(), wanted.replace("cold_3", "cold_1"));
    }

    #[test]
    fn beams_that_are_no_item_are_counted() {
        let ranked = "user_id rank:u32 item_id score:f64 better:u32 tied:u32 beam:u32
            u 1 a 9 0 1 1
            u 2 b 7 1 2 3
            v 1 c 5 0 1 1
            v 2 a 5 1 1 2
            w 1 a 5 0 1 1
            w 2 b 5 1 1 2";
        let config = ScoreRanking {
            k: vec![1, 2],
            ..ScoreRanking::default()
        };
        let out = score(&config, ranked, &[]).unwrap();
        assert_eq!(value(&out, ("illegal", Some(1), "all", "listed")), 0.0);
        assert!((value(&out, ("illegal", Some(2), "all", "listed")) - 1.0 / 6.0).abs() < 1e-12);
        assert!(value(&out, ("entropy", Some(2), "all", "listed")) > 0.0);
    }

    #[test]
    fn nobody_is_not_scored() {
        let ranked = text::parse(ROWS).unwrap();
        let targets = text::parse(EVALUATION).unwrap();
        for ranked in [ranked.clone(), ranked.slice(0, 0)] {
            let inputs = [(RANKED, ranked), (TARGETS, targets.slice(0, 0))];
            let error = harness::run(&ScoreRanking::default(), &inputs).unwrap_err();
            assert_eq!(error.code, "no-users", "{error}");
        }
    }

    #[test]
    fn wrong_values_are_refused() {
        let nan = "user_id rank:u32 item_id score:f64 better:u32 tied:u32 beam:u32\n u 1 a NaN 0 1 1";
        let error = score(&ScoreRanking::default(), nan, &[]).unwrap_err();
        assert_eq!(error.message, "the score of item \"a\" for user \"u\" is not a number");
        let config = ScoreRanking {
            k: vec![0, 5, 5],
            confidence: 1.0,
            ..ScoreRanking::default()
        };
        let error = score(&config, ROWS, &[]).unwrap_err();
        assert_eq!((error.code.as_str(), error.detail.len()), ("bad-value", 2));
    }
}
