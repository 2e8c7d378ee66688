//! Invocations: waited for, for later, checked only, and streamed.

use super::{On, Reply, Route};
use crate::lambda::Functions;
use crate::lambda::error::{Kind, LambdaError};
use crate::lambda::event_stream::{CONTENT_TYPE as EVENT_STREAM, PIECE, frame};
use crate::lambda::function::Function;
use crate::lambda::invocation::{Answer, MOST_ASYNCHRONOUS};
use crate::lambda::streaming::Streamed;
use aleph_executor::functions::{Completed, Invocation, ResponseStream, Temperature, Timings};
use aleph_executor::hypervisor::BoxFuture;
use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::BytesMut;
use serde::de::IgnoredAny;
use serde_json::json;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// What a client says of itself, as JSON in base64, is at most so long.
const MOST_CONTEXT: usize = 3583;
/// The name under which emulators of one function know it.
const EMULATED: &str = "function";

pub(super) fn routes() -> Vec<Route> {
    vec![
        ("/2015-03-31/functions/{name}/invocations", post(invoke)),
        ("/2014-11-13/functions/{name}/invoke-async", post(enqueue)),
        (
            "/2021-11-15/functions/{name}/response-streaming-invocations",
            post(stream),
        ),
    ]
}

/// An invocation as it was asked for.
struct Wanted {
    function: Arc<Function>,
    qualifier: Option<String>,
    invocation: Invocation,
    /// Whether the end of its log is wanted.
    tail: bool,
}

fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn wanted(on: &On, headers: &HeaderMap, body: Bytes) -> Result<Wanted, LambdaError> {
    let function = match on.function() {
        Err(error) if on.target.name == EMULATED => {
            // Where there is one function alone, it is the one that is meant.
            let (all, more) = on.functions.registry.list(&on.ask.account, None, 1);
            let only = all.into_iter().next().filter(|_| !more);
            only.ok_or(error)?
        }
        found => found?,
    };
    let version = function.resolve(on.qualifier(), || 0.0);
    let traced = match version {
        Some(version) => version.is_traced(),
        None => return Err(LambdaError::no_function(&on.arn())),
    };
    let payload = match body.is_empty() {
        true => Bytes::from_static(b"{}"),
        false => body,
    };
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(&payload) {
        let message = format!("Could not parse request body into json: {error}");
        return Err(LambdaError::new(Kind::InvalidRequestContent, message));
    }
    let client_context = header(headers, "x-amz-client-context")
        .map(context)
        .transpose()?;
    let identity = &on.functions.identity;
    Ok(Wanted {
        invocation: Invocation {
            request_id: on.ask.request.clone(),
            payload,
            arn: identity.arn(&on.ask.account, &function.name, on.qualifier()),
            client_context,
            trace: Some(on.ask.trace.decided(traced).to_string()),
        },
        qualifier: on.qualifier().map(str::to_owned),
        tail: header(headers, "x-amz-log-type").is_some_and(|kind| kind == "Tail"),
        function,
    })
}

/// What a client says of itself, as the header's value that runtimes get: JSON on one line of ASCII.
fn context(text: &str) -> Result<String, LambdaError> {
    let wrong = || {
        LambdaError::new(
            Kind::InvalidRequestContent,
            "Client context must be a valid Base64-encoded JSON object.",
        )
    };
    if text.len() > MOST_CONTEXT {
        return Err(wrong());
    }
    let bytes = BASE64_STANDARD.decode(text).map_err(|_| wrong())?;
    let text = String::from_utf8(bytes).map_err(|_| wrong())?;
    serde_json::from_str::<HashMap<&str, IgnoredAny>>(&text).map_err(|_| wrong())?;
    Ok(ascii(&text))
}

/// The same JSON without what cannot be in a header. Control characters are nothing but space in
/// JSON, and what is not ASCII is part of a string.
fn ascii(json: &str) -> String {
    use std::fmt::Write;
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\0'..' ' => line.push(' '),
            ' '..='~' => line.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
    }
    line
}

impl Functions {
    /// Runs what was asked for. It goes on when the client goes away.
    async fn run(&self, on: &On, wanted: Wanted) -> Result<Answer, LambdaError> {
        let (functions, ask) = (self.clone(), on.ask.clone());
        let work = async move {
            let Wanted {
                function,
                qualifier,
                invocation,
                ..
            } = wanted;
            let done = functions.carry_out(&function, qualifier.as_deref(), invocation);
            let done = done.await.map_err(LambdaError::from);
            // The payload's memory is held as long as the payload is.
            drop(ask);
            done
        };
        self.settle(work).await
    }
}

async fn invoke(on: On, headers: HeaderMap, body: Bytes) -> Reply {
    match header(&headers, "x-amz-invocation-type") {
        None | Some("RequestResponse") => {}
        Some("Event") => return later(&on, &headers, body).await,
        Some("DryRun") => {
            wanted(&on, &headers, body)?;
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        Some(other) => {
            return Err(LambdaError::invalid(format!(
                "1 validation error detected: Value '{other}' at 'invocationType' failed to \
                 satisfy constraint: Member must satisfy enum value set: [Event, RequestResponse, \
                 DryRun]"
            )));
        }
    }
    let wanted = wanted(&on, &headers, body)?;
    let tail = wanted.tail;
    let Answer { version, completed } = on.functions.run(&on, wanted).await?;
    let mut response = Response::new(Body::from(completed.payload.clone()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    describe(headers, &version, completed.temperature, completed.timings);
    if let Some(error) = completed.error {
        let error = HeaderValue::from_static(error.as_str());
        headers.insert("x-amz-function-error", error);
    }
    if tail {
        let log = BASE64_STANDARD.encode(&completed.log_tail);
        if let Ok(log) = HeaderValue::from_str(&log) {
            headers.insert("x-amz-log-result", log);
        }
    }
    Ok(response)
}

/// Says what ran, in which state its place was, and where its time went.
fn describe(headers: &mut HeaderMap, version: &str, temperature: Temperature, timings: Timings) {
    let temperature = match temperature {
        Temperature::Hot => "hot",
        Temperature::Warm => "warm",
        Temperature::Cold => "cold",
    };
    let Timings {
        queue,
        resume,
        function,
    } = timings;
    let ms = |span: Duration| span.as_secs_f64() * 1000.0;
    let timings = format!(
        "queue={:.3},resume={:.3},function={:.3}",
        ms(queue),
        ms(resume),
        ms(function)
    );
    for (name, value) in [
        ("x-amz-executed-version", version),
        ("x-aleph-temperature", temperature),
        ("x-aleph-timings", timings.as_str()),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Takes an event for which nobody waits.
async fn later(on: &On, headers: &HeaderMap, body: Bytes) -> Reply {
    if body.len() > MOST_ASYNCHRONOUS {
        let message = format!(
            "{} byte payload is too large for the Event invocation type (limit \
             {MOST_ASYNCHRONOUS} bytes)",
            body.len()
        );
        return Err(LambdaError::new(Kind::RequestTooLarge, message));
    }
    let Wanted {
        function,
        qualifier,
        invocation,
        ..
    } = wanted(on, headers, body)?;
    let functions = on.functions.clone();
    let work = async move { functions.enqueue(&function, qualifier, invocation).await };
    on.functions.settle(work).await?;
    Ok(StatusCode::ACCEPTED.into_response())
}

async fn enqueue(on: On, headers: HeaderMap, body: Bytes) -> Reply {
    later(&on, &headers, body).await
}

async fn stream(on: On, headers: HeaderMap, body: Bytes) -> Reply {
    let wanted = wanted(&on, &headers, body)?;
    if header(&headers, "x-amz-invocation-type") == Some("DryRun") {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let Wanted {
        function,
        qualifier,
        invocation,
        tail,
    } = wanted;
    // The payload's memory is held as long as the payload is.
    let streamed = on
        .functions
        .stream_out(function, qualifier, invocation, on.ask.clone());
    let Streamed { head, body, end } = streamed.await?;
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(EVENT_STREAM));
    let frames = match head {
        Some(head) => {
            describe(headers, &head.version, head.temperature, head.timings);
            Frames::Pieces { body, end, tail }
        }
        None => {
            let Answer { version, completed } = end.await?;
            describe(headers, &version, completed.temperature, completed.timings);
            Frames::Last(complete(Ok(&completed), tail))
        }
    };
    *response.body_mut() = Body::from_stream(futures_util::stream::unfold(frames, Frames::next));
    Ok(response)
}

/// What is still to come of a streamed response.
enum Frames {
    Pieces {
        body: ResponseStream,
        end: BoxFuture<'static, Result<Answer, LambdaError>>,
        tail: bool,
    },
    Last(Bytes),
    Nothing,
}

impl Frames {
    async fn next(self) -> Option<(Result<Bytes, Infallible>, Self)> {
        let (frame, rest) = match self {
            Self::Pieces {
                mut body,
                end,
                tail,
            } => match body.next().await {
                Some(piece) => (chunks(&piece), Self::Pieces { body, end, tail }),
                None => {
                    let answer = end.await;
                    let completed = answer.as_ref().map(|answer| &answer.completed);
                    (complete(completed, tail), Self::Nothing)
                }
            },
            Self::Last(frame) => (frame, Self::Nothing),
            Self::Nothing => return None,
        };
        Some((Ok(frame), rest))
    }
}

/// A piece of a response as frames.
fn chunks(piece: &Bytes) -> Bytes {
    let mut frames = BytesMut::new();
    for chunk in piece.chunks(PIECE) {
        frames.extend_from_slice(&frame("PayloadChunk", "application/octet-stream", chunk));
    }
    frames.freeze()
}

/// The last frame: how it ended.
fn complete(answer: Result<&Completed, &LambdaError>, tail: bool) -> Bytes {
    let mut complete = json!({});
    match answer {
        Ok(completed) => {
            if tail {
                complete["LogResult"] = BASE64_STANDARD.encode(&completed.log_tail).into();
            }
            if let Some(error) = completed.error {
                let code = completed.error_type.as_deref().unwrap_or(error.as_str());
                complete["ErrorCode"] = code.into();
                complete["ErrorDetails"] = String::from_utf8_lossy(&completed.payload).into();
            }
        }
        Err(error) => {
            complete["ErrorCode"] = error.name().into();
            complete["ErrorDetails"] = error.to_string().into();
        }
    }
    frame(
        "InvokeComplete",
        "application/json",
        complete.to_string().as_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_says_of_itself_fits_a_header() {
        let said = "{\n\t\"custom\": {\"who\": \"Zo\u{eb} \u{1f600}\u{7f}\", \"n\": 1.10}\r\n}";
        let line = context(&BASE64_STANDARD.encode(said)).ok();
        let line = line.filter(|line| HeaderValue::from_str(line).is_ok());
        let want = r#"{  "custom": {"who": "Zo\u00eb \ud83d\ude00\u007f", "n": 1.10}  }"#;
        assert_eq!(line.as_deref(), Some(want));
        let same = serde_json::from_str::<serde_json::Value>(want).ok();
        assert_eq!(same, serde_json::from_str(said).ok());
        for wrong in ["[1]", "{", "", "\"a\""] {
            assert!(context(&BASE64_STANDARD.encode(wrong)).is_err(), "{wrong}");
        }
        assert!(context("{}").is_err());
    }
}
