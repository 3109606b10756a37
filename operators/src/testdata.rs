//! Where tests find real data: `SLUICE_DATA`, else `../shared/data` beside the repository.

use std::path::PathBuf;

use sluice_engine::operator::{Cancel, Context};

/// The data folder, or `None` with a printed reason: then the test has nothing to test.
#[allow(clippy::print_stderr)]
pub fn folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = PathBuf::from(std::env::var("SLUICE_DATA").unwrap_or_else(|_| beside.to_string()));
    if folder.join("README.md").is_file() {
        return Some(folder);
    }
    eprintln!("skipped: no data at \"{}\"; set SLUICE_DATA", folder.display());
    None
}

/// A harness whose data root is the data folder.
pub fn harness() -> Option<sluice_engine::harness::Harness> {
    Some(sluice_engine::harness::Harness {
        data_root: folder()?,
        ..Default::default()
    })
}

/// A context for calls that the harness does not make.
pub fn context(harness: &sluice_engine::harness::Harness, operator: &'static str) -> Context {
    Context::new(
        operator,
        harness.seed,
        &harness.data_root,
        &harness.attempt,
        &Cancel::default(),
    )
}
