//! One error type for the house: a primary line, where, detail lines, and the next thing to try.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Shorthand for results that fail with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose turn it is to act. Decides the exit code of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The pipeline, the flags or the environment are wrong: exit code 2.
    User,
    /// The data are wrong (malformed, missing, empty, NaN): exit code 3.
    Data,
    /// A device or the machine failed (GPU, memory, disk, network): exit code 4.
    Device,
    /// The run was interrupted on purpose: exit code 130.
    Interrupted,
    /// Our fault: exit code 101.
    Internal,
}

impl Kind {
    /// The exit code of a program that stops with an error of this kind.
    pub fn exit_code(self) -> i32 {
        match self {
            Kind::User => 2,
            Kind::Data => 3,
            Kind::Device => 4,
            Kind::Interrupted => 130,
            Kind::Internal => 101,
        }
    }
}

/// A place in a text file. Lines and columns count from 1; column 0 means "the whole line".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The file as the user wrote it.
    pub file: String,
    /// Line number, from 1.
    pub line: u64,
    /// Column in characters, from 1; 0 when unknown.
    pub column: u64,
    /// How many characters to underline; 0 for none.
    pub width: u64,
    /// The text of the line, when at hand.
    pub text: Option<String>,
}

/// What went wrong, where, and what to do next.
///
/// The message is a lower-case line that names the kind of thing and quotes identifiers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Whose turn it is.
    pub kind: Kind,
    /// A stable code, such as `unknown-key`.
    pub code: String,
    /// The primary line.
    pub message: String,
    /// Where, if it is a place in a file.
    pub place: Option<Place>,
    /// Further facts, a line each.
    pub detail: Vec<String>,
    /// The next thing to try.
    pub hint: Option<String>,
}

impl Error {
    /// An error of the given kind.
    pub fn new(kind: Kind, code: &str, message: impl Into<String>) -> Self {
        Error {
            kind,
            code: code.to_string(),
            message: message.into(),
            place: None,
            detail: Vec::new(),
            hint: None,
        }
    }

    /// The pipeline, flags or environment are wrong.
    pub fn user(code: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::User, code, message)
    }

    /// The data are wrong.
    pub fn data(code: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::Data, code, message)
    }

    /// The machine or a device failed.
    pub fn device(code: &str, message: impl Into<String>) -> Self {
        Self::new(Kind::Device, code, message)
    }

    /// Our fault.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, "internal", message)
    }

    /// The run was interrupted.
    pub fn interrupted() -> Self {
        Self::new(Kind::Interrupted, "interrupted", "interrupted")
    }

    /// A failed file operation: `action` is a verb such as `read`.
    pub fn io(action: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self::of_io(error, format!("cannot {action} \"{}\": {error}", path.display()))
    }

    fn of_io(error: &std::io::Error, message: String) -> Self {
        let (kind, code) = match error.kind() {
            std::io::ErrorKind::NotFound => (Kind::User, "file-not-found"),
            std::io::ErrorKind::PermissionDenied => (Kind::User, "permission-denied"),
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => (Kind::Device, "disk-full"),
            std::io::ErrorKind::ReadOnlyFilesystem => (Kind::Device, "read-only"),
            _ => (Kind::Device, "io"),
        };
        let told = Self::new(kind, code, message);
        match code {
            "disk-full" => told.hint("make room and run the same command again: it goes on with what is finished"),
            "read-only" => told.hint("--store says where artifacts are kept"),
            _ => told,
        }
    }

    /// Sets the place to a line of a file.
    pub fn at_line(mut self, file: impl Into<String>, line: u64) -> Self {
        self.place = Some(Place {
            file: file.into(),
            line,
            column: 0,
            width: 0,
            text: None,
        });
        self
    }

    /// Sets the place.
    pub fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    /// Adds a line of detail.
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.detail.push(line.into());
        self
    }

    /// Sets the next thing to try.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// `unknown key "k"` / ` --> file:line:column` / the line / the underline / details / hint.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(place) = &self.place {
            write!(f, "\n  --> {}:{}", place.file, place.line)?;
            if place.column > 0 {
                write!(f, ":{}", place.column)?;
            }
            if let Some(text) = &place.text {
                let number = place.line.to_string();
                write!(f, "\n {number} | {text}")?;
                if place.column > 0 && place.width > 0 {
                    let gap = " ".repeat(number.len() + 1);
                    let lead = " ".repeat(place.column as usize - 1);
                    write!(f, "\n{gap} | {lead}{}", "^".repeat(place.width as usize))?;
                }
            }
        }
        for line in &self.detail {
            write!(f, "\n  {line}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        match &error {
            arrow::error::ArrowError::IoError(_, cause) => Error::of_io(cause, format!("arrow: {error}")),
            _ => Error::internal(format!("arrow: {error}")),
        }
    }
}

impl From<parquet::errors::ParquetError> for Error {
    fn from(error: parquet::errors::ParquetError) -> Self {
        let cause = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<std::io::Error>());
        match cause {
            Some(cause) => Error::of_io(cause, format!("parquet: {error}")),
            None => Error::internal(format!("parquet: {error}")),
        }
    }
}

/// `; did you mean "x"?` for the closest of `known`, when one is close.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len().max(word.len()) / 3).max(1)
                || (word.len() >= 3 && (candidate.starts_with(word) || candidate.ends_with(word)))
        })
        .min()
        .map(|(_, candidate)| format!("did you mean \"{candidate}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_shows_line_and_underline() {
        let error = Error::user("unknown-key", "unknown key \"kk\" in stage \"core\"")
            .at(Place {
                file: "p.yaml".into(),
                line: 14,
                column: 3,
                width: 2,
                text: Some("  kk: 5".into()),
            })
            .hint("did you mean \"k\"?");
        assert_eq!(
            error.to_string(),
            "error[unknown-key]: unknown key \"kk\" in stage \"core\"\n  --> p.yaml:14:3\n 14 |   kk: 5\n    |   ^^\n  hint: did you mean \"k\"?"
        );
    }

    #[test]
    fn close_names_are_suggested() {
        let known = ["codebook_size", "num_codebooks", "seed"];
        assert_eq!(
            did_you_mean("codebook_sise", known).as_deref(),
            Some("did you mean \"codebook_size\"?")
        );
        assert_eq!(did_you_mean("zzz", known), None);
    }
}
