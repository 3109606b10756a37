//! How TIGER is trained: its loss over samples, and Recall@5 and NDCG@5 of a beam search.

use super::*;
use crate::beam::{BeamOptions, Hypothesis, beam_search, beam_search_on};
use crate::ranking::expected;
use crate::samples::Samples;
use crate::train::{Model, Place, TrainingSet};
use crate::trie::Trie;
use crate::weights::{Declaration, Weights};

/// Rank cut-off of model selection.
const K: usize = 5;

/// Validation users searched together.
const EVALUATION_USERS: usize = 256;

/// Users whose next item decides when to stop and which weights to keep.
#[derive(Debug, Clone, Copy)]
pub struct Validation<'a> {
    /// Histories and their true next items.
    pub samples: &'a Samples,
    /// The catalogue.
    pub trie: &'a Trie,
    /// Evaluate a seeded sample of this many users; `None` takes all.
    pub users: Option<usize>,
    /// Width of the beam search (at least 5).
    pub beam_width: usize,
}

impl Model for Tiger {
    type Config = TigerConfig;
    type Samples = Samples;
    type Validation<'a> = Validation<'a>;

    fn declarations(config: &TigerConfig) -> Vec<Declaration> {
        config.declarations()
    }

    fn init(config: &TigerConfig, seed: u64) -> Result<Self> {
        Tiger::init(config, seed)
    }

    fn from_weights(config: &TigerConfig, weights: Weights) -> Result<Self> {
        Tiger::from_weights(config, weights)
    }

    fn config(&self) -> &TigerConfig {
        Tiger::config(self)
    }

    fn weights(&self) -> &Weights {
        Tiger::weights(self)
    }

    fn weights_mut(&mut self) -> &mut Weights {
        Tiger::weights_mut(self)
    }

    fn check(config: &TigerConfig, samples: &Samples, validation: Option<Validation>) -> Result<()> {
        check_samples(config, samples, "training")?;
        match validation {
            Some(validation) => check_samples(config, validation.samples, "validation"),
            None => Ok(()),
        }
    }

    fn loss<G: Graph>(g: &mut G, config: &TigerConfig, samples: &Samples, rows: &[u32], key: Key) -> Result<G::Node> {
        let users = samples.users_of(rows);
        let histories: Vec<&[u16]> = rows.iter().map(|&i| samples.history(i as usize)).collect();
        let histories = config.histories(&Inputs {
            histories: &histories,
            users: users.as_deref(),
            vectors: samples.vectors(),
        })?;
        let targets: Vec<u16> = rows.iter().flat_map(|&i| samples.target(i as usize)).copied().collect();
        loss(g, config, &histories, &targets, &mut Noise::new(config.dropout, key))
    }

    fn forward_flops(config: &TigerConfig, samples: &Samples, row: usize) -> f64 {
        config.forward_flops(samples.history(row).len() / config.levels())
    }

    /// Recall@5 and NDCG@5, expected values where items share a semantic id.
    fn evaluate(
        mut place: Place<'_, Self>,
        validation: Validation,
        key: Key,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<(f64, f64)> {
        let samples = validation.samples;
        let mut rows = key.permutation(samples.len());
        rows.truncate(validation.users.unwrap_or(usize::MAX).max(1));
        rows.sort_unstable();
        let options = BeamOptions {
            width: validation.beam_width.max(K),
            ..BeamOptions::default()
        };
        let (mut recall, mut ndcg) = (0.0, 0.0);
        let (mut users_done, total) = (0, rows.len());
        for rows in rows.chunks(EVALUATION_USERS) {
            let histories: Vec<&[u16]> = rows.iter().map(|&i| samples.history(i as usize)).collect();
            let users = samples.users_of(rows);
            let inputs = Inputs {
                histories: &histories,
                users: users.as_deref(),
                vectors: samples.vectors(),
            };
            let trie = validation.trie;
            let found = match &mut place {
                Place::Cpu(model, _) => beam_search(model, trie, &inputs, &options)?,
                Place::Device(config, stock) => beam_search_on(stock, config, trie, &inputs, &options)?,
            };
            for (&row, ranked) in rows.iter().zip(&found) {
                let target = trie.leaf(samples.target(row as usize));
                let (r, n) = expected_recall_ndcg(ranked, trie, target);
                recall += r;
                ndcg += n;
            }
            users_done += rows.len();
            progress(users_done, total)?;
        }
        Ok((recall / total as f64, ndcg / total as f64))
    }

    fn identity(validation: Validation) -> serde_json::Value {
        let Validation {
            samples,
            trie,
            users,
            beam_width,
        } = validation;
        serde_json::json!([samples.digest(), trie.leaves(), users, beam_width])
    }
}

/// Recall@5 and NDCG@5 of one ranked list. The items of a leaf are tied; the target is one of them.
pub fn expected_recall_ndcg(ranked: &[Hypothesis], trie: &Trie, target: Option<u32>) -> (f64, f64) {
    let mut better = 0;
    for hypothesis in ranked {
        let tied = trie.items_of(hypothesis.leaf).len();
        if Some(hypothesis.leaf) == target {
            return expected(better, tied, K);
        }
        better += tied;
    }
    (0.0, 0.0)
}

fn check_samples(config: &TigerConfig, samples: &Samples, what: &str) -> Result<()> {
    if samples.is_empty() {
        return Err(Error::InvalidData(format!("there are no {what} samples")));
    }
    if samples.levels() != config.levels() {
        let op = format!("levels of the {what} samples");
        return Err(Error::shape(op, config.levels(), samples.levels()));
    }
    let dim = samples.vectors().map_or(0, ItemVectors::dim);
    if config.vector_dim > 0 && dim != config.vector_dim {
        let op = format!("item vectors of the {what} samples");
        return Err(Error::shape(op, config.vector_dim, dim));
    }
    Ok(())
}
