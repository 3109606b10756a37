//! How SASRec is trained: windows of histories in which every position is a target, and full ranking on validation.

use super::*;
use crate::ops::{Tape, Workspace};
use crate::ranking::{expected, standings};
use crate::samples::{Ragged, batches};
use crate::train::{Model, Place, TrainingSet};
use crate::weights::{Declaration, Weights};

/// Users whose histories are read together in an evaluation.
const EVALUATION_USERS: usize = 512;

/// Training histories as windows: one more item than the model reads, because each is the target of those before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sequences {
    windows: Ragged<u32>,
}

impl Sequences {
    /// Cuts histories (oldest item first) into consecutive windows of at most `max_items` targets, the last one full:
    /// every item but the first of a history is a target once.
    pub fn new<'a>(histories: impl IntoIterator<Item = &'a [u32]>, max_items: usize) -> Self {
        let mut windows = Ragged::default();
        for history in histories {
            let targets = history.len().saturating_sub(1);
            let mut start = 0;
            while start < targets {
                let left = (targets - start) % max_items.max(1);
                let length = if left == 0 { max_items.max(1) } else { left };
                windows.push(&history[start..=start + length]);
                start += length;
            }
        }
        Sequences { windows }
    }

    /// The items of window `i`, its last target included.
    pub fn window(&self, i: usize) -> &[u32] {
        self.windows.get(i)
    }

    /// Number of targets.
    pub fn targets(&self) -> usize {
        (0..self.count()).map(|i| self.window(i).len() - 1).sum()
    }

    /// Packed inputs and targets of some windows.
    ///
    /// # Errors
    /// None for windows made here.
    pub fn pack(&self, config: &SasrecConfig, rows: &[u32]) -> Result<(Windows, Arc<[u32]>)> {
        let items = rows.iter().map(|&row| self.window(row as usize));
        let windows = config.windows(items.clone().map(|items| &items[..items.len() - 1]))?;
        let targets = items.flat_map(|items| &items[1..]).copied().collect();
        Ok((windows, targets))
    }
}

impl TrainingSet for Sequences {
    fn count(&self) -> usize {
        self.windows.len()
    }

    fn terms(&self, rows: &[u32]) -> usize {
        rows.iter().map(|&row| self.window(row as usize).len() - 1).sum()
    }

    fn batches(&self, batch_size: usize, bucket_batches: usize, epoch: Key) -> Vec<Vec<u32>> {
        batches(self.count(), batch_size, bucket_batches, epoch, |i| {
            self.window(i).len()
        })
    }

    fn digest(&self) -> String {
        digest((0..self.count()).map(|i| self.window(i)))
    }
}

/// What decides which weights are kept; the other one decides between equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// NDCG@10.
    Ndcg10,
    /// Recall@5.
    Recall5,
}

/// Users whose next item decides when to stop and which weights to keep.
#[derive(Debug, Clone, Copy)]
pub struct Validation<'a> {
    /// Histories, oldest item first.
    pub histories: &'a Ragged<u32>,
    /// Their true next items.
    pub targets: &'a [u32],
    /// Evaluate a seeded sample of this many users; `None` takes all.
    pub users: Option<usize>,
    /// The metric that decides.
    pub select: Select,
}

impl Sasrec {
    /// Hidden states [B, D] after the last items of B histories, on the CPU; zeros for an empty history.
    ///
    /// # Errors
    /// [`Error::InvalidData`] for an item outside the catalogue.
    pub fn queries(&self, histories: &[&[u32]], workspace: &mut Workspace) -> Result<Vec<f32>> {
        queries(&mut Tape::new(self.weights(), workspace), self.config(), histories)
    }
}

/// The same on any engine.
///
/// # Errors
/// [`Error::InvalidData`] for an item outside the catalogue, or those of the engine.
pub fn queries<G: Graph>(g: &mut G, config: &SasrecConfig, histories: &[&[u32]]) -> Result<Vec<f32>> {
    let d = config.d_model;
    let mut queries = vec![0.0; histories.len() * d];
    let filled: Vec<usize> = (0..histories.len()).filter(|&i| !histories[i].is_empty()).collect();
    if filled.is_empty() {
        return Ok(queries);
    }
    let windows = config.windows(filled.iter().map(|&i| histories[i]))?;
    let hidden_td = hidden(g, config, &windows, &mut Noise::off())?;
    let last: Vec<u32> = windows.offsets[1..].iter().map(|end| *end as u32 - 1).collect();
    let last_bd = g.gather(&hidden_td, last.into())?;
    for (&i, row) in filled.iter().zip(g.values(&last_bd)?.chunks_exact(d)) {
        queries[i * d..][..d].copy_from_slice(row);
    }
    Ok(queries)
}

impl Model for Sasrec {
    type Config = SasrecConfig;
    type Samples = Sequences;
    type Validation<'a> = Validation<'a>;

    fn declarations(config: &SasrecConfig) -> Vec<Declaration> {
        config.declarations()
    }

    fn init(config: &SasrecConfig, seed: u64) -> Result<Self> {
        Sasrec::init(config, seed)
    }

    fn from_weights(config: &SasrecConfig, weights: Weights) -> Result<Self> {
        Sasrec::from_weights(config, weights)
    }

    fn config(&self) -> &SasrecConfig {
        Sasrec::config(self)
    }

    fn weights(&self) -> &Weights {
        Sasrec::weights(self)
    }

    fn weights_mut(&mut self) -> &mut Weights {
        Sasrec::weights_mut(self)
    }

    fn check(config: &SasrecConfig, samples: &Sequences, validation: Option<Validation>) -> Result<()> {
        if samples.count() == 0 {
            return Err(Error::InvalidData("there are no training samples".into()));
        }
        let outside = |items: &[u32]| items.iter().any(|item| *item as usize >= config.items);
        let mut known = (0..samples.count()).all(|i| !outside(samples.window(i)));
        if let Some(validation) = validation {
            let (histories, targets) = (validation.histories, validation.targets);
            if histories.is_empty() {
                return Err(Error::InvalidData("there are no validation samples".into()));
            }
            if histories.len() != targets.len() {
                return Err(Error::shape("validation targets", histories.len(), targets.len()));
            }
            known &= !outside(targets) && (0..histories.len()).all(|i| !outside(histories.get(i)));
        }
        match known {
            true => Ok(()),
            false => Err(Error::InvalidData(format!("an item is not below {}", config.items))),
        }
    }

    fn forward_flops(config: &SasrecConfig, samples: &Sequences, row: usize) -> f64 {
        config.forward_flops(samples.window(row).len() - 1)
    }

    fn loss<G: Graph>(
        g: &mut G,
        config: &SasrecConfig,
        samples: &Sequences,
        rows: &[u32],
        key: Key,
    ) -> Result<G::Node> {
        let (windows, targets_t) = samples.pack(config, rows)?;
        // noise counts its sites from 1
        let negatives = config.negatives(&windows, &targets_t, key.child(0));
        let mut noise = Noise::new(config.dropout, key);
        loss(g, config, &windows, &targets_t, &negatives, &mut noise)
    }

    /// NDCG@10 and Recall@5 over the whole catalogue, expected values under ties, in the order of `select`.
    fn evaluate(
        mut place: Place<'_, Self>,
        validation: Validation,
        key: Key,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<(f64, f64)> {
        let mut rows = key.permutation(validation.targets.len());
        rows.truncate(validation.users.unwrap_or(usize::MAX).max(1));
        rows.sort_unstable();
        let (mut recall, mut ndcg) = (0.0, 0.0);
        let (mut done, total) = (0, rows.len());
        let table;
        let (items_nd, d) = match &mut place {
            Place::Cpu(model, _) => (model.item_embeddings()?, model.config().d_model),
            Place::Device(config, stock) => {
                let items = stock.weight("items")?;
                table = stock.values(&items)?;
                (&table[..], config.d_model)
            }
        };
        for rows in rows.chunks(EVALUATION_USERS) {
            let histories: Vec<&[u32]> = rows.iter().map(|&i| validation.histories.get(i as usize)).collect();
            let targets: Vec<u32> = rows.iter().map(|&i| validation.targets[i as usize]).collect();
            let queries_bd = match &mut place {
                Place::Cpu(model, workspace) => model.queries(&histories, workspace)?,
                Place::Device(config, stock) => queries(&mut **stock, config, &histories)?,
            };
            for (better, tied) in standings(&queries_bd, items_nd, d, &targets)? {
                recall += expected(better, tied, 5).0;
                ndcg += expected(better, tied, 10).1;
            }
            done += rows.len();
            progress(done, total)?;
        }
        let (recall, ndcg) = (recall / total as f64, ndcg / total as f64);
        Ok(match validation.select {
            Select::Ndcg10 => (ndcg, recall),
            Select::Recall5 => (recall, ndcg),
        })
    }

    fn identity(validation: Validation) -> serde_json::Value {
        let Validation {
            histories,
            targets,
            users,
            select,
        } = validation;
        let histories = digest((0..histories.len()).map(|i| histories.get(i)));
        serde_json::json!([histories, digest([targets]), users, select])
    }
}

fn digest<'a>(rows: impl IntoIterator<Item = &'a [u32]>) -> String {
    let mut hasher = blake3::Hasher::new();
    for row in rows {
        hasher.update(&(row.len() as u64).to_le_bytes());
        let bytes: Vec<u8> = row.iter().flat_map(|item| item.to_le_bytes()).collect();
        hasher.update(&bytes);
    }
    hasher.finalize().to_hex().to_string()
}
