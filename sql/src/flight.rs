//! A read-only Arrow Flight SQL server over a [`Session`]: how it is opened, who may use it, how it ends.
//!
//! The protocol is that of <https://arrow.apache.org/docs/format/FlightSql.html>. Statements run on the session's threads
//! and within its limits; the network has threads of its own, so the server answers while statements compute.

mod access;
mod answer;
mod bounds;
mod kept;
mod listing;
mod params;
mod plain;
mod service;
mod status;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::mpsc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use sluice_engine::{Error, Kind, Result};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server as Transport, ServerTlsConfig};

use crate::session::{LOOK, STACK, Session};
use access::Access;
use service::Service;

/// Threads that read from and write to the network.
const NETWORK_THREADS: usize = 2;
/// The largest message that is taken: statements, values for them, commands.
const LARGEST_REQUEST: usize = 4 << 20;
/// How much a client may send before it is read.
const WINDOW: u32 = 1 << 20;
/// Calls that one connection may have open.
const CALLS: u32 = 256;
/// How long those that are connected may take to hear that the server ends.
const PARTING: Duration = Duration::from_secs(2);
/// The shortest token that is taken.
const SHORTEST_TOKEN: usize = 8;

/// How a server is opened.
#[derive(Clone, Default)]
pub struct Serve {
    /// `HOST:PORT`; port 0 takes a free one.
    pub address: String,
    /// What clients must show; anyone may come if there is none.
    pub token: Option<String>,
    /// TLS, if connections are to be encrypted.
    pub tls: Option<Tls>,
    /// Whether an address that other machines reach may do without TLS: a token and rows can be read on the way.
    pub in_clear: bool,
}

/// A certificate chain and its private key, in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The chain, the server's own certificate first.
    pub certificate: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
}

/// A server that accepts connections until it is stopped or dropped.
pub struct Server {
    address: SocketAddr,
    encrypted: bool,
    session: Session,
    stop: watch::Sender<bool>,
    over: mpsc::Receiver<Result<()>>,
    // Dropped last, and from outside of it.
    runtime: Option<Runtime>,
}

/// Opens a server over the tables of a session. It listens when this returns.
///
/// # Errors
///
/// The address is none, taken, or reached by other machines without what protects it; the token is too short; the
/// certificate or its key cannot be read.
pub fn serve(session: Session, options: &Serve) -> Result<Server> {
    let address = resolve(&options.address)?;
    allowed(address, options)?;
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
        .thread_stack_size(STACK)
        .thread_name("flight")
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Device, "no-threads", format!("cannot start threads: {error}")))?;
    let (stop, stopped) = watch::channel(false);
    let service = Service::new(session.clone(), Access::new(options.token.as_deref()), stopped.clone());
    let service = FlightServiceServer::new(service)
        .max_decoding_message_size(LARGEST_REQUEST)
        .max_encoding_message_size(usize::MAX);
    let mut transport = Transport::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .max_concurrent_streams(CALLS)
        .http2_max_header_list_size(32 << 10)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)));
    if let Some(tls) = &options.tls {
        let identity = Identity::from_pem(&tls.certificate, &tls.key);
        transport = transport
            .tls_config(ServerTlsConfig::new().identity(identity))
            .map_err(|error| bad_tls(&error))?;
    }
    let (told, over) = mpsc::channel();
    let (router, mut parting) = (transport.add_service(service), stopped.clone());
    let inside = runtime.enter();
    let incoming = tokio::net::TcpListener::from_std(listener)
        .map(|listener| TcpIncoming::from(listener).with_nodelay(Some(true)))
        .map_err(|error| Error::device("cannot-listen", error.to_string()))?;
    drop(inside);
    runtime.spawn(async move {
        let until = async move {
            // An error means that the server was dropped.
            let _ = parting.wait_for(|stopped| *stopped).await;
        };
        let ended = router.serve_with_incoming_shutdown(incoming, until).await;
        let ended = ended.map_err(|error| Error::device("server", format!("the server ended: {error}")));
        let _ = told.send(ended);
    });
    Ok(Server {
        address,
        encrypted: options.tls.is_some(),
        session,
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

    /// What clients connect to: `grpc://HOST:PORT`, or `grpc+tls://HOST:PORT`.
    pub fn url(&self) -> String {
        let scheme = if self.encrypted { "grpc+tls" } else { "grpc" };
        format!("{scheme}://{}", self.address)
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
                    self.stop();
                    return Ok(());
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Ends the server: running statements are told so and stop.
    pub fn stop(self) {
        let _ = self.stop.send(true);
        // A client that does not hang up is not waited for.
        let _ = self.over.recv_timeout(PARTING);
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
            .hint("write HOST:PORT, such as 127.0.0.1:31337; port 0 takes a free one")
    };
    let mut found = text.to_socket_addrs().map_err(|error| bad(error.to_string()))?;
    found.next().ok_or_else(|| bad("nothing has this name".to_string()))
}

/// Other machines reach the server only if it asks for a token and, unless said otherwise, encrypts.
fn allowed(address: SocketAddr, options: &Serve) -> Result<()> {
    if options.token.as_ref().is_some_and(|token| token.len() < SHORTEST_TOKEN) {
        let message = format!("the token is shorter than {SHORTEST_TOKEN} characters");
        return Err(Error::user("short-token", message).hint("openssl rand -hex 24 makes one"));
    }
    let printable = |token: &String| token.bytes().all(|byte| byte.is_ascii_graphic());
    if !options.token.iter().all(printable) {
        let message = "the token has spaces or letters that no header may have";
        return Err(Error::user("bad-token", message).hint("openssl rand -hex 24 makes one"));
    }
    if address.ip().is_loopback() {
        return Ok(());
    }
    if options.token.is_none() {
        let message = format!("other machines reach {address}, and anyone could read the store");
        return Err(Error::user("open-server", message)
            .hint("give a token: SLUICE_TOKEN, or --token-file FILE; or listen at 127.0.0.1 and reach it by ssh -L"));
    }
    if options.tls.is_none() && !options.in_clear {
        let message =
            format!("other machines reach {address}, and without TLS the token and all rows can be read on the way");
        return Err(Error::user("clear-token", message).hint(
            "give --tls-cert FILE --tls-key FILE; or --insecure where the network is trusted or encrypts by itself",
        ));
    }
    Ok(())
}

fn bad_tls(error: &tonic::transport::Error) -> Error {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Error::user(
        "bad-certificate",
        format!("cannot use the certificate and its key: {cause}"),
    )
    .hint("both are PEM files: the chain with the server's own certificate first, and its private key")
}
