//! Where rows enter a dataflow: an operator's own source, or the parts of a published artifact.
//!
//! Timely has no flow control, so a source bounds what is in flight: its n-th parcel is sent at time n, and it
//! waits while the slowest consumer in the dataflow is more than [`WINDOW`] times behind, unless these are few bytes.

use std::collections::VecDeque;
use std::path::PathBuf;

use arrow::array::RecordBatch;
use timely::dataflow::operators::generic::operator::source;
use timely::dataflow::operators::probe::Handle;
use timely::dataflow::{Scope, Stream};

use super::parcel::Parcel;
use super::stage::StageRun;
use crate::error::{Error, Result};
use crate::table::read_part;

/// Parcels that a source may always be ahead of the slowest consumer. A parcel is a block of raw input (a few MB) or
/// a chunk of [`CHUNK_ROWS`](crate::table::CHUNK_ROWS) rows, so this bounds memory.
const WINDOW: usize = 4;

/// Bytes that it may be ahead, however many parcels they are.
const WINDOW_BYTES: usize = 24 << 20;

/// A stream of parcels.
pub(crate) type Parcels<'scope> = Stream<'scope, u64, Vec<Parcel>>;

/// The blocks of an operator's own source. Splits are dealt to workers, and so are the blocks they yield.
pub(crate) fn blocks<'scope>(scope: Scope<'scope, u64>, run: &StageRun, acks: &Handle<u64>) -> Parcels<'scope> {
    let (index, peers) = (scope.index(), scope.peers());
    let context = run.context.clone();
    let splits = run.call(|stage| stage.operator.splits(&context)).unwrap_or(0);
    let mut mine: VecDeque<usize> = (0..splits).filter(|split| split % peers == index).collect();
    let opener = run.clone();
    let mut open: Option<(usize, u32, Box<dyn crate::operator::Source>)> = None;
    emit(scope, run, acks, move || {
        loop {
            if open.is_none() {
                let Some(split) = mine.pop_front() else { return Ok(None) };
                open = Some((split, 0, opener.stage.operator.open(&opener.context, split)?));
            }
            let (split, seq, source) = open.as_mut().expect("just opened");
            match source.next()? {
                None => open = None,
                Some(block) => {
                    let parcel = Parcel {
                        to: (*split + *seq as usize) as u64,
                        port: 0,
                        part: *split as u32,
                        seq: *seq,
                        batches: vec![block],
                    };
                    *seq += 1;
                    return Ok(Some(parcel));
                }
            }
        }
    })
}

/// The rows of a published artifact, part by part; worker w reads the parts p with p mod workers = w.
pub(crate) fn parts<'scope>(
    scope: Scope<'scope, u64>,
    run: &StageRun,
    acks: &Handle<u64>,
    files: Vec<PathBuf>,
) -> Parcels<'scope> {
    let (index, peers) = (scope.index(), scope.peers());
    let mut mine: VecDeque<(u32, PathBuf)> = files
        .into_iter()
        .map(|path| (part_number(&path), path))
        .filter(|(part, _)| *part as usize % peers == index)
        .collect();
    type Reader = Box<dyn Iterator<Item = Result<RecordBatch>>>;
    let mut open: Option<(u32, u32, Reader)> = None;
    emit(scope, run, acks, move || {
        loop {
            if open.is_none() {
                let Some((part, path)) = mine.pop_front() else {
                    return Ok(None);
                };
                let reader = read_part(&path)?.map(move |batch| {
                    batch.map_err(|error| {
                        Error::data(
                            "damaged-artifact",
                            format!("cannot read \"{}\": {error}", path.display()),
                        )
                        .hint("remove the artifact's folder; the next run makes it anew")
                    })
                });
                open = Some((part, 0, Box::new(reader)));
            }
            let (part, seq, reader) = open.as_mut().expect("just opened");
            match reader.next().transpose()? {
                None => open = None,
                Some(batch) => {
                    let parcel = Parcel {
                        to: u64::from(*part),
                        port: 0,
                        part: *part,
                        seq: *seq,
                        batches: vec![batch],
                    };
                    *seq += 1;
                    return Ok(Some(parcel));
                }
            }
        }
    })
}

/// The number in `part-00003.parquet`.
pub(crate) fn part_number(path: &std::path::Path) -> u32 {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.strip_prefix("part-")
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

fn emit<'scope>(
    scope: Scope<'scope, u64>,
    run: &StageRun,
    acks: &Handle<u64>,
    mut next: impl FnMut() -> Result<Option<Parcel>> + 'static,
) -> Parcels<'scope> {
    let run = run.clone();
    let acks = acks.clone();
    source(scope, "source", move |capability, info| {
        let activator = scope.activator_for(info.address);
        let mut capability = Some(capability);
        // Time and bytes of what somebody has not consumed yet.
        let mut ahead: VecDeque<(u64, usize)> = VecDeque::new();
        move |output| {
            let Some(held) = capability.as_mut() else { return };
            let time = *held.time();
            while ahead.front().is_some_and(|(sent, _)| !acks.less_equal(sent)) {
                ahead.pop_front();
            }
            if ahead.len() > WINDOW && ahead.iter().map(|(_, bytes)| bytes).sum::<usize>() > WINDOW_BYTES {
                activator.activate_after(std::time::Duration::from_micros(200));
                return;
            }
            match run.call(|_| next()) {
                Some(Some(parcel)) => {
                    ahead.push_back((time, parcel.bytes()));
                    output.session(&*held).give(parcel);
                    held.downgrade(&(time + 1));
                    activator.activate();
                }
                _ => capability = None,
            }
        }
    })
}
