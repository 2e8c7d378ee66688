//! The runtime API, as a function's runtime speaks it: HTTP over connections that programs in the
//! guest open to the agent's port, and that end here.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>
//!
//! ```text
//! Starting ── GET restore/next ─▶ Holding ── (a clone answers it) ─▶ Starting
//!    │ GET invocation/next
//!    ▼
//!  Waiting ── an event ─▶ Busy ── POST response, error ─▶ Answered ── GET invocation/next ─▶ Waiting
//! ```
//! A response of the mode `streaming` is handed on with its connection: whoever takes it reads it
//! from there, and as slowly as it is read it comes.
//!
//! # Failure cases
//! The guest is hostile: bodies are bounded, an answer to an event that it was not given is refused
//! with 400, a second `next` while one waits takes the first one's place. Whatever it does costs
//! its own VM.

use super::answer::{Answer, MAX_ANSWER, Streamed};
use super::invocation::Invocation;
use super::late_end::LateEnd;
use super::response::JSON;
use super::stack::Stack;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;

/// The most connections at once.
const MAX_CONNECTIONS: usize = 256;

/// The most bytes of a request's head, and of what is read of a body at once.
pub(super) const BUFFER: usize = 64 * 1024;

/// The longest report of a runtime that cannot begin, in bytes.
const MAX_REPORT: usize = 64 * 1024;

const PREFIX: &str = "/2018-06-01/runtime/";
pub(super) const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const RESPONSE_MODE: &str = "lambda-runtime-function-response-mode";

/// What a runtime is doing.
#[derive(Debug)]
enum State {
    /// Initialising, or between two requests.
    Starting,
    /// It asked to be told once it was restored.
    Holding,
    /// It could not initialise.
    Failed(Bytes),
    /// It asked for an event.
    Waiting(oneshot::Sender<Response<Full<Bytes>>>),
    /// It has an event.
    Busy {
        request_id: String,
        answer: oneshot::Sender<Answer>,
    },
}

/// What came of a runtime's initialisation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Initialised {
    /// It asked for an event, or to be told that it was restored.
    Ready,
    /// It failed, and says why: JSON.
    Failed(Bytes),
}

/// The conversation with one guest's runtime.
#[derive(Debug)]
pub(super) struct Conversation {
    state: Mutex<State>,
    changed: Notify,
    /// Whether a runtime that asks to be told of its restoration is told at once: in a clone.
    is_restored: bool,
    /// Held by who reads a body: a guest holds no more than one of them here.
    reading: tokio::sync::Mutex<()>,
}

impl Conversation {
    pub(super) fn new(is_restored: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::Starting),
            changed: Notify::new(),
            is_restored,
            reading: tokio::sync::Mutex::default(),
        })
    }

    /// Serves what programs in the guest open, for as long as there is the link.
    pub(super) async fn serve(self: Arc<Self>, stack: Stack) {
        let mut connections = JoinSet::new();
        loop {
            let connection = stack.accept().await;
            // Those that have ended make room.
            while connections.try_join_next().is_some() {}
            if connections.len() >= MAX_CONNECTIONS {
                // The guest has no more streams: some of these are over, and do not know it.
                connections.abort_all();
            }
            connections.spawn(Arc::clone(&self).serve_one(connection));
        }
    }

    async fn serve_one(
        self: Arc<Self>,
        connection: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) {
        let service = service_fn(|request| {
            let conversation = Arc::clone(&self);
            async move { Ok::<_, std::convert::Infallible>(conversation.answer(request).await) }
        });
        // A connection that breaks is the guest's own affair.
        let _ = hyper::server::conn::http1::Builder::new()
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(LateEnd::new(connection)), service)
            .await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.changed.notify_waiters();
    }

    /// Waits until the runtime has initialised, or has failed to.
    pub(super) async fn initialised(&self) -> Initialised {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match &*self.lock() {
                State::Waiting(_) | State::Holding => return Initialised::Ready,
                State::Failed(why) => return Initialised::Failed(why.clone()),
                State::Starting | State::Busy { .. } => {}
            }
            changed.await;
        }
    }

    /// Gives the runtime an event as soon as it asks for one. The answer comes later.
    pub(super) async fn give(
        &self,
        invocation: &Invocation,
        limit: Duration,
    ) -> oneshot::Receiver<Answer> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                if matches!(&*state, State::Waiting(next) if !next.is_closed()) {
                    let (answer, answered) = oneshot::channel();
                    let busy = State::Busy {
                        request_id: invocation.request_id.clone(),
                        answer,
                    };
                    let event = event(invocation, SystemTime::now() + limit);
                    if let State::Waiting(next) = std::mem::replace(&mut *state, busy)
                        && next.send(event).is_ok()
                    {
                        return answered;
                    }
                    // Its connection broke at this very moment: it did not get the event.
                    *state = State::Starting;
                }
            }
            changed.await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        let Some(path) = path.strip_prefix(PREFIX) else {
            return status(StatusCode::NOT_FOUND);
        };
        match (request.method(), path) {
            (&Method::GET, "invocation/next") => {
                let (next, event) = oneshot::channel();
                self.set(State::Waiting(next));
                match event.await {
                    Ok(event) => event,
                    // Another request took its place, or the clone ends.
                    Err(_) => status(StatusCode::CONFLICT),
                }
            }
            (&Method::GET, "restore/next") => {
                if !self.is_restored {
                    self.set(State::Holding);
                    // The template is never told: its clones are.
                    std::future::pending::<()>().await;
                }
                status(StatusCode::OK)
            }
            (&Method::POST, "init/error" | "restore/error") => {
                let _turn = self.reading.lock().await;
                let why = match body(request, MAX_REPORT).await {
                    Some(why) => why,
                    None => return too_large(),
                };
                self.set(State::Failed(why));
                accepted()
            }
            (&Method::POST, path) => match path
                .strip_prefix("invocation/")
                .and_then(|rest| rest.split_once('/'))
            {
                Some((id, "response")) if is_streamed(&request) => {
                    let id = id.to_owned();
                    self.hand_on(&id, request).await
                }
                Some((id, "response")) => {
                    let id = id.to_owned();
                    let content_type = content_type(&request);
                    let response = |body| Answer::Response { content_type, body };
                    self.take(&id, request, response).await
                }
                Some((id, "error")) => {
                    let id = id.to_owned();
                    let kind = request.headers().get(ERROR_TYPE).cloned();
                    let error = |body: Bytes| Answer::Error(described(body, kind.as_ref()));
                    self.take(&id, request, error).await
                }
                _ => status(StatusCode::NOT_FOUND),
            },
            _ => status(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    /// Takes an answer in, where it is to the event that the runtime has.
    async fn take(
        &self,
        id: &str,
        request: Request<Incoming>,
        answer: impl FnOnce(Bytes) -> Answer,
    ) -> Response<Full<Bytes>> {
        let _turn = self.reading.lock().await;
        if !self.has(id) {
            return not_its_own();
        }
        let body = body(request, MAX_ANSWER).await;
        let is_taken = body.is_some();
        let answer_is = body.map_or(Answer::TooLarge, answer);
        match self.answered(id) {
            // Whoever waited may have given up.
            Some(answer) => drop(answer.send(answer_is)),
            None => return not_its_own(),
        }
        if is_taken { accepted() } else { too_large() }
    }

    /// Hands on a response that comes piece by piece, where it is to the event that the runtime has.
    async fn hand_on(&self, id: &str, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let _turn = self.reading.lock().await;
        let Some(answer) = self.answered(id) else {
            return not_its_own();
        };
        let content_type = content_type(&request);
        let (taken, is_taken) = oneshot::channel();
        let streamed = Streamed::of_runtime(content_type, request.into_body(), taken);
        if answer.send(Answer::Streamed(streamed)).is_err() {
            return status(StatusCode::GONE);
        }
        match is_taken.await {
            Ok(true) => accepted(),
            Ok(false) => too_large(),
            // Its time is over, and with it the clone.
            Err(_) => status(StatusCode::GONE),
        }
    }

    /// Whether the runtime has this event.
    fn has(&self, id: &str) -> bool {
        matches!(&*self.lock(), State::Busy { request_id, .. } if request_id == id)
    }

    /// Who waits for the answer to this event, which has one from now on.
    fn answered(&self, id: &str) -> Option<oneshot::Sender<Answer>> {
        let mut state = self.lock();
        match std::mem::replace(&mut *state, State::Starting) {
            State::Busy { request_id, answer } if request_id == id => Some(answer),
            other => {
                *state = other;
                None
            }
        }
    }
}

/// Whether a response comes piece by piece.
fn is_streamed(request: &Request<Incoming>) -> bool {
    let mode = request.headers().get(RESPONSE_MODE);
    mode.is_some_and(|mode| mode.as_bytes().eq_ignore_ascii_case(b"streaming"))
}

fn content_type(request: &Request<Incoming>) -> String {
    let value = request.headers().get(CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok());
    text.unwrap_or(JSON).to_owned()
}

/// An error as clients get it: what the runtime said, or what its header did.
fn described(body: Bytes, kind: Option<&HeaderValue>) -> Bytes {
    if !body.is_empty() {
        return body;
    }
    let kind = kind
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or("Unknown");
    serde_json::json!({ "errorType": kind, "errorMessage": "" })
        .to_string()
        .into()
}

async fn body(request: Request<Incoming>, most: usize) -> Option<Bytes> {
    let body = Limited::new(request.into_body(), most);
    Some(body.collect().await.ok()?.to_bytes())
}

/// The answer to `next` that is an event.
fn event(invocation: &Invocation, deadline: SystemTime) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(invocation.payload.clone()));
    let headers = response.headers_mut();
    let deadline_ms = deadline
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_millis();
    // The Python client parses it only as exactly this.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let deadline_ms = deadline_ms.to_string();
    let texts = [
        (
            "lambda-runtime-aws-request-id",
            Some(&invocation.request_id),
        ),
        ("lambda-runtime-deadline-ms", Some(&deadline_ms)),
        ("lambda-runtime-invoked-function-arn", Some(&invocation.arn)),
        ("lambda-runtime-trace-id", invocation.trace.as_ref()),
        (
            "lambda-runtime-client-context",
            invocation.client_context.as_ref(),
        ),
    ];
    for (name, text) in texts {
        // What cannot be a header's value is left out; the API lets no such text in.
        if let Some(value) = text.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}

fn not_its_own() -> Response<Full<Bytes>> {
    status_with(
        StatusCode::BAD_REQUEST,
        r#"{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}"#,
    )
}

fn accepted() -> Response<Full<Bytes>> {
    status_with(StatusCode::ACCEPTED, r#"{"status":"OK"}"#)
}

fn too_large() -> Response<Full<Bytes>> {
    status_with(
        StatusCode::PAYLOAD_TOO_LARGE,
        r#"{"errorMessage":"Exceeded maximum allowed payload size (6291556 bytes).","errorType":"RequestEntityTooLarge"}"#,
    )
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    status_with(status, "")
}

fn status_with(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    if !body.is_empty() {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// What only a hang exceeds.
    const LIMIT: Duration = Duration::from_secs(20);

    async fn ask(conversation: &Arc<Conversation>) -> DuplexStream {
        let (mut next, theirs) = duplex(BUFFER);
        tokio::spawn(Arc::clone(conversation).serve_one(theirs));
        let request = b"GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: a\r\n\r\n";
        next.write_all(request).await.unwrap();
        assert_eq!(conversation.initialised().await, Initialised::Ready);
        next
    }

    fn invocation() -> Invocation {
        Invocation {
            request_id: "id".into(),
            payload: "{}".into(),
            arn: "arn".into(),
            client_context: None,
            trace: None,
        }
    }

    /// A client that ends its direction with its request has said all of it.
    #[tokio::test]
    async fn an_answer_counts_however_its_client_ends_it() {
        let post = "POST /2018-06-01/runtime/invocation/id/response HTTP/1.1\r\nhost: a\r\n\
                    connection: close\r\n";
        let streamed = "lambda-runtime-function-response-mode: streaming\r\n\
                        transfer-encoding: chunked\r\n\r\n0\r\n\r\n";
        for rest in ["content-length: 1\r\n\r\n1", streamed] {
            let conversation = Conversation::new(true);
            let _next = ask(&conversation).await;
            let given = conversation.give(&invocation(), LIMIT).await;
            // All of it is there, with its end, before anybody looks at it.
            let (mut ours, theirs) = duplex(BUFFER);
            ours.write_all(format!("{post}{rest}").as_bytes())
                .await
                .unwrap();
            ours.shutdown().await.unwrap();
            tokio::spawn(Arc::clone(&conversation).serve_one(theirs));
            let answer = tokio::time::timeout(LIMIT, given).await.unwrap();
            match answer.unwrap() {
                Answer::Response { body, .. } => assert_eq!(body, "1"),
                Answer::Streamed(_) => assert_eq!(rest, streamed),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A runtime whose connection is gone is not given an event before it asks again.
    #[tokio::test]
    async fn nobody_who_is_gone_gets_an_event() {
        let conversation = Conversation::new(true);
        drop(ask(&conversation).await);
        let event = invocation();
        let giving = conversation.give(&event, LIMIT);
        tokio::pin!(giving);
        loop {
            let is_gone = matches!(&*conversation.lock(), State::Waiting(next) if next.is_closed());
            if is_gone {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(giving.as_mut().poll(&mut context).is_pending());
        let mut next = ask(&conversation).await;
        let _given = giving.await;
        let mut told = [0; 12];
        next.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"HTTP/1.1 200");
    }
}
