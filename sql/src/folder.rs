//! Artifacts that are folders, as tables: the tensors of a model, or the files of any other folder.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::datasource::MemTable;
use serde_json::Value;
use sluice_engine::store::Store;
use sluice_engine::{Error, Result};

use crate::columns::Columns;
use crate::failure::explain;
use crate::scope::Port;

/// A tensor of a `safetensors` file.
pub(crate) struct Tensor {
    pub(crate) file: String,
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    path: PathBuf,
    /// Where its bytes are.
    start: u64,
    end: u64,
}

impl Tensor {
    pub(crate) fn parameters(&self) -> u64 {
        self.shape.iter().product()
    }

    pub(crate) fn shape(&self) -> String {
        let sizes: Vec<String> = self.shape.iter().map(u64::to_string).collect();
        format!("[{}]", sizes.join(", "))
    }

    /// The Euclidean norm of its values; `None` for types that are not read here.
    pub(crate) fn norm(&self) -> Option<f64> {
        let width = match self.dtype.as_str() {
            "F64" => 8,
            "F32" => 4,
            "F16" | "BF16" => 2,
            _ => return None,
        };
        let mut file = File::open(&self.path).ok()?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(self.start)).ok()?;
        let mut left = self.end - self.start;
        let mut block = vec![0u8; 1 << 20];
        let mut sum = 0.0f64;
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            file.read_exact(&mut block[..size]).ok()?;
            for bytes in block[..size].chunks_exact(width) {
                let value = match *bytes {
                    [a, b] if self.dtype == "F16" => f64::from(half::f16::from_le_bytes([a, b])),
                    [a, b] => f64::from(half::bf16::from_le_bytes([a, b])),
                    [a, b, c, d] => f64::from(f32::from_le_bytes([a, b, c, d])),
                    _ => f64::from_le_bytes(bytes.try_into().ok()?),
                };
                sum += value * value;
            }
            left -= size as u64;
        }
        Some(sum.sqrt())
    }
}

/// The tensors of every `safetensors` file of a folder, in order of file and name.
pub(crate) fn tensors(folder: &Path, files: &[String]) -> Result<Vec<Tensor>> {
    let mut tensors = Vec::new();
    for file in files.iter().filter(|file| file.ends_with(".safetensors")) {
        let path = folder.join(file);
        let failed = |error: std::io::Error| Error::io("read", &path, &error);
        let mut reader = File::open(&path).map_err(failed)?;
        let mut length = [0; 8];
        reader.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        let damaged = || {
            Error::data(
                "damaged-artifact",
                format!("\"{}\" is no safetensors file", path.display()),
            )
        };
        if length > reader.metadata().map_err(failed)?.len() {
            return Err(damaged());
        }
        let mut header = vec![0; usize::try_from(length).map_err(|_| damaged())?];
        reader.read_exact(&mut header).map_err(failed)?;
        let header: serde_json::Map<String, Value> = serde_json::from_slice(&header).map_err(|_| damaged())?;
        for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
            let numbers = |value: &Value| -> Option<Vec<u64>> { value.as_array()?.iter().map(Value::as_u64).collect() };
            let offsets = numbers(&entry["data_offsets"])
                .filter(|offsets| offsets.len() == 2)
                .ok_or_else(damaged)?;
            tensors.push(Tensor {
                file: file.clone(),
                name,
                dtype: entry["dtype"].as_str().unwrap_or_default().to_string(),
                shape: numbers(&entry["shape"]).ok_or_else(damaged)?,
                path: path.clone(),
                start: 8 + length + offsets[0],
                end: 8 + length + offsets[1],
            });
        }
    }
    tensors.sort_by(|a, b| (&a.file, &a.name).cmp(&(&b.file, &b.name)));
    Ok(tensors)
}

/// A folder's tensors if it has any, else its files.
pub(crate) fn table(store: &Store, port: &Port, digests: &[&str]) -> Result<Arc<dyn TableProvider>> {
    let mut tensors_of: Vec<(String, Tensor)> = Vec::new();
    let mut files_of = Vec::new();
    for ((instance, _), digest) in port.instances.iter().zip(digests) {
        let (manifest, _) = store.look(digest)?;
        let names: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
        let found = tensors(&store.object(digest), &names)?;
        tensors_of.extend(found.into_iter().map(|tensor| (instance.name.clone(), tensor)));
        files_of.extend(manifest.files.into_iter().map(|file| (instance.name.clone(), file)));
    }
    let batch = match tensors_of.is_empty() {
        false => Columns::of(&tensors_of)
            .text("stage", |(stage, _)| Some(stage))
            .text("file", |(_, tensor)| Some(&tensor.file))
            .text("tensor", |(_, tensor)| Some(&tensor.name))
            .text("dtype", |(_, tensor)| Some(&tensor.dtype))
            .text("shape", |(_, tensor)| Some(tensor.shape()))
            .count("parameters", |(_, tensor)| Some(tensor.parameters()))
            .number("norm", |(_, tensor)| tensor.norm())
            .batch(),
        true => Columns::of(&files_of)
            .text("stage", |(stage, _)| Some(stage))
            .text("file", |(_, file)| Some(&file.name))
            .count("bytes", |(_, file)| Some(file.bytes))
            .text("digest", |(_, file)| Some(&file.digest))
            .batch(),
    };
    memory(batch)
}

/// A batch as a table.
pub(crate) fn memory(batch: RecordBatch) -> Result<Arc<dyn TableProvider>> {
    let table = MemTable::try_new(batch.schema(), vec![vec![batch]]).map_err(|error| explain(error, ""))?;
    Ok(Arc::new(table))
}
