//! Disks that are full, cannot be written or lose bits: what the run says, and that the next one heals the store.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::crashes::{RUN, Whole, faulty, history, small, sound, steps};
use crate::sluice::{Done, Sluice, TINY, files, recipe};

/// A file system mounted for a test.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` with a printed reason where this user may not mount.
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn new(arguments: &[&str], at: &Path) -> Option<Mounted> {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(arguments).arg(at).output();
        let reason = match done {
            Ok(done) if done.status.success() => return Some(Mounted(at.to_path_buf())),
            Ok(done) => String::from_utf8_lossy(&done.stderr).trim().to_string(),
            Err(error) => error.to_string(),
        };
        eprintln!("skipped: cannot mount here: {reason}");
        None
    }

    fn again(&self, options: &str) {
        let done = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(&self.0)
            .status();
        assert!(done.unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn refused(done: &Done, code: &str, what: &str) {
    assert_eq!(done.code, 4, "{what}: {}", done.err);
    assert!(done.err.contains(&format!("error[{code}]")), "{what}: {}", done.err);
    assert!(done.err.contains("hint:"), "{what}: {}", done.err);
    assert!(!done.err.contains("internal"), "{what}: {}", done.err);
}

fn heals(sluice: &Sluice, arguments: &[&str], whole: &Whole, what: &str) {
    sound(sluice).unwrap_or_else(|reason| panic!("{what}: {reason}"));
    sluice.succeed(arguments);
    assert!(sluice.objects() == whole.objects, "{what}: other bytes");
    assert!(sluice.is_tidy(), "{what}: {:?}", sluice.unfinished());
    history(sluice).unwrap_or_else(|reason| panic!("{what}: {reason}"));
}

#[test]
fn a_disk_that_fills_up_or_turns_read_only_is_told() {
    let whole = Whole::of(&small(), &RUN);
    let steps = steps(&small(), &RUN).len();
    for (kind, code) in [("full", "disk-full"), ("denied", "read-only")] {
        // The last steps are those of the record of the run; how many come before them differs by a few.
        for step in (1..steps - 10).step_by(23) {
            let sluice = small();
            let what = format!("{kind}@{step}");
            refused(&faulty(&sluice, &RUN, &what), code, &what);
            heals(&sluice, &RUN, &whole, &what);
        }
    }
}

fn quickstart() -> (Sluice, Vec<&'static str>) {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    (
        sluice,
        [&["run", "quickstart.yaml", "--json", "--workers=1"], &TINY[..]].concat(),
    )
}

#[test]
fn a_store_on_a_full_disk_goes_on_when_there_is_room() {
    let (alone, arguments) = quickstart();
    let whole = Whole::of(&alone, &arguments);
    let (sluice, _) = quickstart();
    // From no room for the first part to no room for the model and what is made with it.
    let Some(mounted) = Mounted::new(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"], &sluice.path(".sluice")) else {
        return;
    };
    for size in ["64k", "256k", "512k", "1m"] {
        mounted.again(&format!("size={size}"));
        refused(&sluice.run(&arguments), "disk-full", size);
        sound(&sluice).unwrap();
    }
    mounted.again("size=64m");
    heals(&sluice, &arguments, &whole, "a real disk");
}

#[test]
fn a_store_that_cannot_be_written_can_be_read() {
    let sluice = small();
    sluice.succeed(&RUN);
    let store = sluice.path(".sluice");
    let Some(mounted) = Mounted::new(&["--bind", &store.to_string_lossy()], &store) else {
        return;
    };
    mounted.again("bind,ro");
    let plan = sluice.succeed(&["plan", "crash.yaml"]);
    assert!(plan.out.contains("0 to run"), "{}", plan.out);
    sluice.succeed(&["show", "metrics"]);
    refused(&sluice.run(&RUN), "read-only", "a mounted store");
    mounted.again("bind,rw");
    assert!(sluice.succeed(&RUN).ran().is_empty());
    assert!(sluice.is_tidy());
}

/// The largest file of an output.
fn part(sluice: &Sluice, stage: &str, port: &str) -> PathBuf {
    let digest = sluice.record(stage)["outputs"][port].as_str().unwrap().to_string();
    let mut parts = files(&sluice.path(".sluice/objects").join(digest));
    parts.retain(|path| path.file_name().is_some_and(|name| name != "manifest.json"));
    parts
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap()
}

#[test]
fn a_truncated_part_is_made_anew() {
    let sluice = small();
    let whole = Whole::of(&sluice, &RUN);
    let part = part(&sluice, "split", "train");
    let length = part.metadata().unwrap().len();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&part)
        .unwrap()
        .set_len(length / 2)
        .unwrap();
    let plan = sluice.succeed(&["plan", "crash.yaml"]).out;
    let line = plan.lines().find(|line| line.starts_with("split ")).unwrap();
    assert!(line.contains("its artifact is missing"), "{plan}");
    let again = sluice.succeed(&RUN);
    assert_eq!(again.ran().into_iter().collect::<Vec<_>>(), ["split"]);
    assert!(sluice.objects() == whole.objects && sluice.is_tidy());
    assert!(sluice.succeed(&RUN).ran().is_empty());
    sound(&sluice).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// Bits are found when they are read, and what holds them is made again.
fn found(sluice: &Sluice, arguments: &[&str], damaged: &str, port: &str, reader: &str, whole: &Whole) {
    flip(&part(sluice, damaged, port));
    // Nobody reads it: nothing is wrong.
    assert!(sluice.succeed(arguments).ran().is_empty());
    let reading = sluice.run(&[arguments, &["--force", reader]].concat());
    assert_eq!(reading.code, 3, "{}", reading.err);
    assert!(reading.err.contains("error[damaged-artifact]"), "{}", reading.err);
    assert!(reading.err.contains("it was moved out of the store"), "{}", reading.err);
    sound(sluice).unwrap_err();
    let healed = sluice.succeed(arguments);
    assert_eq!(healed.ran().into_iter().collect::<Vec<_>>(), [damaged]);
    assert!(sluice.objects() == whole.objects && sluice.is_tidy());
    sound(sluice).unwrap();
}

#[test]
fn flipped_bits_of_a_table_are_found() {
    let sluice = small();
    let whole = Whole::of(&sluice, &RUN);
    found(&sluice, &RUN, "split", "train", "popular", &whole);
}

#[test]
fn flipped_bits_of_a_model_are_found() {
    let (sluice, arguments) = quickstart();
    let whole = Whole::of(&sluice, &arguments);
    found(&sluice, &arguments, "tiger", "model", "generated", &whole);
}
