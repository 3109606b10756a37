//! Packed sequences as a padded batch for candle, and back.

use candle_core::{Device, Tensor};

/// The sequences of a packed batch, padded on the right to the longest.
pub(crate) struct Padding {
    lengths: Vec<usize>,
    /// T, tokens of the longest sequence.
    pub longest: usize,
}

impl Padding {
    /// Of the sequences between `offsets`.
    pub(crate) fn new(offsets: &[usize]) -> Self {
        let lengths: Vec<usize> = offsets.windows(2).map(|w| w[1] - w[0]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        Padding { lengths, longest }
    }

    /// Ids [B, T] with 0 for padding, and a mask [B, 1, 1, T]: minus infinity for padding, else 0.
    pub(crate) fn pad(&self, ids_t: &[u32], device: &Device) -> candle_core::Result<(Tensor, Tensor)> {
        let (batch, longest) = (self.lengths.len(), self.longest);
        let mut ids_bt = vec![0u32; batch * longest];
        let mut mask_bt = vec![f32::NEG_INFINITY; batch * longest];
        let mut first = 0;
        for (row, length) in self.lengths.iter().enumerate() {
            let at = row * longest;
            ids_bt[at..at + length].copy_from_slice(&ids_t[first..first + length]);
            mask_bt[at..at + length].fill(0.0);
            first += length;
        }
        Ok((
            Tensor::from_vec(ids_bt, (batch, longest), device)?,
            Tensor::from_vec(mask_bt, (batch, 1, 1, longest), device)?,
        ))
    }

    /// The rows of [B, T, D] that are no padding, one after the other.
    pub(crate) fn pack(&self, hidden_btd: &Tensor) -> candle_core::Result<Vec<f32>> {
        let d = hidden_btd.dim(2)?;
        let all = hidden_btd.flatten_all()?.to_vec1::<f32>()?;
        let rows = self.lengths.iter().zip(all.chunks_exact(self.longest * d));
        Ok(rows.flat_map(|(length, row)| &row[..length * d]).copied().collect())
    }
}
