//! What statements see of a store: artifacts by pipeline or run, stage and port, and the tables of the system.
//!
//! ```text
//! stage                 its only table, or that of its port "out", of the newest run
//! stage.port            another one of its tables; of a folder, a table about its files or tensors
//! run.stage             of a run (its name or the beginning of it), or of a pipeline's newest run
//! run.stage.port        likewise
//! sys.table             the system's own tables
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{
    CatalogProvider, CatalogProviderList, SchemaProvider, TableFunctionArgs, TableFunctionImpl, TableProvider,
};
use datafusion::common::DataFusionError;
use sluice_engine::error::did_you_mean;
use sluice_engine::history::{self, RunState, StageSummary};
use sluice_engine::operator::Registry;
use sluice_engine::store::Store;
use sluice_engine::table::schema_of_part;
use sluice_engine::{Error, Result};

use crate::folder;
use crate::live;
use crate::outputs::texts;
use crate::parts::{Part, PartsTable};
use crate::scope::{Port, Scope};
use crate::system;

/// The catalog that names without one are in.
pub(crate) const STORE: &str = "store";
/// The schema that names without one are in.
pub(crate) const STAGES: &str = "stages";
/// The schema of the system's own tables.
pub(crate) const SYS: &str = "sys";

/// What is looked at.
#[derive(Clone)]
pub struct Source {
    /// The store.
    pub store: Store,
    /// What `sys.operators` lists.
    pub registry: Registry,
    /// The run, or the pipeline, that names without one are about; the newest run of the store if not said.
    pub run: Option<String>,
    /// Where relative data paths start.
    pub data_root: PathBuf,
    /// Whether statements may read files outside the data root.
    pub any_file: bool,
}

/// A store as statements see it. What names mean is looked up once a statement.
pub(crate) struct View {
    pub(crate) source: Source,
    scopes: Mutex<BTreeMap<String, Option<Arc<Scope>>>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("View")
            .field("store", &self.source.store)
            .finish_non_exhaustive()
    }
}

impl View {
    pub(crate) fn new(source: Source) -> Result<Self> {
        // Said wrongly, it is an error now and not at every statement.
        if let Some(run) = &source.run {
            history::find(&source.store, run)?;
        }
        Ok(View {
            source,
            scopes: Mutex::default(),
        })
    }

    /// Another look at the same store.
    pub(crate) fn anew(&self) -> Self {
        View {
            source: self.source.clone(),
            scopes: Mutex::default(),
        }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.source.store
    }

    /// Forgets what names meant: the next statement looks anew.
    pub(crate) fn refresh(&self) {
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The stages of the run or pipeline of that name.
    pub(crate) fn scope(&self, name: &str) -> Option<Arc<Scope>> {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = scopes.get(name) {
            return known.clone();
        }
        let store = self.store();
        let found = match name {
            STORE => match &self.source.run {
                Some(run) => history::find(store, run).ok(),
                None => history::runs(store).next(),
            },
            name => history::find(store, name).ok(),
        };
        let scope = found.map(|run| Arc::new(Scope::of(store, run)));
        scopes.insert(name.to_string(), scope.clone());
        scope
    }

    /// The table of a stage's port in the run or pipeline of that name. `None` if there is no such stage.
    pub(crate) fn table(&self, scope: &str, stage: &str, port: Option<&str>) -> Result<Option<Arc<dyn TableProvider>>> {
        let Some(scope) = self.scope(scope) else {
            return Ok(None);
        };
        let Some(found) = scope.port(self.store(), stage, port)? else {
            return Ok(None);
        };
        match found.instances.is_empty() {
            // Nothing is published: what is finished so far.
            true if scope.is_under_way(stage) => live::table(self.store(), &scope, stage, port),
            true => Ok(None),
            false => artifact(self.store(), &found).map(Some),
        }
    }

    /// DataFusion's error for a table that is not there, `table 'catalog.schema.name' not found`, with what is there.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let name = error
            .message
            .strip_prefix("table '")
            .and_then(|rest| rest.strip_suffix("' not found"));
        let Some([catalog, schema, table]) = name.and_then(taken_apart) else {
            return error;
        };
        let mut better = match schema {
            SYS => {
                let names = system::names();
                let mut better = Error::user("unknown-table", format!("there is no table sys.{table}"));
                better.hint = did_you_mean(table, names.iter().map(String::as_str));
                better.detail(format!("there are: {}", names.join(", ")))
            }
            STAGES => self.unknown(catalog, table),
            // A stage that is there has no such port; else the stage is what is wrong.
            stage => match self.scope(catalog).and_then(|scope| Some((scope.find(stage)?, scope))) {
                Some((_, scope)) if scope.undone(stage).is_none() => {
                    let ports = scope.ports(self.store(), stage);
                    let mut better =
                        Error::user("unknown-port", format!("stage \"{stage}\" has no output \"{table}\""));
                    better.hint = did_you_mean(table, ports.iter().map(String::as_str));
                    better.detail(format!("it has: {}", ports.join(", ")))
                }
                // `run.stage`, `pipeline.stage`
                None if catalog == STORE && self.scope(stage).is_some() => self.unknown(stage, table),
                None => self.several(stage).unwrap_or_else(|| self.unknown(catalog, stage)),
                Some(_) => self.unknown(catalog, stage),
            },
        };
        better.place = error.place;
        better
    }

    /// An error for the beginning of several runs' names.
    fn several(&self, name: &str) -> Option<Error> {
        let runs = self.store().runs();
        let alike = runs.iter().filter(|run| run.starts_with(name)).count();
        history::find(self.store(), name).err().filter(|_| alike > 1)
    }

    /// An error for a name that means nothing, with names like it.
    pub(crate) fn unknown(&self, scope: &str, stage: &str) -> Error {
        let Some(known) = self.scope(scope) else {
            if scope != STORE
                && let Err(error) = history::find(self.store(), scope)
            {
                return error;
            }
            let error = Error::user("unknown-table", format!("no table \"{stage}\": the store has no run"));
            return error.hint("\"sluice run PIPELINE\" makes one; the tables of sys are there");
        };
        // What the run has of it: the stage of a port, the other instances.
        let stage = match stage.rsplit_once('.') {
            Some((whole, _)) if known.find(stage).is_none() && known.find(whole).is_some() => whole,
            _ => stage,
        };
        if let Some(told) = known.undone(stage) {
            return self.undone(&known, stage, told);
        }
        let run = &known.run;
        let base = stage.split_once('[').map(|(base, _)| base);
        if let Some((base, instances)) = base.and_then(|base| Some((base, known.find(base)?))) {
            let names: Vec<&str> = instances.iter().map(|instance| instance.name.as_str()).collect();
            let message = format!("stage \"{base}\" of run {} has no instance \"{stage}\"", run.run);
            let mut error = Error::user("unknown-table", message).detail(format!("it has: {}", names.join(", ")));
            error.hint = did_you_mean(stage, names);
            return error;
        }
        let names: Vec<&str> = known.stages().collect();
        let message = format!("run {} of \"{}\" has no stage \"{stage}\"", run.run, run.pipeline);
        let mut error = Error::user("unknown-table", message).detail(format!("it has: {}", names.join(", ")));
        error.hint = did_you_mean(stage, names);
        error
    }

    /// An error for a stage of which a run left nothing, with the run that last did.
    fn undone(&self, known: &Scope, stage: &str, told: &StageSummary) -> Error {
        let run = &known.run.run;
        let message = match (told.outcome, known.run.state_now()) {
            ("failed", _) => format!("stage \"{stage}\" failed in run {run}"),
            (_, RunState::Running) => format!("stage \"{stage}\" is not done yet in run {run}"),
            (_, RunState::Failed) => format!("stage \"{stage}\" was not done when run {run} failed"),
            (_, state) => format!("stage \"{stage}\" was not done when run {run} was {}", state.name()),
        };
        let mut error = match &told.error {
            Some(reason) => Error::user("unknown-table", format!("{message}: {reason}")),
            None => Error::user("unknown-table", message),
        };
        let instances = known.find(stage).unwrap_or_default();
        let older = history::runs(self.store())
            .skip_while(|other| other.run != *run)
            .skip(1)
            .filter(|other| other.pipeline == known.run.pipeline)
            .find(|other| instances.iter().any(|one| other.keys.contains_key(&one.name)));
        error.hint = older.map(|older| format!("run('{}', '{stage}') has an older one", older.run));
        error
    }
}

/// `catalog.schema.name` taken apart. In brackets, as instances have them, a dot is one of a name.
fn taken_apart(name: &str) -> Option<[&str; 3]> {
    let mut depth = 0;
    let mut parts = name.splitn(3, |letter: char| {
        depth += i32::from(letter == '[') - i32::from(letter == ']');
        letter == '.' && depth == 0
    });
    Some([parts.next()?, parts.next()?, parts.next()?])
}

/// The artifacts of a port as one table.
fn artifact(store: &Store, port: &Port) -> Result<Arc<dyn TableProvider>> {
    let mut schema: Option<SchemaRef> = None;
    let mut parts = Vec::new();
    for (instance, digest) in &port.instances {
        let (manifest, paths) = store.look(digest)?;
        if manifest.layout != "table" {
            let all: Vec<&str> = port.instances.iter().map(|(_, digest)| digest.as_str()).collect();
            return folder::table(store, port, &all);
        }
        let own = match paths.first() {
            Some(first) => schema_of_part(first)?,
            None => {
                return Err(Error::data(
                    "damaged-artifact",
                    format!("artifact {digest} has no part"),
                ));
            }
        };
        // Facts of the data that travel as metadata may differ between instances.
        let own = match port.axes.is_empty() {
            true => own,
            false => Arc::new(own.as_ref().clone().with_metadata(Default::default())),
        };
        match &schema {
            Some(first) if !same(first, &own) => {
                let (first, _) = &port.instances[0];
                let message = format!("\"{}\" and \"{}\" have different columns", first.name, instance.name);
                return Err(
                    Error::user("different-columns", message).hint("ask for one of them by its full name, quoted")
                );
            }
            Some(_) => {}
            None => schema = Some(own),
        }
        let constants = port.constants(instance);
        for (file, path) in manifest.files.iter().zip(paths) {
            parts.push(Part {
                path,
                bytes: file.bytes,
                rows: file.rows,
                constants: constants.clone(),
            });
        }
    }
    let schema = schema.ok_or_else(|| Error::internal("a port without instances"))?;
    if let Some(clash) = port
        .axes
        .iter()
        .find(|axis| schema.field_with_name(axis.name()).is_ok())
    {
        let message = format!("axis \"{}\" has the name of a column", clash.name());
        return Err(Error::user("duplicate-column", message).hint("ask for one instance by its full name, quoted"));
    }
    Ok(Arc::new(PartsTable::viewed(&schema, port.axes.clone(), parts)))
}

fn same(one: &SchemaRef, other: &SchemaRef) -> bool {
    let columns = |schema: &SchemaRef| -> Vec<(String, arrow::datatypes::DataType)> {
        let fields = schema.fields().iter();
        fields
            .map(|field| (field.name().clone(), field.data_type().clone()))
            .collect()
    };
    columns(one) == columns(other)
}

/// The catalogs: the store's newest run, and every run and pipeline by name.
#[derive(Debug)]
pub(crate) struct Catalogs(pub(crate) Arc<View>);

impl CatalogProviderList for Catalogs {
    fn register_catalog(&self, _: String, _: Arc<dyn CatalogProvider>) -> Option<Arc<dyn CatalogProvider>> {
        None
    }

    fn catalog_names(&self) -> Vec<String> {
        vec![STORE.to_string()]
    }

    fn catalog(&self, name: &str) -> Option<Arc<dyn CatalogProvider>> {
        (name == STORE || self.0.scope(name).is_some()).then_some(())?;
        Some(Arc::new(Catalog {
            view: self.0.clone(),
            name: name.to_string(),
        }))
    }
}

/// A run, with its stages as schemas.
#[derive(Debug)]
struct Catalog {
    view: Arc<View>,
    name: String,
}

impl CatalogProvider for Catalog {
    fn schema_names(&self) -> Vec<String> {
        let mut names = vec![STAGES.to_string(), SYS.to_string()];
        if let Some(scope) = self.view.scope(&self.name) {
            let several = |stage: &&str| scope.ports(self.view.store(), stage).len() > 1;
            names.extend(scope.stages().filter(several).map(str::to_string));
        }
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        let scope = self.view.scope(&self.name);
        let kind = match name {
            STAGES => Kind::Stages,
            SYS => Kind::System,
            name if scope.is_some_and(|scope| scope.find(name).is_some()) => Kind::Ports(name.to_string()),
            // `run.stage`, `pipeline.stage`
            name if self.name == STORE && self.view.scope(name).is_some() => {
                return Some(Arc::new(Schema {
                    view: self.view.clone(),
                    scope: name.to_string(),
                    kind: Kind::Stages,
                }));
            }
            _ => return None,
        };
        Some(Arc::new(Schema {
            view: self.view.clone(),
            scope: self.name.clone(),
            kind,
        }))
    }
}

#[derive(Debug)]
enum Kind {
    Stages,
    Ports(String),
    System,
}

#[derive(Debug)]
struct Schema {
    view: Arc<View>,
    scope: String,
    kind: Kind,
}

#[async_trait]
impl SchemaProvider for Schema {
    fn table_names(&self) -> Vec<String> {
        let Some(scope) = self.view.scope(&self.scope) else {
            return match self.kind {
                Kind::System => system::names(),
                _ => Vec::new(),
            };
        };
        match &self.kind {
            // Full names of instances are found, too, but a large sweep would bury the rest; stages of several tables are
            // listed as schemas.
            Kind::Stages => {
                let alone = |stage: &&str| scope.ports(self.view.store(), stage).len() == 1;
                scope.stages().filter(alone).map(str::to_string).collect()
            }
            Kind::Ports(stage) => scope.ports(self.view.store(), stage),
            Kind::System => system::names(),
        }
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        let found = match &self.kind {
            Kind::Stages => self.view.table(&self.scope, name, None),
            Kind::Ports(stage) => self.view.table(&self.scope, stage, Some(name)),
            Kind::System => Ok(system::table(&self.view, name)),
        };
        // Functions that give tables are asked for here as well, so what is not found is no error yet.
        found.map_err(outside)
    }

    fn table_exist(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Stages => self
                .view
                .scope(&self.scope)
                .is_some_and(|scope| scope.find(name).is_some()),
            _ => self.table_names().iter().any(|known| known == name),
        }
    }
}

/// `run('RUN', 'stage.port')`: a table as of a run, for statements that compare several.
#[derive(Debug)]
pub(crate) struct AsOf(pub(crate) Arc<View>);

impl TableFunctionImpl for AsOf {
    fn call_with_args(&self, args: TableFunctionArgs) -> Result<Arc<dyn TableProvider>, DataFusionError> {
        let texts = texts("run", args.exprs()).map_err(outside)?;
        let [run, name] = texts.as_slice() else {
            let error = Error::user("bad-sql", "run wants a run and a stage");
            return Err(outside(error.hint("run('RUN', 'stage'), run('RUN', 'stage.port')")));
        };
        let view = &self.0;
        let record = history::find(view.store(), run).map_err(outside)?;
        let scope = &record.run;
        let whole = view.table(scope, name, None);
        let found = match (whole, name.rsplit_once('.')) {
            (Ok(None), Some((stage, port))) => view.table(scope, stage, Some(port)),
            (found, _) => found,
        };
        found
            .and_then(|found| found.ok_or_else(|| view.unknown(scope, name)))
            .map_err(outside)
    }
}

/// An error of the house on its way through DataFusion.
pub(crate) fn outside(error: Error) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Names of tables for completion: stages, their ports, and those of the system.
pub(crate) fn names(view: &View) -> Vec<String> {
    let mut names: BTreeSet<String> = system::names()
        .into_iter()
        .map(|name| format!("{SYS}.{name}"))
        .collect();
    if let Some(scope) = view.scope(STORE) {
        for stage in scope.stages() {
            names.insert(stage.to_string());
            names.extend(
                scope
                    .ports(view.store(), stage)
                    .iter()
                    .map(|port| format!("{stage}.{port}")),
            );
        }
        names.extend(scope.instances().map(|name| format!("\"{name}\"")));
    }
    names.into_iter().collect()
}
