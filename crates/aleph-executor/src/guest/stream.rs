//! One stream: what may come on it, and how much.

use super::error::AgentError;
use super::port::StreamEvent;
use super::{GuestUsage, OwnedStat};
use aleph_guest_proto::{Exit, ReceiveWindow, SendWindow, ToGuest, ToHost, WINDOW, WindowError};
use aleph_types::ExitStatus;
use std::task::Waker;
use tokio::sync::mpsc;

/// What a stream is, which says what may come on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    /// Something on its way in: a file or an archive.
    Sink,
    /// A file on its way out.
    File,
    /// An archive on its way out.
    Archive,
    /// A question with one answer.
    Question,
    /// Something to do, of which only the end is told.
    Order,
    Connection,
}

impl Kind {
    /// What the message that begins one makes it.
    pub(super) fn of(message: &ToGuest<'_>) -> Self {
        match message {
            ToGuest::Exec(_) | ToGuest::Attach { .. } => Self::Command,
            ToGuest::Put(_) | ToGuest::Unpack { .. } => Self::Sink,
            ToGuest::Get { .. } => Self::File,
            ToGuest::Pack { .. } => Self::Archive,
            ToGuest::Connect { .. } => Self::Connection,
            ToGuest::Listen { .. }
            | ToGuest::Mount(_)
            | ToGuest::Link(_)
            | ToGuest::Freeze
            | ToGuest::Settle
            | ToGuest::Resume(_) => Self::Order,
            _ => Self::Question,
        }
    }
}

/// How much may come, and what is told of what came.
#[derive(Debug)]
pub(super) enum Receive {
    /// Credit, as bytes are passed on.
    Credited(ReceiveWindow),
    /// How much came over all connections, and how much of it the guest was told to be stored.
    Kept { received: u64, told: u64 },
}

impl Receive {
    pub(super) fn received(&mut self, n: usize) -> Result<(), WindowError> {
        match self {
            Self::Credited(window) => window.received(n),
            Self::Kept { received, told } => {
                *received += n as u64;
                if *received - *told > u64::from(WINDOW) {
                    return Err(WindowError::Overrun);
                }
                Ok(())
            }
        }
    }

    pub(super) fn passed_on(&mut self, n: usize) -> Option<u32> {
        match self {
            Self::Credited(window) => window.passed_on(n),
            Self::Kept { .. } => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) events: mpsc::UnboundedSender<StreamEvent>,
    pub(super) send: SendWindow,
    /// Whether data may still be sent.
    pub(super) takes_input: bool,
    pub(super) receive: Receive,
    writers: Vec<Waker>,
    pub(super) kind: Kind,
    /// Whether the guest has said that the operation has begun.
    pub(super) begun: bool,
    /// Whether the guest has said that no more data comes.
    ended: bool,
}

impl Stream {
    pub(super) fn new(
        events: mpsc::UnboundedSender<StreamEvent>,
        kind: Kind,
        receive: Receive,
        takes_input: bool,
    ) -> Self {
        Self {
            events,
            send: SendWindow::default(),
            takes_input,
            receive,
            writers: Vec::new(),
            kind,
            begun: false,
            ended: false,
        }
    }

    /// Whether a message has a meaning here and now. What is not bounded by a window comes at
    /// most once.
    pub(super) fn check(&mut self, message: &ToHost<'_>) -> Result<(), AgentError> {
        let wrong = |what: &str| Err(AgentError::Protocol(what.to_owned()));
        let has_meaning = match message {
            ToHost::Failed { .. } => true,
            ToHost::Data([]) | ToHost::ErrorData([]) => return wrong("data without a byte"),
            ToHost::Data(_) => !matches!(self.kind, Kind::Sink | Kind::Question | Kind::Order),
            ToHost::Started { .. } | ToHost::ErrorData(_) | ToHost::Exited(_) => {
                self.kind == Kind::Command
            }
            ToHost::File(_) => self.kind == Kind::File,
            ToHost::Open => self.kind == Kind::Connection,
            ToHost::Eof => matches!(self.kind, Kind::File | Kind::Archive | Kind::Connection),
            ToHost::Done => matches!(self.kind, Kind::Sink | Kind::Connection | Kind::Order),
            ToHost::Credit(_) => {
                matches!(self.kind, Kind::Command | Kind::Sink | Kind::Connection)
            }
            ToHost::Stat(_) | ToHost::Usage(_) => self.kind == Kind::Question,
            _ => false,
        };
        if !has_meaning {
            return wrong("a message that means nothing on its stream");
        }
        match message {
            ToHost::Started { .. } | ToHost::File(_) | ToHost::Open
                if std::mem::replace(&mut self.begun, true) =>
            {
                wrong("an operation that begins twice")
            }
            ToHost::Eof if std::mem::replace(&mut self.ended, true) => wrong("a second end"),
            ToHost::Data(_) if self.ended => wrong("data after its end"),
            _ => Ok(()),
        }
    }

    pub(super) fn wait(&mut self, waker: &Waker) {
        if !self.writers.iter().any(|known| known.will_wake(waker)) {
            self.writers.push(waker.clone());
        }
    }

    pub(super) fn wake(&mut self) {
        for writer in self.writers.drain(..) {
            writer.wake();
        }
    }
}

/// A message as its stream's reader gets it; none for those that have no reader.
pub(super) fn event_of(message: &ToHost<'_>) -> Option<StreamEvent> {
    Some(match *message {
        ToHost::Data(bytes) => StreamEvent::Data(bytes.to_vec()),
        ToHost::ErrorData(bytes) => StreamEvent::ErrorData(bytes.to_vec()),
        ToHost::Started { pid } => StreamEvent::Started(pid),
        ToHost::File(info) => StreamEvent::File(info),
        ToHost::Open => StreamEvent::Open,
        ToHost::Eof => StreamEvent::Eof,
        ToHost::Done => StreamEvent::Done,
        ToHost::Stat(stat) => StreamEvent::Stat(OwnedStat::from(&stat)),
        ToHost::Usage(usage) => StreamEvent::Usage(GuestUsage::from(&usage)),
        ToHost::Exited(Exit::Code(code)) => StreamEvent::Exited(ExitStatus::Code(code)),
        ToHost::Exited(Exit::Signal(signal)) => StreamEvent::Exited(ExitStatus::Signal(signal)),
        ToHost::Failed { errno, message } => {
            let message = crate::console::visible(&String::from_utf8_lossy(message));
            StreamEvent::Failed { errno, message }
        }
        ToHost::Credit(_)
        | ToHost::Hello { .. }
        | ToHost::Ready { .. }
        | ToHost::Fatal { .. }
        | ToHost::Pong(_)
        | ToHost::Kept(_)
        | ToHost::Accepted { .. } => return None,
    })
}
