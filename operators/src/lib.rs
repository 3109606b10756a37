//! Every step of an experiment, one file each; `schema` is the column vocabulary, `registry` the list.

pub mod audit_order;
pub mod audit_semantic_ids;
pub mod baseline;
#[cfg(test)]
mod beauty;
#[cfg(test)]
mod beauty_scores;
pub mod bootstrap;
pub mod catalogue;
pub mod chronology;
pub mod dedup;
pub mod filter_kcore;
pub mod metric_rows;
pub mod metrics;
pub mod rank_itemknn;
pub mod rank_markov;
pub mod rank_popularity;
pub mod ranked_lists;
pub mod schema;
pub mod score_ranking;
pub mod sequences;
pub mod slices;
pub mod split_leave_one_out;
pub mod tokenize_sequences;

use sluice_engine::operator::Registry;

/// All operators of the house.
pub fn registry() -> Registry {
    Registry::new()
        .with::<audit_order::AuditOrder>()
        .with::<audit_semantic_ids::AuditSemanticIds>()
        .with::<dedup::Dedup>()
        .with::<filter_kcore::FilterKcore>()
        .with::<rank_itemknn::RankItemknn>()
        .with::<rank_markov::RankMarkov>()
        .with::<rank_popularity::RankPopularity>()
        .with::<score_ranking::ScoreRanking>()
        .with::<split_leave_one_out::SplitLeaveOneOut>()
        .with::<tokenize_sequences::TokenizeSequences>()
}
