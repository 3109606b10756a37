//! Linear map and cross-entropy in one: logits against a large table live for a block of rows only.
//!
//! A block of logits is made, turned into its own gradient and used up while it is in the cache. Rows of a block are
//! split into fixed tasks, the table's gradient into fixed groups of table rows that add the blocks in order: sums
//! depend on no thread. Of a table that is too large to be packed as a whole, a window of rows is packed after another,
//! which changes no sum either.

use super::loss::cross_entropy_in_place;
use super::matmul::{Packed, Right, Scratch, View, multiply};
use crate::frozen::Numbers;
use rayon::prelude::*;

/// Rows whose logits are held together.
pub(crate) const BLOCK: usize = 240;
/// Rows of one task: two register tiles of the matrix product, whose logits fit the second-level cache.
const TASK: usize = 24;

/// Numbers of the largest table that is packed as a whole: 64 MiB, twice.
const WHOLE: usize = 1 << 24;
/// The same where many blocks share what is packed, and packing it for each of them would show.
const SHARED: usize = 1 << 28;
const MANY: usize = 4 * BLOCK;
/// Rows of a larger one that are packed together, whole depths of the matrix product.
const WINDOW: usize = 8192;

/// Rows of an [n, d] table that are packed together for so many rows of logits.
pub(crate) fn window(n: usize, d: usize, rows: usize) -> usize {
    let most = if rows < MANY { WHOLE } else { SHARED };
    if n * d <= most { n } else { WINDOW }
}

/// Memory that outlives a step.
#[derive(Default)]
pub(crate) struct Room {
    down: Packed,
    up: Packed,
    logits: Vec<f32>,
    scratch: Scratch,
}

impl Room {
    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> usize {
        self.down.bytes() + self.up.bytes() + 4 * self.logits.capacity() + self.scratch.bytes()
    }
}

/// Mean cross-entropy of `x_TD · w_NDᵀ` against a code per row; its gradients overwrite `dx` and `dw`. An empty `dw` is
/// that of a frozen table.
pub(crate) fn linear_cross_entropy(
    (x, w, d): (&[f32], Numbers, usize),
    codes: &[u32],
    dx: &mut [f32],
    dw: &mut [f32],
    room: &mut Room,
) -> f32 {
    windowed((x, w, d), window(w.len() / d, d, codes.len()), codes, dx, dw, room)
}

fn windowed(
    (x, w, d): (&[f32], Numbers, usize),
    window: usize,
    codes: &[u32],
    dx: &mut [f32],
    dw: &mut [f32],
    room: &mut Room,
) -> f32 {
    let (rows, n) = (codes.len(), w.len() / d);
    let Room {
        down,
        up,
        logits,
        scratch,
    } = room;
    let whole = window >= n;
    if whole {
        down.load(Right::rows(w, d).t(), d, n);
        up.load(Right::rows(w, d), n, d);
    }
    logits.resize(BLOCK.min(rows) * n, 0.0);
    let scale = 1.0 / rows as f32;
    let mut losses = vec![0f64; rows];
    for first in (0..rows).step_by(BLOCK) {
        let count = BLOCK.min(rows - first);
        let here = first..first + count;
        let x = &x[here.start * d..here.end * d];
        let logits = &mut logits[..count * n];
        let dx = &mut dx[here.start * d..here.end * d];
        let (codes, losses) = (&codes[here.clone()], &mut losses[here]);
        if whole {
            logits
                .par_chunks_mut(TASK * n)
                .zip(x.par_chunks(TASK * d))
                .zip(dx.par_chunks_mut(TASK * d))
                .zip(codes.par_chunks(TASK))
                .zip(losses.par_chunks_mut(TASK))
                .for_each_init(Vec::new, |left, ((((logits, x), dx), codes), losses)| {
                    down.multiply(View::rows(x, d), logits, left);
                    for ((row, &code), loss) in logits.chunks_exact_mut(n).zip(codes).zip(losses) {
                        *loss = cross_entropy_in_place(row, code as usize, scale);
                    }
                    up.multiply(View::rows(logits, n), dx, left);
                });
        } else {
            for from in (0..n).step_by(window) {
                let deep = window.min(n - from);
                down.load(Right::rows(w, d).skip_rows(from).t(), d, deep);
                let parts = logits.par_chunks_mut(TASK * n).zip(x.par_chunks(TASK * d));
                parts.for_each_init(Vec::new, |left, (logits, x)| {
                    down.multiply_into(View::rows(x, d), &mut logits[from..], n, false, left);
                });
            }
            let rows = logits.par_chunks_mut(n).zip(codes).zip(losses);
            rows.for_each(|((row, &code), loss)| *loss = cross_entropy_in_place(row, code as usize, scale));
            for from in (0..n).step_by(window) {
                let deep = window.min(n - from);
                up.load(Right::rows(w, d).skip_rows(from), deep, d);
                let parts = logits.par_chunks(TASK * n).zip(dx.par_chunks_mut(TASK * d));
                parts.for_each_init(Vec::new, |left, (logits, dx)| {
                    let part = View {
                        data: &logits[from..],
                        ..View::rows(logits, n)
                    };
                    up.multiply_into(part, dx, d, from > 0, left);
                });
            }
        }
        if dw.is_empty() {
            continue;
        }
        let (p, x) = (View::rows(logits, n), View::rows(x, d));
        multiply((n, d, count), p.t(), x, dw, first > 0, scratch, |_, _| ());
    }
    (losses.iter().sum::<f64>() / rows as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    #[test]
    fn a_table_in_windows_gives_what_the_whole_gives() {
        let (rows, n, d) = (BLOCK + 37, 1100, 13);
        let draw = |seed: u64, length: usize| -> Vec<f32> {
            (0..length as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
        };
        let (x, w) = (draw(1, rows * d), draw(2, n * d));
        let codes: Vec<u32> = (0..rows as u32).map(|i| i * 31 % n as u32).collect();
        for frozen in [false, true] {
            let run = |window: usize| {
                let (mut dx, mut dw) = (vec![f32::NAN; rows * d], vec![f32::NAN; if frozen { 0 } else { n * d }]);
                let table = (&x[..], Numbers::F32(&w), d);
                let loss = windowed(table, window, &codes, &mut dx, &mut dw, &mut Room::default());
                (loss, dx, dw)
            };
            let whole = run(n);
            assert!(whole.1.iter().all(|x| x.is_finite()));
            for window in [256, 768, 1024] {
                assert_eq!(run(window), whole);
            }
        }
    }
}
