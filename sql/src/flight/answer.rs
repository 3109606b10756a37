//! From a statement to messages: planned for its schema, run when its rows are asked for, ended when nobody wants them.

use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_flight::{FlightData, SchemaAsIpc};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use futures_util::future::{Either, select};
use futures_util::{Stream, StreamExt};
use sluice_engine::{Error, Result};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;
use tonic::Status;

use super::plain;
use super::status::{panicked, status};
use crate::failure::explain;
use crate::session::{Session, timed_out};
use crate::statement::Statement;

/// Bytes of a message's rows. Clients take 4 MiB unless they say otherwise.
const MESSAGE: usize = 2 << 20;
/// A batch of so many bytes goes as it is; smaller ones are put together.
const LARGE: usize = 512 << 10;
/// How long rows wait for others.
const PATIENCE: Duration = Duration::from_millis(5);
/// How much later than the statement itself its reader looks at the clock.
const GRACE: Duration = Duration::from_millis(200);
/// Messages that wait for the client.
const WAITING: usize = 4;
/// Rows of a batch inside of a statement, as long as they are narrow.
const ROWS: usize = 32 << 10;
/// Rows of a batch inside of a statement at least.
const FEWEST_ROWS: usize = 8 << 10;

/// A statement whose rows can be had.
pub(super) struct Planned {
    session: Session,
    text: String,
    logical: LogicalPlan,
    /// Taken by the first who asks for the rows: some plans run only once.
    physical: Mutex<Option<Arc<dyn ExecutionPlan>>>,
    schema: SchemaRef,
}

impl Planned {
    /// Plans a statement to the end.
    pub(super) async fn of(session: Session, statement: &Statement, logical: LogicalPlan) -> Result<Planned> {
        let text = statement.text().to_string();
        let rows = rows_of_a_batch(&logical);
        let state = session.context().state_ref();
        let config = state.read().config().clone().with_batch_size(rows);
        *state.write().config_mut() = config;
        let physical = session.physical(&logical, &text).await?;
        Ok(Planned {
            schema: plain::schema(&physical.schema()),
            physical: Mutex::new(Some(physical)),
            session,
            text,
            logical,
        })
    }

    /// Names and types of its columns, as they are sent.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn stream(&self) -> Result<SendableRecordBatchStream> {
        let planned = self.physical.lock().unwrap_or_else(PoisonError::into_inner).take();
        let physical = match planned {
            Some(physical) => physical,
            None => self.session.physical(&self.logical, &self.text).await?,
        };
        self.session
            .stream(&physical)
            .map_err(|error| explain(error, &self.text))
    }
}

/// Many rows at once are faster to send; wide ones would take too much memory.
fn rows_of_a_batch(plan: &LogicalPlan) -> usize {
    let mut widest = 1;
    let looked = plan.apply(|node| {
        widest = widest.max(plain::width(node.schema().as_arrow()));
        Ok(TreeNodeRecursion::Continue)
    });
    match looked {
        Ok(_) => (MESSAGE / widest).clamp(FEWEST_ROWS, ROWS),
        Err(_) => FEWEST_ROWS,
    }
}

/// Runs something on the session's threads: a panic stays there, and when the caller is gone it ends.
pub(super) async fn aside<T: Send + 'static>(
    session: &Session,
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let mut task = Task(session.threads().spawn(work));
    let waited = match session.limits().timeout {
        Some(limit) => tokio::time::timeout(limit, &mut task.0)
            .await
            .map_err(|_| status(timed_out(limit)))?,
        None => (&mut task.0).await,
    };
    waited.unwrap_or_else(|lost| Err(ended(&lost)))
}

fn ended(lost: &tokio::task::JoinError) -> Status {
    match lost.is_panic() {
        true => panicked(),
        false => status(Error::interrupted()),
    }
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The rows of a statement as messages. When it is dropped, the statement ends.
pub(super) struct Answer {
    receiver: mpsc::Receiver<Result<FlightData, Status>>,
    /// Gone when all was said.
    task: Option<Task<()>>,
    /// Comes when the statement's time is over, however busy it is.
    end: Option<Pin<Box<dyn Future<Output = Error> + Send>>>,
}

impl Answer {
    /// Starts the statement.
    pub(super) fn start(planned: Arc<Planned>, seat: OwnedSemaphorePermit, stopped: watch::Receiver<bool>) -> Answer {
        let threads = planned.session.threads();
        let limit = planned.session.limits().timeout;
        let end = ending(limit.map(|limit| (limit + GRACE, limit)), stopped.clone());
        let mut answer = Self::run(&threads, |sender| async move {
            let started = Instant::now();
            let end = match within(send_rows(&planned, &sender), limit, started, stopped).await {
                Ok(()) => return,
                Err(error) => error,
            };
            // What was held is free before a slow client hears of it.
            drop((planned, seat));
            let _ = sender.send(Err(status(end))).await;
        });
        answer.end = Some(Box::pin(end));
        answer
    }

    /// One batch that is at hand.
    pub(super) fn of(threads: &Handle, batch: RecordBatch) -> Answer {
        Self::run(threads, |sender| async move {
            let mut encoder = Encoder::new(sender.clone());
            let sent = match encoder.schema(&batch.schema()).await {
                Ok(()) => encoder.rows(&batch).await,
                Err(stop) => Err(stop),
            };
            if let Err(Stop::Failed(error)) = sent {
                let _ = sender.send(Err(status(error))).await;
            }
        })
    }

    fn run<F>(threads: &Handle, work: impl FnOnce(mpsc::Sender<Result<FlightData, Status>>) -> F) -> Answer
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(WAITING);
        Answer {
            receiver,
            task: Some(Task(threads.spawn(work(sender)))),
            end: None,
        }
    }
}

impl Stream for Answer {
    type Item = Result<FlightData, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<Option<Self::Item>> {
        if self.task.is_none() {
            return Poll::Ready(None);
        }
        match self.receiver.poll_recv(context) {
            Poll::Ready(Some(message)) => return Poll::Ready(Some(message)),
            Poll::Ready(None) => {}
            Poll::Pending => {
                let Some(end) = &mut self.end else { return Poll::Pending };
                let error = ready!(end.as_mut().poll(context));
                self.task = None;
                return Poll::Ready(Some(Err(status(error))));
            }
        }
        // Nothing more comes: either that was all, or the task is lost.
        let Some(task) = &mut self.task else {
            return Poll::Ready(None);
        };
        let over = ready!(pin!(&mut task.0).poll(context));
        self.task = None;
        Poll::Ready(over.err().map(|lost| Err(ended(&lost))))
    }
}

/// Runs the work until its time is over or the server stops.
async fn within(
    work: impl Future<Output = Result<(), Stop>>,
    limit: Option<Duration>,
    started: Instant,
    stopped: watch::Receiver<bool>,
) -> Result<()> {
    let left = limit.map(|limit| (limit.saturating_sub(started.elapsed()), limit));
    match select(pin!(work), pin!(ending(left, stopped))).await {
        Either::Left((Ok(()) | Err(Stop::Gone), _)) => Ok(()),
        Either::Left((Err(Stop::Failed(error)), _)) | Either::Right((error, _)) => Err(error),
    }
}

/// Why a statement has to end, when it has to: its time is over, or the server stops.
async fn ending(left: Option<(Duration, Duration)>, mut stopped: watch::Receiver<bool>) -> Error {
    let stop = pin!(stopped.wait_for(|stopped| *stopped));
    let Some((left, limit)) = left else {
        let _ = stop.await;
        return Error::interrupted();
    };
    match select(pin!(tokio::time::sleep(left)), stop).await {
        Either::Left(_) => timed_out(limit),
        Either::Right(_) => Error::interrupted(),
    }
}

/// Why no more is sent.
enum Stop {
    /// The client went away.
    Gone,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

type Sender = mpsc::Sender<Result<FlightData, Status>>;

/// Runs a statement and sends what comes, small batches put together as far as others are near.
async fn send_rows(planned: &Planned, sender: &Sender) -> Result<(), Stop> {
    let mut encoder = Encoder::new(sender.clone());
    encoder.schema(&planned.schema).await?;
    let mut stream = planned.stream().await?;
    let mut held = Held::default();
    loop {
        let next = match held.batches.is_empty() {
            true => stream.next().await,
            false => match tokio::time::timeout(PATIENCE, stream.next()).await {
                Ok(next) => next,
                Err(_) => {
                    encoder.rows(&held.take(&planned.schema)?).await?;
                    continue;
                }
            },
        };
        let Some(batch) = next else { break };
        let batch = batch.map_err(|error| explain(error, &planned.text))?;
        if batch.num_rows() == 0 {
            continue;
        }
        let batch = plain::batch(batch, &planned.schema).map_err(Error::from)?;
        let bytes = plain::bytes(&batch);
        if bytes >= LARGE {
            if !held.batches.is_empty() {
                encoder.rows(&held.take(&planned.schema)?).await?;
            }
            encoder.rows(&batch).await?;
        } else {
            held.batches.push(batch);
            held.bytes += bytes;
            if held.bytes >= LARGE {
                encoder.rows(&held.take(&planned.schema)?).await?;
            }
        }
    }
    if !held.batches.is_empty() {
        encoder.rows(&held.take(&planned.schema)?).await?;
    }
    Ok(())
}

/// Small batches that go together.
#[derive(Default)]
struct Held {
    batches: Vec<RecordBatch>,
    bytes: usize,
}

impl Held {
    fn take(&mut self, schema: &SchemaRef) -> Result<RecordBatch> {
        self.bytes = 0;
        match self.batches.len() {
            1 => Ok(self.batches.remove(0)),
            _ => Ok(concat_batches(schema, &std::mem::take(&mut self.batches))?),
        }
    }
}

/// Batches as messages of Arrow IPC.
struct Encoder {
    sender: Sender,
    options: IpcWriteOptions,
    generator: IpcDataGenerator,
    tracker: DictionaryTracker,
    context: IpcWriteContext,
}

impl Encoder {
    fn new(sender: Sender) -> Self {
        Encoder {
            sender,
            options: IpcWriteOptions::default(),
            generator: IpcDataGenerator::default(),
            tracker: DictionaryTracker::new(true),
            context: IpcWriteContext::default(),
        }
    }

    async fn send(&self, message: FlightData) -> Result<(), Stop> {
        self.sender.send(Ok(message)).await.map_err(|_| Stop::Gone)
    }

    async fn schema(&self, schema: &SchemaRef) -> Result<(), Stop> {
        self.send(SchemaAsIpc::new(schema, &self.options).into()).await
    }

    async fn rows(&mut self, batch: &RecordBatch) -> Result<(), Stop> {
        for piece in plain::pieces(batch, MESSAGE) {
            let encoded = self
                .generator
                .encode(&piece, &mut self.tracker, &self.options, &mut self.context);
            let (_, rows) = encoded.map_err(Error::from)?;
            self.send(rows.into()).await?;
        }
        Ok(())
    }
}
