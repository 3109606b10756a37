//! What runs leave, and what can be asked of it: why, what differs, what can go, what is damaged.

use std::path::PathBuf;

use serde_json::Value;
use sluice_engine::process::Process;

use crate::reruns::{PIPELINE, rows};
use crate::sluice::{Sluice, entries, files};

/// The pipeline of four stages in a row, run once.
fn once() -> Sluice {
    let sluice = Sluice::with(&[("cut.yaml", PIPELINE), ("rows.csv", &rows())]);
    sluice.succeed(&["run", "cut.yaml", "--quiet"]);
    sluice
}

fn json(sluice: &Sluice, arguments: &[&str]) -> Value {
    serde_json::from_str(&sluice.succeed(arguments).out).unwrap()
}

/// Names of runs, newest first.
fn runs(sluice: &Sluice) -> Vec<String> {
    let listed = json(sluice, &["runs", "--json"]);
    let name = |run: &Value| run["run"].as_str().unwrap().to_string();
    listed.as_array().unwrap().iter().map(name).collect()
}

/// Rewrites the record of a run.
fn edit(sluice: &Sluice, run: &str, change: impl Fn(&mut Value)) {
    let path = sluice.path(".sluice/runs").join(run).join("run.json");
    let mut record: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(path, record.to_string()).unwrap();
}

/// A Parquet part of the artifact with that many bytes flipped to something else.
fn flip(sluice: &Sluice) -> PathBuf {
    let mut parts = files(&sluice.path(".sluice/objects"));
    parts.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    parts.sort();
    let mut bytes = std::fs::read(&parts[0]).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&parts[0], bytes).unwrap();
    parts.remove(0)
}

#[test]
fn the_new_commands_have_help() {
    let sluice = Sluice::new();
    let help = sluice.succeed(&["--help"]).out;
    for command in ["why", "diff", "runs", "logs", "pin", "unpin", "gc", "store", "verify"] {
        assert!(help.contains(&format!("  {command} ")), "no {command} in:\n{help}");
        let page = sluice.succeed(&[command, "--help"]).out;
        assert!(page.contains(&format!("Usage: sluice {command}")), "{page}");
    }
    for arguments in [
        &["why", "x"][..],
        &["runs"],
        &["gc"],
        &["logs", "last"],
        &["store", "verify"],
    ] {
        let none = sluice.run(arguments);
        assert!(
            none.code == 2 && none.err.contains("error[no-store]"),
            "{arguments:?}: {}",
            none.err
        );
    }
    assert!(!sluice.path(".sluice").exists());
}

#[test]
fn why_a_stage_runs_and_why_it_ran() {
    let sluice = once();
    let first = runs(&sluice).remove(0);

    // A plan: causes upstream, each stage once, the roots at the end.
    let keep = "--set=clean.keep=last";
    let why = sluice.succeed(&["why", "order", "-p", "cut.yaml", keep]).out;
    let lines: Vec<&str> = why.lines().collect();
    assert!(
        lines[0].starts_with("order  run unless inputs come out equal: core may change"),
        "{why}"
    );
    assert!(
        lines[1].starts_with("  core  run unless") && lines[1].contains("clean may change"),
        "{why}"
    );
    assert_eq!(
        &lines[2..],
        [
            "    clean  run: keep \"first\" -> \"last\"",
            "root: clean: keep \"first\" -> \"last\""
        ]
    );
    // What is reused says who made it.
    let why = sluice.succeed(&["why", "order", "-p", "cut.yaml"]).out;
    assert!(
        why.starts_with("order  reuse\n") && why.contains(&format!("made by run {first} of 20")),
        "{why}"
    );
    assert!(why.contains("there it ran because: never ran"), "{why}");
    let tree = json(&sluice, &["why", "order", "-p", "cut.yaml", keep, "--json"]);
    assert_eq!(tree["stages"][0]["roots"][0]["stage"], "clean");
    let unknown = sluice.run(&["why", "ordr", "-p", "cut.yaml"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("did you mean \"order\"?"),
        "{}",
        unknown.err
    );

    // Runs: the first has none before it.
    let why = sluice.succeed(&["why", "core"]).out;
    assert!(why.contains("no earlier run") && why.contains("never ran"), "{why}");
    sluice.write("rows.csv", rows() + "u9,i0,5000\nu9,i1,5001\n");
    sluice.succeed(&["run", "cut.yaml", "--quiet", "--set=core.k=1"]);
    sluice.succeed(&["run", "cut.yaml", "--quiet", "--set=core.k=1"]);
    let why = sluice.succeed(&["why", "order"]).out;
    assert!(
        why.contains("order reused") && why.contains(&format!("in run {first}")),
        "{why}"
    );
    assert!(
        why.contains("  order  reused: input interactions changed (core)"),
        "{why}"
    );
    assert!(
        why.contains("    core  reused: k 2 -> 1; input interactions changed (clean)"),
        "{why}"
    );
    assert!(
        why.contains("root: rows: file rows.csv changed\n") && why.contains("root: core: k 2 -> 1\n"),
        "{why}"
    );
    assert!(why.contains("made by run"), "{why}");
    let tree = json(&sluice, &["why", "order", "--json"]);
    assert_eq!(tree["stages"][0]["compared_with"], first.as_str());
    assert_eq!(tree["stages"][0]["cause"]["inputs"]["interactions"], "core");
    let unknown = sluice.run(&["why", "ordr"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("error[unknown-stage]"),
        "{}",
        unknown.err
    );
}

#[test]
fn two_runs_differ_in_configs_rows_and_values() {
    let sluice = once();
    let first = runs(&sluice).remove(0);
    sluice.write("rows.csv", rows() + "u9,i0,5000\nu9,i1,5001\n");
    let seeded = PIPELINE.replace("pipeline: cut\n", "pipeline: cut\nseed: 7\n");
    sluice.write("cut.yaml", seeded + "  again: { op: audit_order, input: clean }\n");
    sluice.succeed(&["run", "cut.yaml", "--quiet", "--set=core.k=1"]);
    let text = sluice.succeed(&["diff", &first, "last"]).out;
    for words in [
        "seed ",
        " -> 7\n",
        "only in 2",
        ": again\n",
        "\ncore: k 2 -> 1; input interactions changed\n",
        "  out: rows 20 -> 22\n",
        "    users                value  5 -> 6  (+1)\n",
        "stages: 0 equal, 4 with another key, 1 only in one",
    ] {
        assert!(text.contains(words), "no \"{words}\" in:\n{text}");
    }
    // In the order of the plan.
    let place = |words: &str| text.find(words).unwrap();
    assert!(
        place("\nrows: ") < place("\nclean: ") && place("\ncore: ") < place("\norder: "),
        "{text}"
    );
    let difference = json(&sluice, &["diff", &first, "cut", "--json"]);
    let order = difference["stages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|stage| stage["stage"] == "order")
        .unwrap();
    let values = order["outputs"][0]["values"]["changed"].as_array().unwrap();
    assert!(
        values
            .iter()
            .any(|value| value["row"] == "users" && value["old"] == 5.0 && value["new"] == 6.0)
    );
    let same = sluice.succeed(&["diff", "last", "last"]).out;
    assert!(same.contains("stages: 5 equal, 0 with another key"), "{same}");
    let unknown = sluice.run(&["diff", "nobody", "2"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("error[unknown-run]"),
        "{}",
        unknown.err
    );
    assert!(
        unknown.err.contains("2 runs begin with \"2\"") && unknown.err.contains("2 problems"),
        "{}",
        unknown.err
    );
}

#[test]
fn runs_and_their_logs() {
    let sluice = once();
    let first = runs(&sluice).remove(0);
    sluice.write("fails.yaml", PIPELINE.replace("pipeline: cut", "pipeline: fails"));
    sluice.write("rows.csv", "user_id,item_id,timestamp\nu1,i1,soon\n");
    assert_ne!(sluice.run(&["run", "fails.yaml", "--quiet"]).code, 0);
    edit(&sluice, &first, |run| {
        run["state"] = "running".into();
        run["process"] = serde_json::to_value(Process {
            began: Process::here().began + 1,
            ..Process::here()
        })
        .unwrap();
    });
    let listed = sluice.succeed(&["runs"]).out;
    let line = |name: &str| listed.lines().find(|line| line.contains(name)).unwrap().to_string();
    assert!(
        line(&first).contains("killed") && line("fails").contains("failed"),
        "{listed}"
    );
    let killed = json(&sluice, &["runs", "-p", "cut", "--json"]);
    assert_eq!((&killed[0]["ran"], &killed[0]["state"]), (&4.into(), &"killed".into()));
    assert_eq!(sluice.succeed(&["runs", "-n", "1"]).out.lines().count(), 2);
    let unknown = sluice.run(&["runs", "-p", "cutt"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("did you mean \"cut\"?"),
        "{}",
        unknown.err
    );

    let log = sluice.succeed(&["logs", &first]).out;
    for words in [
        "of cut begins: 4 stages",
        "planned: run: never ran",
        "started: dedup",
        "rows             done in ",
        "of processors, at most ",
        "note rows_in: 20",
        "run done: 4 ran, 0 reused",
        "the run was killed",
    ] {
        assert!(log.contains(words), "no \"{words}\" in:\n{log}");
    }
    let clean = sluice.succeed(&["logs", &first, "clean"]).out;
    let all = |line: &str| line.starts_with("20") && line.contains("  clean  ");
    assert!(clean.lines().count() >= 5 && clean.lines().all(all), "{clean}");
    let failed = sluice.succeed(&["logs", "fails", "rows"]).out;
    assert!(
        failed.contains("failed: error[") && failed.contains("rows.csv"),
        "{failed}"
    );
    let unknown = sluice.run(&["logs", "last", "cleen"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("did you mean \"clean\"?"),
        "{}",
        unknown.err
    );
    // Why a stage did not get done.
    let why = sluice.succeed(&["why", "rows"]).out;
    assert!(why.contains("rows failed") && why.contains("never ran"), "{why}");
}

#[test]
fn what_nobody_needs_goes_and_what_is_missing_is_made_anew() {
    let sluice = once();
    let first = runs(&sluice).remove(0);
    let run = |more: &[&str]| sluice.succeed(&[&["run", "cut.yaml", "--json"], more].concat());
    sluice.write("rows.csv", rows() + "u9,i0,5000\nu9,i1,5001\n");
    run(&[]);
    let all = sluice.objects();

    // Only told.
    let told = sluice.succeed(&["gc"]).out;
    assert!(
        told.contains("would remove") && told.contains("--yes does it") && told.contains("cut  rows "),
        "{told}"
    );
    assert_eq!(sluice.objects(), all);
    // A pinned run keeps everything, and so does one that is under way.
    assert!(sluice.succeed(&["pin", &first]).out.contains("is pinned now"));
    assert!(sluice.succeed(&["runs"]).out.contains("pinned"));
    assert!(sluice.succeed(&["gc", "--yes"]).out.contains("removed 0 artifacts"));
    sluice.succeed(&["unpin", &first]);
    edit(&sluice, &first, |run| {
        run["state"] = "running".into();
        run["process"] = serde_json::to_value(Process::here()).unwrap();
    });
    let under_way = sluice.succeed(&["gc", "--yes", "--budget", "0"]).out;
    assert!(
        under_way.contains(&format!("all they may need stays: {first}")),
        "{under_way}"
    );
    assert_eq!(sluice.objects(), all);
    let pinned = sluice.run(&["pin", &first]);
    assert!(
        pinned.code == 2 && pinned.err.contains("error[still-running]"),
        "{}",
        pinned.err
    );
    edit(&sluice, &first, |run| run["state"] = "done".into());

    // The rest goes; the newest run has all it needs.
    let removed = sluice.succeed(&["gc", "--yes"]).out;
    assert!(
        removed.contains("removed ") && !removed.contains("removed 0"),
        "{removed}"
    );
    assert!(sluice.objects().len() < all.len() && sluice.unfinished().is_empty());
    assert!(run(&[]).ran().is_empty());
    sluice.succeed(&["store", "verify"]);
    // The keys still know why.
    assert!(sluice.succeed(&["why", "core"]).out.contains("file rows.csv changed"));

    // Nothing may stay but what is pinned.
    let newest = runs(&sluice).remove(0);
    sluice.succeed(&["pin", &newest]);
    let held = sluice.succeed(&["gc", "--yes", "--budget", "0"]).out;
    assert!(held.contains("over the budget"), "{held}");
    assert!(run(&[]).ran().is_empty());
    sluice.succeed(&["unpin", &newest]);
    let report = json(&sluice, &["gc", "--budget", "0", "--yes", "--json"]);
    assert!(
        report["removed"] == true && report["bytes"] == report["total"],
        "{report}"
    );
    assert!(sluice.objects().is_empty());
    let planned = sluice.succeed(&["plan", "cut.yaml"]).out;
    assert!(planned.contains("its artifact is missing"), "{planned}");
    assert_eq!(run(&[]).ran().len(), 4);
    assert!(run(&[]).ran().is_empty());

    // Keys go only when that is asked for.
    let keys = || entries(&sluice.path(".sluice/keys")).len();
    let before = keys();
    sluice.succeed(&["gc", "--yes"]);
    assert_eq!(keys(), before);
    sluice.succeed(&["gc", "--yes", "--forget"]);
    assert_eq!(keys(), 4);
    assert!(run(&[]).ran().is_empty());

    // Nobody knows what a run needs whose record is damaged.
    std::fs::write(sluice.path(".sluice/runs").join(&first).join("run.json"), "{").unwrap();
    let refused = sluice.run(&["gc", "--yes", "--budget", "0"]);
    assert!(
        refused.code == 3 && refused.err.contains("error[damaged-run]"),
        "{}",
        refused.err
    );
}

#[test]
fn a_flipped_bit_is_found_and_healed() {
    let sluice = once();
    let sound = sluice.succeed(&["store", "verify"]).out;
    assert!(sound.contains("4 keys: 0 damaged artifacts"), "{sound}");
    flip(&sluice);
    let found = sluice.run(&["store", "verify"]);
    assert_eq!(found.code, 3, "{}", found.out);
    assert!(found.out.contains("damaged artifact ") && found.out.contains("its content is not what was written"));
    assert!(
        found.err.contains("error[damaged-store]") && found.err.contains("--quarantine"),
        "{}",
        found.err
    );
    // A key that is that of another pre-image.
    let key = entries(&sluice.path(".sluice/keys")).remove(0);
    let text = std::fs::read_to_string(&key).unwrap();
    std::fs::write(&key, text.replace("\"version\": ", "\"version\": 7")).unwrap();
    let found = sluice.run(&["store", "verify", "--quarantine"]);
    assert!(found.code == 3 && found.out.contains("damaged key "), "{}", found.out);
    assert!(found.err.contains("run the pipelines again"), "{}", found.err);
    let left = json(&sluice, &["store", "verify", "--json"]);
    assert!(
        left["damaged"] == Value::Array(Vec::new()) && left["keys"] == 3,
        "{left}"
    );
    let healed = sluice.succeed(&["run", "cut.yaml", "--json"]).ran();
    assert!(!healed.is_empty() && healed.len() < 4, "{healed:?}");
    let sound = json(&sluice, &["store", "verify", "--json"]);
    assert_eq!(
        (&sound["keys"], &sound["without_objects"]),
        (&4.into(), &Value::Array(Vec::new()))
    );
}

#[test]
fn stages_run_again_are_compared() {
    let sluice = Sluice::with(&[("cut.yaml", PIPELINE), ("rows.csv", &rows())]);
    let none = sluice.run(&["verify", "cut.yaml"]);
    assert!(
        none.code == 2 && none.err.contains("error[nothing-to-verify]"),
        "{}",
        none.err
    );
    sluice.succeed(&["run", "cut.yaml", "--quiet"]);
    let objects = sluice.objects();
    let one = sluice.succeed(&["verify", "cut.yaml"]).out;
    assert!(
        one.contains("1 of 4 stages with artifacts ran again: 1 agree, 0 differ"),
        "{one}"
    );
    assert_eq!(one, sluice.succeed(&["verify", "cut.yaml"]).out);
    let all = sluice
        .succeed(&["verify", "cut.yaml", "--sample", "100%", "--workers", "1"])
        .out;
    assert!(
        all.contains("4 agree") && all.contains("order            agrees: out: equal to the bit"),
        "{all}"
    );

    // Another file, held for the old one: the run believes the cached digest, the comparison does not.
    let cache = sluice.path(".sluice/files.json");
    let digest = || -> String {
        let known: serde_json::Value = serde_json::from_slice(&std::fs::read(&cache).unwrap()).unwrap();
        known.as_object().unwrap().values().next().unwrap()[1]
            .as_str()
            .unwrap()
            .to_string()
    };
    let old = digest();
    sluice.write("rows.csv", rows().replace("u0,i0,", "u0,i9,"));
    sluice.succeed(&["plan", "cut.yaml"]);
    let held = std::fs::read_to_string(&cache).unwrap().replace(&digest(), &old);
    std::fs::write(&cache, held).unwrap();
    let differs = sluice.run(&["verify", "cut.yaml", "--stage", "rows", "--stage", "order"]);
    assert_eq!(differs.code, 3, "{}", differs.out);
    assert!(
        differs.out.contains("rows             DIFFERS: ") && differs.out.contains("1 differ"),
        "{}",
        differs.out
    );
    assert!(differs.out.contains("order            agrees"), "{}", differs.out);
    assert!(differs.err.contains("error[not-reproducible]"), "{}", differs.err);
    assert!(sluice.objects() == objects && sluice.unfinished().is_empty());
    let unknown = sluice.run(&["verify", "cut.yaml", "--stage", "row"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("did you mean \"rows\"?"),
        "{}",
        unknown.err
    );
}

#[test]
fn a_plan_is_a_picture() {
    let sluice = once();
    let keep = "--set=clean.keep=last";
    let chart = sluice.succeed(&["plan", "cut.yaml", "--mermaid", keep]).out;
    for words in [
        "flowchart TD\n",
        "  s0[\"rows<br/>ingest_interactions<br/>reuse\"]:::reuse\n",
        "  s1[\"clean<br/>dedup<br/>run\"]:::run\n",
        "  s0 --> s1\n",
        "  classDef perhaps ",
    ] {
        assert!(chart.contains(words), "no \"{words}\" in:\n{chart}");
    }
    let page = |file: &str, more: &[&str]| {
        sluice.succeed(&[&["plan", file, "--html", "plan.html"], more].concat());
        std::fs::read_to_string(sluice.path("plan.html")).unwrap()
    };
    let small = page("cut.yaml", &[keep]);
    for words in [
        "<svg ",
        "prefers-color-scheme: dark",
        "keep &quot;first&quot; -&gt; &quot;last&quot;",
        "width=device-width",
    ] {
        assert!(small.contains(words), "no \"{words}\" in:\n{small}");
    }
    assert!(!small.contains("http") && !small.contains("<script"), "{small}");
    assert_eq!(small.matches("<rect ").count(), 4);

    // A large sweep: a node a stage, a row an instance.
    let ks: Vec<String> = (1..=80).map(|k| k.to_string()).collect();
    sluice.write(
        "sweep.yaml",
        format!("{PIPELINE}sweep:\n  axes:\n    core.k: [{}]\n", ks.join(", ")),
    );
    let large = page("sweep.yaml", &[]);
    assert_eq!(
        (large.matches("<rect ").count(), large.matches("<tr class").count()),
        (4, 162)
    );
    assert!(large.contains("core ×80"), "{large}");
    assert_eq!(
        sluice.run(&["plan", "cut.yaml", "--html", "no/where/plan.html"]).code,
        2
    );
}
