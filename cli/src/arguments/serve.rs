//! The command line of `serve`.

use std::path::PathBuf;

use clap::Args;

use super::Look;

/// Arguments of `serve`.
#[derive(Args)]
#[command(
    after_help = "Statements are those of \"sluice sql\", and only read. Any client of Flight SQL will do; in Python:\n\n  \
    pip install adbc-driver-flightsql pyarrow pandas\n\n  \
    import adbc_driver_flightsql.dbapi as flight\n  \
    with flight.connect(\"grpc://127.0.0.1:31337\") as connection, connection.cursor() as cursor:\n      \
    cursor.execute(\"SELECT * FROM metrics\")\n      \
    print(cursor.fetch_df())\n\n\
    With a token: flight.connect(URL, db_kwargs={\"adbc.flight.sql.authorization_header\": \"Bearer TOKEN\"}).\n\
    An address that other machines reach needs a token, and TLS or --insecure. Ctrl-C ends the server."
)]
pub struct Serve {
    /// Speak Arrow Flight SQL here; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:31337")]
    pub flight: String,
    /// Let nobody in without this token; others on this machine can see it here, so rather set $SLUICE_TOKEN
    #[arg(long, value_name = "TOKEN", conflicts_with = "token_file")]
    pub token: Option<String>,
    /// Read the token from a file
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Encrypt: the certificate chain, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Encrypt: the certificate's private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Let other machines connect without TLS: the token and all rows can be read on the way
    #[arg(long)]
    pub insecure: bool,
    /// What is looked at, and within which limits.
    #[command(flatten)]
    pub look: Look,
}
