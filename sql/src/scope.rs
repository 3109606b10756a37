//! The stages of a run and what they left, as statements see them: one name a stage, with the instances of a sweep under
//! it.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::ScalarValue;
use sluice_engine::error::did_you_mean;
use sluice_engine::history::{self, RunRecord, RunState, StageSummary};
use sluice_engine::operator::OUT;
use sluice_engine::spec::Reference;
use sluice_engine::store::{KeyRecord, Store};
use sluice_engine::yaml::Span;
use sluice_engine::{Error, Result};

/// What a stage is called that failed; see [`StageSummary`].
const FAILED: &str = "failed";

/// What a run left, by stage.
#[derive(Debug)]
pub(crate) struct Scope {
    pub(crate) run: RunRecord,
    /// By the name of the stage as the pipeline writes it.
    stages: BTreeMap<String, Vec<Instance>>,
    /// What became of stages that are not done, by full name.
    undone: BTreeMap<String, StageSummary>,
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
    /// Columns for the axes, empty for an instance by its full name.
    pub(crate) axes: Vec<FieldRef>,
}

impl Scope {
    /// What the run left. A stage that it did not get to is as an earlier run of its pipeline left it; one that it began
    /// and did not finish is not.
    pub(crate) fn of(store: &Store, run: RunRecord) -> Scope {
        let mut undone: BTreeMap<String, StageSummary> = BTreeMap::new();
        if run.state != RunState::Done {
            undone.extend(history::summary(&history::events(store, &run.run)));
            undone.retain(|stage, told| told.outcome != "left_out" && !run.keys.contains_key(stage));
        }
        let begun = |stage: &String| undone.get(stage).is_some_and(is_begun);
        let mut keys: BTreeMap<String, Option<String>> = undone.keys().map(|stage| (stage.clone(), None)).collect();
        // Rows that failed a test are published all the same.
        let published = undone
            .iter()
            .filter_map(|(stage, told)| Some((stage, told.key.as_ref()?)));
        let earlier = run.last.iter().filter(|(stage, _)| !begun(stage));
        for (stage, key) in earlier.chain(published).chain(&run.keys) {
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
        Scope { run, stages, undone }
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

    /// What became of a stage of which nothing is done, of its failed instance first.
    pub(crate) fn undone(&self, name: &str) -> Option<&StageSummary> {
        let instances = self.find(name)?;
        if instances.iter().any(|instance| instance.key.is_some()) {
            return None;
        }
        let told = || instances.iter().filter_map(|instance| self.undone.get(&instance.name));
        told().find(|told| told.outcome == FAILED).or_else(|| told().next())
    }

    /// Whether the run still works on a stage, or will.
    pub(crate) fn is_under_way(&self, name: &str) -> bool {
        let open = |instance: &Instance| {
            let told = self.undone.get(&instance.name);
            told.is_some_and(|told| told.outcome != FAILED)
        };
        self.run.state_now() == RunState::Running && self.find(name).is_some_and(|found| found.iter().any(open))
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
        // An instance by its full name has no axes; nor has a stage that is not swept, which has no point.
        let axes = match instances.as_slice() {
            [one] if one.name == name => Vec::new(),
            all => axes(&all.iter().map(|instance| instance.point.as_slice()).collect::<Vec<_>>()),
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
        Ok(Some(Port { instances: found, axes }))
    }
}

impl Port {
    /// The values of the axis columns for an instance.
    pub(crate) fn constants(&self, instance: &Instance) -> Vec<ScalarValue> {
        let value = |field: &FieldRef| {
            let text = instance.point.iter().find(|(axis, _)| column(axis) == *field.name());
            let text = text.map(|(_, value)| value.as_str());
            match field.data_type() {
                DataType::Int64 => ScalarValue::Int64(text.and_then(|text| text.parse().ok())),
                DataType::Float64 => ScalarValue::Float64(text.and_then(|text| text.parse().ok())),
                _ => ScalarValue::Utf8(text.map(str::to_string)),
            }
        };
        self.axes.iter().map(value).collect()
    }
}

/// Whether a stage was begun.
fn is_begun(told: &StageSummary) -> bool {
    ["running", FAILED].contains(&told.outcome)
}

/// The name of an axis as a column.
fn column(axis: &str) -> String {
    axis.replace('.', "_")
}

/// Columns for axes: whole numbers, numbers, or text, whichever tells all values apart as they are written.
fn axes(points: &[&[(String, String)]]) -> Vec<FieldRef> {
    let mut names: Vec<&String> = Vec::new();
    for (axis, _) in points.iter().copied().flatten() {
        if !names.contains(&axis) {
            names.push(axis);
        }
    }
    let field = |axis: &String| {
        let all = points.iter().copied().flatten().filter(|(name, _)| name == axis);
        let values: Vec<&str> = all.map(|(_, value)| value.as_str()).collect();
        let kind = if values.iter().all(|value| is_whole(value)) {
            DataType::Int64
        } else if are_numbers(&values) {
            DataType::Float64
        } else {
            DataType::Utf8
        };
        FieldRef::new(Field::new(column(axis), kind, values.len() < points.len()))
    };
    names.into_iter().map(field).collect()
}

/// Whether it is a whole number as it is written.
fn is_whole(value: &str) -> bool {
    value.parse::<i64>().is_ok_and(|number| number.to_string() == value)
}

/// Whether all are numbers in digits, and no two of them the same number.
fn are_numbers(values: &[&str]) -> bool {
    let plain = |value: &str| {
        let digits = value.strip_prefix('-').unwrap_or(value);
        match digits.split_once('.') {
            Some((whole, part)) => {
                is_whole(whole) && !part.is_empty() && part.bytes().all(|digit| digit.is_ascii_digit())
            }
            None => is_whole(value),
        }
    };
    let texts: BTreeSet<&str> = values.iter().copied().collect();
    let numbers: BTreeSet<u64> = texts
        .iter()
        .filter(|value| plain(value))
        .filter_map(|value| Some(value.parse::<f64>().ok()?.to_bits()))
        .collect();
    numbers.len() == texts.len()
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

#[cfg(test)]
mod tests {
    use sluice_engine::event::{Entry, Event};
    use sluice_engine::process::Process;

    use super::*;

    /// What a run of the stages `a` (done), `b` and `c` left, all of which an earlier one had done.
    fn left(state: RunState, events: Vec<Event>) -> Scope {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let journal = store.run_folder("new");
        std::fs::create_dir_all(&journal).unwrap();
        let lines = events.into_iter().map(|event| Entry { at: 0, event });
        let lines: Vec<String> = lines.map(|line| serde_json::to_string(&line).unwrap() + "\n").collect();
        std::fs::write(journal.join("events.jsonl"), lines.concat()).unwrap();
        let keys = |key: &str, stages: &[&str]| -> BTreeMap<String, String> {
            let pairs = stages.iter().map(|stage| (stage.to_string(), key.to_string()));
            pairs.collect()
        };
        let run = RunRecord {
            run: "new".to_string(),
            pipeline: "p".to_string(),
            state,
            started: 0,
            seconds: 0.0,
            seed: 0,
            command: Vec::new(),
            plan: String::new(),
            process: Process::here(),
            pinned: false,
            keys: keys("new", &["a"]),
            last: keys("old", &["a", "b", "c"]),
            errors: Vec::new(),
        };
        Scope::of(&store, run)
    }

    #[test]
    fn what_a_run_began_is_not_what_an_earlier_one_made() {
        let started = || Event::StageStarted {
            stage: "b".to_string(),
            operator: "o".to_string(),
            gpus: Vec::new(),
        };
        let failed = Event::StageFailed {
            stage: "b".to_string(),
            error: Error::user("broken", "it broke"),
        };
        let key = |scope: &Scope, stage: &str| scope.find(stage).unwrap()[0].key.clone();
        for (state, events) in [
            (RunState::Running, vec![started()]),
            (RunState::Interrupted, vec![started()]),
            (RunState::Failed, vec![started(), failed]),
        ] {
            let scope = left(state, events);
            assert_eq!(key(&scope, "a").as_deref(), Some("new"), "{state:?}");
            assert_eq!(key(&scope, "b"), None, "{state:?}");
            assert_eq!(key(&scope, "c").as_deref(), Some("old"), "{state:?}");
            let told = scope.undone("b").unwrap();
            assert_eq!(told.error.is_some(), state == RunState::Failed);
            assert_eq!(scope.is_under_way("b"), state == RunState::Running);
            assert!(scope.undone("a").is_none() && scope.undone("c").is_none());
        }
    }

    fn kinds(values: &[&str]) -> DataType {
        let points: Vec<Vec<(String, String)>> = values
            .iter()
            .map(|value| vec![("core.k".to_string(), value.to_string())])
            .collect();
        let fields = axes(&points.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(fields[0].name(), "core_k");
        fields[0].data_type().clone()
    }

    #[test]
    fn labels_are_numbers_where_they_are_written_so() {
        assert_eq!(kinds(&["1", "-2", "10"]), DataType::Int64);
        assert_eq!(kinds(&["0.5", "1.0", "2", "-0.25"]), DataType::Float64);
        for texts in [
            &["01", "1"][..],
            &["1e1", "2"],
            &["nan", "1"],
            &["inf"],
            &["+1"],
            &["1.0", "1"],
            &["0.1", "0.10"],
            &[".5", "1.5"],
            &["--1.5"],
            &["a"],
        ] {
            assert_eq!(kinds(texts), DataType::Utf8, "{texts:?}");
        }
    }
}
