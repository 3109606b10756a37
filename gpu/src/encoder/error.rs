//! What can be wrong with an encoder's checkpoint or with what it is asked to encode.

use std::path::PathBuf;

/// Names that an error lists before it counts the rest.
const LISTED: usize = 12;

/// What can be wrong with a checkpoint or with what its encoder is asked to encode.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A file of the checkpoint cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the checkpoint is there but is not what it should be.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The configuration asks for something no encoder here computes.
    #[error("{path}: {key} is {got}, supported: {supported}")]
    Unsupported {
        /// The configuration file.
        path: PathBuf,
        /// The key in it.
        key: &'static str,
        /// Its value.
        got: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// The tensors of the checkpoint are not those that the configuration implies.
    #[error("{path}: {}", wrong_names(missing, extra, *expected))]
    TensorNames {
        /// The weights file, or its index.
        path: PathBuf,
        /// Implied and not there; without the prefix of the whole model.
        missing: Vec<String>,
        /// There and not implied, as the file names them.
        extra: Vec<String>,
        /// How many tensors the configuration implies.
        expected: usize,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("{path}: tensor {name} has shape {got:?}, the configuration implies {expected:?}")]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
        /// Shape in the file.
        got: Vec<usize>,
        /// Shape the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor has an element type that is not a float of 16 or 32 bits.
    #[error("{path}: tensor {name} has element type {got}, supported: F16, BF16, F32")]
    ElementType {
        /// The weights file.
        path: PathBuf,
        /// The tensor, without prefix.
        name: String,
        /// Its element type.
        got: String,
    },
    /// A sequence to encode has no token.
    #[error("sequence {sequence} has no token")]
    EmptySequence {
        /// Index of the sequence.
        sequence: usize,
    },
    /// A sequence to encode is longer than the model's positions.
    #[error("sequence {sequence} has {got} tokens, the model has {most} positions")]
    TooLong {
        /// Index of the sequence.
        sequence: usize,
        /// Its tokens.
        got: usize,
        /// The most tokens the model takes.
        most: usize,
    },
    /// A token id lies outside the vocabulary.
    #[error("sequence {sequence}, token {position}: id {id} is outside the vocabulary of {vocabulary}")]
    UnknownToken {
        /// Index of the sequence.
        sequence: usize,
        /// Position of the token in it.
        position: usize,
        /// The token id.
        id: u32,
        /// Size of the vocabulary.
        vocabulary: usize,
    },
    /// The offsets of a packed batch do not rise from 0 to the number of tokens.
    #[error("offsets must rise from 0 to the {tokens} tokens of the batch")]
    Offsets {
        /// Tokens in the batch.
        tokens: usize,
    },
    /// The device refused.
    #[error("the device failed: {0}")]
    Device(#[from] candle_core::Error),
}

impl EncoderError {
    /// The error of a batch, told in rows of the input: sequence s of the batch is row `rows[s]`.
    pub(super) fn in_row(mut self, rows: &[usize]) -> Self {
        if let EncoderError::EmptySequence { sequence }
        | EncoderError::TooLong { sequence, .. }
        | EncoderError::UnknownToken { sequence, .. } = &mut self
        {
            *sequence = rows[*sequence];
        }
        self
    }
}

fn wrong_names(missing: &[String], extra: &[String], expected: usize) -> String {
    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(format!(
            "{} missing of {expected} tensors: {}",
            missing.len(),
            listed(missing)
        ));
    }
    if !extra.is_empty() {
        let count = extra.len();
        parts.push(format!(
            "{count} beyond the {expected} tensors that config.json implies: {}",
            listed(extra)
        ));
    }
    parts.join("; ")
}

fn listed(names: &[String]) -> String {
    let first = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => first,
        rest => format!("{first} and {rest} more"),
    }
}

/// Checks a packed batch: offsets rise from 0 to the number of tokens, no sequence is empty or has more than
/// `positions` tokens, every id is in the vocabulary.
pub(crate) fn check_batch(
    ids_t: &[u32],
    offsets: &[usize],
    vocabulary: usize,
    positions: Option<usize>,
) -> Result<(), EncoderError> {
    let rising = offsets.windows(2).all(|w| w[0] <= w[1]);
    if offsets.first() != Some(&0) || offsets.last() != Some(&ids_t.len()) || !rising {
        return Err(EncoderError::Offsets { tokens: ids_t.len() });
    }
    for (sequence, span) in offsets.windows(2).enumerate() {
        let got = span[1] - span[0];
        if got == 0 {
            return Err(EncoderError::EmptySequence { sequence });
        }
        if let Some(most) = positions.filter(|most| got > *most) {
            return Err(EncoderError::TooLong { sequence, got, most });
        }
        let ids = &ids_t[span[0]..span[1]];
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocabulary) {
            return Err(EncoderError::UnknownToken {
                sequence,
                position,
                id: ids[position],
                vocabulary,
            });
        }
    }
    Ok(())
}
