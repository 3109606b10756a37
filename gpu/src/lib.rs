//! Tensors, models, kernels, training and decoding: a model is a function of (config, weights, tensors).

pub mod bert;
mod draws;
pub mod encoder;
pub mod kmeans;
mod lanes;
mod product;
pub mod residual;
pub mod svd;
pub mod tfidf;
