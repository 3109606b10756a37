//! Runs every `.slt` file below `tests/slt`: statements with the rows or the error they must give.
//!
//! A folder says by its name in [`fixture`] which session its files are asked in. `SLUICE_BLESS=1` writes what comes out
//! into the files: read the difference before it goes in. Numbers are compared to 12 digits, errors by their one line.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sluice_engine::operator::Cancel;
use sluice_engine::store::Store;
use sluice_sql::{Limits, Session, Source};
use sqllogictest::{
    DB, DBOutput, DefaultColumnType, Record, Runner, default_normalizer, default_validator, parse_file,
    strict_column_validator,
};

use crate::sluice::Sluice;

/// The session that the files of a folder are asked in.
fn fixture(folder: &str, store: &Sluice) -> Session {
    match folder {
        "functions" | "statements" => session(),
        "store" => over(store),
        other => panic!("a new folder \"{other}\": say here which session its files are asked in"),
    }
}

/// One without a store. Two threads, so that aggregates meet their states.
fn session() -> Session {
    let limits = Limits {
        threads: 2,
        ..Limits::default()
    };
    Session::new(&limits, &Cancel::default()).unwrap()
}

const REVIEWS: &str = "user_id,item_id,timestamp\n\
    u1,i1,10\nu1,i2,20\nu1,i3,30\nu2,i1,10\nu2,i2,25\nu2,i4,40\nu3,i3,5\nu3,i1,15\nu3,i2,35\n";

const SMALL: &str = "pipeline: small\nseed: 7\nstages:\n  \
    reviews: { op: ingest_interactions, path: reviews.csv }\n  \
    clean: { op: dedup, input: reviews }\n  \
    split: { op: split_leave_one_out, input: clean }\n  \
    popular: { op: rank_popularity, inputs: { train: split.train, histories: split.test, items: clean }, k: 2 }\n  \
    scores: { op: score_ranking, inputs: { ranked: popular, targets: split.test }, k: [1, 2] }\n";

const SWEEP: &str = "pipeline: cores\nstages:\n  \
    reviews: { op: ingest_interactions, path: reviews.csv }\n  \
    core: { op: filter_kcore, input: reviews, k: 1 }\n\
    sweep:\n  axes: { core.k: [1, 2] }\n";

const IDS: &str = "pipeline: ids\nseed: 7\nstages:\n  \
    shop: { op: synthesize, users: 60, items: 120 }\n  \
    text: { op: embed_tfidf_svd, input: shop.items, dim: 4 }\n  \
    residual: { op: quantize_rkmeans, input: text, num_codebooks: 2, codebook_size: 3 }\n  \
    product: { op: quantize_pq, input: text, num_codebooks: 2, codebook_size: 3, collisions: none }\n";

/// A store with a run that makes two kinds of semantic ids, a run of a sweep, a run of a small pipeline, and that run again after a review was taken out.
fn runs() -> Sluice {
    let sluice = Sluice::with(&[
        ("reviews.csv", REVIEWS),
        ("small.yaml", SMALL),
        ("cores.yaml", SWEEP),
        ("ids.yaml", IDS),
    ]);
    sluice.succeed(&["run", "ids.yaml", "--quiet"]);
    sluice.succeed(&["run", "cores.yaml", "--quiet"]);
    sluice.succeed(&["run", "small.yaml", "--quiet"]);
    sluice.write("reviews.csv", REVIEWS.replace("u3,i2,35\n", ""));
    sluice.succeed(&["run", "small.yaml", "--quiet"]);
    sluice
}

/// One over the store of those runs.
fn over(sluice: &Sluice) -> Session {
    let source = Source {
        store: Store::existing(&sluice.path(".sluice")).unwrap(),
        registry: sluice_operators::registry(),
        run: None,
        data_root: sluice.path("."),
        any_file: false,
    };
    session().over(source).unwrap()
}

/// An error as files expect it: its code and its line.
#[derive(Debug)]
struct Told(sluice_engine::Error);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.0.code, self.0.message)
    }
}

impl std::error::Error for Told {}

struct Asked(Session);

impl DB for Asked {
    type Error = Told;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, text: &str) -> Result<DBOutput<DefaultColumnType>, Told> {
        let answer = self.0.query(text).map_err(Told)?;
        let types = answer.schema();
        let types = types.fields().iter().map(|field| kind(field.data_type())).collect();
        let mut rows = Vec::new();
        for batch in answer {
            let batch = batch.map_err(Told)?;
            for row in 0..batch.num_rows() {
                rows.push(batch.columns().iter().map(|column| cell(column, row)).collect());
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }
}

fn kind(of: &DataType) -> DefaultColumnType {
    match of {
        of if of.is_integer() => DefaultColumnType::Integer,
        of if of.is_floating() => DefaultColumnType::FloatingPoint,
        of if of.is_string() => DefaultColumnType::Text,
        _ => DefaultColumnType::Any,
    }
}

fn cell(column: &dyn Array, row: usize) -> String {
    if column.is_null(row) {
        return "NULL".to_string();
    }
    match column.data_type() {
        DataType::Float64 => number(column.as_primitive::<Float64Type>().value(row)),
        DataType::Float32 => number(f64::from(column.as_primitive::<Float32Type>().value(row))),
        DataType::Struct(fields) => {
            let columns = fields.iter().zip(column.as_struct().columns());
            let cells = columns.map(|(field, column)| format!("{}: {}", field.name(), cell(column, row)));
            format!("{{{}}}", cells.collect::<Vec<_>>().join(", "))
        }
        _ => {
            let format = ArrayFormatter::try_new(column, &FormatOptions::default().with_null("NULL")).unwrap();
            match format.value(row).to_string() {
                empty if empty.is_empty() => "(empty)".to_string(),
                // A row of a file is a line.
                text => text.replace('\n', "\\n"),
            }
        }
    }
}

/// Twelve digits: what another C library may round otherwise is not told.
fn number(value: f64) -> String {
    match format!("{value:.11e}").parse::<f64>() {
        Ok(rounded) if value.is_finite() => rounded.to_string(),
        _ => value.to_string(),
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.extend(path.extension().is_some_and(|ending| ending == "slt").then_some(path)),
        }
    }
}

/// Waits for what never waits: the session blocks by itself.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "says how much was run")]
fn statements_give_what_the_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("slt");
    let bless = std::env::var_os("SLUICE_BLESS").is_some();
    let mut found = Vec::new();
    files(&root, &mut found);
    found.sort();
    let store = runs();
    let mut sessions: BTreeMap<String, Session> = BTreeMap::new();
    let (mut asked, mut failed) = (0, Vec::new());
    for path in &found {
        let folder = path.strip_prefix(&root).unwrap().components().next().unwrap();
        let folder = folder.as_os_str().to_string_lossy().to_string();
        let session = sessions
            .entry(folder.clone())
            .or_insert_with(|| fixture(&folder, &store))
            .clone();
        let mut runner = Runner::new(|| async { Ok(Asked(session.clone())) });
        runner.with_column_validator(strict_column_validator);
        if bless {
            let (validator, columns) = (default_validator, strict_column_validator);
            ready(runner.update_test_file(path, " ", validator, default_normalizer, columns)).unwrap();
        }
        let records = parse_file::<DefaultColumnType>(path).unwrap();
        let statements = records
            .iter()
            .filter(|record| matches!(record, Record::Query { .. } | Record::Statement { .. }));
        let count = statements.count();
        assert!(count > 0, "{} asks nothing", path.display());
        asked += count;
        if let Err(error) = runner.run_file(path) {
            failed.push(error.to_string());
        }
    }
    eprintln!("{} statements in {} files", asked, found.len());
    assert!(found.len() >= 5);
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
