//! The stock engine: the same operations out of candle's own, on any device.
//!
//! Attention pads inside and unpads its result; masks of dropout are drawn on the host so that both engines agree. Where a
//! device has kernels of ours ([`Kernels`]), these do neither, and take the place of what is slow or many operations.
//!
//! With [`Precision::Bf16`] linear maps and the two products of attention take and give bf16, and what passes between
//! them is bf16. Weights, the residual stream, norms, softmax, sums over rows and losses stay f32; so do gradients of
//! weights, because a weight is cast where it is used. This is what PyTorch calls automatic mixed precision.

use super::attention::padded;
use super::tape::{check_below, check_hidden, check_offsets, check_rotations, rows_of};
use super::{Attention, Dropout, Graph, Heads, Norm, Source};
use crate::error::{Error, Result};
use crate::frozen::{Frozen, Numbers};
use crate::kernels::{Kernels, LOGITS, Places, WIDEST_HEAD};
use crate::weights::{Weight, Weights};
use candle_core::{D, DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// What products are computed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Everything in f32.
    #[default]
    F32,
    /// Products in bf16, the rest in f32.
    Bf16,
}

/// Weights on a device, and the operations on them.
pub struct Stock {
    device: Device,
    precision: Precision,
    /// Take the place of stock operations where there are some.
    kernels: Option<Kernels>,
    /// The last heads, and what kernels need of them.
    places: Option<(Heads, Arc<Places>)>,
    names: Vec<String>,
    variables: Vec<Var>,
    shapes: Vec<Vec<usize>>,
    index: HashMap<String, usize>,
    frozen: HashMap<String, Tensor>,
    /// Whether weights take no gradient for now.
    still: bool,
    /// Blocks to run anew on the way back, in order.
    segments: Vec<Segment>,
}

/// A part of a model, to run once more.
type Block = Box<dyn Fn(&mut Stock, &Tensor) -> Result<Tensor>>;

/// A block of which the result alone was kept.
struct Segment {
    x: Tensor,
    block: Block,
    /// The result, a leaf of the graph.
    out: Var,
}

impl Stock {
    /// Copies the weights to the device; everything is computed in f32.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn new(weights: &Weights, device: &Device) -> Result<Self> {
        let mut stock = Stock {
            device: device.clone(),
            precision: Precision::F32,
            kernels: Kernels::of(device),
            places: None,
            names: vec![],
            variables: vec![],
            shapes: vec![],
            index: HashMap::new(),
            frozen: HashMap::new(),
            still: false,
            segments: vec![],
        };
        for t in weights.tensors() {
            stock.index.insert(t.name.clone(), stock.names.len());
            stock.names.push(t.name.clone());
            stock.shapes.push(t.shape.clone());
            stock.variables.push(Var::from_slice(&t.data, t.matrix(), device)?);
        }
        Ok(stock)
    }

    /// The same weights, with products in this precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Stock { precision, ..self }
    }

    /// The same with these kernels, or with stock operations alone.
    pub fn with_kernels(self, kernels: Option<Kernels>) -> Self {
        Stock { kernels, ..self }
    }

    /// The same over further weights, which take no gradient; in bf16 where products are.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn with_frozen(mut self, frozen: Option<&Frozen>) -> Result<Self> {
        for t in frozen.map_or(&[][..], Frozen::tensors) {
            let tensor = match (t.numbers(), self.precision) {
                (Numbers::Bf16(same), Precision::Bf16) => Tensor::from_slice(same, t.matrix(), &self.device)?,
                (other, _) => self.factor(&Tensor::from_vec(other.to_f32(), t.matrix(), &self.device)?)?,
            };
            self.frozen.insert(t.name.clone(), tensor);
        }
        Ok(self)
    }

    /// The weights as matrices on the device, in f32, in the order of the store.
    pub fn variables(&self) -> &[Var] {
        &self.variables
    }

    /// Copies the weights back.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn weights(&self) -> Result<Weights> {
        let mut tensors = Vec::with_capacity(self.names.len());
        for ((name, shape), var) in self.names.iter().zip(&self.shapes).zip(&self.variables) {
            let data = var.as_tensor().flatten_all()?.to_vec1()?;
            tensors.push(Weight {
                name: name.clone(),
                shape: shape.clone(),
                data,
            });
        }
        Ok(Weights::from_tensors(tensors))
    }

    /// Whether weights take gradients from now on. Without, nothing is kept for the way back: for evaluations.
    pub(crate) fn track(&mut self, track: bool) {
        self.still = !track;
    }

    /// Gradients of `loss`, in the order of the weights; `None` where the graph does not use one.
    ///
    /// # Errors
    /// [`Error::Candle`], and those of blocks that are run anew.
    pub fn backward(&mut self, loss: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let segments = std::mem::take(&mut self.segments);
        let mut found = loss.backward()?;
        let mut gradients: Vec<Option<Tensor>> = self.variables.iter().map(|v| found.remove(v)).collect();
        let mut of_results: Vec<Option<Tensor>> = segments.iter().map(|segment| found.remove(&segment.out)).collect();
        for (at, segment) in segments.iter().enumerate().rev() {
            let Some(gradient) = of_results[at].take() else {
                continue;
            };
            let out = (segment.block)(self, &segment.x)?;
            let mut found = (out * gradient)?.sum_all()?.backward()?;
            for (sum, variable) in gradients.iter_mut().zip(&self.variables) {
                add(sum, found.remove(variable))?;
            }
            for (sum, earlier) in of_results[..at].iter_mut().zip(&segments) {
                add(sum, found.remove(&earlier.out))?;
            }
        }
        Ok(gradients)
    }

    /// Adds the gradients of `loss` to those of another graph over the same weights.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn backward_onto(&mut self, loss: &Tensor, gradients: &mut [Option<Tensor>]) -> Result<()> {
        for (sum, gradient) in gradients.iter_mut().zip(self.backward(loss)?) {
            add(sum, gradient)?;
        }
        Ok(())
    }

    /// A factor of a product.
    fn factor(&self, x: &Tensor) -> Result<Tensor> {
        match self.precision {
            Precision::F32 => Ok(x.clone()),
            Precision::Bf16 => Ok(x.to_dtype(DType::BF16)?),
        }
    }

    /// The type of factors.
    fn factors(&self) -> DType {
        match self.precision {
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }

    /// The angles of rows on the device, copied once for all layers that have the same.
    fn places(&mut self, shape: &Heads) -> Result<Arc<Places>> {
        match &self.places {
            Some((of, places)) if of.is(shape) => Ok(places.clone()),
            _ => {
                let places = Arc::new(Places::new(shape, &self.device)?);
                self.places = Some((shape.clone(), places.clone()));
                Ok(places)
            }
        }
    }

    fn indices(&self, values: Vec<u32>) -> Result<Tensor> {
        let n = values.len();
        Ok(Tensor::from_vec(values, n, &self.device)?)
    }

    fn norm_of(&self, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        expect("norm", (1, x.dim(1)?), w)?;
        let (x, w) = (full(x)?, full(w)?);
        let square = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?;
        Ok(x.broadcast_div(&square.sqrt()?)?.broadcast_mul(&w)?)
    }

    fn masked(&self, x: &Tensor, mask: Vec<u8>, dropout: Dropout) -> Result<Tensor> {
        let mask = Tensor::from_vec(mask, x.shape(), &self.device)?.to_dtype(x.dtype())?;
        Ok((x * (mask * f64::from(dropout.scale()))?)?)
    }

    /// By kernels, where there are some and heads are no wider than they take: `q` [Tq, H·K] over `kv` [Tk, 2·H·K], or
    /// within `q` [T, 3·H·K].
    fn fused(
        &self,
        q: &Tensor,
        kv: Option<&Tensor>,
        bias: Option<&Tensor>,
        shape: &Attention,
    ) -> Result<Option<Tensor>> {
        let Some(kernels) = self.kernels.as_ref().filter(|_| shape.key_dim <= WIDEST_HEAD) else {
            return Ok(None);
        };
        check_offsets(shape, q.dim(0)?, kv.unwrap_or(q).dim(0)?)?;
        let kv = kv.map(|kv| self.factor(kv)).transpose()?;
        let bias = bias.map(full).transpose()?;
        let out = kernels.attention(&self.factor(q)?, kv.as_ref(), bias.as_ref(), shape)?;
        Ok(Some(out))
    }

    /// `q` [Tq, H·K], `k` and `v` [Tk, H·K].
    fn attend(
        &self,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        bias: Option<&Tensor>,
        shape: &Attention,
    ) -> Result<Tensor> {
        check_offsets(shape, q.dim(0)?, k.dim(0)?)?;
        let (b, h) = (shape.queries.len() - 1, shape.heads);
        let longest = |offsets: &[usize]| offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0);
        let (lq, lk) = (longest(&shape.queries), longest(&shape.keys));
        let pad = |x: &Tensor, offsets: &[usize], l: usize| -> Result<Tensor> {
            let mut rows = Vec::with_capacity(b * l);
            for w in offsets.windows(2) {
                rows.extend((0..l).map(|i| (w[0] + i).min(w[1] - 1) as u32));
            }
            let x = x.contiguous()?.index_select(&self.indices(rows)?, 0)?;
            Ok(x.reshape((b, l, h, shape.key_dim))?.transpose(1, 2)?.contiguous()?) // [B, H, L, K]
        };
        let (q, k, v) = (self.factor(q)?, self.factor(k)?, self.factor(v)?);
        let q = pad(&q, &shape.queries, lq)?;
        let (k, v) = (pad(&k, &shape.keys, lk)?, pad(&v, &shape.keys, lk)?);
        let scores = full(&q.matmul(&k.t()?.contiguous()?)?)?; // [B, H, Lq, Lk]
        let mut scores = (scores * f64::from(shape.scale))?;
        if let Some(bias) = bias {
            let buckets = shape
                .buckets
                .ok_or_else(|| Error::shape("relative bias", "buckets", "none"))?;
            let table = buckets.table(lq, lk);
            let rows = (0..lq * lk).map(|x| table[x % lk + lq - 1 - x / lk]).collect();
            let bias = bias.index_select(&self.indices(rows)?, 0)?; // [Lq·Lk, H]
            let bias = bias.t()?.contiguous()?.reshape((1, h, lq, lk))?;
            scores = scores.broadcast_add(&full(&bias)?)?;
        }
        let mut hidden = vec![0f32; b * lq * lk];
        for (s, w) in shape.keys.windows(2).enumerate() {
            for i in 0..lq {
                let (nq, nk) = (shape.queries[s + 1] - shape.queries[s], w[1] - w[0]);
                let end = if shape.causal { (nk - nq + i + 1).min(nk) } else { nk };
                hidden[(s * lq + i) * lk..][end..lk].fill(-1e30);
            }
        }
        let hidden = Tensor::from_vec(hidden, (b, 1, lq, lk), &self.device)?;
        let scores = scores.broadcast_add(&hidden)?;
        let mut p = self.factor(&softmax(&scores)?)?;
        if shape.dropout.probability > 0.0 {
            let mut mask = vec![0u8; b * h * lq * lk];
            for s in 0..b {
                let nq = shape.queries[s + 1] - shape.queries[s];
                let nk = shape.keys[s + 1] - shape.keys[s];
                let dropout = Dropout {
                    key: shape.dropout.key.child(s as u64),
                    ..shape.dropout
                };
                for head in 0..h {
                    for i in 0..nq {
                        let out = &mut mask[((s * h + head) * lq + i) * lk..][..nk];
                        dropout.mask((head * nq + i) * padded(nk), out);
                    }
                }
            }
            p = self.masked(&p, mask, shape.dropout)?;
        }
        let out = p.matmul(&v)?.transpose(1, 2)?.contiguous()?; // [B, Lq, H, K]
        let out = out.reshape((b * lq, h * shape.key_dim))?;
        let rows = shape
            .queries
            .windows(2)
            .enumerate()
            .flat_map(|(s, w)| (0..w[1] - w[0]).map(move |i| (s * lq + i) as u32))
            .collect();
        Ok(out.index_select(&self.indices(rows)?, 0)?)
    }
}

/// Adds a gradient to others, where there is one.
fn add(sum: &mut Option<Tensor>, gradient: Option<Tensor>) -> Result<()> {
    *sum = match (sum.take(), gradient) {
        (Some(sum), Some(gradient)) => Some((sum + gradient)?),
        (one, other) => one.or(other),
    };
    Ok(())
}

/// What is no factor of a product.
fn full(x: &Tensor) -> Result<Tensor> {
    Ok(x.to_dtype(DType::F32)?)
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    Ok(x.broadcast_div(&x.sum_keepdim(D::Minus1)?)?)
}

fn expect(op: &str, expected: (usize, usize), x: &Tensor) -> Result<()> {
    let got = x.dims2()?;
    if got == expected {
        Ok(())
    } else {
        Err(Error::shape(op, expected, got))
    }
}

impl Graph for Stock {
    type Node = Tensor;

    fn weight(&mut self, name: &str) -> Result<Tensor> {
        match self.index.get(name) {
            Some(&i) if self.still => Ok(self.variables[i].as_detached_tensor()),
            Some(&i) => Ok(self.variables[i].as_tensor().clone()),
            None => self.frozen.get(name).cloned().ok_or_else(|| Error::TensorNames {
                missing: vec![name.into()],
                unexpected: vec![],
            }),
        }
    }

    fn constant(&mut self, values: &[f32], columns: usize) -> Result<Tensor> {
        let rows = rows_of(values, columns)?;
        Ok(Tensor::from_slice(values, (rows, columns), &self.device)?)
    }

    fn stack(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        let parts: Result<Vec<Tensor>> = parts.iter().map(full).collect();
        Ok(Tensor::cat(&parts?, 0)?)
    }

    fn gather(&mut self, table: &Tensor, rows: Arc<[u32]>) -> Result<Tensor> {
        check_below("gather", &rows, table.dim(0)?)?;
        Ok(table.index_select(&self.indices(rows.to_vec())?, 0)?)
    }

    fn linear(&mut self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, relu: bool, dropout: Dropout) -> Result<Tensor> {
        expect("linear", (w.dim(0)?, x.dim(1)?), w)?;
        if let Some(kernels) = &self.kernels
            && (b.is_some() || relu || dropout.probability > 0.0)
        {
            if let Some(b) = b {
                expect("linear bias", (1, w.dim(0)?), b)?;
            }
            let b = b.map(full).transpose()?;
            return kernels.linear((x, w, b.as_ref()), relu, dropout, self.factors());
        }
        let mut y = self.factor(x)?.matmul(&self.factor(w)?.t()?)?;
        if let Some(b) = b {
            expect("linear bias", (1, w.dim(0)?), b)?;
            y = y.broadcast_add(&self.factor(b)?)?;
        }
        if relu {
            y = y.relu()?;
        }
        self.dropout(&y, dropout)
    }

    fn rms_norm(&mut self, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        if let Some(kernels) = &self.kernels {
            expect("norm", (1, x.dim(1)?), w)?;
            return kernels.norm(Norm::Rms, x, &full(w)?, eps);
        }
        self.norm_of(x, w, eps)
    }

    fn layer_norm(&mut self, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        if let Some(kernels) = &self.kernels {
            expect("norm", (1, x.dim(1)?), w)?;
            return kernels.norm(Norm::Layer, x, &full(w)?, eps);
        }
        let x = full(x)?;
        let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
        self.norm_of(&centred, w, eps)
    }

    fn dropout(&mut self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        if dropout.probability == 0.0 {
            return Ok(x.clone());
        }
        if let Some(kernels) = &self.kernels {
            return kernels.dropout(x, dropout);
        }
        let mut mask = vec![0u8; x.elem_count()];
        dropout.mask(0, &mut mask);
        self.masked(x, mask, dropout)
    }

    fn residual(&mut self, x: &Tensor, y: &Tensor, dropout: Dropout) -> Result<Tensor> {
        expect("residual", x.dims2()?, y)?;
        if let Some(kernels) = &self.kernels {
            return kernels.residual(x, y, dropout);
        }
        Ok((full(x)? + full(&self.dropout(y, dropout)?)?)?)
    }

    fn self_attention(&mut self, qkv: &Tensor, bias: Option<&Tensor>, shape: &Attention) -> Result<Tensor> {
        let w = shape.heads * shape.key_dim;
        expect("self_attention", (qkv.dim(0)?, 3 * w), qkv)?;
        if let Some(out) = self.fused(qkv, None, bias, shape)? {
            return Ok(out);
        }
        let part = |i: usize| qkv.narrow(1, i * w, w);
        self.attend((&part(0)?, &part(1)?, &part(2)?), bias, shape)
    }

    fn cross_attention(&mut self, q: &Tensor, kv: &Tensor, shape: &Attention) -> Result<Tensor> {
        let w = shape.heads * shape.key_dim;
        expect("cross_attention", (q.dim(0)?, w), q)?;
        expect("cross_attention", (kv.dim(0)?, 2 * w), kv)?;
        if let Some(out) = self.fused(q, Some(kv), None, shape)? {
            return Ok(out);
        }
        self.attend((q, &kv.narrow(1, 0, w)?, &kv.narrow(1, w, w)?), None, shape)
    }

    fn cross_entropy(&mut self, logits: &Tensor, codes: Arc<[u32]>) -> Result<Tensor> {
        let (rows, columns) = logits.dims2()?;
        if codes.len() != rows {
            return Err(Error::shape("cross_entropy", rows, codes.len()));
        }
        check_below("cross_entropy", &codes, columns)?;
        if let Some(kernels) = &self.kernels {
            return kernels.cross_entropy(logits, &self.indices(codes.to_vec())?);
        }
        let logits = full(logits)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
        let total = shifted.exp()?.sum_keepdim(1)?.log()?; // [B, 1]
        let picked = shifted.gather(&self.indices(codes.to_vec())?.unsqueeze(1)?, 1)?; // [B, 1]
        Ok((total - picked)?.mean_all()?.reshape((1, 1))?)
    }

    fn row_dots(&mut self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        expect("row_dots", x.dims2()?, y)?;
        Ok((full(x)? * full(y)?)?.sum_keepdim(1)?)
    }

    fn binary_cross_entropy(&mut self, logits: &Tensor, label: bool) -> Result<Tensor> {
        if let Some(kernels) = &self.kernels {
            return kernels.binary_cross_entropy(logits, label);
        }
        let logits = full(logits)?;
        let against = if label { logits.neg()? } else { logits };
        // log(1 + e^x) without overflow
        let rest = ((against.abs()?.neg()?.exp()? + 1.0)?).log()?;
        Ok((against.relu()? + rest)?.mean_all()?.reshape((1, 1))?)
    }

    fn sampled_cross_entropy(&mut self, own: &Tensor, others: &Tensor, hidden: Arc<[(u32, u32)]>) -> Result<Tensor> {
        let (rows, columns) = others.dims2()?;
        expect("sampled_cross_entropy", (rows, 1), own)?;
        check_hidden(&hidden, rows, columns)?;
        if let Some(kernels) = &self.kernels {
            let pairs = match hidden.is_empty() {
                true => None,
                false => {
                    let pairs = hidden.iter().flat_map(|&(row, column)| [row, column]).collect();
                    Some(self.indices(pairs)?.reshape((hidden.len(), 2))?)
                }
            };
            return kernels.sampled_cross_entropy(own, others, pairs.as_ref());
        }
        let mut mask = vec![0f32; rows * columns];
        for &(row, column) in hidden.iter() {
            mask[row as usize * columns + column as usize] = -1e30;
        }
        let others = (full(others)? + Tensor::from_vec(mask, (rows, columns), &self.device)?)?;
        self.cross_entropy(&Tensor::cat(&[full(own)?, others], 1)?, vec![0; rows].into())
    }

    fn linear_cross_entropy(&mut self, x: &Tensor, w: &Tensor, codes: Arc<[u32]>) -> Result<Tensor> {
        if let Some(kernels) = &self.kernels {
            expect("linear_cross_entropy", (w.dim(0)?, x.dim(1)?), w)?;
            if codes.len() != x.dim(0)? {
                return Err(Error::shape("linear_cross_entropy", x.dim(0)?, codes.len()));
            }
            check_below("linear_cross_entropy", &codes, w.dim(0)?)?;
            let codes = self.indices(codes.to_vec())?;
            return kernels.linear_cross_entropy((x, w), &codes, self.factors(), LOGITS);
        }
        let logits = self.linear(x, w, None, false, Dropout::off())?;
        self.cross_entropy(&logits, codes)
    }

    fn adapted(
        &mut self,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        (a, b): (&Tensor, &Tensor),
        scale: f32,
        dropout: Dropout,
    ) -> Result<Tensor> {
        if let Some(kernels) = &self.kernels {
            expect("adapted", (w.dim(0)?, x.dim(1)?), w)?;
            expect("adapter a", (a.dim(0)?, x.dim(1)?), a)?;
            expect("adapter b", (w.dim(0)?, a.dim(0)?), b)?;
            if let Some(bias) = bias {
                expect("adapted bias", (1, w.dim(0)?), bias)?;
            }
            let bias = bias.map(full).transpose()?;
            return kernels.adapted((x, w, bias.as_ref()), (a, b), scale, dropout, self.factors());
        }
        let y = self.linear(x, w, bias, false, Dropout::off())?;
        let dropped = self.dropout(x, dropout)?;
        let low = self.linear(&dropped, a, None, false, Dropout::off())?;
        let low = self.linear(&low, b, None, false, Dropout::off())?;
        Ok((y + (low * f64::from(scale))?)?)
    }

    fn heads(&mut self, sources: &[Source<Tensor>], shape: &Heads) -> Result<Tensor> {
        check_rotations(shape)?;
        let (t, k) = (shape.positions.len(), shape.key_dim);
        if let Some(kernels) = self.kernels.clone() {
            let mut wide = Vec::with_capacity(sources.len());
            for source in sources {
                expect("heads", (t, source.x.dim(1)? / k * k), &source.x)?;
                let norm = source.norm.as_ref().map(|norm| {
                    expect("norm", (1, k), norm)?;
                    full(norm)
                });
                wide.push(Source {
                    norm: norm.transpose()?,
                    ..source.clone()
                });
            }
            return kernels.heads(&wide, &self.places(shape)?);
        }
        let pairs = shape.rotations.pairs;
        let angles = |of: &[f32]| -> Result<Tensor> {
            let table = Tensor::from_slice(of, (of.len() / pairs, pairs), &self.device)?;
            let rows = table.index_select(&self.indices(shape.positions.to_vec())?, 0)?;
            Ok(rows.reshape((t, 1, pairs))?)
        };
        let (cos, sin) = (angles(&shape.rotations.cos_pk)?, angles(&shape.rotations.sin_pk)?);
        let mut parts = Vec::with_capacity(sources.len());
        for source in sources {
            expect("heads", (t, source.x.dim(1)? / k * k), &source.x)?;
            let n = source.x.dim(1)? / k;
            let mut x = full(&source.x)?.reshape((t * n, k))?;
            if let Some(norm) = &source.norm {
                x = self.norm_of(&x, norm, shape.epsilon)?;
            }
            let mut x = x.reshape((t, n, k))?;
            if source.rotate {
                let (first, second) = (x.narrow(2, 0, pairs)?, x.narrow(2, pairs, pairs)?);
                let turned = [
                    (first.broadcast_mul(&cos)? - second.broadcast_mul(&sin)?)?,
                    (second.broadcast_mul(&cos)? + first.broadcast_mul(&sin)?)?,
                ];
                x = Tensor::cat(&turned, 2)?;
            }
            let repeated = Tensor::cat(&vec![x.unsqueeze(2)?; source.repeat], 2)?; // [T, n, repeat, K]
            parts.push(repeated.reshape((t, n * source.repeat * k))?);
        }
        Ok(Tensor::cat(&parts, 1)?)
    }

    fn swiglu(&mut self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        expect("swiglu", gate.dims2()?, up)?;
        if let Some(kernels) = &self.kernels {
            return match gate.dtype() == up.dtype() {
                true => kernels.swiglu(gate, up, self.factors()),
                false => kernels.swiglu(&full(gate)?, &full(up)?, self.factors()),
            };
        }
        let gate = full(gate)?;
        let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
        self.factor(&((gate * sigmoid)? * full(up)?)?)
    }

    fn sum(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        let mut sum = match parts.first() {
            Some(first) => full(first)?,
            None => return Err(Error::shape("sum", "at least one matrix", 0)),
        };
        for part in &parts[1..] {
            sum = (sum + full(part)?)?;
        }
        Ok(sum)
    }

    fn recomputed(
        &mut self,
        x: &Tensor,
        block: impl Fn(&mut Self, &Tensor) -> Result<Tensor> + 'static,
    ) -> Result<Tensor> {
        if self.still {
            return block(self, x);
        }
        self.still = true;
        let out = block(self, &x.detach());
        self.still = false;
        let out = Var::from_tensor(&out?.detach())?;
        let result = out.as_tensor().clone();
        self.segments.push(Segment {
            x: x.clone(),
            block: Box::new(block),
            out,
        });
        Ok(result)
    }

    fn shape(&self, node: &Tensor) -> (usize, usize) {
        node.dims2().unwrap_or((1, node.elem_count()))
    }

    fn values(&self, node: &Tensor) -> Result<Vec<f32>> {
        Ok(full(node)?.flatten_all()?.to_vec1()?)
    }
}
