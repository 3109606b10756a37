//! Where checkpoints in Hugging Face layout are: below the data root, or in the hub's cache.

use std::path::{Path, PathBuf};

use sluice_engine::Error;

/// The folder of a checkpoint: as given, or the newest snapshot in the hub's cache.
pub fn find(path: &Path, name: &str) -> Option<PathBuf> {
    if !name.is_empty() && path.join("config.json").is_file() {
        return Some(path.to_path_buf());
    }
    // models--OWNER--NAME/snapshots/REVISION.
    let cache = hub_cache()?.join(format!("models--{}", name.replace('/', "--")));
    let revision = std::fs::read_to_string(cache.join("refs/main")).ok()?;
    let folder = cache.join("snapshots").join(revision.trim());
    folder.join("config.json").is_file().then_some(folder)
}

/// The hub's cache: a fixed place under the home folder.
pub fn hub_cache() -> Option<PathBuf> {
    Some(std::env::home_dir()?.join(".cache/huggingface/hub"))
}

/// What to say where there is none.
pub fn missing(name: &str, path: &Path) -> Error {
    Error::user("no-checkpoint", format!("no checkpoint \"{name}\"")).detail(format!(
        "looked for \"{}\" and in the Hugging Face cache",
        path.join("config.json").display()
    ))
}

/// The files of a checkpoint that hold or list its weights.
pub fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().to_string();
            name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json")
        })
        .collect();
    files.sort();
    files
}
