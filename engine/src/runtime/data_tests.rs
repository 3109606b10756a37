//! Tests of stages: what reads a tested stage waits for them, rows that fail are kept, and nothing runs behind them.

use std::collections::BTreeSet;
use std::path::Path;

use super::tests::{execute, registry};
use crate::event::Event;
use crate::graph::Graph;
use crate::history;
use crate::key::Reason;
use crate::operator::OUT;
use crate::plan::{Action, Plan, Selection};
use crate::run::{Options, Outcome, plan_over, run};
use crate::spec::{Overrides, Spec};
use crate::store::Store;
use crate::{Error, Kind, Result};

/// `some` has no multiple of 7, so its test of 7 is passed, and that of 3 is not.
const TESTED: &str = "
pipeline: p
stages:
  edges: { op: make_edges, blocks: 4, rows: 40, spread: 60 }
  some:
    op: sieve
    input: edges
    tests: [{ of: 7 }]
  more:  { op: sieve, input: some, by: 5 }
  total: { op: total, inputs: { input: more } }
  aside: { op: total, input: edges }
";

fn graph(yaml: &str) -> Result<Graph, Vec<Error>> {
    let spec = Spec::parse("p.yaml", yaml, &Overrides::default())?;
    Graph::build(&spec, &registry(), Path::new("."))
}

fn planned(store: &Path, yaml: &str, choose: impl FnOnce(&Graph, &mut Selection)) -> Result<Plan, Vec<Error>> {
    let graph = graph(yaml)?;
    let mut selection = Selection::default();
    choose(&graph, &mut selection);
    plan_over(&graph, &Store::open(store).unwrap(), Path::new("."), &selection)
}

/// What is done with a stage.
fn action(plan: &Plan, stage: &str) -> Action {
    let found = plan.stages.iter().find(|planned| planned.stage == stage);
    found.unwrap_or_else(|| panic!("no {stage}")).action
}

fn events(store: &Path, yaml: &str, keep_going: bool) -> (Result<Outcome, Vec<Error>>, Vec<Event>) {
    let graph = graph(yaml).unwrap();
    let store = Store::open(store).unwrap();
    let plan = plan_over(&graph, &store, Path::new("."), &Selection::default()).unwrap();
    let mut options = Options::new(2, Path::new("."));
    options.keep_going = keep_going;
    let mut events = Vec::new();
    let outcome = run(graph, &plan, &store, &options, &mut |event: &Event| {
        events.push(event.clone())
    });
    (outcome.map(|outcome| outcome.expect("an outcome")), events)
}

fn finished(events: &[Event]) -> BTreeSet<&str> {
    let finished = events
        .iter()
        .filter(|event| matches!(event, Event::StageFinished { .. }));
    finished.filter_map(Event::stage).collect()
}

fn started(events: &[Event]) -> BTreeSet<&str> {
    let started = events
        .iter()
        .filter(|event| matches!(event, Event::StageStarted { .. }));
    started.filter_map(Event::stage).collect()
}

fn failing() -> String {
    TESTED.replace("[{ of: 7 }]", "[{ of: 7 }, { of: 3, name: threes }]")
}

#[test]
fn tests_are_stages_with_names_of_their_own() {
    let text = TESTED.replace(
        "[{ of: 7 }]",
        "[{ of: 7 }, { of: 7, seed: 3 }, { of: 11, name: elevens, input: edges }]",
    );
    let graph = graph(&text).unwrap();
    let names: Vec<&str> = graph.stages.iter().map(|stage| stage.name.as_str()).collect();
    let wanted = [
        "edges",
        "some",
        "some:of",
        "some:of_2",
        "some:elevens",
        "more",
        "total",
        "aside",
    ];
    assert_eq!(names, wanted);
    let more = &graph.stages[graph.stage("more").unwrap()];
    assert_eq!(more.after, [2, 3, 4]);
    assert!(graph.stages[2].after.is_empty() && graph.stages[7].after.is_empty());
    assert_eq!(graph.stages[4].inputs[0].stage, 0, "it reads what it says");
    assert_eq!(graph.find("some:of").unwrap(), [2]);
    for (tests, wanted) in [
        ("{ of: 1 }", "wants a list"),
        ("[{ off: 1 }]", "unknown test \"off\""),
        ("[{ name: a }]", "tests nothing"),
        ("[{ of: 1, name: a b }]", "no name"),
        ("[{ of: 1, name: a }, { of: 2, name: a }]", "two tests"),
        ("[{ of: 1, input: nowhere }]", "unknown stage"),
        ("[{ of: 1, input: more }]", "in a circle"),
    ] {
        let problems = self::graph(&TESTED.replace("[{ of: 7 }]", tests)).err().expect(tests);
        assert!(problems[0].message.contains(wanted), "{tests}: {problems:?}");
    }
}

#[test]
fn nothing_streams_past_a_test() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, events) = events(folder.path(), TESTED, false);
    assert_eq!(outcome.unwrap().ran, 6);
    let at = |wanted: &str, done: bool| {
        let found = events.iter().position(|event| match event {
            Event::StageFinished { stage, .. } => done && stage == wanted,
            Event::StageStarted { stage, .. } => !done && stage == wanted,
            _ => false,
        });
        found.unwrap_or_else(|| panic!("no {wanted}"))
    };
    assert!(at("some:of", true) < at("more", false), "{events:#?}");
    // Without tests it streams: it starts before what it reads is done.
    let fresh = tempfile::tempdir().unwrap();
    let plain = TESTED.replace("    tests: [{ of: 7 }]\n", "");
    let (_, events) = self::events(fresh.path(), &plain, false);
    let place = |event: &str, stage: &str| {
        let told = |told: &&Event| serde_json::to_value(told).unwrap()["event"] == event && told.stage() == Some(stage);
        events.iter().position(|event| told(&event)).unwrap()
    };
    assert!(place("stage_started", "more") < place("stage_finished", "some"));
}

#[test]
fn rows_that_fail_are_kept_and_block_what_is_below() {
    let folder = tempfile::tempdir().unwrap();
    let (outcome, seen) = events(folder.path(), &failing(), true);
    let errors = outcome.unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!((errors[0].kind, errors[0].code.as_str()), (Kind::Data, "data-test"));
    assert!(
        errors[0].message.contains("stage \"some\" fails its test \"threes\""),
        "{errors:?}"
    );
    assert!(
        errors[0].detail[0].starts_with("a "),
        "the header of the rows: {errors:?}"
    );
    assert!(errors[0].hint.as_ref().unwrap().contains("sluice show \"some:threes\""));
    let done = finished(&seen);
    assert_eq!(
        done,
        BTreeSet::from(["edges", "some", "some:of", "some:threes", "aside"])
    );
    let blocked = seen.iter().filter(|event| matches!(event, Event::StageBlocked { .. }));
    assert_eq!(
        blocked.filter_map(Event::stage).collect::<BTreeSet<_>>(),
        BTreeSet::from(["more", "total"])
    );
    let store = Store::open(folder.path()).unwrap();
    let record = history::runs(&store).next().unwrap();
    let key = record
        .keys
        .get("some:threes")
        .expect("the failing test is in the record");
    let rows = store.record(key).unwrap().rows[OUT];
    assert!(
        rows > 0 && errors[0].message.contains(&format!("{rows} rows")),
        "{errors:?}"
    );

    // Again: at once, and nothing runs.
    let plan = planned(folder.path(), &failing(), |_, _| {}).unwrap();
    assert_eq!(action(&plan, "some:threes"), Action::Reuse);
    let because = |stage: &str| {
        let found = plan.stages.iter().find(|planned| planned.stage == stage);
        found.unwrap().because.clone()
    };
    assert_eq!(because("some:threes"), [Reason::Fails { rows }]);
    let behind = Reason::Behind {
        tests: vec!["some:threes".into()],
    };
    assert!(because("more").contains(&behind) && because("total").contains(&behind));
    for keep_going in [false, true] {
        let (outcome, events) = events(folder.path(), &failing(), keep_going);
        assert_eq!(outcome.unwrap_err()[0].message, errors[0].message);
        assert!(started(&events).is_empty(), "{events:?}");
    }
    // Without the test the rest runs, and nothing else does.
    let (outcome, events) = events(folder.path(), TESTED, false);
    assert!(outcome.is_ok());
    assert_eq!(finished(&events), BTreeSet::from(["more", "total"]));
    // With it again what is there is reused, and the run fails all the same.
    let (outcome, events) = self::events(folder.path(), &failing(), true);
    assert_eq!(outcome.unwrap_err()[0].code, "data-test");
    assert!(started(&events).is_empty());
}

#[test]
fn better_data_pass_and_only_what_they_reach_runs() {
    let folder = tempfile::tempdir().unwrap();
    assert!(execute(folder.path(), &failing(), 2, usize::MAX).is_err());
    let better = failing()
        .replace("    input: edges\n", "    input: edges\n    by: 3\n")
        .replace("{ of: 7 }, ", "");
    let (outcome, seen) = events(folder.path(), &better, false);
    assert!(outcome.is_ok(), "{outcome:?}");
    let wanted = BTreeSet::from(["some", "some:threes", "more", "total", "aside"]);
    let all: BTreeSet<&str> = finished(&seen).into_iter().chain(["aside"]).collect();
    assert_eq!(all, wanted);
    let outcome = outcome.unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let (whole, _) = execute(fresh.path(), &better, 1, usize::MAX).unwrap();
    for (stage, record) in &whole.records {
        assert_eq!(record.outputs, outcome.records[stage].outputs, "{stage}");
    }
    // A further test runs itself alone; a passed one costs nothing.
    let further = better.replace("name: threes }", "name: threes }, { of: 9 }");
    let (outcome, seen) = events(folder.path(), &further, false);
    assert!(outcome.is_ok());
    assert_eq!(started(&seen), BTreeSet::from(["some:of"]));
}

#[test]
fn tests_follow_the_axes_of_their_stage() {
    let swept = "
pipeline: p
stages:
  edges: { op: make_edges, blocks: 4, rows: 40, spread: 60 }
  some:  { op: sieve, input: edges, tests: [{ of: 3, name: threes }] }
  total: { op: total, input: some }
  table: { op: total, inputs: { input: \"total[*]\", other: edges } }
  whole: { op: total, inputs: { input: \"some[*]\" } }
sweep:
  axes: { some.by: [3, 5] }
";
    let folder = tempfile::tempdir().unwrap();
    let built = graph(swept).unwrap();
    let after = |stage: &str| {
        let stage = &built.stages[built.stage(stage).unwrap()];
        stage
            .after
            .iter()
            .map(|test| built.stages[*test].name.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(after("total[some.by=5]"), ["some:threes[some.by=5]"]);
    assert_eq!(after("whole"), ["some:threes[some.by=3]", "some:threes[some.by=5]"]);
    assert!(after("some[*]").is_empty());
    let (outcome, seen) = events(folder.path(), swept, true);
    let errors = outcome.unwrap_err();
    assert!(
        errors[0].hint.as_ref().unwrap().contains("some:threes[some.by=5]"),
        "{errors:?}"
    );
    let done = finished(&seen);
    assert!(
        done.contains("total[some.by=3]") && !done.contains("total[some.by=5]"),
        "{done:?}"
    );
    assert!(!done.contains("table") && !done.contains("whole"), "{done:?}");
}

#[test]
fn tests_come_along_with_what_is_chosen() {
    let folder = tempfile::tempdir().unwrap();
    let text = TESTED.replace(
        "[{ of: 7 }]",
        "[{ of: 7 }, { of: 7, name: aside, inputs: { other: aside } }]",
    );
    let plan = |choose: &dyn Fn(&Graph, &mut Selection)| planned(folder.path(), &text, choose);
    let until = plan(&|graph, selection| selection.limit(graph, &graph.find("more").unwrap(), &[], &[])).unwrap();
    for (stage, wanted) in [
        ("some:of", Action::Run),
        ("aside", Action::Run),
        ("total", Action::Skip),
    ] {
        assert_eq!(action(&until, stage), wanted, "{stage}");
    }
    let until = plan(&|graph, selection| selection.limit(graph, &graph.find("edges").unwrap(), &[], &[])).unwrap();
    assert_eq!(action(&until, "some:of"), Action::Skip);
    execute(
        folder.path(),
        &text.lines().take(4).map(|line| format!("{line}\n")).collect::<String>(),
        1,
        usize::MAX,
    )
    .unwrap();
    // `aside` is not there, so the test that reads it stays behind; asked for by name, that is an error.
    let only = plan(&|graph, selection| selection.limit(graph, &[], &[], &graph.find("some").unwrap())).unwrap();
    for (stage, wanted) in [
        ("some:of", Action::Run),
        ("some:aside", Action::Skip),
        ("more", Action::Skip),
    ] {
        assert_eq!(action(&only, stage), wanted, "{stage}");
    }
    let alone = plan(&|graph, selection| selection.limit(graph, &[], &[], &graph.find("some:aside").unwrap()));
    assert_eq!(alone.unwrap_err()[0].code, "left-out");
    let from = plan(&|graph, selection| selection.limit(graph, &[], &graph.find("some").unwrap(), &[]));
    assert_eq!(
        from.unwrap_err()[0].code,
        "left-out",
        "the test reads what is not there"
    );
}
