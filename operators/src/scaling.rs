//! Scaling laws: how a metric goes with the sizes of a system's parts, and what of a fit the points can tell.
//!
//! A law is an offset and one or two terms, each a power of a size that may be a weighted sum of parts. Given exponents
//! and weights the rest is linear, so the search is over exponents and weights alone (variable projection; Golub and
//! Pereyra 1973). `laws` says what is fitted, `linear` solves for the linear part, `optimizer` searches, `fit` starts it
//! from many places, `intervals` does all of it again on resampled points, `judgement` says how good a law is, and
//! `findings` puts in words what the points do not tell.

pub mod findings;
pub mod fit;
pub mod intervals;
pub mod judgement;
pub mod laws;
pub mod linear;
pub mod optimizer;

/// Parts of a system that have a size, in the order of [`Point::sizes`].
pub const PARTS: [&str; 5] = ["rs", "llm", "quantizer", "lora", "data"];

/// The recommender: N_RS.
pub const RS: usize = 0;
/// The language model, as an encoder or as the recommender itself: N_LLM.
pub const LLM: usize = 1;
/// The quantizer: N_QT.
pub const QUANTIZER: usize = 2;
/// What is trained of a language model: N_LoRA.
pub const LORA: usize = 3;
/// Data, in whatever unit they are counted.
pub const DATA: usize = 4;

/// What a law is fitted to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// A size a part, positive; NaN where it is not known.
    pub sizes: [f64; PARTS.len()],
    /// The metric.
    pub value: f64,
}

/// Groups of points of one size each, every group in order of points, groups in order of their first point.
pub fn by_size(points: &[Point]) -> Vec<Vec<usize>> {
    let mut groups: Vec<([u64; PARTS.len()], Vec<usize>)> = Vec::new();
    for (at, point) in points.iter().enumerate() {
        let bits = point.sizes.map(f64::to_bits);
        match groups.iter_mut().find(|(known, _)| *known == bits) {
            Some((_, group)) => group.push(at),
            None => groups.push((bits, vec![at])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

#[cfg(test)]
#[path = "scaling/tests.rs"]
mod tests;
