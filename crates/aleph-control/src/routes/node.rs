//! The node itself.

use crate::metrics;
use crate::server::{Caller, Refusal, Service};
use aleph_types::NodeInfo;
use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(info))
        .routes(routes!(scrape))
}

/// What the node has and has given away
#[utoipa::path(
    get, path = "/v1/node", tag = "node",
    responses((status = 200, description = "The node.", body = NodeInfo)),
)]
async fn info(State(service): State<Service>) -> Result<Json<NodeInfo>, Refusal> {
    Ok(Json(service.node.info()?))
}

/// Figures for Prometheus
///
/// An account gets those of its own jobs and functions only.
#[utoipa::path(
    get, path = "/metrics", tag = "node",
    responses((status = 200, description = "Text in the form of OpenMetrics.",
        body = String, content_type = "application/openmetrics-text")),
)]
async fn scrape(State(service): State<Service>, caller: Caller) -> Result<Response, Refusal> {
    let info = service.node.info()?;
    let stats = service.node.all_stats(&caller.scope).await?;
    let functions = service.functions();
    let functions = functions.map(|functions| functions.figures(&caller.scope));
    let text = service
        .metrics
        .text(&info, &stats, functions.as_ref())
        .map_err(|_| Refusal::internal("the metrics cannot be written"))?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}
