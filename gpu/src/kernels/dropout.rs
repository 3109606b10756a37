//! Dropout by one kernel, forward and backward.

use super::{Argument, Kernels, of_type, result_of};
use crate::error::Result;
use crate::ops::Dropout;
use candle_core::Tensor;

/// Threads of a block.
const THREADS: usize = 256;
/// Elements that a thread works on, about.
const EACH: usize = 4;

impl Kernels {
    /// Dropout of every element, with the mask of the CPU's kernels.
    pub(crate) fn dropout(&self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let x = x.contiguous()?;
        let kernels = self.clone();
        let y = result_of("dropout", &[&x], x.shape(), x.dtype(), move |_, _, gradient| {
            let dx = gradient.zeros_like()?;
            kernels.mask(gradient, &dx, dropout)?;
            Ok(vec![Some(dx)])
        })?;
        self.mask(&x, &y, dropout)?;
        Ok(y)
    }

    /// `out = x · mask`.
    pub(super) fn mask(&self, x: &Tensor, out: &Tensor, dropout: Dropout) -> Result<()> {
        let n = x.elem_count();
        let (low, high) = dropout.key.halves();
        let arguments = [
            Argument::Read(x),
            Argument::Write(out),
            Argument::Number(n),
            Argument::Number(low as usize),
            Argument::Number(high as usize),
            Argument::Number(dropout.threshold() as usize),
            Argument::Real(dropout.scale()),
        ];
        let grid = (n.div_ceil(THREADS * EACH), 1);
        self.run(&of_type("dropout", x.dtype())?, grid, THREADS, 0, &arguments)
    }
}
