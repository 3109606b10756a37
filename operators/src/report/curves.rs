//! The course of trainings: every number that a training tells, by step.

use arrow::array::RecordBatch;
use arrow::datatypes::Field;
use sluice_engine::Result;

use super::document::{Block, Section};
use super::figure::{Axis, Figure, Guide, Point, Series, Shape};
use super::numbers::figure as number;
use super::scores::{Labels, floats, texts};
use super::svg::COLORS;

/// What is not worth a figure: what figures are drawn over, and the schedule that the config says.
const NOT_DRAWN: [&str; 3] = ["step", "epoch", "learning_rate"];

/// Whether a column of a curve has a figure.
pub fn is_drawn(field: &Field) -> bool {
    field.data_type().is_floating() && !NOT_DRAWN.contains(&field.name().as_str())
}

/// The section, of tables of `train_*` or trained quantizers, each with the name of its input.
pub fn section(tables: &[(&str, RecordBatch)]) -> Result<Option<Section>> {
    // The names of columns in order of appearance; each is a figure with a line for every training that has it.
    let mut columns: Vec<String> = Vec::new();
    for (_, batch) in tables {
        for field in batch.schema().fields() {
            if is_drawn(field) && !columns.contains(field.name()) {
                columns.push(field.name().clone());
            }
        }
    }
    let mut blocks = Vec::new();
    for column in &columns {
        let mut figure = Figure {
            x: Axis {
                label: "step".into(),
                ..Axis::default()
            },
            y: Axis {
                label: words(column),
                ..Axis::default()
            },
            ..Figure::default()
        };
        let mut best: Vec<String> = Vec::new();
        for (input, batch) in tables
            .iter()
            .filter(|(_, batch)| batch.column_by_name(column).is_some())
        {
            for (name, points) in lines(input, batch, column)? {
                best.extend(told(&name, column, &points));
                let color = figure.series.len() % COLORS;
                figure.series.push(Series {
                    name,
                    color,
                    shape: Shape::Line,
                    points,
                });
            }
            figure.sources.push(input.to_string());
        }
        if let [only] = figure.series.as_slice()
            && is_metric(column)
            && let Some(top) = only.points.iter().max_by(|a, b| a.y.total_cmp(&b.y))
        {
            figure.guides.push(Guide {
                upright: true,
                at: top.x,
                label: format!("best at step {}", top.x),
            });
        }
        // One is named by the caption; of many, a legend would be longer than the figure.
        if figure.series.len() == 1 || figure.series.len() > 2 * COLORS {
            figure.series.iter_mut().for_each(|series| series.name.clear());
        }
        figure.caption = format!("{} by step of the training.", capital(&words(column)));
        figure.alt = best.join("; ");
        if !figure.is_empty() {
            blocks.push(Block::Figure(figure));
        }
    }
    Ok((!blocks.is_empty()).then(|| Section::new("training", "Training", blocks)))
}

fn is_metric(column: &str) -> bool {
    column.contains("recall") || column.contains("ndcg")
}

fn words(column: &str) -> String {
    column.replace('_', " ")
}

/// The text with a capital at its beginning.
fn capital(text: &str) -> String {
    let mut signs = text.chars();
    let first = signs.next().map(|sign| sign.to_uppercase().to_string());
    first.unwrap_or_default() + signs.as_str()
}

/// The lines of a table: one for every point of a sweep, and every level of a quantizer.
fn lines(input: &str, batch: &RecordBatch, column: &str) -> Result<Vec<(String, Vec<Point>)>> {
    let schema = batch.schema();
    // Whatever comes before the step is an axis.
    let before: Vec<&str> = schema
        .fields()
        .iter()
        .map(|field| field.name().as_str())
        .take_while(|name| *name != "step")
        .collect();
    let labels = Labels::over(batch, |name| !before.contains(&name))?;
    let (steps, values) = (floats(batch, "step")?, floats(batch, column)?);
    let levels = match batch.column_by_name("level").filter(|_| !before.contains(&"level")) {
        Some(_) => Some(texts(batch, "level")?),
        None => None,
    };
    let mut lines: Vec<(String, Vec<Point>)> = Vec::new();
    for row in 0..batch.num_rows() {
        let (Some(step), Some(value)) = (steps[row], values[row]) else {
            continue;
        };
        let (label, seed) = labels.of(row);
        let seed = if seed.is_empty() { seed } else { format!(" seed {seed}") };
        let level = levels
            .as_ref()
            .map(|levels| format!(" level {}", levels[row]))
            .unwrap_or_default();
        let name = format!("{input}{label}{seed}{level}");
        match lines.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push(Point::at(step, value)),
            None => lines.push((name, vec![Point::at(step, value)])),
        }
    }
    Ok(lines)
}

/// The line in words.
fn told(name: &str, column: &str, points: &[Point]) -> Option<String> {
    let (first, last) = (points.first()?, points.last()?);
    Some(format!(
        "{name}: {} from {} at step {} to {} at step {}",
        words(column),
        number(first.y),
        first.x,
        number(last.y),
        last.x
    ))
}

#[cfg(test)]
mod tests {
    use sluice_engine::text;

    use super::*;

    #[test]
    fn every_number_is_a_figure_with_a_line_a_training() {
        let swept = "size seed:i64 step:u64 epoch:u64 train_loss:f64 valid_recall_5:f64 learning_rate:f64
            s 1 10 1 3.5 0.1 1e-3
            s 1 20 1 3.0 0.3 1e-3
            s 2 10 1 3.4 0.2 1e-3
            m 1 10 1 2.0 null 1e-3";
        let tables = [("tiger", text::parse(swept).unwrap())];
        let section = section(&tables).unwrap().unwrap();
        let [Block::Figure(loss), Block::Figure(recall)] = section.blocks.as_slice() else {
            panic!("{section:?}")
        };
        let names: Vec<&str> = loss.series.iter().map(|series| series.name.as_str()).collect();
        assert_eq!(
            names,
            ["tiger[size=s] seed 1", "tiger[size=s] seed 2", "tiger[size=m] seed 1"]
        );
        assert_eq!(recall.series.len(), 2);
        assert_eq!(loss.series[0].points, [Point::at(10.0, 3.5), Point::at(20.0, 3.0)]);
        assert!(
            loss.alt.contains("train loss from 3.5 at step 10 to 3 at step 20"),
            "{}",
            loss.alt
        );
    }
}
