//! Single-precision matrix product on the CPU.
//!
//! An element of the result is summed over k in one fixed order, whatever the number of rows, their position
//! or the number of threads: batch 1 equals batch N to the bit, and so does any thread count.

mod packed;
mod tile;

pub(crate) use packed::Packed;

use super::isa::{Isa, isa, vectorized};
use super::norm::dot;
use crate::frozen::Numbers;
use rayon::prelude::*;
#[cfg(target_arch = "x86_64")]
use tile::transpose_16;
use tile::{Tile, run_tile};

/// A matrix to read: element (i, j) is `data[i * row + j * column]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    /// The numbers; the matrix may be a window of them.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub column: usize,
}

impl<'a> View<'a> {
    /// A dense row-major matrix with `columns` columns.
    pub fn rows(data: &'a [f32], columns: usize) -> Self {
        View {
            data,
            row: columns,
            column: 1,
        }
    }

    /// The same numbers, transposed.
    pub fn t(self) -> Self {
        View {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }

    fn check(self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            assert!((rows - 1) * self.row + (columns - 1) * self.column < self.data.len());
        }
    }

    fn skip_rows(self, row: usize) -> Self {
        View {
            data: &self.data[row * self.row..],
            ..self
        }
    }
}

/// A right operand: as a [`View`], of numbers that may have 16 bits. Its rows or its columns are contiguous.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    numbers: Numbers<'a>,
    row: usize,
    column: usize,
}

impl<'a> Right<'a> {
    /// A dense row-major matrix with `columns` columns.
    pub fn rows(numbers: Numbers<'a>, columns: usize) -> Self {
        Right {
            numbers,
            row: columns,
            column: 1,
        }
    }

    /// The same numbers, transposed.
    pub fn t(self) -> Self {
        Right {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    /// Without its first rows.
    pub fn skip_rows(self, rows: usize) -> Self {
        Right {
            numbers: self.numbers.skip(rows * self.row),
            ..self
        }
    }

    fn check(self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            assert!((rows - 1) * self.row + (columns - 1) * self.column < self.numbers.len());
        }
    }
}

impl<'a> From<View<'a>> for Right<'a> {
    fn from(view: View<'a>) -> Self {
        Right {
            numbers: Numbers::F32(view.data),
            row: view.row,
            column: view.column,
        }
    }
}

/// Rows of the result that one task computes.
const TASK_ROWS: usize = 96;
/// Depth of one block: a panel of the right operand of this depth stays in the first-level cache.
const DEPTH: usize = 256;

/// Up to this many rows, packing the right operand costs more than it saves when its columns are contiguous.
const FEW_ROWS: usize = 6;

/// Reusable memory for packed operands.
#[derive(Default)]
pub(crate) struct Scratch {
    right: Vec<f32>,
    left: Vec<f32>,
    transposed: Vec<f32>,
}

impl Scratch {
    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> usize {
        4 * (self.right.capacity() + self.left.capacity() + self.transposed.capacity())
    }
}

/// `c[m, n] = a[m, k] · b[k, n]` (or `+=`), rows of `c` in parallel; `finish(first_row, rows)` runs on each finished
/// group of rows while it is still in the cache.
#[allow(clippy::too_many_arguments)]
pub(crate) fn multiply<'b>(
    (m, n, k): (usize, usize, usize),
    a: View,
    b: impl Into<Right<'b>>,
    c: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    assert_eq!(c.len(), m * n);
    if m == 0 || n == 0 {
        return;
    }
    let b = b.into();
    a.check(m, k);
    b.check(k, n);
    let width = isa().tile().1;
    let panels = n.div_ceil(width);
    grow(&mut scratch.right, panels * width * k);
    let right = &mut scratch.right[..panels * width * k];
    pack(b, k, n, width, right);
    let right = Numbers::F32(right);
    c.par_chunks_mut(TASK_ROWS * n)
        .enumerate()
        .for_each_init(Vec::new, |left, (task, rows)| {
            let first = task * TASK_ROWS;
            let count = rows.len() / n;
            // SAFETY: a, b and c were checked above; `rows` holds `count` full rows.
            unsafe {
                block(
                    isa(),
                    (count, n, k),
                    a.skip_rows(first),
                    right,
                    rows.as_mut_ptr(),
                    n,
                    accumulate,
                    left,
                )
            };
            finish(first, rows);
        });
}

/// Depth that [`multiply_long`] packs at a time, whole blocks: small enough to stay in the caches.
const LONG: usize = 4 * DEPTH;

/// `c[m, n] (+)= aᵀ[m, k] · b[k, n]` for a long k (a weight's gradient): neither operand is packed as a whole.
pub(crate) fn multiply_long(
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
) {
    if n <= m {
        return multiply_in_depths((m, n, k), a, b, c, accumulate, scratch);
    }
    let mut transposed = std::mem::take(&mut scratch.transposed);
    grow(&mut transposed, m * n);
    multiply_in_depths((n, m, k), b.t(), a.t(), &mut transposed[..m * n], false, scratch);
    c.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        for (j, out) in row.iter_mut().enumerate() {
            let value = transposed[j * m + i];
            *out = if accumulate { *out + value } else { value };
        }
    });
    scratch.transposed = transposed;
}

/// The product, [`LONG`] of k after another. Tasks are large, so that what is packed is read seldom; how rows are cut
/// does not show in the result.
fn multiply_in_depths(
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
) {
    assert_eq!(c.len(), m * n);
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    let (height, width) = isa().tile();
    let task_rows = m.div_ceil(rayon::current_num_threads()).clamp(height, 3 * TASK_ROWS);
    let task_rows = task_rows.next_multiple_of(height);
    let mut depth = 0;
    loop {
        let deep = LONG.min(k - depth);
        let length = n.div_ceil(width) * width * deep;
        grow(&mut scratch.right, length);
        let right = &mut scratch.right[..length];
        let b = b.skip_rows(depth);
        if deep > 0 {
            right
                .par_chunks_mut(width * deep)
                .enumerate()
                .for_each(|(panel, out)| pack_panel(b, deep, n, panel, width, out));
        }
        let right = Numbers::F32(right);
        c.par_chunks_mut(task_rows * n)
            .enumerate()
            .for_each_init(Vec::new, |left, (task, rows)| {
                let count = rows.len() / n;
                let a = a.skip_rows(task * task_rows).t().skip_rows(depth).t();
                let add = accumulate || depth > 0;
                // SAFETY: a, b and c were checked above; `rows` holds `count` full rows.
                unsafe { block(isa(), (count, n, deep), a, right, rows.as_mut_ptr(), n, add, left) };
            });
        depth += deep;
        if depth == k {
            return;
        }
    }
}

/// The same product on one thread, for small matrices inside a task; `c` has its own row stride.
#[allow(clippy::too_many_arguments)]
pub(crate) fn multiply_small(
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: &mut [f32],
    c_row: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    assert!(c_row >= n && (m - 1) * c_row + n <= c.len());
    if m <= FEW_ROWS && a.column == 1 && b.row == 1 {
        return dots((m, n, k), a, b, c, c_row, accumulate);
    }
    pack_and_multiply(isa(), (m, n, k), a, b, c, c_row, accumulate, scratch);
}

/// The product by packing, with a chosen instruction set that this CPU must have.
#[allow(clippy::too_many_arguments)]
fn pack_and_multiply(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: &mut [f32],
    c_row: usize,
    accumulate: bool,
    scratch: &mut Scratch,
) {
    a.check(m, k);
    b.check(k, n);
    assert!(m > 0 && c_row >= n && (m - 1) * c_row + n <= c.len());
    let width = isa.tile().1;
    let panels = n.div_ceil(width);
    grow(&mut scratch.right, panels * width * k);
    for panel in 0..panels {
        let out = &mut scratch.right[panel * width * k..][..width * k];
        pack_panel(b, k, n, panel, width, out);
    }
    let right = Numbers::F32(&scratch.right[..panels * width * k]);
    // SAFETY: a, b and c were checked above.
    unsafe {
        block(
            isa,
            (m, n, k),
            a,
            right,
            c.as_mut_ptr(),
            c_row,
            accumulate,
            &mut scratch.left,
        )
    };
}

vectorized! {
    /// `c (+)= a · b` by dot products of contiguous rows of a and columns of b.
    fn dots(
        shape: (usize, usize, usize), a: View, b: View, c: &mut [f32], c_row: usize, accumulate: bool,
    ) {
        let (m, n, k) = shape;
        for i in 0..m {
            let x = &a.data[i * a.row..][..k];
            for (j, out) in c[i * c_row..][..n].iter_mut().enumerate() {
                let value = dot(x, &b.data[j * b.column..][..k]);
                *out = if accumulate { *out + value } else { value };
            }
        }
    }
}

fn grow(buffer: &mut Vec<f32>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
}

/// Packs all panels of b, in parallel.
fn pack(b: Right, k: usize, n: usize, width: usize, panels: &mut [f32]) {
    if k == 0 {
        return;
    }
    let panels = panels.par_chunks_mut(width * k).enumerate();
    match b.numbers {
        Numbers::F32(data) => {
            let (row, column) = (b.row, b.column);
            panels.for_each(|(panel, out)| pack_panel(View { data, row, column }, k, n, panel, width, out));
        }
        Numbers::F16(_) | Numbers::Bf16(_) => {
            panels.for_each_init(Vec::new, |room, (panel, out)| {
                pack_half(b, k, n, panel, width, out, room)
            });
        }
    }
}

/// [`pack_panel`] of numbers of 16 bits, which become f32 on the way.
fn pack_half(b: Right, k: usize, n: usize, panel: usize, width: usize, out: &mut [f32], room: &mut Vec<f32>) {
    let first = panel * width;
    let count = width.min(n - first);
    if b.column == 1 {
        for (depth, out) in out.chunks_exact_mut(width).enumerate() {
            b.numbers.write(depth * b.row + first, &mut out[..count]);
            out[count..].fill(0.0);
        }
    } else {
        assert_eq!(b.row, 1);
        grow(room, count * k);
        for (j, column) in room[..count * k].chunks_exact_mut(k).enumerate() {
            b.numbers.write((first + j) * b.column, column);
        }
        pack_panel(View::rows(&room[..count * k], k).t(), k, count, 0, width, out);
    }
}

/// Copies `width` columns of b to `[k][width]`, zeros beyond the last column.
fn pack_panel(b: View, k: usize, n: usize, panel: usize, width: usize, out: &mut [f32]) {
    let first = panel * width;
    let count = width.min(n - first);
    if b.column == 1 {
        match (width, count) {
            (32, 32) => copy_rows::<32>(b, first, out),
            (16, 16) => copy_rows::<16>(b, first, out),
            _ => {
                for (depth, out) in out.chunks_exact_mut(width).enumerate() {
                    out[..count].copy_from_slice(&b.data[depth * b.row + first..][..count]);
                    out[count..].fill(0.0);
                }
            }
        }
    } else {
        if count < width {
            out.fill(0.0);
        }
        let fast = if b.row == 1 {
            transpose_blocks(b, k, first, count, width, out)
        } else {
            (0, 0)
        };
        for j in 0..count {
            let from = if j < fast.1 { fast.0 } else { 0 };
            for d in from..k {
                out[d * width + j] = b.data[d * b.row + (first + j) * b.column];
            }
        }
    }
}

/// Whole panels: a copy of known length needs no call.
fn copy_rows<const W: usize>(b: View, first: usize, out: &mut [f32]) {
    for (depth, out) in out.as_chunks_mut::<W>().0.iter_mut().enumerate() {
        out.copy_from_slice(&b.data[depth * b.row + first..][..W]);
    }
}

/// Transposes whole 16 x 16 blocks of contiguous columns; says how many depths and columns are done.
fn transpose_blocks(b: View, k: usize, first: usize, count: usize, width: usize, out: &mut [f32]) -> (usize, usize) {
    #[cfg(target_arch = "x86_64")]
    if isa() == Isa::Avx512 && width.is_multiple_of(16) {
        let done = (k / 16 * 16, count / 16 * 16);
        for j in (0..done.1).step_by(16) {
            for d in (0..done.0).step_by(16) {
                let from = &b.data[(first + j) * b.column + d..][..15 * b.column + 16];
                let to = &mut out[d * width + j..][..15 * width + 16];
                // SAFETY: both slices hold 16 rows of 16 numbers at their strides; the CPU has AVX-512.
                unsafe { transpose_16(from.as_ptr(), b.column, to.as_mut_ptr(), width) };
            }
        }
        return done;
    }
    let _ = (b, k, first, count, width, out);
    (0, 0)
}

/// One task: `m` rows of the result from a packed right operand. What of it has 16 bits becomes f32 a depth of a panel
/// at a time, once for all rows: the product is that of the same numbers as f32, to the bit. `room` is reused memory.
///
/// # Safety
/// `a` must hold m x k elements, `right` the packed k x n ones, and `c` m rows of n at stride `c_row`.
#[allow(clippy::too_many_arguments)]
unsafe fn block(
    isa: Isa,
    (m, n, k): (usize, usize, usize),
    a: View,
    right: Numbers,
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
    room: &mut Vec<f32>,
) {
    let (height, width) = isa.tile();
    if k == 0 && !accumulate {
        for i in 0..m {
            // SAFETY: row i of c, by the caller's contract.
            unsafe { std::slice::from_raw_parts_mut(c.add(i * c_row), n) }.fill(0.0);
        }
    }
    let (direct, deepest) = (a.column == 1, DEPTH.min(k));
    let tiles = match direct {
        true => 0,
        false => m.next_multiple_of(height) * deepest,
    };
    let widened = match right {
        Numbers::F32(_) => 0,
        Numbers::F16(_) | Numbers::Bf16(_) => width * deepest,
    };
    grow(room, tiles + widened);
    let (left, widened) = room.split_at_mut(tiles);
    for depth in (0..k).step_by(DEPTH) {
        let deep = DEPTH.min(k - depth);
        if !direct {
            pack_left(a, m, depth, deep, height, left);
        }
        for panel in 0..n.div_ceil(width) {
            let columns = width.min(n - panel * width);
            let at = panel * width * k + depth * width;
            let b = match right {
                Numbers::F32(panels) => panels[at..].as_ptr(),
                Numbers::F16(_) | Numbers::Bf16(_) => {
                    right.write(at, &mut widened[..width * deep]);
                    widened.as_ptr()
                }
            };
            for row in (0..m).step_by(height) {
                let rows = height.min(m - row);
                let tile = Tile {
                    k: deep,
                    a: if direct {
                        a.data[row * a.row + depth..].as_ptr()
                    } else {
                        left[row * deep..].as_ptr()
                    },
                    a_row: if direct { a.row } else { 1 },
                    a_column: if direct { 1 } else { height },
                    b,
                    // SAFETY: inside the m rows of c.
                    c: unsafe { c.add(row * c_row + panel * width) },
                    c_row,
                    columns,
                    add: accumulate || depth > 0,
                };
                // SAFETY: the tile's windows lie inside a, right and c; `isa` was detected.
                unsafe { run_tile(isa, rows, &tile) };
            }
        }
    }
}

/// Copies rows of a (stored by columns) to tiles of `[depth][height]`.
fn pack_left(a: View, m: usize, depth: usize, deep: usize, height: usize, left: &mut [f32]) {
    match height {
        12 => pack_tiles::<12>(a, m, depth, deep, left),
        6 => pack_tiles::<6>(a, m, depth, deep, left),
        _ => pack_tiles::<4>(a, m, depth, deep, left),
    }
}

fn pack_tiles<const H: usize>(a: View, m: usize, depth: usize, deep: usize, left: &mut [f32]) {
    for row in (0..m).step_by(H) {
        let rows = H.min(m - row);
        let (out, _) = left[row * deep..][..H * deep].as_chunks_mut::<H>();
        for (d, out) in out.iter_mut().enumerate() {
            let base = (depth + d) * a.column + row * a.row;
            if a.row == 1 && rows == H {
                out.copy_from_slice(&a.data[base..base + H]);
            } else {
                for (i, out) in out[..rows].iter_mut().enumerate() {
                    *out = a.data[base + i * a.row];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
    }

    fn slow(m: usize, n: usize, k: usize, a: View, b: View) -> Vec<f64> {
        let at = |v: View, i: usize, j: usize| f64::from(v.data[i * v.row + j * v.column]);
        (0..m * n)
            .map(|x| (0..k).map(|d| at(a, x / n, d) * at(b, d, x % n)).sum())
            .collect()
    }

    #[test]
    fn equals_the_slow_product_in_every_layout() {
        let mut scratch = Scratch::default();
        for (m, n, k) in [
            (1, 1, 1),
            (7, 13, 33),
            (33, 7, 13),
            (13, 33, 7),
            (129, 65, 300),
            (3, 5, 0),
        ] {
            let (a, b) = (numbers(1, m * k), numbers(2, k * n));
            for (a, b) in [
                (View::rows(&a, k), View::rows(&b, n)),
                (View::rows(&a, m).t(), View::rows(&b, n)),
                (View::rows(&a, k), View::rows(&b, k).t()),
                (View::rows(&a, m).t(), View::rows(&b, k).t()),
            ] {
                let expected = slow(m, n, k, a, b);
                let (mut c, mut long) = (vec![1.0; m * n], vec![1.0; m * n]);
                multiply((m, n, k), a, b, &mut c, true, &mut scratch, |_, _| ());
                multiply_long((m, n, k), a, b, &mut long, true, &mut scratch);
                let mut small = vec![f32::NAN; m * (n + 3)];
                multiply_small((m, n, k), a, b, &mut small, n + 3, false, &mut scratch);
                for i in 0..m * n {
                    let want = expected[i];
                    assert!((f64::from(c[i]) - 1.0 - want).abs() < 1e-4);
                    assert!((f64::from(long[i]) - 1.0 - want).abs() < 1e-4);
                    assert!((f64::from(small[i / n * (n + 3) + i % n]) - want).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn a_right_operand_of_16_bits_is_one_of_the_same_numbers() {
        use half::{bf16, f16};
        let mut scratch = Scratch::default();
        for (m, n, k) in [(1, 1, 1), (7, 13, 33), (33, 7, 13), (25, 65, 300), (13, 96, 64)] {
            let (a, b) = (numbers(1, m * k), numbers(2, k * n));
            let short: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
            let brain: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
            for half in [Numbers::F16(&short), Numbers::Bf16(&brain)] {
                let same = half.to_f32();
                let same = Numbers::F32(&same);
                let product = |b: Right, scratch: &mut Scratch| {
                    let mut c = vec![0.0; m * n];
                    multiply((m, n, k), View::rows(&a, k), b, &mut c, false, scratch, |_, _| ());
                    c
                };
                for (half, same) in [
                    (Right::rows(half, n), Right::rows(same, n)),
                    (Right::rows(half, k).t(), Right::rows(same, k).t()),
                ] {
                    assert_eq!(product(half, &mut scratch), product(same, &mut scratch));
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        let (m, n, k) = (101, 45, 300);
        let (a, b) = (numbers(1, m * k), numbers(2, k * n));
        let mut scratch = Scratch::default();
        let mut all = vec![0.0; m * n];
        multiply(
            (m, n, k),
            View::rows(&a, k),
            View::rows(&b, n),
            &mut all,
            false,
            &mut scratch,
            |_, _| (),
        );
        for i in 0..m {
            let mut one = vec![0.0; n];
            let row = View::rows(&a[i * k..][..k], k);
            multiply(
                (1, n, k),
                row,
                View::rows(&b, n),
                &mut one,
                false,
                &mut scratch,
                |_, _| (),
            );
            assert_eq!(one, all[i * n..][..n]);
        }
    }

    #[test]
    fn every_instruction_set_agrees() {
        let (m, n, k) = (33, 45, 300);
        let (a, b) = (numbers(1, m * k), numbers(2, k * n));
        for (a, b) in [
            (View::rows(&a, k), View::rows(&b, n)),
            (View::rows(&a, m).t(), View::rows(&b, k).t()),
        ] {
            let want = slow(m, n, k, a, b);
            for isa in Isa::available() {
                let (mut c, mut scratch) = (vec![0.0; m * n], Scratch::default());
                pack_and_multiply(isa, (m, n, k), a, b, &mut c, n, false, &mut scratch);
                for (got, want) in c.iter().zip(&want) {
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{isa:?}");
                }
            }
        }
    }
}
