//! Metrics of systems, from metrics tables and from tables of systems, under one roof.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sluice_engine::{Error, Result};

use super::document::Cell;
use super::kinds::metric_and_k;
use super::numbers;
use crate::{metric_rows, schema};

/// The axis whose values are the runs of one system.
const SEED: &str = "seed";

/// Which number of a system.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Figure {
    /// The metric.
    pub metric: String,
    /// The cut-off.
    pub k: u32,
    /// The slice of users.
    pub slice: String,
}

/// A number of a system.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// The number; the mean over seeds.
    pub mean: f64,
    /// Its interval over users; only of one seed.
    pub interval: Option<(f64, f64)>,
    /// Sample standard deviation over seeds.
    pub deviation: Option<f64>,
    /// Users it is about, where that is known.
    pub users: Option<u64>,
}

/// A system.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    /// Its name.
    pub name: String,
    /// The input that it is from.
    pub input: String,
    /// Its runs.
    pub seeds: usize,
    /// Its numbers.
    pub values: BTreeMap<Figure, Value>,
}

impl System {
    /// A number.
    pub fn value(&self, metric: &str, k: u32, slice: &str) -> Option<&Value> {
        let (metric, slice) = (metric.to_string(), slice.to_string());
        self.values.get(&Figure { metric, k, slice })
    }
}

impl Value {
    /// The number with what says how sure it is.
    pub fn cell(&self) -> Cell {
        let mut cell = Cell::new(numbers::metric(self.mean));
        if let Some(deviation) = self.deviation {
            cell.after = format!("± {}", numbers::metric(deviation));
        }
        if let Some((low, high)) = self.interval {
            cell.below = format!("{}–{}", numbers::metric(low), numbers::metric(high));
        }
        cell
    }
}

/// Systems of a metrics table: one, or one for every point of a sweep but for the seeds. `ties` is the rule that counts.
pub fn of_metrics(input: &str, batch: &RecordBatch, ties: &str) -> Result<Vec<System>> {
    let own: Vec<String> = metric_rows::fields().iter().map(|field| field.name().clone()).collect();
    let labels = Labels::over(batch, |name| own.iter().any(|own| own == name))?;
    let metrics = schema::strings(batch, "metric")?;
    let slices = schema::strings(batch, "slice")?;
    let rules = schema::strings(batch, "ties")?;
    let (ks, values) = (floats(batch, "k")?, floats(batch, "value")?);
    let optional = |name: &str| match batch.column_by_name(name) {
        Some(_) => floats(batch, name),
        None => Ok(vec![None; batch.num_rows()]),
    };
    let (lows, highs, users) = (optional("low")?, optional("high")?, optional("users")?);
    let mut found = Collected::default();
    for row in 0..batch.num_rows() {
        let (Some(k), Some(value)) = (ks[row], values[row]) else {
            continue;
        };
        if rules.value(row) != ties {
            continue;
        }
        let figure = Figure {
            metric: metrics.value(row).to_string(),
            k: k as u32,
            slice: slices.value(row).to_string(),
        };
        let value = Value {
            mean: value,
            interval: lows[row].zip(highs[row]),
            deviation: None,
            users: users[row].map(|users| users as u64),
        };
        let (label, seed) = labels.of(row);
        found.add(format!("{input}{label}"), seed, figure, value);
    }
    Ok(found.systems(input))
}

/// Systems of a table with a row a system and slice and a column a metric.
pub fn of_systems(input: &str, batch: &RecordBatch) -> Result<Vec<System>> {
    let is_metric = |name: &str| metric_and_k(name).is_some();
    let labels = Labels::over(batch, |name| matches!(name, "system" | "slice") || is_metric(name))?;
    let names = schema::strings(batch, "system")?;
    let slices = schema::strings(batch, "slice")?;
    let mut found = Collected::default();
    for field in batch.schema().fields() {
        let Some((metric, k)) = metric_and_k(field.name()).filter(|_| field.data_type().is_numeric()) else {
            continue;
        };
        for (row, value) in floats(batch, field.name())?.into_iter().enumerate() {
            let (label, seed) = labels.of(row);
            let figure = Figure {
                metric: metric.to_string(),
                k,
                slice: slices.value(row).to_string(),
            };
            let Some(mean) = value else { continue };
            let value = Value {
                mean,
                interval: None,
                deviation: None,
                users: None,
            };
            found.add(format!("{}{label}", names.value(row)), seed, figure, value);
        }
    }
    Ok(found.systems(input))
}

/// Systems of a table with a row a system, metric (`recall_10`) and slice, averaged over seeds already.
pub fn of_means(input: &str, batch: &RecordBatch) -> Result<Vec<System>> {
    let [names, metrics, slices] = ["system", "metric", "slice"].map(|name| texts(batch, name));
    let (names, metrics, slices) = (names?, metrics?, slices?);
    let optional = |name: &str| match batch.column_by_name(name) {
        Some(_) => floats(batch, name),
        None => Ok(vec![None; batch.num_rows()]),
    };
    let (means, deviations) = (floats(batch, "mean")?, optional("deviation")?);
    let (users, seeds) = (optional("users")?, optional("seeds")?);
    let mut systems: Vec<System> = Vec::new();
    for row in 0..batch.num_rows() {
        let (Some((metric, k)), Some(mean)) = (metric_and_k(&metrics[row]), means[row]) else {
            continue;
        };
        let place = match systems.iter().position(|system| system.name == names[row]) {
            Some(place) => place,
            None => {
                systems.push(System {
                    name: names[row].clone(),
                    input: input.to_string(),
                    seeds: seeds[row].map_or(1, |seeds| seeds as usize),
                    values: BTreeMap::new(),
                });
                systems.len() - 1
            }
        };
        let figure = Figure {
            metric: metric.to_string(),
            k,
            slice: slices[row].clone(),
        };
        let value = Value {
            mean,
            interval: None,
            deviation: deviations[row],
            users: users[row].map(|users| users as u64),
        };
        systems[place].values.insert(figure, value);
    }
    Ok(systems)
}

/// A numeric column as numbers.
pub fn floats(batch: &RecordBatch, name: &str) -> Result<Vec<Option<f64>>> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| Error::internal(format!("no column \"{name}\"")))?;
    let column: ArrayRef = arrow::compute::cast(column, &DataType::Float64)?;
    Ok(column.as_primitive::<Float64Type>().iter().collect())
}

/// Any column as texts; nothing for null.
pub fn texts(batch: &RecordBatch, name: &str) -> Result<Vec<String>> {
    let column = batch
        .column_by_name(name)
        .ok_or_else(|| Error::internal(format!("no column \"{name}\"")))?;
    let options = FormatOptions::default();
    let values = ArrayFormatter::try_new(column, &options)?;
    Ok((0..batch.num_rows()).map(|row| values.value(row).to_string()).collect())
}

/// What the axes of a sweep make of the names of systems.
pub struct Labels {
    /// Axes with a text a row; those with one value are left out.
    axes: Vec<(String, Vec<String>)>,
    seeds: Option<Vec<String>>,
}

impl Labels {
    /// The axes of a table: columns that are not its own.
    pub fn over(batch: &RecordBatch, own: impl Fn(&str) -> bool) -> Result<Self> {
        let (mut axes, mut seeds) = (Vec::new(), None);
        for field in batch.schema().fields() {
            let name = field.name();
            if own(name) || field.data_type().is_nested() {
                continue;
            }
            let values = texts(batch, name)?;
            match name == SEED {
                true => seeds = Some(values),
                false if values.iter().any(|value| *value != values[0]) => axes.push((name.clone(), values)),
                false => {}
            }
        }
        Ok(Labels { axes, seeds })
    }

    /// `[size=13m]` and the seed of a row.
    pub fn of(&self, row: usize) -> (String, String) {
        let parts: Vec<String> = self
            .axes
            .iter()
            .map(|(name, values)| format!("{name}={}", values[row]))
            .collect();
        let label = if parts.is_empty() {
            String::new()
        } else {
            format!("[{}]", parts.join(","))
        };
        (
            label,
            self.seeds.as_ref().map(|seeds| seeds[row].clone()).unwrap_or_default(),
        )
    }
}

/// Numbers by system in order of appearance, every seed for itself.
#[derive(Default)]
struct Collected(Vec<Gathered>);

/// A system: its name, its seeds, its numbers by run.
type Gathered = (String, Vec<String>, BTreeMap<Figure, Vec<Value>>);

impl Collected {
    fn add(&mut self, name: String, seed: String, figure: Figure, value: Value) {
        let place = match self.0.iter().position(|(known, _, _)| *known == name) {
            Some(place) => place,
            None => {
                self.0.push((name, Vec::new(), BTreeMap::new()));
                self.0.len() - 1
            }
        };
        let (_, seeds, values) = &mut self.0[place];
        if !seeds.contains(&seed) {
            seeds.push(seed);
        }
        values.entry(figure).or_default().push(value);
    }

    fn systems(self, input: &str) -> Vec<System> {
        let system = |(name, seeds, values): Gathered| System {
            name,
            input: input.to_string(),
            seeds: seeds.len(),
            values: values
                .into_iter()
                .map(|(figure, runs)| (figure, over_seeds(&runs)))
                .collect(),
        };
        self.0.into_iter().map(system).collect()
    }
}

/// The mean over runs with their sample standard deviation; of one run, that with its interval.
fn over_seeds(runs: &[Value]) -> Value {
    if let [one] = runs {
        return one.clone();
    }
    let count = runs.len() as f64;
    let mean = runs.iter().map(|run| run.mean).sum::<f64>() / count;
    let squares: f64 = runs.iter().map(|run| (run.mean - mean).powi(2)).sum();
    Value {
        mean,
        interval: None,
        deviation: Some((squares / (count - 1.0)).sqrt()),
        users: runs[0].users,
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::text;

    use super::*;

    #[test]
    fn seeds_are_runs_of_one_system() {
        let batch = text::parse(
            "size seed:i64 metric k:u32 slice ties value:f64 low:f64 high:f64 users:u64
            s 1 recall 5 all expected 0.1 0.05 0.15 10
            s 2 recall 5 all expected 0.3 0.05 0.15 10
            s 1 recall 5 all listed 0.9 null null 10
            m 1 recall 5 all expected 0.5 0.4 0.6 10",
        )
        .unwrap();
        let systems = of_metrics("tiger", &batch, "expected").unwrap();
        let names: Vec<(&str, usize)> = systems
            .iter()
            .map(|system| (system.name.as_str(), system.seeds))
            .collect();
        assert_eq!(names, [("tiger[size=s]", 2), ("tiger[size=m]", 1)]);
        let cell = systems[0].value("recall", 5, "all").unwrap().cell();
        assert_eq!(
            (cell.text.as_str(), cell.after.as_str(), cell.below.as_str()),
            ("0.2000", "± 0.1414", "")
        );
        let cell = systems[1].value("recall", 5, "all").unwrap().cell();
        assert_eq!(
            (cell.text.as_str(), cell.after.as_str(), cell.below.as_str()),
            ("0.5000", "", "0.4000–0.6000")
        );
    }

    #[test]
    fn a_table_of_systems_is_read_by_its_columns() {
        let batch = text::parse(
            "system slice users recall_5:f64 ndcg_5:f64
            a all x 0.1 null
            a later x 0.05 0.01
            b all x 0.2 0.1",
        )
        .unwrap();
        let systems = of_systems("metrics", &batch).unwrap();
        assert_eq!(
            systems.iter().map(|system| system.name.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(systems[0].value("recall", 5, "later").unwrap().mean, 0.05);
        assert_eq!(systems[0].value("ndcg", 5, "all"), None);
    }
}
