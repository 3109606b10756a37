//! `sys.artifacts`: every artifact of the store, as its manifest describes it.

use arrow::array::RecordBatch;
use sluice_engine::Result;
use sluice_engine::store::Manifest;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "artifacts",
    about: "every artifact here: rows, bytes, columns, what made it first, where it lies",
    rows,
};

struct Row {
    manifest: Manifest,
    path: String,
}

/// Manifests of all artifacts, in order of digest.
pub(super) fn manifests(view: &View) -> Vec<Manifest> {
    let digests = view.store().objects();
    digests
        .iter()
        .filter_map(|digest| view.store().manifest(digest).ok())
        .collect()
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, _)) = asked {
        for manifest in manifests(view) {
            let path = view.store().object(&manifest.digest).to_string_lossy().to_string();
            rows.push(Row { manifest, path });
        }
    }
    let columns = |row: &Row| {
        let name =
            |column: &serde_json::Value| Some(format!("{} {}", column["name"].as_str()?, column["type"].as_str()?));
        let names: Vec<String> = row.manifest.schema.iter().filter_map(name).collect();
        names.join(", ")
    };
    Ok(Columns::of(&rows)
        .text("digest", |row| Some(&row.manifest.digest))
        .text("stage", |row| Some(&row.manifest.stage))
        .text("port", |row| Some(&row.manifest.port))
        .text("run", |row| Some(&row.manifest.run))
        .text("operator", |row| Some(&row.manifest.preimage.operator))
        .text("layout", |row| Some(&row.manifest.layout))
        .count("rows", |row| Some(row.manifest.rows))
        .count("bytes", |row| {
            Some(row.manifest.files.iter().map(|file| file.bytes).sum())
        })
        .count("files", |row| Some(row.manifest.files.len() as u64))
        .text("columns", |row| Some(columns(row)))
        .number("seconds", |row| Some(row.manifest.seconds))
        .text("software", |row| Some(&row.manifest.software))
        .text("path", |row| Some(&row.path))
        .batch())
}
