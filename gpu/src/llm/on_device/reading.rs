//! What a device remembers of prompts and beams.

use super::{DeviceDecoder, HIDDEN, Pair, full, most, softmax};
use crate::error::Result;
use crate::llm::decoder::Feed;
use crate::llm::reader::{Asked, Next, Reader, Reading, Room};
use crate::llm::{LlmConfig, Normalisation};
use candle_core::Tensor;

/// Users who are read together at most.
const USERS: usize = 256;
/// Bytes of keys and values that a group of users may have; a single user may have more. Fixed, so that results do not
/// depend on what else is on the device: GPUs that models of this kind run on have twice as much and more.
const BYTES: usize = 8 << 30;
/// Tokens of prompts that go through the model at a time, padding included; a single prompt may have more. In tests few,
/// so that there are several blocks.
const TOKENS: usize = if cfg!(test) { 100 } else { 16 << 10 };

/// What is remembered of the prompts of some users and of all that their beams added.
pub(in crate::llm) struct DeviceReading<'a> {
    decoder: &'a DeviceDecoder,
    /// Cosines and sines of all places.
    angles: Pair,
    /// Tokens of every prompt.
    lengths: Vec<usize>,
    /// [U, P]: what of the padded prompts must not be seen.
    mask_up: Tensor,
    /// By layer: [U, G, P, K].
    memories: Vec<Pair>,
    /// By layer: those of all rows, [G, R, K].
    rows: Vec<Option<Pair>>,
    /// Rows from a beam's first token up to and with each row.
    paths: Vec<Vec<u32>>,
}

/// How the rows of a step lie: packed, and padded to as many for every user.
struct Step {
    /// A, N, S.
    sizes: (usize, usize, usize),
    /// The users who add rows; `None` for all.
    users: Option<Tensor>,
    /// The row at every padded place, and the place of every row; `None` where all users add as many.
    padding: Option<(Tensor, Tensor)>,
    /// The paths of the rows at every padded place: [A·N·S] of all rows.
    paths: Tensor,
    /// [A, 1, N, 1, P + S]
    mask: Tensor,
}

impl DeviceReading<'_> {
    /// How rows of these users lie, whose paths are the last.
    fn step(&self, users: &[usize]) -> Result<Step> {
        let device = &self.decoder.device;
        let new = &self.paths[self.paths.len() - users.len()..];
        let runs: Vec<&[usize]> = users.chunk_by(|a, b| a == b).collect();
        let (a, n) = (runs.len(), runs.iter().map(|run| run.len()).max().unwrap_or(0));
        let s = new.iter().map(Vec::len).max().unwrap_or(0);
        let (mut rows, mut places) = (Vec::with_capacity(a * n), Vec::with_capacity(users.len()));
        let (mut paths, mut mask) = (vec![0; a * n * s], vec![HIDDEN; a * n * s]);
        let mut first = 0;
        for (at, run) in runs.iter().enumerate() {
            for i in 0..n {
                rows.push((first + i.min(run.len() - 1)) as u32);
                if let Some(path) = new[first..first + run.len()].get(i) {
                    let place = at * n + i;
                    places.push(place as u32);
                    paths[place * s..][..path.len()].copy_from_slice(path);
                    mask[place * s..][..path.len()].fill(0.0);
                }
            }
            first += run.len();
        }
        let users = match a == self.lengths.len() {
            true => None,
            false => Some(self.decoder.indices(runs.iter().map(|run| run[0] as u32).collect())?),
        };
        let padding = match a * n == new.len() {
            true => None,
            false => Some((self.decoder.indices(rows)?, self.decoder.indices(places)?)),
        };
        let prompts_ap = of_users(&self.mask_up, users.as_ref())?;
        let p = prompts_ap.dim(1)?;
        let prompts = prompts_ap.reshape((a, 1, 1, 1, p))?.broadcast_as((a, 1, n, 1, p))?;
        let own = Tensor::from_vec(mask, (a, 1, n, 1, s), device)?;
        Ok(Step {
            sizes: (a, n, s),
            users,
            padding,
            paths: self.decoder.indices(paths)?,
            mask: Tensor::cat(&[prompts.contiguous()?, own], 4)?,
        })
    }

    /// Attention [R, H·K] of queries [R, H, K] to the prompts of their users and to their own paths.
    fn attend(&self, step: &Step, query: &Tensor, (keys, values): &Pair, rows: &Pair) -> Result<Tensor> {
        let decoder = self.decoder;
        let config = decoder.config.decoder();
        let (g, e, k) = (config.kv_heads, config.heads / config.kv_heads, config.key_dim);
        let ((a, n, s), p) = (step.sizes, keys.dim(2)?);
        let of_prompts = |x: &Tensor| -> Result<Tensor> {
            let x = of_users(x, step.users.as_ref())?;
            Ok(x.reshape((a * g, p, k))?)
        };
        let of_paths = |x_grk: &Tensor| -> Result<Tensor> {
            let x = x_grk.index_select(&step.paths, 1)?;
            Ok(x.reshape((g * a * n, s, k))?)
        };
        let query = match &step.padding {
            None => query.clone(),
            Some((rows, _)) => query.index_select(rows, 0)?,
        };
        let query = query.reshape((a, n, g, e, k))?;
        let to_prompts = query.permute((0, 2, 1, 3, 4))?.reshape((a * g, n * e, k))?;
        let to_prompts = to_prompts.matmul(&of_prompts(keys)?.t()?)?;
        let to_paths = query.permute((2, 0, 1, 3, 4))?.reshape((g * a * n, e, k))?;
        let to_paths = to_paths.matmul(&of_paths(&rows.0)?.t()?)?;
        let to_paths = to_paths.reshape((g, a, n, e, s))?.transpose(0, 1)?.contiguous()?;
        let scores = Tensor::cat(&[to_prompts.reshape((a, g, n, e, p))?, to_paths], 4)?;
        let shares = softmax(&full(&scores)?.broadcast_add(&step.mask)?)?;
        let shares = decoder.factor(&shares)?; // [A, G, N, E, P + S]
        let from_prompts = shares.narrow(4, 0, p)?.reshape((a * g, n * e, p))?;
        let from_prompts = from_prompts.matmul(&of_prompts(values)?)?.reshape((a, g, n, e, k))?;
        let from_paths = shares.narrow(4, p, s)?.transpose(0, 1)?.reshape((g * a * n, e, s))?;
        let from_paths = from_paths.matmul(&of_paths(&rows.1)?)?.reshape((g, a, n, e, k))?;
        let context = (from_prompts + from_paths.transpose(0, 1)?)?;
        let context = context.permute((0, 2, 1, 3, 4))?.reshape((a * n, g * e * k))?;
        match &step.padding {
            None => Ok(context),
            Some((_, places)) => Ok(context.index_select(places, 0)?),
        }
    }
}

impl Reader for DeviceDecoder {
    type States = Tensor;
    type Reading<'a> = DeviceReading<'a>;

    fn config(&self) -> &LlmConfig {
        DeviceDecoder::config(self)
    }

    fn readable(&self) -> usize {
        DeviceDecoder::readable(self)
    }

    fn scores_forced(&self) -> bool {
        self.normalisation == Normalisation::Vocabulary
    }

    fn room(&self) -> Room {
        let decoder = self.config.decoder();
        let numbers = decoder.layers * 2 * decoder.kv_heads * decoder.key_dim;
        Room {
            users: USERS,
            tokens: BYTES / (numbers * self.dtype.size_in_bytes()),
            padded: true,
        }
    }

    fn read(&self, prompts: &[&[u32]], more: usize) -> Result<(DeviceReading<'_>, Tensor)> {
        let layers = self.blocks.len();
        let (longest, mut memories) = (most(prompts), vec![Vec::new(); layers]);
        let angles = self.angles(longest + more)?;
        let (mut states, mut rest) = (Vec::new(), prompts);
        let room = Room {
            users: USERS,
            tokens: TOKENS,
            padded: true,
        };
        while !rest.is_empty() {
            let (now, later) = rest.split_at(room.group(rest, 0));
            states.push(self.read_some(now, longest, &angles, &mut memories)?);
            rest = later;
        }
        let together = |memory: Vec<Pair>| -> Result<Pair> {
            let (keys, values): (Vec<_>, Vec<_>) = memory.into_iter().unzip();
            Ok((Tensor::cat(&keys, 0)?, Tensor::cat(&values, 0)?))
        };
        let mask = prompts.iter().flat_map(|prompt| {
            let hidden = move |place: usize| if place < prompt.len() { 0.0 } else { HIDDEN };
            (0..longest).map(hidden)
        });
        let reading = DeviceReading {
            decoder: self,
            angles,
            lengths: prompts.iter().map(|prompt| prompt.len()).collect(),
            mask_up: Tensor::from_vec(mask.collect::<Vec<f32>>(), (prompts.len(), longest), &self.device)?,
            memories: memories.into_iter().map(together).collect::<Result<_>>()?,
            rows: vec![None; layers],
            paths: Vec::new(),
        };
        Ok((reading, Tensor::cat(&states, 0)?))
    }

    fn next_tokens(&self, states_sd: &Tensor, asked: &[Asked], most: usize) -> Result<Vec<Vec<Next>>> {
        self.continuations(states_sd, asked, most)
    }
}

impl<'a> Reading<'a, DeviceDecoder> for DeviceReading<'a> {
    fn reader(&self) -> &'a DeviceDecoder {
        self.decoder
    }

    fn users(&self) -> usize {
        self.lengths.len()
    }

    fn rows(&self) -> u32 {
        self.paths.len() as u32
    }

    fn forget(&mut self) {
        self.paths.clear();
        self.rows.fill(None);
    }

    fn extend(&mut self, feeds: &[Feed]) -> Result<Tensor> {
        let decoder = self.decoder;
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
        let step = self.step(&users)?;
        let places = decoder.places(&self.angles, places_r)?;
        let mut x_rd = decoder.embed(&ids_r)?;
        for (layer, block) in decoder.blocks.iter().enumerate() {
            let [query, key, value] = decoder.project(block, &x_rd, &places)?;
            let by_head = |x_rgk: &Tensor| -> Result<Tensor> { Ok(x_rgk.transpose(0, 1)?.contiguous()?) };
            let (key, value) = (by_head(&key)?, by_head(&value)?);
            let rows = match self.rows[layer].take() {
                None => (key, value),
                Some((keys, values)) => (Tensor::cat(&[keys, key], 1)?, Tensor::cat(&[values, value], 1)?),
            };
            let context = self.attend(&step, &query, &self.memories[layer], &rows)?;
            self.rows[layer] = Some(rows);
            x_rd = decoder.mix(block, &context, &x_rd)?;
        }
        decoder.norm(&x_rd, &decoder.norm_d)
    }
}

/// What belongs to some users, or to all.
fn of_users(x: &Tensor, users: Option<&Tensor>) -> Result<Tensor> {
    match users {
        None => Ok(x.clone()),
        Some(users) => Ok(x.index_select(users, 0)?),
    }
}
