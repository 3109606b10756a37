//! Statements as text: parsed, normalised, and refused if they would do more than read.

use std::fmt;

use datafusion::sql::parser::{DFParserBuilder, ExplainStatement, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{self, SetExpr};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use sluice_engine::{Error, Result};

use crate::failure::explain;

/// A statement that reads: `SELECT`, `WITH`, `VALUES`, `EXPLAIN`, `SHOW`, `DESCRIBE`.
#[derive(Clone, Debug)]
pub struct Statement {
    /// As it was written, for errors that point into it.
    text: String,
    parsed: Parsed,
}

impl Statement {
    /// Parses a text of exactly one statement; a semicolon may end it.
    pub fn parse(text: &str) -> Result<Statement> {
        let mut statements = Self::parse_all(text)?;
        match statements.len() {
            1 => Ok(statements.remove(0)),
            0 => Err(Error::user("empty-statement", "there is no statement in this text")),
            count => Err(
                Error::user("many-statements", format!("{count} statements where one is wanted"))
                    .hint("a file or the standard input may hold many: sluice sql --file"),
            ),
        }
    }

    /// Parses statements separated by semicolons.
    pub fn parse_all(text: &str) -> Result<Vec<Statement>> {
        let parsed = DFParserBuilder::new(text)
            .with_dialect(&GenericDialect {})
            .with_recursion_limit(64)
            .build()
            .and_then(|mut parser| parser.parse_statements())
            .map_err(|error| explain(error, text))?;
        parsed
            .into_iter()
            .map(|parsed| {
                only_reads(&parsed)?;
                Ok(Statement {
                    text: text.to_string(),
                    parsed,
                })
            })
            .collect()
    }

    /// The text that it came from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it is a query and not an `EXPLAIN`, a `SHOW` or a `DESCRIBE`.
    pub fn is_query(&self) -> bool {
        matches!(&self.parsed, Parsed::Statement(statement) if matches!(statement.as_ref(), ast::Statement::Query(_)))
    }

    pub(crate) fn parsed(&self) -> &Parsed {
        &self.parsed
    }
}

/// The statement without comments, with plain spaces and keywords in capitals: equal for texts that differ in no more.
impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.parsed.fmt(f)
    }
}

/// Refuses what is not on the list of statements that read.
fn only_reads(parsed: &Parsed) -> Result<()> {
    let reads = match parsed {
        Parsed::Explain(ExplainStatement { statement, .. }) => return only_reads(statement),
        Parsed::Statement(statement) => match statement.as_ref() {
            ast::Statement::Query(query) => query_reads(query),
            ast::Statement::Explain { statement, .. } => {
                matches!(statement.as_ref(), ast::Statement::Query(query) if query_reads(query))
            }
            ast::Statement::ShowVariable { .. }
            | ast::Statement::ShowTables { .. }
            | ast::Statement::ShowColumns { .. }
            | ast::Statement::ShowFunctions { .. }
            | ast::Statement::ExplainTable { .. } => true,
            _ => false,
        },
        _ => false,
    };
    if reads {
        return Ok(());
    }
    let text = parsed.to_string();
    let verb: String = text.chars().take_while(|c| c.is_alphanumeric()).collect();
    Err(Error::user(
        "read-only",
        format!("{} is refused: statements here only read", verb.to_uppercase()),
    )
    .hint("write results with an output format: sluice sql --format parquet --output FILE; make tables with a stage (op: sql)"))
}

fn query_reads(query: &ast::Query) -> bool {
    let plain = match query.body.as_ref() {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => false,
        SetExpr::Select(select) => select.into.is_none(),
        SetExpr::Query(inner) => query_reads(inner),
        _ => true,
    };
    let with = query.with.iter().flat_map(|with| &with.cte_tables);
    plain && with.into_iter().all(|table| query_reads(&table.query))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_comments_do_not_matter() {
        let one = Statement::parse("select a, -- the first\n  b from t /* all */ where a>1;").unwrap();
        let other = Statement::parse("SELECT a, b FROM t WHERE a > 1").unwrap();
        assert_eq!(one.to_string(), other.to_string());
        assert_ne!(
            other.to_string(),
            Statement::parse("SELECT a, b FROM t WHERE a > 2").unwrap().to_string()
        );
    }

    #[test]
    fn what_writes_is_refused() {
        for text in [
            "CREATE TABLE t AS SELECT 1",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'",
            "CREATE VIEW v AS SELECT 1",
            "COPY (SELECT 1) TO 'x.parquet'",
            "INSERT INTO t VALUES (1)",
            "DELETE FROM t",
            "UPDATE t SET a = 1",
            "DROP TABLE t",
            "SET datafusion.execution.batch_size = 1",
            "RESET datafusion.execution.batch_size",
            "EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.parquet'",
            "EXPLAIN INSERT INTO t VALUES (1)",
            "SELECT 1 INTO t",
            "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
            "PREPARE p AS SELECT 1",
            "TRUNCATE TABLE t",
            "BEGIN",
        ] {
            let error = Statement::parse(text).expect_err(text);
            assert!(
                ["read-only", "bad-sql"].contains(&error.code.as_str()),
                "{text}: {error}"
            );
        }
        for text in [
            "SELECT 1",
            "VALUES (1)",
            "WITH x AS (SELECT 1 AS a) SELECT * FROM x",
            "EXPLAIN ANALYZE SELECT 1",
            "SHOW TABLES",
            "DESCRIBE t",
            "(SELECT 1) UNION ALL SELECT 2",
        ] {
            Statement::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn a_syntax_error_says_where() {
        let error = Statement::parse("SELECT a\nFROM t WHERE\n  GROUP x").expect_err("no query");
        let place = error.place.expect("a place");
        assert_eq!(place.line, 3);
    }
}
