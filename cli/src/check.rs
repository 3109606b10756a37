//! `sluice check` and `sluice plan`: a pipeline without running it.

use std::path::{Path, PathBuf};

use sluice_engine::Error;
use sluice_engine::graph::Graph;
use sluice_engine::plan::{Action, Plan};
use sluice_engine::run::plan_over;
use sluice_engine::spec::{Overrides, Spec};

use crate::arguments;
use crate::display::{say, seconds};
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
    Ok(Checked { spec, graph, data_root })
}

/// `--data`, else `SLUICE_DATA`, else `data/`, as an absolute path.
fn data_root(flag: Option<&Path>) -> PathBuf {
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
    known_stages(&checked.graph, &command.force)?;
    let store = store_of(&command.pipeline).map_err(|error| vec![error])?;
    let plan = plan_over(&checked.graph, &store, &checked.data_root, &command.force).map_err(|error| vec![error])?;
    if command.json {
        let text = serde_json::to_string_pretty(&plan).map_err(|error| vec![Error::internal(error.to_string())])?;
        say!("{text}");
    } else {
        print(&plan);
    }
    Ok(())
}

/// Every name must be a stage.
pub fn known_stages(graph: &Graph, names: &[String]) -> Result<(), Vec<Error>> {
    let unknown = names.iter().filter(|name| graph.stage(name).is_none()).map(|name| {
        let mut error = Error::user("unknown-stage", format!("unknown stage \"{name}\""));
        error.hint = sluice_engine::error::did_you_mean(name, graph.stages.iter().map(|stage| stage.name.as_str()));
        error
    });
    let unknown: Vec<Error> = unknown.collect();
    if unknown.is_empty() { Ok(()) } else { Err(unknown) }
}

fn print(plan: &Plan) {
    let width = plan.stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
    for stage in &plan.stages {
        let action = match stage.action {
            Action::Reuse => "reuse",
            Action::Run => "run",
            Action::RunUnlessEqual => "run unless inputs come out equal",
        };
        let because = match stage.because.is_empty() {
            true => String::new(),
            false => format!(": {}", stage.because.join("; ")),
        };
        let cost = match (stage.action, stage.seconds) {
            (Action::Reuse, _) | (_, None) => String::new(),
            (_, Some(cost)) if cost < 0.1 => String::new(),
            (_, Some(cost)) => format!("  (took {})", seconds(cost)),
        };
        say!("{:width$}  {action}{because}{cost}", stage.stage);
    }
    let count = |action| plan.stages.iter().filter(|stage| stage.action == action).count();
    let cost: f64 = plan
        .stages
        .iter()
        .filter(|stage| stage.action != Action::Reuse)
        .filter_map(|stage| stage.seconds)
        .sum();
    say!(
        "{} stages: {} to reuse, {} to run, {} to run unless their inputs come out equal{}",
        plan.stages.len(),
        count(Action::Reuse),
        count(Action::Run),
        count(Action::RunUnlessEqual),
        if cost > 0.0 {
            format!("; what is known of the cost: {}", seconds(cost))
        } else {
            String::new()
        }
    );
}
