//! The routes of functions: AWS Lambda's, below `/lambda` of the node's API.

use super::path::{Query, part};
use super::request::{Asking, whole};
use super::{Client, ClientError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use hyper::Method;
use hyper::header::HeaderName;
use serde_json::Value;

const FUNCTIONS: &str = "/lambda/2015-03-31/functions";
const URLS: &str = "/lambda/2021-10-31/functions";
/// No list is longer than this many pages.
pub(super) const MOST_PAGES: usize = 10_000;

/// How to invoke a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Invoke {
    /// Wait for its answer, with the end of its log where that is wanted.
    Wait { log: bool },
    /// Leave the event with the node.
    Later,
}

/// What came of an invocation.
#[derive(Debug)]
pub(crate) struct Invoked {
    pub(crate) request: String,
    pub(crate) payload: Bytes,
    /// Whether the function failed: how it says so.
    pub(crate) error: Option<String>,
    pub(crate) log: Option<Vec<u8>>,
    pub(crate) version: Option<String>,
    pub(crate) temperature: Option<String>,
    /// Parts of its time by name, in milliseconds.
    pub(crate) timings: Vec<(String, f64)>,
}

fn path(name: &str) -> String {
    format!("{FUNCTIONS}/{}", part(name))
}

fn url_path(name: &str) -> String {
    format!("{URLS}/{}/url", part(name))
}

impl Client {
    pub(crate) async fn create_function(&self, function: &Value) -> Result<Value, ClientError> {
        self.ask_json(Asking::post(FUNCTIONS).json(function)?).await
    }

    /// All functions, as the node tells them.
    pub(crate) async fn functions(&self) -> Result<Vec<Value>, ClientError> {
        self.pages(FUNCTIONS, "Functions").await
    }

    /// All pages of a list.
    async fn pages(&self, path: &str, key: &str) -> Result<Vec<Value>, ClientError> {
        self.pages_of(path, Query::default(), key).await
    }

    /// The same of a list that is asked for with more words.
    pub(super) async fn pages_of(
        &self,
        path: &str,
        query: Query,
        key: &str,
    ) -> Result<Vec<Value>, ClientError> {
        let (mut all, mut marker) = (Vec::new(), None);
        for _ in 0..MOST_PAGES {
            let query = query.clone().with_some("Marker", marker.as_deref());
            let mut page: Value = self.ask_json(Asking::get(format!("{path}{query}"))).await?;
            if let Some(items) = page[key].as_array_mut() {
                all.append(items);
            }
            marker = page["NextMarker"].as_str().map(str::to_owned);
            if marker.is_none() {
                break;
            }
        }
        Ok(all)
    }

    /// A function, as the node tells it. The name may have a qualifier.
    pub(crate) async fn function(&self, name: &str) -> Result<Value, ClientError> {
        self.ask_json(Asking::get(path(name))).await
    }

    pub(crate) async fn function_versions(&self, name: &str) -> Result<Vec<Value>, ClientError> {
        self.pages(&format!("{}/versions", path(name)), "Versions")
            .await
    }

    pub(crate) async fn configure_function(
        &self,
        name: &str,
        settings: &Value,
    ) -> Result<Value, ClientError> {
        let path = format!("{}/configuration", path(name));
        self.ask_json(Asking::new(Method::PUT, path).json(settings)?)
            .await
    }

    pub(crate) async fn upload_function(
        &self,
        name: &str,
        code: &Value,
    ) -> Result<Value, ClientError> {
        let path = format!("{}/code", path(name));
        self.ask_json(Asking::new(Method::PUT, path).json(code)?)
            .await
    }

    pub(crate) async fn publish_function(
        &self,
        name: &str,
        wanted: &Value,
    ) -> Result<Value, ClientError> {
        let path = format!("{}/versions", path(name));
        self.ask_json(Asking::post(path).json(wanted)?).await
    }

    pub(crate) async fn function_aliases(&self, name: &str) -> Result<Vec<Value>, ClientError> {
        self.pages(&format!("{}/aliases", path(name)), "Aliases")
            .await
    }

    /// Makes an alias, or changes the one there is.
    pub(crate) async fn set_function_alias(
        &self,
        name: &str,
        alias: &str,
        wanted: &Value,
    ) -> Result<Value, ClientError> {
        let aliases = format!("{}/aliases", path(name));
        let one = format!("{aliases}/{}", part(alias));
        let changed = self
            .ask_json(Asking::new(Method::PUT, one).json(wanted)?)
            .await;
        match changed {
            Err(ClientError::Refused(problem)) if problem.message.starts_with("Cannot find") => {
                let mut wanted = wanted.clone();
                wanted["Name"] = alias.into();
                self.ask_json(Asking::post(aliases).json(&wanted)?).await
            }
            done => done,
        }
    }

    pub(crate) async fn remove_function_alias(
        &self,
        name: &str,
        alias: &str,
    ) -> Result<(), ClientError> {
        let path = format!("{}/aliases/{}", path(name), part(alias));
        self.ask(Asking::new(Method::DELETE, path)).await.map(drop)
    }

    /// The URLs of a function, whatever version or alias its name ends in.
    pub(crate) async fn function_urls(&self, name: &str) -> Result<Vec<Value>, ClientError> {
        let name = name.split(':').next().unwrap_or(name);
        let path = format!("{URLS}/{}/urls", part(name));
        self.pages(&path, "FunctionUrlConfigs").await
    }

    /// The URL of a function or alias, if it has one.
    pub(crate) async fn function_url(&self, name: &str) -> Result<Option<Value>, ClientError> {
        match self.ask_json(Asking::get(url_path(name))).await {
            Err(ClientError::Refused(problem)) if problem.message.starts_with("The resource") => {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    pub(crate) async fn create_function_url(
        &self,
        name: &str,
        wanted: &Value,
    ) -> Result<Value, ClientError> {
        self.ask_json(Asking::post(url_path(name)).json(wanted)?)
            .await
    }

    pub(crate) async fn change_function_url(
        &self,
        name: &str,
        wanted: &Value,
    ) -> Result<Value, ClientError> {
        let asking = Asking::new(Method::PUT, url_path(name));
        self.ask_json(asking.json(wanted)?).await
    }

    pub(crate) async fn remove_function_url(&self, name: &str) -> Result<(), ClientError> {
        let asking = Asking::new(Method::DELETE, url_path(name));
        self.ask(asking).await.map(drop)
    }

    /// Removes a function, or the version that its name ends in.
    pub(crate) async fn remove_function(&self, name: &str) -> Result<(), ClientError> {
        let asking = Asking::new(Method::DELETE, path(name));
        self.ask(asking).await.map(drop)
    }

    pub(crate) async fn invoke_function(
        &self,
        name: &str,
        payload: Vec<u8>,
        how: Invoke,
    ) -> Result<Invoked, ClientError> {
        let kind = match how {
            Invoke::Wait { .. } => "RequestResponse",
            Invoke::Later => "Event",
        };
        let asking = Asking::post(format!("{}/invocations", path(name)))
            .bytes("application/json", payload)
            .header(HeaderName::from_static("x-amz-invocation-type"), kind);
        let asking = match how {
            Invoke::Wait { log: true } => {
                asking.header(HeaderName::from_static("x-amz-log-type"), "Tail")
            }
            _ => asking,
        };
        let answer = self.ask(asking).await?;
        let text = |name: &str| answer.header(name).map(str::to_owned);
        let log = text("x-amz-log-result");
        let log = log.and_then(|log| BASE64_STANDARD.decode(log).ok());
        let timings = text("x-aleph-timings").unwrap_or_default();
        let timings = timings.split(',').filter_map(|part| {
            let (name, ms) = part.split_once('=')?;
            Some((name.to_owned(), ms.parse().ok()?))
        });
        let timings = timings.collect();
        Ok(Invoked {
            request: text("x-amzn-requestid").unwrap_or_default(),
            error: text("x-amz-function-error"),
            version: text("x-amz-executed-version"),
            temperature: text("x-aleph-temperature"),
            log,
            timings,
            payload: whole(answer).await?,
        })
    }
}
