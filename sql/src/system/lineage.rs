//! `sys.lineage`: what every key read: an artifact of another key, or a file outside the store.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::{SystemTable, Wanted, keys};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "lineage",
    about: "what every key read: artifacts of other keys, and files outside the store",
    rows,
};

struct Row {
    key: String,
    operator: String,
    port: Option<String>,
    digest: String,
    /// Key, operator and output port of what made it.
    from: Option<(String, String, String)>,
    file: Option<String>,
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let mut rows = Vec::new();
    if let Some((view, _)) = asked {
        let records = keys::records(view);
        // Equal content may come from several keys: all of them are told.
        let mut makers: BTreeMap<&str, Vec<(String, String, String)>> = BTreeMap::new();
        for record in &records {
            for (port, digest) in &record.outputs {
                let maker = (record.key.clone(), record.preimage.operator.clone(), port.clone());
                makers.entry(digest).or_default().push(maker);
            }
        }
        for record in &records {
            let row = |port: Option<&String>, digest: &String, from, file: Option<&String>| Row {
                key: record.key.clone(),
                operator: record.preimage.operator.clone(),
                port: port.cloned(),
                digest: digest.clone(),
                from,
                file: file.cloned(),
            };
            for (port, digest) in &record.preimage.inputs {
                match makers.get(digest.as_str()) {
                    Some(found) => rows.extend(
                        found
                            .iter()
                            .map(|from| row(Some(port), digest, Some(from.clone()), None)),
                    ),
                    None => rows.push(row(Some(port), digest, None, None)),
                }
            }
            let files = record.preimage.files.iter();
            rows.extend(files.map(|(file, digest)| row(None, digest, None, Some(file))));
        }
    }
    Ok(Columns::of(&rows)
        .text("key", |row| Some(&row.key))
        .text("operator", |row| Some(&row.operator))
        .text("port", |row| row.port.as_ref())
        .text("digest", |row| Some(&row.digest))
        .text("from_key", |row| row.from.as_ref().map(|(key, _, _)| key))
        .text("from_operator", |row| {
            row.from.as_ref().map(|(_, operator, _)| operator)
        })
        .text("from_port", |row| row.from.as_ref().map(|(_, _, port)| port))
        .text("file", |row| row.file.as_ref())
        .batch())
}
