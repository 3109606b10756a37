//! Tensors, models, kernels, training and decoding: a model is a function of (config, weights, tensors).
//!
//! Names of tensors carry their shape as a suffix: B batch, T tokens (packed over the batch), D model width,
//! H heads, K width of a head, V vocabulary or codebook size, C levels of a semantic id, N items or table rows,
//! I and O inputs and outputs of a linear map.

pub mod beam;
pub mod bert;
pub mod collisions;
mod decode;
pub mod device;
mod draws;
pub mod encoder;
pub mod error;
pub mod frozen;
pub mod kernels;
pub mod kmeans;
mod lanes;
pub mod llm;
pub mod ops;
pub mod optim;
pub mod pq;
pub mod prenorm;
mod product;
pub mod random;
pub mod ranking;
pub mod residual;
pub mod rqvae;
pub mod samples;
pub mod sasrec;
pub mod svd;
pub mod tfidf;
pub mod tiger;
pub mod train;
pub mod trie;
pub mod weights;
