//! Sums that depend on no order of threads: blocks leave their shares, which another kernel adds in order.

use super::{Argument, Kernels, SHARES, THREADS, WARP, of_type, unwritten};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// Rows that one block adds.
const GROUP: usize = 512;
/// Most blocks for the squares of one tensor.
const SQUARES: usize = 1024;

/// Bytes of the room of a sum over a block.
pub(super) const ROOM: usize = 64 * 4;

impl Kernels {
    /// Sums of the columns of a dense matrix: [1, columns] in f32.
    pub(super) fn column_sums(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, _) = x.dims2()?;
        if rows <= GROUP {
            return self.grouped(x, rows.max(1));
        }
        let groups = rows.div_ceil(GROUP).min(SHARES);
        let each = rows.div_ceil(groups);
        self.column_sums(&self.grouped(x, each)?)
    }

    /// Sums of the columns over groups of `each` rows.
    fn grouped(&self, x: &Tensor, each: usize) -> Result<Tensor> {
        let (rows, columns) = x.dims2()?;
        let groups = rows.div_ceil(each).max(1);
        let out = unwritten(x, (groups, columns), DType::F32)?;
        let arguments = [
            Argument::Read(x),
            Argument::Write(&out),
            Argument::Number(rows),
            Argument::Number(columns),
            Argument::Number(each),
        ];
        let grid = (columns.div_ceil(WARP), groups);
        self.run(
            &of_type("column_sums", x.dtype())?,
            grid,
            THREADS,
            THREADS * 4,
            &arguments,
        )?;
        Ok(out)
    }

    /// Writes `scale` times the sum of `x` to the one number of `out`.
    pub(super) fn total(&self, x: &Tensor, out: &Tensor, scale: f32) -> Result<()> {
        let arguments = [
            Argument::Read(x),
            Argument::Write(out),
            Argument::Number(x.elem_count()),
            Argument::Real(scale),
        ];
        self.run("total", (1, 1), THREADS, ROOM, &arguments)
    }

    /// The sum of the squares of all tensors, copied from the device once.
    pub(crate) fn sum_of_squares(&self, tensors: &[&Tensor]) -> Result<f64> {
        let shares = |x: &Tensor| x.elem_count().div_ceil(4 * THREADS).min(SQUARES);
        let Some(first) = tensors.first() else {
            return Ok(0.0);
        };
        let out = unwritten(first, tensors.iter().map(|x| shares(x)).sum::<usize>(), DType::F32)?;
        let mut at = 0;
        for x in tensors {
            let dense = x.contiguous()?;
            let (rows, columns) = dense.dims2()?;
            let arguments = [
                Argument::Read(&dense),
                Argument::Write(&out),
                Argument::Number(rows),
                Argument::Number(columns),
                Argument::Number(at),
            ];
            self.run("squares", (shares(x), 1), THREADS, ROOM, &arguments)?;
            at += shares(x);
        }
        Ok(out.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
    }
}
