//! Tests of k-means: exact vectors, scikit-learn's numbers, independence of threads, errors.

use super::*;

const SQUARE: [f32; 8] = [0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 1.0, 1.0];

fn lloyd(clusters: usize, init: Init) -> KMeansConfig {
    let schedule = Schedule::Lloyd {
        max_iterations: 100,
        tolerance: 0.0,
    };
    KMeansConfig {
        clusters,
        init,
        schedule,
        seed: 42,
        allow_fewer_distinct: false,
    }
}

fn blobs(n: usize, d: usize, seed: u64) -> Vec<f32> {
    let centre = |row: usize, col: usize| 3.0 * draws::normal(seed, (row % 9) as u64, col as u64);
    let value = |i: usize| (centre(i / d, i % d) + draws::normal(seed, 100, i as u64)) as f32;
    (0..n * d).map(value).collect()
}

#[test]
fn weighted_square() {
    let config = lloyd(2, Init::Given(vec![0.0, 0.0, 1.0, 1.0]));
    let fit = fit(&SQUARE, 2, Some(&[3.0, 1.0, 1.0, 3.0]), &config).unwrap();
    assert_eq!(fit.labels_n, [0, 0, 1, 1]);
    assert_eq!(fit.centres_kd, [0.125, 0.0, 0.875, 1.0]);
    assert_eq!(fit.inertia, 0.375);
    assert!(fit.converged);
}

#[test]
fn an_empty_centre_takes_the_farthest_row() {
    let fit = fit(&SQUARE, 2, None, &lloyd(2, Init::Given(vec![0.5, 0.5, 3.0, 3.0]))).unwrap();
    assert_eq!(fit.labels_n, [0, 0, 1, 1]);
    assert_eq!(fit.centres_kd, [0.25, 0.0, 0.75, 1.0]);
    assert_eq!(fit.inertia, 0.25);
}

#[test]
fn agrees_with_scikit_learn() {
    let golden: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/golden/kmeans.json")).expect("golden file");
    for case in golden["cases"].as_array().expect("cases") {
        let floats = |key: &str| -> Vec<f32> { serde_json::from_value(case[key].clone()).expect(key) };
        let weights = case["weights"].is_array().then(|| floats("weights"));
        let dim = case["dim"].as_u64().expect("dim") as usize;
        let init = floats("init");
        let config = lloyd(init.len() / dim, Init::Given(init));
        let fit = fit(&floats("rows"), dim, weights.as_deref(), &config).unwrap();
        let labels: Vec<u32> = serde_json::from_value(case["labels"].clone()).expect("labels");
        assert_eq!(fit.labels_n, labels, "{}", case["name"]);
        for (got, want) in fit.centres_kd.iter().zip(floats("centres")) {
            assert!((got - want).abs() < 1e-5, "{}: {got} {want}", case["name"]);
        }
        let inertia = case["inertia"].as_f64().expect("inertia");
        assert!(
            (fit.inertia - inertia).abs() < 1e-5 * inertia,
            "{}: {} {inertia}",
            case["name"],
            fit.inertia
        );
    }
}

#[test]
fn same_bits_for_any_number_of_threads() {
    let x = blobs(1500, 13, 1);
    for schedule in [
        Schedule::Lloyd {
            max_iterations: 20,
            tolerance: 1e-4,
        },
        Schedule::MiniBatch {
            updates: 8,
            batch_rows: 300,
        },
    ] {
        for buffer in [Buffer::All, Buffer::First(200), Buffer::Sampled(200)] {
            let config = KMeansConfig {
                schedule,
                ..lloyd(33, Init::PlusPlus(buffer))
            };
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .expect("pool");
                pool.install(|| fit(&x, 13, None, &config).unwrap())
            };
            let one = run(1);
            assert_eq!(one, run(2));
            assert_eq!(one, run(5));
            assert_eq!(one.labels_n, assign(&x, 13, &one.centres_kd).unwrap().0);
        }
    }
}

#[test]
fn plus_plus_finds_separated_blobs_and_mini_batch_comes_close() {
    let x = blobs(900, 7, 2);
    let full = fit(&x, 7, None, &lloyd(9, Init::PlusPlus(Buffer::All))).unwrap();
    assert!(full.inertia < 1.1 * 900.0 * 7.0, "{}", full.inertia);
    let schedule = Schedule::MiniBatch {
        updates: 8,
        batch_rows: 300,
    };
    let mini = KMeansConfig {
        schedule,
        ..lloyd(9, Init::PlusPlus(Buffer::Sampled(500)))
    };
    let mini = fit(&x, 7, None, &mini).unwrap();
    assert!(mini.inertia < 1.5 * full.inertia, "{} {}", mini.inertia, full.inertia);
    assert!(!mini.converged && mini.iterations == 8);
}

#[test]
fn a_buffer_has_room_for_all_centres() {
    let x = blobs(500, 7, 3);
    for buffer in [
        Buffer::First(0),
        Buffer::First(20),
        Buffer::Sampled(0),
        Buffer::Sampled(20),
    ] {
        let fit = fit(&x, 7, None, &lloyd(40, Init::PlusPlus(buffer))).unwrap();
        assert_eq!(fit.used, 40, "{buffer:?}");
    }
}

#[test]
fn user_mistakes_are_named() {
    let config = lloyd(4, Init::PlusPlus(Buffer::All));
    let say = |result: Result<KMeansFit, KMeansError>| result.unwrap_err().to_string();
    assert_eq!(
        say(fit(&[1.0, 2.0, 1.0, 2.0, -0.0, 0.0, 0.0, 0.0], 2, None, &config)),
        "4 clusters need as many distinct rows, but only 2 of 4 rows are distinct"
    );
    assert_eq!(
        say(fit(&[1.0, 2.0, f32::NAN, 0.0], 2, None, &config)),
        "row 1, column 0 is NaN; every value must be finite"
    );
    assert!(say(fit(&[], 2, None, &config)).starts_with("k-means needs at least one row"));
    assert!(say(fit(&SQUARE, 2, Some(&[1.0]), &config)).contains("the weights: got 1 values, expected 4"));
    assert!(say(fit(&SQUARE, 2, Some(&[1.0, -1.0, 1.0, 1.0]), &config)).contains("weight of row 1 is -1"));
}

#[test]
fn surplus_centres_repeat_the_first_and_stay_unused() {
    let config = KMeansConfig {
        allow_fewer_distinct: true,
        ..lloyd(5, Init::PlusPlus(Buffer::All))
    };
    let fit = fit(&[1.0, 2.0, 1.0, 2.0, 0.0, 0.0], 2, None, &config).unwrap();
    assert_eq!((fit.used, fit.inertia), (2, 0.0));
    assert!((2..5).all(|k| fit.centres_kd[k * 2..][..2] == fit.centres_kd[..2]));
    assert!(fit.labels_n.iter().all(|k| *k < 2));
}

/// Nearest centre and squared distance of every row, one by one.
fn nearest(x: &[f32], dim: usize, centres_kd: &[f32]) -> Vec<(u32, f64)> {
    let row = |row: &[f32]| {
        let distances = centres_kd
            .chunks_exact(dim)
            .map(|centre| lanes::squared_distance(row, centre));
        let first = (0, f64::INFINITY);
        (0u32..)
            .zip(distances)
            .fold(first, |best, next| if next.1 < best.1 { next } else { best })
    };
    x.chunks_exact(dim).map(row).collect()
}

/// Laws of Lloyd's iterations, on problems of many shapes, some with weights, ties and empty clusters.
#[test]
fn lloyd_never_gets_worse_and_rows_are_at_their_nearest_centre() {
    let mut all = 0;
    for case in 0..24u64 {
        let dim = [1, 2, 7, 16, 33][case as usize % 5];
        let n = 40 + 17 * case as usize;
        let mut x = blobs(n, dim, case);
        if case % 3 == 0 {
            // On a grid, with many ties.
            x.iter_mut().for_each(|value| *value = value.round());
        }
        let weights: Option<Vec<f32>> = (case % 4 == 1).then(|| (0..n).map(|row| (row % 5) as f32).collect());
        let clusters = 3 + case as usize % 11;
        // Neighbouring rows as centres are a bad start, and leave some empty.
        let init = Init::Given(x[..clusters * dim].to_vec());
        let after = |iterations| {
            let schedule = Schedule::Lloyd {
                max_iterations: iterations,
                tolerance: 0.0,
            };
            let config = KMeansConfig {
                schedule,
                ..lloyd(clusters, init.clone())
            };
            fit(&x, dim, weights.as_deref(), &config).unwrap()
        };
        let mut before = f64::INFINITY;
        for iterations in 0.. {
            let fit = after(iterations);
            // Means are rounded to f32.
            assert!(
                fit.inertia <= before * (1.0 + 1e-6),
                "case {case}, iteration {iterations}: {before} -> {}",
                fit.inertia
            );
            before = fit.inertia;
            let nearest = nearest(&x, dim, &fit.centres_kd);
            let mut sum = 0.0;
            for (row, (label, distance)) in nearest.iter().enumerate() {
                assert_eq!(
                    fit.labels_n[row], *label,
                    "case {case}, iteration {iterations}, row {row}"
                );
                sum += distance * weights.as_ref().map_or(1.0, |w| f64::from(w[row]));
            }
            assert!(
                (fit.inertia - sum).abs() <= 1e-9 * sum,
                "case {case}: {} {sum}",
                fit.inertia
            );
            if fit.converged {
                all += iterations;
                break;
            }
        }
    }
    assert!(all > 24 * 3, "only {all} iterations");
}
