//! The operations models are written in, and their two engines.
//!
//! A model is a function over a [`Graph`]. [`Tape`] runs it with hand-written CPU kernels on packed (ragged) batches:
//! no padding is computed, buffers are reused, and the result is the same to the bit for any number of threads.
//! [`Stock`] runs the same function with candle's stock operations on any device: the GPU path, and the slow twin
//! every kernel is tested against, forward and backward.

mod attention;
mod buckets;
pub(crate) mod elementwise;
mod embedding;
pub(crate) mod isa;
mod loss;
pub(crate) mod matmul;
mod norm;
#[cfg(test)]
mod parity;
mod stock;
mod tape;

pub use buckets::RelativeBuckets;
pub use stock::Stock;
pub use tape::{Tape, Workspace};

pub(crate) use attention::{Sources, forward as attend, single_query};
pub(crate) use loss::log_softmax_in_place;
pub(crate) use norm::rms_norm_rows;

use crate::error::Result;
use crate::random::Key;
use std::sync::Arc;

/// Dropout with probability `probability`; the mask is a function of `key`, so both engines draw the same one.
#[derive(Debug, Clone, Copy)]
pub struct Dropout {
    /// Probability of setting an element to 0; 0 turns dropout off.
    pub probability: f32,
    /// Where the mask comes from.
    pub key: Key,
}

impl Dropout {
    /// No dropout.
    pub fn off() -> Self {
        Dropout {
            probability: 0.0,
            key: Key::new(0),
        }
    }

    /// Elements whose 32 random bits are below this are dropped.
    fn threshold(self) -> u32 {
        (f64::from(self.probability) * 2f64.powi(32)) as u32
    }

    /// What a kept element is multiplied by.
    fn scale(self) -> f32 {
        1.0 / (1.0 - self.probability)
    }
}

/// Which rows attend to which: sequence s has queries `queries[s]..queries[s + 1]` and keys `keys[s]..keys[s + 1]`.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Number of heads H.
    pub heads: usize,
    /// Width K of one head.
    pub key_dim: usize,
    /// Query offsets, one more than there are sequences, from 0 to the number of query rows.
    pub queries: Arc<[usize]>,
    /// Key offsets, likewise.
    pub keys: Arc<[usize]>,
    /// Query i sees keys 0..=i only (both sides must then have equal offsets).
    pub causal: bool,
    /// The relative position buckets of the bias table, if there is one.
    pub buckets: RelativeBuckets,
    /// Dropout of the attention probabilities.
    pub dropout: Dropout,
}

/// The operations. Matrices are row-major f32; T counts packed rows of all sequences of the batch.
pub trait Graph {
    /// A matrix in the graph.
    type Node: Clone;

    /// The weight of this name, as a matrix (a vector is one row).
    ///
    /// # Errors
    /// If there is no such weight.
    fn weight(&mut self, name: &str) -> Result<Self::Node>;
    /// Stacks matrices of equal width.
    ///
    /// # Errors
    /// If the widths differ.
    fn stack(&mut self, parts: &[Self::Node]) -> Result<Self::Node>;
    /// Rows of `table_ND` by index: [T, D].
    ///
    /// # Errors
    /// If an index is not below N.
    fn gather(&mut self, table_nd: &Self::Node, rows: Arc<[u32]>) -> Result<Self::Node>;
    /// `dropout(relu(x_TI · w_OIᵀ + b_O))`: [T, O]; bias, relu and dropout are optional.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn linear(
        &mut self,
        x_ti: &Self::Node,
        w_oi: &Self::Node,
        b_o: Option<&Self::Node>,
        relu: bool,
        dropout: Dropout,
    ) -> Result<Self::Node>;
    /// `x_TD / sqrt(mean(x²) + eps) * w_D` by rows.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn rms_norm(&mut self, x_td: &Self::Node, w_d: &Self::Node, eps: f32) -> Result<Self::Node>;
    /// Dropout of every element.
    ///
    /// # Errors
    /// Of the engine.
    fn dropout(&mut self, x_td: &Self::Node, dropout: Dropout) -> Result<Self::Node>;
    /// `x_TD + dropout(y_TD)`: the end of a residual block.
    ///
    /// # Errors
    /// If the shapes differ.
    fn residual(&mut self, x_td: &Self::Node, y_td: &Self::Node, dropout: Dropout) -> Result<Self::Node>;
    /// Self-attention without scaling (T5): `qkv` is [T, 3·H·K], `bias` the [32, H] table; the result is [T, H·K].
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn self_attention(&mut self, qkv: &Self::Node, bias: Option<&Self::Node>, shape: &Attention) -> Result<Self::Node>;
    /// Cross-attention without scaling or bias: `q` is [Tq, H·K], `kv` is [Tk, 2·H·K].
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn cross_attention(&mut self, q: &Self::Node, kv: &Self::Node, shape: &Attention) -> Result<Self::Node>;
    /// Mean cross-entropy of `logits_BV` against one code per row: [1, 1].
    ///
    /// # Errors
    /// If a code is not below V, or their count is not B.
    fn cross_entropy(&mut self, logits_bv: &Self::Node, codes: Arc<[u32]>) -> Result<Self::Node>;
    /// Sum of matrices of one shape.
    ///
    /// # Errors
    /// If the shapes differ.
    fn sum(&mut self, parts: &[Self::Node]) -> Result<Self::Node>;
    /// Number of rows and columns.
    fn shape(&self, node: &Self::Node) -> (usize, usize);
    /// The numbers, row-major.
    ///
    /// # Errors
    /// Of the engine.
    fn values(&self, node: &Self::Node) -> Result<Vec<f32>>;
}
