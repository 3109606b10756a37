//! The course of a run, followed as its journal grows: stages, how far they are, and curves.

use std::collections::BTreeMap;

use serde::Serialize;
use sluice_engine::event::{Entry, Event};
use sluice_engine::history::{self, StageSummary, summary};
use sluice_engine::operator::{Notes, Progress};
use sluice_engine::store::Store;

use crate::index::Counts;

/// Bytes of a journal that are read at once.
const PIECE: u64 = 1 << 20;
/// Points of a curve; with more, every second one goes.
const POINTS: usize = 1200;

/// What happened in a run so far.
#[derive(Default)]
pub(crate) struct Course {
    /// The byte of the journal that comes next.
    next: u64,
    /// Everything but progress.
    entries: Vec<Entry>,
    stages: Vec<(String, StageSummary)>,
    /// The operator, by stage that began to run.
    operators: BTreeMap<String, String>,
    /// How far it is, by stage, and when it said so.
    progress: BTreeMap<String, (u64, Progress)>,
    /// What operators said at the end, by stage.
    notes: BTreeMap<String, Notes>,
    /// By stage and figure.
    curves: BTreeMap<(String, String), Curve>,
}

/// Values of a figure while a stage ran.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Curve {
    /// What `done` counts.
    pub(crate) unit: String,
    /// Units done, and the value then.
    pub(crate) points: Vec<(u64, f64)>,
    /// One of so many values is a point.
    #[serde(skip)]
    stride: usize,
    #[serde(skip)]
    seen: usize,
    /// The newest value, which may not be a point.
    pub(crate) newest: Option<(u64, f64)>,
}

impl Curve {
    fn add(&mut self, unit: &str, done: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        if self.newest.is_some_and(|(before, _)| done < before) {
            // The stage began again: what came later the first time did not happen.
            self.points.retain(|(at, _)| *at < done);
        }
        self.unit = unit.to_string();
        self.newest = Some((done, value));
        if self.seen.is_multiple_of(self.stride.max(1)) {
            self.points.push((done, value));
        }
        self.seen += 1;
        if self.points.len() >= POINTS {
            let mut odd = false;
            self.points.retain(|_| {
                odd = !odd;
                odd
            });
            self.stride = self.stride.max(1) * 2;
        }
    }
}

impl Course {
    /// Reads what was written since.
    pub(crate) fn follow(&mut self, store: &Store, run: &str) {
        if history::stamp(store, run).journal < self.next {
            // Another journal stands in its place.
            *self = Course::default();
        }
        let before = self.entries.len();
        loop {
            let piece = history::window(store, run, self.next, PIECE);
            if piece.to <= self.next {
                break;
            }
            self.next = piece.to;
            piece.entries.into_iter().for_each(|entry| self.hear(entry));
        }
        if self.entries.len() > before {
            self.stages = summary(&self.entries);
        }
    }

    fn hear(&mut self, entry: Entry) {
        match &entry.event {
            Event::StageProgress { stage, progress } => {
                for (figure, value) in &progress.figures {
                    let curve = self.curves.entry((stage.clone(), figure.clone())).or_default();
                    curve.add(&progress.unit, progress.done, *value);
                }
                self.progress.insert(stage.clone(), (entry.at, progress.clone()));
                return;
            }
            Event::StageStarted { stage, operator, .. } => {
                self.operators.insert(stage.clone(), operator.clone());
                self.progress.remove(stage);
            }
            Event::StageFinished { stage, notes, .. } => {
                self.notes.insert(stage.clone(), notes.clone());
            }
            _ => {}
        }
        self.entries.push(entry);
    }

    /// What became of every stage, in the order of the plan.
    pub(crate) fn stages(&self) -> &[(String, StageSummary)] {
        &self.stages
    }

    pub(crate) fn operator(&self, stage: &str) -> Option<&String> {
        self.operators.get(stage)
    }

    pub(crate) fn progress(&self, stage: &str) -> Option<&(u64, Progress)> {
        self.progress.get(stage)
    }

    pub(crate) fn notes(&self, stage: &str) -> Option<&Notes> {
        self.notes.get(stage)
    }

    /// Curves by stage and figure.
    pub(crate) fn curves(&self) -> impl Iterator<Item = (&str, &str, &Curve)> {
        self.curves
            .iter()
            .map(|((stage, figure), curve)| (stage.as_str(), figure.as_str(), curve))
    }

    /// Keys of the stages that are done.
    pub(crate) fn keys(&self) -> BTreeMap<String, String> {
        let done = |(stage, summary): &(String, StageSummary)| {
            let done = matches!(summary.outcome, "ran" | "reused");
            Some((stage.clone(), summary.key.clone().filter(|_| done)?))
        };
        self.stages.iter().filter_map(done).collect()
    }

    /// Stages by what became of them.
    pub(crate) fn counts(&self) -> Counts {
        let count = |outcomes: &[&str]| {
            let of = self
                .stages
                .iter()
                .filter(|(_, stage)| outcomes.contains(&stage.outcome));
            of.count()
        };
        Counts {
            stages: self.stages.len() - count(&["left_out"]),
            ran: count(&["ran", "agrees"]),
            reused: count(&["reused"]),
            failed: count(&["failed", "differs"]),
            blocked: count(&["blocked"]),
            running: count(&["running"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_shape_and_its_end() {
        let mut curve = Curve::default();
        (0..10_000).for_each(|step| curve.add("steps", step, step as f64 / 2.0));
        assert!(
            (POINTS / 2..POINTS).contains(&curve.points.len()),
            "{}",
            curve.points.len()
        );
        assert_eq!((curve.points[0], curve.newest), ((0, 0.0), Some((9_999, 4_999.5))));
        assert!(curve.points.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }

    #[test]
    fn a_training_that_began_again_is_told_once() {
        let mut curve = Curve::default();
        for (done, value) in [(1, 5.0), (2, 4.0), (3, 3.0), (2, 3.5), (3, f64::NAN), (3, 2.5)] {
            curve.add("steps", done, value);
        }
        assert_eq!(curve.points, [(1, 5.0), (2, 3.5), (3, 2.5)]);
    }
}
