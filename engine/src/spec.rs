//! A pipeline as it was written: stages, their inputs and configs, each with its place. Pure: text in, spec out.

mod checks;
mod params;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Error, did_you_mean};
use crate::sweep::{Point, Sweep, Target};
use crate::yaml::{self, Data, Key, Node, Source, Span};

const TOP_KEYS: [&str; 8] = [
    "pipeline", "seed", "params", "presets", "stages", "sweep", "show", "expect",
];

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
    pub stages: Vec<Template>,
    /// What the pipeline is run over; without `sweep:` one point on no axis.
    pub sweep: Sweep,
    /// Stages whose tables the program prints at the end.
    pub show: Vec<Reference>,
    /// What must hold of the results; see [`crate::expect`].
    pub expect: Vec<Node>,
    /// Texts that spans refer to: the file first, then overrides.
    pub sources: Vec<Source>,
}

/// A stage as written, at every point of the axes that set its keys or parameters.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its name.
    pub name: Key,
    /// Axes that set a key or a parameter of it (indices in order). The seed is not among them.
    pub axes: Vec<usize>,
    /// The stage that it is a test of.
    pub of: Option<String>,
    /// The stage at every point of these axes; one if there are none.
    pub variants: Vec<(Point, StageSpec)>,
}

/// A stage as written.
#[derive(Clone, Debug)]
pub struct StageSpec {
    /// Its name.
    pub name: Key,
    /// Its operator; of a test, which the registry knows, nothing.
    pub op: Key,
    /// The stage that it is a test of.
    pub of: Option<String>,
    /// Connected ports; the port of a bare `input:` is `None`.
    pub inputs: Vec<(Option<Key>, Reference)>,
    /// The config as written.
    pub config: Vec<(Key, Node)>,
}

/// `stage`, `stage.port`, `stage[axis=value]`, `stage[*]`, `stage.port[axis=*]`.
#[derive(Clone, Debug)]
pub struct Reference {
    /// Where it stands.
    pub span: Span,
    /// The stage.
    pub stage: String,
    /// The output port, the first one if not named.
    pub port: Option<String>,
    /// Which instances of a sweep.
    pub select: Select,
}

/// Which instances of a stage an input means. Axes that are not named follow the stage that reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// `[*]`: gather over all axes.
    pub all: bool,
    /// `axis=value`, or `axis=*` (`None`) to gather over it.
    pub axes: Vec<(String, Option<String>)>,
}

impl Select {
    /// Whether instances are gathered into one table.
    pub fn gathers(&self) -> bool {
        self.all || self.axes.iter().any(|(_, value)| value.is_none())
    }
}

impl Reference {
    /// Parses the text of a reference.
    pub fn parse(text: &str, span: Span) -> Result<Reference, Error> {
        let wrong = || {
            Error::user("bad-reference", format!("\"{text}\" is no reference to a stage"))
                .hint("write STAGE, STAGE.PORT, STAGE[AXIS=VALUE], or STAGE[*] to gather all instances")
        };
        let mut select = Select::default();
        let mut plain = text.to_string();
        if let Some(start) = text.find('[') {
            let end = text.find(']').filter(|end| *end > start).ok_or_else(wrong)?;
            plain = format!("{}{}", &text[..start], &text[end + 1..]);
            for part in text[start + 1..end].split(',').map(str::trim) {
                match part.split_once('=') {
                    None if part == "*" => select.all = true,
                    Some((axis, "*")) => select.axes.push((axis.to_string(), None)),
                    Some((axis, value)) if !axis.is_empty() && !value.is_empty() => {
                        select.axes.push((axis.to_string(), Some(value.to_string())));
                    }
                    _ => return Err(wrong()),
                }
            }
        }
        let (stage, port) = match plain.split_once('.') {
            Some((stage, port)) => (stage.to_string(), Some(port.to_string())),
            None => (plain, None),
        };
        if stage.is_empty() || stage.contains([']', '[']) || port.as_ref().is_some_and(String::is_empty) {
            return Err(wrong());
        }
        Ok(Reference {
            span,
            stage,
            port,
            select,
        })
    }
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
        let sources = reader.sources;
        let mut problems: Vec<Error> = Vec::new();
        for (span, error) in reader.problems {
            let error = error.at(sources[span.source].place(span));
            // Instances of one stage have their problems in common.
            if !problems.contains(&error) {
                problems.push(error);
            }
        }
        match spec {
            Some(spec) if problems.is_empty() => Ok(Spec { sources, ..spec }),
            _ => Err(problems),
        }
    }

    /// Whether two say the same, wherever it stands: the same stages at the same points, and the same expectations.
    pub fn says_the_same(&self, other: &Spec) -> bool {
        let stage = |stage: &StageSpec| {
            let config = stage.config.iter().map(|(key, node)| (key.name.clone(), node.value()));
            let inputs = stage.inputs.iter().map(|(port, from)| {
                let port = port.as_ref().map(|port| port.name.clone());
                (port, from.stage.clone(), from.port.clone(), from.select.clone())
            });
            (
                stage.op.name.clone(),
                config.collect::<Vec<_>>(),
                inputs.collect::<Vec<_>>(),
            )
        };
        let template = |template: &Template| {
            let variants = template
                .variants
                .iter()
                .map(|(point, spec)| (point.clone(), stage(spec)));
            (template.name.name.clone(), variants.collect::<Vec<_>>())
        };
        let all = |spec: &Spec| {
            let expect = spec.expect.iter().map(Node::value);
            let stages = spec.stages.iter().map(template);
            (spec.seed, stages.collect::<Vec<_>>(), expect.collect::<Vec<_>>())
        };
        all(self) == all(other)
    }

    /// The place of a span, for an error.
    pub fn place(&self, span: Span) -> crate::error::Place {
        self.sources[span.source].place(span)
    }
}

struct Reader {
    sources: Vec<Source>,
    problems: Vec<(Span, Error)>,
}

impl Reader {
    fn problem(&mut self, span: Span, error: Error) {
        self.problems.push((span, error));
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
            sweep: Sweep {
                axes: Vec::new(),
                points: vec![Vec::new()],
            },
            show: Vec::new(),
            expect: Vec::new(),
            sources: Vec::new(),
        };
        let mut params = BTreeMap::new();
        let mut presets = None;
        let mut stages = None;
        let mut show = None;
        let mut sweep = None;
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
                "presets" => presets = Some(node),
                "stages" => stages = Some((key.span, node)),
                "show" => show = Some(node),
                "sweep" => sweep = Some(node),
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
        let chosen = self.parameters(presets, overrides, &mut params);
        let Some((span, node)) = stages else {
            self.problem(root.span, Error::user("missing-key", "the pipeline has no \"stages\""));
            return None;
        };
        let Data::Map(mut stages) = node.data else {
            self.problem(span, Error::user("bad-value", "\"stages\" wants a map of name: stage"));
            return None;
        };
        self.override_keys(overrides, &mut stages);
        if let Some(mut node) = sweep {
            self.substitute(&mut node, &params);
            let names: Vec<&str> = stages.iter().map(|(key, _)| key.name.as_str()).collect();
            let known = params.keys().filter(|name| !chosen.contains(*name)).cloned().collect();
            match Sweep::parse(&node, &names, &known) {
                Ok(sweep) => {
                    self.swept(overrides, &sweep);
                    spec.sweep = sweep;
                }
                Err(problems) => {
                    self.problems.extend(problems);
                    return None;
                }
            }
        }
        for (name, mut node) in stages {
            let tests = self.tests(&name, &mut node);
            if !is_name(&name.name) {
                self.problem(name.span, bad_name("stage", &Value::String(name.name.clone())));
            }
            let of = name.name.clone();
            spec.stages.push(self.template(name, &node, None, &spec.sweep, &params));
            for (name, node) in tests {
                spec.stages
                    .push(self.template(name, &node, Some(&of), &spec.sweep, &params));
            }
        }
        for node in &mut spec.expect {
            self.substitute(node, &params);
        }
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

    /// The stage at every point of the axes that reach its own keys and parameters.
    fn template(
        &mut self,
        name: Key,
        node: &Node,
        of: Option<&String>,
        sweep: &Sweep,
        params: &BTreeMap<String, Node>,
    ) -> Template {
        let reached = |target: &Target| match target {
            Target::Seed => false,
            Target::Param(param) => mentions(node, param),
            Target::Key(stage, _) => *stage == name.name,
        };
        let axes: Vec<usize> = (0..sweep.axes.len())
            .filter(|axis| sweep.sets(*axis, reached))
            .collect();
        let mut variants = Vec::new();
        for point in sweep.project(&axes) {
            let mut node = node.clone();
            let mut params = params.clone();
            for (target, value) in sweep.settings(&point) {
                match target {
                    Target::Param(param) => {
                        params.insert(param.clone(), value.clone());
                    }
                    Target::Key(stage, keys) if *stage == name.name => {
                        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                        set(&mut node, &keys, value.clone());
                    }
                    _ => {}
                }
            }
            self.substitute(&mut node, &params);
            if let Some(stage) = self.stage(name.clone(), node, of) {
                variants.push((point, stage));
            }
        }
        Template {
            name,
            axes,
            of: of.cloned(),
            variants,
        }
    }

    fn stage(&mut self, name: Key, node: Node, of: Option<&String>) -> Option<StageSpec> {
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
                "name" if of.is_some() => {}
                "op" if of.is_none() => match node.text() {
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
        if let Some(of) = of {
            op = Some(Key {
                span: name.span,
                name: String::new(),
            });
            // What it tests, unless it says otherwise.
            if !inputs.iter().any(|(port, _)| port.is_none()) {
                let tested = Reference {
                    span: name.span,
                    stage: of.clone(),
                    port: None,
                    select: Select::default(),
                };
                inputs.push((None, tested));
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
            of: of.cloned(),
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
        match Reference::parse(text, node.span) {
            Ok(reference) => Some(reference),
            Err(error) => {
                self.problem(node.span, error);
                None
            }
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

    /// What an axis sets, the command line cannot set as well.
    fn swept(&mut self, overrides: &Overrides, sweep: &Sweep) {
        let set = overrides.set.iter().map(|text| ("--set", text));
        for (flag, text) in overrides.params.iter().map(|text| ("--param", text)).chain(set) {
            let name = text.split_once('=').map_or(text.as_str(), |(name, _)| name.trim());
            let reached = |target: &Target| match target {
                Target::Seed => false,
                Target::Param(param) => flag == "--param" && param == name,
                Target::Key(stage, keys) => flag == "--set" && name == format!("{stage}.{}", keys.join(".")),
            };
            let Some(axis) = (0..sweep.axes.len()).find(|axis| sweep.sets(*axis, reached)) else {
                continue;
            };
            let axis = &sweep.axes[axis].name;
            let message = format!(
                "{flag} {text} would change nothing: axis \"{}\" of the sweep sets {name}",
                axis.name
            );
            self.problem(
                axis.span,
                Error::user("swept", message).hint(
                    "change the values of the axis, or choose some of its points with --until 'STAGE[AXIS=VALUE]'",
                ),
            );
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

/// Whether `${param}` stands anywhere in a node.
fn mentions(node: &Node, param: &str) -> bool {
    match &node.data {
        Data::List(items) => items.iter().any(|item| mentions(item, param)),
        Data::Map(entries) => entries.iter().any(|(_, value)| mentions(value, param)),
        Data::Scalar(Value::String(text)) => text.contains(&format!("${{{param}}}")),
        Data::Scalar(_) => false,
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
mod tests;
