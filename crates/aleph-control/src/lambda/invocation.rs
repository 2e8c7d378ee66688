//! One event through one version of a function.

use super::admission::Limits;
use super::error::LambdaError;
use super::function::Function;
use super::trace::Trace;
use super::{Functions, dice};
use aleph_executor::functions::{
    Completed, Concurrency, FunctionError, Invocation, InvokeError, ResponseSink,
};
use bytes::Bytes;
use serde_json::json;
use std::sync::Arc;
use tracing::Instrument;

/// The most bytes of an event, and of an answer, that somebody waits for.
pub(crate) const MOST_EVENT: usize = 6 * 1024 * 1024;
/// The most bytes of an answer: an event's, and some for what surrounds it.
const MOST_ANSWER: usize = 6_291_556;
/// The most bytes of an event for which nobody waits.
pub(crate) const MOST_ASYNCHRONOUS: usize = 256 * 1024;

/// Which function is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct To<'a> {
    pub(super) function: &'a Arc<Function>,
    pub(super) qualifier: Option<&'a str>,
}

/// An invocation that was carried out.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `$LATEST`, or the number of what ran.
    pub(crate) version: String,
    pub(crate) completed: Completed,
}

/// Why an invocation was not carried out.
#[derive(Debug)]
pub(crate) enum NotRun {
    /// It cannot be as things are: there is no such version, or it is not ready.
    Refused(LambdaError),
    /// It may be later.
    Invoke(InvokeError),
}

impl From<NotRun> for LambdaError {
    fn from(not: NotRun) -> Self {
        match not {
            NotRun::Refused(error) => error,
            NotRun::Invoke(error) => error.into(),
        }
    }
}

impl Functions {
    /// Runs an event through a function.
    pub(super) async fn carry_out(
        &self,
        function: &Arc<Function>,
        qualifier: Option<&str>,
        invocation: Invocation,
    ) -> Result<Answer, NotRun> {
        let to = To {
            function,
            qualifier,
        };
        self.carry_out_into(to, invocation, None).await
    }

    /// Runs an event through a function, and counts it; with a sink, the answer is written into
    /// that as it comes. What is logged on the way says to which trace it belongs.
    pub(super) async fn carry_out_into(
        &self,
        to: To<'_>,
        invocation: Invocation,
        sink: Option<&mut ResponseSink>,
    ) -> Result<Answer, NotRun> {
        let function = to.function;
        let trace = invocation.trace.as_deref().and_then(Trace::of_xray);
        let span = tracing::info_span!(
            "invocation",
            function = function.name,
            request_id = invocation.request_id,
            trace_id = trace.map(|trace| trace.id()),
        );
        let series = self.metrics.of(&function.account, &function.name);
        let running = series.run();
        let whole = sink.is_none();
        let work = self.run_version(to, invocation, sink);
        let mut done = work.instrument(span.clone()).await;
        if whole {
            done = done.map(|answer| Answer {
                completed: bounded(answer.completed),
                ..answer
            });
        }
        drop(running);
        let outcome = series.ended(&done);
        span.in_scope(|| tracing::debug!(outcome, "an invocation has ended"));
        done
    }

    async fn run_version(
        &self,
        to: To<'_>,
        invocation: Invocation,
        mut sink: Option<&mut ResponseSink>,
    ) -> Result<Answer, NotRun> {
        let To {
            function,
            qualifier,
        } = to;
        let version = function
            .resolve(qualifier, dice)
            .ok_or_else(|| NotRun::Refused(LambdaError::no_function(&invocation.arn)))?;
        let deployment = Self::serving(version).map_err(NotRun::Refused)?;
        let (account, name) = (&function.account, &function.name);
        let limits = Limits {
            account: u64::from(self.account_concurrency),
            reserved: self.registry.reserved(account),
            own: function.head.reserved,
        };
        let _place = self
            .admission
            .enter(account, name, limits)
            .map_err(NotRun::Invoke)?;
        let concurrency = Concurrency {
            reserved: function.head.reserved,
            provisioned: function.provisioned(&version.version),
        };
        let mut invoke = async |invocation| {
            let (deployment, runner) = (Arc::clone(deployment), &self.runner);
            let invoked = match sink.as_deref_mut() {
                Some(sink) => runner.invoke_streaming(deployment, concurrency, invocation, sink),
                None => runner.invoke(deployment, concurrency, invocation),
            };
            invoked.await
        };
        let completed = match invoke(invocation.clone()).await {
            // A runner may have lost what it had, with its host's boot for example.
            Err(InvokeError::NotReady(_)) => {
                let prepared = self.runner.prepare(Arc::clone(deployment)).await;
                prepared.map_err(|problem| NotRun::Invoke(InvokeError::Place(problem)))?;
                invoke(invocation).await
            }
            done => done,
        };
        Ok(Answer {
            version: version.version.clone(),
            completed: completed.map_err(NotRun::Invoke)?,
        })
    }
}

/// An answer that is too long is an error of the function.
fn bounded(mut completed: Completed) -> Completed {
    let length = completed.payload.len();
    if length > MOST_ANSWER {
        let message = format!(
            "Response payload size ({length} bytes) exceeded maximum allowed payload size \
             ({MOST_ANSWER} bytes)."
        );
        let error = json!({
            "errorMessage": message, "errorType": "Function.ResponseSizeTooLarge",
        });
        completed.payload = Bytes::from(error.to_string());
        completed.error = Some(FunctionError::Unhandled);
    }
    completed
}
