//! Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of the linear maps of the blocks, in the layout of `peft`.
//!
//! `y = W x + b + (alpha / rank) · B A dropout(x)`: A [rank, in] is drawn, B [out, rank] starts at 0, W is frozen.

use super::LlmConfig;
use crate::error::{Error, Result};
use crate::ops::matmul::{Scratch, View, multiply};
use crate::prenorm::block::Adapter;
use crate::weights::{Declaration, Init, Weight, Weights};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// Names of the files of an adapter.
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What the file of the weights says besides, which `peft` passes over: a digest of the base's weights. One entry, as
/// several come in no order.
const BASE: &str = "sluice_base";
/// What `peft` puts before the name of a tensor.
const PREFIX: &str = "base_model.model.";

/// Which maps have adapters, and of which rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Rank of the product B A.
    pub rank: usize,
    /// The product is multiplied by `alpha / rank`.
    pub alpha: f32,
    /// Dropout of what A reads.
    pub dropout: f32,
    /// Last parts of the names of the maps (`q_proj`), in the order of a block.
    pub target_modules: Vec<String>,
}

/// Whether a folder holds an adapter rather than a model.
pub fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

/// The name of the model that an adapter was made for, as it says; empty if it does not.
///
/// # Errors
/// [`Error::Io`] or [`Error::Format`].
pub fn base_name(folder: &Path) -> Result<String> {
    let json: Value = crate::weights::load_json(&folder.join(CONFIG))?;
    Ok(json["base_model_name_or_path"].as_str().unwrap_or_default().to_string())
}

/// The digest of the base's weights that an adapter was made with; those of `peft` say none.
///
/// # Errors
/// [`Error::Io`] or [`Error::Format`].
pub fn base_digest(folder: &Path) -> Result<Option<String>> {
    let path = folder.join(WEIGHTS);
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| Error::Format {
        path,
        reason: error.to_string(),
    })?;
    let about = metadata.metadata().as_ref();
    Ok(about.and_then(|about| about.get(BASE)).cloned())
}

/// The tensor A of the map of this name (without `.weight`).
pub(crate) fn down(stem: &str) -> String {
    format!("{stem}.lora_A.weight")
}

/// The tensor B.
pub(crate) fn up(stem: &str) -> String {
    format!("{stem}.lora_B.weight")
}

/// The last part of the name of a map.
fn module(stem: &str) -> &str {
    stem.rsplit('.').next().unwrap_or(stem)
}

impl Lora {
    /// What the product is multiplied by.
    pub fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }

    /// Whether the map of this name has an adapter.
    pub(crate) fn targets(&self, stem: &str) -> bool {
        self.target_modules.iter().any(|target| target == module(stem))
    }

    /// The maps of a model that can have adapters, by the last part of their names.
    pub fn modules(config: &LlmConfig) -> Vec<String> {
        let decoder = config.decoder();
        let maps = decoder.maps();
        maps.iter()
            .map(|(part, ..)| module(&decoder.stem(0, *part)).to_string())
            .collect()
    }

    /// The rank with which adapters of these maps come nearest to `share` of the parameters of the model, at least 1.
    pub fn rank_of_share(config: &LlmConfig, target_modules: &[String], share: f64) -> usize {
        let one = Lora {
            rank: 1,
            alpha: 1.0,
            dropout: 0.0,
            target_modules: target_modules.to_vec(),
        };
        let each = one.parameters(config).max(1) as f64;
        let wanted = share * config.parameters().total() as f64 / each;
        (wanted.round() as usize).max(1)
    }

    /// Number of parameters.
    pub fn parameters(&self, config: &LlmConfig) -> usize {
        let sizes = self.declarations(config);
        sizes.iter().map(|d| d.shape.iter().product::<usize>()).sum()
    }

    /// Checks numbers and names against a model.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] naming the field; for a map that does not exist, with all that do.
    pub fn check(&self, config: &LlmConfig) -> Result<()> {
        if self.rank == 0 {
            return Err(Error::config("rank", "must be at least 1"));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return Err(Error::config("alpha", "must be positive"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", "must be at least 0 and below 1"));
        }
        let known = Lora::modules(config);
        if self.target_modules.is_empty() {
            let reason = format!("names no map; there are {}", known.join(", "));
            return Err(Error::config("target_modules", reason));
        }
        match self.target_modules.iter().find(|target| !known.contains(target)) {
            None => Ok(()),
            Some(target) => {
                let reason = format!("\"{target}\" matches no map; there are {}", known.join(", "));
                Err(Error::config("target_modules", reason))
            }
        }
    }

    /// Names, shapes and starts of the adapters' tensors.
    pub fn declarations(&self, config: &LlmConfig) -> Vec<Declaration> {
        let decoder = config.decoder();
        let mut all = Vec::new();
        for layer in 0..decoder.layers {
            for (part, to, from, _) in decoder.maps() {
                let stem = config.name(&decoder.stem(layer, part));
                if !self.targets(&stem) {
                    continue;
                }
                // As `peft` starts A: uniform with variance 1 / (3 in).
                let bound = (from as f64).powf(-0.5);
                let tensor = |name: String, shape: [usize; 2], init| Declaration {
                    name,
                    shape: shape.to_vec(),
                    init,
                };
                all.push(tensor(down(&stem), [self.rank, from], Init::Uniform(bound)));
                all.push(tensor(up(&stem), [to, self.rank], Init::Constant(0.0)));
            }
        }
        all
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` as `peft` does. `base` names the model adapted;
    /// `digest` is that of its weights.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn save(&self, weights: &Weights, base: &str, digest: Option<&str>, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let json = serde_json::json!({
            "alpha_pattern": {},
            "base_model_name_or_path": base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": {},
            "target_modules": self.target_modules,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": false,
        });
        let path = folder.join(CONFIG);
        std::fs::write(&path, format!("{json:#}\n")).map_err(Error::io(&path))?;
        let own = weights.tensors().iter().filter(|tensor| tensor.name.contains(".lora_"));
        let named = own.map(|tensor| Weight {
            name: format!("{PREFIX}{}", tensor.name),
            ..tensor.clone()
        });
        let about = digest.map(|digest| [(BASE.to_string(), digest.to_string())].into());
        Weights::from_tensors(named.collect()).write(&folder.join(WEIGHTS), about)
    }

    /// Reads an adapter for this model, from `peft` or from here; with the name of the model it was made for.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] for kinds of adapters that are not computed here, [`Error::TensorNames`] or
    /// [`Error::ShapeMismatch`] if it is for another model.
    pub fn load(folder: &Path, config: &LlmConfig) -> Result<(Self, Weights, String)> {
        let path = folder.join(CONFIG);
        let format = |reason: String| Error::Format {
            path: path.clone(),
            reason,
        };
        let json: Value = crate::weights::load_json(&path)?;
        if let Some((key, got)) = unsupported(&json) {
            let reason = format!("{key} is {got}: only plain LoRA, of one rank and without biases, is computed");
            return Err(format(reason));
        }
        let file: File = serde_json::from_value(json).map_err(|error| format(error.to_string()))?;
        let known = Lora::modules(config);
        let target_modules = match file.target_modules {
            Targets::One(name) if name == "all-linear" => known,
            Targets::One(name) => vec![name],
            // `peft` writes a set: its order says nothing.
            Targets::Many(names) => {
                let mut ordered: Vec<String> = known.into_iter().filter(|name| names.contains(name)).collect();
                ordered.extend(names.into_iter().filter(|name| !Lora::modules(config).contains(name)));
                ordered
            }
        };
        // With `use_rslora` the product is divided by the root of the rank.
        let alpha = match file.use_rslora {
            true => file.lora_alpha * (file.r as f32).sqrt(),
            false => file.lora_alpha,
        };
        let lora = Lora {
            rank: file.r,
            alpha,
            dropout: file.lora_dropout,
            target_modules,
        };
        lora.check(config)?;
        let declared = lora.declarations(config);
        let named: Vec<Declaration> = declared
            .iter()
            .map(|d| Declaration {
                name: format!("{PREFIX}{}", d.name),
                ..d.clone()
            })
            .collect();
        let read = Weights::read(&folder.join(WEIGHTS), &named)?;
        let tensors = read.tensors().iter().zip(&declared).map(|(tensor, d)| Weight {
            name: d.name.clone(),
            ..tensor.clone()
        });
        let weights = Weights::from_tensors(tensors.collect());
        Ok((lora, weights, file.base_model_name_or_path.unwrap_or_default()))
    }

    /// The adapter of the map of this name, if it has one.
    pub(crate) fn adapter<'a>(&self, adapters: &'a Weights, stem: &str) -> Result<Option<Adapter<'a>>> {
        if !self.targets(stem) {
            return Ok(None);
        }
        Ok(Some(Adapter {
            down_ri: &adapters.get(&down(stem))?.data,
            up_or: &adapters.get(&up(stem))?.data,
            scale: self.scale(),
        }))
    }

    /// Adds the adapters to the maps of a model: afterwards it computes the same without them.
    ///
    /// # Errors
    /// [`Error::TensorNames`] or [`Error::ShapeMismatch`] if they are for another model.
    pub fn merge(&self, adapters: &Weights, into: &mut Weights) -> Result<()> {
        let mut scratch = Scratch::default();
        for a in adapters.tensors() {
            let Some(stem) = a.name.strip_suffix(".lora_A.weight") else {
                continue;
            };
            let b = adapters.get(&up(stem))?;
            let index = into.index(&format!("{stem}.weight"))?;
            let w = &mut into.tensors_mut()[index];
            let ((rank, from), (to, _)) = (a.matrix(), b.matrix());
            if w.shape != [to, from] {
                return Err(Error::shape(&w.name, [to, from], &w.shape));
            }
            let scaled: Vec<f32> = b.data.iter().map(|x| x * self.scale()).collect();
            let (b_or, a_ri) = (View::rows(&scaled, rank), View::rows(&a.data, from));
            multiply((to, from, rank), b_or, a_ri, &mut w.data, true, &mut scratch, |_, _| ());
        }
        Ok(())
    }
}

/// A key of `adapter_config.json` that asks for what is not computed here, with its value.
fn unsupported(json: &Value) -> Option<(&String, &Value)> {
    let plain = |key: &str, value: &Value| match key {
        "peft_type" => value == "LORA",
        "bias" => value == "none",
        "use_rslora" => true,
        "rank_pattern" | "alpha_pattern" => value.as_object().is_none_or(serde_json::Map::is_empty),
        "layers_to_transform"
        | "layers_pattern"
        | "modules_to_save"
        | "target_parameters"
        | "exclude_modules"
        | "trainable_token_indices"
        | "layer_replication" => value.is_null() || value.as_array().is_some_and(Vec::is_empty),
        key => !(key.starts_with("use_") || key == "fan_in_fan_out" || key == "lora_bias") || value != true,
    };
    let mut entries = json.as_object()?.iter();
    entries.find(|(key, value)| !plain(key, value))
}

/// `adapter_config.json`, as far as it decides what is computed.
#[derive(Deserialize)]
struct File {
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: Targets,
    #[serde(default)]
    use_rslora: bool,
    base_model_name_or_path: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    One(String),
    Many(Vec<String>),
}
