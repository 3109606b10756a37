//! Operations element by element: the end of a residual block, that of a linear map, SwiGLU.

use super::{Argument, Kernels, THREADS, blocks, of_type, of_types, plain, result_of, unwritten};
use crate::error::Result;
use crate::ops::Dropout;
use candle_core::{DType, Tensor};

/// A mask as kernels take it.
fn mask(dropout: Dropout) -> [Argument<'static>; 4] {
    let (low, high) = dropout.key.halves();
    [
        Argument::Number(low as usize),
        Argument::Number(high as usize),
        Argument::Number(dropout.threshold() as usize),
        Argument::Real(dropout.scale()),
    ]
}

impl Kernels {
    /// A kernel over the elements of matrices of the shape of `x`: the matrices, that shape, then the rest.
    fn each(&self, kernel: &str, x: &Tensor, matrices: &[Argument], rest: &[Argument]) -> Result<()> {
        let (rows, columns) = x.dims2()?;
        let shape = [Argument::Number(rows), Argument::Number(columns)];
        let arguments = [matrices, &shape, rest].concat();
        self.run(kernel, blocks(rows * columns), THREADS, 0, &arguments)
    }

    /// `x + dropout(y)` in f32.
    pub(crate) fn residual(&self, x: &Tensor, y: &Tensor, dropout: Dropout) -> Result<Tensor> {
        let (x, y) = (x.contiguous()?, y.contiguous()?);
        let kernels = self.clone();
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            let dx = of[0].track_op().then(|| gradient.to_dtype(of[0].dtype())).transpose()?;
            let dy = match (of[1].track_op(), dropout.probability == 0.0) {
                (false, _) => None,
                (true, true) => Some(gradient.to_dtype(of[1].dtype())?),
                (true, false) => {
                    let dy = unwritten(of[1], of[1].shape(), of[1].dtype())?;
                    let matrices = [Argument::Read(gradient), Argument::Write(&dy)];
                    let kernel = of_type("residual_back", dy.dtype())?;
                    kernels.each(&kernel, gradient, &matrices, &mask(dropout))?;
                    Some(dy)
                }
            };
            Ok(vec![dx, dy])
        };
        let out = result_of("residual", &[&x, &y], x.shape(), DType::F32, back)?;
        let matrices = [Argument::Read(&x), Argument::Read(&y), Argument::Write(&out)];
        let kernel = of_types("residual", x.dtype(), y.dtype())?;
        self.each(&kernel, &x, &matrices, &mask(dropout))?;
        Ok(out)
    }

    /// `dropout(relu(x_TI · w_OIᵀ + b_O))` with the product, and the result, in the type `factor`; the bias is f32.
    pub(crate) fn linear(
        &self,
        (x, w, b): (&Tensor, &Tensor, Option<&Tensor>),
        relu: bool,
        dropout: Dropout,
        factor: DType,
    ) -> Result<Tensor> {
        let (x_ti, w_oi) = (plain(x)?.to_dtype(factor)?, plain(w)?.to_dtype(factor)?);
        let product = x_ti.matmul(&w_oi.t()?)?;
        let kernels = self.clone();
        let back = move |of: &[&Tensor], result: &Tensor, gradient: &Tensor| {
            let g_to = kernels.linear_end_back(result, gradient, relu, dropout)?;
            let dx = of[0]
                .track_op()
                .then(|| g_to.matmul(&w_oi)?.to_dtype(of[0].dtype()))
                .transpose()?;
            let dw = of[1]
                .track_op()
                .then(|| g_to.t()?.matmul(&x_ti)?.to_dtype(of[1].dtype()))
                .transpose()?;
            let db = of.get(2).map(|b| match b.track_op() {
                true => kernels.column_sums(&g_to).map(Some),
                false => Ok(None),
            });
            Ok([dx, dw].into_iter().chain(db.transpose()?).collect())
        };
        let inputs: Vec<&Tensor> = [x, w].into_iter().chain(b).collect();
        let y = result_of("linear", &inputs, product.shape(), factor, back)?;
        self.linear_end(&product, b, &y, relu, dropout)?;
        Ok(y)
    }

    /// `out = dropout(relu(product + bias))`.
    pub(super) fn linear_end(
        &self,
        product: &Tensor,
        bias: Option<&Tensor>,
        out: &Tensor,
        relu: bool,
        dropout: Dropout,
    ) -> Result<()> {
        let bias = bias.map(plain).transpose()?;
        let matrices = [
            Argument::Read(product),
            bias.as_ref().map_or(Argument::Absent, Argument::Read),
            Argument::Write(out),
        ];
        let rest = [&[Argument::Number(usize::from(relu))][..], &mask(dropout)].concat();
        self.each(&of_type("linear_end", out.dtype())?, out, &matrices, &rest)
    }

    /// The gradient of the product and of the bias's rows.
    pub(super) fn linear_end_back(
        &self,
        result: &Tensor,
        gradient: &Tensor,
        relu: bool,
        dropout: Dropout,
    ) -> Result<Tensor> {
        if !relu && dropout.probability == 0.0 {
            return Ok(gradient.clone());
        }
        let dx = unwritten(result, result.shape(), result.dtype())?;
        let matrices = [Argument::Read(result), Argument::Read(gradient), Argument::Write(&dx)];
        let rest = [&[Argument::Number(usize::from(relu))][..], &mask(dropout)].concat();
        self.each(&of_type("linear_end_back", dx.dtype())?, &dx, &matrices, &rest)?;
        Ok(dx)
    }

    /// `silu(gate) * up` in the type `dtype`; both are of one type.
    pub(crate) fn swiglu(&self, gate: &Tensor, up: &Tensor, dtype: DType) -> Result<Tensor> {
        let (gate, up) = (gate.contiguous()?, up.contiguous()?);
        let kernels = self.clone();
        let back = move |of: &[&Tensor], _: &Tensor, gradient: &Tensor| {
            let like = |x: &Tensor| unwritten(x, x.shape(), x.dtype());
            let (dgate, dup) = (like(of[0])?, like(of[1])?);
            let matrices = [
                Argument::Read(of[0]),
                Argument::Read(of[1]),
                Argument::Read(gradient),
                Argument::Write(&dgate),
                Argument::Write(&dup),
            ];
            let kernel = of_types("swiglu_back", of[0].dtype(), gradient.dtype())?;
            kernels.each(&kernel, gradient, &matrices, &[])?;
            let wanted = |x: &Tensor, gradient| x.track_op().then_some(gradient);
            Ok(vec![wanted(of[0], dgate), wanted(of[1], dup)])
        };
        let out = result_of("swiglu", &[&gate, &up], gate.shape(), dtype, back)?;
        let matrices = [Argument::Read(&gate), Argument::Read(&up), Argument::Write(&out)];
        self.each(&of_types("swiglu", gate.dtype(), dtype)?, &gate, &matrices, &[])?;
        Ok(out)
    }

    /// A dense matrix times the one number of `factor`, in the type `dtype`.
    pub(super) fn scaled(&self, x: &Tensor, factor: &Tensor, dtype: DType) -> Result<Tensor> {
        let out = unwritten(x, x.shape(), dtype)?;
        let matrices = [Argument::Read(x), Argument::Read(factor), Argument::Write(&out)];
        self.each(&of_types("scaled", x.dtype(), dtype)?, x, &matrices, &[])?;
        Ok(out)
    }

    /// `sum += x` for a sum in f32; the first one is written over what was there.
    pub(super) fn add_onto(&self, x: &Tensor, sum: &Tensor, first: bool) -> Result<()> {
        let matrices = [Argument::Read(x), Argument::Write(sum)];
        let first = [Argument::Number(usize::from(first))];
        self.each(&of_type("add_onto", x.dtype())?, x, &matrices, &first)
    }
}
