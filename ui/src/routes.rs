//! Which request gets which answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, RawQuery, Request, State};
use axum::http::header::SET_COOKIE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::Value;
use sluice_engine::Error;

use crate::answer::{Refused, json_or_same, protect};
use crate::guard::Shown;
use crate::server::House;
use crate::{artifacts, assets, compare, graph, log, overview, runs, sql, stage};

/// The largest statement, with what goes with it.
const LARGEST_REQUEST: usize = 256 << 10;

/// What a request says: the parts of its path that are names, and the pairs behind the `?`.
pub(crate) struct Asked {
    pub(crate) names: Vec<String>,
    query: BTreeMap<String, String>,
}

impl Asked {
    fn new(names: Vec<String>, query: Option<&str>) -> Self {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        Asked {
            names,
            query: pairs.into_owned().collect(),
        }
    }

    /// The value of a pair, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.query
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The value of a pair that must be there.
    pub(crate) fn want(&self, name: &str) -> Result<&str, Refused> {
        self.get(name)
            .ok_or_else(|| Error::user("missing-value", format!("the request does not say \"{name}\"")).into())
    }

    /// A number, `default` if it is not said.
    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64, Refused> {
        self.get(name).map_or(Ok(default), |text| {
            let bad = |_| Error::user("bad-value", format!("\"{text}\" for \"{name}\" is no number")).into();
            text.parse().map_err(bad)
        })
    }
}

type Make = fn(&House, &Asked) -> Result<Value, Refused>;

/// All routes.
pub(crate) fn router(house: Arc<House>) -> Router {
    let plain = |make: Make| {
        get(
            move |State(house): State<Arc<House>>, headers: HeaderMap, RawQuery(query): RawQuery| {
                answer(house, headers, Asked::new(Vec::new(), query.as_deref()), make)
            },
        )
    };
    let named = |make: Make| {
        get(
            move |State(house): State<Arc<House>>,
                  Path(name): Path<String>,
                  headers: HeaderMap,
                  RawQuery(query): RawQuery| {
                answer(house, headers, Asked::new(vec![name], query.as_deref()), make)
            },
        )
    };
    Router::new()
        .route("/", get(assets::page))
        .route("/assets/{name}", get(assets::asset))
        .route("/api/overview", plain(overview::overview))
        .route("/api/runs", plain(runs::list))
        .route("/api/runs/{run}", named(runs::one))
        .route("/api/runs/{run}/graph", named(graph::of_run))
        .route("/api/runs/{run}/curves", named(runs::curves))
        .route("/api/runs/{run}/stage", named(stage::one))
        .route("/api/runs/{run}/log", named(log::log))
        .route("/api/runs/{run}/source", named(runs::source))
        .route("/api/compare", plain(compare::runs))
        .route("/api/compare/stage", plain(compare::stage))
        .route("/api/artifacts", plain(artifacts::list))
        .route("/api/artifacts/{digest}", named(artifacts::one))
        .route("/api/artifacts/{digest}/rows", named(artifacts::rows))
        .route("/api/artifacts/{digest}/files/{*name}", get(artifacts::file))
        .route("/api/tables", plain(sql::tables))
        .route("/api/sql", post(sql::run))
        .fallback(nothing)
        .method_not_allowed_fallback(only_reads)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .layer(from_fn_with_state(house.clone(), guarded))
        .with_state(house)
}

/// Answers from the store, on a thread that may wait for the disk.
async fn answer(house: Arc<House>, headers: HeaderMap, asked: Asked, make: Make) -> Response {
    match aside(move || make(&house, &asked)).await {
        Ok(value) => json_or_same(&headers, &value),
        Err(refused) => refused.into_response(),
    }
}

/// Does something on a thread that may wait.
pub(crate) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
) -> Result<T, Refused> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::internal("a thread of the server panicked").into()))
}

/// The door: whoever is refused here learns nothing else.
async fn guarded(State(house): State<Arc<House>>, request: Request, next: Next) -> Response {
    let shown = house.guard.check(request.method(), request.uri(), request.headers());
    let mut response = match shown {
        Ok(shown) => {
            let mut response = next.run(request).await;
            // A browser that came with the token in the address keeps it in a cookie, which no script can read.
            if shown == Shown::Address
                && let Ok(cookie) = HeaderValue::from_str(&house.guard.set_cookie())
            {
                response.headers_mut().insert(SET_COOKIE, cookie);
            }
            response
        }
        Err(refused) => refused.into_response(),
    };
    protect(response.headers_mut());
    response
}

async fn nothing() -> Refused {
    Refused::unknown("there is nothing at this address")
}

async fn only_reads() -> Refused {
    let error = Error::user("read-only", "this address only reads, by GET");
    Refused::new(StatusCode::METHOD_NOT_ALLOWED, error)
}
