//! Specs from text: problems with their places, parameters, overrides, references and axes.

use serde_json::json;

use super::*;

fn parse(text: &str) -> Result<Spec, String> {
    Spec::parse("p.yaml", text, &Overrides::default())
        .map_err(|problems| problems.iter().map(Error::to_string).collect::<Vec<_>>().join("\n"))
}

#[test]
fn all_problems_come_at_once() {
    let text = "pipelin: x\nseed: -1\nstages:\n  a: { input: b }\n  1b: { op: x, path: \"${nope}/f\" }\n";
    let message = parse(text).unwrap_err();
    for code in ["unknown-key", "bad-value", "missing-key", "bad-name", "unknown-param"] {
        assert!(message.contains(code), "{code} in:\n{message}");
    }
    assert!(message.contains("did you mean \"pipeline\"?"), "{message}");
}

#[test]
fn references_name_instances() {
    let parse = |text: &str| {
        let reference = Reference::parse(text, Span::default()).unwrap();
        (reference.stage, reference.port.unwrap_or_default(), reference.select)
    };
    assert_eq!(parse("a.out"), ("a".into(), "out".into(), Select::default()));
    let one = |text: &str| (text.to_string(), None);
    let all = Select {
        all: true,
        axes: vec![],
    };
    assert_eq!(parse("a[*].out"), ("a".into(), "out".into(), all.clone()));
    assert_eq!(parse("a.out[*]"), ("a".into(), "out".into(), all));
    let select = Select {
        all: false,
        axes: vec![("tiger.rate".into(), Some("0.1".into())), one("seed")],
    };
    assert_eq!(parse("a[tiger.rate=0.1,seed=*]"), ("a".into(), String::new(), select));
    for bad in ["a[", "a[]", "a[x]", "[*]", "a[x=]", "a.", "a]b["] {
        assert!(Reference::parse(bad, Span::default()).is_err(), "{bad}");
    }
}

#[test]
fn axes_reach_keys_and_parameters() {
    let text = "params: { d: beauty }
stages:
  a: { op: x, path: \"${d}/f\", k: 1 }
  b: { op: y, input: a }
sweep: { axes: { d: [beauty, sports], a.k: [1, 2], seed: [1, 2] } }
";
    let spec = Spec::parse("p.yaml", text, &Overrides::default()).unwrap();
    assert_eq!(spec.sweep.points.len(), 8);
    assert_eq!(
        (spec.stages[0].axes.clone(), spec.stages[0].variants.len()),
        (vec![0, 1], 4)
    );
    assert_eq!(
        (spec.stages[1].axes.clone(), spec.stages[1].variants.len()),
        (vec![], 1)
    );
    let last = &spec.stages[0].variants[3].1.config;
    let last: Vec<String> = last
        .iter()
        .map(|(key, node)| format!("{}={}", key.name, node.value()))
        .collect();
    assert_eq!(last, ["path=\"sports/f\"", "k=2"]);
}

#[test]
fn params_keep_their_type_and_overrides_win() {
    let text = "params: { d: beauty, n: 5 }\nstages:\n  a: { op: x, path: \"${d}/f.tsv\", k: \"${n}\" }\n";
    let overrides = Overrides {
        set: vec!["a.columns.user=u".into(), "a.rate=1e-3".into()],
        params: vec!["n=7".into()],
    };
    let spec = Spec::parse("p.yaml", text, &overrides).unwrap();
    let config: Vec<String> = spec.stages[0].variants[0]
        .1
        .config
        .iter()
        .map(|(key, node)| format!("{}={}", key.name, node.value()))
        .collect();
    assert_eq!(
        config,
        ["path=\"beauty/f.tsv\"", "k=7", "columns={\"user\":\"u\"}", "rate=0.001"]
    );
}

const PRESETS: &str = "params: { budget: small, users: 10 }
presets:
  budget:
    small: { steps: 5, sizes: { s: { a.k: 1 } } }
    full: { steps: 900, users: 500, sizes: { s: { a.k: 1 }, l: { a.k: 2 } } }
stages:
  a: { op: x, path: f, k: 1, steps: \"${steps}\", users: \"${users}\" }
sweep: { axes: { size: \"${sizes}\" } }
expect:
  - { stage: a, rows: \"${users}\" }
";

fn presets(params: &[&str]) -> Result<(usize, String, Value), Vec<String>> {
    let overrides = Overrides {
        params: params.iter().map(ToString::to_string).collect(),
        ..Overrides::default()
    };
    let spec = Spec::parse("p.yaml", PRESETS, &overrides)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let (_, stage) = &spec.stages[0].variants[0];
    let config = stage
        .config
        .iter()
        .map(|(key, node)| format!("{}={}", key.name, node.value()));
    let expect = spec.expect[0].value();
    Ok((spec.sweep.points.len(), config.collect::<Vec<_>>().join(" "), expect))
}

#[test]
fn a_preset_sets_what_is_not_given() {
    let (points, config, expect) = presets(&[]).unwrap();
    assert_eq!((points, config.as_str()), (1, "path=\"f\" k=1 steps=5 users=10"));
    assert_eq!(expect, json!({ "stage": "a", "rows": 10 }));
    let (points, config, _) = presets(&["budget=full"]).unwrap();
    assert_eq!((points, config.as_str()), (2, "path=\"f\" k=1 steps=900 users=500"));
    let (points, config, _) = presets(&["steps=7", "budget=full", "users=1"]).unwrap();
    assert_eq!((points, config.as_str()), (2, "path=\"f\" k=1 steps=7 users=1"));
}

#[test]
fn what_the_command_line_repeats_says_the_same() {
    let parse = |params: &[&str], set: &[&str]| {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let overrides = Overrides {
            params: texts(params),
            set: texts(set),
        };
        Spec::parse("p.yaml", PRESETS, &overrides).unwrap()
    };
    let written = parse(&[], &[]);
    for (params, set, same) in [
        (&["budget=small"][..], &[][..], true),
        (&["users=10", "steps=5"], &["a.path=f"], true),
        (&["budget=full"], &[], false),
        (&["users=11"], &[], false),
        (&[], &["a.path=g"], false),
    ] {
        assert_eq!(parse(params, set).says_the_same(&written), same, "{params:?} {set:?}");
    }
}

#[test]
fn a_preset_that_is_none_is_told() {
    let problems = presets(&["budget=smal"]).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    for words in [
        "\"budget\" has no preset \"smal\"",
        "known: small, full",
        "did you mean \"small\"?",
    ] {
        assert!(problems[0].contains(words), "{words}: {}", problems[0]);
    }
    let problems = presets(&["step=7"]).unwrap_err();
    assert!(problems[0].contains("did you mean \"steps\"?"), "{problems:?}");
}

#[test]
fn presets_want_a_parameter_of_their_own() {
    for (presets, code) in [
        ("params: {}\npresets: { budget: { small: { k: 1 } } }", "unknown-param"),
        ("params: { b: x }\npresets: { b: { x: 3 } }", "bad-value"),
        (
            "params: { b: x, c: y }\npresets: { b: { x: { k: 3 } }, c: { y: { k: 4 } } }",
            "bad-preset",
        ),
        (
            "params: { b: x, c: y }\npresets: { b: { x: { c: z } }, c: { y: { k: 4 } } }",
            "bad-preset",
        ),
    ] {
        let text = format!("{presets}\nstages:\n  a: {{ op: x }}\n");
        let problems = Spec::parse("p.yaml", &text, &Overrides::default()).unwrap_err();
        assert_eq!(
            problems.iter().map(|error| error.code.as_str()).collect::<Vec<_>>(),
            [code],
            "{presets}"
        );
    }
}

#[test]
fn what_an_axis_sets_is_not_set_by_the_command_line() {
    let text = "params: { k: 1 }
stages: { a: { op: x, k: \"${k}\", b: { c: 1, d: 1 } } }
sweep: { axes: { k: [1, 2], c: { one: { a.b.c: 1 }, two: { a.b.c: 2 } } } }
";
    let parse = |set: &[&str], params: &[&str]| {
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let overrides = Overrides {
            set: texts(set),
            params: texts(params),
        };
        Spec::parse("p.yaml", text, &overrides)
    };
    for (set, params, axis) in [(&["a.b.c=3"][..], &[][..], "\"c\""), (&[], &["k=3"], "\"k\"")] {
        let problems = parse(set, params).unwrap_err();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].code, "swept");
        assert!(
            problems[0]
                .to_string()
                .contains(&format!("axis {axis} of the sweep sets")),
            "{problems:?}"
        );
    }
    assert!(parse(&["a.b.d=3"], &[]).is_ok());
}
