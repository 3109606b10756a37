//! Recovery of simulated laws, coverage of intervals, published curves, and agreement with scipy.

use proptest::prelude::*;
use sluice_engine::random::Random;

use super::findings::{Finding, Fitted, findings};
use super::fit::{Fit, fit};
use super::intervals::{Resampling, correlation, freedom, interval, over_points, over_users};
use super::judgement::{curve_sizes, judge, largest};
use super::laws::{Form, LINEAR, Law};
use super::linear::{Solution, huber, residual, solve};
use super::*;

const X: f64 = f64::NAN;
const DELTA: f64 = 1e-3;
/// The paper's names of the recommender's sizes.
const SHAPES: [f64; 10] = [336e3, 778e3, 1.9e6, 3.3e6, 6.7e6, 13e6, 21e6, 43e6, 88e6, 192e6];

type Sizes = [f64; PARTS.len()];

fn recommenders() -> Vec<Sizes> {
    SHAPES.iter().map(|n| [*n, X, X, X, X]).collect()
}

/// Recommenders, encoders and quantizers, each size with each.
fn systems() -> Vec<Sizes> {
    let mut all = Vec::new();
    for n in SHAPES.iter().step_by(3) {
        for llm in [77e6, 248e6, 783e6, 3e9] {
            for quantizer in [1e5, 4e5, 3e6] {
                all.push([*n, llm, quantizer, X, X]);
            }
        }
    }
    all
}

/// Language models of five sizes, each with adapters of five.
fn adapters() -> Vec<Sizes> {
    let sizes = [0.6e9, 1.7e9, 4e9, 8e9, 14e9];
    let shares = [0.002, 0.005, 0.01, 0.02, 0.05];
    let pair = |llm: f64| shares.map(|share| [X, llm, X, llm * share, X]);
    sizes.into_iter().flat_map(pair).collect()
}

/// Models with data.
fn grid() -> Vec<Sizes> {
    let models = [1e7, 3e7, 1e8, 3e8, 1e9, 3e9, 1e10];
    let data = [1e9, 4e9, 1.6e10, 6e10, 2e11, 1e12];
    models.into_iter().flat_map(|n| data.map(|d| [n, X, X, X, d])).collect()
}

/// A law over sizes, and points that follow it but for noise.
fn simulated(law: Law, truth: &[f64], sizes: &[Sizes], noise: f64, seed: u64) -> (Form, Vec<Point>) {
    let bare: Vec<Point> = sizes
        .iter()
        .map(|sizes| Point {
            sizes: *sizes,
            value: 0.0,
        })
        .collect();
    let main = if sizes[0][RS].is_finite() { RS } else { LLM };
    let form = Form::new(law, &bare, main, law == Law::Additive);
    let mut stream = Random::new(seed, "scaling", "noise").row(0);
    let value = |sizes: &Sizes| form.predict(truth, sizes);
    let points = sizes.iter().map(|sizes| Point {
        sizes: *sizes,
        value: value(sizes) + if noise > 0.0 { noise * stream.normal() } else { 0.0 },
    });
    let points = points.collect();
    (form, points)
}

#[test]
fn laws_without_noise_are_recovered() {
    let cases: [(Law, &[f64], Vec<Sizes>); 10] = [
        (Law::Additive, &[1.8172, 482.01, 2085.43, 0.3478, 0.3658], grid()),
        (Law::Power, &[0.04529, 16.8, 0.6], recommenders()),
        (Law::Power, &[0.3, 0.5, 0.05], recommenders()),
        (Law::Power, &[0.05, 3e4, 1.1], recommenders()),
        (Law::Log, &[0.01, 0.003], recommenders()),
        (Law::Constant, &[0.04], recommenders()),
        (Law::SidGr, &[0.05, 1.0, 1e4, 0.3, 1.1], recommenders()),
        (Law::SidGr, &[0.06, 16.8, 300.0, 0.5, 0.8, 0.01, 0.5], systems()),
        (Law::Llm, &[0.3, 40.0, 3.0, 0.4, 0.2, 0.09], adapters()),
        (Law::LlmCf, &[0.3, 3.0, 40.0, 0.2, 0.4, 0.004, 0.09], adapters()),
    ];
    for (law, truth, sizes) in cases {
        let (form, points) = simulated(law, truth, &sizes, 0.0, 0);
        let fitted = fit(&form, &points, DELTA);
        assert_eq!(form.names().len(), truth.len());
        for ((name, found), truth) in form.names().iter().zip(&fitted.parameters).zip(truth) {
            assert!(
                (found / truth - 1.0).abs() < 1e-6,
                "{law:?} {name}: {found} for {truth}"
            );
        }
        let judged = judge(&form, &points, &fitted, DELTA);
        if law != Law::Constant {
            assert!(judged.r2.unwrap() > 1.0 - 1e-9);
            assert!(judged.held_out.unwrap() < 1e-6, "{law:?} {judged:?}");
        }
    }
}

/// The published parameters; of one term nothing is left at these sizes, so it cannot come back, but curves do.
#[test]
fn published_curves_are_reproduced() {
    let sid: [&[f64]; 3] = [
        &[0.04529, 16.8, 0.01, 0.6, 2.23],
        &[0.0264, 24.8, 0.01, 0.63, 1.97],
        &[0.0371, 6.1, 0.01, 0.52, 2.02],
    ];
    let llm: [&[f64]; 3] = [
        &[0.3, 990.0, 0.34, 19.8, 0.0139, 0.0908, 0.0210],
        &[0.3, 987.0, 0.335, 20.2, 0.00947, 0.0182, 0.0169],
        &[0.17, 0.219, 993.0, 0.0247, 20.2, 0.174, 0.0229],
    ];
    let sid = sid.map(|truth| (Law::SidGr, truth, recommenders(), RS));
    let llm = llm.map(|truth| (Law::LlmCf, truth, adapters(), LLM));
    for (law, truth, sizes, main) in sid.into_iter().chain(llm) {
        let (form, points) = simulated(law, truth, &sizes, 0.0, 0);
        let fitted = fit(&form, &points, DELTA);
        for sizes in curve_sizes(&points, main, 40, 1.0) {
            let (found, wanted) = (form.predict(&fitted.parameters, &sizes), form.predict(truth, &sizes));
            assert!((found - wanted).abs() < 1e-7, "{law:?} {truth:?}: {found} for {wanted}");
        }
        let told = findings(&[fitted_law(form, &points, 0, 0)], &points, 0.95);
        let vanished = told
            .iter()
            .find(|finding| finding.kind == "vanishes")
            .expect("one term vanishes");
        assert!(vanished.sentence.starts_with("B and b vanish"), "{told:?}");
    }
}

#[test]
fn fits_are_those_of_scipy() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../../../tests/golden/scaling.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 6);
    for case in cases {
        let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(case[name].clone()).unwrap() };
        let law: Law = serde_json::from_value(case["law"].clone()).unwrap();
        let parts: Vec<Vec<Option<f64>>> = serde_json::from_value(case["sizes"].clone()).unwrap();
        let points: Vec<Point> = parts
            .iter()
            .zip(numbers("values"))
            .map(|(sizes, value)| {
                let sizes: Vec<f64> = sizes.iter().map(|size| size.unwrap_or(X)).collect();
                Point {
                    sizes: sizes.try_into().unwrap(),
                    value,
                }
            })
            .collect();
        let main = if points[0].sizes[RS].is_finite() { RS } else { LLM };
        let form = Form::new(law, &points, main, law == Law::Additive);
        let fitted = fit(&form, &points, case["delta"].as_f64().unwrap());
        let theirs = case["loss"].as_f64().unwrap();
        // Never worse, and the same place where it is the same loss.
        assert!(
            fitted.loss <= theirs * (1.0 + 1e-6),
            "{law:?}: {} over {theirs}",
            fitted.loss
        );
        assert!(
            fitted.loss >= theirs * (1.0 - 1e-4),
            "{law:?}: {} far below {theirs}",
            fitted.loss
        );
        for (point, theirs) in points.iter().zip(numbers("fitted")) {
            let ours = form.predict(&fitted.parameters, &point.sizes);
            assert!((ours - theirs).abs() < 2e-5 * theirs.abs(), "{law:?}: {ours} {theirs}");
        }
    }
}

/// Shares of simulations whose 95 % interval holds the truth, by parameter.
fn coverage(
    law: Law,
    truth: &[f64],
    sizes: &[Sizes],
    noise: f64,
    (how, simulations, resamples): (Resampling, u64, usize),
) -> Vec<f64> {
    let mut hits = vec![0.0; truth.len()];
    for simulation in 0..simulations {
        let (form, points) = simulated(law, truth, sizes, noise, simulation);
        let fitted = fit(&form, &points, DELTA);
        let random = Random::new(simulation, "scaling", "draws");
        let draws = over_points(&form, &points, &fitted, DELTA, how, resamples, random);
        for (at, truth) in truth.iter().enumerate() {
            let (low, high) = interval(draws.iter().map(|draw| draw[at]), 0.95, freedom(&form, &points, how)).unwrap();
            hits[at] += f64::from(low <= *truth && *truth <= high);
        }
    }
    hits.iter().map(|hits| hits / simulations as f64).collect()
}

/// A standard error of a share of .95 over 200 simulations is .015. Over 600 simulations of 200 resamples: .942, .922, .923
/// with seeds, .948, .953, .953 without (R0, A, a); of `additive` (200 simulations) .97 to .98 over points.
#[test]
fn intervals_hold_the_truth_as_often_as_they_say() {
    let seeds: Vec<Sizes> = recommenders().into_iter().flat_map(|sizes| [sizes; 3]).collect();
    let truth = [0.04529, 16.8, 0.6];
    let settings = (Resampling::Points, 200, 200);
    for share in coverage(Law::Power, &truth, &seeds, 4e-4, settings) {
        assert!((0.88..=0.995).contains(&share), "{share}");
    }
    let settings = (Resampling::Residuals, 200, 200);
    for share in coverage(Law::Power, &truth, &recommenders(), 4e-4, settings) {
        assert!((0.88..=0.995).contains(&share), "{share}");
    }
}

fn fitted_law(form: Form, points: &[Point], resamples: usize, seed: u64) -> Fitted {
    let best = fit(&form, points, DELTA);
    let random = Random::new(seed, "scaling", "points");
    Fitted {
        draws: over_points(&form, points, &best, DELTA, Resampling::Points, resamples, random),
        judgement: judge(&form, points, &best, DELTA),
        freedom: freedom(&form, points, Resampling::Points),
        user_draws: None,
        fit: best,
        form,
    }
}

fn has(found: &[Finding], law: Law, kind: &str, words: &str) -> bool {
    let is = |finding: &&Finding| finding.law == Some(law) && finding.kind == kind;
    found.iter().filter(is).any(|finding| finding.sentence.contains(words))
}

#[test]
fn what_the_points_do_not_tell_is_said() {
    let seeds: Vec<Sizes> = recommenders().into_iter().flat_map(|sizes| [sizes; 3]).collect();
    let (_, points) = simulated(Law::Power, &[0.04529, 16.8, 0.6], &seeds, 4e-4, 7);
    let laws = [Law::SidGr, Law::Power, Law::Log, Law::Constant];
    let laws: Vec<Fitted> = laws
        .map(|law| fitted_law(Form::new(law, &points, RS, false), &points, 100, 1))
        .into();
    let found = findings(&laws, &points, 0.95);
    assert!(
        has(&found, Law::Power, "best", "power has the lowest AICc"),
        "{found:#?}"
    );
    assert!(has(&found, Law::SidGr, "best", "power beats sid_gr"), "{found:#?}");
    assert!(has(&found, Law::SidGr, "left_out", "g1 is left out"), "{found:#?}");
    assert!(
        has(&found, Law::SidGr, "not_identified", "b of sid_gr is not identified")
            || has(&found, Law::SidGr, "vanishes", "B and b vanish"),
        "{found:#?}"
    );
    assert!(has(&found, Law::Power, "go_together", "A and a (+"), "{found:#?}");
    assert!(
        has(&found, Law::Power, "saturates", "% )") || has(&found, Law::Power, "saturates", "%)"),
        "{found:#?}"
    );
    assert!(found.iter().any(|finding| finding.kind == "held_out"));
    assert!(!has(&found, Law::Power, "not_identified", ""), "{found:#?}");
    // What grows with the logarithm has no asymptote.
    let (_, points) = simulated(Law::Log, &[0.01, 0.002], &seeds, 1e-4, 7);
    let power = fitted_law(Form::new(Law::Power, &points, RS, false), &points, 100, 1);
    let found = findings(&[power], &points, 0.95);
    assert!(has(&found, Law::Power, "not_identified", "R0"), "{found:#?}");
    // Four sizes are too few for five parameters.
    let (form, points) = simulated(Law::SidGr, &[0.04529, 16.8, 0.01, 0.6, 2.23], &seeds[..12], 4e-4, 7);
    let found = findings(&[fitted_law(form, &points, 0, 1)], &points, 0.95);
    assert!(
        has(
            &found,
            Law::SidGr,
            "few_points",
            "5 parameters and the points have 4 sizes"
        ),
        "{found:#?}"
    );
    // A metric that does not move.
    let flat: Vec<Point> = points.iter().map(|point| Point { value: 0.04, ..*point }).collect();
    let found = findings(
        &[fitted_law(Form::new(Law::Power, &flat, RS, false), &flat, 0, 1)],
        &flat,
        0.95,
    );
    assert!(
        has(&found, Law::Power, "vanishes", "does not move with size"),
        "{found:#?}"
    );
}

#[test]
fn draws_do_not_depend_on_threads() {
    let (form, points) = simulated(Law::Power, &[0.04529, 16.8, 0.6], &recommenders(), 4e-4, 3);
    let fitted = fit(&form, &points, DELTA);
    let draw = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            over_points(
                &form,
                &points,
                &fitted,
                DELTA,
                Resampling::Points,
                40,
                Random::new(1, "s", "p"),
            )
        })
    };
    assert_eq!(draw(1), draw(3));
    assert_eq!(fit(&form, &points, DELTA), fitted);
}

/// Where users are the only noise, intervals over users are those of the mean.
#[test]
fn users_are_resampled_together() {
    let (form, mut points) = simulated(Law::Constant, &[0.0], &recommenders()[..4], 0.0, 0);
    let users = 500;
    let hit = |user: usize| f64::from(user.is_multiple_of(5));
    let values: Vec<f64> = points.iter().flat_map(|_| (0..users).map(hit)).collect();
    points.iter_mut().for_each(|point| point.value = 0.2);
    let fitted = fit(&form, &points, 1.0);
    let users = super::intervals::Users { values, users };
    let draws = over_users(&form, &points, &fitted, 1.0, &users, 1000, Random::new(1, "s", "u"));
    let (low, high) = interval(draws.iter().map(|draw| draw[0]), 0.95, f64::INFINITY).unwrap();
    let wanted = 1.96 * (0.2 * 0.8 / 500.0f64).sqrt();
    assert!(
        (0.2 - low - wanted).abs() < 0.004 && (high - 0.2 - wanted).abs() < 0.004,
        "{low} {high}"
    );
}

#[test]
fn the_largest_fifth_of_sizes_is_held_out() {
    let seeds: Vec<Sizes> = recommenders().into_iter().rev().flat_map(|sizes| [sizes; 2]).collect();
    let points: Vec<Point> = seeds
        .iter()
        .map(|sizes| Point {
            sizes: *sizes,
            value: 0.0,
        })
        .collect();
    let held = largest(&points);
    assert_eq!(held.iter().filter(|held| **held).count(), 4);
    assert!(held[..4].iter().all(|held| *held));
}

#[test]
fn correlations_are_of_ranks() {
    let draws = vec![
        vec![1.0, 10.0, 3.0],
        vec![2.0, 1e9, 2.0],
        vec![3.0, 1e250, 1.0],
        vec![X, 5.0, 0.0],
    ];
    assert_eq!(correlation(&draws, 0, 1), Some(1.0));
    assert_eq!(correlation(&draws, 0, 2), Some(-1.0));
    assert_eq!(correlation(&draws[..2].to_vec(), 0, 1), None);
}

/// A column that the offset makes up, as that of a size that all points share, leaves the fit of the others.
#[test]
fn columns_that_depend_on_each_other_leave_the_rest() {
    let values = [0.1, 0.2, 0.6];
    let rows = [[1.0, 0.5, 0.0]; 3];
    let Solution { linear, .. } = solve(&rows, 2, 1, &values, 100.0);
    assert!((linear[0] - 0.3).abs() < 1e-15 && linear[1] == 0.0, "{linear:?}");
}

fn loss(rows: &[[f64; LINEAR]], linear: &[f64; LINEAR], values: &[f64], delta: f64) -> f64 {
    let pairs = rows.iter().zip(values);
    pairs
        .map(|(row, value)| huber(residual(row, linear, *value), delta))
        .sum()
}

proptest! {
    /// No admissible step makes the linear part's loss less; noise is up to ten times delta.
    #[test]
    fn the_linear_part_is_at_its_best(seed in 0u64..10_000, n in 4usize..30, delta in prop::sample::select(vec![0.02, 0.3, 100.0])) {
        let mut stream = Random::new(seed, "scaling", "linear").row(0);
        let rows: Vec<[f64; LINEAR]> = (0..n).map(|_| [1.0, stream.normal(), stream.normal().exp()]).collect();
        let values: Vec<f64> = rows.iter().map(|row| 0.3 - 0.2 * row[1] + 0.5 * row[2] + 0.2 * stream.normal()).collect();
        let best = solve(&rows, 3, 1, &values, delta);
        prop_assert!(best.linear[1] >= 0.0 && best.linear[2] >= 0.0);
        prop_assert!((loss(&rows, &best.linear, &values, delta) - best.loss).abs() <= 1e-9 * best.loss);
        for _ in 0..60 {
            let size = 10f64.powf(-4.0 * stream.unit());
            let mut other = best.linear;
            other.iter_mut().for_each(|value| *value += size * stream.normal());
            other[1] = other[1].max(0.0);
            other[2] = other[2].max(0.0);
            prop_assert!(loss(&rows, &other, &values, delta) >= best.loss * (1.0 - 1e-6));
        }
    }

    /// The gradient that the search follows is that of the predictions.
    #[test]
    fn slopes_are_those_of_differences(seed in 0u64..10_000) {
        let mut stream = Random::new(seed, "scaling", "slopes").row(0);
        let (form, points) = simulated(Law::LlmCf, &[0.3, 3.0, 40.0, 0.2, 0.4, 0.004, 0.09], &adapters(), 0.0, 0);
        let theta: Vec<f64> = (0..4).map(|_| stream.normal() - 1.0).collect();
        let linear = [0.1, stream.unit(), stream.unit()];
        let sizes = points[stream.below(25) as usize].sizes;
        let value = |theta: &[f64]| -residual(&form.row(theta, &sizes), &linear, 0.0);
        let mut slope = vec![0.0; 4];
        form.slope(&theta, &sizes, &linear, 1.0, &mut slope);
        for (at, slope) in slope.iter().enumerate() {
            let moved = |by: f64| { let mut other = theta.clone(); other[at] += by; value(&other) };
            let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            // Of a large value rounding leaves more.
            let slack = 1e-6 * (1.0 + difference.abs()) + 1e-9 * value(&theta).abs();
            prop_assert!((difference - slope).abs() < slack, "{at}: {difference} {slope}");
        }
    }
}

/// What a search ends with does not depend on how points are ordered.
#[test]
fn the_order_of_points_does_not_matter() {
    let (form, mut points) = simulated(Law::Power, &[0.04529, 16.8, 0.6], &recommenders(), 4e-4, 3);
    let Fit { parameters, .. } = fit(&form, &points, DELTA);
    points.reverse();
    for (one, two) in parameters.iter().zip(fit(&form, &points, DELTA).parameters) {
        assert!((one / two - 1.0).abs() < 1e-6);
    }
}
