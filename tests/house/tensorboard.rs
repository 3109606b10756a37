//! Training curves for TensorBoard: the files that it reads, for every stage that trains.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sluice::{Sluice, TINY, files, recipe};

/// Payloads of the records of an event file. Checksums are tested where they are made.
fn payloads(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut found) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        found.push(rest[12..12 + length].to_vec());
        rest = &rest[12 + length + 4..];
    }
    found
}

/// The time of an event, its first field.
fn wall_time(payload: &[u8]) -> f64 {
    assert_eq!(payload[0], 9);
    f64::from_le_bytes(payload[1..9].try_into().unwrap())
}

fn holds(payload: &[u8], text: &str) -> bool {
    payload.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn every_training_of_a_run_gets_a_folder() {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let run = |more: &[&str]| {
        let done = sluice.succeed(&[&["run", "quickstart.yaml", "--json"], &TINY[..], more].concat());
        done.events("run_started")[0]["run"].as_str().unwrap().to_string()
    };
    let first = run(&[]);
    let said = sluice.succeed(&["tensorboard", "tb"]).out;
    assert_eq!(said, "1 curve; now: tensorboard --logdir tb\n");
    let written = files(&sluice.path("tb"));
    assert_eq!(written.len(), 1, "{written:?}");
    let folder = sluice.path(&format!("tb/{first}/tiger"));
    assert_eq!(written[0].parent(), Some(&*folder));
    assert!(written[0].to_string_lossy().contains("tfevents"));
    let payloads = payloads(&written[0]);
    assert_eq!(payloads.len() as u64, 1 + sluice.rows("tiger", "curve"));
    assert!(holds(&payloads[0], "brain.Event:2"));
    for payload in &payloads[1..] {
        for tag in ["train/loss", "valid/recall_5", "valid/ndcg_5", "learning_rate"] {
            assert!(holds(payload, tag), "no {tag}");
        }
    }
    let times: Vec<f64> = payloads[1..].iter().map(|payload| wall_time(payload)).collect();
    assert!(
        times.is_sorted() && times[0] >= before && times[1] <= now(),
        "{times:?}"
    );

    // The same files again; of every run only what an earlier one does not have.
    let bytes = std::fs::read(&written[0]).unwrap();
    sluice.succeed(&["tensorboard", "tb", "-p", "quickstart.yaml"]);
    assert_eq!(files(&sluice.path("tb")), written);
    assert_eq!(std::fs::read(&written[0]).unwrap(), bytes);
    let second = run(&["--set=popular_metrics.resamples=50"]);
    let third = run(&["--set=tiger.learning_rate=0.001"]);
    let said = sluice.succeed(&["tensorboard", "all", "--all"]).out;
    assert!(said.starts_with("2 curves"), "{said}");
    let exists = |path: String| sluice.path(&path).is_dir();
    assert!(exists(format!("all/{first}/tiger")) && exists(format!("all/{third}/tiger")));
    assert!(!exists(format!("all/{second}")));
    sluice.succeed(&["tensorboard", "one", "--run", &second]);
    assert!(exists(format!("one/{second}/tiger")));
    // A reused stage has the times of the run that made it.
    let one = files(&sluice.path("one"));
    assert_eq!(std::fs::read(&one[0]).unwrap(), bytes);
}

#[test]
fn a_run_without_trainings_has_no_curves() {
    let sluice = Sluice::with(&[(
        "p.yaml",
        "pipeline: p\nstages:\n  shop: { op: synthesize, users: 20, items: 24, topics: 2 }\n",
    )]);
    sluice.succeed(&["run", "p.yaml", "--quiet"]);
    let refused = sluice.run(&["tensorboard", "tb"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    assert!(refused.err.contains("has no training curve"), "{}", refused.err);
    assert!(!sluice.path("tb").exists());
}
