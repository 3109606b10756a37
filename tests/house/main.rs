//! The house as its users meet it: the real binary over real pipelines, the numbers it must reproduce, its rules.

mod bad_input;
mod bytes;
mod command_line;
mod compares;
mod crashes;
mod data_tests;
mod disks;
mod flight;
mod flight_fuzz;
mod history;
mod hosts;
mod interrupts;
mod raw_reviews;
mod recipes;
mod remotes;
mod reruns;
mod rules;
mod s3;
mod sluice;
mod sql;
mod sweeps;
mod takeovers;
mod transfers;
