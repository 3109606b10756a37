//! `By`: rows are routed to logical partitions by the hash of their key; the operator is called once per partition.

use std::collections::BTreeMap;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::SchemaRef;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::probe::{Handle, Probe};

use super::buffer::{Budget, Buffer};
use super::parcel::Parcel;
use super::source::Parcels;
use super::stage::StageRun;
use crate::error::Result;
use crate::operator::{Context, PARTITIONS};
use crate::partition::partition_of_rows;
use crate::table::Table;

/// Splits parcels by partition, each on the worker that it is addressed to; `port` is the index of the input port they
/// feed.
pub(crate) fn route<'scope>(
    input: Parcels<'scope>,
    run: &StageRun,
    port: u16,
    columns: Vec<String>,
) -> Parcels<'scope> {
    let run = run.clone();
    let deal = Exchange::new(|parcel: &Parcel| parcel.to);
    input.unary(deal, "route", move |_, _| {
        move |input, output| {
            input.for_each(|capability, parcels| {
                let mut session = output.session(&capability);
                for parcel in parcels.drain(..) {
                    for piece in run.call(|_| split(parcel, port, &columns)).into_iter().flatten() {
                        session.give(piece);
                    }
                }
            });
        }
    })
}

/// The rows of a parcel by partition, in their order.
pub(crate) fn split(parcel: Parcel, port: u16, columns: &[String]) -> Result<Vec<Parcel>> {
    let mut pieces: BTreeMap<u16, Vec<RecordBatch>> = BTreeMap::new();
    for batch in parcel.batches {
        let partitions = partition_of_rows(&batch, columns)?;
        // Rows that a stage before has brought together by the same columns stay as they are.
        if let Some(&partition) = partitions.first()
            && partitions.iter().all(|other| *other == partition)
        {
            pieces.entry(partition).or_default().push(batch);
            continue;
        }
        let mut rows: Vec<Vec<u32>> = vec![Vec::new(); PARTITIONS];
        for (row, partition) in partitions.into_iter().enumerate() {
            rows[partition as usize].push(row as u32);
        }
        for (partition, rows) in rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let piece = take_record_batch(&batch, &UInt32Array::from(rows))?;
            pieces.entry(partition as u16).or_default().push(piece);
        }
    }
    let piece = |(partition, batches): (u16, Vec<RecordBatch>)| Parcel {
        to: u64::from(partition),
        port,
        part: parcel.part,
        seq: parcel.seq,
        batches,
    };
    Ok(pieces.into_iter().map(piece).collect())
}

/// Gathers routed parcels and calls the operator partition by partition when all of them are here.
/// `ports` are the input ports by index, with their schemas.
pub(crate) fn by<'scope>(
    input: Parcels<'scope>,
    run: &StageRun,
    ports: Vec<(String, SchemaRef)>,
    budget: &Budget,
    acks: &Handle<u64>,
) -> Parcels<'scope> {
    let scope = input.scope();
    let (run, budget) = (run.clone(), budget.clone());
    let mut builder = OperatorBuilder::new("by".to_string(), scope);
    let mut input = builder.new_input(input, Exchange::new(|parcel: &Parcel| parcel.to));
    let (results, stream) = builder.new_output::<Vec<Parcel>>();
    let (_acks, ack_stream) = builder.new_output::<Vec<()>>();
    let mut results = OutputBuilder::from(results);
    let activator = scope.activator_for(builder.operator_info().address);
    builder.build(move |capabilities| {
        // The second output only shows how far the input is consumed; nothing is ever sent there.
        let mut capability = capabilities.into_iter().next();
        let mut buffers: BTreeMap<(u64, u16), Buffer> = BTreeMap::new();
        move |frontiers| {
            input.for_each(|_, parcels| {
                for parcel in parcels.drain(..) {
                    let place = (parcel.to, parcel.port);
                    let buffer = buffers.entry(place).or_insert_with(|| {
                        let name = format!("spill/{}-{}.arrow", place.0, place.1);
                        Buffer::new(&budget, run.context.attempt.join(name))
                    });
                    run.call(|_| buffer.push(parcel));
                }
            });
            let Some(held) = capability.as_mut() else { return };
            if let Some(time) = frontiers[0].frontier().first() {
                if *time > *held.time() {
                    held.downgrade(time);
                }
                return;
            }
            // All rows are here. One partition per activation, so that other stages go on meanwhile.
            let Some((&(partition, _), _)) = buffers.first_key_value() else {
                capability = None;
                return;
            };
            let parcels = run.call(|stage| {
                let mut tables = run.broadcast.clone();
                for (port, (name, schema)) in ports.iter().enumerate() {
                    let batches = match buffers.remove(&(partition, port as u16)) {
                        Some(mut buffer) => buffer.take()?,
                        None => Vec::new(),
                    };
                    tables.insert(name, Table::Batches(schema.clone(), batches));
                }
                let context = Context {
                    partition: Some(partition as usize),
                    ..run.context.clone()
                };
                let outputs = stage.operator.run(&context, tables)?;
                run.parcels(partition as u32, 0, &outputs)
            });
            match parcels {
                Some(parcels) => {
                    let mut output = results.activate();
                    let mut session = output.session(&*held);
                    for parcel in parcels {
                        session.give(parcel);
                    }
                    activator.activate();
                }
                None => {
                    buffers.clear();
                    capability = None;
                }
            }
        }
    });
    ack_stream.probe_with(acks);
    stream
}
