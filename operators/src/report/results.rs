//! Results: metrics of all systems, over all users and by slice, and where they stand beside published figures.

use super::document::{Block, Cell, Column, Finding, Mark, Row, Section, Table};
use super::marks::marks;
use super::numbers;
use super::published::Published;
use super::scores::System;
use crate::slices;

/// Metrics of which more is better.
const MORE_IS_BETTER: [&str; 8] = [
    "recall",
    "ndcg",
    "mrr",
    "map",
    "hit_rate",
    "precision",
    "hits",
    "id_recall",
];

/// Which metrics a report shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Metrics, in order.
    pub metrics: Vec<String>,
    /// Cut-offs, in order.
    pub ks: Vec<u32>,
    /// How ties are counted.
    pub ties: String,
}

impl Choice {
    /// The number that single figures are about: the first metric at the first cut-off.
    pub fn first(&self) -> (&str, u32) {
        (
            self.metrics.first().map_or("recall", String::as_str),
            self.ks.first().copied().unwrap_or(5),
        )
    }

    /// `recall@5, ndcg@5, recall@10, ...`, as papers order them, of those that some system has.
    pub fn columns(&self, systems: &[&System]) -> Vec<(&str, u32)> {
        let all = self
            .ks
            .iter()
            .flat_map(|k| self.metrics.iter().map(|metric| (metric.as_str(), *k)));
        let known = |(metric, k): &(&str, u32)| {
            systems
                .iter()
                .any(|system| system.value(metric, *k, slices::ALL).is_some())
        };
        all.filter(known).collect()
    }
}

/// `Recall@5` as papers write it.
pub fn heading(metric: &str, k: u32) -> String {
    let name = match metric {
        "recall" => "Recall",
        "ndcg" => "NDCG",
        "mrr" => "MRR",
        "map" => "MAP",
        "hit_rate" => "HR",
        "precision" => "Precision",
        other => other,
    };
    format!("{name}@{k}")
}

/// The section of results, and what is to be said first.
pub fn section(systems: &[&System], choice: &Choice) -> Option<(Section, Vec<Finding>)> {
    let columns = choice.columns(systems);
    if systems.is_empty() || columns.is_empty() {
        return None;
    }
    let mut blocks = vec![Block::Table(all_users(systems, &columns, choice))];
    let mut findings = Vec::new();
    let (metric, k) = choice.first();
    if let Some(best) = best(systems, metric, k)
        && systems.len() > 1
    {
        let value = best.value(metric, k, slices::ALL);
        let shown = value.map(|value| numbers::metric(value.mean)).unwrap_or_default();
        findings.push(Finding::plain(format!(
            "Highest {}: {} with {shown}, of {} systems.",
            heading(metric, k),
            best.name,
            systems.len()
        )));
    }
    let by_slice = choice.ks.iter().filter_map(|k| by_slice(systems, metric, *k));
    blocks.extend(by_slice.map(Block::Table));
    Some((Section::new("results", "Results", blocks), findings))
}

/// The system with the highest value over all users.
pub fn best<'a>(systems: &[&'a System], metric: &str, k: u32) -> Option<&'a System> {
    let value = |system: &System| system.value(metric, k, slices::ALL).map(|value| value.mean);
    let with = systems.iter().filter_map(|system| Some((*system, value(system)?)));
    with.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(system, _)| system)
}

fn all_users(systems: &[&System], columns: &[(&str, u32)], choice: &Choice) -> Table {
    let seeds = systems.iter().any(|system| system.seeds > 1);
    let value = |system: &System, (metric, k): (&str, u32)| system.value(metric, k, slices::ALL).cloned();
    let users = systems.iter().find_map(|system| value(system, columns[0])?.users);
    let intervals = systems
        .iter()
        .any(|system| value(system, columns[0]).is_some_and(|value| value.interval.is_some()));
    let mut caption = "Metrics over all test users".to_string();
    if let Some(users) = users {
        caption.push_str(&format!(" ({})", numbers::count(users)));
    }
    caption.push_str(&format!("; ties: {}. Best bold, second underlined", choice.ties));
    if intervals {
        caption.push_str("; below: bootstrap interval over users");
    }
    if seeds {
        caption.push_str("; ±: sample standard deviation over seeds");
    }
    let mut head = vec![Column::words("system")];
    if seeds {
        head.push(Column::numbers("seeds"));
    }
    head.extend(columns.iter().map(|(metric, k)| Column::numbers(heading(metric, *k))));
    let mut table = Table::new(caption + ".", head).from(systems.iter().map(|system| system.input.clone()));
    let marked: Vec<Vec<Option<Mark>>> = columns
        .iter()
        .map(|column| column_marks(systems, *column, slices::ALL))
        .collect();
    for (place, system) in systems.iter().enumerate() {
        let mut cells = vec![Cell::new(&*system.name)];
        if seeds {
            cells.push(Cell::new(system.seeds.to_string()));
        }
        for (column, marks) in columns.iter().zip(&marked) {
            let mut cell = value(system, *column).map(|value| value.cell()).unwrap_or_default();
            cell.mark = marks[place];
            cells.push(cell);
        }
        table.rows.push(Row::new(cells).from(&system.input));
    }
    table
}

fn column_marks(systems: &[&System], (metric, k): (&str, u32), slice: &str) -> Vec<Option<Mark>> {
    match MORE_IS_BETTER.contains(&metric) {
        true => {
            let values = systems
                .iter()
                .map(|system| system.value(metric, k, slice).map(|value| value.mean));
            marks(&values.collect::<Vec<_>>())
        }
        false => vec![None; systems.len()],
    }
}

/// One number of every system by slice; nothing where there are no slices.
fn by_slice(systems: &[&System], metric: &str, k: u32) -> Option<Table> {
    let has = |slice: &&str| systems.iter().any(|system| system.value(metric, k, slice).is_some());
    let known = slices::definitions(true, true);
    let slices: Vec<&str> = known.iter().map(|(name, _)| *name).filter(has).collect();
    if slices.len() < 2 {
        return None;
    }
    let about = |slice: &str| {
        known
            .iter()
            .find(|(name, _)| *name == slice)
            .map_or("", |(_, about)| about)
    };
    let caption = format!("{} by slice of the test users.", heading(metric, k));
    let inputs = || systems.iter().map(|system| system.input.clone());
    let marked: Vec<_> = slices
        .iter()
        .map(|slice| column_marks(systems, (metric, k), slice))
        .collect();
    let cell = |place: usize, slice: usize| {
        let value = systems[place].value(metric, k, slices[slice]);
        let mut cell = value
            .map(|value| Cell::new(numbers::metric(value.mean)))
            .unwrap_or_default();
        cell.mark = marked[slice][place];
        cell
    };
    // How many users a slice has is a fact of the split, the same for all systems of one split.
    let users = |slice: &str| systems.iter().find_map(|system| system.value(metric, k, slice)?.users);
    let counted = slices.iter().any(|slice| users(slice).is_some());
    let count = |slice: &&str| Cell::new(users(slice).map(numbers::count).unwrap_or_default());
    let name = |slice: &str| slice.replace('_', " ");
    // A table is rather long than wide.
    if slices.len() > systems.len() {
        let mut head = vec![Column::words("slice")];
        head.extend(systems.iter().map(|system| Column::numbers(system.name.as_str())));
        if counted {
            head.push(Column::numbers("users"));
        }
        head.push(Column::words("which"));
        let mut table = Table::new(caption, head).from(inputs());
        for (number, slice) in slices.iter().enumerate() {
            let mut cells = vec![Cell::new(name(slice))];
            cells.extend((0..systems.len()).map(|place| cell(place, number)));
            if counted {
                cells.push(count(slice));
            }
            cells.push(Cell::new(about(slice)));
            table.rows.push(Row::new(cells));
        }
        return Some(table);
    }
    let mut head = vec![Column::words("system")];
    head.extend(
        slices
            .iter()
            .map(|slice| Column::numbers(name(slice)).about(about(slice))),
    );
    let mut table = Table::new(caption, head).from(inputs());
    for (place, system) in systems.iter().enumerate() {
        let mut cells = vec![Cell::new(&*system.name)];
        cells.extend((0..slices.len()).map(|number| cell(place, number)));
        table.rows.push(Row::new(cells).from(&system.input));
    }
    if counted {
        let counts = slices.iter().map(count);
        table
            .rows
            .push(Row::new([Cell::new("users")].into_iter().chain(counts).collect()));
    }
    Some(table)
}

/// The section that puts the best system beside published ones.
pub fn beside_published(
    systems: &[&System],
    choice: &Choice,
    published: &[Published],
    dataset: &str,
) -> Option<(Section, Vec<Finding>)> {
    let columns = choice.columns(systems);
    let columns: Vec<(&str, u32)> = columns
        .into_iter()
        .filter(|(metric, k)| published.iter().any(|row| row.value(metric, *k).is_some()))
        .collect();
    if columns.is_empty() || published.is_empty() {
        return None;
    }
    let (metric, k) = choice.first();
    let best = best(systems, metric, k)?;
    let own = |(metric, k): (&str, u32)| best.value(metric, k, slices::ALL).map(|value| value.mean);
    let mut head = vec![Column::words("system")];
    head.extend(columns.iter().map(|(metric, k)| Column::numbers(heading(metric, *k))));
    head.push(Column::words("source"));
    let caption = format!(
        "Published figures on {dataset}; below each, how far {} is from it. Nobody's protocol is known in full: a gap is an \
        occasion to look closer, not a result.",
        best.name
    );
    let mut table = Table::new(caption, head).from([best.input.clone()]);
    let mut cells = vec![Cell::new(format!("{} (here)", best.name))];
    cells.extend(
        columns
            .iter()
            .map(|column| Cell::new(own(*column).map(numbers::metric).unwrap_or_default())),
    );
    cells.push(Cell::new("this report"));
    table.rows.push(Row::new(cells).from(&best.input).strong());
    for row in published {
        let mut cells = vec![Cell::new(&*row.system)];
        for (metric, k) in &columns {
            let cell = row.value(metric, *k).map(|value| {
                let gap = own((metric, *k)).and_then(|own| numbers::change(own, value));
                Cell::new(numbers::metric(value)).below(gap.unwrap_or_default())
            });
            cells.push(cell.unwrap_or_default());
        }
        cells.push(Cell::new(&*row.source));
        table.rows.push(Row::new(cells));
    }
    let mut findings = Vec::new();
    let known: Vec<f64> = published.iter().filter_map(|row| row.value(metric, k)).collect();
    if let Some(own) = own((metric, k)) {
        let above = known.iter().filter(|value| own > **value).count();
        findings.push(Finding::plain(format!(
            "Beside {} published figures of {} on {dataset}, {} ({}) is above {above}.",
            known.len(),
            heading(metric, k),
            best.name,
            numbers::metric(own)
        )));
    }
    Some((
        Section::new("published", "Beside published figures", vec![Block::Table(table)]),
        findings,
    ))
}
