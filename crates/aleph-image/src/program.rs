//! Starting other programs: a bounded wait, their last words in the error, nothing left running.

use aleph_types::{Classify, ErrorClass};
use rustix::process::{Pid, Signal, kill_process_group};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How much of a program's standard error is kept: its end, where the reason is.
const STDERR_KEPT: usize = 8 << 10;
/// How much of it an error shows.
const STDERR_LINES: usize = 6;
/// Where administrators' programs are, which a daemon's or a user's `PATH` may lack.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program that could not be started, or did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not installed.
    #[error("the program {program} is not installed")]
    Missing {
        /// Its name.
        program: String,
        /// The Debian package that it is in.
        package: Option<&'static str>,
    },
    /// It is there and cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}){}", last_words(stderr))]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its standard error.
        stderr: String,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {} s and was killed{}", limit.as_secs(), last_words(stderr))]
    TimedOut {
        /// Its name.
        program: String,
        /// How long it had.
        limit: Duration,
        /// The end of its standard error.
        stderr: String,
    },
    /// Its output could not be read.
    #[error("cannot read the output of {program}")]
    Output {
        /// Its name.
        program: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ProgramError {
    /// Whether the program complained that a disk is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Failed { stderr, .. }
            if stderr.contains("No space left on device") || stderr.contains("enough free space"))
    }
}

impl Classify for ProgramError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Missing { .. } | Self::TimedOut { .. } => ErrorClass::Unavailable,
            Self::Failed { .. } if self.is_disk_full() => ErrorClass::Capacity,
            Self::Start { .. } | Self::Failed { .. } | Self::Output { .. } => ErrorClass::Internal,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "program_missing",
            Self::Start { .. } => "program_start",
            Self::Failed { .. } if self.is_disk_full() => "disk_full",
            Self::Failed { .. } => "program_failed",
            Self::TimedOut { .. } => "program_timeout",
            Self::Output { .. } => "program_output",
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Missing { package, .. } => {
                package.map(|package| format!("Install it: apt-get install -y {package}."))
            }
            Self::TimedOut { .. } => Some("Try again when the machine is less busy.".into()),
            Self::Failed { .. } if self.is_disk_full() => Some("Make room on the disk.".into()),
            Self::Start { .. } | Self::Failed { .. } | Self::Output { .. } => None,
        }
    }
}

fn last_words(stderr: &str) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let kept = &lines[lines.len().saturating_sub(STDERR_LINES)..];
    if kept.is_empty() {
        String::new()
    } else {
        format!(": {}", kept.join("; "))
    }
}

/// A program about to be started.
pub(crate) struct Program {
    name: String,
    command: Command,
    limit: Duration,
}

impl Program {
    /// Finds `name` on the path; `package` is the Debian package that has it.
    pub(crate) fn find(
        name: &str,
        package: &'static str,
        limit: Duration,
    ) -> Result<Self, ProgramError> {
        let file = locate(name).ok_or_else(|| ProgramError::Missing {
            program: name.to_owned(),
            package: Some(package),
        })?;
        Ok(Self::at(&file, name, limit))
    }

    /// The program in the file `file`.
    pub(crate) fn at(file: &Path, name: &str, limit: Duration) -> Self {
        let mut command = Command::new(file);
        let inherited = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            std::env::split_paths(&inherited).chain(SBIN.iter().map(PathBuf::from)),
        );
        command
            .env("PATH", path.unwrap_or(inherited))
            // Messages are matched and shown: they have to be in one language.
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive")
            // A group of its own, so that the whole family can be killed.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        Self {
            name: name.to_owned(),
            command,
            limit,
        }
    }

    /// Errors name the program that this one runs, not this one.
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: impl Into<OsString>) -> Self {
        self.command.env(key, value.into());
        self
    }

    pub(crate) fn in_dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it to its end and calls `watch` about ten times a second meanwhile.
    pub(crate) fn run(mut self, mut watch: impl FnMut()) -> Result<(), ProgramError> {
        self.command.stdout(Stdio::null());
        let mut running = self.start()?;
        running.wait(&mut watch)
    }

    /// Runs it to its end and returns what it wrote, of which more than `most` is an error.
    pub(crate) fn output(self, most: u64) -> Result<String, ProgramError> {
        let name = self.name.clone();
        self.stream(|stdout| {
            let failed = |source| ProgramError::Output {
                program: name.clone(),
                source,
            };
            let mut text = String::new();
            stdout
                .take(most)
                .read_to_string(&mut text)
                .map_err(failed)?;
            Ok(text)
        })
    }

    /// Runs it, hands its output to `consume` while it runs, and waits for its end.
    ///
    /// `consume` may stop early with success: what is left of the output is read and dropped.
    /// If it fails at the end of the output, the program's own failure is why, and wins; if it
    /// fails before, the program is killed.
    pub(crate) fn stream<T, E: From<ProgramError>>(
        mut self,
        consume: impl FnOnce(&mut dyn Read) -> Result<T, E>,
    ) -> Result<T, E> {
        self.command.stdout(Stdio::piped());
        let mut running = self.start()?;
        let pipe = running.stdout.take().ok_or_else(|| ProgramError::Output {
            program: running.name.clone(),
            source: io::Error::from(io::ErrorKind::BrokenPipe),
        })?;
        let mut stdout = Stdout { pipe, ended: false };
        let watchdog = Watchdog::start(running.group, running.deadline);
        let consumed = consume(&mut stdout);
        if consumed.is_ok() {
            // Output that cannot be read is told by the exit status.
            let _ = io::copy(&mut stdout, &mut io::sink());
        }
        running.killed |= watchdog.stop();
        if consumed.is_err() && !stdout.ended {
            return consumed;
        }
        drop(stdout);
        running.wait(&mut || {})?;
        consumed
    }

    fn start(mut self) -> Result<Running, ProgramError> {
        let mut child = self.command.spawn().map_err(|source| ProgramError::Start {
            program: self.name.clone(),
            source,
        })?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let stderr = child.stderr.take();
        Ok(Running {
            stdout: child.stdout.take(),
            stderr: stderr.map(|pipe| std::thread::spawn(move || tail_of(pipe))),
            child,
            name: self.name,
            group,
            limit: self.limit,
            deadline: Instant::now() + self.limit,
            killed: false,
            ended: false,
        })
    }
}

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
struct Running {
    name: String,
    child: Child,
    stdout: Option<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    group: Option<Pid>,
    limit: Duration,
    deadline: Instant,
    killed: bool,
    ended: bool,
}

impl Running {
    fn wait(&mut self, watch: &mut dyn FnMut()) -> Result<(), ProgramError> {
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
            pause = (pause * 2).min(Duration::from_millis(100));
            watch();
        };
        watch();
        let stderr = self
            .stderr
            .take()
            .and_then(|t| t.join().ok())
            .unwrap_or_default();
        if self.killed {
            Err(ProgramError::TimedOut {
                program: self.name.clone(),
                limit: self.limit,
                stderr,
            })
        } else if status.success() {
            Ok(())
        } else {
            Err(ProgramError::Failed {
                program: self.name.clone(),
                status,
                stderr,
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

fn tail_of(mut pipe: impl Read) -> String {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(n) = pipe.read(&mut buffer) {
        if n == 0 {
            break;
        }
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * STDERR_KEPT {
            kept.drain(..kept.len() - STDERR_KEPT);
        }
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn locate(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SBIN.iter().map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit: Duration) -> Program {
        Program::find("sh", "dash", limit)
            .unwrap()
            .args(["-c", script])
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_missing_program_comes_with_the_command_that_installs_it() {
        let error = Program::find("no-such-tool", "its-package", LONG)
            .err()
            .unwrap();
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Unavailable, "program_missing")
        );
        assert_eq!(
            error.advice().unwrap(),
            "Install it: apt-get install -y its-package."
        );
    }

    #[test]
    fn output_and_failure_arrive() {
        assert_eq!(shell("echo hello", LONG).output(100).unwrap(), "hello\n");
        let error = shell("echo why >&2; exit 3", LONG).output(100).unwrap_err();
        assert_eq!(error.to_string(), "sh failed (exit status: 3): why");
    }

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let start = Instant::now();
        for streamed in [true, false] {
            let program = shell("sleep 60 & sleep 60; :", Duration::from_millis(100));
            let ended = if streamed {
                program.output(10).map(drop)
            } else {
                program.run(|| {})
            };
            assert!(
                matches!(ended, Err(ProgramError::TimedOut { .. })),
                "{ended:?}"
            );
        }
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_reader_that_stops_has_the_reason() {
        let refused = shell("yes", LONG).stream(|stdout| {
            let mut byte = [0];
            stdout.read_exact(&mut byte).unwrap();
            Err::<(), _>(ProgramError::Output {
                program: "reader".into(),
                source: io::Error::other("enough"),
            })
        });
        assert_eq!(
            refused.unwrap_err().to_string(),
            "cannot read the output of reader"
        );
    }

    #[test]
    fn a_reader_that_fails_at_the_end_gives_way_to_the_programs_reason() {
        let refused = shell("echo half; echo why >&2; exit 2", LONG).stream(|stdout| {
            io::copy(stdout, &mut io::sink()).unwrap();
            Err::<(), _>(ProgramError::Output {
                program: "reader".into(),
                source: io::Error::other("too short"),
            })
        });
        assert_eq!(
            refused.unwrap_err().to_string(),
            "sh failed (exit status: 2): why"
        );
    }

    #[test]
    fn a_full_disk_is_recognised_in_last_words() {
        let error = shell("echo 'x: No space left on device' >&2; exit 1", LONG)
            .run(|| {})
            .unwrap_err();
        assert_eq!(
            (error.class(), error.code()),
            (ErrorClass::Capacity, "disk_full")
        );
    }
}
