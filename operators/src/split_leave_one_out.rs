//! Splits every user's interactions in time: the last for test, the one before for validation, the rest to train.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ListArray, MutableArrayData, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
    make_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

pub use crate::chronology::Ties;
use crate::chronology::{self, Users};
use crate::{protocol, schema};

const INTERACTIONS: &str = "interactions";
const TRAIN: &str = "train";
const VALID: &str = "valid";
const TEST: &str = "test";

/// Leave-one-out: of n interactions in time order, `[0..n-2)` train, `n-2` validates, `n-1` tests.
///
/// # In
/// `interactions`: `user_id`, `item_id`, `timestamp`, `position`.
///
/// # Out
/// `train`: a sequence a user. `valid`: the same history and its next item as target. `test`: the history with the
/// validation item, and the last item as target. Users in natural order of `user_id` within a partition. Users with
/// fewer than `min_items` interactions train with all of them and are not evaluated; the notes count them.
///
/// # Source
/// SASRec (Kang & McAuley 2018), as S3-Rec, TIGER and GRID use it.
///
/// # Deviates
/// Published splits follow the order of the file without saying so. Here the rule for equal times is declared.
/// A user with any time missing is kept in source order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SplitLeaveOneOut {
    /// Which of two interactions with equal times comes first.
    pub ties: Ties,
    /// Users with fewer interactions are not evaluated; at least 3.
    pub min_items: u32,
}

impl Default for SplitLeaveOneOut {
    fn default() -> Self {
        SplitLeaveOneOut {
            ties: Ties::File,
            min_items: 3,
        }
    }
}

impl Operator for SplitLeaveOneOut {
    const NAME: &'static str = "split_leave_one_out";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;
    const INPUTS: &'static [Input] = &[Input::required(INTERACTIONS, "interactions to split")];

    fn seeded(&self) -> bool {
        self.ties == Ties::Hash
    }

    fn bind(&self, binding: &Binding) -> Bound {
        if self.min_items < 3 {
            binding.bad_value(
                "min_items",
                "\"min_items\" must be at least 3: one item each to train, validate and test",
            );
        }
        chronology::require(binding, INTERACTIONS);
        Bound::by(INTERACTIONS, &[schema::USER_ID])
            .output(TRAIN, Shape::table(schema::sequences()))
            .output(VALID, Shape::table(schema::evaluation()))
            .output(TEST, Shape::table(schema::evaluation()))
            .fact(
                protocol::SPLIT,
                format!("leave one out, users of {} items or more", self.min_items),
            )
            .fact(protocol::TIES, self.ties.name())
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(INTERACTIONS)?;
        let random = context.random("ties");
        let mut users = chronology::users(&batch)?;
        for (user, events) in users.iter_mut() {
            chronology::sort_by_time(user, events, self.ties, random);
        }
        let (mut train, mut valid, mut test) = (Part::default(), Part::default(), Part::default());
        let mut start = 0;
        for (user, (_, events)) in users.iter().enumerate() {
            let end = start + events.len();
            if events.len() < self.min_items as usize {
                train.push(user, start..end);
            } else {
                train.push(user, start..end - 2);
                valid.push(user, start..end - 2);
                test.push(user, start..end - 1);
            }
            start = end;
        }
        let ordered = Ordered::new(&users);
        Ok(Tables::new()
            .with(TRAIN, train.table(&ordered, schema::sequences())?)
            .with(VALID, valid.table(&ordered, schema::evaluation())?)
            .with(TEST, test.table(&ordered, schema::evaluation())?))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let (users, evaluated) = (outputs.table(TRAIN)?.rows()?, outputs.table(TEST)?.rows()?);
        Ok(Notes::from_iter([
            ("users".to_string(), users.into()),
            ("users_evaluated".to_string(), evaluated.into()),
            ("users_train_only".to_string(), (users - evaluated).into()),
        ]))
    }
}

/// All users, and the items and times of their interactions one after the other.
struct Ordered {
    users: StringArray,
    items: StringArray,
    times: TimestampMillisecondArray,
}

impl Ordered {
    fn new(users: &Users) -> Self {
        let events = || users.events().iter();
        let times: TimestampMillisecondArray = events().map(|event| event.time).collect();
        Ordered {
            users: StringArray::from_iter_values(users.ids()),
            items: StringArray::from_iter_values(events().map(|event| event.item)),
            times: times.with_data_type(schema::timestamp_type()),
        }
    }
}

/// The rows of one output port: a user, and where their history lies. The target comes right after it.
#[derive(Default)]
struct Part {
    users: Vec<u32>,
    histories: Vec<Range<usize>>,
}

impl Part {
    fn push(&mut self, user: usize, history: Range<usize>) {
        self.users.push(user as u32);
        self.histories.push(history);
    }

    /// The columns that `fields` asks for: with targets or without.
    fn table(&self, ordered: &Ordered, fields: Vec<Field>) -> Result<Table> {
        let users = UInt32Array::from(self.users.clone());
        let mut columns = vec![
            take(&ordered.users, &users, None)?,
            self.lists(&ordered.items, &fields[1])?,
            self.lists(&ordered.times, &fields[2])?,
        ];
        if fields.len() > columns.len() {
            let targets = UInt32Array::from_iter_values(self.histories.iter().map(|history| history.end as u32));
            columns.push(take(&ordered.items, &targets, None)?);
            columns.push(take(&ordered.times, &targets, None)?);
        }
        Ok(Table::new(RecordBatch::try_new(
            Arc::new(Schema::new(fields)),
            columns,
        )?))
    }

    /// The histories as a list column.
    fn lists(&self, values: &dyn Array, field: &Field) -> Result<ArrayRef> {
        let data = values.to_data();
        let mut copied = MutableArrayData::new(vec![&data], false, values.len());
        for history in &self.histories {
            copied.try_extend(0, history.start, history.end)?;
        }
        let DataType::List(item) = field.data_type() else {
            return Err(Error::internal(format!("\"{}\" is no list", field.name())));
        };
        let offsets = OffsetBuffer::from_lengths(self.histories.iter().map(Range::len));
        let lists = ListArray::try_new(item.clone(), offsets, make_array(copied.freeze()), None)?;
        Ok(Arc::new(lists))
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn split(split: &SplitLeaveOneOut, rows: &str, port: &str, columns: &[usize]) -> String {
        let out = harness::run(split, &[(INTERACTIONS, text::parse(rows).unwrap())]).unwrap();
        text::render(&out.batch(port).unwrap().project(columns).unwrap()).unwrap()
    }

    #[test]
    fn the_last_two_items_are_held_out() {
        let rows = "user_id item_id timestamp:ts position:u64
            u 3 4 1
            u 2 3 2
            u 1 2 3
            u 0 1 4
            w 4 1 5
            w 5 2 6";
        let default = SplitLeaveOneOut::default();
        assert!(split(&default, rows, TRAIN, &[0, 1]).contains("u        [0, 1]\n"));
        assert!(split(&default, rows, TRAIN, &[0, 1]).contains("w        [4, 5]\n"));
        assert_eq!(
            split(&default, rows, VALID, &[0, 1, 3]),
            "user_id  sequence  target\nu        [0, 1]    2\n"
        );
        assert_eq!(
            split(&default, rows, TEST, &[0, 1, 3]),
            "user_id  sequence   target\nu        [0, 1, 2]  3\n"
        );
        let out = harness::run(&default, &[(INTERACTIONS, text::parse(rows).unwrap())]).unwrap();
        let test = out.batch(TEST).unwrap();
        assert_eq!(schema::times(&test, schema::TARGET_TIMESTAMP).unwrap().value(0), 4);
        assert_eq!(crate::sequences::last_times(&test).unwrap(), [Some(3)]);
    }

    #[test]
    fn two_users_of_four_items() {
        let rows = "user_id item_id timestamp:ts position:u64
            a 0 1 1
            a 1 2 2
            a 2 3 3
            a 3 4 4
            b 4 1 5
            b 5 2 6
            b 6 3 7
            b 7 4 8";
        for (port, targets) in [(VALID, ["2", "6"]), (TEST, ["3", "7"])] {
            let text = split(&SplitLeaveOneOut::default(), rows, port, &[3]);
            let mut found: Vec<&str> = text.lines().skip(1).collect();
            found.sort_unstable();
            assert_eq!(found, targets);
        }
    }

    #[test]
    fn ties_follow_the_declared_rule() {
        let rows = "user_id item_id timestamp:ts position:u64
            u 9 5 1
            u 10 5 2
            u 8 5 3";
        let history = |ties| {
            let config = SplitLeaveOneOut {
                ties,
                ..SplitLeaveOneOut::default()
            };
            split(&config, rows, TEST, &[1, 3])
        };
        assert_eq!(history(Ties::File), "sequence  target\n[9, 10]   8\n");
        assert_eq!(history(Ties::ItemAsc), "sequence  target\n[8, 9]    10\n");
        assert_eq!(history(Ties::ItemDesc), "sequence  target\n[10, 9]   8\n");
        assert_eq!(history(Ties::Hash), history(Ties::Hash));
    }

    #[test]
    fn a_missing_time_keeps_source_order() {
        let rows = "user_id item_id timestamp:ts position:u64
            u a 5 1
            u b null 2
            u c 1 3";
        assert_eq!(
            split(&SplitLeaveOneOut::default(), rows, TEST, &[1, 3]),
            "sequence  target\n[a, b]    c\n"
        );
    }
}
