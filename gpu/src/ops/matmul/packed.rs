//! A right operand that is packed once for many products, as f32 or in the 16 bits that its numbers have.

use super::{Right, View, block, pack};
use crate::frozen::Numbers;
use crate::ops::isa::isa;
use half::{bf16, f16};
use rayon::prelude::*;

/// Numbers of a column that are copied together: a line of the cache of 16 bits each.
const LINE: usize = 32;

/// A right operand b[k, n], packed once for many products.
#[derive(Default)]
pub(crate) struct Packed {
    panels: Panels,
    n: usize,
    k: usize,
}

/// Panels, each [k, columns of a tile], in the numbers they are kept in.
enum Panels {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Default for Panels {
    fn default() -> Self {
        Panels::F32(Vec::new())
    }
}

impl Panels {
    fn numbers(&self) -> Numbers<'_> {
        match self {
            Panels::F32(panels) => Numbers::F32(panels),
            Panels::F16(panels) => Numbers::F16(panels),
            Panels::Bf16(panels) => Numbers::Bf16(panels),
        }
    }
}

impl Packed {
    /// Bytes that are held.
    pub(crate) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => size_of::<f32>() * panels.capacity(),
            Panels::F16(panels) => size_of::<f16>() * panels.capacity(),
            Panels::Bf16(panels) => size_of::<bf16>() * panels.capacity(),
        }
    }

    /// Packs b[k, n] as f32, in parallel; keeps its memory.
    pub(crate) fn load<'b>(&mut self, b: impl Into<Right<'b>>, k: usize, n: usize) {
        let b = b.into();
        b.check(k, n);
        let width = isa().tile().1;
        let mut panels = match std::mem::take(&mut self.panels) {
            Panels::F32(panels) => panels,
            Panels::F16(_) | Panels::Bf16(_) => Vec::new(),
        };
        panels.resize(n.div_ceil(width) * width * k, 0.0);
        pack(b, k, n, width, &mut panels);
        (self.panels, self.n, self.k) = (Panels::F32(panels), n, k);
    }

    /// Packs b[k, n] in the numbers it has, in parallel. Products are those of the same numbers as f32, to the bit.
    pub(crate) fn load_as_is<'b>(&mut self, b: impl Into<Right<'b>>, k: usize, n: usize) {
        let b = b.into();
        b.check(k, n);
        let strides = (b.row, b.column);
        self.panels = match b.numbers {
            Numbers::F32(_) => return self.load(b, k, n),
            Numbers::F16(data) => Panels::F16(pack_as_is(data, strides, k, n)),
            Numbers::Bf16(data) => Panels::Bf16(pack_as_is(data, strides, k, n)),
        };
        (self.n, self.k) = (n, k);
    }

    /// n, the columns of b.
    pub(crate) fn columns(&self) -> usize {
        self.n
    }

    /// `c[m, n] = a[m, k] · b` on this thread; `room` is reused memory.
    pub(crate) fn multiply(&self, a: View, c: &mut [f32], room: &mut Vec<f32>) {
        self.multiply_into(a, c, self.n, false, room);
    }

    /// The same (or `+=`) into rows at a stride; the last may end with its n.
    pub(crate) fn multiply_into(&self, a: View, c: &mut [f32], c_row: usize, accumulate: bool, room: &mut Vec<f32>) {
        assert!(c_row >= self.n);
        let m = (c.len() + c_row - self.n) / c_row.max(1);
        a.check(m, self.k);
        // SAFETY: a and c were checked above, the panels hold the packed b.
        unsafe {
            block(
                isa(),
                (m, self.n, self.k),
                a,
                self.panels.numbers(),
                c.as_mut_ptr(),
                c_row,
                accumulate,
                room,
            )
        };
    }
}

/// The panels of b[k, n], of which element (i, j) is `data[i * row + j * column]`: zeros beyond the last column.
fn pack_as_is<T: Copy + Default + Send + Sync>(
    data: &[T],
    (row, column): (usize, usize),
    k: usize,
    n: usize,
) -> Vec<T> {
    let width = isa().tile().1;
    let mut panels = vec![T::default(); n.div_ceil(width) * width * k];
    if k == 0 {
        return panels;
    }
    panels.par_chunks_mut(width * k).enumerate().for_each(|(panel, out)| {
        let first = panel * width;
        let count = width.min(n - first);
        for depth in (0..k).step_by(LINE) {
            for j in 0..count {
                for d in depth..k.min(depth + LINE) {
                    out[d * width + j] = data[d * row + (first + j) * column];
                }
            }
        }
    });
    panels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    fn numbers(seed: u64, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| Key::new(seed).normal(i) as f32).collect()
    }

    /// Rows of the product with what was packed.
    fn product(packed: &Packed, a: View, m: usize, n: usize) -> Vec<f32> {
        let mut c = vec![f32::NAN; m * n];
        packed.multiply(a, &mut c, &mut Vec::new());
        c
    }

    #[test]
    fn numbers_of_16_bits_stay_what_they_are() {
        for (m, n, k) in [
            (1, 1, 1),
            (7, 13, 33),
            (33, 7, 13),
            (25, 65, 300),
            (13, 96, 64),
            (101, 45, 513),
            (3, 5, 0),
        ] {
            let (a, b) = (numbers(1, m * k), numbers(2, k * n));
            let short: Vec<f16> = b.iter().map(|x| f16::from_f32(*x)).collect();
            let brain: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
            for half in [Numbers::F16(&short), Numbers::Bf16(&brain)] {
                let same = half.to_f32();
                let same = Numbers::F32(&same);
                for (half, same) in [
                    (Right::rows(half, n), Right::rows(same, n)),
                    (Right::rows(half, k).t(), Right::rows(same, k).t()),
                ] {
                    let (mut kept, mut wide, mut widened) = (Packed::default(), Packed::default(), Packed::default());
                    kept.load_as_is(half, k, n);
                    wide.load_as_is(same, k, n);
                    widened.load(half, k, n);
                    assert_eq!(2 * kept.bytes(), wide.bytes());
                    assert_eq!(kept.columns(), n);
                    for a in [View::rows(&a, k), View::rows(&a, m).t()] {
                        let want = product(&wide, a, m, n);
                        assert_eq!(product(&kept, a, m, n), want, "{m} {n} {k}");
                        assert_eq!(product(&widened, a, m, n), want, "{m} {n} {k}");
                    }
                }
            }
        }
    }

    /// Into columns of wider rows, on top of what is there, in memory that another product left.
    #[test]
    fn numbers_of_16_bits_are_added_at_a_stride() {
        let (m, n, k, wide) = (25, 33, 270, 40);
        let (a, b) = (numbers(1, m * k), numbers(2, k * n));
        let brain: Vec<bf16> = b.iter().map(|x| bf16::from_f32(*x)).collect();
        let half = Numbers::Bf16(&brain);
        let same = half.to_f32();
        let mut room = vec![f32::NAN; 5];
        let mut run = |numbers: Numbers| {
            let mut packed = Packed::default();
            packed.load_as_is(Right::rows(numbers, k).t(), k, n);
            let mut c = vec![1.0; m * wide];
            packed.multiply_into(View::rows(&a, k), &mut c[3..], wide, true, &mut room);
            c
        };
        let (kept, want) = (run(half), run(Numbers::F32(&same)));
        assert_eq!(kept, want);
        assert!(
            want.chunks_exact(wide)
                .all(|row| row[..3] == [1.0; 3] && row[3 + n..] == [1.0; 4])
        );
    }

    #[test]
    fn an_operand_is_packed_anew_in_other_numbers() {
        let (n, k) = (13, 33);
        let (b, other) = (numbers(1, k * n), numbers(2, k * n));
        let brain: Vec<bf16> = other.iter().map(|x| bf16::from_f32(*x)).collect();
        let (mut packed, mut fresh) = (Packed::default(), Packed::default());
        packed.load_as_is(Right::rows(Numbers::Bf16(&brain), n), k, n);
        packed.load(View::rows(&b, n), k, n);
        fresh.load(View::rows(&b, n), k, n);
        let a = numbers(3, k);
        assert_eq!(
            product(&packed, View::rows(&a, k), 1, n),
            product(&fresh, View::rows(&a, k), 1, n)
        );
        assert_eq!(packed.bytes(), fresh.bytes());
    }
}
