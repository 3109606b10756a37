//! Cross-entropy: by rows, against a table without all logits, against sampled candidates, binary.

use super::norm::by_rows;
use super::sums::ROOM;
use super::{Argument, Kernels, SHARES, THREADS, blocks, of_type, plain, result_of, unwritten};
use crate::error::Result;
use candle_core::{DType, Tensor};

/// Bytes of logits that are held together where there are too many for all.
pub(crate) const LOGITS: usize = 256 << 20;

impl Kernels {
    /// Mean cross-entropy of `logits` [T, N] against `codes` [T]: [1, 1].
    pub(crate) fn cross_entropy(&self, logits: &Tensor, codes: &Tensor) -> Result<Tensor> {
        let logits = logits.contiguous()?;
        let totals = unwritten(&logits, logits.dim(0)?, DType::F32)?;
        let (kernels, targets, norms) = (self.clone(), codes.clone(), totals.clone());
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            Ok(vec![Some(kernels.softmax_back(of[0], &targets, &norms, gradient)?)])
        };
        let loss = result_of("cross_entropy", &[&logits], (1, 1), DType::F32, back)?;
        self.row_losses(&logits, codes, &totals, &loss)?;
        Ok(loss)
    }

    /// Mean cross-entropy of `own` [T, 1] against `own` and `others` [T, N], without the elements of `hidden` [H, 2],
    /// if there are some.
    pub(crate) fn sampled_cross_entropy(
        &self,
        own: &Tensor,
        others: &Tensor,
        hidden: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (rows, columns) = others.dims2()?;
        let wide = |x: &Tensor| -> Result<Tensor> { Ok(plain(x)?.to_dtype(DType::F32)?) };
        let joint = Tensor::cat(&[wide(own)?, wide(others)?], 1)?;
        if let Some(hidden) = hidden {
            let count = hidden.dim(0)?;
            let arguments = [
                Argument::Write(&joint),
                Argument::Read(hidden),
                Argument::Number(count),
                Argument::Number(columns),
            ];
            self.run("hide", blocks(count), THREADS, 0, &arguments)?;
        }
        let codes = Tensor::zeros(rows, DType::U32, joint.device())?;
        let totals = unwritten(&joint, rows, DType::F32)?;
        let (kernels, all, targets, norms) = (self.clone(), joint.clone(), codes.clone(), totals.clone());
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            let joint = kernels.softmax_back(&all, &targets, &norms, gradient)?;
            let part = |x: &Tensor, first: usize, count: usize| -> Result<Option<Tensor>> {
                Ok(Some(joint.narrow(1, first, count)?.to_dtype(x.dtype())?))
            };
            Ok(vec![part(of[0], 0, 1)?, part(of[1], 1, columns)?])
        };
        let loss = result_of("sampled_cross_entropy", &[own, others], (1, 1), DType::F32, back)?;
        self.row_losses(&joint, &codes, &totals, &loss)?;
        Ok(loss)
    }

    /// Mean cross-entropy of `x` [T, D] times the transposed table `w` [N, D] against `codes` [T]: [1, 1]. Products are
    /// in the type `factor`; at most `room` bytes of logits are held, but those of one row at least. Gradients are
    /// computed on the way.
    pub(crate) fn linear_cross_entropy(
        &self,
        (x, w): (&Tensor, &Tensor),
        codes: &Tensor,
        factor: DType,
        room: usize,
    ) -> Result<Tensor> {
        let (x_td, w_nd) = (plain(x)?.to_dtype(factor)?, plain(w)?.to_dtype(factor)?);
        let ((rows, _), (n, _)) = (x_td.dims2()?, w_nd.dims2()?);
        let losses = unwritten(&x_td, rows, DType::F32)?;
        let each = (room / (n * factor.size_in_bytes()).max(1)).clamp(1, rows.max(1));
        let mut dx = Vec::new();
        let mut dw = None;
        for first in (0..rows).step_by(each) {
            let count = each.min(rows - first);
            let x_td = x_td.narrow(0, first, count)?;
            let logits = x_td.matmul(&w_nd.t()?)?;
            let (codes, losses) = (codes.narrow(0, first, count)?, losses.narrow(0, first, count)?);
            self.loss_in_place(&logits, &codes, &losses, 1.0 / rows as f32)?;
            if x.track_op() {
                dx.push(logits.matmul(&w_nd)?);
            }
            if w.track_op() {
                let part = logits.t()?.matmul(&x_td)?;
                dw = match dw {
                    None if count == rows => Some(part),
                    sum => {
                        let first = sum.is_none();
                        let sum = sum.map_or_else(|| unwritten(&part, part.shape(), DType::F32), Ok)?;
                        self.add_onto(&part, &sum, first)?;
                        Some(sum)
                    }
                };
            }
        }
        let dx = match dx.len() {
            0 => None,
            1 => dx.pop(),
            _ => Some(Tensor::cat(&dx, 0)?),
        };
        let kernels = self.clone();
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            let scaled = |of: &Tensor, kept: &Option<Tensor>| -> Result<Option<Tensor>> {
                let kept = kept.as_ref();
                kept.map(|kept| kernels.scaled(kept, gradient, of.dtype())).transpose()
            };
            Ok(vec![scaled(of[0], &dx)?, scaled(of[1], &dw)?])
        };
        let loss = result_of("linear_cross_entropy", &[x, w], (1, 1), DType::F32, back)?;
        self.total(&losses, &loss, 1.0 / rows as f32)?;
        Ok(loss)
    }

    /// Turns logits into `scale` times the gradients of the losses of their rows, which it writes.
    pub(super) fn loss_in_place(&self, logits: &Tensor, codes: &Tensor, losses: &Tensor, scale: f32) -> Result<()> {
        let (rows, columns) = logits.dims2()?;
        let (kernel, each) = by_rows("cross_entropy_in_place", columns, logits.dtype())?;
        let arguments = [
            Argument::Write(logits),
            Argument::Read(codes),
            Argument::Write(losses),
            Argument::Number(rows),
            Argument::Number(columns),
            Argument::Real(scale),
        ];
        self.run(&kernel, (rows.div_ceil(each), 1), THREADS, ROOM, &arguments)
    }

    /// Mean binary cross-entropy of logits that should all be true, or all false: [1, 1].
    pub(crate) fn binary_cross_entropy(&self, logits: &Tensor, label: bool) -> Result<Tensor> {
        let logits = logits.contiguous()?;
        let n = logits.elem_count();
        let sign = if label { -1.0 } else { 1.0 };
        let kernels = self.clone();
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            let dx = unwritten(of[0], of[0].shape(), of[0].dtype())?;
            let arguments = [
                Argument::Read(of[0]),
                Argument::Read(gradient),
                Argument::Write(&dx),
                Argument::Number(n),
                Argument::Real(sign),
                Argument::Real(1.0 / n as f32),
            ];
            kernels.run(&of_type("binary_back", dx.dtype())?, blocks(n), THREADS, 0, &arguments)?;
            Ok(vec![Some(dx)])
        };
        let loss = result_of("binary_cross_entropy", &[&logits], (1, 1), DType::F32, back)?;
        let shares = blocks(n).0.clamp(1, SHARES);
        let parts = unwritten(&logits, shares, DType::F32)?;
        let arguments = [
            Argument::Read(&logits),
            Argument::Write(&parts),
            Argument::Number(n),
            Argument::Real(sign),
        ];
        let kernel = of_type("binary", logits.dtype())?;
        self.run(&kernel, (shares, 1), THREADS, ROOM, &arguments)?;
        self.total(&parts, &loss, 1.0 / n as f32)?;
        Ok(loss)
    }

    /// Writes the logarithms of the sums of exponentials of rows, and the mean loss.
    fn row_losses(&self, logits: &Tensor, codes: &Tensor, totals: &Tensor, loss: &Tensor) -> Result<()> {
        let (rows, columns) = logits.dims2()?;
        let losses = unwritten(logits, rows, DType::F32)?;
        let (kernel, each) = by_rows("cross_entropy", columns, logits.dtype())?;
        let arguments = [
            Argument::Read(logits),
            Argument::Read(codes),
            Argument::Write(&losses),
            Argument::Write(totals),
            Argument::Number(rows),
            Argument::Number(columns),
        ];
        self.run(&kernel, (rows.div_ceil(each), 1), THREADS, ROOM, &arguments)?;
        self.total(&losses, loss, 1.0 / rows as f32)
    }

    /// `(softmax - onehot) · gradient / rows`.
    fn softmax_back(&self, logits: &Tensor, codes: &Tensor, totals: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let (rows, columns) = logits.dims2()?;
        let dx = unwritten(logits, logits.shape(), logits.dtype())?;
        let (kernel, each) = by_rows("cross_entropy_back", columns, logits.dtype())?;
        let arguments = [
            Argument::Read(logits),
            Argument::Read(codes),
            Argument::Read(totals),
            Argument::Read(gradient),
            Argument::Write(&dx),
            Argument::Number(rows),
            Argument::Number(columns),
            Argument::Real(1.0 / rows as f32),
        ];
        self.run(&kernel, (rows.div_ceil(each), 1), THREADS, 0, &arguments)?;
        Ok(dx)
    }
}
