//! `sluice ops`: the operators and their reference, from their own declarations.

use sluice_engine::Error;
use sluice_engine::error::did_you_mean;
use sluice_engine::operator::{Entry, Registry};

use crate::display::say;
use crate::{arguments, schema};

/// `sluice ops [OPERATOR]`.
pub fn ops(command: &arguments::Ops) -> Result<(), Vec<Error>> {
    let registry = sluice_operators::registry();
    if command.json_schema {
        say!("{}", schema::text(&registry)?.trim_end());
        return Ok(());
    }
    let Some(name) = &command.operator else {
        say!("{}", list(&registry));
        say!("\"sluice ops OPERATOR\" prints the reference of one");
        return Ok(());
    };
    let Some(entry) = registry.get(name) else {
        let mut error = Error::user("unknown-operator", format!("unknown operator \"{name}\""));
        error.hint = did_you_mean(name, registry.iter().map(|entry| entry.name));
        return Err(vec![error]);
    };
    if command.schema {
        let text = serde_json::to_string_pretty(&entry.schema);
        say!("{}", text.map_err(|error| vec![Error::internal(error.to_string())])?);
    } else {
        say!("{}", reference(entry).trim_end());
    }
    Ok(())
}

/// A line an operator: its name and the first line of its reference.
pub fn list(registry: &Registry) -> String {
    let width = registry.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let line = |entry: &Entry| {
        let about = entry.about.lines().next().unwrap_or_default();
        format!("{:width$}  {about}\n", entry.name)
    };
    registry.iter().map(line).collect()
}

/// The reference page of an operator, as Markdown.
pub fn reference(entry: &Entry) -> String {
    let mut page = format!(
        "# {} (version {})\n\n{}\n",
        entry.name,
        entry.version,
        entry.about.trim()
    );
    if !entry.inputs.is_empty() {
        page.push_str("\n## Inputs\n\n");
        for input in entry.inputs {
            let name = if input.name == sluice_engine::graph::ANY {
                "(any name)"
            } else {
                input.name
            };
            let need = if input.required { "" } else { " (optional)" };
            page.push_str(&format!("- `{name}`{need}: {}\n", input.about));
        }
    }
    if !entry.fields.is_empty() {
        page.push_str("\n## Config\n\n");
        for field in &entry.fields {
            let default = match &field.default {
                Some(value) => format!("default `{value}`"),
                None => "required".to_string(),
            };
            let key = if field.resource { ", not part of the key" } else { "" };
            let about = field.about.replace('\n', "\n  ");
            page.push_str(&format!("- `{}` ({default}{key}): {about}\n", field.name));
        }
    }
    page
}
