//! `sluice report DIR`: a report of `render_report` with what only a run knows: who made what, what it cost, the graph.
//!
//! The artifact is a function of its inputs, so that equal inputs make an equal report; names, times and costs are facts of a
//! run and are added here, from the records of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use sluice_engine::Error;
use sluice_engine::history::{self, RunRecord, RunState, StageSummary, summary};
use sluice_engine::key::Reason;
use sluice_engine::operator::OUT;
use sluice_engine::store::{KeyRecord, Store};
use sluice_operators::report::document::{Block, Cell, Column, Document, Made, Row, Section, Table};
use sluice_operators::report::{self, numbers};

use crate::arguments;
use crate::display::{bytes, count, say, seconds, when};
use crate::picture::{Drawn, graph};
use crate::runs::{named, newest, unknown_stage};

/// With more stages than this, costs of instances of one stage are one row.
const MOST: usize = 60;
/// What tests are called, which are counted together.
const TESTS: &str = "tests of data";

/// `sluice report DIR`.
pub fn report(command: &arguments::Report) -> Result<(), Vec<Error>> {
    let one = |error: Error| vec![error];
    let store = Store::existing(&command.store).map_err(one)?;
    let run = match &command.run {
        Some(run) => named(&store, run),
        None => newest(&store, command.pipeline.as_deref()),
    };
    let run = run.map_err(one)?;
    let stage = chosen(&store, &run, command.stage.as_deref()).map_err(one)?;
    let page = write(&store, &run, &stage, &command.folder).map_err(one)?;
    say!("{}", page.display());
    Ok(())
}

/// The report that is meant: the one of that name, or the only one.
fn chosen(store: &Store, run: &RunRecord, stage: Option<&str>) -> Result<String, Error> {
    let records = run.records(store);
    let reports: Vec<&String> = records
        .iter()
        .filter(|(_, record)| is_report(store, record))
        .map(|(stage, _)| stage)
        .collect();
    let names = || reports.iter().map(|stage| stage.as_str()).collect::<Vec<_>>();
    match (stage, reports.as_slice()) {
        (Some(stage), all) if all.iter().any(|known| *known == stage) => Ok(stage.to_string()),
        (Some(stage), _) => Err(unknown_stage(&run.run, stage, &names())),
        (None, [only]) => Ok(only.to_string()),
        (None, []) if run.state_now() != RunState::Done => {
            let message = format!("run {} has no report, and it is {}", run.run, run.state_now().name());
            Err(Error::user("no-report", message).hint("let its pipeline run to its end; --run takes an earlier run"))
        }
        (None, []) => Err(Error::user("no-report", format!("run {} has no report", run.run))
            .hint("add a stage: report: { op: render_report, inputs: { ... } }")),
        (None, _) => Err(
            Error::user("several-reports", format!("run {} has several reports", run.run))
                .detail(format!("they are: {}", names().join(", ")))
                .hint("choose one with --stage"),
        ),
    }
}

fn is_report(store: &Store, record: &KeyRecord) -> bool {
    let manifest = record.outputs.get(OUT).and_then(|digest| store.manifest(digest).ok());
    manifest.is_some_and(|manifest| manifest.layout == report::LAYOUT)
}

/// Writes the report of a stage with what the run knows, and says where its page is.
pub fn write(store: &Store, run: &RunRecord, stage: &str, folder: &Path) -> Result<PathBuf, Error> {
    let records = run.records(store);
    let gone = || {
        let message = format!("the report of stage \"{stage}\" is no longer in the store");
        Error::user("artifact-gone", message).hint("run its pipeline again")
    };
    let record = records.get(stage).ok_or_else(gone)?;
    let digest = record.outputs.get(OUT).ok_or_else(gone)?;
    let mut document = report::read(store.table(digest)?.folder()?)?;
    let known = Known::new(store, run, records.clone());
    known.add_to(&mut document, record);
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, &error))?;
    report::write(&document, folder)?;
    Ok(folder.join(report::PAGE))
}

/// What a run knows of its stages.
struct Known<'a> {
    run: &'a RunRecord,
    records: BTreeMap<String, KeyRecord>,
    /// In the order of the plan.
    stages: Vec<(String, StageSummary)>,
    /// The operator of tests.
    tests: Option<&'static str>,
}

impl<'a> Known<'a> {
    fn new(store: &Store, run: &'a RunRecord, records: BTreeMap<String, KeyRecord>) -> Self {
        let mut stages = summary(&history::events(store, &run.run));
        // A run that was pulled has a record and no events.
        if stages.is_empty() {
            stages = records
                .keys()
                .map(|stage| (stage.clone(), StageSummary::default()))
                .collect();
        }
        let tests = sluice_operators::registry().tests().map(|entry| entry.name);
        Known {
            run,
            records,
            stages,
            tests,
        }
    }

    fn add_to(&self, document: &mut Document, own: &KeyRecord) {
        let outcome = |outcome: &str| self.stages.iter().filter(|(_, stage)| stage.outcome == outcome).count();
        document.about.push(format!(
            "Run {} of {}, {} UTC: {} stages, {} ran, {} reused; {}.",
            self.run.run,
            self.run.pipeline,
            when(self.run.started),
            self.stages.len(),
            outcome("ran"),
            outcome("reused"),
            seconds(self.run.seconds)
        ));
        for source in &mut document.sources {
            let digest = own.preimage.inputs.get(&source.input);
            source.made = digest.and_then(|digest| self.maker(&source.input, digest));
        }
        let costs = Section::new("costs", "Costs", self.costs());
        let caption = "Stages and what they read (without tests); green: reused, orange: ran in this run.";
        let graph = Section::new("stages", "Stages", vec![Block::Graph(graph(caption, &self.drawn()))]);
        document.sections.extend([costs, graph]);
    }

    /// Stages before another one that made a digest, with the port; the last of them last.
    fn makers<'b>(&'b self, digest: &'b str, before: &'b str) -> impl Iterator<Item = (&'b str, &'b str)> {
        let above = self
            .stages
            .iter()
            .map(|(stage, _)| stage)
            .take_while(move |stage| *stage != before);
        above.filter_map(move |stage| {
            let outputs = &self.records.get(stage)?.outputs;
            let (port, _) = outputs.iter().find(|(_, made)| *made == digest)?;
            Some((stage.as_str(), port.as_str()))
        })
    }

    /// Who made an input. Runs do not keep edges: of several that made the same bytes it is the one that is called like the
    /// input, else the last.
    fn maker(&self, input: &str, digest: &str) -> Option<Made> {
        let makers: Vec<(&str, &str)> = self.makers(digest, "").collect();
        let alike = makers.iter().find(|(stage, _)| stage.starts_with(input));
        let (stage, port) = alike.or(makers.last())?;
        let record = self.records.get(*stage)?;
        Some(Made {
            stage: if *port == OUT {
                stage.to_string()
            } else {
                format!("{stage}.{port}")
            },
            operator: record.preimage.operator.clone(),
            key: record.key.clone(),
            run: record.run.clone(),
        })
    }

    fn drawn(&self) -> Vec<Drawn<'_>> {
        // Nothing reads a test, and there may be many.
        self.stages
            .iter()
            .filter(|(name, _)| !self.is_test(name))
            .map(|(name, stage)| {
                let record = self.records.get(name);
                let inputs = record.map(|record| record.preimage.inputs.values());
                let mut reads: Vec<&str> = Vec::new();
                for digest in inputs.into_iter().flatten() {
                    reads.extend(self.makers(digest, name).last().map(|(maker, _)| maker));
                }
                let because: Vec<String> = stage.because.iter().map(Reason::to_string).collect();
                let mut more = because.join("; ");
                if let Some(record) = record {
                    more.push_str(&format!(
                        "\n{}, {}\nkey {}\nmade in run {}",
                        seconds(record.seconds),
                        bytes(record.bytes),
                        record.key,
                        record.run
                    ));
                }
                Drawn {
                    name,
                    base: name.split('[').next().unwrap_or(name),
                    operator: record.map_or("", |record| record.preimage.operator.as_str()),
                    fate: (
                        class(stage.outcome),
                        if stage.outcome.is_empty() {
                            "done"
                        } else {
                            stage.outcome
                        },
                    ),
                    more,
                    reads,
                }
            })
            .collect()
    }

    /// What every stage cost when it was made, and what of that this run paid.
    fn costs(&self) -> Vec<Block> {
        let mut rows: Vec<(String, Cost)> = Vec::new();
        let grouped = self.stages.iter().filter(|(stage, _)| !self.is_test(stage)).count() > MOST;
        let (mut paid, mut all, mut keys) = (Cost::default(), Cost::default(), BTreeSet::new());
        for (stage, done) in &self.stages {
            let Some(record) = self.records.get(stage) else {
                continue;
            };
            let cost = Cost::of(record, done.outcome == "ran");
            // Stages of one key were made once.
            if keys.insert(&record.key) {
                all.add(&cost);
            }
            if done.outcome == "ran" {
                paid.add(&cost);
            }
            let name = match (self.is_test(stage), grouped) {
                (true, _) => TESTS,
                (false, true) => stage.split('[').next().unwrap_or(stage),
                (false, false) => stage.as_str(),
            };
            match rows.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.add(&cost),
                None => rows.push((name.to_string(), cost)),
            }
        }
        let columns = vec![
            Column::words("stage"),
            Column::words("operator"),
            Column::words("here").about("what became of it in this run"),
            Column::numbers("time").about("wall-clock time from start to publication, when it was made"),
            Column::numbers("CPU").about("processor time of the whole process while it ran"),
            Column::numbers("peak memory").about("of the whole process while it ran"),
            Column::numbers("FLOP").about("of matrix products, where the operator tells"),
            Column::numbers("energy").about("of the whole machine, where it tells"),
            Column::numbers("rows"),
            Column::numbers("size"),
        ];
        let caption = "What every stage took when it was made, in this run or an earlier one. Stages that ran at the same time share \
            CPU time, memory and energy; there, sums count them twice.";
        let mut table = Table::new(caption, columns);
        table.rows = rows.into_iter().map(|(name, cost)| cost.row(name)).collect();
        table.rows.push(paid.row("this run".to_string()).strong());
        table
            .rows
            .push(all.row("everything, also what was reused".to_string()).strong());
        vec![Block::Table(table.without_empty_columns())]
    }

    fn is_test(&self, stage: &str) -> bool {
        let record = self.records.get(stage);
        record.is_some_and(|record| Some(record.preimage.operator.as_str()) == self.tests)
    }
}

/// What one stage or several took.
#[derive(Default)]
struct Cost {
    operator: String,
    ran: usize,
    reused: usize,
    seconds: f64,
    cpu_seconds: f64,
    peak_memory: u64,
    flops: f64,
    energy: Option<f64>,
    rows: u64,
    bytes: u64,
}

impl Cost {
    fn of(record: &KeyRecord, ran: bool) -> Self {
        Cost {
            operator: record.preimage.operator.clone(),
            ran: usize::from(ran),
            reused: usize::from(!ran),
            seconds: record.seconds,
            cpu_seconds: record.usage.cpu_seconds,
            peak_memory: record.usage.peak_memory,
            flops: record
                .notes
                .get("training_flops")
                .and_then(|flops| flops.as_f64())
                .unwrap_or(0.0),
            energy: record.usage.energy,
            rows: record.rows.values().sum(),
            bytes: record.bytes,
        }
    }

    fn add(&mut self, other: &Cost) {
        self.ran += other.ran;
        self.reused += other.reused;
        self.seconds += other.seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.peak_memory = self.peak_memory.max(other.peak_memory);
        self.flops += other.flops;
        self.energy = match (self.energy, other.energy) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
        };
        self.rows += other.rows;
        self.bytes += other.bytes;
    }

    fn row(&self, name: String) -> Row {
        let here = match (self.ran, self.reused) {
            (1, 0) => "ran".to_string(),
            (0, 1) => "reused".to_string(),
            (ran, 0) => format!("{ran} ran"),
            (0, reused) => format!("{reused} reused"),
            (ran, reused) => format!("{ran} ran, {reused} reused"),
        };
        let positive = |value: f64, text: fn(f64) -> String| if value > 0.0 { text(value) } else { String::new() };
        let cells = [
            name,
            self.operator.clone(),
            here,
            seconds(self.seconds),
            seconds(self.cpu_seconds),
            bytes(self.peak_memory),
            positive(self.flops, numbers::flops),
            self.energy.map(numbers::joules).unwrap_or_default(),
            count(self.rows),
            bytes(self.bytes),
        ];
        Row::new(cells.map(Cell::new).to_vec())
    }
}

/// The class of the drawing for what became of a stage.
fn class(outcome: &str) -> &'static str {
    match outcome {
        "ran" | "agrees" => "run",
        "reused" | "" => "reuse",
        "failed" | "differs" => "failed",
        _ => "skip",
    }
}
