//! Embeds item texts with a pretrained text encoder.

mod distinct;

use std::path::{Path, PathBuf};

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::encoder::{EncodeOptions, EncoderConfig, POOLING_FILE, Pooling as EncoderPooling, TextEncoder};
use tokenizers::{Tokenizer, TruncationParams};

use crate::checkpoints::{find, missing, weight_files};
use crate::embed_tfidf_svd::embeddings;
use crate::models;
use crate::schema::{self, ITEM_ID, TEXT};
use distinct::Distinct;

const INPUT: &str = "input";
const WITHOUT: &str =
    "download it (\"sluice fetch NAME\") or give a folder below the data root; embed_tfidf_svd needs none";
/// The most earlier results that are looked at.
const EARLIER: usize = 8;
/// Texts per call of the encoder: progress and interruption come in between.
const SHARE: usize = 1024;

/// Embeds item texts with an encoder checkpoint in Hugging Face layout.
///
/// # In
/// `input`: `item_id`, `text`.
///
/// # Out
/// `out`: `item_id`, `embedding` (as wide as the encoder's hidden state). Equal texts are embedded once, and texts that
/// an earlier result with this config holds are taken from there: an embedding depends on its text alone. The notes
/// count rows `embedded`, `reused` from earlier results and `repeated`.
///
/// # Source
/// Sentence-BERT (Reimers and Gurevych, 2019): masked mean pooling over the last hidden state. GRID (arXiv 2507.22224)
/// takes the encoder of Flan-T5 that way, texts cut at 128 tokens. Qwen3 Embedding (arXiv 2506.05176) takes the last
/// token of a decoder-only model.
///
/// # Deviates
/// Families, by `model_type` in `config.json`: `bert`; `t5` (the encoder; also v1.1 and Flan-T5); `llama`, `qwen2` and
/// `qwen3` (the language model without its head). Any other is refused when the pipeline is checked. Weights are
/// converted to f32. Texts get no instruction before them, and of the modules of a sentence-transformers folder only
/// the pooling is read: a dense layer behind it is not applied.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedText {
    /// The checkpoint: a folder with `config.json`, `tokenizer.json` and `model.safetensors` (or shards with an index),
    /// below the data root; or the name of a model on the Hugging Face hub, if it was downloaded into the hub's cache.
    #[schemars(extend("x-required" = true))]
    pub model: String,
    /// How the last hidden states become one vector. `auto` does as `1_Pooling/config.json` in the checkpoint says;
    /// without that file it is `last_token` for decoder-only models (`llama`, `qwen2`, `qwen3`), `mean` for the others.
    pub pooling: Pooling,
    /// Divide every embedding by its L2 norm.
    pub normalize: bool,
    /// Texts are cut to this many tokens, the special ones included; 128 for all families. At most the positions of
    /// the model, where it has any (`t5` has none).
    pub max_length: u32,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// What the checkpoint says, or its family.
    Auto,
    /// The mean over all tokens of the text.
    Mean,
    /// The first token.
    Cls,
    /// The last token.
    LastToken,
}

impl Default for EmbedText {
    fn default() -> Self {
        EmbedText {
            model: String::new(),
            pooling: Pooling::Auto,
            normalize: true,
            max_length: 128,
            device: "auto".to_string(),
        }
    }
}

impl Operator for EmbedText {
    const NAME: &'static str = "embed_text";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "items with item_id and text")];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::FORWARD_TOLERANCE)
    }

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(INPUT, &[(ITEM_ID, DataType::Utf8), (TEXT, DataType::Utf8)]);
        models::check_device(binding, &self.device);
        if self.max_length < 3 {
            binding.bad_value("max_length", "max_length wants room for two special tokens and a word");
        }
        let Some(folder) = find(&binding.path(&self.model), &self.model) else {
            let error = missing(&self.model, &binding.path(&self.model));
            binding.problem("model", error.hint(WITHOUT));
            return Bound::whole().out(Shape::Unknown);
        };
        let mut files: Vec<PathBuf> = Vec::new();
        for name in ["config.json", "tokenizer.json"] {
            if !folder.join(name).is_file() {
                let message = format!("the checkpoint \"{}\" has no {name}", folder.display());
                let hint = "the encoder and its tokenizer are saved by save_pretrained of transformers (AutoModel, AutoTokenizer)";
                binding.problem("model", Error::user("bad-checkpoint", message).hint(hint));
            }
            files.push(folder.join(name));
        }
        files.extend(weight_files(&folder));
        if files.len() == 2 {
            let message = format!("the checkpoint \"{}\" has no *.safetensors", folder.display());
            binding.problem(
                "model",
                Error::user("bad-checkpoint", message).hint("convert it with transformers"),
            );
        }
        files.retain(|file| file.is_file());
        let shape = match EncoderConfig::load(&folder) {
            Ok(config) => {
                if let Some(most) = config.max_positions().filter(|most| self.max_length as usize > *most) {
                    binding.bad_value("max_length", format!("the encoder has positions for {most} tokens"));
                }
                if let Err(error) = self.pooling(&config, &folder) {
                    binding.problem("pooling", error);
                }
                Shape::table(schema::embeddings(config.dim()))
            }
            Err(error) => {
                binding.problem("model", Error::user("bad-checkpoint", error.to_string()));
                Shape::Unknown
            }
        };
        if self.pooling == Pooling::Auto {
            files.extend(Some(folder.join(POOLING_FILE)).filter(|file| file.is_file()));
        }
        Bound::whole().out(shape).files(files)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let folder = find(&context.path(&self.model), &self.model)
            .ok_or_else(|| missing(&self.model, &context.path(&self.model)).hint(WITHOUT))?;
        let width = EncoderConfig::load(&folder).map_err(|error| bad(&error))?.dim();
        let batch = inputs.batch(INPUT)?;
        let mut distinct = Distinct::new(schema::strings(&batch, TEXT)?, width);
        let mut earlier = context.earlier.results().take(EARLIER);
        while !distinct.missing().is_empty()
            && let Some((inputs, outputs)) = earlier.next()
        {
            context.check_cancelled()?;
            // A result that cannot be read saves no work, and does no harm.
            let _ = distinct.reuse(&inputs, &outputs);
        }
        let missing = distinct.missing();
        if !missing.is_empty() {
            self.embed(context, &folder, &mut distinct, &missing)?;
        }
        let rows = distinct.rows();
        context.note("embedded", rows.embedded as u64);
        context.note("reused", rows.reused as u64);
        context.note("repeated", rows.repeated as u64);
        Ok(Tables::out(embeddings(
            schema::strings(&batch, ITEM_ID)?,
            distinct.into_values(),
            width,
        )?))
    }
}

impl EmbedText {
    /// How hidden states become one vector, for a checkpoint.
    fn pooling(&self, config: &EncoderConfig, folder: &Path) -> Result<EncoderPooling> {
        match self.pooling {
            Pooling::Auto => config.pooling(folder).map_err(|error| {
                let hint = "set pooling to \"mean\", \"cls\" or \"last_token\"";
                Error::user("bad-checkpoint", error.to_string()).hint(hint)
            }),
            Pooling::Mean => Ok(EncoderPooling::Mean),
            Pooling::Cls => Ok(EncoderPooling::Cls),
            Pooling::LastToken => Ok(EncoderPooling::LastToken),
        }
    }

    /// Runs the encoder over texts that have no embedding yet.
    fn embed(&self, context: &Context, folder: &Path, distinct: &mut Distinct, missing: &[usize]) -> Result<()> {
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| bad(&error))?;
        // Nothing is padded, and the cut is that of the config, whatever the file says.
        let cut = TruncationParams {
            max_length: self.max_length as usize,
            ..TruncationParams::default()
        };
        tokenizer.with_padding(None);
        tokenizer.with_truncation(Some(cut)).map_err(|error| bad(&error))?;
        let device = models::device(context, &self.device)?;
        let encoder = TextEncoder::load(folder, &device).map_err(|error| bad(&error))?;
        let options = EncodeOptions {
            pooling: self.pooling(encoder.config(), folder)?,
            normalize: self.normalize,
        };
        let mut tokens = Vec::with_capacity(missing.len());
        for text in missing {
            let encoding = tokenizer
                .encode_fast(distinct.text(*text), true)
                .map_err(|error| bad(&error))?;
            if encoding.is_empty() {
                let message = format!("the text \"{}\" has no token", distinct.text(*text));
                return Err(Error::data("empty-text", message).hint("leave out items without a text"));
            }
            tokens.push(encoding.get_ids().to_vec());
        }
        // Shares of like length, so that a share's batches are even; results do not depend on the batch.
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|at| (std::cmp::Reverse(tokens[*at].len()), *at));
        let mut done = 0;
        for share in order.chunks(SHARE) {
            context.check_cancelled()?;
            let ids: Vec<Vec<u32>> = share.iter().map(|at| std::mem::take(&mut tokens[*at])).collect();
            let encoded = encoder.encode(&ids, &options, |_, _| {}).map_err(|error| bad(&error))?;
            for (at, vector) in share.iter().zip(encoded.chunks_exact(encoder.dim())) {
                distinct.embedded(missing[*at], vector);
            }
            done += share.len();
            context.progress(done as u64, Some(missing.len() as u64), "texts", &[]);
        }
        Ok(())
    }
}

fn bad(error: &dyn std::fmt::Display) -> Error {
    Error::data("bad-checkpoint", error.to_string())
}

#[cfg(test)]
mod tests;
