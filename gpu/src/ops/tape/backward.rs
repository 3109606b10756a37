//! The tape's way back: what each operation hands on to its inputs.

use super::*;
use crate::ops::attention::Sinks;
use crate::ops::matmul::multiply_long;
use rayon::prelude::*;

impl Tape<'_> {
    /// Hands the gradient of a node on to all before it, down to node `first`; their values are dropped on the way.
    pub(super) fn walk_back(&mut self, from: TapeNode, first: usize, grad: Vec<f32>) -> Result<()> {
        self.nodes[from.0].grad = grad;
        for i in (first..=from.0).rev() {
            let grad = std::mem::take(&mut self.nodes[i].grad);
            if !grad.is_empty() {
                self.step_back(i, grad)?;
            }
            let value = std::mem::take(&mut self.nodes[i].value);
            self.workspace.give(value);
        }
        Ok(())
    }

    /// Hands the gradient of node `i` on to its inputs.
    fn step_back(&mut self, i: usize, mut grad: Vec<f32>) -> Result<()> {
        let op = std::mem::replace(&mut self.nodes[i].op, Op::Sum(Vec::new()));
        let (rows, columns) = (self.nodes[i].rows, self.nodes[i].columns);
        let n = rows * columns;
        match op {
            Op::Weight(index) => {
                elementwise::add_rows(&mut self.workspace.gradients[index], &grad[..n]);
            }
            Op::Frozen(_) | Op::Constant => {}
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
            Op::Norm { norm, x, w, eps } => {
                let (mut dw, fresh_w) = self.sink(w);
                if fresh_w {
                    dw[..columns].fill(0.0);
                }
                let (mut dx, fresh) = self.sink(x);
                let input = (&self.value(x)[..n], self.value(w), eps);
                norm::norm_backward(norm, input, &grad[..n], &mut dx[..n], !fresh, &mut dw[..columns]);
                self.put(x, dx);
                self.put(w, dw);
            }
            Op::Dropout { x, dropout } => {
                mask(&mut grad[..n], dropout);
                self.move_grad(x, grad, n);
                return Ok(());
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
                self.move_grad(x, grad, n);
                return Ok(());
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
            Op::RowDots { x, y } => {
                for (to, of) in [(x, y), (y, x)] {
                    let columns = self.nodes[x].columns;
                    let (mut sink, fresh) = self.sink(to);
                    let out = &mut sink[..rows * columns];
                    elementwise::scale_rows(self.value(of), &grad[..rows], columns, out, !fresh);
                    self.put(to, sink);
                }
            }
            Op::BinaryCrossEntropy { x, label } => {
                let length = self.length(x);
                let mut dx = self.workspace.take(length);
                loss::binary_cross_entropy_backward(self.value(x), label, grad[0], &mut dx[..length]);
                self.move_grad(x, dx, length);
            }
            Op::SampledCrossEntropy { own, others, hidden } => {
                let (n, m) = (self.length(own), self.length(others));
                let (mut d_own, mut d_others) = (self.workspace.take(n), self.workspace.take(m));
                let values = (self.value(own), self.value(others), &hidden[..]);
                loss::sampled_cross_entropy_backward(values, grad[0], &mut d_own[..n], &mut d_others[..m]);
                self.move_grad(own, d_own, n);
                self.move_grad(others, d_others, m);
            }
            Op::LinearCrossEntropy { x, w, mut dx, mut dw } => {
                for (i, d) in [(x, &mut dx), (w, &mut dw)] {
                    let length = if self.nodes[i].tracked { self.length(i) } else { 0 };
                    elementwise::rescale(&mut d[..length], grad[0]);
                }
                let (n, m) = (self.length(x), self.length(w));
                self.move_grad(x, dx, n);
                self.move_grad(w, dw, m);
            }
            Op::Adapted(map) => self.adapted_back(&grad[..n], map),
            Op::Heads { sources, shape } => {
                for which in 0..sources.len() {
                    self.heads_back(&grad[..n], &sources, which, &shape);
                }
            }
            Op::Swiglu { gate, up } => {
                let (mut dgate, mut dup) = (self.workspace.take(n), self.workspace.take(n));
                let values = (self.value(gate), self.value(up));
                elementwise::swiglu_backward(values, &grad[..n], &mut dgate[..n], &mut dup[..n]);
                self.move_grad(gate, dgate, n);
                self.move_grad(up, dup, n);
            }
            Op::Sum(parts) => {
                for part in parts {
                    self.add_grad(part, &grad[..n]);
                }
            }
            Op::Recomputed { x, block } => {
                // What came after has been walked back: its place is free for the block.
                self.forget(i + 1);
                let out = block(self, &TapeNode(x))?;
                self.walk_back(out, i + 1, grad)?;
                self.forget(i + 1);
                return Ok(());
            }
        }
        self.workspace.give(grad);
        Ok(())
    }

    fn linear_back(
        &mut self,
        i: usize,
        grad: &mut [f32],
        (x, w, b): (usize, usize, Option<usize>),
        relu: bool,
        dropout: Dropout,
    ) {
        let (t, o) = (self.nodes[x].rows, self.nodes[w].rows);
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
        self.map_back(grad, x, w);
    }

    /// What a product `x_TI · w_OIᵀ` hands on.
    fn map_back(&mut self, grad: &[f32], x: usize, w: usize) {
        let (t, o, n) = (self.nodes[x].rows, self.nodes[w].rows, self.nodes[x].columns);
        let mut scratch = std::mem::take(&mut self.workspace.scratch);
        let g_to = View::rows(grad, o);
        if self.nodes[w].tracked {
            let (mut dw, fresh) = self.sink(w);
            let x_ti = View::rows(&self.value(x)[..t * n], n);
            multiply_long((o, n, t), g_to.t(), x_ti, &mut dw[..o * n], !fresh, &mut scratch);
            self.put(w, dw);
        }
        if self.nodes[x].tracked {
            let (mut dx, fresh) = self.sink(x);
            let w_oi = Right::rows(self.numbers(w), n);
            multiply((t, n, o), g_to, w_oi, &mut dx[..t * n], !fresh, &mut scratch, |_, _| ());
            self.put(x, dx);
        }
        self.workspace.scratch = scratch;
    }

    fn adapted_back(&mut self, grad: &[f32], map: Adapted) {
        let Adapted {
            x,
            w,
            bias,
            low,
            a,
            b,
            scale,
            dropout,
        } = map;
        let (t, n, o, r) = (
            self.nodes[x].rows,
            self.nodes[x].columns,
            self.nodes[w].rows,
            self.nodes[a].rows,
        );
        if let Some(bias) = bias.filter(|bias| self.nodes[*bias].tracked) {
            let (mut db, fresh) = self.sink(bias);
            if fresh {
                db[..o].fill(0.0);
            }
            elementwise::column_sums(grad, o, &mut db[..o]);
            self.put(bias, db);
        }
        self.map_back(grad, x, w);
        let dropped = self.dropped(x, dropout);
        let mut scratch = std::mem::take(&mut self.workspace.scratch);
        let g_to = View::rows(grad, o);
        let (mut db, fresh) = self.sink(b);
        let low_tr = View::rows(&low[..t * r], r);
        multiply_long((o, r, t), g_to.t(), low_tr, &mut db[..o * r], !fresh, &mut scratch);
        self.put(b, db);
        // The gradient of dropout(x) · aᵀ.
        let mut dlow = self.workspace.take(t * r);
        let b_or = View::rows(self.value(b), r);
        multiply(
            (t, r, o),
            g_to,
            b_or,
            &mut dlow[..t * r],
            false,
            &mut scratch,
            |_, rows| {
                rows.iter_mut().for_each(|x| *x *= scale);
            },
        );
        let dlow_tr = View::rows(&dlow[..t * r], r);
        let (mut da, fresh) = self.sink(a);
        let x_ti = View::rows(
            if dropped.is_empty() {
                self.value(x)
            } else {
                &dropped[..t * n]
            },
            n,
        );
        multiply_long((r, n, t), dlow_tr.t(), x_ti, &mut da[..r * n], !fresh, &mut scratch);
        self.put(a, da);
        if self.nodes[x].tracked {
            let whole = dropout.probability == 0.0;
            let (mut dx, fresh) = match whole {
                true => self.sink(x),
                false => (self.workspace.take(t * n), true),
            };
            let a_ri = View::rows(self.value(a), n);
            multiply(
                (t, n, r),
                dlow_tr,
                a_ri,
                &mut dx[..t * n],
                !fresh,
                &mut scratch,
                |row, rows| {
                    dropout.apply(row * n, rows);
                },
            );
            match whole {
                true => self.put(x, dx),
                false => self.move_grad(x, dx, t * n),
            }
        }
        self.workspace.scratch = scratch;
        for buffer in [low, dlow, dropped] {
            self.workspace.give(buffer);
        }
    }

    fn heads_back(&mut self, grad: &[f32], sources: &[Source<usize>], which: usize, shape: &Heads) {
        let Source { x, norm, .. } = sources[which];
        if !self.nodes[x].tracked && norm.is_none_or(|norm| !self.nodes[norm].tracked) {
            return;
        }
        let length = self.length(x);
        let (mut dx, fresh) = self.sink(x);
        let mut dnorm = vec![0.0; norm.map_or(0, |norm| self.length(norm))];
        let slices = self.slices(sources);
        heads::backward(shape, &slices, which, grad, &mut dx[..length], !fresh, &mut dnorm);
        self.put(x, dx);
        if let Some(norm) = norm {
            self.add_grad(norm, &dnorm);
        }
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
            _ if self.nodes[i].tracked => self.nodes[i].grad = grad,
            _ => self.workspace.give(grad),
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
        if !self.nodes[i].tracked {
            self.workspace.give(grad);
        } else if first {
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
