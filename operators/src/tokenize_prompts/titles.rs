//! Titles of the catalogue: cleaned, with a fallback where one is missing, and as tokens.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use rayon::prelude::*;
use sluice_engine::table::Table;
use sluice_engine::{Error, Result};

use super::template::Template;
use super::token_lists;
use super::vocabulary::Vocabulary;
use crate::catalogue::Catalogue;
use crate::models::SemanticIds;
use crate::schema::{self, ITEM_ID, TITLE};

/// Where the tokens begin that the tokenizer does not have.
pub const FIRST_NEW_TOKEN: &str = "first_new_token";
/// The token that stands behind an item in histories.
pub const SOFT_TOKEN: &str = "soft_token";

/// What stands in for a title that is missing.
#[derive(Debug, PartialEq)]
pub enum Untitled<'a> {
    /// Nothing: stop.
    Error,
    /// Nothing: the item is as if it were not there.
    Skip,
    /// A text with the item's id in it.
    Text(Template<'a>),
}

impl<'a> Untitled<'a> {
    /// Reads the config field.
    pub fn parse(text: &'a str) -> Result<Self> {
        match text {
            "error" => Ok(Untitled::Error),
            "skip" => Ok(Untitled::Skip),
            _ => Template::parse(text, "item_id", "\"untitled\"")
                .map(Untitled::Text)
                .map_err(|error| error.detail("it is \"error\", \"skip\" or a text with \"{item_id}\" in it")),
        }
    }
}

/// The title of an item, as a prompt uses it.
pub struct Title {
    /// In one line.
    pub text: String,
    /// The tokens of `text` and the end of text.
    pub tokens: Vec<u32>,
}

/// A catalogue and its titles.
pub struct Titles {
    /// Items by number.
    pub catalogue: Catalogue,
    /// Titles by number, `None` where the item has none and is skipped.
    pub titles: Vec<Option<Title>>,
    /// How many items have a title of their own.
    pub titled: usize,
    /// New tokens that titles are made of: the codes of all levels, where titles are semantic ids.
    pub words: u32,
}

/// Where tokens begin that the tokenizer does not have.
pub struct New {
    /// The first of all, if there are any.
    pub first: Option<u32>,
    /// The one of the first item, where items have tokens of their own.
    pub first_soft: Option<u32>,
}

impl Titles {
    /// Reads `item_id` and `title`; every item must come once.
    pub fn read(items: &Table, untitled: &Untitled, vocabulary: &Vocabulary) -> Result<Self> {
        let batch = items.batch()?;
        let catalogue = Catalogue::read(items)?;
        let mut raw = vec![None; catalogue.len()];
        let mut seen = vec![false; catalogue.len()];
        let titles = schema::strings(&batch, TITLE)?;
        let numbers = catalogue.encode(schema::strings(&batch, ITEM_ID)?, "item")?;
        for (number, title) in numbers.iter().zip(titles) {
            if std::mem::replace(&mut seen[*number as usize], true) {
                let message = format!("item \"{}\" has more than one row", catalogue.id(*number));
                return Err(Error::data("duplicate-item", message).hint("join_items keeps the first row of an item"));
            }
            raw[*number as usize] = title;
        }
        // Errors are looked at in order, so that the first item is named whatever the threads did.
        let own: Vec<Result<Option<Title>>> = raw
            .par_iter()
            .map(|title| Title::new(title.unwrap_or_default(), vocabulary))
            .collect();
        let mut titles = own.into_iter().collect::<Result<Vec<_>>>()?;
        let titled = titles.iter().flatten().count();
        match untitled {
            Untitled::Error => refuse(&catalogue, &titles)?,
            Untitled::Skip => {}
            Untitled::Text(text) => {
                for (id, title) in catalogue.ids().zip(&mut titles).filter(|(_, title)| title.is_none()) {
                    *title = Title::new(&text.fill(id), vocabulary)?;
                }
                // A tokenizer may know nothing of what the text says.
                refuse(&catalogue, &titles)?;
            }
        }
        Ok(Titles {
            catalogue,
            titles,
            titled,
            words: 0,
        })
    }

    /// Semantic ids in the place of titles: code c of level l is token `first` + the sizes of the levels before + c.
    pub fn coded(ids: &SemanticIds, first: u32, vocabulary: &Vocabulary) -> Self {
        let catalogue = Catalogue::of(ids.items.iter().map(String::as_str));
        let mut starts = vec![first];
        for size in &ids.codebook_sizes {
            starts.push(starts[starts.len() - 1] + *size as u32);
        }
        let title = |codes: &[u16]| {
            let codes = || codes.iter().zip(&starts).enumerate();
            let text = codes().map(|(level, (code, _))| format!("<{}_{code}>", level + 1));
            let tokens = codes().map(|(_, (code, start))| start + u32::from(*code));
            Title {
                text: text.collect(),
                tokens: tokens.chain([vocabulary.eos]).collect(),
            }
        };
        let titles: Vec<Option<Title>> = catalogue.ids().map(|id| ids.of(id).map(title)).collect();
        Titles {
            titled: titles.len(),
            titles,
            catalogue,
            words: starts[starts.len() - 1] - first,
        }
    }

    /// The title of an item by number, if it is not skipped.
    pub fn get(&self, item: u32) -> Option<&Title> {
        self.titles[item as usize].as_ref()
    }

    /// Tokens of the longest title.
    pub fn longest(&self) -> usize {
        let lengths = self.titles.iter().flatten().map(|title| title.tokens.len());
        lengths.max().unwrap_or(0)
    }

    /// The table of titles, and how many items share theirs with another.
    pub fn table(&self, new: &New) -> Result<(RecordBatch, usize)> {
        // The first item of each title in natural order, and how many have it.
        let mut groups: HashMap<&[u32], (&str, usize)> = HashMap::new();
        let rows: Vec<(&str, &Title)> = self
            .catalogue
            .ids()
            .zip(&self.titles)
            .filter_map(|(id, title)| Some((id, title.as_ref()?)))
            .collect();
        for (id, title) in &rows {
            groups.entry(&title.tokens).or_insert((id, 0)).1 += 1;
        }
        let sharing = groups
            .values()
            .map(|(_, items)| *items)
            .filter(|items| *items > 1)
            .sum();
        let strings = |values: Vec<&str>| Arc::new(StringArray::from(values));
        let mut tokens = Vec::new();
        rows.iter()
            .for_each(|(_, title)| tokens.extend_from_slice(&title.tokens));
        let mut columns: Vec<ArrayRef> = vec![
            strings(rows.iter().map(|(id, _)| *id).collect()),
            strings(rows.iter().map(|(_, title)| title.text.as_str()).collect()),
            Arc::new(token_lists(rows.iter().map(|(_, title)| title.tokens.len()), tokens)?),
            strings(
                rows.iter()
                    .map(|(_, title)| groups[title.tokens.as_slice()].0)
                    .collect(),
            ),
        ];
        if let Some(first) = new.first {
            columns.push(Arc::new(UInt32Array::from_value(first, rows.len())));
        }
        if let Some(first) = new.first_soft {
            let titled = (0..self.titles.len()).filter(|item| self.titles[*item].is_some());
            columns.push(Arc::new(UInt32Array::from_iter_values(
                titled.map(|item| first + item as u32),
            )));
        }
        let schema = fields(self.words > 0, new.first_soft.is_some());
        let batch = RecordBatch::try_new(Arc::new(Schema::new(schema)), columns)?;
        Ok((batch, sharing))
    }
}

impl Title {
    /// A title without entities, in one line; `None` if nothing is left of it.
    fn new(raw: &str, vocabulary: &Vocabulary) -> Result<Option<Self>> {
        let decoded = html_escape::decode_html_entities(raw);
        let text = decoded.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut tokens = match text.is_empty() {
            true => Vec::new(),
            false => vocabulary.encode(&text)?,
        };
        if tokens.contains(&vocabulary.eos) {
            let message = format!("the title \"{text}\" spells out the token that ends a text");
            return Err(Error::data("bad-title", message).hint("change the title, or choose another \"eos\""));
        }
        if tokens.is_empty() {
            return Ok(None);
        }
        tokens.push(vocabulary.eos);
        Ok(Some(Title { text, tokens }))
    }
}

/// Fails if an item has no title.
fn refuse(catalogue: &Catalogue, titles: &[Option<Title>]) -> Result<()> {
    let Some(first) = titles.iter().position(Option::is_none) else {
        return Ok(());
    };
    let none = titles.iter().filter(|title| title.is_none()).count();
    let message = format!("item \"{}\" has no title", catalogue.id(first as u32));
    Err(Error::data("no-title", message)
        .detail(format!("{none} of {} items have none", titles.len()))
        .hint("\"untitled\" can be \"skip\", or a text such as \"item {item_id}\""))
}

/// Columns of the port `titles`, where titles are semantic ids or not, with soft tokens or without.
pub fn fields(coded: bool, soft: bool) -> Vec<Field> {
    let mut fields = vec![
        Field::new(ITEM_ID, DataType::Utf8, false),
        Field::new(TITLE, DataType::Utf8, false),
        Field::new(super::TOKENS, schema::list_of(DataType::UInt32), false),
        Field::new("duplicate_of", DataType::Utf8, false),
    ];
    if coded || soft {
        fields.push(Field::new(FIRST_NEW_TOKEN, DataType::UInt32, false));
    }
    if soft {
        fields.push(Field::new(SOFT_TOKEN, DataType::UInt32, false));
    }
    fields
}
