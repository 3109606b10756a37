//! The recipes: all of them pass the check; the baselines on Beauty come out as plain counting code finds them.

use std::collections::HashMap;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use sluice_engine::store::Store;

use crate::sluice::{Sluice, entries, real_data, recipe, repository};

#[test]
fn every_recipe_passes_the_check() {
    let data = real_data();
    let sluice = Sluice::new();
    let nothing = sluice.path(".");
    let mut checked = 0;
    for path in entries(&repository("pipelines")) {
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("# "),
            "{} does not open with what it is",
            path.display()
        );
        // Without the data only what needs none can be checked.
        let reads_files = text.contains(" path: ");
        let Some(root) = data.as_deref().or((!reads_files).then_some(nothing.as_path())) else {
            continue;
        };
        let done = sluice.run(&["check", path.to_str().unwrap(), "--data", root.to_str().unwrap()]);
        assert_eq!(done.code, 0, "{}", done.err);
        checked += 1;
    }
    assert!(checked > 0);
}

/// Every figure is an expectation of the recipe; `run` checks them.
#[test]
fn baselines_on_beauty() {
    let Some(data) = real_data() else { return };
    let sluice = Sluice::with(&[("baselines.yaml", &recipe("baselines_beauty.yaml"))]);
    let done = sluice.succeed(&["run", "baselines.yaml", "--data", data.to_str().unwrap()]);
    let expected = recipe("baselines_beauty.yaml")
        .lines()
        .filter(|line| line.starts_with("  - {"))
        .count();
    assert!(expected > 70);
    assert!(
        done.err.contains(&format!("all {expected} expectations hold")),
        "{}",
        done.err
    );
    transition_row(&sluice);
    in_plain_sql(&sluice);
}

/// Every row of the evaluation, recomputed in SQL from lists, targets and ids, is what the pipeline stored.
fn in_plain_sql(sluice: &Sluice) {
    let statement = repository("tests/sql/evaluation.sql");
    let done = sluice.succeed(&["sql", "--file", statement.to_str().unwrap(), "--format", "ndjson"]);
    let figures: Vec<serde_json::Value> = done
        .out
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let names: std::collections::BTreeSet<&str> = figures.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!((figures.len(), names.len()), (66, 9), "{names:?}");
    for row in figures {
        let difference = row["difference"].as_f64().unwrap_or(f64::NAN);
        assert!(difference < 1e-10 * row["stored"].as_f64().unwrap().max(1.0), "{row}");
    }
}

/// By slice, "hits inside the transition row": Markov then popularity, where only a target that did follow the last
/// item in train (score 1 or more) hits.
fn transition_row(sluice: &Sluice) {
    let store = Store::open(&sluice.path(".sluice")).unwrap();
    let table = |stage: &str, port: &str| -> RecordBatch {
        let digest = sluice.record(stage)["outputs"][port].as_str().unwrap().to_string();
        store.table(&digest).unwrap().batch().unwrap()
    };
    let ranked = table("markov_popular", "out");
    let scores = numbers(&ranked, "score");
    let followed: HashMap<(&str, &str), bool> = (0..ranked.num_rows())
        .map(|row| {
            (
                (cell(&ranked, "user_id", row), cell(&ranked, "item_id", row)),
                scores[row] >= 1.0,
            )
        })
        .collect();
    let users = table("markov_popular_metrics", "per_user");
    let recall = numbers(&users, "recall_5");
    for (slice, size, wanted) in [("same_timestamp", 9_719, 0.0825), ("later", 12_644, 0.0249)] {
        let flags = users.column_by_name(slice).unwrap().as_boolean();
        let rows: Vec<usize> = (0..users.num_rows()).filter(|row| flags.value(*row)).collect();
        assert_eq!(rows.len(), size);
        let inside = |row: &&usize| followed[&(cell(&users, "user_id", **row), cell(&users, "target", **row))];
        let hits: f64 = rows.iter().filter(inside).map(|row| recall[*row]).sum();
        let found = hits / size as f64;
        assert!((found - wanted).abs() <= 0.5e-4, "{slice}: {found}");
    }
}

fn cell<'a>(batch: &'a RecordBatch, column: &str, row: usize) -> &'a str {
    batch.column_by_name(column).unwrap().as_string::<i32>().value(row)
}

fn numbers<'a>(batch: &'a RecordBatch, column: &str) -> &'a [f64] {
    batch
        .column_by_name(column)
        .unwrap()
        .as_primitive::<Float64Type>()
        .values()
}
