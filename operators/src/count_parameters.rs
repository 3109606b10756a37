//! Counts the parameters of a model by part, from its own files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_engine::operator::{Binding, Bound, Context, Input, Notes, OUT, Operator};
use sluice_engine::table::{Shape, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::sasrec::SasrecConfig;
use sluice_gpu::tiger::TigerConfig;
use sluice_gpu::weights::load_config;

const MODEL: &str = "model";
/// Name of the part.
pub const PART: &str = "part";
/// Number of parameters.
pub const PARAMETERS: &str = "parameters";
/// Says which file holds which tensor, where weights are spread over several.
const INDEX: &str = "model.safetensors.index.json";
/// No header of a `safetensors` file is longer, in bytes.
const LONGEST_HEADER: u64 = 100 << 20;

/// Counts the parameters of a model by part.
///
/// # In
/// `model` (optional): a folder with `safetensors` files: of `train_tiger`, `train_sasrec`, the codebooks of a quantizer,
/// or any other. Without it, `checkpoint` says where the model is. Of a folder with a `model.safetensors.index.json`
/// only the files that it names are read.
///
/// # Out
/// `out`: rows `part`, `parameters`. Of TIGER: `embeddings`, `encoder`, `decoder`, `heads`; of SASRec: `items`,
/// `positions`, `linear`, `norms`; of any other model a part is what stands before the first dot of a tensor's name.
///
/// # Source
/// Ours: arXiv 2509.25522 names sizes that no single rule of counting gives, so counts are made of what was trained.
///
/// # Deviates
/// Nothing. Gathered over a sweep (`counts[*]`) this is what `fit_scaling_law` takes for sizes.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CountParameters {
    /// A folder in Hugging Face layout below the data root, such as an encoder's; instead of `model`.
    pub checkpoint: Option<String>,
}

impl Operator for CountParameters {
    const NAME: &'static str = "count_parameters";
    const VERSION: u32 = 2;
    const INPUTS: &'static [Input] = &[Input::optional(MODEL, "a folder with safetensors files")];

    fn bind(&self, binding: &Binding) -> Bound {
        if let Shape::Table(_) = binding.shape(MODEL) {
            let error = Error::user("wrong-input", "input \"model\" wants a model, this is a table");
            binding.input_problem(MODEL, error.hint("name the stage that trained it, without a port"));
        }
        let mut files = Vec::new();
        match (&self.checkpoint, binding.has(MODEL)) {
            (Some(checkpoint), false) => {
                let folder = binding.existing("checkpoint", checkpoint);
                match weight_files(&folder) {
                    Err(error) => binding.problem("checkpoint", error),
                    Ok(found) if found.is_empty() && folder.exists() => {
                        let message = format!("no safetensors files in \"{}\"", folder.display());
                        binding.problem("checkpoint", Error::user("file-not-found", message));
                    }
                    Ok(found) => files = found,
                }
                files.extend(Some(folder.join(INDEX)).filter(|index| index.exists()));
            }
            (None, true) => {}
            (Some(_), true) => binding.bad_value("checkpoint", "either \"checkpoint\" or input \"model\", not both"),
            (None, false) => {
                let error = Error::user("missing-input", "there is no model to count");
                binding.problem(
                    "checkpoint",
                    error.hint("connect input \"model\", or say \"checkpoint\""),
                );
            }
        }
        Bound::whole().out(Shape::table(fields())).files(files)
    }

    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables> {
        let folder = match &self.checkpoint {
            Some(checkpoint) => context.path(checkpoint),
            None => inputs.folder(MODEL)?.to_path_buf(),
        };
        let parts = count(&folder)?;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(parts.iter().map(|(part, _)| part))),
            Arc::new(UInt64Array::from_iter_values(parts.iter().map(|(_, count)| *count))),
        ];
        let schema = Arc::new(Schema::new(fields()));
        Ok(Tables::out(RecordBatch::try_new(schema, columns)?))
    }

    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, outputs: &Tables) -> Result<Notes> {
        let batch = outputs.batch(OUT)?;
        let counts = crate::schema::numbers::<arrow::datatypes::UInt64Type>(&batch, PARAMETERS)?;
        let total: u64 = counts.values().iter().sum();
        Ok(Notes::from_iter([("counted".to_string(), total.into())]))
    }
}

/// Fields of a table of counts.
pub fn fields() -> Vec<Field> {
    vec![
        Field::new(PART, DataType::Utf8, false),
        Field::new(PARAMETERS, DataType::UInt64, false),
    ]
}

/// Parts and their counts.
fn count(folder: &Path) -> Result<Vec<(String, u64)>> {
    // Configs refuse fields that they do not know, so a model is read as what it is.
    let pairs = |pairs: &[(&str, usize)]| {
        pairs
            .iter()
            .map(|(part, count)| (part.to_string(), *count as u64))
            .collect()
    };
    if let Ok(config) = load_config::<TigerConfig>(folder)
        && !config.codebook_sizes.is_empty()
    {
        let of = config.parameters_by_part();
        return Ok(pairs(&[
            ("embeddings", of.embeddings),
            ("encoder", of.encoder),
            ("decoder", of.decoder),
            ("heads", of.heads),
        ]));
    }
    if let Ok(config) = load_config::<SasrecConfig>(folder)
        && config.items > 0
    {
        let of = config.parameters_by_part();
        return Ok(pairs(&[
            ("items", of.items),
            ("positions", of.positions),
            ("linear", of.linear),
            ("norms", of.norms),
        ]));
    }
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    for file in weight_files(folder)? {
        for (name, elements) in tensors(&file)? {
            let part = name.split('.').next().unwrap_or(&name).to_string();
            *parts.entry(part).or_default() += elements;
        }
    }
    match parts.is_empty() {
        true => Err(Error::data(
            "no-weights",
            format!("no safetensors files in \"{}\"", folder.display()),
        )),
        false => Ok(parts.into_iter().collect()),
    }
}

/// The `safetensors` files of a folder, in order of name: those that its index names, or else all.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join(INDEX);
    if index.exists() {
        return indexed_files(folder, &index);
    }
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    Ok(files)
}

fn indexed_files(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let malformed = || {
        let message = format!("\"{}\" is no index of safetensors files", index.display());
        Error::data("bad-weights", message)
    };
    let text = std::fs::read(index).map_err(|error| Error::io("read", index, &error))?;
    let read: Value = serde_json::from_slice(&text).map_err(|_| malformed())?;
    let named = read["weight_map"].as_object().ok_or_else(malformed)?;
    let files: Option<BTreeSet<PathBuf>> = named.values().map(|file| Some(folder.join(file.as_str()?))).collect();
    let files = files.ok_or_else(malformed)?;
    match files.iter().find(|file| !file.exists()) {
        None => Ok(files.into_iter().collect()),
        Some(file) => Err(
            Error::user("file-not-found", format!("no such file: \"{}\"", file.display()))
                .detail(format!("\"{}\" names it", index.display())),
        ),
    }
}

/// Names and numbers of elements of a file's tensors, by its header.
fn tensors(path: &Path) -> Result<Vec<(String, u64)>> {
    let failed = |error: std::io::Error| Error::io("read", path, &error);
    let malformed = || Error::data("bad-weights", format!("\"{}\" is no safetensors file", path.display()));
    let mut file = File::open(path).map_err(failed)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| malformed())?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER {
        return Err(malformed());
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(|_| malformed())?;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&header).map_err(|_| malformed())?;
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    tensors
        .map(|(name, about)| {
            let shape = about["shape"].as_array().ok_or_else(malformed)?;
            let sizes: Option<Vec<u64>> = shape.iter().map(Value::as_u64).collect();
            Ok((name, sizes.ok_or_else(malformed)?.iter().product()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use sluice_engine::harness::Harness;
    use sluice_engine::table::Table;
    use sluice_engine::text;
    use sluice_gpu::sasrec::Sasrec;
    use sluice_gpu::tiger::Tiger;

    use super::*;

    fn counted(folder: &Path) -> Result<String> {
        let out = Harness::default().run(
            &CountParameters::default(),
            &[(MODEL, Table::Folder(folder.to_path_buf()))],
        )?;
        text::render(&out.batch(OUT)?)
    }

    #[test]
    fn models_of_the_house_are_counted_by_their_parts() {
        let folder = tempfile::tempdir().unwrap();
        let config = TigerConfig {
            codebook_sizes: vec![4, 4],
            d_model: 8,
            layers: 1,
            d_ff: 16,
            ..TigerConfig::default()
        };
        Tiger::init(&config, 1).unwrap().save(folder.path()).unwrap();
        let parts = config.parameters_by_part();
        let told = counted(folder.path()).unwrap();
        assert!(told.contains(&format!("encoder     {}", parts.encoder)), "{told}");
        assert_eq!(told.lines().count(), 5);
        let total: u64 = told
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap())
            .sum();
        let held: u64 = tensors(&folder.path().join("model.safetensors"))
            .unwrap()
            .iter()
            .map(|(_, n)| n)
            .sum();
        assert_eq!((total, held), (parts.total() as u64, parts.total() as u64));
        let config = SasrecConfig {
            items: 9,
            d_model: 8,
            heads: 2,
            layers: 2,
            ..SasrecConfig::default()
        };
        Sasrec::init(&config, 1).unwrap().save(folder.path()).unwrap();
        let told = counted(folder.path()).unwrap();
        assert!(told.contains(&format!("linear     {}", 12 * 2 * 64)), "{told}");
        // Without a config that is known: by the names of the tensors.
        std::fs::remove_file(folder.path().join("config.json")).unwrap();
        let told = counted(folder.path()).unwrap();
        assert!(told.contains("items") && told.contains("blocks"), "{told}");
    }

    /// A file of one tensor.
    fn write(folder: &Path, file: &str, (tensor, elements): (&str, u64)) {
        let bytes = 4 * elements;
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[{elements}],"data_offsets":[0,{bytes}]}}}}"#);
        let mut content = (header.len() as u64).to_le_bytes().to_vec();
        content.extend(header.bytes());
        content.resize(content.len() + bytes as usize, 0);
        std::fs::write(folder.join(file), content).unwrap();
    }

    #[test]
    fn of_an_index_the_files_count_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        write(folder, "model-00001-of-00002.safetensors", ("embed.weight", 40));
        write(folder, "model-00002-of-00002.safetensors", ("layer.weight", 16));
        write(folder, "consolidated.safetensors", ("embed.weight", 56));
        assert_eq!(counted(folder).unwrap(), "part   parameters\nembed  96\nlayer  16\n");
        let index = |second: &str| {
            let map = format!(r#"{{"embed.weight": "model-00001-of-00002.safetensors", "layer.weight": {second}}}"#);
            std::fs::write(folder.join(INDEX), format!(r#"{{"weight_map": {map}}}"#)).unwrap();
            counted(folder)
        };
        assert_eq!(
            index(r#""model-00002-of-00002.safetensors""#).unwrap(),
            "part   parameters\nembed  40\nlayer  16\n"
        );
        assert_eq!(index(r#""lost.safetensors""#).unwrap_err().code, "file-not-found");
        assert_eq!(index("2").unwrap_err().code, "bad-weights");
        let checkpoint = CountParameters {
            checkpoint: Some(folder.display().to_string()),
        };
        assert_eq!(
            Harness::default().run(&checkpoint, &[]).unwrap_err().code,
            "bad-weights"
        );
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(counted(folder.path()).unwrap_err().code, "no-weights");
        std::fs::write(folder.path().join("model.safetensors"), [255; 20]).unwrap();
        assert_eq!(counted(folder.path()).unwrap_err().code, "bad-weights");
        let none = Harness::default().run(&CountParameters::default(), &[]).unwrap_err();
        assert_eq!(none.code, "missing-input");
    }
}
