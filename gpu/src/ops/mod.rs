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
mod heads;
pub(crate) mod isa;
mod loss;
pub(crate) mod matmul;
mod norm;
#[cfg(test)]
mod parity;
mod stock;
mod tape;
mod tied;

pub use buckets::RelativeBuckets;
pub use heads::{Heads, Source};
pub use stock::{Precision, Stock};
pub use tape::{Tape, Workspace};

pub(crate) use attention::{Sources, exp, forward as attend, single_query};
pub(crate) use loss::log_softmax_in_place;
pub(crate) use norm::{Norm, dot, norm_rows, rms_norm};
pub(crate) use tied::{BLOCK as TIED_BLOCK, window as tied_window};

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
    pub(crate) fn threshold(self) -> u32 {
        (f64::from(self.probability) * 2f64.powi(32)) as u32
    }

    /// What a kept element is multiplied by.
    pub(crate) fn scale(self) -> f32 {
        1.0 / (1.0 - self.probability)
    }
}

/// Dropout of one pass: every site draws its own mask from the step's key.
#[derive(Debug, Clone)]
pub struct Noise {
    probability: f32,
    key: Key,
    site: u64,
}

impl Noise {
    /// Training noise of one step.
    pub fn new(probability: f32, key: Key) -> Self {
        Noise {
            probability,
            key,
            site: 0,
        }
    }

    /// No noise: evaluation.
    pub fn off() -> Self {
        Noise::new(0.0, Key::new(0))
    }

    /// The dropout of the next site.
    pub(crate) fn next(&mut self) -> Dropout {
        self.site += 1;
        Dropout {
            probability: self.probability,
            key: self.key.child(self.site),
        }
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
    /// A query sees no key after its own. Queries are the last of their sequence: of nq queries and nk >= nq keys, query
    /// i sees keys 0..=nk - nq + i.
    pub causal: bool,
    /// What products of queries and keys are multiplied by: 1 in T5, the inverse root of K elsewhere.
    pub scale: f32,
    /// The relative position buckets of the bias table, if there is one.
    pub buckets: Option<RelativeBuckets>,
    /// Dropout of the attention probabilities.
    pub dropout: Dropout,
}

/// The operations. Matrices are row-major f32; T counts packed rows of all sequences of the batch.
pub trait Graph {
    /// A matrix in the graph.
    type Node: Clone;

    /// The weight of this name, as a matrix (a vector is one row): one that is trained, or a frozen one.
    ///
    /// # Errors
    /// If there is no such weight.
    fn weight(&mut self, name: &str) -> Result<Self::Node>;
    /// Numbers that take no gradient, as rows of so many columns.
    ///
    /// # Errors
    /// If numbers are left over.
    fn constant(&mut self, values: &[f32], columns: usize) -> Result<Self::Node>;
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
    /// Self-attention: `qkv` is [T, 3·H·K], `bias` the [32, H] table of T5; the result is [T, H·K].
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn self_attention(&mut self, qkv: &Self::Node, bias: Option<&Self::Node>, shape: &Attention) -> Result<Self::Node>;
    /// Cross-attention without bias: `q` is [Tq, H·K], `kv` is [Tk, 2·H·K].
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn cross_attention(&mut self, q: &Self::Node, kv: &Self::Node, shape: &Attention) -> Result<Self::Node>;
    /// `(x_TD - mean(x)) / sqrt(variance(x) + eps) * w_D` by rows.
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn layer_norm(&mut self, x_td: &Self::Node, w_d: &Self::Node, eps: f32) -> Result<Self::Node>;
    /// Sums of products of the rows of two matrices: [T, 1].
    ///
    /// # Errors
    /// If the shapes differ.
    fn row_dots(&mut self, x_td: &Self::Node, y_td: &Self::Node) -> Result<Self::Node>;
    /// Mean binary cross-entropy of logits of any shape that should all be true, or all false: [1, 1].
    ///
    /// # Errors
    /// Of the engine.
    fn binary_cross_entropy(&mut self, logits: &Self::Node, label: bool) -> Result<Self::Node>;
    /// Mean cross-entropy of a row's own logit `own_T1` against the row `others_TN`: [1, 1]. Elements (row, column) of
    /// `hidden` (rising, no repeats) are left out.
    ///
    /// # Errors
    /// If the shapes do not fit or an element is outside.
    fn sampled_cross_entropy(
        &mut self,
        own_t1: &Self::Node,
        others_tn: &Self::Node,
        hidden: Arc<[(u32, u32)]>,
    ) -> Result<Self::Node>;
    /// `cross_entropy(linear(x_TD, w_ND), codes)`: [1, 1]. [`Tape`] never holds all logits, and computes the gradients
    /// on the way: it is for training.
    ///
    /// # Errors
    /// If the shapes do not fit, a code is not below N, or their count is not T.
    fn linear_cross_entropy(&mut self, x_td: &Self::Node, w_nd: &Self::Node, codes: Arc<[u32]>) -> Result<Self::Node>;
    /// `x_TI · w_OIᵀ + b_O + scale · dropout(x_TI) · a_RIᵀ · b_ORᵀ`: a linear map with a low-rank adapter `(a, b)`, [T, O].
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn adapted(
        &mut self,
        x_ti: &Self::Node,
        w_oi: &Self::Node,
        b_o: Option<&Self::Node>,
        adapter: (&Self::Node, &Self::Node),
        scale: f32,
        dropout: Dropout,
    ) -> Result<Self::Node>;
    /// Heads of all sources side by side, normed, rotated and repeated as each wants it: [T, Σ columns·repeat].
    ///
    /// # Errors
    /// If the shapes do not fit or a position has no angle.
    fn heads(&mut self, sources: &[Source<Self::Node>], shape: &Heads) -> Result<Self::Node>;
    /// `silu(gate) * up`, element by element.
    ///
    /// # Errors
    /// If the shapes differ.
    fn swiglu(&mut self, gate: &Self::Node, up: &Self::Node) -> Result<Self::Node>;
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
    /// What `block` makes of a matrix. An engine may keep the result alone and run `block` anew on the way back, at the
    /// price of a second forward pass (activation checkpointing, Chen et al. 2016, arXiv 1604.06174): both do.
    /// `block` must do the same whenever it runs.
    ///
    /// # Errors
    /// Those of `block`.
    fn recomputed(
        &mut self,
        x: &Self::Node,
        block: impl Fn(&mut Self, &Self::Node) -> Result<Self::Node> + 'static,
    ) -> Result<Self::Node>
    where
        Self: Sized,
    {
        block(self, x)
    }
    /// Number of rows and columns.
    fn shape(&self, node: &Self::Node) -> (usize, usize);
    /// The numbers, row-major.
    ///
    /// # Errors
    /// Of the engine.
    fn values(&self, node: &Self::Node) -> Result<Vec<f32>>;
}
