//! A look into an artifact without a statement: the first rows of a table, the tensors of a model, the files of any other
//! folder.

use sluice_engine::Result;
use sluice_engine::store::Store;
use sluice_engine::table::first_rows;

use crate::columns::Columns;
use crate::folder::tensors;
use crate::output::{Grid, Show, grid};

/// The first rows of an artifact. Content is not compared with its digest.
///
/// # Errors
///
/// The artifact is not in the store, or damaged.
pub fn head(store: &Store, digest: &str, show: Show) -> Result<Grid> {
    let (manifest, paths) = store.look(digest)?;
    let batch = if manifest.layout == "table" {
        first_rows(&paths, show.rows.saturating_add(1))?
    } else {
        let names: Vec<String> = manifest.files.iter().map(|file| file.name.clone()).collect();
        let tensors = tensors(&store.object(digest), &names)?;
        match tensors.is_empty() {
            false => Columns::of(&tensors)
                .text("tensor", |tensor| Some(&tensor.name))
                .text("dtype", |tensor| Some(&tensor.dtype))
                .text("shape", |tensor| Some(tensor.shape()))
                .count("parameters", |tensor| Some(tensor.parameters()))
                .text("file", |tensor| Some(&tensor.file))
                .batch(),
            true => Columns::of(&manifest.files)
                .text("file", |file| Some(&file.name))
                .count("bytes", |file| Some(file.bytes))
                .batch(),
        }
    };
    grid(&batch.schema(), std::iter::once(Ok(batch)), show)
}
