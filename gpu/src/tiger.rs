//! TIGER: a T5 encoder-decoder that reads the semantic ids of a history and writes the semantic id of the next item.
//!
//! Source: TIGER (arXiv 2305.05065) in the form of GRID (arXiv 2507.22224): one embedding table for the digits of all
//! levels, shared by encoder and decoder; a learned separator after every item; T5 blocks (RMS norm first, no
//! attention scaling, relative position bias of the first layer used by all); one untied output head per level.
//!
//! Read top to bottom: config, loss, encoder, decoder, blocks. Weights and counts are in `tiger/model.rs`,
//! samples and validation in `tiger/training.rs`.

mod injection;
mod model;
mod t5_layout;
mod training;

pub use crate::ops::Noise;
pub use injection::ItemVectors;
pub use model::{Parameters, Tiger};
pub use training::{Validation, expected_recall_ndcg};

use crate::error::{Error, Result};
use crate::ops::{Attention, Dropout, Graph, RelativeBuckets};
use crate::random::Key;
use injection::Injected;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Epsilon of every RMS norm.
pub(crate) const EPS: f32 = 1e-6;

/// The feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForward {
    /// GRID's: Linear(d, ff), ReLU, Linear(ff, ff), dropout, ReLU, Linear(ff, d), with biases.
    Grid,
    /// T5's: Linear(d, ff), ReLU, dropout, Linear(ff, d), no biases.
    T5,
}

/// The maps from the decoder's output to the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputHeads {
    /// One for each level: a softmax over its codes alone (GRID).
    PerLevel,
    /// One for all levels: a softmax over the codes of all levels, as in a plain T5.
    Plain,
}

/// Everything that decides the model's shape.
///
/// Parameters of the ten shapes of Table 2 (arXiv 2509.25522) with `codebook_sizes: [256; 4]`, by our count:
///
/// | paper's name | `grid` | `t5` |
/// |---|---|---|
/// | 336K | 936,832 | 410,368 |
/// | 778K | 1,742,144 | 689,216 |
/// | 1.9M | 4,158,080 | 1,525,760 |
/// | 3.3M | 7,379,328 | 2,641,152 |
/// | 6.7M | 9,911,808 | 3,607,296 |
/// | 13M | 13,128,064 | 4,722,048 |
/// | 21M | 22,776,832 | 8,066,304 |
/// | 43M | 58,257,216 | 20,456,256 |
/// | 88M | 181,403,520 | 63,340,800 |
/// | 192M | 579,116,160 | 201,367,680 |
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TigerConfig {
    /// Codes per level, the collision level included. A fact of the data, so there is no default.
    pub codebook_sizes: Vec<usize>,
    /// Blocks of the encoder, and again of the decoder.
    pub layers: usize,
    /// Width D of the residual stream.
    pub d_model: usize,
    /// Attention heads H.
    pub heads: usize,
    /// Width K of a head.
    pub d_kv: usize,
    /// Width of the feed-forward block.
    pub d_ff: usize,
    /// Dropout of embeddings, attention probabilities, feed-forward, residual branches and final norms.
    pub dropout: f32,
    /// Kind of feed-forward block.
    pub feed_forward: FeedForward,
    /// Whether a learned vector follows every item of the history.
    pub separator: bool,
    /// User ids are hashed to this many learned vectors, put first; 0 means no user token.
    pub user_buckets: usize,
    /// Rows of T5's relative bias table.
    pub relative_buckets: usize,
    /// Distances from here on share a bucket.
    pub relative_max_distance: usize,
    /// Only this many last items of a history are read.
    pub max_items: usize,
    /// The maps to codes.
    pub output_heads: OutputHeads,
    /// Width V of the vectors injected as one more token per item; 0 means none.
    pub vector_dim: usize,
}

impl Default for TigerConfig {
    /// GRID's published configuration, 13.13M parameters with four levels of 256 codes.
    fn default() -> Self {
        TigerConfig {
            codebook_sizes: vec![],
            layers: 4,
            d_model: 128,
            heads: 6,
            d_kv: 64,
            d_ff: 1024,
            dropout: 0.15,
            feed_forward: FeedForward::Grid,
            separator: true,
            user_buckets: 0,
            relative_buckets: 32,
            relative_max_distance: 128,
            max_items: 20,
            output_heads: OutputHeads::PerLevel,
            vector_dim: 0,
        }
    }
}

/// What a model reads.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Codes of whole items, oldest first.
    pub histories: &'a [&'a [u16]],
    /// Raw user ids, read only by models with user tokens.
    pub users: Option<&'a [u64]>,
    /// Vectors of the items, read only by models into which some are injected.
    pub vectors: Option<&'a ItemVectors>,
}

impl<'a> Inputs<'a> {
    /// Histories alone.
    pub fn new(histories: &'a [&'a [u16]]) -> Self {
        Inputs {
            histories,
            users: None,
            vectors: None,
        }
    }
}

/// Encoder input of a batch: rows of the token table, packed.
#[derive(Debug, Clone, PartialEq)]
pub struct Histories {
    /// Table rows, T of them.
    pub tokens_t: Arc<[u32]>,
    /// Where each history starts; one more than there are histories.
    pub offsets: Arc<[usize]>,
    /// The different vectors injected, [M, V]: after those of the weights, the last M rows of the token table.
    pub vectors_mv: Arc<[f32]>,
}

/// Sum over levels of the mean cross-entropy, [1, 1]. `targets` holds C codes per history.
///
/// # Errors
/// If targets and histories do not fit together or a code is outside its codebook.
pub fn loss<G: Graph>(
    g: &mut G,
    config: &TigerConfig,
    histories: &Histories,
    targets: &[u16],
    noise: &mut Noise,
) -> Result<G::Node> {
    let (b, c) = (histories.offsets.len() - 1, config.levels());
    if targets.len() != b * c {
        return Err(Error::shape("targets", b * c, targets.len()));
    }
    let mut prefix_tokens = Vec::with_capacity(b * c);
    for target in targets.chunks_exact(c) {
        prefix_tokens.push(config.bos_token());
        for (level, &code) in target[..c - 1].iter().enumerate() {
            prefix_tokens.push(config.token(level, code)?);
        }
    }
    let table_nd = token_table(g, config, histories)?;
    let memory_td = encode(g, config, &table_nd, histories, noise)?;
    let offsets: Arc<[usize]> = (0..=b).map(|s| s * c).collect();
    let groups = offsets.clone();
    let prefixes = Prefixes {
        tokens_t: prefix_tokens.into(),
        offsets,
        groups,
    };
    let memory_offsets = &histories.offsets;
    let hidden_td = decode(g, config, &table_nd, &memory_td, memory_offsets, &prefixes, noise)?;
    let mut losses = Vec::with_capacity(c);
    for level in 0..c {
        let rows: Arc<[u32]> = (0..b).map(|s| (s * c + level) as u32).collect();
        let head = config.head(level);
        let codes = (0..b).map(|s| head.first as u32 + u32::from(targets[s * c + level]));
        let codes: Arc<[u32]> = codes.collect();
        let hidden_bd = g.gather(&hidden_td, rows)?;
        let head_vd = g.weight(&head.name)?;
        let logits_bv = g.linear(&hidden_bd, &head_vd, None, false, Dropout::off())?;
        losses.push(g.cross_entropy(&logits_bv, codes)?);
    }
    g.sum(&losses)
}

/// The embedding table of all tokens: codes of all levels, then BOS, separator, users, injected vectors.
///
/// # Errors
/// If a weight is missing.
pub fn token_table<G: Graph>(g: &mut G, config: &TigerConfig, histories: &Histories) -> Result<G::Node> {
    let mut parts = vec![g.weight("codes")?, g.weight("bos")?];
    if config.separator {
        parts.push(g.weight("separator")?);
    }
    if config.user_buckets > 0 {
        parts.push(g.weight("users")?);
    }
    if config.vector_dim > 0 {
        let vectors_mv = g.constant(&histories.vectors_mv, config.vector_dim)?;
        let map_dv = g.weight("vectors")?;
        parts.push(g.linear(&vectors_mv, &map_dv, None, false, Dropout::off())?);
    }
    g.stack(&parts)
}

/// Encoder output [T, D] of packed histories.
///
/// # Errors
/// If a weight is missing or a token is outside the table.
pub fn encode<G: Graph>(
    g: &mut G,
    config: &TigerConfig,
    table_nd: &G::Node,
    histories: &Histories,
    noise: &mut Noise,
) -> Result<G::Node> {
    let bias = g.weight("encoder.bias")?;
    let mut x_td = g.gather(table_nd, histories.tokens_t.clone())?;
    x_td = g.dropout(&x_td, noise.next())?;
    for layer in 0..config.layers {
        let block = format!("encoder.{layer}");
        let shape = config.attention(&histories.offsets, &histories.offsets, false, noise);
        x_td = self_attention(g, &block, &x_td, &bias, &shape, noise)?;
        x_td = feed_forward(g, config, &block, &x_td, noise)?;
    }
    let w_d = g.weight("encoder.norm")?;
    let x_td = g.rms_norm(&x_td, &w_d, EPS)?;
    g.dropout(&x_td, noise.next())
}

/// Decoder input of a batch.
pub struct Prefixes {
    /// Rows of the token table, T of them, packed.
    pub tokens_t: Arc<[u32]>,
    /// Where each prefix starts; one more than there are prefixes.
    pub offsets: Arc<[usize]>,
    /// Where the rows start that read each history: in training a history has one prefix, in search all its beams.
    pub groups: Arc<[usize]>,
}

/// Decoder output [T, D] of packed prefixes, which read the encoder output [T, D] of the histories.
///
/// # Errors
/// If a weight is missing or offsets do not fit.
pub fn decode<G: Graph>(
    g: &mut G,
    config: &TigerConfig,
    table_nd: &G::Node,
    memory_td: &G::Node,
    memory_offsets: &Arc<[usize]>,
    prefixes: &Prefixes,
    noise: &mut Noise,
) -> Result<G::Node> {
    let bias = g.weight("decoder.bias")?;
    let mut x_td = g.gather(table_nd, prefixes.tokens_t.clone())?;
    x_td = g.dropout(&x_td, noise.next())?;
    for layer in 0..config.layers {
        let block = format!("decoder.{layer}");
        let shape = config.attention(&prefixes.offsets, &prefixes.offsets, true, noise);
        x_td = self_attention(g, &block, &x_td, &bias, &shape, noise)?;
        let shape = config.attention(&prefixes.groups, memory_offsets, false, noise);
        x_td = cross_attention(g, &block, &x_td, memory_td, &shape, noise)?;
        x_td = feed_forward(g, config, &block, &x_td, noise)?;
    }
    let w_d = g.weight("decoder.norm")?;
    let x_td = g.rms_norm(&x_td, &w_d, EPS)?;
    g.dropout(&x_td, noise.next())
}

fn self_attention<G: Graph>(
    g: &mut G,
    block: &str,
    x_td: &G::Node,
    bias: &G::Node,
    shape: &Attention,
    noise: &mut Noise,
) -> Result<G::Node> {
    let norm = g.weight(&format!("{block}.attention.norm"))?;
    let qkv = g.weight(&format!("{block}.attention.qkv"))?;
    let out = g.weight(&format!("{block}.attention.out"))?;
    let h_td = g.rms_norm(x_td, &norm, EPS)?;
    let qkv = g.linear(&h_td, &qkv, None, false, Dropout::off())?; // [T, 3·H·K]
    let a = g.self_attention(&qkv, Some(bias), shape)?; // [T, H·K]
    let y_td = g.linear(&a, &out, None, false, Dropout::off())?;
    g.residual(x_td, &y_td, noise.next())
}

fn cross_attention<G: Graph>(
    g: &mut G,
    block: &str,
    x_td: &G::Node,
    memory_td: &G::Node,
    shape: &Attention,
    noise: &mut Noise,
) -> Result<G::Node> {
    let norm = g.weight(&format!("{block}.cross.norm"))?;
    let q = g.weight(&format!("{block}.cross.q"))?;
    let kv = g.weight(&format!("{block}.cross.kv"))?;
    let out = g.weight(&format!("{block}.cross.out"))?;
    let h_td = g.rms_norm(x_td, &norm, EPS)?;
    let q = g.linear(&h_td, &q, None, false, Dropout::off())?; // [Tq, H·K]
    let kv = g.linear(memory_td, &kv, None, false, Dropout::off())?; // [Tk, 2·H·K]
    let a = g.cross_attention(&q, &kv, shape)?; // [Tq, H·K]
    let y_td = g.linear(&a, &out, None, false, Dropout::off())?;
    g.residual(x_td, &y_td, noise.next())
}

fn feed_forward<G: Graph>(
    g: &mut G,
    config: &TigerConfig,
    block: &str,
    x_td: &G::Node,
    noise: &mut Noise,
) -> Result<G::Node> {
    let norm = g.weight(&format!("{block}.feed_forward.norm"))?;
    let mut h = g.rms_norm(x_td, &norm, EPS)?;
    let maps = config.feed_forward.maps();
    for map in 1..=maps {
        let w = g.weight(&format!("{block}.feed_forward.{map}"))?;
        let b = match config.feed_forward {
            FeedForward::Grid => Some(g.weight(&format!("{block}.feed_forward.{map}.bias"))?),
            FeedForward::T5 => None,
        };
        // dropout and ReLU commute, so the second-last map does both whatever the order in the source
        let dropout = if map == maps - 1 { noise.next() } else { Dropout::off() };
        h = g.linear(&h, &w, b.as_ref(), map < maps, dropout)?;
    }
    g.residual(x_td, &h, noise.next())
}

/// A map to codes: the weight's name, and which of its rows are the codes of the level.
pub(crate) struct Head {
    pub name: String,
    pub first: usize,
    /// Rows of the weight.
    pub width: usize,
}

impl FeedForward {
    /// Number of linear maps.
    pub(crate) fn maps(self) -> usize {
        match self {
            FeedForward::Grid => 3,
            FeedForward::T5 => 2,
        }
    }
}

impl TigerConfig {
    /// Levels C of a semantic id.
    pub fn levels(&self) -> usize {
        self.codebook_sizes.len()
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the first field that cannot work.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("layers", self.layers),
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("max_items", self.max_items),
        ];
        for (field, value) in positive {
            if value == 0 {
                return Err(Error::config(field, "must be at least 1"));
            }
        }
        if self.codebook_sizes.is_empty() {
            return Err(Error::config("codebook_sizes", "needs at least one level"));
        }
        if let Some(size) = self.codebook_sizes.iter().find(|&&s| s == 0 || s > 1 << 16) {
            let reason = format!("a level has {size} codes; allowed are 1 to 65536");
            return Err(Error::config("codebook_sizes", reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", "must be at least 0 and below 1"));
        }
        if self.relative_buckets < 4 || !self.relative_buckets.is_multiple_of(2) {
            return Err(Error::config("relative_buckets", "must be even and at least 4"));
        }
        if self.relative_max_distance <= self.relative_buckets / 2 {
            let reason = "must be greater than half of `relative_buckets`";
            return Err(Error::config("relative_max_distance", reason));
        }
        Ok(())
    }

    /// Table row of a code.
    ///
    /// # Errors
    /// [`Error::InvalidData`] if the code is outside its codebook.
    pub fn token(&self, level: usize, code: u16) -> Result<u32> {
        if usize::from(code) >= self.codebook_sizes[level] {
            return Err(Error::InvalidData(format!(
                "code {code} at level {level} is outside the codebook of {}",
                self.codebook_sizes[level]
            )));
        }
        Ok((self.codebook_sizes[..level].iter().sum::<usize>() + usize::from(code)) as u32)
    }

    /// Table row of BOS.
    pub fn bos_token(&self) -> u32 {
        self.codebook_sizes.iter().sum::<usize>() as u32
    }

    /// The map to the codes of a level.
    pub(crate) fn head(&self, level: usize) -> Head {
        let first = self.codebook_sizes[..level].iter().sum();
        match self.output_heads {
            OutputHeads::PerLevel => Head {
                name: format!("heads.{level}"),
                first: 0,
                width: self.codebook_sizes[level],
            },
            OutputHeads::Plain => Head {
                name: "heads".into(),
                first,
                width: self.codebook_sizes.iter().sum(),
            },
        }
    }

    /// Packs histories for the encoder: cut to `max_items`; separators, user tokens and item vectors added.
    ///
    /// # Errors
    /// [`Error::InvalidData`] for an empty history, part of an item, a code outside its codebook, an item without a
    /// vector; [`Error::ShapeMismatch`] for vectors of another width.
    pub fn histories(&self, inputs: &Inputs) -> Result<Histories> {
        let Inputs { histories, users, .. } = *inputs;
        let c = self.levels();
        let (mut tokens, mut offsets) = (Vec::new(), vec![0]);
        let mut injected = Injected::of(self, inputs.vectors)?;
        for (s, history) in histories.iter().enumerate() {
            if history.is_empty() || !history.len().is_multiple_of(c) {
                return Err(Error::InvalidData(format!(
                    "history {s} has {} codes; it needs a positive multiple of {c}",
                    history.len()
                )));
            }
            if self.user_buckets > 0 {
                let user = users
                    .and_then(|u| u.get(s))
                    .ok_or_else(|| Error::InvalidData("the model has user tokens, but no user ids came".into()))?;
                let bucket = Key::new(0).below(*user, self.user_buckets as u64) as u32;
                tokens.push(self.bos_token() + 1 + u32::from(self.separator) + bucket);
            }
            let cut = history.len().saturating_sub(self.max_items * c);
            for item in history[cut..].chunks_exact(c) {
                for (level, &code) in item.iter().enumerate() {
                    tokens.push(self.token(level, code)?);
                }
                if let Some(injected) = &mut injected {
                    tokens.push(injected.token(item)?);
                }
                if self.separator {
                    tokens.push(self.bos_token() + 1);
                }
            }
            offsets.push(tokens.len());
        }
        Ok(Histories {
            tokens_t: tokens.into(),
            offsets: offsets.into(),
            vectors_mv: injected.map(Injected::vectors).unwrap_or_default().into(),
        })
    }

    fn attention(&self, queries: &Arc<[usize]>, keys: &Arc<[usize]>, causal: bool, noise: &mut Noise) -> Attention {
        Attention {
            heads: self.heads,
            key_dim: self.d_kv,
            queries: queries.clone(),
            keys: keys.clone(),
            causal,
            scale: 1.0,
            buckets: Some(self.buckets(!causal)),
            dropout: noise.next(),
        }
    }

    pub(crate) fn buckets(&self, bidirectional: bool) -> RelativeBuckets {
        RelativeBuckets {
            buckets: self.relative_buckets,
            max_distance: self.relative_max_distance,
            bidirectional,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_field_is_named() {
        let good = TigerConfig {
            codebook_sizes: vec![8; 3],
            ..TigerConfig::default()
        };
        good.validate().unwrap();
        let fail = |config: TigerConfig, field: &str| {
            let text = config.validate().unwrap_err().to_string();
            assert!(text.starts_with(&format!("invalid `{field}`")), "{text}");
        };
        fail(TigerConfig::default(), "codebook_sizes");
        fail(
            TigerConfig {
                heads: 0,
                ..good.clone()
            },
            "heads",
        );
        fail(
            TigerConfig {
                dropout: 1.0,
                ..good.clone()
            },
            "dropout",
        );
        fail(
            TigerConfig {
                relative_max_distance: 16,
                ..good
            },
            "relative_max_distance",
        );
    }

    #[test]
    fn histories_are_cut_and_separated() {
        let config = TigerConfig {
            codebook_sizes: vec![4, 4],
            max_items: 2,
            user_buckets: 3,
            ..TigerConfig::default()
        };
        let long: &[u16] = &[0, 0, 1, 2, 3, 3];
        let packed = |histories: &[&[u16]]| {
            config.histories(&Inputs {
                users: Some(&[5, 6]),
                ..Inputs::new(histories)
            })
        };
        let got = packed(&[long, &[2, 0]]).unwrap();
        assert_eq!(got.offsets[..], [0, 7, 11]);
        assert_eq!(got.tokens_t[1..7], [1, 6, 9, 3, 7, 9]);
        assert_eq!(got.tokens_t[8..], [2, 4, 9]);
        assert!((10..13).contains(&got.tokens_t[0]));
        assert!(packed(&[&long[..3]]).is_err());
        assert!(packed(&[&[4, 0]]).is_err());
        assert!(config.histories(&Inputs::new(&[long])).is_err());
    }

    #[test]
    fn an_item_carries_its_vector_after_its_codes() {
        let config = TigerConfig {
            codebook_sizes: vec![4, 4],
            vector_dim: 1,
            ..TigerConfig::default()
        };
        let trie = crate::trie::Trie::new(&[0, 0, 1, 2, 3, 3], 2).unwrap();
        let vectors = ItemVectors::new(&trie, &[5.0, -2.0, 0.0], 1).unwrap();
        let packed = |history: &[u16], vectors| {
            config.histories(&Inputs {
                vectors,
                ..Inputs::new(&[history])
            })
        };
        let got = packed(&[1, 2, 0, 0, 1, 2], Some(&vectors)).unwrap();
        // Codes 0 to 7, BOS 8, separator 9, the vectors of this batch from 10.
        assert_eq!(got.tokens_t[..], [1, 6, 10, 9, 0, 4, 11, 9, 1, 6, 10, 9]);
        assert_eq!(got.vectors_mv[..], [-1.0, 1.0]);
        let text = packed(&[1, 3], Some(&vectors)).unwrap_err().to_string();
        assert_eq!(text, "invalid data: there is no item vector for the semantic id [1, 3]");
        assert!(packed(&[1, 2], None).is_err());
        let wide = ItemVectors::new(&trie, &[1.0; 6], 2).unwrap();
        assert!(packed(&[1, 2], Some(&wide)).is_err());
    }
}
