//! A linear map with a low-rank adapter as one node: neither product nor dropped input is kept for the way back.

use super::{Argument, Kernels, THREADS, of_type, plain, result_of, unwritten};
use crate::error::Result;
use crate::ops::Dropout;
use candle_core::{DType, Tensor};

/// Rows and columns of the result that one block has.
const TILE: (usize, usize) = (64, 128);
/// Bytes that it shares: 32 of the rank of both factors of the adapter, one with a column to spare.
const SHARED: usize = (TILE.0 + TILE.1 + 1) * 32 * 4;

impl Kernels {
    /// `x_TI · w_OIᵀ + b_O + scale · dropout(x_TI) · a_RIᵀ · b_ORᵀ`; products and the result are in the type `factor`,
    /// the bias is f32.
    pub(crate) fn adapted(
        &self,
        (x, w, bias): (&Tensor, &Tensor, Option<&Tensor>),
        (a, b): (&Tensor, &Tensor),
        scale: f32,
        dropout: Dropout,
        factor: DType,
    ) -> Result<Tensor> {
        let of_factor = |x: &Tensor| -> Result<Tensor> { Ok(plain(x)?.to_dtype(factor)?) };
        let (x_ti, w_oi) = (of_factor(x)?, of_factor(w)?);
        let (a_ri, b_or) = (of_factor(a)?, of_factor(b)?);
        let product = x_ti.matmul(&w_oi.t()?)?;
        let low_tr = self.dropped(&x_ti, dropout)?.matmul(&a_ri.t()?)?;
        let (kernels, low, up) = (self.clone(), low_tr.clone(), b_or.clone());
        let back = move |of: &[&Tensor], _: &Tensor, g_to: &Tensor| {
            let like = |gradient: Tensor, i: usize| gradient.to_dtype(of[i].dtype());
            let wanted = |i: usize| of[i].track_op();
            let mut gradients = vec![None; of.len()];
            let dlow_tr = (g_to.matmul(&up)? * f64::from(scale))?;
            if wanted(0) {
                let along = kernels.residual(&g_to.matmul(&w_oi)?, &dlow_tr.matmul(&a_ri)?, dropout)?;
                gradients[0] = Some(like(along, 0)?);
            }
            if wanted(1) {
                gradients[1] = Some(like(g_to.t()?.matmul(&x_ti)?, 1)?);
            }
            if wanted(2) {
                let dropped = kernels.dropped(&x_ti, dropout)?;
                gradients[2] = Some(like(dlow_tr.t()?.matmul(&dropped)?, 2)?);
            }
            if wanted(3) {
                gradients[3] = Some((like(g_to.t()?.matmul(&low)?, 3)? * f64::from(scale))?);
            }
            if of.len() > 4 && wanted(4) {
                gradients[4] = Some(kernels.column_sums(g_to)?);
            }
            Ok(gradients)
        };
        let inputs: Vec<&Tensor> = [x, w, a, b].into_iter().chain(bias).collect();
        let out = result_of("adapted", &inputs, product.shape(), factor, back)?;
        self.adapt(&product, bias, (&low_tr, &b_or), scale, &out)?;
        Ok(out)
    }

    /// `out = y + bias + scale · low · upᵀ`.
    pub(super) fn adapt(
        &self,
        y: &Tensor,
        bias: Option<&Tensor>,
        (low, up): (&Tensor, &Tensor),
        scale: f32,
        out: &Tensor,
    ) -> Result<()> {
        let ((rows, columns), (_, rank)) = (y.dims2()?, low.dims2()?);
        let bias = bias.map(plain).transpose()?;
        let arguments = [
            Argument::Read(y),
            bias.as_ref().map_or(Argument::Absent, Argument::Read),
            Argument::Read(low),
            Argument::Read(up),
            Argument::Write(out),
            Argument::Number(rows),
            Argument::Number(columns),
            Argument::Number(rank),
            Argument::Real(scale),
        ];
        let grid = (columns.div_ceil(TILE.1), rows.div_ceil(TILE.0));
        self.run(&of_type("adapt", out.dtype())?, grid, THREADS, SHARED, &arguments)
    }

    /// Dropout of what is no part of candle's graph.
    fn dropped(&self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        if dropout.probability == 0.0 {
            return Ok(x.clone());
        }
        let out = unwritten(x, x.shape(), x.dtype())?;
        self.mask(x, &out, dropout)?;
        Ok(out)
    }
}
