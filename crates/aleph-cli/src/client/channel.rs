//! A command's streams over a WebSocket: attach and exec.
//!
//! A binary message is a channel's byte and what belongs to that channel, a text message is a
//! JSON object that says one thing. What this program does not know is left alone, so that a
//! newer node can say more.

use super::ClientError;
use super::request::Socket;
use aleph_types::{ExitStatus, Job, Problem};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;

/// A command to run in a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ExecStart {
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) rows: u16,
    pub(crate) columns: u16,
}

/// What a command or its node says.
#[derive(Debug)]
pub(crate) enum ChannelEvent {
    Started,
    Stdout(Bytes),
    Stderr(Bytes),
    Exited(ExitStatus),
    /// The job ended without an exit of its command, or is not what the caller waits for.
    Ended(Box<Job>),
    Failed(Problem),
}

/// A command's streams.
#[derive(Debug)]
pub(crate) struct Channel {
    messages: SplitStream<Socket>,
    input: ChannelInput,
}

/// What goes to a command. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct ChannelInput {
    data: mpsc::Sender<Message>,
    control: mpsc::UnboundedSender<Message>,
}

impl Channel {
    pub(super) fn new(socket: Socket) -> Self {
        let (sink, messages) = socket.split();
        let (data, pending) = mpsc::channel(4);
        let (control, urgent) = mpsc::unbounded_channel();
        tokio::spawn(write(sink, pending, urgent));
        Self {
            messages,
            input: ChannelInput { data, control },
        }
    }

    /// A channel whose first message says what to run.
    pub(super) async fn starting(
        mut socket: Socket,
        start: &ExecStart,
    ) -> Result<Self, ClientError> {
        let text = serde_json::to_string(start).map_err(|error| ClientError::Strange {
            what: format!("nothing yet: the command has no JSON form: {error}"),
        })?;
        let sent = socket.send(Message::text(text)).await;
        sent.map_err(|error| ClientError::broken("starting a command", error))?;
        Ok(Self::new(socket))
    }

    pub(crate) fn input(&self) -> ChannelInput {
        self.input.clone()
    }

    /// The next event; `None` once the node has closed the channel.
    pub(crate) async fn next(&mut self) -> Result<Option<ChannelEvent>, ClientError> {
        while let Some(message) = self.messages.next().await {
            let message = message
                .map_err(|error| ClientError::broken("a command's streams are open", error))?;
            let event = match message {
                Message::Binary(bytes) => output(bytes),
                Message::Text(text) => said(&text)?,
                Message::Close(_) => return Ok(None),
                _ => None,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }
}

impl ChannelInput {
    /// Sends standard input; waits while the node takes no more. `false` once nobody reads it.
    pub(crate) async fn write(&self, bytes: &[u8]) -> bool {
        let mut message = BytesMut::with_capacity(bytes.len() + 1);
        message.put_u8(STDIN);
        message.put_slice(bytes);
        self.data
            .send(Message::Binary(message.freeze()))
            .await
            .is_ok()
    }

    /// Ends standard input, after all that was written.
    pub(crate) async fn close(&self) {
        // A channel that is gone has no input to end.
        let _ = self.data.send(Message::text(r#"{"eof":true}"#)).await;
    }

    pub(crate) fn signal(&self, signal: u8) {
        self.tell(&serde_json::json!({ "signal": signal }));
    }

    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        self.tell(&serde_json::json!({ "resize": { "rows": rows, "columns": columns } }));
    }

    fn tell(&self, what: &serde_json::Value) {
        // That the channel is gone shows where it is read.
        let _ = self.control.send(Message::text(what.to_string()));
    }
}

/// Sends what is queued; signals overtake input that nobody takes.
async fn write(
    mut sink: SplitSink<Socket, Message>,
    mut data: mpsc::Receiver<Message>,
    mut control: mpsc::UnboundedReceiver<Message>,
) {
    loop {
        let message = tokio::select! {
            biased;
            Some(message) = control.recv() => message,
            Some(message) = data.recv() => message,
            else => break,
        };
        if sink.send(message).await.is_err() {
            return;
        }
    }
    // Nobody holds the channel any more.
    let _ = sink.close().await;
}

fn output(mut message: Bytes) -> Option<ChannelEvent> {
    if message.is_empty() {
        return None;
    }
    match (message.split_to(1)[0], message) {
        (STDOUT, bytes) => Some(ChannelEvent::Stdout(bytes)),
        (STDERR, bytes) => Some(ChannelEvent::Stderr(bytes)),
        _ => None,
    }
}

fn said(text: &str) -> Result<Option<ChannelEvent>, ClientError> {
    #[derive(Deserialize)]
    struct Said {
        started: Option<serde::de::IgnoredAny>,
        exit: Option<ExitStatus>,
        error: Option<Problem>,
        ended: Option<Box<Job>>,
    }
    let said: Said = serde_json::from_str(text).map_err(|error| ClientError::Strange {
        what: format!("with a message that this program cannot read: {error}"),
    })?;
    Ok(match said {
        Said {
            exit: Some(status), ..
        } => Some(ChannelEvent::Exited(status)),
        Said {
            error: Some(problem),
            ..
        } => Some(ChannelEvent::Failed(problem)),
        Said {
            ended: Some(job), ..
        } => Some(ChannelEvent::Ended(job)),
        Said {
            started: Some(_), ..
        } => Some(ChannelEvent::Started),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart() {
        assert!(matches!(
            said(r#"{"exit":{"code":3}}"#),
            Ok(Some(ChannelEvent::Exited(ExitStatus::Code(3))))
        ));
        assert!(matches!(
            said(r#"{"started":{"pid":1}}"#),
            Ok(Some(ChannelEvent::Started))
        ));
        assert!(matches!(said(r#"{"news":1}"#), Ok(None)));
        assert!(said("[").is_err());
        assert!(matches!(
            output(Bytes::from_static(b"\x02no")),
            Some(ChannelEvent::Stderr(bytes)) if bytes == "no"
        ));
        assert!(output(Bytes::new()).is_none());
    }
}
