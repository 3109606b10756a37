//! Ranks the catalogue by how often items occur in train.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Operator};
use sluice_engine::table::Tables;

use crate::baseline::{self, Listing, Task};

/// Popularity: the score of an item is its number of interactions in train.
///
/// # In
/// `train`: sequences. `histories`: evaluation rows. `items`: the catalogue, any table with `item_id`.
///
/// # Out
/// `out`: the first `k` items of every user, ties by ascending item id, and the target's own row where it ranks
/// below `k`. `better` and `tied` count over the eligible catalogue.
///
/// # Source
/// The floor of every comparison (RecBole's `Pop`).
///
/// # Deviates
/// Nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RankPopularity {
    /// Length of a list.
    pub k: u32,
    /// Whether items of the history are not eligible. A target that was seen then gets no row, and scores 0.
    pub exclude_seen: bool,
}

impl Default for RankPopularity {
    fn default() -> Self {
        RankPopularity {
            k: 10,
            exclude_seen: false,
        }
    }
}

impl Operator for RankPopularity {
    const NAME: &'static str = "rank_popularity";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = baseline::INPUTS;

    fn bind(&self, binding: &Binding) -> Bound {
        baseline::bind(binding, self.k, self.exclude_seen)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let task = Task::read(&inputs)?;
        let listing = Listing {
            k: self.k,
            exclude_seen: self.exclude_seen,
        };
        let popularity: Vec<f64> = task.popularity().into_iter().map(f64::from).collect();
        task.rank(context, listing, &popularity, |_| Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn rank(config: &RankPopularity, items: &str) -> Result<String> {
        let inputs = [
            (
                "train",
                text::parse("user_id sequence:[str]\n u 9,10\n v 10,10\n w 8").unwrap(),
            ),
            (
                "histories",
                text::parse("user_id sequence:[str] target\n u 9,10 7\n v 10 10").unwrap(),
            ),
            ("items", text::parse(items).unwrap()),
        ];
        text::render(&harness::run(config, &inputs)?.batch("out")?)
    }

    #[test]
    fn lists_and_targets_below() {
        let config = RankPopularity {
            k: 2,
            exclude_seen: false,
        };
        let wanted = "user_id  rank  item_id  score  better  tied  beam
u        1     10       3.0    0       1     1
u        2     8        1.0    1       2     2
u        4     7        0.0    3       1     4
v        1     10       3.0    0       1     1
v        2     8        1.0    1       2     2
";
        assert_eq!(rank(&config, "item_id\n7\n8\n9\n10").unwrap(), wanted);
    }

    #[test]
    fn seen_items_are_not_eligible() {
        let config = RankPopularity {
            k: 1,
            exclude_seen: true,
        };
        let wanted = "user_id  rank  item_id  score  better  tied  beam
u        1     8        1.0    0       1     1
u        2     7        0.0    1       1     2
v        1     8        1.0    0       2     1
";
        assert_eq!(rank(&config, "item_id\n7\n8\n9\n10").unwrap(), wanted);
    }

    #[test]
    fn a_stranger_is_named() {
        let error = rank(&RankPopularity::default(), "item_id\n7\n8\n9").unwrap_err();
        assert_eq!(error.message, "train item \"10\" is not in the catalogue");
    }
}
