//! SASRec, its three losses, their gradients and Adam against torch (`reference/sasrec_reference.py`).

use serde::Deserialize;
use sluice_gpu::ops::{Graph, Noise, Stock, Tape, Workspace};
use sluice_gpu::optim::{Adam, AdamConfig};
use sluice_gpu::sasrec::{SasrecConfig, hidden, loss};
use sluice_gpu::weights::{Weight, Weights};
use std::path::Path;
use std::sync::Arc;

#[derive(Deserialize)]
struct Golden {
    config: SasrecConfig,
    histories: Vec<Vec<u32>>,
    targets: Vec<Vec<u32>>,
    drawn: Vec<u32>,
    adam: GoldenAdam,
}

#[derive(Deserialize)]
struct GoldenAdam {
    lr: f64,
    weight_decay: f32,
    losses: Vec<f32>,
}

#[test]
fn softmax() {
    check("softmax");
}

#[test]
fn binary_cross_entropy() {
    check("binary_cross_entropy");
}

#[test]
fn sampled_softmax() {
    check("sampled_softmax");
}

fn check(kind: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read_to_string(folder.join(format!("sasrec_{kind}.json"))).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let bytes = std::fs::read(folder.join(format!("sasrec_{kind}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let config = golden.config;
    let numbers = |name: &str| -> Vec<f32> {
        let view = file.tensor(name).unwrap();
        let (numbers, _) = view.data().as_chunks::<4>();
        numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let read = |group: &str| {
        let tensors = config.declarations().into_iter().map(|d| Weight {
            data: numbers(&format!("{group}/{}", d.name)),
            name: d.name,
            shape: d.shape,
        });
        Weights::from_tensors(tensors.collect())
    };
    let mut weights = read("weights");
    weights.check(&config.declarations()).unwrap();
    let (gradients, after) = (read("gradients"), read("after"));
    let windows = config.windows(golden.histories.iter().map(Vec::as_slice)).unwrap();
    let targets: Arc<[u32]> = golden.targets.concat().into();
    let drawn: Arc<[u32]> = golden.drawn.into();

    // stock engine
    let mut stock = Stock::new(&weights, &candle_core::Device::Cpu).unwrap();
    let x = hidden(&mut stock, &config, &windows, &mut Noise::off()).unwrap();
    near("hidden", &stock.values(&x).unwrap(), &numbers("hidden"));
    let l = loss(&mut stock, &config, &windows, &targets, &drawn, &mut Noise::off()).unwrap();
    near("loss", &stock.values(&l).unwrap(), &golden.adam.losses[..1]);
    for (want, got) in gradients.tensors().iter().zip(stock.backward(&l).unwrap()) {
        let got = got.unwrap().flatten_all().unwrap().to_vec1().unwrap();
        near(&want.name, &got, &want.data);
    }

    // fast engine, with three steps of Adam
    let mut workspace = Workspace::default();
    let mut tape = Tape::new(&weights, &mut workspace);
    let x = hidden(&mut tape, &config, &windows, &mut Noise::off()).unwrap();
    near("hidden", &tape.values(&x).unwrap(), &numbers("hidden"));
    drop(tape);
    let mut adam = Adam::new(AdamConfig {
        weight_decay: golden.adam.weight_decay,
        ..AdamConfig::default()
    });
    assert_eq!(golden.adam.losses.len(), 4);
    for (step, want) in golden.adam.losses.iter().enumerate() {
        let mut tape = Tape::new(&weights, &mut workspace);
        let l = loss(&mut tape, &config, &windows, &targets, &drawn, &mut Noise::off()).unwrap();
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
        let lr = golden.adam.lr;
        adam.step(&mut weights, workspace.gradients(), lr, 1.0).unwrap();
    }
    for (want, got) in after.tensors().iter().zip(weights.tensors()) {
        near(&want.name, &got.data, &want.data);
    }
}

/// Relative to the tensor's largest number.
fn near(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (g, w) in got.iter().zip(want) {
        assert!((g - w).abs() <= 1e-4 * largest, "{what}: {g}, not {w}");
    }
}
