//! A started program: waiting for it, reading from it, killing it.

use super::error::ProgramError;
use rustix::process::{Pid, Signal, kill_process_group};
use std::io::{self, Read};
use std::process::{Child, ChildStdout, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much of a program's standard error is kept: its end, where the reason is.
const STDERR_KEPT: usize = 8 << 10;
/// How programs say that a disk is full, in the language that they are told to speak.
const DISK_FULL: [&[u8]; 2] = [b"No space left on device", b"enough free space"];

/// A program's output, and whether all of it was read.
struct Stdout {
    pipe: ChildStdout,
    ended: bool,
}

impl Read for Stdout {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.pipe.read(buffer)?;
        self.ended |= n == 0 && !buffer.is_empty();
        Ok(n)
    }
}

/// A started program; dropping it kills its whole group.
pub(crate) struct Running {
    name: String,
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Option<JoinHandle<Stderr>>,
    group: Option<Pid>,
    limit: Duration,
    deadline: Instant,
    killed: bool,
    ended: bool,
}

impl Running {
    /// Starts a command whose standard error is piped.
    pub(crate) fn start(
        name: String,
        command: &mut Command,
        limit: Duration,
    ) -> Result<Self, ProgramError> {
        let mut child = command.spawn().map_err(|source| ProgramError::Start {
            program: name.clone(),
            source,
        })?;
        let stderr = child.stderr.take();
        Ok(Self {
            name,
            stdout: child.stdout.take(),
            stderr: stderr.map(|pipe| std::thread::spawn(move || Stderr::of(pipe))),
            group: i32::try_from(child.id()).ok().and_then(Pid::from_raw),
            child,
            limit,
            deadline: Instant::now() + limit,
            killed: false,
            ended: false,
        })
    }

    /// As [`Program::stream`](super::Program::stream); its standard output is piped.
    pub(crate) fn stream<T, E: From<ProgramError>>(
        mut self,
        consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
    ) -> Result<T, E> {
        let pipe = self.stdout.take().ok_or_else(|| ProgramError::Output {
            program: self.name.clone(),
            source: io::Error::from(io::ErrorKind::BrokenPipe),
        })?;
        let mut stdout = Stdout { pipe, ended: false };
        let watchdog = Watchdog::start(self.group, self.deadline);
        let consumed = consume(&mut stdout);
        if consumed.is_ok() {
            // Output that cannot be read is told by the exit status.
            let _ = io::copy(&mut stdout, &mut io::sink());
        }
        self.killed |= watchdog.stop();
        if consumed.is_err() && !stdout.ended {
            return consumed;
        }
        drop(stdout);
        self.wait(&mut || {})?;
        consumed
    }

    /// Waits for its end and calls `watch` about fifty times a second.
    pub(crate) fn wait(&mut self, watch: &mut dyn FnMut()) -> Result<(), ProgramError> {
        let mut pause = Duration::from_millis(1);
        let status = loop {
            let status = self
                .child
                .try_wait()
                .map_err(|source| ProgramError::Start {
                    program: self.name.clone(),
                    source,
                })?;
            if let Some(status) = status {
                self.ended = true;
                break status;
            }
            if !self.killed && Instant::now() >= self.deadline {
                self.killed = true;
                kill(self.group);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
            watch();
        };
        watch();
        let Stderr { end, disk_full } = self
            .stderr
            .take()
            .and_then(|t| t.join().ok())
            .unwrap_or_default();
        if self.killed {
            Err(ProgramError::TimedOut {
                program: self.name.clone(),
                limit: self.limit,
                stderr: end,
            })
        } else if status.success() {
            Ok(())
        } else {
            Err(ProgramError::Failed {
                program: self.name.clone(),
                status,
                stderr: end,
                disk_full,
            })
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            kill(self.group);
            // Killed, so this is short; there is nobody to tell of an error.
            let _ = self.child.wait();
        }
    }
}

fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        // It may have ended meanwhile, and then there is nothing to do.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

/// Kills a group at its deadline while its output is being read.
///
/// It is stopped before the child is waited for, so it never signals a group id that is free.
struct Watchdog {
    stop: mpsc::Sender<()>,
    fired: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    fn start(group: Option<Pid>, deadline: Instant) -> Self {
        let (stop, stopped) = mpsc::channel();
        let fired = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&fired);
        let thread = std::thread::spawn(move || {
            let left = deadline.saturating_duration_since(Instant::now());
            if stopped.recv_timeout(left) == Err(mpsc::RecvTimeoutError::Timeout) {
                flag.store(true, Ordering::SeqCst);
                kill(group);
            }
        });
        Self {
            stop,
            fired,
            thread,
        }
    }

    /// Whether it had to kill.
    fn stop(self) -> bool {
        drop(self.stop);
        // A panic in it is impossible, and the flag says all there is to know.
        let _ = self.thread.join();
        self.fired.load(Ordering::SeqCst)
    }
}

/// What is kept of a program's standard error.
#[derive(Default)]
struct Stderr {
    end: String,
    disk_full: bool,
}

impl Stderr {
    fn of(mut pipe: impl Read) -> Self {
        let mut kept = Vec::new();
        let mut buffer = [0; 4096];
        let mut disk_full = false;
        while let Ok(n) = pipe.read(&mut buffer) {
            if n == 0 {
                break;
            }
            // A phrase may be cut in two by the end of a read, so the search begins before it.
            let before = kept.len().saturating_sub(32);
            kept.extend_from_slice(&buffer[..n]);
            disk_full |= DISK_FULL
                .iter()
                .any(|phrase| kept[before..].windows(phrase.len()).any(|w| w == *phrase));
            if kept.len() > 2 * STDERR_KEPT {
                kept.drain(..kept.len() - STDERR_KEPT);
            }
        }
        Self {
            end: String::from_utf8_lossy(&kept).into_owned(),
            disk_full,
        }
    }
}
