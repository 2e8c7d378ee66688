//! Messages of a stream of JetStream.

use super::batch::{Batch, in_progress, say};
use super::event::size_of;
use super::mapping::{Mapping, Start, Status};
use super::server::{NatsServer, connect, flushed};
use super::{Connection, Work, name_of};
use crate::lambda::invocation::MOST_EVENT;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::{self, AckKind, Message};
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// After which time without a word the server gives a message again.
pub(super) const ACK_WAIT: Duration = Duration::from_secs(15);
/// How often it is told that a message is worked on.
pub(super) const PROGRESS: Duration = Duration::from_secs(4);
/// How long the server is asked for the first message of an event.
const ASK: Duration = Duration::from_secs(20);
/// How long others that are there may take to come after the first message of an event.
const MORE: Duration = Duration::from_secs(10);
/// How many messages are asked for at once: no more than have room while they come.
const AT_ONCE: usize = 256;
/// How long the server may take to forget a consumer.
const FORGET: Duration = Duration::from_secs(10);

/// Takes messages until it is told to end.
pub(super) async fn serve(
    work: &Work,
    connection: Connection,
    stream: &str,
    subject: Option<&str>,
) -> Result<(), String> {
    let Connection {
        client,
        mut returns,
    } = connection;
    let context = jetstream::new(client.clone());
    let says = |error: &dyn std::fmt::Display| format!("JetStream's {stream}: {error}");
    let there = context.get_stream(stream).await;
    let there = there.map_err(|error| says(&error))?;
    let config = consumer(&work.name(), &work.mapping, subject);
    let consumer: PullConsumer = there
        .create_consumer(config)
        .await
        .map_err(|error| says(&error))?;
    work.status.begun();
    let parallel = usize::try_from(work.mapping.parallel).unwrap_or(1);
    let turns = Arc::new(Semaphore::new(parallel));
    let room = work.functions.sources.room(&work.account);
    loop {
        let turn = tokio::select! {
            turn = Arc::clone(&turns).acquire_owned() => turn.ok(),
            () = work.stop.cancelled() => break,
        };
        returns.mark_unchanged();
        let first = tokio::select! {
            first = first(&consumer) => first.map_err(|error| says(&error))?,
            // What was asked before the connection was lost is never answered.
            _ = returns.changed() => continue,
            () = work.stop.cancelled() => break,
        };
        let Some(first) = first else {
            if work
                .functions
                .registry
                .get(&work.account, &work.mapping.function)
                .is_none()
            {
                return Err(format!(
                    "the function {} does not exist",
                    work.mapping.function
                ));
            }
            continue;
        };
        let mut messages = vec![first];
        rest(&consumer, &work.mapping, &mut messages, &work.stop).await;
        let size: usize = messages.iter().map(|message| size_of(message)).sum();
        let waiting = room.hold(size, &work.stop);
        let Some(held) = in_progress(&messages, waiting).await else {
            say(&messages, AckKind::Nak(None)).await;
            let _ = flushed(&client).await;
            break;
        };
        let batch = Batch {
            functions: work.functions.clone(),
            room: Arc::clone(&room),
            account: work.account.clone(),
            id: work.id.clone(),
            arn: work.arn(),
            mapping: Arc::clone(&work.mapping),
            status: work.status.clone(),
            stop: work.stop.clone(),
        };
        let client = client.clone();
        work.functions.work.spawn(async move {
            batch.carry(messages).await;
            drop((turn, held));
            // What was said to the server is on its way.
            let _ = flushed(&client).await;
        });
    }
    // The last events are told of by their own tasks.
    Ok(())
}

fn consumer(name: &str, mapping: &Mapping, subject: Option<&str>) -> pull::Config {
    let deliver_policy = match mapping.start {
        Start::Oldest => DeliverPolicy::All,
        Start::Next => DeliverPolicy::New,
        Start::At(time) => {
            let time = chrono::DateTime::from_timestamp_millis(time.as_millisecond());
            time.map_or(DeliverPolicy::All, |start_time| {
                DeliverPolicy::ByStartTime { start_time }
            })
        }
    };
    let under_way = i64::from(mapping.batch) * i64::from(mapping.parallel);
    pull::Config {
        durable_name: Some(name.to_owned()),
        name: Some(name.to_owned()),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        // Whoever counts is this node: the last failure has a dead letter.
        max_deliver: -1,
        filter_subject: subject.unwrap_or_default().to_owned(),
        max_ack_pending: (2 * under_way).max(1000),
        ..pull::Config::default()
    }
}

/// A message that comes soon, if one does.
async fn first(consumer: &PullConsumer) -> Result<Option<Message>, async_nats::Error> {
    let asked = consumer.batch().max_messages(1).expires(ASK);
    let mut messages = asked.messages().await?;
    messages.next().await.transpose()
}

/// What goes into an event with its first message. None of that is too large for it.
async fn rest(
    consumer: &PullConsumer,
    mapping: &Mapping,
    messages: &mut Vec<Message>,
    stop: &CancellationToken,
) {
    let most = usize::try_from(mapping.batch).unwrap_or(1);
    let window = Duration::from_secs(mapping.window.into());
    // The server says when the window is over; it may be away.
    let over = Instant::now() + window;
    let end = over + MORE;
    loop {
        let size: usize = messages.iter().map(|message| size_of(message)).sum();
        let asked = Asked {
            count: most.saturating_sub(messages.len()).min(AT_ONCE),
            // What the server counts is smaller than what an event holds of it, by a third and more.
            bytes: MOST_EVENT.saturating_sub(size) / 2,
            window: match mapping.window {
                0 => None,
                _ => Some(over.saturating_duration_since(Instant::now())),
            },
        };
        let past = asked.window.is_some_and(|left| left.is_zero());
        if asked.count == 0 || asked.bytes == 0 || past {
            return;
        }
        let before = messages.len();
        more(consumer, &asked, messages, end, stop).await;
        if messages.len() - before < asked.count {
            return;
        }
    }
}

/// What is asked for besides what there is.
struct Asked {
    count: usize,
    bytes: usize,
    /// How long it may come; where there is nothing, what is there now.
    window: Option<Duration>,
}

async fn more(
    consumer: &PullConsumer,
    asked: &Asked,
    messages: &mut Vec<Message>,
    end: Instant,
    stop: &CancellationToken,
) {
    let (count, bytes) = (asked.count, asked.bytes);
    let coming = match asked.window {
        None => {
            let fetch = consumer.fetch().max_messages(count).max_bytes(bytes);
            fetch.messages().await
        }
        Some(window) => {
            let batch = consumer.batch().max_messages(count).max_bytes(bytes);
            batch.expires(window).messages().await
        }
    };
    let Ok(mut coming) = coming else { return };
    let mut size: usize = messages.iter().map(|message| size_of(message)).sum();
    let mut progress = interval(PROGRESS);
    loop {
        let message = tokio::select! {
            message = timeout_at(end, coming.next()) => message,
            _ = progress.tick() => {
                say(messages, AckKind::Progress).await;
                continue;
            }
            () = stop.cancelled() => return,
        };
        let Ok(Some(Ok(message))) = message else {
            return;
        };
        size += size_of(&message);
        if size > MOST_EVENT {
            say(&[message], AckKind::Nak(None)).await;
            return;
        }
        messages.push(message);
    }
}

/// Has the server forget the consumer of a mapping that is gone.
pub(super) async fn forget(servers: &[NatsServer], id: &str, stream: &str) {
    let status = Status::new(super::Phase::Disabled);
    let forgotten = async {
        let connection = connect(servers, "aleph", &status).await?;
        let context = jetstream::new(connection.client);
        let gone = context
            .delete_consumer_from_stream(name_of(id), stream)
            .await;
        gone.map_err(|error| error.to_string())
    };
    match timeout(FORGET, forgotten).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(id, stream, error, "a consumer of JetStream stays"),
        Err(_) => tracing::warn!(id, stream, "a consumer of JetStream stays: no answer"),
    }
}
