//! The output and input of a job's own command.

use super::JobPath;
use super::session::{self, Gone, Held, Output, STDERR, STDOUT, Tell, Upgrade};
use crate::server::extract::{Query, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::Node;
use aleph_executor::guest::ExecInput;
use aleph_executor::logs::LogReader;
use aleph_executor::node::{Attachment, NodeError};
use aleph_types::{Job, JobId, JobState, LogStream, Problem};
use axum::extract::State;
use axum::extract::ws::WebSocket;
use axum::response::Response;
use futures_util::FutureExt;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(attach))
}

/// How long after its last output a job may take to end.
const LAST_WORD: Duration = Duration::from_secs(30);
/// The pause before a command's input is asked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
struct AttachQuery {
    /// Whether what the client sends goes to standard input.
    #[param(required = false)]
    stdin: bool,
    /// Whether the output of this start comes first.
    #[param(required = false)]
    logs: bool,
}

/// Attach to a job's command
///
/// A WebSocket with the messages of `exec`, without the first one. It ends with `{"exit":...}`,
/// or with `{"ended":Job}` where the command has no exit status.
#[utoipa::path(
    get, path = "/v1/jobs/{job}/attach", tag = "sessions", params(JobPath, AttachQuery),
    responses((status = 101, description = "The session begins.")),
)]
async fn attach(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<AttachQuery>,
    (slot, upgrade): (Held, Upgrade),
) -> Result<Response, Refusal> {
    let id = service.find(&caller, &job)?;
    let upgrade = session::accept(upgrade)?;
    // Its end is waited for before anything else: a job that removes itself cannot be asked
    // later, and it may be gone before the client has become a WebSocket.
    let over = over(service.node.clone(), id);
    let attached = service.node.attach(id, query.logs).await?;
    Ok(upgrade.on_upgrade(move |socket| {
        let work = service.work.clone();
        work.track_future(async move {
            let attached = (attached, over);
            run(&service, id, attached, query.stdin, socket).await;
            drop(slot);
        })
    }))
}

/// How a job ends, once it does.
type Over = AbortOnDropHandle<Result<Job, NodeError>>;

/// Waits for a job's end from this moment on.
fn over(node: Node, id: JobId) -> Over {
    let states = [JobState::Exited, JobState::Failed, JobState::Destroyed];
    let mut wait = Box::pin(async move { node.wait(id, &states).await });
    // A task that is only spawned may first look when the job is gone.
    let ended = (&mut wait).now_or_never();
    AbortOnDropHandle::new(tokio::spawn(async move {
        match ended {
            Some(ended) => ended,
            None => wait.await,
        }
    }))
}

async fn run(
    service: &Service,
    id: JobId,
    (attached, mut over): (Attachment, Over),
    stdin: bool,
    socket: WebSocket,
) {
    let (output, input) = session::split(socket);
    let Attachment {
        output: mut reader,
        input: to,
    } = attached;
    let told = async |output: &mut Output| {
        pass(&mut reader, output).await?;
        let ended = tokio::select! {
            ended = &mut over => ended.unwrap_or_else(|_| service.node.job(id)),
            () = sleep(LAST_WORD) => service.node.job(id),
        };
        output.tell(&last_word(ended)).await
    };
    let to = feed_of(&service.node, id, to);
    session::run(
        output,
        input.feed(to, stdin),
        told,
        service.stopping.clone(),
    )
    .await;
}

/// The input of a job's command, once it runs: a job can be attached to before it is started.
async fn feed_of(node: &Node, id: JobId, now: Option<ExecInput>) -> Option<ExecInput> {
    let mut found = now;
    while found.is_none() {
        node.wait(id, &[JobState::Running]).await.ok()?;
        found = node.input(id).ok()?;
        if found.is_none() {
            // Its end was not told yet.
            sleep(LOOK_AGAIN).await;
        }
    }
    found
}

async fn pass(reader: &mut LogReader, output: &mut Output) -> Result<(), Gone> {
    loop {
        match reader.next().await {
            Ok(Some(entry)) => {
                let channel = match entry.stream {
                    LogStream::Stdout => STDOUT,
                    LogStream::Stderr => STDERR,
                };
                output.data(channel, &entry.bytes).await?;
            }
            Ok(None) => return Ok(()),
            Err(error) => {
                let problem =
                    Refusal::internal(&format!("the log cannot be read: {error}")).problem;
                output.tell(&Tell::Error(*problem)).await?;
                return Err(Gone);
            }
        }
    }
}

fn last_word(ended: Result<Job, NodeError>) -> Tell {
    match ended {
        Ok(job) => match job.exit {
            Some(status) => Tell::Exit(status),
            None => Tell::Ended(Box::new(job)),
        },
        Err(error) => Tell::Error(Problem::of(&error)),
    }
}
