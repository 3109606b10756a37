//! Comparisons of the systems of a run, as users ask for them.

use serde_json::Value;

use crate::sluice::{Sluice, TINY, entries, recipe};

fn quickstart(more: &[&str]) -> Sluice {
    let sluice = Sluice::with(&[("quickstart.yaml", &recipe("quickstart.yaml"))]);
    sluice.succeed(&[&["run", "quickstart.yaml", "--quiet"], &TINY[..], more].concat());
    sluice
}

/// Rows of the CSV by their first cells, with all cells.
fn rows<'a>(csv: &'a str, start: &str) -> Vec<Vec<&'a str>> {
    let lines = csv.lines().filter(|line| line.starts_with(start));
    lines.map(|line| line.split(',').collect()).collect()
}

#[test]
fn systems_of_a_run_are_compared() {
    let sluice = quickstart(&[]);
    let systems = ["popular_metrics", "markov_metrics", "tiger_metrics"];
    let compare = |more: &[&str]| sluice.succeed(&[&["compare"], &systems[..], more].concat()).out;

    // The means are those of the metrics table.
    let csv = compare(&["--format", "csv"]);
    let shown = sluice.succeed(&["show", "metrics"]).out;
    for (system, stage) in [("popularity", "popular_metrics"), ("markov", "markov_metrics")] {
        let line = shown.lines().find(|line| line.starts_with(system)).unwrap();
        let recall_10: f64 = line.split_whitespace().nth(4).unwrap().parse().unwrap();
        let row = &rows(&csv, &format!("system,recall_10,{stage},"))[0];
        assert!(
            (row[6].parse::<f64>().unwrap() - recall_10).abs() < 1e-6,
            "{line} {row:?}"
        );
        assert_eq!((row[5], row[7]), ("1", ""), "one seed, no deviation: {row:?}");
    }
    assert_eq!(rows(&csv, "system,").len(), 3 * 4);
    assert_eq!(rows(&csv, "difference,").len(), 3 * 4);
    for row in rows(&csv, "difference,") {
        let number = |cell: usize| row[cell].parse::<f64>().unwrap();
        assert!(number(8) <= number(6) && number(6) <= number(9), "{row:?}");
        assert!(number(10) > 0.0 && number(10) <= number(11), "{row:?}");
    }
    // Markov is far ahead of popularity on a shop that orders item by item.
    let row = &rows(&csv, "difference,recall_10,popular_metrics,markov_metrics,")[0];
    assert!(
        row[9].parse::<f64>().unwrap() < 0.0 && row[11].parse::<f64>().unwrap() < 0.01,
        "{row:?}"
    );

    // The same figures every time, and in every order of the arguments but for their signs.
    assert_eq!(csv, compare(&["--format", "csv"]));
    let back = sluice
        .succeed(&[
            "compare",
            "markov_metrics",
            "popular_metrics",
            "--format=csv",
            "--metric=recall_10",
        ])
        .out;
    let back = &rows(&back, "difference,")[0];
    assert_eq!((&row[10], format!("-{}", back[6])), (&back[10], row[6].to_string()));

    let text = compare(&[
        "--metric",
        "recall_10,ndcg_10",
        "-p",
        "quickstart.yaml",
        "--resamples",
        "500",
    ]);
    assert!(
        text.starts_with("system           seeds  recall_10  ndcg_10\n"),
        "{text}"
    );
    assert!(
        text.contains("500 resamples") && text.contains("corrected for 3 pairs"),
        "{text}"
    );
    let latex = compare(&["--format", "latex"]);
    assert!(latex.contains("markov\\_metrics & 1 & \\textbf{0."), "{latex}");
    assert_eq!(latex.matches("\\begin{tabular}").count(), 2);
    assert_eq!(
        compare(&["--format", "markdown"])
            .matches("| markov_metrics | 1 | **0.")
            .count(),
        1
    );
}

/// Runs with other seeds, named alike, are the runs of one system.
#[test]
fn runs_named_alike_are_the_seeds_of_a_system() {
    let sluice = quickstart(&[]);
    let seeds = [1, 2].map(|seed| {
        // Another seed of the training: the shop and the split stay.
        let rate = format!("--set=tiger.learning_rate=0.00{seed}");
        let done = sluice.succeed(&[&["run", "quickstart.yaml", "--json"], &TINY[..], &[&rate]].concat());
        let run = done.events("run_started")[0]["run"].as_str().unwrap().to_string();
        format!("TIGER={run}:tiger_metrics")
    });
    let arguments = ["compare", "markov_metrics", &seeds[0], &seeds[1], "--metric", "ndcg_10"];
    let csv = sluice.succeed(&[&arguments[..], &["--format", "csv"]].concat()).out;
    let row = &rows(&csv, "system,ndcg_10,TIGER,")[0];
    assert_eq!(row[5], "2", "{csv}");
    assert!(row[7].parse::<f64>().unwrap() > 0.0, "{csv}");
    assert_eq!(rows(&csv, "difference,").len(), 1);
    let text = sluice.succeed(&arguments).out;
    assert!(
        text.contains(" ± ") && text.contains("standard deviation over seeds"),
        "{text}"
    );
}

/// A run as a sweep leaves it: instances with their axes in brackets.
#[test]
fn instances_of_a_sweep_are_grouped_by_all_axes_but_the_seed() {
    let sluice = quickstart(&[]);
    let records = |sluice: &Sluice| -> Value {
        let newest = entries(&sluice.path(".sluice/runs")).into_iter().max().unwrap();
        serde_json::from_str(&std::fs::read_to_string(newest.join("run.json")).unwrap()).unwrap()
    };
    let mut run = records(&sluice);
    let mut keys = vec![run["keys"]["tiger_metrics"].clone()];
    for rate in ["--set=tiger.learning_rate=0.001", "--set=tiger.learning_rate=0.002"] {
        sluice.succeed(&[&["run", "quickstart.yaml", "--quiet"], &TINY[..], &[rate]].concat());
        keys.push(records(&sluice)["keys"]["tiger_metrics"].clone());
    }
    run["run"] = "29991231-235959-999-1".into();
    let names = ["size=13m,seed=1", "size=13m,seed=2", "size=5m,seed=1"];
    for (axes, key) in names.iter().zip(keys) {
        run["keys"][format!("scored[{axes}]")] = key;
    }
    std::fs::create_dir(sluice.path(".sluice/runs/29991231-235959-999-1")).unwrap();
    sluice.write(".sluice/runs/29991231-235959-999-1/run.json", run.to_string());

    let compare = |stages: &[&str]| {
        let arguments = [&["compare", "--metric", "recall_5"], stages].concat();
        let text = sluice.succeed(&arguments).out;
        let systems = text.lines().skip(1).take_while(|line| !line.is_empty());
        let cells = systems.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        cells.collect::<Vec<String>>()
    };
    assert_eq!(
        compare(&["scored", "markov_metrics"]),
        ["scored[size=13m] 2", "scored[size=5m] 1", "markov_metrics 1"]
    );
    assert_eq!(compare(&["TIGER=scored[size=13m]"]), ["TIGER 2"]);
    assert_eq!(compare(&["TIGER=scored"]), ["TIGER[size=13m] 2", "TIGER[size=5m] 1"]);
    assert_eq!(compare(&["scored[size=13m,seed=2]"]), ["scored[size=13m,seed=2] 1"]);
    let unknown = sluice.run(&["compare", "scores"]);
    assert!(unknown.err.contains("did you mean \"scored\"?"), "{}", unknown.err);
}

#[test]
fn what_cannot_be_compared_is_said() {
    let sluice = quickstart(&[]);
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let done = sluice.run(&[&["compare"], arguments].concat());
        assert_eq!(done.code, code, "{arguments:?}: {}", done.err);
        for word in words {
            assert!(done.err.contains(word), "{arguments:?}: no \"{word}\" in {}", done.err);
        }
    };
    refused(
        &["tiger_metric", "metrics"],
        2,
        &[
            "no stage \"tiger_metric\"",
            "did you mean \"tiger_metrics\"?",
            "stage \"metrics\" has no output \"per_user\"",
            "stages of score_ranking: markov_metrics, popular_metrics, tiger_metrics",
            "2 problems",
        ],
    );
    refused(
        &["tiger_metrics", "--metric", "recall_1"],
        2,
        &["no metric \"recall_1\"", "it has: recall_5, ndcg_5"],
    );
    refused(&["tiger_metrics", "tiger_metrics"], 2, &["twice"]);
    refused(
        &["tiger_metrics", "--run", "nosuch"],
        2,
        &["called \"nosuch\"", "sluice runs"],
    );
    refused(&["=tiger_metrics"], 2, &["names no stage"]);

    // A smaller shop has other users.
    let first = sluice.run(&["show", "metrics"]).out;
    let run = first
        .split("(run ")
        .nth(1)
        .unwrap()
        .split(')')
        .next()
        .unwrap()
        .to_string();
    sluice.succeed(
        &[
            &["run", "quickstart.yaml", "--quiet"],
            &TINY[..],
            &["--set=shop.users=300"],
        ]
        .concat(),
    );
    refused(
        &["tiger_metrics", &format!("{run}:markov_metrics")],
        3,
        &[
            "score different users",
            &format!("only in \"{run}:markov_metrics\""),
            " in both",
        ],
    );
}
