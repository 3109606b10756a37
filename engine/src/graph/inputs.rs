//! Which instances of which stages an input means, and the stage between where it gathers them.

use std::sync::Arc;

use super::{ANY, Builder, Edge, Stage};
use crate::error::{Error, did_you_mean};
use crate::gather::Gather;
use crate::operator::{Entry, OUT};
use crate::slots::Slots;
use crate::spec::{Reference, StageSpec};
use crate::sweep::{Point, text};
use crate::yaml::{Key, Span};

impl Builder<'_> {
    /// Input ports with their spans; an edge that cannot be resolved is `None`, so that binding can go on.
    pub(super) fn edges(
        &mut self,
        stage: &StageSpec,
        entry: &Entry,
        point: &Point,
    ) -> Vec<(String, Span, Option<Edge>)> {
        let mut edges: Vec<(String, Span, Option<Edge>)> = Vec::new();
        let any = entry.inputs.iter().any(|input| input.name == ANY);
        let named: Vec<&str> = entry
            .inputs
            .iter()
            .map(|input| input.name)
            .filter(|name| *name != ANY)
            .collect();
        // The stage that a test stands in comes last: it may be connected by the name of the port.
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
                let stands_in = port.is_none() && stage.of.as_ref() == Some(&reference.stage);
                if stands_in && reference.span == stage.name.span {
                    continue;
                }
                self.problem(
                    span,
                    Error::user("duplicate-key", format!("input \"{name}\" is connected twice")),
                );
                continue;
            }
            let edge = self.resolve(name.clone(), reference, point);
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

    /// The edge that a stage at `point` reads: the instance that agrees with it, or the gathered instances.
    fn resolve(&mut self, port: String, reference: &Reference, point: &Point) -> Option<Edge> {
        let (stage, output) = match reference.select.gathers() {
            true => (self.gathered(reference, point)?, OUT.to_string()),
            false => {
                let found = self.instances(reference, point)?;
                let stage = *found.first()?;
                (stage, self.output(reference, stage)?)
            }
        };
        Some(Edge { port, stage, output })
    }

    /// Tables under `show:`: every instance, or the gathered ones.
    pub(super) fn shown(&mut self, reference: &Reference) -> Vec<(usize, String)> {
        if reference.select.gathers() {
            let gathered = self.gathered(reference, &Vec::new());
            return gathered.map(|stage| (stage, OUT.to_string())).into_iter().collect();
        }
        let found = self.instances(reference, &Vec::new()).unwrap_or_default();
        found
            .into_iter()
            .filter_map(|stage| Some((stage, self.output(reference, stage)?)))
            .collect()
    }

    /// Instances of the stage a reference names that agree with it and with `point`. `None` if that was reported.
    fn instances(&mut self, reference: &Reference, point: &Point) -> Option<Vec<usize>> {
        let Some(&read) = self.position.get(reference.stage.as_str()) else {
            let mut error = Error::user("unknown-stage", format!("unknown stage \"{}\"", reference.stage));
            error.hint = did_you_mean(&reference.stage, self.position.keys().copied());
            self.problem(reference.span, error);
            return None;
        };
        let sweep = &self.spec.sweep;
        let mut wanted: Point = Vec::new();
        for (name, value) in &reference.select.axes {
            let axis = sweep.axis(name).filter(|axis| self.built[read].axes.contains(axis));
            let Some(axis) = axis else {
                let axes = self.built[read]
                    .axes
                    .iter()
                    .map(|axis| sweep.axes[*axis].name.name.as_str());
                let axes: Vec<&str> = axes.collect();
                let message = format!("axis \"{name}\" does not reach stage \"{}\"", reference.stage);
                let mut error = Error::user("unknown-axis", message).detail(format!("these do: {}", list(&axes)));
                error.hint = did_you_mean(name, axes);
                self.problem(reference.span, error);
                return None;
            };
            let Some(value) = value else { continue };
            let values = &sweep.axes[axis].values;
            let Some(index) = values.iter().position(|known| text(&known.label) == *value) else {
                let labels: Vec<String> = values.iter().map(|value| text(&value.label)).collect();
                let mut error = Error::user("unknown-value", format!("axis \"{name}\" has no value {value}"))
                    .detail(format!("it has: {}", labels.join(", ")));
                error.hint = did_you_mean(value, labels.iter().map(String::as_str));
                self.problem(reference.span, error);
                return None;
            };
            wanted.push((axis, index));
        }
        let gathers = |axis: usize| {
            let name = &sweep.axes[axis].name.name;
            let named = |(wanted, value): &(String, Option<String>)| wanted == name && value.is_none();
            reference.select.all || reference.select.axes.iter().any(named)
        };
        let follows = point
            .iter()
            .filter(|(axis, _)| !gathers(*axis) && !wanted.iter().any(|(known, _)| known == axis));
        let all: Point = wanted.iter().chain(follows).copied().collect();
        let agrees = |instance: &Point| {
            all.iter()
                .all(|(axis, value)| instance.iter().all(|(known, other)| known != axis || other == value))
        };
        let found: Vec<Option<usize>> = self.built[read]
            .instances
            .iter()
            .filter(|(instance, _)| agrees(instance))
            .map(|(_, stage)| *stage)
            .collect();
        if found.is_empty() && !self.built[read].instances.is_empty() {
            let message = format!("no instance of stage \"{}\" is like that", reference.stage);
            let hint = "the sweep leaves that combination out; add it under \"include:\"";
            self.problem(reference.span, Error::user("no-instance", message).hint(hint));
        }
        // Instances that failed to build were reported where they failed.
        found
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .filter(|found| !found.is_empty())
    }

    /// The output port that a reference means.
    fn output(&mut self, reference: &Reference, stage: usize) -> Option<String> {
        let outputs = &self.graph.stages[stage].bound.outputs;
        match &reference.port {
            Some(name) if outputs.iter().any(|(output, _)| output == name) => Some(name.clone()),
            Some(name) if !outputs.is_empty() => {
                let names: Vec<String> = outputs.iter().map(|(output, _)| output.clone()).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let message = format!("stage \"{}\" has no output \"{name}\"", reference.stage);
                let mut error = Error::user("unknown-port", message).detail(format!("it has: {}", list(&names)));
                error.hint = did_you_mean(name, names);
                self.problem(reference.span, error);
                None
            }
            _ => outputs.first().map(|(output, _)| output.clone()),
        }
    }

    /// The stage that gathers the instances a reference means into one table with the axis values as columns.
    fn gathered(&mut self, reference: &Reference, point: &Point) -> Option<usize> {
        let found = self.instances(reference, point)?;
        let output = self.output(reference, found[0])?;
        let first = &self.graph.stages[found[0]];
        let fixed: Vec<String> = first
            .point
            .iter()
            .map(|(axis, value)| {
                let same = found
                    .iter()
                    .all(|stage| self.graph.stages[*stage].point.contains(&(axis.clone(), value.clone())));
                match same && found.len() > 1 {
                    true => format!("{axis}={}", text(value)),
                    false => format!("{axis}=*"),
                }
            })
            .collect();
        let selection = match fixed.iter().all(|axis| axis.ends_with("=*")) {
            true => "*".to_string(),
            false => fixed.join(","),
        };
        let port = reference
            .port
            .as_ref()
            .map(|port| format!(".{port}"))
            .unwrap_or_default();
        let name = format!("{}{port}[{selection}]", reference.stage);
        if let Some(stage) = self.graph.stage(&name) {
            return Some(stage);
        }
        let points = found
            .iter()
            .map(|stage| self.graph.stages[*stage].point.clone())
            .collect();
        let gather = Gather::over(points);
        let edges: Vec<(String, Span, Option<Edge>)> = found
            .iter()
            .enumerate()
            .map(|(index, stage)| {
                let edge = Edge {
                    port: Gather::port(index),
                    stage: *stage,
                    output: output.clone(),
                };
                (edge.port.clone(), reference.span, Some(edge))
            })
            .collect();
        let entry = Gather::entry();
        let operator = gather.instance();
        let written = StageSpec {
            name: Key {
                span: reference.span,
                name: name.clone(),
            },
            op: Key {
                span: reference.span,
                name: entry.name.to_string(),
            },
            of: None,
            inputs: Vec::new(),
            config: Vec::new(),
        };
        let bound = self.bind(&written, &operator, &edges);
        self.graph.stages.push(Stage {
            base: name.clone(),
            name,
            point: Vec::new(),
            seed: self.spec.seed,
            slots: Slots::default(),
            entry: Arc::new(entry),
            config: operator.config(),
            operator,
            inputs: edges.into_iter().filter_map(|(_, _, edge)| edge).collect(),
            after: Vec::new(),
            tests: None,
            bound,
        });
        Some(self.graph.stages.len() - 1)
    }

    /// The instances of the stage that a test stands in that agree with the test's own point.
    pub(super) fn tested(&self, of: &str, point: &Point) -> Vec<usize> {
        let Some(&at) = self.position.get(of) else {
            return Vec::new();
        };
        let agrees = |instance: &Point| {
            point
                .iter()
                .all(|(axis, value)| instance.iter().all(|(known, other)| known != axis || other == value))
        };
        let instances = self.built[at].instances.iter();
        instances
            .filter(|(instance, _)| agrees(instance))
            .filter_map(|(_, stage)| *stage)
            .collect()
    }

    /// Tests that a stage with these edges waits for: those of all stages that it reads, also through gathered tables.
    pub(super) fn gates(&self, edges: &[Edge]) -> Vec<usize> {
        let mut read: Vec<usize> = Vec::new();
        for edge in edges {
            let stage = &self.graph.stages[edge.stage];
            match stage.entry.name == Gather::ENTRY {
                true => read.extend(stage.inputs.iter().map(|edge| edge.stage)),
                false => read.push(edge.stage),
            }
        }
        let tests = self.graph.stages.iter().enumerate();
        tests
            .filter(|(_, stage)| {
                stage
                    .tests
                    .as_ref()
                    .is_some_and(|tests| tests.instances.iter().any(|of| read.contains(of)))
            })
            .map(|(index, _)| index)
            .collect()
    }
}

fn list(names: &[&str]) -> String {
    if names.is_empty() {
        "nothing".to_string()
    } else {
        names.join(", ")
    }
}
