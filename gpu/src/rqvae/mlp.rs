//! A stack of linear maps with ReLU between them, forward and backward by hand. Shape legend: B rows, I inputs, O outputs.

use rayon::prelude::*;

use crate::ops::matmul::{Scratch, View, multiply, multiply_long};
use crate::weights::{Declaration, Init, Weight};

/// Rows whose columns one task sums; fixed, so sums do not depend on threads.
const TASK_ROWS: usize = 128;

/// The widths of a stack: input, hidden layers, output. One width is the identity.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mlp {
    widths: Vec<usize>,
    /// Place of its first weight among all weights.
    first: usize,
}

/// What a forward pass leaves for the backward pass, and memory to use again.
#[derive(Default)]
pub(super) struct Activations {
    /// The output [B, O] of every map.
    outputs: Vec<Vec<f32>>,
    gradients: [Vec<f32>; 2],
    scratch: Scratch,
}

impl Mlp {
    pub(super) fn new(widths: Vec<usize>, first: usize) -> Self {
        Mlp { widths, first }
    }

    /// Number of weights: a matrix and a bias per map.
    pub(super) fn tensors(&self) -> usize {
        2 * (self.widths.len() - 1)
    }

    /// Names, shapes and starts: normal with the standard deviation of Glorot and Bengio 2010, biases zero.
    pub(super) fn declarations(&self, name: &str) -> Vec<Declaration> {
        let maps = self.widths.windows(2).enumerate();
        maps.flat_map(|(at, pair)| {
            let (i, o) = (pair[0], pair[1]);
            let matrix = Declaration {
                name: format!("{name}.{at}.weight"),
                shape: vec![o, i],
                init: Init::Normal((2.0 / (i + o) as f64).sqrt()),
            };
            let bias = Declaration {
                name: format!("{name}.{at}.bias"),
                shape: vec![o],
                init: Init::Constant(0.0),
            };
            [matrix, bias]
        })
        .collect()
    }

    /// The output [B, O] of `x_BI`.
    pub(super) fn forward<'a>(&self, weights: &[Weight], x_bi: &'a [f32], to: &'a mut Activations) -> &'a [f32] {
        let rows = x_bi.len() / self.widths[0];
        let maps = self.widths.len() - 1;
        to.outputs.resize_with(maps, Vec::new);
        for map in 0..maps {
            let (i, o) = (self.widths[map], self.widths[map + 1]);
            let (before, rest) = to.outputs.split_at_mut(map);
            let input = before.last().map_or(x_bi, |output| output.as_slice());
            let (matrix, bias_o) = self.map(weights, map);
            let relu = map + 1 < maps;
            let output = &mut rest[0];
            output.resize(rows * o, 0.0);
            let (left, right) = (View::rows(input, i), View::rows(matrix, i).t());
            multiply(
                (rows, o, i),
                left,
                right,
                output,
                false,
                &mut to.scratch,
                |_, rows_bo| {
                    for row_o in rows_bo.chunks_exact_mut(o) {
                        for (y, b) in row_o.iter_mut().zip(bias_o) {
                            let value = *y + b;
                            *y = if relu && value < 0.0 { 0.0 } else { value };
                        }
                    }
                },
            );
        }
        to.outputs.last().map_or(x_bi, |output| output.as_slice())
    }

    /// Gradients of the weights, from `dy_BO` of the output of the forward pass on `x_BI` that filled `from`; and of the
    /// input [B, I] where it is wanted.
    pub(super) fn backward(
        &self,
        weights: &[Weight],
        x_bi: &[f32],
        dy_bo: &[f32],
        from: &mut Activations,
        gradients: &mut [Vec<f32>],
        wants_input: bool,
    ) -> Vec<f32> {
        let rows = x_bi.len() / self.widths[0];
        let [mut own, mut next] = std::mem::take(&mut from.gradients);
        own.clear();
        own.extend_from_slice(dy_bo);
        for map in (0..self.widths.len() - 1).rev() {
            let (i, o) = (self.widths[map], self.widths[map + 1]);
            let input = if map == 0 { x_bi } else { &from.outputs[map - 1] };
            let (matrix, _) = self.map(weights, map);
            let [d_matrix, d_bias] = &mut gradients[self.first + 2 * map..][..2] else {
                unreachable!("a map has two weights");
            };
            let (left, right) = (View::rows(&own, o).t(), View::rows(input, i));
            multiply_long((o, i, rows), left, right, d_matrix, false, &mut from.scratch);
            column_sums(&own, o, d_bias);
            if map > 0 || wants_input {
                next.resize(rows * i, 0.0);
                let (left, right) = (View::rows(&own, o), View::rows(matrix, i));
                multiply(
                    (rows, i, o),
                    left,
                    right,
                    &mut next,
                    false,
                    &mut from.scratch,
                    |first, rows| {
                        if map > 0 {
                            let output = &input[first * i..][..rows.len()];
                            let dead = |(d, y): (&mut f32, &f32)| *d = if *y > 0.0 { *d } else { 0.0 };
                            rows.iter_mut().zip(output).for_each(dead);
                        }
                    },
                );
                std::mem::swap(&mut own, &mut next);
            }
        }
        let input = if wants_input { own.clone() } else { Vec::new() };
        from.gradients = [own, next];
        input
    }

    fn map<'a>(&self, weights: &'a [Weight], map: usize) -> (&'a [f32], &'a [f32]) {
        let at = self.first + 2 * map;
        (&weights[at].data, &weights[at + 1].data)
    }
}

/// Sums of the columns of `x_BO`, rows in order.
fn column_sums(x_bo: &[f32], o: usize, to_o: &mut [f32]) {
    let sum = |rows: &[f32]| {
        let mut sums = vec![0f32; o];
        for row_o in rows.chunks_exact(o) {
            sums.iter_mut().zip(row_o).for_each(|(s, x)| *s += x);
        }
        sums
    };
    let parts: Vec<Vec<f32>> = x_bo.par_chunks(TASK_ROWS * o).map(sum).collect();
    to_o.fill(0.0);
    for part in parts {
        to_o.iter_mut().zip(part).for_each(|(s, x)| *s += x);
    }
}
