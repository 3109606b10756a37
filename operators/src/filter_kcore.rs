//! Keeps users and items with enough interactions, again and again until nothing more is dropped.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{BooleanArray, StringArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::DataType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Distribution, Input, Notes, OUT, Operator};
use sluice_engine::table::Tables;
use sluice_engine::{Error, Result};

use crate::protocol;
use crate::schema::{self, ITEM_ID, USER_ID};

const INTERACTIONS: &str = "interactions";

/// The k-core: users with at least k interactions and items with at least k, at the fixed point over both.
///
/// # In
/// `interactions`: any table with `user_id` and `item_id`.
///
/// # Out
/// `out`: the rows kept, all columns unchanged, in source order.
///
/// # Source
/// The 5-core of the Amazon 2014 data sets (McAuley et al. 2015); k 5 is what TIGER and GRID use.
///
/// # Deviates
/// Interactions are counted, not distinct partners: repeats count. Put `dedup` before it to change that.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FilterKcore {
    /// Least number of interactions of a user and of an item.
    pub k: u32,
    /// Least number of interactions of a user, if not `k`.
    pub user_k: Option<u32>,
    /// Least number of interactions of an item, if not `k`.
    pub item_k: Option<u32>,
}

impl Default for FilterKcore {
    fn default() -> Self {
        FilterKcore {
            k: 5,
            user_k: None,
            item_k: None,
        }
    }
}

impl Operator for FilterKcore {
    const NAME: &'static str = "filter_kcore";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(INTERACTIONS, "rows with user_id and item_id")];

    fn bind(&self, binding: &Binding) -> Bound {
        for (field, k) in [("k", Some(self.k)), ("user_k", self.user_k), ("item_k", self.item_k)] {
            if k == Some(0) {
                binding.bad_value(field, format!("\"{field}\" must be at least 1"));
            }
        }
        binding.require(INTERACTIONS, &[(USER_ID, DataType::Utf8), (ITEM_ID, DataType::Utf8)]);
        let sides = vec![vec![USER_ID.to_string()], vec![ITEM_ID.to_string()]];
        let (of_users, of_items) = (self.user_k.unwrap_or(self.k), self.item_k.unwrap_or(self.k));
        Bound::new(Distribution::Fixpoint(INTERACTIONS.into(), sides))
            .out(binding.shape(INTERACTIONS))
            .fact(
                protocol::FILTER,
                format!("{of_users}-core of users, {of_items}-core of items"),
            )
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        // Only the keys of this side are complete here, so only they can be counted.
        let (name, k) = match context.side {
            Some(0) => (USER_ID, self.user_k.unwrap_or(self.k)),
            Some(1) => (ITEM_ID, self.item_k.unwrap_or(self.k)),
            side => return Err(Error::internal(format!("filter_kcore has no side {side:?}"))),
        };
        let batch = inputs.batch(INTERACTIONS)?;
        let mask = often(schema::strings(&batch, name)?, k);
        Ok(Tables::out(filter_record_batch(&batch, &mask)?))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let rows = rows_in.get(INTERACTIONS).copied().unwrap_or_default();
        let kept = outputs.table(OUT)?.rows()?;
        if rows > 0 && kept == 0 {
            return Err(
                Error::data("empty-result", "the k-core is empty: every interaction was dropped")
                    .hint("lower \"k\", or check that ids are what they should be"),
            );
        }
        Ok(Notes::from_iter([
            ("rows_in".to_string(), rows.into()),
            ("rows_out".to_string(), kept.into()),
            ("dropped".to_string(), (rows - kept).into()),
        ]))
    }
}

/// Which rows hold a key that occurs at least `k` times.
fn often(keys: &StringArray, k: u32) -> BooleanArray {
    let mut counts: HashMap<Option<&str>, u32> = HashMap::new();
    for key in keys {
        *counts.entry(key).or_default() += 1;
    }
    keys.iter().map(|key| Some(counts[&key] >= k)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use arrow::array::RecordBatch;
    use sluice_engine::{harness, text};

    use super::*;

    const EDGES: &str = "user_id item_id
        1 1
        2 1
        2 2
        3 3
        3 4
        3 5
        3 6
        4 3
        4 4
        5 5
        5 6
        6 5
        6 6";

    fn kept(kcore: &FilterKcore) -> Result<String> {
        let out = harness::run(kcore, &[(INTERACTIONS, text::parse(EDGES).unwrap())])?;
        text::render(&out.batch(OUT)?)
    }

    #[test]
    fn the_core_needs_iteration() {
        let core = kept(&FilterKcore {
            k: 2,
            ..FilterKcore::default()
        });
        let wanted = "user_id  item_id\n3        3\n3        4\n3        5\n3        6\n4        3\n4        4\n\
                      5        5\n5        6\n6        5\n6        6\n";
        assert_eq!(core.unwrap(), wanted);
    }

    #[test]
    fn sides_may_differ() {
        let core = kept(&FilterKcore {
            k: 1,
            user_k: Some(3),
            item_k: None,
        });
        assert_eq!(
            core.unwrap(),
            "user_id  item_id\n3        3\n3        4\n3        5\n3        6\n"
        );
    }

    #[test]
    fn nothing_left_and_bad_values_are_errors() {
        assert_eq!(kept(&FilterKcore::default()).unwrap_err().code, "empty-result");
        let zero = FilterKcore {
            k: 0,
            ..FilterKcore::default()
        };
        assert_eq!(kept(&zero).unwrap_err().code, "bad-value");
    }

    fn core_sizes(rows: RecordBatch) -> [usize; 3] {
        let out = harness::run(&FilterKcore::default(), &[(INTERACTIONS, rows)]).unwrap();
        let core = out.batch(OUT).unwrap();
        let distinct = |name| {
            schema::strings(&core, name)
                .unwrap()
                .iter()
                .collect::<HashSet<_>>()
                .len()
        };
        [distinct(USER_ID), distinct(ITEM_ID), core.num_rows()]
    }

    #[test]
    fn beauty_is_its_own_core() {
        let Some(rows) = crate::beauty::interactions("item_id") else {
            return;
        };
        assert_eq!(core_sizes(rows), [22_363, 12_101, 198_502]);
    }

    #[test]
    fn the_core_of_movielens() {
        let Some(rows) = crate::beauty::movielens() else { return };
        assert_eq!(core_sizes(rows), [610, 3_650, 90_274]);
    }
}
