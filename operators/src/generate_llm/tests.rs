//! Lists, titles and notes of a tiny model; whatever does not fit together is refused.

use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use sluice_engine::harness::Harness;
use sluice_engine::text;
use sluice_gpu::llm::lora::Lora;
use sluice_gpu::llm::{Found, Llm, LlmConfig, Shape as ModelShape};
use sluice_gpu::weights::Weights;

use super::*;
use crate::testdata;

const VOCABULARY: usize = 20;

/// A model that is drawn, with scores that differ, in a folder.
fn write_model(folder: &Path, vocabulary: usize, d_model: usize) -> LlmConfig {
    let shape = ModelShape {
        vocabulary,
        d_model,
        layers: 1,
        heads: 2,
        kv_heads: 1,
        key_dim: 4,
        d_ff: 12,
        max_tokens: 12,
    };
    let config = LlmConfig::of_shape(&shape).unwrap();
    let mut model = Llm::init(&config, 5);
    for tensor in model.weights_mut().tensors_mut() {
        if !tensor.name.ends_with("norm.weight") {
            tensor.data.iter_mut().for_each(|x| *x *= 30.0);
        }
    }
    model.save(folder).unwrap();
    config
}

/// A data root with a model in `model`.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(&folder.path().join("model"), VOCABULARY, 8);
        Root { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn harness(&self) -> Harness {
        Harness {
            data_root: self.folder.path().to_path_buf(),
            ..Harness::default()
        }
    }

    /// Runs with the checkpoint `base` alone.
    fn run(&self, config: &GenerateLlm, prompts: &str, titles: &str) -> Result<Tables> {
        self.harness()
            .run(config, &[(PROMPTS, table(prompts)), (TITLES, table(titles))])
    }

    /// Runs with a folder at the port `model`, and says the notes.
    fn run_model(&self, config: &GenerateLlm, model: &str) -> Result<(Tables, Notes)> {
        let context = testdata::context(&self.harness(), GenerateLlm::NAME);
        let inputs = Tables::new()
            .with(MODEL, Table::Folder(self.path(model)))
            .with(PROMPTS, table(USERS))
            .with(TITLES, table(CATALOGUE));
        let outputs = config.run(&context, inputs)?;
        Ok((outputs, context.noted()))
    }

    /// An adapter for the model, which adds the same number to all of one kind of map.
    fn write_adapter(&self, config: &LlmConfig, base: &str, name: &str) {
        let lora = Lora {
            rank: 1,
            alpha: 2.0,
            dropout: 0.0,
            target_modules: vec!["down_proj".into()],
        };
        let mut weights = Weights::init(&lora.declarations(config), 9);
        weights
            .tensors_mut()
            .iter_mut()
            .for_each(|tensor| tensor.data.fill(0.5));
        lora.save(&weights, base, None, &self.path(name)).unwrap();
    }
}

fn table(rows: &str) -> Table {
    Table::new(text::parse(rows).unwrap())
}

const USERS: &str = "user_id tokens:[u32] target\n u 4,5,6 b\n v 7 c\n w 8,9,4,5,6 x";
const CATALOGUE: &str = "item_id | title | tokens:[u32] | duplicate_of
    a | red | 10,3 | a
    b | red shoe | 10,11,3 | b
    c | hat | 12,3 | c
    d | Red shoe | 10,11,3 | b
    10 | big old hat | 13,14,12,3 | 10";

fn config() -> GenerateLlm {
    GenerateLlm {
        base: Some("model".into()),
        device: "cpu".into(),
        ..GenerateLlm::default()
    }
}

/// The lists of a user as item, rank, better, tied, beam.
fn listed(out: &RecordBatch, user: &str) -> Vec<(String, [u32; 4])> {
    let (users, items) = (
        schema::strings(out, USER_ID).unwrap(),
        schema::strings(out, ITEM_ID).unwrap(),
    );
    let number = |name: &str, row: usize| schema::numbers::<UInt32Type>(out, name).unwrap().value(row);
    let rows = (0..out.num_rows()).filter(|row| users.value(*row) == user);
    rows.map(|row| {
        let numbers = ["rank", "better", "tied", "beam"].map(|name| number(name, row));
        (items.value(row).to_string(), numbers)
    })
    .collect()
}

#[test]
fn items_that_share_a_title_are_tied() {
    let out = Root::new().run(&config(), USERS, CATALOGUE).unwrap();
    let (items, beams) = (out.batch(OUT).unwrap(), out.batch(BEAMS).unwrap());
    assert_eq!((items.num_rows(), beams.num_rows()), (15, 12));
    for user in ["u", "v", "w"] {
        let list = listed(&items, user);
        let at = list.iter().position(|(item, _)| item == "b").unwrap();
        let (b, d) = (&list[at], &list[at + 1]);
        let rank = b.1[0];
        assert_eq!((d.0.as_str(), b.1), ("d", [rank, rank - 1, 2, b.1[3]]));
        assert_eq!(d.1, [rank + 1, rank - 1, 2, b.1[3]]);
        let ranks: Vec<u32> = list.iter().map(|row| row.1[0]).collect();
        assert_eq!(ranks, [1, 2, 3, 4, 5]);
    }
    let scores = schema::numbers::<arrow::datatypes::Float64Type>(&beams, "score").unwrap();
    assert!(scores.values()[..4].is_sorted_by(|a, b| a > b));
    let shared = schema::strings(&beams, TITLE)
        .unwrap()
        .iter()
        .position(|title| title == Some("red shoe"));
    let row = text::render(&beams.slice(shared.unwrap(), 1)).unwrap();
    assert!(row.contains("[10, 11, 3]") && row.contains("[b, d]"), "{row}");
}

#[test]
fn titles_of_one_score_are_tied_and_listed_together() {
    let titled = Titled::read(&table(CATALOGUE)).unwrap();
    let found: Vec<Found> = [-1.0, -1.0, -2.0, -3.0]
        .into_iter()
        .zip(0..)
        .map(|(score, title)| Found { title, score })
        .collect();
    let items = |k: u32| {
        let mut lists = Lists::new(&titled, Some(k));
        lists.push("u", &found).unwrap();
        let (items, beams) = lists.tables().unwrap();
        let beams = beams.batch().unwrap().num_rows();
        (listed(&items.batch().unwrap(), "u"), beams)
    };
    let row = |item: &str, numbers: [u32; 4]| (item.to_string(), numbers);
    let tied = [
        row("a", [1, 0, 3, 1]),
        row("b", [2, 0, 3, 2]),
        row("d", [3, 0, 3, 2]),
        row("c", [4, 3, 1, 3]),
    ];
    assert_eq!(items(1), (tied[..3].to_vec(), 2));
    assert_eq!(items(4), (tied.to_vec(), 3));
}

/// Whose prompt it was is said too.
#[test]
fn scores_that_are_no_numbers_are_refused() {
    let root = Root::new();
    let mut model = Llm::load(&root.path("model")).unwrap();
    // Only the prompt of v has token 7.
    let words = model.weights().index("model.embed_tokens.weight").unwrap();
    model.weights_mut().tensors_mut()[words].data[7 * 8] = f32::NAN;
    model.save(&root.path("model")).unwrap();
    let children = GenerateLlm {
        normalisation: Normalisation::Children,
        ..config()
    };
    let error = root.run(&children, USERS, CATALOGUE).unwrap_err();
    assert_eq!(error.detail, ["after the prompt of user \"v\""]);
}

/// A beam as wide as the catalogue is exact; shorter lists are the head of longer ones.
#[test]
fn exact_search_scores_the_whole_catalogue() {
    let root = Root::new();
    let run = |change: fn(&mut GenerateLlm)| {
        let mut config = config();
        change(&mut config);
        root.run(&config, USERS, CATALOGUE).unwrap().batch(OUT).unwrap()
    };
    let all = run(|_| ());
    let exact = run(|c| (c.search, c.width, c.k) = (Search::Exact, 1, Some(9)));
    assert_eq!(all, exact);
    let few = run(|c| (c.search, c.k) = (Search::Exact, Some(2)));
    for user in ["u", "v", "w"] {
        let (few, all) = (listed(&few, user), listed(&all, user));
        // The two items of a title stay together.
        let kept = all.iter().filter(|row| row.1[1] < 2).count();
        assert_eq!(few, all[..kept]);
    }
    let narrow = run(|c| c.width = 1);
    assert!((3..=6).contains(&narrow.num_rows()));
    let certain = run(|c| c.normalisation = Normalisation::Children);
    let scores = schema::numbers::<arrow::datatypes::Float64Type>(&certain, "score").unwrap();
    let beams = schema::numbers::<UInt32Type>(&certain, "beam").unwrap();
    let first: Vec<usize> = (0..5)
        .filter(|row| *row == 0 || beams.value(*row) != beams.value(row - 1))
        .collect();
    let total: f64 = first.iter().map(|row| scores.value(*row).exp()).sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}

#[test]
fn a_catalogue_of_one_title_works() {
    let out = Root::new()
        .run(&config(), USERS, "item_id | title | tokens:[u32]\n a | red | 10,3")
        .unwrap();
    assert_eq!(listed(&out.batch(OUT).unwrap(), "v"), [("a".to_string(), [1, 0, 1, 1])]);
}

#[test]
fn an_adapter_is_merged_into_its_base() {
    let root = Root::new();
    let known = LlmConfig::load(&root.path("model")).unwrap();
    root.write_adapter(&known, "model", "adapter");
    root.write_adapter(&known, "nowhere", "unnamed");
    let plain = GenerateLlm { base: None, ..config() };
    let (own, notes) = root.run_model(&plain, "adapter").unwrap();
    let (given, _) = root.run_model(&config(), "unnamed").unwrap();
    let (whole, _) = root.run_model(&plain, "model").unwrap();
    assert_eq!(own.batch(OUT).unwrap(), given.batch(OUT).unwrap());
    assert_ne!(own.batch(OUT).unwrap(), whole.batch(OUT).unwrap());
    assert_eq!(
        whole.batch(OUT).unwrap(),
        root.run(&config(), USERS, CATALOGUE).unwrap().batch(OUT).unwrap()
    );
    let note = |name: &str| notes[name].as_f64().unwrap();
    assert_eq!((note("titles"), note("title_coverage")), (4.0, 1.0));
    // One target of three has no title at all, and there are only four.
    assert_eq!(note("title_recall@5"), 2.0 / 3.0);
    assert!(note("users_per_second") > 0.0 && note("tokens_per_second") > 0.0 && note("seconds_per_user") > 0.0);
    let error = root.run_model(&plain, "unnamed").unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        ("no-checkpoint", "no checkpoint \"nowhere\"")
    );
}

#[test]
fn an_adapter_for_another_model_is_refused() {
    let root = Root::new();
    let other = write_model(&root.path("other"), VOCABULARY, 16);
    root.write_adapter(&other, "other", "adapter");
    assert!(
        root.run_model(&GenerateLlm { base: None, ..config() }, "adapter")
            .is_ok()
    );
    let error = root.run_model(&config(), "adapter").unwrap_err();
    assert!(error.to_string().contains("for another model"), "{error}");
    assert_eq!(error.hint.unwrap(), "\"base\" names the model it was trained on");
}

#[test]
fn checkpoints_that_are_broken_are_refused() {
    let root = Root::new();
    let model = std::fs::read(root.path("model/model.safetensors")).unwrap();
    // A shard of the index is not there.
    let sharded = root.path("sharded");
    std::fs::create_dir(&sharded).unwrap();
    std::fs::copy(root.path("model/config.json"), sharded.join("config.json")).unwrap();
    std::fs::write(sharded.join("model-1-of-2.safetensors"), &model).unwrap();
    let index = r#"{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}"#;
    std::fs::write(sharded.join("model.safetensors.index.json"), index).unwrap();
    let run = |base: &str| {
        let config = GenerateLlm {
            base: Some(base.into()),
            ..config()
        };
        root.run(&config, USERS, CATALOGUE).unwrap_err()
    };
    let error = run("sharded");
    assert_eq!(error.code, "bad-checkpoint");
    assert!(error.message.contains("model-2-of-2.safetensors"), "{error}");
    // An element type that is none of the three.
    let integers = root.path("integers");
    std::fs::create_dir(&integers).unwrap();
    std::fs::copy(root.path("model/config.json"), integers.join("config.json")).unwrap();
    let header = u64::from_le_bytes(model[..8].try_into().unwrap()) as usize;
    let (start, numbers) = model.split_at(8 + header);
    let text = String::from_utf8(start[8..].to_vec())
        .unwrap()
        .replace("\"F32\"", "\"I32\"");
    let file = [&start[..8], text.as_bytes(), numbers].concat();
    std::fs::write(integers.join("model.safetensors"), file).unwrap();
    let error = run("integers");
    assert_eq!(error.code, "bad-checkpoint");
    assert!(error.message.contains("I32"), "{error}");
    assert_eq!(run("nowhere").code, "no-checkpoint");
}

#[test]
fn tokens_of_another_tokenizer_and_long_prompts_are_refused() {
    let root = Root::new();
    let refused = |prompts: &str, titles: &str| root.run(&config(), prompts, titles).unwrap_err();
    let error = refused(
        USERS,
        "item_id | title | tokens:[u32]\n a | red | 10,3\n b | new hat | 25,3",
    );
    assert_eq!(
        (error.code.as_str(), error.message.as_str()),
        (
            "other-tokenizer",
            "the title \"new hat\" has token 25, the vocabulary of the model ends at 20"
        )
    );
    let error = refused("user_id tokens:[u32] target\n u 4,20 a", CATALOGUE);
    assert_eq!(
        error.message,
        "the prompt of user \"u\" has token 20, the vocabulary of the model ends at 20"
    );
    assert!(error.hint.unwrap().contains("connected to train_llm"));
    // Nine and the three of the longest title are twelve, and ten are one too many.
    let prompt = |tokens: usize| format!("user_id tokens:[u32] target\n u {} a", vec!["4"; tokens].join(","));
    assert!(root.run(&config(), &prompt(9), CATALOGUE).is_ok());
    let error = refused(&prompt(10), CATALOGUE);
    assert_eq!(error.code, "prompt-too-long");
    assert_eq!(
        error.detail,
        ["it has 10 tokens, the longest title 3, the model 12 positions"]
    );
    assert_eq!(error.hint.unwrap(), "tokenize with \"max_tokens\" of at most 13");
    assert_eq!(
        refused("user_id tokens:[u32] target\n u - a", CATALOGUE).code,
        "empty-prompt"
    );
    let error = refused(
        USERS,
        "item_id | title | tokens:[u32]\n a | red | 10,3\n a | hat | 12,3",
    );
    assert_eq!(error.code, "duplicate-item");
    let error = refused(USERS, "item_id | title | tokens:[u32]\n a | red | 10,3\n b | hat | 12");
    assert!(
        error
            .message
            .ends_with("the title of item 1 ends with token 12, that of item 0 with 3"),
        "{error}"
    );
    let empty = table(CATALOGUE).batch().unwrap().slice(0, 0);
    let inputs = [(PROMPTS, table(USERS)), (TITLES, Table::new(empty))];
    assert_eq!(
        root.harness().run(&config(), &inputs).unwrap_err().code,
        "empty-catalogue"
    );
}

#[test]
fn mistakes_are_named_before_anything_runs() {
    let root = Root::new();
    let error = |change: fn(&mut GenerateLlm)| {
        let mut config = config();
        change(&mut config);
        root.run(&config, USERS, CATALOGUE).unwrap_err()
    };
    let refused = error(|c| c.device = "gpu".into());
    assert_eq!(refused.message, "no device is called \"gpu\"");
    let refused = error(|c| c.precision = Precision::Bf16);
    assert_eq!(
        refused.message,
        "bf16 is for GPUs; on the CPU products are computed in f32"
    );
    assert_eq!(error(|c| c.width = 0).message, "a beam has at least one title");
    assert_eq!(error(|c| c.k = Some(0)).message, "k must be positive");
    assert_eq!(error(|c| c.search = Search::Exact).code, "bad-value");
    assert_eq!(error(|c| c.length_penalty = f64::NAN).code, "bad-value");
    assert_eq!(
        error(|c| c.base = None).message,
        "there is neither an input \"model\" nor a \"base\""
    );
    let wrong = root.run(&config(), "user_id target\n u a", CATALOGUE).unwrap_err();
    assert_eq!(wrong.code, "missing-column");
}
