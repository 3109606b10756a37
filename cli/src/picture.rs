//! Stages as a graph: those of a plan with what will be done, those of a run with what became of them.

use std::collections::{BTreeMap, BTreeSet};

use sluice_engine::cause::what;
use sluice_engine::key::Reason;
use sluice_engine::plan::{Action, Plan, Planned};
use sluice_operators::report::graph::{Graph, Node};

/// With more stages than this, instances of one stage are one node.
const MOST: usize = 150;

/// A stage as it is drawn.
pub struct Drawn<'a> {
    /// Its name.
    pub name: &'a str,
    /// The stage as written.
    pub base: &'a str,
    /// Its operator.
    pub operator: &'a str,
    /// What becomes or became of it: a class of the drawing, and in words.
    pub fate: (&'static str, &'a str),
    /// What more there is to say.
    pub more: String,
    /// Names of the stages that it reads.
    pub reads: Vec<&'a str>,
}

/// Classes of the drawing, that of a node with several stages first.
const WEIGHTS: [&str; 6] = ["failed", "run", "perhaps", "keep", "reuse", "skip"];

/// The graph of stages: in the order they come in, unless instances were put together.
pub fn graph(caption: &str, stages: &[Drawn]) -> Graph {
    let grouped = stages.len() > MOST;
    let mut groups: Vec<(&str, Vec<&Drawn>)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut of_stage: BTreeMap<&str, usize> = BTreeMap::new();
    for stage in stages {
        let name = if grouped { stage.base } else { stage.name };
        let place = *places.entry(name).or_insert_with(|| {
            groups.push((name, Vec::new()));
            groups.len() - 1
        });
        groups[place].1.push(stage);
        of_stage.insert(stage.name, place);
    }
    let node = |(place, (name, stages)): (usize, &(&str, Vec<&Drawn>))| {
        let reads = stages.iter().flat_map(|stage| &stage.reads);
        let reads: BTreeSet<usize> = reads
            .filter_map(|read| of_stage.get(read).copied())
            .filter(|read| *read != place)
            .collect();
        let operator = stages.first().map_or("", |stage| stage.operator).to_string();
        let fates = fates(stages);
        let mut title = format!("{name}\n{operator}\n{fates}");
        let (name, lines) = match stages.as_slice() {
            [stage] => {
                if !stage.more.is_empty() {
                    title.push_str(&format!(": {}", stage.more));
                }
                (name.to_string(), vec![operator, fates])
            }
            many => (format!("{name} ×{}", many.len()), vec![fates, operator]),
        };
        let weight = |class: &&str| WEIGHTS.iter().position(|known| known == class);
        let class = stages.iter().map(|stage| stage.fate.0).min_by_key(weight);
        Node {
            name,
            lines,
            title,
            class: class.unwrap_or("skip").to_string(),
            reads: reads.into_iter().collect(),
        }
    };
    Graph {
        caption: caption.to_string(),
        nodes: groups.iter().enumerate().map(node).collect(),
    }
}

/// `run`, or `12 reuse, 3 run`.
fn fates(stages: &[&Drawn]) -> String {
    if let [stage] = stages {
        return stage.fate.1.to_string();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    stages
        .iter()
        .for_each(|stage| *counts.entry(stage.fate.1).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(fate, count)| format!("{count} {fate}")).collect();
    counts.join(", ")
}

/// The graph of a plan.
pub fn of_plan(plan: &Plan) -> Graph {
    let drawn = |stage| -> Drawn {
        let stage: &Planned = stage;
        Drawn {
            name: &stage.stage,
            base: &stage.base,
            operator: &stage.operator,
            fate: (class(stage.action), what(stage.action)),
            more: because(stage),
            reads: stage.reads.iter().map(String::as_str).collect(),
        }
    };
    let stages: Vec<Drawn> = plan.stages.iter().map(drawn).collect();
    graph("", &stages)
}

/// A word for an action that can be the name of a class.
pub fn class(action: Action) -> &'static str {
    match action {
        Action::Reuse => "reuse",
        Action::Run => "run",
        Action::RunUnlessEqual => "perhaps",
        Action::Accept => "keep",
        Action::Skip => "skip",
    }
}

/// Reasons in a line.
pub fn because(stage: &Planned) -> String {
    let lines: Vec<String> = stage.because.iter().map(Reason::to_string).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_of_a_large_sweep_are_one_node() {
        let names: Vec<String> = (0..MOST).map(|index| format!("b[x={index}]")).collect();
        let stage = |name, base, fate, reads| Drawn {
            name,
            base,
            operator: "op",
            fate,
            more: "why".into(),
            reads,
        };
        let mut stages = vec![stage("a", "a", ("reuse", "reuse"), vec![])];
        for (index, name) in names.iter().enumerate() {
            let fate = if index == 3 { ("run", "run") } else { ("reuse", "reuse") };
            stages.push(stage(name, "b", fate, vec!["a"]));
        }
        let drawn = graph("", &stages);
        assert_eq!(drawn.nodes.len(), 2);
        let b = &drawn.nodes[1];
        assert_eq!(
            (b.name.as_str(), b.class.as_str(), b.reads.as_slice()),
            ("b ×150", "run", &[0][..])
        );
        assert_eq!(b.lines, ["149 reuse, 1 run", "op"]);
        assert_eq!(graph("", &stages[..4]).nodes.len(), 4);
    }
}
