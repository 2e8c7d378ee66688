//! The connection to a guest's agent.

use super::archive::{self, OwnedStat, UnpackSink};
use super::bytes::GuestReader;
use super::connection::{self, Connection};
use super::error::AgentError;
use super::exec::{ExecHandle, ExecRequest};
use super::file::{self, FileMeta};
use super::order::{self, CloneRequest, MountRequest, Ordered};
use super::setup::SetupRequest;
use super::streams::{Phase, Shared};
use super::tasks::{self, Guest};
use super::usage::{self, GuestUsage};
use aleph_guest_proto::{CONTROL, Kept, Link, ToGuest, Versions};
use aleph_types::ExitStatus;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;

pub(crate) use super::setup::{IMAGE_SERIAL, SCRATCH_SERIAL};

/// When the parts of a boot were over. Of a guest that was up before this connection only
/// `kernel` is known, and the rest is zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BootReport {
    /// From the VMM's launch until the guest was ready for commands, on the host's clock.
    pub total: Duration,
    /// Of this, before the guest's kernel started its clock: the VMM's process and the firmware.
    pub before_kernel: Duration,
    /// From the kernel's first clock to the agent's first instruction.
    pub kernel: Duration,
    /// From there until the agent spoke: devices, modules, channel.
    pub agent: Duration,
    /// From there until the root was assembled.
    pub root: Duration,
}

/// A connection to the agent of one guest. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Agent {
    shared: Arc<Shared>,
    pings: Arc<AtomicU64>,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks(tokio::task::JoinHandle<()>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a host that comes back knows of a guest.
#[derive(Debug, Clone, Default)]
pub struct Reattach {
    /// How far its main command got, where the host has a record of it. Without one, a main
    /// command that runs nevertheless goes on where the guest's memory of it begins.
    pub main: Option<MainPosition>,
    /// What it is set up with where that did not happen before; without it, such a guest is
    /// [`AgentError::NotSetUp`].
    pub setup: Option<SetupRequest>,
}

/// How far a main command got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MainPosition {
    /// Its stream ([`ExecHandle::stream`]).
    pub stream: u32,
    /// How many bytes of its output are stored, both streams counted.
    pub received: u64,
}

impl Agent {
    /// Opens the conversation over a connected socket; `launched` is when the VMM started.
    /// Nothing is waited for: what is sent before the guest runs reaches it when it does.
    ///
    /// # Errors
    /// Where the set-up does not fit a frame.
    pub fn open(
        socket: UnixStream,
        setup: &SetupRequest,
        launched: Instant,
    ) -> Result<Self, AgentError> {
        // Refused now rather than when the guest is up.
        setup
            .with_message(|message| message.encode(CONTROL, &mut Vec::new()))?
            .map_err(AgentError::Request)?;
        Self::start(
            socket,
            Guest::Booting {
                setup: setup.clone(),
                launched,
            },
        )
    }

    /// The same with a clone whose template listened on ports: [`Agent::accept`] gives the
    /// connections that it had.
    ///
    /// # Errors
    /// As [`Agent::reattach`].
    pub async fn reattach_listening(
        socket: UnixStream,
        reattach: Reattach,
    ) -> Result<(Self, Option<ExecHandle>), AgentError> {
        let shared = Arc::new(Shared::new());
        shared.listens();
        Self::reattach_over(socket, reattach, shared).await
    }

    fn start(socket: UnixStream, guest: Guest) -> Result<Self, AgentError> {
        Self::start_over(socket, guest, Arc::new(Shared::new()))
    }

    fn start_over(
        socket: UnixStream,
        guest: Guest,
        shared: Arc<Shared>,
    ) -> Result<Self, AgentError> {
        let tasks = tasks::start(socket, Arc::clone(&shared), guest)?;
        Ok(Self {
            shared,
            pings: Arc::default(),
            _tasks: Arc::new(Tasks(tasks)),
        })
    }

    /// Goes on with a guest that another connection was opened to, and with its main command,
    /// whose handle continues exactly behind what is stored ([`ExecHandle::position`]): no byte
    /// is lost, and none comes twice. It says [`Started`](super::ExecEvent::Started) first.
    ///
    /// There is no handle where the guest has no main command: it was never begun, or its end
    /// was stored before. Other kept commands are in [`Agent::kept`].
    ///
    /// A guest that is paused does not answer: whoever cannot wait drops the future, which
    /// closes the connection.
    ///
    /// # Errors
    /// [`AgentError::NotSetUp`]; [`AgentError::Ahead`] where the record is another guest's;
    /// others where the guest cannot go on, breaks the protocol or goes away.
    pub async fn reattach(
        socket: UnixStream,
        reattach: Reattach,
    ) -> Result<(Self, Option<ExecHandle>), AgentError> {
        Self::reattach_over(socket, reattach, Arc::new(Shared::new())).await
    }

    async fn reattach_over(
        socket: UnixStream,
        reattach: Reattach,
        shared: Arc<Shared>,
    ) -> Result<(Self, Option<ExecHandle>), AgentError> {
        let Reattach { main, setup } = reattach;
        let agent = Self::start_over(socket, Guest::Old { setup }, shared)?;
        let mut phase = agent.shared.phase.subscribe();
        let phase = phase
            .wait_for(|phase| !matches!(phase, Phase::Waiting))
            .await
            .map(|phase| phase.clone());
        match phase {
            Ok(Phase::Fresh) => return Ok((agent, None)),
            Ok(Phase::Closed(why)) => return Err(why),
            Ok(_) => {}
            Err(_) => return Err(AgentError::Closed),
        }
        let found = agent.kept().into_iter().find(|(stream, kept)| match main {
            Some(main) => main.stream == *stream,
            None => kept.main,
        });
        let handle = match found {
            Some((stream, _)) => Some(agent.attach(stream, main.map_or(0, |main| main.received))?),
            None => None,
        };
        Ok((agent, handle))
    }

    /// The kept commands that a guest had when this connection began, by stream, but for those
    /// that were attached to.
    #[must_use]
    pub fn kept(&self) -> Vec<(u32, Kept)> {
        self.shared.kept()
    }

    /// Goes on with a kept command of which so many bytes of output are stored.
    ///
    /// # Errors
    /// [`AgentError::NoSuchStream`] and [`AgentError::Ahead`], or a channel that is closed.
    pub fn attach(&self, stream: u32, stored: u64) -> Result<ExecHandle, AgentError> {
        let (stream, from) = self.shared.attach(stream, stored)?;
        Ok(ExecHandle::at(stream, from))
    }

    /// From now on commands get no input, which waits. What was sent before has arrived once
    /// [`Agent::ping`] is answered: so none is lost where the connection then ends.
    pub(crate) fn hold_input(&self) {
        self.shared.hold();
    }

    /// Lets input go on.
    ///
    /// # Errors
    /// Never for what a caller does.
    pub(crate) fn release_input(&self) -> Result<(), AgentError> {
        self.shared.release()
    }

    /// Whether the guest's agent knows how to stand still and go on again.
    #[must_use]
    pub fn can_freeze(&self) -> bool {
        self.shared.version() >= Versions::SNAPSHOTS
    }

    /// How much of a kept command's output has come on this connection and those before; none
    /// where there is no such command (any more).
    #[must_use]
    pub fn received(&self, stream: u32) -> Option<u64> {
        self.shared.received(stream)
    }

    /// The random id of the guest's boot, as its kernel prints it: the same for as long as the
    /// guest lives. None before it has spoken, which it has when [`Agent::ready`] returns.
    #[must_use]
    pub fn boot_id(&self) -> Option<String> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let id = self.shared.boot_id()?;
        let parts = [&id[..4], &id[4..6], &id[6..8], &id[8..10], &id[10..]];
        Some(parts.map(hex).join("-"))
    }

    /// Waits until the guest is ready for commands.
    ///
    /// # Errors
    /// Where the guest cannot go on, breaks the protocol or goes away.
    pub async fn ready(&self) -> Result<BootReport, AgentError> {
        let mut phase = self.shared.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Waiting | Phase::Fresh => {}
                Phase::Ready(report) => return Ok(*report),
                Phase::Closed(why) => return Err(why.clone()),
            }
            if phase.changed().await.is_err() {
                return Err(AgentError::Closed);
            }
        }
    }

    /// Waits until the channel is closed, and says why.
    pub async fn closed(&self) -> AgentError {
        let mut phase = self.shared.phase.subscribe();
        let closed = phase
            .wait_for(|phase| matches!(phase, Phase::Closed(_)))
            .await;
        match closed.as_deref() {
            Ok(Phase::Closed(why)) => why.clone(),
            _ => AgentError::Closed,
        }
    }

    /// Closes it for all who have it: what is under way fails with [`AgentError::Closed`].
    pub fn close(&self) {
        self.shared.close(AgentError::Closed);
    }

    /// Waits for the end of the main command; a kept one's counts once it is stored
    /// ([`ExecHandle::end_stored`]). Never returns where there is none.
    pub async fn main_exit(&self) -> ExitStatus {
        let mut exit = self.shared.main_exit.subscribe();
        loop {
            if let Some(status) = *exit.borrow_and_update() {
                return status;
            }
            if exit.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Starts a command. It may be asked for before the guest is ready.
    ///
    /// # Errors
    /// Where the request does not fit a frame, or the channel is closed.
    pub fn exec(&self, request: &ExecRequest) -> Result<ExecHandle, AgentError> {
        request.with_message(|message, main| Ok(ExecHandle::new(self.shared.open(message, main)?)))
    }

    /// Asks for a sign of life and waits for it.
    ///
    /// # Errors
    /// Where the channel closes first.
    pub async fn ping(&self) -> Result<(), AgentError> {
        let number = self.pings.fetch_add(1, Ordering::Relaxed);
        let answered = self.shared.ping(number)?;
        answered.await.map_err(|_| self.shared.why_closed())
    }

    /// Asks the guest to end its processes and power off: main commands get `signal`, all others
    /// TERM, and what is left after `grace` gets KILL. The end of a kept command still waits to
    /// be stored.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn shutdown(&self, grace: Duration, signal: u8) -> Result<(), AgentError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.shared
            .send(CONTROL, &ToGuest::Shutdown { grace_ms, signal })
    }

    /// Writes a file in the guest from `bytes`, whole or not at all.
    ///
    /// # Errors
    /// Where the guest could not write it, or the channel closes.
    pub async fn put(&self, path: &str, meta: FileMeta, bytes: &[u8]) -> Result<(), AgentError> {
        file::put(&self.shared, path, meta, bytes).await
    }

    /// Reads a file in the guest, at most `limit` bytes.
    ///
    /// # Errors
    /// Where the guest could not read it, it is larger, or the channel closes.
    pub async fn get(&self, path: &str, limit: usize) -> Result<(FileMeta, Vec<u8>), AgentError> {
        file::get(&self.shared, path, limit).await
    }

    /// Packs a file or folder of the guest as a tar archive (GNU format; sockets and devices are
    /// left out, other filesystems are not entered). A link at the end of `path` is packed, not
    /// followed. `name` is what it is called in the archive; the last part of the path when
    /// empty.
    ///
    /// # Errors
    /// Where the request does not fit a frame, or the channel is closed; all others come from
    /// the reader.
    pub fn pack(&self, path: &str, name: &str) -> Result<GuestReader, AgentError> {
        archive::pack(&self.shared, path.as_bytes(), name.as_bytes())
    }

    /// Unpacks a tar archive below a folder of the guest. Nothing is written outside of it,
    /// whatever names and links the archive has. Files are root's unless `owners` is set: then
    /// they are whose the archive says.
    ///
    /// # Errors
    /// As [`Agent::pack`]; all others come from [`UnpackSink::finish`].
    pub fn unpack(&self, path: &str, owners: bool) -> Result<UnpackSink, AgentError> {
        archive::unpack(&self.shared, path.as_bytes(), owners)
    }

    /// Says what is at a path in the guest, or where a link at its end leads, with `follow`.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with the guest's error number, 2 where nothing is there.
    pub async fn stat(&self, path: &str, follow: bool) -> Result<OwnedStat, AgentError> {
        archive::stat(&self.shared, path.as_bytes(), follow).await
    }

    /// Connects to a TCP port of the guest's loopback address (127.0.0.1).
    ///
    /// # Errors
    /// [`AgentError::Failed`] with the guest's error number, 111 where nobody listens.
    pub async fn connect(&self, port: u16) -> Result<Connection, AgentError> {
        connection::connect(&self.shared, port).await
    }

    /// Has the agent listen on a TCP port of the guest's loopback address, for as long as the
    /// guest lives: [`Agent::accept`] gives the connections.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with the guest's error number, 98 where somebody listens there.
    pub async fn listen(&self, port: u16) -> Result<(), AgentError> {
        let message = ToGuest::Listen { port };
        self.shared.listens();
        order::order(&self.shared, &message)?.done().await
    }

    /// The next connection of a program in the guest to a port that is listened on, with the
    /// port. One that an earlier host or the template of a clone left unanswered comes again, and
    /// says again what was not answered.
    ///
    /// # Errors
    /// Where the channel closes.
    pub async fn accept(&self) -> Result<(u16, Connection), AgentError> {
        connection::accept(&self.shared).await
    }

    /// Has the guest mount a filesystem.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with what the guest could not do.
    pub async fn mount(&self, mount: &MountRequest) -> Result<(), AgentError> {
        order::mount(&self.shared, mount)?.done().await
    }

    /// Sets up the guest's interface of a link to this host ([`crate::hypervisor::Link`]).
    ///
    /// # Errors
    /// [`AgentError::NoLinks`] for a guest that knows none, or [`AgentError::Failed`] with what
    /// it could not do.
    pub async fn link(&self, link: Link) -> Result<(), AgentError> {
        let version = self.shared.version();
        if version < Versions::LINKS {
            return Err(AgentError::NoLinks { version });
        }
        order::order(&self.shared, &ToGuest::Link(link))?
            .done()
            .await
    }

    /// Stops every process in the guest but the agent, until [`Agent::resume`]: the guest can be
    /// written down once this returns.
    ///
    /// # Errors
    /// [`AgentError::Failed`] where a process does not stand still: then all go on.
    pub async fn freeze(&self) -> Result<(), AgentError> {
        order::order(&self.shared, &ToGuest::Freeze)?.done().await
    }

    /// Has a guest that stands still do ahead what each clone of it would do first. It takes a moment.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub async fn settle(&self) -> Result<(), AgentError> {
        order::order(&self.shared, &ToGuest::Settle)?.done().await
    }

    /// Makes a clone one of its own and lets its processes go on. It is under way when this
    /// returns: what is sent after it reaches the guest after it.
    ///
    /// # Errors
    /// Where it does not fit a frame, or the channel is closed.
    pub fn resume(&self, clone: &CloneRequest) -> Result<Ordered, AgentError> {
        order::resume(&self.shared, clone)
    }

    /// Sets the clock of a guest that was paused.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn set_clock(&self) -> Result<(), AgentError> {
        order::set_clock(&self.shared)
    }

    /// Asks what the guest uses.
    ///
    /// # Errors
    /// Where the channel closes first.
    pub async fn usage(&self) -> Result<GuestUsage, AgentError> {
        usage::usage(&self.shared).await
    }
}
