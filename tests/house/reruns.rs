//! What changed runs again, what depends on it too, and nothing else.

use std::collections::BTreeSet;

use crate::sluice::{Done, Sluice, TINY, recipe};

fn names(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|name| name.to_string()).collect()
}

/// The quickstart under many small changes, over one store.
#[test]
fn exactly_what_depends_on_a_change_runs_again() {
    let text = recipe("quickstart.yaml");
    let sluice = Sluice::with(&[("quickstart.yaml", &text)]);
    let with =
        |command: &[&str], more: &[&str]| sluice.succeed(&[command, &["quickstart.yaml"], &TINY[..], more].concat());
    let run = |more: &[&str]| with(&["run", "--json"], more);
    let plan = |more: &[&str]| with(&["plan"], more).out;

    let first = run(&[]);
    assert_eq!(
        first.events("stage_finished").len(),
        first.events("stage_planned").len()
    );

    // Nothing changed.
    let again: Vec<Done> = (0..3).map(|_| run(&[])).collect();
    assert!(again.iter().all(|run| run.ran().is_empty()));
    let seconds = again.iter().map(|run| run.seconds).fold(f64::MAX, f64::min);
    assert!(seconds < 0.3, "a run with nothing to do took {seconds} s");
    assert!(plan(&[]).contains(" 0 to run, 0 to run unless"), "{}", plan(&[]));

    // Words changed, the experiment did not.
    sluice.write(
        "quickstart.yaml",
        format!("# A comment.\n{}\n", text.replace("k: 5 }", "k:   5 } # five")),
    );
    assert!(run(&[]).ran().is_empty());

    // Resources are not part of a key.
    assert!(run(&["--set=tiger.device=cpu", "--workers=1"]).ran().is_empty());

    // A codebook of half the size.
    let smaller = "--set=sids.codebook_size=16";
    let planned = plan(&[smaller]);
    assert!(planned.contains("codebook_size 32 -> 16"), "{planned}");
    let line = |stage: &str| {
        planned
            .lines()
            .find(|line| line.starts_with(stage))
            .unwrap()
            .to_string()
    };
    assert!(line("sids ").contains(" run: codebook_size 32 -> 16"), "{planned}");
    assert!(line("text ").trim_end().ends_with("reuse"), "{planned}");
    assert!(line("tokens ").contains("sids may change"), "{planned}");
    let changed = names(&[
        "sids",
        "codes",
        "tokens",
        "tiger",
        "generated",
        "tiger_metrics",
        "metrics",
        "report",
    ]);
    assert_eq!(run(&[smaller]).ran(), changed);

    // And back: everything is still there.
    assert!(run(&[]).ran().is_empty());

    // On request a stage runs whatever is there.
    assert!(plan(&["--force=metrics"]).contains("run: forced"));
    assert_eq!(run(&["--force=metrics"]).ran(), names(&["metrics"]));

    // Another seed reaches what draws random numbers.
    sluice.write("quickstart.yaml", text.replace("seed: 42", "seed: 43"));
    let reseeded = plan(&[]);
    assert!(reseeded.contains("run: seed 42 -> 43"), "{reseeded}");
    assert!(
        reseeded
            .lines()
            .any(|line| line.starts_with("clean ") && !line.contains("seed")),
        "{reseeded}"
    );
}

/// Four stages in a row.
pub const PIPELINE: &str = "pipeline: cut
stages:
  rows:  { op: ingest_interactions, path: rows.csv }
  clean: { op: dedup, input: rows }
  core:  { op: filter_kcore, input: clean, k: 2 }
  order: { op: audit_order, input: core }
";

/// Five users with the same four items each, a second apart; no duplicates.
pub fn rows() -> String {
    let mut text = "user_id,item_id,timestamp\n".to_string();
    for user in 0..5 {
        for item in 0..4 {
            text.push_str(&format!("u{user},i{item},{}\n", 1000 + user * 10 + item));
        }
    }
    text
}

#[test]
fn equal_output_stops_a_rerun() {
    let sluice = Sluice::with(&[("cut.yaml", PIPELINE), ("rows.csv", &rows())]);
    let run = |more: &[&str]| sluice.succeed(&[&["run", "cut.yaml", "--json"], more].concat());
    assert_eq!(run(&[]).ran(), names(&["rows", "clean", "core", "order"]));

    // No duplicates: keeping the last gives the same table, and what reads it need not run.
    let keep = "--set=clean.keep=last";
    let planned = sluice.succeed(&["plan", "cut.yaml", keep]).out;
    assert!(planned.contains("keep \"first\" -> \"last\""), "{planned}");
    assert!(planned.contains("run unless inputs come out equal"), "{planned}");
    let last = run(&[keep]);
    assert_eq!(last.ran(), names(&["clean"]));
    assert_eq!(last.cut_off(), names(&["core", "order"]));
    assert!(run(&[keep]).ran().is_empty());

    // The same in words, and for another stage: every item has five users.
    let four = sluice.succeed(&["run", "cut.yaml", "--set=core.k=4"]);
    assert!(
        four.err.contains("order            reused: its inputs came out equal"),
        "{}",
        four.err
    );
    assert!(four.err.contains("1 ran, 3 reused"), "{}", four.err);
}

#[test]
fn data_files_count_by_content() {
    let sluice = Sluice::with(&[("cut.yaml", PIPELINE), ("rows.csv", &rows())]);
    let run = |data: &str| sluice.succeed(&["run", "cut.yaml", "--json", "--data", data]);
    assert_eq!(run(".").ran().len(), 4);

    // Written again with equal content, and moved with the data root.
    sluice.write("rows.csv", rows());
    assert!(run(".").ran().is_empty());
    std::fs::create_dir(sluice.path("elsewhere")).unwrap();
    sluice.write("elsewhere/rows.csv", rows());
    assert!(run("elsewhere").ran().is_empty());

    // Another order of lines is another file; the audit sees the same counts, but has to look.
    sluice.write("rows.csv", rows() + "u9,i0,5000\nu9,i1,5001\n");
    let plan = sluice.succeed(&["plan", "cut.yaml"]).out;
    assert!(plan.contains("file rows.csv changed"), "{plan}");
    assert_eq!(run(".").ran().len(), 4);
}

/// A stage is the same whatever it is called; two that are the same run once.
#[test]
fn names_are_not_part_of_keys() {
    let sluice = Sluice::with(&[("cut.yaml", PIPELINE), ("rows.csv", &rows())]);
    sluice.succeed(&["run", "cut.yaml"]);
    sluice.write("cut.yaml", PIPELINE.replace("clean", "deduplicated"));
    let renamed = sluice.succeed(&["run", "cut.yaml", "--json"]);
    assert!(renamed.ran().is_empty());
}
