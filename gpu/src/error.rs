//! What can go wrong in models, training and decoding, worded for the person who ran the experiment.

use std::path::PathBuf;

/// Result of every fallible function of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error with the field, operation, path or tensor it is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A config or option has a value that cannot work.
    #[error("invalid `{field}`: {reason}")]
    InvalidConfig {
        /// The field as the user writes it.
        field: String,
        /// What is wrong with it, and what would be right.
        reason: String,
    },
    /// Two tensors, or a tensor and a config, do not fit together.
    #[error("shape mismatch in {op}: expected {expected}, got {got}")]
    ShapeMismatch {
        /// The operation or tensor name.
        op: String,
        /// The expected shape or count.
        expected: String,
        /// What came instead.
        got: String,
    },
    /// Input data that cannot be used (a code outside its codebook, an empty history).
    #[error("invalid data: {0}")]
    InvalidData(String),
    /// An error of the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
    /// A file exists but its content is not what it should be.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A weight file lacks tensors, or has ones the config does not know.
    #[error("weights do not match the config: missing [{missing}], unexpected [{unexpected}]", missing = missing.join(", "), unexpected = unexpected.join(", "))]
    TensorNames {
        /// Tensors the config needs and the file lacks.
        missing: Vec<String>,
        /// Tensors the file has and the config does not know.
        unexpected: Vec<String>,
    },
    /// The requested device does not exist here.
    #[error("device `{requested}` is not available: {reason}")]
    Device {
        /// What was asked for.
        requested: String,
        /// Why it cannot be had.
        reason: String,
    },
    /// Training diverged.
    #[error("the loss is {loss} at step {step}; lower the learning rate or clip the gradients")]
    NotFinite {
        /// The step, counted from 1.
        step: usize,
        /// The loss as computed.
        loss: f32,
    },
    /// Another call that shares the training is gone, or is not what it should be.
    #[error("cannot go on with the peers: {0}")]
    Peer(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// An [`Error::InvalidConfig`].
    pub fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Error::InvalidConfig {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// An [`Error::ShapeMismatch`] from anything printable.
    pub fn shape(op: impl Into<String>, expected: impl std::fmt::Debug, got: impl std::fmt::Debug) -> Self {
        Error::ShapeMismatch {
            op: op.into(),
            expected: format!("{expected:?}"),
            got: format!("{got:?}"),
        }
    }

    /// An [`Error::Io`] for use in `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
