//! `sluice sql` by the real program: tables of runs, formats, values, queries that come with it, and what it refuses.

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::sluice::{Sluice, TINY, recipe, wait};

const REVIEWS: &str = "user_id,item_id,timestamp\n\
    u1,i1,10\nu1,i2,20\nu1,i3,30\nu2,i1,10\nu2,i2,25\nu2,i4,40\nu3,i3,5\nu3,i1,15\nu3,i2,35\n";

const PIPELINE: &str = "pipeline: small\nstages:\n  \
    reviews: { op: ingest_interactions, path: reviews.csv }\n  \
    clean: { op: dedup, input: reviews }\n  \
    split: { op: split_leave_one_out, input: clean }\n";

fn small() -> Sluice {
    let sluice = Sluice::with(&[("reviews.csv", REVIEWS), ("small.yaml", PIPELINE)]);
    sluice.succeed(&["run", "small.yaml", "--quiet"]);
    sluice
}

/// What a statement gives, as CSV without its header.
fn csv(sluice: &Sluice, statement: &str, more: &[&str]) -> String {
    let done = sluice.succeed(&[&["sql", statement, "--format", "csv"], more].concat());
    let (_, rows) = done.out.split_once('\n').unwrap();
    rows.trim_end().to_string()
}

#[test]
fn stages_and_ports_of_any_run_are_tables() {
    let sluice = small();
    let first = csv(&sluice, "SELECT run FROM sys.runs", &[]);
    assert_eq!(csv(&sluice, "SELECT count(*) FROM clean", &[]), "9");
    assert_eq!(
        csv(&sluice, "SELECT count(*), min(target) FROM split.test", &[]),
        "3,i2"
    );
    assert_eq!(csv(&sluice, "SELECT count(*) FROM small.clean", &[]), "9");
    // Another run, with a row less.
    sluice.write("reviews.csv", REVIEWS.replace("u3,i2,35\n", ""));
    sluice.succeed(&["run", "small.yaml", "--quiet"]);
    assert_eq!(csv(&sluice, "SELECT count(*) FROM clean", &[]), "8");
    for then in [
        format!("SELECT count(*) FROM \"{first}\".clean"),
        format!("SELECT count(*) FROM \"{first}\".clean.out"),
        format!("SELECT count(*) FROM run('{first}', 'clean')"),
        format!("SELECT count(*) FROM run('{first}', 'reviews.out')"),
    ] {
        assert_eq!(csv(&sluice, &then, &[]), "9", "{then}");
    }
    assert_eq!(csv(&sluice, "SELECT count(*) FROM clean", &["--run", &first]), "9");
    assert_eq!(
        csv(
            &sluice,
            "SELECT here, count(*) FROM outputs('dedup') GROUP BY here ORDER BY here",
            &[]
        ),
        "false,9\ntrue,8"
    );
    // Why, what and from where.
    let why = csv(
        &sluice,
        "SELECT stage, why, subject FROM sys.why WHERE why = 'file' ORDER BY stage",
        &[],
    );
    assert_eq!(why, "reviews,file,reviews.csv");
    let lineage = "SELECT operator, from_operator FROM sys.lineage WHERE port IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2";
    assert_eq!(
        csv(&sluice, lineage, &[]),
        "dedup,ingest_interactions\nsplit_leave_one_out,dedup"
    );
    assert_eq!(
        csv(&sluice, "SELECT count(*) FROM sys.stages WHERE outcome = 'ran'", &[]),
        "6"
    );
    assert_eq!(
        csv(
            &sluice,
            "SELECT seeded FROM sys.operators WHERE operator = 'dedup'",
            &[]
        ),
        "false"
    );
    let second = csv(&sluice, "SELECT max(run) FROM sys.runs", &[]);
    let differ = ["--param", &format!("old={first}"), "--param", &format!("new={second}")].map(str::to_string);
    let differ: Vec<&str> = differ.iter().map(String::as_str).collect();
    let told = sluice.succeed(&[&["sql", "--query", "why_differ", "--format", "csv"], &differ[..]].concat());
    assert!(told.out.contains("reviews,a file changed,true"), "{}", told.out);
    assert!(told.out.contains("clean,what it reads changed,false"), "{}", told.out);
}

#[test]
fn a_sweep_is_one_table_with_its_axes() {
    let sluice = Sluice::with(&[("reviews.csv", REVIEWS)]);
    sluice.write(
        "sweep.yaml",
        format!("{PIPELINE}  core: {{ op: filter_kcore, input: clean, k: 1 }}\nsweep:\n  axes: {{ core.k: [1, 2] }}\n"),
    );
    sluice.succeed(&["run", "sweep.yaml", "--quiet"]);
    let rows = csv(&sluice, "SELECT core_k, count(*) FROM core GROUP BY 1 ORDER BY 1", &[]);
    assert_eq!(rows, "1,9\n2,8");
    assert_eq!(csv(&sluice, "SELECT count(*) FROM core WHERE core_k = 2", &[]), "8");
    assert_eq!(csv(&sluice, "SELECT count(*) FROM \"core[core.k=1]\"", &[]), "9");
}

#[test]
fn statements_come_from_anywhere_and_go_anywhere() {
    let sluice = small();
    let statement = "SELECT user_id, count(*) AS n FROM clean GROUP BY user_id ORDER BY user_id";
    sluice.write("two.sql", format!("-- both\n{statement};\nSELECT 1 AS one;\n"));
    let table = sluice.succeed(&["sql", "--file", "two.sql"]).out;
    assert_eq!(
        table,
        "user_id  n\n───────  ─\nu1       3\nu2       3\nu3       3\none\n───\n  1\n"
    );
    let mut command = sluice.command(&["sql", "-", "--format", "json"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(statement.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(rows[2], serde_json::json!({"user_id": "u3", "n": 3}));
    for (file, format) in [("rows.parquet", "parquet"), ("rows.csv", "csv"), ("rows.json", "json")] {
        sluice.succeed(&["sql", statement, "--output", file]);
        let read = format!("SELECT sum(n) FROM read_{format}('{file}')");
        if format != "json" {
            assert_eq!(csv(&sluice, &read, &[]), "9", "{file}");
        }
    }
    sluice.succeed(&["sql", statement, "--output", "rows.ndjson"]);
    assert_eq!(csv(&sluice, "SELECT sum(n) FROM read_json('rows.ndjson')", &[]), "9");
    sluice.succeed(&["sql", statement, "--output", "rows.arrow"]);
    assert_eq!(&std::fs::read(sluice.path("rows.arrow")).unwrap()[..6], b"ARROW1");
    let latex = sluice.succeed(&["sql", statement, "--format", "latex"]).out;
    assert!(
        latex.starts_with("\\begin{tabular}{lr}\n\\toprule\nuser\\_id & n \\\\"),
        "{latex}"
    );
    let given = ["--param", "user=u2", "--param", "least=20"];
    let asked = "SELECT count(*) FROM clean WHERE user_id = $user AND timestamp >= to_timestamp_seconds(CAST($least AS BIGINT))";
    assert_eq!(csv(&sluice, asked, &given), "2");
    assert_eq!(
        csv(
            &sluice,
            "SELECT text FROM read_lines('reviews.csv') WHERE line = 2",
            &[]
        ),
        "\"u1,i1,10\""
    );
}

/// What `--output` names has its old bytes until all new ones are there.
#[test]
fn an_output_is_whole_or_as_it_was() {
    let sluice = small();
    sluice.write("kept.csv", "mine");
    let late =
        "SELECT CAST(CASE WHEN value > 90000 THEN 'x' ELSE '1' END AS BIGINT) AS n FROM generate_series(1, 100000)";
    for statement in ["SELECT nope FROM clean", late] {
        let done = sluice.run(&["sql", statement, "--output", "kept.csv"]);
        assert_ne!(done.code, 0, "{statement}");
        assert_eq!(std::fs::read_to_string(sluice.path("kept.csv")).unwrap(), "mine");
        assert!(!sluice.path("kept.csv.part").exists(), "{statement}");
    }
    sluice.succeed(&["sql", "SELECT 1 AS one", "--output", "kept.csv"]);
    assert_eq!(std::fs::read_to_string(sluice.path("kept.csv")).unwrap(), "one\n1\n");
    let piped = ["sql", "SELECT 1 AS one", "--output", "/dev/stdout", "--format", "csv"];
    assert_eq!(sluice.succeed(&piped).out, "one\n1\n");
}

#[test]
fn a_reader_may_leave() {
    let sluice = small();
    for format in ["csv", "json", "ndjson", "arrow", "parquet"] {
        let statement = "SELECT value FROM generate_series(1, 2000000)";
        let mut child = sluice.command(&["sql", statement, "--format", format]).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{format}: {output:?}"
        );
    }
}

/// Each of several statements takes the values that it names.
#[test]
fn statements_share_values() {
    let sluice = small();
    sluice.write("two.sql", "SELECT $a AS a;\nSELECT $b AS b, $a AS a;\n");
    let ask = |more: &[&str]| {
        let given = [
            "sql", "--file", "two.sql", "--format", "csv", "--param", "a=1", "--param", "b=2",
        ];
        sluice.run(&[&given[..], more].concat())
    };
    assert_eq!(ask(&[]).out, "a\n1\nb,a\n2,1\n");
    let done = ask(&["--param", "c=3"]);
    assert!(done.code == 2 && done.err.contains("no \"$c\""), "{}", done.err);
}

#[test]
fn what_cannot_be_is_said_with_what_can() {
    let sluice = small();
    std::fs::create_dir(sluice.path("data")).unwrap();
    for (arguments, code, words) in [
        (
            &["sql", "SELECT * FROM claen"][..],
            2,
            &["no stage \"claen\"", "did you mean \"clean\"?", "sql:1:15"][..],
        ),
        (
            &["sql", "SELECT * FROM split.tset"],
            2,
            &["no output \"tset\"", "did you mean \"test\"?"],
        ),
        (
            &["sql", "SELECT * FROM split"],
            2,
            &["several outputs", "split.test, split.train, split.valid"],
        ),
        (
            &["sql", "SELECT usr_id FROM clean"],
            2,
            &["no column \"usr_id\"", "did you mean \"user_id\"?"],
        ),
        (
            &["sql", "SELECT * FROM sys.run"],
            2,
            &["no table sys.run", "did you mean \"runs\"?"],
        ),
        (&["sql", "SELECT ( FROM clean"], 2, &["bad-sql"]),
        (&["sql", "DROP TABLE clean"], 2, &["DROP is refused", "only read"]),
        (&["sql", "COPY clean TO 'x.csv'"], 2, &["COPY is refused"]),
        (
            &["sql", "SELECT * FROM clean PREWHERE user_id = 'u1'"],
            2,
            &["PREWHERE is not taken here: it would be ignored"],
        ),
        (
            &[
                "sql",
                "SELECT a.user_id, b.user_id FROM clean AS a, clean AS b",
                "--format",
                "json",
            ],
            2,
            &["two columns are called \"user_id\"", "AS name"],
        ),
        (
            &["sql", "SELECT 1 AS a; SELECT 2 AS a", "--format", "json"],
            2,
            &["2 statements", "--format ndjson"],
        ),
        (&["sql", "SELECT * FROM 'reviews.csv'"], 2, &["error["]),
        (
            &["sql", "SELECT * FROM read_lines('/etc/passwd')"],
            2,
            &["outside the data root", "--allow-files"],
        ),
        (
            &["sql", "SELECT * FROM read_lines('../../../../../../../../etc/passwd')"],
            2,
            &["outside the data root"],
        ),
        (&["sql", "SELECT $user"], 2, &["wants a value for user"]),
        (&["sql", "SELECT 1", "--param", "user=1"], 2, &["no \"$user\""]),
        (&["sql", "--query", "collision"], 2, &["did you mean \"collisions\"?"]),
        (&["sql", "SELECT 1", "--run", "nope"], 2, &["\"nope\""]),
        (&["sql", "SELECT 1", "--store", "nowhere"], 2, &["no store"]),
        (
            &[
                "sql",
                "SELECT count(*) FROM generate_series(1, 100000000000) AS a",
                "--timeout",
                "300ms",
            ],
            2,
            &["ran for more than 0.3 s"],
        ),
    ] {
        let done = sluice.run(arguments);
        assert_eq!(done.code, code, "{arguments:?}\n{}{}", done.out, done.err);
        for word in words {
            assert!(done.err.contains(word), "{arguments:?} lacks {word}\n{}", done.err);
        }
    }
    // Links lead nowhere else, and a flag opens the way.
    std::os::unix::fs::symlink("/etc/passwd", sluice.path("data/link")).unwrap();
    let link = "SELECT * FROM read_lines('link')";
    assert!(
        sluice
            .run(&["sql", link, "--data", "data"])
            .err
            .contains("outside the data root")
    );
    sluice.succeed(&["sql", link, "--data", "data", "--allow-files"]);
}

/// A heavy statement ends at once on Ctrl-C, and sorts in little memory by spilling.
#[test]
fn statements_end_when_asked_and_stay_in_their_memory() {
    let sluice = small();
    let heavy = "SELECT count(*) FROM generate_series(1, 100000000000) AS a";
    let mut child = sluice.command(&["sql", heavy]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let pid = child.id().to_string();
    assert!(
        std::process::Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(wait(&mut child, Duration::from_secs(10)).code(), Some(130));
    let sort = "SELECT max(v) FROM (SELECT value AS v, row_number() OVER (ORDER BY -value) AS n FROM generate_series(1, 3000000)) AS s WHERE n < 3";
    assert_eq!(csv(&sluice, sort, &["--memory", "48M", "--threads", "2"]), "3000000");
}

/// The whole chain for a user of the quickstart in miniature: metric, beam, history with raw lines.
#[test]
fn queries_that_come_with_the_program_answer() {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    // Expectations are those of the recipe as it is.
    let done = sluice.run(&[&["run", "quickstart.yaml", "--quiet"], &TINY[..]].concat());
    assert!(done.code == 0 || done.err.contains("expectation"), "{}", done.err);
    let listed = sluice.succeed(&["sql", "--query"]).out;
    assert!(
        listed.contains("why_recommended --param user=<a user of the dataset>"),
        "{listed}"
    );
    let query = |name: &str, params: &[&str]| {
        let params: Vec<&str> = params.iter().flat_map(|param| ["--param", *param]).collect();
        sluice
            .succeed(&[&["sql", "--query", name, "--format", "ndjson"], &params[..]].concat())
            .out
    };
    assert!(query("wins", &["a=markov_metrics", "b=popular_metrics", "k=10"]).contains("\"who\":\"a wins\""));
    assert!(query("best_runs", &["metric=recall", "k=10"]).lines().count() >= 3);
    query("collisions", &["depth=2"]);
    let costs: Vec<serde_json::Value> = query("efficiency", &[])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let cost = |stage: &str| costs.iter().find(|cost| cost["stage"] == stage).unwrap();
    assert!(cost("tiger")["parameters"].as_u64().unwrap() > 1000, "{costs:?}");
    assert!(cost("tiger")["training_flops"].as_f64().unwrap() > 1e6, "{costs:?}");
    assert!(cost("generated")["ms_per_user"].as_f64().unwrap() > 0.0, "{costs:?}");
    let rows = csv(
        &sluice,
        "SELECT tensor, norm FROM tiger.model WHERE norm > 0 LIMIT 1",
        &[],
    );
    assert!(!rows.is_empty());
    assert!(
        csv(&sluice, "SELECT count(*) FROM sys.models WHERE shape <> ''", &[])
            .parse::<u64>()
            .unwrap()
            > 10
    );
    assert!(
        !csv(
            &sluice,
            "SELECT value FROM sys.metrics WHERE stage = 'tiger' AND kind = 'progress'",
            &[]
        )
        .is_empty()
    );

    // The same shop from files, so that there are raw lines to lead back to.
    sluice.succeed(&[
        "sql",
        "SELECT user_id, item_id, timestamp FROM shop.interactions",
        "--output",
        "interactions.csv",
    ]);
    sluice.succeed(&[
        "sql",
        "SELECT item_id, title FROM shop.items",
        "--output",
        "items.ndjson",
    ]);
    let sources = "reviews: { op: ingest_interactions, path: interactions.csv }\n  catalogue: { op: ingest_items, path: items.ndjson }";
    let files = recipe("quickstart.yaml")
        .replace("shop:    { op: synthesize, users: 2000, items: 400 }", sources)
        .replace("shop.interactions", "reviews")
        .replace("shop.items", "catalogue")
        .replace("pipeline: quickstart", "pipeline: files")
        // A second list, which is not the one that is told of.
        .replace(
            "  generated: {",
            "  other: { op: generate_tiger, inputs: { model: tiger, histories: split.test, semantic_ids: sids }, beam_width: 5 }\n  generated: {",
        );
    assert!(files.contains("beam_width: 5"));
    sluice.write("files.yaml", files);
    let small: Vec<&str> = TINY.iter().copied().filter(|change| !change.contains("shop")).collect();
    let done = sluice.run(&[&["run", "files.yaml", "--quiet"], &small[..]].concat());
    assert!(done.code == 0 || done.err.contains("expectation"), "{}", done.err);
    let user = csv(&sluice, "SELECT min(user_id) FROM generated", &[]);
    let told = query("why_recommended", &[&format!("user={user}")]);
    let steps: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for what in ["metric", "recommended", "history"] {
        assert!(steps.iter().any(|step| step["what"] == what), "{what}: {told}");
    }
    let recommended = steps.iter().filter(|step| step["what"] == "recommended");
    let list = csv(
        &sluice,
        &format!("SELECT count(*) FROM generated WHERE rank <= 10 AND user_id = '{user}'"),
        &[],
    );
    assert_eq!(recommended.count().to_string(), list.trim(), "{told}");
    let lines: Vec<String> = std::fs::read_to_string(sluice.path("interactions.csv"))
        .unwrap()
        .lines()
        .map(str::to_string)
        .collect();
    let nobody = sluice.run(&["sql", "--query", "why_recommended", "--param", "user=nobody"]);
    assert_eq!((nobody.code, nobody.out.as_str()), (2, ""), "{}", nobody.err);
    assert!(
        nobody
            .err
            .contains("user \"nobody\" has no recommendations in this run")
            && nobody.err.contains("outputs("),
        "{}",
        nobody.err
    );
    for step in steps.iter().filter(|step| step["what"] == "history") {
        let (file, line) = step["evidence"].as_str().unwrap().rsplit_once(':').unwrap();
        let text = &lines[line.parse::<usize>().unwrap() - 1];
        let begins = format!("{user},{},", step["item_id"].as_str().unwrap());
        assert!(
            file == "interactions.csv" && text.starts_with(&begins),
            "{step}: {text}"
        );
    }
}

/// What a terminal with the shell in it shows.
struct Screen {
    child: Child,
    keyboard: ChildStdin,
    shown: Receiver<u8>,
    /// Everything so far, and how much of it has been waited for.
    text: Vec<u8>,
    seen: usize,
}

impl Screen {
    /// `None` where no program makes terminals.
    fn open(sluice: &Sluice) -> Option<Screen> {
        let known = Command::new("script").arg("--version").output().ok()?;
        if !String::from_utf8_lossy(&known.stdout).contains("util-linux") {
            return None;
        }
        let shell = sluice.command(&["sql"]);
        // In the place of the shell that "script" starts, which Ctrl-C would end.
        let line = format!("stty cols 200; exec '{}' sql", shell.get_program().to_string_lossy());
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        command
            .current_dir(sluice.path("."))
            .env("SLUICE_DATA", ".")
            .env("TERM", "xterm")
            .env("HOME", sluice.path("."))
            .env("XDG_STATE_HOME", sluice.path("state"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (to, shown) = channel();
        std::thread::spawn(move || {
            for byte in out.bytes().map_while(std::result::Result::ok) {
                let _ = to.send(byte);
            }
        });
        let keyboard = child.stdin.take().unwrap();
        Some(Screen {
            child,
            keyboard,
            shown,
            text: Vec::new(),
            seen: 0,
        })
    }

    fn types(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits until `what` is shown after what was waited for before, as a person does before the next key.
    fn shows(&mut self, what: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let at = self.text[self.seen..]
                .windows(what.len())
                .position(|part| part == what.as_bytes());
            if let Some(at) = at {
                self.seen += at + what.len();
                return;
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(byte) => self.text.push(byte),
                Err(error) => panic!("{error}: {what:?} is not in {}", self.rest()),
            }
        }
    }

    /// What is shown after what was waited for.
    fn rest(&self) -> String {
        String::from_utf8_lossy(&self.text[self.seen..]).to_string()
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn the_shell_works_in_a_terminal() {
    let sluice = small();
    let Some(mut screen) = Screen::open(&sluice) else {
        eprintln!("skipped: there is no \"script\" of util-linux to make a terminal");
        return;
    };
    // The shell takes keys once its prompt allows pasting in brackets, and a statement runs once it no longer does.
    let (takes_keys, runs) = ("\u{1b}[?2004h", "\u{1b}[?2004l");
    // Tab completes the table; its columns are listed.
    screen.shows(takes_keys);
    screen.types("\\d split.te\t");
    screen.shows("split.test");
    screen.types("\r");
    screen.shows("target_timestamp");
    // A statement over two lines.
    screen.shows(takes_keys);
    screen.types("SELECT count(*) AS counted\r");
    screen.types("FROM cle\t");
    screen.shows("FROM clean");
    screen.types("\r;\r");
    screen.shows("counted\r\n");
    screen.shows("\r\n      9\r\n");
    screen.shows(takes_keys);
    screen.types("SELECT * FROM nope;\r");
    screen.shows("has no stage \"nope\"");
    screen.shows(takes_keys);
    screen.types("\\query wins a=clean junk b=clean\r");
    screen.shows("\"junk\" is no NAME=VALUE");
    // Ctrl-C ends the statement, not the shell.
    screen.shows(takes_keys);
    screen.types("SELECT count(*) FROM generate_series(1, 100000000000);\r");
    screen.shows(runs);
    screen.types("\u{3}");
    screen.shows("interrupted");
    screen.shows(takes_keys);
    screen.types("SELECT 41 + 1 AS still_here;\r");
    screen.shows("\r\n        42\r\n");
    screen.shows(takes_keys);
    screen.types("\\q\r");
    let status = screen.child.wait().unwrap();
    assert!(status.success(), "{status}: {}", screen.rest());
    // What was typed is remembered.
    let history = std::fs::read_to_string(sluice.path("state/sluice/sql_history")).unwrap();
    assert!(history.contains("still_here"), "{history}");
}
