//! What makes two configs different: every field of every operator moves the key, but for those marked as resources,
//! and late ones at their default.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use sluice_engine::key;
use sluice_engine::operator::{Entry, Field};

/// Fields that stay out of the key. Whoever marks another one has to enter it here: it must not change results.
const RESOURCES: [&str; 9] = [
    "embed_text.device",
    "generate_llm.device",
    "generate_tiger.device",
    "quantize_rkmeans.device",
    "rank_sasrec.device",
    "train_llm.activation_checkpointing",
    "train_llm.device",
    "train_sasrec.device",
    "train_tiger.device",
];

/// Fields that say how far to go.
const EXTENTS: [&str; 6] = [
    "train_llm.max_epochs",
    "train_llm.max_steps",
    "train_sasrec.max_epochs",
    "train_sasrec.max_steps",
    "train_tiger.max_epochs",
    "train_tiger.max_steps",
];

/// Fields that came when there were artifacts already: their default has to be what was done before.
const LATE: [&str; 3] = ["train_llm.replicas", "train_sasrec.replicas", "train_tiger.replicas"];

/// What a field without a default is given, by operator and field.
fn required(operator: &str, field: &str) -> Value {
    match (operator, field) {
        (_, "path" | "model" | "tokenizer") => "file".into(),
        (_, "query") => "SELECT 1 AS a".into(),
        _ => panic!("\"{operator}\" has a new required field \"{field}\": give it a value here"),
    }
}

/// A config field, or one inside it, by its path.
struct Leaf {
    path: Vec<String>,
    schema: Value,
}

/// The fields below a schema; structs are entered.
fn leaves(schema: &Value, root: &Value, path: &[String], found: &mut Vec<Leaf>) {
    let schema = resolved(schema, root);
    let Some(properties) = schema["properties"]
        .as_object()
        .filter(|_| schema.get("oneOf").is_none())
    else {
        let (path, schema) = (path.to_vec(), schema.clone());
        return found.push(Leaf { path, schema });
    };
    for (name, property) in properties {
        leaves(property, root, &[path, std::slice::from_ref(name)].concat(), found);
    }
}

fn resolved<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    match schema["$ref"]
        .as_str()
        .and_then(|reference| reference.strip_prefix('#'))
    {
        Some(pointer) => root.pointer(pointer).expect("a reference resolves"),
        None => schema,
    }
}

/// Values that a schema admits, apart from the one there is: other variants, other numbers, null and not null.
fn others(schema: &Value, root: &Value, now: &Value) -> Vec<Value> {
    let schema = resolved(schema, root);
    let mut found = Vec::new();
    for part in ["anyOf", "oneOf"] {
        for part in schema[part].as_array().into_iter().flatten() {
            found.extend(others(part, root, now));
        }
    }
    found.extend(schema["enum"].as_array().into_iter().flatten().cloned());
    found.extend(schema.get("const").cloned());
    let kinds = match &schema["type"] {
        Value::Array(kinds) => kinds.clone(),
        kind => vec![kind.clone()],
    };
    for kind in kinds.iter().filter_map(Value::as_str) {
        match kind {
            "null" => found.push(Value::Null),
            "boolean" => found.extend([true.into(), false.into()]),
            "integer" => found.push(now.as_u64().map_or(7, |number| number + 1).into()),
            "number" => found.push(now.as_f64().map_or(0.5, |number| number / 2.0 + 0.0625).into()),
            "string" if schema.get("enum").is_none() && schema.get("const").is_none() => {
                found.push(format!("{}x", now.as_str().unwrap_or_default()).into());
            }
            "object" => {
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    let values = others(property, root, &Value::Null).into_iter();
                    found.extend(values.take(1).map(|value| json!({ name: value })));
                }
                if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
                    let values = others(values, root, &Value::Null).into_iter();
                    found.extend(values.take(1).map(|value| json!({ "x": value })));
                }
            }
            "array" => {
                let mut items = now.as_array().cloned().unwrap_or_default();
                items.extend(others(&schema["items"], root, &Value::Null).into_iter().take(1));
                found.push(items.into());
            }
            _ => {}
        }
    }
    found.retain(|value| value != now);
    found
}

/// The part of a config that is in the key, as the engine hashes it.
fn keyed(entry: &Entry, config: &Value) -> Result<String, String> {
    let config = entry.make(config.clone())?.config();
    let is_keyed = |name: &str, value: &Value| {
        let mut fields = entry.fields.iter().filter(|field| field.name == name);
        fields.all(|field| field.is_keyed(value))
    };
    let semantic: Map<String, Value> = config
        .into_iter()
        .filter(|(name, value)| is_keyed(name, value))
        .collect();
    Ok(key::digest("config", &key::canonical(&Value::Object(semantic))))
}

fn full_config(entry: &Entry) -> Value {
    let mut config = entry.defaults();
    for field in entry.fields.iter().filter(|field| field.default.is_none()) {
        config.insert(field.name.clone(), required(entry.name, &field.name));
    }
    config.into()
}

#[test]
fn every_field_moves_the_key_unless_it_is_a_resource() {
    let (mut fields, mut changes) = (0, 0);
    for entry in crate::registry().iter() {
        let config = full_config(entry);
        let before = keyed(entry, &config).unwrap();
        let mut found = Vec::new();
        leaves(&entry.schema, &entry.schema, &[], &mut found);
        found.retain(|leaf| !leaf.path.is_empty());
        let tops: BTreeSet<&String> = found.iter().map(|leaf| &leaf.path[0]).collect();
        assert_eq!(tops.len(), entry.fields.len(), "{}: a field was not found", entry.name);
        for leaf in &found {
            let name = format!("{}.{}", entry.name, leaf.path.join("."));
            let pointer = format!("/{}", leaf.path.join("/"));
            let now = config.pointer(&pointer).expect("a field has a value");
            let field = entry.fields.iter().find(|field| field.name == leaf.path[0]).unwrap();
            let mut changed = 0;
            for value in others(&leaf.schema, &entry.schema, now) {
                let mut other = config.clone();
                *other.pointer_mut(&pointer).unwrap() = value.clone();
                let Ok(after) = keyed(entry, &other) else { continue };
                changed += 1;
                assert_eq!(
                    after == before,
                    field.resource,
                    "{name}: {now} -> {value}: a field is in the key unless it is marked x-resource"
                );
            }
            assert!(changed > 0, "{name} could not be changed from {now}: {}", leaf.schema);
            changes += changed;
            fields += 1;
        }
    }
    assert!(fields >= 100 && changes > fields, "{fields} fields, {changes} changes");
}

#[test]
fn resources_extents_and_late_fields_are_those_that_were_agreed() {
    let (mut resources, mut extents, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for entry in crate::registry().iter() {
        for field in &entry.fields {
            let name = format!("{}.{}", entry.name, field.name);
            assert!(!(field.resource && field.extent), "{name} is either in the key or not");
            if field.late {
                assert!(field.default.is_some(), "{name} has no default");
                late.push(name.clone());
            }
            if field.resource {
                resources.push(name);
            } else if field.extent {
                extents.push(name);
            }
        }
    }
    resources.sort();
    extents.sort();
    late.sort();
    assert_eq!(resources, RESOURCES);
    assert_eq!(extents, EXTENTS);
    assert_eq!(late, LATE);
}

/// What was made before there was the field keeps its key.
#[test]
fn late_fields_are_not_in_the_key_at_their_default() {
    let registry = crate::registry();
    for name in LATE {
        let (operator, field) = name.split_once('.').unwrap();
        let entry = registry.get(operator).unwrap();
        let config = entry.make(full_config(entry)).unwrap().config();
        let field = entry.fields.iter().find(|known| known.name == field).unwrap();
        assert!(!field.is_keyed(&config[&field.name]), "{name}");
        assert!(field.is_keyed(&Value::Null), "{name}");
    }
}

/// Only top-level marks count, so one inside a struct would be a field that someone believes to be out of the key.
#[test]
fn no_mark_stands_where_it_does_nothing() {
    fn marks(at: &Value) -> usize {
        match at {
            Value::Object(map) => {
                let own = ["x-resource", "x-extent", "x-late"]
                    .iter()
                    .filter(|mark| map.contains_key(**mark))
                    .count();
                own + map.values().map(marks).sum::<usize>()
            }
            Value::Array(items) => items.iter().map(marks).sum(),
            _ => 0,
        }
    }
    for entry in crate::registry().iter() {
        let of = |field: &Field| [field.resource, field.extent, field.late];
        let known = entry.fields.iter().flat_map(of).filter(|mark| *mark).count();
        assert_eq!(marks(&entry.schema), known, "{}", entry.name);
    }
}

/// The test above sees what it should: a field that is skipped does not move the key.
#[test]
fn values_change_by_their_schema() {
    let schema = json!({"anyOf": [{"$ref": "#/$defs/E"}, {"type": "null"}], "$defs": {"E": {"enum": ["a", "b"]}}});
    assert_eq!(others(&schema, &schema, &"a".into()), [json!("b"), Value::Null]);
    assert_eq!(
        others(&json!({"type": ["integer", "null"]}), &schema, &Value::Null),
        [json!(7)]
    );
    assert_eq!(
        others(&json!({"type": "boolean"}), &schema, &true.into()),
        [json!(false)]
    );
    let list = json!({"type": "array", "items": {"type": "string"}});
    assert_eq!(others(&list, &schema, &json!(["u"])), [json!(["u", "x"])]);
}
