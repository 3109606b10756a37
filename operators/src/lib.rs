//! Every step of an experiment, one file each; `schema` is the column vocabulary, `registry` the list.

pub mod audit_leakage;
pub mod audit_order;
pub mod audit_semantic_ids;
pub mod baseline;
#[cfg(test)]
mod beauty;
#[cfg(test)]
mod beauty_scores;
pub mod bootstrap;
pub mod catalogue;
pub mod checkpoints;
pub mod chronology;
pub mod compare_systems;
pub mod comparison;
pub mod count_parameters;
pub mod dedup;
pub mod embed_text;
pub mod embed_tfidf_svd;
pub mod equal_rows;
pub mod export_t5;
pub mod filter_kcore;
pub mod fit_scaling_law;
pub mod formats;
pub mod generate_llm;
pub mod generate_tiger;
#[cfg(test)]
mod identity;
pub mod import_semantic_ids;
pub mod ingest_interactions;
pub mod ingest_items;
pub mod join_items;
pub mod language_models;
pub mod merge_adapter;
pub mod metric_rows;
pub mod metrics;
pub mod models;
pub mod protocol;
pub mod quantize_pq;
pub mod quantize_rkmeans;
pub mod quantize_rqvae;
pub mod quantize_rvq;
pub mod quantizers;
pub mod rank_itemknn;
pub mod rank_markov;
pub mod rank_popularity;
pub mod rank_sasrec;
pub mod ranked_lists;
pub mod ranked_rows;
pub mod render_report;
pub mod report;
pub mod scaling;
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
pub mod tokenize_prompts;
pub mod tokenize_sequences;
pub mod train_llm;
pub mod train_sasrec;
pub mod train_tiger;
pub mod train_tokenizer;
pub mod trained_quantizers;
pub mod training;
#[cfg(test)]
mod versions;

use sluice_engine::operator::Registry;

/// All operators of the house.
pub fn registry() -> Registry {
    Registry::new()
        .with::<audit_leakage::AuditLeakage>()
        .with::<audit_order::AuditOrder>()
        .with::<audit_semantic_ids::AuditSemanticIds>()
        .with::<compare_systems::CompareSystems>()
        .with::<count_parameters::CountParameters>()
        .with::<dedup::Dedup>()
        .with::<embed_text::EmbedText>()
        .with::<embed_tfidf_svd::EmbedTfidfSvd>()
        .with::<export_t5::ExportT5>()
        .with::<filter_kcore::FilterKcore>()
        .with::<fit_scaling_law::FitScalingLaw>()
        .with::<generate_llm::GenerateLlm>()
        .with::<generate_tiger::GenerateTiger>()
        .with::<import_semantic_ids::ImportSemanticIds>()
        .with::<ingest_interactions::IngestInteractions>()
        .with::<ingest_items::IngestItems>()
        .with::<join_items::JoinItems>()
        .with::<merge_adapter::MergeAdapter>()
        .with::<quantize_pq::QuantizePq>()
        .with::<quantize_rkmeans::QuantizeRkmeans>()
        .with::<quantize_rqvae::QuantizeRqvae>()
        .with::<quantize_rvq::QuantizeRvq>()
        .with::<rank_itemknn::RankItemknn>()
        .with::<rank_markov::RankMarkov>()
        .with::<rank_popularity::RankPopularity>()
        .with::<rank_sasrec::RankSasrec>()
        .with::<render_report::RenderReport>()
        .with::<score_ranking::ScoreRanking>()
        .with::<split_leave_one_out::SplitLeaveOneOut>()
        .with::<sql::Sql>()
        .with::<synthesize::Synthesize>()
        .with::<tabulate_metrics::TabulateMetrics>()
        .with_tests::<test_rows::TestRows>()
        .with::<tokenize_prompts::TokenizePrompts>()
        .with::<tokenize_sequences::TokenizeSequences>()
        .with::<train_llm::TrainLlm>()
        .with::<train_sasrec::TrainSasrec>()
        .with::<train_tiger::TrainTiger>()
        .with::<train_tokenizer::TrainTokenizer>()
}
