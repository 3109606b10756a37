//! Whoever changes what an operator puts out has to bump its `VERSION`: `operators/versions.txt` remembers.
//!
//! Every operator runs on a small fixture. What is no float goes into a digest. Floats may differ in their last digits
//! between kinds of CPU, so they are two sums, which must agree to 1e-4: rounded values in a digest would flip at the
//! edges of rounding.

use std::collections::BTreeMap;
use std::path::PathBuf;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sluice_engine::harness::Harness;
use sluice_engine::operator::{OUT, Operator};
use sluice_engine::random::{Random, Stream};
use sluice_engine::table::{Table, Tables};
use sluice_engine::text;
use sluice_gpu::tiger::Tiger;

use crate::chronology::Ties;
use crate::testdata;

/// How close sums of floats must be, relative to the sum of absolute values.
const TOLERANCE: f64 = 1e-4;

/// What an operator put out, in short.
struct Sketch {
    version: u32,
    exact: Pieces,
    weights: Stream,
    magnitude: f64,
    projection: f64,
}

/// A text that is digested at the end: short, as the fixtures are.
#[derive(Default)]
struct Pieces(String);

impl Pieces {
    fn add(&mut self, piece: impl std::fmt::Display) {
        self.0.push_str(&format!("{piece}\n"));
    }

    fn digest(&self) -> String {
        sluice_engine::key::digest("output", &self.0)[..16].to_string()
    }
}

impl Sketch {
    fn new(version: u32) -> Self {
        Sketch {
            version,
            exact: Pieces::default(),
            weights: Random::new(0, "versions", "projection").row(0),
            magnitude: 0.0,
            projection: 0.0,
        }
    }

    fn add(&mut self, outputs: &Tables) {
        for (port, table) in outputs.iter() {
            self.exact.add(port);
            match table {
                Table::Folder(folder) => {
                    self.exact
                        .add(std::fs::read_to_string(folder.join("config.json")).unwrap());
                    for tensor in Tiger::load(folder).unwrap().weights().tensors() {
                        self.exact.add(format!("{} {:?}", tensor.name, tensor.shape));
                        self.floats(tensor.data.iter().map(|value| Some(f64::from(*value))));
                    }
                }
                table => {
                    let batch = table.batch().unwrap();
                    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                        let metadata: BTreeMap<_, _> = field.metadata().iter().collect();
                        let (name, kind) = (field.name(), field.data_type());
                        self.exact
                            .add(format!("{name} {kind} {} {metadata:?}", field.is_nullable()));
                        self.column(column);
                    }
                }
            }
        }
    }

    fn column(&mut self, column: &ArrayRef) {
        match column.data_type() {
            DataType::Float32 => self.floats(column.as_primitive::<Float32Type>().iter().map(|v| v.map(f64::from))),
            DataType::Float64 => self.floats(column.as_primitive::<Float64Type>().iter()),
            DataType::FixedSizeList(item, _) if item.data_type().is_floating() => {
                let lists = column.as_fixed_size_list();
                self.exact.add(lists.len());
                self.column(lists.values());
            }
            DataType::List(item) if item.data_type().is_floating() => panic!("lists of floats have no sketch yet"),
            _ => {
                let options = FormatOptions::default().with_null("null");
                let formatter = ArrayFormatter::try_new(column, &options).unwrap();
                (0..column.len()).for_each(|row| self.exact.add(formatter.value(row)));
            }
        }
    }

    fn floats(&mut self, values: impl Iterator<Item = Option<f64>>) {
        for value in values {
            let weight = 2.0 * self.weights.unit() - 1.0;
            match value {
                Some(value) if value.is_finite() => {
                    self.exact.add("float");
                    self.magnitude += value.abs();
                    self.projection += weight * value;
                }
                other => self.exact.add(format!("{other:?}")),
            }
        }
    }

    fn line(&self) -> Line {
        Line {
            version: self.version,
            digest: self.exact.digest(),
            magnitude: self.magnitude,
            projection: self.projection,
        }
    }
}

/// A line of the file, without the operator's name.
#[derive(Clone, Debug)]
struct Line {
    version: u32,
    digest: String,
    magnitude: f64,
    projection: f64,
}

impl Line {
    fn same_output(&self, other: &Line) -> bool {
        let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * self.magnitude.max(other.magnitude);
        let floats = close(self.magnitude, other.magnitude) && close(self.projection, other.projection);
        self.digest == other.digest && floats
    }
}

type Lines = BTreeMap<String, Line>;

fn parse(text: &str) -> Lines {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let [name, version, digest, magnitude, projection] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("\"{line}\" is not: operator version digest magnitude projection");
            };
            let line = Line {
                version: version.parse().unwrap(),
                digest: digest.to_string(),
                magnitude: magnitude.parse().unwrap(),
                projection: projection.parse().unwrap(),
            };
            (name.to_string(), line)
        })
        .collect()
}

fn render(lines: &Lines) -> String {
    let mut text = "# operator version digest magnitude projection; written by operators/src/versions.rs\n".to_string();
    for (name, line) in lines {
        let Line {
            version,
            digest,
            magnitude,
            projection,
        } = line;
        text.push_str(&format!("{name} {version} {digest} {magnitude:.6e} {projection:.6e}\n"));
    }
    text
}

/// What is wrong with the record, and the record as it should be. Blessing records what is new; it does not help who
/// forgot to bump.
fn judge(recorded: &Lines, now: &Lines, bless: bool) -> (Vec<String>, Lines) {
    let record = "run \"SLUICE_BLESS=1 cargo test --release --workspace versions\" to record it";
    let (mut problems, mut lines) = (Vec::new(), Lines::new());
    for (name, line) in now {
        let (problem, next) = match recorded.get(name) {
            None => (Some(format!("the output of {name} is not recorded: {record}")), line),
            Some(before) if before.version != line.version => {
                let (from, to) = (before.version, line.version);
                let problem =
                    format!("VERSION of {name} went from {from} to {to}, and its output is not recorded: {record}");
                (Some(problem), line)
            }
            Some(before) if !before.same_output(line) => {
                problems.push(format!(
                    "the output of {name} changed but its VERSION is still {}: bump it, then {record} (if only the \
                     fixture changed, remove its line from operators/versions.txt first)",
                    line.version
                ));
                (None, before)
            }
            Some(before) => (None, before),
        };
        problems.extend(problem.filter(|_| !bless));
        lines.insert(name.clone(), next.clone());
    }
    for name in recorded.keys().filter(|name| !now.contains_key(*name) && !bless) {
        problems.push(format!("{name} is recorded and is no operator: {record}"));
    }
    (problems, lines)
}

/// Runs operators and sketches what they put out.
struct Fixture {
    folder: tempfile::TempDir,
    runs: usize,
    sketches: BTreeMap<&'static str, Sketch>,
}

impl Fixture {
    fn run<O: Operator>(&mut self, operator: &O, inputs: &[(&str, &Table)], seed: u64) -> Tables {
        self.runs += 1;
        let harness = Harness {
            seed,
            data_root: self.folder.path().to_path_buf(),
            attempt: self.folder.path().join(format!("attempt-{}", self.runs)),
        };
        let inputs: Vec<(&str, Table)> = inputs.iter().map(|(port, table)| (*port, (*table).clone())).collect();
        let outputs = if inputs.iter().any(|(_, table)| matches!(table, Table::Folder(_))) {
            // The harness does not know layouts of folders, so it could not bind this one.
            let tables = inputs
                .into_iter()
                .fold(Tables::new(), |tables, (port, table)| tables.with(port, table));
            operator.run(&testdata::context(&harness, O::NAME), tables)
        } else {
            harness.run(operator, &inputs)
        };
        outputs.unwrap_or_else(|error| panic!("{}: {error}", O::NAME))
    }

    /// Sketches one more output of an operator. Where it says that it draws nothing, the seed must not matter.
    fn case<O: Operator>(&mut self, operator: &O, inputs: &[(&str, &Table)]) -> Tables {
        let outputs = self.run(operator, inputs, 42);
        if !operator.seeded() {
            let [mut one, mut two] = [Sketch::new(0), Sketch::new(0)];
            one.add(&outputs);
            two.add(&self.run(operator, inputs, 43));
            let (one, two) = (one.line(), two.line());
            let same = one.digest == two.digest && one.projection.to_bits() == two.projection.to_bits();
            assert!(same, "{} draws random numbers, and says that it does not", O::NAME);
        }
        let sketch = self.sketches.entry(O::NAME).or_insert_with(|| Sketch::new(O::VERSION));
        sketch.add(&outputs);
        outputs
    }

    fn file(&self, name: &str, content: &str) -> crate::formats::Paths {
        std::fs::write(self.folder.path().join(name), content).unwrap();
        crate::formats::Paths::One(name.into())
    }
}

/// Every operator on a small input: a new one gets its line here.
fn outputs() -> Lines {
    let folder = tempfile::tempdir().unwrap();
    let mut fixture = Fixture {
        folder,
        runs: 0,
        sketches: BTreeMap::new(),
    };
    data(&mut fixture);
    let ranked = recommenders(&mut fixture);
    scores(&mut fixture, &ranked);
    models(&mut fixture);
    let sketches = fixture.sketches.iter();
    sketches
        .map(|(name, sketch)| (name.to_string(), sketch.line()))
        .collect()
}

/// Sources, filters, audits.
fn data(fixture: &mut Fixture) {
    let ring = testdata::ring();
    let interactions = ring.table("interactions").unwrap();
    fixture.case(
        &crate::synthesize::Synthesize {
            users: 20,
            items: 24,
            topics: 2,
            mean_length: 6.0,
        },
        &[],
    );
    let csv = "user_id,item_id,rating,timestamp\nu,1,5,100\nu,2,3.5,90\nv,2,nought,80\nv,1,4,1500000000000\nw,3,1,\n";
    for record_hash in [false, true] {
        let path = fixture.file("interactions.csv", csv);
        fixture.case(
            &crate::ingest_interactions::IngestInteractions {
                path,
                record_hash,
                on_error: crate::formats::OnError::Skip,
                ..Default::default()
            },
            &[],
        );
    }
    let path = fixture.file(
        "items.json",
        "{\"asin\": \"1\", \"title\": \"Red &amp; old\", \"price\": 7.5, \"brand\": \"X\", \"categories\": [[\"A\", \"B\"]]}\n\
         {\"asin\": \"2\"}\n{\"asin\": \"1\", \"title\": \"again\"}\n",
    );
    let ingest = crate::ingest_items::IngestItems {
        path,
        ..Default::default()
    };
    let items = fixture.case(&ingest, &[]);
    let missing = crate::join_items::JoinItems::default();
    fixture.case(
        &missing,
        &[("items", items.table(OUT).unwrap()), ("interactions", interactions)],
    );
    fixture.file(
        "ids.json",
        "{\"7\": [\"<a_183>\", \"<b_0>\"], \"8\": [\"<a_1>\", \"<b_70>\"], \"9\": [1, 70]}",
    );
    let import = crate::import_semantic_ids::ImportSemanticIds {
        path: "ids.json".into(),
        ..Default::default()
    };
    let ids = fixture.case(&import, &[]);
    fixture.case(
        &crate::audit_semantic_ids::AuditSemanticIds::default(),
        &[("semantic_ids", ids.table(OUT).unwrap())],
    );
    let repeated =
        "user_id item_id timestamp:ts position:u64 rating:f32\n a 1 5 1 1\n a 1 5 2 2\n b 1 5 3 3\n a 2 5 4 4
        a 1 5 5 5\n a 3 5 6 1\n b 2 5 7 1\n b 3 4 8 1";
    let repeated = Table::new(text::parse(repeated).unwrap());
    for keep in [crate::dedup::Keep::First, crate::dedup::Keep::Last] {
        let dedup = crate::dedup::Dedup {
            keep,
            ..Default::default()
        };
        fixture.case(&dedup, &[("interactions", &repeated)]);
    }
    let core = crate::filter_kcore::FilterKcore {
        k: 6,
        ..Default::default()
    };
    fixture.case(&core, &[("interactions", interactions)]);
    fixture.case(
        &crate::audit_order::AuditOrder::default(),
        &[("interactions", &repeated)],
    );
    for ties in [Ties::File, Ties::Hash, Ties::ItemAsc, Ties::ItemDesc] {
        let split = crate::split_leave_one_out::SplitLeaveOneOut {
            ties,
            ..Default::default()
        };
        fixture.case(&split, &[("interactions", &repeated)]);
    }
    use crate::tokenize_sequences::{Samples, TokenizeSequences};
    for samples in [Samples::SlidingWindow, Samples::Prefixes, Samples::Last] {
        let tokenize = TokenizeSequences {
            samples,
            ..Default::default()
        };
        let ids = ring.table("semantic_ids").unwrap();
        fixture.case(
            &tokenize,
            &[("train", ring.table("train").unwrap()), ("semantic_ids", ids)],
        );
    }
}

/// The counting baselines; says the lists of one.
fn recommenders(fixture: &mut Fixture) -> Table {
    let ring = testdata::ring();
    let inputs = [
        ("train", ring.table("train").unwrap()),
        ("histories", ring.table("test").unwrap()),
        ("items", ring.table("semantic_ids").unwrap()),
    ];
    fixture.case(&crate::rank_popularity::RankPopularity::default(), &inputs);
    fixture.case(&crate::rank_itemknn::RankItemknn::default(), &inputs);
    let markov = fixture.case(&crate::rank_markov::RankMarkov::default(), &inputs);
    markov.table(OUT).unwrap().clone()
}

fn scores(fixture: &mut Fixture, ranked: &Table) {
    let ring = testdata::ring();
    let inputs = [
        ("ranked", ranked),
        ("targets", ring.table("test").unwrap()),
        ("train", ring.table("train").unwrap()),
        ("items", ring.table("semantic_ids").unwrap()),
    ];
    let plain = crate::score_ranking::ScoreRanking {
        resamples: 0,
        ..Default::default()
    };
    fixture.case(&plain, &inputs);
    let metrics = fixture.case(&crate::score_ranking::ScoreRanking { resamples: 40, ..plain }, &inputs);
    let systems = [("markov", metrics.table(OUT).unwrap())];
    fixture.case(&crate::tabulate_metrics::TabulateMetrics::default(), &systems);
    let query =
        "SELECT slice, metric, row_number() OVER (PARTITION BY slice ORDER BY k) AS n FROM m ORDER BY k LIMIT 9";
    let sql = crate::sql::Sql {
        query: crate::sql::Query(query.into()),
    };
    fixture.case(&sql, &[("m", metrics.table(OUT).unwrap())]);
    let unique = crate::test_rows::TestRows {
        unique: Some(vec!["slice".into()]),
        ..Default::default()
    };
    fixture.case(&unique, &[("rows", metrics.table(OUT).unwrap())]);
}

/// What has weights, trained or read.
fn models(fixture: &mut Fixture) {
    testdata::tiny_encoder(&fixture.folder.path().join("encoder"));
    let texts =
        "item_id | text\n 1 | a big red shoe\n 2 | the old hat of wool\n 3 | red hat\n 4 | new blue shirt of leather
        5 | a small hat\n 6 | the big old shoe\n 7 | green shirt\n 8 | the new shoe of leather\n 9 | red hat";
    let texts = Table::new(text::parse(texts).unwrap());
    let encoder = crate::embed_text::EmbedText {
        model: "encoder".into(),
        max_length: 12,
        device: "cpu".into(),
        ..Default::default()
    };
    let embeddings = fixture.case(&encoder, &[("input", &texts)]);
    let tfidf = crate::embed_tfidf_svd::EmbedTfidfSvd {
        dim: 3,
        min_df: 1,
        ..Default::default()
    };
    fixture.case(&tfidf, &[("input", &texts)]);
    let quantize = crate::quantize_rkmeans::QuantizeRkmeans {
        num_codebooks: 2,
        codebook_size: 3,
        ..Default::default()
    };
    fixture.case(&quantize, &[("input", embeddings.table(OUT).unwrap())]);
    let ring = testdata::ring();
    let ids = ring.table("semantic_ids").unwrap();
    let inputs = [
        ("sequences", ring.table("samples").unwrap()),
        ("valid", ring.table("valid").unwrap()),
        ("semantic_ids", ids),
    ];
    let trained = fixture.case(&testdata::tiny_tiger(), &inputs);
    let inputs = [
        ("model", trained.table("model").unwrap()),
        ("histories", ring.table("test").unwrap()),
        ("semantic_ids", ids),
    ];
    let generate = crate::generate_tiger::GenerateTiger {
        device: "cpu".into(),
        ..Default::default()
    };
    fixture.case(&generate, &inputs);
}

#[test]
fn no_output_changes_without_its_version() {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/versions.txt"));
    let bless = std::env::var_os("SLUICE_BLESS").is_some();
    let now = outputs();
    for entry in crate::registry().iter() {
        assert!(
            now.contains_key(entry.name),
            "{}: give it a case in operators/src/versions.rs",
            entry.name
        );
    }
    let recorded = parse(&std::fs::read_to_string(&file).unwrap_or_default());
    let (problems, lines) = judge(&recorded, &now, bless);
    if bless {
        std::fs::write(&file, render(&lines)).unwrap();
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn a_changed_output_wants_a_new_version() {
    let recorded = parse("# a comment\ndedup 1 aa 1.000000e1 2.000000e0\nsplit 2 bb 0e0 0e0\n");
    let now = |line: &str| parse(&format!("{line}\nsplit 2 bb 0e0 0e0\n"));
    let said = |line: &str, bless| judge(&recorded, &now(line), bless).0.join("\n");
    assert_eq!(said("dedup 1 aa 1.00002e1 2.0e0", false), "");
    for changed in [
        "dedup 1 ab 1.0e1 2.0e0",
        "dedup 1 aa 1.002e1 2.0e0",
        "dedup 1 aa 1.0e1 2.002e0",
    ] {
        for bless in [false, true] {
            let text = said(changed, bless);
            assert!(
                text.starts_with("the output of dedup changed but its VERSION is still 1: bump it"),
                "{text}"
            );
        }
    }
    assert!(said("dedup 2 ab 1.0e1 2.0e0", false).starts_with("VERSION of dedup went from 1 to 2"));
    assert!(said("dedup 1 aa 1.0e1 2.0e0\nnew 1 cc 0 0", false).starts_with("the output of new is not recorded"));
    assert!(judge(&recorded, &parse("split 2 bb 0 0"), false).0[0].starts_with("dedup is recorded and is no operator"));
    let (problems, lines) = judge(&recorded, &now("dedup 2 ab 1.0e1 2.0e0"), true);
    assert!(problems.is_empty() && render(&lines).contains("dedup 2 ab"));
    // What did not change keeps its line, whatever CPU blesses.
    let (_, lines) = judge(&recorded, &now("dedup 1 aa 1.00002e1 2.0e0"), true);
    assert!(render(&lines).contains("dedup 1 aa 1.000000e1 2.000000e0"));
}
