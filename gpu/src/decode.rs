//! Next-code logits for growing prefixes: the cached decoder, on the CPU and on any engine, and its slow twin that replays
//! whole prefixes.

use crate::error::Result;
use crate::ops::elementwise::{add_to, bias_relu};
use crate::ops::matmul::{Scratch, View, multiply};
use crate::ops::{Attention, Dropout, Graph, Norm, Sources, Tape, Workspace, attend, norm_rows, single_query};
use crate::tiger::{EPS, FeedForward, Histories, Noise, Prefixes, Tiger, TigerConfig, decode, encode, token_table};
use rayon::prelude::*;
use std::sync::Arc;

/// The prefixes of one step, those of one user side by side.
pub(crate) struct Rows {
    /// For each row, the row of the step before that it continues (empty at the first step).
    pub parents: Vec<u32>,
    /// For each row, the token table's row of its last token.
    pub tokens: Vec<u32>,
    /// Where each user's rows start; one more than there are users.
    pub users: Arc<[usize]>,
}

/// Something that can be asked for logits step by step.
pub(crate) trait Decoder {
    /// Logits [R, V] of level `level` (0, 1, ...) after these prefixes.
    fn step(&mut self, level: usize, rows: &Rows) -> Result<Vec<f32>>;
}

/// The fast CPU decoder: history encoded once, cross-attention keys and values computed once, and the keys and values
/// of every prefix position computed once and shared by all beams that descend from it.
pub(crate) struct Cached<'a> {
    model: &'a Tiger,
    memory: Arc<[usize]>,
    /// Per layer [T, 2·H·K].
    memory_kv: Vec<Vec<f32>>,
    /// Per layer, per position [R, 3·H·K].
    cache: Vec<Vec<Vec<f32>>>,
    /// For each row of the last step, its ancestors' rows at every earlier position, and its own.
    paths: Vec<Vec<u32>>,
    scratch: Scratch,
}

impl<'a> Cached<'a> {
    /// Encodes the histories.
    pub fn new(model: &'a Tiger, histories: &Histories, workspace: &mut Workspace) -> Result<Self> {
        let config = model.config();
        let mut tape = Tape::new(model.weights(), workspace);
        let table = token_table(&mut tape, config, histories)?;
        let memory = encode(&mut tape, config, &table, histories, &mut Noise::off())?;
        let memory_td = tape.values(&memory)?;
        drop(tape);
        let mut cached = Cached {
            model,
            memory: histories.offsets.clone(),
            memory_kv: vec![],
            cache: vec![vec![]; config.layers],
            paths: vec![],
            scratch: Scratch::default(),
        };
        for layer in 0..config.layers {
            let kv = cached.linear(&memory_td, &format!("decoder.{layer}.cross.kv"), false)?;
            cached.memory_kv.push(kv);
        }
        Ok(cached)
    }

    /// `x · wᵀ`, plus the bias if the model has one of that name, then ReLU if asked.
    fn linear(&mut self, x: &[f32], name: &str, relu: bool) -> Result<Vec<f32>> {
        let weights = self.model.weights();
        let (o, i) = weights.get(name)?.matrix();
        let bias = weights.get(&format!("{name}.bias")).map_or(&[][..], |b| &b.data);
        let rows = x.len() / i;
        let mut out = vec![0.0; rows * o];
        let (x_ri, w_oi) = (View::rows(x, i), View::rows(&weights.get(name)?.data, i));
        let scratch = &mut self.scratch;
        multiply((rows, o, i), x_ri, w_oi.t(), &mut out, false, scratch, |_, rows| {
            bias_relu(rows, bias, o, relu);
        });
        Ok(out)
    }

    fn norm(&self, x: &[f32], name: &str) -> Result<Vec<f32>> {
        let mut out = vec![0.0; x.len()];
        norm_rows(Norm::Rms, x, &self.model.weights().get(name)?.data, EPS, &mut out);
        Ok(out)
    }

    /// Embeddings of the last tokens [R, D].
    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (weights, d) = (self.model.weights(), self.model.config().d_model);
        let (codes, bos) = (&weights.get("codes")?.data, &weights.get("bos")?.data);
        let mut x_rd = Vec::with_capacity(tokens.len() * d);
        for &token in tokens {
            let at = token as usize * d;
            x_rd.extend_from_slice(codes.get(at..at + d).unwrap_or(bos));
        }
        Ok(x_rd)
    }

    /// Each row attends to its path [R, H·K].
    fn path_attention(&self, layer: usize) -> Result<Vec<f32>> {
        let config = self.model.config();
        let (h, k) = (config.heads, config.d_kv);
        let (width, positions) = (h * k, self.paths[0].len());
        let table = &self.model.weights().get("decoder.bias")?.data;
        let buckets = config.buckets(false);
        let bias: Vec<f32> = (0..positions)
            .flat_map(|p| {
                let bucket = buckets.bucket(p as i64 + 1 - positions as i64);
                table[bucket * h..][..h].iter().copied()
            })
            .collect();
        let cache = &self.cache[layer];
        let mut out = vec![0.0; self.paths.len() * width];
        out.par_chunks_mut(width)
            .zip(&self.paths)
            .with_min_len(64)
            .for_each(|(out, path)| {
                let at = |p: usize| &cache[p][path[p] as usize * 3 * width..][..3 * width];
                let keys: Vec<&[f32]> = (0..positions).map(at).collect();
                single_query(keys[positions - 1], &keys, &bias, h, k, out);
            });
        Ok(out)
    }
}

impl Decoder for Cached<'_> {
    fn step(&mut self, level: usize, rows: &Rows) -> Result<Vec<f32>> {
        let config = self.model.config();
        self.paths = extend(&self.paths, &rows.parents, 0..rows.tokens.len() as u32);
        let mut x_rd = self.embed(&rows.tokens)?;
        for layer in 0..config.layers {
            let block = format!("decoder.{layer}");
            let h = self.norm(&x_rd, &format!("{block}.attention.norm"))?;
            let qkv = self.linear(&h, &format!("{block}.attention.qkv"), false)?;
            self.cache[layer].truncate(level);
            self.cache[layer].push(qkv);
            let a = self.path_attention(layer)?;
            add_to(&mut x_rd, &self.linear(&a, &format!("{block}.attention.out"), false)?);

            let h = self.norm(&x_rd, &format!("{block}.cross.norm"))?;
            let q = self.linear(&h, &format!("{block}.cross.q"), false)?;
            let width = config.heads * config.d_kv;
            let mut a = vec![0.0; q.len()];
            let shape = Attention {
                heads: config.heads,
                key_dim: config.d_kv,
                queries: rows.users.clone(),
                keys: self.memory.clone(),
                causal: false,
                scale: 1.0,
                buckets: None,
                dropout: Dropout::off(),
            };
            let kv = &self.memory_kv[layer];
            let from = Sources {
                q: &q,
                q_row: width,
                kv,
                kv_row: 2 * width,
                k_column: 0,
                bias: &[],
            };
            attend(&shape, from, &mut a);
            add_to(&mut x_rd, &self.linear(&a, &format!("{block}.cross.out"), false)?);

            let mut h = self.norm(&x_rd, &format!("{block}.feed_forward.norm"))?;
            let maps = config.feed_forward.maps();
            for map in 1..=maps {
                h = self.linear(&h, &format!("{block}.feed_forward.{map}"), map < maps)?;
            }
            add_to(&mut x_rd, &h);
        }
        let h = self.norm(&x_rd, "decoder.norm")?;
        self.linear(&h, &config.head(level).name, false)
    }
}

/// The same on any engine, with what it remembers as nodes there.
pub(crate) struct Gathered<'a, G: Graph> {
    graph: &'a mut G,
    config: &'a TigerConfig,
    /// A node without those that it was computed from.
    detached: fn(&G::Node) -> G::Node,
    table_nd: G::Node,
    memory: Arc<[usize]>,
    /// Per layer [T, 2·H·K].
    memory_kv: Vec<G::Node>,
    /// Per layer, per position [R, 3·H·K].
    cache: Vec<Vec<G::Node>>,
    /// Rows of every position.
    counts: Vec<usize>,
    /// For each row of the last step, its ancestors' rows at every earlier position, and its own.
    paths: Vec<Vec<u32>>,
}

impl<'a, G: Graph> Gathered<'a, G> {
    /// Encodes the histories. `detached` makes a node that keeps none of those that it was computed from, where the engine
    /// keeps them for gradients.
    pub fn new(
        graph: &'a mut G,
        config: &'a TigerConfig,
        histories: &Histories,
        detached: fn(&G::Node) -> G::Node,
    ) -> Result<Self> {
        let table_nd = detached(&token_table(graph, config, histories)?);
        let memory_td = encode(graph, config, &table_nd, histories, &mut Noise::off())?;
        let memory_td = detached(&memory_td);
        let mut gathered = Gathered {
            graph,
            config,
            detached,
            table_nd,
            memory: histories.offsets.clone(),
            memory_kv: Vec::with_capacity(config.layers),
            cache: vec![Vec::new(); config.layers],
            counts: Vec::new(),
            paths: Vec::new(),
        };
        for layer in 0..config.layers {
            let kv = gathered.linear(&memory_td, &format!("decoder.{layer}.cross.kv"), false)?;
            gathered.memory_kv.push(detached(&kv));
        }
        Ok(gathered)
    }

    fn linear(&mut self, x: &G::Node, name: &str, relu: bool) -> Result<G::Node> {
        let w = self.graph.weight(name)?;
        let biased = name.contains("feed_forward") && self.config.feed_forward == FeedForward::Grid;
        let b = match biased {
            true => Some(self.graph.weight(&format!("{name}.bias"))?),
            false => None,
        };
        self.graph.linear(x, &w, b.as_ref(), relu, Dropout::off())
    }

    fn norm(&mut self, x: &G::Node, name: &str) -> Result<G::Node> {
        let w = self.graph.weight(name)?;
        self.graph.rms_norm(x, &w, EPS)
    }

    fn attention(&self, queries: Arc<[usize]>, keys: Arc<[usize]>, causal: bool) -> Attention {
        Attention {
            heads: self.config.heads,
            key_dim: self.config.d_kv,
            queries,
            keys,
            causal,
            scale: 1.0,
            buckets: causal.then(|| self.config.buckets(false)),
            dropout: Dropout::off(),
        }
    }
}

impl<G: Graph> Decoder for Gathered<'_, G> {
    fn step(&mut self, level: usize, rows: &Rows) -> Result<Vec<f32>> {
        let (count, length) = (rows.tokens.len(), level + 1);
        self.paths = extend(&self.paths, &rows.parents, 0..count as u32);
        self.counts.truncate(level);
        // Rows of all positions, one position after another.
        let mut first = Vec::with_capacity(length);
        let mut before = 0;
        self.counts.push(count);
        for count in &self.counts {
            first.push(before as u32);
            before += count;
        }
        let packed = self.paths.iter().flat_map(|path| path.iter().zip(&first));
        let packed: Arc<[u32]> = packed.map(|(row, first)| first + row).collect();
        let last: Arc<[u32]> = (1..=count).map(|row| (row * length - 1) as u32).collect();
        let prefixes: Arc<[usize]> = (0..=count).map(|row| row * length).collect();
        let to_paths = self.attention(prefixes.clone(), prefixes, true);
        let to_histories = self.attention(rows.users.clone(), self.memory.clone(), false);
        let bias = self.graph.weight("decoder.bias")?;
        let mut x_rd = self.graph.gather(&self.table_nd, rows.tokens.as_slice().into())?;
        for layer in 0..self.config.layers {
            let block = format!("decoder.{layer}");
            let h_rd = self.norm(&x_rd, &format!("{block}.attention.norm"))?;
            let qkv = self.linear(&h_rd, &format!("{block}.attention.qkv"), false)?;
            self.cache[layer].truncate(level);
            self.cache[layer].push((self.detached)(&qkv));
            let all = self.graph.stack(&self.cache[layer])?;
            let qkv = self.graph.gather(&all, packed.clone())?; // [R·length, 3·H·K]
            let a = self.graph.self_attention(&qkv, Some(&bias), &to_paths)?;
            let a = self.graph.gather(&a, last.clone())?; // [R, H·K]
            let y_rd = self.linear(&a, &format!("{block}.attention.out"), false)?;
            x_rd = self.graph.residual(&x_rd, &y_rd, Dropout::off())?;

            let h_rd = self.norm(&x_rd, &format!("{block}.cross.norm"))?;
            let q = self.linear(&h_rd, &format!("{block}.cross.q"), false)?;
            let a = self.graph.cross_attention(&q, &self.memory_kv[layer], &to_histories)?;
            let y_rd = self.linear(&a, &format!("{block}.cross.out"), false)?;
            x_rd = self.graph.residual(&x_rd, &y_rd, Dropout::off())?;

            let mut h = self.norm(&x_rd, &format!("{block}.feed_forward.norm"))?;
            let maps = self.config.feed_forward.maps();
            for map in 1..=maps {
                h = self.linear(&h, &format!("{block}.feed_forward.{map}"), map < maps)?;
            }
            x_rd = (self.detached)(&self.graph.residual(&x_rd, &h, Dropout::off())?);
        }
        let h_rd = self.norm(&x_rd, "decoder.norm")?;
        let logits_rv = self.linear(&h_rd, &self.config.head(level).name, false)?;
        self.graph.values(&logits_rv)
    }
}

/// The slow twin on any engine: every step decodes every prefix from its start.
pub(crate) struct Replayed<'a, G: Graph> {
    graph: &'a mut G,
    config: &'a TigerConfig,
    table_nd: G::Node,
    memory_td: G::Node,
    memory: Arc<[usize]>,
    prefixes: Vec<Vec<u32>>,
}

impl<'a, G: Graph> Replayed<'a, G> {
    /// Encodes the histories.
    pub fn new(graph: &'a mut G, config: &'a TigerConfig, histories: &Histories) -> Result<Self> {
        let table_nd = token_table(graph, config, histories)?;
        let memory_td = encode(graph, config, &table_nd, histories, &mut Noise::off())?;
        let memory = histories.offsets.clone();
        Ok(Replayed {
            graph,
            config,
            table_nd,
            memory_td,
            memory,
            prefixes: vec![],
        })
    }
}

impl<G: Graph> Decoder for Replayed<'_, G> {
    fn step(&mut self, level: usize, rows: &Rows) -> Result<Vec<f32>> {
        self.prefixes = extend(&self.prefixes, &rows.parents, rows.tokens.iter().copied());
        let length = level + 1;
        let offsets: Arc<[usize]> = (0..=self.prefixes.len()).map(|s| s * length).collect();
        let groups: Arc<[usize]> = rows.users.iter().map(|&row| row * length).collect();
        let g = &mut *self.graph;
        let tokens_t = self.prefixes.concat().into();
        let prefixes = Prefixes {
            tokens_t,
            offsets,
            groups,
        };
        let noise = &mut Noise::off();
        let (table, memory) = (&self.table_nd, &self.memory_td);
        let hidden_td = decode(g, self.config, table, memory, &self.memory, &prefixes, noise)?;
        let last: Arc<[u32]> = (1..=self.prefixes.len()).map(|s| (s * length - 1) as u32).collect();
        let hidden_rd = g.gather(&hidden_td, last)?;
        let head_vd = g.weight(&self.config.head(level).name)?;
        let logits_rv = g.linear(&hidden_rd, &head_vd, None, false, Dropout::off())?;
        g.values(&logits_rv)
    }
}

/// The lists of the rows that each row continues, and its own number behind them.
fn extend(lists: &[Vec<u32>], parents: &[u32], own: impl Iterator<Item = u32>) -> Vec<Vec<u32>> {
    let longer = |(row, own): (usize, u32)| {
        let mut list = match parents.get(row) {
            Some(&parent) => lists[parent as usize].clone(),
            None => vec![],
        };
        list.push(own);
        list
    };
    own.enumerate().map(longer).collect()
}
