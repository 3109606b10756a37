//! The calls of Flight SQL, one by one. All of them ask for the token; all that would change something are refused.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    Any, Command, DoPutPreparedStatementResult, ProstMessageExt, TicketStatementQuery,
};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest,
    HandshakeResponse, IpcMessage, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use datafusion::logical_expr::LogicalPlan;
use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use sluice_engine::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Response, Status, Streaming};

use super::access::{Access, header};
use super::answer::{Answer, Planned, aside};
use super::kept::Kept;
use super::status::{malformed, read_only, status, unknown_handle};
use super::{bounds, listing, params, plain};
use crate::session::Session;
use crate::statement::Statement;

/// Statements that are planned or run at one time.
const STATEMENTS: usize = 64;
/// Statements whose rows may still be asked for, and prepared ones.
const KEPT: usize = 1024;
/// Characters of all of them.
const KEPT_BYTES: usize = 32 << 20;
/// How long a planned statement is kept for those who ask for its rows.
const TICKETS_LAST: Duration = Duration::from_secs(600);
/// How long a prepared statement is kept that nobody uses.
const PREPARED_LAST: Duration = Duration::from_secs(3600);

/// Actions that are not refused.
const PREPARE: &str = "CreatePreparedStatement";
const CLOSE: &str = "ClosePreparedStatement";

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What answers the calls.
pub(super) struct Service {
    session: Session,
    access: Access,
    stopped: watch::Receiver<bool>,
    seats: Arc<Semaphore>,
    tickets: Kept<Planned>,
    prepared: Kept<Prepared>,
}

/// A statement that is there for several runs, and the values of the next.
struct Prepared {
    text: String,
    row: std::sync::Mutex<Option<RecordBatch>>,
}

/// What the service knows of a call's command.
enum Asked {
    Text(String),
    Prepared(Vec<u8>),
    Listing(Command, SchemaRef),
}

impl Service {
    pub(super) fn new(session: Session, access: Access, stopped: watch::Receiver<bool>) -> Self {
        Service {
            session,
            access,
            stopped,
            seats: Arc::new(Semaphore::new(STATEMENTS)),
            tickets: Kept::new(KEPT, KEPT_BYTES, TICKETS_LAST),
            prepared: Kept::new(KEPT, KEPT_BYTES, PREPARED_LAST),
        }
    }

    fn seat(&self) -> Result<OwnedSemaphorePermit, Status> {
        self.seats.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "error[busy]: {STATEMENTS} statements run already\n  hint: try again when some of them are done"
            ))
        })
    }

    /// Plans a statement, with values if it has placeholders.
    async fn plan(&self, text: String, row: Option<RecordBatch>) -> Result<Planned, Status> {
        let _seat = self.seat()?;
        let session = self.session.apart();
        aside(&self.session, async move {
            let (statement, plan) = parsed(&session, &text).await.map_err(status)?;
            let plan = params::bind(plan, row.as_ref(), statement.text()).map_err(status)?;
            Planned::of(session, &statement, plan).await.map_err(status)
        })
        .await
    }

    async fn planned(&self, asked: Asked) -> Result<Planned, Status> {
        match asked {
            Asked::Text(text) => self.plan(text, None).await,
            Asked::Prepared(handle) => {
                let found = self.prepared.find(&handle);
                let prepared = found.ok_or_else(|| unknown_handle("prepared statement"))?;
                let row = prepared.row.lock().map_err(|_| super::status::panicked())?.clone();
                self.plan(prepared.text.clone(), row).await
            }
            Asked::Listing(..) => Err(malformed("a listing is no statement")),
        }
    }

    /// A statement that can be run several times: what its rows and its placeholders are.
    async fn prepare(&self, text: String) -> Result<ActionCreatePreparedStatementResult, Status> {
        let _seat = self.seat()?;
        let session = self.session.apart();
        let (text, rows, params) = aside(&self.session, async move {
            let (statement, plan) = parsed(&session, &text).await.map_err(status)?;
            let params = params::schema(&plan, statement.text()).map_err(status)?;
            let rows = match params.fields().is_empty() {
                true => Planned::of(session, &statement, plan)
                    .await
                    .map_err(status)?
                    .schema()
                    .clone(),
                // Types may still depend on the values.
                false => plain::schema(plan.schema().as_arrow()),
            };
            Ok((text, rows, params))
        })
        .await?;
        let bytes = text.len();
        let row = std::sync::Mutex::new(None);
        let handle = self.prepared.keep(Prepared { text, row }, bytes);
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle.into(),
            dataset_schema: ipc(&rows)?,
            parameter_schema: ipc(&params)?,
        })
    }

    /// Takes the values of a prepared statement's next run.
    async fn bind(
        &self,
        handle: &[u8],
        messages: impl Stream<Item = Result<FlightData, Status>> + Send + 'static,
    ) -> Result<(), Status> {
        let found = self.prepared.find(handle);
        let prepared = found.ok_or_else(|| unknown_handle("prepared statement"))?;
        // Decoding what others sent is done where a panic stays.
        let row = aside(&self.session, async move {
            let messages = messages.map(|message| message.map_err(FlightError::from));
            let mut batches = FlightRecordBatchStream::new_from_flight_data(messages);
            let mut row: Option<RecordBatch> = None;
            while let Some(batch) = batches.next().await {
                let batch = batch.map_err(|error| malformed(format!("values that are no rows: {error}")))?;
                if batch.num_rows() == 0 {
                    continue;
                }
                if row.is_some() || batch.num_rows() > 1 {
                    let error = Error::user("bad-param", "several rows of values where one is wanted");
                    return Err(status(error.hint("run the statement once for each row")));
                }
                row = Some(batch);
            }
            Ok(row)
        })
        .await?;
        *prepared.row.lock().map_err(|_| super::status::panicked())? = row;
        Ok(())
    }
}

/// The statement and its plan before values.
async fn parsed(session: &Session, text: &str) -> Result<(Statement, LogicalPlan)> {
    let statement = bounds::parse(&params::numbered(text))?;
    let plan = session.plan(&statement).await?;
    Ok((statement, plan))
}

/// What a descriptor asks for.
fn asked(bytes: &[u8]) -> Result<Asked, Status> {
    match command(bytes)? {
        Command::CommandStatementQuery(query) => Ok(Asked::Text(query.query)),
        Command::CommandPreparedStatementQuery(query) => Ok(Asked::Prepared(query.prepared_statement_handle.to_vec())),
        Command::CommandStatementSubstraitPlan(_) => Err(Status::unimplemented("substrait plans are not taken")),
        Command::CommandStatementUpdate(_)
        | Command::CommandPreparedStatementUpdate(_)
        | Command::CommandStatementIngest(_) => Err(read_only("an update")),
        other => match listing::schema(&other).map_err(status)? {
            Some(schema) => Ok(Asked::Listing(other, schema)),
            None => Err(Status::unimplemented(format!("no command \"{}\"", other.type_url()))),
        },
    }
}

fn command(bytes: &[u8]) -> Result<Command, Status> {
    let any = Any::decode(bytes).map_err(malformed)?;
    Command::try_from(any).map_err(malformed)
}

fn ipc(schema: &Schema) -> Result<prost::bytes::Bytes, Status> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options)
        .try_into()
        .map_err(|error: arrow::error::ArrowError| status(error.into()))?;
    Ok(bytes)
}

fn one<T: Send + 'static>(answer: T) -> Answers<T> {
    Box::pin(stream::iter([Ok(answer)]))
}

fn none<T: Send + 'static>() -> Answers<T> {
    Box::pin(stream::empty())
}

#[tonic::async_trait]
impl FlightService for Service {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answer;
    type DoPutStream = Answers<PutResult>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;
    type DoExchangeStream = Answers<FlightData>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        self.access.check(request.metadata())?;
        let mut response = Response::new(one(HandshakeResponse::default()));
        response.metadata_mut().insert(header(), self.access.bearer()?);
        Ok(response)
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        self.access.check(request.metadata())?;
        let descriptor = request.into_inner();
        let (schema, ticket) = match asked(&descriptor.cmd)? {
            Asked::Listing(command, schema) => (schema, command.into_any()),
            statement => {
                let planned = self.planned(statement).await?;
                let (schema, bytes) = (planned.schema().clone(), descriptor.cmd.len());
                let statement_handle = self.tickets.keep(planned, bytes).into();
                (schema, TicketStatementQuery { statement_handle }.as_any())
            }
        };
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.encode_to_vec()));
        let info = FlightInfo::new()
            .try_with_schema(&schema)
            .map_err(|error| status(error.into()))?
            .with_endpoint(endpoint)
            .with_descriptor(descriptor);
        Ok(Response::new(info))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        self.access.check(request.metadata())?;
        let schema = match asked(&request.get_ref().cmd)? {
            Asked::Listing(_, schema) => schema,
            statement => self.planned(statement).await?.schema().clone(),
        };
        let options = IpcWriteOptions::default();
        let result = SchemaAsIpc::new(&schema, &options).try_into();
        Ok(Response::new(
            result.map_err(|error: arrow::error::ArrowError| status(error.into()))?,
        ))
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        self.access.check(request.metadata())?;
        let answer = match command(&request.get_ref().ticket)? {
            Command::TicketStatementQuery(ticket) => {
                let found = self.tickets.find(&ticket.statement_handle);
                let planned = found.ok_or_else(|| unknown_handle("ticket"))?;
                Answer::start(planned, self.seat()?, self.stopped.clone())
            }
            other => {
                let _seat = self.seat()?;
                let url = other.type_url().to_string();
                let session = self.session.apart();
                let listed = aside(&self.session, async move {
                    listing::rows(session, other).await.map_err(status)
                });
                let rows = listed.await?;
                let rows = rows.ok_or_else(|| Status::unimplemented(format!("no ticket \"{url}\"")))?;
                Answer::of(&self.session.threads(), rows)
            }
        };
        Ok(Response::new(answer))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        self.access.check(request.metadata())?;
        let mut messages = request.into_inner();
        let first = messages.next().await.ok_or_else(|| malformed("nothing was put"))??;
        let descriptor = first.flight_descriptor.clone();
        let descriptor = descriptor.ok_or_else(|| malformed("nobody says what is put"))?;
        match asked(&descriptor.cmd)? {
            Asked::Prepared(handle) => {
                let messages = stream::iter([Ok(first)]).chain(messages);
                self.bind(&handle, messages).await?;
                let result = DoPutPreparedStatementResult {
                    prepared_statement_handle: Some(handle.into()),
                };
                Ok(Response::new(one(PutResult {
                    app_metadata: result.encode_to_vec().into(),
                })))
            }
            Asked::Text(_) | Asked::Listing(..) => Err(read_only("what was put")),
        }
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        self.access.check(request.metadata())?;
        let action = request.into_inner();
        let any = || Any::decode(&*action.body).map_err(malformed);
        match action.r#type.as_str() {
            PREPARE => {
                let asked: Option<ActionCreatePreparedStatementRequest> = any()?.unpack().map_err(malformed)?;
                let asked = asked.ok_or_else(|| malformed("no statement to prepare"))?;
                let result = self.prepare(asked.query).await?;
                let body = result.as_any().encode_to_vec();
                Ok(Response::new(one(arrow_flight::Result::new(body))))
            }
            CLOSE => {
                let asked: Option<ActionClosePreparedStatementRequest> = any()?.unpack().map_err(malformed)?;
                let asked = asked.ok_or_else(|| malformed("no statement to close"))?;
                self.prepared.forget(&asked.prepared_statement_handle);
                Ok(Response::new(none()))
            }
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => Err(Status::unimplemented(
                "there are no transactions: the server only reads",
            )),
            other => {
                let cut: String = other.chars().take(100).collect();
                Err(Status::unimplemented(format!("no action \"{cut}\"")))
            }
        }
    }

    async fn list_actions(&self, request: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        self.access.check(request.metadata())?;
        let action = |name: &str, about: &str| {
            Ok(ActionType {
                r#type: name.to_string(),
                description: about.to_string(),
            })
        };
        let actions = [
            action(PREPARE, "makes a statement ready for several runs"),
            action(CLOSE, "forgets a prepared statement"),
        ];
        Ok(Response::new(Box::pin(stream::iter(actions))))
    }

    async fn list_flights(&self, request: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        self.access.check(request.metadata())?;
        Ok(Response::new(none()))
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        self.access.check(request.metadata())?;
        Err(Status::unimplemented("ask with GetFlightInfo"))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        self.access.check(request.metadata())?;
        Err(Status::unimplemented("rows go one way here"))
    }
}
