//! Python literals, as `repr` writes them: Amazon 2014 files hold a dict a line. JSON is read as well.

use serde_json::{Map, Number, Value};

/// Deepest nesting that is read.
const DEPTH: usize = 64;

/// Reads one literal: dicts, lists, tuples, sets, strings, numbers, True/False/None and their JSON twins.
/// `nan` and `inf` become the strings `NaN` and `inf`; dict keys become strings.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.blanks();
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(reader.error("more text after the literal")),
    }
}

/// A list of strings as Python's `repr` writes it: `['Beauty', "Men's"]`.
pub fn list_repr(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| string_repr(item)).collect();
    format!("[{}]", items.join(", "))
}

fn string_repr(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(self.error("nested too deeply"));
        }
        self.blanks();
        match self.peek() {
            Some('{') => self.braces(depth),
            Some('[') => self.items(']', depth),
            Some('(') => self.items(')', depth),
            Some('\'' | '"') => self.strings(),
            Some(c) if c.is_ascii_digit() || "+-.".contains(c) => self.number(),
            Some(c) if c.is_alphabetic() => self.word(),
            Some(c) => Err(self.error(&format!("unexpected '{c}'"))),
            None => Err(self.error("the text ends too early")),
        }
    }

    /// A dict, or a set (as a list).
    fn braces(&mut self, depth: usize) -> Result<Value, String> {
        self.next();
        let (mut map, mut set) = (Map::new(), Vec::new());
        loop {
            self.blanks();
            if self.eat('}') {
                break;
            }
            let key = self.value(depth + 1)?;
            self.blanks();
            if self.eat(':') {
                let key = match key {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                let value = self.value(depth + 1)?;
                map.insert(key, value);
            } else {
                set.push(key);
            }
            self.blanks();
            if !self.eat(',') && self.peek() != Some('}') {
                return Err(self.error("expected ',' or '}'"));
            }
        }
        match (map.is_empty(), set.is_empty()) {
            (_, true) => Ok(Value::Object(map)),
            (true, false) => Ok(Value::Array(set)),
            _ => Err(self.error("a mixture of dict and set")),
        }
    }

    fn items(&mut self, end: char, depth: usize) -> Result<Value, String> {
        self.next();
        let mut items = Vec::new();
        loop {
            self.blanks();
            if self.eat(end) {
                return Ok(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.blanks();
            if !self.eat(',') && self.peek() != Some(end) {
                return Err(self.error(&format!("expected ',' or '{end}'")));
            }
        }
    }

    /// A string, or several side by side, which Python joins.
    fn strings(&mut self) -> Result<Value, String> {
        let mut out = String::new();
        while let Some('\'' | '"') = self.peek() {
            self.string(&mut out, false)?;
            self.blanks();
        }
        Ok(Value::String(out))
    }

    fn string(&mut self, out: &mut String, raw: bool) -> Result<(), String> {
        let quote = self.next().unwrap_or_default();
        let two = [quote; 2].iter().collect::<String>();
        let triple = self.text[self.at..].starts_with(&two);
        if triple {
            self.at += 2;
        }
        loop {
            match self.next() {
                None => return Err(self.error("a string is not closed")),
                Some(c) if c == quote => {
                    if !triple {
                        return Ok(());
                    } else if self.text[self.at..].starts_with(&two) {
                        self.at += 2;
                        return Ok(());
                    }
                    out.push(c);
                }
                Some('\\') if !raw => self.escape(out)?,
                Some(c) => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), String> {
        let c = match self.next() {
            None => return Err(self.error("a string is not closed")),
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('v') => '\u{b}',
            Some('a') => '\u{7}',
            Some('\n') => return Ok(()),
            Some(c @ ('\\' | '\'' | '"' | '/')) => c,
            Some('x') => char::from_u32(self.hex(2)?).unwrap_or('\u{FFFD}'),
            Some('U') => char::from_u32(self.hex(8)?).unwrap_or('\u{FFFD}'),
            Some('u') => {
                let high = self.hex(4)?;
                let pair = (0xD800..0xDC00).contains(&high) && self.text[self.at..].starts_with("\\u");
                let before = self.at;
                let low = if pair {
                    self.at += 2;
                    self.hex(4)?
                } else {
                    0
                };
                if (0xDC00..0xE000).contains(&low) {
                    char::from_u32(0x1_0000 + ((high - 0xD800) << 10) + (low - 0xDC00)).unwrap_or('\u{FFFD}')
                } else {
                    self.at = before;
                    char::from_u32(high).unwrap_or('\u{FFFD}')
                }
            }
            Some(c @ '0'..='7') => {
                let mut code = c as u32 - '0' as u32;
                for _ in 0..2 {
                    match self.peek() {
                        Some(d @ '0'..='7') => code = code * 8 + (d as u32 - '0' as u32),
                        _ => break,
                    }
                    self.next();
                }
                char::from_u32(code).unwrap_or('\u{FFFD}')
            }
            Some(c) => {
                out.push('\\');
                c
            }
        };
        out.push(c);
        Ok(())
    }

    fn hex(&mut self, digits: usize) -> Result<u32, String> {
        let bytes = self.text.as_bytes().get(self.at..self.at + digits);
        let code = bytes
            .filter(|bytes| bytes.iter().all(u8::is_ascii_hexdigit))
            .and_then(|bytes| std::str::from_utf8(bytes).ok())
            .and_then(|text| u32::from_str_radix(text, 16).ok())
            .ok_or_else(|| self.error("a bad escape in a string"))?;
        self.at += digits;
        Ok(code)
    }

    fn number(&mut self) -> Result<Value, String> {
        let rest = &self.text[self.at..];
        let end = rest
            .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
            .unwrap_or(rest.len());
        let text = rest[..end].trim_end_matches(['L', 'l']).replace('_', "");
        let value = if let Ok(integer) = text.parse::<i64>() {
            Value::Number(integer.into())
        } else {
            match text.parse::<f64>() {
                Ok(float) => Number::from_f64(float).map_or_else(|| Value::String(text.clone()), Value::Number),
                Err(_) => return Err(self.error(&format!("bad number \"{text}\""))),
            }
        };
        self.at += end;
        Ok(value)
    }

    fn word(&mut self) -> Result<Value, String> {
        let rest = &self.text[self.at..];
        let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let word = &rest[..end];
        let value = match word {
            "None" | "null" => Value::Null,
            "True" | "true" => Value::Bool(true),
            "False" | "false" => Value::Bool(false),
            "nan" | "NaN" => Value::String("NaN".into()),
            "inf" | "Infinity" => Value::String("inf".into()),
            "u" | "b" | "r" | "U" | "B" | "R" if rest[end..].starts_with(['\'', '"']) => {
                self.at += end;
                let mut out = String::new();
                self.string(&mut out, word.eq_ignore_ascii_case("r"))?;
                return Ok(Value::String(out));
            }
            _ => return Err(self.error(&format!("unknown word \"{word}\""))),
        };
        self.at += end;
        Ok(value)
    }

    fn blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.at += wanted.len_utf8();
        }
        found
    }

    fn error(&self, what: &str) -> String {
        format!("{what} at character {}", self.text[..self.at].chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_of_every_kind() {
        let text = r#"{'asin': '0001', "title": "It's 5\" \x41\u00e9\n", u'n': (1, -2.5, 1e3, 7L),
            'nest': [[], {}, {'a': None}], 't': True, 'f': False, 3: 'a' "b", 'e': '', 'nan': nan, 'r': r'\d', 's': {1, 2}}"#;
        assert_eq!(
            parse(text).unwrap(),
            json!({"asin": "0001", "title": "It's 5\" Aé\n", "n": [1, -2.5, 1000.0, 7],
                "nest": [[], {}, {"a": null}], "t": true, "f": false, "3": "ab", "e": "", "nan": "NaN", "r": "\\d",
                "s": [1, 2]})
        );
        assert_eq!(
            parse(r#"{"a": [true, null, "\ud83d\ude00 \/"]}"#).unwrap(),
            json!({"a": [true, null, "😀 /"]})
        );
        assert_eq!(parse("'''a'b\n'''").unwrap(), json!("a'b\n"));
    }

    #[test]
    fn bad_literals_say_where() {
        for (text, reason) in [
            ("{'a': }", "unexpected '}' at character 7"),
            ("{'a': 'b", "a string is not closed at character 9"),
            ("[1 2]", "expected ',' or ']' at character 4"),
            ("{'a': foo()}", "unknown word \"foo\" at character 7"),
            ("'\\x4'", "a bad escape in a string at character 4"),
            ("[1] x", "more text after the literal at character 5"),
        ] {
            assert_eq!(parse(text).unwrap_err(), reason, "{text}");
        }
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn lists_as_repr_writes_them() {
        let items = ["Beauty", "Men's", "a\"b'c"].map(str::to_string);
        assert_eq!(list_repr(&items), r#"['Beauty', "Men's", 'a"b\'c']"#);
        assert_eq!(list_repr(&[]), "[]");
    }

    proptest::proptest! {
        #[test]
        fn what_repr_writes_is_read_back(items in proptest::collection::vec(".*", 0..4)) {
            let back = parse(&list_repr(&items)).unwrap();
            assert_eq!(back, json!(items));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = parse(&text);
        }
    }
}
