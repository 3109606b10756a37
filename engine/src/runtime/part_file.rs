//! A Parquet part on its way to the disk.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;

use super::encodings;
use crate::error::{Error, Result};
use crate::store::FileEntry;

/// A Parquet file that knows its digest when it is finished.
pub(crate) struct PartFile {
    path: PathBuf,
    writer: ArrowWriter<Hashing>,
    rows: u64,
}

impl PartFile {
    /// An empty file for rows like those of `first`.
    pub(crate) fn create(path: &Path, first: &RecordBatch) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, &error))?;
        }
        let file = File::create(path).map_err(|error| Error::io("write", path, &error))?;
        let properties = encodings::choose(first)?;
        let sink = Hashing {
            file: BufWriter::with_capacity(1 << 18, file),
            hasher: blake3::Hasher::new(),
            bytes: 0,
        };
        let writer =
            ArrowWriter::try_new(sink, first.schema(), Some(properties)).map_err(|error| failed(path, error))?;
        Ok(PartFile {
            path: path.to_path_buf(),
            writer,
            rows: 0,
        })
    }

    pub(crate) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.writer
            .write(batch)
            .and_then(|()| self.writer.flush())
            .map_err(|error| failed(&self.path, error))
    }

    pub(crate) fn finish(self) -> Result<FileEntry> {
        let path = self.path;
        let mut sink = self.writer.into_inner().map_err(|error| failed(&path, error))?;
        sink.file.flush().map_err(|error| Error::io("write", &path, &error))?;
        sink.file
            .get_ref()
            .sync_all()
            .map_err(|error| Error::io("sync", &path, &error))?;
        Ok(FileEntry {
            name: path.file_name().unwrap_or_default().to_string_lossy().to_string(),
            bytes: sink.bytes,
            digest: sink.hasher.finalize().to_hex().to_string(),
            rows: self.rows,
        })
    }
}

struct Hashing {
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// The error of the file system below an error of Parquet tells more: a full disk has a code of its own.
fn failed(path: &Path, error: parquet::errors::ParquetError) -> Error {
    if let parquet::errors::ParquetError::External(source) = &error
        && let Some(source) = source.downcast_ref::<std::io::Error>()
    {
        return Error::io("write", path, source);
    }
    Error::device("write", format!("cannot write \"{}\": {error}", path.display()))
}
