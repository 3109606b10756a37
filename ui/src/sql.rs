//! The console: one statement that reads, within limits of rows and time, and ended when the browser leaves.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use sluice_engine::operator::Cancel;
use sluice_engine::{Error, Kind, Result};
use sluice_sql::output::{self, Format, Show, grid};
use sluice_sql::{Session, Statement, queries, system};

use crate::answer::{Refused, with_type};
use crate::routes::{Asked, aside};
use crate::server::House;

/// Rows that a page shows if it does not say, and at most; characters of a cell.
const ROWS: usize = 500;
const MOST_ROWS: usize = 5_000;
const CELL: usize = 2_000;
/// The largest file of rows.
const LARGEST: usize = 64 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    statement: String,
    #[serde(default)]
    rows: Option<usize>,
    /// Rows as a file, all of them.
    #[serde(default)]
    csv: bool,
}

/// Ends a statement whose rows nobody waits for any more: when a browser leaves, what answers it is dropped.
struct Leaving(Cancel);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// `POST /api/sql`
pub(crate) async fn run(State(house): State<Arc<House>>, headers: HeaderMap, body: Bytes) -> Response {
    // What a form of another page can send is not JSON.
    let is_json = headers
        .get("content-type")
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.split(';').next() == Some("application/json"));
    if !is_json {
        let error = Error::user("bad-request", "a statement comes as application/json");
        return Refused::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error).into_response();
    }
    let ask: Ask = match serde_json::from_slice(&body) {
        Ok(ask) => ask,
        Err(error) => return Refused::from(Error::user("bad-request", error.to_string())).into_response(),
    };
    let Ok(permit) = house.statements.clone().try_acquire_owned() else {
        let error = Error::user("busy", "other statements are running").hint("wait for one of them to end");
        return Refused::new(StatusCode::TOO_MANY_REQUESTS, error).into_response();
    };
    let own = Cancel::default();
    let _leaving = Leaving(own.clone());
    let done = aside(move || {
        let _permit = permit;
        let session = house.session.beside(&own);
        match ask.csv {
            true => csv(&session, &ask.statement).map(Done::File),
            false => rows(&session, &ask).map(Done::Rows),
        }
        .map_err(Refused::from)
    });
    match done.await {
        Ok(Done::Rows(value)) => with_type(StatusCode::OK, "application/json", value.to_string()),
        Ok(Done::File(bytes)) => with_type(StatusCode::OK, "text/csv; charset=utf-8", bytes),
        Err(refused) => refused.into_response(),
    }
}

enum Done {
    Rows(Value),
    File(Vec<u8>),
}

fn rows(session: &Session, ask: &Ask) -> Result<Value> {
    let started = Instant::now();
    let rows = session.run(&Statement::parse(&ask.statement)?)?;
    let show = Show {
        rows: ask.rows.unwrap_or(ROWS).clamp(1, MOST_ROWS),
        cell: CELL,
    };
    let grid = grid(&rows.schema(), rows, show)?;
    Ok(json!({ "grid": grid, "seconds": started.elapsed().as_secs_f64() }))
}

fn csv(session: &Session, statement: &str) -> Result<Vec<u8>> {
    let rows = session.run(&Statement::parse(statement)?)?;
    let mut file = Limited(Vec::new());
    output::write(&rows.schema(), rows, Format::Csv, Show::ALL, &mut file).map_err(|error| match file.0.len() {
        LARGEST => Error::new(Kind::User, "large-result", "these rows are too many for a page")
            .hint("sluice sql STATEMENT --output FILE.csv writes as many as there are"),
        _ => error,
    })?;
    Ok(file.0)
}

/// Takes so many bytes and no more.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let take = bytes.len().min(LARGEST - self.0.len());
        self.0.extend_from_slice(&bytes[..take]);
        match take < bytes.len() {
            true => Err(std::io::Error::other("too large")),
            false => Ok(take),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// `/api/tables`: what statements may be about.
pub(crate) fn tables(house: &House, _: &Asked) -> std::result::Result<Value, Refused> {
    let system: Vec<Value> = system::reference()
        .map(|(name, about)| json!({ "name": format!("sys.{name}"), "about": about }))
        .collect();
    let queries: Vec<Value> = queries::all()
        .filter(|query| query.params().next().is_none())
        .map(|query| json!({ "name": query.name, "about": query.about, "text": query.text }))
        .collect();
    let session = house.session.beside(&Cancel::default());
    let stages: Vec<String> = session
        .tables()
        .into_iter()
        .filter(|name| !name.starts_with("sys."))
        .collect();
    Ok(json!({ "system": system, "queries": queries, "stages": stages }))
}
