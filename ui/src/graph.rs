//! What stages read, as the pipeline of a run says; where that is not there, as the records of its keys say.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_engine::history::{self, RunRecord};
use sluice_engine::spec::{Overrides, Spec};
use sluice_engine::store::Store;

use crate::answer::Refused;
use crate::routes::Asked;
use crate::runs::base;
use crate::server::House;

/// A stage as written: all its instances are one node.
#[derive(Default)]
struct Node {
    operator: String,
    reads: Vec<String>,
    tests: Vec<String>,
}

/// `/api/runs/{run}/graph`
pub(crate) fn of_run(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let run = house.index.run(&asked.names[0])?;
    let nodes = match spec(house.store(), run.record()) {
        Some(spec) => of_spec(&spec),
        None => {
            let whole = house.index.whole(&run);
            of_records(house, &whole)
        }
    };
    let node = |(name, node): &(String, Node)| json!({ "stage": name, "operator": node.operator, "reads": node.reads, "tests": node.tests });
    Ok(json!({ "run": run.name(), "nodes": nodes.iter().map(node).collect::<Vec<_>>() }))
}

/// The pipeline of a run, with what the command line changed. `None` if its text is not there.
pub(crate) fn spec(store: &Store, run: &RunRecord) -> Option<Spec> {
    let text = history::source(store, &run.run).ok()?;
    let given = |flag: &str| {
        let values = run.command.iter().filter_map(|word| word.strip_prefix(flag));
        values.map(str::to_string).collect()
    };
    let overrides = Overrides {
        set: given("--set="),
        params: given("--param="),
    };
    Spec::parse(&run.pipeline, &text, &overrides).ok()
}

fn of_spec(spec: &Spec) -> Vec<(String, Node)> {
    let mut nodes: Vec<(String, Node)> = Vec::new();
    for template in &spec.stages {
        let name = template.name.name.clone();
        if let Some(of) = &template.of {
            if let Some((_, tested)) = nodes.iter_mut().find(|(known, _)| known == of) {
                tested.tests.push(name);
            }
            continue;
        }
        let mut node = Node::default();
        for (_, stage) in &template.variants {
            node.operator = stage.op.name.clone();
            for (_, reference) in &stage.inputs {
                if !node.reads.contains(&reference.stage) {
                    node.reads.push(reference.stage.clone());
                }
            }
        }
        nodes.push((name, node));
    }
    nodes
}

/// Of several stages that made the same bytes, the last before the reader is the one that it read.
fn of_records(house: &House, run: &RunRecord) -> Vec<(String, Node)> {
    let records = house.index.records(run);
    let mut makers: BTreeMap<&String, Vec<String>> = BTreeMap::new();
    for (stage, record) in &records {
        let stage = base(stage);
        record
            .outputs
            .values()
            .for_each(|digest| makers.entry(digest).or_default().push(stage.clone()));
    }
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    for (stage, record) in &records {
        let name = base(stage);
        let node = nodes.entry(name.clone()).or_default();
        node.operator = record.preimage.operator.clone();
        for digest in record.preimage.inputs.values() {
            let maker = makers
                .get(digest)
                .and_then(|makers| makers.iter().rfind(|maker| **maker != name));
            if let Some(maker) = maker.filter(|maker| !node.reads.contains(maker)) {
                node.reads.push(maker.clone());
            }
        }
    }
    nodes.into_iter().collect()
}
