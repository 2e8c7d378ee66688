//! What handlers get out of requests. Whatever is wrong with one becomes a problem.

use super::problem::Refusal;
use aleph_types::{ErrorClass, JobSpec};
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::CONTENT_TYPE;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::time::timeout;

/// How long a body that is parsed may be.
pub const MAX_BODY: usize = 2 * 1024 * 1024;

/// How long a client may take to send one.
const BODY_TIME: Duration = Duration::from_secs(30);

/// A query string, read into a struct that refuses unknown fields.
#[derive(Debug)]
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let query = parts.uri.query().unwrap_or_default();
        serde_urlencoded::from_str(query)
            .map(Self)
            .map_err(|error| bad_query(error.to_string()))
    }
}

pub(crate) fn bad_query(message: impl Into<String>) -> Refusal {
    Refusal::invalid("bad_query", message).advise("See /openapi.json for what it takes.")
}

/// A part of the path.
#[derive(Debug)]
pub(crate) struct Segment(pub(crate) String);

impl<S: Sync + Send> FromRequestParts<S> for Segment {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        // The one way to fail that a client has is to send what is not UTF-8.
        path.map(|axum::extract::Path(text)| Self(text))
            .map_err(|error| Refusal::invalid("bad_path", error.to_string()))
    }
}

/// Two parts of the path.
#[derive(Debug)]
pub(crate) struct Segments(pub(crate) String, pub(crate) String);

impl<S: Sync + Send> FromRequestParts<S> for Segments {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = axum::extract::Path::<(String, String)>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path((first, second))| Self(first, second))
            .map_err(|error| Refusal::invalid("bad_path", error.to_string()))
    }
}

/// A body as JSON.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let form = Form::of(request.headers())?;
        if form != Form::Json {
            return Err(bad_content_type("application/json"));
        }
        form.parse(&bytes(request).await?).map(Self)
    }
}

/// A job's specification, as JSON, YAML or TOML.
#[derive(Debug)]
pub(crate) struct Specification(pub(crate) JobSpec);

impl<S: Sync> FromRequest<S> for Specification {
    type Rejection = Refusal;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Refusal> {
        let form = Form::of(request.headers())?;
        form.parse(&bytes(request).await?).map(Self)
    }
}

/// A form that a body has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    Yaml,
    Toml,
}

impl Form {
    /// The form that the header names; JSON where there is none.
    fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        let Some(value) = headers.get(CONTENT_TYPE) else {
            return Ok(Self::Json);
        };
        let text = value.to_str().unwrap_or_default();
        let kind = text.split(';').next().unwrap_or_default().trim();
        match kind.to_ascii_lowercase().as_str() {
            "application/json" => Ok(Self::Json),
            "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Self::Yaml),
            "application/toml" | "text/toml" => Ok(Self::Toml),
            _ => Err(bad_content_type(
                "application/json, application/yaml or application/toml",
            )),
        }
    }

    fn parse<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, Refusal> {
        let bad =
            |why: String| Refusal::invalid("bad_body", format!("the body cannot be read: {why}"));
        match self {
            Self::Json => {
                let mut json = serde_json::Deserializer::from_slice(bytes);
                // The path says which of many equal fields it is.
                let value =
                    serde_path_to_error::deserialize(&mut json).map_err(|error| {
                        match error.path().to_string().as_str() {
                            "." => bad(error.inner().to_string()),
                            path => bad(format!("{path}: {}", error.inner())),
                        }
                    })?;
                json.end().map_err(|error| bad(error.to_string()))?;
                Ok(value)
            }
            Self::Yaml => serde_saphyr::from_slice(bytes).map_err(|error| bad(error.to_string())),
            Self::Toml => toml::from_slice(bytes).map_err(|error| bad(error.to_string())),
        }
    }
}

fn bad_content_type(wanted: &str) -> Refusal {
    let (status, class) = (StatusCode::UNSUPPORTED_MEDIA_TYPE, ErrorClass::Invalid);
    let message = format!("the body has to be {wanted}");
    Refusal::new(status, class, "bad_content_type", message).advise("Set the header Content-Type.")
}

async fn bytes(request: Request) -> Result<Bytes, Refusal> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    match timeout(BODY_TIME, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
            let (status, class) = (StatusCode::PAYLOAD_TOO_LARGE, ErrorClass::Invalid);
            let message = format!("the body is longer than {MAX_BODY} bytes");
            Err(Refusal::new(status, class, "too_large", message))
        }
        Ok(Err(error)) => Err(Refusal::invalid("bad_body", error.to_string())),
        Err(_) => {
            let (status, class) = (StatusCode::REQUEST_TIMEOUT, ErrorClass::Invalid);
            let message = format!("the body did not come within {} s", BODY_TIME.as_secs());
            Err(Refusal::new(status, class, "body_timeout", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn spec(
        kind: Option<&str>,
        body: impl Into<axum::body::Body>,
    ) -> Result<JobSpec, Refusal> {
        let mut request = Request::new(body.into());
        if let Some(kind) = kind {
            let value = kind.parse().unwrap();
            request.headers_mut().insert(CONTENT_TYPE, value);
        }
        let Specification(spec) = Specification::from_request(request, &()).await?;
        Ok(spec)
    }

    #[tokio::test]
    async fn a_job_is_read_in_three_forms() {
        let want = JobSpec::new("busybox", vec!["ls".into(), "0644".into()]);
        for (kind, body) in [
            (None, r#"{"image":"busybox","command":["ls","0644"]}"#),
            (
                Some("application/json; charset=utf-8"),
                r#"{"image":"busybox","command":["ls","0644"]}"#,
            ),
            (
                Some("application/yaml"),
                "image: busybox\ncommand:\n  - ls\n  - '0644'\n",
            ),
            (
                Some("application/toml"),
                "image = 'busybox'\ncommand = ['ls', '0644']",
            ),
        ] {
            assert_eq!(spec(kind, body).await.unwrap(), want, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn wrong_bodies_say_what_is_wrong() {
        let long = format!(r#"{{"image":"{}"}}"#, "x".repeat(MAX_BODY));
        for (kind, body, status, code, says) in [
            (None, "", 400, "bad_body", "EOF"),
            (None, "{}", 400, "bad_body", "image"),
            (None, "{\"image\":\"a\"} x", 400, "bad_body", "trailing"),
            (None, "[1", 400, "bad_body", ""),
            (
                None,
                r#"{"image":"a","resources":{"memory":"1x"}}"#,
                400,
                "bad_body",
                "resources.memory",
            ),
            (None, r#"{"image":"a","nam":"x"}"#, 400, "bad_body", "nam"),
            (Some("application/yaml"), "image: [", 400, "bad_body", ""),
            (Some("application/toml"), "image", 400, "bad_body", ""),
            (Some("text/plain"), "{}", 415, "bad_content_type", "json"),
            (None, &long, 413, "too_large", "2097152"),
        ] {
            let refusal = spec(kind, body.to_owned()).await.unwrap_err();
            let (problem, what) = (&refusal.problem, body.get(..20).unwrap_or(body));
            assert_eq!(refusal.status, status, "{what}");
            assert_eq!(problem.code, code, "{what}");
            assert!(
                problem.message.contains(says),
                "{what}: {}",
                problem.message
            );
        }
    }
}
