//! Cells apart by a delimiter: CSV with RFC 4180 quotes, TSV, RecBole, and MovieLens with `::` or `|`.

use std::borrow::Cow;

use sluice_engine::{Error, Result};

use super::files::Layout;
use super::rows;

/// The cells of the first line of a file.
pub fn first_row(head: &[u8], delimiter: &str, quoted: bool) -> Vec<String> {
    let mut row = Vec::new();
    let layout = Cells {
        delimiter,
        quoted,
        latin1: true,
    };
    // the first record is all that is wanted: an error ends the loop
    let _ = layout.each(head, 1, &mut |_, _, cells| {
        row = cells.unwrap_or_default().iter().map(|cell| cell.to_string()).collect();
        Err(Error::interrupted())
    });
    row
}

/// Calls `each` with line number, text and the cells (or what is wrong) of every row of a block.
/// Cells come without blanks around them.
pub fn records(
    bytes: &[u8],
    first: u64,
    layout: &Layout,
    mut each: impl FnMut(u64, &str, Result<&[&str], String>) -> Result<()>,
) -> Result<()> {
    let Layout::Delimited {
        delimiter,
        quoted,
        latin1,
        header,
        width,
        ..
    } = layout
    else {
        return Err(Error::internal("the layout is not delimited"));
    };
    let cells = Cells {
        delimiter,
        quoted: *quoted,
        latin1: *latin1,
    };
    let mut skip = *header && first == 1;
    cells.each(bytes, first, &mut |line, text, cells| {
        if std::mem::take(&mut skip) {
            return Ok(());
        }
        let cells = cells.and_then(|cells| match cells.len() == *width {
            true => Ok(cells),
            false => Err(format!("{} cells where {width} are expected", cells.len())),
        });
        each(line, text, cells)
    })
}

struct Cells<'a> {
    delimiter: &'a str,
    quoted: bool,
    latin1: bool,
}

type Each<'e> = &'e mut dyn FnMut(u64, &str, Result<&[&str], String>) -> Result<()>;

impl Cells<'_> {
    fn each(&self, bytes: &[u8], first: u64, each: Each) -> Result<()> {
        if self.quoted && memchr::memchr(b'"', bytes).is_some() {
            return self.each_quoted(bytes, first, each);
        }
        let bytes = match self.latin1 {
            true => self.utf8(bytes),
            false => Cow::Borrowed(bytes),
        };
        let mut cells = Vec::new();
        rows::lines(&bytes, first, |line, text| match text {
            Err(text) => each(line, &text, Err("not UTF-8".to_string())),
            Ok(text) => {
                cells.clear();
                match self.delimiter.as_bytes() {
                    [delimiter] => {
                        let mut start = 0;
                        for at in memchr::memchr_iter(*delimiter, text.as_bytes()) {
                            cells.push(text[start..at].trim_ascii());
                            start = at + 1;
                        }
                        cells.push(text[start..].trim_ascii());
                    }
                    _ => cells.extend(text.split(self.delimiter).map(str::trim_ascii)),
                }
                each(line, text, Ok(&cells))
            }
        })
    }

    fn each_quoted(&self, bytes: &[u8], first: u64, each: Each) -> Result<()> {
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .terminator(csv::Terminator::Any(b'\n'))
            .delimiter(self.delimiter.bytes().next().unwrap_or(b','))
            .from_reader(bytes);
        let mut record = csv::ByteRecord::new();
        let (mut line, mut counted) = (first, 0);
        loop {
            let start = reader.position().byte() as usize;
            let more = reader
                .read_byte_record(&mut record)
                .map_err(|error| Error::internal(format!("csv: {error}")))?;
            if !more {
                return Ok(());
            }
            // the reader passes over empty lines before a record
            let start = start + bytes[start..].iter().take_while(|byte| **byte == b'\n').count();
            let end = reader.position().byte() as usize;
            line += memchr::memchr_iter(b'\n', &bytes[counted..start]).count() as u64;
            counted = start;
            let raw = String::from_utf8_lossy(&bytes[start..end]);
            let raw = raw.trim_end_matches(['\r', '\n']);
            let cells: Option<Vec<&str>> = record
                .iter()
                .map(|cell| std::str::from_utf8(cell).ok().map(str::trim_ascii))
                .collect();
            match cells {
                Some(cells) if cells.len() == 1 && cells[0].is_empty() => {}
                Some(cells) => each(line, raw, Ok(&cells))?,
                None => each(line, raw, Err("not UTF-8".to_string()))?,
            }
        }
    }

    /// Line by line: UTF-8 as it is, everything else from Latin-1.
    fn utf8<'b>(&self, bytes: &'b [u8]) -> Cow<'b, [u8]> {
        if std::str::from_utf8(bytes).is_ok() {
            return Cow::Borrowed(bytes);
        }
        let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            match std::str::from_utf8(line) {
                Ok(_) => out.extend_from_slice(line),
                Err(_) => out.extend_from_slice(rows::latin1(line).as_bytes()),
            }
        }
        Cow::Owned(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], delimiter: &str, quoted: bool, latin1: bool, width: usize) -> Vec<String> {
        let layout = Layout::Delimited {
            delimiter: delimiter.into(),
            quoted,
            latin1,
            header: true,
            blanks: false,
            width,
            picks: Vec::new(),
        };
        let mut seen = Vec::new();
        records(bytes, 1, &layout, |line, text, cells| {
            seen.push(match cells {
                Ok(cells) => format!("{line}: {}", cells.join("/")),
                Err(reason) => format!("{line}: {reason}: {text}"),
            });
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn cells_with_and_without_quotes() {
        assert_eq!(
            read(b"a,b\r\n1, 2\r\n\r\n3\n", ",", true, false, 2),
            ["2: 1/2", "4: 1 cells where 2 are expected: 3"]
        );
        assert_eq!(
            read(b"a,b\n\"1,\"\"x\"\"\ny\",2\n\n3,4\n5,\xFF\n", ",", true, false, 2),
            ["2: 1,\"x\"\ny/2", "5: 3/4", "6: not UTF-8: 5,\u{FFFD}"]
        );
        assert_eq!(read(b"a\tb\n5\"\t6", "\t", false, false, 2), ["2: 5\"/6"]);
    }

    #[test]
    fn a_carriage_return_alone_ends_no_row() {
        for (last, cells) in [("5,6", "5/6"), ("\"5\",6", "5/6")] {
            let content = format!("a,b\r\n\r\n1,x\ry\r\n\r\n\r\n{last}\r\n");
            assert_eq!(
                read(content.as_bytes(), ",", true, false, 2),
                ["3: 1/x\ry".to_string(), format!("6: {cells}")]
            );
        }
    }

    #[test]
    fn movielens_is_latin_1() {
        assert_eq!(
            read(b"h::h\n1::Mis\xE9rables\n2::Caf\xC3\xA9\n", "::", false, true, 2),
            ["2: 1/Misérables", "3: 2/Café"]
        );
    }
}
