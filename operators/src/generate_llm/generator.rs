//! The model that generates: with the kernels of the CPU, or on a GPU.

use candle_core::Device;
use sluice_engine::{Error, Result};
use sluice_gpu::llm::{
    Decoder, DeviceDecoder, FrozenLlm, Generated, LlmConfig, Normalisation, SearchOptions, TitleTrie, generate,
    generate_on,
};
use sluice_gpu::ops::Precision;

use crate::models::explain;

/// A language model where it generates.
pub enum Generator {
    Cpu(Box<Decoder>),
    Gpu(Box<DeviceDecoder>),
}

impl Generator {
    /// Packs a model for the CPU, or copies it to a GPU.
    pub fn new(model: FrozenLlm, normalisation: Normalisation, precision: Precision, device: &Device) -> Result<Self> {
        if !device.is_cpu() {
            let decoder = DeviceDecoder::new(&model, normalisation, precision, device).map_err(explain)?;
            return Ok(Generator::Gpu(Box::new(decoder)));
        }
        if precision == Precision::Bf16 {
            let message = "bf16 is for GPUs, and this generates on the CPU, whose kernels are f32";
            return Err(Error::user("bad-value", message).hint("set precision to f32"));
        }
        let decoder = Decoder::new(model, normalisation).map_err(explain)?;
        Ok(Generator::Cpu(Box::new(decoder)))
    }

    /// The architecture.
    pub fn config(&self) -> &LlmConfig {
        match self {
            Generator::Cpu(decoder) => decoder.config(),
            Generator::Gpu(decoder) => decoder.config(),
        }
    }

    /// How many tokens can be read.
    pub fn readable(&self) -> usize {
        match self {
            Generator::Cpu(decoder) => decoder.readable(),
            Generator::Gpu(decoder) => decoder.readable(),
        }
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        match self {
            Generator::Cpu(decoder) => decoder.bytes(),
            Generator::Gpu(decoder) => decoder.bytes(),
        }
    }

    /// Users per call: progress and interruption come in between.
    pub fn share(&self) -> usize {
        match self {
            Generator::Cpu(_) => 64,
            Generator::Gpu(..) => 256,
        }
    }

    /// The best titles after each prompt.
    pub fn generate(
        &self,
        trie: &TitleTrie,
        prompts: &[&[u32]],
        options: &SearchOptions,
    ) -> sluice_gpu::error::Result<Generated> {
        match self {
            Generator::Cpu(decoder) => generate(decoder, trie, prompts, options),
            Generator::Gpu(decoder) => generate_on(decoder, trie, prompts, options),
        }
    }
}
