//! `Fixpoint`: rows are partitioned by several keys at once; what one side drops goes round a feedback loop to the
//! other sides, until nothing is dropped any more.
//!
//! Every side holds the key columns of its rows; side 0 holds the whole rows too. Only dropped rows travel. Because
//! operators are monotone (see [`Distribution::Fixpoint`](crate::operator::Distribution::Fixpoint)) the order in which
//! drops arrive does not change what is left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, RecordBatch, UInt64Array};
use arrow::compute::{concat_batches, filter_record_batch, sort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::feedback::{ConnectLoop, Feedback};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::probe::{Handle, Probe};

use super::buffer::{Budget, Buffer};
use super::by::split;
use super::parcel::Parcel;
use super::source::Parcels;
use super::stage::StageRun;
use crate::error::{Error, Result};
use crate::operator::{Context, OUT, PARTITIONS};
use crate::partition::{ROW_TAG, key_columns};
use crate::table::{Table, Tables};

/// Runs the operator of `run` over `input` to the fixed point of `sides`.
pub(crate) fn fixpoint<'scope>(
    input: Parcels<'scope>,
    run: &StageRun,
    port: &str,
    sides: Vec<Vec<String>>,
    budget: &Budget,
    acks: &Handle<u64>,
) -> Parcels<'scope> {
    let scope = input.scope();
    let routed = {
        let (run, sides) = (run.clone(), sides.clone());
        input.unary(Pipeline, "route", move |_, _| {
            move |input, output| {
                input.for_each(|capability, parcels| {
                    let mut session = output.session(&capability);
                    for parcel in parcels.drain(..) {
                        for piece in run.call(|_| deal(parcel, &sides)).into_iter().flatten() {
                            session.give(piece);
                        }
                    }
                });
            }
        })
    };
    let (loop_handle, loop_stream) = scope.feedback::<Vec<Parcel>>(1);
    let mut builder = OperatorBuilder::new("fixpoint".to_string(), scope);
    let mut input = builder.new_input(routed, Exchange::new(|parcel: &Parcel| parcel.to));
    let mut returned = builder.new_input(loop_stream, Exchange::new(|parcel: &Parcel| parcel.to));
    let (results, result_stream) = builder.new_output::<Vec<Parcel>>();
    let (drops, drop_stream) = builder.new_output::<Vec<Parcel>>();
    // Shows how far the rows are consumed; not connected to the loop, which must not hold the source back.
    let (_acks, ack_stream) =
        builder.new_output_connection::<Vec<()>, _>([(0, timely::progress::Antichain::from_elem(Default::default()))]);
    let mut results = OutputBuilder::from(results);
    let mut drops = OutputBuilder::from(drops);
    let activator = scope.activator_for(builder.operator_info().address);
    let mut state = State {
        run: run.clone(),
        port: port.to_string(),
        sides,
        budget: budget.clone(),
        keys: BTreeMap::new(),
        rows: BTreeMap::new(),
        loaded: BTreeMap::new(),
    };
    builder.build(move |capabilities| {
        let mut capabilities = capabilities.into_iter();
        let mut result_capability = capabilities.next();
        let mut drop_capability = capabilities.next();
        let mut rounds: BTreeMap<u64, (Capability<u64>, Vec<Parcel>)> = BTreeMap::new();
        move |frontiers| {
            input.for_each(|_, parcels| {
                for parcel in parcels.drain(..) {
                    let run = state.run.clone();
                    run.call(|_| state.receive(parcel));
                }
            });
            if let Some(time) = frontiers[0].frontier().first() {
                for capability in [&mut result_capability, &mut drop_capability].into_iter().flatten() {
                    if *time > *capability.time() {
                        capability.downgrade(time);
                    }
                }
            } else if let Some(capability) = drop_capability.take() {
                // All rows are here: the first round looks at every partition.
                let run = state.run.clone();
                let dropped = run.call(|_| {
                    let places = state.load()?;
                    state.evaluate(places)
                });
                let mut output = drops.activate();
                let mut session = output.session(&capability);
                for parcel in dropped.into_iter().flatten() {
                    session.give(parcel);
                }
            }
            returned.for_each(|capability, parcels| {
                if let Some(capability) = capability.retain_least(1) {
                    let round = rounds
                        .entry(*capability.time())
                        .or_insert_with(|| (capability, Vec::new()));
                    round.1.append(parcels);
                }
            });
            // A round is evaluated when all of its drops are here, so that a partition is looked at once a round.
            while let Some(entry) = rounds.first_entry() {
                if frontiers[1].less_equal(entry.key()) {
                    break;
                }
                let (capability, parcels) = entry.remove();
                let run = state.run.clone();
                let dropped = run.call(|_| {
                    let places = parcels.iter().map(|parcel| parcel.to).collect();
                    for parcel in &parcels {
                        state.remove(parcel)?;
                    }
                    state.evaluate(places)
                });
                let mut output = drops.activate();
                let mut session = output.session(&capability);
                for parcel in dropped.into_iter().flatten() {
                    session.give(parcel);
                }
            }
            // Nothing is in the loop any more, on any worker: what is left is the result.
            if drop_capability.is_none() && frontiers[1].frontier().is_empty() {
                let Some(capability) = &result_capability else { return };
                let run = state.run.clone();
                match run.call(|_| state.next_result()).flatten() {
                    Some(parcels) => {
                        let mut output = results.activate();
                        let mut session = output.session(capability);
                        for parcel in parcels {
                            session.give(parcel);
                        }
                        activator.activate();
                    }
                    None => result_capability = None,
                }
            }
        }
    });
    drop_stream.connect_loop(loop_handle);
    ack_stream.probe_with(acks);
    result_stream
}

/// What one worker holds. A place is `side * PARTITIONS + partition`.
struct State {
    run: StageRun,
    port: String,
    sides: Vec<Vec<String>>,
    budget: Budget,
    /// Key columns and tags that arrived, by place.
    keys: BTreeMap<u64, Vec<RecordBatch>>,
    /// Whole rows of side 0, by partition.
    rows: BTreeMap<u64, Buffer>,
    /// Key columns sorted by tag, and which rows are alive, by place.
    loaded: BTreeMap<u64, Loaded>,
}

struct Loaded {
    keys: RecordBatch,
    alive: Vec<bool>,
}

impl State {
    fn receive(&mut self, parcel: Parcel) -> Result<()> {
        for batch in &parcel.batches {
            self.keys
                .entry(parcel.to)
                .or_default()
                .push(key_part(batch, &self.sides)?);
        }
        if parcel.port == 0 {
            let path = self.run.context.attempt.join(format!("spill/{}.arrow", parcel.to));
            let budget = &self.budget;
            self.rows
                .entry(parcel.to)
                .or_insert_with(|| Buffer::new(budget, path))
                .push(parcel)?;
        }
        Ok(())
    }

    /// Sorts what arrived by tag. Returns all places.
    fn load(&mut self) -> Result<BTreeSet<u64>> {
        for (place, batches) in std::mem::take(&mut self.keys) {
            let keys = concat_batches(&batches[0].schema(), &batches)?;
            let order = sort_to_indices(keys.column(keys.num_columns() - 1), None, None)?;
            let keys = take_record_batch(&keys, &order)?;
            let alive = vec![true; keys.num_rows()];
            self.loaded.insert(place, Loaded { keys, alive });
        }
        Ok(self.loaded.keys().copied().collect())
    }

    fn remove(&mut self, parcel: &Parcel) -> Result<()> {
        // A drop can only name rows that all sides received.
        if !self.keys.is_empty() {
            self.load()?;
        }
        let Some(loaded) = self.loaded.get_mut(&parcel.to) else {
            return Ok(());
        };
        let all = tags(&loaded.keys);
        for batch in &parcel.batches {
            for tag in tags(batch).values() {
                if let Ok(row) = all.values().binary_search(tag) {
                    loaded.alive[row] = false;
                }
            }
        }
        Ok(())
    }

    /// Calls the operator with the rows alive at each place; returns what it dropped, addressed to the other sides.
    fn evaluate(&mut self, places: BTreeSet<u64>) -> Result<Vec<Parcel>> {
        let mut dropped = Vec::new();
        for place in places {
            let Some(loaded) = self.loaded.get_mut(&place) else {
                continue;
            };
            let side = place as usize / PARTITIONS;
            let alive = filter_record_batch(&loaded.keys, &BooleanArray::from(loaded.alive.clone()))?;
            let context = Context {
                partition: Some(place as usize % PARTITIONS),
                side: Some(side),
                ..self.run.context.clone()
            };
            let tables = self.run.broadcast.clone().with(&self.port, Table::new(alive.clone()));
            let kept = self.run.stage.operator.run(&context, tables)?.batch(OUT)?;
            if kept.column_by_name(ROW_TAG).is_none() {
                return Err(Error::internal("a fixpoint operator must keep the hidden row tag"));
            }
            if kept.num_rows() == alive.num_rows() {
                continue;
            }
            // Operators filter, so tags stay sorted.
            let kept = tags(&kept).values().clone();
            let gone: Vec<bool> = tags(&alive)
                .values()
                .iter()
                .map(|tag| kept.binary_search(tag).is_err())
                .collect();
            for (row, tag) in tags(&loaded.keys).values().iter().enumerate() {
                loaded.alive[row] = loaded.alive[row] && kept.binary_search(tag).is_ok();
            }
            let gone = filter_record_batch(&alive, &BooleanArray::from(gone))?;
            for (other, columns) in self.sides.iter().enumerate().filter(|(other, _)| *other != side) {
                let parcel = Parcel {
                    to: 0,
                    port: 0,
                    part: 0,
                    seq: 0,
                    batches: vec![gone.clone()],
                };
                for mut piece in split(parcel, other as u16, columns)? {
                    piece.to += (other * PARTITIONS) as u64;
                    dropped.push(piece);
                }
            }
        }
        Ok(dropped)
    }

    /// The rows that are left in the next partition of side 0.
    fn next_result(&mut self) -> Result<Option<Vec<Parcel>>> {
        let Some((partition, mut buffer)) = self.rows.pop_first() else {
            return Ok(None);
        };
        let loaded = self.loaded.remove(&partition);
        let loaded = loaded.ok_or_else(|| Error::internal("rows without keys in a fixpoint"))?;
        let all = tags(&loaded.keys).values();
        let alive = |tag: &u64| all.binary_search(tag).is_ok_and(|row| loaded.alive[row]);
        let mut batches = Vec::new();
        for batch in buffer.take()? {
            let mask: BooleanArray = tags(&batch).values().iter().map(|tag| Some(alive(tag))).collect();
            let left = filter_record_batch(&batch, &mask)?;
            let columns: Vec<usize> = (0..left.num_columns() - 1).collect();
            batches.push(left.project(&columns)?);
        }
        let schema: Option<SchemaRef> = batches.first().map(RecordBatch::schema);
        let outputs = match schema {
            Some(schema) => Tables::new().with(OUT, Table::Batches(schema, batches)),
            None => Tables::new(),
        };
        Ok(Some(self.run.parcels(partition as u32, 0, &outputs)?))
    }
}

/// Tags the rows of a parcel with their place in the canonical order and deals them: whole rows to side 0, the key
/// columns to the other sides.
fn deal(parcel: Parcel, sides: &[Vec<String>]) -> Result<Vec<Parcel>> {
    let mut tagged = Vec::new();
    // A parcel has at most 2^16 rows (CHUNK_ROWS), so 24 bits of part and 24 of place are left.
    let mut next = u64::from(parcel.part) << 40 | u64::from(parcel.seq) << 16;
    for batch in &parcel.batches {
        let end = next + batch.num_rows() as u64;
        tagged.push(with_tags(batch, UInt64Array::from_iter_values(next..end))?);
        next = end;
    }
    let mut pieces = Vec::new();
    for (side, columns) in sides.iter().enumerate() {
        let batches = match side {
            0 => tagged.clone(),
            _ => tagged
                .iter()
                .map(|batch| key_part(batch, sides))
                .collect::<Result<_>>()?,
        };
        for mut piece in split(
            Parcel {
                batches,
                ..parcel.clone()
            },
            side as u16,
            columns,
        )? {
            piece.to += (side * PARTITIONS) as u64;
            pieces.push(piece);
        }
    }
    Ok(pieces)
}

fn with_tags(batch: &RecordBatch, tags: UInt64Array) -> Result<RecordBatch> {
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new(ROW_TAG, DataType::UInt64, false)));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(tags));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

/// The key columns of all sides and the tag.
fn key_part(batch: &RecordBatch, sides: &[Vec<String>]) -> Result<RecordBatch> {
    let mut columns = key_columns(&batch.schema(), sides)?;
    columns.push(batch.num_columns() - 1);
    Ok(batch.project(&columns)?)
}

fn tags(batch: &RecordBatch) -> &UInt64Array {
    batch.column(batch.num_columns() - 1).as_primitive::<UInt64Type>()
}
