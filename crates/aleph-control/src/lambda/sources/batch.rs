//! What becomes of messages of a stream: an event, and what the server is told of them.

use super::PAUSE;
use super::event::{Position, event, of_stream, size_of};
use super::mapping::{Mapping, Status};
use super::room::Room;
use super::stream::PROGRESS;
use crate::lambda::Functions;
use crate::lambda::events::wall;
use crate::lambda::invocation::{MOST_EVENT, NotRun};
use crate::lambda::{LambdaError, uuid_of};
use aleph_executor::functions::{Invocation, InvokeError};
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

/// The longest pause before a message comes again.
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// The longest pause before what could not be run is tried again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What messages are carried out with.
pub(super) struct Batch {
    pub(super) functions: Functions,
    pub(super) room: Arc<Room>,
    pub(super) account: String,
    pub(super) id: String,
    pub(super) arn: String,
    pub(super) mapping: Arc<Mapping>,
    pub(super) status: Status,
    pub(super) stop: CancellationToken,
}

/// What a function says of messages that failed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Failures {
    batch_item_failures: Vec<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    item_identifier: String,
}

/// What came of an event.
enum Outcome {
    /// All succeeded but these, by their numbers in the stream.
    Done(BTreeSet<u64>),
    Failed,
    /// Nothing did: the node stops.
    Left,
}

impl Batch {
    pub(super) async fn carry(&self, messages: Vec<Message>) {
        let (mut placed, mut strangers) = (Vec::new(), Vec::new());
        for message in messages {
            match position(&message) {
                Some(at) => placed.push((message, at)),
                None => strangers.push(message),
            }
        }
        // What does not say where it is from is none of a stream's.
        say(&strangers, AckKind::Term).await;
        let old = |at: &Position| {
            let age = self.mapping.age.map(|age| i64::from(age) * 1000);
            age.is_some_and(|age| wall().saturating_sub(at.time) > age)
        };
        let (late, placed) = split(placed, |(_, at)| old(at));
        self.give_up(&late, "EventAgeExceeded").await;
        let (large, placed) = split(placed, |(message, _)| size_of(message) > MOST_EVENT);
        self.give_up(&large, "EventTooLarge").await;
        if placed.is_empty() {
            return;
        }
        let outcome = {
            let messages: Vec<_> = placed.iter().map(|(message, _)| message.clone()).collect();
            in_progress(&messages, self.run(&placed)).await
        };
        match outcome {
            Outcome::Left => {
                let all: Vec<_> = placed.into_iter().map(|(message, _)| message).collect();
                say(&all, AckKind::Nak(None)).await;
            }
            Outcome::Failed => self.again(placed).await,
            Outcome::Done(failed) => {
                let (failed, done) = split(placed, |(_, at)| failed.contains(&at.sequence));
                let done: Vec<_> = done.into_iter().map(|(message, _)| message).collect();
                say(&done, AckKind::Ack).await;
                match failed.is_empty() {
                    true => self.status.result("OK"),
                    false => self.again(failed).await,
                }
            }
        }
    }

    fn invocation(&self, placed: &[(Message, Position)]) -> Invocation {
        let mut words = vec!["stream".to_owned(), self.id.clone()];
        for (_, at) in placed {
            // A stream that was made anew begins to count anew.
            words.push(format!("{}.{}", at.sequence, at.time));
        }
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let records = placed.iter().map(|(message, at)| of_stream(message, at));
        Invocation {
            request_id: uuid_of(&words),
            payload: event(&records.collect::<Vec<_>>()),
            arn: self.arn.clone(),
            client_context: None,
            trace: None,
        }
    }

    /// Runs an event. What cannot be run now is tried until it can.
    async fn run(&self, placed: &[(Message, Position)]) -> Outcome {
        let invocation = self.invocation(placed);
        let mut pause = PAUSE / 4;
        loop {
            let function = self
                .functions
                .registry
                .get(&self.account, &self.mapping.function);
            let why = match function {
                None => format!("the function {} does not exist", self.mapping.function),
                Some(function) => {
                    // While it waits to be tried again others have its place.
                    let _place = tokio::select! {
                        place = self.room.events.acquire() => place,
                        () = self.stop.cancelled() => return Outcome::Left,
                    };
                    let qualifier = self.mapping.qualifier.as_deref();
                    let done = self
                        .functions
                        .carry_out(&function, qualifier, invocation.clone());
                    match done.await {
                        Ok(answer) if answer.completed.error.is_some() => return Outcome::Failed,
                        Ok(answer) => return self.said(&answer.completed.payload, placed),
                        Err(NotRun::Invoke(InvokeError::ShuttingDown)) => return Outcome::Left,
                        Err(not) => LambdaError::from(not).to_string(),
                    }
                }
            };
            self.status.problem(&why);
            tokio::select! {
                () = sleep(pause) => pause = LONGEST_WAIT.min(pause * 2),
                () = self.stop.cancelled() => return Outcome::Left,
            }
        }
    }

    /// Which messages a function says have failed.
    fn said(&self, answer: &Bytes, placed: &[(Message, Position)]) -> Outcome {
        if !self.mapping.partial {
            return Outcome::Done(BTreeSet::new());
        }
        let said = match serde_json::from_slice::<Option<Failures>>(answer) {
            Ok(said) => said.unwrap_or_default(),
            Err(_) => return Outcome::Failed,
        };
        let mut failed = BTreeSet::new();
        for failure in said.batch_item_failures {
            let number = failure.item_identifier.parse::<u64>().ok();
            let known = number.filter(|n| placed.iter().any(|(_, at)| at.sequence == *n));
            // As AWS Lambda does: who names what was not there is not understood.
            let Some(number) = known else {
                return Outcome::Failed;
            };
            failed.insert(number);
        }
        Outcome::Done(failed)
    }

    /// What failed comes again, or is given up.
    async fn again(&self, failed: Vec<(Message, Position)>) {
        self.status.problem("Function call failed");
        let last = |at: &Position| {
            let retries = self.mapping.retries.map(i64::from);
            retries.is_some_and(|retries| at.deliveries > retries)
        };
        let (last, again) = split(failed, |(_, at)| last(at));
        self.give_up(&last, "RetriesExhausted").await;
        for (message, at) in again {
            let doubled = u32::try_from(at.deliveries - 1).unwrap_or(0).min(10);
            let delay = LONGEST_DELAY.min(PAUSE * (1 << doubled));
            say(&[message], AckKind::Nak(Some(delay))).await;
        }
    }

    /// Writes dead letters. What cannot be written comes again.
    async fn give_up(&self, placed: &[(Message, Position)], why: &str) {
        for one in placed {
            let mut invocation = self.invocation(std::slice::from_ref(one));
            if invocation.payload.len() > MOST_EVENT {
                let mut record = of_stream(&one.0, &one.1);
                record["data"] = Value::Null;
                invocation.payload = event(&[record]);
            }
            let left = self
                .functions
                .left(&self.account, &self.arn, why, &invocation);
            let kind = match left.await {
                Ok(()) => AckKind::Term,
                Err(error) => {
                    tracing::error!(%error, arn = self.arn, "a dead letter cannot be written");
                    AckKind::Nak(Some(LONGEST_DELAY))
                }
            };
            say(std::slice::from_ref(&one.0), kind).await;
        }
    }
}

/// Tells the server that messages are worked on until something is done.
pub(super) async fn in_progress<T>(messages: &[Message], work: impl Future<Output = T>) -> T {
    let mut progress = interval(PROGRESS);
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = progress.tick() => say(messages, AckKind::Progress).await,
        }
    }
}

/// Tells the server of messages.
pub(super) async fn say(messages: &[Message], kind: AckKind) {
    for message in messages {
        // What is not heard is said again, or the message comes again.
        if let Err(error) = message.ack_with(kind).await {
            tracing::debug!(%error, "a message cannot be acknowledged");
        }
    }
}

fn position(message: &Message) -> Option<Position> {
    let info = message.info().ok()?;
    Some(Position {
        stream: info.stream.to_owned(),
        sequence: info.stream_sequence,
        time: info.published.timestamp_millis(),
        deliveries: info.delivered,
    })
}

fn split<T>(all: Vec<T>, first: impl Fn(&T) -> bool) -> (Vec<T>, Vec<T>) {
    all.into_iter().partition(first)
}
