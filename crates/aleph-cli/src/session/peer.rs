//! The command at the other end: in a VM of this process, or in one of a node's.

use crate::client::{Channel, ChannelEvent, ChannelInput};
use aleph_executor::guest::{AgentError, ExecEvent, ExecHandle, ExecInput};
use aleph_types::{ErrorClass, ExitStatus, Job, Problem};
use bytes::Bytes;
use std::future::Future;

/// What the other end says.
#[derive(Debug)]
pub(crate) enum PeerEvent {
    Started,
    Stdout(Bytes),
    Stderr(Bytes),
    Exited(ExitStatus),
    /// The job ended, and how its command did is in it.
    Ended(Box<Job>),
    /// The command could not be started; with the code that a shell has for that.
    NotStarted {
        code: u8,
        message: String,
    },
    /// It is gone, and why where that is known.
    Lost(Option<anyhow::Error>),
}

/// A command and its streams.
pub(crate) trait Peer {
    /// What goes to it.
    type Input: PeerInput;

    fn input(&self) -> Self::Input;

    /// The next event. Nothing is lost when this is dropped before its end.
    fn next(&mut self) -> impl Future<Output = PeerEvent>;
}

/// What goes to a command. Clones are the same one. That it is gone shows in [`Peer::next`].
pub(crate) trait PeerInput: Clone + Send + 'static {
    /// Sends standard input; waits while the command takes no more. `false` once it is gone.
    fn write(&self, bytes: &[u8]) -> impl Future<Output = bool> + Send;

    /// Ends standard input.
    fn close(&self) -> impl Future<Output = ()> + Send;

    fn signal(&self, signal: u8);

    fn resize(&self, rows: u16, columns: u16);
}

impl Peer for ExecHandle {
    type Input = ExecInput;

    fn input(&self) -> ExecInput {
        Self::input(self)
    }

    async fn next(&mut self) -> PeerEvent {
        match Self::next(self).await {
            Ok(ExecEvent::Started(_)) => PeerEvent::Started,
            Ok(ExecEvent::Stdout(bytes)) => PeerEvent::Stdout(bytes.into()),
            Ok(ExecEvent::Stderr(bytes)) => PeerEvent::Stderr(bytes.into()),
            Ok(ExecEvent::Exited(status)) => PeerEvent::Exited(status),
            Err(AgentError::Failed { errno, message }) => PeerEvent::NotStarted {
                code: aleph_executor::guest::exit_code_of(errno),
                message,
            },
            // The VM itself says more.
            Err(_) => PeerEvent::Lost(None),
        }
    }
}

impl PeerInput for ExecInput {
    async fn write(&self, bytes: &[u8]) -> bool {
        Self::write(self, bytes).await.is_ok()
    }

    async fn close(&self) {
        let _ = Self::close(self);
    }

    fn signal(&self, signal: u8) {
        let _ = Self::signal(self, signal);
    }

    fn resize(&self, rows: u16, columns: u16) {
        let _ = Self::resize(self, rows, columns);
    }
}

impl Peer for Channel {
    type Input = ChannelInput;

    fn input(&self) -> ChannelInput {
        Self::input(self)
    }

    async fn next(&mut self) -> PeerEvent {
        match Self::next(self).await {
            Ok(Some(ChannelEvent::Started)) => PeerEvent::Started,
            Ok(Some(ChannelEvent::Stdout(bytes))) => PeerEvent::Stdout(bytes),
            Ok(Some(ChannelEvent::Stderr(bytes))) => PeerEvent::Stderr(bytes),
            Ok(Some(ChannelEvent::Exited(status))) => PeerEvent::Exited(status),
            Ok(Some(ChannelEvent::Ended(job))) => PeerEvent::Ended(job),
            Ok(Some(ChannelEvent::Failed(problem))) => refused(problem),
            Ok(None) => PeerEvent::Lost(None),
            Err(error) => PeerEvent::Lost(Some(error.into())),
        }
    }
}

impl PeerInput for ChannelInput {
    async fn write(&self, bytes: &[u8]) -> bool {
        Self::write(self, bytes).await
    }

    async fn close(&self) {
        Self::close(self).await;
    }

    fn signal(&self, signal: u8) {
        Self::signal(self, signal);
    }

    fn resize(&self, rows: u16, columns: u16) {
        Self::resize(self, rows, columns);
    }
}

/// A command that is not there or cannot be run has docker's codes; all else is a failure.
fn refused(problem: Problem) -> PeerEvent {
    let code = match (problem.code.as_str(), problem.class) {
        ("guest", ErrorClass::NotFound) => 127,
        ("guest", ErrorClass::Invalid) => 126,
        _ => return PeerEvent::Lost(Some(problem.into())),
    };
    PeerEvent::NotStarted {
        code,
        message: problem.message,
    }
}
