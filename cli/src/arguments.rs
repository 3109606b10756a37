//! The command line.

mod past;
mod serve;
mod sql;
mod ui;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use past::{Diff, Gc, Logs, Pin, Report, Runs, Store, StoreCommand, Tensorboard, Verify, Why};
pub use serve::Serve;
pub use sql::{Look, Sql, SqlFormat};
pub use ui::Ui;

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
    /// Ask the store in SQL: tables of stages, runs, live metrics; without a statement a shell opens
    Sql(Box<Sql>),
    /// Answer statements of other programs, over Arrow Flight SQL
    Serve(Box<Serve>),
    /// Look at the store in a browser: pipelines, runs, curves, artifacts, SQL; it only reads
    Ui(Box<Ui>),
    /// Compare systems by the users they were scored on: means over seeds, paired differences, p values
    Compare(Compare),
    /// Write a report with its costs, its graph and where every number is from
    Report(Report),
    /// Write the training curves of a run for TensorBoard, a folder a stage
    Tensorboard(Tensorboard),
    /// Say why a stage runs, or ran: what changed, followed upstream to the roots
    Why(Why),
    /// Show what differs between two runs: configs, rows, columns, values of small tables
    Diff(Diff),
    /// List the runs of the store, the newest first
    Runs(Runs),
    /// Print what happened in a run, line by line
    Logs(Logs),
    /// Keep everything of a run, whatever gc removes
    Pin(Pin),
    /// Keep a run no longer than any other
    Unpin(Pin),
    /// Say what of the store no newest or pinned run needs; --yes removes it
    Gc(Gc),
    /// Look after the store
    Store(Store),
    /// Run a sample of stages again and compare what they make with what is in the store
    Verify(Verify),
    /// Copy results to a remote store: a folder or a bucket
    Push(Push),
    /// Copy results from a remote store, checked and whole
    Pull(Pull),
    /// Download a model from the Hugging Face hub into its cache, for stages that name it
    Fetch(Fetch),
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
    /// What to run of it.
    #[command(flatten)]
    pub choice: Choice,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["mermaid", "html"])]
    pub json: bool,
    /// Print a flowchart for Mermaid
    #[arg(long, conflicts_with = "html")]
    pub mermaid: bool,
    /// Write a page with the graph and the table of stages; it needs no network
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// What to run of a pipeline. STAGE may name one instance of a sweep, such as "tiger[size=13m,seed=2]", or all that
/// agree with it: tiger, "tiger[size=13m]".
#[derive(Args, Default)]
pub struct Choice {
    /// Run this stage even if its artifact is there (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub force: Vec<String>,
    /// Run no more than this stage and what it needs (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub until: Vec<String>,
    /// Run no more than this stage and what depends on it (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub from: Vec<String>,
    /// Run no more than this stage (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub only: Vec<String>,
    /// Keep this stage's old artifact although its operator's version moved (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub accept: Vec<String>,
    /// Refuse a plan that costs more, as far as history tells (such as 90s, 10m, 2h)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub max_cost: Option<f64>,
}

/// Arguments of `run`.
#[derive(Args)]
pub struct Run {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// What to run of it.
    #[command(flatten)]
    pub choice: Choice,
    /// Refuse unless the plan is the one of this fingerprint, as "sluice plan" printed it
    #[arg(long, value_name = "FINGERPRINT")]
    pub plan: Option<String>,
    /// Go on with stages that do not depend on a failed one
    #[arg(long)]
    pub keep_going: bool,
    /// Run at most this many trainings, quantizers and the like side by side [default: as many as workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Cores that stages with "resources: { cpus: N }" share [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub cpus: Option<u16>,
    /// Memory that stages with "resources: { memory: SIZE }" share [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub slots_memory: Option<usize>,
    /// Ids of the devices that stages with "resources: { gpus: N }" share, such as 0,1 [default: all NVIDIA devices]
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    pub gpus: Option<Vec<usize>>,
    /// Time between two checkpoints of a training
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_time)]
    pub checkpoint_every: f64,
    /// How long another run that shows no sign of life keeps what it works on
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = parse_time)]
    pub lease: f64,
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

/// Arguments of `compare`.
#[derive(Args)]
#[command(
    after_help = "A stage of a sweep, such as tiger_metrics, stands for all its instances: those that differ in \
    \"seed\" alone are the runs of one system, and ± is the standard deviation over them. Arguments with the same NAME= are \
    the runs of one system, too: compare A=RUN1:metrics A=RUN2:metrics B=other_metrics.\n\n\
    Differences are paired by user, after averaging seeds. p is that of a two-sided sign-flip test over users, Holm p \
    the same corrected for the number of pairs."
)]
pub struct Compare {
    /// Stages of score_ranking, of the newest run unless RUN says which; NAME is what the table calls it
    #[arg(required = true, value_name = "[NAME=][RUN:]STAGE")]
    pub stages: Vec<String>,
    /// The newest run of this pipeline; of any pipeline if left out
    #[arg(long, short, value_name = "PIPELINE", conflicts_with = "run")]
    pub pipeline: Option<String>,
    /// The run of this name
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Metrics, such as recall_10,ndcg_10 [default: all that every stage has]
    #[arg(long, value_name = "METRIC", value_delimiter = ',')]
    pub metric: Vec<String>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Resamples of intervals, and of p values that are not exact
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub resamples: u32,
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
    /// This run: a name, its beginning, "last", or a pipeline for its newest run
    #[arg(long, value_name = "RUN", conflicts_with = "all")]
    pub run: Option<String>,
    /// Everything in the store
    #[arg(long)]
    pub all: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// How a comparison is printed.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Format {
    /// Aligned columns
    Text,
    /// One table for programs: a row a system or pair and metric
    Csv,
    /// Tables for documents; the best is bold, the second underlined
    Markdown,
    /// Tables for papers; the best is bold, the second underlined
    Latex,
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

/// Which model to download.
#[derive(Args)]
#[command(
    after_help = "What is there already is not downloaded again; a download that was cut off goes on. HF_ENDPOINT names \
    another hub, HF_TOKEN is sent along for models behind a licence."
)]
pub struct Fetch {
    /// OWNER/NAME, such as Qwen/Qwen3-0.6B
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// A branch, a tag or a commit; stages find what was fetched as main
    #[arg(long, value_name = "REVISION", default_value = "main")]
    pub revision: String,
}

/// How buckets are opened.
const BUCKETS: &str = "What is there already is not copied again. Buckets are opened with AWS_ACCESS_KEY_ID, \
    AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL and AWS_ALLOW_HTTP.";

/// `90s`, `10m`, `2h`, `1.5`: seconds.
fn parse_time(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim() {
        text if text.ends_with("ms") => (text.trim_end_matches("ms"), 1e-3),
        text if text.ends_with('s') => (text.trim_end_matches('s'), 1.0),
        text if text.ends_with('m') => (text.trim_end_matches('m'), 60.0),
        text if text.ends_with('h') => (text.trim_end_matches('h'), 3600.0),
        text => (text, 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number * unit),
        _ => Err("write a time such as 90s, 10m or 2h".to_string()),
    }
}

/// `512M`, `4G`, `1048576`.
fn parse_bytes(text: &str) -> Result<usize, String> {
    let bytes = sluice_engine::slots::bytes(text);
    bytes
        .map(|bytes| bytes as usize)
        .ok_or_else(|| "write a size such as 512M or 4G".to_string())
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
        assert_eq!(parse_time("10m"), Ok(600.0));
        assert_eq!(parse_time("250ms"), Ok(0.25));
        assert!(parse_time("-1s").is_err() && parse_time("soon").is_err());
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
