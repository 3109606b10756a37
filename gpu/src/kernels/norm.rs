//! RMS norm and layer norm.

use super::sums::ROOM;
use super::{Argument, Kernels, SHARES, THREADS, WARP, of_type, result_of, unwritten};
use crate::error::Result;
use crate::ops::Norm;
use candle_core::{DType, Tensor};

/// Columns up to which a warp has a row; where there are more, a block has one.
const NARROW: usize = 1024;

/// The name of a kernel by rows, and how many rows a block has at a time.
pub(super) fn by_rows(kernel: &str, columns: usize, dtype: DType) -> Result<(String, usize)> {
    match columns <= NARROW {
        true => Ok((of_type(&format!("{kernel}_warp"), dtype)?, THREADS / WARP)),
        false => Ok((of_type(&format!("{kernel}_block"), dtype)?, 1)),
    }
}

impl Kernels {
    /// The norm of every row, in f32; `x` [T, D] is f32 or bf16, `w` [1, D] f32.
    pub(crate) fn norm(&self, norm: Norm, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        let (x, w) = (x.contiguous()?, w.contiguous()?);
        let (rows, columns) = x.dims2()?;
        let centred = usize::from(norm == Norm::Layer);
        let kernels = self.clone();
        let y = result_of(
            "norm",
            &[&x, &w],
            (rows, columns),
            DType::F32,
            move |of, _, gradient| {
                let (x, w) = (of[0], of[1]);
                let (kernel, each) = by_rows("norm_back", columns, x.dtype())?;
                let blocks = rows.div_ceil(each).clamp(1, SHARES);
                let dx = x.track_op().then(|| unwritten(x, x.shape(), x.dtype())).transpose()?;
                let dw = w.track_op().then(|| unwritten(x, (blocks, columns), DType::F32));
                let dw = dw.transpose()?;
                let arguments = [
                    Argument::Read(x),
                    Argument::Read(w),
                    Argument::Read(gradient),
                    dx.as_ref().map_or(Argument::Absent, Argument::Write),
                    dw.as_ref().map_or(Argument::Absent, Argument::Write),
                    Argument::Number(rows),
                    Argument::Number(columns),
                    Argument::Real(eps),
                    Argument::Number(centred),
                ];
                let shared = ROOM + each * columns * 4;
                kernels.run(&kernel, (blocks, 1), THREADS, shared, &arguments)?;
                let dw = dw.map(|shares| kernels.column_sums(&shares)).transpose()?;
                Ok(vec![dx, dw])
            },
        )?;
        let (kernel, each) = by_rows("norm", columns, x.dtype())?;
        let arguments = [
            Argument::Read(&x),
            Argument::Read(&w),
            Argument::Write(&y),
            Argument::Number(rows),
            Argument::Number(columns),
            Argument::Real(eps),
            Argument::Number(centred),
        ];
        self.run(&kernel, (rows.div_ceil(each), 1), THREADS, ROOM, &arguments)?;
        Ok(y)
    }
}
