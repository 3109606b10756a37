//! An S3 server for tests: `s3s` and `s3s-fs` over a folder, on a loopback port, with access keys.
//!
//! `s3s` checks signatures and speaks the protocol; `s3s-fs` keeps objects as files. It looks whether an object is
//! there before a conditional put and then puts, which is not one step as it is in S3; so conditional puts take turns
//! here. It answers errors as S3 does, but knows no regions, session tokens, permissions or lifecycle.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper::{Request, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;

/// The bucket that is there.
pub const BUCKET: &str = "lab";

/// What the server takes.
pub const KEY: &str = "house-key";

/// What requests are signed with.
pub const SECRET: &str = "house-hush-hush";

/// A server that runs until the process ends.
pub struct S3Server {
    folder: TempDir,
    address: SocketAddr,
    traffic: Arc<Traffic>,
}

#[derive(Default)]
struct Traffic {
    requests: AtomicUsize,
    delay: AtomicU64,
    conditional: tokio::sync::Mutex<()>,
}

impl S3Server {
    /// Starts a server with an empty bucket.
    pub fn start() -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::create_dir(folder.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        let traffic = Arc::new(Traffic::default());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = traffic.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(serve(listener, service, shared));
        });
        S3Server {
            folder,
            address,
            traffic,
        }
    }

    /// The address of a store in the bucket.
    pub fn url(&self) -> String {
        format!("s3://{BUCKET}/shared")
    }

    /// Where the store's files are on disk.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().join(BUCKET).join("shared")
    }

    /// The variables that a client needs.
    pub fn variables(&self) -> BTreeMap<String, String> {
        let endpoint = format!("http://{}", self.address);
        [
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ALLOW_HTTP", "true"),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .into()
    }

    /// A command that finds the server.
    pub fn known_to(&self, mut command: Command) -> Command {
        command.envs(self.variables());
        command
    }

    /// Makes every request from now on take that much longer.
    pub fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap();
        self.traffic.delay.store(millis, Ordering::SeqCst);
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.traffic.requests.load(Ordering::SeqCst)
    }
}

async fn serve(listener: std::net::TcpListener, service: S3Service, traffic: Arc<Traffic>) {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (service, traffic) = (service.clone(), traffic.clone());
        let answer = service_fn(move |request: Request<Incoming>| {
            let (service, traffic) = (service.clone(), traffic.clone());
            async move {
                traffic.requests.fetch_add(1, Ordering::SeqCst);
                let delay = Duration::from_millis(traffic.delay.load(Ordering::SeqCst));
                tokio::time::sleep(delay).await;
                let conditional = request.headers().contains_key(header::IF_NONE_MATCH);
                let _turn = match conditional {
                    true => Some(traffic.conditional.lock().await),
                    false => None,
                };
                let answer = Service::call(&service, request).await;
                Ok::<_, Infallible>(answer.expect("the server answers"))
            }
        });
        tokio::spawn(async move {
            // A client that was killed ends it too.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(socket), answer)
                .await;
        });
    }
}
