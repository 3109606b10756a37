//! Nonsense at the door of `sluice serve`: random bytes, broken frames, statements that are almost right, made-up handles.
//!
//! Seeded, so a failure can be had again. `SLUICE_FUZZ=N` throws N things instead of a few hundred, `SLUICE_FUZZ_SEED` others.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, CommandGetSqlInfo, CommandGetTables, CommandPreparedStatementQuery,
    CommandStatementQuery, ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{Action, FlightData, FlightDescriptor, Ticket};
use futures_util::{StreamExt, stream};
use prost::Message;
use tonic::Code;

use crate::flight::{Client, ask, connect, here, serve, store};

/// Things thrown unless asked for more.
const FEW: usize = 400;
/// Resident memory that a server may have in the end, in KiB. It has 256M for statements.
const MOST_MEMORY: u64 = 2 << 20;

/// Numbers that are the same every time: SplitMix64.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let count = self.below(most);
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Statements that are right.
const SEEDS: [&str; 22] = [
    "SELECT * FROM counts WHERE position > 5 ORDER BY timestamp DESC LIMIT 3",
    "SELECT user_id , count ( * ) AS n , avg ( position ) FROM counts GROUP BY user_id HAVING count ( * ) > 2",
    "SELECT a . user_id , b . item_id FROM counts a JOIN counts b ON a . item_id = b . item_id LIMIT 10",
    "WITH x AS ( SELECT user_id , max ( position ) AS m FROM counts GROUP BY user_id ) SELECT * FROM x WHERE m IN ( 1 , 2 , 3 )",
    "SELECT CASE WHEN position > 3 THEN 'a' ELSE NULL END , CAST ( item_id AS BIGINT ) FROM counts",
    "SELECT row_number ( ) OVER ( PARTITION BY user_id ORDER BY timestamp ROWS BETWEEN 1 PRECEDING AND CURRENT ROW ) FROM counts",
    "SELECT * FROM ( VALUES ( 1 , 'a' ) , ( 2 , NULL ) ) AS t ( a , b ) UNION ALL SELECT 3 , 'c'",
    "EXPLAIN SELECT DISTINCT user_id FROM counts",
    "EXPLAIN ANALYZE SELECT count ( * ) FROM counts",
    "SELECT repeat ( 'ab' , 3 ) , lpad ( 'a' , 5 , 'xy' ) , substr ( 'abc' , 1 , 2 ) , split_part ( 'a-b' , '-' , 2 )",
    "SELECT date_trunc ( 'month' , timestamp ) , timestamp + INTERVAL '1 day' , extract ( year FROM timestamp ) FROM counts LIMIT 2",
    "SELECT [ 1 , 2 , 3 ] [ 1 ] , { 'a' : 1 } [ 'a' ] , make_array ( 1 , 2 ) , range ( 1 , 5 )",
    "SELECT regexp_match ( 'abc' , '(a)(b)' ) , regexp_replace ( 'abc' , 'b' , 'x' ) , 'a' LIKE '%a_'",
    "SELECT * FROM counts WHERE EXISTS ( SELECT 1 FROM sys.runs WHERE pipeline = user_id )",
    "SELECT unnest ( [ 1 , 2 ] ) , power ( 2 , 10 ) , 7 % 3 , 1 << 3 , - 5 , 9 / 2.0",
    "SELECT arrow_cast ( 1 , 'Int8' ) , CAST ( '2020-01-01' AS DATE ) , CAST ( 1.5 AS DECIMAL ( 10 , 2 ) )",
    "WITH RECURSIVE r AS ( SELECT 1 AS n UNION ALL SELECT n + 1 FROM r WHERE n < 5 ) SELECT sum ( n ) FROM r",
    "SELECT array_agg ( item_id ORDER BY position ) , string_agg ( user_id , ',' ) FROM counts WHERE position < 9",
    "SHOW TABLES",
    "DESCRIBE counts",
    "SELECT * FROM sys.stages s LEFT JOIN sys.runs r USING ( run )",
    "SELECT count ( * ) FILTER ( WHERE position > 1 ) , approx_distinct ( user_id ) , median ( position ) , corr ( position , position ) FROM counts",
];

/// What statements are made of, and what they are not.
const WORDS: [&str; 84] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "LIMIT",
    "OFFSET",
    "HAVING",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "ALL",
    "DISTINCT",
    "JOIN",
    "LEFT JOIN",
    "CROSS JOIN",
    "FULL JOIN",
    "ON",
    "USING",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS NULL",
    "BETWEEN",
    "LIKE",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "CAST",
    "OVER",
    "PARTITION BY",
    "WITH",
    "RECURSIVE",
    "VALUES",
    "EXPLAIN",
    "LATERAL",
    "UNNEST",
    "EXISTS",
    "INTERVAL",
    "counts",
    "sys.runs",
    "sys.stages",
    "user_id",
    "item_id",
    "position",
    "timestamp",
    "*",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ".",
    ";",
    ":",
    "::",
    "+",
    "-",
    "/",
    "%",
    "||",
    "=",
    "<",
    "$1",
    "?",
    "0",
    "-1",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551616",
    "1e308",
    "NULL",
    "'a'",
    "''",
    "'ä\u{0}💥'",
    "\"\"",
    "'2020-13-45'",
    "/*",
];

fn statement(dice: &mut Dice) -> String {
    if dice.below(4) == 0 {
        let words: Vec<&str> = (0..dice.below(60)).map(|_| *dice.of(&WORDS)).collect();
        return words.join(" ");
    }
    let mut words: Vec<String> = dice.of(&SEEDS).split(' ').map(str::to_string).collect();
    for _ in 0..1 + dice.below(4) {
        let at = dice.below(words.len());
        match dice.below(6) {
            0 => drop(words.remove(at)),
            1 => words.insert(at, dice.of(&WORDS).to_string()),
            2 => words[at] = dice.of(&WORDS).to_string(),
            3 => {
                let other = dice.below(words.len());
                words.swap(at, other);
            }
            4 => {
                let tail: Vec<String> = dice.of(&SEEDS).split(' ').map(str::to_string).collect();
                let from = dice.below(tail.len());
                words.truncate(at);
                words.extend_from_slice(&tail[from..]);
            }
            _ => {
                let again = words[at].clone();
                let times = dice.below(30);
                (0..times).for_each(|_| words.insert(at, again.clone()));
            }
        }
        if words.is_empty() {
            break;
        }
    }
    let mut text = words.join(" ");
    if dice.below(10) == 0 {
        let at = dice.below(text.len());
        if text.is_char_boundary(at) {
            text.insert(at, char::from_u32(dice.next() as u32 % 0x3000).unwrap_or('\u{fffd}'));
        }
    }
    text
}

/// Bytes at the port: nothing that is HTTP, or the beginning of it and broken frames.
fn throw_bytes(dice: &mut Dice, address: &str) {
    let Ok(mut stream) = TcpStream::connect(address) else {
        return;
    };
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut bytes = Vec::new();
    if dice.below(2) == 0 {
        bytes.extend_from_slice(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        for _ in 0..dice.below(6) {
            let body = dice.bytes(300);
            bytes.extend_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
            bytes.extend_from_slice(&[dice.below(12) as u8, dice.next() as u8, 0, 0, 0, dice.below(6) as u8]);
            bytes.extend(body);
        }
    } else {
        bytes = dice.bytes(4000);
    }
    // The server may hang up at any time.
    let _ = stream.write_all(&bytes);
    let _ = stream.read(&mut [0; 512]);
}

/// A message that is right with some bytes that are not.
fn damaged(dice: &mut Dice, mut bytes: Vec<u8>) -> Vec<u8> {
    for _ in 0..dice.below(4) {
        let at = dice.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = dice.next() as u8;
        }
    }
    if dice.below(4) == 0 {
        bytes.truncate(dice.below(bytes.len()));
    }
    bytes
}

fn message(dice: &mut Dice) -> Vec<u8> {
    let handle = dice.bytes(40);
    let any = match dice.below(6) {
        0 => TicketStatementQuery {
            statement_handle: handle.into(),
        }
        .as_any(),
        1 => CommandPreparedStatementQuery {
            prepared_statement_handle: handle.into(),
        }
        .as_any(),
        2 => CommandGetSqlInfo {
            info: (0..dice.below(50)).map(|_| dice.next() as u32).collect(),
        }
        .as_any(),
        3 => ActionClosePreparedStatementRequest {
            prepared_statement_handle: handle.into(),
        }
        .as_any(),
        4 => CommandGetTables {
            catalog: Some(String::from_utf8_lossy(&dice.bytes(9)).to_string()),
            table_name_filter_pattern: Some(dice.of(&["%", "_%_", "\\", "\\%", "[", "(?", "%%%%%%a"]).to_string()),
            include_schema: dice.below(2) == 0,
            ..CommandGetTables::default()
        }
        .as_any(),
        _ => CommandStatementQuery {
            query: statement(dice),
            transaction_id: None,
        }
        .as_any(),
    };
    damaged(dice, any.encode_to_vec())
}

/// One call with nonsense; whatever the server says is right as long as it says something.
async fn throw_call(dice: &mut Dice, client: &mut Client) {
    match dice.below(6) {
        0 => {
            let ticket = Ticket::new(message(dice));
            if let Ok(mut rows) = client.do_get(ticket).await {
                while let Some(Ok(_)) = rows.next().await {}
            }
        }
        1 => {
            let descriptor = FlightDescriptor::new_cmd(message(dice));
            let _ = client.inner_mut().get_flight_info(descriptor).await;
        }
        2 => {
            let descriptor = FlightDescriptor::new_cmd(message(dice));
            let _ = client.inner_mut().get_schema(descriptor).await;
        }
        3 => {
            let kinds = [
                "CreatePreparedStatement",
                "ClosePreparedStatement",
                "BeginTransaction",
                "💥",
                "",
            ];
            let action = Action::new(*dice.of(&kinds), message(dice));
            if let Ok(mut results) = client.do_action(action).await {
                while let Ok(Some(_)) = results.message().await {}
            }
        }
        4 => {
            // Values for a statement that is there, in broken Arrow.
            let Ok(prepared) = client.prepare("SELECT $1".to_string(), None).await else {
                return;
            };
            let values = arrow::array::StringArray::from(vec!["a value"]);
            let row = arrow::array::RecordBatch::try_from_iter([(
                "1",
                std::sync::Arc::new(values) as arrow::array::ArrayRef,
            )]);
            let row = row.unwrap();
            let mut messages = arrow_flight::utils::batches_to_flight_data(&row.schema(), vec![row]).unwrap();
            for message in &mut messages {
                message.data_header = damaged(dice, message.data_header.to_vec()).into();
                message.data_body = damaged(dice, message.data_body.to_vec()).into();
            }
            // The client keeps the handle to itself; a made-up one is found as rarely as any.
            drop(prepared);
            let command = CommandPreparedStatementQuery {
                prepared_statement_handle: dice.bytes(17).into(),
            };
            let mut first = FlightData {
                flight_descriptor: Some(FlightDescriptor::new_cmd(command.as_any().encode_to_vec())),
                ..FlightData::default()
            };
            std::mem::swap(&mut first.data_header, &mut messages[0].data_header);
            messages[0] = first;
            if let Ok(mut results) = client.do_put(stream::iter(messages)).await {
                while let Ok(Some(_)) = results.message().await {}
            }
        }
        _ => {
            let _ = ask(client, &statement(dice)).await;
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a long run says how far it came")]
fn nonsense_does_not_end_the_server() {
    let number = |name: &str, default: usize| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let (count, seed) = (number("SLUICE_FUZZ", FEW), number("SLUICE_FUZZ_SEED", 1));
    let sluice = store();
    let mut served = serve(&sluice, &["--timeout", "2s", "--memory", "256M"]);
    let mut errors = served.child.stderr.take().unwrap();
    let told = std::thread::spawn(move || {
        let mut text = String::new();
        errors.read_to_string(&mut text).unwrap();
        text
    });
    let address = served.url.strip_prefix("grpc://").unwrap().to_string();
    let mut dice = Dice(seed as u64);
    let mut last = String::new();
    let alive = here(async {
        let mut client = connect(&served).await;
        for thrown in 0..count {
            let limit = Duration::from_secs(60);
            let state = dice.0;
            match thrown % 8 {
                0 => throw_bytes(&mut dice, &address),
                1 => {
                    let call = throw_call(&mut dice, &mut client);
                    tokio::time::timeout(limit, call)
                        .await
                        .unwrap_or_else(|_| panic!("no answer: state {state}"));
                }
                _ => {
                    let text = statement(&mut dice);
                    let asked = tokio::time::timeout(limit, ask(&mut client, &text)).await;
                    if count > FEW && matches!(&asked, Ok(Err(late)) if late.code() == Code::DeadlineExceeded) {
                        eprintln!("{thrown}: took too long: {text}");
                    }
                    last = text;
                    // What ends the server ends the connection.
                    if asked.is_err_and(|_| true) {
                        return false;
                    }
                }
            }
            if thrown % 64 == 0
                && let Err(lost) = ask(&mut client, "SELECT 1").await
            {
                // A connection may be closed on one that abuses it; the next one is answered.
                eprintln!("after {thrown}: {:?} {}", lost.code(), lost.message());
                client = connect(&served).await;
                if ask(&mut client, "SELECT 1").await.is_err() {
                    return false;
                }
            }
            if thrown % 5000 == 4999 {
                eprintln!("{} of {count} thrown", thrown + 1);
            }
        }
        ask(&mut connect(&served).await, "SELECT count(*) FROM counts")
            .await
            .is_ok()
    });
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident.map_or(0, |text| text.trim().trim_end_matches(" kB").parse().unwrap());
    drop(served);
    let told = told.join().unwrap();
    assert!(alive, "the server does not answer; the last statement: {last}\n{told}");
    assert!(!told.contains("panicked") && !told.contains("overflow"), "{told}");
    assert!(resident < MOST_MEMORY, "{resident} KiB resident");
    if count > FEW {
        eprintln!("{count} thrown, {} MiB resident in the end", resident >> 10);
    }
}
