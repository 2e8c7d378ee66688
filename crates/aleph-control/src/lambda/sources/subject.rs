//! Messages of core NATS.

use super::event::{event, of_subject, size_of};
use super::{Connection, PAUSE, Work};
use crate::lambda::error::LambdaError;
use crate::lambda::events::{NO_FUNCTION, now};
use crate::lambda::invocation::{MOST_ASYNCHRONOUS, MOST_EVENT};
use crate::lambda::random_id;
use aleph_executor::functions::Invocation;
use async_nats::{Client, HeaderMap, Message, Subject, Subscriber};
use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::StreamExt;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Events of a subject that are written down, and requests that are answered, at once.
const AT_ONCE: usize = 64;
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
    // Once this is answered the server has the subscription.
    client
        .flush()
        .await
        .map_err(|error| format!("cannot subscribe: {error}"))?;
    work.status.begun();
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut taking = Taking {
        work,
        messages: subscribed,
        next: None,
    };
    loop {
        let turn = tokio::select! {
            turn = Arc::clone(&turns).acquire_owned() => turn.ok(),
            () = work.stop.cancelled() => break,
        };
        let batch = tokio::select! {
            batch = taking.batch() => batch,
            () = work.stop.cancelled() => break,
        };
        let Some(batch) = batch else {
            return Err("the subscription has ended".into());
        };
        let taken = Taken::of(work, &client);
        work.functions.work.spawn(async move {
            taken.carry(batch).await;
            drop(turn);
        });
    }
    let taken = Taken::of(work, &client);
    let rest = async {
        let _ = taking.messages.drain().await;
        while let Some(batch) = taking.batch().await {
            taken.carry(batch).await;
        }
    };
    let _ = timeout(DRAIN, rest).await;
    let _ = client.flush().await;
    Ok(())
}

/// Messages as they come.
struct Taking<'w> {
    work: &'w Work,
    messages: Subscriber,
    /// One that had no room in the last event.
    next: Option<Message>,
}

impl Taking<'_> {
    /// The messages of the next event; `None` where there will be none.
    async fn batch(&mut self) -> Option<Vec<Message>> {
        let first = match self.next.take() {
            Some(first) => first,
            None => self.messages.next().await?,
        };
        let mut size = size_of(&first);
        let mut batch = vec![first];
        let most = usize::try_from(self.work.mapping.batch).unwrap_or(1);
        let window = Duration::from_secs(self.work.mapping.window.into());
        let end = Instant::now() + window;
        while batch.len() < most {
            let Ok(Some(message)) = timeout_at(end, self.messages.next()).await else {
                break;
            };
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

/// What messages are carried out with.
struct Taken {
    functions: crate::lambda::Functions,
    client: Client,
    work: Arc<super::mapping::Mapping>,
    account: String,
    arn: String,
    status: super::mapping::Status,
    stop: tokio_util::sync::CancellationToken,
}

impl Taken {
    fn of(work: &Work, client: &Client) -> Self {
        Self {
            functions: work.functions.clone(),
            client: client.clone(),
            work: Arc::clone(&work.mapping),
            account: work.account.clone(),
            arn: work.arn(),
            status: work.status.clone(),
            stop: work.stop.clone(),
        }
    }

    async fn carry(&self, batch: Vec<Message>) {
        let now = now();
        let mut records: Vec<_> = batch.iter().map(|m| of_subject(m, now)).collect();
        let large = batch.len() == 1 && size_of(&batch[0]) > MOST_EVENT;
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
        let reply = match &batch[..] {
            [one] if self.work.batch == 1 => one.reply.clone(),
            _ => None,
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
                () = self.stop.cancelled() => {
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
