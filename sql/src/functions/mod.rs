//! Functions for people who look at recommenders: vectors, semantic ids, ranking metrics. One file a family.

mod bootstrap;
mod bounded;
mod dates;
mod lists;
mod ranking;
mod semantic_ids;
mod text;
mod vectors;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{DataFusionError, Result};
use datafusion::logical_expr::{AggregateUDF, DocSection, Documentation, ScalarUDF};
use datafusion::prelude::SessionContext;
use sluice_engine::Error;

use crate::catalog::outside;

/// What a function is, for its reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// How it is called, and what it gives.
    pub signature: &'static str,
    /// What it is, in a line.
    pub line: &'static str,
    /// NULLs, errors, sources.
    pub detail: &'static str,
    /// Its arguments: name and meaning.
    pub arguments: &'static [(&'static str, &'static str)],
}

impl About {
    /// The same for DataFusion, whose `information_schema.routines` shows it. `SHOW FUNCTIONS` lists nothing but functions
    /// whose types of arguments can be counted up.
    fn documentation(&self) -> Documentation {
        let section = DocSection {
            include: true,
            label: "Recommenders",
            description: None,
        };
        let description = format!("{} {}", self.line, self.detail);
        let mut builder = Documentation::builder(section, description, self.signature);
        for (name, meaning) in self.arguments {
            builder = builder.with_argument(*name, *meaning);
        }
        builder.build()
    }
}

/// Makes every function known to a session.
pub(crate) fn register(context: &SessionContext) {
    for function in scalars() {
        context.register_udf(function);
    }
    for function in aggregates() {
        context.register_udaf(function);
    }
    for function in std::iter::once(dates::function()).chain(bounded::functions()) {
        context.register_udf(function);
    }
}

fn scalars() -> impl Iterator<Item = ScalarUDF> {
    let families = [vectors::all(), semantic_ids::all(), text::all(), bootstrap::scalars()];
    families.into_iter().flatten()
}

fn aggregates() -> impl Iterator<Item = AggregateUDF> {
    [ranking::all(), bootstrap::aggregates()].into_iter().flatten()
}

/// The functions that SQL here has beyond DataFusion's, family by family.
pub fn reference() -> impl Iterator<Item = &'static About> {
    let families = [
        vectors::ABOUT,
        semantic_ids::ABOUT,
        ranking::ABOUT,
        bootstrap::ABOUT,
        text::ABOUT,
    ];
    families.into_iter().flatten()
}

/// An error of a call, on its way through DataFusion.
fn bad_call<T>(message: String, hint: &str) -> Result<T> {
    Err(outside(Error::user("bad-call", message).hint(hint)))
}

/// An error about a value in a row.
fn bad_value(message: String) -> DataFusionError {
    outside(Error::data("bad-value", message))
}

/// Refuses a call of the wrong number of arguments.
fn check_arguments(about: &About, given: &[DataType], least: usize) -> Result<()> {
    if (least..=about.arguments.len()).contains(&given.len()) {
        return Ok(());
    }
    let message = format!("\"{}\" does not take {} arguments", about.name, given.len());
    bad_call(message, about.signature)
}

/// An argument that is of a type it cannot be.
fn wrong_type<T>(about: &About, argument: usize, wanted: &str, given: &DataType) -> Result<T> {
    let (name, _) = about.arguments[argument];
    let message = format!("\"{name}\" of \"{}\" wants {wanted}, not {given}", about.name);
    bad_call(message, about.signature)
}

/// The shared type of whole numbers: other types are left as they are, for an error that names them.
fn whole_number(given: &DataType) -> DataType {
    match given {
        given if given.is_integer() => DataType::Int64,
        DataType::Null => DataType::Int64,
        DataType::Dictionary(_, values) => whole_number(values),
        other => other.clone(),
    }
}

/// The shared type of numbers.
fn number(given: &DataType) -> DataType {
    match given {
        given if given.is_numeric() => DataType::Float64,
        DataType::Null => DataType::Float64,
        DataType::Dictionary(_, values) => number(values),
        other => other.clone(),
    }
}

/// The same type with other elements, if it is one of lists.
fn with_elements(list: &DataType, element: DataType) -> DataType {
    let of = |field: &arrow::datatypes::FieldRef| match field.data_type() == &element {
        true => field.clone(),
        false => Arc::new(field.as_ref().clone().with_data_type(element.clone())),
    };
    match list {
        DataType::List(field) => DataType::List(of(field)),
        DataType::LargeList(field) => DataType::LargeList(of(field)),
        DataType::FixedSizeList(field, size) => DataType::FixedSizeList(of(field), *size),
        DataType::Null => DataType::new_list(element, true),
        other => other.clone(),
    }
}

/// The type of a list's elements.
fn elements(list: &DataType) -> Option<&DataType> {
    match list {
        DataType::List(field) | DataType::LargeList(field) | DataType::FixedSizeList(field, _) => {
            Some(field.data_type())
        }
        _ => None,
    }
}

#[cfg(test)]
mod testdata;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_in_the_reference() {
        let known: Vec<String> = scalars()
            .map(|function| function.name().to_string())
            .chain(aggregates().map(|function| function.name().to_string()))
            .collect();
        let mut told: Vec<&str> = reference().map(|about| about.name).collect();
        assert_eq!(told.len(), known.len());
        told.retain(|name| !known.iter().any(|known| known == name));
        assert!(told.is_empty(), "{told:?}");
        for about in reference() {
            assert!(about.signature.starts_with(&format!("{}(", about.name)), "{about:?}");
            assert!(about.line.ends_with('.') && !about.line.contains('\n'), "{about:?}");
            for (name, _) in about.arguments {
                assert!(about.signature.contains(name), "{about:?}");
            }
        }
    }

    #[test]
    fn no_function_hides_one_of_datafusion() {
        let theirs = SessionContext::new();
        for about in reference() {
            let state = theirs.state();
            let hidden = state.scalar_functions().contains_key(about.name)
                || state.aggregate_functions().contains_key(about.name);
            assert!(!hidden, "{}", about.name);
        }
    }
}
