//! Tensors, models, kernels, training and decoding: a model is a function of (config, weights, tensors).

pub mod bert;
mod draws;
pub mod encoder;
mod lanes;
mod product;
