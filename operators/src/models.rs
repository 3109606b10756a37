//! Between tables and models: semantic ids as a trie, histories as codes, errors of models as errors of the house.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use candle_core::Device;
use sluice_engine::operator::{Binding, Context, Determinism};
use sluice_engine::table::{Shape, Table};
use sluice_engine::{Error, Result};
use sluice_gpu::device;
use sluice_gpu::frozen::Frozen;
use sluice_gpu::ops::Stock;
use sluice_gpu::samples::Ragged;
use sluice_gpu::tiger::ItemVectors;
use sluice_gpu::trie::Trie;
use sluice_gpu::weights::Weights;

use crate::schema::{self, CODEBOOK_SIZES, ITEM_ID, SEMANTIC_ID, SEQUENCE, USER_ID};

/// How close two forward passes on a GPU are taken to be. Declared from the width of f32, not measured.
pub const FORWARD_TOLERANCE: f64 = 1e-4;

/// The same for weights after many steps, each of which amplifies the differences of those before.
pub const TRAINING_TOLERANCE: f64 = 1e-2;

/// The same for scores of a forward pass whose products are bf16: of each of them eight bits are kept.
pub const ROUNDED_TOLERANCE: f64 = 5e-2;

/// A catalogue of semantic ids: items in table order, their codes, the size of every level, the trie.
pub struct SemanticIds {
    /// Item ids in natural order; the trie's item indices point here.
    pub items: Vec<String>,
    /// Codes, row-major.
    pub codes: Vec<u16>,
    /// Codes per item.
    pub levels: usize,
    /// Entries of every level: as declared, and for a collision level the largest code in use and one.
    pub codebook_sizes: Vec<usize>,
    /// Prefixes of all ids.
    pub trie: Trie,
    rows: HashMap<String, usize>,
}

impl SemanticIds {
    /// Reads a semantic-id table.
    pub fn read(table: &Table) -> Result<Self> {
        let batch = table.batch()?;
        let ids = schema::strings(&batch, ITEM_ID)?;
        let (raw, levels) = schema::semantic_id_codes(&batch)?;
        if ids.is_empty() {
            return Err(Error::data("empty-catalogue", "the catalogue of semantic ids is empty"));
        }
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by(|a, b| schema::natural_order(ids.value(*a), ids.value(*b)));
        let items: Vec<String> = order.iter().map(|row| ids.value(*row).to_string()).collect();
        let codes: Vec<u16> = order
            .iter()
            .flat_map(|row| &raw[row * levels..(row + 1) * levels])
            .copied()
            .collect();
        let rows: HashMap<String, usize> = items.iter().cloned().zip(0..).collect();
        if rows.len() != items.len() {
            return Err(Error::data("duplicate-item", "an item has two semantic ids"));
        }
        let schema = batch.schema();
        let field = schema.field_with_name(SEMANTIC_ID)?;
        let mut codebook_sizes: Vec<usize> = field
            .metadata()
            .get(CODEBOOK_SIZES)
            .map(|sizes| sizes.split(',').filter_map(|size| size.parse().ok()).collect())
            .unwrap_or_default();
        for level in codebook_sizes.len()..levels {
            let largest = codes.iter().skip(level).step_by(levels).max().copied().unwrap_or(0);
            codebook_sizes.push(largest as usize + 1);
        }
        let trie = Trie::new(&codes, levels).map_err(explain)?;
        Ok(SemanticIds {
            items,
            codes,
            levels,
            codebook_sizes,
            trie,
            rows,
        })
    }

    /// Codes of one item.
    pub fn of(&self, item: &str) -> Option<&[u16]> {
        self.rows
            .get(item)
            .map(|row| &self.codes[row * self.levels..(row + 1) * self.levels])
    }
}

/// The vectors of a catalogue's items, from a table of embeddings, to be injected into a model.
pub fn item_vectors(table: &Table, ids: &SemanticIds) -> Result<Arc<ItemVectors>> {
    let mut rows: HashMap<String, Vec<f32>> = HashMap::new();
    let mut dim = 0;
    for batch in table.batches()? {
        let batch = batch?;
        let (values, width) = schema::embedding_values(&batch)?;
        dim = width;
        let items = schema::strings(&batch, ITEM_ID)?;
        let vectors = values.chunks_exact(width.max(1)).map(<[f32]>::to_vec);
        rows.extend(items.iter().flatten().map(str::to_string).zip(vectors));
    }
    let without: Vec<&String> = ids.items.iter().filter(|item| !rows.contains_key(*item)).collect();
    if let Some(first) = without.first() {
        return Err(Error::data(
            "no-vector",
            format!("item \"{first}\" has a semantic id, but no vector"),
        )
        .detail(format!("{} of {} items have none", without.len(), ids.items.len()))
        .hint("connect embeddings of the whole catalogue: those that were quantized, or those of train_sasrec"));
    }
    let vectors: Vec<f32> = ids.items.iter().flat_map(|item| &rows[item]).copied().collect();
    Ok(Arc::new(ItemVectors::new(&ids.trie, &vectors, dim).map_err(explain)?))
}

/// Histories of evaluation rows as codes.
pub struct CodedHistories {
    /// User ids.
    pub users: Vec<String>,
    /// Codes of the items of each history, oldest first.
    pub histories: Ragged,
    /// Codes of the targets, row-major; empty where the target has no semantic id.
    pub targets: Vec<Vec<u16>>,
}

/// Encodes evaluation rows; a history item without a semantic id is an error that counts them.
pub fn encode_histories(table: &Table, ids: &SemanticIds) -> Result<CodedHistories> {
    let mut coded = CodedHistories {
        users: Vec::new(),
        histories: Ragged::default(),
        targets: Vec::new(),
    };
    let mut unknown: Vec<String> = Vec::new();
    for batch in table.batches()? {
        let batch = batch?;
        let users = schema::strings(&batch, USER_ID)?;
        let sequences = schema::lists(&batch, SEQUENCE)?;
        let targets = schema::strings(&batch, schema::TARGET)?;
        for row in 0..batch.num_rows() {
            let items = sequences.value(row);
            let mut codes = Vec::new();
            for item in items.as_string::<i32>().iter().flatten() {
                match ids.of(item) {
                    Some(of) => codes.extend_from_slice(of),
                    None => unknown.push(item.to_string()),
                }
            }
            coded.users.push(users.value(row).to_string());
            coded.histories.push(&codes);
            coded
                .targets
                .push(ids.of(targets.value(row)).unwrap_or_default().to_vec());
        }
    }
    match unknown.first() {
        None => Ok(coded),
        Some(first) => Err(Error::data(
            "unknown-item",
            format!("item \"{first}\" of a history has no semantic id"),
        )
        .detail(format!("{} history items have none", unknown.len()))
        .hint("quantize the items that occur in the interactions: see operator join_items")),
    }
}

/// A user id as the number that user tokens are hashed from: the same on every machine.
pub fn user_number(user: &str) -> u64 {
    sluice_engine::random::Random::new(0, "user", user).key()
}

/// Requires a model folder of a layout, as the operator `from` makes it.
pub fn require_model(binding: &Binding, port: &str, wanted: &str, from: &str) {
    match binding.shape(port) {
        Shape::Folder(layout) if layout != wanted => binding.input_problem(
            port,
            Error::user("wrong-model", format!("this is a {layout} model, not {wanted}")),
        ),
        Shape::Table(_) => binding.input_problem(
            port,
            Error::user(
                "wrong-input",
                format!("input \"{port}\" wants a model, this is a table"),
            )
            .hint(format!("name the stage of {from}, without a port")),
        ),
        _ => {}
    }
}

/// Complains of a name that no device has. Whether the machine has the device is known only when the stage runs.
pub fn check_device(binding: &Binding, device: &str) {
    let numbered = |index: &str| index.parse::<usize>().is_ok();
    if !matches!(device, "cpu" | "auto" | "cuda") && !device.strip_prefix("cuda:").is_some_and(numbered) {
        let error = Error::user("bad-value", format!("no device is called \"{device}\""));
        binding.problem("device", error.hint("set device to cpu, cuda, cuda:N or auto"));
    }
}

/// The device of a resource field, which the notes tell. `auto` takes the first GPU that the stage was given, else a GPU
/// if there is one.
pub fn device(context: &Context, name: &str) -> Result<Device> {
    Ok(devices(context, name, 1)?.swap_remove(0))
}

/// The same for work of so many parts that several devices share: `auto` takes a GPU for each, as far as the stage was
/// given them.
pub fn devices(context: &Context, name: &str, parts: usize) -> Result<Vec<Device>> {
    let given = match name == "auto" && candle_core::utils::cuda_is_available() {
        true => &context.gpus[..context.gpus.len().min(parts)],
        false => &[],
    };
    let open = |name: &str| device::device(name).map_err(explain);
    let devices = match given {
        [] => vec![open(name)?],
        ids => ids
            .iter()
            .map(|id| open(&format!("cuda:{id}")))
            .collect::<Result<_>>()?,
    };
    let names: Vec<String> = devices.iter().map(device::description).collect();
    context.note("device", names.join(", "));
    Ok(devices)
}

/// Weights that are only read on a GPU; none for the CPU, whose kernels read them where they are.
pub fn stock(weights: &Weights, device: &Device) -> Result<Option<Stock>> {
    if device.is_cpu() {
        return Ok(None);
    }
    let frozen = Frozen::from(weights.clone());
    // As frozen weights they take no gradient, for which whatever is computed would have to be kept.
    let stock = Stock::new(&Weights::default(), device).and_then(|stock| stock.with_frozen(Some(&frozen)));
    stock.map(Some).map_err(explain)
}

/// How far two results of a model agree. On the CPU every sum has a fixed order; on another device sums run in the
/// order in which threads come, and results are only close. Near ties may then be ranked either way.
pub fn determinism(device: &str, tolerance: f64) -> Determinism {
    match device::device(device) {
        // A device that is not there fails the stage, so nothing is promised of it.
        Ok(device) if device.is_cpu() => Determinism::Exact,
        _ => Determinism::Tolerance(tolerance),
    }
}

/// An error of a model as an error of the house.
pub fn explain(error: sluice_gpu::error::Error) -> Error {
    use sluice_gpu::error::Error as Gpu;
    let message = error.to_string();
    match error {
        Gpu::InvalidConfig { .. } => Error::user("bad-value", message),
        Gpu::InvalidData(_) | Gpu::ShapeMismatch { .. } | Gpu::Format { .. } | Gpu::TensorNames { .. } => {
            Error::data("bad-model-data", message)
        }
        Gpu::NotFinite { .. } => Error::data("diverged", message).hint("lower learning_rate, or set clip_norm"),
        Gpu::Io { path, source } => Error::io("use", &path, &source),
        Gpu::Device { .. } => Error::device("no-device", message).hint("device: cpu works everywhere"),
        Gpu::Peer(_) => Error::device("lost-peer", message),
        Gpu::Interrupted => Error::interrupted(),
        Gpu::Candle(_) => Error::device("device", message),
    }
}

/// Whether a loop should break because the run was asked to stop.
pub fn stopped(context: &Context) -> std::ops::ControlFlow<()> {
    if context.cancel.is_cancelled() {
        std::ops::ControlFlow::Break(())
    } else {
        std::ops::ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sluice_engine::operator::Cancel;

    use super::*;

    #[test]
    fn the_cpu_is_exact_and_other_devices_are_close() {
        let exact = |device: &str| determinism(device, 0.5) == Determinism::Exact;
        assert!(exact("cpu"));
        assert_eq!(determinism("cuda:63", 0.5), Determinism::Tolerance(0.5));
        assert_eq!(exact("auto"), sluice_gpu::device::device("auto").unwrap().is_cpu());
    }

    #[test]
    fn names_of_devices_are_checked_before_anything_runs() {
        let problems = |device: &str| {
            let inputs = Default::default();
            let binding = Binding::new(Path::new("."), &inputs);
            check_device(&binding, device);
            binding.into_problems()
        };
        for good in ["cpu", "auto", "cuda", "cuda:0", "cuda:63"] {
            assert!(problems(good).is_empty(), "{good}");
        }
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CPU"] {
            let found = problems(bad);
            assert_eq!(found[0].field.as_deref(), Some("device"), "{bad}");
            assert_eq!(found[0].error.message, format!("no device is called \"{bad}\""));
        }
    }

    #[test]
    fn a_given_gpu_is_for_auto_alone() {
        let mut context = Context::new("op", 1, Path::new("."), Path::new("."), &Cancel::default());
        context.gpus = vec![63];
        assert!(device(&context, "cpu").unwrap().is_cpu());
        // Without CUDA in the build there is none to take; with it, the one that was given or none.
        assert_eq!(
            device(&context, "auto").is_ok(),
            !candle_core::utils::cuda_is_available()
        );
    }
}
