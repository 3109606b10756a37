//! Statements that are too long, too deep or of too many tables to be planned: refused before anything walks over them.
//!
//! Parsing and planning go down expressions by recursion, and the time they take grows with the square of the depth. A
//! statement of a stranger must neither exhaust a stack, which would end the server, nor keep a thread for minutes.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement as Parsed;
use datafusion::sql::sqlparser::ast::visit_relations;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use sluice_engine::{Error, Result};

use crate::statement::Statement;

/// Bytes of a statement.
const LONGEST: usize = 256 << 10;
/// Words and signs of an expression, without those beside a comma: `a + b + c` has 5.
const DEEPEST: usize = 2000;
/// Tables that a statement names, each time counted, and its queries.
const TABLES: usize = 256;

/// How often a word may follow itself. The parser tries two ways at each `INTERVAL`: 30 in a row take it years.
const REPEATED: usize = 8;

/// The statement of a text, if it can be planned safely.
pub(super) fn parse(text: &str) -> Result<Statement> {
    if text.len() > LONGEST {
        let message = format!("a statement of {} bytes, and {LONGEST} are taken", text.len());
        return Err(Error::user("long-statement", message));
    }
    // What has no tokens is told about by the parser.
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize().unwrap_or_default();
    if depth(&tokens) > DEEPEST {
        let message = format!("an expression of more than {DEEPEST} words");
        return Err(Error::user("deep-statement", message)
            .hint("x IN (1, 2, ...) and lists may be long; chains of OR, AND, + and UNION may not"));
    }
    if repeated(&tokens) > REPEATED {
        let message = format!("a statement with the same word more than {REPEATED} times in a row");
        return Err(Error::user("repeated-word", message));
    }
    let select = |token: &&Token| matches!(token, Token::Word(word) if word.keyword == Keyword::SELECT);
    let wide = || {
        Error::user(
            "wide-statement",
            format!("a statement of more than {TABLES} tables and queries"),
        )
    };
    let queries = tokens.iter().filter(select).count();
    if queries > TABLES {
        return Err(wide());
    }
    let statement = Statement::parse(text)?;
    match queries + tables(statement.parsed()) > TABLES {
        true => Err(wide()),
        false => Ok(statement),
    }
}

/// How deep an expression of these tokens may be at most: a token may go one down from what was before it, and what is in
/// brackets is as deep as its deepest item.
fn depth(tokens: &[Token]) -> usize {
    /// Of what is within a pair of brackets: the deepest item so far, and the present one.
    #[derive(Clone, Copy, Default)]
    struct Level {
        deepest: usize,
        here: usize,
    }
    let mut levels = vec![Level::default()];
    for token in tokens {
        let here = levels.len() - 1;
        match token {
            Token::Whitespace(_) => {}
            Token::LParen | Token::LBracket | Token::LBrace => levels.push(Level::default()),
            Token::RParen | Token::RBracket | Token::RBrace if here > 0 => {
                let inside = levels.pop().unwrap_or_default();
                let outside = &mut levels[here - 1];
                outside.here = outside.here.max(inside.deepest.max(inside.here)) + 1;
            }
            Token::Comma => {
                let level = &mut levels[here];
                level.deepest = level.deepest.max(level.here);
                level.here = 0;
            }
            _ => levels[here].here += 1,
        }
    }
    let open = levels.iter().map(|level| level.deepest.max(level.here));
    open.sum()
}

/// How often the same word stands in a row at most.
fn repeated(tokens: &[Token]) -> usize {
    let (mut most, mut count, mut before) = (0, 0, "");
    for token in tokens {
        match token {
            Token::Whitespace(_) => {}
            Token::Word(word) if word.value.eq_ignore_ascii_case(before) => count += 1,
            Token::Word(word) => (count, before) = (1, &word.value),
            _ => (count, before) = (0, ""),
        }
        most = most.max(count);
    }
    most
}

fn tables(parsed: &Parsed) -> usize {
    let statement = match parsed {
        Parsed::Explain(explain) => return tables(&explain.statement),
        Parsed::Statement(statement) => statement,
        _ => return 0,
    };
    let mut count = 0;
    let _ = visit_relations(statement.as_ref(), |_| {
        count += 1;
        ControlFlow::<()>::Continue(())
    });
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depth_of(text: &str) -> usize {
        depth(&Tokenizer::new(&GenericDialect {}, text).tokenize().unwrap())
    }

    #[test]
    fn depth_is_that_of_the_deepest_chain() {
        assert_eq!(depth_of("a + b + c"), 5);
        assert_eq!(depth_of("a, b, c + d"), 3);
        assert_eq!(depth_of("f(a, b + c) + d"), 6);
        assert_eq!(depth_of("((1 + 1) + 1) + 1"), 9);
        assert_eq!(depth_of("x[1, 2][1, 2][1, 2]"), 4);
        // Brackets that nobody closes count as well.
        assert_eq!(depth_of("(((1 + 1"), 3);
        assert_eq!(depth_of("1)))"), 4);
    }

    #[test]
    fn long_lists_are_taken_and_deep_chains_are_not() {
        let list: Vec<String> = (0..20_000).map(|number| number.to_string()).collect();
        parse(&format!("SELECT 1 IN ({})", list.join(", "))).unwrap();
        let code = |text: String| parse(&text).map(|_| ()).unwrap_err().code;
        for chain in ["+ 1", "OR true", "::int", "[1]", "[1, 2]", "IS NULL", "UNION SELECT 1"] {
            assert_eq!(
                code(format!("SELECT 1 {}", chain.repeat(3000))),
                "deep-statement",
                "{chain}"
            );
        }
        let nested = (0..60).fold("1".to_string(), |inner, _| format!("({inner}{})", "+ 1".repeat(60)));
        assert_eq!(code(format!("SELECT {nested}")), "deep-statement");
        let crowd = vec!["t"; 300].join(", ");
        assert_eq!(code(format!("SELECT 1 FROM {crowd}")), "wide-statement");
        assert_eq!(code(format!("EXPLAIN SELECT 1 FROM {crowd}")), "wide-statement");
        let start = std::time::Instant::now();
        let intervals = |count| format!("SELECT {} '1 day'", "INTERVAL\n".repeat(count));
        assert_eq!(code(intervals(26)), "repeated-word");
        let _ = parse(&intervals(8));
        assert!(
            start.elapsed() < std::time::Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        let queries = vec!["(SELECT 1)"; 300].join(", ");
        assert_eq!(code(format!("SELECT {queries}")), "wide-statement");
        assert_eq!(code(format!("SELECT '{}'", "x".repeat(300_000))), "long-statement");
    }
}
