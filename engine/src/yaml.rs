//! YAML as a tree in which every node knows its place. Duplicate keys and several documents are errors.

use saphyr_parser::{Event, Parser, ScalarStyle, Span as ParserSpan};
use serde_json::{Map, Number, Value};

use crate::error::{Error, Place};

/// Where a node stands: an index into the sources of a spec, line and column from 1, width in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Which source.
    pub source: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Width in characters on that line, at least 1.
    pub width: usize,
}

/// A text and what to call it in messages: a file, or an override such as `--set tiger.layers=2`.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name shown in messages.
    pub name: String,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// The place of a span of this source, with the text of its line.
    pub fn place(&self, span: Span) -> Place {
        Place {
            file: self.name.clone(),
            line: span.line as u64,
            column: span.column as u64,
            width: span.width as u64,
            text: self.text.lines().nth(span.line.saturating_sub(1)).map(str::to_string),
        }
    }
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it starts.
    pub span: Span,
    /// What it is.
    pub data: Data,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum Data {
    /// null, true, 1, 0.5 or text.
    Scalar(Value),
    /// A list.
    List(Vec<Node>),
    /// Keys and values in order.
    Map(Vec<(Key, Node)>),
}

/// A key of a map.
#[derive(Clone, Debug)]
pub struct Key {
    /// Where it stands.
    pub span: Span,
    /// Its text.
    pub name: String,
}

impl Node {
    /// The text, if it is a scalar text.
    pub fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Scalar(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// What kind of thing it is, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.data {
            Data::Scalar(Value::Null) => "null",
            Data::Scalar(Value::Bool(_)) => "a boolean",
            Data::Scalar(Value::Number(_)) => "a number",
            Data::Scalar(_) => "text",
            Data::List(_) => "a list",
            Data::Map(_) => "a map",
        }
    }

    /// The node without places.
    pub fn value(&self) -> Value {
        match &self.data {
            Data::Scalar(value) => value.clone(),
            Data::List(items) => Value::Array(items.iter().map(Node::value).collect()),
            Data::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, node)| (key.name.clone(), node.value()))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Parses one document. `source` is the index put into spans.
pub fn parse(source: usize, text: &Source) -> Result<Node, Error> {
    let mut reader = Reader {
        parser: Parser::new_from_str(&text.text),
        source,
        text,
        anchors: Vec::new(),
    };
    let mut root = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if root.is_some() => {
                return Err(
                    Error::user("bad-yaml", "a pipeline is one YAML document; here a second one starts")
                        .at(text.place(reader.span(&span, 1))),
                );
            }
            event => root = Some(reader.node(event, span)?),
        }
    }
    Ok(root.unwrap_or(Node {
        span: Span {
            source,
            line: 1,
            column: 1,
            width: 1,
        },
        data: Data::Scalar(Value::Null),
    }))
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    source: usize,
    text: &'a Source,
    anchors: Vec<(usize, Node)>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, ParserSpan), Error> {
        match self.parser.next() {
            Some(Ok(pair)) => Ok(pair),
            Some(Err(error)) => {
                let mark = *error.marker();
                let place = self.text.place(Span {
                    source: self.source,
                    line: mark.line(),
                    column: mark.col() + 1,
                    width: 1,
                });
                let reference = reference_at(place.text.as_deref().unwrap_or_default(), mark.col());
                let error = Error::user("bad-yaml", format!("this is not valid YAML: {}", error.info())).at(place);
                Err(match reference {
                    Some(reference) => error.hint(format!("inside {{ }} and [ ] write \"{reference}\" in quotes")),
                    None => error,
                })
            }
            None => Ok((Event::StreamEnd, ParserSpan::default())),
        }
    }

    fn span(&self, span: &ParserSpan, width: usize) -> Span {
        let width = if span.end.line() == span.start.line() && span.end.col() > span.start.col() {
            span.end.col() - span.start.col()
        } else {
            width
        };
        Span {
            source: self.source,
            line: span.start.line(),
            column: span.start.col() + 1,
            width: width.max(1),
        }
    }

    fn node(&mut self, event: Event<'a>, at: ParserSpan) -> Result<Node, Error> {
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = if style == ScalarStyle::Plain {
                    plain(&text)
                } else {
                    Value::String(text.to_string())
                };
                (
                    Node {
                        span: self.span(&at, text.chars().count()),
                        data: Data::Scalar(value),
                    },
                    anchor,
                )
            }
            Event::SequenceStart(anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if event == Event::SequenceEnd {
                        break;
                    }
                    items.push(self.node(event, at)?);
                }
                (
                    Node {
                        span: self.span(&at, 1),
                        data: Data::List(items),
                    },
                    anchor,
                )
            }
            Event::MappingStart(anchor, _) => {
                let mut entries: Vec<(Key, Node)> = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if event == Event::MappingEnd {
                        break;
                    }
                    let key = self.node(event, at)?;
                    let name = match &key.data {
                        Data::Scalar(Value::String(name)) => name.clone(),
                        Data::Scalar(value) => value.to_string(),
                        _ => {
                            return Err(Error::user("bad-yaml", "a key must be a word, not a list or a map")
                                .at(self.text.place(key.span)));
                        }
                    };
                    if let Some((first, _)) = entries.iter().find(|(other, _)| other.name == name) {
                        return Err(
                            Error::user("duplicate-key", format!("the key \"{name}\" stands here twice"))
                                .at(self.text.place(key.span))
                                .detail(format!("the first one is on line {}", first.span.line))
                                .hint("remove or rename one of them"),
                        );
                    }
                    let (event, at) = self.next()?;
                    let value = self.node(event, at)?;
                    entries.push((Key { span: key.span, name }, value));
                }
                (
                    Node {
                        span: self.span(&at, 1),
                        data: Data::Map(entries),
                    },
                    anchor,
                )
            }
            Event::Alias(id) => {
                let found = self.anchors.iter().rev().find(|(anchor, _)| *anchor == id);
                return match found {
                    Some((_, node)) => Ok(Node {
                        span: self.span(&at, 1),
                        data: node.data.clone(),
                    }),
                    None => {
                        Err(Error::user("bad-yaml", "this alias names no anchor")
                            .at(self.text.place(self.span(&at, 1))))
                    }
                };
            }
            _ => return Err(Error::user("bad-yaml", "unexpected end of YAML").at(self.text.place(self.span(&at, 1)))),
        };
        if anchor > 0 {
            self.anchors.push((anchor, node.clone()));
        }
        Ok(node)
    }
}

/// The reference `${name}` whose brace stands at a column, from 0, of a line.
fn reference_at(line: &str, column: usize) -> Option<String> {
    let (brace, _) = line.char_indices().nth(column)?;
    let (before, from) = line.split_at(brace);
    let name = from.split_inclusive('}').next()?;
    before.ends_with('$').then(|| format!("${name}"))
}

/// A plain scalar by YAML's core schema: null, booleans, integers, floats (`1e-3` too), else text.
pub fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let number = text.strip_prefix('+').unwrap_or(text);
        if let Ok(number) = number.parse::<u64>() {
            return Value::Number(number.into());
        }
        if let Ok(number) = number.parse::<i64>() {
            return Value::Number(number.into());
        }
    }
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|byte| byte.is_ascii_digit())
        && digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
    if numeric
        && let Ok(number) = text.parse::<f64>()
        && let Some(number) = Number::from_f64(number)
    {
        return Value::Number(number);
    }
    Value::String(text.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source {
            name: "p.yaml".into(),
            text: text.into(),
        }
    }

    #[test]
    fn scalars_follow_the_core_schema() {
        let tree = parse(
            0,
            &source("{a: 1e-3, b: 5, c: 'x', d: yes, e: ~, f: -2, g: 1.5, h: 2026-11-22, i: true}"),
        )
        .unwrap();
        assert_eq!(
            tree.value().to_string(),
            r#"{"a":0.001,"b":5,"c":"x","d":"yes","e":null,"f":-2,"g":1.5,"h":"2026-11-22","i":true}"#
        );
    }

    #[test]
    fn nodes_know_their_places() {
        let tree = parse(0, &source("stages:\n  core: { op: filter_kcore, k: 5 }\n")).unwrap();
        let Data::Map(top) = tree.data else { panic!() };
        let Data::Map(stages) = &top[0].1.data else { panic!() };
        let Data::Map(core) = &stages[0].1.data else { panic!() };
        assert_eq!(
            (core[1].0.span.line, core[1].0.span.column, core[1].0.span.width),
            (2, 29, 1)
        );
        assert_eq!(
            (core[0].1.span.line, core[0].1.span.column, core[0].1.span.width),
            (2, 15, 12)
        );
    }

    #[test]
    fn duplicate_keys_and_bad_yaml_are_placed() {
        let error = parse(0, &source("a: 1\na: 2\n")).unwrap_err();
        assert_eq!((error.code.as_str(), error.place.unwrap().line), ("duplicate-key", 2));
        let error = parse(0, &source("a: [1, 2\nb: 3\n")).unwrap_err();
        assert_eq!((error.code.as_str(), error.hint), ("bad-yaml", None));
    }

    #[test]
    fn a_reference_between_braces_wants_quotes() {
        for text in [
            "stages:\n  é: { op: train, max_steps: ${steps} }\n",
            "stages:\n  a: { op: train, of: \"${x}\",\n    max_steps: ${steps} }\n",
            "k: [1, ${steps}]\n",
        ] {
            let error = parse(0, &source(text)).unwrap_err();
            let wanted = "inside { } and [ ] write \"${steps}\" in quotes";
            assert_eq!(error.hint.as_deref(), Some(wanted), "{error}");
        }
        assert!(parse(0, &source("a: ${steps}\nb: { c: \"${steps}\" }\n")).is_ok());
    }
}
