//! Tests of the server within one process.
