//! Volumes of a job that there is: attach and detach.

use super::{JobPath, seconds};
use crate::server::extract::{Body, Query, Segments};
use crate::server::{Caller, Refusal, Service};
use aleph_types::{VolumeAttach, VolumeAttachment};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How long a guest may take to let go of a disk, in seconds, where nothing is said.
const LETS_GO: u32 = 30;
/// How long it may take at most.
const MOST: u32 = 600;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new().routes(routes!(attach, detach))
}

/// The volume of a job in a path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
#[allow(dead_code, reason = "it describes; `Segments` is what reads the path")]
struct JobVolumePath {
    /// The volume: its name, its full id, or 4 or more hex digits that begin it alone.
    #[param(
        min_length = 1,
        max_length = 63,
        pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"
    )]
    volume: String,
}

/// Attach a volume to a full VM
///
/// At once where it runs, and at each of its starts from then on. The guest finds a disk with the serial number
/// that the answer tells. The same again changes nothing. A volume that another job has is refused with
/// 409 `volume_attached`, a machine without a free slot with 429 `machine_slots`, and a job that is no full VM
/// with a disk of its own with 400 `volumes_fixed`.
#[utoipa::path(
    put, path = "/v1/jobs/{job}/volumes/{volume}", tag = "jobs", params(JobPath, JobVolumePath),
    request_body = VolumeAttach,
    responses((status = 200, description = "The job has it.", body = VolumeAttachment)),
)]
async fn attach(
    State(service): State<Service>,
    caller: Caller,
    Segments(job, volume): Segments,
    Body(how): Body<VolumeAttach>,
) -> Result<Json<VolumeAttachment>, Refusal> {
    let id = service.find(&caller, &job)?;
    let node = service.node.clone();
    let attached = async move { node.attach_volume(id, &volume, how).await };
    Ok(Json(service.settle(attached).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DetachQuery {
    /// Seconds that the guest has to let go of the disk; 30 when absent.
    #[param(minimum = 0, maximum = 600)]
    timeout: Option<u32>,
}

/// Detach a volume from a full VM
///
/// At once where it runs, and from all its starts to come. A guest that does not let go in time keeps it, which
/// is told with 409 `machine_device_kept`.
#[utoipa::path(
    delete, path = "/v1/jobs/{job}/volumes/{volume}", tag = "jobs",
    params(JobPath, JobVolumePath, DetachQuery),
    responses((status = 204, description = "The job has it no more.")),
)]
async fn detach(
    State(service): State<Service>,
    caller: Caller,
    Segments(job, volume): Segments,
    Query(query): Query<DetachQuery>,
) -> Result<StatusCode, Refusal> {
    let id = service.find(&caller, &job)?;
    let timeout = query.timeout.unwrap_or(LETS_GO);
    if timeout > MOST {
        let why = format!("timeout is at most {MOST} seconds");
        return Err(Refusal::invalid("bad_query", why));
    }
    let node = service.node.clone();
    let detached = async move { node.detach_volume(id, &volume, seconds(timeout)).await };
    service.settle(detached).await?;
    Ok(StatusCode::NO_CONTENT)
}
