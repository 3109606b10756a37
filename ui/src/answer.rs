//! Answers: JSON with a tag that tells whether it changed, errors as JSON, and the headers that every answer has.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sluice_engine::{Error, Kind};

/// The page's scripts, styles and requests are its own; nothing is embedded, and nobody embeds it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// An answer that is none: a status and an error.
#[derive(Debug)]
pub(crate) struct Refused {
    status: StatusCode,
    error: Box<Error>,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, error: Error) -> Self {
        Refused {
            status,
            error: Box::new(error),
        }
    }

    /// There is no such thing.
    pub(crate) fn unknown(message: impl Into<String>) -> Self {
        Refused::new(StatusCode::NOT_FOUND, Error::user("not-found", message))
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        let status = match (error.kind, error.code.as_str()) {
            (_, "missing-artifact" | "artifact-gone" | "unknown-run" | "unknown-stage") => StatusCode::NOT_FOUND,
            (Kind::User, _) => StatusCode::BAD_REQUEST,
            (Kind::Data | Kind::Device, _) => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Refused::new(status, error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let mut told = serde_json::to_value(&self.error).unwrap_or_default();
        told["text"] = self.error.to_string().into();
        with_type(self.status, "application/json", json!({ "error": told }).to_string())
    }
}

/// A body with its type.
pub(crate) fn with_type(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static(kind))], body.into()).into_response()
}

/// JSON; only that nothing changed, if the caller has it already.
pub(crate) fn json_or_same(asked: &HeaderMap, value: &Value) -> Response {
    let body = value.to_string();
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let known = asked
        .get(IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = match known {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => with_type(StatusCode::OK, "application/json", body),
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}

/// Headers that every answer has, unless it has its own.
pub(crate) fn protect(headers: &mut HeaderMap) {
    let fixed = [
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("content-security-policy"), POLICY),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("referrer-policy"), "same-origin"),
        (HeaderName::from_static("x-content-type-options"), "nosniff"),
        (HeaderName::from_static("x-frame-options"), "DENY"),
    ];
    for (name, value) in fixed {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}
