//! From an address to a store: which kind, where, with whose credentials, and how long to wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use sluice_engine::{Error, Result};

use crate::RemoteStore;

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";
const REGION: &str = "AWS_REGION";
const ENDPOINT_URL: &str = "AWS_ENDPOINT_URL";
const ALLOW_HTTP: &str = "AWS_ALLOW_HTTP";

/// The variables that a bucket is opened with.
pub const VARIABLES: [&str; 6] = [
    ACCESS_KEY_ID,
    SECRET_ACCESS_KEY,
    SESSION_TOKEN,
    REGION,
    ENDPOINT_URL,
    ALLOW_HTTP,
];

/// Where a bucket is when nobody says.
const DEFAULT_REGION: &str = "us-east-1";

/// No connection after this long is none.
const CONNECT: Duration = Duration::from_secs(3);

/// The first request of all: one retry, and no waiting.
const PROBE: Patience = Patience {
    request: Duration::from_secs(5),
    retries: 1,
    retry: Duration::from_secs(4),
};

/// A request moves 32 MiB at most.
const WORK: Patience = Patience {
    request: Duration::from_secs(120),
    retries: 6,
    retry: Duration::from_secs(60),
};

struct Patience {
    request: Duration,
    retries: usize,
    retry: Duration,
}

/// How to open a remote store.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is set of [`VARIABLES`].
    pub variables: BTreeMap<String, String>,
    /// Make a folder that is not there. Buckets are never made.
    pub create: bool,
}

impl Options {
    /// A variable that is set to something.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

/// What an address names.
#[derive(Debug, PartialEq)]
enum Address {
    Folder(PathBuf),
    Bucket { bucket: String, prefix: String },
    Memory,
}

pub(crate) fn open(url: &str, options: &Options) -> Result<RemoteStore> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::device("runtime", format!("cannot start the runtime of transfers: {error}")))?;
    let store = |objects: Arc<dyn ObjectStore>| RemoteStore {
        name: url.to_string(),
        endpoint: None,
        prefix: String::new(),
        objects,
        runtime,
    };
    match parse(url)? {
        Address::Memory => Ok(store(Arc::new(InMemory::new()))),
        Address::Folder(path) => Ok(store(Arc::new(folder(&path, options.create)?))),
        Address::Bucket { bucket, prefix } => {
            let endpoint = endpoint(options)?;
            let client = |patience| bucket_client(url, &bucket, endpoint, options, patience);
            let mut store = store(Arc::new(client(&PROBE)?));
            store.endpoint = endpoint.map(str::to_string);
            store.prefix = prefix;
            store.probe()?;
            store.objects = Arc::new(client(&WORK)?);
            Ok(store)
        }
    }
}

impl RemoteStore {
    /// Lists nothing: says whether the bucket is there and may be read.
    fn probe(&self) -> Result<()> {
        let nothing = self.location("probe");
        let listed = self.runtime.block_on(self.objects.list(Some(&nothing)).try_next());
        listed
            .map(|_| ())
            .map_err(|error| self.failure("list", "probe", &error))
    }
}

fn parse(url: &str) -> Result<Address> {
    const KINDS: &str = "a remote is a folder, \"file:///DIR\" or \"s3://BUCKET/PREFIX\"";
    let bad = |message: String| Err(Error::user("bad-remote", message).hint(KINDS));
    if url.is_empty() {
        return bad("the remote is empty".to_string());
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        // What was meant is clear, and it is no folder.
        return match ["s3:", "file:", "memory:"].iter().any(|scheme| url.starts_with(scheme)) {
            true => bad(format!("remote \"{url}\" lacks the \"//\" after its scheme")),
            false => Ok(Address::Folder(PathBuf::from(url))),
        };
    };
    match scheme {
        "memory" => Ok(Address::Memory),
        "file" => match url::Url::parse(url).ok().and_then(|url| url.to_file_path().ok()) {
            Some(path) => Ok(Address::Folder(path)),
            None => bad(format!("\"{url}\" names no folder")),
        },
        "s3" => {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            // Not quoted: it is in the way of what must not be shown.
            if bucket.contains('@') {
                return Err(
                    Error::user("bad-remote", "a remote's address must not hold credentials")
                        .hint(format!("set {ACCESS_KEY_ID} and {SECRET_ACCESS_KEY} instead")),
                );
            }
            let named = bucket.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if bucket.is_empty() || !named {
                return bad(format!("\"{url}\" names no bucket"));
            }
            Ok(Address::Bucket {
                bucket: bucket.to_string(),
                prefix: prefix.trim_matches('/').to_string(),
            })
        }
        _ => bad(format!("unknown scheme \"{scheme}\" of a remote")),
    }
}

fn folder(path: &Path, create: bool) -> Result<LocalFileSystem> {
    if create {
        std::fs::create_dir_all(path).map_err(|error| Error::io("create", path, &error))?;
    } else if !path.is_dir() {
        return Err(Error::user(
            "no-remote",
            format!("there is no remote store at \"{}\"", path.display()),
        )
        .hint("\"sluice push\" makes one"));
    }
    LocalFileSystem::new_with_prefix(path)
        .map_err(|error| Error::device("io", format!("cannot open \"{}\": {error}", path.display())))
}

/// The address of the service, unless it is that of AWS.
fn endpoint(options: &Options) -> Result<Option<&str>> {
    let Some(endpoint) = options.variable(ENDPOINT_URL) else {
        return Ok(None);
    };
    let parsed = url::Url::parse(endpoint).ok().filter(url::Url::has_host);
    let plain = |url: &url::Url| url.username().is_empty() && url.password().is_none();
    let Some(parsed) = parsed.filter(plain) else {
        // Not quoted: it may hold a password.
        return Err(Error::user(
            "bad-endpoint",
            format!("{ENDPOINT_URL} is not the address of a service"),
        )
        .hint("write it as https://HOST or http://HOST:PORT, without a user"));
    };
    let allowed = options
        .variable(ALLOW_HTTP)
        .is_some_and(|value| ["1", "true", "yes"].contains(&value.to_lowercase().as_str()));
    if parsed.scheme() == "http" && !allowed {
        return Err(Error::user("plain-http", format!("\"{endpoint}\" is not encrypted"))
            .hint(format!("set {ALLOW_HTTP}=true to go there nevertheless")));
    }
    Ok(Some(endpoint))
}

fn bucket_client(
    url: &str,
    bucket: &str,
    endpoint: Option<&str>,
    options: &Options,
    patience: &Patience,
) -> Result<AmazonS3> {
    let credential = |name: &str| {
        options.variable(name).ok_or_else(|| {
            Error::user(
                "no-credentials",
                format!("no credentials for \"{url}\": {name} is not set"),
            )
            .hint(format!(
                "set {ACCESS_KEY_ID} and {SECRET_ACCESS_KEY}, with temporary credentials {SESSION_TOKEN} too"
            ))
        })
    };
    let client = ClientOptions::new()
        .with_allow_http(endpoint.is_some_and(|endpoint| endpoint.starts_with("http:")))
        .with_connect_timeout(CONNECT)
        .with_timeout(patience.request);
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(8),
            base: 2.0,
        },
        max_retries: patience.retries,
        retry_timeout: patience.retry,
    };
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(options.variable(REGION).unwrap_or(DEFAULT_REGION))
        .with_access_key_id(credential(ACCESS_KEY_ID)?)
        .with_secret_access_key(credential(SECRET_ACCESS_KEY)?)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(token) = options.variable(SESSION_TOKEN) {
        builder = builder.with_token(token);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder
        .build()
        .map_err(|error| Error::user("bad-remote", format!("cannot open \"{url}\": {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let bucket = |bucket: &str, prefix: &str| Address::Bucket {
            bucket: bucket.to_string(),
            prefix: prefix.to_string(),
        };
        assert_eq!(parse("results").unwrap(), Address::Folder("results".into()));
        assert_eq!(parse("../a b").unwrap(), Address::Folder("../a b".into()));
        assert_eq!(parse("file:///a%20b/c").unwrap(), Address::Folder("/a b/c".into()));
        assert_eq!(parse("s3://lab").unwrap(), bucket("lab", ""));
        assert_eq!(parse("s3://lab/of/mine/").unwrap(), bucket("lab", "of/mine"));
        assert_eq!(parse("memory://").unwrap(), Address::Memory);
        for wrong in [
            "",
            "gs://lab",
            "s3:lab",
            "s3://",
            "s3:///x",
            "s3://a b",
            "file://host/x",
        ] {
            let error = parse(wrong).unwrap_err();
            assert_eq!(error.code, "bad-remote", "{wrong}");
            assert!(error.hint.is_some(), "{wrong}");
        }
    }

    fn options(variables: &[(&str, &str)]) -> Options {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Options {
            variables: variables.iter().map(own).collect(),
            create: false,
        }
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_secret_shown() {
        let open = |url: &str, variables: &[(&str, &str)]| RemoteStore::open(url, &options(variables)).err().unwrap();
        let none = open("s3://lab", &[]);
        assert_eq!(none.code, "no-credentials");
        assert!(none.message.contains(ACCESS_KEY_ID), "{none}");
        let half = open("s3://lab", &[(ACCESS_KEY_ID, "me"), (SECRET_ACCESS_KEY, "")]);
        assert!(half.message.contains("AWS_SECRET_ACCESS_KEY is not set"), "{half}");

        let inside = open("s3://me:hush@lab", &[]);
        assert!(
            inside.code == "bad-remote" && !inside.to_string().contains("hush"),
            "{inside}"
        );
        let endpoint = open("s3://lab", &[(ENDPOINT_URL, "http://me:hush@there")]);
        assert!(
            endpoint.code == "bad-endpoint" && !endpoint.to_string().contains("hush"),
            "{endpoint}"
        );
        let plain = open("s3://lab", &[(ENDPOINT_URL, "http://there")]);
        assert!(
            plain.code == "plain-http" && plain.to_string().contains(ALLOW_HTTP),
            "{plain}"
        );
    }

    #[test]
    fn a_folder_that_is_not_there_is_made_on_request_only() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let url = path.to_str().unwrap();
        assert_eq!(
            RemoteStore::open(url, &Options::default()).err().unwrap().code,
            "no-remote"
        );
        let create = Options {
            create: true,
            ..Options::default()
        };
        assert!(RemoteStore::open(url, &create).is_ok() && path.is_dir());
    }
}
