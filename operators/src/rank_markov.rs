//! Ranks the catalogue by how often items followed the last item of the history in train.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Operator};
use sluice_engine::table::Tables;

use crate::baseline::{self, Listing, Task};

/// Markov-1: the score of an item is how often it followed the last item of the history in train.
///
/// # In
/// `train`: sequences. `histories`: evaluation rows. `items`: the catalogue, any table with `item_id`.
///
/// # Out
/// `out`: the first `k` items of every user, ties by ascending item id, and the target's own row where it ranks
/// below `k`. `better` and `tied` count over the eligible catalogue. A score of 1 or more says that the item did follow.
///
/// # Source
/// A first-order chain with maximum-likelihood counts (FPMC's "MC", Rendle et al. 2010).
///
/// # Deviates
/// Counts are not divided by the row's sum, which would not change the order.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RankMarkov {
    /// Length of a list.
    pub k: u32,
    /// Whether items of the history are not eligible. A target that was seen then gets no row, and scores 0.
    pub exclude_seen: bool,
    /// What decides between items that followed equally often.
    pub fallback: Fallback,
}

/// What decides between items that followed equally often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// Nothing: they are tied, as are all items that never followed.
    None,
    /// Their popularity p in train, of items that followed and of those that did not: score = count + p / (1 + max p).
    Popularity,
}

impl Default for RankMarkov {
    fn default() -> Self {
        RankMarkov {
            k: 10,
            exclude_seen: false,
            fallback: Fallback::None,
        }
    }
}

impl Operator for RankMarkov {
    const NAME: &'static str = "rank_markov";
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
        let popularity = task.popularity();
        let unit = 1.0 + f64::from(popularity.iter().copied().max().unwrap_or(0));
        let background: Vec<f64> = match self.fallback {
            Fallback::None => vec![0.0; popularity.len()],
            Fallback::Popularity => popularity.iter().map(|count| f64::from(*count) / unit).collect(),
        };
        let follows = follows(&task);
        task.rank(context, listing, &background, |history| {
            let row = history.last().map_or(&[][..], |last| &follows[*last as usize]);
            row.iter()
                .map(|(item, count)| (*item, f64::from(*count) + background[*item as usize]))
                .collect()
        })
    }
}

/// For every item, the items that followed it in train and how often, ascending.
fn follows(task: &Task) -> Vec<Vec<(u32, u32)>> {
    let mut pairs: Vec<(u32, u32)> = task
        .train
        .iter()
        .flat_map(|items| items.windows(2).map(|pair| (pair[0], pair[1])))
        .collect();
    pairs.sort_unstable();
    let mut follows = vec![Vec::new(); task.catalogue.len()];
    for run in pairs.chunk_by(|a, b| a == b) {
        follows[run[0].0 as usize].push((run[0].1, run.len() as u32));
    }
    follows
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn rank(fallback: Fallback) -> String {
        let inputs = [
            (
                "train",
                text::parse("user_id sequence:[str]\n u a,b\n v a,c,d\n w a,c\n x d,d").unwrap(),
            ),
            (
                "histories",
                text::parse("user_id sequence:[str] target\n u d,a b\n v b d").unwrap(),
            ),
            ("items", text::parse("item_id\n a\n b\n c\n d").unwrap()),
        ];
        let config = RankMarkov {
            k: 1,
            fallback,
            ..RankMarkov::default()
        };
        text::render(&harness::run(&config, &inputs).unwrap().batch("out").unwrap()).unwrap()
    }

    #[test]
    fn what_never_followed_is_tied() {
        let wanted = "user_id  rank  item_id  score  better  tied  beam
u        1     c        2.0    0       1     1
u        2     b        1.0    1       1     2
v        1     a        0.0    0       4     1
v        4     d        0.0    0       4     4
";
        assert_eq!(rank(Fallback::None), wanted);
    }

    #[test]
    fn popularity_decides_the_rest() {
        let wanted = "user_id  rank  item_id  score  better  tied  beam
u        1     c        2.5    0       1     1
u        2     b        1.25   1       1     2
v        1     a        0.75   0       2     1
v        2     d        0.75   0       2     2
";
        assert_eq!(rank(Fallback::Popularity), wanted);
    }
}
