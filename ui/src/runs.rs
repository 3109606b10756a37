//! Runs: a page of the list, one run with its stages, its curves, the pipeline that it ran.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluice_engine::history::{self, RunState, StageSummary};
use sluice_engine::key::Reason;
use sluice_engine::operator::OUT;
use sluice_engine::spec::Reference;
use sluice_engine::store::KeyRecord;
use sluice_engine::yaml::Span;

use crate::answer::Refused;
use crate::course::{Course, Curve};
use crate::graph;
use crate::index::{Known, lock};
use crate::routes::Asked;
use crate::server::House;

/// Rows of a page of a list.
pub(crate) const PAGE: u64 = 50;

/// A run in a line.
pub(crate) fn row(house: &House, run: &Known) -> Value {
    let record = run.record();
    let mut counts = house.index.counts(run);
    if run.state() != RunState::Running {
        counts.running = 0;
    }
    json!({
        "run": record.run,
        "pipeline": record.pipeline,
        "state": run.state().name(),
        "started": record.started,
        "seconds": run.seconds(),
        "counts": counts,
        "command": record.command,
        "pinned": record.pinned,
        "error": record.errors.first().map(|error| &error.message),
    })
}

/// `/api/runs?pipeline=&state=&page=`
pub(crate) fn list(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let mut runs = house.index.runs();
    let pipelines: std::collections::BTreeSet<String> = runs.iter().map(|run| run.record().pipeline.clone()).collect();
    let (pipeline, state) = (asked.get("pipeline"), asked.get("state"));
    runs.retain(|run| pipeline.is_none_or(|name| run.record().pipeline == name));
    runs.retain(|run| state.is_none_or(|state| run.state().name() == state));
    let page = asked.number("page", 0)?;
    let first = usize::try_from(page.saturating_mul(PAGE)).unwrap_or(usize::MAX);
    let shown = runs.iter().skip(first).take(PAGE as usize).map(|run| row(house, run));
    Ok(json!({
        "total": runs.len(),
        "page": page,
        "pages": (runs.len() as u64).div_ceil(PAGE),
        "pipelines": pipelines,
        "runs": shown.collect::<Vec<_>>(),
    }))
}

/// `/api/runs/{run}`
pub(crate) fn one(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let run = house.index.run(&asked.names[0])?;
    let whole = house.index.whole(&run);
    let records = house.index.records(&whole);
    let mut told = row(house, &run);
    let course = house.index.course(&run);
    let course = lock(&course);
    let mut stages: Vec<Value> = course
        .stages()
        .iter()
        .map(|(name, summary)| stage(name, summary, &course, records.get(name).map(|record| &**record)))
        .collect();
    if stages.is_empty() {
        // A run that was pulled has a record and no events.
        let done = StageSummary {
            outcome: "done",
            ..StageSummary::default()
        };
        stages = records
            .iter()
            .map(|(name, record)| stage(name, &done, &course, Some(record)))
            .collect();
    }
    drop(course);
    let more = json!({
        "seed": whole.seed,
        "plan": whole.plan,
        "host": whole.process.host,
        "errors": whole.errors.iter().map(|error| error.to_string()).collect::<Vec<_>>(),
        "stages": stages,
        "shown": shown(house, &run, &records),
    });
    if let (Value::Object(told), Value::Object(more)) = (&mut told, more) {
        told.extend(more);
    }
    Ok(told)
}

/// A stage in a line.
fn stage(name: &str, summary: &StageSummary, course: &Course, record: Option<&KeyRecord>) -> Value {
    let because: Vec<String> = summary.because.iter().map(Reason::to_string).collect();
    let operator = course.operator(name).or(record.map(|record| &record.preimage.operator));
    let running = summary.outcome == "running";
    let progress = course.progress(name).filter(|_| running);
    json!({
        "stage": name,
        "base": base(name),
        "operator": operator,
        "planned": summary.planned,
        "because": because.join("; "),
        "outcome": summary.outcome,
        "rows": summary.rows.or(record.map(|record| record.rows.values().sum())),
        "bytes": summary.bytes.or(record.map(|record| record.bytes)),
        "seconds": summary.seconds,
        "made_in": record.map(|record| record.seconds),
        "started": summary.started,
        "ended": summary.ended,
        "cpu_seconds": summary.usage.as_ref().map(|usage| usage.cpu_seconds),
        "peak_memory": summary.usage.as_ref().map(|usage| usage.peak_memory),
        "energy": summary.usage.as_ref().and_then(|usage| usage.energy),
        "error": summary.error,
        "progress": progress.map(|(at, progress)| json!({
            "at": at, "done": progress.done, "total": progress.total, "unit": progress.unit, "figures": progress.figures,
        })),
    })
}

/// The stage as the pipeline writes it: without the axes of an instance.
pub(crate) fn base(name: &str) -> String {
    let reference = Reference::parse(name, Span::default()).ok();
    let reference = reference.filter(|reference| !reference.select.gathers() && reference.port.is_none());
    reference.map_or_else(|| name.to_string(), |found| found.stage)
}

/// Artifacts under `show:`.
fn shown(house: &House, run: &Known, records: &BTreeMap<String, std::sync::Arc<KeyRecord>>) -> Vec<Value> {
    let Some(spec) = graph::spec(house.store(), run.record()) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for reference in &spec.show {
        let of_stage = records.iter().filter(|(name, _)| base(name) == reference.stage);
        for (name, record) in of_stage {
            let port = match &reference.port {
                Some(port) => Some(port),
                None => record
                    .outputs
                    .keys()
                    .find(|port| *port == OUT)
                    .or(record.outputs.keys().next()),
            };
            if let Some((port, digest)) = port.and_then(|port| Some((port, record.outputs.get(port)?))) {
                let layout = house
                    .index
                    .manifest(digest)
                    .ok()
                    .map(|manifest| manifest.layout.clone());
                found.push(json!({ "stage": name, "port": port, "digest": digest, "layout": layout }));
            }
        }
    }
    found
}

/// `/api/runs/{run}/curves`: figures over units done, of stages that ran here, or of the run that made what was reused.
pub(crate) fn curves(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let run = house.index.run(&asked.names[0])?;
    let course = house.index.course(&run);
    let (mut curves, reused) = {
        let course = lock(&course);
        let own: Vec<Value> = course
            .curves()
            .map(|(stage, figure, found)| curve(stage, figure, found, None))
            .collect();
        let reused: Vec<(String, String)> = course
            .stages()
            .iter()
            .filter(|(_, stage)| stage.outcome == "reused")
            .filter_map(|(name, stage)| Some((name.clone(), stage.key.clone()?)))
            .collect();
        (own, reused)
    };
    // Which run made what was reused; there the stage may have had another name.
    let mut makers: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for (stage, key) in reused {
        let maker = house.index.key(&key).map(|record| record.run.clone());
        if let Some(maker) = maker.filter(|maker| maker != run.name()) {
            makers.entry(maker).or_default().push((stage, key));
        }
    }
    for (maker, stages) in makers {
        let Ok(known) = house.index.run(&maker) else { continue };
        let course = house.index.course(&known);
        let course = lock(&course);
        for (stage, key) in stages {
            let there = course.stages().iter().find(|(_, made)| made.key.as_ref() == Some(&key));
            let Some((name, _)) = there else { continue };
            let of_stage = course.curves().filter(|(stage, _, _)| stage == name);
            curves.extend(of_stage.map(|(_, figure, found)| curve(&stage, figure, found, Some(&maker))));
        }
    }
    Ok(json!({ "run": run.name(), "state": run.state().name(), "curves": curves }))
}

fn curve(stage: &str, figure: &str, curve: &Curve, made_by: Option<&str>) -> Value {
    let mut points = curve.points.clone();
    if let Some(newest) = curve.newest.filter(|newest| points.last() != Some(newest)) {
        points.push(newest);
    }
    json!({ "stage": stage, "figure": figure, "unit": curve.unit, "points": points, "made_by": made_by })
}

/// `/api/runs/{run}/source`
pub(crate) fn source(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let run = house.index.run(&asked.names[0])?;
    let text = history::source(house.store(), run.name()).ok();
    Ok(json!({ "command": run.record().command, "text": text }))
}
