//! States what a table of semantic ids is worth: collisions, entropy, use of the codebooks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, UInt32Type};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

use crate::metrics::entropy;
use crate::schema::{self, ITEM_ID, SEMANTIC_ID};

const SEMANTIC_IDS: &str = "semantic_ids";

/// Diagnostics of semantic ids.
///
/// # In
/// `semantic_ids`: `item_id`, `semantic_id`.
///
/// # Out
/// `out`: rows `fact`, `level` (null for facts of the whole id), `value`.
///
/// | fact | level | value |
/// |---|---|---|
/// | `items`, `levels` | | rows; codes an id |
/// | `distinct` | | different ids |
/// | `uniquely_identified` | | share of items whose id no other item has |
/// | `max_bucket` | | items of the most shared id |
/// | `entropy` | | of an item's id, in nats |
/// | `distinct_prefixes` | 1.. | different prefixes of that many codes |
/// | `perplexity` | 1.. | exp of the entropy of that level's codes: how many of them are in use, in effect |
/// | `codes_used` | 1.. | different codes at that level |
///
/// Where the last level is a collision code, all facts but `items` and the per-level ones come once more without it,
/// named `levels_without_collision_code` and so on.
///
/// # Source
/// GRID (arXiv 2507.22224) and LETTER report the same figures for their ids.
///
/// # Deviates
/// Nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSemanticIds {}

impl Operator for AuditSemanticIds {
    const NAME: &'static str = "audit_semantic_ids";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(SEMANTIC_IDS, "semantic ids to look at")];

    fn bind(&self, binding: &Binding) -> Bound {
        require(binding, SEMANTIC_IDS);
        Bound::whole().out(Shape::table(fields()))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = inputs.batch(SEMANTIC_IDS)?;
        if batch.num_rows() == 0 {
            return Err(Error::data("empty-input", "the table of semantic ids has no rows"));
        }
        let (codes, levels) = schema::semantic_id_codes(&batch)?;
        let collision = schema::semantic_id_levels(batch.schema().field_with_name(SEMANTIC_ID)?)
            .is_some_and(|(_, collision)| collision);
        let mut facts = vec![("items".to_string(), None, batch.num_rows() as f64)];
        facts.extend(of_ids(codes, levels, levels, ""));
        if collision && levels > 1 {
            facts.extend(of_ids(codes, levels, levels - 1, "_without_collision_code"));
        }
        facts.extend(of_levels(codes, levels));
        let names = StringArray::from_iter_values(facts.iter().map(|(name, _, _)| name));
        let of: UInt32Array = facts.iter().map(|(_, level, _)| *level).collect();
        let values = Float64Array::from_iter_values(facts.iter().map(|(_, _, value)| *value));
        Ok(Tables::out(RecordBatch::try_new(
            Arc::new(Schema::new(fields())),
            vec![Arc::new(names), Arc::new(of), Arc::new(values)],
        )?))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let facts = outputs.batch(OUT)?;
        let names = schema::strings(&facts, "fact")?;
        let levels = schema::numbers::<UInt32Type>(&facts, "level")?;
        let values = schema::numbers::<arrow::datatypes::Float64Type>(&facts, "value")?;
        Ok((0..facts.num_rows())
            .filter(|row| levels.is_null(*row))
            .map(|row| (names.value(row).to_string(), Value::from(values.value(row))))
            .collect())
    }
}

/// Requires the columns of a table of semantic ids.
pub(crate) fn require(binding: &Binding, port: &str) {
    binding.require(port, &[(ITEM_ID, DataType::Utf8)]);
    let Some(schema) = binding.schema(port) else { return };
    match schema.field_with_name(SEMANTIC_ID) {
        Err(_) => binding.missing_column(port, SEMANTIC_ID),
        Ok(field) if schema::semantic_id_levels(field).is_none() => binding.input_problem(
            port,
            Error::user(
                "wrong-type",
                format!(
                    "column \"{SEMANTIC_ID}\" of input \"{port}\" is {}, not a fixed-size list of UInt16",
                    field.data_type()
                ),
            ),
        ),
        Ok(_) => {}
    }
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("fact", DataType::Utf8, false),
        Field::new("level", DataType::UInt32, true),
        Field::new("value", DataType::Float64, false),
    ]
}

type Facts = Vec<(String, Option<u32>, f64)>;

/// Facts of the ids cut to their first `depth` codes.
fn of_ids(codes: &[u16], levels: usize, depth: usize, suffix: &str) -> Facts {
    let buckets = counts(codes.chunks_exact(levels).map(|id| &id[..depth]));
    let items = codes.len() / levels;
    let alone = buckets.iter().filter(|count| **count == 1).count();
    [
        ("levels", depth as f64),
        ("distinct", buckets.len() as f64),
        ("uniquely_identified", alone as f64 / items as f64),
        ("max_bucket", buckets.last().copied().unwrap_or(0) as f64),
        ("entropy", entropy(&buckets)),
    ]
    .map(|(name, value)| (format!("{name}{suffix}"), None, value))
    .to_vec()
}

fn of_levels(codes: &[u16], levels: usize) -> Facts {
    let mut facts = Vec::new();
    for level in 1..=levels {
        let prefixes = counts(codes.chunks_exact(levels).map(|id| &id[..level]));
        let used = counts(codes.chunks_exact(levels).map(|id| id[level - 1]));
        for (name, value) in [
            ("distinct_prefixes", prefixes.len() as f64),
            ("perplexity", entropy(&used).exp()),
            ("codes_used", used.len() as f64),
        ] {
            facts.push((name.to_string(), Some(level as u32), value));
        }
    }
    facts.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    facts
}

/// How often each different value occurs, in ascending order: sums over it do not depend on hashing.
fn counts<T: std::hash::Hash + Eq>(values: impl Iterator<Item = T>) -> Vec<u64> {
    let mut counts: HashMap<T, u64> = HashMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    let mut counts: Vec<u64> = counts.into_values().collect();
    counts.sort_unstable();
    counts
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn audit(batch: RecordBatch) -> BTreeMap<(String, u32), f64> {
        let out = harness::run(&AuditSemanticIds::default(), &[(SEMANTIC_IDS, batch)]).unwrap();
        let batch = out.batch(OUT).unwrap();
        let names = schema::strings(&batch, "fact").unwrap();
        let levels = schema::numbers::<UInt32Type>(&batch, "level").unwrap();
        let values = schema::numbers::<arrow::datatypes::Float64Type>(&batch, "value").unwrap();
        (0..batch.num_rows())
            .map(|row| {
                let level = if levels.is_null(row) { 0 } else { levels.value(row) };
                ((names.value(row).to_string(), level), values.value(row))
            })
            .collect()
    }

    fn check(facts: &BTreeMap<(String, u32), f64>, fact: &str, level: u32, wanted: f64, precision: f64) {
        let found = facts[&(fact.to_string(), level)];
        assert!(
            (found - wanted).abs() <= precision,
            "{fact} {level}: {found} is not {wanted}"
        );
    }

    #[test]
    fn collision_codes_are_told_apart() {
        let batch = text::parse("item_id semantic_id:[u16;3]\n a 1,2,1\n b 1,2,2\n c 1,3,0\n d 4,4,0").unwrap();
        let fields = schema::semantic_ids(&[256, 256], true);
        let schema = Schema::new(vec![
            batch.schema().field(0).clone(),
            batch
                .schema()
                .field(1)
                .clone()
                .with_metadata(fields[1].metadata().clone()),
        ]);
        let facts = audit(RecordBatch::try_new(Arc::new(schema), batch.columns().to_vec()).unwrap());
        for (fact, level, value) in [
            ("items", 0, 4.0),
            ("levels", 0, 3.0),
            ("distinct", 0, 4.0),
            ("uniquely_identified", 0, 1.0),
            ("levels_without_collision_code", 0, 2.0),
            ("distinct_without_collision_code", 0, 3.0),
            ("uniquely_identified_without_collision_code", 0, 0.5),
            ("max_bucket_without_collision_code", 0, 2.0),
            ("distinct_prefixes", 1, 2.0),
            ("distinct_prefixes", 2, 3.0),
            ("codes_used", 3, 3.0),
        ] {
            check(&facts, fact, level, value, 0.0);
        }
        check(&facts, "entropy", 0, 4f64.ln(), 1e-12);
    }

    #[test]
    fn other_types_are_refused() {
        let batch = text::parse("item_id semantic_id:[u32;2]\n a 1,2").unwrap();
        let error = harness::run(&AuditSemanticIds::default(), &[(SEMANTIC_IDS, batch)]).unwrap_err();
        assert_eq!(error.code, "wrong-type");
    }

    #[test]
    fn published_tables() {
        type Published = (Option<RecordBatch>, [f64; 5], &'static [f64], &'static [f64]);
        let tables: [Published; 2] = [
            (
                crate::beauty::letter_semantic_ids(),
                [12_101.0, 12_088.0, 0.998_016_69, 3.0, 9.399_467_61],
                &[197.0, 7_931.0, 11_696.0, 12_088.0],
                &[82.716, 248.560, 247.570, 246.584],
            ),
            (
                crate::beauty::office_semantic_ids(),
                [3_459.0, 3_444.0, 0.991_326_97, 2.0, 8.142_723_12],
                &[88.0, 2_488.0, 3_444.0],
                &[70.833, 236.078, 217.430],
            ),
        ];
        for (batch, whole, prefixes, perplexities) in tables {
            let Some(batch) = batch else { return };
            let facts = audit(batch);
            let names = ["items", "distinct", "uniquely_identified", "max_bucket", "entropy"];
            for (fact, wanted) in names.into_iter().zip(whole) {
                check(&facts, fact, 0, wanted, 5.1e-9);
            }
            check(&facts, "levels", 0, prefixes.len() as f64, 0.0);
            for (level, (prefix, perplexity)) in (1..).zip(prefixes.iter().zip(perplexities)) {
                check(&facts, "distinct_prefixes", level, *prefix, 0.0);
                check(&facts, "perplexity", level, *perplexity, 5.1e-4);
            }
        }
    }
}
