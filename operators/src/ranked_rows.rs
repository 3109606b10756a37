//! Writing ranked items: the columns of a list, row by row.

use std::sync::Arc;

use arrow::array::{Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::Schema;
use sluice_engine::Result;

use crate::catalogue::Catalogue;
use crate::schema;

/// Rows of lists whose generated ids are the items themselves.
#[derive(Default)]
pub struct RankedRows {
    users: Vec<usize>,
    ranks: Vec<u32>,
    items: Vec<u32>,
    scores: Vec<f64>,
    better: Vec<u32>,
    tied: Vec<u32>,
}

impl RankedRows {
    /// Adds an item of a user's list: its place, and its score with how many items score better and how many the same.
    pub fn push(&mut self, user: usize, rank: u32, item: u32, (score, better, tied): (f64, u32, u32)) {
        self.users.push(user);
        self.ranks.push(rank);
        self.items.push(item);
        self.scores.push(score);
        self.better.push(better);
        self.tied.push(tied);
    }

    /// The table; users and items are numbers of these.
    pub fn batch(self, users: &StringArray, catalogue: &Catalogue) -> Result<RecordBatch> {
        let ranks = Arc::new(UInt32Array::from(self.ranks));
        Ok(RecordBatch::try_new(
            Arc::new(Schema::new(schema::ranked())),
            vec![
                Arc::new(StringArray::from_iter_values(
                    self.users.iter().map(|user| users.value(*user)),
                )),
                ranks.clone(),
                Arc::new(StringArray::from_iter_values(
                    self.items.iter().map(|item| catalogue.id(*item)),
                )),
                Arc::new(Float64Array::from(self.scores)),
                Arc::new(UInt32Array::from(self.better)),
                Arc::new(UInt32Array::from(self.tied)),
                ranks,
            ],
        )?)
    }
}
