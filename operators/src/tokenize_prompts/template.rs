//! A text with one name in braces, such as `{history}`: read and checked, then filled in.

use sluice_engine::error::did_you_mean;
use sluice_engine::{Error, Result};

/// A text around a place that is filled in.
#[derive(Debug, PartialEq)]
pub struct Template<'a> {
    before: &'a str,
    after: &'a str,
}

impl<'a> Template<'a> {
    /// Reads a text that holds `{name}` exactly once and no other name in braces; `role` says in errors what it is.
    /// Braces around anything but a name stand for themselves.
    pub fn parse(text: &'a str, name: &str, role: &str) -> Result<Self> {
        let mut found = None;
        for (at, other) in names(text) {
            if other != name {
                let message = format!("{role} names \"{{{other}}}\" at {}", place(text, at));
                let hint = did_you_mean(other, [name]).unwrap_or_else(|| format!("the only name is \"{{{name}}}\""));
                return Err(Error::user("unknown-name", message).hint(hint));
            }
            if found.replace(at).is_some() {
                let message = format!("{role} holds \"{{{name}}}\" a second time at {}", place(text, at));
                return Err(Error::user("bad-value", message).hint("name it exactly once"));
            }
        }
        let at = found.ok_or_else(|| {
            Error::user("bad-value", format!("{role} does not hold \"{{{name}}}\"")).hint("name it exactly once")
        })?;
        Ok(Template {
            before: &text[..at],
            after: &text[at + name.len() + 2..],
        })
    }

    /// What is before the place, and what is behind it.
    pub fn parts(&self) -> (&'a str, &'a str) {
        (self.before, self.after)
    }

    /// The text with `value` in the place of the name.
    pub fn fill(&self, value: &str) -> String {
        [self.before, value, self.after].concat()
    }
}

/// Names in braces, and the byte where the brace stands.
fn names(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let part_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices('{').filter_map(move |(at, _)| {
        let (name, _) = text[at + 1..].split_once('}')?;
        (!name.is_empty() && name.chars().all(part_of_name)).then_some((at, name))
    })
}

/// Where a byte stands, as people count.
fn place(text: &str, at: usize) -> String {
    let line = text[..at].matches('\n').count() + 1;
    let column = text[..at].chars().rev().take_while(|c| *c != '\n').count() + 1;
    format!("line {line}, character {column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Template<'_>> {
        Template::parse(text, "history", "the template")
    }

    #[test]
    fn the_place_is_filled_and_other_braces_stay() {
        assert_eq!(
            parse("{\"a\": {}}\n{history}!").unwrap().fill("x{y}"),
            "{\"a\": {}}\nx{y}!"
        );
    }

    #[test]
    fn mistakes_are_named_with_their_place() {
        let error = parse("é {history}\n né {histroy}").unwrap_err();
        assert_eq!(error.code, "unknown-name");
        assert_eq!(error.message, "the template names \"{histroy}\" at line 2, character 5");
        assert_eq!(error.hint.unwrap(), "did you mean \"history\"?");
        let error = parse("{history}{history}").unwrap_err();
        assert_eq!(
            error.message,
            "the template holds \"{history}\" a second time at line 1, character 10"
        );
        assert_eq!(
            parse("").unwrap_err().message,
            "the template does not hold \"{history}\""
        );
    }
}
