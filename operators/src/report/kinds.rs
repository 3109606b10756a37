//! What a table is, told by its columns: the name of an input says only what it is called.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema};
use sluice_engine::Result;

use super::scores::texts;
use super::{curves, order, semantic_ids};

/// What a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Metrics of `score_ranking`.
    Scores,
    /// A table of systems by slices, as of `tabulate_metrics`.
    Systems,
    /// Facts of `audit_order`.
    Order,
    /// Facts of `audit_semantic_ids`.
    SemanticIds,
    /// The course of a training.
    Curve,
    /// Parameters of scaling laws.
    Fits,
    /// What a scaling law predicts.
    LawCurve,
    /// What a scaling law was fitted to.
    LawPoints,
    /// Differences between pairs of systems, as of `compare_systems`.
    Differences,
    /// Means of systems, a row a system, metric and slice.
    Means,
    /// What follows from scaling laws, in sentences.
    Findings,
    /// Checks with a verdict.
    Leakage,
    /// Anything else.
    Plain,
}

impl Kind {
    /// The kind of a table of this schema.
    pub fn of(schema: &Schema) -> Kind {
        let text = |name: &str| {
            schema
                .field_with_name(name)
                .is_ok_and(|field| field.data_type() == &DataType::Utf8)
        };
        let number = |name: &str| {
            schema
                .field_with_name(name)
                .is_ok_and(|field| field.data_type().is_numeric())
        };
        let numbers = |names: &[&str]| names.iter().all(|name| number(name));
        let texts = |names: &[&str]| names.iter().all(|name| text(name));
        if texts(&["metric", "slice", "ties"]) && numbers(&["k", "value"]) {
            return Kind::Scores;
        }
        if texts(&["system", "slice"]) && schema.fields().iter().any(|field| metric_and_k(field.name()).is_some()) {
            return Kind::Systems;
        }
        if text("fact") && number("value") {
            return match number("level") {
                true => Kind::SemanticIds,
                false => Kind::Order,
            };
        }
        if texts(&["law", "parameter"]) && number("value") {
            return Kind::Fits;
        }
        if text("law") && numbers(&["size", "value", "low", "high"]) {
            return Kind::LawCurve;
        }
        if texts(&["a", "b", "metric"]) && numbers(&["difference", "p"]) {
            return Kind::Differences;
        }
        if texts(&["system", "metric", "slice"]) && number("mean") {
            return Kind::Means;
        }
        if numbers(&["value", "residual"]) {
            return Kind::LawPoints;
        }
        if texts(&["check", "verdict"]) {
            return Kind::Leakage;
        }
        if numbers(&["step", "epoch"]) && schema.fields().iter().any(|field| curves::is_drawn(field)) {
            return Kind::Curve;
        }
        match texts(&["law", "kind", "sentence"]) {
            true => Kind::Findings,
            false => Kind::Plain,
        }
    }

    /// Whether rows are of the kind, too: anybody may have a table of facts.
    pub fn fits(self, batch: &RecordBatch) -> Result<bool> {
        Ok(match self {
            Kind::Order => {
                let facts = texts(batch, "fact")?;
                let is_there = |needed: &&str| facts.iter().any(|fact| fact == needed);
                order::NEEDED.iter().all(is_there)
            }
            Kind::SemanticIds => texts(batch, "fact")?.iter().any(|fact| semantic_ids::is_fact(fact)),
            _ => true,
        })
    }
}

/// `recall_10` as metric and cut-off.
pub fn metric_and_k(column: &str) -> Option<(&str, u32)> {
    let (metric, k) = column.rsplit_once('_')?;
    Some((metric, k.parse().ok()?)).filter(|(metric, _)| !metric.is_empty())
}

#[cfg(test)]
mod tests {
    use sluice_engine::text;

    use super::*;

    #[test]
    fn columns_say_what_a_table_is() {
        for (columns, kind) in [
            (
                "seed:i64 metric k:u32 slice ties value:f64 low:f64 high:f64 users:u64",
                Kind::Scores,
            ),
            ("system slice recall_5:f64", Kind::Systems),
            ("system slice seconds:f64", Kind::Plain),
            ("fact value:i64", Kind::Order),
            ("fact level:u32 value:f64", Kind::SemanticIds),
            ("step:u64 epoch:u64 train_loss:f64", Kind::Curve),
            ("step:u64 epoch:u64 correct:u64 learning_rate:f64", Kind::Plain),
            ("law parameter value:f64 low:f64", Kind::Fits),
            ("law size:f64 value:f64 low:f64 high:f64", Kind::LawCurve),
            ("law point rs:f64 value:f64 fitted:f64 residual:f64", Kind::LawPoints),
            (
                "a b metric slice users:u64 difference:f64 low:f64 high:f64 p:f64 p_holm:f64",
                Kind::Differences,
            ),
            (
                "system metric slice users:u64 seeds:u64 mean:f64 deviation:f64 place:u64",
                Kind::Means,
            ),
            ("law kind sentence", Kind::Findings),
            ("name score:f64 sentence", Kind::Plain),
            ("check count:u64 of:u64 share:f64 verdict sentence", Kind::Leakage),
            ("a b", Kind::Plain),
        ] {
            let batch = text::parse(columns).unwrap();
            assert_eq!(Kind::of(&batch.schema()), kind, "{columns}");
        }
    }

    #[test]
    fn facts_are_an_audit_if_they_are_those_of_one() {
        let fits = |kind: Kind, text: &str| kind.fits(&text::parse(text).unwrap()).unwrap();
        assert!(fits(Kind::Order, "fact value:i64\npairs 2\npairs_same_timestamp 0"));
        assert!(!fits(Kind::Order, "fact value:i64\nusers 5\npairs 2"));
        assert!(fits(Kind::SemanticIds, "fact level:u32 value:f64\nperplexity 1 3.5"));
        assert!(!fits(Kind::SemanticIds, "fact level:u32 value:f64\nusers null 5"));
        assert!(fits(Kind::Curve, "step:u64 epoch:u64 loss:f64"));
    }
}
