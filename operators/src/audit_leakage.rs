//! Looks for what training must not see: targets in anything that was trained or fitted on, time, and telling ids.

mod order;
mod targets;
mod text;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};

use crate::schema::{self, ITEM_ID, SEMANTIC_ID, SEQUENCE, TARGET, USER_ID};
use crate::{audit_semantic_ids, chronology, sequences};
use targets::Split;

const TRAIN: &str = "train";
const VALID: &str = "valid";
const TEST: &str = "test";
const SAMPLES: &str = "samples";
const SEMANTIC_IDS: &str = "semantic_ids";
const PROMPTS: &str = "prompts";
const TITLES: &str = "titles";
const FIT_ROWS: &str = "fit_rows";
const FIT_ITEMS: &str = "fit_items";
const INTERACTIONS: &str = "interactions";
const TOKENS: &str = "tokens";

/// Looks for targets in what was trained or fitted on, for time that runs backwards, and for ids that tell the order.
///
/// # In
/// `train`, `test`, `valid` (optional): of a split. What else was trained or fitted on, all optional: `samples` (of
/// `tokenize_sequences`) with `semantic_ids`; `prompts` with `titles` (of `tokenize_prompts`); `fit_rows`, any table of
/// `user_id`, `item_id` that something was counted or fitted on; `fit_items`, the items (`item_id`) that a vectorizer or
/// quantizer was fitted on. `interactions` (optional): with their `position` in the file.
///
/// # Out
/// `out`: `check`, `count`, `of` (what was compared: of users, those of both tables), `share` (null of nothing),
/// `verdict` (`ok`, `warning`, `leak`, or `not_checked` where nothing was compared, as when no user of `test` is in
/// `train`), `sentence`. A check whose inputs are not connected has no row. Of a user with several rows all are read.
///
/// | check | counts | verdict if any |
/// |---|---|---|
/// | `test_target_in_train`, `valid_target_in_train` | users whose train sequence has the target more often than their history | leak |
/// | `test_target_in_valid` | users whose valid row has the test target more often than their test history | leak |
/// | `train_after_test_target` | users with a train item later than their own test target | leak |
/// | `test_target_in_samples`, `valid_target_in_samples` | users with the codes of the target in a sample, and not in their history | leak |
/// | `test_target_in_prompts`, `valid_target_in_prompts` | users with the title of the target in a prompt, and not in their history | leak |
/// | `test_target_in_fit_rows`, `valid_target_in_fit_rows` | users whose rows have the target more often than their history | leak |
/// | `cold_target_in_fit_items` | test targets that no train sequence holds and that were fitted on: text is known beforehand | warning |
/// | `targets_before_end_of_train` | test targets earlier than some train interaction | warning |
/// | `train_later_than_target` | pairs of a test target and a train interaction of anybody that is later | warning |
/// | `ties_in_id_order`, `target_ties_in_id_order` | neighbours of equal time in ascending order of item id; the latter of a target and the item before | leak from 95 % or up to 5 %, warning beyond 3 standard errors from a half |
/// | `item_ids_in_file_order`, `user_ids_in_file_order` | neighbours by id that first occur in that order in the file | warning from 95 % or up to 5 % |
///
/// # Source
/// Ours. That leave-one-out trains on the future of other users: Ji et al., "A critical study on data leakage in
/// recommender system offline evaluation" (2023).
///
/// # Deviates
/// An item that a user comes back to is no leak where it is in the history, so repeats hide leaks of the same pair from the
/// checks of samples and prompts. Titles of fewer than 3 tokens are not looked for, nor such as another title of the history
/// contains. Orders of 1 to 19 pairs are always `ok`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AuditLeakage {}

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ok,
    Warning,
    Leak,
    NotChecked,
}

/// A row of the audit.
#[derive(Debug)]
pub(crate) struct Check {
    name: String,
    count: u64,
    of: u64,
    verdict: Verdict,
    sentence: String,
}

impl Check {
    /// A check that must count nothing; `why` says why there is nothing to compare, if there is nothing.
    fn none(name: &str, (count, of): (usize, usize), found: Verdict, sentence: String, why: &str) -> Self {
        if of == 0 {
            return Check::not_checked(name, why);
        }
        Check {
            name: name.to_string(),
            count: count as u64,
            of: of as u64,
            verdict: if count == 0 { Verdict::Ok } else { found },
            sentence,
        }
    }

    /// A check that had nothing to compare.
    fn not_checked(name: &str, why: &str) -> Self {
        Check {
            name: name.to_string(),
            count: 0,
            of: 0,
            verdict: Verdict::NotChecked,
            sentence: format!("{why}: nothing was compared"),
        }
    }
}

impl Operator for AuditLeakage {
    const NAME: &'static str = "audit_leakage";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[
        Input::required(TRAIN, "train sequences"),
        Input::optional(VALID, "valid rows of the same split"),
        Input::required(TEST, "test rows of the same split"),
        Input::optional(
            SAMPLES,
            "samples that were trained on (tokenize_sequences); wants semantic_ids",
        ),
        Input::optional(SEMANTIC_IDS, "the semantic id of every item, for samples"),
        Input::optional(PROMPTS, "prompts that were trained on (tokenize_prompts); wants titles"),
        Input::optional(TITLES, "titles as tokens (tokenize_prompts.titles), for prompts"),
        Input::optional(FIT_ROWS, "user_id, item_id of whatever something was fitted on"),
        Input::optional(FIT_ITEMS, "items that a vectorizer or quantizer was fitted on"),
        Input::optional(INTERACTIONS, "interactions with their position in the file"),
    ];

    fn bind(&self, binding: &Binding) -> Bound {
        sequences::require(binding, TRAIN);
        sequences::require_timed_targets(binding, VALID);
        sequences::require_timed_targets(binding, TEST);
        binding.require(SAMPLES, &[(USER_ID, DataType::Utf8)]);
        sequences::require_list(binding, SAMPLES, SEQUENCE, &DataType::UInt16);
        if let Some(schema) = binding.schema(SAMPLES)
            && schema.field_with_name(TARGET).is_err()
        {
            binding.missing_column(SAMPLES, TARGET);
        }
        audit_semantic_ids::require(binding, SEMANTIC_IDS);
        binding.require(PROMPTS, &[(USER_ID, DataType::Utf8)]);
        binding.require(TITLES, &[(ITEM_ID, DataType::Utf8)]);
        for input in [PROMPTS, TITLES] {
            sequences::require_list(binding, input, TOKENS, &DataType::UInt32);
        }
        for (one, other) in [(SAMPLES, SEMANTIC_IDS), (PROMPTS, TITLES)] {
            if binding.has(one) && !binding.has(other) {
                let message = format!("input \"{one}\" cannot be read without input \"{other}\"");
                binding.input_problem(
                    one,
                    Error::user("missing-input", message).hint(format!("connect \"{other}\" too")),
                );
            }
        }
        let width = |input: &str, column: &str| {
            schema::semantic_id_levels(binding.schema(input)?.field_with_name(column).ok()?)
        };
        if let (Some(samples), Some(ids)) = (width(SAMPLES, TARGET), width(SEMANTIC_IDS, SEMANTIC_ID))
            && samples.0 != ids.0
        {
            let message = format!("the samples have {} levels, the semantic ids have {}", samples.0, ids.0);
            binding.input_problem(SAMPLES, Error::user("different-ids", message));
        }
        binding.require(FIT_ROWS, &[(USER_ID, DataType::Utf8), (ITEM_ID, DataType::Utf8)]);
        binding.require(FIT_ITEMS, &[(ITEM_ID, DataType::Utf8)]);
        chronology::require(binding, INTERACTIONS);
        Bound::whole().out(Shape::table(fields()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let batch = |port: &str| inputs.has(port).then(|| inputs.batch(port)).transpose();
        let (train, test) = (inputs.batch(TRAIN)?, inputs.batch(TEST)?);
        let valid = batch(VALID)?;
        let split = Split::read(&train, valid.as_ref(), &test)?;
        let mut checks = split.rows();
        context.check_cancelled()?;
        if inputs.has(SAMPLES) {
            checks.extend(text::samples(
                &split,
                inputs.table(SAMPLES)?,
                &inputs.batch(SEMANTIC_IDS)?,
            )?);
        }
        if inputs.has(PROMPTS) {
            checks.extend(text::prompts(&split, inputs.table(PROMPTS)?, &inputs.batch(TITLES)?)?);
        }
        if let Some(rows) = batch(FIT_ROWS)? {
            checks.extend(split.fit_rows(&rows)?);
        }
        if let Some(items) = batch(FIT_ITEMS)? {
            checks.push(split.fit_items(&items)?);
        }
        context.check_cancelled()?;
        checks.extend(order::across_users(&train, &test)?);
        checks.extend(order::ties(&test)?);
        if let Some(interactions) = batch(INTERACTIONS)? {
            checks.extend(order::of_the_file(&interactions)?);
        }
        Ok(Tables::out(table(&checks)?))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let batch = outputs.batch(OUT)?;
        let (names, verdicts) = (schema::strings(&batch, "check")?, schema::strings(&batch, "verdict")?);
        let of = |wanted: &str| -> Vec<String> {
            let pairs = names.iter().flatten().zip(verdicts.iter().flatten());
            pairs
                .filter(|pair| pair.1 == wanted)
                .map(|pair| pair.0.to_string())
                .collect()
        };
        let mut notes = Notes::from_iter([("checks".to_string(), (batch.num_rows() as u64).into())]);
        for (name, verdict) in [
            ("leaks", "leak"),
            ("warnings", "warning"),
            ("not_checked", "not_checked"),
        ] {
            let found = of(verdict);
            let told = if found.is_empty() {
                "none".to_string()
            } else {
                found.join(", ")
            };
            notes.insert(name.to_string(), told.into());
        }
        Ok(notes)
    }
}

fn fields() -> Vec<Field> {
    vec![
        Field::new("check", DataType::Utf8, false),
        Field::new("count", DataType::UInt64, false),
        Field::new("of", DataType::UInt64, false),
        Field::new("share", DataType::Float64, true),
        Field::new("verdict", DataType::Utf8, false),
        Field::new("sentence", DataType::Utf8, false),
    ]
}

fn table(checks: &[Check]) -> Result<RecordBatch> {
    let verdict = |check: &Check| match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Leak => "leak",
        Verdict::NotChecked => "not_checked",
    };
    let share = |check: &Check| (check.of > 0).then(|| check.count as f64 / check.of as f64);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(checks.iter().map(|check| &check.name))),
        Arc::new(UInt64Array::from_iter_values(checks.iter().map(|check| check.count))),
        Arc::new(UInt64Array::from_iter_values(checks.iter().map(|check| check.of))),
        Arc::new(Float64Array::from_iter(checks.iter().map(share))),
        Arc::new(StringArray::from_iter_values(checks.iter().map(verdict))),
        Arc::new(StringArray::from_iter_values(
            checks.iter().map(|check| &check.sentence),
        )),
    ];
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields())), columns)?)
}

#[cfg(test)]
mod tests;
