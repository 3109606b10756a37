//! `ingest_interactions`: who acted on what and when, from the files that people have.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, AsArray, Float32Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder, UInt64Builder,
};
use arrow::datatypes::{DataType, Float64Type, Int64Type, Schema, TimeUnit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{BLOCKS, Binding, Bound, Context, Distribution, Notes, OUT, Operator, Source};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::formats::columns::{Wanted, fits, pick};
use crate::formats::files::{self, Block, Layout};
use crate::formats::json::{self, Scalar};
use crate::formats::sniff::{Sniffed, numeric, sniff};
use crate::formats::values::{self, TimestampUnit};
use crate::formats::{OnError, Paths, REJECTS, Rejects, conclude, delimited, rejects, rows};
use crate::schema;

/// Reads interactions from files.
///
/// # In
/// Files, plain or gzip (also of several members), by format:
/// - `amazon_2014`: reviews, a JSON object or Python dict on each line (`reviewerID, asin, overall, unixReviewTime`);
/// - `amazon_2018`: the same fields as JSON lines;
/// - `amazon_2023`: JSON lines (`user_id, parent_asin, rating, timestamp`); `columns: { item_id: asin }` takes variants apart;
/// - `movielens`: `u.data` (tabs), `ratings.dat` (`::`), `ratings.csv`;
/// - `recbole`: atomic `.inter`, a header of `name:type`, tabs;
/// - `sequences`: `user item item ...` on each line (S3-Rec, P5), no times;
/// - `lcrec`: one JSON object `{"user": [items...]}` (LC-Rec, LETTER), no times;
/// - `jsonl`, `csv`, `tsv`, `parquet`: any columns, by `columns` or by well-known names.
///
/// `auto` tells by the first line that is not blank: Parquet's magic bytes; an object with `reviewerID`
/// (`amazon_2014` if it is a Python dict, else `amazon_2018`), with `parent_asin` and `user_id` (`amazon_2023`), with other names (`jsonl`);
/// one object of lists (`lcrec`); `::` or four numbers apart by tabs (`movielens`); a tab and `:token` (`recbole`); a header that names
/// a user and an item (`tsv`, `csv`); else words apart by blanks (`sequences`). Anything else must be named.
///
/// # Out
/// - `out`: interactions, a row for each, in order of file and line; `position` is `file index << 40 | line`, for `sequences` and
///   `lcrec` `file index << 40 | line (or entry) << 16 | place in the sequence`, all but the file index from 1.
/// - `rejects`: `file, line, reason, text` of malformed rows under `on_error: skip`.
///
/// A row is malformed if it has no user or item, no readable time where the file has times, a rating that is no
/// finite number, another number of cells than the header, or bytes that are no UTF-8 (MovieLens: Latin-1).
/// Blank lines are passed over; blanks around cells are dropped; a byte order mark and CRLF are fine.
/// CSV and TSV cells may be quoted; MovieLens and RecBole take quotes as they are.
///
/// # Source
/// McAuley's Amazon reviews (2014, 2018, 2023), GroupLens, RecBole's atomic files, S3-Rec, LC-Rec.
///
/// # Deviates
/// Nothing is dropped or ordered here: exact duplicates stay in.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IngestInteractions {
    /// A file, or a list of files that are read in this order.
    #[schemars(extend("x-required" = true))]
    pub path: Paths,
    /// Format of the files; `auto` tells it for each file by its first line.
    pub format: InteractionsFormat,
    /// What the columns (or JSON fields) are called; without a header they are called `1`, `2`, ...
    pub columns: InteractionColumns,
    /// What separates cells, if it is not what the format says.
    pub delimiter: String,
    /// Whether the first line of csv and tsv names the columns. Without: user, item, rating, time.
    pub header: bool,
    /// Unit of numeric times; `auto` takes numbers below 100,000,000,000 for seconds, larger ones for milliseconds.
    pub timestamp_unit: TimestampUnit,
    /// What to do with malformed rows.
    pub on_error: OnError,
    /// How many malformed rows `on_error: skip` bears before the stage fails.
    pub max_errors: u64,
}

/// What a file of interactions is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum InteractionsFormat {
    #[default]
    Auto,
    #[serde(rename = "amazon_2014")]
    Amazon2014,
    #[serde(rename = "amazon_2018")]
    Amazon2018,
    #[serde(rename = "amazon_2023")]
    Amazon2023,
    Movielens,
    Recbole,
    Sequences,
    Lcrec,
    Jsonl,
    Csv,
    Tsv,
    Parquet,
}

use InteractionsFormat as Format;

/// Names of columns; an empty one is found by its usual names.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InteractionColumns {
    /// Usual: user_id, userId, user, uid, reviewerID, reviewer_id, customer_id, visitorid.
    pub user_id: String,
    /// Usual: item_id, itemId, item, iid, parent_asin, asin, movieId, movie_id, product_id.
    pub item_id: String,
    /// Usual: timestamp, time, ts, unixReviewTime, datetime, date. A file may have none.
    pub timestamp: String,
    /// Usual: rating, overall, stars, score. A file may have none.
    pub rating: String,
}

impl Default for IngestInteractions {
    fn default() -> Self {
        IngestInteractions {
            path: Paths::default(),
            format: Format::Auto,
            columns: InteractionColumns::default(),
            delimiter: String::new(),
            header: true,
            timestamp_unit: TimestampUnit::Auto,
            on_error: OnError::Fail,
            max_errors: 100,
        }
    }
}

impl Operator for IngestInteractions {
    const NAME: &'static str = "ingest_interactions";
    const VERSION: u32 = 1;

    fn bind(&self, binding: &Binding) -> Bound {
        let mut files = Vec::new();
        for name in self.path.names() {
            let path = binding.existing("path", name);
            if path.is_file() {
                if let Err(error) = self.layout(&path, name) {
                    let field = if error.code == "missing-column" {
                        "columns"
                    } else {
                        "path"
                    };
                    binding.problem(field, error);
                }
                files.push(path);
            } else if path.is_dir() && !name.is_empty() {
                binding.bad_value("path", format!("\"{name}\" is a folder: name its files"));
            }
        }
        if self.path.names().is_empty() {
            binding.bad_value("path", "\"path\" names no file");
        }
        if self.delimiter == "\"" || self.delimiter.contains('\n') {
            binding.bad_value("delimiter", "a quote or a line end cannot separate cells");
        }
        Bound::new(Distribution::Source)
            .out(Shape::table(schema::interactions()))
            .output(REJECTS, Shape::table(rejects()))
            .files(files)
    }

    fn splits(&self, _context: &Context) -> Result<usize> {
        Ok(self.path.names().len())
    }

    fn open(&self, context: &Context, split: usize) -> Result<Box<dyn Source>> {
        let name = self.name(split)?;
        let path = context.path(name);
        files::source(&path, name, split as u32, &self.layout(&path, name)?)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        context.check_cancelled()?;
        let block = Block::decode(inputs.batch(BLOCKS)?)?;
        let name = self.name(block.file as usize)?;
        let mut sink = Sink::new(&block, Rejects::new(self.on_error, name));
        match &block.layout {
            Layout::Delimited { picks, .. } => self.read_cells(&block, picks, &mut sink)?,
            Layout::JsonLines(names) => self.read_json(&block, names, &mut sink)?,
            Layout::Sequences => read_sequences(&block, &mut sink)?,
            Layout::JsonObject => read_object(&block, name, &mut sink)?,
            Layout::Parquet(picks) => self.read_parquet(context, &block, name, picks, &mut sink)?,
        }
        sink.finish()
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        conclude(outputs, self.max_errors, None)
    }
}

impl IngestInteractions {
    fn name(&self, file: usize) -> Result<&str> {
        let names = self.path.names();
        names
            .get(file)
            .copied()
            .ok_or_else(|| Error::internal(format!("no file {file}")))
    }

    fn wanted(&self, format: Format) -> [Wanted<'_>; 4] {
        type Names = &'static [&'static str];
        let (user, item, time, rating): (Names, Names, Names, Names) = match format {
            Format::Amazon2014 | Format::Amazon2018 => (&["reviewerID"], &["asin"], &["unixReviewTime"], &["overall"]),
            Format::Amazon2023 => (&["user_id"], &["parent_asin"], &["timestamp"], &["rating"]),
            _ => (
                &[
                    "user_id",
                    "userId",
                    "user",
                    "uid",
                    "reviewerID",
                    "reviewer_id",
                    "customer_id",
                    "visitorid",
                ],
                &[
                    "item_id",
                    "itemId",
                    "item",
                    "iid",
                    "parent_asin",
                    "asin",
                    "movieId",
                    "movie_id",
                    "product_id",
                ],
                &["timestamp", "time", "ts", "unixReviewTime", "datetime", "date"],
                &["rating", "overall", "stars", "score"],
            ),
        };
        let column = |name, given, aliases, required| Wanted {
            name,
            given,
            aliases,
            required,
        };
        [
            column("user_id", self.columns.user_id.as_str(), user, true),
            column("item_id", &self.columns.item_id, item, true),
            column("timestamp", &self.columns.timestamp, time, false),
            column("rating", &self.columns.rating, rating, false),
        ]
    }

    /// Tells the format of a file and finds its columns.
    fn layout(&self, path: &std::path::Path, name: &str) -> Result<Layout> {
        let head = files::head(path, name)?;
        let sniffed = sniff(&head);
        let format = match self.format {
            Format::Auto => self.detect(&sniffed).ok_or_else(|| {
                let first = String::from_utf8_lossy(&head);
                let first: String = first.lines().next().unwrap_or_default().chars().take(80).collect();
                Error::data(
                    "wrong-format",
                    format!("cannot tell the format of \"{name}\" by its first line: {first}"),
                )
                .hint("name it: \"format: csv\" (or tsv, jsonl, ...); \"columns\" maps columns of other names")
            })?,
            format => format,
        };
        let wanted = self.wanted(format);
        let wrong = |wants: &str| {
            Error::data("wrong-format", format!("\"{name}\" is not {wants}"))
                .hint("\"format: auto\" tells the format by the first line")
        };
        Ok(match format {
            Format::Amazon2014 | Format::Amazon2018 | Format::Amazon2023 | Format::Jsonl => {
                let Sniffed::Lines(keys, _) = &sniffed else {
                    return Err(wrong("a JSON object on each line"));
                };
                if !keys.is_empty() && !fits(&wanted[..2], keys) {
                    pick(name, &wanted, keys)?;
                }
                Layout::JsonLines(wanted.iter().map(Wanted::names).collect())
            }
            Format::Sequences => match sniffed {
                Sniffed::Words => Layout::Sequences,
                _ => return Err(wrong("\"user item item ...\" on each line")),
            },
            Format::Lcrec => match sniffed {
                Sniffed::Object | Sniffed::Lines(..) => Layout::JsonObject,
                _ => return Err(wrong("one JSON object of lists")),
            },
            Format::Parquet => match sniffed {
                Sniffed::Parquet => {
                    let reader = files::parquet_reader(path, name)?;
                    let there: Vec<String> = reader
                        .schema()
                        .fields()
                        .iter()
                        .map(|field| field.name().clone())
                        .collect();
                    Layout::Parquet(pick(name, &wanted, &there)?)
                }
                _ => return Err(wrong("Parquet")),
            },
            _ => {
                let found = match &sniffed {
                    Sniffed::Cells(delimiter, _) => delimiter.as_str(),
                    Sniffed::Words | Sniffed::Unknown => "",
                    _ => return Err(wrong("delimited text")),
                };
                let delimiter = match format {
                    _ if !self.delimiter.is_empty() => &self.delimiter,
                    Format::Csv => ",",
                    Format::Movielens => found,
                    _ => "\t",
                };
                if delimiter.is_empty() {
                    return Err(wrong("delimited text"));
                }
                let quoted = matches!(format, Format::Csv | Format::Tsv) && delimiter.len() == 1
                    || format == Format::Movielens && delimiter == ",";
                let first = delimited::first_row(&head, delimiter, quoted);
                let header = match format {
                    Format::Movielens => !numeric(&first),
                    Format::Csv | Format::Tsv => self.header,
                    _ => true,
                };
                let picks = match header {
                    true => pick(name, &wanted, &first)?,
                    false => self.numbered(name, &wanted, &first)?,
                };
                Layout::Delimited {
                    delimiter: delimiter.to_string(),
                    quoted,
                    latin1: format == Format::Movielens && delimiter != ",",
                    header,
                    width: first.len(),
                    picks,
                }
            }
        })
    }

    /// Columns of a file without header: by number, by default user, item, rating, time.
    fn numbered(&self, name: &str, wanted: &[Wanted], first: &[String]) -> Result<Vec<Option<usize>>> {
        const USUAL: [&[&str]; 4] = [&["1"], &["2"], &["4"], &["3"]];
        let numbered: Vec<Wanted> = wanted
            .iter()
            .zip(USUAL)
            .map(|(column, aliases)| Wanted { aliases, ..*column })
            .collect();
        let there: Vec<String> = (1..=first.len()).map(|number| number.to_string()).collect();
        pick(name, &numbered, &there)
    }

    fn detect(&self, sniffed: &Sniffed) -> Option<Format> {
        let has = |names: &[String], name: &str| names.iter().any(|there| there == name);
        let wanted = &self.wanted(Format::Auto)[..2];
        let named = !self.header || self.wanted(Format::Auto).iter().any(|column| !column.given.is_empty());
        Some(match sniffed {
            Sniffed::Parquet => Format::Parquet,
            Sniffed::Object => Format::Lcrec,
            Sniffed::Words => Format::Sequences,
            Sniffed::Lines(keys, python) => match () {
                () if has(keys, "reviewerID") && *python => Format::Amazon2014,
                () if has(keys, "reviewerID") => Format::Amazon2018,
                () if has(keys, "parent_asin") && has(keys, "user_id") => Format::Amazon2023,
                () => Format::Jsonl,
            },
            Sniffed::Cells(delimiter, first) => match delimiter.as_str() {
                "::" => Format::Movielens,
                "\t" if first.iter().any(|cell| cell.contains(":token")) => Format::Recbole,
                "\t" if named || fits(wanted, first) => Format::Tsv,
                "\t" if first.len() == 4 && numeric(first) => Format::Movielens,
                "," if named || fits(wanted, first) => Format::Csv,
                _ if !self.delimiter.is_empty() => Format::Csv,
                _ => return None,
            },
            Sniffed::Unknown => return None,
        })
    }

    fn read_cells(&self, block: &Block, picks: &[Option<usize>], sink: &mut Sink) -> Result<()> {
        let (user, item) = (picks[0].unwrap_or_default(), picks[1].unwrap_or_default());
        delimited::records(block.bytes(), block.line, &block.layout, |line, text, cells| {
            let row = cells.and_then(|cells| {
                let time = picks[2]
                    .map(|at| values::time(cells[at], self.timestamp_unit))
                    .transpose()?;
                let rating = picks[3].map_or(Ok(None), |at| values::rating(cells[at]))?;
                sink.push(line, cells[user], cells[item], time, rating)
            });
            row.or_else(|reason| sink.rejects.add(line, &reason, text))
        })
    }

    fn read_json(&self, block: &Block, names: &[Vec<String>], sink: &mut Sink) -> Result<()> {
        // the fields of the Amazon formats are always there; of others a time may be missing
        let timed = names[2].len() == 1;
        rows::lines(block.bytes(), block.line, |line, text| {
            let text = match text {
                Ok(text) => text,
                Err(shown) => return sink.rejects.add(line, "not UTF-8", &shown),
            };
            let row = json::fields::<Scalar>(text, names).and_then(|fields| {
                let id = |at: usize| {
                    let found = fields[at].as_ref().and_then(Scalar::id);
                    found.ok_or_else(|| format!("no {}", names[at].first().map_or("id", String::as_str)))
                };
                let time = match &fields[2] {
                    None if timed => return Err(format!("no {}", names[2][0])),
                    None => None,
                    Some(Scalar::Integer(number)) => Some(values::integer_time(*number, self.timestamp_unit)?),
                    Some(Scalar::Float(number)) => Some(values::float_time(*number, self.timestamp_unit)?),
                    Some(Scalar::Text(text)) => Some(values::time(text.trim(), self.timestamp_unit)?),
                    Some(_) => return Err("bad timestamp".to_string()),
                };
                let rating = match &fields[3] {
                    None => None,
                    Some(Scalar::Integer(number)) => Some(*number as f32),
                    Some(Scalar::Float(number)) => Some(*number as f32),
                    Some(Scalar::Text(text)) => values::rating(text.trim())?,
                    Some(_) => return Err("bad rating".to_string()),
                };
                sink.push(line, &id(0)?, &id(1)?, time, rating)
            });
            row.or_else(|reason| sink.rejects.add(line, &reason, text))
        })
    }

    fn read_parquet(
        &self,
        context: &Context,
        block: &Block,
        name: &str,
        picks: &[Option<usize>],
        sink: &mut Sink,
    ) -> Result<()> {
        let columns = crate::formats::columns::row_group(&context.path(name), name, block, picks)?;
        let mut row_number = block.line;
        for columns in columns {
            let rows = columns[0].as_ref().map_or(0, |column| column.len());
            let text = |at: usize| {
                columns[at]
                    .as_ref()
                    .map(|column| arrow::compute::cast(column, &DataType::Utf8))
                    .transpose()
            };
            let (users, items, ratings) = (text(0)?, text(1)?, text(3)?);
            let times = columns[2].as_ref().map(|column| self.times(column)).transpose()?;
            let cell = |column: &Option<arrow::array::ArrayRef>, row: usize| match column {
                Some(column) if column.is_valid(row) => column.as_string::<i32>().value(row).trim().to_string(),
                _ => String::new(),
            };
            for row in 0..rows {
                let (user, item) = (cell(&users, row), cell(&items, row));
                let time = times.as_ref().map(|times| times[row].clone()).transpose();
                let pushed = time.and_then(|time| {
                    let rating = values::rating(&cell(&ratings, row))?;
                    sink.push(row_number, &user, &item, time, rating)
                });
                if let Err(reason) = pushed {
                    sink.rejects
                        .add(row_number, &reason, &format!("user_id {user}, item_id {item}"))?;
                }
                row_number += 1;
            }
        }
        Ok(())
    }

    /// Times of a Parquet column: temporal types as they are, numbers by unit, text as in a cell.
    fn times(&self, column: &dyn Array) -> Result<Vec<Result<i64, String>>> {
        let missing = || Err("no timestamp".to_string());
        let unit = self.timestamp_unit;
        // what a stored time is in milliseconds: times the first, by the second
        let stored = match column.data_type() {
            DataType::Timestamp(TimeUnit::Second, _) => Some((1000, 1)),
            DataType::Timestamp(TimeUnit::Millisecond, _) | DataType::Date64 => Some((1, 1)),
            DataType::Timestamp(TimeUnit::Microsecond, _) => Some((1, 1000)),
            DataType::Timestamp(TimeUnit::Nanosecond, _) => Some((1, 1_000_000)),
            DataType::Date32 => Some((86_400_000, 1)),
            _ => None,
        };
        let kind = match column.data_type() {
            DataType::Date32 => DataType::Int32,
            kind if stored.is_some() || kind.is_integer() => DataType::Int64,
            kind if kind.is_floating() => DataType::Float64,
            _ => DataType::Utf8,
        };
        let mut column = arrow::compute::cast(column, &kind)?;
        if kind == DataType::Int32 {
            column = arrow::compute::cast(&column, &DataType::Int64)?;
        }
        let number = |time: i64| match stored {
            Some((times, by)) => Ok(time.saturating_mul(times).div_euclid(by)),
            None => values::integer_time(time, unit),
        };
        Ok(match kind {
            DataType::Float64 => column
                .as_primitive::<Float64Type>()
                .iter()
                .map(|time| time.map_or_else(missing, |time| values::float_time(time, unit)))
                .collect(),
            DataType::Utf8 => column
                .as_string::<i32>()
                .iter()
                .map(|time| time.map_or_else(missing, |time| values::time(time.trim(), unit)))
                .collect(),
            _ => column
                .as_primitive::<Int64Type>()
                .iter()
                .map(|time| time.map_or_else(missing, number))
                .collect(),
        })
    }
}

/// `user item item ...`
fn read_sequences(block: &Block, sink: &mut Sink) -> Result<()> {
    rows::lines(block.bytes(), block.line, |line, text| {
        let text = match text {
            Ok(text) => text,
            Err(shown) => return sink.rejects.add(line, "not UTF-8", &shown),
        };
        let mut words = text.split_ascii_whitespace();
        let user = words.next().unwrap_or_default();
        let items: Vec<&str> = words.collect();
        sink.push_sequence(line, user, &items)
            .or_else(|reason| sink.rejects.add(line, &reason, text))
    })
}

/// `{"user": [items...]}`
fn read_object(block: &Block, name: &str, sink: &mut Sink) -> Result<()> {
    let text = std::str::from_utf8(block.bytes())
        .map_err(|_| Error::data("wrong-format", format!("\"{name}\" is not UTF-8")))?;
    json::entries(text, &mut |entry, user, value| {
        let items: Option<Vec<String>> = value.as_array().map_or(Some(Vec::new()), |items| {
            items
                .iter()
                .map(|item| Scalar::from(item.clone()).id().map(|id| id.into_owned()))
                .collect()
        });
        let row = match items {
            None => Err("an item that is no id".to_string()),
            Some(items) => sink.push_sequence(entry, user.trim(), &items),
        };
        row.or_else(|reason| {
            sink.rejects
                .add(entry, &format!("user \"{user}\": {reason}"), &value.to_string())
        })
    })
    .map_err(|error| Error {
        message: format!("\"{name}\": {}", error.message),
        ..error
    })
}

/// Rows of one block.
struct Sink {
    users: StringBuilder,
    items: StringBuilder,
    times: TimestampMillisecondBuilder,
    ratings: Float32Builder,
    positions: UInt64Builder,
    file: u64,
    rejects: Rejects,
}

impl Sink {
    fn new(block: &Block, rejects: Rejects) -> Self {
        Sink {
            users: StringBuilder::new(),
            items: StringBuilder::new(),
            times: TimestampMillisecondBuilder::new().with_timezone("UTC"),
            ratings: Float32Builder::new(),
            positions: UInt64Builder::new(),
            file: u64::from(block.file) << 40,
            rejects,
        }
    }

    fn push(
        &mut self,
        line: u64,
        user: &str,
        item: &str,
        time: Option<i64>,
        rating: Option<f32>,
    ) -> Result<(), String> {
        if user.is_empty() {
            return Err("no user_id".to_string());
        }
        if item.is_empty() {
            return Err("no item_id".to_string());
        }
        if rating.is_some_and(|rating| !rating.is_finite()) {
            return Err("bad rating".to_string());
        }
        self.users.append_value(user);
        self.items.append_value(item);
        self.times.append_option(time);
        self.ratings.append_option(rating);
        self.positions.append_value(self.file | line);
        Ok(())
    }

    fn push_sequence(&mut self, line: u64, user: &str, items: &[impl AsRef<str>]) -> Result<(), String> {
        if items.is_empty() {
            return Err("a user without items".to_string());
        }
        if line >= 1 << 24 || items.len() >= 1 << 16 {
            return Err("more than 16,777,215 users or 65,535 items of a user".to_string());
        }
        if user.is_empty() || items.iter().any(|item| item.as_ref().is_empty()) {
            return Err("an empty id".to_string());
        }
        for (place, item) in (1u64..).zip(items) {
            self.push(line << 16 | place, user, item.as_ref(), None, None)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Tables> {
        let batch = RecordBatch::try_new(
            Arc::new(Schema::new(schema::interactions())),
            vec![
                Arc::new(self.users.finish()),
                Arc::new(self.items.finish()),
                Arc::new(self.times.finish()),
                Arc::new(self.ratings.finish()),
                Arc::new(self.positions.finish()),
            ],
        )?;
        Ok(Tables::new()
            .with(OUT, Table::new(batch))
            .with(REJECTS, Table::new(self.rejects.batch()?)))
    }
}

#[cfg(test)]
mod tests;
