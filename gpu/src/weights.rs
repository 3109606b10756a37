//! Named weights on the host: what a model is made of, and its folder `config.json` + `model.safetensors`.

use crate::error::{Error, Result};
use crate::frozen::Numbers;
use crate::random::Key;
use std::collections::HashMap;
use std::path::Path;

/// One named f32 tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Name, unique in its store.
    pub name: String,
    /// Shape: one or two dimensions.
    pub shape: Vec<usize>,
    /// The numbers, row-major.
    pub data: Vec<f32>,
}

impl Weight {
    /// Rows and columns; a vector is one row.
    pub fn matrix(&self) -> (usize, usize) {
        matrix(&self.shape)
    }
}

/// Rows and columns of a shape; a vector is one row.
pub(crate) fn matrix(shape: &[usize]) -> (usize, usize) {
    match *shape {
        [rows, columns] => (rows, columns),
        _ => (1, shape.iter().product()),
    }
}

/// A digest of names, shapes and numbers, which are told as f32.
pub(crate) fn digest<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize], Numbers<'a>)>) -> String {
    const PART: usize = 1 << 16;
    let mut hasher = blake3::Hasher::new();
    let mut part = vec![0f32; PART];
    for (name, shape, numbers) in tensors {
        hasher.update(format!("{name} {shape:?};").as_bytes());
        for first in (0..numbers.len()).step_by(PART) {
            let part = &mut part[..PART.min(numbers.len() - first)];
            numbers.write(first, part);
            let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// How a weight starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform between this and its negative.
    Uniform(f64),
    /// All elements this value.
    Constant(f32),
    /// Three equal groups of rows, each normal with its own standard deviation (a packed query-key-value map).
    NormalThirds([f64; 3]),
}

/// Name, shape and start of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Declaration {
    /// Name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Start.
    pub init: Init,
}

/// An ordered store of named weights.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Weights {
    tensors: Vec<Weight>,
    index: HashMap<String, usize>,
}

impl Weights {
    /// Draws every declared weight from its own stream of the seed: the same whatever else is declared.
    pub fn init(declarations: &[Declaration], seed: u64) -> Self {
        let tensors = declarations.iter().map(|d| {
            let key = d.name.bytes().fold(Key::new(seed), |key, byte| key.child(byte.into()));
            let n: usize = d.shape.iter().product();
            let normal = |i: usize, sd: f64| (key.normal(i as u64) * sd) as f32;
            let data = match d.init {
                Init::Normal(sd) => (0..n).map(|i| normal(i, sd)).collect(),
                Init::Uniform(bound) => (0..n)
                    .map(|i| ((2.0 * key.uniform(i as u64) - 1.0) * bound) as f32)
                    .collect(),
                Init::Constant(value) => vec![value; n],
                Init::NormalThirds(sd) => (0..n).map(|i| normal(i, sd[3 * i / n])).collect(),
            };
            Weight {
                name: d.name.clone(),
                shape: d.shape.clone(),
                data,
            }
        });
        Self::from_tensors(tensors.collect())
    }

    /// A store of these tensors, in this order.
    pub fn from_tensors(tensors: Vec<Weight>) -> Self {
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Weights { tensors, index }
    }

    /// All tensors, in order.
    pub fn tensors(&self) -> &[Weight] {
        &self.tensors
    }

    /// All tensors, to update in place.
    pub fn tensors_mut(&mut self) -> &mut [Weight] {
        &mut self.tensors
    }

    /// All tensors, alone, in order.
    pub fn into_tensors(self) -> Vec<Weight> {
        self.tensors
    }

    /// Position of a name.
    ///
    /// # Errors
    /// [`Error::TensorNames`] if there is none.
    pub fn index(&self, name: &str) -> Result<usize> {
        self.index.get(name).copied().ok_or_else(|| Error::TensorNames {
            missing: vec![name.into()],
            unexpected: vec![],
        })
    }

    /// The tensor of a name.
    ///
    /// # Errors
    /// [`Error::TensorNames`] if there is none.
    pub fn get(&self, name: &str) -> Result<&Weight> {
        Ok(&self.tensors[self.index(name)?])
    }

    /// A digest of all names, shapes and numbers.
    pub fn digest(&self) -> String {
        let tensors = self.tensors.iter();
        digest(tensors.map(|t| (t.name.as_str(), &t.shape[..], Numbers::F32(&t.data))))
    }

    /// Checks that every declared weight is here, of its shape.
    ///
    /// # Errors
    /// [`Error::TensorNames`] or [`Error::ShapeMismatch`].
    pub fn check(&self, declarations: &[Declaration]) -> Result<()> {
        for d in declarations {
            let got = self.get(&d.name)?;
            if got.shape != d.shape || got.data.len() != d.shape.iter().product::<usize>() {
                return Err(Error::shape(&d.name, &d.shape, &got.shape));
            }
        }
        Ok(())
    }

    /// Writes `config.json` and `model.safetensors` into a folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, folder: &Path, config: &impl serde::Serialize) -> Result<()> {
        self.save_with(folder, config, None)
    }

    /// The same, with what the file of the weights says about itself.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save_with(
        &self,
        folder: &Path,
        config: &impl serde::Serialize,
        about: Option<HashMap<String, String>>,
    ) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let path = folder.join("config.json");
        let format = |reason: String| Error::Format {
            path: path.clone(),
            reason,
        };
        let json = serde_json::to_string_pretty(config).map_err(|e| format(e.to_string()))?;
        std::fs::write(&path, json + "\n").map_err(Error::io(&path))?;
        self.write(&folder.join("model.safetensors"), about)
    }

    /// Writes a file of tensors, with what it says about itself.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn write(&self, path: &Path, about: Option<HashMap<String, String>>) -> Result<()> {
        let format = |reason: String| Error::Format {
            path: path.to_path_buf(),
            reason,
        };
        let bytes: Vec<(&Weight, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|t| (t, t.data.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (t, bytes) in &bytes {
            let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, t.shape.clone(), bytes);
            views.push((t.name.as_str(), view.map_err(|e| format(e.to_string()))?));
        }
        let file = safetensors::serialize(views, about).map_err(|e| format(e.to_string()))?;
        std::fs::write(path, file).map_err(Error::io(path))
    }

    /// Reads `model.safetensors` of a folder and checks names and shapes against the declarations.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`], [`Error::TensorNames`] with all names at once, [`Error::ShapeMismatch`].
    pub fn load(folder: &Path, declarations: &[Declaration]) -> Result<Self> {
        Self::read(&folder.join("model.safetensors"), declarations)
    }

    /// Reads a file of tensors, whatever they are, in the order of their names.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Format`].
    pub fn read_all(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| Error::Format {
            path: path.to_path_buf(),
            reason: e.to_string(),
        })?;
        let mut declared: Vec<Declaration> = file
            .iter()
            .map(|(name, view)| Declaration {
                name: name.to_string(),
                shape: view.shape().to_vec(),
                init: Init::Constant(0.0),
            })
            .collect();
        declared.sort_by(|a, b| a.name.cmp(&b.name));
        Self::read(path, &declared)
    }

    /// Reads a file of tensors and checks names and shapes against the declarations.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn read(path: &Path, declarations: &[Declaration]) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let format = |reason: String| Error::Format {
            path: path.to_path_buf(),
            reason,
        };
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| format(e.to_string()))?;
        let names = file.names();
        let missing: Vec<String> = declarations
            .iter()
            .filter(|d| !names.contains(&d.name.as_str()))
            .map(|d| d.name.clone())
            .collect();
        let mut unexpected: Vec<String> = names
            .iter()
            .filter(|n| !declarations.iter().any(|d| d.name == **n))
            .map(ToString::to_string)
            .collect();
        unexpected.sort();
        if !missing.is_empty() || !unexpected.is_empty() {
            return Err(Error::TensorNames { missing, unexpected });
        }
        let mut tensors = Vec::with_capacity(declarations.len());
        for d in declarations {
            let view = file.tensor(&d.name).map_err(|e| format(e.to_string()))?;
            if view.shape() != d.shape {
                return Err(Error::shape(&d.name, &d.shape, view.shape()));
            }
            if view.dtype() != safetensors::Dtype::F32 {
                return Err(format(format!("{} is {:?}, not F32", d.name, view.dtype())));
            }
            let (numbers, _) = view.data().as_chunks::<4>();
            let data = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
            tensors.push(Weight {
                name: d.name.clone(),
                shape: d.shape.clone(),
                data,
            });
        }
        Ok(Self::from_tensors(tensors))
    }
}

/// Reads a model folder's `config.json`.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] with the parser's message.
pub fn load_config<C: serde::de::DeserializeOwned>(folder: &Path) -> Result<C> {
    load_json(&folder.join("config.json"))
}

/// Reads a JSON file.
pub(crate) fn load_json<C: serde::de::DeserializeOwned>(path: &Path) -> Result<C> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text).map_err(|e| Error::Format {
        path: path.to_path_buf(),
        reason: e.to_string(),
    })
}
