//! Stages that run, before they are published: the parts that are finished so far. Readers open finished files and take
//! no lock, so the run does not notice them.

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::catalog::TableProvider;
use sluice_engine::Result;
use sluice_engine::operator::OUT;
use sluice_engine::store::Store;
use sluice_engine::table::{rows_of_part, schema_of_part};

use crate::parts::{Part, PartsTable};
use crate::scope::Scope;

/// The finished parts of a port. `None` if no part is finished, or the stage does not run.
pub(crate) fn table(
    store: &Store,
    scope: &Scope,
    stage: &str,
    port: Option<&str>,
) -> Result<Option<Arc<dyn TableProvider>>> {
    let instances = scope.find(stage).unwrap_or_default();
    for instance in instances {
        for attempt in store.attempts(&scope.run.run, &instance.name) {
            let paths = finished(&attempt.join(port.unwrap_or(OUT)));
            let Some(first) = paths.first() else { continue };
            let schema = schema_of_part(&first.path)?;
            return Ok(Some(Arc::new(PartsTable::viewed(&schema, Vec::new(), paths))));
        }
    }
    Ok(None)
}

/// Parts whose footer is written. The others are passed over: they are still growing.
fn finished(folder: &PathBuf) -> Vec<Part> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    paths.sort();
    let part = |path: PathBuf| {
        let rows = rows_of_part(&path).ok()?;
        let bytes = path.metadata().ok()?.len();
        Some(Part {
            path,
            bytes,
            rows,
            constants: Vec::new(),
        })
    };
    paths.into_iter().filter_map(part).collect()
}
