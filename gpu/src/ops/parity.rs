//! Every kernel against its stock twin, forward and backward, on odd sizes, and against itself on one thread.

use super::*;
use crate::weights::{Weight, Weights};
use candle_core::Device;

fn weights(shapes: &[(&str, usize, usize)]) -> Weights {
    let make = |(i, &(name, rows, columns)): (usize, &(&str, usize, usize))| Weight {
        name: name.into(),
        shape: vec![rows, columns],
        data: (0..(rows * columns) as u64)
            .map(|x| (Key::new(9).child(i as u64).normal(x) * 0.7) as f32)
            .collect(),
    };
    Weights::from_tensors(shapes.iter().enumerate().map(make).collect())
}

/// Runs a function on both engines: values and gradients of a weighted sum of the result must agree.
macro_rules! check {
    ($weights:expr, |$g:ident| $body:expr) => {{
        fn run<G: Graph>($g: &mut G) -> Result<(G::Node, G::Node)> {
            let y = $body;
            let (rows, columns) = $g.shape(&y);
            if (rows, columns) == (1, 1) {
                return Ok((y.clone(), y));
            }
            let codes: Vec<u32> = (0..rows as u32).map(|r| (r * 7 + 3) % columns as u32).collect();
            let loss = $g.cross_entropy(&y, codes.into())?;
            Ok((y, loss))
        }
        let weights = $weights;
        let fast = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let mut workspace = Workspace::default();
                let mut tape = Tape::new(&weights, &mut workspace);
                let (y, loss) = run(&mut tape).unwrap();
                let values = tape.values(&y).unwrap();
                tape.backward(loss).unwrap();
                (values, workspace.gradients().to_vec())
            })
        };
        let (values, gradients) = fast(1);
        for threads in [2, 3, 7] {
            assert_eq!((&values, &gradients), (&fast(threads).0, &fast(threads).1));
        }
        let mut stock = Stock::new(&weights, &Device::Cpu).unwrap();
        let (y, loss) = run(&mut stock).unwrap();
        close("values", &values, &stock.values(&y).unwrap());
        for (i, gradient) in stock.backward(&loss).unwrap().into_iter().enumerate() {
            let name = &weights.tensors()[i].name;
            let want = match gradient {
                Some(g) => g.flatten_all().unwrap().to_vec1().unwrap(),
                None => vec![0.0; gradients[i].len()],
            };
            close(name, &gradients[i], &want);
        }
    }};
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= 2e-5 * scale,
            "{what}[{i}]: {g}, not {w} (largest {scale})"
        );
    }
}

fn dropout(probability: f32) -> Dropout {
    Dropout {
        probability,
        key: Key::new(5),
    }
}

fn attention(queries: &[usize], keys: &[usize], causal: bool, probability: f32) -> Attention {
    Attention {
        heads: 3,
        key_dim: 7,
        queries: queries.into(),
        keys: keys.into(),
        causal,
        buckets: RelativeBuckets {
            buckets: 32,
            max_distance: 128,
            bidirectional: !causal,
        },
        dropout: dropout(probability),
    }
}

#[test]
fn linear() {
    check!(weights(&[("x", 33, 13), ("w", 7, 13), ("b", 1, 7)]), |g| {
        let (x, w, b) = (g.weight("x")?, g.weight("w")?, g.weight("b")?);
        g.linear(&x, &w, Some(&b), true, dropout(0.3))?
    });
    check!(weights(&[("x", 131, 33), ("w", 13, 33)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        g.linear(&x, &w, None, false, dropout(0.2))?
    });
    check!(weights(&[("x", 300, 7), ("w", 33, 7), ("b", 1, 33)]), |g| {
        let (x, w, b) = (g.weight("x")?, g.weight("w")?, g.weight("b")?);
        g.linear(&x, &w, Some(&b), false, Dropout::off())?
    });
}

#[test]
fn rms_norm() {
    check!(weights(&[("x", 133, 33), ("w", 1, 33)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        g.rms_norm(&x, &w, 1e-6)?
    });
}

#[test]
fn dropout_and_residual() {
    check!(weights(&[("x", 13, 7), ("y", 13, 7)]), |g| {
        let (x, y) = (g.weight("x")?, g.weight("y")?);
        let x = g.dropout(&x, dropout(0.4))?;
        let z = g.residual(&x, &y, dropout(0.2))?;
        g.residual(&z, &z, dropout(0.5))?
    });
}

#[test]
fn stack_gather_and_sum() {
    check!(weights(&[("a", 13, 7), ("b", 1, 7), ("c", 40, 7)]), |g| {
        let parts = [g.weight("a")?, g.weight("b")?];
        let table = g.stack(&parts)?;
        let rows: Vec<u32> = (0..40).map(|i| (i * i) % 14).collect();
        let x = g.gather(&table, rows.into())?;
        let c = g.weight("c")?;
        g.sum(&[x, c])?
    });
}

#[test]
fn self_attention_with_bias() {
    check!(weights(&[("qkv", 54, 63), ("bias", 32, 3)]), |g| {
        let (qkv, bias) = (g.weight("qkv")?, g.weight("bias")?);
        let offsets = [0, 1, 8, 21, 54];
        g.self_attention(&qkv, Some(&bias), &attention(&offsets, &offsets, false, 0.0))?
    });
    check!(weights(&[("qkv", 54, 63), ("bias", 32, 3)]), |g| {
        let (qkv, bias) = (g.weight("qkv")?, g.weight("bias")?);
        let offsets = [0, 1, 8, 21, 54];
        g.self_attention(&qkv, Some(&bias), &attention(&offsets, &offsets, true, 0.3))?
    });
}

#[test]
fn cross_attention() {
    check!(weights(&[("q", 12, 21), ("kv", 54, 42)]), |g| {
        let (q, kv) = (g.weight("q")?, g.weight("kv")?);
        g.cross_attention(&q, &kv, &attention(&[0, 4, 5, 8, 12], &[0, 1, 8, 21, 54], false, 0.25))?
    });
}

#[test]
fn cross_entropy() {
    check!(weights(&[("x", 13, 33)]), |g| {
        let x = g.weight("x")?;
        g.cross_entropy(&x, (0..13).map(|i| i * 2).collect::<Vec<_>>().into())?
    });
}

#[test]
fn misuse_is_an_error() {
    let weights = weights(&[("x", 13, 7), ("w", 5, 6)]);
    let mut workspace = Workspace::default();
    let mut tape = Tape::new(&weights, &mut workspace);
    let (x, w) = (tape.weight("x").unwrap(), tape.weight("w").unwrap());
    let text = tape
        .linear(&x, &w, None, false, Dropout::off())
        .unwrap_err()
        .to_string();
    assert_eq!(text, "shape mismatch in linear: expected (5, 7), got (5, 6)");
    assert!(tape.gather(&x, vec![13].into()).is_err());
    assert!(tape.cross_entropy(&x, vec![7; 13].into()).is_err());
    assert!(tape.weight("y").is_err());
}
