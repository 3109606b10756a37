//! A plan as a graph: what its nodes are, and a flowchart of them for Mermaid.

use std::collections::{BTreeMap, BTreeSet};

use sluice_engine::cause::what;
use sluice_engine::key::Reason;
use sluice_engine::plan::{Action, Plan, Planned};

/// With more stages than this, instances of one stage are one node.
const MOST: usize = 150;

/// A node of the picture: a stage, or all instances of one.
pub struct Node<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Its stages.
    pub stages: Vec<&'a Planned>,
    /// Nodes that it reads, by index.
    pub reads: Vec<usize>,
    /// How many edges are above it at most.
    pub layer: usize,
}

/// The nodes of a plan: in topological order, unless instances were put together.
pub fn nodes(plan: &Plan) -> Vec<Node<'_>> {
    let grouped = plan.stages.len() > MOST;
    let mut nodes: Vec<Node> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    let mut of_stage: BTreeMap<&str, usize> = BTreeMap::new();
    for stage in &plan.stages {
        let name = if grouped {
            stage.base.as_str()
        } else {
            stage.stage.as_str()
        };
        let place = *places.entry(name).or_insert_with(|| {
            nodes.push(Node {
                name,
                stages: Vec::new(),
                reads: Vec::new(),
                layer: 0,
            });
            nodes.len() - 1
        });
        nodes[place].stages.push(stage);
        of_stage.insert(&stage.stage, place);
    }
    for (place, node) in nodes.iter_mut().enumerate() {
        let reads: BTreeSet<usize> = node
            .stages
            .iter()
            .flat_map(|stage| &stage.reads)
            .filter_map(|read| of_stage.get(read.as_str()).copied())
            .filter(|read| *read != place)
            .collect();
        node.reads = reads.into_iter().collect();
    }
    // Grouped instances may not come in order; as many rounds as there are nodes settle every graph without circles.
    for _ in 0..nodes.len() {
        let mut settled = true;
        for place in 0..nodes.len() {
            let layer = nodes[place]
                .reads
                .iter()
                .map(|read| nodes[*read].layer + 1)
                .max()
                .unwrap_or(0);
            if layer > nodes[place].layer && layer < nodes.len() {
                nodes[place].layer = layer;
                settled = false;
            }
        }
        if settled {
            break;
        }
    }
    nodes
}

impl Node<'_> {
    /// What will be done with it; of several stages, the action that does most.
    pub fn action(&self) -> Action {
        let weight = |action: &Action| match action {
            Action::Run => 4,
            Action::RunUnlessEqual => 3,
            Action::Accept => 2,
            Action::Reuse => 1,
            Action::Skip => 0,
        };
        self.stages
            .iter()
            .map(|stage| stage.action)
            .max_by_key(weight)
            .unwrap_or(Action::Skip)
    }

    /// `run`, or `12 reuse, 3 run`.
    pub fn actions(&self) -> String {
        if let [stage] = self.stages.as_slice() {
            return what(stage.action).to_string();
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        self.stages
            .iter()
            .for_each(|stage| *counts.entry(what(stage.action)).or_default() += 1);
        let counts: Vec<String> = counts
            .iter()
            .map(|(action, count)| format!("{count} {action}"))
            .collect();
        counts.join(", ")
    }
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

/// Text for HTML, and for Mermaid, which reads its labels as HTML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// A flowchart for Mermaid.
pub fn mermaid(plan: &Plan) -> String {
    let nodes = nodes(plan);
    let mut text = "flowchart TD\n".to_string();
    for (index, node) in nodes.iter().enumerate() {
        let operator = node.stages.first().map_or("", |stage| stage.operator.as_str());
        text.push_str(&format!(
            "  s{index}[\"{}<br/>{}<br/>{}\"]:::{}\n",
            escape(node.name),
            escape(operator),
            escape(&node.actions()),
            class(node.action())
        ));
    }
    for (index, node) in nodes.iter().enumerate() {
        for read in &node.reads {
            text.push_str(&format!("  s{read} --> s{index}\n"));
        }
    }
    for (class, style) in [
        ("reuse", "fill:#e3f1e4,stroke:#3f8f4a,color:#14351a"),
        ("run", "fill:#fbe0c3,stroke:#c8690a,color:#4a2503"),
        ("perhaps", "fill:#fdf3c4,stroke:#b39200,color:#453900"),
        ("keep", "fill:#dde8fa,stroke:#3a6fc4,color:#12294f"),
        ("skip", "fill:#ececec,stroke:#8a8a8a,color:#333333"),
    ] {
        text.push_str(&format!("  classDef {class} {style}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_cannot_leave_their_quotes() {
        assert_eq!(
            escape("<b a=\"x\" b='y'>&"),
            "&lt;b a=&quot;x&quot; b=&#39;y&#39;&gt;&amp;"
        );
    }
}
