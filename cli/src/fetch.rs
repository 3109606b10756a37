//! `sluice fetch`: a model from the Hugging Face hub, for stages that name it.

use sluice_engine::Error;
use sluice_operators::checkpoints::hub_cache;
use sluice_remote::hub::{HUB, Wanted, fetch as download};

use crate::arguments;
use crate::display::{bytes, say};
use crate::meter::Meter;

/// Variables of the hub's own tools: where the hub is, and the token to send.
const ENDPOINT: &str = "HF_ENDPOINT";
const TOKEN: &str = "HF_TOKEN";

/// `sluice fetch`.
pub fn fetch(command: &arguments::Fetch) -> Result<(), Vec<Error>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let no_home = || Error::user("no-home", "there is no home folder, and the hub's cache lies in it").hint("set HOME");
    let wanted = Wanted {
        name: command.model.clone(),
        revision: command.revision.clone(),
        endpoint: variable(ENDPOINT)
            .unwrap_or(HUB.into())
            .trim_end_matches('/')
            .to_string(),
        token: variable(TOKEN),
        cache: hub_cache().ok_or_else(|| vec![no_home()])?,
    };
    let mut meter = Meter::new();
    let mut tell = |file: &str, here, all| meter.tell(|| format!("{file}: {} of {}", bytes(here), bytes(all)));
    let fetched = download(&wanted, &mut tell).map_err(|error| vec![error])?;
    drop(meter);
    say!(
        "{} at {}: {} files came ({}), {} were here",
        wanted.name,
        &fetched.commit[..fetched.commit.len().min(12)],
        fetched.files,
        bytes(fetched.bytes),
        fetched.there
    );
    say!("{}", fetched.folder.display());
    Ok(())
}
