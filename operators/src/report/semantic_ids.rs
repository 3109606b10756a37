//! Diagnostics of semantic ids: how many items have an id of their own, and how even the codes are.

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::document::{Block, Cell, Column, Finding, Row, Section, Table};
use super::numbers::{count, percent, short};
use super::scores::{Labels, floats, texts};

const FACTS: [(&str, &str, &str); 6] = [
    ("items", "items", "items with an id"),
    ("levels", "levels", "codes of an id"),
    ("distinct", "distinct", "different ids"),
    (
        "uniquely_identified",
        "unique",
        "share of items that have their id alone",
    ),
    ("max_bucket", "largest bucket", "most items with one id"),
    ("entropy", "entropy", "of ids over items, nats"),
];

const OF_LEVELS: [(&str, &str); 3] = [
    ("distinct_prefixes", "distinct prefixes"),
    ("perplexity", "perplexity"),
    ("codes_used", "codes used"),
];

/// Whether ids have a fact of that name.
pub fn is_fact(name: &str) -> bool {
    FACTS.iter().any(|(fact, _, _)| *fact == name) || OF_LEVELS.iter().any(|(fact, _)| *fact == name)
}

/// The facts of one table of ids.
struct Ids {
    name: String,
    input: String,
    facts: Vec<(String, Option<u32>, f64)>,
}

impl Ids {
    fn fact(&self, name: &str, level: Option<u32>) -> Option<f64> {
        let found = self.facts.iter().find(|(fact, of, _)| fact == name && *of == level);
        found.map(|(_, _, value)| *value)
    }
}

/// The section, and what is to be said first; of the tables of `audit_semantic_ids`, each with the name of its input.
pub fn section(tables: &[(&str, RecordBatch)]) -> Result<Option<(Section, Vec<Finding>)>> {
    let mut all: Vec<Ids> = Vec::new();
    for (input, batch) in tables {
        let labels = Labels::over(batch, |name| matches!(name, "fact" | "level" | "value"))?;
        let (facts, levels, values) = (texts(batch, "fact")?, floats(batch, "level")?, floats(batch, "value")?);
        for (row, fact) in facts.into_iter().enumerate() {
            let (label, seed) = labels.of(row);
            let seed = if seed.is_empty() {
                seed
            } else {
                format!("[seed={seed}]")
            };
            let name = format!("{input}{label}{seed}");
            let place = match all.iter().position(|ids| ids.name == name) {
                Some(place) => place,
                None => {
                    let input = input.to_string();
                    all.push(Ids {
                        name,
                        input,
                        facts: Vec::new(),
                    });
                    all.len() - 1
                }
            };
            let Some(value) = values[row] else { continue };
            all[place]
                .facts
                .push((fact, levels[row].map(|level| level as u32), value));
        }
    }
    if all.is_empty() {
        return Ok(None);
    }
    let findings = all.iter().filter_map(|ids| {
        let (unique, items) = (ids.fact("uniquely_identified", None)?, ids.fact("items", None)?);
        let text = format!(
            "Semantic ids {}: {} of {} items have an id of their own.",
            ids.name,
            percent(unique),
            count(items as u64)
        );
        Some(if unique < 0.9 {
            Finding::warning(text)
        } else {
            Finding::plain(text)
        })
    });
    // Of many tables the section tells.
    let findings = if all.len() > 3 { Vec::new() } else { findings.collect() };
    let blocks = vec![Block::Table(whole(&all)), Block::Table(by_level(&all))];
    Ok(Some((Section::new("semantic-ids", "Semantic ids", blocks), findings)))
}

fn whole(all: &[Ids]) -> Table {
    let mut head = vec![Column::words("ids")];
    head.extend(FACTS.map(|(_, name, about)| Column::numbers(name).about(about)));
    let caption = "Semantic ids as a whole; below, where that differs: without the collision code.";
    let mut table = Table::new(caption, head).from(all.iter().map(|ids| ids.input.clone()));
    for ids in all {
        let mut cells = vec![Cell::new(&*ids.name)];
        for (fact, _, _) in FACTS {
            let value = ids.fact(fact, None);
            let before = ids.fact(&format!("{fact}_without_collision_code"), None);
            let text = |value: f64| {
                if fact == "uniquely_identified" {
                    percent(value)
                } else {
                    short(value)
                }
            };
            let cell = Cell::new(value.map(text).unwrap_or_default());
            cells.push(match before.filter(|before| Some(*before) != value) {
                Some(before) => cell.below(text(before)),
                None => cell,
            });
        }
        table.rows.push(Row::new(cells).from(&ids.input));
    }
    table
}

fn by_level(all: &[Ids]) -> Table {
    let levels = all
        .iter()
        .flat_map(|ids| &ids.facts)
        .filter_map(|(_, level, _)| *level)
        .max()
        .unwrap_or(0);
    let mut head = vec![Column::words("ids"), Column::words("")];
    head.extend((1..=levels).map(|level| Column::numbers(format!("level {level}"))));
    let caption = "Semantic ids by level: different prefixes up to it; perplexity of its codes (as many as there are, if all are as \
        frequent); codes in use.";
    let mut table = Table::new(caption, head).from(all.iter().map(|ids| ids.input.clone()));
    for ids in all {
        for (fact, name) in OF_LEVELS {
            let mut cells = vec![Cell::new(&*ids.name), Cell::new(name)];
            let value = |level| {
                ids.fact(fact, Some(level)).map(|value| {
                    if fact == "perplexity" {
                        format!("{value:.1}")
                    } else {
                        short(value)
                    }
                })
            };
            cells.extend((1..=levels).map(|level| Cell::new(value(level).unwrap_or_default())));
            table.rows.push(Row::new(cells).from(&ids.input));
        }
    }
    table
}
