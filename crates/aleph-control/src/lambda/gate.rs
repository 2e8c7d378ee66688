//! Whose a request is, and how large it may be: decided before any route runs.
//!
//! | way in | whose a request is |
//! | --- | --- |
//! | `[functions] listen`, with credentials | that of the key that signed it |
//! | `[functions] listen` on this host, without | `default`, signed or not |
//! | `/lambda` of the node's API | that of the API's caller |
//!
//! Without credentials any process of this host may ask; a web page that one of its browsers
//! shows may not. So a request that says which page it comes from, that a browser makes for a page
//! of whatever origin (`Sec-Fetch-Site`), or that was sent to a name that is not this host's, is
//! refused. Pages that functions answer with are of the listener's own origin, and are refused as
//! those of others are. A browser that says neither, as those before 2023 do for a picture, is
//! taken for a program.
//!
//! The body of a request is read here, since a signature signs it. All bodies together hold a
//! bounded amount of memory: those with code apart from all others, so that uploads keep no small
//! request waiting, those sent to URLs of functions apart, too, so that strangers keep nobody else
//! waiting, and those of one account, as a request claims it, a share of each. A request of
//! a stranger is refused before its body. While a body comes it holds what it may become, and
//! afterwards what it is.

use super::error::{Kind, LambdaError};
use super::invocation::MOST_EVENT;
use super::trace::{Trace, XRAY};
use super::{Functions, random_id, routes, url};
use crate::accounts::DEFAULT_ACCOUNT;
use crate::server::Caller;
use crate::server::connection::Slot;
use aleph_types::Timestamp;
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, FromRequestParts, Request, State};
use axum::http::header::{CONTENT_LENGTH, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// The most bytes of a request with code: an archive in base64, and what surrounds it.
pub const MOST_BODY: usize = 70 * 1024 * 1024;
/// The most bytes of a request that is neither code nor an event.
const MOST_SETTINGS: usize = 1024 * 1024;
/// The most bytes that are taken of a body that is not wanted.
const MOST_DISCARDED: usize = 2 * MOST_EVENT;
/// KiB that all bodies with code hold together, and those of one account: the largest has room
/// in its account's half.
const CODE_MEMORY: u32 = 448 * 1024;
const CODE_SHARE: u32 = CODE_MEMORY / 2;
/// KiB that all other bodies hold together, and those of one account.
const OTHER_MEMORY: u32 = 192 * 1024;
const OTHER_SHARE: u32 = OTHER_MEMORY / 4 * 3;
/// KiB that bodies sent to URLs of functions hold together, and those of one account.
const URL_MEMORY: u32 = 128 * 1024;
const URL_SHARE: u32 = URL_MEMORY / 4 * 3;
/// How long a body waits for memory.
const MEMORY_TIME: Duration = Duration::from_secs(10);
/// How long a client may take to send a body, and for each MiB of it besides.
const BODY_TIME: Duration = Duration::from_secs(30);
const BODY_TIME_EACH_MIB: Duration = Duration::from_secs(2);
/// Says which request it was.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");

/// The memory of all bodies.
#[derive(Debug)]
pub(crate) struct Memory {
    /// Of those with code.
    code: Pool,
    /// Of those sent to URLs.
    url: Pool,
    /// Of all others.
    other: Pool,
}

/// How much a body may hold, and of what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    /// Its bytes.
    most: usize,
    /// How many copies there are of it at once.
    copies: u32,
    /// Whether it is sent to a URL.
    url: bool,
}

impl Bound {
    /// Of a body sent to a URL: itself, its text, and the event.
    pub(super) const URL: Self = Self {
        most: MOST_EVENT,
        copies: 3,
        url: true,
    };

    /// Of one sent to the API, of so many bytes at most.
    fn api(most: usize) -> Self {
        Self {
            most,
            copies: 1,
            url: false,
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            code: Pool::new(CODE_MEMORY, CODE_SHARE),
            url: Pool::new(URL_MEMORY, URL_SHARE),
            other: Pool::new(OTHER_MEMORY, OTHER_SHARE),
        }
    }
}

/// Memory in KiB.
#[derive(Debug)]
struct Pool {
    all: Arc<Semaphore>,
    /// What one account may hold of it.
    share: u32,
    /// What is left of each account's share. Only accounts that exist get here.
    shares: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// What a body holds of its account's share and of all memory.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<OwnedSemaphorePermit>);

/// Who asks, and with which request.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) account: String,
    /// Names the request: a UUID.
    pub(crate) request: String,
    /// The trace that it belongs to.
    pub(crate) trace: Trace,
    /// What its body holds, until the last clone is gone.
    _memory: Arc<Held>,
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
    let api = routes::all()
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn_with_state(
            (functions.clone(), Way::Listener),
            admit,
        ))
        .with_state(functions.clone());
    url::before(functions, api)
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
    let trace = Trace::of(request.headers());
    let mut response = match enter(&functions, way, (&id, trace), request).await {
        Ok(request) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    sign(&mut response, &id, &trace.answer());
    response
}

/// Says in an answer which request it was, where it does not say so, and to which trace it belongs.
pub(super) fn sign(response: &mut Response, request: &str, trace: &str) {
    let headers = response.headers_mut();
    for (name, value) in [
        (REQUEST_ID, request),
        (HeaderName::from_static(XRAY), trace),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.entry(name).or_insert(value);
        }
    }
}

async fn enter(
    functions: &Functions,
    way: Way,
    (id, trace): (&str, Trace),
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
            let scope = (region.as_str(), routes::service(parts.uri.path()));
            let keys = &functions.keys;
            Some(keys.claim(&parts.uri, &parts.headers, scope, now)?)
        }
    };
    // Whose memory the body takes; a claim is verified once the body is here.
    let claimed = match (&claim, way) {
        (Some(claim), _) => claim.account().to_owned(),
        (None, Way::Listener) => DEFAULT_ACCOUNT.to_owned(),
        (None, Way::Node) => match parts.extensions.get::<Caller>() {
            Some(caller) => caller.account.clone(),
            None => return Err(LambdaError::internal("nobody knows who asks")),
        },
    };
    let most = most_bytes(&parts.method, parts.uri.path());
    let taken = take(functions, &claimed, &parts.headers, body, Bound::api(most));
    let (bytes, mut memory) = taken.await?;
    memory.shrink(kib(bytes.len(), most));
    let account = match claim {
        Some(claim) => claim.verify(&parts.method, &parts.uri, &parts.headers, &bytes)?,
        None => claimed,
    };
    if let Some(slot) = parts.extensions.get::<Slot>() {
        slot.know();
    }
    parts.extensions.insert(Ask {
        account,
        request: id.to_owned(),
        trace,
        _memory: Arc::new(memory),
    });
    Ok(Request::from_parts(parts, Body::from(bytes)))
}

/// Takes the body of a request that is an account's, with the memory that it holds.
pub(super) async fn take(
    functions: &Functions,
    account: &str,
    headers: &HeaderMap,
    body: Body,
    bound: Bound,
) -> Result<(Bytes, Held), LambdaError> {
    let length = length(headers, &body);
    let memory = functions.memory.take(account, length, bound);
    let memory = match memory.await {
        Ok(memory) => memory,
        Err(error) => {
            discard(body).await;
            return Err(error);
        }
    };
    Ok((read(body, bound.most).await?, memory))
}

/// The name of the host that a request is for, without its port.
pub(super) fn host_name(headers: &HeaderMap) -> Option<&str> {
    let host = headers.get(HOST)?.to_str().ok()?;
    let end = host.rfind(':').filter(|_| !host.ends_with(']'));
    Some(host[..end.unwrap_or(host.len())].trim_matches(['[', ']']))
}

/// Whether a request was sent to a name that is this host's.
pub(super) fn is_for_this_host(headers: &HeaderMap) -> bool {
    host_name(headers).is_none_or(|name| {
        let ip = name.parse::<IpAddr>();
        let local = name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost");
        ip.map_or(local, |ip| ip.to_canonical().is_loopback())
    })
}

/// Which pages a browser says that a request is for, with a word for its user; none where it is no
/// browser.
pub(super) fn sites(headers: &HeaderMap) -> impl Iterator<Item = &HeaderValue> {
    headers.get_all("sec-fetch-site").iter()
}

/// Refuses what a browser sends for a page, whoever's that is.
pub(super) fn only_of_this_host(headers: &HeaderMap) -> Result<(), LambdaError> {
    let page = headers.contains_key(ORIGIN) || sites(headers).any(|site| site != "none");
    if is_for_this_host(headers) && !page {
        return Ok(());
    }
    let message = "Without credentials in [functions], only programs of this host may ask";
    Err(LambdaError::new(Kind::AccessDenied, message))
}

/// How long the body of a request may be.
fn most_bytes(method: &Method, path: &str) -> usize {
    let path = path.trim_end_matches('/');
    if path.starts_with("/cloudevents/") {
        return MOST_EVENT;
    }
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

pub(super) fn too_large(most: usize) -> LambdaError {
    let operation = if most == MOST_EVENT {
        " for the InvokeFunction operation"
    } else {
        ""
    };
    let message = format!("Request must be smaller than {most} bytes{operation}");
    LambdaError::new(Kind::RequestTooLarge, message)
}

/// How long a body is, where that is known.
fn length(headers: &HeaderMap, body: &Body) -> Option<usize> {
    if body.is_end_stream() {
        return Some(0);
    }
    let exact = body.size_hint().exact();
    let exact = exact.and_then(|length| usize::try_from(length).ok());
    exact.or_else(|| headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok())
}

/// KiB that a body holds, with what is decoded and parsed of it.
pub(super) fn kib(length: usize, most: usize) -> u32 {
    let factor = if most == MOST_BODY { 3 } else { 1 };
    u32::try_from((length * factor).div_ceil(1024)).unwrap_or(u32::MAX)
}

impl Memory {
    /// Memory for copies of a body of an account; of the longest there may be where its length is
    /// not known.
    async fn take(
        &self,
        account: &str,
        length: Option<usize>,
        bound: Bound,
    ) -> Result<Held, LambdaError> {
        let Bound { most, copies, url } = bound;
        let length = length.unwrap_or(most);
        if length > most {
            return Err(too_large(most));
        }
        let pool = match most {
            _ if url => &self.url,
            MOST_BODY => &self.code,
            _ => &self.other,
        };
        let kib = kib(length, most).saturating_mul(copies);
        match timeout(MEMORY_TIME, pool.take(account, kib)).await {
            Ok(Some(held)) => Ok(held),
            _ => Err(LambdaError::throttled(
                Duration::from_secs(5),
                "CallerRateLimitExceeded",
                "Rate Exceeded. Requests hold as much memory as they may.",
            )),
        }
    }
}

impl Pool {
    fn new(all: u32, share: u32) -> Self {
        Self {
            all: semaphore(all),
            share,
            shares: Mutex::default(),
        }
    }

    async fn take(&self, account: &str, kib: u32) -> Option<Held> {
        if kib == 0 {
            return Some(Held::default());
        }
        let own = {
            let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
            let own = shares.entry(account.to_owned());
            Arc::clone(own.or_insert_with(|| semaphore(self.share)))
        };
        let kib = kib.min(self.share);
        // The share comes first: who waits for that keeps nobody else waiting.
        let own = own.acquire_many_owned(kib).await.ok()?;
        let all = Arc::clone(&self.all).acquire_many_owned(kib).await.ok()?;
        Some(Held(vec![own, all]))
    }
}

fn semaphore(permits: u32) -> Arc<Semaphore> {
    let permits = usize::try_from(permits).unwrap_or(Semaphore::MAX_PERMITS);
    Arc::new(Semaphore::new(permits))
}

impl Held {
    /// Gives back what is held beyond so many KiB.
    pub(super) fn shrink(&mut self, kib: u32) {
        let kib = usize::try_from(kib).unwrap_or(usize::MAX);
        for permit in &mut self.0 {
            let beyond = permit.num_permits().saturating_sub(kib);
            drop(permit.split(beyond));
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
    use futures_util::future::poll_immediate;

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
        for (site, good) in [
            ("none", true),
            ("same-origin", false),
            ("same-site", false),
            ("cross-site", false),
        ] {
            let mut headers = headers("127.0.0.1:9000", None);
            headers.insert("sec-fetch-site", site.parse().unwrap());
            assert_eq!(only_of_this_host(&headers).is_ok(), good, "{site}");
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
        let error = Memory::default()
            .take("a", Some(MOST_EVENT + 1), Bound::api(MOST_EVENT))
            .await
            .unwrap_err();
        assert_eq!(error.name(), "RequestTooLargeException");
        let error = read(Body::from("12345"), 4).await.unwrap_err();
        assert_eq!(error.status(), 413);
        assert_eq!(read(Body::from("1234"), 4).await.unwrap(), "1234");
    }

    #[test]
    fn the_length_of_a_body_is_what_it_says_or_its_header() {
        let mut headers = HeaderMap::new();
        assert_eq!(length(&headers, &Body::empty()), Some(0));
        assert_eq!(length(&headers, &Body::from("123")), Some(3));
        let chunked = || {
            let stream = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
            Body::from_stream(stream)
        };
        assert_eq!(length(&headers, &chunked()), None);
        headers.insert(CONTENT_LENGTH, 7.into());
        assert_eq!(length(&headers, &chunked()), Some(7));
    }

    #[tokio::test]
    async fn a_body_holds_what_it_is_once_it_is_here() {
        let memory = Memory::default();
        let free = || memory.other.all.available_permits();
        let before = free();
        let mut chunked = memory
            .take("a", None, Bound::api(MOST_EVENT))
            .await
            .unwrap();
        assert_eq!(before - free(), MOST_EVENT / 1024);
        chunked.shrink(kib(1025, MOST_EVENT));
        assert_eq!(before - free(), 2);
        drop(chunked);
        assert_eq!(before, free());
        let nothing = memory
            .take("a", Some(0), Bound::api(MOST_SETTINGS))
            .await
            .unwrap();
        assert_eq!(before, free());
        drop(nothing);
    }

    #[tokio::test]
    async fn uploads_of_one_account_keep_neither_others_nor_events_waiting() {
        let memory = Memory::default();
        let _large = memory.take("a", None, Bound::api(MOST_BODY)).await.unwrap();
        let mut waits = Box::pin(memory.take("a", None, Bound::api(MOST_BODY)));
        assert!(poll_immediate(&mut waits).await.is_none());
        let small = Box::pin(memory.take("a", Some(1024), Bound::api(MOST_EVENT)));
        assert!(poll_immediate(small).await.is_some());
        let other = Box::pin(memory.take("b", None, Bound::api(MOST_BODY)));
        assert!(poll_immediate(other).await.is_some());
    }

    #[tokio::test]
    async fn strangers_at_urls_keep_nobody_else_waiting() {
        let memory = Memory::default();
        let mut held = Vec::new();
        // Of bodies whose length is not known, each may become the longest.
        let take = || Box::pin(memory.take("a", None, Bound::URL));
        while let Some(taken) = poll_immediate(take()).await {
            held.push(taken.unwrap());
        }
        assert_eq!(held.len(), 5, "three copies of 6 MiB each, of 96 MiB");
        let own = Box::pin(memory.take("a", None, Bound::api(MOST_EVENT)));
        assert!(poll_immediate(own).await.is_some());
        let other = Box::pin(memory.take("b", Some(1024), Bound::URL));
        assert!(poll_immediate(other).await.is_some());
    }
}
