//! Bad pipelines and bad data: the exit code says whose turn it is, the message has a stable code and a hint, and
//! nothing is left half-written.

use std::io::Write;

use sluice_engine::{harness, text};
use sluice_operators::quantize_rkmeans::QuantizeRkmeans;

use crate::sluice::{Done, Sluice, TINY, entries, recipe};

const HEADER: &str = "user_id,item_id,timestamp\n";
const GOOD: &str = "user_id,item_id,timestamp\nu1,a,1\nu1,b,2\nu1,c,3\nu2,a,4\nu2,b,5\nu2,c,6\n";

/// What a pipeline that must fail is expected to say.
struct Failure<'a> {
    /// Exit code: 2 for the pipeline, 3 for the data.
    exit: i32,
    /// The code in `error[...]`.
    code: &'a str,
    /// Words of the message, its place and its hint.
    says: &'a [&'a str],
    /// The operator that must not be published.
    operator: &'a str,
}

/// Runs stages over files; checks how they fail and that nothing is left.
fn check(files: &[(&str, &str)], stages: &str, more: &[&str], wanted: &Failure) -> Sluice {
    let sluice = Sluice::with(files);
    sluice.write("bad.yaml", format!("pipeline: bad\nstages:\n{stages}"));
    let done = sluice.run(&[&["run", "bad.yaml", "--quiet"], more].concat());
    fails(&done, wanted);
    clean(&sluice, wanted.operator);
    // `plan` and `check` find what is wrong with a pipeline without running it.
    if wanted.exit == 2 {
        fails(&sluice.run(&[&["check", "bad.yaml"], more].concat()), wanted);
    }
    sluice
}

fn fails(done: &Done, wanted: &Failure) {
    assert_eq!(done.code, wanted.exit, "{}", done.err);
    let code = format!("error[{}]: ", wanted.code);
    for words in [code.as_str()].iter().chain(wanted.says) {
        assert!(done.err.contains(words), "no \"{words}\" in:\n{}", done.err);
    }
    assert!(done.err.contains("hint: "), "no hint in:\n{}", done.err);
    assert!(!done.err.contains("panicked"), "{}", done.err);
}

fn clean(sluice: &Sluice, operator: &str) {
    assert!(sluice.unfinished().is_empty(), "{:?}", sluice.unfinished());
    assert!(!sluice.published().contains(operator), "{:?}", sluice.published());
    // Whatever is in the store is whole.
    for object in entries(&sluice.path(".sluice/objects")) {
        assert!(object.join("manifest.json").is_file(), "{}", object.display());
    }
}

#[test]
fn a_column_is_missing() {
    let wanted = Failure {
        exit: 2,
        code: "missing-column",
        says: &[
            "\"rows.csv\" has no column \"item_id\"",
            "it has: user_id, thing",
            "bad.yaml:3:",
            "columns: { item_id: NAME }",
        ],
        operator: "ingest_interactions",
    };
    let files = [("rows.csv", "user_id,thing\nu1,a\n")];
    check(
        &files,
        "  rows: { op: ingest_interactions, path: rows.csv, format: csv }\n",
        &[],
        &wanted,
    );
}

#[test]
fn a_key_is_misspelt() {
    let wanted = Failure {
        exit: 2,
        code: "unknown-key",
        says: &[
            "unknown key \"user_kk\" in stage \"core\" (filter_kcore)",
            "bad.yaml:4:",
            "^^^^^^^",
            "did you mean \"user_k\"?",
        ],
        operator: "ingest_interactions",
    };
    let stages =
        "  rows: { op: ingest_interactions, path: rows.csv }\n  core: { op: filter_kcore, input: rows, user_kk: 5 }\n";
    check(&[("rows.csv", GOOD)], stages, &[], &wanted);
}

#[test]
fn stages_form_a_cycle() {
    let wanted = Failure {
        exit: 2,
        code: "cycle",
        says: &["one -> two -> one", "bad.yaml:3:"],
        operator: "dedup",
    };
    check(
        &[],
        "  one: { op: dedup, input: two }\n  two: { op: dedup, input: one }\n",
        &[],
        &wanted,
    );
}

#[test]
fn names_that_do_not_exist() {
    let rows = "  rows: { op: ingest_interactions, path: rows.csv }\n";
    let cases = [
        (
            "  clean: { op: dedup, input: rwos }\n",
            "unknown-stage",
            "did you mean \"rows\"?",
        ),
        (
            "  clean: { op: dedupe, input: rows }\n",
            "unknown-operator",
            "did you mean \"dedup\"?",
        ),
        (
            "  clean: { op: dedup, input: rows.reject }\n",
            "unknown-port",
            "did you mean \"rejects\"?",
        ),
        (
            "  clean: { op: dedup, inputs: { interaction: rows } }\n",
            "unknown-input",
            "did you mean \"interactions\"?",
        ),
    ];
    for (stage, code, hint) in cases {
        let wanted = Failure {
            exit: 2,
            code,
            says: &["bad.yaml:4:", hint],
            operator: "ingest_interactions",
        };
        check(&[("rows.csv", GOOD)], &format!("{rows}{stage}"), &[], &wanted);
    }
}

/// All of them come at once.
#[test]
fn problems_are_reported_together() {
    let sluice = Sluice::with(&[("rows.csv", GOOD)]);
    let stages = "  rows: { op: ingest_interactions, path: rows.csv, formt: csv }\n  core: { op: filter_kcor, input: rows }\n  more: { op: dedup, input: nothing }\n";
    sluice.write("bad.yaml", format!("pipeline: bad\nstages:\n{stages}"));
    let done = sluice.run(&["check", "bad.yaml"]);
    assert_eq!(done.code, 2);
    for words in ["unknown-key", "unknown-operator", "unknown-stage", "3 problems"] {
        assert!(done.err.contains(words), "no {words} in:\n{}", done.err);
    }
}

#[test]
fn overrides_of_what_is_not_there() {
    let stages = "  rows: { op: ingest_interactions, path: rows.csv }\n";
    for (set, code, hint) in [
        ("--set=rows.formt=csv", "unknown-key", "did you mean \"format\"?"),
        ("--set=row.format=csv", "unknown-stage", "did you mean \"rows\"?"),
    ] {
        let wanted = Failure {
            exit: 2,
            code,
            says: &["--set:1:1", hint],
            operator: "ingest_interactions",
        };
        check(&[("rows.csv", GOOD)], stages, &[set], &wanted);
    }
}

#[test]
fn a_file_is_missing() {
    let wanted = Failure {
        exit: 2,
        code: "file-not-found",
        says: &["rows.csv\"", "bad.yaml:3:", "--data DIR"],
        operator: "ingest_interactions",
    };
    check(
        &[],
        "  rows: { op: ingest_interactions, path: rows.csv }\n",
        &[],
        &wanted,
    );
    let nowhere = Sluice::new().run(&["run", "nowhere.yaml"]);
    assert_eq!(nowhere.code, 2);
    assert!(nowhere.err.contains("error[file-not-found]"), "{}", nowhere.err);
}

#[test]
fn gzip_ends_early() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(HEADER.as_bytes()).unwrap();
    for row in 0u64..200_000 {
        writeln!(packed, "u{},i{},{row}", row % 97, row * 7919 % 10_007).unwrap();
    }
    let packed = packed.finish().unwrap();
    let sluice = Sluice::new();
    sluice.write("rows.csv.gz", &packed[..packed.len() / 2]);
    let stages = "  rows: { op: ingest_interactions, path: rows.csv.gz }\n  clean: { op: dedup, input: rows }\n";
    sluice.write("bad.yaml", format!("stages:\n{stages}"));
    let wanted = Failure {
        exit: 3,
        code: "truncated-file",
        says: &[
            "\"rows.csv.gz\"",
            "its last good line is",
            "in stage \"rows\"",
            "get the file again",
        ],
        operator: "ingest_interactions",
    };
    fails(&sluice.run(&["run", "bad.yaml", "--quiet"]), &wanted);
    clean(&sluice, "ingest_interactions");
    // The stage that streamed from it is not there either.
    clean(&sluice, "dedup");

    // With the whole file the same pipeline runs.
    sluice.write("rows.csv.gz", &packed);
    sluice.succeed(&["run", "bad.yaml", "--quiet"]);
    assert_eq!(sluice.rows("rows", "out"), 200_000);
}

#[test]
fn a_row_has_a_bad_time() {
    let files = [(
        "rows.csv",
        "user_id,item_id,timestamp\nu1,a,1\nu1,b,yesterday\nu2,c,3\n",
    )];
    let wanted = Failure {
        exit: 3,
        code: "malformed-row",
        says: &[
            "bad timestamp \"yesterday\"",
            "rows.csv:3",
            "u1,b,yesterday",
            "on_error: skip",
        ],
        operator: "ingest_interactions",
    };
    let stages = "  rows: { op: ingest_interactions, path: rows.csv }\n";
    let sluice = check(&files, stages, &[], &wanted);

    let skip = ["run", "bad.yaml", "--set=rows.on_error=skip"];
    sluice.succeed(&skip);
    assert_eq!((sluice.rows("rows", "out"), sluice.rows("rows", "rejects")), (2, 1));
    let rejects = sluice.succeed(&["show", "rows.rejects"]).out;
    assert!(rejects.contains("bad timestamp \"yesterday\""), "{rejects}");

    let wanted = Failure {
        exit: 3,
        code: "too-many-rejects",
        says: &["more than \"max_errors\" allows (0)", "rows.csv:3"],
        operator: "ingest_interactions",
    };
    check(
        &files,
        stages,
        &["--set=rows.on_error=skip", "--set=rows.max_errors=0"],
        &wanted,
    );
}

/// A quote that is never closed would swallow the rest of the file.
#[test]
fn a_quote_is_left_open() {
    let wanted = Failure {
        exit: 3,
        code: "open-quote",
        says: &[
            "a quote is opened and never closed",
            "rows.csv:3",
            "u1,\"b,2",
            "quotes: false",
        ],
        operator: "ingest_interactions",
    };
    let files = [("rows.csv", "user_id,item_id,timestamp\nu1,a,1\nu1,\"b,2\nu2,c,3\n")];
    let stages = "  rows: { op: ingest_interactions, path: rows.csv, on_error: skip }\n";
    let sluice = check(&files, stages, &[], &wanted);
    sluice.succeed(&["run", "bad.yaml", "--set=rows.quotes=false", "--quiet"]);
    assert_eq!(sluice.rows("rows", "out"), 3);
}

#[test]
fn interactions_and_items_name_items_in_different_ways() {
    let wanted = Failure {
        exit: 3,
        code: "no-common-items",
        says: &[
            "no item of the interactions is in \"items\"",
            "such as ",
            "in stage \"known\"",
        ],
        operator: "join_items",
    };
    let files = [("rows.csv", GOOD), ("items.csv", "item_id,title\n1,a\n2,b\n")];
    let stages = "  rows: { op: ingest_interactions, path: rows.csv }
  items: { op: ingest_items, path: items.csv }
  known: { op: join_items, inputs: { items: items, interactions: rows } }\n";
    check(&files, stages, &[], &wanted);
}

#[test]
fn files_are_empty() {
    for operator in ["ingest_interactions", "ingest_items"] {
        let stages = format!("  rows: {{ op: {operator}, path: rows.csv }}\n");
        for (content, code) in [("", "empty-file"), (HEADER, "empty-table")] {
            let wanted = Failure {
                exit: 3,
                code,
                says: &[],
                operator,
            };
            check(&[("rows.csv", content)], &stages, &[], &wanted);
        }
    }
}

/// A core that drops everything is an error where it happens, not an empty table of metrics.
#[test]
fn nothing_is_left_of_the_data() {
    let wanted = Failure {
        exit: 3,
        code: "empty-result",
        says: &["in stage \"core\"", "lower \"k\""],
        operator: "filter_kcore",
    };
    let stages =
        "  rows: { op: ingest_interactions, path: rows.csv }\n  core: { op: filter_kcore, input: rows, k: 100 }\n";
    check(&[("rows.csv", GOOD)], stages, &[], &wanted);
}

#[test]
fn fewer_items_than_codebook_entries() {
    let wanted = Failure {
        exit: 3,
        code: "quantize",
        says: &["256", "in stage \"sids\"", "lower codebook_size"],
        operator: "quantize_rkmeans",
    };
    let stages = "  shop: { op: synthesize, users: 100, items: 120 }
  text: { op: embed_tfidf_svd, input: shop.items, dim: 8 }
  sids: { op: quantize_rkmeans, input: text, codebook_size: 256 }\n";
    let sluice = check(&[], stages, &[], &wanted);
    sluice.succeed(&["run", "bad.yaml", "--set=sids.codebook_size=16", "--quiet"]);
}

#[test]
fn embeddings_hold_no_nan() {
    let rows = "item_id embedding:[f32;2]\na 1,0\nb NaN,1\nc 0,1\nd 1,1\n";
    let config = QuantizeRkmeans {
        codebook_size: 2,
        ..QuantizeRkmeans::default()
    };
    let error = harness::run(&config, &[("input", text::parse(rows).unwrap())]).unwrap_err();
    assert_eq!(error.kind, sluice_engine::Kind::Data, "{error}");
    assert!(error.to_string().contains('b'), "{error}");
}

/// The stated rule: a beam wider than the catalogue ranks all of it.
#[test]
fn a_beam_wider_than_the_catalogue() {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    let run = [
        &["run", "quickstart.yaml", "--quiet"],
        &TINY[..],
        &["--set=generated.beam_width=1000"],
    ]
    .concat();
    sluice.succeed(&run);
    let users = sluice.record("split")["rows"]["test"].as_u64().unwrap();
    let items = sluice.rows("items", "out");
    assert!(items < 1000);
    assert_eq!(sluice.rows("generated", "out"), users * items);
}

#[test]
fn a_part_in_the_store_is_damaged() {
    let stages = "  rows: { op: ingest_interactions, path: rows.csv }\n  order: { op: audit_order, input: rows }\n  core: { op: filter_kcore, input: rows, k: 2 }\n";
    let sluice = Sluice::with(&[("rows.csv", GOOD)]);
    sluice.write("bad.yaml", format!("stages:\n{stages}"));
    sluice.succeed(&["run", "bad.yaml", "--quiet"]);
    let digest = sluice.record("rows")["outputs"]["out"].as_str().unwrap().to_string();
    let part = sluice.path(&format!(".sluice/objects/{digest}/part-00000.parquet"));
    let whole = std::fs::read(&part).unwrap();

    // A part that is too short is missing: it is made anew, equal to what it was, and nothing below runs.
    std::fs::write(&part, &whole[..whole.len() / 2]).unwrap();
    let again = sluice.succeed(&["run", "bad.yaml", "--json"]);
    assert_eq!(again.ran(), ["rows".to_string()].into());
    assert_eq!(std::fs::read(&part).unwrap(), whole);

    // Bytes that are wrong though the length is right: who does not read them is not disturbed, who does finds out.
    let wanted = Failure {
        exit: 3,
        code: "damaged-artifact",
        says: &["part-00000.parquet", "moved out of the store"],
        operator: "none",
    };
    let mut wrong = whole.clone();
    let end = wrong.len() - 10;
    wrong[end..].fill(0);
    std::fs::write(&part, &wrong).unwrap();
    sluice.succeed(&["run", "bad.yaml", "--quiet"]);
    fails(&sluice.run(&["run", "bad.yaml", "--set=core.k=1", "--quiet"]), &wanted);
    assert!(sluice.unfinished().is_empty());

    // The hint is right: the same command again makes it anew, equal to what it was.
    let again = sluice.succeed(&["run", "bad.yaml", "--json"]);
    assert_eq!(again.ran(), ["rows".to_string()].into());
    assert_eq!(std::fs::read(&part).unwrap(), whole);
}

#[test]
fn an_expectation_does_not_hold() {
    let sluice = Sluice::with(&[("rows.csv", GOOD)]);
    let stages = "stages:\n  rows: { op: ingest_interactions, path: rows.csv }\n  order: { op: audit_order, input: rows }\nexpect:\n";
    let expect = |line: &str| {
        sluice.write("bad.yaml", format!("{stages}  - {{ stage: order, {line} }}\n"));
        sluice.run(&["run", "bad.yaml"])
    };
    let good = expect("where: { fact: users }, value: 2");
    assert!(
        good.code == 0 && good.err.contains("all 1 expectations hold"),
        "{}",
        good.err
    );
    assert_eq!(expect("where: { fact: users }, rows: 1").code, 0);
    // What can be known without the data is known without a run.
    expect("where: { fact: users }, column: valeu, value: 2");
    let checked = sluice.run(&["check", "bad.yaml"]);
    assert_eq!(checked.code, 2, "{}", checked.err);
    assert!(checked.err.contains("did you mean \"value\"?"), "{}", checked.err);
    for (line, exit, words) in [
        ("where: { fact: users }, value: 3", 3, "is 2, not 3"),
        ("where: { fact: users }, at_least: 2.5", 3, "is 2, not at least 2.5"),
        ("where: { fact: user }, value: 2", 2, "0 rows match"),
        ("where: { fact: users }", 2, "expects nothing"),
        (
            "where: { fact: users }, at_least: many",
            2,
            "\"at_least\" wants a number",
        ),
        ("where: { fact: users }, atleast: 2", 2, "did you mean \"at_least\"?"),
        ("where: { fact: users }, rows: 2", 3, "has 1 rows, not 2"),
        ("where: { fat: users }, value: 2", 2, "did you mean \"fact\"?"),
        ("where: users, value: 2", 2, "\"where\" wants a map"),
        ("rows: 2, value: 2", 2, "write two expectations"),
    ] {
        let done = expect(line);
        assert_eq!(done.code, exit, "{line}: {}", done.err);
        assert!(
            done.err.contains(words) && done.err.contains("bad.yaml:5:"),
            "{line}: {}",
            done.err
        );
    }
}
