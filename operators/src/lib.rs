//! Every step of an experiment, one file each; `schema` is the column vocabulary, `registry` the list.

pub mod schema;

use sluice_engine::operator::Registry;

/// All operators of the house.
pub fn registry() -> Registry {
    Registry::new()
}
