//! `sluice fetch` against a hub of our own: what comes, what goes on after a cut, what is refused.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use crate::sluice::{Done, Sluice, finish};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Of 300,000 bytes that count to 250 and start again.
const WEIGHTS: &str = "3c65ea93424a9c362fec0e3a69ea36031e8a358441479dd665cc6110eabe7b08";

/// A hub with one model.
struct Hub {
    address: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<u8>>,
    listing: String,
    /// The weights end after so many bytes, so many times.
    cuts: Vec<usize>,
    requests: Vec<String>,
}

impl Hub {
    fn start(listing: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let weights = (0..300_000).map(|i| (i % 251) as u8).collect();
        let files = [
            ("config.json", b"{}".to_vec()),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"no".to_vec()),
        ];
        let state = Arc::new(Mutex::new(State {
            files: files.map(|(name, bytes)| (name.to_string(), bytes)).into(),
            listing: listing.to_string(),
            ..State::default()
        }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let _ = answer(stream, &shared);
            }
        });
        Hub { address, state }
    }

    fn fetch(&self, sluice: &Sluice, arguments: &[&str]) -> Done {
        let mut command = sluice.command(&[&["fetch"], arguments].concat());
        command
            .env("HOME", sluice.path("home"))
            .env("HF_ENDPOINT", &self.address);
        command.env_remove("HF_TOKEN");
        finish(command)
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let path = lines.next().unwrap()?.split(' ').nth(1).unwrap().to_string();
    let (mut from, mut told) = (0, path.clone());
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse().unwrap();
            told.push_str(&format!(" from {from}"));
        }
        if line.to_lowercase().starts_with("authorization") {
            told.push_str(" with a token");
        }
    }
    let mut state = state.lock().unwrap();
    state.requests.push(told);
    let listed = "/api/models/lab/tiny/revision/main?blobs=true";
    let of = |file: &str| format!("/lab/tiny/resolve/{COMMIT}/{file}");
    let found = match state.files.iter().find(|(name, _)| of(name) == path) {
        Some((_, bytes)) => Some(bytes.clone()),
        None => (path == listed).then(|| state.listing.clone().into_bytes()),
    };
    let Some(bytes) = found else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    };
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let rest = &bytes[from..];
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        rest.len()
    );
    stream.write_all(head.as_bytes())?;
    let cut = path.ends_with(".safetensors").then(|| state.cuts.pop()).flatten();
    stream.write_all(&rest[..cut.unwrap_or(rest.len()).min(rest.len())])
}

fn listing(weights: &str) -> String {
    format!(
        r#"{{"sha": "{COMMIT}", "siblings": [
            {{"rfilename": "model.safetensors", "size": 300000, "lfs": {{"sha256": "{weights}"}}}},
            {{"rfilename": "pytorch_model.bin", "size": 2, "blobId": "x"}},
            {{"rfilename": "config.json", "size": 2, "blobId": "9e26dfeeb6e641a33dae4961196235bdb965b21b"}}]}}"#
    )
}

#[test]
fn a_model_comes_once_and_goes_on_after_a_cut() {
    let hub = Hub::start(&listing(WEIGHTS));
    let sluice = Sluice::new();
    // It ends within the file twice: at 1,000 bytes, then 2,000 later.
    hub.state.lock().unwrap().cuts = vec![2000, 1000];
    let done = hub.fetch(&sluice, &["lab/tiny"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(
        done.out
            .starts_with("lab/tiny at 0123456789ab: 2 files came (300.0 kB), 0 were here\n"),
        "{}",
        done.out
    );
    let resolve = format!("/lab/tiny/resolve/{COMMIT}");
    let wanted = [
        "/api/models/lab/tiny/revision/main?blobs=true".to_string(),
        format!("{resolve}/config.json"),
        format!("{resolve}/model.safetensors"),
        format!("{resolve}/model.safetensors from 1000"),
        format!("{resolve}/model.safetensors from 3000"),
    ];
    assert_eq!(hub.requests(), wanted);
    let home = sluice.path("home/.cache/huggingface/hub/models--lab--tiny");
    assert_eq!(std::fs::read_to_string(home.join("refs/main")).unwrap(), COMMIT);
    let folder = home.join("snapshots").join(COMMIT);
    assert!(done.out.contains(&folder.display().to_string()), "{}", done.out);
    let mut names: Vec<_> = crate::sluice::entries(&folder)
        .iter()
        .map(|path| path.file_name().unwrap().to_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
    let again = hub.fetch(&sluice, &["lab/tiny"]);
    assert!(again.out.contains("0 files came (0 B), 2 were here"), "{}", again.out);
    assert_eq!(hub.requests().len(), 1);
}

#[test]
fn what_is_not_what_the_hub_says_is_refused() {
    let hub = Hub::start(&listing(&"0".repeat(64)));
    let sluice = Sluice::new();
    let done = hub.fetch(&sluice, &["lab/tiny"]);
    assert_eq!(done.code, 3, "{}", done.err);
    for words in [
        "error[damaged-download]",
        "\"model.safetensors\" of \"lab/tiny\"",
        WEIGHTS,
        "hint: ",
    ] {
        assert!(done.err.contains(words), "{words}: {}", done.err);
    }
    // No stage finds half a model.
    assert!(
        !sluice
            .path("home/.cache/huggingface/hub/models--lab--tiny/refs/main")
            .exists()
    );
}

#[test]
fn what_cannot_be_fetched_is_told() {
    let sluice = Sluice::new();
    let hub = Hub::start("{}");
    for (arguments, code, words) in [
        (
            vec!["lab/none"],
            2,
            "error[no-model]: the hub has no model \"lab/none\" at \"main\"",
        ),
        (
            vec!["lab/tiny", "--revision", "v2"],
            2,
            "no model \"lab/tiny\" at \"v2\"",
        ),
        (vec!["lab/tiny", "--revision", "../../x"], 2, "error[bad-revision]"),
        (vec!["../tiny"], 2, "error[bad-model-name]"),
        (vec!["a/b/c"], 2, "error[bad-model-name]"),
        (vec!["lab/tiny"], 4, "error[hub]: cannot read"),
    ] {
        let done = hub.fetch(&sluice, &arguments);
        assert_eq!(done.code, code, "{arguments:?}: {}", done.err);
        assert!(done.err.contains(words), "{arguments:?}: {}", done.err);
    }
    let bare = Hub::start(&listing("x").replace("model.safetensors", "model.bin"));
    let done = bare.fetch(&sluice, &["lab/tiny"]);
    assert!(
        done.err
            .contains("error[no-safetensors]: \"lab/tiny\" has no safetensors among its 3 files"),
        "{}",
        done.err
    );
    // Nobody listens on a port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dead = Hub {
        address: format!("http://{free}"),
        ..bare
    };
    let done = dead.fetch(&sluice, &["lab/tiny"]);
    assert_eq!(done.code, 4, "{}", done.err);
    assert!(done.err.contains("error[hub-unreachable]"), "{}", done.err);
}
