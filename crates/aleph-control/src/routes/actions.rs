//! What is done with a job: start, stop, and waiting for what it does.

use super::{JobPath, seconds};
use crate::server::extract::{Query, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::Node;
use aleph_executor::node::NodeError;
use aleph_types::{ErrorClass, Job, JobId, signal};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(start))
        .routes(routes!(stop))
        .routes(routes!(restart))
        .routes(routes!(kill))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(wait))
}

type Answer = Result<Json<Job>, Refusal>;

/// Does something with the job that a caller means, to its end even where the caller goes.
async fn settled<F>(
    service: &Service,
    caller: &Caller,
    job: &str,
    act: impl FnOnce(Node, JobId) -> F,
) -> Answer
where
    F: Future<Output = Result<Job, NodeError>> + Send + 'static,
{
    let id = service.find(caller, job)?;
    let work = act(service.node.clone(), id);
    Ok(Json(service.settle(work).await?))
}

/// Start a job that does not run
#[utoipa::path(
    post, path = "/v1/jobs/{job}/start", tag = "jobs", params(JobPath),
    responses((status = 200, description = "It starts.", body = Job)),
)]
async fn start(State(service): State<Service>, caller: Caller, Segment(job): Segment) -> Answer {
    let act = |node: Node, id| async move { node.start(id).await };
    settled(&service, &caller, &job, act).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct StopQuery {
    /// Seconds between the stop signal and SIGKILL; the job's own when absent.
    #[param(minimum = 0, maximum = 86400)]
    timeout: Option<u32>,
}

/// A time that is longer than a day is a mistake.
fn grace(query: &StopQuery) -> Result<Option<std::time::Duration>, Refusal> {
    match query.timeout {
        Some(time) if time > 86_400 => Err(Refusal::invalid(
            "bad_query",
            "timeout is at most 86400 seconds",
        )),
        time => Ok(time.map(seconds)),
    }
}

/// Stop a job
///
/// Answers once it has ended.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/stop", tag = "jobs", params(JobPath, StopQuery),
    responses((status = 200, description = "It has ended.", body = Job)),
)]
async fn stop(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<StopQuery>,
) -> Answer {
    let grace = grace(&query)?;
    let act = move |node: Node, id| async move { node.stop(id, grace).await };
    settled(&service, &caller, &job, act).await
}

/// Stop a job, if it runs, and start it
#[utoipa::path(
    post, path = "/v1/jobs/{job}/restart", tag = "jobs", params(JobPath, StopQuery),
    responses((status = 200, description = "It starts.", body = Job)),
)]
async fn restart(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<StopQuery>,
) -> Answer {
    let grace = grace(&query)?;
    let act = move |node: Node, id| async move { node.restart(id, grace).await };
    settled(&service, &caller, &job, act).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct KillQuery {
    /// The signal, by name or number. `KILL`, which is the default, ends the VM; another one
    /// goes to its command.
    #[param(max_length = 16, pattern = "^[A-Za-z0-9+]+$", example = "HUP")]
    signal: Option<String>,
}

/// End a job's VM, or send its command a signal
#[utoipa::path(
    post, path = "/v1/jobs/{job}/kill", tag = "jobs", params(JobPath, KillQuery),
    responses((status = 200, description = "The signal is sent.", body = Job)),
)]
async fn kill(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<KillQuery>,
) -> Answer {
    let name = query.signal.as_deref().unwrap_or("KILL");
    let signal = signal::number(name).ok_or_else(|| {
        let message = format!("{name:?} is no signal");
        Refusal::invalid("bad_signal", message).advise("Write a name such as TERM, or a number.")
    })?;
    let act = move |node: Node, id| async move { node.kill(id, signal).await };
    settled(&service, &caller, &job, act).await
}

/// Freeze a job's guest
#[utoipa::path(
    post, path = "/v1/jobs/{job}/pause", tag = "jobs", params(JobPath),
    responses((status = 200, description = "It is frozen.", body = Job)),
)]
async fn pause(State(service): State<Service>, caller: Caller, Segment(job): Segment) -> Answer {
    let act = |node: Node, id| async move { node.pause(id).await };
    settled(&service, &caller, &job, act).await
}

/// Let a job's guest go on
#[utoipa::path(
    post, path = "/v1/jobs/{job}/resume", tag = "jobs", params(JobPath),
    responses((status = 200, description = "It goes on.", body = Job)),
)]
async fn resume(State(service): State<Service>, caller: Caller, Segment(job): Segment) -> Answer {
    let act = |node: Node, id| async move { node.resume(id).await };
    settled(&service, &caller, &job, act).await
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// The states that are waited for, separated by commas. `ended`, which is the default,
    /// stands for `exited,failed,destroyed`.
    #[param(max_length = 256, pattern = "^[a-z]+(,[a-z]+)*$", example = "running")]
    state: Option<String>,
    /// Seconds to wait at most; 60 when absent.
    #[param(minimum = 0, maximum = 3600)]
    timeout: Option<u32>,
}

/// Wait until a job is in a state
#[utoipa::path(
    get, path = "/v1/jobs/{job}/wait", tag = "jobs", params(JobPath, WaitQuery),
    responses(
        (status = 200, description = "It is in one of the states.", body = Job),
        (status = 408, description = "It was in none of them in time.", body = aleph_types::Problem),
    ),
)]
async fn wait(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Query(query): Query<WaitQuery>,
) -> Answer {
    let states = super::jobs::states(query.state.as_deref().unwrap_or("ended"))?;
    let limit = query.timeout.unwrap_or(60);
    if limit > 3600 {
        let message = "timeout is at most 3600 seconds";
        return Err(Refusal::invalid("bad_query", message));
    }
    let id = service.find(&caller, &job)?;
    let waited = timeout(seconds(limit), service.node.wait(id, &states));
    tokio::select! {
        waited = waited => match waited {
            Ok(job) => Ok(Json(job?)),
            Err(_) => {
                let (status, class) = (StatusCode::REQUEST_TIMEOUT, ErrorClass::Unavailable);
                let message = format!("the job was in none of the states within {limit} s");
                Err(Refusal::new(status, class, "wait_timeout", message).advise("Ask again."))
            }
        },
        () = service.stopping.cancelled() => Err(Refusal::stopping()),
    }
}
