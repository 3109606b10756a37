//! Two runs over one store: no work is done twice, and whoever stops is overtaken and finds what the other one made.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_engine::store::Store;

use crate::crashes::{RUN, Whole, small, sound, steps};
use crate::sluice::{Sluice, TINY, entries, recipe, wait};

/// A process that a test has started; it does not outlive the test, even if that fails while it is stopped.
struct Started(Child);

impl Started {
    fn send(&self, signal: &str) {
        let sent = Command::new("kill").args([signal, &self.0.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    /// Waits until it is stopped.
    fn until_stopped(&self) {
        let start = Instant::now();
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
            match stat.rsplit_once(") ").unwrap().1.chars().next() {
                Some('T') => return,
                Some('Z') => panic!("it ended before it was stopped"),
                _ => assert!(start.elapsed() < Duration::from_secs(60), "it does not stop: {stat}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The miniature quickstart with a training of a second or two.
fn quickstart() -> (Sluice, Vec<&'static str>) {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    let more = [
        "--json",
        "--workers=1",
        "--set=tiger.max_steps=60",
        "--set=tiger.eval_every=20",
    ];
    (sluice, [&["run", "quickstart.yaml"], &TINY[..], &more].concat())
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str) -> impl Iterator<Item = &'a str> {
    let matching = events.iter().filter(move |event| event["event"] == kind);
    matching.map(|event| event["stage"].as_str().unwrap())
}

#[test]
fn two_runs_share_the_work() {
    let (alone, arguments) = quickstart();
    let whole = Whole::of(&alone, &arguments);
    let (both, _) = quickstart();
    let mut processes = [0, 1].map(|_| {
        let mut command = both.command(&arguments);
        Started(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    });
    for process in &mut processes {
        assert!(wait(&mut process.0, Duration::from_secs(120)).success());
    }
    let journals = both.journals();
    assert_eq!(journals.len(), 2);
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for journal in &journals {
        of_kind(journal, "stage_finished").for_each(|stage| *times.entry(stage).or_default() += 1);
    }
    assert_eq!(
        times.len(),
        alone.journals()[0]
            .iter()
            .filter(|event| event["event"] == "stage_planned")
            .count()
    );
    assert!(times.values().all(|times| *times == 1), "{times:?}");
    let waiting: Vec<&str> = journals
        .iter()
        .flat_map(|journal| of_kind(journal, "stage_waiting"))
        .collect();
    assert!(!waiting.is_empty(), "nobody waited");
    assert!(both.objects() == whole.objects && both.is_tidy());
    sound(&both).unwrap();
}

/// Starts the pipeline and waits until its training is under way.
fn training(sluice: &Sluice, arguments: &[&str]) -> Started {
    let mut a = Started(sluice.command(arguments).stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(a.0.stdout.take().unwrap()).lines();
    let started = |line: &str| line.contains("stage_progress") && line.contains("\"tiger\"");
    assert!(lines.any(|line| started(&line.unwrap())), "the training did not start");
    // Somebody has to go on reading.
    std::thread::spawn(move || lines.count());
    a
}

/// Nobody waits for the lease of a process of this machine that is gone.
#[test]
fn a_killed_owner_is_overtaken_at_once() {
    let (sluice, mut arguments) = quickstart();
    arguments.extend(["--lease=1h", "--checkpoint-every=20ms"]);
    let long = [
        &arguments[..],
        &["--set=tiger.max_steps=100000", "--set=tiger.patience=100000"],
    ]
    .concat();
    let mut a = training(&sluice, &long);
    let mut b = sluice.command(&long);
    let mut b = Started(b.stderr(Stdio::null()).spawn().unwrap());
    let mut lines = BufReader::new(b.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("stage_waiting") && line.contains("\"tiger\"")));
    a.send("-KILL");
    let start = Instant::now();
    wait(&mut a.0, Duration::from_secs(30));
    assert!(lines.any(|line| line.contains("stage_started") && line.contains("\"tiger\"")));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        start.elapsed()
    );
}

/// What a dead process left goes even if its number is used again; what a living one works on stays.
#[test]
fn numbers_of_processes_are_used_again() {
    let sluice = small();
    sluice.succeed(&RUN);
    let mine = Store::attempt_name("under-way");
    let (stamp, rest) = mine.split_once('@').unwrap();
    let earlier = format!("{}.1@{rest}", stamp.split_once('.').unwrap().0);
    for attempt in [&mine, &earlier] {
        std::fs::create_dir(sluice.path(".sluice/tmp").join(attempt)).unwrap();
    }
    sluice.succeed(&RUN);
    assert_eq!(
        entries(&sluice.path(".sluice/tmp")),
        [sluice.path(".sluice/tmp").join(&mine)]
    );
}

/// Stopped in the middle of a training, overtaken, and woken up.
#[test]
fn a_stopped_owner_is_overtaken() {
    let (alone, mut arguments) = quickstart();
    arguments.push("--lease=1s");
    let whole = Whole::of(&alone, &arguments);
    let (sluice, _) = quickstart();
    let mut a = training(&sluice, &arguments);
    a.send("-STOP");
    a.until_stopped();

    // Those who only look do not wait.
    let plan = sluice.succeed(&[&["plan", "quickstart.yaml"], &TINY[..]].concat());
    let show = sluice.succeed(&["show", "sids"]);
    assert!(
        plan.seconds < 1.0 && show.seconds < 1.0,
        "{} s, {} s",
        plan.seconds,
        show.seconds
    );

    let b = sluice.succeed(&arguments);
    assert!(of_kind(&b.events("stage_waiting"), "stage_waiting").any(|stage| stage == "tiger"));
    assert!(
        b.ran().contains("tiger") && b.ran().contains("metrics"),
        "{:?}",
        b.ran()
    );
    assert!(!b.ran().contains("sids"), "{:?}", b.ran());
    assert!(sluice.objects() == whole.objects);

    let records = sluice.records();
    a.send("-CONT");
    assert!(wait(&mut a.0, Duration::from_secs(60)).success());
    let journals = sluice.journals();
    let lost: Vec<&str> = of_kind(&journals[0], "stage_lost").collect();
    assert_eq!(lost, ["tiger"]);
    assert!(sluice.records() == records, "the late one changed a record");
    assert!(sluice.objects() == whole.objects && sluice.is_tidy());
}

/// Stopped at every kind of step of a publication, also after the last look at the lease.
#[test]
fn an_owner_stopped_while_it_publishes_is_overtaken() {
    let whole = Whole::of(&small(), &RUN);
    let steps = steps(&small(), &RUN);
    let nth = |name: &str, start: &str, n: usize| {
        let matching = steps
            .iter()
            .enumerate()
            .filter(|(_, (step, path))| step == name && path.starts_with(start));
        1 + matching.map(|(index, _)| index).nth(n).unwrap()
    };
    let ends: Vec<(&str, usize)> = vec![
        // Of the streaming group at the start, whose other stages are not published yet.
        ("artifact", nth("rename", "objects", 0)),
        ("key", nth("link", "keys", 0)),
        ("key", nth("link", "keys", 2)),
        // Of stages at the end.
        ("artifact", nth("rename", "objects", 7)),
        ("key", nth("link", "keys", 6)),
        ("lease", nth("remove", "leases", 6)),
    ];
    std::thread::scope(|scope| {
        for (what, step) in ends {
            let whole = &whole;
            scope.spawn(move || stopped_at(what, step, whole));
        }
    });
}

fn stopped_at(what: &str, step: usize, whole: &Whole) {
    let sluice = small();
    let mut command = sluice.command(&RUN);
    command
        .env("SLUICE_FAULT", format!("stop@{step}"))
        .stdout(Stdio::null());
    let mut a = Started(command.spawn().unwrap());
    a.until_stopped();
    let b = sluice.succeed(&[&RUN[..], &["--lease", "1s"]].concat());
    assert!(sluice.objects() == whole.objects, "{what}@{step}: {}", b.err);
    let records = sluice.records();
    a.send("-CONT");
    let status = wait(&mut a.0, Duration::from_secs(60));
    let told = std::io::read_to_string(a.0.stderr.take().unwrap()).unwrap();
    match status.code() {
        Some(0) => {}
        // Others read rows of an attempt that does not count.
        Some(4) => assert!(
            told.contains("[overtaken]") && told.contains("again"),
            "{what}@{step}: {told}"
        ),
        other => panic!("{what}@{step}: exit {other:?}: {told}"),
    }
    assert!(
        sluice.records() == records,
        "{what}@{step}: the late one changed a record"
    );
    assert!(
        sluice.objects() == whole.objects,
        "{what}@{step}: the late one changed an artifact"
    );
    assert!(sluice.is_tidy(), "{what}@{step}");
    sound(&sluice).unwrap();
}
