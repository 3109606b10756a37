//! BERT from candle's stock operations, on padded batches with a mask: any device, and the slow twin of `forward`.

use std::path::Path;

use candle_core::{D, Device, Tensor};

use super::BertConfig;
use super::weights::layout;
use crate::encoder::{Activation, Checkpoint, EncoderError, Forward, Padding, check_batch};

/// A BERT encoder on a candle device, in f32.
pub struct PaddedBert {
    config: BertConfig,
    activation: Activation,
    tensors: std::collections::HashMap<String, Tensor>,
    device: Device,
}

impl PaddedBert {
    /// Reads `config.json` and the weights in `folder` onto `device`.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        Self::open(folder, BertConfig::load(folder)?, device)
    }

    /// Reads the weights in `folder` that a checked configuration implies.
    pub(crate) fn open(folder: &Path, config: BertConfig, device: &Device) -> Result<Self, EncoderError> {
        let tensors = Checkpoint::open(folder, &layout(&config))?.load_on(device)?;
        let activation = config.activation().unwrap_or(Activation::Gelu);
        Ok(PaddedBert {
            config,
            activation,
            tensors,
            device: device.clone(),
        })
    }

    /// The configuration the encoder was built from.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Last hidden states [T, D], row-major, of the packed sequences `ids_T[offsets[i]..offsets[i + 1]]`: pads them to
    /// the longest, computes with a mask, and packs the result. Errors as the CPU encoder, and the device's own.
    pub fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let most = self.config.max_position_embeddings;
        check_batch(ids_t, offsets, self.config.vocab_size, Some(most))?;
        if ids_t.is_empty() {
            return Ok(Vec::new());
        }
        let padding = Padding::new(offsets);
        let (ids_bt, mask_b11t) = padding.pad(ids_t, &self.device)?;
        Ok(padding.pack(&self.padded(&ids_bt, &mask_b11t)?)?)
    }

    fn padded(&self, ids_bt: &Tensor, mask_b11t: &Tensor) -> candle_core::Result<Tensor> {
        let (b, t) = ids_bt.dims2()?;
        let (d, h) = (self.config.hidden_size, self.config.num_attention_heads);
        let k = d / h;
        let words = self
            .get("embeddings.word_embeddings.weight")
            .index_select(&ids_bt.flatten_all()?, 0)?;
        let positions_td = self.get("embeddings.position_embeddings.weight").narrow(0, 0, t)?;
        let type_1d = self.get("embeddings.token_type_embeddings.weight").narrow(0, 0, 1)?;
        let x_btd = words
            .reshape((b, t, d))?
            .broadcast_add(&positions_td.broadcast_add(&type_1d)?)?;
        let mut x_btd = self.norm(&x_btd, "embeddings.LayerNorm")?;
        for layer in 0..self.config.num_hidden_layers {
            let at = |name: &str| format!("encoder.layer.{layer}.{name}");
            let heads = |name: &str| -> candle_core::Result<Tensor> {
                let y_btd = self.linear(&x_btd, &at(&format!("attention.self.{name}")))?;
                y_btd.reshape((b, t, h, k))?.transpose(1, 2)?.contiguous()
            };
            let (q_bhtk, k_bhtk, v_bhtk) = (heads("query")?, heads("key")?, heads("value")?);
            let scores_bhtt = (q_bhtk.matmul(&k_bhtk.t()?)? / (k as f64).sqrt())?.broadcast_add(mask_b11t)?;
            let scores_bhtt = scores_bhtt.broadcast_sub(&scores_bhtt.max_keepdim(D::Minus1)?)?.exp()?;
            let weights_bhtt = scores_bhtt.broadcast_div(&scores_bhtt.sum_keepdim(D::Minus1)?)?;
            let context_btd = weights_bhtt.matmul(&v_bhtk)?.transpose(1, 2)?.reshape((b, t, d))?;
            let mixed_btd = (self.linear(&context_btd, &at("attention.output.dense"))? + &x_btd)?;
            let mixed_btd = self.norm(&mixed_btd, &at("attention.output.LayerNorm"))?;
            let inner = self.linear(&mixed_btd, &at("intermediate.dense"))?;
            let inner = self.activation.of_tensor(&inner)?;
            let out_btd = (self.linear(&inner, &at("output.dense"))? + mixed_btd)?;
            x_btd = self.norm(&out_btd, &at("output.LayerNorm"))?;
        }
        Ok(x_btd)
    }

    fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    fn linear(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        let (b, t, width) = x.dims3()?;
        let weight_oi = self.get(&format!("{name}.weight"));
        let y = x.reshape((b * t, width))?.matmul(&weight_oi.t()?)?;
        y.broadcast_add(self.get(&format!("{name}.bias")))?
            .reshape((b, t, weight_oi.dim(0)?))
    }

    fn norm(&self, x: &Tensor, name: &str) -> candle_core::Result<Tensor> {
        let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
        let x = x.broadcast_div(&(variance + self.config.layer_norm_eps)?.sqrt()?)?;
        x.broadcast_mul(self.get(&format!("{name}.weight")))?
            .broadcast_add(self.get(&format!("{name}.bias")))
    }
}

impl Forward for PaddedBert {
    fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> Result<Vec<f32>, EncoderError> {
        PaddedBert::forward(self, ids_t, offsets)
    }
}
