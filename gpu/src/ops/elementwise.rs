//! Dropout, bias and residual kernels on rows.

use super::Dropout;
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
    /// `out += x`.
    pub(crate) fn add_to(out: &mut [f32], x: &[f32]) {
        for (o, x) in out.iter_mut().zip(x) { *o += x; }
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
