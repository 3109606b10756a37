//! Attention over packed sequences: every sequence is its own small problem, nothing is padded.
//!
//! Probabilities are recomputed in the backward pass; sequences are short, so this is cheaper than keeping them.

use super::Attention;
use super::isa::vectorized;
use super::matmul::{Scratch, View, multiply_small};
use rayon::prelude::*;

/// Sequences one task works on; fixed, so sums do not depend on threads.
const TASK: usize = 4;

/// Queries, keys and values as windows of one or two matrices.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// Matrix with the queries from column 0.
    pub q: &'a [f32],
    /// Its width.
    pub q_row: usize,
    /// Matrix with keys and values.
    pub kv: &'a [f32],
    /// Its width.
    pub kv_row: usize,
    /// First column of the keys; the values follow them.
    pub k_column: usize,
    /// The [32, H] table, or empty.
    pub bias: &'a [f32],
}

/// Where gradients go; `dq` and `dkv` may be the same matrix.
#[derive(Clone, Copy)]
pub(crate) struct Sinks {
    /// Gradient of the query matrix.
    pub dq: *mut f32,
    /// Gradient of the key-value matrix.
    pub dkv: *mut f32,
    /// Add to `dq` rather than overwrite it.
    pub add_q: bool,
    /// Add to `dkv` rather than overwrite it.
    pub add_kv: bool,
}

// SAFETY: tasks write disjoint rows (those of their own sequences).
unsafe impl Send for Sinks {}
// SAFETY: as above.
unsafe impl Sync for Sinks {}

#[derive(Default)]
struct Room {
    scratch: Scratch,
    scores: Vec<f32>,
    kept: Vec<f32>,
    grads: Vec<f32>,
}

/// `out` [Tq, H·K] = softmax(q·kᵀ + bias)·v per sequence and head.
pub(crate) fn forward(shape: &Attention, from: Sources, out: &mut [f32]) {
    let width = shape.heads * shape.key_dim;
    let tasks = split_rows(out, shape, width);
    tasks
        .into_par_iter()
        .for_each_init(Room::default, |room, (first, out)| {
            let start = shape.queries[first];
            for s in first..(first + TASK).min(shape.queries.len() - 1) {
                let buckets = bucket_row(shape, s, &from);
                for head in 0..shape.heads {
                    probabilities(shape, from, s, head, &buckets, room);
                    let (nq, nk) = lengths(shape, s);
                    drop_out(shape, s, head, &mut room.scores[..nq * nk]);
                    let at = (shape.queries[s] - start) * width + head * shape.key_dim;
                    if nq > 0 {
                        multiply_small(
                            (nq, shape.key_dim, nk),
                            View::rows(&room.scores, nk),
                            values(shape, from, s, head),
                            &mut out[at..],
                            width,
                            false,
                            &mut room.scratch,
                        );
                    }
                }
            }
        });
}

/// Writes the gradients of queries, keys and values to `into`, adds that of the bias table to `dbias`.
///
/// # Safety
/// `into` must point to matrices of the sizes of `from.q` and `from.kv` that nobody else uses meanwhile.
pub(crate) unsafe fn backward(
    shape: &Attention,
    from: Sources,
    grad: &[f32],
    into: Sinks,
    dbias: &mut [f32],
) {
    let sequences = shape.queries.len() - 1;
    let starts: Vec<usize> = (0..sequences).step_by(TASK).collect();
    let shares: Vec<Vec<f32>> = starts
        .into_par_iter()
        .map_init(Room::default, |room, first| {
            let mut share = vec![0.0; from.bias.len()];
            for s in first..(first + TASK).min(sequences) {
                let buckets = bucket_row(shape, s, &from);
                for head in 0..shape.heads {
                    // SAFETY: the caller's contract; each sequence belongs to one task.
                    unsafe {
                        backward_head(
                            shape,
                            from,
                            grad,
                            into,
                            (s, head),
                            &buckets,
                            room,
                            &mut share,
                        )
                    };
                }
            }
            share
        })
        .collect();
    for share in shares {
        super::elementwise::add_to(dbias, &share);
    }
}

#[allow(clippy::too_many_arguments)]
unsafe fn backward_head(
    shape: &Attention,
    from: Sources,
    grad: &[f32],
    into: Sinks,
    (s, head): (usize, usize),
    buckets: &[u32],
    room: &mut Room,
    share: &mut [f32],
) {
    let (nq, nk) = lengths(shape, s);
    if nq == 0 || nk == 0 {
        return;
    }
    let k_dim = shape.key_dim;
    let width = shape.heads * k_dim;
    probabilities(shape, from, s, head, buckets, room);
    let Room {
        scratch,
        scores,
        kept,
        grads,
    } = room;
    kept.clear();
    kept.extend_from_slice(&scores[..nq * nk]);
    drop_out(shape, s, head, kept);
    let go = View {
        data: &grad[shape.queries[s] * width + head * k_dim..],
        row: width,
        column: 1,
    };
    // SAFETY: windows of this sequence's rows; q and k, v columns never overlap.
    let window = |base: *mut f32, row: usize, rows: usize, stride: usize, column: usize| unsafe {
        std::slice::from_raw_parts_mut(base.add(row * stride + column), (rows - 1) * stride + k_dim)
    };
    let k_row = shape.keys[s];
    let k_at = from.k_column + head * k_dim;
    // dv = keptᵀ · go
    let dv = window(into.dkv, k_row, nk, from.kv_row, k_at + width);
    multiply_small(
        (nk, k_dim, nq),
        View::rows(kept, nk).t(),
        go,
        dv,
        from.kv_row,
        into.add_kv,
        scratch,
    );
    // dscores = p * (dp - sum(p * dp)), dp = dropout(go · vᵀ)
    if grads.len() < nq * nk {
        grads.resize(nq * nk, 0.0);
    }
    let ds = &mut grads[..nq * nk];
    multiply_small(
        (nq, nk, k_dim),
        go,
        values(shape, from, s, head).t(),
        ds,
        nk,
        false,
        scratch,
    );
    drop_out(shape, s, head, ds);
    softmax_backward(&scores[..nq * nk], ds, nk);
    if !share.is_empty() {
        for i in 0..nq {
            let end = if shape.causal { i + 1 } else { nk };
            for j in 0..end {
                share[buckets[j + nq - 1 - i] as usize * shape.heads + head] += ds[i * nk + j];
            }
        }
    }
    let ds = View::rows(ds, nk);
    let dq = window(into.dq, shape.queries[s], nq, from.q_row, head * k_dim);
    multiply_small(
        (nq, k_dim, nk),
        ds,
        keys(shape, from, s, head),
        dq,
        from.q_row,
        into.add_q,
        scratch,
    );
    let q = queries(shape, from, s, head);
    let dk = window(into.dkv, k_row, nk, from.kv_row, k_at);
    multiply_small(
        (nk, k_dim, nq),
        ds.t(),
        q,
        dk,
        from.kv_row,
        into.add_kv,
        scratch,
    );
}

fn lengths(shape: &Attention, s: usize) -> (usize, usize) {
    (
        shape.queries[s + 1] - shape.queries[s],
        shape.keys[s + 1] - shape.keys[s],
    )
}

fn queries<'a>(shape: &Attention, from: Sources<'a>, s: usize, head: usize) -> View<'a> {
    let data = &from.q[shape.queries[s] * from.q_row + head * shape.key_dim..];
    View {
        data,
        row: from.q_row,
        column: 1,
    }
}

fn keys<'a>(shape: &Attention, from: Sources<'a>, s: usize, head: usize) -> View<'a> {
    let column = from.k_column + head * shape.key_dim;
    View {
        data: &from.kv[shape.keys[s] * from.kv_row + column..],
        row: from.kv_row,
        column: 1,
    }
}

fn values<'a>(shape: &Attention, from: Sources<'a>, s: usize, head: usize) -> View<'a> {
    let column = from.k_column + (shape.heads + head) * shape.key_dim;
    View {
        data: &from.kv[shape.keys[s] * from.kv_row + column..],
        row: from.kv_row,
        column: 1,
    }
}

fn bucket_row(shape: &Attention, s: usize, from: &Sources) -> Vec<u32> {
    let (nq, nk) = lengths(shape, s);
    if from.bias.is_empty() || nq == 0 {
        Vec::new()
    } else {
        shape.buckets.table(nq, nk)
    }
}

/// Softmax of scores plus bias into `room.scores` [nq, nk].
fn probabilities(
    shape: &Attention,
    from: Sources,
    s: usize,
    head: usize,
    buckets: &[u32],
    room: &mut Room,
) {
    let (nq, nk) = lengths(shape, s);
    if nq == 0 || nk == 0 {
        return;
    }
    if room.scores.len() < nq * nk {
        room.scores.resize(nq * nk, 0.0);
    }
    let scores = &mut room.scores[..nq * nk];
    let (q, k) = (queries(shape, from, s, head), keys(shape, from, s, head));
    multiply_small(
        (nq, nk, shape.key_dim),
        q,
        k.t(),
        scores,
        nk,
        false,
        &mut room.scratch,
    );
    for (i, row) in scores.chunks_exact_mut(nk).enumerate() {
        let end = if shape.causal { i + 1 } else { nk };
        if !buckets.is_empty() {
            for (x, &bucket) in row[..end].iter_mut().zip(&buckets[nq - 1 - i..]) {
                *x += from.bias[bucket as usize * shape.heads + head];
            }
        }
        softmax_in_place(&mut row[..end]);
        row[end..].fill(0.0);
    }
}

fn drop_out(shape: &Attention, s: usize, head: usize, values: &mut [f32]) {
    let mut dropout = shape.dropout;
    dropout.key = dropout.key.child(s as u64);
    dropout.apply(head * values.len(), values);
}

/// Output rows cut at the tasks' borders: (first sequence, its rows).
fn split_rows<'a>(
    mut out: &'a mut [f32],
    shape: &Attention,
    width: usize,
) -> Vec<(usize, &'a mut [f32])> {
    let sequences = shape.queries.len() - 1;
    let mut tasks = Vec::with_capacity(sequences.div_ceil(TASK));
    for first in (0..sequences).step_by(TASK) {
        let end = (first + TASK).min(sequences);
        let rows = shape.queries[end] - shape.queries[first];
        let (head, tail) = out.split_at_mut(rows * width);
        tasks.push((first, head));
        out = tail;
    }
    tasks
}

/// e^x to about 2 units in the last place, without branches, so that it vectorises.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * 0.693_359_375;
    let r = r + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    let power = (shifted
        .to_bits()
        .wrapping_sub(0x4b40_0000)
        .wrapping_add(127))
        << 23;
    p * f32::from_bits(power)
}

vectorized! {
    /// Softmax of one row.
    pub(crate) fn softmax_in_place(row: &mut [f32]) {
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for i in 0..16 { lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] }; }
        }
        let mut max = f32::NEG_INFINITY;
        for &x in lanes.iter().chain(rest) { max = if x > max { x } else { max }; }
        for x in row.iter_mut() { *x = exp(*x - max); }
        let mut lanes = [0f32; 16];
        let (chunks, rest) = row.as_chunks::<16>();
        for chunk in chunks {
            for i in 0..16 { lanes[i] += chunk[i]; }
        }
        let mut sum = 0.0;
        for x in rest { sum += x; }
        for x in lanes { sum += x; }
        let inverse = 1.0 / sum;
        for x in row.iter_mut() { *x *= inverse; }
    }
}

vectorized! {
    /// `grad = p * (grad - sum(p * grad))` by rows.
    fn softmax_backward(p: &[f32], grad: &mut [f32], columns: usize) {
        for (p, grad) in p.chunks_exact(columns).zip(grad.chunks_exact_mut(columns)) {
            let along = super::norm::dot(p, grad);
            for (g, p) in grad.iter_mut().zip(p) { *g = p * (*g - along); }
        }
    }
}

vectorized! {
    /// One query (the first H·K numbers of `query`) on a few rows of queries, keys and values; `bias` is [positions, H].
    pub(crate) fn single_query(
        query: &[f32], rows: &[&[f32]], bias: &[f32], heads: usize, key_dim: usize, out: &mut [f32],
    ) {
        let width = heads * key_dim;
        let mut p = vec![0.0; rows.len()];
        for head in 0..heads {
            let at = head * key_dim;
            let q = &query[at..at + key_dim];
            for (i, row) in rows.iter().enumerate() {
                p[i] = super::norm::dot(q, &row[width + at..][..key_dim]) + bias[i * heads + head];
            }
            softmax_in_place(&mut p);
            let out = &mut out[at..at + key_dim];
            out.fill(0.0);
            for (p, row) in p.iter().zip(rows) {
                for (o, v) in out.iter_mut().zip(&row[2 * width + at..][..key_dim]) { *o += p * v; }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate() {
        for i in -8700..200 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (got / want - 1.0).abs() < 4e-7,
                "exp({x}) = {got}, not {want}"
            );
        }
    }
}
