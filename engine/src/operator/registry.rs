//! Operators without their types: what the registry knows of each, all of it derived from its own declarations.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Binding, Bound, Context, Determinism, Input, Notes, Operator, Source};
use crate::error::Result;
use crate::table::Tables;

/// An operator with its config, without its type.
pub trait Instance: Send + Sync {
    /// The config, every field present, in one form whatever the pipeline wrote (`1` and `1.0` are one number).
    fn config(&self) -> Map<String, Value>;
    /// See [`Operator::seeded`].
    fn seeded(&self) -> bool;
    /// See [`Operator::determinism`].
    fn determinism(&self) -> Determinism;
    /// See [`Operator::extendable`].
    fn extendable(&self) -> bool;
    /// See [`Operator::bind`].
    fn bind(&self, binding: &Binding) -> Bound;
    /// See [`Operator::splits`].
    fn splits(&self, context: &Context) -> Result<usize>;
    /// See [`Operator::open`].
    fn open(&self, context: &Context, split: usize) -> Result<Box<dyn Source>>;
    /// See [`Operator::run`].
    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables>;
    /// See [`Operator::conclude`].
    fn conclude(&self, context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes>;
}

impl<O: Operator> Instance for O {
    fn config(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(config)) => config,
            _ => Map::new(),
        }
    }
    fn seeded(&self) -> bool {
        Operator::seeded(self)
    }
    fn determinism(&self) -> Determinism {
        Operator::determinism(self)
    }
    fn extendable(&self) -> bool {
        Operator::extendable(self)
    }
    fn bind(&self, binding: &Binding) -> Bound {
        Operator::bind(self, binding)
    }
    fn splits(&self, context: &Context) -> Result<usize> {
        Operator::splits(self, context)
    }
    fn open(&self, context: &Context, split: usize) -> Result<Box<dyn Source>> {
        Operator::open(self, context, split)
    }
    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        Operator::run(self, context, inputs)
    }
    fn conclude(&self, context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        Operator::conclude(self, context, rows_in, outputs)
    }
}

/// A config field, as its declaration describes it.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name in YAML.
    pub name: String,
    /// Its doc comment.
    pub about: String,
    /// The default, `None` when it must be given.
    pub default: Option<Value>,
    /// Whether it stays out of the key.
    pub resource: bool,
    /// Whether it says how far to go: part of the key, not of the lineage.
    pub extent: bool,
    /// Whether it came when there were artifacts already: at its default it stays out of the key.
    pub late: bool,
}

impl Field {
    /// Whether the key has the field at this value.
    pub fn is_keyed(&self, value: &Value) -> bool {
        let as_before = self.late && self.default.as_ref() == Some(value);
        !self.resource && !as_before
    }
}

/// What the registry knows of an operator: all of it derived from the operator's own declarations.
#[derive(Clone)]
pub struct Entry {
    /// Name in pipelines.
    pub name: &'static str,
    /// Version of its results.
    pub version: u32,
    /// Whether it draws random numbers.
    pub seeded: bool,
    /// Input ports.
    pub inputs: &'static [Input],
    /// The doc comment of the config struct.
    pub about: String,
    /// Config fields in order of declaration.
    pub fields: Vec<Field>,
    /// JSON schema of the config.
    pub schema: Value,
    make: fn(Value) -> Result<Arc<dyn Instance>, String>,
}

impl Entry {
    fn of<O: Operator>() -> Self {
        let schema = serde_json::to_value(schemars::schema_for!(O)).expect("a schema is JSON");
        let defaults = serde_json::to_value(O::default()).expect("a config is JSON");
        let empty = Map::new();
        let properties = schema["properties"].as_object().unwrap_or(&empty);
        let flag = |name: &str, mark: &str| properties[name][mark].as_bool().unwrap_or(false);
        let fields = properties
            .iter()
            .map(|(name, property)| Field {
                name: name.clone(),
                about: property["description"].as_str().unwrap_or_default().to_string(),
                default: (!flag(name, "x-required")).then(|| defaults[name].clone()),
                resource: flag(name, "x-resource"),
                extent: flag(name, "x-extent"),
                late: flag(name, "x-late"),
            })
            .collect();
        Entry {
            name: O::NAME,
            version: O::VERSION,
            seeded: O::SEEDED,
            inputs: O::INPUTS,
            about: schema["description"].as_str().unwrap_or_default().to_string(),
            fields,
            schema,
            make: |config| match serde_json::from_value::<O>(config) {
                Ok(operator) => Ok(Arc::new(operator)),
                Err(error) => Err(error.to_string()),
            },
        }
    }

    /// The config with every default filled in.
    pub fn defaults(&self) -> Map<String, Value> {
        self.fields
            .iter()
            .filter_map(|field| Some((field.name.clone(), field.default.clone()?)))
            .collect()
    }

    /// Makes the operator from a full config.
    pub fn make(&self, config: Value) -> Result<Arc<dyn Instance>, String> {
        (self.make)(config)
    }
}

/// The operators by name.
#[derive(Clone, Default)]
pub struct Registry {
    entries: BTreeMap<&'static str, Entry>,
    tests: Option<&'static str>,
}

impl Registry {
    /// No operators.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an operator.
    pub fn with<O: Operator>(mut self) -> Self {
        self.entries.insert(O::NAME, Entry::of::<O>());
        self
    }

    /// Adds the operator of `tests:`. Every row of its first output is one that fails.
    pub fn with_tests<O: Operator>(mut self) -> Self {
        self.tests = Some(O::NAME);
        self.with::<O>()
    }

    /// The operator of `tests:`.
    pub fn tests(&self) -> Option<&Entry> {
        self.get(self.tests?)
    }

    /// The operator of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// All operators in order of name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }
}
