//! What a run will do, and because of what. Pure: a function of the graph and of what the store remembers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::graph::{Graph, Stage};
use crate::key::{Preimage, differences};
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
    /// Its operator.
    pub operator: String,
    /// What will be done.
    pub action: Action,
    /// Whether it runs because someone asked for it.
    pub forced: bool,
    /// Because of what, a line each.
    pub because: Vec<String>,
    /// The key, where it is known before the run.
    pub key: Option<String>,
    /// Digests of its outputs, where they are known before the run.
    pub outputs: BTreeMap<String, String>,
    /// Rows of its outputs, where they are known before the run.
    pub rows: BTreeMap<String, u64>,
    /// Seconds it took the last time, if it ever ran.
    pub seconds: Option<f64>,
    /// The pre-image without inputs.
    #[serde(skip)]
    pub alone: Preimage,
}

/// What the store remembers.
pub trait Memory {
    /// The record of a key, if its artifacts are there.
    fn record(&self, key: &str) -> Option<KeyRecord>;
    /// Whether some key has this pre-image apart from its inputs.
    fn has_static(&self, preimage: &Preimage) -> bool;
    /// What the stage of that name was the last time, even if its artifacts are gone.
    fn last(&self, stage: &str) -> Option<KeyRecord>;
    /// Content digests of the files outside the store that a stage declared, by the path as declared.
    fn files(&self, stage: &Stage) -> BTreeMap<String, String>;
}

/// Plans a run. Stages named in `forced` run whatever the store holds.
pub fn plan(graph: &Graph, memory: &dyn Memory, forced: &[String]) -> Plan {
    let mut stages: Vec<Planned> = Vec::new();
    for stage in &graph.stages {
        let alone = Preimage::without_inputs(stage, graph.seed, memory.files(stage));
        let last = memory.last(&stage.name);
        let mut planned = Planned {
            stage: stage.name.clone(),
            operator: stage.entry.name.to_string(),
            action: Action::Run,
            forced: forced.contains(&stage.name),
            because: Vec::new(),
            key: None,
            outputs: BTreeMap::new(),
            rows: BTreeMap::new(),
            seconds: last.as_ref().map(|record| record.seconds),
            alone,
        };
        match inputs_of(stage, |index| &stages[index].outputs) {
            _ if planned.forced => planned.because.push("forced".to_string()),
            Some(inputs) => {
                let preimage = Preimage {
                    inputs,
                    ..planned.alone.clone()
                };
                let key = preimage.key();
                match memory.record(&key) {
                    Some(record) => {
                        planned.action = Action::Reuse;
                        planned.outputs = record.outputs;
                        planned.rows = record.rows;
                        planned.seconds = Some(record.seconds);
                    }
                    None => planned.because = reasons(last.as_ref(), &preimage),
                }
                planned.key = Some(key);
            }
            None => {
                let above: Vec<&str> = stage
                    .inputs
                    .iter()
                    .filter(|edge| stages[edge.stage].action != Action::Reuse)
                    .map(|edge| graph.stages[edge.stage].name.as_str())
                    .collect();
                let known = last.as_ref().map(|record| Preimage {
                    inputs: record.preimage.inputs.clone(),
                    ..planned.alone.clone()
                });
                planned.because = match (&last, &known) {
                    (Some(record), Some(known)) => differences(&record.preimage, known),
                    _ => vec!["never ran".to_string()],
                };
                if memory.has_static(&planned.alone) {
                    planned.action = Action::RunUnlessEqual;
                }
                planned.because.push(format!("{} may change", above.join(", ")));
            }
        }
        stages.push(planned);
    }
    Plan {
        pipeline: graph.pipeline.clone(),
        stages,
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

fn reasons(last: Option<&KeyRecord>, now: &Preimage) -> Vec<String> {
    match last {
        None => vec!["never ran".to_string()],
        Some(record) => {
            let lines = differences(&record.preimage, now);
            if lines.is_empty() {
                vec!["its artifact is missing".to_string()]
            } else {
                lines
            }
        }
    }
}
