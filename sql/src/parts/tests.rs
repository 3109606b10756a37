//! Tests of Parquet parts as tables: what a scan is told to do, and that it finds the same rows as one over rows in memory.

use std::sync::Arc;

use arrow::array::{ArrayRef, FixedSizeListArray, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field};
use arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::{CatalogProvider, MemTable, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use proptest::prelude::*;
use sluice_engine::operator::Cancel;

use super::*;
use crate::catalog::{STAGES, STORE};
use crate::{Limits, Session};

/// Numbers of a vector of `items`.
const WIDTH: i32 = 32;

/// Rows of two text columns, one that repeats and one that hardly does, numbers, and one vector an item.
fn made_up(rows: u64) -> RecordBatch {
    let id = |row: u64| (row % 11 != 3).then(|| "x".repeat((row % 17) as usize) + &(row * 7919 % 50_021).to_string());
    let ids = StringArray::from_iter((0..rows).map(id));
    let kinds = StringArray::from_iter_values((0..rows).map(|row| format!("kind {}", row * 31 % 7)));
    let numbers = Int64Array::from_iter_values((0..rows).map(|row| (row * 13 % 97) as i64));
    let values = Float32Array::from_iter_values((0..rows * WIDTH as u64).map(|at| at as f32));
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let vectors = FixedSizeListArray::new(item, WIDTH, Arc::new(values), None);
    let columns: [(&str, ArrayRef); 4] = [
        ("id", Arc::new(ids)),
        ("kind", Arc::new(kinds)),
        ("number", Arc::new(numbers)),
        ("vector", Arc::new(vectors)),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

/// A part with these rows as the engine would write it, in several row groups.
fn part(folder: &tempfile::TempDir, rows: &RecordBatch) -> Part {
    let path = folder.path().join("part.parquet");
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(500))
        .set_data_page_row_count_limit(100)
        .set_column_dictionary_enabled("id".into(), false)
        .set_column_encoding("id".into(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
        .build();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.close().unwrap();
    Part {
        bytes: path.metadata().unwrap().len(),
        rows: rows.num_rows() as u64,
        constants: Vec::new(),
        path,
    }
}

/// Twice the same rows: as a part called `t`, and in memory as `m`.
fn session(folder: &tempfile::TempDir, rows: u64) -> Session {
    session_of(folder, made_up(rows))
}

fn session_of(folder: &tempfile::TempDir, batch: RecordBatch) -> Session {
    let limits = Limits {
        threads: 2,
        ..Limits::default()
    };
    let session = Session::new(&limits, &Cancel::default()).unwrap();
    let parts = PartsTable::viewed(&batch.schema(), Vec::new(), vec![part(folder, &batch)]);
    let memory = MemTable::try_new(batch.schema(), vec![vec![batch]]).unwrap();
    let tables = MemorySchemaProvider::new();
    tables.register_table("t".to_string(), Arc::new(parts)).unwrap();
    tables.register_table("m".to_string(), Arc::new(memory)).unwrap();
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(STAGES, Arc::new(tables)).unwrap();
    session.context().register_catalog(STORE, Arc::new(catalog));
    session
}

fn answer(session: &Session, statement: &str) -> String {
    let rows = session.query(statement).unwrap().collect().unwrap();
    pretty_format_batches(&rows).unwrap().to_string()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever is asked of the texts, and however long they are.
    #[test]
    fn a_part_answers_as_rows_in_memory_do(rows in 1..3_000_u64, at in 0..3_000_u64) {
        let folder = tempfile::tempdir().unwrap();
        let session = session(&folder, rows);
        let row = at % rows;
        let id = "x".repeat((row % 17) as usize) + &(row * 7919 % 50_021).to_string();
        let conditions = [
            format!("id = '{id}'"),
            format!("'{id}' <> id"),
            format!("id >= '{id}' AND number > 20"),
            format!("id IS DISTINCT FROM '{id}'"),
            format!("id LIKE '{}%'", &id[..1]),
            format!("id NOT LIKE '%{}'", &id[id.len() - 1..]),
            "id ILIKE 'X1%' OR kind = 'kind 3'".to_string(),
            format!("id IN ('{id}', '7', 'xx15838')"),
            "id IN ('0', '1', '2', '3', '4', '5', '6', '7', 'x7919', 'xx15838', 'xxxxxxxxxxxxxxx1') OR id IS NULL".to_string(),
            "id LIKE kind OR id > kind".to_string(),
            "length(id) = 14 OR upper(id) LIKE 'XX1%'".to_string(),
            "id ~ 'x+1' AND CASE WHEN number > 50 THEN id ELSE kind END > 'l'".to_string(),
        ];
        for condition in conditions {
            for wanted in [
                "count(*), count(id), min(id), max(id), count(DISTINCT id), sum(length(id)), min(kind), sum(number)",
                "count(*), sum(number)",
            ] {
                let ask = |table: &str| answer(&session, &format!("SELECT {wanted} FROM {table} AS a WHERE {condition}"));
                prop_assert_eq!(ask("t"), ask("m"), "{}", condition);
            }
        }
        for (statement, order) in [
            ("SELECT id, kind, id || kind, substr(id, 2) FROM # AS a ", "ORDER BY id, kind, 3 LIMIT 20"),
            ("SELECT kind, count(DISTINCT id), max(id) FROM # AS a GROUP BY kind ", "ORDER BY kind"),
            ("SELECT id, count(*) FROM # AS a GROUP BY id ", "ORDER BY 2 DESC, id LIMIT 9"),
            ("SELECT a.id, count(*), min(b.kind) FROM # AS a JOIN # AS b ON a.id = b.id WHERE a.number < 9 GROUP BY a.id ",
             "ORDER BY a.id LIMIT 9"),
            ("SELECT min(id), max(id), count(id) FROM # AS a", ""),
            ("SELECT b.id, b.vector FROM # AS a JOIN # AS b ON a.id = b.id WHERE a.number = 5 ", "ORDER BY b.id LIMIT 3"),
        ] {
            let ask = |table: &str| answer(&session, &format!("{}{order}", statement.replace('#', table)));
            prop_assert_eq!(ask("t"), ask("m"), "{}", statement);
        }
    }
}

#[test]
fn a_text_compared_with_a_literal_is_read_without_views() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(&folder, 3_000);
    let plan = answer(&session, "EXPLAIN ANALYZE SELECT sum(number) FROM t WHERE id = 'zzz'");
    // The bounds of row groups are known to be of texts, so no row had to be looked at.
    assert!(
        plan.contains("pushdown_rows_matched=0, pushdown_rows_pruned=0,"),
        "{plan}"
    );
    let plan = answer(&session, "EXPLAIN SELECT id, kind FROM t");
    assert!(plan.contains("CAST(id@0 AS Utf8View) as id, kind]"), "{plan}");
}

#[test]
fn a_join_gives_its_keys_to_scans_of_wide_rows() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(&folder, 3_000);
    let plan = |columns: &str| {
        let join = "FROM t AS a JOIN t AS b ON a.id = b.id WHERE a.number = 5";
        answer(&session, &format!("EXPLAIN SELECT {columns} {join}"))
    };
    let (narrow, wide) = (plan("b.kind"), plan("b.vector"));
    assert!(
        narrow.contains("HashJoinExec") && !narrow.contains("DynamicFilter"),
        "{narrow}"
    );
    assert!(narrow.contains("predicate=number@2 = 5"), "{narrow}");
    assert!(wide.contains("DynamicFilter"), "{wide}");
}

#[test]
fn one_value_among_many_is_known_to_be_rare() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(&folder, 3_000);
    // As if the table were larger than what a join collects of it.
    let options = "SET datafusion.optimizer.hash_join_single_partition_threshold";
    session
        .wait(session.context().sql(&format!("{options} = 1000")))
        .unwrap();
    session
        .wait(session.context().sql(&format!("{options}_rows = 100")))
        .unwrap();
    let plan = |condition: &str| {
        let join = "FROM t AS a JOIN t AS b ON a.number = b.number";
        answer(&session, &format!("EXPLAIN SELECT count(*) {join} WHERE {condition}"))
    };
    assert!(plan("a.id = 'x7919'").contains("mode=CollectLeft"));
    assert!(plan("a.kind = 'kind 1'").contains("mode=Partitioned"));
}

#[test]
fn what_is_no_number_is_found_among_numbers() {
    // Row groups and pages of equal numbers, then of numbers that grow, with a NaN here and there.
    let value = |row: i64| match row {
        row if row % 700 == 3 => f64::NAN,
        row if row < 1_000 => 1.0,
        row => row as f64,
    };
    let half = |row: i64| (row % 5 != 0).then(|| value(row) as f32);
    let columns: [(&str, ArrayRef); 3] = [
        ("number", Arc::new(Int64Array::from_iter_values(0..2_000))),
        ("x", Arc::new(Float64Array::from_iter_values((0..2_000).map(value)))),
        ("y", Arc::new(Float32Array::from_iter((0..2_000).map(half)))),
    ];
    let folder = tempfile::tempdir().unwrap();
    let session = session_of(&folder, RecordBatch::try_from_iter(columns).unwrap());
    let count = answer(&session, "SELECT count(*) AS n, max(x) AS x FROM t WHERE isnan(x)");
    assert!(count.contains("| 3 | NaN |"), "{count}");
    for statement in [
        "SELECT count(*) FROM # WHERE x = CAST('NaN' AS DOUBLE)",
        "SELECT count(*) FROM # WHERE x = 'NaN'",
        "SELECT count(*) FROM # WHERE x > 1e9 OR y > 1e9",
        "SELECT count(*) FROM # WHERE x <> 1 AND number < 1000",
        "SELECT count(*), max(number) AS most FROM # WHERE x <= 1",
        "SELECT count(*) FROM # WHERE NOT y < 1e9",
        "SELECT count(*) FROM # WHERE y IS NULL",
        "SELECT min(x) AS a, max(x) AS b, min(y) AS c, max(y) AS d, count(x) AS e, count(y) AS f FROM #",
        "SELECT x, y FROM # WHERE number < 10 ORDER BY number",
        "SELECT number, x FROM # ORDER BY x DESC, number LIMIT 5",
        "SELECT number, y FROM # ORDER BY y, number DESC LIMIT 5",
        "SELECT count(*) FROM # AS a JOIN # AS b ON a.x = b.x WHERE a.number < 10",
    ] {
        let ask = |table: &str| answer(&session, &statement.replace('#', table));
        assert_eq!(ask("t"), ask("m"), "{statement}");
    }
    // Other bounds still tell which rows need no look.
    let plan = answer(&session, "EXPLAIN ANALYZE SELECT x FROM t WHERE number = 1700");
    assert!(
        plan.contains("row_groups_pruned_statistics=4 total → 1 matched"),
        "{plan}"
    );
}

#[test]
fn a_part_may_lie_anywhere() {
    let folder = tempfile::Builder::new().prefix("wö #1 ~[%41]?").tempdir().unwrap();
    let session = session(&folder, 10);
    let ask = |table: &str| answer(&session, &format!("SELECT count(*), min(id) AS least FROM {table}"));
    assert_eq!(ask("t"), ask("m"));
}
