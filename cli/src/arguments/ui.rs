//! The command line of `ui`.

use clap::Args;

use super::Look;

/// Arguments of `ui`.
#[derive(Args)]
#[command(
    after_help = "The address that is printed lets a browser in; it changes with every start. The page only reads: it can start, \
    stop and remove nothing. From another machine: ssh -L 8080:127.0.0.1:8080 HOST, with --address 127.0.0.1:8080 there. \
    Ctrl-C ends it."
)]
pub struct Ui {
    /// Listen here; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub address: String,
    /// Open the page in a browser
    #[arg(long)]
    pub open: bool,
    /// Let other machines connect, without TLS: the token and all rows can be read on the way
    #[arg(long)]
    pub insecure: bool,
    /// What is looked at, and within which limits.
    #[command(flatten)]
    pub look: Look,
}
