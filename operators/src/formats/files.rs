//! Files as blocks: plain or gzip, cut into whole lines, whole documents, or row groups.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{AsArray, LargeBinaryArray, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, UInt32Type, UInt64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::Source;
use sluice_engine::{Error, Place, Result};

/// Bytes of text in a block, up to the end of its last line. Fixed, so that blocks are the same in every run.
pub const BLOCK_BYTES: usize = 2 << 20;

/// The longest line (or quoted record) that is still believed to be one.
const LONGEST_LINE: usize = 64 << 20;

/// How much of a file is looked at to tell what it is.
const HEAD_BYTES: u64 = 256 << 10;

/// How a file is laid out, with the wanted columns resolved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Cells apart by a delimiter.
    Delimited {
        /// One or more characters.
        delimiter: String,
        /// Whether cells may be quoted as RFC 4180 has it.
        quoted: bool,
        /// Whether lines that are no UTF-8 are Latin-1.
        latin1: bool,
        /// Whether the first line names the columns.
        header: bool,
        /// Whether the names of a list in a cell are apart by blanks, as RecBole has them.
        blanks: bool,
        /// Number of cells in a row.
        width: usize,
        /// Where the wanted columns are.
        picks: Vec<Option<usize>>,
    },
    /// A JSON object or a Python dict literal on each line.
    JsonLines {
        /// The names to look for, by wanted column.
        names: Vec<Vec<String>>,
        /// Whether a row must have a time.
        timed: bool,
    },
    /// One JSON object from ids to values.
    JsonObject,
    /// A user and its items on each line, apart by blanks.
    Sequences,
    /// Parquet, and where the wanted columns are.
    Parquet(Vec<Option<usize>>),
}

/// A piece of a file on its way to `run`.
pub struct Block {
    /// Index of the file.
    pub file: u32,
    /// Number of the first line (or row), from 1.
    pub line: u64,
    /// How to read the bytes.
    pub layout: Layout,
    /// The batch that holds the bytes.
    batch: RecordBatch,
}

impl Block {
    /// The block in a batch that [`Source::next`] made.
    pub fn decode(batch: RecordBatch) -> Result<Self> {
        let layout: Layout = serde_json::from_str(batch.column(2).as_string::<i32>().value(0))
            .map_err(|error| Error::internal(format!("a block without a layout: {error}")))?;
        Ok(Block {
            file: batch.column(0).as_primitive::<UInt32Type>().value(0),
            line: batch.column(1).as_primitive::<UInt64Type>().value(0),
            layout,
            batch,
        })
    }

    /// The bytes; for Parquet the index of the row group, little-endian.
    pub fn bytes(&self) -> &[u8] {
        self.batch.column(3).as_binary::<i64>().value(0)
    }

    fn encode(file: u32, line: u64, layout: &str, bytes: Vec<u8>) -> Result<RecordBatch> {
        let schema = Schema::new(vec![
            Field::new("file", DataType::UInt32, false),
            Field::new("line", DataType::UInt64, false),
            Field::new("layout", DataType::Utf8, false),
            Field::new("bytes", DataType::LargeBinary, false),
        ]);
        // The bytes are taken over, not copied.
        let offsets = OffsetBuffer::from_lengths([bytes.len()]);
        Ok(RecordBatch::try_new(
            Arc::new(schema),
            vec![
                Arc::new(UInt32Array::from(vec![file])),
                Arc::new(UInt64Array::from(vec![line])),
                Arc::new(StringArray::from(vec![layout])),
                Arc::new(LargeBinaryArray::try_new(offsets, bytes.into(), None)?),
            ],
        )?)
    }
}

/// The beginning of a file, unzipped and without a byte order mark. Refuses empty files and archives.
pub fn head(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = open(path)?.take(HEAD_BYTES).read_to_end(&mut bytes);
    if let Err(error) = read
        && bytes.is_empty()
    {
        return Err(unreadable(name, &error, 0));
    }
    let archive = match bytes.as_slice() {
        [b'P', b'K', 3, 4, ..] => Some("a zip archive"),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Some("compressed with zstd"),
        [b'B', b'Z', b'h', ..] => Some("compressed with bzip2"),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => Some("compressed with xz"),
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16 text"),
        _ => None,
    };
    if let Some(what) = archive {
        return Err(Error::data("wrong-format", format!("\"{name}\" is {what}"))
            .hint("unpack or convert it first: plain or gzip files of UTF-8 text, and Parquet, can be read"));
    }
    if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) {
        bytes.drain(..3);
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::data("empty-file", format!("\"{name}\" is empty"))
            .hint("was the download cut short, or is it another file?"));
    }
    Ok(bytes)
}

/// All of a file, unzipped and without a byte order mark.
pub fn whole(path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(name, &error, memchr::memchr_iter(b'\n', &bytes).count() as u64))?;
    if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) {
        bytes.drain(..3);
    }
    Ok(bytes)
}

/// Blocks of a file in order.
pub fn source(path: &Path, name: &str, file: u32, layout: &Layout) -> Result<Box<dyn Source>> {
    let text = serde_json::to_string(layout).map_err(|error| Error::internal(error.to_string()))?;
    Ok(match layout {
        Layout::JsonObject => Box::new(Once(Some(Block::encode(file, 1, &text, whole(path, name)?)?))),
        Layout::Parquet(_) => Box::new(RowGroups {
            file,
            layout: text,
            rows: parquet_reader(path, name)?
                .metadata()
                .row_groups()
                .iter()
                .map(|group| group.num_rows() as u64)
                .collect(),
            group: 0,
            line: 1,
        }),
        _ => Box::new(LineBlocks {
            name: name.to_string(),
            file,
            layout: text,
            quoted: match layout {
                Layout::Delimited {
                    quoted: true,
                    delimiter,
                    ..
                } => delimiter.bytes().next(),
                _ => None,
            },
            reader: open(path)?,
            rest: Vec::new(),
            line: 1,
            started: false,
            ended: false,
        }),
    })
}

/// Opens a Parquet file.
pub fn parquet_reader(path: &Path, name: &str) -> Result<ParquetRecordBatchReaderBuilder<File>> {
    let file = File::open(path).map_err(|error| Error::io("read", path, &error))?;
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged_parquet(name, &error))
}

/// A Parquet file that does not read.
pub fn damaged_parquet(name: &str, error: &dyn std::fmt::Display) -> Error {
    Error::data("damaged-file", format!("cannot read \"{name}\" as Parquet: {error}"))
        .hint("is the file complete? download or write it again")
}

/// Opens a plain or gzip file (any number of members).
fn open(path: &Path) -> Result<Box<dyn Read + Send>> {
    let io = |error: std::io::Error| Error::io("read", path, &error);
    let mut file = File::open(path).map_err(io)?;
    let mut magic = Vec::new();
    file.by_ref().take(2).read_to_end(&mut magic).map_err(io)?;
    let again = std::io::Cursor::new(magic.clone()).chain(file);
    Ok(if magic == [0x1F, 0x8B] {
        Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(
            256 << 10,
            again,
        )))
    } else {
        Box::new(again)
    })
}

fn unreadable(name: &str, error: &std::io::Error, lines: u64) -> Error {
    let (code, what) = match error.kind() {
        std::io::ErrorKind::UnexpectedEof => ("truncated-file", "ends in the middle of its gzip stream".to_string()),
        std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData => {
            ("damaged-file", format!("is damaged: {error}"))
        }
        _ => return Error::device("io", format!("cannot read \"{name}\": {error}")),
    };
    Error::data(code, format!("\"{name}\" {what}"))
        .detail(format!("its last good line is {lines}"))
        .hint("the download was cut short or damaged: get the file again")
}

struct Once(Option<RecordBatch>);

impl Source for Once {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        Ok(self.0.take())
    }
}

struct RowGroups {
    file: u32,
    layout: String,
    rows: Vec<u64>,
    group: usize,
    line: u64,
}

impl Source for RowGroups {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(rows) = self.rows.get(self.group) else {
            return Ok(None);
        };
        let block = Block::encode(
            self.file,
            self.line,
            &self.layout,
            (self.group as u64).to_le_bytes().to_vec(),
        )?;
        self.group += 1;
        self.line += rows;
        Ok(Some(block))
    }
}

struct LineBlocks {
    name: String,
    file: u32,
    layout: String,
    quoted: Option<u8>,
    reader: Box<dyn Read + Send>,
    rest: Vec<u8>,
    line: u64,
    started: bool,
    ended: bool,
}

impl LineBlocks {
    /// A record that begins at `start` opens a quote that is not closed up to the end of `bytes`.
    fn open_quote(&self, bytes: &[u8], start: usize) -> Error {
        let message = match self.ended {
            true => "a quote is opened and never closed".to_string(),
            false => format!("a quote is opened and not closed within {} MiB", LONGEST_LINE >> 20),
        };
        let (before, record) = bytes.split_at(start);
        let line = record.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let place = Place {
            file: self.name.clone(),
            line: self.line + memchr::memchr_iter(b'\n', before).count() as u64,
            column: 0,
            width: 0,
            text: Some(super::shown(String::from_utf8_lossy(line).trim_end())),
        };
        Error::data("open-quote", message)
            .at(place)
            .hint("double it (\"\") or set \"quotes: false\"")
    }
}

impl Source for LineBlocks {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let mut bytes = std::mem::take(&mut self.rest);
        let mut wanted = BLOCK_BYTES;
        let cut = loop {
            if !self.ended && bytes.len() < wanted {
                let missing = (wanted - bytes.len()) as u64;
                match self.reader.by_ref().take(missing).read_to_end(&mut bytes) {
                    Ok(read) => self.ended = (read as u64) < missing,
                    Err(error) => {
                        let lines = self.line - 1 + memchr::memchr_iter(b'\n', &bytes).count() as u64;
                        return Err(unreadable(&self.name, &error, lines));
                    }
                }
            }
            if !self.started {
                self.started = true;
                if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) {
                    bytes.drain(..3);
                }
            }
            let (end, open) = last_record_end(&bytes, self.quoted);
            let too_long = end == 0 && 2 * wanted > LONGEST_LINE;
            if open && (self.ended || too_long) {
                return Err(self.open_quote(&bytes, end));
            }
            if self.ended {
                break bytes.len();
            }
            if end > 0 {
                break end;
            }
            wanted *= 2;
            if too_long {
                return Err(Error::data(
                    "wrong-format",
                    format!("a line is longer than {} MiB", LONGEST_LINE >> 20),
                )
                .at_line(&self.name, self.line)
                .hint("is it text at all, or is it one JSON document?"));
            }
        };
        if cut == 0 {
            return Ok(None);
        }
        self.rest = bytes.split_off(cut);
        let lines = memchr::memchr_iter(b'\n', &bytes).count() as u64;
        let block = Block::encode(self.file, self.line, &self.layout, bytes)?;
        self.line += lines;
        Ok(Some(block))
    }
}

/// Where the last whole record ends: after a newline that is not inside a quoted cell. And whether the record that
/// begins there is inside a quoted cell at the end of `bytes`.
fn last_record_end(bytes: &[u8], delimiter: Option<u8>) -> (usize, bool) {
    let Some(delimiter) = delimiter.filter(|_| memchr::memchr(b'"', bytes).is_some()) else {
        return (memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1), false);
    };
    let (mut end, mut inside, mut cell_start) = (0, false, true);
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if inside {
            if byte == b'"' {
                match bytes.get(at + 1) {
                    Some(b'"') => at += 1,
                    _ => inside = false,
                }
            }
            cell_start = false;
        } else if byte == b'"' && cell_start {
            inside = true;
        } else if byte == b'\n' {
            end = at + 1;
            cell_start = true;
        } else {
            cell_start = byte == delimiter;
        }
        at += 1;
    }
    (end, inside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_outside_quotes() {
        assert_eq!(last_record_end(b"a,b\nc", Some(b',')), (4, false));
        assert_eq!(last_record_end(b"a,\"b\nc\"\nd,e", Some(b',')), (8, false));
        assert_eq!(last_record_end(b"a,\"b\nc\"\nd,\"e\n", Some(b',')), (8, true));
        assert_eq!(
            last_record_end(b"a,5\" nail\nd,\"e\"\"\n\"\nx", Some(b',')),
            (19, false)
        );
        assert_eq!(last_record_end(b"a \"b\nc\"\nd", None), (8, false));
    }

    #[test]
    fn blocks_are_whole_lines_that_number_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        let line = "x".repeat(99) + "\n";
        std::fs::write(&path, line.repeat(50_000)).unwrap();
        let mut source = source(&path, "lines.txt", 3, &Layout::Sequences).unwrap();
        let mut expected = 1;
        while let Some(batch) = source.next().unwrap() {
            let block = Block::decode(batch).unwrap();
            assert_eq!((block.file, block.line), (3, expected));
            assert!(block.bytes().ends_with(b"\n"));
            expected += block.bytes().len() as u64 / 100;
        }
        assert_eq!(expected, 50_001);
    }
}
