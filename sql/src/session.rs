//! A session: where statements are planned and run, within limits.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DataFusionError, ParamValues, ScalarValue};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream, execute_stream};
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use futures_util::StreamExt;
use sluice_engine::error::did_you_mean;
use sluice_engine::operator::Cancel;
use sluice_engine::process::machine_memory;
use sluice_engine::{Error, Kind, Result};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::catalog::{AsOf, Catalogs, STAGES, STORE, Source, View};
use crate::failure::explain;
use crate::files;
use crate::first_rows::FirstRows;
use crate::functions;
use crate::join_filters::JoinFilters;
use crate::outputs::Outputs;
use crate::row_numbers::RowNumbers;
use crate::statement::Statement;

/// How often a waiting caller looks whether it should stop.
pub(crate) const LOOK: Duration = Duration::from_millis(20);

/// Rows of a batch: twice DataFusion's default, which costs less a row in scans with filters.
const BATCH: usize = 1 << 14;

/// Stack of a thread: an expression of many terms is a deep tree. Only what is used of it takes memory.
pub(crate) const STACK: usize = 64 << 20;

/// What a session may use.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Threads; 0 for as many as the machine has.
    pub threads: usize,
    /// Bytes that all statements of the session may hold; beyond it sorts, joins and aggregations spill. Half of what the
    /// machine has if not said.
    pub memory: Option<usize>,
    /// Where they spill to; a temporary folder of the system if there is none.
    pub spill: Option<PathBuf>,
    /// How long a statement may run.
    pub timeout: Option<Duration>,
}

/// Plans and runs statements.
#[derive(Clone)]
pub struct Session {
    context: SessionContext,
    runtime: Arc<Runtime>,
    limits: Limits,
    cancel: Cancel,
    /// Ends the statements of this session alone.
    own: Option<Cancel>,
    view: Option<Arc<View>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Session")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A session without tables. Setting `cancel` ends whatever statement runs.
    pub fn new(limits: &Limits, cancel: &Cancel) -> Result<Session> {
        let threads = match limits.threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            threads => threads,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_stack_size(STACK)
            .thread_name("sql")
            .enable_all()
            .build()
            .map_err(|error| Error::new(Kind::Device, "no-threads", format!("cannot start threads: {error}")))?;
        let memory = limits
            .memory
            .unwrap_or_else(|| machine_memory().map_or(4 << 30, |bytes| bytes / 2));
        let most = NonZeroUsize::new(3).expect("3 is not 0");
        let pool = TrackConsumersPool::new(FairSpillPool::new(memory), most);
        let mut disk = DiskManagerBuilder::default();
        if let Some(folder) = &limits.spill {
            disk = disk.with_mode(DiskManagerMode::Directories(vec![folder.clone()]));
        }
        let environment = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(disk)
            .build_arc()
            .map_err(|error| explain(error, ""))?;
        let state = SessionStateBuilder::new()
            .with_config(config(threads))
            .with_runtime_env(environment)
            .with_default_features()
            .with_physical_optimizer_rule(Arc::new(FirstRows))
            .with_physical_optimizer_rule(Arc::new(RowNumbers))
            .with_physical_optimizer_rule(Arc::new(JoinFilters))
            .build();
        let context = SessionContext::new_with_state(state);
        functions::register(&context);
        Ok(Session {
            context,
            runtime: Arc::new(runtime),
            limits: limits.clone(),
            cancel: cancel.clone(),
            own: None,
            view: None,
        })
    }

    /// The same session over the tables of a store.
    pub fn over(mut self, source: Source) -> Result<Session> {
        files::register(&self.context, &source);
        self.look_at(View::new(source)?);
        Ok(self)
    }

    fn look_at(&mut self, view: View) {
        let view = Arc::new(view);
        self.context.register_catalog_list(Arc::new(Catalogs(view.clone())));
        self.context.register_udtf("outputs", Arc::new(Outputs(view.clone())));
        self.context.register_udtf("run", Arc::new(AsOf(view.clone())));
        self.view = Some(view);
    }

    /// Names of tables that statements may use as they are.
    pub fn tables(&self) -> Vec<String> {
        self.view.as_ref().map_or_else(Vec::new, |view| {
            view.refresh();
            crate::catalog::names(view)
        })
    }

    /// Names of functions that statements may use.
    pub fn functions(&self) -> Vec<String> {
        let state = self.context.state();
        let mut names: Vec<String> = state
            .scalar_functions()
            .keys()
            .chain(state.aggregate_functions().keys())
            .chain(state.window_functions().keys())
            .cloned()
            .collect();
        names.sort_unstable();
        names
    }

    /// Names of a table's columns; none if there is no such table.
    pub fn columns(&self, table: &str) -> Vec<String> {
        let rows = self.query(&format!("SELECT * FROM {table} LIMIT 0"));
        let schema = rows.map(|rows| rows.schema());
        schema.map_or_else(
            |_| Vec::new(),
            |schema| schema.fields().iter().map(|field| field.name().clone()).collect(),
        )
    }

    /// The same session for a statement beside others: what names mean is looked up for it alone.
    pub(crate) fn apart(&self) -> Session {
        let mut session = self.clone();
        session.context = SessionContext::new_with_state(self.context.state());
        if let Some(view) = &self.view {
            session.look_at(view.anew());
        }
        session
    }

    /// The same session for a statement beside others, which `own` ends alone.
    pub fn beside(&self, own: &Cancel) -> Session {
        let mut session = self.apart();
        session.own = Some(own.clone());
        session
    }

    /// The threads that statements run on.
    pub(crate) fn threads(&self) -> tokio::runtime::Handle {
        self.runtime.handle().clone()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What ends all statements of the session.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Where tables and functions are registered.
    pub(crate) fn context(&self) -> &SessionContext {
        &self.context
    }

    /// Waits for something async.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// What the statement will do, checked against the tables.
    pub(crate) async fn plan(&self, statement: &Statement) -> Result<LogicalPlan> {
        let planned = self.plan_inner(statement).await;
        planned.map_err(|error| {
            let error = explain(error, statement.text());
            self.view.as_ref().map_or(error.clone(), |view| view.explain(error))
        })
    }

    async fn plan_inner(&self, statement: &Statement) -> Result<LogicalPlan, DataFusionError> {
        if let Some(view) = &self.view {
            view.refresh();
        }
        let plan = self
            .context
            .state()
            .statement_to_plan(statement.parsed().clone())
            .await?;
        // The second lock: what the parser let through and would still write.
        SQLOptions::new()
            .with_allow_ddl(false)
            .with_allow_dml(false)
            .with_allow_statements(false)
            .verify_plan(&plan)?;
        Ok(plan)
    }

    pub(crate) async fn physical(&self, plan: &LogicalPlan, text: &str) -> Result<Arc<dyn ExecutionPlan>> {
        let state = self.context.state();
        let physical = state.create_physical_plan(plan).await;
        physical.and_then(pausing).map_err(|error| explain(error, text))
    }

    /// Runs a statement; rows come as they are asked for.
    pub fn run(&self, statement: &Statement) -> Result<Rows> {
        self.run_with(statement, &[])
    }

    /// Runs a statement with values for its `$name`s, by name.
    pub fn run_with(&self, statement: &Statement, params: &[(String, String)]) -> Result<Rows> {
        let started = Instant::now();
        let text = statement.text().to_string();
        let planned = self.within(started, async {
            let plan = self.plan(statement).await?;
            let plan = with_params(plan, params, &text)?;
            self.physical(&plan, &text).await
        })?;
        self.start(planned, started, text)
    }

    /// Parses and runs one statement.
    pub fn query(&self, text: &str) -> Result<Rows> {
        self.run(&Statement::parse(text)?)
    }

    /// Runs what was planned.
    pub(crate) fn start(&self, physical: Arc<dyn ExecutionPlan>, started: Instant, text: String) -> Result<Rows> {
        let stream = self.stream(&physical).map_err(|error| explain(error, &text))?;
        let schema = physical.schema();
        // The statement runs on the session's threads; whoever asks for rows only waits, and can stop waiting.
        let (sender, receiver) = mpsc::channel(2);
        let task = self.runtime.spawn(async move {
            let mut stream = stream;
            while let Some(batch) = stream.next().await {
                let failed = batch.is_err();
                if sender.send(batch).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Rows {
            schema,
            session: self.clone(),
            receiver,
            task,
            started,
            text,
            ahead: None,
            over: false,
        })
    }

    /// The rows of a plan as a stream.
    pub(crate) fn stream(
        &self,
        physical: &Arc<dyn ExecutionPlan>,
    ) -> Result<SendableRecordBatchStream, DataFusionError> {
        let _inside = self.runtime.enter();
        execute_stream(physical.clone(), self.context.task_ctx())
    }

    /// Waits for something, but not beyond the statement's time, nor after it was cancelled.
    fn within<T>(&self, started: Instant, future: impl Future<Output = Result<T>>) -> Result<T> {
        self.runtime.block_on(async {
            let mut future = std::pin::pin!(future);
            loop {
                match tokio::time::timeout(LOOK, &mut future).await {
                    Ok(done) => return done,
                    Err(_) => self.check(started)?,
                }
            }
        })
    }

    /// Fails when the statement should stop.
    fn check(&self, started: Instant) -> Result<()> {
        if self.cancel.is_cancelled() || self.own.as_ref().is_some_and(Cancel::is_cancelled) {
            return Err(Error::interrupted());
        }
        match self.limits.timeout {
            Some(timeout) if started.elapsed() > timeout => Err(timed_out(timeout)),
            _ => Ok(()),
        }
    }
}

/// The plan with pauses where few rows become many: a cross join would run on without a look whether it should stop.
fn pausing(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    let multiplies = |name: &str| name.ends_with("JoinExec") || name == "UnnestExec";
    let paused = plan.transform_up(|node| match multiplies(node.name()) {
        true => Ok(Transformed::yes(
            Arc::new(CooperativeExec::new(node)) as Arc<dyn ExecutionPlan>
        )),
        false => Ok(Transformed::no(node)),
    });
    paused.map(|paused| paused.data)
}

/// The plan with values for its `$name`s: each of the type that the statement makes of it, else text.
fn with_params(plan: LogicalPlan, params: &[(String, String)], text: &str) -> Result<LogicalPlan> {
    let wanted = plan.get_parameter_types().map_err(|error| explain(error, text))?;
    let mut values: HashMap<String, ScalarAndMetadata> = HashMap::new();
    for (name, value) in params {
        let Some(kind) = wanted.get(&format!("${name}")) else {
            let mut error = Error::user("unknown-param", format!("the statement has no \"${name}\""));
            error.hint = did_you_mean(name, wanted.keys().map(|name| name.trim_start_matches('$')));
            return Err(error);
        };
        let kind = kind.clone().unwrap_or(DataType::Utf8);
        let scalar = ScalarValue::try_from_string(value.clone(), &kind)
            .map_err(|_| Error::user("bad-param", format!("\"{value}\" for \"${name}\" is no {kind}")))?;
        values.insert(name.clone(), scalar.into());
    }
    let mut missing: Vec<&str> = wanted.keys().map(|name| name.trim_start_matches('$')).collect();
    missing.retain(|name| !values.contains_key(*name));
    missing.sort_unstable();
    if let Some(first) = missing.first() {
        let message = format!("the statement wants a value for {}", missing.join(", "));
        return Err(Error::user("missing-param", message).hint(format!("--param {first}=VALUE")));
    }
    match values.is_empty() {
        true => Ok(plan),
        false => plan
            .with_param_values(ParamValues::Map(values))
            .map_err(|error| explain(error, text)),
    }
}

pub(crate) fn timed_out(timeout: Duration) -> Error {
    Error::new(
        Kind::User,
        "sql-timeout",
        format!("the statement ran for more than {} s", timeout.as_secs_f64()),
    )
    .hint("give it longer: --timeout SECONDS; EXPLAIN shows what it does")
}

/// DataFusion's settings where ours differ from its defaults.
fn config(threads: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_batch_size(BATCH)
        .with_information_schema(true)
        .with_default_catalog_and_schema(STORE, STAGES)
        .with_create_default_catalog_and_schema(false);
    let options = config.options_mut();
    // Errors that point into the statement.
    options.sql_parser.collect_spans = true;
    // As most engines have it: what is not known comes last, whichever way is up.
    options.sql_parser.default_null_ordering = "nulls_last".to_string();
    // Rows that a filter drops are not decoded.
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.reorder_filters = true;
    config
}

/// The rows of a statement.
pub struct Rows {
    schema: SchemaRef,
    session: Session,
    receiver: mpsc::Receiver<Result<RecordBatch, DataFusionError>>,
    task: tokio::task::JoinHandle<()>,
    started: Instant,
    text: String,
    /// Looked at and not yet asked for.
    ahead: Option<RecordBatch>,
    over: bool,
}

impl Rows {
    /// Names and types of the columns.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The same rows, or an error where there are none.
    pub fn or_none(mut self, none: impl FnOnce() -> Error) -> Result<Rows> {
        while let Some(batch) = Iterator::next(&mut self) {
            let batch = batch?;
            if batch.num_rows() > 0 {
                self.ahead = Some(batch);
                return Ok(self);
            }
        }
        Err(none())
    }

    /// All of them.
    pub fn collect(self) -> Result<Vec<RecordBatch>> {
        Iterator::collect(self)
    }
}

impl Iterator for Rows {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(batch) = self.ahead.take() {
            return Some(Ok(batch));
        }
        if self.over {
            return None;
        }
        let session = self.session.clone();
        let next = session.within(self.started, async { Ok(self.receiver.recv().await) });
        let next = match next {
            Ok(batch) => batch.map(|batch| batch.map_err(|error| explain(error, &self.text))),
            Err(error) => Some(Err(error)),
        };
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        // Ends a statement whose rows nobody wants.
        self.task.abort();
    }
}
