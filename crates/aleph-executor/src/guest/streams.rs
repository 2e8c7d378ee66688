//! The table of streams that the connection's tasks and all handles share.

use super::BootReport;
use super::error::AgentError;
use super::port::{StreamEvent, StreamHandle, StreamPort};
use super::stream::{Kind, Receive, Stream, event_of};
use aleph_guest_proto::{CONTROL, GUEST_STREAMS, Kept, ReceiveWindow, ToGuest, ToHost, WINDOW};
use aleph_types::ExitStatus;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc, oneshot, watch};

/// The most connections that a guest may have begun at once: it has no more streams.
const MAX_ACCEPTED: usize = 256;

/// The most kept commands that a guest may tell of: it has no more streams.
const MAX_KEPT: usize = 256;

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
    version: u16,
    /// Where connections of the guest's go; none where nobody listens for any.
    accepted: Option<mpsc::Sender<Incoming>>,
    /// Whether the guest was told to listen, or may have been by an earlier host.
    listens: bool,
    pings: HashMap<u64, oneshot::Sender<()>>,
    /// Whether no data goes out: what does not arrive before the connection ends would be lost.
    pub(super) held: bool,
    /// Streams whose end waits with it.
    pub(super) ends: Vec<u32>,
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
    incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
}

/// A connection that a program in the guest began, and nobody has taken yet.
#[derive(Debug)]
struct Incoming {
    id: u32,
    port: u16,
    events: mpsc::UnboundedReceiver<StreamEvent>,
}

impl Shared {
    pub(super) fn new() -> Self {
        let (accepted, incoming) = mpsc::channel(MAX_ACCEPTED);
        Self {
            table: Mutex::new(Table {
                streams: HashMap::new(),
                next: CONTROL + 1,
                main: None,
                out: Vec::new(),
                greeted: false,
                boot_id: None,
                kept: BTreeMap::new(),
                version: 0,
                accepted: Some(accepted),
                listens: false,
                pings: HashMap::new(),
                held: false,
                ends: Vec::new(),
                closed: None,
            }),
            has_output: Notify::new(),
            phase: watch::Sender::new(Phase::Waiting),
            main_exit: watch::Sender::new(None),
            incoming: tokio::sync::Mutex::new(incoming),
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

    /// From now on no data goes out, until it is let go, or the connection ends.
    pub(super) fn hold(&self) {
        self.lock().held = true;
    }

    /// Lets data go out again.
    pub(super) fn release(&self) -> Result<(), AgentError> {
        let mut table = self.lock();
        if table.closed.is_some() || !std::mem::replace(&mut table.held, false) {
            return Ok(());
        }
        for id in std::mem::take(&mut table.ends) {
            let eof = ToGuest::Eof.encode(id, &mut table.out);
            eof.map_err(AgentError::Request)?;
        }
        table.streams.values_mut().for_each(Stream::wake);
        drop(table);
        self.has_output.notify_one();
        Ok(())
    }

    /// From now on the guest may tell of connections.
    pub(super) fn listens(&self) {
        self.lock().listens = true;
    }

    pub(super) fn set_version(&self, version: u16) {
        self.lock().version = version;
    }

    /// The version that is spoken; 0 before the guest has said hello.
    pub(super) fn version(&self) -> u16 {
        self.lock().version
    }

    /// Takes in a connection that a program in the guest began.
    fn accepted(table: &mut Table, id: u32, port: u16) -> Result<(), AgentError> {
        let wrong = |what: &str| Err(AgentError::Protocol(what.to_owned()));
        if !table.listens {
            return wrong("a connection to a port that nobody listens on");
        }
        if id < GUEST_STREAMS || table.streams.contains_key(&id) {
            return wrong("a connection on a stream that is not free");
        }
        let theirs = table.streams.keys().filter(|id| **id >= GUEST_STREAMS);
        if theirs.count() >= MAX_ACCEPTED {
            return wrong("too many connections");
        }
        let receive = Receive::Credited(ReceiveWindow::default());
        let events = table.insert(id, Kind::Connection, receive, true);
        if let Some(stream) = table.streams.get_mut(&id) {
            stream.begun = true;
        }
        // What nobody has taken is bounded, too, whether it still stands or not.
        match &table.accepted {
            Some(accepted) => accepted
                .try_send(Incoming { id, port, events })
                .or_else(|_| wrong("connections faster than they are taken")),
            None => Ok(()),
        }
    }

    /// The next connection that a program in the guest began, with its port.
    pub(super) async fn accept(self: &Arc<Self>) -> Result<(u16, StreamHandle), AgentError> {
        match self.incoming.lock().await.recv().await {
            Some(Incoming { id, port, events }) => Ok((port, self.handle(id, events, false))),
            None => Err(self.why_closed()),
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
        if let ToHost::Accepted { port } = message {
            return Self::accepted(&mut table, id, *port);
        }
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

    /// How much of a kept command's output has come.
    pub(super) fn received(&self, id: u32) -> Option<u64> {
        match self.lock().streams.get(&id)?.receive {
            Receive::Kept { received, .. } => Some(received),
            Receive::Credited(_) => None,
        }
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
        table.accepted = None;
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
        let stream = Stream::new(events, kind, receive, takes_input);
        self.streams.insert(id, stream);
        receiver
    }
}
