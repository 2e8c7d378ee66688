//! Tokens of accounts. Only for operators.

use super::seconds;
use crate::accounts::Issued;
use crate::server::extract::{Body, Segment};
use crate::server::{Caller, Refusal, Service};
use aleph_executor::journal::TokenRecord;
use aleph_types::Timestamp;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) fn routes() -> OpenApiRouter<Service> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(revoke))
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// The account that it speaks for. It need not be there before.
    #[schema(min_length = 1, max_length = 63, pattern = "^[a-z0-9][a-z0-9_.-]*$")]
    pub account: String,
    /// What it is for.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub label: String,
    /// How long it is valid; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3_153_600_000_u64)]
    pub expires_in_seconds: Option<u32>,
}

/// A token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// Its public id.
    pub id: String,
    /// The account that it speaks for.
    pub account: String,
    /// What it is for.
    pub label: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// A token that was just made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewToken {
    /// The token itself. Nothing can show it again.
    pub token: String,
    /// What is known of it.
    #[serde(flatten)]
    pub info: TokenInfo,
}

impl From<TokenRecord> for TokenInfo {
    fn from(record: TokenRecord) -> Self {
        Self {
            id: record.id,
            account: record.account,
            label: record.label,
            created_at: record.created_at,
            expires_at: record.expires_at,
        }
    }
}

/// List tokens
#[utoipa::path(
    get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, description = "All tokens, the oldest first.", body = [TokenInfo])),
)]
async fn list(
    State(service): State<Service>,
    caller: Caller,
) -> Result<Json<Vec<TokenInfo>>, Refusal> {
    caller.only_operators()?;
    let tokens = service.accounts.list();
    Ok(Json(tokens.into_iter().map(TokenInfo::from).collect()))
}

/// Make a token
#[utoipa::path(
    post, path = "/v1/tokens", tag = "tokens",
    request_body = TokenRequest,
    responses((status = 201, description = "The token, shown this once.", body = NewToken)),
)]
async fn create(
    State(service): State<Service>,
    caller: Caller,
    Body(request): Body<TokenRequest>,
) -> Result<(StatusCode, Json<NewToken>), Refusal> {
    caller.only_operators()?;
    let worker = service.clone();
    let issued = service.settle(async move {
        let TokenRequest { account, label, .. } = &request;
        let life = request.expires_in_seconds.map(seconds);
        worker.accounts.issue(account, label, life).await
    });
    let Issued { record, token } = issued.await?;
    let info = record.into();
    Ok((StatusCode::CREATED, Json(NewToken { token, info })))
}

/// Revoke a token
#[utoipa::path(
    delete, path = "/v1/tokens/{id}", tag = "tokens",
    params(("id" = String, Path, min_length = 1, max_length = 64,
        pattern = "^[0-9a-f]+$", description = "Its id.")),
    responses((status = 204, description = "It is no longer valid.")),
)]
async fn revoke(
    State(service): State<Service>,
    caller: Caller,
    Segment(id): Segment,
) -> Result<StatusCode, Refusal> {
    caller.only_operators()?;
    let worker = service.clone();
    service
        .settle(async move { worker.accounts.revoke(&id).await })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
