//! Errors of the house as statuses of gRPC: a code for programs, the whole text for people.

use sluice_engine::{Error, Kind};
use tonic::{Code, Status};

/// Characters of a line of the statement that an error quotes.
const LINE: usize = 200;
/// Bytes of a message: it travels in a header, and headers are short.
const LONGEST: usize = 2000;

/// The status of an error.
pub(super) fn status(mut error: Error) -> Status {
    let code = match (error.kind, error.code.as_str()) {
        (_, "read-only") if error.kind == Kind::User => Code::PermissionDenied,
        (_, "sql-timeout") => Code::DeadlineExceeded,
        (_, "sql-memory" | "disk-full") => Code::ResourceExhausted,
        (_, "not-in-this-sql") => Code::Unimplemented,
        (_, "missing-artifact") => Code::NotFound,
        (_, "damaged-artifact") => Code::DataLoss,
        (Kind::User | Kind::Data, _) => Code::InvalidArgument,
        (Kind::Interrupted, _) => Code::Cancelled,
        (Kind::Device, _) => Code::Unavailable,
        (Kind::Internal, _) => Code::Internal,
    };
    if let Some(place) = &mut error.place {
        let long = |text: &String| text.chars().count() > LINE;
        if place.text.as_ref().is_some_and(long) {
            place.text = None;
        }
    }
    Status::new(code, cut(error.to_string()))
}

/// A refusal of what would change something.
pub(super) fn read_only(what: &str) -> Status {
    status(Error::user(
        "read-only",
        format!("{what} is refused: the server only reads"),
    ))
}

/// A statement or a task of it panicked. The server goes on.
pub(super) fn panicked() -> Status {
    status(Error::internal("the statement hit a fault of ours; the server goes on").hint("the server's log has more"))
}

/// What the client sent makes no sense.
pub(super) fn malformed(why: impl std::fmt::Display) -> Status {
    Status::invalid_argument(cut(format!("error[bad-request]: {why}")))
}

/// A handle that means nothing, or nothing any more.
pub(super) fn unknown_handle(what: &str) -> Status {
    Status::not_found(format!(
        "error[unknown-handle]: there is no such {what}, or it was not used for too long\n  hint: send the statement again"
    ))
}

fn cut(mut text: String) -> String {
    if text.len() > LONGEST {
        let at = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(at);
        text.push('…');
    }
    // Nothing of a statement ends a header early.
    text.chars()
        .map(|letter| match letter {
            '\n' => '\n',
            letter if letter.is_control() => ' ',
            letter => letter,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_are_told() {
        let error = Error::user("unknown-table", "no table \"x\"").hint("did you mean \"y\"?");
        let told = status(error);
        assert_eq!(told.code(), Code::InvalidArgument);
        assert_eq!(
            told.message(),
            "error[unknown-table]: no table \"x\"\n  hint: did you mean \"y\"?"
        );
        assert_eq!(read_only("INSERT").code(), Code::PermissionDenied);
        let long = status(Error::user("bad-sql", "ä".repeat(5000)));
        assert!(long.message().len() <= LONGEST + 4, "{}", long.message().len());
    }
}
