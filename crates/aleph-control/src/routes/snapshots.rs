//! Snapshots of jobs: make, list, look at, remove, go on from.

use super::JobPath;
use crate::server::extract::{Body, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_types::{ForkRequest, Forked, Job, RestoreRequest, Snapshot, SnapshotRequest};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, remove))
        .routes(routes!(create))
        .routes(routes!(restore))
        .routes(routes!(fork))
}

/// The snapshot in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "it describes; `Segment` is what reads the path")]
struct SnapshotPath {
    /// Its full id, or 4 or more hex digits that begin it alone, with or without `0x`.
    #[param(min_length = 4, max_length = 34, pattern = "^(0x)?[0-9a-f]+$")]
    snapshot: String,
}

/// Write a job's guest down
///
/// Memory, devices and disk. The job goes on, unless it is to end there. Answers once the snapshot
/// is durable: its guest stands still for a part of that time.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/snapshots", tag = "snapshots", params(JobPath),
    request_body = SnapshotRequest,
    responses((status = 201, description = "It is written down.", body = Snapshot)),
)]
async fn create(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Body(request): Body<SnapshotRequest>,
) -> Result<(StatusCode, Json<Snapshot>), Refusal> {
    let id = service.find(&caller, &job)?;
    let node = service.node.clone();
    let made = service
        .settle(async move { node.snapshot(id, request.stop).await })
        .await?;
    Ok((StatusCode::CREATED, Json(made)))
}

/// List snapshots, the newest first
#[utoipa::path(
    get, path = "/v1/snapshots", tag = "snapshots",
    responses((status = 200, description = "All that the caller has.", body = Vec<Snapshot>)),
)]
async fn list(State(service): State<Service>, caller: Caller) -> Json<Vec<Snapshot>> {
    Json(service.node.snapshots(&caller.scope))
}

/// Look at a snapshot
#[utoipa::path(
    get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", params(SnapshotPath),
    responses((status = 200, description = "The snapshot.", body = Snapshot)),
)]
async fn get(
    State(service): State<Service>,
    caller: Caller,
    Segment(snapshot): Segment,
) -> Result<Json<Snapshot>, Refusal> {
    Ok(Json(service.node.find_snapshot(&caller.scope, &snapshot)?))
}

/// Remove a snapshot
///
/// Jobs that have gone on from it run on.
#[utoipa::path(
    delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots", params(SnapshotPath),
    responses((status = 204, description = "It is removed.")),
)]
async fn remove(
    State(service): State<Service>,
    caller: Caller,
    Segment(snapshot): Segment,
) -> Result<StatusCode, Refusal> {
    let id = service.node.find_snapshot(&caller.scope, &snapshot)?.id;
    let node = service.node.clone();
    service
        .settle(async move { node.remove_snapshot(id).await })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Take a job that goes on from a snapshot
///
/// It is a job of its own, of the snapshot's account, with id, name, hostname, address and machine
/// id of its own. It is taken where the node has room for it. A snapshot of another kind of host is
/// refused with 409 `snapshot_incompatible`, which says what differs.
#[utoipa::path(
    post, path = "/v1/snapshots/{snapshot}/restore", tag = "snapshots", params(SnapshotPath),
    request_body = RestoreRequest,
    responses((status = 201, description = "The job was taken.", body = Job)),
)]
async fn restore(
    State(service): State<Service>,
    caller: Caller,
    Segment(snapshot): Segment,
    Body(request): Body<RestoreRequest>,
) -> Result<(StatusCode, Json<Job>), Refusal> {
    let id = service.node.find_snapshot(&caller.scope, &snapshot)?.id;
    let node = service.node.clone();
    let job = service
        .settle(async move { node.restore(id, request).await })
        .await?;
    Ok((StatusCode::CREATED, Json(job)))
}

/// Take copies of a job that go on from where it is
///
/// The job goes on, too. Either all copies are taken or none.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/fork", tag = "snapshots", params(JobPath),
    request_body = ForkRequest,
    responses((status = 201, description = "The copies were taken.", body = Forked)),
)]
async fn fork(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Body(request): Body<ForkRequest>,
) -> Result<(StatusCode, Json<Forked>), Refusal> {
    let id = service.find(&caller, &job)?;
    let node = service.node.clone();
    let forked = service
        .settle(async move { node.fork(id, request).await })
        .await?;
    Ok((StatusCode::CREATED, Json(forked)))
}
