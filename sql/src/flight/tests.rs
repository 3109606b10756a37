//! The server and a client in one process: what no shipped statement does, such as panic.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type};
use arrow_flight::sql::client::FlightSqlServiceClient;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use futures_util::TryStreamExt;
use sluice_engine::operator::Cancel;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::{Serve, Server, serve};
use crate::session::{Limits, Session};

fn open(timeout: Option<Duration>) -> Server {
    let limits = Limits {
        threads: 2,
        memory: Some(64 << 20),
        timeout,
        ..Limits::default()
    };
    let session = Session::new(&limits, &Cancel::default()).unwrap();
    for (name, volatility) in [
        ("stumble", Volatility::Volatile),
        ("stumble_while_planning", Volatility::Immutable),
    ] {
        let fall = |_: &[ColumnarValue]| -> datafusion::common::Result<ColumnarValue> { panic!("it stumbles") };
        let function = create_udf(name, vec![DataType::Int64], DataType::Int64, volatility, Arc::new(fall));
        session.context().register_udf(function);
    }
    let options = Serve {
        address: "127.0.0.1:0".to_string(),
        ..Serve::default()
    };
    serve(session, &options).unwrap()
}

async fn connect(server: &Server) -> FlightSqlServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address())).unwrap();
    FlightSqlServiceClient::new(endpoint.connect().await.unwrap())
}

/// All rows, or the code of what went wrong.
async fn ask(client: &mut FlightSqlServiceClient<Channel>, text: &str) -> Result<Vec<RecordBatch>, Code> {
    let code = |error: arrow_flight::error::FlightError| match error {
        arrow_flight::error::FlightError::Tonic(status) => status.code(),
        other => panic!("{other}"),
    };
    let info = client.execute(text.to_string(), None).await.map_err(code)?;
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let rows = client.do_get(ticket).await.map_err(code)?;
    rows.try_collect().await.map_err(code)
}

fn here<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

#[test]
fn a_panic_ends_its_statement_and_nothing_else() {
    let server = open(None);
    here(async {
        let mut client = connect(&server).await;
        let texts = [
            "SELECT stumble(a) FROM (VALUES (1), (2)) AS t (a)",
            "SELECT stumble_while_planning(1)",
            "SELECT sum(stumble(a)) FROM (VALUES (1), (2)) AS t (a) GROUP BY a",
        ];
        for text in texts {
            assert_eq!(ask(&mut client, text).await.unwrap_err(), Code::Internal, "{text}");
            let rows = ask(&mut client, "SELECT 1 + 1 AS two").await.unwrap();
            assert_eq!(rows[0].column(0).as_primitive::<Int64Type>().value(0), 2);
        }
    });
    server.stop();
}

#[test]
fn statements_do_not_wait_for_each_other() {
    let server = open(Some(Duration::from_secs(2)));
    here(async {
        let digits = "(VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9)) AS";
        let tables: Vec<String> = (0..14).map(|number| format!("{digits} t{number} (a)")).collect();
        let endless = format!("SELECT sum(t0.a * t1.a) FROM {}", tables.join(", "));
        let mut one = connect(&server).await;
        let mut other = connect(&server).await;
        let long = tokio::spawn(async move { ask(&mut one, &endless).await.unwrap_err() });
        for _ in 0..20 {
            ask(&mut other, "SELECT 1").await.unwrap();
        }
        assert!(!long.is_finished());
        assert_eq!(long.await.unwrap(), Code::DeadlineExceeded);
        ask(&mut other, "SELECT 1").await.unwrap();
    });
}

#[test]
fn a_statement_is_run_as_often_as_its_rows_are_asked_for() {
    let server = open(None);
    here(async {
        let mut client = connect(&server).await;
        let text = "SELECT a.a, count(*) AS n FROM (VALUES (1), (2)) AS a (a) JOIN (VALUES (1), (1)) AS b (a) ON a.a = b.a GROUP BY a.a";
        let info = client.execute(text.to_string(), None).await.unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        for _ in 0..3 {
            let rows: Vec<RecordBatch> = client
                .do_get(ticket.clone())
                .await
                .unwrap()
                .try_collect()
                .await
                .unwrap();
            let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
            assert_eq!(count, 1);
        }
    });
}
