//! The table of streams that the connection's tasks and all handles share.

use super::error::AgentError;
use super::port::{StreamEvent, StreamHandle, StreamPort};
use super::{BootReport, GuestUsage, OwnedStat};
use aleph_guest_proto::{
    CONTROL, Exit, Kept, ReceiveWindow, SendWindow, ToGuest, ToHost, WINDOW, WindowError,
};
use aleph_types::ExitStatus;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// The most kept commands that a guest may tell of: it has no more streams.
const MAX_KEPT: usize = 256;

/// What a stream is, which says what may come on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Command,
    /// Something on its way in: a file or an archive.
    Sink,
    /// A file on its way out.
    File,
    /// An archive on its way out.
    Archive,
    /// A question with one answer.
    Question,
    Connection,
}

impl Kind {
    fn of(message: &ToGuest<'_>) -> Self {
        match message {
            ToGuest::Exec(_) | ToGuest::Attach { .. } => Self::Command,
            ToGuest::Put(_) | ToGuest::Unpack { .. } => Self::Sink,
            ToGuest::Get { .. } => Self::File,
            ToGuest::Pack { .. } => Self::Archive,
            ToGuest::Connect { .. } => Self::Connection,
            _ => Self::Question,
        }
    }
}

/// How much may come, and what is told of what came.
#[derive(Debug)]
enum Receive {
    /// Credit, as bytes are passed on.
    Credited(ReceiveWindow),
    /// How much came over all connections, and how much of it the guest was told to be stored.
    Kept { received: u64, told: u64 },
}

impl Receive {
    fn received(&mut self, n: usize) -> Result<(), WindowError> {
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

    fn passed_on(&mut self, n: usize) -> Option<u32> {
        match self {
            Self::Credited(window) => window.passed_on(n),
            Self::Kept { .. } => None,
        }
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    events: mpsc::UnboundedSender<StreamEvent>,
    pub(super) send: SendWindow,
    /// Whether data may still be sent.
    pub(super) takes_input: bool,
    receive: Receive,
    writers: Vec<Waker>,
    kind: Kind,
    /// Whether the guest has said that the operation has begun.
    begun: bool,
    /// Whether the guest has said that no more data comes.
    ended: bool,
}

impl Stream {
    /// Whether a message has a meaning here and now. What is not bounded by a window comes at
    /// most once.
    fn check(&mut self, message: &ToHost<'_>) -> Result<(), AgentError> {
        let wrong = |what: &str| Err(AgentError::Protocol(what.to_owned()));
        let has_meaning = match message {
            ToHost::Failed { .. } => true,
            ToHost::Data([]) | ToHost::ErrorData([]) => return wrong("data without a byte"),
            ToHost::Data(_) => !matches!(self.kind, Kind::Sink | Kind::Question),
            ToHost::Started { .. } | ToHost::ErrorData(_) | ToHost::Exited(_) => {
                self.kind == Kind::Command
            }
            ToHost::File(_) => self.kind == Kind::File,
            ToHost::Open => self.kind == Kind::Connection,
            ToHost::Eof => matches!(self.kind, Kind::File | Kind::Archive | Kind::Connection),
            ToHost::Done => matches!(self.kind, Kind::Sink | Kind::Connection),
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

    fn wake(&mut self) {
        for writer in self.writers.drain(..) {
            writer.wake();
        }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    pub(super) streams: HashMap<u32, Stream>,
    next: u32,
    main: Option<u32>,
    pub(super) out: Vec<u8>,
    /// Whether the guest has said hello. Until then everything waits here: the set-up goes
    /// first, and tells the time of when it is sent.
    greeted: bool,
    boot_id: Option<[u8; 16]>,
    kept: BTreeMap<u32, Kept>,
    pings: HashMap<u64, oneshot::Sender<()>>,
    pub(super) closed: Option<AgentError>,
}

/// How far the conversation has come.
#[derive(Debug, Clone)]
pub(super) enum Phase {
    Waiting,
    /// The guest has spoken, and needs a set-up.
    Fresh,
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
                boot_id: None,
                kept: BTreeMap::new(),
                pings: HashMap::new(),
                closed: None,
            }),
            has_output: Notify::new(),
            phase: watch::Sender::new(Phase::Waiting),
            main_exit: watch::Sender::new(None),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
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

    /// The guest has said hello: what waits may go, behind the set-up where it gets one.
    pub(super) fn greet(&self, setup: Option<&ToGuest<'_>>) -> Result<(), AgentError> {
        let mut table = self.lock();
        if !table.greeted {
            let mut out = Vec::new();
            if let Some(setup) = setup {
                setup
                    .encode(CONTROL, &mut out)
                    .map_err(AgentError::Request)?;
            }
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

    pub(super) fn set_boot_id(&self, id: [u8; 16]) {
        self.lock().boot_id = Some(id);
    }

    pub(super) fn boot_id(&self) -> Option<[u8; 16]> {
        self.lock().boot_id
    }

    /// Takes in what the guest tells of a kept command.
    pub(super) fn keep(&self, stream: u32, kept: Kept) -> Result<(), AgentError> {
        let mut table = self.lock();
        let is_sound = kept.stored <= kept.written
            && kept.written - kept.stored <= u64::from(WINDOW)
            && table.kept.len() < MAX_KEPT;
        if !is_sound || table.kept.insert(stream, kept).is_some() {
            return Err(AgentError::Protocol("a kept command that cannot be".into()));
        }
        table.next = table.next.max(stream.checked_add(1).unwrap_or(CONTROL + 1));
        Ok(())
    }

    pub(super) fn kept(&self) -> Vec<(u32, Kept)> {
        let table = self.lock();
        table.kept.iter().map(|(id, kept)| (*id, *kept)).collect()
    }

    /// Begins an operation with its first message. A main command's end is told on
    /// [`Shared::main_exit`].
    pub(super) fn open(
        self: &Arc<Self>,
        message: &ToGuest<'_>,
        main: bool,
    ) -> Result<StreamHandle, AgentError> {
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
        let keep = matches!(message, ToGuest::Exec(exec) if exec.keep);
        let receive = if keep {
            Receive::Kept {
                received: 0,
                told: 0,
            }
        } else {
            Receive::Credited(ReceiveWindow::default())
        };
        let takes_input = match message {
            ToGuest::Exec(exec) => exec.stdin,
            _ => true,
        };
        let events = table.insert(id, Kind::of(message), receive, takes_input);
        if main {
            table.main = Some(id);
        }
        drop(table);
        self.has_output.notify_one();
        Ok(self.handle(id, events, keep))
    }

    /// Goes on with a kept command of which `stored` bytes are stored.
    pub(super) fn attach(
        self: &Arc<Self>,
        id: u32,
        stored: u64,
    ) -> Result<(StreamHandle, u64), AgentError> {
        let mut table = self.lock();
        if let Some(why) = &table.closed {
            return Err(why.clone());
        }
        let kept = *table.kept.get(&id).ok_or(AgentError::NoSuchStream(id))?;
        if stored > kept.written {
            let written = kept.written;
            return Err(AgentError::Ahead { stored, written });
        }
        let from = stored.max(kept.stored);
        let message = ToGuest::Attach { stored: from };
        message
            .encode(id, &mut table.out)
            .map_err(AgentError::Request)?;
        table.kept.remove(&id);
        let receive = Receive::Kept {
            received: from,
            told: from,
        };
        let events = table.insert(id, Kind::Command, receive, kept.input);
        if let Some(stream) = table.streams.get_mut(&id) {
            stream.begun = true;
            let _ = stream.events.send(StreamEvent::Started(kept.pid));
        }
        if kept.main {
            table.main = Some(id);
        }
        drop(table);
        self.has_output.notify_one();
        Ok((self.handle(id, events, true), from))
    }

    fn handle(
        self: &Arc<Self>,
        id: u32,
        events: mpsc::UnboundedReceiver<StreamEvent>,
        keep: bool,
    ) -> StreamHandle {
        StreamHandle {
            events,
            keep,
            port: StreamPort {
                shared: Arc::clone(self),
                id,
            },
        }
    }

    pub(super) fn ping(&self, number: u64) -> Result<oneshot::Receiver<()>, AgentError> {
        let (answer, answered) = oneshot::channel();
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
        if let ToHost::Credit(n) = message {
            stream.send.credit(*n)?;
            stream.wake();
            return Ok(());
        }
        let Some(event) = event_of(message) else {
            return Ok(());
        };
        let size = match &event {
            StreamEvent::Data(bytes) | StreamEvent::ErrorData(bytes) => bytes.len(),
            _ => 0,
        };
        stream.receive.received(size)?;
        let last = match &event {
            StreamEvent::Eof => stream.kind != Kind::Connection,
            event => event.is_last(),
        };
        // The end of a kept command counts once it is stored.
        let exit = match (&event, &stream.receive) {
            (StreamEvent::Exited(status), Receive::Credited(_)) => Some(*status),
            (StreamEvent::Failed { errno, .. }, _) => {
                Some(ExitStatus::Code(super::exec::exit_code_of(*errno)))
            }
            _ => None,
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
            if let Some(mut ended) = ended {
                ended.wake();
            }
            if let Some(exit) = exit.filter(|_| is_main) {
                self.main_exit.send_replace(Some(exit));
            }
        }
        Ok(())
    }

    /// Tells the guest what is stored of a kept command: in quarters of a window, so that it
    /// costs few frames, or with `end` at once.
    pub(super) fn stored(
        &self,
        id: u32,
        total: u64,
        end: Option<ExitStatus>,
    ) -> Result<(), AgentError> {
        let mut table = self.lock();
        if end.is_none() {
            let Some(Stream {
                receive: Receive::Kept { received, told },
                ..
            }) = table.streams.get_mut(&id)
            else {
                return Ok(());
            };
            let total = total.min(*received);
            if total.saturating_sub(*told) < u64::from(WINDOW / 4) {
                return Ok(());
            }
            *told = total;
        }
        let is_main = table.main == Some(id);
        drop(table);
        let end_is_stored = end.is_some();
        let told = self.send(
            id,
            &ToGuest::Stored {
                total,
                end: end_is_stored,
            },
        );
        if let Some(exit) = end.filter(|_| is_main) {
            // Stored is stored, whether the guest still hears of it or not.
            self.main_exit.send_replace(Some(exit));
        }
        told
    }

    /// Gives a stream up, if it has not ended.
    pub(super) fn cancel(&self, id: u32) {
        if self.lock().streams.remove(&id).is_some() {
            // A closed channel has given it up already.
            let _ = self.send(id, &ToGuest::Cancel);
        }
    }

    /// Returns credit for what a stream's reader took.
    pub(super) fn passed_on(&self, id: u32, n: usize) {
        // On a stream that has ended nobody waits for credit.
        let credit = self
            .lock()
            .streams
            .get_mut(&id)
            .and_then(|stream| stream.receive.passed_on(n));
        if let Some(credit) = credit {
            // On a closed channel likewise.
            let _ = self.send(id, &ToGuest::Credit(credit));
        }
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
        for mut stream in streams.into_values() {
            stream.wake();
        }
    }

    pub(super) fn why_closed(&self) -> AgentError {
        self.lock().closed.clone().unwrap_or(AgentError::Closed)
    }
}

impl Table {
    fn insert(
        &mut self,
        id: u32,
        kind: Kind,
        receive: Receive,
        takes_input: bool,
    ) -> mpsc::UnboundedReceiver<StreamEvent> {
        let (events, receiver) = mpsc::unbounded_channel();
        let stream = Stream {
            events,
            send: SendWindow::default(),
            takes_input,
            receive,
            writers: Vec::new(),
            kind,
            begun: false,
            ended: false,
        };
        self.streams.insert(id, stream);
        receiver
    }
}

/// A message as its stream's reader gets it; none for those that have no reader.
fn event_of(message: &ToHost<'_>) -> Option<StreamEvent> {
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
        | ToHost::Kept(_) => return None,
    })
}
