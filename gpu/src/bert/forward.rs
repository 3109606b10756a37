//! The CPU forward pass of BERT on packed sequences: no padding is computed.
//!
//! Tokens of all sequences lie one after the other. Linear layers run on panels of [`PANEL`] tokens, the rest on
//! panels of [`SMALL_PANEL`] (the last filled up with zero rows). The product sums along a row in the same order for
//! both sizes, so a token's result depends neither on the number of threads nor on what else is in the batch;
//! attention runs per sequence and head.

use std::path::Path;

use rayon::prelude::*;

use super::BertConfig;
use super::weights::layout;
use crate::encoder::{Activation, Checkpoint, EncoderError, Forward, check_batch};
use crate::lanes;
use crate::product::{View, product};

/// Tokens per task in the linear layers: as many as keep the product fast and its panels in cache.
const PANEL: usize = 256;
/// Tokens per task in what is left.
const SMALL_PANEL: usize = 64;

/// A BERT encoder for the CPU, in f32.
pub struct BertEncoder {
    config: BertConfig,
    activation: Activation,
    words_vd: Vec<f32>,
    /// Position embeddings with token type 0 added.
    positions_td: Vec<f32>,
    norm: Norm,
    blocks: Vec<Block>,
}

struct Block {
    /// Query, key and value side by side: [D, 3 D].
    query_key_value: Linear,
    attention_out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    norm: Norm,
}

/// `y = x W + b`, `W` stored [in, out] so that the product reads it along its rows.
struct Linear {
    weight_io: Vec<f32>,
    bias_o: Vec<f32>,
}

struct Norm {
    scale_d: Vec<f32>,
    shift_d: Vec<f32>,
    epsilon: f32,
}

impl BertEncoder {
    /// Reads `config.json` and the weights in `folder`.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        Self::open(folder, BertConfig::load(folder)?)
    }

    /// Reads the weights in `folder` that a checked configuration implies.
    pub(crate) fn open(folder: &Path, config: BertConfig) -> Result<Self, EncoderError> {
        let weights = Checkpoint::open(folder, &layout(&config))?;
        let d = config.hidden_size;
        let linear = |names: &[String]| Linear::new(names, &weights);
        let norm = |name: &str| Norm::new(name, &weights, config.layer_norm_eps);
        let mut positions_td = weights.get("embeddings.position_embeddings.weight")?;
        let types_nd = weights.get("embeddings.token_type_embeddings.weight")?;
        for row in positions_td.chunks_exact_mut(d) {
            row.iter_mut().zip(&types_nd[..d]).for_each(|(x, t)| *x += t);
        }
        let blocks = (0..config.num_hidden_layers)
            .map(|layer| {
                let at = |name: &str| format!("encoder.layer.{layer}.{name}");
                let self_attention = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
                Ok(Block {
                    query_key_value: linear(&self_attention)?,
                    attention_out: linear(&[at("attention.output.dense")])?,
                    attention_norm: norm(&at("attention.output.LayerNorm"))?,
                    up: linear(&[at("intermediate.dense")])?,
                    down: linear(&[at("output.dense")])?,
                    norm: norm(&at("output.LayerNorm"))?,
                })
            })
            .collect::<Result<_, EncoderError>>()?;
        Ok(BertEncoder {
            activation: config.activation().unwrap_or(Activation::Gelu),
            words_vd: weights.get("embeddings.word_embeddings.weight")?,
            positions_td,
            norm: norm("embeddings.LayerNorm")?,
            blocks,
            config,
        })
    }

    /// The configuration the encoder was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Last hidden states [T, D], row-major, of the packed sequences `ids_T[offsets[i]..offsets[i + 1]]`.
    ///
    /// Runs on the current rayon pool. A sequence's rows are the same bits whatever else is in the batch and however
    /// many threads there are. Errors: offsets that do not rise from 0 to T, an empty or too long sequence, an id
    /// outside the vocabulary.
    pub fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let most = self.config.max_position_embeddings;
        check_batch(ids_t, offsets, self.config.vocab_size, Some(most))?;
        let d = self.config.hidden_size;
        let padded = ids_t.len().next_multiple_of(SMALL_PANEL);
        let mut hidden_td = self.embed(ids_t, offsets, padded);
        let mut qkv_t3d = vec![0f32; padded * 3 * d];
        let mut context_td = vec![0f32; padded * d];
        for block in &self.blocks {
            panels_mut(&mut qkv_t3d, 3 * d)
                .zip(panels(&hidden_td, d))
                .for_each(|(out, x)| block.query_key_value.apply(x, out));
            self.attend(&qkv_t3d, offsets, &mut context_td);
            let inner = self.config.intermediate_size;
            panels_mut(&mut hidden_td, d).zip(panels(&context_td, d)).for_each_init(
                || (vec![0f32; PANEL * d], vec![0f32; PANEL * inner]),
                |(mixed_td, inner_ti), (hidden_td, context_td)| {
                    let tokens = hidden_td.len() / d;
                    let (mixed_td, inner_ti) = (&mut mixed_td[..tokens * d], &mut inner_ti[..tokens * inner]);
                    block.attention_out.apply(context_td, mixed_td);
                    block.attention_norm.add(mixed_td, hidden_td);
                    block.up.apply(mixed_td, inner_ti);
                    self.activation.apply(inner_ti);
                    block.down.apply(inner_ti, hidden_td);
                    block.norm.add(hidden_td, mixed_td);
                },
            );
        }
        hidden_td.truncate(ids_t.len() * d);
        Ok(hidden_td)
    }

    /// Word, position and type embeddings, normalised: [padded, D]; rows past the last token are zero.
    fn embed(&self, ids_t: &[u32], offsets: &[usize], padded: usize) -> Vec<f32> {
        let d = self.config.hidden_size;
        let mut hidden_td = vec![0f32; padded * d];
        let positions = offsets.windows(2).flat_map(|w| 0..w[1] - w[0]);
        for ((row, id), position) in hidden_td.chunks_exact_mut(d).zip(ids_t).zip(positions) {
            let word = &self.words_vd[*id as usize * d..][..d];
            let place = &self.positions_td[position * d..][..d];
            row.iter_mut()
                .zip(word.iter().zip(place))
                .for_each(|(x, (w, p))| *x = w + p);
        }
        let Norm {
            scale_d,
            shift_d,
            epsilon,
        } = &self.norm;
        lanes::layer_norm(&mut hidden_td[..ids_t.len() * d], scale_d, shift_d, *epsilon);
        hidden_td
    }

    /// `softmax(Q K^T / sqrt(K)) V` within every sequence and head.
    fn attend(&self, qkv_t3d: &[f32], offsets: &[usize], context_td: &mut [f32]) {
        let d = self.config.hidden_size;
        let k = d / self.config.num_attention_heads;
        let scale = 1.0 / (k as f32).sqrt();
        let mut rest = context_td;
        let mut tasks = Vec::with_capacity(offsets.len().saturating_sub(1));
        for span in offsets.windows(2) {
            let (own, after) = std::mem::take(&mut rest).split_at_mut((span[1] - span[0]) * d);
            rest = after;
            tasks.push((own, &qkv_t3d[span[0] * 3 * d..span[1] * 3 * d]));
        }
        tasks
            .into_par_iter()
            .for_each_init(Vec::new, |scores_tt: &mut Vec<f32>, (context_td, qkv)| {
                let t = context_td.len() / d;
                scores_tt.resize(t * t, 0.0);
                for head in 0..self.config.num_attention_heads {
                    let query = View::rows(&qkv[head * k..], 3 * d);
                    let key = View::transposed(&qkv[d + head * k..], 3 * d);
                    let value = View::rows(&qkv[2 * d + head * k..], 3 * d);
                    product((t, k, t), 1.0, query, key, false, scores_tt, t);
                    lanes::softmax(scores_tt, t, scale);
                    product(
                        (t, t, k),
                        1.0,
                        View::rows(scores_tt, t),
                        value,
                        false,
                        &mut context_td[head * k..],
                        d,
                    );
                }
            });
    }
}

impl Forward for BertEncoder {
    fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> Result<Vec<f32>, EncoderError> {
        BertEncoder::forward(self, ids_t, offsets)
    }
}

/// The panels of a packed batch [T, width], T a multiple of [`SMALL_PANEL`].
fn panels(x: &[f32], width: usize) -> impl IndexedParallelIterator<Item = &[f32]> {
    let (whole, rest) = x.split_at(x.len() / (PANEL * width) * (PANEL * width));
    whole
        .par_chunks(PANEL * width)
        .chain(rest.par_chunks(SMALL_PANEL * width))
}

fn panels_mut(x: &mut [f32], width: usize) -> impl IndexedParallelIterator<Item = &mut [f32]> {
    let (whole, rest) = x.split_at_mut(x.len() / (PANEL * width) * (PANEL * width));
    whole
        .par_chunks_mut(PANEL * width)
        .chain(rest.par_chunks_mut(SMALL_PANEL * width))
}

impl Linear {
    /// The layers `names`, side by side in the output.
    fn new(names: &[String], weights: &Checkpoint) -> Result<Self, EncoderError> {
        let (mut bias_o, mut weight_oi) = (Vec::new(), Vec::new());
        for name in names {
            bias_o.extend(weights.get(&format!("{name}.bias"))?);
            weight_oi.extend(weights.get(&format!("{name}.weight"))?);
        }
        let outputs = bias_o.len();
        let inputs = weight_oi.len() / outputs;
        let mut weight_io = vec![0f32; inputs * outputs];
        for (o, row) in weight_oi.chunks_exact(inputs).enumerate() {
            for (i, w) in row.iter().enumerate() {
                weight_io[i * outputs + o] = *w;
            }
        }
        Ok(Linear { weight_io, bias_o })
    }

    /// One panel: `out = x W + b`; the product starts from the bias.
    fn apply(&self, x_ti: &[f32], out_to: &mut [f32]) {
        let outputs = self.bias_o.len();
        let inputs = self.weight_io.len() / outputs;
        for row in out_to.chunks_exact_mut(outputs) {
            row.copy_from_slice(&self.bias_o);
        }
        let (x, w) = (View::rows(x_ti, inputs), View::rows(&self.weight_io, outputs));
        product(
            (out_to.len() / outputs, inputs, outputs),
            1.0,
            x,
            w,
            true,
            out_to,
            outputs,
        );
    }
}

impl Norm {
    fn new(name: &str, weights: &Checkpoint, epsilon: f64) -> Result<Self, EncoderError> {
        Ok(Norm {
            scale_d: weights.get(&format!("{name}.weight"))?,
            shift_d: weights.get(&format!("{name}.bias"))?,
            epsilon: epsilon as f32,
        })
    }

    /// `x = norm(x + residual)`.
    fn add(&self, x_td: &mut [f32], residual_td: &[f32]) {
        lanes::add_layer_norm(x_td, residual_td, &self.scale_d, &self.shift_d, self.epsilon);
    }
}
