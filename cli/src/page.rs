//! A plan as a page: one file, no network.

use sluice_engine::cause::what;
use sluice_engine::graph::Graph;
use sluice_engine::plan::{Action, Plan, Planned};
use sluice_operators::report::graph;
use sluice_operators::report::html::escape;

use crate::check::preview;
use crate::display::{bytes, count, seconds};
use crate::picture::{because, class, of_plan};

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
        <style>{STYLE}{}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n\
        <p>{} stages; {}. Plan {}.</p>\n<ul class=\"facts\">\n{facts}</ul>\n{sweep}\
        <div class=\"graph\">\n{}</div>\n<div class=\"stages\">\n<table>\n<thead><tr><th>stage</th><th>operator</th>\
        <th>what</th><th>because</th><th>cost</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n</main>\n\
        </body>\n</html>\n",
        graph::style(),
        count(plan.stages.len() as u64),
        escape(&cost),
        plan.fingerprint(),
        of_plan(plan).svg()
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

/// Light, dark where that is preferred, and a table of cards on narrow screens.
const STYLE: &str = "
:root { color-scheme: light dark; --back: #fff; --ink: #1c1c1a; --soft: #66665f; --line: #d8d8d2; }
@media (prefers-color-scheme: dark) {
  :root { --back: #17171a; --ink: #ececea; --soft: #a0a09a; --line: #3a3a3e; }
}
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .5rem 0; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft); }
.facts { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 1rem 0; padding: 0; }
.facts li { background: var(--fill); border: 1px solid var(--edge); border-radius: 6px; padding: .2rem .6rem; }
.graph { overflow: auto; max-height: 85vh; border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; color: var(--soft); font-weight: 600; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem .3rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { border-left: 4px solid var(--edge); padding-left: .5rem; font-weight: 600; }
@media (max-width: 44rem) {
  thead { display: none; } tr, td { display: block; } td { border: 0; padding: .05rem .5rem; }
  tr { border-left: 4px solid var(--edge); margin: .6rem 0; } td:first-child { border: 0; }
  td:not(:first-child):not(:empty)::before { content: attr(data-name) ': '; color: var(--soft); }
}
";
