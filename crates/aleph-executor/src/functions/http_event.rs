//! Events and answers of functions that are HTTP servers, as HTTP requests and responses. Pure.
//!
//! An event in the form of an API Gateway's or a function URL's (payload version 2.0) is the
//! request that it describes, and the answer describes the response. Any other event is the body of
//! a POST to [`EVENTS`], or where the function wants it, and the response's body is the answer.
//! Names and forms are those of the AWS Lambda Web Adapter
//! (<https://aws.github.io/aws-lambda-web-adapter/>).
//!
//! # Failure cases
//! What no request can have is left out (names and values of headers, and those beyond 4096) or
//! encoded (characters of a path). What is `null` is as if it were not there. An event that only resembles one of HTTP is any other event.

use super::prelude::HttpPrelude;
use super::response::JSON;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap,
    HeaderName, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::{Method, Request, StatusCode, Uri};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Where events go that are no HTTP requests.
pub(super) const EVENTS: &str = "/events";

/// The most headers of an event that a request has: a map of them has its bounds, and room is left
/// for what is told of the event.
const MOST_HEADERS: usize = 4096;

/// What is between two machines, and no part of a message that goes further.
const BETWEEN: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    EXPECT,
];

/// What a path or a query cannot have as it is. A `%` stays: it begins what is encoded.
const NOT_IN_QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');
const NOT_IN_PATH: &AsciiSet = &NOT_IN_QUERY
    .add(b'?')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'\\')
    .add(b'^')
    .add(b'|');

/// An event of HTTP, as far as it is a request.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpEvent {
    version: String,
    request_context: Value,
    #[serde(default, deserialize_with = "or_default")]
    raw_path: String,
    #[serde(default, deserialize_with = "or_default")]
    raw_query_string: String,
    #[serde(default, deserialize_with = "or_default")]
    headers: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    cookies: Vec<String>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    is_base64_encoded: bool,
}

/// What there is, where it is not `null`.
fn or_default<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Option::deserialize(from).map(Option::unwrap_or_default)
}

impl HttpEvent {
    fn of(event: &[u8]) -> Option<Self> {
        let event: Self = serde_json::from_slice(event).ok()?;
        (event.version == "2.0").then_some(event)
    }

    fn method(&self) -> Option<Method> {
        let http = self.request_context.get("http")?;
        let method = http.get("method")?.as_str()?;
        Method::from_bytes(method.as_bytes()).ok()
    }

    fn uri(&self) -> Option<Uri> {
        let path = utf8_percent_encode(self.raw_path.trim_start_matches('/'), NOT_IN_PATH);
        let query = utf8_percent_encode(&self.raw_query_string, NOT_IN_QUERY);
        let mark = if self.raw_query_string.is_empty() {
            ""
        } else {
            "?"
        };
        format!("/{path}{mark}{query}").parse().ok()
    }

    fn body(&self) -> Option<Bytes> {
        let body = self.body.as_deref().unwrap_or_default();
        if self.is_base64_encoded {
            return Some(BASE64_STANDARD.decode(body).ok()?.into());
        }
        Some(Bytes::copy_from_slice(body.as_bytes()))
    }
}

/// Which of the two an event is, which decides what its answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An HTTP request.
    Http,
    /// Something else.
    Other,
}

/// An event as a request, to be sent to a server that is called `host`.
pub(super) fn request(event: &Bytes, host: &str, events: &str) -> (Form, Request<Full<Bytes>>) {
    let (form, mut request) = match HttpEvent::of(event).and_then(|event| http(&event)) {
        Some(request) => (Form::Http, request),
        None => (Form::Other, other(event, events)),
    };
    let headers = request.headers_mut();
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(host)
    {
        headers.insert(HOST, host);
    }
    // One connection for each event: nothing of it is left for the next.
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    (form, request)
}

fn http(event: &HttpEvent) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::new(event.body()?));
    *request.method_mut() = event.method()?;
    *request.uri_mut() = event.uri()?;
    let headers = request.headers_mut();
    for (name, value) in &event.headers {
        add(headers, name, value);
    }
    if !event.cookies.is_empty() {
        headers.remove(COOKIE);
        add(headers, COOKIE.as_str(), &event.cookies.join("; "));
    }
    for name in BETWEEN.iter().chain([&CONTENT_LENGTH]) {
        headers.remove(name);
    }
    let context = event.request_context.to_string();
    headers.remove("x-amzn-request-context");
    add(headers, "x-amzn-request-context", &context);
    Some(request)
}

fn other(event: &Bytes, events: &str) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(event.clone()));
    *request.method_mut() = Method::POST;
    // What the function wants may be no path.
    *request.uri_mut() = events.parse().unwrap_or(Uri::from_static(EVENTS));
    let json = HeaderValue::from_static(JSON);
    request.headers_mut().insert(CONTENT_TYPE, json);
    request
}

fn add(headers: &mut HeaderMap, name: &str, value: &str) {
    let name = HeaderName::from_bytes(name.as_bytes());
    let value = HeaderValue::from_bytes(value.as_bytes());
    if let (Ok(name), Ok(value)) = (name, value)
        && headers.len() < MOST_HEADERS
    {
        headers.append(name, value);
    }
}

/// Status and headers of a response.
pub(super) fn prelude(status: StatusCode, headers: &HeaderMap) -> HttpPrelude {
    let mut prelude = HttpPrelude {
        status_code: status.as_u16(),
        ..HttpPrelude::default()
    };
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        if name == SET_COOKIE {
            prelude.cookies.push(value.into_owned());
        } else if !BETWEEN.contains(name) {
            let all = prelude.headers.entry(name.to_string()).or_default();
            if !all.is_empty() {
                all.push(',');
            }
            all.push_str(&value);
        }
    }
    prelude
}

/// A whole response as the answer to an event of HTTP.
pub(super) fn answer(prelude: &HttpPrelude, body: &Bytes) -> Bytes {
    let text = std::str::from_utf8(body).ok();
    let text = text.filter(|_| is_text(&prelude.headers));
    let (body, is_encoded) = match text {
        Some(text) => (text.to_owned(), false),
        None => (BASE64_STANDARD.encode(body), true),
    };
    let answer = json!({
        "statusCode": prelude.status_code,
        "headers": prelude.headers,
        "cookies": prelude.cookies,
        "body": body,
        "isBase64Encoded": is_encoded,
    });
    answer.to_string().into()
}

/// Whether a body of these headers is text, and not encoded.
fn is_text(headers: &BTreeMap<String, String>) -> bool {
    let of = |name: HeaderName| headers.get(name.as_str()).map(String::as_str);
    if of(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return false;
    }
    let Some(kind) = of(CONTENT_TYPE) else {
        return true;
    };
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let kind = kind.to_ascii_lowercase();
    let known = [
        "application/json",
        "application/javascript",
        "application/xml",
        "application/x-www-form-urlencoded",
        "image/svg+xml",
    ];
    kind.starts_with("text/")
        || kind.ends_with("+json")
        || kind.ends_with("+xml")
        || known.contains(&&*kind)
}

/// The answer to any other event whose response says that the server failed.
pub(super) fn failure(status: StatusCode, body: &[u8]) -> Bytes {
    let message = String::from_utf8_lossy(body);
    let error = json!({
        "errorType": format!("HTTP {}", status.as_u16()),
        "errorMessage": message,
    });
    error.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn of(event: &Value) -> (Form, Request<Full<Bytes>>) {
        request(&event.to_string().into(), "127.0.0.1:8080", EVENTS)
    }

    async fn body(request: Request<Full<Bytes>>) -> Vec<u8> {
        request
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes()
            .into()
    }

    fn event() -> Value {
        json!({
            "version": "2.0",
            "rawPath": "/a b/%C3%BC/ü",
            "rawQueryString": "x=1&y={2}&z=ü",
            "cookies": ["a=1", "b=2"],
            "headers": {
                "host": "own.example", "x-one": "1", "connection": "upgrade",
                "transfer-encoding": "chunked", "content-length": "999", "bad name": "x",
                "x-bad": "a\nb", "cookie": "replaced=1",
            },
            "requestContext": { "http": { "method": "PUT" }, "requestId": "r" },
            "body": "aGVsbG8=",
            "isBase64Encoded": true,
        })
    }

    #[tokio::test]
    async fn an_event_of_http_is_its_request() {
        let (form, request) = of(&event());
        assert_eq!((form, request.method()), (Form::Http, &Method::PUT));
        let uri = request.uri().to_string();
        assert_eq!(uri, "/a%20b/%C3%BC/%C3%BC?x=1&y={2}&z=%C3%BC");
        let text = |name: &str| request.headers().get(name).map(|v| v.to_str().unwrap());
        assert_eq!(
            (text("host"), text("x-one")),
            (Some("own.example"), Some("1"))
        );
        assert_eq!(text("cookie"), Some("a=1; b=2"));
        assert_eq!(text("connection"), Some("close"));
        for gone in ["transfer-encoding", "content-length", "x-bad", "bad name"] {
            assert_eq!(text(gone), None, "{gone}");
        }
        let context: Value = serde_json::from_str(text("x-amzn-request-context").unwrap()).unwrap();
        assert_eq!(context["requestId"], "r");
        assert_eq!(body(request).await, b"hello");
    }

    #[tokio::test]
    async fn what_is_left_out_is_empty() {
        let least = json!({ "version": "2.0", "requestContext": { "http": { "method": "GET" } } });
        let (form, request) = of(&least);
        assert_eq!(
            (form, request.uri().to_string().as_str()),
            (Form::Http, "/")
        );
        assert_eq!(request.headers()[HOST], "127.0.0.1:8080");
        assert!(body(request).await.is_empty());
    }

    #[test]
    fn null_is_nothing_and_headers_have_a_bound() {
        let nulls = json!({
            "version": "2.0", "requestContext": { "http": { "method": "GET" } },
            "rawPath": null, "rawQueryString": null, "headers": null, "cookies": null,
            "body": null, "isBase64Encoded": null,
        });
        let (form, request) = of(&nulls);
        assert_eq!((form, request.uri().path()), (Form::Http, "/"));
        let many: BTreeMap<_, _> = (0..40_000).map(|n| (format!("x-{n}"), "")).collect();
        let many = json!({
            "version": "2.0", "requestContext": { "http": { "method": "GET" } }, "headers": many,
        });
        let (form, request) = of(&many);
        assert_eq!(form, Form::Http);
        assert!((MOST_HEADERS..MOST_HEADERS + 9).contains(&request.headers().len()));
    }

    #[tokio::test]
    async fn any_other_event_is_passed_through() {
        let changed = |path: &str, value: Value| {
            let mut event = event();
            *event.pointer_mut(path).unwrap() = value;
            event
        };
        for event in [
            json!({ "n": 1 }),
            json!("text"),
            changed("/version", json!("1.0")),
            changed("/requestContext", json!({})),
            changed("/requestContext/http/method", json!("NO METHOD")),
            changed("/body", json!("no base64")),
        ] {
            let (form, request) = of(&event);
            assert_eq!(
                (form, request.method()),
                (Form::Other, &Method::POST),
                "{event}"
            );
            assert_eq!(request.uri().to_string(), EVENTS);
            assert_eq!(request.headers()[CONTENT_TYPE], JSON);
            assert_eq!(body(request).await, event.to_string().as_bytes());
        }
        let own = request(&"{}".into(), "h", "/own?x=1").1;
        assert_eq!(own.uri().to_string(), "/own?x=1");
        let none = request(&"{}".into(), "h", "no path").1;
        assert_eq!(none.uri().to_string(), EVENTS);
    }

    #[test]
    fn a_response_is_its_answer() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/plain; charset=utf-8"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("x-two", "1"),
            ("x-two", "2"),
            ("connection", "close"),
            ("transfer-encoding", "chunked"),
        ] {
            add(&mut headers, name, value);
        }
        let prelude = prelude(StatusCode::CREATED, &headers);
        let of = |body: &'static [u8]| -> Value {
            serde_json::from_slice(&answer(&prelude, &body.into())).unwrap()
        };
        let want = json!({
            "statusCode": 201,
            "headers": { "content-type": "text/plain; charset=utf-8", "x-two": "1,2" },
            "cookies": ["a=1", "b=2"],
            "body": "ü",
            "isBase64Encoded": false,
        });
        assert_eq!(of("ü".as_bytes()), want);
        let raw = of(&[0xff, 0x00]);
        assert_eq!(
            (&raw["body"], &raw["isBase64Encoded"]),
            (&json!("/wA="), &json!(true))
        );
    }

    #[test]
    fn text_is_known_by_its_type() {
        let is = |pairs: &[(&str, &str)]| {
            let own = |(n, v): &(&str, &str)| ((*n).to_owned(), (*v).to_owned());
            is_text(&pairs.iter().map(own).collect())
        };
        for kind in [
            "text/html",
            "application/json",
            "Application/Problem+JSON;x",
            "image/svg+xml",
        ] {
            assert!(is(&[("content-type", kind)]), "{kind}");
        }
        assert!(is(&[]) && is(&[("content-encoding", "identity")]));
        for kind in ["image/png", "application/octet-stream", "application/zip"] {
            assert!(!is(&[("content-type", kind)]), "{kind}");
        }
        assert!(!is(&[
            ("content-type", "text/html"),
            ("content-encoding", "gzip")
        ]));
    }
}
