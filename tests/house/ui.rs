//! `sluice ui` as a program meets it: who is let in, what is refused, and how long requests take over a large store.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use sluice_engine::history;
use sluice_engine::store::Store;

use crate::flight::{ENDLESS, store};
use crate::sluice::Sluice;

/// A server that ends with the test.
pub struct Served {
    child: Child,
    /// `http://127.0.0.1:PORT/?token=TOKEN`
    pub url: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the server said.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The code of the error.
    fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_string()
    }
}

impl Served {
    pub fn over(sluice: &Sluice) -> Served {
        let mut child = sluice.command(&["ui"]).spawn().unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("ui: ").unwrap_or_else(|| panic!("\"{line}\""));
        Served {
            url: url.to_string(),
            child,
        }
    }

    pub fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap().split('/').next().unwrap()
    }

    fn token(&self) -> &str {
        self.url.split("token=").nth(1).unwrap()
    }

    fn cookie(&self) -> String {
        let port = self.host().split(':').nth(1).unwrap();
        format!("cookie: sluice_{port}={}", self.token())
    }

    /// Sends a request as it is written: `GET /path`, headers, a body.
    pub fn send(&self, line: &str, headers: &[&str], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.host()).unwrap();
        let mut text = format!(
            "{line} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n",
            body.len()
        );
        headers
            .iter()
            .for_each(|header| text.push_str(&format!("{header}\r\n")));
        stream.write_all(format!("{text}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    fn raw(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        let mut text = Vec::new();
        self.send(line, headers, body).read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text
            .split_once("\r\n\r\n")
            .unwrap_or_else(|| panic!("{line}: \"{text}\""));
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_lowercase(),
            body: body.to_string(),
        }
    }

    /// A request as the page makes it, with further headers.
    fn page(&self, line: &str, headers: &[&str]) -> Answer {
        let (host, cookie) = (format!("host: {}", self.host()), self.cookie());
        let all = [
            &[host.as_str(), cookie.as_str(), "sec-fetch-site: same-origin"],
            headers,
        ]
        .concat();
        self.raw(line, &all, "")
    }

    pub fn get(&self, path: &str) -> Answer {
        self.page(&format!("GET {path}"), &[])
    }

    fn statement_headers(&self) -> Vec<String> {
        let host = self.host();
        let kind = "content-type: application/json".to_string();
        vec![
            format!("host: {host}"),
            self.cookie(),
            format!("origin: http://{host}"),
            kind,
        ]
    }

    fn sql(&self, statement: &str) -> Answer {
        let headers = self.statement_headers();
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        self.raw(
            "POST /api/sql",
            &headers,
            &json!({ "statement": statement }).to_string(),
        )
    }
}

#[test]
fn whoever_does_not_know_the_token_learns_nothing() {
    let sluice = store();
    let served = Served::over(&sluice);
    let (host, cookie) = (format!("host: {}", served.host()), served.cookie());
    assert!(
        served.token().len() == 64 && served.host().starts_with("127.0.0.1:"),
        "{}",
        served.url
    );
    for path in [
        "/",
        "/assets/app.js",
        "/api/overview",
        "/api/runs",
        "/api/nothing",
        "/?token=",
        "/?token=0",
    ] {
        let refused = served.raw(&format!("GET {path}"), &[&host], "");
        assert_eq!(
            (refused.status, refused.code().ends_with("-token")),
            (401, true),
            "{path}"
        );
        assert!(
            !refused.body.contains("tiny") && !refused.body.contains("<html"),
            "{}",
            refused.body
        );
    }
    for (status, code, headers) in [
        (403, "wrong-host", vec!["host: evil.example", &cookie]),
        (403, "wrong-host", vec!["host: 192.0.2.1:80", &cookie]),
        (403, "wrong-origin", vec![&host, &cookie, "origin: http://evil.example"]),
        (403, "wrong-origin", vec![&host, &cookie, "origin: null"]),
        (403, "other-site", vec![&host, &cookie, "sec-fetch-site: cross-site"]),
        (403, "other-site", vec![&host, &cookie, "sec-fetch-site: same-site"]),
        (401, "wrong-token", vec![&host, "authorization: Bearer 0"]),
    ] {
        let refused = served.raw("GET /api/runs", &headers, "");
        assert_eq!((refused.status, refused.code().as_str()), (status, code), "{headers:?}");
        assert!(!refused.head.contains("access-control"), "{}", refused.head);
    }
    // The printed address sets a cookie that no script reads and no other page sends.
    let first = served.raw(&format!("GET /?token={}", served.token()), &[&host], "");
    assert_eq!(first.status, 200);
    let kept = first
        .head
        .lines()
        .find(|line| line.starts_with("set-cookie: "))
        .unwrap();
    assert!(kept.contains("httponly") && kept.contains("samesite=strict"), "{kept}");
    let bearer = format!("authorization: Bearer {}", served.token());
    assert_eq!(served.raw("GET /api/runs", &[&host, &bearer], "").status, 200);
    let other = Served::over(&sluice);
    assert_ne!(other.token(), served.token());
}

#[test]
fn requests_only_read_and_stay_in_the_store() {
    let sluice = store();
    let served = Served::over(&sluice);
    let digest = sluice.record("counts")["outputs"]["out"].as_str().unwrap().to_string();
    assert_eq!(served.get(&format!("/api/artifacts/{digest}")).status, 200);
    let file = served.get(&format!("/api/artifacts/{digest}")).json()["files"][0]["name"].clone();
    assert_eq!(
        served
            .get(&format!("/api/artifacts/{digest}/files/{}", file.as_str().unwrap()))
            .status,
        200
    );
    let outside = [
        "/api/runs/..%2f..%2f..%2fetc%2fpasswd".to_string(),
        "/api/runs/..".to_string(),
        "/api/runs/../../etc/passwd".to_string(),
        "/api/runs/%2e%2e/log".to_string(),
        "/api/runs/..%2fkeys/source".to_string(),
        "/api/artifacts/..%2f..%2fp.yaml".to_string(),
        "/api/artifacts/..%2fkeys/rows".to_string(),
        "/assets/..%2f..%2fCargo.toml".to_string(),
        "//etc/passwd".to_string(),
        format!("/api/artifacts/{digest}/files/manifest.json"),
        format!("/api/artifacts/{digest}/files/..%2f..%2f..%2fp.yaml"),
        format!("/api/artifacts/{digest}/files/../../../p.yaml"),
        format!("/api/artifacts/{digest}/files/%2fetc%2fpasswd"),
        format!("/api/artifacts/{}/rows", digest.to_uppercase()),
        format!("/api/artifacts/{}", "0".repeat(64)),
    ];
    for path in &outside {
        let refused = served.get(path);
        assert_eq!(
            (refused.status, refused.code().as_str()),
            (404, "not-found"),
            "{path}: {}",
            refused.body
        );
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        for path in ["/api/runs", "/api/overview", "/", &format!("/api/artifacts/{digest}")] {
            let origin = format!("origin: http://{}", served.host());
            let refused = served.page(&format!("{method} {path}"), &[&origin]);
            assert_eq!(
                (refused.status, refused.code().as_str()),
                (405, "read-only"),
                "{method} {path}"
            );
        }
    }
    for (path, code) in [
        ("/api/runs?page=x", "bad-value"),
        ("/api/artifacts?sort=x", "bad-value"),
        ("/api/compare", "missing-value"),
    ] {
        let refused = served.get(path);
        assert_eq!((refused.status, refused.code().as_str()), (400, code), "{path}");
    }
    // Every answer says what a browser may do with it.
    for path in ["/", "/api/runs", "/api/nothing"] {
        let head = served.get(path).head;
        assert!(
            head.contains("content-security-policy: default-src 'none'; script-src 'self'"),
            "{head}"
        );
        for wanted in [
            "x-content-type-options: nosniff",
            "frame-ancestors 'none'",
            "cache-control: no-store",
        ] {
            assert!(head.contains(wanted), "{path}: no {wanted} in {head}");
        }
    }
    // What did not change is not sent again.
    let first = served.get("/api/artifacts");
    let tag = first.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = served.page("GET /api/artifacts", &[&format!("if-none-match: {tag}")]);
    assert_eq!((again.status, again.body.as_str()), (304, ""));
}

#[test]
fn statements_read_within_limits() {
    let sluice = store();
    let served = Served::over(&sluice);
    let grid = served
        .sql("SELECT user_id, count(*) AS n FROM counts GROUP BY user_id ORDER BY user_id LIMIT 2")
        .json();
    assert_eq!(grid["grid"]["rows"], json!([["w0", "1429"], ["w1", "1429"]]));
    assert_eq!(served.sql("SELECT * FROM counts").json()["grid"]["more"], true);
    for (statement, code) in [
        ("DROP TABLE counts", "read-only"),
        ("COPY counts TO 'x.csv'", "read-only"),
        ("SELECT nothing FROM counts", "missing-column"),
        ("SELECT", "bad-sql"),
        ("SELECT * FROM read_csv('/etc/passwd')", "outside-data"),
    ] {
        let refused = served.sql(statement);
        assert!(
            refused.status == 400 && (refused.code() == code || code == "outside-data"),
            "{statement}: {}",
            refused.body
        );
    }
    assert!(
        served.sql("SELECT user_i FROM counts").json()["error"]["hint"]
            .as_str()
            .unwrap()
            .contains("user_id")
    );
    // What a form of another page could send is refused, cookie or not.
    let (host, cookie) = (format!("host: {}", served.host()), served.cookie());
    let body = json!({ "statement": "SELECT 1" }).to_string();
    let form = served.raw("POST /api/sql", &[&host, &cookie, "content-type: text/plain"], &body);
    assert_eq!((form.status, form.code().as_str()), (403, "no-origin"));
    let origin = format!("origin: http://{}", served.host());
    let plain = served.raw(
        "POST /api/sql",
        &[&host, &cookie, &origin, "content-type: text/plain"],
        &body,
    );
    assert_eq!((plain.status, plain.code().as_str()), (415, "bad-request"));

    // Statements whose browser left are ended: else all places would stay taken.
    let endless = json!({ "statement": ENDLESS }).to_string();
    let headers = served.statement_headers();
    let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
    let open: Vec<TcpStream> = (0..5)
        .map(|_| served.send("POST /api/sql", &headers, &endless))
        .collect();
    // There are four places, so one of the five is told to wait.
    let refused = |mut stream: &TcpStream| {
        let mut start = [0; 12];
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        stream.read_exact(&mut start).is_ok() && start.ends_with(b"429")
    };
    let until = Instant::now() + Duration::from_secs(20);
    while !open.iter().any(refused) {
        assert!(Instant::now() < until, "endless statements do not take all places");
    }
    assert_eq!(served.sql("SELECT 1").code(), "busy");
    drop(open);
    let until = Instant::now() + Duration::from_secs(20);
    while served.sql("SELECT 1").status != 200 {
        assert!(Instant::now() < until, "statements go on after their browsers left");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn other_machines_are_let_in_only_if_one_says_so() {
    let refused = store().run(&["ui", "--address", "0.0.0.0:0"]);
    assert_eq!(refused.code, 2);
    assert!(
        refused.err.contains("clear-token") && refused.err.contains("ssh -L"),
        "{}",
        refused.err
    );
    let none = Sluice::new().run(&["ui"]);
    assert!(none.code == 2 && none.err.contains("no-store"), "{}", none.err);
}

/// A journal is read piece by piece, at any byte.
#[test]
fn pieces_of_a_journal_are_the_whole() {
    let sluice = store();
    let store = Store::existing(&sluice.path(".sluice")).unwrap();
    let run = &store.runs()[0];
    let all = history::events(&store, run);
    let length = history::stamp(&store, run).journal;
    for most in [1, 100, 1 << 20] {
        let (mut next, mut found) = (0, Vec::new());
        while next < length {
            let piece = history::window(&store, run, next, most);
            assert!(piece.to > next, "{next}");
            found.extend(piece.entries);
            next = piece.to;
        }
        assert_eq!(
            serde_json::to_value(&found).unwrap(),
            serde_json::to_value(&all).unwrap()
        );
    }
    for most in 1..400 {
        let end = history::window(&store, run, length - most, most);
        let told = |entry: &history::Window| serde_json::to_value(entry.entries.last()).unwrap();
        assert!(
            end.entries.is_empty() || told(&end)["event"] == "run_finished",
            "{most}"
        );
        assert!(end.to == length || end.entries.is_empty(), "{most}");
    }
}

/// What is damaged is told, and stays where it is: a page changes nothing, not even that.
#[test]
fn what_is_damaged_is_left_alone() {
    let pipeline = "pipeline: p\nstages:\n  counts: { op: ingest_interactions, path: counts.csv }\n";
    let sluice = Sluice::with(&[("p.yaml", pipeline)]);
    for items in ["a", "b"] {
        sluice.write(
            "counts.csv",
            format!("user_id,item_id,timestamp\nu,{items},1500000000\n"),
        );
        sluice.succeed(&["run", "p.yaml", "--quiet"]);
    }
    let served = Served::over(&sluice);
    let runs = served.get("/api/runs").json();
    let name = |place: usize| runs["runs"][place]["run"].as_str().unwrap().to_string();
    let path = format!("/api/compare/stage?old={}&new={}&stage=counts", name(1), name(0));
    assert_eq!(served.get(&path).status, 200);
    let before = sluice.objects();
    let (file, bytes) = before.iter().next().unwrap();
    sluice.write(
        &format!(".sluice/objects/{file}"),
        [&bytes[..bytes.len() - 1], b"?"].concat(),
    );
    let served = Served::over(&sluice);
    let told = served.get(&path);
    assert_eq!(
        (told.status, told.code().as_str()),
        (422, "damaged-artifact"),
        "{}",
        told.body
    );
    let digest = file.split('/').next().unwrap();
    for address in ["", "/rows"] {
        served.get(&format!("/api/artifacts/{digest}{address}"));
    }
    assert_eq!(sluice.objects().len(), before.len());
}

const ARTIFACTS: usize = 1_000;
const RUNS: usize = 200;

/// A store of 1,000 artifacts and 200 runs, all of them whole: one real run, then as many more like it.
pub fn large() -> Sluice {
    let sluice = store();
    let store = Store::existing(&sluice.path(".sluice")).unwrap();
    let run = store.runs()[0].clone();
    let key = sluice.record("counts")["key"].as_str().unwrap().to_string();
    let (record, digest) = (store.known(&key).unwrap(), store.objects()[0].clone());
    let manifest = store.manifest(&digest).unwrap();
    let mut keys = Vec::new();
    for number in store.objects().len()..ARTIFACTS {
        let attempt = Store::attempt_name(&format!("large-{number}"));
        let folder = store.attempt_folder(&attempt).join("out");
        std::fs::create_dir_all(&folder).unwrap();
        let rows = RecordBatch::try_from_iter([
            ("user_id", Arc::new(StringArray::from(vec!["u"; 20])) as _),
            ("number", Arc::new(Int64Array::from(vec![number as i64; 20])) as _),
        ]);
        let rows = rows.unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        std::fs::write(folder.join("part-00000.parquet"), writer.into_inner().unwrap()).unwrap();
        let mut made = manifest.clone();
        made.files = store.folder_entries(&folder).unwrap();
        made.files[0].rows = 20;
        made.rows = 20;
        made.stage = format!("stage_{number}");
        made.preimage.config.insert("number".into(), number.into());
        made.preimage.inputs.insert("input".into(), digest.clone());
        let mut own = record.clone();
        own.preimage = made.preimage.clone();
        own.key = own.preimage.key();
        let made = store.publish(&folder, made).unwrap();
        own.outputs.insert("out".into(), made);
        store.publish_record(&own, &attempt, false).unwrap();
        store.discard(&attempt);
        keys.push((format!("stage_{number}"), own.key));
    }
    let first = history::read(&store, &run).unwrap();
    let events = std::fs::read_to_string(store.run_folder(&run).join("events.jsonl")).unwrap();
    for number in 1..RUNS {
        let mut copy = first.clone();
        copy.run = format!("{}-{number:04}", &run[..run.len().min(20)]);
        copy.started += number as u64;
        copy.pipeline = format!("pipeline_{}", number % 7);
        copy.keys.extend(keys.iter().skip(number * 5).take(5).cloned());
        let folder = store.run_folder(&copy.run);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("events.jsonl"), events.replace(&run, &copy.run)).unwrap();
        history::write(&store, &copy).unwrap();
    }
    assert_eq!((store.objects().len(), store.runs().len()), (ARTIFACTS, RUNS));
    sluice
}

/// No request takes 100 ms. Other tests run beside this one, so a request that was slower is asked again: of five answers the
/// fastest counts.
#[test]
#[expect(clippy::print_stderr, reason = "says how long requests took")]
fn requests_over_a_large_store_are_fast() {
    let sluice = large();
    let served = Served::over(&sluice);
    let runs = served.get("/api/runs").json();
    let (new, old) = (&runs["runs"][0]["run"], &runs["runs"][40]["run"]);
    let (new, old) = (new.as_str().unwrap(), old.as_str().unwrap());
    let artifacts = served.get("/api/artifacts?sort=stage").json();
    assert_eq!(
        (runs["total"].as_u64(), artifacts["total"].as_u64()),
        (Some(200), Some(1_000))
    );
    let digest = artifacts["artifacts"][7]["digest"].as_str().unwrap();
    let read = sluice_digest(&sluice);
    let paths = [
        "/".to_string(),
        "/assets/app.js".to_string(),
        "/api/overview".to_string(),
        "/api/runs".to_string(),
        "/api/runs?pipeline=pipeline_3&state=done".to_string(),
        "/api/runs?page=3".to_string(),
        format!("/api/runs/{new}"),
        format!("/api/runs/{new}/graph"),
        format!("/api/runs/{new}/curves"),
        format!("/api/runs/{new}/log"),
        format!("/api/runs/{new}/stage?name=counts"),
        format!("/api/runs/{new}/source"),
        format!("/api/compare?old={old}&new={new}"),
        format!("/api/compare/stage?old={old}&new={new}&stage=counts"),
        "/api/artifacts".to_string(),
        "/api/artifacts?search=user_id&sort=size&page=19".to_string(),
        format!("/api/artifacts/{digest}"),
        format!("/api/artifacts/{read}"),
        format!("/api/artifacts/{digest}/rows?n=500"),
        "/api/tables".to_string(),
    ];
    let mut slowest = (0.0, "", 0.0);
    for path in &paths {
        let times: Vec<f64> = (0..5)
            .map(|_| {
                let start = Instant::now();
                let answer = served.get(path);
                let took = start.elapsed().as_secs_f64() * 1e3;
                assert!(answer.status == 200, "{path}: {}", answer.body);
                took
            })
            .collect();
        let (fast, slow) = (
            times.iter().copied().fold(f64::MAX, f64::min),
            times.iter().copied().fold(0.0, f64::max),
        );
        assert!(fast < 100.0, "{path}: {times:?}");
        if slow > slowest.0 {
            slowest = (slow, path, fast);
        }
    }
    let (slow, path, fast) = slowest;
    eprintln!(
        "the slowest of {} requests took {slow:.1} ms (at best {fast:.1} ms): {path}",
        paths.len() * 5
    );
}

/// The artifact that all others read.
fn sluice_digest(sluice: &Sluice) -> String {
    let store = Store::existing(&sluice.path(".sluice")).unwrap();
    let keys = store.keys();
    let mut records = keys.iter().filter_map(|key| store.known(key));
    records
        .find_map(|record| record.preimage.inputs.get("input").cloned())
        .unwrap()
}
