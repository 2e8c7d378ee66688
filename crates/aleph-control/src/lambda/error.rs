//! Errors as AWS Lambda's clients know them: a name in `x-amzn-ErrorType`, a status, and a body
//! of `Type` and `Message`.

use aleph_executor::functions::{InvokeError, Throttle};
use aleph_executor::journal::JournalError;
use aleph_types::{Classify, ErrorClass, Problem};
use axum::Json;
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::time::Duration;

/// Which of the errors that clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    InvalidParameterValue,
    InvalidRequestContent,
    CodeStorageExceeded,
    ResourceConflict,
    ResourceNotFound,
    PreconditionFailed,
    RequestTooLarge,
    UnsupportedMediaType,
    TooManyRequests,
    ResourceNotReady,
    Service,
    ServiceUnavailable,
    AccessDenied,
    MissingAuthenticationToken,
    IncompleteSignature,
    InvalidSignature,
    UnrecognizedClient,
    UnknownOperation,
    RequestTimeout,
    ProvisionedConcurrencyConfigNotFound,
    /// What EventBridge Scheduler's clients know instead of some of the above.
    Validation,
    Conflict,
    Throttling,
    InternalServer,
    ServiceQuotaExceeded,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::InvalidParameterValue => "InvalidParameterValueException",
            Self::InvalidRequestContent => "InvalidRequestContentException",
            Self::CodeStorageExceeded => "CodeStorageExceededException",
            Self::ResourceConflict => "ResourceConflictException",
            Self::ResourceNotFound => "ResourceNotFoundException",
            Self::PreconditionFailed => "PreconditionFailedException",
            Self::RequestTooLarge => "RequestTooLargeException",
            Self::UnsupportedMediaType => "UnsupportedMediaTypeException",
            Self::TooManyRequests => "TooManyRequestsException",
            Self::ResourceNotReady => "ResourceNotReadyException",
            Self::Service => "ServiceException",
            Self::ServiceUnavailable => "ServiceUnavailableException",
            Self::AccessDenied => "AccessDeniedException",
            Self::MissingAuthenticationToken => "MissingAuthenticationTokenException",
            Self::IncompleteSignature => "IncompleteSignatureException",
            Self::InvalidSignature => "InvalidSignatureException",
            Self::UnrecognizedClient => "UnrecognizedClientException",
            Self::UnknownOperation => "UnknownOperationException",
            Self::RequestTimeout => "RequestTimeoutException",
            Self::ProvisionedConcurrencyConfigNotFound => {
                "ProvisionedConcurrencyConfigNotFoundException"
            }
            Self::Validation => "ValidationException",
            Self::Conflict => "ConflictException",
            Self::Throttling => "ThrottlingException",
            Self::InternalServer => "InternalServerException",
            Self::ServiceQuotaExceeded => "ServiceQuotaExceededException",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::InvalidParameterValue
            | Self::InvalidRequestContent
            | Self::CodeStorageExceeded
            | Self::Validation
            | Self::IncompleteSignature => StatusCode::BAD_REQUEST,
            Self::AccessDenied
            | Self::MissingAuthenticationToken
            | Self::InvalidSignature
            | Self::UnrecognizedClient => StatusCode::FORBIDDEN,
            Self::ResourceNotFound
            | Self::UnknownOperation
            | Self::ProvisionedConcurrencyConfigNotFound => StatusCode::NOT_FOUND,
            Self::ServiceQuotaExceeded => StatusCode::PAYMENT_REQUIRED,
            Self::ResourceConflict | Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::RequestTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyRequests | Self::Throttling => StatusCode::TOO_MANY_REQUESTS,
            Self::ResourceNotReady => StatusCode::BAD_GATEWAY,
            Self::Service | Self::InternalServer => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }
}

/// A request that is refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LambdaError {
    kind: Kind,
    message: String,
    /// Of a throttled request: when it makes sense to try again, and which limit it was.
    throttle: Option<(Duration, &'static str)>,
}

impl LambdaError {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            throttle: None,
        }
    }

    /// A parameter that cannot be.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::InvalidParameterValue, message)
    }

    /// What is asked for does not go with how things are.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::ResourceConflict, message)
    }

    /// There is no such thing.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::ResourceNotFound, message)
    }

    /// There is no such function.
    pub(crate) fn no_function(what: &str) -> Self {
        Self::not_found(format!("Function not found: {what}"))
    }

    /// Somebody else changed it since.
    pub(crate) fn changed_since() -> Self {
        let message = "The Revision Id provided does not match the latest Revision Id. Call the \
                       GetFunction/GetAlias API to retrieve the latest Revision Id";
        Self::new(Kind::PreconditionFailed, message)
    }

    /// Too much runs or is held at once.
    pub(crate) fn throttled(after: Duration, reason: &'static str, message: &str) -> Self {
        Self {
            throttle: Some((after, reason)),
            ..Self::new(Kind::TooManyRequests, message)
        }
    }

    /// The same for whoever calls a function from outside: what is about their request is for
    /// them, what is not ready may be later, and all else, as what a function wrote when it did not
    /// start, is none of their business.
    pub(crate) fn for_strangers(self) -> Self {
        match self.kind {
            Kind::TooManyRequests
            | Kind::RequestTooLarge
            | Kind::RequestTimeout
            | Kind::InvalidRequestContent => self,
            Kind::AccessDenied => Self::new(Kind::AccessDenied, "Forbidden"),
            Kind::ResourceConflict
            | Kind::ResourceNotReady
            | Kind::Service
            | Kind::ServiceUnavailable => {
                Self::new(Kind::ServiceUnavailable, "Service Unavailable")
            }
            _ => Self::new(Kind::ResourceNotReady, "Internal Server Error"),
        }
    }

    /// Our mistake.
    pub(crate) fn internal(what: &str) -> Self {
        tracing::error!(what, "a request failed by a mistake of this program");
        Self::new(Kind::Service, what)
    }

    /// The node is about to end.
    pub(crate) fn stopping() -> Self {
        Self::new(Kind::ServiceUnavailable, "the node is shutting down")
    }

    /// The same as clients of EventBridge Scheduler know it.
    pub(crate) fn of_scheduler(mut self) -> Self {
        self.kind = match self.kind {
            Kind::InvalidParameterValue | Kind::InvalidRequestContent => Kind::Validation,
            Kind::ResourceConflict => Kind::Conflict,
            Kind::TooManyRequests => Kind::Throttling,
            Kind::Service => Kind::InternalServer,
            Kind::CodeStorageExceeded => Kind::ServiceQuotaExceeded,
            other => other,
        };
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.kind.status()
    }

    /// Which error it is, as clients call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }
}

impl IntoResponse for LambdaError {
    fn into_response(self) -> Response {
        let status = self.status();
        let whose = match status.is_server_error() {
            true => "Service",
            false => "User",
        };
        // Clients of some versions read `Message` and of others `message`.
        let mut body = json!({
            "Type": whose, "Message": self.message, "message": self.message,
        });
        if let Some((after, reason)) = self.throttle {
            body["Reason"] = reason.into();
            body["retryAfterSeconds"] = seconds(after).to_string().into();
        }
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert("x-amzn-errortype", HeaderValue::from_static(self.name()));
        if let Some((after, _)) = self.throttle {
            headers.insert(RETRY_AFTER, seconds(after).into());
        }
        response
    }
}

/// Whole seconds, rounded up, and never none.
fn seconds(span: Duration) -> u64 {
    (span.as_secs() + u64::from(span.subsec_nanos() > 0)).max(1)
}

impl From<InvokeError> for LambdaError {
    fn from(error: InvokeError) -> Self {
        match error {
            InvokeError::Throttled { by, retry_after } => {
                let (reason, message) = throttle(by);
                Self::throttled(retry_after, reason, message)
            }
            InvokeError::NotReady(why) => Self::new(Kind::ResourceNotReady, why),
            InvokeError::Place(problem) => Self::from(problem),
            InvokeError::ShuttingDown => Self::stopping(),
        }
    }
}

fn throttle(by: Throttle) -> (&'static str, &'static str) {
    match by {
        Throttle::Function => (
            "ReservedFunctionConcurrentInvocationLimitExceeded",
            "Rate Exceeded. The function's reserved concurrency is in use.",
        ),
        Throttle::Account => (
            "ConcurrentInvocationLimitExceeded",
            "Rate Exceeded. The account's concurrency is in use.",
        ),
        Throttle::Node => (
            "ConcurrentInvocationLimitExceeded",
            "Rate Exceeded. The node runs as much as it can.",
        ),
    }
}

impl From<Problem> for LambdaError {
    fn from(problem: Problem) -> Self {
        let kind = match problem.class {
            ErrorClass::Invalid => Kind::InvalidParameterValue,
            ErrorClass::Forbidden => Kind::AccessDenied,
            ErrorClass::Conflict => Kind::ResourceConflict,
            ErrorClass::NotFound => Kind::ResourceNotFound,
            ErrorClass::Capacity | ErrorClass::Unavailable | ErrorClass::Internal => Kind::Service,
        };
        Self::new(kind, said(&problem))
    }
}

impl From<JournalError> for LambdaError {
    fn from(error: JournalError) -> Self {
        tracing::error!(%error, "a request about functions failed");
        let kind = match error.class() {
            ErrorClass::Capacity => Kind::CodeStorageExceeded,
            _ => Kind::Service,
        };
        Self::new(kind, said(&Problem::of(&error)))
    }
}

/// What a problem says, with what helps.
pub(crate) fn said(problem: &Problem) -> String {
    match &problem.advice {
        Some(advice) => format!("{}. {advice}", problem.message.trim_end_matches('.')),
        None => problem.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_hear_of_their_request_and_of_nothing_else() {
        let inside = "Traceback: secret";
        let problem = |class| {
            let problem = Problem {
                class,
                code: "init".into(),
                message: inside.into(),
                advice: None,
            };
            LambdaError::from(InvokeError::Place(problem))
        };
        for (error, status) in [
            (problem(ErrorClass::Invalid), 502),
            (problem(ErrorClass::NotFound), 502),
            (problem(ErrorClass::Forbidden), 403),
            (problem(ErrorClass::Conflict), 503),
            (problem(ErrorClass::Capacity), 503),
            (problem(ErrorClass::Internal), 503),
            (InvokeError::NotReady(inside.into()).into(), 503),
            (InvokeError::ShuttingDown.into(), 503),
        ] {
            let told = error.clone().for_strangers();
            assert_eq!(told.status(), status, "{error:?}");
            assert!(!told.message.contains("secret"), "{told:?}");
        }
        let throttle = Throttle::Function;
        let retry_after = Duration::from_secs(2);
        let throttled = LambdaError::from(InvokeError::Throttled {
            by: throttle,
            retry_after,
        });
        assert_eq!(throttled.clone().for_strangers(), throttled);
    }
}
