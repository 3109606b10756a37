//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Generative-recommendation experiments as dataflow.
///
/// A pipeline is one YAML file: a graph of operators from raw interactions to metrics. Every intermediate result is a
/// table in the store; when the pipeline changes, exactly what depends on the change runs again.
#[derive(Parser)]
#[command(name = "sluice", version, max_term_width = 100)]
#[command(after_help = "Start with:\n  sluice run pipelines/quickstart.yaml\n\n\
    Exit codes: 0 done, 2 the pipeline or the flags are wrong, 3 the data are wrong, 4 a device failed, 130 interrupted, 101 our fault")]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Check a whole pipeline (keys, types, columns, sizes) without running anything
    Check(Pipeline),
    /// Show what a run would do with every stage, and because of what
    Plan(Plan),
    /// Run a pipeline; what is already there is reused
    Run(Box<Run>),
    /// List the operators, or print the reference of one
    Ops(Ops),
    /// Show a stage's table: schema, rows, first rows, manifest
    Show(Show),
    /// Copy results to a remote store: a folder or a bucket
    Push(Push),
    /// Copy results from a remote store, checked and whole
    Pull(Pull),
}

/// Which pipeline, and what to change in it.
#[derive(Args)]
pub struct Pipeline {
    /// The pipeline's YAML file
    #[arg(value_name = "PIPELINE")]
    pub file: PathBuf,
    /// Change a key of a stage, such as --set tiger.layers=2 (may be given again)
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub set: Vec<String>,
    /// Give a value to a parameter of the pipeline (may be given again)
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub params: Vec<String>,
    /// Where relative data paths start [default: $SLUICE_DATA, else data/]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
    /// Take what the store lacks from a remote one: a folder, file:///DIR or s3://BUCKET/PREFIX
    #[arg(long, value_name = "REMOTE")]
    pub remote: Option<String>,
}

/// Arguments of `plan`.
#[derive(Args)]
pub struct Plan {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// Plan as if this stage had to run (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `run`.
#[derive(Args)]
pub struct Run {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// Run this stage even if its artifact is there (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
    /// Worker threads of the dataflow [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
    /// Rows that wait for their partition take at most this much memory, then spill to disk (such as 512M, 4G)
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = parse_bytes)]
    pub memory: usize,
    /// Run over several processes: a file of host:port lines, the same for all; start every process with its --process
    #[arg(long, value_name = "FILE", requires = "process")]
    pub hosts: Option<PathBuf>,
    /// Which line of --hosts this process is, from 0
    #[arg(long, value_name = "N", requires = "hosts")]
    pub process: Option<usize>,
    /// Print nothing but results and errors
    #[arg(long, conflicts_with = "json")]
    pub quiet: bool,
    /// Print events as JSON lines
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `ops`.
#[derive(Args)]
pub struct Ops {
    /// The operator whose reference to print
    pub operator: Option<String>,
    /// Print the JSON schema of its config
    #[arg(long, requires = "operator")]
    pub schema: bool,
    /// Print the JSON schema of a whole pipeline, for editors (the file pipeline.schema.json)
    #[arg(long, conflicts_with_all = ["operator", "schema"])]
    pub json_schema: bool,
}

/// Arguments of `show`.
#[derive(Args)]
pub struct Show {
    /// The stage, or stage.port
    pub stage: String,
    /// The pipeline's YAML file; the newest run if left out
    #[arg(long, short, value_name = "PIPELINE")]
    pub pipeline: Option<String>,
    /// Rows to print
    #[arg(long, short = 'n', default_value_t = 10)]
    pub rows: usize,
    /// Print the manifest as JSON
    #[arg(long)]
    pub manifest: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `push`.
#[derive(Args)]
#[command(after_help = BUCKETS)]
pub struct Push {
    /// A folder, file:///DIR or s3://BUCKET/PREFIX
    #[arg(value_name = "REMOTE")]
    pub remote: String,
    /// The newest run of this pipeline [default: of every pipeline]
    #[arg(long, short, value_name = "NAME", conflicts_with_all = ["run", "all"])]
    pub pipeline: Option<String>,
    /// This run
    #[arg(long, value_name = "RUN", conflicts_with = "all")]
    pub run: Option<String>,
    /// Everything in the store
    #[arg(long)]
    pub all: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `pull`.
#[derive(Args)]
#[command(after_help = BUCKETS)]
pub struct Pull {
    /// A folder, file:///DIR or s3://BUCKET/PREFIX
    #[arg(value_name = "REMOTE")]
    pub remote: String,
    /// The newest run of this pipeline [default: of every pipeline]
    #[arg(long, short, value_name = "NAME", conflicts_with_all = ["key", "all"])]
    pub pipeline: Option<String>,
    /// These keys
    #[arg(long, value_name = "KEY", num_args = 1.., conflicts_with = "all")]
    pub key: Vec<String>,
    /// Everything that is there
    #[arg(long)]
    pub all: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// How buckets are opened.
const BUCKETS: &str = "What is there already is not copied again. Buckets are opened with AWS_ACCESS_KEY_ID, \
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL and AWS_ALLOW_HTTP.";

/// `512M`, `4G`, `1048576`.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = match text.to_ascii_uppercase().trim_end_matches('B') {
        text if text.ends_with('K') => (text.trim_end_matches('K').to_string(), 1 << 10),
        text if text.ends_with('M') => (text.trim_end_matches('M').to_string(), 1 << 20),
        text if text.ends_with('G') => (text.trim_end_matches('G').to_string(), 1 << 30),
        text => (text.to_string(), 1usize),
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 => Ok((number * unit as f64) as usize),
        _ => Err("write a size such as 512M or 4G".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_bytes("512M"), Ok(512 << 20));
        assert_eq!(parse_bytes("1.5GB"), Ok(3 << 29));
        assert_eq!(parse_bytes("77"), Ok(77));
        assert!(parse_bytes("many").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
