//! The protocol of a result, as facts that stages inherit from the split and the ranking above them.
//!
//! Results of different protocols differ for reasons that are no merit of a system, so they do not stand in one table
//! unless someone asks for it.

use std::collections::BTreeMap;

use sluice_engine::Error;
use sluice_engine::operator::{Binding, Facts};

/// Which interactions stay.
pub const FILTER: &str = "filter";
/// How interactions are split.
pub const SPLIT: &str = "split";
/// Which of two interactions with equal times comes first.
pub const TIES: &str = "ties";
/// Whether items of the history can be recommended.
pub const SEEN: &str = "seen_items";
/// How much of a history a model reads; what reads no sequence says nothing.
pub const HISTORY: &str = "history";

/// Names of what makes a protocol.
pub const ALL: [&str; 5] = [FILTER, SPLIT, TIES, SEEN, HISTORY];

/// What [`SEEN`] is.
pub fn seen(excluded: bool) -> &'static str {
    if excluded { "left out" } else { "ranked" }
}

/// What [`HISTORY`] is.
pub fn history(max_items: u32) -> String {
    format!("the last {max_items} items")
}

/// What of the protocol differs between the inputs of a stage: an error that names who has which. Inputs that say
/// nothing of a name agree with all others.
pub fn mixed(binding: &Binding) -> Option<Error> {
    let inputs: Vec<(String, Facts)> = binding
        .inputs()
        .map(|input| (input.to_string(), binding.facts(input)))
        .collect();
    let mut details = Vec::new();
    for name in ALL {
        let mut of: BTreeMap<&String, Vec<&str>> = BTreeMap::new();
        for (input, facts) in &inputs {
            for value in facts.get(name).into_iter().flatten() {
                of.entry(value).or_default().push(input);
            }
        }
        if of.len() > 1 {
            let values: Vec<String> = of
                .iter()
                .map(|(value, inputs)| format!("\"{value}\" of {}", inputs.join(", ")))
                .collect();
            details.push(format!("{name}: {}", values.join("; ")));
        }
    }
    let first = details.first()?;
    let name = first.split(':').next().unwrap_or_default();
    let error = Error::user(
        "mixed-protocols",
        format!("results of different protocols: \"{name}\" is not the same"),
    );
    let error = details.into_iter().fold(error, Error::detail);
    Some(error.hint("compare results of one protocol, or set allow_mixed_protocols: true"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use sluice_engine::table::Shape;

    use super::*;

    #[test]
    fn differences_are_told_with_who_has_which() {
        let shapes: BTreeMap<String, Shape> = ["a", "b", "c"].map(|name| (name.to_string(), Shape::Unknown)).into();
        let facts = |pairs: &[(&str, &str)]| -> Facts {
            pairs
                .iter()
                .map(|(name, value)| (name.to_string(), BTreeSet::from([value.to_string()])))
                .collect()
        };
        let with = |c: &[(&str, &str)]| {
            let all = [
                ("a", facts(&[(TIES, "file"), (HISTORY, "x")])),
                ("b", facts(&[(TIES, "file")])),
                ("c", facts(c)),
            ];
            let binding = Binding::new(Path::new("."), &shapes);
            mixed(&binding.with_facts(all.map(|(name, facts)| (name.to_string(), facts)).into()))
        };
        assert!(with(&[(TIES, "file")]).is_none());
        // What is no part of a protocol may differ.
        assert!(with(&[("else", "1")]).is_none());
        let error = with(&[(TIES, "hash"), (HISTORY, "y")]).unwrap();
        assert_eq!(error.code, "mixed-protocols");
        assert_eq!(
            error.detail,
            [
                "ties: \"file\" of a, b; \"hash\" of c",
                "history: \"x\" of a; \"y\" of c"
            ]
        );
    }
}
