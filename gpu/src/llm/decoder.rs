//! A language model on the CPU that reads prompts once and then extends each of them by many beams.
//!
//! Keys and values of a prompt are packed for the matrix product once per user and shared by all beams. A token that a
//! beam adds is a row, which knows the rows before it on its path; nothing is copied when beams part. A row's result
//! depends neither on the other rows of a step nor on threads.

use super::head::{Head, Normalisation};
use super::{FrozenLlm, LlmConfig};
use crate::error::{Error, Result};
use crate::frozen::Table;
use crate::ops::isa::vectorized;
use crate::ops::matmul::{Packed, View};
use crate::ops::{dot, exp};
use crate::prenorm::PrenormEncoder;
use crate::prenorm::rotary::Rotations;
use rayon::prelude::*;

/// Rows of a user that share the products of one attention task: with two heads a key, two register tiles.
const ROWS: usize = 12;

/// A language model, packed for generation.
pub struct Decoder {
    config: LlmConfig,
    stack: PrenormEncoder,
    head: Head,
}

impl Decoder {
    /// Packs a model; its tensors are taken out of it one by one, and matrices keep the numbers they have. Results are
    /// those of the same numbers as f32, to the bit.
    ///
    /// # Errors
    /// [`Error::TensorNames`].
    pub fn new(model: impl Into<FrozenLlm>, normalisation: Normalisation) -> Result<Self> {
        let FrozenLlm {
            config,
            mut weights,
            adapters,
            words_nd,
            read_only_nd,
        } = model.into();
        let mut take = |name: &str| weights.take(name);
        let mut stack = PrenormEncoder::of_tensors(config.decoder().clone(), &mut |name| take(&config.name(name)))?;
        if let Some((lora, adapters)) = &adapters {
            stack.adapt(&mut |stem| lora.adapter(adapters, &config.name(stem)))?;
        }
        stack.words.extend(&words_nd);
        let own = match config.is_tied() {
            true => None,
            false => {
                let mut own = Table::new(take(&config.head())?, config.width());
                own.extend(&words_nd);
                Some(own)
            }
        };
        let head = Head::new(own, &stack.words, config.width(), normalisation);
        // Behind the head was made: these have no logits.
        stack.words.extend(&read_only_nd);
        Ok(Decoder { config, stack, head })
    }

    /// How many tokens can be read: those of the vocabulary, and those that are only read.
    pub fn readable(&self) -> usize {
        self.stack.words.count()
    }

    /// Bytes of what was packed: all matrices but a table of embeddings, whose rows are read where they are.
    pub fn bytes(&self) -> usize {
        self.stack.bytes() + self.head.bytes()
    }

    /// The architecture.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Whether probabilities are normalised over the whole vocabulary: then a forced token has a score too.
    pub(super) fn scores_forced(&self) -> bool {
        matches!(self.head, Head::Vocabulary(_))
    }

    /// Bytes of the keys and values of one token.
    pub(super) fn bytes_per_token(&self) -> usize {
        let decoder = self.config.decoder();
        decoder.layers * 2 * decoder.kv_heads * decoder.key_dim * size_of::<f32>()
    }

    /// The log-probability of every token of the vocabulary after each prompt, [prompts, V].
    ///
    /// # Errors
    /// [`Error::InvalidData`] for a prompt that is empty, too long or has an unknown token.
    pub fn next(&self, prompts: &[&[u32]]) -> Result<Vec<Vec<f64>>> {
        let all: Vec<u32> = (0..self.config.vocabulary() as u32).collect();
        let (_, states_ud) = self.read(prompts, 0)?;
        Ok(self.log_probabilities(&states_ud, &vec![&all[..]; prompts.len()]))
    }

    /// For every row of states, the log-probabilities of the tokens asked for (ascending).
    pub(super) fn log_probabilities(&self, states_rd: &[f32], asked: &[&[u32]]) -> Vec<Vec<f64>> {
        let d = self.config.width();
        self.head.log_probabilities(states_rd, d, &self.stack.words, asked)
    }

    /// Reads the prompts of some users, who add at most `more` tokens each; with the state [D] of every last token.
    pub(super) fn read(&self, prompts: &[&[u32]], more: usize) -> Result<(Reading<'_>, Vec<f32>)> {
        let config = self.config.decoder();
        let (d, k, groups) = (config.width, config.key_dim, config.kv_heads);
        let (queries, each) = (config.heads * k, config.heads / groups);
        let mut offsets = vec![0];
        let mut ids_t = Vec::new();
        for prompt in prompts {
            ids_t.extend_from_slice(prompt);
            offsets.push(ids_t.len());
        }
        let mut memories = Vec::with_capacity(config.layers);
        let pack = |_, qkv: &[f32]| {
            let users = (0..prompts.len() * groups).into_par_iter();
            let of_one = users.map(|at| {
                let (user, group) = (at / groups, at % groups);
                let from = &qkv[offsets[user] * 3 * queries + group * each * k..];
                let view = |column: usize| View {
                    data: &from[column..],
                    row: 3 * queries,
                    column: 1,
                };
                let mut memory = Memory::default();
                let length = prompts[user].len();
                memory.keys.load(view(queries).t(), k, length);
                memory.values.load(view(2 * queries), length, k);
                memory
            });
            memories.push(of_one.collect());
        };
        let states_td = self
            .stack
            .run(&ids_t, &offsets, pack)
            .map_err(|error| Error::InvalidData(error.to_string()))?;
        let last = offsets[1..].iter().flat_map(|end| &states_td[(end - 1) * d..end * d]);
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
        let places = lengths.iter().max().unwrap_or(&0) + more;
        let reading = Reading {
            decoder: self,
            rotations: self.stack.rotations(places),
            lengths,
            rows: vec![Vec::new(); config.layers],
            paths: Vec::new(),
            memories,
        };
        Ok((reading, last.copied().collect()))
    }
}

/// Keys [K, P] and values [P, K] of a prompt of P tokens: one layer, one head of keys.
#[derive(Default)]
struct Memory {
    keys: Packed,
    values: Packed,
}

/// What is remembered of the prompts of some users and of all that their beams added.
pub(super) struct Reading<'a> {
    decoder: &'a Decoder,
    rotations: Option<Rotations>,
    /// Tokens of every prompt.
    lengths: Vec<usize>,
    /// By layer, then by user and head of keys.
    memories: Vec<Vec<Memory>>,
    /// By layer: keys [G K] and values [G K] of every row.
    rows: Vec<Vec<f32>>,
    /// Rows from a beam's first token up to and with each row.
    paths: Vec<Vec<u32>>,
}

/// Tokens that a beam adds.
pub(super) struct Feed<'a> {
    /// Whose beam; feeds of one user follow each other.
    pub user: usize,
    /// The row of the beam's last token; `None` after the prompt.
    pub after: Option<u32>,
    /// The tokens.
    pub tokens: &'a [u32],
}

impl<'a> Reading<'a> {
    /// The model that reads.
    pub fn decoder(&self) -> &'a Decoder {
        self.decoder
    }

    /// Number of users.
    pub fn users(&self) -> usize {
        self.lengths.len()
    }

    /// Number of rows there are: the number that the next one gets.
    pub fn rows(&self) -> u32 {
        self.paths.len() as u32
    }

    /// Forgets all rows, not the prompts.
    pub fn forget(&mut self) {
        self.paths.clear();
        self.rows.iter_mut().for_each(Vec::clear);
    }

    /// Adds a row for every token, in order; the states [rows, D] behind the last block.
    pub fn extend(&mut self, feeds: &[Feed]) -> Vec<f32> {
        let decoder = self.decoder;
        let config = decoder.config.decoder();
        let k = config.key_dim;
        let (queries, keys) = (config.heads * k, config.kv_heads * k);
        let first = self.paths.len();
        let (mut ids_r, mut places_r, mut users) = (Vec::new(), Vec::new(), Vec::new());
        for feed in feeds {
            let mut path = feed.after.map_or_else(Vec::new, |row| self.paths[row as usize].clone());
            for token in feed.tokens {
                ids_r.push(*token);
                places_r.push((self.lengths[feed.user] + path.len()) as u32);
                users.push(feed.user);
                path.push(self.paths.len() as u32);
                self.paths.push(path.clone());
            }
        }
        let count = ids_r.len();
        let mut hidden_rd = decoder.stack.embed(&ids_r);
        let (wide, mut qkv) = (queries + 2 * keys, vec![0f32; count * (queries + 2 * keys)]);
        let mut context = vec![0f32; count * queries];
        for (layer, block) in decoder.stack.blocks.iter().enumerate() {
            let places = (&places_r[..], self.rotations.as_ref());
            block.project(config, &hidden_rd, places, (&mut qkv, wide), |row, out| {
                out.copy_from_slice(row)
            });
            let rows = &mut self.rows[layer];
            rows.reserve(count * 2 * keys);
            qkv.chunks_exact(wide)
                .for_each(|row| rows.extend_from_slice(&row[queries..]));
            self.attend(layer, first, &users, &qkv, &mut context);
            block.mix(config, &context, &mut hidden_rd);
        }
        decoder.stack.finish(&hidden_rd)
    }

    /// Attention of rows `first..` to the prompt of their user and to their own paths; `context` is [rows, H K].
    fn attend(&self, layer: usize, first: usize, users: &[usize], qkv: &[f32], context: &mut [f32]) {
        let config = self.decoder.config.decoder();
        let width = config.heads * config.key_dim;
        let wide = qkv.len() / users.len().max(1);
        let mut tasks = Vec::new();
        let (mut start, mut rest) = (0, context);
        for same in users.chunk_by(|a, b| a == b) {
            for part in same.chunks(ROWS) {
                let (out, tail) = rest.split_at_mut(part.len() * width);
                tasks.push((part[0], start, out));
                (start, rest) = (start + part.len(), tail);
            }
        }
        tasks
            .into_par_iter()
            .for_each_init(Room::default, |room, (user, start, out)| {
                let count = out.len() / width;
                let task = Task {
                    config,
                    memories: &self.memories[layer][user * config.kv_heads..][..config.kv_heads],
                    length: self.lengths[user],
                    rows: &self.rows[layer],
                    paths: &self.paths[first + start..][..count],
                    qkv: &qkv[start * wide..][..count * wide],
                };
                task.run(room, out);
            });
    }
}

/// Reused memory of one task of attention.
#[derive(Default)]
struct Room {
    queries: Vec<f32>,
    scores: Vec<f32>,
    own: Vec<f32>,
    mixed: Vec<f32>,
    from_path: Vec<f32>,
    left: Vec<f32>,
}

/// Some rows of one user in one layer.
struct Task<'a> {
    config: &'a crate::prenorm::PrenormConfig,
    memories: &'a [Memory],
    length: usize,
    rows: &'a [f32],
    paths: &'a [Vec<u32>],
    /// Queries, keys and values of the rows side by side.
    qkv: &'a [f32],
}

impl Task<'_> {
    fn run(&self, room: &mut Room, out: &mut [f32]) {
        let config = self.config;
        let (k, groups, count) = (config.key_dim, config.kv_heads, self.paths.len());
        let (each, width) = (config.heads / groups, config.heads * k);
        let wide = self.qkv.len() / count;
        for (group, memory) in self.memories.iter().enumerate() {
            // The queries that share a head of keys: [count · each, K].
            room.queries.clear();
            for row in self.qkv.chunks_exact(wide) {
                let of_group = row[group * each * k..][..each * k].iter();
                room.queries.extend(of_group.map(|x| x * config.scale));
            }
            room.scores.resize(count * each * self.length, 0.0);
            room.mixed.resize(count * each * k, 0.0);
            room.from_path.resize(count * each * k, 0.0);
            let queries = View::rows(&room.queries, k);
            memory.keys.multiply(queries, &mut room.scores, &mut room.left);
            let heads = room
                .queries
                .chunks_exact(k)
                .zip(room.scores.chunks_exact_mut(self.length));
            for (at, ((query, scores), mixed)) in heads.zip(room.from_path.chunks_exact_mut(k)).enumerate() {
                let path = &self.paths[at / each];
                room.own.resize(path.len(), 0.0);
                let columns = (2 * groups * k, group * k, (groups + group) * k);
                mix_path(query, scores, self.rows, columns, path, &mut room.own, mixed);
            }
            let scores = View::rows(&room.scores, self.length);
            memory.values.multiply(scores, &mut room.mixed, &mut room.left);
            for (at, (mixed, own)) in room
                .mixed
                .chunks_exact(k)
                .zip(room.from_path.chunks_exact(k))
                .enumerate()
            {
                let out = &mut out[at / each * width + (group * each + at % each) * k..][..k];
                for ((out, a), b) in out.iter_mut().zip(mixed).zip(own) {
                    *out = a + b;
                }
            }
        }
    }
}

vectorized! {
    /// One query on the rows of its path, whose keys and values stand in columns of `rows`: turns its scores of the
    /// prompt to probabilities, and writes what it takes from its path.
    fn mix_path(
        query: &[f32], prompt: &mut [f32], rows: &[f32], columns: (usize, usize, usize), path: &[u32],
        own: &mut [f32], out: &mut [f32],
    ) {
        let (width, key, value) = columns;
        for (own, row) in own.iter_mut().zip(path) {
            *own = dot(query, &rows[*row as usize * width + key..][..query.len()]);
        }
        let mut lanes = [f32::NEG_INFINITY; 16];
        let (chunks, rest) = prompt.as_chunks::<16>();
        for chunk in chunks {
            for i in 0..16 { lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] }; }
        }
        let mut most = f32::NEG_INFINITY;
        for &x in lanes.iter().chain(rest).chain(own.iter()) { most = if x > most { x } else { most }; }
        let mut lanes = [0f32; 16];
        let (chunks, rest) = prompt.as_chunks_mut::<16>();
        for chunk in chunks {
            for i in 0..16 {
                chunk[i] = exp(chunk[i] - most);
                lanes[i] += chunk[i];
            }
        }
        let mut sum = 0.0;
        for x in rest.iter_mut().chain(own.iter_mut()) {
            *x = exp(*x - most);
            sum += *x;
        }
        for x in lanes { sum += x; }
        let inverse = 1.0 / sum;
        for x in prompt.iter_mut().chain(own.iter_mut()) { *x *= inverse; }
        out.fill(0.0);
        for (p, row) in own.iter().zip(path) {
            let values = &rows[*row as usize * width + value..][..out.len()];
            for (out, v) in out.iter_mut().zip(values) { *out += p * v; }
        }
    }
}

#[cfg(test)]
mod tests;
