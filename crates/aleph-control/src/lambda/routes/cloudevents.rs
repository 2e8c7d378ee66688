//! CloudEvents, for later: `POST /cloudevents/NAME[:QUALIFIER]`.
//!
//! What is answered with 202 is in the queue, as an invocation of the type `Event` is, and whoever
//! may do that may do this. The function gets the event in the JSON format.
//!
//! The id of the request follows from function, `source` and `id`. So an event that is sent again
//! while the first one waits or is under way is taken once; one that is sent again afterwards runs
//! again, with the same request id: at least once.
//!
//! Senders that ask first whether they may send (the handshake of
//! <https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection>)
//! hear that they may, as often as they like, where they may.

use super::{On, Reply, Route};
use crate::lambda::cloudevents::{CloudEvent, Sent, Wrong, read};
use crate::lambda::error::{Kind, LambdaError};
use crate::lambda::trace::Trace;
use crate::lambda::uuid;
use aleph_executor::functions::Invocation;
use axum::Json;
use axum::body::Bytes;
use axum::http::header::ALLOW;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::IntoResponse;
use axum::routing::post;
use serde_json::json;
use sha2::{Digest, Sha256};

pub(super) fn routes() -> Vec<Route> {
    vec![("/cloudevents/{name}", post(take).options(handshake))]
}

impl From<Wrong> for LambdaError {
    fn from(wrong: Wrong) -> Self {
        let kind = match wrong {
            Wrong::Format(_) => Kind::UnsupportedMediaType,
            Wrong::Event(_) => Kind::InvalidRequestContent,
            Wrong::TooLong(_) => Kind::RequestTooLarge,
        };
        Self::new(kind, wrong.to_string())
    }
}

/// The id of the request that an event makes: that of the same event is the same.
fn request_id(arn: &str, event: &CloudEvent) -> String {
    let mut hash = Sha256::new();
    for part in [arn, &event.source, &event.id] {
        // With its length, so that no two events run into each other.
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        hash.update(length.to_be_bytes());
        hash.update(part.as_bytes());
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid(bytes, 8)
}

async fn take(on: On, headers: HeaderMap, body: Bytes) -> Reply {
    let function = on.function()?;
    let version = function.resolve(on.qualifier(), || 0.0);
    let version = version.ok_or_else(|| LambdaError::no_function(&on.arn()))?;
    let traced = version.is_traced();
    let (events, batch) = match read(&headers, &body)? {
        Sent::One(event) => (vec![event], false),
        Sent::Batch(events) => (events, true),
    };
    drop(body);
    let arn = on.arn();
    let invocations = events.into_iter().map(|event| {
        let own = event.traceparent.as_deref().and_then(Trace::of_traceparent);
        let trace = own.unwrap_or(on.ask.trace).decided(traced);
        Invocation {
            request_id: request_id(&arn, &event),
            payload: event.json,
            arn: arn.clone(),
            client_context: None,
            trace: Some(trace.to_string()),
        }
    });
    let invocations: Vec<_> = invocations.collect();
    let ids: Vec<_> = invocations.iter().map(|i| i.request_id.clone()).collect();
    let qualifier = on.qualifier().map(str::to_owned);
    let (functions, ask) = (on.functions.clone(), on.ask.clone());
    let work = async move {
        let all = functions.enqueue_all(&function, qualifier, invocations);
        let taken = all.await;
        drop(ask);
        taken
    };
    on.functions.settle(work).await?;
    Ok(match ids.as_slice() {
        [id] if !batch => {
            (StatusCode::ACCEPTED, [("x-amzn-requestid", id.as_str())]).into_response()
        }
        ids => (StatusCode::ACCEPTED, Json(json!({ "RequestIds": ids }))).into_response(),
    })
}

async fn handshake(on: On, headers: HeaderMap) -> Reply {
    on.function()?;
    let mut answer = StatusCode::OK.into_response();
    if let Some(origin) = headers.get("webhook-request-origin") {
        let allowed = answer.headers_mut();
        allowed.insert("webhook-allowed-origin", origin.clone());
        allowed.insert("webhook-allowed-rate", HeaderValue::from_static("*"));
        allowed.insert(ALLOW, HeaderValue::from_static("OPTIONS, POST"));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_event_makes_the_same_request() {
        let event = |source: &str, id: &str| CloudEvent {
            id: id.into(),
            source: source.into(),
            traceparent: None,
            json: Bytes::new(),
        };
        let id = request_id("f", &event("/a", "1"));
        assert_eq!(id, request_id("f", &event("/a", "1")));
        assert_eq!((id.len(), &id[14..15]), (36, "8"));
        for (arn, source, id_) in [("f", "/a1", ""), ("f", "/a", "2"), ("f:1", "/a", "1")] {
            assert_ne!(
                id,
                request_id(arn, &event(source, id_)),
                "{arn} {source} {id_}"
            );
        }
    }
}
