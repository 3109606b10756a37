//! The same from candle's stock operations, on padded batches with a mask: any device, and the slow twin of `forward`.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{D, Device, Result, Tensor};

use super::{Part, Positions, PrenormConfig, t5};
use crate::encoder::{Checkpoint, EncoderError, Forward, Padding, check_batch};

/// An encoder on a candle device, in f32.
pub struct PaddedPrenorm {
    config: PrenormConfig,
    tensors: HashMap<String, Tensor>,
    device: Device,
}

/// Cosines and sines [T, K/2] of a batch's positions.
struct Rotation {
    cos_tk: Tensor,
    sin_tk: Tensor,
}

impl PaddedPrenorm {
    /// Reads the weights in `folder` that the configuration implies.
    pub(crate) fn open(
        folder: &Path,
        config: PrenormConfig,
        device: &Device,
    ) -> std::result::Result<Self, EncoderError> {
        let tensors = Checkpoint::open(folder, &config.layout())?.load_on(device)?;
        Ok(PaddedPrenorm {
            config,
            tensors,
            device: device.clone(),
        })
    }

    fn padded(&self, ids_bt: &Tensor, mask_b11t: &Tensor) -> Result<Tensor> {
        let config = &self.config;
        let (b, t) = ids_bt.dims2()?;
        let (h, g, k) = (config.heads, config.kv_heads, config.key_dim);
        let words = self.get(config.embedding()).index_select(&ids_bt.flatten_all()?, 0)?;
        let mut x_btd = words.reshape((b, t, config.width))?;
        let rotation = self.rotation(t)?;
        let bias = mask_b11t.broadcast_add(&self.bias(t)?)?;
        for layer in 0..config.layers {
            let normed = self.norm(&x_btd, &config.weight(layer, Part::AttentionNorm))?;
            let heads =
                |part, count| -> Result<Tensor> { self.linear(&normed, layer, part)?.reshape((b, t, count, k)) };
            let turned = |part, norm, count| -> Result<Tensor> {
                let mut x_bthk = heads(part, count)?;
                if config.query_key_norm {
                    x_bthk = self.norm(&x_bthk, &config.weight(layer, norm))?;
                }
                let x_bhtk = x_bthk.transpose(1, 2)?.contiguous()?;
                rotation
                    .as_ref()
                    .map_or(Ok(x_bhtk.clone()), |rotation| rotation.apply(&x_bhtk))
            };
            let shared = |x_bgtk: Tensor| -> Result<Tensor> {
                let x = x_bgtk.unsqueeze(2)?.expand((b, g, h / g, t, k))?;
                x.contiguous()?.reshape((b, h, t, k))
            };
            let q_bhtk = (turned(Part::Query, Part::QueryNorm, h)? * f64::from(config.scale))?;
            let k_bhtk = shared(turned(Part::Key, Part::KeyNorm, g)?)?;
            let v_bhtk = shared(heads(Part::Value, g)?.transpose(1, 2)?.contiguous()?)?;
            let scores_bhtt = q_bhtk.matmul(&k_bhtk.t()?)?.broadcast_add(&bias)?;
            let scores_bhtt = scores_bhtt.broadcast_sub(&scores_bhtt.max_keepdim(D::Minus1)?)?.exp()?;
            let weights_bhtt = scores_bhtt.broadcast_div(&scores_bhtt.sum_keepdim(D::Minus1)?)?;
            let context = weights_bhtt.matmul(&v_bhtk)?.transpose(1, 2)?.reshape((b, t, h * k))?;
            x_btd = (x_btd + self.linear(&context, layer, Part::AttentionOut)?)?;
            let normed = self.norm(&x_btd, &config.weight(layer, Part::FeedForwardNorm))?;
            let mut inner = config
                .activation
                .of_tensor(&self.linear(&normed, layer, Part::Activated)?)?;
            if config.gated {
                inner = (inner * self.linear(&normed, layer, Part::Linear)?)?;
            }
            x_btd = (x_btd + self.linear(&inner, layer, Part::Down)?)?;
        }
        self.norm(&x_btd, config.final_norm())
    }

    fn rotation(&self, t: usize) -> Result<Option<Rotation>> {
        let Positions::Rotary { frequencies, .. } = &self.config.positions else {
            return Ok(None);
        };
        let table = frequencies.table(t);
        let tensor = |values| Tensor::from_vec(values, (t, table.pairs), &self.device);
        Ok(Some(Rotation {
            cos_tk: tensor(table.cos_pk)?,
            sin_tk: tensor(table.sin_pk)?,
        }))
    }

    /// What is added to scores besides the mask of padding: relative biases [1, H, T, T], the causal mask [1, 1, T, T],
    /// or zero.
    fn bias(&self, t: usize) -> Result<Tensor> {
        if let Positions::Relative(buckets) = &self.config.positions {
            let distances = (0..t as i64).flat_map(|query| (0..t as i64).map(move |key| key - query));
            let buckets: Vec<u32> = distances.map(|distance| buckets.bucket(distance) as u32).collect();
            let rows = Tensor::from_vec(buckets, t * t, &self.device)?;
            let bias_tth = self.get(t5::BIAS).index_select(&rows, 0)?.reshape((t, t, ()))?;
            return bias_tth.permute((2, 0, 1))?.contiguous()?.unsqueeze(0);
        }
        let hidden = |query, key| self.config.causal && key > query;
        let pairs = (0..t).flat_map(|query| (0..t).map(move |key| (query, key)));
        let mask: Vec<f32> = pairs
            .map(|(query, key)| if hidden(query, key) { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        Tensor::from_vec(mask, (1, 1, t, t), &self.device)
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn linear(&self, x: &Tensor, layer: usize, part: Part) -> Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        let weight_oi = self.get(&self.config.weight(layer, part));
        let y = x.reshape((b * t, width))?.matmul(&weight_oi.t()?)?;
        let y = match self.tensors.get(&self.config.bias(layer, part)) {
            Some(bias_o) => y.broadcast_add(bias_o)?,
            None => y,
        };
        y.reshape((b, t, weight_oi.dim(0)?))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(mean + f64::from(self.config.epsilon))?.sqrt()?)?;
        x.broadcast_mul(self.get(name))
    }
}

impl Rotation {
    fn apply(&self, x_bhtk: &Tensor) -> Result<Tensor> {
        let pairs = self.cos_tk.dim(1)?;
        let first = x_bhtk.narrow(D::Minus1, 0, pairs)?;
        let second = x_bhtk.narrow(D::Minus1, pairs, pairs)?;
        let times = |x: &Tensor, y: &Tensor| x.broadcast_mul(y);
        let turned_first = (times(&first, &self.cos_tk)? - times(&second, &self.sin_tk)?)?;
        let turned_second = (times(&second, &self.cos_tk)? + times(&first, &self.sin_tk)?)?;
        Tensor::cat(&[turned_first, turned_second], D::Minus1)
    }
}

impl Forward for PaddedPrenorm {
    fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> std::result::Result<Vec<f32>, EncoderError> {
        check_batch(ids_t, offsets, self.config.vocabulary, self.config.max_positions())?;
        if ids_t.is_empty() {
            return Ok(Vec::new());
        }
        let padding = Padding::new(offsets);
        let (ids_bt, mask_b11t) = padding.pad(ids_t, &self.device)?;
        Ok(padding.pack(&self.padded(&ids_bt, &mask_b11t)?)?)
    }
}
