//! What a caller gets of what became of an event.

use super::answer::{Delivered, MAX_ANSWER};
use super::deployment::Deployment;
use super::instance::{Fate, Instance};
use super::invocation::{Completed, FunctionError, Temperature, Timings};
use super::output::Ended;
use super::report::{Report, report};
use super::response::JSON;
use bytes::Bytes;

/// An event that a clone had.
pub(super) struct Run<'a> {
    pub(super) deployment: &'a Deployment,
    pub(super) clone: &'a Instance,
    pub(super) request_id: &'a str,
    pub(super) timings: Timings,
    pub(super) temperature: Temperature,
}

impl Run<'_> {
    /// What the caller gets, and whether the clone can serve again.
    pub(super) fn complete(&self, fate: Fate) -> (Completed, bool) {
        let id = self.request_id;
        let problem = |kind: &str, message: String| {
            let message = format!("RequestId: {id} Error: {message}");
            let json = serde_json::json!({ "errorType": kind, "errorMessage": message });
            Bytes::from(json.to_string())
        };
        let limit = self.deployment.timeout.as_secs_f64();
        let (mut content_type, mut error_type) = (JSON.to_owned(), None);
        let (payload, status, can_serve) = match fate {
            Fate::Answered(Delivered::Whole {
                content_type: kind,
                body,
            }) => {
                content_type = kind;
                (body, None, true)
            }
            Fate::Answered(Delivered::Error(payload)) => (payload, Some("error"), true),
            Fate::Answered(Delivered::Trailed { kind, body }) => {
                let payload = match body.is_empty() {
                    true => problem(&kind, "the response is not whole".into()),
                    false => body,
                };
                error_type = Some(kind);
                (payload, Some("error"), true)
            }
            Fate::Answered(Delivered::TooLarge(most)) => {
                // Whole ones have always been said to be this long.
                let most = if most == MAX_ANSWER { 6_291_556 } else { most };
                let text = format!(
                    "Response payload size exceeded maximum allowed payload size ({most} bytes)."
                );
                let payload = problem("Function.ResponseSizeTooLarge", text);
                (payload, Some("error"), true)
            }
            Fate::Answered(Delivered::Broken(why)) => {
                let text = format!("The response broke off: {why}");
                (
                    problem("Runtime.TruncatedResponse", text),
                    Some("error"),
                    false,
                )
            }
            Fate::TimedOut => {
                let text = format!("Task timed out after {limit:.2} seconds");
                (problem("Sandbox.Timedout", text), Some("timeout"), false)
            }
            Fate::Ended(Ended::Exited(status)) => {
                let text = format!("Runtime exited with error: {status}");
                (problem("Runtime.ExitError", text), Some("error"), false)
            }
            Fate::Ended(Ended::Gone(why)) => {
                let text = format!("Runtime exited without providing a reason: {why}");
                (problem("Runtime.ExitError", text), Some("error"), false)
            }
            Fate::NotGiven(why) => (problem("Sandbox.Failure", why), Some("error"), false),
        };
        // Its VMM has some of its own besides, which is no business of the function's.
        let most = self.deployment.memory.bytes();
        let memory_peak = self.clone.memory_peak().map(|peak| peak.min(most));
        let log_tail = report(&Report {
            request_id: id,
            version: &self.deployment.version,
            memory: self.deployment.memory,
            memory_peak,
            timings: self.timings,
            temperature: self.temperature,
            status,
            output: self.clone.output.take(),
        });
        let completed = Completed {
            payload,
            content_type,
            error: status.map(|_| FunctionError::Unhandled),
            error_type,
            log_tail,
            timings: self.timings,
            temperature: self.temperature,
            memory_peak,
        };
        (completed, can_serve)
    }
}
