//! Pipelines as data: spec -> graph -> plan -> run; the artifact store; events.
//!
//! The engine knows Arrow, Parquet and timely. It knows nothing of the domain of the operators it
//! runs: they come in through a [`Registry`](operator::Registry) and see tables, never the dataflow.

pub mod cause;
pub mod collect;
pub mod difference;
pub mod disk;
pub mod energy;
pub mod error;
pub mod event;
pub mod expect;
mod gather;
pub mod graph;
pub mod harness;
pub mod history;
pub mod inspect;
mod journal;
pub mod key;
pub mod operator;
pub mod partition;
pub mod plan;
pub mod process;
pub mod random;
pub mod run;
pub mod runtime;
mod scheduler;
pub mod slots;
pub mod spec;
pub mod store;
pub mod sweep;
pub mod table;
pub mod text;
mod verify;
pub mod yaml;

pub use error::{Error, Kind, Place, Result};
