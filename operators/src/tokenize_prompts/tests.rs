//! Prompts token by token with a tokenizer of words, the laws of cutting, and titles as transformers encodes them.

use std::collections::HashMap;
use std::io::Write;

use arrow::array::AsArray;
use arrow::datatypes::UInt32Type;
use proptest::prelude::*;
use sluice_engine::harness::Harness;
use sluice_engine::text;

use super::*;
use crate::testdata;

/// A data root with the tokenizer `words`: a token a word, `[SEP]` ends a text.
fn words() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    testdata::tiny_encoder(&root.path().join("words"));
    let config = root.path().join("words/tokenizer_config.json");
    std::fs::write(config, r#"{"eos_token": "[SEP]"}"#).unwrap();
    root
}

/// Every token of a prompt is seen: 15, then titles apart by 10, then 14.
fn config() -> TokenizePrompts {
    TokenizePrompts {
        tokenizer: "words".into(),
        template: "the {history} new".into(),
        item_separator: " of ".into(),
        ..TokenizePrompts::default()
    }
}

fn run_in(root: &std::path::Path, config: &TokenizePrompts, sequences: &str, items: &str) -> Result<Tables> {
    let harness = Harness {
        data_root: root.to_path_buf(),
        ..Harness::default()
    };
    let table = |rows: &str| Table::new(text::parse(rows).unwrap());
    harness.run(config, &[(SEQUENCES, table(sequences)), (ITEMS, table(items))])
}

fn run(config: &TokenizePrompts, sequences: &str, items: &str) -> Result<Tables> {
    run_in(words().path(), config, sequences, items)
}

fn out(config: &TokenizePrompts, sequences: &str) -> String {
    rendered(&run(config, sequences, ITEM_ROWS).unwrap(), OUT)
}

/// A table with its cells one blank apart.
fn rendered(tables: &Tables, port: &str) -> String {
    let table = text::render(&tables.batch(port).unwrap()).unwrap();
    let line = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    table.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn lines(header: &str, rows: &[&str]) -> String {
    [&[header], rows].concat().join("\n")
}

const ITEM_ROWS: &str = "item_id | title\n a | red shoe\n b | Blue  hat\n c | wool &amp; leather";
const TRAIN_ROWS: &str = "user_id sequence:[str]\n u a,b,c\n v b";
const TEST_ROWS: &str = "user_id sequence:[str] target\n u a,b c\n v b c";

#[test]
fn the_history_then_the_title_of_the_target() {
    let (first, last) = (
        "u [15, 4, 8, 14, 6, 9, 3] 4",
        "u [15, 4, 8, 10, 6, 9, 14, 11, 1, 12, 3] 7",
    );
    let window = "u [15, 6, 9, 14, 11, 1, 12, 3] 4";
    for (samples, rows) in [
        (Samples::Prefixes, vec![first, last]),
        (Samples::SlidingWindow, vec![first, last, window]),
        (Samples::Last, vec![last]),
    ] {
        let found = out(&TokenizePrompts { samples, ..config() }, TRAIN_ROWS);
        assert_eq!(found, lines("user_id tokens loss_from", &rows), "{samples:?}");
    }
}

#[test]
fn evaluation_rows_are_prompts_alone() {
    let rows = ["u [15, 4, 8, 10, 6, 9, 14] c", "v [15, 6, 9, 14] c"];
    assert_eq!(out(&config(), TEST_ROWS), lines("user_id tokens target", &rows));
    // Room is left for the longest title, which has 4 tokens, whatever the target is.
    let tight = TokenizePrompts {
        max_tokens: 10,
        ..config()
    };
    assert!(out(&tight, TEST_ROWS).contains("u [15, 6, 9, 14] c\n"));
    let tight = TokenizePrompts {
        max_tokens: 7,
        ..config()
    };
    let error = run(&tight, TEST_ROWS, ITEM_ROWS).unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        (
            "prompt-too-long",
            "the prompt of user \"u\" with item \"b\" alone does not fit into 7 tokens"
        )
    );
    assert_eq!(error.hint.unwrap(), "raise \"max_tokens\" to at least 8");
}

#[test]
fn titles_say_which_items_share_one() {
    let items = "item_id | title\n 10 | Red shoe\n 9 | red&#32;shoe\n 2 | the hat";
    let out = run(&config(), "user_id sequence:[str]\n u 9,2", items).unwrap();
    let rows = [
        "2 the hat [15, 9, 3] 2",
        "9 red shoe [4, 8, 3] 9",
        "10 Red shoe [4, 8, 3] 9",
    ];
    assert_eq!(
        rendered(&out, TITLES),
        lines("item_id title tokens duplicate_of", &rows)
    );
}

#[test]
fn items_without_a_title_are_refused_skipped_or_named() {
    let items = "item_id | title\n a | red shoe\n b | null\n c | &nbsp;\n d | hat";
    let sequences = "user_id sequence:[str]\n u b,a,c,d";
    let with = |untitled: &str| {
        let untitled = untitled.to_string();
        run(&TokenizePrompts { untitled, ..config() }, sequences, items)
    };
    let error = with("error").unwrap_err();
    assert_eq!(error.message, "item \"b\" has no title");
    assert_eq!(error.detail, ["2 of 4 items have none"]);
    let skipped = with("skip").unwrap();
    let rows = ["u [15, 4, 8, 14, 9, 3] 4"];
    assert_eq!(rendered(&skipped, OUT), lines("user_id tokens loss_from", &rows));
    assert_eq!(skipped.batch(TITLES).unwrap().num_rows(), 2);
    let named = with("old {item_id}").unwrap();
    assert_eq!(named.batch(OUT).unwrap().num_rows(), 3);
    let titles = named.batch(TITLES).unwrap();
    assert_eq!(schema::strings(&titles, TITLE).unwrap().value(2), "old c");
    let error = with("old").unwrap_err();
    assert_eq!(error.message, "\"untitled\" does not hold \"{item_id}\"");
    // An evaluation row stays, whatever is skipped.
    let skip = TokenizePrompts {
        untitled: "skip".into(),
        ..config()
    };
    let out = run(&skip, "user_id sequence:[str] target\n u b,c b", items).unwrap();
    assert!(rendered(&out, OUT).contains("u [15, 14] b"));
}

#[test]
fn notes_count_what_was_kept_and_what_was_not() {
    let root = words();
    let harness = Harness {
        data_root: root.path().to_path_buf(),
        ..Harness::default()
    };
    let items = "item_id | title\n a | red shoe\n b | hat\n c | HAT\n d | null\n e | a big old new shirt";
    let tables = Tables::new()
        .with(
            SEQUENCES,
            Table::new(text::parse("user_id sequence:[str]\n u a,b,d,c,e,a").unwrap()),
        )
        .with(ITEMS, Table::new(text::parse(items).unwrap()));
    let config = TokenizePrompts {
        untitled: "skip".into(),
        max_tokens: 9,
        ..config()
    };
    let context = testdata::context(&harness, TokenizePrompts::NAME);
    let outputs = config.run(&context, tables).unwrap();
    // a > b; a b > c; b c > e without b; c e > a cannot be: e alone has 7 tokens, and the title of a 3.
    let rows = [
        "u [15, 4, 8, 14, 9, 3] 4",
        "u [15, 4, 8, 10, 9, 14, 9, 3] 6",
        "u [15, 9, 14, 16, 17, 13, 14, 7, 3] 3",
    ];
    assert_eq!(rendered(&outputs, OUT), lines("user_id tokens loss_from", &rows));
    let notes = context.noted();
    for (name, value) in [
        ("items", 5.0),
        ("titled", 4.0),
        ("titled_share", 0.8),
        ("sharing_title", 2.0),
        ("sharing_title_share", 0.4),
        ("tokens", 23.0),
        ("mean_tokens", 23.0 / 3.0),
        ("longest", 9.0),
        ("untitled_skipped", 1.0),
        ("items_dropped", 2.0),
        ("samples_left_out", 1.0),
    ] {
        assert_eq!(notes[name].as_f64(), Some(value), "{name}");
    }
    let error = config.conclude(&context, &BTreeMap::new(), &empty()).unwrap_err();
    assert_eq!(error.code, "empty-result");
}

fn empty() -> Tables {
    Tables::new().with(OUT, Table::Batches(Arc::new(Schema::new(fields(false))), Vec::new()))
}

#[test]
fn mistakes_are_named_before_anything_runs() {
    let code = |config: TokenizePrompts| run(&config, TRAIN_ROWS, ITEM_ROWS).unwrap_err();
    let named = |change: fn(&mut TokenizePrompts)| {
        let mut config = config();
        change(&mut config);
        code(config)
    };
    assert_eq!(named(|c| c.template = "{items}".into()).code, "unknown-name");
    assert_eq!(named(|c| c.max_tokens = 40_000).code, "bad-value");
    assert_eq!(named(|c| c.max_items = 0).code, "bad-value");
    assert_eq!(named(|c| c.tokenizer = "nowhere".into()).code, "file-not-found");
    assert_eq!(named(|c| c.tokenizer = String::new()).code, "missing-key");
    assert_eq!(named(|c| c.tokenizer = ".".into()).code, "no-tokenizer");
    let error = named(|c| c.eos = Some("</s>".into()));
    assert_eq!(error.message, "the tokenizer has no token \"</s>\" to end a text with");
    let error = run(&config(), "user_id sequence:[str]\n u a,x", ITEM_ROWS).unwrap_err();
    assert_eq!(error.message, "item \"x\" is not in the catalogue");
    let error = run(&config(), TRAIN_ROWS, "item_id | title\n a | hat\n a | shoe").unwrap_err();
    assert_eq!(error.message, "item \"a\" has more than one row");
    let error = run(&config(), TRAIN_ROWS, "item_id\n a").unwrap_err();
    assert_eq!(error.code, "missing-column");
}

/// Byte pairs that know `ab`, with and without a blank before it, in gzipped files.
fn byte_pairs(class: &str, eos: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let special = r#"{"content": "<|end|>", "lstrip": false, "normalized": false, "rstrip": false,
        "single_word": false, "special": true}"#;
    let config = format!(r#"{{"tokenizer_class": "{class}", {eos} "added_tokens_decoder": {{"5": {special}}}}}"#);
    for (name, text) in [
        ("vocab.json.gz", r#"{"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4}"#),
        ("merges.txt.gz", "#version: 0.2\na b\nĠ ab\n"),
        ("tokenizer_config.json.gz", &config),
    ] {
        let file = std::fs::File::create(root.path().join(name)).unwrap();
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        packed.finish().unwrap();
    }
    root
}

#[test]
fn byte_pairs_are_read_from_their_two_files() {
    let plain = TokenizePrompts {
        tokenizer: ".".into(),
        template: "{history} a".into(),
        ..TokenizePrompts::default()
    };
    let run = |root: &tempfile::TempDir| {
        let items = "item_id | title\n 1 | ab\n 2 | ab ab";
        run_in(root.path(), &plain, "user_id sequence:[str]\n u 1,2", items)
    };
    for class in ["GPT2Tokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast"] {
        for eos in [r#""eos_token": "<|end|>","#, r#""eos_token": {"content": "<|end|>"},"#] {
            let out = run(&byte_pairs(class, eos)).unwrap();
            let rows = ["u [2, 3, 0, 2, 4, 5] 3"];
            assert_eq!(rendered(&out, OUT), lines("user_id tokens loss_from", &rows), "{class}");
        }
    }
    let error = run(&byte_pairs("GPT2Tokenizer", "")).unwrap_err();
    assert_eq!(error.message, "the tokenizer does not say which token ends a text");
    assert_eq!(error.detail[0], "its special tokens: \"<|end|>\"");
    let error = run(&byte_pairs("MarianTokenizer", "\"eos_token\": \"<|end|>\",")).unwrap_err();
    assert_eq!(error.code, "bad-tokenizer");
}

/// A title of `words` red, green and so on; titles differ in length, and some are equal.
fn title(words: &[u32]) -> String {
    let all = "red green blue shirt shoe hat";
    let word = |id: &u32| all.split(' ').nth(*id as usize - 4).unwrap();
    words.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// The samples of a sequence, slowly: tokens are put together, and the oldest item goes until they fit.
fn slowly(sequence: &[usize], titles: &[Vec<u32>], samples: Samples, most: (usize, usize)) -> Vec<(Vec<u32>, usize)> {
    let (max_items, max_tokens) = most;
    let mut found = Vec::new();
    for target in 1..sequence.len() {
        let starts = match samples {
            Samples::SlidingWindow => (0..target).collect(),
            Samples::Last if target + 1 < sequence.len() => Vec::new(),
            _ => vec![0],
        };
        for start in starts {
            let mut history = &sequence[start..target];
            loop {
                let shown: Vec<Vec<u32>> = history.iter().map(|item| titles[*item].clone()).collect();
                let prompt = [vec![15], shown.join(&10), vec![14]].concat();
                let tokens = [prompt.clone(), titles[sequence[target]].clone(), vec![3]].concat();
                if history.len() <= max_items && tokens.len() <= max_tokens {
                    found.push((tokens, prompt.len()));
                    break;
                }
                history = &history[1..];
                if history.is_empty() {
                    break;
                }
            }
        }
    }
    found
}

fn samples_by_user(tables: &Tables) -> HashMap<String, Vec<(Vec<u32>, usize)>> {
    let batch = tables.batch(OUT).unwrap();
    let users = schema::strings(&batch, USER_ID).unwrap();
    let tokens = schema::lists(&batch, TOKENS).unwrap();
    let from = schema::numbers::<UInt32Type>(&batch, LOSS_FROM).unwrap();
    let mut found: HashMap<String, Vec<_>> = HashMap::new();
    for row in 0..batch.num_rows() {
        let list = tokens.value(row).as_primitive::<UInt32Type>().values().to_vec();
        let sample = (list, from.value(row) as usize);
        found.entry(users.value(row).to_string()).or_default().push(sample);
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Never too long; the loss counts the target and its end; what is kept are the last items, as many as fit; and
    /// neither the order of the users nor that of the items matters.
    #[test]
    fn prompts_are_as_long_as_they_may_be(
        titles in prop::collection::vec(prop::collection::vec(4u32..10, 1..6), 5),
        sequences in prop::collection::vec(prop::collection::vec(0usize..5, 1..9), 1..5),
        samples in prop::sample::select(vec![Samples::SlidingWindow, Samples::Prefixes, Samples::Last]),
        max_items in 1u32..6,
        max_tokens in 2u32..30,
    ) {
        let items: Vec<String> = (0..).zip(&titles).map(|(item, words)| format!("\n{item} | {}", title(words))).collect();
        let rows: Vec<String> = (0..)
            .zip(&sequences)
            .map(|(user, sequence)| {
                let items: Vec<String> = sequence.iter().map(usize::to_string).collect();
                format!("\nu{user} {}", items.join(","))
            })
            .collect();
        let config = TokenizePrompts { samples, max_items, max_tokens, ..config() };
        let root = words();
        let run = |rows: &[String], items: &[String]| {
            let sequences = format!("user_id sequence:[str]{}", rows.concat());
            run_in(root.path(), &config, &sequences, &format!("item_id | title{}", items.concat()))
        };
        let tables = run(&rows, &items);
        let found = match &tables {
            Ok(tables) => samples_by_user(tables),
            Err(error) if error.code == "empty-result" => HashMap::new(),
            Err(error) => panic!("{error}"),
        };
        for (user, sequence) in sequences.iter().enumerate() {
            let wanted = slowly(sequence, &titles, samples, (max_items as usize, max_tokens as usize));
            let found = found.get(&format!("u{user}")).cloned().unwrap_or_default();
            prop_assert!(found.iter().all(|(tokens, _)| tokens.len() <= max_tokens as usize));
            prop_assert_eq!(found, wanted);
        }
        let backwards = |lines: &[String]| lines.iter().rev().cloned().collect::<Vec<_>>();
        if let Ok(tables) = tables {
            let turned = run(&backwards(&rows), &backwards(&items)).unwrap();
            prop_assert_eq!(samples_by_user(&turned), found);
            prop_assert_eq!(turned.batch(TITLES).unwrap(), tables.batch(TITLES).unwrap());
        }
    }
}

/// Titles and a prompt through real tokenizers, against transformers (`tests/reference/prompts_reference.py`).
#[test]
fn titles_agree_with_transformers() {
    let Some(harness) = testdata::harness() else { return };
    let golden = include_str!("../../../tests/golden/prompts.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let raw: Vec<String> = serde_json::from_value(golden["titles"].clone()).unwrap();
    let ids: Vec<String> = (0..raw.len()).map(|id| id.to_string()).collect();
    let strings = |values: Vec<String>| -> ArrayRef { Arc::new(StringArray::from(values)) };
    let items = RecordBatch::try_from_iter([(ITEM_ID, strings(ids.clone())), (TITLE, strings(raw))]).unwrap();
    let rows = format!("user_id sequence:[str] target\n u {} 0", ids.join(","));
    let sequences = Table::new(text::parse(&rows).unwrap());
    for (name, case) in golden["cases"].as_object().unwrap() {
        let config = TokenizePrompts {
            tokenizer: format!("tokenizers/{name}"),
            template: golden["template"].as_str().unwrap().into(),
            ..TokenizePrompts::default()
        };
        let inputs = [(SEQUENCES, sequences.clone()), (ITEMS, Table::new(items.clone()))];
        let out = harness.run(&config, &inputs).unwrap();
        let lists = |port: &str| -> Vec<Vec<u32>> {
            let batch = out.batch(port).unwrap();
            let lists = schema::lists(&batch, TOKENS).unwrap().iter().flatten();
            lists
                .map(|list| list.as_primitive::<UInt32Type>().values().to_vec())
                .collect()
        };
        let wanted: Vec<Vec<u32>> = serde_json::from_value(case["titles"].clone()).unwrap();
        assert!(wanted.len() >= 20);
        for ((got, want), id) in lists(TITLES).iter().zip(&wanted).zip(&ids) {
            assert_eq!(got, want, "{name}, title {id}");
        }
        assert_eq!(lists(TITLES).len(), wanted.len());
        let prompt: Vec<u32> = serde_json::from_value(case["prompt"].clone()).unwrap();
        assert_eq!(lists(OUT), [prompt], "{name}");
    }
}

#[test]
fn items_as_codes_and_items_with_tokens_of_their_own() {
    let harness = |root: &std::path::Path| Harness {
        data_root: root.to_path_buf(),
        ..Harness::default()
    };
    let root = words();
    let table = |rows: &str| Table::new(text::parse(rows).unwrap());
    let inputs = vec![(SEQUENCES, table(TRAIN_ROWS)), (ITEMS, table(ITEM_ROWS))];
    // Soft tokens: one behind every title of the history, none in the target.
    let soft = TokenizePrompts {
        soft_tokens: true,
        vocabulary: Some(100),
        ..config()
    };
    let out = harness(root.path()).run(&soft, &inputs).unwrap();
    let (first, last) = (
        "u [15, 4, 8, 100, 14, 6, 9, 3] 5",
        "u [15, 4, 8, 100, 10, 6, 9, 101, 14, 11, 1, 12, 3] 9",
    );
    assert_eq!(rendered(&out, OUT), lines("user_id tokens loss_from", &[first, last]));
    let titles = lines(
        "item_id title tokens duplicate_of first_new_token soft_token",
        &[
            "a red shoe [4, 8, 3] a 100 100",
            "b Blue hat [6, 9, 3] b 100 101",
            "c wool & leather [11, 1, 12, 3] c 100 102",
        ],
    );
    assert_eq!(rendered(&out, TITLES), titles);
    // Semantic ids: levels of 3 and 4 codes from 100 on, no titles.
    let coded = TokenizePrompts {
        vocabulary: Some(100),
        ..config()
    };
    let ids = table("item_id semantic_id:[u16;2]\n a 0,0\n b 1,3\n c 2,1");
    let mut inputs = inputs;
    inputs.push((SEMANTIC_IDS, ids));
    let out = harness(root.path()).run(&coded, &inputs).unwrap();
    let (first, last) = (
        "u [15, 100, 103, 14, 101, 106, 3] 4",
        "u [15, 100, 103, 10, 101, 106, 14, 102, 104, 3] 7",
    );
    assert_eq!(rendered(&out, OUT), lines("user_id tokens loss_from", &[first, last]));
    let titles = rendered(&out, TITLES);
    assert!(titles.contains("b <1_1><2_3> [101, 106, 3] b 100"), "{titles}");
    // A vocabulary that the tokenizer does not fit into.
    let small = TokenizePrompts {
        vocabulary: Some(5),
        ..config()
    };
    let error = harness(root.path())
        .run(&small, &inputs)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("\"vocabulary\" is 5, but the tokenizer has"), "{error}");
}
