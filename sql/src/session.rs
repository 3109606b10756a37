//! A session: where statements are planned and run, within limits.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Deref;
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
use tokio::task::JoinError;

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

/// How long a session that ends waits for its threads. A statement that ran out of time may not hear of it for long.
const PARTING: Duration = Duration::from_millis(200);

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
    runtime: Arc<Threads>,
    limits: Limits,
    cancel: Cancel,
    /// Ends the statements of this session alone.
    own: Option<Cancel>,
    view: Option<Arc<View>>,
}

/// The threads of a session, which are left alone if they do not end with it.
struct Threads(Option<Runtime>);

impl Deref for Threads {
    type Target = Runtime;

    fn deref(&self) -> &Runtime {
        self.0.as_ref().expect("they are taken by nobody but drop")
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(PARTING);
        }
    }
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
            runtime: Arc::new(Threads(Some(runtime))),
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
        values.insert(name.clone(), param(name, value, &kind)?.into());
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

/// The value of a parameter. A number that its type does not hold is taken as the statement takes literals: `rank > -1` is
/// true of every rank.
fn param(name: &str, value: &str, kind: &DataType) -> Result<ScalarValue> {
    let fitted = ScalarValue::try_from_string(value.to_string(), kind).ok();
    let whole = || value.parse().ok().map(|number| ScalarValue::Int64(Some(number)));
    let number = || value.parse().ok().map(|number| ScalarValue::Float64(Some(number)));
    let literal = || whole().or_else(number).filter(|_| kind.is_numeric());
    fitted.or_else(literal).ok_or_else(|| {
        let message = format!("parameter \"{name}\" is \"{value}\", and the column is {kind}");
        Error::user("bad-param", message)
    })
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
        let (receiver, task) = (&mut self.receiver, &mut self.task);
        let next = session.within(self.started, async {
            match receiver.recv().await {
                Some(batch) => Ok(Some(batch)),
                // The last batch was before, or the statement came to another end.
                None => ended(task.await).map(|()| None),
            }
        });
        let next = match next {
            Ok(batch) => batch.map(|batch| batch.map_err(|error| explain(error, &self.text))),
            Err(error) => Some(Err(error)),
        };
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// How a statement came to its end.
fn ended(task: Result<(), JoinError>) -> Result<()> {
    task.map_err(|error| match error.is_panic() {
        true => Error::internal("a thread of the statement panicked"),
        false => Error::interrupted(),
    })
}

impl Drop for Rows {
    fn drop(&mut self) {
        // Ends a statement whose rows nobody wants.
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use datafusion::logical_expr::{
        ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
    };

    use super::*;

    fn session() -> Session {
        let limits = Limits {
            threads: 2,
            ..Limits::default()
        };
        Session::new(&limits, &Cancel::default()).unwrap()
    }

    /// Breaks for a number.
    #[derive(Debug, PartialEq, Eq, Hash)]
    struct Breaks(Signature);

    impl ScalarUDFImpl for Breaks {
        fn name(&self) -> &str {
            "breaks"
        }

        fn signature(&self) -> &Signature {
            &self.0
        }

        fn return_type(&self, _: &[DataType]) -> Result<DataType, DataFusionError> {
            Ok(DataType::Int64)
        }

        fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue, DataFusionError> {
            assert!(args.number_rows == 0, "broken on purpose");
            Ok(args.args[0].clone())
        }
    }

    #[test]
    fn a_panic_is_not_the_end_of_the_rows() {
        let session = session();
        let signature = Signature::exact(vec![DataType::Int64], Volatility::Volatile);
        session.context().register_udf(ScalarUDF::from(Breaks(signature)));
        for statement in [
            "SELECT breaks(value) AS b FROM generate_series(1, 100000)",
            "SELECT sum(breaks(value)) FROM generate_series(1, 100000)",
        ] {
            let mut rows = session.query(statement).unwrap();
            let error = rows.find_map(|batch| batch.err()).expect(statement);
            assert_eq!(
                (error.kind, error.message.contains("panicked")),
                (Kind::Internal, true),
                "{error}"
            );
            assert!(rows.next().is_none());
        }
    }

    #[test]
    fn a_session_does_not_wait_for_threads_that_go_on() {
        let session = session();
        session
            .runtime
            .spawn(async { std::thread::sleep(Duration::from_secs(60)) });
        let started = Instant::now();
        drop(session);
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn values_are_what_the_statement_makes_of_them() {
        let session = session();
        let ranks =
            "SELECT count(*) AS n FROM (SELECT arrow_cast(value, 'UInt32') AS rank FROM generate_series(1, 5)) AS t";
        let count = |condition: &str, value: &str| {
            let statement = Statement::parse(&format!("{ranks} WHERE rank {condition} $k")).unwrap();
            let rows = session.run_with(&statement, &[("k".to_string(), value.to_string())]);
            let batches = rows.and_then(Rows::collect)?;
            let shown = arrow::util::pretty::pretty_format_batches(&batches).unwrap();
            Ok::<_, Error>(shown.to_string().lines().nth(3).unwrap_or_default().to_string())
        };
        for (condition, value, wanted) in [
            ("=", "2", "| 1 |"),
            (">", "-1", "| 5 |"),
            ("=", "2.5", "| 0 |"),
            ("<", "2.5", "| 2 |"),
            ("<", "99999999999", "| 5 |"),
        ] {
            assert_eq!(count(condition, value).unwrap(), wanted, "{condition} {value}");
        }
        let error = count("=", "x").unwrap_err();
        assert_eq!(error.message, "parameter \"k\" is \"x\", and the column is UInt32");
    }
}
