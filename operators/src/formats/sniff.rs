//! What a file is, by the beginning of its content.

use serde_json::Value;
use sluice_engine::{Error, Result};

use super::delimited::first_row;
use super::python;

/// What the beginning of a file looks like.
#[derive(Clone, Debug, PartialEq)]
pub enum Sniffed {
    /// Parquet's magic bytes.
    Parquet,
    /// An object (JSON, or a Python dict literal) on the first line, with these keys; whether it is Python.
    Lines(Vec<String>, bool),
    /// One JSON object from ids to lists or objects.
    Object,
    /// Cells apart by this delimiter; the first row.
    Cells(String, Vec<String>),
    /// Words apart by blanks.
    Words,
    /// None of these.
    Unknown,
}

/// Looks at the first line that is not blank: `{` is an object, alone on its line if its values are no lists or objects
/// all over; else the first delimiter of `::`, tab, three or more `|`, `,`, `;`; else blanks.
pub fn sniff(head: &[u8]) -> Sniffed {
    if head.starts_with(b"PAR1") {
        return Sniffed::Parquet;
    }
    let text = String::from_utf8_lossy(head);
    let text = text.trim_start();
    let line = text.lines().next().unwrap_or_default().trim_end();
    if line.starts_with('{') {
        return match python::parse(line) {
            Ok(Value::Object(map)) if map.is_empty() || !map.values().all(nested) => {
                let json = serde_json::from_str::<Value>(line).is_ok();
                Sniffed::Lines(map.keys().cloned().collect(), !json && line.starts_with("{'"))
            }
            Ok(_) => Sniffed::Object,
            Err(_) if line.len() > 1 && text.len() > line.len() && !line.ends_with(['{', '[', ',']) => {
                Sniffed::Lines(Vec::new(), line.starts_with("{'"))
            }
            Err(_) => Sniffed::Object,
        };
    }
    let delimiter = match () {
        () if line.contains("::") => "::",
        () if line.contains('\t') => "\t",
        () if line.matches('|').count() >= 3 => "|",
        () if line.contains(',') => ",",
        () if line.contains(';') => ";",
        () if line.split_whitespace().count() >= 2 && !line.starts_with(['[', '<']) => return Sniffed::Words,
        () => return Sniffed::Unknown,
    };
    Sniffed::Cells(delimiter.to_string(), first_row(head, delimiter, delimiter == ","))
}

/// Whether all cells are numbers, so that they name no columns.
pub fn numeric(cells: &[String]) -> bool {
    cells.iter().all(|cell| cell.parse::<f64>().is_ok())
}

/// Names of the fields of the objects on all lines of `head`.
pub fn all_keys(head: &[u8]) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    for line in String::from_utf8_lossy(head).lines() {
        if let Ok(Value::Object(map)) = python::parse(line) {
            keys.extend(map.into_iter().map(|(key, _)| key));
            keys.sort_unstable();
            keys.dedup();
        }
    }
    keys
}

/// Refuses a JSON array of objects.
pub fn refuse_array(name: &str, head: &[u8]) -> Result<()> {
    let mut bytes = head.iter().filter(|byte| !byte.is_ascii_whitespace());
    match (bytes.next(), bytes.next()) {
        (Some(b'['), Some(b'{')) => Err(Error::data("wrong-format", format!("\"{name}\" is a JSON array"))
            .hint("write one object a line, such as with \"jq -c '.[]'\"")),
        _ => Ok(()),
    }
}

/// A file whose format must be named.
pub fn undetected(name: &str, head: &[u8]) -> Error {
    let first = String::from_utf8_lossy(head);
    let first: String = first
        .trim_start()
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(80)
        .collect();
    let message = format!("cannot tell the format of \"{name}\" by its first line: {first}");
    Error::data("wrong-format", message)
        .hint("name it: \"format: csv\" (or tsv, jsonl, ...); \"columns\" maps columns of other names")
}

fn nested(value: &Value) -> bool {
    value.is_array() || value.is_object()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        let keys = |keys: &[&str]| keys.iter().map(|key| key.to_string()).collect::<Vec<_>>();
        assert_eq!(sniff(b"PAR1xx"), Sniffed::Parquet);
        assert_eq!(sniff(b"{\"asin\": 1}\n{"), Sniffed::Lines(keys(&["asin"]), false));
        assert_eq!(sniff(b"{'asin': 'x'}\n"), Sniffed::Lines(keys(&["asin"]), true));
        assert_eq!(sniff(b"{\n \"0\": [\n"), Sniffed::Object);
        assert_eq!(sniff(b"{\"0\": [1, 2], \"1\": [3"), Sniffed::Object);
        assert_eq!(sniff(b"{\"0\": {\"title\": \"x\"}}"), Sniffed::Object);
        assert_eq!(
            sniff(b"1::2::3::4\n"),
            Sniffed::Cells("::".into(), keys(&["1", "2", "3", "4"]))
        );
        assert_eq!(sniff(b"a\tb\n"), Sniffed::Cells("\t".into(), keys(&["a", "b"])));
        assert_eq!(
            sniff(b"\na,\"b,c\"\r\n"),
            Sniffed::Cells(",".into(), keys(&["a", "b,c"]))
        );
        assert_eq!(sniff(b"1 2 3\n"), Sniffed::Words);
        assert_eq!(sniff(b"[1, 2]"), Sniffed::Cells(",".into(), keys(&["[1", "2]"])));
        assert_eq!(sniff(b"word\n"), Sniffed::Unknown);
    }

    #[test]
    fn keys_of_all_lines_and_arrays() {
        assert_eq!(
            all_keys(b"{\"b\": 1}\n{'c': [], 'b': 2}\n{\"a\": {\"d\": 1}}\n{\"e\""),
            ["a", "b", "c"]
        );
        assert!(refuse_array("x", b" [\n {\"a\": 1}]").is_err());
        assert!(refuse_array("x", b"{\"a\": [{}]}").is_ok());
        assert!(refuse_array("x", b"[1, 2]").is_ok());
    }
}
