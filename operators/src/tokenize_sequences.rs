//! Turns train sequences into samples of codes: a history and the item that comes next.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, FixedSizeListArray, ListArray, RecordBatch, StringArray, UInt16Array};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{CHUNK_ROWS, Shape, Table, Tables};
use sluice_engine::{Error, Result};

use crate::audit_semantic_ids;
use crate::schema::{self, ITEM_ID, SEMANTIC_ID, SEQUENCE, TARGET, USER_ID};
use crate::sequences::{self, Sequences};

const TRAIN: &str = "train";
const SEMANTIC_IDS: &str = "semantic_ids";

/// Training samples of a generative recommender.
///
/// # In
/// `train`: `user_id`, `sequence`. `semantic_ids`: `item_id`, `semantic_id`.
///
/// # Out
/// `out`: `user_id`; `sequence`, the codes of the history, item after item, oldest first; `target`, the codes of the
/// next item. Both fields carry the metadata of `semantic_id`. Samples of a user come in order of the place of
/// their target, then of the start of their history.
///
/// # Source
/// `sliding_window`: GRID (arXiv 2507.22224), every contiguous subsequence of 2 items or more, the target its last.
/// `prefixes`: TIGER (arXiv 2305.05065), every prefix. `max_items` 20 is theirs.
///
/// # Deviates
/// Nothing. As in GRID, windows that agree after the cut to `max_items` are all kept: a user of n items
/// gives n (n - 1) / 2 samples. The list of a history is not padded.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizeSequences {
    /// Which samples a sequence gives.
    pub samples: Samples,
    /// The history is cut to its last items: at most so many.
    pub max_items: u32,
}

/// Which samples a sequence of n items gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Samples {
    /// Every contiguous subsequence of 2 items or more: n (n - 1) / 2.
    SlidingWindow,
    /// Every prefix of 2 items or more: n - 1.
    Prefixes,
    /// The whole sequence: 1.
    Last,
}

impl Samples {
    /// Where the histories of the samples begin whose target is at `target`, from 1, in a sequence of `items`.
    pub(crate) fn starts(self, target: usize, items: usize) -> Range<usize> {
        match self {
            Samples::SlidingWindow => 0..target,
            Samples::Prefixes => 0..1,
            Samples::Last if target + 1 == items => 0..1,
            Samples::Last => 0..0,
        }
    }
}

impl Default for TokenizeSequences {
    fn default() -> Self {
        TokenizeSequences {
            samples: Samples::SlidingWindow,
            max_items: 20,
        }
    }
}

impl Operator for TokenizeSequences {
    const NAME: &'static str = "tokenize_sequences";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[
        Input::required(TRAIN, "train sequences"),
        Input::required(SEMANTIC_IDS, "the semantic id of every item"),
    ];

    fn bind(&self, binding: &Binding) -> Bound {
        if self.max_items == 0 {
            binding.bad_value("max_items", "\"max_items\" must be at least 1");
        }
        sequences::require(binding, TRAIN);
        audit_semantic_ids::require(binding, SEMANTIC_IDS);
        let shape = match binding.schema(SEMANTIC_IDS).map(samples_schema) {
            Some(Some(schema)) => Shape::Table(schema),
            _ => Shape::Unknown,
        };
        Bound::rows(TRAIN).out(shape)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let ids = inputs.batch(SEMANTIC_IDS)?;
        let train = inputs.batch(TRAIN)?;
        let sequences = Sequences::read(&train)?;
        let (codes, levels) = schema::semantic_id_codes(&ids)?;
        let rows = rows_of(&sequences, schema::strings(&ids, ITEM_ID)?)?;
        let schema = samples_schema(&ids.schema()).ok_or_else(|| Error::internal("no semantic ids"))?;
        let mut samples = Writer::new(schema, codes, levels);
        for row in 0..sequences.len() {
            context.check_cancelled()?;
            let (user, items) = (sequences.users.value(row), &rows[sequences.range(row)]);
            for target in 1..items.len() {
                for start in self.samples.starts(target, items.len()) {
                    let start = start.max(target.saturating_sub(self.max_items as usize));
                    samples.push(user, &items[start..target], items[target])?;
                }
            }
        }
        Ok(Tables::new().with(OUT, samples.finish()?))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let samples = outputs.table(OUT)?.rows()?;
        if samples == 0 {
            return Err(
                Error::data("empty-result", "no train sequence has 2 items, so there are no samples")
                    .hint("check that the split leaves items to train on"),
            );
        }
        Ok(Notes::from_iter([
            ("sequences".to_string(), rows_in.get(TRAIN).copied().into()),
            ("samples".to_string(), samples.into()),
        ]))
    }
}

/// The schema of samples of ids of this schema, `None` if they are no semantic ids.
fn samples_schema(ids: &SchemaRef) -> Option<SchemaRef> {
    let field = ids.field_with_name(SEMANTIC_ID).ok()?;
    let (levels, _) = schema::semantic_id_levels(field)?;
    let metadata = field.metadata().clone();
    Some(Arc::new(Schema::new(vec![
        Field::new(USER_ID, DataType::Utf8, false),
        Field::new(SEQUENCE, schema::list_of(DataType::UInt16), false).with_metadata(metadata.clone()),
        Field::new(TARGET, schema::fixed_list_of(DataType::UInt16, levels), false).with_metadata(metadata),
    ])))
}

/// The row of `ids` of every item of every sequence.
fn rows_of(sequences: &Sequences, ids: &StringArray) -> Result<Vec<u32>> {
    let mut index: HashMap<&str, u32> = HashMap::with_capacity(ids.len());
    for (row, id) in (0..).zip(ids.iter().flatten()) {
        if index.insert(id, row).is_some() {
            return Err(Error::data(
                "duplicate-item",
                format!("item \"{id}\" has more than one semantic id"),
            ));
        }
    }
    let mut missing = BTreeSet::new();
    let mut rows = Vec::with_capacity(sequences.items.len());
    for item in sequences.items.iter().map(Option::unwrap_or_default) {
        match index.get(item) {
            Some(row) => rows.push(*row),
            None => {
                missing.insert(item);
            }
        }
    }
    match missing.iter().min_by(|a, b| schema::natural_order(a, b)) {
        None => Ok(rows),
        Some(first) => Err(
            Error::data("unknown-item", format!("item \"{first}\" has no semantic id"))
                .detail(format!(
                    "{} different items of input \"{TRAIN}\" have none",
                    missing.len()
                ))
                .hint("make semantic ids for every item, or filter interactions to the items that have text"),
        ),
    }
}

/// Collects samples into batches of at most [`CHUNK_ROWS`] rows.
struct Writer<'a> {
    schema: SchemaRef,
    codes: &'a [u16],
    levels: usize,
    users: Vec<&'a str>,
    lengths: Vec<usize>,
    histories: Vec<u16>,
    targets: Vec<u16>,
    batches: Vec<RecordBatch>,
}

impl<'a> Writer<'a> {
    fn new(schema: SchemaRef, codes: &'a [u16], levels: usize) -> Self {
        Writer {
            schema,
            codes,
            levels,
            users: Vec::new(),
            lengths: Vec::new(),
            histories: Vec::new(),
            targets: Vec::new(),
            batches: Vec::new(),
        }
    }

    fn push(&mut self, user: &'a str, history: &[u32], target: u32) -> Result<()> {
        let (codes, levels) = (self.codes, self.levels);
        let id = |row: &u32| &codes[*row as usize * levels..][..levels];
        self.users.push(user);
        self.lengths.push(history.len() * levels);
        history
            .iter()
            .for_each(|item| self.histories.extend_from_slice(id(item)));
        self.targets.extend_from_slice(id(&target));
        match self.users.len() {
            CHUNK_ROWS => self.flush(),
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<()> {
        let item = Arc::new(Field::new_list_field(DataType::UInt16, false));
        let histories = ListArray::try_new(
            item.clone(),
            OffsetBuffer::from_lengths(self.lengths.drain(..)),
            Arc::new(UInt16Array::from(std::mem::take(&mut self.histories))),
            None,
        )?;
        let targets = FixedSizeListArray::try_new(
            item,
            self.levels as i32,
            Arc::new(UInt16Array::from(std::mem::take(&mut self.targets))),
            None,
        )?;
        let users = StringArray::from_iter_values(self.users.drain(..));
        self.batches.push(RecordBatch::try_new(
            self.schema.clone(),
            vec![Arc::new(users), Arc::new(histories), Arc::new(targets)],
        )?);
        Ok(())
    }

    fn finish(mut self) -> Result<Table> {
        if !self.users.is_empty() {
            self.flush()?;
        }
        Ok(Table::Batches(self.schema, self.batches))
    }
}

#[cfg(test)]
mod tests {
    use sluice_engine::{harness, text};

    use super::*;

    fn tokenize(samples: Samples, max_items: u32, ids: &str) -> Result<String> {
        let train = text::parse("user_id sequence:[str]\n u a,b,c\n v b").unwrap();
        let inputs = [(TRAIN, train), (SEMANTIC_IDS, text::parse(ids).unwrap())];
        let out = harness::run(&TokenizeSequences { samples, max_items }, &inputs)?;
        text::render(&out.batch(OUT)?.project(&[1, 2])?)
    }

    const IDS: &str = "item_id semantic_id:[u16;2]\n a 1,2\n b 3,4\n c 5,6";

    #[test]
    fn every_window_every_prefix_or_the_last() {
        assert_eq!(
            tokenize(Samples::SlidingWindow, 20, IDS).unwrap(),
            "sequence      target\n[1, 2]        [3, 4]\n[1, 2, 3, 4]  [5, 6]\n[3, 4]        [5, 6]\n"
        );
        assert_eq!(
            tokenize(Samples::Prefixes, 20, IDS).unwrap(),
            "sequence      target\n[1, 2]        [3, 4]\n[1, 2, 3, 4]  [5, 6]\n"
        );
        assert_eq!(
            tokenize(Samples::Last, 20, IDS).unwrap(),
            "sequence      target\n[1, 2, 3, 4]  [5, 6]\n"
        );
    }

    #[test]
    fn windows_that_agree_after_the_cut_stay() {
        assert_eq!(
            tokenize(Samples::SlidingWindow, 1, IDS).unwrap(),
            "sequence  target\n[1, 2]    [3, 4]\n[3, 4]    [5, 6]\n[3, 4]    [5, 6]\n"
        );
    }

    #[test]
    fn an_item_without_an_id_is_named() {
        let error = tokenize(Samples::Last, 20, "item_id semantic_id:[u16;2]\n a 1,2").unwrap_err();
        assert_eq!(error.message, "item \"b\" has no semantic id");
        assert_eq!(error.detail, ["2 different items of input \"train\" have none"]);
    }

    #[test]
    fn beauty() {
        let (Some((train, _, _)), Some(ids)) = (
            crate::beauty::split(Default::default()),
            crate::beauty::letter_semantic_ids(),
        ) else {
            return;
        };
        for (samples, count) in [
            (Samples::SlidingWindow, 1_197_012),
            (Samples::Prefixes, 131_413),
            (Samples::Last, 22_363),
        ] {
            let config = TokenizeSequences {
                samples,
                ..TokenizeSequences::default()
            };
            let out = harness::run(&config, &[(TRAIN, train.clone()), (SEMANTIC_IDS, ids.clone())]).unwrap();
            assert_eq!(out.table(OUT).unwrap().rows().unwrap(), count, "{samples:?}");
        }
    }
}
