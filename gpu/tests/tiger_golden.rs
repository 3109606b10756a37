//! The model, its gradients and Adam against torch and transformers (`reference/tiger_reference.py`).

use serde::Deserialize;
use sluice_gpu::ops::{Graph, Stock, Tape, Workspace};
use sluice_gpu::optim::{Adam, AdamConfig};
use sluice_gpu::tiger::{FeedForward, Inputs, ItemVectors, Noise, OutputHeads, TigerConfig, loss};
use sluice_gpu::trie::Trie;
use sluice_gpu::weights::{Weight, Weights};
use std::path::Path;

#[derive(Deserialize)]
struct Golden {
    codebook_sizes: Vec<usize>,
    layers: usize,
    d_model: usize,
    heads: usize,
    d_kv: usize,
    d_ff: usize,
    feed_forward: FeedForward,
    histories: Vec<Vec<u16>>,
    targets: Vec<Vec<u16>>,
    /// Vectors of the items of the histories, in the order of the histories.
    vectors: Option<Vec<Vec<f32>>>,
    loss: f32,
    adam: GoldenAdam,
}

#[derive(Deserialize)]
struct GoldenAdam {
    lr: f64,
    weight_decay: f32,
    losses: Vec<f32>,
}

#[test]
fn grid_feed_forward() {
    check("grid");
}

#[test]
fn t5_feed_forward() {
    check("t5");
}

#[test]
fn plain_head_and_injected_vectors() {
    check("injected");
}

fn check(kind: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read_to_string(folder.join(format!("tiger_{kind}.json"))).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(folder.join(format!("tiger_{kind}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let config = TigerConfig {
        codebook_sizes: golden.codebook_sizes,
        layers: golden.layers,
        d_model: golden.d_model,
        heads: golden.heads,
        d_kv: golden.d_kv,
        d_ff: golden.d_ff,
        feed_forward: golden.feed_forward,
        output_heads: if kind == "injected" {
            OutputHeads::Plain
        } else {
            OutputHeads::PerLevel
        },
        vector_dim: golden.vectors.as_ref().map_or(0, |vectors| vectors[0].len()),
        ..TigerConfig::default()
    };
    let read = |group: &str| {
        let tensors = config.declarations().into_iter().map(|d| {
            let view = file.tensor(&format!("{group}/{}", d.name)).unwrap();
            assert_eq!(view.shape(), d.shape, "{}", d.name);
            let (numbers, _) = view.data().as_chunks::<4>();
            let data = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
            Weight {
                name: d.name,
                shape: d.shape,
                data,
            }
        });
        Weights::from_tensors(tensors.collect())
    };
    let mut weights = read("weights");
    let (gradients, after) = (read("gradients"), read("after"));
    let vectors = golden.vectors.map(|vectors| {
        let trie = Trie::new(&golden.histories.concat(), config.levels()).unwrap();
        ItemVectors::new(&trie, &vectors.concat(), config.vector_dim).unwrap()
    });
    let histories: Vec<&[u16]> = golden.histories.iter().map(Vec::as_slice).collect();
    let histories = config
        .histories(&Inputs {
            vectors: vectors.as_ref(),
            ..Inputs::new(&histories)
        })
        .unwrap();
    let targets = golden.targets.concat();

    // stock engine
    let mut stock = Stock::new(&weights, &candle_core::Device::Cpu).unwrap();
    let l = loss(&mut stock, &config, &histories, &targets, &mut Noise::off()).unwrap();
    near(kind, &stock.values(&l).unwrap(), &[golden.loss]);
    for (want, got) in gradients.tensors().iter().zip(stock.backward(&l).unwrap()) {
        let got = got.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        near(&want.name, &got, &want.data);
    }

    // fast engine, with three steps of Adam
    let mut workspace = Workspace::default();
    let decay = golden.adam.weight_decay;
    let mut adam = Adam::new(AdamConfig {
        weight_decay: decay,
        ..AdamConfig::default()
    });
    for (step, want) in golden.adam.losses.iter().enumerate() {
        let mut tape = Tape::new(&weights, &mut workspace);
        let l = loss(&mut tape, &config, &histories, &targets, &mut Noise::off()).unwrap();
        near("loss", &tape.values(&l).unwrap(), &[*want]);
        if step == 3 {
            break;
        }
        tape.backward(l).unwrap();
        if step == 0 {
            for (want, got) in gradients.tensors().iter().zip(workspace.gradients()) {
                near(&want.name, got, &want.data);
            }
        }
        adam.step(&mut weights, workspace.gradients(), golden.adam.lr, 1.0)
            .unwrap();
    }
    for (want, got) in after.tensors().iter().zip(weights.tensors()) {
        near(&want.name, &got.data, &want.data);
    }
}

/// Relative to the tensor's largest number.
fn near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-4 * largest, "{what}: {g}, not {w}");
    }
}
