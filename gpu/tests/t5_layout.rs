//! A model written in T5's layout: the folder is the one that transformers read, and its logits are ours.
//!
//! `golden/t5_layout` is the folder as this test writes it (SLUICE_BLESS=1 stores it anew); `golden/t5_layout.json` has
//! what transformers made of it (`reference/t5_layout_reference.py`).

use serde::Deserialize;
use sluice_gpu::ops::{Dropout, Graph, Tape, Workspace};
use sluice_gpu::random::Key;
use sluice_gpu::tiger::{FeedForward, Inputs, Noise, Prefixes, Tiger, TigerConfig, decode, encode, token_table};
use sluice_gpu::weights::{Weight, Weights};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Every weight by formula, norms and biases off their starts.
fn model(feed_forward: FeedForward) -> Tiger {
    let config = TigerConfig {
        codebook_sizes: vec![7, 5, 6, 3],
        layers: 2,
        d_model: 12,
        heads: 3,
        d_kv: 5,
        d_ff: 10,
        feed_forward,
        user_buckets: 4,
        max_items: 6,
        ..TigerConfig::default()
    };
    let tensors = (0..).zip(config.declarations()).map(|(i, d)| {
        let key = Key::new(7).child(i);
        let norm = d.name.ends_with("norm");
        let (mean, sd) = if norm { (1.0, 0.1) } else { (0.0, 0.3) };
        let n: usize = d.shape.iter().product();
        Weight {
            name: d.name,
            shape: d.shape,
            data: (0..n as u64).map(|x| (mean + sd * key.normal(x)) as f32).collect(),
        }
    });
    let weights = Weights::from_tensors(tensors.collect());
    Tiger::from_weights(&config, weights).unwrap()
}

#[test]
fn the_folder_is_the_one_that_transformers_read() {
    let folder = tempfile::tempdir().unwrap();
    model(FeedForward::T5).save_as_t5(folder.path()).unwrap();
    for name in ["config.json", "model.safetensors"] {
        let bytes = std::fs::read(folder.path().join(name)).unwrap();
        let stored = golden("t5_layout").join(name);
        if std::env::var_os("SLUICE_BLESS").is_some() {
            std::fs::create_dir_all(golden("t5_layout")).unwrap();
            std::fs::write(&stored, &bytes).unwrap();
        }
        assert!(
            bytes == std::fs::read(&stored).unwrap(),
            "{name} differs from {}",
            stored.display()
        );
    }
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Which of the hashed users, from 0.
    user: u32,
    history: Vec<u16>,
    target: Vec<u16>,
    /// By level.
    logits: Vec<Vec<f32>>,
}

#[test]
fn logits_are_those_of_transformers() {
    let text = std::fs::read_to_string(golden("t5_layout.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let model = model(FeedForward::T5);
    let config = model.config();
    let (levels, users) = (config.levels(), config.bos_token() + 2);
    assert!(golden.cases.len() > 3);
    for case in golden.cases {
        // An id that is hashed to this user token.
        let histories = (0..).find_map(|id| {
            let read = [&case.history[..]];
            let inputs = Inputs {
                users: Some(&[id]),
                ..Inputs::new(&read)
            };
            let histories = config.histories(&inputs).unwrap();
            (histories.tokens_t[0] == users + case.user).then_some(histories)
        });
        let histories = histories.unwrap();
        let mut tokens = vec![config.bos_token()];
        tokens.extend((0..levels - 1).map(|level| config.token(level, case.target[level]).unwrap()));
        let prefixes = Prefixes {
            tokens_t: tokens.into(),
            offsets: [0, levels].into(),
            groups: [0, levels].into(),
        };
        let mut workspace = Workspace::default();
        let mut tape = Tape::new(model.weights(), &mut workspace);
        let off = &mut Noise::off();
        let table_nd = token_table(&mut tape, config, &histories).unwrap();
        let memory_td = encode(&mut tape, config, &table_nd, &histories, off).unwrap();
        let hidden_td = decode(
            &mut tape,
            config,
            &table_nd,
            &memory_td,
            &histories.offsets,
            &prefixes,
            off,
        )
        .unwrap();
        for (level, want) in case.logits.iter().enumerate() {
            let hidden_d = tape.gather(&hidden_td, [level as u32].into()).unwrap();
            let head_vd = tape.weight(&format!("heads.{level}")).unwrap();
            let logits_v = tape.linear(&hidden_d, &head_vd, None, false, Dropout::off()).unwrap();
            let got = tape.values(&logits_v).unwrap();
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(want) {
                assert!((got - want).abs() <= 1e-5, "level {level}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn a_block_that_t5_does_not_have_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = model(FeedForward::Grid)
        .save_as_t5(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        text.starts_with("invalid `feed_forward`: T5 has blocks of one hidden layer without biases"),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}
