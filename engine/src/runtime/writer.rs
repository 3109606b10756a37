//! Every edge becomes an artifact: parcels are put in order, cut into chunks, written to Parquet parts, and handed on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe::{Handle, Probe};

use super::parcel::{Parcel, Report};
use super::pen::Pen;
use super::source::Parcels;
use super::stage::StageRun;
use super::whole::Threads;
use crate::error::{Error, Result};
use crate::operator::{Distribution, Progress};
use crate::table::{CHUNK_ROWS, Shape};

/// Writes a stage's parcels into its attempt folder and hands on, in chunks, those of the ports in `wanted`.
pub(crate) fn write<'scope>(
    input: Parcels<'scope>,
    run: &StageRun,
    wanted: Vec<usize>,
    acks: &Handle<u64>,
    threads: &Threads,
) -> Parcels<'scope> {
    let scope = input.scope();
    let run = run.clone();
    let threads = threads.clone();
    let mut builder = OperatorBuilder::new("write".to_string(), scope);
    let mut input = builder.new_input(input, Exchange::new(|parcel: &Parcel| u64::from(parcel.part)));
    let (chunks, stream) = builder.new_output::<Vec<Parcel>>();
    let (_acks, ack_stream) = builder.new_output::<Vec<()>>();
    let mut chunks = OutputBuilder::from(chunks);
    let address = builder.operator_info().address.to_vec();
    let activator = Arc::new(scope.worker().sync_activator_for(address));
    builder.build(move |capabilities| {
        let mut capabilities = capabilities.into_iter();
        let mut capability = capabilities.next();
        // Held until the files are whole, so that the operator is there to tell.
        let mut ending = capabilities.next();
        let mut desk = Desk {
            pen: Pen::new(&run, activator, threads),
            run: run.clone(),
            wanted,
            parts: BTreeMap::new(),
        };
        let mut rows = 0u64;
        move |frontiers| {
            let mut output = chunks.activate();
            input.for_each(|stamp, parcels| {
                let mut session = output.session(&stamp);
                for parcel in parcels.drain(..) {
                    if parcel.port == 0 {
                        rows += parcel.rows() as u64;
                    }
                    desk.take(parcel).into_iter().for_each(|chunk| session.give(chunk));
                }
                run.progress(|| Progress {
                    done: rows,
                    total: None,
                    unit: "rows".into(),
                    figures: Vec::new(),
                });
            });
            if let Some(held) = capability.as_mut() {
                if let Some(time) = frontiers[0].frontier().first() {
                    if *time > *held.time() {
                        held.downgrade(time);
                    }
                    if let Some(ending) = ending.as_mut() {
                        ending.downgrade(held.time());
                    }
                    return;
                }
                let mut session = output.session(&*held);
                desk.close_all().into_iter().for_each(|chunk| session.give(chunk));
                drop(session);
                capability = None;
                if let Some(ending) = ending.as_mut() {
                    // Later than any parcel: nothing waits for it.
                    ending.downgrade(&u64::MAX);
                }
            }
            if ending.is_none() {
                return;
            }
            let written = desk.pen.written(&run);
            if run.has_failed() || run.context.cancel.is_cancelled() {
                desk.pen.abandon();
                ending = None;
                return;
            }
            let Some(written) = written else { return };
            for (port, entry) in written {
                run.control.report(Report::Part {
                    stage: run.index,
                    port: port as usize,
                    entry,
                });
            }
            run.control.report(Report::WriterDone {
                stage: run.index,
                busy_seconds: run.busy_seconds(),
                notes: serde_json::to_string(&run.context.noted()).unwrap_or_default(),
            });
            ending = None;
        }
    });
    ack_stream.probe_with(acks);
    stream
}

/// What one worker writes of a stage.
struct Desk {
    run: StageRun,
    /// Ports whose chunks are handed on.
    wanted: Vec<usize>,
    /// By port and number.
    parts: BTreeMap<(u16, u32), Part>,
    pen: Pen,
}

impl Desk {
    /// Takes rows in; returns the chunks to hand on.
    fn take(&mut self, parcel: Parcel) -> Vec<Parcel> {
        let place = (parcel.port, parcel.part);
        let run = &self.run;
        let part = self
            .parts
            .entry(place)
            .or_insert_with(|| Part::new(run, place.0, place.1));
        let mut chunks = run.call(|_| part.push(parcel)).unwrap_or_default();
        for chunk in &chunks {
            self.pen.write(run, &part.path, chunk);
        }
        chunks.retain(|chunk| self.wanted.contains(&usize::from(chunk.port)));
        // A partition comes as one parcel, so its file is whole now.
        if matches!(run.stage.bound.distribution, Distribution::By(_)) {
            chunks.extend(self.close(place));
        }
        chunks
    }

    /// Closes a part; returns its last chunk, if that is to be handed on.
    fn close(&mut self, place: (u16, u32)) -> Option<Parcel> {
        let part = self.parts.remove(&place)?;
        let path = part.path.clone();
        let last = self.run.call(|_| part.finish())?;
        if let Some(chunk) = &last {
            self.pen.write(&self.run, &path, chunk);
        }
        self.pen.close(place.0, &path);
        last.filter(|_| self.wanted.contains(&usize::from(place.0)))
    }

    /// Closes what is open; nothing more comes.
    fn close_all(&mut self) -> Vec<Parcel> {
        let places: Vec<(u16, u32)> = self.parts.keys().copied().collect();
        let chunks = places.into_iter().filter_map(|place| self.close(place)).collect();
        self.pen.finish();
        chunks
    }
}

/// One part of one port: what came too early, and what does not fill a chunk yet.
struct Part {
    schema: SchemaRef,
    path: PathBuf,
    port: u16,
    part: u32,
    /// Whether parts are partitions.
    partitioned: bool,
    /// The place that comes next.
    next: u32,
    early: BTreeMap<u32, Vec<RecordBatch>>,
    waiting: Vec<RecordBatch>,
    waiting_rows: usize,
    /// The next chunk's place.
    chunk: u32,
}

impl Part {
    fn new(run: &StageRun, port: u16, part: u32) -> Self {
        let (name, shape) = &run.stage.bound.outputs[port as usize];
        let schema = match shape {
            Shape::Table(schema) => schema.clone(),
            _ => crate::store::no_schema(),
        };
        Part {
            schema,
            path: run.context.attempt.join(name).join(format!("part-{part:05}.parquet")),
            port,
            part,
            partitioned: matches!(run.stage.bound.distribution, Distribution::By(_)),
            next: 0,
            early: BTreeMap::new(),
            waiting: Vec::new(),
            waiting_rows: 0,
            chunk: 0,
        }
    }

    fn push(&mut self, parcel: Parcel) -> Result<Vec<Parcel>> {
        self.early.insert(parcel.seq, parcel.batches);
        let mut full = Vec::new();
        while let Some(batches) = self.early.remove(&self.next) {
            self.next += 1;
            for batch in batches {
                let mut rest = batch;
                while self.waiting_rows + rest.num_rows() >= CHUNK_ROWS {
                    let take = CHUNK_ROWS - self.waiting_rows;
                    self.waiting.push(rest.slice(0, take));
                    rest = rest.slice(take, rest.num_rows() - take);
                    full.push(self.chunk()?);
                }
                if rest.num_rows() > 0 {
                    self.waiting_rows += rest.num_rows();
                    self.waiting.push(rest);
                }
            }
        }
        Ok(full)
    }

    /// What waits as one chunk, a row group of its own.
    fn chunk(&mut self) -> Result<Parcel> {
        let batch = concat_batches(&self.schema, &self.waiting)?;
        self.waiting.clear();
        self.waiting_rows = 0;
        // Partitions stay where they are; the few parts of others would keep a few workers busy.
        let turn = if self.partitioned { 0 } else { self.chunk };
        let parcel = Parcel {
            to: u64::from(self.part) + u64::from(turn),
            port: self.port,
            part: self.part,
            seq: self.chunk,
            batches: vec![batch],
        };
        self.chunk += 1;
        Ok(parcel)
    }

    /// The last chunk.
    fn finish(mut self) -> Result<Option<Parcel>> {
        if !self.early.is_empty() {
            return Err(Error::internal(format!(
                "part {} has a gap at place {}",
                self.part, self.next
            )));
        }
        (self.waiting_rows > 0).then(|| self.chunk()).transpose()
    }
}
