//! The prefix trie of a catalogue's semantic ids, in flat arrays.

use crate::error::{Error, Result};
use std::ops::Range;

/// All semantic ids of a catalogue. Nodes of one depth are numbered in the order of their codes, so a node's number is
/// also its rank; the leaves are the distinct semantic ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trie {
    /// Per depth 1..=C: the last code of each node.
    codes: Vec<Vec<u16>>,
    /// Per depth 0..C: where each node's children start in the next depth.
    children: Vec<Vec<u32>>,
    /// Where each leaf's items start.
    leaf_items: Vec<u32>,
    /// Item indices by leaf, ascending within one.
    items: Vec<u32>,
}

impl Trie {
    /// The trie of N items with C = `levels` codes each, [N, C] row-major.
    ///
    /// # Errors
    /// [`Error::InvalidData`] for an empty catalogue, [`Error::ShapeMismatch`] if codes are left over.
    pub fn new(semantic_ids_nc: &[u16], levels: usize) -> Result<Self> {
        if levels == 0 || semantic_ids_nc.is_empty() {
            return Err(Error::InvalidData("the catalogue has no semantic ids".into()));
        }
        if !semantic_ids_nc.len().is_multiple_of(levels) {
            let expected = format!("a multiple of {levels} codes");
            return Err(Error::shape("semantic ids", expected, semantic_ids_nc.len()));
        }
        let id = |i: u32| &semantic_ids_nc[i as usize * levels..][..levels];
        let mut items: Vec<u32> = (0..(semantic_ids_nc.len() / levels) as u32).collect();
        items.sort_by(|&a, &b| id(a).cmp(id(b)).then(a.cmp(&b)));
        let mut codes = vec![Vec::new(); levels];
        let mut children = vec![Vec::new(); levels];
        let mut leaf_items = Vec::new();
        for (rank, &item) in items.iter().enumerate() {
            let new_from = match rank {
                0 => 0,
                _ => {
                    let pairs = id(items[rank - 1]).iter().zip(id(item));
                    pairs.take_while(|(a, b)| a == b).count()
                }
            };
            if rank == 0 {
                children[0].push(0);
            }
            for depth in new_from..levels {
                codes[depth].push(id(item)[depth]);
                if depth + 1 < levels {
                    let start = codes[depth + 1].len() as u32;
                    children[depth + 1].push(start);
                } else {
                    leaf_items.push(rank as u32);
                }
            }
        }
        for depth in 0..levels {
            let end = codes[depth].len() as u32;
            children[depth].push(end);
        }
        leaf_items.push(items.len() as u32);
        Ok(Trie {
            codes,
            children,
            leaf_items,
            items,
        })
    }

    /// Codes per semantic id.
    pub fn levels(&self) -> usize {
        self.codes.len()
    }

    /// Number of items.
    pub fn items(&self) -> usize {
        self.items.len()
    }

    /// Number of distinct semantic ids.
    pub fn leaves(&self) -> usize {
        self.leaf_items.len() - 1
    }

    /// Number of distinct prefixes of a length.
    pub fn nodes(&self, depth: usize) -> usize {
        if depth == 0 { 1 } else { self.codes[depth - 1].len() }
    }

    /// Children, at `depth + 1`, of a node at `depth`.
    pub fn children(&self, depth: usize, node: u32) -> Range<u32> {
        let starts = &self.children[depth];
        starts[node as usize]..starts[node as usize + 1]
    }

    /// Last code of a node at `depth` (from 1).
    pub fn code(&self, depth: usize, node: u32) -> u16 {
        self.codes[depth - 1][node as usize]
    }

    /// Indices of the items that share a leaf's semantic id, ascending.
    pub fn items_of(&self, leaf: u32) -> &[u32] {
        let range = self.leaf_items[leaf as usize]..self.leaf_items[leaf as usize + 1];
        &self.items[range.start as usize..range.end as usize]
    }

    /// The semantic id of a leaf.
    pub fn semantic_id(&self, leaf: u32) -> Vec<u16> {
        let mut node = leaf;
        let mut id = vec![0; self.levels()];
        for depth in (1..=self.levels()).rev() {
            id[depth - 1] = self.code(depth, node);
            // the parent is the last node whose children start at or before this one
            node = self.children[depth - 1].partition_point(|&start| start <= node) as u32 - 1;
        }
        id
    }

    /// The leaf of a semantic id, if the catalogue has it.
    pub fn leaf(&self, semantic_id: &[u16]) -> Option<u32> {
        if semantic_id.len() != self.levels() {
            return None;
        }
        let mut node = 0;
        for (depth, code) in semantic_id.iter().enumerate() {
            let range = self.children(depth, node);
            let codes = &self.codes[depth][range.start as usize..range.end as usize];
            node = range.start + codes.binary_search(code).ok()? as u32;
        }
        Some(node)
    }

    /// Largest code of every level, to check against codebook sizes.
    pub fn largest_codes(&self) -> Vec<u16> {
        self.codes
            .iter()
            .map(|c| c.iter().copied().max().unwrap_or(0))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;

    #[test]
    fn small() {
        let trie = Trie::new(&[2, 0, 1, 5, 1, 3, 2, 0], 2).unwrap();
        assert_eq!(
            (trie.items(), trie.leaves(), trie.nodes(0), trie.nodes(1)),
            (4, 3, 1, 2)
        );
        assert_eq!(trie.children(0, 0), 0..2);
        assert_eq!(trie.children(1, 0), 0..2);
        assert_eq!((trie.code(2, 0), trie.code(2, 1), trie.code(2, 2)), (3, 5, 0));
        assert_eq!(trie.items_of(2), [0, 3]);
        assert_eq!(trie.leaf(&[1, 5]), Some(1));
        assert_eq!(trie.leaf(&[1, 4]), None);
        assert!(Trie::new(&[], 2).is_err() && Trie::new(&[1], 2).is_err());
    }

    #[test]
    fn every_id_is_found_and_nothing_else() {
        for levels in [1, 2, 3, 5] {
            let key = Key::new(levels as u64);
            let ids: Vec<u16> = (0..500 * levels as u64).map(|i| key.below(i, 7) as u16).collect();
            let trie = Trie::new(&ids, levels).unwrap();
            let mut seen = 0;
            for (item, id) in ids.chunks_exact(levels).enumerate() {
                let leaf = trie.leaf(id).unwrap();
                assert!(trie.items_of(leaf).contains(&(item as u32)));
                assert_eq!(trie.semantic_id(leaf), id);
            }
            for leaf in 0..trie.leaves() as u32 {
                seen += trie.items_of(leaf).len();
                assert_eq!(trie.leaf(&trie.semantic_id(leaf)), Some(leaf));
            }
            assert_eq!(seen, 500);
        }
    }
}
