//! Embeds item texts with a pretrained text encoder.

mod distinct;

use std::path::{Path, PathBuf};

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::bert::BertConfig;
use sluice_gpu::encoder::{EncodeOptions, Pooling as EncoderPooling, TextEncoder};
use tokenizers::Tokenizer;

use crate::embed_tfidf_svd::embeddings;
use crate::models;
use crate::schema::{self, ITEM_ID, TEXT};
use distinct::Distinct;

const INPUT: &str = "input";
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
/// Sentence-BERT (Reimers and Gurevych, 2019): masked mean pooling over the last hidden state. The texts of GRID
/// (arXiv 2507.22224) are cut at 128 tokens.
///
/// # Deviates
/// The families are those of BERT; a checkpoint of another family is refused when the pipeline is checked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedText {
    /// The checkpoint: a folder with `config.json`, `tokenizer.json` and `model.safetensors` (or shards with an index),
    /// below the data root; or the name of a model on the Hugging Face hub, if it was downloaded into the hub's cache.
    #[schemars(extend("x-required" = true))]
    pub model: String,
    /// How the last hidden states become one vector.
    pub pooling: Pooling,
    /// Divide every embedding by its L2 norm.
    pub normalize: bool,
    /// Texts are cut to this many tokens, the special ones included.
    pub max_length: u32,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
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
            pooling: Pooling::Mean,
            normalize: true,
            max_length: 128,
            device: "auto".to_string(),
        }
    }
}

impl Operator for EmbedText {
    const NAME: &'static str = "embed_text";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "items with item_id and text")];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::FORWARD_TOLERANCE)
    }

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(INPUT, &[(ITEM_ID, DataType::Utf8), (TEXT, DataType::Utf8)]);
        if self.max_length < 3 {
            binding.bad_value("max_length", "max_length wants room for two special tokens and a word");
        }
        let Some(folder) = find(&binding.path(&self.model), &self.model) else {
            binding.problem("model", missing(&self.model, &binding.path(&self.model)));
            return Bound::whole().out(Shape::Unknown);
        };
        let mut files: Vec<PathBuf> = Vec::new();
        for name in ["config.json", "tokenizer.json"] {
            if !folder.join(name).is_file() {
                let message = format!("the checkpoint \"{}\" has no {name}", folder.display());
                binding.problem("model", Error::user("bad-checkpoint", message));
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
        let shape = match BertConfig::load(&folder) {
            Ok(config) => {
                if self.max_length as usize > config.max_position_embeddings {
                    let message = format!(
                        "the encoder has positions for {} tokens",
                        config.max_position_embeddings
                    );
                    binding.bad_value("max_length", message);
                }
                Shape::table(schema::embeddings(config.hidden_size))
            }
            Err(error) => {
                binding.problem("model", Error::user("bad-checkpoint", error.to_string()));
                Shape::Unknown
            }
        };
        Bound::whole().out(shape).files(files)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let folder = find(&context.path(&self.model), &self.model)
            .ok_or_else(|| missing(&self.model, &context.path(&self.model)))?;
        let width = BertConfig::load(&folder).map_err(|error| bad(&error))?.hidden_size;
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
    /// Runs the encoder over texts that have no embedding yet.
    fn embed(&self, context: &Context, folder: &Path, distinct: &mut Distinct, missing: &[usize]) -> Result<()> {
        let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| bad(&error))?;
        // The encoder cuts, so that the cut is the same for every tokenizer file, and nothing is padded.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| bad(&error))?;
        let device = models::device(context, &self.device)?;
        let encoder = TextEncoder::load(folder, &device).map_err(|error| bad(&error))?;
        let options = EncodeOptions {
            pooling: match self.pooling {
                Pooling::Mean => EncoderPooling::Mean,
                Pooling::Cls => EncoderPooling::Cls,
                Pooling::LastToken => EncoderPooling::LastToken,
            },
            normalize: self.normalize,
            max_length: self.max_length as usize,
        };
        let mut tokens = Vec::with_capacity(missing.len());
        for text in missing {
            let encoding = tokenizer
                .encode_fast(distinct.text(*text), true)
                .map_err(|error| bad(&error))?;
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

/// The folder of a checkpoint: as given, or the newest snapshot in the hub's cache.
fn find(path: &Path, name: &str) -> Option<PathBuf> {
    if !name.is_empty() && path.join("config.json").is_file() {
        return Some(path.to_path_buf());
    }
    // The hub's cache is a fixed place under the home folder: models--OWNER--NAME/snapshots/REVISION.
    let cache = dirs_home()?
        .join(".cache/huggingface/hub")
        .join(format!("models--{}", name.replace('/', "--")));
    let revision = std::fs::read_to_string(cache.join("refs/main")).ok()?;
    let folder = cache.join("snapshots").join(revision.trim());
    folder.join("config.json").is_file().then_some(folder)
}

fn dirs_home() -> Option<PathBuf> {
    std::env::home_dir()
}

fn missing(name: &str, path: &Path) -> Error {
    Error::user("no-checkpoint", format!("no checkpoint \"{name}\""))
        .detail(format!(
            "looked for \"{}\" and in the Hugging Face cache",
            path.join("config.json").display()
        ))
        .hint("download it (\"hf download NAME\") or give a folder below the data root; embed_tfidf_svd needs none")
}

fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
            name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests;
