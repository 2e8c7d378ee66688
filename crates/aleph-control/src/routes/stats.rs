//! What jobs use now.

use super::JobPath;
use crate::server::extract::Segment;
use crate::server::{Caller, Refusal, Service};
use aleph_types::JobStats;
use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(one))
        .routes(routes!(all))
}

/// What a job uses
#[utoipa::path(
    get, path = "/v1/jobs/{job}/stats", tag = "jobs", params(JobPath),
    responses((status = 200, description = "What it uses now.", body = JobStats)),
)]
async fn one(
    State(service): State<Service>,
    caller: Caller,
    Segment(job): Segment,
) -> Result<Json<JobStats>, Refusal> {
    let id = service.find(&caller, &job)?;
    Ok(Json(service.node.stats(id).await?))
}

/// What all running jobs use
#[utoipa::path(
    get, path = "/v1/stats", tag = "jobs",
    responses((status = 200, description = "One for each.", body = [JobStats])),
)]
async fn all(
    State(service): State<Service>,
    caller: Caller,
) -> Result<Json<Vec<JobStats>>, Refusal> {
    Ok(Json(service.node.all_stats(&caller.scope).await?))
}
