//! Reads what is fitted: values from a metrics table or a table of points, sizes joined by the axes that both have.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, Float64Array, RecordBatch, UInt32Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Schema, UInt32Type, UInt64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sluice_engine::table::{Table, Tables};
use sluice_engine::{Error, Result};

use super::{FitScalingLaw, PER_USER, POINTS};
use crate::count_parameters::{PARAMETERS, PART};
use crate::metric_rows;
use crate::report::numbers::short;
use crate::scaling::intervals::Users;
use crate::scaling::{PARTS, Point};
use crate::schema::{self, BEAM, BETTER, RANK, TARGET, TIED, USER_ID};

/// Points, what each is called, and what users scored.
pub(super) struct Read {
    pub(super) points: Vec<Point>,
    pub(super) labels: Vec<String>,
    pub(super) users: Option<Users>,
}

/// Whether the table has a row a metric, and not a row a point.
fn is_long(schema: &Schema) -> bool {
    ["metric", "k", "slice", "ties"]
        .iter()
        .all(|name| schema.field_with_name(name).is_ok())
}

fn axes(schema: &Schema, wanted: impl Fn(&str, &DataType) -> bool) -> Vec<String> {
    let fields = schema
        .fields()
        .iter()
        .filter(|field| wanted(field.name(), field.data_type()));
    fields.map(|field| field.name().clone()).collect()
}

/// The values of some columns, as text, a row after the other.
fn texts(batch: &RecordBatch, columns: &[String]) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null("null");
    let mut formatters = Vec::new();
    for column in columns {
        let column = batch
            .column_by_name(column)
            .ok_or_else(|| Error::internal(format!("no column \"{column}\"")))?;
        formatters.push(ArrayFormatter::try_new(column, &options)?);
    }
    let row = |row: usize| {
        formatters
            .iter()
            .map(|formatter| formatter.value(row).to_string())
            .collect()
    };
    Ok((0..batch.num_rows()).map(row).collect())
}

fn doubles(batch: &RecordBatch, column: &str) -> Result<Float64Array> {
    let values = batch
        .column_by_name(column)
        .ok_or_else(|| Error::internal(format!("no column \"{column}\"")))?;
    Ok(schema::numbers::<Float64Type>(
        &RecordBatch::try_from_iter([(column, cast(values, &DataType::Float64)?)])?,
        column,
    )?
    .clone())
}

fn number(values: &Float64Array, row: usize) -> Option<f64> {
    values.is_valid(row).then(|| values.value(row))
}

fn told(number: Option<f64>) -> String {
    number.map_or_else(|| "null".to_string(), short)
}

fn called(axes: &[String], values: &[String]) -> String {
    let pairs: Vec<String> = axes
        .iter()
        .zip(values)
        .map(|(axis, value)| format!("{axis}={value}"))
        .collect();
    match pairs.is_empty() {
        true => "the point".to_string(),
        false => pairs.join(","),
    }
}

impl FitScalingLaw {
    /// The column of a `per_user` table that belongs to the values.
    pub(super) fn user_value(&self, schema: &Schema) -> String {
        match (is_long(schema), self.k) {
            (true, Some(k)) => format!("{}_{k}", self.metric),
            (true, None) => self.metric.clone(),
            (false, _) => self.value.clone(),
        }
    }

    pub(super) fn read(&self, inputs: &Tables) -> Result<Read> {
        let all = inputs.batch(POINTS)?;
        let long = is_long(&all.schema());
        let batch = if long { self.chosen(&all)? } else { all };
        let sizes = self.sizes.all();
        let metric_columns = metric_rows::fields();
        let names = axes(&batch.schema(), |name, _| {
            let own = if long {
                metric_columns.iter().any(|field| field.name() == name)
            } else {
                name == self.value
            };
            !own && !sizes.contains(&Some(name))
        });
        let values = doubles(&batch, &self.value)?;
        let keys = texts(&batch, &names)?;
        // Other columns of numbers are no names: a table of points may hold further metrics.
        let named: Vec<usize> = (0..names.len())
            .filter(|at| {
                let joined = PARTS.iter().filter_map(|part| inputs.table(part).ok()?.schema().ok());
                let floats = batch
                    .schema()
                    .field_with_name(&names[*at])
                    .is_ok_and(|field| field.data_type().is_floating());
                !floats
                    || joined
                        .into_iter()
                        .any(|schema| schema.field_with_name(&names[*at]).is_ok())
            })
            .collect();
        let pick = |values: &[String]| -> Vec<String> { named.iter().map(|at| values[*at].clone()).collect() };
        let called_by = pick(&names);
        let labels: Vec<String> = keys.iter().map(|key| called(&called_by, &pick(key))).collect();
        let place = |row: usize| match called_by.is_empty() {
            true => format!("row {}", row + 1),
            false => labels[row].clone(),
        };
        let mut points = Vec::new();
        for row in 0..batch.num_rows() {
            let value = number(&values, row);
            let Some(value) = value.filter(|value| value.is_finite()) else {
                let known: Result<Vec<String>> = sizes
                    .iter()
                    .flatten()
                    .map(|column| Ok(format!("{column} = {}", told(number(&doubles(&batch, column)?, row)))))
                    .collect();
                let known = match known?.join(", ") {
                    known if known.is_empty() => known,
                    known => format!(" ({known})"),
                };
                let message = format!("{}{known}: \"{}\" is {}", place(row), self.value, told(value));
                return Err(Error::data("bad-point", message)
                    .hint("values of points are finite numbers; leave out rows without one"));
            };
            points.push(Point {
                sizes: [f64::NAN; PARTS.len()],
                value,
            });
        }
        if points.is_empty() {
            return Err(Error::data("few-points", "there are no points").hint("the input \"points\" has no rows"));
        }
        for (part, column) in sizes.iter().enumerate() {
            if let Some(column) = column {
                let of = doubles(&batch, column)?;
                for (row, point) in points.iter_mut().enumerate() {
                    point.sizes[part] = size(&place(row), column, number(&of, row))?;
                }
            } else if inputs.has(PARTS[part]) {
                let counts = self.counts(part, inputs.table(PARTS[part])?, &names)?;
                for (row, point) in points.iter_mut().enumerate() {
                    let count = counts.of(&keys[row], &labels[row])?;
                    point.sizes[part] = size(&place(row), PARTS[part], Some(count))?;
                }
            }
        }
        let users = match inputs.has(PER_USER) {
            true => Some(self.users(
                inputs.table(PER_USER)?,
                &batch.schema(),
                (&names, &keys),
                (&points, &labels),
            )?),
            false => None,
        };
        Ok(Read { points, labels, users })
    }

    /// The rows of a metrics table that are asked for.
    fn chosen(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let (metric, slice, ties) = (
            schema::strings(batch, "metric")?,
            schema::strings(batch, "slice")?,
            schema::strings(batch, "ties")?,
        );
        let k = schema::numbers::<UInt32Type>(batch, "k")?;
        let is_wanted = |row: usize| {
            let at = k.is_valid(row).then(|| k.value(row));
            metric.value(row) == self.metric
                && slice.value(row) == self.slice
                && ties.value(row) == self.ties
                && at == self.k
        };
        let rows: Vec<u32> = (0..batch.num_rows())
            .filter(|row| is_wanted(*row))
            .map(|row| row as u32)
            .collect();
        if rows.is_empty() {
            let at = self.k.map_or(String::new(), |k| format!("@{k}"));
            let message = format!(
                "no row has {}{at} of slice \"{}\", ties \"{}\"",
                self.metric, self.slice, self.ties
            );
            return Err(Error::data("no-points", message).hint("see \"metric\", \"k\", \"slice\" and \"ties\""));
        }
        Ok(arrow::compute::take_record_batch(batch, &UInt32Array::from(rows))?)
    }

    /// The counts of a part, by the axes that they share with the points.
    fn counts(&self, part: usize, table: &Table, names: &[String]) -> Result<Counts> {
        let batch = table.batch()?;
        let own = axes(&batch.schema(), |name, _| name != PART && name != PARAMETERS);
        let shared: Vec<usize> = (0..names.len()).filter(|at| own.contains(&names[*at])).collect();
        let (keys, parts) = (texts(&batch, &own)?, schema::strings(&batch, PART)?);
        let counts = schema::numbers::<UInt64Type>(&batch, PARAMETERS)?;
        let wanted = |row: usize| {
            part != crate::scaling::RS
                || self.parts.is_empty()
                || self.parts.iter().any(|part| part == parts.value(row))
        };
        if let Some(unknown) = self
            .parts
            .iter()
            .find(|wanted| part == crate::scaling::RS && !parts.iter().flatten().any(|part| part == *wanted))
        {
            let mut known: Vec<&str> = parts.iter().flatten().collect();
            known.sort_unstable();
            known.dedup();
            return Err(
                Error::user("unknown-part", format!("no model has a part \"{unknown}\""))
                    .detail(format!("they have: {}", known.join(", "))),
            );
        }
        // A total a model first: counts may have axes that points do not.
        let mut totals: BTreeMap<&Vec<String>, u64> = BTreeMap::new();
        for (row, key) in keys.iter().enumerate().filter(|(row, _)| wanted(*row)) {
            *totals.entry(key).or_default() += counts.value(row);
        }
        let mut found: HashMap<Vec<String>, u64> = HashMap::new();
        for (key, total) in totals {
            let value = |at: &usize| {
                own.iter()
                    .position(|own| *own == names[*at])
                    .map(|place| key[place].clone())
            };
            let short: Vec<String> = shared.iter().filter_map(value).collect();
            if let Some(other) = found.insert(short.clone(), total)
                && other != total
            {
                let shared: Vec<String> = shared.iter().map(|at| names[*at].clone()).collect();
                let message = format!(
                    "the counts of \"{}\" differ for {}: {other} and {total}",
                    PARTS[part],
                    called(&shared, &short)
                );
                return Err(Error::data("ambiguous-size", message).hint("the points lack an axis that the counts have"));
            }
        }
        Ok(Counts {
            part: PARTS[part],
            shared,
            found,
        })
    }

    /// Values of users, by the axes that they share with the points.
    fn users(
        &self,
        table: &Table,
        schema: &Schema,
        (names, keys): (&[String], &[Vec<String>]),
        (points, labels): (&[Point], &[String]),
    ) -> Result<Users> {
        let column = self.user_value(schema);
        let of_users = [USER_ID, TARGET, RANK, BETTER, TIED, BEAM, column.as_str()];
        let own = axes(table.schema()?.as_ref(), |name, kind| {
            !of_users.contains(&name)
                && *kind != DataType::Boolean
                && names.iter().any(|known| known == name)
                && !name.starts_with("recall_")
                && !name.starts_with("ndcg_")
        });
        let mut by_point: HashMap<Vec<String>, Vec<(String, f64)>> = HashMap::new();
        for batch in table.batches()? {
            let batch = batch?;
            let (ids, values) = (
                schema::strings(&batch, USER_ID)?,
                schema::numbers::<Float64Type>(&batch, &column)?,
            );
            for (row, key) in texts(&batch, &own)?.into_iter().enumerate() {
                by_point
                    .entry(key)
                    .or_default()
                    .push((ids.value(row).to_string(), values.value(row)));
            }
        }
        by_point
            .values_mut()
            .for_each(|rows| rows.sort_by(|a, b| a.0.cmp(&b.0)));
        let mut users = Users {
            values: Vec::new(),
            users: 0,
        };
        let mut first: Option<&Vec<(String, f64)>> = None;
        for ((key, point), label) in keys.iter().zip(points).zip(labels) {
            let short: Vec<String> = own
                .iter()
                .filter_map(|own| names.iter().position(|name| name == own).map(|at| key[at].clone()))
                .collect();
            let rows = by_point.get(&short).ok_or_else(|| {
                Error::data("no-users", format!("\"{PER_USER}\" has no users for {label}"))
                    .hint("gather it over the same sweep as the points")
            })?;
            let same =
                first.is_none_or(|first| first.len() == rows.len() && first.iter().zip(rows).all(|(a, b)| a.0 == b.0));
            if !same || rows.windows(2).any(|pair| pair[0].0 == pair[1].0) {
                let message = format!("{label} was scored on other users than the first point, or on some twice");
                return Err(Error::data("different-users", message).hint("gather what was scored on the same targets"));
            }
            first = Some(first.unwrap_or(rows));
            let mean = rows.iter().map(|row| row.1).sum::<f64>() / rows.len() as f64;
            let off = (mean - point.value).abs();
            if off.is_nan() || off > 1e-6 * point.value.abs().max(1e-3) {
                let message = format!(
                    "the users of {label} have mean {mean:.6}, the point has {:.6}",
                    point.value
                );
                return Err(Error::data("different-users", message)
                    .hint("\"per_user\" and \"points\" must come from the same scores"));
            }
            users.users = rows.len();
            users.values.extend(rows.iter().map(|row| row.1));
        }
        Ok(users)
    }
}

/// Totals of a part by the axes that are shared.
struct Counts {
    part: &'static str,
    shared: Vec<usize>,
    found: HashMap<Vec<String>, u64>,
}

impl Counts {
    fn of(&self, key: &[String], label: &str) -> Result<f64> {
        let short: Vec<String> = self.shared.iter().map(|at| key[*at].clone()).collect();
        let total = self.found.get(&short).ok_or_else(|| {
            Error::data("no-size", format!("there is no count of \"{}\" for {label}", self.part))
                .hint("gather counts over the same sweep as the points")
        })?;
        Ok(*total as f64)
    }
}

fn size(place: &str, column: &str, size: Option<f64>) -> Result<f64> {
    size.filter(|size| size.is_finite() && *size > 0.0).ok_or_else(|| {
        let message = format!(
            "size \"{column}\" of {place} is {}: sizes are positive numbers",
            told(size)
        );
        Error::data("bad-point", message)
    })
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;
    use crate::fit_scaling_law::{Law, SizeColumns};

    fn told(rows: &str) -> String {
        let config = FitScalingLaw {
            laws: vec![Law::Log],
            value: "r".into(),
            sizes: SizeColumns {
                rs: Some("n".into()),
                ..SizeColumns::default()
            },
            ..FitScalingLaw::default()
        };
        let error = harness::run(&config, &[(POINTS, text::parse(rows).unwrap())]).unwrap_err();
        assert_eq!(error.code, "bad-point", "{error}");
        error.message
    }

    #[test]
    fn bad_points_are_named() {
        for (row, wanted) in [
            ("3e8 NaN", "row 2 (n = 300,000,000): \"r\" is NaN"),
            ("3e8 null", "row 2 (n = 300,000,000): \"r\" is null"),
            ("null NaN", "row 2 (n = null): \"r\" is NaN"),
            ("0 0.1", "size \"n\" of row 2 is 0: sizes are positive numbers"),
            ("-5 0.1", "size \"n\" of row 2 is -5: sizes are positive numbers"),
            ("null 0.1", "size \"n\" of row 2 is null: sizes are positive numbers"),
        ] {
            assert_eq!(told(&format!("n:f64 r:f64\n1e6 0.01\n{row}")), wanted);
        }
        assert_eq!(
            told("shape n:f64 r:f64\ns 1e6 0.01\nm 2e6 NaN"),
            "shape=m (n = 2,000,000): \"r\" is NaN"
        );
    }
}
