//! `params:`, `presets:`, and `${name}` where their values go.
//!
//! ```yaml
//! params: { budget: small, users: 100 }
//! presets:
//!   budget:                        # the value of this parameter says
//!     small: { steps: 100 }        # what these are
//!     full: { steps: 20000, users: 22363 }
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Overrides, Reader};
use crate::error::{Error, did_you_mean};
use crate::sweep::text;
use crate::yaml::{Data, Key, Node};

/// The values of a parameter, and what each of them sets.
struct Preset {
    of: Key,
    choices: Vec<(Key, Vec<(Key, Node)>)>,
}

impl Preset {
    fn sets(&self, name: &str) -> bool {
        let mut keys = self.choices.iter().flat_map(|(_, values)| values);
        keys.any(|(key, _)| key.name == name)
    }
}

impl Reader {
    /// Puts into `params` what presets say and, before them, the command line. Gives the parameters that choose a preset.
    pub(super) fn parameters(
        &mut self,
        presets: Option<Node>,
        overrides: &Overrides,
        params: &mut BTreeMap<String, Node>,
    ) -> BTreeSet<String> {
        let presets = presets.map(|node| self.presets(node)).unwrap_or_default();
        let mut given = BTreeSet::new();
        for assignment in &overrides.params {
            let Some((name, node)) = self.assignment("--param", assignment) else {
                continue;
            };
            if params.contains_key(&name) || presets.iter().any(|preset| preset.sets(&name)) {
                given.insert(name.clone());
                params.insert(name, node);
                continue;
            }
            let known = presets.iter().flat_map(|preset| &preset.choices);
            let known = known.flat_map(|(_, values)| values).map(|(key, _)| key.name.as_str());
            let mut error = Error::user("unknown-param", format!("the pipeline has no parameter \"{name}\""));
            error.hint = did_you_mean(&name, params.keys().map(String::as_str).chain(known));
            self.problem(node.span, error);
        }
        let chosen: BTreeSet<String> = presets.iter().map(|preset| preset.of.name.clone()).collect();
        let mut set = BTreeSet::new();
        for preset in presets {
            for (key, node) in self.choice(preset, params) {
                if chosen.contains(&key.name) || !set.insert(key.name.clone()) {
                    let error = Error::user("bad-preset", format!("another preset has or sets \"{}\"", key.name));
                    self.problem(key.span, error.hint("every parameter has its value from one place"));
                } else if !given.contains(&key.name) {
                    params.insert(key.name, node);
                }
            }
        }
        chosen
    }

    /// What the value of its parameter sets; of an unknown value, what the first of the known ones does, for no more to
    /// be said of it.
    fn choice(&mut self, preset: Preset, params: &BTreeMap<String, Node>) -> Vec<(Key, Node)> {
        let name = &preset.of.name;
        let Some(node) = params.get(name) else {
            let mut error = Error::user("unknown-param", format!("presets of \"{name}\", which is no parameter"));
            error.hint = Some(format!("say under \"params:\" which one is meant: {{ {name}: VALUE }}"));
            self.problem(preset.of.span, error);
            return Vec::new();
        };
        let value = text(&node.value());
        let names: Vec<String> = preset.choices.iter().map(|(key, _)| key.name.clone()).collect();
        let known = names.iter().position(|name| *name == value);
        let values = preset.choices.into_iter().nth(known.unwrap_or(0));
        let values = values.map(|(_, values)| values).unwrap_or_default();
        if known.is_some() {
            return values;
        }
        let mut error = Error::user("unknown-preset", format!("\"{name}\" has no preset \"{value}\""))
            .detail(format!("known: {}", names.join(", ")));
        error.hint = did_you_mean(&value, names.iter().map(String::as_str));
        self.problem(node.span, error);
        values
    }

    /// Reads `presets:`.
    fn presets(&mut self, node: Node) -> Vec<Preset> {
        let mut presets = Vec::new();
        for (of, node) in self.entries(node, "\"presets\" wants a map of parameter: presets") {
            let mut choices = Vec::new();
            for (choice, node) in self.entries(node, "a preset wants a map of value: parameters") {
                choices.push((choice, self.entries(node, "a preset sets a map of name: value")));
            }
            presets.push(Preset { of, choices });
        }
        presets
    }

    fn entries(&mut self, node: Node, wanted: &str) -> Vec<(Key, Node)> {
        match node.data {
            Data::Map(entries) => entries,
            _ => {
                let error = Error::user("bad-value", format!("{wanted}, this is {}", node.kind()));
                self.problem(node.span, error);
                Vec::new()
            }
        }
    }

    /// Replaces `${name}`; a scalar that is nothing but `${name}` takes the parameter's own type.
    pub(super) fn substitute(&mut self, node: &mut Node, params: &BTreeMap<String, Node>) {
        let span = node.span;
        match &mut node.data {
            Data::List(items) => items.iter_mut().for_each(|item| self.substitute(item, params)),
            Data::Map(entries) => entries.iter_mut().for_each(|(_, value)| self.substitute(value, params)),
            Data::Scalar(Value::String(text)) => {
                let mut result = String::new();
                let mut rest = text.as_str();
                while let Some(start) = rest.find("${") {
                    let Some(end) = rest[start..].find('}') else { break };
                    let name = &rest[start + 2..start + end];
                    let Some(param) = params.get(name) else {
                        let mut error = Error::user("unknown-param", format!("unknown parameter \"{name}\""));
                        error.hint = did_you_mean(name, params.keys().map(String::as_str))
                            .or_else(|| Some("declare it under \"params:\" or pass --param NAME=VALUE".into()));
                        self.problem(span, error);
                        return;
                    };
                    if start == 0 && end + 1 == rest.len() && result.is_empty() {
                        node.data = param.data.clone();
                        return;
                    }
                    result.push_str(&rest[..start]);
                    match param.value() {
                        Value::String(value) => result.push_str(&value),
                        value => result.push_str(&value.to_string()),
                    }
                    rest = &rest[start + end + 1..];
                }
                result.push_str(rest);
                *text = result;
            }
            Data::Scalar(_) => {}
        }
    }
}
