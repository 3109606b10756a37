//! What all quantizers have in common: the embeddings they read, the tables they put out, what becomes of collisions.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, FixedSizeListArray, Float64Array, RecordBatch, StringArray, UInt16Array, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Float64Type, Schema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sluice_engine::operator::{Binding, Bound, Context, Notes, OUT};
use sluice_engine::table::{Shape, Table, Tables};
use sluice_engine::{Error, Result};
use sluice_gpu::collisions::{self, CollisionError, Distances};
use sluice_gpu::residual::LevelReport;
use sluice_gpu::weights::Weights;

use crate::models;
use crate::schema::{self, EMBEDDING, ITEM_ID};

/// The embeddings to quantize.
pub(crate) const INPUT: &str = "input";
/// What each level did.
pub(crate) const LEVELS: &str = "levels";
/// The codebooks, and what else the quantizer has learned.
pub(crate) const CODEBOOKS: &str = "codebooks";

/// What becomes of items that share all their codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Collisions {
    /// A last level tells them apart: 0 for a unique id, 1..n for n items that collide, in table order (GRID).
    #[default]
    CollisionCode,
    /// The first item in table order keeps its codes. Every other one moves to the nearest free entry of its last level
    /// or, where that has none, to the next best entry of the level before, and so on upwards.
    NearestFree,
    /// They share their id.
    None,
}

impl Collisions {
    fn has_level(self) -> bool {
        self == Collisions::CollisionCode
    }
}

/// Asks for a column of embeddings.
pub(crate) fn require_embeddings(binding: &Binding, port: &str) {
    binding.require(port, &[(ITEM_ID, DataType::Utf8)]);
    let Some(schema) = binding.schema(port) else { return };
    match schema.field_with_name(EMBEDDING).map(|field| field.data_type().clone()) {
        Ok(DataType::FixedSizeList(item, _)) if item.data_type() == &DataType::Float32 => {}
        Ok(other) => binding.input_problem(
            port,
            Error::user(
                "wrong-type",
                format!("column \"{EMBEDDING}\" is {other}, not a list of Float32 of fixed size"),
            ),
        ),
        Err(_) => binding.missing_column(port, EMBEDDING),
    }
}

/// Complains of a k-means++ that has no row to draw from.
pub(crate) fn check_init_rows(binding: &Binding, init_rows: Option<u32>) {
    if init_rows == Some(0) {
        binding.bad_value("init_rows", "init_rows must be positive");
    }
}

/// What to do where k-means finds fewer distinct rows than entries.
pub(crate) fn too_few_hint(init_rows: Option<u32>, items: usize) -> &'static str {
    match init_rows.is_some_and(|rows| (rows as usize) < items) {
        true => "lower codebook_size, raise init_rows, or set allow_fewer_items: true",
        false => "lower codebook_size, or set allow_fewer_items: true",
    }
}

/// The levels of a quantizer: so many codebooks of so many entries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Levels {
    pub(crate) num_codebooks: u32,
    pub(crate) codebook_size: u32,
    pub(crate) collisions: Collisions,
}

impl Levels {
    /// Checks the numbers and declares the ports `out`, `levels` and `codebooks`.
    pub(crate) fn bind(self, binding: &Binding) -> Bound {
        require_embeddings(binding, INPUT);
        if !(1..=16).contains(&self.num_codebooks) {
            binding.bad_value(
                "num_codebooks",
                format!("num_codebooks is {}, not in 1..=16", self.num_codebooks),
            );
        }
        if !(1..=65_535).contains(&self.codebook_size) {
            binding.bad_value(
                "codebook_size",
                format!("codebook_size is {}, not in 1..=65535", self.codebook_size),
            );
        }
        Bound::whole()
            .out(Shape::table(schema::semantic_ids(
                &self.sizes(),
                self.collisions.has_level(),
            )))
            .output(LEVELS, Shape::table(level_fields()))
            .output(CODEBOOKS, Shape::Folder("codebooks".into()))
    }

    /// Entries of every codebook.
    pub(crate) fn sizes(self) -> Vec<usize> {
        vec![self.codebook_size as usize; self.num_codebooks as usize]
    }

    /// The tables of a quantizer that gave every item the codes [N, C], collisions settled.
    pub(crate) fn tables(
        self,
        items: &StringArray,
        mut codes_nc: Vec<u32>,
        distances: &impl Distances,
        reports: &[LevelReport],
    ) -> Result<Tables> {
        let sizes = self.sizes();
        let mut rows: Vec<Vec<u32>> = Vec::with_capacity(items.len());
        match self.collisions {
            Collisions::CollisionCode => {
                let codes = collisions::collision_codes(&codes_nc, sizes.len()).map_err(explain_collisions)?;
                let ids = codes_nc.chunks_exact(sizes.len()).zip(&codes.codes_n);
                rows.extend(ids.map(|(id, code)| id.iter().copied().chain([*code]).collect::<Vec<u32>>()));
            }
            Collisions::NearestFree => {
                collisions::nearest_free(&mut codes_nc, distances).map_err(explain_collisions)?;
                rows.extend(codes_nc.chunks_exact(sizes.len()).map(<[u32]>::to_vec));
            }
            Collisions::None => rows.extend(codes_nc.chunks_exact(sizes.len()).map(<[u32]>::to_vec)),
        }
        let width = sizes.len() + usize::from(self.collisions.has_level());
        let flat = rows.into_iter().flatten().map(|code| {
            u16::try_from(code)
                .map_err(|_| Error::data("too-many-collisions", format!("collision code {code} is above 65535")))
        });
        let flat = UInt16Array::from(flat.collect::<Result<Vec<u16>>>()?);
        let field = Arc::new(Field::new_list_field(DataType::UInt16, false));
        let ids = FixedSizeListArray::try_new(field, width as i32, Arc::new(flat), None)?;
        let schema = Schema::new(schema::semantic_ids(&sizes, self.collisions.has_level()));
        let columns: Vec<ArrayRef> = vec![Arc::new(items.clone()), Arc::new(ids)];
        let out = RecordBatch::try_new(Arc::new(schema), columns)?;
        Ok(Tables::out(out).with(LEVELS, Table::new(level_table(reports)?)))
    }
}

/// Item ids, embeddings [N, D], and D, of a table that has rows and no NaN.
pub(crate) fn read_embeddings(batch: &RecordBatch) -> Result<(&StringArray, &[f32], usize)> {
    let items = schema::strings(batch, ITEM_ID)?;
    let (rows, width) = schema::embedding_values(batch)?;
    if items.is_empty() {
        return Err(Error::data("empty-catalogue", "there is no item to quantize"));
    }
    if let Some(at) = rows.iter().position(|value| !value.is_finite()) {
        let (row, dimension) = (at / width, at % width);
        let (item, value) = (items.value(row), rows[at]);
        let message = format!("the embedding of item \"{item}\" is {value} in dimension {dimension}");
        return Err(Error::data("not-a-number", message).hint("look at the stage that made the embeddings"));
    }
    Ok((items, rows, width))
}

/// Writes the port `codebooks`: tensors, and a config that says what they are.
pub(crate) fn save_codebooks(context: &Context, weights: &Weights, config: &impl Serialize) -> Result<Table> {
    let folder = context.folder(CODEBOOKS)?;
    weights.save(&folder, config).map_err(models::explain)?;
    Ok(Table::Folder(folder))
}

/// An error of the numbers of a quantizer.
pub(crate) fn failed(error: impl std::fmt::Display, items: usize, levels: Levels) -> Error {
    Error::data("quantize", error.to_string())
        .detail(format!("{items} items, {} entries a level", levels.codebook_size))
}

/// How many items there are and what the last level left over.
pub(crate) fn notes(outputs: &Tables) -> Result<Notes> {
    let levels = outputs.batch(LEVELS)?;
    let mse = schema::numbers::<Float64Type>(&levels, "mse")?;
    let last = mse.iter().flatten().last().unwrap_or(f64::NAN);
    Ok(BTreeMap::from([
        ("items".to_string(), outputs.table(OUT)?.rows()?.into()),
        ("mse".to_string(), format!("{last:.4}").into()),
    ])
    .into_iter()
    .collect())
}

fn explain_collisions(error: CollisionError) -> Error {
    match error {
        CollisionError::Codes { .. } => Error::internal(error.to_string()),
        CollisionError::TooManyRows { .. } => Error::data("too-many-items", error.to_string())
            .hint("raise codebook_size or num_codebooks, or set collisions: collision_code"),
    }
}

fn level_fields() -> Vec<Field> {
    vec![
        Field::new("level", DataType::UInt32, false),
        Field::new("input_mse", DataType::Float64, false),
        Field::new("mse", DataType::Float64, false),
        Field::new("iterations", DataType::UInt32, false),
        Field::new("converged", DataType::Boolean, false),
        Field::new("used", DataType::UInt32, false),
    ]
}

fn level_table(reports: &[LevelReport]) -> Result<RecordBatch> {
    let floats = |of: fn(&LevelReport) -> f64| Arc::new(Float64Array::from_iter_values(reports.iter().map(of)));
    let counts = |of: fn(&LevelReport) -> usize| {
        let counts = reports.iter().map(|report| of(report) as u32);
        Arc::new(UInt32Array::from_iter_values(counts))
    };
    let converged = reports.iter().map(|report| Some(report.converged));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt32Array::from_iter_values(0..reports.len() as u32)),
        floats(|report| report.input_mse),
        floats(|report| report.mse),
        counts(|report| report.iterations),
        Arc::new(BooleanArray::from_iter(converged)),
        counts(|report| report.used),
    ];
    Ok(RecordBatch::try_new(Arc::new(Schema::new(level_fields())), columns)?)
}
