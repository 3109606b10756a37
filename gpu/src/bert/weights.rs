//! Reads a BERT checkpoint in Hugging Face layout: one `model.safetensors` or shards with an index; f16, bf16 or f32.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{BertConfig, BertError};

/// The tensors of a BERT encoder in f32, by name without the `bert.` prefix.
///
/// The pooler, the heads for pre-training and whatever else the file holds are not read.
#[derive(Debug, Clone)]
pub struct BertWeights {
    tensors: BTreeMap<String, Vec<f32>>,
}

impl BertWeights {
    /// Reads the tensors that `config` implies from `folder`.
    ///
    /// Errors: a file that cannot be read, missing tensors (all listed), other shapes, other element types.
    pub fn load(folder: &Path, config: &BertConfig) -> Result<Self, BertError> {
        let (named_in, files) = weight_files(folder)?;
        let expected = expected_shapes(config);
        let mut tensors = BTreeMap::new();
        for path in files {
            let bytes = std::fs::read(&path).map_err(|source| BertError::Read {
                path: path.clone(),
                source,
            })?;
            let file = SafeTensors::deserialize(&bytes).map_err(|e| BertError::Malformed {
                path: path.clone(),
                problem: e.to_string(),
            })?;
            for (full_name, view) in file.iter() {
                let name = current_name(full_name.strip_prefix("bert.").unwrap_or(full_name));
                let Some((_, shape)) = expected.iter().find(|(n, _)| *n == name) else {
                    continue;
                };
                if view.shape() != shape {
                    let (got, expected) = (view.shape().to_vec(), shape.clone());
                    return Err(BertError::Shape {
                        path,
                        name,
                        got,
                        expected,
                    });
                }
                let Some(values) = to_f32(view.dtype(), view.data()) else {
                    return Err(BertError::ElementType {
                        path,
                        name,
                        got: format!("{:?}", view.dtype()),
                    });
                };
                tensors.insert(name, values);
            }
        }
        let missing: Vec<String> = expected
            .iter()
            .map(|(name, _)| name.clone())
            .filter(|name| !tensors.contains_key(name))
            .collect();
        if !missing.is_empty() {
            return Err(BertError::MissingTensors {
                path: named_in,
                missing,
                expected: expected.len(),
            });
        }
        Ok(BertWeights { tensors })
    }

    /// Tensor `name`, row-major in the shape of the checkpoint (a linear layer is [out, in]).
    pub(super) fn get(&self, name: &str) -> &[f32] {
        &self.tensors[name]
    }

    /// Number of parameters held.
    pub fn parameter_count(&self) -> usize {
        self.tensors.values().map(Vec::len).sum()
    }
}

/// Names and shapes of the tensors of an encoder.
pub(super) fn expected_shapes(config: &BertConfig) -> Vec<(String, Vec<usize>)> {
    let (d, inner) = (config.hidden_size, config.intermediate_size);
    let mut out = vec![
        (
            "embeddings.word_embeddings.weight".to_string(),
            vec![config.vocab_size, d],
        ),
        (
            "embeddings.position_embeddings.weight".to_string(),
            vec![config.max_position_embeddings, d],
        ),
        (
            "embeddings.token_type_embeddings.weight".to_string(),
            vec![config.type_vocab_size, d],
        ),
        ("embeddings.LayerNorm.weight".to_string(), vec![d]),
        ("embeddings.LayerNorm.bias".to_string(), vec![d]),
    ];
    for layer in 0..config.num_hidden_layers {
        for (name, to, from) in [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", inner, d),
            ("output.dense", d, inner),
        ] {
            out.push((format!("encoder.layer.{layer}.{name}.weight"), vec![to, from]));
            out.push((format!("encoder.layer.{layer}.{name}.bias"), vec![to]));
        }
        for name in ["attention.output.LayerNorm", "output.LayerNorm"] {
            out.push((format!("encoder.layer.{layer}.{name}.weight"), vec![d]));
            out.push((format!("encoder.layer.{layer}.{name}.bias"), vec![d]));
        }
    }
    out
}

/// The first BERT checkpoints call the scale and shift of a layer norm `gamma` and `beta`.
fn current_name(name: &str) -> String {
    match (
        name.strip_suffix("LayerNorm.gamma"),
        name.strip_suffix("LayerNorm.beta"),
    ) {
        (Some(stem), _) => format!("{stem}LayerNorm.weight"),
        (_, Some(stem)) => format!("{stem}LayerNorm.bias"),
        _ => name.to_string(),
    }
}

/// The file that names the tensors, and the files that hold them.
fn weight_files(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>), BertError> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return Ok((single.clone(), vec![single]));
    }
    let malformed = |problem: String| BertError::Malformed {
        path: index.clone(),
        problem,
    };
    let text = std::fs::read_to_string(&index).map_err(|source| BertError::Read {
        path: index.clone(),
        source,
    })?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
    let map = value.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| malformed("no object \"weight_map\"".into()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for (name, file) in map {
        let file = file
            .as_str()
            .ok_or_else(|| malformed(format!("the file of tensor {name} is not a string")))?;
        files.push(folder.join(file));
    }
    files.sort();
    files.dedup();
    Ok((index, files))
}

fn to_f32(kind: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let pairs = || bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match kind {
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(b).to_f32()).collect()),
        Dtype::F32 => Some(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
        ),
        _ => None,
    }
}
