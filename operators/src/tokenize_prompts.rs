//! Turns sequences into prompts for a language model: titles of the history, then the title of the next item.

mod template;
pub mod titles;
mod vocabulary;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, RecordBatch, StringArray, UInt32Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{CHUNK_ROWS, Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::models::{self, SemanticIds};
use crate::schema::{self, ITEM_ID, TARGET, TITLE, USER_ID};
use crate::sequences::{self, Sequences};
use crate::tokenize_sequences::Samples;
use crate::train_tokenizer;
use template::Template;
use titles::{New, Titles, Untitled};
use vocabulary::{Files, Vocabulary};

const SEQUENCES: &str = "sequences";
const ITEMS: &str = "items";
const TOKENIZER: &str = "tokenizer";
const SEMANTIC_IDS: &str = "semantic_ids";
/// The port of the catalogue's titles.
const TITLES: &str = "titles";
/// Tokens of a prompt or a title.
pub const TOKENS: &str = "tokens";
/// Where in the tokens of a train prompt the title of its target begins.
pub const LOSS_FROM: &str = "loss_from";
/// Lists of one batch are addressed with 31 bits.
const MOST_TOKENS: u32 = 32_767;
/// Rows between two looks at whether to stop.
const SHARE: usize = 1024;

/// Prompts for a language model that recommends: titles of the history, then the title of the next item.
///
/// # In
/// `sequences`: `user_id`, `sequence`, as `train` of a split has them; with a column `target` they are evaluation rows,
/// as `valid` and `test` are. `items`: `item_id`, `title`, a row for every item. `tokenizer`: the folder of
/// `train_tokenizer`, in place of the field of that name. `semantic_ids`: `item_id`, `semantic_id`; then items are written
/// as their codes, each a token that the tokenizer did not have, and `items` only says what the catalogue is.
///
/// # Out
/// `out`, for train sequences: `user_id`; `tokens`, the prompt, the target's title and the end of text; `loss_from`,
/// where the target's title begins in `tokens` (from 0): the loss counts from there. Samples of a user come in order of
/// the place of their target, then of the start of their history.
///
/// `out`, for evaluation rows: `user_id`; `tokens`, the prompt alone; `target`. Every row is kept.
///
/// `titles`: `item_id`; `title` as it is used; its `tokens` with the end of text; `duplicate_of`, the first item in
/// natural order whose title has the same tokens (the item itself, where it is the first). In natural order of
/// `item_id`. With new tokens `first_new_token`, the same in every row; with `soft_tokens` the `soft_token` of the item.
///
/// A title is read without HTML entities and in one line. A prompt is encoded as one text, a title for `titles` and as
/// a target by itself: a template should not end with a blank, which many tokenizers would join to the word behind it.
/// The notes say how many items have titles, how many share theirs, and what was dropped.
///
/// # Source
/// "LLM-as-RS" of the scaling study: history as titles, oldest first; cross-entropy on the title of the target and the
/// end of text. Its prompt is not published; `template` is the least that says what is asked. Semantic ids as new tokens:
/// its Table 5. A soft token beside each title: its variant with collaborative embeddings.
///
/// # Deviates
/// No token is put before the prompt; special tokens can be spelled out in `template`. Samples are not packed into
/// sequences of one length: that is for whoever trains on them, and the lengths of the lists are all it takes. A train
/// sample that does not fit with a single item is left out and counted; an evaluation row that does not is an error.
/// To the prompt of an evaluation row the target is not known: room is left for the longest title of all.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizePrompts {
    /// The tokenizer, below the data root: a `tokenizer.json`, or a folder with one, or with `vocab.json` and `merges.txt`
    /// and a `tokenizer_config.json` that says `GPT2Tokenizer` or `Qwen2Tokenizer`. Files may be gzipped (`.json.gz`). Empty
    /// with the input `tokenizer`.
    pub tokenizer: String,
    /// The prompt, which ends where the target's title begins; holds `{history}` once.
    pub template: String,
    /// Between two titles of the history.
    pub item_separator: String,
    /// The history is cut to its last items: at most so many.
    pub max_items: u32,
    /// Prompt, target and end of text have at most so many tokens: the oldest items of the history are dropped until
    /// they fit.
    pub max_tokens: u32,
    /// Which samples a train sequence gives.
    pub samples: Samples,
    /// What stands in for a title that is null, blank or without any token: a text with `{item_id}` in it; `skip`, and
    /// the item is as if it were in no sequence and not in the catalogue; `error`, and such an item is an error.
    pub untitled: String,
    /// The token that ends a text. Without it, `eos_token` in `tokenizer_config.json`.
    pub eos: Option<String>,
    /// Tokens of the language model, behind which new tokens are numbered: `vocab_size` of its `config.json`, which may be
    /// more than its tokenizer has. Null for as many as the tokenizer has.
    pub vocabulary: Option<u32>,
    /// Put a token of its own behind every item of the history, for `train_llm` to read as the item's vector.
    pub soft_tokens: bool,
}

impl Default for TokenizePrompts {
    fn default() -> Self {
        TokenizePrompts {
            tokenizer: String::new(),
            template: "Items bought, oldest first:\n{history}\nThe next item:\n".into(),
            item_separator: "\n".into(),
            max_items: 20,
            max_tokens: 1024,
            samples: Samples::Prefixes,
            untitled: "error".into(),
            eos: None,
            vocabulary: None,
            soft_tokens: false,
        }
    }
}

impl Operator for TokenizePrompts {
    const NAME: &'static str = "tokenize_prompts";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[
        Input::required(SEQUENCES, "train sequences, or evaluation rows"),
        Input::required(ITEMS, "items with item_id and title"),
        Input::optional(TOKENIZER, "a tokenizer (train_tokenizer)"),
        Input::optional(SEMANTIC_IDS, "items as codes instead of titles: item_id, semantic_id"),
    ];

    fn bind(&self, binding: &Binding) -> Bound {
        if self.max_items == 0 {
            binding.bad_value("max_items", "\"max_items\" must be at least 1");
        }
        if !(2..=MOST_TOKENS).contains(&self.max_tokens) {
            let message = format!("\"max_tokens\" must be between 2 and {MOST_TOKENS}");
            binding.bad_value("max_tokens", message);
        }
        if let Err(error) = self.parse_template() {
            binding.problem("template", error);
        }
        if let Err(error) = Untitled::parse(&self.untitled) {
            binding.problem("untitled", error);
        }
        sequences::require(binding, SEQUENCES);
        binding.require(ITEMS, &[(ITEM_ID, DataType::Utf8), (TITLE, DataType::Utf8)]);
        binding.require(SEMANTIC_IDS, &[(ITEM_ID, DataType::Utf8)]);
        let coded = binding.has(SEMANTIC_IDS);
        let out = match binding.schema(SEQUENCES) {
            None => Shape::Unknown,
            Some(schema) => {
                if evaluates(schema) {
                    sequences::require_targets(binding, SEQUENCES);
                }
                Shape::table(fields(evaluates(schema)))
            }
        };
        Bound::whole()
            .out(out)
            .output(TITLES, Shape::table(titles::fields(coded, self.soft_tokens)))
            .files(self.bind_tokenizer(binding))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let path = match inputs.has(TOKENIZER) {
            true => inputs.folder(TOKENIZER)?.to_path_buf(),
            false => context.path(&self.tokenizer),
        };
        let vocabulary = Files::find(&path)?.load(self.eos.as_deref())?;
        let untitled = Untitled::parse(&self.untitled)?;
        let first_new = match self.vocabulary {
            Some(tokens) if tokens < vocabulary.tokens() => {
                let message = format!(
                    "\"vocabulary\" is {tokens}, but the tokenizer has {} tokens",
                    vocabulary.tokens()
                );
                return Err(Error::user("bad-value", message).hint("it is vocab_size in config.json of the model"));
            }
            Some(tokens) => tokens,
            None => vocabulary.tokens(),
        };
        let titles = match inputs.has(SEMANTIC_IDS) {
            true => Titles::coded(&SemanticIds::read(inputs.table(SEMANTIC_IDS)?)?, first_new, &vocabulary),
            false => Titles::read(inputs.table(ITEMS)?, &untitled, &vocabulary)?,
        };
        let new = New {
            first: (titles.words > 0 || self.soft_tokens).then_some(first_new),
            first_soft: self.soft_tokens.then_some(first_new + titles.words),
        };
        let (table, sharing) = titles.table(&new)?;
        context.note("new_words", titles.words);
        let share = |items: usize| items as f64 / titles.titles.len().max(1) as f64;
        context.note("items", titles.titles.len());
        context.note("titled", titles.titled);
        context.note("titled_share", share(titles.titled));
        context.note("sharing_title", sharing);
        context.note("sharing_title_share", share(sharing));
        let prompts = Prompts {
            config: self,
            template: self.parse_template()?,
            vocabulary: &vocabulary,
            titles: &titles,
            first_soft: new.first_soft,
        };
        let batch = inputs.batch(SEQUENCES)?;
        let out = prompts.of(context, &batch)?;
        Ok(Tables::new().with(OUT, out).with(TITLES, Table::new(table)))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let samples = outputs.table(OUT)?.rows()?;
        if samples == 0 {
            let message = "no sequence has 2 items whose titles fit, so there are no prompts";
            let hint = "check \"max_tokens\", \"untitled\", and that the split leaves items to train on";
            return Err(Error::data("empty-result", message).hint(hint));
        }
        Ok(Notes::from_iter([("samples".to_string(), samples.into())]))
    }
}

impl TokenizePrompts {
    fn parse_template(&self) -> Result<Template<'_>> {
        Template::parse(&self.template, "history", "the template")
    }

    /// Checks that the tokenizer is there and says what ends a text; its files.
    fn bind_tokenizer(&self, binding: &Binding) -> Vec<std::path::PathBuf> {
        models::require_model(binding, TOKENIZER, train_tokenizer::LAYOUT, "train_tokenizer");
        match (binding.has(TOKENIZER), self.tokenizer.is_empty()) {
            (true, true) => return Vec::new(),
            (true, false) => {
                let message = "there is an input \"tokenizer\" already: leave one of them out";
                binding.bad_value("tokenizer", message);
                return Vec::new();
            }
            (false, _) => {}
        }
        let path = binding.existing("tokenizer", &self.tokenizer);
        if self.tokenizer.is_empty() || !path.exists() {
            return Vec::new();
        }
        match Files::find(&path) {
            Ok(files) => {
                if let Err(error) = files.eos(self.eos.as_deref()) {
                    binding.problem("eos", error);
                }
                files.paths()
            }
            Err(error) => {
                binding.problem("tokenizer", error);
                Vec::new()
            }
        }
    }
}

/// Whether rows of this schema are to be evaluated.
fn evaluates(schema: &SchemaRef) -> bool {
    schema.field_with_name(TARGET).is_ok()
}

fn fields(evaluation: bool) -> Vec<Field> {
    let last = match evaluation {
        true => Field::new(TARGET, DataType::Utf8, false),
        false => Field::new(LOSS_FROM, DataType::UInt32, false),
    };
    vec![
        Field::new(USER_ID, DataType::Utf8, false),
        Field::new(TOKENS, schema::list_of(DataType::UInt32), false),
        last,
    ]
}

/// A list column of tokens from the lengths of the lists and all tokens.
fn token_lists(lengths: impl IntoIterator<Item = usize>, tokens: Vec<u32>) -> Result<ListArray> {
    if i32::try_from(tokens.len()).is_err() {
        return Err(Error::data("too-large", "the titles have more than 2^31 tokens"));
    }
    let item = Arc::new(Field::new_list_field(DataType::UInt32, false));
    let offsets = OffsetBuffer::from_lengths(lengths);
    Ok(ListArray::try_new(
        item,
        offsets,
        Arc::new(UInt32Array::from(tokens)),
        None,
    )?)
}

/// Makes prompts out of histories.
struct Prompts<'a> {
    config: &'a TokenizePrompts,
    template: Template<'a>,
    vocabulary: &'a Vocabulary,
    titles: &'a Titles,
    /// The soft token of the first item.
    first_soft: Option<u32>,
}

/// What became of a history.
enum Fitted {
    /// The prompt, and how many items were dropped for its length.
    Prompt(Vec<u32>, usize),
    /// Even the last item alone makes so many tokens.
    TooLong(usize),
}

/// The samples of one row.
#[derive(Default)]
struct Made {
    samples: Vec<Sample>,
    dropped: u64,
    left_out: u64,
}

struct Sample {
    tokens: Vec<u32>,
    /// Tokens of the prompt.
    prompt: u32,
}

impl Prompts<'_> {
    /// The prompts of all rows, in their order.
    fn of(&self, context: &Context, batch: &RecordBatch) -> Result<Table> {
        let sequences = Sequences::read(batch)?;
        let items = self.titles.catalogue.encode(&sequences.items, "item")?;
        let targets = match evaluates(&batch.schema()) {
            true => Some(schema::strings(batch, TARGET)?),
            false => None,
        };
        if let Some(targets) = targets {
            self.titles.catalogue.encode(targets, "target")?;
        }
        let mut writer = Writer::new(sequences.users, targets);
        let (mut skipped, mut dropped, mut left_out) = (0, 0, 0);
        for start in (0..sequences.len()).step_by(SHARE) {
            context.check_cancelled()?;
            let rows = start..sequences.len().min(start + SHARE);
            let made: Vec<(usize, Result<Made>)> = rows
                .clone()
                .into_par_iter()
                .map(|row| {
                    let all = &items[sequences.range(row)];
                    let titled = |item: &u32| self.titles.get(*item).is_some();
                    let history: Vec<u32> = all.iter().copied().filter(titled).collect();
                    let made = match targets {
                        None => self.train(&history),
                        Some(_) => self.evaluate(sequences.users.value(row), &history),
                    };
                    (all.len() - history.len(), made)
                })
                .collect();
            for (row, (without, made)) in rows.clone().zip(made) {
                let made = made?;
                skipped += without as u64;
                dropped += made.dropped;
                left_out += made.left_out;
                for sample in made.samples {
                    writer.push(row, sample)?;
                }
            }
            context.progress(rows.end as u64, Some(sequences.len() as u64), "sequences", &[]);
        }
        context.note("tokens", writer.tokens_in_all);
        context.note(
            "mean_tokens",
            writer.tokens_in_all as f64 / writer.samples.max(1) as f64,
        );
        context.note("longest", writer.longest);
        context.note("untitled_skipped", skipped);
        context.note("items_dropped", dropped);
        context.note("samples_left_out", left_out);
        writer.finish()
    }

    /// The samples of a train sequence.
    fn train(&self, items: &[u32]) -> Result<Made> {
        let mut made = Made::default();
        for target in 1..items.len() {
            let title = self.titles.get(items[target]).map_or(&[][..], |title| &title.tokens);
            for start in self.config.samples.starts(target, items.len()) {
                let room = (self.config.max_tokens as usize).saturating_sub(title.len());
                match self.fit(&items[start..target], room)? {
                    Fitted::TooLong(_) => made.left_out += 1,
                    Fitted::Prompt(mut tokens, dropped) => {
                        let prompt = tokens.len() as u32;
                        tokens.extend_from_slice(title);
                        made.dropped += dropped as u64;
                        made.samples.push(Sample { tokens, prompt });
                    }
                }
            }
        }
        Ok(made)
    }

    /// The prompt of an evaluation row.
    fn evaluate(&self, user: &str, history: &[u32]) -> Result<Made> {
        let most = self.config.max_tokens as usize;
        let longest = self.titles.longest();
        match self.fit(history, most.saturating_sub(longest))? {
            Fitted::Prompt(tokens, dropped) => Ok(Made {
                samples: vec![Sample {
                    prompt: tokens.len() as u32,
                    tokens,
                }],
                dropped: dropped as u64,
                left_out: 0,
            }),
            Fitted::TooLong(tokens) => {
                let what = match history.last() {
                    Some(item) => format!("with item \"{}\" alone", self.titles.catalogue.id(*item)),
                    None => "without any item".to_string(),
                };
                let message = format!("the prompt of user \"{user}\" {what} does not fit into {most} tokens");
                Err(Error::data("prompt-too-long", message)
                    .detail(format!("it has {tokens}, and the longest title {longest}"))
                    .hint(format!("raise \"max_tokens\" to at least {}", tokens + longest)))
            }
        }
    }

    /// The prompt of the last items that make at most `room` tokens: with one more item it would be too long.
    fn fit(&self, history: &[u32], room: usize) -> Result<Fitted> {
        let cut = history.len().saturating_sub(self.config.max_items as usize);
        let history = &history[cut..];
        let mut prompt = self.encode(history)?;
        if prompt.len() <= room {
            return Ok(Fitted::Prompt(prompt, 0));
        }
        if history.len() > 1 {
            prompt = self.encode(&history[history.len() - 1..])?;
        }
        if prompt.len() > room {
            return Ok(Fitted::TooLong(prompt.len()));
        }
        // Without the first `short` items it is too long, without the first `fits` it is not.
        let (mut short, mut fits) = (0, history.len() - 1);
        while fits - short > 1 {
            let middle = (short + fits) / 2;
            let tried = self.encode(&history[middle..])?;
            match tried.len() <= room {
                true => (prompt, fits) = (tried, middle),
                false => short = middle,
            }
        }
        Ok(Fitted::Prompt(prompt, fits))
    }

    fn encode(&self, history: &[u32]) -> Result<Vec<u32>> {
        let (before, after) = self.template.parts();
        let (mut tokens, mut text) = (Vec::new(), before.to_string());
        let titled = history.iter().filter_map(|item| Some((*item, self.titles.get(*item)?)));
        for (place, (item, title)) in titled.enumerate() {
            if place > 0 {
                text.push_str(&self.config.item_separator);
            }
            // Text between two tokens of one's own is encoded as one.
            let own = match self.titles.words {
                0 => &[][..],
                _ => &title.tokens[..title.tokens.len() - 1],
            };
            if self.titles.words == 0 {
                text.push_str(&title.text);
            }
            let soft = self.first_soft.map(|first| first + item);
            if !own.is_empty() || soft.is_some() {
                tokens.extend(self.vocabulary.encode(&std::mem::take(&mut text))?);
                tokens.extend(own.iter().copied().chain(soft));
            }
        }
        text.push_str(after);
        tokens.extend(self.vocabulary.encode(&text)?);
        Ok(tokens)
    }
}

/// Collects samples into batches of at most [`CHUNK_ROWS`] rows.
struct Writer<'a> {
    users: &'a StringArray,
    targets: Option<&'a StringArray>,
    schema: SchemaRef,
    rows: Vec<usize>,
    lengths: Vec<usize>,
    prompts: Vec<u32>,
    tokens: Vec<u32>,
    batches: Vec<RecordBatch>,
    samples: u64,
    tokens_in_all: u64,
    longest: usize,
}

impl<'a> Writer<'a> {
    fn new(users: &'a StringArray, targets: Option<&'a StringArray>) -> Self {
        Writer {
            users,
            targets,
            schema: Arc::new(Schema::new(fields(targets.is_some()))),
            rows: Vec::new(),
            lengths: Vec::new(),
            prompts: Vec::new(),
            tokens: Vec::new(),
            batches: Vec::new(),
            samples: 0,
            tokens_in_all: 0,
            longest: 0,
        }
    }

    fn push(&mut self, row: usize, sample: Sample) -> Result<()> {
        self.samples += 1;
        self.tokens_in_all += sample.tokens.len() as u64;
        self.longest = self.longest.max(sample.tokens.len());
        self.rows.push(row);
        self.lengths.push(sample.tokens.len());
        self.prompts.push(sample.prompt);
        self.tokens.extend_from_slice(&sample.tokens);
        match self.rows.len() {
            CHUNK_ROWS => self.flush(),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let strings = |of: &StringArray| StringArray::from_iter_values(rows.iter().map(|row| of.value(*row)));
        let prompts = UInt32Array::from(std::mem::take(&mut self.prompts));
        let last: ArrayRef = match self.targets {
            Some(targets) => Arc::new(strings(targets)),
            None => Arc::new(prompts),
        };
        let tokens = token_lists(self.lengths.drain(..), std::mem::take(&mut self.tokens))?;
        self.batches.push(RecordBatch::try_new(
            self.schema.clone(),
            vec![Arc::new(strings(self.users)), Arc::new(tokens), last],
        )?);
        Ok(())
    }

    fn finish(mut self) -> Result<Table> {
        if !self.rows.is_empty() {
            self.flush()?;
        }
        Ok(Table::Batches(self.schema, self.batches))
    }
}

#[cfg(test)]
mod tests;
