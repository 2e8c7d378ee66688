//! The durable queue of asynchronous invocations.
//!
//! ```text
//! accepted ─▶ journal ─▶ 202         due ─▶ run ─▶ done ─▶ out of the journal
//!                                     ▲       ├─▶ failed: again, at most `retries` times
//!                                     └───────┴─▶ throttled: again, until it is too old
//! ```
//! An event is in the journal before its sender hears of it, and leaves it once it is known what
//! came of it. A try that panics has failed. What was under way when the daemon died runs again: at
//! least once, with the same request id on each try. In memory are ids and times alone. Times are those
//! of `clock`: a step of the host's clock makes no event too old, and none due.
//!
//! What cannot be carried out is told to the failure destination, where there is one, and is
//! written to `STATE/functions/dead-letters/ACCOUNT/letters.jsonl`; of this file one earlier is
//! kept. Where it cannot be written the event stays, and is tried again later.

mod clock;
mod letters;
mod made;
mod queue;

pub(super) use made::{Made, NO_FUNCTION};
pub(super) use queue::LONGEST_PAUSE;

use super::error::LambdaError;
use super::function::Function;
use super::invocation::{Answer, NotRun};
use super::metrics::Metrics;
use super::{Functions, random, random_id};
use aleph_executor::functions::{Invocation, InvokeError};
use aleph_executor::journal::{EventRow, Journal, JournalError, Waiting};
use aleph_types::Timestamp;
use bytes::Bytes;
pub(super) use clock::{now, wall};
use futures_util::FutureExt;
use letters::Letters;
use queue::{Due, Queue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How many events are under way at once.
const AT_ONCE: usize = 64;
/// How many times the events of one account may wait in all.
const ACCOUNTS_WAITING: usize = 10;
/// How often an event that leads to another may go on: a destination may lead back.
const MOST_HOPS: u32 = 16;

/// How events are tried again where a function does not say.
#[derive(Debug, Clone)]
pub struct EventPolicy {
    /// How often after the first failure.
    pub retries: u32,
    /// The pause before each of them; the last counts for all that follow.
    pub pauses: Vec<Duration>,
    /// The first pause after an event was throttled. Each is twice the one before.
    pub throttled: Duration,
    /// How old an event may become.
    pub age: Duration,
    /// How many events of an account may wait.
    pub waiting: usize,
    /// How far behind what they have fired the clock may be before schedules go by it again.
    pub put_back: Duration,
}

impl Default for EventPolicy {
    fn default() -> Self {
        Self {
            retries: 2,
            pauses: vec![Duration::from_secs(60), Duration::from_secs(120)],
            throttled: Duration::from_secs(1),
            age: Duration::from_secs(6 * 3600),
            waiting: 100_000,
            // As cron has it: more than clocks are put back for the summer's end.
            put_back: Duration::from_secs(3 * 3600),
        }
    }
}

/// An event, beside its payload.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    qualifier: Option<String>,
    arn: String,
    client_context: Option<String>,
    trace: Option<String>,
    /// Milliseconds since 1970.
    accepted: i64,
    /// How often the function failed.
    failures: u32,
    /// How often it could not be run in a row.
    refusals: u32,
    /// How many events led to this one.
    hops: u32,
    /// What whoever made it said of it, instead of what its function says: how often it is tried
    /// again, how old it may become in seconds, and whom to tell where it fails.
    #[serde(default)]
    retries: Option<u32>,
    #[serde(default)]
    age: Option<u32>,
    #[serde(default)]
    on_failure: Option<String>,
}

/// The queue.
pub(crate) struct Events {
    journal: Journal,
    policy: EventPolicy,
    queue: Queue,
    letters: Letters,
}

impl Events {
    pub(super) async fn open(
        journal: Journal,
        letters: PathBuf,
        policy: EventPolicy,
        metrics: &Metrics,
    ) -> Result<Self, JournalError> {
        let queue = Queue::default();
        let lost = journal.remove_lost_function_events().await?;
        if lost > 0 {
            tracing::warn!(lost, "events without a function are left out");
        }
        for (due, request, account) in journal.function_events_due().await? {
            queue.push(due, request, &account);
        }
        for waiting in journal.function_events_by("$.accepted").await? {
            let series = metrics.of(&waiting.account, &waiting.function);
            series.wait(waiting.number, waiting.events);
        }
        Ok(Self {
            journal,
            policy,
            queue,
            letters: Letters::new(letters),
        })
    }
}

/// An event that is under way, until it is dropped.
struct Attempt {
    functions: Functions,
    next: Due,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.functions.events.queue.done(&self.next.account);
    }
}

/// Works on the queue until the node stops.
pub(super) fn start(functions: &Functions) {
    let functions = functions.clone();
    tokio::spawn(async move {
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let turn = tokio::select! {
                turn = Arc::clone(&turns).acquire_owned() => turn,
                () = functions.stopping.cancelled() => return,
            };
            let Ok(turn) = turn else { return };
            let next = loop {
                match functions.events.queue.pop(now()) {
                    Ok(next) => break next,
                    Err(pause) => tokio::select! {
                        _ = timeout(pause, functions.events.queue.changed()) => {}
                        () = functions.stopping.cancelled() => return,
                    },
                }
            };
            let attempt = Attempt {
                functions: functions.clone(),
                next,
                _turn: turn,
            };
            functions.work.spawn(async move {
                let Attempt {
                    functions, next, ..
                } = &attempt;
                let tried = AssertUnwindSafe(functions.attempt(next)).catch_unwind();
                if tried.await.is_ok() {
                    return;
                }
                // What an event brings about in this program is a failure like others: it does
                // not wait for ever.
                let failed = AssertUnwindSafe(functions.failed(next)).catch_unwind();
                if failed.await.is_err() {
                    functions.later(&next.request, &next.account, &Panicked);
                }
            });
        }
    });
}

/// Handling an event panicked.
#[derive(Debug, thiserror::Error)]
#[error("its handling panicked")]
struct Panicked;

impl Functions {
    /// Takes an event for which nobody waits. It is durable once this returns.
    pub(super) async fn enqueue(
        &self,
        function: &Function,
        qualifier: Option<String>,
        invocation: Invocation,
    ) -> Result<(), LambdaError> {
        let all = vec![invocation];
        self.enqueue_all(function, qualifier, all).await
    }

    /// Takes events for which nobody waits, all of them or none. They are durable once this
    /// returns. One whose request waits already is the same event, sent again.
    pub(super) async fn enqueue_all(
        &self,
        function: &Function,
        qualifier: Option<String>,
        invocations: Vec<Invocation>,
    ) -> Result<(), LambdaError> {
        let (account, name) = (&function.account, &function.name);
        // The last of them needs room behind the others.
        let others = invocations.len().saturating_sub(1);
        let most = self.events.policy.waiting;
        let in_all = most.saturating_mul(ACCOUNTS_WAITING);
        let (most, in_all) = (most.saturating_sub(others), in_all.saturating_sub(others));
        if !self.events.queue.has_room(account, most, in_all) {
            return Err(LambdaError::throttled(
                Duration::from_secs(5),
                "CallerRateLimitExceeded",
                "Rate Exceeded. Too many events wait.",
            ));
        }
        let now = now();
        let mut all = Vec::with_capacity(others + 1);
        for invocation in invocations {
            let record = Record {
                qualifier: qualifier.clone(),
                arn: invocation.arn,
                client_context: invocation.client_context,
                trace: invocation.trace,
                accepted: now,
                failures: 0,
                refusals: 0,
                hops: 0,
                retries: None,
                age: None,
                on_failure: None,
            };
            all.push(Waiting {
                row: row(invocation.request_id, account, name, now, &record)?,
                payload: invocation.payload.to_vec(),
            });
        }
        let requests: Vec<_> = all.iter().map(|one| one.row.request.clone()).collect();
        let added = self.events.journal.add_function_events(all).await?;
        let Some(added) = added else {
            // It was deleted in the meantime.
            let arn = self.identity.arn(account, name, None);
            return Err(LambdaError::no_function(&arn));
        };
        let series = self.metrics.of(account, name);
        let new = requests.into_iter().zip(added).filter(|(_, new)| *new);
        for (request, _) in new {
            series.wait(now, 1);
            self.events.queue.push(now, request, account);
        }
        Ok(())
    }

    /// Tries an event once, and keeps what came of it.
    async fn attempt(&self, next: &Due) {
        let request = next.request.as_str();
        let waiting = match self.events.journal.function_event(request).await {
            Ok(Some(waiting)) => waiting,
            // Its function was deleted.
            Ok(None) => return,
            Err(error) => return self.later(request, &next.account, &error),
        };
        let Waiting { row, payload } = waiting;
        let Ok(record) = serde_json::from_str::<Record>(&row.record) else {
            tracing::error!(request, "an event cannot be read and is left out");
            return;
        };
        let Some(function) = self.registry.get(&row.account, &row.function) else {
            // It was deleted just now, or only its events were left.
            let journal = &self.events.journal;
            if let Err(error) = journal.finish_function_event(&row, None).await {
                self.later(request, &row.account, &error);
            }
            return;
        };
        let payload = Bytes::from(payload);
        let (failure, answer) = match self.too_old(&function, &record) {
            true => (Some("EventAgeExceeded"), None),
            false => {
                let invocation = Invocation {
                    request_id: request.to_owned(),
                    payload: payload.clone(),
                    arn: record.arn.clone(),
                    client_context: record.client_context.clone(),
                    trace: record.trace.clone(),
                };
                let qualifier = record.qualifier.as_deref();
                match self.carry_out(&function, qualifier, invocation).await {
                    Ok(answer) if answer.completed.error.is_none() => (None, Some(answer)),
                    Ok(answer) => match self.again(&function, &record) {
                        Some((due, record)) => return self.delay(row, due, &record).await,
                        None => (Some("RetriesExhausted"), Some(answer)),
                    },
                    // It waits in the journal for the next daemon.
                    Err(NotRun::Invoke(InvokeError::ShuttingDown)) => return,
                    Err(not) => {
                        let (trace, error) = (record.trace.as_deref(), LambdaError::from(not));
                        tracing::debug!(request, trace, %error, "an event waits");
                        let (due, record) = self.pause(record);
                        return self.delay(row, due, &record).await;
                    }
                }
            }
        };
        let end = End {
            row: &row,
            record: &record,
            payload: &payload,
            failure,
            answer,
        };
        self.finish(&function, &end).await;
    }

    /// Counts a try that did not come to its end as one that failed.
    async fn failed(&self, next: &Due) {
        let request = next.request.as_str();
        tracing::error!(request, "a try of an event has panicked");
        let Waiting { row, payload } = match self.events.journal.function_event(request).await {
            Ok(Some(waiting)) => waiting,
            Ok(None) => return,
            Err(error) => return self.later(request, &next.account, &error),
        };
        let Ok(record) = serde_json::from_str::<Record>(&row.record) else {
            return;
        };
        // Without its function, the next try removes it.
        let Some(function) = self.registry.get(&row.account, &row.function) else {
            return self.later(request, &row.account, &Panicked);
        };
        if let Some((due, record)) = self.again(&function, &record) {
            return self.delay(row, due, &record).await;
        }
        let end = End {
            row: &row,
            record: &record,
            payload: &payload.into(),
            failure: Some("RetriesExhausted"),
            answer: None,
        };
        self.finish(&function, &end).await;
    }

    fn too_old(&self, function: &Function, record: &Record) -> bool {
        let config = function.event_config(record.qualifier.as_deref());
        let age = record.age.or(config.and_then(|config| config.age));
        let age = age.map_or(self.events.policy.age, |age| {
            Duration::from_secs(age.into())
        });
        now().saturating_sub(record.accepted) > milliseconds(age)
    }

    /// When an event is tried again that failed; `None` where it was its last time.
    fn again(&self, function: &Function, record: &Record) -> Option<(i64, Record)> {
        let policy = &self.events.policy;
        let config = function.event_config(record.qualifier.as_deref());
        let retries = config.and_then(|config| config.retries);
        let retries = record.retries.or(retries);
        if record.failures >= retries.unwrap_or(policy.retries) {
            return None;
        }
        let at = usize::try_from(record.failures).unwrap_or(usize::MAX);
        let pause = policy.pauses.get(at).or(policy.pauses.last());
        let pause = pause.copied().unwrap_or(policy.throttled);
        let record = Record {
            failures: record.failures + 1,
            refusals: 0,
            ..record.clone()
        };
        Some((now() + milliseconds(pause), record))
    }

    /// When an event is tried again that could not be run.
    fn pause(&self, record: Record) -> (i64, Record) {
        let factor = 1_u32 << record.refusals.min(16);
        let pause = self.events.policy.throttled.saturating_mul(factor);
        let pause = milliseconds(pause.min(LONGEST_PAUSE));
        // Those that were throttled together do not come back together.
        let spread = i64::from(random::<1>()[0]) * pause / 1024;
        let refusals = record.refusals.saturating_add(1);
        (now() + pause + spread, Record { refusals, ..record })
    }

    async fn delay(&self, row: EventRow, due: i64, record: &Record) {
        let Ok(text) = serde_json::to_string(record) else {
            return;
        };
        let journal = &self.events.journal;
        match journal.delay_function_event(&row, due, text).await {
            // It was deleted with its function.
            Ok(false) => {}
            Ok(true) => self.events.queue.push(due, row.request, &row.account),
            Err(error) => self.later(&row.request, &row.account, &error),
        }
    }

    /// The disk or the journal fails: the event is looked at again after a while.
    fn later(&self, request: &str, account: &str, error: &dyn std::error::Error) {
        tracing::error!(%error, request, "an event cannot be kept up with");
        let due = now() + milliseconds(LONGEST_PAUSE);
        self.events.queue.push(due, request.to_owned(), account);
    }

    /// An event is done with: whoever is to know of it is told, and it leaves the journal.
    async fn finish(&self, function: &Function, end: &End<'_>) {
        let letter = end.letter(self);
        if end.failure.is_some() {
            let written = self.events.letters.write(&end.row.account, &letter).await;
            if let Err(error) = written {
                return self.later(&end.row.request, &end.row.account, &error);
            }
        }
        let series = self.metrics.of(&end.row.account, &end.row.function);
        let config = function.event_config(end.record.qualifier.as_deref());
        let told = match end.failure {
            Some(_) => end
                .record
                .on_failure
                .clone()
                .or_else(|| config.and_then(|config| config.on_failure.clone()))
                .or_else(|| function.latest.settings.dead_letter.clone()),
            None => config.and_then(|config| config.on_success.clone()),
        };
        let next = told.and_then(|arn| self.follow(&arn, end, &letter));
        let pushed = next.as_ref().map(|next| next.row.clone());
        let journal = &self.events.journal;
        match journal.finish_function_event(end.row, next).await {
            Ok(follows) => {
                series.settle(end.record.accepted);
                if end.failure.is_some() {
                    series.bury();
                }
                if let Some(next) = pushed.filter(|_| follows) {
                    // It was accepted when it is due.
                    let series = self.metrics.of(&next.account, &next.function);
                    series.wait(next.due, 1);
                    let queue = &self.events.queue;
                    queue.push(next.due, next.request, &next.account);
                }
            }
            Err(error) => self.later(&end.row.request, &end.row.account, &error),
        }
    }

    /// The event that tells a function what came of another.
    fn follow(&self, arn: &str, end: &End<'_>, letter: &Value) -> Option<Waiting> {
        let account = &end.row.account;
        let target = self.identity.target(account, arn).ok();
        let there = target.filter(|target| self.registry.get(account, &target.name).is_some());
        let Some(target) = there.filter(|_| end.record.hops < MOST_HOPS) else {
            tracing::warn!(arn, "nobody is told what became of an event");
            return None;
        };
        let now = now();
        let record = Record {
            qualifier: target.qualifier,
            arn: arn.to_owned(),
            client_context: None,
            trace: end.record.trace.clone(),
            accepted: now,
            failures: 0,
            refusals: 0,
            hops: end.record.hops + 1,
            retries: None,
            age: None,
            on_failure: None,
        };
        let row = row(random_id(), account, &target.name, now, &record).ok()?;
        let payload = letter.to_string().into_bytes();
        Some(Waiting { row, payload })
    }
}

/// How an event ended.
struct End<'e> {
    row: &'e EventRow,
    record: &'e Record,
    payload: &'e Bytes,
    /// Why it could not be carried out.
    failure: Option<&'static str>,
    answer: Option<Answer>,
}

impl End<'_> {
    /// What is told of it, in the form that destinations of AWS Lambda get.
    fn letter(&self, functions: &Functions) -> Value {
        let version = self
            .answer
            .as_ref()
            .map_or("$LATEST", |answer| &answer.version);
        let arn = functions
            .identity
            .arn(&self.row.account, &self.row.function, Some(version));
        let tries = self.record.failures + u32::from(self.answer.is_some());
        let mut letter = json!({
            "version": "1.0",
            "timestamp": super::model::time(Timestamp::now()),
            "requestContext": {
                "requestId": self.row.request,
                "functionArn": arn,
                "condition": self.failure.unwrap_or("Success"),
                "approximateInvokeCount": tries,
            },
            "requestPayload": raw(self.payload),
        });
        if let Some(answer) = &self.answer {
            letter["responseContext"] = json!({
                "statusCode": 200, "executedVersion": answer.version,
            });
            if let Some(error) = answer.completed.error {
                letter["responseContext"]["functionError"] = error.as_str().into();
            }
            letter["responsePayload"] = raw(&answer.completed.payload);
        }
        letter
    }
}

/// JSON as it is; text where it is none.
fn raw(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|_| String::from_utf8_lossy(bytes).into_owned().into())
}

fn row(
    request: String,
    account: &str,
    function: &str,
    due: i64,
    record: &Record,
) -> Result<EventRow, LambdaError> {
    let record = serde_json::to_string(record)
        .map_err(|_| LambdaError::internal("an event cannot be written down"))?;
    Ok(EventRow {
        request,
        account: account.to_owned(),
        function: function.to_owned(),
        due,
        record,
    })
}

pub(super) fn milliseconds(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
pub(in crate::lambda) mod tests;
