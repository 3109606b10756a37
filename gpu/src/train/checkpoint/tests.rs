//! A training that was cut off anywhere, made longer, or robbed of a state ends in the bytes of one that was not.

use super::*;
use crate::optim::Schedule;
use crate::samples::Samples;
use crate::tiger::{Tiger, TigerConfig, Validation};
use crate::train::tests::{go_on, options, ring};
use crate::trie::Trie;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A problem of 4 steps an epoch.
struct Problem {
    config: TigerConfig,
    samples: Samples,
    trie: Trie,
}

impl Problem {
    fn new() -> Self {
        let (config, samples, trie) = ring(110);
        Problem { config, samples, trie }
    }

    fn validation(&self) -> Validation<'_> {
        Validation {
            samples: &self.samples,
            trie: &self.trie,
            users: Some(9),
            beam_width: 5,
        }
    }

    fn train(
        &self,
        options: &TrainOptions,
        validated: bool,
        checkpoint: Option<(&Path, Duration)>,
        on_event: &mut OnEvent,
    ) -> Result<Trained<Tiger>> {
        let validation = validated.then(|| self.validation());
        let checkpoint = checkpoint.map(|(folder, every)| Checkpoint { folder, every });
        let cpu = &Device::Cpu;
        train_model(
            &self.config,
            options,
            cpu,
            &self.samples,
            validation,
            checkpoint,
            on_event,
        )
    }

    /// A training to the end, with what it tells: steps made, the step it went on from, why states failed.
    fn told(&self, options: &TrainOptions, validated: bool, folder: &Path) -> (Trained<Tiger>, Told) {
        let mut told = Told::default();
        let trained = self.train(options, validated, Some((folder, Duration::MAX)), &mut |event| {
            told.hear(event);
            ControlFlow::Continue(())
        });
        (trained.unwrap(), told)
    }
}

#[derive(Debug, Default, PartialEq)]
struct Told {
    steps: usize,
    resumed: Option<usize>,
    failed: Vec<String>,
}

impl Told {
    fn hear(&mut self, event: TrainEvent) {
        match event {
            TrainEvent::Step { .. } => self.steps += 1,
            TrainEvent::Resumed { step } => self.resumed = Some(step),
            TrainEvent::StateFailed { path, reason } => {
                let name = path.file_name().unwrap().to_string_lossy();
                self.failed.push(format!("{name} {reason}"));
            }
            _ => {}
        }
    }
}

fn epochs(n: usize) -> TrainOptions {
    TrainOptions {
        max_steps: None,
        max_epochs: Some(n),
        eval_every: 8,
        patience: 0,
        ..options()
    }
}

fn assert_same(got: &Trained<Tiger>, want: &Trained<Tiger>, what: &str) {
    let plain =
        |curve: &[CurvePoint]| -> Vec<CurvePoint> { curve.iter().map(|p| CurvePoint { seconds: 0.0, ..*p }).collect() };
    assert_eq!(plain(&got.curve), plain(&want.curve), "{what}");
    assert_eq!((got.best_step, got.stopped), (want.best_step, want.stopped), "{what}");
    assert!(got.model == want.model, "{what}: other weights");
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into()).collect();
    names.sort();
    names
}

/// Breaks at every event there is, in the middle of an epoch, of an evaluation, after a state.
#[test]
fn a_training_interrupted_anywhere_ends_the_same() {
    let problem = Problem::new();
    let options = TrainOptions {
        max_steps: Some(15),
        max_epochs: None,
        eval_every: 6,
        ..epochs(0)
    };
    let accumulated = TrainOptions {
        batch_size: 12,
        accumulate: 3,
        ..options.clone()
    };
    let cases = [
        (&options, Duration::ZERO),
        (&options, Duration::MAX),
        (&accumulated, Duration::MAX),
    ];
    for (options, every) in cases {
        let threads = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let whole = threads.install(|| problem.train(options, true, None, &mut go_on).unwrap());
        for kill_at in 1.. {
            let folder = tempfile::tempdir().unwrap();
            let (mut events, mut last) = (0, 0);
            let cut = problem.train(options, true, Some((folder.path(), every)), &mut |event| {
                if let TrainEvent::Step { step, .. } = event {
                    last = step;
                }
                events += 1;
                // A break is a break: every later answer is one too.
                if events >= kill_at {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            if cut.is_ok() {
                assert!(kill_at > 15, "nothing was cut off");
                break;
            }
            let (trained, told) = problem.told(options, true, folder.path());
            assert_eq!(told.resumed, Some(last), "an interruption loses nothing");
            assert_eq!(told.steps, 15 - last);
            assert_same(&trained, &whole, &format!("cut off at event {kill_at}"));
        }
    }
}

/// Killed, not interrupted: what counts is what was stored before.
#[test]
fn a_training_killed_again_and_again_ends_the_same() {
    let problem = Problem::new();
    let options = TrainOptions {
        patience: 2,
        eval_every: 3,
        ..epochs(12)
    };
    let whole = problem.train(&options, true, None, &mut go_on).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut kills = 0;
    let trained = loop {
        let mut events = 0;
        let killed = catch_unwind(AssertUnwindSafe(|| {
            problem.train(&options, true, Some((folder.path(), Duration::ZERO)), &mut |_| {
                events += 1;
                assert!(events < 5 + kills % 7, "killed");
                ControlFlow::Continue(())
            })
        }));
        match killed {
            Ok(trained) => break trained.unwrap(),
            Err(_) => kills += 1,
        }
        assert!(kills < 200, "it does not get on");
        assert!(names(folder.path()).len() <= PERIODIC, "{:?}", names(folder.path()));
    };
    assert!(kills > 3, "{kills}");
    assert_same(&trained, &whole, "after many kills");
}

#[test]
fn a_longer_training_goes_on_from_a_shorter_one() {
    let problem = Problem::new();
    for schedule in [Schedule::Constant, Schedule::InverseSqrt] {
        for validated in [true, false] {
            // 40 and 80 steps: 8 divides both, 16 only the second, 7 and 100 neither.
            for (eval_every, patience) in [(8, 0), (16, 0), (7, 0), (100, 0), (7, 3), (7, 1), (9, 2)] {
                let extent = |n| TrainOptions {
                    schedule,
                    eval_every,
                    patience,
                    ..epochs(n)
                };
                let what = format!("{schedule:?}, validated {validated}, every {eval_every}, patience {patience}");
                let at_once = |n| problem.train(&extent(n), validated, None, &mut go_on).unwrap();
                let folder = tempfile::tempdir().unwrap();
                let (short, _) = problem.told(&extent(10), validated, folder.path());
                assert_same(&short, &at_once(10), &what);
                let (long, told) = problem.told(&extent(20), validated, folder.path());
                let want = at_once(20);
                assert_same(&long, &want, &what);
                let (from, to) = (told.resumed.unwrap(), want.curve.last().unwrap().step);
                assert!(from == 40 || short.stopped == Stopped::Patience, "{what}: {from}");
                assert_eq!(told.steps, to - from, "{what}");
                assert_eq!(told.failed, [""; 0], "{what}");
            }
        }
    }
}

#[test]
fn a_shorter_training_does_not_use_a_longer_one() {
    let problem = Problem::new();
    let folder = tempfile::tempdir().unwrap();
    problem.told(&epochs(6), true, folder.path());
    assert_eq!(names(folder.path()), ["final-24.state"]);
    let (short, told) = problem.told(&epochs(4), true, folder.path());
    assert_eq!((told.resumed, told.steps), (None, 16));
    assert_same(
        &short,
        &problem.train(&epochs(4), true, None, &mut go_on).unwrap(),
        "shorter",
    );
    // Both ends stay, and each is found again; what lies between goes on from the nearest.
    assert_eq!(names(folder.path()), ["final-16.state", "final-24.state"]);
    for (n, resumed, steps) in [(4, 16, 0), (6, 24, 0), (5, 16, 4), (7, 24, 4)] {
        let (_, told) = problem.told(&epochs(n), true, folder.path());
        assert_eq!((told.resumed, told.steps), (Some(resumed), steps), "{n} epochs");
    }
}

#[test]
fn a_cosine_of_another_length_starts_anew() {
    let problem = Problem::new();
    let cosine = |n| TrainOptions {
        schedule: Schedule::Cosine,
        ..epochs(n)
    };
    let folder = tempfile::tempdir().unwrap();
    problem.told(&cosine(3), true, folder.path());
    let (long, told) = problem.told(&cosine(5), true, folder.path());
    assert_eq!((told.resumed, told.steps), (None, 20));
    assert_same(
        &long,
        &problem.train(&cosine(5), true, None, &mut go_on).unwrap(),
        "cosine",
    );
    assert_eq!(problem.told(&cosine(5), true, folder.path()).1.steps, 0);
}

#[test]
fn a_state_of_another_training_is_not_used() {
    let problem = Problem::new();
    let folder = tempfile::tempdir().unwrap();
    problem.told(&epochs(2), true, folder.path());
    let others = [
        (TrainOptions { lr: 0.5, ..epochs(3) }, true),
        (TrainOptions { seed: 1, ..epochs(3) }, true),
        (epochs(3), false),
    ];
    for (other, validated) in others {
        let (_, told) = problem.told(&other, validated, folder.path());
        assert_eq!(told.steps, 12);
        assert!(
            told.failed[0].contains("another config, other options or other data"),
            "{told:?}"
        );
        fs::remove_file(folder.path().join("final-12.state")).unwrap();
    }
    let (config, samples, trie) = ring(111);
    let other = Problem { config, samples, trie };
    assert_eq!(other.told(&epochs(3), true, folder.path()).1.resumed, None);
}

/// A byte anywhere, an end that is missing, an empty file, another file: each is told, and an older state is used.
#[test]
fn a_damaged_state_is_told_and_passed_over() {
    let problem = Problem::new();
    let whole = problem.train(&epochs(3), true, None, &mut go_on).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let cut = problem.train(
        &epochs(3),
        true,
        Some((folder.path(), Duration::ZERO)),
        &mut |event| match event {
            TrainEvent::Step { step: 7, .. } => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        },
    );
    assert!(matches!(cut, Err(Error::Interrupted)));
    assert_eq!(names(folder.path()), ["step-6.state", "step-7.state"]);
    let path = folder.path().join("step-7.state");
    let (older, good) = (
        fs::read(folder.path().join("step-6.state")).unwrap(),
        fs::read(&path).unwrap(),
    );
    let mut damaged: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "no training state"),
        (b"{}".to_vec(), "no training state"),
        (good[..MAGIC.len() + 5].to_vec(), "cut short"),
        (good[..good.len() - 1].to_vec(), "checksum"),
        (good[..good.len() / 2].to_vec(), "checksum"),
        (older.clone(), "another step"),
    ];
    for at in [
        0,
        MAGIC.len(),
        MAGIC.len() + DIGEST,
        MAGIC.len() + DIGEST + 9,
        good.len() / 2,
        good.len() - 1,
    ] {
        let mut flipped = good.clone();
        flipped[at] ^= 16;
        damaged.push((flipped, "step-7.state is "));
    }
    for (bytes, reason) in &damaged {
        let copy = tempfile::tempdir().unwrap();
        fs::write(copy.path().join("step-6.state"), &older).unwrap();
        fs::write(copy.path().join("step-7.state"), bytes).unwrap();
        let (trained, told) = problem.told(&epochs(3), true, copy.path());
        assert_eq!((told.resumed, told.steps), (Some(6), 6));
        assert!(
            told.failed.len() == 1 && told.failed[0].contains(reason),
            "{told:?}, not {reason}"
        );
        assert_same(&trained, &whole, reason);
        // Without the older one training starts anew.
        let copy = tempfile::tempdir().unwrap();
        fs::write(copy.path().join("step-7.state"), bytes).unwrap();
        let (trained, told) = problem.told(&epochs(3), true, copy.path());
        assert_eq!((told.resumed, told.steps), (None, 12));
        assert_same(&trained, &whole, reason);
    }
}

#[test]
fn a_folder_that_cannot_be_written_does_not_stop_a_training() {
    let problem = Problem::new();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let (trained, told) = problem.told(&epochs(2), true, &file);
    assert_eq!(told.failed.len(), 1, "{told:?}");
    assert_same(
        &trained,
        &problem.train(&epochs(2), true, None, &mut go_on).unwrap(),
        "no folder",
    );
}

#[test]
fn files_that_a_killed_process_left_are_removed() {
    let problem = Problem::new();
    let folder = tempfile::tempdir().unwrap();
    for name in ["step-3.77.part", "notes.txt", "step-x.state"] {
        fs::write(folder.path().join(name), "half").unwrap();
    }
    problem.told(&epochs(1), true, folder.path());
    assert_eq!(names(folder.path()), ["final-4.state", "notes.txt", "step-x.state"]);
}

/// The engine for other devices stores and restores its state too, in any precision.
#[test]
fn the_stock_engine_goes_on_too() {
    for precision in [Precision::F32, Precision::Bf16] {
        the_stock_engine_goes_on(precision);
    }
}

fn the_stock_engine_goes_on(precision: Precision) {
    let problem = Problem::new();
    let folder = tempfile::tempdir().unwrap();
    let train = |epochs_to: usize, checkpoint: Option<&Path>, break_at: usize| {
        let options = TrainOptions {
            precision,
            ..epochs(epochs_to)
        };
        let model = Tiger::init(&problem.config, Key::new(0).child(0).bits(0)).unwrap();
        let engine = Engine::stock(model, &options, &Device::Cpu).unwrap();
        let every = Duration::MAX;
        let checkpoint = checkpoint.map(|folder| Checkpoint { folder, every });
        let validation = Some(problem.validation());
        Training::new(
            &problem.config,
            &options,
            engine,
            &problem.samples,
            validation,
            checkpoint,
            &Alone,
        )
        .run(&mut |event| match event {
            TrainEvent::Step { step, .. } if step == break_at => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    };
    let whole = train(2, None, 0).unwrap();
    assert!(matches!(train(2, Some(folder.path()), 5), Err(Error::Interrupted)));
    assert_same(&train(2, Some(folder.path()), 5 + 100).unwrap(), &whole, "stock");
    // The CPU's own engine does not take it.
    let (_, told) = problem.told(&epochs(2), true, folder.path());
    assert_eq!((told.resumed, told.failed.len()), (None, 2));
}
