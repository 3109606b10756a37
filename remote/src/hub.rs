//! Models from the Hugging Face hub, into the cache that its own tools use.
//!
//! ```text
//! models--OWNER--NAME/snapshots/<commit>/<file>    as it is there; <file>.part while it comes
//! models--OWNER--NAME/refs/<revision>              the commit; written when all of its files are there
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::RANGE;
use reqwest::{Client, Response, StatusCode};
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use serde::Deserialize;
use sluice_engine::{Error, Result};

/// The hub, unless another endpoint is named.
pub const HUB: &str = "https://huggingface.co";

/// How often a request is sent before it has failed.
const ATTEMPTS: u32 = 4;
/// How long a connection and the next bytes may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Files of configs and tokenizers that readers of checkpoints know.
const KNOWN: [&str; 14] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "adapter_config.json",
    "model.safetensors.index.json",
];

/// What is asked for, and of whom.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `OWNER/NAME`, or the name alone for a model without an owner.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Where the hub is: `https://...`, without a slash at the end.
    pub endpoint: String,
    /// Sent along, for models that are not open to all.
    pub token: Option<String>,
    /// The hub's cache.
    pub cache: PathBuf,
}

/// What a download did.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The folder of the model.
    pub folder: PathBuf,
    /// The commit.
    pub commit: String,
    /// Files that came, and their bytes.
    pub files: usize,
    /// Bytes that came.
    pub bytes: u64,
    /// Files that were there.
    pub there: usize,
}

/// How far a download is: (file, bytes of all files that are here, bytes of all files).
pub type Tell<'a> = dyn FnMut(&str, u64, u64) + 'a;

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Remote>,
}

/// A file there.
#[derive(Clone, Deserialize)]
struct Remote {
    #[serde(rename = "rfilename")]
    name: String,
    #[serde(default)]
    size: u64,
    #[serde(rename = "blobId", default)]
    blob: String,
    lfs: Option<Lfs>,
}

#[derive(Clone, Deserialize)]
struct Lfs {
    sha256: String,
}

/// Downloads the files of a model that readers of checkpoints want: config, tokenizer, `safetensors`. A download that was
/// cut off goes on where it stopped; every file is checked against the digest that the hub gives for it.
///
/// Errors: `bad-model-name`, `bad-revision`, `no-model`, `access-denied`, `no-safetensors`, `damaged-download`, `hub-unreachable`, `hub`, and
/// those of the disk.
pub fn fetch(wanted: &Wanted, tell: &mut Tell) -> Result<Fetched> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::device("runtime", format!("cannot start: {error}")))?;
    runtime.block_on(Hub::new(wanted)?.fetch(tell))
}

struct Hub<'a> {
    wanted: &'a Wanted,
    client: Client,
}

impl<'a> Hub<'a> {
    fn new(wanted: &'a Wanted) -> Result<Self> {
        let parts: Vec<&str> = wanted.name.split('/').collect();
        let plain = |part: &&str| {
            let sign = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && part.chars().all(sign) && !part.starts_with('.')
        };
        if parts.len() > 2 || !parts.iter().all(plain) {
            let error = Error::user("bad-model-name", format!("\"{}\" is no name of a model", wanted.name));
            return Err(error.hint("write OWNER/NAME, such as Qwen/Qwen3-0.6B"));
        }
        // It is part of a path.
        if !wanted.revision.split('/').all(|part| plain(&part)) {
            let message = format!("\"{}\" is no branch, tag or commit", wanted.revision);
            return Err(Error::user("bad-revision", message));
        }
        let client = Client::builder()
            .connect_timeout(PATIENCE)
            .read_timeout(PATIENCE)
            .build();
        let client = client.map_err(|error| Error::device("hub", format!("cannot speak HTTP: {error}")))?;
        Ok(Hub { wanted, client })
    }

    async fn fetch(&self, tell: &mut Tell<'_>) -> Result<Fetched> {
        let Wanted { name, revision, .. } = self.wanted;
        let address = format!(
            "{}/api/models/{name}/revision/{}?blobs=true",
            self.wanted.endpoint,
            revision.replace('/', "%2F")
        );
        let answer = self.get(&address, 0).await?;
        let listing: std::result::Result<Listing, _> = match answer.text().await {
            Ok(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let listing = listing.map_err(|problem| self.odd(&address, &problem))?;
        if listing.sha.is_empty() || !listing.sha.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(self.odd(&address, &format!("\"{}\" is no commit", listing.sha)));
        }
        let files = self.chosen(listing.siblings)?;
        let home = self.wanted.cache.join(format!("models--{}", name.replace('/', "--")));
        let folder = home.join("snapshots").join(&listing.sha);
        let total = files.iter().map(|file| file.size).sum();
        let mut fetched = Fetched {
            folder: folder.clone(),
            commit: listing.sha.clone(),
            files: 0,
            bytes: 0,
            there: 0,
        };
        let mut here = 0;
        for file in &files {
            let path = folder.join(&file.name);
            if path.metadata().is_ok_and(|found| found.len() == file.size) {
                fetched.there += 1;
            } else {
                let mut so_far = |bytes| tell(&file.name, here + bytes, total);
                fetched.bytes += self.file(&listing.sha, file, &path, &mut so_far).await?;
                fetched.files += 1;
            }
            here += file.size;
            tell(&file.name, here, total);
        }
        let reference = home.join("refs").join(revision);
        if *revision != listing.sha {
            make_folder(&reference)?;
            std::fs::write(&reference, &listing.sha).map_err(|error| Error::io("write", &reference, &error))?;
        }
        Ok(fetched)
    }

    /// The files that are wanted, small ones first.
    fn chosen(&self, all: Vec<Remote>) -> Result<Vec<Remote>> {
        let sharded = all.iter().any(|file| file.name == "model.safetensors.index.json");
        let wanted = |file: &Remote| match file.name.split('/').collect::<Vec<_>>().as_slice() {
            ["model.safetensors"] => !sharded,
            [name] => KNOWN.contains(name) || name.ends_with(".safetensors"),
            // A module of sentence-transformers: 1_Pooling.
            [folder, name] => {
                folder.starts_with(|c: char| c.is_ascii_digit()) && ["config.json", "model.safetensors"].contains(name)
            }
            _ => false,
        };
        let had = all.len();
        let mut files: Vec<Remote> = all.into_iter().filter(wanted).collect();
        if !files.iter().any(|file| file.name.ends_with(".safetensors")) {
            let message = format!("\"{}\" has no safetensors among its {had} files", self.wanted.name);
            return Err(Error::user("no-safetensors", message)
                .hint("its authors may have another revision with them; or load and save it with transformers once"));
        }
        files.sort_by_key(|file| file.size);
        Ok(files)
    }

    /// Brings one file; gives the bytes that came.
    async fn file(&self, commit: &str, file: &Remote, path: &Path, tell: &mut dyn FnMut(u64)) -> Result<u64> {
        let address = format!(
            "{}/{}/resolve/{commit}/{}",
            self.wanted.endpoint, self.wanted.name, file.name
        );
        let part = PathBuf::from(format!("{}.part", path.display()));
        make_folder(&part)?;
        let mut came = 0;
        for attempt in 1.. {
            let have = part.metadata().map_or(0, |found| found.len());
            let from = if have < file.size { have } else { 0 };
            match self.rest(&address, &part, from, &mut came, tell).await {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error)) if attempt == ATTEMPTS => return Err(error),
                Err(Failure::Again(_)) => tokio::time::sleep(pause(attempt)).await,
            }
        }
        if let Some(problem) = damage(&part, file).map_err(|error| Error::io("read", &part, &error))? {
            std::fs::remove_file(&part).ok();
            let message = format!("\"{}\" of \"{}\" came damaged: {problem}", file.name, self.wanted.name);
            return Err(Error::data("damaged-download", message).hint("the same command downloads it again"));
        }
        std::fs::rename(&part, path).map_err(|error| Error::io("rename", &part, &error))?;
        Ok(came)
    }

    /// Appends what a file lacks from a place on.
    async fn rest(
        &self,
        address: &str,
        part: &Path,
        from: u64,
        came: &mut u64,
        tell: &mut dyn FnMut(u64),
    ) -> std::result::Result<(), Failure> {
        let mut answer = self.get(address, from).await.map_err(Failure::Final)?;
        // Who does not know ranges sends all of it.
        let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT;
        let failed = |error| Failure::Final(Error::io("write", part, &error));
        let mut options = OpenOptions::new();
        options.create(true).write(true).append(goes_on).truncate(!goes_on);
        let mut out = options.open(part).map_err(failed)?;
        let mut have = if goes_on { from } else { 0 };
        loop {
            match answer.chunk().await {
                Ok(Some(bytes)) => {
                    out.write_all(&bytes).map_err(failed)?;
                    have += bytes.len() as u64;
                    *came += bytes.len() as u64;
                    tell(have);
                }
                Ok(None) => return out.flush().map_err(failed),
                Err(error) => return Err(Failure::Again(self.unreachable(&error))),
            }
        }
    }

    /// An answer that is a success; asks again where that may help.
    async fn get(&self, address: &str, from: u64) -> Result<Response> {
        let mut attempt = 1;
        loop {
            let mut request = self.client.get(address);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(token) = &self.wanted.token {
                request = request.bearer_auth(token);
            }
            let error = match request.send().await {
                Ok(answer) if answer.status().is_success() => return Ok(answer),
                Ok(answer) => self.refused(address, answer.status()),
                Err(error) => (self.unreachable(&error), error.is_timeout() || error.is_connect()),
            };
            match error {
                (error, again) if !again || attempt == ATTEMPTS => return Err(error),
                _ => tokio::time::sleep(pause(attempt)).await,
            }
            attempt += 1;
        }
    }

    /// What a status means, and whether it may pass.
    fn refused(&self, address: &str, status: StatusCode) -> (Error, bool) {
        let (name, revision) = (&self.wanted.name, &self.wanted.revision);
        let error = match status {
            // The hub says 401 of names that nobody has, too.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = format!("the hub does not give out \"{name}\" ({})", status.as_u16());
                let hint = match self.wanted.token {
                    Some(_) => "check the name; has the owner of the token accepted the model's licence on its page?",
                    None => {
                        "check the name; a model behind a licence wants HF_TOKEN to hold a token of who accepted it"
                    }
                };
                Error::user("access-denied", message).hint(hint)
            }
            StatusCode::NOT_FOUND => {
                let message = format!("the hub has no model \"{name}\" at \"{revision}\"");
                Error::user("no-model", message).hint("check the name on its page, and --revision")
            }
            _ => self.odd(address, &format!("it answers {status}")),
        };
        (
            error,
            status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS,
        )
    }

    fn odd(&self, address: &str, problem: &str) -> Error {
        Error::device("hub", format!("cannot read \"{address}\": {problem}"))
            .hint("is that a hub? the same command goes on where this one stopped")
    }

    fn unreachable(&self, error: &reqwest::Error) -> Error {
        let first: &dyn std::error::Error = error;
        let innermost = std::iter::successors(Some(first), |cause| cause.source()).last();
        let innermost = innermost.map(ToString::to_string).unwrap_or_default();
        let message = format!("cannot reach \"{}\": {innermost}", self.wanted.endpoint);
        Error::device("hub-unreachable", message).hint(
            "the same command goes on where this one stopped; without a network, copy the model's folder below the data \
             root and name it by its path",
        )
    }
}

/// Whether a transfer may be tried again.
enum Failure {
    Again(Error),
    Final(Error),
}

fn pause(attempt: u32) -> Duration {
    Duration::from_millis(250 << attempt)
}

/// Makes the folder of a file.
fn make_folder(path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(path);
    std::fs::create_dir_all(folder).map_err(|error| Error::io("make", folder, &error))
}

/// What is wrong with a file: its length, its SHA-256, or its digest as a blob of git.
fn damage(path: &Path, wanted: &Remote) -> std::io::Result<Option<String>> {
    let length = path.metadata()?.len();
    if length != wanted.size {
        return Ok(Some(format!("{length} of {} bytes", wanted.size)));
    }
    let (mut context, digest) = match &wanted.lfs {
        Some(lfs) => (Context::new(&SHA256), &lfs.sha256),
        None => {
            let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
            context.update(format!("blob {length}\0").as_bytes());
            (context, &wanted.blob)
        }
    };
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    let got: String = context
        .finish()
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // A hub that tells no digest leaves the length.
    let same = digest.is_empty() || got == *digest;
    Ok((!same).then(|| format!("its digest is {got}, not {digest}")))
}
