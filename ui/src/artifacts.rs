//! Artifacts: a page of the list, one artifact with what made it and what reads it, its first rows, its files.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::header::{CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, X_FRAME_OPTIONS};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sluice_engine::store::Manifest;
use sluice_engine::{Error, Kind};
use sluice_sql::browse::head;
use sluice_sql::output::Show;

use crate::answer::{Refused, with_type};
use crate::routes::{Asked, aside};
use crate::runs::PAGE;
use crate::server::House;

/// Most rows of a look, and characters of a cell.
const ROWS: u64 = 500;
const CELL: usize = 300;
/// The largest file that is handed out.
const LARGEST_FILE: u64 = 32 << 20;
/// What reads an artifact is told up to this number.
const READERS: usize = 200;

/// A page of someone else: no script runs in it, nothing is fetched, and only this page shows it.
const SANDBOX: &str = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

/// `/api/artifacts?search=&layout=&sort=&page=`
pub(crate) fn list(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let mut all = house.index.manifests();
    let total = all.len();
    let mut layouts: Vec<String> = all.iter().map(|manifest| manifest.layout.clone()).collect();
    layouts.sort_unstable();
    layouts.dedup();
    let search: Vec<String> = asked
        .get("search")
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_lowercase)
        .collect();
    all.retain(|manifest| asked.get("layout").is_none_or(|layout| manifest.layout == layout));
    if !search.is_empty() {
        all.retain(|manifest| {
            let operator = &manifest.preimage.operator;
            let text = format!(
                "{}.{} {operator} {} {}",
                manifest.stage, manifest.port, manifest.digest, manifest.run
            );
            let columns: Vec<&str> = manifest
                .schema
                .iter()
                .filter_map(|column| column["name"].as_str())
                .collect();
            let text = format!("{text} {}", columns.join(" ")).to_lowercase();
            search.iter().all(|word| text.contains(word))
        });
    }
    match asked.get("sort").unwrap_or("newest") {
        "newest" => all.sort_by(|a, b| b.run.cmp(&a.run).then_with(|| name(a).cmp(&name(b)))),
        "stage" => all.sort_by_key(|manifest| (name(manifest), manifest.run.clone())),
        "size" => all.sort_by_key(|manifest| std::cmp::Reverse(bytes(manifest))),
        "rows" => all.sort_by_key(|manifest| std::cmp::Reverse(manifest.rows)),
        other => return Err(Error::user("bad-value", format!("there is no order \"{other}\"")).into()),
    }
    let page = asked.number("page", 0)?;
    let first = usize::try_from(page.saturating_mul(PAGE)).unwrap_or(usize::MAX);
    let pipelines: HashMap<String, String> = house
        .index
        .runs()
        .iter()
        .map(|run| (run.name().to_string(), run.record().pipeline.clone()))
        .collect();
    let row = |manifest: &Arc<Manifest>| {
        let mut row = brief(manifest);
        row["pipeline"] = pipelines.get(&manifest.run).cloned().into();
        row
    };
    Ok(json!({
        "total": total,
        "found": all.len(),
        "page": page,
        "pages": (all.len() as u64).div_ceil(PAGE),
        "layouts": layouts,
        "artifacts": all.iter().skip(first).take(PAGE as usize).map(row).collect::<Vec<_>>(),
    }))
}

fn name(manifest: &Manifest) -> (String, String) {
    (manifest.stage.clone(), manifest.port.clone())
}

fn bytes(manifest: &Manifest) -> u64 {
    manifest.files.iter().map(|file| file.bytes).sum()
}

fn brief(manifest: &Manifest) -> Value {
    json!({
        "digest": manifest.digest,
        "stage": manifest.stage,
        "port": manifest.port,
        "operator": manifest.preimage.operator,
        "layout": manifest.layout,
        "rows": manifest.rows,
        "columns": manifest.schema.len(),
        "bytes": bytes(manifest),
        "run": manifest.run,
        "seconds": manifest.seconds,
    })
}

/// `/api/artifacts/{digest}`
pub(crate) fn one(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let manifest = house.index.manifest(&asked.names[0])?;
    let digest = &manifest.digest;
    let keys = house.index.keys();
    let made: Vec<Value> = keys
        .iter()
        .filter(|record| record.outputs.values().any(|made| made == digest))
        .map(|record| json!({ "key": record.key, "operator": record.preimage.operator, "run": record.run }))
        .collect();
    let mut readers = Vec::new();
    for record in &keys {
        let ports: Vec<&String> = record
            .preimage
            .inputs
            .iter()
            .filter(|(_, read)| *read == digest)
            .map(|(port, _)| port)
            .collect();
        if ports.is_empty() || readers.len() >= READERS {
            continue;
        }
        // A key does not know its stage; what it left does.
        let left = record.outputs.values().find_map(|made| house.index.manifest(made).ok());
        readers.push(json!({
            "key": record.key,
            "operator": record.preimage.operator,
            "ports": ports,
            "run": record.run,
            "stage": left.as_ref().map(|left| left.stage.clone()),
            "digest": left.map(|left| left.digest.clone()),
        }));
    }
    let inputs: Vec<Value> = manifest
        .preimage
        .inputs
        .iter()
        .map(|(port, digest)| {
            let from = house.index.manifest(digest).ok();
            json!({
                "port": port,
                "digest": digest,
                "here": from.is_some(),
                "stage": from.as_ref().map(|from| from.stage.clone()),
                "output": from.map(|from| from.port.clone()),
            })
        })
        .collect();
    let pipeline = house
        .index
        .run(&manifest.run)
        .ok()
        .map(|run| run.record().pipeline.clone());
    let mut told = brief(&manifest);
    let more = json!({
        "pipeline": pipeline,
        "schema": manifest.schema,
        "files": manifest.files.iter().map(|file| json!({ "name": file.name, "bytes": file.bytes, "rows": file.rows })).collect::<Vec<_>>(),
        "preimage": manifest.preimage,
        "notes": manifest.notes,
        "software": manifest.software,
        "path": house.store().object(digest).to_string_lossy(),
        "keys": made,
        "inputs": inputs,
        "readers": readers,
    });
    if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
        told.extend(more);
    }
    Ok(told)
}

/// `/api/artifacts/{digest}/rows?n=`
pub(crate) fn rows(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let manifest = house.index.manifest(&asked.names[0])?;
    let rows = asked.number("n", 20)?.min(ROWS) as usize;
    let grid = head(house.store(), &manifest.digest, Show { rows, cell: CELL })?;
    Ok(json!({ "digest": manifest.digest, "total": manifest.rows, "grid": grid }))
}

/// `/api/artifacts/{digest}/files/{name}`: a file that the manifest lists.
pub(crate) async fn file(State(house): State<Arc<House>>, Path((digest, name)): Path<(String, String)>) -> Response {
    let read = aside(move || {
        let manifest = house.index.manifest(&digest)?;
        // Only what the manifest lists is there, so a name leads nowhere else.
        let unknown = || Refused::unknown("the artifact has no file of that name");
        let file = manifest
            .files
            .iter()
            .find(|file| file.name == name)
            .ok_or_else(unknown)?;
        if file.bytes > LARGEST_FILE {
            let error = Error::new(Kind::User, "large-file", "this file is too large for a page");
            let hint = format!("it lies at {}", house.store().object(&digest).display());
            return Err(Refused::new(StatusCode::PAYLOAD_TOO_LARGE, error.hint(hint)));
        }
        let path = house.store().object(&digest).join(&file.name);
        let bytes = house
            .store()
            .disk()
            .read(&path)
            .map_err(|error| Error::io("read", &path, &error))?;
        Ok((file.name.clone(), bytes))
    });
    match read.await {
        Ok((name, bytes)) => {
            let kind = kind(&name);
            let mut response = with_type(StatusCode::OK, kind, bytes);
            let headers = response.headers_mut();
            headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
            headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("SAMEORIGIN"));
            if kind == "application/octet-stream" {
                headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
            }
            response
        }
        Err(refused) => refused.into_response(),
    }
}

/// What browsers show, by the ending of a file's name; anything else is saved.
fn kind(name: &str) -> &'static str {
    match name.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "html" => "text/html; charset=utf-8",
        "svg" => "image/svg+xml",
        "md" | "tex" | "txt" | "csv" | "yaml" => "text/plain; charset=utf-8",
        "json" => "application/json",
        _ => "application/octet-stream",
    }
}
