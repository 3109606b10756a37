//! Writing what was found: ranked items, and the titles they have.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float64Array, Float64Builder, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt32Array,
    UInt32Builder,
};
use arrow::datatypes::{DataType, Field, Schema};
use sluice_engine::Result;
use sluice_engine::table::{CHUNK_ROWS, Table};
use sluice_gpu::llm::Found;

use super::catalogue::Titled;
use crate::schema::{self, RANK, SCORE, TITLE, USER_ID};
use crate::tokenize_prompts::TOKENS;

/// Columns of the port `beams`.
pub fn fields() -> Vec<Field> {
    vec![
        Field::new(USER_ID, DataType::Utf8, false),
        Field::new(RANK, DataType::UInt32, false),
        Field::new(TITLE, DataType::Utf8, false),
        Field::new(TOKENS, schema::list_of(DataType::UInt32), false),
        Field::new(SCORE, DataType::Float64, false),
        Field::new("item_ids", schema::list_of(DataType::Utf8), false),
    ]
}

/// Collects the lists of all users into batches.
pub struct Lists<'a> {
    titled: &'a Titled,
    k: Option<u32>,
    listed: Vec<bool>,
    items: Items,
    titles: Titles,
    item_batches: Vec<RecordBatch>,
    title_batches: Vec<RecordBatch>,
}

/// Rows of ranked items.
#[derive(Default)]
struct Items {
    users: Vec<String>,
    ranks: Vec<u32>,
    items: Vec<String>,
    scores: Vec<f64>,
    better: Vec<u32>,
    tied: Vec<u32>,
    beams: Vec<u32>,
}

/// Rows of titles.
struct Titles {
    users: StringBuilder,
    ranks: UInt32Builder,
    titles: StringBuilder,
    tokens: ListBuilder<UInt32Builder>,
    scores: Float64Builder,
    items: ListBuilder<StringBuilder>,
}

impl Default for Titles {
    fn default() -> Self {
        let list = |item: DataType| Field::new_list_field(item, false);
        Titles {
            users: StringBuilder::new(),
            ranks: UInt32Builder::new(),
            titles: StringBuilder::new(),
            tokens: ListBuilder::new(UInt32Builder::new()).with_field(list(DataType::UInt32)),
            scores: Float64Builder::new(),
            items: ListBuilder::new(StringBuilder::new()).with_field(list(DataType::Utf8)),
        }
    }
}

impl<'a> Lists<'a> {
    /// Lists of at most `k` items, and those tied with the last one.
    pub fn new(titled: &'a Titled, k: Option<u32>) -> Self {
        Lists {
            titled,
            k,
            listed: vec![false; titled.trie.len()],
            items: Items::default(),
            titles: Titles::default(),
            item_batches: Vec::new(),
            title_batches: Vec::new(),
        }
    }

    /// Adds what was found for a user.
    pub fn push(&mut self, user: &str, found: &[Found]) -> Result<()> {
        let (mut rank, mut beam) = (0, 0);
        for equals in found.chunk_by(|a, b| a.score == b.score) {
            if self.k.is_some_and(|k| rank >= k) {
                break;
            }
            let counts = equals.iter().map(|found| self.titled.items_of(found.title).len());
            let (better, tied) = (rank, counts.sum::<usize>() as u32);
            for found in equals {
                beam += 1;
                self.listed[found.title as usize] = true;
                for item in self.titled.items_of(found.title) {
                    rank += 1;
                    self.items.push((user, rank, item), (found.score, better, tied), beam);
                    self.titles.items.values().append_value(item);
                }
                let (name, tokens) = (self.titled.name(found.title), self.titled.trie.text(found.title));
                self.titles.push((user, beam, name), tokens, found.score);
            }
        }
        self.flush(CHUNK_ROWS)
    }

    /// Makes batches of the rows that were added, if they are enough.
    fn flush(&mut self, enough: usize) -> Result<()> {
        if self.items.users.len() >= enough {
            self.item_batches.push(std::mem::take(&mut self.items).batch()?);
            self.title_batches.push(std::mem::take(&mut self.titles).batch()?);
        }
        Ok(())
    }

    /// Number of titles that some list has.
    pub fn titles_listed(&self) -> usize {
        self.listed.iter().filter(|listed| **listed).count()
    }

    /// The tables of items and of titles.
    pub fn tables(mut self) -> Result<(Table, Table)> {
        self.flush(1)?;
        let table = |fields, batches| Table::Batches(Arc::new(Schema::new(fields)), batches);
        Ok((
            table(schema::ranked(), self.item_batches),
            table(fields(), self.title_batches),
        ))
    }
}

impl Items {
    fn push(&mut self, (user, rank, item): (&str, u32, &str), (score, better, tied): (f64, u32, u32), beam: u32) {
        self.users.push(user.to_string());
        self.ranks.push(rank);
        self.items.push(item.to_string());
        self.scores.push(score);
        self.better.push(better);
        self.tied.push(tied);
        self.beams.push(beam);
    }

    fn batch(self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(self.users)),
            Arc::new(UInt32Array::from(self.ranks)),
            Arc::new(StringArray::from(self.items)),
            Arc::new(Float64Array::from(self.scores)),
            Arc::new(UInt32Array::from(self.better)),
            Arc::new(UInt32Array::from(self.tied)),
            Arc::new(UInt32Array::from(self.beams)),
        ];
        Ok(RecordBatch::try_new(Arc::new(Schema::new(schema::ranked())), columns)?)
    }
}

impl Titles {
    /// A title, behind its items.
    fn push(&mut self, (user, rank, title): (&str, u32, &str), tokens: &[u32], score: f64) {
        self.items.append(true);
        self.users.append_value(user);
        self.ranks.append_value(rank);
        self.titles.append_value(title);
        self.tokens.values().append_slice(tokens);
        self.tokens.append(true);
        self.scores.append_value(score);
    }

    fn batch(mut self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.users.finish()),
            Arc::new(self.ranks.finish()),
            Arc::new(self.titles.finish()),
            Arc::new(self.tokens.finish()),
            Arc::new(self.scores.finish()),
            Arc::new(self.items.finish()),
        ];
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields())), columns)?)
    }
}
