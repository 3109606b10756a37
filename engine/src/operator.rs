//! What an operator is: a config, a static `bind`, and a `run` over Arrow tables.
//!
//! An operator never sees the dataflow. `bind` declares how the rows of its inputs are distributed and
//! the engine does the parallelism; `run` is a function of (config, context, input tables).

mod peers;
mod registry;

pub use peers::{Alone, Peers};
pub use registry::{Entry, Field, Instance, Registry};

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::random::Random;
use crate::table::{Shape, Tables};

/// The name of an operator's only, or main, output port.
pub const OUT: &str = "out";

/// The port at which `run` receives the blocks that a [`Source`] produced.
pub const BLOCKS: &str = "blocks";

/// Number of logical partitions of a `By` distribution: fixed, so that bytes do not depend on workers.
pub const PARTITIONS: usize = 16;

/// Facts an operator tells about a finished stage (`{"dropped": 1027}`): kept in the manifest, shown by the CLI.
pub type Notes = Map<String, Value>;

/// A step of a pipeline. The implementing struct is its config; its doc comment is its reference page.
///
/// Config fields are part of the key unless marked `#[schemars(extend("x-resource" = true))]`. Those marked
/// `#[schemars(extend("x-extent" = true))]` say how far to go (steps, epochs): they are part of the key, but not of the
/// lineage under which checkpoints are kept, where [`Operator::extendable`] says so. Those marked
/// `#[schemars(extend("x-late" = true))]` came when there were artifacts already: at their default they are not part of
/// the key, so that it stays what it was. A field without a meaningful default is marked
/// `#[schemars(extend("x-required" = true))]`.
/// The struct carries `#[serde(default, deny_unknown_fields)]` and `impl Default` is the only home of defaults.
pub trait Operator: Default + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The name in pipelines: a verb and its object.
    const NAME: &'static str;
    /// Bumped when equal input would give different output.
    const VERSION: u32;
    /// Whether `run` may draw random numbers; see [`Operator::seeded`].
    const SEEDED: bool = false;
    /// The input ports. A single required port is connected by `input:`.
    const INPUTS: &'static [Input] = &[];

    /// Whether `run` draws random numbers under this config; then the seed is part of the key.
    fn seeded(&self) -> bool {
        Self::SEEDED
    }

    /// How far two runs of equal input agree.
    fn determinism(&self) -> Determinism {
        Determinism::Exact
    }

    /// Whether a longer extent (fields marked `x-extent`) may go on from the state that a shorter one left.
    fn extendable(&self) -> bool {
        false
    }

    /// Checks config and input schemas, and declares ports and distribution. Reads no rows.
    /// Problems go to [`Binding::problem`]; binding goes on, so that all of them are reported at once.
    fn bind(&self, binding: &Binding) -> Bound;

    /// How many independent splits [`Operator::open`] has. Only called for [`Distribution::Source`].
    fn splits(&self, _context: &Context) -> Result<usize> {
        Ok(1)
    }

    /// Opens a split of a source; its blocks reach `run` at the port [`BLOCKS`].
    fn open(&self, _context: &Context, _split: usize) -> Result<Box<dyn Source>> {
        Err(Error::internal(format!("{} is not a source", Self::NAME)))
    }

    /// The work, on whatever share of the rows the declared distribution says. Must be a pure function.
    fn run(&self, context: &Context, inputs: Tables) -> Result<Tables>;

    /// Called once when every row is written and nothing is published yet: the last chance to refuse,
    /// and the place to state facts. Rows in by port; the outputs can be read.
    fn conclude(&self, _context: &Context, _rows_in: &BTreeMap<String, u64>, _outputs: &Tables) -> Result<Notes> {
        Ok(Notes::new())
    }
}

/// How far two runs of equal input agree, on one kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Determinism {
    /// To the bit.
    Exact,
    /// Numbers within this much of each other, relative to the larger of the two or to 1; all else equal.
    Tolerance(f64),
}

/// An input port of an operator.
#[derive(Clone, Copy, Debug)]
pub struct Input {
    /// Name of the port.
    pub name: &'static str,
    /// Whether a pipeline must connect it.
    pub required: bool,
    /// What it wants, in a line.
    pub about: &'static str,
}

impl Input {
    /// A port that must be connected.
    pub const fn required(name: &'static str, about: &'static str) -> Self {
        Input {
            name,
            required: true,
            about,
        }
    }

    /// A port that may be left open.
    pub const fn optional(name: &'static str, about: &'static str) -> Self {
        Input {
            name,
            required: false,
            about,
        }
    }
}

/// How rows reach `run`. Inputs that are not named here are broadcast: every call sees all of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Distribution {
    /// No streamed input: blocks of the operator's own source reach `run` one by one, on any worker.
    Source,
    /// Once per batch of this input, as batches stream in, on any worker. Output keeps the batches' order.
    Rows(String),
    /// Once per logical partition, with the rows of each named input that hash there by its columns, in their order.
    By(Vec<(String, Vec<String>)>),
    /// Round after round, partitioned by each of the column lists in turn, until no row is dropped.
    /// `run` sees the key columns (and a hidden row tag) and returns the rows it keeps. It must be monotone:
    /// with fewer rows in, it never keeps a row that it would have dropped.
    Fixpoint(String, Vec<Vec<String>>),
    /// Once, with all rows of all inputs, on a compute thread; or once per process, see [`Bound::peers`].
    Whole,
}

/// What is known of a result besides its columns, by name: how its rows were chosen, ordered or made. Stages inherit
/// facts from what they read, so that one far below can tell whether two of its inputs belong together. A name has several
/// values where inputs differ. Facts are known before anything runs; they are part of no key and of no artifact.
pub type Facts = BTreeMap<String, BTreeSet<String>>;

/// What `bind` declares.
#[derive(Clone, Debug)]
pub struct Bound {
    /// How rows reach `run`.
    pub distribution: Distribution,
    /// Output ports in order; the first is the default.
    pub outputs: Vec<(String, Shape)>,
    /// Files outside the store that the result depends on; their content is part of the key.
    pub files: Vec<PathBuf>,
    /// Facts that it states; in a checked pipeline, those that it inherits as well.
    pub facts: Facts,
    /// Inputs whose facts are not inherited.
    pub apart: Vec<String>,
    /// How many calls may share the work of a [`Distribution::Whole`].
    pub peers: usize,
}

impl Bound {
    /// Declares a distribution; outputs follow.
    pub fn new(distribution: Distribution) -> Self {
        Bound {
            distribution,
            outputs: Vec::new(),
            files: Vec::new(),
            facts: Facts::new(),
            apart: Vec::new(),
            peers: 1,
        }
    }

    /// Once per batch of `input`.
    pub fn rows(input: &str) -> Self {
        Self::new(Distribution::Rows(input.to_string()))
    }

    /// Once per partition of `input` by `columns`.
    pub fn by(input: &str, columns: &[&str]) -> Self {
        Self::new(Distribution::By(Vec::new())).and_by(input, columns)
    }

    /// Partitions a further input of a `By` distribution.
    pub fn and_by(mut self, input: &str, columns: &[&str]) -> Self {
        if let Distribution::By(inputs) = &mut self.distribution {
            inputs.push((input.to_string(), columns.iter().map(|c| c.to_string()).collect()));
        }
        self
    }

    /// Once, with everything.
    pub fn whole() -> Self {
        Self::new(Distribution::Whole)
    }

    /// Lets up to so many calls share the work of [`Distribution::Whole`]: one in each of the first processes of the
    /// run, as many as there are, each with all inputs and with [`Context::peers`] to reach the others. The first call
    /// makes the output; it must not depend on how many there were. Each takes of its process what `resources:` says.
    pub fn peers(mut self, calls: usize) -> Self {
        self.peers = calls.max(1);
        self
    }

    /// Adds an output port.
    pub fn output(mut self, port: &str, shape: Shape) -> Self {
        self.outputs.push((port.to_string(), shape));
        self
    }

    /// Adds the output port [`OUT`].
    pub fn out(self, shape: Shape) -> Self {
        self.output(OUT, shape)
    }

    /// Adds files whose content the result depends on.
    pub fn files(mut self, files: impl IntoIterator<Item = PathBuf>) -> Self {
        self.files.extend(files);
        self
    }

    /// States a fact; it takes the place of inherited ones of that name.
    pub fn fact(mut self, name: &str, value: impl Into<String>) -> Self {
        self.facts.insert(name.to_string(), BTreeSet::from([value.into()]));
        self
    }

    /// Does not inherit the facts of an input: it is about something else.
    pub fn apart(mut self, input: &str) -> Self {
        self.apart.push(input.to_string());
        self
    }

    /// Takes over the facts of the inputs, where it states none of that name itself.
    pub(crate) fn inherit(&mut self, inputs: &BTreeMap<String, Facts>) {
        let own: BTreeSet<String> = self.facts.keys().cloned().collect();
        for (_, facts) in inputs.iter().filter(|(input, _)| !self.apart.contains(input)) {
            for (name, values) in facts.iter().filter(|(name, _)| !own.contains(*name)) {
                self.facts
                    .entry(name.clone())
                    .or_default()
                    .extend(values.iter().cloned());
            }
        }
    }

    /// The declared shape of an output port.
    pub fn shape(&self, port: &str) -> Option<&Shape> {
        self.outputs
            .iter()
            .find(|(name, _)| name == port)
            .map(|(_, shape)| shape)
    }
}

/// A problem found by `bind`, attached to a config field where there is one.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The config field, if the problem lies there.
    pub field: Option<String>,
    /// The input port, if the problem lies there.
    pub input: Option<String>,
    /// What is wrong and what to do.
    pub error: Error,
}

/// What `bind` may look at, and where it reports problems.
pub struct Binding<'a> {
    data_root: &'a Path,
    inputs: &'a BTreeMap<String, Shape>,
    facts: BTreeMap<String, Facts>,
    problems: RefCell<Vec<Problem>>,
}

impl<'a> Binding<'a> {
    /// A binding over input shapes by port.
    pub fn new(data_root: &'a Path, inputs: &'a BTreeMap<String, Shape>) -> Self {
        Binding {
            data_root,
            inputs,
            facts: BTreeMap::new(),
            problems: RefCell::default(),
        }
    }

    /// The same with facts of the inputs by port.
    pub fn with_facts(mut self, facts: BTreeMap<String, Facts>) -> Self {
        self.facts = facts;
        self
    }

    /// The facts of an input.
    pub fn facts(&self, input: &str) -> Facts {
        self.facts.get(input).cloned().unwrap_or_default()
    }

    /// Whether the port is connected.
    pub fn has(&self, input: &str) -> bool {
        self.inputs.contains_key(input)
    }

    /// Names of the connected ports, in order.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// The schema at a port, if it is connected to a table that bound.
    pub fn schema(&self, input: &str) -> Option<&SchemaRef> {
        self.inputs.get(input).and_then(Shape::schema)
    }

    /// The shape at a port, [`Shape::Unknown`] if it is not connected.
    pub fn shape(&self, input: &str) -> Shape {
        self.inputs.get(input).cloned().unwrap_or(Shape::Unknown)
    }

    /// A path of the config, resolved against the data root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.data_root.join(path)
    }

    /// A path of the config that must exist: reports `file-not-found` on `field` otherwise.
    pub fn existing(&self, field: &str, path: &str) -> PathBuf {
        let full = self.path(path);
        if path.is_empty() {
            self.problem(field, Error::user("missing-key", format!("\"{field}\" is empty")));
        } else if !full.exists() {
            self.problem(
                field,
                Error::user("file-not-found", format!("no such file: \"{}\"", full.display()))
                    .hint("relative paths start at the data root: --data DIR, else SLUICE_DATA, else data/"),
            );
        }
        full
    }

    /// Reports a problem with a config field.
    pub fn problem(&self, field: &str, error: Error) {
        self.problems.borrow_mut().push(Problem {
            field: Some(field.to_string()),
            input: None,
            error,
        });
    }

    /// Reports `bad-value` for a config field: the message says what is wrong.
    pub fn bad_value(&self, field: &str, message: impl Into<String>) {
        self.problem(field, Error::user("bad-value", message));
    }

    /// Reports a problem with an input.
    pub fn input_problem(&self, input: &str, error: Error) {
        self.problems.borrow_mut().push(Problem {
            field: None,
            input: Some(input.to_string()),
            error,
        });
    }

    /// Requires columns of given types at a port and reports each one missing or mistyped.
    pub fn require(&self, input: &str, columns: &[(&str, DataType)]) {
        let Some(schema) = self.schema(input) else {
            if let Shape::Folder(layout) = self.shape(input) {
                self.input_problem(
                    input,
                    Error::user(
                        "wrong-input",
                        format!("input \"{input}\" wants a table, not a {layout} folder"),
                    ),
                );
            }
            return;
        };
        for (name, wanted) in columns {
            match schema.field_with_name(name) {
                Err(_) => self.missing_column(input, name),
                Ok(field) if field.data_type() != wanted => self.input_problem(
                    input,
                    Error::user(
                        "wrong-type",
                        format!(
                            "column \"{name}\" of input \"{input}\" is {}, not {wanted}",
                            field.data_type()
                        ),
                    ),
                ),
                Ok(_) => {}
            }
        }
    }

    /// Reports that a column is missing at a port, with the columns that are there.
    pub fn missing_column(&self, input: &str, name: &str) {
        let names: Vec<&str> = self
            .schema(input)
            .map(|schema| schema.fields().iter().map(|field| field.name().as_str()).collect())
            .unwrap_or_default();
        let mut error = Error::user("missing-column", format!("input \"{input}\" has no column \"{name}\""))
            .detail(format!("it has: {}", names.join(", ")));
        error.hint = crate::error::did_you_mean(name, names);
        self.input_problem(input, error);
    }

    /// The problems reported so far.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }
}

/// Blocks of raw input, in order. Each block is a batch of the operator's own making.
pub trait Source: Send {
    /// The next block, or `None` at the end.
    fn next(&mut self) -> Result<Option<RecordBatch>>;
}

/// How far a stage is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, serde::Deserialize)]
pub struct Progress {
    /// Units done.
    pub done: u64,
    /// Units in all, if known.
    pub total: Option<u64>,
    /// What a unit is: `rows`, `steps`, `users`.
    pub unit: String,
    /// Figures worth watching, such as `loss`.
    pub figures: Vec<(String, f64)>,
}

/// Receives what a running operator tells about itself.
pub trait Report: Send + Sync {
    /// How far it is.
    fn progress(&self, progress: Progress);
}

/// A report that goes nowhere.
pub struct Silent;

impl Report for Silent {
    fn progress(&self, _: Progress) {}
}

/// Set when the run should stop; long loops look at it.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everyone to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Takes it back: for programs that go on with something else.
    pub fn clear(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether someone asked.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a long stage may keep its state, and how often.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// A folder that belongs to this stage's lineage: config apart from the extent, seed, files, inputs. What is in it
    /// survives a killed run. States must be written whole or not at all.
    pub folder: PathBuf,
    /// Time between two states.
    pub every: std::time::Duration,
}

/// What the store holds of the same operator with the same config over other inputs.
pub trait Earlier: Send + Sync {
    /// Inputs and outputs of earlier results, newest first. Opened one by one, so that whoever looks no further than the
    /// newest reads no more.
    fn results(&self) -> Box<dyn Iterator<Item = (Tables, Tables)> + '_>;
}

/// Nothing earlier.
pub struct Never;

impl Earlier for Never {
    fn results(&self) -> Box<dyn Iterator<Item = (Tables, Tables)> + '_> {
        Box::new(std::iter::empty())
    }
}

/// What `run` may use besides its inputs.
#[derive(Clone)]
pub struct Context {
    /// The operator's name.
    pub operator: &'static str,
    /// The run's seed.
    pub seed: u64,
    /// Where relative data paths start.
    pub data_root: PathBuf,
    /// A private folder of this attempt: folder outputs are made here.
    pub attempt: PathBuf,
    /// The logical partition, for `By`.
    pub partition: Option<usize>,
    /// Which of the column lists this call is partitioned by, for `Fixpoint`: only its keys are complete here.
    pub side: Option<usize>,
    /// Set when the run should stop.
    pub cancel: Cancel,
    /// Receives progress.
    pub report: Arc<dyn Report>,
    /// Where to keep state, for operators that run once and long.
    pub checkpoint: Option<Checkpoint>,
    /// Earlier results over other inputs, for operators whose rows are independent.
    pub earlier: Arc<dyn Earlier>,
    /// Device ids that this call was given, if the stage asked for some.
    pub gpus: Vec<usize>,
    /// The calls that share the work of this one.
    pub peers: Arc<dyn Peers>,
    /// Content digests of the inputs by port, of those that were published when the stage began: all of them, for
    /// `Whole`. They are part of the key, so whatever is made of them is a function of the inputs.
    pub inputs: BTreeMap<String, String>,
    /// Facts that calls stated so far; clones share them. See [`Context::note`].
    pub notes: Arc<Mutex<Notes>>,
}

impl Context {
    /// A context outside any partition that reports to nobody.
    pub fn new(operator: &'static str, seed: u64, data_root: &Path, attempt: &Path, cancel: &Cancel) -> Self {
        Context {
            operator,
            seed,
            data_root: data_root.to_path_buf(),
            attempt: attempt.to_path_buf(),
            partition: None,
            side: None,
            cancel: cancel.clone(),
            report: Arc::new(Silent),
            checkpoint: None,
            earlier: Arc::new(Never),
            gpus: Vec::new(),
            peers: Arc::new(Alone),
            inputs: BTreeMap::new(),
            notes: Arc::default(),
        }
    }

    /// Random numbers for one purpose, keyed by the run's seed and the operator.
    pub fn random(&self, purpose: &str) -> Random {
        Random::new(self.seed, self.operator, purpose)
    }

    /// A path of the config, resolved against the data root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.data_root.join(path)
    }

    /// Makes and returns the folder of a folder output port.
    pub fn folder(&self, port: &str) -> Result<PathBuf> {
        let path = self.attempt.join(port);
        std::fs::create_dir_all(&path).map_err(|error| Error::io("create", &path, &error))?;
        Ok(path)
    }

    /// Tells how far the stage is.
    pub fn progress(&self, done: u64, total: Option<u64>, unit: &str, figures: &[(&str, f64)]) {
        self.report.progress(Progress {
            done,
            total,
            unit: unit.to_string(),
            figures: figures.iter().map(|(name, value)| (name.to_string(), *value)).collect(),
        });
    }

    /// States a fact of how this call went, where [`Operator::conclude`] cannot see it: rows that were reused, the
    /// step that training went on from. Whoever states the same name later wins, `conclude` last; so this is for
    /// operators that run once.
    pub fn note(&self, name: &str, value: impl Into<Value>) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.insert(name.to_string(), value.into());
    }

    /// The facts stated so far: those of `conclude` are added to them.
    pub fn noted(&self) -> Notes {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails when the run was asked to stop. Long loops call this.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(Error::interrupted())
        } else {
            Ok(())
        }
    }
}
