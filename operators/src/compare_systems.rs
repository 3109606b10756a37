//! Compares systems over the same users: means over seeds, paired differences with intervals and p values, by slice.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::comparison::{self, Comparison, Scores, Settings, System};
use crate::protocol;
use crate::schema::USER_ID;
use crate::slices::ALL;

const SYSTEMS: &str = "systems";

/// Compares systems that were scored on the same users.
///
/// # In
/// Two or more systems, each `per_user` of `score_ranking`; the name of the input is that of the system. Gathered from a
/// sweep (`scores.per_user[*]`), a system is a point of its axes (the columns before `user_id`), and points that differ in
/// the axis `seed_axis` alone are the runs of one.
///
/// # Out
/// `out`: a row a pair, metric and slice: `a`, `b`, `metric`, `slice`, `users`, `difference` (a less b, averaged over
/// seeds first), `low`, `high`, `p`, `p_holm` (corrected for the pairs of that metric and slice). `systems`: `system`,
/// `metric`, `slice`, `users`, `seeds`, `mean`, `deviation` (sample standard deviation over seeds; null of one), `place`
/// (1 is the highest mean). Slices without users have no rows.
///
/// # Source
/// The statistics of `sluice compare`: percentile bootstrap over users, paired; two-sided sign-flip randomisation (Fisher
/// 1935; Phipson and Smyth 2010); Holm (1979).
///
/// # Deviates
/// Systems of different protocols are refused before anything runs: which interactions stay, split, rule for ties, seen
/// items ranked or not, length of the history. Facts come with the graph; what an `sql` stage or a source leaves out is
/// not known.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CompareSystems {
    /// Metrics, columns such as `recall_10`; none for all that every system has.
    pub metrics: Vec<String>,
    /// Slices: `all`, or columns of `per_user` such as `later`.
    pub slices: Vec<String>,
    /// The axis whose values are the runs of one system.
    pub seed_axis: String,
    /// Resamples of intervals and of p values that are not exact.
    pub resamples: u32,
    /// Coverage of the intervals.
    pub confidence: f64,
    /// Whether systems of different protocols may stand beside each other.
    pub allow_mixed_protocols: bool,
}

impl Default for CompareSystems {
    fn default() -> Self {
        CompareSystems {
            metrics: Vec::new(),
            slices: vec![ALL.into()],
            seed_axis: "seed".into(),
            resamples: 10_000,
            confidence: 0.95,
            allow_mixed_protocols: false,
        }
    }
}

/// The values of a point, by axis.
type Axes = Vec<(String, String)>;

/// A run of a system: the rows of one point.
struct Run {
    system: String,
    label: String,
    rows: RecordBatch,
}

impl Operator for CompareSystems {
    const NAME: &'static str = "compare_systems";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(
        ANY,
        "values by user of a system (score_ranking.per_user); its name names the system",
    )];

    fn bind(&self, binding: &Binding) -> Bound {
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            binding.bad_value("confidence", "\"confidence\" must lie between 0 and 1");
        }
        if self.resamples == 0 {
            binding.bad_value("resamples", "\"resamples\" must be at least 1");
        }
        if self.slices.is_empty() || self.slices.iter().collect::<BTreeSet<_>>().len() < self.slices.len() {
            binding.bad_value("slices", "\"slices\" wants one or more slices, each once");
        }
        for input in binding.inputs() {
            binding.require(input, &[(USER_ID, DataType::Utf8)]);
            for metric in &self.metrics {
                binding.require(input, &[(metric, DataType::Float64)]);
            }
            for slice in self.slices.iter().filter(|slice| *slice != ALL) {
                binding.require(input, &[(slice, DataType::Boolean)]);
            }
        }
        if self.metrics.is_empty() && binding.inputs().all(|input| binding.schema(input).is_some()) {
            let shared = shared_metrics(
                binding
                    .inputs()
                    .filter_map(|input| binding.schema(input))
                    .map(AsRef::as_ref),
            );
            if shared.is_empty() {
                let error = Error::user("no-shared-metric", "the systems have no metric in common");
                binding.problem("metrics", error.hint("give their score_ranking the same \"k\""));
            }
        }
        if !self.allow_mixed_protocols
            && let Some(error) = protocol::mixed(binding)
        {
            binding.problem("allow_mixed_protocols", error);
        }
        Bound::whole()
            .out(Shape::table(difference_fields()))
            .output(SYSTEMS, Shape::table(system_fields()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let mut runs = Vec::new();
        let mut schemas = Vec::new();
        for (name, table) in inputs.iter() {
            let batch = table.batch()?;
            schemas.push(batch.schema());
            runs.extend(self.runs(name, &batch)?);
        }
        let mut names: Vec<String> = Vec::new();
        for run in &runs {
            if !names.contains(&run.system) {
                names.push(run.system.clone());
            }
        }
        if names.len() < 2 {
            let message = format!("there is one system, \"{}\"", names.first().map_or("", String::as_str));
            return Err(Error::user("one-system", message)
                .hint("connect another, or gather over an axis that is not \"seed_axis\""));
        }
        let metrics = match self.metrics.is_empty() {
            true => shared_metrics(schemas.iter().map(AsRef::as_ref)),
            false => self.metrics.clone(),
        };
        let settings = Settings {
            resamples: self.resamples as usize,
            confidence: self.confidence,
            seed: context.seed,
        };
        let mut compared = Vec::new();
        for slice in &self.slices {
            let rows: Vec<RecordBatch> = runs.iter().map(|run| within(&run.rows, slice)).collect::<Result<_>>()?;
            if rows.iter().all(|rows| rows.num_rows() == 0) {
                continue;
            }
            for metric in &metrics {
                context.check_cancelled()?;
                let mut systems: Vec<System> = names
                    .iter()
                    .map(|name| System {
                        name: name.clone(),
                        runs: Vec::new(),
                    })
                    .collect();
                for (run, rows) in runs.iter().zip(&rows) {
                    let mut scores = Scores::read(&run.label, rows, metric)?;
                    if self.allow_mixed_protocols {
                        scores = scores.of_any_target();
                    }
                    let system = systems.iter_mut().find(|system| system.name == run.system);
                    system
                        .ok_or_else(|| Error::internal("a run without a system"))?
                        .runs
                        .push(scores);
                }
                let comparison = comparison::compare(&systems, &settings)?;
                compared.push(Compared {
                    metric: metric.clone(),
                    slice: slice.clone(),
                    comparison,
                });
            }
        }
        Ok(Tables::new()
            .with(OUT, differences(&names, &compared)?)
            .with(SYSTEMS, summaries(&names, &compared)?))
    }
}

/// A comparison by one metric over one slice.
struct Compared {
    metric: String,
    slice: String,
    comparison: Comparison,
}

impl CompareSystems {
    /// The runs of an input: its points, named by their axes but the seed's.
    fn runs(&self, name: &str, batch: &RecordBatch) -> Result<Vec<Run>> {
        let schema = batch.schema();
        let axes = schema.index_of(USER_ID)?;
        let options = FormatOptions::default();
        let formatters: Vec<ArrayFormatter> = batch.columns()[..axes]
            .iter()
            .map(|column| ArrayFormatter::try_new(column, &options))
            .collect::<Result<_, _>>()?;
        let point = |row: usize| -> Axes {
            let pairs = schema.fields()[..axes].iter().zip(&formatters);
            pairs
                .map(|(field, values)| (field.name().clone(), values.value(row).to_string()))
                .collect()
        };
        let mut points: Vec<(Axes, Vec<u32>)> = Vec::new();
        for row in 0..batch.num_rows() {
            let point = point(row);
            // A point's rows come together, unless someone reordered them.
            match points.iter_mut().rev().find(|(known, _)| *known == point) {
                Some((_, rows)) => rows.push(row as u32),
                None => points.push((point, vec![row as u32])),
            }
        }
        let written = |point: &Axes, all: bool| {
            let axes = point.iter().filter(|(axis, _)| all || *axis != self.seed_axis);
            let axes: Vec<String> = axes.map(|(axis, value)| format!("{axis}={value}")).collect();
            if axes.is_empty() {
                name.to_string()
            } else {
                format!("{name}[{}]", axes.join(","))
            }
        };
        points
            .into_iter()
            .map(|(point, rows)| {
                let rows = arrow::array::UInt32Array::from(rows);
                Ok(Run {
                    system: written(&point, false),
                    label: written(&point, true),
                    rows: arrow::compute::take_record_batch(batch, &rows)?,
                })
            })
            .collect()
    }
}

/// Metrics that all tables have, in the order of the first. Axes stand before the users and are none.
fn shared_metrics<'a>(schemas: impl Iterator<Item = &'a Schema>) -> Vec<String> {
    let mut shared: Option<Vec<String>> = None;
    for schema in schemas {
        let axes = schema.index_of(USER_ID).unwrap_or(0);
        let own = Schema::new(schema.fields().iter().skip(axes).cloned().collect::<Vec<_>>());
        let own = comparison::metrics(&own);
        shared = Some(match shared {
            None => own,
            Some(shared) => shared.into_iter().filter(|metric| own.contains(metric)).collect(),
        });
    }
    shared.unwrap_or_default()
}

/// The rows of a slice.
fn within(rows: &RecordBatch, slice: &str) -> Result<RecordBatch> {
    if slice == ALL {
        return Ok(rows.clone());
    }
    let flags = rows.column_by_name(slice).and_then(|column| column.as_boolean_opt());
    let flags = flags.ok_or_else(|| Error::internal(format!("no slice \"{slice}\"")))?;
    Ok(filter_record_batch(rows, flags)?)
}

fn word(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

fn count(name: &str) -> Field {
    Field::new(name, DataType::UInt64, false)
}

fn number(name: &str, nullable: bool) -> Field {
    Field::new(name, DataType::Float64, nullable)
}

fn difference_fields() -> Vec<Field> {
    vec![
        word("a"),
        word("b"),
        word("metric"),
        word("slice"),
        count("users"),
        number("difference", false),
        number("low", true),
        number("high", true),
        number("p", false),
        number("p_holm", false),
    ]
}

fn system_fields() -> Vec<Field> {
    vec![
        word("system"),
        word("metric"),
        word("slice"),
        count("users"),
        count("seeds"),
        number("mean", false),
        number("deviation", true),
        count("place"),
    ]
}

fn words<'a>(rows: impl Iterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows))
}

fn differences(names: &[String], compared: &[Compared]) -> Result<Table> {
    let rows: Vec<_> = compared
        .iter()
        .flat_map(|of| of.comparison.differences.iter().map(move |difference| (of, difference)))
        .collect();
    let numbers = |of: &dyn Fn(&comparison::Difference) -> Option<f64>| -> ArrayRef {
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| of(row.1))))
    };
    let columns = vec![
        words(rows.iter().map(|row| names[row.1.pair.0].as_str())),
        words(rows.iter().map(|row| names[row.1.pair.1].as_str())),
        words(rows.iter().map(|row| row.0.metric.as_str())),
        words(rows.iter().map(|row| row.0.slice.as_str())),
        Arc::new(UInt64Array::from_iter_values(
            rows.iter().map(|row| row.0.comparison.users as u64),
        )) as ArrayRef,
        numbers(&|row| Some(row.mean)),
        numbers(&|row| row.interval.map(|ends| ends.0)),
        numbers(&|row| row.interval.map(|ends| ends.1)),
        numbers(&|row| Some(row.p)),
        numbers(&|row| Some(row.holm)),
    ];
    let schema = Arc::new(Schema::new(difference_fields()));
    Ok(Table::new(RecordBatch::try_new(schema, columns)?))
}

fn summaries(names: &[String], compared: &[Compared]) -> Result<Table> {
    let mut rows = Vec::new();
    for of in compared {
        let all = &of.comparison.summaries;
        for (name, summary) in names.iter().zip(all) {
            let place = 1 + all.iter().filter(|other| other.mean > summary.mean).count() as u64;
            rows.push((of, name, summary, place));
        }
    }
    let counts =
        |of: &dyn Fn(usize) -> u64| -> ArrayRef { Arc::new(UInt64Array::from_iter_values((0..rows.len()).map(of))) };
    let columns = vec![
        words(rows.iter().map(|row| row.1.as_str())),
        words(rows.iter().map(|row| row.0.metric.as_str())),
        words(rows.iter().map(|row| row.0.slice.as_str())),
        counts(&|at| rows[at].0.comparison.users as u64),
        counts(&|at| rows[at].2.runs as u64),
        Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2.mean))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.2.deviation))),
        counts(&|at| rows[at].3),
    ];
    let schema = Arc::new(Schema::new(system_fields()));
    Ok(Table::new(RecordBatch::try_new(schema, columns)?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use arrow::datatypes::Float64Type;
    use sluice_engine::graph::Graph;
    use sluice_engine::spec::Spec;
    use sluice_engine::{harness, text};

    use super::*;

    fn users(of: impl Fn(usize) -> f64, point: &str, rows: &mut String) {
        for user in 0..40 {
            let value = of(user);
            rows.push_str(&format!("\n{point}u{user} i {} {value} {}", user % 4 == 0, value / 2.0));
        }
    }

    const HEAD: &str = "user_id target later:bool recall_10:f64 ndcg_10:f64";

    fn cell(table: &RecordBatch, column: &str, row: usize) -> f64 {
        table[column].as_primitive::<Float64Type>().value(row)
    }

    #[test]
    fn systems_seeds_and_slices() {
        let mut tiger = format!("size seed:i64 {HEAD}");
        for (size, more) in [("s", 0.0), ("l", 0.3)] {
            for seed in 1..=3 {
                let value = |user: usize| more + 0.1 * seed as f64 + (user % 3) as f64 / 10.0;
                users(value, &format!("{size} {seed} "), &mut tiger);
            }
        }
        let mut markov = HEAD.to_string();
        users(|user| (user % 3) as f64 / 10.0, "", &mut markov);
        let config = CompareSystems {
            slices: vec!["all".into(), "later".into()],
            resamples: 500,
            ..CompareSystems::default()
        };
        let inputs = [
            ("tiger", text::parse(&tiger).unwrap()),
            ("markov", text::parse(&markov).unwrap()),
        ];
        let out = harness::run(&config, &inputs).unwrap();
        let systems = out.batch(SYSTEMS).unwrap();
        assert_eq!(systems.num_rows(), 3 * 2 * 2);
        let names = systems["system"].as_string::<i32>();
        assert_eq!(
            [names.value(0), names.value(1), names.value(2)],
            ["markov", "tiger[size=s]", "tiger[size=l]"]
        );
        assert!((cell(&systems, "deviation", 1) - 0.1).abs() < 1e-12);
        assert!(systems["deviation"].is_null(0));
        let differences = out.batch(OUT).unwrap();
        assert_eq!(differences.num_rows(), 3 * 2 * 2);
        // markov less the small tiger, all users: seeds average .2 more.
        assert!((cell(&differences, "difference", 0) + 0.2).abs() < 1e-12);
        assert!((cell(&differences, "p", 0) - 1.0 / 501.0).abs() < 1e-12);
        assert!((cell(&differences, "p_holm", 0) - 3.0 / 501.0).abs() < 1e-12);
        assert_eq!(differences["slice"].as_string::<i32>().value(11), "later");
        assert_eq!(
            differences["users"]
                .as_primitive::<arrow::datatypes::UInt64Type>()
                .value(11),
            10
        );
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let mut one = HEAD.to_string();
        users(|user| user as f64, "", &mut one);
        let parse = |rows: &str| text::parse(rows).unwrap();
        let run =
            |config: &CompareSystems, inputs: &[(&str, RecordBatch)]| harness::run(config, inputs).unwrap_err().code;
        let config = CompareSystems::default();
        assert_eq!(run(&config, &[("a", parse(&one))]), "one-system");
        let other = one.replace("u7 ", "v7 ");
        assert_eq!(
            run(&config, &[("a", parse(&one)), ("b", parse(&other))]),
            "different-users"
        );
        let other = parse(&one.replace("recall_10", "recall_5").replace("ndcg_10", "ndcg_5"));
        assert_eq!(run(&config, &[("a", parse(&one)), ("b", other)]), "no-shared-metric");
        let config = CompareSystems {
            slices: vec!["latr".into()],
            ..config
        };
        assert_eq!(
            run(&config, &[("a", parse(&one)), ("b", parse(&one))]),
            "missing-column"
        );
    }

    fn check(compare: &str) -> Result<(), Vec<Error>> {
        let text = format!(
            "pipeline: p
stages:
  shop: {{ op: synthesize }}
  core: {{ op: filter_kcore, input: shop.interactions }}
  loose: {{ op: filter_kcore, input: shop.interactions, k: 2 }}
  split: {{ op: split_leave_one_out, input: core }}
  shuffled: {{ op: split_leave_one_out, input: core, ties: hash }}
  other: {{ op: split_leave_one_out, input: loose }}
  a: {{ op: rank_markov, inputs: {{ train: split.train, histories: split.test, items: shop.items }} }}
  b: {{ op: rank_popularity, inputs: {{ train: split.train, histories: split.test, items: shop.items }} }}
  unseen: {{ op: rank_popularity, inputs: {{ train: split.train, histories: split.test, items: shop.items }}, exclude_seen: true }}
  c: {{ op: rank_popularity, inputs: {{ train: shuffled.train, histories: shuffled.test, items: shop.items }} }}
  d: {{ op: rank_popularity, inputs: {{ train: other.train, histories: other.test, items: shop.items }} }}
  sa: {{ op: score_ranking, inputs: {{ ranked: a, targets: split.test }} }}
  sb: {{ op: score_ranking, inputs: {{ ranked: b, targets: split.test }} }}
  su: {{ op: score_ranking, inputs: {{ ranked: unseen, targets: split.test }} }}
  sc: {{ op: score_ranking, inputs: {{ ranked: c, targets: shuffled.test }} }}
  sd: {{ op: score_ranking, inputs: {{ ranked: d, targets: other.test }} }}
  through: {{ op: sql, inputs: {{ rows: sc.per_user }}, query: SELECT * FROM rows }}
  compared: {{ op: compare_systems, {compare} }}
"
        );
        let spec = Spec::parse("p.yaml", &text, &Default::default())?;
        Graph::build(&spec, &crate::registry(), Path::new(".")).map(|_| ())
    }

    /// Before anything runs, and through whatever lies between.
    #[test]
    fn mixed_protocols_are_refused_by_the_graph() {
        check("inputs: { a: sa.per_user, b: sb.per_user }").unwrap();
        for (inputs, name) in [
            (
                "{ a: sa.per_user, b: sc.per_user }",
                "ties: \"file\" of a; \"hash\" of b",
            ),
            ("{ a: sa.per_user, b: through }", "ties: \"file\" of a; \"hash\" of b"),
            (
                "{ a: sa.per_user, b: su.per_user }",
                "seen_items: \"left out\" of b; \"ranked\" of a",
            ),
            (
                "{ a: sa.per_user, b: sd.per_user }",
                "filter: \"2-core of users, 2-core of items\" of b",
            ),
        ] {
            let problems = check(&format!("inputs: {inputs}")).unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].code, "mixed-protocols");
            assert!(problems[0].to_string().contains(name), "{}", problems[0]);
            check(&format!("inputs: {inputs}, allow_mixed_protocols: true")).unwrap();
        }
    }
}
