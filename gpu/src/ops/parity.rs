//! Every kernel against its stock twin, forward and backward, on odd sizes, and against itself on one thread.
//! SLUICE_DEVICE (`cpu`) says where the twin runs: with `cuda` stock operations and kernels of a GPU are held to the CPU.

use super::*;
use crate::frozen::Frozen;
use crate::kernels::simulator::{device, kernels};
use crate::weights::{Weight, Weights};

/// The stock engine by stock operations alone, and with the kernels for GPUs.
fn twins(weights: &Weights) -> Vec<Stock> {
    let stock = || Stock::new(weights, &device()).unwrap();
    let with_kernels = kernels().map(|kernels| stock().with_kernels(Some(kernels)));
    std::iter::once(stock().with_kernels(None))
        .chain(with_kernels)
        .collect()
}

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
        for mut stock in twins(&weights) {
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
        }
    }};
}

fn close(what: &str, got: &[f32], want: &[f32]) {
    close_within(2e-5, what, got, want);
}

fn close_within(tolerance: f32, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * scale,
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
        scale: 1.0,
        buckets: Some(RelativeBuckets {
            buckets: 32,
            max_distance: 128,
            bidirectional: !causal,
        }),
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

/// Widths around those of a warp, and of what one warp takes of a row.
const WIDTHS: [usize; 5] = [1, 31, 33, 1025, 3000];

#[test]
fn norms_of_any_width() {
    for width in WIDTHS {
        check!(weights(&[("x", 13, width), ("w", 1, width)]), |g| {
            let (x, w) = (g.weight("x")?, g.weight("w")?);
            let one = g.rms_norm(&x, &w, 1e-6)?;
            let two = g.layer_norm(&x, &w, 1e-2)?;
            g.sum(&[one, two])?
        });
    }
    check!(weights(&[("x", 4500, 5), ("w", 1, 5)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        g.rms_norm(&x, &w, 1e-6)?
    });
}

#[test]
fn elements_of_any_width() {
    for width in WIDTHS {
        let shapes = [("x", 13, width), ("y", 13, width), ("w", width, 13), ("b", 1, width)];
        check!(weights(&shapes), |g| {
            let (x, y) = (g.weight("x")?, g.weight("y")?);
            let (w, b) = (g.weight("w")?, g.weight("b")?);
            let z = g.residual(&x, &y, dropout(0.3))?;
            let z = g.swiglu(&z, &x)?;
            let side = g.gather(&w, (0..13).map(|i| i % g.shape(&w).0 as u32).collect())?;
            let z = g.residual(&z, &y, Dropout::off())?;
            let end = g.linear(&side, &w, Some(&b), true, dropout(0.2))?;
            let masked = g.linear(&side, &w, Some(&b), false, dropout(0.4))?;
            g.sum(&[z, end, masked])?
        });
    }
}

/// The bias's gradient adds more rows than one group has.
#[test]
fn linear_of_many_rows() {
    check!(weights(&[("x", 1500, 3), ("w", 40, 3), ("b", 1, 40)]), |g| {
        let (x, w, b) = (g.weight("x")?, g.weight("w")?, g.weight("b")?);
        g.linear(&x, &w, Some(&b), true, Dropout::off())?
    });
}

#[test]
fn losses_of_any_width() {
    for width in WIDTHS {
        let shapes = [("x", 13, width), ("own", 13, 1), ("w", 40, width)];
        check!(weights(&shapes), |g| {
            let (x, own, w) = (g.weight("x")?, g.weight("own")?, g.weight("w")?);
            let columns = g.shape(&x).1 as u32;
            let plain = g.cross_entropy(&x, (0..13).map(|i| i * 5 % columns).collect())?;
            let sampled = g.sampled_cross_entropy(&own, &x, Arc::new([(3, columns - 1), (5, 0)]))?;
            let open = g.sampled_cross_entropy(&own, &x, Arc::new([]))?;
            let binary = g.binary_cross_entropy(&x, true)?;
            let table = g.linear_cross_entropy(&x, &w, (0..13).map(|i| i * 3).collect())?;
            g.sum(&[plain, sampled, open, binary, table])?
        });
    }
    check!(weights(&[("x", 5, 7), ("w", 3000, 7)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        g.linear_cross_entropy(&x, &w, (0..5).map(|i| i * 599).collect())?
    });
}

/// With products in bf16, what is no product: the kernels against the stock operations.
#[test]
fn bf16() {
    let Some(kernels) = kernels() else {
        return;
    };
    type Run = fn(&mut Stock, &[candle_core::Tensor]) -> Result<candle_core::Tensor>;
    let runs: [(&str, Run); 11] = [
        ("heads", |g, x| {
            let shape = Heads {
                key_dim: 4,
                epsilon: 1e-6,
                positions: (0..x[0].dim(0)? as u32).collect(),
                rotations: Arc::new(crate::prenorm::Frequencies::plain(4, 100.0).table(40)),
            };
            let source = |i: usize, norm: bool, repeat| -> Result<Source<candle_core::Tensor>> {
                Ok(Source {
                    x: x[i].narrow(1, 0, 32)?,
                    norm: norm.then(|| x[2].narrow(1, 0, 4)).transpose()?,
                    rotate: norm,
                    repeat,
                })
            };
            g.heads(
                &[source(0, true, 1)?, source(1, true, 3)?, source(0, false, 2)?],
                &shape,
            )
        }),
        ("cross entropy", |g, x| {
            g.cross_entropy(&x[0], (0..x[0].dim(0)? as u32).map(|i| i % 33).collect())
        }),
        ("rms norm", |g, x| g.rms_norm(&x[0], &x[2], 1e-5)),
        ("layer norm", |g, x| g.layer_norm(&x[0], &x[2], 1e-5)),
        ("residual", |g, x| g.residual(&x[0], &x[1], dropout(0.3))),
        ("residual of f32", |g, x| {
            let stream = x[0].to_dtype(candle_core::DType::F32)?;
            g.residual(&stream, &x[1], dropout(0.3))
        }),
        ("residual without dropout", |g, x| {
            g.residual(&x[0], &x[1], Dropout::off())
        }),
        ("swiglu", |g, x| g.swiglu(&x[0], &x[1])),
        ("swiglu of two types", |g, x| {
            g.swiglu(&x[0].to_dtype(candle_core::DType::F32)?, &x[1])
        }),
        ("binary", |g, x| g.binary_cross_entropy(&x[0], false)),
        ("sampled", |g, x| {
            g.sampled_cross_entropy(&x[0].narrow(1, 0, 1)?, &x[1], Arc::new([(0, 0), (3, 2)]))
        }),
    ];
    for (rows, columns) in [(37, 33), (5, 1030)] {
        let all = weights(&[("x", rows, columns), ("y", rows, columns), ("w", 1, columns)]);
        for (name, run) in &runs {
            let result = |kernels: Option<crate::kernels::Kernels>| {
                let stock = Stock::new(&all, &device()).unwrap();
                let mut stock = stock.with_precision(Precision::Bf16).with_kernels(kernels);
                let half = |name: &str, stock: &mut Stock| {
                    let x = stock.weight(name).unwrap();
                    x.to_dtype(candle_core::DType::BF16).unwrap()
                };
                let inputs = ["x", "y", "w"].map(|name| half(name, &mut stock));
                let y = run(&mut stock, &inputs).unwrap();
                let values = stock.values(&y).unwrap();
                let loss = match y.elem_count() {
                    1 => y.clone(),
                    _ => {
                        let codes = (0..rows as u32).map(|r| r * 7 % columns as u32).collect();
                        stock.cross_entropy(&y, codes).unwrap()
                    }
                };
                let gradients = stock.backward(&loss).unwrap();
                let flat = |g: Option<candle_core::Tensor>| match g {
                    Some(g) => g.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                    None => vec![],
                };
                (y.dtype(), values, gradients.into_iter().map(flat).collect::<Vec<_>>())
            };
            let (got, want) = (result(Some(kernels.clone())), result(None));
            assert_eq!(got.0, want.0, "{name}");
            close_within(2e-2, name, &got.1, &want.1);
            for (got, want) in got.2.iter().zip(&want.2) {
                close_within(2e-2, name, got, want);
            }
        }
    }
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

/// Sequences around the edges of tiles: of every width of head, of queries that are the last of their sequence.
#[test]
fn attention_in_tiles() {
    fn shape(heads: usize, key_dim: usize, queries: &[usize], keys: &[usize], causal: bool) -> Attention {
        Attention {
            heads,
            key_dim,
            scale: 0.3,
            ..attention(queries, keys, causal, 0.0)
        }
    }
    check!(weights(&[("qkv", 354, 42), ("bias", 32, 2)]), |g| {
        let (qkv, bias) = (g.weight("qkv")?, g.weight("bias")?);
        let offsets = [0, 1, 16, 32, 49, 112, 176, 241, 354];
        let shape = Attention {
            dropout: dropout(0.2),
            ..shape(2, 7, &offsets, &offsets, true)
        };
        g.self_attention(&qkv, Some(&bias), &shape)?
    });
    check!(weights(&[("qkv", 130, 192), ("bias", 32, 1)]), |g| {
        let (qkv, bias) = (g.weight("qkv")?, g.weight("bias")?);
        g.self_attention(&qkv, Some(&bias), &shape(1, 64, &[0, 130], &[0, 130], false))?
    });
    check!(weights(&[("q", 70, 48), ("kv", 196, 96)]), |g| {
        let (q, kv) = (g.weight("q")?, g.weight("kv")?);
        let shape = Attention {
            buckets: None,
            dropout: dropout(0.5),
            ..shape(1, 48, &[0, 5, 70], &[0, 66, 196], true)
        };
        g.cross_attention(&q, &kv, &shape)?
    });
    check!(weights(&[("q", 52, 256), ("kv", 66, 512)]), |g| {
        let (q, kv) = (g.weight("q")?, g.weight("kv")?);
        let shape = shape(2, 128, &[0, 17, 52], &[0, 65, 66], false);
        g.cross_attention(&q, &kv, &shape)?
    });
}

/// Kernels with products in bf16 against f32 on the same inputs, and twice the same to the bit.
#[test]
fn attention_in_bf16() {
    let rounded = |shapes: &[(&str, usize, usize)]| {
        let tensors = weights(shapes).tensors().to_vec().into_iter().map(|mut tensor| {
            tensor
                .data
                .iter_mut()
                .for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
            tensor
        });
        Weights::from_tensors(tensors.collect())
    };
    let flat = |x: &candle_core::Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (key_dim, causal, probability) in [(7, false, 0.0), (64, true, 0.3), (128, false, 0.2)] {
        let offsets = [0, 1, 17, 82];
        let shape = Attention {
            heads: 2,
            key_dim,
            scale: (key_dim as f32).powf(-0.5),
            ..attention(&offsets, &offsets, causal, probability)
        };
        let weights = rounded(&[("qkv", 82, 6 * key_dim), ("bias", 32, 2)]);
        let run = |mut stock: Stock| {
            let (qkv, bias) = (stock.weight("qkv").unwrap(), stock.weight("bias").unwrap());
            let y = stock.self_attention(&qkv, Some(&bias), &shape).unwrap();
            let loss = stock
                .cross_entropy(&y, (0..82).map(|i| i * 5 % (2 * key_dim as u32)).collect())
                .unwrap();
            let gradients = stock.backward(&loss).unwrap().into_iter();
            let mut found = vec![stock.values(&y).unwrap()];
            found.extend(gradients.map(|x| flat(&x.unwrap())));
            found
        };
        let bf16 = |stock: Stock| stock.with_precision(Precision::Bf16);
        let mut engines = twins(&weights).into_iter();
        let want = run(engines.next().unwrap());
        let Some(got) = engines.next().map(|stock| run(bf16(stock))) else {
            return;
        };
        for ((what, got), want) in ["values", "qkv", "bias"].iter().zip(&got).zip(&want) {
            close_within(1e-2, &format!("{what} {key_dim}"), got, want);
        }
        let again = twins(&weights).into_iter().nth(1).map(|stock| run(bf16(stock)));
        assert_eq!(Some(got), again);
    }
}

#[test]
fn cross_entropy() {
    check!(weights(&[("x", 13, 33)]), |g| {
        let x = g.weight("x")?;
        g.cross_entropy(&x, (0..13).map(|i| i * 2).collect::<Vec<_>>().into())?
    });
}

#[test]
fn layer_norm() {
    check!(weights(&[("x", 133, 33), ("w", 1, 33)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        let y = g.layer_norm(&x, &w, 1e-6)?;
        g.layer_norm(&y, &w, 1e-2)?
    });
}

#[test]
fn scaled_causal_attention_without_bias() {
    check!(weights(&[("qkv", 54, 63)]), |g| {
        let qkv = g.weight("qkv")?;
        let offsets = [0, 1, 8, 21, 54];
        let shape = Attention {
            scale: 0.37,
            buckets: None,
            ..attention(&offsets, &offsets, true, 0.3)
        };
        g.self_attention(&qkv, None, &shape)?
    });
}

/// Queries are the last rows of their sequences.
#[test]
fn causal_attention_of_the_last_queries() {
    check!(weights(&[("q", 12, 21), ("kv", 54, 42)]), |g| {
        let (q, kv) = (g.weight("q")?, g.weight("kv")?);
        let shape = Attention {
            buckets: None,
            ..attention(&[0, 1, 5, 8, 12], &[0, 1, 8, 21, 54], true, 0.25)
        };
        g.cross_attention(&q, &kv, &shape)?
    });
}

#[test]
fn adapted() {
    let shapes = [
        ("x", 131, 33),
        ("w", 13, 33),
        ("b", 1, 13),
        ("down", 3, 33),
        ("up", 13, 3),
    ];
    check!(weights(&shapes), |g| {
        let (x, w, b) = (g.weight("x")?, g.weight("w")?, g.weight("b")?);
        let (down, up) = (g.weight("down")?, g.weight("up")?);
        let y = g.adapted(&x, &w, Some(&b), (&down, &up), 0.7, dropout(0.3))?;
        let z = g.adapted(&x, &w, None, (&down, &up), 1.5, Dropout::off())?;
        g.sum(&[y, z])?
    });
}

/// Several tiles, and more of the rank than one tile holds.
#[test]
fn adapted_by_tiles() {
    let shapes = [("x", 131, 13), ("w", 200, 13), ("down", 40, 13), ("up", 200, 40)];
    check!(weights(&shapes), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        let (down, up) = (g.weight("down")?, g.weight("up")?);
        g.adapted(&x, &w, None, (&down, &up), 0.3, dropout(0.3))?
    });
}

#[test]
fn heads() {
    check!(
        weights(&[("q", 133, 32), ("k", 133, 16), ("v", 133, 16), ("norm", 1, 8)]),
        |g| {
            let (q, k, v, norm) = (g.weight("q")?, g.weight("k")?, g.weight("v")?, g.weight("norm")?);
            let source = |x: &_, norm: Option<_>, rotate, repeat| Source {
                x: G::Node::clone(x),
                norm,
                rotate,
                repeat,
            };
            let shape = Heads {
                key_dim: 8,
                epsilon: 1e-6,
                positions: (0..133).map(|i| i * 3 % 40).collect(),
                rotations: Arc::new(crate::prenorm::Frequencies::plain(8, 100.0).table(40)),
            };
            let sources = [
                source(&q, Some(norm.clone()), true, 1),
                source(&k, Some(norm), true, 2),
                source(&v, None, false, 2),
                source(&v, None, true, 1),
            ];
            g.heads(&sources, &shape)?
        }
    );
}

#[test]
fn swiglu() {
    check!(weights(&[("gate", 133, 33), ("up", 133, 33)]), |g| {
        let (gate, up) = (g.weight("gate")?, g.weight("up")?);
        let y = g.swiglu(&gate, &up)?;
        g.swiglu(&y, &y)?
    });
}

/// What is frozen takes no gradient and changes none of the others.
#[test]
fn frozen_weights() {
    let all = weights(&[("x", 33, 13), ("w", 7, 13), ("table", 19, 13), ("gain", 1, 13)]);
    let part = |names: &[&str]| {
        let tensors = all
            .tensors()
            .iter()
            .filter(|tensor| names.contains(&tensor.name.as_str()));
        Weights::from_tensors(tensors.cloned().collect())
    };
    let (trained, frozen) = (part(&["w", "x"]), Frozen::from(part(&["table", "gain"])));
    let run = |weights: &Weights, frozen: Option<&Frozen>| {
        let mut workspace = Workspace::default();
        let mut tape = Tape::new(weights, &mut workspace).with_frozen(frozen);
        let g = &mut tape;
        let (x, w) = (g.weight("x").unwrap(), g.weight("w").unwrap());
        let (table, gain) = (g.weight("table").unwrap(), g.weight("gain").unwrap());
        let rows = g.gather(&table, (0..33).map(|i| i * 5 % 19).collect()).unwrap();
        let rows = g.rms_norm(&rows, &gain, 1e-6).unwrap();
        let x = g.residual(&rows, &x, dropout(0.2)).unwrap();
        let one = g
            .linear_cross_entropy(&x, &table, (0..33).map(|i| i % 19).collect())
            .unwrap();
        let y = g.linear(&x, &w, None, true, Dropout::off()).unwrap();
        let two = g.cross_entropy(&y, (0..33).map(|i| i % 7).collect()).unwrap();
        let still = g
            .linear_cross_entropy(&rows, &table, (0..33).map(|i| i % 19).collect())
            .unwrap();
        let loss = g.sum(&[one, two, still]).unwrap();
        tape.backward(loss).unwrap();
        workspace.gradients().to_vec()
    };
    let (whole, partly) = (run(&all, None), run(&trained, Some(&frozen)));
    assert_eq!(partly, [whole[0].clone(), whole[1].clone()]);
    assert!(whole[2].iter().any(|x| *x != 0.0));
}

#[test]
fn row_dots_and_binary_cross_entropy() {
    check!(weights(&[("x", 133, 33), ("y", 133, 33)]), |g| {
        let (x, y) = (g.weight("x")?, g.weight("y")?);
        let (dots, squares) = (g.row_dots(&x, &y)?, g.row_dots(&x, &x)?);
        let losses = [
            g.binary_cross_entropy(&dots, true)?,
            g.binary_cross_entropy(&squares, false)?,
        ];
        g.sum(&losses)?
    });
}

#[test]
fn sampled_cross_entropy() {
    check!(weights(&[("own", 13, 1), ("others", 13, 33)]), |g| {
        let (own, others) = (g.weight("own")?, g.weight("others")?);
        let hidden = [(0, 4), (0, 32), (5, 0), (12, 31)];
        g.sampled_cross_entropy(&own, &others, Arc::new(hidden))?
    });
}

/// Fewer rows than a task, several blocks, and a table that is no whole number of panels.
#[test]
fn linear_cross_entropy() {
    check!(weights(&[("x", 7, 13), ("w", 33, 13)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        let codes: Vec<u32> = (0..7).map(|i| i * 5 % 33).collect();
        g.linear_cross_entropy(&x, &w, codes.into())?
    });
    check!(weights(&[("x", 533, 33), ("w", 301, 33)]), |g| {
        let (x, w) = (g.weight("x")?, g.weight("w")?);
        let codes: Vec<u32> = (0..533).map(|i| i * i % 301).collect();
        let one = g.linear_cross_entropy(&x, &w, codes.into())?;
        let rows: Vec<u32> = (0..40).map(|i| i * 7).collect();
        let few = g.gather(&x, rows.clone().into())?;
        let two = g.linear_cross_entropy(&few, &w, rows.into())?;
        g.sum(&[one.clone(), two, one])?
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
    assert!(tape.row_dots(&x, &w).is_err());
    assert!(tape.linear_cross_entropy(&x, &w, vec![0; 13].into()).is_err());
    assert!(tape.linear_cross_entropy(&x, &x, vec![13; 13].into()).is_err());
    let own = tape.row_dots(&x, &x).unwrap();
    for hidden in [vec![(13, 0)], vec![(0, 7)], vec![(1, 1), (1, 1)]] {
        assert!(tape.sampled_cross_entropy(&own, &x, hidden.into()).is_err());
    }
}
