//! `tests:` by the real program: every kind, passed and failed; what is said, what is kept, what does not run.

use crate::sluice::Sluice;

const EVENTS: &str = "user_id,item_id,timestamp,rating\nu1,i1,1,5\nu1,i2,2,4\nu2,i1,3,3\nu2,i3,4,5\nu3,i2,5,1\n";

/// A pipeline over `events.csv` with these tests of its events.
fn pipeline(tests: &str) -> String {
    format!(
        "pipeline: shop
stages:
  events:
    op: ingest_interactions
    path: events.csv
    format: csv
    tests:
{tests}
  users:
    op: sql
    inputs: {{ events: events }}
    query: |
      SELECT user_id, count(*) AS n FROM events GROUP BY user_id ORDER BY n DESC
  items:
    op: sql
    inputs: {{ e: events }}
    query: SELECT DISTINCT item_id FROM e
show: [users]
"
    )
}

fn events(tests: &str) -> Sluice {
    Sluice::with(&[("events.csv", EVENTS), ("shop.yaml", &pipeline(tests))])
}

const PASSED: &str = "      - not_null: [user_id, item_id]
      - unique: [user_id, item_id, timestamp]
      - range: { column: rating, min: 1, max: 5 }
      - accepted: { column: item_id, values: [i1, i2, i3] }
      - row_count: { min: 5, max: 5 }
      - foreign_key: { column: item_id, references: item_id }
        inputs: { parent: events }
      - sql: SELECT * FROM rows WHERE length(user_id) = 0
        name: no_empty_users";

#[test]
fn every_kind_passes_on_good_data_and_costs_nothing_again() {
    let sluice = events(PASSED);
    let done = sluice.succeed(&["run", "shop.yaml", "--json"]);
    assert!(done.events("stage_failed").is_empty(), "{}", done.err);
    assert_eq!(sluice.rows("users", "out"), 3);
    for test in [
        "events:not_null(user_id,item_id)",
        "events:unique(user_id,item_id,timestamp)",
        "events:range(rating)",
        "events:accepted(item_id)",
        "events:row_count",
        "events:foreign_key(item_id)",
        "events:no_empty_users",
    ] {
        assert_eq!(sluice.rows(test, "out"), 0, "{test}");
        assert_eq!(sluice.record(test)["notes"]["failing"], 0, "{test}");
    }
    let again = sluice.succeed(&["run", "shop.yaml", "--json"]);
    assert!(again.events("stage_started").is_empty());
    let shown = sluice.succeed(&["show", "users"]).out;
    assert!(shown.contains("u1") && shown.contains("n: Int64"), "{shown}");
}

#[test]
fn every_kind_fails_on_bad_data() {
    let cases = [
        ("unique: [user_id]", "unique(user_id)", "2 rows", "u1"),
        ("range: { column: rating, min: 2 }", "range(rating)", "1 row", "u3"),
        (
            "accepted: { column: item_id, values: [i1, i2] }",
            "accepted(item_id)",
            "1 row",
            "i3",
        ),
        ("row_count: { min: 6 }", "row_count", "1 row", "found"),
        ("sql: SELECT user_id FROM rows WHERE rating < 4", "sql", "2 rows", "u2"),
        ("not_null: [parent]", "missing", "", ""),
    ];
    for (test, name, rows, quoted) in cases {
        let sluice = events(&format!("      - {test}"));
        let done = sluice.run(&["run", "shop.yaml"]);
        if name == "missing" {
            assert_eq!(done.code, 2, "{}", done.err);
            assert!(done.err.contains("no column \"parent\""), "{}", done.err);
            continue;
        }
        assert_eq!(done.code, 3, "{test}: {}", done.err);
        let message = format!("error[data-test]: stage \"events\" fails its test \"{name}\": {rows}");
        assert!(done.err.contains(&message), "{test}: {}", done.err);
        assert!(done.err.contains(quoted), "{test}: {}", done.err);
        assert!(
            done.err.contains(&format!("sluice show \"events:{name}\"")),
            "{}",
            done.err
        );
        // The rows can be looked at; what reads the stage did not run.
        let shown = sluice.succeed(&["show", &format!("events:{name}")]).out;
        assert!(shown.contains(quoted), "{shown}");
        assert_eq!(sluice.run(&["show", "users"]).code, 2);
        let told = sluice.succeed(&["plan", "shop.yaml"]).out;
        assert!(
            told.contains("held back by") && told.contains(&format!("fails: {rows}")),
            "{told}"
        );
        // Again at once; with better data all runs.
        let again = sluice.run(&["run", "shop.yaml", "--json"]);
        assert_eq!((again.code, again.events("stage_started").len()), (3, 0));
    }
}

#[test]
fn the_command_line_knows_tests() {
    let sluice = events(PASSED);
    let done = sluice.succeed(&["run", "shop.yaml", "--json", "--only", "events"]);
    assert_eq!(done.events("stage_finished").len(), 8, "the stage and its tests");
    let forced = [
        "run",
        "shop.yaml",
        "--json",
        "--force",
        "events:row_count",
        "--only",
        "events:row_count",
    ];
    assert_eq!(sluice.succeed(&forced).events("stage_finished").len(), 1);
    let rows = sluice.succeed(&[
        "sql",
        "SELECT count(*) AS n FROM \"events:unique(user_id,item_id,timestamp)\"",
    ]);
    assert!(rows.out.contains('0'), "{}", rows.out);
}

#[test]
fn mistakes_are_told_before_anything_runs() {
    let cases = [
        (
            "uniqe: [user_id]",
            "unknown test \"uniqe\" of stage \"events\"",
            "did you mean \"unique\"?",
        ),
        ("unique: [usr_id]", "no column \"usr_id\"", "did you mean \"user_id\"?"),
        ("unique: []", "names no column", "unique: []"),
        (
            "{ unique: [user_id], not_null: [user_id] }",
            "are two tests",
            "write an entry for each",
        ),
        (
            "sql: SELECT * FROM rows WHERE usr = 1",
            "no column \"usr\"",
            "line 1, column 26",
        ),
    ];
    for (test, message, more) in cases {
        let sluice = events(&format!("      - {test}"));
        let done = sluice.run(&["check", "shop.yaml"]);
        assert_eq!(done.code, 2, "{test}: {}", done.err);
        assert!(
            done.err.contains(message) && done.err.contains(more),
            "{test}: {}",
            done.err
        );
    }
    let sluice = Sluice::with(&[
        ("events.csv", EVENTS),
        (
            "shop.yaml",
            &pipeline(PASSED).replace("GROUP BY user_id", "GROUP BY user_di"),
        ),
    ]);
    let done = sluice.run(&["check", "shop.yaml"]);
    assert!(
        done.err.contains("shop.yaml") && done.err.contains("did you mean \"user_id\"?"),
        "{}",
        done.err
    );
}

/// A pipeline of the usual shape, tested at every step; then with a rule that its data break.
#[test]
fn a_made_up_shop_is_tested_from_end_to_end() {
    let text = "pipeline: shop
stages:
  shop:  { op: synthesize, users: 200, items: 120 }
  clean: { op: dedup, input: shop.interactions, tests: [{ unique: [user_id, item_id, timestamp] }] }
  core:
    op: filter_kcore
    input: clean
    k: ${k}
    tests:
      - sql: SELECT user_id, count(*) AS n FROM rows GROUP BY user_id HAVING count(*) < 5
        name: five_of_a_user
  items: { op: join_items, inputs: { items: shop.items, interactions: core }, tests: [{ unique: [item_id] }] }
  split:
    op: split_leave_one_out
    input: core
    tests:
      - foreign_key: { column: target, references: item_id }
        input: split.test
        inputs: { parent: items }
  popular: { op: rank_popularity, inputs: { train: split.train, histories: split.test, items: items } }
params: { k: 5 }
";
    let sluice = Sluice::with(&[("shop.yaml", text)]);
    let done = sluice.succeed(&["run", "shop.yaml", "--json"]);
    assert_eq!(done.events("stage_finished").len(), 6 + 4, "{}", done.err);
    let done = sluice.run(&["run", "shop.yaml", "--json", "--param", "k=2", "--keep-going"]);
    assert_eq!(done.code, 3, "{}", done.err);
    assert!(done.err.contains("core:five_of_a_user"), "{}", done.err);
    let blocked: Vec<_> = done.events("stage_blocked");
    assert!(blocked.iter().any(|event| event["stage"] == "popular"), "{blocked:?}");
}
