//! The connection to a guest's agent.

use super::exec::{ExecHandle, ExecRequest};
use super::file::{self, FileMeta};
use super::streams::{AgentError, Phase, Shared};
use aleph_guest_proto::{
    CONTROL, Decoder, Root, Setup, ToGuest, ToHost, Upper, Versions, negotiate,
};
use aleph_types::ExitStatus;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// How long a frame that has begun may take to end. QEMU moves whole frames at once; the time
/// is for a host that is busy.
pub const STALL: Duration = Duration::from_secs(10);

/// How long a guest that no longer listens may take to end what it says.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// When the parts of a boot were over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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

/// What makes a booted guest ready for commands.
#[derive(Debug, Clone)]
pub struct SetupRequest {
    /// Its hostname.
    pub hostname: String,
    /// The image's filesystem as mount(2) names it.
    pub filesystem: String,
    /// What writes go to.
    pub upper: UpperKind,
    /// Whether it powers off when we hang up.
    pub poweroff_on_hangup: bool,
}

impl SetupRequest {
    /// The message, with entropy and time of now.
    fn with_message<T>(&self, send: impl FnOnce(&ToGuest<'_>) -> T) -> Result<T, AgentError> {
        let upper = match self.upper {
            UpperKind::Memory => Upper::Memory,
            UpperKind::Disk => Upper::Disk(SCRATCH_SERIAL.as_bytes()),
        };
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        Ok(send(&ToGuest::Setup(Setup {
            hostname: self.hostname.as_bytes(),
            unix_ns: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
            entropy: &entropy()?,
            root: Root {
                image_serial: IMAGE_SERIAL.as_bytes(),
                filesystem: self.filesystem.as_bytes(),
                upper,
            },
            poweroff_on_hangup: self.poweroff_on_hangup,
        })))
    }
}

/// What takes the writes over the read-only image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpperKind {
    /// The guest's memory.
    Memory,
    /// The scratch disk.
    Disk,
}

/// Serial number of the block device with the image.
pub(crate) const IMAGE_SERIAL: &str = "rootfs";
/// Serial number of the scratch disk.
pub(crate) const SCRATCH_SERIAL: &str = "scratch";

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
        let shared = Arc::new(Shared::new());
        // Refused now rather than when the guest is up.
        setup
            .with_message(|message| message.encode(CONTROL, &mut Vec::new()))?
            .map_err(AgentError::Request)?;
        let setup = setup.clone();
        let (read, write) = socket.into_split();
        let task_shared = Arc::clone(&shared);
        let tasks = tokio::spawn(async move {
            let shared = task_shared;
            let why = tokio::select! {
                why = read_all(read, &shared, setup, launched) => why,
                why = async {
                    let why = write_all(write, &shared).await;
                    // What the guest said before it hung up still waits to be read, and says
                    // more than that it hung up.
                    tokio::time::sleep(LAST_WORDS).await;
                    why
                } => why,
            };
            shared.close(why);
        });
        Ok(Self {
            shared,
            pings: Arc::default(),
            _tasks: Arc::new(Tasks(tasks)),
        })
    }

    /// Waits until the guest is ready for commands.
    ///
    /// # Errors
    /// Where the guest cannot go on, breaks the protocol or goes away.
    pub async fn ready(&self) -> Result<BootReport, AgentError> {
        let mut phase = self.shared.phase.subscribe();
        loop {
            match &*phase.borrow_and_update() {
                Phase::Waiting => {}
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

    /// Waits for the end of the main command. Never returns where there is none.
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

    /// Asks the guest to end its processes and power off.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn shutdown(&self, grace: Duration) -> Result<(), AgentError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.shared.send(CONTROL, &ToGuest::Shutdown { grace_ms })
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
}

fn entropy() -> Result<[u8; 64], AgentError> {
    use std::io::Read;
    let mut bytes = [0; 64];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

async fn write_all(mut socket: OwnedWriteHalf, shared: &Shared) -> AgentError {
    let mut batch = Vec::new();
    if let Err(error) = ToGuest::Hello(Versions::OURS).encode(CONTROL, &mut batch) {
        return AgentError::Request(error);
    }
    if let Err(error) = socket.write_all(&batch).await {
        return closed_or(error);
    }
    loop {
        shared.take_output(&mut batch);
        if batch.is_empty() {
            shared.has_output.notified().await;
        } else if let Err(error) = socket.write_all(&batch).await {
            return closed_or(error);
        }
    }
}

/// An end of the connection that only the other side's end explains is no failure of its own.
fn closed_or(error: std::io::Error) -> AgentError {
    match error.kind() {
        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset => AgentError::Closed,
        _ => error.into(),
    }
}

async fn read_all(
    mut socket: OwnedReadHalf,
    shared: &Shared,
    setup: SetupRequest,
    launched: Instant,
) -> AgentError {
    let mut reader = Reader {
        decoder: Decoder::new(),
        setup,
        times: None,
        launched,
    };
    let mut frame_began = None;
    loop {
        let read = socket.read(reader.decoder.space());
        let n = match frame_began {
            None => read.await,
            Some(began) => {
                match timeout(STALL.saturating_sub(Instant::elapsed(&began)), read).await {
                    Ok(read) => read,
                    Err(_) => return AgentError::Stalled,
                }
            }
        };
        match n {
            Ok(0) => return AgentError::Closed,
            Ok(n) => reader.decoder.filled(n),
            Err(error) => return closed_or(error),
        }
        match reader.dispatch(shared) {
            // Whole frames came out: whatever is left has only just begun.
            Ok(frames) if frames > 0 => frame_began = None,
            Ok(_) => {}
            Err(why) => return why,
        }
        frame_began = match frame_began {
            _ if !reader.decoder.is_mid_frame() => None,
            None => Some(Instant::now()),
            began => began,
        };
    }
}

struct Reader {
    decoder: Decoder,
    setup: SetupRequest,
    /// When the agent began and when it spoke, on the guest's clock, and how long after the
    /// launch its word arrived.
    times: Option<(Duration, Duration, Duration)>,
    launched: Instant,
}

impl Reader {
    fn dispatch(&mut self, shared: &Shared) -> Result<u32, AgentError> {
        let mut frames = 0;
        while let Some(frame) = self.decoder.next_frame()? {
            frames += 1;
            let message = ToHost::decode(&frame)?;
            if frame.stream != CONTROL {
                if self.times.is_none() {
                    return Err(AgentError::Protocol("an answer before Hello".into()));
                }
                shared.dispatch(frame.stream, &message)?;
                continue;
            }
            match message {
                ToHost::Hello {
                    versions,
                    started_us,
                    now_us,
                } => {
                    negotiate(Versions::OURS, versions)
                        .map_err(|mismatch| AgentError::Protocol(mismatch.to_string()))?;
                    let guest = (
                        Duration::from_micros(started_us),
                        Duration::from_micros(now_us),
                    );
                    self.times
                        .get_or_insert((guest.0, guest.1, self.launched.elapsed()));
                    self.setup.with_message(|setup| shared.greet(setup))??;
                }
                ToHost::Ready { .. } => {
                    let Some((started, spoke, arrived)) = self.times else {
                        return Err(AgentError::Protocol("Ready before Hello".into()));
                    };
                    let total = self.launched.elapsed();
                    let report = BootReport {
                        total,
                        before_kernel: arrived.saturating_sub(spoke),
                        kernel: started,
                        agent: spoke.saturating_sub(started),
                        root: total.saturating_sub(arrived),
                    };
                    shared.phase.send_if_modified(|phase| {
                        let first = matches!(phase, Phase::Waiting);
                        if first {
                            *phase = Phase::Ready(report);
                        }
                        first
                    });
                }
                ToHost::Fatal { message, .. } => {
                    let said = crate::console::visible(&String::from_utf8_lossy(message));
                    return Err(AgentError::Fatal(said));
                }
                ToHost::Pong(number) => shared.pong(number),
                _ => {}
            }
        }
        Ok(frames)
    }
}
