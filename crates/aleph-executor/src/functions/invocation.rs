//! An event on its way in, and what came of it.

use aleph_types::{Classify, ErrorClass, Problem};
use bytes::Bytes;
use serde::Serialize;
use std::time::Duration;

/// An event for a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Names it, the same on each try: a UUID.
    pub request_id: String,
    /// The event, as the function gets it.
    pub payload: Bytes,
    /// The ARN that was invoked.
    pub arn: String,
    /// What the caller says of itself: JSON.
    pub client_context: Option<String>,
    /// The trace that it belongs to: `X-Amzn-Trace-Id`, or what stands for it.
    pub trace: Option<String>,
}

/// What state the place was in that took an invocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Temperature {
    /// It ran.
    Hot,
    /// It was paused.
    Warm,
    /// It was made from the template.
    Cold,
}

/// Where the time of an invocation went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Timings {
    /// Until there was a place for it.
    pub queue: Duration,
    /// Making a clone or letting a paused one go on.
    pub resume: Duration,
    /// From the event's way into the guest to the answer's end.
    pub function: Duration,
}

/// An invocation that was carried out, whatever the function made of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// The function's answer, or its error: JSON with `errorType` and `errorMessage`. Of an answer
    /// that was written into a [`ResponseSink`](super::ResponseSink) nothing is here.
    pub payload: Bytes,
    /// The type of the answer, as the runtime gave it.
    pub content_type: String,
    /// Whether it is an error.
    pub error: Option<FunctionError>,
    /// What the runtime called an error that came within a response.
    pub error_type: Option<String>,
    /// The end of what it wrote, with its START, END and REPORT lines: at most 4 KiB.
    pub log_tail: Vec<u8>,
    /// Where the time went.
    pub timings: Timings,
    /// What took it.
    pub temperature: Temperature,
    /// The most memory that the guest used, where that is known.
    pub memory_peak: Option<u64>,
}

/// Whose error it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FunctionError {
    /// The function told of it.
    Handled,
    /// It crashed, left or took too long, or its runtime said so.
    Unhandled,
}

impl FunctionError {
    /// What `X-Amz-Function-Error` says.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handled => "Handled",
            Self::Unhandled => "Unhandled",
        }
    }
}

/// Which limit keeps an invocation away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttle {
    /// The function's reserved concurrency.
    Function,
    /// What an account may run at once.
    Account,
    /// What the node can run at once.
    Node,
}

/// An invocation that was not carried out: the function never saw it.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// Too many run.
    #[error("too many invocations run at once")]
    Throttled {
        /// By which limit.
        by: Throttle,
        /// When it makes sense to try again.
        retry_after: Duration,
    },
    /// The deployment was not prepared, or is gone.
    #[error("the function is not ready: {0}")]
    NotReady(String),
    /// The node could not make a place for it.
    #[error("the function cannot be run")]
    Place(#[source] Problem),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl Classify for InvokeError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Throttled { .. } => ErrorClass::Capacity,
            Self::NotReady(_) => ErrorClass::Conflict,
            Self::Place(_) | Self::ShuttingDown => ErrorClass::Unavailable,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Throttled { .. } => "throttled",
            Self::NotReady(_) => "function_not_ready",
            Self::Place(_) => "function_no_place",
            Self::ShuttingDown => "shutting_down",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Throttled { retry_after, .. } => Some(format!(
                "Try again in {} s, or raise the limit.",
                retry_after.as_secs().max(1)
            )),
            Self::NotReady(_) => Some("See its state with: aleph fn inspect NAME".into()),
            Self::Place(problem) => problem.advice.clone(),
            Self::ShuttingDown => None,
        }
    }
}
