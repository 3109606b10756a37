//! Pipelines as data: spec -> graph -> plan -> run; the artifact store; events.
//!
//! The engine knows Arrow, Parquet and timely. It knows nothing of the domain of the operators it
//! runs: they come in through a [`Registry`](operator::Registry) and see tables, never the dataflow.

pub mod error;
pub mod event;
pub mod expect;
pub mod graph;
pub mod harness;
pub mod key;
pub mod operator;
pub mod partition;
pub mod plan;
pub mod random;
pub mod run;
pub mod runtime;
mod scheduler;
pub mod spec;
pub mod store;
pub mod table;
pub mod text;
pub mod yaml;

pub use error::{Error, Kind, Place, Result};
