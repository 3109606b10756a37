//! Between tables and language models: prompts and titles as tokens, folders of checkpoints and adapters.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arrow::array::{Array, AsArray, UInt32Array};
use arrow::datatypes::{DataType, Field, UInt32Type};
use sluice_engine::operator::Binding;
use sluice_engine::table::{Shape, Table};
use sluice_engine::{Error, Result};
use sluice_gpu::encoder::EncoderError;
use sluice_gpu::frozen::Frozen;
use sluice_gpu::llm::added::{Added, Vectors};
use sluice_gpu::llm::lora::{self, Lora};
use sluice_gpu::llm::{FrozenLlm, Llm, LlmConfig, Prompts};
use sluice_gpu::samples::Ragged;
use sluice_gpu::weights::Weights;

use crate::checkpoints::{find, missing, weight_files};
use crate::models::explain;
use crate::schema::{self, ITEM_ID, TARGET, USER_ID};
use crate::sequences::require_list;
use crate::tokenize_prompts::titles::{FIRST_NEW_TOKEN, SOFT_TOKEN};
use crate::tokenize_prompts::{LOSS_FROM, TOKENS};

/// The layout of a folder with a language model, or with an adapter of one.
pub const LAYOUT: &str = "llm";

/// Requires a column of lists of tokens.
pub fn require_tokens(binding: &Binding, input: &str, others: &[(&str, DataType)]) {
    binding.require(input, others);
    require_list(binding, input, TOKENS, &DataType::UInt32);
}

/// Train prompts of `tokenize_prompts`.
pub fn train_prompts(table: &Table) -> Result<Prompts> {
    let (mut tokens, mut from) = (Ragged::default(), Vec::new());
    for batch in table.batches()? {
        let batch = batch?;
        for list in token_lists(schema::lists(&batch, TOKENS)?) {
            tokens.push(list?.values());
        }
        from.extend(schema::numbers::<UInt32Type>(&batch, LOSS_FROM)?.values());
    }
    Prompts::new(tokens, from).map_err(explain)
}

/// Evaluation prompts of `tokenize_prompts` with the titles of their targets behind them. Rows whose target has no title
/// are left out.
pub fn answered_prompts(prompts: &Table, titles: &Table) -> Result<Prompts> {
    let titles = titles_by_item(titles)?;
    let (mut tokens, mut from) = (Ragged::default(), Vec::new());
    for batch in prompts.batches()? {
        let batch = batch?;
        let targets = schema::strings(&batch, TARGET)?;
        for (list, target) in token_lists(schema::lists(&batch, TOKENS)?).zip(targets.iter()) {
            let prompt = list?;
            if let Some(title) = target.and_then(|target| titles.get(target)) {
                from.push(prompt.len() as u32);
                tokens.push(&[prompt.values(), title.as_slice()].concat());
            }
        }
    }
    Prompts::new(tokens, from).map_err(explain)
}

/// The tokens of every item's title, the end of text included.
fn titles_by_item(table: &Table) -> Result<HashMap<String, Vec<u32>>> {
    let mut titles = HashMap::new();
    for batch in table.batches()? {
        let batch = batch?;
        let items = schema::strings(&batch, ITEM_ID)?;
        for (item, list) in items.iter().zip(token_lists(schema::lists(&batch, TOKENS)?)) {
            titles.insert(item.unwrap_or_default().to_string(), list?.values().to_vec());
        }
    }
    Ok(titles)
}

/// One more than the largest token of a table.
pub fn tokens_end(table: &Table) -> Result<usize> {
    let mut end = 0;
    for batch in table.batches()? {
        let batch = batch?;
        let lists = schema::lists(&batch, TOKENS)?;
        let values = lists.values().as_primitive_opt::<UInt32Type>();
        let largest = values.and_then(arrow::compute::max);
        end = end.max(largest.map_or(0, |token| token as usize + 1));
    }
    Ok(end)
}

/// Where the tokens begin that the tokenizer does not have, as the table of titles says.
pub fn first_new_token(titles: &Table) -> Result<Option<usize>> {
    for batch in titles.batches()? {
        let batch = batch?;
        if batch.num_rows() > 0 && batch.schema().field_with_name(FIRST_NEW_TOKEN).is_ok() {
            let first = schema::numbers::<UInt32Type>(&batch, FIRST_NEW_TOKEN)?;
            return Ok(Some(first.value(0) as usize));
        }
    }
    Ok(None)
}

/// The first soft token of a catalogue's titles, and the vectors that soft tokens stand for, of unit length. Items without
/// a title have a number but no token that anything refers to: their vectors are zeros.
pub fn soft_tokens(titles: &Table, vectors: &Table) -> Result<(usize, Vectors)> {
    let (mut token_of, mut first, mut end) = (HashMap::new(), usize::MAX, 0);
    for batch in titles.batches()? {
        let batch = batch?;
        let items = schema::strings(&batch, ITEM_ID)?;
        for (item, token) in items
            .iter()
            .zip(schema::numbers::<UInt32Type>(&batch, SOFT_TOKEN)?.values())
        {
            let token = *token as usize;
            (first, end) = (first.min(token), end.max(token + 1));
            token_of.insert(item.unwrap_or_default().to_string(), token);
        }
    }
    // Behind new words comes the first item. Without new words it is the first new token, titled or not.
    match first_new_token(titles)? {
        Some(new) if tokens_end(titles)? <= new => first = new,
        _ => {}
    }
    let (mut values, mut dim) = (Vec::new(), 0);
    let mut without = token_of.clone();
    for batch in vectors.batches()? {
        let batch = batch?;
        let (rows, width) = schema::embedding_values(&batch)?;
        if dim == 0 {
            dim = width;
            values = vec![0.0; (end - first.min(end)) * dim];
        }
        let items = schema::strings(&batch, ITEM_ID)?;
        for (item, row) in items.iter().flatten().zip(rows.chunks_exact(width.max(1))) {
            if let Some(token) = token_of.get(item) {
                without.remove(item);
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
                let to = &mut values[(token - first) * dim..][..dim];
                to.iter_mut().zip(row).for_each(|(to, x)| *to = x / norm);
            }
        }
    }
    if let Some(item) = without.keys().min() {
        return Err(
            Error::data("no-vector", format!("item \"{item}\" has a soft token, but no vector"))
                .detail(format!("{} of {} items have none", without.len(), token_of.len()))
                .hint("connect embeddings of the whole catalogue, such as those of train_sasrec"),
        );
    }
    Ok((first, Vectors::new(values, dim).map_err(explain)?))
}

fn token_lists(lists: &arrow::array::ListArray) -> impl Iterator<Item = Result<UInt32Array>> + '_ {
    (0..lists.len()).map(|row| {
        let tokens = lists.value(row);
        tokens.as_primitive_opt::<UInt32Type>().cloned().ok_or_else(|| {
            let field = Field::new(TOKENS, lists.data_type().clone(), true);
            Error::data("wrong-type", format!("tokens are not 32-bit numbers: {field}"))
        })
    })
}

/// Checks that a checkpoint of a language model is there; its architecture, and its files for the key.
pub fn bind_checkpoint(binding: &Binding, field: &str, name: &str) -> (Option<LlmConfig>, Vec<PathBuf>) {
    let path = binding.path(name);
    let Some(folder) = find(&path, name) else {
        binding.problem(field, missing(name, &path).hint(DOWNLOAD));
        return (None, Vec::new());
    };
    let mut files = weight_files(&folder);
    if files.is_empty() {
        let message = format!("the checkpoint \"{}\" has no *.safetensors", folder.display());
        let error = Error::user("bad-checkpoint", message).hint("convert it with save_pretrained of transformers");
        binding.problem(field, error);
    }
    files.push(folder.join("config.json"));
    match LlmConfig::load(&folder) {
        Ok(config) => (Some(config), files),
        Err(error) => {
            binding.problem(field, Error::user("bad-checkpoint", error.to_string()));
            (None, files)
        }
    }
}

const DOWNLOAD: &str = "download it (\"sluice fetch NAME\"), or give a folder below the data root";

/// The folder of a checkpoint below the data root (at `path`), or by name in the hub's cache.
fn checkpoint(path: &Path, name: &str) -> Result<PathBuf> {
    find(path, name).ok_or_else(|| missing(name, path).hint(DOWNLOAD))
}

/// Reads a checkpoint below the data root (at `path`), or by name out of the hub's cache.
pub fn load_checkpoint(path: &Path, name: &str) -> Result<Llm> {
    Llm::load(&checkpoint(path, name)?).map_err(bad)
}

/// The same to read its weights only, where they are mapped.
pub fn open_checkpoint(path: &Path, name: &str) -> Result<(LlmConfig, Frozen)> {
    Llm::open(&checkpoint(path, name)?).map_err(bad)
}

/// The same to generate with.
pub fn read_checkpoint(path: &Path, name: &str) -> Result<FrozenLlm> {
    FrozenLlm::open(&checkpoint(path, name)?).map_err(bad)
}

/// [`load`] of what a training starts from: a checkpoint without further tokens stays mapped.
pub fn open(folder: &Path, base: impl FnOnce(&str) -> Result<Llm>) -> Result<(LlmConfig, Frozen)> {
    if !lora::is_adapter(folder) && !Added::is_in(folder) {
        return Llm::open(folder).map_err(bad);
    }
    let model = load(folder, base)?;
    if !model.read_only().is_empty() {
        let message = "the base reads items as soft tokens; what it learnt of them cannot be carried on";
        let error = Error::user("soft-tokens", message);
        return Err(error.hint("start from a model that was trained without \"vectors\""));
    }
    Ok((model.config().clone(), model.into_weights().into()))
}

/// Reads the folder of a language model: a checkpoint, or an adapter, which is merged into its base. `base` finds the
/// base by the name that the adapter has for it; another one than the adapter was trained on is refused, if the adapter
/// says what that was.
pub fn load(folder: &Path, base: impl FnOnce(&str) -> Result<Llm>) -> Result<Llm> {
    if !lora::is_adapter(folder) {
        return load_whole(folder);
    }
    let name = lora::base_name(folder).map_err(explain)?;
    let mut model = base(&name)?;
    let (lora, adapters) = adapter(folder, &name, model.config(), || model.weights().digest())?;
    lora.merge(&adapters, model.weights_mut()).map_err(explain)?;
    Added::merge(folder, &mut model).map_err(explain)?;
    Ok(model)
}

/// The same to generate with: nothing is merged, and a checkpoint stays mapped, in the numbers it has.
pub fn read(folder: &Path, base: impl FnOnce(&str) -> Result<FrozenLlm>) -> Result<FrozenLlm> {
    if !lora::is_adapter(folder) {
        return match Added::is_in(folder) {
            false => FrozenLlm::open(folder).map_err(bad),
            // An adapter on it knows the digest of tables with these words. It was trained whole: all of it is in f32.
            true => load_whole(folder).map(FrozenLlm::from),
        };
    }
    let name = lora::base_name(folder).map_err(explain)?;
    let mut model = base(&name)?;
    let (lora, adapters) = adapter(folder, &name, model.config(), || model.weights().digest())?;
    model.adapt(lora, adapters).map_err(explain)?;
    model.add_tokens(folder).map_err(explain)?;
    Ok(model)
}

/// Reads a folder that is no adapter.
fn load_whole(folder: &Path) -> Result<Llm> {
    let mut model = Llm::load(folder).map_err(bad)?;
    Added::merge(folder, &mut model).map_err(explain)?;
    Ok(model)
}

/// Reads an adapter for a base, which it calls `name`; `digest` is that of its weights.
fn adapter(folder: &Path, name: &str, config: &LlmConfig, digest: impl FnOnce() -> String) -> Result<(Lora, Weights)> {
    let (lora, adapters, _) = Lora::load(folder, config).map_err(|error| {
        let told = explain(error).detail("the adapter is for another model than the base it was given");
        told.hint("\"base\" names the model it was trained on")
    })?;
    if let Some(wanted) = lora::base_digest(folder).map_err(explain)?
        && wanted != digest()
    {
        let own = match name {
            "" => "the model of another stage".to_string(),
            name => format!("\"{name}\""),
        };
        let message = format!("the adapter was trained on {own}; this base has other weights");
        let hint = "give it the base that it was trained on; if that was made anew, train the adapter again";
        return Err(Error::data("wrong-base", message).hint(hint));
    }
    Ok((lora, adapters))
}

/// What is wrong with a checkpoint.
fn bad(error: EncoderError) -> Error {
    Error::data("bad-checkpoint", error.to_string())
}

/// The shape of the port of a language model.
pub fn shape() -> Shape {
    Shape::Folder(LAYOUT.into())
}

/// Columns of evaluation prompts.
pub fn require_evaluation(binding: &Binding, input: &str) {
    require_tokens(binding, input, &[(USER_ID, DataType::Utf8), (TARGET, DataType::Utf8)]);
}
