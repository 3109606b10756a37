//! A language model as a stage: learns a ring from scratch, adapts it, goes on where it was, refuses what it cannot use.

use std::path::Path;
use std::time::Duration;

use arrow::datatypes::Float64Type;
use sluice_engine::harness::Harness;
use sluice_engine::operator::{Cancel, Checkpoint as Kept};
use sluice_engine::text;
use sluice_gpu::llm::Llm;

use super::*;
use crate::language_models;
use crate::schema;
use crate::testdata;
use crate::tokenize_prompts::TokenizePrompts;

const ITEMS: u32 = 12;
/// Ends a title.
const EOS: u32 = 1;

/// The two tokens of an item's title, and the end of text.
fn title(item: u32) -> String {
    format!("{},{},{EOS}", 2 + item % 4, 6 + item / 4)
}

fn table(rows: &str) -> Table {
    Table::new(text::parse(rows).unwrap())
}

/// Prompts of users who walk along a ring of items; with `target`, the rows of an evaluation.
fn walks(users: u32, evaluation: bool) -> Table {
    let last = if evaluation { "target" } else { "loss_from:u32" };
    let mut rows = format!("user_id tokens:[u32] {last}");
    for user in 0..users {
        let items: Vec<u32> = (0..2 + user % 3).map(|step| (user * 5 + step) % ITEMS).collect();
        let history: Vec<String> = items.iter().map(|item| title(*item).replace(",1", ",9")).collect();
        let next = (items[items.len() - 1] + 1) % ITEMS;
        let tokens = history.join(",");
        let length = 3 * items.len();
        rows.push_str(&match evaluation {
            true => format!("\nu{user} {tokens} i{next}"),
            false => format!("\nu{user} {tokens},{} {length}", title(next)),
        });
    }
    table(&rows)
}

fn titles() -> Table {
    let rows: Vec<String> = (0..ITEMS).map(|item| format!("i{item} {}", title(item))).collect();
    table(&format!("item_id tokens:[u32]\n{}", rows.join("\n")))
}

fn inputs() -> Vec<(&'static str, Table)> {
    vec![
        (PROMPTS, walks(96, false)),
        (VALID, walks(24, true)),
        (TITLES, titles()),
    ]
}

fn fresh() -> TrainLlm {
    TrainLlm {
        shape: Some(ModelShape {
            layers: 2,
            d_model: 32,
            heads: 4,
            kv_heads: Some(2),
            max_tokens: 32,
            ..ModelShape::default()
        }),
        learning_rate: 5e-3,
        batch_size: 32,
        max_steps: 90,
        eval_every: 30,
        device: "cpu".into(),
        ..TrainLlm::default()
    }
}

fn train(operator: &TrainLlm, inputs: &[(&str, Table)]) -> Result<(Tables, tempfile::TempDir)> {
    let attempt = tempfile::tempdir().unwrap();
    let harness = Harness {
        attempt: attempt.path().to_path_buf(),
        ..Harness::default()
    };
    Ok((harness.run(operator, inputs)?, attempt))
}

fn last_loss(out: &Tables) -> f64 {
    let curve = out.batch(CURVE).unwrap();
    schema::numbers::<Float64Type>(&curve, METRICS[0])
        .unwrap()
        .value(curve.num_rows() - 1)
}

#[test]
fn a_ring_is_learnt_from_scratch_and_adapted() {
    let (out, _kept) = train(&fresh(), &inputs()).unwrap();
    let curve = out.batch(CURVE).unwrap();
    assert_eq!(curve.num_rows(), 3);
    assert!(last_loss(&out) < 0.1, "{curve:?}");
    let folder = out.folder(MODEL).unwrap();
    let model = Llm::load(folder).unwrap();
    // Tokens up to 9 occur.
    assert_eq!(model.config().vocabulary(), 10);
    // On it, adapters learn to walk the other way round.
    let mut back = String::from("user_id tokens:[u32] loss_from:u32");
    for user in 0..96 {
        let item = user * 7 % ITEMS;
        let (from, to) = (title(item).replace(",1", ",9"), title((item + ITEMS - 1) % ITEMS));
        back.push_str(&format!("\nu{user} {from},{to} 3"));
    }
    let adapt = TrainLlm {
        shape: None,
        lora: Some(Lora {
            rank: Rank::Of(8),
            ..Lora::default()
        }),
        learning_rate: 1e-2,
        ..fresh()
    };
    let inputs = Tables::new()
        .with(PROMPTS, table(&back))
        .with(BASE, Table::Folder(folder.to_path_buf()));
    let attempt = tempfile::tempdir().unwrap();
    let context = Context::new(TrainLlm::NAME, 1, Path::new("."), attempt.path(), &Cancel::default());
    let adapted = adapt.run(&context, inputs).unwrap();
    let curve = adapted.batch(CURVE).unwrap();
    let losses = schema::numbers::<Float64Type>(&curve, "train_loss").unwrap();
    assert!(losses.value(2) < 0.3, "{curve:?}");
    assert!(!adapted.folder(MODEL).unwrap().join("config.json").exists());
    let load = |_: &str| Ok(Llm::load(folder).unwrap());
    let merged = language_models::load(adapted.folder(MODEL).unwrap(), load).unwrap();
    assert_ne!(merged.weights(), model.weights());
}

#[test]
fn a_cancelled_training_goes_on_where_it_was() {
    let states = tempfile::tempdir().unwrap();
    let run = |steps: u32, states: Option<&Path>| {
        let (attempt, cancel) = (tempfile::tempdir().unwrap(), Cancel::default());
        let mut context = Context::new(TrainLlm::NAME, 1, Path::new("."), attempt.path(), &cancel);
        context.checkpoint = states.map(|folder| Kept {
            folder: folder.to_path_buf(),
            every: Duration::from_secs(3600),
        });
        let operator = TrainLlm {
            max_steps: steps,
            lora: Some(Lora::default()),
            ..fresh()
        };
        let tables = inputs().into_iter();
        let inputs = tables.fold(Tables::new(), |tables, (port, table)| tables.with(port, table));
        let out = operator.run(&context, inputs).unwrap();
        std::fs::read(out.folder(MODEL).unwrap().join("adapter_model.safetensors")).unwrap()
    };
    let whole = run(60, None);
    run(30, Some(states.path()));
    assert_eq!(run(60, Some(states.path())), whole);
}

#[test]
fn what_cannot_be_trained_is_said() {
    let error = |operator: TrainLlm, inputs: &[(&str, Table)]| {
        let error = train(&operator, inputs).map(|_| ()).unwrap_err();
        error.to_string()
    };
    let said = |operator: TrainLlm, what: &str| {
        let told = error(operator, &inputs());
        assert!(told.contains(what), "{told}");
    };
    let none = TrainLlm { shape: None, ..fresh() };
    said(none.clone(), "give one of \"model\", \"shape\" and the input \"base\"");
    said(
        TrainLlm {
            model: Some("no-such-model".into()),
            ..none
        },
        "no checkpoint \"no-such-model\"",
    );
    let lora = |lora: Lora| TrainLlm {
        lora: Some(lora),
        ..fresh()
    };
    said(
        lora(Lora {
            target_modules: Some(vec!["query".into()]),
            ..Lora::default()
        }),
        "\"query\" matches no map; there are q_proj, k_proj, v_proj, o_proj, gate_proj, down_proj, up_proj",
    );
    let heads = ModelShape {
        heads: 3,
        kv_heads: Some(2),
        key_dim: Some(8),
        ..ModelShape::default()
    };
    said(
        TrainLlm {
            shape: Some(heads),
            ..fresh()
        },
        "invalid `kv_heads`: is 2, supported: a divisor of heads",
    );
    let small = ModelShape {
        vocabulary: Some(9),
        ..fresh().shape.unwrap()
    };
    said(
        TrainLlm {
            shape: Some(small),
            ..fresh()
        },
        "prompts have tokens up to 9, the model's vocabulary has 9",
    );
    let without = error(fresh(), &inputs()[..2]);
    assert!(without.contains("valid prompts need \"titles\""), "{without}");
    said(lora(Lora::default()), "adapters need a model that is kept");
    let short = ModelShape {
        max_tokens: 8,
        ..fresh().shape.unwrap()
    };
    let short = TrainLlm {
        shape: Some(short),
        ..fresh()
    };
    said(
        short.clone(),
        "a prompt has 15 tokens with its title, the model has 8 positions",
    );
    said(short, "to at most 9, or raise shape.max_tokens");
    let titles = (TITLES, table("item_id tokens:[u32]\n x 2,6,1"));
    let unknown = [inputs().swap_remove(0), inputs().swap_remove(1), titles];
    let unknown = error(fresh(), &unknown);
    assert!(
        unknown.contains("no valid prompt has a target with a title"),
        "{unknown}"
    );
    let rank = serde_json::from_str::<Lora>(r#"{"rank": "big"}"#)
        .unwrap_err()
        .to_string();
    assert!(rank.contains("\"rank\" is \"big\": a whole number, or auto"), "{rank}");
    for (text, rank) in [("8", Rank::Of(8)), ("\"auto\"", Rank::Auto(Auto::Auto))] {
        assert_eq!(serde_json::from_str::<Rank>(text).unwrap(), rank);
    }
}

#[test]
fn valid_prompts_without_a_title_are_counted() {
    let attempt = tempfile::tempdir().unwrap();
    let context = Context::new(TrainLlm::NAME, 1, Path::new("."), attempt.path(), &Cancel::default());
    let operator = TrainLlm {
        max_steps: 1,
        ..fresh()
    };
    let titles = titles().batch().unwrap();
    let inputs = Tables::new()
        .with(PROMPTS, walks(24, false))
        .with(VALID, walks(24, true))
        .with(TITLES, Table::new(titles.slice(3, titles.num_rows() - 3)));
    operator.run(&context, inputs).unwrap();
    let targets = walks(24, true).batch().unwrap();
    let targets = schema::strings(&targets, "target").unwrap();
    let gone = targets
        .iter()
        .flatten()
        .filter(|target| ["i0", "i1", "i2"].contains(target));
    let gone = gone.count();
    assert!(gone > 0);
    assert_eq!(context.noted()["valid_left_out"], gone);
}

#[test]
fn what_does_not_fit_into_memory_is_refused_with_advice() {
    const GIB: usize = 1 << 30;
    let told = |weights: usize, training: usize, batch: usize, checkpointed: bool| {
        let needed = Memory {
            weights: weights * GIB,
            training: training * GIB,
            batch: batch * GIB,
        };
        out_of_memory(&needed, 24 * GIB, checkpointed).to_string()
    };
    let error = told(20, 1, 40, true);
    assert!(
        error.contains("the training needs about 61.0 GiB of 24.0 GiB"),
        "{error}"
    );
    assert!(error.contains("lower batch_size and raise accumulate"), "{error}");
    assert!(told(20, 1, 40, false).contains("set activation_checkpointing"));
    assert!(told(20, 80, 1, false).contains("train adapters"));
    assert!(told(60, 1, 1, false).contains("take a smaller model"));
}

/// Prompts, titles and a checkpoint whose vocabulary ends where new tokens begin.
fn extended(coded: bool) -> (tempfile::TempDir, Vec<(&'static str, Table)>) {
    let root = tempfile::tempdir().unwrap();
    testdata::tiny_encoder(&root.path().join("words"));
    let config = root.path().join("words/tokenizer_config.json");
    std::fs::write(config, r#"{"eos_token": "[SEP]"}"#).unwrap();
    let tokenize = TokenizePrompts {
        tokenizer: "words".into(),
        template: "the {history} new".into(),
        vocabulary: Some(32),
        soft_tokens: !coded,
        ..TokenizePrompts::default()
    };
    let harness = Harness {
        data_root: root.path().to_path_buf(),
        ..Harness::default()
    };
    let sequences = table("user_id sequence:[str]\n u a,b,c\n v b,c,a\n w c,a,b");
    let items = table("item_id | title\n a | red shoe\n b | Blue hat\n c | wool");
    let mut inputs = vec![("sequences", sequences), ("items", items)];
    if coded {
        inputs.push((
            "semantic_ids",
            table("item_id semantic_id:[u16;2]\n a 0,0\n b 1,3\n c 2,1"),
        ));
    }
    let out = harness.run(&tokenize, &inputs).unwrap();
    let mut tables = vec![(PROMPTS, out.table("out").unwrap().clone())];
    tables.push((TITLES, out.table("titles").unwrap().clone()));
    if !coded {
        tables.push((VECTORS, table("item_id embedding:[f32;2]\n a 1,0\n b 0,1\n c 3,4")));
    }
    let shape = fresh().shape.unwrap().config(32).unwrap();
    Llm::init(&shape, 1).save(&root.path().join("base")).unwrap();
    (root, tables)
}

/// Semantic ids as new words, and items as soft tokens, on a checkpoint with adapters.
#[test]
fn tokens_that_a_model_does_not_have_are_trained_beside_adapters() {
    for coded in [true, false] {
        let (root, tables) = extended(coded);
        let adapt = TrainLlm {
            shape: None,
            model: Some("base".into()),
            lora: Some(Lora::default()),
            new_tokens: coded,
            learning_rate: 2e-2,
            max_steps: 60,
            eval_every: 20,
            ..fresh()
        };
        let harness = Harness {
            data_root: root.path().to_path_buf(),
            attempt: root.path().to_path_buf(),
            ..Harness::default()
        };
        let out = harness.run(&adapt, &tables).unwrap();
        let curve = out.batch(CURVE).unwrap();
        let losses = schema::numbers::<Float64Type>(&curve, "train_loss").unwrap();
        // Of words the output map is trained too; beside soft tokens only what the adapters can do.
        let share = if coded { 0.5 } else { 0.99 };
        assert!(losses.value(2) < share * losses.value(0), "{coded}: {curve:?}");
        let base = |_: &str| language_models::load_checkpoint(&root.path().join("base"), "base");
        let model = language_models::load(out.folder(MODEL).unwrap(), base).unwrap();
        // Two levels of 3 and 4 codes; three items of width 32.
        let (words, items) = if coded { (7, 0) } else { (0, 3) };
        assert_eq!(model.config().vocabulary(), 32 + words);
        assert_eq!(model.read_only().len(), items * 32);
        // A vocabulary that ends elsewhere is noticed before anything is trained wrongly.
        let shape = fresh().shape.unwrap().config(33).unwrap();
        Llm::init(&shape, 1).save(&root.path().join("base")).unwrap();
        let error = harness.run(&adapt, &tables).map(|_| ()).unwrap_err().to_string();
        assert!(
            error.contains("new tokens begin at 32, the model's vocabulary ends at 33"),
            "{error}"
        );
    }
    let (root, tables) = extended(true);
    let harness = Harness {
        data_root: root.path().to_path_buf(),
        ..Harness::default()
    };
    let without = TrainLlm {
        shape: None,
        model: Some("base".into()),
        ..fresh()
    };
    let error = harness.run(&without, &tables).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("prompts have tokens up to 38, the model's vocabulary has 32"),
        "{error}"
    );
}

/// A stage whose `base` is the folder of another, which the harness cannot connect.
fn train_on(
    operator: &TrainLlm,
    folder: &Path,
    tables: &[(&'static str, Table)],
) -> Result<(Tables, Notes, tempfile::TempDir)> {
    let attempt = tempfile::tempdir().unwrap();
    let context = Context::new(TrainLlm::NAME, 1, Path::new("."), attempt.path(), &Cancel::default());
    let base = Tables::new().with(BASE, Table::Folder(folder.to_path_buf()));
    let inputs = tables
        .iter()
        .fold(base, |inputs, (port, table)| inputs.with(port, table.clone()));
    let out = operator.run(&context, inputs)?;
    Ok((out, context.noted(), attempt))
}

/// A model that has the new words already goes on with them; one that has some of them is refused.
#[test]
fn words_that_a_base_has_are_no_new_ones() {
    let (root, tables) = extended(true);
    let base = root.path().join("base");
    let adapt = TrainLlm {
        shape: None,
        lora: Some(Lora::default()),
        new_tokens: true,
        max_steps: 2,
        ..fresh()
    };
    let train = |vocabulary: usize| {
        let shape = fresh().shape.unwrap().config(vocabulary).unwrap();
        Llm::init(&shape, 1).save(&base).unwrap();
        train_on(&adapt, &base, &tables)
    };
    // 32 words, and seven codes.
    for (vocabulary, new) in [(39, 0usize), (32, 7)] {
        let (out, notes, _kept) = train(vocabulary).unwrap();
        assert_eq!(notes["new_tokens"], new);
        let folder = out.folder(MODEL).unwrap();
        assert_eq!(Added::is_in(folder), new > 0);
        let own = |_: &str| Ok(Llm::load(&base).unwrap());
        let model = language_models::load(folder, own).unwrap();
        assert_eq!(model.config().vocabulary(), 39);
        let other = |_: &str| Ok(Llm::init(&fresh().shape.unwrap().config(vocabulary).unwrap(), 2));
        let error = language_models::load(folder, other).map(|_| ()).unwrap_err();
        assert_eq!(error.code, "wrong-base");
    }
    let error = train(36).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("new tokens begin at 32, the model's vocabulary ends at 36"),
        "{error}"
    );
    assert!(
        error.contains("tokens up to 35 are in the model, those up to 38 are not"),
        "{error}"
    );
    let error = train(50).map(|_| ()).unwrap_err();
    assert_eq!(
        error.hint.as_deref(),
        Some("set \"vocabulary\" of tokenize_prompts to 50")
    );
}

#[test]
fn soft_tokens_begin_behind_the_vocabulary_and_end_with_their_model() {
    let (_root, tables) = extended(false);
    let soft = TrainLlm {
        max_steps: 2,
        ..fresh()
    };
    let large = ModelShape {
        vocabulary: Some(40),
        ..fresh().shape.unwrap()
    };
    let large = TrainLlm {
        shape: Some(large),
        ..soft.clone()
    };
    let error = train(&large, &tables).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("soft tokens begin at 32, the model's vocabulary ends at 40"),
        "{error}"
    );
    let (out, _kept) = train(&soft, &tables).unwrap();
    let onwards = TrainLlm { shape: None, ..soft };
    let error = train_on(&onwards, out.folder(MODEL).unwrap(), &tables);
    let error = error.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("the base reads items as soft tokens"), "{error}");
}

#[test]
fn weights_that_are_no_numbers_are_not_blamed_on_the_learning_rate() {
    let (root, tables) = extended(true);
    let base = root.path().join("base");
    let mut model = Llm::load(&base).unwrap();
    for tensor in model.weights_mut().tensors_mut() {
        tensor.data.fill(f32::NAN);
    }
    model.save(&base).unwrap();
    let adapt = TrainLlm {
        shape: None,
        lora: Some(Lora::default()),
        new_tokens: true,
        ..fresh()
    };
    let error = train_on(&adapt, &base, &tables).map(|_| ()).unwrap_err();
    assert_eq!(error.message, "the loss is NaN at step 1, before any update");
    assert_eq!(error.hint, None);
}
