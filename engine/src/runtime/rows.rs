//! `Rows`: the operator is called once per parcel, where the parcel is.

use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::operator::Operator;
use timely::dataflow::operators::probe::{Handle, Probe};

use super::source::Parcels;
use super::stage::StageRun;
use crate::table::{Table, Tables};

/// Calls the operator with every parcel of `input` at `port`. Parcels are dealt to workers by their place.
pub(crate) fn rows<'scope>(input: Parcels<'scope>, run: &StageRun, port: &str, acks: &Handle<u64>) -> Parcels<'scope> {
    let (run, port) = (run.clone(), port.to_string());
    let deal = Exchange::new(|parcel: &super::parcel::Parcel| u64::from(parcel.part) + u64::from(parcel.seq));
    input
        .unary(deal, "rows", move |_, _| {
            move |input, output| {
                input.for_each(|capability, parcels| {
                    for parcel in parcels.drain(..) {
                        let parcels = run.call(|stage| {
                            let mut tables = run.broadcast.clone();
                            if let Some(first) = parcel.batches.first() {
                                tables.insert(&port, Table::Batches(first.schema(), parcel.batches.clone()));
                                let outputs = stage.operator.run(&run.context, tables)?;
                                run.parcels(parcel.part, parcel.seq, &outputs)
                            } else {
                                run.parcels(parcel.part, parcel.seq, &Tables::new())
                            }
                        });
                        let mut session = output.session(&capability);
                        for parcel in parcels.into_iter().flatten() {
                            session.give(parcel);
                        }
                    }
                });
            }
        })
        .probe_with(acks)
}
