//! The kill matrix: a run is killed before every step that it takes on disk, in the middle of every write, and at random
//! moments; what is visible then is whole, and the same command goes on and ends with the same bytes.
//!
//! `SLUICE_NIGHTLY=1 cargo test --release --workspace --test house kill_matrix -- --nocapture` takes all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use sluice_engine::random::Random;
use sluice_engine::store::Store;

use crate::sluice::{Done, Sluice, TINY, entries, finish, recipe};

/// Runs side by side: most of the time of such a small run is spent waiting.
const SIDE_BY_SIDE: usize = 4;

/// Of how many points one is taken when it is not night.
const EVERY: usize = 7;

/// Chooses points and moments.
const SEED: u64 = 1;

/// Signal 9.
const KILL: i32 = 9;

/// Seven stages: streamed, partitioned, iterated and whole ones, with one, two and three outputs.
pub const PIPELINE: &str = "pipeline: crash
stages:
  rows:    { op: ingest_interactions, path: rows.csv }
  clean:   { op: dedup, input: rows }
  core:    { op: filter_kcore, input: clean, k: 2 }
  order:   { op: audit_order, input: core }
  split:   { op: split_leave_one_out, input: core }
  popular: { op: rank_popularity, inputs: { train: split.train, histories: split.test, items: core } }
  metrics: { op: score_ranking, inputs: { ranked: popular, targets: split.test, train: split.train, items: core } }
";

/// The command of most runs here.
pub const RUN: [&str; 5] = ["run", "crash.yaml", "--json", "--workers", "1"];

/// Twelve users with six of nine items each, a duplicate, and a user with one item of his own.
pub fn small() -> Sluice {
    let mut rows = "user_id,item_id,timestamp\n".to_string();
    for user in 0..12 {
        for item in 0..6 {
            let which = (user * 5 + item * (1 + user % 3)) % 9;
            rows.push_str(&format!("u{user},i{which},{}\n", 1000 + user * 10 + item));
        }
    }
    rows.push_str("u0,i0,1000\nlone,own,5000\n");
    Sluice::with(&[("crash.yaml", PIPELINE), ("rows.csv", &rows)])
}

/// Runs a command with something that goes wrong.
pub fn faulty(sluice: &Sluice, arguments: &[&str], fault: &str) -> Done {
    let mut command = sluice.command(arguments);
    command.env("SLUICE_FAULT", fault);
    finish(command)
}

/// The steps that a run takes on disk: what, and on which path of the store.
pub fn steps(sluice: &Sluice, arguments: &[&str]) -> Vec<(String, String)> {
    let done = faulty(sluice, arguments, "trace:steps");
    assert_eq!(done.code, 0, "{}", done.err);
    let text = std::fs::read_to_string(sluice.path("steps")).unwrap();
    let step = |line: &str| {
        let (name, path) = line.split_once(' ').unwrap();
        let inside = path.split(".sluice/").nth(1).unwrap_or_default();
        (name.to_string(), inside.to_string())
    };
    text.lines().map(step).collect()
}

/// What a run that nothing stops leaves.
pub struct Whole {
    pub objects: BTreeMap<String, Vec<u8>>,
    keys: BTreeSet<String>,
}

impl Whole {
    pub fn of(sluice: &Sluice, arguments: &[&str]) -> Whole {
        sluice.succeed(arguments);
        Whole {
            objects: sluice.objects(),
            keys: sound(sluice).unwrap(),
        }
    }
}

/// The published keys, if everything that is visible is whole.
pub fn sound(sluice: &Sluice) -> Result<BTreeSet<String>, String> {
    let root = sluice.path(".sluice");
    let Ok(store) = Store::existing(&root) else {
        return Ok(BTreeSet::new());
    };
    for digest in store.objects() {
        store.verify(&digest).map_err(|error| error.to_string())?;
    }
    if store.keys().len() != entries(&root.join("keys")).len() {
        return Err("something in keys/ is no record".into());
    }
    for key in store.keys() {
        let record = store
            .known(&key)
            .ok_or_else(|| format!("the record of {key} cannot be read"))?;
        if record.preimage.key() != key {
            return Err(format!("the record of {key} is that of another key"));
        }
        for digest in record.outputs.values() {
            store.verify(digest).map_err(|error| format!("of {key}: {error}"))?;
        }
    }
    for run in entries(&root.join("runs")) {
        let record = run.join("run.json");
        if record.exists() && serde_json::from_slice::<Value>(&std::fs::read(record).unwrap()).is_err() {
            return Err(format!("the record of run {} cannot be read", run.display()));
        }
    }
    Ok(store.keys().into_iter().collect())
}

/// Keys of the stages that a run finished, as its events tell.
fn finished(events: &[Value]) -> BTreeSet<String> {
    let finished = events.iter().filter(|event| event["event"] == "stage_finished");
    finished
        .map(|event| event["key"].as_str().unwrap().to_string())
        .collect()
}

/// What came of all kills.
#[derive(Default)]
struct Tally {
    points: AtomicUsize,
    kills: AtomicUsize,
    corrupt: Mutex<Vec<String>>,
    lost: Mutex<Vec<String>>,
}

impl Tally {
    /// A run was killed, or was done before. Returns the keys that must not be run again.
    fn killed(&self, sluice: &Sluice, point: &str) -> BTreeSet<String> {
        self.kills.fetch_add(1, Ordering::Relaxed);
        let keys = sound(sluice).unwrap_or_else(|reason| {
            self.corrupt.lock().unwrap().push(format!("{point}: {reason}"));
            BTreeSet::new()
        });
        let told = sluice
            .journals()
            .last()
            .map(|events| finished(events))
            .unwrap_or_default();
        if !told.is_subset(&keys) {
            self.lost
                .lock()
                .unwrap()
                .push(format!("{point}: a stage is told to be finished and has no key"));
        }
        keys
    }

    /// The command is given again, and nothing stops it.
    fn end(&self, sluice: &Sluice, arguments: &[&str], kept: &BTreeSet<String>, whole: &Whole, point: &str) {
        let again = sluice.run(arguments);
        let mut corrupt: Vec<String> = Vec::new();
        if again.code != 0 {
            corrupt.push(format!("exit {}: {}", again.code, again.err));
        } else {
            let ran = finished(&again.events("stage_finished"));
            let wanted: BTreeSet<String> = whole.keys.difference(kept).cloned().collect();
            if ran != wanted {
                let text = format!(
                    "{point}: ran {} stages, wanted {}: {ran:?} {wanted:?}",
                    ran.len(),
                    wanted.len()
                );
                self.lost.lock().unwrap().push(text);
            }
        }
        if sluice.objects() != whole.objects {
            corrupt.push("objects differ".into());
        }
        corrupt.extend(sound(sluice).err());
        if !sluice.is_tidy() {
            let left: Vec<_> = ["tmp", "leases"]
                .iter()
                .flat_map(|name| entries(&sluice.path(".sluice").join(name)))
                .collect();
            corrupt.push(format!("left behind: {left:?}"));
        }
        corrupt.extend(history(sluice).err());
        let corrupt = corrupt.into_iter().map(|text| format!("{point}: {text}"));
        self.corrupt.lock().unwrap().extend(corrupt);
    }

    /// Killed before a step, then perhaps killed again, then not.
    fn point(&self, fresh: fn() -> Sluice, faults: &[String], arguments: &[&str], whole: &Whole) {
        self.points.fetch_add(1, Ordering::Relaxed);
        let sluice = fresh();
        let point = format!("{} {faults:?}", arguments.join(" "));
        let mut kept = BTreeSet::new();
        for fault in faults {
            let done = faulty(&sluice, arguments, fault);
            // Steps are not quite the same in every run: one of the last may never come, or it needs fewer.
            if done.code == 0 {
                kept = sound(&sluice).unwrap();
                continue;
            }
            assert_eq!(done.signal, Some(KILL), "{point}: {}", done.err);
            kept = self.killed(&sluice, &point);
        }
        self.end(&sluice, arguments, &kept, whole, &point);
    }

    /// Killed at random moments, again and again, then not.
    fn moments(&self, seed: u64, times: usize, seconds: f64, whole: &Whole) {
        self.points.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::new(seed, "kill_matrix", "moments").row(0);
        let sluice = quickstart();
        let arguments = miniature();
        let mut kept = BTreeSet::new();
        for _ in 0..times {
            let mut command = sluice.command(&arguments);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let moment = Duration::from_secs_f64(random.unit() * seconds);
            std::thread::sleep(moment);
            child.kill().unwrap();
            if child.wait().unwrap().success() {
                kept = sound(&sluice).unwrap();
                break;
            }
            kept = self.killed(&sluice, &format!("random {seed}, after {moment:?}"));
        }
        self.end(&sluice, &arguments, &kept, whole, &format!("random {seed}"));
    }

    #[expect(clippy::print_stderr, reason = "the figure that the matrix is for")]
    fn tell(self, random: usize) {
        let (corrupt, lost) = (self.corrupt.into_inner().unwrap(), self.lost.into_inner().unwrap());
        let (points, kills) = (self.points.into_inner(), self.kills.into_inner());
        for text in corrupt.iter().chain(&lost) {
            eprintln!("{text}");
        }
        eprintln!(
            "kill matrix: {points} points, {kills} kills, {} corrupt, {} lost",
            corrupt.len(),
            lost.len()
        );
        eprintln!("of them at random moments of a training: {random} kills");
        assert!(corrupt.is_empty() && lost.is_empty());
        assert!(kills * 10 >= points * 9, "most points must be kills");
    }
}

/// The last run is done, and no other is told to be under way.
pub fn history(sluice: &Sluice) -> Result<(), String> {
    let mut runs = entries(&sluice.path(".sluice/runs"));
    runs.sort();
    let last = runs.pop().ok_or("no run")?;
    let state = |run: &Path| {
        let record = std::fs::read(run.join("run.json")).map_err(|error| format!("{}: {error}", run.display()))?;
        let record: Value = serde_json::from_slice(&record).map_err(|error| error.to_string())?;
        Ok::<_, String>(record["state"].as_str().unwrap().to_string())
    };
    match state(&last)?.as_str() {
        "done" => {}
        other => return Err(format!("the last run is {other}")),
    }
    for run in runs {
        // One that was killed after its last word is done.
        if state(&run)? == "running" {
            return Err(format!("run {} is running", run.display()));
        }
    }
    Ok(())
}

fn quickstart() -> Sluice {
    Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))])
}

/// The miniature quickstart, which stores a state of its training every few steps.
fn miniature() -> Vec<&'static str> {
    let more = ["--json", "--workers", "1", "--checkpoint-every", "50ms"];
    [&["run", "quickstart.yaml"], &TINY[..], &more].concat()
}

/// Takes points from a list, some side by side.
fn side_by_side<T: Sync>(list: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                while let Some(item) = list.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(item);
                }
            });
        }
    });
}

/// Every step of a run, and halves of every write. Going on is killed, too: somewhere else each time.
fn points(fresh: fn() -> Sluice, arguments: &[&str]) -> Vec<Vec<String>> {
    let steps = steps(&fresh(), arguments);
    assert!(steps.len() > 100, "{} steps", steps.len());
    let mut points: Vec<Vec<String>> = Vec::new();
    for (index, (name, _)) in steps.iter().enumerate() {
        let step = index + 1;
        let again = 1 + (step * 89) % steps.len();
        points.push(vec![format!("kill@{step}"), format!("kill@{again}")]);
        if ["write", "append", "remove_folder"].contains(&name.as_str()) {
            points.push(vec![format!("torn@{step}")]);
        }
    }
    points
}

#[test]
fn kill_matrix() {
    let nightly = std::env::var_os("SLUICE_NIGHTLY").is_some();
    let tally = Tally::default();
    let tiny = Whole::of(&small(), &RUN);
    if nightly {
        for workers in ["1", "2"] {
            let arguments = ["run", "crash.yaml", "--json", "--workers", workers];
            let points = points(small, &arguments);
            side_by_side(&points, |point| tally.point(small, point, &arguments, &tiny));
        }
    } else {
        let points = points(small, &RUN);
        let chosen: Vec<&Vec<String>> = points.iter().skip(SEED as usize % EVERY).step_by(EVERY).collect();
        side_by_side(&chosen, |point| tally.point(small, &point[..1], &RUN, &tiny));
    }
    // A pipeline with a training: before every seventh step, and at random moments.
    let arguments = miniature();
    let start = Instant::now();
    let whole = Whole::of(&quickstart(), &arguments);
    let seconds = start.elapsed().as_secs_f64() * 1.2;
    if nightly {
        let points: Vec<Vec<String>> = points(quickstart, &arguments).into_iter().step_by(EVERY).collect();
        side_by_side(&points, |point| tally.point(quickstart, point, &arguments, &whole));
    }
    let before = tally.kills.load(Ordering::Relaxed);
    let random = || tally.kills.load(Ordering::Relaxed) - before;
    let wanted = if nightly { 100 } else { 2 };
    // Some moments come after the end: there are more seeds than it takes.
    let seeds: Vec<u64> = (SEED..SEED + 500).collect();
    side_by_side(&seeds, |seed| {
        if random() < wanted {
            tally.moments(*seed, 4, seconds, &whole);
        }
    });
    let random = random();
    assert!(random >= wanted, "{random} kills at random moments");
    tally.tell(random);
}
