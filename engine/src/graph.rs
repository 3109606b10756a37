//! The checked pipeline: every stage with its operator, full config, edges and bound shapes, in topological order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, did_you_mean};
use crate::operator::{Binding, Bound, Distribution, Entry, Instance, Registry};
use crate::spec::{Reference, Spec, StageSpec};
use crate::table::Shape;
use crate::yaml::Span;

/// The port name in [`Operator::INPUTS`](crate::operator::Operator::INPUTS) that admits inputs of any further name.
pub const ANY: &str = "*";

/// A checked pipeline.
#[derive(Clone)]
pub struct Graph {
    /// Name of the pipeline.
    pub pipeline: String,
    /// The run's seed.
    pub seed: u64,
    /// Stages, every one after those it reads.
    pub stages: Vec<Stage>,
    /// Stage and port of the tables to print at the end.
    pub show: Vec<(usize, String)>,
}

/// A checked stage.
#[derive(Clone)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// What the registry knows of its operator.
    pub entry: Arc<Entry>,
    /// The full config, defaults filled in.
    pub config: Map<String, Value>,
    /// The operator with its config.
    pub operator: Arc<dyn Instance>,
    /// What it reads, in order of ports.
    pub inputs: Vec<Edge>,
    /// What it declared.
    pub bound: Bound,
}

/// An edge into a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// The input port.
    pub port: String,
    /// Index of the stage it comes from.
    pub stage: usize,
    /// That stage's output port.
    pub output: String,
}

impl Stage {
    /// The config fields that are part of the key.
    pub fn keyed_config(&self) -> Map<String, Value> {
        let resource = |name: &str| {
            self.entry
                .fields
                .iter()
                .any(|field| field.name == name && field.resource)
        };
        self.config
            .iter()
            .filter(|(name, _)| !resource(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// Whether rows of this input port are streamed to the stage (otherwise it waits for the whole artifact).
    pub fn streams(&self, port: &str) -> bool {
        match &self.bound.distribution {
            Distribution::Rows(input) | Distribution::Fixpoint(input, _) => input == port,
            Distribution::By(inputs) => inputs.iter().any(|(input, _)| input == port),
            Distribution::Source | Distribution::Whole => false,
        }
    }
}

impl Graph {
    /// Checks a whole pipeline: operators, configs, edges, schemas. Reports all problems at once.
    pub fn build(spec: &Spec, registry: &Registry, data_root: &Path) -> Result<Graph, Vec<Error>> {
        let mut builder = Builder {
            spec,
            problems: Vec::new(),
        };
        let graph = builder.graph(registry, data_root);
        if builder.problems.is_empty() {
            Ok(graph)
        } else {
            Err(builder.problems)
        }
    }

    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.name == name)
    }
}

struct Builder<'a> {
    spec: &'a Spec,
    problems: Vec<Error>,
}

impl Builder<'_> {
    fn problem(&mut self, span: Span, error: Error) {
        self.problems.push(error.at(self.spec.place(span)));
    }

    fn graph(&mut self, registry: &Registry, data_root: &Path) -> Graph {
        let mut graph = Graph {
            pipeline: self.spec.pipeline.clone(),
            seed: self.spec.seed,
            stages: Vec::new(),
            show: Vec::new(),
        };
        // Index in the file -> index in the graph, for stages that could be built.
        let mut built: BTreeMap<usize, usize> = BTreeMap::new();
        for index in self.order() {
            let stage = &self.spec.stages[index];
            let Some(entry) = registry.get(&stage.op.name) else {
                let mut error = Error::user("unknown-operator", format!("unknown operator \"{}\"", stage.op.name));
                error.hint = did_you_mean(&stage.op.name, registry.iter().map(|entry| entry.name))
                    .or_else(|| Some("\"sluice ops\" lists the operators".into()));
                self.problem(stage.op.span, error);
                continue;
            };
            let config = self.config(stage, entry);
            let edges = self.edges(stage, entry, &built, &graph);
            let Some((config, operator)) = config else { continue };
            let shapes: BTreeMap<String, Shape> = edges
                .iter()
                .map(|(port, _, edge)| {
                    let shape = edge
                        .as_ref()
                        .and_then(|edge| graph.stages[edge.stage].bound.shape(&edge.output));
                    (port.clone(), shape.cloned().unwrap_or(Shape::Unknown))
                })
                .collect();
            let binding = Binding::new(data_root, &shapes);
            let bound = operator.bind(&binding);
            for problem in binding.into_problems() {
                let field = problem.field.as_ref().and_then(|field| {
                    let head = field.split('.').next().unwrap_or(field);
                    stage
                        .config
                        .iter()
                        .find(|(key, _)| key.name == head)
                        .map(|(_, node)| node.span)
                });
                let input = problem.input.as_ref().and_then(|input| {
                    edges
                        .iter()
                        .find(|(port, _, _)| port == input)
                        .map(|(_, span, _)| *span)
                });
                let mut error = problem.error;
                if let (Some(name), None) = (&problem.field, field) {
                    error = error.detail(format!("\"{name}\" has its default here"));
                }
                self.problem(field.or(input).unwrap_or(stage.name.span), error);
            }
            built.insert(index, graph.stages.len());
            graph.stages.push(Stage {
                name: stage.name.name.clone(),
                entry: Arc::new(entry.clone()),
                config,
                operator,
                inputs: edges.into_iter().filter_map(|(_, _, edge)| edge).collect(),
                bound,
            });
        }
        let show = self.spec.show.clone();
        for reference in &show {
            if let Some(edge) = self.resolve(String::new(), reference, &built, &graph) {
                graph.show.push((edge.stage, edge.output));
            }
        }
        graph
    }

    /// Stages in topological order, ties in the order of the file; stages on a cycle are reported and left out.
    fn order(&mut self) -> Vec<usize> {
        let stages = &self.spec.stages;
        let position: BTreeMap<&str, usize> = stages
            .iter()
            .enumerate()
            .map(|(index, stage)| (stage.name.name.as_str(), index))
            .collect();
        let reads = |index: usize| {
            stages[index]
                .inputs
                .iter()
                .filter_map(|(_, reference)| position.get(reference.stage.as_str()).copied())
        };
        let mut order = Vec::new();
        let mut placed = vec![false; stages.len()];
        while let Some(next) =
            (0..stages.len()).find(|&index| !placed[index] && reads(index).all(|upstream| placed[upstream]))
        {
            placed[next] = true;
            order.push(next);
        }
        if let Some(start) = placed.iter().position(|placed| !placed) {
            // Walk upstream among the unplaced until a stage comes again: that is a cycle.
            let mut path = vec![start];
            let cycle = loop {
                let last = *path.last().expect("a path has a start");
                let next = reads(last)
                    .find(|&upstream| !placed[upstream])
                    .expect("an unplaced stage reads one");
                if let Some(at) = path.iter().position(|&index| index == next) {
                    path.push(next);
                    break path.split_off(at);
                }
                path.push(next);
            };
            let names: Vec<&str> = cycle
                .iter()
                .rev()
                .map(|&index| stages[index].name.name.as_str())
                .collect();
            self.problem(
                stages[cycle[0]].name.span,
                Error::user(
                    "cycle",
                    format!("stages read each other in a circle: {}", names.join(" -> ")),
                )
                .hint("a stage can only read stages that do not depend on it"),
            );
        }
        order
    }

    fn config(&mut self, stage: &StageSpec, entry: &Entry) -> Option<(Map<String, Value>, Arc<dyn Instance>)> {
        let before = self.problems.len();
        let mut config = entry.defaults();
        let names = || entry.fields.iter().map(|field| field.name.as_str());
        for (key, node) in &stage.config {
            if !names().any(|name| name == key.name) {
                let mut error = Error::user(
                    "unknown-key",
                    format!(
                        "unknown key \"{}\" in stage \"{}\" ({})",
                        key.name, stage.name.name, entry.name
                    ),
                );
                error.hint = did_you_mean(&key.name, names());
                if error.hint.is_none() {
                    let known: Vec<&str> = names().chain(["op", "input", "inputs"]).collect();
                    error = error.detail(format!("it knows: {}", known.join(", ")));
                }
                self.problem(key.span, error);
                continue;
            }
            // Only this field differs from the defaults, so what fails to parse is this very value.
            let mut alone = entry.defaults();
            alone.insert(key.name.clone(), node.value());
            for field in entry
                .fields
                .iter()
                .filter(|field| field.default.is_none() && field.name != key.name)
            {
                alone.remove(&field.name);
            }
            if let Err(message) = entry.make(Value::Object(alone)) {
                let message = format!("bad value for \"{}\": {message}", key.name);
                self.problem(node.span, Error::user("bad-value", message));
                continue;
            }
            config.insert(key.name.clone(), node.value());
        }
        for field in entry.fields.iter().filter(|field| field.default.is_none()) {
            if !stage.config.iter().any(|(key, _)| key.name == field.name) {
                let error = Error::user(
                    "missing-key",
                    format!(
                        "stage \"{}\" ({}) wants \"{}\"",
                        stage.name.name, entry.name, field.name
                    ),
                );
                let first = field.about.lines().next().unwrap_or_default();
                self.problem(stage.name.span, error.hint(format!("{}: {first}", field.name)));
            }
        }
        if self.problems.len() > before {
            return None;
        }
        match entry.make(Value::Object(config.clone())) {
            Ok(operator) => Some((operator.config(), operator)),
            Err(message) => {
                self.problem(
                    stage.name.span,
                    Error::user("bad-value", format!("stage \"{}\": {message}", stage.name.name)),
                );
                None
            }
        }
    }

    /// Input ports with their spans; an edge that cannot be resolved is `None`, so that binding can go on.
    fn edges(
        &mut self,
        stage: &StageSpec,
        entry: &Entry,
        built: &BTreeMap<usize, usize>,
        graph: &Graph,
    ) -> Vec<(String, Span, Option<Edge>)> {
        let mut edges: Vec<(String, Span, Option<Edge>)> = Vec::new();
        let any = entry.inputs.iter().any(|input| input.name == ANY);
        let named: Vec<&str> = entry
            .inputs
            .iter()
            .map(|input| input.name)
            .filter(|name| *name != ANY)
            .collect();
        for (port, reference) in &stage.inputs {
            let span = port.as_ref().map_or(reference.span, |port| port.span);
            let name = match port {
                Some(port) if any || named.contains(&port.name.as_str()) => port.name.clone(),
                Some(port) => {
                    let mut error = Error::user(
                        "unknown-input",
                        format!(
                            "stage \"{}\" ({}) has no input \"{}\"",
                            stage.name.name, entry.name, port.name
                        ),
                    )
                    .detail(format!("it reads: {}", list(&named)));
                    error.hint = did_you_mean(&port.name, named.iter().copied());
                    self.problem(span, error);
                    continue;
                }
                None => {
                    let required: Vec<_> = entry.inputs.iter().filter(|input| input.required).collect();
                    match (required.as_slice(), named.as_slice()) {
                        ([only], _) if only.name != ANY => only.name.to_string(),
                        ([], [first, ..]) => first.to_string(),
                        _ => {
                            let error = Error::user(
                                "ambiguous-input",
                                format!(
                                    "\"{}\" reads {}, so \"input:\" does not say which",
                                    entry.name,
                                    list(&named)
                                ),
                            );
                            let hint = match named.first() {
                                Some(first) => format!("write inputs: {{ {first}: {} }}", reference.stage),
                                None if any => format!("name it: inputs: {{ NAME: {} }}", reference.stage),
                                None => "it is a source: remove the input".to_string(),
                            };
                            self.problem(span, error.hint(hint));
                            continue;
                        }
                    }
                }
            };
            if edges.iter().any(|(port, _, _)| *port == name) {
                self.problem(
                    span,
                    Error::user("duplicate-key", format!("input \"{name}\" is connected twice")),
                );
                continue;
            }
            let edge = self.resolve(name.clone(), reference, built, graph);
            edges.push((name, reference.span, edge));
        }
        for input in entry.inputs.iter().filter(|input| input.required) {
            let missing = if input.name == ANY {
                edges.is_empty()
            } else {
                !edges.iter().any(|(port, _, _)| port == input.name)
            };
            if missing
                && !stage
                    .inputs
                    .iter()
                    .any(|(port, _)| port.is_none() && entry.inputs.len() > 1)
            {
                self.problem(
                    stage.name.span,
                    Error::user(
                        "missing-input",
                        format!(
                            "stage \"{}\" ({}) wants input \"{}\"",
                            stage.name.name, entry.name, input.name
                        ),
                    )
                    .hint(format!("{}: {}", input.name, input.about)),
                );
            }
        }
        edges.sort_by(|a, b| a.0.cmp(&b.0));
        edges
    }

    fn resolve(
        &mut self,
        port: String,
        reference: &Reference,
        built: &BTreeMap<usize, usize>,
        graph: &Graph,
    ) -> Option<Edge> {
        let stages = &self.spec.stages;
        let Some(index) = stages.iter().position(|stage| stage.name.name == reference.stage) else {
            let mut error = Error::user("unknown-stage", format!("unknown stage \"{}\"", reference.stage));
            error.hint = did_you_mean(&reference.stage, stages.iter().map(|stage| stage.name.name.as_str()));
            self.problem(reference.span, error);
            return None;
        };
        // A stage that failed to build was reported where it failed.
        let stage = *built.get(&index)?;
        let outputs = &graph.stages[stage].bound.outputs;
        let output = match &reference.port {
            Some(name) if outputs.iter().any(|(output, _)| output == name) => name.clone(),
            Some(name) if !outputs.is_empty() => {
                let names: Vec<&str> = outputs.iter().map(|(output, _)| output.as_str()).collect();
                let mut error = Error::user(
                    "unknown-port",
                    format!("stage \"{}\" has no output \"{name}\"", reference.stage),
                )
                .detail(format!("it has: {}", list(&names)));
                error.hint = did_you_mean(name, names);
                self.problem(reference.span, error);
                return None;
            }
            _ => outputs.first()?.0.clone(),
        };
        Some(Edge { port, stage, output })
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        "nothing".to_string()
    } else {
        names.join(", ")
    }
}
