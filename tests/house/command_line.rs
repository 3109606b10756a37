//! The command line: help, the reference of operators, what is in an artifact.

use std::process::Stdio;

use crate::sluice::{Sluice, finish};

#[test]
fn every_command_has_help() {
    let sluice = Sluice::new();
    let help = sluice.succeed(&["--help"]).out;
    assert!(help.contains("Usage: sluice") && help.contains("Exit codes"), "{help}");
    for command in ["check", "plan", "run", "ops", "show"] {
        assert!(help.contains(&format!("  {command} ")), "no {command} in:\n{help}");
        let page = sluice.succeed(&[command, "--help"]).out;
        assert!(page.contains(&format!("Usage: sluice {command}")), "{page}");
    }
    assert_eq!(sluice.run(&["frobnicate"]).code, 2);
    assert_eq!(sluice.run(&["run", "p.yaml", "--workers", "0"]).code, 2);
}

#[test]
fn every_operator_has_a_reference() {
    let sluice = Sluice::new();
    let registry = sluice_operators::registry();
    let listed = sluice.succeed(&["ops"]).out;
    assert!(registry.iter().count() > 20);
    for entry in registry.iter() {
        let name = entry.name;
        assert!(
            listed.lines().any(|line| line.split(' ').next() == Some(name)),
            "{name}:\n{listed}"
        );
        let page = sluice.succeed(&["ops", name]).out;
        let heading = |heading: &str| {
            let place = page.lines().position(|line| line == heading);
            place.unwrap_or_else(|| panic!("{name} has no heading \"{heading}\""))
        };
        let places = ["# In", "# Out", "# Source", "# Deviates"].map(heading);
        assert!(places.is_sorted(), "{name}: the headings are not in order");
        let says_something = |place: &usize| page.lines().nth(place + 1).is_some_and(|line| !line.trim().is_empty());
        assert!(places.iter().all(says_something), "{name}: a heading says nothing");
        for field in &entry.fields {
            assert!(!field.about.trim().is_empty(), "{name}.{} is not described", field.name);
            assert!(
                page.contains(&format!("- `{}` (", field.name)),
                "{name}.{} is not on the page",
                field.name
            );
        }
        let schema = sluice.succeed(&["ops", name, "--schema"]).out;
        serde_json::from_str::<serde_json::Value>(&schema).unwrap();
    }
    let unknown = sluice.run(&["ops", "dedupe"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("did you mean \"dedup\"?"), "{}", unknown.err);
}

const PIPELINE: &str = "pipeline: look
stages:
  shop:  { op: synthesize, users: 50, items: 120 }
  order: { op: audit_order, input: shop.interactions }
show: [order]
";

#[test]
fn an_artifact_can_be_looked_at() {
    let sluice = Sluice::with(&[("look.yaml", PIPELINE)]);
    // Looking makes no store; a store may hold no run of this pipeline.
    let none = sluice.run(&["show", "order"]);
    assert_eq!(none.code, 2);
    assert!(
        none.err.contains("error[no-store]") && none.err.contains("hint: "),
        "{}",
        none.err
    );
    assert!(!sluice.path(".sluice").exists());
    sluice.write("other.yaml", PIPELINE.replace("pipeline: look", "pipeline: other"));
    sluice.succeed(&["run", "other.yaml", "--quiet"]);
    let none = sluice.run(&["show", "order", "--pipeline", "look.yaml"]);
    assert_eq!(none.code, 2);
    assert!(
        none.err.contains("error[no-run]") && none.err.contains("\"look\""),
        "{}",
        none.err
    );

    let run = sluice.succeed(&["run", "look.yaml"]);
    assert!(
        run.out.contains("order\nfact ") && run.out.contains("users                    50"),
        "{}",
        run.out
    );

    let order = sluice.succeed(&["show", "order", "-n", "3"]).out;
    for words in [
        "order.out: 16 rows",
        "made by audit_order",
        "  fact: Utf8",
        "  value: Int64",
        "users  ",
    ] {
        assert!(order.contains(words), "no \"{words}\" in:\n{order}");
    }
    assert!(
        order.contains("interactions  ") && !order.contains("longest"),
        "{order}"
    );

    // All ports, one port, the manifest, the newest run of a pipeline.
    let shop = sluice.succeed(&["show", "shop"]).out;
    assert!(
        shop.contains("shop.interactions: ") && shop.contains("shop.items: 120 rows"),
        "{shop}"
    );
    let items = sluice.succeed(&["show", "shop.items", "--pipeline", "look.yaml"]).out;
    assert!(!items.contains("shop.interactions"), "{items}");
    let manifest = sluice.succeed(&["show", "shop.items", "--manifest"]).out;
    let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    assert_eq!(manifest["rows"], 120);
    assert_eq!(manifest["preimage"]["config"]["users"], 50);

    let unknown = sluice.run(&["show", "ordr"]);
    assert_eq!(unknown.code, 2);
    assert!(unknown.err.contains("did you mean \"order\"?"), "{}", unknown.err);
    assert_eq!(sluice.run(&["show", "shop.itms"]).code, 2);
}

/// Whoever reads `--json` parses every line of it.
#[test]
fn events_are_json_lines_and_nothing_else() {
    let sluice = Sluice::with(&[("look.yaml", PIPELINE)]);
    let done = sluice.succeed(&["run", "look.yaml", "--json"]);
    assert_eq!(done.events("run_started").len(), 1);
    assert_eq!(done.events("stage_finished").len(), 2);
    let finished = done.events("run_finished");
    assert!(finished[0]["ok"] == true && finished[0]["ran"] == 2, "{finished:?}");
    assert!(done.err.is_empty(), "{}", done.err);
    // The journal of the run tells the same.
    let runs = crate::sluice::entries(&sluice.path(".sluice/runs"));
    let journal = std::fs::read_to_string(runs[0].join("events.jsonl")).unwrap();
    assert!(
        journal.lines().count() >= 6 && journal.contains("run_finished"),
        "{journal}"
    );

    let plan = sluice.succeed(&["plan", "look.yaml", "--json"]).out;
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    assert_eq!(plan["stages"][0]["action"], "reuse");
}

#[test]
fn quiet_prints_results_only() {
    let sluice = Sluice::with(&[("look.yaml", PIPELINE)]);
    let done = sluice.succeed(&["run", "look.yaml", "--quiet"]);
    assert!(done.err.is_empty(), "{}", done.err);
    assert!(done.out.contains("users "), "{}", done.out);
}

/// `sluice ops | head` is no failure.
#[test]
fn a_reader_that_went_away_is_no_failure() {
    let sluice = Sluice::new();
    for arguments in [&["ops"][..], &["ops", "train_tiger"]] {
        let mut command = sluice.command(arguments);
        // A pipe whose reading end is closed before anything is written.
        let mut reader = std::process::Command::new("true")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let writer = reader.stdin.take().unwrap();
        reader.wait().unwrap();
        command.stdout(Stdio::from(writer));
        let done = finish(command);
        assert!(done.code == 0 && done.err.is_empty(), "{}: {}", done.code, done.err);
    }
}
