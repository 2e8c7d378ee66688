//! CloudEvents 1.0 as they come over HTTP
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md>),
//! and as functions get them: in the JSON format, whatever they came in.
//!
//! | mode | content type | event |
//! | --- | --- | --- |
//! | binary | that of the data | headers `ce-…`, and the body is the data |
//! | structured | `application/cloudevents+json` | the body |
//! | batch | `application/cloudevents-batch+json` | each item of the body |
//!
//! Data of a JSON type is `data` as it was sent, digit for digit; text is a string of it, and
//! anything else is `data_base64`. An event that came in JSON is given on as it is.
//!
//! The crate `cloudevents-sdk` (0.9) is not used: it does not decode the values of headers, takes
//! batches as a client alone, and writes data anew, so that numbers change; and it brings `chrono`,
//! `snafu`, `url`, `uuid` and `hostname` for what is a few checks here.
//!
//! # Failure cases
//! What is no event is a [`Wrong`] that says what is wrong with it; in a batch with which item. A
//! batch with one is taken as little as that one.

use super::invocation::MOST_ASYNCHRONOUS;
use super::trace::TRACEPARENT;
use super::url::is_text;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use percent_encoding::percent_decode;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";
/// How many events a batch may have.
const MOST_EVENTS: usize = 10_000;
/// What every event has.
const REQUIRED: [&str; 4] = ["id", "source", "specversion", "type"];

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CloudEvent {
    /// With `source` it says which event it is.
    pub(crate) id: String,
    pub(crate) source: String,
    /// Of the extension for distributed tracing.
    pub(crate) traceparent: Option<String>,
    /// The event in the JSON format.
    pub(crate) json: Bytes,
}

/// What was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sent {
    One(CloudEvent),
    Batch(Vec<CloudEvent>),
}

/// Why a request is no event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Wrong {
    /// A format that nobody here reads.
    #[error("{0} is no format of events here: send {STRUCTURED}, {BATCH}, or headers ce-…")]
    Format(String),
    /// What was sent is no event.
    #[error("{0}")]
    Event(String),
    /// It is one that is too long.
    #[error("{0}")]
    TooLong(String),
}

fn wrong<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Event(what.into()))
}

/// Reads a request.
pub(crate) fn read(headers: &HeaderMap, body: &Bytes) -> Result<Sent, Wrong> {
    let full = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let full = String::from_utf8_lossy(full.unwrap_or_default()).into_owned();
    let kind = full.split(';').next().unwrap_or_default().trim();
    match kind.to_ascii_lowercase().as_str() {
        STRUCTURED => structured(body.clone()).map(Sent::One),
        BATCH => batch(body).map(Sent::Batch),
        other if other.starts_with("application/cloudevents") => {
            Err(Wrong::Format(other.to_owned()))
        }
        _ => binary(headers, &full, body).map(Sent::One),
    }
}

fn batch(body: &Bytes) -> Result<Vec<CloudEvent>, Wrong> {
    let items: Vec<&RawValue> = serde_json::from_slice(body)
        .or_else(|error| wrong(format!("The batch is no array of JSON: {error}")))?;
    if items.len() > MOST_EVENTS {
        return Err(Wrong::TooLong(format!(
            "A batch has at most {MOST_EVENTS} events, and not {}",
            items.len()
        )));
    }
    let items = items.into_iter().enumerate();
    let events = items.map(|(at, item)| {
        let event = structured(body.slice_ref(item.get().as_bytes()));
        event.map_err(|why| match why {
            Wrong::TooLong(why) => Wrong::TooLong(format!("Event {at} of the batch: {why}")),
            why => Wrong::Event(format!("Event {at} of the batch: {why}")),
        })
    });
    events.collect()
}

/// Reads an event in the JSON format.
fn structured(json: Bytes) -> Result<CloudEvent, Wrong> {
    let members: BTreeMap<String, &RawValue> = serde_json::from_slice(&json)
        .or_else(|error| wrong(format!("The event is no object of JSON: {error}")))?;
    let mut attributes = BTreeMap::new();
    for (name, raw) in &members {
        match name.as_str() {
            "data" => {}
            "data_base64" => {
                let text = serde_json::from_str::<String>(raw.get()).ok();
                let bytes = text.filter(|text| BASE64_STANDARD.decode(text).is_ok());
                if bytes.is_none() {
                    return wrong("data_base64 is no text in base64");
                }
            }
            _ => {
                if let Some(value) = attribute(name, raw)? {
                    attributes.insert(name.clone(), value);
                }
            }
        }
    }
    if members.contains_key("data") && members.contains_key("data_base64") {
        return wrong("An event has data or data_base64, not both");
    }
    event(&attributes, json)
}

/// The value of an attribute in JSON; `None` where it is null, which means that it is not there.
fn attribute(name: &str, raw: &RawValue) -> Result<Option<String>, Wrong> {
    let value = serde_json::from_str(raw.get());
    let text = match value.unwrap_or(Value::Null) {
        Value::Null => return Ok(None),
        Value::String(text) => text,
        Value::Bool(yes) if !is_text_attribute(name) => yes.to_string(),
        Value::Number(number) if number.is_i64() && !is_text_attribute(name) => number.to_string(),
        _ => return wrong(format!("{name:?} has a value that no attribute has")),
    };
    Ok(Some(text))
}

/// Whether the value of an attribute is always a text.
fn is_text_attribute(name: &str) -> bool {
    let optional = ["datacontenttype", "dataschema", "subject", "time"];
    REQUIRED.contains(&name) || optional.contains(&name)
}

/// Reads headers and data.
fn binary(headers: &HeaderMap, kind: &str, body: &Bytes) -> Result<CloudEvent, Wrong> {
    let mut attributes = BTreeMap::new();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix("ce-") else {
            continue;
        };
        if matches!(name, "datacontenttype" | "data") {
            return wrong(format!("{header} is said by Content-Type and by the body"));
        }
        let Some(value) = decoded(value.as_bytes()) else {
            return wrong(format!("{header} is not encoded as headers of events are"));
        };
        if attributes.insert(name.to_owned(), value).is_some() {
            return wrong(format!("{header} comes twice"));
        }
    }
    if attributes.is_empty() {
        return wrong(format!(
            "This is no event: there are no headers ce-…, and the type is not {STRUCTURED}"
        ));
    }
    if !kind.is_empty() {
        attributes.insert("datacontenttype".into(), kind.into());
    }
    let data = Data::of(kind, body)?;
    let written = Written {
        attributes: &attributes,
        data,
    };
    let json = serde_json::to_vec(&written)
        .or_else(|error| wrong(format!("The event cannot be written as JSON: {error}")))?;
    event(&attributes, json.into())
}

/// The value of a header: quotes are undone, then percents.
fn decoded(value: &[u8]) -> Option<String> {
    let mut plain = Vec::with_capacity(value.len());
    match value.strip_prefix(b"\"") {
        None => plain.extend_from_slice(value),
        Some(rest) => {
            let mut bytes = rest.strip_suffix(b"\"")?.iter();
            while let Some(byte) = bytes.next() {
                match byte {
                    b'\\' => plain.push(*bytes.next()?),
                    b'"' => return None,
                    byte => plain.push(*byte),
                }
            }
        }
    }
    let text = percent_decode(&plain).decode_utf8().ok()?;
    Some(text.into_owned())
}

/// Data, as it is in JSON.
enum Data<'b> {
    None,
    Json(&'b RawValue),
    Text(&'b str),
    Bytes(&'b [u8]),
}

impl<'b> Data<'b> {
    fn of(kind: &str, body: &'b [u8]) -> Result<Self, Wrong> {
        if body.is_empty() {
            return Ok(Self::None);
        }
        if is_json(kind) {
            return match serde_json::from_slice(body) {
                Ok(raw) => Ok(Self::Json(raw)),
                Err(error) => wrong(format!("The data is no JSON, as {kind} says: {error}")),
            };
        }
        Ok(match std::str::from_utf8(body) {
            Ok(text) if is_text(kind) => Self::Text(text),
            _ => Self::Bytes(body),
        })
    }
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    kind.ends_with("/json") || kind.ends_with("+json")
}

/// An event that came in headers, in the JSON format.
struct Written<'e> {
    attributes: &'e BTreeMap<String, String>,
    data: Data<'e>,
}

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.attributes {
            map.serialize_entry(name, value)?;
        }
        match &self.data {
            Data::None => {}
            Data::Json(raw) => map.serialize_entry("data", raw)?,
            Data::Text(text) => map.serialize_entry("data", text)?,
            Data::Bytes(bytes) => {
                map.serialize_entry("data_base64", &BASE64_STANDARD.encode(bytes))?;
            }
        }
        map.end()
    }
}

/// The event with these attributes, where they are as they have to be.
fn event(attributes: &BTreeMap<String, String>, json: Bytes) -> Result<CloudEvent, Wrong> {
    for name in REQUIRED {
        if attributes.get(name).is_none_or(String::is_empty) {
            return wrong(format!("{name:?} is missing"));
        }
    }
    for (name, value) in attributes {
        let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if name.is_empty() || !name.bytes().all(good) {
            return wrong(format!(
                "{name:?} is no name of an attribute: these are of lower-case letters and digits"
            ));
        }
        if value.chars().any(char::is_control) {
            return wrong(format!("{name:?} has control characters"));
        }
    }
    let version = &attributes["specversion"];
    if version != "1.0" {
        return wrong(format!(
            "specversion is {version:?}, and this node knows 1.0"
        ));
    }
    let time = attributes.get("time").map(|time| time.parse());
    if time.is_some_and(|time: Result<aleph_types::Timestamp, _>| time.is_err()) {
        return wrong("time is none as RFC 3339 has it");
    }
    if json.len() > MOST_ASYNCHRONOUS {
        return Err(Wrong::TooLong(format!(
            "{} bytes of JSON are too long for an event (limit {MOST_ASYNCHRONOUS} bytes)",
            json.len()
        )));
    }
    Ok(CloudEvent {
        id: attributes["id"].clone(),
        source: attributes["source"].clone(),
        traceparent: attributes.get(TRACEPARENT).cloned(),
        json,
    })
}

#[cfg(test)]
mod tests;
