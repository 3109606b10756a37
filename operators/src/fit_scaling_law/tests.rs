//! Points from metrics, counts and plain tables; what is refused.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Float64Type;
use sluice_engine::{harness, text};

use super::*;
use crate::scaling::Point;

const SIZES: [u64; 6] = [336_000, 778_000, 1_900_000, 3_300_000, 6_700_000, 13_000_000];

fn recall(size: u64, seed: usize) -> f64 {
    0.04529 - 16.8 / (size as f64).powf(0.6) + 1e-4 * (seed as f64 - 2.0)
}

/// Metrics of six sizes and three seeds, as `scores[*]` gathers them; `rank` makes recall@5 and others beside.
fn metrics() -> RecordBatch {
    let mut rows = "shape seed:i64 metric k:u32 slice ties value:f64\n".to_string();
    for (at, size) in SIZES.iter().enumerate() {
        for seed in 1..=3 {
            let value = recall(*size, seed);
            for (metric, k, slice, value) in [
                ("recall", 10, "all", value),
                ("recall", 5, "all", 0.5),
                ("recall", 10, "later", 0.1),
            ] {
                rows.push_str(&format!("s{at} {seed} {metric} {k} {slice} expected {value}\n"));
            }
        }
    }
    text::parse(&rows).unwrap()
}

/// Counts by shape, seed and learning rate: the points have no learning rate.
fn counts() -> RecordBatch {
    let mut rows = "shape seed:i64 lr:f64 part parameters:u64\n".to_string();
    for (at, size) in SIZES.iter().enumerate() {
        for seed in 1..=3 {
            for lr in ["0.001", "0.003"] {
                rows.push_str(&format!(
                    "s{at} {seed} {lr} encoder {}\ns{at} {seed} {lr} embeddings 1000\n",
                    size - 1000
                ));
            }
        }
    }
    text::parse(&rows).unwrap()
}

fn config() -> FitScalingLaw {
    FitScalingLaw {
        laws: vec![Law::Power, Law::Log, Law::Constant],
        resamples: 50,
        ..FitScalingLaw::default()
    }
}

/// `value` of `fits` for a law's parameter.
fn fitted(out: &Tables, law: &str, parameter: &str, column: &str) -> f64 {
    let batch = out.batch(FITS).unwrap();
    let (laws, parameters) = (batch["law"].as_string::<i32>(), batch["parameter"].as_string::<i32>());
    let row = (0..batch.num_rows()).find(|row| laws.value(*row) == law && parameters.value(*row) == parameter);
    batch[column]
        .as_primitive::<Float64Type>()
        .value(row.expect("the parameter is there"))
}

#[test]
fn metrics_and_counts_are_joined_by_their_axes() {
    let out = harness::run(&config(), &[(POINTS, metrics()), ("rs", counts())]).unwrap();
    assert!((fitted(&out, "power", "R0", "value") - 0.04529).abs() < 1e-4);
    assert!((fitted(&out, "power", "a", "value") - 0.6).abs() < 0.02);
    assert!(fitted(&out, "power", "a", "low") < 0.6 && fitted(&out, "power", "a", "high") > 0.6);
    assert_eq!(fitted(&out, "power", "a", "delta_aic"), 0.0);
    assert!(fitted(&out, "log", "s", "delta_aic") > 10.0);
    let points = out.batch(POINTS).unwrap();
    assert_eq!(points.num_rows(), 3 * 18);
    assert_eq!(points["point"].as_string::<i32>().value(1), "shape=s0,seed=2");
    assert_eq!(points["rs"].as_primitive::<Float64Type>().value(0), 336_000.0);
    let curve = out.batch(CURVE).unwrap();
    assert_eq!(curve.num_rows(), 3 * 60);
    let (size, value) = (
        curve["size"].as_primitive::<Float64Type>(),
        curve["value"].as_primitive::<Float64Type>(),
    );
    assert!((size.value(59) / 52e6 - 1.0).abs() < 1e-9);
    let [low, high] = ["low", "high"].map(|name| curve[name].as_primitive::<Float64Type>().value(59));
    assert!(low < value.value(59) && value.value(59) < high);
    assert!(out.batch(FINDINGS).unwrap().num_rows() > 3);
    assert_eq!(out.batch(CORRELATIONS).unwrap().num_rows(), 3 + 1);
}

#[test]
fn parts_choose_what_counts() {
    let config = FitScalingLaw {
        parts: vec!["encoder".into()],
        ..config()
    };
    let out = harness::run(&config, &[(POINTS, metrics()), ("rs", counts())]).unwrap();
    assert_eq!(
        out.batch(POINTS).unwrap()["rs"].as_primitive::<Float64Type>().value(0),
        335_000.0
    );
    let config = FitScalingLaw {
        parts: vec!["encodr".into()],
        ..config
    };
    let error = harness::run(&config, &[(POINTS, metrics()), ("rs", counts())]).unwrap_err();
    assert_eq!(error.code, "unknown-part");
    assert!(error.to_string().contains("they have: embeddings, encoder"), "{error}");
}

/// A table of published points, with columns for sizes.
#[test]
fn plain_points_are_fitted() {
    let mut rows = "model n:f64 d:f64 loss:f64\n".to_string();
    for n in [1e7, 3e7, 1e8, 1e9, 1e10] {
        for d in [1e9, 1e10, 1e11, 1e12] {
            let loss = 1.8172 + 482.01 / f64::powf(n, 0.3478) + 2085.43 / f64::powf(d, 0.3658);
            rows.push_str(&format!("m {n} {d} {loss}\n"));
        }
    }
    let config = FitScalingLaw {
        laws: vec![Law::Additive],
        falls: true,
        value: "loss".into(),
        sizes: SizeColumns {
            rs: Some("n".into()),
            data: Some("d".into()),
            ..SizeColumns::default()
        },
        resamples: 0,
        ..FitScalingLaw::default()
    };
    let out = harness::run(&config, &[(POINTS, text::parse(&rows).unwrap())]).unwrap();
    for (name, truth) in [
        ("E", 1.8172),
        ("A", 482.01),
        ("B", 2085.43),
        ("a", 0.3478),
        ("b", 0.3658),
    ] {
        let found = fitted(&out, "additive", name, "value");
        assert!((found / truth - 1.0).abs() < 1e-6, "{name}: {found}");
    }
    assert!(out.batch(FITS).unwrap()["low"].is_null(0));
}

#[test]
fn users_give_intervals_of_their_own() {
    let mut points = "shape value:f64\n".to_string();
    let mut counts = "shape part parameters:u64\n".to_string();
    let mut users = "shape user_id target rank:u32 later:bool value:f64\n".to_string();
    for (at, size) in SIZES.iter().enumerate() {
        let hit = |user: usize| user.is_multiple_of(12 - at);
        let hits = (0..120).filter(|user| hit(*user)).count();
        points.push_str(&format!("s{at} {}\n", hits as f64 / 120.0));
        counts.push_str(&format!("s{at} all {size}\n"));
        for user in 0..120 {
            users.push_str(&format!("s{at} u{user} i 1 true {}\n", f64::from(hit(user))));
        }
    }
    let parse = |rows: &str| text::parse(rows).unwrap();
    let run = |users: &str| {
        let inputs = [
            (POINTS, parse(&points)),
            ("rs", parse(&counts)),
            (PER_USER, parse(users)),
        ];
        harness::run(
            &FitScalingLaw {
                laws: vec![Law::Log, Law::Constant],
                ..config()
            },
            &inputs,
        )
    };
    let out = run(&users).unwrap();
    let (low, high) = (
        fitted(&out, "constant", "c", "low_users"),
        fitted(&out, "constant", "c", "high_users"),
    );
    assert!(
        low < fitted(&out, "constant", "c", "value") && high - low > 0.02,
        "{low} {high}"
    );
    // Other users, and other values.
    let error = run(&users.replace("s2 u7 ", "s2 v7 ")).unwrap_err();
    assert_eq!(error.code, "different-users", "{error}");
    let error = run(&users.replace("s2 u0 i 1 true 1", "s2 u0 i 1 true 0")).unwrap_err();
    assert!(error.message.contains("the users of shape=s2 have mean"), "{error}");
    let error = run(&users.replace("s2 ", "s7 ")).unwrap_err();
    assert_eq!(error.code, "no-users", "{error}");
}

#[test]
fn bad_input_is_told() {
    let parse = |rows: &str| text::parse(rows).unwrap();
    let plain = |laws: Vec<Law>| FitScalingLaw {
        laws,
        sizes: SizeColumns {
            rs: Some("n".into()),
            ..SizeColumns::default()
        },
        ..config()
    };
    let rows = "n:f64 value:f64\n1e6 0.01\n2e6 0.02\n4e6 0.03\n8e6 0.035\n";
    let code = |config: &FitScalingLaw, rows: &str| harness::run(config, &[(POINTS, parse(rows))]).unwrap_err().code;
    assert_eq!(code(&plain(vec![Law::SidGr]), rows), "few-points");
    assert_eq!(
        code(
            &plain(vec![Law::Power]),
            "n:f64 value:f64\n1e6 0.01\n1e6 0.02\n1e6 0.03\n1e6 0.03\n"
        ),
        "one-size"
    );
    let sizes = SizeColumns {
        rs: Some("n".into()),
        llm: Some("m".into()),
        ..SizeColumns::default()
    };
    let two = |size| FitScalingLaw {
        sizes: sizes.clone(),
        size,
        resamples: 50,
        ..plain(vec![Law::Power])
    };
    let one_varies = "n:f64 m:f64 value:f64\n1e6 1e7 0.01\n1e6 2e7 0.02\n1e6 4e7 0.03\n1e6 8e7 0.035\n";
    assert_eq!(code(&two(None), one_varies), "one-size");
    assert!(harness::run(&two(Some(SizedPart::Llm)), &[(POINTS, parse(one_varies))]).is_ok());
    assert_eq!(
        code(&plain(vec![Law::Log]), "n:f64 value:f64\n1e6 0.01\n2e6 NaN\n"),
        "bad-point"
    );
    assert_eq!(
        code(&plain(vec![Law::Log]), "n:f64 value:f64\n1e6 0.01\n2e6 null\n"),
        "bad-point"
    );
    assert_eq!(
        code(&plain(vec![Law::Log]), "n:f64 value:f64\n1e6 0.01\n0 0.02\n"),
        "bad-point"
    );
    assert_eq!(
        code(&plain(vec![Law::Log]), "n:f64 values:f64\n1e6 0.01\n"),
        "missing-column"
    );
    assert_eq!(code(&plain(vec![Law::Log]), "n value:f64\nx 0.01\n"), "wrong-type");
    assert_eq!(code(&plain(vec![Law::Llm]), rows), "missing-size");
    assert_eq!(code(&plain(vec![]), rows), "bad-value");
    assert_eq!(code(&plain(vec![Law::Log, Law::Log]), rows), "bad-value");
    assert_eq!(
        code(
            &FitScalingLaw {
                delta: 0.0,
                ..plain(vec![Law::Log])
            },
            rows
        ),
        "bad-value"
    );
    let one = |config: &FitScalingLaw, counts: &str| {
        harness::run(config, &[(POINTS, metrics()), ("rs", parse(counts))])
            .unwrap_err()
            .code
    };
    assert_eq!(
        one(
            &FitScalingLaw {
                metric: "recal".into(),
                ..config()
            },
            "part parameters:u64\nall 5"
        ),
        "no-points"
    );
    assert_eq!(one(&config(), "part parameters:u64\nall 5"), "one-size");
    assert_eq!(one(&config(), "shape part parameters:u64\ns0 all 5"), "no-size");
    let differing = "shape seed:i64 lr:f64 part parameters:u64\ns0 1 0.1 all 5\ns0 1 0.2 all 6\n";
    assert_eq!(one(&config(), differing), "ambiguous-size");
    assert_eq!(
        one(&plain(vec![Law::Log]), "part parameters:u64\nall 5"),
        "missing-column"
    );
}

/// A law's own formula, so that no reader of the table has to guess.
#[test]
fn the_reference_has_every_law() {
    let about = include_str!("../fit_scaling_law.rs");
    for law in [
        Law::SidGr,
        Law::Llm,
        Law::LlmCf,
        Law::Additive,
        Law::Power,
        Law::Log,
        Law::Constant,
    ] {
        assert!(
            about.contains(law.formula()) && about.contains(&format!("`{}`", law.name())),
            "{law:?}"
        );
    }
    let point = Point {
        sizes: [1e6, 1.0, 1.0, 1.0, 1.0],
        value: 0.0,
    };
    assert_eq!(Form::new(Law::Constant, &[point], 0, false).parameters(), 1);
}
