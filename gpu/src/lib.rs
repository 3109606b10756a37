//! Tensors, models, kernels, training and decoding: a model is a function of (config, weights, tensors).
//!
//! Names of tensors carry their shape as a suffix: B batch, T tokens (packed over the batch), D model width,
//! H heads, K width of a head, V vocabulary or codebook size, C levels of a semantic id, N items or table rows,
//! I and O inputs and outputs of a linear map.

pub mod beam;
pub mod bert;
mod decode;
pub mod device;
mod draws;
pub mod encoder;
pub mod error;
pub mod kmeans;
mod lanes;
pub mod ops;
pub mod optim;
mod product;
pub mod random;
pub mod residual;
pub mod samples;
pub mod svd;
pub mod tfidf;
pub mod tiger;
pub mod train;
pub mod trie;
pub mod weights;
