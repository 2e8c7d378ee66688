//! Messages of core NATS.
//!
//! Nobody keeps a message that was given: what has come is carried out, also where its mapping
//! ends while more are waited for.

use super::event::{event, of_subject, size_of};
use super::server::{FLUSH, flushed};
use super::{Connection, PAUSE, Work};
use crate::lambda::error::LambdaError;
use crate::lambda::events::{NO_FUNCTION, wall};
use crate::lambda::invocation::{MOST_ASYNCHRONOUS, MOST_EVENT};
use crate::lambda::random_id;
use aleph_executor::functions::Invocation;
use async_nats::connection::State;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Events of a subject that are written down, and requests that are answered, at once.
const AT_ONCE: usize = 64;
/// How many KiB they may have together.
const KIB_AT_ONCE: u32 = 16 * 1024;
/// The most events that are taken at the end: of what a subscription holds, and of what is on
/// its way.
const MOST_LEFT: usize = 4096;
/// How long messages that have come are waited for at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Takes messages until it is told to end; then what has come is still taken.
pub(super) async fn serve(
    work: &Work,
    connection: Connection,
    subject: &str,
) -> Result<(), String> {
    let Connection { client, .. } = connection;
    let subscribed = client
        .queue_subscribe(subject.to_owned(), work.name())
        .await;
    let subscribed = subscribed.map_err(|error| format!("cannot subscribe: {error}"))?;
    // Nothing is sent while the connection is lost.
    tokio::select! {
        flushed = flushed(&client) => {
            flushed.map_err(|error| format!("cannot subscribe: {error}"))?;
        }
        () = work.stop.cancelled() => return Ok(()),
    }
    work.status.begun();
    let mut taking = Taking {
        most: usize::try_from(work.mapping.batch).unwrap_or(1),
        window: Duration::from_secs(work.mapping.window.into()),
        messages: subscribed,
        next: None,
    };
    let ended = take(work, &client, &mut taking).await;
    let end = Instant::now() + DRAIN;
    if client.connection_state() == State::Connected {
        let _ = timeout(FLUSH, taking.messages.drain()).await;
        for _ in 0..MOST_LEFT {
            let Some(batch) = taking.batch(sleep_until(end)).await else {
                break;
            };
            spawn(work, &client, batch, None);
        }
    } else {
        // Nothing comes any more but what has come.
        while let Some(batch) = taking.batch(std::future::ready(())).await {
            spawn(work, &client, batch, None);
        }
    }
    let _ = flushed(&client).await;
    ended
}

/// Takes messages until nobody wants more.
async fn take(work: &Work, client: &Client, taking: &mut Taking) -> Result<(), String> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let room = Arc::new(Semaphore::new(usize::try_from(KIB_AT_ONCE).unwrap_or(1)));
    loop {
        let turn = tokio::select! {
            biased;
            () = work.stop.cancelled() => return Ok(()),
            turn = Arc::clone(&turns).acquire_owned() => turn.ok(),
        };
        let Some(batch) = taking.batch(work.stop.cancelled()).await else {
            return match work.stop.is_cancelled() {
                true => Ok(()),
                false => Err("the subscription has ended".into()),
            };
        };
        let size: usize = batch.iter().map(size_of).sum();
        let kib = u32::try_from(size / 1024).map_or(KIB_AT_ONCE, |kib| kib.min(KIB_AT_ONCE));
        let room = tokio::select! {
            room = Arc::clone(&room).acquire_many_owned(kib) => room.ok(),
            // What has come is carried out all the same.
            () = work.stop.cancelled() => None,
        };
        spawn(work, client, batch, turn.zip(room));
        // Of a function that is gone no more is taken than what has come.
        let function = &work.mapping.function;
        if work
            .functions
            .registry
            .get(&work.account, function)
            .is_none()
        {
            return Err(format!("the function {function} does not exist"));
        }
    }
}

/// Has messages carried out, which the node's stop waits for.
fn spawn(
    work: &Work,
    client: &Client,
    batch: Vec<Message>,
    turn: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
) {
    let taken = Taken {
        functions: work.functions.clone(),
        client: client.clone(),
        work: Arc::clone(&work.mapping),
        account: work.account.clone(),
        arn: work.arn(),
        status: work.status.clone(),
    };
    let (client, stop) = (client.clone(), work.stop.clone());
    work.functions.work.spawn(async move {
        taken.carry(batch).await;
        drop(turn);
        if stop.is_cancelled() {
            // An answer is on its way before its client goes.
            let _ = flushed(&client).await;
        }
    });
}

/// Messages as they come.
struct Taking<M = Subscriber> {
    most: usize,
    window: Duration,
    messages: M,
    /// One that had no room in the last event.
    next: Option<Message>,
}

impl<M: Stream<Item = Message> + Unpin> Taking<M> {
    /// The messages of the next event; `None` where there will be none. What has come is given
    /// once nobody wants to wait for more.
    async fn batch(&mut self, enough: impl Future<Output = ()>) -> Option<Vec<Message>> {
        tokio::pin!(enough);
        let first = match self.next.take() {
            Some(first) => first,
            None => loop {
                let message = tokio::select! {
                    biased;
                    message = self.messages.next() => message?,
                    () = &mut enough => return None,
                };
                if !is_of_nats(&message) {
                    break message;
                }
            },
        };
        let mut size = size_of(&first);
        let mut batch = vec![first];
        let end = Instant::now() + self.window;
        while batch.len() < self.most {
            let message = tokio::select! {
                biased;
                message = self.messages.next() => message,
                () = sleep_until(end) => None,
                () = &mut enough => None,
            };
            let Some(message) = message else { break };
            if is_of_nats(&message) {
                continue;
            }
            size += size_of(&message);
            if size > MOST_ASYNCHRONOUS {
                self.next = Some(message);
                break;
            }
            batch.push(message);
        }
        Some(batch)
    }
}

/// Whether a message is the server's, or an answer to somebody else. A subject that begins with a
/// wildcard has those, too, where the server lets the node see them.
fn is_of_nats(message: &Message) -> bool {
    message.subject.starts_with(['$', '_'])
}

/// What messages are carried out with.
struct Taken {
    functions: crate::lambda::Functions,
    client: Client,
    work: Arc<super::mapping::Mapping>,
    account: String,
    arn: String,
    status: super::mapping::Status,
}

impl Taken {
    async fn carry(&self, batch: Vec<Message>) {
        let now = wall();
        let mut records: Vec<_> = batch.iter().map(|m| of_subject(m, now)).collect();
        let reply = match &batch[..] {
            // What begins so is the server's: it waits for no answer of a function.
            [one] if self.work.reply => one.reply.clone().filter(|to| !to.starts_with('$')),
            _ => None,
        };
        let most = match reply {
            Some(_) => MOST_EVENT,
            None => MOST_ASYNCHRONOUS,
        };
        let large = batch.len() == 1 && size_of(&batch[0]) > most;
        if large {
            records[0]["data"] = Value::Null;
        }
        let invocation = Invocation {
            request_id: random_id(),
            payload: event(&records),
            arn: self.arn.clone(),
            client_context: None,
            trace: None,
        };
        match reply {
            Some(reply) if large => {
                let code = StatusCode::PAYLOAD_TOO_LARGE;
                self.refuse(reply, code, "the message makes too large an event", None)
                    .await;
            }
            Some(reply) => self.answer(reply, invocation).await,
            None if large => self.letter(&invocation, "EventTooLarge").await,
            None => self.enqueue(invocation).await,
        }
    }

    /// Has an event wait in the queue. Until there is room for it, it waits here.
    async fn enqueue(&self, invocation: Invocation) {
        loop {
            let function = &self.work.function;
            let Some(function) = self.functions.registry.get(&self.account, function) else {
                self.status
                    .problem(&format!("the function {function} does not exist"));
                return self.letter(&invocation, NO_FUNCTION).await;
            };
            let qualifier = self.work.qualifier.clone();
            let queued = self
                .functions
                .enqueue(&function, qualifier, invocation.clone());
            let error = match queued.await {
                Ok(()) => return self.status.result("OK"),
                Err(error) => error,
            };
            self.status.problem(&error.to_string());
            tokio::select! {
                () = sleep(PAUSE) => {}
                // Where only its mapping ends it waits on.
                () = self.functions.stopping.cancelled() => {
                    return self.letter(&invocation, "NodeStopped").await;
                }
            }
        }
    }

    async fn letter(&self, invocation: &Invocation, why: &str) {
        let left = self
            .functions
            .left(&self.account, &self.arn, why, invocation);
        if let Err(error) = left.await {
            tracing::error!(%error, arn = self.arn, "a dead letter cannot be written");
        }
    }

    /// Waits for the function, and answers with what it says.
    async fn answer(&self, reply: Subject, invocation: Invocation) {
        let function = self
            .functions
            .registry
            .get(&self.account, &self.work.function);
        let done = match function {
            Some(function) => {
                let qualifier = self.work.qualifier.as_deref();
                let done = self
                    .functions
                    .carry_out(&function, qualifier, invocation)
                    .await;
                done.map_err(LambdaError::from)
            }
            None => Err(LambdaError::no_function(&self.arn)),
        };
        let completed = match done {
            Ok(answer) => answer.completed,
            Err(error) => {
                self.status.problem(&error.to_string());
                let (code, says) = (error.status(), error.to_string());
                return self.refuse(reply, code, &says, None).await;
            }
        };
        if let Some(error) = completed.error {
            self.status.problem("Function call failed");
            let code = StatusCode::INTERNAL_SERVER_ERROR;
            let payload = Some(completed.payload);
            return self.refuse(reply, code, error.as_str(), payload).await;
        }
        let most = self.client.max_payload();
        if completed.payload.len() > most {
            let says = format!("the answer is larger than the {most} bytes of a message");
            let code = StatusCode::PAYLOAD_TOO_LARGE;
            return self.refuse(reply, code, &says, None).await;
        }
        self.status.result("OK");
        if let Err(error) = self.client.publish(reply, completed.payload).await {
            tracing::warn!(%error, "a request of NATS cannot be answered");
        }
    }

    /// Answers as services of NATS do that cannot do what they are asked.
    async fn refuse(&self, reply: Subject, code: StatusCode, says: &str, payload: Option<Bytes>) {
        // A header is one line.
        let line: String = says
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Service-Error-Code", code.as_str());
        headers.insert("Nats-Service-Error", line.as_str());
        let payload = payload.filter(|payload| payload.len() + 1024 < self.client.max_payload());
        let payload = payload.unwrap_or_else(|| {
            let error = json!({ "errorType": code.as_str(), "errorMessage": says });
            Bytes::from(error.to_string())
        });
        let sent = self.client.publish_with_headers(reply, headers, payload);
        if let Err(error) = sent.await {
            tracing::warn!(%error, "a request of NATS cannot be answered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use std::future::{pending, ready};

    fn message(subject: &str, size: usize) -> Message {
        Message {
            subject: subject.into(),
            reply: None,
            payload: vec![0; size].into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    fn taking<M>(messages: M) -> Taking<M> {
        Taking {
            most: 3,
            window: Duration::from_secs(3600),
            messages,
            next: None,
        }
    }

    fn subjects(batch: Option<Vec<Message>>) -> Vec<String> {
        let batch = batch.unwrap_or_default().into_iter();
        batch.map(|message| message.subject.to_string()).collect()
    }

    #[tokio::test]
    async fn what_has_come_is_given_once_nobody_waits_for_more() {
        let come = ["a", "b"].map(|subject| message(subject, 1));
        let mut taking = taking(stream::iter(come).chain(stream::pending()));
        assert_eq!(subjects(taking.batch(ready(())).await), ["a", "b"]);
        assert!(taking.batch(ready(())).await.is_none());
    }

    #[tokio::test]
    async fn what_is_of_nats_is_left_out_and_what_has_no_room_comes_next() {
        let large = MOST_ASYNCHRONOUS / 2;
        let come = [("$SYS.x", 1), ("a", large), ("_INBOX.x", 1), ("b", large)];
        let come = come.map(|(subject, size)| message(subject, size));
        let mut taking = taking(stream::iter(come));
        assert_eq!(subjects(taking.batch(pending()).await), ["a"]);
        assert_eq!(subjects(taking.batch(pending()).await), ["b"]);
        assert!(taking.batch(pending()).await.is_none());
    }
}
