//! Every step of an experiment, one file each; `schema` is the column vocabulary, `registry` the list.

pub mod audit_order;
pub mod audit_semantic_ids;
#[cfg(test)]
mod beauty;
pub mod catalogue;
pub mod chronology;
pub mod dedup;
pub mod filter_kcore;
pub mod formats;
pub mod ingest_interactions;
pub mod schema;
pub mod sequences;
pub mod split_leave_one_out;
#[cfg(test)]
mod testdata;
pub mod tokenize_sequences;

use sluice_engine::operator::Registry;

/// All operators of the house.
pub fn registry() -> Registry {
    Registry::new()
        .with::<audit_order::AuditOrder>()
        .with::<audit_semantic_ids::AuditSemanticIds>()
        .with::<dedup::Dedup>()
        .with::<filter_kcore::FilterKcore>()
        .with::<ingest_interactions::IngestInteractions>()
        .with::<split_leave_one_out::SplitLeaveOneOut>()
        .with::<tokenize_sequences::TokenizeSequences>()
}
