//! `sluice verify PIPELINE`: runs a sample of stages again and compares.

use std::collections::BTreeMap;

use sluice_engine::Error;
use sluice_engine::event::Event;
use sluice_engine::key::digest;
use sluice_engine::plan::{Action, Plan};
use sluice_engine::run::{Options, check, run};

use crate::arguments;
use crate::check::{load, planned};
use crate::display::say;
use crate::remote::store_of;
use crate::signals::cancel_on_ctrl_c;

/// `sluice verify PIPELINE`.
pub fn verify(command: &arguments::Verify) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let checked = load(&command.pipeline)?;
    let store = store_of(&command.pipeline).map_err(one)?;
    let plan = planned(&checked, &store, &arguments::Choice::default())?;
    let mut asked = Vec::new();
    let mut problems = Vec::new();
    for name in &command.stage {
        match checked.graph.find(name) {
            Ok(found) => asked.extend(found),
            Err(error) => problems.push(error),
        }
    }
    for stage in asked
        .iter()
        .map(|index| &plan.stages[*index])
        .filter(|stage| stage.action != Action::Reuse)
    {
        let message = format!("stage \"{}\" has no artifact to compare with", stage.stage);
        problems.push(Error::user("nothing-to-verify", message).hint("\"sluice run PIPELINE\" makes it"));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let chosen = match asked.is_empty() {
        true => sample(&plan, command.sample, command.seed),
        false => asked,
    };
    if chosen.is_empty() {
        let error = Error::user(
            "nothing-to-verify",
            format!("no stage of \"{}\" has an artifact", plan.pipeline),
        );
        return Err(vec![error.hint("\"sluice run PIPELINE\" makes them")]);
    }
    let cancel = cancel_on_ctrl_c()?;
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let names: Vec<String> = chosen.iter().map(|index| plan.stages[*index].stage.clone()).collect();
    let options = Options {
        verify: true,
        command: names.iter().map(|stage| format!("verify={stage}")).collect(),
        source: checked.spec.sources[0].text.clone(),
        cancel,
        ..Options::new(command.workers.map_or(cores, usize::from), &checked.data_root)
    };
    let mut told: BTreeMap<String, bool> = BTreeMap::new();
    let mut watch = |event: &Event| {
        if let Event::StageVerified { stage, agrees, outputs } = event {
            told.insert(stage.clone(), *agrees);
            let word = if *agrees { "agrees" } else { "DIFFERS" };
            let outputs: Vec<String> = outputs.iter().map(|(port, how)| format!("{port}: {how}")).collect();
            say!("{stage:<16} {word}: {}", outputs.join("; "));
        }
    };
    let done = run(checked.graph, &check(&plan, &chosen), &store, &options, &mut watch);
    let reusable = plan.stages.iter().filter(|stage| stage.action == Action::Reuse).count();
    let agree = told.values().filter(|agrees| **agrees).count();
    say!(
        "{} of {reusable} stages with artifacts ran again: {agree} agree, {} differ; nothing was published",
        told.len(),
        told.len() - agree
    );
    done.map(|_| ())
}

/// A share of the stages that have artifacts, at least one: those whose keys hash lowest under the seed.
fn sample(plan: &Plan, share: f64, seed: u64) -> Vec<usize> {
    let mut drawn: Vec<(String, usize)> = plan
        .stages
        .iter()
        .enumerate()
        .filter(|(_, stage)| stage.action == Action::Reuse)
        .filter_map(|(index, stage)| {
            Some((
                digest("sluice verify", &format!("{seed} {}", stage.key.as_ref()?)),
                index,
            ))
        })
        .collect();
    drawn.sort_unstable();
    let count = (drawn.len() as f64 * share).ceil() as usize;
    drawn.truncate(count.max(1));
    let mut chosen: Vec<usize> = drawn.into_iter().map(|(_, index)| index).collect();
    chosen.sort_unstable();
    chosen
}
