//! Trains a small tokenizer on the titles of a catalogue, for language models from scratch.

use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, Trainer};

use crate::schema::{self, TITLE};

const INPUT: &str = "input";
/// The layout of the folder.
pub const LAYOUT: &str = "tokenizer";
/// The bytes, each of which is a token.
const BYTES: u32 = 256;

/// Trains a tokenizer on the titles of a catalogue: byte pairs, as GPT-2 merges them.
///
/// # In
/// `input`: items with `title`; titles that are null are passed over.
///
/// # Out
/// `out`: a folder with `tokenizer.json` and `tokenizer_config.json`, which `AutoTokenizer` of `transformers` loads, for
/// the input `tokenizer` of `tokenize_prompts`.
///
/// # Source
/// Sennrich et al. 2016 (arXiv 1508.07909) on bytes, words cut as in GPT-2, by the crate `tokenizers`.
///
/// # Deviates
/// A language model from scratch learns a vector for every token: the 151,669 tokens of Qwen3 would be most of a small
/// model, and most of them would never occur in titles. HTML entities are read as the characters they stand for, as
/// `tokenize_prompts` reads them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainTokenizer {
    /// Tokens in the vocabulary: 256 bytes, the end of text, and merges of them. A small catalogue gives fewer.
    pub vocabulary: u32,
    /// Pairs that occur less often are not merged.
    pub min_frequency: u32,
    /// The token that ends a text.
    pub eos: String,
}

impl Default for TrainTokenizer {
    fn default() -> Self {
        TrainTokenizer {
            vocabulary: 4096,
            min_frequency: 2,
            eos: "<|endoftext|>".into(),
        }
    }
}

impl Operator for TrainTokenizer {
    const NAME: &'static str = "train_tokenizer";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(INPUT, "items with title")];

    fn bind(&self, binding: &Binding) -> Bound {
        binding.require(INPUT, &[(TITLE, DataType::Utf8)]);
        if self.vocabulary <= BYTES {
            let message = format!("the {BYTES} bytes and the end of text take {} tokens", BYTES + 1);
            binding.bad_value("vocabulary", message);
        }
        if self.eos.is_empty() {
            binding.bad_value("eos", "the end of text needs a name");
        }
        Bound::whole().out(Shape::Folder(LAYOUT.into()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let mut titles: Vec<String> = Vec::new();
        for batch in inputs.table(INPUT)?.batches()? {
            let batch = batch?;
            let column = schema::strings(&batch, TITLE)?;
            let plain = |title: &str| html_escape::decode_html_entities(title).into_owned();
            titles.extend(column.iter().flatten().map(plain));
        }
        if titles.iter().all(|title| title.trim().is_empty()) {
            return Err(Error::data("empty-input", "no item has a title to learn from"));
        }
        let mut trainer = BpeTrainer::builder()
            .vocab_size(self.vocabulary as usize)
            .min_frequency(u64::from(self.min_frequency))
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(vec![AddedToken::from(self.eos.clone(), true)])
            .build();
        let words = ByteLevel::new(false, false, true);
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(words));
        tokenizer.with_decoder(Some(words));
        let cut = |text: &str| -> tokenizers::Result<Vec<String>> {
            let mut text = tokenizers::PreTokenizedString::from(text);
            tokenizers::PreTokenizer::pre_tokenize(&words, &mut text)?;
            let splits = text.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
            Ok(splits.into_iter().map(|(word, ..)| word.to_string()).collect())
        };
        trainer.feed(titles.iter(), cut).map_err(failed)?;
        let mut model = BPE::default();
        let special = trainer.train(&mut model).map_err(failed)?;
        tokenizer.with_model(model);
        tokenizer.add_special_tokens(special).map_err(failed)?;
        context.note("vocabulary", tokenizer.get_vocab_size(true) as u64);
        let folder = context.folder(OUT)?;
        let write = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(|error| Error::io("write", &path, &error))
        };
        write("tokenizer.json", tokenizer.to_string(true).map_err(failed)? + "\n")?;
        let about = serde_json::json!({"eos_token": self.eos, "tokenizer_class": "PreTrainedTokenizerFast"});
        write("tokenizer_config.json", format!("{about:#}\n"))?;
        Ok(Tables::new().with(OUT, Table::Folder(folder)))
    }
}

fn failed(error: tokenizers::Error) -> Error {
    Error::internal(format!("the tokenizer cannot be trained: {error}"))
}

#[cfg(test)]
mod tests {
    use sluice_engine::harness::Harness;
    use sluice_engine::text;

    use super::*;

    fn train(operator: &TrainTokenizer, titles: &str) -> Result<(String, Tokenizer)> {
        let attempt = tempfile::tempdir().unwrap();
        let harness = Harness {
            attempt: attempt.path().to_path_buf(),
            ..Harness::default()
        };
        let table = Table::new(text::parse(titles).unwrap());
        let out = harness.run(operator, &[(INPUT, table)])?;
        let path = out.folder(OUT)?.join("tokenizer.json");
        let text = std::fs::read_to_string(&path).unwrap();
        Ok((text, Tokenizer::from_file(path).unwrap()))
    }

    const TITLES: &str = "item_id | title\n a | red shoe\n b | red shoe lace\n c | null\n d | Caf\u{e9} &amp; shoe";

    #[test]
    fn what_repeats_is_merged_and_every_text_is_a_text() {
        let (text, tokenizer) = train(&TrainTokenizer::default(), TITLES).unwrap();
        let encode = |text: &str| tokenizer.encode(text, false).unwrap().get_tokens().to_vec();
        assert_eq!(encode("red shoe"), ["red", "\u{120}shoe"]);
        // The entity was read as a character.
        assert_eq!(encode(" & "), ["\u{120}", "&", "\u{120}"]);
        for text in ["red shoe", "\u{65e5}\u{672c} caf\u{e9}", "<|endoftext|>"] {
            let ids = tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
        }
        assert!(tokenizer.token_to_id("<|endoftext|>").is_some());
        assert_eq!(train(&TrainTokenizer::default(), TITLES).unwrap().0, text);
    }

    #[test]
    fn what_cannot_be_learnt_is_said() {
        let few = TrainTokenizer {
            vocabulary: 256,
            ..TrainTokenizer::default()
        };
        let error = train(&few, TITLES).unwrap_err().to_string();
        assert!(
            error.contains("the 256 bytes and the end of text take 257 tokens"),
            "{error}"
        );
        let error = train(&TrainTokenizer::default(), "item_id | title\n a | null")
            .unwrap_err()
            .to_string();
        assert!(error.contains("no item has a title"), "{error}");
    }
}
