//! Recommends with a trained TIGER: beam search over the catalogue's semantic ids.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Determinism, Input, Notes, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::beam::{BeamOptions, Hypothesis, Normalisation as GpuNormalisation, beam_search, beam_search_on};
use sluice_gpu::tiger::{Inputs, Tiger};

use crate::models::{self, SemanticIds, encode_histories, explain, user_number};
use crate::protocol;
use crate::quantizers::require_embeddings;
use crate::schema::{self, ITEM_ID, SEMANTIC_ID, SEQUENCE, TARGET, USER_ID};

const MODEL: &str = "model";
const HISTORIES: &str = "histories";
const SEMANTIC_IDS: &str = "semantic_ids";
const VECTORS: &str = "vectors";
/// Users per call: progress and interruption come in between. Results do not depend on it.
const SHARE: usize = 512;

/// Recommends with a trained TIGER, by beam search constrained to the semantic ids of the catalogue.
///
/// # In
/// `model`: the folder of `train_tiger`. `histories`: evaluation rows; the target is not looked at. `semantic_ids`: the
/// catalogue, which may hold items that the model was not trained on. `vectors`: those of its items, for a model that was
/// trained with `vectors`, of the same kind.
///
/// # Out
/// `out`: ranked items, `user_id, rank, item_id, score` (log-probability), `better, tied` (items with a higher or the same
/// score), `beam` (rank of the semantic id). Items that share a semantic id are tied and all listed.
///
/// # Source
/// TIGER (arXiv 2305.05065), section 3.2; the search is constrained by a trie of all semantic ids, so that no beam can be
/// an id that is no item.
///
/// # Deviates
/// TIGER searches freely and counts illegal ids; here there are none. `search: exact` keeps every prefix of the catalogue:
/// the reference that a beam approximates, at about the cost of a beam as wide as the catalogue.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GenerateTiger {
    /// Keep the best prefixes, or all of them.
    pub search: Search,
    /// Semantic ids kept per user; `exact` keeps all.
    pub beam_width: u32,
    /// Items listed per user at most (those tied with the last one are listed too); null for all that were found.
    pub k: Option<u32>,
    /// Leave out items of the history.
    pub exclude_seen: bool,
    /// What the probabilities of a step are normalised over.
    pub normalisation: Normalisation,
    /// `cpu`, `cuda`, `cuda:1` or `auto`.
    #[schemars(extend("x-resource" = true))]
    pub device: String,
}

/// Which prefixes of semantic ids are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Search {
    /// The best `beam_width` of every level.
    Beam,
    /// All: every item of the catalogue gets its exact score.
    Exact,
}

/// What the probabilities of a step are normalised over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// All codes of the level, as in training.
    Codebook,
    /// The codes that some item has after the prefix.
    Children,
}

impl Default for GenerateTiger {
    fn default() -> Self {
        GenerateTiger {
            search: Search::Beam,
            beam_width: 20,
            k: None,
            exclude_seen: false,
            normalisation: Normalisation::Codebook,
            device: "auto".to_string(),
        }
    }
}

impl Operator for GenerateTiger {
    const NAME: &'static str = "generate_tiger";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[
        Input::required(MODEL, "a trained model (train_tiger)"),
        Input::required(
            HISTORIES,
            "evaluation rows: user_id, sequence, target (split_leave_one_out.test)",
        ),
        Input::required(SEMANTIC_IDS, "the catalogue: item_id, semantic_id"),
        Input::optional(
            VECTORS,
            "the vectors that the model was trained with: item_id, embedding",
        ),
    ];

    fn determinism(&self) -> Determinism {
        models::determinism(&self.device, models::FORWARD_TOLERANCE)
    }

    fn bind(&self, binding: &Binding) -> Bound {
        models::require_model(binding, MODEL, "tiger", "train_tiger");
        binding.require(
            HISTORIES,
            &[
                (USER_ID, DataType::Utf8),
                (SEQUENCE, schema::list_of(DataType::Utf8)),
                (TARGET, DataType::Utf8),
            ],
        );
        binding.require(SEMANTIC_IDS, &[(ITEM_ID, DataType::Utf8)]);
        if binding
            .schema(SEMANTIC_IDS)
            .is_some_and(|schema| schema.field_with_name(SEMANTIC_ID).is_err())
        {
            binding.missing_column(SEMANTIC_IDS, SEMANTIC_ID);
        }
        models::check_device(binding, &self.device);
        if self.beam_width == 0 {
            binding.bad_value("beam_width", "a beam has at least one id");
        }
        if self.k == Some(0) {
            binding.bad_value("k", "k must be positive");
        }
        if self.search == Search::Exact && self.k.is_none() {
            binding.bad_value(
                "search",
                "every item is scored for every user: say by \"k\" how many are listed",
            );
        }
        if binding.has(VECTORS) {
            require_embeddings(binding, VECTORS);
        }
        Bound::whole()
            .out(Shape::table(schema::ranked()))
            .fact(protocol::SEEN, protocol::seen(self.exclude_seen))
            .apart(VECTORS)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let model = Tiger::load(inputs.folder(MODEL)?).map_err(explain)?;
        let ids = SemanticIds::read(inputs.table(SEMANTIC_IDS)?)?;
        let largest = ids.trie.largest_codes();
        let sizes = &model.config().codebook_sizes;
        if sizes.len() != ids.levels
            || largest
                .iter()
                .zip(sizes)
                .any(|(code, size)| usize::from(*code) >= *size)
        {
            return Err(Error::data(
                "different-ids",
                "the model was trained on other semantic ids than these",
            )
            .detail(format!(
                "the model has levels of {sizes:?}; the largest codes here are {largest:?}"
            ))
            .hint("connect the semantic ids that the samples were tokenized with"));
        }
        let vectors = match (inputs.has(VECTORS), model.config().vector_dim) {
            (false, 0) => None,
            (true, 1..) => Some(models::item_vectors(inputs.table(VECTORS)?, &ids)?),
            (true, 0) => {
                let error = Error::data("other-vectors", "the model was trained without item vectors");
                return Err(error.hint("leave out \"vectors\", or give them to train_tiger too"));
            }
            (false, 1..) => {
                let error = Error::data(
                    "other-vectors",
                    "the model was trained with item vectors, here are none",
                );
                return Err(error.hint("connect as \"vectors\" what train_tiger got"));
            }
        };
        let coded = encode_histories(inputs.table(HISTORIES)?, &ids)?;
        let seen = if self.exclude_seen {
            Some(seen_items(&inputs)?)
        } else {
            None
        };
        let options = BeamOptions {
            width: match self.search {
                Search::Beam => self.beam_width as usize,
                Search::Exact => ids.trie.leaves(),
            },
            normalisation: match self.normalisation {
                Normalisation::Codebook => GpuNormalisation::Codebook,
                Normalisation::Children => GpuNormalisation::Children,
            },
        };
        let mut stock = models::stock(model.weights(), &models::device(context, &self.device)?)?;
        let numbers: Vec<u64> = coded.users.iter().map(|user| user_number(user)).collect();
        let with_users = model.config().user_buckets > 0;
        let mut lists = Lists::default();
        let total = coded.users.len();
        for start in (0..total).step_by(SHARE) {
            context.check_cancelled()?;
            let end = (start + SHARE).min(total);
            let histories: Vec<&[u16]> = (start..end).map(|row| coded.histories.get(row)).collect();
            let inputs = Inputs {
                histories: &histories,
                users: with_users.then_some(&numbers[start..end]),
                vectors: vectors.as_deref(),
            };
            let found = match &mut stock {
                None => beam_search(&model, &ids.trie, &inputs, &options),
                Some(stock) => beam_search_on(stock, model.config(), &ids.trie, &inputs, &options),
            };
            for (row, beams) in (start..end).zip(found.map_err(explain)?) {
                let seen = seen.as_ref().map(|seen| &seen[row]);
                lists.push(&coded.users[row], &beams, &ids, seen, self.k);
            }
            context.progress(end as u64, Some(total as u64), "users", &[]);
        }
        Ok(Tables::out(lists.batch()?))
    }

    fn conclude(&self, _context: &Context, rows_in: &BTreeMap<String, u64>, _outputs: &Tables) -> Result<Notes> {
        let mut notes = Notes::new();
        notes.insert("users".into(), rows_in.get(HISTORIES).copied().unwrap_or(0).into());
        Ok(notes)
    }
}

/// The items of every history.
fn seen_items(inputs: &Tables) -> Result<Vec<HashSet<String>>> {
    let mut seen = Vec::new();
    for batch in inputs.table(HISTORIES)?.batches()? {
        let batch = batch?;
        let sequences = schema::lists(&batch, SEQUENCE)?;
        for row in 0..batch.num_rows() {
            let items = sequences.value(row);
            seen.push(items.as_string::<i32>().iter().flatten().map(str::to_string).collect());
        }
    }
    Ok(seen)
}

#[derive(Default)]
struct Lists {
    users: Vec<String>,
    ranks: Vec<u32>,
    items: Vec<String>,
    scores: Vec<f64>,
    better: Vec<u32>,
    tied: Vec<u32>,
    beams: Vec<u32>,
}

impl Lists {
    fn push(
        &mut self,
        user: &str,
        beams: &[Hypothesis],
        ids: &SemanticIds,
        seen: Option<&HashSet<String>>,
        k: Option<u32>,
    ) {
        let mut rank = 0;
        for (beam, hypothesis) in beams.iter().enumerate() {
            let items: Vec<&String> = ids
                .trie
                .items_of(hypothesis.leaf)
                .iter()
                .map(|item| &ids.items[*item as usize])
                .filter(|item| !seen.is_some_and(|seen| seen.contains(*item)))
                .collect();
            if k.is_some_and(|k| rank >= k) {
                break;
            }
            let better = rank;
            for item in &items {
                rank += 1;
                self.users.push(user.to_string());
                self.ranks.push(rank);
                self.items.push((*item).clone());
                self.scores.push(f64::from(hypothesis.score));
                self.better.push(better);
                self.tied.push(items.len() as u32);
                self.beams.push(beam as u32 + 1);
            }
        }
    }

    fn batch(self) -> Result<RecordBatch> {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(self.users)),
            Arc::new(UInt32Array::from(self.ranks)),
            Arc::new(StringArray::from(self.items)),
            Arc::new(Float64Array::from(self.scores)),
            Arc::new(UInt32Array::from(self.better)),
            Arc::new(UInt32Array::from(self.tied)),
            Arc::new(UInt32Array::from(self.beams)),
        ];
        Ok(RecordBatch::try_new(Arc::new(Schema::new(schema::ranked())), columns)?)
    }
}
