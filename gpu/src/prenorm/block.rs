//! A block of a pre-norm model on the CPU, row by row: all of it but attention.
//!
//! Rows are worked on in panels; a product sums along a row in one order whatever the panel holds, so
//! a token's result depends neither on threads nor on what else is in the batch.

use rayon::prelude::*;

use super::rotary::Rotations;
use super::{Part, PrenormConfig};
use crate::frozen::Stored;
use crate::lanes;
use crate::ops::elementwise::{add_to, bias_relu};
use crate::ops::matmul::{Packed, Right, View};
use crate::ops::rms_norm;

/// Most tokens per task: as many as keep the product fast and its rows in cache.
const PANEL: usize = 96;
/// Fewest tokens per task: whole register tiles of every instruction set.
const TILE: usize = 12;

/// Tokens per task, so that threads have equally many tasks of one size, as far as there are tokens.
pub(crate) fn panel(rows: usize) -> usize {
    let tasks = rows.div_ceil(PANEL).next_multiple_of(rayon::current_num_threads());
    let share = rows.div_ceil(tasks.max(1));
    share.next_multiple_of(TILE).clamp(TILE, PANEL)
}

/// The weights of a block, packed.
pub(crate) struct Block {
    attention_norm_d: Vec<f32>,
    /// Queries, keys and values side by side: [(H + 2 G) K, D].
    query_key_value: Linear,
    /// Empty without a norm of queries and keys.
    query_norm_k: Vec<f32>,
    key_norm_k: Vec<f32>,
    attention_out: Linear,
    feed_forward_norm_d: Vec<f32>,
    activated: Linear,
    linear: Option<Linear>,
    down: Linear,
}

/// Maps of the same rows, side by side in the output: `y = x Wᵀ + b`, and what adapters add. The bias may be empty.
struct Linear {
    maps: Vec<(Part, Packed)>,
    bias_o: Vec<f32>,
    adapters: Option<Adapters>,
    inputs: usize,
    outputs: usize,
}

/// An adapter of a linear map, which adds `scale · (x Aᵀ) Bᵀ`.
pub(crate) struct Adapter<'a> {
    /// A [R, I].
    pub down_ri: &'a [f32],
    /// B [O, R].
    pub up_or: &'a [f32],
    /// What the product is multiplied by.
    pub scale: f32,
}

/// The adapters of maps that stand side by side.
struct Adapters {
    /// A of all, side by side.
    down: Packed,
    up: Vec<Up>,
}

/// B of one, times the scale.
struct Up {
    weight: Packed,
    /// Where its columns begin in the product with A, and in the output.
    from: usize,
    to: usize,
}

/// Reused memory of one task.
#[derive(Default)]
struct Room {
    normed: Vec<f32>,
    mixed: Vec<f32>,
    activated: Vec<f32>,
    linear: Vec<f32>,
    turned: Vec<f32>,
    products: Products,
}

/// The part of it that linear maps use.
#[derive(Default)]
struct Products {
    room: Vec<f32>,
    low: Vec<f32>,
}

impl Block {
    /// The block of a layer, of tensors that `get` finds by name (as [`PrenormConfig::layout`] names them).
    pub fn new<E>(
        config: &PrenormConfig,
        layer: usize,
        get: &mut impl FnMut(&str) -> Result<Stored, E>,
    ) -> Result<Self, E> {
        let (query_norm_k, key_norm_k) = if config.query_key_norm {
            (
                get(&config.weight(layer, Part::QueryNorm))?.into_f32(),
                get(&config.weight(layer, Part::KeyNorm))?.into_f32(),
            )
        } else {
            (Vec::new(), Vec::new())
        };
        let mut linear = |parts: &[Part]| Linear::new(config, layer, parts, get);
        let query_key_value = linear(&[Part::Query, Part::Key, Part::Value])?;
        let attention_out = linear(&[Part::AttentionOut])?;
        let activated = linear(&[Part::Activated])?;
        let gate = config.gated.then(|| linear(&[Part::Linear])).transpose()?;
        let down = linear(&[Part::Down])?;
        Ok(Block {
            attention_norm_d: get(&config.weight(layer, Part::AttentionNorm))?.into_f32(),
            query_key_value,
            query_norm_k,
            key_norm_k,
            attention_out,
            feed_forward_norm_d: get(&config.weight(layer, Part::FeedForwardNorm))?.into_f32(),
            activated,
            linear: gate,
            down,
        })
    }

    /// Puts adapters beside the maps for which `find` has one by their stem.
    pub fn adapt<'a, E>(
        &mut self,
        config: &PrenormConfig,
        layer: usize,
        find: &mut impl FnMut(&str) -> Result<Option<Adapter<'a>>, E>,
    ) -> Result<(), E> {
        let maps = [
            &mut self.query_key_value,
            &mut self.attention_out,
            &mut self.activated,
            &mut self.down,
        ];
        for linear in maps.into_iter().chain(&mut self.linear) {
            linear.adapt(config, layer, find)?;
        }
        Ok(())
    }

    /// Bytes of the packed maps and adapters.
    pub fn bytes(&self) -> usize {
        let maps = [&self.query_key_value, &self.attention_out, &self.activated, &self.down];
        maps.into_iter().chain(&self.linear).map(Linear::bytes).sum()
    }

    /// Queries [H K], keys [G K] and values [G K] of every row side by side, normed and rotated to their places; `write`
    /// gets those of a row with its row of `out` [T, `width`].
    pub fn project(
        &self,
        config: &PrenormConfig,
        hidden_td: &[f32],
        (places_t, rotations): (&[u32], Option<&Rotations>),
        (out, width): (&mut [f32], usize),
        write: impl Fn(&[f32], &mut [f32]) + Sync,
    ) {
        let (d, k) = (config.width, config.key_dim);
        let (queries, keys) = (config.heads * k, config.kv_heads * k);
        let side_by_side = queries + 2 * keys;
        let panel = panel(places_t.len());
        let rows = out.par_chunks_mut(panel * width);
        let rows = rows.zip(hidden_td.par_chunks(panel * d).zip(places_t.par_chunks(panel)));
        rows.for_each_init(Room::default, |room, (out, (hidden_td, places_t))| {
            let normed_td = sized(&mut room.normed, hidden_td.len());
            rms_norm(hidden_td, &self.attention_norm_d, config.epsilon, normed_td);
            let mixed = sized(&mut room.mixed, places_t.len() * side_by_side);
            self.query_key_value.apply(normed_td, mixed, &mut room.products);
            let turned = sized(&mut room.turned, side_by_side);
            let place = |from: &[f32], norm_k: &[f32], position: u32, to: &mut [f32]| {
                if norm_k.is_empty() {
                    to.copy_from_slice(from);
                } else {
                    rms_norm(from, norm_k, config.epsilon, to);
                }
                if let Some(rotations) = rotations {
                    rotations.apply(position as usize, to);
                }
            };
            let rows = out.chunks_exact_mut(width).zip(mixed.chunks_exact(side_by_side));
            for ((out, row), position) in rows.zip(places_t) {
                let (query, key) = (0..queries, queries..queries + keys);
                place(&row[query.clone()], &self.query_norm_k, *position, &mut turned[query]);
                place(&row[key.clone()], &self.key_norm_k, *position, &mut turned[key]);
                turned[queries + keys..].copy_from_slice(&row[queries + keys..]);
                write(turned, out);
            }
        });
    }

    /// What a block does after attention: `x += out(context)`, `x += feed_forward(norm(x))`.
    pub fn mix(&self, config: &PrenormConfig, context: &[f32], hidden_td: &mut [f32]) {
        let d = config.width;
        let panel = panel(hidden_td.len() / d);
        let rows = hidden_td.par_chunks_mut(panel * d);
        let rows = rows.zip(context.par_chunks(panel * config.heads * config.key_dim));
        rows.for_each_init(Room::default, |room, (hidden_td, context)| {
            let inner = hidden_td.len() / d * config.inner;
            let (normed_td, mixed_td) = (
                sized(&mut room.normed, hidden_td.len()),
                sized(&mut room.mixed, hidden_td.len()),
            );
            self.attention_out.apply(context, mixed_td, &mut room.products);
            add_to(hidden_td, mixed_td);
            rms_norm(hidden_td, &self.feed_forward_norm_d, config.epsilon, normed_td);
            let activated_ti = sized(&mut room.activated, inner);
            self.activated.apply(normed_td, activated_ti, &mut room.products);
            config.activation.apply(activated_ti);
            if let Some(linear) = &self.linear {
                let linear_ti = sized(&mut room.linear, inner);
                linear.apply(normed_td, linear_ti, &mut room.products);
                lanes::multiply(activated_ti, linear_ti);
            }
            self.down.apply(activated_ti, mixed_td, &mut room.products);
            add_to(hidden_td, mixed_td);
        });
    }
}

impl Linear {
    /// The maps of a block, side by side in the output, in the numbers they have.
    fn new<E>(
        config: &PrenormConfig,
        layer: usize,
        parts: &[Part],
        get: &mut impl FnMut(&str) -> Result<Stored, E>,
    ) -> Result<Self, E> {
        let mut linear = Linear {
            maps: Vec::with_capacity(parts.len()),
            bias_o: Vec::new(),
            adapters: None,
            inputs: 0,
            outputs: 0,
        };
        let maps = config.maps();
        for (part, outputs, inputs, bias) in maps.into_iter().filter(|(part, ..)| parts.contains(part)) {
            let weight_oi = get(&config.weight(layer, part))?;
            let mut packed = Packed::default();
            packed.load_as_is(Right::rows(weight_oi.numbers(), inputs).t(), inputs, outputs);
            linear.maps.push((part, packed));
            if bias {
                linear.bias_o.extend(get(&config.bias(layer, part))?.into_f32());
            }
            linear.inputs = inputs;
            linear.outputs += outputs;
        }
        Ok(linear)
    }

    /// Puts adapters beside the maps for which there is one.
    fn adapt<'a, E>(
        &mut self,
        config: &PrenormConfig,
        layer: usize,
        find: &mut impl FnMut(&str) -> Result<Option<Adapter<'a>>, E>,
    ) -> Result<(), E> {
        let (mut down_ri, mut up, mut to) = (Vec::new(), Vec::new(), 0);
        for (part, map) in &self.maps {
            if let Some(adapter) = find(&config.stem(layer, *part))? {
                let rank = adapter.down_ri.len() / self.inputs;
                let scaled_or: Vec<f32> = adapter.up_or.iter().map(|x| x * adapter.scale).collect();
                let mut weight = Packed::default();
                weight.load(View::rows(&scaled_or, rank).t(), rank, map.columns());
                let from = down_ri.len() / self.inputs;
                up.push(Up { weight, from, to });
                down_ri.extend_from_slice(adapter.down_ri);
            }
            to += map.columns();
        }
        if !up.is_empty() {
            let (mut down, ranks) = (Packed::default(), down_ri.len() / self.inputs);
            down.load(View::rows(&down_ri, self.inputs).t(), self.inputs, ranks);
            self.adapters = Some(Adapters { down, up });
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let maps = self.maps.iter().map(|(_, map)| map.bytes()).sum::<usize>();
        maps + self.adapters.as_ref().map_or(0, Adapters::bytes)
    }

    fn apply(&self, x_ti: &[f32], out_to: &mut [f32], products: &mut Products) {
        let x = View::rows(x_ti, self.inputs);
        let mut to = 0;
        for (_, map) in &self.maps {
            map.multiply_into(x, &mut out_to[to..], self.outputs, false, &mut products.room);
            to += map.columns();
        }
        if !self.bias_o.is_empty() {
            bias_relu(out_to, &self.bias_o, self.outputs, false);
        }
        if let Some(adapters) = &self.adapters {
            adapters.add(x, x_ti.len() / self.inputs, (out_to, self.outputs), products);
        }
    }
}

impl Adapters {
    /// Adds what they say of rows `x` to rows of `outputs`.
    fn add(&self, x: View, rows: usize, (out_to, outputs): (&mut [f32], usize), products: &mut Products) {
        let ranks = self.down.columns();
        let low_tr = sized(&mut products.low, rows * ranks);
        self.down.multiply(x, low_tr, &mut products.room);
        for Up { weight, from, to } in &self.up {
            let low = View {
                data: &low_tr[*from..],
                row: ranks,
                column: 1,
            };
            weight.multiply_into(low, &mut out_to[*to..], outputs, true, &mut products.room);
        }
    }

    fn bytes(&self) -> usize {
        self.down.bytes() + self.up.iter().map(|up| up.weight.bytes()).sum::<usize>()
    }
}

/// The first `length` numbers of a buffer that grows where it must.
pub(crate) fn sized(buffer: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if buffer.len() < length {
        buffer.resize(length, 0.0);
    }
    &mut buffer[..length]
}
