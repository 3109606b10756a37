//! Reading what is to be scored: targets with their slices, and every user's ranked list.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{Float64Type, UInt32Type};
use sluice_engine::table::{Table, Tables};
use sluice_engine::{Error, Result};

use crate::catalogue::Catalogue;
use crate::metrics::Single;
use crate::schema::{self, BEAM, BETTER, ITEM_ID, RANK, SCORE, TARGET, TIED, USER_ID};
use crate::sequences::Sequences;
use crate::slices;

/// Who is evaluated, and what is known of the items.
pub struct Targets {
    /// The evaluation rows.
    pub rows: RecordBatch,
    /// Their slices: bit i says that a row belongs to the i-th of `slices`.
    pub masks: Vec<u64>,
    /// Names of the slices.
    pub slices: Vec<&'static str>,
    /// All items there are, or all that occur where no catalogue is given.
    pub catalogue: Catalogue,
    /// Whether the catalogue was given.
    pub whole_catalogue: bool,
    /// How often each item occurs in train, if train is given.
    pub counts: Option<Vec<u64>>,
    users: HashMap<String, usize>,
    targets: Vec<u32>,
}

impl Targets {
    /// Reads the ports `targets`, and `train` and `items` where they are connected.
    pub fn read(inputs: &Tables, slices: bool) -> Result<Self> {
        let rows = inputs.batch("targets")?;
        let ids = schema::strings(&rows, TARGET)?;
        let train = inputs.has("train").then(|| inputs.batch("train")).transpose()?;
        let train = train.as_ref().map(Sequences::read).transpose()?;
        let whole_catalogue = inputs.has("items");
        let catalogue = if whole_catalogue {
            Catalogue::read(inputs.table("items")?)?
        } else {
            let ranked = inputs.table("ranked")?.batches()?.collect::<Result<Vec<_>>>()?;
            let mut all = Vec::from([ids]);
            all.extend(train.as_ref().map(|train| &train.items));
            for batch in &ranked {
                all.push(schema::strings(batch, ITEM_ID)?);
            }
            Catalogue::of(all.into_iter().flatten().flatten())
        };
        let counts = match train {
            None => None,
            Some(train) => {
                let mut counts = vec![0; catalogue.len()];
                for item in catalogue.encode(&train.items, "train item")? {
                    counts[item as usize] += 1;
                }
                Some(counts)
            }
        };
        let targets = catalogue.encode(ids, "target")?;
        let definitions = slices::definitions(slices, counts.is_some());
        Ok(Targets {
            masks: slices::masks(&rows, slices, &targets, counts.as_deref())?,
            slices: definitions.into_iter().map(|(name, _)| name).collect(),
            users: index(schema::strings(&rows, USER_ID)?)?,
            catalogue,
            whole_catalogue,
            counts,
            targets,
            rows,
        })
    }
}

fn index(users: &StringArray) -> Result<HashMap<String, usize>> {
    let mut index = HashMap::with_capacity(users.len());
    for (row, user) in users.iter().flatten().enumerate() {
        if index.insert(user.to_string(), row).is_some() {
            return Err(
                Error::data("duplicate-user", format!("user \"{user}\" has more than one target"))
                    .hint("lists are ranked by user, so give every evaluation row a user_id of its own"),
            );
        }
    }
    Ok(index)
}

/// A row of a ranked list.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// Place among the distinct items of the list.
    pub rank: u32,
    /// Catalogue items that score higher.
    pub better: u32,
    /// Catalogue items that score the same, itself included.
    pub tied: u32,
    /// Place of the generated id.
    pub beam: u32,
    item: u32,
}

/// The ranked list of a user.
#[derive(Default)]
pub struct List {
    /// Distinct items by rank.
    hits: Vec<Hit>,
    /// The row of the target, if it is ranked.
    pub target: Option<Hit>,
}

impl List {
    /// How the target scores at `k` under a rule for ties.
    pub fn score(&self, ties: &str, k: usize) -> Single {
        let Some(hit) = self.target else {
            return Single::default();
        };
        let (better, tied) = (hit.better as usize, hit.tied as usize);
        match ties {
            "expected" => Single::expected(better, tied, k),
            "optimistic" => Single::at(better + 1, k),
            "pessimistic" => Single::at(better + tied, k),
            _ => Single::at(hit.rank as usize, k),
        }
    }

    /// The items at the first `k` places.
    pub fn first(&self, k: u32) -> impl Iterator<Item = u32> + '_ {
        self.hits.iter().filter(move |hit| hit.rank <= k).map(|hit| hit.item)
    }

    /// How many of the first `k` generated ids are items.
    pub fn legal(&self, k: u32) -> u64 {
        let beams: HashSet<u32> = self.hits.iter().map(|hit| hit.beam).filter(|beam| *beam <= k).collect();
        beams.len() as u64
    }

    /// Drops repeats of an item and moves up what stands below; how many were dropped.
    fn settle(&mut self, target: u32) -> u64 {
        self.hits.sort_by_key(|hit| hit.rank);
        let mut seen = HashSet::with_capacity(self.hits.len());
        let mut dropped = 0;
        self.hits.retain_mut(|hit| {
            let new = seen.insert(hit.item);
            hit.rank -= dropped;
            dropped += u32::from(!new);
            new
        });
        self.target = self.hits.iter().find(|hit| hit.item == target).copied();
        u64::from(dropped)
    }

    /// Number of generated ids in the list itself. It ends at its last other item, as the target may have a row of its
    /// own below it; a target alone is a list where it comes first.
    fn width(&self) -> u32 {
        let others = |hit: &&Hit| self.target.is_none_or(|target| target.item != hit.item);
        let end = self.hits.iter().filter(others).map(|hit| hit.beam).max();
        self.legal(end.unwrap_or(1)) as u32
    }
}

/// The lists of all evaluated users, in order of the targets.
pub struct Lists {
    /// A list a user, empty without a prediction.
    pub users: Vec<List>,
    /// The most generated ids that any list holds.
    pub width: u32,
    duplicates: u64,
    strangers: u64,
}

impl Lists {
    /// Reads ranked items; a score that is not a number is an error, and so is a place that is null.
    pub fn read(ranked: &Table, targets: &Targets) -> Result<Self> {
        let mut users: Vec<List> = targets.targets.iter().map(|_| List::default()).collect();
        let mut strangers: HashSet<String> = HashSet::new();
        for batch in ranked.batches()? {
            let batch = batch?;
            let ids = schema::strings(&batch, USER_ID)?;
            let names = schema::strings(&batch, ITEM_ID)?;
            let items = targets.catalogue.encode(names, "ranked item")?;
            let scores = schema::numbers::<Float64Type>(&batch, SCORE)?;
            let [ranks, better, tied, beams] = {
                let column = |name| schema::numbers::<UInt32Type>(&batch, name);
                [column(RANK)?, column(BETTER)?, column(TIED)?, column(BEAM)?]
            };
            let places = [(RANK, ranks), (BETTER, better), (TIED, tied), (BEAM, beams)];
            for (row, item) in items.into_iter().enumerate() {
                refuse_nan(scores, row, ids.value(row), names.value(row))?;
                refuse_nulls(&places, row, ids.value(row), names.value(row))?;
                if ranks.value(row) == 0 || tied.value(row) == 0 {
                    return Err(Error::data(
                        "bad-rank",
                        format!(
                            "rank and tied count from 1, but are {} and {} for item \"{}\" of user \"{}\"",
                            ranks.value(row),
                            tied.value(row),
                            names.value(row),
                            ids.value(row)
                        ),
                    ));
                }
                match targets.users.get(ids.value(row)) {
                    Some(user) => users[*user].hits.push(Hit {
                        rank: ranks.value(row),
                        better: better.value(row),
                        tied: tied.value(row),
                        beam: beams.value(row),
                        item,
                    }),
                    None if strangers.contains(ids.value(row)) => {}
                    None => {
                        strangers.insert(ids.value(row).to_string());
                    }
                }
            }
        }
        let pairs = users.iter_mut().zip(&targets.targets);
        let duplicates = pairs.map(|(list, target)| list.settle(*target)).sum();
        Ok(Lists {
            width: users.iter().map(List::width).max().unwrap_or(0),
            users,
            duplicates,
            strangers: strangers.len() as u64,
        })
    }

    /// What was not as it should be, and how long lists are, by name of the metric.
    pub fn facts(&self) -> [(&'static str, u64); 5] {
        let count = |which: fn(&List) -> bool| self.users.iter().filter(|list| which(list)).count() as u64;
        [
            ("users_without_prediction", count(|list| list.hits.is_empty())),
            ("users_without_target", self.strangers),
            ("targets_not_ranked", count(|list| list.target.is_none())),
            ("duplicates", self.duplicates),
            ("list_length", u64::from(self.width)),
        ]
    }
}

fn refuse_nan(scores: &Float64Array, row: usize, user: &str, item: &str) -> Result<()> {
    if scores.is_valid(row) && !scores.value(row).is_nan() {
        return Ok(());
    }
    Err(Error::data(
        "nan-score",
        format!("the score of item \"{item}\" for user \"{user}\" is not a number"),
    )
    .hint("the stage that ranked is at fault: look at its inputs and its training curve"))
}

fn refuse_nulls(places: &[(&str, &UInt32Array)], row: usize, user: &str, item: &str) -> Result<()> {
    match places.iter().find(|(_, values)| values.is_null(row)) {
        None => Ok(()),
        Some((name, _)) => Err(Error::data(
            "null-rank",
            format!("\"{name}\" is null for item \"{item}\" of user \"{user}\""),
        )
        .hint("null is no place: leave out rows without one")),
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::text;

    use super::*;

    fn read(ranked: &str, users: &str) -> Result<Lists> {
        let ranked = format!("user_id rank:u32 item_id score:f64 better:u32 tied:u32 beam:u32\n{ranked}");
        let targets = format!("user_id sequence:[str] target\n{users}");
        let table = |rows: &str| Table::new(text::parse(rows).unwrap());
        let inputs = Tables::new()
            .with("ranked", table(&ranked))
            .with("targets", table(&targets));
        Lists::read(inputs.table("ranked")?, &Targets::read(&inputs, false)?)
    }

    /// Lists of users, a line each: the user, then items from the head on.
    fn listed(lists: &str) -> String {
        let mut rows = String::new();
        for line in lists.lines() {
            let mut words = line.split_whitespace();
            let user = words.next().unwrap();
            for (better, item) in words.enumerate() {
                let rank = better + 1;
                rows.push_str(&format!("{user} {rank} {item} -{rank} {better} 1 {rank}\n"));
            }
        }
        rows
    }

    #[test]
    fn a_list_is_as_long_as_it_is_wherever_its_target_stands() {
        let width = |ranked: &str, users: &str| read(ranked, users).unwrap().width;
        let lists = listed("a 5 7 3\nb 4 5 2\nc 2 3 5\nd 1 4 6\ne 5 3 7");
        assert_eq!(width(&lists, "a 8 5\nb 8 5\nc 8 5\nd 8 6\ne 8 3"), 3);
        assert_eq!(width(&listed("a 5"), "a 8 5"), 1);
        assert_eq!(width("", "a 8 5"), 0);
        // A target below its list, and two items of one id.
        assert_eq!(width("a 1 1 9 0 1 1\na 2 2 8 1 1 2\na 40 5 1 39 1 40", "a 8 5"), 2);
        assert_eq!(width("a 40 5 1 39 1 40", "a 8 5"), 0);
        assert_eq!(width("a 1 1 9 0 1 1\na 2 2 8 1 2 2\na 3 5 8 1 2 2", "a 8 5"), 2);
    }

    #[test]
    fn a_place_that_is_null_is_refused() {
        let row = ["rank", "better", "tied", "beam"];
        for (place, name) in [1, 4, 5, 6].into_iter().zip(row) {
            let mut cells = ["u", "1", "x", "9", "0", "1", "1"];
            cells[place] = "null";
            let error = read(&cells.join(" "), "u a x").err().unwrap();
            let message = format!("\"{name}\" is null for item \"x\" of user \"u\"");
            assert_eq!((error.code.as_str(), error.message), ("null-rank", message));
        }
    }
}
