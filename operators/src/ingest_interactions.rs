//! `ingest_interactions`: who acted on what and when, from the files that people have.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{BLOCKS, Binding, Bound, Context, Distribution, Notes, Operator, Source};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

use crate::formats::columns::{self, Wanted, fits, pick};
use crate::formats::files::{self, Block, Layout};
use crate::formats::sniff::{Sniffed, all_keys, numeric, refuse_array, sniff, undetected};
use crate::formats::values::TimestampUnit;
use crate::formats::{OnError, Paths, REJECTS, Rejects, conclude, delimited, interaction, rejects};
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
/// a user and an item (`tsv`, `csv`); else words apart by blanks (`sequences`). A `delimiter` that is not the one found means `csv`.
/// Anything else must be named.
///
/// # Out
/// - `out`: interactions, a row for each, in order of file and line; `position` is `file index << 40 | line`, for `sequences` and
///   `lcrec` `file index << 40 | line (or entry) << 16 | place in the sequence`, all but the file index from 1.
/// - `rejects`: `file, line, reason, text` of malformed rows under `on_error: skip`.
///
/// A row is malformed if it has no user or item, no readable time where the file has times, a rating that is no
/// finite number, another number of cells than the header, or bytes that are no UTF-8 (MovieLens: Latin-1).
/// JSON lines have times if the first object has one, or if the column is named. Names are found in any case.
/// An id is a text or a whole number: `10.0` of JSON and Parquet is `10`.
/// Blank lines are passed over; blanks around cells are dropped; a byte order mark and CRLF are fine.
/// CSV and TSV cells may be quoted (see `quotes`); MovieLens and RecBole take quotes as they are.
/// A quote that is never closed is an error, whatever `on_error` says.
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
    /// Whether cells of csv and tsv may be quoted; `false` takes quotes as they are.
    pub quotes: bool,
    /// Whether the first line of csv and tsv names the columns. Without: user, item, rating, time.
    pub header: bool,
    /// Unit of numeric times; `auto` takes numbers below 100,000,000,000 for seconds, larger ones for milliseconds.
    pub timestamp_unit: TimestampUnit,
    /// Add the column `record`, the hash of the whole source line (null in formats that are not lines), so that
    /// `dedup: { by: [record] }` drops records that repeat another to the letter.
    pub record_hash: bool,
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

/// Names of columns, or their numbers where a file has no header; an empty one is found by its usual names.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct InteractionColumns {
    /// Usual: user_id, userId, user, uid, reviewerID, reviewer_id, customer_id, visitorid.
    #[serde(deserialize_with = "columns::name_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub user_id: String,
    /// Usual: item_id, itemId, item, iid, parent_asin, asin, movieId, movie_id, product_id.
    #[serde(deserialize_with = "columns::name_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub item_id: String,
    /// Usual: timestamp, time, ts, unixReviewTime, datetime, date. A file may have none.
    #[serde(deserialize_with = "columns::name_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub timestamp: String,
    /// Usual: rating, overall, stars, score. A file may have none.
    #[serde(deserialize_with = "columns::name_or_number")]
    #[schemars(extend("type" = ["string", "integer"]))]
    pub rating: String,
}

impl Default for IngestInteractions {
    fn default() -> Self {
        IngestInteractions {
            path: Paths::default(),
            format: Format::Auto,
            columns: InteractionColumns::default(),
            delimiter: String::new(),
            quotes: true,
            header: true,
            timestamp_unit: TimestampUnit::Auto,
            record_hash: false,
            on_error: OnError::Fail,
            max_errors: 100,
        }
    }
}

impl Operator for IngestInteractions {
    const NAME: &'static str = "ingest_interactions";
    const VERSION: u32 = 2;

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
        let mut fields = schema::interactions();
        if self.record_hash {
            fields.push(schema::record());
        }
        Bound::new(Distribution::Source)
            .out(Shape::table(fields))
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
        let rejects = Rejects::new(self.on_error, name);
        let (path, unit) = (context.path(name), self.timestamp_unit);
        interaction::read(&block, &path, name, unit, self.record_hash, rejects)
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
        if !matches!(self.format, Format::Csv | Format::Tsv) {
            refuse_array(name, &head)?;
        }
        let sniffed = sniff(&head);
        let format = match self.format {
            Format::Auto => self.detect(&sniffed).ok_or_else(|| undetected(name, &head))?,
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
                if pick(name, &wanted, keys).is_err() {
                    let keys = all_keys(&head);
                    if !keys.is_empty() {
                        pick(name, &wanted, &keys)?;
                    }
                }
                let [_, _, time, _] = &wanted;
                Layout::JsonLines {
                    names: wanted.iter().map(Wanted::names).collect(),
                    timed: format != Format::Jsonl || !time.given.is_empty() || columns::has(time, keys),
                }
            }
            Format::Sequences => match &sniffed {
                Sniffed::Words => Layout::Sequences,
                Sniffed::Cells(delimiter, _) if delimiter == "\t" => Layout::Sequences,
                _ => {
                    return Err(wrong("\"user item item ...\" on each line")
                        .hint("a user and its items are apart by blanks or tabs; is it csv?"));
                }
            },
            Format::Lcrec => match sniffed {
                Sniffed::Object | Sniffed::Lines(..) => Layout::JsonObject,
                _ => return Err(wrong("one JSON object of lists")),
            },
            Format::Parquet => match sniffed {
                Sniffed::Parquet => Layout::Parquet(columns::parquet(path, name, &wanted)?),
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
                let quoted = self.quotes
                    && match format {
                        Format::Csv | Format::Tsv => delimiter.len() == 1,
                        format => format == Format::Movielens && delimiter == ",",
                    };
                let first = delimited::first_row(&head, delimiter, quoted);
                let header = match format {
                    Format::Movielens => !numeric(&first),
                    Format::Csv | Format::Tsv => self.header,
                    _ => true,
                };
                let picks = match header {
                    true => pick(name, &wanted, &first).map_err(|error| {
                        let nameless = matches!(format, Format::Csv | Format::Tsv)
                            && !wanted.iter().any(|column| columns::has(column, &first));
                        let hint = error.hint.as_ref().filter(|_| nameless);
                        match hint.map(|hint| format!("{hint}, or set \"header: false\" if the first line is a row")) {
                            Some(hint) => error.hint(hint),
                            None => error,
                        }
                    })?,
                    false => self.numbered(name, &wanted, &first)?,
                };
                Layout::Delimited {
                    delimiter: delimiter.to_string(),
                    quoted,
                    latin1: format == Format::Movielens && delimiter != ",",
                    header,
                    blanks: false,
                    width: first.len(),
                    picks,
                }
            }
        })
    }

    /// Columns of a file without header: by number, by default user, item, rating, time; none is taken twice.
    fn numbered(&self, name: &str, wanted: &[Wanted], first: &[String]) -> Result<Vec<Option<usize>>> {
        const USUAL: [&[&str]; 4] = [&["1"], &["2"], &["4"], &["3"]];
        let numbered: Vec<Wanted> = wanted
            .iter()
            .zip(USUAL)
            .map(|(column, aliases)| {
                let taken = wanted.iter().any(|other| aliases.contains(&other.given));
                Wanted {
                    aliases: if taken { &[] } else { aliases },
                    ..*column
                }
            })
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
            Sniffed::Cells(found, _) if !self.delimiter.is_empty() && *found != self.delimiter => Format::Csv,
            Sniffed::Words | Sniffed::Unknown if !self.delimiter.is_empty() => Format::Csv,
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
}

#[cfg(test)]
mod tests;
