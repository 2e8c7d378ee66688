//! The table of streams that the connection's tasks and all handles share.

use super::BootReport;
use aleph_guest_proto::{
    CONTROL, Exit, FileInfo, ProtocolError, ReceiveWindow, SendWindow, ToGuest, ToHost, WindowError,
};
use aleph_types::ExitStatus;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc, watch};

/// Why an operation with the guest's agent did not work out. Cheap to clone, since one broken
/// channel fails many operations.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AgentError {
    /// The guest refused or could not do this one operation.
    #[error("{message}")]
    Failed {
        /// The guest kernel's error number, or 0.
        errno: u32,
        /// What the guest was doing, with what.
        message: String,
    },
    /// The guest said that it cannot go on.
    #[error("{0}")]
    Fatal(String),
    /// The guest broke the protocol.
    #[error("it broke the protocol: {0}")]
    Protocol(String),
    /// A frame began and did not end.
    #[error("it sent half a frame and then nothing")]
    Stalled,
    /// The channel is closed.
    #[error("the channel to it is closed")]
    Closed,
    /// The channel could not be used.
    #[error("the channel to it failed: {0}")]
    Io(Arc<io::Error>),
    /// A command or file name that no guest could take.
    #[error("the request is malformed: {0}")]
    Request(ProtocolError),
}

impl From<ProtocolError> for AgentError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<WindowError> for AgentError {
    fn from(error: WindowError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<io::Error> for AgentError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// What arrives on one stream.
#[derive(Debug)]
pub(super) enum StreamEvent {
    Started(u32),
    Data(Vec<u8>),
    ErrorData(Vec<u8>),
    Eof,
    Exited(ExitStatus),
    Failed { errno: u32, message: String },
    File(FileInfo),
    Done,
}

#[derive(Debug)]
struct Stream {
    events: mpsc::UnboundedSender<StreamEvent>,
    send: SendWindow,
    receive: ReceiveWindow,
    can_send: Arc<Notify>,
    is_command: bool,
    /// Whether the guest has said that the operation has begun.
    begun: bool,
}

impl Stream {
    /// Whether a message has a meaning here and now. What is not bounded by a window comes at
    /// most once.
    fn check(&mut self, message: &ToHost<'_>) -> Result<(), AgentError> {
        let wrong = |what: &str| Err(AgentError::Protocol(what.to_owned()));
        match message {
            ToHost::Data([]) | ToHost::ErrorData([]) => wrong("data without a byte"),
            ToHost::Started { .. } | ToHost::Exited(_) | ToHost::ErrorData(_)
                if !self.is_command =>
            {
                wrong("a command's message about a file")
            }
            ToHost::File(_) | ToHost::Eof | ToHost::Done if self.is_command => {
                wrong("a file's message about a command")
            }
            ToHost::Started { .. } | ToHost::File(_)
                if std::mem::replace(&mut self.begun, true) =>
            {
                wrong("an operation that begins twice")
            }
            _ => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Table {
    streams: HashMap<u32, Stream>,
    next: u32,
    main: Option<u32>,
    out: Vec<u8>,
    /// Whether the guest has said hello. Until then everything waits here: the set-up goes
    /// first, and tells the time of when it is sent.
    greeted: bool,
    pings: HashMap<u64, tokio::sync::oneshot::Sender<()>>,
    closed: Option<AgentError>,
}

/// How far the conversation has come.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Waiting,
    Ready(BootReport),
    Closed(AgentError),
}

/// What the two tasks and all handles share.
#[derive(Debug)]
pub(super) struct Shared {
    table: Mutex<Table>,
    pub(super) has_output: Notify,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) main_exit: watch::Sender<Option<ExitStatus>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            table: Mutex::new(Table {
                streams: HashMap::new(),
                next: CONTROL + 1,
                main: None,
                out: Vec::new(),
                greeted: false,
                pings: HashMap::new(),
                closed: None,
            }),
            has_output: Notify::new(),
            phase: watch::Sender::new(Phase::Waiting),
            main_exit: watch::Sender::new(None),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a message. What is queued is bounded: data by its stream's window, the rest by
    /// what callers wait for.
    pub(super) fn send(&self, stream: u32, message: &ToGuest<'_>) -> Result<(), AgentError> {
        let mut table = self.lock();
        if let Some(why) = &table.closed {
            return Err(why.clone());
        }
        message
            .encode(stream, &mut table.out)
            .map_err(AgentError::Request)?;
        drop(table);
        self.has_output.notify_one();
        Ok(())
    }

    /// The guest has said hello: what waits may go, behind the set-up.
    pub(super) fn greet(&self, setup: &ToGuest<'_>) -> Result<(), AgentError> {
        let mut table = self.lock();
        if !table.greeted {
            let mut out = Vec::new();
            setup
                .encode(CONTROL, &mut out)
                .map_err(AgentError::Request)?;
            out.append(&mut table.out);
            table.out = out;
            table.greeted = true;
            drop(table);
            self.has_output.notify_one();
        }
        Ok(())
    }

    /// Takes what is queued and may go, leaving `empty` in its place.
    pub(super) fn take_output(&self, empty: &mut Vec<u8>) {
        empty.clear();
        let mut table = self.lock();
        if table.greeted {
            std::mem::swap(&mut table.out, empty);
        }
    }

    /// Begins an operation with its first message.
    pub(super) fn open(
        self: &Arc<Self>,
        message: &ToGuest<'_>,
        main: bool,
    ) -> Result<StreamHandle, AgentError> {
        let (events, receiver) = mpsc::unbounded_channel();
        let can_send = Arc::new(Notify::new());
        let mut table = self.lock();
        if let Some(why) = &table.closed {
            return Err(why.clone());
        }
        let id = table.next;
        message
            .encode(id, &mut table.out)
            .map_err(AgentError::Request)?;
        // 2³² operations on one connection do not happen: at 0.1 ms each they take five days,
        // and by then the first numbers are long free.
        table.next = id.checked_add(1).unwrap_or(CONTROL + 1);
        let (send, receive) = (SendWindow::default(), ReceiveWindow::default());
        let is_command = matches!(message, ToGuest::Exec(_));
        let (notify, begun) = (Arc::clone(&can_send), false);
        table.streams.insert(
            id,
            Stream {
                events,
                send,
                receive,
                can_send: notify,
                is_command,
                begun,
            },
        );
        if main {
            table.main = Some(id);
        }
        drop(table);
        self.has_output.notify_one();
        Ok(StreamHandle {
            events: receiver,
            port: StreamPort {
                shared: Arc::clone(self),
                id,
                can_send,
            },
        })
    }

    pub(super) fn ping(
        &self,
        number: u64,
    ) -> Result<tokio::sync::oneshot::Receiver<()>, AgentError> {
        let (answer, answered) = tokio::sync::oneshot::channel();
        self.lock().pings.insert(number, answer);
        self.send(CONTROL, &ToGuest::Ping(number))?;
        Ok(answered)
    }

    /// Takes in a message on a stream. One for a stream that has ended is late, not wrong.
    pub(super) fn dispatch(&self, id: u32, message: &ToHost<'_>) -> Result<(), AgentError> {
        let mut table = self.lock();
        let is_main = table.main == Some(id);
        let Some(stream) = table.streams.get_mut(&id) else {
            return Ok(());
        };
        stream.check(message)?;
        let (event, last) = match *message {
            ToHost::Credit(n) => {
                stream.send.credit(n)?;
                stream.can_send.notify_one();
                return Ok(());
            }
            ToHost::Data(bytes) => {
                stream.receive.received(bytes.len())?;
                (StreamEvent::Data(bytes.to_vec()), false)
            }
            ToHost::ErrorData(bytes) => {
                stream.receive.received(bytes.len())?;
                (StreamEvent::ErrorData(bytes.to_vec()), false)
            }
            ToHost::Started { pid } => (StreamEvent::Started(pid), false),
            ToHost::File(info) => (StreamEvent::File(info), false),
            ToHost::Eof => (StreamEvent::Eof, true),
            ToHost::Done => (StreamEvent::Done, true),
            ToHost::Exited(exit) => (StreamEvent::Exited(status(exit)), true),
            ToHost::Failed { errno, message } => {
                let message = crate::console::visible(&String::from_utf8_lossy(message));
                (StreamEvent::Failed { errno, message }, true)
            }
            ToHost::Hello { .. }
            | ToHost::Ready { .. }
            | ToHost::Fatal { .. }
            | ToHost::Pong(_) => {
                return Ok(());
            }
        };
        let exit = match &event {
            StreamEvent::Exited(status) => Some(*status),
            StreamEvent::Failed { errno, .. } => {
                Some(ExitStatus::Code(super::exec::exit_code_of(*errno)))
            }
            _ => None,
        };
        let size = match &event {
            StreamEvent::Data(bytes) | StreamEvent::ErrorData(bytes) => bytes.len(),
            _ => 0,
        };
        if stream.events.send(event).is_err() && !last {
            // Nobody wants it any more: the guest's side must not wait for a reader.
            if let Some(credit) = stream.receive.passed_on(size) {
                ToGuest::Credit(credit)
                    .encode(id, &mut table.out)
                    .map_err(AgentError::Request)?;
                self.has_output.notify_one();
            }
        }
        if last {
            let ended = table.streams.remove(&id);
            drop(table);
            if let Some(ended) = ended {
                ended.can_send.notify_one();
            }
            if let Some(exit) = exit.filter(|_| is_main) {
                self.main_exit.send_replace(Some(exit));
            }
        }
        Ok(())
    }

    pub(super) fn pong(&self, number: u64) {
        let waiting = self.lock().pings.remove(&number);
        if let Some(waiting) = waiting {
            let _ = waiting.send(());
        }
    }

    /// Ends everything with `why`; the first reason stays.
    pub(super) fn close(&self, why: AgentError) {
        let mut table = self.lock();
        if table.closed.is_none() {
            table.closed = Some(why.clone());
            self.phase.send_replace(Phase::Closed(why));
        }
        table.out = Vec::new();
        table.pings.clear();
        let streams = std::mem::take(&mut table.streams);
        drop(table);
        for stream in streams.into_values() {
            stream.can_send.notify_one();
        }
    }

    pub(super) fn why_closed(&self) -> AgentError {
        self.lock().closed.clone().unwrap_or(AgentError::Closed)
    }
}

fn status(exit: Exit) -> ExitStatus {
    match exit {
        Exit::Code(code) => ExitStatus::Code(code),
        Exit::Signal(signal) => ExitStatus::Signal(signal),
    }
}

/// One operation under way: what arrives, and a way to answer.
#[derive(Debug)]
pub(super) struct StreamHandle {
    events: mpsc::UnboundedReceiver<StreamEvent>,
    pub(super) port: StreamPort,
}

impl StreamHandle {
    /// The next thing that arrives. Data counts as passed on once it is returned.
    pub(super) async fn next(&mut self) -> Result<StreamEvent, AgentError> {
        let Some(event) = self.events.recv().await else {
            return Err(self.port.shared.why_closed());
        };
        if let StreamEvent::Data(bytes) | StreamEvent::ErrorData(bytes) = &event {
            self.port.passed_on(bytes.len());
        }
        Ok(event)
    }
}

/// The sending half of one operation.
#[derive(Debug, Clone)]
pub(super) struct StreamPort {
    shared: Arc<Shared>,
    id: u32,
    can_send: Arc<Notify>,
}

impl StreamPort {
    pub(super) fn send(&self, message: &ToGuest<'_>) -> Result<(), AgentError> {
        self.shared.send(self.id, message)
    }

    fn passed_on(&self, n: usize) {
        let mut table = self.shared.lock();
        // On a stream that has ended nobody waits for credit.
        let credit = table
            .streams
            .get_mut(&self.id)
            .and_then(|s| s.receive.passed_on(n));
        drop(table);
        if let Some(credit) = credit {
            // On a closed channel likewise.
            let _ = self.send(&ToGuest::Credit(credit));
        }
    }

    /// Sends all of `bytes`, waiting for the guest's credit as needed. Bytes for an operation
    /// that has ended are dropped, as a pipe's are whose reader is gone.
    pub(super) async fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        const CHUNK: usize = 32 * 1024;
        while !bytes.is_empty() {
            let sent = {
                let mut table = self.shared.lock();
                if let Some(why) = &table.closed {
                    return Err(why.clone());
                }
                let Some(stream) = table.streams.get_mut(&self.id) else {
                    return Ok(());
                };
                let n = bytes.len().min(stream.send.available()).min(CHUNK);
                stream.send.take(n)?;
                if n > 0 {
                    ToGuest::Data(&bytes[..n])
                        .encode(self.id, &mut table.out)
                        .map_err(AgentError::Request)?;
                }
                n
            };
            if sent == 0 {
                self.can_send.notified().await;
            } else {
                self.shared.has_output.notify_one();
                bytes = &bytes[sent..];
            }
        }
        Ok(())
    }
}
