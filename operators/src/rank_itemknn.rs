//! Ranks the catalogue by similarity to the items of the history: two items are similar if the same users have them.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, Operator};
use sluice_engine::table::Tables;

use crate::baseline::{self, Listing, Task};

/// Item-based nearest neighbours: the score of an item is the sum of its similarities to the items of the history.
///
/// # In
/// `train`: sequences. `histories`: evaluation rows. `items`: the catalogue, any table with `item_id`.
///
/// # Out
/// `out`: the first `k` items of every user, ties by ascending item id, and the target's own row where it ranks
/// below `k`. `better` and `tied` count over the eligible catalogue.
///
/// # Source
/// Deshpande and Karypis, "Item-based top-N recommendation algorithms" (2004): cosine over the users that have both,
/// users_ij / (sqrt(users_i users_j) + shrink), and each item of the history brings its nearest neighbours.
///
/// # Deviates
/// Similarities are not normalised per item. RecBole's ItemKNN keeps the neighbours of the scored item instead.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RankItemknn {
    /// Length of a list.
    pub k: u32,
    /// Whether items of the history are not eligible. A target that was seen then gets no row, and scores 0.
    pub exclude_seen: bool,
    /// How many of the most similar items each item keeps, ties by ascending item id.
    pub neighbours: u32,
    /// Added to the denominator: pulls down similarities that rest on few users.
    pub shrink: f64,
}

impl Default for RankItemknn {
    fn default() -> Self {
        RankItemknn {
            k: 10,
            exclude_seen: false,
            neighbours: 100,
            shrink: 0.0,
        }
    }
}

impl Operator for RankItemknn {
    const NAME: &'static str = "rank_itemknn";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = baseline::INPUTS;

    fn bind(&self, binding: &Binding) -> Bound {
        if self.neighbours == 0 {
            binding.bad_value("neighbours", "\"neighbours\" must be at least 1");
        }
        if !(self.shrink >= 0.0 && self.shrink.is_finite()) {
            binding.bad_value("shrink", "\"shrink\" must be a finite number, 0 or more");
        }
        baseline::bind(binding, self.k, self.exclude_seen)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let task = Task::read(&inputs)?;
        let listing = Listing {
            k: self.k,
            exclude_seen: self.exclude_seen,
        };
        let similar = self.neighbourhoods(context, &task)?;
        let background = vec![0.0; task.catalogue.len()];
        task.rank(context, listing, &background, |history| {
            let mut parts: Vec<(u32, f64)> = distinct(history)
                .into_iter()
                .flat_map(|item| similar[item as usize].iter().copied())
                .collect();
            // A stable sort: the parts of an item are added in order of the history's item, so sums are exact repeats.
            parts.sort_by_key(|(item, _)| *item);
            parts
                .chunk_by(|a, b| a.0 == b.0)
                .map(|run| (run[0].0, run.iter().map(|part| part.1).sum()))
                .collect()
        })
    }
}

impl RankItemknn {
    /// The nearest neighbours of every item.
    fn neighbourhoods(&self, context: &Context, task: &Task) -> Result<Vec<Vec<(u32, f64)>>> {
        let baskets: Vec<Vec<u32>> = task.train.iter().map(distinct).collect();
        let mut users = vec![Vec::new(); task.catalogue.len()];
        for (user, basket) in baskets.iter().enumerate() {
            basket.iter().for_each(|item| users[*item as usize].push(user));
        }
        (0..users.len())
            .into_par_iter()
            .map_init(
                || vec![0u32; users.len()],
                |shared, item| {
                    context.check_cancelled()?;
                    let mut touched = Vec::new();
                    for other in users[item].iter().flat_map(|user| &baskets[*user]) {
                        if shared[*other as usize] == 0 {
                            touched.push(*other);
                        }
                        shared[*other as usize] += 1;
                    }
                    let mut row: Vec<(u32, f64)> = touched
                        .iter()
                        .filter(|other| **other as usize != item)
                        .map(|other| {
                            let norm = ((users[item].len() * users[*other as usize].len()) as f64).sqrt();
                            (*other, f64::from(shared[*other as usize]) / (norm + self.shrink))
                        })
                        .collect();
                    touched.iter().for_each(|other| shared[*other as usize] = 0);
                    row.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                    row.truncate(self.neighbours as usize);
                    Ok(row)
                },
            )
            .collect()
    }
}

/// The items of a sequence, ascending, without repeats.
fn distinct(items: &[u32]) -> Vec<u32> {
    let mut items = items.to_vec();
    items.sort_unstable();
    items.dedup();
    items
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn rank(config: &RankItemknn) -> String {
        let inputs = [
            (
                "train",
                text::parse("user_id sequence:[str]\n u a,b,a\n v a,b\n w a,c\n x c,d").unwrap(),
            ),
            (
                "histories",
                text::parse("user_id sequence:[str] target\n u a,c e").unwrap(),
            ),
            ("items", text::parse("item_id\n a\n b\n c\n d\n e").unwrap()),
        ];
        let out = harness::run(config, &inputs).unwrap().batch("out").unwrap();
        text::render(&out.project(&[1, 2, 3, 4, 5]).unwrap()).unwrap()
    }

    /// Users: a 3, b 2, c 2, d 1. a-b 2/sqrt(6), a-c 1/sqrt(6), c-d 1/sqrt(2).
    #[test]
    fn similarities_to_the_history_add_up() {
        let config = RankItemknn {
            exclude_seen: true,
            ..RankItemknn::default()
        };
        let wanted = "rank  item_id  score               better  tied
1     b        0.8164965809277261  0       1
2     d        0.7071067811865475  1       1
3     e        0.0                 2       1
";
        assert_eq!(rank(&config), wanted);
        let shrunk = RankItemknn {
            k: 1,
            shrink: 1.0,
            ..config
        };
        assert!(rank(&shrunk).contains("1     b        0.579"), "{}", rank(&shrunk));
    }

    #[test]
    fn neighbourhoods_are_cut() {
        let config = RankItemknn {
            neighbours: 1,
            k: 2,
            ..RankItemknn::default()
        };
        let wanted = "rank  item_id  score               better  tied
1     b        0.8164965809277261  0       1
2     d        0.7071067811865475  1       1
5     e        0.0                 2       3
";
        assert_eq!(rank(&config), wanted);
    }
}
