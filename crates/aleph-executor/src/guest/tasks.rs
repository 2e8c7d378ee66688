//! The two tasks of a connection: one writes what is queued, one reads and hands on.

use super::BootReport;
use super::error::AgentError;
use super::setup::SetupRequest;
use super::streams::{Phase, Shared};
use aleph_guest_proto::{
    CONTROL, Decoder, Item, MARK, MARK_SIZE, ToGuest, ToHost, Versions, negotiate,
};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a frame that has begun may take to end. QEMU moves whole frames at once; the time
/// is for a host that is busy.
pub const STALL: Duration = Duration::from_secs(10);

/// How long a guest that no longer listens may take to end what it says.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a guest is to the connection.
#[derive(Debug)]
pub(super) enum Guest {
    /// One that boots.
    Booting {
        setup: SetupRequest,
        launched: Instant,
    },
    /// One that ran before this connection, with what it gets where it was not set up.
    Old { setup: Option<SetupRequest> },
}

/// Starts the tasks of a connection.
pub(super) fn start(
    socket: UnixStream,
    shared: Arc<Shared>,
    guest: Guest,
) -> Result<JoinHandle<()>, AgentError> {
    let nonce = super::setup::random::<MARK_SIZE>()?;
    let (read, write) = socket.into_split();
    Ok(tokio::spawn(async move {
        let why = tokio::select! {
            why = read_all(read, &shared, guest, nonce) => why,
            why = async {
                let why = write_all(write, &shared, nonce).await;
                // What the guest said before it hung up still waits to be read, and says
                // more than that it hung up.
                tokio::time::sleep(LAST_WORDS).await;
                why
            } => why,
        };
        shared.close(why);
    }))
}

async fn write_all(
    mut socket: OwnedWriteHalf,
    shared: &Shared,
    nonce: [u8; MARK_SIZE],
) -> AgentError {
    let mut batch = MARK.to_vec();
    let hello = ToGuest::Hello {
        versions: Versions::OURS,
        nonce,
    };
    if let Err(error) = hello.encode(CONTROL, &mut batch) {
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
    guest: Guest,
    nonce: [u8; MARK_SIZE],
) -> AgentError {
    let mut reader = Reader {
        decoder: Decoder::for_host(nonce),
        guest,
        progress: Progress::Silent,
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
    guest: Guest,
    progress: Progress,
}

/// What the guest has said so far.
#[derive(Debug, Clone, Copy)]
enum Progress {
    Silent,
    Greeted(Times),
    Ready,
}

/// When the agent began and when it spoke, on the guest's clock, and how long after the launch
/// its word arrived.
#[derive(Debug, Clone, Copy)]
struct Times {
    started: Duration,
    spoke: Duration,
    arrived: Duration,
    was_ready: bool,
}

impl Reader {
    fn dispatch(&mut self, shared: &Shared) -> Result<u32, AgentError> {
        let mut frames = 0;
        while let Some(item) = self.decoder.next_item()? {
            frames += 1;
            let Item::Frame(frame) = item else { continue };
            let message = ToHost::decode(&frame)?;
            match (message, self.progress) {
                (ToHost::Fatal { message, .. }, _) => {
                    let said = crate::console::visible(&String::from_utf8_lossy(message));
                    return Err(AgentError::Fatal(said));
                }
                (
                    ToHost::Hello {
                        versions,
                        started_us,
                        now_us,
                        boot_id,
                        is_ready,
                    },
                    Progress::Silent,
                ) => {
                    let version = negotiate(Versions::OURS, versions)
                        .map_err(|mismatch| AgentError::Protocol(mismatch.to_string()))?;
                    shared.set_boot_id(boot_id);
                    shared.set_version(version);
                    self.progress = Progress::Greeted(Times {
                        started: Duration::from_micros(started_us),
                        spoke: Duration::from_micros(now_us),
                        arrived: self.guest.age(),
                        was_ready: is_ready,
                    });
                    self.guest.greet(is_ready, version, shared)?;
                }
                (ToHost::Hello { .. }, _) => return wrong("a second Hello"),
                (ToHost::Ready { .. }, Progress::Silent) => return wrong("Ready before Hello"),
                (ToHost::Ready { .. }, Progress::Greeted(times)) => {
                    self.progress = Progress::Ready;
                    let report = self.guest.report(times);
                    shared.phase.send_replace(Phase::Ready(report));
                }
                (
                    ToHost::Kept(kept),
                    Progress::Greeted(Times {
                        was_ready: true, ..
                    }),
                ) => {
                    shared.keep(frame.stream, kept)?;
                }
                (ToHost::Kept(_), _) => return wrong("a kept command at the wrong time"),
                (ToHost::Pong(number), _) => shared.pong(number),
                (_, Progress::Silent) => return wrong("an answer before Hello"),
                (message, _) => shared.dispatch(frame.stream, &message)?,
            }
        }
        Ok(frames)
    }
}

fn wrong<T>(what: &str) -> Result<T, AgentError> {
    Err(AgentError::Protocol(what.to_owned()))
}

impl Guest {
    /// How long ago it was launched, where that is known.
    fn age(&self) -> Duration {
        match self {
            Self::Booting { launched, .. } => launched.elapsed(),
            Self::Old { .. } => Duration::ZERO,
        }
    }

    /// Answers its hello.
    fn greet(&self, is_ready: bool, version: u16, shared: &Shared) -> Result<(), AgentError> {
        match self {
            // Its streams are another host's: numbers would be used twice.
            Self::Booting { .. } if is_ready => wrong("a new guest that was set up before"),
            Self::Booting { setup, .. } | Self::Old { setup: Some(setup) } if !is_ready => {
                if setup.network.is_some() && version < Versions::NETWORK {
                    return Err(AgentError::TooOld { version });
                }
                if !setup.mounts.is_empty() && version < Versions::MOUNTS {
                    return Err(AgentError::NoMounts { version });
                }
                shared.phase.send_replace(Phase::Fresh);
                setup.with_message(|setup| shared.greet(Some(setup)))?
            }
            Self::Old { setup: None } if !is_ready => Err(AgentError::NotSetUp),
            _ => shared.greet(None),
        }
    }

    /// How its boot went, as far as that can be known.
    fn report(&self, times: Times) -> BootReport {
        let Self::Booting { launched, .. } = self else {
            return BootReport {
                kernel: times.started,
                ..BootReport::default()
            };
        };
        let total = launched.elapsed();
        BootReport {
            total,
            before_kernel: times.arrived.saturating_sub(times.spoke),
            kernel: times.started,
            agent: times.spoke.saturating_sub(times.started),
            root: total.saturating_sub(times.arrived),
        }
    }
}
