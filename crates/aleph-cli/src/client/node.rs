//! The routes of the node itself: what it is, tokens, removal of what is old.

use super::path::part;
use super::request::Asking;
use super::{Client, ClientError};
use aleph_types::{NodeInfo, Timestamp};
use hyper::Method;
use serde::{Deserialize, Serialize};

/// A token without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) account: String,
    pub(crate) label: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<Timestamp>,
    /// The secret, in the answer to its making alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
}

/// A token to make.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct NewToken {
    pub(crate) account: String,
    pub(crate) label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_in_seconds: Option<u64>,
}

/// What to remove.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Prune {
    pub(crate) images: bool,
    pub(crate) all_images: bool,
    pub(crate) jobs: bool,
    pub(crate) logs: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) older_than_seconds: Option<u64>,
    pub(crate) dry_run: bool,
}

/// What was removed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Pruned {
    #[serde(default)]
    pub(crate) images: Vec<String>,
    #[serde(default)]
    pub(crate) layers: Vec<String>,
    #[serde(default)]
    pub(crate) partial_downloads: Vec<String>,
    #[serde(default)]
    pub(crate) jobs: Vec<String>,
    pub(crate) bytes_freed: u64,
}

impl Client {
    pub(crate) async fn node(&self) -> Result<NodeInfo, ClientError> {
        self.ask_json(Asking::get("/v1/node")).await
    }

    pub(crate) async fn prune(&self, what: &Prune) -> Result<Pruned, ClientError> {
        self.ask_json(Asking::post("/v1/prune").json(what)?).await
    }

    pub(crate) async fn tokens(&self) -> Result<Vec<Token>, ClientError> {
        self.ask_json(Asking::get("/v1/tokens")).await
    }

    pub(crate) async fn create_token(&self, token: &NewToken) -> Result<Token, ClientError> {
        self.ask_json(Asking::post("/v1/tokens").json(token)?).await
    }

    pub(crate) async fn remove_token(&self, id: &str) -> Result<(), ClientError> {
        let path = format!("/v1/tokens/{}", part(id));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }
}
