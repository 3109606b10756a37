//! One stage of a run: why it ran, what it is made of, what it left.

use serde_json::{Value, json};
use sluice_engine::cause::{OfRuns, made};
use sluice_engine::key::Reason;

use crate::answer::Refused;
use crate::index::lock;
use crate::routes::Asked;
use crate::server::House;

/// `/api/runs/{run}/stage?name=`
pub(crate) fn one(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let run = house.index.run(&asked.names[0])?;
    let name = asked.want("name")?;
    let whole = house.index.whole(&run);
    let (summary, notes) = {
        let course = house.index.course(&run);
        let course = lock(&course);
        let summary = course.stages().iter().find(|(stage, _)| stage == name);
        (summary.map(|(_, summary)| summary.clone()), course.notes(name).cloned())
    };
    if summary.is_none() && !whole.keys.contains_key(name) {
        return Err(Refused::unknown("the run has no stage of that name"));
    }
    let record = whole.keys.get(name).and_then(|key| house.index.key(key));
    // The newest run of the pipeline before this one in which the stage had another key.
    let key = whole.keys.get(name);
    let runs = house.index.runs();
    let mut earlier = runs.iter().skip_while(|known| known.name() != run.name()).skip(1);
    let then = earlier.find(|known| {
        let known = known.record();
        known.pipeline == whole.pipeline && known.keys.get(name).is_some_and(|old| Some(old) != key)
    });
    let then = then.map(|known| known.record());
    let cause = OfRuns::new(house.store(), &whole, then).tell(name);
    let words = |reasons: &[Reason]| reasons.iter().map(Reason::to_string).collect::<Vec<_>>();
    let roots: Vec<Value> = cause
        .iter()
        .flat_map(|cause| cause.roots())
        .map(|root| json!({ "stage": root.stage, "because": words(&root.because) }))
        .collect();
    let made_by = record.as_ref().filter(|record| record.run != run.name()).map(|record| {
        let made = made(house.store(), record);
        json!({ "run": made.run, "started": made.started, "because": words(&made.because) })
    });
    let ports = |digests: &std::collections::BTreeMap<String, String>| -> Vec<Value> {
        let port = |(port, digest): (&String, &String)| {
            let manifest = house.index.manifest(digest).ok();
            json!({
                "port": port,
                "digest": digest,
                "rows": manifest.as_ref().map(|manifest| manifest.rows),
                "layout": manifest.as_ref().map(|manifest| manifest.layout.clone()),
                "stage": manifest.as_ref().map(|manifest| manifest.stage.clone()),
            })
        };
        digests.iter().map(port).collect()
    };
    Ok(json!({
        "run": run.name(),
        "stage": name,
        "outcome": summary.as_ref().map_or("done", |summary| summary.outcome),
        "because": summary.as_ref().map(|summary| words(&summary.because)),
        "error": summary.as_ref().and_then(|summary| summary.error.clone()),
        "compared_with": then.map(|then| &then.run),
        "changes": cause.as_ref().map(|cause| words(&cause.because)),
        "roots": roots,
        "made_by": made_by,
        "key": key,
        "operator": record.as_ref().map(|record| &record.preimage.operator),
        "version": record.as_ref().map(|record| record.preimage.version),
        "seed": record.as_ref().map(|record| record.preimage.seed),
        "config": record.as_ref().map(|record| &record.preimage.config),
        "files": record.as_ref().map(|record| record.preimage.files.keys().collect::<Vec<_>>()),
        "inputs": record.as_ref().map(|record| ports(&record.preimage.inputs)),
        "outputs": record.as_ref().map(|record| ports(&record.outputs)),
        "notes": record.as_ref().map(|record| json!(record.notes)).or(notes.map(|notes| json!(notes))),
    }))
}
