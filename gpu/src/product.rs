//! One matrix product on one thread, over strided views: the door to the `gemm` crate.
//!
//! Parallel callers split their rows into tasks of a shape that does not depend on the number of threads and call
//! [`product`] once per task, so a result never depends on how many threads there were.

/// A matrix inside a slice: entry (r, c) is `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, T> {
    /// The slice the matrix lies in, from its first entry on.
    pub data: &'a [T],
    /// Entries from one row to the next.
    pub row_stride: usize,
    /// Entries from one column to the next.
    pub col_stride: usize,
}

impl<'a, T> View<'a, T> {
    /// A row-major matrix whose rows are `width` entries apart.
    pub(crate) fn rows(data: &'a [T], width: usize) -> Self {
        View {
            data,
            row_stride: width,
            col_stride: 1,
        }
    }

    /// The transpose of a row-major matrix whose rows are `width` entries apart.
    pub(crate) fn transposed(data: &'a [T], width: usize) -> Self {
        View {
            data,
            row_stride: 1,
            col_stride: width,
        }
    }
}

/// Numbers that [`product`] multiplies.
pub(crate) trait Real: Copy + 'static {
    /// 1.
    const ONE: Self;
}

impl Real for f32 {
    const ONE: f32 = 1.0;
}

impl Real for f64 {
    const ONE: f64 = 1.0;
}

/// `out = scale * lhs * rhs`, or `out += scale * lhs * rhs` with `add`; `lhs` [rows, inner], `rhs` [inner, cols],
/// `out` row-major with rows `out_width` apart. Panics where a view is shorter than its shape.
#[allow(clippy::too_many_arguments)]
pub(crate) fn product<T: Real>(
    (rows, inner, cols): (usize, usize, usize),
    scale: T,
    lhs: View<'_, T>,
    rhs: View<'_, T>,
    add: bool,
    out: &mut [T],
    out_width: usize,
) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(
        cols <= out_width && (rows - 1) * out_width + cols <= out.len(),
        "output shorter than its shape"
    );
    if inner > 0 {
        let last = |v: View<'_, T>, r: usize, c: usize| (r - 1) * v.row_stride + (c - 1) * v.col_stride;
        assert!(
            last(lhs, rows, inner) < lhs.data.len(),
            "left matrix shorter than its shape"
        );
        assert!(
            last(rhs, inner, cols) < rhs.data.len(),
            "right matrix shorter than its shape"
        );
    }
    // SAFETY: the asserts above keep every entry the kernel reads or writes inside its slice; `out` is exclusive.
    unsafe {
        gemm::gemm(
            rows,
            cols,
            inner,
            out.as_mut_ptr(),
            1,
            out_width as isize,
            add,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            T::ONE,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definition_over_odd_sizes() {
        for (m, k, n) in [(1, 1, 1), (7, 13, 33), (33, 7, 13), (64, 50, 3), (5, 0, 4)] {
            let a: Vec<f64> = (0..m * k).map(|i| (i % 11) as f64 - 5.0).collect();
            let b: Vec<f64> = (0..k * n).map(|i| (i % 7) as f64 - 3.0).collect();
            let mut out = vec![1.0; m * n];
            product(
                (m, k, n),
                2.0,
                View::rows(&a, k.max(1)),
                View::rows(&b, n),
                true,
                &mut out,
                n,
            );
            for r in 0..m {
                for c in 0..n {
                    let want: f64 = 1.0 + 2.0 * (0..k).map(|i| a[r * k + i] * b[i * n + c]).sum::<f64>();
                    assert_eq!(out[r * n + c], want, "{m} {k} {n} at {r},{c}");
                }
            }
        }
    }
}
