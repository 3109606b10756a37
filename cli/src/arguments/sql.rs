//! The command line of `sql`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{parse_bytes, parse_time};

/// Arguments of `sql`.
#[derive(Args)]
#[command(
    after_help = "Tables are stages of the newest run: stage, stage.port; of another one: RUN.stage, PIPELINE.stage.port. A swept \
    stage is one table with its axes as columns, one instance \"stage[axis=value]\". The tables of sys tell of runs: sys.runs, \
    sys.stages, sys.metrics, sys.why and others. Statements only read.\n\n\
    Examples:\n  sluice sql \"SELECT * FROM metrics\"\n  \
    sluice sql \"SELECT stage, outcome, seconds FROM sys.stages WHERE run = (SELECT max(run) FROM sys.runs)\"\n  \
    sluice sql --query collisions --format markdown\n  \
    sluice sql            opens a shell"
)]
pub struct Sql {
    /// The statement; - reads statements from the standard input; left out, a shell opens
    pub statement: Option<String>,
    /// Read statements from a file
    #[arg(long, short, value_name = "FILE", conflicts_with = "statement")]
    pub file: Option<PathBuf>,
    /// A query that comes with the program; without NAME they are listed
    #[arg(long, short, value_name = "NAME", num_args = 0..=1, default_missing_value = "", conflicts_with_all = ["statement", "file"])]
    pub query: Option<String>,
    /// Give a value to $NAME in the statement (may be given again)
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// How to print [default: by the name of --output, else table]
    #[arg(long, value_enum)]
    pub format: Option<SqlFormat>,
    /// Write the rows to a file
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Print all rows and whole cells of a table
    #[arg(long)]
    pub all: bool,
    /// Say how long each statement took
    #[arg(long)]
    pub timing: bool,
    /// Let read_csv, read_json, read_parquet and read_lines read files outside the data root
    #[arg(long)]
    pub allow_files: bool,
    /// What is looked at, and within which limits.
    #[command(flatten)]
    pub look: Look,
}

/// What statements look at, and within which limits.
#[derive(Args)]
pub struct Look {
    /// The run, or the pipeline for its newest run, that tables are of [default: the newest]
    #[arg(long, short, value_name = "RUN")]
    pub run: Option<String>,
    /// What statements may hold in memory, then they spill to disk (such as 512M, 4G) [default: half of the machine's]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<usize>,
    /// End a statement that runs longer (such as 90s, 10m)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<f64>,
    /// Threads of statements [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Where relative data paths start [default: $SLUICE_DATA, else data/]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// How rows are printed.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum SqlFormat {
    /// Aligned columns
    Table,
    /// Comma-separated values
    Csv,
    /// One JSON array
    Json,
    /// A JSON object a line
    Ndjson,
    /// A Parquet file
    Parquet,
    /// An Arrow IPC file
    Arrow,
    /// A Markdown table
    Markdown,
    /// A LaTeX table
    Latex,
}
