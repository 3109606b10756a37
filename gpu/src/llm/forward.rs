//! The forward pass of a language model and its loss, over any [`Graph`].
//!
//! Read top to bottom: batch, loss, hidden states, a block, its maps.

use super::LlmConfig;
use super::added::Added;
use super::lora::{self, Lora};
use crate::error::{Error, Result};
use crate::ops::{Attention, Dropout, Graph, Heads, Noise, Source};
use crate::prenorm::rotary::Rotations;
use crate::prenorm::{Part, Positions};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

/// Sequences of tokens, packed, and where their last ones begin that are scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// T tokens.
    pub tokens_t: Arc<[u32]>,
    /// Where each sequence starts; one more than there are sequences.
    pub offsets: Arc<[usize]>,
    /// How many of the last rows of each sequence are scored; at least one.
    pub scored: Vec<usize>,
}

impl Batch {
    /// The place of every token in its sequence.
    fn positions(&self) -> Arc<[u32]> {
        let lengths = self.offsets.windows(2).map(|ends| ends[1] - ends[0]);
        lengths.flat_map(|length| 0..length as u32).collect()
    }

    /// Rows that are scored, and where those of each sequence start.
    fn last_rows(&self) -> Selected {
        let ends = self.offsets[1..].iter().zip(&self.scored);
        let rows = ends.flat_map(|(end, scored)| (end - scored) as u32..*end as u32);
        let mut offsets = vec![0];
        for scored in &self.scored {
            offsets.push(offsets[offsets.len() - 1] + scored);
        }
        (rows.collect(), offsets.into())
    }
}

/// Some of the packed rows, and where those of each sequence start.
type Selected = (Arc<[u32]>, Arc<[usize]>);

/// A language model with what was put on it.
#[derive(Debug, Clone, Copy)]
pub struct Network<'a> {
    /// The architecture.
    pub config: &'a LlmConfig,
    /// Adapters of its maps.
    pub lora: Option<&'a Lora>,
    /// Tokens beyond its vocabulary.
    pub added: &'a Added,
    /// Keep what comes out of each block alone, and compute the rest anew on the way back.
    pub recompute: bool,
}

/// Mean cross-entropy [1, 1] of the tokens that follow the scored rows.
///
/// # Errors
/// If a weight is missing, a token is outside the vocabulary, or numbers do not fit together.
pub fn loss<G: Graph>(
    g: &mut G,
    network: Network,
    batch: &Batch,
    targets: &Arc<[u32]>,
    noise: &mut Noise,
) -> Result<G::Node> {
    let hidden_sd = hidden(g, network, batch, noise)?;
    let head_vd = network.added.head(g, network.config)?;
    g.linear_cross_entropy(&hidden_sd, &head_vd, targets.clone())
}

/// Normed hidden states [S, D] of the scored rows: their products with the output map are the logits.
///
/// In the last block, what is not scored is a key and a value only.
///
/// # Errors
/// As [`loss`].
pub fn hidden<G: Graph>(g: &mut G, network: Network, batch: &Batch, noise: &mut Noise) -> Result<G::Node> {
    let Network {
        config, lora, added, ..
    } = network;
    let decoder = config.decoder();
    let Positions::Rotary { frequencies, most } = &decoder.positions else {
        return Err(Error::config("positions", "must be rotary"));
    };
    let positions = batch.positions();
    let longest = positions.iter().max().map_or(0, |last| *last as usize + 1);
    if longest > *most {
        let reason = format!("a sequence has {longest} tokens, the model has {most} positions");
        return Err(Error::InvalidData(reason));
    }
    let (last, last_offsets) = batch.last_rows();
    let all = Rows {
        positions: positions.clone(),
        offsets: batch.offsets.clone(),
        rotations: Arc::new(frequencies.table(longest)),
        only: None,
    };
    let scored = Rows {
        only: Some((last, last_offsets)),
        ..all.clone()
    };
    let mut x_td = added.embed(g, config, &batch.tokens_t)?;
    let model = Arc::new((config.clone(), lora.cloned()));
    for layer in 0..decoder.layers {
        let rows = if layer + 1 == decoder.layers { &scored } else { &all };
        x_td = match network.recompute {
            false => block(g, (config, lora), layer, rows, noise, &x_td)?,
            true => {
                // Whenever the block runs, its dropout begins where it began; what follows goes on where it ends.
                let (model, rows, start) = (model.clone(), rows.clone(), noise.clone());
                let after = Rc::new(RefCell::new(noise.clone()));
                let ends = after.clone();
                let x = g.recomputed(&x_td, move |g, x_td| {
                    let mut noise = start.clone();
                    let y = block(g, (&model.0, model.1.as_ref()), layer, &rows, &mut noise, x_td);
                    *ends.borrow_mut() = noise;
                    y
                })?;
                noise.clone_from(&after.borrow());
                x
            }
        };
    }
    let norm_d = g.weight(&config.name(decoder.final_norm()))?;
    g.rms_norm(&x_td, &norm_d, decoder.epsilon)
}

/// Which rows a block reads and writes.
#[derive(Clone)]
struct Rows {
    /// The place of every token in its sequence.
    positions: Arc<[u32]>,
    /// Where each sequence starts.
    offsets: Arc<[usize]>,
    rotations: Arc<Rotations>,
    /// The rows that are queries, and where those of each sequence start; `None` for all.
    only: Option<Selected>,
}

/// One block: attention and feed-forward, [T, D] to the rows that are queries.
fn block<G: Graph>(
    g: &mut G,
    (config, lora): (&LlmConfig, Option<&Lora>),
    layer: usize,
    rows: &Rows,
    noise: &mut Noise,
    x_td: &G::Node,
) -> Result<G::Node> {
    let decoder = config.decoder();
    let Rows {
        positions, rotations, ..
    } = rows;
    let mut block = Block {
        g,
        config,
        lora,
        layer,
        noise,
    };
    let norm_d = block.weight(Part::AttentionNorm)?;
    let h_td = block.g.rms_norm(x_td, &norm_d, decoder.epsilon)?;
    let (h_qd, x_qd, offsets, places) = match &rows.only {
        None => (h_td.clone(), x_td.clone(), rows.offsets.clone(), positions.clone()),
        Some((only, offsets)) => {
            let places = only.iter().map(|row| positions[*row as usize]).collect();
            let h_sd = block.g.gather(&h_td, only.clone())?;
            let x_sd = block.g.gather(x_td, only.clone())?;
            (h_sd, x_sd, offsets.clone(), places)
        }
    };
    let shape = Attention {
        heads: decoder.heads,
        key_dim: decoder.key_dim,
        queries: offsets,
        keys: rows.offsets.clone(),
        causal: true,
        scale: decoder.scale,
        buckets: None,
        dropout: Dropout::off(),
    };
    let heads = |positions: Arc<[u32]>| Heads {
        key_dim: decoder.key_dim,
        epsilon: decoder.epsilon,
        positions,
        rotations: rotations.clone(),
    };
    let query = block.query(&h_qd)?;
    let q = block.g.heads(&[query], &heads(places))?; // [S or T, H·K]
    let key_value = block.key_value(&h_td)?;
    let kv = block.g.heads(&key_value, &heads(positions.clone()))?; // [T, 2·H·K]
    let a = block.g.cross_attention(&q, &kv, &shape)?;
    let y = block.linear(Part::AttentionOut, &a)?;
    let x = block.g.residual(&x_qd, &y, Dropout::off())?;
    let norm_d = block.weight(Part::FeedForwardNorm)?;
    let h = block.g.rms_norm(&x, &norm_d, decoder.epsilon)?;
    let (gate, up) = (block.linear(Part::Activated, &h)?, block.linear(Part::Linear, &h)?);
    let h = block.g.swiglu(&gate, &up)?; // [.., I]
    let y = block.linear(Part::Down, &h)?;
    block.g.residual(&x, &y, Dropout::off())
}

/// The maps of one block.
struct Block<'a, G> {
    g: &'a mut G,
    config: &'a LlmConfig,
    lora: Option<&'a Lora>,
    layer: usize,
    noise: &'a mut Noise,
}

impl<G: Graph> Block<'_, G> {
    fn weight(&mut self, part: Part) -> Result<G::Node> {
        let name = self.config.decoder().weight(self.layer, part);
        self.g.weight(&self.config.name(&name))
    }

    /// Queries as heads to rotate.
    fn query(&mut self, h: &G::Node) -> Result<Source<G::Node>> {
        Ok(Source {
            x: self.linear(Part::Query, h)?,
            norm: self.head_norm(Part::QueryNorm)?,
            rotate: true,
            repeat: 1,
        })
    }

    /// Keys and values as heads, each shared by as many queries.
    fn key_value(&mut self, h: &G::Node) -> Result<[Source<G::Node>; 2]> {
        let decoder = self.config.decoder();
        let repeat = decoder.heads / decoder.kv_heads;
        let key = Source {
            x: self.linear(Part::Key, h)?,
            norm: self.head_norm(Part::KeyNorm)?,
            rotate: true,
            repeat,
        };
        let value = Source {
            x: self.linear(Part::Value, h)?,
            norm: None,
            rotate: false,
            repeat,
        };
        Ok([key, value])
    }

    fn head_norm(&mut self, part: Part) -> Result<Option<G::Node>> {
        match self.config.decoder().query_key_norm {
            true => self.weight(part).map(Some),
            false => Ok(None),
        }
    }

    /// A linear map, with its adapter if it has one.
    fn linear(&mut self, part: Part, x: &G::Node) -> Result<G::Node> {
        let decoder = self.config.decoder();
        let stem = self.config.name(&decoder.stem(self.layer, part));
        let w = self.g.weight(&format!("{stem}.weight"))?;
        let biased = decoder.maps().iter().any(|(of, .., bias)| *of == part && *bias);
        let bias = match biased {
            true => Some(self.g.weight(&format!("{stem}.bias"))?),
            false => None,
        };
        match self.lora.filter(|lora| lora.targets(&stem)) {
            None => self.g.linear(x, &w, bias.as_ref(), false, Dropout::off()),
            Some(lora) => {
                let a = self.g.weight(&lora::down(&stem))?;
                let b = self.g.weight(&lora::up(&stem))?;
                let mut dropout = self.noise.next();
                dropout.probability = lora.dropout;
                self.g.adapted(x, &w, bias.as_ref(), (&a, &b), lora.scale(), dropout)
            }
        }
    }
}
