//! Whoever changes what an operator puts out has to bump its `VERSION`: `operators/versions.txt` remembers.
//!
//! Every operator runs on a small fixture. What is no float goes into a digest. Floats may differ in their last digits
//! between kinds of CPU, so they are two sums, which must agree to 1e-4: rounded values in a digest would flip at the
//! edges of rounding.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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
                // A report is text; figures in it are rounded.
                Table::Folder(folder) if folder.join("report.md").is_file() => {
                    self.exact
                        .add(std::fs::read_to_string(folder.join("report.md")).unwrap());
                }
                Table::Folder(folder) => {
                    for name in ["config.json", "adapter_config.json", "tokenizer.json"] {
                        if let Ok(text) = std::fs::read_to_string(folder.join(name)) {
                            self.exact.add(text);
                        }
                    }
                    for (name, shape, data) in tensors(folder) {
                        self.exact.add(format!("{name} {shape:?}"));
                        self.floats(data.into_iter().map(|value| Some(f64::from(value))));
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

/// Name, shape and numbers of the tensors of a model's folder: of TIGER in its own order, else by name.
fn tensors(folder: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    if let Ok(tiger) = Tiger::load(folder) {
        let tensors = tiger.weights().tensors().iter();
        return tensors
            .map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.data.clone()))
            .collect();
    }
    let files = ["model.safetensors", "adapter_model.safetensors"].map(|name| folder.join(name));
    let Some(file) = files.into_iter().find(|file| file.is_file()) else {
        return Vec::new();
    };
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
    let sorted: BTreeMap<_, _> = tensors.into_iter().collect();
    let plain = |(name, tensor): (String, candle_core::Tensor)| {
        let data = tensor.flatten_all().unwrap().to_vec1().unwrap();
        (name, tensor.dims().to_vec(), data)
    };
    sorted.into_iter().map(plain).collect()
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
    laws(&mut fixture);
    models(&mut fixture);
    language_models(&mut fixture);
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
    let split = ["train", "valid", "test"].map(|port| (port, ring.table(port).unwrap()));
    let everything = [
        ("fit_rows", interactions),
        ("fit_items", interactions),
        ("interactions", interactions),
    ];
    let audited = [&split[..], &everything[..]].concat();
    fixture.case(&crate::audit_leakage::AuditLeakage::default(), &audited);
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
    prompts(fixture, &ring);
}

fn prompts(fixture: &mut Fixture, ring: &Tables) {
    testdata::tiny_encoder(&fixture.folder.path().join("words"));
    let words = "red|green|blue|shirt|shoe|hat|old hat|new hat|a big shoe|red|null|wool&nbsp;hat";
    let titles: Vec<String> = words
        .split('|')
        .enumerate()
        .map(|(item, title)| format!("\n{item} | {title}"))
        .collect();
    let titles = Table::new(text::parse(&format!("item_id | title{}", titles.concat())).unwrap());
    let prompts = crate::tokenize_prompts::TokenizePrompts {
        tokenizer: "words/tokenizer.json".into(),
        eos: Some("[SEP]".into()),
        untitled: "item {item_id}".into(),
        max_tokens: 20,
        ..Default::default()
    };
    for sequences in ["train", "test"] {
        fixture.case(
            &prompts,
            &[("sequences", ring.table(sequences).unwrap()), ("items", &titles)],
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
    let report = crate::render_report::RenderReport {
        dataset: Some("beauty".into()),
        ..Default::default()
    };
    fixture.case(&report, &systems);
    let per_user = metrics.table("per_user").unwrap();
    let compare = crate::compare_systems::CompareSystems {
        resamples: 40,
        slices: vec!["all".into(), "later".into()],
        ..Default::default()
    };
    fixture.case(&compare, &[("a", per_user), ("b", per_user)]);
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

/// Points that follow a law, but for a little noise.
fn laws(fixture: &mut Fixture) {
    let mut points = "n:f64 value:f64\n".to_string();
    for step in 0..8 {
        let size = 3e5 * 2f64.powi(step);
        let noise = 1e-5 * f64::from(step * 5 % 7 - 3);
        points.push_str(&format!("{size} {}\n", 0.05 - 16.0 / size.powf(0.6) + noise));
    }
    let points = Table::new(text::parse(&points).unwrap());
    let sizes = crate::fit_scaling_law::SizeColumns {
        rs: Some("n".into()),
        ..Default::default()
    };
    use crate::fit_scaling_law::Law;
    let fit = crate::fit_scaling_law::FitScalingLaw {
        laws: vec![Law::Power, Law::Log, Law::Constant],
        sizes,
        resamples: 40,
        ..Default::default()
    };
    fixture.case(&fit, &[("points", &points)]);
}

/// What has weights, trained or read.
/// From titles to a model that is trained from scratch, and one that is adapted and merged.
fn language_models(fixture: &mut Fixture) {
    use crate::train_llm::{Lora, ModelShape, TrainLlm};
    let parsed = |rows: &str| Table::new(text::parse(rows).unwrap());
    let items = parsed("item_id | title\n a | red shoe\n b | Red hat\n c | old red shoe");
    let tokenizer = crate::train_tokenizer::TrainTokenizer {
        vocabulary: 270,
        ..Default::default()
    };
    fixture.case(&tokenizer, &[("input", &items)]);
    let prompts = parsed("user_id tokens:[u32] loss_from:u32\n u 4,5,6,7,1 3\n v 7,4,6,1 2\n w 5,9,8,1 2");
    let scratch = TrainLlm {
        shape: Some(ModelShape {
            layers: 1,
            d_model: 8,
            heads: 2,
            kv_heads: Some(1),
            max_tokens: 16,
            ..ModelShape::default()
        }),
        max_steps: 3,
        batch_size: 2,
        device: "cpu".into(),
        ..TrainLlm::default()
    };
    let trained = fixture.case(&scratch, &[("prompts", &prompts)]);
    let base = trained.table("model").unwrap().clone();
    let adapter = TrainLlm {
        shape: None,
        lora: Some(Lora::default()),
        ..scratch
    };
    let adapted = fixture.case(&adapter, &[("prompts", &prompts), ("base", &base)]);
    let inputs = [("model", adapted.table("model").unwrap()), ("base", &base)];
    fixture.case(&crate::merge_adapter::MergeAdapter::default(), &inputs);
    let found = parsed("user_id tokens:[u32] target\n u 4,5,6 b\n v 7 c");
    let titles =
        "item_id | title | tokens:[u32]\n a | red | 7,1\n b | red shoe | 7,8,1\n c | hat | 9,1\n d | Hat | 9,1";
    let titles = parsed(titles);
    use crate::generate_llm::{GenerateLlm, Normalisation};
    for normalisation in [Normalisation::Vocabulary, Normalisation::Children] {
        let generate = GenerateLlm {
            normalisation,
            width: 2,
            ..GenerateLlm::default()
        };
        fixture.case(&generate, &[("model", &base), ("prompts", &found), ("titles", &titles)]);
    }
}

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
    quantizers(fixture, embeddings.table(OUT).unwrap());
    let ring = testdata::ring();
    let ids = ring.table("semantic_ids").unwrap();
    let inputs = [
        ("sequences", ring.table("samples").unwrap()),
        ("valid", ring.table("valid").unwrap()),
        ("semantic_ids", ids),
    ];
    let trained = fixture.case(&testdata::tiny_tiger(), &inputs);
    fixture.case(
        &crate::count_parameters::CountParameters::default(),
        &[("model", trained.table("model").unwrap())],
    );
    let plain = crate::train_tiger::TrainTiger {
        feed_forward: crate::train_tiger::FeedForward::T5,
        ..testdata::tiny_tiger()
    };
    let plain = fixture.run(&plain, &inputs, 42);
    fixture.case(
        &crate::export_t5::ExportT5 {},
        &[("model", plain.table("model").unwrap())],
    );
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
    let inputs = [
        ("train", ring.table("train").unwrap()),
        ("valid", ring.table("valid").unwrap()),
        ("items", ids),
    ];
    let trained = fixture.case(&testdata::tiny_sasrec(), &inputs);
    let inputs = [
        ("model", trained.table("model").unwrap()),
        ("histories", ring.table("test").unwrap()),
        ("items", ids),
    ];
    let rank = crate::rank_sasrec::RankSasrec {
        k: 3,
        device: "cpu".into(),
        ..Default::default()
    };
    fixture.case(&rank, &inputs);
}

fn quantizers(fixture: &mut Fixture, embeddings: &Table) {
    let inputs = [("input", embeddings)];
    let greedy = crate::quantize_rkmeans::QuantizeRkmeans {
        num_codebooks: 2,
        codebook_size: 3,
        ..Default::default()
    };
    fixture.case(&greedy, &inputs);
    let beam = crate::quantize_rkmeans::QuantizeRkmeans {
        beam: 4,
        collisions: crate::quantizers::Collisions::NearestFree,
        ..greedy.clone()
    };
    fixture.case(&beam, &inputs);
    let balanced = crate::quantize_rkmeans::QuantizeRkmeans {
        balance: Some(1.0),
        ..greedy
    };
    fixture.case(&balanced, &inputs);
    for rotation in [crate::quantize_pq::Rotation::None, crate::quantize_pq::Rotation::Opq] {
        let product = crate::quantize_pq::QuantizePq {
            num_codebooks: 2,
            codebook_size: 3,
            rotation,
            rotations: 2,
            ..Default::default()
        };
        fixture.case(&product, &inputs);
    }
    let trained = crate::quantize_rvq::QuantizeRvq {
        num_codebooks: 2,
        codebook_size: 3,
        epochs: 3,
        ..Default::default()
    };
    fixture.case(&trained, &inputs);
    let autoencoder = crate::quantize_rqvae::QuantizeRqvae {
        num_codebooks: 2,
        codebook_size: 3,
        layers: vec![5, 3],
        epochs: 3,
        ..Default::default()
    };
    fixture.case(&autoencoder, &inputs);
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
