//! The server: how it is opened, what it is about, how it ends.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sluice_engine::event::Event;
use sluice_engine::store::Store;
use sluice_engine::{Error, Kind, Result};
use sluice_sql::Session;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};

use crate::guard::Guard;
use crate::index::Index;
use crate::routes::router;

/// Threads that read from and write to the network; what waits for the disk has threads of its own.
const NETWORK_THREADS: usize = 2;
/// Statements of the console that run at the same time.
const STATEMENTS: usize = 4;
/// How often a waiting caller looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);
/// How long those that are connected may take to hear that the server ends.
const PARTING: Duration = Duration::from_millis(500);

/// How a server is opened.
pub struct Open {
    /// `HOST:PORT`; port 0 takes a free one.
    pub address: String,
    /// Whether other machines may reach it, without TLS: the token and all rows can be read on the way.
    pub in_clear: bool,
    /// The store that is looked at.
    pub store: Store,
    /// What runs the statements of the console, over the same store; cancelling it ends the server.
    pub session: Session,
    /// Tells an event in words, a line or more.
    pub describe: fn(&Event) -> Vec<String>,
}

/// What answers are made from.
pub(crate) struct House {
    pub(crate) index: Index,
    pub(crate) session: Session,
    pub(crate) describe: fn(&Event) -> Vec<String>,
    pub(crate) guard: Guard,
    pub(crate) statements: Arc<Semaphore>,
}

impl House {
    pub(crate) fn store(&self) -> &Store {
        self.index.store()
    }
}

/// A server that answers until it is stopped or dropped.
pub struct Server {
    address: SocketAddr,
    token: String,
    session: Session,
    stop: watch::Sender<bool>,
    over: mpsc::Receiver<Result<()>>,
    // Dropped last, and from outside of it.
    runtime: Option<Runtime>,
}

/// Opens a server. It listens when this returns.
///
/// # Errors
///
/// The address is none, taken, or reached by other machines without leave.
pub fn open(options: Open) -> Result<Server> {
    let address = resolve(&options.address)?;
    if !address.ip().is_loopback() && !options.in_clear {
        let message = format!("other machines reach {address}, and the token and all rows can be read on the way");
        return Err(Error::user("clear-token", message)
            .hint("listen at 127.0.0.1 and reach it by ssh -L; or --insecure where the network is trusted"));
    }
    let listener = TcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| {
            Error::user("cannot-listen", format!("cannot listen at {address}: {error}"))
                .hint("another port may be free; port 0 takes one that is")
        })?;
    let address = listener
        .local_addr()
        .map_err(|error| Error::device("cannot-listen", error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("ui")
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Device, "no-threads", format!("cannot start threads: {error}")))?;
    let token = token()?;
    let index = Index::new(options.store);
    // What the store has so far is read before anyone asks.
    index.warm();
    let house = Arc::new(House {
        index,
        session: options.session.clone(),
        describe: options.describe,
        guard: Guard::new(&token, address),
        statements: Arc::new(Semaphore::new(STATEMENTS)),
    });
    let (stop, mut stopped) = watch::channel(false);
    let (told, over) = mpsc::channel();
    let inside = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener)
        .map_err(|error| Error::device("cannot-listen", error.to_string()))?;
    drop(inside);
    runtime.spawn(async move {
        let until = async move {
            // An error means that the server was dropped.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let ended = axum::serve(listener, router(house)).with_graceful_shutdown(until).await;
        let ended = ended.map_err(|error| Error::device("server", format!("the server ended: {error}")));
        let _ = told.send(ended);
    });
    Ok(Server {
        address,
        token,
        session: options.session,
        stop,
        over,
        runtime: Some(runtime),
    })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a browser opens, with the token that lets it in.
    pub fn url(&self) -> String {
        format!("http://{}/?token={}", self.address, self.token)
    }

    /// Waits until the session is cancelled, then ends the server.
    ///
    /// # Errors
    ///
    /// The server cannot go on.
    pub fn wait(self) -> Result<()> {
        loop {
            match self.over.recv_timeout(LOOK) {
                Ok(ended) => return ended,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("the server's thread is gone"));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if self.session.cancel().is_cancelled() => {
                    let _ = self.stop.send(true);
                    // A browser that does not hang up is not waited for.
                    let _ = self.over.recv_timeout(PARTING);
                    return Ok(());
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(PARTING);
        }
    }
}

fn resolve(text: &str) -> Result<SocketAddr> {
    let bad = |why: String| {
        Error::user("bad-address", format!("\"{text}\" is no address to listen at: {why}"))
            .hint("write HOST:PORT, such as 127.0.0.1:8080; port 0 takes a free one")
    };
    let mut found = text.to_socket_addrs().map_err(|error| bad(error.to_string()))?;
    found.next().ok_or_else(|| bad("nothing has this name".to_string()))
}

/// 32 random bytes in hexadecimal, from the system.
fn token() -> Result<String> {
    let mut bytes = [0u8; 32];
    getrandom::fill(&mut bytes).map_err(|error| Error::device("no-randomness", format!("no token: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
