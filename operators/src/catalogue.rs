//! The catalogue: item ids as dense numbers in natural order, so that numbers and ids sort alike.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use arrow::array::{Array, StringArray};
use sluice_engine::table::Table;
use sluice_engine::{Error, Result};

use crate::schema::{self, ITEM_ID};

/// Item ids in a model's folder.
const FILE: &str = "items.json";

/// Item ids in natural order, without repeats.
pub struct Catalogue {
    ids: Vec<String>,
    numbers: HashMap<String, u32>,
}

impl Catalogue {
    /// The catalogue of these ids.
    pub fn of<'a>(ids: impl IntoIterator<Item = &'a str>) -> Self {
        let mut ids: Vec<&str> = ids.into_iter().collect();
        ids.sort_unstable_by(|a, b| schema::natural_order(a, b));
        ids.dedup();
        let ids: Vec<String> = ids.into_iter().map(str::to_string).collect();
        let numbers = ids.iter().cloned().zip(0..).collect();
        Catalogue { ids, numbers }
    }

    /// The items of a table.
    pub fn read(table: &Table) -> Result<Self> {
        let mut distinct = BTreeSet::new();
        for batch in table.batches()? {
            let batch = batch?;
            for id in schema::strings(&batch, ITEM_ID)?.iter().flatten() {
                if !distinct.contains(id) {
                    distinct.insert(id.to_string());
                }
            }
        }
        Ok(Self::of(distinct.iter().map(String::as_str)))
    }

    /// Number of items.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// All ids, by number.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.ids.iter().map(String::as_str)
    }

    /// Writes the ids to a model's folder, for the rows of its item table.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(FILE);
        let text = serde_json::to_string(&self.ids).map_err(|error| Error::internal(error.to_string()))?;
        std::fs::write(&path, text + "\n").map_err(|error| Error::io("write", &path, &error))
    }

    /// Reads what [`Catalogue::save`] wrote.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(|error| Error::io("read", &path, &error))?;
        let ids: Vec<String> = serde_json::from_str(&text).map_err(|error| {
            Error::data("bad-model-data", format!("{}: {error}", path.display())).hint("train the model again")
        })?;
        Ok(Self::of(ids.iter().map(String::as_str)))
    }

    /// The id of a number.
    pub fn id(&self, number: u32) -> &str {
        &self.ids[number as usize]
    }

    /// The number of an id.
    pub fn number(&self, id: &str) -> Option<u32> {
        self.numbers.get(id).copied()
    }

    /// Numbers of a column of ids; `role` names them in the error about those that are missing.
    pub fn encode(&self, ids: &StringArray, role: &str) -> Result<Vec<u32>> {
        let mut missing: BTreeSet<&str> = BTreeSet::new();
        let mut numbers = Vec::with_capacity(ids.len());
        for row in 0..ids.len() {
            match self.number(ids.value(row)) {
                Some(number) if ids.is_valid(row) => numbers.push(number),
                _ => {
                    missing.insert(ids.value(row));
                }
            }
        }
        match missing.iter().min_by(|a, b| schema::natural_order(a, b)) {
            None => Ok(numbers),
            Some(first) => Err(
                Error::data("unknown-item", format!("{role} \"{first}\" is not in the catalogue"))
                    .detail(format!(
                        "{} different items are missing from input \"items\"",
                        missing.len()
                    ))
                    .hint("connect \"items\" to the table that lists every item"),
            ),
        }
    }
}
