//! The page itself, which is part of the program: a document, a style, and scripts.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::answer::{Refused, with_type};

const PAGE: &str = include_str!("../web/index.html");

const SCRIPT: &str = "text/javascript; charset=utf-8";

const ASSETS: [(&str, &str, &str); 13] = [
    ("style.css", "text/css; charset=utf-8", include_str!("../web/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("../web/icon.svg")),
    ("app.js", SCRIPT, include_str!("../web/app.js")),
    ("dom.js", SCRIPT, include_str!("../web/dom.js")),
    ("words.js", SCRIPT, include_str!("../web/words.js")),
    ("graph.js", SCRIPT, include_str!("../web/graph.js")),
    ("chart.js", SCRIPT, include_str!("../web/chart.js")),
    ("overview.js", SCRIPT, include_str!("../web/overview.js")),
    ("run.js", SCRIPT, include_str!("../web/run.js")),
    ("curves.js", SCRIPT, include_str!("../web/curves.js")),
    ("artifacts.js", SCRIPT, include_str!("../web/artifacts.js")),
    ("compare.js", SCRIPT, include_str!("../web/compare.js")),
    ("sql.js", SCRIPT, include_str!("../web/sql.js")),
];

/// `/`
pub(crate) async fn page() -> Response {
    with_type(StatusCode::OK, "text/html; charset=utf-8", PAGE)
}

/// `/assets/{name}`
pub(crate) async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(known, _, _)| *known == name) {
        Some((_, kind, text)) => with_type(StatusCode::OK, kind, *text),
        None => Refused::unknown("there is nothing at this address").into_response(),
    }
}
