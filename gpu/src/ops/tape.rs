//! The fast CPU engine: runs kernels as the model calls them, remembers them, and walks back for the gradients.

mod backward;

use super::attention::{self, Sources};
use super::matmul::{Scratch, View, multiply};
use super::{Attention, Dropout, Graph, elementwise, embedding, loss, norm};
use crate::error::{Error, Result};
use crate::weights::Weights;
use std::sync::Arc;

/// Memory that outlives a step: free buffers, packed operands, and the gradients of the weights.
#[derive(Default)]
pub struct Workspace {
    free: Vec<Vec<f32>>,
    scratch: Scratch,
    gradients: Vec<Vec<f32>>,
}

impl Workspace {
    /// The gradients of the last [`Tape::backward`], in the order of the weights.
    pub fn gradients(&self) -> &[Vec<f32>] {
        &self.gradients
    }

    /// The same, to clip or scale in place.
    pub fn gradients_mut(&mut self) -> &mut [Vec<f32>] {
        &mut self.gradients
    }

    /// A buffer of at least `length` numbers of unspecified content.
    fn take(&mut self, length: usize) -> Vec<f32> {
        let best = (0..self.free.len())
            .filter(|&i| self.free[i].len() >= length && self.free[i].len() / 4 <= length)
            .min_by_key(|&i| self.free[i].len());
        match best {
            Some(i) => self.free.swap_remove(i),
            // room to spare, so that batches of similar size share buffers
            None => vec![0.0; length + length / 8],
        }
    }

    fn give(&mut self, buffer: Vec<f32>) {
        if !buffer.is_empty() {
            self.free.push(buffer);
        }
    }
}

/// One step's graph over borrowed weights. Dropping it returns its buffers to the workspace.
pub struct Tape<'a> {
    weights: &'a Weights,
    workspace: &'a mut Workspace,
    nodes: Vec<Entry>,
}

/// A node of a [`Tape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapeNode(usize);

struct Entry {
    rows: usize,
    columns: usize,
    value: Vec<f32>,
    grad: Vec<f32>,
    op: Op,
}

enum Op {
    Weight(usize),
    Stack(Vec<usize>),
    Gather {
        table: usize,
        rows: Arc<[u32]>,
    },
    Linear {
        x: usize,
        w: usize,
        b: Option<usize>,
        relu: bool,
        dropout: Dropout,
    },
    RmsNorm {
        x: usize,
        w: usize,
        eps: f32,
    },
    Dropout {
        x: usize,
        dropout: Dropout,
    },
    Residual {
        x: usize,
        y: usize,
        dropout: Dropout,
    },
    Attention {
        q: usize,
        kv: usize,
        bias: Option<usize>,
        shape: Attention,
    },
    CrossEntropy {
        x: usize,
        codes: Arc<[u32]>,
    },
    Sum(Vec<usize>),
}

impl<'a> Tape<'a> {
    /// An empty graph.
    pub fn new(weights: &'a Weights, workspace: &'a mut Workspace) -> Self {
        Tape {
            weights,
            workspace,
            nodes: Vec::new(),
        }
    }

    /// Fills the workspace's gradients with those of `loss` ([1, 1]); weights the graph does not use get zeros.
    ///
    /// # Errors
    /// If `loss` is not a single number.
    pub fn backward(mut self, loss: TapeNode) -> Result<()> {
        if self.shape(&loss) != (1, 1) {
            return Err(Error::shape("backward", (1, 1), self.shape(&loss)));
        }
        let tensors = self.weights.tensors();
        let gradients = &mut self.workspace.gradients;
        gradients.resize_with(tensors.len(), Vec::new);
        for (gradient, tensor) in gradients.iter_mut().zip(tensors) {
            gradient.resize(tensor.data.len(), 0.0);
            gradient.fill(0.0);
        }
        let mut seed = self.workspace.take(1);
        seed[0] = 1.0;
        self.nodes[loss.0].grad = seed;
        for i in (0..=loss.0).rev() {
            let grad = std::mem::take(&mut self.nodes[i].grad);
            if !grad.is_empty() {
                self.step_back(i, grad);
            }
            let value = std::mem::take(&mut self.nodes[i].value);
            self.workspace.give(value);
        }
        Ok(())
    }

    fn sources(&self, q: usize, kv: usize, bias: Option<usize>, shape: &Attention) -> Sources<'_> {
        Sources {
            q: self.value(q),
            q_row: self.nodes[q].columns,
            kv: self.value(kv),
            kv_row: self.nodes[kv].columns,
            k_column: if q == kv { shape.heads * shape.key_dim } else { 0 },
            bias: bias.map_or(&[], |b| self.value(b)),
        }
    }

    fn value(&self, i: usize) -> &[f32] {
        match self.nodes[i].op {
            Op::Weight(index) => &self.weights.tensors()[index].data,
            _ => &self.nodes[i].value[..self.length(i)],
        }
    }

    fn length(&self, i: usize) -> usize {
        self.nodes[i].rows * self.nodes[i].columns
    }

    fn push(&mut self, rows: usize, columns: usize, value: Vec<f32>, op: Op) -> TapeNode {
        self.nodes.push(Entry {
            rows,
            columns,
            value,
            grad: Vec::new(),
            op,
        });
        TapeNode(self.nodes.len() - 1)
    }

    fn expect(&self, op: &str, node: TapeNode, shape: (usize, usize)) -> Result<()> {
        let got = self.shape(&node);
        if got == shape {
            Ok(())
        } else {
            Err(Error::shape(op, shape, got))
        }
    }

    fn attend(&mut self, q: TapeNode, kv: TapeNode, bias: Option<&TapeNode>, shape: &Attention) -> Result<TapeNode> {
        check_offsets(shape, self.nodes[q.0].rows, self.nodes[kv.0].rows)?;
        let width = shape.heads * shape.key_dim;
        let rows = self.nodes[q.0].rows;
        let mut out = self.workspace.take(rows * width);
        let bias = bias.map(|b| b.0);
        attention::forward(shape, self.sources(q.0, kv.0, bias, shape), &mut out[..rows * width]);
        let op = Op::Attention {
            q: q.0,
            kv: kv.0,
            bias,
            shape: shape.clone(),
        };
        Ok(self.push(rows, width, out, op))
    }
}

impl Drop for Tape<'_> {
    fn drop(&mut self) {
        for entry in self.nodes.drain(..) {
            self.workspace.give(entry.value);
            self.workspace.give(entry.grad);
        }
    }
}

impl Graph for Tape<'_> {
    type Node = TapeNode;

    fn weight(&mut self, name: &str) -> Result<TapeNode> {
        let index = self.weights.index(name)?;
        let (rows, columns) = self.weights.tensors()[index].matrix();
        Ok(self.push(rows, columns, Vec::new(), Op::Weight(index)))
    }

    fn stack(&mut self, parts: &[TapeNode]) -> Result<TapeNode> {
        let columns = parts.first().map_or(0, |p| self.nodes[p.0].columns);
        let rows = parts.iter().map(|p| self.nodes[p.0].rows).sum();
        let mut out = self.workspace.take(rows * columns);
        let mut at = 0;
        for &part in parts {
            self.expect("stack", part, (self.nodes[part.0].rows, columns))?;
            let value = self.value(part.0);
            out[at..at + value.len()].copy_from_slice(value);
            at += value.len();
        }
        Ok(self.push(rows, columns, out, Op::Stack(parts.iter().map(|p| p.0).collect())))
    }

    fn gather(&mut self, table: &TapeNode, rows: Arc<[u32]>) -> Result<TapeNode> {
        let (n, columns) = self.shape(table);
        check_below("gather", &rows, n)?;
        let mut out = self.workspace.take(rows.len() * columns);
        embedding::gather_rows(self.value(table.0), columns, &rows, &mut out[..rows.len() * columns]);
        Ok(self.push(rows.len(), columns, out, Op::Gather { table: table.0, rows }))
    }

    fn linear(
        &mut self,
        x: &TapeNode,
        w: &TapeNode,
        b: Option<&TapeNode>,
        relu: bool,
        dropout: Dropout,
    ) -> Result<TapeNode> {
        let ((t, n), (o, _)) = (self.shape(x), self.shape(w));
        self.expect("linear", *w, (o, n))?;
        if let Some(b) = b {
            self.expect("linear bias", *b, (1, o))?;
        }
        let mut out = self.workspace.take(t * o);
        let mut scratch = std::mem::take(&mut self.workspace.scratch);
        let bias = b.map_or(&[][..], |b| self.value(b.0));
        let (x_ti, w_oi) = (View::rows(self.value(x.0), n), View::rows(self.value(w.0), n));
        multiply(
            (t, o, n),
            x_ti,
            w_oi.t(),
            &mut out[..t * o],
            false,
            &mut scratch,
            |row, rows| {
                elementwise::bias_relu(rows, bias, o, relu);
                dropout.apply(row * o, rows);
            },
        );
        self.workspace.scratch = scratch;
        let op = Op::Linear {
            x: x.0,
            w: w.0,
            b: b.map(|b| b.0),
            relu,
            dropout,
        };
        Ok(self.push(t, o, out, op))
    }

    fn rms_norm(&mut self, x: &TapeNode, w: &TapeNode, eps: f32) -> Result<TapeNode> {
        let (rows, columns) = self.shape(x);
        self.expect("rms_norm", *w, (1, columns))?;
        let mut out = self.workspace.take(rows * columns);
        norm::rms_norm_rows(self.value(x.0), self.value(w.0), eps, &mut out[..rows * columns]);
        Ok(self.push(rows, columns, out, Op::RmsNorm { x: x.0, w: w.0, eps }))
    }

    fn dropout(&mut self, x: &TapeNode, dropout: Dropout) -> Result<TapeNode> {
        if dropout.probability == 0.0 {
            return Ok(*x);
        }
        let (rows, columns) = self.shape(x);
        let mut out = self.workspace.take(rows * columns);
        elementwise::dropout_rows(self.value(x.0), &mut out[..rows * columns], dropout);
        Ok(self.push(rows, columns, out, Op::Dropout { x: x.0, dropout }))
    }

    fn residual(&mut self, x: &TapeNode, y: &TapeNode, dropout: Dropout) -> Result<TapeNode> {
        let (rows, columns) = self.shape(x);
        self.expect("residual", *y, (rows, columns))?;
        let n = rows * columns;
        let mut out = self.workspace.take(n);
        elementwise::residual_rows(self.value(x.0), self.value(y.0), &mut out[..n], dropout);
        Ok(self.push(
            rows,
            columns,
            out,
            Op::Residual {
                x: x.0,
                y: y.0,
                dropout,
            },
        ))
    }

    fn self_attention(&mut self, qkv: &TapeNode, bias: Option<&TapeNode>, shape: &Attention) -> Result<TapeNode> {
        let width = shape.heads * shape.key_dim;
        self.expect("self_attention", *qkv, (self.nodes[qkv.0].rows, 3 * width))?;
        if let Some(bias) = bias {
            self.expect("relative bias", *bias, (shape.buckets.buckets, shape.heads))?;
        }
        self.attend(*qkv, *qkv, bias, shape)
    }

    fn cross_attention(&mut self, q: &TapeNode, kv: &TapeNode, shape: &Attention) -> Result<TapeNode> {
        let width = shape.heads * shape.key_dim;
        self.expect("cross_attention", *q, (self.nodes[q.0].rows, width))?;
        self.expect("cross_attention", *kv, (self.nodes[kv.0].rows, 2 * width))?;
        self.attend(*q, *kv, None, shape)
    }

    fn cross_entropy(&mut self, logits: &TapeNode, codes: Arc<[u32]>) -> Result<TapeNode> {
        let (rows, columns) = self.shape(logits);
        if codes.len() != rows {
            return Err(Error::shape("cross_entropy", rows, codes.len()));
        }
        check_below("cross_entropy", &codes, columns)?;
        let mut out = self.workspace.take(1);
        out[0] = loss::cross_entropy_mean(self.value(logits.0), columns, &codes);
        Ok(self.push(1, 1, out, Op::CrossEntropy { x: logits.0, codes }))
    }

    fn sum(&mut self, parts: &[TapeNode]) -> Result<TapeNode> {
        let (rows, columns) = parts.first().map_or((0, 0), |p| self.shape(p));
        let mut out = self.workspace.take(rows * columns);
        out[..rows * columns].fill(0.0);
        for &part in parts {
            self.expect("sum", part, (rows, columns))?;
            elementwise::add_rows(&mut out[..rows * columns], self.value(part.0));
        }
        Ok(self.push(rows, columns, out, Op::Sum(parts.iter().map(|p| p.0).collect())))
    }

    fn shape(&self, node: &TapeNode) -> (usize, usize) {
        (self.nodes[node.0].rows, self.nodes[node.0].columns)
    }

    fn values(&self, node: &TapeNode) -> Result<Vec<f32>> {
        Ok(self.value(node.0).to_vec())
    }
}

/// Every index is below `bound`.
pub(super) fn check_below(op: &str, indices: &[u32], bound: usize) -> Result<()> {
    match indices.iter().find(|&&i| i as usize >= bound) {
        Some(i) => Err(Error::InvalidData(format!("{op}: index {i} is not below {bound}"))),
        None => Ok(()),
    }
}

/// Offsets rise from 0 to the number of rows, no sequence is empty, causal attention is square.
pub(super) fn check_offsets(shape: &Attention, queries: usize, keys: usize) -> Result<()> {
    for (name, offsets, rows) in [("query", &shape.queries, queries), ("key", &shape.keys, keys)] {
        let rising = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || offsets.first() != Some(&0) || offsets.last() != Some(&rows) {
            return Err(Error::shape(
                format!("attention, {name} offsets"),
                format!("strictly rising from 0 to {rows}"),
                (offsets.first(), offsets.last()),
            ));
        }
    }
    if shape.queries.len() != shape.keys.len() || (shape.causal && shape.queries != shape.keys) {
        return Err(Error::shape("attention", shape.queries.len(), shape.keys.len()));
    }
    Ok(())
}
