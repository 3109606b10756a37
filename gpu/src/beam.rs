//! Beam search constrained by the trie of the catalogue: an id that is no item cannot come out.
//!
//! The score of a semantic id is the sum over levels of the log-probability of its code. By default the softmax of a
//! level runs over the whole codebook, so that scores are the model's own log-probabilities and independent of the
//! catalogue; [`Normalisation::Children`] renormalises over the codes that continue the prefix.
//! Ties are broken by the order of codes. Results depend on neither the batch nor the threads.

use crate::decode::{Cached, Decoder, Gathered, Replayed, Rows};
use crate::error::{Error, Result};
use crate::ops::{Graph, Stock, Tape, Workspace, log_softmax_in_place};
use crate::tiger::{Head, Histories, Inputs, Tiger, TigerConfig};
use crate::trie::Trie;
use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Users that share the matrix products of one task, and how many prefixes these may have together: on the CPU, and on
/// another device, which wants large ones.
const TASK: (usize, usize) = (32, 2048);
const DEVICE_TASK: (usize, usize) = (128, 4096);
/// Leaves that `score_catalogue` decodes together.
const LEAVES: usize = 512;

/// What the probabilities of one step are normalised over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// All codes of the level.
    #[default]
    Codebook,
    /// The codes that some item of the catalogue has after this prefix.
    Children,
}

/// How to search.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BeamOptions {
    /// Prefixes kept per user and level; at most this many semantic ids come out. As many as the catalogue has ids:
    /// every id is scored.
    pub width: usize,
    /// What probabilities are normalised over.
    pub normalisation: Normalisation,
}

impl Default for BeamOptions {
    fn default() -> Self {
        BeamOptions {
            width: 10,
            normalisation: Normalisation::Codebook,
        }
    }
}

/// A semantic id with its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hypothesis {
    /// The trie's leaf; [`Trie::semantic_id`] and [`Trie::items_of`] say what it stands for.
    pub leaf: u32,
    /// Sum of log-probabilities.
    pub score: f32,
}

/// The best semantic ids of each history, best first, on the CPU.
///
/// # Errors
/// [`Error::InvalidConfig`] for width 0, [`Error::ShapeMismatch`] if trie and model differ in levels or a code is
/// outside its codebook, [`Error::InvalidData`] for a bad history or a score that is not a number.
pub fn beam_search(model: &Tiger, trie: &Trie, inputs: &Inputs, options: &BeamOptions) -> Result<Vec<Vec<Hypothesis>>> {
    check(model.config(), trie, options)?;
    let groups = pack_groups(model.config(), inputs, TASK, options.width.min(trie.leaves()))?;
    let found: Result<Vec<_>> = groups
        .par_iter()
        .map_init(Workspace::default, |workspace, group| {
            let mut decoder = Cached::new(model, group, workspace)?;
            search(&mut decoder, model.config(), trie, group.offsets.len() - 1, options)
        })
        .collect();
    Ok(found?.concat())
}

/// The same search with stock operations, for models that live on another device.
///
/// # Errors
/// Those of [`beam_search`], and [`Error::Candle`].
pub fn beam_search_on(
    stock: &mut Stock,
    config: &TigerConfig,
    trie: &Trie,
    inputs: &Inputs,
    options: &BeamOptions,
) -> Result<Vec<Vec<Hypothesis>>> {
    check(config, trie, options)?;
    let mut found = Vec::with_capacity(inputs.histories.len());
    for group in pack_groups(config, inputs, DEVICE_TASK, options.width.min(trie.leaves()))? {
        let mut decoder = Gathered::new(stock, config, &group, Tensor::detach)?;
        found.extend(search(&mut decoder, config, trie, group.offsets.len() - 1, options)?);
    }
    Ok(found)
}

/// Every semantic id of the catalogue with its exact score for the one history of `inputs`, best first: the reference
/// that search approximates. Every leaf is decoded from its start.
///
/// # Errors
/// Those of [`beam_search`].
pub fn score_catalogue(
    model: &Tiger,
    trie: &Trie,
    inputs: &Inputs,
    normalisation: Normalisation,
) -> Result<Vec<Hypothesis>> {
    let options = BeamOptions {
        width: 1,
        normalisation,
    };
    check(model.config(), trie, &options)?;
    let histories = model.config().histories(inputs)?;
    let mut workspace = Workspace::default();
    let mut all = Vec::with_capacity(trie.leaves());
    for first in (0..trie.leaves() as u32).step_by(LEAVES) {
        let last = (first as usize + LEAVES).min(trie.leaves()) as u32;
        let mut tape = Tape::new(model.weights(), &mut workspace);
        let mut decoder = Replayed::new(&mut tape, model.config(), &histories)?;
        all.extend(score_leaves(
            &mut decoder,
            model.config(),
            trie,
            first..last,
            normalisation,
        )?);
    }
    all.sort_by(better);
    Ok(all)
}

/// Teacher-forced scores of a range of leaves for one history.
fn score_leaves<G: Graph>(
    decoder: &mut Replayed<G>,
    config: &TigerConfig,
    trie: &Trie,
    leaves: std::ops::Range<u32>,
    normalisation: Normalisation,
) -> Result<Vec<Hypothesis>> {
    let ids: Vec<Vec<u16>> = leaves.clone().map(|leaf| trie.semantic_id(leaf)).collect();
    let mut nodes = vec![0u32; ids.len()];
    let mut scores = vec![0f32; ids.len()];
    let mut tokens = vec![config.bos_token(); ids.len()];
    for level in 0..trie.levels() {
        let parents = if level == 0 {
            vec![]
        } else {
            (0..ids.len() as u32).collect()
        };
        let rows = Rows {
            parents,
            tokens: tokens.clone(),
            users: [0, ids.len()].into(),
        };
        let mut logits = decoder.step(level, &rows)?;
        let head = config.head(level);
        for (i, row) in logits.chunks_exact_mut(head.width).enumerate() {
            let range = trie.children(level, nodes[i]);
            let row = normalise(row, &head, trie, level, range.clone(), normalisation);
            let code = ids[i][level];
            scores[i] += row[usize::from(code)];
            tokens[i] = config.token(level, code)?;
            nodes[i] = range
                .clone()
                .find(|&n| trie.code(level + 1, n) == code)
                .unwrap_or(range.start);
        }
    }
    check_scores(&scores)?;
    Ok(leaves
        .zip(scores)
        .map(|(leaf, score)| Hypothesis { leaf, score })
        .collect())
}

/// All users' beams of one group together, level by level.
fn search<D: Decoder>(
    decoder: &mut D,
    config: &TigerConfig,
    trie: &Trie,
    users: usize,
    options: &BeamOptions,
) -> Result<Vec<Vec<Hypothesis>>> {
    // a hypothesis of a shorter prefix: `leaf` is the node at the current depth
    let mut beams = vec![vec![Hypothesis { leaf: 0, score: 0.0 }]; users];
    let mut parents: Vec<u32> = vec![];
    for level in 0..trie.levels() {
        let mut tokens = Vec::new();
        let mut offsets = vec![0];
        for beam in &beams {
            for prefix in beam {
                tokens.push(match level {
                    0 => config.bos_token(),
                    _ => config.token(level - 1, trie.code(level, prefix.leaf))?,
                });
            }
            offsets.push(tokens.len());
        }
        let rows = Rows {
            parents: std::mem::take(&mut parents),
            tokens,
            users: Arc::from(offsets),
        };
        let mut logits = decoder.step(level, &rows)?;
        let head = config.head(level);
        let v = head.width;
        for (user, beam) in beams.iter_mut().enumerate() {
            let mut candidates = Vec::new();
            for (i, prefix) in beam.iter().enumerate() {
                let row = rows.users[user] + i;
                let logits = &mut logits[row * v..][..v];
                let children = trie.children(level, prefix.leaf);
                let logits = normalise(logits, &head, trie, level, children.clone(), options.normalisation);
                for node in children {
                    let score = prefix.score + logits[usize::from(trie.code(level + 1, node))];
                    candidates.push((Hypothesis { leaf: node, score }, row as u32));
                }
            }
            if candidates.len() > options.width {
                candidates.select_nth_unstable_by(options.width - 1, |a, b| better(&a.0, &b.0));
                candidates.truncate(options.width);
            }
            candidates.sort_unstable_by(|a, b| better(&a.0, &b.0));
            parents.extend(candidates.iter().map(|(_, row)| row));
            *beam = candidates.into_iter().map(|(hypothesis, _)| hypothesis).collect();
            check_scores(&beam.iter().map(|h| h.score).collect::<Vec<_>>())?;
        }
    }
    Ok(beams)
}

/// Logits of one prefix to log-probabilities by code; with `Children`, only those of the children are meaningful.
fn normalise<'a>(
    row: &'a mut [f32],
    head: &Head,
    trie: &Trie,
    level: usize,
    children: std::ops::Range<u32>,
    normalisation: Normalisation,
) -> &'a [f32] {
    if normalisation == Normalisation::Codebook {
        log_softmax_in_place(row);
        return &row[head.first..];
    }
    let row = &mut row[head.first..];
    let codes = children.map(|node| usize::from(trie.code(level + 1, node)));
    let mut kept: Vec<f32> = codes.clone().map(|code| row[code]).collect();
    log_softmax_in_place(&mut kept);
    for (code, value) in codes.zip(kept) {
        row[code] = value;
    }
    row
}

/// Higher score first, then the order of codes (which is that of nodes).
fn better(a: &Hypothesis, b: &Hypothesis) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.leaf.cmp(&b.leaf))
}

fn check(config: &TigerConfig, trie: &Trie, options: &BeamOptions) -> Result<()> {
    if options.width == 0 {
        return Err(Error::config("width", "must be at least 1"));
    }
    if trie.levels() != config.levels() {
        return Err(Error::shape("levels of the catalogue", config.levels(), trie.levels()));
    }
    for (level, code) in trie.largest_codes().into_iter().enumerate() {
        config.token(level, code)?;
    }
    Ok(())
}

fn check_scores(scores: &[f32]) -> Result<()> {
    match scores.iter().find(|s| !s.is_finite()) {
        Some(s) => Err(Error::InvalidData(format!("the model gives a score of {s}"))),
        None => Ok(()),
    }
}

/// The histories of tasks whose users keep `width` prefixes each.
fn pack_groups(
    config: &TigerConfig,
    inputs: &Inputs,
    (users_at_most, prefixes): (usize, usize),
    width: usize,
) -> Result<Vec<Histories>> {
    let Inputs { histories, users, .. } = *inputs;
    if let Some(users) = users
        && users.len() != histories.len()
    {
        return Err(Error::shape("users", histories.len(), users.len()));
    }
    let size = (prefixes / width).clamp(1, users_at_most);
    let group = |(i, histories): (usize, &[&[u16]])| {
        let users = users.map(|users| &users[i * size..][..histories.len()]);
        config.histories(&Inputs {
            histories,
            users,
            vectors: inputs.vectors,
        })
    };
    histories.chunks(size).enumerate().map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;
    use crate::tiger::{FeedForward, ItemVectors, OutputHeads};

    fn numbers(n: usize, bound: u64, key: u64) -> Vec<u16> {
        (0..n as u64).map(|i| Key::new(key).below(i, bound) as u16).collect()
    }

    /// The feed-forward of T5 comes with the head of T5 and with injected vectors.
    fn setup(feed_forward: FeedForward) -> (Tiger, Vec<u16>, Vec<Vec<u16>>) {
        let plain = feed_forward == FeedForward::T5;
        let config = TigerConfig {
            codebook_sizes: vec![5, 5, 5],
            layers: 2,
            d_model: 16,
            heads: 3,
            d_kv: 7,
            d_ff: 33,
            feed_forward,
            user_buckets: 9,
            output_heads: if plain {
                OutputHeads::Plain
            } else {
                OutputHeads::PerLevel
            },
            vector_dim: if plain { 4 } else { 0 },
            ..TigerConfig::default()
        };
        let model = Tiger::init(&config, 4).unwrap();
        let histories = (0..70).map(|u| numbers(3 * (1 + u % 7), 5, u as u64)).collect();
        (model, numbers(3 * 60, 5, 1000), histories)
    }

    /// Vectors of all ids there can be.
    fn vectors() -> ItemVectors {
        let all: Vec<u16> = (0..125).flat_map(|i| [i / 25, i / 5 % 5, i % 5]).collect();
        let numbers: Vec<f32> = (0..500).map(|i| Key::new(77).normal(i) as f32).collect();
        ItemVectors::new(&Trie::new(&all, 3).unwrap(), &numbers, 4).unwrap()
    }

    fn reads<'a>(histories: &'a [&'a [u16]], users: &'a [u64], vectors: &'a ItemVectors) -> Inputs<'a> {
        Inputs {
            histories,
            users: Some(users),
            vectors: Some(vectors),
        }
    }

    fn users(n: usize) -> Vec<u64> {
        (0..n as u64).collect()
    }

    #[test]
    fn full_width_equals_exact_scoring() {
        let all = [Normalisation::Codebook, Normalisation::Children].into_iter();
        for (normalisation, kind) in all.flat_map(|n| [(n, FeedForward::Grid), (n, FeedForward::T5)]) {
            let vectors = vectors();
            let (model, ids, histories) = setup(kind);
            let trie = Trie::new(&ids, 3).unwrap();
            let options = BeamOptions {
                width: trie.items(),
                normalisation,
            };
            for (user, history) in histories.iter().take(7).enumerate() {
                let ids = [user as u64];
                let histories = [&history[..]];
                let inputs = reads(&histories, &ids, &vectors);
                let found = beam_search(&model, &trie, &inputs, &options).unwrap();
                let exact = score_catalogue(&model, &trie, &inputs, normalisation).unwrap();
                assert_eq!(found[0].len(), trie.leaves());
                for (a, b) in found[0].iter().zip(&exact) {
                    assert_eq!(a.leaf, b.leaf);
                    assert!((a.score - b.score).abs() < 1e-4);
                }
                let total: f64 = exact.iter().map(|h| f64::from(h.score).exp()).sum();
                match normalisation {
                    Normalisation::Codebook => assert!(total < 1.0),
                    Normalisation::Children => assert!((total - 1.0).abs() < 1e-4),
                }
            }
        }
    }

    #[test]
    fn batch_one_equals_batch_all_and_threads_do_not_matter() {
        let (model, ids, histories) = setup(FeedForward::T5);
        let (trie, vectors) = (Trie::new(&ids, 3).unwrap(), vectors());
        let options = BeamOptions::default();
        let all: Vec<&[u16]> = histories.iter().map(Vec::as_slice).collect();
        let users = users(all.len());
        let inputs = reads(&all, &users, &vectors);
        let together = beam_search(&model, &trie, &inputs, &options).unwrap();
        for (i, history) in all.iter().enumerate() {
            let history = [*history];
            let one = beam_search(&model, &trie, &reads(&history, &users[i..=i], &vectors), &options).unwrap();
            assert_eq!(one[0], together[i]);
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
        let again = pool.install(|| beam_search(&model, &trie, &inputs, &options));
        assert_eq!(again.unwrap(), together);
    }

    #[test]
    fn the_order_of_items_does_not_matter() {
        let (model, ids, histories) = setup(FeedForward::Grid);
        let order = Key::new(2).permutation(60);
        let shuffled: Vec<u16> = order
            .iter()
            .flat_map(|&i| ids[i as usize * 3..][..3].to_vec())
            .collect();
        let run = |ids: &[u16]| {
            let trie = Trie::new(ids, 3).unwrap();
            let all: Vec<&[u16]> = histories.iter().map(Vec::as_slice).collect();
            let users = users(all.len());
            let found = beam_search(&model, &trie, &reads(&all, &users, &vectors()), &BeamOptions::default());
            let readable = |h: &Hypothesis| (trie.semantic_id(h.leaf), h.score);
            found
                .unwrap()
                .iter()
                .map(|b| b.iter().map(readable).collect())
                .collect::<Vec<Vec<_>>>()
        };
        let found = run(&ids);
        assert_eq!(found, run(&shuffled));
        for beam in found {
            assert_eq!(beam.len(), 10);
            for (id, _) in beam {
                assert!(ids.chunks_exact(3).any(|item| item == id), "{id:?} is no item");
            }
        }
    }

    /// The CPU's decoder, the one of any engine on both engines (with frozen weights too), and the one that replays.
    #[test]
    fn all_decoders_find_the_same() {
        for feed_forward in [FeedForward::Grid, FeedForward::T5] {
            let (model, ids, histories) = setup(feed_forward);
            let (trie, vectors) = (Trie::new(&ids, 3).unwrap(), vectors());
            let all: Vec<&[u16]> = histories.iter().map(Vec::as_slice).collect();
            let users = users(all.len());
            let inputs = reads(&all, &users, &vectors);
            let options = BeamOptions {
                width: 7,
                ..BeamOptions::default()
            };
            let config = model.config();
            let cached = beam_search(&model, &trie, &inputs, &options).unwrap();
            let same = |found: &[Vec<Hypothesis>]| {
                assert_eq!(found.len(), cached.len());
                for (a, b) in cached.iter().flatten().zip(found.iter().flatten()) {
                    assert_eq!(a.leaf, b.leaf);
                    assert!((a.score - b.score).abs() < 1e-4);
                }
            };
            let cpu = candle_core::Device::Cpu;
            let mut stock = Stock::new(model.weights(), &cpu).unwrap();
            same(&beam_search_on(&mut stock, config, &trie, &inputs, &options).unwrap());
            let frozen = crate::frozen::Frozen::from(model.weights().clone());
            let stock = Stock::new(&crate::weights::Weights::default(), &cpu).unwrap();
            let mut stock = stock.with_frozen(Some(&frozen)).unwrap();
            same(&beam_search_on(&mut stock, config, &trie, &inputs, &options).unwrap());
            let together = config.histories(&inputs).unwrap();
            let mut workspace = Workspace::default();
            let mut tape = Tape::new(model.weights(), &mut workspace);
            let mut gathered = Gathered::new(&mut tape, config, &together, Clone::clone).unwrap();
            same(&search(&mut gathered, config, &trie, all.len(), &options).unwrap());
            let mut replayed = Replayed::new(&mut stock, config, &together).unwrap();
            same(&search(&mut replayed, config, &trie, all.len(), &options).unwrap());
        }
    }

    #[test]
    fn ties_follow_the_order_of_codes_and_misuse_is_an_error() {
        let (mut model, ids, histories) = setup(FeedForward::Grid);
        for tensor in model.weights_mut().tensors_mut() {
            if tensor.name.starts_with("heads") {
                tensor.data.fill(0.0);
            }
        }
        let trie = Trie::new(&ids, 3).unwrap();
        let history: [&[u16]; 1] = [&histories[0]];
        let options = BeamOptions {
            width: 4,
            ..BeamOptions::default()
        };
        let found = beam_search(&model, &trie, &reads(&history, &[1], &vectors()), &options).unwrap();
        assert_eq!(found[0].iter().map(|h| h.leaf).collect::<Vec<_>>(), [0, 1, 2, 3]);

        let zero = BeamOptions { width: 0, ..options };
        assert!(beam_search(&model, &trie, &reads(&history, &[1], &vectors()), &zero).is_err());
        let other = Trie::new(&[1, 2], 2).unwrap();
        assert!(beam_search(&model, &other, &reads(&history, &[1], &vectors()), &options).is_err());
        let large = Trie::new(&[1, 2, 5], 3).unwrap();
        assert!(beam_search(&model, &large, &reads(&history, &[1], &vectors()), &options).is_err());
        model.weights_mut().tensors_mut()[0].data.fill(f32::NAN);
        assert!(beam_search(&model, &trie, &reads(&history, &[1], &vectors()), &options).is_err());
    }
}
