//! Recommends with a language model: beam search over the titles of the catalogue.

mod catalogue;
mod generator;
mod lists;

use std::collections::BTreeMap;
use std::time::Instant;

use arrow::array::AsArray;
use arrow::datatypes::{DataType, UInt32Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::llm::{Normalisation as GpuNormalisation, SearchOptions, TitleTrie};

use crate::language_models::{self, LAYOUT};
use crate::merge_adapter::{self, bind_base};
use crate::models::{self, explain};
use crate::schema::{self, ITEM_ID, TARGET, TITLE, USER_ID};
use crate::tokenize_prompts::TOKENS;
use crate::training::{Precision, check_precision};
use catalogue::Titled;
use generator::Generator;
use lists::Lists;

const MODEL: &str = "model";
const BASE: &str = "base";
const PROMPTS: &str = "prompts";
const TITLES: &str = "titles";
const BEAMS: &str = "beams";
/// Lengths of lists of titles whose hits are noted.
const NOTED: [u32; 4] = [1, 5, 10, 20];

/// Recommends with a language model, by beam search constrained to the titles of the catalogue.
///
/// # In
/// `model`: the folder of `train_llm`, a whole model or an adapter; without it, `base` as it is. `base`: what the adapter
/// was trained on, where another stage made it. `prompts`: evaluation
/// rows of `tokenize_prompts`; the target is looked at for the notes alone. `titles`: its port of that name, the
/// catalogue.
///
/// # Out
/// `out`: ranked items, `user_id, rank, item_id, score` (sum of the log-probabilities of the title's tokens, the end of
/// text included), `better, tied` (items with a higher or the same score), `beam` (rank of the title). Items that share
/// a title are tied and all listed. `beams`: `user_id, rank, title, tokens, score, item_ids`, a row for every title of a
/// list.
///
/// The notes say how often the title of the target was among the first 1, 5, 10 and 20 titles (`title_recall@k`; metrics
/// of items are those of `score_ranking`), which share of all titles was ever listed (`title_coverage`), and what it
/// took: `users_per_second`, `tokens_per_second` (of prompts and of what was added to them), `seconds_per_user`,
/// `device`, and `weights_bytes`, the memory of the weights there.
///
/// # Source
/// "LLM-as-RS" of the scaling study (arXiv 2509.25522): beam search constrained by a trie over all titles; sums of
/// log-probabilities without length normalisation. What a beam keeps and when it ends is as in `generate` of
/// `transformers` with `prefix_allowed_tokens_fn` and `early_stopping=False`: the same titles come out.
///
/// # Deviates
/// `search: exact` scores every title: the reference that a beam approximates. Everything is computed in f32, whatever the
/// checkpoint has, unless `precision` says otherwise; on the CPU weights stay in the numbers of the checkpoint. An adapter
/// stays beside them. The end of text is the token that ends the titles; that of the model's config is not looked at.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateLlm {
    /// The model that an adapter was trained on, or that generates if there is no input `model`: a folder with
    /// `config.json` and `model.safetensors` (or shards with an index) below the data root; or the name of a model on the
    /// Hugging Face hub, if it was downloaded into the hub's cache. Null for what the adapter says.
    pub base: Option<String>,
    /// Keep the best prefixes, or all of them.
    pub search: Search,
    /// Prefixes kept per user, and titles that come out at most; `exact` keeps all.
    pub width: u32,
    /// Items listed per user at most (those tied with the last one are listed too); null for all that were found.
    pub k: Option<u32>,
    /// What the probabilities of a token are normalised over.
    pub normalisation: Normalisation,
    /// Scores are divided by the number of tokens to this power; 0 leaves the sum.
    pub length_penalty: f64,
    /// What products are computed in, and weights, keys and values kept in: `bf16` wants a GPU. Logits are f32.
    pub precision: Precision,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// Which prefixes of titles are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Search {
    /// The best `width` of every length.
    Beam,
    /// All: every title of the catalogue gets its exact score.
    Exact,
}

/// What the probabilities of a token are normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// The whole vocabulary, as in training.
    Vocabulary,
    /// The tokens that some title has after the prefix. Where there is one, it is certain, and the model need not be
    /// asked.
    Children,
}

impl Default for GenerateLlm {
    fn default() -> Self {
        GenerateLlm {
            base: None,
            search: Search::Beam,
            width: 20,
            k: None,
            normalisation: Normalisation::Vocabulary,
            length_penalty: 0.0,
            precision: Precision::F32,
            device: "auto".to_string(),
        }
    }
}

impl Operator for GenerateLlm {
    const NAME: &'static str = "generate_llm";
    const VERSION: u32 = 3;
    const INPUTS: &'static [Input] = &[
        Input::optional(MODEL, "a trained language model, or an adapter of one (train_llm)"),
        Input::optional(BASE, "the language model that an adapter was trained on (train_llm)"),
        Input::required(
            PROMPTS,
            "evaluation prompts: user_id, tokens, target (tokenize_prompts)",
        ),
        Input::required(
            TITLES,
            "the catalogue: item_id, title, tokens (tokenize_prompts.titles)",
        ),
    ];

    fn determinism(&self) -> Determinism {
        let tolerance = match self.precision {
            Precision::F32 => models::FORWARD_TOLERANCE,
            Precision::Bf16 => models::ROUNDED_TOLERANCE,
        };
        models::determinism(&self.device, tolerance)
    }

    fn bind(&self, binding: &Binding) -> Bound {
        models::require_model(binding, MODEL, LAYOUT, "train_llm");
        models::check_device(binding, &self.device);
        language_models::require_evaluation(binding, PROMPTS);
        language_models::require_tokens(binding, TITLES, &[(ITEM_ID, DataType::Utf8), (TITLE, DataType::Utf8)]);
        if self.width == 0 {
            binding.bad_value("width", "a beam has at least one title");
        }
        if self.k == Some(0) {
            binding.bad_value("k", "k must be positive");
        }
        if self.search == Search::Exact && self.k.is_none() {
            let message = "every title is scored for every user: say by \"k\" how many items are listed";
            binding.bad_value("search", message);
        }
        if !self.length_penalty.is_finite() {
            binding.bad_value("length_penalty", "\"length_penalty\" must be a number");
        }
        check_precision(binding, self.precision, &self.device);
        if !binding.has(MODEL) && !binding.has(BASE) && self.base.is_none() {
            let error = Error::user("missing-key", "there is neither an input \"model\" nor a \"base\"");
            let hint = "connect \"model\" to a stage of train_llm, or name a checkpoint by \"base\"";
            binding.problem("base", error.hint(hint));
        }
        let files = bind_base(binding, self.base.as_deref());
        Bound::whole()
            .out(Shape::table(schema::ranked()))
            .output(BEAMS, Shape::table(lists::fields()))
            .files(files)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let titled = Titled::read(inputs.table(TITLES)?)?;
        let prompts = Prompts::read(inputs.table(PROMPTS)?)?;
        let port = if inputs.has(MODEL) { MODEL } else { BASE };
        let model = merge_adapter::read(context, &inputs, port, self.base.as_deref())?;
        let device = models::device(context, &self.device)?;
        let generator = Generator::new(model, self.normalisation.into(), self.precision.into(), &device)?;
        context.note("weights_bytes", generator.bytes());
        check_tokens(&generator, &titled, &prompts)?;
        let options = SearchOptions {
            width: match self.search {
                Search::Beam => self.width as usize,
                Search::Exact => titled.trie.len(),
            },
            length_penalty: self.length_penalty,
        };
        let mut lists = Lists::new(&titled, self.k);
        let mut hits = [0u64; NOTED.len()];
        let (start, total) = (Instant::now(), prompts.users.len());
        let mut tokens = 0;
        for first in (0..total).step_by(generator.share()) {
            context.check_cancelled()?;
            let rows = first..total.min(first + generator.share());
            let share: Vec<&[u32]> = prompts.tokens[rows.clone()].iter().map(Vec::as_slice).collect();
            let generated = generator.generate(&titled.trie, &share, &options).map_err(|error| {
                let fails = |prompt: &&[u32]| generator.generate(&titled.trie, &[*prompt], &options).is_err();
                match share.iter().position(fails) {
                    Some(at) => {
                        let detail = format!("after the prompt of user \"{}\"", prompts.users[first + at]);
                        explain(error).detail(detail)
                    }
                    None => explain(error),
                }
            })?;
            tokens += generated.tokens + share.iter().map(|prompt| prompt.len() as u64).sum::<u64>();
            for (row, found) in rows.clone().zip(&generated.lists) {
                let wanted = titled.title_of(&prompts.targets[row]);
                let place = found.iter().position(|found| Some(found.title) == wanted);
                for (hits, k) in hits.iter_mut().zip(NOTED) {
                    *hits += u64::from(place.is_some_and(|place| place < k as usize));
                }
                lists.push(&prompts.users[row], found)?;
            }
            context.progress(rows.end as u64, Some(total as u64), "users", &[]);
        }
        let seconds = start.elapsed().as_secs_f64();
        let share = |part: f64, of: usize| part / of.max(1) as f64;
        for (hits, k) in hits
            .into_iter()
            .zip(NOTED)
            .filter(|(_, k)| *k as usize <= options.width)
        {
            context.note(&format!("title_recall@{k}"), share(hits as f64, total));
        }
        context.note("titles", titled.trie.len());
        context.note("title_coverage", share(lists.titles_listed() as f64, titled.trie.len()));
        context.note("users_per_second", total as f64 / seconds);
        context.note("tokens_per_second", tokens as f64 / seconds);
        context.note("seconds_per_user", share(seconds, total));
        let (out, beams) = lists.tables()?;
        Ok(Tables::new().with(OUT, out).with(BEAMS, beams))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, _outputs: &Tables) -> Result<Notes> {
        let users = rows_in.get(PROMPTS).copied().unwrap_or(0);
        Ok(Notes::from_iter([("users".to_string(), users.into())]))
    }
}

impl From<Normalisation> for GpuNormalisation {
    fn from(normalisation: Normalisation) -> Self {
        match normalisation {
            Normalisation::Vocabulary => GpuNormalisation::Vocabulary,
            Normalisation::Children => GpuNormalisation::Children,
        }
    }
}

/// Evaluation prompts, a row each.
struct Prompts {
    users: Vec<String>,
    tokens: Vec<Vec<u32>>,
    targets: Vec<String>,
}

impl Prompts {
    fn read(table: &Table) -> Result<Self> {
        let mut prompts = Prompts {
            users: Vec::new(),
            tokens: Vec::new(),
            targets: Vec::new(),
        };
        for batch in table.batches()? {
            let batch = batch?;
            let (users, targets) = (schema::strings(&batch, USER_ID)?, schema::strings(&batch, TARGET)?);
            let lists = schema::lists(&batch, TOKENS)?;
            for row in 0..batch.num_rows() {
                let tokens = lists.value(row).as_primitive::<UInt32Type>().values().to_vec();
                if tokens.is_empty() {
                    let message = format!("the prompt of user \"{}\" has no token", users.value(row));
                    let hint = "put words into \"template\" of tokenize_prompts";
                    return Err(Error::data("empty-prompt", message).hint(hint));
                }
                prompts.users.push(users.value(row).to_string());
                prompts.tokens.push(tokens);
                prompts.targets.push(targets.value(row).to_string());
            }
        }
        Ok(prompts)
    }
}

/// Checks that the model knows all tokens and has room for every prompt with every title behind it.
fn check_tokens(generator: &Generator, titled: &Titled, prompts: &Prompts) -> Result<()> {
    let config = generator.config();
    let (vocabulary, positions) = (config.vocabulary(), config.max_positions());
    let unknown = |what: String, token: u32| {
        let message = format!("{what} has token {token}, the vocabulary of the model ends at {vocabulary}");
        let hint = "tokenize_prompts wants the model's own tokenizer; a model from scratch needs the port \"titles\" \
                    connected to train_llm, or shape.vocabulary";
        Err(Error::data("other-tokenizer", message).hint(hint))
    };
    let trie: &TitleTrie = &titled.trie;
    let largest = trie.largest_token();
    if largest as usize >= vocabulary {
        let title = (0..trie.len() as u32).find(|title| trie.text(*title).contains(&largest));
        return unknown(format!("the title \"{}\"", titled.name(title.unwrap_or(0))), largest);
    }
    // The end of text is never read.
    let longest = trie.longest() - 1;
    for (user, tokens) in prompts.users.iter().zip(&prompts.tokens) {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= generator.readable()) {
            return unknown(format!("the prompt of user \"{user}\""), *token);
        }
        if tokens.len() + longest > positions {
            let message = format!("the prompt of user \"{user}\" is too long for the model");
            return Err(Error::data("prompt-too-long", message)
                .detail(format!(
                    "it has {} tokens, the longest title {longest}, the model {positions} positions",
                    tokens.len()
                ))
                .hint(format!(
                    "tokenize with \"max_tokens\" of at most {}",
                    positions.saturating_add(1)
                )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
