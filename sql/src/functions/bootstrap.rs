//! Percentile intervals of a mean by resampling rows, as the stage `score_ranking` does for users.
//!
//! Resample r draws as many rows as there are, with replacement, by the numbers of row r of that stage's stream: the same
//! values in the same order under the same seed give its intervals. An aggregate sees rows in no order of its own, so it
//! sorts the values first; a list has an order.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, RecordBatch, StructArray};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Float64Type, Int64Type, Schema};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, Volatility,
};
use sluice_engine::random::Random;

use super::lists::{self, Lists};
use super::{About, bad_call, bad_value, check_arguments, elements, number, whole_number, with_elements, wrong_type};

const CONFIDENCE: (&str, &str) = (
    "confidence",
    "The coverage of the interval, between 0 and 1: 0.95 if not said.",
);
const RESAMPLES: (&str, &str) = (
    "resamples",
    "How many resamples, up to 100,000 and to 4e9 draws of rows: 2,000 if not said.",
);
const SEED: (&str, &str) = (
    "seed",
    "The seed of the random numbers: 42, that of pipelines, if not said.",
);

/// The family's reference.
pub(super) const ABOUT: &[About] = &[
    About {
        name: "bootstrap_interval",
        signature: "bootstrap_interval(x [, confidence [, resamples [, seed]]]) -> Struct(low, mean, high)",
        line: "The mean of a column with its percentile bootstrap interval over rows.",
        detail: "Values are sorted first, so the order of rows does not matter and the interval is a function of the \
            values alone. NULLs are left out, NULL of nothing else; NaN is an error. ['low'] takes a field.",
        arguments: &[
            ("x", "A number a row, such as a metric of a user."),
            CONFIDENCE,
            RESAMPLES,
            SEED,
        ],
    },
    About {
        name: "array_bootstrap_interval",
        signature: "array_bootstrap_interval(list [, confidence [, resamples [, seed]]]) -> Struct(low, mean, high)",
        line: "The same of a list of numbers, in the order of the list.",
        detail: "array_agg(recall_10 ORDER BY ...) in the order of score_ranking's users, under the seed of its pipeline, \
            gives the intervals of that stage.",
        arguments: &[("list", "Numbers."), CONFIDENCE, RESAMPLES, SEED],
    },
];

/// The aggregate.
pub(super) fn aggregates() -> Vec<AggregateUDF> {
    vec![AggregateUDF::from(Interval {
        signature: Signature::user_defined(Volatility::Immutable),
        documentation: ABOUT[0].documentation(),
    })]
}

/// The function of a list.
pub(super) fn scalars() -> Vec<ScalarUDF> {
    vec![ScalarUDF::from(ListInterval {
        signature: Signature::user_defined(Volatility::Immutable),
        documentation: ABOUT[1].documentation(),
    })]
}

static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    let field = |name| Field::new(name, DataType::Float64, true);
    Fields::from(vec![field("low"), field("mean"), field("high")])
});

/// The most resamples: a statement cannot be interrupted within one interval.
const MOST: i64 = 100_000;

/// The most draws of one interval, for the same reason: a minute or less.
const MOST_DRAWS: f64 = 4e9;

/// How resamples are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Draws {
    confidence: f64,
    resamples: u64,
    seed: u64,
}

impl Draws {
    /// From the arguments after the first, as far as they are given.
    fn new(about: &About, confidence: Option<f64>, resamples: Option<i64>, seed: Option<i64>) -> Result<Self> {
        let (confidence, resamples) = (confidence.unwrap_or(0.95), resamples.unwrap_or(2000));
        let refused = |what: String| bad_call(format!("\"{}\": {what}", about.name), about.signature);
        if !(confidence > 0.0 && confidence < 1.0) {
            return refused(format!("the confidence must lie between 0 and 1, not {confidence}"));
        }
        if !(1..=MOST).contains(&resamples) {
            return refused(format!("resamples are from 1 to {MOST}, not {resamples}"));
        }
        match u64::try_from(seed.unwrap_or(42)) {
            Ok(seed) => Ok(Draws {
                confidence,
                resamples: resamples.unsigned_abs(),
                seed,
            }),
            Err(_) => refused("a seed is 0 or more".to_string()),
        }
    }

    /// The mean of values with its interval, as (low, mean, high); none of no values.
    fn interval(self, values: &[f64]) -> Result<Option<[f64; 3]>> {
        if values.is_empty() {
            return Ok(None);
        }
        if values.iter().any(|value| value.is_nan()) {
            return Err(bad_value("a value to resample is not a number".to_string()));
        }
        let draws = values.len() as f64 * self.resamples as f64;
        if draws > MOST_DRAWS {
            let (rows, resamples) = (values.len(), self.resamples);
            let message =
                format!("{rows} rows x {resamples} resamples are {draws:.0e} draws, more than {MOST_DRAWS:.0e}");
            return bad_call(message, "ask for fewer resamples");
        }
        // Rows of equal values are interchangeable: they are counted, not added up one by one.
        let mut distinct: Vec<f64> = Vec::new();
        let mut classes: HashMap<u64, u32> = HashMap::new();
        let class: Vec<u32> = values
            .iter()
            .map(|value| {
                *classes.entry(value.to_bits()).or_insert_with(|| {
                    distinct.push(*value);
                    distinct.len() as u32 - 1
                })
            })
            .collect();
        let mean = |counts: &[u32]| {
            let pairs = counts.iter().zip(&distinct).filter(|(count, _)| **count > 0);
            pairs.map(|(count, value)| f64::from(*count) * value).sum::<f64>() / values.len() as f64
        };
        let mut counts = vec![0u32; distinct.len()];
        class.iter().for_each(|class| counts[*class as usize] += 1);
        let whole = mean(&counts);
        let random = Random::new(self.seed, "score_ranking", "bootstrap");
        let mut means: Vec<f64> = (0..self.resamples)
            .map(|resample| {
                let mut stream = random.row(resample);
                counts.fill(0);
                for _ in 0..class.len() {
                    let row = stream.below(class.len() as u64) as usize;
                    counts[class[row] as usize] += 1;
                }
                mean(&counts)
            })
            .collect();
        means.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        Ok(Some([quantile(&means, tail), whole, quantile(&means, 1.0 - tail)]))
    }
}

/// A quantile of sorted values, linear between neighbours. There is at least one.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let place = at * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// Intervals as a column.
fn column(intervals: &[Option<[f64; 3]>]) -> Result<StructArray> {
    let field = |place: usize| -> ArrayRef {
        let values = intervals.iter().map(|interval| interval.map(|found| found[place]));
        Arc::new(Float64Array::from_iter(values))
    };
    let valid = intervals.iter().map(Option::is_some).collect();
    let columns = vec![field(0), field(1), field(2)];
    Ok(StructArray::try_new(
        FIELDS.clone(),
        columns,
        Some(lists::nulls(valid)),
    )?)
}

/// The types of the arguments after the first.
fn coerce_draws(given: &[DataType]) -> impl Iterator<Item = DataType> + '_ {
    given.iter().enumerate().map(|(place, given)| match place {
        0 => number(given),
        _ => whole_number(given),
    })
}

fn check_draws(about: &About, given: &[DataType]) -> Result<DataType> {
    for (place, given) in given.iter().enumerate().skip(1) {
        let (wanted, words) = match place {
            1 => (DataType::Float64, "a number"),
            _ => (DataType::Int64, "a whole number"),
        };
        if given != &wanted {
            return wrong_type(about, place, words, given);
        }
    }
    Ok(DataType::Struct(FIELDS.clone()))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Interval {
    signature: Signature,
    documentation: Documentation,
}

impl AggregateUDFImpl for Interval {
    fn name(&self) -> &str {
        ABOUT[0].name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let Some((first, more)) = given.split_first() else {
            return Ok(Vec::new());
        };
        Ok([number(first)].into_iter().chain(coerce_draws(more)).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        check_arguments(&ABOUT[0], given, 1)?;
        if given[0] != DataType::Float64 {
            return wrong_type(&ABOUT[0], 0, "a number", &given[0]);
        }
        check_draws(&ABOUT[0], given)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let values = DataType::new_list(DataType::Float64, true);
        Ok(vec![Arc::new(Field::new(
            format_state_name(args.name, "values"),
            values,
            true,
        ))])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return bad_call(
                "\"bootstrap_interval\" takes no DISTINCT: rows count, not values".to_string(),
                ABOUT[0].signature,
            );
        }
        let empty = RecordBatch::new_empty(Arc::new(Schema::empty()));
        let constant = |place: usize| -> Result<Option<ScalarValue>> {
            let Some(expression) = args.exprs.get(place) else {
                return Ok(None);
            };
            // A column is missing from an empty batch.
            match expression.evaluate(&empty) {
                Ok(ColumnarValue::Scalar(value)) if !value.is_null() => Ok(Some(value)),
                _ => {
                    let (name, _) = ABOUT[0].arguments[place];
                    bad_call(
                        format!("\"{name}\" of \"bootstrap_interval\" wants a constant"),
                        ABOUT[0].signature,
                    )
                }
            }
        };
        let whole = |value| match value {
            Some(ScalarValue::Int64(value)) => value,
            _ => None,
        };
        let confidence = match constant(1)? {
            Some(ScalarValue::Float64(value)) => value,
            _ => None,
        };
        let draws = Draws::new(&ABOUT[0], confidence, whole(constant(2)?), whole(constant(3)?))?;
        Ok(Box::new(Values {
            draws,
            values: Vec::new(),
        }))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// Values to resample.
#[derive(Debug)]
struct Values {
    draws: Draws,
    values: Vec<f64>,
}

impl Accumulator for Values {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.values
            .extend(values[0].as_primitive::<Float64Type>().iter().flatten());
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let values = Float64Array::from(std::mem::take(&mut self.values));
        let item = Arc::new(Field::new_list_field(DataType::Float64, true));
        let list = ListArray::try_new(item, OffsetBuffer::from_lengths([values.len()]), Arc::new(values), None)?;
        Ok(vec![ScalarValue::List(Arc::new(list))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        for list in states[0].as_list::<i32>().iter().flatten() {
            self.update_batch(&[list])?;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.values.sort_unstable_by(f64::total_cmp);
        let interval = self.draws.interval(&self.values)?;
        Ok(ScalarValue::Struct(Arc::new(column(&[interval])?)))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.values.capacity() * size_of::<f64>()
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ListInterval {
    signature: Signature,
    documentation: Documentation,
}

impl ScalarUDFImpl for ListInterval {
    fn name(&self) -> &str {
        ABOUT[1].name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let Some((first, more)) = given.split_first() else {
            return Ok(Vec::new());
        };
        let list = match elements(first) {
            Some(own) => with_elements(first, number(own)),
            None => with_elements(first, DataType::Float64),
        };
        Ok([list].into_iter().chain(coerce_draws(more)).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        check_arguments(&ABOUT[1], given, 1)?;
        if elements(&given[0]) != Some(&DataType::Float64) {
            return wrong_type(&ABOUT[1], 0, "a list of numbers", &given[0]);
        }
        check_draws(&ABOUT[1], given)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = lists::rows(&args.args, args.number_rows);
        let (list, constant) = lists::argument(&args.args[0])?;
        let list = Lists::new(&list, constant)?;
        let values = list.values.as_primitive::<Float64Type>();
        let more = args.args[1..].iter().map(lists::argument).collect::<Result<Vec<_>>>()?;
        let place = |argument: usize, row: usize| -> Option<(&ArrayRef, usize)> {
            let (array, constant) = more.get(argument)?;
            let row = if *constant { 0 } else { row };
            array.is_valid(row).then_some((array, row))
        };
        let whole =
            |argument, row| place(argument, row).map(|(array, row)| array.as_primitive::<Int64Type>().value(row));
        let mut intervals = Vec::with_capacity(rows);
        for row in 0..rows {
            let confidence = place(0, row).map(|(array, row)| array.as_primitive::<Float64Type>().value(row));
            let draws = Draws::new(&ABOUT[1], confidence, whole(1, row), whole(2, row))?;
            let numbers: Option<Vec<f64>> = list.row(row).map(|places| {
                let there = places.filter(|place| values.is_valid(*place));
                there.map(|place| values.value(place)).collect()
            });
            intervals.push(match numbers {
                Some(numbers) => draws.interval(&numbers)?,
                None => None,
            });
        }
        lists::result(&args.args, Arc::new(column(&intervals)?))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: Draws = Draws {
        confidence: 0.95,
        resamples: 2000,
        seed: 42,
    };

    /// 1,000 users of which 200 hit: the standard error of the mean is sqrt(.2 * .8 / 1000) = .01265.
    #[test]
    fn the_interval_of_a_share_is_that_of_the_binomial() {
        let values: Vec<f64> = (0..1000).map(|user| f64::from(user % 5 == 0)).collect();
        let [low, mean, high] = DRAWS.interval(&values).unwrap().unwrap();
        assert_eq!(mean, 0.2);
        assert!(
            (low - 0.1752).abs() < 0.003 && (high - 0.2248).abs() < 0.003,
            "{low} {high}"
        );
    }

    /// Golden numbers: `Users::estimates` of operators/src/bootstrap.rs over these values in this order.
    #[test]
    fn intervals_are_those_of_score_ranking() {
        let values: Vec<f64> = (0..97).map(|user| 1.0 / f64::from(1 + user * user % 23)).collect();
        let mean = 0.216_862_786_407_326_98;
        let found = DRAWS.interval(&values).unwrap();
        assert_eq!(found, Some([0.173_802_025_053_381_55, mean, 0.263_748_877_537_018_6]));
        let other = Draws {
            confidence: 0.8,
            resamples: 500,
            seed: 7,
        };
        let found = other.interval(&values).unwrap();
        assert_eq!(found, Some([0.186_402_871_011_086_46, mean, 0.245_563_883_663_848_6]));
    }

    /// Of many samples from one distribution, about as many intervals hold its mean as the confidence says.
    #[test]
    fn intervals_hold_the_mean_as_often_as_they_say() {
        let draws = Draws {
            confidence: 0.8,
            resamples: 300,
            seed: 7,
        };
        let random = Random::new(5, "test", "samples");
        let holds = |sample: u64| {
            let mut stream = random.row(sample);
            let values: Vec<f64> = (0..80).map(|_| stream.normal() + 3.0).collect();
            let [low, _, high] = draws.interval(&values).unwrap().unwrap();
            low <= 3.0 && 3.0 <= high
        };
        let held = (0..400).filter(|sample| holds(*sample)).count();
        // 320 are expected with a standard deviation of 8; small samples fall a little short.
        assert!((285..=350).contains(&held), "{held}");
    }

    #[test]
    fn the_seed_decides_and_nothing_else() {
        let values: Vec<f64> = (0..50).map(|value| f64::from(value * value % 17)).collect();
        let once = DRAWS.interval(&values).unwrap();
        assert_eq!(once, DRAWS.interval(&values).unwrap());
        let other = Draws { seed: 43, ..DRAWS };
        assert_ne!(once, other.interval(&values).unwrap());
        assert_eq!(DRAWS.interval(&[]).unwrap(), None);
        assert_eq!(DRAWS.interval(&[2.5]).unwrap(), Some([2.5; 3]));
        assert!(DRAWS.interval(&[1.0, f64::NAN]).is_err());
    }
}
