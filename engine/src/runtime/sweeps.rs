//! Sweeps, failures and changes at random, through the whole engine with toy operators.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::tests::{PIPELINE, execute, registry};
use crate::event::Event;
use crate::graph::Graph;
use crate::history;
use crate::plan::{Action, Plan, Selection};
use crate::random::{Random, Stream};
use crate::run::{Options, Outcome, check, plan_over, run};
use crate::spec::{Overrides, Spec};
use crate::store::{Store, pretty};
use crate::text;
use crate::{Error, Result};

const SWEEP: &str = "
pipeline: p
stages:
  edges: { op: make_edges, blocks: 4, rows: 40, spread: 60 }
  some:  { op: sieve, input: edges }
  core:  { op: peel, input: some, k: 2 }
  total: { op: total, inputs: { input: core } }
  table: { op: total, inputs: { input: \"total[*]\" } }
sweep:
  axes:
    size: { s: { core.k: 2 }, m: { core.k: 3 } }
    total.seed: [1, 2, 3]
";

fn graph(yaml: &str) -> Result<Graph, Vec<Error>> {
    let spec = Spec::parse("p.yaml", yaml, &Overrides::default())?;
    Graph::build(&spec, &registry(), Path::new("."))
}

fn plan_of(store: &Path, yaml: &str, selection: impl FnOnce(&Graph) -> Selection) -> Result<Plan, Vec<Error>> {
    let graph = graph(yaml)?;
    let store = Store::open(store).map_err(|error| vec![error])?;
    plan_over(&graph, &store, Path::new("."), &selection(&graph))
}

/// Runs a pipeline with options and returns what happened.
fn events(store: &Path, yaml: &str, change: impl FnOnce(&mut Options)) -> (Result<Outcome, Vec<Error>>, Vec<Event>) {
    let graph = graph(yaml).unwrap();
    let store = Store::open(store).unwrap();
    let plan = plan_over(&graph, &store, Path::new("."), &Selection::default()).unwrap();
    let mut options = Options::new(2, Path::new("."));
    change(&mut options);
    let mut events = Vec::new();
    let outcome = run(graph, &plan, &store, &options, &mut |event: &Event| {
        events.push(event.clone())
    });
    (
        outcome.map(|outcome| outcome.expect("the first process has an outcome")),
        events,
    )
}

fn finished(events: &[Event]) -> BTreeSet<String> {
    let finished = events
        .iter()
        .filter(|event| matches!(event, Event::StageFinished { .. }));
    finished.filter_map(|event| event.stage().map(str::to_string)).collect()
}

#[test]
fn instances_exist_once_and_are_gathered() {
    let graph = graph(SWEEP).unwrap();
    let stages: Vec<&str> = graph.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(
        stages,
        [
            "edges",
            "some",
            "core[size=s]",
            "core[size=m]",
            "total[size=s,total.seed=1]",
            "total[size=s,total.seed=2]",
            "total[size=s,total.seed=3]",
            "total[size=m,total.seed=1]",
            "total[size=m,total.seed=2]",
            "total[size=m,total.seed=3]",
            "total[*]",
            "table"
        ]
    );
    let extent = graph.sweep.as_ref().unwrap();
    assert_eq!((extent.trials, extent.instances), (6, 6 * 4 + 2));
    assert_eq!(extent.reach[0].1, ["core", "total"]);
    assert_eq!(graph.find("total[size=s]").unwrap().len(), 3);
    assert_eq!(graph.find("total[total.seed=2,size=m]").unwrap().len(), 1);
    assert!(graph.find("total[size=x]").is_err() && graph.find("totals").is_err());

    let folder = tempfile::tempdir().unwrap();
    let (outcome, store) = execute(folder.path(), SWEEP, 2, usize::MAX).unwrap();
    // `total` draws no random numbers, so its seeds are one piece of work under three names.
    assert_eq!((outcome.ran, outcome.reused), (2 + 2 + 2 + 2, 4));
    let gathered = store
        .table(&outcome.records["total[*]"].outputs["out"])
        .unwrap()
        .batch()
        .unwrap();
    let header: Vec<String> = gathered
        .schema()
        .fields()
        .iter()
        .map(|field| field.name().clone())
        .collect();
    assert_eq!(header, ["size", "total_seed", "a", "b"]);
    assert_eq!(gathered.num_rows(), 6);
    assert!(
        text::render(&gathered).unwrap().contains("m     3"),
        "{}",
        text::render(&gathered).unwrap()
    );

    // Another value runs what is new, and what gathers it.
    let more = SWEEP.replace("m: { core.k: 3 }", "m: { core.k: 3 }, l: { core.k: 4 }");
    let (_, events) = events(folder.path(), &more, |_| {});
    let ran = finished(&events);
    assert!(
        ran.contains("core[size=l]") && ran.contains("total[*]") && !ran.contains("core[size=s]"),
        "{ran:?}"
    );
    let (outcome, _) = execute(folder.path(), SWEEP, 2, usize::MAX).unwrap();
    assert_eq!(outcome.ran, 0, "going back runs nothing");
}

#[test]
fn inputs_choose_instances() {
    let with = |input: &str| SWEEP.replace("\"total[*]\"", &format!("\"{input}\""));
    let count = |input: &str| {
        let graph = graph(&with(input)).unwrap();
        let tables = graph.stages.iter().filter(|stage| stage.base == "table");
        tables.map(|stage| stage.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(count("total[total.seed=*]"), ["table[size=s]", "table[size=m]"]);
    assert_eq!(count("total[size=s,total.seed=*]"), ["table"]);
    assert_eq!(count("total").len(), 6);
    assert_eq!(count("total[total.seed=2]").len(), 2);
    for (input, wanted) in [
        ("total[seed=*]", "does not reach"),
        ("total[size=x]", "has no value x"),
        ("total.nope[*]", "has no output"),
        ("total.folder[*]", "only tables can be gathered"),
    ] {
        let problems = graph(&with(input)).err().unwrap();
        assert_eq!(problems.len(), 1, "{input}: {problems:?}");
        assert!(problems[0].to_string().contains(wanted), "{input}: {}", problems[0]);
    }
    let left_out = SWEEP.to_string() + "  exclude: [{ size: s, total.seed: 2 }]\n";
    let problems = graph(&left_out.replace("\"total[*]\"", "\"total[size=s,total.seed=2]\""))
        .err()
        .unwrap();
    assert_eq!(problems[0].code, "no-instance");
}

#[test]
fn others_go_on_when_one_fails() {
    let yaml = "
pipeline: p
stages:
  edges: { op: make_edges, blocks: 4, rows: 40, spread: 60 }
  once:  { op: first, input: edges }
  total: { op: total, input: once }
  table: { op: total, inputs: { input: \"total[*]\" } }
sweep:
  axes: { case: { good: { once.bad: 1000 }, bad: { once.bad: 3 }, fine: { once.bad: 2000 } } }
";
    let folder = tempfile::tempdir().unwrap();
    let (outcome, told) = events(folder.path(), yaml, |options| options.keep_going = true);
    let errors = outcome.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].to_string().contains("once[case=bad]"), "{}", errors[0]);
    let ran = finished(&told);
    // Equal input, so one total under two names.
    let totals = told
        .iter()
        .filter(|event| matches!(event, Event::StageFinished { .. } | Event::StageReused { .. }));
    let totals: BTreeSet<&str> = totals
        .filter_map(Event::stage)
        .filter(|stage| stage.starts_with("total"))
        .collect();
    assert_eq!(
        totals,
        BTreeSet::from(["total[case=fine]", "total[case=good]"]),
        "{ran:?}"
    );
    let blocked: Vec<&str> = told
        .iter()
        .filter(|event| matches!(event, Event::StageBlocked { .. }))
        .filter_map(Event::stage)
        .collect();
    assert_eq!(blocked, ["total[case=bad]", "total[*]", "table"]);
    assert!(matches!(
        told.last(),
        Some(Event::RunFinished {
            failed: 1,
            blocked: 3,
            ok: false,
            ..
        })
    ));
    // Resuming is running again: only what failed, and what waited for it.
    let mended = yaml.replace("once.bad: 3", "once.bad: 3000");
    let (outcome, told) = events(folder.path(), &mended, |_| {});
    outcome.unwrap();
    assert!(!finished(&told).contains("once[case=good]"), "{:?}", finished(&told));
}

#[test]
fn a_part_of_a_pipeline() {
    let folder = tempfile::tempdir().unwrap();
    let scope = |until: &[&str], from: &[&str], only: &[&str]| {
        let (until, from, only) = (until.to_vec(), from.to_vec(), only.to_vec());
        plan_of(folder.path(), PIPELINE, |graph| {
            let find = |names: &[&str]| {
                names
                    .iter()
                    .flat_map(|name| graph.find(name).unwrap())
                    .collect::<Vec<_>>()
            };
            let mut selection = Selection::default();
            selection.limit(graph, &find(&until), &find(&from), &find(&only));
            selection
        })
    };
    let runs = |plan: &Plan| -> Vec<String> {
        let runs = plan.stages.iter().filter(|stage| stage.action == Action::Run);
        runs.map(|stage| stage.stage.clone()).collect()
    };
    assert_eq!(runs(&scope(&["once"], &[], &[]).unwrap()), ["edges", "some", "once"]);
    let errors = scope(&[], &["core"], &[]).unwrap_err();
    assert_eq!(errors[0].code, "left-out", "{errors:?}");
    assert!(errors[0].to_string().contains("--until \"once\""), "{}", errors[0]);
    execute(folder.path(), PIPELINE, 1, usize::MAX).unwrap();
    let plan = scope(&["more"], &["core"], &[]).unwrap();
    assert_eq!(runs(&plan), [""; 0]);
    assert!(
        plan.stages.iter().all(|stage| stage.action == Action::Reuse),
        "what is there is reused"
    );
}

#[test]
fn stages_that_are_run_again_agree() {
    let folder = tempfile::tempdir().unwrap();
    let (_, store) = execute(folder.path(), PIPELINE, 2, usize::MAX).unwrap();
    let graph = graph(PIPELINE).unwrap();
    let all: Vec<usize> = (0..graph.stages.len()).collect();
    let plan = plan_over(&graph, &store, Path::new("."), &Selection::default()).unwrap();
    let before = store.objects();
    let mut options = Options::new(2, Path::new("."));
    options.verify = true;
    let mut agreed = 0;
    let outcome = run(graph, &check(&plan, &all), &store, &options, &mut |event: &Event| {
        if let Event::StageVerified { agrees, .. } = event {
            assert!(agrees, "{event:?}");
            agreed += 1;
        }
    });
    outcome.unwrap();
    assert_eq!(agreed, all.len());
    assert_eq!(store.objects(), before, "nothing is published");
}

/// An operator moved on, but this artifact is known to be as good as before: it is kept under the new key.
#[test]
fn an_old_artifact_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, store) = execute(folder.path(), PIPELINE, 1, usize::MAX).unwrap();
    // As if `peel` had been at version 0 when it made it.
    let made = &outcome.records["core"];
    let mut old = made.clone();
    old.preimage.version = 0;
    old.key = old.preimage.key();
    store
        .write_synced(
            &folder.path().join(format!("keys/{}.json", old.key)),
            &pretty(&old).unwrap(),
        )
        .unwrap();
    std::fs::remove_file(folder.path().join(format!("keys/{}.json", made.key))).unwrap();
    let mut record = history::read(&store, &outcome.run).unwrap();
    record.last.insert("core".into(), old.key.clone());
    history::write(&store, &record).unwrap();

    let accept = |stage: &str| {
        let stage = stage.to_string();
        plan_of(folder.path(), PIPELINE, move |graph| Selection {
            accept: graph.find(&stage).unwrap().into_iter().collect(),
            ..Selection::default()
        })
    };
    let plan = plan_of(folder.path(), PIPELINE, |_| Selection::default()).unwrap();
    assert_eq!(plan.stages[3].because[0].to_string(), "operator version 0 -> 1");
    let plan = accept("core").unwrap();
    assert_eq!(plan.stages[3].action, Action::Accept);
    assert!(plan.stages.iter().all(|stage| !stage.runs()), "what reads it is reused");
    let options = Options::new(1, Path::new("."));
    let outcome = run(graph(PIPELINE).unwrap(), &plan, &store, &options, &mut |_: &Event| {})
        .unwrap()
        .unwrap();
    assert_eq!(outcome.ran, 0);
    assert_eq!(
        outcome.records["core"].accepted.as_ref(),
        Some(&old.key),
        "and the record says so"
    );
    let (outcome, _) = execute(folder.path(), PIPELINE, 1, usize::MAX).unwrap();
    assert_eq!(outcome.ran, 0, "from now on it is reused");

    // Not if anything else changed.
    let changed = PIPELINE.replace("op: peel, input: once, k: 3", "op: peel, input: once, k: 2");
    let errors = plan_of(folder.path(), &changed, |graph| Selection {
        accept: graph.find("core").unwrap().into_iter().collect(),
        ..Selection::default()
    });
    assert_eq!(errors.unwrap_err()[0].code, "cannot-accept");
}

/// A stage of a pipeline made at random: an operator and the stages it reads.
#[derive(Clone)]
struct Piece {
    operator: u64,
    inputs: Vec<usize>,
    value: u64,
    flag: bool,
}

/// Primes that no two stages share, so that equal work under two names is only that of equal stages.
const PRIMES: [u64; 16] = [3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59];

fn piece(index: usize, random: &mut Stream) -> Piece {
    let operator = if index == 0 { 0 } else { random.below(4) };
    let count = if operator == 3 { 2 } else { 1 };
    Piece {
        operator,
        inputs: (0..count).map(|_| random.below(index as u64) as usize).collect(),
        value: random.below(2),
        flag: random.below(2) == 1,
    }
}

fn yaml(pieces: &[Piece]) -> String {
    let mut text = "pipeline: random\nstages:\n".to_string();
    for (index, piece) in pieces.iter().enumerate() {
        let read = |port: usize| format!("s{}", piece.inputs[port]);
        let body = match piece.operator {
            0 => format!(
                "op: make_edges, blocks: 2, rows: {}, spread: {}",
                30 + piece.value,
                40 + index
            ),
            1 => format!(
                "op: sieve, input: {}, by: {}",
                read(0),
                PRIMES[index] * (1 + piece.value)
            ),
            // Its result is the same whatever the flag says.
            2 => format!(
                "op: first, input: {}, bad: {}, panics: {}",
                read(0),
                1000 + index,
                piece.flag
            ),
            // The second input is read from a stage that may be a total itself: all have the same columns.
            _ => format!("op: total, inputs: {{ input: {}, other: {} }}", read(0), read(1)),
        };
        text.push_str(&format!("  s{index}: {{ {body} }}\n"));
    }
    text
}

/// One change: a value, a flag, an input, another stage, or back to what it was some changes ago.
fn edit(pieces: &mut Vec<Piece>, before: &[Vec<Piece>], random: &mut Stream) {
    let index = random.below(pieces.len() as u64) as usize;
    match random.below(6) {
        0 => pieces[index].value ^= 1,
        1 | 2 => pieces[index].flag ^= true,
        3 if index > 0 => {
            let port = random.below(pieces[index].inputs.len() as u64) as usize;
            pieces[index].inputs[port] = random.below(index as u64) as usize;
        }
        4 if pieces.len() < PRIMES.len() => {
            let new = piece(pieces.len(), random);
            pieces.push(new);
        }
        5 => *pieces = before[random.below(before.len() as u64) as usize].clone(),
        _ => pieces[index].value ^= 1,
    }
}

/// Whatever is changed in whatever pipeline: the result is that of an empty store, and no stage runs whose key was
/// ever published. The oracle knows nothing of plans: it counts keys of a clean run that were never seen before.
#[test]
fn incremental_is_clean_and_runs_the_least() {
    let (mut stages_run, mut stages) = (0, 0);
    for seed in 0..6 {
        let mut random = Random::new(seed, "sweeps", "edits").row(0);
        let mut pieces: Vec<Piece> = Vec::new();
        for index in 0..3 + random.below(6) as usize {
            pieces.push(piece(index, &mut random));
        }
        let store = tempfile::tempdir().unwrap();
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut before = vec![pieces.clone()];
        for step in 0..8 {
            let text = yaml(&pieces);
            let clean = tempfile::tempdir().unwrap();
            let (wanted, _) = execute(clean.path(), &text, 1, usize::MAX).unwrap();
            let (found, _) = execute(store.path(), &text, 1 + step % 2, usize::MAX).unwrap();
            let outputs = |outcome: &Outcome| -> BTreeMap<String, BTreeMap<String, String>> {
                let records = outcome.records.iter();
                records
                    .map(|(stage, record)| (stage.clone(), record.outputs.clone()))
                    .collect()
            };
            assert_eq!(outputs(&found), outputs(&wanted), "seed {seed}, step {step}\n{text}");
            let keys: BTreeSet<String> = wanted.records.values().map(|record| record.key.clone()).collect();
            let least = keys.difference(&known).count();
            assert_eq!(found.ran, least, "seed {seed}, step {step}\n{text}");
            stages_run += found.ran;
            stages += found.records.len();
            known.extend(keys);
            before.push(pieces.clone());
            edit(&mut pieces, &before, &mut random);
        }
    }
    assert!(stages_run * 2 < stages, "{stages_run} of {stages}: the edits are small");
}
