//! The stock engine: the same operations out of candle's own, on any device.
//!
//! Attention pads inside and unpads its result; masks of dropout are drawn on the host so that both engines agree.

use super::attention::padded;
use super::tape::{check_below, check_offsets};
use super::{Attention, Dropout, Graph};
use crate::error::{Error, Result};
use crate::weights::{Weight, Weights};
use candle_core::{D, DType, Device, Tensor, Var};
use std::collections::HashMap;
use std::sync::Arc;

/// Weights on a device, and the operations on them.
pub struct Stock {
    device: Device,
    names: Vec<String>,
    variables: Vec<Var>,
    shapes: Vec<Vec<usize>>,
    index: HashMap<String, usize>,
}

impl Stock {
    /// Copies the weights to the device.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn new(weights: &Weights, device: &Device) -> Result<Self> {
        let mut stock = Stock {
            device: device.clone(),
            names: vec![],
            variables: vec![],
            shapes: vec![],
            index: HashMap::new(),
        };
        for t in weights.tensors() {
            stock.index.insert(t.name.clone(), stock.names.len());
            stock.names.push(t.name.clone());
            stock.shapes.push(t.shape.clone());
            stock.variables.push(Var::from_slice(&t.data, t.matrix(), device)?);
        }
        Ok(stock)
    }

    /// The weights as matrices on the device, in the order of the store.
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

    /// Gradients of `loss`, in the order of the weights; `None` where the graph does not use one.
    ///
    /// # Errors
    /// [`Error::Candle`].
    pub fn backward(&self, loss: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut gradients = loss.backward()?;
        Ok(self.variables.iter().map(|v| gradients.remove(v.as_tensor())).collect())
    }

    fn indices(&self, values: Vec<u32>) -> Result<Tensor> {
        let n = values.len();
        Ok(Tensor::from_vec(values, n, &self.device)?)
    }

    fn masked(&self, x: &Tensor, mask: Vec<u8>, dropout: Dropout) -> Result<Tensor> {
        let mask = Tensor::from_vec(mask, x.shape(), &self.device)?.to_dtype(DType::F32)?;
        Ok((x * (mask * f64::from(dropout.scale()))?)?)
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
        let q = pad(q, &shape.queries, lq)?;
        let (k, v) = (pad(k, &shape.keys, lk)?, pad(v, &shape.keys, lk)?);
        let mut scores = q.matmul(&k.t()?.contiguous()?)?; // [B, H, Lq, Lk]
        if let Some(bias) = bias {
            let table = shape.buckets.table(lq, lk);
            let rows = (0..lq * lk).map(|x| table[x % lk + lq - 1 - x / lk]).collect();
            let bias = bias.index_select(&self.indices(rows)?, 0)?; // [Lq·Lk, H]
            let bias = bias.t()?.contiguous()?.reshape((1, h, lq, lk))?;
            scores = scores.broadcast_add(&bias)?;
        }
        let mut hidden = vec![0f32; b * lq * lk];
        for (s, w) in shape.keys.windows(2).enumerate() {
            for i in 0..lq {
                let end = if shape.causal {
                    (i + 1).min(w[1] - w[0])
                } else {
                    w[1] - w[0]
                };
                hidden[(s * lq + i) * lk..][end..lk].fill(-1e30);
            }
        }
        let hidden = Tensor::from_vec(hidden, (b, 1, lq, lk), &self.device)?;
        let scores = scores.broadcast_add(&hidden)?;
        let mut p = softmax(&scores)?;
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
            Some(&i) => Ok(self.variables[i].as_tensor().clone()),
            None => Err(Error::TensorNames {
                missing: vec![name.into()],
                unexpected: vec![],
            }),
        }
    }

    fn stack(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        Ok(Tensor::cat(parts, 0)?)
    }

    fn gather(&mut self, table: &Tensor, rows: Arc<[u32]>) -> Result<Tensor> {
        check_below("gather", &rows, table.dim(0)?)?;
        Ok(table.index_select(&self.indices(rows.to_vec())?, 0)?)
    }

    fn linear(&mut self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, relu: bool, dropout: Dropout) -> Result<Tensor> {
        expect("linear", (w.dim(0)?, x.dim(1)?), w)?;
        let mut y = x.matmul(&w.t()?)?;
        if let Some(b) = b {
            expect("linear bias", (1, w.dim(0)?), b)?;
            y = y.broadcast_add(b)?;
        }
        if relu {
            y = y.relu()?;
        }
        self.dropout(&y, dropout)
    }

    fn rms_norm(&mut self, x: &Tensor, w: &Tensor, eps: f32) -> Result<Tensor> {
        expect("rms_norm", (1, x.dim(1)?), w)?;
        let square = (x.sqr()?.mean_keepdim(1)? + f64::from(eps))?;
        Ok(x.broadcast_div(&square.sqrt()?)?.broadcast_mul(w)?)
    }

    fn dropout(&mut self, x: &Tensor, dropout: Dropout) -> Result<Tensor> {
        if dropout.probability == 0.0 {
            return Ok(x.clone());
        }
        let mut mask = vec![0u8; x.elem_count()];
        dropout.mask(0, &mut mask);
        self.masked(x, mask, dropout)
    }

    fn residual(&mut self, x: &Tensor, y: &Tensor, dropout: Dropout) -> Result<Tensor> {
        expect("residual", x.dims2()?, y)?;
        Ok((x + self.dropout(y, dropout)?)?)
    }

    fn self_attention(&mut self, qkv: &Tensor, bias: Option<&Tensor>, shape: &Attention) -> Result<Tensor> {
        let w = shape.heads * shape.key_dim;
        expect("self_attention", (qkv.dim(0)?, 3 * w), qkv)?;
        let part = |i: usize| qkv.narrow(1, i * w, w);
        self.attend((&part(0)?, &part(1)?, &part(2)?), bias, shape)
    }

    fn cross_attention(&mut self, q: &Tensor, kv: &Tensor, shape: &Attention) -> Result<Tensor> {
        let w = shape.heads * shape.key_dim;
        expect("cross_attention", (q.dim(0)?, w), q)?;
        expect("cross_attention", (kv.dim(0)?, 2 * w), kv)?;
        self.attend((q, &kv.narrow(1, 0, w)?, &kv.narrow(1, w, w)?), None, shape)
    }

    fn cross_entropy(&mut self, logits: &Tensor, codes: Arc<[u32]>) -> Result<Tensor> {
        let (rows, columns) = logits.dims2()?;
        if codes.len() != rows {
            return Err(Error::shape("cross_entropy", rows, codes.len()));
        }
        check_below("cross_entropy", &codes, columns)?;
        let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?;
        let total = shifted.exp()?.sum_keepdim(1)?.log()?; // [B, 1]
        let picked = shifted.gather(&self.indices(codes.to_vec())?.unsqueeze(1)?, 1)?; // [B, 1]
        Ok((total - picked)?.mean_all()?.reshape((1, 1))?)
    }

    fn sum(&mut self, parts: &[Tensor]) -> Result<Tensor> {
        let mut sum = match parts.first() {
            Some(first) => first.clone(),
            None => return Err(Error::shape("sum", "at least one matrix", 0)),
        };
        for part in &parts[1..] {
            sum = (sum + part)?;
        }
        Ok(sum)
    }

    fn shape(&self, node: &Tensor) -> (usize, usize) {
        node.dims2().unwrap_or((1, node.elem_count()))
    }

    fn values(&self, node: &Tensor) -> Result<Vec<f32>> {
        Ok(node.flatten_all()?.to_vec1()?)
    }
}
