//! Specs from text: problems with their places, parameters, overrides, references and axes.

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
