//! What a fit puts out, as tables.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use sluice_engine::Result;
use sluice_engine::table::Table;

use super::FitScalingLaw;
use crate::scaling::findings::{Finding, Fitted};
use crate::scaling::intervals::{correlation, interval};
use crate::scaling::judgement::{curve_sizes, largest};
use crate::scaling::{PARTS, Point, by_size};

fn number(name: &str) -> Field {
    Field::new(name, DataType::Float64, true)
}

fn word(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

fn count(name: &str) -> Field {
    Field::new(name, DataType::UInt64, false)
}

pub(super) fn fit_fields() -> Vec<Field> {
    let mut fields = vec![word("law"), word("parameter")];
    fields.extend(["value", "low", "high", "low_users", "high_users"].map(number));
    fields.extend([count("points"), count("sizes")]);
    fields.extend(["loss", "r2", "aic", "aicc", "bic", "delta_aic", "held_out"].map(number));
    fields
}

pub(super) fn correlation_fields() -> Vec<Field> {
    vec![
        word("law"),
        word("parameter_a"),
        word("parameter_b"),
        number("correlation"),
    ]
}

pub(super) fn curve_fields() -> Vec<Field> {
    let mut fields = vec![word("law"), Field::new("size", DataType::Float64, false)];
    fields.extend(PARTS.map(number));
    fields.extend(["value", "low", "high"].map(number));
    fields
}

pub(super) fn point_fields() -> Vec<Field> {
    let mut fields = vec![word("law"), word("point")];
    fields.extend(PARTS.map(number));
    fields.extend(["value", "fitted", "residual"].map(|name| Field::new(name, DataType::Float64, false)));
    fields.push(Field::new("largest", DataType::Boolean, false));
    fields
}

pub(super) fn finding_fields() -> Vec<Field> {
    vec![Field::new("law", DataType::Utf8, true), word("kind"), word("sentence")]
}

/// A number that is one, else null.
fn known(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn table(fields: Vec<Field>, columns: Vec<ArrayRef>) -> Result<Table> {
    Ok(Table::new(RecordBatch::try_new(
        Arc::new(Schema::new(fields)),
        columns,
    )?))
}

fn numbers<T>(rows: &[T], of: impl Fn(&T) -> Option<f64>) -> ArrayRef {
    Arc::new(Float64Array::from_iter(rows.iter().map(of)))
}

fn words<T>(rows: &[T], of: impl Fn(&T) -> String) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(rows.iter().map(of)))
}

pub(super) fn fits(laws: &[Fitted], points: &[Point], confidence: f64) -> Result<Table> {
    let rows: Vec<(&Fitted, usize)> = laws
        .iter()
        .flat_map(|fitted| (0..fitted.form.parameters()).map(move |at| (fitted, at)))
        .collect();
    let over_points: Vec<Option<(f64, f64)>> = rows
        .iter()
        .map(|(fitted, at)| interval(fitted.draws.iter().map(|draw| draw[*at]), confidence, fitted.freedom))
        .collect();
    // Users are many: the normal quantile is as good as Student's.
    let over_users: Vec<Option<(f64, f64)>> = rows
        .iter()
        .map(|(fitted, at)| {
            interval(
                fitted.user_draws.as_ref()?.iter().map(|draw| draw[*at]),
                confidence,
                f64::INFINITY,
            )
        })
        .collect();
    let end = |intervals: &[Option<(f64, f64)>], of: fn((f64, f64)) -> f64| -> ArrayRef {
        numbers(intervals, |interval| interval.map(of).and_then(known))
    };
    let least = laws
        .iter()
        .map(|fitted| fitted.judgement.aic)
        .fold(f64::INFINITY, f64::min);
    let counts = |value: usize| -> ArrayRef { Arc::new(UInt64Array::from(vec![value as u64; rows.len()])) };
    let columns = vec![
        words(&rows, |(fitted, _)| fitted.form.law.name().to_string()),
        words(&rows, |(fitted, at)| fitted.form.names()[*at].to_string()),
        numbers(&rows, |(fitted, at)| known(fitted.fit.parameters[*at])),
        end(&over_points, |ends| ends.0),
        end(&over_points, |ends| ends.1),
        end(&over_users, |ends| ends.0),
        end(&over_users, |ends| ends.1),
        counts(points.len()),
        counts(by_size(points).len()),
        numbers(&rows, |(fitted, _)| known(fitted.fit.loss)),
        numbers(&rows, |(fitted, _)| fitted.judgement.r2),
        numbers(&rows, |(fitted, _)| known(fitted.judgement.aic)),
        numbers(&rows, |(fitted, _)| fitted.judgement.aicc),
        numbers(&rows, |(fitted, _)| known(fitted.judgement.bic)),
        numbers(&rows, |(fitted, _)| known(fitted.judgement.aic - least)),
        numbers(&rows, |(fitted, _)| fitted.judgement.held_out),
    ];
    table(fit_fields(), columns)
}

pub(super) fn correlations(laws: &[Fitted]) -> Result<Table> {
    let mut rows: Vec<(&Fitted, usize, usize)> = Vec::new();
    for fitted in laws {
        let parameters = fitted.form.parameters();
        let pairs = (0..parameters).flat_map(|one| (one + 1..parameters).map(move |two| (one, two)));
        rows.extend(pairs.map(|(one, two)| (fitted, one, two)));
    }
    let columns = vec![
        words(&rows, |row| row.0.form.law.name().to_string()),
        words(&rows, |row| row.0.form.names()[row.1].to_string()),
        words(&rows, |row| row.0.form.names()[row.2].to_string()),
        numbers(&rows, |row| correlation(&row.0.draws, row.1, row.2)),
    ];
    table(correlation_fields(), columns)
}

impl FitScalingLaw {
    pub(super) fn curve(&self, laws: &[Fitted], points: &[Point], main: usize) -> Result<Table> {
        let grid = curve_sizes(points, main, self.curve_points as usize, self.curve_reach);
        let mut rows = Vec::new();
        for fitted in laws {
            for sizes in &grid {
                let predicted = |parameters: &Vec<f64>| fitted.form.predict(parameters, sizes);
                let band = interval(fitted.draws.iter().map(predicted), self.confidence, fitted.freedom);
                rows.push((fitted, sizes, predicted(&fitted.fit.parameters), band));
            }
        }
        let mut columns = vec![
            words(&rows, |row| row.0.form.law.name().to_string()),
            // Of the constant there is no size to run over, if none is known.
            numbers(&rows, |row| Some(known(row.1[main]).unwrap_or(1.0))),
        ];
        columns.extend((0..PARTS.len()).map(|part| numbers(&rows, |row| known(row.1[part]))));
        columns.push(numbers(&rows, |row| known(row.2)));
        columns.push(numbers(&rows, |row| row.3.map(|band| band.0).and_then(known)));
        columns.push(numbers(&rows, |row| row.3.map(|band| band.1).and_then(known)));
        table(curve_fields(), columns)
    }
}

pub(super) fn points(laws: &[Fitted], points: &[Point], labels: &[String]) -> Result<Table> {
    let held = largest(points);
    let rows: Vec<(&Fitted, usize)> = laws
        .iter()
        .flat_map(|fitted| (0..points.len()).map(move |at| (fitted, at)))
        .collect();
    let fitted = |row: &(&Fitted, usize)| row.0.form.predict(&row.0.fit.parameters, &points[row.1].sizes);
    let mut columns = vec![
        words(&rows, |row| row.0.form.law.name().to_string()),
        words(&rows, |row| labels[row.1].clone()),
    ];
    columns.extend((0..PARTS.len()).map(|part| numbers(&rows, |row| known(points[row.1].sizes[part]))));
    columns.push(numbers(&rows, |row| Some(points[row.1].value)));
    columns.push(numbers(&rows, |row| Some(fitted(row))));
    columns.push(numbers(&rows, |row| Some(points[row.1].value - fitted(row))));
    columns.push(Arc::new(BooleanArray::from_iter(
        rows.iter().map(|row| Some(held[row.1])),
    )));
    table(point_fields(), columns)
}

pub(super) fn findings(found: &[Finding]) -> Result<Table> {
    let laws = StringArray::from_iter(found.iter().map(|finding| finding.law.map(|law| law.name())));
    let columns = vec![
        Arc::new(laws) as ArrayRef,
        words(found, |finding| finding.kind.to_string()),
        words(found, |finding| finding.sentence.clone()),
    ];
    table(finding_fields(), columns)
}
