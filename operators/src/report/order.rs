//! How far the order of interactions is that of a file, in plain words, and what it does to the figures.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use sluice_engine::Result;

use super::document::{Block, Cell, Column, Finding, Level, Row, Section, Table};
use super::figure::{Axis, Figure, Point, Series, Shape};
use super::numbers::{change, count, metric as shown, percent};
use super::results::{Choice, best, heading};
use super::scores::{System, floats, texts};
use crate::slices;

const LATER: &str = "later";
const SAME: &str = "same_timestamp";
/// Ties of which so many have their items in one order are sorted.
const SORTED: f64 = 0.95;
/// A difference below this share is none that a reader must be told first.
const NOTABLE: f64 = 0.1;

/// Facts without which nothing can be said of an order.
pub const NEEDED: [&str; 2] = ["pairs", "pairs_same_timestamp"];

/// Facts of an audit of the order.
pub struct Audit {
    /// The input that they are from.
    pub input: String,
    facts: BTreeMap<String, u64>,
}

impl Audit {
    /// Reads the table of `audit_order`.
    pub fn read(input: &str, batch: &RecordBatch) -> Result<Self> {
        let values = floats(batch, "value")?;
        let facts = texts(batch, "fact")?.into_iter().zip(values);
        Ok(Audit {
            input: input.to_string(),
            facts: facts.filter_map(|(fact, value)| Some((fact, value? as u64))).collect(),
        })
    }

    fn fact(&self, name: &str) -> u64 {
        self.facts.get(name).copied().unwrap_or(0)
    }

    /// What the facts say, in sentences: on the order of ties, on the targets, and on the rest.
    fn sentences(&self) -> Vec<Finding> {
        let (pairs, ties) = (self.fact("pairs"), self.fact("pairs_same_timestamp"));
        let (targets, same) = (self.fact("targets"), self.fact("targets_same_timestamp"));
        let share = |part: u64, whole: u64| percent(part as f64 / whole.max(1) as f64);
        let mut said = Vec::new();
        if ties == 0 {
            said.push(Finding::plain(format!(
                "No two neighbours of {} have equal times: the order is that of time.",
                count(pairs)
            )));
        } else {
            let (up, down) = (self.fact("ties_item_ascending"), self.fact("ties_item_descending"));
            let order = match up.max(down) as f64 > SORTED * ties as f64 {
                true => format!(
                    "In {} of them the item ids {}: the order within equal times is that of a file sorted by item.",
                    share(up.max(down), ties),
                    if up > down { "ascend" } else { "descend" }
                ),
                false => format!(
                    "In {} of them the item ids ascend, in {} they descend.",
                    share(up, ties),
                    share(down, ties)
                ),
            };
            said.push(Finding::warning(format!(
                "Of {} pairs of neighbouring interactions, {} ({}) have equal times: which of the two comes first, the data do \
                not say. {order}",
                count(pairs),
                count(ties),
                share(ties, pairs)
            )));
        }
        if targets > 0 {
            let rest = format!(
                "{} test targets never occur in train.",
                count(self.fact("targets_not_in_train"))
            );
            said.push(match same {
                0 => Finding::plain(rest),
                _ => Finding::warning(format!(
                    "{} of {} test targets ({}) have the very time of the interaction before: that they come last is the doing \
                    of the rule for ties. {rest}",
                    count(same),
                    count(targets),
                    share(same, targets)
                )),
            });
        }
        if self.fact("pairs_out_of_order") > 0 {
            let pairs = count(self.fact("pairs_out_of_order"));
            said.push(Finding::plain(format!(
                "{pairs} neighbours stand in the file the later before the earlier."
            )));
        }
        said
    }
}

/// A system beside itself: over all targets, over later ones, and with ties shuffled.
struct Effect<'a> {
    system: &'a System,
    all: f64,
    same: Option<f64>,
    later: Option<f64>,
    shuffled: Option<(f64, &'a str)>,
}

/// The section, and what is to be said first. `twins`: which system is which other one with ties shuffled.
pub fn section(
    audits: &[Audit],
    systems: &[&System],
    twins: &[(&System, &System)],
    choice: &Choice,
) -> Option<(Section, Vec<Finding>)> {
    let (metric, k) = choice.first();
    let value = |system: &System, slice: &str| system.value(metric, k, slice).map(|value| value.mean);
    let effects: Vec<Effect> = systems
        .iter()
        .filter_map(|system| {
            let twin = twins.iter().find(|(of, _)| of.name == system.name);
            let effect = Effect {
                system,
                all: value(system, slices::ALL)?,
                same: value(system, SAME),
                later: value(system, LATER),
                shuffled: twin.and_then(|(_, twin)| Some((value(twin, slices::ALL)?, twin.input.as_str()))),
            };
            (effect.later.is_some() || effect.shuffled.is_some()).then_some(effect)
        })
        .collect();
    if audits.is_empty() && effects.is_empty() {
        return None;
    }
    let mut blocks = Vec::new();
    let mut told: Vec<Finding> = Vec::new();
    for audit in audits {
        // Of several audits of one data set, the second tells only what it finds otherwise.
        let mut sentences = audit.sentences();
        sentences.retain(|finding| !told.contains(finding));
        if audits.len() > 1 {
            blocks.push(Block::Text(format!("Audit {}:", audit.input)));
        }
        told.extend(sentences.clone());
        blocks.push(Block::Findings(sentences));
    }
    let mut findings = Vec::new();
    if !effects.is_empty() {
        let name = heading(metric, k);
        blocks.push(Block::Text(format!(
            "What that does to {name}: a system that has learned how files are sorted scores where the target has the time of the \
            history's last item, and not where it is later. With ties in random order nobody can learn it."
        )));
        blocks.push(Block::Figure(figure(&effects, &name)));
        blocks.push(Block::Table(table(&effects, &name)));
        // Of the best system, or else of the best that has a twin.
        let order = best(systems, metric, k).map(|system| system.name.as_str());
        let first = effects.iter().max_by(|a, b| {
            let rank = |effect: &Effect| (effect.shuffled.is_some(), Some(effect.system.name.as_str()) == order);
            rank(a).cmp(&rank(b)).then(a.all.total_cmp(&b.all))
        });
        findings.extend(first.and_then(|effect| sentence(effect, &name)));
    }
    Some((Section::new("order", "The order of the data", blocks), findings))
}

/// What of a number is the order of ties, in a sentence. Later targets may be harder for other reasons, too: only a twin with
/// ties shuffled says that it is the order.
fn sentence(effect: &Effect, name: &str) -> Option<Finding> {
    let part = |value: f64| format!("{} ({})", shown(value), change(value, effect.all).unwrap_or_default());
    let less = |value: f64| value < (1.0 - NOTABLE) * effect.all;
    let shuffled = effect.shuffled.map(|(value, _)| value);
    let mut parts = Vec::new();
    parts.extend(
        effect
            .later
            .map(|later| format!("{} where the target is later than the history", part(later))),
    );
    parts.extend(shuffled.map(|value| format!("{} when ties are shuffled", part(value))));
    let (level, end) = match (shuffled.is_some_and(less), effect.later.is_some_and(less)) {
        (true, _) => (Level::Warning, ": part of the number is the order of the file."),
        (false, true) => (Level::Warning, ": look at the two kinds of target apart."),
        (false, false) => (Level::Plain, "."),
    };
    (!parts.is_empty()).then(|| Finding {
        level,
        text: format!(
            "{name} of {} is {} over all targets, {}{end}",
            effect.system.name,
            shown(effect.all),
            parts.join(", and "),
        ),
    })
}

fn table(effects: &[Effect], name: &str) -> Table {
    let mut head = vec![
        Column::words("system"),
        Column::numbers("all targets"),
        Column::numbers("same time").about("the target has the time of the last history item"),
        Column::numbers("later").about("the target is later than the last history item"),
    ];
    let shuffled = effects.iter().any(|effect| effect.shuffled.is_some());
    if shuffled {
        head.push(
            Column::numbers("ties shuffled").about("split anew with equal times in random order, over all targets"),
        );
    }
    let caption = format!("{name} and the order of ties; below: relative to all targets.");
    let mut table = Table::new(caption, head);
    for effect in effects {
        let cell = |value: Option<f64>| {
            let cell = value.map(|value| Cell::new(shown(value)).below(change(value, effect.all).unwrap_or_default()));
            cell.unwrap_or_default()
        };
        let mut cells = vec![
            Cell::new(&*effect.system.name),
            Cell::new(shown(effect.all)),
            cell(effect.same),
            cell(effect.later),
        ];
        if shuffled {
            cells.push(cell(effect.shuffled.map(|(value, _)| value)));
        }
        table.rows.push(Row::new(cells));
        table = table.from([effect.system.input.clone()]);
        table = table.from(effect.shuffled.map(|(_, input)| input.to_string()));
    }
    table
}

fn figure(effects: &[Effect], name: &str) -> Figure {
    let series = |label: &str, color: usize, shape: Shape, of: &dyn Fn(&Effect) -> Option<f64>| Series {
        name: label.to_string(),
        color,
        shape,
        points: (0..)
            .zip(effects)
            .filter_map(|(row, effect)| Some(Point::at(of(effect)?, f64::from(row))))
            .collect(),
    };
    let mut figure = Figure {
        caption: format!(
            "{name} of every system: over all targets, by whether the target is later than the history, and with ties shuffled."
        ),
        x: Axis {
            label: name.to_string(),
            ..Axis::default()
        },
        rows: effects.iter().map(|effect| effect.system.name.clone()).collect(),
        series: vec![
            series("same time as the history", 1, Shape::Circles, &|effect| effect.same),
            series("later than the history", 2, Shape::Circles, &|effect| effect.later),
            series("all, ties shuffled", 3, Shape::Diamonds, &|effect| {
                effect.shuffled.map(|(value, _)| value)
            }),
            series("all targets", 0, Shape::Dots, &|effect| Some(effect.all)),
        ],
        sources: table(effects, name).sources,
        ..Figure::default()
    };
    figure.series.retain(|series| !series.points.is_empty());
    let lines = effects.iter().map(|effect| {
        let part = |label: &str, value: Option<f64>| {
            value
                .map(|value| format!(", {label} {}", shown(value)))
                .unwrap_or_default()
        };
        format!(
            "{}: all {}{}{}{}",
            effect.system.name,
            shown(effect.all),
            part("same time", effect.same),
            part("later", effect.later),
            part("ties shuffled", effect.shuffled.map(|(value, _)| value))
        )
    });
    figure.alt = lines.collect::<Vec<_>>().join("; ");
    figure
}
