//! What the documents say is there, is there; what they quote is what the program has.

use std::fs;
use std::path::PathBuf;

use sluice_engine::graph::Graph;
use sluice_engine::spec::{Overrides, Spec};

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// What stands in backticks and looks like a path of the repository: outside of code blocks, without blanks or
/// placeholders, with a `/` or the ending of a file.
fn paths(markdown: &str) -> Vec<String> {
    const ENDINGS: [&str; 6] = [".rs", ".md", ".toml", ".yaml", ".json", ".py"];
    let prose: String = markdown.split("```").step_by(2).collect();
    let quoted = prose.split('`').skip(1).step_by(2);
    let plain = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    quoted
        .filter(plain)
        .filter(|text| text.contains('/') || ENDINGS.iter().any(|ending| text.ends_with(ending)))
        .map(str::to_string)
        .collect()
}

#[test]
fn paths_are_told_from_other_words() {
    let text = "`a/b.rs`, `run`, `x.toml`, `keys/<key>.json`, `a b/c`\n```sh\n`d/e`\n```\n`cli/`";
    assert_eq!(paths(text), ["a/b.rs", "x.toml", "cli/"]);
}

#[test]
fn every_path_of_the_architecture_page_exists() {
    let named = paths(&read("ARCHITECTURE.md"));
    assert!(named.len() > 50, "only {} paths found", named.len());
    let missing: Vec<&String> = named.iter().filter(|path| !root().join(path).exists()).collect();
    assert!(
        missing.is_empty(),
        "ARCHITECTURE.md names what is not there: {missing:?}"
    );
}

#[test]
fn the_schema_of_pipelines_is_fresh() {
    let wanted = crate::schema::text(&sluice_operators::registry()).expect("a schema is JSON");
    assert!(wanted.len() < 300_000, "{} bytes", wanted.len());
    assert!(
        read("pipeline.schema.json") == wanted,
        "pipeline.schema.json is stale: {}",
        crate::schema::COMMAND
    );
}

#[test]
fn the_readme_lists_the_operators() {
    let list = crate::ops::list(&sluice_operators::registry());
    assert!(
        read("README.md").contains(&list),
        "the list of operators in README.md is stale: paste that of cargo run --release -- ops"
    );
}

#[test]
fn the_contributing_page_quotes_the_example_as_it_is() {
    let example = read("operators/examples/filter_rating.rs");
    let (_, code) = example.split_once("// --- cut ---\n").expect("the example has a cut");
    assert!(
        read("CONTRIBUTING.md").contains(code.trim()),
        "the operator in CONTRIBUTING.md is not operators/examples/filter_rating.rs below its cut: paste it"
    );
}

#[test]
fn the_first_pipeline_of_the_readme_is_valid() {
    let readme = read("README.md");
    let block = readme
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next());
    let spec = Spec::parse("README.md", block.expect("a YAML block"), &Overrides::default());
    let graph = spec.and_then(|spec| Graph::build(&spec, &sluice_operators::registry(), &root()));
    let problems = graph.err().unwrap_or_default();
    assert!(problems.is_empty(), "{problems:#?}");
}
