//! The JSON schema of a whole pipeline, for editors: made from the operators' own declarations.
//!
//! It says what can be said without looking at other stages. Whether an input fits, a path exists or sizes agree is
//! what `sluice check` says.

use serde_json::{Map, Value, json};
use sluice_engine::Error;
use sluice_engine::graph::ANY;
use sluice_engine::operator::{Entry, Input, Registry};

/// The command that writes the committed file.
pub const COMMAND: &str = "cargo run --release -- ops --json-schema > pipeline.schema.json";

/// The schema as the committed file holds it.
pub fn text(registry: &Registry) -> Result<String, Vec<Error>> {
    serde_json::to_string_pretty(&schema(registry))
        .map(|text| text + "\n")
        .map_err(|error| vec![Error::internal(error.to_string())])
}

/// The schema of a pipeline over these operators.
pub fn schema(registry: &Registry) -> Value {
    let mut definitions = Map::new();
    definitions.insert(
        "param".into(),
        json!({ "description": "A parameter of the pipeline.", "type": "string", "pattern": "^\\$\\{" }),
    );
    definitions.insert(
        "reference".into(),
        json!({
            "description": "STAGE, or STAGE.PORT for an output port other than the first; of a sweep STAGE[AXIS=VALUE], or \
                STAGE[*] to gather all instances.",
            "type": "string",
            "pattern": "^([A-Za-z_][A-Za-z0-9_-]*(\\.[A-Za-z0-9_-]+)?(\\[[^\\[\\]]+\\])?(\\.[A-Za-z0-9_-]+)?|.*\\$\\{.*)$"
        }),
    );
    for entry in registry.iter() {
        let branch = stage(entry, &mut definitions);
        definitions.insert(format!("stage.{}", entry.name), branch);
    }
    definitions.insert("expectation".into(), expectation());
    if let Some(entry) = registry.tests() {
        definitions.insert("test".into(), test(entry));
    }
    let branches: Vec<Value> = registry
        .iter()
        .map(|entry| json!({ "$ref": format!("#/$defs/stage.{}", entry.name) }))
        .collect();
    let names = json!({ "pattern": "^[A-Za-z_][A-Za-z0-9_-]*$" });
    let reference = json!({ "$ref": "#/$defs/reference" });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": format!("Generated: {COMMAND}"),
        "title": "Sluice pipeline",
        "type": "object",
        "properties": {
            "pipeline": {
                "description": "Name of the pipeline; the name of the file if left out.",
                "type": "string",
                "pattern": "^[A-Za-z_][A-Za-z0-9_-]*$"
            },
            "seed": { "description": "The run's seed.", "type": "integer", "minimum": 0, "default": 42 },
            "params": {
                "description": "Values that `${name}` stands for; --param NAME=VALUE overrides.",
                "type": "object"
            },
            "presets": {
                "description": "By parameter, by value of that parameter: the parameters that this value sets.",
                "type": "object",
                "additionalProperties": { "type": "object", "additionalProperties": { "type": "object" } }
            },
            "stages": {
                "description": "Stages by name, in any order.",
                "type": "object",
                "propertyNames": names,
                "additionalProperties": {
                    "type": "object",
                    "required": ["op"],
                    "properties": {
                        "op": { "enum": registry.iter().map(|entry| entry.name).collect::<Vec<_>>() }
                    },
                    "oneOf": branches
                }
            },
            "sweep": sweep(),
            "show": {
                "description": "Tables to print when the run is done.",
                "anyOf": [reference, { "type": "array", "items": reference }]
            },
            "expect": {
                "description": "What must hold of the results, checked after every run.",
                "type": "array",
                "items": { "$ref": "#/$defs/expectation" }
            }
        },
        "required": ["stages"],
        "additionalProperties": false,
        "$defs": definitions
    })
}

/// A stage with this operator. Types that its config refers to join `definitions` under the operator's name.
fn stage(entry: &Entry, definitions: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    properties.insert("op".into(), json!({ "const": entry.name }));
    let mut required: Vec<Value> = vec!["op".into()];
    let mut branch = Map::new();
    branch.insert("title".into(), entry.name.into());
    branch.insert("description".into(), entry.about.trim().into());
    branch.insert("type".into(), "object".into());
    if let Some(port) = default_port(entry.inputs) {
        let about = entry.inputs.iter().find(|input| input.name == port);
        properties.insert(
            "input".into(),
            described(about.map_or("", |input| input.about), "#/$defs/reference"),
        );
    }
    if !entry.inputs.is_empty() {
        properties.insert("inputs".into(), inputs(entry.inputs));
    }
    let wanted: Vec<&str> = entry
        .inputs
        .iter()
        .filter(|input| input.required)
        .map(|input| input.name)
        .collect();
    match wanted.as_slice() {
        [] => {}
        [ANY] => required.push("inputs".into()),
        [port] => {
            let ports = json!({ "required": ["inputs"], "properties": { "inputs": { "required": [port] } } });
            branch.extend([("anyOf".into(), json!([{ "required": ["input"] }, ports]))]);
        }
        _ => required.push("inputs".into()),
    }
    let empty = Map::new();
    for field in &entry.fields {
        let property = &entry.schema["properties"][&field.name];
        properties.insert(field.name.clone(), value(property, entry.name));
        if field.default.is_none() {
            required.push(field.name.clone().into());
        }
    }
    for (name, definition) in entry.schema["$defs"].as_object().unwrap_or(&empty) {
        definitions.insert(format!("{}.{name}", entry.name), inside(definition, entry.name));
    }
    for (name, schema) in every_stage() {
        properties.entry(name).or_insert(schema);
    }
    branch.insert("properties".into(), properties.into());
    branch.insert("required".into(), required.into());
    branch.insert("additionalProperties".into(), false.into());
    branch.into()
}

/// An entry of `tests:`: one of the tests that the operator knows, and what it is about.
fn test(entry: &Entry) -> Value {
    let reference = json!({ "$ref": "#/$defs/reference" });
    let mut properties = Map::new();
    let mut kinds = Vec::new();
    for field in &entry.fields {
        let property = &entry.schema["properties"][&field.name];
        properties.insert(field.name.clone(), value(property, entry.name));
        kinds.push(json!({ "required": [field.name] }));
    }
    let name = json!({
        "description": "Its name; made of what it tests if left out.",
        "type": "string",
        "pattern": "^[A-Za-z_][A-Za-z0-9_-]*$"
    });
    properties.insert("name".into(), name);
    let input = described(
        "What is tested, if not the first output of the stage.",
        "#/$defs/reference",
    );
    properties.insert("input".into(), input);
    properties.insert(
        "inputs".into(),
        json!({ "type": "object", "additionalProperties": reference }),
    );
    json!({
        "description": "A test of the stage's rows. What reads the stage waits for it, and does not run if it fails.",
        "type": "object",
        "properties": properties,
        "oneOf": kinds,
        "additionalProperties": false
    })
}

/// Keys that every stage may have, unless its operator has a field of that name.
fn every_stage() -> [(String, Value); 3] {
    let count = json!({ "type": "integer", "minimum": 0 });
    [
        (
            "tests".to_string(),
            json!({
                "description": "What must hold of the stage's rows before anything reads them. Not part of its key.",
                "type": "array",
                "items": { "$ref": "#/$defs/test" }
            }),
        ),
        (
            "seed".to_string(),
            json!({
                "description": "A seed of this stage alone, instead of the run's.",
                "anyOf": [count, { "$ref": "#/$defs/param" }]
            }),
        ),
        (
            "resources".to_string(),
            json!({
                "description": "What of the machine the stage takes while it runs. Not part of its key.",
                "type": "object",
                "properties": { "cpus": count, "gpus": count, "memory": { "type": ["string", "integer"] } },
                "additionalProperties": false
            }),
        ),
    ]
}

/// `sweep:`; see `sluice_engine::sweep`.
fn sweep() -> Value {
    let scalar = json!({ "type": ["string", "number", "boolean"] });
    let values = json!({ "type": "array", "minItems": 1, "items": scalar });
    let point = json!({ "type": "object", "additionalProperties": scalar });
    json!({
        "description": "Axes that the pipeline is run over. Stages that an axis does not reach exist once.",
        "type": "object",
        "properties": {
            "axes": {
                "description": "By name: values of \"seed\", of a parameter or of STAGE.KEY; or names of values, each with \
                    what it sets; or { set: STAGE.KEY, to: [...] }.",
                "type": "object",
                "minProperties": 1,
                "additionalProperties": { "anyOf": [
                    { "$ref": "#/$defs/param" },
                    values,
                    {
                        "type": "object",
                        "properties": {
                            "set": { "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] },
                            "to": values
                        },
                        "required": ["set", "to"],
                        "additionalProperties": false
                    },
                    { "type": "object", "additionalProperties": { "type": "object" } }
                ] }
            },
            "exclude": { "description": "Points to leave out; axes not named match any value.", "type": "array", "items": point },
            "include": { "description": "Further points, with a value for every axis.", "type": "array", "items": point }
        },
        "required": ["axes"],
        "additionalProperties": false
    })
}

/// The port that a bare `input:` connects, if that is clear and has a name.
fn default_port(inputs: &[Input]) -> Option<&'static str> {
    let mut required = inputs.iter().filter(|input| input.required);
    let port = match (required.next(), required.next()) {
        (Some(only), None) => Some(only.name),
        (None, _) => inputs.first().map(|input| input.name),
        _ => None,
    };
    port.filter(|name| *name != ANY)
}

fn inputs(inputs: &[Input]) -> Value {
    let named: Map<String, Value> = inputs
        .iter()
        .filter(|input| input.name != ANY)
        .map(|input| (input.name.to_string(), described(input.about, "#/$defs/reference")))
        .collect();
    let further = match inputs.iter().find(|input| input.name == ANY) {
        Some(any) => described(any.about, "#/$defs/reference"),
        None => false.into(),
    };
    let several = inputs.iter().filter(|input| input.required).count() > 1;
    let wanted: Vec<&str> = inputs
        .iter()
        .filter(|input| several && input.required && input.name != ANY)
        .map(|input| input.name)
        .collect();
    json!({ "type": "object", "properties": named, "required": wanted, "additionalProperties": further })
}

fn described(about: &str, reference: &str) -> Value {
    json!({ "description": about, "$ref": reference })
}

/// A schema where a pipeline writes a value: `${param}` may stand for it.
fn value(schema: &Value, operator: &str) -> Value {
    let schema = inside(schema, operator);
    let Value::Object(mut map) = schema else { return schema };
    let text = map.get("type").is_some_and(|kind| kind == "string");
    if text && !["enum", "const", "pattern"].iter().any(|key| map.contains_key(*key)) {
        return map.into();
    }
    // What editors show stays outside, so that it is said once.
    let mut outer = Map::new();
    for key in [
        "description",
        "default",
        "x-resource",
        "x-extent",
        "x-late",
        "x-required",
    ] {
        if let Some(said) = map.shift_remove(key) {
            outer.insert(key.into(), said);
        }
    }
    outer.insert("anyOf".into(), json!([map, { "$ref": "#/$defs/param" }]));
    outer.into()
}

/// A schema whose parts admit `${param}`, with references to the operator's own definitions.
fn inside(schema: &Value, operator: &str) -> Value {
    let Value::Object(map) = schema else {
        return schema.clone();
    };
    let part = |(key, part): (&String, &Value)| {
        let part = match (key.as_str(), part) {
            ("$ref", Value::String(path)) => path.replace("#/$defs/", &format!("#/$defs/{operator}.")).into(),
            ("items" | "additionalProperties", Value::Object(_)) => value(part, operator),
            ("properties", Value::Object(fields)) => {
                let field = |(name, field): (&String, &Value)| (name.clone(), value(field, operator));
                Value::Object(fields.iter().map(field).collect())
            }
            ("anyOf" | "oneOf" | "allOf", Value::Array(branches)) => {
                branches.iter().map(|branch| inside(branch, operator)).collect()
            }
            _ => part.clone(),
        };
        (key.clone(), part)
    };
    Value::Object(map.iter().map(part).collect())
}

/// See `sluice_engine::expect`.
fn expectation() -> Value {
    json!({
        "type": "object",
        "properties": {
            "stage": { "$ref": "#/$defs/reference" },
            "where": {
                "description": "Columns and their values: they must single out one row.",
                "type": "object",
                "additionalProperties": { "type": ["string", "number", "boolean", "null"] }
            },
            "column": { "description": "The column to look at.", "type": "string", "default": "value" },
            "value": { "description": "What it must be.", "type": ["number", "string"] },
            "within": { "description": "How far it may be from `value`.", "type": "number", "default": 0 },
            "at_least": { "type": "number" },
            "at_most": { "type": "number" }
        },
        "required": ["stage"],
        "anyOf": [{ "required": ["value"] }, { "required": ["at_least"] }, { "required": ["at_most"] }],
        "additionalProperties": false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every `$ref` of the schema leads somewhere.
    #[test]
    fn references_resolve() {
        fn walk(at: &Value, root: &Value, found: &mut usize) {
            match at {
                Value::Object(map) => {
                    if let Some(path) = map.get("$ref").and_then(Value::as_str) {
                        let pointer = path.strip_prefix('#').expect("a local reference");
                        assert!(root.pointer(pointer).is_some(), "{path} leads nowhere");
                        *found += 1;
                    }
                    map.values().for_each(|part| walk(part, root, found));
                }
                Value::Array(parts) => parts.iter().for_each(|part| walk(part, root, found)),
                _ => {}
            }
        }
        let schema = schema(&sluice_operators::registry());
        let mut found = 0;
        walk(&schema, &schema, &mut found);
        assert!(found > 100, "{found} references");
    }

    #[test]
    fn every_stage_may_have_tests_of_each_kind() {
        let schema = schema(&sluice_operators::registry());
        let core = &schema["$defs"]["stage.filter_kcore"]["properties"];
        assert_eq!(core["tests"]["items"]["$ref"], "#/$defs/test");
        let test = &schema["$defs"]["test"];
        for kind in [
            "not_null",
            "unique",
            "range",
            "accepted",
            "row_count",
            "foreign_key",
            "sql",
        ] {
            let about = test["properties"][kind]["description"].as_str();
            assert!(about.is_some_and(|about| !about.is_empty()), "{kind}");
        }
        assert_eq!(test["oneOf"].as_array().map(Vec::len), Some(7));
    }

    #[test]
    fn a_stage_has_its_fields_inputs_and_parameters() {
        let schema = schema(&sluice_operators::registry());
        let core = &schema["$defs"]["stage.filter_kcore"];
        assert_eq!(core["properties"]["op"]["const"], "filter_kcore");
        assert_eq!(core["properties"]["k"]["anyOf"][1]["$ref"], "#/$defs/param");
        assert_eq!(core["additionalProperties"], false);
        let scores = &schema["$defs"]["stage.score_ranking"];
        assert!(scores["properties"].get("input").is_none(), "it reads several");
        assert_eq!(scores["properties"]["inputs"]["required"], json!(["ranked", "targets"]));
        let table = &schema["$defs"]["stage.tabulate_metrics"]["properties"]["inputs"];
        assert_eq!(table["additionalProperties"]["$ref"], "#/$defs/reference");
    }
}
