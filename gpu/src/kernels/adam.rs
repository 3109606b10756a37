//! Adam's update of one tensor by one kernel.

use super::{Argument, Kernels, THREADS, blocks};
use crate::error::{Error, Result};
use candle_core::{DType, Tensor};

impl Kernels {
    /// Updates dense `w`, `m` and `v` in f32 in place; without a gradient it is one of zeros. The numbers are those of
    /// the kernel.
    pub(crate) fn adam(
        &self,
        (w, m, v): (&Tensor, &Tensor, &Tensor),
        gradient: Option<&Tensor>,
        numbers: [f32; 8],
    ) -> Result<()> {
        let gradient = gradient.map(|g| g.detach().contiguous()).transpose()?;
        for x in [m, v].into_iter().chain(&gradient) {
            if x.dims() != w.dims() || x.dtype() != DType::F32 {
                return Err(Error::shape("adam", w.dims(), x.dims()));
            }
        }
        let (rows, columns) = w.dims2()?;
        let matrices = [
            Argument::Write(w),
            gradient.as_ref().map_or(Argument::Absent, Argument::Read),
            Argument::Write(m),
            Argument::Write(v),
            Argument::Number(rows),
            Argument::Number(columns),
        ];
        let arguments = [&matrices[..], &numbers.map(Argument::Real)].concat();
        self.run("adam", blocks(rows * columns), THREADS, 0, &arguments)
    }
}
