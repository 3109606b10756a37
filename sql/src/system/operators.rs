//! `sys.operators`: what pipelines may be made of.

use arrow::array::RecordBatch;
use sluice_engine::Result;
use sluice_engine::operator::Entry;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "operators",
    about: "every operator: version, inputs, config fields, what it does",
    rows,
};

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let entries: Vec<Entry> = match asked {
        Some((view, _)) => view.source.registry.iter().cloned().collect(),
        None => Vec::new(),
    };
    let inputs = |entry: &Entry| {
        let names: Vec<&str> = entry.inputs.iter().map(|input| input.name).collect();
        names.join(", ")
    };
    let fields = |entry: &Entry| {
        let names: Vec<&str> = entry.fields.iter().map(|field| field.name.as_str()).collect();
        names.join(", ")
    };
    Ok(Columns::of(&entries)
        .text("operator", |entry| Some(entry.name))
        .count("version", |entry| Some(u64::from(entry.version)))
        .text("inputs", |entry| Some(inputs(entry)))
        .text("fields", |entry| Some(fields(entry)))
        .flag("seeded", |entry| Some(entry.seeded))
        .text("about", |entry| entry.about.lines().next())
        .batch())
}
