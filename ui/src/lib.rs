//! A local web page over the store: pipelines and runs with live state, curves, artifacts, SQL. It only reads.
//!
//! [`open`] starts a server that answers the page's requests with JSON, and hands out the page itself, which is part of the
//! program. Who may ask is decided in one place ([`guard`]); what is asked often is kept ([`index`]). There is no request
//! that changes anything: SQL goes through a session of [`sluice_sql`], which only reads.
//! Inside, the crate is async; whoever calls it just waits.

mod answer;
mod artifacts;
mod assets;
mod compare;
mod course;
mod graph;
mod guard;
mod index;
mod log;
mod overview;
mod routes;
mod runs;
mod server;
mod sql;
mod stage;

pub use server::{Open, Server, open};
