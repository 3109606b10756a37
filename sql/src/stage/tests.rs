//! Statements of stages: what they give, what they refuse, and that the order of their inputs' rows does not matter.

use arrow::compute::{concat_batches, take_record_batch};
use proptest::prelude::*;
use sluice_engine::text::{parse, render};

use super::*;

const EVENTS: &str = "user | item | at:i64 | score:f64 | codes:[u16]\n a | x | 1 | 0.5 | 1,2\n a | y | 1 | 0.5 | 1\n \
    b | x | 2 | 0.25 | 3\n b | z | 3 | null | -\n null | x | 1 | 0.5 | 1,2\n a | x | 1 | 0.5 | 1,2";
const ITEMS: &str = "item | title\n x | Ex\n y | Why";

fn given(text: &str, events: &RecordBatch) -> Result<RecordBatch> {
    let items = parse(ITEMS).unwrap();
    let tables = Tables::new()
        .with("events", Table::new(events.clone()))
        .with("items", Table::new(items.clone()));
    let statement = Statement::parse(text)?;
    let bound = bind(
        &statement,
        &[("events".into(), events.schema()), ("items".into(), items.schema())],
    )?;
    let (schema, batches) = run(&statement, &tables, &Limits::default(), &Cancel::default())?;
    assert_eq!(schema, bound, "{text}");
    Ok(concat_batches(&schema, &batches)?)
}

fn result(text: &str) -> String {
    render(&given(text, &parse(EVENTS).unwrap()).unwrap_or_else(|error| panic!("{text}: {error}"))).unwrap()
}

#[test]
fn rows_come_in_an_order_of_their_own() {
    assert_eq!(
        result("SELECT user, item FROM events"),
        "user  item\na     x\na     x\na     y\nb     x\nb     z\nnull  x\n"
    );
    // Ties of the order by the other columns, left to right; a column that is not selected counts last.
    assert_eq!(
        result("SELECT item, user FROM events ORDER BY at DESC LIMIT 4"),
        "item  user\nz     b\nx     b\nx     a\nx     a\n"
    );
    assert_eq!(
        result("SELECT item, row_number() OVER (PARTITION BY user ORDER BY at) AS n FROM events WHERE user = 'a'"),
        "item  n\nx     1\nx     2\ny     3\n"
    );
    assert_eq!(
        result("SELECT user, string_agg(item, '-' ORDER BY at) AS items FROM events GROUP BY user"),
        "user  items\na     x-x-y\nb     x-z\nnull  x\n"
    );
    assert_eq!(result("SELECT codes FROM events WHERE user = 'b'"), "codes\n[]\n[3]\n");
}

#[test]
fn columns_have_names_and_plain_types() {
    let batch = given(
        "SELECT concat(user, '!') AS loud, count(*) AS n FROM events GROUP BY 1",
        &parse(EVENTS).unwrap(),
    );
    let schema = batch.unwrap().schema();
    assert_eq!(*schema.field(0).data_type(), DataType::Utf8);
    assert!(!schema.field(1).is_nullable());
}

#[test]
fn what_is_no_function_of_the_inputs_is_refused() {
    let cases = [
        ("SELECT random() AS r FROM events", "not-a-function"),
        ("SELECT uuid() AS r FROM events", "not-a-function"),
        (
            "SELECT * FROM events WHERE now() > TIMESTAMP '2020-01-01'",
            "not-a-function",
        ),
        ("SELECT current_date AS d", "not-a-function"),
        ("SELECT user FROM events LIMIT 3", "not-a-function"),
        ("SELECT user FROM events OFFSET 3", "not-a-function"),
        (
            "SELECT * FROM (SELECT user FROM events LIMIT 3) AS t ORDER BY user",
            "not-a-function",
        ),
        (
            "SELECT * FROM items WHERE item IN (SELECT item FROM events LIMIT 1)",
            "not-a-function",
        ),
        (
            "WITH t AS (SELECT user FROM events ORDER BY user) SELECT * FROM t LIMIT 2",
            "not-a-function",
        ),
        ("SELECT row_number() OVER () AS n FROM events", "not-a-function"),
        (
            "SELECT lag(item) OVER (PARTITION BY user) AS n FROM events",
            "not-a-function",
        ),
        (
            "SELECT sum(at) OVER (ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM events",
            "not-a-function",
        ),
        ("SELECT array_agg(item) AS items FROM events", "not-a-function"),
        ("SELECT first_value(item) AS item FROM events", "not-a-function"),
        (
            "SELECT DISTINCT ON (user) user, item FROM events ORDER BY user",
            "not-a-function",
        ),
        ("SELECT user FROM events WHERE at > $1", "not-a-function"),
        ("SELECT * FROM information_schema.tables", "unknown-table"),
        ("SELECT * FROM sys.runs", "unknown-table"),
        ("SELECT * FROM event", "unknown-table"),
        ("SELECT * FROM '/etc/passwd'", "unknown-table"),
        ("EXPLAIN SELECT 1", "not-a-query"),
        ("SHOW TABLES", "not-a-query"),
        (
            "SELECT e.item, i.item FROM events e JOIN items i ON e.item = i.item",
            "duplicate-column",
        ),
        ("SELECT NULL AS a", "wrong-type"),
        ("SELECT usr FROM events", "missing-column"),
    ];
    for (text, code) in cases {
        let error = given(text, &parse(EVENTS).unwrap()).expect_err(text);
        assert_eq!(error.code, code, "{text}: {error}");
        assert_ne!(error.kind, sluice_engine::Kind::Internal, "{text}: {error}");
    }
}

/// Statements whose result, to the byte, must not depend on the order of the rows of `events`.
const SETTLED: [&str; 16] = [
    "SELECT * FROM events",
    "SELECT user, count(*) AS n, sum(at) AS at, min(score) AS least FROM events GROUP BY user",
    "SELECT user, item FROM events WHERE score > 0.3",
    "SELECT e.user, e.at, i.title FROM events e JOIN items i ON e.item = i.item",
    "SELECT e.*, i.title FROM events e LEFT JOIN items i ON e.item = i.item",
    "SELECT * FROM events ORDER BY at",
    "SELECT user FROM events ORDER BY at DESC, score",
    "SELECT item, user FROM events ORDER BY at LIMIT 2",
    "SELECT item FROM events ORDER BY at LIMIT 2 OFFSET 1",
    "SELECT item, count(*) AS n FROM (SELECT * FROM events ORDER BY at LIMIT 3) AS t GROUP BY item",
    "SELECT user, item, row_number() OVER (PARTITION BY user ORDER BY at) AS n FROM events",
    "SELECT item, lag(user) OVER (ORDER BY at) AS before, rank() OVER (ORDER BY at) AS place FROM events",
    "SELECT item, sum(at) OVER (ORDER BY at ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) AS n FROM events",
    "SELECT user, array_agg(item ORDER BY at) AS items, first_value(item ORDER BY at) AS one FROM events GROUP BY user",
    "SELECT DISTINCT user, at FROM events UNION ALL SELECT item, at FROM events",
    "WITH firsts AS (SELECT *, row_number() OVER (PARTITION BY user ORDER BY at) AS n FROM events) \
     SELECT user, item, codes FROM firsts WHERE n = 1",
];

fn shuffled() -> impl Strategy<Value = (RecordBatch, RecordBatch)> {
    let row = (0..4u8, 0..3u8, 0..3i64, 0..3u8);
    let rows = proptest::collection::vec(row, 0..24);
    let lines = rows.prop_flat_map(|rows| (Just(rows.clone()), Just(rows).prop_shuffle()));
    let batch = |rows: &[(u8, u8, i64, u8)]| {
        let line = |(user, item, at, score): &(u8, u8, i64, u8)| {
            let user = ["a", "b", "c", "null"][usize::from(*user)];
            let item = ["x", "y", "z"][usize::from(*item)];
            format!("{user} | {item} | {at} | {} | {score},{at}\n", f64::from(*score) / 4.0)
        };
        let text: String = rows.iter().map(line).collect();
        parse(&format!("user | item | at:i64 | score:f64 | codes:[u16]\n{text}")).unwrap()
    };
    lines.prop_map(move |(one, other)| (batch(&one), batch(&other)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_order_of_the_inputs_rows_does_not_matter((one, other) in shuffled()) {
        for text in SETTLED {
            prop_assert_eq!(given(text, &one).unwrap(), given(text, &other).unwrap(), "{}", text);
        }
    }
}

/// Parquet parts give what batches give, and dropped rows are not read into the result.
#[test]
fn parts_and_batches_are_the_same_table() {
    let folder = tempfile::tempdir().unwrap();
    let events = parse(EVENTS).unwrap();
    let halves = [events.slice(0, 3), events.slice(3, 3)];
    let mut paths = Vec::new();
    for (at, half) in halves.iter().enumerate() {
        let path = folder.path().join(format!("part-{at}.parquet"));
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = parquet::arrow::ArrowWriter::try_new(file, half.schema(), None).unwrap();
        writer.write(half).unwrap();
        writer.close().unwrap();
        paths.push(path);
    }
    let tables = Tables::new().with("events", Table::Parts(events.schema(), paths));
    for text in SETTLED.iter().filter(|text| !text.contains("items i")) {
        let statement = Statement::parse(text).unwrap();
        let (schema, batches) = run(&statement, &tables, &Limits::default(), &Cancel::default()).unwrap();
        let parts = concat_batches(&schema, &batches).unwrap();
        assert_eq!(parts, given(text, &events).unwrap(), "{text}");
    }
    // The order of the rows in the result is no accident of the order in the input.
    let backwards = arrow::array::UInt32Array::from_iter_values((0..6).rev());
    let reversed = take_record_batch(&events, &backwards).unwrap();
    assert_eq!(
        given(SETTLED[0], &events).unwrap(),
        given(SETTLED[0], &reversed).unwrap()
    );
}
