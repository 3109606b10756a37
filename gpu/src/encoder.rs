//! Text encoder: token ids in, one embedding per row out; batching by length, pooling, normalisation.
//!
//! Tokenising is the caller's. Source of the pooling rules: sentence-transformers.

use std::path::Path;

use candle_core::Device;
use rayon::prelude::*;

use crate::bert::{BertConfig, BertEncoder, BertError, BertWeights, PaddedBert};
use crate::lanes;

/// Tokens per batch on the CPU: enough panels for every thread, small enough to stay in the last-level cache.
const TOKENS_PER_BATCH: usize = 8192;
/// Tokens per batch, padding included, on a device.
const DEVICE_TOKENS_PER_BATCH: usize = 32_768;

/// How the hidden states [T, D] of a sequence become one vector [D].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Mean over the tokens (padding never counts).
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    LastToken,
}

/// What [`TextEncoder::encode`] does besides the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// Divide every embedding by its L2 norm (a zero vector stays zero).
    pub normalize: bool,
    /// Longest sequence in tokens. A longer one keeps its first `max_length - 1` tokens and its last (the closing
    /// special token), as the truncation of Hugging Face tokenizers does.
    pub max_length: usize,
}

/// A pretrained text encoder on the CPU (packed, by hand) or on a device (padded, candle).
pub struct TextEncoder {
    model: Model,
}

enum Model {
    Packed(BertEncoder),
    Padded(PaddedBert),
}

impl TextEncoder {
    /// Loads the checkpoint in `folder` (Hugging Face layout, BERT family).
    pub fn load(folder: &Path, device: &Device) -> Result<Self, BertError> {
        let config = BertConfig::load(folder)?;
        let weights = BertWeights::load(folder, &config)?;
        let model = match device {
            Device::Cpu => Model::Packed(BertEncoder::new(config, &weights)),
            device => Model::Padded(PaddedBert::new(config, &weights, device)?),
        };
        Ok(TextEncoder { model })
    }

    /// D, the width of an embedding.
    pub fn dim(&self) -> usize {
        self.config().hidden_size
    }

    /// The longest sequence the model has positions for, in tokens.
    pub fn max_positions(&self) -> usize {
        self.config().max_position_embeddings
    }

    /// The model's configuration.
    pub fn config(&self) -> &BertConfig {
        match &self.model {
            Model::Packed(model) => model.config(),
            Model::Padded(model) => model.config(),
        }
    }

    /// Embeddings [N, D], row-major, in the order of `token_ids`; on the CPU a row's bits do not depend on the others.
    ///
    /// Rows are batched by length. `on_progress(rows done, rows in all)` is called after every batch. Errors name the
    /// row: no token, an id outside the vocabulary, more tokens than positions (where `max_length` allows them).
    pub fn encode(
        &self,
        token_ids: &[Vec<u32>],
        options: &EncodeOptions,
        mut on_progress: impl FnMut(usize, usize),
    ) -> Result<Vec<f32>, BertError> {
        let d = self.dim();
        let kept = |row: &Vec<u32>| row.len().min(options.max_length);
        let mut order: Vec<usize> = (0..token_ids.len()).collect();
        order.sort_by_key(|i| (kept(&token_ids[*i]), *i));
        let mut embeddings_nd = vec![0f32; token_ids.len() * d];
        let mut done = 0;
        while done < order.len() {
            let batch = self.next_batch(&order[done..], |i| kept(&token_ids[i]));
            let (mut ids_t, mut offsets) = (Vec::new(), vec![0]);
            for i in batch {
                push_truncated(&mut ids_t, &token_ids[*i], options.max_length);
                offsets.push(ids_t.len());
            }
            let hidden_td = match &self.model {
                Model::Packed(model) => model.forward(&ids_t, &offsets),
                Model::Padded(model) => model.forward(&ids_t, &offsets),
            }
            .map_err(|error| in_row(error, batch))?;
            let pooled: Vec<Vec<f32>> = offsets
                .par_windows(2)
                .map(|span| pool(&hidden_td[span[0] * d..span[1] * d], d, options))
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
            let full = match self.model {
                Model::Packed(_) => packed > TOKENS_PER_BATCH,
                Model::Padded(_) => (rows + 1) * length(*i) > DEVICE_TOKENS_PER_BATCH,
            };
            if full && rows > 0 {
                break;
            }
            rows += 1;
        }
        &order[..rows]
    }
}

fn push_truncated(ids_t: &mut Vec<u32>, row: &[u32], max_length: usize) {
    match row.last() {
        Some(last) if row.len() > max_length => {
            ids_t.extend_from_slice(&row[..max_length.saturating_sub(1)]);
            if max_length > 0 {
                ids_t.push(*last);
            }
        }
        _ => ids_t.extend_from_slice(row),
    }
}

/// The error of a batch, told in rows of the input.
fn in_row(error: BertError, batch: &[usize]) -> BertError {
    match error {
        BertError::EmptySequence { sequence } => BertError::EmptySequence {
            sequence: batch[sequence],
        },
        BertError::TooLong { sequence, got, most } => BertError::TooLong {
            sequence: batch[sequence],
            got,
            most,
        },
        BertError::UnknownToken {
            sequence,
            position,
            id,
            vocabulary,
        } => BertError::UnknownToken {
            sequence: batch[sequence],
            position,
            id,
            vocabulary,
        },
        other => other,
    }
}

fn pool(hidden_td: &[f32], d: usize, options: &EncodeOptions) -> Vec<f32> {
    let tokens = hidden_td.len() / d;
    let mut out_d = match options.pooling {
        Pooling::Cls => hidden_td[..d].to_vec(),
        Pooling::LastToken => hidden_td[(tokens - 1) * d..].to_vec(),
        Pooling::Mean => {
            let mut sum_d = vec![0f64; d];
            hidden_td
                .chunks_exact(d)
                .for_each(|row| lanes::add_scaled(&mut sum_d, row, 1.0));
            sum_d.iter().map(|x| (x / tokens as f64) as f32).collect()
        }
    };
    if options.normalize {
        let norm = lanes::squared_norm(&out_d).sqrt().max(1e-12);
        out_d.iter_mut().for_each(|x| *x = (*x as f64 / norm) as f32);
    }
    out_d
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
        max_length: 128,
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
        texts[3] = vec![101; 128];
        assert_eq!(encoder.encode(&texts, &MEAN, |_, _| ()).expect("embeddings"), got);
        texts[2] = Vec::new();
        let error = encoder.encode(&texts, &MEAN, |_, _| ()).expect_err("an error");
        assert_eq!(error.to_string(), "sequence 2 has no token");
        texts[2] = vec![1; 513];
        let error = encoder
            .encode(
                &texts,
                &EncodeOptions {
                    max_length: 600,
                    ..MEAN
                },
                |_, _| (),
            )
            .expect_err("an error");
        assert_eq!(
            error.to_string(),
            "sequence 2 has 513 tokens, the model has 512 positions"
        );
    }

    #[test]
    fn poolings_by_hand() {
        let hidden_td = [1.0, 2.0, 3.0, 4.0, 8.0, 0.0];
        let with = |pooling, normalize| {
            pool(
                &hidden_td,
                2,
                &EncodeOptions {
                    pooling,
                    normalize,
                    max_length: 8,
                },
            )
        };
        assert_eq!(with(Pooling::Cls, false), [1.0, 2.0]);
        assert_eq!(with(Pooling::LastToken, false), [8.0, 0.0]);
        assert_eq!(with(Pooling::Mean, false), [4.0, 2.0]);
        assert_eq!(with(Pooling::LastToken, true), [1.0, 0.0]);
    }

    #[test]
    fn truncation_keeps_the_closing_token() {
        let cut = |most| {
            let mut ids = Vec::new();
            push_truncated(&mut ids, &[9, 1, 2, 3, 8], most);
            ids
        };
        assert_eq!(cut(5), [9, 1, 2, 3, 8]);
        assert_eq!(cut(3), [9, 1, 8]);
        assert_eq!(cut(1), [8]);
        assert!(cut(0).is_empty());
    }
}
