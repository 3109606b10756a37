//! Causes: why a stage runs, or came out otherwise than before, followed upstream to the roots.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::graph::Graph;
use crate::history::{self, RunRecord, StageSummary, summary};
use crate::key::{Reason, differences};
use crate::plan::{Action, Plan};
use crate::store::{KeyRecord, Store};

/// Why one stage is what it is, with the stages above it that are the cause of that.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cause {
    /// The stage.
    pub stage: String,
    /// What becomes or became of it, in a word or two.
    pub what: String,
    /// Because of what.
    pub because: Vec<Reason>,
    /// The stage behind every changed input, by port.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
    /// The stages above it that changed, each told once in the whole tree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Cause>,
}

/// Something that did not follow from anything upstream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Root {
    /// The stage.
    pub stage: String,
    /// What happened to it.
    pub because: Vec<Reason>,
}

impl Cause {
    /// What the whole tree comes down to.
    pub fn roots(&self) -> Vec<Root> {
        let follows = |reason: &&Reason| !matches!(reason, Reason::Input { .. } | Reason::MayChange { .. });
        let own: Vec<Reason> = self.because.iter().filter(follows).cloned().collect();
        let mut roots: Vec<Root> = self.from.iter().flat_map(Cause::roots).collect();
        if !own.is_empty() {
            roots.push(Root {
                stage: self.stage.clone(),
                because: own,
            });
        }
        roots
    }
}

/// Which run made the artifacts of a key, and why it ran there.
#[derive(Clone, Debug, Serialize)]
pub struct Made {
    /// The run.
    pub run: String,
    /// Milliseconds since 1970 when that run began, if its record is here.
    pub started: Option<u64>,
    /// Wall-clock seconds of the stage.
    pub seconds: f64,
    /// Why it ran there, if that run's events are here.
    pub because: Vec<Reason>,
}

/// Who made the artifacts of a key.
pub fn made(store: &Store, record: &KeyRecord) -> Made {
    let events = history::events(store, &record.run);
    let stage = summary(&events)
        .into_iter()
        .map(|(_, stage)| stage)
        .find(|stage| stage.outcome == "ran" && stage.key.as_ref() == Some(&record.key));
    Made {
        run: record.run.clone(),
        started: history::read(store, &record.run).ok().map(|run| run.started),
        seconds: record.seconds,
        because: stage.map(|stage| stage.because).unwrap_or_default(),
    }
}

/// Causes in a plan: what will be done with a stage, and because of what.
pub struct OfPlan<'a> {
    graph: &'a Graph,
    plan: &'a Plan,
    store: &'a Store,
    last: BTreeMap<String, String>,
    told: BTreeSet<usize>,
}

impl<'a> OfPlan<'a> {
    /// Causes in this plan.
    pub fn new(graph: &'a Graph, plan: &'a Plan, store: &'a Store) -> Self {
        OfPlan {
            graph,
            plan,
            store,
            last: history::last_run(store, &graph.pipeline)
                .map(|run| run.last)
                .unwrap_or_default(),
            told: BTreeSet::new(),
        }
    }

    /// The cause of what will be done with a stage; `None` if it was told before.
    pub fn tell(&mut self, index: usize) -> Option<Cause> {
        if !self.told.insert(index) {
            return None;
        }
        let (stage, planned) = (&self.graph.stages[index], &self.plan.stages[index]);
        let mut because = planned.because.clone();
        if planned.action == Action::Reuse
            && let Some(key) = &planned.key
            && let Some(old) = self.last.get(&stage.name).filter(|old| *old != key)
            && let (Some(old), Some(new)) = (self.store.known(old), self.store.known(key))
        {
            // An earlier artifact: it differs from the newest one all the same.
            because = differences(&old.preimage, &new.preimage);
        }
        let mut inputs = BTreeMap::new();
        let mut above: Vec<usize> = Vec::new();
        for reason in &because {
            match reason {
                Reason::Input { port, new: Some(_), .. } => {
                    for edge in stage.inputs.iter().filter(|edge| edge.port == *port) {
                        inputs.insert(port.clone(), self.graph.stages[edge.stage].name.clone());
                        above.push(edge.stage);
                    }
                }
                Reason::MayChange { stages } => above.extend(
                    stages
                        .iter()
                        .filter_map(|name| self.graph.stages.iter().position(|stage| stage.name == *name)),
                ),
                _ => {}
            }
        }
        let from = above.into_iter().filter_map(|index| self.tell(index)).collect();
        Some(Cause {
            stage: stage.name.clone(),
            what: what(planned.action).to_string(),
            because,
            inputs,
            from,
        })
    }
}

/// An action in words.
pub fn what(action: Action) -> &'static str {
    match action {
        Action::Reuse => "reuse",
        Action::Run => "run",
        Action::RunUnlessEqual => "run unless inputs come out equal",
        Action::Accept => "keep",
        Action::Skip => "left out",
    }
}

/// Causes between two runs: why a stage has another key in one than in the other.
pub struct OfRuns {
    then: Option<String>,
    old: BTreeMap<String, KeyRecord>,
    new: BTreeMap<String, KeyRecord>,
    /// In the order of the plan.
    events: Vec<(String, StageSummary)>,
    told: BTreeSet<String>,
}

impl OfRuns {
    /// Causes of what is in `now` and was not so in `then`.
    pub fn new(store: &Store, now: &RunRecord, then: Option<&RunRecord>) -> Self {
        OfRuns {
            then: then.map(|run| run.run.clone()),
            old: then.map(|run| run.records(store)).unwrap_or_default(),
            new: now.records(store),
            events: summary(&history::events(store, &now.run)),
            told: BTreeSet::new(),
        }
    }

    /// The cause of a stage's key; `None` if it was told before, or if the run does not know the stage.
    pub fn tell(&mut self, stage: &str) -> Option<Cause> {
        if !self.told.insert(stage.to_string()) {
            return None;
        }
        let event = self.events.iter().find(|(name, _)| name == stage);
        let event = event.map(|(_, event)| event.clone()).unwrap_or_default();
        let mut what = event.outcome.to_string();
        let because = match (self.old.get(stage), self.new.get(stage)) {
            (Some(old), Some(new)) if old.key != new.key => differences(&old.preimage, &new.preimage),
            (None, Some(_)) if self.then.is_some() && event.because.is_empty() => {
                let then = self.then.as_deref().unwrap_or_default();
                what = format!("{what}, not in run {then}");
                Vec::new()
            }
            (_, None) if event.outcome.is_empty() => return None,
            _ => event.because,
        };
        let mut inputs = BTreeMap::new();
        let mut above: Vec<String> = Vec::new();
        for reason in &because {
            match reason {
                Reason::Input { port, old, new } => {
                    if let Some(name) = self.source(stage, old.as_deref(), new.as_deref()) {
                        inputs.insert(port.clone(), name.clone());
                        above.push(name);
                    }
                }
                Reason::MayChange { stages } => above.extend(stages.iter().cloned()),
                _ => {}
            }
        }
        let from = above.iter().filter_map(|name| self.tell(name)).collect();
        Some(Cause {
            stage: stage.to_string(),
            what,
            because,
            inputs,
            from,
        })
    }

    /// The stage that made a digest in the new run. Runs do not keep edges: of several that made the same, it is one that
    /// made the old digest in the old run, and of those the last before the reader in the order of the plan.
    fn source(&self, reader: &str, old: Option<&str>, new: Option<&str>) -> Option<String> {
        let made = |record: Option<&KeyRecord>, digest: Option<&str>| {
            record.is_some_and(|record| record.outputs.values().any(|made| Some(made.as_str()) == digest))
        };
        let above = self
            .events
            .iter()
            .map(|(stage, _)| stage)
            .take_while(|stage| *stage != reader);
        let mut makers: Vec<&String> = above.filter(|stage| made(self.new.get(*stage), new)).collect();
        if makers.iter().any(|stage| made(self.old.get(*stage), old)) {
            makers.retain(|stage| made(self.old.get(*stage), old));
        }
        makers.last().map(|stage| (*stage).clone())
    }
}

/// The newest run of the same pipeline before `now` in which the stage had another key.
pub fn previous(store: &Store, now: &RunRecord, stage: &str) -> Option<RunRecord> {
    let key = now.keys.get(stage);
    history::runs(store)
        .skip_while(|run| run.run != now.run)
        .skip(1)
        .filter(|run| run.pipeline == now.pipeline)
        .find(|run| run.keys.get(stage).is_some_and(|old| Some(old) != key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_what_follows_from_nothing() {
        let cause = |stage: &str, because: Vec<Reason>, from: Vec<Cause>| Cause {
            stage: stage.to_string(),
            what: "run".to_string(),
            because,
            inputs: BTreeMap::new(),
            from,
        };
        let input = Reason::Input {
            port: "input".into(),
            old: None,
            new: None,
        };
        let version = Reason::Version { old: 1, new: 2 };
        let above = cause("above", vec![version.clone()], Vec::new());
        let tree = cause("below", vec![input, Reason::Forced], vec![above]);
        let root = |stage: &str, reason: Reason| Root {
            stage: stage.to_string(),
            because: vec![reason],
        };
        assert_eq!(tree.roots(), [root("above", version), root("below", Reason::Forced)]);
    }
}
