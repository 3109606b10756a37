//! Dropout, bias and residual kernels on rows.

use super::Dropout;
use super::attention::exp;
use super::isa::vectorized;
use crate::random::bits32;
use rayon::prelude::*;

/// Elements one task works on; fixed, so results do not depend on threads.
pub(crate) const TASK: usize = 16 * 1024;

impl Dropout {
    /// Multiplies `values`, which start at element `first` of the matrix, by the mask.
    pub(crate) fn apply(self, first: usize, values: &mut [f32]) {
        if self.probability > 0.0 {
            apply_mask(self.key.halves(), self.threshold(), self.scale(), first as u32, values);
        }
    }

    /// The mask itself: 1 where element `first + i` is kept.
    pub(crate) fn mask(self, first: usize, out: &mut [u8]) {
        let (halves, threshold) = (self.key.halves(), self.threshold());
        for (i, out) in out.iter_mut().enumerate() {
            *out = u8::from(bits32(halves, (first + i) as u32) >= threshold);
        }
    }
}

vectorized! {
    fn apply_mask(halves: (u32, u32), threshold: u32, scale: f32, first: u32, values: &mut [f32]) {
        for (i, value) in values.iter_mut().enumerate() {
            let keep = bits32(halves, first.wrapping_add(i as u32)) >= threshold;
            *value = if keep { *value * scale } else { 0.0 };
        }
    }
}

vectorized! {
    /// Adds the bias to every row, then cuts at 0 if `relu`.
    pub(crate) fn bias_relu(rows: &mut [f32], bias: &[f32], columns: usize, relu: bool) {
        for row in rows.chunks_exact_mut(columns) {
            if !bias.is_empty() {
                for (x, b) in row.iter_mut().zip(bias) { *x += b; }
            }
            if relu {
                for x in row.iter_mut() { *x = if *x > 0.0 { *x } else { 0.0 }; }
            }
        }
    }
}

vectorized! {
    /// Gradient through relu and dropout from the result alone: 0 where the result is 0, else times `scale`.
    pub(crate) fn relu_backward(grad: &mut [f32], result: &[f32], scale: f32) {
        for (g, &y) in grad.iter_mut().zip(result) { *g = if y > 0.0 { *g * scale } else { 0.0 }; }
    }
}

vectorized! {
    /// `gate / (1 + exp(-gate)) * up`.
    fn swiglu_task(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, g), u) in out.iter_mut().zip(gate).zip(up) { *out = g / (1.0 + exp(-g)) * u; }
    }
}

vectorized! {
    /// Gradients of both factors of [`swiglu`].
    fn swiglu_back_task(gate: &[f32], up: &[f32], grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for i in 0..grad.len() {
            let s = 1.0 / (1.0 + exp(-gate[i]));
            let silu = gate[i] * s;
            dup[i] = grad[i] * silu;
            dgate[i] = grad[i] * up[i] * (s + silu * (1.0 - s));
        }
    }
}

/// `silu(gate) * up`, in parallel.
pub(crate) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(TASK)
        .zip(gate.par_chunks(TASK).zip(up.par_chunks(TASK)))
        .for_each(|(out, (gate, up))| swiglu_task(gate, up, out));
}

/// Gradients of both factors, in parallel.
pub(crate) fn swiglu_backward((gate, up): (&[f32], &[f32]), grad: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    dgate
        .par_chunks_mut(TASK)
        .zip(dup.par_chunks_mut(TASK))
        .zip(
            gate.par_chunks(TASK)
                .zip(up.par_chunks(TASK))
                .zip(grad.par_chunks(TASK)),
        )
        .for_each(|((dgate, dup), ((gate, up), grad))| swiglu_back_task(gate, up, grad, dgate, dup));
}

vectorized! {
    /// `out += x`.
    pub(crate) fn add_to(out: &mut [f32], x: &[f32]) {
        for (o, x) in out.iter_mut().zip(x) { *o += x; }
    }
}

/// Sums of products of rows.
pub(crate) fn row_dots(x: &[f32], y: &[f32], columns: usize, out: &mut [f32]) {
    out.par_iter_mut()
        .zip(x.par_chunks(columns).zip(y.par_chunks(columns)))
        .with_min_len(64)
        .for_each(|(out, (x, y))| *out = super::norm::dot(x, y));
}

/// `out (+)= x` with every row times its own factor.
pub(crate) fn scale_rows(x: &[f32], factors: &[f32], columns: usize, out: &mut [f32], accumulate: bool) {
    out.par_chunks_mut(columns)
        .zip(x.par_chunks(columns).zip(factors))
        .with_min_len(64)
        .for_each(|(out, (x, factor))| {
            for (out, x) in out.iter_mut().zip(x) {
                let value = x * factor;
                *out = if accumulate { *out + value } else { value };
            }
        });
}

/// `x *= factor`, in parallel; nothing to do for 1.
pub(crate) fn rescale(x: &mut [f32], factor: f32) {
    if factor != 1.0 {
        x.par_chunks_mut(TASK)
            .for_each(|x| x.iter_mut().for_each(|x| *x *= factor));
    }
}

/// `out = dropout(x)`, in parallel.
pub(crate) fn dropout_rows(x: &[f32], out: &mut [f32], dropout: Dropout) {
    out.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK))
        .enumerate()
        .for_each(|(task, (out, x))| {
            out.copy_from_slice(x);
            dropout.apply(task * TASK, out);
        });
}

/// `out = x + dropout(y)`, in parallel.
pub(crate) fn residual_rows(x: &[f32], y: &[f32], out: &mut [f32], dropout: Dropout) {
    out.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK).zip(y.par_chunks(TASK)))
        .enumerate()
        .for_each(|(task, (out, (x, y)))| {
            out.copy_from_slice(y);
            dropout.apply(task * TASK, out);
            add_to(out, x);
        });
}

/// `out += x`, in parallel.
pub(crate) fn add_rows(out: &mut [f32], x: &[f32]) {
    out.par_chunks_mut(TASK)
        .zip(x.par_chunks(TASK))
        .for_each(|(out, x)| add_to(out, x));
}

/// Column sums of `x` [T, D] added to `out` [D]: fixed groups of rows, their sums added in order.
pub(crate) fn column_sums(x: &[f32], columns: usize, out: &mut [f32]) {
    let partial: Vec<Vec<f32>> = x
        .par_chunks(128 * columns)
        .map(|rows| {
            let mut sum = vec![0.0; columns];
            for row in rows.chunks_exact(columns) {
                add_to(&mut sum, row);
            }
            sum
        })
        .collect();
    for sum in partial {
        add_to(out, &sum);
    }
}
