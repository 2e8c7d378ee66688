//! Errors as clients get them: always a [`Problem`], with the status that its class means.

use aleph_types::{Classify, ErrorClass, Problem};
use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};

/// A request that is refused or failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// What the client is told. Boxed, so that results of handlers stay small.
    pub problem: Box<Problem>,
}

impl Refusal {
    /// One with a status of its own.
    pub(crate) fn new(
        status: StatusCode,
        class: ErrorClass,
        code: &str,
        message: impl Into<String>,
    ) -> Self {
        Self {
            status,
            problem: Box::new(Problem {
                class,
                code: code.to_owned(),
                message: message.into(),
                advice: None,
            }),
        }
    }

    /// A problem with the status that its class means.
    #[must_use]
    pub fn of(problem: Problem) -> Self {
        let status = status_of(problem.class);
        if status.is_server_error() {
            let Problem { code, message, .. } = &problem;
            tracing::warn!(code, message, "a request failed");
        }
        Self {
            status,
            problem: Box::new(problem),
        }
    }

    /// The client's mistake.
    pub(crate) fn invalid(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorClass::Invalid, code, message)
    }

    /// Who asks may not do this.
    pub(crate) fn forbidden(code: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, ErrorClass::Forbidden, code, message)
    }

    /// Our mistake. What exactly happened is for the log, not for the client.
    pub(crate) fn internal(what: &str) -> Self {
        tracing::error!(what, "a request failed by a mistake of this program");
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        Self::new(status, ErrorClass::Internal, "internal", what)
    }

    /// The node is about to end.
    pub(crate) fn stopping() -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        let (class, code) = (ErrorClass::Unavailable, "shutting_down");
        Self::new(status, class, code, "the node is shutting down")
            .advise("Try again once it is up.")
    }

    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.problem.advice = Some(advice.into());
        self
    }
}

/// The status that a class of errors means.
#[must_use]
pub fn status_of(class: ErrorClass) -> StatusCode {
    match class {
        ErrorClass::Invalid => StatusCode::BAD_REQUEST,
        ErrorClass::Forbidden => StatusCode::FORBIDDEN,
        ErrorClass::Conflict => StatusCode::CONFLICT,
        ErrorClass::NotFound => StatusCode::NOT_FOUND,
        ErrorClass::Capacity => StatusCode::TOO_MANY_REQUESTS,
        ErrorClass::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorClass::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl<E: Classify> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::of(Problem::of(&error))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(*self.problem)).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("5"));
            }
            StatusCode::UNAUTHORIZED => {
                let scheme = HeaderValue::from_static("Bearer realm=\"aleph\"");
                headers.insert(WWW_AUTHENTICATE, scheme);
            }
            _ => {}
        }
        response
    }
}

/// What is told where no route is.
pub(crate) async fn no_route(uri: axum::http::Uri) -> Refusal {
    let message = format!("there is nothing at {}", uri.path());
    let (status, class) = (StatusCode::NOT_FOUND, ErrorClass::NotFound);
    Refusal::new(status, class, "not_found", message).advise("See /openapi.json for what there is.")
}

/// What is told where a route has no such method. The router adds the header `Allow`.
pub(crate) async fn no_method(method: axum::http::Method, uri: axum::http::Uri) -> Refusal {
    let message = format!("{} does not take {method}", uri.path());
    let (status, class) = (StatusCode::METHOD_NOT_ALLOWED, ErrorClass::Invalid);
    Refusal::new(status, class, "method_not_allowed", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;

    #[tokio::test]
    async fn each_class_has_its_status_and_body() {
        for (class, status, retry) in [
            (ErrorClass::Invalid, 400, false),
            (ErrorClass::Forbidden, 403, false),
            (ErrorClass::NotFound, 404, false),
            (ErrorClass::Conflict, 409, false),
            (ErrorClass::Capacity, 429, true),
            (ErrorClass::Internal, 500, false),
            (ErrorClass::Unavailable, 503, true),
        ] {
            let problem = Problem {
                class,
                code: "some_code".into(),
                message: "it is so".into(),
                advice: Some("Do this.".into()),
            };
            let response = Refusal::of(problem.clone()).into_response();
            assert_eq!(response.status(), status);
            assert_eq!(
                response.headers().contains_key(RETRY_AFTER),
                retry,
                "{class}"
            );
            let body = to_bytes(response.into_body(), 10_000).await.unwrap();
            assert_eq!(serde_json::from_slice::<Problem>(&body).unwrap(), problem);
        }
    }
}
