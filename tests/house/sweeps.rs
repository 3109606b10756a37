//! Sweeps by the real program: what is shared is done once, what is new runs, and a failed trial is not hidden.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use crate::sluice::{Done, Sluice, real_data, recipe};

/// The recipe in miniature.
const SMALL: [&str; 5] = [
    "--set=shop.users=200",
    "--set=shop.items=120",
    "--set=tiger.max_steps=4",
    "--set=tiger.eval_every=4",
    "--set=tiger.valid_users=20",
];

fn gunzip(path: &Path) -> String {
    let mut text = String::new();
    let file = std::fs::File::open(path).unwrap();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn count(done: &Done, event: &str, stage: &str) -> usize {
    let events = done.events(event);
    let about = |event: &&serde_json::Value| {
        let name = event["stage"].as_str().unwrap();
        name == stage || name.starts_with(&format!("{stage}["))
    };
    events.iter().filter(about).count()
}

#[test]
fn twelve_trainings_share_everything_above_them() {
    let text = recipe("sweep_tiger.yaml");
    let sluice = Sluice::with(&[("sweep.yaml", &text)]);
    let run = |more: &[&str]| sluice.succeed(&[&["run", "sweep.yaml", "--json"], &SMALL[..], more].concat());
    let plan = |more: &[&str]| {
        sluice
            .succeed(&[&["plan", "sweep.yaml"], &SMALL[..], more].concat())
            .out
    };

    let preview = plan(&[]);
    assert!(
        preview.contains("sweep: 12 trials, 145 instances, 57 distinct stages to run; 61 % shared"),
        "{preview}"
    );
    assert!(
        preview.contains("seed reaches tiger, generated, scores, table"),
        "{preview}"
    );
    let first = run(&[]);
    for stage in [
        "shop", "clean", "core", "split", "items", "text", "sids", "tokens", "table[*]",
    ] {
        let finished = first.events("stage_finished");
        assert_eq!(
            finished.iter().filter(|event| event["stage"] == stage).count(),
            1,
            "{stage}"
        );
    }
    for stage in ["tiger", "generated", "scores"] {
        assert_eq!(count(&first, "stage_finished", stage), 12, "{stage}");
    }
    assert!(run(&[]).ran().is_empty(), "a rerun of a finished sweep runs nothing");

    // One more seed: four trainings, and what gathers them.
    sluice.write("sweep.yaml", text.replace("to: [1, 2, 3]", "to: [1, 2, 3, 4]"));
    let cost = plan(&[]);
    assert!(cost.contains("16 trials") && cost.contains(", about "), "{cost}");
    let more = run(&[]);
    assert_eq!(count(&more, "stage_finished", "tiger"), 4);
    assert!(more.ran().contains("table[*]") && !more.ran().contains("tokens"));

    // One instance by its name.
    let forced = run(&["--force=scores[shape=tiny,seed=2]"]);
    assert_eq!(forced.ran(), BTreeSet::from(["scores[shape=tiny,seed=2]".to_string()]));
    let shown = sluice.succeed(&["show", "table[*]"]).out;
    assert!(shown.contains("shape") && shown.contains("seed"), "{shown}");

    // It goes on where it was stopped: resuming is running again.
    sluice.write("sweep.yaml", text.replace("to: [1, 2, 3]", "to: [5, 6]"));
    run(&["--until=tiger[shape=tiny]"]);
    let rest = run(&[]);
    assert_eq!(count(&rest, "stage_finished", "tiger"), 2 * 4 - 2);
}

#[test]
fn a_failed_trial_is_told_and_the_others_go_on() {
    let csv = "user_id,item_id,timestamp\nu1,a,1\nu1,b,2\nu1,c,3\nu1,d,4\nu2,a,1\nu2,b,2\nu2,c,3\nu2,d,4\n";
    let pipeline = "pipeline: some
stages:
  rows:  { op: ingest_interactions, path: rows.csv }
  core:  { op: filter_kcore, input: rows, k: 2 }
  order: { op: audit_order, input: core }
  all:   { op: tabulate_metrics, inputs: { one: \"order[*]\" } }
sweep: { axes: { core.k: [1, 2, 3] } }
";
    let sluice = Sluice::with(&[("rows.csv", csv), ("some.yaml", pipeline)]);
    // No user is left with k = 3, which is an error of the data.
    sluice.write(
        "some.yaml",
        pipeline.replace("  all:   { op: tabulate_metrics, inputs: { one: \"order[*]\" } }\n", ""),
    );
    let failed = sluice.run(&["run", "some.yaml", "--keep-going"]);
    assert_eq!(failed.code, 3, "{}", failed.err);
    assert!(failed.err.contains("in stage \"core[core.k=3]\""), "{}", failed.err);
    assert!(failed.err.contains("not run: core[core.k=3] failed"), "{}", failed.err);
    assert!(
        failed.err.contains("1 failed, 1 not run because of that"),
        "{}",
        failed.err
    );
    let rest = sluice.run(&["run", "some.yaml", "--json", "--keep-going"]);
    assert!(rest.ran().is_empty(), "the others are done: {:?}", rest.ran());
}

#[test]
fn what_is_wrong_with_a_sweep_is_said_at_its_place() {
    let sluice = Sluice::new();
    let fails = |from: &str, to: &str, words: &[&str]| {
        let text = recipe("sweep_tiger.yaml");
        assert!(text.contains(from));
        sluice.write("sweep.yaml", text.replace(from, to));
        let done = sluice.run(&["check", "sweep.yaml"]);
        assert_eq!(done.code, 2, "{to}: {}", done.err);
        for word in words {
            assert!(done.err.contains(word), "{to}: no {word} in {}", done.err);
        }
    };
    fails(
        "tiger.d_ff: 32",
        "tiger.dff: 32",
        &["unknown key \"dff\"", "sweep.yaml:", "did you mean \"d_ff\"?"],
    );
    fails(
        "set: tiger.seed",
        "set: tigre.seed",
        &["nothing that an axis can set", "did you mean \"tiger\"?"],
    );
    fails(
        "\"table[*]\"",
        "\"table[form=*]\"",
        &["axis \"form\" does not reach", "these do: shape, seed"],
    );
    fails(
        "tiger.layers: 1, tiger.d_model: 16",
        "tiger.layers: one",
        &["bad value for \"layers\""],
    );
}

/// On Beauty a codebook reaches what is below it, a comment nothing, and a title one row of the embedding.
#[test]
fn changes_on_beauty_run_what_depends_on_them() {
    let Some(data) = real_data() else { return };
    let sluice = Sluice::with(&[("beauty.yaml", &recipe("tiger_beauty.yaml"))]);
    let copy = |name: &str| {
        std::fs::create_dir_all(sluice.path("amazon2014-beauty")).unwrap();
        std::fs::copy(
            data.join("amazon2014-beauty").join(name),
            sluice.path("amazon2014-beauty").join(name),
        )
        .unwrap();
    };
    copy("interactions.tsv.gz");
    copy("items.jsonl.gz");
    // The densest part of the data, so that the embedding takes seconds.
    let encoder = format!("--param=encoder={}", data.join("all-MiniLM-L6-v2-f16").display());
    let run = |more: &[&str]| {
        let small = [
            "run",
            "beauty.yaml",
            "--json",
            "--until=tokens",
            "--set=core.k=12",
            &encoder,
        ];
        sluice.succeed(&[&small[..], more].concat())
    };
    let names = |list: &[&str]| -> BTreeSet<String> { list.iter().map(|name| name.to_string()).collect() };
    assert_eq!(run(&[]).ran().len(), 9);
    assert_eq!(run(&["--set=sids.codebook_size=64"]).ran(), names(&["sids", "tokens"]));
    sluice.write("beauty.yaml", format!("# A comment.\n{}", recipe("tiger_beauty.yaml")));
    assert!(run(&[]).ran().is_empty());

    // Another title for the most popular item.
    let items = gunzip(&sluice.path("amazon2014-beauty/items.jsonl.gz"));
    let embedded = |done: &Done| {
        let finished = done.events("stage_finished");
        finished.iter().find(|event| event["stage"] == "text").unwrap()["notes"].clone()
    };
    let shown = sluice.succeed(&["show", "items", "-p", "beauty.yaml", "-n", "1"]).out;
    let item = items
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .find(|item| {
            shown
                .lines()
                .any(|line| line.split(' ').next() == Some(item["item_id"].to_string().as_str()))
        })
        .expect("an item of the core");
    let mut changed = item.clone();
    changed["title"] = "A title of its own".into();
    let lines: Vec<String> = items
        .lines()
        .map(
            |line| match serde_json::from_str::<serde_json::Value>(line).unwrap() == item {
                true => changed.to_string(),
                false => line.to_string(),
            },
        )
        .collect();
    sluice.write("amazon2014-beauty/items.jsonl.gz", gzip(&lines.join("\n")));
    let retitled = run(&[]);
    assert_eq!(embedded(&retitled)["embedded"], 1, "{}", embedded(&retitled));
    copy("items.jsonl.gz");
    assert!(run(&[]).ran().is_empty(), "going back runs nothing");
}

/// A parameter, keys under names and the run's seed as axes; an aggregating stage reads every instance.
#[test]
fn gathered_metrics_are_a_system_a_point() {
    let pipeline = "pipeline: grid
params: { size: 100 }
stages:
  shop:    { op: synthesize, users: \"${size}\", items: 120 }
  core:    { op: filter_kcore, input: shop.interactions, k: 3 }
  split:   { op: split_leave_one_out, input: core }
  popular: { op: rank_popularity, inputs: { train: split.train, histories: split.test, items: shop.items } }
  metrics: { op: score_ranking, inputs: { ranked: popular, targets: split.test }, resamples: 0 }
  table:   { op: tabulate_metrics, inputs: { popular: \"metrics[*]\" } }
sweep:
  axes:
    size: [100, 150]
    core_k: { three: { core.k: 3 }, four: { core.k: 4 } }
    seed: [1, 2]
  exclude: [{ size: 150, core_k: four }]
show: [table]
";
    let sluice = Sluice::with(&[("grid.yaml", pipeline)]);
    let done = sluice.succeed(&["run", "grid.yaml", "--jobs=2", "--quiet"]);
    let rows: Vec<&str> = done.out.lines().filter(|line| line.starts_with("popular[")).collect();
    assert_eq!(rows.len(), 6, "{}", done.out);
    assert!(
        rows[0].starts_with("popular[size=100,core_k=three,seed=1]"),
        "{}",
        done.out
    );
    let values: BTreeSet<&str> = rows
        .iter()
        .filter_map(|row| row.split_once("all"))
        .map(|row| row.1)
        .collect();
    assert!(values.len() > 4, "every point has values of its own: {}", done.out);
}
