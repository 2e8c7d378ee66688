//! The operations, a file for each group. A route turns a request into a change or a look at
//! [`Functions`](super::Functions), and what came of it into JSON.

mod account;
mod aliases;
mod cloudevents;
mod concurrency;
mod destinations;
mod functions;
mod invocations;
mod schedules;
mod sources;
mod tags;
mod urls;
mod versions;

use super::Functions;
use super::arn::Target;
use super::error::{Kind, LambdaError};
use super::function::Function;
use super::gate::Ask;
use axum::Json;
use axum::Router;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// What a route gives.
pub(super) type Reply = Result<Response, LambdaError>;

/// How many things a page has at most.
const MOST_ITEMS: usize = 50;

/// All operations. Some clients end paths in a slash.
pub(super) fn all() -> Router<Functions> {
    let mut router = Router::new();
    let groups = [
        functions::routes(),
        versions::routes(),
        aliases::routes(),
        concurrency::routes(),
        destinations::routes(),
        invocations::routes(),
        cloudevents::routes(),
        urls::routes(),
        tags::routes(),
        schedules::routes(),
        sources::routes(),
        account::routes(),
    ];
    for (path, route) in groups.into_iter().flatten() {
        router = router
            .route(path, route.clone())
            .route(&format!("{path}/"), route);
    }
    router
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
}

/// Which of the services of AWS has this path: requests are signed for one.
pub(super) fn service(path: &str) -> &'static str {
    match schedules::has(path) {
        true => "scheduler",
        false => "lambda",
    }
}

/// A path with what is done there.
type Route = (&'static str, MethodRouter<Functions>);

async fn unknown(method: Method, uri: Uri) -> LambdaError {
    let message = format!("{method} {} is no operation of this node", uri.path());
    LambdaError::new(Kind::UnknownOperation, message)
}

/// An answer in JSON.
fn json(status: StatusCode, value: Value) -> Reply {
    Ok((status, Json(value)).into_response())
}

/// An answer that says that all is well.
fn ok(value: Value) -> Reply {
    json(StatusCode::OK, value)
}

/// An answer without anything.
fn nothing() -> Reply {
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// What queries say that most operations know. Others are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Query {
    qualifier: Option<String>,
    marker: Option<String>,
    max_items: Option<String>,
    function_version: Option<String>,
    list: Option<String>,
}

/// A request: who asks, for which function, and what its query says.
struct On {
    functions: Functions,
    ask: Ask,
    target: Target,
    query: Query,
}

/// The parts of a path, the function's name first.
struct Segments(Vec<String>);

impl FromRequestParts<Functions> for Query {
    type Rejection = LambdaError;

    async fn from_request_parts(parts: &mut Parts, _: &Functions) -> Result<Self, LambdaError> {
        serde_urlencoded::from_str(parts.uri.query().unwrap_or_default())
            .map_err(|error| LambdaError::invalid(format!("The query cannot be read: {error}")))
    }
}

impl FromRequestParts<Functions> for Segments {
    type Rejection = LambdaError;

    async fn from_request_parts(parts: &mut Parts, state: &Functions) -> Result<Self, LambdaError> {
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Path(pairs) = path.map_err(|error| LambdaError::invalid(error.to_string()))?;
        Ok(Self(pairs.into_iter().map(|(_, value)| value).collect()))
    }
}

impl FromRequestParts<Functions> for On {
    type Rejection = LambdaError;

    async fn from_request_parts(parts: &mut Parts, state: &Functions) -> Result<Self, LambdaError> {
        let ask = Ask::from_request_parts(parts, state).await?;
        let mut query = Query::from_request_parts(parts, state).await?;
        let Segments(segments) = Segments::from_request_parts(parts, state).await?;
        let name = segments.first().map(String::as_str).unwrap_or_default();
        let target = state.identity.target(&ask.account, name)?;
        let target = target.qualified(query.qualifier.take())?;
        Ok(Self {
            functions: state.clone(),
            ask,
            target,
            query,
        })
    }
}

impl On {
    /// The function.
    fn function(&self) -> Result<Arc<Function>, LambdaError> {
        let found = self
            .functions
            .registry
            .get(&self.ask.account, &self.target.name);
        found.ok_or_else(|| LambdaError::no_function(&self.arn()))
    }

    /// The ARN of what was named, with its qualifier where it has one.
    fn arn(&self) -> String {
        let Target { name, qualifier } = &self.target;
        let identity = &self.functions.identity;
        identity.arn(&self.ask.account, name, qualifier.as_deref())
    }

    /// The ARN of the function alone.
    fn plain_arn(&self) -> String {
        let identity = &self.functions.identity;
        identity.arn(&self.ask.account, &self.target.name, None)
    }

    fn qualifier(&self) -> Option<&str> {
        self.target.qualifier.as_deref()
    }

    /// The qualifier where it leads to a version; otherwise there is no such thing.
    fn existing_qualifier(&self, function: &Function) -> Result<(), LambdaError> {
        match function.resolve(self.qualifier(), || 0.0) {
            Some(_) => Ok(()),
            None => Err(LambdaError::no_function(&self.arn())),
        }
    }

    /// Refuses a qualifier where the operation is about the function as a whole.
    fn unqualified(&self) -> Result<(), LambdaError> {
        match self.qualifier() {
            None | Some(super::function::LATEST) => Ok(()),
            Some(_) => Err(LambdaError::invalid(
                "This operation is permitted on functions only. Aliases and versions do not \
                 support this operation. Please specify either a function name or an unqualified \
                 function ARN.",
            )),
        }
    }

    /// Changes the function. It is changed even where the client goes away.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Function) -> Result<T, LambdaError> + Send + 'static,
    ) -> Result<(Arc<Function>, T), LambdaError> {
        let functions = self.functions.clone();
        let (account, name) = (self.ask.account.clone(), self.target.name.clone());
        self.function()?;
        let work = async move { functions.registry.change(&account, &name, change).await };
        self.functions.settle(work).await
    }
}

/// A page of a list, and the marker of the next one.
struct Page<T> {
    items: Vec<T>,
    next: Option<String>,
}

impl Query {
    /// How many items a page has.
    fn most(&self) -> Result<usize, LambdaError> {
        let Some(text) = &self.max_items else {
            return Ok(MOST_ITEMS);
        };
        match text.parse::<usize>() {
            Ok(most @ 1..=10_000) => Ok(most.min(MOST_ITEMS)),
            _ => Err(LambdaError::invalid(format!(
                "1 validation error detected: Value '{text}' at 'maxItems' failed to satisfy \
                 constraint: Member must have value between 1 and 10000"
            ))),
        }
    }

    fn marker(&self) -> Option<&str> {
        self.marker.as_deref().filter(|marker| !marker.is_empty())
    }

    /// The part of a list that was asked for. Items are in the order of their keys.
    fn page<T>(&self, items: impl Iterator<Item = (String, T)>) -> Result<Page<T>, LambdaError> {
        let most = self.most()?;
        let mut items = items;
        if let Some(marker) = self.marker() {
            // A marker is the key of the last item before it, which may be gone: then what is
            // after cannot be told, and the list begins anew.
            let all: Vec<_> = items.collect();
            let after = all.iter().position(|(key, _)| key == marker);
            let rest = all.into_iter().skip(after.map_or(0, |at| at + 1));
            return Ok(cut(rest, most));
        }
        Ok(cut(&mut items, most))
    }
}

fn cut<T>(mut items: impl Iterator<Item = (String, T)>, most: usize) -> Page<T> {
    let mut page = Page {
        items: Vec::new(),
        next: None,
    };
    let mut last = None;
    for (key, item) in items.by_ref().take(most) {
        page.items.push(item);
        last = Some(key);
    }
    if items.next().is_some() {
        page.next = last;
    }
    page
}

/// A list as it is answered.
fn listed(key: &str, items: Vec<Value>, next: Option<String>) -> Reply {
    let mut all = serde_json::json!({});
    all[key] = Value::Array(items);
    if let Some(next) = next {
        all["NextMarker"] = next.into();
    }
    ok(all)
}
