//! What `ops/parity.rs` cannot reach: kernels behind products in bf16, and losses by several chunks of logits.

use super::simulator::{device, kernels};
use super::*;
use crate::ops::Dropout;
use crate::random::Key;
use candle_core::Var;

fn draw(seed: u64, rows: usize, columns: usize) -> Tensor {
    let key = Key::new(seed);
    let data: Vec<f32> = (0..(rows * columns) as u64).map(|i| key.normal(i) as f32).collect();
    Tensor::from_vec(data, (rows, columns), &device()).unwrap()
}

fn numbers(x: &Tensor) -> Vec<f32> {
    let wide = x.to_dtype(DType::F32).unwrap();
    wide.flatten_all().unwrap().to_vec1().unwrap()
}

fn within(what: &str, got: &Tensor, want: &Tensor, share: f32) {
    let (got, want) = (numbers(got), numbers(want));
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
    for (i, (g, w)) in got.iter().zip(&want).enumerate() {
        let near = (g - w).abs() <= share * scale;
        assert!(near, "{what}[{i}]: {g}, not {w} (largest {scale})");
    }
}

/// What a kernel gives for matrices in bf16, and for the same numbers in f32.
fn both(what: &str, inputs: &[Tensor], run: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>) {
    let half: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::BF16).unwrap()).collect();
    let wide: Vec<Tensor> = half.iter().map(|x| x.to_dtype(DType::F32).unwrap()).collect();
    for (got, want) in run(&half).unwrap().iter().zip(&run(&wide).unwrap()) {
        within(what, got, want, 2e-2);
    }
}

#[test]
fn bf16_is_f32_rounded() {
    let Some(kernels) = kernels() else {
        return;
    };
    let dropout = Dropout {
        probability: 0.3,
        key: Key::new(3),
    };
    for (rows, columns) in [(7, 1), (5, 33), (67, 131), (3, 1030)] {
        let bias = draw(1, 1, columns);
        let like = |x: &Tensor| unwritten(x, x.shape(), x.dtype());
        let (x, y) = (draw(2, rows, columns), draw(3, rows, columns));
        for relu in [false, true] {
            both("linear", &[x.clone(), y.clone()], |of| {
                let out = like(&of[0])?;
                kernels.linear_end(&of[0], Some(&bias), &out, relu, dropout)?;
                let back = kernels.linear_end_back(&out, &of[1], relu, dropout)?;
                let sums = kernels.column_sums(&of[1])?;
                Ok(vec![out, back, sums])
            });
        }
        both("swiglu", &[x.clone(), y.clone()], |of| {
            Ok(vec![
                kernels.swiglu(&of[0], &of[1], DType::BF16)?,
                kernels.swiglu(&of[0], &of[1], DType::F32)?,
            ])
        });
        both("scaled", &[x.clone(), y.clone()], |of| {
            let sum = of[1].to_dtype(DType::F32)?.copy()?;
            kernels.add_onto(&of[0], &sum, false)?;
            let over = unwritten(&sum, sum.shape(), DType::F32)?;
            kernels.add_onto(&of[0], &over, true)?;
            let factor = Tensor::from_vec(vec![-1.7f32], (1, 1), &device())?;
            let narrow = kernels.scaled(&of[0], &factor, DType::BF16)?;
            Ok(vec![sum, over, narrow, kernels.scaled(&of[0], &factor, DType::F32)?])
        });
        both("loss", std::slice::from_ref(&x), |of| {
            let codes: Vec<u32> = (0..rows).map(|i| (i * 5 % columns) as u32).collect();
            let codes = Tensor::from_vec(codes, rows, &device())?;
            let losses = unwritten(&of[0], rows, DType::F32)?;
            let logits = of[0].copy()?;
            kernels.loss_in_place(&logits, &codes, &losses, 0.5)?;
            Ok(vec![losses, logits])
        });
        both("adapt", &[x, draw(4, rows, 5), draw(5, columns, 5)], |of| {
            let out = like(&of[0])?;
            kernels.adapt(&of[0], Some(&bias), (&of[1], &of[2]), 0.4, &out)?;
            Ok(vec![out])
        });
    }
}

#[test]
fn logits_by_chunks_give_what_all_of_them_give() {
    let Some(kernels) = kernels() else {
        return;
    };
    let (rows, n, d) = (23, 61, 5);
    let codes: Vec<u32> = (0..rows as u32).map(|i| i * 31 % n as u32).collect();
    let codes = Tensor::from_vec(codes, rows, &device()).unwrap();
    for frozen in [false, true] {
        let run = |room: usize| {
            let x = Var::from_tensor(&draw(1, rows, d)).unwrap();
            let w = Var::from_tensor(&draw(2, n, d)).unwrap();
            let table = if frozen {
                w.as_detached_tensor()
            } else {
                w.as_tensor().clone()
            };
            let loss = kernels.linear_cross_entropy((x.as_tensor(), &table), &codes, DType::F32, room);
            let loss = (loss.unwrap() * 0.7).unwrap();
            let gradients = loss.backward().unwrap();
            let dw = gradients.get(w.as_tensor()).cloned();
            assert_eq!(dw.is_none(), frozen);
            (loss, gradients.get(x.as_tensor()).unwrap().clone(), dw.unwrap_or(table))
        };
        let whole = run(LOGITS);
        for room in [1, 5 * 4 * n, 22 * 4 * n] {
            let chunks = run(room);
            within("loss", &chunks.0, &whole.0, 1e-6);
            within("dx", &chunks.1, &whole.1, 1e-5);
            within("dw", &chunks.2, &whole.2, 1e-5);
        }
    }
}

/// Gradients of the third and later inputs come by way of another node.
#[test]
fn many_inputs_have_their_gradients() {
    let inputs: Vec<Var> = (0..6).map(|i| Var::from_tensor(&draw(i, 2, 3)).unwrap()).collect();
    let mut of: Vec<Tensor> = inputs.iter().map(|x| x.as_tensor().clone()).collect();
    of[4] = of[4].detach();
    of[5] = (&of[5] * 3.0).unwrap();
    let of: Vec<&Tensor> = of.iter().collect();
    let back = |of: &[&Tensor], _: &Tensor, gradient: &Tensor| -> Result<Vec<Option<Tensor>>> {
        let times = |(i, x): (usize, &&Tensor)| match x.track_op() {
            true => Ok(Some((gradient * (i + 1) as f64)?)),
            false => Ok(None),
        };
        of.iter().enumerate().map(times).collect()
    };
    let y = result_of("test", &of, (2, 3), DType::F32, back).unwrap();
    let loss = y.sum_all().unwrap();
    for _ in 0..2 {
        let gradients = loss.backward().unwrap();
        for (i, (x, want)) in inputs.iter().zip([1.0, 2.0, 3.0, 4.0, 0.0, 18.0]).enumerate() {
            match gradients.get(x.as_tensor()) {
                Some(gradient) => assert_eq!(numbers(gradient), [want; 6], "{i}"),
                None => assert_eq!(i, 4),
            }
        }
    }
}
