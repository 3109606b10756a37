//! Vectors: cosine similarity, Euclidean distance and dot product of embeddings.
//!
//! DataFusion has `cosine_distance`, `array_distance` and `inner_product` with the same meaning. They turn both sides into
//! variable lists of f64 first, a copy of twice the bytes of an embedding column for every statement; these read the column
//! as it lies.

use std::ops::{Add, AddAssign, Mul, Sub};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, Float64Builder};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use sluice_engine::Error;

use super::lists::{self, Lists};
use super::{About, check_arguments, elements, with_elements, wrong_type};
use crate::catalog::outside;

const ARGUMENTS: &[(&str, &str)] = &[
    ("a", "A vector: an embedding column or a list of numbers."),
    ("b", "Another one, as long as the first."),
];

/// The family's reference.
pub(super) const ABOUT: &[About] = &[
    About {
        name: "cosine_similarity",
        signature: "cosine_similarity(a, b) -> Float64",
        line: "The cosine of the angle between two vectors.",
        detail: "NULL if either is NULL, has a NULL in it or is all zeros: order by it with DESC NULLS LAST. A single vector is best named by a subquery, \
            cosine_similarity(embedding, (SELECT ...)), which is faster than a join with one row. Where either \
            is of Float32, both are read as Float32.",
        arguments: ARGUMENTS,
    },
    About {
        name: "l2_distance",
        signature: "l2_distance(a, b) -> Float64",
        line: "The Euclidean distance between two vectors.",
        detail: "NULL if either is NULL or has a NULL in it. Where either is of Float32, both are read as Float32.",
        arguments: ARGUMENTS,
    },
    About {
        name: "dot",
        signature: "dot(a, b) -> Float64",
        line: "The dot product of two vectors.",
        detail: "NULL if either is NULL or has a NULL in it. Where either is of Float32, both are read as Float32.",
        arguments: ARGUMENTS,
    },
];

/// The functions.
pub(super) fn all() -> Vec<ScalarUDF> {
    let measures = [Measure::Cosine, Measure::Distance, Measure::Dot];
    let functions = measures.into_iter().zip(ABOUT).map(|(measure, about)| {
        ScalarUDF::from(Vectors {
            measure,
            about,
            signature: Signature::user_defined(Volatility::Immutable),
            documentation: about.documentation(),
        })
    });
    functions.collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Measure {
    Cosine,
    Distance,
    Dot,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Vectors {
    measure: Measure,
    about: &'static About,
    signature: Signature,
    documentation: Documentation,
}

impl ScalarUDFImpl for Vectors {
    fn name(&self) -> &str {
        self.about.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let short = |given: &DataType| matches!(elements(given), Some(DataType::Float32 | DataType::Float16));
        let element = match given.iter().any(short) {
            true => DataType::Float32,
            false => DataType::Float64,
        };
        let as_vector = |given: &DataType| match elements(given) {
            Some(own) if !own.is_numeric() && own != &DataType::Null => given.clone(),
            _ => with_elements(given, element.clone()),
        };
        Ok(given.iter().map(as_vector).collect())
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        check_arguments(self.about, given, 2)?;
        for (place, given) in given.iter().enumerate() {
            if !matches!(elements(given), Some(DataType::Float32 | DataType::Float64)) {
                return wrong_type(self.about, place, "a list of numbers", given);
            }
        }
        if let [DataType::FixedSizeList(_, a), DataType::FixedSizeList(_, b)] = given
            && a != b
        {
            return Err(different_lengths(self.about, *a as usize, *b as usize));
        }
        Ok(DataType::Float64)
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (a, b) = (lists::argument(&args.args[0])?, lists::argument(&args.args[1])?);
        let rows = lists::rows(&args.args, args.number_rows);
        let (a, b) = (Lists::new(&a.0, a.1)?, Lists::new(&b.0, b.1)?);
        let kinds = (a.values.data_type(), b.values.data_type());
        let result = match kinds {
            (DataType::Float32, DataType::Float32) => self.measure_all::<Float32Type>(a, b, rows)?,
            (DataType::Float64, DataType::Float64) => self.measure_all::<Float64Type>(a, b, rows)?,
            (a, b) => return Err(outside(Error::internal(format!("vectors of {a} and {b}")))),
        };
        lists::result(&args.args, result)
    }

    fn documentation(&self) -> Option<&Documentation> {
        Some(&self.documentation)
    }
}

impl Vectors {
    fn measure_all<T>(&self, a: Lists, b: Lists, rows: usize) -> Result<ArrayRef>
    where
        T: ArrowPrimitiveType<Native: Lane>,
    {
        // All three are symmetric: what stands for all rows stands second.
        let swapped = a.constant;
        let (a, b) = if swapped { (b, a) } else { (a, b) };
        let (a_values, b_values) = (
            a.values.as_primitive::<T>().values(),
            b.values.as_primitive::<T>().values(),
        );
        let (a_missing, b_missing) = (a.missing(), b.missing());
        // The length of a vector that stands for all rows is worked out once.
        let for_all = b.constant && self.measure == Measure::Cosine;
        let b_square = for_all.then(|| b.row(0)).flatten().map(|b| square(&b_values[b]));
        let mut results = Float64Builder::with_capacity(rows);
        for row in 0..rows {
            let (Some(a), Some(b)) = (a.row(row), b.row(row)) else {
                results.append_null();
                continue;
            };
            if a.len() != b.len() {
                let (a, b) = if swapped { (b, a) } else { (a, b) };
                return Err(different_lengths(self.about, a.len(), b.len()));
            }
            if !lists::complete(a_missing, &a) || !lists::complete(b_missing, &b) {
                results.append_null();
                continue;
            }
            let (a, b) = (&a_values[a], &b_values[b]);
            results.append_option(match self.measure {
                Measure::Cosine => cosine(a, b, b_square.unwrap_or_else(|| square(b))),
                Measure::Distance => Some(distance(a, b)),
                Measure::Dot => Some(dot(a, b)),
            });
        }
        Ok(Arc::new(results.finish()))
    }
}

fn different_lengths(about: &About, a: usize, b: usize) -> datafusion::common::DataFusionError {
    let message = format!("\"{}\" wants vectors of one length, not of {a} and {b}", about.name);
    outside(Error::user("different-lengths", message))
}

/// What vectors are made of.
trait Lane: Copy + Default + Into<f64> + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + AddAssign {}

impl Lane for f32 {}
impl Lane for f64 {}

/// Sums run in so many lanes beside each other: eight registers of f32 on any x86-64.
const LANES: usize = 32;
/// Terms that are summed in their own precision before they go to the f64 total.
const BLOCK: usize = 1024;
/// Sums of squares below it may have lost terms to underflow of f32.
const TINY: f64 = 1e-30;

/// The sum of a term a place. The vectors are of one length.
///
/// One sum at a time: with two in a loop the compiler falls back to scalars, twenty times slower, while the second pass
/// over a vector finds it in the nearest cache.
#[inline(always)]
fn sum<T: Lane>(a: &[T], b: &[T], term: impl Fn(T, T) -> T) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(BLOCK).zip(b.chunks(BLOCK)) {
        let mut lanes = [T::default(); LANES];
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        for (a, b) in a.iter().zip(b) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += term(*a, *b);
            }
        }
        for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
            *lane += term(*a, *b);
        }
        total += lanes.into_iter().map(Into::into).sum::<f64>();
    }
    total
}

/// The same, slowly and in f64: for what f32 cannot hold.
#[cold]
fn exact<T: Lane>(a: &[T], b: &[T], term: impl Fn(f64, f64) -> f64) -> f64 {
    let terms = a.iter().zip(b).map(|(a, b)| term((*a).into(), (*b).into()));
    // The sum of no terms is 0: that of the standard library is -0.
    terms.fold(0.0, |sum, term| sum + term)
}

fn dot<T: Lane>(a: &[T], b: &[T]) -> f64 {
    let product = sum(a, b, |a, b| a * b);
    match product.is_finite() {
        true => product,
        false => exact(a, b, |a, b| a * b),
    }
}

/// The dot product of a vector with itself; whether f32 could hold it.
fn square<T: Lane>(a: &[T]) -> (f64, bool) {
    let square = sum(a, a, |a, _| a * a);
    match square.is_finite() && square > TINY {
        true => (square, true),
        false => (exact(a, a, |a, b| a * b), false),
    }
}

fn distance<T: Lane>(a: &[T], b: &[T]) -> f64 {
    let square = sum(a, b, |a, b| (a - b) * (a - b));
    match square.is_finite() && square > TINY {
        true => square.sqrt(),
        false => exact(a, b, |a, b| (a - b) * (a - b)).sqrt(),
    }
}

/// `b_square` is the [`square`] of `b`.
fn cosine<T: Lane>(a: &[T], b: &[T], (b_square, b_fits): (f64, bool)) -> Option<f64> {
    let (a_square, a_fits) = square(a);
    if a_square == 0.0 || b_square == 0.0 {
        return None;
    }
    let product = match a_fits && b_fits {
        true => dot(a, b),
        false => exact(a, b, |a, b| a * b),
    };
    Some((product / (a_square.sqrt() * b_square.sqrt())).clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, ListArray};
    use proptest::prelude::*;

    use super::super::testdata::{Asked, batch, embeddings};
    use super::*;

    /// What the kernels must give, a term at a time in f64.
    fn naive(a: &[f64], b: &[f64]) -> (f64, f64, f64) {
        let sum = |term: fn(f64, f64) -> f64| a.iter().zip(b).map(|(a, b)| term(*a, *b)).sum::<f64>();
        let (product, distance) = (sum(|a, b| a * b), sum(|a, b| (a - b) * (a - b)).sqrt());
        let lengths = a.iter().map(|a| a * a).sum::<f64>().sqrt() * b.iter().map(|b| b * b).sum::<f64>().sqrt();
        (product, distance, product / lengths)
    }

    fn close(found: f64, wanted: f64, scale: f64) -> bool {
        (found - wanted).abs() <= 1e-5 * scale
    }

    proptest! {
        #[test]
        fn kernels_agree_with_a_plain_loop(
            (a, b) in (0usize..1200).prop_flat_map(|width| {
                let vector = || prop::collection::vec(-1e3f32..1e3, width);
                (vector(), vector())
            })
        ) {
            let wide = |vector: &[f32]| -> Vec<f64> { vector.iter().map(|x| f64::from(*x)).collect() };
            let (wide_a, wide_b) = (wide(&a), wide(&b));
            let (product, far, angle) = naive(&wide_a, &wide_b);
            let (one, other) = (square(&wide_a).0.sqrt(), square(&wide_b).0.sqrt());
            prop_assert!(close(dot(&a, &b), product, one * other));
            prop_assert!(close(distance(&a, &b), far, far));
            prop_assert!((dot(&wide_a, &wide_b) - product).abs() <= 1e-12 * one * other);
            prop_assert_eq!(distance(&a, &a), 0.0);
            match cosine(&a, &b, square(&b)) {
                Some(found) => {
                    prop_assert!(close(found, angle, 1.0));
                    prop_assert!(close(cosine(&b, &a, square(&a)).unwrap(), found, 1.0));
                    prop_assert!(close(cosine(&a, &a, square(&a)).unwrap(), 1.0, 1.0));
                }
                None => prop_assert!(one == 0.0 || other == 0.0),
            }
        }
    }

    fn vectors(rows: usize, width: usize) -> Vec<Vec<f32>> {
        let value = |row: usize, place: usize| ((row * 7919 + place * 104_729) % 1009) as f32 / 504.5 - 1.0;
        (0..rows)
            .map(|row| (0..width).map(|place| value(row, place)).collect())
            .collect()
    }

    /// Every way to name the other vector gives the same, whatever the batches and partitions.
    #[test]
    fn columns_constants_subqueries_and_joins_agree() {
        let rows = vectors(300, 48);
        let ids: ArrayRef = Arc::new(arrow::array::Int64Array::from_iter_values(0..300));
        let whole = batch(vec![("id", ids), ("v", embeddings(&rows))]);
        // Slices: their lists do not start where their buffers do.
        let parts = vec![
            vec![whole.slice(0, 7), whole.slice(7, 100)],
            vec![whole.slice(107, 1), whole.slice(108, 192)],
        ];
        let asked = Asked::new(3, 64).with("items", parts);
        let target: Vec<f64> = rows[42].iter().map(|x| f64::from(*x)).collect();
        let literal = format!("{target:?}");
        for (function, wanted) in [
            ("dot", (|(product, _, _)| product) as fn((f64, f64, f64)) -> f64),
            ("l2_distance", |(_, far, _)| far),
            ("cosine_similarity", |(_, _, angle)| angle),
        ] {
            let mut answers = Vec::new();
            for (from, b) in [
                ("items a", literal.clone()),
                ("items a", "(SELECT v FROM items WHERE id = 42)".to_string()),
                ("items a, (SELECT v FROM items WHERE id = 42) q", "q.v".to_string()),
                ("items a JOIN items q ON q.id = a.id - a.id + 42", "q.v".to_string()),
            ] {
                let found = asked
                    .column(&format!("SELECT {function}(a.v, {b}) FROM {from} ORDER BY a.id"))
                    .unwrap();
                answers.push(found.as_primitive::<Float64Type>().clone());
            }
            for (row, vector) in rows.iter().enumerate() {
                let vector: Vec<f64> = vector.iter().map(|x| f64::from(*x)).collect();
                let wanted = wanted(naive(&vector, &target));
                assert!(close(answers[0].value(row), wanted, 48.0), "{function} of row {row}");
            }
            for answer in &answers[1..] {
                assert_eq!(answer, &answers[0], "{function}");
            }
        }
    }

    #[test]
    fn what_is_missing_gives_null() {
        let rows = [
            Some(vec![Some(1.0), Some(2.0)]),
            None,
            Some(vec![Some(3.0), None]),
            Some(vec![Some(0.0), Some(0.0)]),
        ];
        let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Float32Type, _, _>(rows));
        let asked = Asked::new(1, 8192).with("t", vec![vec![batch(vec![("v", lists)])]]);
        for (b, wanted) in [
            ("[1.0, 2.0]", [Some(5.0), None, None, Some(0.0)]),
            ("v", [Some(5.0), None, None, Some(0.0)]),
            ("NULL", [None; 4]),
            ("[1.0, NULL]", [None; 4]),
        ] {
            let found = asked.column(&format!("SELECT dot(v, {b}) FROM t")).unwrap();
            let wanted: ArrayRef = Arc::new(Float64Array::from(wanted.to_vec()));
            assert_eq!(&found, &wanted, "{b}");
        }
        let found = asked.column("SELECT cosine_similarity(v, v) FROM t").unwrap();
        let found = found.as_primitive::<Float64Type>();
        assert!((found.value(0) - 1.0).abs() < 1e-12 && found.null_count() == 3);
        assert_eq!(
            asked.column("SELECT dot(v, v) FROM t WHERE v[1] > 99").unwrap().len(),
            0
        );
        let error = asked.column("SELECT dot(v, [1.0]) FROM t").unwrap_err();
        assert_eq!(error.message, "\"dot\" wants vectors of one length, not of 2 and 1");
    }

    /// The nearest are kept as they come: nothing is sorted as a whole.
    #[test]
    fn the_nearest_are_not_sorted_out_of_all() {
        let asked = Asked::new(2, 64).with("items", vec![vec![batch(vec![("v", embeddings(&vectors(99, 8)))])]]);
        let statement =
            "SELECT v FROM items ORDER BY cosine_similarity(v, [1, 0, 0, 0, 0, 0, 0, 0]) DESC NULLS LAST LIMIT 5";
        let plan = asked.plan(statement);
        assert!(plan.contains("TopK(fetch=5)"), "{plan}");
    }
}
