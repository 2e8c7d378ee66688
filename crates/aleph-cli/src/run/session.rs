//! One command in one VM, between the user's terminal and the guest.

use super::VmFailed;
use super::keys::Keys;
use crate::output;
use crate::terminal::{self, Raw};
use aleph_executor::guest::{AgentError, ExecEvent, ExecHandle, ExecInput};
use aleph_executor::lifecycle::Outcome;
use aleph_executor::{Executor, Vm, VmError};
use aleph_types::{ExitStatus, JobSpec};
use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// What a guest's processes get between TERM and KILL when aleph itself is told to end.
const GRACE: Duration = Duration::from_secs(10);
const SIGINT: u8 = 2;
/// How long a reader may take to read the last output of a VM that was lost.
const LAST_WORDS: Duration = Duration::from_secs(2);

pub(super) struct Session<'a> {
    pub(super) vm: &'a Vm,
    pub(super) job: &'a JobSpec,
    pub(super) platform: String,
    pub(super) quiet: bool,
}

/// How the conversation with the command ended.
enum End {
    Exited(ExitStatus),
    NotStarted { errno: u32, message: String },
    Killed,
    OutputGone,
    Lost,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    window: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            window: signal(SignalKind::window_change())?,
        })
    }
}

impl Session<'_> {
    /// Boots the VM, runs the command, and returns the exit code.
    pub(super) async fn run(&self) -> Result<u8> {
        let mut signals = Signals::new().context("cannot listen to signals")?;
        let main = Executor::main_command(self.job, terminal::size());
        let started = self.vm.start(Some(main)).await;
        let mut exec = match started {
            Ok(Some(exec)) => exec,
            Ok(None) => return Err(self.failure(&Outcome::Unknown)),
            Err(VmError::Ended(outcome)) => return Err(self.failure(&outcome)),
            Err(error) => return Err(error.into()),
        };
        // Without -i nobody reads the keys, and the terminal's own Ctrl-C must go on working.
        let raw = if self.job.tty && self.job.stdin {
            Raw::enter().context("cannot use the terminal")?
        } else {
            Raw::none()
        };
        let keys = self.job.stdin.then(read_stdin);
        let (end, running) = self
            .converse(&mut exec, keys, &mut signals, raw.is_on())
            .await;
        let ran = running.map(|since| since.elapsed());
        // Lines that follow need a terminal that knows what a line is.
        drop(raw);
        match end {
            End::Exited(status) => {
                self.report(ran, &status.to_string());
                Ok(status.shell_code())
            }
            End::NotStarted { errno, message } => {
                output::say(&format!("aleph: {message}"));
                let code = aleph_executor::guest::exit_code_of(errno);
                self.report(ran, &format!("exit {code}"));
                Ok(code)
            }
            End::Killed => {
                self.vm.kill().await?;
                self.report(ran, "killed");
                Ok(128 + SIGINT)
            }
            // The reader of our output is gone: what a shell shows for SIGPIPE.
            End::OutputGone => Ok(128 + 13),
            End::Lost => match self.vm.wait().await? {
                Outcome::Finished(status) => {
                    self.report(ran, &status.to_string());
                    Ok(status.shell_code())
                }
                Outcome::Stopped => {
                    self.report(ran, "stopped");
                    Ok(128 + 15)
                }
                failed => Err(self.failure(&failed)),
            },
        }
    }

    /// Passes everything on until the command has ended, and says when it began.
    async fn converse(
        &self,
        exec: &mut ExecHandle,
        mut keys: Option<mpsc::Receiver<Vec<u8>>>,
        signals: &mut Signals,
        raw: bool,
    ) -> (End, Option<Instant>) {
        let mut running = None;
        let input = exec.input();
        let (to_guest, pump) = mpsc::channel(1);
        tokio::spawn(pump_input(input.clone(), pump));
        let mut to_guest = Some(to_guest);
        let mut watcher = Keys::default();
        let (mut interrupted, mut terminated) = (false, false);
        // Whoever reads our output may stop reading, and must not stop all else with it: it is
        // written by a thread, and the guest waits once its window is full.
        let (out, mut writer) = writer();
        let (mut out, mut unwritten, mut exited) = (Some(out), None, None);
        loop {
            // Standard input is read only while the guest takes it, so that nothing piles up.
            let next_keys = async {
                match (&mut keys, &to_guest) {
                    (Some(keys), Some(to_guest)) => {
                        let Ok(permit) = to_guest.reserve().await else {
                            return std::future::pending().await;
                        };
                        let read = keys.recv().await;
                        if let Some(bytes) = &read {
                            permit.send(bytes.clone());
                        }
                        read
                    }
                    _ => std::future::pending().await,
                }
            };
            let sender = out.clone();
            let room = async move {
                match sender {
                    Some(out) => out.reserve_owned().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = exec.next(), if unwritten.is_none() && exited.is_none() => {
                    watcher.answered();
                    match event {
                        Ok(ExecEvent::Started(_)) => running = Some(Instant::now()),
                        Ok(ExecEvent::Stdout(bytes)) => unwritten = Some(Output::Out(bytes)),
                        Ok(ExecEvent::Stderr(bytes)) => unwritten = Some(Output::Err(bytes)),
                        Ok(ExecEvent::Exited(status)) => {
                            exited = Some(status);
                            // The writer ends when it has written what it has.
                            out = None;
                        }
                        Err(AgentError::Failed { errno, message }) => {
                            return (End::NotStarted { errno, message }, running);
                        }
                        Err(_) => {
                            drop(out.take());
                            // What came before the end is still on its way out.
                            let _ = tokio::time::timeout(LAST_WORDS, &mut writer).await;
                            return (End::Lost, running);
                        }
                    }
                }
                permit = room, if unwritten.is_some() => match (permit, unwritten.take()) {
                    (Ok(permit), Some(output)) => drop(permit.send(output)),
                    _ => return (End::OutputGone, running),
                },
                written = &mut writer => return match (written, exited) {
                    (Ok(Ok(())), Some(status)) => (End::Exited(status), running),
                    _ => (End::OutputGone, running),
                },
                read = next_keys => match read {
                    Some(bytes) if raw && watcher.pressed(&bytes, Instant::now()) => {
                        return (End::Killed, running);
                    }
                    Some(_) => {}
                    // The pump ends standard input once it has sent what it has.
                    None => to_guest = None,
                },
                Some(()) = signals.interrupt.recv() => {
                    if std::mem::replace(&mut interrupted, true) || exited.is_some() {
                        return (End::Killed, running);
                    }
                    // A closed channel shows in the next event.
                    let _ = input.signal(SIGINT);
                }
                Some(()) = signals.terminate.recv() => {
                    if self.terminate(&mut terminated) || exited.is_some() {
                        return (End::Killed, running);
                    }
                }
                Some(()) = signals.hangup.recv() => {
                    if self.terminate(&mut terminated) || exited.is_some() {
                        return (End::Killed, running);
                    }
                }
                Some(()) = signals.window.recv() => {
                    if let Some((rows, columns)) = terminal::size().filter(|_| self.job.tty) {
                        let _ = input.resize(rows, columns);
                    }
                }
            }
        }
    }

    /// The first time the guest is stopped in order; whether it is the second time.
    fn terminate(&self, terminated: &mut bool) -> bool {
        if std::mem::replace(terminated, true) {
            return true;
        }
        let vm = self.vm.clone();
        tokio::spawn(async move {
            // Its end shows in the conversation.
            let _ = vm.stop(GRACE).await;
        });
        false
    }

    fn failure(&self, outcome: &Outcome) -> anyhow::Error {
        let console = self.vm.last_words(outcome);
        VmFailed {
            what: outcome.to_string(),
            console,
        }
        .into()
    }

    fn report(&self, ran: Option<Duration>, end: &str) {
        if self.quiet {
            return;
        }
        let status = self.vm.status();
        let boot = status
            .boot
            .map(|boot| boot.total + status.prepared_in.unwrap_or_default());
        let boot = boot
            .map(|t| format!(" · boot {}", seconds(t)))
            .unwrap_or_default();
        let ran = ran
            .map(|t| format!(" · run {}", seconds(t)))
            .unwrap_or_default();
        output::say(&format!(
            "aleph: microVM on {}{boot}{ran} · {end}",
            self.platform
        ));
    }
}

fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{seconds:.3} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// Something for one of our two streams.
enum Output {
    Out(Vec<u8>),
    Err(Vec<u8>),
}

/// A thread that writes what it is sent, and ends with the first error or when no more comes.
fn writer() -> (mpsc::Sender<Output>, JoinHandle<io::Result<()>>) {
    let (chunks, mut inbox) = mpsc::channel(1);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(output) = inbox.blocking_recv() {
            match output {
                Output::Out(bytes) => write_all(rustix::stdio::stdout(), &bytes)?,
                Output::Err(bytes) => write_all(rustix::stdio::stderr(), &bytes)?,
            }
        }
        Ok(())
    });
    (chunks, writer)
}

/// Writes all of it, past every buffer; whoever gave us the stream may have made it one that
/// does not block.
fn write_all(stream: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(stream, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => ready(stream, PollFlags::OUT)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn ready(stream: BorrowedFd<'_>, what: PollFlags) -> io::Result<()> {
    match rustix::event::poll(&mut [PollFd::from_borrowed_fd(stream, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn pump_input(input: ExecInput, mut chunks: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = chunks.recv().await {
        if input.write(&bytes).await.is_err() {
            return;
        }
    }
    // A closed channel has no standard input to end.
    let _ = input.close();
}

/// Standard input, read by a thread: a blocking read cannot be called off.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (chunks, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let stdin = rustix::stdio::stdin();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match rustix::io::read(stdin, &mut buffer) {
                Ok(n @ 1..) if chunks.blocking_send(buffer[..n].to_vec()).is_ok() => {}
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if ready(stdin, PollFlags::IN).is_ok() => {}
                _ => return,
            }
        }
    });
    receiver
}
