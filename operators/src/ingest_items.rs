//! `ingest_items`: what the items are, from the files that people have, and their text as a model reads it.

use std::collections::{BTreeMap, HashMap};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::formats::columns::{self, Wanted, fits, pick};
use crate::formats::files::{self, Block, Layout};
use crate::formats::item::{Item, ItemRows, PLACEHOLDERS, Template};
use crate::formats::sniff::{Sniffed, all_keys, numeric, refuse_array, sniff, undetected};
use crate::formats::{OnError, Paths, REJECTS, Rejects, conclude, delimited, item, rejects};
use crate::schema;

/// How the reason of a duplicate at the port `rejects` begins, and what its count is called.
const DUPLICATES: &str = "duplicate item_id";

/// Reads items from files and writes the text of each.
///
/// # In
/// Files, plain or gzip, by format:
/// - `amazon_2014`: metadata, a Python dict (or JSON object) on each line (`asin, title, brand, categories, price, description`);
/// - `amazon_2018`: JSON lines (`asin, title, brand, category, price, description`);
/// - `amazon_2023`: JSON lines (`parent_asin, title, categories, price, description`, brand from `brand`, `details.Brand`, else `store`);
/// - `movielens`: `movies.csv`, `movies.dat` (`::`), `u.item` (`|`); genres become categories;
/// - `recbole`: atomic `.item`, a header of `name:type`; `token_seq` categories are apart by blanks;
/// - `lcrec`: one JSON object `{"item": {title, description, brand, categories}}` (LC-Rec, LETTER);
/// - `jsonl`, `csv`, `tsv`, `parquet`: any columns, by `columns` or by well-known names.
///
/// `auto` tells by the first line that is not blank, as in `ingest_interactions`.
///
/// # Out
/// - `out`: items in order of file and line, one for each `item_id`.
/// - `rejects`: `file, line, reason, text` of malformed rows under `on_error: skip`, and of duplicates under `duplicates: first`.
///
/// Rules: categories that come as several paths are put one after the other, each name once; in a cell they are a Python list, else
/// apart by `|` (LC-Rec: by `,`). A price is a number, `$1,299.00`, or the lower end of a range; `None`, `—` and the like are none.
/// Descriptions that are lists are joined by a blank. Empty strings and NaN are null. Names are found in any case.
/// A row without an id is malformed; an id is a text or a whole number: `10.0` of JSON and Parquet is `10`.
/// A quote that is never closed is an error, whatever `on_error` says.
///
/// # Source
/// McAuley's Amazon metadata (2014, 2018, 2023), GroupLens, RecBole, LC-Rec; the text template is GRID's.
///
/// # Deviates
/// GRID's template shows prices as they are in the file; here they are numbers as Python writes them (`25.0`).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IngestItems {
    /// A file, or a list of files that are read in this order.
    #[schemars(extend("x-required" = true))]
    pub path: Paths,
    /// Format of the files; `auto` tells it for each file by its first line.
    pub format: ItemsFormat,
    /// What the columns (or JSON fields) are called.
    pub columns: ItemColumns,
    /// What separates cells, if it is not what the format says.
    pub delimiter: String,
    /// Whether cells of csv and tsv may be quoted; `false` takes quotes as they are.
    pub quotes: bool,
    /// Whether `&amp;` and its like are replaced by what they stand for (once: `&amp;amp;` becomes `&amp;`).
    pub html_unescape: bool,
    /// The item's text: `{title}`, `{brand}`, `{categories}` (as a Python list), `{price}`, `{description}`, `{item_id}`.
    pub text_template: String,
    /// Stands for a missing brand in the text.
    pub missing_brand: String,
    /// Stands for a missing title, price or description in the text.
    pub missing_value: String,
    /// What to do when an item comes again.
    pub duplicates: Duplicates,
    /// What to do with malformed rows.
    pub on_error: OnError,
    /// How many malformed rows `on_error: skip` bears before the stage fails.
    pub max_errors: u64,
}

/// What a file of items is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum ItemsFormat {
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
    Lcrec,
    Jsonl,
    Csv,
    Tsv,
    Parquet,
}

use ItemsFormat as Format;

/// What to do when an item comes again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Duplicates {
    /// The first row counts; the others are put aside and counted.
    #[default]
    First,
    /// Stop.
    Error,
}

/// Names of columns; an empty one is found by its usual names.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ItemColumns {
    /// Usual: item_id, itemId, item, iid, parent_asin, asin, movieId, movie_id, product_id.
    pub item_id: String,
    /// Usual: title, movie_title, item_title, name.
    pub title: String,
    /// Usual: brand, store.
    pub brand: String,
    /// Usual: categories, category, genres, genre, class.
    pub categories: String,
    /// Usual: price.
    pub price: String,
    /// Usual: description.
    pub description: String,
}

impl Default for IngestItems {
    fn default() -> Self {
        IngestItems {
            path: Paths::default(),
            format: Format::Auto,
            columns: ItemColumns::default(),
            delimiter: String::new(),
            quotes: true,
            html_unescape: true,
            text_template: item::GRID_TEMPLATE.into(),
            missing_brand: "Unknown".into(),
            missing_value: "nan".into(),
            duplicates: Duplicates::First,
            on_error: OnError::Fail,
            max_errors: 100,
        }
    }
}

impl Operator for IngestItems {
    const NAME: &'static str = "ingest_items";
    const VERSION: u32 = 2;

    fn bind(&self, binding: &Binding) -> Bound {
        let mut paths = Vec::new();
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
                paths.push(path);
            } else if path.is_dir() && !name.is_empty() {
                binding.bad_value("path", format!("\"{name}\" is a folder: name its files"));
            }
        }
        if self.path.names().is_empty() {
            binding.bad_value("path", "\"path\" names no file");
        }
        if let Err(unknown) = self.template() {
            let error = Error::user("bad-value", format!("\"text_template\" has no value for \"{unknown}\""));
            let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
            binding.problem("text_template", error.detail(format!("it may use: {known}")));
        }
        Bound::whole()
            .out(Shape::table(schema::items()))
            .output(REJECTS, Shape::table(rejects()))
            .files(paths)
    }

    fn run(&self, context: &Context, _inputs: Tables) -> Result<Tables> {
        let template = self.template().map_err(Error::internal)?;
        let (mut out, mut refused) = (Vec::new(), Vec::new());
        let mut seen: HashMap<String, String> = HashMap::new();
        let mut done = 0;
        for (file, name) in self.path.names().into_iter().enumerate() {
            let path = context.path(name);
            let mut source = files::source(&path, name, file as u32, &self.layout(&path, name)?)?;
            loop {
                context.check_cancelled()?;
                let mut blocks = Vec::new();
                while blocks.len() < 2 * rayon::current_num_threads() {
                    match source.next()? {
                        Some(block) => blocks.push(Block::decode(block)?),
                        None => break,
                    }
                }
                if blocks.is_empty() {
                    break;
                }
                let read = |block: Block| {
                    let mut rejects = Rejects::new(self.on_error, name);
                    let items = item::read(&block, &path, name, self.html_unescape, &mut rejects)?;
                    Ok((items, rejects))
                };
                let parsed: Vec<Result<(Vec<Item>, Rejects)>> = blocks.into_par_iter().map(read).collect();
                for block in parsed {
                    let (items, mut rejects) = block?;
                    let mut rows = ItemRows::new(file as u64);
                    for item in items {
                        done += 1;
                        if let Some(first) = seen.get(&item.id) {
                            self.duplicate(name, &item, first, &mut rejects)?;
                        } else {
                            seen.insert(item.id.clone(), format!("{name}:{}", item.line));
                            rows.push(&item, &template);
                        }
                    }
                    out.push(rows.batch()?);
                    refused.push(rejects.batch()?);
                }
                context.progress(done, None, "rows", &[]);
            }
        }
        let table = |fields, batches| Table::Batches(arrow::datatypes::Schema::new(fields).into(), batches);
        Ok(Tables::new()
            .with(OUT, table(schema::items(), out))
            .with(REJECTS, table(rejects(), refused)))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        conclude(outputs, self.max_errors, Some(DUPLICATES))
    }
}

impl IngestItems {
    fn template(&self) -> Result<Template, String> {
        Template::parse(&self.text_template, &self.missing_brand, &self.missing_value)
    }

    fn duplicate(&self, file: &str, item: &Item, first: &str, rejects: &mut Rejects) -> Result<()> {
        let reason = format!("{DUPLICATES} \"{}\", first at {first}", item.id);
        if self.duplicates == Duplicates::Error {
            return Err(Error::data("duplicate-item", reason)
                .at_line(file, item.line)
                .hint("\"duplicates: first\" lets the first row count"));
        }
        rejects.note(item.line, &reason, item.title.as_deref().unwrap_or_default());
        Ok(())
    }

    fn wanted(&self, format: Format) -> [Wanted<'_>; 6] {
        let ids: &'static [&'static str] = match format {
            Format::Amazon2014 | Format::Amazon2018 => &["asin"],
            Format::Amazon2023 => &["parent_asin"],
            _ => &[
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
        };
        let column = |name, given, aliases, required| Wanted {
            name,
            given,
            aliases,
            required,
        };
        let names = &self.columns;
        [
            column("item_id", names.item_id.as_str(), ids, true),
            column(
                "title",
                &names.title,
                &["title", "movie_title", "item_title", "name"],
                false,
            ),
            column("brand", &names.brand, &["brand", "details.Brand", "store"], false),
            column(
                "categories",
                &names.categories,
                &["categories", "category", "genres", "genre", "class"],
                false,
            ),
            column("price", &names.price, &["price"], false),
            column("description", &names.description, &["description"], false),
        ]
    }

    /// Tells the format of a file and finds its columns.
    fn layout(&self, path: &std::path::Path, name: &str) -> Result<Layout> {
        let head = files::head(path, name)?;
        if !matches!(self.format, Format::Csv | Format::Tsv) {
            refuse_array(name, &head)?;
        }
        let sniffed = sniff(&head);
        let wrong = |wants: &str| {
            Error::data("wrong-format", format!("\"{name}\" is not {wants}"))
                .hint("\"format: auto\" tells the format by the first line")
        };
        let format = match self.format {
            Format::Auto => self.detect(&sniffed).ok_or_else(|| undetected(name, &head))?,
            format => format,
        };
        let wanted = self.wanted(format);
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
                Layout::JsonLines {
                    names: wanted.iter().map(Wanted::names).collect(),
                    timed: false,
                }
            }
            Format::Lcrec => match sniffed {
                Sniffed::Object => Layout::JsonObject,
                _ => return Err(wrong("one JSON object of objects")),
            },
            Format::Parquet => match sniffed {
                Sniffed::Parquet => Layout::Parquet(columns::parquet(path, name, &wanted)?),
                _ => return Err(wrong("Parquet")),
            },
            _ => {
                let found = match &sniffed {
                    Sniffed::Cells(found, _) => found.as_str(),
                    Sniffed::Words | Sniffed::Unknown if !self.delimiter.is_empty() => "",
                    _ => return Err(wrong("delimited text")),
                };
                let delimiter = match format {
                    _ if !self.delimiter.is_empty() => &self.delimiter,
                    Format::Csv => ",",
                    Format::Movielens => found,
                    _ => "\t",
                };
                let quoted = self.quotes
                    && match format {
                        Format::Csv | Format::Tsv => delimiter.len() == 1,
                        _ => delimiter == ",",
                    };
                let first = delimited::first_row(&head, delimiter, quoted);
                let header = format != Format::Movielens || !numeric(&first[..first.len().min(1)]);
                Layout::Delimited {
                    delimiter: delimiter.to_string(),
                    quoted,
                    latin1: format == Format::Movielens && delimiter != ",",
                    header,
                    blanks: format == Format::Recbole,
                    width: first.len(),
                    picks: match (header, first.len()) {
                        (true, _) => pick(name, &wanted, &first)?,
                        (false, item::U_ITEM_CELLS) => vec![Some(0), Some(1), None, None, None, None],
                        (false, 3) => vec![Some(0), Some(1), None, Some(2), None, None],
                        _ => return Err(wrong("a MovieLens file of items")),
                    },
                }
            }
        })
    }

    fn detect(&self, sniffed: &Sniffed) -> Option<Format> {
        let wanted = &self.wanted(Format::Auto)[..1];
        let named = !self.columns.item_id.is_empty();
        Some(match sniffed {
            Sniffed::Parquet => Format::Parquet,
            Sniffed::Object => Format::Lcrec,
            // the usual names cover the Amazon formats, whose ids are `parent_asin`, else `asin`
            Sniffed::Lines(..) => Format::Jsonl,
            Sniffed::Cells(found, _) if !self.delimiter.is_empty() && *found != self.delimiter => Format::Csv,
            Sniffed::Words | Sniffed::Unknown if !self.delimiter.is_empty() => Format::Csv,
            Sniffed::Cells(delimiter, first) => match delimiter.as_str() {
                "::" => Format::Movielens,
                "|" if first.len() == item::U_ITEM_CELLS => Format::Movielens,
                "\t" if first.iter().any(|cell| cell.contains(":token")) => Format::Recbole,
                "\t" if named || fits(wanted, first) => Format::Tsv,
                "," if named || fits(wanted, first) => Format::Csv,
                _ if !self.delimiter.is_empty() => Format::Csv,
                _ => return None,
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
