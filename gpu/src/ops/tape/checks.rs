//! What operations check before they run.

use crate::error::{Error, Result};
use crate::ops::{Attention, Heads};

/// How many rows of so many columns there are.
pub(in crate::ops) fn rows_of(values: &[f32], columns: usize) -> Result<usize> {
    if columns == 0 || !values.len().is_multiple_of(columns) {
        return Err(Error::shape(
            "constant",
            format!("a multiple of {columns}"),
            values.len(),
        ));
    }
    Ok(values.len() / columns)
}

/// Every index is below `bound`.
pub(in crate::ops) fn check_below(op: &str, indices: &[u32], bound: usize) -> Result<()> {
    match indices.iter().find(|&&i| i as usize >= bound) {
        Some(i) => Err(Error::InvalidData(format!("{op}: index {i} is not below {bound}"))),
        None => Ok(()),
    }
}

/// Elements of a matrix, rising.
pub(in crate::ops) fn check_hidden(hidden: &[(u32, u32)], rows: usize, columns: usize) -> Result<()> {
    let inside = |(row, column): &(u32, u32)| (*row as usize) < rows && (*column as usize) < columns;
    if hidden.iter().all(inside) && hidden.windows(2).all(|pair| pair[0] < pair[1]) {
        Ok(())
    } else {
        let reason = format!("hidden elements must rise inside [{rows}, {columns}]");
        Err(Error::InvalidData(format!("sampled_cross_entropy: {reason}")))
    }
}

/// Offsets rise from 0 to the number of rows, no sequence is empty, a causal query has its own key.
pub(in crate::ops) fn check_offsets(shape: &Attention, queries: usize, keys: usize) -> Result<()> {
    for (name, offsets, rows) in [("query", &shape.queries, queries), ("key", &shape.keys, keys)] {
        let rising = offsets.windows(2).all(|pair| pair[0] < pair[1]);
        if !rising || offsets.first() != Some(&0) || offsets.last() != Some(&rows) {
            return Err(Error::shape(
                format!("attention, {name} offsets"),
                format!("strictly rising from 0 to {rows}"),
                (offsets.first(), offsets.last()),
            ));
        }
    }
    let lengths = |offsets: &[usize]| offsets.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
    let behind = |queries: &[usize], keys: &[usize]| queries.iter().zip(keys).any(|(q, k)| q > k);
    let causal = shape.causal && behind(&lengths(&shape.queries), &lengths(&shape.keys));
    // The biases of a causal attention are those of positions from 0 on.
    let biased = shape.causal && shape.buckets.is_some() && shape.queries != shape.keys;
    if shape.queries.len() != shape.keys.len() || causal || biased {
        return Err(Error::shape("attention", shape.queries.len(), shape.keys.len()));
    }
    Ok(())
}

/// Every position has an angle, and angles are those of heads of this width.
pub(in crate::ops) fn check_rotations(shape: &Heads) -> Result<()> {
    let known = shape.rotations.cos_pk.len() / shape.rotations.pairs.max(1);
    if shape.rotations.pairs * 2 != shape.key_dim {
        return Err(Error::shape("rotations", shape.key_dim, 2 * shape.rotations.pairs));
    }
    check_below("rotations", &shape.positions, known)
}
