//! Keys: what a stage's result depends on, and nothing else, as text that can be read and compared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::graph::Stage;

/// Bumped when the meaning of keys or artifacts changes.
pub const KEY_FORMAT: u32 = 1;

/// Everything a stage's result depends on. Its canonical JSON is hashed, and stored beside the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preimage {
    /// [`KEY_FORMAT`].
    pub format: u32,
    /// The operator's name.
    pub operator: String,
    /// The operator's version.
    pub version: u32,
    /// The config apart from resources, defaults filled in.
    pub config: Map<String, Value>,
    /// The run's seed, if the operator draws random numbers.
    pub seed: Option<u64>,
    /// Content digests of files outside the store.
    pub files: BTreeMap<String, String>,
    /// Content digests of the inputs by port.
    pub inputs: BTreeMap<String, String>,
}

impl Preimage {
    /// The part that is known before any input is: `inputs` stays empty.
    pub fn without_inputs(stage: &Stage, seed: u64, files: BTreeMap<String, String>) -> Self {
        Preimage {
            format: KEY_FORMAT,
            operator: stage.entry.name.to_string(),
            version: stage.entry.version,
            config: stage.keyed_config(),
            seed: stage.operator.seeded().then_some(seed),
            files,
            inputs: BTreeMap::new(),
        }
    }

    /// The key: BLAKE3 of the canonical JSON, in hexadecimal.
    pub fn key(&self) -> String {
        digest("sluice key", &canonical(&json!(self)))
    }
}

/// BLAKE3 of a text under a type tag, in hexadecimal.
pub fn digest(tag: &str, text: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tag.as_bytes());
    hasher.update(b"\0");
    hasher.update(text.as_bytes());
    hasher.finalize().to_hex().to_string()
}

/// JSON with sorted keys and no white space.
pub fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            let entries: Vec<String> = sorted
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::String(key.clone()), canonical(value)))
                .collect();
            format!("{{{}}}", entries.join(","))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// Why two pre-images differ, a line each: `codebook_size 256 -> 512`, `input text changed`, `operator version 1 -> 2`.
pub fn differences(old: &Preimage, new: &Preimage) -> Vec<String> {
    let mut lines = Vec::new();
    if old.operator != new.operator {
        return vec![format!("operator {} -> {}", old.operator, new.operator)];
    }
    if old.format != new.format {
        lines.push(format!("key format {} -> {}", old.format, new.format));
    }
    if old.version != new.version {
        lines.push(format!("operator version {} -> {}", old.version, new.version));
    }
    if old.seed != new.seed {
        let show = |seed: Option<u64>| seed.map_or("none".to_string(), |seed| seed.to_string());
        lines.push(format!("seed {} -> {}", show(old.seed), show(new.seed)));
    }
    let names: std::collections::BTreeSet<&String> = old.config.keys().chain(new.config.keys()).collect();
    for name in names {
        match (old.config.get(name), new.config.get(name)) {
            (Some(a), Some(b)) if canonical(a) == canonical(b) => {}
            (Some(a), Some(b)) => lines.push(format!("{name} {a} -> {b}")),
            (None, Some(b)) => lines.push(format!("{name} is new: {b}")),
            (Some(a), None) => lines.push(format!("{name} is gone: {a}")),
            (None, None) => {}
        }
    }
    for (what, a, b) in [("file", &old.files, &new.files), ("input", &old.inputs, &new.inputs)] {
        for (name, digest) in b {
            match a.get(name) {
                Some(before) if before == digest => {}
                Some(_) => lines.push(format!("{what} {name} changed")),
                None => lines.push(format!("{what} {name} is new")),
            }
        }
        for name in a.keys().filter(|name| !b.contains_key(*name)) {
            lines.push(format!("{what} {name} is gone"));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preimage(config: Value) -> Preimage {
        Preimage {
            format: 1,
            operator: "op".into(),
            version: 1,
            config: config.as_object().unwrap().clone(),
            seed: None,
            files: BTreeMap::new(),
            inputs: BTreeMap::from([("input".to_string(), "d".to_string())]),
        }
    }

    #[test]
    fn keys_ignore_the_order_of_fields() {
        let (a, b) = (preimage(json!({"a": 1, "b": 2})), preimage(json!({"b": 2, "a": 1})));
        assert_eq!(a.key(), b.key());
        assert_ne!(a.key(), preimage(json!({"a": 1, "b": 3})).key());
    }

    #[test]
    fn differences_name_old_and_new() {
        let (old, mut new) = (preimage(json!({"size": 256})), preimage(json!({"size": 512})));
        new.version = 2;
        new.inputs.insert("input".into(), "e".into());
        assert_eq!(
            differences(&old, &new),
            ["operator version 1 -> 2", "size 256 -> 512", "input input changed"]
        );
    }
}
