//! Lines of a block, with their numbers; bytes that are no UTF-8 are told apart.

use sluice_engine::Result;

/// Calls `each` with the number and text of every line that is not blank, without its line end.
/// A line that is no UTF-8 comes as an error that holds what can be shown of it.
pub fn lines<'a>(
    bytes: &'a [u8],
    first: u64,
    mut each: impl FnMut(u64, Result<&'a str, String>) -> Result<()>,
) -> Result<()> {
    let whole = std::str::from_utf8(bytes).ok();
    let mut start = 0;
    let mut number = first;
    while start < bytes.len() {
        let end = memchr::memchr(b'\n', &bytes[start..]).map_or(bytes.len(), |at| start + at);
        let line = strip(&bytes[start..end]);
        let text = match whole {
            Some(text) => Ok(&text[start..start + line.len()]),
            None => std::str::from_utf8(line).map_err(|_| String::from_utf8_lossy(line).into_owned()),
        };
        start = end + 1;
        if text.as_ref().map_or(true, |text| !text.trim_ascii().is_empty()) {
            each(number, text)?;
        }
        number += 1;
    }
    Ok(())
}

/// Latin-1 as text.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// A line without its carriage return.
pub fn strip(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_count_but_are_not_seen() {
        let mut seen = Vec::new();
        lines(b"a\r\n\r\n \nb\n\xFF\nc", 5, |number, text| {
            seen.push((number, text.map(str::to_string)));
            Ok(())
        })
        .unwrap();
        let expected = [
            (5, Ok("a".to_string())),
            (8, Ok("b".to_string())),
            (9, Err("\u{FFFD}".to_string())),
            (10, Ok("c".to_string())),
        ];
        assert_eq!(seen, expected);
    }
}
