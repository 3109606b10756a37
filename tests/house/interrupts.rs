//! A run that is stopped leaves what is finished and nothing else, and the same command goes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use crate::sluice::{Sluice, TINY, recipe, wait};

/// Starts a training that would take long, and waits until it is under way.
fn training() -> (Sluice, Child) {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    let long = ["--set=tiger.max_steps=1000000", "--set=tiger.patience=100000", "--json"];
    let arguments = [&["run", "quickstart.yaml"], &TINY[..], &long].concat();
    let mut child = sluice
        .command(&arguments)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = lines.any(|line| {
        let line = line.unwrap();
        line.contains("stage_progress") && line.contains("\"tiger\"")
    });
    assert!(started, "the training did not start");
    // Somebody has to go on reading.
    std::thread::spawn(move || lines.count());
    (sluice, child)
}

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// The run goes on with what was published, and ends.
fn goes_on(sluice: &Sluice) {
    let again = sluice.succeed(&[&["run", "quickstart.yaml", "--json"], &TINY[..]].concat());
    let ran = again.ran();
    assert!(ran.contains("tiger") && ran.contains("metrics"), "{ran:?}");
    assert!(!ran.contains("sids") && !ran.contains("tokens"), "{ran:?}");
    assert!(sluice.unfinished().is_empty(), "{:?}", sluice.unfinished());
    assert!(crate::sluice::entries(&sluice.path(".sluice/tmp")).is_empty());
}

#[test]
fn an_interrupt_ends_a_training_at_once() {
    let (sluice, mut child) = training();
    let start = Instant::now();
    send("-INT", &child);
    let status = wait(&mut child, Duration::from_secs(30));
    assert_eq!(status.code(), Some(130));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "it took {:?}",
        start.elapsed()
    );
    assert!(sluice.unfinished().is_empty(), "{:?}", sluice.unfinished());
    let published = sluice.published();
    assert!(
        published.contains("tokenize_sequences") && !published.contains("train_tiger"),
        "{published:?}"
    );
    goes_on(&sluice);
}

#[test]
fn a_killed_training_leaves_no_key() {
    let (sluice, mut child) = training();
    send("-KILL", &child);
    assert_eq!(wait(&mut child, Duration::from_secs(30)).code(), None);
    assert!(!sluice.published().contains("train_tiger"));
    goes_on(&sluice);
}
