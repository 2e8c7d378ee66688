//! Events that the node makes by itself, and dead letters of those that no queue has.

use super::{Events, Record, raw, row};
use crate::lambda::Functions;
use crate::lambda::error::LambdaError;
use crate::lambda::metrics::Metrics;
use aleph_executor::functions::Invocation;
use aleph_executor::journal::{EventRow, Journal, Waiting};
use aleph_types::Timestamp;
use serde_json::json;
use std::io;
use std::time::Duration;

/// Why an event goes to the dead letters that is for a function that there is not.
pub(crate) const NO_FUNCTION: &str = "FunctionNotFound";

/// How an event is made, beside what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Made<'m> {
    pub(crate) account: &'m str,
    pub(crate) function: &'m str,
    pub(crate) qualifier: Option<String>,
    /// How often it is tried again, instead of what the function says.
    pub(crate) retries: Option<u32>,
    /// How old it may become, in seconds, instead of what the function says.
    pub(crate) age: Option<u32>,
    /// Whom to tell where it fails, instead of what the function says.
    pub(crate) on_failure: Option<String>,
    /// From when on its age counts: milliseconds since 1970.
    pub(crate) accepted: i64,
}

impl Made<'_> {
    /// The event, to be put into the journal by whoever made it.
    pub(crate) fn event(&self, invocation: Invocation) -> Result<Waiting, LambdaError> {
        let record = Record {
            qualifier: self.qualifier.clone(),
            arn: invocation.arn,
            client_context: invocation.client_context,
            trace: invocation.trace,
            accepted: self.accepted,
            failures: 0,
            refusals: 0,
            hops: 0,
            retries: self.retries,
            age: self.age,
            on_failure: self.on_failure.clone(),
        };
        let id = invocation.request_id;
        let row = row(id, self.account, self.function, super::now(), &record)?;
        let payload = invocation.payload.to_vec();
        Ok(Waiting { row, payload })
    }
}

impl Events {
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// How old an event may become where nobody says.
    pub(crate) fn age(&self) -> Duration {
        self.policy.age
    }

    /// How far behind what has fired the clock may be.
    pub(crate) fn put_back(&self) -> Duration {
        self.policy.put_back
    }

    /// Whether another event of an account may wait.
    pub(crate) fn has_room(&self, account: &str) -> bool {
        let most = self.policy.waiting;
        let in_all = most.saturating_mul(super::ACCOUNTS_WAITING);
        self.queue.has_room(account, most, in_all)
    }

    /// An event is in the journal, and waits from now on.
    pub(crate) fn push(&self, row: &EventRow, metrics: &Metrics) {
        if let Ok(record) = serde_json::from_str::<Record>(&row.record) {
            let series = metrics.of(&row.account, &row.function);
            series.wait(record.accepted, 1);
        }
        self.queue.push(row.due, row.request.clone(), &row.account);
    }
}

impl Functions {
    /// Writes the dead letter of an event that no function is given any more.
    pub(crate) async fn left(
        &self,
        account: &str,
        arn: &str,
        why: &str,
        invocation: &Invocation,
    ) -> io::Result<()> {
        let letter = json!({
            "version": "1.0",
            "timestamp": crate::lambda::model::time(Timestamp::now()),
            "requestContext": {
                "requestId": invocation.request_id,
                "functionArn": arn,
                "condition": why,
                "approximateInvokeCount": 0,
            },
            "requestPayload": raw(&invocation.payload),
        });
        self.events.letters.write(account, &letter).await
    }
}
