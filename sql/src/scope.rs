//! The stages of a run and what they left, as statements see them: one name a stage, with the instances of a sweep under
//! it.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use sluice_engine::error::did_you_mean;
use sluice_engine::history::{self, RunRecord};
use sluice_engine::operator::OUT;
use sluice_engine::spec::Reference;
use sluice_engine::store::{KeyRecord, Store};
use sluice_engine::yaml::Span;
use sluice_engine::{Error, Result};

/// What a run left, by stage.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) run: RunRecord,
    /// By the name of the stage as the pipeline writes it.
    stages: BTreeMap<String, Vec<Instance>>,
}

/// A stage, or an instance of it.
#[derive(Clone, Debug)]
pub(crate) struct Instance {
    /// The full name.
    pub(crate) name: String,
    /// Values of the axes that reach it.
    pub(crate) point: Vec<(String, String)>,
    /// Its key, if it is done.
    pub(crate) key: Option<String>,
}

/// A port of a stage: one instance, or all of them.
#[derive(Debug)]
pub(crate) struct Port {
    /// Those that are done, each with its artifact.
    pub(crate) instances: Vec<(Instance, String)>,
    /// Columns for the axes, empty for one instance.
    pub(crate) axes: Vec<FieldRef>,
}

impl Scope {
    /// What the run left. A stage that it did not get to is as an earlier run of its pipeline left it.
    pub(crate) fn of(store: &Store, run: RunRecord) -> Scope {
        let mut keys: BTreeMap<String, Option<String>> = BTreeMap::new();
        if run.state_now() == history::RunState::Running {
            let known = history::summary(&history::events(store, &run.run));
            keys.extend(known.into_iter().map(|(stage, _)| (stage, None)));
        }
        for (stage, key) in run.last.iter().chain(&run.keys) {
            keys.insert(stage.clone(), Some(key.clone()));
        }
        let mut stages: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
        for (name, key) in keys {
            let parsed = Reference::parse(&name, Span::default()).ok();
            let (base, point) = match parsed.filter(|reference| !reference.select.gathers()) {
                Some(reference) => {
                    let axes = reference.select.axes.into_iter();
                    let point = axes.filter_map(|(axis, value)| Some((axis, value?))).collect();
                    (reference.stage, point)
                }
                // A gathered table is a stage of its own.
                None => (name.clone(), Vec::new()),
            };
            stages.entry(base).or_default().push(Instance { name, point, key });
        }
        Scope { run, stages }
    }

    /// Names of the stages.
    pub(crate) fn stages(&self) -> impl Iterator<Item = &str> {
        self.stages.keys().map(String::as_str)
    }

    /// Full names of the instances where there are several.
    pub(crate) fn instances(&self) -> impl Iterator<Item = &str> {
        let swept = self.stages.values().filter(|instances| instances.len() > 1);
        swept.flatten().map(|instance| instance.name.as_str())
    }

    /// Full names of the stages that a key is the result of.
    pub(crate) fn names_of(&self, key: &str) -> Vec<&str> {
        let instances = self.stages.values().flatten();
        let made = instances.filter(|instance| instance.key.as_deref() == Some(key));
        made.map(|instance| instance.name.as_str()).collect()
    }

    /// The instances that a name means: all of a stage, or one by its full name.
    pub(crate) fn find(&self, name: &str) -> Option<Vec<Instance>> {
        if let Some(instances) = self.stages.get(name) {
            return Some(instances.clone());
        }
        let one = |instance: &&Instance| instance.name == name;
        let exact = self.stages.values().flatten().find(one);
        if let Some(instance) = exact {
            return Some(vec![instance.clone()]);
        }
        // Names that are not quoted reach us in small letters.
        let mut alike = self.stages.iter().filter(|(stage, _)| stage.to_lowercase() == name);
        match (alike.next(), alike.next()) {
            (Some((_, instances)), None) => Some(instances.clone()),
            _ => None,
        }
    }

    /// Output ports of a stage: those of any instance that is done.
    pub(crate) fn ports(&self, store: &Store, name: &str) -> Vec<String> {
        let instances = self.find(name).unwrap_or_default();
        let record = instances
            .iter()
            .find_map(|instance| store.known(instance.key.as_ref()?));
        record.map_or_else(Vec::new, |record| record.outputs.into_keys().collect())
    }

    /// The artifacts of a port, by instance. Without a port it is `out`, or the only one, or the only table.
    pub(crate) fn port(&self, store: &Store, name: &str, port: Option<&str>) -> Result<Option<Port>> {
        let Some(instances) = self.find(name) else {
            return Ok(None);
        };
        let mut found = Vec::new();
        let mut chosen: Option<String> = port.map(str::to_string);
        for instance in instances {
            let Some(record) = instance.key.as_ref().and_then(|key| store.known(key)) else {
                continue;
            };
            if chosen.is_none() {
                chosen = Some(default_port(store, name, &record)?);
            }
            let port = chosen.as_deref().unwrap_or(OUT);
            let Some(digest) = record.outputs.get(port) else {
                let names: Vec<&str> = record.outputs.keys().map(String::as_str).collect();
                let mut error = Error::user("unknown-port", format!("stage \"{name}\" has no output \"{port}\""))
                    .detail(format!("it has: {}", names.join(", ")));
                error.hint = did_you_mean(port, names);
                return Err(error);
            };
            found.push((instance, digest.clone()));
        }
        let point = |(instance, _): &(Instance, String)| instance.point.clone();
        let axes = match found.len() {
            0 | 1 => Vec::new(),
            _ => axes(&found.iter().map(point).collect::<Vec<_>>()),
        };
        Ok(Some(Port { instances: found, axes }))
    }
}

impl Port {
    /// The values of the axis columns for an instance.
    pub(crate) fn constants(&self, instance: &Instance) -> Vec<ScalarValue> {
        let value = |field: &FieldRef| {
            let text = instance.point.iter().find(|(axis, _)| column(axis) == *field.name());
            let text = text.map(|(_, value)| value.as_str()).unwrap_or_default();
            match field.data_type() {
                DataType::Int64 => ScalarValue::Int64(text.parse().ok()),
                DataType::Float64 => ScalarValue::Float64(text.parse().ok()),
                _ => ScalarValue::Utf8(Some(text.to_string())),
            }
        };
        self.axes.iter().map(value).collect()
    }
}

/// The name of an axis as a column.
fn column(axis: &str) -> String {
    axis.replace('.', "_")
}

/// Columns for axes: whole numbers, numbers, or text, whichever holds all values.
fn axes(points: &[Vec<(String, String)>]) -> Vec<FieldRef> {
    let names = points.first().into_iter().flatten().map(|(axis, _)| axis);
    names
        .map(|axis| {
            let values = || {
                points
                    .iter()
                    .flatten()
                    .filter(|(name, _)| name == axis)
                    .map(|(_, value)| value)
            };
            let kind = if values().all(|value| value.parse::<i64>().is_ok()) {
                DataType::Int64
            } else if values().all(|value| value.parse::<f64>().is_ok()) {
                DataType::Float64
            } else {
                DataType::Utf8
            };
            FieldRef::new(Field::new(column(axis), kind, false))
        })
        .collect()
}

fn default_port(store: &Store, stage: &str, record: &KeyRecord) -> Result<String> {
    if record.outputs.contains_key(OUT) {
        return Ok(OUT.to_string());
    }
    let is_table = |digest: &str| store.manifest(digest).is_ok_and(|manifest| manifest.layout == "table");
    let tables: Vec<&String> = record
        .outputs
        .iter()
        .filter(|(_, digest)| is_table(digest))
        .map(|(port, _)| port)
        .collect();
    let ports: Vec<&String> = record.outputs.keys().collect();
    match (ports.as_slice(), tables.as_slice()) {
        ([only], _) | (_, [only]) => Ok(only.to_string()),
        _ => {
            let names: Vec<String> = ports.iter().map(|port| format!("{stage}.{port}")).collect();
            Err(
                Error::user("which-port", format!("stage \"{stage}\" has several outputs"))
                    .hint(format!("name one: {}", names.join(", "))),
            )
        }
    }
}
