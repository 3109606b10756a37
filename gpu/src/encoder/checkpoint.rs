//! Weights in Hugging Face layout: one `model.safetensors` or shards with an index; f16, bf16 or f32.
//!
//! Files are mapped into memory. A tensor is converted to f32 when it is asked for, or read where it is, so that a model
//! never lies in memory twice.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;

use super::error::EncoderError;
use crate::frozen::Numbers;

/// The tensors a model wants.
pub(crate) struct Layout {
    /// Names and shapes.
    pub expected: Vec<(String, Vec<usize>)>,
    /// The name in `expected` of a tensor in a file (older names, prefixes of a whole model), or `None` for one that
    /// the encoder does without, such as those of a head or of a decoder.
    pub current_name: fn(&str) -> Option<String>,
}

/// An opened checkpoint that holds what its model wants.
pub struct Checkpoint {
    files: Vec<MmapedSafetensors>,
    tensors: BTreeMap<String, Place>,
}

struct Place {
    file: usize,
    name: String,
    shape: Vec<usize>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.tensors.keys()).finish()
    }
}

impl Checkpoint {
    /// Opens the weights in `folder` and checks names, shapes and element types against the layout.
    pub(crate) fn open(folder: &Path, layout: &Layout) -> Result<Self, EncoderError> {
        let (named_in, paths) = weight_files(folder)?;
        let shapes: HashMap<&str, &Vec<usize>> = layout.expected.iter().map(|(n, s)| (n.as_str(), s)).collect();
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        let mut extra = Vec::new();
        for path in paths {
            let file = map(&path)?;
            for (full_name, view) in file.tensors() {
                let Some(name) = (layout.current_name)(&full_name) else {
                    continue;
                };
                let Some(expected) = shapes.get(name.as_str()).copied() else {
                    extra.push(full_name);
                    continue;
                };
                if view.shape() != expected {
                    let (got, expected) = (view.shape().to_vec(), expected.clone());
                    return Err(EncoderError::Shape {
                        path,
                        name,
                        got,
                        expected,
                    });
                }
                if !matches!(view.dtype(), Dtype::F16 | Dtype::BF16 | Dtype::F32) {
                    let got = format!("{:?}", view.dtype());
                    return Err(EncoderError::ElementType { path, name, got });
                }
                let (file, shape) = (files.len(), expected.clone());
                let place = Place {
                    file,
                    name: full_name,
                    shape,
                };
                tensors.insert(name, place);
            }
            files.push(file);
        }
        let names = layout.expected.iter().map(|(name, _)| name.clone());
        let missing: Vec<String> = names.filter(|name| !tensors.contains_key(name)).collect();
        if !missing.is_empty() || !extra.is_empty() {
            extra.sort();
            return Err(EncoderError::TensorNames {
                path: named_in,
                missing,
                extra,
                expected: layout.expected.len(),
            });
        }
        Ok(Checkpoint { files, tensors })
    }

    /// Tensor `name` in f32, row-major in the shape of the checkpoint (a linear layer is [out, in]).
    ///
    /// Panics for a name that is not in the layout.
    pub(crate) fn get(&self, name: &str) -> Result<Vec<f32>, EncoderError> {
        let place = &self.tensors[name];
        let view = self.files[place.file].get(&place.name)?;
        let bytes = view.data();
        let (pairs, _) = bytes.as_chunks::<2>();
        Ok(match view.dtype() {
            Dtype::F16 => pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
        })
    }

    /// The numbers of tensor `name` where they are mapped; `None` if they are not aligned there, or have another order of
    /// bytes than this machine.
    ///
    /// Panics for a name that is not in the layout.
    pub(crate) fn numbers(&self, name: &str) -> Option<Numbers<'_>> {
        if cfg!(target_endian = "big") {
            return None;
        }
        let place = &self.tensors[name];
        let view = self.files[place.file].get(&place.name).ok()?;
        // SAFETY: any bits are a number of these types.
        unsafe {
            match view.dtype() {
                Dtype::F16 => whole(view.data().align_to()).map(Numbers::F16),
                Dtype::BF16 => whole(view.data().align_to()).map(Numbers::Bf16),
                _ => whole(view.data().align_to()).map(Numbers::F32),
            }
        }
    }

    /// All tensors in f32 on a device, by name.
    pub(crate) fn load_on(&self, device: &Device) -> Result<HashMap<String, Tensor>, EncoderError> {
        let mut tensors = HashMap::new();
        for (name, place) in &self.tensors {
            let tensor = Tensor::from_vec(self.get(name)?, place.shape.as_slice(), device)?;
            tensors.insert(name.clone(), tensor);
        }
        Ok(tensors)
    }

    /// Number of parameters of the encoder.
    pub fn parameter_count(&self) -> usize {
        let sizes = self.tensors.values().map(|place| place.shape.iter().product::<usize>());
        sizes.sum()
    }
}

/// What lies between the unaligned ends, if these are empty.
fn whole<'a, T>((before, all, after): (&'a [u8], &'a [T], &'a [u8])) -> Option<&'a [T]> {
    (before.is_empty() && after.is_empty()).then_some(all)
}

fn map(path: &Path) -> Result<MmapedSafetensors, EncoderError> {
    std::fs::File::open(path).map_err(|source| EncoderError::Read {
        path: path.to_owned(),
        source,
    })?;
    // SAFETY: a checkpoint is read-only by contract; nobody may write to its files while they are mapped.
    unsafe { MmapedSafetensors::new(path) }.map_err(|e| EncoderError::Malformed {
        path: path.to_owned(),
        problem: e.to_string(),
    })
}

/// The file that names the tensors, and the files that hold them.
fn weight_files(folder: &Path) -> Result<(PathBuf, Vec<PathBuf>), EncoderError> {
    let single = folder.join("model.safetensors");
    let index = folder.join("model.safetensors.index.json");
    if single.exists() || !index.exists() {
        return Ok((single.clone(), vec![single]));
    }
    let malformed = |problem: String| EncoderError::Malformed {
        path: index.clone(),
        problem,
    };
    let value = super::config::read_json(&index)?;
    let names = value.get("weight_map").and_then(|m| m.as_object());
    let names = names.ok_or_else(|| malformed("no object \"weight_map\"".into()))?;
    let mut files: Vec<PathBuf> = Vec::new();
    for (name, file) in names {
        let file = file
            .as_str()
            .ok_or_else(|| malformed(format!("the file of tensor {name} is not a string")))?;
        files.push(folder.join(file));
    }
    files.sort();
    files.dedup();
    Ok((index, files))
}
