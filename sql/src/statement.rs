//! Statements as text: parsed, normalised, and refused if they would do more than read.

use std::fmt;
use std::ops::ControlFlow;

use datafusion::sql::parser::{DFParserBuilder, ExplainStatement, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{
    self, FunctionArguments, GroupByExpr, PipeOperator, SelectItem, SetExpr, TableFactor, Visit, Visitor,
};
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
                nothing_ignored(&parsed)?;
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

    /// Whether it has a placeholder of this name: `$name`.
    pub fn wants(&self, name: &str) -> bool {
        visit(&self.parsed, &mut Wanted(name)).is_break()
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

/// Refuses clauses that the parser takes and the planner passes over: the rows would not be those that were asked for.
fn nothing_ignored(parsed: &Parsed) -> Result<()> {
    match visit(parsed, &mut Ignored) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(clause) => Err(Error::user(
            "not-in-this-sql",
            format!("{clause} is not taken here: it would be ignored"),
        )),
    }
}

fn visit<V: Visitor>(parsed: &Parsed, visitor: &mut V) -> ControlFlow<V::Break> {
    match parsed {
        Parsed::Explain(ExplainStatement { statement, .. }) => visit(statement, visitor),
        Parsed::Statement(statement) => statement.visit(visitor),
        _ => ControlFlow::Continue(()),
    }
}

/// Looks for a placeholder of this name.
struct Wanted<'a>(&'a str);

impl Visitor for Wanted<'_> {
    type Break = ();

    fn pre_visit_value(&mut self, value: &ast::ValueWithSpan) -> ControlFlow<()> {
        match &value.value {
            ast::Value::Placeholder(name) if name.strip_prefix('$') == Some(self.0) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// Looks for clauses without effect; what the planner refuses by itself is left to it.
struct Ignored;

impl Visitor for Ignored {
    type Break = &'static str;

    fn pre_visit_query(&mut self, query: &ast::Query) -> ControlFlow<&'static str> {
        let ordered = |operator: &PipeOperator| match operator {
            PipeOperator::Aggregate {
                full_table_exprs,
                group_by_expr,
            } => full_table_exprs
                .iter()
                .chain(group_by_expr)
                .any(|part| part.order_by.asc.or(part.order_by.nulls_first).is_some()),
            _ => false,
        };
        first(&[
            (!query.locks.is_empty(), "FOR UPDATE or FOR SHARE"),
            (query.for_clause.is_some(), "FOR XML, JSON or BROWSE"),
            (query.settings.is_some(), "SETTINGS"),
            (query.format_clause.is_some(), "FORMAT"),
            (query.pipe_operators.iter().any(ordered), "an order in AGGREGATE"),
        ])
    }

    fn pre_visit_select(&mut self, select: &ast::Select) -> ControlFlow<&'static str> {
        let modified = match &select.group_by {
            GroupByExpr::All(modifiers) | GroupByExpr::Expressions(_, modifiers) => !modifiers.is_empty(),
        };
        let alike = |item: &SelectItem| match item {
            SelectItem::Wildcard(options) | SelectItem::QualifiedWildcard(_, options) => options.opt_ilike.is_some(),
            _ => false,
        };
        first(&[
            (
                !select.optimizer_hints.is_empty(),
                "a hint for an optimizer (/*+ ... */)",
            ),
            (select.projection.iter().any(alike), "ILIKE after *"),
            (select.prewhere.is_some(), "PREWHERE"),
            (!select.connect_by.is_empty(), "CONNECT BY"),
            (modified, "WITH ROLLUP and its like after GROUP BY"),
        ])
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<&'static str> {
        const SAMPLE: &str = "TABLESAMPLE";
        match table {
            TableFactor::Table {
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                sample,
                ..
            } => first(&[
                (sample.is_some(), SAMPLE),
                (!partitions.is_empty(), "PARTITION after a table"),
                (!with_hints.is_empty(), "WITH (...) after a table"),
                (version.is_some(), "a version of a table"),
                (*with_ordinality, "WITH ORDINALITY"),
                (args.as_ref().is_some_and(|args| args.settings.is_some()), "SETTINGS"),
            ]),
            TableFactor::Derived { sample, .. } => first(&[(sample.is_some(), SAMPLE)]),
            TableFactor::Function { with_ordinality, .. } => first(&[(*with_ordinality, "WITH ORDINALITY")]),
            _ => ControlFlow::Continue(()),
        }
    }

    fn pre_visit_expr(&mut self, expr: &ast::Expr) -> ControlFlow<&'static str> {
        match expr {
            ast::Expr::Function(call) => first(&[(
                call.parameters != FunctionArguments::None,
                "a second list of arguments, as in f(1)(x),",
            )]),
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The first clause that is there.
fn first(clauses: &[(bool, &'static str)]) -> ControlFlow<&'static str> {
    match clauses.iter().find(|(there, _)| *there) {
        Some(&(_, clause)) => ControlFlow::Break(clause),
        None => ControlFlow::Continue(()),
    }
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
    fn what_would_be_ignored_is_refused() {
        for (text, clause) in [
            ("SELECT a FROM t PREWHERE a = 1", "PREWHERE"),
            (
                "SELECT a FROM t WHERE a IN (SELECT b FROM u PREWHERE b = 1)",
                "PREWHERE",
            ),
            ("SELECT a, count(*) FROM t GROUP BY a WITH ROLLUP", "ROLLUP"),
            ("SELECT a, count(*) FROM t GROUP BY ALL WITH TOTALS", "GROUP BY"),
            ("SELECT a FROM t TABLESAMPLE (10 PERCENT)", "TABLESAMPLE"),
            (
                "SELECT a FROM (SELECT a FROM t) AS s TABLESAMPLE (1 ROWS)",
                "TABLESAMPLE",
            ),
            ("SELECT a FROM t CONNECT BY a = b", "CONNECT BY"),
            ("SELECT a FROM t PARTITION (p0)", "PARTITION"),
            ("SELECT a FROM t WITH (NOLOCK)", "WITH (...)"),
            ("SELECT value FROM generate_series(1, 2) WITH ORDINALITY", "ORDINALITY"),
            ("WITH x AS (SELECT a FROM t FOR UPDATE) SELECT a FROM x", "FOR UPDATE"),
            ("SELECT a FROM t FOR JSON AUTO", "JSON"),
            ("SELECT a FROM t SETTINGS b = 1", "SETTINGS"),
            ("EXPLAIN SELECT a FROM t FORMAT JSON", "FORMAT"),
            ("SELECT /*+ FAST */ a FROM t", "hint"),
            ("SELECT * ILIKE '%a%' FROM t", "ILIKE"),
            ("SELECT sum(0.5)(a) FROM t", "second list"),
            ("SELECT a FROM t |> AGGREGATE sum(a) AS s GROUP BY a DESC", "order"),
        ] {
            let error = Statement::parse(text).expect_err(text);
            assert_eq!(error.code, "not-in-this-sql", "{text}: {error}");
            assert!(error.message.contains(clause), "{text}: {error}");
        }
        for text in [
            "SELECT * EXCLUDE (a) FROM t /* all but one */",
            "SELECT a FROM t GROUP BY ROLLUP (a)",
            "SELECT a FROM t GROUP BY GROUPING SETS ((a), ())",
            "SELECT a FROM t |> AGGREGATE sum(a) AS s GROUP BY a",
        ] {
            Statement::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
    }

    #[test]
    fn a_statement_knows_its_placeholders() {
        let text =
            "EXPLAIN SELECT a FROM t WHERE a IN (SELECT b FROM u WHERE b > $least) OR '$most' = a LIMIT $most_of_all";
        let statement = Statement::parse(text).unwrap();
        for (name, wanted) in [("least", true), ("most_of_all", true), ("most", false)] {
            assert_eq!(statement.wants(name), wanted, "{name}");
        }
    }

    #[test]
    fn a_syntax_error_says_where() {
        let error = Statement::parse("SELECT a\nFROM t WHERE\n  GROUP x").expect_err("no query");
        let place = error.place.expect("a place");
        assert_eq!(place.line, 3);
    }
}
