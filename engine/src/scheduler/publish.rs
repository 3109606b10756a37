//! What becomes of a stage whose writers are done: its artifacts are published, dropped because someone else was first,
//! or compared with those in the store.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::RecordBatch;

use super::{Running, State, Status};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::graph::{Edge, Stage};
use crate::key::Preimage;
use crate::operator::Context;
use crate::plan::inputs_of;
use crate::process::{cpu_seconds, resident};
use crate::runtime::PartFile;
use crate::store::{FileEntry, KeyRecord, Manifest, Store, Usage, content_digest, describe};
use crate::table::{Shape, Table, Tables};
use crate::verify;

impl State {
    /// Every writer of the stage is done: conclude, publish the artifacts, then the key.
    pub(super) fn publish(&mut self, index: usize) -> Result<()> {
        let recipe = &self.plan.stages[index].recipe;
        if self.leases.as_ref().is_some_and(|leases| !leases.holds(recipe)) {
            return self.lose(index);
        }
        let (record, mut manifests, attempt) = self.conclude(index)?;
        let mut record = record;
        let folder = self.store.attempt_folder(&attempt);
        for (name, manifest) in std::mem::take(&mut manifests) {
            let digest = self.store.publish(&folder.join(&name), manifest)?;
            record.outputs.insert(name, digest);
        }
        let forced = self.plan.stages[index].forced;
        let ours = record.outputs.clone();
        let record = self.store.publish_record(&record, &attempt, forced)?;
        self.store.discard(&attempt);
        if record.outputs != ours && self.readers[index].iter().any(|reader| self.running.contains(reader)) {
            // They have read our rows, not those of the result that counts.
            return Err(Error::device(
                "overtaken",
                "another run published another result of the same stage first",
            )
            .hint("run the same command again: it goes on with that result"));
        }
        let stage = &self.graph.stages[index];
        if !stage.operator.extendable() {
            let checkpoints = self.store.checkpoint_folder(&record.preimage.lineage(stage));
            if self.store.disk().list(&checkpoints).is_ok() {
                // What cannot be removed is removed by `gc`.
                let _ = self.store.disk().remove_folder(&checkpoints);
            }
        }
        self.pending.push(Event::StageFinished {
            stage: stage.name.clone(),
            key: record.key.clone(),
            rows: record.rows.clone(),
            bytes: record.bytes,
            seconds: record.seconds,
            usage: record.usage.clone(),
            notes: record.notes.clone(),
        });
        self.leave(index);
        self.ran += 1;
        self.finish(index, record);
        self.test(index);
        Ok(())
    }

    /// Someone took the stage over while we were stopped: what we made is dropped, theirs will be used.
    fn lose(&mut self, index: usize) -> Result<()> {
        let Status::Running(running) = &self.stages[index] else {
            return Ok(());
        };
        self.store.discard(&running.attempt);
        self.pending.push(Event::StageLost {
            stage: self.graph.stages[index].name.clone(),
        });
        if self.readers[index].iter().any(|reader| self.running.contains(reader)) {
            return Err(
                Error::device("overtaken", "the lease was lost while this process was stopped")
                    .hint("run the same command again to continue"),
            );
        }
        self.leave(index);
        self.stages[index] = Status::Waiting;
        self.consider(index);
        Ok(())
    }

    /// The stage was run again: compare what it made with what is in the store, and drop it.
    pub(super) fn compare(&mut self, index: usize) -> Result<()> {
        let (_, manifests, attempt) = self.conclude(index)?;
        let graph = self.graph.clone();
        let stage = &graph.stages[index];
        let known = self.plan.stages[index].outputs.clone();
        let mut outputs = BTreeMap::new();
        let mut agrees = true;
        for (name, manifest) in &manifests {
            let folder = self.store.attempt_folder(&attempt).join(name);
            let found = match known.get(name) {
                Some(digest) if *digest == content_digest(manifest) => Ok("equal to the bit".to_string()),
                Some(digest) => verify::compare(&self.store, digest, &folder, manifest, stage.operator.determinism()),
                None => Err("there is no such output in the store".to_string()),
            };
            agrees &= found.is_ok();
            outputs.insert(name.clone(), found.unwrap_or_else(|difference| difference));
        }
        self.pending.push(Event::StageVerified {
            stage: stage.name.clone(),
            agrees,
            outputs: outputs.clone(),
        });
        let key = self.plan.stages[index].key.clone().unwrap_or_default();
        self.store.discard(&attempt);
        self.leave(index);
        self.ran += 1;
        if !agrees {
            let mut error = Error::data(
                "not-reproducible",
                format!("stage \"{}\" came out otherwise", stage.name),
            )
            .hint("was its operator changed without a new VERSION? --force STAGE keeps the new result");
            error.detail = outputs.iter().map(|(port, text)| format!("{port}: {text}")).collect();
            self.errors.push(error);
            self.failed += 1;
        }
        match self.store.record(&key) {
            Some(record) => self.finish(index, record),
            None => self.never(index),
        }
        Ok(())
    }

    /// Lets the operator conclude, and makes the record and the manifests of what it wrote.
    fn conclude(&mut self, index: usize) -> Result<(KeyRecord, BTreeMap<String, Manifest>, String)> {
        let Status::Running(running) = &self.stages[index] else {
            return Err(Error::internal("a stage finished that does not run"));
        };
        let stage = &self.graph.stages[index];
        let attempt = self.store.attempt_folder(&running.attempt);
        let (tables, mut files) = written(&self.store, stage, running, &attempt)?;
        let context = Context::new(stage.entry.name, stage.seed, &self.data_root, &attempt, &self.cancel);
        let rows_in = stage
            .inputs
            .iter()
            .map(|edge| (edge.port.clone(), self.rows_of(edge)))
            .collect();
        let mut notes = running.notes.clone();
        notes.extend(stage.operator.conclude(&context, &rows_in, &tables)?);
        let inputs = inputs_of(stage, |stage| &self.outputs[stage])
            .ok_or_else(|| Error::internal("a stage finished before its inputs were published"))?;
        let preimage = Preimage {
            inputs,
            ..self.plan.stages[index].alone.clone()
        };
        let seconds = running.start.elapsed().as_secs_f64();
        let mut record = KeyRecord {
            key: preimage.key(),
            preimage,
            outputs: BTreeMap::new(),
            rows: BTreeMap::new(),
            bytes: 0,
            seconds,
            busy_seconds: running.busy_seconds,
            notes,
            run: self.run.clone(),
            usage: Usage {
                cpu_seconds: cpu_seconds() - running.cpu_seconds,
                peak_memory: running.peak_memory.max(resident()),
                energy: self.meter.joules().zip(running.energy).map(|(now, then)| now - then),
                gpus: running.gpus.clone(),
            },
            accepted: None,
        };
        let mut manifests = BTreeMap::new();
        for (name, shape) in &stage.bound.outputs {
            let files = files.remove(name).unwrap_or_default();
            let rows = files.iter().map(|file| file.rows).sum();
            record.bytes += files.iter().map(|file| file.bytes).sum::<u64>();
            record.rows.insert(name.clone(), rows);
            let manifest = Manifest {
                digest: String::new(),
                layout: match shape {
                    Shape::Folder(layout) => layout.clone(),
                    _ => "table".to_string(),
                },
                schema: describe(shape),
                rows,
                files,
                port: name.clone(),
                preimage: record.preimage.clone(),
                stage: stage.name.clone(),
                run: self.run.clone(),
                seconds,
                notes: record.notes.clone(),
                software: concat!("sluice ", env!("CARGO_PKG_VERSION")).to_string(),
            };
            manifests.insert(name.clone(), manifest);
        }
        Ok((record, manifests, running.attempt.clone()))
    }

    /// Rows of the artifact that an edge carries.
    fn rows_of(&self, edge: &Edge) -> u64 {
        match &self.stages[edge.stage] {
            Status::Done(record) => record.rows.get(&edge.output).copied().unwrap_or(0),
            _ => 0,
        }
    }
}

/// What a stage wrote: its ports as tables, and the files of every port.
fn written(
    store: &Store,
    stage: &Stage,
    running: &Running,
    attempt: &Path,
) -> Result<(Tables, BTreeMap<String, Vec<FileEntry>>)> {
    let mut tables = Tables::new();
    let mut files = BTreeMap::new();
    for (port, (name, shape)) in stage.bound.outputs.iter().enumerate() {
        let folder = attempt.join(name);
        match shape {
            Shape::Table(schema) => {
                let mut parts = running.parts.get(&port).cloned().unwrap_or_default();
                if parts.is_empty() {
                    parts.push(
                        PartFile::create(
                            &folder.join("part-00000.parquet"),
                            &RecordBatch::new_empty(schema.clone()),
                        )?
                        .finish()?,
                    );
                }
                parts.sort_by(|a, b| a.name.cmp(&b.name));
                let paths = parts.iter().map(|part| folder.join(&part.name)).collect();
                tables.insert(name, Table::Parts(schema.clone(), paths));
                files.insert(name.clone(), parts);
            }
            _ if folder.is_dir() => {
                tables.insert(name, Table::Folder(folder.clone()));
                files.insert(name.clone(), store.folder_entries(&folder)?);
            }
            _ => {
                return Err(Error::internal(format!(
                    "{} made no folder \"{name}\"",
                    stage.entry.name
                )));
            }
        }
    }
    Ok((tables, files))
}
