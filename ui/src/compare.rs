//! Two runs beside each other: which stages differ and why; then, stage by stage, what came out of them.

use std::sync::Arc;

use serde_json::{Value, json};
use sluice_engine::difference::{SMALL_TABLE, of_keys, outputs};
use sluice_engine::history::RunRecord;
use sluice_engine::key::Reason;
use sluice_engine::store::KeyRecord;

use crate::answer::Refused;
use crate::routes::Asked;
use crate::runs::row;
use crate::server::House;

/// Values of a table that are told.
const VALUES: usize = 200;

fn both(house: &House, asked: &Asked) -> Result<[RunRecord; 2], Refused> {
    let run = |name: &str| Ok::<_, Refused>(house.index.whole(&*house.index.run(asked.want(name)?)?));
    Ok([run("old")?, run("new")?])
}

/// `/api/compare?old=&new=`
pub(crate) fn runs(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let [old, new] = both(house, asked)?;
    let difference = of_keys(house.store(), &old, &new);
    let stages: Vec<Value> = difference
        .stages
        .iter()
        .map(|stage| {
            let because: Vec<String> = stage.because.iter().map(Reason::to_string).collect();
            json!({ "stage": stage.stage, "keys": stage.keys, "because": because })
        })
        .collect();
    let told = |name: &str| house.index.run(name).map(|run| row(house, &run));
    Ok(json!({
        "old": told(&old.run)?,
        "new": told(&new.run)?,
        "seed": difference.seed,
        "pipeline": difference.pipeline,
        "only_old": difference.only_old,
        "only_new": difference.only_new,
        "equal": difference.equal,
        "stages": stages,
    }))
}

/// `/api/compare/stage?old=&new=&stage=`
pub(crate) fn stage(house: &House, asked: &Asked) -> Result<Value, Refused> {
    let name = asked.want("stage")?;
    let records = both(house, asked)?.map(|run| run.keys.get(name).and_then(|key| house.index.key(key)));
    let [Some(old), Some(new)] = &records else {
        return Err(Refused::unknown("the stage is not done in both runs"));
    };
    [old, new].into_iter().try_for_each(|record| undamaged(house, record))?;
    let mut ports = outputs(house.store(), old, new);
    for values in ports.iter_mut().filter_map(|port| port.values.as_mut()) {
        values.changed.truncate(VALUES);
    }
    let seconds = [old, new].map(|record: &Arc<_>| record.seconds);
    Ok(json!({ "stage": name, "ports": ports, "seconds": seconds }))
}

/// Fails where a table whose values are compared is damaged. Reading it would move it out of the store, and nothing that
/// a page asks for changes the store.
fn undamaged(house: &House, record: &KeyRecord) -> Result<(), Refused> {
    for (port, digest) in &record.outputs {
        let small = record.rows.get(port).is_some_and(|rows| *rows <= SMALL_TABLE);
        if small
            && house
                .index
                .manifest(digest)
                .is_ok_and(|manifest| manifest.layout == "table")
        {
            house.store().verify(digest)?;
        }
    }
    Ok(())
}
