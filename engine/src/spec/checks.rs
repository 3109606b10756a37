//! `tests:` of a stage. A test is a stage without a name: it gets one here, and reads the stage that it stands in.
//!
//! ```yaml
//! split:
//!   op: split_leave_one_out
//!   input: core
//!   tests:
//!     - unique: [user, item]         # split:unique(user,item)
//!       input: split.train                 # of another output
//!     - sql: SELECT * FROM rows WHERE ...  # split:no_empty_names
//!       name: no_empty_names
//! ```

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Reader, bad_name, is_name};
use crate::error::Error;
use crate::yaml::{Data, Key, Node};

/// Keys of a test that do not say what it is.
const PLAIN: [&str; 5] = ["name", "input", "inputs", "seed", "resources"];
/// How long a name may get that is made of what the test says.
const LONGEST: usize = 60;

impl Reader {
    /// Takes `tests:` out of a stage: it is no part of its config. Each test comes with its name.
    pub(super) fn tests(&mut self, stage: &Key, node: &mut Node) -> Vec<(Key, Node)> {
        let Data::Map(entries) = &mut node.data else {
            return Vec::new();
        };
        let Some(at) = entries.iter().position(|(key, _)| key.name == "tests") else {
            return Vec::new();
        };
        let (key, list) = entries.remove(at);
        let Data::List(items) = list.data else {
            let error = Error::user("bad-value", format!("\"tests\" wants a list, this is {}", list.kind()));
            self.problem(key.span, error.hint("write - not_null: [COLUMN, ...]"));
            return Vec::new();
        };
        let mut taken = BTreeSet::new();
        let mut tests = Vec::new();
        for item in items {
            if let Some(name) = self.test_name(stage, &item, &mut taken) {
                tests.push((name, item));
            }
        }
        tests
    }

    /// `STAGE:NAME` as given, else `STAGE:KIND(TEXTS)`, numbered where that is taken.
    fn test_name(&mut self, stage: &Key, item: &Node, taken: &mut BTreeSet<String>) -> Option<Key> {
        let entries = match &item.data {
            Data::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        let Some((kind, value)) = entries.iter().find(|(key, _)| !PLAIN.contains(&key.name.as_str())) else {
            let error = Error::user("bad-test", format!("a test of stage \"{}\" tests nothing", stage.name));
            self.problem(item.span, error.hint("write - not_null: [COLUMN, ...]"));
            return None;
        };
        let given = entries.iter().find(|(key, _)| key.name == "name");
        let name = match given {
            Some((_, given)) => match given.text().filter(|text| is_name(text)) {
                Some(text) => text.to_string(),
                None => {
                    self.problem(given.span, bad_name("test", &given.value()));
                    return None;
                }
            },
            None => described(&kind.name, value),
        };
        let full = |count: usize| match count {
            1 => format!("{}:{name}", stage.name),
            count => format!("{}:{name}_{count}", stage.name),
        };
        if let Some((_, given)) = given
            && taken.contains(&full(1))
        {
            let message = format!("stage \"{}\" has two tests \"{name}\"", stage.name);
            self.problem(given.span, Error::user("duplicate-key", message));
            return None;
        }
        let mut count = 1;
        while !taken.insert(full(count)) {
            count += 1;
        }
        Some(Key {
            span: kind.span,
            name: full(count),
        })
    }
}

/// `unique(user,item)`, `range(rating)`, `row_count`: the kind and the texts in its value. Whole statements are
/// no texts to name a test by.
fn described(kind: &str, value: &Node) -> String {
    let own = |node: &Node| match (&node.data, node.text()) {
        (Data::Scalar(Value::String(_)), Some(text)) => Some(plain(text)),
        _ => None,
    };
    let texts: Vec<String> = match &value.data {
        Data::List(items) => items.iter().filter_map(own).collect(),
        Data::Map(entries) => entries.iter().filter_map(|(_, node)| own(node)).take(1).collect(),
        Data::Scalar(_) => Vec::new(),
    };
    let mut name = plain(kind);
    let inside = texts.join(",");
    if !inside.is_empty() {
        let inside: String = inside.chars().take(LONGEST).collect();
        name = format!("{name}({inside})");
    }
    name
}

/// Letters that are safe in references, on the command line and in names of files.
fn plain(text: &str) -> String {
    let safe = |c: char| match c.is_ascii_alphanumeric() || c == '_' || c == '-' {
        true => c,
        false => '_',
    };
    text.chars().map(safe).collect()
}
