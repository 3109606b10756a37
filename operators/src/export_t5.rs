//! Writes a trained TIGER as a T5 of Hugging Face.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::Result;
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT, Operator};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_gpu::error::Error as GpuError;
use sluice_gpu::tiger::Tiger;

use crate::models::{self, explain};

const MODEL: &str = "model";

/// Writes a trained TIGER as a T5 that `transformers` loads.
///
/// # In
/// `model`: the folder of `train_tiger` with `feed_forward: t5`. A model with GRID's blocks is refused: T5 has no place for
/// their second hidden layer and their biases; so is one that was trained with `vectors`.
///
/// # Out
/// `out`: a folder with `config.json` and `model.safetensors`, for `T5ForConditionalGeneration.from_pretrained`. Tokens are
/// numbered through: the codes of level 0, those of level 1 and so on (code c of level l is the sum of `codebook_sizes` before
/// l, plus c), then BOS (`decoder_start_token_id`, which also pads), the separator (`separator_token_id`, null without one),
/// and `user_buckets` users. The encoder reads the codes of the last `max_items` items, oldest first, a separator after
/// each, and a user token before them if there are users; which one stands for a user is a hash that is known only here.
/// The decoder reads BOS and the codes of the item so far. Its output at place l are logits, of which those of level l
/// count; the rows of `lm_head` that stand for no code are 0. `codebook_sizes`, `separator_token_id`, `user_buckets` and
/// `max_items` are in `config.json`.
///
/// # Source
/// The layout of `transformers`; its logits from such a folder are a test of this house.
///
/// # Deviates
/// A T5 may choose any token at any place: allow the codes of the level alone (`prefix_allowed_tokens_fn`), and
/// `max_new_tokens` as many as there are levels.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExportT5 {}

impl Operator for ExportT5 {
    const NAME: &'static str = "export_t5";
    const VERSION: u32 = 1;
    const INPUTS: &'static [Input] = &[Input::required(
        MODEL,
        "a trained model with feed_forward: t5 (train_tiger)",
    )];

    fn bind(&self, binding: &Binding) -> Bound {
        models::require_model(binding, MODEL, "tiger", "train_tiger");
        Bound::whole().out(Shape::Folder("t5".into()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let model = Tiger::load(inputs.folder(MODEL)?).map_err(explain)?;
        let folder = context.folder(OUT)?;
        model.save_as_t5(&folder).map_err(|error| match &error {
            GpuError::InvalidConfig { field, .. } if field == "feed_forward" => {
                explain(error).hint("train it with feed_forward: t5")
            }
            _ => explain(error),
        })?;
        Ok(Tables::new().with(OUT, Table::Folder(folder)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_engine::operator::Cancel;
    use sluice_engine::text;

    use super::*;
    use crate::testdata;
    use crate::train_tiger::{FeedForward, TrainTiger};

    /// Trains a little and exports.
    fn export(feed_forward: FeedForward, attempt: &Path) -> Result<Tables> {
        let ring = testdata::ring();
        let table = |name: &str| ring.table(name).unwrap().clone();
        let inputs = [
            ("sequences", table("samples")),
            ("valid", table("valid")),
            ("semantic_ids", table("semantic_ids")),
        ];
        let operator = TrainTiger {
            feed_forward,
            max_steps: 2,
            ..testdata::tiny_tiger()
        };
        let harness = sluice_engine::harness::Harness {
            attempt: attempt.to_path_buf(),
            ..Default::default()
        };
        let trained = harness.run(&operator, &inputs)?;
        let context = Context::new(ExportT5::NAME, 1, attempt, attempt, &Cancel::default());
        ExportT5 {}.run(&context, Tables::new().with(MODEL, trained.table(MODEL)?.clone()))
    }

    #[test]
    fn a_trained_model_is_written_with_the_numbering_of_tokens() {
        let attempt = tempfile::tempdir().unwrap();
        let out = export(FeedForward::T5, attempt.path()).unwrap();
        let folder = out.folder(OUT).unwrap();
        let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        // Two levels of 3 and 4 codes, BOS, the separator.
        assert_eq!(
            (&config["vocab_size"], &config["decoder_start_token_id"]),
            (&9.into(), &7.into())
        );
        assert_eq!(config["codebook_sizes"], serde_json::json!([3, 4]));
        let weights = folder.join("model.safetensors");
        let weights = candle_core::safetensors::load(weights, &candle_core::Device::Cpu).unwrap();
        let (shared, head) = (&weights["shared.weight"], &weights["lm_head.weight"]);
        assert_eq!((shared.dims(), head.dims()), (&[9, 16][..], &[9, 16][..]));
        let rest = head.narrow(0, 7, 2).unwrap().abs().unwrap().sum_all().unwrap();
        assert_eq!(rest.to_scalar::<f32>().unwrap(), 0.0);
    }

    #[test]
    fn what_is_no_t5_is_refused() {
        let attempt = tempfile::tempdir().unwrap();
        let error = export(FeedForward::Grid, attempt.path()).unwrap_err();
        assert_eq!(error.code, "bad-value");
        assert!(error.message.contains("GRID's have two and biases"), "{error}");
        assert_eq!(error.hint.as_deref(), Some("train it with feed_forward: t5"));
        let inputs = [(MODEL, text::parse("item_id\n a").unwrap())];
        let error = sluice_engine::harness::run(&ExportT5 {}, &inputs).unwrap_err();
        assert_eq!(error.code, "wrong-input", "{error}");
    }
}
