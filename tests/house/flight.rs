//! `sluice serve` as other programs meet it: a client of Arrow Flight SQL over loopback, and Python's.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo, SqlInfo,
};
use futures_util::TryStreamExt;
use sluice_engine::operator::Cancel;
use sluice_engine::store::Store;
use sluice_sql::{Limits, Session, Source};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status};

use crate::sluice::{Sluice, repository, wait};

pub type Client = FlightSqlServiceClient<Channel>;

/// A statement that would run for days.
pub const ENDLESS: &str = "SELECT sum(length(a.item_id) + length(b.item_id) + length(c.item_id) + length(d.item_id)) \
    FROM counts a, counts b, counts c, counts d";

const TOKEN: &str = "a-token-of-the-house";

/// A server that ends with the test.
pub struct Served {
    pub child: Child,
    pub url: String,
}

impl Served {
    /// What a client connects to.
    pub fn http(&self) -> String {
        self.url
            .replace("grpc+tls://", "https://")
            .replace("grpc://", "http://")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A store with a stage of 10,000 interactions.
pub fn store() -> Sluice {
    let sluice = Sluice::with(&[(
        "p.yaml",
        "pipeline: tiny\nstages:\n  counts: { op: ingest_interactions, path: counts.csv }\n",
    )]);
    grow(&sluice, 10_000);
    sluice
}

fn grow(sluice: &Sluice, rows: usize) {
    let lines = (0..rows).map(|row| format!("w{},{row},{}\n", row % 7, 1_500_000_000 + row));
    let text: String = std::iter::once("user_id,item_id,timestamp\n".to_string())
        .chain(lines)
        .collect();
    sluice.write("counts.csv", text);
    sluice.succeed(&["run", "p.yaml", "--quiet"]);
}

pub fn serve(sluice: &Sluice, more: &[&str]) -> Served {
    serve_at(sluice, "127.0.0.1:0", more)
}

fn serve_at(sluice: &Sluice, address: &str, more: &[&str]) -> Served {
    let arguments = [&["serve", "--flight", address], more].concat();
    let mut child = sluice.command(&arguments).env_remove("SLUICE_TOKEN").spawn().unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    let Some(url) = line.trim().strip_prefix("flight sql: ") else {
        let mut told = String::new();
        child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        panic!("the server said \"{line}\"\n{told}");
    };
    Served {
        url: url.to_string(),
        child,
    }
}

pub fn here<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

pub async fn connect(served: &Served) -> Client {
    let endpoint = Endpoint::from_shared(served.http()).unwrap();
    FlightSqlServiceClient::new(endpoint.connect().await.unwrap())
}

/// What the server said to a refused call.
fn said(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not from the server: {other}"),
    }
}

async fn rows_of(client: &mut Client, info: FlightInfo) -> Result<RecordBatch, Status> {
    let schema = info.clone().try_decode_schema().unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let stream = client.do_get(ticket).await.map_err(said)?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(said)?;
    batches
        .iter()
        .for_each(|batch| assert_eq!(batch.schema().as_ref(), &schema));
    Ok(concat_batches(&schema.into(), &batches).unwrap())
}

pub async fn ask(client: &mut Client, text: &str) -> Result<RecordBatch, Status> {
    let info = client.execute(text.to_string(), None).await.map_err(said)?;
    rows_of(client, info).await
}

async fn count(client: &mut Client) -> i64 {
    let rows = ask(client, "SELECT count(*) FROM counts").await.unwrap();
    rows.column(0).as_primitive::<Int64Type>().value(0)
}

/// The batch with texts in their plain type: a session has them as views.
fn plain(batch: &RecordBatch) -> RecordBatch {
    let schema = batch.schema();
    let fields = schema.fields().iter().map(|field| match field.data_type() {
        DataType::Utf8View => field.as_ref().clone().with_data_type(DataType::Utf8),
        _ => field.as_ref().clone(),
    });
    let plain = Arc::new(Schema::new(fields.collect::<Vec<Field>>()));
    let columns = batch.columns().iter().zip(plain.fields());
    let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()).unwrap());
    RecordBatch::try_new(plain.clone(), columns.collect()).unwrap()
}

#[test]
fn rows_are_those_of_the_session() {
    let sluice = store();
    let served = serve(&sluice, &[]);
    let source = Source {
        store: Store::existing(&sluice.path(".sluice")).unwrap(),
        registry: sluice_operators::registry(),
        run: None,
        data_root: sluice.path(""),
        any_file: false,
    };
    let session = Session::new(&Limits::default(), &Cancel::default()).unwrap();
    let session = session.over(source).unwrap();
    let own = [
        "SELECT * FROM counts ORDER BY timestamp",
        "SELECT user_id, count(*) AS n, avg(position) AS mean FROM counts GROUP BY user_id ORDER BY user_id",
        "SELECT * FROM counts WHERE user_id = 'nobody'",
        "SELECT run, stage, rows, seconds, started FROM sys.stages ORDER BY stage",
        "SELECT [1, 2] AS list, true AS yes, CAST(NULL AS DOUBLE) AS none, 1.5 AS number",
        "VALUES (1, 'a'), (2, NULL)",
    ]
    .map(|text| {
        let rows = session.query(text).unwrap();
        let schema = rows.schema();
        (text, plain(&concat_batches(&schema, &rows.collect().unwrap()).unwrap()))
    });
    here(async {
        let mut client = connect(&served).await;
        for (text, own) in own {
            assert_eq!(ask(&mut client, text).await.unwrap(), own, "{text}");
        }
        // Views and dictionaries go as what they stand for, announced so.
        let text = "SELECT arrow_cast(user_id, 'Utf8View') AS a, arrow_cast(user_id, 'Dictionary(Int32, Utf8)') AS b \
            FROM counts ORDER BY timestamp LIMIT 3";
        let served = ask(&mut client, text).await.unwrap();
        for column in served.columns() {
            let words: Vec<&str> = column.as_string::<i32>().iter().flatten().collect();
            assert_eq!(words, ["w0", "w1", "w2"]);
        }
    });
}

#[test]
fn a_run_made_while_it_serves_is_seen() {
    let sluice = store();
    let served = serve(&sluice, &[]);
    here(async {
        let mut client = connect(&served).await;
        assert_eq!(count(&mut client).await, 10_000);
        let mut prepared = client
            .prepare("SELECT count(*) FROM counts".to_string(), None)
            .await
            .unwrap();
        grow(&sluice, 12_345);
        assert_eq!(count(&mut client).await, 12_345);
        let info = prepared.execute().await.unwrap();
        let rows = rows_of(&mut client, info).await.unwrap();
        assert_eq!(rows.column(0).as_primitive::<Int64Type>().value(0), 12_345);
    });
}

#[test]
fn only_the_token_opens() {
    let sluice = store();
    let served = serve(&sluice, &["--token", TOKEN]);
    here(async {
        let mut client = connect(&served).await;
        let refused = ask(&mut client, "SELECT 1").await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
        assert!(refused.message().contains("no-token"), "{refused}");
        assert_eq!(
            client.get_catalogs().await.map_err(said).unwrap_err().code(),
            Code::Unauthenticated
        );
        let prepared = client.prepare("SELECT 1".to_string(), None).await;
        assert_eq!(said(prepared.map(|_| ()).unwrap_err()).code(), Code::Unauthenticated);
        for wrong in ["a-token-of-the-hous", "a-token-of-the-house2", ""] {
            client.set_token(wrong.to_string());
            assert_eq!(
                ask(&mut client, "SELECT 1").await.unwrap_err().code(),
                Code::Unauthenticated
            );
            client.clear_token();
            assert!(client.handshake("anyone", wrong).await.is_err());
        }
        client.set_token(TOKEN.to_string());
        ask(&mut client, "SELECT 1").await.unwrap();
        client.clear_token();
        client.handshake("anyone", TOKEN).await.unwrap();
        assert_eq!(client.token().map(String::as_str), Some(TOKEN));
        ask(&mut client, "SELECT 1").await.unwrap();
    });
    // From a file and from the environment it is as good.
    sluice.write("token", format!("{TOKEN}\n"));
    drop(served);
    let served = serve(&sluice, &["--token-file", "token"]);
    here(async {
        let mut client = connect(&served).await;
        assert!(ask(&mut client, "SELECT 1").await.is_err());
        client.set_token(TOKEN.to_string());
        ask(&mut client, "SELECT 1").await.unwrap();
    });
    let mut child = sluice
        .command(&["serve", "--flight", "0.0.0.0:0"])
        .env("SLUICE_TOKEN", "short")
        .spawn()
        .unwrap();
    assert_eq!(wait(&mut child, Duration::from_secs(20)).code(), Some(2));
}

#[test]
fn addresses_that_others_reach_need_protection() {
    let sluice = store();
    let refused = |more: &[&str]| {
        let mut command = sluice.command(&[&["serve"], more].concat());
        command.env_remove("SLUICE_TOKEN");
        let done = crate::sluice::finish(command);
        assert_eq!(done.code, 2, "{more:?}: {}", done.err);
        done.err
    };
    let everywhere = ["--flight", "0.0.0.0:0"];
    assert!(refused(&everywhere).contains("error[open-server]"));
    assert!(refused(&[&everywhere[..], &["--insecure"]].concat()).contains("error[open-server]"));
    assert!(refused(&[&everywhere[..], &["--token", TOKEN]].concat()).contains("error[clear-token]"));
    assert!(refused(&["--flight", "127.0.0.1:0", "--token", "short"]).contains("error[short-token]"));
    assert!(refused(&["--flight", "nowhere"]).contains("error[bad-address]"));
    assert!(refused(&["--flight", "127.0.0.1:0", "--store", "none"]).contains("none"));
    let taken = serve(&sluice, &[]);
    let address = taken.url.strip_prefix("grpc://").unwrap();
    assert!(refused(&["--flight", address]).contains("error[cannot-listen]"));
    serve_at(&sluice, "0.0.0.0:0", &["--token", TOKEN, "--insecure"]);
}

#[test]
fn what_writes_is_refused() {
    let sluice = store();
    let served = serve(&sluice, &[]);
    let before = sluice.objects();
    here(async {
        let mut client = connect(&served).await;
        for text in [
            "INSERT INTO counts VALUES (1)",
            "CREATE TABLE t AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "COPY (SELECT 1) TO 'x.parquet'",
            "DROP TABLE counts",
            "SET datafusion.execution.batch_size = 1",
        ] {
            let refused = ask(&mut client, text).await.unwrap_err();
            assert_eq!(refused.code(), Code::PermissionDenied, "{text}: {refused}");
            let updated = client.execute_update(text.to_string(), None).await.map_err(said);
            assert_eq!(updated.unwrap_err().code(), Code::PermissionDenied, "{text}");
            let prepared = client.prepare(text.to_string(), None).await.map(|_| ()).map_err(said);
            assert_eq!(prepared.unwrap_err().code(), Code::PermissionDenied, "{text}");
        }
        let begun = client.begin_transaction().await.map_err(said);
        assert_eq!(begun.unwrap_err().code(), Code::Unimplemented);
    });
    assert_eq!(sluice.objects(), before);
}

#[test]
fn errors_say_what_to_do() {
    let sluice = store();
    let served = serve(&sluice, &["--memory", "8M"]);
    here(async {
        let mut client = connect(&served).await;
        for (text, code, words) in [
            ("SELECT no FROM counts", Code::InvalidArgument, "missing-column"),
            ("SELECT * FROM count", Code::InvalidArgument, "did you mean \"counts\""),
            ("SELECT 1\nFROM counts WHERE\n  GROUP x", Code::InvalidArgument, "sql:3"),
            ("SELECT 1; SELECT 2", Code::InvalidArgument, "many-statements"),
            ("", Code::InvalidArgument, "empty-statement"),
            ("SELECT $1", Code::InvalidArgument, "missing-param"),
            (
                "SELECT 1 / (position - position) FROM counts",
                Code::InvalidArgument,
                "bad-value",
            ),
            (
                "SELECT array_agg(a.item_id || b.item_id) FROM counts a, counts b",
                Code::ResourceExhausted,
                "sql-memory",
            ),
        ] {
            let refused = ask(&mut client, text).await.unwrap_err();
            assert_eq!(refused.code(), code, "{text}: {refused}");
            assert!(refused.message().contains(words), "{text}: {}", refused.message());
        }
        let long = format!("SELECT '{}' + no", "ä\n".repeat(50_000));
        assert_eq!(ask(&mut client, &long).await.unwrap_err().code(), Code::InvalidArgument);
        ask(&mut client, "SELECT 1").await.unwrap();
    });
}

#[test]
fn a_statement_has_its_time() {
    let sluice = store();
    let served = serve(&sluice, &["--timeout", "500ms"]);
    here(async {
        let mut client = connect(&served).await;
        let start = Instant::now();
        let refused = ask(&mut client, ENDLESS).await.unwrap_err();
        assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused}");
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        ask(&mut client, "SELECT 1").await.unwrap();
    });
    is_idle(&served);
}

/// The server's processor time in clock ticks, of which a second has 100.
fn ticks(served: &Served) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", served.child.id())).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Within some seconds the server computes no more.
fn is_idle(served: &Served) {
    let start = Instant::now();
    loop {
        let before = ticks(served);
        std::thread::sleep(Duration::from_millis(500));
        if ticks(served) - before <= 3 {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "the server still computes");
    }
}

#[test]
fn a_client_that_goes_away_ends_its_statement() {
    let sluice = store();
    let served = serve(&sluice, &[]);
    here(async {
        // One hangs up, another one only drops the call.
        let mut patient = connect(&served).await;
        for hang_up in [true, false] {
            let mut client = match hang_up {
                true => connect(&served).await,
                false => patient.clone(),
            };
            let info = client.execute(ENDLESS.to_string(), None).await.unwrap();
            let ticket = info.endpoint[0].ticket.clone().unwrap();
            let mut rows = client.do_get(ticket).await.unwrap();
            let waited = tokio::time::timeout(Duration::from_secs(1), rows.try_next()).await;
            assert!(waited.is_err(), "an endless statement ended");
            let before = ticks(&served);
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(ticks(&served) > before + 3, "an endless statement does not compute");
            drop((rows, client));
            // The connection goes on being driven: what is dropped is told.
            ask(&mut patient, "SELECT 1").await.unwrap();
            is_idle(&served);
        }
    });
}

#[test]
fn an_interrupt_ends_the_server_and_what_runs() {
    let sluice = store();
    let mut served = serve(&sluice, &[]);
    here(async {
        let mut client = connect(&served).await;
        let info = client.execute(ENDLESS.to_string(), None).await.unwrap();
        let mut rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
        let waited = tokio::time::timeout(Duration::from_millis(500), rows.try_next()).await;
        assert!(waited.is_err(), "an endless statement ended");
        let pid = served.child.id().to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        assert_eq!(said(rows.try_next().await.unwrap_err()).code(), Code::Cancelled);
    });
    assert_eq!(wait(&mut served.child, Duration::from_secs(10)).code(), Some(0));
}

#[test]
fn encrypted_connections_are_read_by_those_who_trust_the_certificate() {
    let sluice = store();
    let pem = |name: &str| repository("tests/golden/tls").join(name);
    let (certificate, key) = (pem("server.pem"), pem("server.key.pem"));
    let files = [
        "--tls-cert",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ];
    let served = serve(&sluice, &[&files[..], &["--token", TOKEN]].concat());
    assert!(served.url.starts_with("grpc+tls://"), "{}", served.url);
    here(async {
        let endpoint = |served: &Served| Endpoint::from_shared(served.http()).unwrap();
        let authority = Certificate::from_pem(std::fs::read(pem("authority.pem")).unwrap());
        let tls = ClientTlsConfig::new()
            .ca_certificate(authority)
            .domain_name("localhost");
        let channel = endpoint(&served).tls_config(tls).unwrap().connect().await.unwrap();
        let mut client = FlightSqlServiceClient::new(channel);
        client.handshake("anyone", TOKEN).await.unwrap();
        assert_eq!(count(&mut client).await, 10_000);
        // Neither one that trusts nobody nor one that does not encrypt.
        let nobody = endpoint(&served)
            .tls_config(ClientTlsConfig::new())
            .unwrap()
            .connect()
            .await;
        assert!(nobody.is_err());
        let clear = Endpoint::from_shared(served.url.replace("grpc+tls", "http"))
            .unwrap()
            .connect()
            .await;
        if let Ok(channel) = clear {
            assert!(
                FlightSqlServiceClient::new(channel)
                    .handshake("anyone", TOKEN)
                    .await
                    .is_err()
            );
        }
    });
    let wrong = [
        "--tls-cert",
        key.to_str().unwrap(),
        "--tls-key",
        certificate.to_str().unwrap(),
    ];
    let done = sluice.run(&[&["serve", "--flight", "127.0.0.1:0"], &wrong[..]].concat());
    assert_eq!(done.code, 2, "{}", done.err);
    assert!(done.err.contains("error[bad-certificate]"), "{}", done.err);
}

#[test]
fn what_there_is_is_listed() {
    let sluice = store();
    let served = serve(&sluice, &[]);
    here(async {
        let mut client = connect(&served).await;
        let words = |rows: &RecordBatch, column: &str| -> Vec<String> {
            let column = rows.column_by_name(column).unwrap().as_string::<i32>().clone();
            column.iter().flatten().map(str::to_string).collect()
        };
        let info = client.get_catalogs().await.unwrap();
        let rows = rows_of(&mut client, info).await.unwrap();
        assert_eq!(words(&rows, "catalog_name"), ["store"]);
        let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
        let rows = rows_of(&mut client, info).await.unwrap();
        let schemas = words(&rows, "db_schema_name");
        assert!(
            ["stages", "sys"]
                .iter()
                .all(|name| schemas.iter().any(|known| known == name)),
            "{schemas:?}"
        );
        let asked = CommandGetTables {
            db_schema_filter_pattern: Some("sys".to_string()),
            table_name_filter_pattern: Some("run%".to_string()),
            include_schema: true,
            ..CommandGetTables::default()
        };
        let info = client.get_tables(asked).await.unwrap();
        let rows = rows_of(&mut client, info).await.unwrap();
        assert_eq!(words(&rows, "table_name"), ["runs"]);
        assert_eq!(words(&rows, "table_type"), ["SYSTEM TABLE"]);
        let columns = rows
            .column_by_name("table_schema")
            .unwrap()
            .as_binary::<i32>()
            .value(0)
            .to_vec();
        let columns = Schema::try_from(arrow_flight::IpcMessage(columns.into())).unwrap();
        let own = ask(&mut client, "SELECT * FROM sys.runs").await.unwrap();
        assert_eq!(columns.fields(), own.schema().fields());
        let info = client.get_table_types().await.unwrap();
        let rows = rows_of(&mut client, info).await.unwrap();
        assert_eq!(words(&rows, "table_type"), ["SYSTEM TABLE", "TABLE"]);
        let info = client
            .get_sql_info(vec![SqlInfo::FlightSqlServerName, SqlInfo::FlightSqlServerReadOnly])
            .await;
        let rows = rows_of(&mut client, info.unwrap()).await.unwrap();
        assert_eq!(rows.num_rows(), 2);
        let keys = CommandGetPrimaryKeys {
            table: "counts".to_string(),
            ..CommandGetPrimaryKeys::default()
        };
        let info = client.get_primary_keys(keys).await.unwrap();
        assert_eq!(rows_of(&mut client, info).await.unwrap().num_rows(), 0);
        let info = client
            .get_xdbc_type_info(CommandGetXdbcTypeInfo::default())
            .await
            .unwrap();
        assert_eq!(rows_of(&mut client, info).await.unwrap().num_rows(), 0);
    });
}

#[test]
fn prepared_statements_take_values() {
    let sluice = store();
    let served = serve(&sluice, &[]);
    here(async {
        let mut client = connect(&served).await;
        let text = "SELECT count(*) AS n FROM counts WHERE user_id = $1 AND position < $2";
        let mut prepared = client.prepare(text.to_string(), None).await.unwrap();
        let names =
            |schema: &Schema| -> Vec<String> { schema.fields().iter().map(|field| field.name().clone()).collect() };
        assert_eq!(names(prepared.dataset_schema().unwrap()), ["n"]);
        assert_eq!(names(prepared.parameter_schema().unwrap()), ["1", "2"]);
        let bare = said(prepared.execute().await.unwrap_err());
        assert!(bare.message().contains("missing-param"), "{bare}");
        for (user, most, wanted) in [("w3", 72, 10), ("w0", 2, 0), ("w0", 3, 1)] {
            let values = RecordBatch::try_from_iter([
                (
                    "a",
                    std::sync::Arc::new(arrow::array::StringArray::from(vec![user])) as arrow::array::ArrayRef,
                ),
                ("b", std::sync::Arc::new(arrow::array::Int32Array::from(vec![most]))),
            ]);
            prepared.set_parameters(values.unwrap()).unwrap();
            let info = prepared.execute().await.unwrap();
            let rows = rows_of(&mut client, info).await.unwrap();
            assert_eq!(
                rows.column(0).as_primitive::<Int64Type>().value(0),
                wanted,
                "{user} {most}"
            );
        }
        let many = RecordBatch::try_from_iter([
            (
                "a",
                std::sync::Arc::new(arrow::array::StringArray::from(vec!["x", "y"])) as arrow::array::ArrayRef,
            ),
            ("b", std::sync::Arc::new(arrow::array::Int32Array::from(vec![1, 2]))),
        ]);
        prepared.set_parameters(many.unwrap()).unwrap();
        assert_eq!(
            said(prepared.execute().await.unwrap_err()).code(),
            Code::InvalidArgument
        );
        prepared.close().await.unwrap();
    });
}

/// Set `SLUICE_PYTHON` to a Python that can import adbc_driver_flightsql, pandas and polars.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn the_usual_client_of_python_reads_it() {
    let Some(python) = std::env::var_os("SLUICE_PYTHON") else {
        eprintln!("skipped: SLUICE_PYTHON names no Python with adbc-driver-flightsql, pandas and polars");
        return;
    };
    let sluice = store();
    for token in [None, Some(TOKEN)] {
        let flags: Vec<&str> = token.iter().flat_map(|token| ["--token", *token]).collect();
        let served = serve(&sluice, &flags);
        let script = repository("tests/reference/flight_client.py");
        let done = Command::new(&python)
            .arg(script)
            .arg(&served.url)
            .args(token)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(String::from_utf8_lossy(&done.stdout).contains("10000 rows as expected"));
    }
}
