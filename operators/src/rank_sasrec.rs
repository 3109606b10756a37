//! Recommends with a trained SASRec: inner products of a history's state with all items.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::ops::Workspace;
use sluice_gpu::ranking::rank;
use sluice_gpu::sasrec::{Sasrec, queries};

use crate::baseline::Rows;
use crate::catalogue::Catalogue;
use crate::models::{self, explain};
use crate::protocol;
use crate::ranked_rows::RankedRows;
use crate::schema::{self, ITEM_ID, TARGET, USER_ID};
use crate::sequences;

const MODEL: &str = "model";
const HISTORIES: &str = "histories";
const ITEMS: &str = "items";
/// Users whose histories are read together: progress and interruption come in between. Results do not depend on it.
const SHARE: usize = 512;

/// Recommends with a trained SASRec: the whole catalogue, by the score of each item.
///
/// # In
/// `model`: the folder of `train_sasrec`. `histories`: evaluation rows. `items`: the catalogue, any table with `item_id`;
/// all of it must have been in the catalogue of the training.
///
/// # Out
/// `out`: the first `k` items of every user, ties by ascending item id, and the target's own row where it ranks
/// below `k`. `better` and `tied` count over the eligible catalogue.
///
/// # Source
/// Kang and McAuley, "Self-Attentive Sequential Recommendation" (2018): the score of an item is the inner product of its
/// embedding with the hidden state after the last item.
///
/// # Deviates
/// The original ranks a target among 100 sampled items; here it is the whole catalogue. A history without items ties all.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RankSasrec {
    /// Length of a list.
    pub k: u32,
    /// Whether items of the history are not eligible. A target that was seen then gets no row, and scores 0.
    pub exclude_seen: bool,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

impl Default for RankSasrec {
    fn default() -> Self {
        RankSasrec {
            k: 10,
            exclude_seen: false,
            device: "auto".to_string(),
        }
    }
}

impl Operator for RankSasrec {
    const NAME: &'static str = "rank_sasrec";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[
        Input::required(MODEL, "a trained model (train_sasrec)"),
        Input::required(HISTORIES, "evaluation rows to rank for"),
        Input::required(ITEMS, "the catalogue: any table with item_id"),
    ];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::FORWARD_TOLERANCE)
    }

    fn bind(&self, binding: &Binding) -> Bound {
        models::require_model(binding, MODEL, "sasrec", "train_sasrec");
        sequences::require_targets(binding, HISTORIES);
        binding.require(ITEMS, &[(ITEM_ID, DataType::Utf8)]);
        models::check_device(binding, &self.device);
        if self.k == 0 {
            binding.bad_value("k", "\"k\" must be at least 1");
        }
        Bound::whole()
            .out(Shape::table(schema::ranked()))
            .fact(protocol::SEEN, protocol::seen(self.exclude_seen))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let folder = inputs.folder(MODEL)?;
        let model = Sasrec::load(folder).map_err(explain)?;
        let known = Catalogue::load(folder)?;
        if known.len() != model.config().items {
            let message = format!("the model has {} items, its list {}", model.config().items, known.len());
            return Err(Error::data("bad-model-data", message).hint("train the model again"));
        }
        let catalogue = Catalogue::read(inputs.table(ITEMS)?)?;
        let rows = known_rows(&catalogue, &known)?;
        let histories = inputs.batch(HISTORIES)?;
        let users = schema::strings(&histories, USER_ID)?;
        let targets = catalogue.encode(schema::strings(&histories, TARGET)?, "target")?;
        let histories = Rows::read(&histories, &known, "history item")?;
        let (d, all) = (model.config().d_model, model.item_embeddings().map_err(explain)?);
        let table: Vec<f32> = rows
            .iter()
            .flat_map(|row| &all[*row as usize * d..][..d])
            .copied()
            .collect();
        // The catalogue's number of an item of the model, for what was seen.
        let mut numbers = vec![None; known.len()];
        rows.iter()
            .zip(0..)
            .for_each(|(row, number)| numbers[*row as usize] = Some(number));
        let mut stock = models::stock(model.weights(), &models::device(context, &self.device)?)?;
        let mut workspace = Workspace::default();
        let (mut batches, total) = (Vec::new(), users.len());
        for start in (0..total).step_by(SHARE) {
            context.check_cancelled()?;
            let end = (start + SHARE).min(total);
            let share: Vec<&[u32]> = (start..end).map(|user| histories.row(user)).collect();
            let states = match &mut stock {
                None => model.queries(&share, &mut workspace),
                Some(stock) => queries(stock, model.config(), &share),
            };
            let seen = |user: usize| -> Vec<u32> {
                let items = share[user].iter().filter(|_| self.exclude_seen);
                items.filter_map(|item| numbers[*item as usize]).collect()
            };
            let wanted = (self.k as usize, &targets[start..end]);
            let lists = rank(&states.map_err(explain)?, &table, d, wanted, seen).map_err(explain)?;
            let mut rows = RankedRows::default();
            for (user, list) in (start..).zip(lists) {
                for hit in list {
                    rows.push(user, hit.rank, hit.item, (f64::from(hit.score), hit.better, hit.tied));
                }
            }
            batches.push(rows.batch(users, &catalogue)?);
            context.progress(end as u64, Some(total as u64), "users", &[]);
        }
        let schema = Arc::new(Schema::new(schema::ranked()));
        Ok(Tables::new().with(OUT, Table::Batches(schema, batches)))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, _outputs: &Tables) -> Result<Notes> {
        let users = rows_in.get(HISTORIES).copied().unwrap_or(0);
        Ok(Notes::from_iter([("users".to_string(), users.into())]))
    }
}

/// The model's row of every item of the catalogue.
fn known_rows(catalogue: &Catalogue, known: &Catalogue) -> Result<Vec<u32>> {
    if catalogue.is_empty() {
        return Err(Error::data("empty-input", "the catalogue has no items"));
    }
    let missing: Vec<&str> = catalogue.ids().filter(|id| known.number(id).is_none()).collect();
    match missing.first() {
        None => Ok(catalogue.ids().filter_map(|id| known.number(id)).collect()),
        Some(first) => Err(
            Error::data("unknown-item", format!("item \"{first}\" is not known to the model"))
                .detail(format!("{} items of the catalogue are not", missing.len()))
                .hint("connect the catalogue that the model was trained on, or train on this one"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, RecordBatch};
    use arrow::datatypes::{Float64Type, UInt32Type};
    use sluice_engine::harness::Harness;
    use sluice_engine::text;

    use super::*;
    use crate::testdata;

    /// Trains on the ring, and ranks histories for a catalogue.
    fn rank_ring(operator: &RankSasrec, histories: &str, items: &str) -> Result<RecordBatch> {
        let attempt = tempfile::tempdir().unwrap();
        let harness = Harness {
            attempt: attempt.path().to_path_buf(),
            ..Harness::default()
        };
        let ring = testdata::ring();
        let table = |port: &str| ring.table(port).unwrap().clone();
        let inputs = [
            ("train", table("train")),
            ("valid", table("valid")),
            ("items", table("semantic_ids")),
        ];
        let trained = harness.run(&testdata::tiny_sasrec(), &inputs).unwrap();
        let inputs = Tables::new()
            .with(MODEL, trained.table("model").unwrap().clone())
            .with(HISTORIES, Table::new(text::parse(histories).unwrap()))
            .with(ITEMS, Table::new(text::parse(items).unwrap()));
        operator
            .run(&testdata::context(&harness, RankSasrec::NAME), inputs)?
            .batch(OUT)
    }

    fn items() -> String {
        (0..12).fold("item_id".to_string(), |text, item| format!("{text}\n {item}"))
    }

    fn column(out: &RecordBatch, name: &str) -> Vec<u32> {
        schema::numbers::<UInt32Type>(out, name).unwrap().values().to_vec()
    }

    fn listed(out: &RecordBatch) -> Vec<(&str, &str)> {
        let column = |name: &str| out.column_by_name(name).unwrap().as_string::<i32>();
        let (users, items) = (column(USER_ID), column(ITEM_ID));
        users.iter().flatten().zip(items.iter().flatten()).collect()
    }

    const TWO_USERS: &str = "user_id sequence:[str] target\n u 2,3,4 5\n v 9,10,11 2";

    #[test]
    fn the_next_item_of_the_ring_comes_first_and_the_target_has_a_row() {
        let operator = RankSasrec {
            k: 1,
            device: "cpu".into(),
            ..Default::default()
        };
        let out = rank_ring(&operator, TWO_USERS, &items()).unwrap();
        assert_eq!(listed(&out), [("u", "5"), ("v", "0"), ("v", "2")]);
        let ranks = column(&out, "rank");
        assert!(ranks[..2] == [1, 1] && ranks[2] > 1);
        assert_eq!(
            column(&out, "better"),
            ranks.iter().map(|rank| rank - 1).collect::<Vec<_>>()
        );
        assert_eq!((column(&out, "tied"), column(&out, "beam")), (vec![1; 3], ranks));
    }

    #[test]
    fn seen_items_and_items_outside_the_catalogue_are_not_listed() {
        let operator = RankSasrec {
            k: 12,
            exclude_seen: true,
            device: "cpu".into(),
        };
        let out = rank_ring(
            &operator,
            "user_id sequence:[str] target\n u 2,3,4 3",
            "item_id\n 3\n 7\n 10\n 4",
        )
        .unwrap();
        let items: Vec<&str> = listed(&out).into_iter().map(|row| row.1).collect();
        assert!(items == ["7", "10"] || items == ["10", "7"], "{items:?}");
        let scores = schema::numbers::<Float64Type>(&out, "score").unwrap();
        assert!(scores.value(0) >= scores.value(1));
    }

    #[test]
    fn an_empty_history_ties_the_catalogue() {
        let operator = RankSasrec {
            k: 1,
            device: "cpu".into(),
            ..Default::default()
        };
        let histories = "user_id sequence:[str] target\n u - 5\n v 3 4";
        let out = rank_ring(&operator, histories, &items()).unwrap();
        assert_eq!(listed(&out)[..2], [("u", "0"), ("u", "5")]);
        assert_eq!(column(&out, "tied")[..2], [12, 12]);
        assert_eq!(column(&out, "rank")[..2], [1, 6]);
    }

    #[test]
    fn a_device_that_no_machine_has_is_refused() {
        let operator = RankSasrec {
            device: "gpu".into(),
            ..Default::default()
        };
        let inputs = [
            (HISTORIES, text::parse(TWO_USERS).unwrap()),
            (ITEMS, text::parse(&items()).unwrap()),
        ];
        let error = sluice_engine::harness::run(&operator, &inputs).unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("bad-value", "no device is called \"gpu\"")
        );
    }

    #[test]
    fn an_unknown_item_is_an_error() {
        let operator = RankSasrec {
            device: "cpu".into(),
            ..Default::default()
        };
        let error = rank_ring(&operator, TWO_USERS, "item_id\n 0\n 2\n 5\n new").unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("unknown-item", "item \"new\" is not known to the model")
        );
    }
}
