//! `sluice tensorboard DIR`: training curves as TensorBoard reads them, a folder a stage.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float64Type};
use sluice_engine::Error;
use sluice_engine::event::{Entry, Event};
use sluice_engine::history::{self, RunRecord};
use sluice_engine::store::{KeyRecord, Store};

use crate::arguments;
use crate::display::{count, say};
use crate::runs::{named, newest, records_of};
use crate::tfevents::{Point, file};

/// The output that is a training curve.
const CURVE: &str = "curve";
/// The column that is no scalar, but where scalars stand.
const STEP: &str = "step";
/// Columns after this one are those of a level of a quantizer.
const LEVEL: &str = "level";

/// `sluice tensorboard DIR`.
pub fn tensorboard(command: &arguments::Tensorboard) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let runs = match (&command.run, command.all) {
        (Some(run), _) => vec![named(&store, run).map_err(one)?],
        (None, true) => {
            let mut all: Vec<RunRecord> = history::runs(&store).collect();
            all.reverse();
            all
        }
        (None, false) => vec![newest(&store, command.pipeline.as_deref()).map_err(one)?],
    };
    let mut written = BTreeSet::new();
    let mut events = BTreeMap::new();
    for run in &runs {
        for (stage, record) in records_of(&store, run) {
            let Some(digest) = record.outputs.get(CURVE) else {
                continue;
            };
            let key = (record.key.clone(), (!command.all).then(|| stage.clone()));
            if written.contains(&key) {
                continue;
            }
            let curve = store.table(digest).and_then(|table| table.batch()).map_err(one)?;
            // The curve of a scaling law goes by size.
            if curve.column_by_name(STEP).is_none() {
                continue;
            }
            written.insert(key);
            let told = events
                .entry(record.run.clone())
                .or_insert_with(|| history::events(&store, &record.run));
            let points = points(&curve, &Clock::new(told, &stage, &record)).map_err(one)?;
            write(&command.folder.join(&run.run).join(plain(&stage)), &points).map_err(one)?;
        }
    }
    if written.is_empty() {
        let what = match runs.as_slice() {
            [run] => format!("run {} has no training curve in the store", run.run),
            _ => "the store has no training curve".to_string(),
        };
        let error = Error::user("no-curve", what).hint("curves are made by stages that train; see \"sluice runs\"");
        return Err(vec![error]);
    }
    let curves = match written.len() {
        1 => "1 curve".to_string(),
        number => format!("{} curves", count(number as u64)),
    };
    say!("{curves}; now: tensorboard --logdir {}", command.folder.display());
    Ok(())
}

/// Writes the file of a stage; its name is that of its first second, so that it is written over next time.
fn write(folder: &Path, points: &[Point]) -> Result<(), Error> {
    let second = points.first().map_or(0, |point| point.wall_time as u64);
    let path = folder.join(format!("events.out.tfevents.{second}.sluice"));
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&path, file(points)))
        .map_err(|error| Error::io("write", &path, &error))
}

/// A stage as the name of a folder.
pub fn plain(stage: &str) -> String {
    let keep = |c: char| c.is_alphanumeric() || "_-.,=[]".contains(c);
    let name: String = stage.chars().map(|c| if keep(c) { c } else { '_' }).collect();
    match name.starts_with('.') {
        true => format!("_{name}"),
        false => name,
    }
}

/// `train_loss` stands with its like as `train/loss`.
fn tag(column: &str) -> String {
    match column.split_once('_') {
        Some((group @ ("train" | "valid"), rest)) => format!("{group}/{rest}"),
        _ => column.to_string(),
    }
}

/// The numbers of a curve, step by step.
fn points(curve: &RecordBatch, clock: &Clock) -> Result<Vec<Point>, Error> {
    let schema = curve.schema();
    let mut columns = Vec::new();
    for (field, column) in schema.fields().iter().zip(curve.columns()) {
        if field.data_type().is_numeric() {
            let numbers = arrow::compute::cast(column, &DataType::Float64)?;
            columns.push((field.name().as_str(), numbers.as_primitive::<Float64Type>().clone()));
        }
    }
    let of = |name: &str| columns.iter().position(|(column, _)| *column == name);
    let Some(step) = of(STEP) else {
        return Err(Error::data("no-step", "a curve has no column \"step\""));
    };
    let level = of(LEVEL);
    let mut points: Vec<Point> = Vec::new();
    for row in 0..curve.num_rows() {
        let at = columns[step].1.value(row);
        let first = points.last().is_none_or(|point| point.step != at as u64);
        if first {
            points.push(Point {
                wall_time: clock.at(at),
                step: at as u64,
                values: Vec::new(),
            });
        }
        for (place, (name, numbers)) in columns.iter().enumerate() {
            let value = numbers.is_valid(row).then(|| numbers.value(row));
            let tag = match level {
                _ if place == step || Some(place) == level => continue,
                Some(level) if place > level => format!("{}/level_{}", tag(name), columns[level].1.value(row)),
                // Told in the first row of a step, repeated in those of the other levels.
                _ if !first => continue,
                _ => tag(name),
            };
            if let (Some(value), Some(point)) = (value, points.last_mut()) {
                point.values.push((tag, value));
            }
        }
    }
    Ok(points)
}

/// When the steps of a stage were done: between two that the run told, evenly.
struct Clock {
    /// Steps and seconds since 1970, both rising.
    told: Vec<(f64, f64)>,
}

impl Clock {
    /// From the events of the run that made the record; that run may have called the stage otherwise.
    fn new(events: &[Entry], stage: &str, record: &KeyRecord) -> Self {
        let made = events.iter().find_map(|entry| match &entry.event {
            Event::StageFinished { stage, key, .. } if *key == record.key => Some(stage.as_str()),
            _ => None,
        });
        let stage = made.unwrap_or(stage);
        let mut told = Vec::new();
        for entry in events.iter().filter(|entry| entry.event.stage() == Some(stage)) {
            let at = entry.at as f64 / 1000.0;
            match &entry.event {
                Event::StageStarted { .. } => told = vec![(0.0, at)],
                Event::StageProgress { progress, .. } if progress.unit == "steps" => {
                    let step = progress.done as f64;
                    // A step that is told again was followed by an evaluation, which belongs to it.
                    told.retain(|(before, _)| *before < step);
                    told.push((step, at));
                }
                _ => {}
            }
        }
        if told.is_empty() {
            told.push((0.0, 0.0));
        }
        Clock { told }
    }

    fn at(&self, step: f64) -> f64 {
        let after = self.told.iter().position(|(told, _)| *told >= step);
        match after {
            Some(0) => self.told[0].1,
            Some(after) => {
                let ((from, start), (to, end)) = (self.told[after - 1], self.told[after]);
                start + (end - start) * (step - from) / (to - from)
            }
            None => self.told.last().map_or(0.0, |(_, at)| *at),
        }
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::text;

    use super::*;

    fn clock(told: &[(f64, f64)]) -> Clock {
        Clock { told: told.to_vec() }
    }

    #[test]
    fn time_runs_evenly_between_what_was_told() {
        let clock = clock(&[(0.0, 100.0), (10.0, 110.0), (20.0, 150.0)]);
        let times = [0.0, 5.0, 10.0, 15.0, 20.0, 25.0].map(|step| clock.at(step));
        assert_eq!(times, [100.0, 105.0, 110.0, 130.0, 150.0, 150.0]);
    }

    #[test]
    fn columns_are_tags() {
        let curve = "step:u64 epoch:u64 train_loss:f64 valid_recall_5:f64 learning_rate:f64\n 2 1 0.5 null 0.1\n 4 1 0.25 1 0.1";
        let points = points(&text::parse(curve).unwrap(), &clock(&[(0.0, 7.0), (4.0, 8.0)])).unwrap();
        let value = |tag: &str, value| (tag.to_string(), value);
        let wanted = [
            Point {
                wall_time: 7.5,
                step: 2,
                values: vec![
                    value("epoch", 1.0),
                    value("train/loss", 0.5),
                    value("learning_rate", 0.1),
                ],
            },
            Point {
                wall_time: 8.0,
                step: 4,
                values: vec![
                    value("epoch", 1.0),
                    value("train/loss", 0.25),
                    value("valid/recall_5", 1.0),
                    value("learning_rate", 0.1),
                ],
            },
        ];
        assert_eq!(points, wanted);
    }

    #[test]
    fn levels_stand_side_by_side() {
        let curve = "step:u64 train_loss:f64 level:u32 perplexity:f64\n 1 3 0 7\n 1 3 1 8\n 2 2 0 9\n 2 2 1 6";
        let points = points(&text::parse(curve).unwrap(), &clock(&[(0.0, 0.0)])).unwrap();
        let tags = |point: &Point| {
            point
                .values
                .iter()
                .map(|(tag, value)| format!("{tag} {value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(points.len(), 2);
        assert_eq!(
            tags(&points[0]),
            ["train/loss 3", "perplexity/level_0 7", "perplexity/level_1 8"]
        );
        assert_eq!(
            tags(&points[1]),
            ["train/loss 2", "perplexity/level_0 9", "perplexity/level_1 6"]
        );
        let error = super::points(&text::parse("a:u64\n 1").unwrap(), &clock(&[(0.0, 0.0)])).unwrap_err();
        assert_eq!(error.code, "no-step");
    }

    #[test]
    fn stages_are_names_of_folders() {
        assert_eq!(plain("tiger[size=13m,seed=2]"), "tiger[size=13m,seed=2]");
        assert_eq!(plain("../a b"), "_.._a_b");
    }
}
