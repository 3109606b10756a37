//! A plan as a page: one file, no network.

use sluice_engine::cause::what;
use sluice_engine::graph::Graph;
use sluice_engine::plan::{Action, Plan, Planned};

use crate::check::preview;
use crate::display::{bytes, count, seconds};
use crate::picture::{Node, because, class, escape, nodes};

/// Width and height of a node, and the room between nodes.
const WIDTH: usize = 168;
const HEIGHT: usize = 46;
const ACROSS: usize = 20;
const DOWN: usize = 44;
/// Letters that fit into a node.
const LETTERS: usize = 22;

/// The page.
pub fn page(graph: &Graph, plan: &Plan) -> String {
    let total = plan.total();
    let mut facts = vec![
        (Action::Reuse, total.reuse),
        (Action::Run, total.run),
        (Action::RunUnlessEqual, total.run_unless_equal),
        (Action::Accept, total.accept),
        (Action::Skip, total.skip),
    ];
    facts.retain(|(_, number)| *number > 0);
    let facts: String = facts
        .iter()
        .map(|(action, number)| {
            format!(
                "<li class=\"{}\"><b>{number}</b> {}</li>\n",
                class(*action),
                what(*action)
            )
        })
        .collect();
    let mut cost = match total.seconds {
        cost if cost > 0.0 => format!("what is known of the cost: {}", seconds(cost)),
        _ => "no cost is known".to_string(),
    };
    if total.unknown > 0 {
        cost.push_str(&format!("; not known of {}", count(total.unknown as u64)));
    }
    let sweep = preview(graph, plan)
        .map(|text| format!("<pre>{}</pre>\n", escape(&text)))
        .unwrap_or_default();
    let rows: String = plan.stages.iter().map(row).collect();
    let name = escape(&plan.pipeline);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
        <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{name}: plan</title>\n\
        <style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n\
        <p>{} stages; {}. Plan {}.</p>\n<ul class=\"facts\">\n{facts}</ul>\n{sweep}\
        <div class=\"graph\">\n{}</div>\n<div class=\"stages\">\n<table>\n<thead><tr><th>stage</th><th>operator</th>\
        <th>what</th><th>because</th><th>cost</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</main>\n\
        </body>\n</html>\n",
        count(plan.stages.len() as u64),
        escape(&cost),
        plan.fingerprint(),
        drawing(&nodes(plan))
    )
}

fn row(stage: &Planned) -> String {
    let cost = match stage.cost {
        Some(cost) => {
            let about = if cost.own { "" } else { "about " };
            format!("{about}{}, {}", seconds(cost.seconds), bytes(cost.bytes))
        }
        None => "not known".to_string(),
    };
    let cell = |name: &str, text: &str| format!("<td data-name=\"{name}\">{}</td>", escape(text));
    format!(
        "<tr class=\"{}\">{}{}{}{}{}</tr>\n",
        class(stage.action),
        cell("stage", &stage.stage),
        cell("operator", &stage.operator),
        cell("what", what(stage.action)),
        cell("because", &because(stage)),
        cell("cost", &cost)
    )
}

/// Layers from top to bottom; within a layer, nodes stand below what they read as far as that goes.
fn drawing(nodes: &[Node]) -> String {
    let mut layers: Vec<Vec<usize>> = vec![Vec::new(); nodes.iter().map(|node| node.layer + 1).max().unwrap_or(0)];
    for (index, node) in nodes.iter().enumerate() {
        layers[node.layer].push(index);
    }
    let widest = layers.iter().map(Vec::len).max().unwrap_or(0);
    let whole = widest * (WIDTH + ACROSS) + ACROSS;
    let mut middle = vec![0.0f64; nodes.len()];
    for layer in &mut layers {
        // The mean of what a node reads, then its place in the plan.
        let wish = |index: &usize| {
            let reads = &nodes[*index].reads;
            let sum: f64 = reads.iter().map(|read| middle[*read]).sum();
            sum / reads.len().max(1) as f64
        };
        layer.sort_by(|a, b| wish(a).total_cmp(&wish(b)).then(a.cmp(b)));
        let left = (whole - layer.len() * (WIDTH + ACROSS) + ACROSS) / 2;
        for (place, index) in layer.iter().enumerate() {
            middle[*index] = (left + place * (WIDTH + ACROSS) + WIDTH / 2) as f64;
        }
    }
    let top = |node: &Node| (ACROSS + node.layer * (HEIGHT + DOWN)) as f64;
    let height = layers.len() * (HEIGHT + DOWN) + ACROSS;
    let mut text = format!(
        "<svg viewBox=\"0 0 {whole} {height}\" width=\"{whole}\" height=\"{height}\" role=\"img\" aria-label=\"graph of stages\">\n"
    );
    for (index, node) in nodes.iter().enumerate() {
        for read in &node.reads {
            let (x, y) = (middle[*read], top(&nodes[*read]) + HEIGHT as f64);
            let (to, below) = (middle[index], top(node));
            let bend = DOWN as f64 * 0.6;
            text.push_str(&format!(
                "<path class=\"edge\" d=\"M{x:.0} {y:.0} C{x:.0} {:.0} {to:.0} {:.0} {to:.0} {below:.0}\"/>\n",
                y + bend,
                below - bend
            ));
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        let (x, y) = (middle[index] - WIDTH as f64 / 2.0, top(node));
        let operator = node.stages.first().map_or("", |stage| stage.operator.as_str());
        let mut title = format!("{}\n{operator}\n{}", node.name, node.actions());
        if let [stage] = node.stages.as_slice()
            && !stage.because.is_empty()
        {
            title.push_str(&format!(": {}", because(stage)));
        }
        let name = match node.stages.len() {
            1 => node.name.to_string(),
            number => format!("{} ×{number}", node.name),
        };
        let below = if node.stages.len() == 1 {
            operator.to_string()
        } else {
            node.actions()
        };
        text.push_str(&format!(
            "<g class=\"{}\" transform=\"translate({x:.0} {y:.0})\"><title>{}</title>\
            <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"7\"/><text x=\"{}\" y=\"19\">{}</text>\
            <text class=\"small\" x=\"{}\" y=\"35\">{}</text></g>\n",
            class(node.action()),
            escape(&title),
            WIDTH / 2,
            escape(&cut(&name, LETTERS)),
            WIDTH / 2,
            escape(&cut(&below, LETTERS + 4))
        ));
    }
    text.push_str("</svg>\n");
    text
}

/// The text, or its beginning with a sign that there is more.
fn cut(text: &str, most: usize) -> String {
    match text.chars().count() > most {
        true => text.chars().take(most - 1).chain(['…']).collect(),
        false => text.to_string(),
    }
}

/// Light, dark where that is preferred, and a table of cards on narrow screens.
const STYLE: &str = "
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1a; --soft: #66665f; --line: #d8d8d2; }
.reuse { --fill: #e3f1e4; --edge: #3f8f4a; } .run { --fill: #fbe0c3; --edge: #c8690a; }
.perhaps { --fill: #fdf3c4; --edge: #b39200; } .keep { --fill: #dde8fa; --edge: #3a6fc4; }
.skip { --fill: #ececec; --edge: #8a8a8a; }
@media (prefers-color-scheme: dark) {
  :root { --back: #17171a; --text: #ececea; --soft: #a0a09a; --line: #3a3a3e; }
  .reuse { --fill: #1d3a22; } .run { --fill: #4d2c0c; } .perhaps { --fill: #453b0a; } .keep { --fill: #1b2f52; }
  .skip { --fill: #2b2b2e; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .5rem 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 1rem 0; padding: 0; }
.facts li { background: var(--fill); border: 1px solid var(--edge); border-radius: 6px; padding: .2rem .6rem; }
.graph { overflow: auto; max-height: 85vh; border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; }
svg { display: block; margin: 0 auto; }
svg rect { fill: var(--fill); stroke: var(--edge); stroke-width: 1.2; }
svg text { fill: var(--text); text-anchor: middle; font-size: 13px; } svg .small { fill: var(--soft); font-size: 11px; }
.edge { fill: none; stroke: var(--soft); stroke-width: 1.1; opacity: .7; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { border-left: 4px solid var(--edge); padding-left: .5rem; font-weight: 600; }
@media (max-width: 44rem) {
  thead { display: none; } tr, td { display: block; } td { border: 0; padding: .05rem .5rem; }
  tr { border-left: 4px solid var(--edge); margin: .6rem 0; } td:first-child { border: 0; }
  td:not(:first-child):not(:empty)::before { content: attr(data-name) ': '; color: var(--soft); }
}
";
