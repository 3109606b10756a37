//! Every step of an experiment, one file each; `schema` is the column vocabulary, `registry` the list.

pub mod formats;
pub mod import_semantic_ids;
pub mod ingest_interactions;
pub mod ingest_items;
pub mod join_items;
pub mod schema;
pub mod synthesize;
#[cfg(test)]
mod testdata;

use sluice_engine::operator::Registry;

/// All operators of the house.
pub fn registry() -> Registry {
    Registry::new()
        .with::<import_semantic_ids::ImportSemanticIds>()
        .with::<ingest_interactions::IngestInteractions>()
        .with::<ingest_items::IngestItems>()
        .with::<join_items::JoinItems>()
        .with::<synthesize::Synthesize>()
}
