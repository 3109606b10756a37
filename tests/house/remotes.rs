//! Results through a remote store, with the real binary: a folder, and a bucket of a real S3 server.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::reruns::{PIPELINE, rows};
use crate::s3::{S3Server, SECRET};
use crate::sluice::{Done, Sluice, entries, files, finish, wait};

/// A remote store, and where its files are on disk.
struct There {
    url: String,
    folder: PathBuf,
    server: Option<S3Server>,
}

impl There {
    /// A folder beside the store.
    fn folder(sluice: &Sluice) -> Self {
        There {
            url: "shared/results".to_string(),
            folder: sluice.path("shared/results"),
            server: None,
        }
    }

    /// A bucket.
    fn bucket() -> Self {
        let server = S3Server::start();
        There {
            url: server.url(),
            folder: server.folder(),
            server: Some(server),
        }
    }

    fn command(&self, sluice: &Sluice, command: &str, more: &[&str]) -> Command {
        let command = sluice.command(&[&[command, &self.url], more].concat());
        match &self.server {
            Some(server) => server.known_to(command),
            None => command,
        }
    }

    fn run(&self, sluice: &Sluice, command: &str, more: &[&str]) -> Done {
        finish(self.command(sluice, command, more))
    }

    fn succeed(&self, sluice: &Sluice, command: &str, more: &[&str]) -> Done {
        let done = self.run(sluice, command, more);
        assert_eq!(done.code, 0, "{command} {more:?}\n{}", done.err);
        done
    }

    /// The record of a stage's key, as it is there.
    fn record(&self, operator: &str) -> (PathBuf, Value) {
        let records = entries(&self.folder.join("keys")).into_iter().map(|path| {
            let record = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            (path, record)
        });
        let mut records = records.filter(|(_, record): &(PathBuf, Value)| record["preimage"]["operator"] == operator);
        records.next().unwrap()
    }

    /// Every record has its manifests, every manifest its files.
    fn is_whole(&self) -> bool {
        let read = |path: &Path| serde_json::from_str::<Value>(&std::fs::read_to_string(path).ok()?).ok();
        let has = |path: PathBuf| path.is_file();
        entries(&self.folder.join("keys")).iter().all(|path| {
            let record = read(path).unwrap();
            let digests = record["outputs"].as_object().unwrap();
            digests.values().all(|digest| {
                let folder = self.folder.join("objects").join(digest.as_str().unwrap());
                let Some(manifest) = read(&folder.join("manifest.json")) else {
                    return false;
                };
                let names = manifest["files"].as_array().unwrap().iter();
                names
                    .map(|file| file["name"].as_str().unwrap())
                    .all(|name| has(folder.join(name)))
            })
        })
    }
}

/// A store with the results of four stages.
fn finished() -> Sluice {
    let sluice = Sluice::with(&[("cut.yaml", PIPELINE), ("rows.csv", &rows())]);
    sluice.succeed(&["run", "cut.yaml"]);
    sluice
}

fn wipe(sluice: &Sluice) {
    std::fs::remove_dir_all(sluice.path(".sluice")).unwrap();
}

/// There and back; then there is nothing left to run.
fn there_and_back(sluice: &Sluice, there: &There) {
    let before = sluice.objects();
    let pushed = there.succeed(sluice, "push", &[]);
    assert!(pushed.out.contains(": 4 keys in "), "{}", pushed.out);
    let again = there.succeed(sluice, "push", &[]);
    assert!(
        again.out.contains(": 0 keys in 0 files, 0 B; 4 were there"),
        "{}",
        again.out
    );
    assert!(there.is_whole());

    wipe(sluice);
    let pulled = there.succeed(sluice, "pull", &["-p", "cut"]);
    assert!(pulled.out.contains(": 4 keys in "), "{}", pulled.out);
    assert_eq!(sluice.objects(), before);
    assert!(entries(&sluice.path(".sluice/tmp")).is_empty());
    let again = there.succeed(sluice, "pull", &[]);
    assert!(
        again.out.contains(": 0 keys in 0 files, 0 B; 4 were here"),
        "{}",
        again.out
    );
    // The run came along.
    assert!(sluice.succeed(&["show", "core"]).out.contains("core.out: 20 rows"));
    let run = sluice.succeed(&["run", "cut.yaml", "--json"]);
    assert!(run.ran().is_empty(), "{:?}", run.ran());
    // And an earlier result is known to be one: what reads it waits for it.
    let plan = sluice.succeed(&["plan", "cut.yaml", "--set=clean.keep=last"]).out;
    assert!(plan.contains("run unless inputs come out equal"), "{plan}");
}

#[test]
fn results_go_to_a_folder_and_back() {
    let sluice = finished();
    there_and_back(&sluice, &There::folder(&sluice));
}

#[test]
fn results_go_to_a_bucket_and_back() {
    there_and_back(&finished(), &There::bucket());
}

/// Which results: all, those of a run, those of keys.
#[test]
fn results_can_be_chosen() {
    let sluice = finished();
    sluice.succeed(&["run", "cut.yaml", "--set=core.k=4"]);
    sluice.write(
        "other.yaml",
        PIPELINE
            .replace("pipeline: cut", "pipeline: other")
            .replace("k: 2", "k: 3"),
    );
    sluice.succeed(&["run", "other.yaml"]);
    let runs = entries(&sluice.path(".sluice/runs"));
    let first = runs
        .iter()
        .min()
        .unwrap()
        .file_name()
        .unwrap()
        .to_string_lossy()
        .to_string();

    // The first run has the first k; the newest of both pipelines the others; everything all three.
    let there = There::folder(&sluice);
    assert!(
        there
            .succeed(&sluice, "push", &["--run", &first])
            .out
            .contains(": 4 keys in ")
    );
    assert!(
        there
            .succeed(&sluice, "push", &["-p", "cut"])
            .out
            .contains(": 1 key in 0 files")
    );
    assert!(there.succeed(&sluice, "push", &[]).out.contains(": 1 key in 0 files"));
    assert!(
        there
            .succeed(&sluice, "push", &["--all"])
            .out
            .contains(": 0 keys in 0 files, 0 B; 6 were there")
    );

    wipe(&sluice);
    let (path, _) = there.record("dedup");
    let key = path.file_stem().unwrap().to_str().unwrap();
    assert!(
        there
            .succeed(&sluice, "pull", &["--key", key])
            .out
            .contains(": 1 key in ")
    );
    assert_eq!(sluice.published().into_iter().collect::<Vec<_>>(), ["dedup"]);
    assert!(
        there
            .succeed(&sluice, "pull", &["-p", "other"])
            .out
            .contains(": 3 keys in ")
    );
    assert!(there.succeed(&sluice, "pull", &["--all"]).out.contains(": 2 keys in "));
    assert_eq!(entries(&sluice.path(".sluice/runs")).len(), 3);

    let unknown = there.run(&sluice, "pull", &["--key", "abc"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("has no key \"abc\""),
        "{}",
        unknown.err
    );
    let unknown = there.run(&sluice, "pull", &["-p", "cot"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("did you mean \"cut\"?"),
        "{}",
        unknown.err
    );
    let unknown = there.run(&sluice, "push", &["--run", "20"]);
    assert!(
        unknown.code == 2 && unknown.err.contains("no finished run \"20\""),
        "{}",
        unknown.err
    );
}

/// Whatever is wrong with a file there, it is named, and nothing of it gets in.
#[test]
fn what_is_damaged_there_is_not_installed() {
    let sluice = finished();
    let there = There::folder(&sluice);
    there.succeed(&sluice, "push", &[]);
    let (_, record) = there.record("dedup");
    let digest = record["outputs"]["out"].as_str().unwrap();
    let object = there.folder.join("objects").join(digest);
    let mut parts = files(&object);
    parts.sort();
    let (manifest, part) = (object.join("manifest.json"), parts.pop().unwrap());
    let name = part.file_name().unwrap().to_str().unwrap();
    let (manifest_text, bytes) = (
        std::fs::read_to_string(&manifest).unwrap(),
        std::fs::read(&part).unwrap(),
    );

    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let cut = bytes[..bytes.len() - 1].to_vec();
    let named = format!("objects/{digest}/{name}");
    let refused = |what: &str, wanted: &[&str]| {
        wipe(&sluice);
        let pulled = there.run(&sluice, "pull", &[]);
        assert_eq!(pulled.code, 3, "{what}: {}", pulled.err);
        for words in wanted {
            assert!(pulled.err.contains(words), "{what}: {}", pulled.err);
        }
        assert_eq!(pulled.err.matches("error[").count(), 1, "{}", pulled.err);
        assert!(!sluice.path(".sluice/objects").join(digest).exists(), "{what}");
        // The stages whose outputs are others came through.
        let published = sluice.published();
        assert!(
            published.contains("ingest_interactions") && !published.contains("dedup"),
            "{published:?}"
        );
        assert!(sluice.unfinished().is_empty());
    };
    std::fs::write(&part, flipped).unwrap();
    refused(
        "flipped",
        &[&named, "error[damaged-remote]", "not what its manifest says", "hint: "],
    );
    std::fs::write(&part, cut).unwrap();
    refused("cut", &[&named, "bytes, not"]);
    std::fs::remove_file(&part).unwrap();
    refused("gone", &[&named, "is missing"]);
    std::fs::write(&part, &bytes).unwrap();
    std::fs::write(&manifest, manifest_text.replace(name, "../../../out.parquet")).unwrap();
    refused("elsewhere", &["manifest.json", "files of another artifact"]);
    std::fs::write(&manifest, &manifest_text[..100]).unwrap();
    refused("half a manifest", &["manifest.json", "is damaged"]);

    // Mended, the same command goes on.
    std::fs::write(&manifest, &manifest_text).unwrap();
    assert!(there.succeed(&sluice, "pull", &[]).err.is_empty());
    assert!(sluice.succeed(&["run", "cut.yaml", "--json"]).ran().is_empty());
}

#[test]
fn a_record_that_is_there_is_kept() {
    for there in [None, Some(There::bucket())] {
        let sluice = finished();
        let there = there.unwrap_or_else(|| There::folder(&sluice));
        there.succeed(&sluice, "push", &[]);
        let (path, mut record) = there.record("filter_kcore");
        record["outputs"]["out"] = "0".repeat(64).into();
        let theirs = record.to_string();
        std::fs::write(&path, &theirs).unwrap();
        let again = there.succeed(&sluice, "push", &[]);
        assert!(
            again
                .err
                .contains("1 key exists there with other results; kept theirs: "),
            "{}",
            again.err
        );
        assert!(again.out.contains("; 3 were there"), "{}", again.out);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), theirs);
    }
}

#[test]
fn who_may_not_is_told_and_no_secret_is() {
    let sluice = finished();
    let there = There::bucket();
    let try_with = |url: &str, name: &str, value: &str| {
        let mut command = sluice.command(&["push", url]);
        command = there.server.as_ref().unwrap().known_to(command);
        command.env(name, value);
        let done = finish(command);
        assert_eq!(done.code, 2, "{}", done.err);
        assert!(
            !done.err.contains(SECRET) && !done.err.contains("wrong-hush"),
            "{}",
            done.err
        );
        done.err
    };
    let err = try_with(&there.url, "AWS_SECRET_ACCESS_KEY", "wrong-hush");
    assert!(
        err.contains("error[access-denied]") && err.contains("SignatureDoesNotMatch") && err.contains("hint: "),
        "{err}"
    );
    let err = try_with(&there.url, "AWS_ACCESS_KEY_ID", "nobody");
    assert!(err.contains("error[access-denied]"), "{err}");
    let err = try_with(&there.url, "AWS_SECRET_ACCESS_KEY", "");
    assert!(err.contains("error[no-credentials]"), "{err}");
    let err = try_with("s3://elsewhere/shared", "AWS_REGION", "us-east-1");
    assert!(
        err.contains("error[no-bucket]") && err.contains("s3://elsewhere"),
        "{err}"
    );
    let err = try_with(&there.url, "AWS_ALLOW_HTTP", "");
    assert!(err.contains("error[plain-http]"), "{err}");
    let err = try_with("gs://lab", "AWS_REGION", "us-east-1");
    assert!(err.contains("unknown scheme \"gs\""), "{err}");
    assert!(!there.folder.exists());
}

#[test]
fn a_dead_address_fails_within_seconds() {
    let sluice = finished();
    let server = S3Server::start();
    // Nobody listens; somebody listens and says nothing.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (address, limit) in [(closed, 3.0), (silent.local_addr().unwrap(), 12.0)] {
        let mut command = server.known_to(sluice.command(&["push", "s3://lab"]));
        command.env("AWS_ENDPOINT_URL", format!("http://{address}"));
        let done = finish(command);
        assert_eq!(done.code, 4, "{}", done.err);
        assert!(done.seconds < limit, "it took {} s", done.seconds);
        let wanted = format!("error[remote-unreachable]: cannot reach \"s3://lab\" at \"http://{address}\"");
        assert!(
            done.err.contains(&wanted) && done.err.contains("hint: "),
            "{}",
            done.err
        );
    }
}

/// Starts a command over a slow line and kills it after some requests.
fn killed(there: &There, sluice: &Sluice, command: &str, after: usize) {
    let server = there.server.as_ref().unwrap();
    server.delay(Duration::from_millis(20));
    let before = server.requests();
    let mut child: Child = there.command(sluice, command, &[]).spawn().unwrap();
    let start = Instant::now();
    while server.requests() < before + after {
        assert!(start.elapsed() < Duration::from_secs(30), "{command} makes no progress");
        assert!(
            child.try_wait().unwrap().is_none(),
            "{command} ended before it was killed"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    assert_eq!(wait(&mut child, Duration::from_secs(10)).code(), None);
    server.delay(Duration::ZERO);
}

#[test]
fn what_was_cut_off_goes_on() {
    let sluice = finished();
    let there = There::bucket();
    for after in [5, 12, 25] {
        killed(&there, &sluice, "push", after);
        assert!(there.is_whole());
    }
    let pushed = there.succeed(&sluice, "push", &[]);
    assert!(!pushed.out.contains(" 0 files"), "{}", pushed.out);
    assert!(there.is_whole());
    assert_eq!(entries(&there.folder.join("keys")).len(), 4);

    wipe(&sluice);
    for after in [8, 12] {
        killed(&there, &sluice, "pull", after);
    }
    there.succeed(&sluice, "pull", &[]);
    assert!(entries(&sluice.path(".sluice/tmp")).is_empty());
    assert!(sluice.succeed(&["run", "cut.yaml", "--json"]).ran().is_empty());
}

/// A store with nothing in it takes what is there: nothing runs but what is new.
#[test]
fn a_run_reads_through() {
    for there in [None, Some(There::bucket())] {
        let sluice = finished();
        let there = there.unwrap_or_else(|| There::folder(&sluice));
        there.succeed(&sluice, "push", &[]);
        let through = |arguments: &[&str]| {
            let command = sluice.command(&[arguments, &["--remote", &there.url]].concat());
            let done = finish(match &there.server {
                Some(server) => server.known_to(command),
                None => command,
            });
            assert_eq!(done.code, 0, "{arguments:?}\n{}", done.err);
            done
        };
        wipe(&sluice);
        assert!(sluice.succeed(&["plan", "cut.yaml"]).out.contains(": 0 to reuse"));
        let plan = through(&["plan", "cut.yaml"]).out;
        assert!(plan.contains("4 stages: 4 to reuse, 0 to run"), "{plan}");
        assert!(through(&["run", "cut.yaml", "--json"]).ran().is_empty());

        // What is new reads what comes from there; only what is read comes.
        wipe(&sluice);
        let changed = ["run", "cut.yaml", "--json", "--set=core.k=4"];
        assert_eq!(through(&changed).ran().into_iter().collect::<Vec<_>>(), ["core"]);
        assert!(through(&changed).ran().is_empty());
        assert!(!sluice.succeed(&changed).ran().contains("core"), "core was made here");
        assert!(sluice.succeed(&["show", "core"]).out.contains("core.out: 20 rows"));
        assert!(entries(&sluice.path(".sluice/tmp")).is_empty());
    }
}
