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
pub mod comparison;
pub mod dedup;
pub mod embed_text;
pub mod embed_tfidf_svd;
pub mod filter_kcore;
pub mod formats;
pub mod generate_tiger;
#[cfg(test)]
mod identity;
pub mod import_semantic_ids;
pub mod ingest_interactions;
pub mod ingest_items;
pub mod join_items;
pub mod metric_rows;
pub mod metrics;
pub mod models;
pub mod quantize_rkmeans;
pub mod rank_itemknn;
pub mod rank_markov;
pub mod rank_popularity;
pub mod ranked_lists;
pub mod schema;
pub mod score_ranking;
pub mod sequences;
pub mod slices;
pub mod split_leave_one_out;
pub mod sql;
pub mod synthesize;
pub mod tabulate_metrics;
pub mod test_rows;
#[cfg(test)]
mod testdata;
pub mod tokenize_sequences;
pub mod train_tiger;
#[cfg(test)]
mod versions;

use sluice_engine::operator::Registry;

/// All operators of the house.
pub fn registry() -> Registry {
    Registry::new()
        .with::<audit_order::AuditOrder>()
        .with::<audit_semantic_ids::AuditSemanticIds>()
        .with::<dedup::Dedup>()
        .with::<embed_text::EmbedText>()
        .with::<embed_tfidf_svd::EmbedTfidfSvd>()
        .with::<filter_kcore::FilterKcore>()
        .with::<generate_tiger::GenerateTiger>()
        .with::<import_semantic_ids::ImportSemanticIds>()
        .with::<ingest_interactions::IngestInteractions>()
        .with::<ingest_items::IngestItems>()
        .with::<join_items::JoinItems>()
        .with::<quantize_rkmeans::QuantizeRkmeans>()
        .with::<rank_itemknn::RankItemknn>()
        .with::<rank_markov::RankMarkov>()
        .with::<rank_popularity::RankPopularity>()
        .with::<score_ranking::ScoreRanking>()
        .with::<split_leave_one_out::SplitLeaveOneOut>()
        .with::<sql::Sql>()
        .with::<synthesize::Synthesize>()
        .with::<tabulate_metrics::TabulateMetrics>()
        .with_tests::<test_rows::TestRows>()
        .with::<tokenize_sequences::TokenizeSequences>()
        .with::<train_tiger::TrainTiger>()
}
