//! Comparisons against scipy and statsmodels, and the laws that p values keep.

use proptest::prelude::*;
use sluice_engine::text;

use super::*;

const SETTINGS: Settings = Settings {
    resamples: 999,
    confidence: 0.95,
    seed: 1,
};

fn scores(label: &str, values: &[f64]) -> Scores {
    let rows = values.iter().enumerate();
    Scores::new(label, rows.map(|(user, value)| (format!("u{user:04}"), *value))).unwrap()
}

fn system(name: &str, runs: &[&[f64]]) -> System {
    System {
        name: name.to_string(),
        runs: runs.iter().map(|values| scores(name, values)).collect(),
    }
}

fn golden() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../tests/golden/comparison.json")).unwrap()
}

fn numbers(value: &serde_json::Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn p_values_and_intervals_are_those_of_scipy() {
    let settings = Settings {
        resamples: 50_000,
        ..SETTINGS
    };
    let golden = golden();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() >= 7);
    for case in cases {
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let compared = compare(&[system("a", &[&a]), system("b", &[&b])], &settings).unwrap();
        let (ours, number) = (&compared.differences[0], |key: &str| case[key].as_f64().unwrap());
        assert!((ours.mean - number("mean")).abs() < 1e-12, "{case} {ours:?}");
        // Both sides resample where it is not exact: four standard errors of the difference.
        let p = number("p");
        let slack = match case["exact"].as_bool().unwrap() {
            true => 1e-12,
            false => 4.0 * (p * (1.0 - p) * (1.0 / 50_000.0 + 1.0 / 200_000.0)).sqrt() + 1e-4,
        };
        assert!((ours.p - p).abs() < slack, "{case} {ours:?}");
        assert_eq!(ours.holm, ours.p);
        let (low, high) = ours.interval.unwrap();
        let slack = 0.02 * (high - low) + 1e-12;
        assert!((low - number("low")).abs() < slack, "{case} {ours:?}");
        assert!((high - number("high")).abs() < slack, "{case} {ours:?}");
    }
}

#[test]
fn holm_is_that_of_statsmodels() {
    for family in golden()["holm"].as_array().unwrap() {
        for (ours, theirs) in holm(&numbers(&family["p"])).iter().zip(numbers(&family["holm"])) {
            assert!((ours - theirs).abs() < 1e-15, "{family}");
        }
    }
    assert!(holm(&[]).is_empty());
}

#[test]
fn seeds_are_summed_up_by_mean_and_sample_deviation() {
    let golden = golden()["summary"].clone();
    let runs: Vec<Scores> = golden["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| scores("s", &numbers(run)))
        .collect();
    let ours = summary(&runs);
    assert_eq!(ours.runs, 4);
    assert!((ours.mean - golden["mean"].as_f64().unwrap()).abs() < 1e-15);
    assert!((ours.deviation.unwrap() - golden["deviation"].as_f64().unwrap()).abs() < 1e-15);
    assert_eq!(summary(&runs[..1]).deviation, None);
}

/// Seeds are averaged per user before systems are paired, whatever their number on either side.
#[test]
fn differences_pair_the_averages_of_seeds() {
    let a = system("a", &[&[1.0, 0.0, 0.5], &[0.0, 0.0, 0.5]]);
    let b = system("b", &[&[0.0, 0.25, 0.0]]);
    let compared = compare(&[a, b], &SETTINGS).unwrap();
    assert_eq!(compared.users, 3);
    assert!((compared.differences[0].mean - (0.5 - 0.25 + 0.5) / 3.0).abs() < 1e-15);
    // |+-.5 +-.25 +-.5| >= .75 for 4 of 8 patterns.
    assert_eq!(compared.differences[0].p, 0.5);
}

#[test]
fn tables_are_read_by_user_whatever_their_order() {
    let batch = |rows: &str| text::parse(rows).unwrap();
    let a = Scores::read("a", &batch("user_id rank:u32 recall_5:f64\nv 1 0.5\nu 2 1"), "recall_5").unwrap();
    let b = Scores::read("a", &batch("user_id rank:u32 recall_5:f64\nu 2 1\nv 1 0.5"), "recall_5").unwrap();
    assert_eq!(a, b);
    let error = Scores::read("a", &batch("user_id recall_5:f64 ndcg_5:f64\nu 1 1"), "recal_5").unwrap_err();
    assert_eq!(error.code, "unknown-metric");
    let told = error.to_string();
    assert!(
        told.contains("it has: recall_5, ndcg_5") && told.contains("did you mean \"recall_5\"?"),
        "{told}"
    );
    let twice = Scores::read("a", &batch("user_id recall_5:f64\nu 1\nu 1"), "recall_5").unwrap_err();
    assert!(twice.to_string().contains("user \"u\" occurs twice"), "{twice}");
    let missing = Scores::read("a", &batch("user_id recall_5:f64\nu null"), "recall_5").unwrap_err();
    assert!(missing.to_string().contains("user \"u\" has NaN"), "{missing}");
}

#[test]
fn different_users_are_refused_with_their_numbers() {
    let users = |label: &str, names: &[&str]| System {
        name: label.to_string(),
        runs: vec![Scores::new(label, names.iter().map(|name| (name.to_string(), 1.0))).unwrap()],
    };
    let error = compare(&[users("a", &["u", "v", "w"]), users("b", &["v", "x"])], &SETTINGS).unwrap_err();
    assert_eq!(error.code, "different-users");
    let told = error.to_string();
    assert!(told.contains("2 only in \"a\", 1 only in \"b\", 1 in both"), "{told}");
}

#[test]
fn different_targets_are_refused_unless_asked_for() {
    let read = |label: &str, rows: &str| Scores::read(label, &text::parse(rows).unwrap(), "recall_5").unwrap();
    let system = |name: &str, scores: Scores| System {
        name: name.to_string(),
        runs: vec![scores],
    };
    let test = read("a", "user_id target recall_5:f64\nu x 1\nv y 0");
    let valid = read("b", "user_id target recall_5:f64\nv z 1\nu x 1");
    let error = compare(&[system("a", test.clone()), system("b", valid.clone())], &SETTINGS).unwrap_err();
    assert_eq!(error.code, "different-targets");
    let told = error.to_string();
    assert!(
        told.contains("for 1 of 2 users") && told.contains("user \"v\" was scored on \"y\" in the first and on \"z\""),
        "{told}"
    );
    let mixed = [system("a", test.of_any_target()), system("b", valid.of_any_target())];
    assert!(compare(&mixed, &SETTINGS).is_ok());
}

/// Where systems are interchangeable, p is uniform: no level is undercut more often than it says.
#[test]
fn p_is_uniform_when_there_is_no_difference() {
    for users in [13, 40] {
        let trials = 600;
        let mut found: Vec<f64> = (0..trials)
            .map(|trial| {
                let mut stream = Random::new(5, "comparison", "null").row(trial + 1000 * users);
                let differences: Vec<f64> = (0..users).map(|_| stream.normal()).collect();
                sign_flip_p(
                    &differences,
                    &Settings {
                        seed: trial,
                        ..SETTINGS
                    },
                )
            })
            .collect();
        found.sort_by(f64::total_cmp);
        // Kolmogorov and Smirnov at 1 in 1,000.
        let far = found
            .iter()
            .enumerate()
            .map(|(rank, p)| (p - rank as f64 / trials as f64).abs())
            .fold(0.0, f64::max);
        assert!(far < 1.95 / (trials as f64).sqrt(), "{users} users: {far}");
    }
}

#[test]
fn a_clear_difference_is_found_and_p_is_never_zero() {
    let a: Vec<f64> = (0..200).map(|user| 0.4 + f64::from(user % 3) / 10.0).collect();
    let b: Vec<f64> = (0..200).map(|user| f64::from(user % 3) / 10.0).collect();
    let compared = compare(&[system("a", &[&a]), system("b", &[&b])], &SETTINGS).unwrap();
    assert_eq!(compared.differences[0].p, 1.0 / 1000.0);
    assert!(compared.differences[0].interval.unwrap().0 > 0.3);
}

proptest! {
    #[test]
    fn exchanging_systems_changes_signs_alone(rows in prop::collection::vec((0u8..4, 0u8..4), 1..60)) {
        let (a, b): (Vec<f64>, Vec<f64>) = rows.iter().map(|(a, b)| (f64::from(*a) / 3.0, f64::from(*b) / 3.0)).unzip();
        let (a, b) = (system("a", &[&a]), system("b", &[&b]));
        let forth = compare(&[a.clone(), b.clone()], &SETTINGS).unwrap().differences[0];
        let back = compare(&[b, a], &SETTINGS).unwrap().differences[0];
        prop_assert_eq!(forth.mean, -back.mean);
        prop_assert_eq!(forth.p, back.p);
        prop_assert!(forth.p > 0.0 && forth.p <= 1.0);
        let ((low, high), (low_back, high_back)) = (forth.interval.unwrap(), back.interval.unwrap());
        prop_assert!((low + high_back).abs() < 1e-12 && (high + low_back).abs() < 1e-12);
    }

    #[test]
    fn holm_keeps_order_and_never_helps(raw in prop::collection::vec(0.0..=1.0f64, 0..12)) {
        let corrected = holm(&raw);
        prop_assert_eq!(raw.len(), corrected.len());
        for (one, p) in raw.iter().enumerate() {
            prop_assert!(corrected[one] >= *p && corrected[one] <= 1.0);
            for (two, q) in raw.iter().enumerate() {
                prop_assert!(p > q || corrected[one] <= corrected[two]);
            }
        }
        // The smallest pays for all pairs, as Bonferroni has it.
        if let Some(least) = raw.iter().copied().reduce(f64::min) {
            let paid = corrected.iter().copied().reduce(f64::min).unwrap();
            prop_assert_eq!(paid, (least * raw.len() as f64).min(1.0));
        }
    }

    #[test]
    fn users_that_do_not_differ_change_no_p(differences in prop::collection::vec(-3i8..4, 1..30), zeros in 0usize..20) {
        let mut values: Vec<f64> = differences.iter().map(|d| f64::from(*d)).collect();
        let alone = sign_flip_p(&values, &SETTINGS);
        values.extend(std::iter::repeat_n(0.0, zeros));
        prop_assert_eq!(alone, sign_flip_p(&values, &SETTINGS));
    }
}
