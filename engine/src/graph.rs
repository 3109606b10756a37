//! The checked pipeline: every stage with its operator, full config, edges and bound shapes, in topological order.

mod inputs;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, did_you_mean};
use crate::gather::Gather;
use crate::operator::{Binding, Bound, Distribution, Entry, Facts, Instance, Registry};
use crate::slots::Slots;
use crate::spec::{Reference, Select, Spec, StageSpec};
use crate::sweep::{Point, Target, text};
use crate::table::Shape;
use crate::yaml::{Node, Span};

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
    /// What the sweep is, if there is one.
    pub sweep: Option<Extent>,
}

/// How large a sweep is, and what its axes reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Points of the sweep.
    pub trials: usize,
    /// Stages there would be if every trial were a pipeline of its own.
    pub instances: usize,
    /// Stages as written that an axis reaches, by axis.
    pub reach: Vec<(String, Vec<String>)>,
}

/// A checked stage.
#[derive(Clone)]
pub struct Stage {
    /// Its name: `tiger`, or `tiger[size=13m,seed=2]` where axes of a sweep reach it.
    pub name: String,
    /// The stage as written.
    pub base: String,
    /// Axes that reach it, with its values.
    pub point: Vec<(String, Value)>,
    /// The seed that its random numbers come from.
    pub seed: u64,
    /// What of the machine it takes while it runs; not part of the key.
    pub slots: Slots,
    /// What the registry knows of its operator.
    pub entry: Arc<Entry>,
    /// The full config, defaults filled in.
    pub config: Map<String, Value>,
    /// The operator with its config.
    pub operator: Arc<dyn Instance>,
    /// What it reads, in order of ports.
    pub inputs: Vec<Edge>,
    /// Tests of what it reads: it waits until they are passed.
    pub after: Vec<usize>,
    /// What it tests, if it is a test.
    pub tests: Option<Tested>,
    /// What it declared.
    pub bound: Bound,
}

/// What a test is about: while it is not passed, nothing that reads these stages runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tested {
    /// The stage as written.
    pub stage: String,
    /// Its instances that are tested here.
    pub instances: Vec<usize>,
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
        let keyed = |name: &str, value: &Value| {
            let mut fields = self.entry.fields.iter().filter(|field| field.name == name);
            fields.all(|field| field.is_keyed(value))
        };
        self.config
            .iter()
            .filter(|(name, value)| keyed(name, value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// How many rows fail, if it is a test: those of its first output, by what it left.
    pub fn failing(&self, rows: &BTreeMap<String, u64>) -> u64 {
        match (&self.tests, self.bound.outputs.first()) {
            (Some(_), Some((port, _))) => rows.get(port).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// Stages that must be done before it: those that it reads, and the tests of these.
    pub fn needs(&self) -> impl Iterator<Item = usize> {
        self.inputs
            .iter()
            .map(|edge| edge.stage)
            .chain(self.after.iter().copied())
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
            registry,
            data_root,
            problems: Vec::new(),
            position: spec
                .stages
                .iter()
                .enumerate()
                .map(|(index, template)| (template.name.name.as_str(), index))
                .collect(),
            graph: Graph {
                pipeline: spec.pipeline.clone(),
                seed: spec.seed,
                stages: Vec::new(),
                show: Vec::new(),
                sweep: None,
            },
            built: vec![Built::default(); spec.stages.len()],
        };
        builder.stages();
        if builder.problems.is_empty() {
            Ok(builder.graph)
        } else {
            Err(builder.problems)
        }
    }

    /// The stage of that name.
    pub fn stage(&self, name: &str) -> Option<usize> {
        self.stages.iter().position(|stage| stage.name == name)
    }

    /// The stages that a text such as `tiger`, `tiger[size=13m]` or `metrics[*]` means: one by its full name, or every
    /// instance that agrees with the values named.
    pub fn find(&self, name: &str) -> Result<Vec<usize>, Error> {
        if let Some(index) = self.stage(name) {
            return Ok(vec![index]);
        }
        let reference = Reference::parse(name, Span::default())?;
        let instances: Vec<usize> = (0..self.stages.len())
            .filter(|index| self.stages[*index].base == reference.stage)
            .collect();
        let agrees = |index: &usize| {
            reference.select.axes.iter().all(|(axis, wanted)| {
                let value = self.stages[*index].point.iter().find(|(name, _)| name == axis);
                value.is_some_and(|(_, value)| wanted.as_ref().is_none_or(|wanted| text(value) == *wanted))
            })
        };
        let found: Vec<usize> = instances.iter().copied().filter(agrees).collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let names = match instances.is_empty() {
            true => self.stages.iter().map(|stage| stage.base.as_str()).collect(),
            false => instances
                .iter()
                .map(|index| self.stages[*index].name.as_str())
                .collect::<Vec<_>>(),
        };
        let mut error = Error::user("unknown-stage", format!("unknown stage \"{name}\""));
        error.hint = did_you_mean(name, names.iter().copied());
        if !instances.is_empty() {
            let some: Vec<&str> = names.into_iter().take(12).collect();
            error = error.detail(format!("its instances: {}", some.join(", ")));
        }
        Err(error)
    }

    /// For every stage the stages that read it or, of a test, wait for it.
    pub fn readers(&self) -> Vec<Vec<usize>> {
        let mut readers = vec![Vec::new(); self.stages.len()];
        for (index, stage) in self.stages.iter().enumerate() {
            for above in stage.needs() {
                if readers[above].last() != Some(&index) {
                    readers[above].push(index);
                }
            }
        }
        readers
    }
}

/// What has become of a stage as written.
#[derive(Clone, Default)]
struct Built {
    /// Axes that reach it, in order.
    axes: Vec<usize>,
    /// Its instances by point; `None` where one could not be built, which was reported.
    instances: BTreeMap<Point, Option<usize>>,
    /// Whether something above it gathers instances.
    gathered: bool,
}

/// A stage's config as the pipeline says it, and the keys that every stage may have.
struct Config {
    full: Map<String, Value>,
    operator: Arc<dyn Instance>,
    seed: Option<u64>,
    slots: Slots,
}

struct Builder<'a> {
    spec: &'a Spec,
    registry: &'a Registry,
    data_root: &'a Path,
    problems: Vec<Error>,
    /// Index of a stage as written by name.
    position: BTreeMap<&'a str, usize>,
    graph: Graph,
    built: Vec<Built>,
}

impl<'a> Builder<'a> {
    fn problem(&mut self, span: Span, error: Error) {
        let error = error.at(self.spec.place(span));
        // Instances of one stage have their problems in common.
        if !self.problems.contains(&error) {
            self.problems.push(error);
        }
    }

    fn stages(&mut self) {
        for index in self.order() {
            self.template(index);
        }
        for reference in &self.spec.show {
            for (stage, output) in self.shown(reference) {
                self.graph.show.push((stage, output));
            }
        }
        if !self.spec.sweep.axes.is_empty() {
            let trials = self.spec.sweep.points.len();
            let reach = |axis: usize| {
                let reached = (0..self.built.len()).filter(|index| self.built[*index].axes.contains(&axis));
                reached.map(|index| self.spec.stages[index].name.name.clone()).collect()
            };
            let axes = self.spec.sweep.axes.iter().enumerate();
            let gathers = self
                .graph
                .stages
                .iter()
                .filter(|stage| stage.entry.name == Gather::ENTRY);
            self.graph.sweep = Some(Extent {
                trials,
                instances: gathers.count()
                    + self
                        .built
                        .iter()
                        .map(|built| match built.gathered {
                            true => built.instances.len(),
                            false => trials,
                        })
                        .sum::<usize>(),
                reach: axes
                    .map(|(index, axis)| (axis.name.name.clone(), reach(index)))
                    .collect(),
            });
        }
    }

    /// Builds every instance of a stage as written.
    fn template(&mut self, index: usize) {
        let spec = self.spec;
        let template = &spec.stages[index];
        let mut configs: Vec<Option<Config>> = Vec::new();
        let mut axes: BTreeSet<usize> = template.axes.iter().copied().collect();
        let mut gathered = false;
        for (_, stage) in &template.variants {
            configs.push(self.config(stage));
            for (_, reference) in &stage.inputs {
                let Some(&read) = self.position.get(reference.stage.as_str()) else {
                    continue;
                };
                gathered |= reference.select.gathers() || self.built[read].gathered;
                axes.extend(self.followed(read, &reference.select));
            }
        }
        // The seed of the run reaches what draws random numbers and has no seed of its own.
        let draws = configs
            .iter()
            .flatten()
            .any(|config| config.seed.is_none() && config.operator.seeded());
        if draws {
            axes.extend(
                (0..spec.sweep.axes.len()).filter(|axis| spec.sweep.sets(*axis, |target| *target == Target::Seed)),
            );
        }
        let axes: Vec<usize> = axes.into_iter().collect();
        let mut built = Built {
            axes: axes.clone(),
            instances: BTreeMap::new(),
            gathered,
        };
        for point in spec.sweep.project(&axes) {
            let own: Point = point
                .iter()
                .copied()
                .filter(|(axis, _)| template.axes.contains(axis))
                .collect();
            let variant = template.variants.iter().position(|(variant, _)| *variant == own);
            let instance = variant.and_then(|variant| {
                let config = configs[variant].as_ref();
                self.instance(&template.variants[variant].1, config, &point)
            });
            built.instances.insert(point, instance);
        }
        self.built[index] = built;
    }

    /// Axes of a stage that whoever reads it by `select` shares.
    fn followed(&self, read: usize, select: &Select) -> Vec<usize> {
        let named = |axis: usize| {
            let name = &self.spec.sweep.axes[axis].name.name;
            select.all || select.axes.iter().any(|(wanted, _)| wanted == name)
        };
        self.built[read]
            .axes
            .iter()
            .copied()
            .filter(|axis| !named(*axis))
            .collect()
    }

    fn instance(&mut self, stage: &StageSpec, config: Option<&Config>, point: &Point) -> Option<usize> {
        let entry = self.entry(stage)?;
        let edges = self.edges(stage, entry, point);
        let config = config?;
        let mut seed = config.seed.unwrap_or(self.spec.seed);
        for (_, value) in self
            .spec
            .sweep
            .settings(point)
            .filter(|(target, _)| *target == Target::Seed && config.seed.is_none())
        {
            match value.value().as_u64() {
                Some(value) => seed = value,
                None => self.problem(
                    value.span,
                    Error::user("bad-value", "a seed is a whole number, 0 or more"),
                ),
            }
        }
        let bound = self.bind(stage, &config.operator, &edges);
        let sweep = &self.spec.sweep;
        let labels = point
            .iter()
            .map(|at| (sweep.axes[at.0].name.name.clone(), sweep.label(*at).clone()));
        let inputs: Vec<Edge> = edges.into_iter().filter_map(|(_, _, edge)| edge).collect();
        // Tests wait for no other tests, so that two stages may be tested against each other.
        let (tests, after) = match &stage.of {
            Some(of) => {
                let instances = self.tested(of, point);
                let stage = of.clone();
                (Some(Tested { stage, instances }), Vec::new())
            }
            None => (None, self.gates(&inputs)),
        };
        self.graph.stages.push(Stage {
            name: format!("{}{}", stage.name.name, sweep.suffix(point)),
            base: stage.name.name.clone(),
            point: labels.collect(),
            seed,
            slots: config.slots.clone(),
            entry: Arc::new(entry.clone()),
            config: config.full.clone(),
            operator: config.operator.clone(),
            inputs,
            after,
            tests,
            bound,
        });
        Some(self.graph.stages.len() - 1)
    }

    /// What the registry knows of a stage's operator.
    fn entry(&self, stage: &StageSpec) -> Option<&'a Entry> {
        match &stage.of {
            Some(_) => self.registry.tests(),
            None => self.registry.get(&stage.op.name),
        }
    }

    fn bind(
        &mut self,
        stage: &StageSpec,
        operator: &Arc<dyn Instance>,
        edges: &[(String, Span, Option<Edge>)],
    ) -> Bound {
        let shapes: BTreeMap<String, Shape> = edges
            .iter()
            .map(|(port, _, edge)| {
                let shape = edge
                    .as_ref()
                    .and_then(|edge| self.graph.stages[edge.stage].bound.shape(&edge.output));
                (port.clone(), shape.cloned().unwrap_or(Shape::Unknown))
            })
            .collect();
        let known = edges.iter().filter_map(|(port, _, edge)| Some((port, edge.as_ref()?)));
        let facts: BTreeMap<String, Facts> = known
            .map(|(port, edge)| (port.clone(), self.graph.stages[edge.stage].bound.facts.clone()))
            .collect();
        let binding = Binding::new(self.data_root, &shapes).with_facts(facts.clone());
        let mut bound = operator.bind(&binding);
        bound.inherit(&facts);
        for problem in binding.into_problems() {
            let field = problem.field.as_ref().and_then(|field| {
                let head = field.split('.').next().unwrap_or(field);
                let found = stage.config.iter().find(|(key, _)| key.name == head);
                found.map(|(_, node)| node.span)
            });
            let input = problem.input.as_ref().and_then(|input| {
                let found = edges.iter().find(|(port, _, _)| port == input);
                found.map(|(_, span, _)| *span)
            });
            let mut error = problem.error;
            if let (Some(name), None) = (&problem.field, field) {
                error = error.detail(format!("\"{name}\" has its default here"));
            }
            self.problem(field.or(input).unwrap_or(stage.name.span), error);
        }
        bound
    }

    /// Stages as written in topological order, ties in the order of the file; those on a cycle are reported and left
    /// out.
    fn order(&mut self) -> Vec<usize> {
        let stages = &self.spec.stages;
        let place = |name: &str| self.position.get(name).copied();
        let mut tests: Vec<Vec<usize>> = vec![Vec::new(); stages.len()];
        for (index, template) in stages.iter().enumerate() {
            if let Some(of) = template.of.as_deref().and_then(place) {
                tests[of].push(index);
            }
        }
        let reads: Vec<Vec<usize>> = stages
            .iter()
            .map(|template| {
                let inputs = template.variants.iter().flat_map(|(_, stage)| &stage.inputs);
                let mut reads: Vec<usize> = inputs
                    .filter_map(|(_, reference)| place(reference.stage.as_str()))
                    .collect();
                match template.of.as_deref() {
                    Some(of) => reads.extend(place(of)),
                    None => reads.extend(reads.clone().iter().flat_map(|read| &tests[*read])),
                }
                reads
            })
            .collect();
        let mut order = Vec::new();
        let mut placed = vec![false; stages.len()];
        while let Some(next) =
            (0..stages.len()).find(|&index| !placed[index] && reads[index].iter().all(|&upstream| placed[upstream]))
        {
            placed[next] = true;
            order.push(next);
        }
        if let Some(start) = placed.iter().position(|placed| !placed) {
            // Walk upstream among the unplaced until a stage comes again: that is a cycle.
            let mut path = vec![start];
            let cycle = loop {
                let last = *path.last().expect("a path has a start");
                let next = *reads[last]
                    .iter()
                    .find(|&&upstream| !placed[upstream])
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
                .hint(match cycle.iter().any(|&index| stages[index].of.is_some()) {
                    true => "a test can only read what does not wait for it: the stage itself and what is above it",
                    false => "a stage can only read stages that do not depend on it",
                }),
            );
        }
        order
    }

    fn config(&mut self, stage: &StageSpec) -> Option<Config> {
        let Some(entry) = self.entry(stage) else {
            if let Some(of) = &stage.of {
                let message = format!("stage \"{of}\" has tests, and no operator here runs them");
                self.problem(stage.name.span, Error::user("no-tests", message));
                return None;
            }
            let mut error = Error::user("unknown-operator", format!("unknown operator \"{}\"", stage.op.name));
            error.hint = did_you_mean(&stage.op.name, self.registry.iter().map(|entry| entry.name))
                .or_else(|| Some("\"sluice ops\" lists the operators".into()));
            self.problem(stage.op.span, error);
            return None;
        };
        let before = self.problems.len();
        let mut config = entry.defaults();
        let mut seed = None;
        let mut slots = Slots::default();
        let names = || entry.fields.iter().map(|field| field.name.as_str());
        for (key, node) in &stage.config {
            match (key.name.as_str(), names().any(|name| name == key.name)) {
                ("seed", false) => {
                    seed = node.value().as_u64();
                    if seed.is_none() {
                        let error = Error::user("bad-value", "\"seed\" wants a whole number, 0 or more");
                        self.problem(node.span, error);
                    }
                    continue;
                }
                ("resources", false) => {
                    slots = self.slots(node).unwrap_or_default();
                    continue;
                }
                _ => {}
            }
            if !names().any(|name| name == key.name) {
                let mut error = Error::user(
                    "unknown-key",
                    match &stage.of {
                        Some(of) => format!("unknown test \"{}\" of stage \"{of}\"", key.name),
                        None => format!(
                            "unknown key \"{}\" in stage \"{}\" ({})",
                            key.name, stage.name.name, entry.name
                        ),
                    },
                );
                error.hint = did_you_mean(&key.name, names());
                if error.hint.is_none() {
                    let first = if stage.of.is_some() { "name" } else { "op" };
                    let known: Vec<&str> = names().chain([first, "input", "inputs", "seed", "resources"]).collect();
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
            Ok(operator) => Some(Config {
                full: operator.config(),
                operator,
                seed,
                slots,
            }),
            Err(message) => {
                self.problem(
                    stage.name.span,
                    Error::user("bad-value", format!("stage \"{}\": {message}", stage.name.name)),
                );
                None
            }
        }
    }

    /// `resources: { cpus: 2, memory: 8G, gpus: 1 }`.
    fn slots(&mut self, node: &Node) -> Option<Slots> {
        match Slots::parse(&node.value()) {
            Ok(slots) => Some(slots),
            Err(error) => {
                self.problem(node.span, error);
                None
            }
        }
    }
}
