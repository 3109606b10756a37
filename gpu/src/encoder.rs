//! Text encoder: token ids in, one embedding per row out; batching by length, pooling, normalisation.
//!
//! Tokenising, and cutting to a length, is the caller's. Which model runs is a matter of [`EncoderConfig`].

mod activation;
mod checkpoint;
mod config;
mod error;
mod padding;
mod pooling;

use std::path::Path;

use candle_core::Device;
use rayon::prelude::*;

use crate::bert::{BertEncoder, PaddedBert};
use crate::prenorm::{PaddedPrenorm, PrenormEncoder};
use pooling::pool;

pub use activation::Activation;
pub use checkpoint::Checkpoint;
pub use config::EncoderConfig;
pub use error::EncoderError;
pub use pooling::{FILE as POOLING_FILE, Pooling};

pub(crate) use checkpoint::Layout;
pub(crate) use config::{at_least_one, keys, read_json, unsupported};
pub(crate) use error::check_batch;
pub(crate) use padding::Padding;

/// Tokens per batch on the CPU: enough panels for every thread, small enough to stay in the last-level cache.
const TOKENS_PER_BATCH: usize = 8192;
/// Tokens per batch, padding included, on a device.
const DEVICE_TOKENS_PER_BATCH: usize = 32_768;

/// What [`TextEncoder::encode`] does besides the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// Divide every embedding by its L2 norm (a zero vector stays zero).
    pub normalize: bool,
}

/// The forward pass of a family: last hidden states [T, D] of the packed sequences `ids_T[offsets[i]..offsets[i + 1]]`.
pub(crate) trait Forward: Send + Sync {
    /// Runs it; errors of the batch (see [`check_batch`]) or of the device.
    fn forward(&self, ids_t: &[u32], offsets: &[usize]) -> Result<Vec<f32>, EncoderError>;
}

/// A pretrained text encoder on the CPU (packed, by hand) or on a device (padded, candle).
pub struct TextEncoder {
    config: EncoderConfig,
    model: Box<dyn Forward>,
    padded: bool,
}

impl TextEncoder {
    /// Loads the checkpoint in `folder` (Hugging Face layout; families as in [`EncoderConfig`]).
    pub fn load(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        let config = EncoderConfig::load(folder)?;
        let padded = !matches!(device, Device::Cpu);
        let model: Box<dyn Forward> = match (&config, padded) {
            (EncoderConfig::Bert(config), false) => Box::new(BertEncoder::open(folder, config.clone())?),
            (EncoderConfig::Bert(config), true) => Box::new(PaddedBert::open(folder, config.clone(), device)?),
            (EncoderConfig::Prenorm(config), false) => Box::new(PrenormEncoder::open(folder, config.clone())?),
            (EncoderConfig::Prenorm(config), true) => Box::new(PaddedPrenorm::open(folder, config.clone(), device)?),
        };
        Ok(TextEncoder { config, model, padded })
    }

    /// D, the width of an embedding.
    pub fn dim(&self) -> usize {
        self.config.dim()
    }

    /// The model's configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Embeddings [N, D], row-major, in the order of `token_ids`; on the CPU a row's bits do not depend on the others.
    ///
    /// Rows are batched by length. `on_progress(rows done, rows in all)` is called after every batch. Errors name the
    /// row: no token, an id outside the vocabulary, more tokens than positions.
    pub fn encode(
        &self,
        token_ids: &[Vec<u32>],
        options: &EncodeOptions,
        mut on_progress: impl FnMut(usize, usize),
    ) -> Result<Vec<f32>, EncoderError> {
        let d = self.dim();
        let mut order: Vec<usize> = (0..token_ids.len()).collect();
        order.sort_by_key(|i| (token_ids[*i].len(), *i));
        let mut embeddings_nd = vec![0f32; token_ids.len() * d];
        let mut done = 0;
        while done < order.len() {
            let batch = self.next_batch(&order[done..], |i| token_ids[i].len());
            let (mut ids_t, mut offsets) = (Vec::new(), vec![0]);
            for i in batch {
                ids_t.extend_from_slice(&token_ids[*i]);
                offsets.push(ids_t.len());
            }
            let hidden_td = self
                .model
                .forward(&ids_t, &offsets)
                .map_err(|error| error.in_row(batch))?;
            let pooled: Vec<Vec<f32>> = offsets
                .par_windows(2)
                .map(|span| {
                    pool(
                        &hidden_td[span[0] * d..span[1] * d],
                        d,
                        options.pooling,
                        options.normalize,
                    )
                })
                .collect();
            for (i, vector) in batch.iter().zip(pooled) {
                embeddings_nd[i * d..(i + 1) * d].copy_from_slice(&vector);
            }
            done += batch.len();
            on_progress(done, order.len());
        }
        Ok(embeddings_nd)
    }

    /// The longest prefix of `order` (ascending lengths) within the token budget; at least one row.
    fn next_batch<'a>(&self, order: &'a [usize], length: impl Fn(usize) -> usize) -> &'a [usize] {
        let (mut packed, mut rows) = (0, 0);
        for i in order {
            packed += length(*i);
            let full = if self.padded {
                (rows + 1) * length(*i) > DEVICE_TOKENS_PER_BATCH
            } else {
                packed > TOKENS_PER_BATCH
            };
            if full && rows > 0 {
                break;
            }
            rows += 1;
        }
        &order[..rows]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// The MiniLM checkpoint, or `None` (with a printed reason) where it is not on this machine.
    #[allow(clippy::print_stderr)]
    fn minilm() -> Option<PathBuf> {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let data = std::env::var_os("SLUICE_DATA").map_or(workspace.join("../shared/data"), PathBuf::from);
        let folder = data.join("all-MiniLM-L6-v2-f16");
        if !folder.join("model.safetensors").exists() {
            eprintln!(
                "skipped: {} is absent; set SLUICE_DATA to the folder that holds it",
                folder.display()
            );
            return None;
        }
        Some(folder)
    }

    /// "This is an example sentence".
    const EXAMPLE: [u32; 7] = [101, 2023, 2003, 2019, 2742, 6251, 102];
    const MEAN: EncodeOptions = EncodeOptions {
        pooling: Pooling::Mean,
        normalize: true,
    };

    #[test]
    fn minilm_embeds_the_example_sentence() {
        let Some(folder) = minilm() else { return };
        let encoder = TextEncoder::load(&folder, &Device::Cpu).expect("an encoder");
        let mut texts = vec![
            EXAMPLE.to_vec(),
            vec![101, 7, 102],
            EXAMPLE[..3].to_vec(),
            vec![101; 200],
            vec![2019; 100],
            vec![2742; 120],
        ];
        let mut calls = Vec::new();
        let got = encoder
            .encode(&texts, &MEAN, |done, all| calls.push((done, all)))
            .expect("embeddings");
        assert_eq!(calls, [(6, 6)]);
        assert_eq!(got.len(), 6 * encoder.dim());
        for (got, want) in got.iter().zip([0.0677, 0.0635, 0.0487, 0.0793, 0.0374]) {
            assert!((got - want).abs() < 1e-3, "{got} {want}");
        }
        for row in got.chunks_exact(encoder.dim()) {
            assert!((row.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        }
        for (text, row) in texts.iter().zip(got.chunks_exact(encoder.dim())) {
            let alone = encoder
                .encode(std::slice::from_ref(text), &MEAN, |_, _| ())
                .expect("embeddings");
            assert_eq!(alone, row);
        }
        texts[2] = Vec::new();
        let error = encoder.encode(&texts, &MEAN, |_, _| ()).expect_err("an error");
        assert_eq!(error.to_string(), "sequence 2 has no token");
        texts[2] = vec![1; 513];
        let error = encoder.encode(&texts, &MEAN, |_, _| ()).expect_err("an error");
        assert_eq!(
            error.to_string(),
            "sequence 2 has 513 tokens, the model has 512 positions"
        );
    }
}
