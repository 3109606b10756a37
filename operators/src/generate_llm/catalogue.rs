//! The catalogue of titles: items, what their titles say, and the trie of their tokens.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use sluice_engine::table::Table;
use sluice_engine::{Error, Result};
use sluice_gpu::llm::TitleTrie;

use crate::models::explain;
use crate::schema::{self, ITEM_ID, TITLE};
use crate::tokenize_prompts::TOKENS;

/// Items in natural order with their titles; items of the trie are numbers of these.
pub struct Titled {
    /// Item ids.
    pub items: Vec<String>,
    /// The trie of all titles.
    pub trie: TitleTrie,
    names: Vec<String>,
    /// The title of every item.
    titles: HashMap<String, u32>,
}

impl Titled {
    /// Reads the table of titles.
    pub fn read(table: &Table) -> Result<Self> {
        let batch = table.batch()?;
        let (ids, names) = (schema::strings(&batch, ITEM_ID)?, schema::strings(&batch, TITLE)?);
        let lists = schema::lists(&batch, TOKENS)?;
        if ids.is_empty() {
            let hint =
                "connect \"titles\" of tokenize_prompts; \"untitled\" says what becomes of items without a title";
            return Err(Error::data("empty-catalogue", "the catalogue has no titles").hint(hint));
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by(|a, b| schema::natural_order(ids.value(*a), ids.value(*b)));
        let tokens: Vec<Vec<u32>> = order
            .iter()
            .map(|row| lists.value(*row).as_primitive::<UInt32Type>().values().to_vec())
            .collect();
        let trie = TitleTrie::new(&tokens).map_err(|error| {
            explain(error).detail("items are counted from 0 in natural order, without those that have no title")
        })?;
        let strings = |of: &arrow::array::StringArray| -> Vec<String> {
            order.iter().map(|row| of.value(*row).to_string()).collect()
        };
        let items = strings(ids);
        let mut titles = HashMap::with_capacity(items.len());
        for title in 0..trie.len() as u32 {
            for item in trie.items_of(title) {
                titles.insert(items[*item as usize].clone(), title);
            }
        }
        if titles.len() != items.len() {
            return Err(Error::data("duplicate-item", "an item has more than one title"));
        }
        Ok(Titled {
            names: strings(names),
            items,
            trie,
            titles,
        })
    }

    /// What a title says: as that of its first item.
    pub fn name(&self, title: u32) -> &str {
        &self.names[self.trie.items_of(title)[0] as usize]
    }

    /// The title of an item, if it has one.
    pub fn title_of(&self, item: &str) -> Option<u32> {
        self.titles.get(item).copied()
    }

    /// The items that share a title, in natural order.
    pub fn items_of(&self, title: u32) -> impl ExactSizeIterator<Item = &str> {
        let items = self.trie.items_of(title).iter();
        items.map(|item| self.items[*item as usize].as_str())
    }
}
