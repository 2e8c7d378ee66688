//! The routes of images.

use super::path::parts;
use super::request::Asking;
use super::{Client, ClientError, Lines};
use aleph_types::{Problem, Timestamp};
use hyper::Method;
use hyper::header::ACCEPT;
use serde::Deserialize;
use serde_json::Value;

/// An image, as far as a table shows it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct ImageInfo {
    pub(crate) digest: String,
    #[serde(default)]
    pub(crate) names: Vec<String>,
    pub(crate) size: u64,
    pub(crate) filesystem: String,
    #[serde(default)]
    pub(crate) created_at: Option<Timestamp>,
}

/// What a pull tells, line by line.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum PullLine {
    /// It is done.
    Done { image: Value },
    /// It failed.
    Failed { error: Problem },
    /// It goes on.
    Step {
        status: String,
        #[serde(default)]
        layer: Option<String>,
        #[serde(default)]
        current: Option<u64>,
        #[serde(default)]
        total: Option<u64>,
    },
}

impl Client {
    /// All images, as the node tells them.
    pub(crate) async fn images(&self) -> Result<Vec<Value>, ClientError> {
        self.ask_json(Asking::get("/v1/images")).await
    }

    /// An image, as the node tells it.
    pub(crate) async fn image(&self, reference: &str) -> Result<Value, ClientError> {
        self.ask_json(Asking::get(format!("/v1/images/{}", parts(reference))))
            .await
    }

    pub(crate) async fn remove_image(&self, reference: &str) -> Result<(), ClientError> {
        let path = format!("/v1/images/{}", parts(reference));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    /// Fetches an image; `always` even where the node has it.
    pub(crate) async fn pull(&self, reference: &str, always: bool) -> Result<Lines, ClientError> {
        let policy = if always { "always" } else { "missing" };
        let body = serde_json::json!({ "reference": reference, "policy": policy });
        let asking = Asking::post("/v1/images/pull").json(&body)?;
        let asking = asking.header(ACCEPT, "application/x-ndjson");
        Ok(Lines::new(self.ask(asking).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_told_in_three_kinds_of_lines() {
        let line = |text| serde_json::from_str::<PullLine>(text).unwrap();
        let step = line(r#"{"status":"fetching","layer":"sha256:1","current":5,"total":9}"#);
        assert!(matches!(
            step,
            PullLine::Step {
                current: Some(5),
                ..
            }
        ));
        assert!(matches!(line(r#"{"image":{}}"#), PullLine::Done { .. }));
        let failed = line(r#"{"error":{"class":"not_found","code":"x","message":"m"}}"#);
        assert!(matches!(failed, PullLine::Failed { .. }));
    }
}
