//! Calls that share their work give the bytes of one, tell what goes wrong once, and wait for none that is gone.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::time::Instant;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use schemars::JsonSchema;

use super::*;
use crate::error::Kind;
use crate::event::Event;
use crate::graph::Graph;
use crate::operator::{Binding, Bound, Context, OUT, Operator, Registry};
use crate::plan::Selection;
use crate::run::{Options, Outcome, plan_over, run};
use crate::spec::{Overrides, Spec};
use crate::store::Store;
use crate::table::{Shape, Table};

const FOLDER: &str = "folder";

/// Draws numbers in rounds, each from all of the last round; its calls share them.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Rounds {
    /// Numbers of a round.
    numbers: usize,
    rounds: u64,
    /// Further bytes that calls send each other in every round.
    ballast: usize,
    /// Who does something else in the second round.
    odd: Option<usize>,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum What {
    Fails,
    Panics,
    Ends,
    Waits,
}

impl Default for Rounds {
    fn default() -> Self {
        Rounds {
            numbers: 7,
            rounds: 5,
            ballast: 0,
            odd: None,
            what: What::Fails,
        }
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("number", DataType::Int64, false)]))
}

impl Operator for Rounds {
    const NAME: &'static str = "rounds";
    const VERSION: u32 = 1;

    fn bind(&self, _: &Binding) -> Bound {
        let bound = Bound::whole().peers(self.numbers).out(Shape::Table(schema()));
        bound.output(FOLDER, Shape::Folder("text".into()))
    }

    fn run(&self, context: &Context, _: Tables) -> Result<Tables> {
        let (rank, count) = (context.peers.rank(), context.peers.count());
        let own = self.numbers * rank / count..self.numbers * (rank + 1) / count;
        let mut seed = 1u64;
        let mut numbers: Vec<i64> = Vec::new();
        for round in 0..self.rounds {
            if round == 1 && self.odd == Some(rank) {
                match self.what {
                    What::Fails => return Err(Error::data("odd-one", format!("call {rank} is odd"))),
                    What::Panics => panic!("told to panic"),
                    What::Ends => return Ok(Tables::new()),
                    What::Waits => loop {
                        context.check_cancelled()?;
                        std::thread::sleep(Duration::from_millis(1));
                    },
                }
            }
            let draw = |number: usize| seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number as u64);
            let mut words: Vec<u8> = own.clone().flat_map(|number| draw(number).to_le_bytes()).collect();
            let ballast = |peer: usize| (0..self.ballast).map(move |i| (i * 7 + peer + round as usize) as u8);
            words.extend(ballast(rank));
            let got = context.peers.exchange(vec![words; count])?;
            numbers.clear();
            for (peer, mut words) in got.into_iter().enumerate() {
                let ballast_of_peer = words.split_off(words.len() - self.ballast);
                assert!(
                    ballast_of_peer.into_iter().eq(ballast(peer)),
                    "bytes were lost or mixed up"
                );
                let words = words.chunks_exact(8);
                numbers.extend(words.map(|word| i64::from_le_bytes(word.try_into().expect("eight bytes"))));
            }
            seed = numbers.iter().fold(seed, |seed, number| {
                seed.rotate_left(7).wrapping_mul(31).wrapping_add(*number as u64)
            });
            context.progress(round + 1, Some(self.rounds), "rounds", &[]);
        }
        context.note("rank", rank as u64);
        let folder = context.folder(FOLDER)?;
        std::fs::write(folder.join("rank.txt"), rank.to_string()).unwrap();
        let batch = RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(numbers))])?;
        Ok(Tables::out(batch).with(FOLDER, Table::Folder(folder)))
    }
}

/// One process of a run, which the calling thread plays.
fn process(
    store: &Path,
    config: &str,
    hosts: Option<(Vec<String>, usize)>,
    cancel: Cancel,
) -> Result<Option<Outcome>, Vec<Error>> {
    let store = Store::open(store).map_err(|error| vec![error])?;
    let yaml = format!("pipeline: p\nstages:\n  rounds: {{ op: rounds, {config} }}\n");
    let spec = Spec::parse("p.yaml", &yaml, &Overrides::default())?;
    let graph = Graph::build(&spec, &Registry::new().with::<Rounds>(), Path::new("."))?;
    let plan = plan_over(&graph, &store, Path::new("."), &Selection::default())?;
    let mut options = Options::new(2, Path::new("."));
    options.resources.hosts = hosts;
    options.cancel = cancel;
    run(graph, &plan, &store, &options, &mut |_: &Event| {})
}

/// A run over so many processes: what the first one says. With `stop` it is asked to stop after this time.
fn cluster(store: &Path, config: &str, processes: usize, stop: Option<Duration>) -> Result<Outcome, Vec<Error>> {
    // Ports that were free a moment ago.
    let sockets: Vec<TcpListener> = (0..processes)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses: Vec<String> = sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap().to_string())
        .collect();
    drop(sockets);
    let cancel = Cancel::default();
    let first = std::thread::scope(|scope| {
        let hosts = |process: usize| (processes > 1).then(|| (addresses.clone(), process));
        for other in 1..processes {
            let hosts = hosts(other);
            scope.spawn(move || {
                process(store, config, hosts, Cancel::default()).unwrap();
            });
        }
        if let Some(stop) = stop {
            let cancel = cancel.clone();
            scope.spawn(move || {
                std::thread::sleep(stop);
                cancel.cancel();
            });
        }
        process(store, config, hosts(0), cancel.clone())
    });
    first.map(|outcome| outcome.expect("the first process has an outcome"))
}

#[test]
fn any_number_of_processes_gives_the_same_bytes() {
    // Several pieces, one of them short.
    let config = "numbers: 7, rounds: 4, ballast: 2500000";
    let mut outputs: Vec<BTreeMap<String, String>> = Vec::new();
    for processes in [1, 2, 3] {
        let folder = tempfile::tempdir().unwrap();
        let outcome = cluster(folder.path(), config, processes, None).unwrap();
        let record = &outcome.records["rounds"];
        assert_eq!(record.notes["rank"], 0, "{processes} processes");
        assert_eq!(record.rows[OUT], 7, "{processes} processes");
        let store = Store::open(folder.path()).unwrap();
        let made = store.object(&record.outputs[FOLDER]).join("rank.txt");
        assert_eq!(std::fs::read_to_string(made).unwrap(), "0", "{processes} processes");
        let left = std::fs::read_dir(folder.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0, "attempts are removed");
        outputs.push(record.outputs.clone());
    }
    assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]), "{outputs:#?}");
}

#[test]
fn no_more_calls_than_shares_and_nothing_to_send_is_no_end() {
    // The third process takes no part.
    for config in [
        "numbers: 2, rounds: 3",
        "numbers: 1, rounds: 3",
        "numbers: 3, rounds: 0",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let outcome = cluster(folder.path(), config, 3, None).unwrap();
        let alone = tempfile::tempdir().unwrap();
        let wanted = cluster(alone.path(), config, 1, None).unwrap();
        assert_eq!(
            outcome.records["rounds"].outputs, wanted.records["rounds"].outputs,
            "{config}"
        );
    }
}

#[test]
fn a_call_that_goes_wrong_ends_the_others_and_is_told_once() {
    for (odd, what, kind, told) in [
        (0, "fails", Kind::Data, "call 0 is odd"),
        (2, "fails", Kind::Data, "call 2 is odd"),
        (1, "panics", Kind::Internal, "told to panic"),
        (0, "ends", Kind::Internal, "peer 0 ended before"),
        (1, "ends", Kind::Internal, "peer 1 ended before"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let config = format!("odd: {odd}, what: {what}");
        let errors = cluster(folder.path(), &config, 3, None).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(30), "{config}: it took too long");
        assert_eq!(errors.len(), 1, "{config}: {errors:?}");
        assert_eq!(errors[0].kind, kind, "{config}: {errors:?}");
        assert!(errors[0].message.contains(told), "{config}: {errors:?}");
        let stage = |line: &String| line.contains("stage \"rounds\"");
        assert!(errors[0].detail.iter().any(stage), "{config}: {errors:?}");
        // The next run is a good one.
        cluster(folder.path(), "odd: null", 1, None).unwrap();
    }
}

#[test]
fn a_run_that_is_stopped_ends_calls_that_wait() {
    for odd in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let config = format!("odd: {odd}, what: waits");
        let stop = Duration::from_secs(2);
        let errors = cluster(folder.path(), &config, 2, Some(stop)).unwrap_err();
        assert!(errors.iter().all(|error| error.kind == Kind::Interrupted), "{errors:?}");
        assert!(
            start.elapsed() < stop + Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
        let left = std::fs::read_dir(folder.path().join("tmp")).unwrap().count();
        assert_eq!(left, 0, "attempts are removed");
    }
}
