//! Merges an adapter into the language model it was trained on.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Input, OUT, Operator};
use sluice_engine::table::{Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::llm::{FrozenLlm, Llm};

use crate::language_models::{self, LAYOUT, bind_checkpoint, load_checkpoint, read_checkpoint};
use crate::models::{self, explain};

const MODEL: &str = "model";
const BASE: &str = "base";

/// Merges an adapter into the language model it was trained on: a checkpoint that `transformers` loads.
///
/// # In
/// `model`: the folder of `train_llm`; a whole model is written as it is. `base`: the model that the adapter was trained
/// on, where another stage made it. An adapter of `train_llm` says which weights it was trained on: others are refused.
///
/// # Out
/// `out`: a folder with `config.json` and `model.safetensors`, in f32, for `AutoModelForCausalLM.from_pretrained`.
///
/// # Source
/// Hu et al. 2021 (arXiv 2106.09685), section 4.1: W + (alpha / rank) B A computes the same as W with its adapter.
///
/// # Deviates
/// Nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MergeAdapter {
    /// The checkpoint that the adapter was trained on, as `model` of `train_llm` names it; null with the input `base`.
    pub base: Option<String>,
}

impl Operator for MergeAdapter {
    const NAME: &'static str = "merge_adapter";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[
        Input::required(MODEL, "an adapter (train_llm)"),
        Input::optional(BASE, "the language model it was trained on (train_llm)"),
    ];

    fn bind(&self, binding: &Binding) -> Bound {
        models::require_model(binding, MODEL, LAYOUT, "train_llm");
        Bound::whole()
            .out(language_models::shape())
            .files(bind_base(binding, self.base.as_deref()))
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let model = open(context, &inputs, MODEL, self.base.as_deref())?;
        let folder = context.folder(OUT)?;
        model.save(&folder).map_err(explain)?;
        Ok(Tables::new().with(OUT, Table::Folder(folder)))
    }
}

/// Checks what an adapter is to be merged into: the input `base`, or a checkpoint. Its files, for the key.
pub fn bind_base(binding: &Binding, base: Option<&str>) -> Vec<PathBuf> {
    models::require_model(binding, BASE, LAYOUT, "train_llm");
    match base {
        Some(_) if binding.has(BASE) => {
            let message = "there is an input \"base\" already: leave one of them out";
            binding.problem(BASE, Error::user("bad-value", message));
            Vec::new()
        }
        Some(name) => bind_checkpoint(binding, BASE, name).1,
        None => Vec::new(),
    }
}

/// Where a model is that an adapter was trained on.
enum Place<'a> {
    Checkpoint(&'a str),
    Folder(&'a Path),
}

/// Reads the language model of a port; an adapter is merged into its base, which is `base`, else the input `base`, else
/// the checkpoint that the adapter names. Without the port it is the base alone.
pub fn open(context: &Context, inputs: &Tables, port: &str, base: Option<&str>) -> Result<Llm> {
    let found = |own: &str| match place(inputs, base, own)? {
        Place::Checkpoint(name) => load_checkpoint(&context.path(name), name),
        Place::Folder(folder) => language_models::load(folder, |_| Err(adapter_too())),
    };
    match inputs.has(port) {
        true => language_models::load(inputs.folder(port)?, found),
        false => found(""),
    }
}

/// The same to generate with: nothing is merged.
pub fn read(context: &Context, inputs: &Tables, port: &str, base: Option<&str>) -> Result<FrozenLlm> {
    let found = |own: &str| match place(inputs, base, own)? {
        Place::Checkpoint(name) => read_checkpoint(&context.path(name), name),
        Place::Folder(folder) => language_models::read(folder, |_| Err(adapter_too())),
    };
    match inputs.has(port) {
        true => language_models::read(inputs.folder(port)?, found),
        false => found(""),
    }
}

/// Where the base is of an adapter that has the name `own` for it.
fn place<'a>(inputs: &'a Tables, base: Option<&'a str>, own: &'a str) -> Result<Place<'a>> {
    match (base, inputs.has(BASE), own) {
        (Some(name), ..) => Ok(Place::Checkpoint(name)),
        (None, true, _) => Ok(Place::Folder(inputs.folder(BASE)?)),
        (None, false, "") => Err(needs_base(
            "this is an adapter, and what it was trained on is not given",
        )),
        (None, false, own) => Ok(Place::Checkpoint(own)),
    }
}

fn adapter_too() -> Error {
    needs_base("the base is an adapter too")
}

fn needs_base(message: &str) -> Error {
    Error::user("no-base", message)
        .hint("name the checkpoint in \"base\", or connect the stage that made it as input \"base\"")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_engine::operator::Cancel;
    use sluice_gpu::llm::lora::Lora;
    use sluice_gpu::llm::{LlmConfig, Shape};
    use sluice_gpu::weights::Weights;

    use super::*;

    fn shape(d_model: usize) -> LlmConfig {
        LlmConfig::of_shape(&Shape {
            vocabulary: 11,
            d_model,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            key_dim: 4,
            d_ff: 12,
            max_tokens: 16,
        })
        .unwrap()
    }

    #[test]
    fn an_adapter_needs_its_own_base() {
        let root = tempfile::tempdir().unwrap();
        let config = shape(8);
        let (own, other) = (Llm::init(&config, 1), Llm::init(&shape(6), 1));
        own.save(&root.path().join("own")).unwrap();
        let seeds = Llm::init(&config, 2);
        seeds.save(&root.path().join("seeds")).unwrap();
        other.save(&root.path().join("other")).unwrap();
        let lora = Lora {
            rank: 2,
            alpha: 3.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".into()],
        };
        let mut adapters = Weights::init(&lora.declarations(&config), 5);
        adapters.tensors_mut().iter_mut().for_each(|t| t.data.fill(0.5));
        let save = |digest: Option<&str>| lora.save(&adapters, "", digest, &root.path().join("adapter")).unwrap();
        save(Some(&own.weights().digest()));
        let merge = |base: Option<&str>, port: Option<&str>| -> Result<Llm> {
            let operator = MergeAdapter {
                base: base.map(str::to_string),
            };
            let context = Context::new(
                MergeAdapter::NAME,
                1,
                root.path(),
                &root.path().join("out"),
                &Cancel::default(),
            );
            let folder = |name: &str| Table::Folder(root.path().join(name));
            let mut inputs = Tables::new().with(MODEL, folder("adapter"));
            if let Some(port) = port {
                inputs = inputs.with(BASE, folder(port));
            }
            let out = operator.run(&context, inputs)?;
            Llm::load(out.folder(OUT)?).map_err(|error| Error::internal(error.to_string()))
        };
        let merged = merge(Some("own"), None).unwrap();
        // Every element of q_proj grew by alpha / rank times the rank times .5 · .5.
        let q = "model.layers.0.self_attn.q_proj.weight";
        let (before, after) = (own.weights().get(q).unwrap(), merged.weights().get(q).unwrap());
        for (before, after) in before.data.iter().zip(&after.data) {
            assert!((after - before - 0.75).abs() < 1e-6);
        }
        assert_eq!(merge(None, Some("own")).unwrap().weights(), merged.weights());
        let error = |base: Option<&str>, port: Option<&str>| merge(base, port).map(|_| ()).unwrap_err().to_string();
        assert!(error(Some("other"), None).contains("the adapter is for another model"));
        let wrong = "the adapter was trained on the model of another stage; this base has other weights";
        assert!(error(Some("seeds"), None).contains(wrong));
        assert!(error(None, Some("seeds")).contains(wrong));
        // That of `peft` says nothing.
        save(None);
        assert!(merge(Some("seeds"), None).is_ok());
        assert!(error(None, None).contains("what it was trained on is not given"));
        assert!(error(None, Some("adapter")).contains("the base is an adapter too"));
        assert!(!Path::new("own").exists());
    }
}
