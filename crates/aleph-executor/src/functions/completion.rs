//! What a caller gets of what became of an event.

use super::conversation::Answer;
use super::deployment::Deployment;
use super::instance::{Fate, Instance};
use super::invocation::{Completed, FunctionError, Temperature, Timings};
use super::output::Ended;
use super::report::{Report, report};
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
        let (payload, status, can_serve) = match fate {
            Fate::Answered(Answer::Response(payload)) => (payload, None, true),
            Fate::Answered(Answer::Error(payload)) => (payload, Some("error"), true),
            Fate::Answered(Answer::TooLarge) => {
                let text = "Response payload size exceeded maximum allowed payload size \
                            (6291556 bytes).";
                let payload = problem("Function.ResponseSizeTooLarge", text.into());
                (payload, Some("error"), true)
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
            error: status.map(|_| FunctionError::Unhandled),
            log_tail,
            timings: self.timings,
            temperature: self.temperature,
            memory_peak,
        };
        (completed, can_serve)
    }
}
