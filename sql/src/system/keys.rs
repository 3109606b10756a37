//! `sys.keys`: every published key with what was hashed.

use arrow::array::RecordBatch;
use serde_json::json;
use sluice_engine::Result;
use sluice_engine::key::canonical;
use sluice_engine::store::KeyRecord;

use super::{SystemTable, Wanted};
use crate::catalog::View;
use crate::columns::Columns;

pub(super) const TABLE: SystemTable = SystemTable {
    name: "keys",
    about: "every published key: operator, version, config, seed, what the operator said, what it cost",
    rows,
};

/// Records of all published keys, in order of key.
pub(super) fn records(view: &View) -> Vec<KeyRecord> {
    let keys = view.store().keys();
    keys.iter().filter_map(|key| view.store().known(key)).collect()
}

fn rows(asked: Option<(&View, &Wanted)>) -> Result<RecordBatch> {
    let records = asked.map_or_else(Vec::new, |(view, _)| records(view));
    Ok(Columns::of(&records)
        .text("key", |record| Some(&record.key))
        .text("operator", |record| Some(&record.preimage.operator))
        .count("version", |record| Some(u64::from(record.preimage.version)))
        .text("config", |record| Some(canonical(&json!(record.preimage.config))))
        .count("seed", |record| record.preimage.seed)
        .text("run", |record| Some(&record.run))
        .count("rows", |record| Some(record.rows.values().sum()))
        .count("bytes", |record| Some(record.bytes))
        .number("seconds", |record| Some(record.seconds))
        .number("busy_seconds", |record| Some(record.busy_seconds))
        .number("cpu_seconds", |record| Some(record.usage.cpu_seconds))
        .count("peak_memory_bytes", |record| Some(record.usage.peak_memory))
        .text("notes", |record| Some(canonical(&json!(record.notes))))
        .text("accepted", |record| record.accepted.as_ref())
        .batch())
}
