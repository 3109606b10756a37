//! What the counting baselines share: their inputs as numbers, and full ranking with few scored items a user.
//!
//! A baseline scores most items of the catalogue by one background order (popularity, or all alike) and few items above
//! it by the user's history. Ranks in the background are counted, not listed, so no users x items matrix is made.

use std::sync::Arc;

use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema};
use rayon::prelude::*;
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT};
use sluice_engine::table::{CHUNK_ROWS, Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::catalogue::Catalogue;
use crate::protocol;
use crate::ranked_rows::RankedRows;
use crate::schema::{self, ITEM_ID, TARGET};
use crate::sequences::{self, Sequences};

const TRAIN: &str = "train";
const HISTORIES: &str = "histories";
const ITEMS: &str = "items";

/// The inputs of every baseline.
pub const INPUTS: &[Input] = &[
    Input::required(TRAIN, "train sequences to count in"),
    Input::required(HISTORIES, "evaluation rows to rank for"),
    Input::required(ITEMS, "the catalogue: any table with item_id"),
];

/// Checks the inputs and `k`, and declares the output.
pub fn bind(binding: &Binding, k: u32, exclude_seen: bool) -> Bound {
    if k == 0 {
        binding.bad_value("k", "\"k\" must be at least 1");
    }
    sequences::require(binding, TRAIN);
    sequences::require_targets(binding, HISTORIES);
    binding.require(ITEMS, &[(ITEM_ID, DataType::Utf8)]);
    Bound::whole()
        .out(Shape::table(schema::ranked()))
        .fact(protocol::SEEN, protocol::seen(exclude_seen))
}

/// Rows of item numbers.
pub struct Rows {
    offsets: Vec<usize>,
    items: Vec<u32>,
}

impl Rows {
    /// The sequences of a batch; every item must be in the catalogue.
    pub fn read(batch: &RecordBatch, catalogue: &Catalogue, role: &str) -> Result<Self> {
        let sequences = Sequences::read(batch)?;
        let numbers = catalogue.encode(&sequences.items, role)?;
        let mut rows = Rows {
            offsets: vec![0],
            items: Vec::with_capacity(numbers.len()),
        };
        for row in 0..sequences.len() {
            rows.items.extend_from_slice(&numbers[sequences.range(row)]);
            rows.offsets.push(rows.items.len());
        }
        Ok(rows)
    }

    /// The items of a row.
    pub fn row(&self, row: usize) -> &[u32] {
        &self.items[self.offsets[row]..self.offsets[row + 1]]
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rows.
    pub fn iter(&self) -> impl Iterator<Item = &[u32]> {
        self.offsets.windows(2).map(|ends| &self.items[ends[0]..ends[1]])
    }
}

/// A baseline's inputs.
pub struct Task {
    /// The items, in natural order.
    pub catalogue: Catalogue,
    /// Train sequences.
    pub train: Rows,
    users: StringArray,
    histories: Rows,
    targets: Vec<u32>,
}

/// How to list.
#[derive(Clone, Copy)]
pub struct Listing {
    /// Length of a list.
    pub k: u32,
    /// Whether items of the history are left out.
    pub exclude_seen: bool,
}

impl Task {
    /// Reads the inputs; every item must be in the catalogue.
    pub fn read(inputs: &Tables) -> Result<Self> {
        let catalogue = Catalogue::read(inputs.table(ITEMS)?)?;
        if catalogue.is_empty() {
            return Err(Error::data("empty-input", "the catalogue has no items"));
        }
        let histories = inputs.batch(HISTORIES)?;
        Ok(Task {
            train: Rows::read(&inputs.batch(TRAIN)?, &catalogue, "train item")?,
            users: schema::strings(&histories, schema::USER_ID)?.clone(),
            targets: catalogue.encode(schema::strings(&histories, TARGET)?, "target")?,
            histories: Rows::read(&histories, &catalogue, "history item")?,
            catalogue,
        })
    }

    /// How often each item occurs in train.
    pub fn popularity(&self) -> Vec<u32> {
        let mut counts = vec![0; self.catalogue.len()];
        self.train.iter().flatten().for_each(|item| counts[*item as usize] += 1);
        counts
    }

    /// Ranks the catalogue for every history. `score` lists distinct items with scores above every score of `background`.
    pub fn rank(
        &self,
        context: &Context,
        listing: Listing,
        background: &[f64],
        score: impl Fn(&[u32]) -> Vec<(u32, f64)> + Sync,
    ) -> Result<Tables> {
        let background = Background::new(background);
        let users: Vec<usize> = (0..self.users.len()).collect();
        let batches = users
            .par_chunks((CHUNK_ROWS / (listing.k as usize + 1)).max(1))
            .map(|users| {
                context.check_cancelled()?;
                let mut rows = RankedRows::default();
                for user in users {
                    let history = self.histories.row(*user);
                    let ranking = Ranking::new(&background, score(history), history, listing.exclude_seen);
                    for (place, item) in (1..).zip(ranking.top(listing.k as usize)) {
                        rows.push(*user, place, item, ranking.standing(item));
                    }
                    let target = self.targets[*user];
                    match ranking.place(target) {
                        Some(place) if place > listing.k => rows.push(*user, place, target, ranking.standing(target)),
                        _ => {}
                    }
                }
                rows.batch(&self.users, &self.catalogue)
            })
            .collect::<Result<Vec<_>>>()?;
        let schema = Arc::new(Schema::new(schema::ranked()));
        Ok(Tables::new().with(OUT, Table::Batches(schema, batches)))
    }
}

/// The order of the catalogue without a history: by score, ties by ascending item.
struct Background {
    score: Vec<f64>,
    order: Vec<u32>,
    /// Place in `order`, from 0.
    place: Vec<u32>,
    better: Vec<u32>,
    tied: Vec<u32>,
}

impl Background {
    fn new(score: &[f64]) -> Self {
        let mut order: Vec<u32> = (0..score.len() as u32).collect();
        order.sort_by(|a, b| score[*b as usize].total_cmp(&score[*a as usize]));
        let (mut place, mut better, mut tied) = (vec![0; order.len()], vec![0; order.len()], vec![0; order.len()]);
        let mut start = 0;
        for run in order.chunk_by(|a, b| score[*a as usize] == score[*b as usize]) {
            for (offset, item) in run.iter().enumerate() {
                place[*item as usize] = (start + offset) as u32;
                better[*item as usize] = start as u32;
                tied[*item as usize] = run.len() as u32;
            }
            start += run.len();
        }
        Background {
            score: score.to_vec(),
            order,
            place,
            better,
            tied,
        }
    }
}

/// The ranking of the eligible catalogue for one history.
struct Ranking<'a> {
    background: &'a Background,
    /// Scored items by (score descending, item ascending).
    scored: Vec<(u32, f64)>,
    /// Items that are not listed, ascending.
    seen: Vec<u32>,
    /// Items that do not stand in the background: scored or seen, ascending.
    removed: Vec<u32>,
}

impl<'a> Ranking<'a> {
    fn new(background: &'a Background, mut scored: Vec<(u32, f64)>, history: &[u32], exclude_seen: bool) -> Self {
        let mut seen = if exclude_seen { history.to_vec() } else { Vec::new() };
        seen.sort_unstable();
        seen.dedup();
        scored.retain(|(item, _)| seen.binary_search(item).is_err());
        scored.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let mut removed: Vec<u32> = scored
            .iter()
            .map(|(item, _)| *item)
            .chain(seen.iter().copied())
            .collect();
        removed.sort_unstable();
        Ranking {
            background,
            scored,
            seen,
            removed,
        }
    }

    /// The first `k` items.
    fn top(&self, k: usize) -> impl Iterator<Item = u32> + '_ {
        let rest = self.background.order.iter().copied();
        let scored = self.scored.iter().map(|(item, _)| *item);
        scored
            .chain(rest.filter(|item| self.removed.binary_search(item).is_err()))
            .take(k)
    }

    /// Place of an item, from 1; `None` if it is not eligible.
    fn place(&self, item: u32) -> Option<u32> {
        if self.seen.binary_search(&item).is_ok() {
            return None;
        }
        if let Some(place) = self.scored.iter().position(|(scored, _)| *scored == item) {
            return Some(place as u32 + 1);
        }
        let place = &self.background.place;
        let before = |removed: u32| place[removed as usize] < place[item as usize];
        Some(self.scored.len() as u32 + place[item as usize] - self.removed_where(before) + 1)
    }

    /// Score of an eligible item, how many score better, and how many the same.
    fn standing(&self, item: u32) -> (f64, u32, u32) {
        if let Some((_, score)) = self.scored.iter().find(|(scored, _)| *scored == item) {
            let better = self.scored.partition_point(|(_, other)| other > score);
            let tied = self.scored.partition_point(|(_, other)| other >= score) - better;
            return (*score, better as u32, tied as u32);
        }
        let background = self.background;
        let score = background.score[item as usize];
        let better = self.removed_where(|removed| background.score[removed as usize] > score);
        let tied = self.removed_where(|removed| background.score[removed as usize] == score);
        (
            score,
            self.scored.len() as u32 + background.better[item as usize] - better,
            background.tied[item as usize] - tied,
        )
    }

    fn removed_where(&self, which: impl Fn(u32) -> bool) -> u32 {
        self.removed.iter().filter(|item| which(**item)).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The counted ranking equals sorting the whole catalogue.
        #[test]
        fn counting_equals_sorting(
            background in proptest::collection::vec(0u8..3, 1..24),
            scored in proptest::collection::vec(0u8..4, 24),
            history in proptest::collection::vec(0u32..24, 0..8),
            exclude_seen: bool,
        ) {
            let n = background.len() as u32;
            let base: Vec<f64> = background.iter().map(|score| f64::from(*score) / 10.0).collect();
            let history: Vec<u32> = history.into_iter().filter(|item| *item < n).collect();
            let above: Vec<(u32, f64)> =
                (0..n).zip(&scored).filter(|(_, score)| **score > 0).map(|(item, score)| (item, f64::from(*score))).collect();
            let order = Background::new(&base);
            let ranking = Ranking::new(&order, above.clone(), &history, exclude_seen);

            let mut all: Vec<(u32, f64)> = (0..n)
                .filter(|item| !(exclude_seen && history.contains(item)))
                .map(|item| (item, above.iter().find(|(other, _)| *other == item).map_or(base[item as usize], |o| o.1)))
                .collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            prop_assert_eq!(ranking.top(5).collect::<Vec<_>>(), all.iter().take(5).map(|row| row.0).collect::<Vec<_>>());
            for item in 0..n {
                let place = all.iter().position(|row| row.0 == item);
                prop_assert_eq!(ranking.place(item), place.map(|place| place as u32 + 1));
                if let Some(place) = place {
                    let score = all[place].1;
                    let better = all.iter().filter(|row| row.1 > score).count() as u32;
                    let tied = all.iter().filter(|row| row.1 == score).count() as u32;
                    prop_assert_eq!(ranking.standing(item), (score, better, tied));
                }
            }
        }
    }
}
