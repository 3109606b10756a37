//! Attention in tiles, forward and backward: no scores in memory, nothing padded, windows read where they are.

use super::{Argument, Kernels, of_type, result_of};
use crate::error::{Error, Result};
use crate::ops::Attention;
use candle_core::{DType, Device, Tensor};
use std::ops::Range;

/// The widest head that the kernels take.
pub(crate) const WIDEST: usize = 128;
/// Threads of the blocks that add up.
const THREADS: usize = 256;
/// Rows of a tile that a warp has.
const WARP_ROWS: usize = 16;

impl Kernels {
    /// Attention of `q` [Tq, H·K] over `kv` [Tk, 2·H·K], or within `q` [T, 3·H·K] alone, with a table `bias` [buckets, H]
    /// of f32. The result, [Tq, H·K], has the type of `q`, f32 or bf16; sums and softmax are f32, and probabilities are
    /// rounded to bf16 where the values are. `shape` must fit, and its heads have at most [`WIDEST`] columns.
    pub(crate) fn attention(
        &self,
        q: &Tensor,
        kv: Option<&Tensor>,
        bias: Option<&Tensor>,
        shape: &Attention,
    ) -> Result<Tensor> {
        if shape.key_dim > WIDEST {
            return Err(Error::shape(
                "attention",
                format!("heads of at most {WIDEST}"),
                shape.key_dim,
            ));
        }
        if let Some(bias) = bias {
            let rows = shape.buckets.map_or(0, |buckets| buckets.buckets);
            if bias.dims() != [rows, shape.heads] {
                return Err(Error::shape("relative bias", (rows, shape.heads), bias.dims()));
            }
        }
        let tiles = Tiles::of(shape.key_dim, q.dtype());
        let run = Run {
            kernels: self.clone(),
            shape: shape.clone(),
            tiles,
            plan: Plan::new(shape, bias.is_some(), tiles, q.device())?,
            lse: Tensor::zeros((shape.heads, q.dim(0)?), DType::F32, q.device())?,
            cross: kv.is_some(),
            bias: bias.is_some(),
        };
        let dense: Vec<Tensor> = [Some(q), kv, bias]
            .into_iter()
            .flatten()
            .map(Tensor::contiguous)
            .collect::<candle_core::Result<_>>()?;
        let inputs: Vec<&Tensor> = dense.iter().collect();
        let size = (q.dim(0)?, shape.heads * shape.key_dim);
        let back = run.clone();
        let out = result_of("attention", &inputs, size, q.dtype(), move |inputs, out, gradient| {
            back.backward(inputs, out, gradient)
        })?;
        run.forward(&inputs, &out)?;
        Ok(out)
    }
}

/// Rows of a block, and how many of the other side it takes at a time, as in attention.cu.
#[derive(Clone, Copy)]
struct Tiles {
    /// Columns of a head in a tile.
    wide: usize,
    /// Bytes of a number.
    size: usize,
    forward: (usize, usize),
    backward: (usize, usize),
}

impl Tiles {
    fn of(key_dim: usize, dtype: DType) -> Self {
        let wide = key_dim.next_power_of_two().clamp(32, WIDEST);
        let (forward, backward) = match (wide, dtype) {
            (WIDEST, DType::F32) => ((64, 32), (32, 32)),
            _ => ((64, 64), (64, 32)),
        };
        Tiles {
            wide,
            size: dtype.size_in_bytes(),
            forward,
            backward,
        }
    }

    /// Bytes of rows of inputs.
    fn inputs(self, rows: usize) -> usize {
        rows * (self.wide * self.size + 16)
    }

    /// Bytes of scores.
    fn scores((rows, columns): (usize, usize)) -> usize {
        rows * (columns + 4) * 4
    }

    /// Bytes of factors made of scores, where they need room of their own.
    fn factors(self, (rows, columns): (usize, usize)) -> usize {
        if self.size == 4 { 0 } else { rows * (columns * 2 + 16) }
    }

    fn forward_bytes(self) -> usize {
        let (rows, columns) = self.forward;
        let tiles = self.inputs(rows + 2 * columns) + Self::scores(self.forward) + self.factors(self.forward);
        tiles + 4 * (WARP_ROWS * rows + rows + columns)
    }

    fn queries_bytes(self, buckets: usize) -> usize {
        let (rows, columns) = self.backward;
        let tiles = self.inputs(2 * (rows + columns)) + 2 * Self::scores(self.backward) + self.factors(self.backward);
        tiles + 4 * (3 * (rows + columns) + buckets)
    }

    fn keys_bytes(self) -> usize {
        let (rows, columns) = self.backward;
        let tiles = self.inputs(2 * (rows + columns)) + 2 * Self::scores(self.backward);
        tiles + 2 * self.factors(self.backward) + 4 * (rows + columns + 2 * columns)
    }
}

/// What the kernels are told of the sequences, as numbers in one tensor.
#[derive(Clone)]
struct Plan {
    words: Tensor,
    /// Which of the words are the sequences.
    sequences: Range<usize>,
    /// Which list tiles, (sequence, first row): of queries, of queries on the way back, of keys.
    tiles: [Range<usize>; 3],
    /// Which are the buckets of distances.
    buckets: Range<usize>,
    /// Where distance 0 is among them.
    origin: usize,
}

impl Plan {
    fn new(shape: &Attention, bias: bool, tiles: Tiles, device: &Device) -> Result<Self> {
        let lengths = |offsets: &[usize]| offsets.windows(2).map(|w| w[1] - w[0]).collect::<Vec<_>>();
        let (queries, keys) = (lengths(&shape.queries), lengths(&shape.keys));
        let mut words = Vec::with_capacity(12 * queries.len());
        for s in 0..queries.len() {
            let (low, high) = shape.dropout.key.child(s as u64).halves();
            let of_s = [shape.queries[s], shape.keys[s], queries[s], keys[s]];
            words.extend(of_s.map(|x| x as u32));
            words.extend([low, high]);
        }
        let sequences = 0..words.len();
        let tiles = [
            (&queries, tiles.forward.0),
            (&queries, tiles.backward.0),
            (&keys, tiles.backward.0),
        ]
        .map(|(lengths, rows)| {
            let start = words.len();
            for (s, length) in lengths.iter().enumerate() {
                words.extend((0..*length).step_by(rows).flat_map(|first| [s as u32, first as u32]));
            }
            start..words.len()
        });
        let start = words.len();
        let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
        if bias && longest(&queries) > 0 {
            let buckets = shape
                .buckets
                .ok_or_else(|| Error::shape("relative bias", "buckets", "none"))?;
            words.extend(buckets.table(longest(&queries), longest(&keys)));
        }
        Ok(Plan {
            sequences,
            tiles,
            buckets: start..words.len(),
            origin: longest(&queries).saturating_sub(1),
            words: Tensor::new(words, device)?,
        })
    }

    fn part(&self, words: &Range<usize>) -> Result<Tensor> {
        Ok(self.words.narrow(0, words.start, words.len())?)
    }
}

/// One attention, for both ways.
#[derive(Clone)]
struct Run {
    kernels: Kernels,
    shape: Attention,
    tiles: Tiles,
    plan: Plan,
    /// Logarithms of the sums of exponentials, [H, Tq].
    lse: Tensor,
    /// Whether keys and values are in a matrix of their own.
    cross: bool,
    bias: bool,
}

/// Queries, keys and values as windows.
struct Windows {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Run {
    fn windows(&self, matrices: &[&Tensor]) -> Result<Windows> {
        let w = self.shape.heads * self.shape.key_dim;
        let (kv, k) = if self.cross { (matrices[1], 0) } else { (matrices[0], w) };
        Ok(Windows {
            q: matrices[0].narrow(1, 0, w)?,
            k: kv.narrow(1, k, w)?,
            v: kv.narrow(1, k + w, w)?,
        })
    }

    /// Runs a kernel on a block a tile and head: with what all are told, then `more`.
    fn launch(&self, kernel: &str, shared: usize, tiles: usize, inputs: &[&Tensor], more: &[Argument]) -> Result<()> {
        let Attention { heads, key_dim, .. } = self.shape;
        let rows = if tiles == 0 {
            self.tiles.forward.0
        } else {
            self.tiles.backward.0
        };
        let Windows { q, k, v } = self.windows(inputs)?;
        let (sequences, list) = (
            self.plan.part(&self.plan.sequences)?,
            self.plan.part(&self.plan.tiles[tiles])?,
        );
        let buckets = self.plan.part(&self.plan.buckets)?;
        let bias = match self.bias {
            true => [Argument::Read(inputs[inputs.len() - 1]), Argument::Read(&buckets)],
            false => [Argument::Absent; 2],
        };
        let mut arguments = vec![
            Argument::Read(&q),
            Argument::Read(&k),
            Argument::Read(&v),
            Argument::Number(q.stride()[0]),
            Argument::Number(k.stride()[0]),
            Argument::Read(&sequences),
            bias[0],
            bias[1],
            Argument::Number(self.plan.buckets.len()),
            Argument::Number(self.plan.origin),
            Argument::Number(q.dim(0)?),
            Argument::Number(heads),
            Argument::Number(key_dim),
            Argument::Real(self.shape.scale),
            Argument::Number(self.shape.causal.into()),
            Argument::Number(self.shape.dropout.threshold() as usize),
            Argument::Real(self.shape.dropout.scale()),
            Argument::Read(&list),
        ];
        arguments.extend_from_slice(more);
        let kernel = of_type(&format!("{kernel}_{}", self.tiles.wide), q.dtype())?;
        let grid = (self.plan.tiles[tiles].len() / 2, heads);
        self.kernels
            .run(&kernel, grid, rows / WARP_ROWS * 32, shared, &arguments)
    }

    fn forward(&self, inputs: &[&Tensor], out: &Tensor) -> Result<()> {
        let more = [Argument::Write(out), Argument::Write(&self.lse)];
        self.launch("attention_forward", self.tiles.forward_bytes(), 0, inputs, &more)
    }

    fn backward(&self, inputs: &[&Tensor], out: &Tensor, gradient: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (rows, heads, device) = (out.dim(0)?, self.shape.heads, out.device());
        let dots = Tensor::zeros((heads, rows), DType::F32, device)?;
        let grid = ((rows * heads).div_ceil(THREADS / 32), 1);
        let arguments = [
            Argument::Read(out),
            Argument::Read(gradient),
            Argument::Write(&dots),
            Argument::Number(rows),
            Argument::Number(heads),
            Argument::Number(self.shape.key_dim),
        ];
        let kernel = of_type("attention_dots", out.dtype())?;
        self.kernels.run(&kernel, grid, THREADS, 0, &arguments)?;

        let gradients: Vec<Tensor> = inputs
            .iter()
            .map(|x| x.zeros_like())
            .collect::<candle_core::Result<_>>()?;
        let Windows { q, k, v } = self.windows(&gradients.iter().collect::<Vec<_>>())?;
        let given = [
            Argument::Read(gradient),
            Argument::Read(&self.lse),
            Argument::Read(&dots),
        ];
        let [a, b, c] = given;

        let dbias = gradients.last().filter(|_| self.bias);
        let tiles = self.plan.tiles[1].len() / 2;
        let buckets = dbias.map_or(Ok(0), |dbias| dbias.dim(0))?;
        let shares = Tensor::zeros((tiles, heads, buckets.max(1)), DType::F32, device)?;
        let more = [
            a,
            b,
            c,
            Argument::Write(&q),
            Argument::Write(&shares),
            Argument::Number(buckets),
        ];
        self.launch("attention_queries", self.tiles.queries_bytes(buckets), 1, inputs, &more)?;
        if let Some(dbias) = dbias {
            let arguments = [
                Argument::Read(&shares),
                Argument::Write(dbias),
                Argument::Number(tiles),
                Argument::Number(heads),
                Argument::Number(buckets),
            ];
            let shared = 33 * size_of::<f32>();
            self.kernels
                .run("attention_bias", (buckets, heads), THREADS, shared, &arguments)?;
        }
        let more = [a, b, c, Argument::Write(&k), Argument::Write(&v)];
        self.launch("attention_keys", self.tiles.keys_bytes(), 2, inputs, &more)?;
        Ok(gradients.into_iter().map(Some).collect())
    }
}
