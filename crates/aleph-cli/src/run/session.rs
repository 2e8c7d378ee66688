//! One command in one VM, between the user's terminal and the guest.

use super::VmFailed;
use super::keys::Keys;
use crate::terminal::{self, Raw};
use aleph_executor::guest::{AgentError, ExecEvent, ExecHandle, ExecInput};
use aleph_executor::lifecycle::Outcome;
use aleph_executor::{Executor, Vm, VmError};
use aleph_types::{ExitStatus, JobSpec};
use anyhow::{Context, Result};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// What a guest's processes get between TERM and KILL when aleph itself is told to end.
const GRACE: Duration = Duration::from_secs(10);
const SIGINT: u8 = 2;

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
        let raw = if self.job.tty {
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
                eprintln!("aleph: {message}");
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
        let mut interrupted = false;
        let mut terminated = false;
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
            tokio::select! {
                event = exec.next() => {
                    watcher.answered();
                    match event {
                        Ok(ExecEvent::Started(_)) => running = Some(Instant::now()),
                        Ok(ExecEvent::Stdout(bytes)) => {
                            if write(&mut io::stdout().lock(), &bytes).is_err() {
                                return (End::OutputGone, running);
                            }
                        }
                        Ok(ExecEvent::Stderr(bytes)) => {
                            if write(&mut io::stderr().lock(), &bytes).is_err() {
                                return (End::OutputGone, running);
                            }
                        }
                        Ok(ExecEvent::Exited(status)) => return (End::Exited(status), running),
                        Err(AgentError::Failed { errno, message }) => {
                            return (End::NotStarted { errno, message }, running);
                        }
                        Err(_) => return (End::Lost, running),
                    }
                }
                read = next_keys => match read {
                    Some(bytes) if raw && watcher.pressed(&bytes, Instant::now()) => {
                        return (End::Killed, running);
                    }
                    Some(_) => {}
                    // The pump ends standard input once it has sent what it has.
                    None => to_guest = None,
                },
                Some(()) = signals.interrupt.recv() => {
                    if std::mem::replace(&mut interrupted, true) {
                        return (End::Killed, running);
                    }
                    // A closed channel shows in the next event.
                    let _ = input.signal(SIGINT);
                }
                Some(()) = signals.terminate.recv() => {
                    if self.terminate(&mut terminated) { return (End::Killed, running); }
                }
                Some(()) = signals.hangup.recv() => {
                    if self.terminate(&mut terminated) { return (End::Killed, running); }
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
        eprintln!("aleph: microVM on {}{boot}{ran} · {end}", self.platform);
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

/// Writes all of it at once, so that a pipe or a terminal shows it at once.
fn write(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
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
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; 32 * 1024];
        loop {
            match stdin.read(&mut buffer) {
                Ok(n @ 1..) if chunks.blocking_send(buffer[..n].to_vec()).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return,
            }
        }
    });
    receiver
}
