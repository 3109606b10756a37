//! The tape's way back: what each operation hands on to its inputs.

use super::*;
use crate::ops::attention::Sinks;
use crate::ops::matmul::multiply_long;
use rayon::prelude::*;

impl Tape<'_> {
    /// Hands the gradient of node `i` on to its inputs.
    pub(super) fn step_back(&mut self, i: usize, mut grad: Vec<f32>) {
        let op = std::mem::replace(&mut self.nodes[i].op, Op::Sum(Vec::new()));
        let (rows, columns) = (self.nodes[i].rows, self.nodes[i].columns);
        let n = rows * columns;
        match op {
            Op::Weight(index) => {
                elementwise::add_rows(&mut self.workspace.gradients[index], &grad[..n]);
            }
            Op::Stack(parts) => {
                let mut at = 0;
                for part in parts {
                    let length = self.length(part);
                    self.add_grad(part, &grad[at..at + length]);
                    at += length;
                }
            }
            Op::Gather { table, rows: indices } => {
                let (mut sink, fresh) = self.sink(table);
                let length = self.length(table);
                if fresh {
                    sink[..length].fill(0.0);
                }
                embedding::scatter_add_rows(&grad[..n], columns, &indices, &mut sink[..length]);
                self.put(table, sink);
            }
            Op::Linear { x, w, b, relu, dropout } => {
                self.linear_back(i, &mut grad[..n], (x, w, b), relu, dropout);
            }
            Op::RmsNorm { x, w, eps } => {
                let (mut dw, fresh_w) = self.sink(w);
                if fresh_w {
                    dw[..columns].fill(0.0);
                }
                let (mut dx, fresh) = self.sink(x);
                let input = (&self.value(x)[..n], self.value(w), eps);
                norm::rms_norm_backward(input, &grad[..n], &mut dx[..n], !fresh, &mut dw[..columns]);
                self.put(x, dx);
                self.put(w, dw);
            }
            Op::Dropout { x, dropout } => {
                mask(&mut grad[..n], dropout);
                return self.move_grad(x, grad, n);
            }
            Op::Residual { x, y, dropout } => {
                let (mut dy, fresh) = self.sink(y);
                if fresh {
                    elementwise::dropout_rows(&grad[..n], &mut dy[..n], dropout);
                } else {
                    let mut masked = self.workspace.take(n);
                    elementwise::dropout_rows(&grad[..n], &mut masked[..n], dropout);
                    elementwise::add_rows(&mut dy[..n], &masked[..n]);
                    self.workspace.give(masked);
                }
                self.put(y, dy);
                return self.move_grad(x, grad, n);
            }
            Op::Attention { q, kv, bias, shape } => {
                self.attention_back(&grad[..n], (q, kv, bias), &shape);
            }
            Op::CrossEntropy { x, codes } => {
                let mut dx = self.workspace.take(self.length(x));
                let (length, columns) = (self.length(x), self.nodes[x].columns);
                let logits = self.value(x);
                loss::cross_entropy_backward(logits, columns, &codes, grad[0], &mut dx[..length]);
                self.move_grad(x, dx, length);
            }
            Op::Sum(parts) => {
                for part in parts {
                    self.add_grad(part, &grad[..n]);
                }
            }
        }
        self.workspace.give(grad);
    }

    fn linear_back(
        &mut self,
        i: usize,
        grad: &mut [f32],
        (x, w, b): (usize, usize, Option<usize>),
        relu: bool,
        dropout: Dropout,
    ) {
        let (t, o, n) = (self.nodes[x].rows, self.nodes[w].rows, self.nodes[x].columns);
        if relu {
            let result = &self.nodes[i].value[..t * o];
            let task = elementwise::TASK;
            grad.par_chunks_mut(task)
                .zip(result.par_chunks(task))
                .for_each(|(g, y)| elementwise::relu_backward(g, y, dropout.scale()));
        } else {
            mask(grad, dropout);
        }
        if let Some(b) = b {
            let (mut db, fresh) = self.sink(b);
            if fresh {
                db[..o].fill(0.0);
            }
            elementwise::column_sums(grad, o, &mut db[..o]);
            self.put(b, db);
        }
        let mut scratch = std::mem::take(&mut self.workspace.scratch);
        let (mut dw, fresh) = self.sink(w);
        let (g_to, x_ti) = (View::rows(grad, o), View::rows(&self.value(x)[..t * n], n));
        multiply_long((o, n, t), g_to.t(), x_ti, &mut dw[..o * n], !fresh, &mut scratch);
        self.put(w, dw);
        let (mut dx, fresh) = self.sink(x);
        let w_oi = View::rows(self.value(w), n);
        multiply((t, n, o), g_to, w_oi, &mut dx[..t * n], !fresh, &mut scratch, |_, _| ());
        self.put(x, dx);
        self.workspace.scratch = scratch;
    }

    fn attention_back(&mut self, grad: &[f32], (q, kv, bias): (usize, usize, Option<usize>), shape: &Attention) {
        let (mut dq, fresh_q) = self.sink(q);
        let (mut dkv, fresh_kv) = if q == kv { (Vec::new(), fresh_q) } else { self.sink(kv) };
        let mut dbias = vec![0.0; bias.map_or(0, |b| self.length(b))];
        let into = Sinks {
            dq: dq.as_mut_ptr(),
            dkv: if q == kv { dq.as_mut_ptr() } else { dkv.as_mut_ptr() },
            add_q: !fresh_q,
            add_kv: !fresh_kv,
        };
        let from = self.sources(q, kv, bias, shape);
        // SAFETY: the sinks are buffers of the sizes of q and kv, owned here.
        unsafe { attention::backward(shape, from, grad, into, &mut dbias) };
        self.put(q, dq);
        if q != kv {
            self.put(kv, dkv);
        }
        if let Some(bias) = bias {
            self.add_grad(bias, &dbias);
        }
    }

    /// The gradient buffer of a node, and whether its content is still unspecified. Weights write straight to theirs.
    fn sink(&mut self, i: usize) -> (Vec<f32>, bool) {
        if let Op::Weight(index) = self.nodes[i].op {
            return (std::mem::take(&mut self.workspace.gradients[index]), false);
        }
        let grad = std::mem::take(&mut self.nodes[i].grad);
        if grad.is_empty() {
            (self.workspace.take(self.length(i)), true)
        } else {
            (grad, false)
        }
    }

    fn put(&mut self, i: usize, grad: Vec<f32>) {
        match self.nodes[i].op {
            Op::Weight(index) => self.workspace.gradients[index] = grad,
            _ => self.nodes[i].grad = grad,
        }
    }

    fn add_grad(&mut self, i: usize, grad: &[f32]) {
        let (mut sink, fresh) = self.sink(i);
        if fresh {
            sink[..grad.len()].copy_from_slice(grad);
        } else {
            elementwise::add_rows(&mut sink[..grad.len()], grad);
        }
        self.put(i, sink);
    }

    /// Like `add_grad`, but a first gradient keeps its buffer.
    fn move_grad(&mut self, i: usize, grad: Vec<f32>, n: usize) {
        let first = self.nodes[i].grad.is_empty() && !matches!(self.nodes[i].op, Op::Weight(_));
        if first {
            self.nodes[i].grad = grad;
        } else {
            self.add_grad(i, &grad[..n]);
            self.workspace.give(grad);
        }
    }
}

fn mask(grad: &mut [f32], dropout: Dropout) {
    if dropout.probability > 0.0 {
        let task = elementwise::TASK;
        grad.par_chunks_mut(task)
            .enumerate()
            .for_each(|(i, g)| dropout.apply(i * task, g));
    }
}
