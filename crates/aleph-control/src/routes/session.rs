//! What is common to both kinds of sessions: the messages of their WebSockets.
//!
//! A binary message is a byte for the channel and then data: 0 is standard input, 1 standard
//! output, 2 standard error. A text message is JSON, [`Ask`] from the client and [`Tell`] to it.
//! After the last word the server closes.
//!
//! Each direction holds little: input waits in a few messages while the command does not read
//! them, and then the socket is not read any more; output is read from the guest only when the
//! client took what was before it.

use crate::server::Refusal;
use crate::server::connection::Slot;
use aleph_executor::guest::ExecInput;
use aleph_types::{ExitStatus, Job, Problem};
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a message may be.
const MAX_MESSAGE: usize = 1024 * 1024;
/// How many messages of input wait for a command that does not read.
const WAITING: usize = 4;

/// How long a client may take to read that the node stops.
const AWAY_TIME: Duration = Duration::from_secs(1);
/// How long it may take to read the last of a session.
const CLOSE_TIME: Duration = Duration::from_secs(30);
/// How long it may take to read why a session cannot be.
const PROBLEM_TIME: Duration = Duration::from_secs(10);

/// The channel of standard input.
const STDIN: u8 = 0;
/// The channel of standard output.
pub(super) const STDOUT: u8 = 1;
/// The channel of standard error.
pub(super) const STDERR: u8 = 2;

/// A request to become a WebSocket, or what it lacks for that.
pub(super) type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ask {
    /// The terminal has a new size.
    Resize { rows: u16, columns: u16 },
    /// The command gets a signal.
    Signal(u8),
    /// No more input follows.
    Eof(bool),
}

/// What a client is told.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Tell {
    /// The command runs, under this process id in the guest.
    Started { pid: u32 },
    /// It ended so.
    Exit(ExitStatus),
    /// It could not be run, or the session broke.
    Error(Problem),
    /// The job ended without an exit status of its command.
    Ended(Box<Job>),
}

/// The side to the client.
pub(super) struct Output(SplitSink<WebSocket, Message>);

/// The side from the client.
pub(super) struct Input(SplitStream<WebSocket>);

/// The client is gone.
#[derive(Debug)]
pub(super) struct Gone;

/// Accepts a session, bounded.
pub(super) fn accept(upgrade: Upgrade) -> Result<WebSocketUpgrade, Refusal> {
    let upgrade = upgrade.map_err(|why| {
        Refusal::invalid("websocket_required", format!("this is a WebSocket: {why}"))
    })?;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE))
}

/// Splits a socket. The client's slot is held for as long as the session runs.
pub(super) fn split(socket: WebSocket) -> (Output, Input) {
    let (sink, stream) = socket.split();
    (Output(sink), Input(stream))
}

/// The slot of the connection that a session was.
pub(super) type Held = Option<axum::Extension<Slot>>;

impl Output {
    pub(super) async fn data(&mut self, channel: u8, bytes: &[u8]) -> Result<(), Gone> {
        let mut message = Vec::with_capacity(bytes.len() + 1);
        message.push(channel);
        message.extend(bytes);
        let sent = self.0.send(Message::Binary(message.into())).await;
        sent.map_err(|_| Gone)
    }

    pub(super) async fn tell(&mut self, what: &Tell) -> Result<(), Gone> {
        let text = serde_json::to_string(what).map_err(|_| Gone)?;
        let sent = self.0.send(Message::Text(text.into())).await;
        sent.map_err(|_| Gone)
    }

    /// Says that the session ends because the node does.
    pub(super) async fn go_away(mut self) {
        let frame = CloseFrame {
            code: close_code::AWAY,
            reason: "the node is shutting down".into(),
        };
        let said = self.0.send(Message::Close(Some(frame)));
        // A client that does not read does not hear it.
        let _ = timeout(AWAY_TIME, said).await;
    }

    /// Tells why a session ends or cannot begin, and ends it. A client that does not read does
    /// not hear it.
    pub(super) async fn fail(mut self, problem: Problem) {
        if timeout(PROBLEM_TIME, self.tell(&Tell::Error(problem)))
            .await
            .is_ok()
        {
            self.close().await;
        }
    }

    pub(super) async fn close(mut self) {
        let _ = timeout(CLOSE_TIME, self.0.close()).await;
    }
}

impl Input {
    /// The first message, as text.
    pub(super) async fn text(&mut self) -> Result<String, Gone> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => return Err(Gone),
            }
        }
    }

    /// Carries the client's messages to a command, once there is one to take them, until the
    /// client is gone. Without `stdin` they only steer it. What makes no sense ends the session
    /// with a problem.
    pub(super) async fn feed(
        self,
        to: impl Future<Output = Option<ExecInput>>,
        stdin: bool,
    ) -> Option<Problem> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (steer, steered) = mpsc::channel(WAITING);
        let carry = async {
            match to.await {
                // Two ways, so that a signal passes input that is not read.
                Some(to) => {
                    let written = async {
                        if stdin {
                            write(&to, receiver).await;
                        } else {
                            drain(receiver).await;
                        }
                    };
                    tokio::join!(written, carry_asks(&to, steered));
                }
                None => {
                    tokio::join!(drain(receiver), drain(steered));
                }
            }
            // A command that ended says so itself.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            problem = self.read(sender, steer) => problem,
            () = carry => None,
        }
    }

    async fn read(
        mut self,
        stdin: mpsc::Sender<Stdin>,
        steer: mpsc::Sender<Ask>,
    ) -> Option<Problem> {
        let bad = |message: &str| Some(*Refusal::invalid("bad_message", message).problem);
        while let Some(Ok(message)) = self.0.next().await {
            // What goes to a command that has just ended is lost.
            match message {
                Message::Binary(bytes) => match bytes.first() {
                    Some(&STDIN) => drop(stdin.send(Stdin::Data(bytes.slice(1..))).await),
                    _ => return bad("a binary message begins with channel 0"),
                },
                Message::Text(text) => match serde_json::from_str(text.as_str()) {
                    Ok(Ask::Eof(_)) => drop(stdin.send(Stdin::End).await),
                    Ok(Ask::Signal(signal)) if !(1..=64).contains(&signal) => {
                        return bad("there is no such signal");
                    }
                    Ok(ask) => drop(steer.send(ask).await),
                    Err(error) => return bad(&error.to_string()),
                },
                Message::Close(_) => return None,
                Message::Ping(_) | Message::Pong(_) => {}
            }
        }
        None
    }
}

/// A piece of standard input.
#[derive(Debug)]
enum Stdin {
    Data(Bytes),
    End,
}

async fn write(to: &ExecInput, mut receiver: mpsc::Receiver<Stdin>) {
    while let Some(piece) = receiver.recv().await {
        let written = match piece {
            Stdin::Data(bytes) => to.write(&bytes).await,
            Stdin::End => to.close(),
        };
        if written.is_err() {
            break;
        }
    }
    drain(receiver).await;
}

async fn carry_asks(to: &ExecInput, mut receiver: mpsc::Receiver<Ask>) {
    while let Some(ask) = receiver.recv().await {
        let _ = match ask {
            Ask::Resize { rows, columns } => to.resize(rows, columns),
            Ask::Signal(signal) => to.signal(signal),
            Ask::Eof(_) => Ok(()),
        };
    }
}

async fn drain<T>(mut receiver: mpsc::Receiver<T>) {
    while receiver.recv().await.is_some() {}
}

/// Runs both sides of a session until one ends: the output because all is told, the input
/// because the client is gone or makes no sense, or both because the node stops. What `tell`
/// holds is let go of before the client hears the last word, which it may be slow to read.
pub(super) async fn run<F>(
    mut output: Output,
    input: impl Future<Output = Option<Problem>>,
    tell: F,
    stopping: CancellationToken,
) where
    F: AsyncFnOnce(&mut Output) -> Result<(), Gone>,
{
    enum End {
        Told,
        Client(Option<Problem>),
        Node,
    }
    let end = tokio::select! {
        _ = tell(&mut output) => End::Told,
        problem = input => End::Client(problem),
        () = stopping.cancelled() => End::Node,
    };
    match end {
        End::Told | End::Client(None) => output.close().await,
        End::Client(Some(problem)) => output.fail(problem).await,
        End::Node => output.go_away().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_the_contract_has_them() {
        for (text, ask) in [
            (
                r#"{"resize":{"rows":1,"columns":2}}"#,
                Ask::Resize {
                    rows: 1,
                    columns: 2,
                },
            ),
            (r#"{"signal":15}"#, Ask::Signal(15)),
            (r#"{"eof":true}"#, Ask::Eof(true)),
        ] {
            assert_eq!(serde_json::from_str::<Ask>(text).unwrap(), ask);
        }
        for (tell, text) in [
            (Tell::Started { pid: 7 }, r#"{"started":{"pid":7}}"#),
            (Tell::Exit(ExitStatus::Code(3)), r#"{"exit":{"code":3}}"#),
            (
                Tell::Exit(ExitStatus::Signal(9)),
                r#"{"exit":{"signal":9}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&tell).unwrap(), text);
        }
    }
}
