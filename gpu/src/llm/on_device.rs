//! Generation on a device of candle's: for GPUs what `llm/decoder.rs` is for the CPU. Kernels of `kernels` take the place
//! of stock operations where there are some.
//!
//! Prompts are read packed. Their keys and values are then padded, and shared by all beams of a user: one product for all
//! rows that these add. The rows on the path of a row are gathered, and one softmax runs over both parts. Between two
//! steps tokens, indices and a mask go to the device, and the log-probabilities asked for come back; states stay there.
//!
//! With `Precision::Bf16` the maps of the blocks and the two products of attention take and give bf16, and so are keys
//! and values kept. The residual stream, norms, rotations and softmax are f32; so are logits, in bf16 tokens would be tied.
//!
//! U users, A of them that add rows, P tokens of the longest prompt, T tokens of any kind, R rows, N of the user who adds
//! most, S tokens of the longest path; G heads of keys and values, E heads of queries that share one, H of these in all,
//! K width of a head.

mod loading;
mod reading;
mod scoring;

use super::LlmConfig;
use super::head::Normalisation;
use crate::error::{Error, Result};
use crate::kernels::{Kernels, Places};
use crate::ops::{Dropout, Norm, Source};
use crate::prenorm::Positions;
use crate::prenorm::rotary::Rotations;
use candle_core::{D, DType, Device, Tensor};
use std::sync::Arc;

/// Scores of attention within prompts that are held at a time; in tests few, so that there are several blocks.
const SCORES: usize = if cfg!(test) { 4 << 10 } else { 64 << 20 };
/// Added to the scores of what must not be seen.
const HIDDEN: f32 = -1e30;

/// A language model on a device.
pub struct DeviceDecoder {
    config: LlmConfig,
    normalisation: Normalisation,
    device: Device,
    kernels: Option<Kernels>,
    /// Of the maps, keys and values.
    dtype: DType,
    /// Rows of all tokens that are read: the vocabulary, then those that are only read.
    words_vd: Tensor,
    head_vd: Tensor,
    blocks: Vec<Block>,
    norm_d: Tensor,
    bytes: usize,
}

struct Block {
    attention_norm_d: Tensor,
    query: Map,
    key: Map,
    value: Map,
    /// Norms of queries and keys, where there are.
    query_norm_k: Option<Tensor>,
    key_norm_k: Option<Tensor>,
    attention_out: Map,
    feed_forward_norm_d: Tensor,
    activated: Map,
    linear: Map,
    down: Map,
}

/// `y = x Wᵀ + b + x Aᵀ Bᵀ`, with the scale of the adapter in B.
struct Map {
    weight_oi: Tensor,
    bias_o: Option<Tensor>,
    adapter: Option<(Tensor, Tensor)>,
}

/// Keys and values of one layer.
type Pair = (Tensor, Tensor);

impl DeviceDecoder {
    /// The architecture.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// How many tokens can be read: those of the vocabulary, and those that are only read.
    pub fn readable(&self) -> usize {
        self.words_vd.dims()[0]
    }

    /// Bytes of the weights on the device.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    fn indices(&self, values: Vec<u32>) -> Result<Tensor> {
        let n = values.len();
        Ok(Tensor::from_vec(values, n, &self.device)?)
    }

    /// A factor of a product.
    fn factor(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.to_dtype(self.dtype)?)
    }

    /// Rows of tokens [T, D].
    fn embed(&self, ids_t: &[u32]) -> Result<Tensor> {
        full(&self.words_vd.index_select(&self.indices(ids_t.to_vec())?, 0)?)
    }

    /// RMS norm of rows [T, D].
    fn norm(&self, x_td: &Tensor, gain_d: &Tensor) -> Result<Tensor> {
        let epsilon = self.config.decoder().epsilon;
        match &self.kernels {
            Some(kernels) => kernels.norm(Norm::Rms, x_td, gain_d, epsilon),
            None => normed(x_td, gain_d, epsilon),
        }
    }

    /// `x + y` in f32.
    fn sum(&self, x_td: &Tensor, y_td: &Tensor) -> Result<Tensor> {
        match &self.kernels {
            Some(kernels) => kernels.residual(x_td, y_td, Dropout::off()),
            None => Ok((x_td + full(y_td)?)?),
        }
    }

    /// `silu(gate) * up`, a factor.
    fn swiglu(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        match &self.kernels {
            Some(kernels) => kernels.swiglu(gate, up, self.dtype),
            None => self.factor(&(full(gate)?.silu()? * full(up)?)?),
        }
    }

    /// Heads [T, heads·K] in f32, normed if they have a gain, and turned to their places.
    fn turned(&self, x: Tensor, gain_k: Option<&Tensor>, places: &Arc<Places>) -> Result<Tensor> {
        let Some(kernels) = &self.kernels else {
            return turned(&full(&x)?, gain_k, places);
        };
        let source = Source {
            x,
            norm: gain_k.cloned(),
            rotate: true,
            repeat: 1,
        };
        kernels.heads(&[source], places)
    }

    /// Cosines and sines of the places below `count`.
    fn angles(&self, count: usize) -> Result<Pair> {
        let Positions::Rotary { frequencies, .. } = &self.config.decoder().positions else {
            return Err(Error::config("positions", "must be rotary"));
        };
        let Rotations { cos_pk, sin_pk, pairs } = frequencies.table(count);
        let table = |of| Tensor::from_vec(of, (count, pairs), &self.device);
        Ok((table(cos_pk)?, table(sin_pk)?))
    }

    /// The places of some tokens.
    fn places(&self, (cosines, sines): &Pair, places: Vec<u32>) -> Result<Arc<Places>> {
        let config = self.config.decoder();
        Ok(Arc::new(Places {
            key_dim: config.key_dim,
            epsilon: config.epsilon,
            cosines: cosines.clone(),
            sines: sines.clone(),
            positions: self.indices(places)?,
        }))
    }

    /// Queries [T, H, K], keys and values [T, G, K] of tokens, normed, rotated and scaled.
    fn project(&self, block: &Block, x_td: &Tensor, places: &Arc<Places>) -> Result<[Tensor; 3]> {
        let config = self.config.decoder();
        let normed_td = self.factor(&self.norm(x_td, &block.attention_norm_d)?)?;
        let query = self.turned(block.query.apply(&normed_td)?, block.query_norm_k.as_ref(), places)?;
        let key = self.turned(block.key.apply(&normed_td)?, block.key_norm_k.as_ref(), places)?;
        let heads = |x: Tensor, count: usize| x.reshape((x.dim(0)?, count, config.key_dim));
        Ok([
            heads(self.factor(&(query * f64::from(config.scale))?)?, config.heads)?,
            heads(self.factor(&key)?, config.kv_heads)?,
            heads(block.value.apply(&normed_td)?, config.kv_heads)?,
        ])
    }

    /// What a block does after attention: `x += out(context)`, `x += feed_forward(norm(x))`.
    fn mix(&self, block: &Block, context: &Tensor, x_td: &Tensor) -> Result<Tensor> {
        let x_td = self.sum(x_td, &block.attention_out.apply(context)?)?;
        let normed_td = self.factor(&self.norm(&x_td, &block.feed_forward_norm_d)?)?;
        let inner = self.swiglu(&block.activated.apply(&normed_td)?, &block.linear.apply(&normed_td)?)?; // [T, I]
        self.sum(&x_td, &block.down.apply(&inner)?)
    }

    /// Reads some prompts. Their keys and values [U, G, longest, K] are added to those of every layer.
    fn read_some(
        &self,
        prompts: &[&[u32]],
        longest: usize,
        angles: &Pair,
        memories: &mut [Vec<Pair>],
    ) -> Result<Tensor> {
        let config = self.config.decoder();
        let (g, e, k) = (config.kv_heads, config.heads / config.kv_heads, config.key_dim);
        let (u, p) = (prompts.len(), most(prompts));
        let mut starts = vec![0];
        for prompt in prompts {
            starts.push(starts[starts.len() - 1] + prompt.len());
        }
        // Where a prompt has ended, its last token again: no token before sees it.
        let padded = |tokens: usize| -> Result<Tensor> {
            let ends = starts.windows(2);
            let rows = ends.flat_map(|ends| (ends[0]..ends[0] + tokens).map(move |row| row.min(ends[1] - 1) as u32));
            self.indices(rows.collect())
        };
        let (queries, keys) = (padded(p)?, padded(longest)?);
        let rows = prompts.iter().enumerate();
        let rows = rows.flat_map(|(user, prompt)| (user * p..user * p + prompt.len()).map(|row| row as u32));
        let packed = self.indices(rows.collect())?;
        let places = prompts.iter().flat_map(|prompt| 0..prompt.len() as u32);
        let places = self.places(angles, places.collect())?;
        let pairs = (0..p).flat_map(|query| (0..p).map(move |key| (query, key)));
        let mask = pairs.map(|(query, key)| if key > query { HIDDEN } else { 0.0 });
        let mask = Tensor::from_vec(mask.collect::<Vec<f32>>(), (1, p, 1, p), &self.device)?;
        let mut x_td = self.embed(&prompts.concat())?;
        for (block, memory) in self.blocks.iter().zip(memories) {
            let [query, key, value] = self.project(block, &x_td, &places)?;
            let kept = |x_tgk: &Tensor| -> Result<Tensor> {
                let x = x_tgk.index_select(&keys, 0)?.reshape((u, longest, g, k))?;
                Ok(x.transpose(1, 2)?.contiguous()?) // [U, G, P, K]
            };
            let (key, value) = (kept(&key)?, kept(&value)?);
            let query = query.index_select(&queries, 0)?.reshape((u, p, g, e, k))?;
            let context = self.within_prompts(&query.permute((0, 2, 1, 3, 4))?, &key, &value, &mask)?;
            x_td = self.mix(block, &context.index_select(&packed, 0)?, &x_td)?;
            memory.push((key, value));
        }
        let last = starts[1..].iter().map(|end| (end - 1) as u32).collect();
        self.norm(&x_td.index_select(&self.indices(last)?, 0)?, &self.norm_d)
    }

    /// Causal attention [U·P, H·K] of queries [U, G, P, E, K] to as many or more keys; the mask is [1, P, 1, P].
    fn within_prompts(&self, query: &Tensor, key: &Tensor, value: &Tensor, mask: &Tensor) -> Result<Tensor> {
        let (u, g, p, e, k) = query.dims5()?;
        let size = (SCORES / (u * g * e * p)).clamp(1, p);
        let mut parts = Vec::with_capacity(p.div_ceil(size));
        for first in (0..p).step_by(size) {
            let n = size.min(p - first);
            let end = first + n;
            let seen = |x: &Tensor| -> Result<Tensor> { Ok(x.narrow(2, 0, end)?.reshape((u * g, end, k))?) };
            let query = query.narrow(2, first, n)?.reshape((u * g, n * e, k))?;
            let scores = full(&query.matmul(&seen(key)?.t()?)?)?.reshape((u * g, n, e, end))?;
            let mask = mask.narrow(1, first, n)?.narrow(3, 0, end)?;
            let shares = self.factor(&softmax(&scores.broadcast_add(&mask)?)?)?;
            let mixed = shares.reshape((u * g, n * e, end))?.matmul(&seen(value)?)?;
            parts.push(mixed.reshape((u, g, n, e, k))?);
        }
        let context = Tensor::cat(&parts, 2)?.permute((0, 2, 1, 3, 4))?; // [U, P, G, E, K]
        Ok(context.reshape((u * p, g * e * k))?)
    }
}

impl Map {
    fn apply(&self, x_ti: &Tensor) -> Result<Tensor> {
        let mut y_to = x_ti.matmul(&self.weight_oi.t()?)?;
        if let Some(bias_o) = &self.bias_o {
            y_to = y_to.broadcast_add(bias_o)?;
        }
        if let Some((a_ri, b_or)) = &self.adapter {
            y_to = (y_to + x_ti.matmul(&a_ri.t()?)?.matmul(&b_or.t()?)?)?;
        }
        Ok(y_to)
    }
}

/// RMS norm of rows of any shape, by stock operations.
fn normed(x: &Tensor, gain: &Tensor, epsilon: f32) -> Result<Tensor> {
    let square = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(epsilon))?;
    Ok(x.broadcast_div(&square.sqrt()?)?.broadcast_mul(gain)?)
}

/// See [`DeviceDecoder::turned`]: by stock operations.
fn turned(x: &Tensor, gain_k: Option<&Tensor>, places: &Places) -> Result<Tensor> {
    let heads = x.reshape((x.dim(0)?, (), places.key_dim))?;
    let heads = match gain_k {
        Some(gain_k) => normed(&heads, gain_k, places.epsilon)?,
        None => heads,
    };
    let pairs = places.key_dim / 2;
    let angles = |of: &Tensor| of.index_select(&places.positions, 0)?.unsqueeze(1);
    let (cos, sin) = (angles(&places.cosines)?, angles(&places.sines)?); // [T, 1, K/2]
    let (a, b) = (heads.narrow(2, 0, pairs)?, heads.narrow(2, pairs, pairs)?);
    let parts = [
        (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?,
        (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?,
    ];
    Ok(Tensor::cat(&parts, 2)?.reshape(x.shape())?)
}

/// The longest prompt.
fn most(prompts: &[&[u32]]) -> usize {
    prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(0)
}

/// What is no factor of a product.
fn full(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F32)?)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(x.broadcast_div(&x.sum_keepdim(D::Minus1)?)?)
}

#[cfg(test)]
mod tests;
