//! `sluice check` and `sluice plan`: a pipeline without running it.

use std::path::{Path, PathBuf};

use sluice_engine::Error;
use sluice_engine::cause::what;
use sluice_engine::expect;
use sluice_engine::graph::Graph;
use sluice_engine::key::Reason;
use sluice_engine::plan::{Plan, Selection};
use sluice_engine::run::plan_over;
use sluice_engine::spec::{Overrides, Spec};
use sluice_engine::store::Store;

use crate::arguments;
use crate::display::{bytes, say, seconds};
use crate::remote::store_of;

/// A pipeline as read and checked.
pub struct Checked {
    /// As written.
    pub spec: Spec,
    /// As checked.
    pub graph: Graph,
    /// Where relative data paths start.
    pub data_root: PathBuf,
}

/// Reads and checks a pipeline.
pub fn load(pipeline: &arguments::Pipeline) -> Result<Checked, Vec<Error>> {
    let name = pipeline.file.display().to_string();
    let text = std::fs::read_to_string(&pipeline.file).map_err(|error| {
        let error = Error::io("read", &pipeline.file, &error);
        vec![match error.code.as_str() {
            "file-not-found" => error.hint("the recipes are in pipelines/, such as pipelines/quickstart.yaml"),
            _ => error,
        }]
    })?;
    let overrides = Overrides {
        set: pipeline.set.clone(),
        params: pipeline.params.clone(),
    };
    let spec = Spec::parse(&name, &text, &overrides)?;
    let data_root = data_root(pipeline.data.as_deref());
    let graph = Graph::build(&spec, &sluice_operators::registry(), &data_root)?;
    let problems = expect::problems(&spec, &graph);
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Checked { spec, graph, data_root })
}

/// `--data`, else `SLUICE_DATA`, else `data/`, as an absolute path.
pub fn data_root(flag: Option<&Path>) -> PathBuf {
    let chosen = match (flag, std::env::var_os("SLUICE_DATA")) {
        (Some(flag), _) => flag.to_path_buf(),
        (None, Some(variable)) => PathBuf::from(variable),
        (None, None) => PathBuf::from("data"),
    };
    std::path::absolute(&chosen).unwrap_or(chosen)
}

/// `sluice check`.
pub fn check(pipeline: &arguments::Pipeline) -> Result<(), Vec<Error>> {
    let checked = load(pipeline)?;
    say!(
        "{}: {} stages, no problem",
        pipeline.file.display(),
        checked.graph.stages.len()
    );
    Ok(())
}

/// `sluice plan`.
pub fn plan(command: &arguments::Plan) -> Result<(), Vec<Error>> {
    let checked = load(&command.pipeline)?;
    let store = store_of(&command.pipeline).map_err(|error| vec![error])?;
    let plan = planned(&checked, &store, &command.choice)?;
    if let Some(file) = &command.html {
        let page = crate::page::page(&checked.graph, &plan);
        std::fs::write(file, page).map_err(|error| vec![Error::io("write", file, &error)])?;
        say!("{}: {} stages", file.display(), plan.stages.len());
    } else if command.mermaid {
        say!("{}", crate::picture::of_plan(&plan).mermaid().trim_end());
    } else if command.json {
        let text = serde_json::to_string_pretty(&plan).map_err(|error| vec![Error::internal(error.to_string())])?;
        say!("{text}");
    } else {
        print(&checked.graph, &plan);
    }
    within(&plan, command.choice.max_cost)
}

/// The plan for what was chosen.
pub fn planned(checked: &Checked, store: &Store, choice: &arguments::Choice) -> Result<Plan, Vec<Error>> {
    let mut problems = Vec::new();
    let mut find = |names: &[String]| -> Vec<usize> {
        let mut found = Vec::new();
        for name in names {
            match checked.graph.find(name) {
                Ok(stages) => found.extend(stages),
                Err(error) => problems.push(error),
            }
        }
        found
    };
    let (until, from, only) = (find(&choice.until), find(&choice.from), find(&choice.only));
    let mut selection = Selection {
        force: find(&choice.force).into_iter().collect(),
        accept: find(&choice.accept).into_iter().collect(),
        ..Selection::default()
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    selection.limit(&checked.graph, &until, &from, &only);
    plan_over(&checked.graph, store, &checked.data_root, &selection)
}

/// Refuses a plan that costs more than the user allows.
pub fn within(plan: &Plan, most: Option<f64>) -> Result<(), Vec<Error>> {
    let total = plan.total();
    let Some(most) = most.filter(|most| total.seconds > *most) else {
        return Ok(());
    };
    let mut costly: Vec<(&str, f64)> = plan
        .stages
        .iter()
        .filter(|stage| stage.runs())
        .filter_map(|stage| Some((stage.stage.as_str(), stage.cost?.seconds)))
        .collect();
    costly.sort_by(|a, b| b.1.total_cmp(&a.1));
    let message = format!(
        "the plan costs about {}, more than {}",
        seconds(total.seconds),
        seconds(most)
    );
    let lines = costly
        .iter()
        .take(5)
        .map(|(stage, cost)| format!("{stage}: {}", seconds(*cost)));
    let error = Error::user("too-costly", message).hint("raise --max-cost, or run a part with --until");
    Err(vec![lines.fold(error, Error::detail)])
}

fn print(graph: &Graph, plan: &Plan) {
    let width = plan.stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
    for stage in &plan.stages {
        let action = what(stage.action);
        let because: Vec<String> = stage.because.iter().map(Reason::to_string).collect();
        let because = match because.is_empty() {
            true => String::new(),
            false => format!(": {}", because.join("; ")),
        };
        let cost = match (stage.runs(), stage.cost) {
            (true, Some(cost)) if cost.seconds >= 0.1 || cost.bytes >= 1 << 20 => {
                let about = if cost.own { "took" } else { "about" };
                format!("  ({about} {}, {})", seconds(cost.seconds), bytes(cost.bytes))
            }
            _ => String::new(),
        };
        say!("{:width$}  {action}{because}{cost}", stage.stage);
    }
    let total = plan.total();
    let mut more = String::new();
    for (number, what) in [(total.accept, "to keep as they are"), (total.skip, "left out")] {
        if number > 0 {
            more.push_str(&format!(", {number} {what}"));
        }
    }
    if total.seconds > 0.0 {
        more.push_str(&format!("; what is known of the cost: {}", seconds(total.seconds)));
    }
    if total.unknown > 0 {
        more.push_str(&format!("; cost unknown of {}", total.unknown));
    }
    say!(
        "{} stages: {} to reuse, {} to run, {} to run unless their inputs come out equal{more}",
        plan.stages.len(),
        total.reuse,
        total.run,
        total.run_unless_equal
    );
    if let Some(line) = preview(graph, plan) {
        say!("{line}");
    }
    say!("plan {}", plan.fingerprint());
}

/// A sweep in a line or two: `12 trials, 132 instances: 66 distinct stages (50 % shared), 60 to run, about 4.2 h`.
pub fn preview(graph: &Graph, plan: &Plan) -> Option<String> {
    let extent = graph.sweep.as_ref()?;
    let total = plan.total();
    let distinct: std::collections::BTreeSet<&String> = plan.stages.iter().map(|stage| &stage.recipe).collect();
    let shared = 100.0 * (1.0 - distinct.len() as f64 / extent.instances.max(1) as f64);
    let cost = match (total.seconds, total.unknown) {
        (cost, 0) => format!(", about {}", seconds(cost)),
        (cost, _) if cost > 0.0 => format!(", about {} and what is not known", seconds(cost)),
        _ => String::new(),
    };
    let mut text = format!(
        "sweep: {} trials, {} instances, {} distinct stages to run{cost}; {shared:.0} % shared",
        extent.trials, extent.instances, total.distinct
    );
    for (axis, stages) in &extent.reach {
        let stages = if stages.is_empty() {
            "nothing".to_string()
        } else {
            stages.join(", ")
        };
        text.push_str(&format!("\n  {axis} reaches {stages}"));
    }
    Some(text)
}
