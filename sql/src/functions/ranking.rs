//! Ranking metrics of leave-one-out as aggregates over the rank of each user's target.
//!
//! The formulas are those of the stage `score_ranking` ("listed"). Gains are summed as whole numbers of 2^-80, which holds
//! every gain up to rank 2^28 exactly: the result is the same to the bit for any order of rows and any number of threads,
//! and the sum is rounded once. `score_ranking` sums in f64, so it may differ in the last bits; recall does not.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, Float64Array, UInt64Array};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Int64Type, UInt64Type};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator, Signature, Volatility,
};

use super::{About, bad_call, bad_value, check_arguments, whole_number, wrong_type};

const RANK: (&str, &str) = (
    "rank",
    "The place of the target in the list, from 1; NULL or 0 if it is not there.",
);
const K: (&str, &str) = ("k", "The cut-off, at least 1.");

/// The family's reference.
pub(super) const ABOUT: &[About] = &[
    About {
        name: "recall_at",
        signature: "recall_at(rank, k) -> Float64",
        line: "The share of rows whose target is among the first k.",
        detail: "A row whose rank is NULL or 0 counts, and scores 0. NULL of no rows. With one target a user it is the \
            hit rate, too.",
        arguments: &[RANK, K],
    },
    About {
        name: "ndcg_at",
        signature: "ndcg_at(rank, k) -> Float64",
        line: "The mean over rows of 1 / log2(rank + 1), 0 where the target is not among the first k.",
        detail: "A row whose rank is NULL or 0 counts, and scores 0. NULL of no rows.",
        arguments: &[RANK, K],
    },
    About {
        name: "mrr",
        signature: "mrr(rank [, k]) -> Float64",
        line: "The mean over rows of 1 / rank, 0 where the target is not among the first k, if k is given.",
        detail: "A row whose rank is NULL or 0 counts, and scores 0. NULL of no rows.",
        arguments: &[RANK, K],
    },
];

/// The functions.
pub(super) fn all() -> Vec<AggregateUDF> {
    let metrics = [Metric::Recall, Metric::Ndcg, Metric::Mrr];
    let functions = metrics.into_iter().zip(ABOUT).map(|(metric, about)| {
        AggregateUDF::from(Ranking {
            metric,
            about,
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: about.documentation(),
        })
    });
    functions.collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Metric {
    Recall,
    Ndcg,
    Mrr,
}

/// One in the unit of sums.
const ONE: f64 = (1u128 << 80) as f64;
/// The type that carries sums between threads: what it says of digits is not enforced.
const SUM: DataType = DataType::Decimal128(38, 0);

impl Metric {
    /// What a target at `rank`, from 1, is worth.
    fn gain(self, rank: i64) -> f64 {
        match self {
            Metric::Recall => 1.0,
            Metric::Ndcg => 1.0 / ((rank + 1) as f64).log2(),
            Metric::Mrr => 1.0 / rank as f64,
        }
    }

    /// Gains of rows in the unit of sums, from ranks and cut-offs.
    fn gains(self, values: &[ArrayRef]) -> Result<Vec<i128>> {
        let ranks = values[0].as_primitive::<Int64Type>();
        let cuts = values.get(1).map(|cuts| cuts.as_primitive::<Int64Type>());
        let gain = |row: usize| {
            let k = match cuts {
                None => i64::MAX,
                Some(cuts) if cuts.is_valid(row) && cuts.value(row) >= 1 => cuts.value(row),
                Some(cuts) => {
                    let given = cuts.is_valid(row).then(|| cuts.value(row).to_string());
                    return bad_call(
                        format!("a cut-off is at least 1, not {}", given.as_deref().unwrap_or("NULL")),
                        "rows that shall not count are for a WHERE or a FILTER",
                    );
                }
            };
            match ranks.is_valid(row).then(|| ranks.value(row)) {
                Some(rank) if rank < 0 => Err(bad_value(format!("a rank counts from 1, not {rank}"))),
                Some(rank) if rank >= 1 && rank <= k => Ok((self.gain(rank) * ONE) as i128),
                _ => Ok(0),
            }
        };
        (0..ranks.len()).map(gain).collect()
    }
}

/// The mean of so many gains; none of no rows.
fn mean(sum: i128, count: u64) -> Option<f64> {
    (count > 0).then(|| sum as f64 / ONE / count as f64)
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Ranking {
    metric: Metric,
    about: &'static About,
    signature: Signature,
    documentation: Documentation,
}

impl AggregateUDFImpl for Ranking {
    fn name(&self) -> &str {
        self.about.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        Ok(given.iter().map(whole_number).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        let least = if self.metric == Metric::Mrr { 1 } else { 2 };
        check_arguments(self.about, given, least)?;
        for (place, given) in given.iter().enumerate() {
            if given != &DataType::Int64 {
                return wrong_type(self.about, place, "a whole number", given);
            }
        }
        Ok(DataType::Float64)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        Ok(vec![
            Arc::new(Field::new(format_state_name(args.name, "sum"), SUM, true)),
            Arc::new(Field::new(
                format_state_name(args.name, "count"),
                DataType::UInt64,
                true,
            )),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            let message = format!("\"{}\" takes no DISTINCT: users count, not ranks", self.about.name);
            return bad_call(message, self.about.signature);
        }
        Ok(Box::new(Mean {
            metric: self.metric,
            sum: 0,
            count: 0,
        }))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(&self, _: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Means {
            metric: self.metric,
            sums: Vec::new(),
            counts: Vec::new(),
        }))
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

/// One mean.
#[derive(Debug)]
struct Mean {
    metric: Metric,
    sum: i128,
    count: u64,
}

impl Accumulator for Mean {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let gains = self.metric.gains(values)?;
        self.sum += gains.iter().sum::<i128>();
        self.count += gains.len() as u64;
        Ok(())
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let gains = self.metric.gains(values)?;
        self.sum -= gains.iter().sum::<i128>();
        self.count -= gains.len() as u64;
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![
            ScalarValue::Decimal128(Some(self.sum), 38, 0),
            ScalarValue::UInt64(Some(self.count)),
        ])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.sum += states[0].as_primitive::<Decimal128Type>().values().iter().sum::<i128>();
        self.count += states[1].as_primitive::<UInt64Type>().values().iter().sum::<u64>();
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(mean(self.sum, self.count)))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// A mean a group.
struct Means {
    metric: Metric,
    sums: Vec<i128>,
    counts: Vec<u64>,
}

fn counts(filter: Option<&BooleanArray>, row: usize) -> bool {
    filter.is_none_or(|filter| filter.is_valid(row) && filter.value(row))
}

impl Means {
    fn grow(&mut self, groups: usize) {
        self.sums.resize(groups, 0);
        self.counts.resize(groups, 0);
    }
}

impl GroupsAccumulator for Means {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.grow(total);
        let gains = match filter {
            None => self.metric.gains(values)?,
            // Rows that do not count may hold anything.
            Some(filter) => {
                return self.update_batch(&kept(values, filter)?, &kept_groups(groups, filter), None, total);
            }
        };
        for (gain, group) in gains.into_iter().zip(groups) {
            self.sums[*group] += gain;
            self.counts[*group] += 1;
        }
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.grow(total);
        let sums = values[0].as_primitive::<Decimal128Type>();
        let counts = values[1].as_primitive::<UInt64Type>();
        for ((sum, count), group) in sums.values().iter().zip(counts.values()).zip(groups) {
            self.sums[*group] += sum;
            self.counts[*group] += count;
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = (
            emit_to.take_needed(&mut self.sums),
            emit_to.take_needed(&mut self.counts),
        );
        let means = sums.into_iter().zip(counts).map(|(sum, count)| mean(sum, count));
        Ok(Arc::new(Float64Array::from_iter(means)))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let sums = Decimal128Array::from(emit_to.take_needed(&mut self.sums)).with_data_type(SUM);
        let counts = UInt64Array::from(emit_to.take_needed(&mut self.counts));
        Ok(vec![Arc::new(sums), Arc::new(counts)])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values[0].len();
        let (sums, counts) = match filter {
            None => (self.metric.gains(values)?, vec![1; rows]),
            Some(filter) => {
                let mut gains = self.metric.gains(&kept(values, filter)?)?.into_iter();
                let mut next = |row| match counts(Some(filter), row) {
                    true => (gains.next().unwrap_or(0), 1),
                    false => (0, 0),
                };
                (0..rows).map(&mut next).unzip()
            }
        };
        let sums = Decimal128Array::from(sums).with_data_type(SUM);
        Ok(vec![Arc::new(sums), Arc::new(UInt64Array::from(counts))])
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.capacity() * size_of::<i128>() + self.counts.capacity() * size_of::<u64>()
    }
}

fn kept(values: &[ArrayRef], filter: &BooleanArray) -> Result<Vec<ArrayRef>> {
    let kept = values.iter().map(|values| arrow::compute::filter(values, filter));
    Ok(kept.collect::<Result<_, _>>()?)
}

fn kept_groups(groups: &[usize], filter: &BooleanArray) -> Vec<usize> {
    let rows = groups.iter().enumerate();
    rows.filter(|(row, _)| counts(Some(filter), *row))
        .map(|(_, group)| *group)
        .collect()
}

#[cfg(test)]
mod tests {
    use arrow::array::UInt32Array;
    use arrow::datatypes::Float64Type;
    use proptest::prelude::*;

    use super::super::testdata::{Asked, batch};
    use super::*;

    /// What the stage `score_ranking` does: values a row, summed in f64.
    fn naive(metric: Metric, ranks: &[Option<u32>], k: u32) -> f64 {
        let value = |rank: &Option<u32>| match rank {
            Some(rank) if (1..=k).contains(rank) => match metric {
                Metric::Recall => 1.0,
                Metric::Ndcg => 1.0 / f64::from(rank + 1).log2(),
                Metric::Mrr => 1.0 / f64::from(*rank),
            },
            _ => 0.0,
        };
        ranks.iter().map(value).sum::<f64>() / ranks.len() as f64
    }

    fn table(ranks: &[Option<u32>], parts: usize) -> Vec<Vec<arrow::array::RecordBatch>> {
        let group: ArrayRef = Arc::new(UInt32Array::from_iter_values(
            (0..ranks.len()).map(|row| row as u32 % 3),
        ));
        let ranks: ArrayRef = Arc::new(UInt32Array::from(ranks.to_vec()));
        let whole = batch(vec![("g", group), ("rank", ranks)]);
        let rows = whole.num_rows().div_ceil(parts);
        let slice = |part: usize| {
            let start = (part * rows).min(whole.num_rows());
            vec![whole.slice(start, rows.min(whole.num_rows() - start))]
        };
        (0..parts).map(slice).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn metrics_agree_with_plain_sums_in_any_order(
            ranks in prop::collection::vec(prop::option::of(0u32..40), 1..200),
            k in 1u32..30,
        ) {
            let mut backward = ranks.clone();
            backward.reverse();
            let straight = Asked::new(1, 8192).with("t", table(&ranks, 1));
            // Small batches and many partitions meet the states.
            let pieces = Asked::new(4, 16).with("t", table(&backward, 4));
            for (metric, call) in [(Metric::Recall, "recall_at"), (Metric::Ndcg, "ndcg_at"), (Metric::Mrr, "mrr")] {
                let statement = format!("SELECT {call}(rank, {k}) FROM t");
                let found = straight.column(&statement).unwrap();
                let wanted = naive(metric, &ranks, k);
                prop_assert!((found.as_primitive::<Float64Type>().value(0) - wanted).abs() < 1e-14);
                if metric == Metric::Recall {
                    prop_assert_eq!(found.as_primitive::<Float64Type>().value(0), wanted);
                }
                prop_assert_eq!(&found, &pieces.column(&statement).unwrap());
                // By group: the same rows in other places, so groups are told by what they hold.
                let by = format!("SELECT {call}(rank, {k}) AS m FROM t GROUP BY g ORDER BY m");
                let groups: Vec<Vec<Option<u32>>> = (0..3)
                    .map(|group| ranks.iter().skip(group).step_by(3).copied().collect::<Vec<_>>())
                    .filter(|group| !group.is_empty())
                    .collect();
                let mut wanted: Vec<f64> = groups.iter().map(|group| naive(metric, group, k)).collect();
                wanted.sort_by(f64::total_cmp);
                let found = straight.column(&by).unwrap();
                let found = found.as_primitive::<Float64Type>().values().to_vec();
                prop_assert_eq!(found.len(), wanted.len());
                prop_assert!(found.iter().zip(&wanted).all(|(found, wanted)| (found - wanted).abs() < 1e-14));
                let by = format!("SELECT {call}(rank, {k}) AS m FROM t GROUP BY coalesce(rank, 99) ORDER BY m");
                prop_assert_eq!(&straight.column(&by).unwrap(), &pieces.column(&by).unwrap());
            }
        }
    }

    #[test]
    fn rows_as_states_are_the_rows() {
        let ranks: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![Some(1), Some(3), None, Some(2)]));
        let cuts: ArrayRef = Arc::new(arrow::array::Int64Array::from(vec![2; 4]));
        let values = [ranks, cuts];
        let filter = BooleanArray::from(vec![Some(true), Some(true), None, Some(true)]);
        let groups = [0, 1, 0, 0];
        let new = || Means {
            metric: Metric::Mrr,
            sums: Vec::new(),
            counts: Vec::new(),
        };
        for filter in [None, Some(&filter)] {
            let mut straight = new();
            straight.update_batch(&values, &groups, filter, 2).unwrap();
            let mut merged = new();
            merged
                .merge_batch(&new().convert_to_state(&values, filter).unwrap(), &groups, 2)
                .unwrap();
            let first = straight.evaluate(EmitTo::First(1)).unwrap();
            assert_eq!(&first, &merged.evaluate(EmitTo::First(1)).unwrap());
            let wanted = if filter.is_some() { 0.75 } else { 0.5 };
            assert_eq!(first.as_primitive::<Float64Type>().value(0), wanted);
            assert_eq!(
                &straight.evaluate(EmitTo::All).unwrap(),
                &merged.evaluate(EmitTo::All).unwrap()
            );
        }
    }

    #[test]
    fn gains_are_exact() {
        for rank in [1, 2, 3, 10, 12_101, (1 << 28) - 1] {
            for metric in [Metric::Recall, Metric::Ndcg, Metric::Mrr] {
                let gain = metric.gain(rank);
                assert_eq!((gain * ONE) as i128 as f64 / ONE, gain, "{metric:?} of {rank}");
            }
        }
    }
}
