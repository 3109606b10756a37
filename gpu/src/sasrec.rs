//! SASRec: causal self-attention over the items of a history; the score of an item is an inner product.
//!
//! Source: Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018), in the form whose linear maps have
//! exactly 12·L·d² parameters (arXiv 2509.25522, Table 3): norm first, a feed-forward block of width 4d, no biases, a
//! norm at the end, and item embeddings that are input and output. Positions count from the last item of a window, as
//! they do where histories are padded on the left.
//!
//! Read top to bottom: config, batch, loss, hidden states. Weights and counts are in `sasrec/model.rs`, samples and
//! validation in `sasrec/training.rs`.

mod model;
mod training;

pub use model::{Parameters, Sasrec};
pub use training::{Select, Sequences, Validation, queries};

use crate::error::{Error, Result};
use crate::ops::{Attention, Dropout, Graph, Noise};
use crate::random::Key;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Epsilon of every layer norm.
const EPS: f32 = 1e-8;

/// Draws of a negative that may hit the history before the last one is taken.
const ATTEMPTS: u64 = 100;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Cross-entropy of the softmax over all items.
    Softmax,
    /// Binary cross-entropy of the target and of one item that is not in the window: the original.
    BinaryCrossEntropy,
    /// Cross-entropy of the softmax over the target and `negatives` items, drawn uniformly for the whole batch.
    SampledSoftmax,
}

/// Everything that decides the model's shape, and its loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SasrecConfig {
    /// Items N of the catalogue. A fact of the data, so there is no default.
    pub items: usize,
    /// Blocks.
    pub layers: usize,
    /// Width D of the residual stream.
    pub d_model: usize,
    /// Attention heads H; they divide D.
    pub heads: usize,
    /// Dropout of embeddings, attention probabilities, feed-forward and residual branches.
    pub dropout: f32,
    /// Only this many last items of a history are read; there are as many positions.
    pub max_items: usize,
    /// What is minimised.
    pub loss: Loss,
    /// Items that `sampled_softmax` draws per step.
    pub negatives: usize,
}

impl Default for SasrecConfig {
    /// The original's shape: two blocks, one head, width 50 rounded up to 64, 50 items.
    fn default() -> Self {
        SasrecConfig {
            items: 0,
            layers: 2,
            d_model: 64,
            heads: 1,
            dropout: 0.5,
            max_items: 50,
            loss: Loss::Softmax,
            negatives: 256,
        }
    }
}

/// Windows of histories, packed: T positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Windows {
    /// Items.
    pub items_t: Arc<[u32]>,
    /// Rows of the position table.
    pub positions_t: Arc<[u32]>,
    /// Where each window starts; one more than there are windows.
    pub offsets: Arc<[usize]>,
}

/// Mean loss over all positions, [1, 1]: `targets_t` follow the positions; `negatives` are those of
/// [`SasrecConfig::negatives`].
///
/// # Errors
/// If numbers do not fit together or an item is outside the catalogue.
pub fn loss<G: Graph>(
    g: &mut G,
    config: &SasrecConfig,
    windows: &Windows,
    targets_t: &Arc<[u32]>,
    negatives: &Arc<[u32]>,
    noise: &mut Noise,
) -> Result<G::Node> {
    let t = windows.items_t.len();
    if targets_t.len() != t {
        return Err(Error::shape("targets", t, targets_t.len()));
    }
    let hidden_td = hidden(g, config, windows, noise)?;
    let items_nd = g.weight("items")?;
    if config.loss == Loss::Softmax {
        return g.linear_cross_entropy(&hidden_td, &items_nd, targets_t.clone());
    }
    let target_td = g.gather(&items_nd, targets_t.clone())?;
    let own_t1 = g.row_dots(&hidden_td, &target_td)?;
    let negative_nd = g.gather(&items_nd, negatives.clone())?;
    if config.loss == Loss::BinaryCrossEntropy {
        let other_t1 = g.row_dots(&hidden_td, &negative_nd)?;
        let losses = [
            g.binary_cross_entropy(&own_t1, true)?,
            g.binary_cross_entropy(&other_t1, false)?,
        ];
        return g.sum(&losses);
    }
    let others_tn = g.linear(&hidden_td, &negative_nd, None, false, Dropout::off())?;
    let own = |&(row, column): &(u32, u32)| targets_t[row as usize] == negatives[column as usize];
    let columns = negatives.len() as u32;
    let elements = (0..t as u32).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let hidden: Vec<(u32, u32)> = elements.filter(own).collect();
    g.sampled_cross_entropy(&own_t1, &others_tn, hidden.into())
}

/// Hidden states [T, D] of all positions: their inner products with the item embeddings are the scores.
///
/// # Errors
/// If a weight is missing or an item is outside the catalogue.
pub fn hidden<G: Graph>(g: &mut G, config: &SasrecConfig, windows: &Windows, noise: &mut Noise) -> Result<G::Node> {
    let (items_nd, positions_nd) = (g.weight("items")?, g.weight("positions")?);
    let item_td = g.gather(&items_nd, windows.items_t.clone())?;
    let position_td = g.gather(&positions_nd, windows.positions_t.clone())?;
    let mut x_td = g.sum(&[item_td, position_td])?;
    x_td = g.dropout(&x_td, noise.next())?;
    for layer in 0..config.layers {
        let block = format!("blocks.{layer}");
        x_td = self_attention(g, config, &block, &x_td, &windows.offsets, noise)?;
        x_td = feed_forward(g, &block, &x_td, noise)?;
    }
    let w_d = g.weight("norm")?;
    g.layer_norm(&x_td, &w_d, EPS)
}

fn self_attention<G: Graph>(
    g: &mut G,
    config: &SasrecConfig,
    block: &str,
    x_td: &G::Node,
    offsets: &Arc<[usize]>,
    noise: &mut Noise,
) -> Result<G::Node> {
    let norm = g.weight(&format!("{block}.attention.norm"))?;
    let qkv = g.weight(&format!("{block}.attention.qkv"))?;
    let out = g.weight(&format!("{block}.attention.out"))?;
    let key_dim = config.d_model / config.heads;
    let shape = Attention {
        heads: config.heads,
        key_dim,
        queries: offsets.clone(),
        keys: offsets.clone(),
        causal: true,
        scale: (key_dim as f32).powf(-0.5),
        buckets: None,
        dropout: noise.next(),
    };
    let h_td = g.layer_norm(x_td, &norm, EPS)?;
    let qkv = g.linear(&h_td, &qkv, None, false, Dropout::off())?; // [T, 3·D]
    let a_td = g.self_attention(&qkv, None, &shape)?;
    let y_td = g.linear(&a_td, &out, None, false, Dropout::off())?;
    g.residual(x_td, &y_td, noise.next())
}

fn feed_forward<G: Graph>(g: &mut G, block: &str, x_td: &G::Node, noise: &mut Noise) -> Result<G::Node> {
    let norm = g.weight(&format!("{block}.feed_forward.norm"))?;
    let up = g.weight(&format!("{block}.feed_forward.1"))?;
    let down = g.weight(&format!("{block}.feed_forward.2"))?;
    let h_td = g.layer_norm(x_td, &norm, EPS)?;
    let h = g.linear(&h_td, &up, None, true, noise.next())?; // [T, 4·D]
    let y_td = g.linear(&h, &down, None, false, Dropout::off())?;
    g.residual(x_td, &y_td, noise.next())
}

impl SasrecConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the first field that cannot work.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("items", self.items),
            ("layers", self.layers),
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("max_items", self.max_items),
            ("negatives", self.negatives),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if !self.d_model.is_multiple_of(self.heads) {
            let reason = format!("must divide `d_model`, which is {}", self.d_model);
            return Err(Error::config("heads", reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", "must be at least 0 and below 1"));
        }
        Ok(())
    }

    /// Packs histories, oldest item first, cut to their last `max_items`.
    ///
    /// # Errors
    /// [`Error::InvalidData`] for an empty history.
    pub fn windows<'a>(&self, histories: impl IntoIterator<Item = &'a [u32]>) -> Result<Windows> {
        let (mut items, mut positions, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        for (i, history) in histories.into_iter().enumerate() {
            if history.is_empty() {
                return Err(Error::InvalidData(format!("history {i} is empty")));
            }
            let length = history.len().min(self.max_items);
            items.extend_from_slice(&history[history.len() - length..]);
            positions.extend((self.max_items - length..self.max_items).map(|p| p as u32));
            offsets.push(items.len());
        }
        Ok(Windows {
            items_t: items.into(),
            positions_t: positions.into(),
            offsets: offsets.into(),
        })
    }

    /// The negatives of one step: none for the full softmax, one a position that is neither in its window nor its
    /// target for binary cross-entropy, `negatives` for the whole batch (with repeats) for the sampled softmax.
    pub fn negatives(&self, windows: &Windows, targets_t: &[u32], key: Key) -> Arc<[u32]> {
        let items = self.items as u64;
        match self.loss {
            Loss::Softmax => Arc::new([]),
            Loss::SampledSoftmax => (0..self.negatives as u64).map(|i| key.below(i, items) as u32).collect(),
            Loss::BinaryCrossEntropy => {
                let mut drawn = Vec::with_capacity(targets_t.len());
                for ends in windows.offsets.windows(2) {
                    let mut seen = [&windows.items_t[ends[0]..ends[1]], &targets_t[ends[0]..ends[1]]].concat();
                    seen.sort_unstable();
                    drawn.extend((ends[0]..ends[1]).map(|position| {
                        let draws = key.child(position as u64);
                        let draw = |attempt: u64| draws.below(attempt, items) as u32;
                        let fresh = |item: &u32| seen.binary_search(item).is_err();
                        (0..ATTEMPTS).map(draw).find(fresh).unwrap_or_else(|| draw(ATTEMPTS))
                    }));
                }
                drawn.into()
            }
        }
    }
}

#[cfg(test)]
mod tests;
