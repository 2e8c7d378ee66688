//! What a function gets of messages.
//!
//! ```json
//! { "Records": [ {
//!     "eventSource": "nats",
//!     "subject": "orders.new",
//!     "reply": "_INBOX.x",
//!     "headers": { "Name": ["value"] },
//!     "data": "aGVsbG8=",
//!     "timestamp": 1795867200000
//! }, {
//!     "eventSource": "jetstream",
//!     "messageId": "42",
//!     "subject": "orders.new",
//!     "headers": {},
//!     "data": "aGVsbG8=",
//!     "timestamp": 1795867200000,
//!     "stream": "ORDERS", "sequence": 42, "deliveries": 1
//! } ] }
//! ```
//! `data` is in base64. `timestamp` is milliseconds since 1970: when a stream got the message, and
//! of a message without a stream, when the node did. `messageId` is what `batchItemFailures`
//! call a message; `deliveries` counts how often it was given.

use async_nats::{HeaderMap, HeaderValue, Message};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

/// How many bytes a message has in an event, nearly: it is never more.
pub(super) fn size_of(message: &Message) -> usize {
    let headers = message.headers.iter().flat_map(HeaderMap::iter);
    let headers = headers.map(|(name, values)| {
        let values: usize = values.iter().map(|value| value.as_str().len() + 3).sum();
        // A character may become six.
        6 * (AsRef::<str>::as_ref(name).len() + values) + 6
    });
    let reply = message.reply.as_ref().map_or(0, |reply| reply.len());
    message.payload.len().div_ceil(3) * 4
        + headers.sum::<usize>()
        + 6 * (message.subject.len() + reply)
        + 512
}

/// What all records have.
fn record(source: &str, message: &Message, time: i64) -> Value {
    let mut headers = Map::new();
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let values = values.iter().map(HeaderValue::as_str);
        headers.insert(name.to_string(), values.collect());
    }
    json!({
        "eventSource": source,
        "subject": message.subject.as_str(),
        "headers": headers,
        "data": BASE64_STANDARD.encode(&message.payload),
        "timestamp": time,
    })
}

/// A message of core NATS that came just now.
pub(super) fn of_subject(message: &Message, now: i64) -> Value {
    let mut record = record("nats", message, now);
    if let Some(reply) = &message.reply {
        record["reply"] = reply.as_str().into();
    }
    record
}

/// Where a message is in its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) stream: String,
    pub(super) sequence: u64,
    /// Milliseconds since 1970.
    pub(super) time: i64,
    /// How often it was given, this time included.
    pub(super) deliveries: i64,
}

/// A message of a stream.
pub(super) fn of_stream(message: &Message, at: &Position) -> Value {
    let mut record = record("jetstream", message, at.time);
    record["messageId"] = at.sequence.to_string().into();
    record["stream"] = at.stream.as_str().into();
    record["sequence"] = at.sequence.into();
    record["deliveries"] = at.deliveries.into();
    record
}

/// An event of records.
pub(super) fn event(records: &[Value]) -> Bytes {
    Bytes::from(json!({ "Records": records }).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_says_all_of_its_messages() {
        let mut headers = HeaderMap::new();
        headers.append("A", "1");
        headers.append("A", "\u{1}2");
        let message = Message {
            subject: "orders.new".into(),
            reply: Some("_INBOX.x".into()),
            payload: Bytes::from_static(b"hello"),
            headers: Some(headers),
            status: None,
            description: None,
            length: 0,
        };
        let record = of_subject(&message, 5);
        let want = json!({
            "eventSource": "nats", "subject": "orders.new", "reply": "_INBOX.x",
            "headers": { "A": ["1", "\u{1}2"] }, "data": "aGVsbG8=", "timestamp": 5,
        });
        assert_eq!(record, want);
        let at = Position {
            stream: "ORDERS".into(),
            sequence: 42,
            time: 7,
            deliveries: 2,
        };
        let record = of_stream(&message, &at);
        assert_eq!(
            (&record["messageId"], &record["deliveries"]),
            (&json!("42"), &json!(2))
        );
        assert_eq!(record["reply"], Value::Null, "it is the server's");
        let event = event(&[record]);
        assert!(event.len() <= size_of(&message));
    }
}
