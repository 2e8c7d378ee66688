//! A command between the user's terminal and a guest.
//!
//! | file | what it is |
//! | --- | --- |
//! | this one | [`Conversation`]: passes everything on until one side ends it |
//! | `peer` | the seam: a command of this process's node, or of a daemon's |
//! | `stdio` | our standard streams, with a thread for each that blocks |
//! | `keys`, `detach` | keys that mean something to us on a raw terminal |
//!
//! Failure cases: the command cannot be started, its VM or node is lost, whoever reads our
//! output goes away, signals. Each is an [`End`].

mod detach;
mod keys;
mod peer;
mod stdio;

pub(crate) use peer::Peer;
pub(crate) use stdio::{Output, read_stdin, writer};

use crate::terminal::{self, Raw};
use aleph_types::{ExitStatus, Job};
use anyhow::{Context, Result};
use detach::DetachKeys;
use keys::Keys;
use peer::{PeerEvent, PeerInput};
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

const SIGINT: u8 = 2;
/// How long a reader may take to read the last output of a VM that was lost.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a conversation with a command ended.
#[derive(Debug)]
pub(crate) enum End {
    Exited(ExitStatus),
    /// The job ended, and how its command did is in it.
    Ended(Box<Job>),
    NotStarted {
        code: u8,
        message: String,
    },
    /// The user wants it dead: a second Ctrl-C.
    Killed,
    /// The user leaves it alone.
    Left,
    /// Nobody reads our output any more.
    OutputGone,
    /// The command's VM or node is gone.
    Lost(Option<anyhow::Error>),
}

/// The code of a program whose reader went away, as a shell shows it.
pub(crate) const SIGPIPE_CODE: u8 = 128 + 13;
/// The code of a program that was interrupted.
pub(crate) const SIGINT_CODE: u8 = 128 + SIGINT;
/// The code of a program that was told to end.
pub(crate) const SIGTERM_CODE: u8 = 128 + 15;

/// What this process was told to do by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// SIGTERM.
    Terminate,
    /// SIGHUP: the terminal is gone.
    HangUp,
}

/// The signals that a conversation listens to. They are kept from their usual effect as long
/// as this lives.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    window: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen = || -> io::Result<Self> {
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hangup: signal(SignalKind::hangup())?,
                window: signal(SignalKind::window_change())?,
            })
        };
        listen().context("cannot listen to signals")
    }

    /// Waits until this process is to end, and gives the code that it then has.
    pub(crate) async fn ended(&mut self) -> u8 {
        tokio::select! {
            Some(()) = self.interrupt.recv() => SIGINT_CODE,
            Some(()) = self.terminate.recv() => SIGTERM_CODE,
            Some(()) = self.hangup.recv() => SIGTERM_CODE,
            else => std::future::pending().await,
        }
    }
}

/// How to talk with a command.
pub(crate) struct Conversation<'a> {
    /// Whether the command has a terminal.
    pub(crate) tty: bool,
    /// Whether our standard input goes to it.
    pub(crate) stdin: bool,
    /// Whether Ctrl-P Ctrl-Q leaves it, on a raw terminal.
    pub(crate) detachable: bool,
    /// What becomes of it when this process is told to end. `Some` ends the conversation.
    pub(crate) told: &'a dyn Fn(Told) -> Option<End>,
}

impl Conversation<'_> {
    /// Passes everything on until the command has ended, and says when it began. The terminal
    /// is as it was when this returns.
    pub(crate) async fn hold(
        &self,
        peer: &mut impl Peer,
        signals: &mut Signals,
    ) -> Result<(End, Option<Instant>)> {
        // Without -i nobody reads the keys, and the terminal's own Ctrl-C must go on working.
        let raw = if self.tty && self.stdin {
            Raw::enter().context("cannot use the terminal")?
        } else {
            Raw::none()
        };
        let keys = self.stdin.then(read_stdin);
        Ok(self.converse(peer, keys, signals, raw.is_on()).await)
    }

    async fn converse(
        &self,
        peer: &mut impl Peer,
        mut keys: Option<mpsc::Receiver<Vec<u8>>>,
        signals: &mut Signals,
        raw: bool,
    ) -> (End, Option<Instant>) {
        let mut running = None;
        let input = peer.input();
        let (to_guest, pump) = mpsc::channel(1);
        tokio::spawn(pump_input(input.clone(), pump));
        let mut to_guest = Some(to_guest);
        let mut watcher = Keys::default();
        let mut leaving = (raw && self.detachable).then(DetachKeys::default);
        let (mut interrupted, mut terminated) = (false, false);
        // Whoever reads our output may stop reading, and must not stop all else with it: it is
        // written by a thread, and the guest waits once its window is full.
        let (out, mut writer) = writer();
        let (mut out, mut unwritten, mut ended) = (Some(out), None, None);
        loop {
            // Standard input is read only while the guest takes it, so that nothing piles up.
            let next_keys = async {
                match (&mut keys, &to_guest) {
                    (Some(keys), Some(to_guest)) => {
                        let Ok(permit) = to_guest.reserve().await else {
                            return std::future::pending().await;
                        };
                        let read = keys.recv().await?;
                        let (on, left) = match &mut leaving {
                            Some(leaving) => leaving.pressed(&read),
                            None => (read, false),
                        };
                        if !on.is_empty() {
                            permit.send(on.clone());
                        }
                        Some((on, left))
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
                event = peer.next(), if unwritten.is_none() && ended.is_none() => {
                    watcher.answered();
                    match event {
                        PeerEvent::Started => running = Some(Instant::now()),
                        PeerEvent::Stdout(bytes) => unwritten = Some(Output::Out(bytes)),
                        PeerEvent::Stderr(bytes) => unwritten = Some(Output::Err(bytes)),
                        // The writer ends when it has written what it has.
                        PeerEvent::Exited(status) => {
                            ended = Some(End::Exited(status));
                            out = None;
                        }
                        PeerEvent::Ended(job) => {
                            ended = Some(End::Ended(job));
                            out = None;
                        }
                        PeerEvent::NotStarted { code, message } => {
                            return (End::NotStarted { code, message }, running);
                        }
                        PeerEvent::Lost(why) => {
                            drop(out.take());
                            // What came before the end is still on its way out.
                            let _ = tokio::time::timeout(LAST_WORDS, &mut writer).await;
                            return (End::Lost(why), running);
                        }
                    }
                }
                permit = room, if unwritten.is_some() => match (permit, unwritten.take()) {
                    (Ok(permit), Some(output)) => drop(permit.send(output)),
                    _ => return (End::OutputGone, running),
                },
                written = &mut writer => return match (written, ended) {
                    (Ok(Ok(())), Some(end)) => (end, running),
                    _ => (End::OutputGone, running),
                },
                read = next_keys => match read {
                    Some((_, true)) => return (End::Left, running),
                    Some((keys, _)) if raw && watcher.pressed(&keys, Instant::now()) => {
                        return (End::Killed, running);
                    }
                    Some(_) => {}
                    // The pump ends standard input once it has sent what it has.
                    None => to_guest = None,
                },
                Some(()) = signals.interrupt.recv() => {
                    if std::mem::replace(&mut interrupted, true) || ended.is_some() {
                        return (End::Killed, running);
                    }
                    // A closed channel shows in the next event.
                    input.signal(SIGINT);
                }
                Some(()) = signals.terminate.recv() => {
                    if let Some(end) = self.told(Told::Terminate, &mut terminated, ended.is_some()) {
                        return (end, running);
                    }
                }
                Some(()) = signals.hangup.recv() => {
                    if let Some(end) = self.told(Told::HangUp, &mut terminated, ended.is_some()) {
                        return (end, running);
                    }
                }
                Some(()) = signals.window.recv() => {
                    if let Some((rows, columns)) = terminal::size().filter(|_| self.tty) {
                        input.resize(rows, columns);
                    }
                }
            }
        }
    }

    /// The first time the command is dealt with in order; the second time it is killed.
    fn told(&self, what: Told, before: &mut bool, ended: bool) -> Option<End> {
        if std::mem::replace(before, true) || ended {
            return Some(End::Killed);
        }
        (self.told)(what)
    }
}

async fn pump_input(input: impl PeerInput, mut chunks: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = chunks.recv().await {
        if !input.write(&bytes).await {
            return;
        }
    }
    input.close().await;
}
