//! `sluice ui`: the store in a browser.

use std::process::{Command, Stdio};
use std::time::Duration;

use sluice_engine::Error;
use sluice_engine::store::Store;
use sluice_ui::Open;

use crate::arguments;
use crate::display::say;
use crate::logs::describe;
use crate::sql::open_within;

/// How long a statement of the console may run unless the command line says so.
const PATIENCE: Duration = Duration::from_secs(60);

/// `sluice ui`.
pub fn ui(command: &arguments::Ui) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let (session, _) = open_within(&command.look, false, Some(PATIENCE))?;
    let server = sluice_ui::open(Open {
        address: command.address.clone(),
        in_clear: command.insecure,
        store: Store::existing(&command.look.store).map_err(one)?,
        session,
        describe,
    });
    let server = server.map_err(one)?;
    let url = server.url();
    say!("ui: {url}");
    if command.open {
        show(&url);
    }
    server.wait().map_err(one)
}

/// Opens the address in whatever browser there is; the address is printed, so it does not matter if there is none.
fn show(url: &str) {
    let programs = ["xdg-open", "open"];
    let opened = programs.iter().any(|program| {
        let command = Command::new(program)
            .arg(url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        command.is_ok()
    });
    if !opened {
        eprintln!("no browser was found: open the address in one");
    }
}
