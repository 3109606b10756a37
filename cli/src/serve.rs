//! `sluice serve`: the store for other programs, over Arrow Flight SQL.

use std::path::Path;
use std::time::Duration;

use sluice_engine::store::Store;
use sluice_engine::{Error, Result};
use sluice_sql::flight::{Serve, Tls, serve as open};
use sluice_sql::{Limits, Session, Source};

use crate::arguments;
use crate::check::data_root;
use crate::display::say;
use crate::signals::cancel_on_ctrl_c;

/// The variable that the token is looked up in.
const TOKEN: &str = "SLUICE_TOKEN";

/// `sluice serve`.
pub fn serve(command: &arguments::Serve) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let limits = Limits {
        threads: command.threads.map_or(0, usize::from),
        memory: command.memory,
        spill: None,
        timeout: command.timeout.map(Duration::from_secs_f64),
    };
    let source = Source {
        store,
        registry: sluice_operators::registry(),
        run: command.run.clone(),
        data_root: data_root(command.data.as_deref()),
        any_file: false,
    };
    let options = Serve {
        address: command.flight.clone(),
        token: token(command).map_err(one)?,
        tls: tls(command).map_err(one)?,
        in_clear: command.insecure,
    };
    let cancel = cancel_on_ctrl_c()?;
    let session = Session::new(&limits, &cancel).map_err(one)?.over(source).map_err(one)?;
    let server = open(session, &options).map_err(one)?;
    say!("flight sql: {}", server.url());
    // Asked to end, a server that ends has done what it should.
    server.wait().map_err(one)
}

/// The token of the flags, else of the environment.
fn token(command: &arguments::Serve) -> Result<Option<String>> {
    if let Some(token) = &command.token {
        return Ok(Some(token.clone()));
    }
    let Some(path) = &command.token_file else {
        return Ok(std::env::var(TOKEN).ok().filter(|token| !token.is_empty()));
    };
    let text = String::from_utf8(read(path)?).unwrap_or_default();
    match text.trim() {
        "" => Err(
            Error::user("bad-token", format!("\"{}\" holds no token", path.display()))
                .hint("openssl rand -hex 24 makes one"),
        ),
        token => Ok(Some(token.to_string())),
    }
}

fn tls(command: &arguments::Serve) -> Result<Option<Tls>> {
    let (Some(certificate), Some(key)) = (&command.tls_cert, &command.tls_key) else {
        return Ok(None);
    };
    Ok(Some(Tls {
        certificate: read(certificate)?,
        key: read(key)?,
    }))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| Error::io("read", path, &error))
}
