//! Queries that come with the program: files of `sql/queries`, each with what it tells and the values it wants in its head.

use sluice_engine::error::did_you_mean;
use sluice_engine::{Error, Result};

use crate::{Rows, Session, Statement};

/// A query that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Its name.
    pub name: &'static str,
    /// What it tells.
    pub about: &'static str,
    /// The statement.
    pub text: &'static str,
}

const QUERIES: [(&str, &str); 6] = [
    ("best_runs", include_str!("../queries/best_runs.sql")),
    ("collisions", include_str!("../queries/collisions.sql")),
    ("efficiency", include_str!("../queries/efficiency.sql")),
    ("why_differ", include_str!("../queries/why_differ.sql")),
    ("why_recommended", include_str!("../queries/why_recommended.sql")),
    ("wins", include_str!("../queries/wins.sql")),
];

/// All of them, in order of name.
pub fn all() -> impl Iterator<Item = Query> {
    QUERIES.iter().map(|(name, text)| Query {
        name,
        about: text.lines().next().unwrap_or_default().trim_start_matches("-- "),
        text,
    })
}

/// The query of that name.
pub fn find(name: &str) -> Result<Query> {
    all().find(|query| query.name == name).ok_or_else(|| {
        let mut error = Error::user("unknown-query", format!("there is no query \"{name}\""));
        error.hint = did_you_mean(name, QUERIES.iter().map(|(name, _)| *name));
        error.detail("\"sluice sql --query\" lists them")
    })
}

impl Query {
    /// Values it wants: names and what they are, from lines such as `-- $user: a user of the dataset`.
    pub fn params(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let head = self.text.lines().take_while(|line| line.starts_with("--"));
        head.filter_map(|line| line.strip_prefix("-- $")?.split_once(": "))
    }

    /// The text behind `-- NAME: ` in its head.
    fn head(&self, name: &str) -> Option<&'static str> {
        let mut head = self.text.lines().take_while(|line| line.starts_with("--"));
        head.find_map(|line| line.strip_prefix("-- ")?.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Runs it. Where its head says what it means that there are no rows (`-- empty: user "$user" has no history`, and
    /// `-- try: what to do next`), that is an error.
    pub fn run(&self, session: &Session, params: &[(String, String)]) -> Result<Rows> {
        let rows = session.run_with(&Statement::parse(self.text)?, params)?;
        match self.head("empty") {
            Some(empty) => rows.or_none(|| self.none(empty, params)),
            None => Ok(rows),
        }
    }

    fn none(&self, empty: &str, params: &[(String, String)]) -> Error {
        let message = params.iter().fold(empty.to_string(), |message, (name, value)| {
            message.replace(&format!("${name}"), value)
        });
        let mut error = Error::user("no-answer", message);
        error.hint = self.head("try").map(str::to_string);
        error
    }

    /// Its name and values, as the command line takes them.
    pub fn usage(&self) -> String {
        let params: String = self
            .params()
            .map(|(name, about)| format!(" --param {name}=<{about}>"))
            .collect();
        format!("{}{params}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statement::Statement;

    #[test]
    fn every_query_says_what_it_is_and_wants() {
        for query in all() {
            assert!(
                query.about.len() > 20 && query.text.starts_with("-- "),
                "{}",
                query.name
            );
            let statement = Statement::parse(query.text).unwrap().to_string();
            for (name, about) in query.params() {
                assert!(
                    statement.contains(&format!("${name}")) && !about.is_empty(),
                    "{}: {name}",
                    query.name
                );
            }
            let empty = query.head("empty").unwrap_or_default();
            for name in empty.split('$').skip(1) {
                let known = query.params().any(|(known, _)| name.starts_with(known));
                assert!(known, "{}: {name}", query.name);
            }
            assert_eq!(!empty.is_empty(), query.head("try").is_some(), "{}", query.name);
            let wanted = statement.matches('$').count() > 0;
            assert_eq!(wanted, query.params().count() > 0, "{}", query.name);
        }
        assert!(find("collision").is_err_and(|error| error.hint.is_some()));
    }
}
