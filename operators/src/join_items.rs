//! `join_items`: the items that the interactions speak of, one row each.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array, new_null_array};
use arrow::compute::{concat, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::schema;

/// The port of items that have no row.
const MISSING: &str = "missing";

/// Position of rows that `missing: keep` made up: after all rows of files.
const NOWHERE: u64 = u64::MAX;

/// Keeps of an items table the rows whose item occurs in the interactions: the catalogue of an experiment.
///
/// # In
/// - `items`: any columns, among them `item_id`; of several rows of an item the first counts.
/// - `interactions`: any columns, among them `item_id`.
///
/// # Out
/// - `out`: the columns of `items`, one row for each item of the interactions; within a partition in natural order of `item_id`.
/// - `missing`: `item_id, interactions` (how many) of items that have interactions and no row in `items`.
///
/// If no item of the interactions is in `items`, that is an error.
///
/// # Source
/// Amazon's metadata cover far more items than the reviews of a k-core.
///
/// # Deviates
/// `missing: keep` makes a row up: `text` is `missing_text`, `position` the largest number, everything else null.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JoinItems {
    /// What to do with an item that has interactions and no row in `items`.
    pub missing: Missing,
    /// The text of items that are kept without a row.
    pub missing_text: String,
}

/// What to do with an item that has interactions and no row in `items`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// A row is made up, so that no interaction loses its item.
    #[default]
    Keep,
    /// It is left out of `out`.
    Drop,
    /// Stop.
    Error,
}

impl Default for JoinItems {
    fn default() -> Self {
        JoinItems {
            missing: Missing::Keep,
            // GRID's template of an item without any field
            missing_text: "Title: nan; Brand: Unknown; Categories: []; Price: nan; ".into(),
        }
    }
}

impl Operator for JoinItems {
    const NAME: &'static str = "join_items";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[
        Input::required("items", "items with an `item_id`"),
        Input::required("interactions", "rows with an `item_id`"),
    ];

    fn bind(&self, binding: &Binding) -> Bound {
        let key = (schema::ITEM_ID, DataType::Utf8);
        binding.require("items", std::slice::from_ref(&key));
        binding.require("interactions", &[key]);
        let filled = [schema::ITEM_ID, schema::TEXT, schema::POSITION];
        if let (Missing::Keep, Some(items)) = (self.missing, binding.schema("items")) {
            for field in items.fields().iter().filter(|field| !field.is_nullable()) {
                if !filled.contains(&field.name().as_str()) {
                    let message = format!(
                        "a missing item cannot be kept: column \"{}\" of \"items\" is never null",
                        field.name()
                    );
                    binding.problem(
                        "missing",
                        Error::user("bad-value", message).hint("\"missing: drop\" or \"missing: error\" can be chosen"),
                    );
                }
            }
        }
        Bound::by("items", &[schema::ITEM_ID])
            .and_by("interactions", &[schema::ITEM_ID])
            .out(binding.shape("items"))
            .output(MISSING, Shape::table(missing_fields()))
    }

    fn run(&self, _context: &Context, inputs: Tables) -> Result<Tables> {
        let interactions = inputs.batch("interactions")?;
        let items = inputs.batch("items")?;
        let mut counts: HashMap<&str, u64> = HashMap::new();
        for id in schema::strings(&interactions, schema::ITEM_ID)?.iter().flatten() {
            *counts.entry(id).or_default() += 1;
        }
        let mut rows: HashMap<&str, u32> = HashMap::new();
        for (row, id) in (0u32..).zip(schema::strings(&items, schema::ITEM_ID)?) {
            if let Some(id) = id.filter(|id| counts.contains_key(id)) {
                rows.entry(id).or_insert(row);
            }
        }
        let mut wanted: Vec<&str> = counts.keys().copied().collect();
        wanted.sort_unstable_by(|a, b| schema::natural_order(a, b));
        let missing: Vec<&str> = wanted.iter().copied().filter(|id| !rows.contains_key(id)).collect();
        // made-up rows lie behind those of `items`
        let mut all = items.clone();
        if self.missing == Missing::Keep && !missing.is_empty() {
            all = self.with_rows(&items, &missing)?;
            let behind = items.num_rows() as u32;
            rows.extend(missing.iter().zip(behind..).map(|(id, row)| (*id, row)));
        }
        let picked: arrow::array::UInt32Array = wanted.iter().filter_map(|id| rows.get(id).copied()).collect();
        let missing = RecordBatch::try_new(
            Arc::new(Schema::new(missing_fields())),
            vec![
                Arc::new(StringArray::from_iter_values(&missing)),
                Arc::new(UInt64Array::from_iter_values(missing.iter().map(|id| counts[id]))),
            ],
        )?;
        Ok(Tables::out(take_record_batch(&all, &picked)?).with(MISSING, Table::new(missing)))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let missing = outputs.table(MISSING)?.rows()?;
        let rows = outputs.table(OUT)?.rows()?;
        let (matched, all) = match self.missing {
            Missing::Keep => (rows - missing, rows),
            _ => (rows, rows + missing),
        };
        if missing > 0 && (matched == 0 || self.missing == Missing::Error) {
            let ids = outputs.batch(MISSING)?;
            let first: Vec<&str> = schema::strings(&ids, schema::ITEM_ID)?
                .iter()
                .flatten()
                .take(5)
                .collect();
            let error = match matched {
                0 => Error::data(
                    "no-common-items",
                    format!("no item of the interactions is in \"items\": {missing} have no row there"),
                )
                .hint("the ids must be the same texts on both sides: are those of \"items\" of this kind?"),
                _ => Error::data(
                    "missing-items",
                    format!("{missing} of {all} items have interactions and no row in \"items\""),
                )
                .hint("\"missing: keep\" makes rows up for them, \"missing: drop\" leaves them out"),
            };
            return Err(error.detail(format!("such as {}", first.join(", "))));
        }
        let mut notes = Notes::new();
        notes.insert("matched".into(), format!("{matched} of {all}").into());
        if missing > 0 {
            notes.insert("missing".into(), missing.into());
        }
        Ok(notes)
    }
}

impl JoinItems {
    /// `items`, and behind them a row for each of `ids`.
    fn with_rows(&self, items: &RecordBatch, ids: &[&str]) -> Result<RecordBatch> {
        let schema = items.schema();
        let columns = schema.fields().iter().zip(items.columns()).map(|(field, column)| {
            let more: ArrayRef = match field.name().as_str() {
                schema::ITEM_ID => Arc::new(StringArray::from_iter_values(ids)),
                schema::TEXT => Arc::new(StringArray::from_iter_values(ids.iter().map(|_| &self.missing_text))),
                schema::POSITION => Arc::new(UInt64Array::from_iter_values(ids.iter().map(|_| NOWHERE))),
                _ => new_null_array(field.data_type(), ids.len()),
            };
            concat(&[column.as_ref(), more.as_ref()])
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

fn missing_fields() -> Vec<Field> {
    vec![
        Field::new(schema::ITEM_ID, DataType::Utf8, false),
        Field::new("interactions", DataType::UInt64, false),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Paths;
    use crate::ingest_interactions::IngestInteractions;
    use crate::ingest_items::IngestItems;
    use crate::testdata;
    use sluice_engine::harness::run;
    use sluice_engine::text::{parse, render};

    fn join(missing: Missing) -> Result<Tables> {
        let items = parse("item_id | title | text | position:u64\n 9 | nine | Nine | 1\n 10 | ten | Ten | 2\n x | ex | Ex | 3\n 9 | again | Again | 4").unwrap();
        let interactions = parse("item_id\n 10\n 9\n 7\n 9\n 7").unwrap();
        let config = JoinItems {
            missing,
            ..Default::default()
        };
        run(&config, &[("items", items), ("interactions", interactions)])
    }

    /// Rows by item, whatever partition they lie in.
    fn sorted(batch: &RecordBatch) -> String {
        let text = render(batch).unwrap();
        let mut lines: Vec<&str> = text.lines().skip(1).collect();
        lines.sort_by(|a, b| schema::natural_order(a.split(' ').next().unwrap(), b.split(' ').next().unwrap()));
        lines.join("\n")
    }

    #[test]
    fn items_with_interactions_one_row_each() {
        let tables = join(Missing::Keep).unwrap();
        assert_eq!(
            sorted(&tables.batch(OUT).unwrap()),
            "7        null   Title: nan; Brand: Unknown; Categories: []; Price: nan;   18446744073709551615\n\
             9        nine   Nine                                                      1\n\
             10       ten    Ten                                                       2"
        );
        let tables = join(Missing::Drop).unwrap();
        assert_eq!(
            sorted(&tables.batch(OUT).unwrap()),
            "9        nine   Nine  1\n10       ten    Ten   2"
        );
        assert_eq!(
            render(&tables.batch(MISSING).unwrap()).unwrap(),
            "item_id  interactions\n7        2\n"
        );
        let error = join(Missing::Error).unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.detail[0].as_str()),
            ("1 of 3 items have interactions and no row in \"items\"", "such as 7")
        );
    }

    #[test]
    fn tables_without_a_common_item() {
        let items = parse("item_id | title | text | position:u64\n 10 | ten | Ten | 1").unwrap();
        let interactions = parse("item_id\n 10.0\n 7.0").unwrap();
        for missing in [Missing::Keep, Missing::Drop, Missing::Error] {
            let config = JoinItems {
                missing,
                ..Default::default()
            };
            let inputs = [("items", items.clone()), ("interactions", interactions.clone())];
            let error = run(&config, &inputs).unwrap_err();
            assert_eq!(error.code, "no-common-items", "{error}");
            assert!(error.detail[0].contains("10.0"), "{error}");
        }
    }

    #[test]
    fn gift_cards_are_all_known() {
        let Some(harness) = testdata::harness() else { return };
        let path = |name: &str| Paths::One(format!("amazon2018-raw-reviews/{name}"));
        let reviews = IngestInteractions {
            path: path("Gift_Cards_5.jsonl.gz"),
            ..Default::default()
        };
        let metadata = IngestItems {
            path: path("meta_Gift_Cards.jsonl.gz"),
            ..Default::default()
        };
        let out = |tables: Tables| Table::new(tables.batch(OUT).unwrap());
        let inputs = [
            ("interactions", out(harness.run(&reviews, &[]).unwrap())),
            ("items", out(harness.run(&metadata, &[]).unwrap())),
        ];
        let config = JoinItems {
            missing: Missing::Error,
            ..Default::default()
        };
        let tables = harness.run(&config, &inputs).unwrap();
        assert_eq!(tables.batch(OUT).unwrap().num_rows(), 148);
        let context = crate::testdata::context(&harness, JoinItems::NAME);
        let notes = config.conclude(&context, &BTreeMap::new(), &tables).unwrap();
        assert_eq!(notes["matched"], "148 of 148");
    }
}
