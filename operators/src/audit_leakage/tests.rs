//! Planted leaks of each kind, a clean split, and Beauty.

use sluice_engine::{harness, text};

use super::*;
use crate::chronology::Ties;

/// Twelve users whose items differ, timed so that nobody's train is later than anybody's target.
fn clean() -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut train, mut valid, mut test) = (Vec::new(), Vec::new(), Vec::new());
    for user in 0..12 {
        let (a, b, v, t) = (user + 10, 40 - user, 50 + user * 7 % 12, 70 + user * 5 % 12);
        train.push(format!("u{user} {a},{b} 1,2"));
        valid.push(format!("u{user} {a},{b} 1,2 {v} 3"));
        test.push(format!("u{user} {a},{b},{v} 1,2,3 {t} 4"));
    }
    (train, valid, test)
}

const TRAIN_HEAD: &str = "user_id sequence:[str] timestamps:[ts]";
const HELD_HEAD: &str = "user_id sequence:[str] timestamps:[ts] target target_timestamp:ts";

fn parse(head: &str, rows: &[String]) -> RecordBatch {
    text::parse(&format!("{head}\n{}", rows.join("\n"))).unwrap()
}

type Rows = BTreeMap<String, (u64, u64, String)>;

fn audit(inputs: &[(&str, RecordBatch)]) -> Rows {
    let out = harness::run(&AuditLeakage::default(), inputs).unwrap();
    let batch = out.batch(OUT).unwrap();
    let word = |name: &str, row: usize| schema::strings(&batch, name).unwrap().value(row).to_string();
    let count = |name: &str, row: usize| {
        schema::numbers::<arrow::datatypes::UInt64Type>(&batch, name)
            .unwrap()
            .value(row)
    };
    let row = |row: usize| {
        (
            word("check", row),
            (count("count", row), count("of", row), word("verdict", row)),
        )
    };
    (0..batch.num_rows()).map(row).collect()
}

fn of_split(train: &[String], valid: &[String], test: &[String]) -> Rows {
    audit(&[
        (TRAIN, parse(TRAIN_HEAD, train)),
        (VALID, parse(HELD_HEAD, valid)),
        (TEST, parse(HELD_HEAD, test)),
    ])
}

fn found(count: u64, of: u64, verdict: &str) -> (u64, u64, String) {
    (count, of, verdict.to_string())
}

#[test]
fn a_clean_split_is_clean() {
    let (train, valid, test) = clean();
    let rows = of_split(&train, &valid, &test);
    assert_eq!(rows.len(), 8);
    // Nothing has the same time as what is beside it.
    let others: Vec<&str> = rows
        .iter()
        .filter(|row| row.1.2 != "ok")
        .map(|row| row.0.as_str())
        .collect();
    assert_eq!(others, ["target_ties_in_id_order", "ties_in_id_order"], "{rows:#?}");
    assert_eq!(rows["ties_in_id_order"], found(0, 0, "not_checked"));
    assert_eq!(rows["test_target_in_train"], found(0, 12, "ok"));
}

#[test]
fn targets_in_rows_are_leaks() {
    let (train, valid, test) = clean();
    // u3's test target and u4's valid target are trained on.
    let mut planted = train.clone();
    planted[3] = "u3 13,37,85 1,2,2".into();
    planted[4] = "u4 14,36,54 1,2,2".into();
    assert!(
        test[3].contains(" 73 4") && valid[4].contains(" 54 3"),
        "{test:?} {valid:?}"
    );
    planted[3] = planted[3].replace("85", "73");
    let rows = of_split(&planted, &valid, &test);
    assert_eq!(rows["test_target_in_train"], found(1, 12, "leak"));
    assert_eq!(rows["valid_target_in_train"], found(1, 12, "leak"));
    assert_eq!(rows["test_target_in_valid"], found(0, 12, "ok"));
    // u5's valid row already holds the test target.
    let mut planted = valid.clone();
    planted[5] = "u5 15,35 1,2 71 3".into();
    let mut history = test.clone();
    history[5] = "u5 15,35,51 1,2,3 71 4".into();
    assert_eq!(
        of_split(&train, &planted, &history)["test_target_in_valid"],
        found(1, 12, "leak")
    );
    // u6 trains on what is later than the target, by a day.
    let mut planted = train.clone();
    planted[6] = "u6 16,34 1,9".into();
    let rows = of_split(&planted, &valid, &test);
    assert_eq!(rows["train_after_test_target"], found(1, 12, "leak"));
    assert_eq!(rows["targets_before_end_of_train"], found(12, 12, "warning"));
    assert_eq!(rows["train_later_than_target"], found(12, 12 * 24, "warning"));
}

/// Who comes back to an item has it in the history: no leak. The same item once more than that is one.
#[test]
fn repeats_are_no_leaks() {
    let (mut train, mut valid, mut test) = clean();
    train[0] = "u0 10,72 1,2".into();
    valid[0] = "u0 10,72 1,2 50 3".into();
    test[0] = "u0 10,72,50 1,2,3 72 4".into();
    assert_eq!(of_split(&train, &valid, &test)["test_target_in_train"].0, 0);
    train[0] = "u0 10,72,72 1,2,2".into();
    assert_eq!(of_split(&train, &valid, &test)["test_target_in_train"].0, 1);
}

#[test]
fn every_row_of_a_user_is_looked_at() {
    let (mut train, valid, mut test) = clean();
    train[0] = "u0 10,40,99 1,2,2".into();
    test.insert(0, "u0 10,40 1,2 99 1".into());
    let rows = of_split(&train, &valid, &test);
    assert_eq!(rows["test_target_in_train"], found(1, 12, "leak"));
    assert_eq!(rows["train_after_test_target"], found(1, 12, "leak"));
    test[0] = "u0 10,40 1,2 50 4".into();
    let rows = of_split(&train, &valid, &test);
    assert_eq!(rows["test_target_in_train"], found(0, 12, "ok"));
    assert_eq!(rows["test_target_in_valid"], found(1, 12, "leak"));
    let fitted = text::parse("user_id item_id\nu0 50").unwrap();
    let inputs = [
        (TRAIN, parse(TRAIN_HEAD, &train)),
        (TEST, parse(HELD_HEAD, &test)),
        (FIT_ROWS, fitted),
    ];
    assert_eq!(audit(&inputs)["test_target_in_fit_rows"], found(1, 1, "leak"));
}

/// What a check with nothing to compare says.
fn unchecked(inputs: &[(&str, RecordBatch)], check: &str) -> String {
    assert_eq!(audit(inputs)[check], found(0, 0, "not_checked"), "{check}");
    let out = harness::run(&AuditLeakage::default(), inputs).unwrap();
    let batch = out.batch(OUT).unwrap();
    let names = schema::strings(&batch, "check").unwrap();
    let row = names.iter().position(|name| name == Some(check)).unwrap();
    let sentence = schema::strings(&batch, "sentence").unwrap().value(row);
    sentence.strip_suffix(": nothing was compared").unwrap().to_string()
}

#[test]
fn nothing_to_compare_is_not_ok() {
    let (train, _, test) = clean();
    let strangers: Vec<String> = train.iter().map(|row| row.replace('u', "x")).collect();
    let untimed: Vec<String> = (0..12).map(|user| format!("u{user} {} null", user + 10)).collect();
    let rows = |rows: &str| text::parse(rows).unwrap();
    let of = |train: &[String], test: &[String]| {
        vec![
            (TRAIN, parse(TRAIN_HEAD, train)),
            (TEST, parse(HELD_HEAD, test)),
            (FIT_ROWS, rows("user_id item_id\nx0 70")),
            (FIT_ITEMS, rows("item_id\nother")),
        ]
    };
    let others = of(&strangers, &test);
    for check in ["test_target_in_train", "train_after_test_target"] {
        assert_eq!(unchecked(&others, check), "no user of test is in train");
    }
    assert_eq!(
        unchecked(&others, "test_target_in_fit_rows"),
        "no user of test is in the rows that were fitted on"
    );
    assert_eq!(
        unchecked(&others, "cold_target_in_fit_items"),
        "no item that was fitted on is in train or a test target"
    );
    let none = of(&train, &[]);
    for check in [
        "test_target_in_train",
        "train_after_test_target",
        "cold_target_in_fit_items",
    ] {
        assert_eq!(unchecked(&none, check), "test has no targets");
    }
    assert_eq!(
        unchecked(&none, "train_later_than_target"),
        "no time of a test target is known"
    );
    let untimed = of(&untimed, &test);
    assert_eq!(audit(&untimed)["test_target_in_train"], found(0, 12, "ok"));
    assert_eq!(
        unchecked(&untimed, "train_after_test_target"),
        "no user has known times in both train and test"
    );
    assert_eq!(
        unchecked(&untimed, "targets_before_end_of_train"),
        "no time of a train interaction is known"
    );
}

#[test]
fn times_that_are_no_times_of_the_items_are_refused() {
    let train = parse(TRAIN_HEAD, &["u a,b 1,2".into()]);
    for (row, counts) in [("u a 1,1,1,1 y 1", "1 items and 4"), ("u - 4 y 4", "0 items and 1")] {
        let test = parse(HELD_HEAD, &[row.into()]);
        let error = harness::run(&AuditLeakage::default(), &[(TRAIN, train.clone()), (TEST, test)]).unwrap_err();
        let message = format!("user \"u\" of \"test\" has {counts} times in a row");
        assert_eq!((error.code.as_str(), error.message), ("bad-row", message));
    }
}

#[test]
fn what_was_fitted_on_is_looked_through() {
    let (train, valid, test) = clean();
    let inputs = || {
        vec![
            (TRAIN, parse(TRAIN_HEAD, &train)),
            (VALID, parse(HELD_HEAD, &valid)),
            (TEST, parse(HELD_HEAD, &test)),
        ]
    };
    let rows = |rows: &str| text::parse(&format!("user_id item_id\n{rows}")).unwrap();
    let with = |port: &'static str, batch: RecordBatch| {
        let mut all = inputs();
        all.push((port, batch));
        audit(&all)
    };
    let fitted = with(FIT_ROWS, rows("u0 10\nu1 70\nu2 60\n"));
    assert_eq!(fitted["test_target_in_fit_rows"], found(0, 3, "ok"));
    // u0's test target and u2's valid target.
    let fitted = with(FIT_ROWS, rows("u0 10\nu0 70\nu2 52\n"));
    assert_eq!(fitted["test_target_in_fit_rows"], found(1, 2, "leak"));
    assert_eq!(
        fitted["valid_target_in_fit_rows"].2,
        if valid[2].contains(" 52 3") { "leak" } else { "ok" }
    );
    // All targets are cold here; two of them were fitted on.
    let items = text::parse("item_id\n10\n70\n71\n99").unwrap();
    assert_eq!(
        with(FIT_ITEMS, items)["cold_target_in_fit_items"],
        found(2, 12, "warning")
    );
    let items = text::parse("item_id\n10\n11\n").unwrap();
    assert_eq!(with(FIT_ITEMS, items)["cold_target_in_fit_items"], found(0, 12, "ok"));
}

#[test]
fn samples_and_prompts_are_read() {
    let train = text::parse("user_id sequence:[str] timestamps:[ts]\nu a,b 1,2\nv c,d 1,2").unwrap();
    let test = text::parse(
        "user_id sequence:[str] timestamps:[ts] target target_timestamp:ts\nu a,b,e 1,2,3 f 4\nv c,d,e 1,2,3 a 4",
    )
    .unwrap();
    let ids = text::parse("item_id semantic_id:[u16;2]\na 0,1\nb 0,2\nc 1,1\nd 1,2\ne 2,1\nf 2,2").unwrap();
    let samples = |rows: &str| text::parse(&format!("user_id sequence:[u16] target:[u16;2]\n{rows}")).unwrap();
    let run = |more: Vec<(&'static str, RecordBatch)>| {
        let mut inputs = vec![(TRAIN, train.clone()), (TEST, test.clone())];
        inputs.extend(more);
        audit(&inputs)
    };
    let of =
        |rows: &str| run(vec![(SAMPLES, samples(rows)), (SEMANTIC_IDS, ids.clone())])["test_target_in_samples"].clone();
    assert_eq!(of("u 0,1 0,2\nv 1,1 1,2"), found(0, 2, "ok"));
    // f as a target; a in a history of v; f in v's is nobody's target.
    assert_eq!(of("u 0,1,0,2 2,2\nv 1,1 1,2"), found(1, 2, "leak"));
    assert_eq!(of("u 0,1 0,2\nv 1,1,0,1 2,2"), found(1, 2, "leak"));
    // Codes across a border of two items are none: 1,0 | 1,1 holds 0,1.
    assert_eq!(of("v 1,0,1,1 1,2"), found(0, 1, "ok"));
    assert_eq!(of("w 0,1 2,2"), found(0, 0, "not_checked"));
    let titles =
        text::parse("item_id tokens:[u32]\na 1,2,3,0\nb 4,5,0\nc 6,7,8,0\nd 1,2,9,0\ne 5,5,5,0\nf 7,8,9,0").unwrap();
    let prompts = |rows: &str| text::parse(&format!("user_id tokens:[u32]\n{rows}")).unwrap();
    let of =
        |rows: &str| run(vec![(PROMPTS, prompts(rows)), (TITLES, titles.clone())])["test_target_in_prompts"].clone();
    assert_eq!(of("u 1,2,3,4,5,0\nv 6,7,8,1,2,9,0"), found(0, 2, "ok"));
    assert_eq!(of("u 1,2,3,7,8,9,0\nv 6,7,8,0"), found(1, 2, "leak"));
    let error = harness::run(
        &AuditLeakage::default(),
        &[(TRAIN, train), (TEST, test), (PROMPTS, prompts("u 1"))],
    )
    .unwrap_err();
    assert_eq!(error.code, "missing-input");
}

#[test]
fn ids_in_order_are_told() {
    let mut rows = vec![HELD_HEAD.to_string()];
    for user in 0..30 {
        rows.push(format!("u{user} {},{} 1,1 {} 1", user + 1, user + 2, user + 3));
    }
    let test = text::parse(&rows.join("\n")).unwrap();
    let train = text::parse("user_id sequence:[str] timestamps:[ts]\nu0 1 1").unwrap();
    let told = audit(&[(TRAIN, train.clone()), (TEST, test)]);
    assert_eq!(told["ties_in_id_order"], found(60, 60, "leak"));
    assert_eq!(told["target_ties_in_id_order"], found(30, 30, "leak"));
    let file = |ids: &dyn Fn(usize) -> usize| {
        let rows: Vec<String> = (0..40)
            .map(|row| format!("u{} {} 1 {}", (row * 7) % 40, ids(row), row + 1))
            .collect();
        parse("user_id item_id timestamp:ts position:u64", &rows)
    };
    let (_, _, test) = clean();
    let run = |ids: &dyn Fn(usize) -> usize| {
        audit(&[
            (TRAIN, train.clone()),
            (TEST, parse(HELD_HEAD, &test)),
            (INTERACTIONS, file(ids)),
        ])
    };
    let told = run(&|row| row);
    assert_eq!(told["item_ids_in_file_order"], found(39, 39, "warning"));
    assert_eq!(told["user_ids_in_file_order"].2, "ok");
    assert_eq!(run(&|row| row * 17 % 41)["item_ids_in_file_order"].2, "ok");
}

#[test]
fn beauty() {
    let Some((train, valid, test)) = crate::beauty::split(Ties::File) else {
        return;
    };
    let interactions = crate::beauty::interactions("item_id").unwrap();
    let told = audit(&[
        (TRAIN, train.clone()),
        (VALID, valid.clone()),
        (TEST, test.clone()),
        (FIT_ROWS, interactions.clone()),
        (FIT_ITEMS, interactions.clone()),
        (INTERACTIONS, interactions),
    ]);
    assert_eq!(told["test_target_in_train"], found(0, 22_363, "ok"));
    assert_eq!(told["valid_target_in_train"], found(0, 22_363, "ok"));
    assert_eq!(told["train_after_test_target"], found(0, 22_363, "ok"));
    // All interactions are what nothing may be fitted on.
    assert_eq!(told["test_target_in_fit_rows"], found(22_363, 22_363, "leak"));
    assert_eq!(told["cold_target_in_fit_items"], found(138, 138, "warning"));
    // By plain counting code.
    assert_eq!(told["targets_before_end_of_train"], found(22_352, 22_363, "warning"));
    let (later, of, verdict) = &told["train_later_than_target"];
    assert!((*later as f64 / *of as f64 - 0.243_782_003_702_931_5).abs() < 1e-12 && verdict == "warning");
    assert_eq!(told["ties_in_id_order"], found(42_461, 77_402, "warning"));
    assert_eq!(told["target_ties_in_id_order"], found(5_410, 9_719, "warning"));
    assert_eq!(told["item_ids_in_file_order"], found(12_100, 12_100, "warning"));
    // By ASIN, as the file was sorted.
    let rows = crate::beauty::interactions("asin").unwrap();
    let out = harness::run(
        &crate::split_leave_one_out::SplitLeaveOneOut::default(),
        &[("interactions", rows)],
    )
    .unwrap();
    let told = audit(&[(TRAIN, out.batch("train").unwrap()), (TEST, out.batch("test").unwrap())]);
    assert_eq!(told["ties_in_id_order"], found(77_402, 77_402, "leak"));
    assert_eq!(told["target_ties_in_id_order"], found(9_719, 9_719, "leak"));
}
