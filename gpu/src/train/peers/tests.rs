//! Peers in threads: any number of them ends with the bytes of one, cut off or not, and none waits for one that is gone.

use super::super::devices::on_each;
use super::super::engine::Engine;
use super::super::tests::{go_on, options, ring};
use super::super::*;
use super::*;
use crate::samples::{Ragged, Samples};
use crate::sasrec::{Loss, Sasrec, SasrecConfig, Select, Sequences};
use crate::tiger::{Tiger, Validation};
use std::sync::mpsc::{Receiver, Sender, channel};

/// A peer in a thread; whoever ends hangs up.
struct Thread {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Peers for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        assert_eq!(parts.len(), self.count());
        for (to, part) in self.to.iter().zip(parts) {
            to.send(part).map_err(|_| Error::Peer("gone".into()))?;
        }
        let got = self.from.iter().map(Receiver::recv);
        got.map(|part| part.map_err(|_| Error::Peer("gone".into()))).collect()
    }
}

fn threads(count: usize) -> Vec<Thread> {
    let mut peers: Vec<Thread> = (0..count)
        .map(|rank| Thread {
            rank,
            to: vec![],
            from: vec![],
        })
        .collect();
    for from in 0..count {
        for to in 0..count {
            let (sender, receiver) = channel();
            peers[from].to.push(sender);
            peers[to].from.push(receiver);
        }
    }
    peers
}

/// What each of so many peers makes of the same training.
fn together<T: Send>(count: usize, train: impl Fn(&dyn Peers) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let train = &train;
        let threads: Vec<_> = threads(count)
            .into_iter()
            .map(|peer| scope.spawn(move || train(&peer)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn replicas(n: usize) -> TrainOptions {
    TrainOptions {
        replicas: n,
        batch_size: 30,
        accumulate: 2,
        max_steps: Some(13),
        eval_every: 5,
        patience: 0,
        ..options()
    }
}

/// Trains TIGER on 110 samples: two steps an epoch, of 30 and 30, and of 30 and 20.
fn tiger(
    options: &TrainOptions,
    peers: &dyn Peers,
    folder: Option<&Path>,
    on_event: &mut OnEvent,
) -> Result<Trained<Tiger>> {
    tiger_on(1, options, peers, folder, on_event)
}

/// The same on so many devices.
fn tiger_on(
    devices: usize,
    options: &TrainOptions,
    peers: &dyn Peers,
    folder: Option<&Path>,
    on_event: &mut OnEvent,
) -> Result<Trained<Tiger>> {
    let (config, samples, trie) = ring(110);
    let valid = Validation {
        samples: &samples,
        trie: &trie,
        users: Some(9),
        beam_width: 5,
    };
    let devices = vec![Device::Cpu; devices];
    let site = Site {
        devices: &devices,
        peers,
    };
    let every = Duration::MAX;
    let checkpoint = folder.map(|folder| Checkpoint { folder, every });
    train_model(&config, options, site, &samples, Some(valid), checkpoint, on_event)
}

fn sasrec(options: &TrainOptions, peers: &dyn Peers) -> Result<Trained<Sasrec>> {
    let windows: Vec<Vec<u32>> = (0..50)
        .map(|i| (0..2 + i % 9).map(|j| (3 * i + j) % 31).collect())
        .collect();
    let mut histories = Ragged::default();
    windows.iter().for_each(|window| histories.push(window));
    let targets: Vec<u32> = (0..50).map(|i| i % 31).collect();
    let config = SasrecConfig {
        items: 31,
        d_model: 16,
        heads: 2,
        max_items: 12,
        loss: Loss::SampledSoftmax,
        negatives: 10,
        ..SasrecConfig::default()
    };
    let valid = crate::sasrec::Validation {
        histories: &histories,
        targets: &targets,
        users: None,
        select: Select::Ndcg10,
    };
    let samples = Sequences::new(windows.iter().map(Vec::as_slice), 12);
    let site = Site {
        devices: &[Device::Cpu],
        peers,
    };
    train_model(&config, options, site, &samples, Some(valid), None, &mut go_on)
}

/// Everything but times.
fn plain(curve: &[CurvePoint]) -> Vec<CurvePoint> {
    curve.iter().map(|p| CurvePoint { seconds: 0.0, ..*p }).collect()
}

fn assert_same<M: Model>(got: &Trained<M>, want: &Trained<M>, what: &str) {
    assert_eq!(plain(&got.curve), plain(&want.curve), "{what}");
    assert_eq!((got.best_step, got.stopped), (want.best_step, want.stopped), "{what}");
    assert!(got.model.weights() == want.model.weights(), "{what}: other weights");
}

#[test]
fn any_number_of_peers_ends_the_same() {
    for n in [1, 2, 3, 5] {
        let want = tiger(&replicas(n), &Alone, None, &mut go_on).unwrap();
        let want_sasrec = sasrec(&replicas(n), &Alone).unwrap();
        for count in [2, 3, 4] {
            let what = format!("{n} replicas, {count} peers");
            for got in together(count, |peers| tiger(&replicas(n), peers, None, &mut go_on)) {
                assert_same(&got.unwrap(), &want, &what);
            }
            for got in together(count, |peers| sasrec(&replicas(n), peers)) {
                assert_same(&got.unwrap(), &want_sasrec, &what);
            }
        }
        // Noise is drawn part by part.
        let other = tiger(&replicas(n + 1), &Alone, None, &mut go_on).unwrap();
        assert!(other.model != want.model, "{n} replicas");
    }
}

#[test]
fn a_training_that_a_peer_broke_goes_on_with_any_number() {
    let options = replicas(3);
    let want = tiger(&options, &Alone, None, &mut go_on).unwrap();
    for breaks in 0..2 {
        for at in [1, 5, 9] {
            let folder = tempfile::tempdir().unwrap();
            let ended = together(2, |peers| {
                let on_event = &mut |event: TrainEvent| match event {
                    TrainEvent::Step { step, .. } if step == at && peers.rank() == breaks => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                };
                tiger(&options, peers, Some(folder.path()), on_event)
            });
            for (rank, ended) in ended.into_iter().enumerate() {
                let error = ended.unwrap_err();
                let wanted = match rank == breaks {
                    true => matches!(error, Error::Interrupted),
                    false => matches!(error, Error::Peer(_)),
                };
                assert!(wanted, "peer {rank} of a training that {breaks} broke: {error}");
            }
            let names = || std::fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(names(), 1, "the first peer stores one state");
            for count in [3, 1, 2] {
                let copy = tempfile::tempdir().unwrap();
                for entry in std::fs::read_dir(folder.path()).unwrap().flatten() {
                    std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
                }
                let again = together(count, |peers| {
                    let mut resumed = None;
                    let on_event = &mut |event: TrainEvent| {
                        if let TrainEvent::Resumed { step } = event {
                            resumed = Some(step);
                        }
                        ControlFlow::Continue(())
                    };
                    let trained = tiger(&options, peers, Some(copy.path()), on_event);
                    (trained.unwrap(), resumed)
                });
                for (trained, resumed) in again {
                    assert_eq!(resumed, Some(at), "an interruption loses nothing");
                    assert_same(&trained, &want, &format!("broken at {at}, then {count} peers"));
                }
            }
        }
    }
}

#[test]
fn devices_of_one_process_are_peers_too() {
    let options = replicas(5);
    let want = tiger(&options, &Alone, None, &mut go_on).unwrap();
    for devices in [2, 3, 6] {
        let got = tiger_on(devices, &options, &Alone, None, &mut go_on).unwrap();
        assert_same(&got, &want, &format!("{devices} devices"));
        for got in together(2, |peers| tiger_on(devices, &options, peers, None, &mut go_on)) {
            assert_same(&got.unwrap(), &want, &format!("{devices} devices of 2 processes"));
        }
    }
    // One that is broken goes on with another number of devices.
    let folder = tempfile::tempdir().unwrap();
    let on_event = &mut |event: TrainEvent| match event {
        TrainEvent::Step { step: 5, .. } => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let broken = tiger_on(3, &options, &Alone, Some(folder.path()), on_event);
    assert!(matches!(broken, Err(Error::Interrupted)));
    let mut resumed = None;
    let on_event = &mut |event: TrainEvent| {
        if let TrainEvent::Resumed { step } = event {
            resumed = Some(step);
        }
        ControlFlow::Continue(())
    };
    let got = tiger_on(2, &options, &Alone, Some(folder.path()), on_event).unwrap();
    assert_eq!(resumed, Some(5));
    assert_same(&got, &want, "broken on 3 devices, then 2");
}

#[test]
fn what_ends_one_device_ends_all_and_is_told() {
    let site = Site {
        devices: &[Device::Cpu, Device::Cpu, Device::Cpu],
        peers: &Alone,
    };
    for culprit in 0..3 {
        let ended = on_each(site, &mut go_on, |_, peers, _| -> Result<()> {
            let parts = || vec![vec![peers.rank() as u8]; 3];
            assert_eq!(peers.exchange(parts())?, [[0], [1], [2]]);
            if peers.rank() == culprit {
                return Err(Error::InvalidData("out of memory".into()));
            }
            peers.exchange(parts()).map(drop)
        });
        let told = ended.unwrap_err();
        assert!(matches!(&told, Error::InvalidData(_)), "device {culprit}: {told}");
    }
    // Processes that have other numbers of devices understand that much of each other.
    let ended = together(2, |peers| {
        tiger_on(1 + peers.rank(), &replicas(3), peers, None, &mut go_on)
    });
    assert!(ended.iter().all(|ended| matches!(ended, Err(Error::Peer(_)))));
    let none = tiger_on(0, &replicas(3), &Alone, None, &mut go_on).unwrap_err();
    assert!(none.to_string().starts_with("invalid `device`"), "{none}");
}

#[test]
fn a_loss_that_is_not_finite_ends_all_at_the_same_step() {
    let wild = TrainOptions {
        lr: 1e30,
        warmup_steps: 0,
        ..replicas(3)
    };
    let ends = |count: usize| {
        together(count, |peers| match tiger(&wild, peers, None, &mut go_on) {
            Err(Error::NotFinite { step, .. }) => step,
            other => panic!("{:?}", other.map(|trained| trained.curve)),
        })
    };
    let alone = ends(1);
    assert!(
        ends(3).iter().chain(&ends(2)).all(|step| *step == alone[0]),
        "{alone:?}"
    );
}

/// Loss and gradients of one step.
fn step(engine: &mut Engine<Tiger>, samples: &Samples, team: Team) -> (f32, Vec<Vec<f32>>) {
    let rows: Vec<u32> = (0..47).collect();
    let batches = [(&rows[..20], Key::new(7)), (&rows[20..], Key::new(8))];
    let loss = engine.step(samples, &batches, team, 1e-2, Some(1.0)).unwrap();
    let weights = match engine {
        Engine::Fast { workspace, .. } => return (loss, workspace.gradients().to_vec()),
        Engine::Stock { stock, .. } => stock.weights().unwrap(),
    };
    (loss, weights.tensors().iter().map(|t| t.data.clone()).collect())
}

fn engine(stock: bool) -> (Engine<Tiger>, Samples) {
    let (mut config, samples, _) = ring(60);
    config.dropout = 0.0;
    let model = Tiger::init(&config, 1).unwrap();
    let engine = match stock {
        true => Engine::stock(model, &options(), &Device::Cpu),
        false => Engine::new(model, &options(), &Device::Cpu),
    };
    (engine.unwrap(), samples)
}

#[test]
fn without_noise_a_step_of_replicas_is_that_of_whole_batches() {
    let (mut whole, samples) = engine(false);
    let (loss, want) = step(&mut whole, &samples, Team::new(&Alone, 1));
    for n in [2, 3, 20] {
        let (mut cut, _) = engine(false);
        let (cut_loss, got) = step(&mut cut, &samples, Team::new(&Alone, n));
        assert!((cut_loss / loss - 1.0).abs() < 1e-6, "{cut_loss}, not {loss}");
        for (got, want) in got.iter().zip(&want) {
            let size: f64 = want.iter().map(|x| f64::from(*x).powi(2)).sum();
            let off: f64 = got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum();
            assert!(off.sqrt() <= 1e-6 * size.sqrt(), "{off} of {size}, squared");
        }
    }
}

/// Gradients of devices go through the host, and the step is the same.
#[test]
fn the_stock_engine_has_peers_too() {
    let run = |peers: &dyn Peers| {
        let (mut engine, samples) = engine(true);
        (0..3)
            .map(|_| step(&mut engine, &samples, Team::new(peers, 3)))
            .collect::<Vec<_>>()
    };
    let want = run(&Alone);
    for count in [1, 2, 3] {
        assert!(together(count, run).iter().all(|got| *got == want), "{count} peers");
    }
    // The fast engine goes there, too.
    let (mut fast, samples) = engine(false);
    let (loss, _) = step(&mut fast, &samples, Team::new(&Alone, 3));
    assert!((want[0].0 / loss - 1.0).abs() < 1e-4, "{} and {loss}", want[0].0);
}

#[test]
fn shares_cover_everything_once() {
    for (n, parts) in [(0, 1), (0, 3), (1, 3), (7, 3), (30, 4), (5, 5), (4, 7)] {
        let all: Vec<usize> = (0..parts).flat_map(|i| share(n, parts, i)).collect();
        assert_eq!(all, (0..n).collect::<Vec<_>>());
        let lengths = (0..parts).map(|i| share(n, parts, i).len());
        assert!(lengths.clone().max().unwrap() - lengths.min().unwrap() <= 1);
    }
    let lengths = [3, 0, 5, 1];
    for count in 1..12 {
        let parts = (0..count).map(|peer| Part::new(&lengths, share(9, count, peer)));
        let mut found = vec![];
        for part in parts {
            let mut at = 0;
            for stretch in &part.stretches {
                assert_eq!(stretch.at, at);
                at += stretch.numbers.len();
                found.extend(stretch.numbers.clone().map(|number| (stretch.weight, number)));
            }
            assert_eq!(at, part.length);
        }
        let wanted = lengths.iter().enumerate();
        let wanted: Vec<_> = wanted.flat_map(|(i, n)| (0..*n).map(move |j| (i, j))).collect();
        assert_eq!(found, wanted, "{count} peers");
    }
}

#[test]
fn peers_that_are_not_alike_are_found_out() {
    let agree = |digests: [&'static str; 3]| {
        together(3, |peers| {
            let rank = peers.rank();
            let measured = (rank == 0).then_some((0.25, -3.0));
            Team::new(peers, 3)
                .agree(digests[rank], measured)
                .map_err(|error| error.to_string())
        })
    };
    assert_eq!(
        agree(["a", "a", "a"]),
        [Ok((0.25, -3.0)), Ok((0.25, -3.0)), Ok((0.25, -3.0))]
    );
    for got in agree(["a", "a", "b"]) {
        let error = got.unwrap_err();
        assert!(error.contains("peer 2 has other weights than peer 0"), "{error}");
    }
    let options = replicas(31);
    let error = tiger(&options, &Alone, None, &mut go_on).unwrap_err().to_string();
    assert!(
        error.starts_with("invalid `replicas`: must not be more than"),
        "{error}"
    );
}
