//! `sys.models`: the tensors of every model in the store.

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::{SystemTable, Wanted, artifacts};
use crate::catalog::View;
use crate::columns::Columns;
use crate::folder::{Tensor, tensors};

pub(super) const TABLE: SystemTable = SystemTable {
    name: "models",
    about: "every tensor of every model: name, shape, type, Euclidean norm (its values are read only if asked for)",
    rows,
};

struct Row {
    digest: String,
    stage: String,
    run: String,
    port: String,
    tensor: Tensor,
    norm: Option<f64>,
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, wanted)) = asked {
        let norms = wanted.columns.contains("norm");
        for manifest in artifacts::manifests(view) {
            if manifest.layout == "table" {
                continue;
            }
            let files: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
            for tensor in tensors(&view.store().object(&manifest.digest), &files)? {
                rows.push(Row {
                    digest: manifest.digest.clone(),
                    stage: manifest.stage.clone(),
                    run: manifest.run.clone(),
                    port: manifest.port.clone(),
                    norm: norms.then(|| tensor.norm()).flatten(),
                    tensor,
                });
            }
        }
    }
    Ok(Columns::of(&rows)
        .text("digest", |row| Some(&row.digest))
        .text("stage", |row| Some(&row.stage))
        .text("run", |row| Some(&row.run))
        .text("port", |row| Some(&row.port))
        .text("file", |row| Some(&row.tensor.file))
        .text("tensor", |row| Some(&row.tensor.name))
        .text("dtype", |row| Some(&row.tensor.dtype))
        .text("shape", |row| Some(row.tensor.shape()))
        .count("parameters", |row| Some(row.tensor.parameters()))
        .number("norm", |row| row.norm)
        .batch())
}
