//! The size of a full VM.

use super::JobPath;
use crate::server::extract::{Body, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_types::{Job, JobResize};
use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(resize))
}

/// Give a full VM another size
///
/// One that runs grows at once, up to what it was made for (`machine.room` of its specification, which becomes
/// that much smaller), and begins with its new size at each of its starts. One that does not run may become
/// smaller, too. The size that it has already changes nothing, but gives a guest that runs what it let go of. Less
/// than a VM has that runs is 409 `machine_shrinks`, more than it can ever have 409 `machine_room`, and memory in
/// other steps than those of 128 MiB, or of its huge pages, 400 `memory_step`. While a VM with GPUs runs its memory stays, 409 `memory_locked`.
/// A job that is no full VM with a disk of its own is 400 `size_fixed`. What the host has not left is 429, as when
/// a job is made.
#[utoipa::path(
    post, path = "/v1/jobs/{job}/resize", tag = "jobs", params(JobPath),
    request_body = JobResize,
    responses((status = 200, description = "It has that size.", body = Job)),
)]
async fn resize(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
    Body(size): Body<JobResize>,
) -> Result<Json<Job>, Refusal> {
    let id = service.find(&caller, &job)?;
    if size.is_empty() {
        let why = "the request names no size: give cpus, memory or both";
        return Err(Refusal::invalid("bad_size", why));
    }
    let node = service.node.clone();
    let resized = async move { node.resize(id, size).await };
    Ok(Json(service.settle(resized).await?))
}
