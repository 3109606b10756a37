//! Single-precision matrix product on the CPU.
//!
//! An element of the result is summed over k in one fixed order, whatever the number of rows, their position
//! or the number of threads: batch 1 equals batch N to the bit, and so does any thread count.

use super::isa::{Isa, isa, vectorized};
use super::norm::dot;
use rayon::prelude::*;

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

/// `c[m, n] = a[m, k] · b[k, n]` (or `+=`), rows of `c` in parallel; `finish(first_row, rows)` runs on each finished
/// group of rows while it is still in the cache.
#[allow(clippy::too_many_arguments)]
pub(crate) fn multiply(
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    assert_eq!(c.len(), m * n);
    if m == 0 || n == 0 {
        return;
    }
    a.check(m, k);
    b.check(k, n);
    let width = isa().tile().1;
    let panels = n.div_ceil(width);
    grow(&mut scratch.right, panels * width * k);
    let right = &mut scratch.right[..panels * width * k];
    if k > 0 {
        right
            .par_chunks_mut(width * k)
            .enumerate()
            .for_each(|(panel, out)| pack_panel(b, k, n, panel, width, out));
    }
    let right = &*right;
    c.par_chunks_mut(TASK_ROWS * n)
        .enumerate()
        .for_each_init(Vec::new, |left, (task, rows)| {
            let first = task * TASK_ROWS;
            let count = rows.len() / n;
            // SAFETY: a, b and c were checked above; `rows` holds `count` full rows.
            unsafe {
                block(
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

/// `c[m, n] (+)= aᵀ[m, k] · b[k, n]` for a long k (a weight's gradient): the wider operand is never packed as a whole.
pub(crate) fn multiply_long(
    (m, n, k): (usize, usize, usize),
    a: View,
    b: View,
    c: &mut [f32],
    accumulate: bool,
    scratch: &mut Scratch,
) {
    if n <= m {
        return multiply((m, n, k), a, b, c, accumulate, scratch, |_, _| ());
    }
    let mut transposed = std::mem::take(&mut scratch.transposed);
    grow(&mut transposed, m * n);
    multiply(
        (n, m, k),
        b.t(),
        a.t(),
        &mut transposed[..m * n],
        false,
        scratch,
        |_, _| (),
    );
    c.par_chunks_mut(n).enumerate().for_each(|(i, row)| {
        for (j, out) in row.iter_mut().enumerate() {
            let value = transposed[j * m + i];
            *out = if accumulate { *out + value } else { value };
        }
    });
    scratch.transposed = transposed;
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
    let width = isa().tile().1;
    let panels = n.div_ceil(width);
    grow(&mut scratch.right, panels * width * k);
    for panel in 0..panels {
        let out = &mut scratch.right[panel * width * k..][..width * k];
        pack_panel(b, k, n, panel, width, out);
    }
    let right = &scratch.right[..panels * width * k];
    // SAFETY: a, b and c were checked above.
    unsafe {
        block(
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

/// Copies `width` columns of b to `[k][width]`, zeros beyond the last column.
fn pack_panel(b: View, k: usize, n: usize, panel: usize, width: usize, out: &mut [f32]) {
    let first = panel * width;
    let count = width.min(n - first);
    if b.column == 1 {
        for (depth, out) in out.chunks_exact_mut(width).enumerate() {
            out[..count].copy_from_slice(&b.data[depth * b.row + first..][..count]);
            out[count..].fill(0.0);
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

/// Transposes whole 16 x 16 blocks of contiguous columns; says how many depths and columns are done.
fn transpose_blocks(
    b: View,
    k: usize,
    first: usize,
    count: usize,
    width: usize,
    out: &mut [f32],
) -> (usize, usize) {
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

/// # Safety
/// `from` and `to` must hold 16 rows of 16 numbers at their strides.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_16(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's contract.
    unsafe {
        let mut a = [_mm512_setzero_ps(); 16];
        let mut b = a;
        for (i, a) in a.iter_mut().enumerate() {
            *a = _mm512_loadu_ps(from.add(i * from_row));
        }
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        // now 4 x 4 blocks: a[4g + c] holds column c (of every group of four) of rows 4g..4g + 4
        for g in 0..4 {
            let r = 4 * g;
            a[r] = _mm512_shuffle_ps::<0x44>(b[r], b[r + 2]);
            a[r + 1] = _mm512_shuffle_ps::<0xee>(b[r], b[r + 2]);
            a[r + 2] = _mm512_shuffle_ps::<0x44>(b[r + 1], b[r + 3]);
            a[r + 3] = _mm512_shuffle_ps::<0xee>(b[r + 1], b[r + 3]);
        }
        for c in 0..4 {
            let low = _mm512_shuffle_f32x4::<0x88>(a[c], a[4 + c]);
            let high = _mm512_shuffle_f32x4::<0xdd>(a[c], a[4 + c]);
            let low2 = _mm512_shuffle_f32x4::<0x88>(a[8 + c], a[12 + c]);
            let high2 = _mm512_shuffle_f32x4::<0xdd>(a[8 + c], a[12 + c]);
            let columns = [
                _mm512_shuffle_f32x4::<0x88>(low, low2),
                _mm512_shuffle_f32x4::<0x88>(high, high2),
                _mm512_shuffle_f32x4::<0xdd>(low, low2),
                _mm512_shuffle_f32x4::<0xdd>(high, high2),
            ];
            for (q, column) in columns.into_iter().enumerate() {
                _mm512_storeu_ps(to.add((4 * q + c) * to_row), column);
            }
        }
    }
}

/// One task: `m` rows of the result from a packed right operand.
///
/// # Safety
/// `a` must hold m x k elements, `right` the packed k x n ones, and `c` m rows of n at stride `c_row`.
unsafe fn block(
    (m, n, k): (usize, usize, usize),
    a: View,
    right: &[f32],
    c: *mut f32,
    c_row: usize,
    accumulate: bool,
    left: &mut Vec<f32>,
) {
    let isa = isa();
    let (height, width) = isa.tile();
    if k == 0 && !accumulate {
        for i in 0..m {
            // SAFETY: row i of c, by the caller's contract.
            unsafe { std::slice::from_raw_parts_mut(c.add(i * c_row), n) }.fill(0.0);
        }
    }
    let direct = a.column == 1;
    for depth in (0..k).step_by(DEPTH) {
        let deep = DEPTH.min(k - depth);
        if !direct {
            pack_left(a, m, depth, deep, height, left);
        }
        for panel in 0..n.div_ceil(width) {
            let columns = width.min(n - panel * width);
            let b = right[panel * width * k + depth * width..].as_ptr();
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
fn pack_left(a: View, m: usize, depth: usize, deep: usize, height: usize, left: &mut Vec<f32>) {
    grow(left, m.next_multiple_of(height) * deep);
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

/// One tile of the result.
struct Tile {
    k: usize,
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const f32,
    c: *mut f32,
    c_row: usize,
    columns: usize,
    add: bool,
}

macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $tile:expr, [$($n:literal)*]) => {
        match $rows { $($n => $kernel::<$n>($tile),)* _ => unreachable!("tile height") }
    };
}

/// # Safety
/// The tile's pointers must be valid for its extents, and the CPU must have the instruction set.
unsafe fn run_tile(isa: Isa, rows: usize, tile: &Tile) {
    // SAFETY: the caller's contract.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => by_rows!(rows, tile_512, tile, [1 2 3 4 5 6 7 8 9 10 11 12]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => by_rows!(rows, tile_256, tile, [1 2 3 4 5 6]),
            Isa::Portable => by_rows!(rows, tile_portable, tile, [1 2 3 4]),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn tile_512<const M: usize>(t: &Tile) {
    use std::arch::x86_64::*;
    // SAFETY: the windows are valid by the caller's contract; masks keep stores inside `columns`.
    unsafe {
        let mut sum = [[_mm512_setzero_ps(); 2]; M];
        let (mut a, mut b) = (t.a, t.b);
        for _ in 0..t.k {
            let b0 = _mm512_loadu_ps(b);
            let b1 = _mm512_loadu_ps(b.add(16));
            for (i, sum) in sum.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i * t.a_row));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
            a = a.add(t.a_column);
            b = b.add(32);
        }
        let mask = u32::MAX >> (32 - t.columns);
        let masks = [mask as u16, (mask >> 16) as u16];
        for (i, sum) in sum.iter().enumerate() {
            for half in 0..2 {
                let out = t.c.add(i * t.c_row + 16 * half);
                let mut value = sum[half];
                if t.add {
                    value = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[half], out), value);
                }
                _mm512_mask_storeu_ps(out, masks[half], value);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_256<const M: usize>(t: &Tile) {
    // SAFETY: the caller's contract.
    unsafe { tile_any::<M, 16, true>(t) }
}

unsafe fn tile_portable<const M: usize>(t: &Tile) {
    // SAFETY: the caller's contract.
    unsafe { tile_any::<M, 8, false>(t) }
}

#[inline(always)]
unsafe fn tile_any<const M: usize, const N: usize, const FMA: bool>(t: &Tile) {
    let mut sum = [[0f32; N]; M];
    // SAFETY: the windows are valid by the caller's contract.
    unsafe {
        for d in 0..t.k {
            let b = &*t.b.add(d * N).cast::<[f32; N]>();
            for (i, sum) in sum.iter_mut().enumerate() {
                let x = *t.a.add(i * t.a_row + d * t.a_column);
                for j in 0..N {
                    sum[j] = if FMA {
                        x.mul_add(b[j], sum[j])
                    } else {
                        x * b[j] + sum[j]
                    };
                }
            }
        }
        for (i, sum) in sum.iter().enumerate() {
            let out = std::slice::from_raw_parts_mut(t.c.add(i * t.c_row), t.columns);
            for (out, &value) in out.iter_mut().zip(sum) {
                *out = if t.add { *out + value } else { value };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64)
            .map(|i| Key::new(seed).normal(i) as f32)
            .collect()
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
        let (k, a, b) = (37, numbers(1, 4 * 37), numbers(2, 32 * 37));
        let run = |isa: Isa| {
            let mut c = vec![0f32; 8 * 4];
            let width = isa.tile().1;
            let mut panel = vec![0.0; width * k];
            pack_panel(View::rows(&b, 32), k, 32, 0, width, &mut panel);
            let tile = Tile {
                k,
                a: a.as_ptr(),
                a_row: k,
                a_column: 1,
                b: panel.as_ptr(),
                c: c.as_mut_ptr(),
                c_row: 8,
                columns: 8,
                add: false,
            };
            // SAFETY: 4 rows of 8 columns, all in bounds.
            unsafe { run_tile(isa, 4, &tile) };
            c
        };
        let want = run(Isa::Portable);
        for isa in Isa::available() {
            for (x, y) in run(isa).iter().zip(&want) {
                assert!((x - y).abs() < 1e-5);
            }
        }
    }
}
