//! Register tiles of the matrix product, one per instruction set.

use crate::ops::isa::Isa;

/// One tile of the result.
pub(super) struct Tile {
    pub(super) k: usize,
    pub(super) a: *const f32,
    pub(super) a_row: usize,
    pub(super) a_column: usize,
    pub(super) b: *const f32,
    pub(super) c: *mut f32,
    pub(super) c_row: usize,
    pub(super) columns: usize,
    pub(super) add: bool,
}

macro_rules! by_rows {
    ($rows:expr, $kernel:ident, $tile:expr, [$($n:literal)*]) => {
        match $rows { $($n => $kernel::<$n>($tile),)* _ => unreachable!("tile height") }
    };
}

/// # Safety
/// The tile's pointers must be valid for its extents, and the CPU must have the instruction set.
pub(super) unsafe fn run_tile(isa: Isa, rows: usize, tile: &Tile) {
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

/// # Safety
/// `from` and `to` must hold 16 rows of 16 numbers at their strides.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_16(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
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
