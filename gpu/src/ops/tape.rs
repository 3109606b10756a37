//! The fast CPU engine: runs kernels as the model calls them, remembers them, and walks back for the gradients.

mod backward;
mod checks;

use super::attention::{self, Sources};
use super::heads::{self, Heads, Slices, Source};
use super::matmul::{Right, Scratch, View, multiply};
use super::norm::Norm;
use super::{Attention, Dropout, Graph, elementwise, embedding, loss, norm, tied};
use crate::error::{Error, Result};
use crate::frozen::{Frozen, Numbers};
use crate::weights::Weights;
use std::sync::Arc;

pub(super) use checks::{check_below, check_hidden, check_offsets, check_rotations, rows_of};

/// Memory that outlives a step: free buffers, packed operands, and the gradients of the weights.
#[derive(Default)]
pub struct Workspace {
    free: Vec<Vec<f32>>,
    scratch: Scratch,
    tied: tied::Room,
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

    /// Sets the gradients of all weights to 0, for [`Tape::backward_onto`].
    pub fn clear_gradients(&mut self, weights: &Weights) {
        let tensors = weights.tensors();
        self.gradients.resize_with(tensors.len(), Vec::new);
        for (gradient, tensor) in self.gradients.iter_mut().zip(tensors) {
            gradient.resize(tensor.data.len(), 0.0);
            gradient.fill(0.0);
        }
    }

    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        let scratch = self.scratch.bytes() + self.tied.bytes();
        let buffers = self.free.iter().chain(&self.gradients).map(Vec::capacity);
        4 * buffers.sum::<usize>() + scratch
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
    frozen: Option<&'a Frozen>,
    workspace: &'a mut Workspace,
    nodes: Vec<Entry<'a>>,
}

/// A node of a [`Tape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapeNode(usize);

struct Entry<'a> {
    rows: usize,
    columns: usize,
    value: Vec<f32>,
    grad: Vec<f32>,
    /// Whether a gradient is wanted: a trained weight, or what depends on one.
    tracked: bool,
    op: Op<'a>,
}

/// What is run again on the way back.
type Block<'a> = Box<dyn Fn(&mut Tape<'a>, &TapeNode) -> Result<TapeNode>>;

enum Op<'a> {
    Weight(usize),
    Frozen(usize),
    Constant,
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
    Norm {
        norm: Norm,
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
    RowDots {
        x: usize,
        y: usize,
    },
    BinaryCrossEntropy {
        x: usize,
        label: bool,
    },
    SampledCrossEntropy {
        own: usize,
        others: usize,
        hidden: Arc<[(u32, u32)]>,
    },
    /// The gradients are known already; none (empty) of what is not tracked.
    LinearCrossEntropy {
        x: usize,
        w: usize,
        dx: Vec<f32>,
        dw: Vec<f32>,
    },
    Adapted(Adapted),
    Heads {
        sources: Vec<Source<usize>>,
        shape: Heads,
    },
    Swiglu {
        gate: usize,
        up: usize,
    },
    Sum(Vec<usize>),
    Recomputed {
        x: usize,
        block: Block<'a>,
    },
}

/// A linear map with an adapter.
struct Adapted {
    x: usize,
    w: usize,
    bias: Option<usize>,
    /// `scale · dropout(x) · aᵀ`, [T, R].
    low: Vec<f32>,
    a: usize,
    b: usize,
    scale: f32,
    dropout: Dropout,
}

impl Op<'_> {
    /// The nodes it reads.
    fn inputs(&self) -> Vec<usize> {
        match self {
            Op::Weight(_) | Op::Frozen(_) | Op::Constant => vec![],
            Op::Stack(parts) | Op::Sum(parts) => parts.clone(),
            Op::Gather { table, .. } => vec![*table],
            Op::Linear { x, w, b, .. } => [*x, *w].into_iter().chain(*b).collect(),
            Op::Norm { x, w, .. } | Op::LinearCrossEntropy { x, w, .. } => vec![*x, *w],
            Op::Dropout { x, .. }
            | Op::CrossEntropy { x, .. }
            | Op::BinaryCrossEntropy { x, .. }
            | Op::Recomputed { x, .. } => vec![*x],
            Op::Residual { x, y, .. } | Op::RowDots { x, y } => vec![*x, *y],
            Op::Attention { q, kv, bias, .. } => [*q, *kv].into_iter().chain(*bias).collect(),
            Op::SampledCrossEntropy { own, others, .. } => vec![*own, *others],
            Op::Adapted(map) => [map.x, map.w, map.a, map.b].into_iter().chain(map.bias).collect(),
            Op::Heads { sources, .. } => sources
                .iter()
                .flat_map(|of| [of.x].into_iter().chain(of.norm))
                .collect(),
            Op::Swiglu { gate, up } => vec![*gate, *up],
        }
    }
}

impl<'a> Tape<'a> {
    /// An empty graph.
    pub fn new(weights: &'a Weights, workspace: &'a mut Workspace) -> Self {
        Tape {
            weights,
            frozen: None,
            workspace,
            nodes: Vec::new(),
        }
    }

    /// The same over further weights, which take no gradient; a name that is in both means the one that is trained.
    pub fn with_frozen(mut self, frozen: Option<&'a Frozen>) -> Self {
        self.frozen = frozen;
        self
    }

    /// Fills the workspace's gradients with those of `loss` ([1, 1]); weights the graph does not use get zeros.
    ///
    /// # Errors
    /// If `loss` is not a single number.
    pub fn backward(self, loss: TapeNode) -> Result<()> {
        self.workspace.clear_gradients(self.weights);
        self.backward_onto(loss, 1.0)
    }

    /// Adds `share` times the gradients of `loss` ([1, 1]) to the workspace's, in place: those of
    /// [`Workspace::clear_gradients`], or of another graph over the same weights.
    ///
    /// # Errors
    /// If `loss` is not a single number, or the gradients are those of other weights.
    pub fn backward_onto(mut self, loss: TapeNode, share: f32) -> Result<()> {
        if self.shape(&loss) != (1, 1) {
            return Err(Error::shape("backward", (1, 1), self.shape(&loss)));
        }
        let lengths = |gradients: &[Vec<f32>]| gradients.iter().map(Vec::len).collect::<Vec<_>>();
        let wanted: Vec<usize> = self.weights.tensors().iter().map(|t| t.data.len()).collect();
        if lengths(&self.workspace.gradients) != wanted {
            return Err(Error::shape("gradients", wanted, lengths(&self.workspace.gradients)));
        }
        let mut seed = self.workspace.take(1);
        seed[0] = share;
        self.walk_back(loss, 0, seed)
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

    /// `dropout(x)`, or nothing without dropout.
    fn dropped(&mut self, x: usize, dropout: Dropout) -> Vec<f32> {
        if dropout.probability == 0.0 {
            return Vec::new();
        }
        let n = self.length(x);
        let mut out = self.workspace.take(n);
        elementwise::dropout_rows(self.value(x), &mut out[..n], dropout);
        out
    }

    fn slices(&self, sources: &[Source<usize>]) -> Vec<Slices<'_>> {
        let slice = |of: &Source<usize>| Slices {
            x: self.value(of.x),
            columns: self.nodes[of.x].columns,
            norm: of.norm.map_or(&[], |norm| self.value(norm)),
            rotate: of.rotate,
            repeat: of.repeat,
        };
        sources.iter().map(slice).collect()
    }

    fn numbers(&self, i: usize) -> Numbers<'_> {
        match (&self.nodes[i].op, self.frozen) {
            (Op::Weight(index), _) => Numbers::F32(&self.weights.tensors()[*index].data),
            (Op::Frozen(index), Some(frozen)) => frozen.tensors()[*index].numbers(),
            _ => Numbers::F32(&self.nodes[i].value[..self.length(i)]),
        }
    }

    /// The numbers of anything but a frozen matrix.
    fn value(&self, i: usize) -> &[f32] {
        self.numbers(i).f32s()
    }

    fn length(&self, i: usize) -> usize {
        self.nodes[i].rows * self.nodes[i].columns
    }

    /// Drops the nodes from `first` on; their buffers go back to the workspace.
    fn forget(&mut self, first: usize) {
        for entry in self.nodes.drain(first..) {
            let (one, other) = match entry.op {
                Op::LinearCrossEntropy { dx, dw, .. } => (dx, dw),
                Op::Adapted(map) => (map.low, Vec::new()),
                _ => Default::default(),
            };
            for buffer in [entry.value, entry.grad, one, other] {
                self.workspace.give(buffer);
            }
        }
    }

    fn push(&mut self, rows: usize, columns: usize, value: Vec<f32>, op: Op<'a>) -> TapeNode {
        let tracked = match &op {
            Op::Weight(_) => true,
            op => op.inputs().iter().any(|i| self.nodes[*i].tracked),
        };
        self.nodes.push(Entry {
            rows,
            columns,
            value,
            grad: Vec::new(),
            tracked,
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

    fn norm(&mut self, norm: Norm, x: TapeNode, w: TapeNode, eps: f32) -> Result<TapeNode> {
        let (rows, columns) = self.shape(&x);
        self.expect("norm", w, (1, columns))?;
        let mut out = self.workspace.take(rows * columns);
        norm::norm_rows(norm, self.value(x.0), self.value(w.0), eps, &mut out[..rows * columns]);
        let op = Op::Norm {
            norm,
            x: x.0,
            w: w.0,
            eps,
        };
        Ok(self.push(rows, columns, out, op))
    }

    fn scalar(&mut self, value: f32, op: Op<'a>) -> TapeNode {
        let mut out = self.workspace.take(1);
        out[0] = value;
        self.push(1, 1, out, op)
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
        self.forget(0);
    }
}

impl<'a> Graph for Tape<'a> {
    type Node = TapeNode;

    fn weight(&mut self, name: &str) -> Result<TapeNode> {
        let frozen = self.frozen.and_then(|frozen| Some((frozen, frozen.index(name)?)));
        let ((rows, columns), op) = match (self.weights.index(name), frozen) {
            (Ok(index), _) => (self.weights.tensors()[index].matrix(), Op::Weight(index)),
            (Err(_), Some((frozen, index))) => (frozen.tensors()[index].matrix(), Op::Frozen(index)),
            (Err(error), None) => return Err(error),
        };
        Ok(self.push(rows, columns, Vec::new(), op))
    }

    fn constant(&mut self, values: &[f32], columns: usize) -> Result<TapeNode> {
        let rows = rows_of(values, columns)?;
        let mut out = self.workspace.take(values.len());
        out[..values.len()].copy_from_slice(values);
        Ok(self.push(rows, columns, out, Op::Constant))
    }

    fn stack(&mut self, parts: &[TapeNode]) -> Result<TapeNode> {
        let columns = parts.first().map_or(0, |p| self.nodes[p.0].columns);
        let rows = parts.iter().map(|p| self.nodes[p.0].rows).sum();
        let mut out = self.workspace.take(rows * columns);
        let mut at = 0;
        for &part in parts {
            self.expect("stack", part, (self.nodes[part.0].rows, columns))?;
            let value = self.numbers(part.0);
            value.write(0, &mut out[at..at + value.len()]);
            at += value.len();
        }
        Ok(self.push(rows, columns, out, Op::Stack(parts.iter().map(|p| p.0).collect())))
    }

    fn gather(&mut self, table: &TapeNode, rows: Arc<[u32]>) -> Result<TapeNode> {
        let (n, columns) = self.shape(table);
        check_below("gather", &rows, n)?;
        let mut out = self.workspace.take(rows.len() * columns);
        embedding::gather_rows(self.numbers(table.0), columns, &rows, &mut out[..rows.len() * columns]);
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
        let (x_ti, w_oi) = (View::rows(self.value(x.0), n), Right::rows(self.numbers(w.0), n));
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
        self.norm(Norm::Rms, *x, *w, eps)
    }

    fn layer_norm(&mut self, x: &TapeNode, w: &TapeNode, eps: f32) -> Result<TapeNode> {
        self.norm(Norm::Layer, *x, *w, eps)
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
            let buckets = shape.buckets.map_or(0, |buckets| buckets.buckets);
            self.expect("relative bias", *bias, (buckets, shape.heads))?;
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
        let mean = loss::cross_entropy_mean(self.value(logits.0), columns, &codes);
        Ok(self.scalar(mean, Op::CrossEntropy { x: logits.0, codes }))
    }

    fn row_dots(&mut self, x: &TapeNode, y: &TapeNode) -> Result<TapeNode> {
        let (rows, columns) = self.shape(x);
        self.expect("row_dots", *y, (rows, columns))?;
        let mut out = self.workspace.take(rows);
        elementwise::row_dots(self.value(x.0), self.value(y.0), columns, &mut out[..rows]);
        Ok(self.push(rows, 1, out, Op::RowDots { x: x.0, y: y.0 }))
    }

    fn binary_cross_entropy(&mut self, logits: &TapeNode, label: bool) -> Result<TapeNode> {
        let mean = loss::binary_cross_entropy_mean(self.value(logits.0), label);
        Ok(self.scalar(mean, Op::BinaryCrossEntropy { x: logits.0, label }))
    }

    fn sampled_cross_entropy(
        &mut self,
        own: &TapeNode,
        others: &TapeNode,
        hidden: Arc<[(u32, u32)]>,
    ) -> Result<TapeNode> {
        let (rows, columns) = self.shape(others);
        self.expect("sampled_cross_entropy", *own, (rows, 1))?;
        check_hidden(&hidden, rows, columns)?;
        let mean = loss::sampled_cross_entropy_mean(self.value(own.0), self.value(others.0), &hidden, columns);
        let op = Op::SampledCrossEntropy {
            own: own.0,
            others: others.0,
            hidden,
        };
        Ok(self.scalar(mean, op))
    }

    fn linear_cross_entropy(&mut self, x: &TapeNode, w: &TapeNode, codes: Arc<[u32]>) -> Result<TapeNode> {
        let ((t, d), (n, _)) = (self.shape(x), self.shape(w));
        self.expect("linear_cross_entropy", *w, (n, d))?;
        if codes.len() != t {
            return Err(Error::shape("linear_cross_entropy", t, codes.len()));
        }
        check_below("linear_cross_entropy", &codes, n)?;
        let mut dx = self.workspace.take(t * d);
        let dw_length = if self.nodes[w.0].tracked { n * d } else { 0 };
        let mut dw = self.workspace.take(dw_length);
        let mut room = std::mem::take(&mut self.workspace.tied);
        let operands = (self.value(x.0), self.numbers(w.0), d);
        let mean = tied::linear_cross_entropy(operands, &codes, &mut dx[..t * d], &mut dw[..dw_length], &mut room);
        self.workspace.tied = room;
        let op = Op::LinearCrossEntropy { x: x.0, w: w.0, dx, dw };
        Ok(self.scalar(mean, op))
    }

    fn adapted(
        &mut self,
        x: &TapeNode,
        w: &TapeNode,
        bias: Option<&TapeNode>,
        (a, b): (&TapeNode, &TapeNode),
        scale: f32,
        dropout: Dropout,
    ) -> Result<TapeNode> {
        let ((t, n), (o, _), (r, _)) = (self.shape(x), self.shape(w), self.shape(a));
        self.expect("adapted", *w, (o, n))?;
        self.expect("adapter a", *a, (r, n))?;
        self.expect("adapter b", *b, (o, r))?;
        if let Some(bias) = bias {
            self.expect("adapted bias", *bias, (1, o))?;
        }
        let dropped = self.dropped(x.0, dropout);
        let (mut low, mut out) = (self.workspace.take(t * r), self.workspace.take(t * o));
        let mut scratch = std::mem::take(&mut self.workspace.scratch);
        let x_ti = View::rows(
            if dropped.is_empty() {
                self.value(x.0)
            } else {
                &dropped[..t * n]
            },
            n,
        );
        let a_ri = View::rows(self.value(a.0), n);
        multiply(
            (t, r, n),
            x_ti,
            a_ri.t(),
            &mut low[..t * r],
            false,
            &mut scratch,
            |_, low| {
                low.iter_mut().for_each(|x| *x *= scale);
            },
        );
        let (x_ti, w_oi) = (View::rows(self.value(x.0), n), Right::rows(self.numbers(w.0), n));
        multiply(
            (t, o, n),
            x_ti,
            w_oi.t(),
            &mut out[..t * o],
            false,
            &mut scratch,
            |_, _| (),
        );
        let (low_tr, b_or) = (View::rows(&low[..t * r], r), View::rows(self.value(b.0), r));
        let bias_o = bias.map_or(&[][..], |bias| self.value(bias.0));
        multiply(
            (t, o, r),
            low_tr,
            b_or.t(),
            &mut out[..t * o],
            true,
            &mut scratch,
            |_, rows| {
                elementwise::bias_relu(rows, bias_o, o, false);
            },
        );
        self.workspace.scratch = scratch;
        self.workspace.give(dropped);
        let op = Op::Adapted(Adapted {
            x: x.0,
            w: w.0,
            bias: bias.map(|bias| bias.0),
            low,
            a: a.0,
            b: b.0,
            scale,
            dropout,
        });
        Ok(self.push(t, o, out, op))
    }

    fn heads(&mut self, sources: &[Source<TapeNode>], shape: &Heads) -> Result<TapeNode> {
        let rows = shape.positions.len();
        check_rotations(shape)?;
        let mut columns = 0;
        for source in sources {
            let wide = self.shape(&source.x).1;
            self.expect("heads", source.x, (rows, wide / shape.key_dim * shape.key_dim))?;
            if let Some(norm) = source.norm {
                self.expect("norm of heads", norm, (1, shape.key_dim))?;
            }
            columns += wide * source.repeat;
        }
        let sources: Vec<Source<usize>> = sources
            .iter()
            .map(|of| Source {
                x: of.x.0,
                norm: of.norm.map(|norm| norm.0),
                rotate: of.rotate,
                repeat: of.repeat,
            })
            .collect();
        let mut out = self.workspace.take(rows * columns);
        heads::forward(shape, &self.slices(&sources), &mut out[..rows * columns]);
        let shape = shape.clone();
        Ok(self.push(rows, columns, out, Op::Heads { sources, shape }))
    }

    fn swiglu(&mut self, gate: &TapeNode, up: &TapeNode) -> Result<TapeNode> {
        let (rows, columns) = self.shape(gate);
        self.expect("swiglu", *up, (rows, columns))?;
        let n = rows * columns;
        let mut out = self.workspace.take(n);
        elementwise::swiglu(self.value(gate.0), self.value(up.0), &mut out[..n]);
        let (gate, up) = (gate.0, up.0);
        Ok(self.push(rows, columns, out, Op::Swiglu { gate, up }))
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

    fn recomputed(
        &mut self,
        x: &TapeNode,
        block: impl Fn(&mut Self, &TapeNode) -> Result<TapeNode> + 'static,
    ) -> Result<TapeNode> {
        let first = self.nodes.len();
        let out = block(self, x)?;
        if out.0 < first || matches!(self.nodes[out.0].op, Op::Weight(_) | Op::Frozen(_)) {
            return Ok(out); // nothing was computed
        }
        let Entry {
            rows, columns, tracked, ..
        } = self.nodes[out.0];
        let value = std::mem::take(&mut self.nodes[out.0].value);
        self.forget(first);
        let block: Block<'a> = Box::new(block);
        let node = self.push(rows, columns, value, Op::Recomputed { x: x.0, block });
        self.nodes[node.0].tracked = tracked;
        Ok(node)
    }

    fn shape(&self, node: &TapeNode) -> (usize, usize) {
        (self.nodes[node.0].rows, self.nodes[node.0].columns)
    }

    fn values(&self, node: &TapeNode) -> Result<Vec<f32>> {
        Ok(self.numbers(node.0).to_f32())
    }
}
