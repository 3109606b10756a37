//! What a table is, told by its columns: the name of an input says only what it is called.

use arrow::datatypes::{DataType, Schema};

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
    /// Sentences.
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
        if numbers(&["step", "epoch"]) {
            return Kind::Curve;
        }
        match text("sentence") || text("finding") {
            true => Kind::Findings,
            false => Kind::Plain,
        }
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
            ("sentence", Kind::Findings),
            ("check count:u64 of:u64 share:f64 verdict sentence", Kind::Leakage),
            ("a b", Kind::Plain),
        ] {
            let batch = text::parse(columns).unwrap();
            assert_eq!(Kind::of(&batch.schema()), kind, "{columns}");
        }
    }
}
