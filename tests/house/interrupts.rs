//! A run that is stopped leaves what is finished and nothing else, and the same command goes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::sluice::{Sluice, TINY, files, recipe, wait};

/// Starts a training that would take long, and waits until it is under way.
fn training() -> (Sluice, Child) {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    let long = ["--set=tiger.max_steps=1000000", "--set=tiger.patience=100000", "--json"];
    let arguments = [&["run", "quickstart.yaml"], &TINY[..], &long].concat();
    let mut child = sluice.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
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

/// The newest note of the training about where it went on.
fn resumed(sluice: &Sluice) -> u64 {
    sluice.record("tiger")["notes"]["resumed_from_step"]
        .as_u64()
        .unwrap_or(0)
}

#[test]
fn a_killed_training_goes_on_from_its_last_state() {
    let quickstart = || Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    let arguments = |steps: &'static str| {
        let more = [
            "--json",
            "--set=tiger.eval_every=50",
            "--set=tiger.patience=100",
            "--checkpoint-every=100ms",
            steps,
        ];
        [&["run", "quickstart.yaml"], &TINY[..], &more].concat()
    };
    let (short, long) = (
        arguments("--set=tiger.max_steps=200"),
        arguments("--set=tiger.max_steps=300"),
    );

    let sluice = quickstart();
    let mut command = sluice.command(&short);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let states = || files(&sluice.path(".sluice/checkpoints")).into_iter();
    while !states().any(|path| path.extension().is_some_and(|end| end == "state")) {
        assert!(start.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    send("-KILL", &child);
    assert_eq!(wait(&mut child, Duration::from_secs(30)).code(), None);
    assert!(!sluice.published().contains("train_tiger"));
    let again = sluice.succeed(&short);
    assert!(
        again.ran().contains("tiger") && !again.ran().contains("sids"),
        "{:?}",
        again.ran()
    );
    assert!(
        (1..200).contains(&resumed(&sluice)),
        "it went on from step {}",
        resumed(&sluice)
    );

    let whole = quickstart();
    whole.succeed(&short);
    assert_eq!(resumed(&whole), 0);
    assert!(sluice.objects() == whole.objects());

    // A longer training goes on where the shorter one ended.
    sluice.succeed(&long);
    assert_eq!(resumed(&sluice), 200);
    let longer = quickstart();
    longer.succeed(&long);
    assert_eq!(resumed(&longer), 0);
    let (objects, wanted) = (sluice.objects(), longer.objects());
    assert!(wanted.iter().all(|(name, bytes)| objects.get(name) == Some(bytes)));
    assert!(sluice.is_tidy() && longer.is_tidy());
}
