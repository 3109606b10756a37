//! The runtime against its slow twin, the harness: same rows, same bytes, whatever the workers and the memory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::event::Event;
use crate::graph::Graph;
use crate::harness;
use crate::operator::{BLOCKS, Binding, Bound, Context, Distribution, Input, OUT, Operator, Registry, Source};
use crate::plan::Selection;
use crate::run::{Options, Outcome, plan_over, run};
use crate::spec::{Overrides, Spec};
use crate::store::Store;
use crate::table::{Shape, Table, Tables};
use crate::text;

fn edges() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("a", DataType::Utf8, false),
        Field::new("b", DataType::Int64, false),
    ]))
}

fn rows_of(pairs: impl Iterator<Item = (u64, u64)>) -> RecordBatch {
    let (a, b): (Vec<String>, Vec<i64>) = pairs.map(|(a, b)| (format!("a{a}"), b as i64)).unzip();
    RecordBatch::try_new(
        edges(),
        vec![Arc::new(StringArray::from(a)), Arc::new(Int64Array::from(b))],
    )
    .unwrap()
}

/// Made-up edges, in blocks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct MakeEdges {
    blocks: u64,
    rows: u64,
    spread: u64,
    splits: u64,
}

struct Blocks {
    left: Vec<RecordBatch>,
}

impl Source for Blocks {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        Ok(self.left.pop())
    }
}

impl Operator for MakeEdges {
    const NAME: &'static str = "make_edges";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;

    fn bind(&self, _: &Binding) -> Bound {
        Bound::new(Distribution::Source).out(Shape::Table(edges()))
    }
    fn splits(&self, _: &Context) -> Result<usize> {
        Ok(self.splits.max(1) as usize)
    }
    fn open(&self, context: &Context, split: usize) -> Result<Box<dyn Source>> {
        let random = context.random("edges");
        let block = |block: u64| {
            let mut stream = random.row(split as u64 * 1000 + block);
            rows_of((0..self.rows).map(move |_| (stream.below(self.spread), stream.below(self.spread))))
        };
        Ok(Box::new(Blocks {
            left: (0..self.blocks).map(block).collect(),
        }))
    }
    fn run(&self, _: &Context, inputs: Tables) -> Result<Tables> {
        Ok(Tables::out(inputs.batch(BLOCKS)?))
    }
}

/// Keeps rows whose b is not divisible.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Sieve {
    by: i64,
}

impl Default for Sieve {
    fn default() -> Self {
        Sieve { by: 7 }
    }
}

impl Operator for Sieve {
    const NAME: &'static str = "sieve";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required("input", "edges")];

    fn bind(&self, binding: &Binding) -> Bound {
        Bound::rows("input").out(binding.shape("input"))
    }
    fn run(&self, _: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch("input")?;
        let b = batch.column(1).as_primitive::<Int64Type>();
        let mask: BooleanArray = b.iter().map(|b| Some(b.unwrap_or(0) % self.by != 0)).collect();
        Ok(Tables::out(filter_record_batch(&batch, &mask)?))
    }
}

/// Keeps the first row of every (a, b); fails on `bad` if told to.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct First {
    bad: Option<i64>,
    panics: bool,
}

impl Operator for First {
    const NAME: &'static str = "first";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required("input", "edges")];

    fn bind(&self, binding: &Binding) -> Bound {
        Bound::by("input", &["a"]).out(binding.shape("input"))
    }
    fn run(&self, _: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch("input")?;
        let (a, b) = (
            batch.column(0).as_string::<i32>(),
            batch.column(1).as_primitive::<Int64Type>(),
        );
        if self.bad.is_some_and(|bad| b.values().contains(&bad)) {
            assert!(!self.panics, "told to panic");
            return Err(Error::data("bad-row", "a bad row"));
        }
        let mut seen = std::collections::HashSet::new();
        let mask: BooleanArray = (0..a.len())
            .map(|row| Some(seen.insert((a.value(row), b.value(row)))))
            .collect();
        Ok(Tables::out(filter_record_batch(&batch, &mask)?))
    }
}

/// Peels rows whose key occurs fewer than k times, on both sides.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Peel {
    k: usize,
}

impl Default for Peel {
    fn default() -> Self {
        Peel { k: 2 }
    }
}

impl Operator for Peel {
    const NAME: &'static str = "peel";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required("input", "edges")];

    fn bind(&self, binding: &Binding) -> Bound {
        let sides = vec![vec!["a".to_string()], vec!["b".to_string()]];
        Bound::new(Distribution::Fixpoint("input".into(), sides)).out(binding.shape("input"))
    }
    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch("input")?;
        let key = |row: usize| match context.side {
            Some(0) => batch.column(0).as_string::<i32>().value(row).to_string(),
            _ => batch.column(1).as_primitive::<Int64Type>().value(row).to_string(),
        };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        (0..batch.num_rows()).for_each(|row| *counts.entry(key(row)).or_default() += 1);
        let mask: BooleanArray = (0..batch.num_rows())
            .map(|row| Some(counts[&key(row)] >= self.k))
            .collect();
        Ok(Tables::out(filter_record_batch(&batch, &mask)?))
    }
}

/// Sums b over everything and repeats it; reads a second input that is broadcast nowhere, only whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Total {}

impl Operator for Total {
    const NAME: &'static str = "total";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required("input", "edges"), Input::optional("other", "edges")];

    fn bind(&self, _: &Binding) -> Bound {
        Bound::whole()
            .out(Shape::Table(edges()))
            .output("folder", Shape::Folder("text".into()))
    }
    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let mut total = 0;
        for (_, table) in inputs.iter() {
            for batch in table.batches()? {
                let batch = batch?;
                // Tables that were gathered have the axes first.
                total += batch
                    .column(batch.num_columns() - 1)
                    .as_primitive::<Int64Type>()
                    .values()
                    .iter()
                    .sum::<i64>();
            }
        }
        let folder = context.folder("folder")?;
        std::fs::write(folder.join("total.txt"), total.to_string()).unwrap();
        Ok(Tables::out(rows_of([(0, total as u64)].into_iter())).with("folder", Table::Folder(folder)))
    }
}

/// The test of toys: rows whose b is divisible fail. Rows stream through it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Multiples {
    of: i64,
}

impl Operator for Multiples {
    const NAME: &'static str = "multiples";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required("input", "edges"), Input::optional("other", "edges")];

    fn bind(&self, binding: &Binding) -> Bound {
        Bound::rows("input").out(binding.shape("input"))
    }
    fn run(&self, _: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch("input")?;
        let b = batch.column(1).as_primitive::<Int64Type>();
        let mask: BooleanArray = b.iter().map(|b| Some(b.unwrap_or(0) % self.of == 0)).collect();
        Ok(Tables::out(filter_record_batch(&batch, &mask)?))
    }
}

pub(super) fn registry() -> Registry {
    Registry::new()
        .with::<MakeEdges>()
        .with::<Sieve>()
        .with::<First>()
        .with::<Peel>()
        .with::<Total>()
        .with_tests::<Multiples>()
}

pub(super) const PIPELINE: &str = "
pipeline: p
stages:
  edges: { op: make_edges, blocks: 6, rows: 40, spread: 100, splits: 2 }
  some:  { op: sieve, input: edges }
  once:  { op: first, input: some }
  core:  { op: peel, input: once, k: 3 }
  more:  { op: sieve, input: core, by: 5 }
  total: { op: total, inputs: { input: core, other: more } }
";

pub(super) fn execute(store: &Path, yaml: &str, workers: usize, memory: usize) -> Result<(Outcome, Store), Vec<Error>> {
    let store = Store::open(store).map_err(|error| vec![error])?;
    let spec = Spec::parse("p.yaml", yaml, &Overrides::default())?;
    let graph = Graph::build(&spec, &registry(), Path::new("."))?;
    let plan = plan_over(&graph, &store, Path::new("."), &Selection::default())?;
    let mut options = Options::new(workers, Path::new("."));
    options.resources.memory = memory;
    let outcome = run(graph, &plan, &store, &options, &mut |_: &Event| {})?;
    Ok((outcome.expect("the first process has an outcome"), store))
}

/// The same pipeline by the harness, stage after stage.
fn twin() -> BTreeMap<&'static str, RecordBatch> {
    let out = |tables: Tables| tables.batch(OUT).unwrap();
    let edges = out(harness::run(
        &MakeEdges {
            blocks: 6,
            rows: 40,
            spread: 100,
            splits: 2,
        },
        &[],
    )
    .unwrap());
    let some = out(harness::run(&Sieve::default(), &[("input", edges.clone())]).unwrap());
    let once = out(harness::run(&First::default(), &[("input", some.clone())]).unwrap());
    let core = out(harness::run(&Peel { k: 3 }, &[("input", once.clone())]).unwrap());
    BTreeMap::from([("edges", edges), ("some", some), ("once", once), ("core", core)])
}

fn lines(batch: &RecordBatch) -> Vec<String> {
    let mut lines: Vec<String> = text::render(batch).unwrap().lines().map(str::to_string).collect();
    lines.sort();
    lines
}

#[test]
fn bytes_do_not_depend_on_workers_or_memory_and_rows_equal_the_twin() {
    let twin = twin();
    let mut digests = Vec::new();
    for (workers, memory) in [(1, usize::MAX), (2, usize::MAX), (3, 0), (1, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let (outcome, store) = execute(folder.path(), PIPELINE, workers, memory).unwrap();
        for (stage, wanted) in &twin {
            let table = store.table(&outcome.records[*stage].outputs[OUT]).unwrap();
            assert_eq!(
                lines(&table.batch().unwrap()),
                lines(wanted),
                "{stage} with {workers} workers"
            );
        }
        assert!(
            outcome.records["core"].rows[OUT] > 0
                && outcome.records["core"].rows[OUT] < outcome.records["once"].rows[OUT]
        );
        let outputs: Vec<_> = outcome
            .records
            .iter()
            .map(|(name, record)| (name.clone(), record.outputs.clone()))
            .collect();
        digests.push(outputs);
        assert!(
            std::fs::read_dir(folder.path().join("tmp")).unwrap().next().is_none(),
            "attempts are removed"
        );
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]), "{digests:#?}");
}

#[test]
fn streamed_and_published_inputs_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let head: String = PIPELINE.lines().take(5).map(|line| format!("{line}\n")).collect();
    execute(folder.path(), &head, 2, usize::MAX).unwrap();
    let (stepwise, _) = execute(folder.path(), PIPELINE, 2, usize::MAX).unwrap();
    assert_eq!((stepwise.ran, stepwise.reused), (4, 2));
    let fresh = tempfile::tempdir().unwrap();
    let (whole, _) = execute(fresh.path(), PIPELINE, 2, usize::MAX).unwrap();
    for (stage, record) in &whole.records {
        assert_eq!(record.outputs, stepwise.records[stage].outputs, "{stage}");
    }
}

#[test]
fn an_equal_result_stops_the_rerun() {
    let folder = tempfile::tempdir().unwrap();
    execute(folder.path(), PIPELINE, 2, usize::MAX).unwrap();
    // Another config of `first`, so it runs, but it changes no row: nothing below runs.
    let same = PIPELINE.replace("op: first, input: some }", "op: first, input: some, panics: true }");
    let (outcome, _) = execute(folder.path(), &same, 2, usize::MAX).unwrap();
    assert_eq!(outcome.ran, 1, "only the stage whose config changed");
    let (outcome, _) = execute(folder.path(), PIPELINE, 2, usize::MAX).unwrap();
    assert_eq!(outcome.ran, 0, "going back runs nothing");
}

#[test]
fn a_failing_stage_ends_the_run_and_leaves_nothing() {
    for panics in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let bad = PIPELINE.replace(
            "op: first, input: some }",
            &format!("op: first, input: some, bad: 3, panics: {panics} }}"),
        );
        let errors = execute(folder.path(), &bad, 2, usize::MAX).unwrap_err();
        assert_eq!(
            errors[0].kind,
            if panics { Kind::Internal } else { Kind::Data },
            "{errors:?}"
        );
        assert!(
            errors[0].detail.iter().any(|line| line.contains("stage \"once\"")),
            "{errors:?}"
        );
        assert!(
            std::fs::read_dir(folder.path().join("tmp")).unwrap().next().is_none(),
            "attempts are removed"
        );
        let (outcome, _) = execute(folder.path(), PIPELINE, 2, usize::MAX).unwrap();
        assert!(outcome.records.len() == 6, "the next run completes");
    }
}

#[test]
fn a_damaged_part_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, store) = execute(folder.path(), PIPELINE, 1, usize::MAX).unwrap();
    let digest = &outcome.records["some"].outputs[OUT];
    let part = std::fs::read_dir(store.object(digest))
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    let part = part
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "parquet"))
        .unwrap();
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&part, &bytes).unwrap();
    let changed = PIPELINE.replace("op: first, input: some }", "op: first, input: some, bad: 1000 }");
    let errors = execute(folder.path(), &changed, 1, usize::MAX).unwrap_err();
    assert_eq!(errors[0].code, "damaged-artifact", "{errors:?}");
    // It is out of the way, so the next run makes it anew.
    let (healed, _) = execute(folder.path(), &changed, 1, usize::MAX).unwrap();
    assert_eq!(&healed.records["some"].outputs[OUT], digest);
}
