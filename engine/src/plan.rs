//! What a run will do, and because of what. Pure: a function of the graph, of what the store remembers, and of what the
//! user asked for.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::Error;
use crate::graph::{Edge, Graph, Stage};
use crate::key::{Preimage, Reason, canonical, differences, digest};
use crate::store::KeyRecord;

/// What will be done with a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Its artifacts are there.
    Reuse,
    /// It runs.
    Run,
    /// Something above it runs; it runs too unless its inputs come out as they were at some earlier time.
    RunUnlessEqual,
    /// Its old artifacts are kept although the operator's version moved.
    Accept,
    /// The user left it out.
    Skip,
}

/// What the user asked for, by index of stage.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// These run whatever the store holds.
    pub force: BTreeSet<usize>,
    /// The artifacts of these are kept although the operator's version moved.
    pub accept: BTreeSet<usize>,
    /// Only these may run; `None` for all.
    pub scope: Option<BTreeSet<usize>>,
    /// Tests that come along with the stages that they test: left out where something else that they read is not there.
    pub along: BTreeSet<usize>,
}

impl Selection {
    /// Limits what may run: to `until` and what it needs, to `from` and what depends on it, to `only` these. Given
    /// together, to what they have in common. Tests come along with the stages that they test.
    pub fn limit(&mut self, graph: &Graph, until: &[usize], from: &[usize], only: &[usize]) {
        let mut scope: Option<BTreeSet<usize>> = None;
        let mut meet = |set: BTreeSet<usize>| {
            scope = Some(match scope.take() {
                Some(scope) => scope.intersection(&set).copied().collect(),
                None => set,
            });
        };
        if !until.is_empty() {
            let mut set: BTreeSet<usize> = until.iter().copied().collect();
            // A test may need what nothing else here needs, so once is not enough.
            loop {
                let before = set.len();
                set.extend(tests_of(graph, &set));
                for (index, stage) in graph.stages.iter().enumerate().rev() {
                    if set.contains(&index) {
                        set.extend(stage.needs());
                    }
                }
                if set.len() == before {
                    break;
                }
            }
            meet(set);
        }
        if !from.is_empty() {
            let mut set: BTreeSet<usize> = from.iter().copied().collect();
            for (index, stage) in graph.stages.iter().enumerate() {
                let tests = stage.tests.iter().flat_map(|tests| tests.instances.iter().copied());
                if stage.needs().chain(tests).any(|above| set.contains(&above)) {
                    set.insert(index);
                }
            }
            meet(set);
        }
        if !only.is_empty() {
            let mut set: BTreeSet<usize> = only.iter().copied().collect();
            let tests = tests_of(graph, &set);
            self.along.extend(tests.difference(&set));
            set.extend(tests);
            meet(set);
        }
        self.scope = scope;
    }
}

/// The tests of these stages.
fn tests_of(graph: &Graph, stages: &BTreeSet<usize>) -> BTreeSet<usize> {
    let tests = graph.stages.iter().enumerate();
    tests
        .filter(|(_, stage)| {
            let tested = stage.tests.iter().flat_map(|tests| &tests.instances);
            tested.into_iter().any(|index| stages.contains(index))
        })
        .map(|(index, _)| index)
        .collect()
}

/// A plan.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Name of the pipeline.
    pub pipeline: String,
    /// Stages in topological order.
    pub stages: Vec<Planned>,
}

/// What will be done with a stage, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Planned {
    /// The stage.
    pub stage: String,
    /// The stage as written.
    pub base: String,
    /// Values of the axes that reach it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub point: BTreeMap<String, Value>,
    /// Its operator.
    pub operator: String,
    /// Stages it reads.
    pub reads: Vec<String>,
    /// What will be done.
    pub action: Action,
    /// Whether it runs because someone asked for it.
    pub forced: bool,
    /// Because of what.
    pub because: Vec<Reason>,
    /// The key, where it is known before the run.
    pub key: Option<String>,
    /// Digests of its outputs, where they are known before the run.
    pub outputs: BTreeMap<String, String>,
    /// Rows of its outputs, where they are known before the run.
    pub rows: BTreeMap<String, u64>,
    /// What it cost, if that is known.
    pub cost: Option<Cost>,
    /// What it is, known before any input is: of two stages with one recipe only one has to run.
    pub recipe: String,
    /// The pre-image without inputs.
    #[serde(skip)]
    pub alone: Preimage,
    /// The record to keep, for [`Action::Accept`].
    #[serde(skip)]
    pub accepted: Option<Box<KeyRecord>>,
}

/// What a stage costs, as far as history tells.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Bytes of all outputs.
    pub bytes: u64,
    /// Whether it is that of this very stage; else the mean over instances or stages of the same kind.
    pub own: bool,
}

/// What the store remembers.
pub trait Memory {
    /// The record of a key, if its artifacts are there.
    fn record(&self, key: &str) -> Option<KeyRecord>;
    /// The record of a key, even if its artifacts are gone.
    fn known(&self, key: &str) -> Option<KeyRecord>;
    /// Whether some key has this pre-image apart from its inputs.
    fn has_static(&self, preimage: &Preimage) -> bool;
    /// What the stage of that name was the last time, even if its artifacts are gone.
    fn last(&self, stage: &str) -> Option<KeyRecord>;
    /// What stages like this one cost: instances of the same stage, else stages with the same operator.
    fn cost_of_kind(&self, base: &str, operator: &str) -> Option<Cost>;
    /// Content digests of the files outside the store that a stage declared, by the path as declared.
    fn files(&self, stage: &Stage) -> BTreeMap<String, String>;
}

/// Plans a run. It is an error if the scope leaves out what it needs, or if a stage cannot be accepted as it is.
pub fn plan(graph: &Graph, memory: &dyn Memory, selection: &Selection) -> Result<Plan, Vec<Error>> {
    let mut stages: Vec<Planned> = Vec::new();
    // Tests known to fail that a stage is behind.
    let mut behind: Vec<BTreeSet<usize>> = Vec::new();
    let mut problems = Vec::new();
    for (index, stage) in graph.stages.iter().enumerate() {
        let alone = Preimage::without_inputs(stage, memory.files(stage));
        let last = std::cell::LazyCell::new(|| memory.last(&stage.name));
        let in_scope = selection.scope.as_ref().is_none_or(|scope| scope.contains(&index));
        let mut planned = Planned {
            stage: stage.name.clone(),
            base: stage.base.clone(),
            point: stage.point.iter().cloned().collect(),
            operator: stage.entry.name.to_string(),
            reads: reads(graph, stage),
            action: Action::Run,
            forced: in_scope && selection.force.contains(&index),
            because: Vec::new(),
            key: None,
            outputs: BTreeMap::new(),
            rows: BTreeMap::new(),
            cost: None,
            recipe: recipe(stage, &alone, &stages),
            alone,
            accepted: None,
        };
        match inputs_of(stage, |index| &stages[index].outputs) {
            Some(inputs) => {
                let preimage = Preimage {
                    inputs,
                    ..planned.alone.clone()
                };
                let key = preimage.key();
                let record = memory.record(&key);
                match record {
                    _ if planned.forced => planned.because.push(Reason::Forced),
                    Some(record) => planned.reuse(record),
                    None if selection.accept.contains(&index) => {
                        match acceptable((*last).as_ref(), &preimage, memory) {
                            Ok(record) => planned.accept(record, &preimage),
                            Err(error) => problems.push(error.detail(format!("--accept {}", stage.name))),
                        }
                    }
                    None => {
                        planned.because = match memory.known(&key) {
                            Some(_) => vec![Reason::Missing],
                            None => reasons((*last).as_ref(), &preimage),
                        };
                    }
                }
                planned.key = Some(key);
            }
            None => {
                let above = stage
                    .inputs
                    .iter()
                    .map(|edge| &stages[edge.stage])
                    .filter(|read| read.outputs.is_empty())
                    .map(|read| read.stage.clone());
                let above: BTreeSet<String> = above.collect();
                let known = (*last).as_ref().map(|record| Preimage {
                    inputs: record.preimage.inputs.clone(),
                    ..planned.alone.clone()
                });
                planned.because = match (&*last, &known) {
                    _ if planned.forced => vec![Reason::Forced],
                    (Some(record), Some(known)) => differences(&record.preimage, known),
                    _ => vec![Reason::NeverRan],
                };
                if memory.has_static(&planned.alone) && !planned.forced {
                    planned.action = Action::RunUnlessEqual;
                }
                planned.because.push(Reason::MayChange {
                    stages: above.into_iter().collect(),
                });
                if selection.accept.contains(&index) {
                    let message = format!("stage \"{}\" cannot be accepted: stages above it run first", stage.name);
                    problems.push(Error::user("cannot-accept", message).hint("accept those too, or run them first"));
                }
            }
        }
        if planned.cost.is_none() {
            let own = (*last).as_ref().map(|record| Cost {
                seconds: record.seconds,
                bytes: record.bytes,
                own: true,
            });
            planned.cost = own.or_else(|| memory.cost_of_kind(&stage.base, stage.entry.name));
        }
        let skipped = |edge: &Edge| stages[edge.stage].action == Action::Skip;
        let alone = selection.along.contains(&index) && stage.inputs.iter().any(skipped);
        let in_scope = in_scope && !alone;
        if !in_scope && !matches!(planned.action, Action::Reuse | Action::Accept) {
            planned.action = Action::Skip;
        }
        let failing = stage.failing(&planned.rows);
        if failing > 0 {
            planned.because.push(Reason::Fails { rows: failing });
        }
        let known = |test: &usize| graph.stages[*test].failing(&stages[*test].rows) > 0;
        let mut tests: BTreeSet<usize> = stage.after.iter().copied().filter(known).collect();
        tests.extend(stage.inputs.iter().flat_map(|edge| &behind[edge.stage]));
        if planned.runs() && !tests.is_empty() {
            let tests = tests.iter().map(|test| graph.stages[*test].name.clone()).collect();
            planned.because.push(Reason::Behind { tests });
        }
        behind.push(tests);
        if in_scope && planned.action != Action::Reuse {
            for edge in &stage.inputs {
                let read = &stages[edge.stage];
                if read.action == Action::Skip {
                    let message = format!(
                        "stage \"{}\" reads \"{}\", which is left out and not in the store",
                        stage.name, read.stage
                    );
                    let because: Vec<String> = read.because.iter().map(Reason::to_string).collect();
                    problems.push(
                        Error::user("left-out", message)
                            .detail(format!("{}: {}", read.stage, because.join("; ")))
                            .hint(format!("run it first: --until \"{}\"", read.stage)),
                    );
                }
            }
        }
        stages.push(planned);
    }
    match problems.is_empty() {
        true => Ok(Plan {
            pipeline: graph.pipeline.clone(),
            stages,
        }),
        false => Err(problems),
    }
}

impl Planned {
    /// Whether it runs, for sure or perhaps.
    pub fn runs(&self) -> bool {
        matches!(self.action, Action::Run | Action::RunUnlessEqual)
    }

    fn reuse(&mut self, record: KeyRecord) {
        self.action = Action::Reuse;
        self.cost = Some(Cost {
            seconds: record.seconds,
            bytes: record.bytes,
            own: true,
        });
        self.outputs = record.outputs;
        self.rows = record.rows;
    }

    fn accept(&mut self, record: KeyRecord, preimage: &Preimage) {
        self.because.push(Reason::Accepted {
            old: record.preimage.version,
            new: preimage.version,
        });
        let kept = KeyRecord {
            key: preimage.key(),
            preimage: preimage.clone(),
            accepted: Some(record.key.clone()),
            ..record.clone()
        };
        self.accepted = Some(Box::new(kept));
        self.reuse(record);
        self.action = Action::Accept;
    }
}

/// What a plan costs in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Total {
    /// Stages to reuse.
    pub reuse: usize,
    /// Stages to run.
    pub run: usize,
    /// Stages to run unless their inputs come out equal.
    pub run_unless_equal: usize,
    /// Stages whose old artifacts are kept.
    pub accept: usize,
    /// Stages left out.
    pub skip: usize,
    /// Different recipes among the stages that run.
    pub distinct: usize,
    /// Seconds that the stages that run took before, as far as that is known.
    pub seconds: f64,
    /// Stages that run and never ran before, nor one of their kind.
    pub unknown: usize,
}

impl Plan {
    /// Counts and cost of the plan. Stages with one recipe cost once.
    pub fn total(&self) -> Total {
        let mut total = Total::default();
        let mut seen = BTreeSet::new();
        for stage in &self.stages {
            match stage.action {
                Action::Reuse => total.reuse += 1,
                Action::Run => total.run += 1,
                Action::RunUnlessEqual => total.run_unless_equal += 1,
                Action::Accept => total.accept += 1,
                Action::Skip => total.skip += 1,
            }
            if stage.runs() && seen.insert(&stage.recipe) {
                total.distinct += 1;
                match stage.cost {
                    Some(cost) => total.seconds += cost.seconds,
                    None => total.unknown += 1,
                }
            }
        }
        total
    }

    /// A short name of what the plan will do: two plans with one fingerprint do the same for the same reasons.
    pub fn fingerprint(&self) -> String {
        let line = |stage: &Planned| {
            let because = serde_json::to_value(&stage.because).unwrap_or_default();
            format!(
                "{} {:?} {} {}",
                stage.stage,
                stage.action,
                stage.recipe,
                canonical(&because)
            )
        };
        let lines: Vec<String> = self.stages.iter().map(line).collect();
        digest("sluice plan", &lines.join("\n"))[..12].to_string()
    }
}

/// Digests of a stage's inputs by port, if all of them are known.
pub fn inputs_of<'a>(
    stage: &Stage,
    outputs: impl Fn(usize) -> &'a BTreeMap<String, String>,
) -> Option<BTreeMap<String, String>> {
    stage
        .inputs
        .iter()
        .map(|edge| Some((edge.port.clone(), outputs(edge.stage).get(&edge.output)?.clone())))
        .collect()
}

/// Names of the stages that a stage reads, each once.
fn reads(graph: &Graph, stage: &Stage) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for edge in &stage.inputs {
        let name = &graph.stages[edge.stage].name;
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// What a stage is before its inputs are known: its own pre-image and the recipes above it.
fn recipe(stage: &Stage, alone: &Preimage, above: &[Planned]) -> String {
    let inputs = stage.inputs.iter().map(|edge| {
        let read = &above[edge.stage].recipe;
        format!("{} {} {read}", edge.port, edge.output)
    });
    let lines: Vec<String> = std::iter::once(alone.key()).chain(inputs).collect();
    digest("sluice recipe", &lines.join("\n"))
}

fn reasons(last: Option<&KeyRecord>, now: &Preimage) -> Vec<Reason> {
    match last {
        None => vec![Reason::NeverRan],
        Some(record) => {
            let reasons = differences(&record.preimage, now);
            if reasons.is_empty() {
                vec![Reason::Missing]
            } else {
                reasons
            }
        }
    }
}

/// The last record of a stage, if nothing but the operator's version moved since.
fn acceptable(last: Option<&KeyRecord>, now: &Preimage, memory: &dyn Memory) -> Result<KeyRecord, Error> {
    let refuse = |message: &str| Error::user("cannot-accept", message);
    let last = last.ok_or_else(|| refuse("there is nothing to accept: the stage never ran"))?;
    let others: Vec<String> = differences(&last.preimage, now)
        .iter()
        .filter(|reason| !matches!(reason, Reason::Version { .. }))
        .map(Reason::to_string)
        .collect();
    if !others.is_empty() {
        return Err(refuse("more than the operator's version changed").detail(others.join("; ")));
    }
    memory
        .record(&last.key)
        .ok_or_else(|| refuse("its old artifact is missing or damaged"))
}
