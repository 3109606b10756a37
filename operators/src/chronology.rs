//! A user's interactions in time order, with a declared rule for equal times.

use std::cmp::Ordering;
use std::collections::HashMap;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, UInt64Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::Binding;
use sluice_engine::random::Random;
use sluice_engine::{Error, Result};

use crate::schema::{self, ITEM_ID, POSITION, TIMESTAMP, USER_ID};

/// Which of two interactions of a user with equal times comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// The one that came first in the source, as published.
    #[default]
    File,
    /// Random, by the run's seed, the user and the item: no order is favoured.
    Hash,
    /// The smaller item id (integers as integers).
    ItemAsc,
    /// The larger item id (integers as integers).
    ItemDesc,
}

/// One interaction of a user.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// What was acted on.
    pub item: &'a str,
    /// When, in milliseconds UTC, if known.
    pub time: Option<i64>,
    /// Where it stood in its source.
    pub position: u64,
}

/// Requires the columns that [`users`] reads.
pub fn require(binding: &Binding, port: &str) {
    binding.require(
        port,
        &[
            (USER_ID, DataType::Utf8),
            (ITEM_ID, DataType::Utf8),
            (TIMESTAMP, schema::timestamp_type()),
            (POSITION, DataType::UInt64),
        ],
    );
}

/// Users in natural order, each with their interactions in the order of the source.
pub fn users(batch: &RecordBatch) -> Result<Vec<(&str, Vec<Event<'_>>)>> {
    let (ids, items) = (schema::strings(batch, USER_ID)?, schema::strings(batch, ITEM_ID)?);
    let (times, positions) = (
        schema::times(batch, TIMESTAMP)?,
        schema::numbers::<UInt64Type>(batch, POSITION)?,
    );
    for (name, nulls) in [(USER_ID, ids.null_count()), (ITEM_ID, items.null_count())] {
        if nulls > 0 {
            return Err(
                Error::data("null-id", format!("column \"{name}\" is null in {nulls} interactions"))
                    .hint("drop or fill these rows where the data are ingested"),
            );
        }
    }
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut users: Vec<(&str, Vec<Event>)> = Vec::new();
    for row in 0..batch.num_rows() {
        let user = *index.entry(ids.value(row)).or_insert_with(|| {
            users.push((ids.value(row), Vec::new()));
            users.len() - 1
        });
        users[user].1.push(Event {
            item: items.value(row),
            time: times.is_valid(row).then(|| times.value(row)),
            position: positions.value(row),
        });
    }
    for (_, events) in &mut users {
        events.sort_by_key(|event| event.position);
    }
    users.sort_by(|a, b| schema::natural_order(a.0, b.0));
    Ok(users)
}

/// Sorts a user's interactions by (time, tie rule, position). A user with any time missing stays in source order.
pub fn sort_by_time(user: &str, events: &mut [Event], ties: Ties, random: Random) {
    events.sort_by_key(|event| event.position);
    if events.iter().any(|event| event.time.is_none()) {
        return;
    }
    match ties {
        Ties::File => events.sort_by_key(|event| event.time),
        Ties::Hash => events.sort_by_cached_key(|event| {
            let mut stream = random.named(&format!("{user}\0{}", event.item));
            (event.time, stream.bits())
        }),
        Ties::ItemAsc => events.sort_by(|a, b| by_time(a, b, schema::natural_order(a.item, b.item))),
        Ties::ItemDesc => events.sort_by(|a, b| by_time(a, b, schema::natural_order(b.item, a.item))),
    }
}

fn by_time(a: &Event, b: &Event, tie: Ordering) -> Ordering {
    a.time.cmp(&b.time).then(tie)
}
