//! The command line of what is kept: runs, what changed between them, and the store.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Pipeline, parse_bytes};

/// Arguments of `why`.
#[derive(Args)]
#[command(
    after_help = "Without --pipeline, the stage's key in the newest run (or --run RUN) is compared with the one before it: the \
    newest earlier run of the same pipeline in which that key was another one."
)]
pub struct Why {
    /// The stage; one of a sweep stands for all its instances
    pub stage: String,
    /// Say what a run of this file would do with the stage, and because of what
    #[arg(long, short, value_name = "PIPELINE", conflicts_with = "run")]
    pub pipeline: Option<PathBuf>,
    /// Say why the stage is what it is in this run [default: the newest]
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// Change a key of a stage, such as --set tiger.layers=2 (may be given again)
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE", requires = "pipeline")]
    pub set: Vec<String>,
    /// Give a value to a parameter of the pipeline (may be given again)
    #[arg(long = "param", value_name = "NAME=VALUE", requires = "pipeline")]
    pub params: Vec<String>,
    /// Where relative data paths start [default: $SLUICE_DATA, else data/]
    #[arg(long, value_name = "DIR", requires = "pipeline")]
    pub data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `diff`.
#[derive(Args)]
pub struct Diff {
    /// The one run: a name, its beginning, "last", or a pipeline for its newest run
    #[arg(value_name = "RUN")]
    pub old: String,
    /// The other run
    #[arg(value_name = "RUN")]
    pub new: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `runs`.
#[derive(Args)]
pub struct Runs {
    /// Only runs of this pipeline
    #[arg(long, short, value_name = "NAME")]
    pub pipeline: Option<String>,
    /// The newest N
    #[arg(short = 'n', value_name = "N", default_value_t = 20)]
    pub most: usize,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `logs`.
#[derive(Args)]
pub struct Logs {
    /// The run: a name, its beginning, "last", or a pipeline for its newest run
    pub run: String,
    /// Only this stage
    pub stage: Option<String>,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `tensorboard`.
#[derive(Args)]
#[command(
    after_help = "Then: tensorboard --logdir DIR. Every stage with a curve (trainings, and quantizers that are trained) gets \
    DIR/RUN/STAGE; all instances of a sweep stand side by side. Times are those at which the run told its steps; where that \
    run is no longer known, time begins in 1970. Writing again writes the same files."
)]
pub struct Tensorboard {
    /// The folder to write to
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The newest run of this pipeline; of any pipeline if left out
    #[arg(long, short, value_name = "PIPELINE", conflicts_with_all = ["run", "all"])]
    pub pipeline: Option<String>,
    /// This run: a name, its beginning, "last", or a pipeline for its newest run
    #[arg(long, value_name = "RUN", conflicts_with = "all")]
    pub run: Option<String>,
    /// Every run of the store; a curve that several runs share is written once, for the first of them
    #[arg(long)]
    pub all: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `report`.
#[derive(Args)]
#[command(
    after_help = "A stage of render_report makes the report; what only a run knows is added here: the stage, key and run behind \
    every table, what each stage cost, and the graph. DIR gets report.html, which needs nothing beside it, report.md with its \
    figures, and report.tex. A report under \"show:\" is written into the folder of the run when it ends."
)]
pub struct Report {
    /// The folder to write to
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The newest run of this pipeline; of any pipeline if left out
    #[arg(long, short, value_name = "PIPELINE", conflicts_with = "run")]
    pub pipeline: Option<String>,
    /// This run: a name, its beginning, "last", or a pipeline for its newest run
    #[arg(long, value_name = "RUN")]
    pub run: Option<String>,
    /// The stage of the report, if there are several
    #[arg(long, value_name = "STAGE")]
    pub stage: Option<String>,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `pin` and `unpin`.
#[derive(Args)]
pub struct Pin {
    /// The run: a name, its beginning, "last", or a pipeline for its newest run
    pub run: String,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `gc`.
#[derive(Args)]
#[command(
    after_help = "Kept is what the newest run of every pipeline, pinned runs and runs under way have or may need. \
    Checkpoints go that did not change for an hour, unless a run is under way. Key records stay: they are small and know \
    why a stage ran; --forget removes those without artifacts."
)]
pub struct Gc {
    /// Remove it; without this, only say what would go
    #[arg(long)]
    pub yes: bool,
    /// Go on, cheapest to make anew per byte first, until at most this much is left; pinned runs stay
    #[arg(long, value_name = "BYTES", value_parser = parse_budget)]
    pub budget: Option<u64>,
    /// Remove the records of keys without artifacts, too
    #[arg(long)]
    pub forget: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `store`.
#[derive(Args)]
pub struct Store {
    /// What to do.
    #[command(subcommand)]
    pub command: StoreCommand,
}

/// What to do with the store.
#[derive(Subcommand)]
pub enum StoreCommand {
    /// Compare every artifact and key with its digest; exit code 3 if something is damaged
    Verify(StoreVerify),
}

/// Arguments of `store verify`.
#[derive(Args)]
pub struct StoreVerify {
    /// Move what is damaged out of the store, so that the next run makes it anew
    #[arg(long)]
    pub quarantine: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Where artifacts are kept
    #[arg(long, value_name = "DIR", default_value = ".sluice")]
    pub store: PathBuf,
}

/// Arguments of `verify`.
#[derive(Args)]
pub struct Verify {
    /// The pipeline.
    #[command(flatten)]
    pub pipeline: Pipeline,
    /// How many of the stages that have artifacts: 5%, 0.05, or 1 for all of them; at least one runs
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = parse_share)]
    pub sample: f64,
    /// These stages instead of a sample (may be given again)
    #[arg(long, value_name = "STAGE")]
    pub stage: Vec<String>,
    /// Another seed draws another sample
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Worker threads of the dataflow [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: Option<u16>,
}

/// `20G`, `512M`, `0`.
fn parse_budget(text: &str) -> Result<u64, String> {
    match text.trim() {
        "0" => Ok(0),
        text => parse_bytes(text).map(|bytes| bytes as u64),
    }
}

/// `5%`, `0.05`, `1`.
fn parse_share(text: &str) -> Result<f64, String> {
    let (number, unit) = match text.trim().strip_suffix('%') {
        Some(number) => (number, 0.01),
        None => (text.trim(), 1.0),
    };
    match number.trim().parse::<f64>() {
        Ok(number) if number > 0.0 && number * unit <= 1.0 => Ok(number * unit),
        _ => Err("write a share such as 5%, 0.05 or 100%".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_whole() {
        assert_eq!(parse_share("5%"), Ok(0.05));
        assert_eq!(parse_share("1"), Ok(1.0));
        assert_eq!(parse_share("100 %"), Ok(1.0));
        assert!(parse_share("0").is_err() && parse_share("120%").is_err() && parse_share("some").is_err());
        assert_eq!(parse_budget("0"), Ok(0));
        assert_eq!(parse_budget("1M"), Ok(1 << 20));
        assert!(parse_budget("lots").is_err());
    }
}
