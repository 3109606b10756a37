//! Rows that wait for the rest of their partition, in memory up to a budget and on disk beyond it.

use std::cell::Cell;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;

use super::parcel::Parcel;
use crate::error::{Error, Result};

/// Bytes that the buffers of one worker hold together, and how many they may.
#[derive(Clone)]
pub(crate) struct Budget {
    held: Rc<Cell<usize>>,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Budget {
            held: Rc::default(),
            limit,
        }
    }
}

/// The rows of one partition, to be read back in canonical order.
pub(crate) struct Buffer {
    budget: Budget,
    path: PathBuf,
    held: usize,
    /// (part, seq, rows) of what is in memory.
    memory: Vec<(u32, u32, RecordBatch)>,
    /// (part, seq) of what is on disk, in the order of the file.
    spilled: Vec<(u32, u32)>,
    writer: Option<StreamWriter<File>>,
}

impl Buffer {
    /// An empty buffer that spills to `path`.
    pub(crate) fn new(budget: &Budget, path: PathBuf) -> Self {
        Buffer {
            budget: budget.clone(),
            path,
            held: 0,
            memory: Vec::new(),
            spilled: Vec::new(),
            writer: None,
        }
    }

    /// Adds a parcel; spills this buffer if all buffers together exceed the budget.
    pub(crate) fn push(&mut self, parcel: Parcel) -> Result<()> {
        let bytes = parcel.bytes();
        for batch in parcel.batches {
            self.memory.push((parcel.part, parcel.seq, batch));
        }
        self.held += bytes;
        self.budget.held.set(self.budget.held.get() + bytes);
        if self.budget.held.get() > self.budget.limit {
            self.spill()
        } else {
            Ok(())
        }
    }

    /// All rows in canonical order; the buffer is empty afterwards.
    pub(crate) fn take(&mut self) -> Result<Vec<RecordBatch>> {
        let mut rows = std::mem::take(&mut self.memory);
        if let Some(mut writer) = self.writer.take() {
            writer.finish()?;
            drop(writer);
            let file = open(&self.path)?;
            let reader = StreamReader::try_new(BufReader::new(file), None)?;
            for ((part, seq), batch) in std::mem::take(&mut self.spilled).into_iter().zip(reader) {
                rows.push((part, seq, batch?));
            }
            std::fs::remove_file(&self.path).map_err(|error| Error::io("remove", &self.path, &error))?;
        }
        self.budget.held.set(self.budget.held.get() - self.held);
        self.held = 0;
        rows.sort_by_key(|(part, seq, _)| (*part, *seq));
        Ok(rows.into_iter().map(|(_, _, batch)| batch).collect())
    }

    fn spill(&mut self) -> Result<()> {
        for (part, seq, batch) in self.memory.drain(..) {
            if self.writer.is_none() {
                if let Some(parent) = self.path.parent() {
                    std::fs::create_dir_all(parent).map_err(|error| Error::io("create", parent, &error))?;
                }
                let file = File::create(&self.path).map_err(|error| Error::io("write", &self.path, &error))?;
                self.writer = Some(StreamWriter::try_new(file, &batch.schema())?);
            }
            let writer = self.writer.as_mut().expect("just made");
            writer.write(&batch).map_err(|error| {
                Error::device("spill", format!("cannot spill to \"{}\": {error}", self.path.display()))
                    .hint("free some disk space, or raise --memory")
            })?;
            self.spilled.push((part, seq));
        }
        self.budget.held.set(self.budget.held.get() - self.held);
        self.held = 0;
        Ok(())
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| Error::io("read", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_canonical_with_and_without_spilling() {
        let folder = tempfile::tempdir().unwrap();
        for limit in [0, 100, usize::MAX] {
            let budget = Budget::new(limit);
            let mut buffer = Buffer::new(&budget, folder.path().join("spill"));
            for (part, seq) in [(1, 1), (0, 2), (1, 0), (0, 0), (0, 1)] {
                let batch = crate::text::parse(&format!("x\n{part}{seq}")).unwrap();
                buffer
                    .push(Parcel {
                        to: 0,
                        port: 0,
                        part,
                        seq,
                        batches: vec![batch],
                    })
                    .unwrap();
            }
            let rows = buffer.take().unwrap();
            let schema = rows[0].schema();
            let text = crate::text::render(&arrow::compute::concat_batches(&schema, &rows).unwrap()).unwrap();
            assert_eq!(
                text.split_whitespace().collect::<Vec<_>>(),
                ["x", "00", "01", "02", "10", "11"]
            );
            assert_eq!(budget.held.get(), 0);
        }
    }
}
