//! The rules of the house, most of them absences: who depends on whom, and what must not be found where.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sluice::{files, repository};

/// What each crate may depend on in the house. A new crate has to be entered here.
const MAY: [(&str, &[&str]); 8] = [
    ("engine", &[]),
    ("gpu", &[]),
    ("sql", &["sluice-engine"]),
    ("operators", &["sluice-engine", "sluice-sql", "sluice-gpu"]),
    ("remote", &["sluice-engine"]),
    ("ui", &["sluice-engine", "sluice-sql"]),
    (
        "cli",
        &[
            "sluice-engine",
            "sluice-sql",
            "sluice-operators",
            "sluice-remote",
            "sluice-ui",
        ],
    ),
    (
        "tests",
        &[
            "sluice-engine",
            "sluice-sql",
            "sluice-gpu",
            "sluice-operators",
            "sluice-remote",
        ],
    ),
];

/// Crates that do not print, exit or read the environment.
const LIBRARIES: [&str; 6] = ["engine", "operators", "gpu", "sql", "remote", "ui"];

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Rust files below a folder of the repository.
fn sources(folder: &str) -> Vec<PathBuf> {
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    files(&repository(folder)).into_iter().filter(rust).collect()
}

/// The lines of a file that hold one of the words, as `path:line: text`.
fn lines_with(path: &Path, words: &[&str]) -> Vec<String> {
    let holds = |line: &str| words.iter().any(|word| line.contains(word));
    read(path)
        .lines()
        .enumerate()
        .filter(|(_, line)| holds(line))
        .map(|(number, line)| format!("{}:{}: {}", path.display(), number + 1, line.trim()))
        .collect()
}

/// Crates that a manifest names as dependencies, of any kind.
fn dependencies(manifest: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            inside = section.contains("dependencies");
            // `[dependencies.name]`
            let name = section
                .trim_end_matches(']')
                .split_once("dependencies.")
                .map(|(_, name)| name);
            found.extend(name.map(str::to_string));
        } else if inside && !line.starts_with('#') {
            let name: String = line
                .chars()
                .take_while(|c| c.is_alphanumeric() || "-_".contains(*c))
                .collect();
            if !name.is_empty() {
                found.push(name.replace('_', "-"));
            }
        }
    }
    found
}

#[test]
fn dependencies_point_one_way() {
    let workspace = read(&repository("Cargo.toml"));
    let members = workspace.lines().find(|line| line.starts_with("members")).unwrap();
    let members: Vec<&str> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() >= 5, "{members:?}");
    for member in members {
        let (_, may) = MAY.iter().find(|(name, _)| *name == member).unwrap_or_else(|| {
            panic!("a new crate \"{member}\": enter here what it may depend on");
        });
        let manifest = read(&repository(member).join("Cargo.toml"));
        let found = dependencies(&manifest);
        assert!(
            !found.is_empty(),
            "{member}: no dependencies found, so nothing was tested"
        );
        for name in found
            .iter()
            .filter(|name| *name == "sluice" || name.starts_with("sluice-"))
        {
            assert!(may.contains(&name.as_str()), "{member} must not depend on {name}");
        }
        for (name, only) in [("timely", "engine"), ("clap", "cli"), ("object-store", "remote")] {
            assert!(
                member == only || !found.iter().any(|found| found == name),
                "{member} must not depend on {name}"
            );
        }
    }
}

#[test]
fn the_engine_knows_nothing_of_the_domain() {
    let sources = sources("engine/src");
    assert!(sources.len() > 20);
    for path in sources {
        let text = read(&path).to_lowercase();
        for word in ["user_id", "item_id", "semantic", "recall"] {
            assert!(!text.contains(word), "\"{word}\" in {}", path.display());
        }
    }
}

#[test]
fn only_the_runtime_imports_timely() {
    for folder in ["engine/src", "operators", "gpu", "cli", "sql", "remote", "ui"] {
        for path in sources(folder) {
            if path.starts_with(repository("engine/src/runtime")) {
                continue;
            }
            let found = lines_with(&path, &["timely::", "use timely", "extern crate timely"]);
            assert!(found.is_empty(), "{found:#?}");
        }
    }
}

#[test]
fn tensors_know_no_pipeline() {
    for path in sources("gpu") {
        let text = read(&path).to_lowercase();
        for word in ["yaml", "sluice_engine", "parquet"] {
            assert!(!text.contains(word), "\"{word}\" in {}", path.display());
        }
    }
    let found = dependencies(&read(&repository("gpu/Cargo.toml")));
    assert!(
        !found
            .iter()
            .any(|name| name.contains("yaml") || name == "saphyr-parser"),
        "{found:?}"
    );
}

/// Transfers, statements and pages wait for many answers at once; whoever calls them just waits.
#[test]
fn only_transfers_statements_and_pages_are_async() {
    for folder in ["engine", "operators", "gpu", "cli"] {
        for path in sources(folder) {
            let found = lines_with(&path, &["async fn", "async move", ".await", "tokio::"]);
            assert!(found.is_empty(), "{found:#?}");
        }
    }
    for path in ["remote", "sql/src", "ui"].into_iter().flat_map(sources) {
        let words = [
            "pub async",
            "pub use tokio",
            "pub use object_store",
            "pub use datafusion",
        ];
        let found = lines_with(&path, &words);
        assert!(found.is_empty(), "{found:#?}");
    }
}

/// Tests may say why they skip; what users run may not print.
#[test]
fn libraries_do_not_print_or_exit() {
    let words = [
        "println!",
        "eprintln!",
        "print!(",
        "dbg!",
        "process::exit",
        "process::abort",
    ];
    let only_tests = ["beauty.rs", "testdata.rs", "tests.rs"];
    for library in LIBRARIES {
        for path in sources(&format!("{library}/src")) {
            let name = path.file_name().unwrap().to_string_lossy().to_string();
            if only_tests.contains(&name.as_str()) {
                continue;
            }
            let text = read(&path);
            // Tests stand last in a file.
            let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for line in shipped.lines().filter(|line| !line.trim_start().starts_with("//")) {
                let found = words.iter().find(|word| line.contains(*word));
                assert!(found.is_none(), "{}: {}", path.display(), line.trim());
            }
        }
    }
    // The files left out are indeed compiled for tests only.
    for module in ["beauty", "testdata"] {
        assert!(read(&repository("operators/src/lib.rs")).contains(&format!("#[cfg(test)]\nmod {module};")));
    }
}

/// Specs, graphs and plans are functions of what they are given.
#[test]
fn planning_is_pure() {
    let words = [
        "std::fs",
        "File::",
        "SystemTime",
        "Instant",
        "std::env",
        "random::",
        "thread::",
    ];
    for file in ["spec", "sweep", "graph", "graph/inputs", "plan", "yaml", "key"] {
        let found = lines_with(&repository(&format!("engine/src/{file}.rs")), &words);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn every_source_opens_with_what_it_is() {
    let mut count = 0;
    for folder in ["engine", "operators", "gpu", "sql", "remote", "ui", "cli", "tests"] {
        for path in sources(folder) {
            let first = read(&path).lines().next().unwrap_or_default().to_string();
            let said = first.strip_prefix("//! ").is_some_and(|words| words.trim().len() > 10);
            assert!(said, "{} does not open with \"//! \" and what it is", path.display());
            count += 1;
        }
    }
    assert!(count > 80);
}

/// `utils` and its like say nothing about what is inside.
#[test]
fn rooms_have_names() {
    for folder in ["engine", "operators", "gpu", "sql", "remote", "ui", "cli", "tests"] {
        for path in sources(folder) {
            let stem = path.file_stem().unwrap().to_string_lossy().to_string();
            let bad = ["util", "utils", "common", "helpers", "manager", "base", "misc"];
            assert!(!bad.contains(&stem.as_str()), "{}", path.display());
        }
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says why")]
fn no_file_in_git_is_large() {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(repository(""))
        .output();
    let Some(listed) = listed.ok().filter(|output| output.status.success()) else {
        eprintln!("skipped: this is no git repository");
        return;
    };
    let names = String::from_utf8(listed.stdout).unwrap();
    let mut count = 0;
    for name in names.split('\0').filter(|name| !name.is_empty()) {
        // A file may be deleted but not yet committed.
        let Ok(metadata) = std::fs::metadata(repository(name)) else {
            continue;
        };
        assert!(metadata.len() <= 1 << 20, "{name} has {} bytes", metadata.len());
        count += 1;
    }
    assert!(count > 100);
}

/// Else the README's second command builds again what its first one has built.
#[test]
fn run_and_test_share_their_crates() {
    let tree = |arguments: &[&str]| -> BTreeSet<String> {
        let output = Command::new(env!("CARGO"))
            .args([
                "tree",
                "--offline",
                "--locked",
                "--prefix",
                "none",
                "--format",
                "{p} {f}",
            ])
            .args(arguments)
            .current_dir(repository(""))
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        let lines = String::from_utf8(output.stdout).unwrap();
        let crates = lines.lines().map(|line| line.trim_end_matches(" (*)").trim());
        crates.filter(|line| !line.is_empty()).map(str::to_string).collect()
    };
    let run = tree(&["--package", "sluice", "--edges", "normal,build"]);
    let test = tree(&["--workspace", "--edges", "normal,build,dev"]);
    let twice: Vec<&String> = run.difference(&test).collect();
    assert!(
        twice.is_empty(),
        "`cargo run` builds these with other features than `cargo test`: {twice:?}; turn the missing ones on in cli/Cargo.toml"
    );
}
