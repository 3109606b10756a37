//! The tokenizer of a language model: its files in Hugging Face layout, and the token that ends a text.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sluice_engine::{Error, Result};
use tokenizers::Tokenizer;

/// How Qwen2 and Qwen3 cut a text before byte pairs are merged (`tokenizer.json` of their checkpoints).
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The files of a tokenizer. Each may be gzipped, and then has the ending `.gz` too.
pub struct Files {
    model: Model,
    /// `tokenizer_config.json`, if it is there.
    config: Option<PathBuf>,
}

enum Model {
    /// `tokenizer.json`: all there is to know.
    Whole(PathBuf),
    /// `vocab.json` and `merges.txt`: byte-pair encoding as GPT-2 and Qwen save it.
    Pairs { vocab: PathBuf, merges: PathBuf },
}

/// A tokenizer and its end-of-text token.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// Ends every title.
    pub eos: u32,
}

impl Files {
    /// The tokenizer in a folder, or of a `tokenizer.json` with its neighbours.
    pub fn find(path: &Path) -> Result<Self> {
        let folder = match path.is_file() {
            true => path.parent().unwrap_or(Path::new("")),
            false => path,
        };
        let named = |name: &str| {
            let plain = folder.join(name);
            let zipped = folder.join(format!("{name}.gz"));
            [plain, zipped].into_iter().find(|path| path.is_file())
        };
        let whole = Some(path.to_path_buf())
            .filter(|path| path.is_file())
            .or_else(|| named("tokenizer.json"));
        let model = match (whole, named("vocab.json"), named("merges.txt")) {
            (Some(path), ..) => Model::Whole(path),
            (None, Some(vocab), Some(merges)) => Model::Pairs { vocab, merges },
            _ => {
                let message = format!(
                    "the folder \"{}\" has no tokenizer.json, nor vocab.json with merges.txt",
                    folder.display()
                );
                let hint = "save_pretrained of transformers (AutoTokenizer) writes tokenizer.json";
                return Err(Error::user("no-tokenizer", message).hint(hint));
            }
        };
        let config = named("tokenizer_config.json");
        Ok(Files { model, config })
    }

    /// All files that are read.
    pub fn paths(&self) -> Vec<PathBuf> {
        let mut paths = match &self.model {
            Model::Whole(path) => vec![path.clone()],
            Model::Pairs { vocab, merges } => vec![vocab.clone(), merges.clone()],
        };
        paths.extend(self.config.clone());
        paths
    }

    /// The token that ends a text, as text: the one that is wanted, else `eos_token` of `tokenizer_config.json`.
    pub fn eos(&self, wanted: Option<&str>) -> Result<String> {
        let token = match wanted {
            Some(wanted) => Some(wanted.to_string()),
            None => eos_token(&self.config()?),
        };
        match token {
            Some(token) => Ok(token),
            None => {
                let message = "the tokenizer does not say which token ends a text".to_string();
                Err(with_special_tokens(Error::user("no-eos", message), &self.tokenizer()?))
            }
        }
    }

    /// Reads the tokenizer; texts are encoded as they are: without special tokens around them, not padded, not cut.
    pub fn load(&self, eos: Option<&str>) -> Result<Vocabulary> {
        let name = self.eos(eos)?;
        let mut tokenizer = self.tokenizer()?;
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| bad(&error))?;
        let Some(eos) = tokenizer.token_to_id(&name) else {
            let message = format!("the tokenizer has no token \"{name}\" to end a text with");
            return Err(with_special_tokens(Error::user("unknown-token", message), &tokenizer));
        };
        Ok(Vocabulary { tokenizer, eos })
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        let bytes = match &self.model {
            Model::Whole(path) => read(path)?,
            Model::Pairs { vocab, merges } => byte_pairs(json_file(vocab)?, &text_file(merges)?, &self.config()?)?
                .to_string()
                .into_bytes(),
        };
        Tokenizer::from_bytes(bytes).map_err(|error| bad(&error))
    }

    /// `tokenizer_config.json`, null where there is none.
    fn config(&self) -> Result<Value> {
        self.config.as_deref().map_or(Ok(Value::Null), json_file)
    }
}

impl Vocabulary {
    /// How many tokens there are.
    pub fn tokens(&self) -> u32 {
        self.tokenizer.get_vocab_size(true) as u32
    }

    /// The tokens of a text, without any around them. Special tokens that the text spells out are recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| bad(&error))?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// What `tokenizer.json` would say of byte pairs, for the classes whose words and normalization are known.
fn byte_pairs(vocab: Value, merges: &str, config: &Value) -> Result<Value> {
    let bytes = |words: bool| {
        let space = config["add_prefix_space"].as_bool().unwrap_or(false);
        json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": false, "use_regex": words})
    };
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    let (normalizer, words) = match class.trim_end_matches("Fast") {
        "GPT2Tokenizer" => (Value::Null, bytes(true)),
        "Qwen2Tokenizer" => {
            let split = json!({
                "type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false,
            });
            let words = json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]});
            (json!({"type": "NFC"}), words)
        }
        other => {
            let message = format!("vocab.json and merges.txt do not say all of a tokenizer of class \"{other}\"");
            let hint = "save_pretrained of transformers (AutoTokenizer) writes tokenizer.json, which does";
            return Err(Error::user("bad-tokenizer", message).hint(hint));
        }
    };
    let merges: Vec<&str> = merges
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with("#version"))
        .collect();
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens(config),
        "normalizer": normalizer, "pre_tokenizer": words, "post_processor": null, "decoder": {"type": "ByteLevel",
        "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }))
}

/// The tokens beside the vocabulary, in order of their ids.
fn added_tokens(config: &Value) -> Vec<Value> {
    let mut tokens: Vec<(u64, Value)> = Vec::new();
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        if let (Ok(id), Some(about)) = (id.parse::<u64>(), token.as_object()) {
            let mut about = about.clone();
            about.insert("id".into(), id.into());
            tokens.push((id, about.into()));
        }
    }
    tokens.sort_by_key(|(id, _)| *id);
    tokens.into_iter().map(|(_, token)| token).collect()
}

/// `eos_token`, which is a text or an object with its `content`.
fn eos_token(config: &Value) -> Option<String> {
    let token = &config["eos_token"];
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_string)
}

fn with_special_tokens(error: Error, tokenizer: &Tokenizer) -> Error {
    let mut tokens: Vec<(u32, String)> = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| (id, format!("\"{}\"", token.content)))
        .collect();
    tokens.sort();
    let names: Vec<String> = tokens.into_iter().map(|(_, name)| name).collect();
    let error = match names.is_empty() {
        true => error.detail("it declares no special tokens"),
        false => error.detail(format!("its special tokens: {}", names.join(", "))),
    };
    error.hint("set \"eos\" to the token that the language model ends a text with")
}

/// A file, unpacked if it is gzipped.
fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).map_err(|error| Error::io("read", path, &error))?;
    if !bytes.starts_with(&[0x1F, 0x8B]) {
        return Ok(bytes);
    }
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(bytes.as_slice())
        .read_to_end(&mut plain)
        .map_err(|error| damaged(path, &error))?;
    Ok(plain)
}

fn text_file(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).map_err(|error| damaged(path, &error))
}

fn json_file(path: &Path) -> Result<Value> {
    serde_json::from_slice(&read(path)?).map_err(|error| damaged(path, &error))
}

fn damaged(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::data("damaged-file", format!("\"{}\" is damaged: {error}", path.display())).hint("get the file again")
}

fn bad(error: &dyn std::fmt::Display) -> Error {
    Error::data("bad-tokenizer", format!("the tokenizer does not work: {error}"))
        .hint("save_pretrained of transformers (AutoTokenizer) writes it anew")
}
