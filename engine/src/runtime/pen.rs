//! Writes the parts of a stage on a thread beside the worker, which goes on with other rows meanwhile.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};
use std::time::Instant;

use arrow::array::RecordBatch;
use timely::scheduling::SyncActivator;

use super::parcel::Parcel;
use super::part_file::PartFile;
use super::stage::{StageRun, panicked};
use super::whole::Threads;
use crate::error::{Error, Result};
use crate::store::FileEntry;
use crate::table::CHUNK_ROWS;

/// Chunks that may always wait to be written. A worker that is further ahead waits, so this bounds memory.
const WAITING: usize = 2;

/// The same where chunks are small: a worker that seldom waits has something to hand on.
const WAITING_SMALL: usize = 8;

/// Bytes that many small chunks may have, were they full.
const WAITING_BYTES: usize = 32 << 20;

enum Message {
    Chunk(PathBuf, RecordBatch),
    /// The part has all of its chunks.
    Close(u16, PathBuf),
    /// Nothing more comes. A pen that is dropped without it leaves its files unfinished.
    Finish,
}

/// Files that are whole, each with its port, and the seconds it took to write them.
type Files = (Vec<(u16, FileEntry)>, f64);

/// Writes the parts that one worker has of one stage.
pub(crate) struct Pen {
    name: String,
    activator: Arc<SyncActivator>,
    threads: Threads,
    /// Begun with the first chunk.
    thread: Option<(SyncSender<Message>, Receiver<Result<Files>>)>,
}

impl Pen {
    /// A pen that activates the writing operator when it has something to tell.
    pub(crate) fn new(run: &StageRun, activator: Arc<SyncActivator>, threads: Threads) -> Self {
        Pen {
            name: format!("write {}", run.stage.name),
            activator,
            threads,
            thread: None,
        }
    }

    /// Writes a chunk to the part at `path`, made with its first one. What fails is told with the next chunk or at the
    /// end.
    pub(crate) fn write(&mut self, run: &StageRun, path: &Path, chunk: &Parcel) {
        for batch in &chunk.batches {
            if run.has_failed() {
                return;
            }
            let message = Message::Chunk(path.to_path_buf(), batch.clone());
            let sent = self.begun(batch).map(|(sender, written)| match sender.send(message) {
                Ok(()) => None,
                Err(_) => Some(written.recv().unwrap_or_else(|_| Err(gone()))),
            });
            match sent {
                Ok(None) => {}
                Ok(Some(Err(error))) | Err(error) => run.fail(error),
                Ok(Some(Ok(_))) => run.fail(gone()),
            }
        }
    }

    /// The part at `path` has all of its chunks.
    pub(crate) fn close(&self, port: u16, path: &Path) {
        self.tell(Message::Close(port, path.to_path_buf()));
    }

    /// Every part is closed, nothing more comes.
    pub(crate) fn finish(&self) {
        self.tell(Message::Finish);
    }

    fn tell(&self, message: Message) {
        if let Some((sender, _)) = &self.thread {
            // A thread that is gone has told why.
            let _ = sender.send(message);
        }
    }

    /// Leaves the files unfinished.
    pub(crate) fn abandon(&mut self) {
        self.thread = None;
    }

    /// The files, once all of them are whole.
    pub(crate) fn written(&mut self, run: &StageRun) -> Option<Vec<(u16, FileEntry)>> {
        let Some((_, written)) = &self.thread else {
            return Some(Vec::new());
        };
        let written = match written.try_recv() {
            Ok(written) => written,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Disconnected) => Err(gone()),
        };
        self.thread = None;
        match written {
            Ok((entries, seconds)) => {
                run.add_busy(seconds);
                Some(entries)
            }
            Err(error) => {
                run.fail(error);
                None
            }
        }
    }

    /// The thread, begun with a chunk of rows like those that come.
    fn begun(&mut self, chunk: &RecordBatch) -> Result<&(SyncSender<Message>, Receiver<Result<Files>>)> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => {
                let row = chunk.get_array_memory_size().div_ceil(chunk.num_rows().max(1));
                let fit = WAITING_BYTES / (row * CHUNK_ROWS).max(1);
                self.begin(fit.clamp(WAITING, WAITING_SMALL))?
            }
        };
        Ok(self.thread.insert(thread))
    }

    fn begin(&self, waiting: usize) -> Result<(SyncSender<Message>, Receiver<Result<Files>>)> {
        let (sender, messages) = sync_channel(waiting);
        let (done, written) = channel();
        let activator = self.activator.clone();
        let work = move || {
            let work = std::panic::AssertUnwindSafe(|| follow(&messages));
            let result = std::panic::catch_unwind(work).unwrap_or_else(|panic| Err(panicked(&*panic)));
            if let Some(result) = result.transpose() {
                // Nobody listens when the run was stopped.
                let _ = done.send(result);
                let _ = activator.activate();
            }
        };
        let thread = std::thread::Builder::new().name(self.name.clone()).spawn(work);
        let thread = thread.map_err(|error| Error::device("thread", format!("cannot start a thread: {error}")))?;
        if let Ok(mut threads) = self.threads.lock() {
            threads.retain(|thread| !thread.is_finished());
            threads.push(thread);
        }
        Ok((sender, written))
    }
}

/// Writes what comes: the files, if they are to be finished.
fn follow(messages: &Receiver<Message>) -> Result<Option<Files>> {
    let mut files: BTreeMap<PathBuf, PartFile> = BTreeMap::new();
    let mut whole = Vec::new();
    let mut seconds = 0.0;
    while let Ok(message) = messages.recv() {
        let start = Instant::now();
        match message {
            Message::Chunk(path, batch) => {
                let file = match files.entry(path) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => {
                        let file = PartFile::create(entry.key(), &batch)?;
                        entry.insert(file)
                    }
                };
                file.write(&batch)?;
            }
            Message::Close(port, path) => {
                if let Some(file) = files.remove(&path) {
                    whole.push((port, file.finish()?));
                }
            }
            Message::Finish => return Ok(Some((whole, seconds))),
        }
        seconds += start.elapsed().as_secs_f64();
    }
    Ok(None)
}

fn gone() -> Error {
    Error::internal("the thread that writes parts went away")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::rows_of_part;

    /// What the thread makes of a chunk for `path`, and of the end.
    fn written(path: &Path, finish: bool) -> Result<Option<Files>> {
        let (sender, messages) = sync_channel(3);
        let rows = crate::text::parse("x\n1\n2").unwrap();
        sender.send(Message::Chunk(path.to_path_buf(), rows)).unwrap();
        if finish {
            sender.send(Message::Close(3, path.to_path_buf())).unwrap();
            sender.send(Message::Finish).unwrap();
        }
        drop(sender);
        follow(&messages)
    }

    #[test]
    fn files_are_whole_when_they_are_finished_only() {
        let folder = tempfile::tempdir().unwrap();
        let (whole, left) = (folder.path().join("out/a.parquet"), folder.path().join("out/b.parquet"));
        let (entries, _) = written(&whole, true).unwrap().unwrap();
        assert_eq!((entries.len(), entries[0].0, entries[0].1.rows), (1, 3, 2));
        assert_eq!(rows_of_part(&whole).unwrap(), 2);
        assert!(written(&left, false).unwrap().is_none());
        assert!(rows_of_part(&left).is_err());
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("out"), "no folder").unwrap();
        let error = written(&folder.path().join("out/a.parquet"), true).err().unwrap();
        assert!(error.message.contains("out"), "{error}");
    }
}
