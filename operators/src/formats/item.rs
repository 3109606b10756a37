//! Items: their fields from rows of every layout, and their text by a template.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Builder, ListBuilder, RecordBatch, StringBuilder, UInt64Builder};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use serde_json::{Number, Value};
use sluice_engine::{Error, Result};

use super::files::{Block, Layout};
use super::{Rejects, columns, delimited, json, python, rows, values};
use crate::schema;

/// GRID's item text.
pub const GRID_TEMPLATE: &str = "Title: {title}; Brand: {brand}; Categories: {categories}; Price: {price}; ";

/// What a template may hold.
pub const PLACEHOLDERS: [&str; 6] = ["title", "brand", "categories", "price", "description", "item_id"];

/// Number of cells of MovieLens 100K's `u.item`: five fields and nineteen flags.
pub const U_ITEM_CELLS: usize = 24;

const U_ITEM_GENRES: [&str; 19] = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
];

/// An item as a file has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// Its id.
    pub id: String,
    /// Its title.
    pub title: Option<String>,
    /// Its brand.
    pub brand: Option<String>,
    /// Its categories, from wide to narrow.
    pub categories: Option<Vec<String>>,
    /// Its price.
    pub price: Option<f64>,
    /// Its description.
    pub description: Option<String>,
    /// Its line in the file.
    pub line: u64,
}

/// Reads the items of a block.
pub fn read(block: &Block, path: &Path, name: &str, unescape: bool, rejects: &mut Rejects) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    // one row: values by wanted column, and how categories are apart
    let mut add = |line: u64, fields: Vec<Option<Value>>, apart: char| -> Result<(), String> {
        let item = item(line, fields, apart, unescape)?;
        items.push(item);
        Ok(())
    };
    match &block.layout {
        Layout::JsonLines { names, .. } => {
            let mut names = names.clone();
            let amazon = names[2].len() > 1;
            if amazon {
                names[2].truncate(1);
                names.extend([vec!["details".to_string()], vec!["store".to_string()]]);
            }
            rows::lines(block.bytes(), block.line, |line, text| {
                let text = match text {
                    Ok(text) => text,
                    Err(shown) => return rejects.add(line, "not UTF-8", &shown),
                };
                json::fields::<Value>(text, &names)
                    .and_then(|mut fields| {
                        if amazon {
                            // `brand` where there is one, else the details' brand, else the store
                            let (store, details) = (fields.pop().flatten(), fields.pop().flatten());
                            let brand = fields[2].take().filter(|brand| brand.as_str() != Some(""));
                            fields[2] = brand.or_else(|| details.and_then(brand_of_details)).or(store);
                        }
                        add(line, fields, '|')
                    })
                    .or_else(|reason| rejects.add(line, &reason, text))
            })?;
        }
        Layout::JsonObject => {
            let text = std::str::from_utf8(block.bytes())
                .map_err(|_| Error::data("wrong-format", format!("\"{name}\" is not UTF-8")))?;
            json::entries(text, &mut |entry, id, value| {
                let Value::Object(mut map) = value else {
                    let what = "its value is no object; JSON over several lines is not read";
                    return rejects.add(entry, &format!("entry {entry}, \"{id}\": {what}"), &value.to_string());
                };
                let mut fields = vec![Some(Value::String(id.to_string()))];
                for name in ["title", "brand", "categories", "price", "description"] {
                    fields.push(map.remove(name));
                }
                add(entry, fields, ',').or_else(|reason| rejects.add(entry, &reason, id))
            })
            .map_err(|error| Error {
                message: format!("\"{name}\": {}", error.message),
                ..error
            })?;
        }
        Layout::Delimited {
            picks,
            header,
            blanks,
            width,
            ..
        } => {
            let flags = !*header && *width == U_ITEM_CELLS;
            let apart = if *blanks { '\t' } else { '|' };
            delimited::records(block.bytes(), block.line, &block.layout, |line, text, cells| {
                let row = cells.and_then(|cells| {
                    let cell = |pick: &Option<usize>| pick.map(|at| Value::String(cells[at].to_string()));
                    let mut fields: Vec<Option<Value>> = picks.iter().map(cell).collect();
                    if flags {
                        let genres = U_ITEM_GENRES.iter().zip(&cells[5..]).filter(|(_, flag)| **flag == "1");
                        fields[3] = Some(genres.map(|(genre, _)| Value::String(genre.to_string())).collect());
                    }
                    add(line, fields, apart)
                });
                row.or_else(|reason| rejects.add(line, &reason, text))
            })?;
        }
        Layout::Parquet(picks) => {
            let mut line = block.line;
            for columns in columns::row_group(path, name, block, picks)? {
                let rows = columns.iter().flatten().next().map_or(0, |column| column.len());
                // floats as ids are numbers and no texts: `10.0` is the item `10`
                let floats = columns[0]
                    .as_ref()
                    .filter(|ids| columns::fractional(ids.data_type()))
                    .map(|ids| arrow::compute::cast(ids, &DataType::Float64))
                    .transpose()?;
                for row in 0..rows {
                    let mut fields: Vec<Option<Value>> = columns
                        .iter()
                        .map(|column| column.as_ref().and_then(|c| cell(c, row)))
                        .collect();
                    if let Some(ids) = floats.as_ref().map(|ids| ids.as_primitive::<Float64Type>()) {
                        let number = ids.is_valid(row).then(|| ids.value(row));
                        fields[0] = number.and_then(Number::from_f64).map(Value::Number);
                    }
                    add(line, fields, '|').or_else(|reason| rejects.add(line, &reason, ""))?;
                    line += 1;
                }
            }
        }
        Layout::Sequences => return Err(Error::internal("sequences hold no items")),
    }
    Ok(items)
}

fn item(line: u64, fields: Vec<Option<Value>>, apart: char, unescape: bool) -> Result<Item, String> {
    let mut fields = fields.into_iter();
    let mut next = || fields.next().flatten();
    let id = next().map(json::Scalar::from);
    let id = json::id(id.as_ref(), "item_id")?.into_owned();
    let text = |value: Option<Value>, separator: &str| -> Option<String> {
        let text = match value? {
            Value::String(text) => text,
            Value::Array(parts) => {
                let parts: Vec<&str> = parts.iter().filter_map(Value::as_str).collect();
                parts.join(separator)
            }
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        let text = if unescape {
            html_escape::decode_html_entities(&text).into_owned()
        } else {
            text
        };
        let text = text.trim();
        (!text.is_empty() && text != "NaN").then(|| text.to_string())
    };
    let (title, brand) = (text(next(), " "), text(next(), " "));
    let mut names = Vec::new();
    categories(next(), apart, &mut names);
    let mut list: Vec<String> = Vec::new();
    for name in names {
        if let Some(name) = text(Some(Value::String(name)), "").filter(|name| !list.contains(name)) {
            list.push(name);
        }
    }
    let price = match next() {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => values::price(text.trim()),
        _ => None,
    };
    // LC-Rec writes lists as Python does, inside a string
    let description = match next() {
        Some(Value::String(text)) if text.starts_with("['") || text.starts_with("[\"") || text == "[]" => {
            Some(python::parse(&text).unwrap_or(Value::String(text)))
        }
        other => other,
    };
    Ok(Item {
        id,
        title,
        brand,
        categories: Some(list).filter(|list| !list.is_empty()),
        price,
        description: text(description, " "),
        line,
    })
}

/// Names of categories: of nested lists all of them, of a string its parts.
fn categories(value: Option<Value>, apart: char, names: &mut Vec<String>) {
    match value {
        Some(Value::Array(values)) => values
            .into_iter()
            .for_each(|value| categories(Some(value), '\0', names)),
        Some(Value::String(text)) => {
            let literal = Some(&text).filter(|text| text.starts_with('['));
            match literal.and_then(|text| python::parse(text).ok()) {
                Some(list @ Value::Array(_)) => categories(Some(list), '\0', names),
                _ if text == "(no genres listed)" => {}
                // RecBole: apart by blanks, unless there are bars
                _ if apart == '\t' && !text.contains('|') => names.extend(text.split_whitespace().map(str::to_string)),
                _ => names.extend(
                    text.split(if apart == '\t' { '|' } else { apart })
                        .map(|name| name.trim().to_string()),
                ),
            }
        }
        _ => {}
    }
}

/// Amazon 2023 keeps the brand in `details`, an object, or the JSON text of one.
fn brand_of_details(details: Value) -> Option<Value> {
    let details = match details {
        Value::String(text) => serde_json::from_str(&text).ok()?,
        details => details,
    };
    let brand = details.get("Brand")?.clone();
    brand
        .as_str()
        .is_some_and(|brand| !brand.trim().is_empty())
        .then_some(brand)
}

/// A value of a Parquet column.
fn cell(column: &ArrayRef, row: usize) -> Option<Value> {
    if column.is_null(row) {
        return None;
    }
    let one = column.slice(row, 1);
    match column.data_type() {
        DataType::List(_) => Some(
            (0..)
                .map_while(|at| nested(&one.as_list::<i32>().value(0), at))
                .collect(),
        ),
        DataType::LargeList(_) => Some(
            (0..)
                .map_while(|at| nested(&one.as_list::<i64>().value(0), at))
                .collect(),
        ),
        DataType::FixedSizeList(..) => Some(
            (0..)
                .map_while(|at| nested(&one.as_fixed_size_list().value(0), at))
                .collect(),
        ),
        _ => {
            let text = arrow::compute::cast(&one, &DataType::Utf8).ok()?;
            Some(Value::String(text.as_string::<i32>().value(0).to_string()))
        }
    }
}

fn nested(values: &ArrayRef, at: usize) -> Option<Value> {
    (at < values.len()).then(|| cell(values, at).unwrap_or(Value::Null))
}

/// The text of an item: fixed parts and fields.
pub struct Template {
    parts: Vec<Part>,
    missing_brand: String,
    missing_value: String,
}

enum Part {
    Fixed(String),
    Field(&'static str),
}

impl Template {
    /// Reads a template; an unknown placeholder is given back as the error. Other braces stand for themselves.
    pub fn parse(template: &str, missing_brand: &str, missing_value: &str) -> Result<Self, String> {
        let (mut parts, mut rest) = (Vec::new(), template);
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                break;
            };
            let field = PLACEHOLDERS.into_iter().find(|known| *known == name);
            let field = field.ok_or_else(|| format!("{{{name}}}"))?;
            parts.extend([Part::Fixed(before.to_string()), Part::Field(field)]);
            rest = after;
        }
        parts.push(Part::Fixed(rest.to_string()));
        Ok(Template {
            parts,
            missing_brand: missing_brand.to_string(),
            missing_value: missing_value.to_string(),
        })
    }

    /// The text of `item`.
    pub fn text(&self, item: &Item) -> String {
        let or = |value: &Option<String>, missing: &String| value.as_ref().unwrap_or(missing).clone();
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Fixed(fixed) => text.push_str(fixed),
                Part::Field("title") => text.push_str(&or(&item.title, &self.missing_value)),
                Part::Field("brand") => text.push_str(&or(&item.brand, &self.missing_brand)),
                Part::Field("categories") => {
                    text.push_str(&python::list_repr(item.categories.as_deref().unwrap_or_default()));
                }
                Part::Field("price") => {
                    text.push_str(&or(&item.price.map(|price| format!("{price:?}")), &self.missing_value))
                }
                Part::Field("description") => text.push_str(&or(&item.description, &self.missing_value)),
                Part::Field(_) => text.push_str(&item.id),
            }
        }
        text
    }
}

/// Rows of an items table.
pub struct ItemRows {
    file: u64,
    ids: StringBuilder,
    titles: StringBuilder,
    brands: StringBuilder,
    categories: ListBuilder<StringBuilder>,
    prices: Float64Builder,
    descriptions: StringBuilder,
    texts: StringBuilder,
    positions: UInt64Builder,
}

impl ItemRows {
    /// No rows of this file yet.
    pub fn new(file: u64) -> Self {
        let field = Field::new_list_field(DataType::Utf8, false);
        ItemRows {
            file,
            ids: StringBuilder::new(),
            titles: StringBuilder::new(),
            brands: StringBuilder::new(),
            categories: ListBuilder::new(StringBuilder::new()).with_field(field),
            prices: Float64Builder::new(),
            descriptions: StringBuilder::new(),
            texts: StringBuilder::new(),
            positions: UInt64Builder::new(),
        }
    }

    /// Adds an item and its text.
    pub fn push(&mut self, item: &Item, template: &Template) {
        self.ids.append_value(&item.id);
        self.titles.append_option(item.title.as_ref());
        self.brands.append_option(item.brand.as_ref());
        match &item.categories {
            Some(names) => self.categories.append_value(names.iter().map(Some)),
            None => self.categories.append_null(),
        }
        self.prices.append_option(item.price);
        self.descriptions.append_option(item.description.as_ref());
        self.texts.append_value(template.text(item));
        self.positions.append_value(self.file << 40 | item.line);
    }

    /// The rows.
    pub fn batch(mut self) -> Result<RecordBatch> {
        Ok(RecordBatch::try_new(
            Arc::new(Schema::new(schema::items())),
            vec![
                Arc::new(self.ids.finish()),
                Arc::new(self.titles.finish()),
                Arc::new(self.brands.finish()),
                Arc::new(self.categories.finish()),
                Arc::new(self.prices.finish()),
                Arc::new(self.descriptions.finish()),
                Arc::new(self.texts.finish()),
                Arc::new(self.positions.finish()),
            ],
        )?)
    }
}
