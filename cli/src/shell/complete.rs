//! What Tab offers in the shell: tables, the columns of tables that the line names, functions, keywords, commands.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rustyline::completion::{Completer, Pair};
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Context, Helper, Highlighter, Hinter};
use sluice_sql::Session;

const KEYWORDS: [&str; 30] = [
    "SELECT",
    "FROM",
    "WHERE",
    "GROUP BY",
    "ORDER BY",
    "HAVING",
    "LIMIT",
    "JOIN",
    "LEFT JOIN",
    "ON",
    "USING",
    "AS",
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS NULL",
    "IS NOT NULL",
    "LIKE",
    "BETWEEN",
    "CASE",
    "WHEN",
    "THEN",
    "ELSE",
    "END",
    "DISTINCT",
    "UNION ALL",
    "WITH",
    "EXPLAIN ANALYZE",
    "DESC",
];

const COMMANDS: [&str; 9] = [
    "\\d",
    "\\queries",
    "\\query",
    "\\format",
    "\\o",
    "\\all",
    "\\timing",
    "\\i",
    "\\q",
];

/// Completion over the tables of a session; also tells whether a line is a whole statement.
#[derive(Helper, Highlighter, Hinter)]
pub struct Completion {
    session: Session,
    /// Columns by table, asked for once.
    columns: RefCell<BTreeMap<String, Vec<String>>>,
}

impl Completion {
    /// Completion over a session's tables.
    pub fn over(session: Session) -> Self {
        Completion {
            session,
            columns: RefCell::default(),
        }
    }

    fn columns_of(&self, tables: &[String], line: &str) -> Vec<String> {
        let mentioned = |table: &&String| {
            line.split(|c: char| !is_name(c)).any(|word| word == table.as_str()) || line.contains(table.as_str())
        };
        let mut found = Vec::new();
        for table in tables.iter().filter(mentioned) {
            let mut known = self.columns.borrow_mut();
            let columns = known
                .entry(table.clone())
                .or_insert_with(|| self.session.columns(table));
            found.extend(columns.iter().cloned());
        }
        found
    }
}

/// Whether a letter may be part of a name such as `stage.port`.
fn is_name(letter: char) -> bool {
    letter.is_alphanumeric() || "_.\"\\[]=,:".contains(letter)
}

/// Where the word that ends at `position` begins.
fn start_of_word(line: &str, position: usize) -> usize {
    let before = &line[..position];
    // A comma is part of an instance's name only inside quotes.
    let quoted = before.matches('"').count() % 2 == 1;
    if quoted {
        return before.rfind('"').unwrap_or(position);
    }
    let end = before.rfind(|c: char| !is_name(c) || ",=:[]".contains(c));
    end.map_or(0, |end| end + before[end..].chars().next().map_or(1, char::len_utf8))
}

/// The candidates that begin like a word, whatever the case, in their order, each once.
fn matching(word: &str, candidates: impl IntoIterator<Item = String>) -> Vec<String> {
    let word = word.to_lowercase();
    let mut found: Vec<String> = Vec::new();
    for candidate in candidates {
        if candidate.to_lowercase().starts_with(&word) && !found.contains(&candidate) {
            found.push(candidate);
        }
    }
    found
}

impl Completer for Completion {
    type Candidate = Pair;

    fn complete(&self, line: &str, position: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        let start = start_of_word(line, position);
        let word = &line[start..position];
        let found = if word.starts_with('\\') {
            matching(word, COMMANDS.map(str::to_string))
        } else {
            let tables = self.session.tables();
            let columns = self.columns_of(&tables, line);
            let functions = self.session.functions().into_iter().map(|name| format!("{name}("));
            let keywords = KEYWORDS.map(str::to_string);
            matching(word, columns.into_iter().chain(tables).chain(keywords).chain(functions))
        };
        let pair = |text: String| Pair {
            display: text.clone(),
            replacement: text,
        };
        Ok((start, found.into_iter().map(pair).collect()))
    }
}

impl Validator for Completion {
    fn validate(&self, context: &mut ValidationContext) -> rustyline::Result<ValidationResult> {
        Ok(match is_whole(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

/// Whether a line can be run: a command, nothing, or something that ends with a semicolon outside quotes.
fn is_whole(input: &str) -> bool {
    let text = input.trim();
    if text.is_empty() || text.starts_with('\\') || matches!(text, "quit" | "exit") {
        return true;
    }
    let mut quote = None;
    for letter in text.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if letter == '\'' || letter == '"' => quote = Some(letter),
            None => {}
        }
    }
    quote.is_none() && text.ends_with(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_where_names_begin() {
        for (line, word) in [
            ("SELECT cou", "cou"),
            ("SELECT a,b", "b"),
            ("SELECT * FROM split.tr", "split.tr"),
            ("SELECT f(x", "x"),
            ("\\d sp", "sp"),
            ("\\ti", "\\ti"),
            ("SELECT * FROM \"tiger[si", "\"tiger[si"),
            ("SELECT é,x", "x"),
            ("", ""),
        ] {
            assert_eq!(&line[start_of_word(line, line.len())..], word, "{line}");
        }
    }

    #[test]
    fn statements_end_with_a_semicolon() {
        for (line, whole) in [
            ("SELECT 1", false),
            ("SELECT 1;", true),
            ("SELECT ';", false),
            ("SELECT ';';", true),
            ("\\d", true),
            ("", true),
            ("quit", true),
        ] {
            assert_eq!(is_whole(line), whole, "{line}");
        }
    }

    #[test]
    fn candidates_begin_alike() {
        let names = ["split.train", "split.test", "SELECT", "split.train"].map(str::to_string);
        assert_eq!(matching("sp", names.clone()), ["split.train", "split.test"]);
        assert_eq!(matching("sel", names), ["SELECT"]);
    }
}
