//! A command in a guest.

use super::streams::{AgentError, StreamEvent, StreamHandle, StreamPort};
use aleph_guest_proto::{Exec, ListBuf, Terminal, ToGuest};
use aleph_types::ExitStatus;

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, over the guest's defaults.
    pub env: Vec<(String, String)>,
    /// Working directory; `/` where it is empty.
    pub workdir: String,
    /// `name`, `uid`, `name:group`, `uid:gid`; root where it is empty.
    pub user: String,
    /// Rows and columns of its terminal, where it gets one.
    pub terminal: Option<(u16, u16)>,
    /// Whether standard input follows.
    pub stdin: bool,
    /// Whether the VM ends with it.
    pub main: bool,
}

impl ExecRequest {
    /// A command with all else at its default.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    pub(super) fn with_message<T>(
        &self,
        send: impl FnOnce(&ToGuest<'_>, bool) -> Result<T, AgentError>,
    ) -> Result<T, AgentError> {
        let argv = ListBuf::new(&self.argv).map_err(AgentError::Request)?;
        let env = self
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let env = ListBuf::new(env).map_err(AgentError::Request)?;
        let message = ToGuest::Exec(Exec {
            argv: argv.as_list(),
            env: env.as_list(),
            workdir: self.workdir.as_bytes(),
            user: self.user.as_bytes(),
            terminal: self
                .terminal
                .map(|(rows, columns)| Terminal { rows, columns }),
            stdin: self.stdin,
            main: self.main,
        });
        send(&message, self.main)
    }
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It runs, under this process id in the guest.
    Started(u32),
    /// It wrote to standard output, or to its terminal.
    Stdout(Vec<u8>),
    /// It wrote to standard error.
    Stderr(Vec<u8>),
    /// It ended, and all it wrote has been told.
    Exited(ExitStatus),
}

/// A running command.
#[derive(Debug)]
pub struct ExecHandle {
    stream: StreamHandle,
}

impl ExecHandle {
    pub(super) fn new(stream: StreamHandle) -> Self {
        Self { stream }
    }

    /// What it does next. After [`ExecEvent::Exited`] or an error nothing follows.
    ///
    /// # Errors
    /// [`AgentError::Failed`] where it could not be started; others where the guest is gone.
    pub async fn next(&mut self) -> Result<ExecEvent, AgentError> {
        loop {
            return Ok(match self.stream.next().await? {
                StreamEvent::Started(pid) => ExecEvent::Started(pid),
                StreamEvent::Data(bytes) => ExecEvent::Stdout(bytes),
                StreamEvent::ErrorData(bytes) => ExecEvent::Stderr(bytes),
                StreamEvent::Exited(status) => ExecEvent::Exited(status),
                StreamEvent::Failed { errno, message } => {
                    return Err(AgentError::Failed { errno, message });
                }
                StreamEvent::Eof | StreamEvent::File(_) | StreamEvent::Done => continue,
            });
        }
    }

    /// Collects all that it writes until it ends: standard output, standard error, status.
    ///
    /// # Errors
    /// As [`ExecHandle::next`].
    pub async fn collect(mut self) -> Result<(Vec<u8>, Vec<u8>, ExitStatus), AgentError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.next().await? {
                ExecEvent::Started(_) => {}
                ExecEvent::Stdout(bytes) => stdout.extend(bytes),
                ExecEvent::Stderr(bytes) => stderr.extend(bytes),
                ExecEvent::Exited(status) => return Ok((stdout, stderr, status)),
            }
        }
    }

    /// A way to feed and steer it, which can be used beside [`ExecHandle::next`].
    #[must_use]
    pub fn input(&self) -> ExecInput {
        ExecInput {
            port: self.stream.port.clone(),
        }
    }
}

/// Feeds and steers a running command. On one that has ended it does nothing.
#[derive(Debug, Clone)]
pub struct ExecInput {
    port: StreamPort,
}

impl ExecInput {
    /// Sends bytes to its standard input, waiting while it does not read.
    ///
    /// # Errors
    /// Where the channel closes.
    pub async fn write(&self, bytes: &[u8]) -> Result<(), AgentError> {
        self.port.write(bytes).await
    }

    /// Ends its standard input.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn close(&self) -> Result<(), AgentError> {
        self.port.send(&ToGuest::Eof)
    }

    /// Sends a signal to its process group, by number.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn signal(&self, signal: u8) -> Result<(), AgentError> {
        self.port.send(&ToGuest::Signal(signal))
    }

    /// Gives its terminal a new size.
    ///
    /// # Errors
    /// Where the channel is closed.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), AgentError> {
        self.port.send(&ToGuest::Resize(Terminal { rows, columns }))
    }
}

/// The exit code that docker and shells give a command that could not be started: 127 where
/// there is none of that name, 126 where it cannot be executed.
#[must_use]
pub fn exit_code_of(errno: u32) -> u8 {
    const ENOENT: u32 = 2;
    if errno == ENOENT { 127 } else { 126 }
}
