//! A function that is an HTTP server on a TCP port of its guest, instead of a client of the runtime
//! API.
//!
//! ```text
//! Starting ── the port accepts a connection ─▶ Waiting ── a request ─▶ Busy ── its response ─▶ Waiting
//! ```
//! Each event has a connection of its own, from the agent to the port.
//!
//! # Failure cases
//! | what | then |
//! | --- | --- |
//! | nobody listens | the function never saw the event: another clone can have it |
//! | the connection ends before the response does | [`Answer::Broken`], or what was passed on of it |
//! | what comes is no HTTP | the same |
//! | a status from 400 on to what is no HTTP request | the function's error, with the body as its message |

use super::answer::{Answer, Connected, MAX_ANSWER, Streamed};
use super::conversation::BUFFER;
use super::environment::API_PORT;
use super::http_event::{self, EVENTS, Form};
use super::invocation::Invocation;
use super::response::HTTP_INTEGRATION;
use crate::guest::{Agent, AgentError, Connection};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// The port where nobody says otherwise.
pub(super) const PORT: u16 = 8080;

/// How often a port is looked at until somebody listens.
const LOOK: Duration = Duration::from_millis(50);

/// How long a server may take to notice that a connection was only a look.
const LEAVE: Duration = Duration::from_secs(2);

/// The longest message of a server's error, in bytes.
const MAX_ERROR: usize = 64 * 1024;

/// How a server is spoken with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Server {
    port: u16,
    /// Where events go that are no HTTP requests.
    events: String,
    about: About,
}

/// What servers are told of the function that they are, as the client of Rust has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct About {
    function_name: String,
    memory: u32,
    version: String,
    log_stream: String,
    log_group: String,
}

/// A server that listens for an event.
#[derive(Debug)]
pub(super) struct Asked(Connection);

impl Server {
    /// The server that a function with this environment may be; `None` where it cannot be one.
    pub(super) fn of(env: &BTreeMap<String, String>) -> Option<Self> {
        let of = |name: &str| env.get(name).cloned().unwrap_or_default();
        let port = env.get("AWS_LWA_PORT").or_else(|| env.get("PORT"))?;
        let port = port.parse().ok()?;
        let events = env.get("AWS_LWA_PASS_THROUGH_PATH");
        (port != 0 && port != API_PORT).then(|| Self {
            port,
            events: events.map_or(EVENTS, String::as_str).to_owned(),
            about: About {
                function_name: of("AWS_LAMBDA_FUNCTION_NAME"),
                memory: of("AWS_LAMBDA_FUNCTION_MEMORY_SIZE").parse().unwrap_or(0),
                version: of("AWS_LAMBDA_FUNCTION_VERSION"),
                log_stream: of("AWS_LAMBDA_LOG_STREAM_NAME"),
                log_group: of("AWS_LAMBDA_LOG_GROUP_NAME"),
            },
        })
    }

    /// Waits until it listens.
    pub(super) async fn listens(&self, agent: &Agent) -> Result<(), AgentError> {
        loop {
            match agent.connect(self.port).await {
                Ok(look) => {
                    // A server of one thread is done with it before its guest is written down.
                    let _ = timeout(LEAVE, leave(look)).await;
                    return Ok(());
                }
                Err(AgentError::Failed { .. }) => tokio::time::sleep(LOOK).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Connects to it, for one event.
    pub(super) async fn connect(&self, agent: &Agent) -> Result<Asked, AgentError> {
        Ok(Asked(agent.connect(self.port).await?))
    }

    /// Gives it an event, and returns what it answers; as it comes where the answer goes out piece
    /// by piece.
    pub(super) async fn ask(
        &self,
        Asked(connection): Asked,
        invocation: &Invocation,
        limit: Duration,
        is_streamed: bool,
    ) -> Answer {
        let host = format!("127.0.0.1:{}", self.port);
        let (form, mut request) = http_event::request(&invocation.payload, &host, &self.events);
        self.describe(request.headers_mut(), invocation, limit);
        let (response, connection) = match exchange(connection, request).await {
            Ok(exchanged) => exchanged,
            Err(error) => return Answer::Broken(whole(&error)),
        };
        let (head, body) = response.into_parts();
        match form {
            Form::Http => {
                let prelude = http_event::prelude(head.status, &head.headers);
                if is_streamed {
                    let begins = (HTTP_INTEGRATION.to_owned(), prelude.to_bytes());
                    return Answer::Streamed(Streamed::of_server(begins, body, connection));
                }
                match collect(body, MAX_ANSWER).await {
                    Ok(body) => {
                        let answer = http_event::answer(&prelude, &body);
                        if answer.len() > MAX_ANSWER {
                            return Answer::TooLarge;
                        }
                        Answer::Response {
                            content_type: super::response::JSON.to_owned(),
                            body: answer,
                        }
                    }
                    Err(failed) => failed,
                }
            }
            Form::Other if is_failure(head.status) => match collect(body, MAX_ERROR).await {
                Ok(body) => Answer::Error(http_event::failure(head.status, &body)),
                Err(Answer::TooLarge) => Answer::Error(http_event::failure(head.status, b"")),
                Err(failed) => failed,
            },
            Form::Other => {
                let kind = head.headers.get(CONTENT_TYPE);
                let kind = kind.and_then(|kind| kind.to_str().ok());
                let kind = kind.unwrap_or("application/octet-stream").to_owned();
                Answer::Streamed(Streamed::of_server((kind, Bytes::new()), body, connection))
            }
        }
    }

    /// Says which event it is, until when, and of which trace.
    fn describe(&self, headers: &mut HeaderMap, invocation: &Invocation, limit: Duration) {
        let deadline = SystemTime::now() + limit;
        let deadline = deadline.duration_since(SystemTime::UNIX_EPOCH);
        let deadline = deadline.unwrap_or_default().as_millis();
        let trace = invocation.trace.as_deref();
        let client_context = invocation.client_context.as_deref();
        let client_context = client_context
            .and_then(|context| serde_json::from_str::<serde_json::Value>(context).ok());
        let context = json!({
            "request_id": invocation.request_id,
            "deadline": u64::try_from(deadline).unwrap_or(u64::MAX),
            "invoked_function_arn": invocation.arn,
            "xray_trace_id": trace,
            "client_context": client_context,
            "identity": null,
            "env_config": self.about,
        });
        let name = trace.map(|trace| {
            if is_traceparent(trace) {
                "traceparent"
            } else {
                "x-amzn-trace-id"
            }
        });
        let told = [
            (Some("x-amzn-request-id"), invocation.request_id.clone()),
            (Some("x-amzn-lambda-deadline-ms"), deadline.to_string()),
            (Some("x-amzn-lambda-function-arn"), invocation.arn.clone()),
            (Some("x-amzn-lambda-context"), context.to_string()),
            (name, trace.unwrap_or_default().to_owned()),
        ];
        for (name, value) in told {
            // A client says none of these in the function's name.
            if let (Some(name), Ok(value)) = (name, HeaderValue::from_bytes(value.as_bytes())) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
    }
}

/// Whether a server did not do what an event asks that is no HTTP request. Nobody else reads its
/// status, and an event that waited is tried again.
fn is_failure(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// Whether a trace is named as the W3C has it: `00-<32 hex digits>-<16>-<2>`.
fn is_traceparent(trace: &str) -> bool {
    let lengths: Vec<usize> = trace.split('-').map(str::len).collect();
    let hex = |c: char| c == '-' || c.is_ascii_hexdigit();
    lengths.starts_with(&[2, 32, 16, 2]) && trace.chars().all(hex)
}

/// Has a server see that nothing comes.
async fn leave(mut look: Connection) {
    let _ = look.shutdown().await;
    let _ = (&mut look).take(4096).read_to_end(&mut Vec::new()).await;
}

/// Sends a request and waits until its response begins. The connection lives as long as what is
/// beside the response.
async fn exchange(
    connection: Connection,
    request: Request<Full<Bytes>>,
) -> Result<(Response<Incoming>, Connected), hyper::Error> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER);
    let (mut sender, connection) = builder.handshake(TokioIo::new(connection)).await?;
    // What breaks it is told to who reads the response.
    let connection = Connected(tokio::spawn(connection).abort_handle());
    let response = sender.send_request(request).await?;
    Ok((response, connection))
}

/// A whole body.
async fn collect(body: Incoming, most: usize) -> Result<Bytes, Answer> {
    match Limited::new(body, most).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Answer::TooLarge),
        Err(error) => Err(Answer::Broken(whole(error.as_ref()))),
    }
}

/// An error with what is behind it.
pub(super) fn whole(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let words: Vec<String> = chain.map(ToString::to_string).collect();
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(own).collect()
    }

    #[test]
    fn the_port_is_what_the_environment_says() {
        let port = |pairs: &[(&str, &str)]| Server::of(&env(pairs)).map(|server| server.port);
        assert_eq!(port(&[("PORT", "8080")]), Some(8080));
        assert_eq!(port(&[("PORT", "1"), ("AWS_LWA_PORT", "2")]), Some(2));
        for none in ["", "0", "x", "65536", "9001"] {
            assert_eq!(port(&[("PORT", none)]), None, "{none}");
        }
        assert_eq!(port(&[]), None);
    }

    #[test]
    fn what_is_not_done_is_a_failure() {
        let is = |status| is_failure(StatusCode::from_u16(status).unwrap());
        assert!([400, 404, 429, 500, 503].into_iter().all(is));
        assert!(![200, 204, 302].into_iter().any(is));
    }

    #[test]
    fn an_event_is_described_whatever_its_client_said() {
        let mut headers = HeaderMap::new();
        headers.insert("x-amzn-request-id", HeaderValue::from_static("forged"));
        headers.insert("traceparent", HeaderValue::from_static("the client's"));
        let mut invocation = Invocation {
            request_id: "id".into(),
            payload: Bytes::new(),
            arn: "arn".into(),
            client_context: Some(r#"{"a":1}"#.into()),
            trace: Some("Root=1-2-3".into()),
        };
        let server = Server::of(&env(&[("PORT", "1"), ("AWS_LAMBDA_FUNCTION_NAME", "f")]));
        let server = server.unwrap();
        server.describe(&mut headers, &invocation, Duration::from_secs(3));
        assert_eq!(headers["x-amzn-request-id"], "id");
        assert_eq!(headers["x-amzn-trace-id"], "Root=1-2-3");
        assert_eq!(headers["traceparent"], "the client's");
        let context = headers["x-amzn-lambda-context"].to_str().unwrap();
        let context: serde_json::Value = serde_json::from_str(context).unwrap();
        assert_eq!(context["request_id"], "id");
        assert_eq!(context["client_context"], json!({ "a": 1 }));
        assert_eq!(context["env_config"]["function_name"], "f");
        let deadline = headers["x-amzn-lambda-deadline-ms"].to_str().unwrap();
        assert_eq!(context["deadline"].to_string(), deadline);
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        invocation.trace = Some(parent.into());
        server.describe(&mut headers, &invocation, Duration::ZERO);
        assert_eq!(headers["traceparent"], parent);
    }
}
