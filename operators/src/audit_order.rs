//! States what is known about the order of interactions: ties, disorder, and what leave-one-out makes of it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Tables};

use crate::chronology::{self, Event, Ties};
use crate::schema;

const INTERACTIONS: &str = "interactions";

/// Counts how far the order of interactions is given by time, and how far by the file.
///
/// # In
/// `interactions`: `user_id`, `item_id`, `timestamp`, `position`.
///
/// # Out
/// `out`: rows `fact`, `value`. A pair is two neighbours of one user in order of (time, position); a user with any
/// time missing stays in source order.
///
/// | fact | count |
/// |---|---|
/// | `users`, `items`, `interactions` | what there is |
/// | `shortest`, `longest` | interactions of a user |
/// | `pairs` | pairs in all |
/// | `pairs_without_timestamp` | pairs in which a time is missing: in none of the counts of pairs below |
/// | `pairs_same_timestamp` | pairs with equal times |
/// | `ties_item_ascending`, `ties_item_descending`, `ties_item_equal` | those, by natural order of their item ids |
/// | `pairs_out_of_order` | neighbours in the source of which the second is the earlier one |
/// | `users_not_evaluated` | users with fewer than 3 interactions |
/// | `targets` | users with 3 interactions or more: each has a test target |
/// | `targets_same_timestamp` | test targets at the very time of the interaction before |
/// | `targets_not_in_train` | test targets that no user's train part holds (ties in source order) |
///
/// # Source
/// Ours: a split by time is only as good as its times.
///
/// # Deviates
/// Nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditOrder {}

impl Operator for AuditOrder {
    const NAME: &'static str = "audit_order";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(INTERACTIONS, "interactions to look at")];

    fn bind(&self, binding: &Binding) -> Bound {
        chronology::require(binding, INTERACTIONS);
        Bound::whole().out(Shape::table(fields()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INTERACTIONS)?;
        let mut users = chronology::users(&batch)?;
        let out_of_order = users.iter().map(|(_, events)| disorder(events)).sum();
        for (user, events) in users.iter_mut() {
            chronology::sort_by_time(user, events, Ties::File, context.random("ties"));
        }
        let events: Vec<&[Event]> = users.iter().map(|(_, events)| events).collect();
        let mut facts = sizes(&events);
        facts.extend(pairs(&events));
        facts.push(("pairs_out_of_order", out_of_order));
        facts.extend(targets(&events));
        let names = StringArray::from_iter_values(facts.iter().map(|(name, _)| name));
        let values = Int64Array::from_iter_values(facts.iter().map(|(_, value)| *value as i64));
        Ok(Tables::out(RecordBatch::try_new(
            Arc::new(Schema::new(fields())),
            vec![Arc::new(names), Arc::new(values)],
        )?))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let facts = outputs.batch(OUT)?;
        let values = facts.column(1).as_primitive::<Int64Type>().values().iter();
        let names = schema::strings(&facts, "fact")?.iter().flatten();
        Ok(names
            .map(String::from)
            .zip(values.map(|value| (*value).into()))
            .collect())
    }
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("fact", DataType::Utf8, false),
        Field::new("value", DataType::Int64, false),
    ]
}

type Facts = Vec<(&'static str, usize)>;

fn sizes(users: &[&[Event]]) -> Facts {
    let items: HashSet<&str> = users.iter().copied().flatten().map(|event| event.item).collect();
    let lengths = || users.iter().map(|events| events.len());
    vec![
        ("users", users.len()),
        ("items", items.len()),
        ("interactions", lengths().sum()),
        ("shortest", lengths().min().unwrap_or(0)),
        ("longest", lengths().max().unwrap_or(0)),
    ]
}

fn pairs(users: &[&[Event]]) -> Facts {
    let (mut all, mut timeless) = (0, 0);
    let mut ties = [0; 3];
    for pair in users.iter().flat_map(|events| events.windows(2)) {
        all += 1;
        match (pair[0].time, pair[1].time) {
            (Some(a), Some(b)) if a == b => match schema::natural_order(pair[0].item, pair[1].item) {
                Ordering::Less => ties[0] += 1,
                Ordering::Greater => ties[1] += 1,
                Ordering::Equal => ties[2] += 1,
            },
            (Some(_), Some(_)) => {}
            _ => timeless += 1,
        }
    }
    vec![
        ("pairs", all),
        ("pairs_without_timestamp", timeless),
        ("pairs_same_timestamp", ties.iter().sum()),
        ("ties_item_ascending", ties[0]),
        ("ties_item_descending", ties[1]),
        ("ties_item_equal", ties[2]),
    ]
}

/// Neighbours in source order of which the second is the earlier one.
fn disorder(events: &[Event]) -> usize {
    let known = |pair: &&[Event]| matches!((pair[0].time, pair[1].time), (Some(a), Some(b)) if b < a);
    events.windows(2).filter(known).count()
}

fn targets(users: &[&[Event]]) -> Facts {
    let evaluated: Vec<&[Event]> = users.iter().copied().filter(|events| events.len() >= 3).collect();
    let train: HashSet<&str> = users
        .iter()
        .flat_map(|events| match events.len() {
            n @ 3.. => &events[..n - 2],
            _ => events,
        })
        .map(|event| event.item)
        .collect();
    let same = |events: &&&[Event]| {
        let (before, target) = last_two(events);
        target.time.is_some() && target.time == before.time
    };
    vec![
        ("users_not_evaluated", users.len() - evaluated.len()),
        ("targets", evaluated.len()),
        ("targets_same_timestamp", evaluated.iter().filter(same).count()),
        (
            "targets_not_in_train",
            evaluated
                .iter()
                .filter(|events| !train.contains(last_two(events).1.item))
                .count(),
        ),
    ]
}

/// The last two of at least two interactions.
fn last_two<'a>(events: &[Event<'a>]) -> (Event<'a>, Event<'a>) {
    (events[events.len() - 2], events[events.len() - 1])
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn facts(rows: RecordBatch) -> BTreeMap<String, i64> {
        let out = harness::run(&AuditOrder::default(), &[(INTERACTIONS, rows)]).unwrap();
        let batch = out.batch(OUT).unwrap();
        let values = batch.column(1).as_primitive::<Int64Type>().values().to_vec();
        let names = schema::strings(&batch, "fact").unwrap().iter().flatten();
        names.map(String::from).zip(values).collect()
    }

    #[test]
    fn ties_and_disorder_are_counted() {
        let facts = facts(
            text::parse(
                "user_id item_id timestamp:ts position:u64
                u 9 5 1
                u 10 5 2
                u 8 5 3
                u 7 4 4
                v 7 null 5
                v 7 1 6",
            )
            .unwrap(),
        );
        for (fact, value) in [
            ("users", 2),
            ("items", 4),
            ("interactions", 6),
            ("shortest", 2),
            ("longest", 4),
            ("pairs", 4),
            ("pairs_without_timestamp", 1),
            ("pairs_same_timestamp", 2),
            ("ties_item_ascending", 1),
            ("ties_item_descending", 1),
            ("ties_item_equal", 0),
            ("pairs_out_of_order", 1),
            ("users_not_evaluated", 1),
            ("targets", 1),
            ("targets_same_timestamp", 1),
            ("targets_not_in_train", 1),
        ] {
            assert_eq!(facts[fact], value, "{fact}");
        }
    }

    #[test]
    fn beauty() {
        let Some(rows) = crate::beauty::interactions("asin") else {
            return;
        };
        let facts = facts(rows);
        for (fact, value) in [
            ("users", 22_363),
            ("items", 12_101),
            ("interactions", 198_502),
            ("shortest", 5),
            ("longest", 204),
            ("pairs", 176_139),
            ("pairs_same_timestamp", 77_402),
            ("ties_item_ascending", 77_402),
            ("ties_item_descending", 0),
            ("pairs_out_of_order", 0),
            ("users_not_evaluated", 0),
            ("targets_same_timestamp", 9_719),
            ("targets_not_in_train", 138),
        ] {
            assert_eq!(facts[fact], value, "{fact}");
        }
    }
}
