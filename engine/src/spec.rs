//! A pipeline as it was written: stages, their inputs and configs, each with its place. Pure: text in, spec out.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Error, did_you_mean};
use crate::yaml::{self, Data, Key, Node, Source, Span};

const TOP_KEYS: [&str; 6] = ["pipeline", "seed", "params", "stages", "show", "expect"];

/// What the command line changes: `--set stage.key=value` and `--param name=value`, in order.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `stage.key=value` as given.
    pub set: Vec<String>,
    /// `name=value` as given.
    pub params: Vec<String>,
}

/// A parsed pipeline.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name of the pipeline.
    pub pipeline: String,
    /// The run's seed.
    pub seed: u64,
    /// Stages in the order of the file.
    pub stages: Vec<StageSpec>,
    /// Stages whose tables the program prints at the end.
    pub show: Vec<Reference>,
    /// What must hold of the results; see [`crate::expect`].
    pub expect: Vec<Node>,
    /// Texts that spans refer to: the file first, then overrides.
    pub sources: Vec<Source>,
}

/// A stage as written.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// Its name.
    pub name: Key,
    /// Its operator.
    pub op: Key,
    /// Connected ports; the port of a bare `input:` is `None`.
    pub inputs: Vec<(Option<Key>, Reference)>,
    /// The config as written.
    pub config: Vec<(Key, Node)>,
}

/// `stage` or `stage.port`.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Where it stands.
    pub span: Span,
    /// The stage.
    pub stage: String,
    /// The output port, the first one if not named.
    pub port: Option<String>,
}

impl Spec {
    /// Parses a pipeline and applies overrides. Reports all problems at once.
    pub fn parse(name: &str, text: &str, overrides: &Overrides) -> Result<Spec, Vec<Error>> {
        let mut reader = Reader {
            sources: vec![Source {
                name: name.to_string(),
                text: text.to_string(),
            }],
            problems: Vec::new(),
        };
        let root = yaml::parse(0, &reader.sources[0]).map_err(|error| vec![error])?;
        let spec = reader.spec(root, overrides);
        if reader.problems.is_empty() {
            let mut spec = spec.ok_or_else(Vec::new)?;
            spec.sources = reader.sources;
            Ok(spec)
        } else {
            Err(reader.problems)
        }
    }

    /// The place of a span, for an error.
    pub fn place(&self, span: Span) -> crate::error::Place {
        self.sources[span.source].place(span)
    }
}

struct Reader {
    sources: Vec<Source>,
    problems: Vec<Error>,
}

impl Reader {
    fn problem(&mut self, span: Span, error: Error) {
        let place = self.sources[span.source].place(span);
        self.problems.push(error.at(place));
    }

    fn spec(&mut self, root: Node, overrides: &Overrides) -> Option<Spec> {
        let Data::Map(entries) = root.data else {
            self.problem(
                root.span,
                Error::user("bad-pipeline", format!("a pipeline is a map, this is {}", root.kind()))
                    .hint("start with \"pipeline: NAME\" and \"stages:\""),
            );
            return None;
        };
        let mut spec = Spec {
            pipeline: String::new(),
            seed: 42,
            stages: Vec::new(),
            show: Vec::new(),
            expect: Vec::new(),
            sources: Vec::new(),
        };
        let mut params = BTreeMap::new();
        let mut stages = None;
        let mut show = None;
        for (key, node) in entries {
            match key.name.as_str() {
                "pipeline" => match node.text() {
                    Some(name) if is_name(name) => spec.pipeline = name.to_string(),
                    _ => self.problem(node.span, bad_name("pipeline", &node.value())),
                },
                "seed" => match node.value().as_u64() {
                    Some(seed) => spec.seed = seed,
                    None => self.problem(
                        node.span,
                        Error::user("bad-value", "\"seed\" wants a whole number, 0 or more"),
                    ),
                },
                "params" => match node.data {
                    Data::Map(entries) => params.extend(entries.into_iter().map(|(key, node)| (key.name, node))),
                    _ => self.problem(
                        node.span,
                        Error::user("bad-value", "\"params\" wants a map of name: value"),
                    ),
                },
                "stages" => stages = Some((key.span, node)),
                "show" => show = Some(node),
                "expect" => match node.data {
                    Data::List(items) => spec.expect = items,
                    _ => self.problem(node.span, Error::user("bad-value", "\"expect\" wants a list")),
                },
                other => {
                    let mut error = Error::user("unknown-key", format!("unknown key \"{other}\" in the pipeline"))
                        .detail(format!("known: {}", TOP_KEYS.join(", ")));
                    error.hint = did_you_mean(other, TOP_KEYS);
                    self.problem(key.span, error);
                }
            }
        }
        self.override_params(overrides, &mut params);
        let Some((span, node)) = stages else {
            self.problem(root.span, Error::user("missing-key", "the pipeline has no \"stages\""));
            return None;
        };
        let Data::Map(mut stages) = node.data else {
            self.problem(span, Error::user("bad-value", "\"stages\" wants a map of name: stage"));
            return None;
        };
        self.override_keys(overrides, &mut stages);
        for (_, node) in &mut stages {
            self.substitute(node, &params);
        }
        spec.stages = stages
            .into_iter()
            .filter_map(|(name, node)| self.stage(name, node))
            .collect();
        if let Some(mut node) = show {
            self.substitute(&mut node, &params);
            spec.show = match node.data {
                Data::List(items) => items.iter().filter_map(|item| self.reference(item)).collect(),
                _ => self.reference(&node).into_iter().collect(),
            };
        }
        if spec.pipeline.is_empty() && self.problems.is_empty() {
            let file = std::path::Path::new(&self.sources[0].name);
            let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("pipeline");
            spec.pipeline = stem.to_string();
        }
        Some(spec)
    }

    fn stage(&mut self, name: Key, node: Node) -> Option<StageSpec> {
        if !is_name(&name.name) {
            self.problem(name.span, bad_name("stage", &Value::String(name.name.clone())));
        }
        let Data::Map(entries) = node.data else {
            self.problem(
                node.span,
                Error::user(
                    "bad-stage",
                    format!("stage \"{}\" wants a map, this is {}", name.name, node.kind()),
                )
                .hint("write { op: OPERATOR, input: STAGE, ... }"),
            );
            return None;
        };
        let mut op = None;
        let mut inputs = Vec::new();
        let mut config = Vec::new();
        for (key, node) in entries {
            match key.name.as_str() {
                "op" => match node.text() {
                    Some(text) => {
                        op = Some(Key {
                            span: node.span,
                            name: text.to_string(),
                        })
                    }
                    None => self.problem(
                        node.span,
                        Error::user("bad-value", "\"op\" wants the name of an operator"),
                    ),
                },
                "input" => inputs.extend(self.reference(&node).map(|reference| (None, reference))),
                "inputs" => match node.data {
                    Data::Map(entries) => {
                        for (port, node) in entries {
                            inputs.extend(self.reference(&node).map(|reference| (Some(port), reference)));
                        }
                    }
                    _ => self.problem(
                        node.span,
                        Error::user("bad-value", "\"inputs\" wants a map of port: stage")
                            .hint("for an operator with one input write \"input: STAGE\""),
                    ),
                },
                _ => config.push((key, node)),
            }
        }
        if op.is_none() {
            self.problem(
                name.span,
                Error::user("missing-key", format!("stage \"{}\" has no \"op\"", name.name)),
            );
        }
        Some(StageSpec {
            op: op?,
            name,
            inputs,
            config,
        })
    }

    fn reference(&mut self, node: &Node) -> Option<Reference> {
        let Some(text) = node.text() else {
            self.problem(
                node.span,
                Error::user(
                    "bad-value",
                    format!("an input is the name of a stage, this is {}", node.kind()),
                ),
            );
            return None;
        };
        let (stage, port) = match text.split_once('.') {
            Some((stage, port)) => (stage, Some(port.to_string())),
            None => (text, None),
        };
        Some(Reference {
            span: node.span,
            stage: stage.to_string(),
            port,
        })
    }

    /// Replaces `${name}`; a scalar that is nothing but `${name}` takes the parameter's own type.
    fn substitute(&mut self, node: &mut Node, params: &BTreeMap<String, Node>) {
        let span = node.span;
        match &mut node.data {
            Data::List(items) => items.iter_mut().for_each(|item| self.substitute(item, params)),
            Data::Map(entries) => entries.iter_mut().for_each(|(_, value)| self.substitute(value, params)),
            Data::Scalar(Value::String(text)) => {
                let mut result = String::new();
                let mut rest = text.as_str();
                while let Some(start) = rest.find("${") {
                    let Some(end) = rest[start..].find('}') else { break };
                    let name = &rest[start + 2..start + end];
                    let Some(param) = params.get(name) else {
                        let mut error = Error::user("unknown-param", format!("unknown parameter \"{name}\""));
                        error.hint = did_you_mean(name, params.keys().map(String::as_str))
                            .or_else(|| Some("declare it under \"params:\" or pass --param NAME=VALUE".into()));
                        self.problem(span, error);
                        return;
                    };
                    if start == 0 && end + 1 == rest.len() && result.is_empty() {
                        node.data = param.data.clone();
                        return;
                    }
                    result.push_str(&rest[..start]);
                    match param.value() {
                        Value::String(value) => result.push_str(&value),
                        value => result.push_str(&value.to_string()),
                    }
                    rest = &rest[start + end + 1..];
                }
                result.push_str(rest);
                *text = result;
            }
            Data::Scalar(_) => {}
        }
    }

    fn override_params(&mut self, overrides: &Overrides, params: &mut BTreeMap<String, Node>) {
        for text in &overrides.params {
            let Some((name, node)) = self.assignment("--param", text) else {
                continue;
            };
            if let Some(value) = params.get_mut(&name) {
                *value = node;
                continue;
            }
            let mut error = Error::user("unknown-param", format!("the pipeline has no parameter \"{name}\""));
            error.hint = did_you_mean(&name, params.keys().map(String::as_str));
            self.problem(node.span, error);
        }
    }

    fn override_keys(&mut self, overrides: &Overrides, stages: &mut [(Key, Node)]) {
        for text in &overrides.set {
            let Some((path, value)) = self.assignment("--set", text) else {
                continue;
            };
            let mut parts = path.split('.');
            let stage = parts.next().unwrap_or_default();
            let keys: Vec<&str> = parts.collect();
            let names: Vec<String> = stages.iter().map(|(key, _)| key.name.clone()).collect();
            match stages.iter_mut().find(|(key, _)| key.name == stage) {
                Some((_, node)) if !keys.is_empty() => set(node, &keys, value),
                Some(_) => self.problem(
                    value.span,
                    Error::user("bad-override", format!("\"{path}\" names a stage, not a key of it"))
                        .hint("write --set STAGE.KEY=VALUE"),
                ),
                None => {
                    let mut error = Error::user("unknown-stage", format!("unknown stage \"{stage}\""));
                    error.hint = did_you_mean(stage, names.iter().map(String::as_str));
                    self.problem(value.span, error);
                }
            }
        }
    }

    fn assignment(&mut self, flag: &str, text: &str) -> Option<(String, Node)> {
        let source = self.sources.len();
        self.sources.push(Source {
            name: flag.to_string(),
            text: text.to_string(),
        });
        let span = Span {
            source,
            line: 1,
            column: 1,
            width: text.chars().count().max(1),
        };
        let Some((name, value)) = text.split_once('=') else {
            self.problem(
                span,
                Error::user("bad-override", format!("{flag} wants NAME=VALUE, this is \"{text}\"")),
            );
            return None;
        };
        match yaml::parse(
            source,
            &Source {
                name: flag.to_string(),
                text: value.to_string(),
            },
        ) {
            Ok(mut node) => {
                place_all(&mut node, span);
                Some((name.to_string(), node))
            }
            Err(error) => {
                self.problem(span, Error::user("bad-override", error.message));
                None
            }
        }
    }
}

fn place_all(node: &mut Node, span: Span) {
    node.span = span;
    match &mut node.data {
        Data::List(items) => items.iter_mut().for_each(|item| place_all(item, span)),
        Data::Map(entries) => entries.iter_mut().for_each(|(key, value)| {
            key.span = span;
            place_all(value, span);
        }),
        Data::Scalar(_) => {}
    }
}

fn set(node: &mut Node, keys: &[&str], value: Node) {
    let Data::Map(entries) = &mut node.data else {
        node.data = Data::Map(Vec::new());
        return set(node, keys, value);
    };
    let index = entries
        .iter()
        .position(|(key, _)| key.name == keys[0])
        .unwrap_or_else(|| {
            let key = Key {
                span: value.span,
                name: keys[0].to_string(),
            };
            entries.push((
                key,
                Node {
                    span: value.span,
                    data: Data::Scalar(Value::Null),
                },
            ));
            entries.len() - 1
        });
    match keys.len() {
        1 => entries[index].1 = value,
        _ => set(&mut entries[index].1, &keys[1..], value),
    }
}

/// Letters, digits, `_` and `-`, not starting with a digit: a stage is also a table in SQL.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn bad_name(what: &str, value: &Value) -> Error {
    Error::user("bad-name", format!("{value} is no name for a {what}"))
        .hint("a name starts with a letter and has letters, digits, \"_\" and \"-\"")
}

#[cfg(test)]
mod tests {
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
    fn params_keep_their_type_and_overrides_win() {
        let text = "params: { d: beauty, n: 5 }\nstages:\n  a: { op: x, path: \"${d}/f.tsv\", k: \"${n}\" }\n";
        let overrides = Overrides {
            set: vec!["a.columns.user=u".into(), "a.rate=1e-3".into()],
            params: vec!["n=7".into()],
        };
        let spec = Spec::parse("p.yaml", text, &overrides).unwrap();
        let config: Vec<String> = spec.stages[0]
            .config
            .iter()
            .map(|(key, node)| format!("{}={}", key.name, node.value()))
            .collect();
        assert_eq!(
            config,
            ["path=\"beauty/f.tsv\"", "k=7", "columns={\"user\":\"u\"}", "rate=0.001"]
        );
    }
}
