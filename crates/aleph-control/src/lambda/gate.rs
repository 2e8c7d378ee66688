//! Whose a request is, and how large it may be: decided before any route runs.
//!
//! | way in | whose a request is |
//! | --- | --- |
//! | `[functions] listen`, with credentials | that of the key that signed it |
//! | `[functions] listen` on this host, without | `default`, signed or not |
//! | `/lambda` of the node's API | that of the API's caller |
//!
//! Without credentials any process of this host may ask; a web page that one of its browsers
//! shows may not. So a request that says which page it comes from, or which was sent to a name
//! that is not this host's, is refused.
//!
//! The body of a request is read here, since a signature signs it. All bodies together hold a
//! bounded amount of memory, and a request of a stranger is refused before its body.

use super::error::{Kind, LambdaError};
use super::invocation::MOST_EVENT;
use super::{Functions, random_id, routes};
use crate::accounts::DEFAULT_ACCOUNT;
use crate::server::Caller;
use crate::server::connection::Slot;
use aleph_types::Timestamp;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::header::{CONTENT_LENGTH, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The most bytes of a request with code: an archive in base64, and what surrounds it.
pub const MOST_BODY: usize = 70 * 1024 * 1024;
/// The most bytes of a request that is neither code nor an event.
const MOST_SETTINGS: usize = 1024 * 1024;
/// The most bytes that are taken of a body that is not wanted.
const MOST_DISCARDED: usize = 2 * MOST_EVENT;
/// KiB that all bodies hold together.
const MEMORY: u32 = 512 * 1024;
/// How long a body waits for memory.
const MEMORY_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to send a body, and for each MiB of it besides.
const BODY_TIME: Duration = Duration::from_secs(30);
const BODY_TIME_EACH_MIB: Duration = Duration::from_secs(2);
/// Says which request it was.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The memory of all bodies.
#[derive(Debug)]
pub(crate) struct Memory(Arc<Semaphore>);

impl Default for Memory {
    fn default() -> Self {
        let permits = usize::try_from(MEMORY).unwrap_or(Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(permits)))
    }
}

/// Who asks, and with which request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) account: String,
    /// Names the request: a UUID.
    pub(crate) request: String,
    /// What its body holds, until the last clone is gone.
    _memory: Arc<OwnedSemaphorePermit>,
}

impl<S: Sync> FromRequestParts<S> for Ask {
    type Rejection = LambdaError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, LambdaError> {
        let ask = parts.extensions.get::<Self>().cloned();
        ask.ok_or_else(|| LambdaError::internal("a route does not know who asks"))
    }
}

/// The API on a listener of its own.
pub(crate) fn guarded(functions: &Functions) -> Router {
    routes::all()
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(
            (functions.clone(), Way::Listener),
            admit,
        ))
        .with_state(functions.clone())
}

/// The same for callers that the node's API has identified.
pub(crate) fn nested(functions: Option<&Functions>) -> Router {
    match functions {
        Some(functions) => routes::all()
            .layer(DefaultBodyLimit::disable())
            .layer(from_fn_with_state((functions.clone(), Way::Node), admit))
            .with_state(functions.clone()),
        None => Router::new().fallback(|| async {
            let message = "this node runs no functions";
            LambdaError::new(Kind::ServiceUnavailable, message)
        }),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Listener,
    Node,
}

async fn admit(
    State((functions, way)): State<(Functions, Way)>,
    request: Request,
    next: Next,
) -> Response {
    let id = random_id();
    let mut response = match enter(&functions, way, &id, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn enter(
    functions: &Functions,
    way: Way,
    id: &str,
    request: Request,
) -> Result<Request, LambdaError> {
    let (mut parts, body) = request.into_parts();
    let claim = match way {
        Way::Node => None,
        Way::Listener if functions.keys.is_empty() => {
            only_of_this_host(&parts.headers)?;
            None
        }
        Way::Listener => {
            let region = &functions.identity.region;
            let now = Timestamp::now();
            Some(functions.keys.claim(&parts.headers, region, now)?)
        }
    };
    let most = most_bytes(&parts.method, parts.uri.path());
    let memory = match functions.memory.take(&parts.headers, most).await {
        Ok(memory) => memory,
        Err(error) => {
            discard(body).await;
            return Err(error);
        }
    };
    let bytes = read(body, most).await?;
    let account = match (claim, way) {
        (Some(claim), _) => claim.verify(&parts.method, &parts.uri, &parts.headers, &bytes)?,
        (None, Way::Listener) => DEFAULT_ACCOUNT.to_owned(),
        (None, Way::Node) => match parts.extensions.get::<Caller>() {
            Some(caller) => caller.account.clone(),
            None => return Err(LambdaError::internal("nobody knows who asks")),
        },
    };
    if let Some(slot) = parts.extensions.get::<Slot>() {
        slot.know();
    }
    parts.extensions.insert(Ask {
        account,
        request: id.to_owned(),
        _memory: Arc::new(memory),
    });
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Refuses what a browser sends for a page of somebody else's.
fn only_of_this_host(headers: &HeaderMap) -> Result<(), LambdaError> {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let name = host.map(|host| {
        let end = host.rfind(':').filter(|_| !host.ends_with(']'));
        host[..end.unwrap_or(host.len())].trim_matches(['[', ']'])
    });
    let here = name.is_none_or(|name| {
        let ip = name.parse::<IpAddr>();
        let local = name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost");
        ip.map_or(local, |ip| ip.to_canonical().is_loopback())
    });
    if here && !headers.contains_key(ORIGIN) {
        return Ok(());
    }
    let message = "Without credentials in [functions], only programs of this host may ask";
    Err(LambdaError::new(Kind::AccessDenied, message))
}

/// How long the body of a request may be.
fn most_bytes(method: &Method, path: &str) -> usize {
    let path = path.trim_end_matches('/');
    if path.ends_with("/invocations") || path.ends_with("/invoke-async") {
        return MOST_EVENT;
    }
    if path.ends_with("-invocations") {
        return MOST_EVENT;
    }
    let code = *method == Method::POST && path.ends_with("/functions")
        || *method == Method::PUT && path.ends_with("/code");
    if code { MOST_BODY } else { MOST_SETTINGS }
}

fn too_large(most: usize) -> LambdaError {
    let operation = if most == MOST_EVENT {
        " for the InvokeFunction operation"
    } else {
        ""
    };
    let message = format!("Request must be smaller than {most} bytes{operation}");
    LambdaError::new(Kind::RequestTooLarge, message)
}

impl Memory {
    /// Memory for a body. What is decoded and parsed is held as well.
    async fn take(
        &self,
        headers: &HeaderMap,
        most: usize,
    ) -> Result<OwnedSemaphorePermit, LambdaError> {
        let length = headers
            .get(CONTENT_LENGTH)
            .and_then(|l| l.to_str().ok()?.parse().ok());
        let length: usize = length.unwrap_or(most);
        if length > most {
            return Err(too_large(most));
        }
        let factor = if most == MOST_BODY { 3 } else { 1 };
        let kib = u32::try_from(length * factor / 1024 + 1).unwrap_or(MEMORY);
        let wait = Arc::clone(&self.0).acquire_many_owned(kib.min(MEMORY));
        match timeout(MEMORY_TIME, wait).await {
            Ok(Ok(memory)) => Ok(memory),
            _ => Err(LambdaError::throttled(
                Duration::from_secs(5),
                "CallerRateLimitExceeded",
                "Rate Exceeded. Requests hold as much memory as they may.",
            )),
        }
    }
}

/// Takes some of a body that is not wanted: many clients hear nothing before they have sent all.
async fn discard(mut body: Body) {
    let all = async {
        let mut left = MOST_DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    let _ = timeout(BODY_TIME, all).await;
}

async fn read(body: Body, most: usize) -> Result<Bytes, LambdaError> {
    let mib = u32::try_from(most >> 20).unwrap_or(1);
    let time = BODY_TIME + BODY_TIME_EACH_MIB * mib;
    match timeout(time, Limited::new(body, most).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(too_large(most))
        }
        Ok(Err(error)) => Err(LambdaError::new(
            Kind::InvalidRequestContent,
            format!("The body cannot be read: {error}"),
        )),
        Err(_) => Err(LambdaError::new(
            Kind::RequestTimeout,
            "The body did not come in time",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_others_may_not_ask() {
        let headers = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(ORIGIN, origin.parse().unwrap());
            }
            headers
        };
        for host in [
            "127.0.0.1:9000",
            "localhost:9000",
            "[::1]:9000",
            "[::1]",
            "localhost",
        ] {
            only_of_this_host(&headers(host, None)).unwrap();
        }
        for (host, origin) in [
            ("rebound.example.org:9000", None),
            ("10.0.0.1:9000", None),
            ("127.0.0.1:9000", Some("https://example.org")),
        ] {
            assert!(only_of_this_host(&headers(host, origin)).is_err(), "{host}");
        }
    }

    #[test]
    fn bodies_are_bounded_by_what_they_are_for() {
        for (method, path, most) in [
            (Method::POST, "/2015-03-31/functions", MOST_BODY),
            (Method::POST, "/2015-03-31/functions/", MOST_BODY),
            (Method::PUT, "/2015-03-31/functions/f/code", MOST_BODY),
            (Method::GET, "/2015-03-31/functions", MOST_SETTINGS),
            (
                Method::PUT,
                "/2015-03-31/functions/f/configuration",
                MOST_SETTINGS,
            ),
            (
                Method::POST,
                "/2015-03-31/functions/f/invocations",
                MOST_EVENT,
            ),
            (
                Method::POST,
                "/2021-11-15/functions/f/response-streaming-invocations",
                MOST_EVENT,
            ),
        ] {
            assert_eq!(most_bytes(&method, path), most, "{path}");
        }
    }

    #[tokio::test]
    async fn a_body_that_is_too_long_is_refused_by_its_length_and_by_what_comes() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, (MOST_EVENT + 1).into());
        let error = Memory::default()
            .take(&headers, MOST_EVENT)
            .await
            .unwrap_err();
        assert_eq!(error.name(), "RequestTooLargeException");
        let error = read(Body::from("12345"), 4).await.unwrap_err();
        assert_eq!(error.status(), 413);
        assert_eq!(read(Body::from("1234"), 4).await.unwrap(), "1234");
    }
}
