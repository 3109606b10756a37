//! A user's interactions in time order, with a declared rule for equal times.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, UInt64Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::Binding;
use sluice_engine::random::Random;
use sluice_engine::{Error, Result};

use crate::equal_rows;
use crate::schema::{self, ITEM_ID, NaturalKey, POSITION, TIMESTAMP, USER_ID, natural_key, natural_order};

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

impl Ties {
    /// As configs call it.
    pub fn name(self) -> &'static str {
        match self {
            Ties::File => "file",
            Ties::Hash => "hash",
            Ties::ItemAsc => "item_asc",
            Ties::ItemDesc => "item_desc",
        }
    }
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

/// Users in natural order, each with their interactions.
#[derive(Debug)]
pub struct Users<'a> {
    ids: Vec<&'a str>,
    /// Where the interactions of every user end.
    ends: Vec<usize>,
    events: Vec<Event<'a>>,
}

impl<'a> Users<'a> {
    /// Users.
    pub fn ids(&self) -> &[&'a str] {
        &self.ids
    }

    /// The interactions of all users, one after the other.
    pub fn events(&self) -> &[Event<'a>] {
        &self.events
    }

    /// Users and their interactions.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &[Event<'a>])> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let ranges = starts.zip(&self.ends);
        let events = ranges.map(|(start, end)| &self.events[start..*end]);
        self.ids.iter().copied().zip(events)
    }

    /// Users and their interactions, to be ordered.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&'a str, &mut [Event<'a>])> {
        let (mut rest, mut start) = (self.events.as_mut_slice(), 0);
        let events = self.ends.iter().map(move |end| {
            let (events, others) = std::mem::take(&mut rest).split_at_mut(end - start);
            (rest, start) = (others, *end);
            events
        });
        self.ids.iter().copied().zip(events)
    }
}

/// Users in natural order, each with their interactions in the order of the source.
pub fn users(batch: &RecordBatch) -> Result<Users<'_>> {
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
    // Every user by the row that names them first, in natural order.
    let first = equal_rows::first_equal(&[Arc::new(ids.clone())])?;
    let mut counts = vec![0usize; batch.num_rows()];
    first.iter().for_each(|row| counts[*row as usize] += 1);
    let heads = (0..batch.num_rows()).filter(|row| first[*row] as usize == *row);
    let mut users: Vec<(NaturalKey, usize)> = heads.map(|row| (natural_key(ids.value(row)), row)).collect();
    users.sort_unstable();
    // Where the next interaction of a user goes, then where their interactions end.
    let mut next = counts;
    let mut start = 0;
    for (_, row) in &users {
        start += std::mem::replace(&mut next[*row], start);
    }
    let nobody = Event {
        item: "",
        time: None,
        position: 0,
    };
    let mut events = vec![nobody; batch.num_rows()];
    for (row, user) in first.into_iter().enumerate() {
        let place = &mut next[user as usize];
        events[*place] = Event {
            item: items.value(row),
            time: times.is_valid(row).then(|| times.value(row)),
            position: positions.value(row),
        };
        *place += 1;
    }
    let mut users = Users {
        ids: users.iter().map(|(_, row)| ids.value(*row)).collect(),
        ends: users.iter().map(|(_, row)| next[*row]).collect(),
        events,
    };
    for (_, events) in users.iter_mut() {
        events.sort_by_key(|event| event.position);
    }
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
        Ties::ItemAsc => sort_with_ties(events, |a, b| natural_order(a.item, b.item)),
        Ties::ItemDesc => sort_with_ties(events, |a, b| natural_order(b.item, a.item)),
    }
}

fn sort_with_ties(events: &mut [Event], tie: impl Fn(&Event, &Event) -> Ordering) {
    events.sort_by(|a, b| a.time.cmp(&b.time).then_with(|| tie(a, b)));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use sluice_engine::text;

    use super::*;

    proptest! {
        /// Against the slow way: a map of users, filled in the order of positions.
        #[test]
        fn users_are_in_natural_order_and_their_events_in_source_order(
            users in prop::collection::vec(0u64..12, 1..60),
            seed in 0u64..9,
        ) {
            let name = |user: &u64| if user.is_multiple_of(3) { format!("u{user}") } else { user.to_string() };
            let mut rows: Vec<(u64, String)> = (0..).zip(users.iter().map(name)).collect();
            rows.sort_by_key(|(position, _)| (position + 1) * (seed * 2 + 1) % 61);
            let lines = rows.iter().map(|(position, user)| format!("\n{user} i{position} {position} {position}"));
            let table = format!("user_id item_id timestamp:ts position:u64{}", lines.collect::<String>());
            let batch = text::parse(&table).unwrap();
            let mut slow: BTreeMap<NaturalKey, Vec<u64>> = BTreeMap::new();
            rows.sort_unstable();
            for (position, user) in &rows {
                slow.entry(natural_key(user)).or_default().push(*position);
            }
            let mut found = super::users(&batch).unwrap();
            let positions = |events: &[Event]| events.iter().map(|event| event.position).collect();
            let seen: Vec<(NaturalKey, Vec<u64>)> =
                found.iter().map(|(user, events)| (natural_key(user), positions(events))).collect();
            prop_assert_eq!(&seen, &slow.into_iter().collect::<Vec<_>>());
            let again: Vec<usize> = found.iter_mut().map(|(_, events)| events.len()).collect();
            prop_assert_eq!(again, seen.iter().map(|(_, events)| events.len()).collect::<Vec<_>>());
        }
    }
}
