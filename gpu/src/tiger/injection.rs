//! Item vectors injected into the encoder: one extra token per item of the history, after its codes.
//!
//! Source: the injection ablation of arXiv 2509.25522, which leaves the layer open; here a linear map takes the vector
//! of an item (text or collaborative) to the width of the model, and the result is a token like any other.

use super::{Error, Result, TigerConfig};
use crate::trie::Trie;
use std::collections::HashMap;

/// A vector of unit length for every semantic id of a catalogue.
#[derive(Debug, Clone, PartialEq)]
pub struct ItemVectors {
    trie: Trie,
    dim: usize,
    /// [leaves, V].
    vectors_lv: Vec<f32>,
}

impl ItemVectors {
    /// From vectors [N, V] in the order of the trie's items. Items that share a semantic id share the mean of their
    /// vectors; a vector of zeros stays one.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if there are not N vectors, [`Error::InvalidData`] for one that is not finite.
    pub fn new(trie: &Trie, vectors_nv: &[f32], dim: usize) -> Result<Self> {
        if vectors_nv.len() != trie.items() * dim {
            return Err(Error::shape("item vectors", trie.items() * dim, vectors_nv.len()));
        }
        if let Some(at) = vectors_nv.iter().position(|x| !x.is_finite()) {
            let (item, x) = (at / dim, vectors_nv[at]);
            return Err(Error::InvalidData(format!("the vector of item {item} holds {x}")));
        }
        let mut vectors_lv = Vec::with_capacity(trie.leaves() * dim);
        for leaf in 0..trie.leaves() as u32 {
            let mut sum = vec![0f32; dim];
            for &item in trie.items_of(leaf) {
                let vector = &vectors_nv[item as usize * dim..][..dim];
                let scale = unit(vector);
                sum.iter_mut().zip(vector).for_each(|(s, x)| *s += scale * x);
            }
            let scale = unit(&sum);
            vectors_lv.extend(sum.iter().map(|x| scale * x));
        }
        Ok(ItemVectors {
            trie: trie.clone(),
            dim,
            vectors_lv,
        })
    }

    /// Width V of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The leaf of a semantic id and its vector.
    pub fn of(&self, semantic_id: &[u16]) -> Option<(u32, &[f32])> {
        let leaf = self.trie.leaf(semantic_id)?;
        Some((leaf, &self.vectors_lv[leaf as usize * self.dim..][..self.dim]))
    }

    /// A digest of all of it.
    pub(crate) fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for leaf in 0..self.trie.leaves() as u32 {
            hasher.update(
                &self
                    .trie
                    .semantic_id(leaf)
                    .iter()
                    .flat_map(|c| c.to_le_bytes())
                    .collect::<Vec<_>>(),
            );
        }
        hasher.update(&self.vectors_lv.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        hasher.finalize()
    }
}

/// The injected tokens of a batch: equal items share one.
pub(super) struct Injected<'a> {
    vectors: &'a ItemVectors,
    first: u32,
    tokens: HashMap<u32, u32>,
    vectors_mv: Vec<f32>,
}

impl<'a> Injected<'a> {
    /// Nothing where the model takes no vectors.
    pub fn of(config: &TigerConfig, vectors: Option<&'a ItemVectors>) -> Result<Option<Self>> {
        if config.vector_dim == 0 {
            return Ok(None);
        }
        let none = || Error::InvalidData("item vectors are injected into the model, but none came".into());
        let vectors = vectors.ok_or_else(none)?;
        if vectors.dim() != config.vector_dim {
            return Err(Error::shape(
                "width of the item vectors",
                config.vector_dim,
                vectors.dim(),
            ));
        }
        Ok(Some(Injected {
            vectors,
            first: config.bos_token() + 1 + u32::from(config.separator) + config.user_buckets as u32,
            tokens: HashMap::new(),
            vectors_mv: Vec::new(),
        }))
    }

    pub fn token(&mut self, item: &[u16]) -> Result<u32> {
        let unknown = || Error::InvalidData(format!("there is no item vector for the semantic id {item:?}"));
        let (leaf, vector) = self.vectors.of(item).ok_or_else(unknown)?;
        let next = self.first + self.tokens.len() as u32;
        Ok(*self.tokens.entry(leaf).or_insert_with(|| {
            self.vectors_mv.extend_from_slice(vector);
            next
        }))
    }

    /// [M, V], in the order of their tokens.
    pub fn vectors(self) -> Vec<f32> {
        self.vectors_mv
    }
}

/// What brings a vector to unit length.
fn unit(vector: &[f32]) -> f32 {
    let square: f32 = vector.iter().map(|x| x * x).sum();
    if square > 0.0 { square.sqrt().recip() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_that_share_an_id_share_the_mean() {
        let trie = Trie::new(&[1, 0, 0, 2, 1, 0], 2).unwrap();
        let vectors = ItemVectors::new(&trie, &[3.0, 0.0, 0.0, 0.0, 0.0, 7.0], 2).unwrap();
        assert_eq!(vectors.of(&[0, 2]), Some((0, &[0.0, 0.0][..])));
        let root = 0.5f32.sqrt();
        let (leaf, shared) = vectors.of(&[1, 0]).unwrap();
        assert_eq!(leaf, 1);
        assert!(shared.iter().all(|x| (x - root).abs() < 1e-6), "{shared:?}");
        assert_eq!(vectors.of(&[1, 1]), None);
        assert!(ItemVectors::new(&trie, &[0.0; 5], 2).is_err());
        let text = ItemVectors::new(&trie, &[0.0, 0.0, 0.0, f32::NAN, 0.0, 0.0], 2).unwrap_err();
        assert_eq!(text.to_string(), "invalid data: the vector of item 1 holds NaN");
    }
}
