//! SQL over artifacts, runs and events, with DataFusion: what `sluice sql`, the `sql` operator and the server share.
//!
//! A [`Session`] plans and runs statements, within limits. What it sees are tables: those of a store
//! or of a stage's inputs ([`stage`]). Statements only read: see [`statement`].
//! Inside, the crate is async; whoever calls it just waits.

pub mod browse;
mod catalog;
mod columns;
mod failure;
mod files;
mod first_rows;
pub mod flight;
mod folder;
pub mod functions;
mod join_filters;
mod live;
pub mod output;
mod outputs;
mod parts;
pub mod queries;
mod row_numbers;
mod scope;
pub mod session;
mod settle;
pub mod stage;
pub mod statement;
pub mod system;
mod text_views;

pub use catalog::Source;
pub use session::{Limits, Rows, Session};
pub use statement::Statement;
