//! What everybody may ask: whether the node is there, and how it is spoken with.

use crate::openapi;
use crate::server::{Refusal, Service};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(alive))
        .routes(routes!(ready))
        .routes(routes!(document))
}

/// Whether the daemon answers
#[utoipa::path(
    get, path = "/healthz", tag = "health", security(()),
    responses((status = 200, description = "It does.", body = String)),
)]
async fn alive() -> &'static str {
    "ok\n"
}

/// Whether the node takes requests
#[utoipa::path(
    get, path = "/readyz", tag = "health", security(()),
    responses(
        (status = 200, description = "It does.", body = String),
        (status = 503, description = "It is about to stop.", body = aleph_types::Problem),
    ),
)]
async fn ready(State(service): State<Service>) -> Result<&'static str, Refusal> {
    if service.stopping.is_cancelled() {
        return Err(Refusal::stopping());
    }
    Ok("ready\n")
}

/// This document
#[utoipa::path(
    get, path = "/openapi.json", tag = "health", security(()),
    responses((status = 200, description = "The OpenAPI document.", body = serde_json::Value)),
)]
async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], openapi::text()).into_response()
}
