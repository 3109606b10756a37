//! The store on a file system that loses power at every step: whatever survives, no key is visible whose artifacts are
//! not whole, and nothing that a finished publication promised is lost.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Map;

use super::*;
use crate::disk::lossy::Lossy;
use crate::key::KEY_FORMAT;

/// What the stages of the model write: two share their content, one has two files.
const STAGES: [(&str, &[(&str, &str)]); 4] = [
    ("a", &[("part-0", "rows of a"), ("part-1", "more rows of a")]),
    ("b", &[("part-0", "equal rows")]),
    ("c", &[("part-0", "equal rows")]),
    ("d", &[("part-0", "rows of d")]),
];

fn record(stage: &str, digest: &str) -> KeyRecord {
    let preimage = Preimage {
        format: KEY_FORMAT,
        operator: stage.to_string(),
        version: 1,
        config: Map::new(),
        seed: None,
        files: BTreeMap::new(),
        inputs: BTreeMap::new(),
    };
    KeyRecord {
        key: preimage.key(),
        preimage,
        outputs: BTreeMap::from([("out".to_string(), digest.to_string())]),
        rows: BTreeMap::new(),
        bytes: 0,
        seconds: 1.0,
        busy_seconds: 1.0,
        notes: Map::new(),
        run: "model".into(),
        usage: Usage::default(),
        accepted: None,
    }
}

/// What a run does: open, and for every stage that has no record write, publish, publish the record, discard.
/// Returns the keys whose publication came to its end; stops at the first failure, as a run does.
fn work(disk: &Arc<Lossy>, run: usize) -> Vec<String> {
    let mut promised = Vec::new();
    let mut all = || -> Result<()> {
        let store = Store::open_on(Path::new("/store"), disk.clone())?;
        for (stage, files) in STAGES {
            let key = record(stage, "").key;
            if store.record(&key).is_some() {
                promised.push(key);
                continue;
            }
            let attempt = format!("{run}-{stage}");
            let folder = store.attempt_folder(&attempt).join("out");
            let io = |error| Error::io("write", &folder, &error);
            disk.create_folder(&folder).map_err(io)?;
            let mut entries = Vec::new();
            for (name, text) in files {
                store.write_synced(&folder.join(name), text)?;
                entries.push(FileEntry {
                    name: name.to_string(),
                    bytes: text.len() as u64,
                    digest: blake3::hash(text.as_bytes()).to_hex().to_string(),
                    rows: 0,
                });
            }
            let mut made = record(stage, "");
            let manifest = Manifest {
                digest: String::new(),
                layout: "table".into(),
                schema: Vec::new(),
                rows: 0,
                files: entries,
                port: "out".into(),
                preimage: made.preimage.clone(),
                stage: stage.into(),
                run: "model".into(),
                seconds: 1.0,
                notes: Map::new(),
                software: String::new(),
            };
            made.outputs.insert("out".into(), store.publish(&folder, manifest)?);
            store.publish_record(&made, &attempt, false)?;
            promised.push(key);
            store.discard(&attempt);
        }
        Ok(())
    };
    let _ = all();
    promised
}

/// Every key that is visible stands for artifacts with the content that was written.
fn check(disk: &Arc<Lossy>) -> Vec<String> {
    let Ok(store) = Store::open_on(Path::new("/store"), disk.clone()) else {
        return Vec::new();
    };
    let mut seen = Vec::new();
    for (stage, files) in STAGES {
        let Some(found) = store.record(&record(stage, "").key) else {
            continue;
        };
        for (name, text) in files {
            let path = store.object(&found.outputs["out"]).join(name);
            assert_eq!(disk.read(&path).unwrap(), text.as_bytes(), "{stage}/{name}");
        }
        seen.push(found.key);
    }
    seen
}

#[test]
fn no_loss_of_power_shows_half_a_result_or_loses_a_whole_one() {
    let whole = Arc::new(Lossy::new(u64::MAX));
    assert_eq!(work(&whole, 0).len(), STAGES.len());
    let steps = whole.steps();
    let mut losses = 0;
    for until in 1..=steps + 1 {
        for seed in 0..24 {
            let disk = Arc::new(Lossy::new(until));
            let promised = work(&disk, 0);
            let survived = Arc::new(disk.after_power_loss(seed));
            let seen = check(&survived);
            for key in &promised {
                assert!(seen.contains(key), "lost {key} at step {until}, seed {seed}");
            }
            // A second run finishes, whatever is left, and a third has nothing to do.
            assert_eq!(work(&survived, 1).len(), STAGES.len(), "step {until}, seed {seed}");
            assert_eq!(check(&survived).len(), STAGES.len(), "step {until}, seed {seed}");
            let before = survived.steps();
            work(&survived, 2);
            assert_eq!(survived.steps(), before, "nothing to do takes no step");
            losses += 1;
        }
    }
    assert!(steps > 40 && losses > 1000, "{steps} steps, {losses} losses of power");
}
