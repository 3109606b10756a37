//! Sweeps: axes of values, the points they span, and what a point sets. Pure.
//!
//! ```yaml
//! sweep:
//!   axes:
//!     size:                                    # a value has a name and sets several keys together
//!       small: { tiger.layers: 1, tiger.d_model: 64 }
//!       large: { tiger.layers: 4, tiger.d_model: 128 }
//!     tiger.dropout: [0.0, 0.1]                # a key of a stage
//!     dataset: [beauty, sports]                # a parameter
//!     seed: { set: tiger.seed, to: [1, 2, 3] } # a name of its own for one key; "seed: [1, 2]" is the seed of the run
//!   exclude: [{ size: large, dataset: sports }]
//!   include: [{ size: large, tiger.dropout: 0.3, dataset: beauty, seed: 4 }]
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::error::{Error, did_you_mean};
use crate::yaml::{Data, Key, Node, Span};

/// What an axis value sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The run's seed.
    Seed,
    /// A parameter.
    Param(String),
    /// A key of a stage: the stage and the path below it.
    Key(String, Vec<String>),
}

/// A value of an axis.
#[derive(Clone, Debug)]
pub struct AxisValue {
    /// As it is addressed and as it appears in gathered tables: text, a number or a boolean.
    pub label: Value,
    /// What it sets.
    pub settings: Vec<(Target, Node)>,
}

/// An axis: a name and its values in order.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Its name and place.
    pub name: Key,
    /// Its values.
    pub values: Vec<AxisValue>,
}

/// A sweep: its axes and the points they span.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Axes in the order of the file.
    pub axes: Vec<Axis>,
    /// Points: for every axis the index of its value. In the order of the product, then of `include:`.
    pub points: Vec<Vec<usize>>,
}

/// Values of some axes: (axis, value) by index, in the order of the axes.
pub type Point = Vec<(usize, usize)>;

impl Sweep {
    /// Reads `sweep:`. `stages` and `params` are the names that axes may refer to. Problems come with their place.
    pub fn parse(node: &Node, stages: &[&str], params: &BTreeSet<String>) -> Result<Sweep, Vec<(Span, Error)>> {
        let mut reader = Reader {
            stages,
            params,
            problems: Vec::new(),
        };
        let sweep = reader.sweep(node);
        match (sweep, reader.problems.is_empty()) {
            (Some(sweep), true) => Ok(sweep),
            (_, _) => Err(reader.problems),
        }
    }

    /// The distinct parts of the points that lie on `axes` (indices in order), in the order of the points.
    pub fn project(&self, axes: &[usize]) -> Vec<Point> {
        let mut seen = BTreeSet::new();
        let parts = self
            .points
            .iter()
            .map(|point| axes.iter().map(|axis| (*axis, point[*axis])).collect::<Point>());
        parts.filter(|part| seen.insert(part.clone())).collect()
    }

    /// The label of a value.
    pub fn label(&self, (axis, value): (usize, usize)) -> &Value {
        &self.axes[axis].values[value].label
    }

    /// `[size=large,seed=2]`, or nothing for no axis.
    pub fn suffix(&self, point: &Point) -> String {
        if point.is_empty() {
            return String::new();
        }
        let parts: Vec<String> = point
            .iter()
            .map(|at| format!("{}={}", self.axes[at.0].name.name, text(self.label(*at))))
            .collect();
        format!("[{}]", parts.join(","))
    }

    /// The axis of that name.
    pub fn axis(&self, name: &str) -> Option<usize> {
        self.axes.iter().position(|axis| axis.name.name == name)
    }

    /// Whether some value of the axis sets something that `wanted` says yes to.
    pub fn sets(&self, axis: usize, wanted: impl Fn(&Target) -> bool) -> bool {
        let mut settings = self.axes[axis].values.iter().flat_map(|value| &value.settings);
        settings.any(|(target, _)| wanted(target))
    }

    /// What the values of a point set, in order.
    pub fn settings<'a>(&'a self, point: &'a Point) -> impl Iterator<Item = &'a (Target, Node)> {
        point
            .iter()
            .flat_map(|(axis, value)| &self.axes[*axis].values[*value].settings)
    }
}

/// A label as text: `13m`, `0.1`, `true`.
pub fn text(label: &Value) -> String {
    match label {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

struct Reader<'a> {
    stages: &'a [&'a str],
    params: &'a BTreeSet<String>,
    problems: Vec<(Span, Error)>,
}

impl Reader<'_> {
    fn problem(&mut self, span: Span, error: Error) {
        self.problems.push((span, error));
    }

    fn sweep(&mut self, node: &Node) -> Option<Sweep> {
        let Data::Map(entries) = &node.data else {
            let error = Error::user("bad-sweep", format!("\"sweep\" wants a map, this is {}", node.kind()));
            self.problem(node.span, error.hint("write sweep: { axes: { seed: [1, 2, 3] } }"));
            return None;
        };
        let mut axes = Vec::new();
        let (mut exclude, mut include) = (None, None);
        for (key, value) in entries {
            match (key.name.as_str(), &value.data) {
                ("axes", Data::Map(entries)) => {
                    axes.extend(entries.iter().filter_map(|(name, values)| self.axis(name, values)));
                }
                ("exclude", Data::List(_)) => exclude = Some(value),
                ("include", Data::List(_)) => include = Some(value),
                ("axes", _) => self.problem(
                    value.span,
                    Error::user("bad-sweep", "\"axes\" wants a map of axis: values"),
                ),
                ("exclude" | "include", _) => self.problem(
                    value.span,
                    Error::user("bad-sweep", format!("\"{}\" wants a list of points", key.name))
                        .hint("write - { size: 13m, seed: 2 }"),
                ),
                (other, _) => {
                    let known = ["axes", "exclude", "include"];
                    let mut error = Error::user("unknown-key", format!("unknown key \"{other}\" in the sweep"))
                        .detail(format!("known: {}", known.join(", ")));
                    error.hint = did_you_mean(other, known);
                    self.problem(key.span, error);
                }
            }
        }
        if axes.is_empty() {
            if self.problems.is_empty() {
                self.problem(node.span, Error::user("bad-sweep", "the sweep has no axes"));
            }
            return None;
        }
        let mut sweep = Sweep {
            axes,
            points: Vec::new(),
        };
        // Included rows may bring new values, which only they have.
        let counts: Vec<usize> = sweep.axes.iter().map(|axis| axis.values.len()).collect();
        let excluded = self.rows(exclude, &mut sweep, false);
        let included = self.rows(include, &mut sweep, true);
        let mut points = vec![Vec::new()];
        for count in counts {
            points = points
                .into_iter()
                .flat_map(|point: Vec<usize>| (0..count).map(move |value| [point.as_slice(), &[value]].concat()))
                .collect();
        }
        points.retain(|point| {
            !excluded
                .iter()
                .any(|row| row.iter().all(|(axis, value)| point[*axis] == *value))
        });
        for row in included {
            let point: Vec<usize> = row.iter().map(|(_, value)| *value).collect();
            if !points.contains(&point) {
                points.push(point);
            }
        }
        if points.is_empty() && self.problems.is_empty() {
            self.problem(
                node.span,
                Error::user("bad-sweep", "\"exclude\" leaves no point of the sweep"),
            );
        }
        sweep.points = points;
        Some(sweep)
    }

    fn axis(&mut self, name: &Key, node: &Node) -> Option<Axis> {
        let mut values = Vec::new();
        match &node.data {
            Data::List(items) => {
                let targets = vec![self.target(&name.name, name.span)?];
                values = self.scalars(items, &targets)?;
            }
            Data::Map(entries) => {
                let get = |wanted: &str| entries.iter().find(|(key, _)| key.name == wanted).map(|(_, node)| node);
                if let (Some(set), Some(to), 2) = (get("set"), get("to"), entries.len()) {
                    let paths: Vec<&Node> = match &set.data {
                        Data::List(items) => items.iter().collect(),
                        _ => vec![set],
                    };
                    let mut targets = Vec::new();
                    for path in paths {
                        targets.push(self.target(path.text().unwrap_or_default(), path.span)?);
                    }
                    let Data::List(items) = &to.data else {
                        self.problem(to.span, Error::user("bad-sweep", "\"to\" wants a list of values"));
                        return None;
                    };
                    values = self.scalars(items, &targets)?;
                } else {
                    for (label, settings) in entries {
                        let Data::Map(settings) = &settings.data else {
                            let message = format!("value \"{}\" of axis \"{}\" wants a map", label.name, name.name);
                            self.problem(
                                settings.span,
                                Error::user("bad-sweep", message).hint("write NAME: { stage.key: value, ... }"),
                            );
                            continue;
                        };
                        let settings: Vec<(Target, Node)> = settings
                            .iter()
                            .filter_map(|(path, value)| Some((self.target(&path.name, path.span)?, value.clone())))
                            .collect();
                        let label_value = Value::String(label.name.clone());
                        self.label(&label_value, label.span)?;
                        values.push(AxisValue {
                            label: label_value,
                            settings,
                        });
                    }
                }
            }
            Data::Scalar(_) => {
                let message = format!("axis \"{}\" wants a list of values, this is {}", name.name, node.kind());
                self.problem(node.span, Error::user("bad-sweep", message));
                return None;
            }
        }
        if values.is_empty() {
            self.problem(
                node.span,
                Error::user("bad-sweep", format!("axis \"{}\" has no values", name.name)),
            );
            return None;
        }
        let mut seen = BTreeSet::new();
        for value in &values {
            if !seen.insert(text(&value.label)) {
                let message = format!("axis \"{}\" has the value {} twice", name.name, text(&value.label));
                self.problem(node.span, Error::user("duplicate-key", message));
            }
        }
        if !name
            .name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        {
            self.problem(
                name.span,
                Error::user("bad-name", format!("\"{}\" is no name for an axis", name.name)),
            );
        }
        Some(Axis {
            name: name.clone(),
            values,
        })
    }

    fn scalars(&mut self, items: &[Node], targets: &[Target]) -> Option<Vec<AxisValue>> {
        let mut values = Vec::new();
        for item in items {
            let label = item.value();
            if !matches!(item.data, Data::Scalar(_)) || label.is_null() {
                self.problem(
                    item.span,
                    Error::user(
                        "bad-sweep",
                        format!("a value of an axis is a text or a number, this is {}", item.kind()),
                    )
                    .hint("give it a name: AXIS: { NAME: { stage.key: VALUE } }"),
                );
                return None;
            }
            self.label(&label, item.span)?;
            values.push(AxisValue {
                settings: targets.iter().map(|target| (target.clone(), item.clone())).collect(),
                label,
            });
        }
        Some(values)
    }

    /// A label is part of the names of instances.
    fn label(&mut self, label: &Value, span: Span) -> Option<()> {
        let text = text(label);
        if text.is_empty() || text.contains(['[', ']', ',', '=', '*']) || text.contains(char::is_whitespace) {
            self.problem(
                span,
                Error::user("bad-name", format!("\"{text}\" cannot name a value of an axis"))
                    .hint("name it: AXIS: { NAME: { stage.key: VALUE } }; no [ ] , = * or blanks"),
            );
            return None;
        }
        Some(())
    }

    fn target(&mut self, path: &str, span: Span) -> Option<Target> {
        if path == "seed" {
            return Some(Target::Seed);
        }
        if self.params.contains(path) {
            return Some(Target::Param(path.to_string()));
        }
        let mut parts = path.split('.');
        let stage = parts.next().unwrap_or_default();
        let keys: Vec<String> = parts.map(str::to_string).collect();
        if self.stages.contains(&stage) && !keys.is_empty() && keys.iter().all(|key| !key.is_empty()) {
            return Some(Target::Key(stage.to_string(), keys));
        }
        let mut error = Error::user("unknown-axis", format!("\"{path}\" is nothing that an axis can set"))
            .detail("an axis sets \"seed\", a parameter, or STAGE.KEY");
        let known = self
            .stages
            .iter()
            .copied()
            .chain(self.params.iter().map(String::as_str));
        error.hint = match self.stages.contains(&stage) {
            true => Some(format!("say which key of it: {stage}.KEY")),
            false => did_you_mean(stage, known.chain(["seed"])),
        };
        self.problem(span, error);
        None
    }

    /// Rows of `exclude:` (which may leave axes out) or `include:` (which must name all, and may bring values).
    fn rows(&mut self, node: Option<&Node>, sweep: &mut Sweep, include: bool) -> Vec<Point> {
        let Some(Data::List(items)) = node.map(|node| &node.data) else {
            return Vec::new();
        };
        let mut rows = Vec::new();
        for item in items {
            let Data::Map(entries) = &item.data else {
                self.problem(
                    item.span,
                    Error::user(
                        "bad-sweep",
                        format!("a point is a map of axis: value, this is {}", item.kind()),
                    ),
                );
                continue;
            };
            let mut row: BTreeMap<usize, usize> = BTreeMap::new();
            for (key, value) in entries {
                let Some(axis) = sweep.axis(&key.name) else {
                    let names: Vec<&str> = sweep.axes.iter().map(|axis| axis.name.name.as_str()).collect();
                    let mut error = Error::user("unknown-axis", format!("the sweep has no axis \"{}\"", key.name))
                        .detail(format!("it has: {}", names.join(", ")));
                    error.hint = did_you_mean(&key.name, names);
                    self.problem(key.span, error);
                    continue;
                };
                let label = text(&value.value());
                let known = sweep.axes[axis]
                    .values
                    .iter()
                    .position(|known| text(&known.label) == label);
                let found = match known {
                    Some(found) => Some(found),
                    // A value that sets one thing can be made from a new number; a named one cannot.
                    None if include => sweep.axes[axis]
                        .new_value(value)
                        .filter(|new| self.label(&new.label, value.span).is_some())
                        .map(|new| {
                            sweep.axes[axis].values.push(new);
                            sweep.axes[axis].values.len() - 1
                        }),
                    None => None,
                };
                match found {
                    Some(found) => {
                        row.insert(axis, found);
                    }
                    None => {
                        let labels: Vec<String> =
                            sweep.axes[axis].values.iter().map(|value| text(&value.label)).collect();
                        let mut error =
                            Error::user("unknown-value", format!("axis \"{}\" has no value {label}", key.name))
                                .detail(format!("it has: {}", labels.join(", ")));
                        error.hint = did_you_mean(&label, labels.iter().map(String::as_str));
                        self.problem(value.span, error);
                    }
                }
            }
            if include && row.len() < sweep.axes.len() && self.problems.is_empty() {
                let missing: Vec<&str> = (0..sweep.axes.len())
                    .filter(|axis| !row.contains_key(axis))
                    .map(|axis| sweep.axes[axis].name.name.as_str())
                    .collect();
                self.problem(
                    item.span,
                    Error::user(
                        "bad-sweep",
                        format!("an included point wants a value for {}", missing.join(", ")),
                    ),
                );
                continue;
            }
            rows.push(row.into_iter().collect());
        }
        rows
    }
}

impl Axis {
    /// Another value of an axis of plain values.
    fn new_value(&self, node: &Node) -> Option<AxisValue> {
        let plain = self.values.iter().all(|value| {
            value
                .settings
                .iter()
                .all(|(_, setting)| text(&setting.value()) == text(&value.label))
        });
        let like = self
            .values
            .first()
            .filter(|_| plain && matches!(node.data, Data::Scalar(_)))?;
        Some(AxisValue {
            label: node.value(),
            settings: like
                .settings
                .iter()
                .map(|(target, _)| (target.clone(), node.clone()))
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::{self, Source};

    fn parse(text: &str) -> Result<Sweep, String> {
        let source = Source {
            name: "p.yaml".into(),
            text: text.into(),
        };
        let params = BTreeSet::from(["dataset".to_string()]);
        Sweep::parse(&yaml::parse(0, &source).unwrap(), &["tiger", "core"], &params).map_err(|problems| {
            problems
                .iter()
                .map(|(_, error)| error.to_string())
                .collect::<Vec<_>>()
                .join("\n")
        })
    }

    fn names(sweep: &Sweep) -> Vec<String> {
        let all: Vec<usize> = (0..sweep.axes.len()).collect();
        sweep.project(&all).iter().map(|point| sweep.suffix(point)).collect()
    }

    #[test]
    fn axes_multiply_and_rows_come_and_go() {
        let sweep = parse(
            "axes: { size: { s: { tiger.layers: 1, tiger.d_model: 8 }, l: { tiger.layers: 2 } }, seed: { set: tiger.seed, to: [1, 2] } }
exclude: [{ size: l, seed: 2 }]
include: [{ size: l, seed: 7 }]",
        )
        .unwrap();
        assert_eq!(
            names(&sweep),
            [
                "[size=s,seed=1]",
                "[size=s,seed=2]",
                "[size=l,seed=1]",
                "[size=l,seed=7]"
            ]
        );
        assert_eq!(sweep.project(&[0]).len(), 2);
        assert_eq!(sweep.settings(&vec![(0, 0)]).count(), 2);
        assert!(sweep.sets(1, |target| *target == Target::Key("tiger".into(), vec!["seed".into()])));
    }

    #[test]
    fn what_an_axis_cannot_be() {
        for (text, wanted) in [
            ("axes: { tigre.layers: [1] }", "did you mean \"tiger\"?"),
            ("axes: { tiger: [1] }", "tiger.KEY"),
            ("axes: { seed: [] }", "has no values"),
            ("axes: { seed: [1, 1] }", "twice"),
            ("axes: { seed: 3 }", "wants a list"),
            ("axes: { core.k: [[1, 2]] }", "give it a name"),
            ("axes: { seed: [1] }\nexclude: [{ seed: 1 }]", "leaves no point"),
            (
                "axes: { seed: [1], core.k: [2] }\ninclude: [{ seed: 1 }]",
                "wants a value for core.k",
            ),
            (
                "axes: { size: { s: { core.k: 1 } } }\ninclude: [{ size: xl }]",
                "no value xl",
            ),
            ("axis: { seed: [1] }", "did you mean \"axes\"?"),
            ("axes: { dataset: [a b] }", "cannot name"),
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.contains(wanted), "{text}: {message}");
        }
    }
}
