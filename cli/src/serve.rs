//! `sluice serve`: the store for other programs, over Arrow Flight SQL.

use std::path::Path;

use sluice_engine::{Error, Result};
use sluice_sql::flight::{Serve, Tls, serve as start};

use crate::arguments;
use crate::display::say;
use crate::sql::open;

/// The variable that the token is looked up in.
const TOKEN: &str = "SLUICE_TOKEN";

/// `sluice serve`.
pub fn serve(command: &arguments::Serve) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let options = Serve {
        address: command.flight.clone(),
        token: token(command).map_err(one)?,
        tls: tls(command).map_err(one)?,
        in_clear: command.insecure,
    };
    let (session, _) = open(&command.look, false)?;
    let server = start(session, &options).map_err(one)?;
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
