//! `synthesize`: a small shop out of a seed, for first runs and tests: items whose words tell what follows what.

use std::sync::Arc;

use arrow::array::{Float32Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder, UInt64Builder};
use arrow::datatypes::Schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Operator};
use sluice_engine::random::{Random, Stream};
use sluice_engine::table::{CHUNK_ROWS, Shape, Table, Tables};

use crate::formats::item::{GRID_TEMPLATE, Item, ItemRows, Template};
use crate::schema;
use words::{BRANDS, DEPARTMENTS, KINDS, LOOKS};

mod words;

/// Every user acts at least so often.
const SHORTEST: usize = 5;
/// The next item goes with the last one.
const COMPLEMENT: f64 = 0.5;
/// The next item is one that the user had before.
const REPEAT: f64 = 0.05;
/// A taste gives way to another one.
const DRIFT: f64 = 0.1;
/// The next item comes on the same day.
const SAME_DAY: f64 = 0.35;
/// 2014-01-01 in days.
const FIRST_DAY: u64 = 16_071;
const DAY: i64 = 86_400_000;

/// Makes up the interactions and items of a shop in which the order of things matters.
///
/// A shop has departments and in each a few topics ("Kitchen", "Coffee"). A topic sells six kinds of things that are bought one after the
/// other (grinder, then kettle, then filter, ...); popularity within a topic follows Zipf's law. A user has two
/// tastes, topics that drift. With probability .5 the next item is of the kind that follows the last item's kind
/// in the same topic (the same brand three times as likely), with .05 a repetition, otherwise anything from a topic of the user's taste.
/// Titles, brands and categories say topic and kind in words, so that text tells which items are alike.
///
/// # In
/// Nothing.
///
/// # Out
/// - `interactions`: by user and time; times are whole days from 2014 on, about a third of them equal to the one before; ratings 3 to 5.
/// - `items`: as `ingest_items` writes them, in order of `item_id`. Ids are numbers that tell nothing.
///
/// # Source
/// Made for Sluice. With the defaults, counts of item pairs reach a Recall@10 of about .6, popularity about .1 (a test holds it to that).
///
/// # Deviates
/// From real shops: there are no cold items, no seasons and no noise in the metadata.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Synthesize {
    /// Number of users.
    pub users: u64,
    /// Number of items.
    pub items: u64,
    /// Number of topics; departments have four each.
    pub topics: u64,
    /// Mean number of interactions of a user; nobody has less than five.
    pub mean_length: f64,
}

impl Default for Synthesize {
    fn default() -> Self {
        Synthesize {
            users: 2_000,
            items: 400,
            topics: 20,
            mean_length: 9.0,
        }
    }
}

impl Operator for Synthesize {
    const NAME: &'static str = "synthesize";
    const VERSION: u32 = 1;
    const SEEDED: bool = true;

    fn bind(&self, binding: &Binding) -> Bound {
        if self.users == 0 || self.users >= 1 << 32 {
            binding.bad_value("users", "\"users\" is not in 1..4294967296");
        }
        if self.topics == 0 {
            binding.bad_value("topics", "\"topics\" is 0");
        } else if self.items < 6 * self.topics || self.items >= 1 << 32 {
            binding.bad_value(
                "items",
                format!(
                    "\"items\" is {}, fewer than six for each of {} topics",
                    self.items, self.topics
                ),
            );
        }
        if !(self.mean_length >= SHORTEST as f64 && self.mean_length <= 1e6) {
            binding.bad_value(
                "mean_length",
                format!("\"mean_length\" is less than {SHORTEST} or no length"),
            );
        }
        Bound::whole()
            .output("interactions", Shape::table(schema::interactions()))
            .output("items", Shape::table(schema::items()))
    }

    fn run(&self, context: &Context, _inputs: Tables) -> Result<Tables> {
        let shop = Shop::new(self, context.random("shop"));
        let users = context.random("users");
        let mut batches = Vec::new();
        let mut rows = Rows::new();
        for user in 0..self.users {
            self.user(&shop, user, &mut users.row(user), &mut rows);
            if rows.in_batch >= CHUNK_ROWS {
                context.check_cancelled()?;
                context.progress(user + 1, Some(self.users), "users", &[]);
                batches.push(rows.batch()?);
            }
        }
        batches.push(rows.batch()?);
        let schema = Arc::new(Schema::new(schema::interactions()));
        Ok(Tables::new()
            .with("interactions", Table::Batches(schema, batches))
            .with("items", Table::new(shop.table()?)))
    }
}

impl Synthesize {
    /// All that one user does.
    fn user(&self, shop: &Shop, user: u64, random: &mut Stream, rows: &mut Rows) {
        let mut length = SHORTEST;
        let more = self.mean_length - SHORTEST as f64;
        while random.unit() < more / (more + 1.0) {
            length += 1;
        }
        let mut tastes = [shop.topic(random), shop.topic(random)];
        let mut day = FIRST_DAY + random.below(365);
        let mut history: Vec<usize> = Vec::with_capacity(length);
        for step in 0..length {
            if random.unit() < DRIFT {
                tastes[random.below(2) as usize] = shop.topic(random);
            }
            let choice = random.unit();
            let item = match history.last() {
                Some(last) if choice < COMPLEMENT => shop.complement(*last, random),
                Some(_) if choice < COMPLEMENT + REPEAT => history[random.below(step as u64) as usize],
                _ => shop.popular(tastes[random.below(2) as usize], random),
            };
            if step > 0 && random.unit() >= SAME_DAY {
                day += 1 + random.below(20);
            }
            history.push(item);
            let rating = 5.0 - random.below(3) as f32 * (random.unit() < 0.6) as u8 as f32;
            rows.push(user + 1, &shop.items[item].id, day as i64 * DAY, rating);
        }
    }
}

/// The items of a shop by topic and kind.
struct Shop {
    items: Vec<Item>,
    /// Item -> (topic, kind).
    places: Vec<(usize, usize)>,
    /// Topic -> items, the most popular first.
    topics: Vec<Vec<usize>>,
}

impl Shop {
    fn new(config: &Synthesize, random: Random) -> Self {
        let (count, topics) = (config.items as usize, config.topics as usize);
        let mut ids: Vec<u64> = (1..=config.items).collect();
        random.row(0).shuffle(&mut ids);
        let mut shop = Shop {
            items: Vec::with_capacity(count),
            places: Vec::with_capacity(count),
            topics: vec![Vec::new(); topics],
        };
        for (index, id) in ids.into_iter().enumerate() {
            let (topic, place) = (index % topics, index / topics);
            let random = &mut random.row(1 + index as u64);
            // topics 0, 1, 2, ... are the first of each department, then the second, ...
            let (department, names) = &DEPARTMENTS[topic % DEPARTMENTS.len()];
            let (name, kinds) = &names[topic / DEPARTMENTS.len() % names.len()];
            let again = topic / (DEPARTMENTS.len() * names.len());
            let name = if again == 0 {
                name.to_string()
            } else {
                format!("{name} {}", again + 1)
            };
            let kind = place % kinds.len();
            let look = (place / kinds.len() + topic) % LOOKS.len();
            let edition = place / kinds.len() / LOOKS.len();
            let brand = BRANDS[(topic * 3 + random.below(3) as usize) % BRANDS.len()];
            let mut title = format!("{brand} {} {} {}", LOOKS[look], name, kinds[kind]);
            if edition > 0 {
                title += &format!(", No. {}", edition + 1);
            }
            let cents = 300 + 400 * kind as u64 + random.below(500 + 300 * (topic % 7) as u64);
            shop.items.push(Item {
                id: id.to_string(),
                title: Some(title),
                brand: Some(brand.to_string()),
                categories: Some(vec![department.to_string(), name, kinds[kind].to_string()]),
                price: Some(cents as f64 / 100.0),
                description: None,
                line: id,
            });
            shop.places.push((topic, kind));
            shop.topics[topic].push(index);
        }
        for (topic, items) in shop.topics.iter_mut().enumerate() {
            random.row((1 << 40) + topic as u64).shuffle(items);
        }
        shop
    }

    /// A topic; the first ones are somewhat more popular.
    fn topic(&self, random: &mut Stream) -> usize {
        pick((0..self.topics.len()).map(|topic| 1.0 / (topic as f64 + 30.0)), random)
    }

    /// An item of a topic by Zipf's law.
    fn popular(&self, topic: usize, random: &mut Stream) -> usize {
        let items = &self.topics[topic];
        items[pick((1..=items.len()).map(|rank| 1.0 / rank as f64), random)]
    }

    /// An item of the kind that follows this one's.
    fn complement(&self, item: usize, random: &mut Stream) -> usize {
        let (topic, kind) = self.places[item];
        let next: Vec<usize> = self.topics[topic]
            .iter()
            .copied()
            .filter(|other| self.places[*other].1 == (kind + 1) % KINDS)
            .collect();
        let weight = |(rank, other): (usize, &usize)| {
            let same_brand = self.items[*other].brand == self.items[item].brand;
            let loyal = if same_brand { 3.0 } else { 1.0 };
            loyal / (rank as f64 + 1.0)
        };
        match next.is_empty() {
            true => self.popular(topic, random),
            false => next[pick(next.iter().enumerate().map(weight), random)],
        }
    }

    fn table(&self) -> Result<RecordBatch> {
        let template = Template::parse(GRID_TEMPLATE, "Unknown", "nan").map_err(sluice_engine::Error::internal)?;
        let mut sorted: Vec<&Item> = self.items.iter().collect();
        sorted.sort_by_key(|item| item.line);
        let mut rows = ItemRows::new(0);
        for item in sorted {
            rows.push(item, &template);
        }
        rows.batch()
    }
}

/// A place in a list of weights. Sums only, so that every machine picks the same.
fn pick(weights: impl Iterator<Item = f64> + Clone, random: &mut Stream) -> usize {
    let mut rest = random.unit() * weights.clone().sum::<f64>();
    let mut last = 0;
    for (index, weight) in weights.enumerate() {
        if rest < weight {
            return index;
        }
        rest -= weight;
        last = index;
    }
    last
}

struct Rows {
    users: StringBuilder,
    items: StringBuilder,
    times: TimestampMillisecondBuilder,
    ratings: Float32Builder,
    positions: UInt64Builder,
    in_batch: usize,
    all: u64,
}

impl Rows {
    fn new() -> Self {
        Rows {
            users: StringBuilder::new(),
            items: StringBuilder::new(),
            times: TimestampMillisecondBuilder::new().with_timezone("+00:00"),
            ratings: Float32Builder::new(),
            positions: UInt64Builder::new(),
            in_batch: 0,
            all: 0,
        }
    }

    fn push(&mut self, user: u64, item: &str, time: i64, rating: f32) {
        self.in_batch += 1;
        self.all += 1;
        self.users.append_value(user.to_string());
        self.items.append_value(item);
        self.times.append_value(time);
        self.ratings.append_value(rating);
        self.positions.append_value(self.all);
    }

    fn batch(&mut self) -> Result<RecordBatch> {
        self.in_batch = 0;
        Ok(RecordBatch::try_new(
            Arc::new(Schema::new(schema::interactions())),
            vec![
                Arc::new(self.users.finish()),
                Arc::new(self.items.finish()),
                Arc::new(self.times.finish()),
                Arc::new(self.ratings.finish()),
                Arc::new(self.positions.finish()),
            ],
        )?)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet, HashMap};

    use super::*;
    use crate::schema::{strings, times};
    use sluice_engine::harness::Harness;

    fn make(config: &Synthesize, seed: u64) -> (RecordBatch, RecordBatch) {
        let harness = Harness {
            seed,
            ..Default::default()
        };
        let tables = harness.run(config, &[]).unwrap();
        (tables.batch("interactions").unwrap(), tables.batch("items").unwrap())
    }

    fn sequences(batch: &RecordBatch) -> Vec<Vec<String>> {
        let mut users: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let ids = strings(batch, "user_id").unwrap().iter();
        for (user, item) in ids.zip(strings(batch, "item_id").unwrap()) {
            let user = user.unwrap().parse().unwrap();
            users.entry(user).or_default().push(item.unwrap().to_string());
        }
        users.into_values().collect()
    }

    /// Recall@10 of the last item: by popularity, and by counts of pairs before popularity.
    fn recall(sequences: &[Vec<String>]) -> (f64, f64) {
        let mut popularity: HashMap<&str, u64> = HashMap::new();
        let mut pairs: HashMap<&str, HashMap<&str, u64>> = HashMap::new();
        for sequence in sequences {
            let train = &sequence[..sequence.len() - 2];
            for item in train {
                *popularity.entry(item).or_default() += 1;
            }
            for pair in train.windows(2) {
                *pairs.entry(&pair[0]).or_default().entry(&pair[1]).or_default() += 1;
            }
        }
        let hits = |score: &dyn Fn(&str, &str) -> u64| {
            let hit = |sequence: &&Vec<String>| {
                let (last, target) = (&sequence[sequence.len() - 2], &sequence[sequence.len() - 1]);
                let mine = (score(last, target), target.as_str());
                popularity
                    .keys()
                    .filter(|item| (score(last, item), **item) > mine)
                    .count()
                    < 10
            };
            sequences.iter().filter(hit).count() as f64 / sequences.len() as f64
        };
        let popular = |item: &str| popularity.get(item).copied().unwrap_or(0);
        let pair = |last: &str, item: &str| pairs.get(last).and_then(|next| next.get(item)).copied().unwrap_or(0);
        (
            hits(&|_, item| popular(item)),
            hits(&|last, item| pair(last, item) * 1_000_000 + popular(item)),
        )
    }

    #[test]
    fn order_tells_more_than_popularity() {
        for seed in [1, 2, 3, 42] {
            let (interactions, items) = make(&Synthesize::default(), seed);
            assert_eq!(items.num_rows(), 400);
            assert!(
                (17_000..19_000).contains(&interactions.num_rows()),
                "{}",
                interactions.num_rows()
            );
            let (popularity, markov) = recall(&sequences(&interactions));
            assert!(popularity < 0.115, "popularity {popularity}");
            assert!(markov > 0.55, "popularity {popularity}, Markov {markov}");
        }
    }

    #[test]
    fn the_seed_makes_the_shop() {
        let small = Synthesize {
            users: 50,
            items: 40,
            topics: 5,
            mean_length: 6.0,
        };
        let (one, items) = make(&small, 7);
        assert_eq!(make(&small, 7), (one.clone(), items));
        assert_ne!(make(&small, 8).0, one);
        // more users do not change those there are
        let more = make(&Synthesize { users: 60, ..small }, 7).0;
        assert_eq!(more.slice(0, one.num_rows()), one);
    }

    #[test]
    fn items_and_times_look_like_a_shop() {
        let config = Synthesize {
            items: 3_000,
            topics: 30,
            ..Default::default()
        };
        let (interactions, items) = make(&config, 3);
        let titles: BTreeSet<&str> = strings(&items, "title").unwrap().iter().flatten().collect();
        assert_eq!(titles.len(), 3_000, "titles are distinct");
        assert!(strings(&items, "text").unwrap().value(0).starts_with("Title: "));
        let times = times(&interactions, "timestamp").unwrap().values().to_vec();
        assert!(times.iter().all(|time| time % DAY == 0));
        let ties = times.windows(2).filter(|pair| pair[0] == pair[1]).count();
        assert!(ties * 5 > times.len(), "{ties}");
        for sequence in sequences(&interactions) {
            assert!(sequence.len() >= SHORTEST);
        }
    }

    #[test]
    fn impossible_shops_are_refused() {
        let harness = Harness::default();
        let config = Synthesize {
            items: 10,
            users: 0,
            mean_length: f64::NAN,
            ..Default::default()
        };
        let error = harness.run(&config, &[]).unwrap_err().to_string();
        for field in ["users", "items", "mean_length"] {
            assert!(error.contains(field), "{error}");
        }
    }
}
