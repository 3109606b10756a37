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

impl Sinks {
    /// Through a method, so that a closure captures the whole (which may cross threads), not a bare pointer.
    fn pointers(&self) -> (*mut f32, *mut f32) {
        (self.dq, self.dkv)
    }
}

/// One sequence's heads side by side, each [rows, K] and contiguous: the big matrices are read and written once, in
/// order, and the products work in the cache.
#[derive(Default)]
struct Room {
    scratch: Scratch,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    out: Vec<f32>,
    scores: Vec<f32>,
    kept: Vec<f32>,
    grads: Vec<f32>,
    line: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
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
                let (nq, nk) = lengths(shape, s);
                let buckets = bucket_row(shape, s, &from);
                load(shape, from, s, room);
                for head in 0..shape.heads {
                    probabilities(shape, from, s, head, &buckets, room);
                    let scores = &mut room.scores[..nq * padded(nk)];
                    drop_out(shape, s, head, scores);
                    let at = (shape.queries[s] - start) * width + head * shape.key_dim;
                    multiply_small(
                        (nq, shape.key_dim, nk),
                        View::rows(scores, padded(nk)),
                        head_of(&room.v, shape, nk, head),
                        &mut out[at..],
                        width,
                        false,
                        &mut room.scratch,
                    );
                }
            }
        });
}

/// Writes the gradients of queries, keys and values to `into`, adds that of the bias table to `dbias`.
///
/// # Safety
/// `into` must point to matrices of the sizes of `from.q` and `from.kv` that nobody else uses meanwhile.
pub(crate) unsafe fn backward(shape: &Attention, from: Sources, grad: &[f32], into: Sinks, dbias: &mut [f32]) {
    let sequences = shape.queries.len() - 1;
    let width = shape.heads * shape.key_dim;
    let starts: Vec<usize> = (0..sequences).step_by(TASK).collect();
    let shares: Vec<Vec<f32>> = starts
        .into_par_iter()
        .map_init(Room::default, |room, first| {
            let mut share = vec![0.0; from.bias.len()];
            for s in first..(first + TASK).min(sequences) {
                let (nq, nk) = lengths(shape, s);
                let (q_row, k_row) = (shape.queries[s], shape.keys[s]);
                let buckets = bucket_row(shape, s, &from);
                load(shape, from, s, room);
                load_heads(&grad[q_row * width..], width, shape, nq, &mut room.out);
                for (buffer, rows) in [(&mut room.dq, nq), (&mut room.dk, nk), (&mut room.dv, nk)] {
                    buffer.resize(rows * width, 0.0);
                }
                for head in 0..shape.heads {
                    backward_head(shape, from, (s, head), &buckets, room, &mut share);
                }
                rescale(&mut room.dq, shape.scale);
                // SAFETY: the rows of this sequence, which belongs to this task only; q, k and v columns are apart.
                unsafe {
                    let (dq, dkv) = into.pointers();
                    let dq = dq.add(q_row * from.q_row);
                    store_heads(&room.dq, shape, nq, dq, from.q_row, into.add_q);
                    let dk = dkv.add(k_row * from.kv_row + from.k_column);
                    store_heads(&room.dk, shape, nk, dk, from.kv_row, into.add_kv);
                    store_heads(&room.dv, shape, nk, dk.add(width), from.kv_row, into.add_kv);
                }
            }
            share
        })
        .collect();
    for share in shares {
        super::elementwise::add_to(dbias, &share);
    }
}

fn backward_head(
    shape: &Attention,
    from: Sources,
    (s, head): (usize, usize),
    buckets: &[u32],
    room: &mut Room,
    share: &mut [f32],
) {
    let (nq, nk) = lengths(shape, s);
    let (k_dim, wide) = (shape.key_dim, padded(nk));
    probabilities(shape, from, s, head, buckets, room);
    let Room {
        scratch,
        q,
        k,
        v,
        out,
        scores,
        kept,
        grads,
        line,
        dq,
        dk,
        dv,
    } = room;
    kept.clear();
    kept.extend_from_slice(&scores[..nq * wide]);
    drop_out(shape, s, head, kept);
    let go = head_of(out, shape, nq, head);
    let (at_q, at_k) = (head * nq * k_dim, head * nk * k_dim);
    // dv = keptᵀ · go
    let kept_t = View::rows(kept, wide).t();
    multiply_small((nk, k_dim, nq), kept_t, go, &mut dv[at_k..], k_dim, false, scratch);
    // dscores = p * (dp - sum(p * dp)), dp = dropout(go · vᵀ)
    if grads.len() < nq * wide {
        grads.resize(nq * wide, 0.0);
    }
    let ds = &mut grads[..nq * wide];
    let v = head_of(v, shape, nk, head);
    multiply_small((nq, nk, k_dim), go, v.t(), ds, wide, false, scratch);
    drop_out(shape, s, head, ds);
    ds.chunks_exact_mut(wide).for_each(|row| row[nk..].fill(0.0));
    softmax_backward(&scores[..nq * wide], ds, wide);
    if !share.is_empty() {
        // sums along the diagonals first: all pairs of one distance share a bucket
        line.clear();
        line.resize(buckets.len(), 0.0);
        for (i, row) in ds.chunks_exact(wide).enumerate() {
            let end = seen(shape, (nq, nk), i);
            super::elementwise::add_to(&mut line[nq - 1 - i..][..end], &row[..end]);
        }
        for (&bucket, sum) in buckets.iter().zip(line.iter()) {
            share[bucket as usize * shape.heads + head] += sum;
        }
    }
    let ds = View::rows(ds, wide);
    let (q, k) = (head_of(q, shape, nq, head), head_of(k, shape, nk, head));
    multiply_small((nq, k_dim, nk), ds, k, &mut dq[at_q..], k_dim, false, scratch);
    multiply_small((nk, k_dim, nq), ds.t(), q, &mut dk[at_k..], k_dim, false, scratch);
}

/// Rows of scores are this wide: whole vectors, the numbers beyond the last key are 0.
pub(super) fn padded(keys: usize) -> usize {
    keys.next_multiple_of(16)
}

fn lengths(shape: &Attention, s: usize) -> (usize, usize) {
    (
        shape.queries[s + 1] - shape.queries[s],
        shape.keys[s + 1] - shape.keys[s],
    )
}

/// How many of the keys query `i` sees.
pub(super) fn seen(shape: &Attention, (nq, nk): (usize, usize), i: usize) -> usize {
    match shape.causal {
        true => nk - nq + i + 1,
        false => nk,
    }
}

/// Queries, keys and values of a sequence into the room.
fn load(shape: &Attention, from: Sources, s: usize, room: &mut Room) {
    let (nq, nk) = lengths(shape, s);
    let width = shape.heads * shape.key_dim;
    load_heads(
        &from.q[shape.queries[s] * from.q_row..],
        from.q_row,
        shape,
        nq,
        &mut room.q,
    );
    rescale(&mut room.q, shape.scale);
    let kv = &from.kv[shape.keys[s] * from.kv_row + from.k_column..];
    load_heads(kv, from.kv_row, shape, nk, &mut room.k);
    load_heads(&kv[width..], from.kv_row, shape, nk, &mut room.v);
}

fn rescale(values: &mut [f32], scale: f32) {
    if scale != 1.0 {
        values.iter_mut().for_each(|x| *x *= scale);
    }
}

/// `[rows, H·K]` at a row stride to `[H, rows, K]`.
fn load_heads(from: &[f32], stride: usize, shape: &Attention, rows: usize, out: &mut Vec<f32>) {
    let k = shape.key_dim;
    out.resize(rows * shape.heads * k, 0.0);
    for row in 0..rows {
        for (head, x) in from[row * stride..][..shape.heads * k].chunks_exact(k).enumerate() {
            out[(head * rows + row) * k..][..k].copy_from_slice(x);
        }
    }
}

/// The way back, overwriting or adding.
///
/// # Safety
/// `to` must hold `rows` rows of H·K numbers at this stride that nobody else uses.
unsafe fn store_heads(from: &[f32], shape: &Attention, rows: usize, to: *mut f32, stride: usize, add: bool) {
    let k = shape.key_dim;
    for row in 0..rows {
        for head in 0..shape.heads {
            let x = &from[(head * rows + row) * k..][..k];
            // SAFETY: inside the row, by the caller's contract.
            let out = unsafe { std::slice::from_raw_parts_mut(to.add(row * stride + head * k), k) };
            if add {
                super::elementwise::add_to(out, x);
            } else {
                out.copy_from_slice(x);
            }
        }
    }
}

/// One head of a buffer [H, rows, K].
fn head_of<'a>(heads: &'a [f32], shape: &Attention, rows: usize, head: usize) -> View<'a> {
    let n = rows * shape.key_dim;
    View::rows(&heads[head * n..][..n], shape.key_dim)
}

/// The bucket of every distance of a sequence, or nothing without a bias.
fn bucket_row(shape: &Attention, s: usize, from: &Sources) -> Vec<u32> {
    let (nq, nk) = lengths(shape, s);
    if from.bias.is_empty() || nq == 0 {
        Vec::new()
    } else {
        shape.buckets.map_or_else(Vec::new, |buckets| buckets.table(nq, nk))
    }
}

/// Softmax of scores plus bias into `room.scores` [nq, padded(nk)].
fn probabilities(shape: &Attention, from: Sources, s: usize, head: usize, buckets: &[u32], room: &mut Room) {
    let (nq, nk) = lengths(shape, s);
    let wide = padded(nk);
    if room.scores.len() < nq * wide {
        room.scores.resize(nq * wide, 0.0);
    }
    let scores = &mut room.scores[..nq * wide];
    let q = head_of(&room.q, shape, nq, head);
    let k = head_of(&room.k, shape, nk, head);
    multiply_small(
        (nq, nk, shape.key_dim),
        q,
        k.t(),
        scores,
        wide,
        false,
        &mut room.scratch,
    );
    let line = &mut room.line;
    line.clear();
    line.extend(buckets.iter().map(|&b| from.bias[b as usize * shape.heads + head]));
    for (i, row) in scores.chunks_exact_mut(wide).enumerate() {
        let end = seen(shape, (nq, nk), i);
        if !line.is_empty() {
            super::elementwise::add_to(&mut row[..end], &line[nq - 1 - i..][..end]);
        }
        row[end..].fill(f32::NEG_INFINITY);
        softmax_in_place(row);
        row[end..].fill(0.0);
    }
}

fn drop_out(shape: &Attention, s: usize, head: usize, values: &mut [f32]) {
    let mut dropout = shape.dropout;
    dropout.key = dropout.key.child(s as u64);
    dropout.apply(head * values.len(), values);
}

/// Output rows cut at the tasks' borders: (first sequence, its rows).
fn split_rows<'a>(mut out: &'a mut [f32], shape: &Attention, width: usize) -> Vec<(usize, &'a mut [f32])> {
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

/// ln 2 in two parts; the first has few bits, so its products are exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;
const LN_2_REST: f32 = 2.121_944_4e-4;

/// e^x to about 2 units in the last place, without branches, so that it vectorises. Below e^-80 it is 0: numbers
/// near the smallest float would turn into denormal ones later, which are a hundred times slower.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let zero = x < -80.0;
    let x = if zero { -80.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = x - n * LN_2_HIGH;
    let r = r + n * LN_2_REST;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * r * r + r + 1.0;
    let power = (shifted.to_bits().wrapping_sub(0x4b40_0000).wrapping_add(127)) << 23;
    let y = p * f32::from_bits(power);
    if zero { 0.0 } else { y }
}

vectorized! {
    /// Softmax of one row, in 16 fixed lanes.
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
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::NAN).is_nan());
        for i in -8000..200 {
            let x = i as f32 / 100.0;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 4e-7, "exp({x}) = {got}, not {want}");
        }
    }
}
