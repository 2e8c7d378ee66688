//! What a function gives for a request to its URL, as an answer in HTTP
//! (<https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html#urls-response-payload>).
//!
//! An object with `statusCode` says what the answer is, and so does a prelude. Anything else is the
//! body of one, as JSON. What says `statusCode` and makes no sense is a fault of the function, as its errors are: 502.

use aleph_executor::functions::{Completed, HTTP_INTEGRATION, HttpPrelude};
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What of an answer's headers is not the function's to say, beside those of the connection.
const LEFT_OUT: [&str; 2] = ["keep-alive", "service-worker-allowed"];

/// The most headers of an answer: a map of them has its bounds, and the node adds its own.
const MOST_HEADERS: usize = 4096;

/// Whether an object says what the answer is.
#[derive(Deserialize)]
struct Probe {
    #[serde(rename = "statusCode")]
    status: Option<IgnoredAny>,
}

/// An answer as functions write it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Said<'a> {
    status_code: Value,
    headers: Option<BTreeMap<String, Value>>,
    cookies: Option<Vec<String>>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    is_base64_encoded: Option<bool>,
}

/// The answer to a request.
pub(super) fn answer(completed: &Completed) -> Response<Bytes> {
    if completed.error.is_some() {
        return failed();
    }
    let payload = &completed.payload;
    if completed.content_type == HTTP_INTEGRATION {
        let prelude = HttpPrelude::parse(payload).ok();
        let whole = prelude.and_then(|(prelude, body)| {
            let head = Head::of(&prelude)?;
            Some(head.with(body))
        });
        return whole.unwrap_or_else(failed);
    }
    if !says(payload) {
        let mut response = Response::new(payload.clone());
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        return response;
    }
    let said = serde_json::from_slice::<Said<'_>>(payload).ok();
    said.and_then(|said| {
        let head = Head {
            status: status(&said.status_code)?,
            headers: headers(said.headers, said.cookies)?,
        };
        let encoded = said.is_base64_encoded.unwrap_or(false);
        Some(head.with(body(said.body, encoded)?))
    })
    .unwrap_or_else(failed)
}

/// Whether this is an object that says what the answer is.
fn says(payload: &[u8]) -> bool {
    // An array could be read as an object whose keys are left out.
    payload.trim_ascii_start().starts_with(b"{")
        && serde_json::from_slice::<Probe>(payload).is_ok_and(|probe| probe.status.is_some())
}

/// What a client hears of a function that failed: no more than that.
pub(super) fn failed() -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(b"Internal Server Error"));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// What comes before a body.
pub(super) struct Head {
    status: StatusCode,
    headers: HeaderMap,
}

impl Head {
    /// What a prelude says.
    pub(super) fn of(prelude: &HttpPrelude) -> Option<Self> {
        let mut headers = HeaderMap::new();
        for (name, value) in &prelude.headers {
            add(&mut headers, name, value)?;
        }
        for (name, values) in &prelude.multi_value_headers {
            for value in values {
                add(&mut headers, name, value)?;
            }
        }
        for cookie in &prelude.cookies {
            add(&mut headers, "set-cookie", cookie)?;
        }
        let bytes = HeaderValue::from_static("application/octet-stream");
        headers.entry(CONTENT_TYPE).or_insert(bytes);
        Some(Self {
            status: status(&prelude.status_code.into())?,
            headers,
        })
    }

    /// One that says no more than a type.
    pub(super) fn of_type(kind: &str) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, kind.parse().unwrap_or(JSON));
        Self {
            status: StatusCode::OK,
            headers,
        }
    }

    /// The answer with this body, where its status may have one.
    pub(super) fn with<B: Default>(self, body: B) -> Response<B> {
        let none = matches!(
            self.status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        );
        let mut response = Response::new(if none { B::default() } else { body });
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if !response.headers().contains_key(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, JSON);
        }
        response
    }
}

/// A status that ends a request: a number, or a text of one.
fn status(value: &Value) -> Option<StatusCode> {
    let number = match value {
        Value::Number(number) => number.as_u64().and_then(|n| u16::try_from(n).ok())?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    let status = StatusCode::from_u16(number).ok()?;
    (200..=599).contains(&number).then_some(status)
}

/// Adds a header, unless it is one of the connection: those are the server's. No function has a
/// script of its pages serve paths that are not below it: others' are beside it, and the API's.
fn add(headers: &mut HeaderMap, name: &str, value: &str) -> Option<()> {
    let ours = [
        CONNECTION,
        CONTENT_LENGTH,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    let name: HeaderName = name.parse().ok()?;
    let ours = ours.contains(&name) || LEFT_OUT.contains(&name.as_str());
    if !ours {
        append(headers, name, value)?;
    }
    Some(())
}

/// Adds what a function says; not more than an answer has.
fn append(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Option<()> {
    let room = headers.len() < MOST_HEADERS;
    let value = value.parse().ok().filter(|_| room)?;
    headers.append(name, value);
    Some(())
}

fn headers(
    said: Option<BTreeMap<String, Value>>,
    cookies: Option<Vec<String>>,
) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in said.into_iter().flatten() {
        let text = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(yes) => yes.to_string(),
            Value::Null => continue,
            Value::Array(_) | Value::Object(_) => return None,
        };
        add(&mut headers, &name, &text)?;
    }
    for cookie in cookies.into_iter().flatten() {
        append(&mut headers, SET_COOKIE, &cookie)?;
    }
    Some(headers)
}

/// The bytes of a body: of a text what it says, of anything else its JSON.
fn body(said: Option<&RawValue>, encoded: bool) -> Option<Bytes> {
    let Some(said) = said else {
        return Some(Bytes::new());
    };
    let text = match said.get().starts_with('"') {
        true => serde_json::from_str(said.get()).ok()?,
        false => said.get().to_owned(),
    };
    Some(match encoded {
        true => BASE64_STANDARD.decode(text).ok()?.into(),
        false => text.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aleph_executor::functions::{FunctionError, Temperature, Timings};

    fn completed(payload: &str, error: Option<FunctionError>) -> Completed {
        Completed {
            payload: payload.to_owned().into(),
            content_type: "application/json".into(),
            error,
            error_type: None,
            log_tail: Vec::new(),
            timings: Timings::default(),
            temperature: Temperature::Hot,
            memory_peak: None,
        }
    }

    fn answered(payload: &str) -> (u16, Vec<(String, String)>, String) {
        let (parts, body) = answer(&completed(payload, None)).into_parts();
        let headers = parts.headers.iter().map(|(name, value)| {
            let value = value.to_str().unwrap().to_owned();
            (name.as_str().to_owned(), value)
        });
        let body = String::from_utf8(body.to_vec()).unwrap();
        (parts.status.as_u16(), headers.collect(), body)
    }

    #[test]
    fn what_says_no_status_is_a_body() {
        for payload in [
            r#""Hello, world!""#,
            r#"{"message": "Hello, world!"}"#,
            "[1]",
            "null",
            r#"{"statusCode": null, "body": "x"}"#,
        ] {
            let (status, headers, body) = answered(payload);
            assert_eq!((status, body.as_str()), (200, payload));
            let json = ("content-type".to_owned(), "application/json".to_owned());
            assert_eq!(headers, [json]);
        }
    }

    #[test]
    fn what_says_a_status_is_an_answer() {
        let (status, headers, body) = answered(
            r#"{"statusCode": 201, "headers": {"Content-Type": "text/plain", "X-N": 1,
                "Content-Length": "99", "Connection": "close", "X-None": null,
                "Service-Worker-Allowed": "/"},
                "cookies": ["a=1; Secure", "b=2"], "body": "hi"}"#,
        );
        assert_eq!((status, body.as_str()), (201, "hi"));
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let all = [
            ("content-type", "text/plain"),
            ("x-n", "1"),
            ("set-cookie", "a=1; Secure"),
            ("set-cookie", "b=2"),
        ];
        assert_eq!(headers, all.map(pair));
        for (payload, status, body) in [
            (r#"{"statusCode": "404"}"#, 404, ""),
            (r#"{"statusCode": 200, "body": null}"#, 200, ""),
            (
                r#"{"statusCode": 200, "body": {"a": 1}}"#,
                200,
                r#"{"a": 1}"#,
            ),
            (
                r#"{"statusCode": 200, "body": "aGk=", "isBase64Encoded": true}"#,
                200,
                "hi",
            ),
            (r#"{"statusCode": 204, "body": "none"}"#, 204, ""),
        ] {
            let (got, _, text) = answered(payload);
            assert_eq!((got, text.as_str()), (status, body), "{payload}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_fault_of_the_function() {
        for payload in [
            r#"{"statusCode": "ok"}"#,
            r#"{"statusCode": 99}"#,
            r#"{"statusCode": 101}"#,
            r#"{"statusCode": 70000}"#,
            r#"{"statusCode": 200, "headers": "x"}"#,
            r#"{"statusCode": 200, "headers": {"a b": "c"}}"#,
            r#"{"statusCode": 200, "headers": {"a": "b\r\nc: d"}}"#,
            r#"{"statusCode": 200, "cookies": ["a\nb"]}"#,
            r#"{"statusCode": 200, "body": "%", "isBase64Encoded": true}"#,
        ] {
            let (status, _, body) = answered(payload);
            assert_eq!(
                (status, body.as_str()),
                (502, "Internal Server Error"),
                "{payload}"
            );
        }
        // More headers than there can be.
        let many: BTreeMap<_, _> = (0..40_000).map(|n| (format!("x-{n}"), "")).collect();
        let cookies = vec!["a=1"; 40_000];
        for said in [
            serde_json::json!({"statusCode": 200, "headers": many}),
            serde_json::json!({"statusCode": 200, "cookies": cookies}),
        ] {
            assert_eq!(answered(&said.to_string()).0, 502);
        }
        let failed = answer(&completed("{}", Some(FunctionError::Unhandled)));
        assert_eq!(failed.status(), 502);
    }

    #[test]
    fn a_prelude_says_what_the_answer_is() {
        let whole = |payload: &str| {
            let mut completed = completed(payload, None);
            completed.content_type = HTTP_INTEGRATION.into();
            answer(&completed)
        };
        let said = r#"{"statusCode": 201, "headers": {"X-One": "1", "Connection": "close"},
            "multiValueHeaders": {"X-Two": ["2", "3"]}, "cookies": ["a=1"]}"#;
        let (parts, body) = whole(&format!("{said}\0\0\0\0\0\0\0\0body")).into_parts();
        assert_eq!(parts.status, 201);
        assert_eq!(parts.headers.get_all("x-two").iter().count(), 2);
        assert_eq!(
            (&parts.headers["x-one"], &parts.headers["set-cookie"]),
            (&"1".parse().unwrap(), &"a=1".parse().unwrap())
        );
        assert!(!parts.headers.contains_key("connection"));
        assert_eq!(body, "body");
        assert_eq!(whole("no prelude").status(), 502);
        assert_eq!(whole("{\"statusCode\": 7}\0\0\0\0\0\0\0\0").status(), 502);
    }
}
