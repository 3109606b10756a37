//! The way of a model to a device.

use super::{Block, DeviceDecoder, Map, Pair};
use crate::error::{Error, Result};
use crate::frozen::Numbers;
use crate::kernels::Kernels;
use crate::llm::lora::{self, Lora};
use crate::llm::{FrozenLlm, Normalisation};
use crate::ops::Precision;
use crate::prenorm::Part;
use crate::weights::{Weight, Weights};
use candle_core::{DType, Device, Tensor};
use std::cell::Cell;

/// Copies the tensors of a model to a device, one at a time.
struct Loading<'a> {
    model: &'a FrozenLlm,
    device: &'a Device,
    dtype: DType,
    /// What was copied.
    bytes: Cell<usize>,
}

impl DeviceDecoder {
    /// Copies a model to a device, tensor by tensor: the host never holds it twice.
    ///
    /// # Errors
    /// [`Error::TensorNames`], [`Error::ShapeMismatch`], [`Error::Candle`].
    pub fn new(model: &FrozenLlm, normalisation: Normalisation, precision: Precision, device: &Device) -> Result<Self> {
        let loading = Loading {
            model,
            device,
            dtype: match precision {
                Precision::F32 => DType::F32,
                Precision::Bf16 => DType::BF16,
            },
            bytes: Cell::new(0),
        };
        let (config, decoder) = (model.config(), model.config().decoder());
        let d = config.width();
        let words_vd = loading.table(&config.name(decoder.embedding()), &[model.words(), model.read_only()])?;
        let vocabulary = words_vd.dim(0)? - model.read_only().len() / d;
        let head_vd = match config.is_tied() {
            true => words_vd.narrow(0, 0, vocabulary)?,
            false => loading.table(&config.head(), &[model.words()])?,
        };
        if vocabulary != config.vocabulary() || head_vd.dims() != [vocabulary, d] {
            let expected = [config.vocabulary(), d];
            return Err(Error::shape(config.head(), expected, [vocabulary, head_vd.dim(0)?]));
        }
        let blocks = (0..decoder.layers).map(|layer| loading.block(layer));
        Ok(DeviceDecoder {
            blocks: blocks.collect::<Result<_>>()?,
            norm_d: loading.vector(&config.name(decoder.final_norm()))?,
            bytes: loading.bytes.get(),
            config: config.clone(),
            normalisation,
            device: device.clone(),
            kernels: Kernels::of(device),
            dtype: loading.dtype,
            words_vd,
            head_vd,
        })
    }
}

impl Loading<'_> {
    /// Numbers in the type of the maps.
    fn tensor(&self, numbers: Numbers, shape: (usize, usize)) -> Result<Tensor> {
        let tensor = match numbers {
            Numbers::F32(all) => Tensor::from_slice(all, shape, self.device)?,
            Numbers::F16(all) => Tensor::from_slice(all, shape, self.device)?.to_dtype(DType::F32)?,
            Numbers::Bf16(all) => Tensor::from_slice(all, shape, self.device)?,
        };
        self.count(tensor.to_dtype(self.dtype)?)
    }

    fn count(&self, tensor: Tensor) -> Result<Tensor> {
        let bytes = tensor.elem_count() * tensor.dtype().size_in_bytes();
        self.bytes.set(self.bytes.get() + bytes);
        Ok(tensor)
    }

    /// A table [V, D], with more rows behind its own.
    fn table(&self, name: &str, more: &[&[f32]]) -> Result<Tensor> {
        let d = self.model.config().width();
        let more = more
            .iter()
            .filter(|rows| !rows.is_empty())
            .map(|rows| Numbers::F32(rows));
        let all = std::iter::once(self.model.weights().numbers(name)?).chain(more);
        let parts: Result<Vec<Tensor>> = all.map(|rows| self.tensor(rows, (rows.len() / d, d))).collect();
        Ok(Tensor::cat(&parts?, 0)?)
    }

    /// A vector, in f32.
    fn vector(&self, name: &str) -> Result<Tensor> {
        let numbers = self.model.weights().numbers(name)?.to_f32();
        let n = numbers.len();
        self.count(Tensor::from_vec(numbers, n, self.device)?)
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let (config, decoder) = (self.model.config(), self.model.config().decoder());
        let vector = |part| self.vector(&config.name(&decoder.weight(layer, part)));
        let head_norm = |part| decoder.query_key_norm.then(|| vector(part)).transpose();
        let map = |part| self.map(layer, part);
        Ok(Block {
            attention_norm_d: vector(Part::AttentionNorm)?,
            query: map(Part::Query)?,
            key: map(Part::Key)?,
            value: map(Part::Value)?,
            query_norm_k: head_norm(Part::QueryNorm)?,
            key_norm_k: head_norm(Part::KeyNorm)?,
            attention_out: map(Part::AttentionOut)?,
            feed_forward_norm_d: vector(Part::FeedForwardNorm)?,
            activated: map(Part::Activated)?,
            linear: map(Part::Linear)?,
            down: map(Part::Down)?,
        })
    }

    fn map(&self, layer: usize, part: Part) -> Result<Map> {
        let (config, decoder) = (self.model.config(), self.model.config().decoder());
        let stem = config.name(&decoder.stem(layer, part));
        let found = decoder.maps().into_iter().find(|(of, ..)| *of == part);
        let Some((_, to, from, biased)) = found else {
            return Err(Error::shape("a block", "gated", "no such map"));
        };
        let bias = || -> Result<Tensor> { Ok(self.vector(&format!("{stem}.bias"))?.to_dtype(self.dtype)?) };
        let adapter = |(lora, weights): (&Lora, &Weights)| -> Result<Pair> {
            let a = weights.get(&lora::down(&stem))?;
            let b = weights.get(&lora::up(&stem))?;
            let scaled = b.data.iter().map(|x| x * lora.scale());
            let scaled = Weight {
                data: scaled.collect(),
                ..b.clone()
            };
            let place = |w: &Weight| self.tensor(Numbers::F32(&w.data), w.matrix());
            Ok((place(a)?, place(&scaled)?))
        };
        let adapters = self.model.adapters().filter(|(lora, _)| lora.targets(&stem));
        Ok(Map {
            weight_oi: self.tensor(self.model.weights().numbers(&format!("{stem}.weight"))?, (to, from))?,
            bias_o: biased.then(bias).transpose()?,
            adapter: adapters.map(adapter).transpose()?,
        })
    }
}
