//! Runs the real binary in a folder of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with files, pipelines and a store (`.sluice`), which is also the data root.
pub struct Sluice {
    folder: TempDir,
}

/// What a command did.
pub struct Done {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it told on stderr.
    pub err: String,
    /// Wall-clock seconds of the process.
    pub seconds: f64,
}

impl Sluice {
    /// An empty folder.
    pub fn new() -> Self {
        Sluice {
            folder: TempDir::new().unwrap(),
        }
    }

    /// A folder with files.
    pub fn with(files: &[(&str, &str)]) -> Self {
        let sluice = Sluice::new();
        files.iter().for_each(|(name, text)| sluice.write(name, text));
        sluice
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// The binary, about to run in the folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("SLUICE_DATA", ".")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Done {
        finish(self.command(arguments))
    }

    /// Runs the binary to its end, which must be a good one.
    pub fn succeed(&self, arguments: &[&str]) -> Done {
        let done = self.run(arguments);
        assert_eq!(done.code, 0, "{arguments:?}\n{}", done.err);
        done
    }

    /// The newest run's record of a stage.
    pub fn record(&self, stage: &str) -> Value {
        let mut runs: Vec<PathBuf> = entries(&self.path(".sluice/runs"));
        runs.sort();
        let text = std::fs::read_to_string(runs.last().unwrap().join("run.json")).unwrap();
        let run: Value = serde_json::from_str(&text).unwrap();
        let key = run["keys"][stage].as_str().unwrap_or_else(|| panic!("no stage {stage} in {text}"));
        let record = std::fs::read_to_string(self.path(&format!(".sluice/keys/{key}.json"))).unwrap();
        serde_json::from_str(&record).unwrap()
    }

    /// Rows of an output in the newest run.
    pub fn rows(&self, stage: &str, port: &str) -> u64 {
        self.record(stage)["rows"][port].as_u64().unwrap()
    }

    /// Files of attempts.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        files(&self.path(".sluice/tmp"))
    }

    /// Operators that have a published key.
    pub fn published(&self) -> BTreeSet<String> {
        entries(&self.path(".sluice/keys"))
            .iter()
            .map(|path| {
                let record: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
                record["preimage"]["operator"].as_str().unwrap().to_string()
            })
            .collect()
    }

    /// Every file of every artifact but its manifest, which tells times: name and content.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(".sluice/objects");
        files(&root)
            .into_iter()
            .filter(|path| path.file_name().is_none_or(|name| name != "manifest.json"))
            .map(|path| {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().to_string();
                (name, std::fs::read(&path).unwrap())
            })
            .collect()
    }
}

impl Done {
    /// Events of a kind, from `--json`; every line must be one.
    pub fn events(&self, kind: &str) -> Vec<Value> {
        self.out
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}")))
            .filter(|event| event["event"] == kind)
            .collect()
    }

    /// Stages that ran, from `--json`.
    pub fn ran(&self) -> BTreeSet<String> {
        let stage = |event: &Value| event["stage"].as_str().unwrap().to_string();
        self.events("stage_finished").iter().map(stage).collect()
    }

    /// Stages whose inputs came out equal, from `--json`.
    pub fn cut_off(&self) -> BTreeSet<String> {
        let events = self.events("stage_reused");
        let stage = |event: &Value| event["stage"].as_str().unwrap().to_string();
        events
            .iter()
            .filter(|event| event["cut_off"] == true)
            .map(stage)
            .collect()
    }
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Done {
    let start = Instant::now();
    let output = command.output().unwrap();
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
        seconds: start.elapsed().as_secs_f64(),
    }
}

/// Waits for a process; one that takes too long is killed and fails the test.
pub fn wait(child: &mut Child, limit: Duration) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > limit {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("still running after {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The quickstart in miniature: the changes that make it take a few seconds.
pub const TINY: [&str; 10] = [
    "--set=shop.users=400",
    "--set=shop.items=200",
    "--set=tiger.d_model=32",
    "--set=tiger.layers=1",
    "--set=tiger.batch_size=64",
    "--set=tiger.max_steps=20",
    "--set=tiger.eval_every=10",
    "--set=tiger.valid_users=50",
    "--set=tiger_metrics.resamples=100",
    "--set=generated.beam_width=10",
];

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(path)
}

/// The text of a recipe.
pub fn recipe(name: &str) -> String {
    std::fs::read_to_string(repository("pipelines").join(name)).unwrap()
}

/// The folder of the real data, or `None` with a printed reason.
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
pub fn real_data() -> Option<PathBuf> {
    let beside = || repository("../shared/data");
    let folder = std::env::var_os("SLUICE_DATA").map_or_else(beside, PathBuf::from);
    if folder.join("README.md").is_file() {
        return Some(std::path::absolute(folder).unwrap());
    }
    eprintln!("skipped: no data at \"{}\"; set SLUICE_DATA", folder.display());
    None
}

/// Entries of a folder; none if there is no such folder.
pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let (folders, mut found): (Vec<PathBuf>, Vec<PathBuf>) =
        entries(folder).into_iter().partition(|path| path.is_dir());
    found.extend(folders.iter().flat_map(|folder| files(folder)));
    found
}

/// The binary of the same build: tests are in `target/PROFILE/deps`, it is in `target/PROFILE`.
fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let name = format!("sluice{}", std::env::consts::EXE_SUFFIX);
    let path = test.parent().unwrap().parent().unwrap().join(name);
    assert!(
        path.is_file(),
        "no binary at \"{}\": \"cargo build --release -p sluice\", or test the whole workspace",
        path.display()
    );
    path
}
